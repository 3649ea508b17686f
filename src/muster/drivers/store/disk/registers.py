"""Reading and writing the registers of a disk store (SPEC 1.5). Blocking; the guard process imports this module.

Theory of operation. A register has two copies. A writer replaces the worse copy first and the other one after that,
each durable before the next, so at any moment one copy holds the last durable value or a newer one. A reader takes the
newer valid copy: it returns what was durable when its read began, or something newer. A copy that is invalid may just
be in the middle of being written, so the read is repeated; bytes that stay the same are corruption, and are then
remembered, so that a damaged copy does not slow every later read down.
"""

import time
from collections.abc import Sequence

from muster.drivers.store.disk.file import DiskFile
from muster.drivers.store.disk.geometry import COPIES, Header
from muster.drivers.store.disk.sectors import Choice, Problem, Record, RecordKind, choose, decode_record, encode_record
from muster.records.registers import MalformedRegister, Register, RegisterKind, decode_register, encode_register

REPEATS = 3  # how often a read that met an invalid copy is repeated
REPEAT_PAUSE_S = 0.001

Known = tuple[Register | None, ...]  # one register a slot; None is unknown, never empty


def judge(header: Header, kind: RegisterKind, slot: int, copies: Sequence[bytes]) -> tuple[Register | None, Choice]:
    """What the two copies of a register say, and the register if they say anything that may be believed."""
    records: list[Record | Problem] = []
    for copy, data in enumerate(copies):
        records.append(decode_record(data, header.register_place(kind, slot, copy), header.sector_bytes))
    choice = choose(records[0], records[1])
    if choice.record is None:
        return None, choice
    try:
        return decode_register(kind, choice.record.stamp, choice.record.payload), choice
    except MalformedRegister:
        return None, choice


def encode_copy(header: Header, kind: RegisterKind, slot: int, copy: int, register: Register) -> bytes:
    """The sector that holds one copy of a register."""
    record = Record(RecordKind(kind), register.stamp, encode_register(register))
    place = header.register_place(kind, slot, copy)
    data = encode_record(record, header.cluster_id, place.offset, header.sector_bytes)
    if len(data) != header.sector_bytes:
        raise ValueError(f"{kind.name.lower()} register of {len(record.payload)} bytes: it must fit into one sector")
    return data


class _Cell:
    """What the last read of one register's two copies gave."""

    __slots__ = ("copies", "register", "repeats", "suspect")

    def __init__(self) -> None:
        self.copies: tuple[bytes, bytes] = (b"", b"")
        self.register: Register | None = None
        self.suspect = False  # a copy was invalid
        self.repeats = 0  # how often the same suspect bytes were read again


