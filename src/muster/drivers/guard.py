"""The guard: holds the node's lease, obeys marks, watches daemon and runner, and panics the node (SPEC 7.1-7.3, 3.12).

    python -m muster.drivers.guard --store PATH --node-id N --name NAME --home DIR --profile JSON --daemon ARGV...

Theory of operation. Start: take the lock on the node's home; end what an earlier incarnation may have left on this
machine; watch the own lease register until `LeaseWatch` proves the predecessor stopped; renew twice, the second time
proving that nobody else has begun under this name; arm the deadman; fork init. From then on a loop that never waits for
the store: the lease writer (its child) does each cycle and answers with the new deadline, and the deadman is moved. The
guard panics the node when a rule of `core/lease.py` says so, when a pulse is missing, when a child has ended, and
shortly before the deadman would fire, because a panic can still write a tombstone.

A panic kills everything below init, waits until the kernel says that it is gone, and only then has the tombstone
written. The deadman stays armed all the while: if any of it hangs, the guard is killed, and the lease expires.

Exit status: 0 after a clean leave or a stop before the node ran anything, 2 for wrong options, 3 if the start is
refused, 70 after a panic.
"""

import fcntl
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

from muster.core.lease import US_PER_MS, LeaseKeeper, LeaseWatch, Stop, next_incarnation
from muster.drivers.deadman import (
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
)
from muster.drivers.guard_store import GuardStore
from muster.drivers.init_process import NODE_HOME, InitSetup, run_init
from muster.drivers.lease_account import LeaseAccount
from muster.drivers.lease_writer import (
    MAXIMUM_PACKET_BYTES,
    CycleFailed,
    LeaseStore,
    renew,
    run_lease_writer,
    write_tombstone,
)
from muster.drivers.log_lines import Log
from muster.drivers.process_tree import (
    descendants,
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
from muster.drivers.service_manager import notify, watchdog_pause_us
from muster.drivers.store import StoreFailed
from muster.records.registers import Deadman, Lease, LeaseState
from muster.records.timing import InconsistentProfile, Profile, check, with_drift_ms

EXIT_CLEAN, EXIT_USAGE, EXIT_REFUSED, EXIT_PANIC = 0, 2, 3, 70
_ASKED_FOR_PATIENCE = 4  # times the restart bound, for the successor of a daemon that was asked to end
FAILED_READS_LIMIT = 20  # in a row, while starting
MAXIMUM_CAUSE_CHARACTERS = 400
_PACKETS_A_TURN = 256  # taken from one channel before the loop goes on
_CREDENTIALS = struct.Struct("3i")
_EMPTY_HOME_US = 5_000_000
_STOP_AT_ONCE = (signal.SIGINT, signal.SIGQUIT)
_FORKED_NAMES = ("muster-init", "muster-runner", "muster-watcher", "muster-keeper")
_STATE_BYTES = 4096
_DEADMEN = {"auto": None, "pid-namespace": Deadman.PID_NAMESPACE, "process-tree": Deadman.PROCESS_TREE}


class StartRefused(Exception):
    """The node must not start, or not now; the message names what is wrong, where, and what to do."""


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


def guard_command(options: Options) -> list[str]:
    """The command line that starts this guard; `musterd` executes it in its own place."""
    return [
        *(sys.executable, "-m", "muster.drivers.guard", "--store", options.store, "--node-id", str(options.node)),
        *("--name", options.name, "--home", options.home, "--profile", json.dumps(options.profile._asdict())),
        *("--deadman", options.deadman),
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
        elif word in ("--store", "--node-id", "--name", "--home", "--profile", "--deadman") and rest:
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
        node = int(given["--node-id"])
    except (TypeError, ValueError, InconsistentProfile) as error:
        raise ValueError(f"--profile or --node-id: {error}") from error
    return Options(
        given["--store"],
        node,
        given["--name"],
        os.path.realpath(given["--home"]),
        profile,
        daemon,
        given.get("--deadman", "auto"),
        "--predecessor-stopped" in given,
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
        raise StartRefused(f"{text} store still hangs; {advice}") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def empty_home(home: str) -> None:
    """End what an earlier incarnation of this node left on this machine (SPEC 7.1). Raises `StartRefused`.

    With a PID namespace there is nothing to find. In a process tree a service's detached process may be known only by
    its keeper, so none is killed before everything below it has been found and stopped. The caller holds the lock on
    `home`.
    """
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


def _find_left(home: str) -> set[int]:
    parents = read_parents()
    own = [pid for pid in parents if pid != os.getpid() and _belongs_to(pid, home)]
    return {*own, *descendants(own, parents)} - {os.getpid()}


def _belongs_to(pid: int, home: str) -> bool:
    words = read_command_line(pid)
    forked = read_name(pid) in _FORKED_NAMES and os.fsencode(home) in words and b"muster.drivers.guard" in words
    if not forked and read_environment(pid).get(NODE_HOME.encode()) != os.fsencode(home):
        return False
    try:
        # A container that is visible from here may have a home of the same name, and it is not this one.
        return os.path.samestat(os.stat(f"/proc/{pid}/root{home}"), os.stat(home))
    except OSError:
        return False  # it has just ended, or is not this user's to end


class _Panicked(Exception):
    """The node must stop at once; the message is the cause."""


class _Left(Exception):
    """The node has left, and nothing of it runs any more."""


class Guard:
    """One guard, from its start to its end. While the node runs, `store` is used by the lease writer only."""

    def __init__(self, options: Options, store: LeaseStore) -> None:
        self._options, self._profile, self._store = options, options.profile, store
        self._log = Log(options.name, "guard")
        self._state_path = os.path.join(options.home, "guard.json")
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
        self._due_us: dict[str, int] = {}  # when each pulse is overdue
        self._daemon_up = False  # the present daemon has pulsed
        self._last_words = ""  # of init
        self._terminating = self._leaving = False
        self._deadman, self._deadline_us = Deadman.NONE, 0
        self._ran_here = 0  # the last incarnation that HOME knows of
        self._keeper: LeaseKeeper
        self._leash: Leash

    # --- start ---

    def start(self) -> None:
        """Everything up to a held lease. Raises `StartRefused`, `Ended`."""
        set_process_name("muster-guard")
        self._ran_here = self._recorded_incarnation()
        self._catch_signals()
        predecessor = self._settle_predecessor()
        self._remove_state()  # of an incarnation that was killed; not before, a refused start must leave it to the next
        forced = _DEADMEN[self._options.deadman]
        self._deadman = choose_deadman() if forced is None else forced
        if self._deadman is Deadman.PROCESS_TREE:
            self._say(
                "no PID namespace: a process of a service that detaches itself may survive if guard, init, runner and "
                "its keeper are all killed at once; allow this user namespaces for full protection"
            )
        last = predecessor.stamp.incarnation
        self._keeper = LeaseKeeper(
            self._options.node,
            next_incarnation(last, int.from_bytes(os.urandom(4), "little")),
            predecessor,
            self._profile,
            self._deadman,
            read_boot_id(),
        )
        self._take_lease()

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

    def _settle_predecessor(self) -> Lease:
        """Watch the own register until the last incarnation is proven stopped (SPEC 7.1); its last record."""
        watch = LeaseWatch(self._profile.gap_ms, timers_prove=self._store.one_machine)
        first: Lease | None = None
        failures = 0
        where = f"the lease register of node {self._options.node} in {self._options.store}"
        while True:
            if self._signals:
                raise Ended
            started_us = boottime_us()
            try:
                lease, failure = self._store.read_own(), "no copy of it is valid; run `muster store check`"
            except (StoreFailed, OSError) as error:
                lease, failure = None, str(error)
            watch.observe(lease, started_us, boottime_us())
            failures = 0 if lease else failures + 1
            if failures > FAILED_READS_LIMIT:
                raise StartRefused(f"cannot read {where}: {failure}")
            if lease is not None:
                first = first or lease
                if lease.stamp != first.stamp and lease.state is LeaseState.LIVE:
                    text = f"another host runs under this name: the beat in {where} advances; stop that one, or correct"
                    raise StartRefused(f"{text} the name of this one")
                if self._is_settled(lease, watch, where):
                    return lease
            time.sleep(self._profile.read_ms / 1000)

    def _is_settled(self, lease: Lease, watch: LeaseWatch, where: str) -> bool:
        if lease.state is LeaseState.NEVER or watch.evidence(lease.stamp.incarnation) is not None:
            return True
        if watch.silent_us() < with_drift_ms(lease.lease_ms) * US_PER_MS:
            return False
        if self._options.predecessor_stopped or self._has_stopped_here(lease):
            return True
        raise StartRefused(
            f"{where} shows incarnation {lease.stamp.incarnation} alive and silent, and nothing proves that it has "
            "stopped: make sure that it is stopped wherever it ran, then start once with --predecessor-stopped"
        )

    def _has_stopped_here(self, lease: Lease) -> bool:
        """Whether a silent incarnation ran on this very machine, under a timer of this kernel or of one that is gone.

        The lock on HOME is held by now. HOME must be the machine's own: what it records is taken for what ran here.
        """
        if lease.deadman is Deadman.NONE:
            return False
        return lease.boot_id == read_boot_id() or lease.stamp.incarnation == self._ran_here

    def _recorded_incarnation(self) -> int:
        """The incarnation that HOME/guard.json names; 0 where it names none."""
        try:
            with open(self._state_path, "rb") as file:
                return int(json.loads(file.read(_STATE_BYTES))["incarnation"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _take_lease(self) -> None:
        """Two renewals: if somebody else begins under this name now, the second sees it. Raises `StartRefused`."""
        failures = 0
        where = f"the lease of node {self._options.node} in {self._options.store}"
        while True:
            asked_us = boottime_us()
            try:
                outcome = renew(self._store, self._keeper)
            except CycleFailed as failure:
                failures += 1
                if failures > FAILED_READS_LIMIT:
                    raise StartRefused(f"cannot take {where}: {failure}") from failure
            else:
                if isinstance(outcome, Stop):
                    raise StartRefused(f"cannot take {where}: {outcome.cause}")
                before_us, self._deadline_us = self._deadline_us, outcome
                if before_us:
                    self._next_cycle_us = asked_us + self._profile.renew_ms * US_PER_MS
                    return
            time.sleep(self._profile.renew_ms / 1000)

    # --- the node's processes ---

    def run(self) -> int:
        """Run the node until it ends; the exit status. `start` has succeeded."""
        try:
            self._fork_writer()
            self._fork_init()
            self._loop()
        except _Left:
            return self._end(clean=True, cause="")
        except _Panicked as panic:
            return self._end(clean=False, cause=str(panic))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the guard, the node must not go on
            sys.excepthook(type(error), error, error.__traceback__)
            return self._end(clean=False, cause=f"its guard cannot go on: {error!r}"[:MAXIMUM_CAUSE_CHARACTERS])

    def _fork_writer(self) -> None:
        gc.collect()
        gc.disable()  # nothing here makes cycles, and a collection would come at the wrong moment
        gc.freeze()
        hold_memory_and_priority()
        ours, theirs = _make_channel()
        guard = os.getpid()
        self._writer = fork_into(
            lambda: run_lease_writer(theirs, ours, self._store, self._keeper, guard, self._state_path, self._say)
        )
        theirs.close()
        self._add_channel("writer", ours)

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
        else:
            enter_pid_namespace()
        self._extend(self._deadline_us)
        self._init = fork_into(lambda: run_init(setup, self._leash))
        now_us = boottime_us()
        for name, (ours, theirs) in pairs.items():
            theirs.close()
            self._add_channel(name, ours)
            self._due_us[name] = now_us + self._profile.restart_ms * US_PER_MS
        runner_end.close()
        daemon_end.close()
        os.close(alive_read)

    def _add_channel(self, name: str, channel: socket.socket) -> None:
        """Only what must be heard at once wakes the loop; pulses of init and runner wait for the writer's answer."""
        self._channels[name] = channel
        if name in ("writer", "daemon"):
            self._waking[channel.fileno()] = name
            self._poll.register(channel, select.POLLIN)

    def _extend(self, deadline_us: int) -> None:
        self._deadline_us = deadline_us
        self._timer.arm(deadline_us)
        self._leash.extend(deadline_us)

    # --- the loop ---

    def _loop(self) -> NoReturn:
        while True:
            self._renew_if_due()
            self._tell_state()
            ready = [descriptor for descriptor, _mask in self._poll.poll(self._pause_ms())]
            woken = self._wake_read in ready
            if woken:
                drain(self._wake_read)  # before what it stands for is looked at
            names = [self._waking[descriptor] for descriptor in ready if descriptor != self._wake_read]
            now_us = boottime_us()
            # Everything that has arrived is heard before anything is judged: this process may itself have been late.
            if "writer" in names or now_us >= self._judgement_us():
                names = list(self._channels)
            for name in names:
                self._hear(name)
            self._take_signals()
            if woken:
                self._reap()  # a child's end wakes the loop
            self._judge(now_us)
            self._pet_service_manager(now_us)

    def _judgement_us(self) -> int:
        """When there is something to judge, if nothing is heard until then."""
        pulses_us: list[int] = [] if self._leaving else list(self._due_us.values())
        return min([self._give_up_us(), *pulses_us])

    def _pause_ms(self) -> int:
        wake_us = self._judgement_us()
        if not self._busy:
            wake_us = min(wake_us, self._next_cycle_us)
        return int(max(0, (wake_us - boottime_us()) // US_PER_MS + 1))

    def _give_up_us(self) -> int:
        """When a panic that can still write its tombstone must begin, if the lease has not been renewed by then."""
        margin_ms = min(self._profile.renew_ms, self._profile.panic_bound_ms)
        return self._deadline_us - margin_ms * US_PER_MS

    def _renew_if_due(self) -> None:
        now_us = boottime_us()
        if self._busy or now_us < self._next_cycle_us:
            return
        self._channels["writer"].send(b"renew", socket.MSG_DONTWAIT)
        self._busy, self._asked_us = True, now_us
        self._next_cycle_us = max(self._next_cycle_us + self._profile.renew_ms * US_PER_MS, now_us)

    def _judge(self, now_us: int) -> None:
        if now_us >= self._give_up_us():
            waited_ms = (now_us - self._asked_us) // US_PER_MS
            why = self._failure or f"the store {self._options.store} has not answered for {waited_ms} ms"
            raise _Panicked(f"its lease could not be renewed: {why}")
        if self._leaving:
            return
        for name, due_us in self._due_us.items():
            if now_us >= due_us:
                raise _Panicked(f"its {name} gave no sign of life in time")

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
                if name in ("writer", "daemon"):
                    self._poll.unregister(channel)
                del self._channels[name]
                return
            sender = _CREDENTIALS.unpack(ancillary[0][2])[0] if ancillary else 0
            word, _space, rest = data.decode(errors="replace").partition(" ")
            if name == "writer":
                self._hear_writer(word, rest)
            elif name == "daemon":
                self._hear_daemon(word, rest, sender)
            else:
                self._hear_init_or_runner(name, word, rest, sender)

    def _hear_writer(self, word: str, rest: str) -> None:
        self._busy = False
        if word == "renewed":
            self._failure = ""
            self._account.renewed(self._deadline_us - boottime_us())
            self._extend(int(rest))
        elif word == "failed":
            self._failure = rest
            self._account.failed()
        else:
            raise _Panicked(rest)

    def _hear_init_or_runner(self, name: str, word: str, rest: str, sender: int) -> None:
        if word != "pulse":
            self._last_words = f"its {word} {rest}"
            return
        self._due_us[name] = boottime_us() + self._profile.pulse_loss_ms * US_PER_MS
        if name in self._pids:
            self._pids[name] = sender

    def _hear_daemon(self, word: str, rest: str, sender: int) -> None:
        now_us = boottime_us()
        if word == "pulse":
            self._daemon_up = True
            self._due_us["daemon"] = now_us + self._profile.pulse_loss_ms * US_PER_MS
            self._pids["daemon"] = sender
            self._tell_lease(now_us)
        elif word == "started":
            self._pids["daemon"] = sender
        elif word == "exited":
            self._pids["daemon"] = 0
            if self._daemon_up:  # one that dies again before its first pulse gets no more time
                patience = _ASKED_FOR_PATIENCE if rest == explain_status(0) else 1  # P10.3: no sign of a fault
                self._due_us["daemon"] = now_us + patience * self._profile.restart_ms * US_PER_MS
            self._daemon_up = False
            self._say(f"the daemon {rest}; it is started again, the services go on")
        elif word == "leave" and not self._leaving:
            self._leaving = True
            os.kill(self._init, signal.SIGKILL)  # renewals go on until it and all below it are gone
        elif word == "panic":
            raise _Panicked(rest[:MAXIMUM_CAUSE_CHARACTERS])

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
            self._terminating = True
            notify("STOPPING=1", "STATUS=leaving the cluster")
            try:
                self._channels["daemon"].send(b"term", socket.MSG_DONTWAIT)
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
                if self._leaving:
                    raise _Left
                if "init" in self._channels:
                    self._hear("init")
                raise _Panicked(self._last_words or f"its init process {explain_status(status)}")

    def _tell_state(self) -> None:
        """HOME/guard.json, for `muster dev`. The lease writer writes it: this process waits for no file system."""
        state = {
            "pid": os.getpid(),
            "init_pid": self._init,
            "runner_pid": self._pids["runner"],
            "daemon_pid": self._pids["daemon"],
            "incarnation": self._keeper.incarnation,
            "deadman": self._deadman.name.lower(),
        }
        told = json.dumps(state).encode()
        if told != self._state:
            self._channels["writer"].send(told, socket.MSG_DONTWAIT)
            self._state = told

    # --- the end ---

    def _end(self, *, clean: bool, cause: str) -> int:
        """Empty the node, then write its tombstone (SPEC 7.1). The deadman stays armed: whatever hangs, it ends."""
        notify("STOPPING=1", "STATUS=" + ("has left the cluster" if clean else f"panic: {cause}"))
        for pid in (self._init, self._writer):
            if pid:
                os.kill(pid, signal.SIGKILL)
        if not clean:
            self._say(f"panic: {cause}; everything that this node runs is stopped")
        if self._deadman is Deadman.PROCESS_TREE:
            end_everything_below(self._deadline_us, boottime_us)
        else:
            _wait_for_all()
        try:
            write_tombstone(self._store, self._keeper, clean=clean, cause=cause)
        except CycleFailed as failure:
            self._say(f"no tombstone could be written, so the others wait for the lease to expire: {failure}")
        self._remove_state()
        return EXIT_CLEAN if clean else EXIT_PANIC

    def _remove_state(self) -> None:
        try:
            os.unlink(self._state_path)
        except OSError:
            return  # it was never written, or cannot be removed: its readers check whether the pid still is a guard's

    def _say(self, text: str) -> None:
        self._log.tell("warning", "guard", f"musterd {self._options.name}: {text}")


def _make_channel() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _wait_for_all() -> None:
    """Until the kernel says that no child is left: init is the last process of its namespace to go."""
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def run_guard(options: Options, open_lease_store: Callable[[str, int], LeaseStore]) -> int:
    """Run one node from start to end in this process; the exit status of the module's text."""
    try:
        lock = lock_home(options.home)
        empty_home(options.home)
        guard = Guard(options, open_lease_store(options.store, options.node))
        guard.start()
    except Ended:
        return EXIT_CLEAN
    except (StartRefused, StoreFailed, DeadmanFailed) as refusal:
        Log(options.name, "guard").refuse(f"musterd {options.name}: cannot start: {refusal}")
        return EXIT_REFUSED
    status = guard.run()
    os.close(lock)
    return status


def main() -> NoReturn:
    """Entry of `python -m muster.drivers.guard`."""
    try:
        options = parse_options(sys.argv[1:])
    except ValueError as error:
        say(f"musterd: {error}; `musterd --help` shows how a node is started")
        os._exit(EXIT_USAGE)
    os._exit(run_guard(options, GuardStore))


if __name__ == "__main__":
    main()
