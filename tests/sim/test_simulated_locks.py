"""Random histories of lock managers, judged by what their clients may rely on (P12.2-P12.14; see `lock_world.py`)."""

import os

import pytest

from lock_histories import Event, Fault, Impossible, judge
from lock_world import Broken, World
from muster.core.locks.messages import Granted
from muster.core.locks.modes import NONE, Mode

# `make test-long` sets more; each takes about 20 ms of a processor
SEEDS = 3 * int(os.environ.get("MUSTER_SIM_SEEDS", "96"))
BATCHES = 8
MANY = 2000
ROUGH = {"faults": 24, "actions": 500, "names": 4}  # every second history: rounds begin again and again


@pytest.mark.random_faults
@pytest.mark.parametrize("batch", range(BATCHES))
def test_p12_11_p12_12_p12_13_nothing_is_granted_twice_or_lost_under_random_faults(batch: int) -> None:
    """At no moment do two clients have what excludes each other, of nodes that are not proven dead.

    No grant and no waiter is lost, tokens rise, blocks are what was written last or say that they are not, owners and
    masters agree in the end.
    """
    _histories(range(batch, SEEDS, BATCHES))


def _histories(seeds: range) -> None:
    grants = 0
    for seed in seeds:
        world = World(seed, **ROUGH if seed // BATCHES % 2 else {})
        try:
            world.run()
        except (AssertionError, KeyError) as error:
            pytest.fail(f"seed {seed}: {error!r}")
        assert sum(world.told.values()) > 0, f"seed {seed}: no fault"
        grants += world.checker.grants
    assert grants > len(seeds) * 20


@pytest.mark.long
@pytest.mark.random_faults
@pytest.mark.parametrize("batch", range(BATCHES))
def test_p12_11_p12_12_p12_13_two_thousand_histories_with_at_least_one_fault_each(batch: int) -> None:
    _histories(range(10_000 + batch, 10_000 + MANY, BATCHES))


def test_the_checker_notices_two_owners_a_lost_value_and_a_token_that_repeats() -> None:
    """It cannot be passed by saying nothing."""
    for wrong in (_second_owner, _old_value, _same_token):
        world = World(0)
        with pytest.raises(Broken):
            wrong(world)


def _second_owner(world: World) -> None:
    world.checker.granted("a", _grant(1, (1, 1)), (0, 1), gained=True)
    world.checker.granted("a", _grant(2, (1, 2)), (1, 1), gained=True)


def _old_value(world: World) -> None:
    world.checker.granted("a", _grant(1, (1, 1)), (0, 1), gained=True)
    world.checker.granted("a", _grant(3, (1, 2), mode=Mode.NL), (0, 1), gained=True)
    world.checker.gave_up(1, NONE, b"new")
    world.checker.granted("a", _grant(2, (1, 3)), (1, 1), gained=True)


def _same_token(world: World) -> None:
    world.checker.granted("a", _grant(1, (1, 1)), (0, 1), gained=True)
    world.checker.gave_up(1, NONE, None)
    world.checker.granted("a", _grant(2, (1, 1)), (1, 1), gained=True)


def _grant(lock: int, token: tuple[int, int], mode: Mode = Mode.EX) -> Granted:
    return Granted(1, lock, mode, token, b"", True)


# ---- the checker of what clients of real nodes see (lock_histories.py)


def _seen(client: str, at: int, until: int, mode: Mode, token: int, value: str = "", wrote: str = "") -> list[Event]:
    """One holding of a client, which writes in the end."""
    common = {"name": "a", "node": client, "client": client}
    return [
        {**common, "what": "has", "at_ns": at, "since_ns": at, "mode": int(mode), "token": [1, token], "value": value,
         "valid": True},
        {**common, "what": "gives", "at_ns": until, "token": [1, token], "value": wrote},
        {**common, "what": "wrote", "at_ns": until + 1, "value": wrote},
    ]  # fmt: skip


def test_a_history_of_real_clients_is_judged() -> None:
    ordered = [*_seen("n0", 10, 20, Mode.EX, 1, wrote="x"), *_seen("n1", 30, 40, Mode.PR, 2, "x")]
    assert judge(ordered, []) == 2
    beside = [*_seen("n0", 10, 20, Mode.PR, 2), *_seen("n1", 15, 25, Mode.CR, 1)]
    assert judge(beside, []) == 2
    struck = [*_seen("n0", 10, 90, Mode.EX, 1), *_seen("n1", 30, 40, Mode.EX, 2)]
    assert judge(struck, [Fault("n0", 25)]) == 2, "what a dead node's client believes to have counts no more"


def _lost(client: str, at: int) -> Event:
    return {"name": "a", "node": client, "client": client, "what": "lost", "at_ns": at}


def _late(*, is_lost: bool) -> list[Event]:
    """A client of n0 goes down from EX to CR, and hears of that when its node has ended and another has had EX."""
    kept = _seen("n0", 10, 20, Mode.EX, 1)[:2]
    late = [{**each, "since_ns": 20} for each in _seen("n0", 60, 70, Mode.CR, 1)[:2]]
    return [*kept, *late, *([_lost("n0", 80)] if is_lost else []), *_seen("n1", 40, 50, Mode.EX, 2)]


def test_what_a_lost_client_heard_last_may_have_been_over_when_it_heard_it() -> None:
    for faults in ([], [Fault("n0", 5)], [Fault("n0", 15)], [Fault("n0", 30)], [Fault("n0", 90)]):
        assert judge(_late(is_lost=True), faults) == 3, faults
        if faults != [Fault("n0", 30)]:  # else its end is known
            with pytest.raises(Impossible):
                judge(_late(is_lost=False), faults)


@pytest.mark.parametrize(
    "events",
    [
        [*_seen("n0", 10, 20, Mode.EX, 1), *_seen("n1", 15, 25, Mode.CR, 2)],
        [*_seen("n0", 10, 20, Mode.EX, 2), *_seen("n1", 30, 40, Mode.EX, 2)],
        [*_seen("n0", 10, 20, Mode.EX, 2), *_seen("n1", 30, 40, Mode.PR, 1)],
        [*_seen("n0", 10, 20, Mode.EX, 1, wrote="x"), *_seen("n1", 30, 40, Mode.PR, 2)],
        [{**each, "valid": False} for each in _seen("n0", 10, 20, Mode.EX, 1)],
        [*_seen("n0", 10, 20, Mode.EX, 1), *_seen("n1", 15, 25, Mode.CR, 2), _lost("n0", 30)],
    ],
    ids=[
        "two owners",
        "a token twice",
        "a token that falls",
        "an old value",
        "no value, and nobody lost",
        "two owners, one lost later",
    ],
)
def test_a_history_that_cannot_have_been_is_noticed(events: list[Event]) -> None:
    with pytest.raises(Impossible):
        judge(events, [])
