"""What several test files use: development clusters through the command line, always torn down.

A test that needs root or a package skips with a reason that says so; `MUSTER_FORBID_SKIPS=1` makes every skip a failure
(`.ci/run`), but for those whose reason begins with "not applicable".
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[1] / "src"
_skipped: list[str] = []

# processes that tests start find the package too, installed or not
os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what was skipped; under xdist this runs where all reports come together."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _note_skip(report.nodeid, report.longrepr)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A whole file may be skipped as it is collected."""
    if report.skipped:
        _note_skip(report.nodeid, report.longrepr)


def _note_skip(name: str, representation: object) -> None:
    reason = str(representation[2]) if isinstance(representation, tuple) else str(representation)
    if not reason.removeprefix("Skipped: ").startswith("not applicable"):
        _skipped.append(f"{name}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where nothing may be skipped, a skip fails the run."""
    if os.environ.get("MUSTER_FORBID_SKIPS") and _skipped and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was skipped where nothing may be."""
    if os.environ.get("MUSTER_FORBID_SKIPS"):
        for text in _skipped:
            terminalreporter.write_line(f"SKIPPED, and nothing may be skipped here: {text}", red=True)


class CommandLine:
    """Runs `muster` as a user does, in a process of its own."""

    def run(self, *arguments: str, timeout_s: float = 90.0, **environment: str) -> subprocess.CompletedProcess[str]:
        """The ended process with its output as text."""
        return subprocess.run(
            [sys.executable, "-m", "muster.ui.command_line", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env=os.environ | environment,
            check=False,
        )

    def succeed(self, *arguments: str, timeout_s: float = 90.0) -> str:
        """Standard output of a command that must succeed."""
        ended = self.run(*arguments, timeout_s=timeout_s)
        assert ended.returncode == 0, (
            f"muster {' '.join(arguments)}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        )
        return ended.stdout

    def json(self, *arguments: str, timeout_s: float = 90.0) -> Any:
        """The document that a query prints."""
        return json.loads(self.succeed(*arguments, "--json", timeout_s=timeout_s))


class DevCluster(CommandLine):
    """A development cluster in `directory`; every command is about it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *arguments: str, timeout_s: float = 90.0, **environment: str) -> subprocess.CompletedProcess[str]:
        """As `CommandLine.run`, about this cluster."""
        return super().run(*arguments, timeout_s=timeout_s, MUSTER_DIR=str(self.directory), **environment)

    def up(self, nodes: int = 3, *arguments: str) -> None:
        """Bring it up."""
        self.succeed("dev", "up", "--nodes", str(nodes), "--profile", "fast", *arguments)

    def status(self, node: str | None = None) -> Any:
        """`muster status`, of one node or of any."""
        return self.json("status", *(("--node", node) if node else ()))

    def wait_for(
        self, what: str, holds: Callable[[Any], bool], timeout_s: float = 60.0, node: str | None = None
    ) -> Any:
        """Poll the status until `holds` is true of it; that status. Fails with the last one seen."""
        deadline = time.monotonic() + timeout_s
        while True:
            ended = self.run("status", "--json", *(("--node", node) if node else ()))
            seen = json.loads(ended.stdout) if ended.returncode == 0 else None
            if seen is not None and holds(seen):
                return seen
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}; last seen: {seen or ended.stderr}"
            time.sleep(0.05)

    def down(self) -> None:
        """End it, as the fixture does in any case."""
        self.succeed("dev", "down")


@pytest.fixture
def muster() -> CommandLine:
    """The command line."""
    return CommandLine()


@pytest.fixture
def dev_clusters() -> Iterator[Callable[[], DevCluster]]:
    """Makes development clusters, not yet up; all are ended and removed after the test, whatever became of it."""
    with tempfile.TemporaryDirectory(prefix="muster-test-", ignore_cleanup_errors=True) as base:
        clusters: list[DevCluster] = []

        def make() -> DevCluster:
            clusters.append(DevCluster(Path(base) / f"cluster-{len(clusters)}"))
            return clusters[-1]

        try:
            yield make
        finally:
            failures = []
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
