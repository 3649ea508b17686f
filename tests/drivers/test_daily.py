"""A timer that is due once a day by the local clock (P8.17)."""

import pytest

from muster.drivers.image.daily import DAY_S, LOOK_S, Daily

H, M = 3600, 60
DAY = 20_000 * DAY_S


class Clocks:
    """A local clock that may jump, and the time that passes."""

    def __init__(self, at: str, begins_s: int) -> None:
        self.local_s, self.passed_s = DAY + begins_s, 500
        self.daily = Daily(at, self.local_s, self.passed_s * 1_000_000)
        self.ran: list[int] = []

    def passes(self, seconds: int) -> None:
        """Somebody looks whenever it is asked for."""
        end_s = self.passed_s + seconds
        while self.passed_s < end_s:
            wait_s = max(1, min(int(self.look()), end_s - self.passed_s))
            self.passed_s += wait_s
            self.local_s += wait_s
        self.look()

    def jumps(self, seconds: int) -> None:
        """The clock is set, or summer time begins or ends."""
        self.local_s += seconds

    def look(self) -> float:
        """Somebody looks; after how long to look again."""
        wait_s = self.daily.look(self.local_s, self.passed_s * 1_000_000)
        assert 0 < wait_s <= LOOK_S
        if self.daily.is_due:
            self.ran.append(self.local_s - DAY)
            self.daily.is_due = False
        return wait_s


def test_p8_17_it_is_due_once_a_day_at_its_time() -> None:
    clocks = Clocks("02:30", 1 * H)
    clocks.passes(3 * DAY_S)
    assert clocks.ran == [2 * H + 30 * M, DAY_S + 2 * H + 30 * M, 2 * DAY_S + 2 * H + 30 * M]


@pytest.mark.parametrize("jump", [H, -H, 20 * M, -20 * M, 2 * H, -2 * H])
@pytest.mark.parametrize("after", [1 * H, 2 * H, 2 * H + 30 * M, 3 * H])
def test_p8_17_where_the_clock_jumps_it_is_due_once_that_day_all_the_same(jump: int, after: int) -> None:
    clocks = Clocks("02:30", 30 * M)
    clocks.passes(after - 30 * M)
    clocks.jumps(jump)
    clocks.passes(8 * H)
    assert len(clocks.ran) == 1
    began = 2 * H + 30 * M
    assert clocks.ran[0] == (began if after >= began or after + jump < began else after + jump)


def test_p8_17_a_clock_that_is_put_right_makes_nothing_up() -> None:
    clocks = Clocks("02:30", 1 * H)
    clocks.jumps(4 * H)
    clocks.passes(20 * H)
    assert clocks.ran == []
    clocks.jumps(-9 * H)
    clocks.passes(DAY_S)
    assert len(clocks.ran) == 1
    suspended = Clocks("02:30", 1 * H)  # the time has passed, though nobody looked: the machine slept
    suspended.local_s += 8 * H
    suspended.passed_s += 8 * H
    suspended.look()
    assert len(suspended.ran) == 1
