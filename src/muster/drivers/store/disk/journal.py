"""The journals of a disk store: a checkpoint and the frames after it, in two copies (SPEC 1.5, 2.6).

Theory of operation. A journal fills one half of its owner's area; a half has two regions, copy A and copy B, laid out
alike: the checkpoint's record, then one record a frame, each beginning on a sector. Before a half is used again, both
regions are wiped behind the place of the new checkpoint: from then on everything behind the last frame that was ever
begun is zeros, and nothing of an older generation can be mistaken for a frame of this one (every record also names
its term, generation, number and place). Frame n is written to copy A, then to copy B, each durable before the next,
and frame n + 1 is begun only when frame n is durable in both. So a reader at the place of frame n finds

* a valid copy: the frame;
* none, and one of the regions zero from there on: the end (never begun, or torn in copy A only);
* none, and bytes in both regions: a durable frame was destroyed, unreadable;
* none, but a valid frame further on: a hole, unreadable.
"""

import zlib
from typing import NamedTuple

from muster.drivers.store.disk.file import DiskFile
from muster.drivers.store.disk.geometry import COPIES, HALVES, Header
from muster.drivers.store.disk.sectors import (
    HEADER_BYTES,
    MAGIC,
    Packing,
    Place,
    Problem,
    Record,
    RecordKind,
    announced_bytes,
    decode_record,
    encode_record,
    padded_bytes,
)
from muster.drivers.store.failures import JournalFull, JournalImage, JournalUnreadable, StoreFailed
from muster.records.registers import Mark
from muster.records.terms import Stamp

MAXIMUM_CONTENT_BYTES = 256 * 1024 * 1024  # of an unpacked checkpoint or frame
CHECKPOINT_SHARE_PERCENT = 75  # the largest part of a region that a checkpoint may fill: frames need room, too
PACK_FROM_BYTES = 2048  # smaller contents are not worth packing
_CHUNK_BYTES = 128 * 1024


def pack(content: bytes) -> tuple[Packing, bytes]:
    """The payload for `content`: compressed if that makes it smaller."""
    if len(content) >= PACK_FROM_BYTES:
        packed = zlib.compress(content, 1)
        if len(packed) < len(content):
            return Packing.DEFLATE, packed
    return Packing.PLAIN, content


def unpack(record: Record) -> bytes:
    """Inverse of `pack`. Raises `ValueError` for a stream that is none, or unpacks to too much."""
    if record.packing is Packing.PLAIN:
        return record.payload
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(record.payload, MAXIMUM_CONTENT_BYTES)
    except zlib.error as error:
        raise ValueError(f"the packed contents are damaged ({error})") from error
    if not stream.eof:
        raise ValueError(f"the packed contents are cut off or larger than {MAXIMUM_CONTENT_BYTES} bytes")
    return content


