"""The virtual shared store: registers and journals of two copies each; its readers and writers may stop anywhere.

A record is written to one copy, then to the other, each of which takes time and is torn while it is under way; a
writer that dies in between leaves what it leaves. The copy that is torn, or else the older one, is written first, so a
good copy always exists. A read sees each register at another instant of its duration (SPEC 1.5).
"""

from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import NamedTuple, Protocol

from muster.records.registers import Mark, Register, RegisterKind, Strip, blank_register
from muster.records.units import US_PER_MS
from muster.sim.world.time import EventLoop, Process

PAST_VALUES = 24  # values of a register that a long read may still see
LATE_LANDING_US = 20 * US_PER_MS  # after a power cut, later writes of that node never arrive at the store
FRAME_HEAD_BYTES = 64


class RegisterCell:
    """One register in its two copies. `current` is what a reader of both makes of them."""

    __slots__ = ("changed_us", "copies", "current", "kind", "past", "value")

    def __init__(self, kind: RegisterKind, owner: int) -> None:
        blank = blank_register(kind, owner)
        self.kind = kind
        self.copies: list[Register | None] = [blank, blank]  # `None` is torn
        self.current: Register | None = blank
        self.changed_us = -1
        self.past: deque[tuple[int, Register | None]] = deque(maxlen=PAST_VALUES)  # (replaced at, value)

    def order(self) -> tuple[int, int]:
        """Which copy to write first: a torn or older one."""
        first, second = self.copies
        if first is None or (second is not None and second.stamp.sequence > first.stamp.sequence):
            return 0, 1
        if second is None or second.stamp.sequence < first.stamp.sequence:
            return 1, 0
        return 0, 1

    def store(self, copy: int, value: Register | None, now_us: int) -> bool:
        """Replace one copy; whether readers see the register change."""
        self.copies[copy] = value
        valid = [held for held in self.copies if held is not None]
        newest = max(valid, key=lambda held: (held.stamp.term, held.stamp.sequence)) if valid else None
        if newest is self.current:
            return False
        self.past.append((now_us, self.current))
        self.current, self.changed_us = newest, now_us
        return True

    def value_at(self, instant_us: int) -> Register | None:
        """What a reader at that instant saw."""
        seen = self.current
        for replaced_us, value in reversed(self.past):
            if replaced_us <= instant_us:
                break
            seen = value
        return seen


class JournalCopy:
    """One copy of a journal half. A frame that is `None` is torn; so is a checkpoint whose `mark` is `None`."""

    __slots__ = ("checkpoint", "frames", "mark")

    def __init__(self, mark: Mark | None, checkpoint: bytes) -> None:
        self.mark = mark
        self.checkpoint = checkpoint
        self.frames: dict[int, bytes | None] = {}

    def copied(self) -> "JournalCopy":
        """One like it."""
        copy = JournalCopy(self.mark, self.checkpoint)
        copy.frames = dict(self.frames)
        return copy


class JournalHalf:
    """One half of a node's journal area."""

    __slots__ = ("copies",)

    def __init__(self) -> None:
        self.copies = [JournalCopy(None, b""), JournalCopy(None, b"")]

    def used_bytes(self, mark: Mark, number: int) -> int:
        """Bytes that the journal `mark` takes in this half, without frame `number`."""
        return max((_used(copy, number) for copy in self.copies if copy.mark == mark), default=0)

    def read(self, mark: Mark) -> tuple[bytes, tuple[bytes, ...]] | None:
        """The journal `mark` at this instant; `None` where it cannot be read whole."""
        copies = [copy for copy in self.copies if copy.mark == mark]
        if not copies:
            return None
        frames: list[bytes] = []
        highest = max((n for copy in copies for n, frame in copy.frames.items() if frame is not None), default=-1)
        for number in range(highest + 1):
            frame = next((c.frames[number] for c in copies if c.frames.get(number) is not None), None)
            if frame is None:
                return None  # a hole
            frames.append(frame)
        return copies[0].checkpoint, tuple(frames)


def _used(copy: JournalCopy, number: int) -> int:
    frames = sum(len(frame or b"") + FRAME_HEAD_BYTES for n, frame in copy.frames.items() if n != number)
    return len(copy.checkpoint) + FRAME_HEAD_BYTES + frames


