"""The store engine for a file or a block device (SPEC 1.2, 1.5), and the creation of such a store.

`DiskStore` implements `drivers.store.engine.Store` over blocking, aligned, durable I/O in two threads: one carries out
writes and journal reads one at a time and in order, the other one reads the strip beside them, so that a slow write
never breaks the chain of reads on which proofs of death stand (SPEC 7.1).
"""

import asyncio
import errno
import fcntl
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar, cast

from muster.core.effects import (
    AppendFrame,
    ReadJournal,
    ReadStrip,
    WriteCheckpoint,
    WriteClaim,
    WriteMarks,
    WriteView,
)
from muster.drivers.store.disk.direct_io import prove_direct_io
from muster.drivers.store.disk.file import (
    HEADER_AREA_BYTES,
    DiskFile,
    Refusal,
    StoreUnusable,
    check_type,
    open_device,
    open_header,
    open_store,
    unusable,
)
from muster.drivers.store.disk.geometry import (
    BLOCK_BYTES,
    COPIES,
    DEFAULT_SLOTS,
    HALVES,
    SECTOR_SIZES,
    STRIP_OFFSET,
    Header,
    encode_header,
    new_header,
)
from muster.drivers.store.disk.journal import OwnJournal, scan_journal
from muster.drivers.store.disk.registers import REPEATS, OwnRegister, RegisterReader, encode_copy
from muster.drivers.store.engine import StoreEffect, StoreOutcome
from muster.drivers.store.failures import ForeignWrite, JournalImage, JournalUnreadable, StoreFailed
from muster.drivers.store.identity import Scope
from muster.records.registers import (
    NO_MARK,
    Claim,
    ClaimFlag,
    Lease,
    Mark,
    Marks,
    Register,
    RegisterKind,
    Strip,
    View,
    blank_register,
)
from muster.records.terms import Stamp, Term

__all__ = ["INITIAL_MARK", "DiskStore", "create_store", "open_header", "plan_header"]

MAXIMUM_PENDING = 64  # calls that may wait for one thread
MAXIMUM_DOUBTS = 64  # failed writes of one register that may still turn up in it
LARGE_BUFFER_BYTES = 1024 * 1024
INITIAL_MARK = Mark(Term(1, 0), 0, 1)  # of the checkpoint that `muster init` writes into slot 0
_JOURNAL_PAUSE_S = 0.002
_BLKSSZGET = 0x1268  # ioctl: logical block size of a block device

_Result = TypeVar("_Result")


class _Work(NamedTuple):
    """What a lane is to do, and what its event loop does with the outcome: the result, or else the failure."""

    work: Callable[[], object]
    settle: Callable[[Any, BaseException | None], None]
    loop: asyncio.AbstractEventLoop


