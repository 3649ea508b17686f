"""The judges of a recorded history. They know the specification and the history, and nothing of the system inside.

Each checker is one rule with its number. It sees the observations one by one, in their order, and names what breaks
the rule. The same checkers judge histories of the virtual world and of real hosts.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from muster.records.database import Entry
from muster.records.levels import Level, NodeState, TransitionKind
from muster.records.members import LeaveNode, Member
from muster.records.operations import OperationRequest
from muster.records.registers import Claim
from muster.records.services import DeregisterService, Service, ServiceState, SetStandby, TransferService
from muster.records.tables import check_rows
from muster.records.terms import NO_NODE, NO_TERM, Term
from muster.records.transitions import Transition
from muster.sim.checkers.decider_checker import DecidedByHolder
from muster.sim.checkers.event_checkers import (
    ActedOnOnce,
    FailurePolicy,
    WatchedWhereRegistered,
    Watches,
    watches_missing,
)
from muster.sim.checkers.expiry_checker import NothingAfterExpiry
from muster.sim.checkers.fence_checkers import FencedByRequest, ProvenByStatus
from muster.sim.checkers.loss_checker import NothingLost
from muster.sim.checkers.rule import Checker
from muster.sim.checkers.service_checkers import (
    CleanBeforeElsewhere,
    GroupOrder,
    NoFlapping,
    NotifyElsewhere,
    OneAnswer,
    OwnTokens,
    RecoveryBeforeRestart,
    expected_state,
    notify_missing,
)
from muster.sim.history import (
    Applied,
    Asked,
    ClaimWritten,
    CommandEnded,
    CommandTaken,
    DaemonStarted,
    Disturbed,
    Elected,
    GaveUp,
    History,
    Judged,
    LevelAcknowledged,
    LifeBegan,
    LifeEnded,
    Logged,
    MarksWritten,
    Notified,
    Observation,
    ProgramCame,
    ProgramWent,
    Raised,
    Renewed,
    ReplicaState,
    ServiceBegan,
    ServiceEnded,
    Suspected,
    Told,
)

WAITED_FOR = (NodeState.JOINING, NodeState.JOINED, NodeState.LEAVING)
BUILT_IN_LEVEL = 40  # the event manager acknowledges inside its node: nothing of it is seen from outside
MAXIMUM_VIOLATIONS = 5
FOR_THE_READER = (Logged, Disturbed)  # most of what is observed, and no checker looks at it


class Violation(NamedTuple):
    """A broken rule: which, at which observation of the history, and how."""

    rule: str
    position: int
    message: str


Findings = Iterator[str]


class OneHistory(Checker):
    """SPEC 2.6: all replicas show the same state at the same index, and masters tell one and the same chain."""

    def __init__(self) -> None:
        self._states: dict[int, tuple[Term, ReplicaState]] = {}
        self._entries: dict[int, Entry] = {}

    def see(self, seen: Observation) -> Findings:
        """Compare each state and each entry with what was shown at its index before (SPEC 2.6)."""
        if isinstance(seen, Applied):
            before = self._states.setdefault(seen.index, (seen.term, seen.state))
            if before != (seen.term, seen.state):
                yield f"n{seen.node} shows another state at index {seen.index} than a replica before it"
        elif isinstance(seen, Told):
            yield from self._told(seen)

    def _told(self, seen: Told) -> Findings:
        index = seen.entry.index
        before = self._entries.setdefault(index, seen.entry)
        if before != seen.entry:
            yield f"n{seen.node} tells of another entry {index} (term {seen.entry.term}) than before ({before.term})"
        for earlier, later in ((index - 1, index), (index, index + 1)):
            first, second = self._entries.get(earlier), self._entries.get(later)
            if first is not None and second is not None and first.term > second.term:
                yield f"entries {earlier} and {later} have terms {first.term} and {second.term}: not in order"


class ObjectionsHold(Checker):
    """SPEC 3.4, 6.8: nothing is done to which a member objects, and only operators' plans are asked about (P4.5).

    An objector that has left, or that is condemned, counts for nothing any more; nor does one that was asked by an
    earlier master, and answers when the next one has carried it out. The next one asks anew: the last answer counts.
    Members are asked: a life that has not begun to join objects to nothing, though it may join before the end.
    """

    PLANNED = (LeaveNode, TransferService, SetStandby, DeregisterService)

    def __init__(self) -> None:
        self._asked: dict[str, OperationRequest] = {}
        self._objectors: dict[str, set[tuple[int, int, int]]] = {}  # identity -> node, incarnation, level
        self._done: Collection[str] = ()  # operations that have been carried out, by the newest state
        self._members: Mapping[int, Member] = {}  # by the same
        self._index = -1

    def see(self, seen: Observation) -> Findings:
        """Keep who objects to what; find operations that are carried out all the same (SPEC 6.8, P4.5)."""
        if isinstance(seen, Asked):
            self._asked[seen.identity] = seen.operation
        elif isinstance(seen, Judged):
            asked = self._asked.get(seen.identity)
            if not isinstance(asked, self.PLANNED) or asked.override:
                yield f"n{seen.node} is asked whether it objects to {asked or seen.identity}"
            if seen.identity not in self._done:
                objector = {(seen.node, seen.incarnation, seen.level)}
                others = self._objectors.get(seen.identity, set()) - objector
                counts = seen.objects and self._is_member(seen.node, seen.incarnation)
                self._objectors[seen.identity] = others | objector if counts else others
        elif isinstance(seen, Applied) and seen.index > self._index:
            self._index = seen.index
            yield from self._carried_out(seen.state)

    def _carried_out(self, state: ReplicaState) -> Findings:
        self._done, self._members = state.operations.keys(), state.members
        for identity in [each for each in self._objectors if each in state.operations]:
            for node, incarnation, _ in sorted(self._objectors.pop(identity)):
                if self._is_member(node, incarnation):
                    yield f"{identity} is carried out, and n{node} has objected to it: {self._asked.get(identity)}"

    def _is_member(self, node: int, incarnation: int) -> bool:
        member = self._members.get(node)
        still = member is not None and member.incarnation == incarnation and member.eviction is None
        return still and member is not None and member.state in WAITED_FOR


class NothingGoesBack(Checker):
    """SPEC 2.5, 2.6: terms and indexes only grow at each node; each term has one master."""

    def __init__(self) -> None:
        self._applied: dict[int, tuple[int, Term]] = {}
        self._claims: dict[int, Claim] = {}
        self._elected: set[Term] = set()

    def see(self, seen: Observation) -> Findings:
        """Compare each node's index, term, claim and mark with its last ones; each term has one master (SPEC 2.5)."""
        if isinstance(seen, Applied | DaemonStarted):
            index, term = self._applied.get(seen.node, (0, NO_TERM))
            if seen.index < index or seen.term < term:
                yield f"n{seen.node} goes back from {index} of {term} to {seen.index} of {seen.term}"
            if isinstance(seen, Applied):
                self._applied[seen.node] = (seen.index, seen.term)
        elif isinstance(seen, ClaimWritten):
            yield from self._claim(seen)
        elif isinstance(seen, Elected):
            if seen.term in self._elected or seen.term.node != seen.node:
                yield f"n{seen.node} is master of term {seen.term}, which is not its own or was used before"
            self._elected.add(seen.term)

    def _claim(self, seen: ClaimWritten) -> Findings:
        before = self._claims.get(seen.node)
        self._claims[seen.node] = seen.claim
        if before is None:
            return
        if seen.claim.stamp.term < before.stamp.term:
            yield f"the claim of n{seen.node} goes back from {before.stamp.term} to {seen.claim.stamp.term}"
        if seen.claim.mark.term < before.mark.term:
            yield f"the mark of n{seen.node} goes back from {before.mark.term} to {seen.claim.mark.term}"


