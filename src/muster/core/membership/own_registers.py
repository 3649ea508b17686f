"""The registers that this node writes beside its claim: its view, and the marks that it publishes (P4.3, SPEC 1.6).

One write of each is under way at a time. What the store has refused is written again: the view with the next look at
the links, the marks with the next publication.
"""

from collections.abc import Callable, Iterator

from muster.core.effects import WriteMarks, WriteView
from muster.core.leases import sightings
from muster.core.leases.observer import Observer
from muster.core.links.links import Links
from muster.core.membership import membership
from muster.core.outbox import Outbox
from muster.core.this_node import ThisNode
from muster.records.database import Database
from muster.records.registers import MAXIMUM_MARKS, Marks, Strip, View
from muster.records.terms import Stamp, Term
from muster.records.versions import KERNELS_WORD


class OwnRegisters:
    """What is being written into them, and what was written last."""

    def __init__(self, me: ThisNode, strip: Strip, numbers: Iterator[int], out: Outbox) -> None:
        """`numbers`: of store operations, those of the tenure among them."""
        self._me, self._numbers, self._out = me, numbers, out
        marks = strip.marks[me.node] if me.node < len(strip.marks) else None
        self._sequence = marks.stamp.sequence if marks else 0  # of the marks
        self._published: tuple[tuple[int, int], ...] = ()
        self._writing: dict[int, str] = {}  # operation -> view or marks

    def write_view_if_due(
        self, links: Links, observer: Observer, database: Database, term: Term, now_us: int, early_us: int
    ) -> None:
        """Note who is heard late; write whom this node hears, if that is news, or due within `early_us`."""
        live = [node for node in database.nodes if observer.may_live(node)]
        sightings.note_late(observer, links, database, now_us, self._out)
        heard = links.view_due(len(database.nodes), live, now_us, early_us)
        if heard is not None:
            self._write_view(links, database, heard, term, now_us)

    def _write_view(self, links: Links, database: Database, heard: frozenset[int], term: Term, now_us: int) -> None:
        """Write whom this node hears; a little later if a view is being written."""
        if "view" in self._writing.values():
            links.view_waits(now_us)
            return
        for node in sorted((links.said or frozenset()) - heard):
            if node in links.connected:
                detail = f"{database.name_of(node)}: nothing heard within the bound"
                self._out.trace("link lost", detail, about=node)
        sequence = links.view_written(heard, now_us)
        late = links.late if database.cluster.active_version >= KERNELS_WORD else frozenset()
        view = View(self._stamp(term, sequence), heard, links.cut_off, late)
        self._out.put(WriteView(self._begin("view"), view))

    def publish_marks(self, database: Database, term: Term, is_live: Callable[[int], bool]) -> None:
        """As master: publish the marks of every committed eviction (P4.3, SPEC 7.2).

        Where there are more than the register holds, those go first that renew their leases: a silent node stops by
        itself when it wakes. Each proof of a death makes room for another.
        """
        wanted = membership.condemned(database.members)
        if len(wanted) > MAXIMUM_MARKS:
            wanted = tuple(sorted(sorted(wanted, key=lambda mark: not is_live(mark[0]))[:MAXIMUM_MARKS]))
        if wanted == self._published or "marks" in self._writing.values():
            return
        self._published = wanted
        self._sequence += 1
        marks = Marks(self._stamp(term, self._sequence), wanted)
        self._out.put(WriteMarks(self._begin("marks"), marks))

    def publish_anew(self) -> None:
        """What was published counts for nothing: this node leads anew, or the store has refused it."""
        self._published = ()

    def ended(self, operation: int) -> str:
        """A write has ended: `view`, `marks`, or nothing if it was none of these."""
        return self._writing.pop(operation, "")

    def problem(self) -> str:
        """What does not hold of it between two steps, in words."""
        kinds = list(self._writing.values())
        return "two writes of one register are under way" if len(kinds) != len(set(kinds)) else ""

    def _begin(self, kind: str) -> int:
        operation = next(self._numbers)
        self._writing[operation] = kind
        return operation

    def _stamp(self, term: Term, sequence: int) -> Stamp:
        return Stamp(self._me.node, self._me.incarnation, term, sequence)
