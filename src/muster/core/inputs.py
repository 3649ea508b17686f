"""What can happen to a node. Small frozen records; the daemon and the simulator make them, a `Node` takes them."""

from typing import NamedTuple

from msgspec import Struct

from muster.records.access import NOBODY, Author
from muster.records.deciders import Grant
from muster.records.levels import Level
from muster.records.messages import Message, PlaceAwaited
from muster.records.operations import OperationRequest
from muster.records.registers import Claim, Strip
from muster.records.services import CommandState, Performance


class AwaitedHere(NamedTuple):
    """One that waits on this node: since when by its clock, and for what. `place.waited_ms` says nothing."""

    since_us: int
    place: PlaceAwaited


class StripRead(Struct, frozen=True):
    """A read of all registers, answering `ReadStrip` number `read`; it began and ended at these times (us)."""

    read: int
    strip: Strip
    started_us: int
    finished_us: int


class StripUnread(Struct, frozen=True):
    """`ReadStrip` number `read` failed."""

    read: int
    error: str


class StoreDone(Struct, frozen=True):
    """The store effect number `operation` is done (and durable).

    `claims`: for an `AppendFrame`, all claims by a read that began after the frame was durable, if there was one.
    """

    operation: int
    claims: tuple[Claim | None, ...] = ()


class StoreRefused(Struct, frozen=True):
    """The store effect number `operation` failed; `kind` is `failed`, `foreign`, `full` or `unreadable`."""

    operation: int
    kind: str
    error: str


class JournalRead(Struct, frozen=True):
    """Answer to `ReadJournal` number `operation`."""

    operation: int
    checkpoint: bytes
    frames: tuple[bytes, ...]


class MessageReceived(Struct, frozen=True):
    """A decoded message from an authenticated peer's connection."""

    sender: int
    message: Message


class PeerConnected(Struct, frozen=True):
    """A connection with `node` is up, its peer at `incarnation`."""

    node: int
    incarnation: int


class PeerLost(Struct, frozen=True):
    """The connection with `node` ended."""

    node: int
    cause: str


class CommandFinished(Struct, frozen=True):
    """The runner ended a command (or found it ended, after a restart of the daemon)."""

    command: CommandState


class LevelRegistered(Struct, frozen=True):
    """A subsystem registers on this node, at any time (SPEC 3.2, 3.10).

    Its `registration` is above that of the last one of the level on this incarnation; one that was there before a
    restart of the daemon keeps its own (P3.13).
    """

    level: Level


class LevelGone(Struct, frozen=True):
    """The subsystem of this level has deregistered or died; what it has not acknowledged is dropped (P3.9).

    `departed`: it deregistered by its own wish (P3.15).
    """

    number: int
    departed: bool = False


class Acknowledged(Struct, frozen=True):
    """A subsystem on this node acknowledges one barrier of a notification (SPEC 3.4)."""

    transition: int
    level: int
    barrier: int


class AcknowledgedTogether(Struct, frozen=True):
    """Several acknowledgements that have come at once: one decision and one report follow from them."""

    steps: tuple[Acknowledged, ...]


class SubsystemAnswered(Struct, frozen=True):
    """A subsystem has answered `AskSubsystem`: what it objects, or nothing for consent."""

    question: str
    level: int
    objection: str


class OperationRequested(Struct, frozen=True):
    """A client of this node's control socket asks for an operation; `identity` is unique to the request."""

    identity: str
    operation: OperationRequest
    author: Author = NOBODY


class FenceConfirmed(Struct, frozen=True):
    """A fence agent has stopped this incarnation (SPEC 7.1)."""

    node: int
    incarnation: int
    detail: str


class FenceAnswered(Struct, frozen=True):
    """Answer to `CallFenceAgent` number `call`; of `status`: whether it says `off`. `detail`: of a failure."""

    call: int
    succeeded: bool
    detail: str = ""


class KernelsWord(Struct, frozen=True):
    """Answer to `WatchLife`: the kernel says that nothing of this incarnation runs any more (P7.13).

    Not `given`: this node cannot ask the kernel about it, for the reason in `detail`.
    """

    node: int
    incarnation: int
    detail: str
    given: bool = True


class PerformanceMeasured(Struct, frozen=True):
    """How busy this node's machine has been of late, measured every few seconds (SPEC 6.2)."""

    performance: Performance


class PlacesAwaited(Struct, frozen=True):
    """What waits for a place to begin on this node now: those that have waited longest, and how many in all (P8.12)."""

    waiting: tuple[AwaitedHere, ...]
    count: int


class KeysHeld(Struct, frozen=True):
    """The authorities, by fingerprint, whose private key this node holds now (P1.5, P1.7)."""

    authorities: tuple[str, ...]


class DecisionLock(Struct, frozen=True):
    """This node has got the decision lock, by this grant, or it has it no more (P6.42)."""

    grant: Grant | None


class OwnLinksChanged(Struct, frozen=True):
    """The interfaces that carry this node's addresses have all lost their link, or one has one again (SPEC 7.4)."""

    cut_off: bool


class RestartHeld(Struct, frozen=True):
    """Why a successor of this daemon could not do its work now; empty where it could (P10.3)."""

    cause: str


class Tick(Struct, frozen=True):
    """Time has passed: the deadline that `Node.deadline_us` gave is over."""


# In groups, by what they are about: a node gives each to the machine of its own that it is for.
StoreAnswer = StripRead | StripUnread | StoreDone | StoreRefused | JournalRead
LinkChange = PeerConnected | PeerLost | OwnLinksChanged
OwnNews = (
    CommandFinished
    | LevelRegistered
    | LevelGone
    | Acknowledged
    | AcknowledgedTogether
    | PerformanceMeasured
    | KeysHeld
    | FenceAnswered
    | DecisionLock
)
Voucher = FenceConfirmed | KernelsWord
Input = (
    StoreAnswer
    | LinkChange
    | OwnNews
    | Voucher
    | MessageReceived
    | OperationRequested
    | SubsystemAnswered
    | PlacesAwaited
    | RestartHeld
    | Tick
)
