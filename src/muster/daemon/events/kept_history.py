"""A history that outlives the daemon: lines of JSON in a file of the node's home (SPEC 5, 6.6; PROTOCOL P8.9).

For people, not for the protocol: what cannot be written is lost, and the node goes on. So a thread of its own writes,
the daemon never waits for it, and what it has no room for is dropped. A line that was cut off, by a full disk or by the
end of the daemon, is left out when the file is read. Bounded: a file that is full takes the place of the one before it.

Only the node's own user may read it: it holds what commands wrote.
"""

import contextlib
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

FILE_BYTES = 1024 * 1024  # then FILE becomes FILE.1
MAXIMUM_UNWRITTEN = 2048  # lines
_LAST_WRITE_S = 0.1  # the daemon is silent meanwhile, as the guard sees it
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # whatever lies there, opening it waits for nobody


class KeptHistory:
    """One file. `trouble` hears, in the writing thread, why lines are lost: once each cause."""

    def __init__(self, path: Path, trouble: Callable[[str], None], file_bytes: int = FILE_BYTES) -> None:
        self._path, self._trouble, self._file_bytes = path, trouble, file_bytes
        self._before = path.with_name(path.name + ".1")
        self._lines: deque[bytes] = deque()
        self._wanted = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_writing = self._closed = False
        self._file = -1
        self._size = 0
        self._told = ""

    def read(self) -> list[bytes]:
        """The lines that are kept, oldest first; those that are cut off among them."""
        found: list[bytes] = []
        for path in (self._before, self._path):
            with contextlib.suppress(OSError):
                found += [line for line in self._content(path).split(b"\n") if line]
        return found

    def add(self, line: bytes) -> None:
        """Keep a line. Never waits; the first one starts the thread, so a node without a history has none."""
        with self._wanted:
            if self._closed or len(self._lines) >= MAXIMUM_UNWRITTEN:
                return
            self._lines.append(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"muster {self._path.name}", daemon=True)
                self._thread.start()
            self._wanted.notify_all()

    def close(self) -> None:
        """Write what waits, if the disk takes it now."""
        with self._wanted:
            self._closed = True
            self._wanted.notify_all()
            self._wanted.wait_for(lambda: not self._lines and not self._is_writing, _LAST_WRITE_S)

    def _content(self, path: Path) -> bytes:
        """The end of a file. Raises `OSError`."""
        with open(os.open(path, os.O_RDONLY | _OPEN), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return b""
            file.seek(max(0, status.st_size - 2 * self._file_bytes))
            return file.read(2 * self._file_bytes)

    def _run(self) -> None:
        while True:
            with self._wanted:
                self._is_writing = False
                self._wanted.notify_all()
                self._wanted.wait_for(lambda: self._lines or self._closed)
                if not self._lines:
                    return
                lines = [*self._lines]
                self._lines.clear()
                self._is_writing = True
            try:
                self._write(lines)
                self._told = ""
            except OSError as error:
                self._give_up(error.strerror or str(error))

    def _write(self, lines: list[bytes]) -> None:
        """Append lines. Raises `OSError`."""
        if self._file < 0:
            self._open()
        for line in lines:
            if self._size + len(line) + 1 > self._file_bytes and self._size:
                os.replace(self._path, self._before)
                self._close_file()
                self._open()
            written = os.write(self._file, line + b"\n")
            self._size += written
            if written <= len(line):
                raise OSError(0, "no room for more")

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _OPEN, 0o600)
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is no regular file")
        os.fchmod(self._file, 0o600)
        self._size = status.st_size
        if self._size:
            self._size += os.write(self._file, b"\n")  # its last line may have been cut off

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _give_up(self, why: str) -> None:
        with contextlib.suppress(OSError):
            self._close_file()
        if why != self._told:
            self._told = why
            self._trouble(f"{self._path}: {why}; what happens meanwhile is in no history after a restart")
