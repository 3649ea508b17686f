"""The log writer: the only process of a node that writes its log, and HOME/guard.json; nobody waits for it (P7.9).

The file system of a log may hang (a dead NFS server, a dead disk), and a process that waits for one cannot be ended
before it answers. So standard output and standard error of guard, lease writer, init, runner and daemon are a pipe that
takes what fits and never blocks, and this process, which nothing depends on, is at its other end. Only it has the
descriptors that the guard was started with: a process that ends waits for the file systems of what it has open.

It is no child of the guard, which in a process tree must hear from the kernel that it has no child left, and it takes
no signal but SIGKILL. It ends when nobody can write to the pipe any more. Where it is killed, lines may be lost, and
its standby takes its place (`standby.py`).

Channel for the guard's state file, SOCK_SEQPACKET: `remove`, or the new content of the file.

Where the log is a file named by MUSTER_LOG_FILE, it is kept bounded here: its contents are copied to FILE.1, and it is
emptied. Nothing is lost in between, as nobody else writes to it.
"""

import _thread
import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import stat
from typing import NamedTuple, NoReturn

from muster.drivers.image.deadman import set_process_name
from muster.drivers.image.log_lines import FILE, FILE_BYTES, Log
from muster.drivers.image.process_tree import fork_into
from muster.drivers.image.processes import LOG_WRITER
from muster.drivers.image.standby import Standby

DEFAULT_BYTES = 8 << 20
LEAST_BYTES = 64 << 10
KEPT = 2  # older files: FILE.1, FILE.2
REMOVE = b"remove"
NOTHING_YET = b"{}"  # keeps the file's place on a disk that fills up meanwhile
_PIPE_BYTES = 1 << 20  # what waits for the file system; more is lost, and counted by who wanted to write it
_PACKET_BYTES = 4096
_COPY_BYTES = 1 << 20
_SET_PIPE_BYTES = 1031  # F_SETPIPE_SZ


