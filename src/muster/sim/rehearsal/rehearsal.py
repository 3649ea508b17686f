"""A rehearsal: the true core in the virtual world, led through a script, and what an observer sees of it (SPEC 8.4).

Theory of operation. `Stage` is a virtual cluster that does nothing by itself but what its script says: no random
faults, no node that boots again of its own accord, levels that work as long as the scenario says. `Account` folds the
history of that world into what each subsystem holds for each node (SPEC 3.1); it reads observations only, so nothing
that it shows is written in. `rehearse` lets time pass, gives a `Frame` for each moment at which anything happened, and
at last the `Verdict` of the simulator's checkers.
"""

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

from muster.core.effects import RunCommand
from muster.core.events.resident import RehearsedEventManager
from muster.core.node.built_in import RESIDENTS
from muster.core.services.instances import SEPARATOR
from muster.core.transitions.resident import Resident
from muster.core.transitions.transition import EVENT_MANAGER, SETTLED_STATE
from muster.records.levels import Level, NodeState, TransitionKind
from muster.records.members import LeaveNode, Member
from muster.records.operations import OperationRequest
from muster.records.registers import ClaimFlag
from muster.records.services import DeregisterService, FailService, RegisterService, ServiceState, TransferService
from muster.records.terms import NO_TERM, Term
from muster.records.timing import FAST
from muster.records.transitions import Transition
from muster.records.units import US_PER_MS
from muster.sim import schedule
from muster.sim.checkers.checkers import judge
from muster.sim.history import (
    Applied,
    ClaimWritten,
    DaemonStarted,
    Disturbed,
    Elected,
    LevelAcknowledged,
    LifeBegan,
    LifeEnded,
    Logged,
    Notified,
    Observation,
    Raised,
    Replied,
    ServiceFailed,
)
from muster.sim.rehearsal.rehearsed_services import ServiceAccount, decide, leaves_something
from muster.sim.rehearsal.scenario import RehearsedLevel, Scenario, ScriptStep
from muster.sim.world.guard import Guard
from muster.sim.world.machine import Machine
from muster.sim.world.surroundings import Outcome, Settings
from muster.sim.world.time import US_PER_S
from muster.sim.world.world import World

NOT_REGISTERED = "not registered"
PROFILE = FAST
SLICE_US = 100 * US_PER_MS
MAXIMUM_EVENTS_PER_SLICE = 1_000_000  # more is a loop without progress in virtual time
PATIENCE_US = 30 * US_PER_S  # nothing has happened for so long after the script's end: it never will
MAXIMUM_AFTERMATH_US = 600 * US_PER_S  # from the script's last step
TOLD_EVENTS = (  # what a node logs that its operator would want to read here
    "proof of death",
    "panic",
    "the guard stops the node",
    "deadman fired",
    "boot refused",
    "the guard hangs in its exit",
    "the guard wakes after its deadline",
    "link lost",
    "own links",
    "abdicating",
    "join refused",
)


class Frame(NamedTuple):
    """The cluster at one moment: `levels` {level: {node: {about: state}}}, everything by name."""

    at_us: int
    events: tuple[str, ...]
    nodes: dict[str, str]
    master: str | None
    term: int
    levels: dict[str, dict[str, dict[str, str]]]
    services: dict[str, dict[str, Any]] = {}  # noqa: RUF012  # never changed


class BrokenRule(NamedTuple):
    """A rule that the run broke, in the words of its checker."""

    at_us: int
    rule: str
    message: str


class Verdict(NamedTuple):
    """The end of a rehearsal. `missing`: why it did not settle, else empty."""

    at_us: int
    missing: str
    violations: tuple[BrokenRule, ...]

    @property
    def settled(self) -> bool:
        """Whether everything had got to its end."""
        return not self.missing


