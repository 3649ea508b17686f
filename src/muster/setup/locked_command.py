"""A command under a lock: held while anything of its tree lives, ended with all of it when the lock is lost (P12.19).

Two processes make up the holder: the *keeper*, the command's parent and the subreaper of all that it leaves running,
and the process that talks to the node, which is the keeper's parent and the next subreaper. Each learns of the other's
end by a pipe or a handle, ends the whole tree then, and goes only when nothing is left of it. The node has a handle on
both, and frees the lock when both have ended. So whichever is killed, the tree is ended before the lock is free.

    parent -> keeper    one line of JSON, the variables of the command: begin; the end of the pipe: end everything
    keeper -> parent    "S" and the wait status of the command, as it ends
"""

import asyncio
import contextlib
import json
import os
import select
import signal
from pathlib import Path
from typing import NamedTuple, NoReturn

from muster.client.errors import ClientError
from muster.client.locks.asynchronous import AsyncLocks, AsyncSpace, connect_async
from muster.client.locks.terms import LocksLost, Mode
from muster.drivers.image.deadman import adopt_orphans, boottime_us
from muster.drivers.image.keeper import restore_default_signals
from muster.drivers.image.process_tree import drain, end_everything_below, fork_into, only_wake, reap_all
from muster.setup.harmless import one_line

NOT_EXECUTED = 127
SWEEP_US = 60_000_000  # for what hangs in the kernel
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)
_OF_THE_TERMINAL = (signal.SIGINT, signal.SIGQUIT)  # the command has them, too: it decides


class Wanted(NamedTuple):
    """Which lock, how."""

    name: str  # SPACE:NAME, or NAME where the cluster has one lockspace
    mode: Mode
    no_queue: bool = False
    timeout_s: float = 0.0


class KeeperHandle(NamedTuple):
    """The keeper as its parent has it."""

    pid: int
    handle: int  # a pidfd
    begin: int  # a pipe's end to write to
    status: int  # a pipe's end to read from


def run_locked(control: Path, wanted: Wanted, command: tuple[str, ...], timeout_s: float) -> int:
    """Run the command under the lock; its exit status, 128 and the signal where one has ended it.

    Raises `ClientError`; `LocksLost` when everything of it was ended because the lock was lost.
    """
    keeper = start_keeper(command)
    try:
        return asyncio.run(_run(control, wanted, keeper, timeout_s))
    finally:
        with contextlib.suppress(OSError):
            os.close(keeper.begin)
        end_everything_below(boottime_us() + SWEEP_US, boottime_us)


# ---- the process that talks to the node


async def _run(control: Path, wanted: Wanted, keeper: KeeperHandle, timeout_s: float) -> int:
    loop = asyncio.get_running_loop()
    lost: list[LocksLost] = []
    is_lost = asyncio.Event()

    def lose(why: LocksLost) -> None:
        lost.append(why)
        is_lost.set()

    locks = await connect_async(socket=control, timeout_s=timeout_s, processes=(keeper.handle,), on_lost=lose)
    async with locks:
        asked = asyncio.ensure_future(_acquire(locks, wanted))
        told_to_end: list[int] = []
        for number in (*_FORWARDED, *_OF_THE_TERMINAL):
            loop.add_signal_handler(number, _give_up, asked, told_to_end, number)
        try:
            grant = await asked
        except asyncio.CancelledError:
            if told_to_end:
                return 128 + told_to_end[0]
            raise
        _forward_signals(loop, keeper.pid)
        _begin(keeper, grant.variables)
        ended: asyncio.Future[object] = asyncio.ensure_future(_ended(keeper))
        losing: asyncio.Future[object] = asyncio.ensure_future(is_lost.wait())
        await asyncio.wait([ended, losing], return_when=asyncio.FIRST_COMPLETED)
        losing.cancel()
        if not ended.done():
            os.close(keeper.begin)  # the keeper ends the tree
            await ended
        status = _status_of(keeper)
        if status is None:  # the keeper was killed: its tree is this process's now
            await asyncio.to_thread(end_everything_below, boottime_us() + SWEEP_US, boottime_us)
        if lost:
            raise lost[0]
        if status is None:
            raise ClientError("the command's keeper was killed", grant.where, "everything of the command was ended")
        return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


class Granted(NamedTuple):
    """What the command is told."""

    variables: dict[str, str]
    where: str


