"""The audit record: every change that somebody asked for, in the database, the newest ones (SPEC 9.3, P10.4).

Names only: what an operation is about, never a command line, a certificate, a key or a token.
"""

from muster.core.draft import Draft
from muster.core.room import Room
from muster.records.configuration import Audit
from muster.records.messages import Request
from muster.records.operations import OperationRequest, kind_of
from muster.records.services import ApplyServices
from muster.records.texts import USER_BYTES, clipped
from muster.records.versions import KEEPS_HISTORY

MAXIMUM_RECORDS = 200
MAXIMUM_CHARACTERS = 160  # of a subject; bytes of an outcome
_SHOWN_NAMES = 8


def record(draft: Draft, request: Request, outcome: str, room: Room) -> None:
    """Put the record of a change into the draft that makes the change; drop the oldest."""
    if draft.cluster.active_version < KEEPS_HISTORY:
        return
    author, operation = request.author, request.operation
    draft.put(
        Audit(
            max(draft.audit, default=0) + 1, draft.index, author.at_ms, author.uid,
            clipped(author.user, USER_BYTES), author.role, author.node,
            kind_of(operation).name, subject_of(operation), clipped(outcome, MAXIMUM_CHARACTERS),
        )
    )  # fmt: skip
    size = room.kept("audit", draft.audit)
    for number in sorted(draft.audit)[:-1]:
        if len(draft.audit) <= MAXIMUM_RECORDS and size <= room.capacity.audit:
            return
        size -= room.kept("audit", {number: draft.audit[number]})
        draft.forget("audit", str(number))


def subject_of(operation: OperationRequest) -> str:
    """What the operation is about, in short."""
    if isinstance(operation, ApplyServices):
        parts = [_listed("define", [definition.name for definition in operation.definitions])]
        parts.append(_listed("withdraw", list(operation.withdraw)))
        return "; ".join(part for part in parts if part)[:MAXIMUM_CHARACTERS]
    values = {key: getattr(operation, key) for key in kind_of(operation).shown}
    shown = [f"{key}={value}" for key, value in values.items() if value not in (None, "", False)]
    return " ".join(shown)[:MAXIMUM_CHARACTERS]


def _listed(verb: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{verb} {', '.join(names[:_SHOWN_NAMES])}{more}"
