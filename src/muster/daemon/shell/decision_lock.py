"""The decision lock as this daemon has it: asked of the lock process of its own node (P6.42; SPEC 6.4).

Theory of operation. While there are lockspaces, the daemon of a joined member is a client of that process like any
other, and waits for one lock. What it is granted it tells its node, which says so in its reports. It gives the lock up
when its node wants it no more, or the process asks for it. A connection that breaks frees the lock: it guards nothing
by itself, for whatever is decided names its grant (P6.44). Whatever goes wrong here is tried again; meanwhile the
master decides.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muster.client.address import SOCKET_FILE
from muster.client.errors import ClientError
from muster.client.locks.asynchronous import AsyncGrant, connect_async
from muster.client.locks.terms import EX
from muster.core.inputs import DecisionLock
from muster.core.node import insight
from muster.core.node.node import Node
from muster.records.deciders import SERVICES
from muster.records.lockspaces import RESERVED

AGAIN_S = 1.0  # before it is asked for again, after it was given up or could not be asked for


class DecisionLockClient:
    """Keeps one node's place in the queue. `feed` and `changes` are the daemon's."""

    def __init__(
        self,
        node: Node,
        home: Path,
        is_on: asyncio.Event,
        feed: Callable[[DecisionLock], None],
        changes: Callable[[], Any],
    ) -> None:
        """`is_on`: there are lockspaces."""
        self._node, self._home, self._is_on, self._feed, self._changes = node, home, is_on, feed, changes

    async def run(self) -> None:
        """For as long as this daemon lives."""
        while True:
            await self._is_on.wait()
            with contextlib.suppress(ClientError, OSError):  # the process begins, ends, or does not answer
                await self._take_part()
            await asyncio.sleep(AGAIN_S)

    async def _take_part(self) -> None:
        """Wait for the lock, and have it, until it is wanted no more. Raises `ClientError`."""
        with self._changes() as changed:
            if not insight.wants_decision_lock(self._node):
                changed.clear()
                await changed.wait()
                return
            locks = await connect_async(socket=str(self._home / SOCKET_FILE), on_lost=lambda _why: changed.set())
            try:
                asked = asyncio.ensure_future(locks.space(RESERVED).acquire(SERVICES, EX))
                asked.add_done_callback(lambda _done: changed.set())
                await self._follow(asked, changed, lambda: locks.exchange.is_over)
            finally:
                asked.cancel()
                locks.exchange.close()

    async def _follow(
        self, asked: "asyncio.Future[AsyncGrant]", changed: asyncio.Event, is_over: Callable[[], bool]
    ) -> None:
        grant: AsyncGrant | None = None
        try:
            while insight.wants_decision_lock(self._node) and not is_over() and not (grant and grant.is_lost):
                changed.clear()
                if grant is None and asked.done():
                    grant = await asked
                    self._feed(DecisionLock((grant.token.epoch, grant.token.counter)))
                else:
                    await changed.wait()
        except asyncio.CancelledError:
            grant = None  # this daemon ends: nothing follows from anything here
            raise
        finally:
            if grant is not None:
                self._feed(DecisionLock(None))  # first, so that nothing is decided by it any more
