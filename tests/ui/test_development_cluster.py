"""Development clusters as a user drives them: real daemons, through the command line only (SPEC 8.1, 8.3)."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bad_input import until
from dev_cluster import PATIENT, DevCluster
from muster.dev import node_processes
from muster.dev.development_cluster import DevelopmentCluster

SERVICE_FILE = """
[[service]]
name = "sleeper"
start_command = "sh -c 'sleep 1000 &'"
node_preferences = {ordered = ["n1", "n0"]}
"""


def joined(*names: str) -> Callable[[Any], bool]:
    """Whether exactly these nodes are joined."""
    return lambda status: {name for name, node in status["nodes"].items() if node["state"] == "joined"} == set(names)


def registered_on(node: str) -> Callable[[Any], bool]:
    """Whether the service is registered there, with no transfer open."""
    return lambda status: (
        status["services"]["sleeper"]["nodes"][node] == "registered" and not status["services"]["sleeper"]["flags"]
    )


def state_of(cluster: DevCluster, name: str) -> str:
    """A node's state as `dev ls` shows it."""
    (found,) = [node for node in cluster.json("dev", "ls")["nodes"] if node["name"] == name]
    return str(found["state"])


@pytest.fixture
def services(tmp_path: Path) -> Path:
    """The service file."""
    path = tmp_path / "services.toml"
    path.write_text(SERVICE_FILE)
    return path


def test_a_service_is_previewed_applied_moved_and_withdrawn(dev_cluster: DevCluster, services: Path) -> None:
    said = dev_cluster.succeed("dev", "up", "--nodes", "2", *PATIENT)
    assert "n0, n1: deadman: " in said
    assert joined("n0", "n1")(dev_cluster.status())
    preview = dev_cluster.json("apply", str(services), "--dry-run")
    assert [(change["service"], change["change"]) for change in preview["changes"]] == [("sleeper", "new")]
    assert dev_cluster.status()["services"] == {}
    dev_cluster.succeed("apply", str(services))
    dev_cluster.wait_for("the preferred node to run it", registered_on("n1"))
    services.write_text(SERVICE_FILE + 'start_timeout = "7s"\n')
    (change,) = dev_cluster.json("apply", str(services), "--dry-run")["changes"]
    assert change["change"] == "changed"
    assert change["keys"] == {"start_timeout_ms": [60_000, 7_000]}
    dev_cluster.succeed("service", "transfer", "sleeper", "n0")
    moved = dev_cluster.wait_for("the other node to run it", registered_on("n0"))
    assert moved["services"]["sleeper"]["node"] == "n0"
    dev_cluster.succeed("service", "deregister", "sleeper")
    dev_cluster.wait_for("its end", lambda status: status["services"]["sleeper"]["state"] == "de-registered")
    dev_cluster.succeed("service", "register", "sleeper")
    dev_cluster.wait_for("its start", registered_on("n1"))
    assert dev_cluster.json("service", "show", "sleeper")["service"]["definition"]["start_command"][0] == "sh"
    dev_cluster.succeed("service", "withdraw", "sleeper")
    dev_cluster.wait_for("it to be forgotten", lambda status: status["services"] == {})
    refused = dev_cluster.run("service", "transfer", "sleeper")
    assert refused.returncode == 1
    assert "sleeper" in refused.stderr


def test_a_power_cut_moves_the_service_and_the_node_boots_back(dev_cluster: DevCluster, services: Path) -> None:
    dev_cluster.up(3, "--services", str(services))
    dev_cluster.wait_for("the preferred node to run it", registered_on("n1"))
    dev_cluster.succeed("dev", "kill", "n1")
    assert state_of(dev_cluster, "n1") == "stopped"
    assert node_processes.processes_of(dev_cluster.directory / "nodes" / "n1") == []
    dev_cluster.wait_for("the next node to run it", registered_on("n0"))
    for name in ("n0", "n2"):
        dev_cluster.wait_for(f"{name} to know", joined("n0", "n2"), node=name)
    dev_cluster.succeed("dev", "boot", "n1")
    dev_cluster.wait_for("all to be back", joined("n0", "n1", "n2"))


def test_a_hung_node_is_ended_by_its_deadman_and_the_others_go_on(dev_cluster: DevCluster) -> None:
    dev_cluster.up(3)
    dev_cluster.succeed("dev", "hang", "n2")
    dev_cluster.wait_for("the others to force it out", joined("n0", "n1"))
    # They go by the kernel's word about all that ran below its guard, which may itself take a moment longer.
    until("its guard to have ended", lambda: state_of(dev_cluster, "n2") == "stopped")
    assert "nothing of n2 is left" in dev_cluster.succeed("dev", "resume", "n2")
    dev_cluster.succeed("dev", "boot", "n2")


