"""Every instrument that tells what needs a person, as an operator, a monitor and a machine read it (P10.12)."""

import contextlib
import fcntl
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dev_cluster import DevCluster
from muster.client.errors import Unreachable
from muster.dev.development_cluster import open_cluster

ROWS, COLUMNS = 24, 80
PATIENCE_S = 180.0  # a busy machine is no slow instrument
PAUSE_S = 0.05
ANSWER_S = 10.0
STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
EVENTS = """
[[event_group]]
name = "paging"
nodes = {nodes}
[[event_group.event]]
name = "page"
watcher = "needs"
"""

Document = dict[str, Any]


class Watch:
    """`muster status --watch` on a terminal of 80x24: what it has drawn last."""

    def __init__(self, directory: Path, node: str) -> None:
        self._end, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        words = [sys.executable, "-m", "muster.ui.command_line", "status", "--watch", "--node", node]
        environment = os.environ | {"MUSTER_DIR": str(directory), "TERM": "xterm"}
        environment = {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES")}
        self._process = subprocess.Popen(words, stdout=slave, stderr=slave, stdin=slave, env=environment)
        os.close(slave)
        self._drawn = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._end, 65536):
                self._drawn += data
                del self._drawn[:-200_000]

    def page(self) -> str:
        """The last whole page, without blanks and ends of lines: a sentence may be broken by the width."""
        pages = STEERING.sub("", self._drawn.decode(errors="replace")).split("dev  master")
        lines = (pages[-2] if len(pages) > 2 else pages[-1]).replace("\r", "").split("\n")
        assert len(lines) <= ROWS + 1, lines
        return _bare("".join(lines))

    def close(self) -> None:
        """End the screen, and wait until it has."""
        self._process.terminate()
        self._process.wait(timeout=60)
        os.close(self._end)


def _bare(text: str) -> str:
    return "".join(text.split())


