"""Claims of volumes as files, and the lock under which they are read and replaced (P13.4)."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator

from muster.core.volumes.claim import Claim

CLAIM, LOCK = ".claim", ".lock"  # behind the name of the volume's file
_MAXIMUM_BYTES = 4096
_LOOK_S = 0.02


class NoClaim(Exception):
    """The claim cannot be read, written or locked; the message says why and what to do."""


@contextlib.contextmanager
def locked(file: str, limit_s: float) -> Iterator[None]:
    """Hold the lock of a volume's claim. Raises `NoClaim` where another process has it for so long."""
    path = file + LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NoClaim(f"{path} cannot be opened: {error.strerror}") from error
    try:
        until = time.monotonic() + limit_s
        while not _locks(descriptor):
            if time.monotonic() >= until:
                raise NoClaim(f"another process holds {path}: see `lslocks`")
            time.sleep(_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read(file: str) -> Claim | None:
    """The claim beside a volume's file; None where there is none. Raises `NoClaim`: then nothing is attached."""
    path = file + CLAIM
    try:
        with open(path, "rb") as opened:
            found = json.loads(opened.read(_MAXIMUM_BYTES))
        claim = Claim(**found)
        if tuple(map(type, claim)) != (str, str, str, int, str, str, bool, bool):
            raise ValueError("a value is of another type")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise NoClaim(
            f"{path} cannot be read ({error}): nobody knows who had the volume last; when it is sure that no node has "
            "it, move that file away"
        ) from error
    return claim


def write(file: str, claim: Claim) -> None:
    """Replace it durably, as a whole. Raises `NoClaim`."""
    path, new = file + CLAIM, file + CLAIM + ".new"
    try:
        with open(new, "w", encoding="utf-8") as opened:
            json.dump(claim._asdict(), opened)
            opened.flush()
            os.fsync(opened.fileno())
        os.rename(new, path)
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise NoClaim(f"{path} cannot be written: {error.strerror}") from error
