"""What an over full store gives up, in a written order (P9.6): a release that counted less may have filled it.

First what undoes versions, then the audit, then what commands wrote in the causes of services, then the history itself.
Never an identity that may be repeated, never a definition, and never a state.
"""

from msgspec.structs import replace

from muster.core.draft import Draft
from muster.core.room import TEXTS, Room
from muster.records.texts import LEAST_TEXT_BYTES, clipped


def excess_of(draft: Draft, room: Room) -> int:
    """By how much the database may grow above what the store holds; nothing or less where it fits."""
    kept = room.kept("operation", draft.database.operations) + room.kept("operation", draft.operations)
    kept += room.kept("audit", draft.audit) + room.kept("revision", draft.revisions)
    return room.used(draft) + kept - room.capacity.database


def shed(draft: Draft, room: Room) -> None:
    """Give up as much as is above what the store holds, as far as one entry goes; the rest follows in the next."""
    for step in (_undo_contents, _audit, _outputs, _history):
        excess = excess_of(draft, room)
        if excess <= 0 or draft.is_full:
            return
        step(draft, room, excess)


def _undo_contents(draft: Draft, _room: Room, excess: int) -> None:
    for version in sorted(draft.revisions):
        revision = draft.revisions[version]
        if excess <= 0 or draft.is_full:
            return
        if revision.undo:
            excess -= len(revision.undo)
            draft.put(replace(revision, undo=b"", whole=False), "the store is over full: versions cannot be undone")


def _audit(draft: Draft, room: Room, excess: int) -> None:
    for number in sorted(draft.audit)[:-1]:
        if excess <= 0 or draft.is_full:
            return
        excess -= room.kept("audit", {number: draft.audit[number]})
        draft.forget("audit", str(number), "the store is over full: the oldest records of the audit are given up")


def _outputs(draft: Draft, _room: Room, excess: int) -> None:
    for service in list(draft.services.values()):
        if excess <= 0 or draft.is_full:
            return
        short = {key: clipped(getattr(service, key), LEAST_TEXT_BYTES) for key in TEXTS}
        cut = replace(service, **short)
        if cut != service:
            excess -= sum(len(getattr(service, key).encode()) - len(short[key].encode()) for key in TEXTS)
            draft.put(cut, "the store is over full: long causes are cut")


def _history(draft: Draft, room: Room, excess: int) -> None:
    for version in sorted(draft.revisions)[:-1]:
        if excess <= 0 or draft.is_full:
            return
        excess -= room.kept("revision", {version: draft.revisions[version]})
        draft.forget("revision", str(version), "the store is over full: the oldest versions are given up")
