"""The store engine for files and block devices (SPEC 1.2-1.5, 7.2), with real files, devices and processes."""

import asyncio
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from disk_trials import (
    DATABASE,
    SLOTS,
    SMALL_STORE_BYTES,
    begin,
    damage,
    lease_of,
    new_store,
    read_bytes,
    run_with,
    small_header,
    writes_fail_from,
)
from muster.drivers.store.disk.file import Refusal, StoreUnusable, open_store
from muster.drivers.store.disk.geometry import BLOCK_BYTES, encode_header
from muster.drivers.store.disk.lease_store import GuardStore
from muster.drivers.store.disk.registers import OwnRegister
from muster.drivers.store.disk.store import INITIAL_MARK, MAXIMUM_PENDING, DiskStore, create_store, open_header
from muster.drivers.store.failures import JournalFull, StoreFailed
from muster.drivers.store.identity import Scope
from muster.records.registers import (
    Claim,
    ClaimFlag,
    Mark,
    Marks,
    RegisterKind,
    View,
    blank_register,
)
from muster.records.terms import Stamp, Term


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small store with scope `host`."""
    return new_store(tmp_path / "store")


# --- creation and opening -------------------------------------------------------------------------------------------


def test_a_new_store_holds_blank_registers_and_the_first_journal_in_slot_0(path: Path) -> None:
    async def scenario(store: DiskStore) -> None:
        strip = await store.read_strip()
        assert strip.leases == tuple(blank_register(RegisterKind.LEASE, slot) for slot in range(SLOTS))
        assert strip.views == tuple(blank_register(RegisterKind.VIEW, slot) for slot in range(SLOTS))
        assert strip.marks == tuple(blank_register(RegisterKind.MARKS, slot) for slot in range(SLOTS))
        assert strip.claims[1:] == tuple(blank_register(RegisterKind.CLAIM, slot) for slot in range(1, SLOTS))
        assert strip.claims[0] == Claim(Stamp(0, 0, Term(1, 0), 0), ClaimFlag.WITHDRAWN, Mark(Term(1, 0), 0, 1))
        assert await store.read_journal(0, INITIAL_MARK) == (DATABASE, ())

    run_with(path, 1, scenario)


def test_a_store_is_preallocated_and_private(path: Path) -> None:
    header = open_header(str(path))
    status = path.stat()
    assert status.st_size == header.total_bytes <= SMALL_STORE_BYTES
    assert status.st_blocks * 512 >= header.total_bytes
    assert status.st_mode & 0o777 == 0o600


def test_creation_refuses_what_is_not_blank_and_overwrites_when_told_to(path: Path) -> None:
    other = small_header(path)
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match="--force") as caught:
        create_store(str(path), other, DATABASE)
    assert caught.value.refusal is Refusal.NOT_BLANK
    assert path.read_bytes() == before
    create_store(str(path), other, b"second", overwrite=True)
    assert open_header(str(path)).cluster_id == other.cluster_id

    async def scenario(store: DiskStore) -> None:
        assert await store.read_journal(0, INITIAL_MARK) == (b"second", ())

    run_with(path, 0, scenario)


def test_creation_accepts_an_empty_and_a_blank_file(tmp_path: Path) -> None:
    for size in (0, 10_000):
        target = tmp_path / f"blank{size}"
        target.write_bytes(bytes(size))
        create_store(str(target), small_header(target), DATABASE)
        assert open_header(str(target)).cluster_name == "trial"


def test_a_database_that_does_not_fit_leaves_no_file_behind(tmp_path: Path) -> None:
    target = tmp_path / "store"
    header = small_header(target)
    with pytest.raises(JournalFull, match="--size"):
        create_store(str(target), header, os.urandom(header.region_bytes))
    assert not target.exists()


def test_a_store_that_cannot_be_allocated_leaves_no_file_behind(tmp_path: Path) -> None:
    target = tmp_path / "store"
    header = small_header(target)
    with writes_fail_from(1 << 20), pytest.raises(StoreUnusable, match="choose a smaller size") as caught:
        create_store(str(target), header, DATABASE)
    assert caught.value.refusal is Refusal.NO_SPACE
    assert not target.exists()


def refusal_of(target: Path) -> Refusal:
    with pytest.raises(StoreUnusable) as caught:
        open_header(str(target))
    message = str(caught.value)
    assert str(target) in message
    with pytest.raises(StoreUnusable):
        DiskStore(target, 0)
    with pytest.raises(StoreUnusable):
        GuardStore(target, 0)
    return caught.value.refusal


def test_what_is_no_store_is_refused_by_what_it_is(tmp_path: Path) -> None:
    target = tmp_path / "x"
    assert refusal_of(target) is Refusal.MISSING
    assert refusal_of(tmp_path) is Refusal.NOT_A_FILE
    target.write_bytes(b"MUSTERDB")
    assert refusal_of(target) is Refusal.TOO_SMALL
    target.write_bytes(bytes(1 << 20))
    assert refusal_of(target) is Refusal.BLANK
    target.write_bytes(b"something else " * 10_000)
    assert refusal_of(target) is Refusal.FOREIGN
    os.mkfifo(tmp_path / "pipe")
    assert refusal_of(tmp_path / "pipe") is Refusal.NOT_A_FILE


def test_a_store_that_was_cut_off_is_refused(path: Path) -> None:
    os.truncate(path, 1 << 20)
    assert refusal_of(path) is Refusal.TOO_SMALL


def test_a_store_whose_headers_are_both_damaged_is_refused_and_one_is_enough(path: Path) -> None:
    damage(path, 100, b"\x55")
    assert open_header(str(path)).cluster_name == "trial"
    damage(path, BLOCK_BYTES + 100, b"\x55")
    assert refusal_of(path) is Refusal.DAMAGED


def test_a_store_of_another_format_is_refused(path: Path) -> None:
    header = open_header(str(path))
    newer = header._replace(lowest_format=7, highest_format=9, sequence=2)
    for copy in range(2):
        damage(path, copy * BLOCK_BYTES, encode_header(newer, copy))
    assert refusal_of(path) is Refusal.OTHER_FORMAT


def test_a_store_written_by_a_later_release_is_told_from_a_damaged_one(path: Path) -> None:
    for copy in range(2):
        later = bytearray(read_bytes(path, copy * BLOCK_BYTES, BLOCK_BYTES))
        later[8:16] = struct.pack("<HBBI", 3, 16, 0, 0)
        later[12:16] = struct.pack("<I", zlib.crc32(later))
        damage(path, copy * BLOCK_BYTES, bytes(later))
    with pytest.raises(StoreUnusable, match="disk format 3"):
        open_header(str(path))
    assert refusal_of(path) is Refusal.OTHER_FORMAT


def test_an_interrupted_creation_is_recognised_wherever_it_stopped(tmp_path: Path) -> None:
    """Let the kernel stop the creation at different places, as a power cut would."""
    target = tmp_path / "store"
    header = small_header(target)
    target.touch()
    create_store(str(target), header, DATABASE)
    for limit in (3 * BLOCK_BYTES, header.journals_offset + 100, header.total_bytes // 2):
        with writes_fail_from(limit), pytest.raises(StoreFailed):
            create_store(str(target), small_header(target), DATABASE, overwrite=True)
        assert refusal_of(target) is Refusal.HALF_WRITTEN
    for copy in range(2):
        damage(target, copy * BLOCK_BYTES, encode_header(header._replace(complete=False), copy))
    assert refusal_of(target) is Refusal.HALF_WRITTEN
    damage(target, 0, encode_header(header._replace(complete=True, sequence=1), 0))  # stopped between the two headers
    assert open_header(str(target)).complete


def test_a_node_without_a_slot_is_refused(path: Path) -> None:
    for node in (-1, SLOTS):
        with pytest.raises(StoreFailed, match="no node"):
            DiskStore(path, node)
        with pytest.raises(StoreFailed, match="no node"):
            GuardStore(path, node)


@pytest.mark.skipif(os.geteuid() == 0, reason="not applicable: root may open every file")
def test_a_store_that_this_user_may_not_write_is_refused(path: Path) -> None:
    path.chmod(0o400)
    with pytest.raises(StoreUnusable) as caught:
        DiskStore(path, 0)
    assert caught.value.refusal is Refusal.NOT_PERMITTED


# --- access, concurrency, processes -----------------------------------------------------------------------------------


def exercise(target: Path) -> DiskStore:
    """Write and read a bit of everything; returns the closed store."""
    stores: list[DiskStore] = []

    async def scenario(store: DiskStore) -> None:
        stores.append(store)
        mark = await begin(store, 1, 0, b"checkpoint" * 1000)
        await store.append_frame(mark, 0, os.urandom(5000))
        await store.write_view(View(Stamp(1, 5, Term(2, 1), 1), frozenset({0})))
        assert len((await store.read_journal(1, mark)).frames) == 1
        assert (await store.read_strip()).views[1] == View(Stamp(1, 5, Term(2, 1), 1), frozenset({0}))

    run_with(target, 1, scenario)
    guard = GuardStore(target, 1)
    guard.write_lease(lease_of(1, 1))
    assert guard.read_own() == lease_of(1, 1)
    guard.close()
    return stores[0]


def test_direct_io_is_used_where_it_works(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path / "trial", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except OSError:
        pytest.skip(f"not applicable: the file system of {tmp_path} has no direct I/O")
    target = tmp_path / "store"
    create_store(str(target), small_header(target), DATABASE)
    assert exercise(target).direct


@pytest.fixture
def buffered_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system without direct I/O (ramfs)."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a ramfs")
    folder = tmp_path / "ramfs"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "ramfs", "none", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"not applicable: no ramfs can be mounted here ({mounted.stderr.decode().strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_store_for_one_machine_works_without_direct_io(buffered_folder: Path) -> None:
    target = buffered_folder / "store"
    create_store(str(target), small_header(target), DATABASE)
    assert not exercise(target).direct


def test_a_read_only_store_is_refused_for_writing_and_can_be_looked_at(buffered_folder: Path) -> None:
    target = buffered_folder / "store"
    create_store(str(target), small_header(target), DATABASE)
    subprocess.run(["mount", "-o", "remount,ro", buffered_folder], check=True)
    for engine in (DiskStore, GuardStore):
        with pytest.raises(StoreUnusable, match="read-only") as caught:
            engine(target, 0)
        assert caught.value.refusal is Refusal.READ_ONLY
    assert open_header(str(target)).cluster_name == "trial"


def test_a_shared_store_is_refused_without_direct_io(buffered_folder: Path) -> None:
    target = buffered_folder / "store"
    with pytest.raises(StoreUnusable, match="direct I/O") as caught:
        create_store(str(target), small_header(target, Scope.SHARED), DATABASE)
    assert caught.value.refusal is Refusal.NO_DIRECT_IO
    assert not target.exists()
    header = small_header(target)
    create_store(str(target), header, DATABASE)
    for copy in range(2):  # a store that was moved here from where direct I/O worked
        shared = header._replace(scope=Scope.SHARED, complete=True, sequence=2)
        damage(target, copy * BLOCK_BYTES, encode_header(shared, copy))
    assert refusal_of(target) is Refusal.NO_DIRECT_IO


def test_a_shared_store_is_refused_where_direct_io_goes_to_the_page_cache() -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("not applicable: there is no /dev/shm")
    target = memory / f"muster-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        with pytest.raises(StoreUnusable) as caught:
            create_store(str(target), small_header(target, Scope.SHARED), DATABASE)
        assert caught.value.refusal is Refusal.NO_DIRECT_IO
        assert not target.exists()
        create_store(str(target), small_header(target), DATABASE)
        exercise(target)
    finally:
        target.unlink(missing_ok=True)


@pytest.fixture(params=[512, 4096])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A real block device with this logical block size."""
    if os.geteuid() != 0:
        pytest.skip("needs root: sets up a loop device")
    backing = tmp_path / "disk"
    backing.write_bytes(bytes(8 << 20))
    made = subprocess.run(
        ["losetup", "--find", "--show", "--sector-size", str(request.param), backing], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"not applicable: no loop devices here ({made.stderr.decode().strip()})")
    name = made.stdout.decode().strip()
    try:
        yield Path(name), request.param
    finally:
        subprocess.run(["losetup", "--detach", name], check=True)


