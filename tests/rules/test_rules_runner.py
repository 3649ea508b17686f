"""What a runner accepts, refuses, remembers and cancels, and how far a command is (SPEC 6.6, 7.7, P6.20, P8.1-P8.3).

Tables: every input in every state of the machines of `core/launching/`. `tests/drivers/` tries the same with processes.
"""

from typing import NamedTuple

import pytest

from muster.core.launching import job, ledger
from muster.core.launching.job import AGAIN, CLEAR, END, PAUSE, Next, Progress, Whom
from muster.core.launching.ledger import (
    MAXIMUM_CANCELLED,
    Exited,
    Known,
    Ledger,
    LedgerEntry,
    NoRoom,
    Refusal,
    Result,
    Retired,
    Taken,
)
from muster.core.launching.turns import MAXIMUM_SLOW_STARTS, Turns, lane_of

MS = 1000


class Wish(NamedTuple):
    """A command that is asked for."""

    service: str
    generation: int
    action: str
    is_program: bool = False
    command: tuple[str, ...] = ("true",)
    timeout_ms: int = 1000
    grace_ms: int = 200
    retries: int = 0
    retry_pause_ms: int = 50
    final: frozenset[int] = frozenset()
    extend_limit_ms: int = 0


def new_ledger(maximum: int = 100, acts: int = 2) -> Ledger[LedgerEntry]:
    """An empty one."""
    return Ledger(LedgerEntry, maximum, acts)


def take(book: Ledger[LedgerEntry], service: str, generation: int, action: str) -> Taken[LedgerEntry]:
    """Ask for a command that is taken."""
    outcome = book.take(Wish(service, generation, action))
    assert isinstance(outcome, Taken), outcome
    return outcome


STATES = ("unknown", "at work", "succeeded", "failed")
NEW, SAME, OTHER, OLD = (6, "start"), (5, "start"), (5, "stop"), (4, "start")
REFUSED = "refused: generation {} is not newer than 5"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("asked", [NEW, SAME, OTHER, OLD])
def test_p6_20_of_each_place_only_what_is_newer_is_taken_and_the_same_is_answered_from_memory(
    state: str, asked: tuple[int, str]
) -> None:
    book, (generation, action) = new_ledger(), asked
    if state != "unknown":
        entry = take(book, "web", 5, "start").entry
        if state != "at work":
            book.finish(entry, state == "succeeded", "its detail")
    outcome = book.take(Wish("web", generation, action))
    if state == "unknown" or asked == NEW:
        assert isinstance(outcome, Taken)
        assert (outcome.entry.result.generation, outcome.entry.result.action) == asked
        assert outcome.entry.is_at_work and list(book.working) == ["web"]
        cancelled = [(result.generation, result.succeeded, result.detail) for result in outcome.entry.cancelled]
        replaced = [(5, False, "cancelled by generation 6 (start)")] if state == "at work" else []
        assert cancelled == replaced
    elif asked == SAME:
        assert isinstance(outcome, Known)
        told = outcome.result and (outcome.result.finished, outcome.result.succeeded, outcome.result.detail)
        assert told == (None if state == "at work" else (True, state == "succeeded", "its detail"))
    else:
        assert outcome == Refusal(REFUSED.format(generation))
        assert book.places["web"].result.generation == 5 and not book.places["web"].cancelled


def test_what_a_newer_command_has_cancelled_is_told_once_and_never_more_than_a_bounded_number() -> None:
    book = new_ledger()
    entry = take(book, "web", 1, "start").entry
    for generation in range(2, MAXIMUM_CANCELLED + 5):
        take(book, "web", generation, "start")
    kept = [result.generation for result in book.cleared(entry)]
    assert kept == list(range(4, MAXIMUM_CANCELLED + 4))
    assert book.cleared(entry) == []
    take(book, "web", 90, "stop")
    told = book.finish(entry, True, "")
    assert [(result.generation, result.succeeded) for result in told] == [(MAXIMUM_CANCELLED + 4, False), (90, True)]
    assert not book.working and not entry.is_at_work


def test_p8_2_a_notification_stands_apart_gives_way_to_what_is_newer_and_is_not_older_than_it() -> None:
    book = new_ledger()
    take(book, "web", 5, "start")
    notice = take(book, "web", 6, "notify")
    assert notice.ends is None and book.places["web"].is_at_work  # it cancels nothing
    assert take(book, "web", 7, "stop").ends is notice.entry
    book.finish(notice.entry, False, "cancelled")
    assert book.take(Wish("web", 7, "notify")) == Refusal("refused: generation 7 is not newer than 7")
    assert take(book, "web", 8, "start").ends is None


