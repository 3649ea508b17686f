"""Locks for asyncio programs."""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterable
from json.encoder import encode_basestring_ascii as quoted
from types import TracebackType
from typing import Any, Self, cast

from muster.client.address import socket_path
from muster.client.locks.exchange import Exchange
from muster.client.locks.grants import AnySpace, Granted, Knowledge, Wish
from muster.client.locks.terms import EX, SOCKET_FILE, LocksLost, Mode

CONNECT_S = 10.0

Document = dict[str, Any]
Blocking = Callable[["AsyncGrant", Mode], object]


class AsyncGrant(Granted):
    """A lock that this program has."""

    __slots__ = ("_exchange", "_on_blocking")

    def __init__(self, exchange: Exchange, known: Knowledge, on_blocking: Blocking | None) -> None:
        super().__init__(known)
        self._exchange, self._on_blocking = exchange, on_blocking

    async def convert(
        self, mode: Mode, *, value: bytes | None = None, no_queue: bool = False, timeout_s: float = 0.0
    ) -> None:
        """Another mode; `value` is written to the block where a writer gives up or keeps its mode.

        Raises `NotGranted`: the lock is what it was; `Refused`; `LocksLost`.
        """
        known = self.known
        asked = known.conversion(mode, value, no_queue, timeout_s)
        known.take(await self._exchange.ask("convert", asked, known.where, known.take))

    async def unlock(self, value: bytes | None = None) -> None:
        """Give it up; `value` is written to the block by a writer. Raises `Refused`, `LocksLost`."""
        known = self.known
        self._exchange.granted.pop(known.lock, None)
        await self._exchange.ask("unlock", known.unlocking(value), known.where)

    def somebody_waits(self, mode: int) -> None:
        """To have it in this mode."""
        if self._on_blocking is not None:
            self._on_blocking(self, Mode(mode))

    def lose(self) -> None:
        """It is this program's no more."""
        self.known.is_lost = True


class AsyncLocking:
    """A lock for the time of a block: `async with space.lock("42", EX) as grant`.

    When the lock is lost, the task in the block is cancelled, and the block ends with `LocksLost`.
    """

    def __init__(self, space: "AsyncSpace", wish: Wish, on_blocking: Blocking | None) -> None:
        self._space, self._wish, self._on_blocking = space, wish, on_blocking
        self._grant: AsyncGrant | None = None
        self._task: asyncio.Task[Any] | None = None
        self._why: LocksLost | None = None

    async def __aenter__(self) -> AsyncGrant:
        self._grant = await self._space.grant(self._wish, self._on_blocking)
        self._task = asyncio.current_task()
        self._space.exchange.blocks.add(self)
        if self._space.exchange.failure is not None:
            self.interrupt(self._space.exchange.failure)
        return self._grant

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._grant is not None
        exchange = self._space.exchange
        exchange.blocks.discard(self)
        if self._why is not None and self._task is not None:
            self._task.uncancel()
        if not exchange.is_over:
            with contextlib.suppress(LocksLost):
                await self._grant.unlock()
        if self._why is not None:
            raise self._why

    def interrupt(self, why: LocksLost) -> None:
        """The lock is lost: the block ends."""
        self._why = why
        if self._task is not None:
            self._task.cancel()


class AsyncSpace(AnySpace[AsyncLocking]):
    """A lockspace of the cluster."""

    def __init__(self, exchange: Exchange, name: str) -> None:
        super().__init__(name)
        self.exchange = exchange
        self._quoted = quoted(name)

    def _block(self, wish: Wish, on_blocking: Blocking | None) -> AsyncLocking:
        return AsyncLocking(self, wish, on_blocking)

    async def acquire(
        self,
        name: str,
        mode: Mode = EX,
        *,
        no_queue: bool = False,
        timeout_s: float = 0.0,
        on_blocking: Blocking | None = None,
    ) -> AsyncGrant:
        """A lock, when it is granted: without an end after `timeout_s` 0, and with `no_queue` at once or not at all.

        `on_blocking(grant, mode)` is called when somebody waits to have it in `mode`. Raises `NotGranted`, `Refused`,
        `LocksLost`. A task that is cancelled while it waits takes its request back.
        """
        return await self.grant(Wish(name, mode, no_queue, timeout_s), on_blocking)

    async def grant(self, wish: Wish, on_blocking: Blocking | None) -> AsyncGrant:
        """What was wished for; as `acquire`."""
        exchange, known = self.exchange, Knowledge(self.name, wish.name)
        asked = wish.words(self._quoted)
        known.take(await exchange.ask("lock", asked, known.where, exchange.give_back))
        grant = exchange.granted[known.lock] = AsyncGrant(exchange, known, on_blocking)
        if exchange.failure is not None:  # it came together with the loss, which has marked all others
            grant.lose()
        return grant


class AsyncLocks:
    """A connection to the lock process of one node; made by `connect_async`."""

    def __init__(self, exchange: Exchange, node: str, spaces: list[str]) -> None:
        self.exchange, self.node = exchange, node
        self.spaces = spaces  # the lockspaces, when this was connected

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return self.exchange.is_over

    def space(self, name: str) -> AsyncSpace:
        """A lockspace, by its name."""
        return AsyncSpace(self.exchange, name)

    async def show(self, **wanted: str | int) -> Document:
        """One page of what is locked in the cluster: `space`, `name`, `prefix`, `after`, `limit`. Raises `Refused`."""
        return cast("Document", (await self.exchange.ask("show", json.dumps(wanted), "lock show"))[2])

    async def break_holders(self, space: str, name: str, *, confirmed_dead: bool = False) -> Document:
        """End the holders of a resource; `confirmed_dead`: they are, by the caller's word. Raises `Refused`."""
        wanted = {"space": space, "name": name, "confirmed": confirmed_dead}
        return cast("Document", (await self.exchange.ask("break", json.dumps(wanted), "lock break"))[2])

    async def close(self) -> None:
        """Give up all that is held, then end the connection."""
        grants = list(self.exchange.granted.values())
        if not self.exchange.is_over:
            given_up = (grant.unlock() for grant in grants if isinstance(grant, AsyncGrant))
            await asyncio.gather(*given_up, return_exceptions=True)
        self.exchange.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


async def connect_async(
    *,
    directory: str | os.PathLike[str] | None = None,
    node: str | None = None,
    socket: str | os.PathLike[str] | None = None,
    timeout_s: float = CONNECT_S,
    processes: Iterable[int] = (),
    on_lost: Callable[[LocksLost], object] | None = None,
) -> AsyncLocks:
    """Connect to the lock process of a node; `directory`, `node` and `socket` as for `muster.client.register`.

    `socket` is the control socket of the node, beside which that of the locks is. `processes`: descriptors (pidfds) of
    further processes that hold with this one: what is locked is free when all of them have ended. `on_lost` is called
    when the locks are lost. Raises `Unreachable`, `Refused`.
    """
    control = socket_path(directory, node, socket)
    exchange = Exchange(os.path.join(os.path.dirname(control), SOCKET_FILE))
    welcome = await exchange.begin(processes, timeout_s)
    exchange.on_lost = on_lost
    return AsyncLocks(exchange, welcome["node"], welcome["spaces"])
