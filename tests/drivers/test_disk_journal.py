"""The journals of the disk store: checkpoints, frames, damage (SPEC 1.5, 2.6; docs/DISK_FORMAT.md)."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from disk_trials import SLOTS, begin, damage, new_store, read_bytes, run_with, writes_fail_from
from muster.drivers.store.disk.file import DiskFile, open_store
from muster.drivers.store.disk.geometry import new_header
from muster.drivers.store.disk.journal import CHECKPOINT_SHARE_PERCENT, scan_journal
from muster.drivers.store.disk.sectors import HEADER_BYTES
from muster.drivers.store.disk.store import INITIAL_MARK, DiskStore, open_header
from muster.drivers.store.failures import JournalFull, JournalUnreadable, StoreFailed
from muster.drivers.store.identity import Scope
from muster.records.registers import (
    Mark,
)
from muster.records.terms import Term


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small store with scope `host`."""
    return new_store(tmp_path / "store")


def test_a_journal_reads_back_as_it_was_written(path: Path) -> None:
    frames = [b"", b"a", b"b" * 511, b"c" * 10_000, os.urandom(3000), b"MUSTERDB" * 100]

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, b"checkpoint")
        assert await store.read_journal(1, mark) == (b"checkpoint", ())
        for number, frame in enumerate(frames):
            await store.append_frame(mark, number, frame)
            assert await store.read_journal(1, mark) == (b"checkpoint", tuple(frames[: number + 1]))
            await store.append_frame(mark, number, frame)  # a repeated number rewrites it
        assert await store.read_journal(1, mark) == (b"checkpoint", tuple(frames))

    async def elsewhere(store: DiskStore) -> None:
        assert await store.read_journal(1, Mark(Term(2, 1), 0, 1)) == (b"checkpoint", tuple(frames))

    run_with(path, 1, scenario)
    run_with(path, 0, elsewhere)


