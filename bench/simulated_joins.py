"""Joins of many nodes together in the simulator: the same gate as in `joins.py`, up to 256 nodes (SPEC 3.5).

The simulator runs the real core in virtual time: its network and store have delays, processors have none. So this
shows what the rules cost, where real daemons on one machine also show what its few cores cost.
"""

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from bench.figures import Measurement
from bench.scales import Scale
from muster.client.errors import ClientError
from muster.core.node import insight
from muster.core.node.node import Node
from muster.records.levels import Level, NodeState
from muster.records.timing import FAST
from muster.records.units import US_PER_MS
from muster.sim import schedule
from muster.sim.world.surroundings import Settings
from muster.sim.world.time import US_PER_S
from muster.sim.world.world import World

GATE_LEVEL = 5
WORK_LEVELS = (10, 20, 30)  # as on real daemons
WORK_US = 50 * US_PER_MS
GATE = 0
MAXIMUM_US = 120 * US_PER_S  # of virtual time, for each step
_SLICE_US = US_PER_MS // 2  # so exact is a duration
_COARSE_US = 10 * US_PER_MS  # what is not measured is looked at more rarely: a look costs, with many nodes
LEVELS = (Level(GATE_LEVEL, "gate"), *(Level(number, f"work-{number}") for number in WORK_LEVELS))


class _JoinWorld(World):
    """A calm world in which three levels work for 50 ms each and the others not at all."""

    def work_us(self, level: int) -> int:
        """How long a level works at each step (us)."""
        return WORK_US if level in WORK_LEVELS else 0


def measure(scale: Scale, directory: Path, measurement: Measurement) -> None:  # noqa: ARG001 - as all measurements
    """Simultaneous joins; `ratio` is to the median of single joins."""
    for joining, runs in scale.simulated_joins:
        title = f"{joining} node{'s' if joining > 1 else ''}"
        for seed in range(1, runs + 1):
            began_s = time.monotonic()
            duration_ms = simulate(joining, seed)
            measurement.add(title, "duration_ms", duration_ms)
            single_ms = measurement.median("1 node", "duration_ms")
            if single_ms:
                measurement.add(title, "ratio", duration_ms / single_ms)
            measurement.add(title, "real_s", time.monotonic() - began_s)


def simulate(joining: int, seed: int) -> float:
    """Milliseconds of virtual time from the release to the last of `joining` joins. Raises `ClientError`."""
    world = _JoinWorld(Settings(joining + 1, FAST, LEVELS, half_bytes=8 << 20), Random(seed))
    world.perform(schedule.Boot(GATE))
    _until(world, "the first node to join", lambda: _joined(world) == 1, _COARSE_US)
    world.perform(schedule.Hang(GATE_LEVEL, node=GATE))
    for node in range(1, joining + 1):
        world.perform(schedule.Boot(node))
    _until(world, "the joins to wait for the gate", lambda: _waiting(world) == joining, _COARSE_US)
    released_us = world.loop.now_us
    world.perform(schedule.Unhang(GATE_LEVEL, GATE))
    _until(world, "the joins", lambda: _joined(world) == joining + 1)
    return (world.loop.now_us - released_us) / US_PER_MS


def _until(world: World, what: str, done: Callable[[], bool], slice_us: int = _SLICE_US) -> None:
    deadline_us = world.loop.now_us + MAXIMUM_US
    while not done():
        if world.stopped or world.loop.now_us > deadline_us:
            what = f"waited in vain for {what}" if not world.stopped else "the core raised an error"
            where = f"simulator, {world.settings.nodes} nodes, at {world.loop.now_us} us of virtual time"
            raise ClientError(what, where, "run it again under a debugger: the same seed gives the same run")
        world.loop.run_until(world.loop.now_us + slice_us)


def _gate_node(world: World) -> Node | None:
    daemon = world.machines[GATE].daemon
    return daemon.node if daemon is not None else None


def _joined(world: World) -> int:
    """How many nodes the first one holds for joined."""
    node = _gate_node(world)
    members = node.database.members.values() if node is not None and node.is_master else ()
    return sum(member.state is NodeState.JOINED for member in members)


def _waiting(world: World) -> int:
    """How many joins wait for the gate alone."""
    node = _gate_node(world)
    if node is None:
        return 0
    at_gate = [found for found in node.database.transitions.values() if found.level == GATE_LEVEL]
    if len(at_gate) < world.settings.nodes - 1:
        return 0
    waited_for = insight.waited_for(node)
    return sum(waited_for[found.identity][0] == (GATE,) for found in at_gate)
