"""A watchdog device of the kernel, by ioctl (linux/watchdog.h; P7.34). Part of the guard's image.

What the kernel does, and what follows:

* to open a device starts it, with whatever timeout it had; it can be opened once;
* to set its timeout feeds it; to write to it feeds it;
* to close it stops it only after a `V` was written (magic close). Without that, and with `nowayout`, the last close
  *feeds* it once more and leaves it running: a feeder that is killed would feed late, if nobody else held the device;
* a driver without magic close stops the device whenever its process dies: it guards against nothing.
"""

import contextlib
import errno
import fcntl
import os
import struct
from typing import NamedTuple

_INFO = struct.Struct("=II32s")
_INTEGER = struct.Struct("=i")
_READ, _WRITE = 2, 1
_SET_TIMEOUT, _MAGIC_CLOSE, _ALARM_ONLY, _KEEP_ALIVE = 0x80, 0x100, 0x400, 0x8000
_OTHER_NUMBERS = ("ppc", "mips", "sparc", "alpha")  # kinds of processor whose requests have other directions
_CLASS = "/sys/class/watchdog"
_LEGACY = (10, 130)  # /dev/watchdog: the first of all watchdogs by another name
MAXIMUM_SHOWN = 3  # processes


class WatchdogRefused(Exception):
    """The device cannot stand behind a lease; the message names it, what is wrong, and what to do."""


class Support(NamedTuple):
    """What a device says of itself."""

    options: int
    firmware: int
    identity: str

    def problem(self) -> str:
        """Why it is of no use, in words; empty where it is."""
        if self.options & _ALARM_ONLY:
            return "it raises an alarm and resets nothing"
        if not self.options & _MAGIC_CLOSE:
            return "it has no magic close: it would stop whenever the process that feeds it dies"
        if not self.options & _SET_TIMEOUT:
            return "its timeout cannot be set"
        if not self.options & _KEEP_ALIVE:
            return "it cannot be fed by ioctl"
        return ""


class Found(NamedTuple):
    """A watchdog of this machine, as sysfs shows it; nothing was opened for that."""

    path: str
    identity: str  # empty: this kernel does not show it
    nowayout: bool
    state: str  # `active`: somebody has it, or it cannot be stopped


def _request(direction: int, number: int, size: int) -> int:
    if os.uname().machine.startswith(_OTHER_NUMBERS):
        turned = {_READ: 2, _WRITE: 4, _READ | _WRITE: 6}[direction]
        return turned << 29 | size << 16 | ord("W") << 8 | number
    return direction << 30 | size << 16 | ord("W") << 8 | number


class WatchdogDevice:
    """An open device: it runs. Every method may raise `OSError`."""

    __slots__ = ("descriptor", "path")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def support(self) -> Support:
        """What it can do, and its name."""
        data = fcntl.ioctl(self.descriptor, _request(_READ, 0, _INFO.size), bytes(_INFO.size))
        options, firmware, identity = _INFO.unpack(data)
        return Support(options, firmware, identity.split(b"\0", 1)[0].decode(errors="replace").strip())

    def set_timeout(self, seconds: int) -> int:
        """Set it, which feeds it too; what it is then, as it is read back (s)."""
        fcntl.ioctl(self.descriptor, _request(_READ | _WRITE, 6, _INTEGER.size), _INTEGER.pack(seconds))
        return self._number(7)

    def time_left(self) -> int | None:
        """Until it resets the machine (s); None where the driver does not tell."""
        try:
            return self._number(10)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
                return None
            raise

    def feed(self) -> None:
        """Begin its time anew."""
        fcntl.ioctl(self.descriptor, _request(_READ, 5, _INTEGER.size), bytes(_INTEGER.size))

    def stop(self) -> None:
        """Magic close: it stops. It is closed whatever happens."""
        try:
            os.write(self.descriptor, b"V")
        finally:
            os.close(self.descriptor)

    def _number(self, number: int) -> int:
        data = fcntl.ioctl(self.descriptor, _request(_READ, number, _INTEGER.size), bytes(_INTEGER.size))
        found: int = _INTEGER.unpack(data)[0]
        return found


