"""The membership database as the daemon sees it: registers and journals, and nothing that only a disk has (SPEC 1.2).

Engines implement `Store`. What the core is owed by every engine:

* One writer a register and a journal; a register write is durable when it returns, and a read that starts after that
  returns it or something newer. Readers may run at any time.
* Before a write the engine reads this node's own register of that kind and compares it with the node's last write;
  anything else is `ForeignWrite` (SPEC 1.5): a clone of this node is running.
* A register or journal that cannot be read is reported as unknown (`None`, `JournalUnreadable`), never as empty.
* After `StoreFailed` it is unknown whether the write happened; repeating the same write is always safe.
"""

from typing import NamedTuple, Protocol

from muster.records.registers import Claim, Mark, Marks, Strip, View


class StoreFailed(Exception):
    """The store could not be reached or refused the request; the message says what, where and what to do."""


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


class Store(Protocol):
    """One node's access to the store. All methods may raise `StoreFailed`."""

    async def read_strip(self) -> Strip:
        """Every register of every slot, each read after this call began."""

    async def write_claim(self, claim: Claim) -> None:
        """Durably replace this node's claim register. Raises `ForeignWrite`."""

    async def write_view(self, view: View) -> None:
        """Durably replace this node's view register. Raises `ForeignWrite`."""

    async def write_marks(self, marks: Marks) -> None:
        """Durably replace this node's marks register. Raises `ForeignWrite`."""

    async def read_journal(self, owner: int, mark: Mark) -> JournalImage:
        """The journal that `mark` of node `owner` points to. Raises `JournalUnreadable`."""

    async def write_checkpoint(self, mark: Mark, checkpoint: bytes) -> None:
        """Begin the journal `mark` in this node's own area, replacing what that half held.

        Reads the node's own claim register first. From its beginning on, whoever still reads what the half held must
        find that unreadable, never merely shorter (PROTOCOL P2.9). Raises `ForeignWrite`, `JournalFull`.
        """

    async def append_frame(self, mark: Mark, number: int, frame: bytes) -> None:
        """Durably append frame `number` (0, 1, ...) to this node's journal `mark`; a repeated number rewrites it.

        Reads the node's own claim register first. Raises `ForeignWrite`, `JournalFull`.
        """

    async def close(self) -> None:
        """Release what the engine holds."""
