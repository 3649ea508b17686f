"""A node that was told to end (SIGTERM) leaves gracefully, and goes on asking until it may (P4.10, P4.11; SPEC 3.4).

An operator's wish may be objected to; the end of the machine may not. So SIGTERM asks for a leave, and asks again while
somebody objects, saying who. Once systemd shuts the machine down, or the unit's own time is nearly over, the leave is
asked for with override. Where no master answers within the bound, the node ends by itself: it stops its services
(`last_stops.py`), and its guard writes the tombstone. A daemon that is started again goes on with it: its guard tells
it when the node was told to end. All the while systemd is asked for the time that the stops at work may still take.
"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable

from muster.core.effects import Reply
from muster.drivers.image.systemd import notify
from muster.records.database import Database
from muster.records.durations import duration_of
from muster.records.members import LeaveNode
from muster.records.services import Definition

ASKS_AGAIN_S = 3.0
ANSWER_S = 10.0  # for one question to the master
NO_MASTER_S = 60.0  # without any answer, then the node ends by itself
OVERRIDE_S = 600.0  # the unit's own limit is 900 s: what is left is for the leave itself
EXTENDS_S = 5.0  # between two requests for time
MARGIN_MS = 60_000  # beside the stops: the levels, the last words, the tombstone
MAXIMUM_MS = 24 * 3600 * 1000  # for which a leave may keep systemd waiting, unless it is configured
LONGEST_STOP = (
    "MUSTER_LONGEST_STOP"  # the variable that configures it: a duration, of `musterd` itself or by its option
)

Ask = Callable[[str, LeaveNode, float], Awaitable[Reply | None]]


def longest_stop_ms() -> int:
    """For how long a leave may keep systemd waiting in all, as `musterd` was started (P4.11)."""
    return duration_of(os.environ.get(LONGEST_STOP)) or MAXIMUM_MS


def time_needed_ms(database: Database, node: int, left: Iterable[str] | None = None) -> int:
    """What the stops that are still to be made for this node may take, one after the other, and a margin (P4.11).

    `left`: the names of those, where the database does not know.
    """
    stops = sum(
        _stop_ms(service.definition)
        for service in database.services.values()
        if (service.node == node if left is None else service.name in left)
    )
    return stops + MARGIN_MS


def _stop_ms(definition: Definition) -> int:
    longer_ms = definition.extend_limit_ms if definition.ready_notify else 0  # a program that can ask for more time
    return definition.stop_timeout_ms * (1 + definition.stop_retries) + definition.grace_ms + longer_ms


async def is_stopping() -> bool:
    """Whether systemd is shutting this machine down; False where there is no systemd that says so."""
    program = shutil.which("systemctl")
    if program is None:
        return False
    try:
        asked = await asyncio.create_subprocess_exec(
            program, "is-system-running", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return False
    try:
        said, _ = await asyncio.wait_for(asked.communicate(), ASKS_AGAIN_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            asked.kill()
        return False
    return said.strip() == b"stopping"


class Leaving:
    """The leave of one node. `ask` puts the operation to the master; `end` ends the node without one (P4.12)."""

    def __init__(
        self, name: str, identity: str, ask: Ask, note: Callable[[str, str], None], end: Callable[[], Awaitable[None]],
        stopping: Callable[[], Awaitable[bool]] = is_stopping, again_s: float = ASKS_AGAIN_S,
        is_outside: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """`is_outside`: whether the node knows that it is no member, so that it has nothing to leave (P4.10)."""
        self._name, self._identity, self._ask, self._note, self._end = name, identity, ask, note, end
        self._stopping, self._again_s, self._is_outside = stopping, again_s, is_outside

    async def run(self, override_s: float = OVERRIDE_S, no_master_s: float = NO_MASTER_S, told_s: float = 0.0) -> None:
        """Until the leave is granted, or the node ends by itself. It was told to end `told_s` ago."""
        heard_s = time.monotonic()
        began_s = heard_s - told_s
        said, turn = "", 0
        while True:
            turn += 1
            override = time.monotonic() - began_s >= override_s or await self._stopping()
            reply = await self._ask(f"{self._identity}-{turn}", LeaveNode(self._name, override), ANSWER_S)
            if reply is not None and not reply.refused:
                return
            if reply is not None and self._is_outside():
                self._note("left", "told to end while no member")
                await self._end()
                return
            if reply is not None:
                heard_s = time.monotonic()
                if reply.outcome != said:
                    said = reply.outcome
                    self._note("leave refused", f"told to end; it asks again: {said}")
            elif time.monotonic() - heard_s >= no_master_s:
                self._note("left", f"no master has answered for {no_master_s:.0f} s: it ends by itself")
                await self._end()
                return
            await asyncio.sleep(self._again_s)


async def keep_extending(needed_ms: Callable[[], int], longest_ms: int, pause_s: float = EXTENDS_S) -> None:
    """Ask systemd, while the node leaves, for the time that it may still take: in all no longer than that (P4.11)."""
    began_s = time.monotonic()
    while (left_ms := longest_ms - int((time.monotonic() - began_s) * 1000)) > 0:
        if not notify(f"EXTEND_TIMEOUT_USEC={min(needed_ms(), left_ms) * 1000}"):
            return  # no service manager, or none that listens
        await asyncio.sleep(pause_s)
