"""A disk store's file or block device: opening it with clear refusals, and durable, aligned, blocking I/O (SPEC 1.2).

Direct I/O is used wherever it works: reads then come from the device and not from this host's page cache. A store of
scope `host` falls back to buffered I/O; one of scope `shared` is refused without direct I/O (SPEC 1.5). Every write is
durable when it returns (O_DSYNC). The guard process imports this module: few and small imports.
"""

import errno
import mmap
import os
import stat
from enum import IntEnum
from types import TracebackType
from typing import Self

from muster.drivers.store.disk.geometry import BLOCK_BYTES, COPIES, Header, InvalidGeometry, choose_header
from muster.drivers.store.disk.sectors import FORMATS, MAGIC, Problem
from muster.drivers.store.failures import StoreFailed
from muster.drivers.store.identity import Scope

HEADER_AREA_BYTES = COPIES * BLOCK_BYTES
SMALL_BUFFER_BYTES = 256 * 1024
MAXIMUM_LOST_BLOCKS = 16  # more than so many unreadable blocks in one read: the device is failing, not a block of it
UNREADABLE = b"\xff"  # stands for a byte that the device cannot read: valid nowhere, and not blank
_MEDIUM_ERRORS = (errno.EIO, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ)


class Refusal(IntEnum):
    """Why a file or device cannot be opened as a store."""

    MISSING = 1
    NOT_A_FILE = 2
    NOT_PERMITTED = 3
    READ_ONLY = 4
    TOO_SMALL = 5
    BLANK = 6
    FOREIGN = 7
    HALF_WRITTEN = 8
    DAMAGED = 9
    OTHER_FORMAT = 10
    NO_DIRECT_IO = 11
    IN_USE = 12
    NO_SPACE = 13
    UNREACHABLE = 14
    NOT_BLANK = 15


_PASSING = (Refusal.MISSING, Refusal.IN_USE, Refusal.UNREACHABLE)


class StoreUnusable(StoreFailed):
    """The file or device cannot be used as a store; `refusal` says why in a form that programs can compare."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal
        self.passes = refusal in _PASSING


_OPEN_ERRORS = {
    errno.ENOENT: (Refusal.MISSING, "does not exist: check the path, or create a store there with `muster init`"),
    errno.ENOTDIR: (Refusal.MISSING, "does not exist (a part of its path is no directory): check the path"),
    errno.ENXIO: (Refusal.MISSING, "is a device node without a device: check that the disk is attached"),
    errno.ENODEV: (Refusal.MISSING, "is a device node without a device: check that the disk is attached"),
    errno.EACCES: (Refusal.NOT_PERMITTED, "may not be opened by this user: run as its owner or as root"),
    errno.EPERM: (Refusal.NOT_PERMITTED, "may not be opened by this user: run as its owner or as root"),
    errno.EROFS: (Refusal.READ_ONLY, "is read-only: remount the file system or the device read-write"),
    errno.EISDIR: (Refusal.NOT_A_FILE, "is a directory: give a file or a block device"),
    errno.EBUSY: (Refusal.IN_USE, "is in use (mounted, or part of a volume or array): release it first"),
    errno.ENOSPC: (Refusal.NO_SPACE, "does not fit on its file system: free some space or choose a smaller size"),
    errno.EDQUOT: (Refusal.NO_SPACE, "exceeds the disk quota: raise the quota or choose a smaller size"),
    errno.EFBIG: (Refusal.NO_SPACE, "exceeds the largest file allowed there: choose a smaller size"),
}


def unusable(path: str, error: OSError) -> StoreUnusable:
    """The refusal that stands for an operating system error at opening or creating the store at `path`."""
    other = (Refusal.UNREACHABLE, f"cannot be opened ({os.strerror(error.errno or 0)}): check the disk and its links")
    refusal, text = _OPEN_ERRORS.get(error.errno or 0, other)
    return StoreUnusable(refusal, f"store {path} {text}")


def check_type(path: str) -> bool:
    """Whether `path` is a block device (True) or a regular file (False). Raises `StoreUnusable` if it is neither."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise unusable(path, error) from error
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        text = f"store {path} is neither a regular file nor a block device: give one of these"
        raise StoreUnusable(Refusal.NOT_A_FILE, text)
    return stat.S_ISBLK(mode)


