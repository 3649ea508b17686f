"""A store that something else is renamed over, in the virtual world (P11.1-P11.4)."""

from random import Random

from judged_world import newest_state, run, settle
from muster.records.levels import Barriers, Level
from muster.records.services import ApplyServices, Definition, TransferService
from muster.records.timing import FAST
from muster.sim import schedule
from muster.sim.faults import campaign
from muster.sim.history import CommandTaken, LifeBegan, Logged
from muster.sim.rehearsal.rehearsal import Frame, Verdict, rehearse
from muster.sim.rehearsal.scenario import find
from muster.sim.world.surroundings import Settings
from muster.sim.world.time import US_PER_S
from muster.sim.world.world import World

WEB = Definition("web", ordered=("n0",), start_command=("start",), stop_command=("stop",))


def _cluster(*, kernel: bool, reboots: float = 0.0) -> World:
    levels = (Level(10, "lock manager", Barriers()),)
    world = World(Settings(3, FAST, levels, reboots=reboots, kernel=kernel), Random(1))
    for node in range(3):
        world.perform(schedule.Boot(node))
    settle(world)
    world.perform(schedule.Ask(1, "define", ApplyServices((WEB,))))
    run(world, 1000)
    return world


def _said(world: World, words: str) -> set[int]:
    return {item.node for item in world.history if isinstance(item, Logged) and words in item.what}


def test_p11_1_an_older_copy_that_is_renamed_over_the_path_ends_every_node_and_none_boots_on_it() -> None:
    """P11.2: the homes know of an entry that it lacks. With the newest store back, everything goes on."""
    for kernel in (False, True):
        world = _cluster(kernel=kernel, reboots=1.0)
        world.perform(schedule.CopyStore())
        run(world, 200)
        world.perform(schedule.Ask(1, "move", TransferService("web", "n1")))
        run(world, 1500)
        assert "move" in newest_state(world).operations
        world.perform(schedule.ReplaceStore("copy"))
        began_us = world.loop.now_us
        run(world, 12_000)
        assert _said(world, "its store was replaced") == {0, 1, 2}
        assert _said(world, "the store went back in time") == {0, 1, 2}
        assert not any(isinstance(item, LifeBegan) and item.at_us > began_us for item in world.history)
        world.perform(schedule.Calm())
        settle(world)
        assert "move" in newest_state(world).operations
        tokens = [item.epoch for item in world.history if isinstance(item, CommandTaken)]
        assert tokens == sorted(tokens)


def test_a_copy_that_was_made_while_nothing_ran_is_as_new_as_its_journal_says() -> None:
    """Seed 1101116: it passed for empty, and took the place of a store of which no home knew more."""
    world = _cluster(kernel=True)
    for machine in world.machines:
        machine.power_cut()
    world.perform(schedule.CopyStore())
    world.perform(schedule.ReplaceStore("copy"))
    assert world.store is world.store_of_the_cluster, "no home could tell the two apart"
    world.perform(schedule.Calm())
    settle(world)


def test_p11_1_a_path_that_is_away_for_a_moment_ends_nothing_and_one_that_stays_away_ends_the_nodes() -> None:
    world = _cluster(kernel=True)
    world.perform(schedule.ReplaceStore("nothing", 5 * US_PER_S))
    run(world, 6000)
    assert all(machine.life is not None and not machine.life.ended for machine in world.machines)
    world.perform(schedule.ReplaceStore("nothing"))
    run(world, FAST.lease_ms + FAST.store_stall_ms)
    assert _said(world, "its lease could not be renewed") == {0, 1, 2}
    world.perform(schedule.Calm())
    settle(world)


def test_p11_1_another_cluster_s_store_at_the_path_ends_the_nodes_and_is_not_booted_on() -> None:
    world = _cluster(kernel=True, reboots=1.0)
    world.perform(schedule.ReplaceStore("other"))
    run(world, 4000)
    assert _said(world, "its store was replaced") == {0, 1, 2}
    assert _said(world, "it is another cluster's store")
    world.perform(schedule.Calm())
    settle(world)


def test_the_shipped_scenario_of_a_store_that_is_set_back() -> None:
    *frames, verdict = rehearse(find("set-back"), 1)
    assert isinstance(verdict, Verdict)
    assert verdict.settled
    assert not verdict.violations
    told = [event for frame in frames if isinstance(frame, Frame) for event in frame.events]
    assert sum("the store went back in time" in event for event in told) == 2


def test_random_runs_set_their_stores_back() -> None:
    """A campaign in which no store is replaced under running nodes proves nothing."""
    found: set[str] = set()
    for seed in range(60):
        _, history = campaign.run_seed(seed)
        logged = [item.what for item in history if isinstance(item, Logged)]
        found |= {"replaced" for what in logged if "its store was replaced" in what}
        found |= {"refused" for what in logged if "the store went back in time" in what}
        if len(found) == 2:
            return
    raise AssertionError(found)
