"""Events on real daemons: crashes, checks, groups, foreign watchers, actions (SPEC 5, 6.6, PROTOCOL 8)."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev_cluster import DevCluster
from muster.client import ClientError, Refused, watch, watch_async
from muster.client.control import ControlClient
from muster.drivers.image.process_tree import read_command_line, read_name, read_parents
from muster.records.access import ITSELF
from patience import DEADLINE_S, wait

NODES = ("n0", "n1", "n2")


class Cluster:
    """Three joined nodes, and a service file in the test's directory."""

    def __init__(self, dev: DevCluster, directory: Path) -> None:
        self.dev, self.directory = dev, directory

    def apply(self, text: str) -> str:
        """Apply a file."""
        file = self.directory / "cluster.toml"
        file.write_text(text)
        return self.dev.succeed("apply", str(file))

    def query(self, query: str, node: str = "n0", /, **arguments: str) -> Any:
        """Ask this very node."""
        return ControlClient(self.dev.directory / "nodes" / node / "control.sock", 5.0).query(query, **arguments)

    def service(self, name: str) -> Any:
        """What is known of a service."""
        return self.query("service", name=name)["service"]

    def registered(self, name: str, generation_above: int = -1) -> Any:
        """Wait until a service is registered, with a newer generation than that."""

        def probe() -> Any:
            found = self.service(name)
            newer = found["generation"] > generation_above
            return found if found["state"] == "registered" and newer else None

        return wait(f"{name} is registered", probe)

    def occurrences(self, event: str) -> list[Any]:
        """What the nodes remember of an event; those that are up are asked until all have answered in time."""

        def all_answer() -> Any:
            found = self.query("event_history")
            up = {name for name, node in self.query("status")["nodes"].items() if node["state"] == "joined"}
            return None if up & {each["node"] for each in found["unanswered"]} else found

        found = wait("the nodes to tell what they remember", all_answer)["occurrences"]
        return [each for each in found if each["event"] == event]

    def ended(self, event: str, number: int = 1) -> list[Any]:
        """The occurrences of an event once there are so many and nothing is at work for them any more."""

        def none_at_work() -> Any:
            found = self.occurrences(event)
            return found if len(found) >= number and all(each["result"] != "running" for each in found) else None

        return list(wait(f"the end of {event}", none_at_work))


@pytest.fixture(scope="module")
def nodes() -> Iterator[DevCluster]:
    """Three joined nodes for all tests of this file; the most patient profile, as none of them is about lost nodes."""
    with tempfile.TemporaryDirectory(prefix="muster-test-", ignore_cleanup_errors=True) as base:
        dev = DevCluster(Path(base) / "cluster")
        try:
            dev.up(3)
            yield dev
        finally:
            if (dev.directory / "cluster.json").exists():
                dev.down()


@pytest.fixture
def cluster(nodes: DevCluster, tmp_path: Path) -> Iterator[Cluster]:
    """The nodes, with nothing defined before and after."""
    found = Cluster(nodes, tmp_path)
    yield found
    connection = ControlClient(nodes.directory / "nodes" / "n0" / "control.sock", DEADLINE_S)
    groups = [group["group"] for group in found.query("events")["groups"] if group["definition"]]
    connection.operate("apply_events", groups=[], withdraw=groups)
    connection.operate("apply", definitions=[], withdraw=list(found.query("services")["services"]))
    wait("an empty cluster", lambda: not found.query("services")["services"])


def named(cluster: Cluster, name: str, node: str) -> list[int]:
    """The forked processes of a node that have this name."""
    home = str(cluster.dev.directory / "nodes" / node).encode()
    parents = read_parents()
    found = {pid for pid in parents if read_name(pid) == name and home in read_command_line(pid)}
    return [pid for pid in found if parents[pid] not in found]  # not what it has just forked and has no name yet


def daemons_of(cluster: Cluster, node: str) -> list[int]:
    """The daemon of a node."""
    home = str(cluster.dev.directory / "nodes" / node).encode()
    parents = read_parents()
    lines = {pid: read_command_line(pid) for pid in parents}
    found = {pid for pid, words in lines.items() if b"muster.daemon.run" in words[:3] and home in words}
    return [pid for pid in found if parents[pid] not in found]


