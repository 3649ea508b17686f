"""Where everything is in a disk store, and the store's header that says so (SPEC 1.5, docs/DISK_FORMAT.md).

    store:     header (copy A, copy B), strip, probe blocks, journals
    strip:     format 1: one bank of all slots. Format 2: a bank for slots 0 to 15, with the doors of all other banks
               in it, then the bank of slots 16 to 31, 32 to 63, 64 to 127, 128 to 255 (P11.7)
    bank:      leases (row A, row B), claims, views, marks (likewise); a row has one sector a slot
    journals:  slot 0: half 0 (region A, region B), half 1 (region A, region B); slot 1: ...

A bank is contiguous and ordered by kind, so that one read sees all its registers; the doors are where a read of the
claims alone, and one of the marks alone, sees them too. Rows begin on multiples of 4096 bytes: the two copies of a
register never share a block of a disk with large physical sectors, given eight slots. Plain named tuples: the guard
process imports this module.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from muster.drivers.store.disk.sectors import (
    BANKED_FORMAT,
    CLUSTER_ID_BYTES,
    FORMAT_VERSION,
    FORMATS,
    MAGIC,
    NO_OWNER,
    Place,
    Problem,
    Record,
    RecordKind,
    decode_record,
    encode_record,
)
from muster.drivers.store.identity import Scope
from muster.records.registers import BANK_ENDS, MAXIMUM_SLOTS, RegisterKind, bank_of
from muster.records.terms import NO_TERM, Stamp

BLOCK_BYTES = 4096  # every area begins on a multiple of this, whatever the sector size
STRIP_OFFSET = 2 * BLOCK_BYTES
SECTOR_SIZES = (512, 4096)
DEFAULT_SLOTS = 16
FLAT_SLOTS = 40  # the most of a store without banks
MINIMUM_REGION_BYTES = 4 * BLOCK_BYTES
MAXIMUM_REGION_BYTES = 256 * 1024 * 1024
MAXIMUM_NAME_BYTES = 64
COPIES = 2
HALVES = 2

STORE_ID_BYTES = 16
_ORDERS = {
    FORMAT_VERSION: (RegisterKind.LEASE, RegisterKind.CLAIM, RegisterKind.VIEW, RegisterKind.MARKS),
    BANKED_FORMAT: (RegisterKind.LEASE, RegisterKind.VIEW, RegisterKind.CLAIM, RegisterKind.MARKS),
}  # of the rows of a bank, by format; the doors are between the last two
DOORS = len(BANK_ENDS) - 1
_SHUT, _OPEN = (0, b"\0"), (1, b"\1")  # sequence and payload of a door
_PAYLOAD = struct.Struct("<BBHHHIIQQH")  # then the name, then the store id where it is not the cluster id
assert _PAYLOAD.size == 34


DEFAULT_STORE_BYTES = {Scope.HOST: 64 * 1024 * 1024, Scope.SHARED: 256 * 1024 * 1024}


class InvalidGeometry(ValueError):
    """The header's values cannot make a store; the message names the value, its limits and what to do."""