def rehearse(scenario: Scenario, seed: int) -> Iterator[Frame | Verdict]:
    """Run a scenario: a `Frame` for each moment at which anything happened, and a `Verdict` at the end.

    The same scenario and seed always give the same.
    """
    stage = Stage(scenario, seed)
    account = Account(scenario)
    script_ends_us = scenario.steps[-1].at_us if scenario.steps else 0
    quiet_us, patience_us, limit_us = _patience(scenario)
    changed_us, missing = 0, ""
    while not stage.stopped:
        stage.pass_time(SLICE_US)
        for frame in account.follow(stage.history):
            changed_us = frame.at_us
            yield frame
        still_us = stage.loop.now_us - max(changed_us, script_ends_us)
        if still_us < quiet_us and stage.loop.now_us < script_ends_us + limit_us:
            continue
        missing = unrest(stage, account)
        if not missing or still_us > patience_us or stage.loop.now_us >= script_ends_us + limit_us:
            break
    if stage.stopped:
        missing = "the core raised: see the violations"
    history = stage.history
    broken = [BrokenRule(history[found.position].at_us, found.rule, found.message) for found in judge(history)]
    yield Verdict(stage.loop.now_us, missing, tuple(broken))


def _residents(levels: list[Level]) -> tuple[Resident, ...]:
    """The built-in levels; one that the scenario names takes the time that it gives."""
    named = tuple(RehearsedEventManager(level) for level in levels if level.number == EVENT_MANAGER)
    return named or RESIDENTS


def _patience(scenario: Scenario) -> tuple[int, int, int]:
    """(how long nothing may happen before it counts as settled, as stuck; how long it may go on at all), us."""
    nodes = len(scenario.nodes)
    slowest_us = max((level.work_us for level in scenario.levels), default=0)
    all_us = sum(level.work_us * sum(level.barriers) for level in scenario.levels)
    bounds_ms = 2 * (PROFILE.link_loss_ms(nodes) + PROFILE.proof_ms()) + PROFILE.store_stall_ms
    quiet_us = (bounds_ms + 500) * US_PER_MS
    slowest_us += sum(service.longest_us for service in scenario.services)
    waits_us = max((service.definition.maturity_time_ms * US_PER_MS for service in scenario.services), default=0)
    all_us += slowest_us + waits_us
    return quiet_us, PATIENCE_US + 2 * slowest_us + waits_us, MAXIMUM_AFTERMATH_US + 4 * nodes * all_us


