"""Runs `muster` commands in forks of one process that has everything imported: an interpreter's start costs more than
most commands, and the tests make thousands of them.

Theory of operation. The server listens on a Unix socket. A connection is one command: its words, environment and
directory, and the files for its output. The server forks a handler, and that one the command; the handler tells its
process id, waits for its end, and tells its status. So commands run side by side, and each has a process of its own,
with its own environment, output and exit, as from a shell.
"""

import atexit
import contextlib
import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

_REQUEST_BYTES = 1 << 20
_READ_BY_AN_INTERPRETER = ("PYTHON", "LC_", "LANG")  # as it starts: such a command gets one of its own


class WarmCommands:
    """The server of this process, started with the first command, ended with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._path = ""

    def run(
        self, words: Sequence[str], environment: dict[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with captured output as text. Raises `subprocess.TimeoutExpired`."""
        self._begin()
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            status = self._carry_out(words, environment, timeout_s, (output.fileno(), errors.fileno()))
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read().decode())
        if status is None:
            raise subprocess.TimeoutExpired(["muster", *words], timeout_s, texts[0], texts[1])
        return subprocess.CompletedProcess(["muster", *words], status, texts[0], texts[1])

    def _begin(self) -> None:
        with self._lock:
            if self._server is not None:
                return
            folder = tempfile.mkdtemp(prefix="muster-test-warm-")
            self._path = f"{folder}/socket"
            read, write = os.pipe()
            self._server = subprocess.Popen(
                [sys.executable, __file__, self._path, str(read)], pass_fds=(read,), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )  # fmt: skip
            os.close(read)  # `write` closes with this process: then the server ends
            atexit.register(self._end, folder, write)
            assert self._server.stdout is not None
            assert self._server.stdout.readline() == b"listening\n"

    def _end(self, folder: str, write: int) -> None:
        os.close(write)
        assert self._server is not None
        self._server.wait()
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)

    def _carry_out(
        self, words: Sequence[str], environment: dict[str, str], timeout_s: float, files: tuple[int, int]
    ) -> int | None:
        request = json.dumps([list(words), environment, os.getcwd()]).encode()
        assert len(request) < _REQUEST_BYTES
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_BYTES)
            connection.connect(self._path)
            socket.send_fds(connection, [request], files)
            pid = int(connection.recv(64))
            connection.settimeout(timeout_s)
            try:
                return int(connection.recv(64))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)  # its handler has not told its end, so the number is still its own
                connection.settimeout(None)
                connection.recv(64)
                return None


def is_fit_for(changed: dict[str, str]) -> bool:
    """Whether an environment with these changes means the same to an interpreter that runs already."""
    return not any(key.startswith(_READ_BY_AN_INTERPRETER) for key in changed)


def _serve(path: str, alive: int) -> NoReturn:
    for module in ("muster.ui.command_line", "muster.ui.pages.screen", "muster.dev.development_cluster"):
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for handlers
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    print("listening", flush=True)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _handle(connection)
        connection.close()


def _end_with(alive: int) -> None:
    os.read(alive, 1)
    os._exit(0)


def _handle(connection: socket.socket) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, files, _, _ = socket.recv_fds(connection, _REQUEST_BYTES, 2)
    words, environment, folder = json.loads(request)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(words, environment, folder, files)
    connection.send(str(pid).encode())
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(words: list[str], environment: dict[str, str], folder: str, files: list[int]) -> NoReturn:
    from muster.ui.command_line import main

    status = 1
    try:
        for number, file in enumerate(files, 1):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        random.seed()  # no two commands draw the same
        sys.argv = [str(Path(sys.modules["muster.ui.command_line"].__file__ or "")), *words]
        main()
        status = 0
    except SystemExit as ended:
        status = _status_of(ended)
    except BaseException:  # noqa: BLE001  # as the interpreter does
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _status_of(ended: SystemExit) -> int:
    if ended.code is None or isinstance(ended.code, int):
        return (ended.code or 0) & 0xFF
    print(ended.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
