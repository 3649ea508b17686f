"""What README and the tutorial say to type, executed as it is written, in a folder of its own."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from dev_cluster import DevCluster
from muster.files.advice import advice
from muster.files.reading import read_all

ROOT = Path(__file__).parents[2]
COMMAND = ".venv/bin/muster "


def blocks(text: str) -> list[list[str]]:
    """The commands of each block that has some of Muster, without what is said behind them."""
    found = [[re.sub(r"\s+#.*", "", line) for line in block.strip().splitlines()] for block in text.split("```")[1::2]]
    return [lines for lines in found if any(line.startswith(COMMAND) for line in lines)]


def test_the_shipped_example_is_a_service_file_without_a_fault() -> None:
    services, groups = read_all(ROOT / "examples" / "services.toml", ("n0", "n1", "n2"))
    assert [each.name for each in services] == ["database", "reports", "cache"]
    assert (groups, advice(services)) == ((), [])


@pytest.mark.long
def test_the_commands_of_the_readme_work_as_written(dev_cluster: DevCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    try_it, *others = blocks((ROOT / "README.md").read_text())
    assert len(others) == 3, "what is versioned, what operators ask, and how it is tested"
    *used, last = try_it
    said = {}
    for line in [*used, *others[0], *others[1], last]:
        words = shlex.split(line.removeprefix(COMMAND).replace("/tmp/try", str(dev_cluster.directory)))
        said[line.removeprefix(COMMAND).partition(" --dir")[0]] = dev_cluster.succeed(*words, timeout_s=120.0)
    applied = said["apply examples/services.toml"]
    assert "start database on n1" in applied or "registered" in applied
    assert "database is registered on n1" in said["service transfer database n1"]
    assert "n1 is lost" in said["history"] and "database has moved" in said["history"]


TUTORIAL = ROOT / "examples" / "write_back_cache"
CACHE = "../../.venv/bin/python cache.py"


@pytest.mark.long
def test_the_commands_of_the_tutorial_work_as_written(dev_cluster: DevCluster) -> None:
    """In one shell, as somebody types them: a command that says what it shows is repeated until it shows that."""
    lines = [line for block in (TUTORIAL / "README.md").read_text().split("```")[1::2] for line in block.splitlines()]
    script = ["set -m", "trap 'kill $(jobs -p) 2>/dev/null' EXIT", f"cd {ROOT}"]
    for line in filter(None, lines):
        command, _, shown = (part.strip() for part in line.partition("   #"))
        if shown.strip("# ") == "no such file":
            script.append(f"! {command}")
        elif command.startswith((CACHE, "cat ")):
            expected = shown.strip("# ").split(",")[0] if command.startswith(f"{CACHE} --dir") else ""
            script.append(
                f"until said=$({command} 2>&1) && case $said in *{expected}*);; *) false;; esac; do sleep 0.2; done"
            )
        else:
            script.append(command)
    text = "\n".join(script).replace("/tmp/try", str(dev_cluster.directory))
    ended = subprocess.run(["bash", "-ec", text], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, text + ended.stdout + ended.stderr
