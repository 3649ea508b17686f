"""What fails in service, in the virtual world: its watcher sees it, it is acted upon once, whatever dies (SPEC 5.4)."""

from random import Random

import pytest
from msgspec.structs import replace

from muster.core.effects import RunCommand
from muster.records.members import RestartDaemon
from muster.records.services import ApplyServices, ClearService, Definition, Service, ServiceState
from muster.records.timing import FAST
from muster.records.units import US_PER_MS
from muster.sim import schedule
from muster.sim.checkers.checkers import Progress, judge
from muster.sim.checkers.event_checkers import has_failed
from muster.sim.history import ActionBegan, Applied, ReplicaState, ServiceFailed, WatchBegan
from muster.sim.schedule import Deed, When
from muster.sim.world.surroundings import Outcome, Settings
from muster.sim.world.world import World

WEB = Definition("web", run=("serve",), restarts=2, restart_window_ms=60_000)
SHOP = Definition("shop", run=("sell",), restarts=2, restart_window_ms=60_000)


class Orderly(World):
    """A world in which commands do as they should: what fails is what a test lets fail."""

    def decide(self, _node: int, command: RunCommand) -> Outcome:
        """50 ms each; only a stop of the service called `page` takes longer."""
        slow = (command.service, command.action) == ("page", "stop")
        return Outcome((500 if slow else 50) * US_PER_MS, True)


def cluster(*definitions: Definition, nodes: int = 3) -> World:
    """A calm cluster in which these services are registered."""
    world = Orderly(Settings(nodes, FAST, reboots=0.0), Random(1))
    for node in range(nodes):
        world.perform(schedule.Boot(node))
    settle(world)
    world.perform(schedule.Ask(0, "define", ApplyServices(definitions)))
    pass_time(world, 1000)
    settle(world)
    assert all(service(world, each.name).state is ServiceState.REGISTERED for each in definitions)
    return world


def settle(world: World) -> None:
    """Everything gets to its end, and no rule is broken."""
    outlook = Progress(world.history, world.settings.nodes)
    for _ in range(200):
        if not outlook.missing():
            break
        pass_time(world, 50)
    assert not outlook.missing()
    assert not judge(world.history)


def pass_time(world: World, milliseconds: float) -> None:
    """Virtual time passes."""
    world.run_until(world.loop.now_us + int(milliseconds * US_PER_MS))


def state(world: World) -> ReplicaState:
    """Of the cluster."""
    return max((item for item in world.history if isinstance(item, Applied)), key=lambda item: item.index).state


def service(world: World, name: str) -> Service:
    """A service as the cluster knows it."""
    return state(world).services[name]


def failures(world: World, name: str) -> int:
    """How often a failure of the service was recorded."""
    found, index, before = 0, -1, None
    for seen in world.history:
        if isinstance(seen, Applied) and seen.index > index:
            after = seen.state.services.get(name)
            found += before is not None and after is not None and has_failed(before, after, seen.index)
            index, before = seen.index, after
    return found


def fail(world: World, name: str, *, hangs: bool = False) -> None:
    """The service fails where it is."""
    world.perform(schedule.Fail(name, service(world, name).node, hangs))


def test_p8_7_two_programs_that_were_started_in_one_entry_end_each_for_itself() -> None:
    """One service file, one entry that starts both: the request about the one must not be taken for the other's."""
    world = cluster(WEB, SHOP)
    assert service(world, "web").uid == service(world, "shop").uid
    assert service(world, "web").generation == service(world, "shop").generation
    for name in ("web", "shop"):
        fail(world, name)
    settle(world)
    assert failures(world, "web") == failures(world, "shop") == 1


def test_p8_7_a_failure_is_acted_upon_within_milliseconds_and_in_place() -> None:
    world = cluster(WEB)
    before, began_us = service(world, "web"), world.loop.now_us
    fail(world, "web")
    settle(world)
    after = service(world, "web")
    assert (after.node, after.state) == (before.node, ServiceState.REGISTERED)
    recorded = next(
        seen.at_us
        for seen in world.history
        if isinstance(seen, Applied) and seen.state.services.get("web", before).generation > before.generation
    )
    assert recorded - began_us < 20 * US_PER_MS


WHO = ("daemon", "watcher", "runner", "all")


@pytest.mark.parametrize("point", ["failure", "request"])
@pytest.mark.parametrize(
    "deed",
    [
        schedule.Kill("daemon"),
        schedule.Kill("watcher"),
        *(schedule.Pause(process, 90 * US_PER_MS) for process in WHO),
    ],
    ids=lambda deed: f"{type(deed).__name__} {deed.process}",
)
@pytest.mark.parametrize("delay_us", [0, 150, 250, 1500])
def test_p8_1_a_failure_is_acted_upon_once_whatever_dies_or_sleeps_beside_it(
    point: str, deed: schedule.Here, delay_us: int
) -> None:
    """*Dies in between*: before the watcher has heard, before the daemon has, before the master, after all."""
    world = cluster(WEB)
    world.perform(When(point, "begun", 1, deed, delay_us=delay_us))
    fail(world, "web")
    pass_time(world, 500)
    settle(world)
    assert failures(world, "web") == 1


