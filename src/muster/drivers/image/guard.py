"""The guard: holds the node's lease, obeys marks, watches daemon and runner, and panics the node (SPEC 7.1-7.3, 3.12).

    python -m muster.drivers.guard --store PATH --node-id N --name NAME --home DIR --profile JSON --daemon ARGV...

Theory of operation. Start: take the lock on the node's home; end what an earlier incarnation may have left on this
machine; watch the own lease register until the predecessor is proven stopped, by the kernel's word where it can be had
(`kernels_word.py`), else by what `core/leases/predecessor.py` says; renew twice, the second time
proving that nobody else has begun under this name; arm the deadman; fork init. From then on a loop that never waits for
the store: the lease writer (its child) does each cycle and answers with the new deadline, and the deadman is moved. The
guard panics the node when a rule of `core/leases/lease.py` or `core/leases/vigil.py` says so, and when a child has
ended. It decides nothing of that itself.

Where a watchdog is set, it is armed before the first record of the lease, which says so, and closed only when the
tombstone is durable (`watchdog.py`, P7.33). Each time that the deadman is moved the feeder may go on until then, too.

Init begins only when a lease record that names it is durable, so that whoever comes later can ask the kernel about it.
The guard also asks the kernel about other nodes, for its daemon, which lives in a namespace and cannot: it polls the
pidfds of their inits, and tells at once (P7.15).

A panic kills everything below init, waits until the kernel says that it is gone, and only then has the lease writer
write the tombstone. The deadman stays armed all the while: if any of it hangs, the guard is killed, and the lease
expires.

From the fork of the lease writer on, this process waits for no file system (P7.9): it opens, reads, writes and removes
nothing but in /proc, and it has no descriptor of a file, because a process that ends waits for what it has open. Lines
of the log and HOME/guard.json go to the log writer.

Exit status: 0 after a clean leave or a stop before the node ran anything, 2 for wrong options, 3 if the start is
refused for good, 75 if it is refused now and may be tried again (P11.6), 70 after a panic.
"""

import contextlib
import fcntl
import functools
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from muster.core.leases.lease import LeaseKeeper, LeaseWatch, Stop, next_incarnation
from muster.core.leases.predecessor import (
    Here,
    OtherKernels,
    Patience,
    Predecessor,
    Verdict,
    has_stopped_here,
    settled,
    to_ask,
)
from muster.core.leases.vigil import LEAVE_US, Vigil, Why
from muster.core.leases.watchdog import Order, Retiming, WatchdogState, times_of
from muster.drivers.image import kernel_spaces
from muster.drivers.image.caretaker import Duty, start_caretaker
from muster.drivers.image.control_group import ControlGroup, group_at, make_group
from muster.drivers.image.deadman import (
    DeadmanFailed,
    DeadmanTimer,
    Leash,
    adopt_orphans,
    boottime_us,
    choose_deadman,
    enter_pid_namespace,
    hold_memory_and_priority,
    read_boot_id,
    set_process_name,
    settle_memory,
)
from muster.drivers.image.descriptors import send_descriptors
from muster.drivers.image.environment import NODE_HOME
from muster.drivers.image.hand_over import Offer
from muster.drivers.image.init_process import InitSetup, run_init
from muster.drivers.image.kept_cleanups import (
    PROBES,
    Kept,
    all_kept,
    drop,
    last_run,
    lock_folder,
    plant_probes,
    record_run,
)
from muster.drivers.image.kernels_word import CannotAsk, Place, Witness, Witnesses, life_of, read_place
from muster.drivers.image.lease_account import LeaseAccount
from muster.drivers.image.lease_writer import MAXIMUM_PACKET_BYTES, CycleFailed, renew, run_lease_writer, times_packet
from muster.drivers.image.log_lines import Log
from muster.drivers.image.log_writer import NOTHING_YET, REMOVE, LogWriter, start_log_writer
from muster.drivers.image.process_tree import (
    Teller,
    close_descriptors_except,
    descendants,
    describe,
    drain,
    end_everything_below,
    explain_status,
    fork_into,
    only_wake,
    read_command_line,
    read_environment,
    read_name,
    read_parents,
    say,
    send,
)
from muster.drivers.image.processes import CARETAKER, FORKED, GUARD, LOG_WRITER
from muster.drivers.image.systemd import notify, watchdog_pause_us
from muster.drivers.image.watchdog import Asked, WatchdogEnd, close_watchdog, start_watchdog, wait_until_armed
from muster.drivers.image.watchdog_device import WatchdogRefused, is_virtual
from muster.drivers.store.failures import StoreFailed
from muster.drivers.store.lease_store import LeaseStore, lease_store_of
from muster.records import watchdogs
from muster.records.registers import (
    LIFE_SINCE,
    WATCHDOG_SINCE,
    Armed,
    Deadman,
    Lease,
    Life,
    Owed,
    decode_life,
    encode_life,
)
from muster.records.timing import InconsistentProfile, Profile, WatchdogTimes, check
from muster.records.units import US_PER_MS

EXIT_CLEAN, EXIT_USAGE, EXIT_REFUSED, EXIT_PANIC, EXIT_NOT_NOW = 0, 2, 3, 70, 75
MAXIMUM_CAUSE_CHARACTERS = 400
_PACKETS_A_TURN = 256  # taken from one channel before the loop goes on
_CREDENTIALS = struct.Struct("3i")
_EMPTY_HOME_US = 5_000_000
_HAND_OVER_US = 5_000_000  # for the caretaker of an earlier run to end after SIGTERM, and again after SIGKILL
_STOP_AT_ONCE = (signal.SIGINT, signal.SIGQUIT)
_STATE_BYTES = 4096
_LOG_BOUND_MS = 500  # what the last lines of the log may keep the guard from ending
_LEAST_MARGIN_MS = 20  # before the deadman fires, for the guard's own last words
_ARMED_WITHIN_MS = 15_000  # a management board may be slow, and so may one that is asked for its device
_WITH_VALUES = ("--store", "--node-id", "--name", "--home", "--profile", "--deadman", "--version", "--watchdog")
_DEADMEN = {"auto": None, "pid-namespace": Deadman.PID_NAMESPACE, "process-tree": Deadman.PROCESS_TREE}


class StartRefused(Exception):
    """The node must not start, or not now; the message names what is wrong, where, and what to do."""


class NotNow(StartRefused):
    """The same for what may pass by itself: to be tried again (P11.6)."""


class Ended(Exception):
    """The guard was told to stop before the node ran anything."""


class Options(NamedTuple):
    """What a guard is started with."""

    store: str
    node: int
    name: str
    home: str
    profile: Profile
    daemon: tuple[str, ...]
    deadman: str = "auto"  # auto, pid-namespace or process-tree
    predecessor_stopped: bool = False  # the operator vouches for it
    version: int = LIFE_SINCE  # that is active, as far as is known at the start: what may be written (P10.1)
    watchdog: str = ""  # as it is set for this node (`records/watchdogs.py`)