def logged(cluster: Cluster, service: str) -> list[Any]:
    """The commands of a service, as the nodes that answer in time remember them."""
    return list(cluster.dev.json("service", "log", service)["commands"])


def program(mark: str) -> int:
    """The process that runs with this argument; waits for it."""

    def probe() -> int:
        found = [pid for pid in read_parents() if read_command_line(pid)[-1:] == [mark.encode()]]
        return found[0] if len(found) == 1 else 0

    return int(wait(f"program {mark}", probe))


def test_a_crashed_program_is_restarted_in_place_then_moved_then_stuck_until_it_is_cleared(cluster: Cluster) -> None:
    mark = f"1000.{os.getpid()}"
    cluster.apply(
        f"""
        [[service]]
        name = "web"
        run = ["/bin/sleep", "{mark}"]
        allowable_nodes = ["n0", "n1"]
        node_preferences = {{ordered = ["n0", "n1"]}}
        restarts = 1
        """
    )
    places: list[str] = []
    generation = -1
    for _ in range(4):
        found = cluster.registered("web", generation)
        places.append(found["node"])
        generation = found["generation"]
        os.kill(program(mark), signal.SIGKILL)
    # restarted once on each node, then given up
    assert places == ["n0", "n0", "n1", "n1"]
    stuck = wait("a cause", lambda: cluster.service("web")["cause"] and cluster.service("web"))
    assert "muster service clear web" in stuck["cause"]
    assert stuck["state"] == "de-registered"
    exits = [each for each in cluster.ended("web:exit", 4) if each["verdict"] == "acted upon"]
    assert [each["node"] for each in exits] == places
    assert {each["out"]["status"] for each in exits} == {"was killed by SIGKILL"}
    wait("the log", lambda: [each["action"] for each in logged(cluster, "web")].count("exit") == 4)
    cluster.dev.succeed("service", "clear", "web")
    cluster.registered("web", generation)


def test_p8_1_a_program_that_ends_while_no_daemon_listens_is_acted_upon_by_the_next_one(cluster: Cluster) -> None:
    mark = f"1005.{os.getpid()}"
    cluster.apply(f'[[service]]\nname = "alone"\nrun = ["/bin/sleep", "{mark}"]\nallowable_nodes = ["n2"]\n')
    generation = cluster.registered("alone")["generation"]
    (daemon,) = daemons_of(cluster, "n2")
    os.kill(daemon, signal.SIGKILL)
    os.kill(program(mark), signal.SIGKILL)
    assert cluster.registered("alone", generation)["node"] == "n2"
    (exit_,) = cluster.ended("alone:exit")
    assert (exit_["result"], exit_["in"]["generation"]) == ("succeeded", str(generation))
    asked = [entry for entry in cluster.dev.json("audit")["audit"] if entry["operation"] == "fail"]
    assert {(entry["user"], entry["node"]) for entry in asked} >= {(ITSELF, "n2")}
    assert all(entry["at_ms"] for entry in asked)


def test_p8_7_programs_that_crash_together_are_all_restarted(cluster: Cluster) -> None:
    names = [f"together{number}" for number in range(4)]
    marks = {name: f"1009{number}.{os.getpid()}" for number, name in enumerate(names)}
    tables = [
        f'[[service]]\nname = "{name}"\nrun = ["/bin/sleep", "{mark}"]\nallowable_nodes = ["n1"]\n'
        for name, mark in marks.items()
    ]
    cluster.apply("".join(tables))
    generations = {name: cluster.registered(name)["generation"] for name in names}
    for pid in [program(mark) for mark in marks.values()]:
        os.kill(pid, signal.SIGKILL)
    for name in names:
        cluster.registered(name, generations[name])


