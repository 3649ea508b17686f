"""The processes below a process: finding them in /proc, and ending them all (SPEC 7.1).

A look at /proc is never a proof that nothing is left: processes fork while it is read. Proof is the kernel's word that
a subreaper has no children (`ECHILD`), and every function here that promises an end waits for that.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator

BROKEN_EXIT = 73  # of a forked process that met what it was not made for; its standard error tells
_SWITCHES = b"ctxt_switches"  # voluntary and other ones
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


def read_parents() -> dict[int, int]:
    """The parent of every process that /proc shows now, zombies included."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        stat = _read(f"/proc/{name}/stat")
        # The command name stands in parentheses and may itself hold any byte, so the fields begin after the last one.
        fields = stat[stat.rfind(b")") + 2 :].split()
        if len(fields) > 1:
            parents[int(name)] = int(fields[1])
    return parents


def parent_of(pid: int) -> int:
    """The parent of a process; 0 where there is no such process."""
    stat = _read(f"/proc/{pid}/stat")
    fields = stat[stat.rfind(b")") + 2 :].split()
    return int(fields[1]) if len(fields) > 1 else 0


def descendants(roots: Iterable[int], parents: dict[int, int]) -> list[int]:
    """Every process below one of `roots`, the roots themselves excluded, parents before their children."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    pending = list(roots)
    seen = set(pending)
    while pending:
        for child in children.get(pending.pop(), ()):
            if child not in seen:
                seen.add(child)
                found.append(child)
                pending.append(child)
    return found


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to each process that still exists. The pids must be of unreaped descendants of the caller."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue  # gone between the look and the signal, or a set-user-id program that ends with its parent


def end_everything_below(give_up_us: int, clock_us: Callable[[], int]) -> bool:
    """Kill and reap all descendants of this process, a subreaper, until the kernel says that there are none.

    False if some are left at `give_up_us` (a process that hangs in the kernel).
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        below = descendants((os.getpid(),), read_parents())
        send(below, signal.SIGSTOP)  # first, so that none forks while others are killed
        send(below, signal.SIGKILL)
        if reap_all():
            return True
        if clock_us() >= give_up_us:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def reap_all() -> bool:
    """Reap every child that has ended. True if this process has no children left."""
    while True:
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            return False


def reaped() -> Iterator[tuple[int, int]]:
    """Reap every child that has ended, and say of each its process id and its wait status."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def read_environment(pid: int) -> dict[bytes, bytes]:
    """The environment with which `pid` was executed; empty if it cannot be read."""
    items = (item.partition(b"=") for item in _read(f"/proc/{pid}/environ").split(b"\0"))
    return {key: value for key, separator, value in items if separator}


def read_command_line(pid: int) -> list[bytes]:
    """The arguments with which `pid` was executed; empty if it cannot be read."""
    return _read(f"/proc/{pid}/cmdline").split(b"\0")[:-1]


def read_activity(pids: Iterable[int]) -> dict[tuple[int, int], tuple[bytes, ...]]:
    """How often each thread of these processes has run and waited: (pid, thread) -> its counts, and whether it rests.

    A thread that was told something has been woken for it, so it does not rest, or its counts have gone up.
    """
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                lines = (line.partition(b":\t") for line in _read(f"/proc/{pid}/task/{thread}/status").splitlines())
                status = {key: value for key, _, value in lines}
                state = b"rests" if status.get(b"State", b"")[:1] in (b"S", b"T", b"t") else b"runs"
                found[pid, int(thread)] = (state, *(value for key, value in status.items() if key.endswith(_SWITCHES)))
    return found


def read_name(pid: int) -> str:
    """The short name of `pid`, or nothing."""
    return _read(f"/proc/{pid}/comm").decode(errors="replace").strip()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def fork_into(body: Callable[[], None]) -> int:
    """Fork a child that runs `body` and never returns; its pid. `body` normally ends by `os._exit` or an exec."""
    pid = os.fork()
    if pid:
        return pid
    try:
        body()
    except BaseException as error:  # noqa: BLE001 - nothing may unwind into the parent's frames
        say(f"muster process {os.getpid()}: {describe(error)}")
    finally:
        os._exit(BROKEN_EXIT)


def describe(error: BaseException) -> str:
    """An exception and where it was raised, in one line. Python's own traceback would read the source: a disk."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{error!r} at {' > '.join(places)}"


def drain(descriptor: int) -> None:
    """Empty a wake-up pipe that does not block."""
    try:
        os.read(descriptor, 4096)
    except BlockingIOError:
        return


def only_wake(_number: int, _frame: object) -> None:
    """A signal handler for signals that matter only because they interrupt a wait."""


def say(text: str) -> bool:
    """Write a line to standard error; False where it was lost.

    A log that nobody reads, on a full disk or closed, must neither hold up nor end the process that writes to it.
    """
    line = f"{text}\n".encode(errors="backslashreplace")
    if len(line) > select.PIPE_BUF:
        line = line[: select.PIPE_BUF - 1] + b"\n"
    try:
        return bool(select.select((), (2,), (), 0)[1]) and os.write(2, line) == len(line)
    except (OSError, ValueError):
        return False


class Teller:
    """Says lines as `say` does, and with the next one that arrives how many did not."""

    __slots__ = ("_lost",)

    def __init__(self) -> None:
        self._lost = 0

    def say(self, text: str) -> bool:
        """Write a line to standard error; False where it was lost."""
        if self._lost and say(f"process {os.getpid()}: {self._lost} lines could not be written to the log"):
            self._lost = 0
        if self._lost or not say(text):
            self._lost += 1
            return False
        return True


def close_descriptors_except(kept: Iterable[int]) -> None:
    """Close every inherited descriptor but 0 to 2 and `kept`, in a freshly forked process that never returns."""
    low = 3
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = max(low, descriptor + 1)
    os.closerange(low, max(low, os.sysconf("SC_OPEN_MAX")))


def explain_status(status: int) -> str:
    """A wait status in words: `ended with status 3` or `was killed by SIGTERM`."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    return f"ended with status {os.WEXITSTATUS(status)}"
