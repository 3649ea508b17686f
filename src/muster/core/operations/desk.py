"""What this node's own people ask for, and what its own programs are asked: requests, replies, questions (P4.5, P9.1).

Two things that come in here and leave as messages: an operation of a client, which is forwarded to the master until an
answer comes back that the replica can stand behind; and the master's question to the programs of this node whether they
object, which is answered once all of them have. What is for this node's own master is returned.
"""

from muster.core.leases.observer import Observer
from muster.core.operations.clients import Clients
from muster.core.outbox import Outbox
from muster.core.this_node import ThisNode
from muster.core.transitions.objections import Questions
from muster.core.transitions.subsystems import Subsystems
from muster.records.access import Author
from muster.records.database import Database
from muster.records.members import EvictNode
from muster.records.messages import Ask, Request, Response, Verdict
from muster.records.operations import OperationRequest


class Desk:
    """The clients and the questions of one node."""

    def __init__(self, me: ThisNode, out: Outbox) -> None:
        self.clients = Clients()
        self._questions = Questions()
        self._me, self._out = me.node, out

    def ask(
        self, identity: str, operation: OperationRequest, author: Author, database: Database, observer: Observer
    ) -> Request | None:
        """A client asks: the request to forward; None if it is refused at once.

        That a node is dead, as an operator says, this node believes at once: without a master it may then claim (P4.2).
        """
        reply = self.clients.cannot_ask(identity, operation, database)
        if reply is None and isinstance(operation, EvictNode) and operation.confirmed_dead:
            observer.believe(operation, database)
        asked = reply or self.clients.add(identity, operation, author, database.index)
        if isinstance(asked, Request):
            return asked
        self._out.put(asked)
        return None

    def hear(self, response: Response, index: int) -> None:
        """A master has answered; this node's replica is at `index`."""
        self.clients.answered(response)
        self.reply(index)

    def reply(self, index: int) -> None:
        """Give the answers that the replica can stand behind now."""
        self._out.extend(self.clients.due(index))

    def question(self, asker: int, ask: Ask, subsystems: Subsystems) -> list[Verdict]:
        """A master asks whether the programs of this node object."""
        self._out.extend(self._questions.ask(asker, ask, subsystems.levels.values()))
        return self._verdicts()

    def answered(self, question: str, level: int, objection: str) -> list[Verdict]:
        """A program has answered."""
        self._questions.answered(question, level, objection)
        return self._verdicts()

    def lost(self, level: int) -> list[Verdict]:
        """A program has gone: what it was asked it answers no more."""
        self._questions.lost(level)
        return self._verdicts()

    def _verdicts(self) -> list[Verdict]:
        """Tell each asker what has come of its question; returns what is for this node's own master."""
        own = []
        for asker, verdict in self._questions.over():
            if asker == self._me:
                own.append(verdict)
            else:
                self._out.send(asker, verdict)
        return own
