"""What `.ci/run` runs again: tests that failed in a run that came to its end, and never until one passes by chance."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import unsteady
from citations import ROOT

WEAK = """
from pathlib import Path

def test_fails_in_some_runs():
    runs = Path(__file__).with_name("runs")
    runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
    assert len(runs.read_text()) not in {FAILS}

def test_passes():
    pass
"""


def whole_run(folder: Path, fails: set[int], *options: str) -> subprocess.CompletedProcess[str]:
    """Run the made tests with the conftest of this project, as `.ci/run` does."""
    (folder / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    (folder / "test_weak.py").write_text(WEAK.replace("{FAILS}", str(fails)))
    environment = os.environ | {"MUSTER_FAILURES": str(folder / "failed"), "PYTHONPATH": str(ROOT / "tests/support")}
    command = [sys.executable, "-m", "pytest", str(folder), *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def again(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests/unsteady.py"), str(folder / "failed")]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests/support")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.long  # pytest starts again and again
def test_a_test_that_fails_once_is_run_again_and_named(tmp_path: Path) -> None:
    assert whole_run(tmp_path, {1}, "-n", "2").returncode == 1
    assert (tmp_path / "failed").read_text() == "test_weak.py::test_fails_in_some_runs\n"
    ended = again(tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert "UNSTEADY: test_weak.py::test_fails_in_some_runs" in ended.stdout
    assert (tmp_path / "runs").read_text() == "x" * (1 + unsteady.TIMES)


@pytest.mark.long  # pytest starts again and again
def test_a_test_that_fails_again_stays_a_failure(tmp_path: Path) -> None:
    assert whole_run(tmp_path, {1, 3}).returncode == 1
    ended = again(tmp_path)
    assert ended.returncode == 1
    assert "UNSTEADY" not in ended.stdout


def test_nothing_is_run_again_after_a_run_without_a_list_or_with_many_failures(tmp_path: Path) -> None:
    assert whole_run(tmp_path, set()).returncode == 0
    assert not (tmp_path / "failed").exists()
    assert again(tmp_path).returncode == 1
    (tmp_path / "failed").write_text("test_weak.py::test_passes\n" * (unsteady.MOST + 1))
    assert again(tmp_path).returncode == 1
