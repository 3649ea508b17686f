"""Which starts may begin: places, and lanes of them (P8.10). No start waits for one that is slow or hangs.

What has run here before, and programs, begin quickly, and wait for no others: they have a lane of their own. A start
that takes long gives its place back. The runner's image imports this module: the standard library only.
"""

from collections.abc import Iterable

from muster.records.units import US_PER_MS

MAXIMUM_STARTS = 32  # start commands that have just begun; the others wait for their turn, stops and recoveries never
PLACE_MS = 1000  # how long a start has its place: one that takes longer waits for something, and holds up no other
MAXIMUM_SLOW_STARTS = 1024  # that have lost their place, and are at work still


def lane_of(*, has_run: bool, is_program: bool) -> int:
    """Which places a start takes."""
    return 1 if has_run or is_program else 0


class Turns:
    """The places that are taken now."""

    __slots__ = ("_maximum", "_place_us", "_slow", "_taken")

    def __init__(self, maximum: int = MAXIMUM_STARTS, place_ms: int = PLACE_MS) -> None:
        self._maximum, self._place_us = maximum, place_ms * US_PER_MS
        self._taken = [0, 0]  # by first starts here; by programs, and by what has run here before
        self._slow = 0

    def count(self, starts: Iterable[tuple[int, int]], now_us: int) -> None:
        """Count anew: (lane, when it was launched) of each start at work; a program has its place until executed."""
        self._taken, self._slow = [0, 0], 0
        for lane, launched_us in starts:
            if now_us - launched_us < self._place_us:
                self._taken[lane] += 1
            else:
                self._slow += 1

    def begun(self, lane: int) -> None:
        """One more has begun."""
        self._taken[lane] += 1

    def has_place(self, lane: int) -> bool:
        """Whether another start may begin."""
        return self._taken[lane] < self._maximum and self._slow < MAXIMUM_SLOW_STARTS

    def awaited(self, lane: int) -> tuple[int, int, str]:
        """What a start waits for: the places taken of how many, and by what (P8.12)."""
        if self._slow >= MAXIMUM_SLOW_STARTS:
            return self._slow, MAXIMUM_SLOW_STARTS, "slow starts"
        by = "starts of programs, and of what has run there before," if lane else "starts"
        return self._taken[lane], self._maximum, by