def test_a_shared_store_on_a_block_device_uses_its_sector_size(device: tuple[Path, int]) -> None:
    target, sector_bytes = device
    header = small_header(target, Scope.SHARED, 8 << 20)
    assert header.sector_bytes == sector_bytes
    create_store(str(target), header, DATABASE)
    assert exercise(target).direct
    with pytest.raises(StoreUnusable) as caught:
        create_store(str(target), small_header(target, Scope.SHARED, 16 << 20), DATABASE, overwrite=True)
    assert caught.value.refusal is Refusal.TOO_SMALL


def test_readers_see_only_whole_registers_in_order_beside_a_writer(path: Path) -> None:
    """One writer, two readers with their own descriptors; every read is valid and never goes back."""
    done = threading.Event()
    seen: list[list[int]] = [[], []]

    def read(into: list[int]) -> None:
        guard = GuardStore(path, 0)
        file, header = open_store(str(path), writable=False)
        with file:
            watched = OwnRegister(file, header, RegisterKind.MARKS, 1)
            while not done.is_set():
                marks, own = guard.read_marks()[1], watched.read()
                into += [-1 if marks is None else marks.stamp.sequence, -1 if own is None else own.stamp.sequence]
        guard.close()

    readers = [threading.Thread(target=read, args=(into,)) for into in seen]

    async def scenario(store: DiskStore) -> None:
        for reader in readers:
            reader.start()
        for sequence in range(1, 200):
            await store.write_marks(Marks(Stamp(1, 5, Term(2, 1), sequence), ((2, sequence),) * 20))
            durable = (await store.read_strip()).marks[1]
            assert durable is not None
            assert durable.stamp.sequence == sequence

    try:
        run_with(path, 1, scenario)
    finally:
        done.set()
        for reader in readers:
            reader.join()
    for numbers in seen:
        assert numbers
        assert -1 not in numbers
        assert numbers == sorted(numbers)


