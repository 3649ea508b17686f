"""One node's way to the store: a file system of a single file, which can fail as a disk or its cable can.

    python -m lab.faulty_store MOUNT_POINT BACKING_FILE < commands

Theory of operation. The kernel has no device-mapper here that could fail a disk on demand, and what is mounted
read-only by `mount` is so for everybody or not at all for files that are open already. So each node reaches the store
through a FUSE file of its own, served by this process, which passes every request on to the one file behind all of
them. The root of the file system is that very file (mounted over a file). The kernel is told to cache nothing, so
direct I/O works and every read is a request. The wire format is that of linux/fuse.h, protocol 7.31.

Requests wait in one queue, in the order in which they came, each until it is due. Commands, one a line on standard
input, set what happens to those that come from now on and to those that wait:

    pass              carried out at once; what has waited is carried out too, in its order, however late
    read-only         writes fail with EROFS
    errors PERCENT    so many requests of a hundred fail with EIO
    slow MS           each is carried out MS later
    hang              nothing is carried out and nothing is answered: its processes wait uninterruptibly
    drop              what waits fails with EIO and is not carried out; the mode stays
    refuse FROM TO    writes that touch these bytes fail with EIO, whatever the mode; for each such command
    accept            no bytes are refused any more

The end of standard input ends the process, and the kernel then fails whatever still waits.
"""

import contextlib
import ctypes
import errno
import os
import random
import select
import stat
import struct
import sys
import time
from collections import deque
from pathlib import Path

GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE = 3, 4, 14, 15, 16, 17, 18
FSYNC, FLUSH, INIT, INTERRUPT, DESTROY = 20, 25, 26, 36, 38
UNANSWERED = (2, 42, INTERRUPT)  # FORGET, BATCH_FORGET
CHANGING = (SETATTR, WRITE)
FAULTY = (READ, WRITE, FSYNC)  # what reaches the disk; the rest is answered from memory, as a kernel does
MAXIMUM_WRITE_BYTES = 128 * 1024
OPEN_DIRECT_IO = 1
WANTED_FLAGS = 1 << 0 | 1 << 5 | 1 << 15 | 1 << 22  # asynchronous reads, large writes, parallel direct I/O, page count
MOUNT_FLAGS = 2 | 4  # no set-user-id, no devices

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_INIT_IN = struct.Struct("<IIII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_ATTRIBUTES = struct.Struct("<QI4xQQQQQQIIIIIIIIII")
_OPENED = struct.Struct("<QI4x")
_TRANSFER = struct.Struct("<QQII16x")
_WRITTEN = struct.Struct("<I4x")
_STATFS = struct.Struct("<QQQQQIIII24x")


class Request:
    """One request of the kernel."""

    __slots__ = ("body", "due_s", "opcode", "unique")

    def __init__(self, data: bytes) -> None:
        _length, self.opcode, self.unique, *_rest = _IN.unpack_from(data)
        self.body = data[_IN.size :]
        self.due_s = 0.0


class FaultyStore:
    """Serves one mount until its standard input ends."""

    def __init__(self, mount_point: str, backing: str) -> None:
        self._backing = os.open(backing, os.O_RDWR | os.O_DSYNC)
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        os.set_blocking(self._device, False)
        self._waiting: deque[Request] = deque()
        self._mode, self._amount = "pass", 0
        self._refused: list[tuple[int, int]] = []  # from, to (exclusive)
        self._commands = b""
        self._random = random.Random()
        self._mount(mount_point)

    def _mount(self, mount_point: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._device},rootmode={stat.S_IFREG | 0o600:o},user_id=0,group_id=0,allow_other"
        path = os.fsencode(mount_point)
        if libc.mount(b"muster-lab", path, b"fuse.muster-lab", MOUNT_FLAGS, options.encode()):
            number = ctypes.get_errno()
            raise OSError(number, f"cannot mount FUSE at {mount_point}: {os.strerror(number)}")

    def serve(self) -> None:
        """Answer requests and obey commands until standard input ends or the file system is gone."""
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        poll.register(0, select.POLLIN)
        while True:
            for descriptor, _mask in poll.poll(self._pause_ms()):
                if descriptor == 0 and not self._obey():
                    return
                if descriptor == self._device and not self._take():
                    return
            self._carry_out_what_is_due()

    def _pause_ms(self) -> float | None:
        if not self._waiting or self._mode == "hang":
            return None
        return max(0.0, (self._waiting[0].due_s - time.monotonic()) * 1000 + 0.2)

    def _obey(self) -> bool:
        data = os.read(0, 4096)
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            mode, *amount = line.decode().split()
            if mode == "drop":
                while self._waiting:
                    self._answer(self._waiting.popleft(), -errno.EIO)
                continue
            if mode in ("refuse", "accept"):
                self._refused = [*self._refused, (int(amount[0]), int(amount[1]))] if mode == "refuse" else []
                continue
            self._mode, self._amount = mode, int(amount[0]) if amount else 0
            if mode != "slow":
                for request in self._waiting:
                    request.due_s = 0.0
        return bool(data)

    def _take(self) -> bool:
        try:
            data = os.read(self._device, MAXIMUM_WRITE_BYTES + 8192)
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOENT)  # ENODEV: unmounted
        request = Request(data)
        if request.opcode in UNANSWERED:
            return True
        if request.opcode not in FAULTY:
            self._carry_out(request)
            return True
        if self._mode == "slow":
            request.due_s = time.monotonic() + self._amount / 1000
        self._waiting.append(request)
        return True

    def _carry_out_what_is_due(self) -> None:
        while self._waiting and self._mode != "hang" and self._waiting[0].due_s <= time.monotonic():
            self._carry_out(self._waiting.popleft())

    def _carry_out(self, request: Request) -> None:
        failed = self._mode == "errors" and self._random.randrange(100) < self._amount
        if (request.opcode in FAULTY and failed) or self._refuses(request):
            self._answer(request, -errno.EIO)
        elif request.opcode in CHANGING and self._mode == "read-only":
            self._answer(request, -errno.EROFS)
        else:
            try:
                self._answer(request, 0, self._result(request))
            except OSError as error:
                self._answer(request, -(error.errno or errno.EIO))

    def _refuses(self, request: Request) -> bool:
        if request.opcode != WRITE or not self._refused:
            return False
        _handle, offset, length, _flags = _TRANSFER.unpack_from(request.body)
        return any(offset < to and start < offset + length for start, to in self._refused)

    def _answer(self, request: Request, error: int, result: bytes = b"") -> None:
        with contextlib.suppress(FileNotFoundError):  # nobody waits any more
            os.write(self._device, _OUT.pack(_OUT.size + len(result), error, request.unique) + result)

    def _result(self, request: Request) -> bytes:
        match request.opcode:
            case 26:
                return self._greeting(request.body)
            case 3 | 4:
                return self._attributes()
            case 14:
                return _OPENED.pack(1, OPEN_DIRECT_IO)
            case 15:
                _handle, offset, length, _flags = _TRANSFER.unpack_from(request.body)
                return os.pread(self._backing, length, offset)
            case 16:
                _handle, offset, length, _flags = _TRANSFER.unpack_from(request.body)
                data = memoryview(request.body)[_TRANSFER.size : _TRANSFER.size + length]
                return _WRITTEN.pack(os.pwrite(self._backing, data, offset))
            case 17:
                return _STATFS.pack(1 << 20, 1 << 19, 1 << 19, 1, 0, 4096, 255, 4096, 0)
            case 20:
                os.fdatasync(self._backing)
                return b""
            case 18 | 25 | 38:
                return b""
            case _:
                raise OSError(errno.ENOSYS, "not implemented")

    def _greeting(self, body: bytes) -> bytes:
        major, minor, read_ahead, flags = _INIT_IN.unpack_from(body)
        pages = MAXIMUM_WRITE_BYTES // 4096
        return _INIT_OUT.pack(
            major, min(minor, 31), read_ahead, flags & WANTED_FLAGS, 16, 12, MAXIMUM_WRITE_BYTES, 1, pages, 0, 0
        )

    def _attributes(self) -> bytes:
        found = os.fstat(self._backing)
        times = (int(found.st_atime), int(found.st_mtime), int(found.st_ctime))
        mode = stat.S_IFREG | 0o600
        return _ATTRIBUTES.pack(
            0, 0, 1, found.st_size, found.st_blocks, *times, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
        )  # fmt: skip


def main() -> None:
    """Mount, say `ready`, serve."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m lab.faulty_store MOUNT_POINT BACKING_FILE < commands")
    mount_point, backing = sys.argv[1:]
    Path(mount_point).touch(mode=0o600)
    served = FaultyStore(mount_point, backing)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    served.serve()


if __name__ == "__main__":
    main()
