"""A service that another manager runs, on real nodes: it never runs twice, and keeps its node out (P7.45)."""

from pathlib import Path
from typing import Any

from dev_cluster import DevCluster

# What the machine holds for a node is a file of that node's name: it ends with nobody's process.
UNIT = """
[[service]]
name = "unit"
node_preferences = {{ordered = ["n0", "n1"]}}
start_command = ["sh", "-c", "ls {units} | grep -q . && touch {folder}/twice; touch {units}/$MUSTER_NODE"]
stop_command = ["sh", "-c", "rm -f {units}/$MUSTER_NODE"]
probe_command = ["sh", "-c", "test -e {units}/$MUSTER_NODE"]
cleanup_command = ["sh", "-c", "test ! -e {folder}/stuck && rm {units}/$MUSTER_NODE"]
"""


def test_p7_45_what_another_manager_runs_ends_before_it_starts_elsewhere_and_before_its_node_joins(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    units = tmp_path / "units"
    units.mkdir()
    dev_cluster.up(2)
    (tmp_path / "unit.toml").write_text(UNIT.format(units=units, folder=tmp_path))
    dev_cluster.succeed("apply", str(tmp_path / "unit.toml"))
    registered_on(dev_cluster, "n0")
    home = dev_cluster.directory / "nodes" / "n0"
    dev_cluster.wait_for("the home to know", lambda _seen: "probe" in text(home / "cleanups" / "probes"))

    dev_cluster.succeed("dev", "kill", "n0")
    registered_on(dev_cluster, "n1")
    assert [each.name for each in units.iterdir()] == ["n1"] and not (tmp_path / "twice").exists()

    (units / "n0").touch()  # the machine has started it by itself
    (tmp_path / "stuck").touch()  # and it cannot be ended
    dev_cluster.succeed("dev", "boot", "n0", "--no-wait")
    kept_out = "the cleanup of unit"
    seen = dev_cluster.wait_for("n0 to wait", lambda seen: kept_out in str(seen["nodes"]["n0"]), node="n1")
    assert seen["nodes"]["n0"]["state"] != "joined"
    (tmp_path / "stuck").unlink()
    dev_cluster.wait_for("n0 to join", lambda seen: seen["nodes"]["n0"]["state"] == "joined", node="n1")
    registered_on(dev_cluster, "n1")
    assert [each.name for each in units.iterdir()] == ["n1"]
    assert (units / "n1").exists() and not (tmp_path / "twice").exists()


def registered_on(cluster: DevCluster, node: str) -> Any:
    def holds(seen: Any) -> bool:
        service = seen["services"].get("unit", {})
        return (service.get("state"), service.get("node")) == ("registered", node)

    return cluster.wait_for(f"unit to be registered on {node}", holds, node="n1")


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
