"""The daemon's event loop: its turns are measured (P8.13); neither they nor its end wait for what may hang (P8.14)."""

import asyncio
import selectors
import socket
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from muster.drivers.aside import Shared

Waited = list[tuple[selectors.SelectorKey, int]]


class TimedSelector(selectors.DefaultSelector):
    """Measures the time between two waits. `took`: told how many seconds each turn took, once there is somebody."""

    def __init__(self) -> None:
        super().__init__()
        self.took: Callable[[float], None] | None = None
        self._began_s = 0.0

    def select(self, timeout: float | None = None) -> Waited:
        """Wait, as the loop does at the end of each turn."""
        if self.took is not None and self._began_s:
            self.took(time.monotonic() - self._began_s)
        ready = super().select(timeout)
        self._began_s = time.monotonic()
        return ready


class Loop(asyncio.SelectorEventLoop):
    """Names of hosts are looked up beside it, each by a thread of its own, and its end waits for no thread."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        super().__init__(selector)
        self._look_ups = Shared()

    async def getaddrinfo(self, *arguments: Any, **named: Any) -> list[Any]:
        """As the system's, once for all who ask the same at the same time."""
        key = (arguments, tuple(sorted(named.items())))
        return await self._look_ups.get(key, partial(socket.getaddrinfo, *arguments, **named))

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncio's
        """What is under way in the pool may hang: this process ends without it."""


def run_timed(serve: Callable[[TimedSelector], Coroutine[Any, Any, None]]) -> None:
    """Run `serve` in a loop whose turns are measured."""
    selector = TimedSelector()
    with asyncio.Runner(loop_factory=lambda: Loop(selector)) as runner:
        runner.run(serve(selector))