@pytest.mark.parametrize("deed", [schedule.Kill("daemon", 0), schedule.PowerCut(0), schedule.Pause("all", 0, 0)])
def test_p8_7_a_failure_waits_for_a_master_as_long_as_it_takes(deed: Deed) -> None:
    """*Master dies*: the request is repeated until one answers."""
    world = cluster(replace(WEB, disallowable_nodes=("n0",)))
    world.perform(deed)
    fail(world, "web")
    pass_time(world, 4000)
    assert failures(world, "web") == 1
    world.perform(schedule.Calm())
    settle(world)
    assert failures(world, "web") == 1


def test_p6_26_a_program_is_restarted_in_place_then_moved_and_then_stopped_with_a_cause() -> None:
    world = cluster(WEB, nodes=2)
    first = service(world, "web").node
    places = []
    for _ in range(6):
        fail(world, "web")
        pass_time(world, 1500)
        rest = service(world, "web").rest  # longer each time (P6.36)
        pass_time(world, rest.ms if rest is not None else 0)
        places.append(service(world, "web").node)
    other = 1 - first
    assert places == [first, first, other, other, other, -1]
    stuck = service(world, "web")
    assert stuck.state is ServiceState.DEREGISTERED
    assert "muster service clear web" in stuck.cause
    assert not judge(world.history)


def test_p6_26_failures_of_long_ago_do_not_count_for_a_master_that_has_just_begun() -> None:
    """It has not seen their entries, and nobody is left who could tell how old they are."""
    world = cluster(replace(WEB, restarts=1, restart_window_ms=4000), nodes=2)
    first = service(world, "web").node
    for _ in range(2):
        fail(world, "web")
        pass_time(world, 8000)
        for node in (0, 1):
            world.perform(schedule.Kill("daemon", node))
        pass_time(world, 2000)
        settle(world)
    assert failures(world, "web") == 2
    assert service(world, "web").node == first
    assert service(world, "web").failures == ()


def test_p8_4_what_a_check_finds_is_mended_by_an_action_function_on_the_node() -> None:
    checked = Definition(
        "web", start_command=("start",), check_command=("check",), check_interval_ms=200,
        on_failure=("mend", "{in.service}"),
    )  # fmt: skip
    world = cluster(checked)
    fail(world, "web", hangs=True)
    pass_time(world, 2000)
    actions = [seen for seen in world.history if isinstance(seen, ActionBegan)]
    assert [(seen.node, seen.event) for seen in actions] == [(service(world, "web").node, "web:check")]
    assert failures(world, "web") == 0
    settle(world)


def test_p6_26_one_generation_fails_once_however_it_is_seen() -> None:
    """A check that goes on failing while children end, or in maintenance, does not use up the restarts."""
    parent = replace(WEB, check_command=("check",), check_interval_ms=100, restart_window_ms=200)
    child = Definition("page", start_command=("start",), stop_command=("stop",), parent="web", stop_timeout_ms=30_000)
    world = cluster(parent, child)
    fail(world, "web", hangs=True)
    pass_time(world, 50)
    fail(world, "web")
    pass_time(world, 3000)
    settle(world)
    assert failures(world, "web") == 1
    assert sum(isinstance(seen, ServiceFailed) for seen in world.history) == 2


def test_p8_4_a_restarted_daemon_has_the_same_watched_for() -> None:
    world = cluster(WEB)
    node = service(world, "web").node
    before = [seen.parameters for seen in world.history if isinstance(seen, WatchBegan) and seen.node == node]
    world.perform(schedule.Ask(0, "again", RestartDaemon(f"n{node}")))
    pass_time(world, 2000)
    settle(world)
    after = [seen.parameters for seen in world.history if isinstance(seen, WatchBegan) and seen.node == node]
    assert after == [*before, *before]


def test_p6_26_a_child_that_fails_too_often_stops_with_a_cause_where_its_group_stays() -> None:
    """It has nowhere else to go: it must not be started there again and again."""
    child = replace(SHOP, parent="web", restarts=0)
    world = cluster(WEB, child)
    fail(world, "shop")
    pass_time(world, 2000)
    stuck = service(world, "shop")
    assert stuck.state is ServiceState.DEREGISTERED
    assert "muster service clear shop" in stuck.cause
    assert service(world, "web").state is ServiceState.REGISTERED
    assert not judge(world.history)
    world.perform(schedule.Ask(0, "clear", ClearService("shop")))
    pass_time(world, 500)
    settle(world)
    assert service(world, "shop").state is ServiceState.REGISTERED


def test_p6_26_a_child_that_fails_too_often_takes_its_group_along_if_it_is_to() -> None:
    child = replace(SHOP, parent="web", restarts=0, child_failure="group")
    world = cluster(WEB, child)
    first = service(world, "web").node
    fail(world, "shop")
    pass_time(world, 2000)
    settle(world)
    assert service(world, "web").node == service(world, "shop").node != first
    assert service(world, "shop").state is ServiceState.REGISTERED
