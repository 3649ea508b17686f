"""Checkers of registration and launch: the order of groups, notify, recovery, free transfers (SPEC 6.5, 6.6, 6.8)."""

from collections.abc import Iterator

from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.services import Service, ServiceState
from muster.records.terms import NO_NODE
from muster.sim.checkers.rule import Checker
from muster.sim.history import (
    Applied,
    CommandAnswered,
    CommandTaken,
    KernelCleared,
    KernelHeld,
    Observation,
    ReplicaState,
)

Findings = Iterator[str]
OWNED = (ServiceState.STARTING, ServiceState.REGISTERED, ServiceState.RECOVERING)
AT_WORK = (ServiceState.STARTING, ServiceState.REGISTERED, ServiceState.STOPPING)


class GroupOrder(Checker):
    """SPEC 6.5: a child starts where its parent is registered, and a parent stops when its children have ended."""

    def __init__(self) -> None:
        self._index = -1
        self._before: dict[str, Service] = {}

    def see(self, seen: Observation) -> Findings:
        """Find starts without a parent, and stops before the children, in each new state (SPEC 6.5)."""
        if not isinstance(seen, Applied) or seen.index <= self._index:
            return
        services = seen.state.services
        for service in services.values():
            if service.generation != seen.index:
                continue
            if service.state is ServiceState.STARTING and service.definition.parent:
                yield from _beside_its_parent(service, services)
            elif service.state is ServiceState.STOPPING:
                yield from _without_children(service, services)
        self._index, self._before = seen.index, services


def _beside_its_parent(child: Service, services: dict[str, Service]) -> Findings:
    parent = services.get(child.definition.parent)
    place = (parent.state, parent.node, parent.incarnation) if parent is not None else None
    if place != (ServiceState.REGISTERED, child.node, child.incarnation):
        what = f"{parent.state} on n{parent.node}" if parent is not None else "not defined"
        yield f"{child.name} starts on n{child.node} while its parent {child.definition.parent} is {what}"


def _without_children(parent: Service, services: dict[str, Service]) -> Findings:
    for child in services.values():
        if child.definition.parent == parent.name and child.state in AT_WORK and child.node == parent.node:
            yield f"{parent.name} stops while its child {child.name} is {child.state}"


class NotifyElsewhere(Checker):
    """SPEC 6.6: the notify command runs where the service is allowable and not registered, after its registration.

    A runner may take it late, when the service has been redefined: it counts that it was allowable since (P6.29).
    """

    def __init__(self) -> None:
        # (node, service, generation) -> as that node's replica shows it, and whether that node ever was allowable
        self._registered: dict[tuple[int, str, int], tuple[Service, bool]] = {}
        self._names: dict[int, str] = {}

    def see(self, seen: Observation) -> Findings:
        """Keep what is registered where; find notify commands that run elsewhere than they may (SPEC 6.6)."""
        if isinstance(seen, Applied):
            self._names = seen.state.names
            for service in seen.state.services.values():
                if service.state is ServiceState.REGISTERED:
                    key = (seen.node, service.name, service.generation)
                    _, allowed = self._registered.get(key, (service, False))
                    allows = _allows(_eldest(service, seen.state.services), self._names.get(seen.node, ""))
                    self._registered[key] = (service, allowed or allows)
        elif isinstance(seen, CommandTaken) and seen.action == "notify":
            registered, allowed = self._registered.get((seen.node, seen.service, seen.generation), (None, False))
            if registered is None:
                yield f"n{seen.node} is notified of {seen.service} {seen.generation}, which nobody registered"
            elif registered.node == seen.node:
                yield f"n{seen.node} is notified of {seen.service}, which is registered there"
            elif not allowed:
                yield f"n{seen.node} is notified of {seen.service}, which it may not run"


