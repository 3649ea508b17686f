"""What operators do about services on real daemons: plan, maintenance, standby, drain, restart (SPEC 8.1, P6.30)."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from dev_cluster import DevCluster

TOLD = re.compile(r"(n\d)  .*line (\d+) of (n\d)$")  # the node whose log it is, and what its service wrote
SERVICES = """
[[service]]
name = "disk"
start_command = "sh -c 'sleep 1000 &'"
stop_command = "true"
grace = "100ms"
node_preferences = {ordered = ["n0", "n1"]}
[[service]]
name = "web"
parent = "disk"
start_command = "sh -c 'sleep 1000 &'"
notify_command = "true"
[[service]]
name = "agent"
placement_policy = "register_on_all"
start_command = "sh -c 'sleep 1000 &'"
"""


def places(status: Any) -> dict[str, str | None]:
    """Where each service is registered."""
    return {name: service["node"] for name, service in status["services"].items() if service["state"] == "registered"}


def test_a_plan_comes_true_and_maintenance_standby_and_drain_do_what_they_say(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    file = tmp_path / "services.toml"
    file.write_text(SERVICES)
    dev_cluster.up(3)
    planned = dev_cluster.json("plan", str(file))
    everywhere = {"agent": None, "agent@n0": "n0", "agent@n1": "n1", "agent@n2": "n2"}
    expected = {"disk": "n0", "web": "n0", **everywhere}
    assert {name: each["after"] for name, each in planned["changed"].items()} | {"agent": None} == expected
    dev_cluster.succeed("apply", str(file))
    dev_cluster.wait_for("what was planned", lambda status: places(status) == expected)

    planned = dev_cluster.json("plan", "--leave", "n0")
    of_group = [(step["action"], step["service"]) for step in planned["steps"] if "agent" not in step["service"]]
    assert of_group == [("stop", "web"), ("stop", "disk"), ("start", "disk"), ("start", "web")]
    assert places(dev_cluster.status()) == expected

    dev_cluster.succeed("maintenance", "begin", "--service", "disk", "--cause", "new disks")
    assert dev_cluster.status()["maintenance"][0]["subject"] == "disk"
    dev_cluster.succeed("node", "standby", "n0", "--for", "1h")
    assert places(dev_cluster.status())["disk"] == "n0"
    shown = dev_cluster.run("maintenance", "end", "--service", "disk")
    assert "stop disk on n0" in shown.stdout  # nobody said yes
    assert dev_cluster.status()["maintenance"]
    dev_cluster.succeed("maintenance", "end", "--service", "disk", "--yes")
    dev_cluster.wait_for(
        "the group to move", lambda status: {places(status).get(name) for name in ("disk", "web")} == {"n1"}
    )
    assert "n0 is on standby" in dev_cluster.succeed("maintenance", "list")

    dev_cluster.succeed("node", "active", "n0")
    dev_cluster.succeed("service", "transfer", "disk", "n2")
    dev_cluster.wait_for("the transfer", lambda status: places(status).get("web") == "n2")
    generation = dev_cluster.json("service", "show", "disk")["service"]["generation"]
    dev_cluster.succeed("service", "restart", "disk")
    dev_cluster.wait_for(
        "the restart",
        lambda status: (
            places(status).get("web") == "n2"
            and dev_cluster.json("service", "show", "disk")["service"]["generation"] > generation
        ),
    )
    refused = dev_cluster.run("service", "transfer", "web", "n1")
    assert refused.returncode == 1
    assert "move disk" in refused.stderr


def test_p8_20_a_log_that_is_followed_goes_on_where_its_service_goes(dev_cluster: DevCluster, tmp_path: Path) -> None:
    file = tmp_path / "services.toml"
    file.write_text(
        '[[service]]\nname = "teller"\nnode_preferences = {ordered = ["n0", "n1"]}\n'
        'run = ["sh", "-c", "n=0; while :; do n=$((n+1)); echo line $n of $MUSTER_NODE; sleep 0.1; done"]\n'
    )
    dev_cluster.up(2)
    dev_cluster.succeed("apply", str(file), "--wait")
    words = [sys.executable, "-m", "muster.ui.command_line", "service", "log", "teller", "-f"]
    followed = subprocess.Popen([*words, "--dir", str(dev_cluster.directory)], stdout=subprocess.PIPE, text=True)
    try:
        assert followed.stdout is not None
        told = (found.groups() for line in followed.stdout if (found := TOLD.match(line)))
        last = int(next(told)[1])
        for number in range(last + 1, last + 20):
            assert next(told) == ("n0", str(number), "n0"), "each line once, in order"
        dev_cluster.succeed("service", "transfer", "teller", "n1")
        assert next(each for each in told if each[0] == "n1") == ("n1", "1", "n1")
    finally:
        followed.send_signal(signal.SIGINT)
        followed.communicate(timeout=30)


def test_a_drain_empties_a_node_and_says_what_it_waits_for(dev_cluster: DevCluster, tmp_path: Path) -> None:
    file = tmp_path / "services.toml"
    file.write_text(SERVICES)
    dev_cluster.up(2)
    dev_cluster.succeed("apply", str(file))
    everywhere = {"agent": None, "agent@n0": "n0", "agent@n1": "n1"}
    dev_cluster.wait_for("the start", lambda status: places(status) == {"disk": "n0", "web": "n0", **everywhere})
    assert "n0 has only what each node has (agent@n0)" in dev_cluster.succeed("node", "drain", "n0")
    dev_cluster.wait_for("both elsewhere", lambda status: places(status) == {"disk": "n1", "web": "n1", **everywhere})