def test_either_copy_of_every_record_is_enough(path: Path) -> None:
    header = open_header(str(path))
    frames = tuple(os.urandom(size) for size in (100, 2000, 600))

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, os.urandom(3000))
        checkpoint = (await store.read_journal(1, mark)).checkpoint
        for number, frame in enumerate(frames):
            await store.append_frame(mark, number, frame)
        used = store._journal._next_offset
        starts = [header.region_offset(1, 0, copy) for copy in range(2)]
        sound = [read_bytes(path, start, used) for start in starts]
        for sector in range(0, used, 512):  # sector by sector, alternating between the copies
            damage(path, starts[sector // 512 % 2] + sector, b"\xa5" * 512)
        for copy in range(2):
            damage(path, starts[copy], sound[copy])
            damage(path, starts[1 - copy], b"\xa5" * used)
            assert await store.read_journal(1, mark) == (checkpoint, frames)
            damage(path, starts[1 - copy], sound[1 - copy])

    run_with(path, 1, scenario)


def test_a_full_journal_refuses_and_continues_in_the_other_half(path: Path) -> None:
    header = open_header(str(path))

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, b"checkpoint")
        frames: list[bytes] = []

        async def fill() -> None:
            while len(frames) * 2560 < header.region_bytes:
                frame = os.urandom(2000)
                await store.append_frame(mark, len(frames), frame)
                frames.append(frame)

        with pytest.raises(JournalFull, match="compact"):
            await fill()
        assert len(frames) * 2560 > header.region_bytes - 2 * 2560
        before = read_bytes(path, 0, header.total_bytes)
        with pytest.raises(JournalFull):
            await store.append_frame(mark, len(frames), os.urandom(2000))
        assert read_bytes(path, 0, header.total_bytes) == before
        assert await store.read_journal(1, mark) == (b"checkpoint", tuple(frames))
        await store.append_frame(mark, len(frames), b"a small one still fits")
        compacted = await begin(store, 1, 1, b"compacted", generation=2)
        await store.append_frame(compacted, 0, b"first")
        assert await store.read_journal(1, compacted) == (b"compacted", (b"first",))

    run_with(path, 1, scenario)


def test_a_checkpoint_leaves_room_for_frames(path: Path) -> None:
    header = open_header(str(path))
    largest = header.region_bytes * CHECKPOINT_SHARE_PERCENT // 100 // 512 * 512 - HEADER_BYTES

    async def scenario(store: DiskStore) -> None:
        before = read_bytes(path, 0, header.total_bytes)
        with pytest.raises(JournalFull, match="--size"):
            await store.write_checkpoint(Mark(Term(2, 1), 0, 1), os.urandom(largest + 1))
        assert read_bytes(path, 0, header.total_bytes) == before
        content = os.urandom(largest)
        mark = await begin(store, 1, 0, content)
        assert await store.read_journal(1, mark) == (content, ())

    run_with(path, 1, scenario)


def test_a_checkpoint_of_five_thousand_services_fits_into_a_default_store() -> None:
    """The contents resemble encoded definitions: much repeats, names and numbers differ."""
    one = (
        "name service-{0:05} allowable_nodes n0 n1 n2 start_command /usr/libexec/site/start --port {0} --name s{0} " * 4
    )
    content = "".join(one.format(number) for number in range(5000)).encode()
    assert len(content) > 2_000_000
    from muster.drivers.store.disk.journal import pack

    region_bytes = new_header(bytes(16), "x", Scope.HOST).region_bytes
    assert len(pack(content)[1]) < region_bytes * CHECKPOINT_SHARE_PERCENT // 100


def test_nothing_of_older_generations_is_taken_for_a_frame(path: Path) -> None:
    """Each generation leaves records of other sizes behind; the next one must show none of them."""
    chance = random.Random(7)

    async def scenario(store: DiskStore) -> None:
        for generation in range(1, 13):
            content = chance.randbytes(chance.randrange(1, 8000))
            mark = await begin(store, 1, generation % 2, content, generation=generation)
            frames = [chance.randbytes(chance.randrange(0, 3000)) for _ in range(chance.randrange(6))]
            assert await store.read_journal(1, mark) == (content, ())
            for number, frame in enumerate(frames):
                await store.append_frame(mark, number, frame)
            assert await store.read_journal(1, mark) == (content, tuple(frames))

    run_with(path, 1, scenario)

    async def next_life(store: DiskStore) -> None:  # knows nothing of what the halves hold
        mark = await begin(store, 1, 1, b"short", number=3, generation=13)
        assert await store.read_journal(1, mark) == (b"short", ())
        await store.append_frame(mark, 0, b"frame")
        assert await store.read_journal(1, mark) == (b"short", (b"frame",))
        with pytest.raises(JournalUnreadable):
            await store.read_journal(1, Mark(Term(2, 1), 1, 11))

    run_with(path, 1, next_life)


def test_a_frame_of_another_term_is_none_of_this_journal_though_all_else_about_it_fits(path: Path) -> None:
    header = open_header(str(path))

    async def scenario(store: DiskStore) -> None:
        before = await begin(store, 1, 0, b"checkpoint", number=2)
        await store.append_frame(before, 0, b"of an older term")
        offset = store._journal._last_offset
        place = header.region_offset(1, 0, 0) + offset
        frame = read_bytes(path, place, store._journal._next_offset - offset)
        await begin(store, 1, 1, b"between", number=3)
        mark = await begin(store, 1, 0, b"checkpoint", number=4)
        assert store._journal._next_offset == offset
        damage(path, place, frame)  # a disk that has lost the zeros written there
        assert await store.read_journal(1, mark) == (b"checkpoint", ())

    run_with(path, 1, scenario)


def journal_with_frames(path: Path, sizes: tuple[int, ...]) -> tuple[Mark, list[int]]:
    """Write a journal of node 1 with frames of these sizes; returns its mark and where each frame begins."""
    offsets: list[int] = []
    marks: list[Mark] = []

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, b"checkpoint")
        for number, size in enumerate(sizes):
            await store.append_frame(mark, number, bytes([number + 1]) * size)
            offsets.append(store._journal._last_offset)
        marks.append(mark)

    run_with(path, 1, scenario)
    return marks[0], offsets


def frames_read(path: Path, mark: Mark) -> int:
    """How many frames the journal of node 1 has when read once."""
    file, header = open_store(str(path), writable=False)
    with file:
        return len(scan_journal(file, header, 1, mark).image.frames)


