"""`--wait`, and what `apply --dry-run` and `config rollback` say of what would start, stop and move."""

from pathlib import Path

from dev_cluster import DevCluster

SERVICES = """
[[service]]
name = "web"
run = ["sleep", "1000"]
node_preferences = {ordered = ["n1", "n0"]}
[[service]]
name = "picky"
start_command = ["sh", "-c", "test $MUSTER_NODE = n0"]
[[service]]
name = "manual"
auto_register = "manual"
start_command = "false"
"""


def test_spec_8_1_a_command_with_wait_returns_when_it_has_come_about_or_says_why_not(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    file = tmp_path / "services.toml"
    file.write_text(SERVICES)
    dev_cluster.up(2)
    said = dev_cluster.succeed("apply", str(file), "--dry-run")
    assert "start web on n1" in said and "web: nowhere -> n1" in said
    assert dev_cluster.json("apply", str(file), "--dry-run")["plan"]["changed"]["web"] == {
        "before": None,
        "after": "n1",
    }
    said = dev_cluster.succeed("apply", str(file), "--wait", "30")
    assert "web is registered on n1" in said and "manual is de-registered" in said
    answer = dev_cluster.json("service", "transfer", "web", "n0", "--wait")
    assert answer["services"]["web"] == {"state": "registered", "node": "n0", "wanted": True, "cause": ""}
    generation = dev_cluster.json("service", "show", "web")["service"]["generation"]
    assert "web is registered on n0" in dev_cluster.succeed("service", "restart", "web", "--wait")
    assert dev_cluster.json("service", "show", "web")["service"]["generation"] > generation
    ended = dev_cluster.run("service", "transfer", "picky", "n1", "--wait")
    assert (ended.returncode, "picky is registered on n0, not on n1" in ended.stderr) == (1, True), ended
    for verb in ("register", "clear"):
        ended = dev_cluster.run("service", verb, "manual", "--wait")
        assert (ended.returncode, "manual did not come up: start failed" in ended.stderr) == (1, True), ended
    dev_cluster.succeed("maintenance", "begin", "--cluster")
    dev_cluster.succeed("service", "deregister", "web", "--wait")
    ended = dev_cluster.run("service", "register", "web", "--wait", "0.5")
    assert (ended.returncode, "web is de-registered after 0.5 s" in ended.stderr) == (1, True), ended
    dev_cluster.succeed("maintenance", "end", "--cluster", "--yes")
    assert "stop web on" in dev_cluster.succeed("config", "rollback", "0")
