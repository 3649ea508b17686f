"""A node that is told to end: rules P4.10 to P4.12 of docs/PROTOCOL.md."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from dev_cluster import PATIENT, DevCluster
from muster.client.locks.terms import Token
from muster.core.effects import Reply, RunCommand
from muster.core.services.commands import last_stop
from muster.daemon.main import main
from muster.daemon.shell import leaving as leaving_module
from muster.daemon.shell.last_stops import LastStops, may_run
from muster.daemon.shell.leaving import MARGIN_MS, MAXIMUM_MS, Leaving, keep_extending, longest_stop_ms, time_needed_ms
from muster.drivers.runner_client import RunnerClient
from muster.records.database import Database
from muster.records.members import LeaveNode
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import CommandState, Definition, Service, ServiceState, token_of
from real_node import wait_for
from real_runner import RealRunner, shell


class Master:
    """Refuses while it is objected to; an override passes; says nothing at all where it is `silent`."""

    def __init__(self, objects: int, *, silent: bool = False) -> None:
        self.objects, self.silent = objects, silent
        self.asked: list[tuple[str, bool]] = []
        self.notes: list[str] = []
        self.ended = 0
        self.outside_after = 1 << 30  # requests, after which it knows that it is no member

    async def ask(self, identity: str, operation: LeaveNode, _timeout_s: float) -> Reply | None:
        """As `Daemon.operate`."""
        self.asked.append((identity, operation.override))
        if self.silent:
            return None
        refused = len(self.asked) <= self.objects and not operation.override
        return Reply(identity, refused, "cache (level 60) on n1 objects: not now" if refused else "n0 is leaving", 1)

    async def end(self) -> None:
        """The node ends by itself."""
        self.ended += 1

    def goes(self, *, stops_after: int = 1 << 30, **bounds: float) -> None:
        """Take the leave to its end; the machine stops after so many requests."""

        async def stopping() -> bool:
            return len(self.asked) >= stops_after

        leaving = Leaving(
            "n0", "term", self.ask, lambda *told: self.notes.append(" ".join(told)), self.end, stopping, 0,
            lambda: len(self.asked) >= self.outside_after,
        )  # fmt: skip
        asyncio.run(asyncio.wait_for(leaving.run(**bounds), 20))


def test_p4_10_a_node_asks_again_until_the_objection_has_gone_and_says_who_objects() -> None:
    master = Master(objects=3)
    master.goes()
    assert [override for _, override in master.asked] == [False] * 4
    assert len({identity for identity, _ in master.asked}) == 4  # each is put to the objectors anew
    (note,) = master.notes  # the same words once
    assert "cache (level 60) on n1 objects: not now" in note
    assert not master.ended


def test_p4_10_it_overrides_once_the_machine_stops_or_its_time_is_nearly_over() -> None:
    stops = Master(objects=1 << 30)
    stops.goes(stops_after=2)
    assert [override for _, override in stops.asked] == [False, False, True]
    late = Master(objects=1 << 30)
    late.goes(override_s=0)
    assert [override for _, override in late.asked] == [True]


def test_p4_10_a_node_that_learns_that_it_is_no_member_has_nothing_to_leave() -> None:
    """As a daemon does that was started again while its node waited for a required level (P3.17)."""
    master = Master(objects=1 << 30)
    master.outside_after = 3
    master.goes()
    assert len(master.asked) == 3
    assert master.ended == 1


def test_p4_10_without_a_master_it_ends_by_itself_after_the_bound() -> None:
    master = Master(0, silent=True)
    master.goes(no_master_s=0.05)
    assert master.ended == 1
    assert any("ends by itself" in note for note in master.notes)


def test_p4_10_a_refusal_is_an_answer_so_the_time_without_a_master_counts_from_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(leaving_module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    answers = iter((True, None, False))  # objected to; no master; granted
    master = Master(objects=0)

    async def ask(identity: str, _operation: LeaveNode, _timeout_s: float) -> Reply | None:
        clock.now_s += 40.0
        refused = next(answers)
        return None if refused is None else Reply(identity, refused, "not now" if refused else "n0 is leaving", 1)

    master.ask = ask  # type: ignore[assignment,method-assign]
    master.goes(no_master_s=60.0)
    assert next(answers, "none left") == "none left"
    assert not master.ended


def test_p4_11_the_time_needed_is_the_sum_of_the_stop_limits_on_this_node() -> None:
    slow = Definition("slow", stop_timeout_ms=2_400_000, stop_retries=1, grace_ms=5000)
    database = Database(Cluster("test", "0" * 32, "fast", ""))
    for node, definition in ((0, slow), (0, Definition("quick", grace_ms=0)), (1, Definition("other"))):
        database.services[definition.name] = Service(definition, 1, ServiceState.REGISTERED, node=node)
    assert time_needed_ms(database, 0) == 2 * 2_400_000 + 5000 + 60_000 + MARGIN_MS
    assert time_needed_ms(database, 2) == MARGIN_MS
    assert time_needed_ms(database, 0, {"other": None}) == Definition("other").stop_timeout_ms + 5000 + MARGIN_MS


def test_p4_11_systemd_is_asked_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        needed = iter((100_000, 60_000))

        async def work() -> None:
            with pytest.raises(RuntimeError):
                await keep_extending(lambda: next(needed), MAXIMUM_MS, 0)

        asyncio.run(work())
        assert [manager.recv(100) for _ in range(2)] == [
            b"EXTEND_TIMEOUT_USEC=100000000",
            b"EXTEND_TIMEOUT_USEC=60000000",
        ]


def test_p4_11_it_is_asked_for_no_more_than_is_configured_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSTER_LONGEST_STOP", "2h")
    assert longest_stop_ms() == 2 * 3600 * 1000
    monkeypatch.delenv("MUSTER_LONGEST_STOP")
    assert longest_stop_ms() == MAXIMUM_MS
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        asyncio.run(keep_extending(lambda: MAXIMUM_MS, 50, 0.1))  # it ends: the time is over
        asked = int(manager.recv(100).partition(b"=")[2])
        assert 0 < asked <= 50_000
        asyncio.run(keep_extending(lambda: MAXIMUM_MS, -1, 0.1))
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def test_p4_10_a_leave_that_is_taken_up_again_counts_from_when_the_node_was_told() -> None:
    master = Master(objects=1 << 30)
    master.goes(told_s=601)
    assert [override for _, override in master.asked] == [True]


# ---- P4.12 the end without a master ----------------------------------------------------------------------------------


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[RealRunner]:
    """A runner with nothing to do."""
    runner = RealRunner(tmp_path)
    try:
        yield runner
    finally:
        runner.close()


def database_of(*definitions: Definition) -> Database:
    """The replica of node 0, on which all of these are registered."""
    database = Database(Cluster("test", "0" * 32, "fast", ""), 40, nodes={0: NodeConfig(0, "n0", (), "")})
    for number, definition in enumerate(definitions):
        database.services[definition.name] = Service(definition, 100 + number, ServiceState.REGISTERED, node=0)
    return database


def test_p4_12_the_last_stops_go_children_first_and_a_failed_one_holds_up_nothing(
    runner: RealRunner, tmp_path: Path
) -> None:
    told = tmp_path / "told"

    def stops(name: str, status: int = 0) -> tuple[str, ...]:
        text = f'echo "$MUSTER_ACTION {name} begins" >> {told}; sleep 0.2; echo "{name} ends" >> {told}; exit {status}'
        return shell(text)

    database = database_of(
        Definition("db", stop_command=stops("db"), siblings=1),
        Definition("app1", stop_command=stops("app1"), parent="db"),
        Definition("app2", stop_command=stops("app2", 3), parent="db"),
        Definition("alone"),
    )
    for generation, name in enumerate(database.services, 11):
        assert runner.run(generation, "start", *shell("sleep 987654 &"), service=name)["succeeded"]
    notes: list[tuple[str, str]] = []

    async def end() -> None:
        def ended(command: CommandState) -> None:
            last.ended(command)

        client = RunnerClient(runner.daemon, ended)
        last = LastStops(client, database, 0, 5, lambda *note: notes.append(note))
        await last.run()
        assert not last.left
        client.close()

    asyncio.run(asyncio.wait_for(end(), 60))
    lines = told.read_text().splitlines()
    assert lines[4:] == ["stop db begins", "db ends"]
    assert sorted((lines[:2], lines[2:4])) == [["stop app1 begins", "app1 ends"], ["stop app2 begins", "app2 ends"]]
    assert [event for event, _ in notes] == ["stopping alone", "stop failed"]
    assert "app2: exit status 3" in notes[1][1] or "app2: " in notes[1][1]
    assert runner.below() == {}


def test_p4_12_whatever_a_master_orders_meanwhile_nothing_is_started_and_nothing_is_answered(
    runner: RealRunner, tmp_path: Path
) -> None:
    assert runner.run(11, "start", *shell("sleep 987654 &"))["succeeded"]
    database = database_of(Definition("s", stop_command=shell(f"while ! test -e {tmp_path}/go; do sleep 0.02; done")))
    finished: list[CommandState] = []
    started = shell(f"touch {tmp_path}/started")

    def order(generation: int, action: str) -> RunCommand:
        return RunCommand("s", 100, generation, action, started, 5000, {}, 0, 0, 100)

    async def end() -> None:
        stopping = asyncio.Event()

        def ended(command: CommandState) -> None:
            finished.append(command)
            last.ended(command)

        client = RunnerClient(runner.daemon, ended)
        last = LastStops(client, database, 0, 5, lambda *_: stopping.set())
        task = asyncio.create_task(last.run())
        await stopping.wait()
        client.run(order(20, "start"))
        client.run(order(21, "stop"))
        # a daemon that takes this one's place knows nothing of the end, and gives it to the runner
        client.run_last(order(22, "start"))
        client.run_last(order(23, "recovery"))
        (tmp_path / "go").touch()
        await task
        client.close()

    asyncio.run(asyncio.wait_for(end(), 60))
    assert not (tmp_path / "started").exists()
    assert [(each.generation, each.action, each.succeeded) for each in finished] == [(12, "stop", True)]


@pytest.mark.parametrize(
    ("action", "finished", "succeeded", "may"),
    [
        ("start", False, False, True),
        ("start", True, True, True),
        ("start", True, False, False),  # it has ended all that it left
        ("stop", False, False, True),
        ("stop", True, False, True),
        ("stop", True, True, False),
        ("recovery", False, False, True),
        ("recovery", True, True, False),
        ("notify", False, False, False),
    ],
)
def test_p4_12_what_may_run_is_stopped_and_nothing_else(
    action: str, finished: bool, succeeded: bool, may: bool
) -> None:
    assert may_run(CommandState("s", 5, action, finished, succeeded)) is may


class FakeRunner:
    """A runner that was asked to take nothing but stops: what it knows, and the stops that it was given."""

    def __init__(self, *known: CommandState) -> None:
        self.known = known
        self.given: list[RunCommand] = []

    async def retire(self) -> tuple[CommandState, ...]:
        """Its inventory."""
        return self.known

    def run_last(self, command: RunCommand) -> None:
        """A last stop."""
        self.given.append(command)

    def names(self) -> list[str]:
        """Whose stops it was given."""
        return [command.service for command in self.given]


def runs(name: str, generation: int = 11) -> CommandState:
    return CommandState(name, generation, "start", True, True)


async def settled() -> None:
    """Whatever can be done now is done."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_p4_12_as_many_children_of_a_parent_stop_at_a_time_as_its_group_allows_and_the_parent_last() -> None:
    database = database_of(
        Definition("db", siblings=2), *(Definition(f"app{number}", parent="db") for number in range(5)),
        Definition("free"), *(Definition(f"job{number}", parent="free") for number in range(3)),
    )  # fmt: skip

    async def scenario() -> None:
        fake = FakeRunner(*map(runs, database.services))
        last = LastStops(cast("RunnerClient", fake), database, 0, 5, lambda *_note: None)
        task = asyncio.create_task(last.run())
        await settled()
        assert fake.names() == ["app0", "app1", "job0", "job1", "job2"]
        assert {command.generation for command in fake.given} == {12}
        last.ended(CommandState("app0", 11, "stop", True, True))  # of another generation
        last.ended(CommandState("app0", 12, "start", False, False, "refused"))  # and another action
        await settled()
        assert len(fake.given) == 5
        last.ended(CommandState("app0", 12, "stop", True, True))
        await settled()
        assert fake.names()[5:] == ["app2"]
        for name in ("app1", "app2", "app3", "app4"):
            assert "db" not in fake.names()
            last.ended(CommandState(name, 12, "stop", True, name != "app4", "its disk is gone"))
            await settled()
        assert fake.names()[-1] == "db"  # a stop that failed holds up nothing
        for name in ("db", "job0", "job1", "job2"):
            assert not task.done() and "free" not in fake.names()
            last.ended(CommandState(name, 12, "stop", True, True))
            await settled()
        assert fake.names()[-1] == "free" and not task.done()
        last.ended(CommandState("free", 12, "stop", True, True))
        await task

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_p4_12_a_stop_that_is_at_work_already_is_waited_for_and_one_that_failed_is_tried_once_more() -> None:
    database = database_of(Definition("db", siblings=1), *(Definition(name, parent="db") for name in ("a", "b", "c")))

    async def scenario() -> None:
        at_work = CommandState("b", 20, "stop", False, False)
        failed = CommandState("c", 30, "stop", True, False)
        fake = FakeRunner(runs("db"), runs("a"), at_work, failed)
        last = LastStops(cast("RunnerClient", fake), database, 0, 5, lambda *_note: None)
        task = asyncio.create_task(last.run())
        await settled()
        assert fake.given == []  # b's stop takes the one place of the group
        last.ended(replace(at_work, finished=True, succeeded=True))
        await settled()
        last.ended(CommandState("a", 12, "stop", True, True))
        await settled()
        assert [(each.service, each.generation, each.action) for each in fake.given] == [
            ("a", 12, "stop"),
            ("c", 31, "stop"),
        ]
        last.ended(CommandState("c", 31, "stop", True, True))
        await settled()
        last.ended(CommandState("db", 12, "stop", True, True))
        await task
        assert last.left == {}

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_p4_11_a_limit_that_is_no_duration_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--store", "s", "--node", "n0", "--home", "h", "--longest-stop", "soon"])
    assert refused.value.code == 2
    assert "'soon' is no duration: write it as 90s, 30m or 24h" in capsys.readouterr().err


