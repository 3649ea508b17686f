"""A descriptor that shows the end of a node, handed to guards that cannot ask for it themselves (P7.20).

Theory of operation. A pid counts in one PID namespace only, and a control group is found only where it is mounted. A
descriptor counts everywhere on one kernel. So while its node lives, a guard waits at an abstract Unix socket, named
after what it offers: the pidfd of its init, or the folder of its control group. Another guard of the same kernel that
finds the record and cannot ask connects, and is handed a copy.

Nobody is believed in this. Each pidfd has an inode of its own that the kernel uses for no other process as long as it
runs, and each control group has one as well; the lease record names it. So a descriptor that is of the right kind and
bears that inode is of that very incarnation, whoever has sent it. That nobody answers says nothing.

What the other side may do is bounded, because this is the guard's own process. A descriptor that is sent to a process
and closed there may keep it waiting (a connection that lingers, a file of a dead server), even where it was never
received. So the socket refuses descriptors, for which the kernel must know how (Linux 6.16), and what this process
receives itself comes from its own user or from root. Strangers get nothing, wake nobody, and are let go of in a turn.

Part of the guard's image: the standard library only. It opens nothing but what the kernel keeps, and never waits.
"""

import ctypes
import fcntl
import functools
import os
import select
import socket
import struct
from typing import NamedTuple

from muster.drivers.image.descriptors import receive_descriptors, refuse_descriptors, send_descriptors
from muster.records.registers import Life

_ANSWERS_A_TURN = 8
_WAITING = 8  # connections that nobody has answered yet; the kernel refuses more
_FIRST_PAUSE_US, _LONGEST_PAUSE_US = 500_000, 60_000_000  # between two tries to be handed something
_CREDENTIALS = struct.Struct("iII")  # pid, user, group
_PIDFD_THREAD = os.O_EXCL  # of a pidfd that shows the end of one thread
_GROUPS_MAGIC = 0x63677270  # of version 2 of control groups, in statfs
_OVERFLOW_USER = "/proc/sys/kernel/overflowuid"

_libc = ctypes.CDLL(None, use_errno=True)


class NotHanded(Exception):
    """Nothing was handed over, or nothing that counts; the message says why."""


def meeting_place(life: Life) -> bytes:
    """The abstract address at which the descriptor of this life is offered; nothing where there can be none."""
    kind = b"group" if life.group else b"init"
    return b"\0muster word of %s %d" % (kind, life.group_inode) if life.group_inode else b""


def inode_of_init(pid: int) -> int:
    """What tells this child, not yet reaped, from all other processes that there ever are on this kernel; 0: nothing.

    Before Linux 6.9 all pidfds share one inode. On machines of 32 bits it is used again.
    """
    if struct.calcsize("P") < 8:
        return 0
    inodes = []
    for each in (pid, os.getpid()):
        try:
            descriptor = os.pidfd_open(each)
        except OSError:
            return 0
        inodes.append(os.fstat(descriptor).st_ino)
        os.close(descriptor)
    return inodes[0] if inodes[0] != inodes[1] else 0


def is_trusted(user: int, own: int, nobody: int) -> bool:
    """Whether something may be received from a user. `nobody` stands for all whom this process has no number for."""
    return user in (0, own) and user != nobody


class Offer:
    """What the guard offers of its own node: `answer` whoever asks, once in each turn of its loop."""

    __slots__ = ("_listener", "_shown")

    def __init__(self, life: Life, folder: str = "") -> None:
        """Of this process's unreaped child `life.init_pid`, or of the control group in `folder`. Raises `OSError`."""
        place = meeting_place(life)
        if not place:
            raise OSError("this kernel has no number for a process that is never used again (Linux 6.9)")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._shown = -1
        try:
            refuse_descriptors(self._listener)
            self._listener.bind(place)
            self._listener.listen(_WAITING)
            self._shown = os.open(folder, os.O_RDONLY | os.O_DIRECTORY) if folder else os.pidfd_open(life.init_pid)
        except OSError:
            self._listener.close()
            raise

    def answer(self) -> None:
        """Hand it to those who have asked since, and let go of strangers. Never waits."""
        for _ in range(_ANSWERS_A_TURN):
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return  # nobody waits, or this process may open no more: in a later turn
            with connection:
                try:
                    if _peer_is_trusted(connection):
                        send_descriptors(connection, b"shown", (self._shown,))
                except OSError:
                    continue  # it has gone

    def close(self) -> None:
        """Offer it no more."""
        self._listener.close()
        os.close(self._shown)


class HandOverRequest:
    """One connection to a guard that may hand over the descriptor of a life. `take` it, or `close`."""

    __slots__ = ("_connection", "_life")

    def __init__(self, life: Life) -> None:
        """Connect, without waiting. Raises `OSError` where nobody offers it, `NotHanded`."""
        self._life = life
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._connection.connect(meeting_place(life))
            if not _peer_is_trusted(self._connection):  # before anything is received
                raise NotHanded("another user waits at the address of its guard")
        except (OSError, NotHanded):
            self._connection.close()
            raise

    def fileno(self) -> int:
        """What to poll for, to be read."""
        return self._connection.fileno()

    def take(self) -> int:
        """The descriptor: of that life, by the kernel's word. Raises `BlockingIOError`, `NotHanded`."""
        try:
            _word, descriptors = receive_descriptors(self._connection, 16, 1)
        except BlockingIOError:
            raise
        except OSError as error:
            raise NotHanded(f"its guard has ended: {error.strerror}") from error
        if not descriptors:
            raise NotHanded("its guard hands nothing over")
        try:
            problem = _problem(descriptors[0], self._life)
            found = _events_of(descriptors[0]) if self._life.group and not problem else descriptors[0]
        except OSError as error:
            problem, found = f"what was handed over cannot be used: {error.strerror}", -1
        if found != descriptors[0] or problem:
            os.close(descriptors[0])
        if problem:
            raise NotHanded(problem)
        return found

    def close(self) -> None:
        """Want it no more."""
        self._connection.close()


