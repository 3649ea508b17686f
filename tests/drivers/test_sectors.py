"""The codec of disk records and the geometry of a store (SPEC 1.5, 9.2; docs/DISK_FORMAT.md)."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.drivers.store.disk import geometry
from muster.drivers.store.disk.geometry import (
    BLOCK_BYTES,
    DOORS,
    FLAT_SLOTS,
    Header,
    InvalidGeometry,
    choose_header,
    encode_header,
    new_header,
)
from muster.drivers.store.disk.sectors import (
    FORMAT_VERSION,
    HEADER_BYTES,
    Packing,
    Place,
    Problem,
    Record,
    RecordKind,
    announced_bytes,
    choose,
    decode_record,
    encode_record,
)
from muster.drivers.store.identity import Scope
from muster.records.registers import (
    MAXIMUM_MARKS,
    MAXIMUM_SLOTS,
    Claim,
    ClaimFlag,
    Deadman,
    Lease,
    LeaseState,
    Mark,
    Marks,
    Register,
    RegisterKind,
    View,
    blank_register,
    decode_register,
    encode_register,
)
from muster.records.terms import NO_TERM, Stamp, Term

CLUSTER = bytes(range(16))
terms = st.builds(Term, st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1))
stamps = st.builds(Stamp, st.integers(0, MAXIMUM_SLOTS - 1), st.integers(0, 2**63), terms, st.integers(0, 2**64 - 1))
records = st.builds(
    Record,
    st.sampled_from(RecordKind),
    stamps,
    st.binary(max_size=5000),
    st.integers(0, 2**64 - 1),
    st.sampled_from(Packing),
)


def place_of(record: Record, offset: int) -> Place:
    return Place(CLUSTER, offset, record.stamp.owner, record.kind)


def with_checksum(data: bytearray) -> bytes:
    """`data` with the checksum that its contents call for, as another release would write it."""
    data[12:16] = bytes(4)
    data[12:16] = struct.pack("<I", zlib.crc32(data))
    return bytes(data)


@given(records, st.integers(0, 2**40), st.sampled_from([512, 4096]))
def test_a_record_reads_back_as_it_was_written(record: Record, offset: int, sector_bytes: int) -> None:
    data = encode_record(record, CLUSTER, offset, sector_bytes)
    assert len(data) % sector_bytes == 0
    assert announced_bytes(data[:HEADER_BYTES], sector_bytes) == len(data)
    assert decode_record(data, place_of(record, offset), sector_bytes) == record


def test_every_single_changed_byte_of_a_record_is_noticed() -> None:
    record = Record(RecordKind.FRAME, Stamp(3, 7, Term(5, 3), 9), b"payload" * 60, 4)
    good = encode_record(record, CLUSTER, 8192, 512)
    place = place_of(record, 8192)
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x10
        assert decode_record(bytes(bad), place, 512) in (Problem.CHECKSUM, Problem.FOREIGN), position


@given(records, st.data())
def test_a_mixture_of_two_writes_is_noticed(old: Record, data: st.DataObject) -> None:
    new = old._replace(stamp=old.stamp._replace(sequence=old.stamp.sequence ^ 1))
    before, after = (encode_record(record, CLUSTER, 4096, 512) for record in (old, new))
    cut = data.draw(st.integers(81, len(before) - 1)) if len(before) > 512 else 81
    mixed = after[:cut] + before[cut:]
    expected = new if mixed == after else Problem.CHECKSUM
    assert decode_record(mixed, place_of(old, 4096), 512) == expected


def test_a_record_is_invalid_at_any_other_place() -> None:
    record = Record(RecordKind.CLAIM, Stamp(3, 7, Term(5, 3), 9), b"claim")
    data = encode_record(record, CLUSTER, 8192, 512)
    right = Place(CLUSTER, 8192, 3, RecordKind.CLAIM)
    assert decode_record(data, right, 512) == record
    assert decode_record(data, right._replace(cluster=bytes(16)), 512) is Problem.OTHER_CLUSTER
    assert decode_record(data, right._replace(offset=8704), 512) is Problem.WRONG_PLACE
    assert decode_record(data, right._replace(owner=4), 512) is Problem.WRONG_PLACE
    assert decode_record(data, right._replace(kind=RecordKind.LEASE), 512) is Problem.WRONG_PLACE


def test_what_is_no_record_is_told_apart() -> None:
    place = Place(CLUSTER, 0, 0, RecordKind.VIEW)
    assert decode_record(bytes(512), place, 512) is Problem.BLANK
    assert decode_record(b"\xff" * 512, place, 512) is Problem.FOREIGN
    assert decode_record(b"", place, 512) is Problem.BLANK
    record = Record(RecordKind.VIEW, Stamp(0, 0, NO_TERM, 0), b"")
    newer = bytearray(encode_record(record, CLUSTER, 0, 512))
    newer[8:10] = struct.pack("<H", FORMAT_VERSION + 1)
    assert decode_record(bytes(newer), place, 512) is Problem.CHECKSUM
    assert decode_record(with_checksum(newer), place, 512) is Problem.NEWER_FORMAT


@given(st.binary(max_size=1200))
def test_any_bytes_at_all_decode_or_are_named(data: bytes) -> None:
    place = Place(CLUSTER, 0, 0, RecordKind.VIEW)
    assert isinstance(decode_record(data, place, 512), Problem)
    assert isinstance(decode_record(b"MUSTERDB" + data, place, 512), Problem)


def test_the_recorded_bytes_of_format_1_still_decode() -> None:
    """SPEC 9.2: what released software wrote must be read for ever."""
    recorded = bytes.fromhex(
        "4d5553544552444201000200abb6e042000102030405060708090a0b0c0d0e0f00240000000000000300000010000000"
        "07000000010000000500000000000000030000000000000009000000000000000000000000000000"
        "02050000000000000003000104000000"
    ).ljust(512, b"\0")
    expected = Claim(Stamp(3, 1 << 32 | 7, Term(5, 3), 9), ClaimFlag.MASTER, Mark(Term(5, 3), 1, 4))
    record = decode_record(recorded, Place(CLUSTER, 9216, 3, RecordKind.CLAIM), 512)
    assert isinstance(record, Record)
    assert decode_register(RegisterKind.CLAIM, record.stamp, record.payload) == expected


def test_a_store_is_laid_out_as_documented() -> None:
    """The figures of docs/DISK_FORMAT.md: 16 slots, small sectors."""
    header = new_header(CLUSTER, "x", Scope.HOST)
    assert (header.row_bytes, header.strip_bytes, header.region_bytes) == (8192, 65536, 1020 * 1024)
    assert header.register_offset(RegisterKind.LEASE, 3, 0) == 8192 + 3 * 512
    assert header.register_offset(RegisterKind.MARKS, 3, 1) == 8192 + 7 * 8192 + 3 * 512
    assert header.journals_offset == 8192 + 65536 + 16 * 4096
    assert header.region_offset(2, 1, 1) == header.journals_offset + 11 * header.region_bytes
    data = encode_header(header._replace(complete=True), 1)
    assert data[88:122] == struct.pack("<BBHHHIIQQH", 1, 1, 1, 1, 16, 512, 4096, 1020 * 1024, header.total_bytes, 1)
    assert data[122:124] == b"x\0"


outcomes = st.one_of(
    st.sampled_from(Problem),
    st.builds(
        lambda number, sequence, payload: Record(RecordKind.CLAIM, Stamp(1, 0, Term(number, 1), sequence), payload),
        st.integers(0, 2),
        st.integers(0, 2),
        st.sampled_from([b"x", b"y"]),
    ),
)


@given(outcomes, outcomes)
def test_the_newest_valid_copy_is_chosen(a: Record | Problem, b: Record | Problem) -> None:
    choice = choose(a, b)
    valid = [copy for copy in (a, b) if isinstance(copy, Record)]
    ages = [(copy.stamp.term, copy.stamp.sequence) for copy in valid]
    newest = [copy for copy, age in zip(valid, ages, strict=True) if age == max(ages)]
    assert choice.conflict == (len(newest) == 2 and newest[0] != newest[1])
    assert choice.record == (newest[0] if newest and not choice.conflict else None)
    assert choice.agree == (a == b and isinstance(a, Record))
    assert (choice.problem_a, choice.problem_b) == tuple(copy if isinstance(copy, Problem) else None for copy in (a, b))
    assert bool(choice.reason()) != choice.agree


@given(outcomes, outcomes)
def test_the_next_write_never_begins_with_the_only_copy_of_the_newest_value(
    a: Record | Problem, b: Record | Problem
) -> None:
    choice = choose(a, b)
    spared = (a, b)[1 - choice.write_first]
    if choice.record is not None:
        assert spared == choice.record


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_the_fullest_registers_fit_in_one_sector(sector_bytes: int) -> None:
    stamp = Stamp(MAXIMUM_SLOTS - 1, 2**53, Term(2**64 - 1, 39), 2**64 - 1)
    fullest: list[tuple[RegisterKind, Register]] = [
        (RegisterKind.LEASE, Lease(stamp, LeaseState.PANICKED, Deadman.WATCHDOG, 2**32 - 1, 9, b"b" * 16, "c" * 500)),
        (RegisterKind.CLAIM, Claim(stamp, ClaimFlag.MASTER, Mark(stamp.term, 1, 2**32 - 1))),
        (RegisterKind.VIEW, View(stamp, frozenset(range(MAXIMUM_SLOTS)))),
        (RegisterKind.MARKS, Marks(stamp, tuple((node, 2**53) for node in range(MAXIMUM_MARKS)))),
    ]
    for kind, register in fullest:
        record = Record(RecordKind(kind), stamp, encode_register(register))
        assert len(encode_record(record, CLUSTER, 0, sector_bytes)) == sector_bytes
        decoded = decode_register(kind, stamp, record.payload)
        assert decoded == register or isinstance(decoded, Lease)


def areas(header: Header) -> list[tuple[int, int]]:
    """(offset, length) of everything in a store."""
    found = [(copy * BLOCK_BYTES, BLOCK_BYTES) for copy in range(2)]
    for slot in range(header.slots):
        found += [
            (header.register_offset(kind, slot, copy), header.sector_bytes)
            for kind in RegisterKind
            for copy in range(2)
        ]
        found.append((header.probe_offset(slot), BLOCK_BYTES))
        found += [
            (header.region_offset(slot, half, copy), header.region_bytes) for half in range(2) for copy in range(2)
        ]
    if header.has_doors:
        found += [
            (header.door_offset(bank, copy), header.sector_bytes) for bank in range(1, DOORS + 1) for copy in range(2)
        ]
    return sorted(found)


@given(st.integers(1, MAXIMUM_SLOTS), st.sampled_from([512, 4096]), st.integers(32 << 20, 300 << 20))
def test_nothing_in_a_store_overlaps_and_everything_is_aligned(slots: int, sector_bytes: int, store_bytes: int) -> None:
    header = new_header(CLUSTER, "x", Scope.HOST, sector_bytes=sector_bytes, slots=slots, store_bytes=store_bytes)
    assert header.total_bytes <= store_bytes
    assert (header.version == FORMAT_VERSION) == (slots <= 16)
    end = 0
    for offset, length in areas(header):
        assert offset >= end
        assert offset % sector_bytes == 0
        end = offset + length
    assert end <= header.total_bytes


@given(st.integers(8, FLAT_SLOTS), st.sampled_from([512, 4096]))
def test_all_registers_are_one_contiguous_strip_ordered_by_kind(slots: int, sector_bytes: int) -> None:
    header = new_header(CLUSTER, "x", Scope.HOST, sector_bytes=sector_bytes, slots=slots, version=FORMAT_VERSION)
    ranges = []
    for kind in RegisterKind:
        offsets = [header.register_offset(kind, slot, copy) for slot in range(slots) for copy in range(2)]
        ranges.append((min(offsets), max(offsets)))
        for slot in range(slots):  # the two copies never share a physical block
            blocks = {header.register_offset(kind, slot, copy) // BLOCK_BYTES for copy in range(2)}
            assert len(blocks) == 2
    assert ranges == sorted(ranges)
    assert ranges[0][0] == geometry.STRIP_OFFSET
    assert ranges[-1][1] < geometry.STRIP_OFFSET + header.strip_bytes


def test_a_default_store_for_one_machine_takes_at_most_64_mebibytes() -> None:
    assert new_header(CLUSTER, "x", Scope.HOST).total_bytes <= 64 << 20
    assert new_header(CLUSTER, "x", Scope.SHARED).region_bytes > new_header(CLUSTER, "x", Scope.HOST).region_bytes


def test_a_header_reads_back_from_either_copy() -> None:
    header = new_header(CLUSTER, "früh", Scope.SHARED, sector_bytes=4096, slots=5)._replace(complete=True, sequence=3)
    copies = [encode_header(header, copy) for copy in range(2)]
    assert choose_header(b"".join(copies)) == (header, None, None)
    assert choose_header(bytes(BLOCK_BYTES) + copies[1]) == (header, Problem.BLANK, None)
    assert choose_header(copies[0] + copies[0]) == (header, None, Problem.WRONG_PLACE)
    older = encode_header(header._replace(complete=False, sequence=2), 0)
    assert choose_header(older + copies[1]).header == header
    nothing = choose_header(bytes(2 * BLOCK_BYTES))
    assert (nothing.header, nothing.problem) == (None, Problem.BLANK)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slots": 0}, "node slots"),
        ({"slots": MAXIMUM_SLOTS + 1}, "node slots"),
        ({"sector_bytes": 1024}, "sector size"),
        ({"store_bytes": 1000}, "too small"),
        ({"cluster_name": ""}, "name"),
        ({"cluster_name": "é" * 33}, "name"),
        ({"cluster_id": b"short"}, "cluster id"),
    ],
)
def test_impossible_geometry_is_refused_by_name(change: dict[str, object], words: str) -> None:
    values: dict[str, object] = {"cluster_id": CLUSTER, "cluster_name": "x", "scope": Scope.HOST} | change
    with pytest.raises(InvalidGeometry, match=words):
        new_header(**values)  # type: ignore[arg-type]


def test_a_header_with_a_good_checksum_and_impossible_values_is_refused() -> None:
    header = new_header(CLUSTER, "x", Scope.HOST)
    for broken in (header._replace(slots=200), header._replace(region_bytes=1000), header._replace(lowest_format=2)):
        with pytest.raises(InvalidGeometry):
            choose_header(encode_header(broken, 0) + bytes(BLOCK_BYTES))


@pytest.mark.parametrize("kind", list(RegisterKind))
def test_a_blank_register_is_valid_and_says_that_nothing_ever_ran(kind: RegisterKind) -> None:
    register = blank_register(kind, 4)
    assert decode_register(kind, register.stamp, encode_register(register)) == register
    assert register.stamp == Stamp(4, 0, NO_TERM, 0)
