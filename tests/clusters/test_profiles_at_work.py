"""Another profile, while real daemons work (P7.35): shorter first in the deadman, longer first in the record.

No observer may count a lease that is shorter than the deadman behind it. So the lease writer of one node is held still:
what its guard does with its deadman before a record is written is then all that it does.
"""

import signal
import time
from pathlib import Path

import pytest

from dev_cluster import DevCluster
from muster.dev.node_processes import processes_of, send
from muster.drivers.image.process_tree import read_name
from muster.drivers.image.processes import LEASE_WRITER
from muster.records.profiles import profile_with
from muster.records.timing import PROFILES

pytestmark = pytest.mark.long

BASE = PROFILES["virtualised"]
SHORTER = profile_with(BASE, (("lease_ms", 20_000),))  # not so short that a busy machine is too late for it
LONGER = profile_with(BASE, (("lease_ms", 34_000),))
SERVICE = '[[service]]\nname = "web"\nrun = ["sh", "-c", "echo $$ >>{runs}; exec sleep 100000"]\n'


@pytest.fixture
def cluster(dev_cluster: DevCluster) -> DevCluster:
    """Three nodes of scope `shared`, and a service."""
    dev_cluster.up(3, "--scope", "shared", "--profile", BASE.name)
    services = dev_cluster.directory.parent / "services.toml"
    services.write_text(SERVICE.format(runs=runs(dev_cluster)))
    dev_cluster.succeed("apply", str(services), "--wait")
    return dev_cluster


def runs(cluster: DevCluster) -> Path:
    """A line for each start of the service."""
    return cluster.directory.parent / "runs"


def set_lease(cluster: DevCluster, lease_ms: int) -> None:
    """As an operator does it."""
    cluster.succeed("config", "set", "profile", f"{BASE.name},lease_ms={lease_ms}")


def leases(cluster: DevCluster) -> dict[str, int]:
    """The lease of each node, as its own record has it."""
    found = cluster.json("profile", "show")["leases"]
    return {name: lease["lease_ms"] for name, lease in found.items()}


def wait_for_leases(cluster: DevCluster, lease_ms: int) -> None:
    """Until every node's record says so."""
    wanted = dict.fromkeys(("n0", "n1", "n2"), lease_ms)
    deadline_s = time.monotonic() + 90
    while (found := leases(cluster)) != wanted:
        assert time.monotonic() < deadline_s, found
        time.sleep(0.1)


def hold_a_writer(cluster: DevCluster) -> tuple[str, float]:
    """From now on nothing of a node's lease is written, which does not lead: its name, and when that was."""
    name = next(each for each in ("n2", "n1") if each != cluster.status()["master"])
    writers = [each for each in processes_of(home(cluster, name)) if read_name(each.pid) == LEASE_WRITER]
    assert writers
    for writer in writers:
        assert send(writer, signal.SIGSTOP)
    return name, time.monotonic()


def home(cluster: DevCluster, name: str) -> Path:
    """Of a node."""
    return cluster.directory / "nodes" / name


def lived_on_s(cluster: DevCluster, name: str, since_s: float) -> float:
    """For how long anything of a node has lived since then."""
    while processes_of(home(cluster, name)):
        assert time.monotonic() < since_s + 90
        time.sleep(0.02)
    return time.monotonic() - since_s


def test_p7_35_a_running_cluster_goes_over_to_longer_and_to_shorter_leases_and_loses_nothing(
    cluster: DevCluster,
) -> None:
    before = cluster.status()
    assert leases(cluster) == dict.fromkeys(("n0", "n1", "n2"), BASE.lease_ms)
    for lease_ms in (LONGER.lease_ms, BASE.lease_ms):
        set_lease(cluster, lease_ms)
        wait_for_leases(cluster, lease_ms)
    after = cluster.status()
    for name in ("n0", "n1", "n2"):
        assert after["nodes"][name]["incarnation"] == before["nodes"][name]["incarnation"]
    assert len(runs(cluster).read_text().splitlines()) == 1, "the service was never restarted"


def test_p7_35_a_shorter_lease_is_in_force_in_the_deadman_before_a_record_says_it(cluster: DevCluster) -> None:
    set_lease(cluster, LONGER.lease_ms)
    wait_for_leases(cluster, LONGER.lease_ms)
    name, held_s = hold_a_writer(cluster)
    set_lease(cluster, SHORTER.lease_ms)
    lived_s = lived_on_s(cluster, name, held_s)
    assert lived_s < (SHORTER.loop_ms + LONGER.loop_ms) / 2000, "its deadman went by the longer lease"


def test_p7_35_a_longer_lease_is_not_in_force_before_a_record_says_it(cluster: DevCluster) -> None:
    name, held_s = hold_a_writer(cluster)
    set_lease(cluster, LONGER.lease_ms)
    lived_s = lived_on_s(cluster, name, held_s)
    assert lived_s < (BASE.loop_ms + LONGER.loop_ms) / 2000, "its deadman went by a lease that nobody can have read"
    assert leases(cluster).get(name, BASE.lease_ms) == BASE.lease_ms
