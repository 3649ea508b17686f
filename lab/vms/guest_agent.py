"""Commands in a guest, by QEMU's guest agent at a virtio serial port: they need no network, and outlive none.

The agent carries out one request at a time and answers in order. A guest that was reset, paused or has lost its power
leaves half an answer behind; so each conversation that was broken off begins anew with a number that the agent repeats.
"""

import base64
import contextlib
import itertools
import json
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_DELIMITER = b"\xff"
_LOOK_S = 0.1
_CHUNK_BYTES = 256 * 1024

Document = dict[str, Any]


class GuestSilent(OSError):
    """The guest does not answer in time, or what it answers makes no sense."""


class GuestAgent:
    """The conversation with one guest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._rest = b""
        self._in_step = False
        self._numbers = itertools.count(int(time.monotonic() * 1000) % 1_000_000 * 1000)
        self._lock = threading.RLock()

    def ask(self, command: str, within_s: float, **arguments: Any) -> Any:
        """What the agent answers. Raises `GuestSilent`, and `RuntimeError` with the agent's own words of refusal."""
        deadline_s = time.monotonic() + within_s
        with self._lock:
            self._synchronise(deadline_s)
            answer = self._exchange({"execute": command, "arguments": arguments}, deadline_s)
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error'].get('desc', answer['error'])}")
        return answer["return"]

    def run(self, words: Sequence[str], data: bytes, within_s: float) -> "subprocess.CompletedProcess[str]":
        """Run a command and wait for its end. Raises `GuestSilent` when that does not come in time."""
        deadline_s = time.monotonic() + within_s
        given: Document = {"path": words[0], "arg": list(words[1:]), "capture-output": True}
        if data:
            given["input-data"] = base64.b64encode(data).decode()
        process = self.ask("guest-exec", within_s, **given)["pid"]
        while True:
            found = self.ask("guest-exec-status", max(1.0, deadline_s - time.monotonic()), pid=process)
            if found["exited"]:
                break
            if time.monotonic() > deadline_s:
                raise GuestSilent(f"{' '.join(words)[:200]}: no end within {within_s:.0f} s")
            time.sleep(_LOOK_S)
        status = found.get("exitcode", -found.get("signal", 1))
        out, errors = (_text(found.get(name, "")) for name in ("out-data", "err-data"))
        return subprocess.CompletedProcess(list(words), status, out, errors)

    def write(self, path: str, data: bytes, within_s: float) -> None:
        """Make a file of the guest. Raises `GuestSilent`, `RuntimeError`."""
        handle = self.ask("guest-file-open", within_s, path=path, mode="w")
        for at in range(0, len(data), _CHUNK_BYTES):
            part = base64.b64encode(data[at : at + _CHUNK_BYTES]).decode()
            self.ask("guest-file-write", within_s, **{"handle": handle, "buf-b64": part})
        self.ask("guest-file-close", within_s, handle=handle)

    def forget(self) -> None:
        """Break the conversation off: the machine behind it is another one, or is going to be."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket, self._rest, self._in_step = None, b"", False

    # ---- one exchange --------------------------------------------------------------------------------------------

    def _synchronise(self, deadline_s: float) -> None:
        if self._in_step:
            return
        number = next(self._numbers)
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._send(_DELIMITER + json.dumps(request).encode() + b"\n")
        while True:
            with contextlib.suppress(ValueError):
                if json.loads(self._line(deadline_s).rpartition(_DELIMITER)[2]).get("return") == number:
                    break
        self._in_step = True

    def _exchange(self, request: Document, deadline_s: float) -> Document:
        self._in_step = False  # until the answer is here
        self._send(json.dumps(request).encode() + b"\n")
        try:
            answer = json.loads(self._line(deadline_s))
        except ValueError as error:
            raise GuestSilent(f"{request['execute']}: {error}") from error
        self._in_step = True
        return dict(answer)

    def _send(self, data: bytes) -> None:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.connect(str(self._path))
            self._socket.settimeout(5.0)
            self._socket.sendall(data)
        except OSError as error:
            self.forget()
            raise GuestSilent(f"the port of the guest's agent: {error}") from error

    def _line(self, deadline_s: float) -> bytes:
        while b"\n" not in self._rest:
            assert self._socket is not None
            self._socket.settimeout(max(0.01, deadline_s - time.monotonic()))
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError as error:
                raise GuestSilent("the guest's agent does not answer in time") from error
            except OSError as error:
                data = b""
                self._rest = b""
                raise GuestSilent(f"the port of the guest's agent: {error}") from error
            if not data:
                self.forget()
                raise GuestSilent("the machine has ended")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode(errors="replace")
