"""What the lock managers of nodes say to each other, and what one says to its surroundings (P12.1, P12.7).

Plain tuples: the data path has a process of its own, and a codec of its own. A lock is named by its resource and by a
number that its owner gives: `LockId`, of which the low bits are the owner's node.
"""

from enum import IntEnum
from typing import NamedTuple

LockId = int
NODE_BITS = 16
Token = tuple[int, int]  # (epoch, counter): grows with each grant of a resource (P12.6)
NO_TOKEN: Token = (0, 0)
BATCH = 256  # entries of one message of a recovery


def owner_of(lock: LockId) -> int:
    """The node whose client has the lock."""
    return lock & ((1 << NODE_BITS) - 1)


class Reason(IntEnum):
    """Why a request or conversion has not been granted."""

    WOULD_WAIT = 1
    CANCELLED = 2
    TIMED_OUT = 3
    DEADLOCK = 4
    CLIENT_GONE = 5


# ---- from an owner to a master, and back


class Ask(NamedTuple):
    """A new lock. `serial` names this wait of the lock, here and below."""

    key: str
    lock: LockId
    client: int
    mode: int
    no_queue: bool
    serial: int


class Change(NamedTuple):
    """A conversion; `value`: the value block to be written, if any, and its version."""

    key: str
    lock: LockId
    mode: int
    no_queue: bool
    serial: int
    value: bytes | None
    version: int


class Free(NamedTuple):
    """An unlock, whatever the lock is waiting for."""

    key: str
    lock: LockId
    value: bytes | None
    version: int


class Withdraw(NamedTuple):
    """The wait `serial` is to end without a grant."""

    key: str
    lock: LockId
    serial: int
    reason: Reason


class Given(NamedTuple):
    """A lock that its holder has been given, and the token that proves it (P12.6)."""

    key: str
    lock: LockId
    serial: int
    mode: int
    token: Token
    value: bytes
    version: int
    valid: bool


class Denied(NamedTuple):
    """The wait `serial` has ended without a grant; the lock is what it was before."""

    key: str
    lock: LockId
    serial: int
    reason: Reason


class Wanted(NamedTuple):
    """Somebody waits for what this lock holds, to have it in `mode`."""

    key: str
    lock: LockId
    mode: int


class NotHere(NamedTuple):
    """The node that was asked is not the resource's master: look it up again."""

    key: str
    lock: LockId


# ---- with the directory


class Find(NamedTuple):
    """Who is the master of this resource? Nobody: then who asks is. `turn` names the question."""

    key: str
    turn: int


class Found(NamedTuple):
    """The master; `mark`: not below any token of this bucket's resources that nobody masters."""

    key: str
    turn: int
    master: int
    mark: Token


class Dropped(NamedTuple):
    """The master keeps the resource no more; its last token."""

    key: str
    token: Token


# ---- in a round of recovery


class Stopped(NamedTuple):
    """The sender has stopped what the round concerns. `final`: the newest round that it knows somebody has resumed."""

    epoch: int
    final: int


class Rebuilt(NamedTuple):
    """The sender has sent all that it knows."""

    epoch: int


class Emptied(NamedTuple):
    """The sender leaves, and its clients have nothing more: it will free nothing any more, nor ask for anything."""


class Copy(NamedTuple):
    """One lock as its owner knows it."""

    key: str
    lock: LockId
    client: int
    mode: int
    wanted: int
    no_queue: bool
    serial: int
    token: Token
    value: bytes
    version: int
    valid: bool


class Copies(NamedTuple):
    """The sender's own locks on resources that have lost their master."""

    epoch: int
    copies: tuple[Copy, ...]


class Kept(NamedTuple):
    """A resource as its last master knows it, without the locks; `order`: its queues."""

    key: str
    token: Token
    value: bytes
    version: int
    valid: bool
    order: tuple[LockId, ...]


class Handed(NamedTuple):
    """Resources that the sender masters no more."""

    epoch: int
    kept: tuple[Kept, ...]


