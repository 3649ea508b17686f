"""Backups of what people have decided, and a new store made of one (SPEC 9.1, P11.8).

A backup holds the configuration, the definitions and the entries of services. It holds nothing of who runs: no leases,
claims, marks or tombstones, no members, no transitions. It holds no private key either: those are in homes.
"""

import hashlib
import secrets
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from muster import __version__
from muster.client.errors import ClientError
from muster.core.leases.memory import Remembered
from muster.drivers.certificates.private_files import write_private
from muster.drivers.store.disk.file import open_header
from muster.drivers.store.disk.geometry import STORE_ID_BYTES, InvalidGeometry
from muster.drivers.store.disk.restoring import Begun, begun_above, known_of, restored, write
from muster.drivers.store.disk.store import plan_header
from muster.drivers.store.engine import newest_record
from muster.drivers.store.failures import StoreFailed
from muster.drivers.store.identity import Scope
from muster.drivers.store.remembered_file import all_remembered
from muster.records.database import Database, decode_database, encode_database
from muster.records.members import Member
from muster.records.versions import HIGHEST, LOWEST
from muster.setup.errors import Mistaken

MS_PER_S = 1000
MAXIMUM_BYTES = 1 << 30
_CHECK = "see what is there: muster store check PATH"


class Backup(Struct, frozen=True):
    """A backup file: JSON, in this order. `database` is encoded as a checkpoint is; `digest` is its SHA-256."""

    format: int
    release: str
    cluster: str
    identity: str  # of the cluster, hexadecimal
    scope: str
    slots: int
    index: int  # commit index that it shows
    version: int  # of the configuration
    made_ms: int  # milliseconds since 1970
    digest: str
    database: bytes


class Restoration(NamedTuple):
    """What a restore does."""

    backup: Backup
    begun: Begun
    store_id: str
    asked: int  # homes that remember this cluster
    unproven: tuple[str, ...]  # nodes that may still run what they ran
    services: int


def _kept(database: Database) -> Database:
    """What a backup keeps of a database. Of members only the highest life, above which a restore must begin."""
    highest = max((member.incarnation for member in database.members.values()), default=0)
    lives = {node: Member(node, incarnation=highest) for node in sorted(database.nodes)[:1]}
    return Database(
        cluster=msgspec.structs.replace(database.cluster, unasked=()),
        index=database.index, term=database.term, epoch=database.epoch, nodes=database.nodes, members=lives,
        services=database.services, maintenance=database.maintenance, standby=database.standby,
        event_groups=database.event_groups, audit=database.audit, revisions=database.revisions,
        fence_devices=database.fence_devices, fence_plans=database.fence_plans,
    )  # fmt: skip


def back_up(store: Path, output: Path) -> Backup:
    """Write a backup of the store, which nodes may be using, readable by its owner only. Raises `ClientError`."""
    try:
        header, record = open_header(str(store)), newest_record(str(store))
    except (StoreFailed, OSError) as error:
        raise ClientError(str(error), str(store), _CHECK) from error
    database = record.database
    content = encode_database(_kept(database))
    made = Backup(
        1, __version__, database.cluster.name, header.identity, header.scope.name.lower(), header.slots,
        database.index, database.version, int(time.time() * MS_PER_S), hashlib.sha256(content).hexdigest(), content,
    )  # fmt: skip
    try:
        write_private(output, msgspec.json.encode(made).decode())
    except OSError as error:
        raise ClientError(error.strerror or str(error), str(output), "name another file with --output") from error
    return made


def read_backup(path: Path) -> tuple[Backup, Database]:
    """A backup and what it holds. Raises `ClientError`."""
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise ClientError("it is too large to be a backup", str(path), "name a file of muster store backup")
        made = msgspec.json.decode(path.read_bytes(), type=Backup)
        if hashlib.sha256(made.database).hexdigest() != made.digest:
            raise ClientError("it is damaged: its digest is another one", str(path), "take another copy of it")
        database = decode_database(made.database)
    except OSError as error:
        raise ClientError(error.strerror or str(error), str(path), "name a file of muster store backup") from error
    except msgspec.MsgspecError as error:
        raise ClientError(f"it is no backup: {error}", str(path), "name a file of muster store backup") from error
    if made.format != 1 or not LOWEST <= database.cluster.active_version <= HIGHEST:
        what = f"format {made.format}, version {database.cluster.active_version}: another release has made it"
        raise ClientError(what, str(path), f"use the release that made it, {made.release}, or a newer one")
    return made, database


def restore(
    backup: Path, store: Path, homes: Collection[Path], stopped: Collection[str], *, really: bool, force: bool
) -> Restoration:
    """Make a new store of a backup at `store`, or only say what would be done. Raises `ClientError`."""
    made, database = read_backup(backup)
    numbers = frozenset(_number(database, name) for name in stopped)
    remembered = [each for home in homes for each in _memory(home) if each.cluster_id == made.identity]
    begun = begun_above(known_of(database, remembered))
    identity = secrets.token_bytes(STORE_ID_BYTES)
    if really:
        _make(store, made, restored(database, begun, numbers), begun, numbers, identity, force=force)
    unproven = tuple(config.name for node, config in sorted(database.nodes.items()) if node not in numbers)
    return Restoration(made, begun, identity.hex(), len(remembered), unproven, len(database.services))


def _memory(home: Path) -> tuple[Remembered, ...]:
    try:
        return all_remembered(home)
    except (OSError, ValueError) as error:
        raise ClientError(str(error), str(home), "give a home that can be read, or leave it out") from error


def _number(database: Database, name: str) -> int:
    node = database.node_named(name)
    if node is None:
        known = ", ".join(config.name for config in database.nodes.values())
        raise Mistaken(f"the backup has no node {name!r}", "--stopped", f"it has {known}")
    return node


def _make(
    store: Path,
    made: Backup,
    database: Database,
    begun: Begun,
    stopped: frozenset[int],
    identity: bytes,
    *,
    force: bool,
) -> None:
    try:
        header = plan_header(
            str(store.absolute()), bytes.fromhex(made.identity), made.cluster, Scope[made.scope.upper()],
            slots=made.slots,
        )  # fmt: skip
        write(str(store.absolute()), header._replace(adopted_id=identity), database, begun, stopped, force=force)
    except InvalidGeometry as error:
        raise ClientError(str(error), str(store), "choose a larger device") from error
    except (StoreFailed, OSError) as error:
        raise ClientError(f"the store could not be made: {error}", str(store), "fix that, and do it again") from error
