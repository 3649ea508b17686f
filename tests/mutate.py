"""`make mutants`: dangerous one-line changes to the program, and the tests beside each that must notice it.

    .venv/bin/python tests/mutate.py [--only WORD] [--processes N] [--list]

`tests/mutations/*.toml` is the table, chosen by hand: a change replaces one place in one file and names the tests that
plausibly cover it. Each is made in a copy of the tree, and those tests run against the copy until one fails: the change
is *caught* if one does, and *missed* if all pass. Prints a line each, then the rate. Exit status 1 below the rate that
is asked for (95 of 100), 2 where the table no longer fits the program or tests fail without any change.

A change that no test notices is worth a test; a line that cannot be broken is worth deleting.

Theory of operation. Each worker process has a copy of the tree, and everything but the program and its tests imported.
A run is a fork of it, so it costs no interpreter's start. First all tests named run once without a change, file by
file: they must pass, and the time that they take bounds the runs with a change (one that hangs is noticed too). The
worker is the subreaper of its runs: what they leave running becomes its child and is ended before the next begins.
"""

import argparse
import ast
import contextlib
import ctypes
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple, NoReturn

import hypothesis
import psutil  # type: ignore[import-untyped]
import pytest

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "tests" / "mutations"
SOURCE = Path("src/muster")
WANTED_PERCENT = 95
UNCHANGED_LIMIT_S = 300.0
SLOWER = 4.0  # than without a change, and some seconds more, until a run counts as one that hangs
SPARE_S = 10.0
ENDED_S = 30.0  # in which the kernel ends what a run left
_COPIED = ("src", "tests", "lab", "bench", "docs", "examples", "pyproject.toml", "README.md", "Makefile", ".ci")
_MOMENTS = itertools.count(500_000_000)  # in steps of two seconds, long after 1970 and before any file's own time
_TESTS_FAILED = 1  # pytest's exit status; any other than this and 0 says that the tests named could not be run
_HUNG = -1
_IMPORTED = (
    "hypothesis.strategies", "hypothesis.internal.conjecture.engine", "msgspec.structs", "click.testing", "ssl",
    "cryptography.x509", "asyncio",
    "rich.console", "rich.table", "rich.text", "concurrent.futures", "cryptography.hazmat.primitives.asymmetric.ec",
)  # fmt: skip
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Mutation(NamedTuple):
    """One dangerous change: `was` occurs once in `file` (below src/muster) and becomes `now`; `tests` notice it."""

    sentence: str  # what the program then does
    file: str
    was: str
    now: str
    tests: tuple[str, ...]  # `test_x.py` a file, `test_x.py::name` a test, `test_x.py -k a or b` those so named


class Ran(NamedTuple):
    """A part of one test (its setup, itself, its teardown), as pytest reports it."""

    test: str  # `test_x.py::name[parameters]`
    took_s: float
    failed: bool


class Run(NamedTuple):
    """How tests ended: pytest's status or that they hung, after `took_s`."""

    status: int
    took_s: float
    parts: tuple[Ran, ...]
    output: str  # the end of what pytest said
    left: int  # processes that would not end

    @property
    def failed(self) -> str:
        """The first test that failed; nothing where none did."""
        return next((part.test for part in self.parts if part.failed), "")


class Unchanged(NamedTuple):
    """The tests of a change without it: how long they take, and why they say nothing about it, if so."""

    took_s: float
    problem: str = ""


class Verdict(NamedTuple):
    """What became of a change: whether a test failed, and which; how it ended where that is neither."""

    mutation: Mutation
    caught: bool
    trouble: str = ""
    by: str = ""
    took_s: float = 0.0


# --- the table


def read_tables() -> list[Mutation]:
    """All changes, in the order of the tables."""
    found = []
    for path in sorted(TABLES.glob("*.toml")):
        for row in tomllib.loads(path.read_text())["mutation"]:
            tests = row["tests"] if isinstance(row["tests"], list) else [row["tests"]]
            found.append(Mutation(row["then"], row["file"], row["was"], row["now"], tuple(tests)))
    return found


def problem_of(mutation: Mutation) -> str:
    """Why the change does not fit the program or its tests do not exist, in words; empty where all is well."""
    path = ROOT / SOURCE / mutation.file
    if not path.is_file():
        return f"there is no {mutation.file}"
    places = path.read_text().count(mutation.was)
    if places != 1:
        return f"{mutation.file} holds {mutation.was!r} {places} times, not once"
    if mutation.was == mutation.now:
        return "it changes nothing"
    return next(filter(None, map(_problem_of_test, mutation.tests)), "")


