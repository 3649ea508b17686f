"""The cleanups that a node's home keeps: what clears this machine's kernel of what its services leave there (P6.34).

HOME/cleanups holds one file for each start that was given a cleanup, UID.GENERATION.NAME, durable before it runs, and
gone once the machine is clean of that start; `probes`, what to ask the machine before each join (P7.45), of which the
guard makes such files at each boot, of generation 0; `ran`, the last incarnation that began with this home, and since
which one all did; and `lock`, which the caretaker at work holds. The daemon writes the file of a start, and the probes,
the guard reads all of them at boot, the caretaker runs and removes them. A file is replaced as a whole: a reader sees
the old or the new one.

The guard's image imports this module: the standard library only.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from muster.records.registers import identity_of

FOLDER, LOCK, RAN, PROBES = "cleanups", "lock", "ran", "probes"
_NEW = ".new"  # ends the name of a file that is being written; no service is called so
_MAXIMUM_BYTES = 1 << 20
_MAXIMUM_PROBES_BYTES = 64 << 20
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
    probe: tuple[str, ...] = ()  # says whether there is anything to clear (P7.45)

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
    _replace(home, kept.file_name, _written(kept).encode())


def _written(kept: Kept) -> str:
    fields = kept._asdict()
    if not kept.probe:
        del fields["probe"]  # an image of an older release takes no field that it does not know
    return json.dumps(fields)


def _taken(content: bytes) -> Kept:
    """What `_written` wrote. Raises `ValueError`, `TypeError`, `KeyError`."""
    fields = json.loads(content)
    return Kept(**{**fields, "command": tuple(fields["command"]), "probe": tuple(fields.get("probe", ()))})


def keep_probes(home: str, probes: Sequence[Kept]) -> None:
    """Make durable what this node is to ask its machine before each join. Raises `OSError`."""
    _replace(home, PROBES, "".join(f"{_written(each)}\n" for each in probes).encode())


def plant_probes(home: str, boot_id: str) -> list[Kept]:
    """Before a join: have each of these probes made, as if it were of a start. Raises `OSError`, `ValueError`.

    They need not be durable: the next boot plants them again.
    """
    try:
        with open(path_of(home, PROBES), "rb") as file:
            content = file.read(_MAXIMUM_PROBES_BYTES)
    except FileNotFoundError:
        return []
    try:
        planted = [_taken(line)._replace(boot_id=boot_id) for line in content.splitlines()]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"not what a node writes there: {error}") from error
    for each in planted:
        new = path_of(home, f"{each.file_name}{_NEW}")
        with open(new, "w", encoding="utf-8") as file:
            file.write(_written(each))
        os.rename(new, path_of(home, each.file_name))
    return planted


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
            kept = _taken(file.read(_MAXIMUM_BYTES))
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
