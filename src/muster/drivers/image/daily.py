"""A timer that is due once a day, by the local clock of people (P8.17): summer time, and a clock that is set.

Nothing waits here: whoever looks says what the clocks show. The local clock may jump beside the time that passes: an
hour forward or back with summer time, or because somebody has set it. A jump of up to `CORRECTION_S` is one of people's
time: what it passes over is due at once, and what it shows again was there already. A longer one puts a wrong clock
right: what the wrong clock showed never was.
"""

import calendar
import time

DAY_S = 86_400
CORRECTION_S = 3 * 3600  # as cron has it
LOOK_S = 5  # at least so often somebody must look, as a clock may be set at any moment


def local_seconds() -> int:
    """What the local clock shows, as seconds since 1970 of a place without a time zone."""
    time.tzset()  # the time zone of the machine may have been changed
    return calendar.timegm(time.localtime())


class Daily:
    """Once a day at `at`, from now on. Times are seconds of the local clock, and microseconds of CLOCK_BOOTTIME."""

    def __init__(self, at: str, local_s: int, now_us: int) -> None:
        hours, _, minutes = (int(part) if part.isdigit() else 0 for part in at.partition(":"))
        self._at_s = hours * 3600 + minutes * 60
        self._local_s, self._now_us = local_s, now_us
        self._last_day: int | None = None
        self.is_due = False  # until it is told

    def look(self, local_s: int, now_us: int) -> float:
        """See whether it is due, and set `is_due`; after how many seconds to look again."""
        before_s, passed_s = self._local_s, (now_us - self._now_us) / 1_000_000
        self._local_s, self._now_us = local_s, now_us
        day = (local_s - self._at_s) // DAY_S
        if abs(local_s - before_s - passed_s) > CORRECTION_S:
            self._last_day = None
        elif before_s < day * DAY_S + self._at_s <= local_s and day != self._last_day:
            self._last_day, self.is_due = day, True
        return min(LOOK_S, (self._at_s - local_s - 1) % DAY_S + 1)
