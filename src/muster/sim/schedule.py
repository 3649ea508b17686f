"""What is done to a virtual cluster, as plain records: printed when a run fails, replayed, written by hand as a script.

A schedule is a list of `Step`s. Random runs (`random_schedule.py`) and scripted ones use the same records. `HERE` as a
node means, inside `When`, the node at which the condition came true; elsewhere in weather, every node.
"""

import msgspec
from msgspec import Struct

from muster.records.levels import Level
from muster.records.operations import OperationRequest

HERE = -1
EVERYWHERE = -1


class Boot(Struct, frozen=True, tag="boot"):
    """Switch a node on; nothing if it is on."""

    node: int


class PowerCut(Struct, frozen=True, tag="power cut"):
    """Everything of a node ends at this instant; a write under way may land, tear or vanish."""

    node: int = HERE


class Fence(Struct, frozen=True, tag="fence"):
    """A fence agent cuts a node's power, and says so to the daemons that run a little later."""

    node: int


class Device(Struct, frozen=True, tag="device"):
    """A fence device is `well`, `slow`, `fails`, `lies` (it says to have done what it has not) or `hangs`."""

    name: str
    mode: str
    for_us: int = 0


class Kill(Struct, frozen=True, tag="kill"):
    """SIGKILL to one process: `daemon`, `guard`, `runner` or `watcher`."""

    process: str
    node: int = HERE


class Pause(Struct, frozen=True, tag="pause"):
    """SIGSTOP to one process, or to `all` of a node; SIGCONT after `for_us`, or never by itself if that is 0."""

    process: str
    for_us: int = 0
    node: int = HERE


class Resume(Struct, frozen=True, tag="resume"):
    """A paused process of a node goes on (SIGCONT)."""

    process: str
    node: int


class Stall(Struct, frozen=True, tag="stall"):
    """The guard waits in the kernel: it renews nothing and no signal ends it before it wakes, after `for_us`.

    Then init ends the node at the deadline, unless it waits `beside` (`init`, `runner`).
    """

    for_us: int
    node: int = HERE
    beside: tuple[str, ...] = ()


class Retime(Struct, frozen=True, tag="retime"):
    """The cluster has another profile: its guards are told of other times for deadline and watchdog (P7.35)."""

    deadline_ms: int
    watchdog_ms: int


class Reboot(Struct, frozen=True, tag="reboot"):
    """The one machine of all nodes loses its power, and comes up with another boot id."""


class CopyStore(Struct, frozen=True, tag="copy store"):
    """Somebody makes a copy of the store."""


class ReplaceStore(Struct, frozen=True, tag="replace store"):
    """Something else is renamed over the store's path: the last `copy` of it, an `other` cluster's, or `nothing`.

    `itself` puts back what was there. A copy only where every home remembers more than it holds (P11.2).
    """

    by: str
    for_us: int = 0


class Cut(Struct, frozen=True, tag="cut"):
    """The link carries nothing from `source` to `to`."""

    source: int
    to: int
    for_us: int = 0


class Isolate(Struct, frozen=True, tag="isolate"):
    """The node's interconnect is lost, both ways; the store stays reachable.

    `unplugged`: its own interfaces have no link either, and it knows that (SPEC 7.4).
    """

    for_us: int = 0
    node: int = HERE
    unplugged: bool = False


class Blind(Struct, frozen=True, tag="blind"):
    """The node has lost the store; the interconnect works."""

    for_us: int = 0
    node: int = HERE


class HoldStore(Struct, frozen=True, tag="hold store"):
    """The storage of a node, or of all, stalls: what is asked of it from now on ends after `for_us`, and ends well."""

    for_us: int
    node: int = EVERYWHERE


class Weather(Struct, frozen=True, tag="weather"):
    """The store is slow (a factor), fails a share of requests, or a share of reads miss one register."""

    slowness: int
    failing: float
    unknown: float
    for_us: int = 0
    node: int = EVERYWHERE


class Spoil(Struct, frozen=True, tag="spoil"):
    """Writes of a node to these places fail, each time, or never end (`hangs`): a bad block of its own area (P2.11).

    `what`: `frame`, `checkpoint`, `view`, `marks`, or of the claim register `claim`, `mark` and `withdrawal`.
    """

    what: tuple[str, ...]
    for_us: int = 0
    node: int = HERE
    hangs: bool = False


