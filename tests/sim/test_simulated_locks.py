"""Random histories of lock managers, judged by what their clients may rely on (P12.2-P12.14; see `lock_world.py`)."""

import os

import pytest

from lock_world import Broken, World
from muster.core.locks.messages import Granted
from muster.core.locks.modes import NONE, Mode

# `make test-long` sets more; each takes about 20 ms of a processor
SEEDS = 3 * int(os.environ.get("MUSTER_SIM_SEEDS", "96"))
BATCHES = 8
ROUGH = {"faults": 24, "actions": 500, "names": 4}  # every second history: rounds begin again and again


@pytest.mark.random_faults
@pytest.mark.parametrize("batch", range(BATCHES))
def test_p12_11_p12_12_p12_13_nothing_is_granted_twice_or_lost_under_random_faults(batch: int) -> None:
    """At no moment do two clients have what excludes each other, of nodes that are not proven dead.

    No grant and no waiter is lost, tokens rise, blocks are what was written last or say that they are not, owners and
    masters agree in the end.
    """
    grants, faults = 0, 0
    for seed in range(batch, SEEDS, BATCHES):
        world = World(seed, **ROUGH if seed // BATCHES % 2 else {})
        try:
            world.run()
        except (AssertionError, KeyError) as error:
            pytest.fail(f"seed {seed}: {error!r}")
        grants += world.checker.grants
        faults += sum(world.told.values())
    assert grants > SEEDS // BATCHES * 20 and faults > SEEDS // BATCHES * 3


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
