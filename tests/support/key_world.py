"""Nodes that share disks with persistent reservations, in virtual time, and a checker (P7.37-P7.44).

`KeyWorld(seed).run()` is one history: nodes boot, write by every path that they hold, leave, pause, lose their power
and their paths at any moment; some are condemned, dead or alive, and members are asked to preempt them. The rules are
the real ones, and so is the order: committed before it is acted on. Who commits is here, without a network of its own:
everybody learns of it after a delay.

The checker sees what lands on the disks: no write of an incarnation that was proven to write nothing more, and no
reservation that goes while somebody runs.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random

from muster.core.reservations.audit import Standing, audit
from muster.core.reservations.keys import Answer, Command, Owner, Verb, key_of, tag_of
from muster.core.reservations.preemption import Preemption, Report, Request, Step, handed_on, with_report
from muster.core.reservations.registrant import Registrant, Stage
from muster.sim.world.shared_disk import Nexus, SharedDisk
from muster.sim.world.time import US_PER_S, EventLoop, Process

NODES, DISKS, PATHS = 3, ("store", "pool"), ("a", "b")
TAG = tag_of("a cluster of the simulator")
TURN_US, WRITE_US, LOOK_US, AUDIT_US = 20_000, 60_000, 300_000, 500_000
ASKER_US = 4 * US_PER_S  # after that another member is asked
FAULTS_US, REST_US = 20 * US_PER_S, 12 * US_PER_S
FAULTS = (
    "down", "down", "down", "up", "cut", "kill", "pause", "pause", "condemn", "condemn", "leave", "rename", "boot"
)  # fmt: skip


class Broken(AssertionError):
    """What must hold does not."""


class Life:
    """One incarnation of a node: what its process for reservations does, and its writes."""

    def __init__(self, world: "KeyWorld", owner: Owner) -> None:
        self.world, self.owner = world, owner
        self.key = key_of(TAG, owner)
        self.process = Process(f"n{owner.node}.{owner.incarnation}")
        self.registrants = {disk: Registrant(TAG, owner, PATHS) for disk in DISKS}
        self.is_blind = False  # it does not read the marks: its guard hangs
        self.recorded = False  # it has written its first record of the lease
        self.known: dict[Owner, Standing] = {}  # what it has been told was committed
        self._busy: set[str] = set()
        self._asked: dict[tuple[Owner, int, str], Preemption] = {}
        self._marks_asked: set[str] = set()
        self._next = dict.fromkeys(("write", "look", "audit"), 0)
        self._turns = 0

    @property
    def alive(self) -> bool:
        """Whether anything of it runs, paused or not."""
        return self.process.alive

    def after(self, delay_us: int, action: Callable[..., None], *arguments: object) -> None:
        """In this process, which may be paused or dead by then."""
        self.world.loop.deliver_after(delay_us, self.process, action, *arguments)

    # ---- turns --------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """What is due now; another turn follows."""
        self._turns += 1
        for name, registrant in self.registrants.items():
            self._drive(name, registrant)
            if not self.alive:
                return
        if not self.recorded and all(registrant.may_record for registrant in self.registrants.values()):
            self.recorded = True
        if self.recorded:
            self._due("write", WRITE_US, self._write)
            self._due("look", LOOK_US, self._look)
            self._due("audit", AUDIT_US, self._audit)
        self.after(TURN_US, self.turn)

    def _due(self, what: str, every_us: int, action: Callable[[], None]) -> None:
        if self.world.loop.now_us >= self._next[what]:
            self._next[what] = self.world.loop.now_us + every_us
            action()

    def _drive(self, name: str, registrant: Registrant) -> None:
        if registrant.stage is Stage.REFUSED:
            self.world.told["refused: " + registrant.why.split(":")[0]] += 1
            self.end()
        elif registrant.is_gone:
            self.world.told["gone"] += 1
            self.end()
        elif registrant.wants_marks and name not in self._marks_asked:
            self._marks_asked.add(name)
            self.after(self.world.delay_us(), self._marks, name)
        elif name not in self._busy and (command := registrant.wanted()) is not None:
            self._busy.add(name)
            if command.verb is Verb.REGISTER and self.recorded and not self.world.calm:
                self.world.repair_begins(name, (self.owner.node, command.path))
            self.send(name, command, partial(self._answered, name, command))

    def send(self, disk: str, command: Command, then: Callable[[Answer], None]) -> None:
        """A command to a disk; its answer comes to this process."""
        nexus = (self.owner.node, command.path)

        def arrived(answer: Answer) -> None:
            self.world.loop.deliver(self.process, then, answer)

        self.world.disks[disk].send(nexus, command, arrived)

    def _answered(self, name: str, command: Command, answer: Answer) -> None:
        self._busy.discard(name)
        if command.verb is Verb.REGISTER and self.recorded:
            self.world.told["repairs"] += 1
        self.registrants[name].answered(command, answer)

    def _marks(self, name: str) -> None:
        self._marks_asked.discard(name)
        self.registrants[name].marks_read(condemned=self.owner in self.world.marks)

    def end(self) -> None:
        """It stops, and all that it runs; that is proven a moment later."""
        self.process.kill()
        self.world.loop.after(self.world.delay_us(), self.world.stopped, self.owner)

    # ---- what it does -------------------------------------------------------------------------------------------

    def _write(self) -> None:
        for name, registrant in self.registrants.items():
            for path in registrant.held:
                self.world.disks[name].write((self.owner.node, path), self.owner, partial(self._refused, registrant))

    def _refused(self, registrant: Registrant) -> None:
        self.world.told["writes refused"] += 1
        self.world.loop.deliver(self.process, registrant.look)

    def _look(self) -> None:
        if self.owner in self.world.marks and not self.is_blind:
            self.world.told["read its mark"] += 1
            self.end()
            return
        for name, registrant in self.registrants.items():
            registrant.look()
            for path in PATHS:
                if self.world.disks[name].is_up((self.owner.node, path)):
                    registrant.path_is_up(path)

    def _audit(self) -> None:
        for name, registrant in self.registrants.items():
            if registrant.held:
                path = registrant.held[self._turns % len(registrant.held)]
                self.send(name, Command(Verb.READ, path, self.key), partial(self._audited, name, path))

    def _audited(self, name: str, path: str, answer: Answer) -> None:
        if not answer.view.keys:
            return
        found = audit(TAG, self.key, answer.view, lambda owner: self.known.get(owner, Standing.LIVES))
        for key in found.back:
            self.world.key_is_back(name, key)
            self.send(name, Command(Verb.PREEMPT_ABORT, path, self.key, key), lambda _answer: None)
        for key in found.left:
            self.world.told["tidied"] += 1
            self.send(name, Command(Verb.PREEMPT, path, self.key, key), lambda _answer: None)
        self.world.told["strange keys"] += len(found.strange)

    # ---- as one that is asked -----------------------------------------------------------------------------------

    def asked(self, request: Request) -> None:
        """A committed request names this incarnation: one preemption for each disk."""
        for disk in request.untouched:
            key = (request.victim, request.number, disk)
            self._asked[key] = Preemption(self.key, key_of(TAG, request.victim))
            self._preempt(key, 0)

    def _preempt(self, key: tuple[Owner, int, str], turn: int) -> None:
        """After a look at the store (P7.23): the next command."""
        victim, number, disk = key
        preemption = self._asked[key]
        if self.owner in self.world.marks or self.world.requests[victim].number != number:
            return
        command = preemption.wanted(self.registrants[disk].held, turn)
        if command is not None:
            self.send(disk, command, partial(self._preempted, key, turn))
        elif preemption.step is Step.BEGIN:
            self.after(self.world.delay_us(), self.world.reported, Report(victim, number, begun=frozenset({disk})))
        elif preemption.step is Step.DONE:
            report = Report(victim, number, done=frozenset({disk}))
            self.after(self.world.delay_us(), self.world.reported, report)
        elif preemption.step is Step.NO_PROOF:
            self.world.told["no proof: " + preemption.why] += 1

    def may_begin(self, key: tuple[Owner, int, str]) -> None:
        """It is committed that this preemption begins."""
        self._asked[key].begun()
        self._preempt(key, 1)

    def _preempted(self, key: tuple[Owner, int, str], turn: int, answer: Answer) -> None:
        self._asked[key].answered(answer)
        self.after(self.world.delay_us(), self._preempt, key, turn + 1)


class KeyWorld:
    """One seeded history."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.loop = EventLoop()
        self.disks = {name: SharedDisk(name, self.loop, self.random, self._landed) for name in DISKS}
        self.lives: dict[int, Life] = {}
        self.marks: set[Owner] = set()
        self.standing: dict[Owner, Standing] = {}
        self.requests: dict[Owner, Request] = {}
        self.isolated: dict[Owner, int] = {}  # since when that is committed
        self.withdrawn: set[Owner] = set()
        self.told: Counter[str] = Counter()  # what has happened how often
        self.calm = False

    def delay_us(self) -> int:
        """Of a message, of a look at the store."""
        return 1000 + int(self.random.random() * (30_000 if self.random.random() < 0.9 else 600_000))

    # ---- the checker --------------------------------------------------------------------------------------------

    def _landed(self, disk: str, owner: Owner, nexus: Nexus) -> None:
        self.told["writes"] += 1
        if owner in self.isolated:
            raise Broken(f"a write of {owner} by {nexus} is on {disk}, and it was proven to write nothing more")

    def check(self) -> None:
        """No reservation has gone while somebody runs who is not the one to lose it."""
        for disk in self.disks.values():
            if disk.released and any(life.alive for life in self.lives.values()):
                raise Broken(f"the reservation of {disk.name} has gone, and somebody runs")

    # ---- what is committed --------------------------------------------------------------------------------------

    def boot(self, node: int) -> None:
        """The next incarnation, once all that came before has stopped."""
        last = self.lives.get(node)
        if last is not None and self.standing.get(last.owner) is not Standing.STOPPED:
            return
        unrecorded = last is not None and not last.recorded
        incarnation = 1 if last is None else last.owner.incarnation + (not unrecorded)
        if unrecorded and last is not None:
            self.standing.pop(last.owner)  # the same incarnation once more: nothing of it was ever recorded
        self.lives[node] = life = Life(self, Owner(node, incarnation))
        life.known.update(self.standing)
        self.told["boots"] += 1
        life.turn()

    def commit(self, owner: Owner, standing: Standing) -> None:
        """A record says so from now on, and everybody learns of it."""
        if self.standing.get(owner) is Standing.STOPPED:
            return
        self.standing[owner] = standing
        for life in self.lives.values():
            life.after(self.delay_us(), self._learn, life, owner)

    def _learn(self, life: Life, owner: Owner) -> None:
        if owner in self.standing:
            life.known[owner] = self.standing[owner]

    def stopped(self, owner: Owner) -> None:
        """It is proven that nothing of it runs."""
        if self.lives[owner.node].recorded:
            self.commit(owner, Standing.STOPPED)
        else:
            self.standing[owner] = Standing.STOPPED

    def condemn(self, node: int) -> None:
        """A mark, and a request to preempt it, whether it runs or not."""
        life = self.lives.get(node)
        if life is None or not life.recorded or life.owner in self.marks or len(self._members() - {node}) == 0:
            return
        self.marks.add(life.owner)
        life.is_blind = self.random.random() < 0.6
        self.told["condemned"] += 1
        self.requests[life.owner] = Request(life.owner, 0, Owner(-1, 0), DISKS)
        self._ask(life.owner)

    def _members(self) -> set[int]:
        return {node for node, life in self.lives.items() if life.recorded and life.owner not in self.marks}

    def _ask(self, victim: Owner) -> None:
        """Ask a member, and another one later, until it is proven one way or another."""
        request = self.requests[victim]
        if request.is_proven or self.standing.get(victim) is Standing.STOPPED:
            return
        able = sorted(self._members() - {victim.node})
        if able:
            asker = self.lives[self.random.choice(able)]
            request = self.requests[victim] = handed_on(request, asker.owner)
            asker.after(self.delay_us(), asker.asked, request)
        self.loop.after(ASKER_US, self._ask, victim)

    def reported(self, report: Report) -> None:
        """What an asker has done is committed; with the last disk that is the proof."""
        before = self.requests[report.victim]
        request = self.requests[report.victim] = with_report(before, report)
        asker = self.lives.get(request.asker.node)
        if asker is not None and asker.owner == request.asker:
            for disk in request.begun - before.begun:
                asker.after(self.delay_us(), asker.may_begin, (report.victim, report.number, disk))
        if request.is_proven and report.victim not in self.isolated:
            self.told["proven"] += 1
            self.isolated[report.victim] = self.loop.now_us
            self.commit(report.victim, Standing.ISOLATED)

    def key_is_back(self, disk: str, key: int) -> None:
        """The key of an isolated incarnation was seen again: the proof is withdrawn, and people are told."""
        self.told[f"alarm on {disk}"] += 1
        self.withdrawn |= {owner for owner in self.isolated if key_of(TAG, owner) == key}

    # ---- faults -------------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        if self.calm:
            return
        node, disk, path = self.random.randrange(NODES), self.random.choice(DISKS), self.random.choice(PATHS)
        nexus, life = (node, path), self.lives.get(node)
        kind = self.random.choice(FAULTS)
        match kind:
            case "down":
                self.disks[disk].take_down(nexus)
                self.loop.after(int(self.random.random() * 3 * US_PER_S), self.disks[disk].bring_up, nexus)
            case "cut":
                for other in PATHS:
                    self.disks[disk].take_down((node, other))
            case "up":
                self._all_up(node)
            case "kill" if life is not None and life.alive and self.random.random() < 0.4:
                life.end()
            case "pause" if life is not None and life.alive:
                self.loop.pause(life.process)
                self.loop.after(int(self.random.random() * 5 * US_PER_S), self.loop.resume, life.process)
            case "condemn" if self.random.random() < 0.5:
                self.condemn(node)
            case "leave" if life is not None and life.process.running and life.recorded:
                if self.random.random() < 0.4:
                    self.leave(life)
            case "rename":
                self.told["renames"] += 1
                self.disks[disk].rename(nexus, (node, f"{path}, once {self.told['renames']}"))
            case "boot":
                self.boot(node)
            case _:
                pass
        self.loop.after(int(self.random.random() * 400_000), self._fault)

    def repair_begins(self, disk: str, nexus: Nexus) -> None:
        """The worst moment: it is condemned now, and its command arrives when it has long been preempted."""
        if self.random.random() < 0.4:
            self.condemn(nexus[0])
            self.disks[disk].take_down(nexus)
            self.loop.after(int(self.random.random() * 3 * US_PER_S), self.disks[disk].bring_up, nexus)

    def _all_up(self, node: int) -> None:
        for disk in self.disks.values():
            for path in PATHS:
                disk.bring_up((node, path))

    def leave(self, life: Life) -> None:
        """A node leaves: all that it runs has stopped. Its key stays where it is (P7.41)."""
        self.told["leaves"] += 1
        life.end()

    # ---- a history ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Faults for a while, then none; judged at every moment."""
        for node in range(NODES):
            self.boot(node)
        self.loop.after(US_PER_S, self._fault)
        self._run_for(FAULTS_US)
        self.calm = True
        for node in range(NODES):
            self._all_up(node)
        self._run_for(REST_US)
        self._at_rest()

    def _run_for(self, duration_us: int) -> None:
        until_us = self.loop.now_us + duration_us
        while self.loop.now_us < until_us:
            self.loop.run_until(min(until_us, self.loop.now_us + 100_000))
            self.check()

    def _at_rest(self) -> None:
        """Who was isolated has stopped, by its own doing; all others who run hold all their paths."""
        for life in self.lives.values():
            if life.alive and life.owner in self.isolated:
                raise Broken(f"{life.owner} is isolated and has not stopped")
            for name, registrant in life.registrants.items():
                if life.alive and registrant.held != sorted(PATHS):
                    raise Broken(f"{life.owner} holds {registrant.held} of {name} only, {registrant.stage}")
