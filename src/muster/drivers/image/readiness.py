"""When a program that Muster supervises is ready (SPEC 6.6): what its start waits for. No decisions, and nothing waits.

All conditions that are given must hold: a TCP port of the loopback address accepts, a file is there that was not there
as it is before the program was started, the program has said READY=1 (the sd_notify protocol), a command succeeds.
The file is looked at by keeper and looker (`looker.py`), because its file system may hang.
Without any, the program is ready when it has survived `SURVIVAL_MS` after it was executed.

A port that accepts before the start belongs to another program, and says so: else the start would seem to succeed.

For READY=1 the program gets an abstract socket of its own in NOTIFY_SOCKET. Only processes below its keeper are heard,
and those that have ended already (`systemd-notify` does at once): in a namespace any of that node, and in a process
tree those of this user and of the users of what runs below the keeper. A program that needs longer to start says so
with EXTEND_TIMEOUT_USEC, as often as it likes (sd_notify): from then on it has so many microseconds, or what was left.
"""

import os
import select
import socket
import struct
from typing import NamedTuple

from muster.drivers.image.looker import FOUND, Stamp, read
from muster.drivers.image.process_tree import descendants, read_parents
from muster.records.units import US_PER_MS

SURVIVAL_MS = 100
NOTIFICATION_BYTES = 4096
STATUS_CHARACTERS = 200
MAXIMUM_EXTENSION_US = 24 * 3600 * 1_000_000  # that a program may ask for at a time: what a start_timeout may be
_CONNECT_MS = 20  # for the answer of a local port
_FIRST_PAUSE_MS = 20
_LONGEST_PAUSE_MS = 200
_FIRST_COMMAND_PAUSE_MS = 50
_LONGEST_COMMAND_PAUSE_MS = 1000
_NOTIFICATIONS_A_TURN = 64
_CREDENTIALS = struct.Struct("3i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class PortTaken(Exception):
    """Something accepts at the program's port before the program was started; the message says what to do."""


class Conditions(NamedTuple):
    """What must hold for the program to be ready."""

    command: tuple[str, ...] = ()
    port: int = 0
    file: str = ""
    notify: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing but survival is asked for."""
        return not (self.command or self.port or self.file or self.notify)


class Condition:
    """One started program on its way to be ready. `close` it when its keeper has gone."""

    def __init__(self, conditions: Conditions) -> None:
        """Look whether its port is taken before the program is started. Raises `PortTaken`, `OSError`."""
        self.conditions = conditions
        self.status = ""  # what the program last said of itself
        self.said_ready = False
        self.extended_us = 0  # until when it has asked to be given time; 0: it has not
        self.command_succeeded = False
        self.command_detail = "has not been run yet"
        self.next_command_us = 0
        self.wants_command = False  # all else holds: its ready command is to be run
        self._command_pause_ms = _FIRST_COMMAND_PAUSE_MS
        self._pause_ms = _FIRST_PAUSE_MS
        self.next_look_us = 0
        self.file_before: Stamp | None = None  # as the keeper has found it
        self.file_is_known = self.file_was_looked_at = self.file_has_come = False
        self.looker, self.looker_fd = 0, -1  # the process that waits for the file, and what it says
        if conditions.port and _accepts(conditions.port):
            text = (
                f"port {conditions.port} of this machine's loopback address accepts connections before it was started"
            )
            raise PortTaken(f"{text}; end the program that has it, or correct the port of `ready`")
        self.listener: socket.socket | None = None
        self.environment: dict[str, str] = {}
        if conditions.notify:
            name = f"muster/{os.urandom(12).hex()}"
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.listener.bind(b"\0" + name.encode())
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self.environment = {"NOTIFY_SOCKET": f"@{name}"}

    def receive(self, keeper: int, now_us: int, *, in_namespace: bool) -> None:
        """Take what the program below `keeper` has said; bounded work a call, bounded memory (SPEC 7.8)."""
        for _ in range(_NOTIFICATIONS_A_TURN):
            if self.listener is None:
                return
            try:
                data, ancillary, _flags, _address = self.listener.recvmsg(NOTIFICATION_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            if _is_of(keeper, ancillary, in_namespace=in_namespace):
                self._take(data.decode(errors="replace"), now_us)

    def _take(self, text: str, now_us: int) -> None:
        for line in text.splitlines():
            key, _, value = line.partition("=")
            if key == "READY" and value == "1":
                self.said_ready = True
            elif key == "STATUS":
                self.status = value[:STATUS_CHARACTERS]
            elif key == "EXTEND_TIMEOUT_USEC" and value.isdecimal() and len(value) < 20:
                self.extended_us = max(self.extended_us, now_us + min(int(value), MAXIMUM_EXTENSION_US))

    def command_ended(self, detail: str, now_us: int) -> None:
        """The ready command has ended, with nothing to say where it succeeded."""
        self.command_succeeded, self.command_detail = not detail, detail
        self.next_command_us = now_us + self._command_pause_ms * US_PER_MS
        self._command_pause_ms = min(2 * self._command_pause_ms, _LONGEST_COMMAND_PAUSE_MS)

    def missing(self, executed_us: int | None, now_us: int) -> str:
        """What is not so yet, in words; nothing once the program is ready. Sets when to look again."""
        self.wants_command = False
        if executed_us is None:
            self.next_look_us = now_us + _LONGEST_PAUSE_MS * US_PER_MS  # its execution wakes the runner
            return self._hanging() if not self.file_is_known else "it has not been executed yet"
        if self.conditions.is_empty:
            self.next_look_us = executed_us + SURVIVAL_MS * US_PER_MS
            return "" if now_us >= self.next_look_us else f"it has not run for {SURVIVAL_MS} ms yet"
        self.next_look_us = now_us + self._pause_ms * US_PER_MS
        found = self._missing()
        if found:
            self._pause_ms = min(self._pause_ms + 1, _LONGEST_PAUSE_MS)
        return found

    def _missing(self) -> str:
        wanted = self.conditions
        if wanted.notify and not self.said_ready:
            status = f" (its status: {self.status})" if self.status else ""
            return f"it has not said READY=1{status}"
        if wanted.file and not self.file_has_come:
            if not self.file_was_looked_at:
                return self._hanging()
            return f"file {wanted.file} is not there" if self.file_before is None else f"{wanted.file} is an old one"
        if wanted.port and not _accepts(wanted.port):
            return f"port {wanted.port} of the loopback address accepts no connection"
        self.wants_command = bool(wanted.command) and not self.command_succeeded
        if self.wants_command:
            return f"its ready command {self.command_detail}"
        return ""

    def _hanging(self) -> str:
        if not self.conditions.file:
            return "it has not been executed yet"
        return f"{self.conditions.file} cannot be looked at: its file system has not answered"

    @property
    def wants_looker(self) -> bool:
        """Whether somebody has to wait for the file, and nobody does."""
        return bool(self.conditions.file) and self.file_is_known and not self.file_has_come and self.looker_fd < 0

    @property
    def is_looked_for(self) -> bool:
        """Whether the keeper still looks how the file is before the program, which it has not executed."""
        return bool(self.conditions.file) and not self.file_is_known

    def take_before(self, text: bytes) -> None:
        """The keeper has looked at the file."""
        self.file_before, self.file_is_known = read(text), True

    def take_look(self, said: bytes) -> None:
        """The looker says what it has found."""
        self.file_was_looked_at = True
        self.file_has_come = FOUND in said

    def close(self) -> None:
        """Nothing more is heard."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None


def _accepts(port: int) -> bool:
    """Whether something accepts at this port of the loopback address; on it a connection takes no time."""
    for family, host in _LOOPBACK:
        try:
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
                if probe.connect_ex((host, port)) != 0:
                    select.select([], [probe], [], _CONNECT_MS / 1000)
                probe.getpeername()  # OSError unless it is connected
                return True
        except OSError:
            continue  # refused, or a machine without this family
    return False


def _is_of(keeper: int, ancillary: list[tuple[int, int, bytes]], *, in_namespace: bool) -> bool:
    """Whether the sender is below `keeper`, or has ended and may have been.

    The kernel gives a sender outside this process's namespace the number 0.
    """
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) >= _CREDENTIALS.size:
            pid, user, _group = (int(value) for value in _CREDENTIALS.unpack_from(data))
            parents = read_parents()
            if pid and pid not in parents:
                return in_namespace or user == os.geteuid() or user in _users_below(keeper, parents)
            while pid in parents and pid != keeper:
                pid = parents[pid]
            return pid == keeper
    return False


def _users_below(keeper: int, parents: dict[int, int]) -> set[int]:
    """The users of what runs below a keeper."""
    found = set()
    for pid in descendants([keeper], parents):
        try:
            found.add(os.stat(f"/proc/{pid}").st_uid)
        except OSError:
            continue  # it has just ended
    return found
