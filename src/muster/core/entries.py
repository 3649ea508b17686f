"""Applying a committed entry: the whole records that it carries, and the little that follows from them by itself.

All nodes apply the same entries, those of other releases among them, and must come to the same copy. So what is here
never changes within a version (P10.1): what is to follow from a change otherwise goes into the entry, as a record.
"""

from muster.records.configuration import Operation, most_operations
from muster.records.database import MAXIMUM_LINEAGE, Database, Entry, Forget
from muster.records.kinds import Record, kind_named
from muster.records.members import Member


def apply(database: Database, entry: Entry) -> None:
    """Apply the next committed entry (P2.6). Raises `ValueError` if it is not the next one."""
    if entry.index != database.index + 1:
        raise ValueError(f"entry {entry.index} does not follow index {database.index}")
    for change in entry.changes:
        if isinstance(change, Forget):
            _forget(database, change)
        else:
            _put(database, change, entry.index)
    if entry.term != database.term:
        database.lineage = (*database.lineage, (entry.term, entry.index))[-MAXIMUM_LINEAGE:]  # P11.2
    database.index, database.term = entry.index, entry.term


def _put(database: Database, record: Record, index: int) -> None:
    if isinstance(record, Member) and moves_epoch(database.members.get(record.node), record):
        database.epoch = index
    database.put(record)
    if isinstance(record, Operation):
        _keep_newest_operations(database)


def _forget(database: Database, change: Forget) -> None:
    """A record goes, and what cannot be without it: a node's member record goes with the node (P1.3)."""
    kind = kind_named(change.kind)
    database.forget(kind, change.key)
    if kind.takes_along:
        database.forget(kind_named(kind.takes_along), change.key)


def moves_epoch(before: Member | None, now: Member) -> bool:
    """Whether a member record moves the fencing token: another state, or another incarnation (SPEC 7.7)."""
    return before is None or (before.state, before.incarnation) != (now.state, now.incarnation)


def _keep_newest_operations(database: Database) -> None:
    """Identities beyond the bound go, the oldest first; until then a repeat is answered from its record (P9.1)."""
    operations = database.operations
    while len(operations) > most_operations(database.cluster):
        del operations[next(iter(operations))]
