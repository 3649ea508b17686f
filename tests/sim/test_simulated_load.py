"""Full stores, full pools and lost connections in the virtual world (P9.3, P8.10, P3.16)."""

from random import Random

from judged_world import newest_state, run, settle
from muster.core.effects import RunCommand
from muster.core.mastership.tenure import JOURNAL_FULL
from muster.records.levels import Barriers, Level, NodeState, TransitionKind
from muster.records.services import ApplyServices, Definition, ServiceState
from muster.records.timing import FAST
from muster.sim import schedule
from muster.sim.faults import campaign
from muster.sim.history import LevelAcknowledged, Logged, Notified, Replied
from muster.sim.world.surroundings import Outcome, Settings
from muster.sim.world.time import US_PER_S
from muster.sim.world.world import World

CACHE = Level(15, "volume cache", Barriers())


def _booted(world: World) -> World:
    for machine in world.machines:
        world.perform(schedule.Boot(machine.node))
    settle(world)
    return world


def _answers(world: World) -> dict[str, bool]:
    return {item.identity: not item.refused for item in world.history if isinstance(item, Replied)}


def test_p9_3_a_store_that_operations_fill_goes_on_and_all_that_it_took_can_be_withdrawn() -> None:
    world = _booted(World(Settings(3, FAST, half_bytes=60_000, reboots=1.0, kernel=True), Random(1)))
    names = [f"f{number}" for number in range(40)]
    for name in names:
        made = Definition(name, start_command=("start", "x" * 250), stop_command=("stop",))
        world.perform(schedule.Ask(1, name, ApplyServices((made,))))
        run(world, 100)
    answers = _answers(world)
    taken = [name for name in names if answers[name]]
    assert 0 < len(taken) < len(names)
    for node in (0, 1):  # what follows of itself is never refused
        world.perform(schedule.PowerCut(node))
        run(world, 4000)
    for name in taken:
        world.perform(schedule.Ask(2, f"withdraw {name}", ApplyServices((), (name,))))
        run(world, 400)
    settle(world)
    assert all(_answers(world)[f"withdraw {name}"] for name in taken)
    assert not newest_state(world).services
    assert not [item for item in world.history if isinstance(item, Logged) and JOURNAL_FULL in item.what]


def test_p9_3_random_runs_fill_their_stores() -> None:
    for seed in range(120):
        _, history = campaign.run_seed(seed)
        refused = [item for item in history if isinstance(item, Replied) and "the store has no room" in item.outcome]
        if refused:
            return
    raise AssertionError("no store was full")


class _HangingActions(World):
    """Every action command of a person hangs."""

    def decide(self, node: int, command: RunCommand) -> Outcome:
        if command.action == "act":
            return Outcome(600 * US_PER_S, False)
        return super().decide(node, command)


def test_p8_10_the_failure_policy_acts_while_every_command_of_the_others_hangs() -> None:
    checked = [
        Definition(
            f"s{number}", ordered=("n0",), start_command=("start",), stop_command=("stop",), check_command=("check",),
            check_interval_ms=200, on_failure=("mend",),
        )
        for number in range(40)
    ]  # fmt: skip
    web = Definition("web", ordered=("n0",), run=("serve",), stop_command=("stop",), restarts=3)
    elsewhere = Definition("mail", ordered=("n1",), run=("serve",), stop_command=("stop",), restarts=3)
    world = _booted(_HangingActions(Settings(2, FAST, reboots=0.0, kernel=True), Random(1)))
    world.calm = True  # commands are quick, and those of services succeed
    world.perform(schedule.Ask(0, "define", ApplyServices((*checked, web, elsewhere))))
    run(world, 6000)
    assert all(each.state is ServiceState.REGISTERED for each in newest_state(world).services.values())
    for each in checked:
        world.perform(schedule.Fail(each.name, 0, hangs=True))
    run(world, 2000)
    for name, node in (("web", 0), ("mail", 1)):
        before = newest_state(world).services[name].generation
        world.perform(schedule.Fail(name, node))
        run(world, 1500)
        after = newest_state(world).services[name]
        assert after.generation > before
        assert after.state is ServiceState.REGISTERED


def _with_programs() -> World:
    world = _booted(World(Settings(2, FAST, reboots=0.0, kernel=True), Random(1)))
    for node in (0, 1):
        world.perform(schedule.Come(CACHE, node))
    settle(world)
    return world


def test_p3_16_a_program_that_only_lost_its_connection_is_awaited_and_told_when_it_is_back() -> None:
    world = _with_programs()
    world.perform(schedule.Drop(15, 1, 2 * US_PER_S))
    world.perform(schedule.PowerCut(0))
    run(world, 1500)
    told = [item for item in world.history if isinstance(item, Notified) and item.about == 0 and item.node == 1]
    assert not [item for item in told if item.level == 15 and item.kind is TransitionKind.FORCED_LEAVING]
    before = newest_state(world)
    assert before.members[0].state is NodeState.FORCED_LEAVING
    run(world, 2000)
    after = newest_state(world)
    assert after.members[0].state is NodeState.INACTIVE
    assert [item for item in world.history if isinstance(item, LevelAcknowledged) and item.level == 15]
    world.perform(schedule.Calm())
    settle(world)


def test_p3_16_a_node_that_fails_with_a_lost_program_ends_and_its_peers_hear_of_it_on_proof() -> None:
    world = _with_programs()
    world.perform(schedule.Drop(15, 1, 60 * US_PER_S, fails=True))
    run(world, FAST.restart_ms - 500)
    before = newest_state(world)
    assert before.members[1].state is NodeState.JOINED
    run(world, 2500)
    after = newest_state(world)
    assert after.members[1].state is NodeState.INACTIVE
    world.perform(schedule.Calm())
    settle(world)
