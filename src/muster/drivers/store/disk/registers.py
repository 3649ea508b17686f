"""Reading and writing the registers of a disk store (SPEC 1.5). Blocking; the guard process imports this module.

Theory of operation. A register has two copies. A writer replaces the worse copy first and the other one after that,
each durable before the next, so at any moment one copy holds the last durable value or a newer one. A reader takes the
newer valid copy: it returns what was durable when its read began, or something newer. A copy that is invalid may just
be in the middle of being written, so the read is repeated; bytes that stay the same are corruption, and are then
remembered, so that a damaged copy does not slow every later read down.

In a store of banks each bank but the first has a door (P11.7). Whoever writes its first register there opens the door
before, for good; whoever reads the first bank reads the doors with it, in each read anew, and reads further banks only
as far as their doors are not shut. So what is left out was blank when the read began. A door counts as shut only if
both its copies are, to the last bit, what `muster init` has written: damage opens it.
"""

import time
from collections.abc import Sequence

from muster.drivers.store.disk.file import DiskFile
from muster.drivers.store.disk.geometry import COPIES, Header
from muster.drivers.store.disk.sectors import Choice, Problem, Record, RecordKind, choose, decode_record, encode_record
from muster.drivers.store.failures import StoreFailed
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
    data = encode_record(record, header.cluster_id, place.offset, header.sector_bytes, header.version)
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


class _Rows:
    """Rows of one bank, as the last read gave them; decodes only what has changed since."""

    __slots__ = ("_bank", "_cells", "_header", "_kinds", "_raw", "_suspects", "known", "length", "offset")

    def __init__(self, header: Header, kinds: tuple[RegisterKind, ...], bank: int) -> None:
        self._header, self._kinds, self._bank = header, kinds, bank
        self.offset, self.length = header.span(kinds, bank)
        self._cells = [[_Cell() for _ in range(header.banks[bank].slots)] for _ in kinds]
        self._raw = b""
        self.known: list[Known] = [()] * len(kinds)  # of each row, as last returned; empty: to be gathered anew
        self._suspects = [0] * len(kinds)  # how many registers of each row have an invalid copy

    def gather(self) -> tuple[Known, ...]:
        """The registers of each kind."""
        for row, cells in enumerate(self._cells):
            self.known[row] = self.known[row] or tuple(cell.register for cell in cells)
        return tuple(self.known)

    def settled(self, raw: bytes) -> bool:
        """Take the bytes of one read; whether no repetition is needed."""
        settled = True
        before, self._raw = self._raw, raw
        row_bytes = self._header.banks[self._bank].row_bytes
        for row, cells in enumerate(self._cells):
            start = self._header.row_offset(self._kinds[row], 0, self._bank) - self.offset
            end = start + COPIES * row_bytes
            changed = raw[start:end] != before[start:end]
            if not changed and not self._suspects[row]:
                continue  # most rows of most reads: nothing but leases and views changes while nothing happens
            if changed:
                self.known[row] = ()
            suspects = 0
            for number, cell in enumerate(cells):
                if changed:
                    self._take(row, number, start, raw)
                elif cell.suspect:
                    cell.repeats += 1
                suspects += cell.suspect
                settled = settled and (not cell.suspect or cell.repeats >= REPEATS)
            self._suspects[row] = suspects
        return settled

    def _take(self, row: int, number: int, start: int, raw: bytes) -> None:
        cell, sector_bytes, bank = self._cells[row][number], self._header.sector_bytes, self._header.banks[self._bank]
        at_a = start + number * sector_bytes
        at_b = at_a + bank.row_bytes
        copies = raw[at_a : at_a + sector_bytes], raw[at_b : at_b + sector_bytes]
        if copies == cell.copies:
            cell.repeats += 1
            return
        cell.copies, cell.repeats = copies, 0
        cell.register, choice = judge(self._header, self._kinds[row], bank.first + number, copies)
        cell.suspect = cell.register is None or choice.problem_a is not None or choice.problem_b is not None


