"""The lines that a program and its node's daemon exchange (the daemon's side: `muster/daemon/levels/programs.py`).

A program has one connection. Its first line registers, or resumes with a token; the daemon's first line holds the
token, and with `"converses": true` says that acknowledgements, answers to questions and deregistration may be said on
this very connection, one line each, as many at once as there are: `{"operation": NAME, "arguments": {...}}`. They get
no answers; what was not heard when the connection broke is asked again when it is resumed. To a daemon of an earlier
release, or while there is no connection, each of them is a request on a connection of its own, with `token` and
`identity`, repeated until it is answered.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from muster.client.address import reachable
from muster.client.answers import FIRST_PAUSE_S, MAXIMUM_LINE_BYTES, Document, answer_in, foreign

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Kind(StrEnum):
    """What happens to a node (SPEC 3.1)."""

    JOINING = "joining"
    LEAVING = "leaving"
    FORCED_LEAVING = "forced-leaving"


@dataclass(frozen=True)
class Barriers:
    """How often all programs of a level wait for each other in a transition of each kind (SPEC 3.4); equal on all
    nodes. With n barriers, a program hears of the transition n times, with `barrier` 0 to n-1.
    """

    joining: int = 1
    leaving: int = 1
    forced_leaving: int = 1


ONE_EACH = Barriers()


@dataclass(frozen=True)
class Told:
    """What a notification says: `node` is `kind`, at `barrier`; `vector` is the state of every node (SPEC 3.5).

    A node that is `silent` in the vector takes part in nothing, and may still hold all that it held at this level:
    leave it alone until its forced leave is told. Nobody is told so before version 3 is active.
    """

    transition: int
    level: int
    barrier: int
    node: str
    incarnation: int
    kind: Kind
    vector: Mapping[str, str]
    epoch: int
    entry: int = 0  # what the step is called at its level: the same on all nodes, in the order in which they entered it
    members: Mapping[int, tuple[int, bool, int]] = field(default_factory=dict)  # incarnation, whether it stays, program
    registration: int = 0  # which of its programs at this level this is about; grows within one incarnation
    alone: bool = False  # only this program comes or goes, and not its node


@dataclass(frozen=True)
class Planned:
    """A change that an operator has asked for and that has not begun.

    `change` is `leave` or `standby` (of `node`), `transfer` (of `service`, to `node` if it is named), or `deregister`.
    """

    change: str
    node: str
    service: str


Judge = Callable[[Planned], str]  # what the program objects, or nothing for consent


def told_from(line: Document) -> Told:
    """The notification in an answer's result."""
    return Told(
        line["transition"], line["level"], line["barrier"], line["node"], line["incarnation"], Kind(line["kind"]),
        line["vector"], line["epoch"], line.get("entry", 0),  # a daemon of an earlier release does not say
        {int(node): (known[0], known[1], sum(known[2:])) for node, known in line.get("members", {}).items()},
        line.get("registration", 0), line.get("alone", False),
    )  # fmt: skip


async def connect(path: str) -> Streams:
    """Connect to the control socket. Raises `OSError`."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        with reachable(path) as address:
            while True:
                try:
                    connection.connect(address)
                except BlockingIOError:  # a Unix socket does not wait for a place in a full backlog
                    await asyncio.sleep(FIRST_PAUSE_S)
                else:
                    break
        return await asyncio.open_unix_connection(sock=connection, limit=MAXIMUM_LINE_BYTES)
    except BaseException:
        connection.close()
        raise


async def ask(streams: Streams, request: Document) -> Document:
    """Send a request; its answer, or the first line of it. Raises `Refused`, `OSError`."""
    reader, writer = streams
    writer.write(json.dumps(request).encode() + b"\n")
    await writer.drain()
    answer = await next_line(reader)
    if answer is None:
        raise ConnectionResetError("the daemon ended the connection without an answer")
    return answer


async def next_line(reader: asyncio.StreamReader) -> Document | None:
    """The next line of an answer; None where the connection has ended. Raises `Refused`, `OSError`."""
    try:
        line = await reader.readline()
    except ValueError as error:  # longer than the limit
        raise foreign() from error
    if not line.endswith(b"\n"):
        return None
    return answer_in(line)
