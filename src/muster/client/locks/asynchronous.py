"""Locks for asyncio programs."""

import asyncio
import base64
import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable
from json.encoder import encode_basestring_ascii as quoted
from types import TracebackType
from typing import Any, Self, cast

from muster.client.address import socket_path
from muster.client.locks.exchange import Exchange, Told
from muster.client.locks.terms import EX, MODES, SOCKET_FILE, LocksLost, Mode, Token

CONNECT_S = 10.0

Document = dict[str, Any]
Blocking = Callable[["AsyncGrant", Mode], object]


class AsyncGrant:
    """A lock that this program has."""

    __slots__ = ("_exchange", "_on_blocking", "is_lost", "lock", "mode", "name", "space", "token", "valid", "value")

    def __init__(self, exchange: Exchange, space: str, name: str, on_blocking: Blocking | None) -> None:
        self._exchange, self.space, self.name = exchange, space, name
        self._on_blocking = on_blocking
        self.lock = 0
        self.mode: Mode = Mode.NL
        self.token = Token(0, 0)
        self.value = b""  # the value block, as it was granted
        self.valid = True  # whether the block is what was written last: a writer may have been lost
        self.is_lost = False

    def take(self, told: Told) -> None:
        """What the lock process has granted."""
        _, _, self.lock, mode, epoch, counter, value, self.valid = told
        self.mode, self.token = Mode(mode), Token(epoch, counter)
        self.value = base64.b64decode(value) if value else b""

    async def convert(
        self, mode: Mode, *, value: bytes | None = None, no_queue: bool = False, timeout_s: float = 0.0
    ) -> None:
        """Another mode; `value` is written to the block where a writer gives up or keeps its mode.

        Raises `NotGranted`: the lock is what it was; `Refused`; `LocksLost`.
        """
        asked = f"{self.lock},{_mode(mode):d},{_truth(no_queue)},{_wait_ms(timeout_s)},{_value(value)}"
        self.take(await self._exchange.ask("convert", asked, self.where, self.take))

    async def unlock(self, value: bytes | None = None) -> None:
        """Give it up; `value` is written to the block by a writer. Raises `Refused`, `LocksLost`."""
        self._exchange.granted.pop(self.lock, None)
        await self._exchange.ask("unlock", f"{self.lock},{_value(value)}", self.where)

    @property
    def where(self) -> str:
        """What errors name as their place."""
        return f"lock {self.space}:{self.name}"

    def somebody_waits(self, mode: int) -> None:
        """To have it in this mode."""
        if self._on_blocking is not None:
            self._on_blocking(self, Mode(mode))

    def lose(self) -> None:
        """It is this program's no more."""
        self.is_lost = True


class AsyncLocking:
    """A lock for the time of a block: `async with space.lock("42", EX) as grant`.

    When the lock is lost, the task in the block is cancelled, and the block ends with `LocksLost`.
    """

    def __init__(
        self, space: "AsyncSpace", name: str, mode: Mode, no_queue: bool, timeout_s: float, on_blocking: Blocking | None
    ) -> None:
        self._space, self._name, self._mode, self._no_queue = space, name, mode, no_queue
        self._timeout_s, self._on_blocking = timeout_s, on_blocking
        self._grant: AsyncGrant | None = None
        self._task: asyncio.Task[Any] | None = None
        self._why: LocksLost | None = None

    async def __aenter__(self) -> AsyncGrant:
        self._grant = await self._space.acquire(
            self._name, self._mode, no_queue=self._no_queue, timeout_s=self._timeout_s, on_blocking=self._on_blocking
        )
        self._task = asyncio.current_task()
        self._space.exchange.blocks.add(self)
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


class AsyncSpace:
    """A lockspace of the cluster."""

    def __init__(self, exchange: Exchange, name: str) -> None:
        self.exchange, self.name = exchange, name
        self._quoted = quoted(name)

    def lock(
        self,
        name: str,
        mode: Mode = EX,
        *,
        no_queue: bool = False,
        timeout_s: float = 0.0,
        on_blocking: Blocking | None = None,
    ) -> AsyncLocking:
        """A lock for the time of an `async with` block; the arguments are those of `acquire`."""
        return AsyncLocking(self, name, mode, no_queue, timeout_s, on_blocking)

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
        exchange = self.exchange
        grant = AsyncGrant(exchange, self.name, name, on_blocking)
        asked = f"{self._quoted},{quoted(name)},{_mode(mode):d},{_truth(no_queue)},{_wait_ms(timeout_s)}"
        grant.take(await exchange.ask("lock", asked, grant.where, exchange.give_back))
        exchange.granted[grant.lock] = grant
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


def _mode(mode: Mode) -> Mode:
    if not isinstance(mode, Mode):
        raise TypeError(f"mode is {mode!r}: pass one of muster.locks: {MODES}")
    return mode


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _wait_ms(timeout_s: float) -> int:
    if not 0 <= timeout_s < math.inf:
        raise ValueError("timeout_s is 0 (for ever) or more seconds")
    return math.ceil(timeout_s * 1000)


def _value(value: bytes | None) -> str:
    return "null" if value is None else f'"{base64.b64encode(value).decode()}"'


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
