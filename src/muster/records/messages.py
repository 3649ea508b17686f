"""What nodes say to each other on the interconnect (SPEC 1.6). Compact MessagePack arrays from this schema.

Every message is idempotent and carries the term it belongs to (SPEC 2.5); losing, repeating or reordering any of them
only delays. New fields go to the end, with a default.
"""

import msgspec
from msgspec import Struct

from muster.records.access import Author
from muster.records.events import GroupDefinition
from muster.records.numbers import HIGHEST_NUMBER, Count, CountOrNone, Moment, NodeNumber
from muster.records.state import Definition, Entry, Level
from muster.records.terms import NO_TERM, Term
from muster.records.versions import HIGHEST, LOWEST, VERSIONS, Software

WIRE_VERSIONS = VERSIONS  # lowest and highest version of this schema that this release understands
MAXIMUM_FRAME_BYTES = 32 * 1024 * 1024


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """First frame of a connection, both ways: who speaks, and what it understands (SPEC 9.2)."""

    cluster: str
    node: NodeNumber
    incarnation: Count
    lowest_version: Count
    highest_version: Count


class PlaceAwaited(Struct, frozen=True, array_like=True):
    """Something on the sender waits for a place to begin (P8.12)."""

    kind: str  # start, check, action
    name: str  # of the service, or of the event
    service: str  # that it is about, or nothing
    waited_ms: Count
    taken: Count  # places, of
    places: Count
    by: str  # what has them, in words


class Heartbeat(Struct, frozen=True, array_like=True, tag=2):
    """I am here, at this term and commit index. A master adds who holds up which transition (SPEC 3.13)."""

    incarnation: Count
    term: Term
    index: Count
    waiting: tuple[tuple[Count, tuple[Count, ...]], ...] = ()
    store_lost_ms: Count = 0  # for how long the sender has not been able to read the store (SPEC 7.5)
    unable: str = ""  # why the sender cannot lead, in words; empty where it can (P2.11)
    awaited: tuple[PlaceAwaited, ...] = ()  # those that have waited longest for a place
    awaiting: Count = 0  # how many wait in all


class Append(Struct, frozen=True, array_like=True, tag=3):
    """Master to all: entries that follow `previous_index`, all of them committed (SPEC 2.6)."""

    term: Term
    previous_index: Count
    entries: tuple[Entry, ...]


class Snapshot(Struct, frozen=True, array_like=True, tag=4):
    """Master to one: the whole database; first message of a term, and the answer to a gap."""

    term: Term
    database: bytes
    ages: tuple[tuple[Count, Count], ...] = ()  # index -> how long ago it was committed (ms), where that counts


class Acknowledgement(Struct, frozen=True, array_like=True):
    """A subsystem has processed one barrier of a notification (SPEC 3.4)."""

    transition: Count
    level: CountOrNone
    barrier: Count


class CommandState(Struct, frozen=True, array_like=True):
    """What became of the command of one generation of a service on this node (SPEC 7.7)."""

    service: str
    generation: Count
    action: str
    finished: bool
    succeeded: bool = False
    detail: str = ""
    left: bool = True  # of a start: something of it may run still; False only where that is known not to be so


class Performance(Struct, frozen=True, array_like=True):
    """How busy a node has been of late, smoothed; each in thousandths of what it has (SPEC 6.2)."""

    cpu: Count = 0
    memory: Count = 0
    pressure: Count = 0  # share of time in which something waited for CPU, memory or I/O


class Testimony(Struct, frozen=True, array_like=True):
    """The kernel has told this node that nothing of an incarnation runs any more (P7.16)."""

    node: NodeNumber
    incarnation: Count
    detail: str


class Report(Struct, frozen=True, array_like=True, tag=5):
    """Node to master: everything the master needs to know of this node, whole and idempotent.

    `term` is the highest term that the node has accepted a snapshot of: from then on it refuses lower ones, so this
    acknowledges the term, and `commands` is its inventory (SPEC 7.7). `wish` is `join`, `leave` or nothing.
    """

    term: Term
    index: Count
    incarnation: Count
    wish: str
    levels: tuple[Level, ...]
    acknowledgements: tuple[Acknowledgement, ...] = ()
    commands: tuple[CommandState, ...] = ()
    sent_us: Count = 0  # the sender's clock: an older report of the same incarnation says nothing (SPEC 2.5)
    performance: Performance | None = None
    software: Software = Software(1, 1)  # a release that does not say understands version 1 only
    keys: tuple[str, ...] | None = None  # fingerprints of the authorities whose key it holds; None: it does not say
    words: tuple[Testimony, ...] = ()  # of members; told because the master may not be able to ask the kernel
    departed: tuple[tuple[Count, Count], ...] = ()  # (level, registration): went by their own wish (P3.15)


class ApplyServices(Struct, frozen=True, array_like=True, tag="apply"):
    """Define or change services; `withdraw` names services whose definition goes."""

    definitions: tuple[Definition, ...]
    withdraw: tuple[str, ...] = ()
    expect: CountOrNone = -1  # version of the configuration that this was made from; another refuses it (SPEC 9.3)


class RegisterService(Struct, frozen=True, array_like=True, tag="register"):
    """An operator wants the service to run (SPEC 6.9)."""

    service: str


class DeregisterService(Struct, frozen=True, array_like=True, tag="deregister"):
    """An operator wants the service down until it is registered again (SPEC 6.2)."""

    service: str
    override: bool = False  # of what subsystems object


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
    generation: Count = 0


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
    duration_ms: Count = 0
    cause: str = ""
    end: bool = False


class SetStandby(Struct, frozen=True, array_like=True, tag="standby"):
    """Begin (or, with `end`, end) the standby of a node: its services are moved away, it gets none."""

    node: str
    duration_ms: Count = 0
    cause: str = ""
    end: bool = False
    override: bool = False  # of what subsystems object


