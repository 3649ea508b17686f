"""The cleanups that a node's home keeps: what clears this machine's kernel of what its services leave there (P6.34).

HOME/cleanups holds one file for each start that was given a cleanup, UID.GENERATION.NAME, durable before it runs, and
gone once the machine is clean of that start; `ran`, the last incarnation that began with this home, and since which one
all did; and `lock`, which the caretaker at work holds. The daemon writes the file of a start, the guard reads all of
them at boot, the caretaker runs and removes them. A file is replaced as a whole: a reader sees the old or the new one.

The guard's image imports this module: the standard library only.
"""

import contextlib
import fcntl
import json
import os
import time
from typing import NamedTuple

from muster.records.registers import identity_of

FOLDER, LOCK, RAN = "cleanups", "lock", "ran"
_NEW = ".new"  # ends the name of a file that is being written; no service is called so
_MAXIMUM_BYTES = 1 << 20
_LOOK_S = 0.02


class Kept(NamedTuple):
    """One kept cleanup, as its service had it when this start was given."""

    service: str
    uid: int
    generation: int
    incarnation: int  # that was given the start
    boot_id: str  # of the kernel that it left something in, hexadecimal
    command: tuple[str, ...]
    timeout_ms: int
    retries: int
    retry_pause_ms: int
    environment: dict[str, str]  # the service's own, the cluster's and the node's names, its uid and generation
    problem: str = ""  # why it cannot be read, in words: nobody knows how to clear what that start has left

    @property
    def file_name(self) -> str:
        """Its name in the folder."""
        return f"{self.uid}.{self.generation}.{self.service}"

    @property
    def identity(self) -> int:
        """What stands for its service in the lease register."""
        return identity_of(self.uid, self.service)


def path_of(home: str, name: str) -> str:
    """A file in the folder of a home."""
    return os.path.join(home, FOLDER, name)


def keep(home: str, kept: Kept) -> None:
    """Make it durable. Raises `OSError`: then the start must not run."""
    _replace(home, kept.file_name, json.dumps(kept._asdict()).encode())


def _replace(home: str, name: str, content: bytes) -> None:
    folder = os.path.join(home, FOLDER)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path, new = path_of(home, name), path_of(home, f"{name}{_NEW}")
    try:
        with open(new, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop(home: str, kept: Kept) -> None:
    """Forget it: the machine is clean of that start. One that stays is run once more, which changes nothing."""
    with contextlib.suppress(OSError):
        os.unlink(path_of(home, kept.file_name))


def is_kept(home: str, kept: Kept) -> bool:
    """Whether it still is."""
    return os.path.exists(path_of(home, kept.file_name))


def all_kept(home: str) -> list[Kept]:
    """Everything that is kept, older starts first. Raises `OSError` where the folder cannot be read."""
    try:
        names = os.listdir(os.path.join(home, FOLDER))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        uid, generation, service = (*name.split(".", 2), "", "")[:3]
        if uid.isdecimal() and generation.isdecimal() and service and not service.endswith(_NEW):
            kept = _read(home, name, (service, int(uid), int(generation)))
            found += [kept] if kept is not None else []
    return sorted(found, key=lambda kept: (kept.generation, kept.uid))


def _read(home: str, name: str, start: tuple[str, int, int]) -> Kept | None:
    try:
        with open(path_of(home, name), "rb") as file:
            fields = json.loads(file.read(_MAXIMUM_BYTES))
        kept = Kept(**{**fields, "command": tuple(fields["command"])})
    except FileNotFoundError:
        return None  # it has just been removed
    except (OSError, ValueError, TypeError, KeyError) as error:
        problem = f"{path_of(home, name)} cannot be read: {error}"
        return Kept(*start, 0, "", (), 1, 0, 0, {}, problem)
    return kept


def last_run(home: str) -> tuple[int, int]:
    """The last incarnation that began with this home, and the first one since which all did; zeros: it names none."""
    try:
        with open(path_of(home, RAN), "rb") as file:
            incarnation, since = map(int, file.read(64).split())
    except (OSError, ValueError):
        return 0, 0
    return incarnation, since


def record_run(home: str, incarnation: int, since: int) -> None:
    """Remember that this incarnation begins with this home. Raises `OSError`."""
    _replace(home, RAN, f"{incarnation} {since}".encode())


def lock_folder(home: str) -> int | None:
    """The descriptor that holds the caretaker's lock; None where another one holds it. Raises `OSError`."""
    os.makedirs(os.path.join(home, FOLDER), mode=0o700, exist_ok=True)
    descriptor = os.open(path_of(home, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def lock_kept(home: str, kept: Kept, timeout_s: float) -> int | None:
    """Hold a kept cleanup while it runs, or while it must not; None where it is gone, or stays held.

    Raises `OSError`.
    """
    give_up_s = time.monotonic() + timeout_s
    while True:
        try:
            descriptor = os.open(path_of(home, kept.file_name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return descriptor
        if time.monotonic() >= give_up_s:
            return None
        time.sleep(_LOOK_S)
