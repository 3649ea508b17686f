"""A cluster that moves to another store, with a crash, a pause and a lost disk at every step (P11.9-P11.14)."""

from collections.abc import Callable, Mapping

import pytest

from muster.core import moving
from muster.core.moving import Place, Sign, Stage, Start
from muster.sim.search.move_model import MoveBounds
from muster.sim.search.move_search import SUITES, run
from muster.sim.search.too_large import SearchTooLarge

CALM = MoveBounds(claims=2, frames=0, crashes=0, boots=0)
QUICK = MoveBounds(claims=1, frames=0, crashes=1, boots=1)


def test_p11_14_pauses_and_masters_beside_each_other_break_nothing() -> None:
    result = run(CALM)
    assert not result.violation, str(result)
    assert result.reached >= {"moved", "given up", "rolled forward", "decided in the new store"}
    assert result.states > 5_000


@pytest.mark.parametrize("lost", [{}, {"old_lost": 1}, {"new_lost": 1}])
def test_p11_14_a_crash_and_a_lost_disk_at_every_step_break_nothing(lost: dict[str, int]) -> None:
    result = run(QUICK._replace(**lost))
    assert not result.violation, str(result)
    assert result.reached >= {"moved", "followed"}


@pytest.mark.soak
@pytest.mark.parametrize("bounds", SUITES)
def test_p11_14_the_suites_find_nothing(bounds: MoveBounds) -> None:
    result = run(bounds)
    assert not result.violation, str(result)
    assert "moved" in result.reached


def test_p11_14_a_search_that_is_too_large_says_so() -> None:
    with pytest.raises(SearchTooLarge, match="lower the other bounds"):
        run(CALM._replace(states=100))


# ---- each rule left out is caught

OLD, NEW = frozenset((Place.OLD,)), frozenset((Place.NEW,))
STILL = MoveBounds(claims=1, frames=1, crashes=0, boots=0)
ALIKE = {Sign.NONE: Place.OLD, Sign.ONE: Place.OLD, Sign.BOTH: Place.NEW}


def without_consent(reached: Stage, newest: int, copied: int, *_: object) -> bool:
    return reached is Stage.BEGUN and newest == copied


def with_an_old_copy(
    reached: Stage,
    newest: int,
    copied: int,
    members: Mapping[int, int],
    beats: Mapping[int, int],
    proven: frozenset[int],
) -> bool:
    return (
        reached is Stage.BEGUN
        and copied >= 0
        and all(beats.get(i) == life or i in proven for i, life in members.items())
    )


MUTANTS: dict[str, tuple[str, Callable[..., object], MoveBounds, str]] = {
    "move without its commit point": ("may_sign", lambda reached: reached is not Stage.NONE, STILL, "is not closed"),
    "decide after the closing": ("decides", lambda _: True, STILL, "after it has been closed"),
    "give up after the closing": ("may_give_up", lambda reached: reached is not Stage.NONE, STILL, "been closed"),
    "close without everybody's beats": ("may_close", without_consent, STILL, "does not beat"),
    "close with an old copy": ("may_close", with_an_old_copy, STILL, "copy is not whole"),
    "take one copy of the sign for both": (
        "sign_of", lambda a, b: Sign.BOTH if a or b else Sign.NONE, STILL, "sign is not complete",
    ),
    "go on in the old store after one copy": ("acts_in", lambda sign: ALIKE[sign], STILL, "by the old store"),
    "go on in the new store after one copy": (
        "acts_in", lambda sign: Place.NEW if sign else Place.OLD, STILL, "sign is not complete",
    ),
    "renew in the old store alone": (
        "renewed_in", lambda _, sign: NEW if sign is Sign.BOTH else OLD, STILL, "by the new store",
    ),
    "renew in the new store alone, too early": (
        "renewed_in", lambda part, sign: NEW if part or sign is Sign.BOTH else OLD, STILL, "by the old store",
    ),
    "leave the old store after one copy": (
        "renewed_in", lambda part, sign: NEW if sign else OLD | NEW if part else OLD, STILL, "by the old store",
    ),
    "boot on the old store whatever it says": ("start_on_old", lambda *_: Start.HERE, QUICK, "has moved"),
    "follow to another store": (
        "start_on_old", lambda sign, *_: Start.FOLLOW if sign else Start.HERE, QUICK._replace(new_lost=1), "follows to",
    ),
    "boot on the new store before the decision": ("start_on_new", lambda *_: Start.HERE, QUICK, "sign is not complete"),
    "boot on the new store where the old one is gone": (
        "start_on_new", lambda force, sign: Start.HERE if force or sign in (None, Sign.BOTH) else Start.REFUSE,
        QUICK._replace(old_lost=1), "sign is not complete",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_p11_14_each_rule_left_out_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, broken, bounds, problem = MUTANTS[name]
    monkeypatch.setattr(moving, function, broken)
    result = run(bounds, checks_ends=False)
    assert problem in result.violation
    assert result.counterexample
