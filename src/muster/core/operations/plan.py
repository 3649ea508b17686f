"""What a change would do, before it happens: the true rules on a copy of the database, with commands that succeed.

A plan says what would be started, stopped and moved, in the order of the rules. It assumes that every command succeeds
at once, that nodes join and leave as asked, and that nothing else happens meanwhile; it decides nothing (SPEC 8.2).
"""

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from muster.core.draft import Draft, Facts
from muster.core.entries import apply
from muster.core.operations.operations import carry_out
from muster.core.room import Room
from muster.core.services.table import ACTION_OF, advance
from muster.core.versions import upgrade
from muster.records.database import Database, Entry, decode_database, encode_database
from muster.records.levels import EVENT_MANAGER_LEVEL, NodeState
from muster.records.members import Member
from muster.records.messages import Report, Request
from muster.records.operations import OperationRequest
from muster.records.services import CommandState, Performance, Service, ServiceState
from muster.records.terms import NO_NODE
from muster.records.units import US_PER_MS

MAXIMUM_ROUNDS = 10_000
WORKING = (NodeState.JOINED, NodeState.LEAVING)


class NodeChange(Struct, frozen=True):
    """What becomes of a node: `kind` is `join`, `leave` or `lose` (its power is cut, and it is proven dead)."""

    kind: str
    node: str


class PlanRefused(Exception):
    """The change would be refused, or names something that does not exist; the message says why."""


class Step(NamedTuple):
    """One thing that would be done to a service: `start`, `stop`, `recovery`, `register` or `stuck`."""

    service: str
    action: str
    node: int
    reason: str


class Outlook(NamedTuple):
    """What a change would do: the steps in their order, and where each service would be, before and after."""

    steps: tuple[Step, ...]
    before: dict[str, int]
    after: dict[str, int]
    causes: dict[str, str]  # service -> why it would be stuck
    outcomes: tuple[str, ...]  # of the operations, in words


class Plan:
    """A copy of the database, and what is assumed of the world around it."""

    def __init__(
        self, database: Database, ages_ms: dict[int, int], performance: dict[int, Performance | None], room: Room
    ) -> None:
        """`ages_ms`: how long ago entries were committed; as far as the node that plans knows it, and so the rest."""
        self._database = decode_database(encode_database(database))
        self._ages_ms, self._room, self._performance = ages_ms, room, performance
        self._index = database.index
        self._steps: list[Step] = []

    def foresee(self, operations: Iterable[OperationRequest], nodes: Iterable[NodeChange]) -> Outlook:
        """Carry the operations out, then the changes of nodes, one after the other. Raises `PlanRefused`."""
        before = _placed(self._database)
        outcomes = tuple(self._operate(number, operation) for number, operation in enumerate(operations))
        self._settle()
        for change in nodes:
            self._change_node(change)
        services = self._database.services.values()
        causes = {service.name: service.cause for service in services if service.cause}
        return Outlook(tuple(self._steps), before, _placed(self._database), causes, outcomes)

    def _operate(self, number: int, operation: OperationRequest) -> str:
        if problem := upgrade.refusal(operation, self._database):
            raise PlanRefused(problem)
        draft = Draft(self._database)
        done = carry_out(Request(f"plan-{self._index}-{number}", operation), draft, self._facts())
        assert done is not None, "nothing else is in its entry"
        if done.refused:
            raise PlanRefused(done.outcome)
        self._commit(draft)
        return done.outcome

    def _change_node(self, change: NodeChange) -> None:
        node = self._database.node_named(change.node)
        if node is None:
            known = ", ".join(config.name for config in self._database.nodes.values())
            raise PlanRefused(f"there is no node {change.node!r}; configured are: {known}")
        member = self._database.member(node)
        if change.kind == "join":
            if member.state in WORKING:
                raise PlanRefused(f"{change.node} is {member.state} already")
            joined = Member(node, NodeState.JOINED, member.incarnation + 1, (EVENT_MANAGER_LEVEL,), 40)
            self._database.members[node] = joined
        elif member.state not in (*WORKING, NodeState.JOINING):
            raise PlanRefused(f"{change.node} is {member.state}: there is nothing to {change.kind}")
        elif change.kind == "leave":
            self._database.members[node] = replace(member, state=NodeState.LEAVING)
            self._settle()
        if change.kind != "join":
            self._database.members[node] = replace(self._database.member(node), state=NodeState.INACTIVE)
        self._settle()

    # ---- rounds --------------------------------------------------------------------------------------------------

    def _facts(self) -> Facts:
        reports = {
            member.node: Report(
                self._database.term, self._database.index, member.incarnation, "", (), (), self._ended(member),
                performance=self._performance.get(member.node),
            )
            for member in self._database.members.values()
            if member.state in WORKING
        }  # fmt: skip
        return Facts(
            0, NO_NODE, reports, lambda _node, _incarnation: None, lambda _node: True, {}, {}, services_open=True,
            room=self._room, aged_index=self._index, age_us=lambda index: self._ages_ms.get(index, 0) * US_PER_MS,
        )  # fmt: skip

    def _ended(self, member: Member) -> tuple[CommandState, ...]:
        """Every command has succeeded, every node has been notified."""
        found = []
        for service in self._database.services.values():
            action = ACTION_OF.get(service.state)
            if action is not None and service.node == member.node and service.incarnation == member.incarnation:
                found.append(CommandState(service.name, service.generation, action, True, True))
            elif service.state is ServiceState.REGISTERED and service.definition.notify_command:
                found.append(CommandState(service.name, service.generation, "notify", True, True))
        return tuple(found)

    def _settle(self) -> None:
        for _ in range(MAXIMUM_ROUNDS):
            draft = Draft(self._database)
            advance(draft, self._facts())
            if not draft.changes:
                return
            self._commit(draft)
        raise PlanRefused(f"no end of it was found within {MAXIMUM_ROUNDS} steps: plan a smaller change")

    def _commit(self, draft: Draft) -> None:
        before = dict(self._database.services)
        apply(self._database, Entry(draft.index, self._database.term, "", draft.changes))
        for name, service in self._database.services.items():
            self._steps += _steps_of(before.get(name), service)


def _steps_of(before: Service | None, after: Service) -> list[Step]:
    is_template = after.definition.on_all and not after.template
    if is_template or (before is not None and (before.state, before.node) == (after.state, after.node)):
        return []
    if after.state in ACTION_OF and after.node != NO_NODE:
        return [Step(after.name, ACTION_OF[after.state], after.node, after.reason)]
    skipped_start = after.state is ServiceState.REGISTERED and (before is None or before.state not in ACTION_OF)
    if skipped_start:
        return [Step(after.name, "register", after.node, after.reason)]
    if after.state is ServiceState.DEREGISTERED and after.cause:
        return [Step(after.name, "stuck", NO_NODE, after.cause)]
    return []


def _placed(database: Database) -> dict[str, int]:
    """Where every service is; -1 where it is nowhere. Templates show what their instances are."""
    return {
        service.name: service.node if service.state is not ServiceState.DEREGISTERED else NO_NODE
        for service in database.services.values()
        if not (service.definition.on_all and not service.template)
    }
