"""What the tests of bad input share: a running cluster that must not notice, and daemons that must not start."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dev_cluster import DevCluster
from muster.client.control import ControlClient

DEADLINE_S = 60.0
SMALL = ("--slots", "4", "--size", "1M", "--scope", "host", "--profile", "fast")

# Writes its pid and a number that grows, each time as a whole, until it is killed.
COUNTER = """
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
nothing = os.open(os.devnull, os.O_RDWR)
for descriptor in (0, 1, 2):
    os.dup2(nothing, descriptor)
path, count = sys.argv[1], 0
while True:
    count += 1
    with open(path + ".new", "w") as file:
        file.write(f"{os.getpid()} {count} {os.environ['MUSTER_NODE']} {os.environ['MUSTER_GENERATION']}")
    os.rename(path + ".new", path)
    time.sleep(0.05)
"""


def until(what: str, holds: Callable[[], Any]) -> Any:
    """Poll until `holds` is true; its value. Fails with `what` after a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := holds()):
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s in vain for {what}"
        time.sleep(0.02)
    return value


def clear(ended: subprocess.CompletedProcess[str], code: int | None = None) -> str:
    """The message of a refused command: it says what, where and next, and shows no traceback."""
    text = ended.stderr
    assert ended.returncode == (code if code is not None else ended.returncode) != 0, ended.stdout + text
    assert "Traceback" not in text + ended.stdout, text
    assert "muster: " in text and "\n  where: " in text and "\n  next:  " in text, text
    return text


class Running(DevCluster):
    """The cluster of this file and its service."""

    @property
    def counter(self) -> Path:
        """Where the service counts."""
        return self.directory.parent / "counter"

    def counted(self) -> list[str]:
        """Pid, number, node and generation, as the service wrote them last."""
        return self.counter.read_text().split()

    def client(self, node: str) -> ControlClient:
        """A client of one node."""
        return ControlClient(self.directory / "nodes" / node / "control.sock", timeout_s=20.0)

    def address(self, node: str) -> tuple[str, int]:
        """Where a node listens for the others."""
        described = json.loads((self.directory / "cluster.json").read_text())
        host, _, port = next(each["address"] for each in described["nodes"] if each["name"] == node).rpartition(":")
        return host, int(port)

    def facts(self, without: str = "") -> dict[str, Any]:
        """What must not change, of all nodes but `without`: whoever is the master, unless that one goes."""
        status = self.client("n0").query("status")
        nodes = {name: (node["state"], node["incarnation"]) for name, node in status["nodes"].items()}
        nodes.pop(without, None)
        pid, _, node, generation = self.counted()
        counter = status["services"]["counter"]
        return {
            "master": (status["master"], status["term"]),
            "nodes": nodes,
            "service": (pid, node, generation, counter["node"], counter["state"], counter["flags"]),
        }

    @contextlib.contextmanager
    def undisturbed(self, without: str = "") -> Iterator[None]:
        """What happens inside leaves the cluster and its service as they are, and at work."""
        before = self.facts(without)
        assert before["service"][4] == "registered"
        yield
        after = self.facts(without)
        if before["master"][0] == without:
            before["master"] = after["master"]
        assert after == before
        pid, number, *_ = self.counted()
        until("the service to go on", lambda: self.counted()[1] != number)
        assert self.counted()[0] == pid
        for name in before["nodes"]:
            assert self.client(name).query("status")["term"] == before["master"][1]

    def musterd(self, node: str, home: Path) -> subprocess.CompletedProcess[str]:
        """Start one more daemon on this cluster's store, which must not run."""
        return musterd(self.directory / "store", node, home)

    def index(self) -> int:
        """The commit index."""
        return int(self.client("n0").query("status")["index"])


def musterd(store: Path | str, node: str, home: Path | str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run the daemon's command; it is expected to end by itself."""
    command = [sys.executable, "-m", "muster.daemon.main", "--store", str(store), "--node", node, "--home", str(home)]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=DEADLINE_S, check=False, **how
    )


def refused(ended: subprocess.CompletedProcess[str], status: int = 3) -> str:
    """The one line of a daemon that refuses to start; status 75 where that may pass by itself (P11.6)."""
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("musterd")
    return line
