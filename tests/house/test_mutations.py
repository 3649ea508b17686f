"""The table of dangerous changes (`make mutants`) fits the program that it changes; `make mutants` makes them."""

import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

import mutate

WANTED_CHANGES = 120
LAYERS = ("core", "drivers", "daemon")


@pytest.mark.parametrize("mutation", mutate.read_tables(), ids=lambda mutation: mutation.sentence)
def test_each_change_still_fits_the_program(mutation: mutate.Mutation) -> None:
    assert not mutate.problem_of(mutation)


def test_the_table_has_enough_changes_of_each_layer_and_none_twice() -> None:
    table = mutate.read_tables()
    assert len(table) >= WANTED_CHANGES
    assert len({(mutation.file, mutation.was, mutation.now) for mutation in table}) == len(table)
    for layer in LAYERS:
        assert sum(mutation.file.startswith(f"{layer}/") for mutation in table) >= WANTED_CHANGES // 6


# ---- the tool itself, on a program of its own ------------------------------------------------------------------------

PROGRAM = """
def double(number):
    turns = 2
    return number * turns


def count(number):
    while number:
        number -= 1
    return number
"""
TESTS = """
import subprocess
import sys

from muster.sums import count, double

LEAVES = "import os, time; os.setsid(); os.fork() and os._exit(0); time.sleep(600)"


def test_double():
    assert double(3) == 6


def test_count():
    assert count(3) == 0


def test_leaves_a_process():
    subprocess.run([sys.executable, "-c", LEAVES, "{mark}"], check=True)
    assert double(3) == 6


def test_wrong_whatever_the_program_does():
    assert double(3) == 7
"""
TABLE = """
[[mutation]]
then = "three for two"
file = "sums.py"
was = "turns = 2"
now = "turns = 3"
tests = ["test_sums.py -k count or double"]

[[mutation]]
then = "nobody notices"
file = "sums.py"
was = "turns = 2"
now = "turns = 3"
tests = ["test_sums.py::test_count"]

[[mutation]]
then = "a loop without an end"
file = "sums.py"
was = "number -= 1"
now = "number -= 0"
tests = ["test_sums.py -k count"]

[[mutation]]
then = "a process is left"
file = "sums.py"
was = "turns = 2"
now = "turns = 4"
tests = ["test_sums.py::test_leaves_a_process"]

[[mutation]]
then = "the tests fail without it"
file = "sums.py"
was = "turns = 2"
now = "turns = 5"
tests = ["test_sums.py -k wrong"]

[[mutation]]
then = "its test has another name now"
file = "sums.py"
was = "turns = 2"
now = "turns = 6"
tests = ["test_sums.py::test_half"]
"""
RUN = (
    "import mutate, pathlib; mutate.ROOT = pathlib.Path(sys.argv[1]); mutate.TABLES = mutate.ROOT; mutate.SPARE_S = 6.0"
)


def run_on(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`make mutants` on the program in `root`."""
    command = [sys.executable, "-c", f"import sys; {RUN}; sys.exit(mutate.main(sys.argv[2:]))", str(root), *words]
    here = Path(mutate.__file__).parent
    return subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120, check=False)


def program_in(root: Path) -> str:
    """Written there, with its tests and table; a word that the command lines of what its tests leave hold."""
    mark = f"left-by-{root.name}-{time.monotonic_ns()}"
    for name, text in (
        ("src/muster/__init__.py", ""), ("src/muster/sums.py", PROGRAM), ("table.toml", TABLE),
        ("tests/test_sums.py", TESTS.replace("{mark}", mark)),
    ):  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return mark


@pytest.mark.long  # pytest starts again and again
def test_a_change_is_caught_by_a_failing_test_or_by_one_that_hangs_and_nothing_is_left_running(tmp_path: Path) -> None:
    mark = program_in(tmp_path)
    ended = run_on(tmp_path)
    told = ended.stdout.split("not caught:")[0]
    assert "caught   sums.py: three for two (by test_sums.py::test_double in" in told, ended
    assert "MISSED   sums.py: nobody notices (in" in told
    assert "caught   sums.py: a loop without an end (by its time limit in" in told
    assert "caught   sums.py: a process is left (by test_sums.py::test_leaves_a_process in" in told
    assert "NOT RUN  sums.py: the tests fail without it" in told
    assert "without the change, test_sums.py::test_wrong_whatever_the_program_does fails" in told
    assert "there is no test test_half in test_sums.py" in told
    assert "3 of 6 changes are caught: 50.0 %" in ended.stdout
    assert ended.returncode == 2
    assert not [each.pid for each in psutil.process_iter(["cmdline"]) if mark in (each.info["cmdline"] or ())]


@pytest.mark.long  # pytest starts again and again
def test_the_rate_decides_the_status(tmp_path: Path) -> None:
    program_in(tmp_path)
    assert run_on(tmp_path, "--only", "three").returncode == 0
    assert run_on(tmp_path, "--only", "nobody").returncode == 1
    assert run_on(tmp_path, "--only", "no such change").returncode == 2