class Header(NamedTuple):
    """The store's header: identity, format range, scope and geometry. Make one with `new_header`."""

    cluster_id: bytes  # 16 bytes, never reused (SPEC 9.1)
    cluster_name: str
    scope: Scope
    sector_bytes: int
    slots: int
    region_bytes: int  # one copy of one half of a journal
    lowest_format: int = FORMAT_VERSION  # releases that write a format in this range may write the store (SPEC 9.2)
    highest_format: int = FORMAT_VERSION
    complete: bool = False  # written as the last step of the creation of the store
    sequence: int = 0
    adopted_id: bytes = b""  # the store id that `muster store adopt` gave it last; empty: none ever did
    version: int = FORMAT_VERSION  # format of the store and of every record in it

    @property
    def identity(self) -> str:
        """The cluster id as 32 hexadecimal digits."""
        return self.cluster_id.hex()

    @property
    def store_id(self) -> bytes:
        """Which of the cluster's stores this is: the cluster id until a move or a restore gives it another one."""
        return self.adopted_id or self.cluster_id

    @property
    def banks(self) -> "tuple[Bank, ...]":
        """The banks of the strip, in their order; one where the store has none."""
        return _banks(self.version, self.slots, self.sector_bytes)

    @property
    def has_doors(self) -> bool:
        """Whether the store is in banks, of which all but the first have a door (P11.7)."""
        return self.version == BANKED_FORMAT

    @property
    def row_bytes(self) -> int:
        """One copy of one kind of register of all slots of the first bank, padded."""
        return self.banks[0].row_bytes

    @property
    def doors_bytes(self) -> int:
        """One copy of all doors, padded; 0 where there are none."""
        return _blocks(DOORS * self.sector_bytes) if self.has_doors else 0

    @property
    def doors_offset(self) -> int:
        """Where the doors begin: behind the third row of the first bank."""
        return STRIP_OFFSET + 3 * COPIES * self.row_bytes

    @property
    def strip_bytes(self) -> int:
        """All registers of all slots, and the doors."""
        last = self.banks[-1]
        return last.offset + last.rows_bytes + (COPIES * self.doors_bytes if last.first == 0 else 0) - STRIP_OFFSET

    @property
    def journals_offset(self) -> int:
        """Where the journal areas begin."""
        return STRIP_OFFSET + self.strip_bytes + self.slots * BLOCK_BYTES

    @property
    def first_journals_end(self) -> int:
        """Where the journal areas of the first bank end: so much of a file is allocated when it is made (P11.7)."""
        return self.region_offset(self.banks[0].slots, 0, 0)

    @property
    def total_bytes(self) -> int:
        """Size of the whole store."""
        return self.region_offset(self.slots, 0, 0)

    def bank(self, slot: int) -> int:
        """In which bank a slot is."""
        return bank_of(slot) if self.has_doors else 0

    def row_offset(self, kind: RegisterKind, copy: int, bank: int = 0) -> int:
        """Offset of one copy of the registers of `kind` in a bank, its first slot first."""
        found, row = self.banks[bank], _ORDERS[self.version].index(kind)
        doors = COPIES * self.doors_bytes if bank == 0 and row == len(RegisterKind) - 1 else 0
        return found.offset + (row * COPIES + copy) * found.row_bytes + doors

    def span(self, kinds: Sequence[RegisterKind], bank: int) -> tuple[int, int]:
        """Offset and length of what one read of these rows of a bank takes; in the first bank the doors go along.

        `kinds` must stand one behind the other in a bank.
        """
        row_bytes = self.banks[bank].row_bytes
        start = min(self.row_offset(kind, 0, bank) for kind in kinds)
        end = max(self.row_offset(kind, COPIES - 1, bank) for kind in kinds) + row_bytes
        if self.has_doors and bank == 0:
            start, end = min(start, self.doors_offset), max(end, self.doors_offset + COPIES * self.doors_bytes)
        return start, end - start

    def register_offset(self, kind: RegisterKind, slot: int, copy: int) -> int:
        """Offset of one copy of one register."""
        bank = self.bank(slot)
        return self.row_offset(kind, copy, bank) + (slot - self.banks[bank].first) * self.sector_bytes

    def register_place(self, kind: RegisterKind, slot: int, copy: int) -> Place:
        """What a valid copy of a register says of itself."""
        offset = self.register_offset(kind, slot, copy)
        return Place(self.cluster_id, offset, slot, RecordKind(kind), self.version)

    def door_offset(self, bank: int, copy: int) -> int:
        """Offset of one copy of the door of a bank other than the first."""
        return self.doors_offset + copy * self.doors_bytes + (bank - 1) * self.sector_bytes

    def door(self, bank: int, copy: int, *, is_open: bool) -> bytes:
        """The sector of one copy of a door: the same bytes, whoever writes it."""
        sequence, payload = _OPEN if is_open else _SHUT
        record = Record(RecordKind.DOOR, Stamp(NO_OWNER, 0, NO_TERM, sequence), payload)
        return encode_record(
            record, self.cluster_id, self.door_offset(bank, copy), self.sector_bytes, self.version
        )  # fmt: skip

    def shut_doors(self) -> bytes:
        """Both copies of the doors while all of them are shut."""
        copies = []
        for copy in range(COPIES):
            doors = b"".join(self.door(bank, copy, is_open=False) for bank in range(1, DOORS + 1))
            copies.append(doors.ljust(self.doors_bytes, b"\0"))
        return b"".join(copies)

    def probe_offset(self, slot: int) -> int:
        """A block in which the slot's owner tests the device; it holds nothing."""
        return STRIP_OFFSET + self.strip_bytes + slot * BLOCK_BYTES

    def region_offset(self, slot: int, half: int, copy: int) -> int:
        """Offset of one copy of one half of a slot's journal area."""
        return self.journals_offset + ((slot * HALVES + half) * COPIES + copy) * self.region_bytes


