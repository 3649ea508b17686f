"""Checkers of events: what is watched for where, failures acted upon once, the failure policy (SPEC 5.3, 5.4)."""

from collections.abc import Iterator
from typing import NamedTuple

from muster.records.levels import NodeState
from muster.records.services import (
    ApplyServices,
    ClearService,
    RegisterService,
    RestartService,
    Service,
    ServiceState,
    TransferService,
)
from muster.records.units import US_PER_MS
from muster.sim.checkers.rule import Checker
from muster.sim.history import (
    Applied,
    Asked,
    DaemonStarted,
    LifeBegan,
    LifeEnded,
    Observation,
    ReplicaState,
    ServiceFailed,
    WatchBegan,
    WatchEnded,
    WatcherGone,
)

Findings = Iterator[str]
# What a service that has failed or was given up may go on after.
Clearing = ApplyServices | ClearService | RegisterService | RestartService | TransferService
PATIENCE_US = 2500 * US_PER_MS  # a daemon that is paused for longer than that ends with its node


class Watch(NamedTuple):
    """An event that is watched for: of which registration, if of one."""

    service: str
    generation: int


class Watches:
    """What each node's watcher is asked to detect."""

    def __init__(self) -> None:
        self.of_node: dict[int, dict[str, Watch]] = {}

    def see(self, seen: Observation) -> None:
        """Fold an observation in."""
        match seen:
            case WatchBegan(node=node, event=event):
                values = dict(seen.parameters)
                watch = Watch(values.get("service", ""), int(values.get("generation", 0)))
                self.of_node.setdefault(node, {})[event] = watch
            case WatchEnded(node=node, event=event):
                self.of_node.get(node, {}).pop(event, None)
            case DaemonStarted(node=node) | LifeBegan(node=node) | LifeEnded(node=node) | WatcherGone(node=node):
                self.of_node.pop(node, None)
            case _:
                pass


class WatchedWhereRegistered(Checker):
    """SPEC 5.3, 5.4: events are watched for on a joined node, those of a service only where that registration is."""

    def __init__(self) -> None:
        self._watches = Watches()
        self._shown: dict[int, Applied] = {}
        self._since_us: dict[int, dict[str, int]] = {}  # node -> event -> since when it should not be watched for

    def see(self, seen: Observation) -> Findings:
        """Keep what is watched for; find watches that begin, or stay for long, where they should not be (SPEC 5.3)."""
        self._watches.see(seen)
        match seen:
            case LifeBegan(node=node) | LifeEnded(node=node) | DaemonStarted(node=node):
                self._shown.pop(node, None)
            case WatchBegan(node=node, event=event):
                wrong = self._wrong(node, self._watches.of_node[node][event])
                if wrong:
                    yield f"n{node} begins to watch for {event} while {wrong}"
            case Applied(node=node):
                self._shown[node] = seen
                yield from self._linger(seen)
            case _:
                pass

    def _wrong(self, node: int, watch: Watch) -> str:
        shown = self._shown.get(node)
        if shown is None:
            return "it shows nothing"
        member = shown.state.members.get(node)
        if member is None or (member.state, member.incarnation) != (NodeState.JOINED, shown.incarnation):
            return f"it is {member.state if member is not None else 'no member'}"
        service = shown.state.services.get(watch.service)
        if not watch.service:
            return ""
        place = (service.state, service.node, service.incarnation, service.generation) if service is not None else None
        if place != (ServiceState.REGISTERED, node, shown.incarnation, watch.generation):
            return f"{watch.service} is {service.state if service is not None else 'unknown'} with another generation"
        return ""

    def _linger(self, seen: Applied) -> Findings:
        """What should not be watched for any more may be so for as long as a daemon can be paused."""
        before = self._since_us.get(seen.node, {})
        now = self._since_us[seen.node] = {}
        for event, watch in self._watches.of_node.get(seen.node, {}).items():
            wrong = self._wrong(seen.node, watch)
            if wrong:
                now[event] = before.get(event, seen.at_us)
                if seen.at_us - now[event] > PATIENCE_US:
                    yield f"n{seen.node} still watches for {event} while {wrong}"


