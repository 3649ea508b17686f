"""HOME/remembered.json: what a node's home remembers of its stores (P11.2; core/leases/memory.py says what)."""

from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from muster.core.leases.memory import Remembered
from muster.drivers.certificates.private_files import write_private

FILE = "remembered.json"
MAXIMUM_CLUSTERS = 8


class _File(Struct):
    format: int = 1
    clusters: tuple[Remembered, ...] = ()  # the one written last comes last


def all_remembered(home: Path) -> tuple[Remembered, ...]:
    """What a home remembers, of all clusters. Raises `ValueError` (it cannot be read), `OSError`."""
    try:
        return msgspec.json.decode((home / FILE).read_bytes(), type=_File).clusters
    except FileNotFoundError:
        return ()
    except msgspec.MsgspecError as error:
        raise ValueError(f"{home / FILE} does not decode: {error}") from error


def remembered_of(home: Path, cluster_id: bytes, say: Callable[[str], None]) -> Remembered | None:
    """What a home remembers of a cluster. A file that cannot be read is told, and remembers nothing."""
    try:
        found = [each for each in all_remembered(home) if each.cluster_id == cluster_id.hex()]
    except (ValueError, OSError) as error:
        say(f"this node has lost what it remembered of its store; an older copy of it would not be noticed: {error}")
        return None
    return found[-1] if found else None


def remember(home: Path, known: Remembered) -> None:
    """Replace what a home remembers of one cluster, durably. Raises `OSError`."""
    try:
        before = tuple(each for each in all_remembered(home) if each.cluster_id != known.cluster_id)
    except (ValueError, OSError):
        before = ()  # told at the boot; what is written now can be read
    clusters = (*before[1 - MAXIMUM_CLUSTERS :], known)
    write_private(home / FILE, msgspec.json.encode(_File(clusters=clusters)).decode())
