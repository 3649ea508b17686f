"""The example of docs/SERVICES.md, a database with what belongs to it, run as it is written (SPEC 6)."""

import glob
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev_cluster import PATIENT, DevCluster
from muster.files.advice import advice
from muster.files.reading import read_all

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "postgresql.toml"
FILES = Path("/srv/db")
PROGRAMS = sorted(glob.glob("/usr/lib/postgresql/*/bin"))


def is_taken() -> bool:
    """Whether this machine has a database of its own where the example has it."""
    with socket.socket() as probe:
        return FILES.exists() or probe.connect_ex(("127.0.0.1", 5432)) == 0


@pytest.fixture
def database() -> Iterator[None]:
    """The files of the database, made as the document says."""
    said = (ROOT / "docs" / "SERVICES.md").read_text()
    command = said.partition("They are made once, on one node, as root:\n`")[2].partition("`")[0]
    subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL, timeout=120)
    yield
    shutil.rmtree(FILES)


def sql(words: str) -> str:
    """What the database says."""
    command = ["runuser", "-u", "postgres", "--", "psql", "-h", str(FILES), "-Atc", words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd="/").stdout.strip()


def test_the_example_of_the_document_is_the_shipped_one_and_has_no_fault() -> None:
    said = (ROOT / "docs" / "SERVICES.md").read_text()
    assert "```toml\n" + EXAMPLE.read_text().partition("\n\n")[2] + "```" in said
    services, groups = read_all(EXAMPLE, ("n0", "n1"))
    assert ([each.name for each in services], groups) == (["database", "analyze", "load"], ())
    assert advice(services) == []


@pytest.mark.long
@pytest.mark.skipif(
    os.geteuid() != 0 or not PROGRAMS or shutil.which("vmstat") is None,
    reason="needs root, and the packages postgresql and procps",
)
@pytest.mark.skipif(is_taken(), reason="not applicable: this machine has /srv/db, or a server on port 5432")
def test_a_database_outlives_the_power_cut_of_its_node(database: None, dev_cluster: DevCluster) -> None:
    dev_cluster.succeed("dev", "up", "--nodes", "2", *PATIENT)
    dev_cluster.succeed("apply", str(EXAMPLE), "--wait", timeout_s=120.0)
    services = dev_cluster.status()["services"]
    assert {name: each["node"] for name, each in services.items() if each["state"] == "registered"} == {
        "database": "n0", "analyze": "n0", "load": None, "load@n0": "n0", "load@n1": "n1",
    }  # fmt: skip
    sql("create table kept (value text); insert into kept values ('committed')")
    dev_cluster.succeed("dev", "kill", "n0")
    dev_cluster.wait_for(
        "the database on n1", lambda status: status["services"]["analyze"]["node"] == "n1"
        and status["services"]["analyze"]["state"] == "registered"
    )  # fmt: skip
    assert sql("select value from kept") == "committed"
    log = " ".join(dev_cluster.succeed("service", "log", "database").split())  # lines are as wide as the page
    assert "database system is ready to accept connections" in log
    dev_cluster.succeed("dev", "boot", "n0")  # which takes it back: a free transfer
    dev_cluster.wait_for(
        "the database on n0", lambda status: status["services"]["analyze"]["node"] == "n0"
        and status["services"]["analyze"]["state"] == "registered"
    )  # fmt: skip
    assert sql("select value from kept") == "committed"
    log = " ".join(dev_cluster.succeed("service", "log", "database", "-n", "1000").split())
    assert "database system is shut down" in log and "received fast shutdown request" in log
