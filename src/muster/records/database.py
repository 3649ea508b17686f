"""The replicated database: the records that the master commits and every node holds a copy of (SPEC 1.3).

An `Entry` carries whole new versions of the records it changes, never instructions: applying one needs no rule, so
nodes of two releases can never apply the same entry differently (SPEC 9.2). New fields go to the end, with a default.
Each kind of record is in the file of its subject.
"""

import msgspec
from msgspec import Struct, field

from muster.records.configuration import Audit, Operation, Revision
from muster.records.events import EventGroup
from muster.records.members import Member
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import Maintenance, Service, Standby
from muster.records.terms import NO_TERM, Term
from muster.records.transitions import Transition
from muster.records.versions import KERNELS_WORD


class Forget(Struct, frozen=True, array_like=True, tag="forget"):
    """Removal of a record: `kind` is the tag of its type, `key` its key as text."""

    kind: str
    key: str


Change = (
    Cluster
    | NodeConfig
    | Member
    | Transition
    | Service
    | Operation
    | Forget
    | Maintenance
    | Standby
    | EventGroup
    | Audit
    | Revision
)


class Entry(Struct, frozen=True, array_like=True):
    """One committed change of the database."""

    index: int
    term: Term
    cause: str  # the stimulus, for logs and the history (SPEC 9.4)
    changes: tuple[Change, ...]


MAXIMUM_OPERATIONS = 512
MAXIMUM_LINEAGE = 32
MAXIMUM_OPERATIONS_BY_BYTES = 8192  # where their bytes are counted (P9.3)


def most_operations(cluster: Cluster) -> int:
    """How many identities are kept at most at the active version."""
    return MAXIMUM_OPERATIONS_BY_BYTES if cluster.active_version >= KERNELS_WORD else MAXIMUM_OPERATIONS


class Database(Struct):
    """One copy of the replicated database, at commit index `index`. Changed by `apply` only."""

    cluster: Cluster
    index: int = 0
    term: Term = NO_TERM  # of the last entry
    epoch: int = 0  # index of the last change of any node's state: the fencing token (SPEC 7.7)
    nodes: dict[int, NodeConfig] = field(default_factory=dict)
    members: dict[int, Member] = field(default_factory=dict)
    transitions: dict[int, Transition] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    maintenance: dict[str, Maintenance] = field(default_factory=dict)
    standby: dict[int, Standby] = field(default_factory=dict)
    event_groups: dict[str, EventGroup] = field(default_factory=dict)
    audit: dict[int, Audit] = field(default_factory=dict)  # the newest ones
    revisions: dict[int, Revision] = field(default_factory=dict)  # the newest ones
    lineage: tuple[tuple[Term, int], ...] = ()  # the newest terms that committed, each with its first index (P11.2)

    def apply(self, entry: Entry) -> None:
        """Apply the next committed entry. Raises `ValueError` if it is not the next one."""
        if entry.index != self.index + 1:
            raise ValueError(f"entry {entry.index} does not follow index {self.index}")
        for change in entry.changes:
            self._apply(change, entry.index)
        if entry.term != self.term:
            self.lineage = (*self.lineage, (entry.term, entry.index))[-MAXIMUM_LINEAGE:]
        self.index, self.term = entry.index, entry.term

    def term_at(self, index: int) -> Term | None:
        """The term that committed entry `index`; None where this database does not know it."""
        if index == self.index:
            return self.term
        return next((term for term, first in reversed(self.lineage) if first <= index < self.index), None)

    def _apply(self, change: Change, index: int) -> None:
        match change:
            case Cluster():
                self.cluster = change
            case NodeConfig():
                self.nodes[change.node] = change
            case Member():
                before = self.members.get(change.node)
                if before is None or (before.state, before.incarnation) != (change.state, change.incarnation):
                    self.epoch = index
                self.members[change.node] = change
            case Transition():
                self.transitions[change.identity] = change
            case Service():
                self.services[change.name] = change
            case Operation():
                self.operations[change.identity] = change
                while len(self.operations) > most_operations(self.cluster):
                    del self.operations[next(iter(self.operations))]
            case Maintenance():
                self.maintenance[change.key] = change
            case Standby():
                self.standby[change.node] = change
            case EventGroup():
                self.event_groups[change.name] = change
            case Audit():
                self.audit[change.number] = change
            case Revision():
                self.revisions[change.version] = change
            case Forget():
                self._forget(change)
            case _:
                raise ValueError(f"nothing known about {change}")

    def _forget(self, change: Forget) -> None:
        match change.kind:
            case "event_group":
                self.event_groups.pop(change.key, None)
            case "transition":
                self.transitions.pop(int(change.key), None)
            case "service":
                self.services.pop(change.key, None)
            case "maintenance":
                self.maintenance.pop(change.key, None)
            case "standby":
                self.standby.pop(int(change.key), None)
            case "audit":
                self.audit.pop(int(change.key), None)
            case "revision":
                self.revisions.pop(int(change.key), None)
            case "operation":
                self.operations.pop(change.key, None)
            case "node":
                self.nodes.pop(int(change.key), None)
                self.members.pop(int(change.key), None)
            case _:
                raise ValueError(f"nothing known about {change}")

    def name_of(self, node: int) -> str:
        """The configured name of `node`, or its number in words."""
        config = self.nodes.get(node)
        return config.name if config else f"node {node}"

    def node_named(self, name: str) -> int | None:
        """The id of the node called `name`."""
        return next((config.node for config in self.nodes.values() if config.name == name), None)

    @property
    def version(self) -> int:
        """The version of the configuration (SPEC 9.3)."""
        return max(self.revisions, default=0)

    def member(self, node: int) -> Member:
        """The membership state of `node`; an inactive one where none is recorded."""
        return self.members.get(node) or Member(node)


_entry_decoder = msgspec.msgpack.Decoder(Entry)
_database_decoder = msgspec.msgpack.Decoder(Database)
_encoder = msgspec.msgpack.Encoder()


def encode_entry(entry: Entry) -> bytes:
    """The bytes of an entry in the journal."""
    return _encoder.encode(entry)


def decode_entry(data: bytes) -> Entry:
    """Inverse of `encode_entry`. Raises `msgspec.DecodeError`."""
    return _entry_decoder.decode(data)


def encode_database(database: Database) -> bytes:
    """The bytes of a checkpoint or a snapshot."""
    return _encoder.encode(database)


def decode_database(data: bytes) -> Database:
    """Inverse of `encode_database`. Raises `msgspec.DecodeError`."""
    return _database_decoder.decode(data)


def initial_database(cluster: Cluster, nodes: tuple[NodeConfig, ...]) -> Database:
    """The database that `muster init` writes as the first checkpoint, at index 0."""
    return Database(cluster=cluster, nodes={config.node: config for config in nodes})
