"""Services as they were defined and as they are (SPEC 6), what Muster leaves alone, and operations on services."""

from enum import IntEnum
from typing import NamedTuple

from msgspec import Struct

from muster.records.numbers import NO_STATUS, Count, CountOrNone, ExitStatus
from muster.records.registers import identity_of
from muster.records.terms import NO_NODE
from muster.records.transitions import ENTRIES_TOGETHER
from muster.records.versions import KERNELS_WORD, LOWEST, OWNERS_KEYS, PROBES

_DIGITS = 16  # of each half of a token as text, as the client has them (`client/locks/terms.py`)


class ServiceState(IntEnum):
    """Where a service is between stopped and registered; its table says what may follow (SPEC 6.7)."""

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
    start_grace_ms: int = 0  # from its start: failures of its check do not count before one has succeeded (P8.18)
    forking: bool | None = None  # what its program leaves running goes on for it; None: it depends (P8.18)
    success_exit_status: tuple[int, ...] = ()  # of `run`: it has done its work, and is de-registered (P6.38)
    hard_exit_status: tuple[int, ...] = ()  # of `run` or its start: trying again on that node is in vain
    fatal_exit_status: tuple[int, ...] = ()  # trying again is in vain wherever it is
    check_success_exit_status: tuple[int, ...] = ()  # of its check, beside 0
    check_unknown_exit_status: tuple[int, ...] = ()  # of its check: it says nothing of the service (P8.16)
    user: str = ""  # that its commands run as; empty: the node's own.
    group: str = ""  # empty: the user's own
    working_directory: str = "/"
    umask: int = 0o022
    limits: tuple[tuple[str, str], ...] = ()  # name -> "N", "unlimited" or "SOFT:HARD"
    environment_file: str = ""  # NAME=VALUE a line, on the node
    stop_signal: str = "SIGTERM"  # what a stop sends first
    extend_limit_ms: int = 3_600_000  # by how much its program may lengthen a start or a stop in all (P8.21)
    check_user: str = ""  # that its check runs as; empty: as its other commands
    output: str = "file"  # or "journal": what its commands write goes there, too (P8.20)
    probe_command: tuple[str, ...] = ()  # whether this machine holds anything of it: 0 yes, 1 no (P7.45)


# What counts only when the service is started again: what runs goes on as it was started (P6.39).
COUNTS_AT_START = (
    "run", "start_command", "environment", "ready_command", "ready_port", "ready_file", "ready_notify", "forking",
    "cleanup_command", "probe_command", "user", "group", "working_directory", "umask", "limits", "environment_file",
)  # fmt: skip
# The keys that a version added: a node of an older release takes no definition that has them (P10.1).
ADDED_BY_VERSION: dict[int, tuple[str, ...]] = {
    KERNELS_WORD: ("cleanup_command", "cleanup_timeout_ms", "cleanup_retries"),
    OWNERS_KEYS: (
        "start_grace_ms", "forking", "success_exit_status", "hard_exit_status", "fatal_exit_status",
        "check_success_exit_status", "check_unknown_exit_status", "user", "group", "working_directory", "umask",
        "limits", "environment_file", "stop_signal", "extend_limit_ms", "check_user", "output",
    ),
    PROBES: ("probe_command",),
}  # fmt: skip
_PLAIN = Definition("plain")


def version_of_definition(definition: Definition) -> int:
    """The lowest version whose releases take the definition: that of the newest key that is given."""
    versions = [
        version
        for version, fields in ADDED_BY_VERSION.items()
        if any(getattr(definition, field) != getattr(_PLAIN, field) for field in fields)
    ]
    if definition.start_command and _waits(definition):
        versions.append(OWNERS_KEYS)  # `ready` was for `run` only
    return max(versions, default=LOWEST)


def _waits(definition: Definition) -> bool:
    return bool(definition.ready_command or definition.ready_port or definition.ready_file or definition.ready_notify)


class Unclean(NamedTuple):
    """Where a service may have left something in the machine's kernel: nothing of it runs there any more (P6.32)."""

    node: int
    incarnation: int


class Exhausted(NamedTuple):
    """A node on which a service failed more often than its policy allows, and the entry that says so (SPEC 5.4)."""

    node: int
    entry: int


