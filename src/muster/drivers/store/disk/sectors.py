"""Codec of the records of a disk store: what a sector must look like to be believed (SPEC 1.5, docs/DISK_FORMAT.md).

A record is a fixed header and a payload, padded with zeros to whole sectors. The checksum covers all of it, padding
included, so that any flipped bit and any mixture of two writes shows. The header names the cluster, the owner, the
kind and the very offset that the record was written for: a sector that turns up elsewhere (a misdirected write, a
copied disk area) is no record there.

A register (`registers.py`) fills exactly one sector; a checkpoint or a frame of a journal may span many. Each is kept
in two copies; `choose` judges a pair. The guard process imports this module: `struct` and `zlib` only.
"""

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

from muster.records.terms import Stamp, Term

MAGIC = b"MUSTERDB"
FORMAT_VERSION = 1  # of a store whose registers are one strip (SPEC 9.2)
BANKED_FORMAT = 2  # of a store whose registers are in banks (P11.7)
FORMATS = (FORMAT_VERSION, BANKED_FORMAT)  # what this release reads and writes, each store in its own
CLUSTER_ID_BYTES = 16
NO_OWNER = 0xFFFF  # owner of the store's header, which belongs to no slot

# Little-endian. The first 16 bytes, and what the checksum covers, are the same in every future format version.
_HEADER = struct.Struct("<8sHBBI16sQHHIQQH6xQQ")
HEADER_BYTES = 88
_CHECKSUM = struct.Struct("<I")
_CHECKSUM_OFFSET = 12
_LENGTH = struct.Struct("<I")
_LENGTH_OFFSET = 44
assert _HEADER.size == HEADER_BYTES
assert struct.calcsize("<8sHBB") == _CHECKSUM_OFFSET
assert struct.calcsize("<8sHBBI16sQHH") == _LENGTH_OFFSET


class RecordKind(IntEnum):
    """What a record is. The first four are the values of `registers.RegisterKind`."""

    LEASE = 1
    CLAIM = 2
    VIEW = 3
    MARKS = 4
    DOOR = 5
    CHECKPOINT = 8
    FRAME = 9
    HEADER = 16


class Packing(IntEnum):
    """How the payload of a journal record is packed."""

    PLAIN = 0
    DEFLATE = 1  # a zlib stream


class Problem(IntEnum):
    """Why bytes are no valid record at their place; the named errors of `choose`."""

    BLANK = 1
    FOREIGN = 2
    CHECKSUM = 3
    NEWER_FORMAT = 4
    OTHER_CLUSTER = 5
    WRONG_PLACE = 6

    def __str__(self) -> str:
        return _PROBLEM_WORDS[self]


_PROBLEM_WORDS = {
    Problem.BLANK: "blank (zeros)",
    Problem.FOREIGN: "not a Muster record",
    Problem.CHECKSUM: "a damaged or half-written record (checksum)",
    Problem.NEWER_FORMAT: "a record of another format version",
    Problem.OTHER_CLUSTER: "a record of another cluster",
    Problem.WRONG_PLACE: "a record written for another place, owner or kind",
}


class Record(NamedTuple):
    """A decoded record. `generation` and `packing` are zero in registers."""

    kind: RecordKind
    stamp: Stamp
    payload: bytes
    generation: int = 0
    packing: Packing = Packing.PLAIN


class Place(NamedTuple):
    """Where a record belongs: whose store, which byte offset, whose slot, which kind; and in which format."""

    cluster: bytes
    offset: int
    owner: int
    kind: RecordKind
    version: int = FORMAT_VERSION


