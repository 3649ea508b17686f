"""Real daemons with leases as machines have them that share a disk: nobody waits for such a lease (P2.15, P4.13).

n2 is a machine of its own: it runs under a boot id of its own, and reaches the store through a file system of its own,
which can stall as a storage path does. The board that cuts its power stands outside of all nodes.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_silent_master import BOOT_ID, running_on

from dev_cluster import DevCluster
from fence_board import PASSWORD, Board
from muster.core.membership.membership import SUSPICION
from muster.dev.development_cluster import STORE_FILE
from muster.dev.node_processes import kill_all
from muster.records.timing import PROFILES
from muster.setup.fencing import keep_secret

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for mounts of its own"), pytest.mark.long]

STALL_S = 15
SERVICE = """
[[service]]
name = "web"
run = ["sh", "-c", "echo $$ >>{folder}/runs; exec sleep 100000"]
node_preferences.ordered = ["n2", "n1", "n0"]
"""
# A store between machines is mapped, to see that nothing of it is cached; FUSE maps nothing: a disk is made of it.
MACHINE = f"""
echo 11111111-2222-4333-8444-555555555555 >"$1/boot_id"; mount --bind "$1/boot_id" {BOOT_ID}
"$3" -m lab.faulty_store "$1/way" "$2" <"$1/commands" >/dev/null 2>&1 &
until mountpoint -q "$1/way"; do kill -0 $!; sleep 0.05; done
disk=$(losetup --find --show --direct-io=on "$1/way"); echo "$disk" >"$1/disk"
mount --bind "$disk" "$2"
shift 3; exec "$@"
"""
REPOSITORY = Path(__file__).parents[2]


class Machine:
    """n2, and its way to the store."""

    def __init__(self, cluster: DevCluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        (folder / "way").touch()
        self._commands = -1

    def boot(self) -> None:
        """It comes up, with a way to the store that works."""
        self.close()
        pipe = self._folder / "commands"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        self._commands = os.open(pipe, os.O_RDWR | os.O_CLOEXEC)
        words = (self._folder, self._cluster.directory / STORE_FILE, sys.executable)
        muster = (sys.executable, "-m", "muster.ui.command_line", "dev", "boot", "n2")
        booted = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", MACHINE, "sh", *map(str, words), *muster],
            env=os.environ | {"MUSTER_DIR": str(self._cluster.directory)},
            cwd=REPOSITORY, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert booted.returncode == 0, booted.stderr

    def storage(self, mode: str) -> None:
        """From now on its storage does this: `hang`, or `pass`."""
        os.write(self._commands, f"{mode}\n".encode())

    def close(self) -> None:
        """Its way to the store is gone, and with it the process that was it."""
        disk = self._folder / "disk"
        if disk.exists():
            subprocess.run(["losetup", "--detach", disk.read_text().strip()], check=False, timeout=30)
            disk.unlink()
        if self._commands >= 0:
            os.close(self._commands)
            self._commands = -1


@pytest.fixture
def machines(dev_cluster: DevCluster) -> Iterator[tuple[DevCluster, Machine, Board, Path]]:
    """n0, n1, and n2, which is fenced by a board and has the service."""
    folder = dev_cluster.directory.parent / "b"
    folder.mkdir()
    (folder / "services.toml").write_text(SERVICE.format(folder=folder))
    dev_cluster.up(3, "--scope", "shared", "--profile", "shared")
    dev_cluster.succeed("dev", "kill", "n2")
    machine = Machine(dev_cluster, folder)
    board = Board(dev_cluster.directory, folder, lambda _node: machine.boot())
    try:
        machine.boot()
        for name in ("n0", "n1"):
            keep_secret(dev_cluster.directory / "nodes" / name, "pdu", "passwd", PASSWORD)
        words = ("--agent", board.agent("fence_board"), "--secret", "passwd", "--from", "n0", "--from", "n1")
        dev_cluster.succeed("fence", "add", "pdu", *words)
        dev_cluster.succeed("fence", "method", "n2", "power", "--device", "pdu:plug=n2")
        dev_cluster.succeed("apply", str(folder / "services.toml"), "--wait")
        yield dev_cluster, machine, board, folder
    finally:
        board.close()
        machine.storage("pass")
        kill_all(dev_cluster.directory / "nodes" / "n2", 10, with_bystanders=True)
        machine.close()


def incarnation_of(seen: Any, node: str) -> int:
    """The incarnation by which the cluster counts a node."""
    return int(seen["nodes"][node]["incarnation"])


def test_p4_13_a_machine_without_power_is_fenced_though_its_lease_runs_for_long(
    machines: tuple[DevCluster, Machine, Board, Path],
) -> None:
    cluster, _machine, board, _folder = machines
    cluster.wait_for("n2 has it", lambda seen: running_on(seen)["web"] == ("registered", "n2"))
    began_s = time.monotonic()
    assert not kill_all(cluster.directory / "nodes" / "n2", 10, with_bystanders=True)
    cluster.wait_for(
        "it is elsewhere", lambda seen: running_on(seen)["web"] in (("registered", "n0"), ("registered", "n1"))
    )
    sys.stderr.write(
        f"\noutage of {time.monotonic() - began_s:.2f} s, lease of {PROFILES['shared'].lease_ms / 1000} s\n"
    )
    assert [node for node, _ in board.kills] == ["n2"]
    assert cluster.json("node", "list")["nodes"]["n2"]["last_proof"]["kind"] == "fence agent"
    (asked, *_) = cluster.json("fence", "history", "n2")["history"]["n2"]
    assert asked["outcome"] == "off"
    logs = [(cluster.directory / "nodes" / node / "log").read_text() for node in ("n0", "n1")]
    assert any(SUSPICION in log for log in logs), "it was not its lease that had run out"
    cluster.wait_for("n2 is back", lambda seen: seen["nodes"]["n2"]["state"] == "joined", 120)


def test_p2_15_storage_that_stalls_for_15_s_loses_no_node_and_no_service(
    machines: tuple[DevCluster, Machine, Board, Path],
) -> None:
    cluster, machine, board, folder = machines
    seen = cluster.wait_for("n2 has it", lambda seen: running_on(seen)["web"] == ("registered", "n2"))
    before, runs = incarnation_of(seen, "n2"), (folder / "runs").read_text()
    machine.storage("hang")
    time.sleep(STALL_S)  # the fault itself
    machine.storage("pass")
    seen = cluster.wait_for("n2 is well", lambda seen: seen["nodes"]["n2"]["condition"] == "well", node="n0")
    assert incarnation_of(seen, "n2") == before
    assert seen["nodes"]["n2"]["state"] == "joined"
    assert running_on(seen)["web"] == ("registered", "n2")
    assert (folder / "runs").read_text() == runs
    assert not board.kills
