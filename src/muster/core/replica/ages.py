"""How long ago an entry was committed, as this node's replica knows it (SPEC 6.3: a wait survives a change of master).

Clocks of nodes are not compared: each node notes by its own clock when its replica took an entry in, and a snapshot
carries the ages that its sender knows. So a new master counts on from what it has seen itself, or from what the last
one told it; what it cannot know it counts from when it first saw it, which only makes a wait longer.
"""

from collections import deque

from muster.records.database import Database
from muster.records.units import US_PER_MS

HORIZON_STEP_US = 2_000_000
HORIZON_STEPS = 120
MINIMUM_KEPT = 1000  # entries, before those that no record counts from are forgotten


class Ages:
    """The times at which this replica took in the entries that its records count from."""

    def __init__(self) -> None:
        self._taken_us: dict[int, int] = {}
        self._prune_at = MINIMUM_KEPT
        self._horizon: deque[tuple[int, int]] = deque(maxlen=HORIZON_STEPS)  # (when, newest index then)

    def applied(self, index: int, database: Database, now_us: int) -> None:
        """The replica has taken in entry `index`, and is `database` now."""
        self._taken_us[index] = now_us
        self._note(index, now_us)
        if len(self._taken_us) > self._prune_at:
            self.prune(database)
            self._prune_at = 2 * len(self._taken_us) + MINIMUM_KEPT

    def adopted(self, database: Database, told: tuple[tuple[int, int], ...], now_us: int) -> None:
        """The replica was replaced by `database`; its sender told how old (ms) its entries are."""
        ages_ms = dict(told)
        self._note(database.index, now_us)
        for index in counted_from(database):
            self._taken_us.setdefault(index, now_us - ages_ms.get(index, 0) * US_PER_MS)
        self.prune(database)

    def age_us(self, index: int, now_us: int) -> int:
        """How long ago entry `index` was committed, at least; 0 for one that is not known."""
        return max(0, now_us - self._taken_us.get(index, now_us))

    def counted_us(self, index: int, now_us: int) -> int:
        """The same, for a rule of the master: one that was not known is counted from now on, so that its wait ends."""
        return max(0, now_us - self._taken_us.setdefault(index, now_us))

    def age_ms(self, index: int, now_us: int) -> int:
        """The same in milliseconds."""
        return self.age_us(index, now_us) // US_PER_MS

    def _note(self, index: int, now_us: int) -> None:
        if not self._horizon or now_us - self._horizon[-1][0] >= HORIZON_STEP_US:
            self._horizon.append((now_us, index))

    def index_before(self, age_us: int, now_us: int) -> int:
        """The newest entry that is known to be older than so long; -1 if none is."""
        return max((index for at_us, index in self._horizon if now_us - at_us >= age_us), default=-1)

    def prune(self, database: Database) -> None:
        """Forget every entry that no record counts from."""
        kept = counted_from(database)
        self._taken_us = {index: taken_us for index, taken_us in self._taken_us.items() if index in kept}

    def told(self, database: Database, now_us: int) -> tuple[tuple[int, int], ...]:
        """What to send with a snapshot of `database`."""
        return tuple((index, self.age_us(index, now_us) // US_PER_MS) for index in sorted(counted_from(database)))


def counted_from(database: Database) -> set[int]:
    """The entries from which a record of `database` counts time."""
    found = {record.since for record in database.maintenance.values()}
    found |= {record.since for record in database.standby.values()}
    found |= {member.waits.since for member in database.members.values() if member.waits is not None}
    for fencing in database.fencing.values():
        found.update((fencing.since, *fencing.fenced, *(past.entry for past in fencing.past)))
    for service in database.services.values():
        found.update(service.failures)
        found.update(takeover.entry for takeover in service.takeovers)
        found.update(exhausted.entry for exhausted in service.exhausted)
        if service.waits_since:
            found.add(service.waits_since)
        if service.rest is not None:
            found.add(service.rest.entry)
    found.discard(0)
    return found
