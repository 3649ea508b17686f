"""Watchers: programs that detect events and tell the node's event manager of each (SPEC 5.1, 5.2).

No threads, no asyncio.
The lines on the control socket: `muster/daemon/events/event_manager.py`. Two connections: one hears what is to be
detected, the other tells of occurrences.
"""

import contextlib
import json
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from muster.client.address import reachable, socket_path
from muster.client.answers import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    MAXIMUM_LINE_BYTES,
    Document,
    answer_in,
    foreign,
    unreachable,
)
from muster.client.errors import Lost, Refused, Unreachable

MAXIMUM_CHANGES = 4096  # that nobody has taken yet
RECONNECT_S = 10.0
UNKNOWN_WATCHER = "its token"  # where a daemon finds a connection missing that an earlier one had
NOT_WATCHED = "its event"  # where a daemon finds that the event is not enabled here, or not any more
_READ_BYTES = 64 * 1024


class Asked(NamedTuple):
    """An event that the watcher is asked to detect: its IN parameters, and what commands about it should be told."""

    event: str
    parameters: Mapping[str, str]
    environment: Mapping[str, str]
    surroundings: Mapping[str, Any] = {}  # user, folder and limits of such commands; nothing: as they are by default


class Change(NamedTuple):
    """A node has got into another state, by this entry of the cluster's journal."""

    entry: int
    node: str
    state: str
    previous: str
    incarnation: int


class Members:
    """How the nodes stand, and how they got there: each change once, also across connections (P8.8). Pure.

    Changes after entry `since` are told, if the daemon still knows them; -1: after the first connection.
    """

    def __init__(self, since: int = -1) -> None:
        self.known: dict[str, tuple[str, int]] = {}  # state and incarnation of each node
        self.changes: deque[Change] = deque(maxlen=MAXIMUM_CHANGES)  # not taken yet, oldest first
        self.is_current = False  # this connection has told how the nodes stand
        self.index = since

    def take(self, index: int, members: Mapping[str, Iterable[Any]]) -> None:
        """The nodes' states as of an entry: what differs from what was known has changed since."""
        self.is_current = True
        if index <= self.index:
            return  # told again by a connection that has just begun
        before, self.index = self.known, index
        self.known = {str(node): (str(state), int(incarnation)) for node, (state, incarnation) in members.items()}
        for node, (state, incarnation) in sorted(self.known.items()) if before else ():
            previous, earlier = before.get(node, ("inactive", 0))
            if state != previous or (incarnation != earlier and state != "inactive"):
                self.changes.append(Change(index, node, state, previous, incarnation))


class Orders:
    """What a watcher is asked to detect, as its stream tells it. Pure: lines in, changes out."""

    def __init__(self, members: Members | None = None) -> None:
        self.asked: dict[str, Asked] = {}
        self.members = members
        self._stale: set[str] = set()  # asked for before the connection broke, and not yet again

    @property
    def entry(self) -> int | None:
        """Up to where the nodes' states are known; None if they are not wanted."""
        return None if self.members is None else self.members.index

    def begin(self) -> None:
        """A connection begins: it repeats everything."""
        self._stale = set(self.asked)
        if self.members is not None:
            self.members.is_current = False

    def take(self, line: Document) -> bool:
        """One line of the stream; whether what is asked has changed."""
        match line:
            case {"watch": str(event), "in": dict(parameters), "environment": dict(environment)}:
                found = Asked(event, parameters, environment, line.get("surroundings") or {})
                self._stale.discard(event)
                before = self.asked.get(event)
                self.asked[event] = found
                return before != found
            case {"unwatch": str(event)}:
                return self.asked.pop(event, None) is not None
            case {"settled": True}:
                gone, self._stale = self._stale, set()
                for event in gone:
                    del self.asked[event]
                return bool(gone)
            case {"index": int(index), "members": dict(members)} if self.members is not None:
                self.members.take(index, members)
                return True
        return False


def watcher_request(name: str, events: Iterable[str], members: int | None = None) -> Document:
    """The request that connects a watcher. Raises `ValueError`."""
    found = list(events)
    if not name and not found:
        raise ValueError("give the name of the watcher, or the events that it detects")
    arguments = {"name": name, "events": found, "process": os.getpid(), "members": members}
    return {"query": "watcher", "arguments": arguments}


def occurrence_request(token: str, event: str, out: Mapping[str, str], asked: Asked | None) -> Document:
    """The request that tells of an occurrence: of the event as it was asked for, if it was."""
    arguments: Document = {"token": token, "event": event, "out": dict(out)}
    if asked is not None:
        arguments["in"] = dict(asked.parameters)
    return {"operation": "occurred", "identity": os.urandom(16).hex(), "arguments": arguments}


class _Lines:
    """One connection: lines of JSON, both ways. Raises `OSError`, `Refused`."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._inbox = bytearray()
        try:
            self.socket.settimeout(timeout_s)
            with reachable(path) as address:
                self.socket.connect(address)
        except BaseException:
            self.socket.close()
            raise

    def ask(self, request: Document) -> Document:
        """Send a request; the result of its answer, or of the first line of it."""
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        return self.result()

    def result(self) -> Document:
        """The next result; waits for it as long as the socket's time limit."""
        while True:
            line = self.line()
            if line is not None:
                return line
            data = self.socket.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError("the daemon has ended the connection")
            self._inbox += data

    def read(self) -> None:
        """Take in what is there, without waiting for more than the first byte."""
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the daemon has ended the connection")
        self._inbox += data

    def line(self) -> Document | None:
        """The next whole line's result, if one is here."""
        end = self._inbox.find(b"\n")
        if end < 0:
            if len(self._inbox) > MAXIMUM_LINE_BYTES:
                raise foreign()
            return None
        line = bytes(self._inbox[:end])
        del self._inbox[: end + 1]
        answer = answer_in(line)
        if answer.get("more") is False:
            raise ConnectionResetError("the daemon has ended the stream")
        result = answer.get("result")
        return result if isinstance(result, dict) else {}

    def close(self) -> None:
        """End the connection."""
        self.socket.close()


