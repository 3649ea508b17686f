"""The membership database as the daemon sees it: registers and journals, and nothing that only a disk has (SPEC 1.2).

Engines implement `Store`. What the core is owed by every engine:

* One writer a register and a journal; a register write is durable when it returns, and a read that starts after that
  returns it or something newer. Readers may run at any time.
* Before a write the engine reads this node's own register of that kind and compares it with the node's last write;
  anything else is `ForeignWrite` (SPEC 1.5): a clone of this node is running.
* A register or journal that cannot be read is reported as unknown (`None`, `JournalUnreadable`), never as empty.
* After `StoreFailed` it is unknown whether the write happened; repeating the same write is always safe.
"""

from collections.abc import Callable
from typing import Protocol, cast

from muster.core.effects import (
    AppendFrame,
    ReadJournal,
    ReadStrip,
    WriteCheckpoint,
    WriteClaim,
    WriteMarks,
    WriteView,
)
from muster.drivers.store.choice import engine_of, part
from muster.drivers.store.failures import JournalImage, StoreFailed
from muster.drivers.store.identity import StoreIdentity
from muster.drivers.store.record import StoreRecord
from muster.records.registers import Claim, Mark, Marks, Strip, View

StoreEffect = ReadStrip | WriteClaim | WriteView | WriteMarks | ReadJournal | WriteCheckpoint | AppendFrame
StoreOutcome = Strip | JournalImage | tuple[Claim | None, ...] | StoreFailed | None


class Store(Protocol):
    """One node's access to the store. All methods may raise `StoreFailed`."""

    def begin(self, effect: StoreEffect, answer: Callable[[StoreOutcome], None]) -> None:
        """Carry an effect of the core out; `answer` is called once, from the event loop, never within this call.

        Answers: a `Strip`, a `JournalImage`, nothing for a write, or what failed. An `AppendFrame` is answered by all
        claims, read after the frame was durable (P2.6), or none of them if they could not be read. What each effect
        does and how it fails is told at the method of its name.
        """

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


class Opened(Store, Protocol):
    """A store as its engine opens it, with what is fixed when it is made."""

    @property
    def header(self) -> StoreIdentity:
        """Whose store it is, who may share it, and how large a journal may be."""


def open_store(store: str, node: int) -> Opened:
    """Open a store for the daemon of node id `node`. Raises `StoreFailed`."""
    return cast("Opened", part(engine_of(store).store)(store, node))


def newest_record(store: str) -> StoreRecord:
    """What a store holds, as one look shows it; no node need run. Raises `StoreFailed`, `JournalUnreadable`."""
    return cast("StoreRecord", part(engine_of(store).newest_record)(store))