class Clearings:
    """What operators ask for after which a service that has failed may go on as if it had not."""

    def __init__(self) -> None:
        self._asked: dict[str, Clearing] = {}

    def see(self, seen: Observation) -> None:
        """Fold an observation in."""
        if isinstance(seen, Asked) and isinstance(seen.operation, Clearing):
            self._asked[seen.identity] = seen.operation

    def carried_out(self, state: ReplicaState) -> list[tuple[Clearing, set[str]]]:
        """Those that the state is the first to show, with the services that each names."""
        found: list[tuple[Clearing, set[str]]] = []
        for identity in [each for each in self._asked if each in state.operations]:
            operation = self._asked.pop(identity)
            if isinstance(operation, ApplyServices):
                found.append((operation, {definition.name for definition in operation.definitions}))
            else:
                found.append((operation, {operation.service}))
        return found


class ActedOnOnce(Checker):
    """SPEC 5.4, P8.7: only what has failed is acted upon, once, and never a generation that has not failed itself.

    Once an operator has had it forgotten, it may be acted upon anew.
    """

    def __init__(self) -> None:
        self._failed: set[tuple[str, int]] = set()
        self._recorded: set[tuple[str, int, int]] = set()  # service, uid, generation
        self._clearings = Clearings()
        self._index = -1
        self._before: dict[str, Service] = {}

    def see(self, seen: Observation) -> Findings:
        """Keep what has failed; find records of a failure that was none, or was recorded already (P8.7)."""
        if isinstance(seen, ServiceFailed):
            self._failed.add((seen.service, seen.generation))
        self._clearings.see(seen)
        if isinstance(seen, Applied) and seen.index > self._index:
            for operation, names in self._clearings.carried_out(seen.state):
                if isinstance(operation, ClearService | RegisterService):
                    self._recorded = {key for key in self._recorded if not _is_named(key[0], names)}
            if seen.index == self._index + 1:
                for service in seen.state.services.values():
                    before = self._before.get(service.name)
                    if before is None or before.uid != service.uid:
                        continue
                    if has_failed(before, service, seen.index):
                        yield from self._acted(before)
                    elif service.is_left_to_its_action and not before.broken:
                        yield from self._recorded_only(before, service)
            self._index, self._before = seen.index, seen.state.services

    def _recorded_only(self, before: Service, after: Service) -> Findings:
        """A program's end that is left to `on_failure` (P6.40): it stays where and what it is."""
        if (before.name, before.generation) not in self._failed:
            yield f"an end of {before.name} is recorded, whose generation {before.generation} has not ended"
        if (after.state, after.node, after.generation) != (before.state, before.node, before.generation):
            yield f"the end of {before.name} is left to its action, and something follows from it all the same"

    def _acted(self, failed: Service) -> Findings:
        key = (failed.name, failed.uid, failed.generation)
        if (failed.name, failed.generation) not in self._failed:
            yield f"a failure of {failed.name} is recorded, whose generation {failed.generation} has not failed"
        if key in self._recorded:
            yield f"the failure of {failed.name}, generation {failed.generation}, is recorded twice"
        self._recorded.add(key)


def _is_named(name: str, names: set[str]) -> bool:
    """Whether a service is one of these, or an instance of one."""
    return name in names or name.partition("@")[0] in names


def has_failed(before: Service, after: Service, index: int) -> bool:
    """Whether this entry records a failure, whatever it makes of it."""
    given_up = bool(after.exhausted) and after.exhausted[-1].entry == index and not before.broken
    return after.failures[-1:] == (index,) or given_up