async def _acquire(locks: AsyncLocks, wanted: Wanted) -> Granted:
    space, name = space_of(locks, wanted.name)
    grant = await space.acquire(name, wanted.mode, no_queue=wanted.no_queue, timeout_s=wanted.timeout_s)
    variables = {
        "MUSTER_LOCK": f"{space.name}:{name}",
        "MUSTER_LOCK_MODE": grant.mode.name,
        "MUSTER_LOCK_TOKEN": str(grant.token),
    }  # fmt: skip
    return Granted(variables, grant.where)


def space_of(locks: AsyncLocks, name: str) -> tuple[AsyncSpace, str]:
    """The lockspace and the resource that `[SPACE:]NAME` names. Raises `ClientError`."""
    space, colon, rest = name.partition(":")
    if colon:
        return locks.space(space), rest
    if len(locks.spaces) != 1:
        known = ", ".join(locks.spaces)
        raise ClientError("which lockspace?", f"lock {name}", f"write SPACE:{name}; the lockspaces are: {known}")
    return locks.space(locks.spaces[0]), name


def _give_up(asked: "asyncio.Future[Granted]", told_to_end: list[int], number: int) -> None:
    told_to_end.append(number)
    asked.cancel()


def _forward_signals(loop: asyncio.AbstractEventLoop, pid: int) -> None:
    """What asks this process to end is for the command, which has what comes from a terminal already."""
    for number in _OF_THE_TERMINAL:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    for number in _FORWARDED:
        loop.add_signal_handler(number, _pass_on, [pid], number)


def _begin(keeper: KeeperHandle, variables: dict[str, str]) -> None:
    _tell(keeper.begin, json.dumps(variables).encode() + b"\n")


def _tell(pipe: int, text: bytes) -> None:
    """Tell the other process; where it was killed, its end is seen at once."""
    with contextlib.suppress(BrokenPipeError), open(pipe, "wb", buffering=0, closefd=False) as file:
        file.write(text)


async def _ended(keeper: KeeperHandle) -> None:
    """Until the kernel says that the keeper has ended."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(keeper.handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(keeper.handle)


def _status_of(keeper: KeeperHandle) -> int | None:
    said = os.read(keeper.status, 64)
    return int(said[1:]) if said[:1] == b"S" else None


# ---- the keeper


def start_keeper(command: tuple[str, ...]) -> KeeperHandle:
    """Fork it; it waits to begin. This process becomes a subreaper, too."""
    adopt_orphans()
    begin_read, begin_write = os.pipe()
    status_read, status_write = os.pipe()

    def become_keeper() -> NoReturn:
        os.close(begin_write)
        os.close(status_read)
        _keep(command, begin_read, status_write)

    pid = fork_into(become_keeper)
    os.close(begin_read)
    os.close(status_write)
    return KeeperHandle(pid, os.pidfd_open(pid), begin_write, status_read)


def _keep(command: tuple[str, ...], begin: int, status: int) -> NoReturn:
    adopt_orphans()
    wakes, wake = os.pipe()
    for descriptor in (wakes, wake):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, only_wake)
    running: list[int] = []
    for number in _FORWARDED:
        signal.signal(number, lambda number, _frame: _pass_on(running, number))
    for number in _OF_THE_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    line = _line_of(begin)
    if not line:
        os._exit(0)  # the lock was not had
    running.append(fork_into(lambda: _execute(command, json.loads(line))))
    is_over = False
    while True:
        ready, _, _ = select.select([wakes, *([] if is_over else [begin])], [], [])
        if wakes in ready:
            drain(wakes)
        if begin in ready:  # its end: the lock is lost, or the parent
            is_over = True
            end_everything_below(boottime_us() + SWEEP_US, boottime_us)
            os._exit(0)
        if _reap(running, status):
            os._exit(0)


def _line_of(begin: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(begin, 65_536)
        if not data:
            return b""
        line += data
    return line


def _pass_on(running: list[int], number: int) -> None:
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _reap(running: list[int], status: int) -> bool:
    """Reap what has ended; the command's status is told. True if nothing is left."""
    while running:
        pid, found = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return False
        if pid in running:
            running.clear()
            _tell(status, b"S%d" % found)
    return reap_all()


def _execute(command: tuple[str, ...], variables: dict[str, str]) -> NoReturn:
    signal.set_wakeup_fd(-1)
    restore_default_signals()
    try:
        os.execvpe(command[0], command, {**os.environ, **variables})
    except OSError as error:
        _tell(2, f"muster: cannot run {one_line(command[0])}: {error.strerror}\n".encode(errors="replace"))
    os._exit(NOT_EXECUTED)
