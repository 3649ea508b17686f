"""Rounds of the master's service rules on one database, without nodes: commands end as a test says, at once or held."""

from collections.abc import Iterable

from msgspec.structs import replace

from muster.core.draft import Draft, Facts
from muster.core.entries import apply
from muster.core.operations.operations import carry_out
from muster.core.services.explanation import Explanation, explain, unexplained
from muster.core.services.round import Round
from muster.core.services.table import ACTION_OF, advance
from muster.records.configuration import Operation
from muster.records.database import Database, Entry
from muster.records.levels import EVENT_MANAGER_LEVEL, NodeState
from muster.records.members import Member
from muster.records.messages import Report, Request
from muster.records.nodes import Cluster, NodeConfig
from muster.records.operations import OperationRequest
from muster.records.placements import PlacedTogether
from muster.records.services import CommandState, Definition, Service, ServiceState
from muster.records.terms import Term

MAXIMUM_ROUNDS = 200
TERM = Term(1, 0)


class Rounds:
    """A cluster of `nodes` nodes called n0, n1, ..., of which those in `up` have joined."""

    def __init__(self, nodes: int = 3, up: Iterable[int] | None = None) -> None:
        configs = {node: NodeConfig(node, f"n{node}", (), "") for node in range(nodes)}
        self.database = Database(Cluster("test", "0" * 32, "fast", "", active_version=2), 1, TERM, nodes=configs)
        self.now_ms = 0
        self.taken_ms: dict[int, int] = {}  # entry -> when it was committed
        self.failing: set[tuple[str, str, int]] = set()  # (service, action, node) that fails
        self.statuses: dict[tuple[str, str], int] = {}  # (service, action) -> exit status with which it fails
        self.leaves_nothing: set[str] = set()  # services of which nothing runs though their stop fails
        self.held: set[tuple[str, str]] = set()  # (service, action) that does not end
        self.notified: dict[tuple[int, str], int] = {}  # (node, service) -> generation whose notify command has ended
        self.decided: list[PlacedTogether] = []  # by each entry that placed something
        self.told: list[str] = []  # causes of the entries, in order
        for node in range(nodes) if up is None else up:
            self.join(node)

    # ---- nodes

    def join(self, node: int) -> None:
        """The node is joined, with a new incarnation."""
        incarnation = self.database.member(node).incarnation + 1
        self._member(Member(node, NodeState.JOINED, incarnation, (EVENT_MANAGER_LEVEL,), told_level=40))

    def leave(self, node: int) -> None:
        """The node takes a graceful leave."""
        self._member(replace(self.database.member(node), state=NodeState.LEAVING))

    def stop(self, node: int) -> None:
        """Its leave is over, or it is proven dead and everything below the event manager has recovered."""
        self._member(replace(self.database.member(node), state=NodeState.INACTIVE))

    def _member(self, member: Member) -> None:
        self.database.members[member.node] = member
        self.database.epoch += 1

    # ---- services

    def define(self, *definitions: Definition) -> None:
        """Define services without asking the rules."""
        for definition in definitions:
            service = Service(definition, self.database.index + 1, wanted=definition.auto_register)
            self.database.services[definition.name] = service

    def ask(self, operation: OperationRequest) -> Operation:
        """Carry an operation out; the cluster is not yet settled."""
        draft = Draft(self.database)
        done = carry_out(Request(f"ask-{self.database.index}", operation), draft, self.facts())
        assert done is not None, "nothing else is in its entry"
        self._commit(draft)
        return done

    def service(self, name: str) -> Service:
        """The record of this service, as it is committed now."""
        return self.database.services[name]

    def at(self, name: str) -> tuple[ServiceState, int]:
        """What it is, and where."""
        service = self.service(name)
        return service.state, service.node

    def placed(self) -> dict[str, int]:
        """Where each registered service is."""
        found = self.database.services.values()
        return {service.name: service.node for service in found if service.state is ServiceState.REGISTERED}

    # ---- time and rounds

    def facts(self) -> Facts:
        """What the master knows: every node that is up has reported what it was told to do."""
        up = [m for m in self.database.members.values() if m.state in (NodeState.JOINED, NodeState.LEAVING)]
        reports = {m.node: Report(TERM, self.database.index, m.incarnation, "", (), (), self._ended(m)) for m in up}
        return Facts(
            self.now_ms * 1000, 0, reports, lambda _n, _i: None, lambda _n: True, {}, {}, services_open=True,
            age_us=lambda index: (self.now_ms - self.taken_ms.get(index, 0)) * 1000,
        )  # fmt: skip

    def _ended(self, member: Member) -> tuple[CommandState, ...]:
        found = []
        for service in self.database.services.values():
            action = ACTION_OF.get(service.state)
            if action is None or service.node != member.node or (service.name, action) in self.held:
                continue
            failed = (service.name, action, member.node) in self.failing
            status = self.statuses.get((service.name, action), 1) if failed else 0
            left = service.name not in self.leaves_nothing
            told = (action, True, not failed, "exit status 1", left, status)
            found.append(CommandState(service.name, service.generation, *told))
        for (node, name), generation in self.notified.items():
            if node == member.node and self.service(name).node != node:
                found.append(CommandState(name, generation, "notify", True, True))
        return tuple(found)

    def why(self, name: str) -> Explanation:
        """What every rule says of a service now."""
        return explain(self.service(name), Round(Draft(self.database), self.facts()))

    def step(self) -> bool:
        """One round; whether it changed anything."""
        draft = Draft(self.database)
        advance(draft, self.facts())
        return self._commit(draft)

    def _commit(self, draft: Draft) -> bool:
        if not draft.changes:
            return False
        if draft.placed is not None:
            assert not unexplained(draft.placed), "every placement is explained by the rules that made it (SPEC 8.2)"
            self.decided.append(draft.placed)
        apply(self.database, Entry(draft.index, TERM, "; ".join(draft.causes), draft.changes))
        self.taken_ms[draft.index] = self.now_ms
        self.told += draft.causes
        return True

    def settle(self) -> list[dict[str, tuple[ServiceState, int]]]:
        """Rounds until nothing changes; what every service was after each of them."""
        seen: list[dict[str, tuple[ServiceState, int]]] = []
        for _ in range(MAXIMUM_ROUNDS):
            if not self.step():
                return seen
            seen.append({name: self.at(name) for name in self.database.services})
        raise AssertionError(f"no end after {MAXIMUM_ROUNDS} rounds: {self.told[-10:]}")

    def wait(self, duration_ms: int) -> None:
        """Let time pass, and settle."""
        self.now_ms += duration_ms
        self.settle()