def padded_bytes(payload_bytes: int, sector_bytes: int) -> int:
    """Space that a record with this payload takes, in bytes: whole sectors."""
    return -(-(HEADER_BYTES + payload_bytes) // sector_bytes) * sector_bytes


def encode_record(
    record: Record, cluster: bytes, offset: int, sector_bytes: int, version: int = FORMAT_VERSION
) -> bytes:
    """The bytes of `record` for the byte offset `offset` of a store of format `version`, padded to whole sectors."""
    stamp = record.stamp
    data = bytearray(padded_bytes(len(record.payload), sector_bytes))
    _HEADER.pack_into(
        data,
        0,
        MAGIC,
        version,
        record.kind,
        record.packing,
        0,
        cluster,
        offset,
        stamp.owner,
        0,
        len(record.payload),
        stamp.incarnation,
        stamp.term.number,
        stamp.term.node,
        stamp.sequence,
        record.generation,
    )
    data[HEADER_BYTES : HEADER_BYTES + len(record.payload)] = record.payload
    _CHECKSUM.pack_into(data, _CHECKSUM_OFFSET, zlib.crc32(data))
    return bytes(data)


def announced_bytes(start: bytes, sector_bytes: int) -> int | None:
    """Space that the record beginning with `start` (at least a header) claims to take; None where none begins.

    The claim is not verified: bound it by the area before reading so much.
    """
    if start[: len(MAGIC)] != MAGIC:
        return None
    (length,) = _LENGTH.unpack_from(start, _LENGTH_OFFSET)
    return padded_bytes(length, sector_bytes)


def decode_record(data: bytes, place: Place, sector_bytes: int) -> Record | Problem:
    """The record in `data` (exactly its padded bytes), or why there is none at `place`."""
    if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
        return Problem.BLANK if data.count(0) == len(data) else Problem.FOREIGN
    fields = _HEADER.unpack_from(data)
    _, version, kind, packing, checksum, cluster, offset, owner, _, length = fields[:10]
    zeroed = zlib.crc32(bytes(_CHECKSUM.size), zlib.crc32(data[:_CHECKSUM_OFFSET]))
    if zlib.crc32(memoryview(data)[_CHECKSUM_OFFSET + _CHECKSUM.size :], zeroed) != checksum:
        return Problem.CHECKSUM
    if version != place.version:
        return Problem.NEWER_FORMAT
    if padded_bytes(length, sector_bytes) != len(data):
        return Problem.CHECKSUM  # whole, yet not what it says: written by a bug, never by a disk
    if cluster != place.cluster:
        return Problem.OTHER_CLUSTER
    if (offset, owner, kind) != (place.offset, place.owner, place.kind):
        return Problem.WRONG_PLACE
    if packing not in (Packing.PLAIN, Packing.DEFLATE):
        return Problem.NEWER_FORMAT
    incarnation, number, node, sequence, generation = fields[10:]
    stamp = Stamp(owner, incarnation, Term(number, node), sequence)
    payload = bytes(data[HEADER_BYTES : HEADER_BYTES + length])
    return Record(RecordKind(kind), stamp, payload, generation, Packing(packing))


class Choice(NamedTuple):
    """What the two copies of a register say. `record` is None when they say nothing that may be believed."""

    record: Record | None
    problem_a: Problem | None
    problem_b: Problem | None
    agree: bool  # both copies are valid and equal
    conflict: bool  # both are valid and carry the same stamp, yet differ: two writers
    write_first: int  # which copy (0 or 1) the next write must replace first: never the only one with the newest value

    def reason(self) -> str:
        """Why there is no record, in words, or what is wrong with the pair; empty if nothing is."""
        if self.conflict:
            return "both copies carry the same stamp and different contents"
        parts = [
            f"copy {name} is {problem}"
            for name, problem in (("A", self.problem_a), ("B", self.problem_b))
            if problem is not None
        ]
        if not parts and not self.agree:
            return f"copy {'B' if self.write_first == 0 else 'A'} is newer than the other"
        return ", ".join(parts)


def age(record: Record) -> tuple[Term, int]:
    """What orders the records of one register: (term, sequence) (SPEC 1.5)."""
    return record.stamp.term, record.stamp.sequence


def choose(copy_a: Record | Problem, copy_b: Record | Problem) -> Choice:
    """Pick the newest valid copy by (term, sequence) (SPEC 1.5).

    The next write replaces the worse copy first, so that a crash in the middle of it never takes back a value that a
    reader may have seen.
    """
    if isinstance(copy_a, Problem):
        if isinstance(copy_b, Problem):
            return Choice(None, copy_a, copy_b, agree=False, conflict=False, write_first=0)
        return Choice(copy_b, copy_a, None, agree=False, conflict=False, write_first=0)
    if isinstance(copy_b, Problem):
        return Choice(copy_a, None, copy_b, agree=False, conflict=False, write_first=1)
    if copy_a == copy_b:
        return Choice(copy_a, None, None, agree=True, conflict=False, write_first=0)
    if age(copy_a) == age(copy_b):
        return Choice(None, None, None, agree=False, conflict=True, write_first=0)
    if age(copy_a) > age(copy_b):
        return Choice(copy_a, None, None, agree=False, conflict=False, write_first=1)
    return Choice(copy_b, None, None, agree=False, conflict=False, write_first=0)
