"""Nodes of real development clusters that must have a program before they join (P3.17, P3.18)."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev_cluster import DevCluster
from muster.client import ClientError, Lost, Refused, Subsystem, register

SERVICE = """
[[service]]
name = "database"
allowable_nodes = ["n1"]
start_command = "sh -c 'test -e {flag}'"
"""

# It stays until it is killed.
REQUIRED = """
import sys
from muster.client import register
with register("storage", 15, directory=sys.argv[1], node=sys.argv[2]) as storage:
    print("registered", flush=True)
    for told in storage:
        told.acknowledge()
"""


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Ends what a test has started."""
    with contextlib.ExitStack() as stack:
        yield stack


def storage(cluster: DevCluster, node: str, stack: contextlib.ExitStack) -> Subsystem:
    """The required program, in this process; it acknowledges whatever it is told."""
    program = register("storage", 15, directory=cluster.directory, node=node)
    stack.callback(_deregister, program)

    def work() -> None:
        with contextlib.suppress(Lost, Refused):
            for told in program:
                told.acknowledge()

    threading.Thread(target=work, daemon=True).start()
    return program


def _deregister(program: Subsystem) -> None:
    with contextlib.suppress(ClientError):  # its node may be gone
        program.deregister()


def waits(status: Any, node: str) -> bool:
    """Whether the node is no member, and this is why."""
    found = status["nodes"][node]
    named = [(each["level"], each["name"]) for each in found["waits_for"]]
    return (found["state"], named) == ("inactive", [(15, "storage")])


def states(status: Any) -> set[str]:
    return {found["state"] for found in status["nodes"].values()}


def test_p3_17_no_service_starts_on_a_node_before_its_required_program_has_registered(
    dev_cluster: DevCluster, stack: contextlib.ExitStack, tmp_path: Path
) -> None:
    flag, file = tmp_path / "storage-is-there", tmp_path / "services.toml"
    file.write_text(SERVICE.format(flag=flag))
    dev_cluster.up(2)
    dev_cluster.succeed("node", "leave", "n1")
    said = dev_cluster.succeed("config", "set", "required_levels", "storage:15")
    assert "it binds the next join of each node" in said
    dev_cluster.succeed("config", "set", "required_levels_within", "200ms")
    shown = dev_cluster.json("config", "show")["settings"]
    assert (shown["required_levels"], shown["required_levels_within"]) == ("storage:15", "200ms")
    dev_cluster.succeed("apply", str(file))
    dev_cluster.succeed("dev", "boot", "n1", "--no-wait")
    for asked in ("n0", "n1"):  # who waits can say so, too
        seen = dev_cluster.wait_for("n1 to wait", lambda status: waits(status, "n1"), node=asked)
        assert "it waits for storage (level 15), for " in seen["nodes"]["n1"]["cause"]
    dev_cluster.wait_for("the alarm", lambda status: status["nodes"]["n1"]["overdue"])
    assert any(
        warning.startswith("n1: it waits for storage (level 15)") for warning in dev_cluster.status()["warnings"]
    )
    (verdict,) = [node["words"] for node in dev_cluster.json("why", "database")["nodes"] if node["node"] == "n1"]
    assert verdict.startswith("it waits for storage (level 15), for ")
    assert dev_cluster.status()["services"]["database"]["state"] == "de-registered"
    flag.touch()  # its start fails where it comes too early
    storage(dev_cluster, "n1", stack)
    dev_cluster.wait_for("it to be joined and served", lambda status: status["nodes"]["n1"]["state"] == "joined")
    seen = dev_cluster.wait_for("the service", lambda status: status["services"]["database"]["state"] == "registered")
    assert seen["nodes"]["n1"]["waits_for"] == []
    assert seen["services"]["database"]["cause"] == ""


def test_p3_17_with_no_member_the_setting_can_be_corrected_and_lets_all_in(dev_cluster: DevCluster) -> None:
    dev_cluster.up(2)
    dev_cluster.succeed("config", "set", "required_levels", "storage:15")
    for node in ("n0", "n1"):
        dev_cluster.succeed("dev", "leave", node)
    for node in ("n0", "n1"):
        dev_cluster.succeed("dev", "boot", node, "--no-wait")
    seen = dev_cluster.wait_for("both to wait", lambda status: waits(status, "n0") and waits(status, "n1"))
    assert states(seen) == {"inactive"}
    assert seen["master"] in ("n0", "n1")
    dev_cluster.succeed("config", "set", "required_levels", "none", "--of-node", "n1", "--node", "n1")
    seen = dev_cluster.wait_for("n1 to be joined", lambda status: status["nodes"]["n1"]["state"] == "joined")
    assert waits(seen, "n0")
    dev_cluster.succeed("config", "set", "required_levels", "none")
    dev_cluster.wait_for("both to be joined", lambda status: states(status) == {"joined"})


def test_p3_18_a_required_program_that_dies_takes_its_node_along(
    dev_cluster: DevCluster, stack: contextlib.ExitStack
) -> None:
    dev_cluster.up(2)
    dev_cluster.succeed("node", "leave", "n1")
    dev_cluster.succeed("config", "set", "required_levels", "storage:15")
    boot = subprocess.Popen(
        [sys.executable, "-m", "muster.ui.command_line", "dev", "boot", "n1"], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"MUSTER_DIR": str(dev_cluster.directory)},
    )  # fmt: skip
    stack.callback(boot.communicate)
    stack.callback(boot.kill)
    assert boot.stderr is not None
    told = iter(boot.stderr)  # until it has said so; it ends by itself
    assert any("n1 waits for storage (level 15) to register" in line for line in told)
    with pytest.raises(Refused, match=r"on_loss of level 15 cannot be deregister: nodes join only with level 15"):
        register("storage", 15, directory=dev_cluster.directory, node="n1", on_loss="deregister")
    program = subprocess.Popen(
        [sys.executable, "-c", REQUIRED, str(dev_cluster.directory), "n1"], stdout=subprocess.PIPE, text=True,
        env=os.environ,
    )  # fmt: skip
    stack.callback(program.communicate)
    stack.callback(program.kill)
    dev_cluster.wait_for("n1 to be joined", lambda status: status["nodes"]["n1"]["state"] == "joined")
    with pytest.raises(Refused, match=r"is registered above it on this node"):
        register("below", 5, directory=dev_cluster.directory, node="n1", on_loss="deregister")
    program.kill()
    seen = dev_cluster.wait_for("n1 to be out", lambda status: status["nodes"]["n1"]["state"] == "inactive", node="n0")
    assert seen["nodes"]["n0"]["state"] == "joined"
    (proof,) = [
        found["last_proof"] for name, found in dev_cluster.json("node", "list")["nodes"].items() if name == "n1"
    ]
    assert proof is not None
