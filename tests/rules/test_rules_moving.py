"""What each node and the master may do while the cluster moves to another store (P11.9-P11.13)."""

import pytest

from muster.core import moving
from muster.core.moving import Place, Sign, Stage, Standing, Start, Step

OLD, NEW = frozenset((Place.OLD,)), frozenset((Place.NEW,))
MEMBERS = {0: 7, 1: 9}


@pytest.mark.parametrize(
    ("node", "refused"),
    [
        (Standing("n1", is_member=True, beats=True, is_proven=False), False),
        (Standing("n1", is_member=False, beats=False, is_proven=True), False),
        (Standing("n1", is_member=True, beats=False, is_proven=False), True),  # silent: it may run anything
        (Standing("n1", is_member=False, beats=True, is_proven=False), True),  # it joins, or leaves
    ],
)
def test_p11_9_a_move_begins_with_every_node_a_member_or_proven_dead(node: Standing, refused: bool) -> None:
    others = Standing("n0", is_member=True, beats=True, is_proven=False)
    text = moving.refusal((others, node))
    assert bool(text) is refused
    assert not refused or ("n1" in text and "--confirmed-dead" in text)


def test_p11_10_a_history_says_how_far_the_newest_move_has_come() -> None:
    assert moving.stage(()) is Stage.NONE
    assert moving.stage((Step.BEGUN, "a service")) is Stage.BEGUN
    assert moving.stage((Step.BEGUN, Step.GIVEN_UP)) is Stage.NONE
    assert moving.stage((Step.BEGUN, Step.GIVEN_UP, Step.BEGUN, Step.CLOSED)) is Stage.CLOSED
    assert moving.stage((Step.BEGUN, Step.CLOSED, Step.GIVEN_UP)) is Stage.CLOSED


def test_p11_10_a_closed_store_decides_nothing_more_and_is_not_given_up() -> None:
    assert [moving.decides(reached) for reached in Stage] == [True, True, False]
    assert [moving.may_give_up(reached) for reached in Stage] == [False, True, False]


def test_p11_10_the_old_store_is_closed_with_a_whole_copy_and_everybodys_beats() -> None:
    def may(reached: Stage, copied: int, beats: dict[int, int], proven: frozenset[int] = frozenset()) -> bool:
        return moving.may_close(reached, 5, copied, MEMBERS, beats, proven)

    assert may(Stage.BEGUN, 5, MEMBERS)
    assert may(Stage.BEGUN, 5, {0: 7}, frozenset((1,)))
    assert not may(Stage.BEGUN, 4, MEMBERS), "something was decided since the copy"
    assert not may(Stage.BEGUN, 5, {0: 7}), "nobody knows what n1 does"
    assert not may(Stage.BEGUN, 5, {0: 7, 1: 8}), "these were the beats of an earlier life"
    assert not may(Stage.NONE, 5, MEMBERS)
    assert not may(Stage.CLOSED, 5, MEMBERS)


def test_p11_11_nobody_acts_in_either_store_before_the_sign_is_in_both_copies() -> None:
    assert [moving.may_sign(reached) for reached in Stage] == [False, False, True]
    assert moving.sign_of(False, False) is Sign.NONE
    assert moving.sign_of(True, False) is Sign.ONE
    assert moving.sign_of(True, True) is Sign.BOTH
    assert moving.sign_of(False, True) is Sign.BOTH  # the first was durable before; it cannot be read now
    assert [moving.acts_in(sign) for sign in Sign] == [Place.OLD, None, Place.NEW]


def test_p11_12_who_takes_part_renews_in_both_stores_until_the_sign_is_complete() -> None:
    assert [moving.renewed_in(False, sign) for sign in (Sign.NONE, Sign.BOTH)] == [OLD, NEW]
    assert [moving.renewed_in(True, sign) for sign in Sign] == [OLD | NEW, OLD | NEW, NEW]


def test_p11_13_a_boot_on_the_old_path_follows_or_refuses() -> None:
    assert moving.start_on_old(Sign.NONE, b"id", None) is Start.HERE
    for sign in (Sign.ONE, Sign.BOTH):
        assert moving.start_on_old(sign, b"id", b"id") is Start.FOLLOW
        assert moving.start_on_old(sign, b"id", b"other") is Start.REFUSE
        assert moving.start_on_old(sign, b"id", None) is Start.REFUSE


def test_p11_13_a_boot_on_the_new_path_waits_for_the_sign() -> None:
    assert moving.start_on_new(True, None) is Start.HERE
    assert moving.start_on_new(False, Sign.BOTH) is Start.HERE
    for sign in (None, Sign.NONE, Sign.ONE):
        assert moving.start_on_new(False, sign) is Start.REFUSE