class Instruments:
    """Those of one node. `boot` starts it with metrics and a service manager to tell."""

    def __init__(self, cluster: DevCluster, node: str, folder: Path) -> None:
        self.cluster, self.node = cluster, node
        self._metrics = str(folder / f"metrics-{node}")
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(folder / f"notify-{node}"))
        self._notified.setblocking(False)
        self._status = ""
        self._watch: Watch | None = None
        self.environment = {"NOTIFY_SOCKET": str(folder / f"notify-{node}"), "MUSTER_METRICS": f"unix:{self._metrics}"}

    def boot(self) -> None:
        """Boot the node, which is off, so that it has all of them."""
        environment: dict[str, Any] = {**self.environment}
        ended = self.cluster.run("dev", "boot", self.node, "--wait", "240", timeout_s=300, **environment)
        assert ended.returncode == 0, ended.stderr
        self.look()

    def look(self) -> None:
        """Begin to watch the node, which runs already in this environment."""
        self._watch = Watch(self.cluster.directory, self.node)

    def close(self) -> None:
        """End what runs beside it."""
        self._notified.close()
        if self._watch is not None:
            self._watch.close()

    # ---- what each of them says ----------------------------------------------------------------------------------

    def needs(self) -> list[Document]:
        """Those of `status --json`."""
        found: list[Document] = self._status_now()["needs"]
        return found

    def _status_now(self) -> Document:
        found: Document = open_cluster(self.cluster.directory).connection_to(self.node, ANSWER_S).query("status")
        return found

    def _text(self, *words: str) -> tuple[int, str]:
        ended = self.cluster.run(*words, "--node", self.node)
        return ended.returncode, ended.stdout

    def _logged(self, event: str, level: str) -> list[str]:
        log = (self.cluster.directory / "nodes" / self.node / "log").read_text(errors="replace")
        marks = (f"level={level} ", f'event="{event}"')
        return [line.replace('\\"', '"') for line in log.splitlines() if all(mark in line for mark in marks)]

    def _log_has_not_ended(self) -> bool:
        """Whether the last that it says of needs is that there is one."""
        log = (self.cluster.directory / "nodes" / self.node / "log").read_text(errors="replace")
        told = re.findall(r'event="(needs you|need over)"', log)
        return told[-1:] == ["needs you"]

    def _page_of_metrics(self) -> str:
        with socket.socket(socket.AF_UNIX) as end:
            try:
                end.connect(self._metrics)
            except OSError:
                return ""  # the daemon begins
            end.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            page = b""
            while data := end.recv(65536):
                page += data
        return page.decode()

    def _service_manager(self) -> str:
        with contextlib.suppress(BlockingIOError):
            while data := self._notified.recv(65536):
                if b"STATUS=" in data:
                    self._status = data.decode()
        return self._status

    def _occurred(self) -> list[Document]:
        found = self.cluster.json("event", "history", "page", "--node", self.node)["occurrences"]
        return [each["out"] for each in found if each["node"] == self.node]

    # ---- all of them ---------------------------------------------------------------------------------------------

    def find(self, kind: str, subject: str) -> Document | None:
        """The need, if `status --json` has it. A daemon that is started anew does not answer for a moment."""
        with contextlib.suppress(Unreachable):
            return self._find(kind, subject)
        return None

    def _find(self, kind: str, subject: str) -> Document | None:
        return next((each for each in self.needs() if (each["kind"], each["subject"]) == (kind, subject)), None)

    def tellers(self, need: Document) -> dict[str, Callable[[], bool]]:
        """What each instrument must say of this need, by the instrument."""
        words, then, kind, subject = need["words"], need["next"], need["kind"], need["subject"]
        line = f"{words}; next: {then}"

        def first() -> bool:
            return [each["words"] for each in self.needs()[:1]] == [words]

        def says(page: str) -> bool:
            return _bare(words) in page and _bare(f"next: {then}") in page

        def watch() -> bool:
            assert self._watch is not None
            page = self._watch.page()
            return "NEEDSYOU:" in page and (says(page) or (not first() and "more:musterstatus--check" in page))

        def check() -> bool:
            status, text = self._text("status", "--check")
            return status == 1 and text.startswith("NEEDS YOU: ") and says(_bare(text))

        def status() -> bool:
            lines = self._text("status")[1].splitlines()
            place = next((number for number, each in enumerate(lines) if each.startswith("NEEDS YOU: ")), ROWS)
            return place <= 2 and says(_bare("\n".join(lines)))

        def manager() -> bool:
            told = self._service_manager()
            return "STATUS=NEEDS YOU: " in told and (line in told or (not first() and " more)" in told))

        def why() -> bool:
            name = self._why_of(subject)
            document = self.cluster.json("why", *name, "--node", self.node)
            own = [(each["words"], each["next"]) for each in document["needs"]]
            text = _bare(self._text("why", *name)[1])
            is_next = document["next_step"] == then or own[:1] != [(words, then)]
            return (words, then) in own and is_next and says(text)

        def event() -> bool:
            """Each need occurs once, as it was first told; more may be known of it now. The log has both."""
            own = [each for each in self._occurred() if (each["kind"], each["subject"]) == (kind, subject)]
            said = self._logged("needs you", "error")
            return bool(own) and all(any(f"{e['words']}; next: {e['next']}" in line for line in said) for e in own)

        return {
            "warnings of status --json": lambda: line in self._status_now()["warnings"],
            "metric": lambda: f'muster_needs_you{{kind="{kind}",subject="{subject}"}} 1.0' in self._page_of_metrics(),
            "log": lambda: any(line in each for each in self._logged("needs you", "error")),
            "service manager": manager,
            "status --watch at 80x24": watch,
            "event": event,
            "status": status,
            "status --check": check,
            "why": why,
        }

    @staticmethod
    def _why_of(subject: str) -> list[str]:
        """What `muster why` is asked about; nothing: the cluster."""
        kind, _, name = subject.partition("/")
        name = name.rpartition("@")[2] if kind == "level" else name
        return [] if kind == "cluster" else [f"node/{name}" if kind in ("node", "link", "level") else name]

    def told(self, kind: str, subject: str, part: str, next_step: str, without: tuple[str, ...] = ()) -> float:
        """Wait until all of them but `without` tell it. How long (s) after `status --json` the last one did.

        Why no bound is asserted: this process has one processor in common with all that it measures. Each instrument is
        asked again until it tells, so the time is what the slowest took, and what it took to ask the others.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        while (need := self.find(kind, subject)) is None:
            assert time.monotonic() < deadline_s, f"nobody tells {kind} of {subject}: {self._status_now()}"
            time.sleep(PAUSE_S)
        assert part in need["words"] and next_step in need["next"], need
        began_s, deadline_s = time.monotonic(), time.monotonic() + PATIENCE_S
        silent = self.tellers(need)
        while True:
            silent = {name: tells for name, tells in silent.items() if name not in without}
            silent = {name: tells for name, tells in silent.items() if not tells()}
            if not silent:
                return time.monotonic() - began_s
            now = self.find(kind, subject)
            if now is not None and (now["words"], now["next"]) != (need["words"], need["next"]):
                need = now  # more is known of it, or it has gone on: all of them must say that now
                silent = self.tellers(need)
            assert time.monotonic() < deadline_s, f"{kind} of {subject} is not told by {', '.join(silent)}: {need}"
            time.sleep(PAUSE_S)

    def over(self, kind: str, subject: str) -> None:
        """Wait until none of them tells it any more."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self.find(kind, subject) is not None:
            assert time.monotonic() < deadline_s, f"{kind} of {subject} is not over: {self._status_now()}"
            time.sleep(PAUSE_S)

    def nothing(self) -> None:
        """Wait until nothing needs anybody; then none of them tells anything."""
        self.cluster.wait_for("nothing to need anybody", lambda status: not status["needs"], PATIENCE_S, node=self.node)
        assert self._watch is not None
        deadline_s = time.monotonic() + PATIENCE_S
        tells: dict[str, Callable[[], bool]] = {
            "warnings of status --json": lambda: bool(self._status_now()["warnings"]),
            "status --check": lambda: self._text("status", "--check")[0] != 0,
            "status": lambda: "NEEDS YOU" in self._text("status")[1],
            "why": lambda: "nothing needs you" not in self._text("why")[1],
            "metric": lambda: "muster_needs_you{" in self._page_of_metrics(),
            "log": self._log_has_not_ended,
            "status --watch": lambda: "NEEDSYOU" in self._watch.page(),  # type: ignore[union-attr]
            "service manager": lambda: "NEEDS YOU" in self._service_manager(),
        }
        while telling := [name for name, is_telling in tells.items() if is_telling()]:
            assert time.monotonic() < deadline_s, f"nothing needs anybody, and {', '.join(telling)} tells something"
            time.sleep(PAUSE_S)
