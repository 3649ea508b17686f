"""What nodes say to each other on the interconnect (SPEC 1.6). Compact MessagePack arrays from this schema.

Every message is idempotent and carries the term it belongs to (SPEC 2.5); losing, repeating or reordering any of them
only delays. New fields go to the end, with a default.
"""

import msgspec
from msgspec import Struct

from muster.records.access import Author
from muster.records.events import GroupDefinition
from muster.records.state import Definition, Entry, Level
from muster.records.terms import NO_TERM, Term
from muster.records.versions import HIGHEST, LOWEST, VERSIONS, Software

WIRE_VERSIONS = VERSIONS  # lowest and highest version of this schema that this release understands
MAXIMUM_FRAME_BYTES = 32 * 1024 * 1024


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """First frame of a connection, both ways: who speaks, and what it understands (SPEC 9.2)."""

    cluster: str
    node: int
    incarnation: int
    lowest_version: int
    highest_version: int


class Heartbeat(Struct, frozen=True, array_like=True, tag=2):
    """I am here, at this term and commit index. A master adds who holds up which transition (SPEC 3.13)."""

    incarnation: int
    term: Term
    index: int
    waiting: tuple[tuple[int, tuple[int, ...]], ...] = ()
    store_lost_ms: int = 0  # for how long the sender has not been able to read the store (SPEC 7.5)


class Append(Struct, frozen=True, array_like=True, tag=3):
    """Master to all: entries that follow `previous_index`, all of them committed (SPEC 2.6)."""

    term: Term
    previous_index: int
    entries: tuple[Entry, ...]


class Snapshot(Struct, frozen=True, array_like=True, tag=4):
    """Master to one: the whole database; first message of a term, and the answer to a gap."""

    term: Term
    database: bytes
    ages: tuple[tuple[int, int], ...] = ()  # index -> how long ago it was committed (ms), where a record counts from it


class Acknowledgement(Struct, frozen=True, array_like=True):
    """A subsystem has processed one barrier of a notification (SPEC 3.4)."""

    transition: int
    level: int
    barrier: int


class CommandState(Struct, frozen=True, array_like=True):
    """What became of the command of one generation of a service on this node (SPEC 7.7)."""

    service: str
    generation: int
    action: str
    finished: bool
    succeeded: bool = False
    detail: str = ""
    left: bool = True  # of a start: something of it may run still; False only where that is known not to be so


class Performance(Struct, frozen=True, array_like=True):
    """How busy a node has been of late, smoothed; each in thousandths of what it has (SPEC 6.2)."""

    cpu: int = 0
    memory: int = 0
    pressure: int = 0  # share of time in which something waited for CPU, memory or I/O


class Report(Struct, frozen=True, array_like=True, tag=5):
    """Node to master: everything the master needs to know of this node, whole and idempotent.

    `term` is the highest term that the node has accepted a snapshot of: from then on it refuses lower ones, so this
    acknowledges the term, and `commands` is its inventory (SPEC 7.7). `wish` is `join`, `leave` or nothing.
    """

    term: Term
    index: int
    incarnation: int
    wish: str
    levels: tuple[Level, ...]
    acknowledgements: tuple[Acknowledgement, ...] = ()
    commands: tuple[CommandState, ...] = ()
    sent_us: int = 0  # the sender's clock: an older report of the same incarnation says nothing (SPEC 2.5)
    performance: Performance | None = None
    software: Software = Software(1, 1)  # a release that does not say understands version 1 only
    keys: tuple[str, ...] | None = None  # fingerprints of the authorities whose key it holds; None: it does not say


class ApplyServices(Struct, frozen=True, array_like=True, tag="apply"):
    """Define or change services; `withdraw` names services whose definition goes."""

    definitions: tuple[Definition, ...]
    withdraw: tuple[str, ...] = ()
    expect: int = -1  # version of the configuration that this was made from; another one there refuses it (SPEC 9.3)


class RegisterService(Struct, frozen=True, array_like=True, tag="register"):
    """An operator wants the service to run (SPEC 6.9)."""

    service: str


class DeregisterService(Struct, frozen=True, array_like=True, tag="deregister"):
    """An operator wants the service down until it is registered again (SPEC 6.2)."""

    service: str


class TransferService(Struct, frozen=True, array_like=True, tag="transfer"):
    """An operator moves the service, to `target` if given by name, once (SPEC 6.8)."""

    service: str
    target: str = ""
    override: bool = False  # of what subsystems object


class LeaveNode(Struct, frozen=True, array_like=True, tag="leave"):
    """Graceful leave of a node (SPEC 3.4)."""

    node: str
    override: bool = False  # of what subsystems object


