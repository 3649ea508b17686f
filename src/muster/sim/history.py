"""What an observer outside the cluster sees of a run: the only thing that the checkers are given (STYLE: Jepsen).

Each observation is something that leaves the core: a state that a replica shows its clients, a message, a notification,
a command, a register on the store; or something of the world itself: a node that starts, the moment at which nothing
of an incarnation runs any more. Nothing in here comes from inside a machine of the core.
"""

import zlib

import msgspec
from msgspec import Struct

from muster.records.configuration import Operation
from muster.records.database import Entry
from muster.records.deciders import Decider, Grant
from muster.records.fencing import Fencing
from muster.records.levels import Level, NodeState, Required, TransitionKind
from muster.records.members import Member
from muster.records.operations import OperationRequest
from muster.records.registers import Claim
from muster.records.services import Service
from muster.records.terms import Term
from muster.records.transitions import Transition


class ReplicaState(Struct, frozen=True):
    """The database of one node at one commit index; the records in it never change."""

    members: dict[int, Member]
    transitions: dict[int, Transition]
    services: dict[str, Service]
    operations: dict[str, Operation]
    names: dict[int, str]  # node -> configured name
    required: tuple[Required, ...] = ()  # that a node must have before it joins
    fencing: dict[int, Fencing] = msgspec.field(default_factory=dict)
    deciders: dict[str, Decider] = msgspec.field(default_factory=dict)


class LifeBegan(Struct, frozen=True):
    """An incarnation of a node begins to run things."""

    at_us: int
    node: int
    incarnation: int


class LifeEnded(Struct, frozen=True):
    """Nothing of this incarnation runs any more, and nothing ever will."""

    at_us: int
    node: int
    incarnation: int
    cause: str


class Renewed(Struct, frozen=True):
    """A guard has renewed its lease, which runs out at `ends_us` if this is the last time; the renewal began then."""

    at_us: int
    node: int
    incarnation: int
    ends_us: int
    began_us: int


class Suspected(Struct, frozen=True):
    """A master is about to commit that nobody waits for `about` any more (P4.7, P4.13).

    `heard_us`: when the last frame of it came there; `bound_us`: for how long it must have been silent, by its profile.
    """

    at_us: int
    node: int
    about: int
    about_incarnation: int
    heard_us: int
    bound_us: int


class DaemonStarted(Struct, frozen=True):
    """A daemon has loaded its first replica, at this index and term."""

    at_us: int
    node: int
    incarnation: int
    index: int
    term: Term


class ClaimWritten(Struct, frozen=True):
    """A claim register was written (durable in both copies)."""

    at_us: int
    node: int
    claim: Claim


class MarksWritten(Struct, frozen=True):
    """A marks register was written (durable in both copies)."""

    at_us: int
    node: int
    condemned: tuple[tuple[int, int], ...]


class Elected(Struct, frozen=True):
    """A node says that it is master of `term`, with its replica at `index`."""

    at_us: int
    node: int
    incarnation: int
    term: Term
    index: int


class Applied(Struct, frozen=True):
    """A replica shows a new commit index."""

    at_us: int
    node: int
    incarnation: int
    index: int
    term: Term
    state: ReplicaState


class Told(Struct, frozen=True):
    """A master tells others for the first time that `entry` is committed."""

    at_us: int
    node: int
    term: Term
    entry: Entry


class LockGranted(Struct, frozen=True):
    """The decision lock is granted to a daemon, which is about to hear of it."""

    at_us: int
    node: int
    incarnation: int
    grant: Grant


class Proposed(Struct, frozen=True):
    """A node sends what it has decided on services, from its replica at `index`."""

    at_us: int
    node: int
    incarnation: int
    grant: Grant
    index: int


class Notified(Struct, frozen=True):
    """A node notifies its subsystem of `level`."""

    at_us: int
    node: int  # where
    incarnation: int  # of `node`
    level: int
    transition: int
    about: int
    about_incarnation: int
    kind: TransitionKind
    barrier: int
    vector: dict[int, NodeState]


class LevelAcknowledged(Struct, frozen=True):
    """A subsystem on `node` has processed one barrier."""

    at_us: int
    node: int
    incarnation: int
    level: int
    transition: int
    barrier: int


class KernelHeld(Struct, frozen=True):
    """A start has left something in the kernel of the node's machine, as an address (P6.32)."""

    at_us: int
    node: int
    incarnation: int
    service: str


class KernelCleared(Struct, frozen=True):
    """Nothing of a service is left there any more."""

    at_us: int
    node: int
    service: str


class ProgramCame(Struct, frozen=True):
    """A program has registered this level on `node`, which may run already."""

    at_us: int
    node: int
    incarnation: int
    level: Level


class ProgramWent(Struct, frozen=True):
    """The program of this level on `node` has ended its registration."""

    at_us: int
    node: int
    incarnation: int
    level: Level


class Asked(Struct, frozen=True):
    """A client asks a node for an operation; retries have the same identity."""

    at_us: int
    node: int
    identity: str
    operation: OperationRequest


class Judged(Struct, frozen=True):
    """A subsystem that may object to planned changes has been asked about one, and has answered (P4.5)."""

    at_us: int
    node: int
    incarnation: int
    level: int
    identity: str  # of the request
    objects: bool


