"""Gathers what all connected nodes have recorded of a transition, so that any node can answer (SPEC 8.1, 8.2).

The asked node sends a request to every connected node and waits `GATHER_S` at most; who did not answer is named in the
account. Nodes answer from their records at once; the core has no part in it.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from muster.core.node.node import Node
from muster.daemon.history import timeline
from muster.daemon.history.timeline import Statement
from muster.daemon.history.transition_record import MAXIMUM_EVENTS_OF_ONE, TransitionRecord
from muster.records.messages import HistoryAnswer, HistoryRequest, Message
from muster.records.names import shown
from muster.records.refusal import ControlRefused

GATHER_S = 1.0
MAXIMUM_GATHERINGS = 64  # as many as the control socket has connections
MAXIMUM_NAMED = 12  # known transitions in an error
WHERE = "query transition_history"
NOT_CONNECTED = "it is not connected"
SILENT = f"it has not answered within {GATHER_S:g} s"

Document = dict[str, Any]


class _Gathering:
    """The answers to one request."""

    def __init__(self, asked: set[int]) -> None:
        self.missing = asked
        self.statements: dict[int, Statement] = {}
        self.complete = asyncio.Event()


class TransitionHistory:
    """Asks other nodes, and answers them. `send` may lose messages; `clock_us` is the one of the record."""

    def __init__(
        self,
        node: Node,
        record: TransitionRecord,
        send: Callable[[int, Message], None],
        clock_us: Callable[[], int],
    ) -> None:
        self._node, self._record, self._send, self._clock_us = node, record, send, clock_us
        self._gatherings: dict[str, _Gathering] = {}

    def takes(self, sender: int, message: Message) -> bool:
        """Deal with a message of this protocol; False for every other."""
        match message:
            case HistoryRequest(identity=identity, transition=transition):
                own = self._own(transition)
                self._send(sender, HistoryAnswer(identity, own.now_us, own.happened, own.omitted))
            case HistoryAnswer(identity=identity, now_us=now_us, happened=happened, omitted=omitted):
                gathering = self._gatherings.get(identity)
                if gathering is not None and sender in gathering.missing:
                    gathering.missing.discard(sender)
                    happened = happened[:MAXIMUM_EVENTS_OF_ONE]
                    gathering.statements[sender] = Statement(now_us, happened, omitted)
                    if not gathering.missing:
                        gathering.complete.set()
            case _:
                return False
        return True

    async def answer(self, arguments: Document) -> Document:
        """The list of recent transitions, or the account of the one named by `id`. Raises `ControlRefused`."""
        unknown = [key for key in arguments if key != "id"]
        if unknown:
            raise ControlRefused(f"it takes no argument {shown(unknown[0])}", WHERE, "allowed: id")
        transition = arguments.get("id", 0)
        if type(transition) is not int or not 0 <= transition < 1 << 63 or ("id" in arguments and not transition):
            what = f"`id` is {shown(transition)}, which is no transition's"
            raise ControlRefused(what, WHERE, "send a number from the list of transitions, or no id for the list")
        statements, silent = await self._gather(transition)
        database = self._node.database
        if not transition:
            found = {"history": timeline.overview(database, statements)}
        else:
            account = timeline.account(database, transition, statements)
            if account is None:
                raise await self._unknown(transition, silent)
            found = account
            silent |= _without_record(transition, statements)
        return found | {
            "unanswered": [{"node": database.name_of(node), "why": silent[node]} for node in sorted(silent)]
        }

    async def _gather(self, transition: int) -> tuple[dict[int, Statement], dict[int, str]]:
        """What each node that answers has recorded, and why the others are missing."""
        if len(self._gatherings) >= MAXIMUM_GATHERINGS:
            what = f"{MAXIMUM_GATHERINGS} accounts are being gathered already"
            raise ControlRefused(what, WHERE, "ask again in a second")
        asked = set(self._node.links.connected)
        identity = os.urandom(8).hex()
        gathering = self._gatherings[identity] = _Gathering(asked)
        try:
            for node in sorted(asked):
                self._send(node, HistoryRequest(identity, transition))
            if asked:
                await asyncio.wait_for(gathering.complete.wait(), GATHER_S)
        except TimeoutError:
            pass  # the account names who is missing
        finally:
            del self._gatherings[identity]
        me, answered = self._node.me, gathering.statements
        others = set(self._node.database.nodes) - answered.keys() - {me}
        silent = {node: SILENT if node in gathering.missing else NOT_CONNECTED for node in others}
        return {**answered, me: self._own(transition)}, silent

    def _own(self, transition: int) -> Statement:
        happened, omitted = self._record.of(transition) if transition else (self._record.milestones(), 0)
        return Statement(self._clock_us(), happened, omitted)

    async def _unknown(self, transition: int, silent: dict[int, str]) -> ControlRefused:
        statements, _ = await self._gather(0)
        database = self._node.database
        newest = timeline.overview(database, statements)[:MAXIMUM_NAMED]
        known = ", ".join(f"{each['id']} ({each['node']} {each['kind']})" for each in newest)
        next_step = f"the newest that are known: {known}" if known else "none is known: they are kept until a node ends"
        if silent:
            missing = ", ".join(f"{database.name_of(node)}: {silent[node]}" for node in sorted(silent))
            next_step += f"; not everybody was heard ({missing})"
        what = f"no node that answers has a record of transition {transition}"
        return ControlRefused(what, f"cluster {database.cluster.name}", next_step)


def _without_record(transition: int, statements: dict[int, Statement]) -> dict[int, str]:
    why = "it has no record of this transition: it has booted since, or has had no part in it"
    return {
        node: why
        for node, statement in statements.items()
        if all(each.transition != transition for each in statement.happened)
    }