class Stage(World):
    """The virtual cluster of one scenario."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._nodes = {name: node for node, name in enumerate(scenario.nodes)}
        self._numbers = {level.name: level.number for level in scenario.levels}
        self._work_us = {level.number: level.work_us for level in scenario.levels}
        self._isolated: set[int] = set()
        self._asked = 0
        self._asked_to_leave: dict[str, Guard | None] = {}  # request -> which boot of the node was meant
        levels = [Level(level.number, level.name, level.barriers) for level in scenario.levels]
        settings = Settings(
            len(scenario.nodes),
            PROFILE,
            tuple(level for level in levels if level.number != EVENT_MANAGER),
            reboots=0.0,
            kernel=True,
            names=scenario.nodes,
            residents=_residents(levels),
            services=tuple(service.definition for service in scenario.services),
            drift=0.0,
        )
        self._services = {service.definition.name: service for service in scenario.services}
        super().__init__(settings, Random(seed))
        for step in scenario.steps:
            self.loop.at(step.at_us, self._do, step)

    def pass_time(self, duration_us: int) -> None:
        """Let virtual time pass. An endless loop of the core ends the run with a finding."""
        before = self.loop.events_run
        self.loop.run_until(self.loop.now_us + duration_us)
        if self.loop.events_run - before > MAXIMUM_EVENTS_PER_SLICE:
            text = f"{self.loop.events_run - before} events in {duration_us} us: a loop that makes no progress"
            self.history.append(Raised(self.loop.now_us, -1, text))
            self.stopped = True

    def work_us(self, level: int) -> int:
        """How long a subsystem takes for one barrier: what the scenario says."""
        return self._work_us[level]

    def decide(self, node: int, command: RunCommand) -> Outcome:
        """What becomes of a service's command: what the scenario says."""
        return decide(self._services, self.settings.names[node], command)

    def machine_stopped(self, machine: Machine) -> None:
        """A node has stopped: it boots again when the script says so, and then with subsystems that work."""
        machine.hung.clear()

    def _do(self, step: ScriptStep) -> None:
        if step.service:
            self._do_to_service(step)
            return
        if not step.node:
            self._do_to_all(step)
            return
        node = self._nodes[step.node]
        remark = self._why_not(step, self.machines[node])
        self.history.append(Disturbed(self.loop.now_us, f"{step}: {remark}" if remark else str(step)))
        if not remark:
            self._carry_out(step, node)

    def _why_not(self, step: ScriptStep, machine: Machine) -> str:
        """Why a step changes nothing, in words; empty where it does something."""
        is_paused = machine.is_paused
        hangs = bool(step.level) and self._numbers[step.level] in machine.hung
        is_isolated, is_blind = machine.node in self._isolated, machine.access.isolated
        reasons = {
            "boot": "it is on already" if machine.is_on else "",
            "pause": "it is paused already" if is_paused else "",
            "resume": "" if is_paused else "it is not paused",
            "isolate": "it is isolated already" if is_isolated else "",
            "blind": "it is blind already" if is_blind else "",
            "heal": "" if is_isolated or is_blind else "there is nothing to heal",
            "hang": "it hangs already" if hangs else "",
            "unhang": "" if hangs else "it does not hang",
        }
        if step.verb in ("leave", "kill", "pause", "resume", "stall") and not machine.is_on:
            return "it is off"
        return reasons.get(step.verb, "")

    def _do_to_all(self, step: ScriptStep) -> None:
        """What happens to the one machine of all nodes, or to their store."""
        self.history.append(Disturbed(self.loop.now_us, str(step)))
        match step.verb:
            case "power-cycle":
                self.perform(schedule.Reboot())
            case "copy-store":
                self.perform(schedule.CopyStore())
            case _:
                self.perform(schedule.ReplaceStore(step.what))

    def _do_to_service(self, step: ScriptStep) -> None:
        """Ask for something on a node that is on, as an operator would; or let the service's process die on one."""
        operations: dict[str, OperationRequest] = {
            "register": RegisterService(step.service),
            "deregister": DeregisterService(step.service),
            "transfer": TransferService(step.service, step.node),
        }
        operation = operations.get(step.verb)
        if operation is None:
            life = self.machines[self._nodes[step.node]].life
            on_all = self._services[step.service].definition.on_all
            name = f"{step.service}{SEPARATOR}{step.node}" if on_all else step.service
            if leaves_something(self._services[step.service].definition):
                runs = life is not None and life.service_dies(name)
            else:
                runs = self._say_failed(step, name)
            self.history.append(Disturbed(self.loop.now_us, f"{step}" + ("" if runs else ": it does not run there")))
            return
        asked = next((machine.node for machine in self.machines if machine.daemon is not None), None)
        remark = ": no node is on" if asked is None else ""
        self.history.append(Disturbed(self.loop.now_us, f"{step}{remark}"))
        if asked is not None:
            self._asked += 1
            self._ask(schedule.Ask(asked, f"{step}, request {self._asked}", operation), 1)

    def _say_failed(self, step: ScriptStep, name: str) -> bool:
        """Somebody says that a service has failed of which nothing runs that could end; False if it is not there."""
        number = self._nodes[step.node]
        daemon = self.machines[number].daemon
        service = daemon.node.database.services.get(name) if daemon is not None and daemon.node is not None else None
        if service is None or (service.node, service.state) != (number, ServiceState.REGISTERED):
            return False
        self._asked += 1
        happened = ServiceFailed(self.loop.now_us, number, service.incarnation, name, service.generation, ended=False)
        self.history.append(happened)
        failed = FailService(name, f"it has failed on {step.node}", service.generation)
        self._ask(schedule.Ask(number, f"{step}, request {self._asked}", failed), 1)
        return True

    def _carry_out(self, step: ScriptStep, node: int) -> None:
        match step.verb:
            case "boot":
                self.machines[node].boot()
            case "leave":
                self._asked += 1
                self._ask(schedule.Ask(node, f"{step}, request {self._asked}", LeaveNode(step.node)), 1)
            case "kill":
                self.machines[node].power_cut()
            case "pause":
                self._pause(schedule.Pause("all", 0, node))
            case "resume":
                self._resume(schedule.Resume("all", node))
            case "isolate":
                self._isolated.add(node)
                self._isolate(schedule.Isolate(0, node, unplugged=True))
            case "blind":
                self._blind(schedule.Blind(0, node))
            case "heal":
                self._heal(node)
            case "hang":
                self.machines[node].hung.add(self._numbers[step.level])
            case "unhang":
                self.machines[node].unhang(self._numbers[step.level])
            case "stall":
                self._stall_one(step.what, node)
            case "wake":
                self._mend_writes(node)
                self.machines[node].let_go()
            case _:
                raise AssertionError(f"{step} is no step of a script")

    def _ask(self, deed: schedule.Ask, times: int) -> None:
        """As always, but who asked a node to leave does not ask its next incarnation."""
        if isinstance(deed.operation, LeaveNode):
            guard = self.machines[deed.node].guard
            if times == 1:
                self._asked_to_leave[deed.identity] = guard
            elif guard is not None and guard is not self._asked_to_leave[deed.identity]:
                return
        super()._ask(deed, times)

    def _stall_one(self, process: str, node: int) -> None:
        """A process waits in the kernel until it is woken."""
        machine = self.machines[node]
        if process == "writer":
            machine.access.spoil(("lease",), hangs=True)
        elif process == "guard" and machine.guard is not None:
            machine.guard.stall()
        elif machine.life is not None:
            machine.life.hold(process)

    def _heal(self, node: int) -> None:
        self._isolated.discard(node)
        self._mend(node)
        for other in self._isolated:  # what lies between two nodes works only when both are healed
            for link in ((node, other), (other, node)):
                self.network.links[link].up = False


