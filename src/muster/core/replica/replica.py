"""This node's copy of the database: what it takes of a master's snapshots and entries, and what it knows for certain.

Theory of operation. A replica that was read from a journal may hold an entry that was never committed; it is confirmed
once it was received from the master of the highest term known, or adopted by this node itself (P5.1). From then on it
only advances: by the next entry of that term (P5.2), or by the snapshot of a higher one, which must hold all that was
confirmed before (P11.4). What has become of a message is returned; who it came from is told what, is the node's matter.
"""

from enum import Enum, auto

import msgspec

from muster.core import entries
from muster.core.effects import Committed
from muster.core.leases.memory import holds
from muster.core.outbox import Outbox
from muster.core.replica.ages import Ages
from muster.core.this_node import ThisNode
from muster.core.transitions import narration
from muster.core.transitions.chronicle import chronicle
from muster.records.database import Database, Entry, decode_database
from muster.records.members import Member
from muster.records.messages import Append, Snapshot
from muster.records.terms import NO_TERM, Term

MAXIMUM_TOLD = 200  # events of one entry that are logged: an entry may start a thousand services


class Taken(Enum):
    """What has become of a snapshot or of entries."""

    NOTHING = auto()  # they are of no use here
    ADVANCED = auto()
    GAP = auto()  # entries before them are missing: the master repeats them, once it hears where this replica is
    KNOWN = auto()  # the master repeats what this replica has: it has not heard so
    HIGHER_TERM = auto()  # entries of a term whose snapshot has not come yet


def accepts(accepted: Term, confirmed: bool, index: int, offered: Term, offered_index: int) -> bool:
    """Whether a snapshot replaces this replica: a higher term, or newer in the same one (P5.1, SPEC 2.5)."""
    if not confirmed:
        return offered >= accepted
    return offered > accepted or (offered == accepted and offered_index > index)


class Replica:
    """The database of this node, and how far it is to be trusted."""

    def __init__(self, me: ThisNode, database: Database, accepted: Term, known: tuple[int, Term], out: Outbox) -> None:
        """`accepted`: the highest term known to have been in force; `known`: an entry that the node's home holds."""
        self.database = database
        self.accepted = accepted
        self.confirmed = False  # the replica may hold an entry that was never committed (P5.1)
        self.trouble = ""  # what keeps this node from following the cluster, in words
        self.ages = Ages()
        self._has_advanced = False
        self._me, self._known, self._out = me, known, out

    @property
    def own(self) -> Member:
        """The record of this node, of whatever incarnation."""
        return self.database.member(self._me.node)

    @property
    def is_of_this_life(self) -> bool:
        """Whether the replica is confirmed, and this node's record in it of the incarnation that this is."""
        return self.confirmed and self.own.incarnation == self._me.incarnation

    @property
    def own_now(self) -> Member | None:
        """The same, if it is confirmed and of the present incarnation."""
        return self.own if self.is_of_this_life else None

    @property
    def followed(self) -> Term:
        """The term whose master this replica was received from; none while it is not confirmed."""
        return self.accepted if self.confirmed else NO_TERM

    @property
    def known(self) -> tuple[int, Term]:
        """An index, and the term of its entry, that every journal to be adopted holds (P11.2, P11.4)."""
        return (self.database.index, self.database.term) if self.confirmed else self._known

    def take_advance(self) -> bool:
        """Whether it has advanced since this was asked last: the node then does what its records say."""
        advanced, self._has_advanced = self._has_advanced, False
        return advanced

    def take_snapshot(self, snapshot: Snapshot, now_us: int) -> Taken:
        """A master's whole database (P5.1); the node panics if what was committed is lost in it (P11.4)."""
        try:
            database = decode_database(snapshot.database)
        except msgspec.DecodeError as error:
            trouble = f"the master's database is of a release that this one cannot read: {error}; upgrade this node"
            if trouble != self.trouble:
                self._out.trace("snapshot refused", trouble)
            self.trouble = trouble
            return Taken.NOTHING
        if not accepts(self.accepted, self.confirmed, self.database.index, snapshot.term, database.index):
            return Taken.KNOWN if snapshot.term == self.accepted else Taken.NOTHING
        if self.confirmed and not holds(database, self.database.index, self.database.term):
            self._out.panic(f"term {snapshot.term} has lost committed entries: it is at index {database.index}")
            return Taken.NOTHING
        self._replace(database, snapshot.term, snapshot.ages, now_us)
        self.trouble = ""
        self._out.put(Committed(database.index))
        return Taken.ADVANCED

    def take_entries(self, append: Append, now_us: int) -> Taken:
        """A master's entries: the next ones are applied (P5.2)."""
        if append.term != self.accepted or not self.confirmed:
            return Taken.HIGHER_TERM if append.term > self.accepted else Taken.NOTHING
        for entry in append.entries:
            if entry.index == self.database.index + 1:
                self.apply(entry, now_us)
        last = append.entries[-1].index if append.entries else 0
        return Taken.GAP if last > self.database.index else Taken.ADVANCED

    def adopt(self, database: Database, term: Term, now_us: int) -> None:
        """This node has become master of `term` with this database."""
        self._replace(database, term, (), now_us)

    def apply(self, entry: Entry, now_us: int) -> None:
        """The next committed entry."""
        told = narration.narrate(self.database, entry)
        self._out.extend(told[:MAXIMUM_TOLD])
        if len(told) > MAXIMUM_TOLD:
            self._out.trace("more", f"{len(told) - MAXIMUM_TOLD} further events of entry {entry.index}")
        happened = chronicle(self.database, entry)
        entries.apply(self.database, entry)
        self._has_advanced = True
        self.ages.applied(entry.index, self.database, now_us)
        self._out.put(Committed(entry.index, happened))

    def _replace(self, database: Database, term: Term, ages: tuple[tuple[int, int], ...], now_us: int) -> None:
        self._out.extend(narration.skipped(self.database, database))
        self.database, self.accepted, self.confirmed = database, term, True
        self._has_advanced = True
        self.ages.adopted(database, ages, now_us)
