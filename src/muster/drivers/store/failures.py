"""How a store engine fails, and what a journal read back is. The guard process imports this module: few imports."""

from typing import NamedTuple


class StoreFailed(Exception):
    """The store could not be reached or refused the request; the message says what, where and what to do.

    `passes`: it may pass by itself, as a disk that is not there yet or does not answer; to be waited for (P11.6).
    """

    passes = False


class ForeignWrite(StoreFailed):
    """This node's own register holds something that this node did not write."""


class JournalUnreadable(StoreFailed):
    """A marked journal cannot be read whole: bytes that stay invalid, or a hole."""


class JournalFull(StoreFailed):
    """The frame or checkpoint does not fit into a journal half; nothing was written."""


class JournalImage(NamedTuple):
    """A journal as read back: the checkpoint's bytes and every frame after it, verified and in order."""

    checkpoint: bytes
    frames: tuple[bytes, ...]
