"""What ends a node in the virtual world, and what proves it: hung guards, a kernel that is asked (P7.9-P7.17)."""

from random import Random
from typing import Any

import pytest

from judged_world import newest_state, run, settle
from muster.core.effects import Panic, WatchLife
from muster.records.levels import Barriers, Level, NodeState
from muster.records.registers import LeaseState, ProofKind
from muster.records.services import ApplyServices, Definition, ServiceState
from muster.records.timing import FAST
from muster.records.units import US_PER_MS
from muster.sim import schedule
from muster.sim.faults import campaign
from muster.sim.history import LifeEnded, ServiceBegan
from muster.sim.rehearsal.rehearsal import Frame, Verdict, rehearse
from muster.sim.rehearsal.scenario import find
from muster.sim.world.kernel import is_of
from muster.sim.world.surroundings import Settings
from muster.sim.world.time import US_PER_S
from muster.sim.world.world import World

LEVELS = (Level(10, "lock manager", Barriers(2, 1, 2)),)
WEB = Definition("web", ordered=("n0",), start_command=("start",), stop_command=("stop",))


def _cluster(**given: Any) -> World:
    """Three joined nodes under one kernel, and web on n0."""
    world = World(Settings(3, FAST, LEVELS, reboots=0.0, kernel=True)._replace(**given), Random(1))
    for node in range(3):
        world.perform(schedule.Boot(node))
    settle(world)
    world.perform(schedule.Ask(1, "define", ApplyServices((WEB,))))
    run(world, 1000)
    assert newest_state(world).services["web"].node == 0
    return world


def _has_moved(world: World) -> bool:
    web = newest_state(world).services["web"]
    return web.state is ServiceState.REGISTERED and web.node != 0


def _ended(world: World) -> list[int]:
    return [item.node for item in world.history if isinstance(item, LifeEnded)]


# ---- what ends a node --------------------------------------------------------------------------------------------


def test_p7_9_init_ends_the_node_of_a_guard_that_never_exits() -> None:
    world = _cluster()
    world.perform(schedule.Stall(0, 0))
    run(world, FAST.loop_ms + FAST.panic_bound_ms)
    assert _ended(world) == [0]
    guard = world.machines[0].guard
    assert guard is not None
    assert guard.process.alive
    run(world, 1000)
    assert _has_moved(world)
    assert newest_state(world).members[0].state is NodeState.INACTIVE
    world.machines[0].boot()  # nothing: the home is still held
    run(world, 1000)
    assert world.machines[0].guard is guard
    world.perform(schedule.Calm())
    settle(world)


def test_p7_9_a_signal_to_go_on_wakes_nothing_that_waits_in_the_kernel() -> None:
    """Seed 1102 of an earlier schedule: a guard that was continued went on renewing after its deadline, for ever."""
    world = _cluster()
    world.perform(schedule.Stall(0, 0, ("runner",)))
    world.perform(schedule.Pause("guard", 50_000, 0))
    run(world, 5000)
    guard = world.machines[0].guard
    assert guard is not None
    assert (guard.process.alive, guard.process.running) == (True, False)
    assert not world.machines[0].lives[0].runner.process.running
    world.perform(schedule.Calm())
    run(world, 1)
    assert not guard.process.alive, "its deadline is over: what woke it was its end"
    settle(world)


def test_p7_9_nothing_is_proven_while_init_waits_in_the_kernel_beside_its_guard() -> None:
    """The runner ends the services at the same deadline; nobody is told so, and nothing starts elsewhere."""
    world = _cluster()
    world.perform(schedule.Stall(0, 0, ("init",)))
    run(world, 6000)
    assert _ended(world) == []
    assert not world.machines[0].lives[0].runner.active
    assert newest_state(world).services["web"].node == 0
    world.perform(schedule.Calm())
    settle(world)


def test_p7_9_what_hangs_with_init_and_runner_goes_on_and_is_not_taken_over() -> None:
    world = _cluster()
    world.perform(schedule.Stall(0, 0, ("init", "runner")))
    run(world, 12_000)
    assert world.machines[0].lives[0].runner.active == ("web",)
    state = newest_state(world)
    assert state.services["web"].node == 0
    assert state.members[0].eviction is not None
    assert state.members[0].eviction.silent
    world.perform(schedule.Calm())
    settle(world)


