"""Events on real daemons: crashes, checks, groups, foreign watchers, actions (SPEC 5, 6.6, PROTOCOL 8)."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import DevCluster
from muster.client import Refused, watch, watch_async
from muster.drivers.process_tree import read_command_line, read_name, read_parents
from muster.ui.client import ControlClient, MusterError

DEADLINE_S = 30.0
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
        """What the nodes remember of an event."""
        return [each for each in self.query("event_history")["occurrences"] if each["event"] == event]


@pytest.fixture(scope="module")
def nodes() -> Iterator[DevCluster]:
    """Three joined nodes for all tests of this file; the patient profile, as none of them is about lost nodes."""
    with tempfile.TemporaryDirectory(prefix="muster-test-", ignore_cleanup_errors=True) as base:
        dev = DevCluster(Path(base) / "cluster")
        try:
            dev.up(3, "--profile", "standard")
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


def wait(what: str, probe: Callable[[], Any]) -> Any:
    """Poll until the answer is true; that answer."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            if found := probe():
                return found
        except MusterError:
            pass  # it is asked again
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.02)


def named(cluster: Cluster, name: str) -> list[int]:
    """The forked processes of the cluster's nodes that have this name."""
    found = []
    for pid in read_parents():
        words = b" ".join(read_command_line(pid))
        if read_name(pid) == name and str(cluster.dev.directory).encode() in words:
            found.append(pid)
    return found


def daemons_of(cluster: Cluster, node: str) -> list[int]:
    """The daemon of a node."""
    home = str(cluster.dev.directory / "nodes" / node).encode()
    lines = {pid: read_command_line(pid) for pid in read_parents()}
    return [pid for pid, words in lines.items() if b"muster.daemon.run" in words[:3] and home in words]


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
    exits = [each for each in cluster.occurrences("web:exit") if each["verdict"] == "acted upon"]
    assert [each["node"] for each in exits] == places
    assert {each["out"]["status"] for each in exits} == {"was killed by SIGKILL"}
    log = cluster.dev.json("service", "log", "web")["commands"]
    assert [each["action"] for each in log].count("exit") == 4
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
    (exit_,) = cluster.occurrences("alone:exit")
    assert (exit_["result"], exit_["in"]["generation"]) == ("succeeded", str(generation))


def test_a_check_that_fails_twice_of_three_runs_is_a_failure_and_hung_ones_are_ended(cluster: Cluster) -> None:
    bad = cluster.directory / "bad"
    mark, hung = f"1001.{os.getpid()}", f"1002.{os.getpid()}"
    cluster.apply(
        f"""
        [[service]]
        name = "checked"
        run = ["/bin/sleep", "{mark}"]
        check = {{command = ["/bin/sh", "-c", "test ! -e {bad} || {{ echo slow; sleep {hung}; }}"],
                 interval = "50ms", timeout = "150ms", failures = "2/3"}}
        """.replace(",\n                 ", ", ")
    )
    generation = cluster.registered("checked")["generation"]
    (watcher,) = wait("the watcher process", lambda: named(cluster, "muster-watcher"))
    os.kill(watcher, signal.SIGKILL)  # another takes its place, and is asked for the same
    bystander = subprocess.Popen(["/bin/sleep", "1003"])
    try:
        bad.touch()
        assert cluster.registered("checked", generation)["node"]
        bad.unlink()
        (first, *_) = cluster.occurrences("checked:check")
        assert first["out"]["detail"].startswith("its check did not end within 150 ms")
        assert first["out"]["output"] == "slow"
        assert int(first["out"]["failures"]) == 2
        wait("hung checks are gone", lambda: not any(hung.encode() in read_command_line(pid) for pid in read_parents()))
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


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


def test_a_wrapped_script_is_a_watcher_and_its_lines_are_occurrences(cluster: Cluster) -> None:
    cluster.apply(
        '[[event_group]]\nname = "g"\non_master = true\n[[event_group.event]]\nname = "e"\nin = {word = "hello"}\n'
        'out = ["said", "output"]\naction = ["/bin/echo", "{out.said}"]\n'
    )
    master = cluster.query("status")["master"]
    script = 'echo "said=$MUSTER_IN_WORD"; sleep 100'
    process = subprocess.Popen(
        [sys.executable, "-m", "muster.ui.command_line", "watcher", "run", "--node", master, "--event", "e", "--lines",
         "--", "/bin/sh", "-c", script],
        env=os.environ | {"MUSTER_DIR": str(cluster.dev.directory)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        (found, *_) = wait("an occurrence", lambda: cluster.occurrences("e"))
        assert (found["node"], found["out"]["said"]) == (master, "hello")
        assert found["action"] == ["/bin/echo", "hello"]
        listed = cluster.dev.json("event", "list")
        (group,) = listed["groups"]
        assert group["enabled_on"] == [master]
        assert set(group["why_not"].values()) == {"only on the master"}
        assert not listed["unanswered"]
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
    (first, *_) = cluster.occurrences("old-gone")
    assert (first["result"], first["out"]["detail"].split()[-2:]) == ("succeeded", ["has", "ended"])
    ticks = wait("three ticks", lambda: (found := cluster.occurrences("tick"))[2:] and found)
    assert [each["verdict"] for each in ticks[:3]] == ["acted upon", "acted upon", "over the rate"]
    assert {each["node"] for each in ticks} == {"n2"}


def _is_watched(_cluster: Cluster, mark: str) -> bool:
    """Whether the watcher process holds a descriptor of the process."""
    program(mark)
    for pid in read_parents():
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "muster-watcher" and any(
                "pidfd" in os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()
            ):
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