class Bank(NamedTuple):
    """Some slots whose registers stand together."""

    first: int  # slot
    slots: int
    offset: int  # where its rows begin, in bytes
    row_bytes: int  # one copy of one kind of register

    @property
    def rows_bytes(self) -> int:
        """All its rows."""
        return len(RegisterKind) * COPIES * self.row_bytes


@lru_cache(maxsize=8)
def _banks(version: int, slots: int, sector_bytes: int) -> tuple[Bank, ...]:
    if version != BANKED_FORMAT:
        return (Bank(0, slots, STRIP_OFFSET, _blocks(slots * sector_bytes)),)
    found: list[Bank] = []
    first, offset = 0, STRIP_OFFSET
    for end in BANK_ENDS:
        if first < slots:
            size = min(end, slots) - first
            found.append(Bank(first, size, offset, _blocks(size * sector_bytes)))
            offset += found[-1].rows_bytes + (0 if first else COPIES * _blocks(DOORS * sector_bytes))
            first = end
    return tuple(found)


def _blocks(length: int) -> int:
    """A length rounded up to whole blocks."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def region_bytes_for(store_bytes: int, slots: int, sector_bytes: int, version: int) -> int:
    """The largest journal region with which the whole store fits into `store_bytes`."""
    bare = Header(bytes(CLUSTER_ID_BYTES), "", Scope.HOST, sector_bytes, slots, 0, version=version)
    regions = slots * HALVES * COPIES
    room = (store_bytes - bare.total_bytes) // max(1, regions)
    return min(MAXIMUM_REGION_BYTES, max(0, room // BLOCK_BYTES * BLOCK_BYTES))


def version_for(slots: int) -> int:
    """The format of a new store: an older one is read by more releases, and is as good while one bank is enough."""
    return FORMAT_VERSION if slots <= BANK_ENDS[0] else BANKED_FORMAT


def new_header(
    cluster_id: bytes,
    cluster_name: str,
    scope: Scope,
    *,
    sector_bytes: int = 512,
    slots: int = DEFAULT_SLOTS,
    store_bytes: int | None = None,
    version: int | None = None,
) -> Header:
    """The header of a new store of at most `store_bytes` (by default what suits the scope and the slots).

    `version`: of the format, by default what the slots need. Raises `InvalidGeometry`.
    """
    size = default_bytes(scope, slots) if store_bytes is None else store_bytes
    chosen = version_for(slots) if version is None else version
    region = region_bytes_for(size, slots, sector_bytes, chosen) if slots > 0 else 0
    header = Header(
        cluster_id, cluster_name, scope, sector_bytes, slots, region,
        lowest_format=chosen, highest_format=chosen, version=chosen,
    )  # fmt: skip
    _check(header)
    return header


def slots_for(scope: Scope, room_bytes: int) -> int:
    """How many slots a new store gets where nobody says: as many banks as have room with journals of the usual size."""
    return max(end for end in BANK_ENDS if end == BANK_ENDS[0] or default_bytes(scope, end) <= room_bytes)


def default_bytes(scope: Scope, slots: int) -> int:
    """The size of a store of that many slots: a journal of the first 16 is as large, however many there are."""
    return DEFAULT_STORE_BYTES[scope] * max(DEFAULT_SLOTS, slots) // DEFAULT_SLOTS


def _check(header: Header) -> None:
    """Raise `InvalidGeometry` for values that no store may have."""
    name_bytes = len(header.cluster_name.encode())
    most = MAXIMUM_SLOTS if header.version == BANKED_FORMAT else FLAT_SLOTS
    if not 1 <= header.slots <= most:
        raise InvalidGeometry(f"{header.slots} node slots; choose 1 to {most}")
    smallest = header._replace(region_bytes=MINIMUM_REGION_BYTES).total_bytes
    checks = (
        (len(header.cluster_id) == CLUSTER_ID_BYTES, f"the cluster id has {len(header.cluster_id)} bytes; it needs 16"),
        (
            0 < name_bytes <= MAXIMUM_NAME_BYTES,
            f"the cluster's name takes {name_bytes} bytes; choose one of 1 to {MAXIMUM_NAME_BYTES}",
        ),
        (
            header.sector_bytes in SECTOR_SIZES,
            f"the sector size is {header.sector_bytes}; it must be the device's logical block size, 512 or 4096",
        ),
        (
            header.region_bytes >= MINIMUM_REGION_BYTES,
            f"the store is too small for {header.slots} node slots: give it at least {smallest} bytes or fewer slots",
        ),
        (
            header.region_bytes <= MAXIMUM_REGION_BYTES and header.region_bytes % BLOCK_BYTES == 0,
            (
                f"a journal region of {header.region_bytes} bytes; it must be a multiple of {BLOCK_BYTES}"
                f" and at most {MAXIMUM_REGION_BYTES}"
            ),
        ),
        (
            len(header.adopted_id) in (0, STORE_ID_BYTES),
            f"the store id has {len(header.adopted_id)} bytes; it needs {STORE_ID_BYTES}",
        ),
        (
            1 <= header.lowest_format <= header.highest_format,
            f"the format range {header.lowest_format} to {header.highest_format} is empty",
        ),
    )
    for holds, text in checks:
        if not holds:
            raise InvalidGeometry(text)


def encode_header(header: Header, copy: int) -> bytes:
    """The 4096 bytes of one copy of the header."""
    name = header.cluster_name.encode()
    payload = _PAYLOAD.pack(
        header.complete,
        header.scope,
        header.lowest_format,
        header.highest_format,
        header.slots,
        header.sector_bytes,
        BLOCK_BYTES,
        header.region_bytes,
        header.total_bytes,
        len(name),
    )
    stamp = Stamp(NO_OWNER, 0, NO_TERM, header.sequence)
    record = Record(RecordKind.HEADER, stamp, payload + name + header.adopted_id)
    return encode_record(record, header.cluster_id, copy * BLOCK_BYTES, BLOCK_BYTES, header.version)


def decode_header(data: bytes, copy: int) -> Header | Problem:
    """One copy of the header, or why there is none.

    Raises `InvalidGeometry` for a valid copy with impossible values.
    """
    cluster = data[16 : 16 + CLUSTER_ID_BYTES]  # the header defines the cluster id, it cannot be checked against one
    version = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 2], "little")
    version = version if version in FORMATS else FORMAT_VERSION  # of another one: `decode_record` says so
    place = Place(cluster, copy * BLOCK_BYTES, NO_OWNER, RecordKind.HEADER, version)
    record = decode_record(data, place, BLOCK_BYTES)
    if isinstance(record, Problem):
        return record
    try:
        fields = _PAYLOAD.unpack_from(record.payload)
        complete, scope, lowest, highest, slots, sector_bytes, _, region_bytes, total_bytes, length = fields
        name_end = _PAYLOAD.size + length
        name = record.payload[_PAYLOAD.size : name_end].decode()
        header = Header(
            cluster,
            name,
            Scope(scope),
            sector_bytes,
            slots,
            region_bytes,
            lowest,
            highest,
            bool(complete),
            record.stamp.sequence,
            record.payload[name_end : name_end + STORE_ID_BYTES],
            version,
        )
    except (struct.error, ValueError) as error:
        raise InvalidGeometry(f"the header does not decode: {error}") from error
    _check(header)
    if header.total_bytes != total_bytes:
        raise InvalidGeometry(f"the header says {total_bytes} bytes, its areas take {header.total_bytes}")
    return header


class HeaderChoice(NamedTuple):
    """What the two copies of the header say."""

    header: Header | None
    problem_a: Problem | None
    problem_b: Problem | None

    @property
    def problem(self) -> Problem | None:
        """The more telling one of the two problems, where there is no header."""
        found = [problem for problem in (self.problem_a, self.problem_b) if problem is not None]
        return max(found, key=_TELLING.index) if self.header is None and found else None


_TELLING = (
    Problem.BLANK,
    Problem.FOREIGN,
    Problem.OTHER_CLUSTER,
    Problem.WRONG_PLACE,
    Problem.CHECKSUM,
    Problem.NEWER_FORMAT,
)


def choose_header(data: bytes) -> HeaderChoice:
    """The newest valid header in the first two blocks of a store. Raises `InvalidGeometry`."""
    copies = [decode_header(data[copy * BLOCK_BYTES : (copy + 1) * BLOCK_BYTES], copy) for copy in range(COPIES)]
    valid = [copy for copy in copies if isinstance(copy, Header)]
    problems = [copy if isinstance(copy, Problem) else None for copy in copies]
    newest = max(valid, key=lambda header: header.sequence) if valid else None
    return HeaderChoice(newest, problems[0], problems[1])