def test_p7_10_a_daemon_that_panics_ends_its_node_though_the_guard_hangs() -> None:
    world = _cluster()
    guard, daemon = world.machines[0].guard, world.machines[0].daemon
    assert guard is not None
    assert daemon is not None
    guard.stall()
    daemon._panic(Panic("node 1 forced it out"))  # as its core does when it reads a mark for itself
    run(world, 2 * FAST.panic_bound_ms)
    assert _ended(world) == [0]


def test_p7_11_a_tree_s_control_group_is_empty_only_after_it_was_killed() -> None:
    """What detached itself runs on after the guard was killed; the next boot ends it, and only that is the word."""
    for seed in range(1, 6):
        world = _cluster(trees=frozenset({0}))
        world.random.seed(seed)
        world.perform(schedule.Kill("guard", 0))
        run(world, 4000)
        assert bool(_ended(world)) == _has_moved(world)
        if not _ended(world):
            world.perform(schedule.Boot(0))
            run(world, 4000)
            assert _ended(world) == [0]
            return
    pytest.fail("nothing ever detached itself")


def test_p7_12_a_store_that_answers_nobody_for_5_s_ends_no_node() -> None:
    told = list(rehearse(find("store-stall"), 1))
    frames = [item for item in told if isinstance(item, Frame)]
    ended = [frame.at_us for frame in frames if any("stops the node" in event for event in frame.events)]
    assert len(ended) == 1
    # N2's store has been away since 18 s: its lease is so long that it is given up 7 s later
    assert 24 * US_PER_S < ended[0] < 26 * US_PER_S


@pytest.mark.parametrize("order", [("init", "runner"), ("runner", "init")])
def test_what_waits_in_the_kernel_goes_on_in_the_order_in_which_it_came_there(order: tuple[str, str]) -> None:
    """Seed 1061 was two runs, by where in memory the two processes were: a run may not depend on addresses."""
    world, gone_on = _cluster(), list[str]()
    for machine in 4 * world.machines:
        life = machine.lives[0]
        for which in order:
            life.hold(which)
            world.loop.deliver(life.init if which == "init" else life.runner.process, gone_on.append, which)
        life.release()
        world.loop.run_until(world.loop.now_us)
    assert gone_on == [*order] * 12


# ---- what proves it ----------------------------------------------------------------------------------------------


def test_p7_13_a_late_beat_changes_nothing() -> None:
    world = _cluster()
    writes = world.machines[0].access
    world.perform(schedule.Spoil(("lease",), 0, 0, hangs=True))
    run(world, 400)
    assert writes.waits_for_write("lease")
    world.perform(schedule.Kill("guard", 0))
    run(world, 2000)
    assert _has_moved(world)
    before = world.store.newest().leases[0]
    world.perform(schedule.Boot(0))  # the writer holds the home
    run(world, 500)
    assert world.machines[0].guard is None
    writes.mend()
    after = world.store.newest().leases[0]
    assert before is not None
    assert after is not None
    assert after.state is LeaseState.LIVE
    assert after.stamp.sequence == before.stamp.sequence + 1
    run(world, 3000)
    proof = newest_state(world).members[0].last_proof
    assert proof is not None
    assert proof.kind is ProofKind.KERNELS_WORD
    world.perform(schedule.Calm())
    settle(world)


def test_p7_13_another_boot_of_the_machine_is_the_word_after_one_lease() -> None:
    """P7.17: a node that boots first watches what another boot has left; P7.13: then that is proof."""
    world = _cluster()
    world.perform(schedule.Reboot())
    began_us = world.loop.now_us
    for node in (1, 2):
        world.perform(schedule.Boot(node))
    run(world, FAST.lease_ms + FAST.store_stall_ms - 500)
    assert all(machine.life is None for machine in world.machines)
    run(world, FAST.lease_ms + FAST.store_stall_ms + 2500)  # the daemons watch it for as long themselves
    assert _has_moved(world)
    proof = newest_state(world).members[0].last_proof
    assert proof is not None
    assert "has booted since" in proof.detail
    first = next(item for item in world.history if isinstance(item, ServiceBegan) and item.at_us > began_us)
    assert first.at_us - began_us > (FAST.lease_ms + FAST.store_stall_ms) * US_PER_MS


