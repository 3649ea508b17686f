"""The replicated database: the records that the master commits and every node holds a copy of (SPEC 1.3).

An `Entry` carries whole new versions of the records it changes, never instructions: applying one needs no rule, so
nodes of two releases can never apply the same entry differently (SPEC 9.2). New fields go to the end, with a default.
"""

import hashlib
from enum import IntEnum
from typing import NamedTuple

import msgspec
from msgspec import Struct, field

from muster.records.access import Groups
from muster.records.events import EventGroup
from muster.records.numbers import Count
from muster.records.registers import ProofKind, identity_of
from muster.records.terms import NO_NODE, NO_TERM, Term
from muster.records.versions import KERNELS_WORD, LOWEST, Software


class NodeState(IntEnum):
    """SPEC 3.1. `SILENT` is no state of a member: what a level is told of one that nobody waits for (P4.8)."""

    INACTIVE = 0
    JOINING = 1
    JOINED = 2
    LEAVING = 3
    FORCED_LEAVING = 4
    SILENT = 5

    def __str__(self) -> str:
        return _NODE_STATES[self]


# A notification spells the state of every node, once for each subsystem and transition: too often to build the words.
_NODE_STATES = {state: state.name.lower().replace("_", "-") for state in NodeState}


class TransitionKind(IntEnum):
    """SPEC 3.2. The values are those of the node state that a transition gives its node."""

    JOINING = NodeState.JOINING
    LEAVING = NodeState.LEAVING
    FORCED_LEAVING = NodeState.FORCED_LEAVING

    def __str__(self) -> str:
        return _NODE_STATES[self.value]


class Barriers(NamedTuple):
    """Number of barriers of one level for each type of transition (SPEC 3.2); at least one each."""

    joining: int = 1
    leaving: int = 1
    forced_leaving: int = 1


class Level(NamedTuple):
    """A registered subsystem: its place in the global transition order, its name, its barriers (SPEC 3.2).

    One that has not acknowledged within `deadline_ms` (0: never) is hung; `evicts` is the level's policy then: force
    its node out, or else wait and alert (SPEC 3.13). One that `vetoes` is asked before a planned change.
    `registration` tells it from others of its number before it on the same incarnation; it grows (P3.13).
    """

    number: Count
    name: str
    barriers: Barriers = Barriers()
    deadline_ms: Count = 0
    evicts: bool = False
    vetoes: bool = False
    registration: Count = 0

    @property
    def identity(self) -> tuple[int, int]:
        """What tells it from every other registration on one incarnation of a node (P3.13)."""
        return self.number, self.registration


class Required(NamedTuple):
    """A level that a node must have before it joins (P3.17); `name` of the program, empty: any."""

    number: Count
    name: str = ""


class Missing(NamedTuple):
    """A required level that a node has not registered; `found`: another program has, where the name is required."""

    number: Count
    name: str = ""
    found: str = ""


class Waits(NamedTuple):
    """An incarnation whose join is not opened, since entry `since`: these required levels are missing (P3.17)."""

    incarnation: Count
    since: Count
    missing: tuple[Missing, ...]


class Gone(NamedTuple):
    """A registration that has gone, and whose level has not been told yet (P3.15).

    `forced`: its program has ended or was lost; else it went by its own wish.
    """

    level: Level
    forced: bool


MEMBERSHIP_LEVEL = Level(0, "membership")
EVENT_MANAGER_LEVEL = Level(40, "event manager")


class Proof(Struct, frozen=True, array_like=True):
    """Proof of death of one incarnation; `detail` is the evidence in words."""

    kind: ProofKind
    node: int
    incarnation: int
    detail: str = ""


class Rotation(IntEnum):
    """How far the replacement of the cluster's authority has come (P1.7)."""

    NONE = 0
    TRUSTING = 1  # the incoming authority is committed; every member must have heard of it
    CERTIFYING = 2  # the master issues every node's certificate anew
    SETTLING = 3  # every member must have heard of its new certificate; then the old authority goes

    def __str__(self) -> str:
        return self.name.lower()


DEFAULT_CERTIFICATE_LIFETIME_S = 365 * 24 * 3600
DEFAULT_REQUIRED_WITHIN_MS = 60_000


def fingerprint(pem: str) -> str:
    """A short name of a certificate, from its PEM text."""
    return hashlib.sha256(pem.encode()).hexdigest()[:32]