class OwnJournal:
    """The journal area of one node, for its only writer. For one thread."""

    __slots__ = (
        "_attempt", "_attempted", "_count", "_file", "_header", "_last_offset", "_mark", "_next_offset", "_slot",
        "_used_bytes",
    )  # fmt: skip

    def __init__(self, file: DiskFile, header: Header, slot: int) -> None:
        self._file, self._header, self._slot = file, header, slot
        self._mark: Mark | None = None  # journal that is being appended to
        self._count = 0  # frames in it
        self._next_offset = 0  # place of the next frame, in bytes from the region's start
        self._last_offset = 0  # place of the last one
        self._attempt = (-1, b"")  # offset and payload of the last append, successful or not
        # What lies behind this offset in both regions of a half is zeros; None: not known, look first.
        self._used_bytes: list[int | None] = [None] * HALVES

    def write_checkpoint(self, mark: Mark, incarnation: int, content: bytes) -> None:
        """Begin journal `mark` in its half. Raises `JournalFull` (nothing written), `StoreFailed`."""
        packing, payload = pack(content)
        size = padded_bytes(len(payload), self._header.sector_bytes)
        largest = self._header.region_bytes * CHECKPOINT_SHARE_PERCENT // 100
        if size > largest:
            raise JournalFull(
                f"store {self._file.path}: a checkpoint of {size} bytes does not fit, {largest} is the most;"
                " withdraw service definitions, or move to a store with a larger --size"
            )
        self._mark = None
        stamp = Stamp(self._slot, incarnation, mark.term, 0)
        record = Record(RecordKind.CHECKPOINT, stamp, payload, mark.generation, packing)
        self._behead(mark.half)
        self._wipe_behind(mark.half, size)
        self._write_copies(mark.half, 0, record, size)
        self._mark, self._count, self._next_offset = mark, 0, size
        self._attempt = (-1, b"")

    def append(self, mark: Mark, number: int, incarnation: int, content: bytes) -> None:
        """Durably append frame `number`, or rewrite the last one. Raises `JournalFull`, `StoreFailed`."""
        offset = self._place_of(mark, number)
        packing, payload = pack(content)
        size = padded_bytes(len(payload), self._header.sector_bytes)
        if offset + size > self._header.region_bytes:
            raise JournalFull(
                f"store {self._file.path}: frame {number} of {size} bytes does not fit into journal {mark.term}"
                f" generation {mark.generation}, {self._header.region_bytes - offset} bytes are left; compact it"
            )
        before, self._attempt = self._attempt, (offset, payload)
        used = self._used_bytes[mark.half] or 0
        if before[0] == offset and before[1] != payload and used > offset:
            # Other contents than before at this place: leave no mixture of the two in both copies at once.
            self._file.write(self._header.region_offset(self._slot, mark.half, 1) + offset, bytes(used - offset))
        stamp = Stamp(self._slot, incarnation, mark.term, number)
        record = Record(RecordKind.FRAME, stamp, payload, mark.generation, packing)
        self._write_copies(mark.half, offset, record, used - offset)
        self._count, self._last_offset, self._next_offset = number + 1, offset, offset + size

    def _place_of(self, mark: Mark, number: int) -> int:
        if mark != self._mark:
            raise StoreFailed(
                f"store {self._file.path}: frame {number} is for journal {mark.term} generation {mark.generation},"
                " whose checkpoint this process has not written; write a checkpoint first"
            )
        if number == self._count:
            return self._next_offset
        if number == self._count - 1:
            return self._last_offset
        raise StoreFailed(
            f"store {self._file.path}: frame {number} does not follow the {self._count} frames of journal {mark.term}"
            f" generation {mark.generation}; append them one after the other"
        )

    def _write_copies(self, half: int, offset: int, record: Record, least_bytes: int) -> None:
        """Write a record to copy A, then to copy B, with zeros behind it up to `least_bytes` (SPEC 1.5)."""
        for copy in range(COPIES):
            place = self._header.region_offset(self._slot, half, copy) + offset
            header = self._header
            data = encode_record(record, header.cluster_id, place, header.sector_bytes, header.version)
            self._used_bytes[half] = max(self._used_bytes[half] or 0, offset + len(data))
            self._file.write(place, data + bytes(max(0, least_bytes - len(data))))

    def _behead(self, half: int) -> None:
        """Make both heads of a half invalid before anything else in it is touched (PROTOCOL P2.9).

        Whoever still reads the old journal finds it unreadable from now on, never merely shorter.
        """
        for copy in range(COPIES):
            start = self._header.region_offset(self._slot, half, copy)
            self._file.write(start, bytes(self._header.sector_bytes))

    def _wipe_behind(self, half: int, offset: int) -> None:
        """Zero both regions of a half from `offset` on, reading first where it is not known what is there."""
        used = self._used_bytes[half]
        self._used_bytes[half] = None
        for copy in range(COPIES):
            start = self._header.region_offset(self._slot, half, copy)
            if used is not None:
                self._file.write(start + offset, bytes(max(0, used - offset)))
                continue
            for chunk in range(offset, self._header.region_bytes, _CHUNK_BYTES):
                length = min(_CHUNK_BYTES, self._header.region_bytes - chunk)
                found = self._file.read_around_damage(start + chunk, length)
                if found.count(0) != length:
                    self._file.write(start + chunk, bytes(length))
        self._used_bytes[half] = offset


class Damage(NamedTuple):
    """A copy of a journal record that is invalid while the other one is good."""

    offset: int  # in the store, in bytes
    copy: int
    what: str  # `checkpoint` or `frame N`
    problem: Problem


class JournalScan(NamedTuple):
    """A journal as read back, with what was found wrong on the way and not fatal."""

    image: JournalImage
    damages: tuple[Damage, ...]
    used_bytes: int


