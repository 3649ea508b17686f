"""Init: PID 1 of a node's namespace, or the root of its process tree (SPEC 7.1, 7.3).

It starts the runner once and the daemon whenever there is none, and reaps what nobody else does. When it ends, the
kernel ends the namespace with it; so it ends itself when the runner, the parent of all services, has ended.

The daemon is executed afresh each time; the sockets that it is handed stay open here in between, so nothing that was
sent to it is lost.

It does not rely on the guard's end (P7.9, P7.10): it ends the node by itself when the deadline passes that the guard
publishes, by its own clock, and when the daemon says `panic` on a channel of their own.
"""

import os
import select
import signal
import socket
import zlib
from typing import NamedTuple, NoReturn

from muster.core.launching.restarts import Restarts
from muster.drivers.image.control_group import ControlGroup
from muster.drivers.image.deadman import (
    LEASH_SIGNAL,
    Leash,
    adopt_orphans,
    boottime_us,
    die_with_parent,
    hold_memory_and_priority,
    mount_own_proc,
    set_process_name,
)
from muster.drivers.image.environment import GUARD_FD, IMAGE, INCARNATION, INIT_FD, NODE_HOME, RUNNER_FD
from muster.drivers.image.keeper import restore_default_signals
from muster.drivers.image.process_tree import (
    Teller,
    close_descriptors_except,
    drain,
    end_everything_below,
    explain_status,
    fork_into,
    only_wake,
    reaped,
)
from muster.drivers.image.processes import INIT
from muster.drivers.image.runner import run_runner
from muster.drivers.image.service_surroundings import base_environment
from muster.drivers.image.systemd import VARIABLES
from muster.records.timing import Profile
from muster.records.units import US_PER_MS

RUNNER_ENDED_EXIT = 71
_LONGEST_PAUSE_PART = 4  # of `restart_ms`, within which the guard wants a sign of life from the daemon
_NOT_EXECUTED = 127
_PACKET_BYTES = 512
_SWEEP_US = 10_000_000
LOWEST_NUMBER = 1000  # the kernel leaves out those below 300 when it begins again
SPARE_NUMBERS = 2000  # that a namespace has before the kernel begins again
_GATE_LOOK_MS = 50  # between two looks at the deadline while it waits for the guard
IMAGE_VERSION = 5  # of guard, init, runner and keeper: raised when a fix in them needs the node to leave and boot


class InitSetup(NamedTuple):
    """What the guard hands to init. The sockets are the node's ends of the channels in docs/ARCHITECTURE.md."""

    guard: socket.socket
    guard_alive: int  # a pipe that closes when the guard has ended
    daemon_guard: socket.socket
    daemon_runner: socket.socket
    runner_guard: socket.socket
    runner_daemon: socket.socket
    profile: Profile
    home: str
    incarnation: int
    daemon: tuple[str, ...]
    group: ControlGroup | None = None  # to enter: of a process tree, where there is one


def run_init(setup: InitSetup, leash: Leash) -> NoReturn:
    """Become init, in the process that the guard has just forked for it."""
    if setup.group is not None:
        setup.group.enter()
    os.setsid()
    signal.set_wakeup_fd(-1)  # the guard's
    set_process_name(INIT)
    signal.pthread_sigmask(signal.SIG_BLOCK, (LEASH_SIGNAL,))
    keep = [item.fileno() for item in setup[:6] if isinstance(item, socket.socket)]
    close_descriptors_except([*keep, setup.guard_alive])
    leash.bind_init(setup.guard_alive)
    adopt_orphans()
    if not leash.is_tree:
        mount_own_proc()
        begin_numbers(setup.home, setup.incarnation)
    _await_go(setup, leash)
    _Init(setup, leash).loop()


def begin_numbers(home: str, incarnation: int) -> None:
    """Let the processes of this namespace have other numbers than those of earlier incarnations, and of other nodes
    (P7.21). Where the kernel does not allow that, they begin at 2, as ever.
    """
    try:
        with open("/proc/sys/kernel/pid_max", encoding="ascii") as file:
            highest = int(file.read())
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
            file.write(str(first_number(home, incarnation, highest) - 1))
    except (OSError, ValueError):
        return


def first_number(home: str, incarnation: int, highest: int) -> int:
    """Where the numbers of a namespace begin: spread over what there is, far from that of the incarnation before."""
    span = max(1, highest - LOWEST_NUMBER - SPARE_NUMBERS)
    step = span * 618 // 1000  # of the golden ratio: so many points divide a circle as evenly as may be
    return LOWEST_NUMBER + (zlib.crc32(home.encode()) + incarnation * step) % span


def _await_go(setup: InitSetup, leash: Leash) -> None:
    """Wait until the guard says that the lease record names this process; nothing of the node runs before (P7.14)."""
    poll = select.poll()
    poll.register(setup.guard, select.POLLIN)
    poll.register(setup.guard_alive, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _mask in poll.poll(_GATE_LOOK_MS)]
        if setup.guard_alive in ready or leash.is_over():
            os._exit(1)
        if ready:
            setup.guard.recv(16)
            return


