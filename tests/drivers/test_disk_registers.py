"""The registers of the disk store: copies, damage, failed and foreign writes (SPEC 1.5)."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from disk_trials import (
    DATABASE,
    claim_of,
    damage,
    new_store,
    read_bytes,
    run_with,
    small_header,
    writes_fail_from,
)
from muster.drivers.store.disk.file import DiskFile, open_store
from muster.drivers.store.disk.geometry import Header
from muster.drivers.store.disk.registers import OwnRegister
from muster.drivers.store.disk.store import INITIAL_MARK, DiskStore, create_store, open_header
from muster.drivers.store.failures import ForeignWrite, StoreFailed
from muster.records.registers import (
    Mark,
    Marks,
    RegisterKind,
    View,
)
from muster.records.terms import Stamp, Term


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small store with scope `host`."""
    return new_store(tmp_path / "store")


# --- registers ------------------------------------------------------------------------------------------------------


def test_registers_read_back_and_survive_reopening(path: Path) -> None:
    claim = claim_of(2, 1, Mark(Term(2, 2), 0, 1))
    view = View(Stamp(2, 5, Term(2, 2), 1), frozenset({0, 1, 7}))
    marks = Marks(Stamp(2, 5, Term(2, 2), 1), ((0, 77), (3, 2**52)))

    async def write(store: DiskStore) -> None:
        await store.write_claim(claim)
        await store.write_view(view)
        await store.write_marks(marks)

    async def read(store: DiskStore) -> None:
        strip = await store.read_strip()
        assert (strip.claims[2], strip.views[2], strip.marks[2]) == (claim, view, marks)

    run_with(path, 2, write)
    run_with(path, 2, read)
    run_with(path, 0, read)


def test_a_register_is_written_to_both_copies(path: Path) -> None:
    header = open_header(str(path))

    async def scenario(store: DiskStore) -> None:
        await store.write_claim(claim_of(1, 1, INITIAL_MARK))

    run_with(path, 1, scenario)
    for lost in range(2):
        kept = read_bytes(path, header.register_offset(RegisterKind.CLAIM, 1, 1 - lost), 512)
        damage(path, header.register_offset(RegisterKind.CLAIM, 1, lost), os.urandom(512))
        with open_store(str(path), writable=False)[0] as file:
            assert OwnRegister(file, header, RegisterKind.CLAIM, 1).read() == claim_of(1, 1, INITIAL_MARK)
        damage(path, header.register_offset(RegisterKind.CLAIM, 1, 1 - lost), kept)
        run_with(path, 1, lambda store: store.write_claim(claim_of(1, 1, INITIAL_MARK)))  # mends the lost copy