WRITER = """
import asyncio, os, sys
from muster.drivers.store.disk.store import DiskStore
from muster.records.registers import Claim, ClaimFlag, Mark
from muster.records.terms import Stamp, Term

async def main():
    store = DiskStore(sys.argv[1], 1)
    claim = (await store.read_strip()).claims[1]
    mark, number, sequence = claim.mark, claim.stamp.term.number, claim.stamp.sequence
    while True:
        number, sequence = number + 1, sequence + 1
        mark = Mark(Term(number, 1), 1 - mark.half, mark.generation + 1)
        await store.write_checkpoint(mark, os.urandom(number * 37 % 3000))
        claim = Claim(Stamp(1, 5, Term(number, 1), sequence), ClaimFlag.MASTER, mark)
        await store.write_claim(claim)
        print(number, 0, flush=True)
        for frame in range(number % 5):
            await store.append_frame(mark, frame, os.urandom(number * 101 % 2500))
            print(number, frame + 1, flush=True)

asyncio.run(main())
"""


def test_whatever_moment_a_writer_is_killed_at_what_was_durable_stays(path: Path) -> None:
    """SIGKILL in the middle of claims, checkpoints and frames: nothing that was acknowledged is lost."""
    chance = random.Random(11)
    source = Path(__file__).parents[2] / "src"
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(source)},
            text=True,
        )
        try:
            assert process.stdout is not None
            acknowledged = [process.stdout.readline() for _ in range(chance.randrange(5, 60))]
            process.send_signal(signal.SIGKILL)
            acknowledged += process.stdout.readlines()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        number, frames = (int(word) for word in [line for line in acknowledged if line.endswith("\n")][-1].split())
        check_survival(path, number, frames)