class FailurePolicy(Checker):
    """SPEC 5.4: what fails is restarted in place so many times within the window, and then not again on that node.

    Time is measured outside the cluster, so the window is held to half its length one way and twice the other. What
    follows from a failure was decided by the definition of that moment, which may be another one by the next start.
    """

    def __init__(self) -> None:
        self._index = -1
        self._before: dict[str, Service] = {}
        self._failures: dict[str, list[int]] = {}  # service -> when it failed, since it was last given up or cleared
        self._policy: dict[str, tuple[int, int]] = {}  # service -> restarts and window (us) when it last failed
        self._place: dict[str, tuple[int, int]] = {}  # service -> node and incarnation of its last failure, while there
        self._since: dict[str, int] = {}  # service -> older failures were forgotten by the window of that moment
        self._unseen: set[str] = set()  # services that may have failed since then in an entry that nobody showed
        self._given_up: dict[str, dict[int, int]] = {}  # service -> node -> when
        self._restarted: set[str] = set()  # services that operators have asked to start again, until they do
        self._clearings = Clearings()

    def see(self, seen: Observation) -> Findings:
        """Count the failures of each service, and judge what follows from each by its policy (SPEC 5.4)."""
        self._clearings.see(seen)
        if isinstance(seen, Applied) and seen.index > self._index:
            self._forget_what_was_cleared(seen.state)
            if seen.index != self._index + 1:
                self._unseen |= seen.state.services.keys()
            for service in seen.state.services.values():
                before = self._before.get(service.name)
                if before is not None and before.uid == service.uid and seen.index == self._index + 1:
                    yield from self._followed(before, service, seen)
            self._index, self._before = seen.index, seen.state.services

    def _forget_what_was_cleared(self, state: ReplicaState) -> None:
        for operation, names in self._clearings.carried_out(state):
            if isinstance(operation, RestartService | TransferService):  # to another node, or back where that is gone
                self._restarted |= names
            if isinstance(operation, RestartService):
                continue
            for name in [*self._failures, *self._given_up]:
                if _is_named(name, names):
                    self._given_up.pop(name, None)
                    if isinstance(operation, ClearService | RegisterService):
                        self._failures.pop(name, None)
                        self._unseen.add(name)  # what is wanted already is not cleared by being registered

    def _followed(self, before: Service, after: Service, seen: Applied) -> Findings:
        name, policy = after.name, _policy(after)
        if before.state is ServiceState.DEREGISTERED and before.definition != after.definition:  # it is mended (P6.37)
            self._failures.pop(name, None)
            self._given_up.pop(name, None)
        given_up_before = self._given_up.get(name, {})
        members = seen.state.members
        for node in [each for each in given_up_before if each in members and members[each].state is NodeState.JOINING]:
            del given_up_before[node]  # it boots again (P6.36)
        failures = self._failures.setdefault(name, [])
        if has_failed(before, after, seen.index):
            failures.append(seen.at_us)
            self._place[name], self._policy[name] = (before.node, before.incarnation), policy
            self._since[name] = max(self._since.get(name, 0), seen.at_us - policy[1] // 2)
        given_up = [each for each in after.exhausted if each.entry == seen.index]
        if given_up:
            if len(failures) <= policy[0] and name not in self._unseen:
                yield f"{name} is given up on n{given_up[0].node} after {len(failures)} failures"
            self._given_up.setdefault(name, {})[given_up[0].node] = seen.at_us
            failures.clear()
            self._unseen.discard(name)
        if after.state is not ServiceState.STARTING or after.generation != seen.index:
            return
        if name in self._restarted:
            self._restarted.discard(name)
            if self._place.get(name) != (after.node, after.incarnation):
                self._place.pop(name, None)  # by an operator's wish, and if it comes back that is no restart
            return
        then = self._policy.get(name, policy)
        restarts, window_us = max(policy[0], then[0]), min(policy[1], then[1])
        since_us = max(self._since.get(name, 0), seen.at_us - window_us // 2)
        recent = [at_us for at_us in failures if at_us > since_us]
        if self._place.get(name) != (after.node, after.incarnation):
            self._place.pop(name, None)  # it has moved, or was lost with its node before it was given up there
        elif len(recent) > restarts:
            yield f"{name} starts again on n{after.node} after {len(recent)} failures"
        given_up_us = self._given_up.get(name, {}).get(after.node)
        if given_up_us is not None and seen.at_us - given_up_us < window_us // 2:
            yield f"{name} starts on n{after.node}, where it was given up"


def _policy(service: Service) -> tuple[int, int]:
    return service.definition.restarts, service.definition.restart_window_ms * US_PER_MS


def watches_missing(state: ReplicaState, watches: Watches) -> str:
    """Which supervised service nobody watches where it is registered; empty where somebody does for all."""
    for service in state.services.values():
        if service.state is not ServiceState.REGISTERED or (service.definition.on_all and not service.template):
            continue
        member = state.members.get(service.node)
        if member is None or member.state is not NodeState.JOINED:
            continue
        for kind, wanted in (("exit", service.definition.run), ("check", service.definition.check_command)):
            watch = watches.of_node.get(service.node, {}).get(f"{service.name}:{kind}")
            if wanted and watch != Watch(service.name, service.generation):
                return f"{service.name}:{kind} is not watched for on n{service.node}"
    return ""
