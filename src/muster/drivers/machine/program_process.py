"""Whether a program that was at the other end of a connection has ended: the kernel's word about it (P3.16).

A connection that ends says nothing about the process behind it: it may live, and still hold what it shares. A pidfd
does: it becomes readable when the process has ended, and never names another one. It is taken from the connection
itself (`SO_PEERPIDFD`, Linux 6.5), which also works for a program outside of this node's PID namespace, whose number is
not visible here. An older kernel is asked for the process of the number that it has noted, at once when the connection
is made; a connection that is still up after that shows that the number was not given to another process meanwhile.

A daemon that comes after this one has no handle left. It opens the noted processes again by their numbers and knows
them by their start times; what is not visible here stays unknown.
"""

import contextlib
import errno
import os
import select
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Protocol

from muster.drivers.image.kernels_word import start_of

SO_PEERPIDFD = 77  # Linux 6.5; not in every Python's `socket`
_NO_LONGER_THERE = (errno.ESRCH, errno.EINVAL)  # the peer has ended and was reaped (Linux before 6.16)

Noted = tuple[int, int]  # process id in this namespace, start time in clock ticks since boot


class Loop(Protocol):
    """What is needed of the event loop."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> None:
        """Call it whenever the descriptor is readable."""

    def remove_reader(self, fd: int, /) -> bool:
        """Call nothing for it any more; whether anything was called for it."""


class Peer:
    """The process at the other end of a connection, for as long as the connection is there."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        """Right when the connection is made; `pid` as the kernel has noted it, 0 if it is not visible here."""
        self._connection, self.pid = connection, pid
        self._held = -1
        if not _can_be_taken(connection) and pid > 0:
            with contextlib.suppress(OSError):
                self._held = os.pidfd_open(pid)
            if _is_hung_up(connection):  # the number may be another process's by now
                self.close()

    def program(self, named: int = 0) -> "Program":
        """Handles on it, and on the process with id `named` where that is another one of this PID namespace."""
        handles: list[int] = []
        ended = False
        try:
            taken = os.dup(self._held) if self._held >= 0 else self._taken()
            handles.append(taken)
        except OSError as error:
            ended = error.errno in _NO_LONGER_THERE
        noted = [(self.pid, start_of(self.pid))] if self.pid > 0 else []
        if named not in (0, self.pid) and self.pid > 0 and _shares_namespace(self.pid):
            with contextlib.suppress(OSError, OverflowError):
                handles.append(os.pidfd_open(named))
                noted.append((named, start_of(named)))
        return Program(handles, tuple(noted) if all(start for _, start in noted) else (), ended=ended)

    def close(self) -> None:
        """The connection has ended; handles that were given out stay."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _taken(self) -> int:
        return self._connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)


class Program:
    """The process or processes of a registration."""

    def __init__(self, handles: list[int], noted: tuple[Noted, ...] = (), *, ended: bool = False) -> None:
        """`handles`: pidfds, which are this object's from now on. `ended`: the kernel has said so already."""
        self._handles, self.noted, self._ended = handles, noted, ended
        self._loop: Loop | None = None

    @property
    def is_known(self) -> bool:
        """Whether the kernel can say if it lives."""
        return self._ended or bool(self._handles)

    def has_ended(self) -> bool:
        """Whether the kernel says that all of it has ended."""
        if not self._ended and self._handles:
            poll = select.poll()
            for handle in self._handles:
                poll.register(handle, select.POLLIN)
            self._ended = len(poll.poll(0)) == len(self._handles)
        return self._ended

    def is_of(self, other: "Program") -> bool:
        """Whether one process is in both."""
        own = {_identity(handle) for handle in self._handles} - {None}
        return any(_identity(handle) in own for handle in other._handles)  # noqa: SLF001

    def watch(self, loop: Loop, ended: Callable[[], None]) -> None:
        """Call `ended` once, when all of it has ended."""
        self.unwatch()
        self._loop = loop

        def look(handle: int) -> None:
            loop.remove_reader(handle)  # it stays readable
            if self.has_ended():
                self.unwatch()
                ended()

        for handle in self._handles:
            loop.add_reader(handle, partial(look, handle))

    def unwatch(self) -> None:
        """Nobody wants to know any more."""
        if self._loop is not None:
            for handle in self._handles:
                self._loop.remove_reader(handle)
            self._loop = None

    def kill(self) -> None:
        """End all of it, as far as this process may: not what is outside of its PID namespace, nor another user's."""
        for handle in self._handles:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)

    def give_up(self) -> list[int]:
        """The handles, which are the caller's from now on."""
        self.unwatch()
        handles, self._handles = self._handles, []
        return handles

    def close(self) -> None:
        """Give the handles back."""
        self.unwatch()
        for handle in self._handles:
            os.close(handle)
        self._handles = []


def is_pidfd(handle: int) -> bool:
    """Whether a descriptor from outside is a handle on a process."""
    try:
        with open(f"/proc/self/fdinfo/{handle}", encoding="ascii") as file:
            return any(line.startswith("Pid:") for line in file)
    except (OSError, UnicodeDecodeError):
        return False


def found_again(noted: tuple[Noted, ...]) -> Program:
    """The processes that an earlier daemon on this machine, in this PID namespace, has noted."""
    handles: list[int] = []
    ended = 0
    for pid, start in noted:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            ended += 1
            continue
        except OSError:
            continue
        now = start_of(pid)  # after the handle: it is that process's own
        if now == start:
            handles.append(handle)
            continue
        os.close(handle)
        ended += now > 0  # the number is another process's; where nothing is to be seen, it is unknown
    if ended + len(handles) < len(noted):
        for handle in handles:
            os.close(handle)
        return Program([])
    return Program(handles, noted, ended=bool(noted) and not handles)


def _can_be_taken(connection: socket.socket) -> bool:
    try:
        os.close(connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
    except OSError as error:
        return error.errno in _NO_LONGER_THERE
    return True


def _is_hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def _shares_namespace(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino == os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return False


def _identity(handle: int) -> tuple[int, int] | None:
    """What is the same for two handles on one process, and for no others: its inode, from Linux 6.9 on."""
    other = os.eventfd(0)
    try:
        anonymous = os.fstat(other)
    finally:
        os.close(other)
    own = os.fstat(handle)
    return (own.st_dev, own.st_ino) if own.st_dev != anonymous.st_dev else None