class Lossy(Struct, frozen=True, tag="lossy"):
    """All links lose and repeat a share of messages and delay each by up to `jitter_us`, which reorders them."""

    lost: float
    duplicated: float
    jitter_us: int
    for_us: int = 0


class Hang(Struct, frozen=True, tag="hang"):
    """The subsystem of a level on a node acknowledges nothing."""

    level: int
    for_us: int = 0
    node: int = HERE


class Unhang(Struct, frozen=True, tag="unhang"):
    """A hung subsystem goes on."""

    level: int
    node: int


class Come(Struct, frozen=True, tag="come"):
    """A program registers a level on a node that runs; at once in the place of the one that is there (SPEC 3.10)."""

    level: Level
    node: int


class Go(Struct, frozen=True, tag="go"):
    """The program of a level on a node ends, if there is one; what it has not acknowledged, nobody does.

    `departs`: it deregisters; else its end may be its node's (P3.18).
    """

    level: int
    node: int
    departs: bool = False


class Drop(Struct, frozen=True, tag="drop"):
    """The program of a level on a node loses its connection, lives, and comes back after `for_us` (P3.16).

    Where it `fails` its node, that ends when the program is not back in time.
    """

    level: int
    node: int
    for_us: int
    fails: bool = False


class TakeLock(Struct, frozen=True, tag="take lock"):
    """The decision lock is taken away from who has it, which hears of that after `for_us`, or is paused until then."""

    for_us: int
    pauses: bool = False


class Mend(Struct, frozen=True, tag="mend"):
    """A node's links and its way to the store work again."""

    node: int


class Ask(Struct, frozen=True, tag="ask"):
    """A client of this node's control socket asks for an operation, and again until it is answered."""

    node: int
    identity: str
    operation: OperationRequest


class Fail(Struct, frozen=True, tag="fail"):
    """A service, or its instance there, fails on a node, if it runs there and anything would see it (SPEC 5.4).

    Its process dies; or it stays and `hangs`, so that only its check sees it.
    """

    service: str
    node: int
    hangs: bool = False


class FailOne(Struct, frozen=True, tag="fail one"):
    """One of the services that run in the whole cluster fails, whichever that is at this moment."""

    pick: int
    hangs: bool = False


class Calm(Struct, frozen=True, tag="calm"):
    """Every fault is over: everything is resumed, mended and booted, and commands succeed from now on."""


Deed = (
    Boot
    | PowerCut
    | Fence
    | Device
    | Kill
    | Pause
    | Resume
    | Stall
    | Retime
    | Reboot
    | CopyStore
    | ReplaceStore
    | Cut
    | Isolate
    | Blind
    | HoldStore
    | Weather
    | Spoil
    | Lossy
    | Hang
    | Unhang
    | Come
    | Go
    | Drop
    | TakeLock
    | Mend
    | Ask
    | Fail
    | FailOne
    | Calm
)


Here = PowerCut | Kill | Pause | Stall | Isolate | Blind | Hang | Spoil


class When(Struct, frozen=True, tag="when"):
    """Do something at a point that only the run itself reaches, when it is reached for the `count`th time.

    `what` is a record being written (`lease`, `view`, `marks`, `frame`, `checkpoint`, or the claim register as a
    `claim`, `mark` or `withdrawal`) with a `stage` of `begun`, `half written` or `written`; or `elected`, `commit`,
    `notify`, `acknowledge`, `command`, `fence` (a call of an agent), `granted` (the decision lock), `proposal` (by it),
    `failure` (of a service) or `request` (of an event) with stage `begun`.
    """

    what: str
    stage: str
    count: int
    deed: Here
    node: int = EVERYWHERE
    delay_us: int = 0  # from the point to the deed


class Step(Struct, frozen=True):
    """Do `deed` at `at_us` of the virtual world's time."""

    at_us: int
    deed: Deed | When


Schedule = list[Step]

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Step)


def encode_step(step: Step) -> str:
    """A step as one line of JSON."""
    return _encoder.encode(step).decode()


def decode_step(line: str) -> Step:
    """Inverse of `encode_step`. Raises `msgspec.ValidationError` naming the field that is wrong."""
    return _decoder.decode(line)
