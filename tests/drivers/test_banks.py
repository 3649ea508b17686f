"""Stores of more slots than one bank has: what is read, what is left out, and when a bank comes into use (P11.7)."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from disk_trials import begin, claim_of, damage, lease_of, read_bytes, run_with, writes_fail_from
from muster.core.effects import AppendFrame
from muster.core.leases.memory import Remembered
from muster.drivers.store.disk.adoption import adopt
from muster.drivers.store.disk.file import DiskFile, open_store
from muster.drivers.store.disk.geometry import (
    BLOCK_BYTES,
    DOORS,
    FLAT_SLOTS,
    Header,
    InvalidGeometry,
    new_header,
    slots_for,
)
from muster.drivers.store.disk.inspection import check, describe, newest_record
from muster.drivers.store.disk.lease_store import GuardStore
from muster.drivers.store.disk.registers import OwnRegister, RegisterReader
from muster.drivers.store.disk.sectors import BANKED_FORMAT, FORMAT_VERSION, Place, Problem, RecordKind, decode_record
from muster.drivers.store.disk.store import DiskStore, create_store, open_header, plan_header, room_at
from muster.drivers.store.failures import StoreFailed
from muster.drivers.store.identity import Scope
from muster.records.database import Entry, encode_database, encode_entry, initial_database
from muster.records.members import Member
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import (
    BANK_ENDS,
    MAXIMUM_MARKS,
    MAXIMUM_SLOTS,
    Claim,
    Marks,
    RegisterKind,
    Strip,
    View,
    decode_register,
    encode_register,
)
from muster.records.terms import NO_TERM, Stamp, Term

REGION_BYTES = 16 << 10  # per copy and half: small, so that the largest store is quickly made
LARGE = 256


NODES = tuple(NodeConfig(node, f"n{node}", (f"127.0.0.1:{7000 + node}",), "PEM") for node in (0, 20))
DATABASE = encode_database(initial_database(Cluster("trial", "ab" * 16, "fast", "PEM"), NODES))


def make(path: Path, slots: int) -> Header:
    """A store with so many slots, as small as may be."""
    size = (slots * (4 * REGION_BYTES + BLOCK_BYTES)) + (4 << 20)
    header = plan_header(str(path), os.urandom(16), "trial", Scope.HOST, slots=slots, store_bytes=size)
    create_store(str(path), header, DATABASE)
    return open_header(str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of 256 slots in which nobody has run yet."""
    make(tmp_path / "store", LARGE)
    return tmp_path / "store"


def beat(path: Path, node: int, number: int = 1) -> None:
    """A guard renews the lease of a node."""
    guard = GuardStore(path, node)
    try:
        guard.write_lease(lease_of(node, number))
        assert guard.replaced(lease_of(node, number)) == ""
    finally:
        guard.close()


def strip_of(path: Path, node: int = 0) -> Strip:
    """What a node's daemon reads."""
    found: list[Strip] = []

    async def scenario(store: DiskStore) -> None:
        found.append(await store.read_strip())

    run_with(path, node, scenario)
    return found[0]


class CountingFile(DiskFile):
    """An open store that counts what is read of it."""

    __slots__ = ("counted",)

    def __init__(self, path: str) -> None:
        super().__init__(path, os.O_RDONLY, direct=False)
        self.counted: list[int] = []

    def read_around_damage(self, offset: int, length: int) -> bytes:
        """Counts the bytes that are read, and reads them."""
        self.counted.append(length)
        return super().read_around_damage(offset, length)


def lengths_of(path: Path, kinds: tuple[RegisterKind, ...]) -> list[int]:
    """How much each read of these registers takes from the store, in bytes."""
    header = open_header(str(path))
    with CountingFile(str(path)) as file:
        RegisterReader(file, header, kinds).read()
        return file.counted


