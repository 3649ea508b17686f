"""Looking at a store, and making a copy of one the cluster's store; no node need run (SPEC 1.2-1.5)."""

import secrets
from collections.abc import Collection
from pathlib import Path

from muster.client.errors import ClientError
from muster.drivers.store.disk.adoption import Adoption, adopt, plan_adoption
from muster.drivers.store.disk.file import open_header
from muster.drivers.store.disk.geometry import STORE_ID_BYTES
from muster.drivers.store.disk.inspection import Finding, StoreReport, check, describe
from muster.drivers.store.failures import StoreFailed
from muster.drivers.store.remembered_file import all_remembered

__all__ = ["Adoption", "Finding", "StoreReport", "adopted", "damage", "described"]

_CHECK = "see what is there: muster store check PATH"


def described(path: Path) -> StoreReport:
    """What the store at `path` holds. Raises `ClientError` where it cannot be read."""
    try:
        return describe(str(path))
    except (StoreFailed, OSError) as error:
        raise ClientError(str(error), str(path), _CHECK) from error


def damage(path: Path) -> list[Finding]:
    """What is damaged in the store at `path`. Raises `ClientError` where it cannot be read."""
    try:
        return check(str(path))
    except (StoreFailed, OSError) as error:
        raise ClientError(str(error), str(path), "check the path, and that you may read it") from error


def adopted(path: Path, homes: Collection[Path], above: int, *, really: bool) -> tuple[Adoption, int]:
    """Make the copy at `path` the cluster's store, or only say what would be done, where not `really` (P11.5).

    `above`: a commit index known from elsewhere. Also how many of the `homes`' memories are about this cluster.
    Raises `ClientError`.
    """
    try:
        identity = open_header(str(path), interrupted=True).identity
        found = [each for home in homes for each in all_remembered(home) if each.cluster_id == identity]
        do = adopt if really else plan_adoption
        return do(str(path.absolute()), secrets.token_bytes(STORE_ID_BYTES), found, above), len(found)
    except (StoreFailed, OSError, ValueError) as error:
        raise ClientError(str(error), str(path), _CHECK) from error
