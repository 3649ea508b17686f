"""A virtual world that the checkers judge at every stop: until all is at its end, or for so long."""

from muster.records.units import US_PER_MS
from muster.sim.checkers.checkers import Progress, judge
from muster.sim.history import Applied, ReplicaState
from muster.sim.world.time import US_PER_S
from muster.sim.world.world import World

LONGEST_US = 25 * US_PER_S  # of virtual time, until everything must be at its end


def settle(world: World) -> None:
    """Go on until nothing is missing any more; that nobody has broken a rule by then."""
    outlook = Progress(world.history, world.settings.nodes)
    until_us = world.loop.now_us + LONGEST_US
    while outlook.missing() and world.loop.now_us < until_us:
        world.run_until(world.loop.now_us + 50 * US_PER_MS)
    assert not outlook.missing()
    assert not judge(world.history)


def run(world: World, milliseconds: int) -> None:
    """Go on for so long; that nobody has broken a rule by then."""
    world.run_until(world.loop.now_us + milliseconds * US_PER_MS)
    assert not judge(world.history)


def newest_state(world: World) -> ReplicaState:
    """What the replica shows that has got furthest."""
    return max((item for item in world.history if isinstance(item, Applied)), key=lambda item: item.index).state