# ---- the format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 16, 17, 40, 41, LARGE])
def test_p11_7_every_slot_of_a_store_of_any_size_can_be_used(tmp_path: Path, slots: int) -> None:
    path = tmp_path / "store"
    header = make(path, slots)
    assert header.version == (FORMAT_VERSION if slots <= 16 else BANKED_FORMAT)
    assert (header.lowest_format, header.highest_format) == (header.version, header.version)
    last = slots - 1
    beat(path, last)
    seen = strip_of(path)
    assert seen.slots == slots
    assert len(seen.leases) == slots  # all banks up to the one in use
    assert seen.leases[last] == lease_of(last, 1)
    written = claim_of(last, 1, seen.claims[last].mark, 3)  # type: ignore[union-attr]
    view = View(Stamp(last, 5, NO_TERM, 1), frozenset({0, last}), cut_off=False, heard_late=frozenset({last}))
    marks = Marks(Stamp(last, 5, NO_TERM, 1), tuple((node, 2**53) for node in range(MAXIMUM_MARKS)))

    async def scenario(store: DiskStore) -> None:
        await store.write_claim(written)
        await store.write_view(view)
        await store.write_marks(marks)
        mark = await begin(store, last, 1, DATABASE, 4)
        frame = encode_entry(Entry(1, mark.term, "join", (Member(0),)))
        await store.append_frame(mark, 0, frame)
        assert (await store.read_journal(last, mark)).frames == (frame,)

    run_with(path, last, scenario)
    seen = strip_of(path)
    assert (seen.views[last], seen.marks[last]) == (view, marks)
    assert check(path) == []
    with pytest.raises(StoreFailed, match=f"slots 0 to {last}; there is no node {slots}"):
        DiskStore(path, slots)