class Entries(NamedTuple):
    """Resources that the sender masters, for a directory that is new to them."""

    epoch: int
    keys: tuple[str, ...]


class Marks(NamedTuple):
    """High-water marks of buckets, for the node that has them now."""

    epoch: int
    marks: tuple[tuple[int, Token], ...]


# ---- for the search of deadlocks


class Suspect(NamedTuple):
    """Somebody has waited for long: look for a deadlock."""


class Collect(NamedTuple):
    """Who waits for whom on what you master?"""

    turn: int


class Edge(NamedTuple):
    """One wait: `waiter`, by `lock` with `serial`, for `blocker` by its lock in a state that `stamp` names."""

    waiter: tuple[int, int]  # node, client
    lock: LockId
    serial: int
    key: str
    blocker: tuple[int, int]
    blocking: LockId
    stamp: tuple[int, ...]


class Edges(NamedTuple):
    """The answer to a `Collect`."""

    turn: int
    edges: tuple[Edge, ...]


class Chosen(NamedTuple):
    """This wait is the victim."""

    key: str
    lock: LockId
    serial: int


# ---- of the kernels' lockspaces (P12.30-P12.34); seats are (node, its life as text: it has more than 64 bits)


class KernelFact(NamedTuple):
    """A lockspace of the sender's kernel, with the members that it was started with last."""

    name: str
    identity: int
    members: tuple[tuple[int, str], ...]
    standing: int
    is_stopped: bool


class KernelSaid(NamedTuple):
    """All that the sender's kernel is in, when the round begins."""

    epoch: int
    facts: tuple[KernelFact, ...]


class KernelWish(NamedTuple):
    """The sender's kernel is to be let into a lockspace, or out of it."""

    epoch: int
    name: str
    enters: bool


class KernelHalt(NamedTuple):
    """Stop this lockspace."""

    epoch: int
    turn: int
    name: str


class KernelHalted(NamedTuple):
    """It is stopped."""

    epoch: int
    turn: int


class KernelGo(NamedTuple):
    """Start it with these members; `seat`: the node that has entered or left."""

    epoch: int
    turn: int
    name: str
    identity: int
    members: tuple[tuple[int, str], ...]
    seat: int


class KernelStarted(NamedTuple):
    """It is started, or ended."""

    epoch: int
    turn: int


OfKernel = KernelSaid | KernelWish | KernelHalt | KernelHalted | KernelGo | KernelStarted

Message = (
    Ask | Change | Free | Withdraw | Given | Denied | Wanted | NotHere | Find | Found | Dropped | Stopped | Rebuilt
    | Emptied | Copies | Handed | Entries | Marks | Suspect | Collect | Edges | Chosen | OfKernel
)  # fmt: skip


class Frame(NamedTuple):
    """One message on its way: its number on this channel, and the last one that came the other way (P12.7)."""

    number: int  # 0: only an acknowledgement
    heard: int
    message: Message | None


# ---- effects


class Send(NamedTuple):
    """To a node, on the connection that there is; lost with it."""

    node: int
    frame: Frame


class Granted(NamedTuple):
    """A client has the lock in this mode; `valid`: whether the value block is what was written last."""

    client: int
    lock: LockId
    mode: int
    token: Token
    value: bytes
    valid: bool


class NotGranted(NamedTuple):
    """A client's request or conversion has ended without a grant; a lock that had no mode is no more."""

    client: int
    lock: LockId
    reason: Reason


class Blocking(NamedTuple):
    """Somebody waits for what this lock of the client holds."""

    client: int
    lock: LockId
    mode: int


class Released(NamedTuple):
    """The lock of the client is no more."""

    client: int
    lock: LockId


class EndClient(NamedTuple):
    """The client's whole tree must be ended; what cannot be ended still holds (P12.5)."""

    client: int


class Acknowledge(NamedTuple):
    """This node has done its part of the barrier."""

    transition: int
    barrier: int


Effect = Send | Granted | NotGranted | Blocking | Released | EndClient | Acknowledge