def test_p4_12_a_last_stop_is_told_what_every_command_is_told_and_nothing_of_the_administrators_passes_for_it() -> None:
    given = (("COLOUR", "blue"), ("MUSTER_EPOCH", "0"), ("MUSTER_OWNER", "me"))
    database = database_of(Definition("db", stop_command=("stop",), environment=given, stop_timeout_ms=7000))
    stop = last_stop("db", 12, database, 0, 5)
    assert (stop.action, stop.generation, stop.command, stop.timeout_ms) == ("stop", 12, ("stop",), 7000)
    told = {key: stop.environment.get(key) for key in ("COLOUR", "MUSTER_EPOCH", "MUSTER_OWNER", "MUSTER_REASON")}
    assert told == {
        "COLOUR": "blue", "MUSTER_EPOCH": str(database.epoch), "MUSTER_OWNER": None,
        "MUSTER_REASON": "its node ends: no master answers",
    }  # fmt: skip
    assert last_stop("gone", 12, database, 0, 5).command == ()  # defined no more: what runs of it is ended


def test_p6_41_a_last_stop_has_the_token_of_what_it_stops_and_never_that_of_another_owner() -> None:
    database = database_of(Definition("db", stop_command=("stop",)))
    database.services["db"] = replace(database.services["db"], incarnation=5, token=token_of(40))
    tokens = [last_stop("db", 12, database, node, life).environment["MUSTER_TOKEN"] for node, life in ((0, 5), (0, 4))]
    assert tokens == [str(Token(token_of(40), 0)), ""]