class Watcher:
    """A connected watcher; made by `watch`. Not for several threads at once."""

    def __init__(
        self,
        path: str,
        name: str,
        events: Iterable[str],
        timeout_s: float,
        reconnect_s: float,
        members: Members | None = None,
    ) -> None:
        """Connect. With `members` it hears of the nodes' states too, after what that knows. Raises `Refused`,
        `Unreachable`.
        """
        self._path, self._timeout_s, self._reconnect_s = path, timeout_s, reconnect_s
        self._name, self._events = name, list(events)
        self._orders = Orders(members)
        self._stream: _Lines | None = None
        self._calls: _Lines | None = None
        self._token = ""
        self.node = ""
        self.incarnation = 0
        self._connect(timeout_s)

    @property
    def asked(self) -> Mapping[str, Asked]:
        """What is to be detected now, by the name of the event."""
        return self._orders.asked

    @property
    def members(self) -> Mapping[str, tuple[str, int]]:
        """State and incarnation of each node, if the watcher was made with `members=True`."""
        return self._orders.members.known if self._orders.members is not None else {}

    def changes(self) -> list[Change]:
        """How the nodes' states have changed since it was asked last, oldest first; each change once."""
        found: list[Change] = []
        while self._orders.members is not None and self._orders.members.changes:
            found.append(self._orders.members.changes.popleft())
        return found

    def fileno(self) -> int:
        """The descriptor that is readable when `wait` has something to do."""
        if self._stream is None:
            raise Lost("the watcher is closed", "muster.client", "connect a new one")
        return self._stream.socket.fileno()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until what is asked or the nodes' states change, at most `timeout_s`; whether they have. Connects again when
        the daemon restarts.

        Raises `Lost` if it cannot, `Refused`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                if self._take_lines():
                    return True
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not select.select([self.fileno()], [], [], left_s)[0]:
                    return False
                assert self._stream is not None
                self._stream.read()
            except OSError:
                self._connect_again()

    def occurred(self, event: str, /, **out: str) -> str:
        """The event has occurred, with these OUT parameters; what was made of it: acted upon, debounced, over the rate.

        Raises `Refused` if it is not to be detected (any more), `Lost` if no daemon answers.
        """
        asked = self.asked.get(event)
        for attempt in (1, 2, 3):
            try:
                if self._calls is None:
                    self._calls = _Lines(self._path, self._timeout_s)
                return str(self._calls.ask(occurrence_request(self._token, event, out, asked))["verdict"])
            except OSError:
                self._close_calls()  # an idle one is ended by the daemon
                if attempt == 2:
                    self._connect_again()
            except Refused as refused:
                self._close_calls()
                if refused.where != UNKNOWN_WATCHER or attempt == 3:
                    raise
                self._connect_again()  # the daemon has been restarted
        raise Lost("the daemon does not answer", f"control socket {self._path}", "see to it that the node runs")

    def close(self) -> None:
        """Nothing more is detected."""
        self._close_calls()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _take_lines(self) -> bool:
        changed = False
        while self._stream is not None and (line := self._stream.line()) is not None:
            changed = self._orders.take(line) or changed
        return changed

    def _connect(self, timeout_s: float) -> None:
        try:
            request = watcher_request(self._name, self._events, self._orders.entry)
            self._stream = _Lines(self._path, timeout_s)
            first = self._stream.ask(request)
        except OSError as error:
            self.close()
            raise unreachable(self._path, error, timeout_s) from error
        except BaseException:
            self.close()
            raise
        self._token, self.node, self.incarnation = str(first["token"]), str(first["node"]), int(first["incarnation"])
        self._orders.begin()

    def _connect_again(self) -> None:
        self.close()
        if self._reconnect_s <= 0:
            raise Lost("the daemon has gone", f"control socket {self._path}", "connect a new watcher")
        deadline = time.monotonic() + self._reconnect_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                self._connect(self._timeout_s)
            except Unreachable as error:
                if time.monotonic() + pause_s >= deadline:
                    raise Lost(error.what, error.where, error.next_step) from error
            else:
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _close_calls(self) -> None:
        if self._calls is not None:
            with contextlib.suppress(OSError):
                self._calls.close()
            self._calls = None


def watch(
    name: str = "",
    *,
    events: Iterable[str] = (),
    members: bool = False,
    directory: str | os.PathLike[str] | None = None,
    node: str | None = None,
    socket: str | os.PathLike[str] | None = None,
    timeout_s: float = 15.0,
    reconnect_s: float = RECONNECT_S,
) -> Watcher:
    """Connect a watcher to a node. Raises `Refused`, `Unreachable`; `ValueError` for its own arguments.

    It is asked to detect the events whose definition names `name` as their watcher, and those in `events`, while they
    are enabled on that node. With `members` it also hears of the nodes' states. `directory` and `node` name a node of a
    development cluster, `socket` the control socket of any. `reconnect_s`: how long a daemon that is gone is waited
    for; 0: not at all.
    """
    path = socket_path(directory, node, socket)
    return Watcher(path, name, events, timeout_s, reconnect_s, Members() if members else None)
