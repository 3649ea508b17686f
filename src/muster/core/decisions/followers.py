"""What a master knows of the others in its term, and what it must tell them again (SPEC 2.4, 2.5).

Messages may be lost and every one is idempotent: whoever lags behind is sent what it misses, or the whole database,
at most once per half heartbeat, until its report shows that it has got it.
"""

from collections import deque

from muster.core.replica.ages import Ages
from muster.records.database import Database, Entry, encode_database
from muster.records.messages import Append, Report, Snapshot
from muster.records.terms import Term
from muster.records.timing import Profile
from muster.records.units import US_PER_MS

RECENT_ENTRIES = 128  # kept to repeat to those that missed them
RECENT_BYTES = 8 << 20  # of all of them; who misses more is sent the database
REPEATED_BYTES = 1 << 20  # sent at once, or one entry


class Followers:
    """The memory of one term of a master; forgotten with the term."""

    def __init__(self, term: Term, profile: Profile) -> None:
        self.term = term
        self.reports: dict[int, Report] = {}  # a node in here has acknowledged the term (SPEC 7.7)
        self._pause_us = profile.heartbeat_ms * US_PER_MS // 2
        self._recent: deque[tuple[Entry, int]] = deque()  # each with its length, oldest first
        self._recent_bytes = 0
        self._told_us: dict[int, int] = {}
        self._index: dict[int, int] = {}

    def reported(self, node: int, report: Report) -> bool:
        """Take a report in; False if the node has not accepted this term and must be sent the database."""
        last = self.reports.get(node)
        if last is not None and last.incarnation == report.incarnation and report.sent_us < last.sent_us:
            return True  # overtaken by a later one
        if report.term != self.term:
            self.reports.pop(node, None)
            return False
        if node not in self.reports:
            # It has just accepted the term: what was committed since its database was sent must not wait for a
            # heartbeat, since all that is committed from now on leaves a gap without it.
            self._told_us.pop(node, None)
        self.reports[node] = report
        self._index[node] = report.index
        return True

    def is_at(self, node: int, term: Term, index: int) -> None:
        """A heartbeat told where the node is."""
        if term == self.term:
            self._index[node] = index

    def committed(self, entry: Entry, length: int, now_us: int) -> dict[int, Append]:
        """The next entry is committed, of so many bytes: what to send to whom."""
        self._recent.append((entry, length))
        self._recent_bytes += length
        while len(self._recent) > RECENT_ENTRIES or self._recent_bytes > max(RECENT_BYTES, length):
            self._recent_bytes -= self._recent.popleft()[1]
        for node in self.reports:
            self._told_us[node] = now_us
        append = Append(self.term, entry.index - 1, (entry,))
        return dict.fromkeys(self.reports, append)

    def repeat(self, node: int, database: Database, ages: Ages, now_us: int) -> Append | Snapshot | None:
        """What to send to a node that lags or has not accepted the term; None if it was told just now (P5.2)."""
        index = self._index.get(node, 0)
        if node in self.reports and index >= database.index:
            return None
        if now_us - self._told_us.get(node, now_us - self._pause_us) < self._pause_us:
            return None
        self._told_us[node] = now_us
        missing = self._missing(index)
        if node in self.reports and missing and missing[0].index == index + 1:
            return Append(self.term, index, missing)
        return Snapshot(self.term, encode_database(database), ages.told(database, now_us))

    def _missing(self, index: int) -> tuple[Entry, ...]:
        """The first entries behind `index`, as many as are sent at once."""
        found: list[Entry] = []
        together = 0
        for entry, length in self._recent:
            together += length if entry.index > index else 0
            if found and together > REPEATED_BYTES:
                break
            if entry.index > index:
                found.append(entry)
        return tuple(found)