def test_p11_7_a_store_has_at_most_256_slots_and_one_without_banks_40() -> None:
    for slots, version in ((MAXIMUM_SLOTS + 1, None), (FLAT_SLOTS + 1, FORMAT_VERSION)):
        with pytest.raises(InvalidGeometry, match="node slots; choose 1 to"):
            new_header(bytes(16), "x", Scope.HOST, slots=slots, version=version)
    assert new_header(bytes(16), "x", Scope.HOST, slots=FLAT_SLOTS, version=FORMAT_VERSION).banks[0].slots == FLAT_SLOTS


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_p11_7_a_bank_is_one_piece_and_the_doors_are_in_each_read_of_the_first(sector_bytes: int) -> None:
    header = new_header(bytes(16), "x", Scope.HOST, sector_bytes=sector_bytes, slots=LARGE)
    assert [bank.first for bank in header.banks] == [0, *BANK_ENDS[:-1]]
    doors = range(header.doors_offset, header.doors_offset + 2 * header.doors_bytes)
    for kinds in ((RegisterKind.LEASE,), (RegisterKind.CLAIM,), (RegisterKind.MARKS,), tuple(RegisterKind)):
        start, length = header.span(kinds, 0)
        assert start <= doors.start and doors.stop <= start + length
    for copies in (
        {header.door_offset(bank, copy) // BLOCK_BYTES for copy in range(2)} for bank in range(1, DOORS + 1)
    ):
        assert len(copies) == 2  # never both on one physical block


def test_p11_7_an_older_release_tells_a_store_in_banks_from_a_damaged_one(path: Path) -> None:
    data = read_bytes(path, 0, BLOCK_BYTES)
    cluster = open_header(str(path)).cluster_id
    place = Place(cluster, 0, 0xFFFF, RecordKind.HEADER)  # as a release looks that knows format 1 only
    assert decode_record(data, place, BLOCK_BYTES) is Problem.NEWER_FORMAT


def test_p11_7_a_view_of_the_first_64_nodes_is_written_as_ever() -> None:
    stamp = Stamp(1, 5, NO_TERM, 1)
    assert encode_register(View(stamp, frozenset({0, 63}))) == (1 | 1 << 63).to_bytes(8, "little")
    for view in (
        View(stamp, frozenset({64})),
        View(stamp, frozenset({255, 1}), cut_off=True, heard_late=frozenset({200})),
    ):
        assert decode_register(RegisterKind.VIEW, stamp, encode_register(view)) == view


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_p11_7_a_bank_that_nobody_uses_costs_no_read(tmp_path: Path, path: Path) -> None:
    small = tmp_path / "small"
    make(small, 16)
    whole, claims, marks = tuple(RegisterKind), (RegisterKind.CLAIM,), (RegisterKind.MARKS,)
    doors = 2 * BLOCK_BYTES
    for kinds in (whole, claims, marks):
        assert lengths_of(path, kinds) == [lengths_of(small, kinds)[0] + doors]
    beat(path, 16)
    assert lengths_of(path, whole) == [64 * 1024 + doors, 64 * 1024]
    beat(path, 200)
    assert [length // 1024 for length in lengths_of(path, whole)] == [72, 64, 128, 256, 512]


def test_p11_7_slots_of_shut_banks_are_left_out_and_answered_as_blank(path: Path) -> None:
    strip = strip_of(path)
    assert [len(row) for row in (strip.leases, strip.claims, strip.views, strip.marks)] == [16] * 4
    with open_store(str(path), writable=False)[0] as file:
        whole = RegisterReader(file, open_header(str(path)), tuple(RegisterKind), whole=True).read()
    for node in (0, 15, 16, 255):
        assert strip.lease(node) == whole[0][node]
        assert strip.claim(node) == whole[1][node]
        assert strip.view(node) == whole[2][node]
    assert (strip.lease(256), strip.claim(256), strip.view(256)) == (None, None, None)  # there is no such slot
    assert len(describe(path).slots) == LARGE


def test_p11_7_a_running_reader_sees_a_bank_from_the_first_read_that_begins_after_its_first_write(path: Path) -> None:
    async def scenario(store: DiskStore) -> None:
        for bank, node in enumerate((15, 16, 47, 100, 255)):
            beat(path, node)
            strip = await store.read_strip()
            assert len(strip.leases) == BANK_ENDS[bank]
            assert strip.leases[node] == lease_of(node, 1)
            assert await store.read_strip() == strip

    run_with(path, 0, scenario)


def test_p11_7_a_guard_reads_the_marks_of_a_node_of_another_bank(path: Path) -> None:
    guard = GuardStore(path, 0)
    assert len(guard.read_marks()) == 16
    condemned = Marks(Stamp(200, 5, Term(2, 200), 1), ((0, 5),))
    run_with(path, 200, lambda store: store.write_marks(condemned))
    assert guard.read_marks()[200] == condemned
    guard.close()


def test_p11_7_a_commit_is_answered_with_the_claims_of_all_banks(path: Path) -> None:
    """A claimer of a further bank is met by the read that decides a frame (P2.6), from the first one on."""

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 0, 1, b"a checkpoint")
        other = DiskStore(path, 20)
        higher = claim_of(20, 1, mark, 9)
        await other.write_claim(higher)
        await other.close()
        answered: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        store.begin(AppendFrame(1, mark, 0, b"a frame"), answered.set_result)
        claims = await answered
        assert isinstance(claims, tuple)
        assert claims[20] == higher

    run_with(path, 0, scenario)


# ---- how a bank comes into use -------------------------------------------------------------------------------------


def test_p11_7_the_door_is_open_before_the_register_is_written(path: Path) -> None:
    header = open_header(str(path))
    guard = GuardStore(path, 20)
    with writes_fail_from(header.register_offset(RegisterKind.LEASE, 20, 0)), pytest.raises(StoreFailed):
        guard.write_lease(lease_of(20, 1))  # the node dies between the two
    strip = strip_of(path)
    assert len(strip.leases) == 32
    assert strip.leases[20] == strip_of(path)._replace(leases=()).lease(20)  # blank
    guard.write_lease(lease_of(20, 1))
    assert strip_of(path).leases[20] == lease_of(20, 1)
    guard.close()


def test_p11_7_a_register_is_not_written_where_its_door_cannot_be_opened(path: Path) -> None:
    header = open_header(str(path))
    guard = GuardStore(path, 20)
    for refused in (0, 1):  # of the copies of the door
        with writes_fail_from(header.door_offset(1, refused)), pytest.raises(StoreFailed):
            guard.write_lease(lease_of(20, 1))
        assert guard.read_own() == strip_of(path).lease(20)
        assert len(strip_of(path).leases) == (16 if refused == 0 else 32)  # one open copy is an open door
    guard.close()


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("damaged", [bytes(512), b"\xa5" * 512, os.urandom(512)])
def test_p11_7_a_damaged_door_counts_as_open(path: Path, copy: int, damaged: bytes) -> None:
    header = open_header(str(path))
    damage(path, header.door_offset(2, copy), damaged)
    assert len(strip_of(path).leases) == 64
    found = check(path)
    assert [(finding.severity, finding.offset) for finding in found] == [("warning", header.door_offset(2, copy))]
    beat(path, 40)  # who uses the bank mends its door
    assert check(path) == []


def test_p11_7_the_door_stays_open_and_all_who_open_it_write_the_same(path: Path) -> None:
    header = open_header(str(path))
    opened = set()
    for node in (16, 20, 31):
        beat(path, node)
        opened.add(read_bytes(path, header.doors_offset, 2 * header.doors_bytes))
    assert len(opened) == 1
    assert len(strip_of(path).leases) == 32


def test_p11_7_a_file_fills_only_as_far_as_there_are_nodes(path: Path) -> None:
    header = open_header(str(path))

    def taken() -> int:
        return path.stat().st_blocks * 512

    first = taken()
    assert path.stat().st_size == header.total_bytes
    assert first < header.first_journals_end + (64 << 10)
    DiskStore(path, 0)._writer.close()
    assert taken() == first
    DiskStore(path, 100)._writer.close()
    assert taken() >= first + 4 * header.region_bytes  # the area of that node, before it writes anything


# ---- a store that is moved -------------------------------------------------------------------------------------------


def test_p11_7_an_adoption_raises_what_was_known_of_a_bank_that_the_copy_shows_shut(tmp_path: Path) -> None:
    path, copy = tmp_path / "store", tmp_path / "copy"
    header = make(path, LARGE)
    shutil.copyfile(path, copy)  # before n20 has ever run
    known = Remembered(header.identity, header.identity, 900, Term(40, 20), {20: 40}, (9 << 32) + 5)
    adopt(str(copy), b"n" * 16, (known,), 0)
    claim = newest_record(str(copy)).strip.claims[20]
    assert isinstance(claim, Claim)
    assert claim.stamp.term.number > 40
    assert strip_of(copy).claims[20] == claim  # and every reader sees it


def test_p11_7_an_own_register_of_the_first_bank_touches_no_door(path: Path) -> None:
    header = open_header(str(path))
    before = read_bytes(path, header.doors_offset, 2 * header.doors_bytes)
    with open_store(str(path), writable=True)[0] as file:
        OwnRegister(file, header, RegisterKind.LEASE, 15).write(lease_of(15, 1))
    assert read_bytes(path, header.doors_offset, 2 * header.doors_bytes) == before


# ---- how many slots ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "room", "slots"),
    [
        (Scope.HOST, 0, 16),
        (Scope.HOST, (128 << 20) - 1, 16),
        (Scope.HOST, 128 << 20, 32),
        (Scope.HOST, 1 << 30, 256),
        (Scope.HOST, 1 << 40, 256),
        (Scope.SHARED, 1 << 30, 64),
        (Scope.SHARED, 4 << 30, 256),
    ],
)
def test_p11_7_who_names_no_number_gets_the_banks_that_there_is_room_for(scope: Scope, room: int, slots: int) -> None:
    assert slots_for(scope, room) == slots
    header = new_header(bytes(16), "x", scope, slots=slots)
    assert header.region_bytes >= (1000 << 10 if scope is Scope.HOST else 4000 << 10)  # as large as with 16 slots
    assert header.total_bytes <= max(room, 64 << 20)


def test_p11_7_the_room_is_what_the_file_system_has(tmp_path: Path) -> None:
    assert 0 < room_at(str(tmp_path / "store")) <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    with pytest.raises(StoreFailed):
        room_at(str(tmp_path / "missing" / "store"))