class LogWriter(NamedTuple):
    """The guard's side."""

    pid: int
    state: socket.socket
    ended: int  # a pipe that closes when the log writer has ended

    def tell_state(self, content: bytes) -> bool:
        """Replace the state file, or remove it (`REMOVE`); False if that is to be said again. Never waits."""
        try:
            self.state.send(content, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True  # it has been killed: nobody is left to tell
        return True

    def finish(self, bound_ms: int) -> None:
        """At the very end of the guard: let what was said arrive, but wait for that no longer than `bound_ms`."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        self.state.close()
        poll = select.poll()
        poll.register(self.ended, select.POLLIN)
        poll.poll(bound_ms)


def start_log_writer(name: str, state_path: str) -> LogWriter:
    """Fork the log writer of node `name`; from now on this process and its children log through it. Raises `OSError`.

    Nothing of a real file system may stay open here, so standard input goes too.
    """
    lines_read, lines_write = os.pipe()
    ended_read, ended_write = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(OSError):  # beyond what one user may have in pipes: the usual size does
        fcntl.fcntl(lines_write, _SET_PIPE_BYTES, _PIPE_BYTES)
    os.set_blocking(lines_write, False)

    def become_writer() -> NoReturn:
        os.close(lines_write)
        os.close(ended_read)
        ours.close()
        os.setsid()
        fork_into(lambda: _Writer(name, lines_read, theirs, state_path, ended_write).loop())
        os._exit(0)

    os.waitpid(fork_into(become_writer), 0)
    for descriptor in (lines_read, ended_write):
        os.close(descriptor)
    theirs.close()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for descriptor in (1, 2):
        os.dup2(lines_write, descriptor)
    os.close(nothing)
    os.close(lines_write)
    return LogWriter(int(ours.recv(_PACKET_BYTES) or b"0"), ours, ended_read)


class _Writer:
    def __init__(
        self, name: str, lines: int, state: socket.socket, state_path: str, ended: int, times: int = 0
    ) -> None:
        """`ended` closes with the last writer; `times`: how many were killed before."""
        self._name, self._lines, self._state, self._state_path = name, lines, state, state_path
        self._ended, self._times = ended, times
        self._standby = Standby(self._taken_over, (lines, state.fileno(), ended), (), times)
        self._log = Log(name, "log", self._say)
        self._path = os.environ.get(FILE)
        limit = os.environ.get(FILE_BYTES, "")
        self._limit_bytes = max(LEAST_BYTES, int(limit) if limit.isascii() and limit.isdecimal() else DEFAULT_BYTES)
        self._lost_bytes = 0  # since the log took no more
        self._not_rotated = ""  # why, as last said

    def loop(self) -> NoReturn:
        set_process_name(LOG_WRITER)
        if self._times:
            text = "the log writer was killed: another one has taken its place, and some lines may be lost"
            self._log.tell("warning", "log writer killed", text)
        else:
            self._state.send(b"%d" % os.getpid())
        signal.signal(signal.SIGCHLD, self._on_child)
        self._standby.start()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        told = _thread.allocate_lock()
        told.acquire()
        # A thread, so that a log that hangs keeps nobody from finding the node's processes.
        _thread.start_new_thread(self._keep_state, (told,))
        while data := os.read(self._lines, LEAST_BYTES):
            if self._write(data):
                self._keep_bounded()
        told.acquire()
        self._standby.done()
        os._exit(0)

    def _on_child(self, _number: int, _frame: object) -> None:
        """The standby was killed."""
        pid, _status = os.waitpid(-1, os.WNOHANG)
        if self._standby.ended(pid):
            self._standby.start()

    def _taken_over(self, _handed: tuple[int, ...], times: int) -> NoReturn:
        _Writer(self._name, self._lines, self._state, self._state_path, self._ended, times).loop()

    def _keep_state(self, told: _thread.LockType) -> None:
        while self._take_state():
            pass
        told.release()

    def _write(self, data: bytes) -> bool:
        if self._lost_bytes:
            lost, self._lost_bytes = self._lost_bytes, 0
            if not self._log.tell("error", "lines lost", f"{lost} bytes of the log could not be written to it"):
                self._lost_bytes = lost
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(2, left) :]
        except BlockingIOError:  # it was handed a log that does not block; here that is waited for
            select.select((), (2,), ())
            return self._write(bytes(left))
        except OSError:  # a full disk, a closed terminal
            self._lost_bytes += len(left)
            return False
        return True

    def _say(self, line: str) -> bool:
        try:
            os.write(2, f"{line}\n".encode(errors="backslashreplace"))
        except OSError:
            return False
        return True

    def _take_state(self) -> bool:
        try:
            packet = self._state.recv(_PACKET_BYTES)
        except OSError:
            return False
        try:
            if packet == REMOVE:
                os.unlink(self._state_path)
            elif packet:
                write_state(self._state_path, packet)
        except FileNotFoundError:
            pass  # it was never written
        except OSError as error:
            text = f"cannot write {self._state_path}: {error.strerror}"
            self._log.tell("warning", "state not written", f"{text}; `muster dev` will not find this node's processes")
        return bool(packet)

    def _keep_bounded(self) -> None:
        if self._path is None:
            return
        try:
            if os.fstat(2).st_size > self._limit_bytes:
                rotate(self._path, self._limit_bytes)
            self._not_rotated = ""
        except OSError as error:
            if error.strerror != self._not_rotated:  # once each cause: the disk may be full, and this line adds to it
                text = f"{self._path}: {error.strerror}; make room"
                self._log.tell("warning", "log not rotated", text)
            self._not_rotated = error.strerror or "?"


def write_state(path: str, content: bytes) -> None:
    """Replace the guard's state file at once: a reader sees the old or the new one. Raises `OSError`.

    On a full disk it is written where it is, as that takes no room: a reader may then see it half written, and reads
    it again.
    """
    try:
        with open(f"{path}.new", "wb") as file:
            file.write(content)
        os.rename(f"{path}.new", path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _write_in_place(path, content)
        with contextlib.suppress(OSError):
            os.unlink(f"{path}.new")


def _write_in_place(path: str, content: bytes) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.write(content.ljust(os.fstat(file.fileno()).st_size))  # what is longer before goes, and no block does


def rotate(path: str, limit_bytes: int) -> None:
    """Move what `path` holds to FILE.1, at most twice the limit of it, the newest; and empty it. Raises `OSError`."""
    draft = f"{path}.new"
    try:
        with open(path, "rb") as source, open(draft, "wb") as target:
            found = os.fstat(source.fileno())
            os.fchmod(target.fileno(), stat.S_IMODE(found.st_mode))
            source.seek(max(0, found.st_size - 2 * limit_bytes))
            while part := source.read(_COPY_BYTES):
                target.write(part)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    finally:
        # bounded even where nothing can be kept: a log must not fill the disk that its node needs
        os.truncate(path, 0)
    for number in range(KEPT, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}.{number - 1}", f"{path}.{number}")
    os.replace(draft, f"{path}.1")
