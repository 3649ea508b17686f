"""Real daemons in scope `shared`: a dead node that nothing proves dead holds up its own services only (SPEC 2.6).

On one machine the kernel's word would prove it (P7.13): so the node that dies runs under a boot id of its own, as on a
machine of its own. Nothing but a person proves then that it has stopped; the others lead, decide and move their own.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dev_cluster import DevCluster
from muster.dev.node_processes import kill_all

SERVICES = """
[[service]]
name = "{name}"
run = ["sh", "-c", "while ! test -e {directory}/broken-$MUSTER_NODE; do sleep 0.1; done; exit 1"]
node_preferences.ordered = ["{node}"]
restarts = 0
"""
BOOT_ID = "/proc/sys/kernel/random/boot_id"
OTHER_MACHINE = f'echo 11111111-2222-4333-8444-555555555555 >"$1"; mount --bind "$1" {BOOT_ID}; shift; exec "$@"'


def running_on(status: Any) -> dict[str, tuple[str, str]]:
    """Each service's state and node."""
    return {name: (service["state"], service["node"]) for name, service in status["services"].items()}


@pytest.fixture
def cluster(dev_cluster: DevCluster, tmp_path: Path) -> DevCluster:
    """n0, n1 and n2 on a store of scope `shared`, n1 and n2 each with a service of its own."""
    text = "".join(SERVICES.format(name=f"on-{node}", node=node, directory=tmp_path) for node in ("n1", "n2"))
    (tmp_path / "services.toml").write_text(text)
    dev_cluster.up(3, "--scope", "shared", "--services", str(tmp_path / "services.toml"))
    dev_cluster.wait_for("all run", lambda seen: all(state == "registered" for state, _ in running_on(seen).values()))
    return dev_cluster


def boot_as_another_machine(cluster: DevCluster, node: str, folder: Path) -> None:
    """Boot a node that is off, where its guard finds another boot id than the others do."""
    muster = [sys.executable, "-m", "muster.ui.command_line", "dev", "boot", node]
    booted = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", OTHER_MACHINE, "sh", str(folder / "boot_id"), *muster],
        env=os.environ | {"MUSTER_DIR": str(cluster.directory)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert booted.returncode == 0, booted.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a mount of its own")
def test_p4_8_beside_a_node_that_nothing_proves_dead_the_others_go_on_and_what_it_held_waits_for_a_persons_word(
    cluster: DevCluster, tmp_path: Path
) -> None:
    cluster.succeed("dev", "kill", "n0")  # the master: on this machine its death is proven at once
    master = cluster.wait_for("another leads", lambda seen: seen["master"] in ("n1", "n2"))["master"]
    dead = next(name for name in ("n1", "n2") if name != master)
    boot_as_another_machine(cluster, "n0", tmp_path)
    cluster.succeed("service", "transfer", f"on-{dead}", "n0")
    cluster.wait_for("it is on n0", lambda seen: running_on(seen)[f"on-{dead}"] == ("registered", "n0"))
    assert not kill_all(cluster.directory / "nodes" / "n0", 10, with_bystanders=True)  # a power cut
    seen = cluster.wait_for("it counts as silent", lambda seen: "--confirmed-dead" in seen["nodes"]["n0"]["cause"])
    why_not = cluster.wait_for("it needs a person", lambda seen: any(n["kind"] == "unproven" for n in seen["needs"]))
    (need,) = [need for need in why_not["needs"] if need["kind"] == "unproven"]  # P10.12
    assert (need["next"], need["affects"]) == ("muster node evict n0 --confirmed-dead", [f"on-{dead}"])
    assert cluster.run("status", "--check").returncode == 1
    for subject in (f"on-{dead}", "n0"):
        assert cluster.json("why", subject)["next_step"] == need["next"]
    chosen = [each["node"] for each in cluster.json("why", f"on-{dead}")["nodes"] if each["possible"]]
    assert "n0" not in chosen, "nobody recommends a node that is silent"
    (tmp_path / f"broken-{master}").touch()  # a healthy node's service fails
    moved = ("registered", dead)
    cluster.wait_for("it is moved", lambda seen: running_on(seen)[f"on-{master}"] == moved)
    (tmp_path / "more.toml").write_text('[[service]]\nname = "more"\nstart_command = "true"\n')
    cluster.succeed("apply", str(tmp_path / "more.toml"))
    seen = cluster.wait_for("what was applied runs", lambda seen: running_on(seen)["more"][0] == "registered")
    assert running_on(seen)["more"][1] != "n0"
    assert running_on(seen)[f"on-{dead}"] == ("registered", "n0")  # frozen: nothing proves that it has stopped
    assert seen["nodes"]["n0"]["state"] == "joined"
    assert "is silent" in cluster.succeed("why", f"on-{dead}")
    cluster.succeed("node", "evict", "n0", "--confirmed-dead", "--cause", "the test killed it")
    cluster.wait_for("it moves on that word", lambda seen: running_on(seen)[f"on-{dead}"][1] in ("n1", "n2"))