def guard_command(options: Options) -> list[str]:
    """The command line that starts this guard; `musterd` executes it in its own place."""
    return [
        *(sys.executable, "-m", "muster.drivers.guard", "--store", options.store, "--node-id", str(options.node)),
        *("--name", options.name, "--home", options.home, "--profile", json.dumps(options.profile._asdict())),
        *("--deadman", options.deadman, "--version", str(options.version)),
        *(["--watchdog", options.watchdog] if options.watchdog else []),
        *(["--predecessor-stopped"] if options.predecessor_stopped else []),
        *("--daemon", *options.daemon),
    ]


def become_guard(options: Options) -> NoReturn:
    """Replace this process by the guard. Raises `OSError`."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, guard_command(options))


def parse_options(words: list[str]) -> Options:
    """Inverse of `guard_command`, without the program. Raises `ValueError` with what is wrong."""
    given: dict[str, str] = {}
    daemon: tuple[str, ...] = ()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--daemon":
            daemon, rest = tuple(rest), []
        elif word == "--predecessor-stopped":
            given[word] = "yes"
        elif word in _WITH_VALUES and rest:
            given[word] = rest.pop(0)
        else:
            raise ValueError(f"option {word!r} is unknown or has no value")
    missing = [name for name in ("--store", "--node-id", "--name", "--home", "--profile") if name not in given]
    if missing or not daemon:
        raise ValueError(f"missing: {', '.join([*missing, *([] if daemon else ['--daemon ARGV...'])])}")
    if given.get("--deadman", "auto") not in _DEADMEN:
        raise ValueError(f"--deadman is {given['--deadman']!r}; it must be one of {', '.join(_DEADMEN)}")
    try:
        profile = check(Profile(**json.loads(given["--profile"])))
        node, version = int(given["--node-id"]), int(given.get("--version", 1))
        watchdogs.parse(given.get("--watchdog", ""))
    except (TypeError, ValueError, InconsistentProfile) as error:
        raise ValueError(f"--profile, --node-id, --version or --watchdog: {error}") from error
    return Options(
        given["--store"],
        node,
        given["--name"],
        os.path.realpath(given["--home"]),
        profile,
        daemon,
        given.get("--deadman", "auto"),
        "--predecessor-stopped" in given,
        version,
        given.get("--watchdog", ""),
    )


def lock_home(home: str) -> int:
    """Take the lock on a node's home; the descriptor that holds it. Raises `StartRefused` (SPEC 7.8)."""
    path = os.path.join(home, "lock")
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartRefused(f"cannot open {path}: {error.strerror}; create the directory or correct --home") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        text = f"{path} is held by process {holder}: this node already runs on this machine, or its last write to the"
        advice = f"stop it first (kill -TERM {holder}), or correct --home"
        raise NotNow(f"{text} store still hangs; {advice}") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def empty_home(home: str, log_writer: int = 0) -> None:
    """End what an earlier incarnation of this node left on this machine (SPEC 7.1). Raises `StartRefused`.

    With a PID namespace there is nothing to find. In a process tree a service's detached process may be known only by
    its keeper, so none is killed before everything below it has been found and stopped. The caller holds the lock on
    `home`. An earlier log writer, any but process `log_writer` and its standby, is ended too, but not waited for: it
    may hang, and does nothing but write.
    """
    found = [pid for pid, parent in read_parents().items() if log_writer not in (pid, parent)]
    found = [pid for pid in found if read_name(pid) == LOG_WRITER]
    send((pid for pid in found if os.fsencode(home) in read_command_line(pid)), signal.SIGKILL)
    give_up_us = boottime_us() + _EMPTY_HOME_US
    stopped: set[int] = set()
    while left := _find_left(home):
        if boottime_us() < give_up_us and not left <= stopped:
            send(left - stopped, signal.SIGSTOP)
            stopped |= left
            continue
        send(left, signal.SIGKILL)
        if boottime_us() >= give_up_us:
            names = ", ".join(f"{pid} ({read_name(pid)})" for pid in sorted(left)[:5])
            text = f"processes of an earlier run of the node in {home} do not end even after SIGKILL: {names}"
            raise StartRefused(f"{text}; restart this machine")
        time.sleep(0.01)


def end_recorded_group(home: str) -> None:
    """End what is left in the control group that an earlier incarnation recorded (P7.11). Raises `StartRefused`."""
    group = group_at(str(_recorded(home).get("control_group", "")))
    if group is None:
        return
    if not group.end(boottime_us() + _EMPTY_HOME_US, boottime_us):
        text = f"processes of an earlier run of the node in control group {group.folder} do not end even after SIGKILL"
        raise StartRefused(f"{text}; restart this machine")
    group.remove()