class ProofFirst(Checker):
    """SPEC 3.9, 7.1: nothing is done about the loss of an incarnation before nothing of it runs any more."""

    def __init__(self) -> None:
        self._ended: set[tuple[int, int]] = set()
        self._believed: set[tuple[int, int]] = set()
        self._went: set[tuple[int, int, int]] = set()  # node, incarnation, level of programs that went
        self._alone: set[int] = set()  # transitions of one level

    def see(self, seen: Observation) -> Findings:
        """Keep which incarnations have stopped; find what counts one as stopped that has not (SPEC 7.1)."""
        if isinstance(seen, LifeEnded):
            self._ended.add((seen.node, seen.incarnation))
        elif isinstance(seen, Notified):
            lost = (seen.about, seen.about_incarnation)
            program = seen.transition in self._alone and (*lost, seen.level) in self._went  # SPEC 3.2
            if seen.kind is TransitionKind.FORCED_LEAVING and lost not in self._ended and not program:
                yield f"level {seen.level} on n{seen.node} is told to recover n{seen.about}, which has not stopped"
        elif isinstance(seen, ProgramWent):
            self._went.add((seen.node, seen.incarnation, seen.level.number))
        elif isinstance(seen, Applied):
            self._alone |= {each.identity for each in seen.state.transitions.values() if each.late}
            for member in seen.state.members.values():
                proof = member.last_proof
                if proof is not None and (proof.node, proof.incarnation) not in self._believed:
                    self._believed.add((proof.node, proof.incarnation))
                    if (proof.node, proof.incarnation) not in self._ended:
                        yield f"n{proof.node} counts as stopped ({proof.kind}, {proof.detail}), but has not stopped"


