"""A client that asks an HTTP address every few milliseconds and knows when it was served, and by whom.

It measures the outage as a user of the service sees it, on a thread of its own, by CLOCK_BOOTTIME: the same clock as
the nodes' timelines.
"""

import socket
import threading
import time
from collections import deque
from itertools import pairwise
from typing import NamedTuple

INTERVAL_S = 0.004
ANSWER_TIMEOUT_S = 0.25
ANSWER_LIMIT_BYTES = 4096
_REMEMBERED = 200_000  # answers; beyond, the oldest are forgotten


def boottime_us() -> int:
    """CLOCK_BOOTTIME in microseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Served(NamedTuple):
    """One good answer."""

    at_us: int
    node: str
    facts: dict[str, str]


class Outage(NamedTuple):
    """From the last good answer before to the first good one after."""

    began_us: int
    ended_us: int
    before: str
    after: str

    @property
    def duration_us(self) -> int:
        """How long nobody served."""
        return self.ended_us - self.began_us


class PollingClient:
    """Polls `address`, a (host, port), from `start` until `stop`."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._answers: deque[Served] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="polling client", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread has."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(ANSWER_TIMEOUT_S * 4)

    def last(self) -> Served | None:
        """The newest good answer."""
        with self._lock:
            return self._answers[-1] if self._answers else None

    def is_served(self) -> bool:
        """Whether the newest good answer is fresh."""
        last = self.last()
        return last is not None and boottime_us() - last.at_us < 20 * INTERVAL_S * 1_000_000

    def outage_after(self, since_us: int) -> Outage | None:
        """The longest time without an answer that ended after `since_us`; None before there is an answer after it."""
        with self._lock:
            answers = list(self._answers)
        longest: Outage | None = None
        for earlier, later in pairwise(answers):
            if later.at_us >= since_us and (longest is None or later.at_us - earlier.at_us > longest.duration_us):
                longest = Outage(earlier.at_us, later.at_us, earlier.node, later.node)
        return longest

    def _run(self) -> None:
        while not self._ending.wait(INTERVAL_S):
            try:
                facts = self._ask()
            except OSError:
                continue  # nobody serves: what it is here to notice
            if facts:
                with self._lock:
                    self._answers.append(Served(boottime_us(), facts.get("MUSTER_NODE", ""), facts))

    def _ask(self) -> dict[str, str]:
        with socket.create_connection(self._address, timeout=ANSWER_TIMEOUT_S) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\nHost: muster\r\n\r\n")
            data = b""
            while len(data) < ANSWER_LIMIT_BYTES and (part := connection.recv(ANSWER_LIMIT_BYTES)):
                data += part
        head, _, body = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.0 200"):
            return {}
        pairs = (line.partition("=") for line in body.decode(errors="replace").splitlines())
        return {name: value for name, _, value in pairs}