def _recorded(home: str) -> dict[str, object]:
    """What HOME/guard.json holds; nothing where it cannot be read."""
    try:
        with open(state_path(home), "rb") as file:
            found = json.loads(file.read(_STATE_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def mode_words(deadman: Deadman, group: ControlGroup | None) -> tuple[str, str, str]:
    """Level, event and detail of the line of the log that says what ties the node to its guard."""
    if deadman is not Deadman.PROCESS_TREE:
        return "info", "deadman", "a PID namespace: the kernel ends all of the node with its init"
    advice = "allow this user PID namespaces (kernel.unprivileged_userns_clone=1), or start musterd as the superuser"
    if group is not None:
        where = f"a process tree in control group {group.folder}, as there is no PID namespace"
        return "warning", "deadman", f"{where}; better: {advice}"
    text = (
        "a process tree alone: no PID namespace, and no control group of its own. After its guard was killed only an "
        f"operator's word proves that it has stopped; {advice}, or delegate a control group (Delegate=yes in the unit)"
    )
    return "warning", "deadman", text


def _find_left(home: str) -> set[int]:
    parents = read_parents()
    own = [pid for pid in parents if pid != os.getpid() and _belongs_to(pid, home)]
    return {*own, *descendants(own, parents)} - {os.getpid()}


def _belongs_to(pid: int, home: str) -> bool:
    words = read_command_line(pid)
    forked = read_name(pid) in FORKED and os.fsencode(home) in words and b"muster.drivers.guard" in words
    if not forked and read_environment(pid).get(NODE_HOME.encode()) != os.fsencode(home):
        return False
    try:
        # A container that is visible from here may have a home of the same name, and it is not this one.
        return os.path.samestat(os.stat(f"/proc/{pid}/root{home}"), os.stat(home))
    except OSError:
        return False  # it has just ended, or is not this user's to end


def end_old_caretaker(home: str) -> None:
    """End the caretaker of an earlier run: this run does its work (P6.34). Raises `StartRefused`."""
    began_us = boottime_us()
    asked: dict[int, int] = {}  # whom, and when: a standby may have taken the place of the first one
    while True:
        try:
            lock = lock_folder(home)
        except OSError as error:
            raise StartRefused(f"{home}/cleanups cannot be used: {error}; free space there, or correct it") from error
        if lock is not None:
            os.close(lock)
            return
        holder, now_us = _caretaker_of(home), boottime_us()
        if holder and holder not in asked:
            asked[holder] = now_us
            send((holder,), signal.SIGTERM)
        if holder and now_us - asked[holder] > _HAND_OVER_US:
            send((holder,), signal.SIGKILL)
        if now_us - began_us > 3 * _HAND_OVER_US:
            text = f"the caretaker of an earlier run (process {holder or 'unknown'}) holds {home}/cleanups/lock"
            raise StartRefused(f"{text} and does not end even after SIGKILL: restart this machine")
        time.sleep(0.01)


def _caretaker_of(home: str) -> int:
    """The process that holds the caretaker's lock, as far as that can be told; 0 where it cannot."""
    try:
        with open(os.path.join(home, "cleanups", "lock"), "rb") as file:
            pid = int(file.read(32))
    except (OSError, ValueError):
        return 0
    return pid if read_name(pid) == CARETAKER else 0


class _Panicked(Exception):
    """The node must stop at once; the message is the cause."""


class _Left(Exception):
    """The node has left, and nothing of it runs any more."""


class Guard:
    """One guard, from its start to its end. While the node runs, `store` is used by the lease writer only."""

    def __init__(
        self, options: Options, open_lease_store: Callable[[str, int], LeaseStore], log_writer: LogWriter, lock: int
    ) -> None:
        """`lock` is the descriptor that holds the lock on the node's home. Raises `StoreFailed`."""
        self._options, self._profile = options, options.profile
        self._chosen = options.profile  # as the cluster has it, without what this node's watchdog makes of it
        self._open_store = functools.partial(open_lease_store, options.store, options.node)
        self._store = self._open_store()  # closed here once the lease writer has it
        self._log_writer, self._lock = log_writer, lock
        self._log = Log(options.name, "guard", Teller().say)
        self._signals: list[int] = []  # received and not yet acted upon; the handler appends
        self._wake_read, self._wake_write = os.pipe()
        self._timer = DeadmanTimer()
        self._poll = select.poll()
        self._channels: dict[str, socket.socket] = {}  # to the lease writer, init, runner and daemon
        self._waking: dict[int, str] = {}  # descriptor -> name, of the channels that wake the loop
        self._alive_write = -1  # closes with this process
        self._writer = self._init = 0  # pids
        self._pids = {"runner": 0, "daemon": 0}  # as seen outside the namespace
        self._state = b""  # as last told
        self._busy = False  # the lease writer is in a cycle
        self._next_cycle_us = self._asked_us = 0
        self._failure = ""  # of the last cycle, until one succeeds
        self._account = LeaseAccount()
        self._watchdog_us, self._pet_us = watchdog_pause_us(), 0  # of the service manager
        self._last_words = ""  # of init
        self._terminating = False
        self._terminated_us = 0  # when it was told to leave
        self._lacking: list[str] = []  # what has ended for good
        self._deadman = Deadman.NONE
        self._vigil = Vigil(self._profile)
        self._group: ControlGroup | None = None  # of all of the node but this process and the writers (P7.11)
        self._ran_here = 0  # the last incarnation that HOME knows of
        self._caretaker: socket.socket | None = None
        self._since = 0  # the first incarnation that HOME answers for (P6.33)
        self._here: Place = read_place()  # before this process enters any namespace
        self._witnesses = Witnesses(self._poll, self._here)
        self._version = options.version
        self._one_kernel = False
        self._device = WatchdogState()  # of the machine's watchdog (P7.33)
        self._watchdog: WatchdogEnd | None = None
        self._retiming: Retiming | None = None
        self._offer: Offer | None = None
        self._life = b""  # what the lease record is to say of init, once it is forked
        self._named = self._released = False  # the writer has been told of it; init has been let go on
        self._keeper: LeaseKeeper
        self._leash: Leash

    # --- start ---

    def start(self) -> None:
        """Everything up to a held lease. Raises `StartRefused`, `Ended`."""
        set_process_name(GUARD)
        self._ran_here = self._recorded_incarnation()
        self._catch_signals()
        self._poll.register(self._log_writer.ended, select.POLLIN)
        self._one_kernel = self._store.one_machine
        if self._one_kernel:
            self._vigil.stands_apart = self._version >= LIFE_SINCE  # others ask the kernel: nobody counts its lease
            self._refuse_other_kernels()
        elif left := kernel_spaces.held():
            raise NotNow(
                f"the kernel has lockspaces of an earlier node ({', '.join(left)}), which may still write: "
                "restart this machine"
            )
        predecessor = self._settle_predecessor()
        # Of an incarnation that was killed; not before, a refused start must leave it to the next.
        self._log_writer.tell_state(NOTHING_YET)
        forced = _DEADMEN[self._options.deadman]
        self._deadman = choose_deadman() if forced is None else forced
        last = predecessor.stamp.incarnation
        self._keeper = LeaseKeeper(
            self._options.node,
            next_incarnation(last, int.from_bytes(os.urandom(4), "little")),
            predecessor,
            self._profile.leased(one_machine=self._vigil.stands_apart),
            self._deadman,
            read_boot_id(),
        )
        self._keeper.owed = self._take_up_cleanups(predecessor)
        self._arm_watchdog()
        self._take_lease()

    def _arm_watchdog(self) -> None:
        """Arm the watchdog that is set for this node; its lease says so from the first record on (P7.33).

        Raises `StartRefused`: a node that is to have one does not run without.
        """
        setting = watchdogs.parse(self._options.watchdog)
        if setting is None or self._one_kernel or self._version < WATCHDOG_SINCE:
            return
        profile = self._options.profile
        if not profile.watchdog_ms:
            raise StartRefused(
                f"a watchdog is set ({self._options.watchdog}), and profile {profile.name} has no room for one; on a "
                "running node: muster config set profile shared, or muster config set watchdog none"
            )
        self._watchdog = start_watchdog(Asked(self._options.name, setting, profile))
        try:
            armed = wait_until_armed(self._watchdog, _ARMED_WITHIN_MS)
        except (WatchdogRefused, OSError) as error:
            self._watchdog.channel.close()
            raise StartRefused(f"{error}; it is set for this node, which would prove nothing without it") from error
        armed = armed._replace(proves=setting.trusted or not is_virtual())
        self._device.is_armed(armed)
        self._profile = profile.with_watchdog(armed.times)
        self._vigil = Vigil(self._profile)
        self._keeper.retime(self._profile, self._profile.loop_ms, self._device.recorded())
        times = armed.times
        detail = (
            f"{armed.identity}: it resets this machine at most {times.bound_ms} ms after the deadline; the lease is "
            f"{self._profile.lease_ms} ms"
        )
        if not armed.proves:
            detail += "; this is a virtual machine, whose clock may stop: its expired lease is no proof (trusted)"
        self._log.tell("info", "watchdog", detail)

    def _take_up_cleanups(self, predecessor: Lease) -> Owed | None:
        """What this machine still owes of earlier runs (P6.33); nothing said where the home cannot be asked."""
        home, incarnation = self._options.home, self._keeper.incarnation
        last, since = last_run(home)
        # A home answers for a run that began with it, and for those before that without a gap between them.
        self._since = since if last and last == predecessor.stamp.incarnation else incarnation
        boot_id = self._keeper.boot_id.hex()
        try:
            kept = all_kept(home)
            for each in kept:
                if _is_void(each, boot_id):
                    drop(home, each)
            record_run(home, incarnation, self._since)
        except OSError as error:
            self._say(f"{home}/cleanups cannot be used: {error}; services with a cleanup_command cannot start here")
            return None
        left = {each.identity for each in kept if not _is_void(each, boot_id)}
        if left:
            self._say(f"an earlier run has left something of {len(left)} services in this machine; it is cleared first")
        left |= {each.identity for each in _planted(home, boot_id, self._say)}
        return Owed(self._since, (), tuple(sorted(left)))

    def _catch_signals(self) -> None:
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)
        self._poll.register(self._wake_read, select.POLLIN)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, *_STOP_AT_ONCE):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, only_wake)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_signal(self, number: int, _frame: object) -> None:
        if len(self._signals) < 8:
            self._signals.append(number)

    def _refuse_other_kernels(self) -> None:
        """One kernel only may use a store of scope `host`: watch what runs under another one (P7.17)."""
        others = OtherKernels(self._profile.gap_ms, self._here.boot_id)
        while True:
            started_us = boottime_us()
            leases, failure = None, ""
            try:
                leases = self._store.read_leases()
            except (StoreFailed, OSError) as error:
                failure = str(error)
            found = others.read(leases, started_us, boottime_us())
            if found.unreadable:
                raise NotNow(f"cannot read {self._where()}: {failure}")
            if found.beats >= 0:
                raise StartRefused(
                    f"node {found.beats} renews its lease in {self._options.store} under another kernel; a store of "
                    "scope host is for the nodes of one machine; stop that one, or make a store of scope shared"
                )
            if not found.may_run:
                return
            if self._signals:
                raise Ended
            time.sleep(self._profile.read_ms / 1000)

    def _where(self) -> str:
        return f"the lease register of node {self._options.node} in {self._options.store}"

    def _settle_predecessor(self) -> Lease:
        """Watch the own register until the last incarnation is proven stopped (SPEC 7.1); its last record."""
        predecessor = Predecessor(self._profile.gap_ms, one_kernel=self._store.one_machine)
        witness: Witness | None = None
        where = self._where()
        while True:
            if self._signals:
                raise Ended
            started_us = boottime_us()
            try:
                lease, failure = self._store.read_own(), "no copy of it is valid; run `muster store check`"
            except (StoreFailed, OSError) as error:
                lease, failure = None, str(error)
            verdict = predecessor.read(lease, started_us, boottime_us())
            if verdict is Verdict.UNREADABLE:
                raise NotNow(f"cannot read {where}: {failure}")
            if verdict is Verdict.BEATS:
                text = f"another host runs under this name: the beat in {where} advances; stop that one, or correct"
                raise StartRefused(f"{text} the name of this one")
            if lease is not None:
                witness = witness or self._witness(lease)
                ended = witness is not None and bool(witness.look())
                if ended or self._is_settled(lease, predecessor.watch, where, asked=witness is not None):
                    return lease
            self._pause(witness)

    def _witness(self, lease: Lease) -> Witness | None:
        """Whoever can tell that the predecessor has stopped, if the kernel can be asked (P7.14)."""
        life = to_ask(lease)
        if life is None:
            return None
        try:
            return Witness(life, lease.boot_id, self._here)
        except (CannotAsk, OSError):
            return None

    def _pause(self, witness: Witness | None) -> None:
        """Until the next read is due; no longer than until the kernel has something to say."""
        poll = select.poll()
        for descriptor, mask in (witness.descriptors if witness is not None else {}).items():
            poll.register(descriptor, mask)
        poll.poll(self._profile.read_ms)

    def _is_settled(self, lease: Lease, watch: LeaseWatch, where: str, *, asked: bool) -> bool:
        vouched = self._options.predecessor_stopped
        suspect_ms = self._profile.suspect_ms
        verdict = settled(lease, watch, self._as_remembered(), vouched=vouched, asked=asked, suspect_ms=suspect_ms)
        if verdict is Verdict.STILL_RUNS and lease.life is not None:
            life = lease.life
            what = f"its init is process {life.init_pid}" if life.init_pid else f"in control group {life.group}"
            raise StartRefused(
                f"incarnation {lease.stamp.incarnation} of this node, silent in {where}, still runs on this machine "
                f"({what}); end what keeps it, or restart this machine, then start the node again"
            )
        if verdict is Verdict.UNPROVEN:
            raise StartRefused(
                f"{where} shows incarnation {lease.stamp.incarnation} alive and silent, and nothing proves that it has "
                "stopped; make sure that it is stopped where it ran, then start once with --predecessor-stopped"
            )
        return verdict is Verdict.GONE

    def _as_remembered(self) -> Here:
        return Here(self._here.boot_id, self._here.machine_id, self._ran_here)

    def _has_stopped_here(self, lease: Lease) -> bool:
        return has_stopped_here(lease, self._as_remembered())

    def _recorded_incarnation(self) -> int:
        """The incarnation that HOME/guard.json names; 0 where it names none."""
        incarnation = _recorded(self._options.home).get("incarnation")
        return incarnation if isinstance(incarnation, int) else 0

    def _take_lease(self) -> None:
        """Two renewals: if somebody else begins under this name now, the second sees it. Raises `StartRefused`."""
        patience = Patience()
        where = f"the lease of node {self._options.node} in {self._options.store}"
        while True:
            asked_us = boottime_us()
            try:
                outcome = renew(self._store, self._keeper)
            except CycleFailed as failure:
                if patience.is_over(boottime_us(), failed=True):
                    raise NotNow(f"cannot take {where}: {failure}") from failure
            else:
                if isinstance(outcome, Stop):
                    raise StartRefused(f"cannot take {where}: {outcome.cause}")
                patience.is_over(boottime_us(), failed=False)
                before_us, self._vigil.lease_deadline_us = self._vigil.lease_deadline_us, outcome
                if self._watchdog is not None:
                    self._watchdog.pace.extend(outcome)  # from the first record on nothing is fed without a deadline
                if before_us:
                    self._next_cycle_us = asked_us + self._profile.renew_ms * US_PER_MS
                    return
            time.sleep(self._profile.renew_ms / 1000)

    # --- the node's processes ---

    def run(self) -> int:
        """Run the node until it ends; the exit status. `start` has succeeded."""
        try:
            self._fork_writer(lambda: self._store)
            self._store.close()
            os.close(self._lock)
            self._start_caretaker()
            self._fork_init()
            self._show_caretaker()
            self._watch_watchdog()
            self._loop()
        except _Left:
            return self._end(clean=True, cause="")
        except _Panicked as panic:
            return self._end(clean=False, cause=str(panic))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the guard, the node must not go on
            self._say(describe(error))
            return self._end(clean=False, cause=f"its guard cannot go on: {error!r}"[:MAXIMUM_CAUSE_CHARACTERS])

    def _watch_watchdog(self) -> None:
        """From now on the feeder owes signs of life."""
        if self._watchdog is not None:
            self._add_channel("watchdog", self._watchdog.channel)
            self._vigil.begun("watchdog", boottime_us())

    def _fork_writer(self, store: Callable[[], LeaseStore]) -> None:
        settle_memory()
        gc.disable()  # nothing here makes cycles, and a collection would come at the wrong moment
        hold_memory_and_priority()
        ours, theirs = _make_channel()
        guard = os.getpid()
        self._writer = fork_into(lambda: run_lease_writer(theirs, ours, store, self._keeper, guard, self._say))
        theirs.close()
        self._add_channel("writer", ours)

    def _start_caretaker(self) -> None:
        """Before the namespace is entered: it outlives all that is killed with the node (P6.34)."""
        options = self._options
        duty = Duty(
            options.home, options.name, options.node, self._keeper.incarnation, self._since, self._open_store,
            is_tree=self._deadman is Deadman.PROCESS_TREE,
        )  # fmt: skip
        self._caretaker = start_caretaker(duty)  # kept to the very end: its closing says that this process has ended
        self._add_channel("caretaker", self._caretaker)

    def _show_caretaker(self) -> None:
        """Hand the caretaker what shows it the end of the node, whatever becomes of this process."""
        shown = [os.pidfd_open(self._init), os.pidfd_open(self._writer)]
        try:
            send_descriptors(self._channels["caretaker"], b"init", shown)
        except OSError as error:
            self._say(f"the caretaker cannot be told of init: {error}; what services leave is cleared at the next boot")
        for descriptor in shown:
            os.close(descriptor)

    def _fork_init(self) -> None:
        pairs = {name: _make_channel() for name in ("init", "runner", "daemon")}
        runner_end, daemon_end = _make_channel()
        for ours, _theirs in pairs.values():
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # who speaks: pids as seen outside
        alive_read, self._alive_write = os.pipe()
        options = self._options
        setup = InitSetup(
            guard=pairs["init"][1],
            guard_alive=alive_read,
            daemon_guard=pairs["daemon"][1],
            daemon_runner=daemon_end,
            runner_guard=pairs["runner"][1],
            runner_daemon=runner_end,
            profile=self._profile,
            home=options.home,
            incarnation=self._keeper.incarnation,
            daemon=options.daemon,
        )
        self._leash = Leash(self._deadman)
        if self._leash.is_tree:
            adopt_orphans()
            setup = setup._replace(group=make_group(f"muster-{options.name}-{self._keeper.incarnation}"))
            self._group = setup.group
        else:
            enter_pid_namespace()
        self._log.tell(*mode_words(self._deadman, self._group))
        self._move_deadline(boottime_us())
        self._init = fork_into(lambda: run_init(setup, self._leash))
        now_us = boottime_us()
        for name, (ours, theirs) in pairs.items():
            theirs.close()
            self._add_channel(name, ours)
            self._vigil.begun(name, now_us)
        life = life_of(0 if self._leash.is_tree else self._init, self._here, self._group)
        self._life = encode_life(life)
        if self._one_kernel and (life.init_pid or life.group):
            self._offer_word(life)  # first: who reads the record may ask at once
        self._name_init()
        runner_end.close()
        daemon_end.close()
        os.close(alive_read)

    def _offer_word(self, life: Life) -> None:
        """Hand what shows the end of the node to guards that cannot ask (P7.20); without it they do as before."""
        try:
            self._offer = Offer(life, self._group.folder if self._group is not None else "")
        except OSError as error:
            self._log.tell("info", "hand-over", f"guards of other namespaces are handed nothing to watch: {error}")

    def _name_init(self) -> None:
        """Have the lease record name init, where that may be written, and let init go on once that is durable (P7.14).

        Whoever reads the record of an incarnation that runs something can then ask the kernel about it.
        """
        if self._named or not self._life or self._version < LIFE_SINCE:
            if not self._named:
                self._release_init()
            return
        self._channels["writer"].send(b"life " + self._life, socket.MSG_DONTWAIT)
        self._named = True
        self._next_cycle_us = 0  # at once

    def _release_init(self) -> None:
        if not self._released:
            self._released = True
            self._channels["init"].send(b"go", socket.MSG_DONTWAIT)

    def _add_channel(self, name: str, channel: socket.socket) -> None:
        """Only what must be heard at once wakes the loop; pulses of init and runner wait for the writer's answer."""
        self._channels[name] = channel
        if name in ("writer", "daemon", "caretaker", "watchdog"):
            self._waking[channel.fileno()] = name
            self._poll.register(channel, select.POLLIN)

    def _move_deadline(self, now_us: int) -> None:
        """This loop turns: move the deadman, no further than the lease lets it (P7.12)."""
        deadline_us = self._vigil.turned(now_us)
        if deadline_us is not None:
            self._publish(deadline_us)

    def _publish(self, deadline_us: int) -> None:
        """The kernel's deadman first, then all that go by it, the feeder last (P7.32)."""
        self._timer.arm(deadline_us)
        self._leash.extend(deadline_us)
        if self._watchdog is not None:
            self._watchdog.pace.extend(deadline_us)

    # --- the loop ---

    def _loop(self) -> NoReturn:
        while True:
            self._renew_if_due()
            self._tell_state()
            self._tell_words()
            ready = [descriptor for descriptor, _mask in self._poll.poll(self._pause_ms())]
            woken = self._wake_read in ready
            if woken:
                drain(self._wake_read)  # before what it stands for is looked at
            if self._log_writer.ended in ready:
                ready.remove(self._log_writer.ended)
                self._poll.unregister(self._log_writer.ended)
                self._lacks("log writer")
            others = [one for one in ready if one != self._wake_read and not self._witnesses.woken(one)]
            names = [self._waking[descriptor] for descriptor in others]
            now_us = boottime_us()
            if self._vigil.is_late(now_us):
                raise _Panicked("it woke after its deadline had passed")  # P7.4: before anything moves it
            # Everything that has arrived is heard before anything is judged: this process may itself have been late.
            if "writer" in names or now_us >= self._vigil.judgement_us():
                names = list(self._channels)
            for name in names:
                self._hear(name)
            self._hear_feeder(now_us)
            self._take_signals()
            if woken:
                self._reap()  # a child's end wakes the loop
            self._judge(now_us)
            self._witnesses.turn(now_us)
            if self._offer is not None:  # strangers wake nobody: it is looked at in each turn, whatever that is for
                self._offer.answer()
            self._move_deadline(now_us)
            self._pet_service_manager(now_us)

    def _hear_feeder(self, now_us: int) -> None:
        """Its sign of life, and how far other times have come (P7.35)."""
        if self._watchdog is not None:
            self._vigil.pulsed("watchdog", self._watchdog.pace.looked_us)
        self._go_on_retiming(now_us)

    def _pause_ms(self) -> int:
        wake_us = self._vigil.wake_us()
        if not self._busy:
            wake_us = min(wake_us, self._next_cycle_us)
        return int(max(0, (wake_us - boottime_us()) // US_PER_MS + 1))

    def _renew_if_due(self) -> None:
        now_us = boottime_us()
        if self._busy or now_us < self._next_cycle_us:
            return
        self._channels["writer"].send(b"renew", socket.MSG_DONTWAIT)
        self._busy, self._asked_us = True, now_us
        self._next_cycle_us = max(self._next_cycle_us + self._profile.renew_ms * US_PER_MS, now_us)

    def _judge(self, now_us: int) -> None:
        found = self._vigil.judge(now_us)
        if found is None:
            return
        if found.why is Why.NOT_RENEWED:
            waited_ms = (now_us - self._asked_us) // US_PER_MS
            why = self._failure or f"the store {self._options.store} has not answered for {waited_ms} ms"
            raise _Panicked(f"its lease could not be renewed: {why}")
        if found.why is Why.NOT_EMPTIED:
            raise _Panicked(self._not_emptied())
        raise _Panicked(f"its {found.who} gave no sign of life in time")

    def _not_emptied(self) -> str:
        """What a node that has left still runs, in words: the kernel holds it, so no tombstone is written (P6.31)."""
        below = descendants((self._init,), read_parents())
        names = ", ".join(f"{pid} ({read_name(pid)})" for pid in below[:5]) or f"{self._init} (its init process)"
        waited = f"{LEAVE_US // 1_000_000} s after SIGKILL"
        return f"it has left, but some of its processes do not end {waited}: {names}; restart this machine"

    def _pet_service_manager(self, now_us: int) -> None:
        if self._watchdog_us and now_us >= self._pet_us:
            notify("WATCHDOG=1")
            self._pet_us = now_us + self._watchdog_us

    def _hear(self, name: str) -> None:
        channel = self._channels[name]
        for _ in range(_PACKETS_A_TURN):
            try:
                data, ancillary, _flags, _address = channel.recvmsg(
                    MAXIMUM_PACKET_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            except OSError:
                data, ancillary = b"", []
            if not data:  # its only other holders have ended, which `_reap` judges
                if name in ("writer", "daemon", "caretaker", "watchdog"):
                    self._poll.unregister(channel)
                if name == "watchdog":
                    raise _Panicked("the holder of its watchdog has ended: the machine is about to be reset")
                if name == "caretaker":
                    self._say("its caretaker has ended: what services leave is cleared at the next boot only")
                    self._lacks("caretaker")
                del self._channels[name]
                return
            sender = _CREDENTIALS.unpack(ancillary[0][2])[0] if ancillary else 0
            word, _space, rest = data.decode(errors="replace").partition(" ")
            if name == "writer":
                self._hear_writer(word, rest)
            elif name == "caretaker":
                self._channels["writer"].send(data, socket.MSG_DONTWAIT)
            elif name == "daemon":
                self._hear_daemon(word, rest, sender)
            elif name == "watchdog":
                raise _Panicked(rest)
            else:
                self._hear_init_or_runner(name, word, rest, sender)

    def _hear_writer(self, word: str, rest: str) -> None:
        self._busy = False
        if word == "renewed":
            self._failure = ""
            self._account.renewed(self._vigil.lease_deadline_us - boottime_us())
            self._vigil.lease_deadline_us = int(rest)
            if self._retiming is not None and self._retiming.order is Order.RECORD:
                self._extend_times(self._retiming)
            if self._named:  # the writer was told of init before it was asked for this renewal
                self._release_init()
        elif word == "failed":
            self._failure = rest
            self._account.failed()
        else:
            raise _Panicked(rest)

    # --- other times (P7.35) ---

    def _take_profile(self, text: str) -> None:
        """The cluster has another profile: go over to its lease, deadman and watchdog, in the order of P7.35."""
        try:
            profile = check(Profile(**json.loads(text)))
        except (TypeError, ValueError, InconsistentProfile) as error:
            self._say(f"the cluster's profile cannot be used here: {error}")
            return
        if profile == self._chosen or self._one_kernel:
            return
        self._chosen = profile
        armed = self._device.recorded()
        if armed is not None and not profile.watchdog_ms:
            self._say(f"profile {profile.name} has no room for this node's watchdog: its times stay as they are")
        elif armed is None:
            self._retiming = Retiming(self._profile, profile)
        else:
            self._retiming = Retiming(self._profile, profile.with_watchdog(self._times_with(armed, profile)))

    def _times_with(self, armed: Armed, profile: Profile) -> WatchdogTimes:
        setting = watchdogs.parse(self._options.watchdog)
        stages = setting.stages if setting is not None else 0
        return times_of(
            armed.identity, profile.watchdog_ms, profile, held=armed.times.late_excluded, stages=stages
        )  # fmt: skip

    def _go_on_retiming(self, now_us: int) -> None:
        """The next thing that is due; nothing while a renewal is under way."""
        retiming = self._retiming
        if retiming is None or self._busy:
            return
        if retiming.order is Order.LESSEN:
            deadline_us = retiming.lessened(self._vigil.lease_deadline_us, now_us)
            if deadline_us is None:
                return
            self._tell_times(retiming)
            self._vigil.retime(self._profile, retiming.span_ms, deadline_us)
            self._publish(self._vigil.deadline_us)
            if self._watchdog is not None:
                self._watchdog.pace.want(retiming.timeout_ms)
        if retiming.order is Order.READ_BACK:
            self._read_back(retiming)

    def _read_back(self, retiming: Retiming) -> None:
        set_ms = self._watchdog.pace.set_ms if self._watchdog is not None else 0
        if self._watchdog is not None and set_ms not in (-1, retiming.timeout_ms):
            return  # the feeder has not come to it
        if retiming.read_back(set_ms):
            self._tell_times(retiming)
            self._next_cycle_us = 0  # at once
            return
        self._retiming = None
        self._say("its watchdog cannot be set to the timeout of the new profile: its times stay as they are")
        self._return_to(self._profile)

    def _return_to(self, profile: Profile) -> None:
        self._vigil.retime(profile, profile.loop_ms, self._vigil.lease_deadline_us)
        if self._watchdog is not None:
            self._watchdog.pace.want(profile.watchdog_ms)
        packet = times_packet(profile, profile.loop_ms, self._device.recorded())
        self._channels["writer"].send(packet, socket.MSG_DONTWAIT)

    def _extend_times(self, retiming: Retiming) -> None:
        """The record with the new times is durable: deadman and watchdog may go by them."""
        retiming.recorded()
        self._profile = retiming.in_record
        armed = self._device.recorded()
        if armed is not None:
            self._device.is_armed(armed._replace(times=self._times_with(armed, self._profile)))
        self._vigil.retime(self._profile, retiming.span_ms, self._vigil.lease_deadline_us)
        if self._watchdog is not None:
            self._watchdog.pace.want(retiming.timeout_ms)
        self._tell_times(retiming)
        retiming.extended()
        self._retiming = None
        self._log.tell("info", "times", f"profile {self._profile.name}: lease {self._profile.lease_ms} ms")

    def _tell_times(self, retiming: Retiming) -> None:
        profile, armed = retiming.in_record, self._device.recorded()
        if armed is not None:
            armed = armed._replace(times=self._times_with(armed, profile))
        self._channels["writer"].send(times_packet(profile, retiming.span_ms, armed), socket.MSG_DONTWAIT)

    def _hear_init_or_runner(self, name: str, word: str, rest: str, sender: int) -> None:
        if word != "pulse":
            self._last_words = f"its {word} {rest}"
            return
        self._vigil.pulsed(name, boottime_us())
        if name in self._pids:
            self._pids[name] = sender

    def _hear_daemon(self, word: str, rest: str, sender: int) -> None:
        now_us = boottime_us()
        if word == "pulse":
            self._vigil.pulsed("daemon", now_us)
            self._pids["daemon"] = sender
            self._tell_lease(now_us)
        elif word == "started":
            self._pids["daemon"] = sender
            self._tell_term(now_us)
            self._tell_lacking()
        elif word == "exited":
            self._pids["daemon"] = 0
            self._vigil.daemon_ended(now_us, asked_for=rest == explain_status(0))
            self._say(f"the daemon {rest}; it is started again, the services go on")
        elif word == "leave" and not self._vigil.leaving:
            self._vigil.leaves(now_us)
            os.kill(self._init, signal.SIGKILL)  # renewals go on until it and all below it are gone
        elif word == "panic":
            raise _Panicked(rest[:MAXIMUM_CAUSE_CHARACTERS])
        elif word == "watch":
            self._watch(rest)
        elif word == "version":
            self._version = int(rest)
            self._name_init()
        elif word == "profile":
            self._take_profile(rest)

    def _watch(self, asked: str) -> None:
        """The daemon asks whether an incarnation still runs: now, and to be told when it does not (P7.15)."""
        node, incarnation, boot_id, life = asked.split()
        self._witnesses.ask(int(node), int(incarnation), bytes.fromhex(boot_id), decode_life(bytes.fromhex(life)))

    def _tell_words(self) -> None:
        """Tell the daemon what the kernel says of others. What it cannot take now is told in a later turn."""
        for node, packet in self._witnesses.untold.items():
            try:
                self._channels["daemon"].send(packet, socket.MSG_DONTWAIT)
            except (KeyError, OSError):
                return
            self._witnesses.told(node)

    def _tell_lease(self, now_us: int) -> None:
        """Tell the daemon how the renewals go, now and then, as the answer to a pulse: so nothing can pile up."""
        packet = self._account.packet(now_us)
        if packet is None:
            return
        try:
            self._channels["daemon"].send(packet, socket.MSG_DONTWAIT)
        except OSError:
            return  # it takes nothing now; the numbers are told with the next ones
        self._account.told()

    def _take_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number in _STOP_AT_ONCE or self._terminating:
                raise _Panicked(f"it was told to stop at once ({signal.Signals(number).name})")
            self._terminating, self._terminated_us = True, boottime_us()
            notify("STOPPING=1", "STATUS=leaving the cluster")
            try:
                self._channels["daemon"].send(b"term", socket.MSG_DONTWAIT)
            except (KeyError, OSError):
                raise _Panicked("it was told to stop, and its daemon cannot be reached") from None

    def _lacks(self, what: str) -> None:
        """A process that nobody can replace any more has ended, with its standby: people are to know (P7.19)."""
        self._lacking.append(what)
        self._tell_lacking()

    def _tell_lacking(self) -> None:
        if self._lacking and "daemon" in self._channels:
            with contextlib.suppress(OSError):  # the next daemon is told again
                self._channels["daemon"].send(f"lacks {', '.join(self._lacking)}".encode(), socket.MSG_DONTWAIT)

    def _tell_term(self, now_us: int) -> None:
        """A daemon that begins while the node leaves goes on with that (P4.10)."""
        if self._terminating and not self._vigil.leaving:
            age_ms = (now_us - self._terminated_us) // US_PER_MS
            try:
                self._channels["daemon"].send(b"term %d" % age_ms, socket.MSG_DONTWAIT)
            except (KeyError, OSError):
                raise _Panicked("it was told to stop, and its daemon cannot be reached") from None

    def _reap(self) -> None:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid == self._writer:
                self._writer = 0
                raise _Panicked(f"its lease writer {explain_status(status)}")
            if pid == self._init:
                self._init = 0
                if self._vigil.leaving:
                    raise _Left
                for name in ("daemon", "init"):  # why it has ended, of whom knows best
                    if name in self._channels:
                        self._hear(name)
                raise _Panicked(self._last_words or f"its init process {explain_status(status)}")

    def _tell_state(self) -> None:
        """HOME/guard.json, for `muster dev`. The log writer writes it: this process waits for no file system."""
        state = {
            "pid": os.getpid(),
            "init_pid": self._init,
            "runner_pid": self._pids["runner"],
            "daemon_pid": self._pids["daemon"],
            "incarnation": self._keeper.incarnation,
            "deadman": self._deadman.name.lower(),
            "control_group": self._group.folder if self._group is not None else "",
        }
        told = json.dumps(state).encode()
        if told != self._state and self._log_writer.tell_state(told):
            self._state = told

    # --- the end ---

    def _end(self, *, clean: bool, cause: str) -> int:
        """Empty the node, then write its tombstone (P7.5). The deadman stays armed: whatever hangs, it ends."""
        notify("STOPPING=1", "STATUS=" + ("has left the cluster" if clean else f"panic: {cause}"))
        is_tree = self._deadman is Deadman.PROCESS_TREE
        # In a tree the kernel's word is that this process has no child left, so the lease writer must go first.
        for pid in (self._init, self._writer if is_tree else 0):
            if pid:
                os.kill(pid, signal.SIGKILL)
        if not clean:
            self._say(f"panic: {cause}; everything that this node runs is stopped")
        give_up_us = self._vigil.deadline_us - self._margin_ms() * US_PER_MS
        if is_tree:
            self._leash.extend(0)  # each of them ends what is below it
            stopped = self._group is None or self._group.end(give_up_us, boottime_us)
            stopped = end_everything_below(give_up_us, boottime_us) and stopped
            self._writer = 0
            if self._group is not None:
                self._group.remove()
        else:
            stopped = self._wait_for({self._init} - {0}, give_up_us)
        left = [] if self._one_kernel else kernel_spaces.held()
        if left:
            self._say(
                f"no tombstone is written: the kernel still has the lockspaces {', '.join(left)}, and what stands on "
                "them may write; the others wait until this machine is proven off; restart it"
            )
        elif stopped:
            self._tell_caretaker(cause)
            self._disarm(give_up_us, buried=self._bury(give_up_us, clean=clean, cause=cause))
        else:
            self._say("no tombstone is written, because not everything that it ran has ended: something hangs")
        self._log_writer.tell_state(REMOVE)
        return EXIT_CLEAN if clean and stopped and not left else EXIT_PANIC

    def _tell_caretaker(self, cause: str) -> None:
        """All that the node ran has ended (P6.32)."""
        try:
            if self._caretaker is not None:
                self._caretaker.send(f"empty {cause}".encode(), socket.MSG_DONTWAIT)
        except OSError:
            return  # it has ended: the next boot does its work

    def _wait_for(self, children: set[int], give_up_us: int) -> bool:
        """Until these children have ended: init is the last process of its namespace to go. False: one has not."""
        while True:
            drain(self._wake_read)  # before what it stands for is looked at
            children = {pid for pid in children if not _has_ended(pid)}
            left_us = give_up_us - boottime_us()
            if not children or left_us <= 0:
                return not children
            select.select((self._wake_read,), (), (), left_us / 1e6)

    def _margin_ms(self) -> int:
        """Before the deadman fires, for this process's own last words; a watchdog's bound is no measure of them."""
        return max(_LEAST_MARGIN_MS, min(self._profile.panic_bound_ms // 8, self._profile.renew_ms // 4))

    def _disarm(self, give_up_us: int, *, buried: bool) -> None:
        """Nothing of the node runs: stop the watchdog, if the tombstone that says so is durable (P7.33)."""
        if self._watchdog is None:
            return
        if not self._device.may_close(empty=True, buried=buried):
            self._say("its watchdog is left armed, since no tombstone is durable: it will reset this machine")
            return
        said = close_watchdog(self._watchdog, give_up_us - boottime_us())
        self._device.closed()
        if said == "kept":
            self._log.tell("info", "watchdog", "it cannot be stopped: a small feeder keeps it until the next start")
        elif said != "closed":
            self._say(f"its watchdog could not be stopped, and will reset this machine: {said.removeprefix('open ')}")

    def _bury(self, give_up_us: int, *, clean: bool, cause: str) -> bool:
        """Have the tombstone written, and say whether it is: by the lease writer, or where that has ended by another.

        Where the namespace of this process's children has ended with init, none can be forked any more: the caretaker,
        which has been told the cause, writes the last record then (P6.33).
        """
        self._channels = {"writer": self._channels["writer"]} if self._writer else {}
        if not self._channels:
            try:
                self._fork_writer(self._open_store)
            except OSError as error:
                self._say(f"its lease writer has ended, and there is no other: its caretaker writes the end ({error})")
                return False
        channel = self._channels["writer"]
        problem = "the store does not answer"
        try:
            channel.send(("bury clean" if clean else f"bury panic {cause}").encode(), socket.MSG_DONTWAIT)
            while (left_us := give_up_us - boottime_us()) > 0 and select.select((channel,), (), (), left_us / 1e6)[0]:
                word, _space, rest = channel.recv(MAXIMUM_PACKET_BYTES).decode(errors="replace").partition(" ")
                if word in ("buried", "unburied", ""):  # before it may come the answer to a renewal
                    problem = rest if word else "the lease writer has ended"
                    break
        except OSError as error:
            problem = f"the lease writer cannot be reached: {error.strerror}"
        if problem:
            self._say(f"no tombstone could be written, so the others wait for proof that it has stopped: {problem}")
        channel.close()
        self._wait_for({self._writer}, give_up_us)  # it holds the lock on the node's home
        return not problem

    def _say(self, text: str) -> None:
        self._log.tell("warning", "guard", f"musterd {self._options.name}: {text}")


def _is_void(kept: Kept, boot_id: str) -> bool:
    """Whether it is of an earlier boot of the machine, whose kernel is gone; what was started anew by itself is not."""
    return bool(kept.boot_id) and kept.boot_id != boot_id and not kept.probe


def _planted(home: str, boot_id: str, say: Callable[[str], None]) -> list[Kept]:
    """Have the machine asked about services before the join (P7.45). Raises `StartRefused`."""
    try:
        probes = plant_probes(home, boot_id)
    except (OSError, ValueError) as error:
        raise StartRefused(
            f"{home}/cleanups/{PROBES} says what to ask this machine before the node joins, and cannot be used: "
            f"{error}; replace the disk; or make sure that nothing of its services runs here, and remove that file"
        ) from error
    if probes:
        say(f"before it joins, this machine is asked whether it holds anything of {len(probes)} services")
    return probes


def _make_channel() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _has_ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] == child
    except ChildProcessError:
        return True


def state_path(home: str) -> str:
    """The file that names this node's processes."""
    return os.path.join(home, "guard.json")


def run_guard(options: Options, open_lease_store: Callable[[str, int], LeaseStore]) -> int:
    """Run one node from start to end in this process; the exit status of the module's text."""
    close_descriptors_except(())  # of whoever started this: its exit must wait for nothing of theirs
    log_writer = start_log_writer(options.name, state_path(options.home))
    try:
        lock = lock_home(options.home)
        end_recorded_group(options.home)
        empty_home(options.home, log_writer.pid)
        end_old_caretaker(options.home)
        guard = Guard(options, open_lease_store, log_writer, lock)
        guard.start()
    except Ended:
        status = EXIT_CLEAN
    except (StartRefused, StoreFailed, DeadmanFailed) as refusal:
        Log(options.name, "guard").refuse(f"musterd {options.name}: cannot start: {refusal}")
        passes = isinstance(refusal, NotNow) or (isinstance(refusal, StoreFailed) and refusal.passes)
        status = EXIT_NOT_NOW if passes else EXIT_REFUSED
    else:
        status = guard.run()
    log_writer.finish(_LOG_BOUND_MS)
    return status


def main() -> NoReturn:
    """Entry of `python -m muster.drivers.guard`."""
    try:
        options = parse_options(sys.argv[1:])
        open_lease_store = lease_store_of(options.store)
    except (ValueError, StoreFailed) as error:
        say(f"musterd: {error}; `musterd --help` shows how a node is started")
        os._exit(EXIT_USAGE)
    os._exit(run_guard(options, open_lease_store))


if __name__ == "__main__":
    main()