class Target(Protocol):
    """What a write replaces, copy by copy."""

    def order(self) -> tuple[int, int]:
        """The copies in the order in which they are to be written."""

    def tear(self, copy: int) -> None:
        """The write of this copy is under way."""

    def land(self, copy: int) -> None:
        """The write of this copy is done."""


class RegisterTarget(NamedTuple):
    """A new value for a register."""

    store: "VirtualStore"
    cell: RegisterCell
    value: Register

    def order(self) -> tuple[int, int]:
        """A torn or older copy first. Whatever writes a register asks this first, so its door is open then (P11.7)."""
        self.store.open_door(self.value.stamp.owner)
        return self.cell.order()

    def tear(self, copy: int) -> None:
        """This copy of the register is damaged."""
        self.store.changed(self.cell, copy, None)

    def land(self, copy: int) -> None:
        """This copy of the register has the new value."""
        self.store.changed(self.cell, copy, self.value)


class CheckpointTarget(NamedTuple):
    """A new journal in a half."""

    half: JournalHalf
    mark: Mark
    checkpoint: bytes

    def order(self) -> tuple[int, int]:
        """The first copy first: whatever the half held is given up (P2.9)."""
        return 0, 1

    def tear(self, copy: int) -> None:
        """Nothing can be read from this copy of the half any more."""
        self.half.copies[copy] = JournalCopy(None, b"")

    def land(self, copy: int) -> None:
        """This copy of the half holds the new journal, which has no frames yet."""
        self.half.copies[copy] = JournalCopy(self.mark, self.checkpoint)


class FrameTarget(NamedTuple):
    """A frame of a journal."""

    half: JournalHalf
    mark: Mark
    number: int
    frame: bytes

    def order(self) -> tuple[int, int]:
        """A torn copy first: the other one may be all that there is of the frame."""
        second = self.half.copies[1].frames
        torn_second = self.number in second and second[self.number] is None
        return (1, 0) if torn_second else (0, 1)

    def tear(self, copy: int) -> None:
        """The frame is damaged in this copy, if the copy still holds this journal."""
        held = self.half.copies[copy]
        if held.mark == self.mark:
            held.frames[self.number] = None

    def land(self, copy: int) -> None:
        """The frame is in this copy, if the copy still holds this journal."""
        held = self.half.copies[copy]
        if held.mark == self.mark:
            held.frames[self.number] = self.frame


class StoreWeather:
    """How the store answers: everyone, or one node."""

    __slots__ = ("failing", "slowness", "unknown", "unreadable")

    def __init__(self) -> None:
        self.calm()

    def calm(self) -> None:
        """From now on nothing fails, and everything is as fast as it can be."""
        self.slowness = 1
        self.failing = 0.0  # share of requests that fail
        self.unknown = 0.0  # share of strip reads that miss the register `unreadable`
        self.unreadable = 0  # its place in the strip


