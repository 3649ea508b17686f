"""Loop devices: attached with direct I/O and autoclear, and what the kernel says of them (P13.3).

A device that is attached so is detached by the kernel when nobody has it open or mounted any more. It keeps the open
file that it was given, and with it the lock of that file (`flock`): so the lock is held for as long as it is attached,
whoever dies.
"""

import contextlib
import fcntl
import os
import struct
from pathlib import Path

from muster.core.filesystems.mounting import Attached

_CONTROL = "/dev/loop-control"
_SYS = Path("/sys/block")
_GET_FREE, _CONFIGURE, _CLEAR = 0x4C82, 0x4C0A, 0x4C01
_AUTOCLEAR, _DIRECT_IO = 4, 16
_TRIES = 20  # another program may take the free device first
_CONFIG = struct.Struct("=II 5Q 4I 64s 64s 32s 2Q 8Q")  # struct loop_config of <linux/loop.h>
_BUSY = 16


class NoLoop(Exception):
    """No loop device could be had; the message says why and what to do."""


def attach(path: str) -> tuple[str, int]:
    """Attach a file, whole; the device's path, and a descriptor that holds it. Raises `NoLoop`.

    Its lock is taken first: who has it has the file attached, here or on another machine that shares the folder.
    """
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise NoLoop(f"{path} is locked: it is attached elsewhere, or a program has it; see `lslocks`") from error
        return _attach(path, file)
    except OSError as error:
        raise NoLoop(f"{path} cannot be attached to a loop device: {error.strerror}; see `losetup -f`") from error
    finally:
        os.close(file)


def _attach(path: str, file: int) -> tuple[str, int]:
    config = _CONFIG.pack(
        file, 0, 0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR | _DIRECT_IO, path.encode()[-63:], b"", b"", *[0] * 10
    )
    for _ in range(_TRIES):
        with open(_CONTROL, "rb", buffering=0) as control:
            number = fcntl.ioctl(control, _GET_FREE)
        device = f"/dev/loop{number}"
        held = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(held, _CONFIGURE, config)
        except OSError as error:
            os.close(held)
            if error.errno != _BUSY:
                raise
        else:
            return device, held
    raise NoLoop(f"no loop device stays free for {path}: other programs take them; try again")


def attached(path: str) -> tuple[Attached, ...]:
    """Every loop device of this kernel that has the file, whoever has attached it; lowest first."""
    found = []
    for folder in sorted(_SYS.glob("loop*/loop"), key=lambda each: int(each.parent.name.removeprefix("loop"))):
        backing = _read(folder / "backing_file")
        if backing and _is_same(backing, path):
            plain = _read(folder / "offset") == "0" and _read(folder / "sizelimit") == "0"
            writable = _read(folder.parent / "ro") == "0"
            direct = _read(folder / "dio") == "1"
            found.append(Attached(f"/dev/{folder.parent.name}", direct, plain and writable))
    return tuple(found)


def number_of(device: str) -> str:
    """Its number as the kernel's tables of mounts have it, as `7:0`; empty where there is no such device."""
    return _read(_SYS / device.removeprefix("/dev/") / "dev")


def is_free(device: str) -> bool:
    """Whether it opens exclusively: nothing is mounted from it in any namespace, nobody else holds it so.

    Where it was the last to be open, the kernel detaches it thereby.
    """
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno != _BUSY
    return True


def detach(device: str) -> None:
    """Detach it, unless that has happened already."""
    with contextlib.suppress(OSError):
        held = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(held, _CLEAR)
        finally:
            os.close(held)


def _is_same(backing: str, path: str) -> bool:
    if backing in (path, f"{path} (deleted)"):
        return True
    with contextlib.suppress(OSError):
        return os.path.samefile(backing, path)
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text().rstrip("\n")
    except OSError:
        return ""
