"""The blocking client of a node's control socket: queries and operations (SPEC 8.1, 9.1; docs/CLIENT.md).

It connects for each call and keeps nothing between them, so several threads may use one. It imports little: a command
must start fast. The protocol is described in `daemon/socket/server.py`.
"""

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from typing import Any, TypedDict

from muster.client.address import reachable, socket_path
from muster.client.answers import FIRST_PAUSE_S, LONGEST_PAUSE_S, Document, answer_in
from muster.client.errors import ClientError, ReplyLost, Unreachable

DEFAULT_TIMEOUT_S = 30.0
MAXIMUM_ANSWER_BYTES = 256 * 1024 * 1024
_PIECE_BYTES = 256 * 1024


PART = ":"  # between the identity of a command and which of its operations it is


def new_identity() -> str:
    """An identity for an operation, which nobody else chooses."""
    return os.urandom(16).hex()


class Done(TypedDict):
    """What an operation answers (docs/JSON.md, "every change"): `index` is for `at_least` of a query of any node."""

    cluster: str
    node: str
    node_state: str
    index: int
    term: int
    outcome: str
    identity: str


class ControlClient:
    """Talks to the node whose control socket is `path`; made by `control_client`. `timeout_s` bounds each call.

    Raises `Refused` where the daemon refuses, `Unreachable` where none answers, `ReplyLost` where it does not answer in
    time; all are `ClientError`.
    """

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.path = os.fspath(path)
        self.timeout_s = timeout_s

    def query(self, name: str, /, **arguments: Any) -> Document:
        """The result of a query: the keys are those of docs/JSON.md.

        `at_least=INDEX` waits until the node has got to that commit index, `wait_ms` for how long (P9.2).
        """
        found: Document = self._call({"query": name, "arguments": arguments}, time.monotonic() + self.timeout_s)
        return found

    def operate(self, name: str, identity: str = "", /, **arguments: Any) -> Done:
        """Carry out an operation, once: after a lost reply it is sent again under the same identity (SPEC 9.1).

        `identity`: one that the caller has chosen; what was carried out under it is answered from its record.
        """
        given, identity = identity.partition(PART)[0], identity or new_identity()
        request = {"operation": name, "identity": identity, "arguments": arguments}
        deadline = time.monotonic() + self.timeout_s
        pause_s = FIRST_PAUSE_S
        sent = False
        while True:
            try:
                done: Done = self._call(request, deadline)
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
                    raise ReplyLost(error.what, f"operation {name} ({identity}) at {self.path}", advice) from error
            else:
                return done
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def watch(self, name: str = "watch", /, **arguments: Any) -> Iterator[Any]:
        """The results of a query that goes on: the first within the time limit, the others when they come.

        `watch` gives the status, at once and again whenever it has changed. Raises as `query`; `ReplyLost` where the
        daemon ends.
        """
        request = {"query": name, "arguments": arguments}
        deadline = time.monotonic() + self.timeout_s
        with self._connect(deadline) as connection:
            lines = self._exchange(connection, request, deadline)
            for answer in lines:
                has_more = answer.get("more", False)
                if has_more or answer.get("result") is not None:
                    yield answer.get("result")
                if not has_more:
                    return

    def _call(self, request: dict[str, Any], deadline: float) -> Any:
        with self._connect(deadline) as connection:
            return next(self._exchange(connection, request, deadline)).get("result")

    def _connect(self, deadline: float) -> socket.socket:
        where = f"control socket {self.path}"
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with reachable(self.path) as address:
                _connect_patiently(connection, address, deadline)
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
                raise Unreachable("you may not enter its directory", where, advice) from error
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
                yield answer_in(answer, where)
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


def _connect_patiently(connection: socket.socket, address: str, deadline: float) -> None:
    while True:
        connection.settimeout(_remaining_s(deadline))
        try:
            connection.connect(address)
        except BlockingIOError:  # a Unix socket does not wait for a place in a full backlog
            time.sleep(FIRST_PAUSE_S)
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


def control_client(
    *,
    directory: str | os.PathLike[str] | None = None,
    node: str | None = None,
    socket: str | os.PathLike[str] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> ControlClient:
    """A client of one node's control socket, for queries and operations. Raises `ValueError` for its own arguments.

    `directory` and `node` name a node of a development cluster, `socket` the control socket of any; without them it is
    this machine's own node.
    """
    if not 0 < timeout_s < float("inf"):
        raise ValueError("give timeout_s more than 0 seconds")
    return ControlClient(socket_path(directory, node, socket), timeout_s)
