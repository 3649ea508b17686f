"""Proof by trial that direct I/O on a store really goes to the device (SPEC 1.5, scope `shared`).

Some file systems accept O_DIRECT and still write through this host's page cache, where another host never sees it in
time and a reader may find a sector half old, half new. So a block is written with direct I/O, read back through a
second descriptor, and the kernel is asked whether the page cache now holds it.
"""

import ctypes
import mmap
import os

from muster.drivers.store.disk.file import DiskFile, Refusal, StoreUnusable
from muster.drivers.store.disk.geometry import BLOCK_BYTES
from muster.drivers.store.failures import StoreFailed

_TRIALS = 3  # a backup that reads the file at this very moment also fills the page cache
_libc = ctypes.CDLL(None, use_errno=True)


def prove_direct_io(file: DiskFile, offset: int, sector_bytes: int) -> None:
    """Test direct I/O with the block at `offset`, whose contents are lost. Raises `StoreUnusable`, `StoreFailed`."""
    if not file.direct:
        raise _refusal(file.path, f"refuses direct I/O in units of {sector_bytes} bytes")
    for _ in range(_TRIALS):
        _write_and_read_back(file, offset, sector_bytes)
        if not _is_cached(file, offset):
            break
    else:
        raise _refusal(file.path, "accepts direct I/O, but keeps what is written in this host's page cache")
    file.write(offset, bytes(BLOCK_BYTES))


def _write_and_read_back(file: DiskFile, offset: int, sector_bytes: int) -> None:
    pattern = os.urandom(BLOCK_BYTES)
    try:
        for start in range(0, BLOCK_BYTES, sector_bytes):
            file.write(offset + start, pattern[start : start + sector_bytes])
        with DiskFile(file.path, os.O_RDONLY, direct=True) as second:
            found = second.read(offset, BLOCK_BYTES)
    except OSError as error:
        raise _refusal(file.path, f"refuses a second direct reader ({error.strerror})") from error
    if found != pattern:
        text = (
            f"store {file.path}: a block written at offset {offset} reads back differently; the device loses or delays"
            " writes, or another daemon of this node is starting; check the disk, then try again"
        )
        raise StoreFailed(text)


def _is_cached(file: DiskFile, offset: int) -> bool:
    """Whether the page cache of this host holds the page at `offset` (mincore; touches nothing)."""
    page_bytes = mmap.PAGESIZE
    start = offset // page_bytes * page_bytes
    try:
        mapped = mmap.mmap(file.fileno(), page_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=start)
    except OSError as error:  # as of some file systems in user space
        raise _refusal(file.path, f"cannot be mapped, so the page cache cannot be asked ({error.strerror})") from error
    with mapped as page:
        anchor = ctypes.c_char.from_buffer(page)
        resident = ctypes.create_string_buffer(1)
        failed = _libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(page_bytes), resident)
        number = ctypes.get_errno()
        del anchor  # the mapping cannot be closed while something points into it
    if failed:
        raise StoreFailed(f"store {file.path}: the page cache cannot be asked ({os.strerror(number)})")
    return bool(resident.raw[0] & 1)


def _refusal(path: str, what: str) -> StoreUnusable:
    text = (
        f"store {path} {what}: a store of scope `shared` needs direct I/O that reaches the device (SPEC 1.5); use a"
        " block device, or scope `host` if all daemons run on this machine"
    )
    return StoreUnusable(Refusal.NO_DIRECT_IO, text)
