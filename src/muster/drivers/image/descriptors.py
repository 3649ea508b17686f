"""Descriptors that go from one process to another over a Unix socket, by calls that never wait.

The library's own `socket.send_fds` and `recv_fds` pass over their flags before Python 3.13, and wait where they were
told not to. Part of the guard's image: the standard library only.
"""

import array
import socket
from collections.abc import Iterable

_SO_PASSRIGHTS = 83  # whether a socket takes descriptors


def send_descriptors(channel: socket.socket, word: bytes, descriptors: Iterable[int]) -> None:
    """Send a packet with copies of descriptors. Raises `OSError`, `BlockingIOError` where the other side is full."""
    packed = array.array("i", descriptors)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)] if packed else []
    channel.sendmsg([word], ancillary, socket.MSG_DONTWAIT)


def receive_descriptors(channel: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """A packet and the descriptors that came with it, not to be inherited; the kernel closes those beyond `most`.

    Raises `OSError`, `BlockingIOError` where nothing is there.
    """
    space = socket.CMSG_LEN(most * array.array("i").itemsize)
    data, ancillary, _flags, _address = channel.recvmsg(size, space, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    found = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(content[: len(content) // found.itemsize * found.itemsize])
    return data, list(found)


def refuse_descriptors(listener: socket.socket) -> None:
    """Have the kernel refuse descriptors to whoever sends them to its connections. Raises `OSError` where it cannot.

    Else a process that reads from a stranger, or closes its connection, may wait for what was sent along with the bytes
    and never asked for: a connection that lingers, a file of a dead server. The refusal is tried, because the number of
    that option is another option's on some machines.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for end in (listener, ours):
            end.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
        try:
            send_descriptors(theirs, b"tried", (theirs.fileno(),))
        except PermissionError:
            return
    raise OSError("this kernel cannot refuse the descriptors of strangers (Linux 6.16)")