class Ended(IntEnum):
    """What the exit status of its program or its start command says, beside that it has failed (P6.38)."""

    FAILED = 0  # or nothing has ended: so it starts
    DONE = 1  # it has done its work
    HARD = 2  # in vain on that node
    FATAL = 3  # in vain on any
    OWN = 4  # an action of its owner's own is what is done about it, and no failure policy; of version 4


class Rest(NamedTuple):
    """A service is not started again before `ms` have passed since this entry (P6.36)."""

    entry: int
    ms: int


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
    broken: str = ""  # how it failed where it is registered, until it begins to end (P6.26)
    failures: tuple[int, ...] = ()  # indices of the entries that recorded its failures, within its window
    exhausted: tuple[Exhausted, ...] = ()  # where its failure policy has given it up (SPEC 5.4)
    takeovers: tuple[Takeover, ...] = ()  # the recent free transfers (SPEC 6.8)
    since: int = 0  # index of the entry that gave it its present state
    template: str = ""  # name of the service that this is an instance of, placed on one node of all (SPEC 6.2)
    owes: bool = False  # where it is, its start was given a cleanup command, and it may have left something (P6.32)
    cleaning: bool = False  # its present stop is that cleanup, after a start or a stop that failed
    unclean: Unclean | None = None  # where it was lost, until that machine is known to be clean of it
    rest: Rest | None = None  # it has failed, and is to be tried again after a pause (P6.36)
    rounds: int = 0  # how often in a row its start has failed on every node
    ended: Ended = Ended.FAILED
    as_started: Definition | None = None  # what runs was defined so, and has been defined otherwise since (P6.39)
    token: int = 0  # of its present or last owner (P6.41); 0: it has had none since version 6 is active

    @property
    def name(self) -> str:
        """The name in its definition, unique in the cluster."""
        return self.definition.name

    @property
    def awaits_policy(self) -> bool:
        """Whether it has failed where it is registered, and its failure policy is to decide (P6.26)."""
        return bool(self.broken) and self.ended is not Ended.OWN

    @property
    def is_left_to_its_action(self) -> bool:
        """Whether its program has ended, and nothing but an action of its owner's own acts on that (P6.40)."""
        return bool(self.broken) and self.ended is Ended.OWN

    @property
    def identity(self) -> int:
        """What stands for it in a register (P6.33)."""
        return identity_of(self.uid, self.definition.name)


def token_of(entry: int) -> int:
    """The token of whom entry `entry` makes the owner of a service: where the epoch of a grant is (P6.41)."""
    return entry * ENTRIES_TOGETHER


def token_text(token: int) -> str:
    """As texts of grants' tokens are, and compared with them as texts; empty where there is none (P12.6)."""
    return f"{token:0{_DIGITS}d}-{0:0{_DIGITS}d}" if token else ""


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


class CommandState(Struct, frozen=True, array_like=True):
    """What became of the command of one generation of a service on this node (SPEC 7.7)."""

    service: str
    generation: Count
    action: str
    finished: bool
    succeeded: bool = False
    detail: str = ""
    left: bool = True  # something of what it is about may run still; False only where that is known not to be so:
    # of a start that it has left nothing, of a stop that failed that nothing runs of what its start began (P6.35)
    status: ExitStatus = NO_STATUS  # the exit status of its last attempt, where it ended by itself


class Performance(Struct, frozen=True, array_like=True):
    """How busy a node has been of late, smoothed; each in thousandths of what it has (SPEC 6.2)."""

    cpu: Count = 0
    memory: Count = 0
    pressure: Count = 0  # share of time in which something waited for CPU, memory or I/O


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


class FailService(Struct, frozen=True, array_like=True, tag="fail"):
    """The service of this generation has failed where it is registered: let its failure policy decide (SPEC 5.4).

    A generation that is not the present one is late and changes nothing; 0 stands for the present one.
    """

    service: str
    detail: str
    generation: Count = 0
    status: ExitStatus = NO_STATUS  # of its program, where that is how it failed
    has_own_action: bool = False  # it is recorded only: what is done about it is its `on_failure`; of version 4


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


class ConfirmClean(Struct, frozen=True, array_like=True, tag="confirm_clean"):
    """An operator vouches that nothing is left of `service` where it was, or of any on `node`; one is given (P6.33)."""

    service: str = ""
    node: str = ""
    cause: str = ""


class ConfirmStopped(Struct, frozen=True, array_like=True, tag="confirm_stopped"):
    """An operator vouches that nothing of a service runs any more whose stop has failed (P6.35)."""

    service: str
    cause: str = ""