class RegisterReader:
    """Reads whole rows of registers; decodes only what has changed since its last read. For one thread."""

    __slots__ = ("_cells", "_file", "_header", "_kinds", "_known", "_length", "_offset", "_raw", "_suspects")

    def __init__(self, file: DiskFile, header: Header, kinds: Sequence[RegisterKind]) -> None:
        """`kinds` must be consecutive in the strip."""
        self._file, self._header, self._kinds = file, header, tuple(kinds)
        self._offset = header.row_offset(kinds[0], 0)
        self._length = len(kinds) * COPIES * header.row_bytes
        self._cells = [[_Cell() for _ in range(header.slots)] for _ in kinds]
        self._raw = b""
        self._known: list[Known] = [()] * len(kinds)  # of each row, as last returned; empty: to be gathered anew
        self._suspects = [0] * len(kinds)  # how many registers of each row have an invalid copy

    def read(self) -> tuple[Known, ...]:
        """The registers of each kind, all read after this call began. Raises `StoreFailed`."""
        for repeat in range(REPEATS + 1):
            if repeat:
                time.sleep(REPEAT_PAUSE_S)
            raw = self._file.read_around_damage(self._offset, self._length)
            if self._settled(raw):
                break
        for row, cells in enumerate(self._cells):
            self._known[row] = self._known[row] or tuple(cell.register for cell in cells)
        return tuple(self._known)

    def _settled(self, raw: bytes) -> bool:
        """Take the bytes of one read; whether no repetition is needed."""
        settled = True
        before, self._raw = self._raw, raw
        row_bytes = self._header.row_bytes
        for row, cells in enumerate(self._cells):
            start, end = row * COPIES * row_bytes, (row + 1) * COPIES * row_bytes
            changed = raw[start:end] != before[start:end]
            if not changed and not self._suspects[row]:
                continue  # most rows of most reads: nothing but leases and views changes while nothing happens
            if changed:
                self._known[row] = ()
            suspects = 0
            for slot, cell in enumerate(cells):
                if changed:
                    self._take(row, slot, start, raw)
                elif cell.suspect:
                    cell.repeats += 1
                suspects += cell.suspect
                settled = settled and (not cell.suspect or cell.repeats >= REPEATS)
            self._suspects[row] = suspects
        return settled

    def _take(self, row: int, slot: int, start: int, raw: bytes) -> None:
        cell, sector_bytes = self._cells[row][slot], self._header.sector_bytes
        at_a = start + slot * sector_bytes
        at_b = at_a + self._header.row_bytes
        copies = raw[at_a : at_a + sector_bytes], raw[at_b : at_b + sector_bytes]
        if copies == cell.copies:
            cell.repeats += 1
            return
        cell.copies, cell.repeats = copies, 0
        cell.register, choice = judge(self._header, self._kinds[row], slot, copies)
        cell.suspect = cell.register is None or choice.problem_a is not None or choice.problem_b is not None


class OwnRegister:
    """One register, for its only writer. For one thread."""

    __slots__ = ("_file", "_header", "_kind", "_order", "_slot", "_written")

    def __init__(self, file: DiskFile, header: Header, kind: RegisterKind, slot: int) -> None:
        self._file, self._header, self._kind, self._slot = file, header, kind, slot
        self._order: tuple[int, ...] | None = None  # in which order the next write replaces the copies, if known
        self._written: tuple[tuple[bytes, ...], Register] | None = None  # both copies as this process wrote them

    def offset(self, copy: int) -> int:
        """Where a copy of the register is, in bytes."""
        return self._header.register_offset(self._kind, self._slot, copy)

    def read(self) -> Register | None:
        """The newest valid value; None where no copy stays valid. Raises `StoreFailed`."""
        register, choice = None, None
        for repeat in range(REPEATS + 1):
            if repeat:
                time.sleep(REPEAT_PAUSE_S)
            copies = self._read_copies()
            if self._written is not None and copies == self._written[0]:
                self._order = (0, 1)
                return self._written[1]  # to the last bit: there is nothing to judge
            register, choice = judge(self._header, self._kind, self._slot, copies)
            self._order = (choice.write_first, 1 - choice.write_first)
            if register is not None and choice.problem_a is None and choice.problem_b is None:
                break
        return register

    def as_written(self, copies: tuple[bytes, bytes]) -> Register | None:
        """The register that this process wrote last, if these are its copies to the last bit."""
        return self._written[1] if self._written is not None and self._written[0] == copies else None

    def write(self, register: Register) -> None:
        """Replace both copies, the worse one first, each durable before the next (SPEC 1.5). Raises `StoreFailed`."""
        if self._order is None:
            self.read()
        order, self._order = self._order or (0, 1), None  # after a failure the copies must be looked at again
        self._written = None
        copies = tuple(encode_copy(self._header, self._kind, self._slot, copy, register) for copy in range(COPIES))
        for copy in order:
            self._file.write(self.offset(copy), copies[copy])
        self._order, self._written = (0, 1), (copies, register)

    def _read_copies(self) -> tuple[bytes, bytes]:
        first, second, sector_bytes = self.offset(0), self.offset(1), self._header.sector_bytes
        raw = self._file.read_around_damage(first, second - first + sector_bytes)
        return raw[:sector_bytes], raw[second - first :]
