"""Watchers for asyncio programs; see `watching.py`."""

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from muster.client.address import socket_path
from muster.client.answers import FIRST_PAUSE_S, LONGEST_PAUSE_S, unreachable
from muster.client.errors import ClientError, Lost, Refused
from muster.client.protocol import Streams, ask, connect, next_line
from muster.client.watching import (
    RECONNECT_S,
    UNKNOWN_WATCHER,
    Asked,
    Change,
    Members,
    Orders,
    occurrence_request,
    watcher_request,
)


class AsyncWatcher:
    """A connected watcher; made by `watch_async`."""

    def __init__(self, path: str, name: str, events: Iterable[str], reconnect_s: float, *, members: bool) -> None:
        self._path, self._reconnect_s = path, reconnect_s
        self._name, self._events = name, list(events)
        self._members = Members()
        self._orders = Orders(self._members if members else None)
        self._streams: Streams | None = None
        self._pump: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._failure: ClientError | None = None
        self._token = ""
        self.node = ""
        self.incarnation = 0

    @property
    def asked(self) -> Mapping[str, Asked]:
        """What is to be detected now, by the name of the event."""
        return self._orders.asked

    @property
    def members(self) -> Mapping[str, tuple[str, int]]:
        """State and incarnation of each node, if the watcher was made with `members=True`."""
        return self._members.known

    def changes(self) -> list[Change]:
        """How the nodes' states have changed since it was asked last, oldest first; each change once."""
        found = list(self._members.changes)
        self._members.changes.clear()
        return found

    async def start(self, timeout_s: float) -> None:
        """Connect. Raises `Refused`, `Unreachable`."""
        await self._connect(timeout_s)
        self._pump = asyncio.create_task(self._run())

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Until what is asked or the nodes' states change, at most `timeout_s`; whether they have. Raises `Lost`,
        `Refused`.
        """
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return False
        if self._failure is not None:
            raise self._failure
        self._changed.clear()
        return True

    async def occurred(self, event: str, /, **out: str) -> str:
        """The event has occurred, with these OUT parameters; what was made of it. Raises `Refused`, `Unreachable`."""
        asked = self.asked.get(event)
        deadline = time.monotonic() + self._reconnect_s
        while True:
            streams: Streams | None = None
            try:
                streams = await connect(self._path)
                answer = await ask(streams, occurrence_request(self._token, event, out, asked))
                return str(answer["result"]["verdict"])
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise unreachable(self._path, error, self._reconnect_s) from error
            except Refused as refused:  # by a daemon that has been restarted: the pump connects again
                if refused.where != UNKNOWN_WATCHER or time.monotonic() >= deadline:
                    raise
            finally:
                if streams is not None:
                    streams[1].close()
            await asyncio.sleep(FIRST_PAUSE_S)

    async def close(self) -> None:
        """Nothing more is detected."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        self._close_streams()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self) -> None:
        try:
            while True:
                await self._fetch()
                await self._connect_again()
        except ClientError as error:
            self._failure = error
            self._changed.set()

    async def _fetch(self) -> None:
        """Hear what is asked, until the connection ends."""
        assert self._streams is not None
        while True:
            try:
                answer = await next_line(self._streams[0])
            except OSError:
                return
            if answer is None or not answer.get("more", False):
                return
            if self._orders.take(answer["result"]):
                self._changed.set()

    async def _connect(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                self._streams = await connect(self._path)
                request = watcher_request(self._name, self._events, self._orders.entry)
                first = (await ask(self._streams, request))["result"]
        except (OSError, TimeoutError) as error:
            self._close_streams()
            raise unreachable(self._path, error, timeout_s) from error
        except BaseException:
            self._close_streams()
            raise
        self._token, self.node, self.incarnation = first["token"], first["node"], first["incarnation"]
        self._orders.begin()

    async def _connect_again(self) -> None:
        self._close_streams()
        deadline = time.monotonic() + self._reconnect_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._connect(max(FIRST_PAUSE_S, deadline - time.monotonic()))
            except Refused:
                raise
            except ClientError as error:
                if time.monotonic() + pause_s >= deadline:
                    raise Lost(error.what, error.where, error.next_step) from error
            else:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _close_streams(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def watch_async(
    name: str = "",
    *,
    events: Iterable[str] = (),
    members: bool = False,
    directory: str | os.PathLike[str] | None = None,
    node: str | None = None,
    socket: str | os.PathLike[str] | None = None,
    timeout_s: float = 15.0,
    reconnect_s: float = RECONNECT_S,
) -> AsyncWatcher:
    """Connect a watcher to a node; the arguments and errors are those of `watch`."""
    watcher = AsyncWatcher(socket_path(directory, node, socket), name, events, reconnect_s, members=members)
    await watcher.start(timeout_s)
    return watcher
