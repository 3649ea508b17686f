"""The command line and development clusters as tests use them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muster.client.errors import ClientError
from muster.dev.development_cluster import open_cluster
from warm_commands import WarmCommands, is_fit_for

SOURCE = Path(__file__).parents[2] / "src"
ANSWER_S = 10.0
UP_S = 180.0  # until all nodes of a cluster are joined: each starts several interpreters
FAST = ("--profile", "fast")  # where a test is about how soon something is noticed; a pause ends nodes then
PATIENT = ("--profile", "virtualised")  # a busy machine ends no node: a daemon may take seconds to start there

_warm = WarmCommands()


class CommandLine:
    """Runs `muster` as a user does, in a process of its own."""

    def run(self, *arguments: str, timeout_s: float = 90.0, **environment: str) -> subprocess.CompletedProcess[str]:
        """The ended process with its output as text."""
        if is_fit_for(environment):
            return _warm.run(arguments, os.environ | environment, timeout_s)
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

    def ends_of_logs(self, lines: int) -> str:
        """The last lines of what each node has logged, for the report of a test that failed."""
        logs = sorted(self.directory.glob("nodes/*/log"))
        ends = [log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:] for log in logs]
        return "\n".join(f"--- {log}\n" + "\n".join(end) for log, end in zip(logs, ends, strict=True))

    def run(self, *arguments: str, timeout_s: float = 90.0, **environment: str) -> subprocess.CompletedProcess[str]:
        """As `CommandLine.run`, about this cluster."""
        return super().run(*arguments, timeout_s=timeout_s, MUSTER_DIR=str(self.directory), **environment)

    def up(self, nodes: int = 3, *arguments: str) -> None:
        """Bring it up: patient, unless `arguments` name another profile.

        Once more where another cluster has taken a port between its choice and its use: several tests run at a time.
        """
        words = ("dev", "up", "--nodes", str(nodes), "--wait", f"{UP_S:g}", *PATIENT, *arguments)
        ended = self.run(*words, timeout_s=UP_S + 60)
        if ended.returncode and "in use by" in ended.stderr:
            ended = self.run(*words, timeout_s=UP_S + 60)
        assert ended.returncode == 0, f"muster {' '.join(words)}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"

    def status(self, node: str | None = None) -> Any:
        """What `muster status --json` prints, of one node or of any; asked for without another process."""
        cluster = open_cluster(self.directory)
        return (cluster.connection_to(node, ANSWER_S) if node else cluster.connection(ANSWER_S)).query("status")

    def wait_for(
        self, what: str, holds: Callable[[Any], bool], timeout_s: float = 60.0, node: str | None = None
    ) -> Any:
        """Poll the status until `holds` is true of it; that status. Fails with the last one seen."""
        deadline = time.monotonic() + timeout_s
        seen: object = None
        while True:
            try:
                seen = self.status(node)
            except ClientError as error:  # it is asked again
                seen = error
            else:
                if holds(seen):
                    return seen
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}; last seen: {seen}"
            time.sleep(0.05)

    def down(self) -> None:
        """End it, as the fixture does in any case."""
        self.succeed("dev", "down")