def test_p8_3_action_functions_are_alone_bounded_cancelled_by_name_and_forgotten_at_their_end() -> None:
    book = new_ledger(acts=2)
    first, second = take(book, "event", 1, "act").entry, take(book, "event", 2, "act").entry
    assert first is not second and first.is_apart
    assert book.take(Wish("event", 3, "act")) == Refusal("refused: 2 action functions are at work on this node already")
    assert take(book, "web", 3, "start").ends is None  # others are not held up
    assert (book.act_at_work("event", 1), book.act_at_work("event", 3)) == (first, None)
    book.finish(first, True, "")
    assert book.act_at_work("event", 1) is None
    book.drop_act(first)
    book.drop_act(book.places["web"])  # a service is remembered
    assert list(book.places) == [second.place, "web"]
    take(book, "event", 3, "act")


@pytest.mark.parametrize(("action", "taken"), [("start", False), ("recovery", False), ("stop", True), ("act", False)])
def test_p4_12_a_retired_runner_takes_stops_only_and_answers_nothing_else(action: str, taken: bool) -> None:
    book = new_ledger()
    book.retire()
    assert isinstance(book.take(Wish("web", 1, action)), Taken if taken else Retired)
    assert len(book.places) == taken


class Running(LedgerEntry):
    """One of which something runs."""

    __slots__ = ()

    def is_idle(self) -> bool:
        """No."""
        return False


def test_of_a_forgotten_service_and_of_none_that_is_unknown_anything_older_is_taken() -> None:
    book = new_ledger(maximum=2)
    for generation, name in ((7, "first"), (8, "second")):
        book.finish(take(book, name, generation, "start").entry, True, "")
    take(book, "third", 9, "start")  # the first, asked for longest ago, makes room
    assert list(book.places) == ["second", "third"]
    assert book.take(Wish("first", 7, "start")) == Refusal("refused: generation 7 is not newer than 7")
    assert isinstance(book.take(Wish("first", 8, "start")), Taken)
    assert list(book.places) == ["third", "first"]
    assert book.take(Wish("fourth", 99, "start")) == NoRoom(
        "run: 2 services run on this node already; no node can hold more"
    )
    busy = Ledger(Running, 1)
    taken = busy.take(Wish("web", 1, "start"))
    assert isinstance(taken, Taken)
    busy.finish(taken.entry, True, "")
    assert isinstance(busy.take(Wish("other", 2, "start")), NoRoom)  # what still runs is not forgotten


def test_places_beside_services_are_forgotten_first_and_that_bars_no_service() -> None:
    book = new_ledger(maximum=2)
    book.finish(take(book, "web", 5, "start").entry, True, "")
    book.finish(take(book, "web", 6, "notify").entry, True, "")
    take(book, "other", 1, "start")
    assert list(book.places) == ["web", "other"]


@pytest.mark.parametrize(
    ("is_program", "left", "believed"), [(True, True, False), (False, True, False), (False, False, True)]
)
def test_p6_35_a_failed_stop_leaves_something_only_of_what_was_begun_elsewhere(
    is_program: bool, left: bool, believed: bool
) -> None:
    book = new_ledger()
    outcome = book.take(Wish("web", 1, "start", is_program))
    assert isinstance(outcome, Taken)
    outcome.entry.started(left=left)
    book.finish(outcome.entry, True, "")
    assert outcome.entry.result.left is left and outcome.entry.has_run
    entry = take(book, "web", 2, "stop").entry
    entry.stop_fails()
    assert entry.result.left is believed


@pytest.mark.parametrize("state", STATES[1:])
def test_p8_1_the_end_of_a_program_is_told_once_and_of_the_present_generation_only(state: str) -> None:
    book = new_ledger()
    entry = take(book, "web", 5, "start").entry
    if state != "at work":
        book.finish(entry, state == "succeeded", "")
    assert entry.awaits_an_end() is (state == "succeeded")
    ended = Exited(5, "exited", 0, "", 1)
    assert [entry.ended(ended._replace(generation=4)), entry.exited] == [False, None]
    assert [entry.ended(ended), entry.exited] == [True, ended]
    assert not entry.awaits_an_end()
    assert take(book, "web", 6, "start").entry.exited is None


def test_p6_31_a_refused_command_has_failed_and_details_are_bounded() -> None:
    result = ledger.refused(5, "start", "x" * 5000)
    assert (result.finished, result.succeeded, len(result.detail)) == (True, False, ledger.DETAIL_CHARACTERS)
    assert Result(1, "stop").left


# ---- how far a command is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "phase", "whom"),
    [
        ("stop", CLEAR, Whom.COMMANDS_AT_WORK),
        ("stop", AGAIN, Whom.THIS_ATTEMPT),
        ("stop", END, Whom.EVERYTHING),
        ("start", CLEAR, Whom.EVERYTHING),
        ("start", AGAIN, Whom.EVERYTHING),
        ("start", END, Whom.EVERYTHING),
        ("recovery", CLEAR, Whom.EVERYTHING),
        ("notify", AGAIN, Whom.EVERYTHING),
    ],
)
def test_a_ladder_ends_everything_but_what_a_stop_command_is_to_find(action: str, phase: str, whom: Whom) -> None:
    progress = Progress(Wish("web", 1, action))
    progress.enter(phase, 0)
    assert progress.whom() is whom


