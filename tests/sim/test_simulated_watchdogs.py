"""Watchdogs in the virtual world: what hangs is reset in time, and what breaks a rule shows (P7.30-P7.36)."""

from random import Random
from typing import Any

import pytest

from judged_world import newest_state, settle
from muster.records.registers import ProofKind
from muster.records.services import ApplyServices, Definition, ServiceState
from muster.records.units import US_PER_MS
from muster.sim import schedule
from muster.sim.checkers.checkers import judge
from muster.sim.faults.mutants import mutated
from muster.sim.history import LifeEnded, Logged
from muster.sim.schedule import Stall, When
from muster.sim.world.surroundings import Settings
from muster.sim.world.time import US_PER_S
from muster.sim.world.watchdog import WATCHED
from muster.sim.world.world import World

WEB = Definition("web", ordered=("n0",), start_command=("start",), stop_command=("stop",))
HANGS = ("init", "runner")
EXPIRY = {"ProofFirst", "NothingAfterExpiry"}


def _cluster(kind: str = "well", seed: int = 1, **given: Any) -> World:
    """Three joined machines, each with a watchdog, and web on n0."""
    settings = Settings(3, WATCHED, reboots=0.0, shared=True, watchdogs=kind)._replace(**given)
    world = World(settings, Random(seed))
    for node in range(3):
        world.perform(schedule.Boot(node))
    settle(world)
    world.perform(schedule.Ask(1, "define", ApplyServices((WEB,))))
    world.run_until(world.loop.now_us + US_PER_S)
    assert newest_state(world).services["web"].node == 0
    return world


def _resets(world: World) -> list[int]:
    return [item.node for item in world.history if isinstance(item, Logged) and "watchdog resets" in item.what]


def _go_on(world: World, milliseconds: int) -> set[str]:
    """The rules that were broken by then."""
    world.run_until(world.loop.now_us + milliseconds * US_PER_MS)
    return {violation.rule for violation in judge(world.history)}


@pytest.mark.parametrize("kind", ["well", "late", "board"])
def test_p7_30_a_node_that_hangs_is_reset_and_its_expired_lease_is_the_proof(kind: str) -> None:
    world = _cluster(kind)
    world.perform(Stall(0, 0, HANGS))
    assert not _go_on(world, 9000)
    assert _resets(world) == [0]
    assert [item.cause for item in world.history if isinstance(item, LifeEnded)] == ["power cut"]
    web, member = newest_state(world).services["web"], newest_state(world).members[0]
    assert web.state is ServiceState.REGISTERED and web.node != 0
    assert member.last_proof is not None and member.last_proof.kind is ProofKind.LEASE_EXPIRED


def test_p7_33_a_node_that_leaves_or_panics_with_its_tombstone_is_not_reset() -> None:
    world = _cluster()
    guard = world.machines[0].guard
    assert guard is not None
    guard.panic("it must")
    assert not _go_on(world, 6000)
    assert not _resets(world)
    assert world.machines[0].watchdog is not None and not world.machines[0].watchdog.is_armed


def test_p7_33_a_node_that_has_lost_its_store_is_reset_though_it_is_empty() -> None:
    world = _cluster()
    world.perform(schedule.Blind(0, 0))
    assert not _go_on(world, 6000)
    assert _resets(world) == [0]


@pytest.mark.parametrize(("deadline_ms", "watchdog_ms"), [(600, 3000), (1500, 1000), (900, 2000)])
def test_p7_35_other_times_are_taken_up_by_all_and_nobody_is_lost(deadline_ms: int, watchdog_ms: int) -> None:
    world = _cluster()
    for retime in (schedule.Retime(deadline_ms, watchdog_ms), schedule.Retime(600, 1000)):
        world.perform(retime)
        assert not _go_on(world, 3000)
        for machine in world.machines:
            lease = world.store.newest().lease(machine.node)
            assert lease is not None and lease.armed is not None and machine.watchdog is not None
            assert lease.armed.times.timeout_ms == machine.watchdog.set_ms == retime.watchdog_ms
            assert lease.lease_ms - lease.panic_bound_ms == retime.deadline_ms
    assert not _resets(world)


def _broken(mutant: str, kind: str, seeds: range, *deeds: Any) -> bool:
    """Whether the mutant breaks a rule about expiry within these worlds; the rules themselves do not."""
    for seed in seeds:
        for name in (None, mutant):
            with mutated(name):
                world = _cluster(kind, seed, reboots=1.0)
                for deed in deeds:
                    world.perform(deed)
                    if isinstance(deed, schedule.Retime) and deed is not deeds[-1]:
                        _go_on(world, 2500)
                broken = _go_on(world, 12_000)
            if name is None:
                assert not broken & EXPIRY
            elif broken & EXPIRY:
                return True
    return False


def test_p7_32_a_watchdog_that_is_fed_after_the_deadline_shows() -> None:
    assert _broken("feed-after-the-deadline", "well", range(1, 4), Stall(0, 2, HANGS))


def test_p7_31_a_lease_that_forgets_granularity_and_reset_shows() -> None:
    assert _broken("lease-without-granularity", "late", range(1, 4), Stall(0, 2, HANGS))


def test_p7_31_a_lease_that_forgets_a_late_feeding_shows() -> None:
    assert _broken("no-late-feeding", "board", range(1, 12), Stall(0, 2, HANGS), schedule.Pause("daemon", 0, 2))


def test_p7_33_a_record_before_the_device_is_armed_shows() -> None:
    assert _broken("record-before-armed", "well", range(1, 30), Stall(0, 2, HANGS))


def test_p7_35_a_timeout_that_is_shortened_after_the_record_shows() -> None:
    longer, shorter = schedule.Retime(600, 4000), schedule.Retime(600, 1000)
    stalls = (When("lease", "written", count, Stall(0, 2, HANGS), 2) for count in range(1, 9))
    found = (_broken("shorten-after-the-record", "well", range(1, 3), longer, stall, shorter) for stall in stalls)
    assert any(found)