class Cluster(Struct, frozen=True, array_like=True, tag="cluster"):
    """What the whole cluster shares (SPEC 1.3 a)."""

    name: str
    identity: str  # 32 hexadecimal digits, never reused
    profile: str
    authority: str  # PEM certificate of the cluster's authority
    timers: tuple[tuple[str, int], ...] = ()  # those of the profile's timers that are set otherwise (SPEC 7.6)
    incoming: str = ""  # PEM certificate of the authority that is about to replace it; empty where none is
    rotation: Rotation = Rotation.NONE
    rotation_index: int = 0  # of the entry that every member must have applied before the rotation's next step
    certificate_lifetime_s: int = DEFAULT_CERTIFICATE_LIFETIME_S  # of a node's certificate; renewed before its end
    active_version: int = LOWEST  # of what is sent and written; raised by `muster upgrade finish` (P10.1)
    groups: Groups = Groups()
    required_levels: tuple[Required, ...] = ()  # that a node must have before it joins; of version 3 (P3.17)
    required_within_ms: Count = DEFAULT_REQUIRED_WITHIN_MS  # after so long without them an alarm is raised


class Enrolment(Struct, frozen=True, array_like=True):
    """A one-time token that a machine may become this node with: its verifier, never the token itself (P1.4)."""

    verifier: str  # SHA-256 of the token, hexadecimal
    expires_s: int  # seconds since 1970, by the clock of the node that is asked


class NodeConfig(Struct, frozen=True, array_like=True, tag="node"):
    """Persistent configuration of one node (SPEC 1.3 a). `addresses` are HOST:PORT.

    `generation` is the index of the entry that added it (0: `muster init`), so that a slot used again holds another
    node (SPEC 9.1).
    """

    node: int
    name: str
    addresses: tuple[str, ...]
    certificate: str  # PEM; empty until the node is enrolled. Peers accept its public key, and no other (P1.1)
    generation: int = 0
    enrolment: Enrolment | None = None
    issuer: str = ""  # fingerprint of the authority that issued the certificate; empty: the one of `muster init`
    required_levels: tuple[Required, ...] | None = None  # in place of the cluster's; None: those of the cluster (P3.17)


class Eviction(Struct, frozen=True, array_like=True):
    """A committed decision to force an incarnation out, not yet proven dead: the reason of its mark (SPEC 7.2).

    `silent`: its lease has run out as well, so nobody waits for it any more (P4.7).
    """

    incarnation: int
    cause: str
    silent: bool = False


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
    software: Software = Software()  # of its last incarnation, as it last said
    restart_asked: int = 0  # index of the entry that asked its daemon to be started anew (P10.3)
    vouched_clean: int = 0  # an operator says that up to this incarnation nothing is left in its machine (P6.33)
    by_level: bool = False  # `inside` says who knows of it; False: of a version that told every level of every node
    inside: tuple[int, ...] = ()  # the levels that know of it: told of its join, not of its end (P3.14)
    gone: tuple[Gone, ...] = ()  # registrations that are to be taken out of their levels (P3.15)
    required: tuple[Count, ...] = ()  # the levels that were required as its join was opened (P3.17)
    waits: Waits | None = None  # for required levels, before its join is opened


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
    late: bool = False  # not the node's own, but that of one of its levels alone, which came or went (SPEC 3.2, 3.10)

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


