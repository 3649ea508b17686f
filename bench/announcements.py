"""Services that say when they run: each writes one line into a FIFO, and this process notes when it comes.

The start command of every service starts a real process in the background, which first writes `SERVICE NODE
GENERATION` into the FIFO and then stays. So what is measured is the word of the service itself, by the clock that the
nodes' timelines use, and starting one costs what starting a small program costs.
"""

import os
import select
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

SCRIPT = '(echo "$MUSTER_SERVICE $MUSTER_NODE $MUSTER_GENERATION" >"$1"; exec sleep 86400) </dev/null >/dev/null 2>&1 &'
_READ_BYTES = 64 * 1024
_REMEMBERED = 100_000


def boottime_us() -> int:
    """CLOCK_BOOTTIME in microseconds, as in the nodes' timelines."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Announcement(NamedTuple):
    """A service's word that it runs."""

    at_us: int
    service: str
    node: str


class Announcements:
    """Listens to the FIFO from `start` until `stop`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path, 0o600)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # also for writing: it never ends
        self._ending_read, self._ending_write = os.pipe()
        self._heard: list[Announcement] = []
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._listen, name="announcements", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread has."""
        os.write(self._ending_write, b".")
        self._thread.join()
        for descriptor in (self._descriptor, self._ending_read, self._ending_write):
            os.close(descriptor)

    def definition(self, name: str, ordered: list[str]) -> dict[str, Any]:
        """A service that announces itself here; it prefers the nodes in `ordered`."""
        command = ["/bin/sh", "-c", SCRIPT, "sh", str(self.path)]
        return {"name": name, "ordered": ordered, "start_command": command, "start_timeout_ms": 30_000}

    def wait_for(self, services: list[str], since_us: int, timeout_s: float) -> list[Announcement] | None:
        """The first announcement of each of `services` after `since_us`, once all are there; None after `timeout_s`."""
        found: dict[str, Announcement] = {}

        def all_there() -> bool:
            found.clear()
            for heard in self._heard:
                if heard.at_us > since_us and heard.service not in found:
                    found[heard.service] = heard
            return all(service in found for service in services)

        with self._news:
            if not self._news.wait_for(all_there, timeout_s):
                return None
        return [found[service] for service in services]

    def forget(self) -> None:
        """Drop what was heard so far."""
        with self._news:
            self._heard.clear()

    def _listen(self) -> None:
        rest = b""
        while True:
            ready, _, _ = select.select([self._descriptor, self._ending_read], [], [])
            if self._ending_read in ready:
                return
            data = os.read(self._descriptor, _READ_BYTES)
            now_us = boottime_us()
            *lines, rest = (rest + data).split(b"\n")
            with self._news:
                for line in lines:
                    words = line.decode(errors="replace").split()
                    if len(words) == 3 and len(self._heard) < _REMEMBERED:
                        self._heard.append(Announcement(now_us, words[0], words[1]))
                self._news.notify_all()