class _Region:
    """One copy of a half, read on demand in chunks."""

    __slots__ = ("_content", "_file", "_region_bytes", "start")

    def __init__(self, file: DiskFile, start: int, region_bytes: int) -> None:
        self._file, self.start, self._region_bytes = file, start, region_bytes
        self._content = bytearray()

    def forget(self) -> None:
        """Read anew from now on."""
        self._content = bytearray()

    def get(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on, fewer at the end of the region."""
        end = min(offset + length, self._region_bytes)
        while len(self._content) < end:
            at = len(self._content)
            wanted = min(_CHUNK_BYTES, self._region_bytes - at)
            self._content += self._file.read_around_damage(self.start + at, wanted)
        return bytes(self._content[offset:end])


class _Scanner:
    """Reads one journal."""

    def __init__(self, file: DiskFile, header: Header, owner: int, mark: Mark) -> None:
        self._header, self._owner, self._mark = header, owner, mark
        starts = [header.region_offset(owner, mark.half, copy) for copy in range(COPIES)]
        self._regions = [_Region(file, start, header.region_bytes) for start in starts]
        self._what = f"journal {mark.term} generation {mark.generation} of node {owner} in store {file.path}"
        self._damages: list[Damage] = []

    def scan(self) -> JournalScan:
        """The whole journal. Raises `JournalUnreadable`."""
        found = self._record(0, RecordKind.CHECKPOINT, 0)
        if found is None:
            raise self._unreadable(0, "neither copy of its checkpoint is valid")
        checkpoint, offset = self._content(found, 0), self._size(found)
        frames: list[bytes] = []
        while offset < self._header.region_bytes:  # every record advances by at least a sector
            found = self._record(offset, RecordKind.FRAME, len(frames))
            if found is None:
                self._check_end(offset, len(frames))
                break
            frames.append(self._content(found, offset))
            offset += self._size(found)
        if not self._still_there():
            raise self._unreadable(0, "it was replaced while it was read")
        return JournalScan(JournalImage(checkpoint, tuple(frames)), tuple(self._damages), offset)

    def _still_there(self) -> bool:
        """Whether a head still is the one that was read: then nothing behind it had been touched (PROTOCOL P2.9)."""
        for region in self._regions:
            region.forget()
        return any(isinstance(self._copy(copy, 0, RecordKind.CHECKPOINT, 0), Record) for copy in range(COPIES))

    def _record(self, offset: int, kind: RecordKind, number: int) -> Record | None:
        """The record at `offset` from whichever copy is valid. Copy A is the newer where they differ."""
        copies = [self._copy(copy, offset, kind, number) for copy in range(COPIES)]
        valid = [copy for copy in copies if isinstance(copy, Record)]
        if not valid:
            return None
        what = "checkpoint" if kind is RecordKind.CHECKPOINT else f"frame {number}"
        for copy, outcome in enumerate(copies):
            if isinstance(outcome, Problem):
                self._damages.append(Damage(self._regions[copy].start + offset, copy, what, outcome))
        return valid[0]

    def _copy(self, copy: int, offset: int, kind: RecordKind, number: int) -> Record | Problem:
        region, sector_bytes = self._regions[copy], self._header.sector_bytes
        size = announced_bytes(region.get(offset, HEADER_BYTES), sector_bytes) or sector_bytes
        if offset + size > self._header.region_bytes:
            return Problem.CHECKSUM
        place = Place(self._header.cluster_id, region.start + offset, self._owner, kind, self._header.version)
        record = decode_record(region.get(offset, size), place, sector_bytes)
        if isinstance(record, Record) and not self._belongs(record, number):
            return Problem.WRONG_PLACE
        return record

    def _belongs(self, record: Record, number: int) -> bool:
        named = (record.stamp.term, record.generation, record.stamp.sequence)
        return named == (self._mark.term, self._mark.generation, number)

    def _check_end(self, offset: int, count: int) -> None:
        """No copy is valid at `offset`: return if the journal ends there, raise if a durable frame was lost."""
        rest = [region.get(offset, self._header.region_bytes) for region in self._regions]
        zero = [part.count(0) == len(part) for part in rest]
        for copy, part in enumerate(rest):
            if not zero[copy] and self._holds_later_frame(copy, offset, part, count):
                raise self._unreadable(offset, f"frame {count} is missing, but a later one is there")
        if not any(zero):
            raise self._unreadable(offset, f"neither copy of frame {count} is valid, and neither is blank")

    def _holds_later_frame(self, copy: int, offset: int, part: bytes, count: int) -> bool:
        sector_bytes = self._header.sector_bytes
        at = part.find(MAGIC)
        while at >= 0:
            size = (
                announced_bytes(part[at : at + HEADER_BYTES], sector_bytes) if at + HEADER_BYTES <= len(part) else None
            )
            if at % sector_bytes == 0 and size is not None and at + size <= len(part):
                start = self._regions[copy].start + offset + at
                place = Place(self._header.cluster_id, start, self._owner, RecordKind.FRAME, self._header.version)
                record = decode_record(part[at : at + size], place, sector_bytes)
                if isinstance(record, Record) and self._belongs(record, max(record.stamp.sequence, count)):
                    return True
            at = part.find(MAGIC, at + 1)
        return False

    def _size(self, record: Record) -> int:
        return padded_bytes(len(record.payload), self._header.sector_bytes)

    def _content(self, record: Record, offset: int) -> bytes:
        try:
            return unpack(record)
        except ValueError as error:
            raise self._unreadable(offset, str(error)) from error

    def _unreadable(self, offset: int, why: str) -> JournalUnreadable:
        places = " and ".join(str(region.start + offset) for region in self._regions)
        return JournalUnreadable(
            f"{self._what} cannot be read whole: {why} (offsets {places});"
            " run `muster store check`, and restore the store from a backup if it stays so"
        )


def scan_journal(file: DiskFile, header: Header, owner: int, mark: Mark) -> JournalScan:
    """Read the journal that `mark` of node `owner` points to, once. Raises `JournalUnreadable`, `StoreFailed`."""
    if not 0 <= owner < header.slots or mark.half not in range(HALVES):
        raise JournalUnreadable(
            f"store {file.path}: there is no journal of node {owner} in half {mark.half}; run `muster store check`"
        )
    return _Scanner(file, header, owner, mark).scan()
