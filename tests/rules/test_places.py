"""What waits for a place on a node says so, on every node (P8.12)."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from core_cluster import joined_cluster
from dev_cluster import DevCluster
from muster.client.watching import Asked
from muster.core.events.manager import (
    MAXIMUM_AT_WORK,
    EventManager,
    Occurred,
    ReplicaChanged,
    RequestOperation,
    WatcherCame,
)
from muster.core.inputs import AwaitedHere, PlacesAwaited
from muster.core.launching import checks
from muster.core.launching.turns import MAXIMUM_STARTS
from muster.core.node import insight
from muster.core.services.places import MAXIMUM_NAMED, words
from muster.daemon.shell.places_awaited import PlacesHere
from muster.drivers.image.watcher import BuiltIn, Check, Memory, Subject
from muster.drivers.runner_client import PlacesOfRunner
from muster.records.database import Database
from muster.records.events import EventDefinition, EventGroup, GroupDefinition
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.messages import Heartbeat, PlaceAwaited, Report
from muster.records.nodes import Cluster, NodeConfig
from muster.ui.pages.screen import _timeless
from real_runner import RealRunner

HOUR = ("sleep", "3600")
PLACE = PlaceAwaited("start", "web", "web", 0, 32, 32, "starts")


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[RealRunner]:
    """A running runner."""
    real = RealRunner(tmp_path)
    yield real
    real.close()


def test_p8_12_a_runner_tells_which_starts_have_waited_for_a_place_and_when_none_does_any_more(
    runner: RealRunner,
) -> None:
    for number in range(3 * MAXIMUM_STARTS):
        runner.ask(number + 1, "start", *HOUR, service=f"s{number}")
    told = runner.take(lambda packet: packet["say"] == "waiting" and packet["count"] > 0)
    assert told["count"] <= 2 * MAXIMUM_STARTS
    assert len(told["named"]) == min(MAXIMUM_NAMED, told["count"])
    for kind, name, taken, places, by, since_us in told["named"]:
        assert (kind, places, by) == ("start", MAXIMUM_STARTS, "starts")
        assert int(name[1:]) >= MAXIMUM_STARTS and 0 < taken <= places and since_us > 0
    runner.take(lambda packet: packet["say"] == "waiting" and packet["count"] == 0)


def test_p8_12_checks_that_wait_for_a_place_are_told_by_the_runner_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MAXIMUM_SLOW_CHECKS", 2)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    built_in = BuiltIn(cast("Any", None), cast("Any", None), {}, theirs, cast("Any", None), Memory())
    for number in range(3):
        subject = Subject(Asked(f"c{number}", {"command": "sleep 3600"}, {}))
        subject.is_slow = True
        subject.check = Check(1, -1, -1, 0, 1 << 62) if number < 2 else None
        built_in._subjects[f"c{number}"] = subject
    waits = built_in._subjects["c2"]
    built_in._work_on_check("c2", waits, 5_000_000)
    built_in._work_on_check("c2", waits, 5_100_000)
    assert waits.waits_since_us == 5_000_000 and waits.check is None
    built_in._tell_of_waiting(5_500_000)  # it has just begun to wait; one before this process may have told others
    assert json.loads(ours.recv(10_000)) == {"waiting": [], "count": 0}
    built_in._tell_of_waiting(6_000_000)
    named = ["check", "c2", 2, 2, "slow checks", 5_000_000]
    assert json.loads(ours.recv(10_000)) == {"waiting": [named], "count": 1}
    waits.waits_since_us = 0
    built_in._tell_of_waiting(7_000_000)
    assert json.loads(ours.recv(10_000)) == {"waiting": [], "count": 0}
    ours.close()
    theirs.close()


def machine(*events: EventDefinition) -> EventManager:
    """The event manager of a joined node with one group."""
    database = Database(cluster=Cluster("test", "0" * 32, "fast", ""))
    database.nodes[0], database.members[0] = NodeConfig(0, "n0", (), ""), Member(0, NodeState.JOINED, 7)
    database.event_groups["g"] = EventGroup(GroupDefinition("g", events), 1, True)
    found = EventManager(0, 7, 0)
    found.step(WatcherCame(1, "disk"), 0)
    found.step(ReplicaChanged(database, False), 0)
    return found


def test_p8_12_actions_that_wait_are_named_after_a_second() -> None:
    found = machine(EventDefinition("full", "disk", action=HOUR))
    for _ in range(MAXIMUM_AT_WORK + 3):
        found.step(Occurred(1, "full", ()), 1_000_000)
    assert found.waiting(1_999_999) == ([], 0)
    place = PlaceAwaited("action", "full", "", 0, MAXIMUM_AT_WORK, MAXIMUM_AT_WORK, "action commands")
    assert found.waiting(2_000_000) == ([AwaitedHere(1_000_000, place)], 3)


def test_p8_10_what_muster_asks_for_itself_waits_for_no_command_of_its_own_group() -> None:
    mend = EventDefinition("gone", "disk", action=("muster:restart", "web"))
    found = machine(EventDefinition("full", "disk", action=HOUR), mend)
    for _ in range(MAXIMUM_AT_WORK + 3):
        found.step(Occurred(1, "full", ()), 1_000_000)
    assert [type(effect) for effect in found.step(Occurred(1, "gone", ()), 1_000_000)] == [RequestOperation]


def test_p8_12_heartbeats_carry_it_to_every_node_and_nothing_else_is_sent() -> None:
    cluster = joined_cluster(3)
    cluster.run(1000)
    reports, index = len(cluster.sent(Report, 1)), cluster.database.index
    now_us = cluster.core(1).now_us
    waiting = tuple(AwaitedHere(now_us - 12_000_000 + number, PLACE) for number in range(40))
    cluster.give(1, PlacesAwaited(waiting, 70))
    cluster.run(1000)
    for node in range(3):
        (awaited,) = insight.places_awaited(cluster.core(node)).values()
        assert len(awaited.named) == MAXIMUM_NAMED and awaited.in_all == 70
        assert 12_000 <= awaited.named[0].waited_ms <= 13_100
    assert all(len(beat.awaited) <= MAXIMUM_NAMED for beat in cluster.sent(Heartbeat, 1))
    cluster.give(1, PlacesAwaited((), 0))
    cluster.run(1000)
    assert [insight.places_awaited(cluster.core(node)) for node in range(3)] == [{}, {}, {}]
    assert (len(cluster.sent(Report, 1)), cluster.database.index) == (reports, index)


def test_p8_12_of_a_node_that_is_not_heard_any_more_nothing_is_said() -> None:
    cluster = joined_cluster(2)
    cluster.give(1, PlacesAwaited((AwaitedHere(0, PLACE),), 1))
    cluster.run(500)
    assert list(insight.places_awaited(cluster.core(0))) == [1]
    cluster.kill(1)
    cluster.run(500)
    assert insight.places_awaited(cluster.core(0)) == {}


def test_p8_12_the_daemon_tells_its_node_only_of_changes_and_names_the_service_of_a_check() -> None:
    fed: list[PlacesAwaited] = []
    actions: list[AwaitedHere] = []
    check = AwaitedHere(7, PlaceAwaited("check", "web:check", "", 0, 64, 64, "slow checks"))
    here = PlacesHere(fed.append, lambda _now_us: (actions, len(actions)), lambda event: event.partition(":")[0])
    here.look(0)
    assert fed == []
    here.heard(PlacesOfRunner((AwaitedHere(9, PLACE), check), 5))
    for now_us in (1, 2_000_000, 4_000_000):
        here.look(now_us)
    (told,) = fed
    assert [(each.place.name, each.place.service) for each in told.waiting] == [("web:check", "web"), ("web", "web")]
    assert told.count == 5
    here.heard(PlacesOfRunner((), 0))
    here.look(4_000_001)
    assert fed[1:] == [PlacesAwaited((), 0)]


def test_p8_12_words() -> None:
    place = PlaceAwaited("start", "web", "web", 12_345, 32, 32, "starts")
    assert words(place, "n1") == "its start waits for a place: 32 of 32 starts are under way on n1, since 12 s"
    place = PlaceAwaited("action", "full", "", 1000, 16, 16, "action commands")
    assert words(place, "n1").startswith("the action of full waits for a place: 16 of 16 action commands")


def test_p8_12_that_the_seconds_run_on_is_no_news_to_whoever_watches() -> None:
    def page(seconds: int) -> dict[str, Any]:
        cause = f"its start waits for a place: 32 of 32 starts are under way on n1, since {seconds} s"
        node = {"evidence": "", "cause": cause, "waiting_for_places": {"named": [{"waited_ms": seconds}]}}
        return {"nodes": {"n1": node}, "services": {"web": {"cause": cause}}}

    assert _timeless(page(1)) == _timeless(page(2))


def test_p8_12_status_and_why_name_starts_and_actions_that_wait_behind_those_that_hang(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    dev_cluster.up(2)
    file = tmp_path / "hung.toml"
    services = [
        f'[[service]]\nname = "s{number:03}"\nallowable_nodes = ["n1"]\nstart_command = ["/bin/sleep", "60"]\n'
        for number in range(5 * MAXIMUM_STARTS)
    ]
    event = '[[event_group]]\nname = "g"\nnodes = ["n1"]\n[[event_group.event]]\nname = "tick"\n'
    event += 'watcher = "timer"\nin = {interval = "20ms"}\naction = ["/bin/sleep", "60"]\ntimeout = "60s"\n'
    file.write_text("\n".join(services) + event)
    dev_cluster.succeed("apply", str(file))
    last = f"s{5 * MAXIMUM_STARTS - 1}"

    def named(status: Any) -> bool:
        return any(each["cause"].startswith("its start waits for a place: ") for each in status["services"].values())

    status = dev_cluster.wait_for("a start that waits for a place", named, node="n0")
    (about,) = {each["cause"].split(", since")[0] for each in status["services"].values() if each["cause"]}
    assert about.endswith("of 32 starts are under way on n1")
    assert status["nodes"]["n1"]["waiting_for_places"]["named"][0]["words"].startswith("its start waits for a place")
    page = " ".join(dev_cluster.succeed("status", "--node", "n0").split())  # its table may break the line
    assert "wait for a place, first " in page, page
    why = dev_cluster.json("why", last, "--node", "n0")
    assert [rule["rule"] for rule in why["rules"] if not rule["holds"]] == ["place"], why
    assert "wait" in why["summary"] and "for a place" in why["summary"]

    def acting(status: Any) -> bool:
        named = status["nodes"]["n1"]["waiting_for_places"]["named"]
        return [each["name"] for each in named if each["kind"] == "action"] == ["tick"]

    dev_cluster.wait_for("only an action that waits", lambda status: acting(status) and not named(status), node="n0")
    page = " ".join(dev_cluster.succeed("status").split())
    assert "the action of tick waits for a place: 16 of 16 action commands" in page, page
