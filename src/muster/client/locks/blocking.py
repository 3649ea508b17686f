"""Locks for programs without asyncio: a thread of this package's own keeps the connection."""

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from muster.client.blocking import LoopThread
from muster.client.locks.asynchronous import CONNECT_S, AsyncGrant, AsyncLocks, connect_async
from muster.client.locks.terms import EX, LocksLost, Mode, Token

Blocking = Callable[["Grant", Mode], object]


class Grant:
    """A lock that this program has."""

    def __init__(self, loop: LoopThread, inner: AsyncGrant) -> None:
        self._loop, self._inner = loop, inner

    @property
    def token(self) -> Token:
        """Above that of every owner before."""
        return self._inner.token

    @property
    def mode(self) -> Mode:
        """What it has now."""
        return self._inner.mode

    @property
    def value(self) -> bytes:
        """The value block, as it was granted."""
        return self._inner.value

    @property
    def valid(self) -> bool:
        """Whether the block is what was written last: a writer may have been lost."""
        return self._inner.valid

    @property
    def is_lost(self) -> bool:
        """Whether it is this program's no more. What must not happen then must be guarded by the token all the same."""
        return self._inner.is_lost

    def convert(
        self, mode: Mode, *, value: bytes | None = None, no_queue: bool = False, timeout_s: float = 0.0
    ) -> None:
        """Another mode; as `AsyncGrant.convert`."""
        self._loop.call(self._inner.convert(mode, value=value, no_queue=no_queue, timeout_s=timeout_s))

    def unlock(self, value: bytes | None = None) -> None:
        """Give it up; `value` is written to the block by a writer. Raises `Refused`, `LocksLost`."""
        self._loop.call(self._inner.unlock(value))


class Locking:
    """A lock for the time of a block: `with space.lock("42", EX) as grant`."""

    def __init__(self, acquire: Callable[[], Grant], client: "Locks") -> None:
        self._acquire, self._client = acquire, client
        self._grant: Grant | None = None

    def __enter__(self) -> Grant:
        self._grant = self._acquire()
        return self._grant

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give it up. Raises `LocksLost` where it was lost in the block, unless the block has failed itself."""
        assert self._grant is not None
        if not self._client.is_lost:
            self._grant.unlock()
        if self._grant.is_lost and error is None:
            what = "the lock was lost while it was used"
            raise LocksLost(what, "muster.locks", "look whether the token has kept others' work safe")


class Space:
    """A lockspace of the cluster."""

    def __init__(self, client: "Locks", name: str) -> None:
        self._client, self.name = client, name

    def lock(
        self,
        name: str,
        mode: Mode = EX,
        *,
        no_queue: bool = False,
        timeout_s: float = 0.0,
        on_blocking: Blocking | None = None,
    ) -> Locking:
        """A lock for the time of a `with` block; the arguments are those of `acquire`."""
        return Locking(
            lambda: self.acquire(name, mode, no_queue=no_queue, timeout_s=timeout_s, on_blocking=on_blocking),
            self._client,
        )

    def acquire(
        self,
        name: str,
        mode: Mode = EX,
        *,
        no_queue: bool = False,
        timeout_s: float = 0.0,
        on_blocking: Blocking | None = None,
    ) -> Grant:
        """A lock, when it is granted; as `AsyncSpace.acquire`. `on_blocking` is called in a thread of this package."""
        loop, inner = self._client.parts
        blocked = None if on_blocking is None else lambda grant, wanted: on_blocking(Grant(loop, grant), wanted)
        space = inner.space(self.name)
        found = loop.call(space.acquire(name, mode, no_queue=no_queue, timeout_s=timeout_s, on_blocking=blocked))
        return Grant(loop, found)


class Locks:
    """A connection to the lock process of one node; made by `connect`. Several threads may use one."""

    def __init__(self, loop: LoopThread, inner: AsyncLocks) -> None:
        self.parts = loop, inner
        self._closed = False

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return self.parts[1].is_lost

    @property
    def spaces(self) -> list[str]:
        """The lockspaces, when this was connected."""
        return self.parts[1].spaces

    def space(self, name: str) -> Space:
        """A lockspace, by its name."""
        return Space(self, name)

    def show(self, **wanted: str | int) -> dict[str, Any]:
        """One page of what is locked in the cluster; as `AsyncLocks.show`."""
        loop, inner = self.parts
        return loop.call(inner.show(**wanted))

    def break_holders(self, space: str, name: str, *, confirmed_dead: bool = False) -> dict[str, Any]:
        """End the holders of a resource; as `AsyncLocks.break_holders`."""
        loop, inner = self.parts
        return loop.call(inner.break_holders(space, name, confirmed_dead=confirmed_dead))

    def close(self) -> None:
        """Give up all that is held, then end the connection."""
        if not self._closed:
            self._closed = True
            loop, inner = self.parts
            try:
                loop.call(inner.close())
            finally:
                loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def connect(
    *,
    directory: str | os.PathLike[str] | None = None,
    node: str | None = None,
    socket: str | os.PathLike[str] | None = None,
    timeout_s: float = CONNECT_S,
    processes: tuple[int, ...] = (),
    on_lost: Callable[[LocksLost], object] | None = None,
) -> Locks:
    """Connect to the lock process of a node; the arguments and errors are those of `connect_async`.

    `on_lost` is called, in a thread of this package, when the locks are lost.
    """
    loop = LoopThread()
    try:
        inner = loop.call(
            connect_async(
                directory=directory, node=node, socket=socket, timeout_s=timeout_s, processes=processes, on_lost=on_lost
            )
        )
    except BaseException:
        loop.stop()
        raise
    return Locks(loop, inner)