class Replied(Struct, frozen=True):
    """A client gets its answer."""

    at_us: int
    node: int
    identity: str
    refused: bool
    outcome: str
    index: int


class CommandTaken(Struct, frozen=True):
    """A runner begins a command of a service."""

    at_us: int
    node: int
    incarnation: int
    service: str
    generation: int
    action: str
    epoch: int  # the cluster's epoch that it was given
    token: int = 0  # the token of its service that it was given; 0: none


class CommandEnded(Struct, frozen=True):
    """A runner has ended a command of a service."""

    at_us: int
    node: int
    incarnation: int
    service: str
    generation: int
    action: str
    succeeded: bool


class CommandAnswered(Struct, frozen=True):
    """A runner says what has become of a command of a service: at its end, from memory, or by refusing it."""

    at_us: int
    node: int
    incarnation: int
    service: str
    generation: int
    action: str
    succeeded: bool


class ServiceBegan(Struct, frozen=True):
    """From now on something of this service (or its recovery) runs on the node."""

    at_us: int
    node: int
    incarnation: int
    service: str
    generation: int


class ServiceEnded(Struct, frozen=True):
    """Nothing of this service runs on the node any more."""

    at_us: int
    node: int
    incarnation: int
    service: str
    generation: int


class ServiceFailed(Struct, frozen=True):
    """A registered service, or one that is about to be, has failed of itself: its program has ended, or its check
    fails from now on.
    """

    at_us: int
    node: int
    incarnation: int
    service: str
    generation: int
    ended: bool  # nothing of it runs any more; else only its check fails


class WatchBegan(Struct, frozen=True):
    """A node's watcher is asked to detect an event."""

    at_us: int
    node: int
    incarnation: int
    event: str
    parameters: tuple[tuple[str, str], ...]


class WatchEnded(Struct, frozen=True):
    """It is asked not to detect it any more."""

    at_us: int
    node: int
    incarnation: int
    event: str


class WatcherGone(Struct, frozen=True):
    """The connection of a node's watcher is gone, with all that it was asked."""

    at_us: int
    node: int
    incarnation: int


class ActionBegan(Struct, frozen=True):
    """A runner begins the action function of an occurrence; `number` is that of the occurrence on its node."""

    at_us: int
    node: int
    incarnation: int
    event: str
    number: int


class Disturbed(Struct, frozen=True):
    """A fault or a remedy, in words."""

    at_us: int
    what: str


class Logged(Struct, frozen=True):
    """What a node wrote to its log; for the reader, no checker looks at it."""

    at_us: int
    node: int
    what: str


class FenceCalled(Struct, frozen=True):
    """A node has the agent of a fence device called, for a request."""

    at_us: int
    node: int  # that calls
    incarnation: int  # of `node`
    device: str
    action: str
    about: int
    about_incarnation: int
    number: int
    read_us: int  # when the read of the store began that it goes by


class FenceStatus(Struct, frozen=True):
    """A fence device, asked by a node for a request, has said that `about` is off."""

    at_us: int
    node: int
    incarnation: int
    device: str
    about: int
    about_incarnation: int
    number: int


class Raised(Struct, frozen=True):
    """The core raised: a broken invariant."""

    at_us: int
    node: int
    error: str


class Healed(Struct, frozen=True):
    """The last fault is over; from now on progress is demanded."""

    at_us: int


class GaveUp(Struct, frozen=True):
    """The time allowed for progress is over and this is still missing."""

    at_us: int
    missing: str


Observation = (
    LifeBegan
    | LifeEnded
    | Renewed
    | Suspected
    | DaemonStarted
    | ClaimWritten
    | MarksWritten
    | Elected
    | Applied
    | Told
    | LockGranted
    | Proposed
    | Notified
    | LevelAcknowledged
    | KernelHeld
    | KernelCleared
    | ProgramCame
    | ProgramWent
    | Asked
    | Judged
    | Replied
    | CommandTaken
    | CommandEnded
    | CommandAnswered
    | ServiceBegan
    | ServiceEnded
    | ServiceFailed
    | WatchBegan
    | WatchEnded
    | WatcherGone
    | ActionBegan
    | FenceCalled
    | FenceStatus
    | Disturbed
    | Logged
    | Raised
    | Healed
    | GaveUp
)

History = list[Observation]


def describe(observation: Observation) -> str:
    """One line for the reader of a failed run."""
    head = f"{observation.at_us / 1e6:10.6f}"
    if isinstance(observation, Applied):
        members = " ".join(f"n{m.node}={m.state}" for m in observation.state.members.values())
        services = " ".join(f"{s.name}={s.state}@{s.node}" for s in observation.state.services.values())
        return f"{head}  n{observation.node} applied {observation.index} of {observation.term}: {members} {services}"
    node = getattr(observation, "node", None)
    fields = ", ".join(
        f"{name}={value}"
        for name, value in msgspec.structs.asdict(observation).items()
        if name not in ("at_us", "node", "vector") and value != ""
    )
    where = f"n{node} " if node is not None else ""
    return f"{head}  {where}{type(observation).__name__} {fields}"


def fingerprint(history: History) -> str:
    """Eight hexadecimal digits that two runs of one seed share."""
    checksum = 0
    for observation in history:
        checksum = zlib.crc32(repr(observation).encode(), checksum)
    return f"{checksum:08x}"
