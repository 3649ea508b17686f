"""The replicated database: the records that the master commits and every node holds a copy of (SPEC 1.3).

An `Entry` carries whole new versions of the records it changes, never instructions, so nodes of two releases can never
apply the same entry differently (SPEC 9.2). How one is applied is in `core/entries.py`. New fields go to the end, with
a default. Each kind of record is in the file of its subject.
"""

import msgspec
from msgspec import Struct, field

from muster.records.configuration import Audit, Operation, Revision
from muster.records.deciders import Decider, Grant
from muster.records.events import EventGroup
from muster.records.fencing import FenceDevice, FencePlan, Fencing
from muster.records.kinds import Kind, Record, check_tables, kind_of
from muster.records.members import Member
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import Maintenance, Service, Standby
from muster.records.terms import NO_TERM, Term
from muster.records.transitions import Transition


class Forget(Struct, frozen=True, array_like=True, tag="forget"):
    """Removal of a record: `kind` is the tag of its type, `key` its key as text."""

    kind: str
    key: str


Change = Record | Forget


class Entry(Struct, frozen=True, array_like=True):
    """One committed change of the database."""

    index: int
    term: Term
    cause: str  # the stimulus, for logs and the history (SPEC 9.4)
    changes: tuple[Change, ...]
    grant: Grant | None = None  # by which services were decided on, if anything was; None: by none, the master's own


MAXIMUM_LINEAGE = 32


class Database(Struct):
    """One copy of the replicated database, at commit index `index`. Changed entry by entry (`core/entries.py`)."""

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
    fence_devices: dict[str, FenceDevice] = field(default_factory=dict)
    fence_plans: dict[int, FencePlan] = field(default_factory=dict)
    fencing: dict[int, Fencing] = field(default_factory=dict)
    deciders: dict[str, Decider] = field(default_factory=dict)

    def term_at(self, index: int) -> Term | None:
        """The term that committed entry `index`; None where this database does not know it."""
        if index == self.index:
            return self.term
        return next((term for term, first in reversed(self.lineage) if first <= index < self.index), None)

    def put(self, record: Record) -> None:
        """Hold this record, in the place of the one that it replaces."""
        kind = kind_of(record)
        if kind.key is None:
            setattr(self, kind.table, record)
        else:
            getattr(self, kind.table)[kind.key_of(record)] = record

    def forget(self, kind: Kind, key: str) -> None:
        """Hold no such record any more."""
        getattr(self, kind.table).pop(kind.key_in(key), None)

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


check_tables(Database)

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
