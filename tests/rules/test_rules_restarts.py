"""When a process that has ended is started again: the daemon by init (P7.7, P10.3), a watcher by the runner (P8.1)."""

from muster.core.launching.restarts import FIRST_PAUSE_MS, STABLE_MS, Restarts
from muster.records.timing import FAST
from muster.records.units import US_PER_MS

LONGEST_MS = FAST.restart_ms // 4  # as init has it: the guard waits `restart_ms` for a sign of life


def pauses_ms(*lives_ms: int, asked_for: bool = False) -> list[int]:
    """How long is waited after each of these lives."""
    restarts, found, now_us = Restarts(LONGEST_MS), [], 1_000_000_000
    for life_ms in lives_ms:
        restarts.begun(now_us)
        assert not restarts.is_due(1 << 62), "it runs"
        now_us += life_ms * US_PER_MS
        restarts.ended(now_us, asked_for=asked_for)
        assert restarts.at_us is not None
        found.append((restarts.at_us - now_us) // US_PER_MS)
    return found


def test_p8_1_a_watcher_that_has_ended_is_started_after_a_pause_and_at_once_where_it_was_not_wanted() -> None:
    for asked_for, pause_ms in ((False, 500), (True, 0)):
        restarts = Restarts(500, 500)
        for life_ms in (1, STABLE_MS, 1):
            restarts.begun(0)
            restarts.ended(life_ms * US_PER_MS, asked_for=asked_for)
            assert restarts.at_us == (life_ms + pause_ms) * US_PER_MS


def test_p7_7_the_first_start_is_due_at_once() -> None:
    assert Restarts(LONGEST_MS).is_due(0)


def test_p7_7_one_that_ends_after_a_long_life_is_started_at_once() -> None:
    assert pauses_ms(STABLE_MS, STABLE_MS) == [0, 0]
    assert pauses_ms(1, 1, STABLE_MS)[-1] == 0


def test_p7_7_one_that_keeps_ending_is_started_ever_later_but_soon_enough() -> None:
    pauses = pauses_ms(*[1] * 20)
    assert pauses[:3] == [0, FIRST_PAUSE_MS, 2 * FIRST_PAUSE_MS]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_MS


def test_p10_3_one_that_was_asked_to_end_is_followed_at_once() -> None:
    assert pauses_ms(1, 1, 1, asked_for=True) == [0, 0, 0]
    restarts = Restarts(LONGEST_MS)
    for asked_for, pause_ms in ((False, 0), (False, FIRST_PAUSE_MS), (True, 0), (False, FIRST_PAUSE_MS)):
        restarts.begun(0)
        restarts.ended(1, asked_for=asked_for)
        assert restarts.at_us == 1 + pause_ms * US_PER_MS, "what was before it counts for nothing"


def test_p7_7_one_that_could_not_be_started_is_tried_again_after_the_longest_pause() -> None:
    restarts = Restarts(LONGEST_MS)
    restarts.begun(7)
    restarts.not_begun(7)
    assert not restarts.is_due(7 + LONGEST_MS * US_PER_MS - 1)
    assert restarts.is_due(7 + LONGEST_MS * US_PER_MS)