@pytest.mark.parametrize("victims", ["watcher", "daemon and watcher", "keeper"])
def test_p8_1_the_end_of_a_program_is_acted_upon_once_whatever_is_killed_with_it(
    cluster: Cluster, victims: str
) -> None:
    mark = f"1006.{os.getpid()}"
    cluster.apply(f'[[service]]\nname = "once"\nrun = ["/bin/sleep", "{mark}"]\nallowable_nodes = ["n1"]\n')
    found = cluster.registered("once")
    victim = program(mark)
    (watcher,) = wait("its watcher process", lambda: named(cluster, "muster-watcher", "n1"))
    doomed = {
        "watcher": [watcher, victim],
        "daemon and watcher": [*daemons_of(cluster, "n1"), watcher, victim],
        "keeper": [read_parents()[victim]],  # what it kept is ended with it
    }[victims]
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    cluster.registered("once", found["generation"])
    exits = [each for each in cluster.ended("once:exit") if each["in"]["generation"] == str(found["generation"])]
    assert [(each["node"], each["verdict"], each["result"]) for each in exits] == [("n1", "acted upon", "succeeded")]


def test_p8_1_no_number_of_other_clients_keeps_the_end_of_a_program_from_being_told(cluster: Cluster) -> None:
    mark = f"1008.{os.getpid()}"
    cluster.apply(f'[[service]]\nname = "crowded"\nrun = ["/bin/sleep", "{mark}"]\nallowable_nodes = ["n1"]\n')
    generation = cluster.registered("crowded")["generation"]
    home = cluster.dev.directory / "nodes" / "n1"
    (watcher,) = wait("the watcher process", lambda: named(cluster, "muster-watcher", "n1"))
    with contextlib.ExitStack() as held:
        for number in range(80):
            if number == 75:
                os.kill(watcher, signal.SIGKILL)  # the next one has to find a place, and this one's is taken
            connection = held.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(os.fspath(home / "control.sock"))
            connection.send(b"{")
        wait("a full socket", lambda: _is_full(home))
        os.kill(program(mark), signal.SIGKILL)
        cluster.registered("crowded", generation)
    wait("all nodes", lambda: not cluster.query("event_history")["unanswered"])


def _is_full(home: Path) -> bool:
    try:
        ControlClient(home / "control.sock", 5.0).query("status")
    except ClientError as error:
        return "clients are connected already" in str(error)
    return False


GONE = """
    [[event_group]]
    name = "membership"
    nodes = ["n0"]
    [[event_group.event]]
    name = "n2-changed"
    watcher = "membership"
    in = {node = "n2"}
    action = ["true"]
    [[event_group.event]]
    name = "somebody-joined"
    watcher = "membership"
    in = {state = "joined"}
    action = ["true"]
"""


@pytest.mark.parametrize("victim", ["nobody", "watcher", "daemon"])
def test_p8_8_each_change_of_the_members_occurs_once_whoever_is_killed_meanwhile(cluster: Cluster, victim: str) -> None:
    before = {each["number"] for each in cluster.occurrences("n2-changed") + cluster.occurrences("somebody-joined")}
    cluster.apply(GONE)
    wait("the watcher", lambda: len(cluster.query("events")["groups"][0]["watched_by"]) == 2)
    (watcher,) = named(cluster, "muster-watcher", "n0")
    if victim != "nobody":
        os.kill(watcher, signal.SIGSTOP)
    cluster.dev.succeed("dev", "leave", "n2")
    if victim == "watcher":
        os.kill(watcher, signal.SIGKILL)
    elif victim == "daemon":
        (daemon,) = daemons_of(cluster, "n0")
        os.kill(daemon, signal.SIGKILL)
        wait("the next daemon", lambda: _follows(cluster))
        os.kill(watcher, signal.SIGCONT)

    def told() -> list[tuple[str, str]]:
        found = [each for each in cluster.occurrences("n2-changed") if each["number"] not in before]
        return [(each["out"]["previous"], each["out"]["state"]) for each in found if each["result"] == "succeeded"]

    left = [("joined", "leaving"), ("leaving", "inactive")]
    wait("both changes", lambda: told()[-2:] == left)
    assert told() == left
    cluster.dev.succeed("dev", "boot", "n2")
    wait("n2 is back", lambda: told()[-1] == ("joining", "joined"))
    assert told() == [*left, ("inactive", "joining"), ("joining", "joined")]
    joined = [each for each in cluster.occurrences("somebody-joined") if each["number"] not in before]
    assert [each["out"]["node"] for each in joined] == ["n2"]


