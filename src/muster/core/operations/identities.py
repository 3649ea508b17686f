"""The identities of operations that were carried out: what makes a repeat harmless, within its room (P9.1, P9.3).

The newest ones are kept, as many as fit into their share of the journal. One that a client may still repeat is never
given up: an operation for which there is no room is refused, and may be asked for again a moment later.
"""

from muster.core.draft import Draft, Facts
from muster.core.refusal import Refused
from muster.records.access import ITSELF, Author
from muster.records.configuration import Operation, most_operations
from muster.records.versions import KERNELS_WORD

RETRY_WINDOW_MS = 60_000  # how long a client may repeat a request: twice as long as a node waits for its answer


class PutOff(Exception):
    """There is no room for the identity of what a node asks for by itself: it asks again until there is."""


def remember(operation: Operation, author: Author, draft: Draft, facts: Facts) -> None:
    """Put the identity into the draft; give up the oldest for it.

    Raises `Refused`, or `PutOff`, if all of them may be repeated.
    """
    draft.put(operation)
    if draft.cluster.active_version < KERNELS_WORD:
        return
    kept, room = draft.database.operations, facts.room
    size = room.kept("operation", kept) + room.kept("operation", draft.operations)
    count, most = len(kept) + len(draft.operations), most_operations(draft.cluster)
    given_up = {key for kind, key in draft.changed if kind == "operation" and key not in draft.operations}
    size -= sum(room.kept("operation", {key: kept[key]}) for key in given_up if key in kept)
    count -= len(given_up)
    for identity, old in kept.items():
        if size <= room.capacity.operations and count <= most:
            return
        if identity in given_up:
            continue
        if old.index > facts.aged_index:
            break
        draft.forget("operation", identity)
        size, count = size - room.kept("operation", {identity: old}), count - 1
    if size > room.capacity.operations or count > most:
        if author.user == ITSELF:
            raise PutOff
        raise Refused(
            f"{count - 1} operations were carried out within the last {RETRY_WINDOW_MS // 1000} s; the store has no "
            "room to remember one more, in case it is repeated; ask again in a moment"
        )
