"""A change that is named runs once, however often it is asked for, and answers in JSON (SPEC 9.1, rule P9.1)."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_error_catalogue import below_open, documented_keys, keys_of

from bad_input import clear, until
from dev_cluster import CommandLine, DevCluster
from muster.dev.development_cluster import free_addresses
from muster.records.versions import HIGHEST

SERVICES = """
[[service]]
name = "web"
start_command = "sh -c 'sleep 1000 &'"

[[event_group]]
name = "disk"
[[event_group.event]]
name = "disk-full"
watcher = "timer"
in = {interval = "1h"}
action = ["true"]
"""

# Each is asked for twice. Those that come later undo what came before, so a change that ran twice would show.
CHANGES = (
    *("service deregister web", "service register web", "service transfer web", "service restart web"),
    *("service clear web", "event disable disk", "event enable disk", "event withdraw disk"),
    *("config set operator_group wheel", "config rollback 1 --yes", "maintenance begin --service web"),
    *("maintenance end --service web --yes", "node standby n1", "node active n1", "node drain n2"),
    *("node restart-daemon n1", "node restart-daemon --all", "authority rotate --yes", "node leave n2"),
    *("node remove n2 --yes", "service withdraw web"),
)


@contextlib.contextmanager
def losing_replies(control: Path, path: Path) -> Iterator[None]:
    """A socket at `path` that passes requests on to `control`, waits for each reply, and loses it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    ending = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while not ending.is_set():
                client, _ = listener.accept()
                with client, socket.socket(socket.AF_UNIX) as behind:
                    behind.connect(str(control))
                    behind.sendall(client.makefile("rb").readline())
                    behind.makefile("rb").readline()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


@pytest.fixture
def serving(dev_cluster: DevCluster, tmp_path: Path) -> Callable[[int], Path]:
    """Brings the cluster up, for a number of nodes, with its service; the service file."""

    def up(nodes: int) -> Path:
        file = tmp_path / "services.toml"
        file.write_text(SERVICES)
        dev_cluster.up(nodes)
        return file

    return up


def settled(cluster: DevCluster) -> Any:
    """The status once the service is where it is wanted and nothing is under way."""
    return cluster.wait_for(
        "the service", lambda status: not status["transitions"] and status["services"]["web"]["state"] in
        {"registered", "de-registered"} and not status["services"]["web"]["cause"],
    )  # fmt: skip


def test_p9_1_every_change_of_the_command_line_runs_once_and_answers_as_documented(
    dev_cluster: DevCluster, serving: Callable[[int], Path]
) -> None:
    file = serving(3)
    documented = documented_keys()["every change"] | documented_keys()["every answer"]
    first = dev_cluster.json("apply", str(file), "--identity", "apply")
    again = dev_cluster.json("apply", str(file), "--identity", "apply")
    assert (again["outcome"], again["index"]) == (first["outcome"], first["index"])
    for number, line in enumerate(CHANGES):
        settled(dev_cluster)
        words = [*line.split(), "--identity", f"change-{number}"]
        first = dev_cluster.json(*words)
        settled(dev_cluster) if "withdraw web" not in line else None
        for node in ("n0", "n1"):
            again = dev_cluster.json(*words, "--node", node)
            assert (again["outcome"], again["index"], again["identity"]) == (
                first["outcome"], first["index"], f"change-{number}",
            ), line  # fmt: skip
        assert f"(index {first['index']})" in dev_cluster.succeed(*words), line
        unknown = keys_of(first) - documented
        assert not [key for key in unknown if not below_open(key, documented)], line
    made = [entry for entry in dev_cluster.json("audit")["audit"] if entry["index"] is not None]
    assert len({entry["index"] for entry in made}) == len(made)


def test_p9_1_a_change_whose_reply_was_lost_is_named_and_repeated_without_running_twice(
    dev_cluster: DevCluster, serving: Callable[[int], Path], tmp_path: Path
) -> None:
    dev_cluster.succeed("--version")
    file = serving(2)
    dev_cluster.succeed("apply", str(file))
    settled(dev_cluster)
    before = dev_cluster.json("service", "show", "web")["service"]["generation"]
    control, lossy = dev_cluster.directory / "nodes" / "n0" / "control.sock", tmp_path / "lossy.sock"
    with losing_replies(control, lossy):
        line = ("service", "restart", "web", "--json")
        lost = dev_cluster.run(*line, "--socket", str(lossy), "--timeout", "2")
    text = clear(lost, 3)
    assert lost.stdout == ""
    identity = text.rpartition("--identity ")[2].partition(",")[0]
    dev_cluster.wait_for(
        "the restart", lambda _status: dev_cluster.json("service", "show", "web")["service"]["generation"] > before
    )
    settled(dev_cluster)
    generation = dev_cluster.json("service", "show", "web")["service"]["generation"]
    repeated = json.loads(dev_cluster.succeed(*line, "--identity", identity, "--node", "n1"))
    assert repeated["identity"] == identity
    assert repeated["index"] < settled(dev_cluster)["index"]
    settled(dev_cluster)
    assert dev_cluster.json("service", "show", "web")["service"]["generation"] == generation


def test_p9_1_an_identity_that_is_taken_is_refused_for_anything_else_and_does_nothing(
    dev_cluster: DevCluster, serving: Callable[[int], Path]
) -> None:
    file = serving(2)
    dev_cluster.succeed("apply", str(file), "--identity", "mine")
    before = settled(dev_cluster)
    for line in ("service deregister web", "node leave n1", "config set operator_group wheel"):
        text = clear(dev_cluster.run(*line.split(), "--identity", "mine"), 1)
        assert "the identity mine is that of another operation" in text
        assert "nothing was done now" in text
    assert settled(dev_cluster)["services"] == before["services"]
    assert dev_cluster.json("config", "history")["version"] == 2  # services, and event groups


def test_p9_1_a_finished_upgrade_is_answered_again_and_never_twice(muster: CommandLine, tmp_path: Path) -> None:
    store, home = tmp_path / "store", tmp_path / "keys" / "n0"
    muster.succeed(
        "init", str(store), "--name", "c", "--nodes", f"n0={free_addresses(1)[0]}", "--scope", "host", "--size", "1M",
        "--slots", "4", "--keys", str(tmp_path / "keys"), "--active-version", "1",
    )  # fmt: skip
    words = ["--store", str(store), "--node", "n0", "--home", str(home)]
    with (tmp_path / "log").open("w") as log:
        node = subprocess.Popen([sys.executable, "-m", "muster.daemon.main", *words], stdout=log, stderr=log)
    try:
        control = ("--socket", str(home / "control.sock"))
        until("the node to answer", lambda: '"joined"' in muster.run("status", "--json", *control).stdout)
        line = ("upgrade", "finish", "--yes", *control, "--identity")
        first, again = muster.json(*line, "raise"), muster.json(*line, "raise")
        assert (first["outcome"], first["raised"]) == (f"version {HIGHEST} is active", True)
        assert (again["outcome"], again["index"]) == (first["outcome"], first["index"])
        assert muster.json(*line[:-1])["raised"] is False
        assert "there is nothing to finish" in clear(muster.run(*line, "another"), 1)
    finally:
        node.terminate()
        node.wait(60)