class RegisterReader:
    """Reads whole rows of registers, of all banks in use. For one thread."""

    __slots__ = ("_banks", "_doors_at", "_file", "_gathered", "_header", "_kinds", "_shut", "_together", "_whole")

    def __init__(self, file: DiskFile, header: Header, kinds: Sequence[RegisterKind], *, whole: bool = False) -> None:
        """`kinds` must be consecutive in a bank. `whole`: of all banks, whatever their doors say."""
        self._file, self._header, self._kinds, self._whole = file, header, tuple(kinds), whole
        self._banks = [_Rows(header, self._kinds, 0)]  # the further ones when they are first read
        self._shut = header.shut_doors() if header.has_doors else b""
        self._doors_at = header.doors_offset - self._banks[0].offset
        self._gathered: list[tuple[Known, ...]] = []  # of each bank, as last put together ...
        self._together: tuple[Known, ...] = ()  # ... to this

    def read(self) -> tuple[Known, ...]:
        """The registers of each kind, all read after this call began, of all slots that may have been written.

        Raises `StoreFailed`.
        """
        count = 1
        for repeat in range(REPEATS + 1):
            if repeat:
                time.sleep(REPEAT_PAUSE_S)
            raw = self._file.read_around_damage(self._banks[0].offset, self._banks[0].length)
            settled = self._banks[0].settled(raw)
            count = self._in_use(raw)
            for bank in range(1, count):
                settled = self._read_further(bank) and settled
            if settled:
                break
        if count == 1:
            return self._banks[0].gather()
        return self._put_together([rows.gather() for rows in self._banks[:count]])

    def _in_use(self, raw: bytes) -> int:
        """How many banks are to be read, by the doors in a read of the first bank."""
        header = self._header
        if self._whole:
            return len(header.banks)
        doors = raw[self._doors_at : self._doors_at + len(self._shut)]
        if doors == self._shut:
            return 1
        for bank in range(len(header.banks) - 1, 0, -1):
            for copy in range(COPIES):
                at = header.door_offset(bank, copy) - header.doors_offset
                if doors[at : at + header.sector_bytes] != self._shut[at : at + header.sector_bytes]:
                    return bank + 1
        return 1

    def _read_further(self, bank: int) -> bool:
        if bank == len(self._banks):
            self._banks.append(_Rows(self._header, self._kinds, bank))
        rows = self._banks[bank]
        return rows.settled(self._file.read_around_damage(rows.offset, rows.length))

    def _put_together(self, gathered: list[tuple[Known, ...]]) -> tuple[Known, ...]:
        """One row a kind of all banks; the same one as last time where it is."""
        before = self._gathered if len(self._gathered) == len(gathered) else None
        rows: list[Known] = []
        for row in range(len(self._kinds)):
            if before is not None and all(old[row] is new[row] for old, new in zip(before, gathered, strict=True)):
                rows.append(self._together[row])
            else:
                rows.append(tuple(register for bank in gathered for register in bank[row]))
        self._gathered, self._together = gathered, tuple(rows)
        return self._together


class OwnRegister:
    """One register, for its only writer. For one thread."""

    __slots__ = ("_file", "_header", "_kind", "_order", "_shut_in", "_slot", "_written")

    def __init__(self, file: DiskFile, header: Header, kind: RegisterKind, slot: int) -> None:
        self._file, self._header, self._kind, self._slot = file, header, kind, slot
        self._shut_in = header.bank(slot) > 0  # this process has not made sure yet that the door is open
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
        if self._shut_in:
            self._open_door()
        if self._order is None:
            self.read()
        order, self._order = self._order or (0, 1), None  # after a failure the copies must be looked at again
        self._written = None
        copies = tuple(encode_copy(self._header, self._kind, self._slot, copy, register) for copy in range(COPIES))
        for copy in order:
            self._file.write(self.offset(copy), copies[copy])
        self._order, self._written = (0, 1), (copies, register)

    def _open_door(self) -> None:
        """Let every read that begins from now on see this register (P11.7). Any node of the bank writes the same."""
        header, bank = self._header, self._header.bank(self._slot)
        for copy in range(COPIES):
            offset, wanted = header.door_offset(bank, copy), header.door(bank, copy, is_open=True)
            try:
                found = self._file.read(offset, header.sector_bytes)
            except StoreFailed:
                found = b""  # a bad sector: writing it may mend it
            if found != wanted:
                self._file.write(offset, wanted)
        self._shut_in = False

    def _read_copies(self) -> tuple[bytes, bytes]:
        first, second, sector_bytes = self.offset(0), self.offset(1), self._header.sector_bytes
        raw = self._file.read_around_damage(first, second - first + sector_bytes)
        return raw[:sector_bytes], raw[second - first :]
