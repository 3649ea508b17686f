"""How long a caretaker tries, and when it says what its machine owes (P6.33, P6.34): every input, without a node."""

import pytest

from muster.core.launching.clearing import (
    END_US,
    NEVER,
    QUICK_US,
    RETRY_US,
    STORE_US,
    VERIFY_US,
    WRITER_US,
    Deed,
    Ending,
)
from muster.records.registers import Owed

OWED, LESS = Owed(5, (1, 2), ()), Owed(5, (1,), ())
AT_US = 1_000_000_000


def ending(*, guard_is_gone: bool = True) -> Ending:
    """One whose node has ended at `AT_US`."""
    found = Ending()
    assert found.begin(AT_US) and not found.begin(AT_US + 1), "it ends once"
    if guard_is_gone:
        found.guard_went(AT_US)
    return found


def step(of: Ending, after_us: int, owed: Owed = OWED, *, is_done: bool = True, writer_is_over: bool = True) -> Deed:
    """What follows so long after the end."""
    return of.next(owed, AT_US + after_us, is_done=is_done, writer_is_over=writer_is_over)


def test_p6_34_what_fails_is_tried_again_after_a_pause_and_at_the_end_once_more_only() -> None:
    runs = Ending()
    assert runs.next_try_us(AT_US) == AT_US + RETRY_US
    assert ending().next_try_us(AT_US + 1) == NEVER


def test_p6_34_nobody_waits_for_ever_for_the_rest_of_a_node_whose_guard_is_gone() -> None:
    runs = Ending()
    assert not runs.never_comes(AT_US + 10 * END_US)
    runs.guard_went(AT_US)
    assert not runs.never_comes(AT_US + END_US)
    assert runs.never_comes(AT_US + END_US + 1)


@pytest.mark.parametrize(("guard_is_gone", "writer_is_over"), [(False, False), (False, True), (True, False)])
def test_p6_33_nothing_is_written_before_nobody_else_may_write_or_they_had_their_time(
    guard_is_gone: bool, writer_is_over: bool
) -> None:
    found = ending(guard_is_gone=guard_is_gone)
    assert step(found, WRITER_US - 1, writer_is_over=writer_is_over) is Deed.WAIT
    assert step(found, WRITER_US, writer_is_over=writer_is_over) is Deed.WRITE
    assert step(ending(), 0) is Deed.WRITE


def test_p6_33_what_has_ended_so_soon_is_told_in_one_record() -> None:
    found = ending()
    assert step(found, QUICK_US - 1, is_done=False) is Deed.WAIT
    assert step(found, QUICK_US, is_done=False) is Deed.WRITE


def test_p6_33_a_store_that_does_not_take_it_is_tried_again_after_a_pause_and_not_for_ever() -> None:
    found = ending()
    assert step(found, 1) is Deed.WRITE
    assert step(found, STORE_US) is Deed.WAIT
    assert step(found, STORE_US + 1) is Deed.WRITE
    assert step(found, END_US + 1, is_done=False) is Deed.WRITE, "a cleanup is at work still"
    assert step(found, END_US + 1) is Deed.GIVE_UP


def test_p6_33_what_was_written_is_looked_at_and_written_again_where_it_is_hidden_or_out_of_date() -> None:
    found = ending()
    found.written(OWED, AT_US)
    assert step(found, 1, is_done=False) is Deed.WAIT
    assert step(found, 1) is Deed.LOOK
    assert step(found, 1, LESS) is Deed.WRITE, "less is owed by now"
    found.written(LESS, AT_US + 1)
    found.hidden()
    assert step(found, 2, LESS) is Deed.WRITE


def test_p6_33_while_a_guard_may_be_there_what_was_written_is_looked_at_later() -> None:
    found = ending(guard_is_gone=False)
    found.written(OWED, AT_US)
    assert step(found, VERIFY_US - 1) is Deed.WAIT
    assert step(found, VERIFY_US) is Deed.LOOK