class OwnTokens(Checker):
    """SPEC 7.7: each owner of a service has a token above all before it, also where the membership stays (P6.41)."""

    def __init__(self) -> None:
        self._index = -1
        self._highest: dict[str, int] = {}  # by the service's name: it may be defined again
        self._last: dict[str, tuple[int, int]] = {}  # by name: its uid, and its token
        self._of: dict[tuple[int, int, str], int] = {}  # (node, incarnation, service) -> of its newest owner there
        self._begun: dict[str, tuple[int, int]] = {}  # service -> generation and token of its newest owner

    def see(self, seen: Observation) -> Findings:
        """Compare each new state with all before it, and what commands are told with their owners (SPEC 7.7)."""
        if isinstance(seen, Applied) and seen.index > self._index:
            whole = seen.index == self._index + 1
            for service in seen.state.services.values():
                yield from self._recorded(service, seen.index, whole=whole)
            self._index = seen.index
        elif isinstance(seen, CommandTaken):
            yield from self._told(seen)

    def _recorded(self, service: Service, index: int, *, whole: bool) -> Findings:
        before = self._highest.get(service.name, 0)
        is_new = service.state in OWNED and service.node != NO_NODE and service.generation == index
        if is_new:  # it may have no start command
            self._of[service.node, service.incarnation, service.name] = service.token
        if is_new and service.token <= before:
            yield f"{service.name} has a new owner on n{service.node} with token {service.token}, after {before}"
        elif (service.uid, service.token) < self._last.get(service.name, (0, 0)):
            yield f"the token of {service.name} is {service.token}, after {before}"
        elif whole and not is_new and service.token > before:
            yield f"the token of {service.name} is {service.token} now, and its owner is no new one"
        self._highest[service.name] = max(before, service.token)
        self._last[service.name] = (service.uid, service.token)

    def _told(self, seen: CommandTaken) -> Findings:
        place = (seen.node, seen.incarnation, seen.service)
        what = f"{seen.action} {seen.generation} of {seen.service} on n{seen.node} has token {seen.token}"
        if seen.action in ("start", "recovery"):
            generation, token = self._begun.get(seen.service, (0, 0))
            if seen.generation > generation and seen.token <= token:
                yield f"{what}, after {token}"
            self._begun[seen.service] = max((generation, token), (seen.generation, seen.token))
            self._of[place] = seen.token
        elif seen.action == "stop" and seen.token and seen.token != self._of.get(place, seen.token):
            yield f"{what}, and what it stops has {self._of[place]}"


class OneAnswer(Checker):
    """SPEC 7.7: a runner remembers. What it has said of a command it says again; what it has answered it never runs."""

    def __init__(self) -> None:
        self._taken: set[tuple[int, int, str, int, str]] = set()
        self._answers: dict[tuple[int, int, str, int, str], bool] = {}

    def see(self, seen: Observation) -> Findings:
        """Keep what a runner took and answered; find a second run, another answer, or one without a run (SPEC 7.7)."""
        if not isinstance(seen, CommandTaken | CommandAnswered):
            return
        key = (seen.node, seen.incarnation, seen.service, seen.generation, seen.action)
        what = f"{seen.action} {seen.generation} of {seen.service}"
        if isinstance(seen, CommandTaken):
            if key in self._answers:
                yield f"n{seen.node} runs {what}, of which it has said already what became of it"
            self._taken.add(key)
            return
        if self._answers.setdefault(key, seen.succeeded) is not seen.succeeded:
            yield f"n{seen.node} says now that {what} has {'succeeded' if seen.succeeded else 'failed'}, and before not"
        if seen.succeeded and key not in self._taken:
            yield f"n{seen.node} says that {what} has succeeded, which it never ran"


class RecoveryBeforeRestart(Checker):
    """SPEC 6.6, 6.7: what ran on a lost node is recovered before it is registered again, by its command for that."""

    def __init__(self) -> None:
        self._index = -1
        self._before: dict[str, Service] = {}

    def see(self, seen: Observation) -> Findings:
        """Find services that a new state frees without a recovery, though their node is lost (SPEC 6.6)."""
        if not isinstance(seen, Applied) or seen.index <= self._index:
            return
        if seen.index == self._index + 1:
            for service in seen.state.services.values():
                before = self._before.get(service.name)
                if before is not None and before.uid == service.uid:
                    yield from _recovered(before, service, seen.state)
        self._index, self._before = seen.index, seen.state.services


def _recovered(before: Service, after: Service, state: ReplicaState) -> Findings:
    ran = before.state in (ServiceState.REGISTERED, ServiceState.STOPPING) and before.node != NO_NODE
    if not ran or after.state is not ServiceState.DEREGISTERED or not before.definition.recovery_command:
        return
    member = state.members.get(before.node, Member(before.node))
    lost = member.incarnation != before.incarnation or member.state in (NodeState.FORCED_LEAVING, NodeState.INACTIVE)
    if lost and before.definition == after.definition and before.cause == "":
        yield f"{before.name} was {before.state} on n{before.node}, which is lost, and is not recovered"