class _Init:
    def __init__(self, setup: InitSetup, leash: Leash) -> None:
        self._setup, self._leash = setup, leash
        self._pulse_us = setup.profile.pulse_ms * US_PER_MS
        self._restarts = Restarts(setup.profile.restart_ms // _LONGEST_PAUSE_PART)  # of the daemon
        self._wake_read, self._wake_write = os.pipe()
        self._orphaned = False
        self._say_line = Teller().say
        self._daemon_end, self._daemons_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._runner = 0
        self._daemon = 0

    def loop(self) -> NoReturn:
        """Serve until the guard or the runner ends."""
        self._runner = self._fork_runner()
        hold_memory_and_priority(above_all=not self._leash.is_tree)
        self._catch_signals()
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._setup.guard_alive, select.POLLIN)
        poll.register(self._daemon_end, select.POLLIN)
        while True:
            if self._leash.is_over():
                self._end("the deadline has passed, and its guard has not moved it")
            if self._restarts.is_due(boottime_us()):
                self._start_daemon()
            self._say(b"pulse")
            for descriptor, _mask in poll.poll(self._pause_ms()):
                if descriptor == self._wake_read:
                    drain(descriptor)
                elif descriptor == self._daemon_end.fileno():
                    self._hear_daemon()
                else:
                    self._orphaned = True
            if self._orphaned:
                self._end("its guard has ended")
            self._reap()

    def _pause_ms(self) -> int:
        now_us = boottime_us()
        wake_us = min(now_us + self._pulse_us, self._leash.deadline_us())
        if self._restarts.at_us is not None:
            wake_us = min(wake_us, self._restarts.at_us)
        return max(0, wake_us - now_us) // US_PER_MS + 1

    def _hear_daemon(self) -> None:
        if self._daemon_end.recv(_PACKET_BYTES, socket.MSG_DONTWAIT).startswith(b"panic"):
            self._end("its daemon has said that it must stop")

    def _end(self, why: str) -> NoReturn:
        """End the node, whatever its guard does. In a namespace the kernel ends all of it with this process."""
        self._say(f"init process has ended the node: {why}".encode())
        if self._setup.group is not None:
            self._setup.group.kill()  # this process too
        if self._leash.is_tree:
            self._say_line(f"muster init process: {why}; it ends everything that the node runs")
            end_everything_below(boottime_us() + _SWEEP_US, boottime_us)
        os._exit(1)

    def _catch_signals(self) -> None:
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, only_wake)
        signal.signal(LEASH_SIGNAL, self._on_orphaned)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)  # signals for the node go to the guard
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (LEASH_SIGNAL,))

    def _on_orphaned(self, _number: int, _frame: object) -> None:
        self._orphaned = True

    def _fork_runner(self) -> int:
        setup, init = self._setup, os.getpid()

        def become_runner() -> NoReturn:
            close_descriptors_except((setup.runner_guard.fileno(), setup.runner_daemon.fileno()))
            for name in VARIABLES:  # no service speaks for the node
                os.environ.pop(name, None)
            environment = base_environment(setup.home, setup.incarnation, (NODE_HOME, INCARNATION))
            channels = (setup.runner_guard, setup.runner_daemon)
            run_runner(*channels, self._leash, init, setup.profile.pulse_ms, environment)

        runner = fork_into(become_runner)
        setup.runner_guard.close()
        setup.runner_daemon.close()
        return runner

    def _start_daemon(self) -> None:
        init = os.getpid()
        self._restarts.begun(boottime_us())
        try:
            self._daemon = fork_into(lambda: self._execute_daemon(init))
        except OSError as error:
            self._daemon = 0
            self._say_line(f"muster init process: cannot fork the daemon: {error.strerror}; trying again")
            self._restarts.not_begun(boottime_us())

    def _execute_daemon(self, init: int) -> NoReturn:
        setup = self._setup
        try:
            die_with_parent(signal.SIGKILL)
            if os.getppid() != init:
                os._exit(_NOT_EXECUTED)
            os.setsid()
            signal.set_wakeup_fd(-1)
            _send(setup.daemon_guard, b"started")  # the kernel tells the guard from which process
            for channel in (setup.daemon_guard, setup.daemon_runner, self._daemons_end):
                channel.set_inheritable(True)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            restore_default_signals()
            environment = {
                **os.environ,
                GUARD_FD: str(setup.daemon_guard.fileno()),
                RUNNER_FD: str(setup.daemon_runner.fileno()),
                INIT_FD: str(self._daemons_end.fileno()),
                INCARNATION: str(setup.incarnation),
                NODE_HOME: setup.home,
                IMAGE: str(IMAGE_VERSION),
            }
            os.execvpe(setup.daemon[0], setup.daemon, environment)
        except OSError as error:
            text = f"cannot execute the daemon {setup.daemon[0]}: {error.strerror}; install it"
            self._say_line(f"muster init process: {text}")
        os._exit(_NOT_EXECUTED)

    def _reap(self) -> None:
        for pid, status in reaped():
            if pid == self._runner:
                self._say(f"runner {explain_status(status)}".encode())
                os._exit(RUNNER_ENDED_EXIT)
            if pid == self._daemon:
                self._daemon = 0
                # On the daemon's own channel, so that it arrives after everything that the daemon had said.
                _send(self._setup.daemon_guard, f"exited {explain_status(status)}".encode())
                self._restarts.ended(boottime_us(), asked_for=status == 0)

    def _say(self, packet: bytes) -> None:
        if not _send(self._setup.guard, packet):
            self._orphaned = True


def _send(channel: socket.socket, packet: bytes) -> bool:
    """Send without waiting. False if the other end is gone; a full queue means that the guard itself is late."""
    try:
        channel.send(packet, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True
