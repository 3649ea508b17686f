"""What this node has decided as master about where services go (SPEC 8.2, 9.4): bounded, explained when asked.

Kept is what each decision was made of, not its explanation: a thousand services that are placed together cost a
thousand small tuples, and nothing is put into words before somebody wants to read it.
"""

from collections import deque
from typing import NamedTuple

from msgspec import Struct

from muster.core.services.explanation import explain_past
from muster.core.services.placement import NodeVerdict
from muster.records.placements import PlacedTogether
from muster.records.terms import Term

MAXIMUM_DECISIONS = 8192  # of all entries together; the newest entry is kept whatever it has placed
MAXIMUM_TOLD = 10  # of one service in one answer, the newest ones


class PastDecision(Struct, frozen=True, array_like=True):
    """A decision of the past with its verdicts, on its way to whoever asks. Its age is by the clock of its node."""

    index: int  # of the entry
    term: Term
    age_us: int
    service: str
    node: int  # `NO_NODE` where none was left
    state: str
    words: str
    verdicts: tuple[NodeVerdict, ...]


class _Recorded(NamedTuple):
    at_us: int
    term: Term
    entry: int
    together: PlacedTogether


class PlacementRecord:
    """The newest entries of this node's masterships that placed something."""

    def __init__(self) -> None:
        self._entries: deque[_Recorded] = deque()
        self._decisions = 0

    def add(self, at_us: int, term: Term, index: int, together: PlacedTogether) -> None:
        """The entry is committed."""
        self._entries.append(_Recorded(at_us, term, index, together))
        self._decisions += len(together.decisions)
        while self._decisions > MAXIMUM_DECISIONS and len(self._entries) > 1:
            self._decisions -= len(self._entries.popleft().together.decisions)

    def of(self, service: str, now_us: int, at: int = 0) -> tuple[PastDecision, ...]:
        """The newest decisions about `service`, newest first; with `at`, none that is newer than that entry."""
        found: list[PastDecision] = []
        for recorded in reversed(self._entries):
            if at and recorded.entry > at:
                continue
            for position, decision in enumerate(recorded.together.decisions):
                if decision.service == service:
                    verdicts = explain_past(recorded.together, position)
                    age_us = now_us - recorded.at_us
                    about = (service, decision.node, decision.state, decision.words)
                    found.append(PastDecision(recorded.entry, recorded.term, age_us, *about, verdicts))
            if len(found) >= MAXIMUM_TOLD:
                break
        return tuple(found[:MAXIMUM_TOLD])
