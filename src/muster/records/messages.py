"""What nodes say to each other on the interconnect (SPEC 1.6). Compact MessagePack arrays from this schema.

Every message is idempotent and carries the term it belongs to (SPEC 2.5); losing, repeating or reordering any of them
only delays. New fields go to the end, with a default.
"""

import msgspec
from msgspec import Struct

from muster.records.access import Author
from muster.records.database import Change, Entry
from muster.records.deciders import Grant
from muster.records.fencing import FenceAnswer
from muster.records.levels import Level
from muster.records.numbers import HIGHEST_NUMBER, Count, CountOrNone, NodeNumber
from muster.records.operations import OperationRequest
from muster.records.services import CommandState, Performance
from muster.records.tables import check_rows, members_of
from muster.records.terms import NO_TERM, Term
from muster.records.transitions import Acknowledgement
from muster.records.versions import DECIDERS, VERSIONS, Software

WIRE_VERSIONS = VERSIONS  # lowest and highest version of this schema that this release understands
MAXIMUM_FRAME_BYTES = 32 * 1024 * 1024


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """First frame of a connection, both ways: who speaks, and what it understands (SPEC 9.2)."""

    cluster: str
    node: NodeNumber
    incarnation: Count
    lowest_version: Count
    highest_version: Count
    process: Count = 0  # which process of that incarnation, where it is no daemon (P12.22); of a daemon always 0


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
    fence_troubles: tuple[tuple[str, str], ...] = ()  # fence devices that the sender cannot use, and why (P7.28)


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
    fences: tuple[FenceAnswer, ...] = ()  # what became of what it was asked to fence (P7.22)
    fence_troubles: tuple[str, ...] = ()  # the fence devices that it cannot use (P7.28)
    grant: Grant | None = None  # by which it has the decision lock (P6.42)


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


class Proposal(Struct, frozen=True, array_like=True, tag=22):
    """Decider to master: commit this as the entry behind `index`, which it was made from, or refuse it (P6.44)."""

    term: Term
    index: Count
    incarnation: Count
    grant: Grant
    cause: str
    changes: tuple[Change, ...]


# In groups, by who takes them: the desk of a node; the shell around it, the interconnect among it.
ForDesk = Request | Response | Ask | Verdict | Proposal
ForShell = Hello | HistoryRequest | HistoryAnswer | KeyRequest | KeyAnswer | LocalQuestion | LocalAnswer
Message = Heartbeat | Append | Snapshot | Report | Abdicated | ForDesk | ForShell
_SINCE: dict[type, int] = {  # the version that added each kind
    **dict.fromkeys((Hello, Heartbeat, Append, Snapshot, Report, Request, Response, Abdicated, Ask, Verdict), 1),
    **dict.fromkeys((HistoryRequest, HistoryAnswer), 1),
    **dict.fromkeys((KeyRequest, KeyAnswer, LocalQuestion, LocalAnswer), 2),
    Proposal: DECIDERS,
}
check_rows("records/messages.py", _SINCE, members_of(Message))


def version_of(message: Message) -> int:
    """The version that added this kind of message: it is sent from that active version on (P10.1)."""
    return _SINCE[type(message)]


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
