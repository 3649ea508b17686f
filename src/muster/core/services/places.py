"""What waits for a place to begin, here and on the others (P8.12): told with heartbeats, and decided upon by nobody.

A node knows its own by the moment since which each waits; on the way to others that is a duration, as clocks differ.
"""

from collections.abc import Collection
from typing import NamedTuple

from msgspec.structs import replace

from muster.core.inputs import AwaitedHere
from muster.records.messages import Heartbeat, PlaceAwaited
from muster.records.units import US_PER_MS

MAXIMUM_NAMED = 16  # of those that wait on a node; of the others it says how many there are


class AwaitedThere(NamedTuple):
    """What waits on one node: those that have waited longest, and how many there are in all."""

    named: tuple[PlaceAwaited, ...]
    in_all: int


class Places:
    """What waits here, and what the others have said of theirs."""

    def __init__(self) -> None:
        self._own: tuple[AwaitedHere, ...] = ()
        self._count = 0
        self._told: dict[int, AwaitedThere] = {}

    def wait(self, waiting: Collection[AwaitedHere], count: int) -> None:
        """What waits on this node now; `count` in all."""
        self._own = tuple(sorted(waiting, key=lambda each: each.since_us)[:MAXIMUM_NAMED])
        self._count = max(count, len(self._own))

    def own(self, now_us: int) -> AwaitedThere:
        """What waits on this node, as it is told."""
        waited = ((each.place, max(0, now_us - each.since_us) // US_PER_MS) for each in self._own)
        return AwaitedThere(tuple(replace(place, waited_ms=ms) for place, ms in waited), self._count)

    def heard(self, node: int, heartbeat: Heartbeat) -> None:
        """Another node has said what waits there."""
        if heartbeat.awaiting:
            self._told[node] = AwaitedThere(heartbeat.awaited[:MAXIMUM_NAMED], heartbeat.awaiting)
        else:
            self._told.pop(node, None)

    def everywhere(self, me: int, connected: Collection[int], now_us: int) -> dict[int, AwaitedThere]:
        """What waits on each node that is connected, and on this one."""
        found = {node: told for node, told in self._told.items() if node in connected}
        return found | ({me: self.own(now_us)} if self._count else {})


def words(place: PlaceAwaited, node: str) -> str:
    """What waits for a place, for which, and since when."""
    what = place.kind if place.service else f"{place.kind} of {place.name}"
    whose = f"its {what}" if place.service else f"the {what}"
    taken = f"{place.taken} of {place.places} {place.by} are under way on {node}"
    return f"{whose} waits for a place: {taken}, since {place.waited_ms / 1000:.0f} s"


def words_about(service: str, awaited: AwaitedThere, node: str) -> str:
    """The same of a service, if it is named; of several the one that has waited longest."""
    return next((words(place, node) for place in awaited.named if place.service == service), "")


def summary(awaited: AwaitedThere, node: str) -> str:
    """In words how many wait on a node, and which of them has waited longest."""
    if not awaited.named:
        return ""
    first = awaited.named[0]
    whose = f"{first.service}: " if first.service else ""
    number = f"{awaited.in_all} wait" if awaited.in_all > 1 else "1 waits"
    return f"{number} for a place, first {whose}{words(first, node)}"
