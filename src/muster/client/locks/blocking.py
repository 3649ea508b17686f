"""Locks for programs without asyncio: a thread of this package's own keeps the connection."""

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from muster.client.blocking import LoopThread
from muster.client.locks.asynchronous import CONNECT_S, AsyncGrant, AsyncLocks, connect_async
from muster.client.locks.grants import AnySpace, Granted, Wish
from muster.client.locks.terms import EX, LocksLost, Mode

Blocking = Callable[["Grant", Mode], object]


class Grant(Granted):
    """A lock that this program has."""

    __slots__ = ("_inner", "_loop")

    def __init__(self, loop: LoopThread, inner: AsyncGrant) -> None:
        super().__init__(inner.known)
        self._loop, self._inner = loop, inner

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


class Space(AnySpace[Locking]):
    """A lockspace of the cluster."""

    def __init__(self, client: "Locks", name: str) -> None:
        super().__init__(name)
        self._client = client

    def _block(self, wish: Wish, on_blocking: Blocking | None) -> Locking:
        return Locking(lambda: self._grant(wish, on_blocking), self._client)

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
        return self._grant(Wish(name, mode, no_queue, timeout_s), on_blocking)

    def _grant(self, wish: Wish, on_blocking: Blocking | None) -> Grant:
        loop, inner = self._client.parts
        blocked = None if on_blocking is None else lambda grant, wanted: on_blocking(Grant(loop, grant), wanted)
        return Grant(loop, loop.call(inner.space(self.name).grant(wish, blocked)))


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
