"""What the commands of services write, kept in files of the node's home: bounded, and over restarts (P8.20).

What is for the journal, too, goes there by systemd's native protocol, a datagram a line: `journalctl -t SERVICE`.
Where no journal listens, or it takes nothing, the file has it all the same.

`output/NAME.log`, a line a line, each with the time at which the daemon heard of it (UTC). A file that is full takes
the place of the one before it; of too many files the ones that were written longest ago go. A thread of its own writes
and the daemon never waits for it; what it has no room for is left out. Only the node's own user may read them.
"""

import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FOLDER = "output"
FILE_BYTES = 512 * 1024  # then NAME.log becomes NAME.log.1
MAXIMUM_FILES = 512
MAXIMUM_UNWRITTEN = 1024  # pieces
MAXIMUM_LINE_BYTES = 8 * 1024
TAIL_BYTES = 256 * 1024  # read of a file for an answer
SHOWN_LINES = 1000
JOURNAL = "/run/systemd/journal/socket"
JOURNAL_VARIABLE = "MUSTER_JOURNAL_SOCKET"  # where it is elsewhere
_JOURNAL_S = 1.0  # for the journal to take a line
_JOURNAL_PAUSE_S = 5.0  # in which it is left alone after it has not
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Piece(NamedTuple):
    """Something that a command of a service has written; before it so many bytes were left out."""

    service: str
    text: str
    omitted: int = 0
    journal: bool = False  # it goes there, too
    node: str = ""


class OutputFiles:
    """The files of one node. `trouble` hears, in the writing thread, why something is lost: once each cause."""

    def __init__(
        self, home: Path, trouble: Callable[[str], None], file_bytes: int = FILE_BYTES, journal: str = JOURNAL
    ) -> None:
        self._folder, self._trouble, self._file_bytes = home / FOLDER, trouble, file_bytes
        self._pieces: deque[tuple[float, Piece]] = deque()
        self._begun: dict[str, str] = {}  # by service: a line that has no end yet
        self._wanted = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_writing = self._closed = False
        self._told = self._told_of_journal = ""
        self._journal = journal
        self._journal_after_s, self._journal_pause_s = 0.0, _JOURNAL_PAUSE_S

    def add(self, piece: Piece) -> None:
        """Keep what a command has written. Never waits."""
        with self._wanted:
            if self._closed or len(self._pieces) >= MAXIMUM_UNWRITTEN:
                return
            self._pieces.append((time.time(), piece))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="muster output", daemon=True)
                self._thread.start()
            self._wanted.notify_all()

    def tail(self, service: str, lines: int = SHOWN_LINES) -> list[str]:
        """The newest lines that are kept of a service. Reads the disk: never call it in the daemon's loop."""
        found: list[str] = []
        path = self._path(service)
        for each in (path.with_name(path.name + ".1"), path):
            with contextlib.suppress(OSError), open(os.open(each, os.O_RDONLY | _OPEN), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
                found += file.read(TAIL_BYTES).decode(errors="replace").splitlines()
        return found[-lines:]

    def close(self, wait_s: float = 0.1) -> None:
        """Write what waits, if the disk takes it now."""
        with self._wanted:
            self._closed = True
            self._wanted.notify_all()
            self._wanted.wait_for(lambda: not self._pieces and not self._is_writing, wait_s)

    def _path(self, service: str) -> Path:
        return self._folder / f"{service.replace('/', '%2F')}.log"

    def _run(self) -> None:
        while True:
            with self._wanted:
                self._is_writing = False
                self._wanted.notify_all()
                self._wanted.wait_for(lambda: self._pieces or self._closed)
                if not self._pieces:
                    return
                pieces = [*self._pieces]
                self._pieces.clear()
                self._is_writing = True
            try:
                for at_s, piece in pieces:
                    self._write(at_s, piece)
                self._told = ""
            except OSError as error:
                why = error.strerror or str(error)
                if why != self._told:
                    self._told = why
                    self._trouble(f"{self._folder}: {why}; what services write meanwhile is not kept")

    def _write(self, at_s: float, piece: Piece) -> None:
        """Append the whole lines of a piece. Raises `OSError`."""
        text = self._begun.pop(piece.service, "") + piece.text
        *whole, rest = text.split("\n")
        if rest and len(rest) < MAXIMUM_LINE_BYTES:
            self._begun[piece.service] = rest
        elif rest:
            whole.append(rest)
        if piece.omitted:
            whole.insert(0, f"... {piece.omitted} bytes left out: it wrote more than is kept at a time")
        if not whole:
            return
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s)) + f".{int(at_s * 1000) % 1000:03d}Z"
        data = "".join(f"{moment} {line[:MAXIMUM_LINE_BYTES]}\n" for line in whole).encode(errors="replace")
        path = self._path(piece.service)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            self._make_room()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _OPEN, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and size + len(data) > self._file_bytes:
                os.replace(path, path.with_name(path.name + ".1"))
                os.close(descriptor)
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _OPEN, 0o600)
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
            if piece.journal:
                self._send(piece, whole)

    def _send(self, piece: Piece, lines: list[str]) -> None:
        """Give lines to the journal; what it does not take is told once, and lost there."""
        if time.monotonic() < self._journal_after_s:
            return
        why = ""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.settimeout(_JOURNAL_S)
                for line in lines:
                    end.sendto(_entry(piece, line), self._journal)
        except FileNotFoundError:
            why = "no journal listens on this machine"
        except OSError as error:
            why = error.strerror or str(error)
        if why:
            self._journal_after_s = time.monotonic() + self._journal_pause_s
        if why and why != self._told_of_journal:
            self._trouble(f"{self._journal}: {why}; what services write is still kept in {self._folder}")
        self._told_of_journal = why

    def _make_room(self) -> None:
        files = [*self._folder.iterdir()]
        if len(files) >= MAXIMUM_FILES:
            for oldest in sorted(files, key=lambda each: each.lstat().st_mtime)[: len(files) - MAXIMUM_FILES + 2]:
                oldest.unlink()


def _entry(piece: Piece, line: str) -> bytes:
    """A line as the journal takes it: NAME=VALUE each, none of which holds the end of a line."""
    fields = {
        "MESSAGE": line[:MAXIMUM_LINE_BYTES], "PRIORITY": "6", "SYSLOG_IDENTIFIER": piece.service,
        "MUSTER_SERVICE": piece.service, "MUSTER_NODE": piece.node,
    }  # fmt: skip
    return "".join(f"{name}={value}\n" for name, value in fields.items()).encode(errors="replace")