def test_a_graceful_leave_ends_the_node_and_it_can_boot_again(dev_cluster: DevCluster) -> None:
    dev_cluster.up(3)
    dev_cluster.succeed("dev", "leave", "n0")
    assert state_of(dev_cluster, "n0") == "stopped"
    dev_cluster.wait_for("the others to agree", joined("n1", "n2"))
    dev_cluster.succeed("dev", "boot", "n0")
    dev_cluster.succeed("node", "leave", "n1")
    assert dev_cluster.status()["nodes"]["n1"]["state"] == "inactive"


def test_a_node_that_hangs_or_is_killed_does_not_pass_for_one_that_left(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.toml"
    slow.write_text('[[service]]\nname = "slow"\nstart_command = "true"\nstop_command = "sleep 60"\n')
    dev_cluster.up(1, "--services", str(slow))
    dev_cluster.succeed("dev", "hang", "n0")
    hung = dev_cluster.run("dev", "leave", "n0")
    assert (hung.returncode, "n0 hangs, so it cannot leave" in hung.stderr) == (1, True)
    assert "muster dev resume n0" in hung.stderr
    dev_cluster.succeed("dev", "kill", "n0")
    dev_cluster.succeed("dev", "boot", "n0")

    dev_cluster.wait_for("the service", lambda status: status["services"]["slow"]["state"] == "registered")
    known = json.loads((dev_cluster.directory / "nodes" / "n0" / "guard.json").read_text())
    command = [sys.executable, "-m", "muster.ui.command_line", "dev", "leave", "n0"]
    environment = os.environ | {"MUSTER_DIR": str(dev_cluster.directory)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as leaving:
        assert leaving.stderr is not None
        assert "n0 is leaving" in leaving.stderr.readline()
        os.kill(known["pid"], signal.SIGKILL)
        text = leaving.stderr.read()
    assert (leaving.returncode, "n0 was killed while it left" in text) == (1, True), text


def test_a_cluster_file_that_names_other_places_is_refused(dev_cluster: DevCluster) -> None:
    dev_cluster.directory.mkdir()
    (dev_cluster.directory / "cluster.json").write_text('{"nodes": [{"name": "../../etc"}]}')
    for command in ("ls", "down", "kill"):
        ended = dev_cluster.run("dev", command, *(["n0"] if command == "kill" else []))
        assert (ended.returncode, "a node cannot be called" in ended.stderr) == (2, True), ended.stderr
    (dev_cluster.directory / "cluster.json").unlink()


def test_up_twice_is_refused_and_disturbs_nothing(dev_cluster: DevCluster) -> None:
    dev_cluster.up(1)
    before = dev_cluster.json("dev", "ls")
    again = dev_cluster.run("dev", "up", "--nodes", "1")
    assert again.returncode == 1
    assert "already up" in again.stderr
    assert "dev down" in again.stderr
    assert dev_cluster.json("dev", "ls") == before
    booted = dev_cluster.run("dev", "boot", "n0")
    assert booted.returncode == 1
    assert "already runs" in booted.stderr


def test_two_clusters_side_by_side_do_not_meet_and_nothing_survives_down(
    dev_clusters: Callable[[], DevCluster],
) -> None:
    one, other = dev_clusters(), dev_clusters()
    one.up(1)
    other.up(2)
    assert joined("n0")(one.status())
    assert joined("n0", "n1")(other.status())
    assert one.status()["cluster_identity"] != other.status()["cluster_identity"]
    one.down()
    assert not one.directory.exists()
    assert node_processes.processes_of(one.directory / "nodes" / "n0") == []
    assert joined("n0", "n1")(other.status())


def test_a_kept_cluster_comes_back_with_its_services(dev_cluster: DevCluster, services: Path) -> None:
    dev_cluster.up(2, "--services", str(services))
    before = dev_cluster.wait_for("the preferred node to run it", registered_on("n1"))
    dev_cluster.succeed("dev", "down", "--keep")
    dev_cluster.succeed("dev", "up")
    # Which node, is decided by which one is up first: the preferred one is not waited for (SPEC 6.5).
    after = dev_cluster.wait_for(
        "it to run again", lambda status: registered_on("n0")(status) or registered_on("n1")(status)
    )
    assert after["cluster_identity"] == before["cluster_identity"]
    assert after["index"] > before["index"]


def test_a_node_that_ends_early_is_explained_by_its_log_and_everything_is_ended(dev_cluster: DevCluster) -> None:
    broken = os.pathsep.join([str(dev_cluster.directory.parent / "broken"), os.environ["PYTHONPATH"]])
    package = dev_cluster.directory.parent / "broken" / "sitecustomize.py"
    package.parent.mkdir()
    package.write_text(
        "import os, sys\nif '--node' in sys.argv and 'n1' in sys.argv: sys.exit('no luck today')\n", encoding="utf-8"
    )
    ended = dev_cluster.run("dev", "up", "--nodes", "2", PYTHONPATH=broken)
    assert ended.returncode == 1
    assert "n1 ended with status 1" in ended.stderr
    assert "no luck today" in ended.stderr
    assert not dev_cluster.directory.exists()
    assert node_processes.processes_of(dev_cluster.directory / "nodes" / "n0") == []


def test_the_demonstration_measures_the_outage_and_leaves_nothing(dev_cluster: DevCluster, tmp_path: Path) -> None:
    ended = dev_cluster.run("demo", "--pace", "0.3", TMPDIR=str(tmp_path), timeout_s=180)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (outage,) = [line for line in ended.stdout.splitlines() if line.startswith("outage ")]
    for phase in ("detection", "proof", "levels", "start"):
        assert phase in outage
    assert "\x1b" not in ended.stdout
    assert list(tmp_path.iterdir()) == []


QUERIES = [["status"], ["services"], ["transitions"], ["node", "list"], ["dev", "ls"]]


@pytest.mark.parametrize("words", [*QUERIES, ["dev", "logs"]], ids=" ".join)
def test_every_query_has_a_page_for_people(shared_cluster: DevCluster, words: list[str]) -> None:
    page = shared_cluster.succeed(*words)
    assert page.strip()
    assert "\x1b" not in page


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One node, for tests that only look."""
    cluster = DevCluster(tmp_path_factory.mktemp("shared") / "cluster")
    try:
        cluster.up(1)
        yield cluster
    finally:
        if (cluster.directory / "cluster.json").exists():
            cluster.down()


def test_queries_print_one_json_document(shared_cluster: DevCluster) -> None:
    for words in QUERIES:
        assert isinstance(json.loads(shared_cluster.succeed(*words, "--json")), dict)


def test_an_unknown_node_is_refused_with_those_that_exist(shared_cluster: DevCluster) -> None:
    for words in (["status", "--node", "n9"], ["dev", "kill", "n9"], ["dev", "boot", "n9"]):
        ended = shared_cluster.run(*words)
        assert ended.returncode == 2
        assert "its nodes are n0" in ended.stderr


def test_a_bad_service_file_names_its_lines_and_changes_nothing(shared_cluster: DevCluster, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('[[service]]\nname = "web"\nallowable_nodes = ["n9"]\nstart_comand = "x"\n')
    index = shared_cluster.status()["index"]
    ended = shared_cluster.run("apply", str(path))
    assert ended.returncode == 2
    assert f"{path}:4" in ended.stderr
    assert "start_command" in ended.stderr
    assert shared_cluster.status()["index"] == index


def test_the_status_can_be_watched_and_the_watch_ends_on_an_interrupt(shared_cluster: DevCluster) -> None:
    import signal
    import subprocess

    command = [sys.executable, "-m", "muster.ui.command_line", "status", "--watch", "--json"]
    environment = os.environ | {"MUSTER_DIR": str(shared_cluster.directory)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as watch:
        try:
            assert watch.stdout is not None
            assert json.loads(watch.stdout.readline())["cluster"]
            watch.send_signal(signal.SIGINT)
            assert watch.wait(20) == 130
        finally:
            watch.kill()


@pytest.mark.parametrize(
    ("recorded", "words"),
    [
        ({"deadman": "pid_namespace", "control_group": ""}, "a PID namespace, the strongest there is"),
        ({"deadman": "process_tree", "control_group": "/sys/fs/cgroup/x"}, "a process tree in a control group; for a"),
        ({"deadman": "process_tree", "control_group": ""}, "only an operator's word proves the node's end; for a"),
    ],
)
def test_up_and_boot_say_which_deadman_the_nodes_have(recorded: dict[str, str], words: str, tmp_path: Path) -> None:
    cluster = DevelopmentCluster(tmp_path, {"nodes": [{"name": "n0"}, {"name": "n1"}, {"name": "n2"}]})
    assert cluster.ties(["n0", "n1"]) == []
    for name in ("n0", "n1"):
        cluster.home(name).mkdir(parents=True)
        (cluster.home(name) / "guard.json").write_text(json.dumps({"pid": 5, **recorded}))
    (line,) = cluster.ties(["n0", "n1", "n2"])
    assert line.startswith("n0, n1: deadman: ") and words in line
