"""What several test files use: development clusters through the command line, always torn down.

A test that needs root or a package skips with a reason that says so; `MUSTER_FORBID_SKIPS=1` makes every skip a failure
(`.ci/run`), but for those whose reason begins with "not applicable". `MUSTER_FAILURES=FILE` gets the names of the tests
that failed in a run that came to its end, a line each: `unsteady.py` reads it. With `MUSTER_RANDOM_EXAMPLES`
the tests of hypothesis take other examples in each run (`make soak`).
"""

import os
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from dev_cluster import SOURCE, CommandLine, DevCluster

_LINES_OF_A_LOG = 60

_skipped: list[str] = []
_failed: dict[str, None] = {}  # in the order in which they did
_has_failed = pytest.StashKey[bool]()

# the same examples in every run: `make test` is no lottery, and what it finds is found again
settings.register_profile("alike", derandomize=True, database=None)
settings.register_profile("random", database=None)
settings.load_profile("random" if "MUSTER_RANDOM_EXAMPLES" in os.environ else "alike")

# A shell that runs a command in the background has it ignore SIGINT, and so all that it starts: some tests send one.
signal.signal(signal.SIGINT, signal.default_int_handler)

# processes that tests start find the package too, installed or not
os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what was skipped; under xdist this runs where all reports come together."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _note_skip(report.nodeid, report.longrepr)
    if report.failed:
        _failed[report.nodeid] = None


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A whole file may be skipped as it is collected."""
    if report.skipped:
        _note_skip(report.nodeid, report.longrepr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether a test has failed, for what its fixtures print then."""
    report = yield
    item.stash[_has_failed] = item.stash.get(_has_failed, False) or report.failed
    return report


def _note_skip(name: str, representation: object) -> None:
    reason = str(representation[2]) if isinstance(representation, tuple) else str(representation)
    if not reason.removeprefix("Skipped: ").startswith("not applicable"):
        _skipped.append(f"{name}: {reason}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where nothing may be skipped, a skip fails the run; if only tests did, their names are told to `unsteady.py`."""
    if hasattr(session.config, "workerinput"):
        return
    if os.environ.get("MUSTER_FORBID_SKIPS") and _skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    elif exitstatus == pytest.ExitCode.TESTS_FAILED and "MUSTER_FAILURES" in os.environ:
        Path(os.environ["MUSTER_FAILURES"]).write_text("".join(f"{name}\n" for name in _failed))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was skipped where nothing may be."""
    if os.environ.get("MUSTER_FORBID_SKIPS"):
        for text in _skipped:
            terminalreporter.write_line(f"SKIPPED, and nothing may be skipped here: {text}", red=True)


@pytest.fixture
def muster() -> CommandLine:
    """The command line."""
    return CommandLine()


@pytest.fixture
def dev_clusters(request: pytest.FixtureRequest) -> Iterator[Callable[[], DevCluster]]:
    """Makes development clusters, not yet up; all are ended and removed after the test, whatever became of it.

    The ends of their nodes' logs are in the report of a test that fails.
    """
    with tempfile.TemporaryDirectory(prefix="muster-test-", ignore_cleanup_errors=True) as base:
        clusters: list[DevCluster] = []

        def make() -> DevCluster:
            clusters.append(DevCluster(Path(base) / f"cluster-{len(clusters)}"))
            return clusters[-1]

        try:
            yield make
        finally:
            failures = []
            if request.node.stash.get(_has_failed, False):
                for cluster in clusters:
                    print(cluster.ends_of_logs(_LINES_OF_A_LOG))
            for cluster in clusters:
                if (cluster.directory / "cluster.json").exists():
                    ended = cluster.run("dev", "down")
                    if ended.returncode:
                        failures.append(ended.stderr)
            assert not failures, "\n".join(failures)


@pytest.fixture
def dev_cluster(dev_clusters: Callable[[], DevCluster]) -> DevCluster:
    """One development cluster, not yet up: `dev_cluster.up(3)`."""
    return dev_clusters()
