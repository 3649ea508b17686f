"""The decision lock on real nodes: whoever has it decides on services, and is seen to (SPEC 6.4, P6.42-P6.45)."""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from dev_cluster import DevCluster
from muster.client.control import ControlClient
from muster.client.errors import ClientError
from muster.locks import EX, Refused, connect

NODES = ("n0", "n1", "n2")
DEADLINE_S = 60.0
SERVICE = """
[[service]]
name = "web"
node_preferences = {ordered = ["n0", "n1"]}
start_command = ["sh", "-c", "echo $MUSTER_TOKEN >> %s"]
"""


def wait(what: str, probe: Callable[[], Any]) -> Any:
    """Poll until the answer is true; that answer."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(ClientError):
            if found := probe():
                return found
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.05)


def status(dev: DevCluster, node: str) -> dict[str, Any]:
    return ControlClient(dev.directory / "nodes" / node / "control.sock", 5.0).query("status")


def decider(dev: DevCluster, node: str = "n0") -> dict[str, Any]:
    """Who decides, as a node knows it; nothing while the master does."""
    found: dict[str, Any] | None = status(dev, node)["decider"]
    return found if found and found["node"] else {}


def is_on(dev: DevCluster, node: str, asked: str = "n0") -> bool:
    web = status(dev, asked)["services"]["web"]
    return bool((web["node"], web["state"]) == (node, "registered"))


def next_decider(dev: DevCluster, before: dict[str, Any], node: str) -> dict[str, Any]:
    """Who decides by a later grant than that, as `node` knows it."""

    def probe() -> dict[str, Any]:
        now = decider(dev, node)
        return now if now and now["grant"] > before["grant"] else {}

    found: dict[str, Any] = wait("the next one decides", probe)
    return found


def test_p6_45_whichever_node_has_the_lock_decides_and_the_next_one_when_it_is_lost(dev_cluster: DevCluster) -> None:
    dev = dev_cluster
    dev.up(3)
    tokens = dev.directory / "tokens"
    dev.succeed("config", "set", "lockspaces", "orders")
    first = wait("a decider", lambda: decider(dev))
    wait("all know it", lambda: all(decider(dev, node) == first for node in NODES))
    wait("the door of n0's lock process", (dev.directory / "nodes" / "n0" / "locks.sock").exists)
    with connect(directory=dev.directory, node="n0") as locks:
        shown = locks.show(space="muster", name="services")["locks"]
        assert [each["node"] for each in shown[0]["holders"]] == [first["node"]]
        with pytest.raises(Refused, match="Muster's own"):
            locks.space("muster").acquire("services", EX, no_queue=True)
    (dev.directory / "web.toml").write_text(SERVICE % tokens)
    dev.succeed("apply", str(dev.directory / "web.toml"))
    wait("web runs", lambda: is_on(dev, "n0"))
    assert f"{first['node']} decides on services, by grant" in dev.succeed("why", "web")
    assert f"services decided by {first['node']}" in dev.succeed("status")
    now = first
    for target in ("n1", "n0", "n2"):  # any node can be it: a break passes the lock on
        dev.succeed("lock", "break", "muster:services")
        before, now = now, next_decider(dev, now, "n0")
        assert now["node"] != before["node"]
        dev.succeed("service", "transfer", "web", target)
        wait(f"web is on {target}", partial(is_on, dev, target))
    written = tokens.read_text().split()
    assert len(written) == 4 and written == sorted(set(written))
    dev.succeed("node", "restart-daemon", now["node"])  # its daemon is lost, and with it the lock
    now = next_decider(dev, now, next(node for node in NODES if node != now["node"]))
    asked = next(node for node in NODES if node != now["node"])
    dev.succeed("dev", "kill", now["node"])
    wait("web is moved", lambda: dev.run("service", "transfer", "web").returncode == 0)  # once its node is replaced
    wait("web runs elsewhere", lambda: any(is_on(dev, node, asked) for node in NODES if node != now["node"]))
    next_decider(dev, now, asked)