def open_device(path: str) -> WatchdogDevice:
    """Open it, which starts it. Raises `WatchdogRefused`."""
    try:
        return WatchdogDevice(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise WatchdogRefused(_why_not(path, error)) from error


def _why_not(path: str, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return f"watchdog {path}: {_words_of(holders(path))} has it; {_advice(holders(path))}"
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        text = f"watchdog {path}: there is no such device"
        return f"{text}; load its driver (modprobe), or set another: muster config set watchdog"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"watchdog {path}: this user may not open it; start the node as the superuser"
    return f"watchdog {path}: it cannot be opened: {error.strerror}; set another: muster config set watchdog"


def _words_of(found: list[tuple[int, str]]) -> str:
    if not found:
        return "another program"
    return ", ".join(f"{name} (process {pid})" for pid, name in found[:MAXIMUM_SHOWN])


def _advice(found: list[tuple[int, str]]) -> str:
    if any(pid == 1 for pid, _name in found):
        return "set RuntimeWatchdogSec=off in /etc/systemd/system.conf, then: systemctl daemon-reexec"
    return "end that program, or set another watchdog: muster config set watchdog"


def holders(path: str) -> list[tuple[int, str]]:
    """The processes that have this device open, as far as this user can see."""
    try:
        wanted = os.stat(path).st_rdev
    except OSError:
        return []
    same = {wanted, *_aliases(wanted)}
    processes = (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())
    return sorted((pid, _name_of(pid)) for pid in processes if _has_open(pid, same))


def _aliases(device: int) -> set[int]:
    """The legacy name and the first watchdog are one device."""
    pair = set()
    for path in ("/dev/watchdog", "/dev/watchdog0"):
        with contextlib.suppress(OSError):
            pair.add(os.stat(path).st_rdev)
    return pair if device in pair else set()


def _has_open(pid: int, devices: set[int]) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(folder):
            if os.readlink(f"{folder}/{name}").startswith("/dev/") and os.stat(f"{folder}/{name}").st_rdev in devices:
                return True
    except OSError:
        return False
    return False


def _name_of(pid: int) -> str:
    return _read(f"/proc/{pid}/comm") or "a program"


def watchdogs(folder: str = _CLASS) -> list[Found]:
    """The watchdogs of this machine, in their order."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    numbers = sorted(int(name[8:]) for name in names if name.startswith("watchdog") and name[8:].isdecimal())
    return [_found(f"{folder}/watchdog{number}", f"/dev/watchdog{number}") for number in numbers]


def found_at(path: str, folder: str = _CLASS) -> Found:
    """What sysfs says of the device at a path; where it says nothing, nothing is known."""
    try:
        device = os.stat(path).st_rdev
    except OSError:
        return Found(path, "", False, "")
    pair = os.major(device), os.minor(device)
    where = f"{folder}/watchdog0" if pair == _LEGACY else f"/sys/dev/char/{pair[0]}:{pair[1]}"
    return _found(where, path)


def _found(where: str, path: str) -> Found:
    return Found(path, _read(f"{where}/identity"), _read(f"{where}/nowayout") == "1", _read(f"{where}/state"))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


_VIRTUAL = ("QEMU", "VMware", "VirtualBox", "Xen", "Amazon EC2", "Google Compute", "KVM")


def is_virtual() -> bool:
    """Whether this kernel runs in a virtual machine, whose clock and watchdog stop with it (P7.36)."""
    if os.path.exists("/sys/hypervisor/type") or os.path.exists("/proc/device-tree/hypervisor"):
        return True
    vendor, product = _read("/sys/class/dmi/id/sys_vendor"), _read("/sys/class/dmi/id/product_name")
    if any(name in f"{vendor} {product}" for name in _VIRTUAL):
        return True
    return any(line.startswith("flags") and " hypervisor" in line for line in _cpu_lines())


def _cpu_lines() -> list[str]:
    return _read("/proc/cpuinfo").splitlines()