def _problem_of_test(test: str) -> str:
    file, name, words = _parts_of(test)
    path = _path_of(file)
    if path is None:
        return f"there is no {file} below tests/"
    names = _tests_in(path)
    if name and name.split("[")[0] not in names:
        return f"there is no test {name} in {file}"
    for word in words:
        if not any(word in each for each in names):
            return f"no test in {file} has {word} in its name"
    return ""


def _parts_of(test: str) -> tuple[str, str, tuple[str, ...]]:
    """Of one entry of `tests`: the file, the test's name or nothing, the words of which one is in its name."""
    file, _dash, expression = test.partition(" -k ")
    file, _colons, name = file.partition("::")
    return file, name, tuple(expression.split(" or ")) if expression else ()


@functools.cache
def _path_of(file: str) -> Path | None:
    """Where a file of tests is: no other has its name."""
    return next((ROOT / "tests").rglob(file), None)


def _place_of(file: str, name: str) -> str:
    """As pytest takes it."""
    path = _path_of(file)
    assert path is not None
    return f"{path.relative_to(ROOT)}::{name}" if name else str(path.relative_to(ROOT))


@functools.cache
def _tests_in(path: Path) -> frozenset[str]:
    parsed = ast.parse(path.read_text())
    functions = (node for node in parsed.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(function.name for function in functions if function.name.startswith("test_"))


def _is_named(test: str, named: tuple[str, ...]) -> bool:
    """Whether a test, `test_x.py::name[parameters]`, is one of those that the entries of `tests` name."""
    its_file, _colons, its_name = test.partition("::")
    names = {"", its_name, its_name.split("[")[0]}
    return any(
        file == its_file and name in names and (not words or any(word in its_name for word in words))
        for file, name, words in map(_parts_of, named)
    )


# --- one run, in a fork of a worker


class _Chosen:
    """A plugin of pytest: keeps the tests that are named, and notes what each has done."""

    def __init__(self, tests: tuple[str, ...], note: Callable[[Ran], object]) -> None:
        self._tests, self._note = tests, note

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """A file may be named for all its tests and another for some, which pytest's own `-k` cannot say."""
        kept = [item for item in items if _is_named(f"{item.path.name}::{item.name}", self._tests)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Each of its three parts."""
        self._note(Ran(report.nodeid.rpartition("/")[2], report.duration, report.failed))


class Worker:
    """Runs tests against its own copy of the tree, one change after another."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._libc = libc
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _give_up)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # `run` waits for it
        self._folder = folder
        self._root = folder / "tree"
        self._scratch = folder / "tmp"  # short: there are sockets below it
        _copy(self._root)
        for name in _IMPORTED:
            importlib.import_module(name)
        assert not any(name.partition(".")[0] == "muster" for name in sys.modules), "a run would not see its change"

    def run(self, tests: tuple[str, ...], limit_s: float, *, to_the_end: bool = True) -> Run:
        """Without a change; until the first failure or `to_the_end`."""
        self._scratch.mkdir()
        began_s = time.monotonic()
        process = os.fork()
        if not process:
            self._be_a_run(tests, to_the_end=to_the_end)
        try:
            status = self._wait_for(process, began_s + limit_s)
        finally:
            left = _end_children()
        took_s = time.monotonic() - began_s
        parts = tuple(Ran(*json.loads(line)) for line in self._noted("parts").splitlines())
        output = self._noted("output")[-300:]
        shutil.rmtree(self._scratch, ignore_errors=True)
        return Run(status, took_s, parts, output, left)

    def run_changed(self, mutation: Mutation, limit_s: float) -> Run:
        """With the change, which is undone afterwards."""
        path = self._root / SOURCE / mutation.file
        before = path.read_text()
        try:
            _write(path, before.replace(mutation.was, mutation.now))
            return self.run(mutation.tests, limit_s, to_the_end=False)
        finally:
            _write(path, before)

    def _noted(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return (self._scratch / name).read_text(errors="replace")
        return ""

    def _wait_for(self, process: int, deadline_s: float) -> int:
        """Its exit status; whatever else becomes a child of this process meanwhile is reaped, as init does."""
        while True:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == process:
                    return abs(os.waitstatus_to_exitcode(ended[1]))
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return _HUNG
            signal.sigtimedwait([signal.SIGCHLD], left_s)

    def _be_a_run(self, tests: tuple[str, ...], *, to_the_end: bool) -> NoReturn:
        status = 70
        try:
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            output = os.open(self._scratch / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor, target in ((os.open("/dev/null", os.O_RDONLY), 0), (output, 1), (output, 2)):
                os.dup2(descriptor, target)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            status = int(self._test(tests, to_the_end=to_the_end))
        except BaseException:  # noqa: BLE001 - whatever it is, it is this run's end
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _test(self, tests: tuple[str, ...], *, to_the_end: bool) -> int:
        os.chdir(self._root)
        os.environ["PYTHONPATH"] = str(self._root / "src")
        os.environ["TMPDIR"] = str(self._scratch)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each copy compiles everything once
        sys.dont_write_bytecode = False
        tempfile.tempdir = None
        sys.path[:] = [
            str(self._root / "src"),
            *(path for path in sys.path if not path.startswith(str(ROOT / "tests"))),
        ]
        importlib.invalidate_caches()
        # an example that fails is enough, and none is kept: no change is caught by another's examples
        searching = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("one run", phases=searching, database=None)
        hypothesis.settings.load_profile("one run")
        noted = self._scratch / "parts"

        def note(part: Ran) -> None:
            with noted.open("a") as file:
                file.write(f"{json.dumps(part)}\n")

        places = dict.fromkeys(_place_of(file, name) for file, name, _words in map(_parts_of, tests))
        words = [
            "-q",
            *([] if to_the_end else ["-x"]),
            f"--basetemp={self._scratch}/t",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
        ]
        return pytest.main([*words, *places], plugins=[_Chosen(tests, note)])


def _copy(target: Path) -> None:
    target.mkdir()
    for name in _COPIED:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif origin.exists():
            shutil.copy(origin, target / name)


def _write(path: Path, text: str) -> None:
    """With a time of its own, seconds after that of the last change: bytecode that is kept is told apart by it."""
    path.write_text(text)
    moment_s = 2 * next(_MOMENTS)
    os.utime(path, (moment_s, moment_s))


def _end_children() -> int:
    """Kill and reap all children of this process until there are none; how many do not end in time.

    Whose parent is killed becomes a child of this process, the subreaper, so none is missed. Only children are killed:
    their numbers belong to nobody else before they are reaped.
    """
    deadline_s = time.monotonic() + ENDED_S
    while True:
        children = psutil.Process().children()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return 0
        if time.monotonic() > deadline_s:
            return len(children)
        signal.sigtimedwait([signal.SIGCHLD], 0.02)


def _give_up(*_: object) -> NoReturn:
    """What this process began ends with it."""
    _end_children()
    os._exit(1)


# --- all of them


_worker: Worker


def _begin(folder: Path) -> None:
    global _worker  # noqa: PLW0603 - the one of this process
    own = Path(tempfile.mkdtemp(dir=folder, prefix=""))
    for each in (folder, own):
        each.chmod(each.stat().st_mode | 0o011)  # tests let other users in
    _worker = Worker(own)


def _run_unchanged(tests: tuple[str, ...]) -> Run:
    return _worker.run(tests, UNCHANGED_LIMIT_S)


def _try(mutation: Mutation, unchanged_s: float) -> Verdict:
    run = _worker.run_changed(mutation, SLOWER * unchanged_s + SPARE_S)
    if run.left:
        return Verdict(mutation, caught=False, trouble=f"{run.left} processes do not end", took_s=run.took_s)
    if run.status == _HUNG:
        return Verdict(mutation, caught=True, by=run.failed or "its time limit", took_s=run.took_s)
    if run.status not in (0, _TESTS_FAILED):
        return Verdict(mutation, caught=False, trouble=_ended(run), took_s=run.took_s)
    return Verdict(mutation, caught=run.status == _TESTS_FAILED, by=run.failed, took_s=run.took_s)


def _ended(run: Run) -> str:
    end = "did not end" if run.status == _HUNG else f"ended with {run.status}"
    return f"pytest {end}: {run.failed} {run.output.strip()}"


class _Progress:
    """A line on the terminal, written over: how many are done, and about how long the others take."""

    def __init__(self, what: str, weights: dict[object, float]) -> None:
        self._what, self._weights = what, weights
        self._began_s = time.monotonic()
        self._done, self._done_weight = 0, 0.0

    def step(self, key: object, said: str = "") -> None:
        """One more is done; `said` is printed."""
        self._done += 1
        self._done_weight += self._weights[key]
        shown = sys.stdout.isatty()
        if said:
            print(f"\r\033[K{said}" if shown else said, flush=True)
        if shown:
            whole_s = (time.monotonic() - self._began_s) * sum(self._weights.values()) / self._done_weight
            left = f"about {(self._began_s + whole_s - time.monotonic()) / 60:.0f} min left"
            end = f"{self._done} of {len(self._weights)}, {left}" if self._done < len(self._weights) else ""
            print(f"\r\033[K{self._what} {end}" if end else "\r\033[K", end="", flush=True)


def _tell(verdict: Verdict) -> str:
    word = "caught" if verdict.caught else "NOT RUN" if verdict.trouble else "MISSED"
    told = f"{word:8} {verdict.mutation.file}: {verdict.mutation.sentence}"
    by = f"by {verdict.by} " if verdict.by else ""
    return f"{told} ({by}in {verdict.took_s:.1f} s)" + (f"\n         {verdict.trouble}" if verdict.trouble else "")


def run_all(chosen: list[Mutation], processes: int) -> list[Verdict]:
    """Each change's verdict, told as they come."""
    verdicts = [Verdict(m, caught=False, trouble=problem) for m in chosen if (problem := problem_of(m))]
    for verdict in verdicts:
        print(_tell(verdict), flush=True)
    fitting = [m for m in chosen if not problem_of(m)]
    with (
        tempfile.TemporaryDirectory(prefix="mm-", ignore_cleanup_errors=True) as folder,
        ProcessPoolExecutor(
            processes, multiprocessing.get_context("fork"), initializer=_begin, initargs=(Path(folder),)
        ) as pool,
    ):
        unchanged = _run_all_unchanged(fitting, pool)
        # those that take longest first, so that none is alone at the end
        fitting.sort(key=lambda m: -unchanged[m.tests].took_s)
        progress = _Progress("changes", {m: 1 + unchanged[m.tests].took_s for m in fitting})
        futures = {}
        for mutation in fitting:
            before = unchanged[mutation.tests]
            if before.problem:
                verdicts.append(Verdict(mutation, caught=False, trouble=f"without the change, {before.problem}"))
                progress.step(mutation, _tell(verdicts[-1]))
            else:
                futures[pool.submit(_try, mutation, before.took_s)] = mutation
        for future in as_completed(futures):
            verdicts.append(future.result())
            progress.step(futures[future], _tell(verdicts[-1]))
    return verdicts


def _run_all_unchanged(chosen: list[Mutation], pool: ProcessPoolExecutor) -> dict[tuple[str, ...], Unchanged]:
    """Each test that any change names runs once, those of one file together."""
    named: dict[str, list[str]] = {}
    for test in dict.fromkeys(test for mutation in chosen for test in mutation.tests):
        named.setdefault(_parts_of(test)[0], []).append(test)
    progress = _Progress("files of tests without a change", dict.fromkeys(named, 1.0))
    futures = {pool.submit(_run_unchanged, tuple(tests)): file for file, tests in named.items()}
    runs: dict[str, Run] = {}
    for future in as_completed(futures):
        runs[futures[future]] = future.result()
        progress.step(futures[future])
    whole_s = sum(run.took_s for run in runs.values())
    print(f"{len(chosen)} changes; their tests, of {len(runs)} files, take {whole_s:.0f} s without one", flush=True)
    return {tests: _unchanged(tests, runs) for tests in {mutation.tests for mutation in chosen}}


def _unchanged(tests: tuple[str, ...], runs: dict[str, Run]) -> Unchanged:
    took_s = 0.0
    for file in dict.fromkeys(_parts_of(test)[0] for test in tests):
        run = runs[file]
        parts = [part for part in run.parts if _is_named(part.test, tests)]
        took_s += run.took_s - sum(part.took_s for part in run.parts) + sum(part.took_s for part in parts)
        failed = next((part.test for part in parts if part.failed), "")
        if run.status not in (0, _TESTS_FAILED) or run.left or not parts:
            return Unchanged(took_s, f"{file}: {_ended(run)}")
        if failed:
            return Unchanged(took_s, f"{failed} fails")
    return Unchanged(took_s)


def main(words: list[str] | None = None) -> int:
    """Run the table; the exit status of the module's text."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", default="", help="changes whose file or sentence holds this word")
    parser.add_argument("--processes", type=int, default=2, help="how many at a time (2)")
    parser.add_argument("--list", action="store_true", help="show the table and run nothing")
    options = parser.parse_args(words)
    chosen = [m for m in read_tables() if options.only in m.file or options.only in m.sentence]
    if options.list or not chosen:
        for mutation in chosen:
            print(f"{mutation.file}: {mutation.sentence}")
        print(f"{len(chosen)} changes")
        return 0 if chosen else 2
    began_s = time.monotonic()
    verdicts = run_all(chosen, options.processes)
    missed = [verdict for verdict in verdicts if not verdict.caught]
    if missed:
        print("\nnot caught:")
        for verdict in missed:
            print(_tell(verdict))
    percent = 100 * (len(verdicts) - len(missed)) / len(verdicts)
    print(
        f"{len(verdicts) - len(missed)} of {len(verdicts)} changes are caught: {percent:.1f} % "
        f"(at least {WANTED_PERCENT} are asked for), in {(time.monotonic() - began_s) / 60:.0f} minutes"
    )
    if any(verdict.trouble for verdict in missed):
        return 2
    return 0 if percent >= WANTED_PERCENT else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
