"""Programs that take part in transitions, all of them in one asyncio loop of this process, through `muster.client`.

A program takes `work_s` for each notification, for several at once if they come at once, as a program with its own
threads would: the framework promises that transitions of different nodes are in flight together (SPEC 3.5).
"""

import asyncio
from pathlib import Path

from muster.client import AsyncNotification, AsyncSubsystem, ClientError, Unreachable, register_async

REGISTER_TIMEOUT_S = 60.0
_PAUSE_S = 0.02


class Program:
    """One registered program."""

    def __init__(self, subsystem: AsyncSubsystem, work_s: float) -> None:
        self._subsystem, self._work_s = subsystem, work_s
        self._open = asyncio.Event()
        self._open.set()
        self._at_work: set[asyncio.Task[None]] = set()
        self.failure: ClientError | None = None  # of an acknowledgement, or of the registration
        self._task = asyncio.create_task(self._serve())

    def close_gate(self) -> None:
        """Acknowledge nothing from now on."""
        self._open.clear()

    def open_gate(self) -> None:
        """Acknowledge what has come meanwhile, and go on."""
        self._open.set()

    async def end(self) -> None:
        """End the connection; for the end of a measurement, whose cluster is torn down."""
        for task in (self._task, *self._at_work):
            task.cancel()
        await asyncio.gather(self._task, *self._at_work, return_exceptions=True)
        await self._subsystem.close()

    async def _serve(self) -> None:
        try:
            async for told in self._subsystem:
                task = asyncio.create_task(self._process(told))
                self._at_work.add(task)  # bounded by the client's queue, and by one transition a node
                task.add_done_callback(self._at_work.discard)
        except ClientError as error:
            self.failure = error

    async def _process(self, told: AsyncNotification) -> None:
        if self._work_s:
            await asyncio.sleep(self._work_s)
        await self._open.wait()
        try:
            await told.acknowledge()
        except ClientError as error:
            self.failure = error


async def start_program(name: str, level: int, socket: Path, work_s: float = 0.0) -> Program:
    """Register with the node at `socket`, as soon as it answers. Raises `ClientError`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + REGISTER_TIMEOUT_S
    while True:
        try:
            return Program(await register_async(name, level, socket=socket, timeout_s=REGISTER_TIMEOUT_S), work_s)
        except Unreachable:
            if loop.time() > deadline:
                raise
            await asyncio.sleep(_PAUSE_S)