class _Lane:
    """One worker thread with a bounded queue, for one event loop at a time.

    A node reads its store all day long, so what a hand-over costs matters: one queue, one call into the loop. An
    executor with futures of two kinds takes three times as much (measured: bench/idle.py).
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._pending = 0  # touched by the loop's thread only
        self._thread: threading.Thread | None = None
        self._stopped = False

    async def run(self, path: str, work: Callable[[], _Result]) -> _Result:
        """Carry `work` out after what was submitted before. Raises `StoreFailed` if too much waits already."""
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()

        def settle(result: _Result, failure: BaseException | None) -> None:
            if future.done():
                return  # who waited for it was cancelled
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

        self.submit(path, work, settle)
        return await future

    def submit(
        self, path: str, work: Callable[[], object], settle: Callable[[Any, BaseException | None], None]
    ) -> None:
        """The same without a task: `settle` is called from the event loop. Raises `StoreFailed`."""
        if self._stopped:
            raise StoreFailed(f"store {path} is closed in this process: open it again")
        if self._pending >= MAXIMUM_PENDING:
            text = f"store {path}: {MAXIMUM_PENDING} requests wait already; it does not answer: check the disk"
            raise StoreFailed(text)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name)
            self._thread.start()
        self._pending += 1
        self._queue.put(_Work(work, settle, asyncio.get_running_loop()))

    def stop(self) -> None:
        """Take no more work; what was submitted is still done."""
        self._stopped = True
        self._queue.put(None)

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            result: object = None
            failure: BaseException | None = None
            try:
                result = item.work()
            except BaseException as error:  # noqa: BLE001 - it belongs to who waits for it, whatever it is
                failure = error
            try:
                item.loop.call_soon_threadsafe(self._settle, item, result, failure)
            except RuntimeError:
                continue  # the loop has ended, and with it whoever waited
            finally:
                del item, result, failure  # they may hold buffers, and the next call may be long in coming

    def _settle(self, item: _Work, result: object, failure: BaseException | None) -> None:
        self._pending -= 1
        item.settle(result, failure)


class _OwnedRegister:
    """An own register whose contents are compared with the last own write before anything is written (SPEC 1.5)."""

    def __init__(self, file: DiskFile, header: Header, kind: RegisterKind, slot: int) -> None:
        self._register = OwnRegister(file, header, kind, slot)
        self._what = f"the {kind.name.lower()} register of node {slot} in store {file.path}"
        self._last = self._register.read()
        self._doubtful: deque[Register] = deque(maxlen=MAXIMUM_DOUBTS)  # failed writes that may be there all the same

    def verify(self) -> Register:
        """What the register holds now: the last own write, or a failed one. Raises `ForeignWrite`, `StoreFailed`."""
        found = self._register.read()
        if self._last is None:
            self._last = found  # what an earlier life of this node wrote became readable only now
        if self._last is None:
            text = f"{self._what} is unknown: no copy of it is valid; run `muster store check`"
            raise StoreFailed(text)
        if found is None:
            raise ForeignWrite(f"{self._what} is invalid, but this node wrote it: something else writes there")
        if found == self._last:
            return found
        if found not in self._doubtful:
            raise ForeignWrite(
                f"{self._what} holds {found.stamp}, this node wrote {self._last.stamp}; a second host runs under this"
                " node's name, or the store was put back to an older state; stop one of them"
            )
        while self._doubtful.popleft() != found:
            pass
        self._last = found
        return found

    def write(self, register: Register) -> None:
        """Replace the register. Raises `ForeignWrite`, `StoreFailed`."""
        found = self.verify()
        if register != found and _age(register) <= _age(found):
            text = f"{self._what} holds {found.stamp}; {register.stamp} is not newer: give it a higher sequence"
            raise StoreFailed(text)
        try:
            self._register.write(register)
        except StoreFailed:
            self._doubtful.append(register)
            raise
        self._last = register
        self._doubtful.clear()


def _age(register: Register) -> tuple[Term, int]:
    return register.stamp.term, register.stamp.sequence


class DiskStore:
    """One node's access to a store on a file or block device; implements `drivers.store.engine.Store`."""

    def __init__(self, path: str | os.PathLike[str], node: int) -> None:
        """Open the store for node id `node` (blocking, short). Raises `StoreUnusable`, `StoreFailed`."""
        self.path = os.fspath(path)
        self._writer, self.header = open_store(self.path, writable=True, buffer_bytes=LARGE_BUFFER_BYTES)
        try:
            self._reader, self._owned = self._prepare(node)
        except BaseException:
            self._writer.close()
            raise
        self._strip = RegisterReader(self._reader, self.header, tuple(RegisterKind))
        self._claims = RegisterReader(self._writer, self.header, (RegisterKind.CLAIM,))
        self._journal = OwnJournal(self._writer, self.header, node)
        self._write_lane, self._read_lane = _Lane("store-write"), _Lane("store-read")
        self._closed = False

    def _prepare(self, node: int) -> tuple[DiskFile, dict[RegisterKind, _OwnedRegister]]:
        header, writer = self.header, self._writer
        if not 0 <= node < header.slots:
            raise StoreFailed(f"store {self.path} has node slots 0 to {header.slots - 1}; there is no node {node}")
        if header.scope is Scope.SHARED:
            prove_direct_io(writer, header.probe_offset(node), header.sector_bytes)
        _take_area(self.path, header, node)
        kinds = (RegisterKind.CLAIM, RegisterKind.VIEW, RegisterKind.MARKS)
        owned = {kind: _OwnedRegister(writer, header, kind, node) for kind in kinds}
        reader, again = open_store(self.path, writable=False, buffer_bytes=max(BLOCK_BYTES, header.strip_bytes))
        if (again.cluster_id, again.store_id) != (header.cluster_id, header.store_id):
            reader.close()
            raise StoreFailed(f"store {self.path} was replaced while it was being opened; try again")
        return reader, owned

    @property
    def direct(self) -> bool:
        """Whether direct I/O is used."""
        return self._writer.direct

    def begin(self, effect: StoreEffect, answer: Callable[[StoreOutcome], None]) -> None:
        """Carry an effect out on the lane of its kind: reads of the strip wait for no write (`engine.Store`)."""

        def settle(result: StoreOutcome, failure: BaseException | None) -> None:
            if failure is not None and not isinstance(failure, StoreFailed):
                raise failure  # a defect, which the event loop's handler judges
            answer(result if failure is None else failure)

        lane = self._read_lane if isinstance(effect, ReadStrip) else self._write_lane
        try:
            lane.submit(self.path, lambda: self._perform(effect), settle)
        except StoreFailed as error:
            asyncio.get_running_loop().call_soon(answer, error)

    def _perform(self, effect: StoreEffect) -> StoreOutcome:
        match effect:
            case ReadStrip():
                return self._read_strip()
            case AppendFrame(mark=mark, number=number, frame=frame):
                self._append_frame(mark, number, frame)
                return self._read_claims()
            case WriteClaim(claim=claim):
                self._owned[RegisterKind.CLAIM].write(claim)
            case WriteView(view=view):
                self._owned[RegisterKind.VIEW].write(view)
            case WriteMarks(marks=marks):
                self._owned[RegisterKind.MARKS].write(marks)
            case WriteCheckpoint(mark=mark, checkpoint=checkpoint):
                self._write_checkpoint(mark, checkpoint)
            case ReadJournal(owner=owner, mark=mark):
                return self._read_journal(owner, mark)
        return None

    def _read_claims(self) -> tuple[Claim | None, ...]:
        """All claims, read now: what was written before is durable. None of them if they cannot be read."""
        try:
            return cast("tuple[Claim | None, ...]", self._claims.read()[0])
        except StoreFailed:
            return ()

    async def read_strip(self) -> Strip:
        """Every register of every slot, each read after this call began. Raises `StoreFailed`."""
        return await self._read_lane.run(self.path, self._read_strip)

    async def write_claim(self, claim: Claim) -> None:
        """Durably replace this node's claim register. Raises `ForeignWrite`, `StoreFailed`."""
        await self._write_lane.run(self.path, lambda: self._owned[RegisterKind.CLAIM].write(claim))

    async def write_view(self, view: View) -> None:
        """Durably replace this node's view register. Raises `ForeignWrite`, `StoreFailed`."""
        await self._write_lane.run(self.path, lambda: self._owned[RegisterKind.VIEW].write(view))

    async def write_marks(self, marks: Marks) -> None:
        """Durably replace this node's marks register. Raises `ForeignWrite`, `StoreFailed`."""
        await self._write_lane.run(self.path, lambda: self._owned[RegisterKind.MARKS].write(marks))

    async def read_journal(self, owner: int, mark: Mark) -> JournalImage:
        """The journal that `mark` of node `owner` points to. Raises `JournalUnreadable`, `StoreFailed`."""
        return await self._write_lane.run(self.path, lambda: self._read_journal(owner, mark))

    async def write_checkpoint(self, mark: Mark, checkpoint: bytes) -> None:
        """Begin journal `mark` in its half of this node's area. Raises `JournalFull`, `ForeignWrite`, `StoreFailed`."""
        await self._write_lane.run(self.path, lambda: self._write_checkpoint(mark, checkpoint))

    async def append_frame(self, mark: Mark, number: int, frame: bytes) -> None:
        """Durably append frame `number` to journal `mark`; the last number again rewrites that frame.

        Raises `ForeignWrite`, `JournalFull` (nothing written), `StoreFailed`.
        """
        await self._write_lane.run(self.path, lambda: self._append_frame(mark, number, frame))

    async def close(self) -> None:
        """Finish what was asked for and release files and threads; harmless when done before."""
        if self._closed:
            return
        self._closed = True
        await self._write_lane.run(self.path, self._writer.close)
        await self._read_lane.run(self.path, self._reader.close)
        self._write_lane.stop()
        self._read_lane.stop()

    def _read_strip(self) -> Strip:
        leases, claims, views, marks = self._strip.read()
        return Strip(
            cast("tuple[Lease | None, ...]", leases),
            cast("tuple[Claim | None, ...]", claims),
            cast("tuple[View | None, ...]", views),
            cast("tuple[Marks | None, ...]", marks),
            self.header.slots,
        )

    def _read_journal(self, owner: int, mark: Mark) -> JournalImage:
        for _ in range(REPEATS):  # its owner may be writing it, or may just have begun another one
            try:
                return scan_journal(self._writer, self.header, owner, mark).image
            except JournalUnreadable:
                time.sleep(_JOURNAL_PAUSE_S)
        return scan_journal(self._writer, self.header, owner, mark).image

    def _write_checkpoint(self, mark: Mark, checkpoint: bytes) -> None:
        claim = self._verified_claim()
        if mark.half not in range(HALVES) or (mark.half == claim.mark.half and claim.mark != NO_MARK):
            raise StoreFailed(
                f"store {self.path}: a checkpoint in half {mark.half} would destroy the journal that the own mark"
                f" {claim.mark} names (SPEC 2.6); use the other half"
            )
        self._journal.write_checkpoint(mark, claim.stamp.incarnation, checkpoint)

    def _append_frame(self, mark: Mark, number: int, frame: bytes) -> None:
        claim = self._verified_claim()
        self._journal.append(mark, number, claim.stamp.incarnation, frame)

    def _verified_claim(self) -> Claim:
        return cast("Claim", self._owned[RegisterKind.CLAIM].verify())


