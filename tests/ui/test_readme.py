"""README's "Try it", executed as it is written, in a folder of its own."""

import re
import shlex
from pathlib import Path

import pytest

from dev_cluster import DevCluster
from muster.files.advice import advice
from muster.files.reading import read_all

ROOT = Path(__file__).parents[2]
COMMAND = ".venv/bin/muster "


def commands() -> list[str]:
    """The commands of the first block below the heading, without what is said behind them."""
    section = (ROOT / "README.md").read_text().partition("\n## Try it\n")[2]
    block = section.split("```")[1]
    lines = [re.sub(r"\s+#.*", "", line) for line in block.strip().splitlines()]
    assert all(line.startswith(COMMAND) for line in lines)
    return [line.removeprefix(COMMAND) for line in lines]


def test_the_shipped_example_is_a_service_file_without_a_fault() -> None:
    services, groups = read_all(ROOT / "examples" / "services.toml", ("n0", "n1", "n2"))
    assert [each.name for each in services] == ["database", "reports", "cache"]
    assert (groups, advice(services)) == ((), [])


@pytest.mark.long
def test_the_commands_of_try_it_work_as_written(dev_cluster: DevCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    said = {}
    for line in commands():
        words = shlex.split(line.replace("/tmp/try", str(dev_cluster.directory)))
        said[line.partition(" --dir")[0]] = dev_cluster.succeed(*words, timeout_s=120.0)
    assert (
        "start database on n1" in said["apply examples/services.toml"]
        or "registered" in said["apply examples/services.toml"]
    )
    assert "database is registered on n1" in said["service transfer database n1"]
    assert "n1 is lost" in said["history"] and "database has moved" in said["history"]
