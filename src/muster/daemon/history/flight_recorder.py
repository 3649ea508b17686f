"""The node's bounded memory of what happened, and its log (SPEC 9.4).

Every event goes to the log as a line (`drivers/image/log_lines.py`), and into a ring that the socket's `timeline`
query reads.
What belongs to a transition also goes into a record of its own, from which all nodes' accounts of it are merged.
While the daemon runs, the lines of one turn of its loop are written together; urgent ones at once, with those before.
A log that takes no more (a full disk, a pipe that nobody reads) loses lines, which are counted, and disturbs nothing.
"""

import select
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from muster.core.effects import Trace
from muster.core.transitions import narration as history
from muster.core.transitions.narration import ELECTED
from muster.daemon.history.transition_record import TransitionRecord
from muster.drivers.image.log_lines import Log
from muster.drivers.image.process_tree import say
from muster.records.messages import Happened
from muster.records.terms import Term

CAPACITY = 4096
_LEVELS = {
    **dict.fromkeys(("panic", "cannot run", "needs you"), "error"),
    **dict.fromkeys(
        (
            *(
                "link lost",
                "proof of death",
                "superseded",
                "interconnect trouble",
                "runner refused",
                "history not kept",
                "snapshot refused",
            ),
            *("subsystem lost", "subsystem hung", "subsystems not kept", "level refused", "join refused"),
            *("node condemned", "objection"),
            *(history.FORCED_OUT, history.HUNG, history.WAITS, history.OVERDUE),
        ),
        "warning",
    ),
    **dict.fromkeys((history.STEP_TOLD, history.STEP_ACKNOWLEDGED, history.HEARD), "debug"),
}


_URGENT = ("error", "warning")


def _pieces(lines: list[str]) -> Iterator[list[str]]:
    """Lines that one write puts into a pipe whole."""
    piece: list[str] = []
    length = 0
    for line in lines:
        if piece and length + len(line) >= select.PIPE_BUF:
            yield piece
            piece, length = [], 0
        piece.append(line)
        length += len(line) + 1
    if piece:
        yield piece


def level_of(event: str) -> str:
    """How urgent an event is: error, warning, info or debug."""
    return _LEVELS.get(event, "info")


class Event(NamedTuple):
    """Something that happened on this node; `number` grows by one with each."""

    number: int
    at_us: int  # CLOCK_BOOTTIME
    event: str
    detail: str
    term: Term
    commit_index: int
    stimulus: str = ""  # the input that it follows from


def placed(at_us: int, trace: Trace, term: Term, index: int) -> Happened:
    """The event as it is kept and told; an entry bears its own index, all else that of the replica at the time."""
    return Happened(
        at_us, trace.event, trace.detail, term, trace.index or index, trace.index > 0,
        trace.transition, trace.level, trace.barrier, trace.about, trace.kind, trace.nodes, trace.successor,
    )  # fmt: skip


class FlightRecorder:
    """Keeps the last `CAPACITY` events and writes each to the log."""

    def __init__(self, node: str, write: Callable[[str], bool] = say) -> None:
        """`write` puts one line into the log; False if the line was lost. It neither waits nor raises."""
        self.transitions = TransitionRecord()
        self._write = write
        self._log, self._unheld_log = Log(node, "daemon", self._hold), Log(node, "daemon", write)
        self._held: list[str] = []  # lines of this turn
        self._later: Callable[[Callable[[], None]], object] | None = None
        self.stimulus: Callable[[], str] = str  # names the input that is being worked on: what is noted follows from it
        self._lost = 0
        self._events: deque[Event] = deque(maxlen=CAPACITY)
        self._number = 0

    def trace(self, at_us: int, trace: Trace, term: Term, index: int) -> None:
        """Record an event of the core, which may belong to a transition; `index` is that of the replica."""
        if not trace.quiet:
            self.note(at_us, trace.event, trace.detail, term, index, trace.transition)
        if trace.transition or trace.about >= 0 or trace.event == ELECTED:
            self.transitions.add(placed(at_us, trace, term, index))

    def note(self, at_us: int, event: str, detail: str, term: Term, index: int, transition: int = 0) -> None:
        """Record one event."""
        self._number += 1
        stimulus = self.stimulus()
        self._events.append(Event(self._number, at_us, event, detail, term, index, stimulus))
        level = level_of(event)
        if not self._log.wants(level):
            return
        fields: dict[str, object] = {"term": str(term), "index": index}
        if stimulus:
            fields["stimulus"] = stimulus
        if transition:
            fields["transition"] = transition
        if self._lost and not self._held and self._unheld_log.tell_lost(self._lost):
            self._lost = 0
        self._lost += not self._log.tell(level, event, detail, at_us, **fields)
        if level in _URGENT:
            self.flush()

    def hold(self, later: Callable[[Callable[[], None]], object] | None) -> None:
        """Write lines together: `later` calls back at the end of this turn of the loop. None: at once again."""
        self._later = later
        self.flush()

    def flush(self) -> None:
        """Write what is held."""
        held, self._held = self._held, []
        for piece in _pieces(held):
            if not self._write("\n".join(piece)):
                self._lost += len(piece)

    def _hold(self, line: str) -> bool:
        if self._later is None:
            return self._write(line)
        if not self._held:
            self._later(self.flush)
        self._held.append(line)
        return True

    def since(self, index: int) -> list[dict[str, object]]:
        """The events since the replica was at commit index `index`, oldest first, ready for JSON."""
        return [
            {
                **event._asdict(),
                "term": event.term.number,
                "term_node": event.term.node,
                "level": level_of(event.event),
            }
            for event in self._events
            if event.commit_index >= index
        ]
