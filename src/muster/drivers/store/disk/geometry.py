"""Where everything is in a disk store, and the store's header that says so (SPEC 1.5, docs/DISK_FORMAT.md).

    store:     header (copy A, copy B), strip, probe blocks, journals
    strip:     leases (row A, row B), claims, views, marks (likewise); a row has one sector a slot
    journals:  slot 0: half 0 (region A, region B), half 1 (region A, region B); slot 1: ...

The strip is contiguous and ordered by kind, so that one read sees every register. Rows begin on multiples of 4096
bytes: the two copies of a register never share a block of a disk with large physical sectors, given eight slots.
Plain named tuples: the guard process imports this module.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

from muster.drivers.store.disk.sectors import (
    CLUSTER_ID_BYTES,
    FORMAT_VERSION,
    NO_OWNER,
    Place,
    Problem,
    Record,
    RecordKind,
    decode_record,
    encode_record,
)
from muster.records.registers import MAXIMUM_SLOTS, RegisterKind
from muster.records.terms import NO_TERM, Stamp

BLOCK_BYTES = 4096  # every area begins on a multiple of this, whatever the sector size
STRIP_OFFSET = 2 * BLOCK_BYTES
SECTOR_SIZES = (512, 4096)
DEFAULT_SLOTS = 16
MINIMUM_REGION_BYTES = 4 * BLOCK_BYTES
MAXIMUM_REGION_BYTES = 256 * 1024 * 1024
MAXIMUM_NAME_BYTES = 64
COPIES = 2
HALVES = 2

STORE_ID_BYTES = 16
_PAYLOAD = struct.Struct("<BBHHHIIQQH")  # then the name, then the store id where it is not the cluster id
assert _PAYLOAD.size == 34


class Scope(IntEnum):
    """Who may share the store (SPEC 1.5)."""

    HOST = 1  # daemons on one machine; any file
    SHARED = 2  # several machines; working direct I/O required

    def __str__(self) -> str:
        return self.name.lower()


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

    @property
    def identity(self) -> str:
        """The cluster id as 32 hexadecimal digits."""
        return self.cluster_id.hex()

    @property
    def store_id(self) -> bytes:
        """Which of the cluster's stores this is: the cluster id until a move or a restore gives it another one."""
        return self.adopted_id or self.cluster_id

    @property
    def row_bytes(self) -> int:
        """One copy of one kind of register of all slots, padded."""
        return -(-self.slots * self.sector_bytes // BLOCK_BYTES) * BLOCK_BYTES

    @property
    def strip_bytes(self) -> int:
        """All registers of all slots."""
        return len(RegisterKind) * COPIES * self.row_bytes

    @property
    def journals_offset(self) -> int:
        """Where the journal areas begin."""
        return STRIP_OFFSET + self.strip_bytes + self.slots * BLOCK_BYTES

    @property
    def total_bytes(self) -> int:
        """Size of the whole store."""
        return self.journals_offset + self.slots * HALVES * COPIES * self.region_bytes

    def row_offset(self, kind: RegisterKind, copy: int) -> int:
        """Offset of one copy of the registers of `kind`, slot 0 first."""
        return STRIP_OFFSET + ((kind - RegisterKind.LEASE) * COPIES + copy) * self.row_bytes

    def register_offset(self, kind: RegisterKind, slot: int, copy: int) -> int:
        """Offset of one copy of one register."""
        return self.row_offset(kind, copy) + slot * self.sector_bytes

    def register_place(self, kind: RegisterKind, slot: int, copy: int) -> Place:
        """What a valid copy of a register says of itself."""
        return Place(self.cluster_id, self.register_offset(kind, slot, copy), slot, RecordKind(kind))

    def probe_offset(self, slot: int) -> int:
        """A block in which the slot's owner tests the device; it holds nothing."""
        return STRIP_OFFSET + self.strip_bytes + slot * BLOCK_BYTES

    def region_offset(self, slot: int, half: int, copy: int) -> int:
        """Offset of one copy of one half of a slot's journal area."""
        return self.journals_offset + ((slot * HALVES + half) * COPIES + copy) * self.region_bytes


def region_bytes_for(store_bytes: int, slots: int, sector_bytes: int) -> int:
    """The largest journal region with which the whole store fits into `store_bytes`."""
    bare = Header(bytes(CLUSTER_ID_BYTES), "", Scope.HOST, sector_bytes, slots, 0)
    regions = slots * HALVES * COPIES
    room = (store_bytes - bare.total_bytes) // max(1, regions)
    return min(MAXIMUM_REGION_BYTES, max(0, room // BLOCK_BYTES * BLOCK_BYTES))


def new_header(
    cluster_id: bytes,
    cluster_name: str,
    scope: Scope,
    *,
    sector_bytes: int = 512,
    slots: int = DEFAULT_SLOTS,
    store_bytes: int | None = None,
) -> Header:
    """The header of a new store of at most `store_bytes` (by default what suits the scope).

    Raises `InvalidGeometry`.
    """
    size = DEFAULT_STORE_BYTES[scope] if store_bytes is None else store_bytes
    region = region_bytes_for(size, slots, sector_bytes)
    header = Header(cluster_id, cluster_name, scope, sector_bytes, slots, region)
    _check(header)
    return header


def _check(header: Header) -> None:
    """Raise `InvalidGeometry` for values that no store may have."""
    name_bytes = len(header.cluster_name.encode())
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
            1 <= header.slots <= MAXIMUM_SLOTS,
            f"{header.slots} node slots; choose 1 to {MAXIMUM_SLOTS}",
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
    return encode_record(record, header.cluster_id, copy * BLOCK_BYTES, BLOCK_BYTES)


def decode_header(data: bytes, copy: int) -> Header | Problem:
    """One copy of the header, or why there is none.

    Raises `InvalidGeometry` for a valid copy with impossible values.
    """
    cluster = data[16 : 16 + CLUSTER_ID_BYTES]  # the header defines the cluster id, it cannot be checked against one
    place = Place(cluster, copy * BLOCK_BYTES, NO_OWNER, RecordKind.HEADER)
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
