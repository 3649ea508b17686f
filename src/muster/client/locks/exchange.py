"""What a program and its node's lock process say to each other: requests, answers, and news that nobody has asked for.

The lines are described in `daemon/locks/requests.py`. What several tasks ask in one turn of the loop leaves in one
write, and what arrives in one read is taken apart at once.
"""

import asyncio
import contextlib
import json
import os
import socket
from array import array
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

from muster.client.address import reachable
from muster.client.answers import unreachable
from muster.client.errors import Refused
from muster.client.locks.grants import Told
from muster.client.locks.terms import LocksLost, NotGranted

MAXIMUM_LINE_BYTES = 16 * 1024 * 1024  # of an answer
MAXIMUM_NAME_CHARACTERS = 64

Late = Callable[[Told], None]


class Held(Protocol):
    """A lock that this program has."""

    def somebody_waits(self, mode: int) -> None:
        """To have it in this mode."""

    def lose(self) -> None:
        """It is this program's no more."""


class Block(Protocol):
    """Code that runs under a lock."""

    def interrupt(self, why: LocksLost) -> None:
        """The lock is lost."""


class Exchange(asyncio.Protocol):
    """One connection, and who waits for what on it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.granted: dict[int, Held] = {}
        self.blocks: set[Block] = set()
        self.on_lost: Callable[[LocksLost], object] | None = None
        self.is_over = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._welcome: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._inbox = b""
        self._unsaid: list[str] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self._ref = 0
        self._waiting: dict[int, tuple[asyncio.Future[Told], str]] = {}
        self._late: dict[int, Late] = {}  # of requests that were cancelled, and are not answered yet
        self.failure: LocksLost | None = None  # why all that was granted is lost, or will be
        self._closing = False

    async def begin(self, processes: Iterable[int], timeout_s: float) -> dict[str, Any]:
        """Connect, and hand over handles on the processes that hold; what the node says about itself.

        Raises `Unreachable`, `Refused`.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            async with asyncio.timeout(timeout_s):
                connection.setblocking(False)
                with reachable(self.path) as address:
                    await self._loop.sock_connect(connection, address)
                _say_hello(connection, processes)
                await self._loop.create_unix_connection(lambda: self, sock=connection)
                return await self._welcome
        except (OSError, TimeoutError) as error:
            self._abandon(connection)
            raise unreachable(self.path, error, timeout_s if isinstance(error, TimeoutError) else 0.0) from error
        except BaseException:
            self._abandon(connection)
            raise

    def _abandon(self, connection: socket.socket) -> None:
        self._closing = self.is_over = True
        if self._transport is not None:
            self._transport.abort()
        else:
            connection.close()

    async def ask(self, what: str, asked: str, where: str, late: Late | None = None) -> Told:
        """Send a request; its answer. Raises `NotGranted`, `Refused`, `LocksLost`.

        `late` is given a grant that comes after the task which waited for it was cancelled.
        """
        if self.is_over:
            raise self.failure or LocksLost("the connection is closed", where, "connect again")
        ref = self._new_ref()
        future: asyncio.Future[Told] = self._loop.create_future()
        self._waiting[ref] = future, where
        self._say(f'["{what}",{ref},{asked}]')
        if not self._writable.is_set():
            await self._writable.wait()
        try:
            return await future
        except asyncio.CancelledError:
            if late is not None and ref in self._waiting:
                self._late[ref] = late
                self._say(f'["cancel",{self._new_ref()},{ref}]')
            raise

    def give_back(self, told: Told) -> None:
        """A lock that nobody waits for any more."""
        if not self.is_over:
            self._say(f'["unlock",{self._new_ref()},{told[2]},null]')

    def close(self) -> None:
        """End the connection, in order."""
        self._closing = self.is_over = True
        self._say_all()
        if self._transport is not None:
            self._transport.close()

    # ---- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is this object's from now on."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Whole lines, perhaps, and the beginning of another."""
        whole, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._inbox += data
            if len(self._inbox) > MAXIMUM_LINE_BYTES and self._transport is not None:
                self._transport.abort()
            return
        lines, self._inbox = self._inbox + whole, rest
        try:
            found = json.loads(b"[" + lines.replace(b"\n", b",") + b"]")
        except ValueError:  # no lock process answers there
            if self._transport is not None:
                self._transport.abort()
            return
        for told in found:
            self._take(told)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self.is_over = True
        self._writable.set()
        why = f"the connection broke: {exc}" if exc else "the lock process ended the connection"
        if not self._welcome.done():
            self._welcome.set_exception(ConnectionResetError(why))
        if not self._closing:
            advice = "what was locked may be another's: give it up, then connect again"
            self._fail(self.failure or LocksLost(why, f"socket {self.path}", advice))
        for future, where in self._waiting.values():
            if not future.done():
                future.set_exception(self.failure or LocksLost(why, where, "connect again"))
                future.exception()  # nobody may be there to hear it
        self._waiting.clear()

    def pause_writing(self) -> None:
        """The lock process takes no more for now."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It takes more again."""
        self._writable.set()

    # ---- inside

    def _new_ref(self) -> int:
        self._ref += 1
        return self._ref

    def _say(self, line: str) -> None:
        if not self._unsaid:
            self._loop.call_soon(self._say_all)
        self._unsaid.append(line)

    def _say_all(self) -> None:
        lines, self._unsaid = self._unsaid, []
        if lines and self._transport is not None and not self._transport.is_closing():
            lines.append("")
            self._transport.write("\n".join(lines).encode())

    def _take(self, told: Told) -> None:
        what, subject = told[0], told[1]
        if what == "blocking":
            held = self.granted.get(subject)
            if held is not None:
                held.somebody_waits(told[2])
        elif what == "welcome":
            if not self._welcome.done():
                self._welcome.set_result(subject)
        elif what == "end":
            self._fail(LocksLost(subject, f"socket {self.path}", "end what relies on the locks"))
        elif subject == 0:
            self._refused(told[2])
        else:
            self._answered(what, subject, told)

    def _answered(self, what: str, ref: int, told: Told) -> None:
        waiting = self._waiting.pop(ref, None)
        if waiting is None:
            return
        future, where = waiting
        late = self._late.pop(ref, None)
        if late is not None and what == "granted":
            late(told)
        elif future.done():
            return
        elif what == "ended":
            future.set_exception(NotGranted(told[2], where))
        elif what == "refused":
            future.set_exception(Refused(told[2], where, "correct the request"))
        else:
            future.set_result(told)

    def _refused(self, what: str) -> None:
        where = f"socket {self.path}"
        if not self._welcome.done():
            self._welcome.set_exception(Refused(what, where, "correct that, and connect again"))
        else:
            self.failure = LocksLost(what, where, "correct what the program sends, and connect again")

    def _fail(self, why: LocksLost) -> None:
        self.failure = why
        for held in self.granted.values():
            held.lose()
        for block in list(self.blocks):
            block.interrupt(why)
        if self.on_lost is not None:
            self.on_lost(why)


def _say_hello(connection: socket.socket, processes: Iterable[int]) -> None:
    """The first line, with handles on this process and on others that hold with it."""
    name = "program"
    with contextlib.suppress(OSError), open("/proc/self/comm", encoding="utf-8", errors="replace") as file:
        name = file.read().strip()
    greeting = {"name": name[:MAXIMUM_NAME_CHARACTERS], "process": os.getpid()}
    hello = json.dumps(["hello", greeting]).encode() + b"\n"
    own = os.pidfd_open(os.getpid())
    try:
        handles = array("i", [own, *processes])
        sent = connection.sendmsg([hello], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handles)])
    finally:
        os.close(own)
    if sent < len(hello):
        raise ConnectionResetError("the lock process does not take the hello")
