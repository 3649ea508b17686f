"""The replicated database: the records that the master commits and every node holds a copy of (SPEC 1.3).

An `Entry` carries whole new versions of the records it changes, never instructions: applying one needs no rule, so
nodes of two releases can never apply the same entry differently (SPEC 9.2). New fields go to the end, with a default.
"""

from enum import IntEnum
from typing import NamedTuple

import msgspec
from msgspec import Struct, field

from muster.records.registers import ProofKind
from muster.records.terms import NO_NODE, NO_TERM, Term


class NodeState(IntEnum):
    """SPEC 3.1."""

    INACTIVE = 0
    JOINING = 1
    JOINED = 2
    LEAVING = 3
    FORCED_LEAVING = 4

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


class TransitionKind(IntEnum):
    """SPEC 3.2. The values are those of the node state that a transition gives its node."""

    JOINING = NodeState.JOINING
    LEAVING = NodeState.LEAVING
    FORCED_LEAVING = NodeState.FORCED_LEAVING

    def __str__(self) -> str:
        return str(NodeState(self.value))


class Barriers(NamedTuple):
    """Number of barriers of one level for each type of transition (SPEC 3.2); at least one each."""

    joining: int = 1
    leaving: int = 1
    forced_leaving: int = 1


class Level(NamedTuple):
    """A registered subsystem: its place in the global transition order, its name, its barriers (SPEC 3.2).

    One that has not acknowledged within `deadline_ms` (0: never) is hung; `evicts` is the level's policy then: force
    its node out, or else wait and alert (SPEC 3.13). One that `vetoes` is asked before a planned change.
    """

    number: int
    name: str
    barriers: Barriers = Barriers()
    deadline_ms: int = 0
    evicts: bool = False
    vetoes: bool = False


MEMBERSHIP_LEVEL = Level(0, "membership")
EVENT_MANAGER_LEVEL = Level(40, "event manager")


class Proof(Struct, frozen=True, array_like=True):
    """Proof of death of one incarnation; `detail` is the evidence in words."""

    kind: ProofKind
    node: int
    incarnation: int
    detail: str = ""


class Cluster(Struct, frozen=True, array_like=True, tag="cluster"):
    """What the whole cluster shares (SPEC 1.3 a)."""

    name: str
    identity: str  # 32 hexadecimal digits, never reused
    profile: str
    authority: str  # PEM certificate of the cluster's authority


class NodeConfig(Struct, frozen=True, array_like=True, tag="node"):
    """Persistent configuration of one node (SPEC 1.3 a). `addresses` are HOST:PORT."""

    node: int
    name: str
    addresses: tuple[str, ...]
    certificate: str  # PEM


class Eviction(Struct, frozen=True, array_like=True):
    """A committed decision to force an incarnation out, not yet proven dead: the reason of its mark (SPEC 7.2)."""

    incarnation: int
    cause: str


class Member(Struct, frozen=True, array_like=True, tag="member"):
    """Transient membership state of one node (SPEC 1.3 b)."""

    node: int
    state: NodeState = NodeState.INACTIVE
    incarnation: int = 0
    levels: tuple[Level, ...] = ()
    told_level: int = 0  # highest level that was ever told of this incarnation's join (SPEC 3.9)
    eviction: Eviction | None = None
    last_proof: Proof | None = None  # of the last incarnation that was forced out
    refusal: str = ""  # why the last request to join, or to register a level, was refused
    leave_asked: str = ""  # a leave asked for while joining, and why: the join turns at the next level (SPEC 3.7)


class Transition(Struct, frozen=True, array_like=True, tag="transition"):
    """One node's transition at its current level and barrier (SPEC 3.4). Identities are unique and grow."""

    identity: int
    node: int
    incarnation: int
    kind: TransitionKind
    levels: tuple[int, ...]  # in the order in which they are taken
    position: int = 0  # index into `levels`
    barrier: int = 0
    participants: tuple[int, ...] = ()  # who must acknowledge (level, barrier); shrinks when one is forced out
    cause: str = ""
    barriers: int = 1  # of the level at work
    awaits: int = 0  # level that the joining node itself must register before its join goes on (SPEC 3.10)
    late: bool = False  # not the node's join, but that of levels which it registered after it had joined (SPEC 3.10)

    @property
    def level(self) -> int:
        """The level at work; 0 before the first."""
        return self.levels[self.position] if 0 <= self.position < len(self.levels) else 0


