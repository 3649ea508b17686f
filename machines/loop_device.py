"""A loop device over a file, which goes when the last process that has it open has gone.

So whatever ends the laboratory, none stays: the kernel clears a device with this flag by itself.
"""

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path

_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_FLUSH_BUFFERS = 0x1261  # BLKFLSBUF
_AUTOCLEAR, _DIRECT_IO = 4, 16
_CONFIG = struct.Struct("=II40x12xI64x64x32x16x64x")  # linux/loop.h, struct loop_config
_SECTOR_BYTES = 512
_TRIES = 20  # others may take the device that was free a moment ago


class LoopDevice:
    """An attached device, open here until `close`."""

    def __init__(self, file: Path) -> None:
        """Raises `OSError`."""
        self.path, self._device = _attach(file)

    def forget(self) -> None:
        """The file has been changed from behind: what was cached of it is not believed any more."""
        fcntl.ioctl(self._device, _FLUSH_BUFFERS)

    def close(self) -> None:
        """Let go of it; it ends with its last user."""
        os.close(self._device)


def _attach(file: Path) -> tuple[Path, int]:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _GET_FREE)
            path = Path(f"/dev/loop{number}")
            with contextlib.suppress(FileExistsError):
                os.mknod(path, 0o60600, os.makedev(7, number))
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(backing, _SECTOR_BYTES, _AUTOCLEAR | _DIRECT_IO))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise OSError(error.errno, f"no loop device over {file}: {error.strerror}") from error
            else:
                return path, device
    finally:
        os.close(backing)
        os.close(control)
    raise OSError(errno.EBUSY, f"no loop device over {file}: others take each that is free")