DAMAGES: dict[str, Callable[[bytes, Header], bytes]] = {
    "blank": lambda sector, _: bytes(len(sector)),
    "garbage": lambda sector, _: b"\xa5" * len(sector),
    "a flipped bit": lambda sector, _: sector[:200] + bytes([sector[200] ^ 1]) + sector[201:],
    "half of an older write": lambda sector, _: sector[:80] + b"\xee" * (len(sector) - 80),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_damaged_copy_does_no_harm_and_two_are_unknown(path: Path, name: str) -> None:
    header = open_header(str(path))

    async def scenario(store: DiskStore) -> None:
        good = await store.read_strip()
        for kind, registers in zip(RegisterKind, good[:4], strict=True):
            offsets = [header.register_offset(kind, 3, copy) for copy in range(2)]
            sectors = [read_bytes(path, offset, 512) for offset in offsets]
            damage(path, offsets[0], DAMAGES[name](sectors[0], header))
            assert await store.read_strip() == good
            damage(path, offsets[1], DAMAGES[name](sectors[1], header))
            now = (await store.read_strip())[:4][kind - 1]
            assert now[3] is None
            assert now[:3] + now[4:] == registers[:3] + registers[4:]
            damage(path, offsets[0], sectors[0])
            assert await store.read_strip() == good
            damage(path, offsets[1], sectors[1])

    run_with(path, 0, scenario)


def test_a_valid_sector_in_the_wrong_place_is_not_believed(path: Path) -> None:
    header = open_header(str(path))

    async def scenario(store: DiskStore) -> None:
        for copy in range(2):  # both copies of node 1's claim land on node 2's, as by a broken multipath
            sector = read_bytes(path, header.register_offset(RegisterKind.CLAIM, 1, copy), 512)
            damage(path, header.register_offset(RegisterKind.CLAIM, 2, copy), sector)
        assert (await store.read_strip()).claims[2] is None

    run_with(path, 0, scenario)


def test_registers_of_another_cluster_are_not_believed(path: Path, tmp_path: Path) -> None:
    header, other = open_header(str(path)), tmp_path / "other"
    create_store(str(other), small_header(other), DATABASE)

    async def scenario(store: DiskStore) -> None:
        for copy in range(2):
            offset = header.register_offset(RegisterKind.LEASE, 2, copy)
            damage(path, offset, read_bytes(other, offset, 512))
        assert (await store.read_strip()).leases[2] is None

    run_with(path, 0, scenario)


@pytest.mark.parametrize("first", [0, 1])
def test_a_crash_between_the_copies_never_takes_back_what_a_reader_saw(path: Path, first: int) -> None:
    """Only one copy of the second write reached the disk; the third write is torn in its first copy."""
    header = open_header(str(path))
    run_with(path, 1, lambda store: store.write_claim(claim_of(1, 1, INITIAL_MARK)))
    older = read_bytes(path, header.register_offset(RegisterKind.CLAIM, 1, 1 - first), 512)
    run_with(path, 1, lambda store: store.write_claim(claim_of(1, 2, INITIAL_MARK)))
    damage(path, header.register_offset(RegisterKind.CLAIM, 1, 1 - first), older)

    async def next_life(store: DiskStore) -> None:
        assert (await store.read_strip()).claims[1] == claim_of(1, 2, INITIAL_MARK)
        replaced = store._owned[RegisterKind.CLAIM]._register
        replaced.read()
        assert replaced._order == (1 - first, first)
        await store.write_claim(claim_of(1, 3, INITIAL_MARK))
        assert (await store.read_strip()).claims[1] == claim_of(1, 3, INITIAL_MARK)

    run_with(path, 1, next_life)


def test_two_writers_with_one_stamp_make_the_register_unknown(path: Path) -> None:
    header = open_header(str(path))
    run_with(path, 1, lambda store: store.write_claim(claim_of(1, 1, INITIAL_MARK)))
    mine = read_bytes(path, header.register_offset(RegisterKind.CLAIM, 1, 1), 512)
    damage(path, header.register_offset(RegisterKind.CLAIM, 1, 0), bytes(512))
    damage(path, header.register_offset(RegisterKind.CLAIM, 1, 1), bytes(512))
    with open_store(str(path), writable=True)[0] as file:
        OwnRegister(file, header, RegisterKind.CLAIM, 1).write(claim_of(1, 1, INITIAL_MARK, incarnation=6))
    damage(path, header.register_offset(RegisterKind.CLAIM, 1, 1), mine)

    async def scenario(store: DiskStore) -> None:
        assert (await store.read_strip()).claims[1] is None

    run_with(path, 0, scenario)


def test_a_second_host_under_the_same_name_is_found_before_the_next_write(path: Path) -> None:
    async def scenario(first: DiskStore) -> None:
        second = DiskStore(path, 1)
        mark = Mark(Term(2, 1), 0, 1)
        try:
            await first.write_claim(claim_of(1, 1, INITIAL_MARK))
            with pytest.raises(ForeignWrite, match="second host"):
                await second.write_claim(claim_of(1, 1, INITIAL_MARK, incarnation=6))
            with pytest.raises(ForeignWrite):
                await second.write_checkpoint(mark, b"x")
            await first.write_checkpoint(Mark(Term(2, 1), 1, 1), b"x")
            third = DiskStore(path, 1)  # takes over what it finds, and then writes
            try:
                await third.write_claim(claim_of(1, 2, INITIAL_MARK, incarnation=6))
                await third.write_view(View(Stamp(1, 6, Term(2, 1), 1), frozenset()))
                await third.write_marks(Marks(Stamp(1, 6, Term(2, 1), 1), ()))
            finally:
                await third.close()
            with pytest.raises(ForeignWrite):
                await first.append_frame(Mark(Term(2, 1), 1, 1), 0, b"frame")
            with pytest.raises(ForeignWrite):
                await first.write_view(View(Stamp(1, 5, Term(2, 1), 1), frozenset()))
            with pytest.raises(ForeignWrite):
                await first.write_marks(Marks(Stamp(1, 5, Term(2, 1), 1), ()))
        finally:
            await second.close()

    run_with(path, 1, scenario)


def test_a_store_put_back_to_an_older_state_is_a_foreign_write(path: Path) -> None:
    header = open_header(str(path))
    offset = header.register_offset(RegisterKind.CLAIM, 1, 0)
    length = header.register_offset(RegisterKind.CLAIM, 1, 1) + 512 - offset

    async def scenario(store: DiskStore) -> None:
        await store.write_claim(claim_of(1, 1, INITIAL_MARK))
        snapshot = read_bytes(path, offset, length)
        await store.write_claim(claim_of(1, 2, INITIAL_MARK))
        damage(path, offset, snapshot)
        with pytest.raises(ForeignWrite):
            await store.write_claim(claim_of(1, 3, INITIAL_MARK))

    run_with(path, 1, scenario)


def test_an_own_register_that_is_unknown_is_not_overwritten(path: Path) -> None:
    header = open_header(str(path))
    offsets = [header.register_offset(RegisterKind.CLAIM, 1, copy) for copy in range(2)]
    sectors = [read_bytes(path, offset, 512) for offset in offsets]
    for offset in offsets:
        damage(path, offset, b"\xa5" * 512)

    async def scenario(store: DiskStore) -> None:
        with pytest.raises(StoreFailed, match="unknown") as caught:
            await store.write_claim(claim_of(1, 1, INITIAL_MARK))
        assert not isinstance(caught.value, ForeignWrite)
        assert read_bytes(path, offsets[0], 512) == b"\xa5" * 512
        damage(path, offsets[1], sectors[1])
        await store.write_claim(claim_of(1, 1, INITIAL_MARK))
        damage(path, offsets[0], b"\xa5" * 512)
        damage(path, offsets[1], b"\xa5" * 512)
        with pytest.raises(ForeignWrite):  # this time it is known what must be there
            await store.write_claim(claim_of(1, 2, INITIAL_MARK))

    run_with(path, 1, scenario)


def test_a_register_never_goes_back(path: Path) -> None:
    async def scenario(store: DiskStore) -> None:
        await store.write_claim(claim_of(1, 5, INITIAL_MARK, number=7))
        await store.write_claim(claim_of(1, 5, INITIAL_MARK, number=7))  # the same again is harmless
        for sequence, number in ((5, 6), (4, 7)):
            with pytest.raises(StoreFailed, match="not newer"):
                await store.write_claim(claim_of(1, sequence, INITIAL_MARK, number=number))
        with pytest.raises(StoreFailed, match="not newer"):  # other contents under the same stamp
            await store.write_claim(claim_of(1, 5, Mark(Term(7, 1), 0, 1), number=7))
        assert (await store.read_strip()).claims[1] == claim_of(1, 5, INITIAL_MARK, number=7)

    run_with(path, 1, scenario)


def test_after_a_failed_write_the_same_or_a_newer_one_succeeds(path: Path) -> None:
    """Copy A of the failed write reaches the disk, copy B does not; then neither; the writer must not blame a clone."""
    header = open_header(str(path))

    async def scenario(store: DiskStore) -> None:
        await store.write_claim(claim_of(1, 1, INITIAL_MARK))
        with writes_fail_from(header.row_offset(RegisterKind.CLAIM, 1)):
            for sequence in (2, 2, 3, 4):
                with pytest.raises(StoreFailed, match="cannot write"):
                    await store.write_claim(claim_of(1, sequence, INITIAL_MARK))
        await store.write_claim(claim_of(1, 5, INITIAL_MARK))
        with writes_fail_from(header.row_offset(RegisterKind.CLAIM, 0)), pytest.raises(StoreFailed):
            await store.write_claim(claim_of(1, 6, INITIAL_MARK))
        assert (await store.read_strip()).claims[1] == claim_of(1, 5, INITIAL_MARK)
        await store.write_claim(claim_of(1, 6, INITIAL_MARK))
        assert (await store.read_strip()).claims[1] == claim_of(1, 6, INITIAL_MARK)

    run_with(path, 1, scenario)


def test_after_a_write_that_was_torn_in_its_second_copy_that_one_is_written_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first copy is the only good one: torn as well by the next write, it would leave none."""
    file, header = open_store(str(path), writable=True)
    with file:
        register = OwnRegister(file, header, RegisterKind.CLAIM, 1)
        register.write(claim_of(1, 1, INITIAL_MARK))
        with writes_fail_from(register.offset(1)), pytest.raises(StoreFailed):
            register.write(claim_of(1, 2, INITIAL_MARK))
        damage(path, register.offset(1), os.urandom(512))
        written: list[int] = []
        monkeypatch.setattr(DiskFile, "write", lambda _self, offset, _data: written.append(offset))
        register.write(claim_of(1, 3, INITIAL_MARK))
        assert written == [register.offset(1), register.offset(0)]


def test_a_failed_write_that_shows_only_later_is_still_ones_own(path: Path) -> None:
    header = open_header(str(path))
    offset = header.register_offset(RegisterKind.CLAIM, 1, 0)

    async def scenario(store: DiskStore) -> None:
        await store.write_claim(claim_of(1, 1, INITIAL_MARK))
        before = read_bytes(path, offset, 512)
        with writes_fail_from(header.row_offset(RegisterKind.CLAIM, 1)), pytest.raises(StoreFailed):
            await store.write_claim(claim_of(1, 2, INITIAL_MARK))
        late = read_bytes(path, offset, 512)
        assert late != before
        damage(path, offset, before)  # as if the write were still on its way
        with writes_fail_from(header.row_offset(RegisterKind.CLAIM, 0)), pytest.raises(StoreFailed):
            await store.write_claim(claim_of(1, 3, INITIAL_MARK))
        damage(path, offset, late)
        await store.write_claim(claim_of(1, 4, INITIAL_MARK))

    run_with(path, 1, scenario)


def test_a_damaged_copy_is_read_again_once_and_not_at_every_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = open_header(str(path))
    damage(path, header.register_offset(RegisterKind.VIEW, 3, 0), b"\xa5" * 512)
    reads: list[int] = []
    read = DiskFile.read_around_damage

    def counted(self: DiskFile, offset: int, length: int) -> bytes:
        reads.append(offset)
        return read(self, offset, length)

    async def scenario(store: DiskStore) -> None:
        monkeypatch.setattr(DiskFile, "read_around_damage", counted)
        await store.read_strip()
        repeated = len(reads)
        assert repeated > 1
        for _ in range(5):
            await store.read_strip()
        assert len(reads) == repeated + 5

    run_with(path, 0, scenario)


def test_unreadable_blocks_cost_one_copy_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A medium error (injected: no disk of this machine is broken) in one row leaves every register known."""
    header = open_header(str(path))
    bad = range(header.row_offset(RegisterKind.CLAIM, 0), header.row_offset(RegisterKind.CLAIM, 1))
    preadv = os.preadv
    failing = bad

    def broken(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset < failing.stop and failing.start < offset + sum(len(part) for part in buffers):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, buffers, offset)

    async def scenario(store: DiskStore) -> None:
        nonlocal failing
        good = await store.read_strip()
        monkeypatch.setattr(os, "preadv", broken)
        assert await store.read_strip() == good
        await store.write_claim(claim_of(1, 1, INITIAL_MARK))
        failing = range(bad.start, header.row_offset(RegisterKind.VIEW, 0))
        assert set((await store.read_strip()).claims) == {None}
        failing = range(header.total_bytes)
        with pytest.raises(StoreFailed, match="cannot read"):
            await store.read_strip()

    run_with(path, 1, scenario)