class Definition(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A service as its administrator defined it (SPEC 6.2, 6.5, 6.6). Commands are argument lists; empty means none.

    The name of an instance of a service that is placed on all nodes is that of the service, `@` and its node's.
    """

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
    unordered: tuple[str, ...] = ()  # node_preferences.unordered, decided by recent performance
    on_all: bool = False  # placement_policy: register_on_all
    maturity_count: int = 0  # allowable nodes that must be up; 0: no such condition (SPEC 6.3)
    maturity_time_ms: int = 0  # 0: no such condition
    free_transfer: bool = False  # transfer_cost: free (SPEC 6.8)
    parent: str = ""  # of a group: this service goes where that one goes (SPEC 6.5)
    siblings: int = 0  # children of this service that start or stop at a time; 0: all at once
    child_failure: str = "alone"  # or "group": a child that cannot start here moves the whole group
    notify_command: tuple[str, ...] = ()
    notify_timeout_ms: int = 60_000
    start_retries: int = 0  # on the same node, before the command counts as failed
    stop_retries: int = 0
    recovery_retries: int = 0
    notify_retries: int = 0
    retry_pause_ms: int = 1000
    environment: tuple[tuple[str, str], ...] = ()  # beside what Muster itself gives to every command
    stop_failure: str = "block"  # or "evict": force the node out (SPEC 6.6)
    grace_ms: int = 5000  # between SIGTERM and SIGKILL for what a command left running, or for `run`
    run: tuple[str, ...] = ()  # a long-running program that Muster supervises, in place of a start command
    ready_command: tuple[str, ...] = ()  # `run` is ready when this succeeds,
    ready_port: int = 0  # when this TCP port of the loopback address accepts,
    ready_file: str = ""  # when this file exists,
    ready_notify: bool = False  # when the program says READY=1 (sd_notify)
    check_command: tuple[str, ...] = ()  # monitors the service while it is registered (SPEC 5.4)
    check_interval_ms: int = 10_000
    check_timeout_ms: int = 10_000
    check_failures: int = 1  # so many failures
    check_of: int = 1  # of so many checks are an occurrence
    restarts: int = 3  # in place, within the window, before the service is moved
    restart_window_ms: int = 600_000
    on_failure: tuple[str, ...] = ()  # action function in place of the failure policy (SPEC 5.4)
    cleanup_command: tuple[str, ...] = ()  # clears what it leaves in its machine's kernel (P6.32); of version 3
    cleanup_timeout_ms: int = 60_000
    cleanup_retries: int = 0


class Unclean(NamedTuple):
    """Where a service may have left something in the machine's kernel: nothing of it runs there any more (P6.32)."""

    node: int
    incarnation: int


class Exhausted(NamedTuple):
    """A node on which a service failed more often than its policy allows, and the entry that says so (SPEC 5.4)."""

    node: int
    entry: int


class Takeover(NamedTuple):
    """A free transfer: the entry that began it, and to whom (SPEC 6.8). Entry 0: none was begun, and none is to be."""

    entry: int
    node: int
    incarnation: int


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
    launched: bool = False  # a start command given on `node` may have left something, whatever is defined by now
    waits_since: int = 0  # index of the entry that began its wait for maturity; 0: it does not wait (SPEC 6.3)
    matured: bool = False  # the wait for this registration is over
    broken: str = ""  # how it failed where it is registered, until that is acted upon (SPEC 5.4)
    failures: tuple[int, ...] = ()  # indices of the entries that recorded its failures, within its window
    exhausted: tuple[Exhausted, ...] = ()  # where its failure policy has given it up (SPEC 5.4)
    takeovers: tuple[Takeover, ...] = ()  # the recent free transfers (SPEC 6.8)
    since: int = 0  # index of the entry that gave it its present state
    template: str = ""  # name of the service that this is an instance of, placed on one node of all (SPEC 6.2)
    owes: bool = False  # where it is, its start was given a cleanup command, and it may have left something (P6.32)
    cleaning: bool = False  # its present stop is that cleanup, after a start or a stop that failed
    unclean: Unclean | None = None  # where it was lost, until that machine is known to be clean of it

    @property
    def name(self) -> str:
        """The name in its definition, unique in the cluster."""
        return self.definition.name

    @property
    def identity(self) -> int:
        """What stands for it in a register (P6.33)."""
        return identity_of(self.uid, self.definition.name)


class Maintenance(Struct, frozen=True, array_like=True, tag="maintenance"):
    """Muster leaves its subject alone: nothing is started, moved or restarted of its own accord.

    `kind` is `cluster`, `node` or `service`; `subject` the name of the node or service, empty for the cluster.
    """

    kind: str
    subject: str
    since: int  # index of the entry that began it
    duration_ms: int = 0  # 0: until it is ended
    cause: str = ""

    @property
    def key(self) -> str:
        """Unique in the cluster."""
        return f"{self.kind}/{self.subject}"


class Standby(Struct, frozen=True, array_like=True, tag="standby"):
    """A member that gets no services; those that it has are moved away if they can run elsewhere."""

    node: int
    since: int  # index of the entry that began it
    duration_ms: int = 0  # 0: until it is ended
    cause: str = ""


class Operation(Struct, frozen=True, array_like=True, tag="operation"):
    """An operation that was carried out, so that a retried one does not run twice (SPEC 9.1)."""

    identity: str
    index: int
    outcome: str  # in words
    refused: bool = False
    asked: str = ""  # digest of what was asked for (`operations.digest_of`); empty in entries of older releases


class Audit(Struct, frozen=True, array_like=True, tag="audit"):
    """One change that somebody asked for: who, in which role, where, when, what became of it. No secrets."""

    number: int
    index: int
    at_ms: int  # by the wall clock of the node that was asked
    uid: int
    user: str
    role: int
    node: str  # that was asked
    operation: str
    subject: str
    outcome: str


class Revision(Struct, frozen=True, array_like=True, tag="revision"):
    """One version of the configuration (SPEC 9.3), kept as what it takes to undo it."""

    version: int  # 1, 2, ...; 0 is what `muster init` made
    index: int
    at_ms: int
    uid: int
    user: str
    node: str
    what: str
    undo: bytes = b""  # packed, see `core/versions/revisions.py`
    whole: bool = True  # False: what undoes it was too large to keep, so no version below it can be shown


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