def unrest(stage: Stage, account: "Account") -> str:
    """What is not at its end, in words; empty where everything is. A cluster that is off is at its end."""
    running = [machine for machine in stage.machines if _runs(machine)]
    newest = account.newest
    if not running:
        return ""
    if newest is None:
        return "no node has formed the cluster"
    for transition in newest.state.transitions.values():
        return account.held_up(transition)
    if restless := account.services.unrest():
        return restless
    incarnations = {machine.node: machine.life.incarnation for machine in running if machine.life is not None}
    for member in newest.state.members.values():
        if member.state is not NodeState.INACTIVE and incarnations.get(member.node) != member.incarnation:
            return f"{account.names[member.node]} is {member.state} and does not run"
    for machine in running:
        member = newest.state.members.get(machine.node, Member(machine.node))
        if (member.state, member.incarnation) != (NodeState.JOINED, incarnations.get(machine.node)):
            return f"{machine.name} runs and is not joined"
        if member.eviction is not None:
            return f"{machine.name} is to go: {member.eviction.cause}"
        if account.index_at(machine.node) != newest.index:
            return f"{machine.name} has not heard of everything"
    return "" if account.master is not None else "there is no master"


def _runs(machine: Machine) -> bool:
    return machine.is_on or any(not life.ended for life in machine.lives)