# --- creation -------------------------------------------------------------------------------------------------------


def plan_header(
    path: str,
    cluster_id: bytes,
    cluster_name: str,
    scope: Scope,
    *,
    slots: int = DEFAULT_SLOTS,
    store_bytes: int | None = None,
    version: int | None = None,
) -> Header:
    """The header for a new store at `path`, with the sector size that the device or file system there wants.

    Raises `InvalidGeometry` for impossible values and `StoreUnusable` if nothing can be created at `path`.
    """
    sector_bytes = _logical_block_bytes(path)
    return new_header(
        cluster_id, cluster_name, scope,
        sector_bytes=sector_bytes, slots=slots, store_bytes=store_bytes, version=version,
    )  # fmt: skip


def time_reads(path: str, most: int, within_s: float) -> list[float]:
    """Read the header's area again and again, as a renewal would: how long each took (ms). Raises `StoreFailed`."""
    found: list[float] = []
    file, _header = open_store(path, writable=False)
    try:
        end_s = time.monotonic() + within_s
        while not found or (len(found) < most and time.monotonic() < end_s):
            began_s = time.perf_counter()
            file.read_around_damage(0, HEADER_AREA_BYTES)
            found.append((time.perf_counter() - began_s) * 1000)
    finally:
        file.close()
    return found


