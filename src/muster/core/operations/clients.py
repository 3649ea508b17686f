"""Operations on their way: from this node's clients to the master and back (SPEC 8.1, 9.1).

A node repeats its clients' requests to whoever is master until an answer comes; their identities make that harmless.
A client is answered only once this node's own replica shows what the answer speaks of. What a master says that has been
overtaken by one which was asked since counts for nothing: that one may have carried it out (P2.14).
"""

from muster.core.effects import Reply
from muster.core.versions import upgrade
from muster.records.access import ITSELF, NOBODY, Author
from muster.records.database import Database
from muster.records.messages import Request, Response
from muster.records.operations import OperationRequest
from muster.records.terms import NO_TERM, Term

MAXIMUM_PENDING = 256  # operations of one node's clients that wait for an answer
MAXIMUM_QUEUED = 1024  # on the master, between two rounds of decisions


class Clients:
    """The operations that this node's clients wait for."""

    def __init__(self) -> None:
        self._pending: dict[str, Request] = {}
        self._asked: dict[str, Term] = {}  # the highest mastership that each was sent to
        self._answers: dict[str, Response] = {}  # wait until the replica has got to their index

    def cannot_ask(self, identity: str, operation: OperationRequest, database: Database) -> Reply | None:
        """What to answer at once, where the active version does not know the operation (P10.1); else None."""
        refusal = "" if identity in database.operations else upgrade.refusal(operation, database)
        return Reply(identity, True, refusal, database.index) if refusal else None

    def add(
        self, identity: str, operation: OperationRequest, author: Author = NOBODY, index: int = 0
    ) -> Request | Reply:
        """A client of a node at `index` asks: the request to forward, or the reply when too many wait already.

        What the node asks for by itself is never turned away: the end of a program must be acted upon (P8.7), and its
        event manager has but a few requests under way.
        """
        if len(self._pending) >= MAXIMUM_PENDING and identity not in self._pending and author.user != ITSELF:
            text = f"{MAXIMUM_PENDING} operations wait on this node already: ask again when they are done"
            return Reply(identity, True, text, index)
        request = self._pending[identity] = Request(identity, operation, author)
        return request

    def unanswered(self) -> list[Request]:
        """The requests to repeat."""
        return [request for identity, request in self._pending.items() if identity not in self._answers]

    def asked(self, identity: str, term: Term) -> None:
        """The operation is sent to the master of `term`."""
        self._asked[identity] = max(term, self._asked.get(identity, NO_TERM))

    def answered(self, response: Response) -> None:
        """A master has answered; one of a lower term than was asked since is not listened to (P2.14)."""
        if response.identity in self._pending and response.term >= self._asked.get(response.identity, NO_TERM):
            self._answers[response.identity] = response

    def due(self, index: int) -> list[Reply]:
        """The replies that a replica at `index` can stand behind."""
        ready = [response for response in self._answers.values() if response.index <= index]
        for response in ready:
            del self._answers[response.identity], self._pending[response.identity]
            self._asked.pop(response.identity, None)
        return [Reply(each.identity, each.refused, each.outcome, each.index) for each in ready]
