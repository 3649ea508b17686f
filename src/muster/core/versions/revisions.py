"""The configuration as versions: what changed with each, what it was at any of them (SPEC 9.3, P10.2).

Theory of operation. The configuration is what people decide: the definitions of services, names and addresses of nodes,
the settings of the cluster. Whoever changes a record of it in a draft leaves a new version behind. A version is kept as
what undoes it, the former contents of the records that it changed: the newest configuration is in the records
themselves, and an older one is found by undoing versions one after the other, newest first. The oldest versions are
dropped when there are too many, or when what undoes them gets too large.

What is shown and kept of a record is a document of plain values, never a certificate, a key or a token.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from muster.core.draft import Draft, committed
from muster.core.room import Capacity
from muster.records import lockspaces
from muster.records.access import Author
from muster.records.configuration import Revision
from muster.records.database import Change, Database
from muster.records.durations import duration_text
from muster.records.events import EventGroup, GroupDefinition
from muster.records.fencing import FenceDevice, FencePlan
from muster.records.kinds import KINDS, kind_named
from muster.records.nodes import DEFAULT_REQUIRED_WITHIN_MS, Cluster, NodeConfig
from muster.records.required_levels import text_of
from muster.records.services import Definition, Service
from muster.records.tables import check_rows
from muster.records.texts import USER_BYTES, clipped
from muster.records.versions import KEEPS_HISTORY

MAXIMUM_REVISIONS = 100
MAXIMUM_UNDO_BYTES = 64 * 1024  # of all versions together, packed
MAXIMUM_UNDO_OF_ONE_BYTES = 32 * 1024
MAXIMUM_WHAT_CHARACTERS = 200
REVISION_BYTES = 420  # of one version without what undoes it, at most
_UNPACKED_LIMIT_BYTES = 64 * 1024 * 1024
_CLUSTER_SETTINGS = ("name", "profile", "timers", "active_version", "groups")

REQUIRED, REQUIRED_WITHIN = "required_levels", "required_levels_within"
LOCKSPACES, KERNEL_LOCKS = "lockspaces", "kernel_locks"
PROFILE, WATCHDOG = "profile", "watchdog"
_RESTORED = frozenset(  # of the cluster's settings, by a rollback
    {"groups", REQUIRED, REQUIRED_WITHIN, LOCKSPACES, KERNEL_LOCKS}
)

ON, OFF = "on", "off"

Key = tuple[str, str]  # kind and key of a record of the configuration
Document = dict[str, Any]
Configuration = dict[Key, Document]


class UnknownVersion(ValueError):
    """There is no such version, or it is no longer kept; the message says which are."""


def document_of(record: Change | None) -> Document | None:
    """A configuration record as plain values; nothing where it is none or is gone."""
    found = _DOCUMENTS.get(type(record))
    return found(record) if found is not None else None


def _of_service(service: Service) -> Document | None:
    return None if service.removed or service.template else _of_definition(service)


def _of_definition(record: Service | EventGroup) -> Document:
    document: Document = msgspec.to_builtins(record.definition)
    return document


def _plain(record: FenceDevice | FencePlan) -> Document:
    """By the names of its fields: it holds no secret (P7.28)."""
    found: Document = msgspec.to_builtins(_named(record))
    return found


def _named(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: _named(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        return [_named(each) for each in value]
    return value


def _of_node(config: NodeConfig) -> Document:
    own = {} if config.required_levels is None else {REQUIRED: text_of(config.required_levels)}
    watchdog = {} if config.watchdog is None else {WATCHDOG: config.watchdog}
    return {"name": config.name, "addresses": list(config.addresses), **own, **watchdog}


def _of_cluster(cluster: Cluster) -> Document:
    found = {setting: getattr(cluster, setting) for setting in _CLUSTER_SETTINGS}
    spaces = {LOCKSPACES: lockspaces.text_of(cluster.lockspaces)} if cluster.lockspaces else {}
    watchdog = {WATCHDOG: cluster.watchdog} if cluster.watchdog else {}
    kernel = {KERNEL_LOCKS: ON} if cluster.kernel_locks else {}
    return {**found, "groups": cluster.groups._asdict(), **_required(cluster), **spaces, **watchdog, **kernel}


_DOCUMENTS: dict[type, Callable[[Any], Document | None]] = {  # what is shown and kept of each kind
    Cluster: _of_cluster,
    NodeConfig: _of_node,
    Service: _of_service,
    EventGroup: _of_definition,
    FenceDevice: _plain,
    FencePlan: _plain,
}
check_rows("core/versions/revisions.py", _DOCUMENTS, (kind.struct for kind in KINDS if kind.is_configuration))


def _required(cluster: Cluster) -> Document:
    """What nodes must have before they join, as far as it is set: older versions do not know these keys (P3.17)."""
    found: Document = {}
    if cluster.required_levels:
        found[REQUIRED] = text_of(cluster.required_levels)
    if cluster.required_within_ms != DEFAULT_REQUIRED_WITHIN_MS:
        found[REQUIRED_WITHIN] = duration_text(cluster.required_within_ms)
    return found


def configuration(database: Database) -> Configuration:
    """The configuration as it is."""
    found: Configuration = {}
    records: list[tuple[Key, Change]] = []
    for kind in KINDS:
        if kind.is_configuration:
            held = getattr(database, kind.table)
            table = {"": held} if kind.key is None else held
            records += [((kind.name, str(key)), record) for key, record in table.items()]
    for key, record in records:
        document = document_of(record)
        if document is not None:
            found[key] = msgspec.json.decode(msgspec.json.encode(document))  # lists, as everywhere in these documents
    return found


def configuration_at(database: Database, version: int) -> Configuration:
    """The configuration as it was at `version`. Raises `UnknownVersion`."""
    newest = database.version
    if not 0 <= version <= newest:
        raise UnknownVersion(f"there is no version {version} of the configuration; the newest is {newest}")
    found = configuration(database)
    for number in range(newest, version, -1):
        revision = database.revisions.get(number)
        if revision is None or not revision.whole:
            raise UnknownVersion(
                f"version {version} of the configuration is no longer kept; the oldest that is: {oldest_kept(database)}"
            )
        for key, document in _unpack(revision.undo):
            if document is None:
                found.pop(key, None)
            else:
                found[key] = document
    return found


def oldest_kept(database: Database) -> int:
    """The oldest version that `configuration_at` can show."""
    version = database.version
    while (revision := database.revisions.get(version)) is not None and revision.whole:
        version -= 1
    return version


def differences(old: Configuration, new: Configuration) -> list[Document]:
    """What differs: `kind`, `name`, `change` (new, removed, changed), `keys` {key: [old, new]}, in a fixed order."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        names = sorted((before or {}).keys() | (after or {}).keys())
        pairs = {name: [(before or {}).get(name), (after or {}).get(name)] for name in names}
        kind = "new" if before is None else "removed" if after is None else "changed"
        shown = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        found.append({"kind": key[0], "name": name_of(key, before or after or {}), "change": kind, "keys": shown})
    return found