def room_at(path: str) -> int:
    """How many bytes a store at `path` could take: of the device, or of the file system. Raises `StoreUnusable`."""
    try:
        if os.path.exists(path) and check_type(path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                return os.lseek(descriptor, 0, os.SEEK_END)
            finally:
                os.close(descriptor)
        free = os.statvfs(os.path.dirname(os.path.abspath(path)))
    except OSError as error:
        raise unusable(path, error) from error
    return free.f_bavail * free.f_frsize


def create_store(
    path: str,
    header: Header,
    database: bytes,
    *,
    overwrite: bool = False,
    mark: Mark = INITIAL_MARK,
    raised: Iterable[Lease | Claim] = (),
) -> None:
    """Create a store at `path` with `database` (an encoded `records.database.Database`) as its first checkpoint.

    The header is written first as incomplete and last as complete, so that an interrupted creation is recognised.
    `mark`: of that checkpoint; `raised`: registers that do not begin as blank ones (P11.8).
    A file that this call created is removed if it fails. Without `overwrite` anything but a missing, empty or blank
    target is refused. Raises `StoreUnusable`, `JournalFull` (the database does not fit), `StoreFailed`.
    """
    created = False
    try:
        if not os.path.lexists(path):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            created = True
        _reserve(path, header, overwrite=overwrite)
        with open_device(path, os.O_RDWR, header.sector_bytes, LARGE_BUFFER_BYTES) as file:
            _fill(file, header, database, mark, tuple(raised))
        _flush_folder(path)
    except OSError as error:
        if created:
            os.unlink(path)
        raise unusable(path, error) from error
    except BaseException:
        if created:
            os.unlink(path)
        raise


def _reserve(path: str, header: Header, *, overwrite: bool) -> None:
    """Make sure that the target may be used and has its size, with an incomplete header and zeros behind it."""
    device = check_type(path)
    descriptor = os.open(path, os.O_RDWR | (os.O_EXCL if device else 0))  # exclusive: refuses a mounted device
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if not overwrite and not _is_blank(descriptor, min(size, header.total_bytes)):
            text = f"store {path} is not blank, and creating a store destroys what it holds: use --force if it may go"
            raise StoreUnusable(Refusal.NOT_BLANK, text)
        if device and size < header.total_bytes:
            text = f"device {path} has {size} bytes, the store needs {header.total_bytes}: choose a smaller --size"
            raise StoreUnusable(Refusal.TOO_SMALL, text)
        if not device:
            _allocate(descriptor, size, header)
        for copy in range(COPIES):
            os.pwrite(descriptor, encode_header(header._replace(complete=False, sequence=0), copy), copy * BLOCK_BYTES)
        os.fsync(descriptor)
        # What is behind is not believed: a journal is read where a claim names it, and who begins one zeroes its half.
        _zero(descriptor, HEADER_AREA_BYTES, header.first_journals_end)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _allocate(descriptor: int, before: int, header: Header) -> None:
    """Give a file its size, with real blocks for the first bank: its nodes can never run out of space.

    The journal areas of further banks are holes, until a node takes its own (`_take_area`, P11.7).
    """
    try:
        os.posix_fallocate(descriptor, 0, header.first_journals_end)
    except OSError:
        os.ftruncate(descriptor, before)
        raise
    os.ftruncate(descriptor, header.first_journals_end)
    os.ftruncate(descriptor, header.total_bytes)


def _take_area(path: str, header: Header, node: int) -> None:
    """Give the journal area of a node of a further bank real blocks, where the store is a file (P11.7).

    Raises `StoreUnusable` where there are none.
    """
    if header.bank(node) == 0 or check_type(path):
        return
    start = header.region_offset(node, 0, 0)
    try:
        descriptor = os.open(path, os.O_RDWR)
        try:
            os.posix_fallocate(descriptor, start, header.region_offset(node + 1, 0, 0) - start)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unusable(path, error) from error


def _is_blank(descriptor: int, size: int) -> bool:
    for offset in range(0, size, LARGE_BUFFER_BYTES):
        part = os.pread(descriptor, LARGE_BUFFER_BYTES, offset)
        if part.count(0) != len(part):
            return False
    return True


def _zero(descriptor: int, start: int, end: int) -> None:
    """Write zeros; later writes into newly allocated blocks then cost no bookkeeping of the file system."""
    zeros = memoryview(bytes(LARGE_BUFFER_BYTES))
    offset = start
    while offset < end:
        offset += os.pwrite(descriptor, zeros[: end - offset], offset)


def _fill(file: DiskFile, header: Header, database: bytes, mark: Mark, raised: tuple[Lease | Claim, ...]) -> None:
    if header.scope is Scope.SHARED:
        prove_direct_io(file, header.probe_offset(0), header.sector_bytes)
    file.write(STRIP_OFFSET, _initial_strip(header))
    OwnJournal(file, header, mark.term.node).write_checkpoint(mark, 0, database)
    for register in raised:
        kind = RegisterKind.LEASE if isinstance(register, Lease) else RegisterKind.CLAIM
        OwnRegister(file, header, kind, register.stamp.owner).write(register)
    os.fsync(file.fileno())
    for copy in range(COPIES):
        file.write(copy * BLOCK_BYTES, encode_header(header._replace(complete=True, sequence=1), copy))


def _initial_strip(header: Header) -> bytes:
    strip = bytearray(header.strip_bytes)
    for kind in RegisterKind:
        for slot in range(header.slots):
            for copy in range(COPIES):
                start = header.register_offset(kind, slot, copy) - STRIP_OFFSET
                data = encode_copy(header, kind, slot, copy, _initial_register(kind, slot))
                strip[start : start + len(data)] = data
    if header.has_doors:
        start, doors = header.doors_offset - STRIP_OFFSET, header.shut_doors()
        strip[start : start + len(doors)] = doors
    return bytes(strip)


def _initial_register(kind: RegisterKind, slot: int) -> Register:
    if kind is RegisterKind.CLAIM and slot == INITIAL_MARK.term.node:
        return Claim(Stamp(slot, 0, INITIAL_MARK.term, 0), ClaimFlag.WITHDRAWN, INITIAL_MARK)
    return blank_register(kind, slot)


def _flush_folder(path: str) -> None:
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems have no folders to flush
            raise
    finally:
        os.close(descriptor)


def _logical_block_bytes(path: str) -> int:
    """The sector size to use at `path`: the device's logical block size, or what direct I/O on files there accepts."""
    try:
        if os.path.exists(path) and check_type(path):
            return _device_block_bytes(path)
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(os.path.abspath(path)), prefix=".muster-probe-") as probe:
            probe.write(bytes(HEADER_AREA_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
            for sector_bytes in SECTOR_SIZES:
                with open_device(probe.name, os.O_RDWR, sector_bytes) as file:
                    if file.direct:
                        return sector_bytes
    except OSError as error:
        raise unusable(path, error) from error
    return SECTOR_SIZES[0]


def _device_block_bytes(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        answer = fcntl.ioctl(descriptor, _BLKSSZGET, bytes(4))
    finally:
        os.close(descriptor)
    return max(SECTOR_SIZES[0], int.from_bytes(answer, "little"))
