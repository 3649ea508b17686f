"""What a node answers about configuration history, versions and audit: pure functions, as in `queries.py`.

SPEC 9.2, 9.3:

config_history   versions, newest first: version, index, at_ms, user, uid, node, what
config_show      the configuration at `version` (text; empty: the newest)
config_diff      what differs between `old` and `new`
config_rollback  what `muster config rollback` to `version` would change, and what it would leave
upgrade          active version, each node's range, what a higher one lacks
audit            who asked for what, newest first; `here` marks what only this node refused
"""

from muster.core.versions import revisions, upgrade
from muster.core.versions.revisions import Configuration
from muster.daemon.socket.queries import Document, NodeView
from muster.records.access import Role
from muster.records.configuration import Audit, Revision
from muster.records.database import Database
from muster.records.kinds import KINDS, kind_named
from muster.records.refusal import ControlRefused
from muster.records.versions import HIGHEST, LOWEST


def config_history(database: Database, _view: NodeView) -> Document:
    """The versions that are kept."""
    kept = sorted(database.revisions.values(), key=lambda revision: -revision.version)
    return {
        "version": database.version,
        "oldest": revisions.oldest_kept(database),
        "versions": [_revision(revision) for revision in kept],
    }


def config_show(database: Database, _view: NodeView, version: str) -> Document:
    """The configuration at a version."""
    number = _number(database, version)
    made = database.revisions.get(number)
    found = _at(database, number)
    kinds = [kind for kind in KINDS if kind.is_configuration and kind.key is not None]
    documents: dict[str, Document] = {"settings": {}, **{kind.table: {} for kind in kinds}}
    for (kind, key), document in sorted(found.items()):
        row = kind_named(kind)
        if row.key is None:
            documents["settings"] = document
        else:
            documents[row.table][revisions.name_of((kind, key), document)] = document
    return {"version": number, "made": made and _revision(made), **documents}


def config_diff(database: Database, _view: NodeView, old: str, new: str) -> Document:
    """What differs between two versions."""
    first, second = _number(database, old), _number(database, new)
    differences = revisions.differences(_at(database, first), _at(database, second))
    return {"old": first, "new": second, "differences": differences}


def config_rollback(database: Database, _view: NodeView, version: str) -> Document:
    """What going back would change."""
    number = _number(database, version)
    now, then = revisions.configuration(database), _at(database, number)
    plan = revisions.rollback_of(database, number)
    stays = {(change["kind"], change["name"], key) for change in plan.stays for key in change["keys"]}
    changes = []
    for change in revisions.differences(now, then):
        keys = {
            key: pair for key, pair in change["keys"].items() if (change["kind"], change["name"], key) not in stays
        }  # fmt: skip
        if keys:
            changes.append({**change, "keys": keys})
    return {"from": database.version, "to": number, "changes": changes, "stays": plan.stays}


def upgrade_status(database: Database, _view: NodeView) -> Document:
    """What is active, and what stands in the way of more."""
    active = database.cluster.active_version
    nodes: dict[str, Document] = {}
    for node in sorted(database.nodes):
        member = database.member(node)
        software = member.software
        nodes[database.nodes[node].name] = {
            "state": str(member.state),
            "known": software.is_known,
            "lowest": software.lowest,
            "highest": software.highest,
            "release": software.release,
            "image": software.image,
            "restart_pending": member.restart_asked > software.started_index,
            "started_index": software.started_index,
        }
    known = [config["highest"] for config in nodes.values() if config["known"]]
    target = min([HIGHEST, *known])
    wanted = max(active, HIGHEST)
    lacking = upgrade.obstacles(database.nodes.values(), database.members, wanted) if wanted > active else {}
    return {
        "active": active,
        "understood": [LOWEST, HIGHEST],  # by the answering node
        "possible": max(active, target),
        "wanted": wanted,
        "missing": lacking,
        "nodes": nodes,
    }


def audit(database: Database, view: NodeView) -> Document:
    """Who asked for what."""
    entries = [{**_audit(record), "here": False} for record in database.audit.values()]
    entries += [{**refused, "number": None, "index": None, "here": True} for refused in view.refused]
    return {"audit": sorted(entries, key=lambda entry: (-entry["at_ms"], -(entry["number"] or 0)))}


def _audit(record: Audit) -> Document:
    return {
        "number": record.number, "index": record.index, "at_ms": record.at_ms, "user": record.user,
        "uid": record.uid, "role": str(Role(record.role)), "node": record.node, "operation": record.operation,
        "subject": record.subject, "outcome": record.outcome,
    }  # fmt: skip


def _revision(revision: Revision) -> Document:
    return {
        "version": revision.version, "index": revision.index, "at_ms": revision.at_ms, "user": revision.user,
        "uid": revision.uid, "node": revision.node, "what": revision.what, "whole": revision.whole,
    }  # fmt: skip


def _number(database: Database, text: str) -> int:
    if not text:
        return database.version
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise ControlRefused(f"{text[:40]!r} is no version", "configuration", "name it by its number, as 3")
    return int(text)


def _at(database: Database, version: int) -> Configuration:
    try:
        return revisions.configuration_at(database, version)
    except revisions.UnknownVersion as error:
        raise ControlRefused(str(error), "configuration", "see `muster config history`") from error