class VirtualStore:
    """The registers and journals of all slots."""

    def __init__(
        self,
        loop: EventLoop,
        random: Random,
        slots: int,
        half_bytes: int,
        cluster: str = "sim",
        bank_ends: tuple[int, ...] = (),
    ) -> None:
        """`bank_ends`: where each bank of slots ends but the last one (P11.7)."""
        self.ids = cluster, "its store"  # of the cluster, and of the store
        self.bank_ends = (*(end for end in bank_ends if end < slots), slots)
        self._opened_us: list[int | None] = [-1, *(None for _ in self.bank_ends[1:])]  # when each bank's door was
        self.loop = loop
        self.random = random
        self.half_bytes = half_bytes
        self.weather = StoreWeather()
        self.cells = {kind: [RegisterCell(kind, owner) for owner in range(slots)] for kind in RegisterKind}
        self.halves = [[JournalHalf(), JournalHalf()] for _ in range(slots)]
        self._all_cells = [cell for cells in self.cells.values() for cell in cells]
        self._strip: Strip | None = None
        self._changed_us = -1

    def copied(self) -> "VirtualStore":
        """Another store with the same contents and ids, as a backup has them."""
        copy = VirtualStore(self.loop, self.random, len(self.halves), self.half_bytes, bank_ends=self.bank_ends)
        copy.ids, copy._opened_us = self.ids, list(self._opened_us)
        for kind, cells in self.cells.items():
            for cell, new in zip(cells, copy.cells[kind], strict=True):
                new.copies, new.current = list(cell.copies), cell.current
        for halves, others in zip(self.halves, copy.halves, strict=True):
            for half, other in zip(halves, others, strict=True):
                other.copies = [held.copied() for held in half.copies]
        return copy

    def open_door(self, slot: int) -> None:
        """A register of this slot is about to be written: every read that begins from now on sees it (P11.7)."""
        bank = next(bank for bank, end in enumerate(self.bank_ends) if slot < end)
        if self._opened_us[bank] is None:
            self._opened_us[bank] = self.loop.now_us
            self._strip = None

    def changed(self, cell: RegisterCell, copy: int, value: Register | None) -> None:
        """Replace one copy of a register."""
        if cell.store(copy, value, self.loop.now_us):
            self._strip = None
            self._changed_us = self.loop.now_us

    def newest(self) -> Strip:
        """The registers as they are now; shared between all readers."""
        if self._strip is None:
            shown = max(bank for bank, opened_us in enumerate(self._opened_us) if opened_us is not None)
            self._strip = self._in_use(_strip([cell.current for cell in self._all_cells]), shown)
        return self._strip

    def _in_use(self, strip: Strip, last: int) -> Strip:
        """The strip of the banks up to the last one that is in use."""
        slots, end = self.bank_ends[-1], self.bank_ends[last]
        if end == slots:
            return strip
        return Strip(strip.leases[:end], strip.claims[:end], strip.views[:end], strip.marks[:end], slots)

    def _shown(self, started_us: int) -> int:
        """The last bank whose door a read shows as open that began then and ends now: it saw it at some instant."""
        shown, span_us = 0, self.loop.now_us - started_us
        for bank, opened_us in enumerate(self._opened_us):
            if opened_us is None:
                continue
            if opened_us < started_us or opened_us <= started_us + int(self.random.random() * span_us):
                shown = bank
        return shown

    def unreadable(self) -> int:
        """The place of a register for bad weather: often that of the newest journal's claim, where it matters most."""
        slots, random = len(self.halves), self.random.random
        if random() < 0.5:
            return int(random() * len(self._all_cells))
        claims = [(claim.mark, owner) for owner, claim in enumerate(self.newest().claims) if claim is not None]
        return slots + max(claims)[1]

    def sampled(self, started_us: int, missing: int | None = None) -> Strip:
        """The registers as a read shows them that began at `started_us` and ends now: each at another instant.

        `missing` is the place in the strip of a register that this read could not make out.
        """
        random = self.random.random
        if missing is not None:
            values = [cell.current for cell in self._all_cells]
            values[missing] = None
            return self._in_use(_strip(values), self._shown(started_us))
        if self._changed_us < started_us:
            return self.newest()
        span_us = self.loop.now_us - started_us
        values = [
            cell.current if cell.changed_us < started_us else cell.value_at(started_us + int(random() * span_us))
            for cell in self._all_cells
        ]
        return self._in_use(_strip(values), self._shown(started_us))


def _strip(values: list[Register | None]) -> Strip:
    slots = len(values) // 4
    # The order of `values` is that of RegisterKind.
    return Strip(
        tuple(values[:slots]),  # type: ignore[arg-type]  # cells of kind LEASE hold leases
        tuple(values[slots : 2 * slots]),  # type: ignore[arg-type]  # likewise claims
        tuple(values[2 * slots : 3 * slots]),  # type: ignore[arg-type]  # likewise views
        tuple(values[3 * slots :]),  # type: ignore[arg-type]  # likewise marks
    )


