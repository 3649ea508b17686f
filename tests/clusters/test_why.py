"""`muster why` on real daemons: every placement is explained, the same from any node, now and later (SPEC 8.2)."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dev_cluster import DevCluster

SERVICES = """
[[service]]
name = "ordered"
node_preferences = {ordered = ["n1", "n0"]}
start_command = "true"
[[service]]
name = "unordered"
node_preferences = {unordered = ["n2", "n0"]}
[[service]]
name = "child"
parent = "ordered"
start_command = "true"
[[service]]
name = "waiting"
maturity_time = "1h"
allowable_nodes = ["n0"]
[[service]]
name = "failing"
start_command = "false"
[[service]]
name = "manual"
auto_register = "manual"
[[service]]
name = "everywhere"
placement_policy = "register_on_all"
disallowable_nodes = ["n2"]
"""
AT_WORK = ("ordered", "unordered", "child", "everywhere@n0", "everywhere@n1")


def until(what: str, holds: Callable[[], Any], timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"waited in vain until {what}"
        time.sleep(0.1)


def why(cluster: DevCluster, *words: str) -> dict[str, Any]:
    answer: dict[str, Any] = cluster.json("why", *words)
    return answer


def complete(cluster: DevCluster, *words: str, without: str = "") -> dict[str, Any]:
    """The answer once every node but that one has answered in time with what it remembers."""
    found: dict[str, Any] = {}

    def all_have_answered() -> bool:
        found.update(why(cluster, *words))
        return {each["node"] for each in found["unanswered"]} <= {without}

    until("all nodes have answered", all_have_answered)
    return found


def chosen(verdicts: list[dict[str, Any]]) -> list[str]:
    return [verdict["node"] for verdict in verdicts if verdict["chosen"]]


def services(cluster: DevCluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.json("services")["services"]
    return found


def test_spec_8_2_every_placement_of_a_live_cluster_is_explained(dev_cluster: DevCluster, tmp_path: Path) -> None:
    cluster = dev_cluster
    file = tmp_path / "services.toml"
    file.write_text(SERVICES)
    cluster.up(3, "--services", str(file))
    until("all are placed", lambda: all(services(cluster)[name]["node"] for name in AT_WORK))
    until("the failing one has failed everywhere", lambda: services(cluster)["failing"]["cause"])

    for name, found in services(cluster).items():
        answer = why(cluster, name)
        assert answer["is_master"]
        assert answer["summary"].startswith(name)
        assert sorted(verdict["node"] for verdict in answer["nodes"]) == ["n0", "n1", "n2"]
        assert all(verdict["words"] for verdict in answer["nodes"])
        if name in AT_WORK:
            assert chosen(answer["decision"]["nodes"]) == [found["node"]], "the decision is explained as it was made"
            assert answer["next_step"] == ""
        else:
            assert answer["decision"] is None
    down = {name: why(cluster, name) for name in ("waiting", "failing", "manual")}
    in_the_way = {
        name: next(rule["rule"] for rule in answer["rules"] if not rule["holds"]) for name, answer in down.items()
    }
    assert in_the_way == {"waiting": "maturity", "failing": "stuck", "manual": "wanted"}
    assert all(answer["next_step"] for answer in down.values())
    assert down["failing"]["past"][0]["node"] is None

    one = why(cluster, "ordered", "n2")
    assert [verdict["node"] for verdict in one["nodes"]] == ["n2"]
    assert "n1" in cluster.succeed("why", "ordered")
    assert "no node that answers" in cluster.run("why", "ordered", "--at", "1").stderr
    assert "did you mean 'ordered'?" in cluster.run("why", "orderd").stderr
    assert "configured are n0, n1, n2" in cluster.run("why", "ordered", "n7").stderr

    def is_told_alike() -> bool:
        """By all nodes, once each has heard all there is and the others answer it in time."""
        same = [why(cluster, "ordered", "--node", node) for node in ("n0", "n1", "n2")]
        told = [(each["answered_by"], each["nodes"], each["decision"]["nodes"], each["unanswered"]) for each in same]
        return told[0] == told[1] == told[2]

    until("the answer is the same from any node", is_told_alike)


def test_spec_8_2_decisions_of_the_past_outlive_a_move_and_name_whose_memory_is_gone(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    cluster = dev_cluster
    file = tmp_path / "services.toml"
    file.write_text('[[service]]\nname = "web"\nnode_preferences = {ordered = ["n0", "n1"]}\nstart_command = "true"\n')
    cluster.up(3, "--services", str(file))
    until("it is placed", lambda: services(cluster)["web"]["state"] == "registered")
    first = why(cluster, "web")["decision"]["index"]
    cluster.succeed("service", "transfer", "web", "n2")
    until("it has moved", lambda: services(cluster)["web"]["state"] == "registered" and at(cluster) == "n2")

    answer = complete(cluster, "web")
    assert [chosen(decision["nodes"]) for decision in answer["past"]] == [["n2"], ["n0"]]
    assert answer["decision"]["nodes"][0]["rule"] == "asked for"
    assert chosen(answer["nodes"]) == ["n0"], "placed now, it would go to its preferred node"
    (then,) = complete(cluster, "web", "--at", str(first))["past"][:1]
    assert (then["index"], chosen(then["nodes"])) == (first, ["n0"])

    master = cluster.status()["master"]
    cluster.succeed("dev", "kill", master)
    until("another master has placed it, or it stays", lambda: is_settled(cluster, master), 120)
    answer = complete(cluster, "web", without=master)
    assert master in [each["node"] for each in answer["unanswered"]]
    lost = next(verdict for verdict in answer["nodes"] if verdict["node"] == master)
    assert (lost["rule"], lost["possible"]) == ("not up", False)
    if master == "n2":
        assert chosen(answer["decision"]["nodes"]) == ["n0"]


def at(cluster: DevCluster) -> str:
    return str(services(cluster)["web"]["node"])


def is_settled(cluster: DevCluster, lost: str) -> bool:
    status = cluster.status()
    web = status["services"]["web"]
    return status["master"] not in (lost, None) and status["nodes"][lost]["state"] == "inactive" and web["node"] != lost
