"""QEMU's monitor (QMP) of one machine: commands, and the events that come between their answers.

A thread reads what arrives. Whoever asks waits for its own answer; whoever waits for an event is woken by it.
"""

import contextlib
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

ANSWER_S = 20.0
_CONNECT_S = 20.0
_PAUSE_S = 0.02

Document = dict[str, Any]


class MonitorFailed(OSError):
    """The monitor has gone, does not answer, or refuses; the message says which."""


class Event(NamedTuple):
    """Something that QEMU has told: `at_s` on the monotonic clock of the lab."""

    at_s: float
    name: str
    data: Document


class Monitor:
    """A connection that lives as long as its machine."""

    def __init__(self, path: Path) -> None:
        """Connect, waiting until the socket is there. Raises `MonitorFailed`."""
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._answers: list[Document] = []
        self._asking = threading.Lock()
        self._is_open = True
        self._socket = _connect(path)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """What a command returns. Raises `MonitorFailed`."""
        with self._asking:
            self._answers.clear()
            request = {"execute": command, "arguments": arguments}
            try:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
            except OSError as error:
                raise MonitorFailed(f"{command}: the monitor has gone: {error}") from error
            with self._changed:
                self._changed.wait_for(lambda: bool(self._answers) or not self._is_open, ANSWER_S)
                if not self._answers:
                    raise MonitorFailed(f"{command}: the monitor has gone or does not answer")
                answer = self._answers.pop(0)
        if "error" in answer:
            raise MonitorFailed(f"{command}: {answer['error'].get('desc', answer['error'])}")
        return answer["return"]

    def wait_event(self, name: str, since_s: float, within_s: float) -> Event | None:
        """The first event of that name since a moment of the monotonic clock; None if there is none in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._find(name, since_s) is not None or not self._is_open, within_s)
            return self._find(name, since_s)

    def close(self) -> None:
        """Hear nothing more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._reader.join(ANSWER_S)

    def _find(self, name: str, since_s: float) -> Event | None:
        return next((each for each in self.events if each.name == name and each.at_s >= since_s), None)

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._socket.makefile("rb") as lines:
            for line in lines:
                self._take(json.loads(line))
        with self._changed:
            self._is_open = False
            self._changed.notify_all()

    def _take(self, told: Document) -> None:
        with self._changed:
            if "event" in told:
                self.events.append(Event(time.monotonic(), str(told["event"]), told.get("data", {})))
            elif "return" in told or "error" in told:
                self._answers.append(told)
            self._changed.notify_all()


def _connect(path: Path) -> socket.socket:
    deadline_s = time.monotonic() + _CONNECT_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline_s:
                raise MonitorFailed(f"{path}: {error}") from error
            time.sleep(_PAUSE_S)
        else:
            return connection
