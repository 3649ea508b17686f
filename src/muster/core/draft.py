"""A decision in the making: the database as committed, and what the rules of this round want changed in it.

The master's rules (membership, transition, service) all work on one draft, one after the other; what comes out is one
entry. So a decision never mixes two snapshots, and the entry's index is known while it is made (SPEC 2.7, 7.7).
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from muster.core.decision import PlacedTogether
from muster.records.events import EventGroup
from muster.records.messages import Report
from muster.records.registers import ProofKind
from muster.records.state import (
    Audit,
    Change,
    Cluster,
    Database,
    Forget,
    Maintenance,
    Member,
    NodeConfig,
    NodeState,
    Operation,
    Revision,
    Service,
    Standby,
    Transition,
)

Record = (
    Cluster
    | NodeConfig
    | Member
    | Transition
    | Service
    | Operation
    | Maintenance
    | Standby
    | EventGroup
    | Audit
    | Revision
)


class StopEvidence(Protocol):
    """What `core.lease.Evidence` and the confirmations of operators and fence agents have in common."""

    @property
    def kind(self) -> ProofKind:
        """What kind of proof it is."""

    @property
    def detail(self) -> str:
        """The evidence in words."""


class Facts(msgspec.Struct):
    """What the master knows beside the database: volatile, gathered anew by each master, never copied."""

    now_us: int
    me: int
    reports: dict[int, Report]  # of this term only: a node in here has acknowledged the term (SPEC 7.7)
    evidence: Callable[[int, int], StopEvidence | None]  # (node, incarnation) -> proof that it has stopped
    alive: Callable[[int], bool]  # node -> its lease is being renewed at this moment
    unreachable: dict[int, str]  # node -> why the surviving set goes on without it
    hung: dict[int, str]  # node -> which of its subsystems is hung, where the level's policy is to force it out
    services_open: bool  # every member of the term's first hour has reported or is gone (SPEC 7.7)
    free_bytes: Callable[[], int]  # what the journal can still take of new definitions
    age_us: Callable[[int], int] = lambda _index: 0  # how long ago an entry was committed (`core/ages.py`)
    slots: dict[int, int] = msgspec.field(default_factory=dict)  # of the store: slot -> last incarnation that ran in it

    def report(self, member: Member) -> Report | None:
        """The report of exactly this incarnation, in this term."""
        report = self.reports.get(member.node)
        return report if report is not None and report.incarnation == member.incarnation else None


class Draft:
    """Reads through to the database; collects whole new records."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.index = database.index + 1
        self.causes: list[str] = []
        self._said: set[str] = set()  # the same, to be asked quickly: an entry may have thousands
        self.cluster = database.cluster
        self.nodes = dict(database.nodes)
        self.members = dict(database.members)
        self.transitions = dict(database.transitions)
        self.services = dict(database.services)
        self.operations: dict[str, Operation] = {}
        self.maintenance = dict(database.maintenance)
        self.standby = dict(database.standby)
        self.event_groups = dict(database.event_groups)
        self.audit = dict(database.audit)
        self.revisions = dict(database.revisions)
        self._registered: dict[int, frozenset[int]] | None = None  # by level, gathered when asked for
        self.placed: PlacedTogether | None = None  # where services go by it, and why
        self._changed: dict[tuple[str, str], Change] = {}

    def member(self, node: int) -> Member:
        """The member record of a configured node."""
        return self.members.get(node) or Member(node)

    def put(self, record: Record, cause: str = "") -> None:
        """Replace a record. `cause` goes into the entry's cause."""
        match record:
            case Cluster():
                self.cluster = record
                key = ("cluster", "")
            case NodeConfig():
                self.nodes[record.node] = record
                key = ("node", str(record.node))
            case Audit():
                self.audit[record.number] = record
                key = ("audit", str(record.number))
            case Revision():
                self.revisions[record.version] = record
                key = ("revision", str(record.version))
            case Member():
                self.members[record.node] = record
                self._registered = None
                key = ("member", str(record.node))
            case Transition():
                self.transitions[record.identity] = record
                key = ("transition", str(record.identity))
            case Service():
                self.services[record.name] = record
                key = ("service", record.name)
            case Maintenance():
                self.maintenance[record.key] = record
                key = ("maintenance", record.key)
            case Standby():
                self.standby[record.node] = record
                key = ("standby", str(record.node))
            case EventGroup():
                self.event_groups[record.name] = record
                key = ("event_group", record.name)
            case _:
                self.operations[record.identity] = record
                key = ("operation", record.identity)
        self._changed[key] = record
        self._because(cause)

    def forget(self, kind: str, key: str, cause: str = "") -> None:
        """Remove a record of any kind; that of a node goes with its member record."""
        match kind:
            case "transition":
                self.transitions.pop(int(key), None)
            case "service":
                self.services.pop(key, None)
            case "event_group":
                self.event_groups.pop(key, None)
            case "maintenance":
                self.maintenance.pop(key, None)
            case "node":
                self.nodes.pop(int(key), None)
                self.members.pop(int(key), None)
                self._registered = None
                self._changed.pop(("member", key), None)
            case "audit":
                self.audit.pop(int(key), None)
            case "revision":
                self.revisions.pop(int(key), None)
            case _:
                self.standby.pop(int(key), None)
        self._changed[kind, key] = Forget(kind, key)
        self._because(cause)

    def _because(self, cause: str) -> None:
        if cause and cause not in self._said:
            self._said.add(cause)
            self.causes.append(cause)

    @property
    def changed(self) -> dict[tuple[str, str], Change]:
        """Every record that differs from the database, by kind and key."""
        return dict(self._changed)

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every record that differs from the database, each once."""
        return tuple(self._changed.values())

    def name(self, node: int) -> str:
        """The configured name of `node`."""
        config = self.nodes.get(node)
        return config.name if config is not None else self.database.name_of(node)

    def transition_of(self, node: int) -> Transition | None:
        """The transition of `node`; there is never more than one."""
        return next((t for t in self.transitions.values() if t.node == node), None)

    def participants(self, level: int) -> tuple[int, ...]:
        """Every node that is not inactive or forced-leaving and has registered `level` (SPEC 3.4)."""
        return tuple(sorted(self.registered().get(level, ())))

    def registered(self) -> dict[int, frozenset[int]]:
        """By level, every node that is not inactive or forced-leaving and has registered it. Not to be changed."""
        if self._registered is None:
            found: dict[int, set[int]] = {}
            for member in self.members.values():
                if counts(member):
                    for level in member.levels:
                        found.setdefault(level.number, set()).add(member.node)
            self._registered = {level: frozenset(nodes) for level, nodes in found.items()}
        return self._registered


def counts(member: Member) -> bool:
    """Whether others wait for this member (SPEC 3.4): nobody waits for a forced-out one."""
    return member.state in (NodeState.JOINING, NodeState.JOINED, NodeState.LEAVING)


def is_up(member: Member) -> bool:
    """Whether a node may be chosen for services: its join is complete and nothing takes it away (SPEC 6.9)."""
    return member.state is NodeState.JOINED and member.eviction is None
