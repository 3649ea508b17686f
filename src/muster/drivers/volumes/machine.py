"""What this machine shows of a file system, and the commands that change it: by argument lists, each with a limit."""

import contextlib
import ctypes
import os
import signal
import stat
import subprocess
from functools import partial
from typing import NamedTuple

from muster.core.filesystems import mounting
from muster.core.filesystems.mounting import Mounted, Root, Wanted
from muster.drivers.image.deadman import die_with_parent
from muster.drivers.volumes import loops

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOTHING = 2  # exit status of blkid: it has found nothing
_AMBIVALENT = 8  # it has found several things
_NO_FOLLOW = 8  # UMOUNT_NOFOLLOW
_OUTPUT_CHARACTERS = 400
_libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """A command has failed, or is not installed; the message says what and why."""


class Answer(NamedTuple):
    """How a command has ended, and the end of what it wrote."""

    status: int
    output: str


def run(words: tuple[str, ...], limit_s: float) -> Answer:
    """Run a command to its end. Raises `Failed` where it is missing, or takes longer and was killed.

    It is killed with this program: nothing of a start goes on alone.
    """
    environment = {"PATH": PATH, "LC_ALL": "C"}
    try:
        ended = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s,
            env=environment, check=False, text=True, errors="replace",
            preexec_fn=partial(die_with_parent, signal.SIGKILL),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise Failed(f"{words[0]} is not installed on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{words[0]} has taken longer than {limit_s:.0f} s, and was killed") from error
    return Answer(ended.returncode, ended.stdout[-_OUTPUT_CHARACTERS:].strip())


def look(wanted: Wanted, held: str, limit_s: float) -> mounting.Seen:
    """What there is of the file system. Raises `Failed`."""
    kind, size = _file(wanted.file)
    attached = loops.attached(wanted.file)
    mounted = mounts_of(tuple(each.device for each in attached))
    point, entries = _point(wanted.mount_point)
    own = [each for each in mounted if each.mount_point == wanted.mount_point]
    there = _mounted_at(wanted.mount_point)
    content = content_of(held, limit_s) if held and not mounted else ""
    root = _root(wanted.mount_point) if own else None
    other = "" if own and there and there[-1] == loops.number_of(own[0].device) else ", ".join(there)
    return mounting.Seen(kind, size, attached, mounted, point, 0 if own else entries, other, content, root)


def mounts_of(devices: tuple[str, ...]) -> tuple[Mounted, ...]:
    """The mounts of these devices in this process's namespace, the newest last."""
    numbers = {loops.number_of(device): device for device in devices}
    return tuple(
        Mounted(numbers[number], point, "ro" in options.split(",") or "ro" in super_options.split(","))
        for number, point, options, super_options in _mount_table()
        if number in numbers
    )


def content_of(device: str, limit_s: float) -> str:
    """What is on a device, in words: a type, `nothing`, or what else blkid says. Raises `Failed`."""
    answer = run(("blkid", "-p", "-o", "export", device), limit_s)
    if answer.status == _NOTHING:
        return "nothing"
    if answer.status == _AMBIVALENT:
        return "more than one thing (blkid is not sure)"
    found = dict(line.partition("=")[::2] for line in answer.output.splitlines())
    if answer.status or not found:
        raise Failed(f"blkid cannot say what is on {device}: {answer.output or answer.status}")
    return found.get("TYPE") or (f"a partition table ({found['PTTYPE']})" if "PTTYPE" in found else "something unknown")


def mount(wanted: Wanted, device: str, limit_s: float) -> None:
    """Mount the device as it is defined. Raises `Failed`."""
    options = ("-o", ",".join(wanted.options)) if wanted.options else ()
    words = ("mount", "-i", "-n", "-t", wanted.kind, *options, "--", device, wanted.mount_point)
    answer = run(words, limit_s)
    if answer.status:
        raise Failed(f"{wanted.name} cannot be mounted: {answer.output or answer.status}")


def unmount(mount_point: str) -> int:
    """Unmount what is on top there, not lazily; 0, or the error number. Waits as long as its disk does."""
    if _libc.umount2(os.fsencode(mount_point), _NO_FOLLOW) == 0:
        return 0
    return ctypes.get_errno()


def set_root(mount_point: str, root: Root) -> None:
    """Give the folder its owner and mode. Raises `OSError`."""
    descriptor = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(descriptor, root.user, root.group)
        os.fchmod(descriptor, root.mode)
    finally:
        os.close(descriptor)


def boot_id() -> str:
    """Of this machine's kernel; in a container that of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip().replace("-", "")


def _file(path: str) -> tuple[str, int]:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return "missing", 0
    except OSError as error:
        raise Failed(f"{path} cannot be looked at: {error.strerror}") from error
    return ("file" if stat.S_ISREG(found.st_mode) else _kind(found.st_mode)), found.st_size


def _point(path: str) -> tuple[str, int]:
    try:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            return _kind(found.st_mode), 0
        if os.path.realpath(path) != path:
            return "folder behind a link", 0
        with os.scandir(path) as entries:
            return "folder", sum(1 for _ in entries)
    except FileNotFoundError:
        return "missing", 0
    except OSError as error:
        raise Failed(f"{path} cannot be looked at: {error.strerror}") from error


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "link"
    return "folder" if stat.S_ISDIR(mode) else "plain file" if stat.S_ISREG(mode) else "device or socket"


def _root(path: str) -> Root | None:
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return Root(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
    return None


def _mounted_at(point: str) -> list[str]:
    """The numbers of the devices mounted at a folder, the newest last."""
    return [number for number, where, _, _ in _mount_table() if where == point]


def _mount_table() -> list[tuple[str, str, str, str]]:
    """Number of the device, mount point, options of the mount and of its file system, of each mount seen here."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.split() for line in file]
    return [(fields[2], _unescaped(fields[4]), fields[5], fields[-1]) for fields in lines]


def _unescaped(text: str) -> str:
    for code in ("040", "011", "012", "134"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text
