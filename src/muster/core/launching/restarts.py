"""When a process that has ended is started again (P7.7, P10.3): at once after a long run, else ever later.

Who runs it (init the daemon, the runner its watcher) tells what has happened and when, and starts it once `at_us` has
come. The pause has a bound, so that whoever waits for a sign of life gets one. The image of guard and runner imports
this module: the standard library only.
"""

from muster.records.units import US_PER_MS

FIRST_PAUSE_MS = 50  # before the second start in a row; doubles up to the bound
STABLE_MS = 10_000  # one that ran so long is started again at once


class Restarts:
    """The starts of one process, one after the other. Times are microseconds of the machine's clock since its boot."""

    def __init__(self, longest_pause_ms: int, shortest_pause_ms: int = 0) -> None:
        """`shortest_pause_ms`: also after a long run, but not where its end was asked for."""
        self.at_us: int | None = 0  # when to start it next; None while it runs
        self._longest_ms, self._shortest_ms = longest_pause_ms, shortest_pause_ms
        self._pause_ms = 0  # before the next start, where this run is short
        self._since_us = 0

    def is_due(self, now_us: int) -> bool:
        """Whether to start it now."""
        return self.at_us is not None and now_us >= self.at_us

    def begun(self, now_us: int) -> None:
        """It is being started."""
        self.at_us, self._since_us = None, now_us

    def not_begun(self, now_us: int) -> None:
        """It could not be started: the machine has no room for it, so it is tried again after the longest pause."""
        self.at_us = now_us + self._longest_ms * US_PER_MS

    def ended(self, now_us: int, *, asked_for: bool) -> None:
        """It has ended; `asked_for`: by itself, for a successor, which follows at once (P10.3)."""
        if asked_for or now_us - self._since_us >= STABLE_MS * US_PER_MS:
            self._pause_ms = 0
        pause_ms = 0 if asked_for else max(self._shortest_ms, self._pause_ms)
        self.at_us = now_us + pause_ms * US_PER_MS
        self._pause_ms = min(max(FIRST_PAUSE_MS, 2 * self._pause_ms), self._longest_ms)