class OneNodeAtATime(Checker):
    """SPEC 6.2, 7: a service that registers on one node never runs twice, and never outlives its incarnation."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[int, int]] = {}
        self._ended: set[tuple[int, int]] = set()

    def see(self, seen: Observation) -> Findings:
        """Keep where each service runs; find a start beside another run, or after the end of its node (SPEC 6.2)."""
        if isinstance(seen, LifeEnded):
            self._ended.add((seen.node, seen.incarnation))
        elif isinstance(seen, ServiceBegan):
            other = self._running.get(seen.service)
            if other is not None:
                yield f"{seen.service} starts on n{seen.node} while it runs on n{other[0]}"
            if (seen.node, seen.incarnation) in self._ended:
                yield f"{seen.service} starts on n{seen.node} after that has stopped"
            self._running[seen.service] = (seen.node, seen.incarnation)
        elif isinstance(seen, ServiceEnded) and self._running.get(seen.service) == (seen.node, seen.incarnation):
            del self._running[seen.service]


def _is_silent(member: Member) -> bool:
    return member.state in WAITED_FOR and member.eviction is not None and member.eviction.silent


class OnlyTheSilent(Checker):
    """SPEC 2.3, 2.6: who is condemned as silent has let its lease run out, or was neither seen nor heard for the time
    that its profile names (P4.13); who leads has not, for long.
    """

    def __init__(self) -> None:
        self._ends_us: dict[tuple[int, int], int] = {}
        self._began_us: dict[tuple[int, int], int] = {}  # its last renewal
        self._suspected: set[tuple[int, int]] = set()  # rightly so, though a lease of it may run still
        self._lives: dict[int, int] = {}
        self._known: set[tuple[int, int]] = set()

    def see(self, seen: Observation) -> Findings:
        """Keep when each lease runs out; find whom that has not befallen, and who leads long after it (SPEC 2.6)."""
        if isinstance(seen, Renewed):
            self._ends_us[seen.node, seen.incarnation] = seen.ends_us
            self._began_us[seen.node, seen.incarnation] = seen.began_us
            self._lives[seen.node] = seen.incarnation
        elif isinstance(seen, Elected | Told):
            ended_us = self._ends_us.get((seen.node, self._lives.get(seen.node, 0)), seen.at_us)
            if seen.at_us - ended_us > LATE_US:
                yield f"n{seen.node} leads {(seen.at_us - ended_us) // 1000} ms after its own lease ran out"
        elif isinstance(seen, Suspected):
            yield from self._judge(seen)
        elif isinstance(seen, Applied):
            for member in seen.state.members.values():
                life = (member.node, member.incarnation)
                if _is_silent(member) and life not in self._known:
                    self._known.add(life)
                    if seen.at_us < self._ends_us.get(life, 0) and life not in self._suspected:
                        yield f"n{member.node} counts as silent while its lease has not run out"

    def _judge(self, seen: Suspected) -> Findings:
        """P4.13: it has renewed nothing, and nothing of it has come to the master, for all but the drift of X."""
        life = (seen.about, seen.about_incarnation)
        if seen.at_us >= self._ends_us.get(life, 0):
            return
        self._suspected.add(life)
        least_us = seen.bound_us * 98 // 100
        for what, since_us in (("seen", self._began_us.get(life, 0)), ("heard", seen.heard_us)):
            if seen.at_us - since_us < least_us:
                yield f"n{seen.node} suspects n{seen.about}, {what} {(seen.at_us - since_us) // 1000} ms ago"


LATE_US = 4_000_000  # far beyond any read, pause or hold-up of a daemon that has not noticed yet


def _stays(old: Transition, new: Transition | None) -> bool:
    """Whether a transition is where it was, perhaps with fewer participants."""
    if new is None or not set(new.participants) <= set(old.participants):
        return False
    return replace(new, participants=old.participants) == old


class NobodyWaits(Checker):
    """SPEC 2.6: no transition of another node waits for a silent one; its own stays where it is, and only participants
    that are gone are struck from it.
    """

    def __init__(self) -> None:
        self._index = -1
        self._state: ReplicaState | None = None

    def see(self, seen: Observation) -> Findings:
        """Judge the transitions of each new state by who is silent in it (SPEC 2.6)."""
        if not isinstance(seen, Applied) or seen.index <= self._index:
            return
        silent = {member.node for member in seen.state.members.values() if _is_silent(member)}
        for transition in seen.state.transitions.values() if silent else ():
            waiting = silent & set(transition.participants)
            if transition.node not in silent and waiting:
                yield f"{_name(transition)} waits for the silent n{min(waiting)}"
        before = self._state
        if before is not None and seen.index == self._index + 1:
            frozen = {node for node in silent if _is_silent(before.members.get(node, Member(node)))}
            for old in before.transitions.values() if frozen else ():
                if old.node in frozen and not _stays(old, seen.state.transitions.get(old.identity)):
                    yield f"{_name(old)} goes on although the node is silent"
        self._index, self._state = seen.index, seen.state


class FrozenUntilProof(Checker):
    """SPEC 2.6, 7.1: what a silent node held stays as it is, where it is, until its death is proven."""

    def __init__(self) -> None:
        self._index = -1
        self._state: ReplicaState | None = None

    def see(self, seen: Observation) -> Findings:
        """Compare what silent nodes hold in each new state with the state before (SPEC 2.6, 7.1)."""
        if not isinstance(seen, Applied) or seen.index <= self._index:
            return
        before, self._state = self._state, seen.state
        follows, self._index = seen.index == self._index + 1, seen.index
        if before is None or not follows:
            return
        for member in before.members.values():
            if not _is_silent(member):
                continue
            for service in before.services.values():
                if (service.node, service.incarnation) == (member.node, member.incarnation):
                    yield from self._held(service, member, seen.state)

    def _held(self, before: Service, member: Member, state: ReplicaState) -> Findings:
        now = state.members.get(member.node, Member(member.node))
        after = state.services.get(before.name)
        if now.incarnation != member.incarnation or now.state not in WAITED_FOR:
            return  # its death is proven
        kept = after is not None and (after.state, after.node) == (before.state, before.node)
        if not kept:
            what = f"{after.state} on n{after.node}" if after is not None else "forgotten"
            yield f"{before.name}, {before.state} on the silent n{member.node}, is {what} before its death is proven"


class MarkAfterCommit(Checker):
    """SPEC 7.2: nobody is marked to be forced out before that decision is committed."""

    def __init__(self) -> None:
        self._decided: set[tuple[int, int]] = set()

    def see(self, seen: Observation) -> Findings:
        """Keep the decisions that replicas have shown; find a mark without one (SPEC 7.2)."""
        if isinstance(seen, Applied):
            self._decided |= {
                (member.node, member.eviction.incarnation)
                for member in seen.state.members.values()
                if member.eviction is not None
            }
        elif isinstance(seen, MarksWritten):
            for node, incarnation in seen.condemned:
                if (node, incarnation) not in self._decided:
                    yield f"n{seen.node} marks incarnation {incarnation} of n{node} without a committed decision"


class NewerCommandsOnly(Checker):
    """SPEC 7.7: a node runs no command whose generation is not newer than all it has seen of that service.

    The epoch never falls from one command of a service to the next.
    """

    def __init__(self) -> None:
        self._highest: dict[tuple[int, int, str], int] = {}
        self._last: dict[str, tuple[int, int]] = {}  # service -> (generation, epoch)

    def see(self, seen: Observation) -> Findings:
        """Compare each command that is taken with the last ones of its service (SPEC 7.7)."""
        if isinstance(seen, CommandTaken):
            key = (seen.node, seen.incarnation, seen.service)
            highest = self._highest.get(key, 0)
            if seen.generation <= highest:
                yield f"n{seen.node} runs {seen.action} {seen.generation} of {seen.service} after {highest}"
            self._highest[key] = max(seen.generation, highest)
            generation, epoch = self._last.get(seen.service, (0, 0))
            if seen.generation > generation and seen.epoch < epoch:
                yield f"{seen.action} {seen.generation} of {seen.service} has epoch {seen.epoch}, after {epoch}"
            self._last[seen.service] = max((generation, epoch), (seen.generation, seen.epoch))


class ServiceRules(Checker):
    """SPEC 6.2, 6.7, 6.9: the states of a service follow each other as they may, on nodes that may have it."""

    def __init__(self) -> None:
        self._index = -1
        self._services: dict[str, Service] = {}
        self._condemned: set[tuple[int, int]] = set()

    def see(self, seen: Observation) -> Findings:
        """Compare the services of each new state with the state before, and with its nodes (SPEC 6.2, 6.7)."""
        if not isinstance(seen, Applied) or seen.index <= self._index:
            return
        for service in seen.state.services.values():
            before = self._services.get(service.name)
            if before is not None and before.uid == service.uid and seen.index == self._index + 1:
                yield from _followed(before, service)
            if service.generation == seen.index and service.state in COMMANDED and service.node != NO_NODE:
                yield from _commanded(service, seen.state)
                starts = service.state is not ServiceState.STOPPING
                if starts and (service.node, service.incarnation) in self._condemned:
                    yield f"{service.name} is {service.state} on n{service.node}, which is condemned: up for nothing"
        self._index, self._services = seen.index, seen.state.services
        self._condemned = {
            (member.node, member.eviction.incarnation)
            for member in seen.state.members.values()
            if member.eviction is not None
        }


COMMANDED = (ServiceState.STARTING, ServiceState.STOPPING, ServiceState.RECOVERING)
MAY_FOLLOW = {
    ServiceState.DEREGISTERED: (ServiceState.STARTING, ServiceState.REGISTERED),
    ServiceState.STARTING: (ServiceState.REGISTERED, ServiceState.DEREGISTERED, ServiceState.STOPPING),
    ServiceState.REGISTERED: (ServiceState.STOPPING, ServiceState.DEREGISTERED, ServiceState.RECOVERING),
    ServiceState.STOPPING: (ServiceState.DEREGISTERED, ServiceState.RECOVERING),
    ServiceState.RECOVERING: (ServiceState.DEREGISTERED,),
}


def _followed(before: Service, after: Service) -> Findings:
    if after.definition.on_all:
        return  # a template: it shows what its instances are
    if after.state is not before.state and after.state not in MAY_FOLLOW[before.state]:
        yield f"{after.name} goes from {before.state} to {after.state}"
    if after.generation < before.generation:
        yield f"{after.name} goes back from generation {before.generation} to {after.generation}"
    moved = (after.node, after.incarnation) != (before.node, before.incarnation) and after.node != NO_NODE
    if moved and after.generation <= before.generation:
        yield f"{after.name} moves to n{after.node} without a new generation"
    held = before.node != NO_NODE and before.state in (ServiceState.STARTING, ServiceState.REGISTERED)
    if moved and held and after.state is not ServiceState.RECOVERING:
        yield f"{after.name} moves from n{before.node} to n{after.node} in one step"


def _commanded(service: Service, state: ReplicaState) -> Findings:
    """A start or recovery goes to an allowable node that is up; a stop to where the service is."""
    member = state.members.get(service.node, Member(service.node))
    if member.incarnation != service.incarnation or member.state not in WAITED_FOR:
        yield f"{service.name} is {service.state} on n{service.node}, which is {member.state}"
    if service.state is ServiceState.STOPPING:
        return
    name, definition = state.names.get(service.node, ""), service.definition
    template = state.services.get(service.template)
    if service.state is ServiceState.RECOVERING and template is not None:
        definition = template.definition  # an instance's recovery runs where the whole service may (SPEC 6.6)
    allowed = "*" in definition.allowable_nodes or name in definition.allowable_nodes
    if not allowed or name in definition.disallowable_nodes:
        yield f"{service.name} is {service.state} on {name}, which its definition does not allow"
    if member.state is not NodeState.JOINED:
        yield f"{service.name} is {service.state} on {name}, which is {member.state}: not up"


class LevelsInOrder(Checker):
    """SPEC 3.4, 3.5: one barrier and one level after the other, each acknowledged by every node concerned."""

    def __init__(self) -> None:
        self._acknowledged: set[tuple[int, int, int, int, int]] = set()  # node, incarnation, transition, level, barrier
        self._index = -1
        self._state: ReplicaState | None = None
        # (transition, level) -> node -> (incarnation, registration)
        self._concerned: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}
        self._went: set[tuple[int, int, int, int]] = set()  # node, incarnation, level, registration: nobody answers
        self._steps: set[tuple[int, int, int]] = set()  # committed (transition, level, barrier)
        self._told: set[tuple[int, int, int]] = set()  # node, transition, level
        self._last: dict[tuple[int, int, int, int], TransitionKind] = {}  # node, incarnation, level, about -> last told

    def see(self, seen: Observation) -> Findings:
        """Keep who has acknowledged which step; judge each step that is committed or told by that (SPEC 3.4)."""
        if isinstance(seen, LevelAcknowledged):
            self._acknowledged.add((seen.node, seen.incarnation, seen.transition, seen.level, seen.barrier))
        elif isinstance(seen, ProgramWent):
            self._went.add((seen.node, seen.incarnation, *seen.level.identity))
        elif isinstance(seen, Applied) and seen.index > self._index:
            if seen.index == self._index + 1 and self._state is not None:
                yield from self._advanced(self._state, seen.state)
            self._index, self._state = seen.index, seen.state
            for transition in seen.state.transitions.values():
                self._note(transition, seen.state)
        elif isinstance(seen, Notified):
            yield from self._notified(seen)

    def _note(self, transition: Transition, state: ReplicaState) -> None:
        """Who must acknowledge this level: every node that is not inactive or forced out and has it, as it begins."""
        self._steps.add((transition.identity, transition.level, transition.barrier))
        step = (transition.identity, transition.level)
        if step not in self._concerned:
            self._concerned[step] = {
                member.node: (member.incarnation, level.registration)
                for member in state.members.values()
                for level in member.levels
                if _is_waited_for(member) and level.number == transition.level
            }

    def _advanced(self, before: ReplicaState, after: ReplicaState) -> Findings:
        for identity, old in before.transitions.items():
            new = after.transitions.get(identity)
            if new is None:
                yield from self._closed(old, before, after)
            elif (new.position, new.barrier) != (old.position, old.barrier):
                yield from self._moved(old, new, before, after)
        for identity, new in after.transitions.items():
            if identity not in before.transitions:
                yield from _opened(new, before, after)

    def _closed(self, old: Transition, before: ReplicaState, after: ReplicaState) -> Findings:
        forced = [t for t in after.transitions.values() if t.node == old.node and t.incarnation == old.incarnation]
        member = after.members.get(old.node, Member(old.node))
        # A forced leave replaces what it aborts, and may itself have no level to take.
        proof = member.last_proof
        whole = any(t.kind is TransitionKind.FORCED_LEAVING for t in forced if not t.late)
        aborted = old.kind is not TransitionKind.FORCED_LEAVING and (
            whole or (proof is not None and proof.incarnation == old.incarnation) or self._lost_its_program(old, before)
        )
        if not aborted and not old.awaits:
            yield from self._complete(old, before, after, "is over")

    def _lost_its_program(self, old: Transition, before: ReplicaState) -> bool:
        """SPEC 3.2, 3.6: the program of the node itself has gone at the level at work: that is aborted there."""
        member = before.members.get(old.node, Member(old.node))
        every = (*member.levels, *(each.level for each in member.gone))
        identity = next((each.identity for each in every if each.number == old.level), None)
        leaves_alone = old.late and old.kind is not TransitionKind.JOINING
        went = identity is not None and (old.node, old.incarnation, *identity) in self._went
        return went and not leaves_alone

    def _moved(self, old: Transition, new: Transition, before: ReplicaState, after: ReplicaState) -> Findings:
        name = _name(old)
        taken = old.levels[: old.position + 1]
        if new.levels[: old.position + 1] != taken:
            yield f"{name} changes its levels from {old.levels} to {new.levels}"
        if new.position == old.position and new.barrier == old.barrier + 1:
            yield from self._waited(old, after, f"goes on to barrier {new.barrier}")
        elif new.position > old.position and new.barrier == 0:
            yield from self._complete(old, before, after, f"goes on to level {new.level}")
        else:
            yield f"{name} jumps from {(old.level, old.barrier)} to {(new.level, new.barrier)}"

    def _complete(self, old: Transition, before: ReplicaState, after: ReplicaState, doing: str) -> Findings:
        """The level must have had all its barriers, the last one acknowledged."""
        barriers = _barriers(old, before)
        if barriers is not None and old.barrier + 1 != barriers:
            yield f"{_name(old)} {doing} after barrier {old.barrier} of {barriers} at level {old.level}"
        yield from self._waited(old, after, doing)

    def _waited(self, old: Transition, after: ReplicaState, doing: str) -> Findings:
        if old.level == BUILT_IN_LEVEL:
            return
        for node, (incarnation, registration) in self._concerned.get((old.identity, old.level), {}).items():
            member = after.members.get(node, Member(node))
            went = (node, incarnation, old.level, registration) in self._went
            waited_for = member.state in WAITED_FOR and not _is_silent(member)
            still = member.incarnation == incarnation and waited_for and not went
            step = (node, incarnation, old.identity, old.level, old.barrier)
            if self._never_heard(old, node, incarnation):
                continue  # it may never have heard of the join that this aborts: then it is told nothing (P3.14)
            if still and step not in self._acknowledged:
                yield f"{_name(old)} {doing} before n{node} acknowledged level {old.level} barrier {old.barrier}"

    def _never_heard(self, old: Transition, node: int, incarnation: int) -> bool:
        """Whether this is an end that a subsystem is not told of, since it holds that node as inactive (SPEC 3.6)."""
        if old.kind is not TransitionKind.FORCED_LEAVING or (node, old.identity, old.level) in self._told:
            return False
        last = self._last.get((node, incarnation, old.level, old.node))
        return old.late or last is TransitionKind.FORCED_LEAVING

    def _notified(self, seen: Notified) -> Findings:
        self._told.add((seen.node, seen.transition, seen.level))
        self._last[seen.node, seen.incarnation, seen.level, seen.about] = seen.kind
        step = (seen.transition, seen.level, seen.barrier)
        if step not in self._steps:
            yield f"level {seen.level} on n{seen.node} is told of step {step}, which was not committed"
        if seen.vector.get(seen.about) != NodeState(seen.kind.value):
            yield f"level {seen.level} on n{seen.node} is told {seen.kind} of n{seen.about} against the vector"


class RequiredLevels(Checker):
    """SPEC 3.10: no join begins before the programs that the operator requires have registered on that very node, and
    none is complete without the levels that it began with.
    """

    def __init__(self) -> None:
        self._came: dict[tuple[int, int], set[tuple[int, str]]] = {}  # node, incarnation -> levels and names
        self._index = -1
        self._state: ReplicaState | None = None

    def see(self, seen: Observation) -> Findings:
        """Keep which programs have come; judge each join that begins or ends by them (SPEC 3.10)."""
        if isinstance(seen, ProgramCame):
            level = seen.level
            self._came.setdefault((seen.node, seen.incarnation), set()).update(
                {(level.number, level.name), (level.number, "")}
            )
        elif isinstance(seen, Applied) and seen.index > self._index:
            if seen.index == self._index + 1 and self._state is not None:
                for member in seen.state.members.values():
                    before = self._state.members.get(member.node, Member(member.node))
                    yield from self._judge(before, member, seen.state)
            self._index, self._state = seen.index, seen.state

    def _judge(self, before: Member, after: Member, state: ReplicaState) -> Findings:
        numbers = {level.number for level in after.levels}
        if before.incarnation != after.incarnation and after.state in (NodeState.JOINING, NodeState.JOINED):
            came = self._came.get((after.node, after.incarnation), set())
            lacking = [each for each in state.required if each not in came or each.number not in numbers]
            if lacking:
                yield f"n{after.node} begins to join without {lacking}"
        if after.state is NodeState.JOINED and before.state is not NodeState.JOINED:
            missing = set(after.required) - numbers
            if missing:
                yield f"n{after.node} has joined, and its required levels {missing} have gone"


class ToldFromTheStart(Checker):
    """SPEC 3.4, 3.6, 3.10: a subsystem is told the barriers of a transition from the first one on, the next one after
    it has acknowledged, each once unless its daemon was restarted; one that comes in another's place begins anew.
    """

    def __init__(self) -> None:
        # (node, incarnation, level) -> transition -> (barrier, acknowledged, daemons so far)
        self._told: dict[tuple[int, int, int], dict[int, tuple[int, bool, int]]] = {}
        self._daemons: dict[int, int] = {}

    def see(self, seen: Observation) -> Findings:
        """Keep the last barrier that each subsystem was told and has acknowledged; find another next one (SPEC 3.4)."""
        match seen:
            case DaemonStarted():
                self._daemons[seen.node] = self._daemons.get(seen.node, 0) + 1
            case ProgramCame() | ProgramWent():
                self._told.pop((seen.node, seen.incarnation, seen.level.number), None)
            case LevelAcknowledged():
                told = self._told.get((seen.node, seen.incarnation, seen.level), {})
                if seen.transition in told and told[seen.transition][0] == seen.barrier:
                    told[seen.transition] = (seen.barrier, True, told[seen.transition][2])
            case Notified():
                yield from self._notified(seen)
            case _:
                pass

    def _notified(self, seen: Notified) -> Findings:
        told = self._told.setdefault((seen.node, seen.incarnation, seen.level), {})
        barrier, acknowledged, daemons = told.get(seen.transition, (-1, True, 0))
        again = seen.barrier == barrier and self._daemons.get(seen.node, 0) > daemons
        if not again and not (acknowledged and seen.barrier == barrier + 1):
            last = "nothing" if barrier < 0 else f"barrier {barrier} (acknowledged: {acknowledged})"
            yield (
                f"level {seen.level} on n{seen.node} is told barrier {seen.barrier} of {seen.kind} of n{seen.about} "
                f"after {last}"
            )
        done = acknowledged if seen.barrier == barrier else False
        told[seen.transition] = (seen.barrier, done, self._daemons.get(seen.node, 0))


def _is_waited_for(member: Member) -> bool:
    """Nobody waits for a member whose lease has run out and that is not proven dead (P4.8)."""
    silent = member.eviction is not None and member.eviction.silent
    return member.state in WAITED_FOR and not silent


def _name(transition: Transition) -> str:
    return f"the {transition.kind} of n{transition.node}"


def _barriers(transition: Transition, state: ReplicaState) -> int | None:
    """Barriers that the nodes concerned registered for this level; `None` if nobody has it any more."""
    for node in transition.participants:
        for level in state.members.get(node, Member(node)).levels:
            if level.number == transition.level:
                barriers = level.barriers
                return {
                    TransitionKind.JOINING: barriers.joining,
                    TransitionKind.LEAVING: barriers.leaving,
                    TransitionKind.FORCED_LEAVING: barriers.forced_leaving,
                }[transition.kind]
    return None


def _opened(transition: Transition, before: ReplicaState, after: ReplicaState) -> Findings:
    """SPEC 3.4: joins and forced leaves go bottom-up, graceful leaves top-down; SPEC 3.6 and 3.8: what may open."""
    member = before.members.get(transition.node, Member(transition.node))
    ordered = sorted(transition.levels, reverse=transition.kind is TransitionKind.LEAVING)
    if list(transition.levels) != ordered:
        yield f"{_name(transition)} takes its levels in the order {transition.levels}"
    allowed = {
        TransitionKind.JOINING: (NodeState.INACTIVE,),
        TransitionKind.LEAVING: (NodeState.JOINED, NodeState.JOINING),
        TransitionKind.FORCED_LEAVING: WAITED_FOR,
    }[transition.kind]
    proof = after.members.get(transition.node, Member(transition.node)).last_proof
    # A forced leave that no level takes part in is over at once, and the next incarnation may join with it.
    over = transition.kind is TransitionKind.JOINING and proof is not None and proof.incarnation == member.incarnation
    if transition.late:  # SPEC 3.2, 3.10: levels that come later, or go, are taken in or out alone
        during = (NodeState.JOINED,) if transition.kind is TransitionKind.JOINING else WAITED_FOR
        if member.state not in during or member.incarnation != transition.incarnation:
            yield f"{_name(transition)} at late levels {transition.levels} opens while it is {member.state}"
        return
    # What gave way to one of its levels goes on with what is left (SPEC 3.10).
    goes_on = (member.state.value, member.incarnation) == (transition.kind, transition.incarnation)
    if member.state not in allowed and not over and not goes_on:
        yield f"{_name(transition)} opens while it is {member.state}"
    if transition.kind is TransitionKind.JOINING and not goes_on and transition.incarnation <= member.incarnation:
        yield f"{_name(transition)} opens for incarnation {transition.incarnation}, not a new one"
    if transition.kind is TransitionKind.FORCED_LEAVING:
        yield from _forced_levels(transition, member, before, after)


def _forced_levels(transition: Transition, member: Member, before: ReplicaState, after: ReplicaState) -> Findings:
    """SPEC 3.9: from the lowest level up to the highest ever told, without those that a leave had completed."""
    completed: set[int] = set()
    for other in before.transitions.values():
        if other.node == member.node and other.kind is TransitionKind.LEAVING and not other.late:
            # Top-down: what lies above is over, also where a newcomer registered it since: that sees the node as gone.
            known = {level.number for each in before.members.values() for level in each.levels}
            completed = set(other.levels[: other.position]) | {number for number in known if number > other.level}
    still = {level.number for other in after.members.values() if _is_waited_for(other) for level in other.levels}
    both = (*before.transitions.values(), *after.transitions.values())  # it may have ended with this very entry
    alone = {t.level for t in both if t.node == member.node and t.late and t.kind is TransitionKind.FORCED_LEAVING}
    # Only levels that have a part of it, and where somebody is there to be told.
    told = set(member.inside) if member.by_level else {number for number in still if number <= member.told_level}
    missing = (told & still) - completed - alone - set(transition.levels)
    if missing:
        yield f"{_name(transition)} does not take level {sorted(missing)}"
    if completed & set(transition.levels):
        yield f"{_name(transition)} takes level {sorted(completed & set(transition.levels))} again"


class Soundness(Checker):
    """STYLE: a broken invariant is a finding. SPEC 2.4: after the last fault, everything gets to its end."""

    def see(self, seen: Observation) -> Findings:
        """Find what a core raised, and what is not at its end after the last fault (SPEC 2.4)."""
        if isinstance(seen, Raised):
            yield f"the core of n{seen.node} raised: {seen.error}"
        elif isinstance(seen, GaveUp):
            yield f"no progress after the last fault: {seen.missing}"


CHECKERS: tuple[type[Checker], ...] = (
    OneHistory,
    NothingLost,
    ObjectionsHold,
    NothingGoesBack,
    ProofFirst,
    OneNodeAtATime,
    NewerCommandsOnly,
    OwnTokens,
    OneAnswer,
    MarkAfterCommit,
    OnlyTheSilent,
    NobodyWaits,
    FrozenUntilProof,
    ServiceRules,
    GroupOrder,
    NotifyElsewhere,
    RecoveryBeforeRestart,
    NoFlapping,
    CleanBeforeElsewhere,
    WatchedWhereRegistered,
    ActedOnOnce,
    FailurePolicy,
    LevelsInOrder,
    RequiredLevels,
    ToldFromTheStart,
    NothingAfterExpiry,
    FencedByRequest,
    ProvenByStatus,
    DecidedByHolder,
    Soundness,
)
check_rows("sim/checkers/checkers.py", CHECKERS, Checker.__subclasses__())


def judge(history: History) -> list[Violation]:
    """The first violations of a history, in its order; at most a few."""
    checkers = [checker() for checker in CHECKERS]
    found: list[Violation] = []
    for position, observation in enumerate(history):
        if type(observation) in FOR_THE_READER:
            continue
        for checker in checkers:
            rule = type(checker).__name__
            found += [Violation(rule, position, message) for message in checker.see(observation)]
        if len(found) >= MAXIMUM_VIOLATIONS:
            break
    return found[:MAXIMUM_VIOLATIONS]


class Progress:
    """SPEC 2.4, 6.9: whether a cluster without faults has got everything to its end."""

    def __init__(self, history: History, nodes: int) -> None:
        self._history, self._nodes = history, nodes
        self._position = 0
        self._lives: dict[int, int] = {}
        self._latest: dict[int, Applied] = {}
        self._running: dict[str, int] = {}
        self._notified: set[tuple[int, int, str, int]] = set()  # (node, incarnation, service, generation)
        self._started: dict[str, int] = {}  # service -> generation of the last start command that succeeded
        self._programs: dict[tuple[int, int, int], Level] = {}  # (node, incarnation, level) that programs registered
        self._joined: set[tuple[int, int, int]] = set()  # those of them that were told of their node's join
        self._watches = Watches()

    def missing(self) -> str:
        """What is not yet as it should be, or nothing."""
        for observation in self._history[self._position :]:
            if type(observation) not in FOR_THE_READER:
                self._see(observation)
        self._position = len(self._history)
        for node in range(self._nodes):
            if node not in self._lives:
                return f"n{node} does not run"
            if node not in self._latest or self._latest[node].incarnation != self._lives[node]:
                return f"n{node} has applied nothing yet"
        newest = max(self._latest.values(), key=lambda applied: applied.index)
        behind = [node for node in range(self._nodes) if self._latest[node].index != newest.index]
        if behind:
            return f"n{behind[0]} is behind index {newest.index}"
        return self._members_missing(newest.state) or self._services_missing(newest.state)

    def _see(self, seen: Observation) -> None:
        self._watches.see(seen)
        match seen:
            case LifeBegan():
                self._lives[seen.node] = seen.incarnation
            case LifeEnded():
                if self._lives.get(seen.node) == seen.incarnation:
                    del self._lives[seen.node]
            case Applied():
                self._latest[seen.node] = seen
            case CommandTaken(action="notify"):
                self._notified.add((seen.node, seen.incarnation, seen.service, seen.generation))
            case ProgramCame() | ProgramWent():
                place = (seen.node, seen.incarnation, seen.level.number)
                self._joined.discard(place)
                self._programs.pop(place, None)
                if isinstance(seen, ProgramCame):
                    self._programs[place] = seen.level
            case Notified(kind=TransitionKind.JOINING) if seen.about == seen.node:
                self._joined.add((seen.node, seen.incarnation, seen.level))
            case CommandEnded(action="start", succeeded=True):
                self._started[seen.service] = seen.generation
            case ServiceBegan():
                self._running[seen.service] = seen.node
            case ServiceEnded():
                self._running.pop(seen.service, None)
            case _:
                pass

    def _members_missing(self, state: ReplicaState) -> str:
        # A leave waits for a service whose stop has failed, and that for its administrator (SPEC 6.6, 6.8).
        stuck = {service.node for service in state.services.values() if service.cause}
        held_up = {node for node in stuck if state.members.get(node, Member(node)).state is NodeState.LEAVING}
        for node, incarnation in self._lives.items():
            if node in state.fencing and state.fencing[node].quarantined:
                continue  # it waits for its administrator (P7.27)
            member = state.members.get(node, Member(node))
            if node in held_up and member.incarnation == incarnation:
                continue
            if (member.state, member.incarnation) != (NodeState.JOINED, incarnation) or member.eviction is not None:
                return f"n{node} is {member.state} with incarnation {member.incarnation}, running {incarnation}"
        for transition in state.transitions.values():
            if transition.node not in held_up:
                return f"{_name(transition)} is not over"
        return self._programs_missing(state, held_up)

    def _programs_missing(self, state: ReplicaState, held_up: set[int]) -> str:
        """SPEC 3.10: a program that has registered counts, and was told of its own node's join."""
        for (node, incarnation, number), level in self._programs.items():
            member = state.members.get(node, Member(node))
            if self._lives.get(node) != incarnation or node in held_up:
                continue
            if level.identity not in [each.identity for each in member.levels]:
                return f"level {number} on n{node} does not count"
            if (node, incarnation, number) not in self._joined:
                return f"level {number} on n{node} was never told of its node's join"
        return ""

    def _services_missing(self, state: ReplicaState) -> str:
        for name, service in state.services.items():
            word = str(service.state)
            if service.removed and not service.cause:
                return f"{name} is withdrawn and not forgotten"
            expected = expected_state(service, state)
            if not expected:
                continue
            if word != expected:
                return f"{name} is {word}, not {expected}"
            if service.intent:
                return f"{name} is {word} and still has transfer intent"
            runs_on = self._running.get(name, NO_NODE)
            by_command = self._started.get(name) == service.generation
            if runs_on != service.node and (by_command or runs_on != NO_NODE):
                return f"{name} is {word} on node {service.node}, but runs on {runs_on}"
        return notify_missing(state, self._notified) or watches_missing(state, self._watches)
