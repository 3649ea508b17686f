"""What the runs of a check say of its service, and which may begin (P8.10, P8.16, P8.18): every input, no process."""

import pytest

from muster.core.launching import checks
from muster.core.launching.checks import AtWork, Meaning, Occurrence, Place, Tally, is_slow, is_starting, meaning_of
from muster.records.units import US_PER_MS

PLACE_US = checks.PLACE_MS * US_PER_MS
NOW_US = 1_000_000_000


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (0, Meaning.WELL), (1, Meaning.WELL), (2, Meaning.FAILED), (-1, Meaning.FAILED),
        (3, Meaning.NOTHING), (126, Meaning.NOTHING), (127, Meaning.NOTHING),
    ],
)  # fmt: skip
def test_p8_16_a_status_says_that_all_is_well_that_it_has_failed_or_nothing(code: int, meaning: Meaning) -> None:
    assert meaning_of(code, frozenset({0, 1}), frozenset({3})) is meaning


def test_p8_16_a_status_that_is_said_to_be_a_success_is_one_whatever_shells_mean_by_it() -> None:
    assert meaning_of(127, frozenset({0, 127}), frozenset()) is Meaning.WELL


@pytest.mark.parametrize(
    ("failures", "of", "runs", "occurrences"),
    [
        (1, 1, "f", {0: (1, 1)}),
        (2, 3, "fwf", {2: (2, 3)}),
        (2, 3, "fwwf", {}),
        (2, 2, "ffff", {1: (2, 2), 3: (2, 2)}),  # counted anew after it
        (3, 1, "fff", {2: (3, 3)}),  # as many as it takes
        (2, 5, "fwfw", {2: (2, 3)}),  # not once more with a run that is well
    ],
)
def test_p8_1_so_many_failures_of_the_last_runs_are_an_occurrence(
    failures: int, of: int, runs: str, occurrences: dict[int, tuple[int, int]]
) -> None:
    tally = Tally(failures, of)
    assert tally.counts_several is (max(failures, of) > 1)
    found = {number: tally.add(failed=run == "f") for number, run in enumerate(runs)}
    wanted = {number: Occurrence(*each) for number, each in occurrences.items()}
    assert {number: each for number, each in found.items() if each is not None} == wanted


def test_p8_18_a_service_may_need_time_within_its_grace_until_a_check_succeeds() -> None:
    assert is_starting(NOW_US, 5, NOW_US + 4, has_succeeded=False)
    assert not is_starting(NOW_US, 5, NOW_US + 5, has_succeeded=False)
    assert not is_starting(NOW_US, 5, NOW_US + 4, has_succeeded=True)
    assert not is_starting(NOW_US, 0, NOW_US, has_succeeded=False)


def test_p8_10_quick_checks_wait_for_those_that_have_just_begun_only_and_slow_ones_for_slow_ones() -> None:
    young, old = AtWork(NOW_US, is_slow=False), AtWork(NOW_US - PLACE_US, is_slow=False)
    slow = AtWork(NOW_US, is_slow=True)
    every = (young, young, old, slow)
    of_all = Place(4, checks.MAXIMUM_CHECKS_OF_ALL, "checks")
    assert checks.places_of(False, every, NOW_US) == (of_all, Place(2, checks.MAXIMUM_CHECKS_AT_WORK, "checks"))
    assert checks.places_of(True, every, NOW_US) == (of_all, Place(1, checks.MAXIMUM_SLOW_CHECKS, "slow checks"))


def test_p8_10_a_check_is_slow_that_took_longer_than_it_has_a_place() -> None:
    assert not is_slow(NOW_US, NOW_US + PLACE_US)
    assert is_slow(NOW_US, NOW_US + PLACE_US + 1)
