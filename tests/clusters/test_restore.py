"""A store that is lost is made anew of a backup; nothing starts before every node is known (P11.8)."""

from pathlib import Path

from dev_cluster import DevCluster
from muster.dev.development_cluster import STORE_FILE
from muster.drivers.store.engine import newest_record
from muster.drivers.store.remembered_file import FILE
from patience import wait

SERVICE = """
[[service]]
name = "web"
run = ["sh", "-c", "echo $MUSTER_NODE >>{file}; exec sleep 100000"]
node_preferences.ordered = ["n0", "n1"]
"""


def test_p11_8_after_a_restore_nothing_starts_before_every_node_is_known_to_have_stopped(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "services.toml").write_text(SERVICE.format(file=ran))
    dev_cluster.up(3, "--scope", "shared")
    dev_cluster.succeed("apply", str(tmp_path / "services.toml"), "--wait")
    store, copy = dev_cluster.directory / STORE_FILE, tmp_path / "backup"
    made = dev_cluster.json("store", "backup", str(store), "--output", str(copy))
    assert b"PRIVATE KEY" not in copy.read_bytes() and copy.stat().st_mode & 0o077 == 0
    dev_cluster.succeed("config", "set", "operator_group", "lost-with-the-store")
    home = dev_cluster.directory / "nodes" / "n0"
    wait("n0 to remember the cluster", (home / FILE).exists)  # what a home has not kept yet, nobody knows of it
    before = {name: node["incarnation"] for name, node in dev_cluster.status()["nodes"].items()}
    for name in before:
        dev_cluster.succeed("dev", "kill", name)
    store.unlink()
    earlier = ran.read_text()

    words = ("store", "restore", str(copy), str(store), "--home", str(home))
    shown = dev_cluster.json(*words)
    assert not shown["done"] and not store.exists(), "it says what it would do"
    done = dev_cluster.json(*words, "--stopped", "n2", "--yes")
    assert (done["unproven"], done["homes"], done["backup_index"]) == (["n0", "n1"], 1, made["index"])
    assert "not blank" in dev_cluster.run(*words, "--yes").stderr
    assert done["index"] >= 1 << 36

    dev_cluster.succeed("dev", "boot", "n0")
    dev_cluster.succeed("dev", "boot", "n2")
    seen = dev_cluster.wait_for(
        "both have joined", lambda seen: [seen["nodes"][name]["state"] for name in ("n0", "n2")] == ["joined"] * 2
    )
    assert seen["nodes"]["n0"]["incarnation"] > before["n0"]
    assert any("the store was restored" in need["words"] and need["subject"] == "node/n1" for need in seen["needs"])
    why = dev_cluster.json("why", "web")
    assert "n1 may still run what it ran before" in str(why)
    assert ran.read_text() == earlier, "it has run before the restore, and not since"

    dev_cluster.succeed("dev", "boot", "n1")
    dev_cluster.wait_for("the service runs again", lambda _seen: ran.read_text() == earlier + "n0\n")
    assert newest_record(str(store)).database.cluster.unasked == ()
    assert "lost-with-the-store" not in dev_cluster.succeed("config", "show")