def test_a_frame_torn_in_its_first_copy_ends_the_journal(path: Path) -> None:
    header = open_header(str(path))
    mark, offsets = journal_with_frames(path, (100, 1500))
    copy_a, copy_b = (header.region_offset(1, 0, copy) + offsets[1] for copy in range(2))
    whole = read_bytes(path, copy_a, 2048)
    damage(path, copy_b, bytes(2048))  # copy B was not begun
    assert frames_read(path, mark) == 2
    for landed in ((0,), (1, 2), (0, 3), (2,), ()):  # whichever sectors of copy A had reached the disk
        torn = b"".join(whole[at * 512 : at * 512 + 512] if at in landed else bytes(512) for at in range(4))
        damage(path, copy_a, torn)
        assert frames_read(path, mark) == 1
    damage(path, copy_a, os.urandom(2048))
    assert frames_read(path, mark) == 1


def test_a_frame_torn_in_its_second_copy_counts(path: Path) -> None:
    header = open_header(str(path))
    mark, offsets = journal_with_frames(path, (100, 1500))
    damage(path, header.region_offset(1, 0, 1) + offsets[1] + 512, bytes(1024))
    assert frames_read(path, mark) == 2


def test_a_durable_frame_that_was_destroyed_makes_the_journal_unreadable(path: Path) -> None:
    header = open_header(str(path))
    mark, offsets = journal_with_frames(path, (100, 100, 100))
    for copy in range(2):
        damage(path, header.region_offset(1, 0, copy) + offsets[2] + 90, b"\xa5")
    with pytest.raises(JournalUnreadable, match="neither is blank"):
        frames_read(path, mark)


def test_a_hole_before_a_valid_frame_makes_the_journal_unreadable(path: Path) -> None:
    header = open_header(str(path))
    mark, offsets = journal_with_frames(path, (100, 100, 100, 100))
    for copy in range(2):
        damage(path, header.region_offset(1, 0, copy) + offsets[1], bytes(512))
    with pytest.raises(JournalUnreadable, match="later one"):
        frames_read(path, mark)
    damage(path, header.region_offset(1, 0, 0) + offsets[2], bytes(2048))  # the later ones in copy B only
    with pytest.raises(JournalUnreadable, match="later one"):
        frames_read(path, mark)


def test_a_lost_checkpoint_makes_the_journal_unreadable(path: Path) -> None:
    header = open_header(str(path))
    mark, _ = journal_with_frames(path, (100,))
    for copy in range(2):
        damage(path, header.region_offset(1, 0, copy), bytes(512))
    with pytest.raises(JournalUnreadable, match="checkpoint"):
        frames_read(path, mark)


def test_a_journal_that_was_never_written_is_unreadable_not_empty(path: Path) -> None:
    async def scenario(store: DiskStore) -> None:
        for owner, mark in (
            (3, Mark(Term(5, 3), 0, 1)),
            (0, INITIAL_MARK._replace(generation=2)),
            (0, Mark(Term(1, 0), 2, 1)),
        ):
            with pytest.raises(JournalUnreadable):
                await store.read_journal(owner, mark)
        with pytest.raises(JournalUnreadable):
            await store.read_journal(SLOTS, INITIAL_MARK)

    run_with(path, 0, scenario)


def test_a_failed_append_may_be_repeated_or_replaced(path: Path) -> None:
    """Copy A is written, copy B fails; then the same or other contents, longer and shorter, go to the same number."""
    header = open_header(str(path))
    fail = header.region_offset(1, 0, 1)

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, b"checkpoint")
        await store.append_frame(mark, 0, b"zero")
        for frame in (b"x" * 1700, b"y" * 100, b"z" * 2000):
            with writes_fail_from(fail), pytest.raises(StoreFailed):
                await store.append_frame(mark, 1, frame)
        with pytest.raises(StoreFailed, match="does not follow"):
            await store.append_frame(mark, 2, b"two")
        await store.append_frame(mark, 1, b"one")
        assert await store.read_journal(1, mark) == (b"checkpoint", (b"zero", b"one"))
        await store.append_frame(mark, 2, b"two")
        assert await store.read_journal(1, mark) == (b"checkpoint", (b"zero", b"one", b"two"))

    run_with(path, 1, scenario)


def test_behind_the_last_frame_there_are_zeros_in_both_copies(path: Path) -> None:
    header = open_header(str(path))

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, b"checkpoint")
        await store.append_frame(mark, 0, b"x" * 1900)
        await store.append_frame(mark, 0, b"y")
        for copy in range(2):
            used = store._journal._next_offset
            rest = read_bytes(path, header.region_offset(1, 0, copy) + used, header.region_bytes - used)
            assert rest.count(0) == len(rest)

    run_with(path, 1, scenario)


