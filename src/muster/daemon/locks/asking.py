"""What the lock process asks its daemon, on the control socket (P12.15, P12.18)."""

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from muster.client.protocol import ask, connect, next_line

Document = dict[str, Any]


async def stream(control: str, name: str, **arguments: Sequence[int]) -> AsyncGenerator[Document]:
    """What a query answers, line by line, until its daemon ends. Raises `OSError`, `ClientError`."""
    streams = await connect(control)
    try:
        answer: Document | None = await ask(streams, {"query": name, "arguments": arguments})
        while answer is not None and answer["result"] is not None:
            yield answer["result"]
            answer = await next_line(streams[0]) if answer.get("more", False) else None
    finally:
        streams[1].close()


async def first(control: str, name: str) -> Document:
    """The first of these. Raises `OSError`, `ClientError`."""
    async with aclosing(stream(control, name)) as found:
        async for answer in found:
            return answer
    raise ConnectionResetError("the daemon has ended the connection without an answer")


async def record_break(control: str, space: str, name: str, by: str) -> None:
    """Have the cluster record who says that the holders of a lock are dead. Raises `OSError`, `ClientError`."""
    streams = await connect(control)
    try:
        arguments = {"space": space, "name": name, "by": by}
        await ask(streams, {"operation": "break_lock", "identity": os.urandom(16).hex(), "arguments": arguments})
    finally:
        streams[1].close()
