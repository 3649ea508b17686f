"""Who keeps a file system busy, and who of them this node has started (P13.8)."""

import contextlib
import os
import signal

from muster.core.filesystems.gone import Holder

_OURS = ("MUSTER_CLUSTER", "MUSTER_NODE")


def holders(mount_point: str, device_number: str) -> tuple[Holder, ...]:
    """The processes that this one sees with a file, folder or program there; without itself.

    `device_number`: of what is mounted, as `7:0`. What is kept busy otherwise (a mount inside, an export) has no
    process.
    """
    found = (pid for pid in _processes() if pid != os.getpid() and _holds(pid, mount_point, device_number))
    return tuple(Holder(pid, _text(pid, "comm") or "?", _is_ours(pid)) for pid in found)


def end(pid: int, *, kills: bool) -> None:
    """Send SIGTERM or SIGKILL, if it is still a process of this node: by a handle that is taken before that is read."""
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if _is_ours(pid):
                signal.pidfd_send_signal(handle, signal.SIGKILL if kills else signal.SIGTERM)
        finally:
            os.close(handle)


def elsewhere(device_number: str) -> tuple[str, ...]:
    """The processes in whose mount namespace the device is mounted still, one for each namespace, in words."""
    found: dict[str, str] = {}
    for pid in _processes():
        with contextlib.suppress(OSError):
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in found and _mounts(_text(pid, "mountinfo"), device_number):
                found[namespace] = f"{_text(pid, 'comm') or '?'} ({pid}, {namespace})"
    return tuple(found.values())


def _mounts(table: str, device_number: str) -> bool:
    return any(line.split(" ", 3)[2:3] == [device_number] for line in table.splitlines())


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _holds(pid: int, mount_point: str, device_number: str) -> bool:
    below = mount_point.rstrip("/") + "/"
    links = [f"/proc/{pid}/{name}" for name in ("cwd", "root", "exe")]
    with contextlib.suppress(OSError):
        links += [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
    for link in links:
        with contextlib.suppress(OSError):
            if f"{os.readlink(link)}/".startswith(below):
                return True
    return any(_device_of(line) == device_number for line in _text(pid, "maps").splitlines())


def _device_of(line: str) -> str:
    """Of a mapping, in the form of the table of mounts."""
    major, _, minor = (line.split() + [""] * 4)[3].partition(":")
    with contextlib.suppress(ValueError):
        return f"{int(major, 16)}:{int(minor, 16)}"
    return ""


def _is_ours(pid: int) -> bool:
    told = dict(pair.partition("=")[::2] for pair in _text(pid, "environ").split("\0"))
    return all(name in os.environ and told.get(name) == os.environ[name] for name in _OURS)


def _text(pid: int, name: str) -> str:
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""
