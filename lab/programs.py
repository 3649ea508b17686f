"""Programs that take part in the lab's transitions: on every node one for each of some levels (SPEC 3.2).

All of them run in one thread of the lab, through `muster.client`, and each takes its own random time for a barrier.
One whose node has ended registers again with the next life.
"""

import asyncio
import contextlib
import random
import threading
from pathlib import Path

from muster.client import Barriers, ClientError, register_async

LEVELS = {10: Barriers(joining=2, leaving=1, forced_leaving=2), 60: Barriers(joining=1, leaving=2, forced_leaving=1)}
LONGEST_WORK_S = 0.08
REGISTER_TIMEOUT_S = 3.0
RECONNECT_S = 60.0  # a restarted daemon knows a program of another PID namespace by its token alone (P3.16)
PAUSE_S = 0.1


class Programs:
    """Registers and acknowledges from `start` until `stop`."""

    def __init__(self, sockets: dict[str, Path], seed: str) -> None:
        self._sockets = sockets
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="programs", daemon=True)
        self._all: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, whether the nodes run or not."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread has. Harmless when done before."""
        if self._loop.is_closed():
            return

        def cancel() -> None:
            assert self._all is not None
            self._all.cancel()

        self._loop.call_soon_threadsafe(cancel)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        self._all = self._loop.create_task(self._serve_all())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._all)

    async def _serve_all(self) -> None:
        await asyncio.gather(*(self._serve(name, level) for name in self._sockets for level in LEVELS))

    async def _serve(self, name: str, level: int) -> None:
        """One program, through all lives of its node."""
        while True:
            with contextlib.suppress(ClientError):
                subsystem = await register_async(
                    f"level{level}", level, barriers=LEVELS[level], socket=self._sockets[name],
                    timeout_s=REGISTER_TIMEOUT_S, reconnect_s=RECONNECT_S,
                )  # fmt: skip
                try:
                    async for told in subsystem:
                        await asyncio.sleep(self._random.uniform(0, LONGEST_WORK_S))
                        await told.acknowledge()
                finally:
                    await subsystem.close()
            await asyncio.sleep(PAUSE_S)