class EvictNode(Struct, frozen=True, array_like=True, tag="evict"):
    """Force a node out. `confirmed_dead`: the operator vouches that it has stopped (SPEC 7.1)."""

    node: str
    cause: str
    confirmed_dead: bool = False


class FailService(Struct, frozen=True, array_like=True, tag="fail"):
    """The service of this generation has failed where it is registered: let its failure policy decide (SPEC 5.4).

    A generation that is not the present one is late and changes nothing; 0 stands for the present one.
    """

    service: str
    detail: str
    generation: int = 0


class RestartService(Struct, frozen=True, array_like=True, tag="restart"):
    """Stop the service and start it again on the node where it is; what counts as failures is not touched."""

    service: str
    cause: str = ""


class ClearService(Struct, frozen=True, array_like=True, tag="clear"):
    """Forget why a service is stuck and how often it failed: it is placed again if it is wanted."""

    service: str


class SetMaintenance(Struct, frozen=True, array_like=True, tag="maintain"):
    """Begin (or, with `end`, end) maintenance of `kind` `cluster`, `node` or `service`; 0 ms: without expiry."""

    kind: str
    subject: str = ""
    duration_ms: int = 0
    cause: str = ""
    end: bool = False


class SetStandby(Struct, frozen=True, array_like=True, tag="standby"):
    """Begin (or, with `end`, end) the standby of a node: its services are moved away, it gets none."""

    node: str
    duration_ms: int = 0
    cause: str = ""
    end: bool = False


class ApplyEvents(Struct, frozen=True, array_like=True, tag="events"):
    """Define or change event groups; `withdraw` names groups whose definition goes (SPEC 5.3).

    `expect`: the version of the configuration that it was made from; -1: whatever it is.
    """

    groups: tuple[GroupDefinition, ...]
    withdraw: tuple[str, ...] = ()
    expect: int = -1


class EnableEvents(Struct, frozen=True, array_like=True, tag="enable"):
    """Enable a group by hand, or disable it; it stays so until told otherwise."""

    group: str
    enabled: bool


class AddNode(Struct, frozen=True, array_like=True, tag="add_node"):
    """Configure a new node, and allow the machine that knows the token of `verifier` to become it (P1.2, P1.4)."""

    node: str
    addresses: tuple[str, ...]
    verifier: str
    expires_s: int


class RemoveNode(Struct, frozen=True, array_like=True, tag="remove_node"):
    """Forget a node that is no member and does not run (P1.3)."""

    node: str


class IssueToken(Struct, frozen=True, array_like=True, tag="issue_token"):
    """A new token for a configured node that does not run: it may be enrolled anew (P1.4)."""

    node: str
    verifier: str
    expires_s: int


class EnrolNode(Struct, frozen=True, array_like=True, tag="enrol_node"):
    """A member has checked the token and signed the certificate: use the token up (P1.4). Nodes only ask for it."""

    node: int
    generation: int
    verifier: str
    certificate: str
    issuer: str


class Certified(Struct, frozen=True, array_like=True):
    """A new certificate in place of the one with fingerprint `replaces`, of the same key."""

    node: int
    generation: int
    replaces: str
    certificate: str


class CertifyNodes(Struct, frozen=True, array_like=True, tag="certify_nodes"):
    """Certificates issued anew: renewed before they expire, or by the incoming authority (P1.6, P1.7)."""

    certificates: tuple[Certified, ...]
    issuer: str


class RotateAuthority(Struct, frozen=True, array_like=True, tag="rotate_authority"):
    """Begin to replace the authority by the one in `incoming` (PEM), whose key the asking node holds (P1.7).

    `restart`: also where another one is on its way already.
    """

    incoming: str
    restart: bool = False


class AbandonRotation(Struct, frozen=True, array_like=True, tag="abandon_rotation"):
    """Give a rotation up, as long as no certificate of the incoming authority is in use (P1.7)."""


class RollBack(Struct, frozen=True, array_like=True, tag="roll_back"):
    """Give services and settings the definitions they had at `version` of the configuration (SPEC 9.3)."""

    version: int
    expect: int = -1


class ConfigureCluster(Struct, frozen=True, array_like=True, tag="configure"):
    """Change one setting of the cluster (`core/revisions.py` lists them)."""

    setting: str
    value: str
    expect: int = -1


class FinishUpgrade(Struct, frozen=True, array_like=True, tag="finish_upgrade"):
    """Make `version` the active one; refused while a configured node cannot (SPEC 9.2, P10.1).

    `despite_unknown`: also where a node has never said what it runs; it may join only with a release that can.
    """

    version: int
    despite_unknown: bool = False


