"""A round of recovery at one node: stop, tell, build up again, go on, in pieces (P12.11-P12.13).

Theory of operation. `Recovery` knows how far the round has come, and what may follow; here is what this node does at
each of its steps, with its locks (`Locking`) and its channels (`Wires`). Each step is a job, done in pieces, so that
clients are served in between; a round that begins in the middle takes the place of the job.
"""

from collections.abc import Iterator

from muster.core.locks.deadlock import Search
from muster.core.locks.directory import NOBODY
from muster.core.locks.kernel import KernelSpaces
from muster.core.locks.locking import Locking
from muster.core.locks.messages import (
    Acknowledge,
    Effect,
    Emptied,
    EndClient,
    NotHere,
    Reason,
    Rebuilt,
    owner_of,
)
from muster.core.locks.modes import NONE
from muster.core.locks.names import Bounds, bucket_of
from muster.core.locks.recovery import AT_ONCE, BARRIERS, MASK, Kind, Member, Phase, Recovery, Step, Work
from muster.core.locks.wires import Wires


class Rounds:
    """Those of one incarnation of a node."""

    def __init__(
        self,
        node: int,
        incarnation: int,
        recovery: Recovery,
        wires: Wires,
        locking: Locking,
        search: Search,
        kernel: KernelSpaces,
        bounds: Bounds,
        effects: list[Effect],
    ) -> None:
        """What is to be done goes into `effects`."""
        self._node, self._incarnation = node, incarnation
        self._recovery, self._wires, self._locking, self._search = recovery, wires, locking, search
        self._kernel = kernel
        self._tables, self._bounds, self._effects = locking.tables, bounds, effects
        self.is_paced = False  # go on with `work` only, piece by piece; else at once
        self.is_out = False  # all have done with its leave: it only acknowledges what others' transitions still ask
        self._job: Iterator[None] | None = None
        self._owes_rebuilt = False  # all is told, and not yet that it is
        self._may_hold_absent = False  # resources here may have locks of nodes that are proven dead

    def told(self, step: Step) -> None:
        """One barrier of one transition (P12.11). Told twice, it is the same one."""
        recovery = self._recovery
        is_own = (step.node, step.incarnation) == (self._node, self._incarnation)
        if self.is_out or not (recovery.roster or is_own):
            self._told_outside(step)
            return
        work = recovery.work.get(step.transition)
        if step.barrier == 0 and work is None and step.entry > recovery.epoch:
            self._begin(step)
            return
        if work is None:  # it began before this node was in the level, or is told again
            work = recovery.work[step.transition] = Work(step)
        work.step = step
        work.acknowledged = min(work.acknowledged, step.barrier - 1)
        if step.barrier == 2 and is_own:
            self.is_out, self._job = True, None
            for each in list(recovery.work.values()):
                self._effects.append(Acknowledge(each.step.transition, each.step.barrier))
            return
        self.go_on()

    def _told_outside(self, step: Step) -> None:
        """This node is not in the level yet, or no more: it takes no part."""
        if step.barrier == 2:
            self._recovery.seen_off.add((step.node, step.incarnation))
        if self.is_out and step.kind is Kind.JOINING and step.barrier == 0:
            self._recovery.roster[step.node] = Member(step.incarnation)
            self._wires.send(step.node, Emptied())  # the new node may have been told that this one was leaving
        self._effects.append(Acknowledge(step.transition, step.barrier))

    def _see_off(self, node: int) -> None:
        """A graceful leave is over."""
        if (member := self._recovery.roster.get(node)) is not None:
            self._wires.bid_farewell(node, member.incarnation)
            self._recovery.forget(node)

    def _begin(self, step: Step) -> None:
        recovery, tables = self._recovery, self._tables
        recovery.begin(step)
        self._owes_rebuilt = False
        self._kernel.begin(recovery.epoch)
        self._search.give_up()
        if step.kind in AT_ONCE:
            self._wires.bid_farewell(step.node, step.incarnation)
            self._may_hold_absent = True
            self._locking.finds = [(node, find) for node, find in self._locking.finds if node != step.node]
            for key, early in tables.early.items():
                tables.early[key] = [(node, message) for node, message in early if node != step.node]
        if step.kind is Kind.LEAVING and step.node == self._node:
            self._locking.is_leaving = True
            self._effects.extend(map(EndClient, tables.clients))
            for lock in [each for locks in tables.clients.values() for each in locks.values() if each.wanted != NONE]:
                if lock.id not in self._locking.held and lock.wanted != NONE:
                    self._locking.end_wait(lock, Reason.CLIENT_GONE)  # nobody becomes a master to leave at once
        if step.kind is Kind.JOINING and self._node in recovery.emptied:
            self._wires.send(step.node, Emptied())  # said to all others before this one came
        self._start(self._stop())

    # ---- what it asks of this node, in pieces

    @property
    def has_work(self) -> bool:
        """Whether `work` is to be called."""
        return self._job is not None

    def work(self) -> bool:
        """Do a piece of what a round asks of this node; whether there is more. Clients are served in between (P12.12).

        Only where `is_paced`; else all is done as soon as it can be.
        """
        job = self._job
        if job is None:
            return False
        for _ in job:
            return True
        if self._job is job:
            self._job = None
            self.go_on()
        return self._job is not None

    def _start(self, job: Iterator[None]) -> None:
        """Begin a job; one that a new round makes needless is over."""
        self._job = job
        while not self.is_paced and self.work():
            pass

    def go_on(self) -> None:
        """As far as the round can go now."""
        if self.is_out:
            return  # its kernel may still be told that somebody is refused
        recovery = self._recovery
        for work in list(recovery.work.values()):
            step = work.step
            if step.kind is Kind.LEAVING and step.barrier == 2 and recovery.has_emptied(step.node):
                self._see_off(step.node)
        if self._job is None:
            if self._owes_rebuilt and self._kernel.has_done_all:
                self._say_rebuilt()
            if recovery.all_have_stopped:
                self._start(self._tell_all())
            elif recovery.all_have_told:
                self._start(self._build())
            elif recovery.may_resume:
                self._start(self._resume())
        self.acknowledge()

    # ---- its steps

    def _stop(self) -> Iterator[None]:
        """Stop what the round concerns, and say so."""
        recovery, tables = self._recovery, self._tables
        leaves = not recovery.stays(self._node)
        if self._may_hold_absent or leaves:
            for number, resource in enumerate(list(tables.resources.values())):
                if number % self._bounds.piece == 0:
                    yield
                tables.lose_absent(resource, recovery.roster, MASK)
                if leaves:
                    tables.freeze(resource)
            self._may_hold_absent = False
        for number, (key, use) in enumerate(list(tables.uses.items())):
            if number % self._bounds.piece == 0:
                yield
            if use.master != NOBODY and not recovery.stays(use.master):
                use.held = True
                if use.master not in recovery.roster:
                    for lock in use.locks.values():
                        lock.valid = lock.valid and lock.mode != NONE  # who waits there cannot know what it has lost
            if use.asked != NOBODY and bucket_of(key) in recovery.moving:
                use.asked = NOBODY
        stopped, said = recovery.stop(), self._kernel.say()
        for node in recovery.roster:
            if node != self._node:
                if self._kernel.takes_part:
                    self._wires.send(node, said)
                self._wires.send(node, stopped)

    def _tell_all(self) -> Iterator[None]:
        """All have stopped: tell what this node knows to whom it concerns."""
        recovery = self._recovery
        recovery.begin_telling()
        self._kernel.settle(self._seats(), recovery.coordinator)
        for each in recovery.tell(self._tables, lambda lock: self._locking.denied(lock, Reason(lock.cancelling))):
            if each is not None:
                self._wires.send(*each)
            yield
        self._refuse_early()
        recovery.end_telling()
        self._owes_rebuilt = True

    def _say_rebuilt(self) -> None:
        """All is told, and this node's kernel has stopped what the round concerns: others rely on both (P12.32)."""
        self._owes_rebuilt = False
        rebuilt = Rebuilt(self._recovery.epoch)
        for node in self._recovery.roster:
            if node != self._node:
                self._wires.send(node, rebuilt)
        self._wires.deal(self._node, self._incarnation, rebuilt)

    def _build(self) -> Iterator[None]:
        """All have told: become the master of what was told to this node."""
        for number, (key, strays) in enumerate(self._recovery.build(self._tables)):
            if not strays:
                self._locking.enter_resource(key)
            for copy in strays:
                self._wires.send(owner_of(copy.lock), NotHere(copy.key, copy.lock))
            if number % self._bounds.piece == 0:
                yield

    def _refuse_early(self) -> None:
        """What was asked too early of a master that this node will not be: who has asked looks again (P12.8)."""
        tables, recovery = self._tables, self._recovery
        leaves = not recovery.stays(self._node)
        for key in [each for each in tables.early if leaves or each in recovery.unsettled]:
            if key not in tables.resources:
                self._locking.refuse(key)

    def _resume(self) -> Iterator[None]:
        """All are ready: go on with what was stopped. What is not reached yet still stands as it stood."""
        recovery, tables = self._recovery, self._tables
        recovery.resume()
        is_alone = not recovery.stays(coordinator := self._kernel.coordinator) and recovery.has_emptied(coordinator)
        self._kernel.resume(self._seats(), is_alone=is_alone)
        mine = {bucket for bucket, node in enumerate(recovery.places) if node == self._node}
        yield from tables.directory.prune(mine, {node for node, member in recovery.roster.items() if member.stays})
        for number, key in enumerate(list(tables.frozen)):
            if number % self._bounds.piece == 0:
                yield
            self._locking.thaw(key)
        for key in [each for each in tables.early if each in tables.resources]:
            self._locking.take_early(key)
        for number, (key, use) in enumerate(list(tables.uses.items())):
            if number % self._bounds.piece == 0:
                yield
            if tables.uses.get(key) is use:
                self._locking.resume_use(key, use)
        while self._locking.finds:
            node, find = self._locking.finds.pop(0)
            if recovery.places[bucket_of(find.key)] == self._node:
                self._locking.asked_of_directory(node, find)
        while self._locking.held:  # one after the other: what one frees may be granted to another, which is to end
            self._locking.go_on_with_held()
            yield
        for number, (key, resource) in enumerate(list(tables.resources.items())):
            if number % self._bounds.piece == 0:
                yield
            if resource.is_empty and tables.resources.get(key) is resource:
                self._locking.rests(key)

    def _seats(self) -> dict[int, int]:
        return {node: member.incarnation for node, member in self._recovery.roster.items()}

    # ---- its end

    def acknowledge(self) -> None:
        """What this node has done of each transition's newest step (P12.11)."""
        if self._is_at_rest and self._locking.is_leaving and not self._locking.count and self._kernel.is_done_with:
            self._say_emptied()
        for name, work in list(self._recovery.work.items()):
            step = work.step
            if work.acknowledged < step.barrier and self._has_done(step):
                work.acknowledged = step.barrier
                self._effects.append(Acknowledge(step.transition, step.barrier))
                if step.barrier + 1 == BARRIERS[step.kind]:
                    del self._recovery.work[name]

    def _has_done(self, step: Step) -> bool:
        """First barriers, once all have told; the second ones, once this node has resumed.

        The later ones of a leave, once nothing more comes of the leaving node, whenever this one came.
        """
        if not self._kernel.has_done_all:
            return False
        if step.barrier == 0:
            return self._recovery.phase in {Phase.READY, Phase.AT_REST}
        has_emptied = step.kind is not Kind.LEAVING or self._recovery.has_emptied(step.node)
        return has_emptied and (self._is_at_rest or step.barrier == 2)

    @property
    def _is_at_rest(self) -> bool:
        """Whether this node has resumed, and has gone on with everything."""
        return self._recovery.phase is Phase.AT_REST and self._job is None

    def _say_emptied(self) -> None:
        """All that its clients had is free, and all that says so is on its way, before this."""
        if self._node in self._recovery.emptied:
            return
        self._recovery.emptied[self._node] = self._incarnation
        self._kernel.has_emptied = True
        for node in self._recovery.roster:
            if node != self._node:
                self._wires.send(node, Emptied())
