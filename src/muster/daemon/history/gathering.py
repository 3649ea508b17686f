"""Asks every connected node the same question about itself, so that any node can answer for all (SPEC 8.1).

What a node remembers of its events and commands is its own; a question about them is put to all that are connected, and
whoever has not answered within `GATHER_S` is named. Nodes answer from memory, the core has no part in it.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from muster.core.node.node import Node
from muster.records.messages import LocalAnswer, LocalQuestion, Message
from muster.records.refusal import ControlRefused

GATHER_S = 1.5
MAXIMUM_GATHERINGS = 64
MAXIMUM_ANSWER_BYTES = 4 * 1024 * 1024
NOT_CONNECTED = "it is not connected"
SILENT = f"it has not answered within {GATHER_S:g} s"

Document = dict[str, Any]
Answer = Callable[[str, str], Awaitable[Document]]  # (question, subject) -> what this node knows


class Gathering:
    """Asks other nodes, and answers them. `send` may lose messages."""

    def __init__(self, node: Node, answer: Answer, send: Callable[[int, Message], None]) -> None:
        self._node, self._answer, self._send = node, answer, send
        self._open: dict[str, dict[int, Document]] = {}
        self._complete: dict[str, tuple[set[int], asyncio.Event]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def takes(self, sender: int, message: Message) -> bool:
        """Deal with a message of this protocol; False for every other."""
        match message:
            case LocalQuestion():
                if len(self._tasks) < MAXIMUM_GATHERINGS:
                    task = asyncio.ensure_future(self._reply(sender, message))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            case LocalAnswer(identity=identity, document=document):
                self._take(sender, identity, document)
            case _:
                return False
        return True

    async def ask(self, question: str, subject: str) -> tuple[dict[str, Document], list[Document]]:
        """What each node that answers knows, by its name, this one first; and who has not answered, and why."""
        if len(self._open) >= MAXIMUM_GATHERINGS:
            what = f"{MAXIMUM_GATHERINGS} such questions are being asked already"
            raise ControlRefused(what, f"query {question}", "ask again in a second")
        asked = set(self._node.links.connected)
        identity = os.urandom(8).hex()
        done = asyncio.Event()
        answers = self._open[identity] = {}
        missing = set(asked)
        self._complete[identity] = (missing, done)
        try:
            for node in sorted(asked):
                self._send(node, LocalQuestion(identity, question, subject))
            own = await self._answer(question, subject)
            with contextlib.suppress(TimeoutError):  # the answer names who is missing
                if missing:
                    await asyncio.wait_for(done.wait(), GATHER_S)
        finally:
            del self._open[identity], self._complete[identity]
        database, me = self._node.database, self._node.me
        silent = [node for node in sorted(database.nodes) if node != me and node not in answers]
        unanswered = [
            {"node": database.name_of(node), "why": SILENT if node in asked else NOT_CONNECTED} for node in silent
        ]
        named = {database.name_of(node): document for node, document in sorted(answers.items())}
        return {database.name_of(me): own, **named}, unanswered

    async def _reply(self, sender: int, question: LocalQuestion) -> None:
        try:
            document = msgspec.json.encode(await self._answer(question.question, question.subject))
        except ControlRefused:
            document = b"{}"  # of another release: this node knows nothing of it
        if len(document) <= MAXIMUM_ANSWER_BYTES:
            self._send(sender, LocalAnswer(question.identity, document))

    def _take(self, sender: int, identity: str, data: bytes) -> None:
        if identity not in self._open or sender not in self._complete[identity][0]:
            return
        missing, done = self._complete[identity]
        missing.discard(sender)
        try:
            document = msgspec.json.decode(data)
        except msgspec.DecodeError:
            document = None
        if isinstance(document, dict):
            self._open[identity][sender] = document
        if not missing:
            done.set()
