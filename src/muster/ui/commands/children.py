"""The programs that a command of Muster's runs for somebody, and how they are ended with it."""

import asyncio
import contextlib
import os
import signal

STOP_S = 2.0  # for a command that was asked to end


async def end_group(process: asyncio.subprocess.Process) -> None:
    """End a command and what it started: asked first, made to after `STOP_S`. Its group has the command's own id."""
    for order, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, order)
        try:
            await asyncio.wait_for(process.wait(), patience_s)
        except TimeoutError:
            continue
        break
