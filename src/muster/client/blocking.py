"""The same for programs without asyncio: a thread of this package's own keeps the connection."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from muster.client.asynchronous import RECONNECT_S, AsyncNotification, AsyncSubsystem, register_async
from muster.client.errors import ClientError, Lost
from muster.client.protocol import ONE_EACH, Barriers, Judge, Told

LAST_CALLS_S = 1.0  # for calls of other threads under way when the subsystem is closed
T = TypeVar("T")


class LoopThread:
    """An event loop in a thread, so that a resumed connection does not have to wait for a busy program."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="muster client", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` there, and wait for it; an interrupt of the waiting thread cancels it. Raises `Lost` if closed."""
        if not self._thread.is_alive():
            work.close()
            raise Lost("the registration is over", "muster.client", "register again")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread."""
        if self._thread.is_alive():
            self.call(_let_others_end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


async def _let_others_end() -> None:
    """Threads that wait for a notification are told of the end; what does not end by itself is cancelled."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, pending = await asyncio.wait(others, timeout=LAST_CALLS_S)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


@dataclass(frozen=True)
class Notification(Told):
    """A transition that this program is to process."""

    _subsystem: "Subsystem" = field(repr=False, compare=False, kw_only=True)

    def acknowledge(self) -> None:
        """This barrier is processed; from any thread. Raises `ClientError` if the registration is over."""
        self._subsystem.acknowledge(self.transition, self.barrier)


class Subsystem:
    """A registered program. Iterate it for the notifications; made by `register`."""

    def __init__(self, loop: LoopThread, inner: AsyncSubsystem, *, fails: bool) -> None:
        self._loop, self._inner, self._fails = loop, inner, fails
        self._closing = threading.Lock()
        self._closed = False

    @property
    def name(self) -> str:
        """As it was registered."""
        return self._inner.name

    @property
    def level(self) -> int:
        """Its place in the order of transitions."""
        return self._inner.level

    @property
    def node(self) -> str:
        """The name of the node that it is registered with."""
        return self._inner.node

    @property
    def incarnation(self) -> int:
        """The boot of that node."""
        return self._inner.incarnation

    def next_notification(self, timeout_s: float | None = None) -> Notification | None:
        """The next one; None when the registration has ended in order.

        Raises `TimeoutError` if none comes within `timeout_s`; `Lost`, `Refused`.
        """
        found = None if self._closed else self._loop.call(self._next(timeout_s))
        if found is None:
            return None
        fields = {name: value for name, value in vars(found).items() if name != "_subsystem"}
        return Notification(**fields, _subsystem=self)

    async def _next(self, timeout_s: float | None) -> AsyncNotification | None:
        return await asyncio.wait_for(self._inner.next_notification(), timeout_s)

    def acknowledge(self, transition: int, barrier: int) -> None:
        """A notification is processed; for one that is no longer at work this does nothing. Raises `ClientError`."""
        self._loop.call(self._inner.acknowledge(transition, barrier))

    def deregister(self) -> None:
        """End the registration: the level goes, and nothing waits for this program. Harmless when it is over.

        Raises `Unreachable` if no daemon answers.
        """
        self._end(deregister=True)

    def close(self) -> None:
        """End the connection only. The node awaits this program within its deadline; then what its level is asked waits
        for the end of its process, or where its death is to fail the node, it does (`on_loss`).
        """
        self._end(deregister=False)

    def _end(self, *, deregister: bool) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
            try:
                self._loop.call(self._inner.deregister() if deregister else self._inner.close())
            finally:
                self._loop.stop()

    def __iter__(self) -> Iterator[Notification]:
        return self

    def __next__(self) -> Notification:
        found = self.next_notification()
        if found is None:
            raise StopIteration
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._fails and isinstance(error, Exception) and not isinstance(error, ClientError):
            self.close()  # a program that breaks is lost, in the sense of its policy
        else:
            with contextlib.suppress(ClientError):
                self.deregister()


def register(
    name: str,
    level: int,
    *,
    barriers: Barriers = ONE_EACH,
    deadline_s: float = 0.0,
    on_hang: Literal["wait", "evict"] = "wait",
    on_loss: Literal["deregister", "fail"] | None = None,
    judge: Judge | None = None,
    directory: str | os.PathLike[str] | None = None,
    node: str | None = None,
    socket: str | os.PathLike[str] | None = None,
    timeout_s: float = 15.0,
    reconnect_s: float = RECONNECT_S,
) -> Subsystem:
    """Register this program at `level`; the arguments and errors are those of `register_async`."""
    loop = LoopThread()
    try:
        inner = loop.call(
            register_async(
                name, level, barriers=barriers, deadline_s=deadline_s, on_hang=on_hang, on_loss=on_loss, judge=judge,
                directory=directory, node=node, socket=socket, timeout_s=timeout_s, reconnect_s=reconnect_s,
            )
        )  # fmt: skip
    except BaseException:
        loop.stop()
        raise
    return Subsystem(loop, inner, fails=on_loss == "fail")
