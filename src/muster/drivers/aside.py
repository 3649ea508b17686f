"""Work that may hang for as long as it likes: in a thread of its own that nobody waits for (P8.14).

Unlike a pool, such a thread takes no place from other work; and unlike a pool's, it does not keep the process from
ending. How many there are at a time is for the caller to bound.
"""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


async def aside(work: Callable[..., T], *arguments: Any) -> T:
    """What `work(*arguments)` returns or raises, once it does. Who stops waiting for it does not stop it."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            settle = partial(_succeed, outcome, work(*arguments))
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            settle = partial(_fail, outcome, error)
        try:
            loop.call_soon_threadsafe(settle)
        except RuntimeError:
            return  # the loop has ended meanwhile

    threading.Thread(target=run, name=f"aside {getattr(work, '__name__', '')}"[:60], daemon=True).start()
    return await outcome


def _succeed(outcome: "asyncio.Future[T]", value: T) -> None:
    if not outcome.done():
        outcome.set_result(value)


def _fail(outcome: "asyncio.Future[T]", error: Exception) -> None:
    if not outcome.done():
        outcome.set_exception(error)


class Shared:
    """Work that is done once for all who want it at the same time: as many threads as there are different things."""

    def __init__(self) -> None:
        self._under_way: dict[Any, asyncio.Task[Any]] = {}

    async def get(self, key: Any, work: Callable[..., T], *arguments: Any) -> T:
        """What the work that is under way for `key` returns, or else this one."""
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(aside(work, *arguments))
            task.add_done_callback(partial(self._over, key))
        result: T = await asyncio.shield(task)
        return result

    def _over(self, key: Any, task: "asyncio.Task[Any]") -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # those who waited have it; nobody may be left
