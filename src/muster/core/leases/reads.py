"""When this node reads the strip by itself: every `read_ms`, at once where something waits for it (SPEC 2.2, 7.1)."""

from collections.abc import Iterator

from muster.core.effects import ReadStrip
from muster.core.outbox import Outbox
from muster.records.timing import Profile
from muster.records.units import US_PER_MS


class Reads:
    """The periodic read: one is under way, or the next one is due."""

    def __init__(self, profile: Profile, now_us: int) -> None:
        self.next_us = now_us
        self._early_us = profile.read_ms * US_PER_MS // 2  # what is due so soon goes along: one waking
        self._pause_us = profile.read_ms * US_PER_MS
        self._slack_us = profile.read_ms * US_PER_MS // 8
        self._under_way = 0  # its number

    @property
    def due_us(self) -> int | None:
        """When the next one begins; None while one is under way."""
        return None if self._under_way else self.next_us

    def is_due(self, now_us: int) -> bool:
        """Whether one is to begin now: one that is due in a moment is, so that one waking serves all."""
        return not self._under_way and now_us + self._slack_us >= self.next_us

    def begin_if_due(self, numbers: Iterator[int], now_us: int, out: Outbox) -> int:
        """Ask for one if it is due; how early what else is due soon may go along with it."""
        if not self.is_due(now_us):
            return 0
        self._under_way = next(numbers)
        out.put(ReadStrip(self._under_way))
        return self._early_us

    def awaits(self, number: int) -> bool:
        """Whether this is the read that is under way."""
        return number == self._under_way != 0

    def soon(self, now_us: int) -> None:
        """Something waits for the next one."""
        self.next_us = now_us

    def done(self, started_us: int, now_us: int) -> None:
        """It has ended, having begun then."""
        self._under_way = 0
        self.next_us = max(now_us, started_us + self._pause_us)

    def failed(self, now_us: int) -> None:
        """It gave nothing."""
        self._under_way = 0
        self.next_us = now_us + self._pause_us
