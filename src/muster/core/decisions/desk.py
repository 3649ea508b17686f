"""What is asked on this node, and what its programs are asked: requests, answers, objections (P4.5, P9.1).

Theory of operation. Two things come in here and leave as messages: an operation of a client, which is forwarded to the
master until an answer comes back that the replica can stand behind; and the master's question to the programs of this
node whether they object, which is answered once all of them have. The master may be this node itself: what the others
send it is given to its term in the very call, and what that answers to this node comes back to this desk, without a
message. So one loop serves both, and it ends: an answer is asked nothing, and a question is answered once.
"""

from typing import assert_never

from muster.core.decisions.leadership import Beside
from muster.core.decisions.term import MasterTerm, Told
from muster.core.inputs import OperationRequested
from muster.core.operations.clients import Clients
from muster.core.outbox import Outbox
from muster.core.this_node import ThisNode
from muster.core.transitions.objections import Questions
from muster.records.members import EvictNode
from muster.records.messages import Ask, ForDesk, Proposal, Request, Response, Verdict


class Desk:
    """The clients and the questions of one node. `leading`: its term, if it is the master itself."""

    def __init__(self, me: ThisNode, out: Outbox) -> None:
        self._clients = Clients()
        self._questions = Questions()
        self._me, self._out = me.node, out

    def ask(self, asked: OperationRequested, leading: MasterTerm | None, beside: Beside, now_us: int) -> None:
        """A client asks: its operation is forwarded, unless it is refused at once.

        That a node is dead, as an operator says, this node believes at once: without a master it may then claim (P4.2).
        """
        identity, operation, database = asked.identity, asked.operation, beside.replica.database
        reply = self._clients.cannot_ask(identity, operation, database)
        if reply is None and isinstance(operation, EvictNode) and operation.confirmed_dead:
            beside.observer.believe(operation, database)
        request = reply or self._clients.add(identity, operation, asked.author, database.index)
        if isinstance(request, Request):
            self._forward(request, leading, beside, now_us)
        else:
            self._out.put(request)

    def repeat(self, leading: MasterTerm | None, beside: Beside, now_us: int) -> None:
        """Ask again for all that nobody has answered."""
        for request in self._clients.unanswered():
            self._forward(request, leading, beside, now_us)

    def hear(self, sender: int, message: ForDesk, leading: MasterTerm | None, beside: Beside, now_us: int) -> None:
        """Another node asks or answers. What only a master can use is nothing to others; only a master asks."""
        match message:
            case Request():
                if leading is not None:
                    told = leading.request(sender, message, beside.replica.database, now_us)
                    self.deliver(told, leading, beside, now_us)
            case Response():
                self._answered(message, beside)
            case Ask():
                if sender == beside.replica.accepted.node:
                    self._ask_programs(sender, message, leading, beside, now_us)
            case Verdict():
                if leading is not None:
                    leading.judged(sender, message)
                    self.decide_polls(leading, beside, now_us)
            case Proposal():
                if leading is not None:
                    leading.propose(sender, message)
            case _:
                assert_never(message)

    def deliver(self, told: Told, leading: MasterTerm | None, beside: Beside, now_us: int) -> None:
        """Tell the others what this master has to say to them, and this node itself."""
        for node, message in told:
            if node != self._me:
                self._out.send(node, message)
            elif isinstance(message, Ask):
                self._ask_programs(node, message, leading, beside, now_us)
            else:
                self._answered(message, beside)

    def decide_polls(self, leading: MasterTerm, beside: Beside, now_us: int) -> None:
        """On the master: carry out, or refuse, what all have been asked about (P4.5)."""
        self.deliver(leading.decide_polls(beside.replica.database, now_us), leading, beside, now_us)

    def reply(self, index: int) -> None:
        """Give the answers that a replica at `index` can stand behind."""
        self._out.extend(self._clients.due(index))

    def objected(
        self, question: str, level: int, objection: str, leading: MasterTerm | None, beside: Beside, now_us: int
    ) -> None:
        """A program has answered a question: what it objects, or nothing."""
        self._questions.answered(question, level, objection)
        self._tell_verdicts(leading, beside, now_us)

    def lost(self, level: int, leading: MasterTerm | None, beside: Beside, now_us: int) -> None:
        """A program has gone: what it was asked it answers no more."""
        self._questions.lost(level)
        self._tell_verdicts(leading, beside, now_us)

    def _forward(self, request: Request, leading: MasterTerm | None, beside: Beside, now_us: int) -> None:
        replica = beside.replica
        if leading is not None:
            self._clients.asked(request.identity, replica.accepted)
            told = leading.request(self._me, request, replica.database, now_us)
            self.deliver(told, leading, beside, now_us)
            return
        holder = beside.observer.holder(replica.followed)
        if holder is not None:
            self._clients.asked(request.identity, holder)
            self._out.send(holder.node, request)

    def _answered(self, response: Response, beside: Beside) -> None:
        self._clients.answered(response)
        self.reply(beside.replica.database.index)

    def _ask_programs(self, asker: int, ask: Ask, leading: MasterTerm | None, beside: Beside, now_us: int) -> None:
        self._out.extend(self._questions.ask(asker, ask, beside.subsystems.levels.values()))
        self._tell_verdicts(leading, beside, now_us)

    def _tell_verdicts(self, leading: MasterTerm | None, beside: Beside, now_us: int) -> None:
        """Tell each asker what has come of its question; the own master decides at once (P4.5)."""
        own = []
        for asker, verdict in self._questions.over():
            if asker == self._me:
                own.append(verdict)
            else:
                self._out.send(asker, verdict)
        if leading is not None and own:
            for verdict in own:
                leading.judged(self._me, verdict)
            self.decide_polls(leading, beside, now_us)