class CleanBeforeElsewhere(Checker):
    """P6.32: no two machines hold what one service leaves in the kernel, and none joins with that of an earlier run."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], int] = {}  # (service, node) -> incarnation of the start that left it

    def see(self, seen: Observation) -> Findings:
        """Keep what each machine holds of a service; find a start or a join beside it (P6.32)."""
        if isinstance(seen, KernelHeld):
            for service, node in self._held:
                if service == seen.service and node != seen.node:
                    yield f"{service} starts on n{seen.node} while n{node} still holds what it left there"
            self._held[seen.service, seen.node] = seen.incarnation
        elif isinstance(seen, KernelCleared):
            self._held.pop((seen.service, seen.node), None)
        elif isinstance(seen, Applied):
            for (service, node), incarnation in self._held.items():
                member = seen.state.members.get(node, Member(node))
                if member.state is NodeState.JOINED and member.incarnation > incarnation:
                    yield f"n{node} has joined anew and holds what an earlier run of {service} has left there"


class NoFlapping(Checker):
    """SPEC 6.8: one incarnation of a node takes a service over of its own accord once, and only upwards."""

    def __init__(self) -> None:
        self._index = -1
        self._before: dict[str, Service] = {}

    def see(self, seen: Observation) -> Findings:
        """Find a second takeover by one incarnation, and one that is not upwards, in each new state (SPEC 6.8)."""
        if not isinstance(seen, Applied) or seen.index <= self._index:
            return
        for service in seen.state.services.values():
            taken = [(takeover.node, takeover.incarnation) for takeover in service.takeovers]
            for node, incarnation in {each for each in taken if taken.count(each) > 1}:
                yield f"incarnation {incarnation} of n{node} has taken {service.name} over more than once"
            before = self._before.get(service.name)
            if before is not None and taken and service.takeovers[-1].entry == seen.index:
                here, there = (seen.state.names.get(node, "") for node in (before.node, taken[-1][0]))
                if _preference(service, there) >= _preference(service, here):
                    yield f"{there} takes {service.name} over from {here}, which is not less preferred"
        self._index, self._before = seen.index, seen.state.services


def _preference(service: Service, name: str) -> int:
    """The smaller, the better: a place in the ordered list, in the unordered one, in none."""
    ordered, unordered = service.definition.ordered, service.definition.unordered
    return ordered.index(name) if name in ordered else len(ordered) + (name not in unordered)


def _eldest(service: Service, services: dict[str, Service]) -> Service:
    """The parent of all in its group, as this checker sees it."""
    seen = {service.name}
    while (parent := services.get(service.definition.parent)) is not None and parent.name not in seen:
        seen.add(parent.name)
        service = parent
    return service


def _allows(service: Service, name: str) -> bool:
    definition = service.definition
    allowed = "*" in definition.allowable_nodes or name in definition.allowable_nodes
    return allowed and name not in definition.disallowable_nodes


def expected_state(service: Service, state: ReplicaState) -> str:
    """What a service must be once nothing disturbs the cluster any more; empty where that is an operator's to say."""
    if service.cause or _waits_for_an_operator(service, state):
        return ""
    if service.definition.on_all and not service.template:
        return ""  # what its instances are
    if not service.wanted:
        return "de-registered"
    if service.definition.parent:
        parent = state.services.get(service.definition.parent)
        if parent is not None and not expected_state(parent, state):
            return ""  # so does its whole group
        return "registered" if parent is not None and parent.state is ServiceState.REGISTERED else "de-registered"
    return "registered" if _has_a_node(service, state) else "de-registered"


def _waits_for_an_operator(service: Service, state: ReplicaState) -> bool:
    """A parent waits for a child whose stop has failed."""
    children = [child for child in state.services.values() if child.definition.parent == service.name]
    return any(
        (child.state is ServiceState.STOPPING and child.cause) or _waits_for_an_operator(child, state)
        for child in children
    )


def _has_a_node(service: Service, state: ReplicaState) -> bool:
    """Whether a node that is up may run it: where a leave is held up, the only one may not be."""
    up = [state.names.get(node, "") for node, member in state.members.items() if member.state is NodeState.JOINED]
    return any(_allows(service, name) for name in up) or service.state is ServiceState.REGISTERED


def notify_missing(state: ReplicaState, taken: set[tuple[int, int, str, int]]) -> str:
    """Which joined allowable node has not run the notify command of a registered service; empty where all have.

    `taken`: (node, incarnation, service, generation) of every notify command that was begun.
    """
    for service in state.services.values():
        if service.state is not ServiceState.REGISTERED or not service.definition.notify_command:
            continue
        for member in state.members.values():
            if member.state is not NodeState.JOINED or member.node in (service.node, NO_NODE):
                continue
            if service.definition.on_all and not service.template:
                continue
            key = (member.node, member.incarnation, service.name, service.generation)
            if _allows(_eldest(service, state.services), state.names.get(member.node, "")) and key not in taken:
                return f"n{member.node} was not notified of {service.name}, generation {service.generation}"
    return ""
