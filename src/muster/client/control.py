"""The blocking client of a node's control socket, for the command line (SPEC 8.1, 9.1).

Imports little: a command must start fast. The protocol is described in `daemon/socket/server.py`.
"""

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from typing import Any

from muster.client.errors import ClientError, ReplyLost, Unreachable

DEFAULT_TIMEOUT_S = 30.0
MAXIMUM_ANSWER_BYTES = 256 * 1024 * 1024
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_SUN_PATH_BYTES = 107  # sockaddr_un, without its final zero
_PIECE_BYTES = 256 * 1024


PART = ":"  # between the identity of a command and which of its operations it is


def new_identity() -> str:
    """An identity for an operation, which nobody else chooses."""
    return os.urandom(16).hex()


class ControlClient:
    """Talks to the node whose control socket is `path`. `timeout_s` bounds each call. Raises `ClientError`."""

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.path = os.fspath(path)
        self.timeout_s = timeout_s

    def query(self, name: str, /, **arguments: Any) -> Any:
        """The result of a query."""
        return self._call({"query": name, "arguments": arguments}, time.monotonic() + self.timeout_s)

    def operate(self, name: str, identity: str = "", /, **arguments: Any) -> Any:
        """Carry out an operation, once: after a lost reply it is sent again under the same identity (SPEC 9.1).

        `identity`: one that the caller has chosen; what was carried out under it is answered from its record.
        """
        given, identity = identity.partition(PART)[0], identity or new_identity()
        request = {"operation": name, "identity": identity, "arguments": arguments}
        deadline = time.monotonic() + self.timeout_s
        pause_s = _FIRST_PAUSE_S
        sent = False
        while True:
            try:
                return self._call(request, deadline)
            except (ReplyLost, Unreachable) as error:
                sent = sent or isinstance(error, ReplyLost)
                if not sent:
                    raise
                if time.monotonic() + pause_s >= deadline:
                    advice = "it may have been carried out: " + (
                        f"repeated with --identity {given}, it cannot run twice"
                        if given
                        else "look before you repeat it"
                    )
                    raise ClientError(error.what, f"operation {name} ({identity}) at {self.path}", advice) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def watch(self, name: str = "watch", /, **arguments: Any) -> Iterator[Any]:
        """The results of a query that goes on: the first within the time limit, the others when they come."""
        request = {"query": name, "arguments": arguments}
        deadline = time.monotonic() + self.timeout_s
        with self._connect(deadline) as connection:
            lines = self._exchange(connection, request, deadline)
            while True:
                answer = next(lines)
                if not answer.get("more", False) and answer.get("result") is None:
                    return
                yield answer.get("result")
                if not answer.get("more", False):
                    return

    def _call(self, request: dict[str, Any], deadline: float) -> Any:
        with self._connect(deadline) as connection:
            return next(self._exchange(connection, request, deadline)).get("result")

    def _connect(self, deadline: float) -> socket.socket:
        where = f"control socket {self.path}"
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _connect_to(connection, self.path, deadline)
        except OSError as error:
            connection.close()
            if isinstance(error, FileNotFoundError):
                advice = "start the node, or name its directory with --dir and the node with --node"
                raise Unreachable("there is no such socket", where, advice) from error
            if isinstance(error, ConnectionRefusedError) and not _is_socket(self.path):
                advice = "give the path of a node's control.sock, or its directory with --dir"
                raise Unreachable("that is no socket", where, advice) from error
            if isinstance(error, ConnectionRefusedError):
                advice = "the node is down or its daemon restarts: start it, or try again"
                raise Unreachable("no daemon serves it", where, advice) from error
            if isinstance(error, PermissionError):
                advice = "run as the user that runs musterd, or let others pass: chmod 711 the node's home"
                raise Unreachable("its directory lets you not pass", where, advice) from error
            if isinstance(error, TimeoutError):
                advice = "the daemon is stopped or overloaded: look at its log"
                raise Unreachable(f"no connection within {self.timeout_s:g} s", where, advice) from error
            raise Unreachable(error.strerror or str(error), where, "give the path of a control socket") from error
        return connection

    def _exchange(
        self, connection: socket.socket, request: dict[str, Any], deadline: float
    ) -> Iterator[dict[str, Any]]:
        """Send the request; yield the answers. Raises what the daemon answers as an error, and `ReplyLost`."""
        where = f"control socket {self.path}"
        try:
            line = _encoded(request, where)
            failure: OSError | None = None
            try:
                connection.sendall(line + b"\n")
            except (BrokenPipeError, ConnectionResetError) as error:
                failure = error  # it may have said why, before it closed the connection
            for answer in _lines(connection, deadline):
                yield _checked(answer, where)
            raise ReplyLost("the daemon closed the connection without an answer", where, "try again") from failure
        except TimeoutError as error:
            advice = "the daemon is stopped, overloaded, or waits for other nodes: see `muster status` and its log"
            raise ReplyLost(f"no answer within {self.timeout_s:g} s", where, advice) from error
        except OSError as error:
            raise ReplyLost(f"the connection broke: {error.strerror or error}", where, "try again") from error


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _encoded(request: dict[str, Any], where: str) -> bytes:
    try:
        return json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # words of a command line that are no text
        what = f"{error.object[error.start : error.end]!r} is no UTF-8 text"
        raise ClientError(what, where, "write it as UTF-8") from error


def _remaining_s(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError
    return remaining_s


def _connect_to(connection: socket.socket, path: str, deadline: float) -> None:
    """Connect, also where the path does not fit into a socket address, and where many others do so now."""
    if len(os.fsencode(path)) <= _SUN_PATH_BYTES:
        _connect_patiently(connection, path, deadline)
        return
    directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _connect_patiently(connection, f"/proc/self/fd/{directory}/{os.path.basename(path)}", deadline)
    finally:
        os.close(directory)


def _connect_patiently(connection: socket.socket, address: str, deadline: float) -> None:
    while True:
        connection.settimeout(_remaining_s(deadline))
        try:
            connection.connect(address)
        except BlockingIOError:  # a Unix socket does not wait for a place in a full backlog
            time.sleep(_FIRST_PAUSE_S)
        else:
            return


def _lines(connection: socket.socket, deadline: float | None) -> Iterator[bytes]:
    """The lines that arrive, until the other end closes; `deadline` is for the first."""
    inbox = bytearray()
    while True:
        connection.settimeout(_remaining_s(deadline))
        data = connection.recv(_PIECE_BYTES)
        if not data:
            return
        start = len(inbox)
        inbox += data
        while (end := inbox.find(b"\n", start)) >= 0:
            yield bytes(inbox[:end])
            del inbox[: end + 1]
            start, deadline = 0, None
        if len(inbox) > MAXIMUM_ANSWER_BYTES:
            text = f"an answer of more than {MAXIMUM_ANSWER_BYTES} bytes"
            raise ClientError(text, "control socket", "report this as a defect")


def _checked(line: bytes, where: str) -> dict[str, Any]:
    """An answer with `ok` true. Raises `ClientError` for any other."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and answer.get("ok") is True:
        return answer
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        raise ClientError("what answers there is no Muster daemon", where, "check the path of the control socket")
    raise ClientError(*(str(error.get(key, "")) for key in ("what", "where", "next")))