class ApplyEvents(Struct, frozen=True, array_like=True, tag="events"):
    """Define or change event groups; `withdraw` names groups whose definition goes (SPEC 5.3).

    `expect`: the version of the configuration that it was made from; -1: whatever it is.
    """

    groups: tuple[GroupDefinition, ...]
    withdraw: tuple[str, ...] = ()
    expect: CountOrNone = -1


class EnableEvents(Struct, frozen=True, array_like=True, tag="enable"):
    """Enable a group by hand, or disable it; it stays so until told otherwise."""

    group: str
    enabled: bool


class AddNode(Struct, frozen=True, array_like=True, tag="add_node"):
    """Configure a new node, and allow the machine that knows the token of `verifier` to become it (P1.2, P1.4)."""

    node: str
    addresses: tuple[str, ...]
    verifier: str
    expires_s: Moment


class RemoveNode(Struct, frozen=True, array_like=True, tag="remove_node"):
    """Forget a node that is no member and does not run (P1.3)."""

    node: str


class SetAddresses(Struct, frozen=True, array_like=True, tag="set_addresses"):
    """The node is reached at these addresses from now on, in place of all that it had (P1.8)."""

    node: str
    addresses: tuple[str, ...]


class IssueToken(Struct, frozen=True, array_like=True, tag="issue_token"):
    """A new token for a configured node that does not run: it may be enrolled anew (P1.4)."""

    node: str
    verifier: str
    expires_s: Moment


class EnrolNode(Struct, frozen=True, array_like=True, tag="enrol_node"):
    """A member has checked the token and signed the certificate: use the token up (P1.4). Nodes only ask for it."""

    node: NodeNumber
    generation: Count
    verifier: str
    certificate: str
    issuer: str


class Certified(Struct, frozen=True, array_like=True):
    """A new certificate in place of the one with fingerprint `replaces`, of the same key."""

    node: NodeNumber
    generation: Count
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

    version: CountOrNone
    expect: CountOrNone = -1


class ConfigureCluster(Struct, frozen=True, array_like=True, tag="configure"):
    """Change one setting (`core/versions/requests.py` lists them): of the cluster, or of `node` in its place."""

    setting: str
    value: str
    expect: CountOrNone = -1
    node: str = ""


class FinishUpgrade(Struct, frozen=True, array_like=True, tag="finish_upgrade"):
    """Make `version` the active one; refused while a configured node cannot (SPEC 9.2, P10.1).

    `despite_unknown`: also where a node has never said what it runs; it may join only with a release that can.
    """

    version: CountOrNone
    despite_unknown: bool = False


class RestartDaemon(Struct, frozen=True, array_like=True, tag="restart_daemon"):
    """Have the daemon of a member end and be started again, from what is installed now (P10.3)."""

    node: str


class ConfirmClean(Struct, frozen=True, array_like=True, tag="confirm_clean"):
    """An operator vouches that nothing is left of `service` where it was, or of any on `node`; one is given (P6.33)."""

    service: str = ""
    node: str = ""
    cause: str = ""


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
    | SetAddresses
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
    | ConfirmClean
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
    index: Count
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

    at_us: Count  # by the clock of the node that recorded it: comparable with its own only
    event: str
    detail: str
    term: Term
    index: Count  # of the entry that it is part of, or else of the replica when it happened
    committed: bool = False  # part of an entry: every node that applied it one by one has recorded the same
    transition: Count = 0
    level: CountOrNone = -1
    barrier: CountOrNone = -1
    about: NodeNumber = -1  # the node whose transition it is, or that it is evidence about
    kind: Count = 0
    nodes: tuple[NodeNumber, ...] = ()
    successor: Count = 0


class HistoryRequest(Struct, frozen=True, array_like=True, tag=11):
    """Node to node: what have you recorded of this transition? 0: when did which begin and end?"""

    identity: str
    transition: Count = 0


class HistoryAnswer(Struct, frozen=True, array_like=True, tag=12):
    """What a node has recorded; `omitted` is the number of events that its record had no room for."""

    identity: str
    now_us: Count
    happened: tuple[Happened, ...]
    omitted: Count = 0


class KeyRequest(Struct, frozen=True, array_like=True, tag=13):
    """Node to node: do you hold the private key of the authority with this fingerprint? (P1.5)"""

    authority: str


class KeyAnswer(Struct, frozen=True, array_like=True, tag=14):
    """The private key, for the asking node's home only. Never logged, never in the store (P1.5)."""

    authority: str
    key_pem: str


class LocalQuestion(Struct, frozen=True, array_like=True, tag=20):
    """Node to node: what do you yourself know of this? See `daemon/history/gathering.py`."""

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

_OF_VERSION_1: tuple[type, ...] = (
    *(Hello, Heartbeat, Append, Snapshot, Report, Request, Response, Abdicated, Ask, Verdict),
    *(HistoryRequest, HistoryAnswer),
)
_OF_VERSION_2: tuple[type, ...] = (KeyRequest, KeyAnswer, LocalQuestion, LocalAnswer)


def version_of(message: Message) -> int:
    """The version that added this kind of message: it is sent from that active version on (P10.1)."""
    if isinstance(message, _OF_VERSION_1):
        return LOWEST
    return 2 if isinstance(message, _OF_VERSION_2) else HIGHEST


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
        message = _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(str(error)) from error
    term: Term = getattr(message, "term", NO_TERM)  # which has no bounds of its own: the guard knows it too
    if not (0 <= term.number <= HIGHEST_NUMBER and -1 <= term.node <= HIGHEST_NUMBER):
        raise MalformedMessage(f"a term that cannot be: {term}")
    return message
