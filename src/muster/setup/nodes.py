"""The nodes that a command can talk to, and talking to the first of them that answers (SPEC 8.1)."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muster.client import address
from muster.client.control import PART, ControlClient
from muster.client.errors import ClientError, ReplyLost, Unreachable
from muster.records.names import NAME, shown
from muster.setup.errors import Mistaken
from muster.setup.harmless import harmless_document

LOCAL_SOCKET = Path(address.LOCAL_SOCKET)
CLUSTER_FILE = "cluster.json"
SOCKET_FILE = address.SOCKET_FILE
PROBE_TIMEOUT_S = 2.0
_LONGEST_WAIT_MS = 60_000  # what a node waits at most
_WAIT_SHARE = 0.9  # of the time limit, so that the node's own answer arrives
Document = dict[str, Any]


def unknown_node(name: str, directory: Path, known: list[str]) -> Mistaken:
    """The error for a node that a development cluster does not have."""
    return Mistaken(
        f"there is no node {name!r}", f"development cluster {directory}", "its nodes are " + ", ".join(known)
    )


def development_homes(directory: Path) -> dict[str, Path]:
    """Each node's home in a development cluster. Raises `Mistaken` where there is none."""
    try:
        described = json.loads((directory / CLUSTER_FILE).read_text())
        names = [str(node["name"]) for node in described["nodes"]]
        if strange := [name for name in names if not NAME.fullmatch(name)]:
            raise ValueError(f"a node cannot be called {shown(strange[0])}")
        return {name: absolute(directory) / "nodes" / name for name in names}
    except FileNotFoundError:
        what = "there is no development cluster"
        next_step = f"make one: {command_about(directory, 'dev up')}"
    except PermissionError:
        what, next_step = "the directory is not readable", "run the command as the user who made the cluster"
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{CLUSTER_FILE} cannot be read: {error}"
        next_step = "remove the directory and make the cluster again"
    raise Mistaken(what, str(directory), next_step)


def absolute(directory: Path) -> Path:
    """The directory without symbolic links. Unlike `Path.resolve`, it has no error of its own for a loop of them."""
    return Path(os.path.realpath(directory))


def command_about(directory: Path, words: str) -> str:
    """The command line `muster WORDS` about a development cluster, ready to be copied into a shell."""
    return f"muster {words} --dir {shlex.quote(str(directory))}"


class Connection:
    """Talks to the first node that answers."""

    def __init__(
        self,
        sockets: dict[str, Path],
        timeout_s: float,
        at_least: int | None = None,
        identity: str = "",
        clean: Callable[[Any], Any] = harmless_document,
    ) -> None:
        self._sockets = sockets
        self._identity = identity  # of the command's operations; empty: a new one each time
        self._at_least = at_least
        self._timeout_s = timeout_s
        self._clean = clean  # what every answer passes before anybody sees it (P10.8)
        self._chosen: Path | None = None

    def query(self, query: str, /, **arguments: object) -> Document:
        """The answer to a query. Raises `Unreachable`, or `ClientError` when the node refuses it."""
        if self._at_least is not None:
            return self._query_at_least(self._at_least, query, arguments)
        if len(self._sockets) == 1:
            (socket,) = self._sockets.values()
            return self._ask(socket, self._timeout_s, query, arguments)
        fallback: Document | None = None
        failures: list[str] = []
        for node, socket in self._sockets.items():
            try:
                found = self._ask(socket, min(PROBE_TIMEOUT_S, self._timeout_s), query, arguments)
            except Unreachable as error:
                failures.append(f"{node}: {error.what}")
                continue
            if found.get("node_state", "joined") == "joined":
                return found
            fallback = fallback or found
        if fallback is not None:
            return fallback
        raise Unreachable("no node answers", "; ".join(failures), _how_to_see())

    def _query_at_least(self, index: int, query: str, arguments: dict[str, object]) -> Document:
        """The answer of a node once it has got to commit index `index`; the node waits for it (P9.2)."""
        self._at_least = None  # finding a node that answers needs no index
        try:
            socket = self._operator()
        finally:
            self._at_least = index
        wait_ms = min(_LONGEST_WAIT_MS, int(_WAIT_SHARE * 1000 * self._timeout_s))
        return self._ask(socket, self._timeout_s, query, {**arguments, "at_least": index, "wait_ms": wait_ms})

    def operate(self, operation: str, part: str = "", /, **arguments: object) -> Document:
        """Carry out an operation; returns when it is committed. Raises as `query`.

        `part` tells apart the operations of a command that has several: all have the identity of the command.
        """
        client = ControlClient(self._operator(), self._timeout_s)
        identity = self._identity + (f"{PART}{part}" if part and self._identity else "")
        try:
            answer: Document = self._clean(client.operate(operation, identity, **arguments))
        except ClientError as error:
            raise _classified(error) from error
        return answer

    def _operator(self) -> Path:
        """The socket of a joined node that answers, or of one that answers, found once."""
        if self._chosen is None:
            if len(self._sockets) == 1:
                (self._chosen,) = self._sockets.values()
            else:
                answered = self.query("status")
                self._chosen = self._sockets[str(answered["node"])]
        return self._chosen

    def _ask(self, socket: Path, timeout_s: float, name: str, arguments: dict[str, object]) -> Document:
        try:
            answer: Document = self._clean(ControlClient(socket, timeout_s).query(name, **arguments))
        except ClientError as error:
            raise _classified(error) from error
        return answer


def _classified(error: ClientError) -> ClientError:
    """`Unreachable` where there was no answer, whether or not the request had been sent: so the exit code says."""
    return Unreachable(error.what, error.where, error.next_step) if isinstance(error, ReplyLost) else error


def _how_to_see() -> str:
    return "see what runs: muster dev ls --dir DIR, or on a real machine: systemctl status musterd"
