"""Many keepers of one node die at once: every process still belongs to its own service, and to no other (SPEC 6.6)."""

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.drivers.image.process_tree import read_environment
from real_node import RealNode, make_store, wait_for

SERVICES = 24  # so many that the runner reaps their keepers in more than one turn


@pytest.fixture
def node() -> Iterator[RealNode]:
    """A guarded node, up."""
    with tempfile.TemporaryDirectory(prefix="muster-test-") as folder:
        made = RealNode(make_store(Path(folder)), Path(folder), 0)
        try:
            made.start()
            made.up()
            yield made
        finally:
            made.close()


def ask(node: RealNode, service: str, generation: int, action: str, *command: str) -> None:
    """Ask the runner for a command."""
    request = {"do": "run", "service": service, "uid": 1, "generation": generation, "action": action}
    rest = {"command": command, "timeout_ms": 20_000, "environment": {}}
    node.order("runner", json.dumps(request | rest))


def results(node: RealNode, generation: int) -> dict[str, dict[str, Any]]:
    """What has become of the commands of one generation, by service."""
    packets = [json.loads(item["text"]) for item in node.heard("runner")]
    return {packet["service"]: packet for packet in packets if packet.get("generation") == generation}


def running(node: RealNode) -> set[str]:
    """The services of which anything runs."""
    found = {read_environment(pid).get(b"MUSTER_SERVICE", b"").decode() for pid in node.processes()}
    return found - {""}


def test_each_service_keeps_its_own_processes_when_many_keepers_die_together(node: RealNode) -> None:
    names = [f"s{number}" for number in range(SERVICES)]
    for name in names:
        ask(node, name, 1, "start", "sh", "-c", "sleep 1000 &")
    wait_for("all starts", lambda: len(results(node, 1)) == SERVICES)
    keepers = [pid for pid, what in node.processes().items() if what == "muster-keeper"]
    assert len(keepers) == SERVICES
    for pid in keepers:
        os.kill(pid, signal.SIGKILL)
    wait_for("the keepers' end", lambda: "muster-keeper" not in node.processes().values())
    assert running(node) == set(names)
    for place, name in enumerate(names):
        ask(node, name, 2, "stop")
        stopped = wait_for(f"the stop of {name}", lambda name=name: results(node, 2).get(name))  # type: ignore[misc]
        assert stopped["succeeded"], stopped
        assert running(node) == set(names[place + 1 :])