def name_of(key: Key, document: Document) -> str:
    """What people call the record."""
    return str(document.get("name", key[1]))


class Rollback(NamedTuple):
    """What going back to a version takes, and which differences stay."""

    definitions: list[Definition]
    withdraw: list[str]
    event_groups: list[GroupDefinition]
    withdraw_groups: list[str]
    settings: Document | None
    nodes: dict[int, str | None]  # whose own required levels come back, as text; None: the cluster's
    stays: list[Document]


def rollback_of(database: Database, version: int) -> Rollback:
    """What it takes to have services and settings as they were at `version`.

    Nodes, the profile and the active version stay as they are: each has an operation of its own that is safe.
    Raises `UnknownVersion`.
    """
    now, then = configuration(database), configuration_at(database, version)
    plan = Rollback([], [], [], [], None, {}, [])
    for change in differences(now, then):
        kind, name, gone = change["kind"], change["name"], change["change"] == "removed"
        if kind == "service" and gone:
            plan.withdraw.append(name)
        elif kind == "service":
            plan.definitions.append(msgspec.convert(then[kind, name], Definition))
        elif kind == "event_group" and gone:
            plan.withdraw_groups.append(name)
        elif kind == "event_group":
            plan.event_groups.append(msgspec.convert(then[kind, name], GroupDefinition))
        elif kind == "cluster":
            if not _RESTORED.isdisjoint(change["keys"]):
                settings = then["cluster", ""]
                plan = plan._replace(settings={key: settings[key] for key in _RESTORED if key in settings})
            _stay(plan, change, _RESTORED)
        elif kind == "node" and (node := database.node_named(name)) is not None and _is_of_one_node(change):
            plan.nodes[node] = change["keys"][REQUIRED][1]
            _stay(plan, change, frozenset({REQUIRED}))
        else:
            plan.stays.append(change)
    return plan


