"""From whatever is found to a mounted file system: look, do one thing, look again (P13.3).

Whoever runs this looks at the machine (`Seen`), does what `next_deed` says, notes it (`Progress`), and looks again.
Standard library only.
"""

from typing import NamedTuple

from muster.core.filesystems.checking import Check, Policy, check_due, check_of
from muster.core.volumes.claim import Verdict


class Root(NamedTuple):
    """Owner and mode of the root of a file system, as numbers."""

    user: int
    group: int
    mode: int


class Wanted(NamedTuple):
    """A failover file system as it is defined, with the volume that it is on."""

    name: str
    volume: str
    file: str  # of the volume
    size_bytes: int
    kind: str  # ext4, xfs
    mount_point: str
    options: tuple[str, ...] = ()
    fsck: Policy = Policy.JOURNAL
    root: Root | None = None  # None: it stays as it is


class Attached(NamedTuple):
    """A loop device that has the volume's file."""

    device: str
    direct_io: bool
    whole: bool  # neither an offset nor a limit nor read-only


class Mounted(NamedTuple):
    """One mount of such a device that this program sees."""

    device: str
    mount_point: str
    read_only: bool


class Seen(NamedTuple):
    """What one look at the machine has found."""

    file: str  # `file`, `missing`, `link`, or what else it is
    size_bytes: int
    attached: tuple[Attached, ...]
    mounted: tuple[Mounted, ...]
    point: str  # the mount point: `folder`, `missing`, `link`, or what else it is
    entries: int  # in the mount point, where nothing is mounted
    other_mount: str = ""  # what is mounted there and is not of this volume
    content: str = ""  # what is on the attached device, by blkid; `nothing` where it found nothing
    root: Root | None = None  # of the mounted file system


class Progress(NamedTuple):
    """What this run has done: all that is not looked at again."""

    verdict: Verdict | None = None  # of the claim, which is this run's since then
    held: str = ""  # the loop device that it has attached and holds open
    checked: bool = False
    settled: bool = False  # the claim says that no check is owed


class TakeClaim(NamedTuple):
    """Judge and replace the claim."""


class Attach(NamedTuple):
    """Attach the file to a free loop device, with direct I/O and autoclear, and hold it open."""


class CheckIt(NamedTuple):
    """Run this check on the device."""

    check: Check
    device: str


class Mount(NamedTuple):
    """Mount the device."""

    device: str


class Settle(NamedTuple):
    """Write into the claim that no check is owed."""


class SetRoot(NamedTuple):
    """Give the root its owner and mode."""


class Done(NamedTuple):
    """It is mounted as it is defined."""


class Refuse(NamedTuple):
    """Something is in the way."""

    why: str


Deed = TakeClaim | Attach | CheckIt | Mount | Settle | SetRoot | Done | Refuse


def next_deed(wanted: Wanted, seen: Seen, progress: Progress) -> Deed:
    """What comes next."""
    if problem := _file_problem(wanted, seen):
        return Refuse(problem)
    if seen.mounted:
        return _mounted(wanted, seen, progress)
    if problem := _point_problem(wanted, seen):
        return Refuse(problem)
    strange = [each.device for each in seen.attached if each.device != progress.held]
    if strange:
        return Refuse(f"{wanted.file} is attached to {strange[0]} already, not by this start: see `losetup -l`")
    if progress.verdict is None:
        return TakeClaim()
    if progress.verdict.refused:
        return Refuse(progress.verdict.refused)
    if not seen.attached:
        return Attach()
    return _attached(wanted, seen, progress, seen.attached[0])


def _attached(wanted: Wanted, seen: Seen, progress: Progress, own: Attached) -> Deed:
    if not own.direct_io:
        return Refuse(
            f"direct I/O is not in force on {own.device}: what holds {wanted.file} does not allow it; "
            "put the pool elsewhere"
        )
    if not own.whole:
        return Refuse(f"{own.device} does not show the whole of {wanted.file} for writing")
    if seen.content != wanted.kind:
        found = seen.content or "nothing that can be read"
        make = f"; make one: muster filesystem create {wanted.name}" if found == "nothing" else ""
        return Refuse(f"on volume {wanted.volume} is {found}, not {wanted.kind}: it is left as it is{make}")
    assert progress.verdict is not None
    check = check_of(wanted.kind, wanted.fsck)
    if not progress.checked and check.words and check_due(wanted.fsck, progress.verdict):
        return CheckIt(check, own.device)
    return Mount(own.device)


def _mounted(wanted: Wanted, seen: Seen, progress: Progress) -> Deed:
    elsewhere = [each.mount_point for each in seen.mounted if each.mount_point != wanted.mount_point]
    if elsewhere:
        return Refuse(f"volume {wanted.volume} is mounted at {elsewhere[0]}: unmount it there")
    if len(seen.mounted) > 1 or seen.other_mount:
        return Refuse(f"something else is mounted over {wanted.mount_point}: unmount it")
    if not all(each.direct_io and each.whole for each in seen.attached) or len(seen.attached) != 1:
        return Refuse(f"volume {wanted.volume} is mounted from a loop device without direct I/O: unmount it")
    if progress.verdict is None:
        return TakeClaim()
    if progress.verdict.refused:
        return Refuse(progress.verdict.refused)
    if seen.mounted[0].read_only and "ro" not in wanted.options:
        return Refuse(f"{wanted.mount_point} is mounted read-only: its kernel has seen errors; see `dmesg`")
    if not progress.settled:
        return Settle()
    if wanted.root is not None and seen.root != wanted.root and "ro" not in wanted.options:
        return SetRoot()
    return Done()


def _file_problem(wanted: Wanted, seen: Seen) -> str:
    if seen.file == "missing":
        return f"volume {wanted.volume} has no file {wanted.file}: muster volume create {wanted.volume}"
    if seen.file != "file":
        return f"{wanted.file} of volume {wanted.volume} is no plain file but a {seen.file}"
    if seen.size_bytes != wanted.size_bytes:
        return f"{wanted.file} has {seen.size_bytes} bytes, volume {wanted.volume} is defined with {wanted.size_bytes}"
    return ""


def _point_problem(wanted: Wanted, seen: Seen) -> str:
    point = wanted.mount_point
    if seen.point == "missing":
        return f"the mount point {point} is not there: mkdir -p {point}"
    if seen.point != "folder":
        return f"the mount point {point} is no folder but a {seen.point}"
    if seen.other_mount:
        return f"{seen.other_mount} is mounted at {point}: unmount it, or choose another mount point"
    if seen.entries:
        return f"the mount point {point} is not empty: what is in it would be hidden; move it away"
    return ""
