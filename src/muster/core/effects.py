"""What a node wants done. Small frozen records; the daemon and the simulator carry them out, and decide nothing.

What the driver owes the core: effects of one step are begun in their order; store effects (those with an `operation`
number) are carried out one at a time, in order; each is answered by exactly one input with its number (an `AppendFrame`
with the claims read after it was durable, if they could be read). Reads of the strip run beside them. A message may be
lost; a local notification or command may not.
"""

from msgspec import Struct

from muster.records.fencing import FenceDevice, Parameters
from muster.records.happenings import Happening
from muster.records.levels import NodeState, TransitionKind
from muster.records.messages import Message
from muster.records.operations import OperationRequest
from muster.records.placements import PlacedTogether
from muster.records.registers import Claim, Life, Mark, Marks, View
from muster.records.services import Definition
from muster.records.terms import NO_NODE


class ReadStrip(Struct, frozen=True):
    """Read all registers; answered by `StripRead` or `StripUnread`."""

    read: int


class WriteClaim(Struct, frozen=True):
    """Durably replace this node's claim register."""

    operation: int
    claim: Claim


class WriteView(Struct, frozen=True):
    """Replace this node's view register."""

    operation: int
    view: View


class WriteMarks(Struct, frozen=True):
    """Durably replace this node's marks register."""

    operation: int
    marks: Marks


class ReadJournal(Struct, frozen=True):
    """Read the journal `mark` of `owner`; answered by `JournalRead` or `StoreRefused`."""

    operation: int
    owner: int
    mark: Mark


class WriteCheckpoint(Struct, frozen=True):
    """Begin the journal `mark` in this node's own area."""

    operation: int
    mark: Mark
    checkpoint: bytes


class AppendFrame(Struct, frozen=True):
    """Durably append frame `number` to this node's journal `mark`, then read all claims."""

    operation: int
    mark: Mark
    number: int
    frame: bytes


class WatchLife(Struct, frozen=True):
    """Have the guard ask the kernel whether this incarnation still runs (P7.15); answered by `KernelsWord`, any time.

    Asked again, it is answered again: an answer that was lost with a daemon comes to the next one.
    """

    node: int
    incarnation: int
    boot_id: bytes
    life: Life


class Send(Struct, frozen=True):
    """Send a message to a node, if it is connected."""

    to: int
    message: Message


class Notify(Struct, frozen=True):
    """Notify the local subsystem of `level` (SPEC 3.4, 3.5); answered by `Acknowledged`, now or much later.

    `vector` is the state of every node; `epoch` the fencing token (SPEC 7.7). `entry` names the step at its level, and
    `members` are those of the level as of that: incarnation, whether it stays, and registration (P12.17).
    `registration` is that of the node's program at this level, and `alone` says that only that comes or goes.
    """

    level: int
    transition: int
    node: int
    incarnation: int
    kind: TransitionKind
    barrier: int
    vector: dict[int, NodeState]
    epoch: int
    entry: int = 0
    members: dict[int, tuple[int, bool, int]] = {}
    registration: int = 0
    alone: bool = False


class AskSubsystem(Struct, frozen=True):
    """Ask the local subsystem of `level` whether it objects to a planned change; answered by `SubsystemAnswered`."""

    level: int
    question: str
    operation: OperationRequest


class LevelRefused(Struct, frozen=True):
    """The level that was registered last under this number, here or before its node joined, is not taken (SPEC 3.2)."""

    number: int
    reason: str


class Readiness(Struct, frozen=True):
    """What must hold for a supervised program to count as started; nothing: that it has survived a short moment."""

    command: tuple[str, ...] = ()
    port: int = 0
    file: str = ""
    notify: bool = False


class Cleanup(Struct, frozen=True):
    """What clears the machine's kernel of what a start leaves there; the home keeps it before that runs (P6.34)."""

    command: tuple[str, ...]
    timeout_ms: int
    retries: int
    retry_pause_ms: int
    environment: dict[str, str]  # the service's own
    probe: tuple[str, ...] = ()  # whether there is anything to clear (P7.45)


class Surroundings(Struct, frozen=True):
    """What a command begins with beside its environment; empty where nothing is said (SPEC 6.6)."""

    user: str = ""
    group: str = ""
    directory: str = "/"
    umask: int = 0o022
    limits: tuple[tuple[str, str], ...] = ()
    environment_file: str = ""

    @staticmethod
    def of(definition: Definition, user: str = "") -> "Surroundings | None":
        """Of each command of a service, as another `user` if that is given; None: nothing is said of it (P8.19)."""
        found = Surroundings(
            user or definition.user, "" if user else definition.group, definition.working_directory, definition.umask,
            definition.limits, definition.environment_file,
        )  # fmt: skip
        return found if found != Surroundings() else None

    @staticmethod
    def of_check(definition: Definition) -> "Surroundings | None":
        """Of its check: as of its other commands, but for the user where the check names one."""
        return Surroundings.of(definition, definition.check_user)