@pytest.mark.parametrize(
    ("action", "command", "phase", "following"),
    [
        *((action, ("true",), CLEAR, Next.LAUNCH) for action in ("start", "stop", "recovery", "notify", "act")),
        ("stop", (), CLEAR, Next.END_THE_REST),
        ("start", (), CLEAR, Next.SUCCEED),
        ("recovery", (), CLEAR, Next.SUCCEED),
        ("start", ("true",), AGAIN, Next.WAIT),
        ("stop", ("true",), AGAIN, Next.WAIT),
        ("stop", (), END, Next.FINISH),
        ("start", ("true",), END, Next.FINISH),
    ],
)
def test_what_follows_when_nothing_is_left(action: str, command: tuple[str, ...], phase: str, following: Next) -> None:
    progress = Progress(Wish("web", 1, action, command=command))
    progress.enter(phase, 0)
    assert progress.ladder_is_done(7 * MS) is following
    if following is Next.WAIT:
        assert (progress.phase, progress.wake_us) == (PAUSE, 57 * MS)


@pytest.mark.parametrize(("action", "grace_ms"), [("start", 200), ("stop", 100)])
def test_a_ladder_asks_then_kills_again_and_again_and_gives_up_at_a_bound(action: str, grace_ms: int) -> None:
    progress = Progress(Wish("web", 1, action, timeout_ms=100))  # a stop takes no longer than its time
    progress.enter(END, 0)
    assert (progress.kill_us, progress.wake_us, progress.killing) == (grace_ms * MS, grace_ms * MS, False)
    assert not progress.hangs(grace_ms * MS)
    assert progress.killing and progress.wake_us == (grace_ms + job.KILL_AGAIN_MS) * MS
    bound_us = (grace_ms + job.KILL_BOUND_MS) * MS
    assert not progress.hangs(bound_us - 1)
    assert progress.hangs(bound_us)


@pytest.mark.parametrize(
    ("retries", "status", "phases"),
    [(0, 1, [END]), (2, 1, [AGAIN, AGAIN, END]), (2, 3, [END]), (2, ledger.NO_STATUS, [AGAIN, AGAIN, END])],
)
def test_an_attempt_is_repeated_as_often_as_asked_and_not_after_a_final_status(
    retries: int, status: int, phases: list[str]
) -> None:
    progress = Progress(Wish("web", 1, "start", retries=retries, final=frozenset({3})))
    progress.enter(CLEAR, 0)
    for number, phase in enumerate(phases, 1):
        progress.attempt_begins()
        assert progress.failure is None
        progress.launched(5 * MS)
        assert progress.wake_us == progress.deadline_us == 1005 * MS
        assert progress.attempt_failed("it fell", status) == phase
        assert progress.failure == (f"attempt {number} of 3: it fell" if retries else "it fell")


@pytest.mark.parametrize("phase", [CLEAR, AGAIN, PAUSE, END])
def test_what_is_cancelled_says_why_unless_its_end_is_under_way(phase: str) -> None:
    progress = Progress(Wish("web", 1, "notify"))
    progress.phase, progress.failure = phase, "its own"
    assert progress.is_cancelled("no longer wanted") is (phase != END)
    assert progress.failure == ("its own" if phase == END else "no longer wanted")


# ---- places among the starts -----------------------------------------------------------------------------------------


def test_p8_10_no_start_waits_for_one_of_the_other_lane_nor_for_one_that_is_slow() -> None:
    quick = lane_of(has_run=True, is_program=False)
    assert [quick, lane_of(has_run=False, is_program=True), lane_of(has_run=False, is_program=False)] == [1, 1, 0]
    turns = Turns(maximum=2, place_ms=10)
    for _ in range(2):
        assert turns.has_place(0)
        turns.begun(0)
    assert not turns.has_place(0) and turns.has_place(1)
    assert turns.awaited(0) == (2, 2, "starts")
    turns.count([(0, 0), (0, 5 * MS)], 9 * MS)
    assert not turns.has_place(0)
    turns.count([(0, 0), (0, 5 * MS)], 10 * MS)  # the first is slow by now
    assert turns.has_place(0)
    turns.count([(0, 0)] * MAXIMUM_SLOW_STARTS, 10 * MS)
    assert not turns.has_place(0) and not turns.has_place(1)
    assert turns.awaited(1) == (MAXIMUM_SLOW_STARTS, MAXIMUM_SLOW_STARTS, "slow starts")