class StoreAccess:
    """One node's way to the store: how long requests take, and which fail."""

    def __init__(self, store: VirtualStore, node: int) -> None:
        self.store = store  # that was opened, whatever is at its path by now
        self.node = node
        self.weather = StoreWeather()
        self.isolated = False  # this node has lost the store altogether
        self.held_until_us = 0  # its storage stalls: no request ends before
        self.busy_until_us = 0  # a write of this node may land until then
        self.observe: Callable[[str, str], None] | None = None  # (what is written, stage), while triggers are armed
        self._spoiled: frozenset[str] = frozenset()  # what cannot be written: a bad block of the node's own area
        self._spoiled_hangs = False
        self._hung: list[tuple[Process, str, Callable[[], None]]] = []  # writes that have not ended

    def latency_us(self) -> int:
        """How long the next request takes."""
        random = self.store.random.random
        slowness = max(self.weather.slowness, self.store.weather.slowness)
        base_us = 150 + int(random() * 600)
        if random() < 0.01:
            base_us += int(random() * 8 * US_PER_MS)
        stalls_us = max(0, self.held_until_us - self.store.loop.now_us)
        return stalls_us + min(base_us * slowness, 900 * US_PER_MS)

    def fails(self) -> bool:
        """Whether the next request fails."""
        share = max(self.weather.failing, self.store.weather.failing)
        return self.isolated or (share > 0 and self.store.random.random() < share)

    def spoil(self, what: Iterable[str], *, hangs: bool) -> None:
        """From now on no write of such records ends well; with `hangs` none ends at all."""
        self._spoiled, self._spoiled_hangs = frozenset(what), hangs

    def mend(self) -> None:
        """What is written is written again; what hung goes on."""
        self._spoiled = frozenset()
        hung, self._hung = self._hung, []
        for _process, _what, go_on in hung:
            go_on()

    def is_spoiled(self, what: str) -> bool:
        """Whether the write of such a record fails, and leaves what was there."""
        return what in self._spoiled

    def hangs(self, process: Process, what: str, go_on: Callable[[], None]) -> bool:
        """Whether the write of such a record does not end; `go_on` is called once the place is mended."""
        found = what in self._spoiled and self._spoiled_hangs
        if found:
            self._hung.append((process, what, go_on))
        return found

    def waits_for_write_of(self, process: Process | None) -> bool:
        """Whether a write of this process hangs: it does not end before that does."""
        return any(process is hung for hung, _what, _go_on in self._hung)

    def waits_for_write(self, what: str) -> bool:
        """Whether the write of such a record hangs."""
        return any(what == hung for _process, hung, _go_on in self._hung)

    def sampled(self, started_us: int) -> Strip:
        """The strip as a read of this node shows it that began at `started_us` and ends now."""
        for weather in (self.weather, self.store.weather):
            if weather.unknown and self.store.random.random() < weather.unknown:
                return self.store.sampled(started_us, weather.unreadable)
        return self.store.sampled(started_us)


class TwoCopyWrite:
    """A durable write under way: first one copy, then the other, on behalf of one process."""

    __slots__ = ("_access", "_done", "_order", "_process", "_target", "_what")

    def __init__(
        self,
        access: StoreAccess,
        process: Process,
        what: str,
        target: Target,
        done: Callable[[bool], None],
    ) -> None:
        """Begin at once. `done(succeeded)` is called in `process`; after a failure anything may have been written."""
        self._access, self._process, self._what = access, process, what
        self._target, self._done = target, done
        self._order = target.order()
        self._observe("begun")
        self._issue(0)

    def _observe(self, stage: str) -> None:
        observe = self._access.observe
        if observe is not None:
            observe(self._what, stage)

    def _issue(self, step: int) -> None:
        access, loop = self._access, self._access.store.loop
        if not self._process.running:  # a fault at this very point
            loop.deliver(self._process, self._issue, step)
            return
        if access.hangs(self._process, self._what, lambda: self._goes_on(step)):
            return
        delay_us = access.latency_us()
        if access.is_spoiled(self._what):
            loop.deliver_after(delay_us, self._process, self._done, False)
            return
        if access.fails():
            self._damage(step)
            loop.deliver_after(delay_us, self._process, self._done, False)
            return
        self._target.tear(self._order[step])
        access.busy_until_us = max(access.busy_until_us, loop.now_us + delay_us)
        loop.after(delay_us, self._complete, step, loop.now_us)

    def _goes_on(self, step: int) -> None:
        """A write that hung goes on; it lands also after the death of who made it, unless its machine lost power."""
        process, loop = self._process, self._access.store.loop
        if process.alive:
            loop.deliver(process, self._issue, step)
        elif not process.lost_power:
            self._target.land(self._order[step])

    def _damage(self, step: int) -> None:
        """A failed write did nothing, or left a torn copy, or was carried out after all."""
        fate = self._access.store.random.random()
        if fate < 0.2:
            self._target.tear(self._order[step])
        elif fate < 0.4:
            self._target.land(self._order[step])

    def _complete(self, step: int, issued_us: int) -> None:
        process, loop = self._process, self._access.store.loop
        if not process.alive and process.lost_power:
            fate = self._access.store.random.random()
            if fate < 0.3 or loop.now_us - issued_us > LATE_LANDING_US:
                return  # torn for good
        self._target.land(self._order[step])
        if step == 0:
            self._observe("half written")
            loop.deliver(process, self._issue, 1)
        else:
            self._observe("written")
            loop.deliver(process, self._done, True)