# The daemon of this node hears no master while it leaves, and has less patience.
DEAF = """
import sys
if "muster.daemon.run" in sys.orig_argv and "n1" in sys.orig_argv:
    from muster.daemon.shell import leaving
    async def ask(*_):
        return None
    begin = leaving.Leaving.__init__
    def init(self, name, identity, _ask, *rest, **more):
        begin(self, name, identity, ask, *rest, **more)
    leaving.Leaving.__init__ = init
    leaving.Leaving.run.__defaults__ = (600.0, 0.5, 0.0)
"""


def test_p4_12_a_real_node_without_a_master_stops_its_services_in_order_and_then_leaves_its_tombstone(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    cluster, told, deaf = dev_cluster, tmp_path / "told", tmp_path / "deaf"
    deaf.mkdir()
    (deaf / "sitecustomize.py").write_text(DEAF)
    path = os.pathsep.join([str(deaf), os.environ["PYTHONPATH"]])
    up = cluster.run("dev", "up", "--nodes", "2", *PATIENT, PYTHONPATH=path)
    assert up.returncode == 0, up.stderr
    say = f'echo "$MUSTER_SERVICE $MUSTER_ACTION on $MUSTER_NODE" >> {told}'
    file = tmp_path / "services.toml"
    file.write_text(
        f"""
[[service]]
name = "db"
node_preferences = {{ ordered = ["n1"] }}
start_command = ["sh", "-c", '{say}; sleep 987654 &']
stop_command = ["sh", "-c", '{say}; sleep 0.3']
grace = "100ms"
[[service]]
name = "app"
parent = "db"
start_command = ["sh", "-c", '{say}; sleep 987654 &']
stop_command = ["sh", "-c", '{say}; sleep 0.3']
grace = "100ms"
"""
    )
    cluster.succeed("apply", str(file))
    cluster.wait_for(
        "both on n1", lambda status: all(each["state"] == "registered" for each in status["services"].values())
    )
    home = cluster.directory / "nodes" / "n1"
    os.kill(json.loads((home / "guard.json").read_text())["pid"], signal.SIGTERM)

    def elsewhere(status: dict[str, Any]) -> bool:
        services = status["services"].values()
        return all((each["node"], each["state"]) == ("n0", "registered") for each in services)

    cluster.wait_for("both on n0", elsewhere, node="n0")
    assert told.read_text().splitlines() == [
        *("db start on n1", "app start on n1", "app stop on n1", "db stop on n1", "db start on n0", "app start on n0"),
    ]
    wait_for("the log", lambda: "it stops app, db, without the cluster" in (home / "log").read_text())
    assert "panic" not in (home / "log").read_text()
    assert cluster.status("n0")["nodes"]["n1"]["state"] == "inactive"
