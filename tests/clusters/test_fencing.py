"""Real daemons on machines of their own: a dead node is proven dead by its fence agent, without a person (P7.22-P7.29).

On this machine the kernel's word would prove it (P7.13): so the node runs under a boot id of its own. The board that
cuts its power stands outside of all nodes.
"""

import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_silent_master import boot_as_another_machine, running_on

from dev_cluster import DevCluster
from fence_board import PASSWORD, Board
from muster.dev.node_processes import kill_all, processes_of, send
from muster.setup.fencing import keep_secret

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a mount of its own")

SERVICE = """
[[service]]
name = "web"
run = ["sh", "-c", "exec 9>>{folder}/lock; flock -n 9 || echo $MUSTER_NODE >>{folder}/twice; exec sleep 100000"]
node_preferences.ordered = ["n2", "n1", "n0"]
"""
TURN_S = 120.0  # a lease of 10 s, agents that hang, a boot


@pytest.fixture
def fenced(dev_cluster: DevCluster) -> Iterator[tuple[DevCluster, Board, Path]]:
    """n0, n1 and n2, which is a machine of its own, has the service, and can be turned off by a board."""
    folder = dev_cluster.directory.parent / "b"
    folder.mkdir()
    (folder / "services.toml").write_text(SERVICE.format(folder=folder))
    dev_cluster.up(3, "--scope", "shared")
    dev_cluster.succeed("dev", "kill", "n2")
    boot_as_another_machine(dev_cluster, "n2", folder)
    board = Board(dev_cluster.directory, folder, lambda node: boot_as_another_machine(dev_cluster, node, folder))
    try:
        for name in ("n0", "n1"):
            keep_secret(dev_cluster.directory / "nodes" / name, "pdu", "passwd", PASSWORD)
        dev_cluster.succeed("apply", str(folder / "services.toml"), "--wait")
        yield dev_cluster, board, folder
    finally:
        board.close()


def stand_still(home: Path) -> None:
    """SIGSTOP to all of a node, and to what would clear up behind it: a machine that hangs writes nothing any more."""
    for _ in range(3):
        for process in processes_of(home, with_bystanders=True):
            send(process, signal.SIGSTOP)


def last_proof(cluster: DevCluster) -> Any:
    """What has proven the last end of n2."""
    return cluster.json("node", "list")["nodes"]["n2"]["last_proof"]


def outcomes(cluster: DevCluster) -> list[tuple[str, str, str]]:
    """What was asked about n2: action, method, outcome."""
    found = cluster.json("fence", "history", "n2")["history"]["n2"]
    return [(past["action"], past["method"], past["outcome"]) for past in found]


@pytest.mark.long
def test_p7_22_a_machine_that_loses_its_power_or_hangs_is_proven_dead_and_boots_again(
    fenced: tuple[DevCluster, Board, Path],
) -> None:
    cluster, board, folder = fenced
    agent = board.agent("fence_board")
    cluster.succeed("fence", "add", "pdu", "--agent", agent, "--secret", "passwd", "--from", "n0", "--from", "n1")
    cluster.succeed("fence", "method", "n2", "power", "--device", "pdu:plug=n2")
    tested = cluster.json("fence", "test", "n2", "--node", "n0")
    assert [(call["action"], call["says"]) for call in tested["calls"]] == [("monitor", ""), ("status", "on")]
    assert cluster.status()["nodes"]["n2"]["proofs"] == "fence agents (power)"
    assert "fence agents (power)" in cluster.succeed("profile", "show")
    for turn, fault in enumerate(("power", "hang"), 1):
        if running_on(cluster.status())["web"][1] != "n2":
            cluster.succeed("service", "transfer", "web", "n2", "--wait")
        home = cluster.directory / "nodes" / "n2"
        board.kills.clear()
        if fault == "power":
            assert not kill_all(home, 10, with_bystanders=True)
        else:
            stand_still(home)
        seen = cluster.wait_for(
            "the service is elsewhere", lambda seen: running_on(seen)["web"][1] in ("n0", "n1"), TURN_S
        )
        assert not [need for need in seen["needs"] if need["kind"] == "unproven"] or fault == "hang"
        assert last_proof(cluster)["kind"] == "fence agent"
        assert [node for node, _ in board.kills] == ["n2"], "off was said once"
        cluster.wait_for("n2 is back", lambda seen: seen["nodes"]["n2"]["state"] == "joined", TURN_S)
        cluster.wait_for("both are recorded", lambda _seen, turn=turn: len(outcomes(cluster)) >= 2 * turn)  # type: ignore[misc]
        off, on = outcomes(cluster)[-2:]
        assert off == ("off", "power", "off")
        assert on[:2] == ("on", "power")
        assert on[2] in ("on again", "not needed any more"), "it may have booted before its agent has said so"
    assert not (folder / "twice").exists(), "the service never ran twice"
    _nobody_shows_the_password(cluster, folder)


def _nobody_shows_the_password(cluster: DevCluster, folder: Path) -> None:
    """The board was told it, and neither store, logs, configuration nor bundle hold it (P7.28)."""
    cluster.succeed("debug", "bundle", "--output", str(folder / "bundle.tar.gz"))
    for shown in (cluster.succeed("config", "show"), cluster.succeed("fence", "list"), cluster.succeed("audit")):
        assert PASSWORD not in shown
    homes = cluster.directory / "nodes"
    files = [path for path in cluster.directory.rglob("*") if path.is_file() and path.parent.name != "fence"]
    assert any(path.is_relative_to(homes) for path in files)
    for path in files:
        assert PASSWORD.encode() not in path.read_bytes(), path
    with tarfile.open(folder / "bundle.tar.gz") as bundle:
        for member in bundle.getmembers():
            file = bundle.extractfile(member)
            assert file is None or PASSWORD.encode() not in file.read(), member.name


@pytest.mark.long
def test_p7_25_agents_that_are_missing_print_garbage_hang_or_have_a_wrong_password_are_passed_over(
    fenced: tuple[DevCluster, Board, Path],
) -> None:
    cluster, board, folder = fenced
    good, reach = board.agent("fence_board"), ("--from", "n0", "--from", "n1")
    devices = {
        "missing": ("--agent", str(folder / "fence_nothing"), "--unchecked"),
        "garbage": ("--agent", board.agent("fence_garbage", "garbage"), "--unchecked"),
        "hangs": ("--agent", board.agent("fence_hangs", "hang"), "--unchecked", "--limit", "1"),
        "locked": ("--agent", good),  # the board refuses with the status that also stands for off
        "pdu": ("--agent", good, "--secret", "passwd"),
    }
    assert "knows no parameter nonsense" in cluster.run("fence", "add", "x", "--agent", good, "nonsense=1").stderr
    assert "is a secret" in cluster.run("fence", "add", "x", "--agent", good, "passwd=1").stderr
    for name, words in devices.items():
        cluster.succeed("fence", "add", name, *words, *reach)
        cluster.succeed("fence", "method", "n2", f"by-{name}", "--device", f"{name}:plug=n2", "--action", "off")
    stand_still(cluster.directory / "nodes" / "n2")
    cluster.wait_for("the service is elsewhere", lambda seen: running_on(seen)["web"][1] in ("n0", "n1"), TURN_S)
    found = outcomes(cluster)
    assert found[-1] == ("off", "by-pdu", "off")
    assert {method for _, method, outcome in found if outcome == "failed"} >= {"by-garbage", "by-hangs", "by-locked"}
    assert [node for node, _ in board.kills] == ["n2"]
    assert last_proof(cluster)["kind"] == "fence agent"
    assert not (folder / "twice").exists()
