"""Machines that share a disk, in the virtual world: long leases, stalls, losses of the store (P2.15, P4.13, P4.14)."""

from random import Random
from typing import TypeVar

import pytest

from judged_world import newest_state, run, settle
from muster.records.levels import Level
from muster.records.services import Definition, TransferService
from muster.records.timing import SHARED, Profile
from muster.sim import schedule
from muster.sim.faults.random_schedule import LONG_LEASES
from muster.sim.history import Elected, FenceCalled, LifeEnded, ServiceBegan, ServiceEnded
from muster.sim.world.surroundings import Settings
from muster.sim.world.time import US_PER_S
from muster.sim.world.world import World

Kind = TypeVar("Kind", Elected, LifeEnded, ServiceBegan, ServiceEnded)
SERVICES = tuple(
    Definition(f"s{node}", ordered=(f"n{node}", "*"), start_command=("start",), stop_command=("stop",))
    for node in range(3)
)


def _cluster(profile: Profile = SHARED, reboots: float = 1.0) -> World:
    settings = Settings(
        3, profile, (Level(10, "lock manager"),), services=SERVICES, shared=True, fenced=("board",), reboots=reboots
    )
    world = World(settings, Random(11))
    for node in range(3):
        world.perform(schedule.Boot(node))
    settle(world)
    run(world, 3000)
    return world


def _since(world: World, kind: type[Kind], since_us: int) -> list[Kind]:
    found = [item for item in world.history if isinstance(item, kind)]
    return [item for item in found if item.at_us > since_us]


def _turned_off(world: World) -> set[int]:
    return {item.about for item in world.history if isinstance(item, FenceCalled) and item.action == "off"}


@pytest.mark.parametrize("node", [0, 2, schedule.EVERYWHERE])
def test_p2_15_storage_that_stalls_for_15_s_ends_no_node_and_no_service(node: int) -> None:
    world = _cluster()
    began_us = world.loop.now_us
    world.perform(schedule.HoldStore(15 * US_PER_S, node))
    run(world, 14_000)
    if node == 0:
        assert [item.node for item in _since(world, Elected, began_us)] == [1]
    run(world, 10_000)
    assert not _since(world, LifeEnded, began_us)
    assert not _since(world, ServiceEnded, began_us)
    assert not _turned_off(world)
    world.perform(schedule.Calm())
    settle(world)


def test_p4_14_after_all_have_lost_the_store_all_services_run_again_and_nobody_is_turned_off() -> None:
    world = _cluster()
    for node in range(3):
        world.perform(schedule.Blind(40 * US_PER_S, node))
    run(world, 40_000)
    back_us = world.loop.now_us
    run(world, 15_000)
    assert {item.service for item in _since(world, ServiceBegan, back_us)} == {"s0", "s1", "s2"}
    assert not _turned_off(world)
    world.perform(schedule.Calm())
    settle(world)


@pytest.mark.parametrize("victim", [0, 2])
def test_p4_13_a_machine_without_power_is_fenced_and_its_service_runs_elsewhere_long_before_its_lease(
    victim: int,
) -> None:
    world = _cluster(reboots=0.0)
    world.perform(schedule.Ask(1, "move", TransferService("s0", f"n{victim}")))
    run(world, 1500)
    assert newest_state(world).services["s0"].node == victim
    cut_us = world.loop.now_us
    world.perform(schedule.PowerCut(victim))
    run(world, 5000)
    assert "s0" in {item.service for item in _since(world, ServiceBegan, cut_us)}
    assert _turned_off(world) == {victim}
    assert newest_state(world).services["s0"].node != victim
    world.perform(schedule.Calm())
    settle(world)


def test_p4_13_storage_and_links_that_are_away_for_less_than_x_make_nobody_suspect() -> None:
    world = _cluster(LONG_LEASES)
    began_us = world.loop.now_us
    for node in range(3):  # one switch carries both
        world.perform(schedule.HoldStore(3 * US_PER_S, node))
        world.perform(schedule.Isolate(3 * US_PER_S, node))
    run(world, 6000)
    assert not _since(world, LifeEnded, began_us)
    assert not _turned_off(world)
    world.perform(schedule.Calm())
    settle(world)