def crashes(before: bytes, writes: list[tuple[int, bytes]]) -> Iterator[bytes]:
    """What the device may hold if the machine stops anywhere in these writes: any sectors of the last one landed."""
    content = bytearray(before)
    for offset, data in writes:
        sectors = range(0, len(data), 512)
        for landed in (sectors[:0], sectors[:1], sectors[1:], sectors[::2], sectors[-1:], sectors):
            torn = bytearray(content)
            for at in landed:
                torn[offset + at : offset + at + 512] = data[at : at + 512]
            yield bytes(torn)
        content[offset : offset + len(data)] = data


def test_a_crash_anywhere_in_an_append_leaves_the_frames_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when other contents were begun before under the same number and reached a part of copy B."""
    header = open_header(str(path))
    area = header.region_offset(1, 0, 0)
    length = 2 * header.region_bytes
    writes: list[tuple[int, bytes]] = []
    write = DiskFile.write

    def recorded(self: DiskFile, offset: int, data: bytes) -> None:
        writes.append((offset - area, data))
        write(self, offset, data)

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, b"checkpoint")
        await store.append_frame(mark, 0, b"zero")
        place_b = header.region_offset(1, 0, 1) + store._journal._next_offset
        with writes_fail_from(place_b + 512), pytest.raises(StoreFailed):
            await store.append_frame(mark, 1, b"x" * 1700)
        before = read_bytes(path, area, length)
        assert before[header.region_bytes + store._journal._next_offset] != 0  # a part of it is in copy B
        with monkeypatch.context() as patch:
            patch.setattr(DiskFile, "write", recorded)
            await store.append_frame(mark, 1, b"y" * 1200)
        tried = 0
        for content in crashes(before, writes):
            damage(path, area, content)
            assert frames_read(path, mark) in (1, 2)
            tried += 1
        assert tried == 18  # six outcomes for each of: wiping copy B, copy A, copy B
        damage(path, area, content)
        assert frames_read(path, mark) == 2

    run_with(path, 1, scenario)


def test_a_crash_anywhere_in_a_checkpoint_leaves_the_marked_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPEC 2.6: the older journal counts until the mark is written, last."""
    header = open_header(str(path))
    start, length = header.region_offset(1, 0, 0), 4 * header.region_bytes
    writes: list[tuple[int, bytes]] = []
    write = DiskFile.write

    def recorded(self: DiskFile, offset: int, data: bytes) -> None:
        writes.append((offset - start, data))
        write(self, offset, data)

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, b"checkpoint")
        await store.append_frame(mark, 0, b"zero")
        await begin(store, 1, 1, b"second" * 300, number=3, generation=2)
        mark = await begin(store, 1, 0, b"third", number=4, generation=3)
        before = read_bytes(path, start, length)
        with monkeypatch.context() as patch:
            patch.setattr(DiskFile, "write", recorded)
            await store.write_checkpoint(Mark(Term(5, 1), 1, 4), b"fourth")
        for content in crashes(before, writes):
            damage(path, start, content)
            assert frames_read(path, mark) == 0

    run_with(path, 1, scenario)


def test_frames_need_the_checkpoint_of_their_own_journal(path: Path) -> None:
    async def scenario(store: DiskStore) -> None:
        with pytest.raises(StoreFailed, match="checkpoint first"):
            await store.append_frame(Mark(Term(2, 1), 0, 1), 0, b"x")
        mark = await begin(store, 1, 0, b"checkpoint")
        with pytest.raises(StoreFailed, match="checkpoint first"):
            await store.append_frame(mark._replace(generation=9), 0, b"x")

    run_with(path, 1, scenario)


def test_the_journal_that_the_own_mark_names_is_never_overwritten(path: Path) -> None:
    """SPEC 2.6: a node copies into its own area without touching its own older journal until done."""

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, b"checkpoint")
        with pytest.raises(StoreFailed, match="other half"):
            await store.write_checkpoint(Mark(Term(3, 1), 0, 2), b"next")
        assert await store.read_journal(1, mark) == (b"checkpoint", ())

    run_with(path, 1, scenario)