def test_p7_14_nothing_is_let_go_before_a_record_that_names_it_is_durable() -> None:
    world = World(Settings(1, FAST, LEVELS, reboots=0.0, kernel=True), Random(1))
    world.perform(schedule.Boot(0))
    while world.machines[0].daemon is None:
        world.run_until(world.loop.now_us + US_PER_MS, US_PER_MS)
    record = world.store.newest().leases[0]
    assert record is not None
    assert record.life is not None
    assert record.life == world.machines[0].lives[0].named


@pytest.mark.parametrize("name", ["hung-guard", "held-processes", "late-beat", "store-stall", "new-boot"])
def test_the_shipped_scenarios_of_hung_nodes_settle_and_break_no_rule(name: str) -> None:
    verdict = list(rehearse(find(name), 1))[-1]
    assert isinstance(verdict, Verdict)
    assert verdict.settled
    assert not verdict.violations


def test_p7_13_what_cannot_be_ended_is_taken_over_when_it_has_ended() -> None:
    frames = [item for item in rehearse(find("held-processes"), 1) if isinstance(item, Frame)]
    moved = next(frame for frame in frames if any("starting on N1" in event for event in frame.events))
    assert moved.at_us > 25 * US_PER_S  # when N0 is woken; it was stopped at 9 s


def test_p6_33_the_caretaker_of_the_last_run_is_ended_before_the_next_begins() -> None:
    """Seed 918407: its statement landed between the boot's look at the lease and the first renewal."""
    result, _ = campaign.run_seed(918_407)
    assert not result.violations


def _killed_elsewhere(**given: Any) -> World:
    """N0 in a PID namespace of its own, with all of it killed at once, its caretaker too: nobody writes a tombstone."""
    world = _cluster(elsewhere=frozenset({0}), **given)
    run(world, 1000)
    world.perform(schedule.PowerCut(0))
    run(world, FAST.lease_ms)
    return world


def test_p7_20_a_node_of_another_pid_namespace_is_proven_dead_by_a_descriptor_alone() -> None:
    world = _killed_elsewhere()
    run(world, 1000)
    assert _has_moved(world)
    proof = newest_state(world).members[0].last_proof
    assert proof is not None
    assert proof.kind is ProofKind.KERNELS_WORD
    assert "has asked" not in proof.detail  # no testimony


def test_p7_20_nothing_is_handed_between_network_namespaces_and_nothing_is_proven() -> None:
    world = _killed_elsewhere(apart=frozenset({0}))
    run(world, 12_000)
    assert _ended(world) == [0]
    assert not _has_moved(world)
    assert newest_state(world).members[0].last_proof is None


def test_p7_20_a_guard_that_waits_in_the_kernel_hands_nothing_over_and_that_is_no_word() -> None:
    world = _cluster(elsewhere=frozenset({0}))
    for node in (1, 2):  # those who ask next were not there before
        world.perform(schedule.PowerCut(node))
    world.perform(schedule.Stall(0, 0, ("init", "runner")))
    for node in (1, 2):
        world.perform(schedule.Boot(node))
    run(world, 12_000)
    assert world.machines[0].lives[0].runner.active == ("web",)
    assert not _has_moved(world)
    world.perform(schedule.Calm())
    settle(world)


def test_p7_20_a_descriptor_of_an_earlier_life_is_not_that_of_a_later_one() -> None:
    world = _cluster(elsewhere=frozenset({0}))
    first = world.machines[0].lives[-1].named
    world.perform(schedule.Kill("guard", 0))
    run(world, 2000)
    world.perform(schedule.Boot(0))
    run(world, 2000)
    second = world.machines[0].lives[-1].named
    assert first is not None
    assert second is not None
    assert first.init_pid == second.init_pid
    assert not is_of(second, first)
    guard = world.machines[0].guard
    assert guard is not None
    assert guard.offers(WatchLife(0, 2, world.kernel.boot_id, second))
    assert not guard.offers(WatchLife(0, 1, world.kernel.boot_id, first))