class ServiceState(IntEnum):
    """SPEC 6.7."""

    DEREGISTERED = 0
    STARTING = 1
    REGISTERED = 2
    STOPPING = 3
    RECOVERING = 4

    def __str__(self) -> str:
        return "de-registered" if self is ServiceState.DEREGISTERED else self.name.lower()


class Definition(Struct, frozen=True, forbid_unknown_fields=True):
    """A service as its administrator defined it (SPEC 6.2, 6.6). Commands are argument lists; empty means none."""

    name: str
    allowable_nodes: tuple[str, ...] = ("*",)
    disallowable_nodes: tuple[str, ...] = ()
    ordered: tuple[str, ...] = ()  # node_preferences.ordered, highest rank first
    auto_register: bool = True
    start_command: tuple[str, ...] = ()
    stop_command: tuple[str, ...] = ()
    recovery_command: tuple[str, ...] = ()
    start_timeout_ms: int = 60_000
    stop_timeout_ms: int = 60_000
    recovery_timeout_ms: int = 60_000


class Service(Struct, frozen=True, array_like=True, tag="service"):
    """A service and its state (SPEC 6.7). `generation` is the index of the entry that gave its last command (7.7)."""

    definition: Definition
    uid: int  # index of the entry that first defined it; never reused (SPEC 9.1)
    state: ServiceState = ServiceState.DEREGISTERED
    wanted: bool = False  # it should run: registered by `auto` or by an operator
    node: int = NO_NODE  # where it is starting, registered, stopping or recovering
    incarnation: int = 0  # of that node
    generation: int = 0
    intent: bool = False  # transfer intent
    origin: int = NO_NODE  # node that the transfer in progress leaves
    target: int = NO_NODE  # node that an operator asked for; one-shot
    failed: tuple[int, ...] = ()  # nodes whose start or recovery failed in this round
    previous: int = NO_NODE  # node it last ran or started on
    reason: str = ""  # why the last command was given; in the command's environment
    cause: str = ""  # why it is stuck, in words; empty when it is not
    removed: bool = False  # its definition was withdrawn: forget it once it is de-registered
    launched: bool = False  # a start command of it has been given on `node`, whatever its definition says by now

    @property
    def name(self) -> str:
        """The name in its definition, unique in the cluster."""
        return self.definition.name


class Operation(Struct, frozen=True, array_like=True, tag="operation"):
    """An operation that was carried out, so that a retried one does not run twice (SPEC 9.1)."""

    identity: str
    index: int
    outcome: str  # in words
    refused: bool = False


class Forget(Struct, frozen=True, array_like=True, tag="forget"):
    """Removal of a record: `kind` is the tag of its type, `key` its key as text."""

    kind: str
    key: str


Change = Cluster | NodeConfig | Member | Transition | Service | Operation | Forget


class Entry(Struct, frozen=True, array_like=True):
    """One committed change of the database."""

    index: int
    term: Term
    cause: str  # the stimulus, for logs and the history (SPEC 9.4)
    changes: tuple[Change, ...]


MAXIMUM_OPERATIONS = 512


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

    def apply(self, entry: Entry) -> None:
        """Apply the next committed entry. Raises `ValueError` if it is not the next one."""
        if entry.index != self.index + 1:
            raise ValueError(f"entry {entry.index} does not follow index {self.index}")
        for change in entry.changes:
            self._apply(change, entry.index)
        self.index, self.term = entry.index, entry.term

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
                while len(self.operations) > MAXIMUM_OPERATIONS:
                    del self.operations[next(iter(self.operations))]
            case Forget(kind="transition"):
                self.transitions.pop(int(change.key), None)
            case Forget(kind="service"):
                self.services.pop(change.key, None)
            case Forget(kind="node"):
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
