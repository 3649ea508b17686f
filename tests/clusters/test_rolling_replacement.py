"""A new release is installed under a running cluster and taken up node by node: no service notices (P10.3, SPEC 7.3).

The services keep their own record of every moment of their lives; it alone is judged. The release is a copy of the
package in a folder of the test, whose metadata is replaced while the cluster runs.
"""

import compileall
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dev_cluster import PATIENT, SOURCE, DevCluster
from lab import exclusive_service
from real_node import wait_for

NODES = ("n0", "n1", "n2")
LONGEST_GAP_S = 10.0  # far beyond what a busy machine takes from a process that writes every 5 ms
US_PER_S = 1_000_000


class Line(NamedTuple):
    """One line of a service's own record."""

    at_us: int
    service: str
    instance: str
    event: str


def install(site: Path, version: str) -> None:
    """Put this package there as `version`, in place of what is there."""
    shutil.rmtree(site / "muster", ignore_errors=True)
    shutil.copytree(SOURCE / "muster", site / "muster", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "muster" / "__init__.py").write_text(f'__version__ = "{version}"\n')
    compileall.compile_dir(site, quiet=2)  # as installers do


def definitions(folder: Path) -> str:
    """One service for each node."""
    program = [sys.executable, exclusive_service.__file__, "plain", str(folder / "record"), str(folder)]
    return "\n".join(
        f'[[service]]\nname = "on-{node}"\nstart_command = {json.dumps(program)}\n'
        f'node_preferences = {{ordered = ["{node}"]}}\n'
        for node in NODES
    )


def lines_of(record: Path) -> list[Line]:
    """The whole record so far."""
    found = []
    for line in record.read_text().splitlines():
        words = line.split()
        found.append(Line(int(words[0]), words[1], words[2], words[-1]))
    return found


def now_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def guard_of(cluster: DevCluster, node: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cluster.directory / "nodes" / node / "guard.json").read_text())
    return found


def open_descriptors(pid: int) -> int:
    """How many descriptors the process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def assert_never_interrupted(record: Path, moments: list[int]) -> None:
    """One instance of each service, from before the first moment to after the last, with a line after every moment."""
    lines = lines_of(record)
    for node in NODES:
        own = [line for line in lines if line.service == f"on-{node}"]
        assert {line.event for line in own} == {"begins", "runs"}
        assert sum(line.event == "begins" for line in own) == 1
        assert len({line.instance for line in own}) == 1
        assert own[0].at_us < moments[0] and own[-1].at_us > moments[-1]
        for before, after in itertools.pairwise(moments):
            assert any(before < line.at_us < after for line in own), f"{node}: nothing recorded during a replacement"
        longest_us = max(b.at_us - a.at_us for a, b in itertools.pairwise(own))
        assert longest_us < LONGEST_GAP_S * US_PER_S


def test_p10_3_all_daemons_are_replaced_one_after_the_other_and_no_service_notices(
    dev_clusters: Callable[[], DevCluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, folder = tmp_path / "site", tmp_path / "services"
    site.mkdir()
    folder.mkdir()
    install(site, "1.0.0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ["PYTHONPATH"]]))
    (folder / "services.toml").write_text(definitions(folder))
    cluster = dev_clusters()
    cluster.succeed("dev", "up", "--nodes", "3", *PATIENT, "--services", str(folder / "services.toml"))
    cluster.wait_for(
        "all services",
        lambda status: all(status["services"][f"on-{node}"]["state"] == "registered" for node in NODES),
    )
    before = {node: guard_of(cluster, node) for node in NODES}
    members = cluster.json("node", "list")["nodes"]
    assert {node["release"] for node in cluster.json("upgrade", "status")["nodes"].values()} == {"1.0.0"}

    install(site, "1.0.1")
    moments = [now_us()]
    master = cluster.status()["master"]
    for node in (*(node for node in NODES if node != master), master):
        cluster.succeed("node", "restart-daemon", node)
        moments.append(now_us())
    cluster.wait_for(
        "all to be well",
        lambda status: (
            status["master"] is not None
            and all(node["state"] == "joined" and node["live"] and node["link"] for node in status["nodes"].values())
        ),
    )
    cluster.succeed("service", "show", "on-n0")
    moments.append(now_us())
    deadline = time.monotonic() + 30
    while not all(
        any(line.at_us > moments[-1] and line.service == f"on-{node}" for line in lines_of(folder / "record")[-2000:])
        for node in NODES
    ):
        assert time.monotonic() < deadline, "a service records nothing any more"
        time.sleep(0.05)
    assert_never_interrupted(folder / "record", moments)

    upgraded = cluster.json("upgrade", "status")["nodes"]
    assert {node["release"] for node in upgraded.values()} == {"1.0.1"}
    after = {node: guard_of(cluster, node) for node in NODES}
    for node in NODES:
        assert after[node]["daemon_pid"] != before[node]["daemon_pid"]
        for what in ("pid", "runner_pid"):
            assert after[node][what] == before[node][what]
        assert cluster.json("node", "list")["nodes"][node]["incarnation"] == members[node]["incarnation"]

    open_before = {what: open_descriptors(after["n0"][what]) for what in ("pid", "init_pid", "runner_pid")}
    for _ in range(3):
        cluster.succeed("node", "restart-daemon", "n0")
    wait_for(
        "no descriptor more than before",
        lambda: {what: open_descriptors(after["n0"][what]) for what in open_before} == open_before,
    )