def _follows(cluster: Cluster) -> bool:
    """Whether the daemon of n0 tells how the nodes stand."""
    try:
        with watch("mine", members=True, node="n0", directory=cluster.dev.directory, reconnect_s=0.0) as watcher:
            return watcher.wait(1.0) and bool(watcher.members)
    except ClientError:
        return False


def test_p8_8_a_foreign_watcher_hears_how_the_nodes_stand(cluster: Cluster) -> None:
    with watch("mine", members=True, node="n0", directory=cluster.dev.directory) as watcher:
        wait("the nodes", lambda: watcher.wait(1.0) and watcher.members)
        assert {node: state for node, (state, _) in watcher.members.items()} == dict.fromkeys(NODES, "joined")
        assert watcher.changes() == []
        cluster.dev.succeed("dev", "leave", "n2")
        wait("its leave", lambda: watcher.wait(1.0) and watcher.members["n2"][0] == "inactive")
        assert [(each.node, each.previous, each.state) for each in watcher.changes()] == [
            ("n2", "joined", "leaving"),
            ("n2", "leaving", "inactive"),
        ]
        cluster.dev.succeed("dev", "boot", "n2")
        wait("its return", lambda: watcher.wait(1.0) and watcher.members["n2"][0] == "joined")


def test_a_check_that_fails_twice_of_three_runs_is_a_failure_and_hung_ones_are_ended(cluster: Cluster) -> None:
    bad = cluster.directory / "bad"
    mark, hung = f"1001.{os.getpid()}", f"1002.{os.getpid()}"
    cluster.apply(
        f"""
        [[service]]
        name = "checked"
        run = ["/bin/sleep", "{mark}"]
        check = {{command = ["/bin/sh", "-c", "test ! -e {bad} || {{ echo slow; sleep {hung}; }}"],
                 interval = "50ms", timeout = "2s", failures = "2/3"}}
        """.replace(",\n                 ", ", ")
    )
    found = cluster.registered("checked")
    generation = found["generation"]
    (watcher,) = wait("the watcher process", lambda: named(cluster, "muster-watcher", found["node"]))
    os.kill(watcher, signal.SIGKILL)  # another takes its place, and is asked for the same
    with subprocess.Popen(["/bin/sleep", "1003"]) as bystander:
        try:
            bad.touch()
            assert cluster.registered("checked", generation)["node"]
            bad.unlink()
            (first, *_) = cluster.occurrences("checked:check")
            assert first["out"]["detail"].startswith("its check did not end within 2000 ms")
            assert first["out"]["output"] == "slow"
            assert int(first["out"]["failures"]) == 2
            wait(
                "hung checks are gone",
                lambda: not any(hung.encode() in read_command_line(pid) for pid in read_parents()),
            )
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_p8_6_a_check_ends_with_the_watcher_that_runs_it_and_with_all_that_it_has_started(cluster: Cluster) -> None:
    mark = f"1004.{os.getpid()}"

    def left() -> list[int]:
        return [pid for pid in read_parents() if read_command_line(pid)[:2] == [b"sleep", mark.encode()]]

    cluster.apply(
        f"""
        [[service]]
        name = "looked-at"
        allowable_nodes = ["n0"]
        run = ["/bin/sleep", "1005"]
        check = {{command = ["/bin/sh", "-c", "sleep {mark} & sleep {mark}"], interval = "1h", timeout = "1h"}}
        """
    )
    cluster.registered("looked-at")
    cluster.apply(
        f"""
        [[event_group]]
        name = "now"
        nodes = ["n0"]
        [[event_group.event]]
        name = "look"
        watcher = "check"
        in = {{command = "/bin/sh -c 'sleep {mark} & sleep {mark}'", interval = "100ms", timeout = "1h"}}
        """
    )
    before = set(wait("the check to run", lambda: len(found := left()) == 2 and found))
    (watcher,) = wait("the watcher process", lambda: named(cluster, "muster-watcher", "n0"))
    os.kill(watcher, signal.SIGKILL)  # the next one runs the check again
    wait("what it ran to be gone", lambda: not before & set(left()))


