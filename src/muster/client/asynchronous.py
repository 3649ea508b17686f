"""Registration, notifications and acknowledgements for asyncio programs."""

import asyncio
import contextlib
import json
import math
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from muster.client.address import socket_path
from muster.client.answers import FIRST_PAUSE_S, LONGEST_PAUSE_S, Document, unreachable
from muster.client.errors import ClientError, Lost, Refused
from muster.client.protocol import (
    ONE_EACH,
    Barriers,
    Judge,
    Planned,
    Streams,
    Told,
    ask,
    connect,
    next_line,
    told_from,
)

MAXIMUM_UNHEARD = 256  # notifications; beyond, the daemon keeps them, and before long ends the connection
MAXIMUM_REMEMBERED = 4096  # steps whose repetition is recognised
RECONNECT_S = 10.0
LAST_WORD_S = 1.0

Step = tuple[int, int]  # transition, barrier


@dataclass(frozen=True)
class AsyncNotification(Told):
    """A transition that this program is to process."""

    _subsystem: "AsyncSubsystem" = field(repr=False, compare=False, kw_only=True)

    async def acknowledge(self) -> None:
        """This barrier is processed. Raises `ClientError` if the registration is over."""
        await self._subsystem.acknowledge(self.transition, self.barrier)


class AsyncSubsystem:
    """A registered program. Iterate it for the notifications; made by `register_async`."""

    def __init__(
        self, path: str, request: Document, fails: bool, reconnect_s: float, judge: Judge | None = None
    ) -> None:
        self._judge = judge
        self._judging: set[asyncio.Task[None]] = set()
        self._path, self._request, self._fails, self._reconnect_s = path, request, fails, reconnect_s
        self.name: str = request["arguments"]["name"]
        self.level: int = request["arguments"]["level"]
        self.node = ""
        self.incarnation = 0
        self.registration = 0  # tells this one from others of its level on the same incarnation; grows
        self._token = ""
        self._converses = False  # whether the daemon hears operations on the subsystem's own connection
        self._unsaid: list[bytes] = []  # lines for it that leave together
        self._streams: Streams | None = None
        self._pump: asyncio.Task[None] | None = None
        self._unheard: asyncio.Queue[AsyncNotification | None] = asyncio.Queue(MAXIMUM_UNHEARD)
        self._steps: dict[Step, bool] = {}  # heard -> acknowledged
        self._failure: ClientError | None = None
        self._over = False

    async def start(self, timeout_s: float) -> None:
        """Register. Raises `Refused`, `Unreachable`."""
        try:
            async with asyncio.timeout(timeout_s):
                self._streams = await connect(self._path)
                first = (await ask(self._streams, self._request))["result"]
        except (OSError, TimeoutError) as error:
            self._close_streams()
            raise unreachable(self._path, error, timeout_s) from error
        except BaseException:
            self._close_streams()
            raise
        self._token, self.node, self.incarnation = first["token"], first["node"], first["incarnation"]
        self.registration = first.get("registration", 0)
        self._converses = bool(first.get("converses", False))
        self._pump = asyncio.create_task(self._run())

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be notified."""
        return self._over

    async def next_notification(self) -> AsyncNotification | None:
        """The next one; None when the registration has ended in order. Raises `Lost`, `Refused`."""
        found = None if self._over else await self._unheard.get()
        if found is None:
            self._over = True
            if self._failure is not None:
                raise self._failure
        return found

    async def acknowledge(self, transition: int, barrier: int) -> None:
        """A notification is processed; for one that is no longer at work this does nothing. Raises `ClientError`.

        It is on its way to the daemon then. Should the connection break before it is heard, the daemon repeats the
        notification, and gets the answer from this object's memory.
        """
        self._remember((transition, barrier), acknowledged=True)
        await self._tell("acknowledge", transition=transition, barrier=barrier)

    async def deregister(self) -> None:
        """End the registration: the level goes, and nothing waits for this program. Harmless when it is over.

        Raises `Unreachable` if no daemon answers.
        """
        try:
            if self._pump is not None and not self._pump.done():
                if not self._unheard.full() and await self._say("deregister_level"):
                    await asyncio.wait({self._pump}, timeout=LAST_WORD_S)  # until the daemon closes the stream
                if not self._pump.done():
                    # Where its death is none of the node's concern, the program need not wait for a lost daemon.
                    await self._call("deregister_level", self._reconnect_s if self._fails else LAST_WORD_S)
        finally:
            await self.close()

    async def close(self) -> None:
        """End the connection only. The node awaits this program within its deadline; then what its level is asked waits
        for the end of its process, or where its death is to fail the node, it does (`on_loss`).
        """
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, *self._judging, return_exceptions=True)
        self._close_streams()
        self._over = True
        with contextlib.suppress(asyncio.QueueFull):  # then nobody waits for one
            self._unheard.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[AsyncNotification]:
        return self

    async def __anext__(self) -> AsyncNotification:
        found = await self.next_notification()
        if found is None:
            raise StopAsyncIteration
        return found

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._fails and isinstance(error, Exception) and not isinstance(error, ClientError):
            await self.close()  # a program that breaks is lost, in the sense of its policy
        else:
            with contextlib.suppress(ClientError):
                await self.deregister()

    # ---- inside ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Fetch until the end; resume whenever the connection breaks."""
        try:
            while not await self._fetch():
                await self._resume()
        except ClientError as error:
            self._failure = error
        finally:
            self._close_streams()
        await self._unheard.put(None)

    async def _fetch(self) -> bool:
        """Hear what comes; True when the daemon has ended the stream in order, False when the connection broke."""
        assert self._streams is not None
        reader = self._streams[0]
        while True:
            try:
                answer = await next_line(reader)
            except OSError:
                return False
            if answer is None:
                return False
            if not answer.get("more", False):
                return True
            if "question" in answer["result"]:
                task = asyncio.create_task(self._consider(answer["result"]))
                self._judging.add(task)
                task.add_done_callback(self._judging.discard)
            else:
                await self._hear(told_from(answer["result"]))

    async def _hear(self, told: Told) -> None:
        step = (told.transition, told.barrier)
        acknowledged = self._steps.get(step)
        if acknowledged is None:
            self._remember(step, acknowledged=False)
            await self._unheard.put(AsyncNotification(**vars(told), _subsystem=self))
        elif acknowledged:  # a repeated notification is answered from memory (SPEC 3.4)
            await self._tell("acknowledge", transition=step[0], barrier=step[1])

    async def _consider(self, asked: Document) -> None:
        """Ask the program, in a thread of its own, and say what it objects; one that fails objects by its error."""
        planned = Planned(asked["change"], asked["node"], asked["service"])
        try:
            objection = await asyncio.to_thread(self._judge, planned) if self._judge is not None else ""
        except Exception as error:  # noqa: BLE001  # whatever the program raises
            objection = f"it could not judge: {error!r}"
        with contextlib.suppress(ClientError):
            await self._tell("answer", question=asked["question"], objection=objection)

    def _remember(self, step: Step, *, acknowledged: bool) -> None:
        self._steps[step] = acknowledged
        while len(self._steps) > MAXIMUM_REMEMBERED:
            del self._steps[next(iter(self._steps))]

    async def _resume(self) -> None:
        """Come back after a restart of the daemon. Raises `Lost`."""
        self._close_streams()
        self._converses = False  # until the daemon that is found says so
        request = {"query": "subsystem", "arguments": {"token": self._token}}
        deadline = time.monotonic() + self._reconnect_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with asyncio.timeout(max(FIRST_PAUSE_S, deadline - time.monotonic())):
                    self._streams = await connect(self._path)
                    first = (await ask(self._streams, request))["result"]
            except Refused as error:
                raise Lost(error.what, error.where, error.next_step) from error
            except (OSError, TimeoutError) as error:
                self._close_streams()
                if time.monotonic() + pause_s >= deadline:
                    lost = unreachable(self._path, error, self._reconnect_s)
                    next_step = "its node has stopped, or was forced out: give up what is shared, and register again"
                    raise Lost(lost.what, lost.where, next_step) from error
            else:
                self._converses = bool(first.get("converses", False))  # perhaps a daemon of another release
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _tell(self, operation: str, **arguments: int | str) -> None:
        """Say it on this registration's own connection, or by a request of its own. Raises `ClientError`."""
        if not await self._say(operation, **arguments):
            await self._call(operation, self._reconnect_s, **arguments)

    async def _say(self, operation: str, **arguments: int | str) -> bool:
        """Put an operation into the own connection; False if it is not up, or its daemon does not hear it there.

        What several tasks say in one turn of the loop leaves in one write.
        """
        streams = self._streams
        is_up = streams is not None and not streams[1].is_closing() and not streams[0].at_eof()
        if streams is None or not is_up or not self._converses or self._pump is None or self._pump.done():
            return False
        if not self._unsaid:
            asyncio.get_running_loop().call_soon(self._say_all, streams[1])
        self._unsaid.append(json.dumps({"operation": operation, "arguments": arguments}).encode())
        await asyncio.sleep(0)  # by then it is written
        try:
            await streams[1].drain()
        except OSError:
            return False
        return True

    def _say_all(self, writer: asyncio.StreamWriter) -> None:
        lines, self._unsaid = self._unsaid, []
        if not writer.is_closing():
            writer.write(b"\n".join(lines) + b"\n")

    async def _call(self, operation: str, patience_s: float, **arguments: int | str) -> None:
        """Carry out an operation of this registration, again if the daemon restarts meanwhile. Raises `ClientError`."""
        document = {"token": self._token, **arguments}
        request = {"operation": operation, "identity": os.urandom(16).hex(), "arguments": document}
        deadline = time.monotonic() + patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            streams: Streams | None = None
            try:
                async with asyncio.timeout(max(FIRST_PAUSE_S, deadline - time.monotonic())):
                    streams = await connect(self._path)
                    await ask(streams, request)
            except (OSError, TimeoutError) as error:
                if time.monotonic() + pause_s >= deadline:
                    raise unreachable(self._path, error, patience_s) from error
            else:
                return
            finally:
                if streams is not None:
                    streams[1].close()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _close_streams(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def register_async(
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
) -> AsyncSubsystem:
    """Register this program at `level` (SPEC 3.2).

    Raises `Refused`, `Unreachable`; `ValueError` or `TypeError` for its own arguments.

    `deadline_s`: not to acknowledge for so long is to be hung (0: never); `on_hang` then lets all wait and names it, or
    forces the node out. `judge` is asked, in a thread, before every graceful leave and transfer, and may object with a
    reason; who asked may override it. It is asked once the cluster has recorded the registration: from the first
    notification on, at the latest. `on_loss`: what the death of this program means, a level that goes or a node that
    fails. Where its level is required, or a program above it is registered on the node, its node fails in any case,
    and "deregister" is refused; without `on_loss` it is taken for "deregister" everywhere else.

    `directory` and `node` name a node of a development cluster; `socket` the control socket of any.
    `timeout_s` bounds the registration; `reconnect_s` how long a daemon that is gone is waited for.
    """
    if not (0 <= deadline_s < math.inf and timeout_s > 0 and reconnect_s >= 0):  # nor is any of them NaN
        raise ValueError("deadline_s and reconnect_s are 0 or more seconds, timeout_s more than 0")
    if not isinstance(barriers, Barriers):
        raise TypeError(f"barriers is {barriers!r}: pass muster.client.Barriers, as Barriers(joining=2)")
    if judge is not None and not callable(judge):
        raise TypeError(f"judge is {judge!r}: pass a function of a Planned that returns its objection, or nothing")
    arguments: Document = {
        "name": name,
        "level": level,
        "barriers": vars(barriers),
        "deadline_ms": math.ceil(deadline_s * 1000),  # 0 would be none
        "on_hang": on_hang,
        "vetoes": judge is not None,
        "process": os.getpid(),
    }
    if on_loss is not None:  # a daemon of an earlier release does not know the empty one
        arguments["on_loss"] = on_loss
    path = socket_path(directory, node, socket)
    request = {"query": "subsystem", "arguments": arguments}
    subsystem = AsyncSubsystem(path, request, on_loss == "fail", reconnect_s, judge)
    await subsystem.start(timeout_s)
    return subsystem
