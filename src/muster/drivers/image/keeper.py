"""The keeper of one service command: its parent, and the adopter of everything that it leaves behind.

Theory of operation. The runner forks a keeper for every command. The keeper is a subreaper, so whatever the command
starts stays below it: background processes, double forks, new sessions, cleared environments. It says how the command
itself ended, goes on reaping, and exits when the kernel tells it that it has no children left. So "nothing of the
command runs any more" is one fact that the runner learns by reaping the keeper, and what runs is what is below it.

A keeper is forked and never executes anything, so it shares nearly all of its memory with the runner.

On the status pipe it writes one line each: `E<errno>` if the command could not be executed, `M` if the machine has not
what its definition names (the output says what), `X<pid>` once it has been executed, if that is asked for, and
`S<wait status>` when it has ended; before that `L` if it has left something behind. When that has ended too,
`D<wait status>` of the last of it; before that `H` where all of it looks like helpers of the command and not like a
daemon: in the command's own session, and ended with status 0. First of all `F<stamp>`, how the file is that it was
asked to look at (`looker.py`).
"""

import contextlib
import os
import signal
from typing import NamedTuple, NoReturn

from muster.drivers.image.deadman import Leash, adopt_orphans, boottime_us, die_with_parent, set_process_name
from muster.drivers.image.looker import stamp_of, written
from muster.drivers.image.process_tree import BROKEN_EXIT, close_descriptors_except, end_everything_below, fork_into
from muster.drivers.image.processes import KEEPER
from muster.drivers.image.service_surroundings import (
    DEFAULT_PATH,
    DEFAULT_UMASK,
    EXIT_CONFIG,
    Missing,
    Surroundings,
    enter,
    reset_inherited,
    reset_limits,
    set_score,
)

_NOT_EXECUTED = 127
_SWEEP_US = 10_000_000
_WATCH_S = 0.1  # how often a keeper in a process tree looks at the deadline by itself
_WAITED = frozenset((signal.SIGCHLD, signal.SIGUSR1))
_SIGNALS = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
NOTHING = Surroundings()


class Launch(NamedTuple):
    """A command to execute. `environment` is the whole of it."""

    service: str
    command: tuple[str, ...]
    environment: dict[str, str]
    says_executed: bool = False
    dies_with_keeper: bool = False
    looks_at: str = ""  # a file whose state before the command counts
    surroundings: Surroundings = NOTHING  # user, folder, limits, as the definition has them


class Keeper(NamedTuple):
    """A keeper that runs: its process id, and the ends of its pipes to read from, which never wait."""

    pid: int
    status_fd: int
    output_fd: int


def spawn_keeper(launch: Launch, leash: Leash) -> Keeper:
    """Fork a keeper that executes `launch`. Raises `OSError`, and leaves no descriptor open then."""
    runner = os.getpid()
    opened: list[int] = []
    try:
        opened += os.pipe()
        opened += os.pipe()
        status, told, output, written_to = opened
        pid = fork_into(lambda: _keep(launch, told, written_to, leash, runner))
    except OSError:
        for descriptor in opened:
            os.close(descriptor)
        raise
    os.close(told)
    os.close(written_to)
    os.set_blocking(status, False)
    os.set_blocking(output, False)
    return Keeper(pid, status, output)


def _keep(launch: Launch, status_fd: int, output_fd: int, leash: Leash, runner: int) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
    signal.set_wakeup_fd(-1)  # shared with the runner
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # a service that signals everything must not end its own keeper
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    leash.bind(runner)
    adopt_orphans()
    set_process_name(KEEPER)
    close_descriptors_except((status_fd, output_fd))
    environment = {"PATH": DEFAULT_PATH, **launch.environment}
    os.chdir("/")
    os.umask(DEFAULT_UMASK)
    score = reset_inherited()
    reset_limits()
    if launch.looks_at:  # it may never return, and then nothing is executed
        _tell(status_fd, b"F%s\n" % written(stamp_of(launch.looks_at)))
    if leash.is_tree or launch.dies_with_keeper or launch.surroundings != NOTHING:
        command = _fork_and_execute(launch, environment, status_fd, output_fd)
    else:
        command = _spawn(launch, environment, status_fd, output_fd)
    with contextlib.suppress(OSError):  # the command has the machine's score; its keeper is the node's
        set_score(score)
    os.close(output_fd)  # else its reader never sees the end
    if launch.says_executed:
        _tell(status_fd, b"X%d\n" % command)
    _reap_until_alone(command, status_fd, leash)
    os._exit(0)