def check_survival(path: Path, number: int, frames: int) -> None:
    """What the killed writer had acknowledged is there, or something newer."""

    async def scenario(store: DiskStore) -> None:
        claim = (await store.read_strip()).claims[1]
        assert claim is not None
        assert claim.stamp.term.number in (number, number + 1)
        image = await store.read_journal(1, claim.mark)
        if claim.stamp.term.number == number:
            assert len(image.frames) in (frames, frames + 1)

    run_with(path, 0, scenario)


def test_a_guard_renews_its_lease_and_reads_all_marks(path: Path) -> None:
    guards = [GuardStore(path, node) for node in (0, 1)]
    for beat in range(1, 20):
        for node, guard in enumerate(guards):
            guard.write_lease(lease_of(node, beat))
            assert guard.read_own() == lease_of(node, beat)
    run_with(path, 1, lambda store: store.write_marks(Marks(Stamp(1, 5, Term(2, 1), 1), ((0, 5),))))
    assert guards[0].read_marks()[1] == Marks(Stamp(1, 5, Term(2, 1), 1), ((0, 5),))
    header = guards[0].header
    for copy in range(2):
        damage(path, header.register_offset(RegisterKind.LEASE, 0, copy), bytes(512))
        damage(path, header.register_offset(RegisterKind.MARKS, 1, copy), bytes(512))
    assert guards[0].read_own() is None
    assert guards[0].read_marks()[1] is None
    for guard in guards:
        guard.close()


