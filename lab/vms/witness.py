"""What a client of the services sees: each instance tells it, several times a second, that it runs (SPEC 7.1).

The witness is in the lab, outside of all machines, so one clock judges all of them, and no machine's word is needed. An
instance of a service that is heard after another instance of it was heard is a violation: two ran, or one was
recovered before it had stopped. What counts is the order in which datagrams arrive; they take one bridge, none waits.
"""

import socket
import threading
import time
from typing import NamedTuple

from lab.vms.wires import BOARD_HOST

PORT = 6231
PROGRAM_PATH = "/usr/local/lib/lab-service"
PERIOD_S = 0.1
_KEPT = 100_000

PROGRAM = f"""\
#!/usr/bin/python3 -SE
import os, socket, time
said = " ".join(os.environ[name] for name in ("MUSTER_SERVICE", "MUSTER_NODE", "MUSTER_GENERATION", "MUSTER_EPOCH"))
boot = open("/proc/sys/kernel/random/boot_id").read(8)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    while True:
        try:
            client.sendto(f"{{said}} {{boot}} {{os.getpid()}}".encode(), ("{BOARD_HOST}", {PORT}))
        except OSError:
            pass  # the cable is out
        time.sleep({PERIOD_S})
"""


class Instance(NamedTuple):
    """One run of a service: its first and last word, on the lab's monotonic clock."""

    service: str
    node: str
    identity: str
    first_s: float
    last_s: float


class Judgement:
    """All instances, in the order in which they were heard first, and what is wrong with them."""

    def __init__(self) -> None:
        self.instances: list[Instance] = []
        self.findings: list[str] = []
        self._now: dict[str, int] = {}  # service: the newest of its instances
        self._changed = threading.Condition()

    def serving(self, service: str) -> Instance | None:
        """The newest instance of a service, whether it still runs or not."""
        with self._changed:
            at = self._now.get(service)
            return self.instances[at] if at is not None else None

    def wait_served(self, service: str, *, not_by: str = "", since_s: float = 0.0, within_s: float) -> Instance | None:
        """An instance that was heard since then, and is not of this node; None if there is none in time."""

        def found() -> Instance | None:
            at = self._now.get(service)
            each = self.instances[at] if at is not None else None
            return each if each is not None and each.node != not_by and each.last_s >= since_s else None

        with self._changed:
            self._changed.wait_for(lambda: found() is not None, within_s)
            return found()

    def hear(self, text: str, at_s: float) -> None:
        """Take what an instance says. What is no word of an instance is left out."""
        words = text.split()
        if len(words) < 3:
            return
        service, node, identity = words[0], words[1], " ".join(words[1:])
        with self._changed:
            at = self._now.get(service)
            if at is not None and self.instances[at].identity == identity:
                self.instances[at] = self.instances[at]._replace(last_s=at_s)
            else:
                self._look_for_overlap(service, identity)
                self._now[service] = len(self.instances)
                self.instances.append(Instance(service, node, identity, at_s, at_s))
            self._changed.notify_all()

    def _look_for_overlap(self, service: str, identity: str) -> None:
        """Whoever was heard before another one must not be heard again."""
        if any(each.service == service and each.identity == identity for each in self.instances[-_KEPT:]):
            at = self._now[service]
            self.findings.append(f"{service}: {identity} still runs, after {self.instances[at].identity} was started")


class Witness(Judgement):
    """Hears until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((BOARD_HOST, PORT))
        self._closed = False
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hear nothing more."""
        self._closed = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", (BOARD_HOST, PORT))
        self._thread.join(10)
        self._socket.close()

    def _hear(self) -> None:
        while not self._closed:
            data = self._socket.recv(4096)
            self.hear(data.decode(errors="replace"), time.monotonic())