class DiskFile:
    """Blocking I/O on an open store, for one thread at a time. All offsets and lengths are whole sectors, in bytes."""

    __slots__ = ("_buffer", "_descriptor", "_view", "direct", "path", "size_bytes")

    def __init__(self, path: str, flags: int, *, direct: bool, buffer_bytes: int = SMALL_BUFFER_BYTES) -> None:
        """Open `path`. Raises `OSError`; EINVAL where `direct` is not supported."""
        self.path, self.direct = path, direct
        self._descriptor = os.open(path, flags | os.O_DSYNC | (os.O_DIRECT if direct else 0))
        self._buffer = mmap.mmap(-1, buffer_bytes)  # page-aligned, as direct I/O wants it
        self._view = memoryview(self._buffer)
        self.size_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor, for calls that this class does not offer."""
        return self._descriptor

    def close(self) -> None:
        """Release descriptor and buffer; harmless when done before."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            try:
                self._view.release()
                self._buffer.close()
            except BufferError:
                pass  # the traceback of a failed call still points into it: it goes with the traceback

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes, all of them. Raises `StoreFailed`."""
        try:
            return self._read(offset, length)
        except OSError as error:
            raise self._failed("read", offset, length, error) from error

    def read_around_damage(self, offset: int, length: int) -> bytes:
        """Like `read`, but blocks that the medium cannot give are filled with `UNREADABLE` bytes.

        So one bad block costs one copy of what it holds, and the other copy can still be used. Raises `StoreFailed`
        if the device is unreachable, or if nothing or too little of the range can be read.
        """
        try:
            return self._read(offset, length)
        except OSError as error:
            if error.errno not in _MEDIUM_ERRORS:
                raise self._failed("read", offset, length, error) from error
            return self._read_blocks(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Write `data`, durable on return. After `StoreFailed` any part of it may have been written."""
        try:
            for start in range(0, len(data), len(self._buffer)):
                part = data[start : start + len(self._buffer)]
                self._buffer[: len(part)] = part
                self._write_buffer(offset + start, len(part))
        except OSError as error:
            raise self._failed("write", offset, len(data), error) from error

    def _read(self, offset: int, length: int) -> bytes:
        parts = []
        for start in range(0, length, len(self._buffer)):
            wanted = min(len(self._buffer), length - start)
            got = os.preadv(self._descriptor, [self._view[:wanted]], offset + start)
            if got != wanted:
                raise OSError(errno.ENXIO, f"it ends at offset {offset + start + got}")
            parts.append(self._buffer[:wanted])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_blocks(self, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        lost = 0
        for start in range(0, length, BLOCK_BYTES):
            wanted = min(BLOCK_BYTES, length - start)
            try:
                parts.append(self._read(offset + start, wanted))
            except OSError as error:
                lost += 1
                if error.errno not in _MEDIUM_ERRORS or lost > MAXIMUM_LOST_BLOCKS or wanted == length:
                    raise self._failed("read", offset + start, wanted, error) from error
                parts.append(UNREADABLE * wanted)
        if lost == len(parts):
            raise self._failed("read", offset, length, OSError(errno.EIO, os.strerror(errno.EIO)))
        return b"".join(parts)

    def _write_buffer(self, offset: int, length: int) -> None:
        done = 0
        while done < length:  # a short write is rare, and always advances or raises
            done += os.pwritev(self._descriptor, [self._view[done:length]], offset + done)

    def _failed(self, action: str, offset: int, length: int, error: OSError) -> StoreFailed:
        what = f"store {self.path}: cannot {action} {length} bytes at offset {offset} ({error.strerror})"
        failed = StoreFailed(f"{what}; check the disk and its links, then `muster store check {self.path}`")
        failed.passes = True
        return failed


def open_device(path: str, flags: int, alignment_bytes: int, buffer_bytes: int = SMALL_BUFFER_BYTES) -> DiskFile:
    """Open with direct I/O if a read of `alignment_bytes` works so, buffered otherwise. Raises `OSError`."""
    try:
        file = DiskFile(path, flags, direct=True, buffer_bytes=buffer_bytes)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    else:
        if file.size_bytes < 2 * alignment_bytes or _reads_directly(file, alignment_bytes):
            return file
        file.close()
    return DiskFile(path, flags, direct=False, buffer_bytes=buffer_bytes)


def _reads_directly(file: DiskFile, alignment_bytes: int) -> bool:
    """Whether direct reads at this alignment are possible; a read that fails for another reason does not tell."""
    try:
        file.read(alignment_bytes, alignment_bytes)
    except StoreFailed as error:
        return not (isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EINVAL)
    return True


def open_store(
    path: str, *, writable: bool, buffer_bytes: int = SMALL_BUFFER_BYTES, interrupted: bool = False
) -> tuple[DiskFile, Header]:
    """Open an existing store, its header checked. The caller closes the file. Raises `StoreUnusable`, `StoreFailed`.

    `interrupted`: also one whose adoption was interrupted, to finish it.
    """
    check_type(path)
    flags = os.O_RDWR if writable else os.O_RDONLY
    try:
        file = open_device(path, flags, BLOCK_BYTES, buffer_bytes)
    except OSError as error:
        raise unusable(path, error) from error
    try:
        header = _read_header(file, interrupted=interrupted)
        if file.direct and not _reads_directly(file, header.sector_bytes):
            file.close()
            file = DiskFile(path, flags, direct=False, buffer_bytes=buffer_bytes)
        _check_access(file, header)
    except BaseException:
        file.close()
        raise
    return file, header


def open_header(path: str, *, interrupted: bool = False) -> Header:
    """The header of the store at `path`. Raises as `open_store`: what is wrong, what to do."""
    file, header = open_store(path, writable=False, interrupted=interrupted)
    file.close()
    return header


def _read_header(file: DiskFile, *, interrupted: bool) -> Header:
    path = file.path
    if file.size_bytes < HEADER_AREA_BYTES:
        text = f"store {path} has {file.size_bytes} bytes, too small for a store: check the path, or run `muster init`"
        raise StoreUnusable(Refusal.TOO_SMALL, text)
    start = file.read_around_damage(0, HEADER_AREA_BYTES)
    try:
        choice = choose_header(start)
    except InvalidGeometry as error:
        text = f"store {path}: {error}; it was written by another release or is damaged: restore it from a backup"
        raise StoreUnusable(Refusal.DAMAGED, text) from error
    header = choice.header
    if header is None:
        raise _no_header(path, choice.problem or Problem.FOREIGN, start)
    if not header.complete and not (interrupted and header.adopted_id):
        begun = "`muster store adopt` was interrupted; run it again"
        if not header.adopted_id:
            begun = "`muster init` was interrupted; run it again with --force"
        text = f"store {path} is half written: its {begun}"
        raise StoreUnusable(Refusal.HALF_WRITTEN, text)
    if not header.lowest_format <= header.version <= header.highest_format:
        text = (
            f"store {path} may be used with formats {header.lowest_format} to {header.highest_format}; this release"
            f" would use format {header.version}: install a release of Muster that knows one of them"
        )
        raise StoreUnusable(Refusal.OTHER_FORMAT, text)
    if file.size_bytes < header.total_bytes:
        text = (
            f"store {path} has {file.size_bytes} bytes, its header says {header.total_bytes}: it was cut off;"
            " restore it from a backup"
        )
        raise StoreUnusable(Refusal.TOO_SMALL, text)
    return header


def _no_header(path: str, problem: Problem, start: bytes) -> StoreUnusable:
    if problem is Problem.BLANK:
        text = f"store {path} is blank: create a store there with `muster init`"
        return StoreUnusable(Refusal.BLANK, text)
    if problem is Problem.NEWER_FORMAT:
        version = int.from_bytes(start[len(MAGIC) : len(MAGIC) + 2], "little")
        text = (
            f"store {path} has disk format {version}; this release knows format {FORMATS[-1]}: install a newer"
            " release of Muster"
        )
        return StoreUnusable(Refusal.OTHER_FORMAT, text)
    if problem is Problem.FOREIGN:
        text = (
            f"store {path} holds something else than a Muster store: check the path (`muster init` says what is there)"
        )
        return StoreUnusable(Refusal.FOREIGN, text)
    text = f"store {path}: both copies of its header are damaged (copy A is {problem}); restore it from a backup"
    return StoreUnusable(Refusal.DAMAGED, text)


def _check_access(file: DiskFile, header: Header) -> None:
    if header.scope is Scope.SHARED and not file.direct:
        text = (
            f"store {file.path} has scope `shared`, and direct I/O in units of {header.sector_bytes} bytes does not"
            " work there; use a block device or a file system with direct I/O (buffered reads tear, SPEC 1.5)"
        )
        raise StoreUnusable(Refusal.NO_DIRECT_IO, text)
