"""Services with a user, limits and a journal on a real daemon (P8.16, P8.19, P8.20)."""

import os
import pwd
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev_cluster import PATIENT, DevCluster
from real_node import wait_for

SERVICES = """
[[service]]
name = "web"
user = "nobody"
working_directory = "{folder}"
umask = "077"
limits = {{nofile = 77}}
environment_file = "{folder}/variables"
run = ["sh", "-c", "echo ready to serve; exec sleep 1000"]
check = {{command = ["sh", "-c", "echo $(id -un) $PWD $(umask) $(ulimit -n) $COLOUR > seen"], interval = "200ms"}}
output = "journal"
[[service]]
name = "asked-by-root"
user = "nobody"
run = "sleep 1000"
check = {{command = ["sh", "-c", "id -un > {folder}/by"], user = "root", interval = "200ms"}}
[[service]]
name = "unasked"
run = "sleep 1000"
check = {{command = "true", user = "no-such-user", interval = "200ms"}}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user of this machine may write to."""
    with tempfile.TemporaryDirectory(prefix="muster-") as name:
        found = Path(name)
        found.chmod(0o777)
        yield found


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_p8_19_a_check_is_of_its_services_user_and_one_that_cannot_be_is_no_failure(
    dev_cluster: DevCluster, folder: Path
) -> None:
    (folder / "variables").write_text("COLOUR=red\n")
    file = folder / "services.toml"
    file.write_text(SERVICES.format(folder=folder))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.settimeout(60)
        journal.bind(str(folder / "journal"))
        up = dev_cluster.run("dev", "up", "--nodes", "1", *PATIENT, MUSTER_JOURNAL_SOCKET=str(folder / "journal"))
        assert up.returncode == 0, up.stderr
        dev_cluster.succeed("apply", str(file))
        entry = journal.recv(65536).decode().splitlines()
        assert {"MESSAGE=ready to serve", "SYSLOG_IDENTIFIER=web", "MUSTER_NODE=n0"} <= set(entry)
    wait_for("its check", lambda: (folder / "seen").exists() and (folder / "seen").read_text().endswith("red\n"))
    assert (folder / "seen").read_text().split() == ["nobody", str(folder), "0077", "77", "red"]
    assert (folder / "seen").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    wait_for("root's check", lambda: (folder / "by").exists() and (folder / "by").read_text() == "root\n")

    def told(event: str) -> list[str]:
        occurrences = dev_cluster.json("event", "history")["occurrences"]
        return [each["out"]["detail"] for each in occurrences if each["event"] == event]

    why = wait_for("the word of it", lambda: told("unasked:unchecked"))[0]
    assert "this node does not have what its definition names" in why and "no such user" in why
    services = dev_cluster.status()["services"]
    assert {name: each["state"] for name, each in services.items()} == dict.fromkeys(services, "registered")
    assert not told("unasked:check")
    assert "ready to serve" in dev_cluster.succeed("service", "log", "web")
