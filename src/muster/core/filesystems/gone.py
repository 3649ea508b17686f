"""From a mounted file system to one that is gone from its machine, by a ladder that ends only ours (P13.6-P13.8).

As in `mounting.py`: look, do one thing, look again. Standard library only. Times are milliseconds.
"""

from typing import NamedTuple

BUSY_MS = 5000  # in which what is busy without anybody seen, or kept open elsewhere, is tried again
KILLED_MS = 5000  # in which a process is gone after its SIGKILL, if the kernel does not hold it


class Holder(NamedTuple):
    """A process that keeps a file system busy."""

    pid: int
    name: str
    is_ours: bool  # this node has started it


class Left(NamedTuple):
    """What one look has found."""

    devices: tuple[str, ...]  # loop devices that have the volume's file
    mount_points: tuple[str, ...]  # of these that this program sees, the newest last
    is_free: bool  # the devices open exclusively
    holders: tuple[Holder, ...]  # who keeps it busy, as far as that was looked for
    elsewhere: tuple[str, ...] = ()  # processes in whose namespace it is mounted still, in words
    claim_open: bool = False  # the claim is this owner's, and open


class Unmounting(NamedTuple):
    """What this run has done, and when it began to wait for what follows from it."""

    is_busy: bool = False  # the last unmount said so
    termed_ms: int | None = None
    killed_ms: int | None = None
    waiting_ms: int | None = None  # since when nothing but waiting was possible


class Unmount(NamedTuple):
    """Unmount this, not lazily; note whether it was busy."""

    mount_point: str


class End(NamedTuple):
    """Send a signal to these processes, by handles."""

    processes: tuple[int, ...]
    kills: bool


class Wait(NamedTuple):
    """Look again, after a moment."""


class Detach(NamedTuple):
    """Detach the loop device."""

    device: str


class CloseClaim(NamedTuple):
    """Write that the volume is given back."""


class Gone(NamedTuple):
    """It is gone."""


class Fail(NamedTuple):
    """It cannot be unmounted."""

    why: str


Deed = Unmount | End | Wait | Detach | CloseClaim | Gone | Fail


def next_deed(name: str, seen: Left, progress: Unmounting, grace_ms: int, now_ms: int) -> Deed:
    """What comes next. `grace_ms`: between SIGTERM and SIGKILL."""
    if seen.mount_points:
        return _unmount(name, seen, progress, grace_ms, now_ms) if progress.is_busy else Unmount(seen.mount_points[-1])
    if seen.devices:
        if seen.is_free:
            return Detach(seen.devices[0])
        who = ", ".join(seen.elsewhere) or "nobody that can be seen"
        return _wait_or(f"{name} is unmounted here, but {seen.devices[0]} is open still, by {who}", progress, now_ms)
    return CloseClaim() if seen.claim_open else Gone()


def _unmount(name: str, seen: Left, progress: Unmounting, grace_ms: int, now_ms: int) -> Deed:
    point = seen.mount_points[-1]
    strangers = [f"{each.name} ({each.pid})" for each in seen.holders if not each.is_ours]
    ours = tuple(each.pid for each in seen.holders if each.is_ours)
    if ours:
        return _end(name, ours, progress, grace_ms, now_ms)
    if strangers:
        what = f"{name} is busy at {point}: {', '.join(strangers)}, not started by Muster; end them, and stop it again"
        return _wait_or(what, progress, now_ms)
    if progress.waiting_ms is not None and now_ms - progress.waiting_ms >= BUSY_MS:
        return Fail(f"{name} is busy at {point}, and nobody is seen to use it: see `lsof`, nested mounts, NFS exports")
    return Unmount(point)


def _end(name: str, ours: tuple[int, ...], progress: Unmounting, grace_ms: int, now_ms: int) -> Deed:
    if progress.termed_ms is None:
        return End(ours, kills=False)
    if progress.killed_ms is None:
        return End(ours, kills=True) if now_ms - progress.termed_ms >= grace_ms else Wait()
    if now_ms - progress.killed_ms >= KILLED_MS:
        held = ", ".join(map(str, ours))
        return Fail(f"{name} is busy: the kernel holds process {held} after SIGKILL, as one does that waits for a disk")
    return Wait()


def _wait_or(what: str, progress: Unmounting, now_ms: int) -> Deed:
    since = progress.waiting_ms
    return Fail(what) if since is not None and now_ms - since >= BUSY_MS else Wait()