class _Wish(NamedTuple):
    incarnation: int
    life: Life
    request: HandOverRequest | None  # under way
    try_us: int  # else: when to try again
    pause_us: int


class Requests:
    """All lives of which this guard would be handed a descriptor, one a node: those it cannot ask about itself."""

    __slots__ = ("_nodes", "_poll", "_wishes")

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self._wishes: dict[int, _Wish] = {}  # by node
        self._nodes: dict[int, int] = {}  # by the descriptor of a request

    def want(self, node: int, incarnation: int, life: Life, now_us: int) -> None:
        """Ask for it, now and later; what was wanted of an earlier incarnation is wanted no more."""
        known = self._wishes.get(node)
        if known is not None and known.incarnation >= incarnation:
            return
        self.drop(node)
        if meeting_place(life):
            self._wishes[node] = _Wish(incarnation, life, None, now_us, _FIRST_PAUSE_US)
            self.turn(now_us)

    def turn(self, now_us: int) -> None:
        """Try again what is due."""
        for node, wish in self._wishes.items():
            if wish.request is not None or now_us < wish.try_us:
                continue
            try:
                request = HandOverRequest(wish.life)
            except (OSError, NotHanded):
                pause_us = min(2 * wish.pause_us, _LONGEST_PAUSE_US)
                self._wishes[node] = wish._replace(try_us=now_us + wish.pause_us, pause_us=pause_us)
                continue
            self._wishes[node] = wish._replace(request=request, try_us=now_us + wish.pause_us)
            self._nodes[request.fileno()] = node
            self._poll.register(request.fileno(), select.POLLIN)

    def handed(self, ready: int) -> tuple[int, int, Life, int] | None:
        """Node, incarnation, life and descriptor that have arrived at a descriptor that is `ready`, if they have."""
        node = self._nodes[ready]
        wish = self._wishes[node]
        assert wish.request is not None
        try:
            found = wish.request.take()
        except BlockingIOError:
            return None
        except NotHanded:
            self._end(wish)
            pause_us = min(2 * wish.pause_us, _LONGEST_PAUSE_US)
            self._wishes[node] = wish._replace(request=None, pause_us=pause_us)
            return None
        self.drop(node)
        return node, wish.incarnation, wish.life, found

    def waits_for(self, descriptor: int) -> bool:
        """Whether the descriptor is a request's."""
        return descriptor in self._nodes

    def drop(self, node: int) -> None:
        """Nothing is wanted of that node any more."""
        wish = self._wishes.pop(node, None)
        if wish is not None:
            self._end(wish)

    def _end(self, wish: _Wish) -> None:
        if wish.request is not None:
            self._poll.unregister(wish.request.fileno())
            del self._nodes[wish.request.fileno()]
            wish.request.close()


def _peer_is_trusted(connection: socket.socket) -> bool:
    """Whether who has connected, or listens, at the other end is this process's user or root, by the kernel's word."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return is_trusted(_CREDENTIALS.unpack(credentials)[1], os.geteuid(), _nobody())


@functools.cache
def _nobody() -> int:
    try:
        with open(_OVERFLOW_USER, "rb") as file:
            return int(file.read(16))
    except (OSError, ValueError):
        return 65534


def _problem(descriptor: int, life: Life) -> str:
    """Why a descriptor is not that of this life; empty if it is. Raises `OSError`."""
    if life.group:
        if _file_system(descriptor) != _GROUPS_MAGIC:
            return "what was handed over is no control group"
    elif not _is_pidfd(descriptor):
        return "what was handed over is no pidfd"
    elif fcntl.fcntl(descriptor, fcntl.F_GETFL) & _PIDFD_THREAD:
        return "what was handed over shows the end of one thread"
    if not life.group_inode or os.fstat(descriptor).st_ino != life.group_inode:
        return "what was handed over is of another incarnation"
    return ""


def _is_pidfd(descriptor: int) -> bool:
    """The kernel's own answer, whatever /proc shows here, and in whichever PID namespace the process is."""
    try:
        os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, BlockingIOError):
        return True  # it is one, of a process that is no child of this one
    except OSError:
        return False
    return True


def _file_system(descriptor: int) -> int:
    """The magic number of the file system that a descriptor is of; 0 where it cannot be told."""
    told = ctypes.create_string_buffer(512)
    return int(struct.unpack_from("@l", told)[0]) if _libc.fstatfs(descriptor, told) == 0 else 0


def _events_of(folder: int) -> int:
    """`cgroup.events` of an open control group, whether it can be found by a path from here or not. Raises `OSError`.

    A group that was removed has none any more, and was empty: who comes so late asks in vain.
    """
    return os.open("cgroup.events", os.O_RDONLY, dir_fd=folder)