class RestartDaemon(Struct, frozen=True, array_like=True, tag="restart_daemon"):
    """Have the daemon of a member end and be started again, from what is installed now (P10.3)."""

    node: str


OperationRequest = (
    ApplyServices
    | RegisterService
    | DeregisterService
    | TransferService
    | LeaveNode
    | EvictNode
    | FailService
    | RestartService
    | ClearService
    | SetMaintenance
    | SetStandby
    | ApplyEvents
    | EnableEvents
    | AddNode
    | RemoveNode
    | IssueToken
    | EnrolNode
    | CertifyNodes
    | RotateAuthority
    | AbandonRotation
    | RollBack
    | ConfigureCluster
    | FinishUpgrade
    | RestartDaemon
)


class Request(Struct, frozen=True, array_like=True, tag=6):
    """An operation on its way to the master; `identity` makes a retry harmless (SPEC 9.1)."""

    identity: str
    operation: OperationRequest
    author: Author = Author()


class Response(Struct, frozen=True, array_like=True, tag=7):
    """The master's answer; `index` is the commit index it reflects."""

    identity: str
    term: Term
    index: int
    refused: bool
    outcome: str


class Abdicated(Struct, frozen=True, array_like=True, tag=8):
    """The master has withdrawn its claim: a successor need not wait for its next read of the store."""

    term: Term = NO_TERM


class Ask(Struct, frozen=True, array_like=True, tag=9):
    """Master to a node: do its subsystems object to this planned change?"""

    identity: str
    operation: OperationRequest


class Verdict(Struct, frozen=True, array_like=True, tag=10):
    """Answer to `Ask`: what they object, in words; nothing is consent."""

    identity: str
    objections: tuple[str, ...]


class Happened(Struct, frozen=True, array_like=True):
    """An event in one node's record of its transitions (SPEC 8.2), and where in which transition it belongs."""

    at_us: int  # by the clock of the node that recorded it: comparable with its own only
    event: str
    detail: str
    term: Term
    index: int  # of the entry that it is part of, or else of the replica when it happened
    committed: bool = False  # part of an entry: every node that applied it one by one has recorded the same
    transition: int = 0
    level: int = -1
    barrier: int = -1
    about: int = -1  # the node whose transition it is, or that it is evidence about
    kind: int = 0
    nodes: tuple[int, ...] = ()
    successor: int = 0


class HistoryRequest(Struct, frozen=True, array_like=True, tag=11):
    """Node to node: what have you recorded of this transition? 0: when did which begin and end?"""

    identity: str
    transition: int = 0


class HistoryAnswer(Struct, frozen=True, array_like=True, tag=12):
    """What a node has recorded; `omitted` is the number of events that its record had no room for."""

    identity: str
    now_us: int
    happened: tuple[Happened, ...]
    omitted: int = 0


class KeyRequest(Struct, frozen=True, array_like=True, tag=13):
    """Node to node: do you hold the private key of the authority with this fingerprint? (P1.5)"""

    authority: str


class KeyAnswer(Struct, frozen=True, array_like=True, tag=14):
    """The private key, for the asking node's home only. Never logged, never in the store (P1.5)."""

    authority: str
    key_pem: str


class LocalQuestion(Struct, frozen=True, array_like=True, tag=20):
    """Node to node: what do you yourself know of this? See `daemon/gathering.py`."""

    identity: str
    question: str
    subject: str = ""


class LocalAnswer(Struct, frozen=True, array_like=True, tag=21):
    """Answer to `LocalQuestion`: a JSON object."""

    identity: str
    document: bytes


Message = (
    Hello
    | Heartbeat
    | Append
    | Snapshot
    | Report
    | Request
    | Response
    | Abdicated
    | Ask
    | Verdict
    | HistoryRequest
    | HistoryAnswer
    | KeyRequest
    | KeyAnswer
    | LocalQuestion
    | LocalAnswer
)

_OF_VERSION_1 = (
    *(Hello, Heartbeat, Append, Snapshot, Report, Request, Response, Abdicated, Ask, Verdict),
    *(HistoryRequest, HistoryAnswer),
)


def version_of(message: Message) -> int:
    """The version that added this kind of message: it is sent from that active version on (P10.1)."""
    return LOWEST if isinstance(message, _OF_VERSION_1) else HIGHEST


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class MalformedMessage(ValueError):
    """Bytes from a peer that are no message of this schema."""


def encode_message(message: Message) -> bytes:
    """The payload of one frame."""
    return _encoder.encode(message)


def decode_message(data: bytes) -> Message:
    """Inverse of `encode_message`. Raises `MalformedMessage`."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(str(error)) from error