class RunCommand(Struct, frozen=True):
    """Run a service's command; answered by `CommandFinished`.

    The runner refuses a generation that is not newer than the highest it has seen for the service, and a `stop` or
    `recovery` cancels what runs of lower generations first (SPEC 7.7). A `notify` cancels nothing. An empty `command`
    of a `stop` ends whatever the service left running. A command that fails is tried again `retries` times on this
    node before it counts as failed, but not after an exit status in `final`. A `program` is started and supervised: its
    end is told (P8.1). What a start that is followed (`follows`) leaves running goes on for it, and the end of that is
    told (P8.18). With `ready`, a start command's success waits for that too.

    Before a start with a `cleanup` runs, that is kept durably; where it cannot be, the start has failed. A stop that
    `clears` runs what was kept for the service, or else `command`; a stop that succeeded makes what was kept void.
    """

    service: str
    uid: int
    generation: int
    action: str  # start, stop, recovery or notify
    command: tuple[str, ...]
    timeout_ms: int
    environment: dict[str, str]
    retries: int = 0
    retry_pause_ms: int = 1000
    grace_ms: int = 5000  # between SIGTERM and SIGKILL
    program: bool = False
    ready: Readiness = Readiness()
    cleanup: Cleanup | None = None
    clears: bool = False
    follows: bool = False
    final: tuple[int, ...] = ()
    surroundings: Surroundings | None = None
    stop_signal: str = "SIGTERM"  # what a `stop` sends first
    extend_limit_ms: int = 3_600_000  # by how much its program may lengthen a start or a stop in all (P8.21)


class CallFenceAgent(Struct, frozen=True):
    """Have the agent of a fence device called once, in the node's image (P7.29); answered by `FenceAnswered`.

    `parameters`: what it is told beside the action; the values of the device's secrets are in this node's home. Of
    `status` success means that it says `off`. `node`, `incarnation` and `number` say for which request it is; of a
    `monitor` there is none.
    """

    call: int
    device: FenceDevice
    action: str  # off, on, status or monitor
    parameters: Parameters
    node: int = NO_NODE
    incarnation: int = 0
    number: int = 0


class CancelFenceCall(Struct, frozen=True):
    """End the agent of this call, if it still runs; that end is told, too, though its outcome counts no more."""

    call: int


class Reply(Struct, frozen=True):
    """Answer to `OperationRequested`."""

    identity: str
    refused: bool
    outcome: str
    index: int


class Committed(Struct, frozen=True):
    """The database of this node has advanced to `index`: for watchers, metrics, and the simulator's checkers.

    `happened` says what that means, for people (P10.13).
    """

    index: int
    happened: tuple[Happening, ...] = ()


class Placed(Struct, frozen=True):
    """On the master: what its committed entry `index` placed, and what that was decided on (SPEC 8.2)."""

    index: int
    together: PlacedTogether


class Elected(Struct, frozen=True):
    """The node has become master: its adoption is committed."""

    number: int
    node: int


class Left(Struct, frozen=True):
    """The graceful leave of this node is complete: stop everything, write the clean tombstone, end (SPEC 3.11)."""


class Restart(Struct, frozen=True):
    """This process is to end, and to be started anew from what is installed, under the same incarnation (P10.3)."""


class Panic(Struct, frozen=True):
    """The node must not go on (SPEC 3.12): the guard stops everything it runs."""

    cause: str


class Trace(Struct, frozen=True):
    """An event for the log; `event` is a fixed phrase, `detail` its particulars.

    What belongs to a transition says where in it, for the history that all nodes' records are merged to (SPEC 8.2).
    """

    event: str
    detail: str
    transition: int = 0
    level: int = -1
    barrier: int = -1
    about: int = -1  # the node whose transition it is, or that it is evidence about
    kind: int = 0  # of the transition: a `TransitionKind`
    index: int = 0  # of the committed entry that this is part of; 0 for what is no entry
    nodes: tuple[int, ...] = ()  # whom it concerns: the participants of a step, who has acknowledged
    successor: int = 0  # transition that takes the place of `transition`
    quiet: bool = False  # for the record only: the node that did it has it in its log


Effect = (
    ReadStrip
    | WriteClaim
    | WriteView
    | WriteMarks
    | ReadJournal
    | WriteCheckpoint
    | AppendFrame
    | WatchLife
    | Send
    | Notify
    | LevelRefused
    | AskSubsystem
    | RunCommand
    | CallFenceAgent
    | CancelFenceCall
    | Reply
    | Committed
    | Placed
    | Elected
    | Left
    | Restart
    | Panic
    | Trace
)
