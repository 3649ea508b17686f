"""A control group of a node's own, where the kernel gives it no PID namespace (P7.11).

All of the node but guard, writers and caretaker is in it: whatever a process does to its session, its parents or its
environment, it stays there. `cgroup.kill` ends all of it at once, stopped or not; `populated 0` in `cgroup.events` is
the kernel's word that nothing of it is left. It needs version 2 of control groups, Linux 5.14, and a group of this
process that is its own to divide: the superuser's, or one that systemd delegates (Delegate=yes).

These files are the kernel's own: to read and write them waits for no disk.
"""

import os
import re
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

_MOUNTS, _OWN = "/proc/self/mountinfo", "/proc/self/cgroup"
_PAUSE_S = 0.005
_ESCAPED = re.compile(r"\\([0-7]{3})")


class ControlGroup(NamedTuple):
    """One group: its folder, and its path below the mount of control groups."""

    folder: str
    mount: str

    @property
    def path(self) -> str:
        """Below the mount, beginning with a slash."""
        return self.folder[len(self.mount) :]

    def inodes(self) -> tuple[int, int]:
        """Of the group, and of the mount's root. Raises `OSError`."""
        return os.stat(self.folder).st_ino, os.stat(self.mount).st_ino

    def enter(self) -> None:
        """Put this process, and all that it will fork, into the group. Raises `OSError`."""
        _write(f"{self.folder}/cgroup.procs", b"0")

    def kill(self) -> None:
        """End every process of it, this one too if it is of it; what is not there any more is not to be ended."""
        try:
            _write(f"{self.folder}/cgroup.kill", b"1")
        except FileNotFoundError:
            return

    def is_empty(self) -> bool:
        """Whether the kernel says that no process of it, or below it, is left; zombies are none."""
        try:
            with open(f"{self.folder}/cgroup.events", "rb") as file:
                return b"populated 0" in file.read()
        except FileNotFoundError:
            return True  # it was empty when it was removed

    def end(self, give_up_us: int, clock_us: Callable[[], int]) -> bool:
        """End all of it, and wait for the kernel's word; false if that has not come by `give_up_us`."""
        while True:
            try:
                self.kill()
                if self.is_empty():
                    return True
            except OSError:
                return False
            if clock_us() >= give_up_us:
                return False
            time.sleep(_PAUSE_S)

    def remove(self) -> None:
        """Take the empty group away; one that is not empty stays for the next boot."""
        try:
            for name in os.listdir(self.folder):  # a service may have divided it further
                if os.path.isdir(f"{self.folder}/{name}"):
                    ControlGroup(f"{self.folder}/{name}", self.mount).remove()
            os.rmdir(self.folder)
        except OSError:
            return


def make_group(name: str) -> ControlGroup | None:
    """A new empty group below this process's own, that its children can enter and be ended in; None if not allowed."""
    folder = folder_below_own(name)
    if folder is None:
        return None
    group = ControlGroup(folder, mount_of_groups())
    try:
        os.mkdir(group.folder)
    except OSError:
        return None
    if os.access(f"{group.folder}/cgroup.kill", os.W_OK) and _child_can_enter(group):
        return group
    group.remove()
    return None


def group_at(folder: str) -> ControlGroup | None:
    """The group in this folder, recorded earlier; None where that is none, or there is none any more."""
    mount = mount_of_groups()
    is_there = bool(mount) and folder.startswith(f"{mount}/") and os.path.exists(f"{folder}/cgroup.kill")
    return ControlGroup(folder, mount) if is_there else None


def _child_can_enter(group: ControlGroup) -> bool:
    """Tried in a child, which waits there to be killed: so both are known to work."""
    said, says = os.pipe()
    child = os.fork()
    if child == 0:
        _enter_and_wait(group, says)
    os.close(says)
    try:
        entered = os.read(said, 1) == b"y"
    finally:
        os.close(said)
    if entered:
        group.kill()
    _child, status = os.waitpid(child, 0)
    return entered and os.WIFSIGNALED(status)


def _enter_and_wait(group: ControlGroup, says: int) -> NoReturn:
    try:
        group.enter()
        os.write(says, b"y")
        time.sleep(10)
    finally:
        os._exit(0)


def mount_of_groups() -> str:
    """Where version 2 of control groups is mounted, or nothing: beside version 1 that is not the usual place."""
    return _mounted()[1]


def folder_below_own(name: str) -> str | None:
    """Where a group of this name below this process's own would be; None where that cannot be seen from here."""
    root, mount = _mounted()
    own = _own_path()
    if not mount or own is None or not f"{own}/".startswith(f"{root}/"):
        return None
    return f"{mount}{own[len(root) :].rstrip('/')}/{name}"


def _mounted() -> tuple[str, str]:
    """Which of the groups is the root of the first mount of version 2, and where that is; no slash at their ends."""
    for line in _read(_MOUNTS).splitlines():
        fields, _dash, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            root, mount = (_ESCAPED.sub(lambda found: chr(int(found[1], 8)), each) for each in fields.split()[3:5])
            return root.rstrip("/"), mount.rstrip("/")
    return "", ""


def _own_path() -> str | None:
    for line in _read(_OWN).splitlines():
        if line.startswith("0::"):
            return line[3:].removesuffix(" (deleted)")
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
