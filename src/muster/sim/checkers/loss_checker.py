"""The judge of what clients were told: nothing acknowledged is lost, or was done twice (SPEC 2.4, 9.1).

An operation that changes nothing is recorded nowhere (P9.4). It is recognised by what was asked and by the state of the
index that the answer names: there everything must be as was asked. So an answer without any trace is a loss.
"""

from collections.abc import Iterator

from muster.records.levels import NodeState
from muster.records.members import EvictNode, LeaveNode, Member
from muster.records.operations import OperationRequest
from muster.records.services import (
    ApplyServices,
    DeregisterService,
    RegisterService,
    RestartService,
    Service,
    TransferService,
)
from muster.sim.checkers.rule import Checker
from muster.sim.history import Applied, Asked, Elected, Observation, ReplicaState, Replied

GONE = (NodeState.INACTIVE, NodeState.FORCED_LEAVING)


def _member(state: ReplicaState, name: str) -> Member:
    node = next((node for node, each in state.names.items() if each == name), -1)
    return state.members.get(node, Member(node))


def _service(state: ReplicaState, name: str) -> Service | None:
    found = state.services.get(name)
    return None if found is None or found.removed else found


def is_as_asked(operation: OperationRequest, state: ReplicaState) -> bool:
    """Whether a state is as the operation wants it, so that it may have changed nothing; of some it cannot be seen."""
    match operation:
        case RegisterService(service=name):
            service = _service(state, name)
            return service is not None and service.wanted
        case DeregisterService(service=name):
            service = _service(state, name)
            return service is None or not service.wanted
        case TransferService(service=name, target=target):
            service = _service(state, name)
            return service is not None and (service.intent or state.names.get(service.node) == target)
        case RestartService(service=name):
            service = _service(state, name)
            return service is not None and (service.intent or service.target == service.node)  # it is about to
        case ApplyServices(definitions=definitions, withdraw=withdraw):
            defined = all(_service(state, each.name) is not None for each in definitions)
            return defined and all(_service(state, name) is None for name in withdraw)
        case LeaveNode(node=name):
            member = _member(state, name)
            return bool(member.leave_asked) or member.state in (NodeState.LEAVING, *GONE)
        case EvictNode(node=name):
            member = _member(state, name)
            return member.eviction is not None or member.state in GONE
        case _:
            return True


class NothingLost(Checker):
    """SPEC 2.4, 9.1: what was acknowledged to a client is in every later state, and was done once."""

    def __init__(self) -> None:
        self._asked: dict[str, OperationRequest] = {}
        self._promised: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._states: dict[int, ReplicaState] = {}

    def see(self, seen: Observation) -> Iterator[str]:
        """Keep what was promised to clients; find a later state or master that does not know it (SPEC 2.4, 9.1)."""
        if isinstance(seen, Asked):
            self._asked[seen.identity] = seen.operation
        elif isinstance(seen, Replied) and not seen.refused:
            yield from self._answered(seen)
        elif isinstance(seen, Elected):
            lost = [identity for identity, index in self._promised.items() if index > seen.index]
            if lost:
                yield f"n{seen.node} became master at index {seen.index}, before acknowledged {', '.join(lost)}"
        elif isinstance(seen, Applied):
            yield from self._applied(seen)

    def _answered(self, seen: Replied) -> Iterator[str]:
        if seen.identity in self._done:
            self._promised.setdefault(seen.identity, seen.index)
            return
        asked, state = self._asked.get(seen.identity), self._states.get(seen.index)
        if asked is None:
            return  # a node asks so of itself; what that changes names a generation (P9.4)
        if state is None:  # a replica may show only the last of several entries that it took in together
            if seen.index > max(self._states, default=-1):
                yield f"{seen.identity} was acknowledged at index {seen.index}, which no replica has shown"
        elif any(each.index == seen.index for each in state.operations.values()):
            return  # others were carried out by the same entry, and may have undone what was so when it was judged
        elif not is_as_asked(asked, state):
            yield f"{seen.identity} was acknowledged at index {seen.index}, where nothing is as it asks: {seen.outcome}"
        elif self._changed(asked, seen.index):
            yield f"{seen.identity} was carried out at index {seen.index}, and no state has its identity"

    def _changed(self, asked: OperationRequest, index: int) -> bool:
        """Whether the entry of this index, which records no operation, made an operator's wish come true."""
        before = self._states.get(index - 1)
        if before is None or not isinstance(asked, RegisterService | DeregisterService):
            return False
        return _service(before, asked.service) is not None and not is_as_asked(asked, before)

    def _applied(self, seen: Applied) -> Iterator[str]:
        if not self._asked:
            self._states.clear()  # nothing is asked yet, or nobody records what is: the newest will do
        self._states.setdefault(seen.index, seen.state)
        operations = seen.state.operations
        for identity, index in self._promised.items():
            if index <= seen.index and identity not in operations:
                yield f"{identity} was acknowledged at index {index}, but n{seen.node} has no trace of it"
        for identity, operation in operations.items():
            if not operation.refused and self._done.setdefault(identity, operation.index) != operation.index:
                yield f"{identity} was carried out twice, at {self._done[identity]} and {operation.index}"