def _spawn(launch: Launch, environment: dict[str, str], status_fd: int, output_fd: int) -> int:
    """Execute the command at once, without a copy of this process: that was half of what starting one cost."""
    os.environ["PATH"] = environment["PATH"]  # where the command is looked for: in this process's
    streams = (
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output_fd, 1),
        (os.POSIX_SPAWN_DUP2, output_fd, 2),
    )
    try:
        return os.posix_spawnp(
            launch.command[0], launch.command, environment,
            file_actions=streams, setsid=True, setsigmask=(), setsigdef=_SIGNALS,
        )  # fmt: skip
    except OSError as error:
        _tell(status_fd, b"E%d\nS%d\n" % (error.errno or 0, _NOT_EXECUTED << 8))
        os._exit(0)


def _fork_and_execute(launch: Launch, environment: dict[str, str], status_fd: int, output_fd: int) -> int:
    """The same with a signal at the death of this process, which can be asked for only between fork and exec.

    In a namespace the kernel needs no help; in a tree it reaches the command even if its keeper is killed.
    """
    keeper = os.getpid()
    # Closes when the command is executed, or cannot be. Nobody else waits for that: a keeper in a tree watches the
    # deadline, also while a file system that hangs keeps a command from being executed.
    executed = os.pipe() if launch.says_executed else ()
    command = fork_into(lambda: _execute(launch, environment, status_fd, output_fd, keeper))
    if executed:
        os.close(executed[1])
        os.read(executed[0], 1)
        os.close(executed[0])
    return command


def _tell(status_fd: int, line: bytes) -> None:
    """Say it on the status pipe. Whoever read that may be gone, as of a check whose time is over: what is below this
    process is its to reap all the same.
    """
    try:
        os.write(status_fd, line)
    except BrokenPipeError:
        return


def _reap_until_alone(command: int, status_fd: int, leash: Leash) -> None:
    left = Left(command)
    while True:
        if leash.is_tree:
            caught = signal.sigtimedwait(_WAITED, _WATCH_S)
            if leash.is_over() or (caught is not None and caught.si_signo == signal.SIGUSR1):
                end_everything_below(boottime_us() + _SWEEP_US, boottime_us)
                os._exit(BROKEN_EXIT)
        else:
            signal.sigwaitinfo(_WAITED)
        is_alone = left.reap()
        if left.ended is not None:
            _tell(status_fd, b"S%d\n" % left.ended if is_alone else b"L\nS%d\n" % left.ended)
            left.ended = None
        elif is_alone and left.last is not None:
            _tell(status_fd, b"D%d\n" % left.last if left.is_daemon else b"H\nD%d\n" % left.last)
        if is_alone:
            return


class Left:
    """What a command leaves behind, as its keeper sees it end."""

    def __init__(self, command: int) -> None:
        self._command, self._is_over = command, False
        self.ended: int | None = None  # wait status of the command, until it is said
        self.last: int | None = None  # of the last process that ended after the command
        self.is_daemon = False  # one of those had a session of its own, or did not end with status 0

    def reap(self) -> bool:
        """Reap what has ended. True if nothing is left."""
        while True:
            try:
                # looked at before it is reaped: whose session it was in is not known afterwards
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None:
                    return False
                session = os.getsid(found.si_pid) if self._is_over else 0
                _pid, status = os.waitpid(found.si_pid, 0)
            except ChildProcessError:
                return True
            if found.si_pid == self._command:
                self.ended, self._is_over = status, True
            elif self._is_over:
                self.last = status
                self.is_daemon = self.is_daemon or status != 0 or session != self._command


def _execute(launch: Launch, environment: dict[str, str], status_fd: int, output_fd: int, keeper: int) -> NoReturn:
    try:
        os.setsid()
        die_with_parent(signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(_NOT_EXECUTED)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        restore_default_signals()
        environment = enter(launch.surroundings, environment)
        os.execvpe(launch.command[0], launch.command, environment)
    except Missing as missing:
        os.write(output_fd, f"muster: {missing}\n".encode(errors="replace"))
        _tell(status_fd, b"M\n")
        os._exit(EXIT_CONFIG)
    except OSError as error:
        _tell(status_fd, b"E%d\n" % (error.errno or 0))
    os._exit(_NOT_EXECUTED)


def restore_default_signals() -> None:
    """Give the program about to be executed the signals that it expects: none ignored, none blocked."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