def _is_of_one_node(change: Document) -> bool:
    """Whether the required levels of a node have changed, and not the node that has the slot."""
    keys = change["keys"]
    return change["change"] == "changed" and REQUIRED in keys and "name" not in keys


def _stay(plan: Rollback, change: Document, restored: frozenset[str]) -> None:
    rest = {key: pair for key, pair in change["keys"].items() if key not in restored}
    if rest:
        plan.stays.append({**change, "keys": rest})


def record(draft: Draft, before: dict[Key, Change], author: Author, what: str, capacity: Capacity) -> None:
    """Leave a version behind if the configuration differs from what it was when `before` was all that had changed."""
    if draft.cluster.active_version < KEEPS_HISTORY:
        return
    undo = []
    for key, changed in draft.changed.items():
        if not kind_named(key[0]).is_configuration or before.get(key) is changed:
            continue
        former = before.get(key) or committed(draft.database, key)
        if not _is_same(former, changed):
            undo.append((key, document_of(former)))
    if not undo:
        return
    packed = zlib.compress(msgspec.msgpack.encode(undo), level=6)
    whole = len(packed) <= min(MAXIMUM_UNDO_OF_ONE_BYTES, capacity.history // 2, capacity.entry // 8)
    draft.put(
        Revision(
            max(draft.revisions, default=0) + 1, draft.index, author.at_ms, author.uid,
            clipped(author.user, USER_BYTES), author.node,
            clipped(what, MAXIMUM_WHAT_CHARACTERS), packed if whole else b"", whole,
        )
    )  # fmt: skip
    _drop_oldest(draft, capacity)


def _is_same(former: Change | None, changed: Change) -> bool:
    if isinstance(former, Service) and isinstance(changed, Service):  # most of them: its state has changed
        return former.removed == changed.removed and former.definition == changed.definition
    return document_of(former) == document_of(changed)


def _drop_oldest(draft: Draft, capacity: Capacity) -> None:
    """Keep the history within its bounds; the newest version always stays, for its number."""
    bound = min(MAXIMUM_UNDO_BYTES + MAXIMUM_REVISIONS * REVISION_BYTES, capacity.history)
    size = sum(len(revision.undo) + REVISION_BYTES for revision in draft.revisions.values())
    for version in sorted(draft.revisions)[:-1]:
        if len(draft.revisions) <= MAXIMUM_REVISIONS and size <= bound:
            return
        size -= len(draft.revisions[version].undo) + REVISION_BYTES
        draft.forget("revision", str(version))


def _unpack(packed: bytes) -> list[tuple[Key, Document | None]]:
    unpacked = zlib.decompressobj().decompress(packed, _UNPACKED_LIMIT_BYTES)
    return msgspec.msgpack.decode(unpacked, type=list[tuple[Key, Document | None]])