class Account:
    """What is known of a run from its history: fold the observations in, take frames out."""

    def __init__(self, scenario: Scenario) -> None:
        self.names = scenario.nodes
        self.master: int | None = None
        self.newest: Applied | None = None  # of all replicas: the state of the cluster
        self.services = ServiceAccount(scenario.services, scenario.nodes)
        self._term = NO_TERM
        self._levels: dict[int, RehearsedLevel] = {level.number: level for level in scenario.levels}
        self._states = [NodeState.INACTIVE for _ in scenario.nodes]
        self._lives: dict[int, int] = {}  # node -> the incarnation that runs
        self._replicas: dict[int, Applied] = {}
        self._recorded: set[tuple[int, int]] = set()  # (level, node) that the cluster has counted with
        # (level, node) -> what that subsystem holds for each node; missing where none is registered
        self._held: dict[tuple[int, int], list[NodeState]] = {}
        # (level, node, about) -> the last notification about that node
        self._told: dict[tuple[int, int, int], Notified] = {}
        self._position = 0
        # (level, node, about) that has changed at this moment: a frame before it changes again, so that none is hidden
        self._fresh: set[tuple[int, int, int]] = set()
        self._events: list[str] = []
        self._shown: Frame | None = None

    def index_at(self, node: int) -> int:
        """The commit index that this node's replica shows."""
        return self._replicas[node].index if node in self._replicas else -1

    def follow(self, history: list[Observation]) -> Iterator[Frame]:
        """Fold in what is new; a frame for each moment at which anything happened.

        More than one, where a subsystem's state changes more than once, as that of one whose work takes no time.
        """
        while self._position < len(history):
            at_us = history[self._position].at_us
            while self._position < len(history) and history[self._position].at_us == at_us:
                seen = history[self._position]
                if not self._fresh.isdisjoint(self._touched_by(seen)):
                    yield from self._changed_frame(at_us)
                self._see(seen)
                self._position += 1
            yield from self._changed_frame(at_us)

    def _changed_frame(self, at_us: int) -> Iterator[Frame]:
        """The frame of this moment, unless it is like the last."""
        self._fresh.clear()
        frame = self._frame(at_us)
        if self._shown is None or frame.events or frame[2:] != self._shown[2:]:
            self._shown = frame
            yield frame

    def _frame(self, at_us: int) -> Frame:
        events, self._events = tuple(dict.fromkeys(self._events)), []
        levels: dict[str, dict[str, dict[str, str]]] = {}
        for level in self._levels.values():
            levels[level.name] = {}
            for node, name in enumerate(self.names):
                held = self._held.get((level.number, node))
                states = [NOT_REGISTERED] * len(self.names) if held is None else [str(state) for state in held]
                levels[level.name][name] = dict(zip(self.names, states, strict=True))
        nodes = {name: str(state) for name, state in zip(self.names, self._states, strict=True)}
        master = self.names[self.master] if self.master is not None else None
        return Frame(at_us, events, nodes, master, self._term.number, levels, self.services.documents())

    def held_up(self, transition: Transition) -> str:
        """What a transition waits for, in words."""
        name = self.names[transition.node]
        if transition.awaits:
            return f"{name} is {transition.kind} and waits for its level {transition.awaits} to register"
        level = self._levels.get(transition.level)
        where = level.name if level is not None else str(transition.level)
        waiting = []
        for node in transition.participants:
            told = self._told.get((transition.level, node, transition.node))
            if told is None or told.transition != transition.identity or self._is_at_work(told):
                waiting.append(self.names[node])
        who = ", ".join(waiting)
        if not waiting and transition.kind is TransitionKind.LEAVING and transition.level == EVENT_MANAGER:
            who = self.services.held_up(transition.node)
        return f"{name} is {transition.kind}: level {where} waits for {who or 'nobody'}"

    def _is_at_work(self, told: Notified) -> bool:
        held = self._held.get((told.level, told.node))
        return held is not None and held[told.about] == NodeState(told.kind.value)

    # ---- what is seen --------------------------------------------------------------------------------------------

    def _see(self, seen: Observation) -> None:
        self._follow(seen)
        self._events += self.services.see(seen, set(self._lives))

    def _follow(self, seen: Observation) -> None:
        match seen:
            case Disturbed(what=what):
                self._events.append(what)
            case LifeBegan(node=node, incarnation=incarnation):
                self._lives[node] = incarnation
                self._events.append(f"{self.names[node]} runs")
            case LifeEnded(node=node):
                self._ended(seen)
            case DaemonStarted(node=node):
                self._started(node)
            case Elected(node=node, term=term):
                self._elected(node, term)
            case ClaimWritten(node=node, claim=claim):
                if node == self.master and claim.flag is ClaimFlag.WITHDRAWN:
                    self.master = None
                    self._events.append(f"{self.names[node]} is no longer master")
            case Applied():
                self._applied(seen)
            case Notified():
                self._notified(seen)
            case LevelAcknowledged():
                self._acknowledged(seen)
            case Replied(refused=True, identity=identity, outcome=outcome):
                self._events.append(f"{identity.partition(',')[0]} refused: {outcome}")
            case Logged(node=node, what=what) if what.startswith(TOLD_EVENTS):
                self._events.append(f"{self.names[node]}: {what}")
            case Raised(node=node, error=error):
                where = self.names[node] if node >= 0 else "the simulator"
                self._events.append(f"{where}: a broken invariant: {error.strip().splitlines()[-1]}")
            case _:
                pass

    def _ended(self, seen: LifeEnded) -> None:
        node = seen.node
        if self._lives.get(node) != seen.incarnation:
            return  # an earlier incarnation: its successor waited for nothing less
        del self._lives[node]
        self._replicas.pop(node, None)
        for level in self._levels:
            self._deregister(level, node)
        self._events.append(f"{self.names[node]} has stopped: {seen.cause}")
        if self.master == node:
            self.master = None

    def _started(self, node: int) -> None:
        """The subsystems below the event manager register before the node joins (SPEC 3.10)."""
        for level in self._levels:
            if level != EVENT_MANAGER and (level, node) not in self._held:
                self._register(level, node)

    def _register(self, level: int, node: int) -> None:
        self._held[level, node] = [NodeState.INACTIVE for _ in self.names]
        self._events.append(f"{self._levels[level].name} on {self.names[node]} registers")

    def _deregister(self, level: int, node: int) -> None:
        self._held.pop((level, node), None)
        self._recorded.discard((level, node))
        for about in range(len(self.names)):
            self._told.pop((level, node, about), None)

    def _elected(self, node: int, term: Term) -> None:
        self.master, self._term = node, max(term, self._term)
        self._events.append(f"{self.names[node]} is master, term {term.number}")

    def _applied(self, seen: Applied) -> None:
        if self._lives.get(seen.node) == seen.incarnation:
            self._replicas[seen.node] = seen
            self._follow_registrations(seen)
        if self.newest is not None and seen.index <= self.newest.index:
            return
        before = self.newest.state.members if self.newest is not None else {}
        self.newest = seen
        self._events += self.services.applied(seen)
        for member in seen.state.members.values():
            self._follow_member(before.get(member.node, Member(member.node)), member)

    def _follow_registrations(self, seen: Applied) -> None:
        """A level is registered with the cluster once that is in the node's record, and until it is struck from it."""
        own = seen.state.members.get(seen.node, Member(seen.node))
        if own.incarnation != seen.incarnation:
            return
        recorded = {level.number for level in own.levels}
        for level in self._levels:
            if level in recorded:
                self._recorded.add((level, seen.node))
                if (level, seen.node) not in self._held:
                    self._register(level, seen.node)
            elif (level, seen.node) in self._recorded:
                self._deregister(level, seen.node)
                self._events.append(f"{self._levels[level].name} on {self.names[seen.node]} is deregistered")

    def _follow_member(self, before: Member, after: Member) -> None:
        name = self.names[after.node]
        if after.eviction is not None and before.eviction is None:
            self._events.append(f"{name} is to be forced out: {after.eviction.cause}")
        if after.state is not self._states[after.node]:
            proof = after.last_proof if after.state is NodeState.FORCED_LEAVING else None
            why = f", on proof: {proof.kind.words}, {proof.detail}" if proof is not None else ""
            self._events.append(f"{name} is {after.state}{why}")
            self._states[after.node] = after.state

    def _notified(self, seen: Notified) -> None:
        held = self._held.get((seen.level, seen.node))
        if held is None or self._lives.get(seen.node) != seen.incarnation:
            return
        for about in range(len(self.names)):
            if about != seen.about and (seen.level, seen.node, about) not in self._told:
                held[about] = self._in_company(seen, about)
        held[seen.about] = NodeState(seen.kind.value)
        self._fresh.add((seen.level, seen.node, seen.about))
        self._told[seen.level, seen.node, seen.about] = seen
        level = self._levels[seen.level]
        barriers = _barriers(level, seen.kind)
        which = f", barrier {seen.barrier + 1} of {barriers}" if barriers > 1 else ""
        self._events.append(f"{level.name} on {self.names[seen.node]} is told: {self._about(seen)}{which}")

    def _in_company(self, seen: Notified, about: int) -> NodeState:
        """What the state vector of a notification says to a subsystem that was never told of `about` (SPEC 3.5, 3.6).

        In company there is only `joined` and `inactive`. Where that node has a transition, it is what the transition
        makes of it once that has passed the level, or is at work there without this subsystem; before that, what it
        was.
        """
        state = seen.vector.get(about, NodeState.INACTIVE)
        if state in (NodeState.JOINED, NodeState.INACTIVE):
            return state
        transitions = self._replicas[seen.node].state.transitions.values() if seen.node in self._replicas else ()
        for transition in transitions:
            if transition.node == about and seen.level in transition.levels:
                place = transition.levels.index(seen.level)
                takes_part = seen.node in transition.participants
                if place < transition.position or (place == transition.position and not takes_part):
                    return SETTLED_STATE[transition.kind]
                return NodeState.INACTIVE if transition.kind is TransitionKind.JOINING else NodeState.JOINED
        return NodeState.INACTIVE

    def _acknowledged(self, seen: LevelAcknowledged) -> None:
        """A subsystem holds the new state once it has itself acknowledged the last barrier (SPEC 3.1)."""
        held = self._held.get((seen.level, seen.node))
        if held is None or self._lives.get(seen.node) != seen.incarnation:
            return
        for about in range(len(self.names)):
            told = self._told.get((seen.level, seen.node, about))
            if told is not None and (told.transition, told.barrier) == (seen.transition, seen.barrier):
                level = self._levels[seen.level]
                barriers = _barriers(level, told.kind)
                which = f", barrier {seen.barrier + 1} of {barriers}" if barriers > 1 else ""
                if seen.barrier + 1 == barriers:
                    held[about] = SETTLED_STATE[told.kind]
                    self._fresh.add((seen.level, seen.node, about))
                self._events.append(f"{level.name} on {self.names[seen.node]} acknowledges: {self._about(told)}{which}")

    def _touched_by(self, seen: Observation) -> list[tuple[int, int, int]]:
        """(level, node, about) whose state this observation changes, as one that is told or acknowledges."""
        if isinstance(seen, Notified):
            return [(seen.level, seen.node, seen.about)]
        if isinstance(seen, LevelAcknowledged):
            keys = [(seen.level, seen.node, about) for about in range(len(self.names))]
            return [key for key in keys if key in self._told and self._told[key].transition == seen.transition]
        return []

    def _about(self, told: Notified) -> str:
        return f"{self.names[told.about]} {told.kind}"


def _barriers(level: RehearsedLevel, kind: TransitionKind) -> int:
    return {
        TransitionKind.JOINING: level.barriers.joining,
        TransitionKind.LEAVING: level.barriers.leaving,
        TransitionKind.FORCED_LEAVING: level.barriers.forced_leaving,
    }[kind]