def test_p8_6_a_foreign_watcher_detects_what_its_group_allows_and_the_action_gets_the_values(cluster: Cluster) -> None:
    record = cluster.directory / "record"
    cluster.apply(
        f"""
        [[event_group]]
        name = "disk"
        nodes = ["n1"]
        [[event_group.event]]
        name = "disk-full"
        in = {{path = "/srv"}}
        out = ["free"]
        action = ["/bin/sh", "-c", "echo $0 $1 $MUSTER_NODE $MUSTER_EPOCH >> {record}; sleep 100 &",
                  "{{in.path}}", "{{out.free}}"]
        debounce = "1h"
        """
    )
    directory = cluster.dev.directory
    with watch(events=["disk-full"], node="n0", directory=directory) as elsewhere:
        assert not elsewhere.wait(0.2)
        with pytest.raises(Refused, match="not watched for here"):
            elsewhere.occurred("disk-full", free="0")
    with watch(events=["disk-full"], node="n1", directory=directory) as watcher:
        wait("the order", lambda: watcher.wait(1.0) or watcher.asked)
        assert dict(watcher.asked["disk-full"].parameters) == {"path": "/srv"}
        assert watcher.occurred("disk-full", free="1 MiB", stranger="x") == "acted upon"
        assert watcher.occurred("disk-full", free="0") == "debounced"
        words = wait("the action", lambda: record.exists() and record.read_text().split())
        epoch = cluster.query("status")["epoch"]
        assert words == ["/srv", "1", "MiB", "n1", str(epoch)]
        # what the action left is ended with it, and the history of any node tells

        def here() -> list[Any]:
            return [each for each in cluster.occurrences("disk-full") if each["node"] == "n1"]

        wait("its end", lambda: here()[0]["result"] == "succeeded")
        first, second = here()
        assert (first["node"], first["out"], second["verdict"]) == ("n1", {"free": "1 MiB"}, "debounced")
        cluster.dev.succeed("event", "disable", "disk")
        wait("no order", lambda: watcher.wait(1.0) or not watcher.asked)
        assert "disabled by hand" in cluster.dev.succeed("event", "show", "disk")
        cluster.dev.succeed("event", "enable", "disk")
        wait("the order again", lambda: watcher.wait(1.0) or watcher.asked)

    async def asynchronously() -> str:
        async with await watch_async(events=["disk-full"], node="n1", directory=directory) as found:
            while not found.asked:
                await found.wait(DEADLINE_S)
            return await found.occurred("disk-full", free="0")

    assert asyncio.run(asynchronously()) == "debounced"


def test_p8_4_a_watcher_finds_its_way_back_to_a_restarted_daemon(cluster: Cluster) -> None:
    cluster.apply('[[event_group]]\nname = "g"\n[[event_group.event]]\nname = "back"\naction = ["true"]\n')
    with watch(events=["back"], node="n1", directory=cluster.dev.directory, reconnect_s=DEADLINE_S) as watcher:
        wait("the order", lambda: watcher.wait(1.0) or watcher.asked)
        (daemon,) = daemons_of(cluster, "n1")
        os.kill(daemon, signal.SIGKILL)
        assert wait("the next daemon", lambda: _verdict(watcher, "back")) == "acted upon"


def _verdict(watcher: Any, event: str) -> str:
    try:
        return str(watcher.occurred(event))
    except Refused:
        return ""  # it knows of the event once its replica is confirmed