def test_a_lease_write_that_failed_half_way_can_be_repeated(path: Path) -> None:
    guard = GuardStore(path, 1)
    guard.write_lease(lease_of(1, 1))
    with writes_fail_from(guard.header.row_offset(RegisterKind.LEASE, 1)):
        with pytest.raises(StoreFailed, match="cannot write"):
            guard.write_lease(lease_of(1, 2))
        assert guard.read_own() == lease_of(1, 2)
    guard.write_lease(lease_of(1, 2))
    guard.write_lease(lease_of(1, 3))
    assert guard.read_own() == lease_of(1, 3)
    guard.close()


def test_the_guard_imports_nothing_large() -> None:
    large = {"asyncio", "msgspec", "dataclasses", "pathlib", "logging", "ssl", "concurrent", "ctypes", "subprocess"}
    program = f"import sys, muster.drivers.store.disk.lease_store; print(sorted({large} & set(sys.modules)))"
    source = Path(__file__).parents[2] / "src"
    command = [sys.executable, "-S", "-c", program]
    answer = subprocess.run(command, env={"PYTHONPATH": str(source)}, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_requests_that_nobody_answers_are_bounded_and_a_closed_store_says_so(path: Path) -> None:
    async def scenario(store: DiskStore) -> None:
        held = threading.Event()
        blocker = asyncio.ensure_future(store._read_lane.run(store.path, held.wait))
        waiting = [asyncio.ensure_future(store.read_strip()) for _ in range(MAXIMUM_PENDING - 1)]
        try:
            await asyncio.sleep(0)
            with pytest.raises(StoreFailed, match="wait already"):
                await store.read_strip()
        finally:
            held.set()
        await asyncio.gather(blocker, *waiting)
        await store.read_strip()
        await store.close()
        with pytest.raises(StoreFailed, match="closed"):
            await store.read_strip()

    run_with(path, 0, scenario)
