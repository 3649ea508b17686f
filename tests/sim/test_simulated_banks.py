"""A store in banks, in the virtual world: further banks come into use while anything fails (PROTOCOL P11.7)."""

from random import Random

import pytest

from muster.records.levels import NodeState
from muster.records.registers import BANK_ENDS, ClaimFlag, LeaseState, Strip
from muster.records.timing import FAST
from muster.records.units import US_PER_MS
from muster.sim import schedule
from muster.sim.checkers.checkers import Violation, judge
from muster.sim.faults.random_schedule import plan
from muster.sim.world.disk import StoreAccess
from muster.sim.world.surroundings import Settings
from muster.sim.world.world import World

ONE_EACH = (1, 2, 3, 4)  # a bank for each node: whoever boots first opens its door
SECOND_MS = 1000


def random_history(seed: int) -> list[Violation]:
    """What the checkers find in a random history whose store has a bank for each node."""
    random = Random(seed)
    planned = plan(random)
    world = World(planned.settings._replace(bank_ends=ONE_EACH), random)
    world.follow(planned.steps)
    world.run_until(planned.calm_us)
    return list(judge(world.history))


def cluster(nodes: int, bank_ends: tuple[int, ...], *boot: int) -> World:
    """Nodes of a store with these banks, of which these boot."""
    world = World(Settings(nodes, FAST, reboots=0.0, bank_ends=bank_ends), Random(1))
    for node in boot:
        world.perform(schedule.Boot(node))
    return world


def pass_time(world: World, milliseconds: int) -> None:
    """Virtual time passes, and no rule is broken."""
    world.run_until(world.loop.now_us + milliseconds * US_PER_MS)
    assert not judge(world.history)


def until_joined(world: World, *nodes: int) -> None:
    """Each of these sees that all of them have joined."""
    for _ in range(100):
        pass_time(world, 100)
        daemons = [world.machines[node].daemon for node in nodes]
        replicas = [daemon.node.database for daemon in daemons if daemon is not None and daemon.node is not None]
        if len(replicas) == len(nodes) and all(
            replica.member(node).state is NodeState.JOINED for replica in replicas for node in nodes
        ):
            return
    pytest.fail("they have not joined")


def masters(world: World) -> set[int]:
    """Whose claim says that it is master, and whose lease is no tombstone."""
    strip = world.store.newest()
    return {
        claim.stamp.owner
        for claim, lease in zip(strip.claims, strip.leases, strict=True)
        if claim is not None and claim.flag is ClaimFlag.MASTER and lease is not None and lease.state is LeaseState.LIVE
    }


@pytest.mark.parametrize("seed", range(1, 9))
def test_p11_7_random_histories_over_banks_break_no_rule(seed: int) -> None:
    assert random_history(seed) == []


def test_p11_7_a_reader_that_goes_by_doors_of_an_earlier_read_loses_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the doors not read anew each time, who holds an old view would claim beside a node that it does not see."""
    original = StoreAccess.sampled
    first: dict[tuple[int, int], int] = {}

    def sampled(access: StoreAccess, started_us: int) -> Strip:
        strip, ends = original(access, started_us), access.store.bank_ends
        own = next(end for end in ends if access.node < end)
        shown = first.setdefault((id(access.store), access.node), max(len(strip.leases), own))
        if shown >= len(strip.leases):
            return strip
        return Strip(
            strip.leases[:shown], strip.claims[:shown], strip.views[:shown], strip.marks[:shown], ends[-1]
        )  # fmt: skip

    monkeypatch.setattr(StoreAccess, "sampled", sampled)
    for seed in range(1, 30):
        first.clear()
        if "OneHistory" in {violation.rule for violation in random_history(seed)}:
            return
    pytest.fail("29 seeds did not find it")


def test_p11_7_nodes_of_slot_17_and_203_join_those_of_the_first_bank() -> None:
    world = cluster(204, BANK_ENDS, 0, 1)
    until_joined(world, 0, 1)
    assert len(world.store.newest().leases) == 16
    world.perform(schedule.Boot(17))
    until_joined(world, 0, 1, 17)
    assert len(world.store.newest().leases) == 32
    world.perform(schedule.Boot(203))
    until_joined(world, 0, 1, 17, 203)
    assert len(world.store.newest().leases) == 204


def test_p11_7_a_node_of_a_further_bank_takes_over_from_a_master_that_was_paused_meanwhile() -> None:
    """The paused one has never read the other's bank; when it wakes after a minute, it stops, and changes nothing."""
    world = cluster(3, (1, 2), 0)
    until_joined(world, 0)
    world.perform(schedule.Pause("all", 60 * SECOND_MS * US_PER_MS, node=0))
    world.perform(schedule.Boot(2))
    pass_time(world, 30 * SECOND_MS)
    assert masters(world) == {0, 2} or masters(world) == {2}
    claim = world.store.newest().claims[2]
    assert claim is not None and claim.flag is ClaimFlag.MASTER
    pass_time(world, 40 * SECOND_MS)
    assert masters(world) == {2}


def test_p11_7_a_node_that_dies_just_before_or_after_its_door_is_open_harms_nobody() -> None:
    for what, stage in (("lease", "begun"), ("lease", "half written"), ("lease", "written")):
        world = cluster(3, (1, 2), 0, 1)
        until_joined(world, 0, 1)
        world.perform(schedule.When(what, stage, 1, schedule.PowerCut(), node=2))
        world.perform(schedule.Boot(2))
        pass_time(world, 5 * SECOND_MS)
        assert len(world.store.newest().leases) == 3
        world.perform(schedule.Boot(2))
        until_joined(world, 0, 1, 2)