def test_p8_9_histories_survive_the_daemon_and_actions_under_way_are_waited_for(cluster: Cluster) -> None:
    go, record = cluster.directory / "go", cluster.directory / "record"
    mark = f"1007.{os.getpid()}"
    cluster.apply(
        f"""
        [[service]]
        name = "kept"
        run = ["/bin/sh", "-c", "echo up; exec sleep {mark}"]
        allowable_nodes = ["n1"]
        on_failure = ["/bin/sh", "-c", "echo paged >> {record}"]
        [[event_group]]
        name = "g"
        nodes = ["n1"]
        [[event_group.event]]
        name = "long"
        action = ["/bin/sh", "-c", "until test -e {go}; do sleep 0.05; done; echo done"]
        debounce = "1h"
        """
    )
    cluster.registered("kept")
    os.kill(program(mark), signal.SIGKILL)
    wait("the page", lambda: [each["result"] for each in cluster.occurrences("kept:exit")] == ["succeeded"])
    directory = cluster.dev.directory
    history = directory / "nodes" / "n1" / "event-history"
    with watch(events=["long"], node="n1", directory=directory, reconnect_s=DEADLINE_S) as watcher:
        wait("the order", lambda: watcher.wait(1.0) or watcher.asked)
        assert watcher.occurred("long") == "acted upon"
        wait("its record", lambda: b'"long"' in history.read_bytes() and b'"succeeded"' in history.read_bytes())
        before = cluster.occurrences("long") + cluster.occurrences("kept:exit")
        commands = wait("the log", lambda: len(found := logged(cluster, "kept")) == 2 and found)
        assert [each["action"] for each in commands] == ["start", "exit"]
        (daemon,) = daemons_of(cluster, "n1")
        os.kill(daemon, signal.SIGKILL)
        after = wait("the next daemon", lambda: cluster.occurrences("long")) + cluster.occurrences("kept:exit")
        assert [{**each, "at_s": 0} for each in after] == [{**each, "at_s": 0} for each in before]
        assert [each["result"] for each in after] == ["running", "succeeded"]
        assert [round(now["at_s"] - then["at_s"], 1) for now, then in zip(after, before, strict=True)] == [0, 0]
        assert wait("the log", lambda: logged(cluster, "kept")) == commands
        # what was acted upon still counts, and what was told of the program is not acted upon again
        assert wait("the next daemon", lambda: _verdict(watcher, "long")) == "debounced"
    wait("its record", lambda: b'"debounced"' in history.read_bytes())
    # it ends while no daemon listens
    (daemon,) = daemons_of(cluster, "n1")
    os.kill(daemon, signal.SIGKILL)
    go.touch()
    wait("the end of the action", lambda: [each["result"] for each in cluster.occurrences("long")] == ["succeeded", ""])
    assert len(cluster.occurrences("kept:exit")) == 1
    assert record.read_text() == "paged\n"
    wait("all nodes", lambda: not cluster.query("event_history")["unanswered"])
    for name in ("event-history", "command-history"):
        assert (directory / "nodes" / "n1" / name).stat().st_mode & 0o777 == 0o600


