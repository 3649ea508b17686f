"""What the runs of a check say of its service, and which of them may begin (SPEC 5.1, P8.10, P8.16, P8.18).

Theory of operation. A run says that all is well, that its service has failed, or nothing: where the command could
not be executed, or ends with a status that means so. What says nothing is not counted. So many failures of the last
runs are an occurrence, and are counted anew after it. A run that fails while its service may still need time to start
is not counted either. Quick checks never wait for those that hang, nor these for each other: each has a place of its
kind for a moment, and all together have a bound. The watcher's process runs this: the standard library only.
"""

from collections import deque
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from muster.records.units import US_PER_MS

MAXIMUM_CHECKS_AT_WORK = 32  # that have just begun
PLACE_MS = 500  # how long a check has its place: one that takes longer waits for something, and holds up no other
MAXIMUM_SLOW_CHECKS = 64  # at work, of those whose last run took longer than that
MAXIMUM_CHECKS_OF_ALL = 1024
MAXIMUM_OF = 1000  # runs that are counted together
NOT_EXECUTED = {  # what shells, env, timeout and others end with where the command that they were given does not run
    126: "as what it was to run could not be executed",
    127: "as what it was to run was not found",
}


class Meaning(Enum):
    """What one run says."""

    WELL = auto()
    FAILED = auto()
    NOTHING = auto()  # of its service


class Occurrence(NamedTuple):
    """So many of the last runs have failed."""

    failures: int
    of: int


class Place(NamedTuple):
    """A place that a check needs: how many of these are taken, of how many, by what."""

    taken: int
    places: int
    by: str


class AtWork(NamedTuple):
    """A check that runs. `is_slow`: its last run took longer than it has a place."""

    began_us: int
    is_slow: bool


def meaning_of(code: int, success: frozenset[int], unknown: frozenset[int]) -> Meaning:
    """What an exit status says; `code` is -1 where a signal has ended the command."""
    if code in success:
        return Meaning.WELL
    return Meaning.NOTHING if code in NOT_EXECUTED or code in unknown else Meaning.FAILED


def is_slow(began_us: int, ended_us: int) -> bool:
    """Whether a run took longer than it has a place: the next one waits among the slow."""
    return ended_us - began_us > PLACE_MS * US_PER_MS


def is_starting(asked_us: int, grace_us: int, now_us: int, *, has_succeeded: bool) -> bool:
    """Whether a service may still need time: within its `start_grace`, until a check succeeds (P8.18)."""
    return not has_succeeded and now_us - asked_us < grace_us


def places_of(slow: bool, at_work: Sequence[AtWork], now_us: int) -> tuple[Place, Place]:
    """The places that a check needs one of each, `slow` or quick, beside those that are at work (P8.10)."""
    if slow:
        of_its_kind = Place(sum(1 for each in at_work if each.is_slow), MAXIMUM_SLOW_CHECKS, "slow checks")
    else:
        young_us = now_us - PLACE_MS * US_PER_MS
        quick = sum(1 for each in at_work if not each.is_slow and each.began_us > young_us)
        of_its_kind = Place(quick, MAXIMUM_CHECKS_AT_WORK, "checks")
    return Place(len(at_work), MAXIMUM_CHECKS_OF_ALL, "checks"), of_its_kind


class Tally:
    """The last runs of one check, and what they come to."""

    def __init__(self, failures: int, of: int) -> None:
        """`failures` of the last `of` runs are an occurrence."""
        self._failures = failures
        self._failed: deque[bool] = deque(maxlen=min(MAXIMUM_OF, max(failures, of)))

    @property
    def counts_several(self) -> bool:
        """Whether one run alone does not make an occurrence by itself always."""
        return self._failed.maxlen != 1

    def add(self, *, failed: bool) -> Occurrence | None:
        """A run is over that said something; what the last ones come to with it, if this one has failed."""
        self._failed.append(failed)
        failures = self._failed.count(True)
        if not failed or failures < self._failures:
            return None
        found = Occurrence(failures, len(self._failed))
        self._failed.clear()
        return found