def test_a_wrapped_script_is_a_watcher_and_its_lines_are_occurrences(cluster: Cluster) -> None:
    cluster.apply(
        '[[event_group]]\nname = "g"\non_master = true\n[[event_group.event]]\nname = "e"\nin = {word = "hello"}\n'
        'out = ["said", "output"]\naction = ["/bin/echo", "{out.said}"]\n'
    )
    master = cluster.query("status")["master"]
    script = 'head -c 200000 /dev/zero | tr "\\0" x; echo; echo "said=$MUSTER_IN_WORD"; sleep 100'
    process = subprocess.Popen(
        [sys.executable, "-m", "muster.ui.command_line", "watcher", "run", "--node", master, "--event", "e", "--lines",
         "--", "/bin/sh", "-c", script],
        env=os.environ | {"MUSTER_DIR": str(cluster.dev.directory)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        long, found = wait("two occurrences", lambda: (both := cluster.occurrences("e"))[1:] and both)
        assert set(long["out"]["output"]) == {"x"}  # it is cut off, and the next line is one of its own
        assert (found["node"], found["out"]["said"]) == (master, "hello")
        assert found["action"] == ["/bin/echo", "hello"]

        def told_by_all() -> Any:
            listed = cluster.dev.json("event", "list")
            return None if listed["unanswered"] else listed["groups"]

        (group,) = wait("all nodes", told_by_all)
        assert group["enabled_on"] == [master]
        assert set(group["why_not"].values()) == {"only on the master"}
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def test_timers_and_processes_are_watched_for_and_actions_issue_ordinary_requests(cluster: Cluster) -> None:
    mark = f"1004.{os.getpid()}"
    pid_file = cluster.directory / "pid"
    cluster.apply(
        f"""
        [[service]]
        name = "old"
        start_command = ["/bin/sh", "-c", "sleep {mark} & echo $! > {pid_file}"]
        [[event_group]]
        name = "of-old"
        service = "old"
        [[event_group.event]]
        name = "old-gone"
        watcher = "process"
        in = {{pid_file = "{pid_file}"}}
        action = ["muster:restart", "old", "its process has ended"]
        [[event_group]]
        name = "clock"
        nodes = ["n2"]
        [[event_group.event]]
        name = "tick"
        watcher = "timer"
        in = {{interval = "50ms"}}
        action = ["true"]
        rate = "2/1h"
        """
    )
    generation = cluster.registered("old")["generation"]
    wait("the watcher", lambda: cluster.query("events")["groups"][1]["watched_by"] and _is_watched(cluster, mark))
    os.kill(program(mark), signal.SIGKILL)
    again = wait("a restart", lambda: cluster.registered("old", generation))
    assert again["generation"] > generation
    (first, *_) = cluster.ended("old-gone")
    assert (first["result"], first["out"]["detail"].split()[-2:]) == ("succeeded", ["has", "ended"])
    ticks = wait("three ticks", lambda: (found := cluster.occurrences("tick"))[2:] and found)
    assert [each["verdict"] for each in ticks[:3]] == ["acted upon", "acted upon", "over the rate"]
    assert {each["node"] for each in ticks} == {"n2"}


def test_a_check_that_is_ended_while_it_forks_leaves_nothing(cluster: Cluster) -> None:
    mark = f"1010.{os.getpid()}"
    forks = f"for each in $(seq 40); do sleep {mark} & done; wait"
    log = cluster.dev.directory / "nodes" / "n1" / "log"
    before = log.stat().st_size
    cluster.apply(
        f"""
        [[event_group]]
        name = "g"
        nodes = ["n1"]
        [[event_group.event]]
        name = "forking"
        watcher = "check"
        in = {{command = "/bin/sh -c '{forks}'", interval = "20ms", timeout = "15ms"}}
        """
    )
    wait("checks", lambda: len(cluster.occurrences("forking")) > 15)
    cluster.dev.succeed("event", "disable", "g")
    wait("nothing is left", lambda: not any(mark.encode() in read_command_line(pid) for pid in read_parents()))
    written = log.read_bytes()[before:].decode().splitlines()
    assert [line for line in written if not line.startswith("time=")] == [], "no traceback, nothing of the check's own"


def test_a_timer_goes_on_through_a_restart_of_the_daemon(cluster: Cluster) -> None:
    cluster.apply(
        '[[event_group]]\nname = "g"\nnodes = ["n1"]\n[[event_group.event]]\nname = "slow"\nwatcher = "timer"\n'
        'in = {interval = "8s"}\n'
    )
    wait("the first tick", lambda: cluster.occurrences("slow"))
    time.sleep(6)  # an interval that began anew with the daemon would be over 14 s after the first tick
    (daemon,) = daemons_of(cluster, "n1")
    os.kill(daemon, signal.SIGKILL)
    first, second, *_ = wait("the second tick", lambda: (both := cluster.occurrences("slow"))[1:] and both)
    assert 8 <= second["at_s"] - first["at_s"] + 0.1 < 14


def _is_watched(cluster: Cluster, mark: str) -> bool:
    """Whether a watcher process of the cluster holds a descriptor of a process."""
    program(mark)
    for pid in (pid for node in NODES for pid in named(cluster, "muster-watcher", node)):
        try:
            if any("pidfd" in os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()):
                return True
        except OSError:
            continue
    return False


def test_a_file_with_a_wrong_event_is_refused_with_lines_and_changes_nothing(cluster: Cluster) -> None:
    file = cluster.directory / "wrong.toml"
    file.write_text(
        '[[service]]\nname = "web"\nstart = "x"\n[[event_group]]\nname = "g"\nnode = ["n9"]\nnodes = ["n9"]\n'
        '[[event_group.event]]\nname = "e"\ndebounce = "soon"\naction = ["x", "{in.y}"]\n'
    )
    ended = cluster.dev.run("apply", str(file))
    assert ended.returncode == 2
    for says in (":3:", "'start'", ":6:", "'node'", ":7:", "'n9'", ":10:", "debounce"):
        assert says in ended.stderr, (says, ended.stderr)
    assert not cluster.query("services")["services"]
