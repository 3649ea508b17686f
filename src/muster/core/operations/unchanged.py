"""On the master: operations that changed nothing, on their way to an answer (P9.4).

Nothing of them is committed. So they are answered only once a read of all claims, begun after they were judged, has
shown no higher term: then no later master had decided anything that they should have been judged by. What was answered
is remembered while the term lasts: a repeat that is still on its way must not be carried out later.
"""

from msgspec import Struct

from muster.core.operations.operations import digest_of, is_about_one
from muster.records.messages import Request, Response

MAXIMUM_REMEMBERED = 512


class _Waiting(Struct):
    sender: int
    request: Request
    response: Response
    judged_us: int


class Unchanged:
    """The operations of one term that changed nothing."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}  # by identity
        self._answered: dict[tuple[str, str], Response] = {}  # by identity and digest

    def judged(self, sender: int, request: Request, response: Response, now_us: int) -> None:
        """The operation changes nothing; it is to be answered so."""
        self._waiting[request.identity] = _Waiting(sender, request, response, now_us)

    def waits(self, identity: str) -> bool:
        """Whether the answer to it waits for a read."""
        return identity in self._waiting

    def answered(self, request: Request) -> Response | None:
        """What was answered to the very same request, if it was."""
        if not self._answered:
            return None
        return self._answered.get((request.identity, digest_of(request.operation)))

    def confirmed(self, began_us: int) -> list[tuple[int, Response]]:
        """All claims were read, beginning then, and none was higher: whom to answer what."""
        found = [each for each in self._waiting.values() if each.judged_us < began_us]
        for each in found:
            del self._waiting[each.request.identity]
            if not is_about_one(each.request.operation):
                self._answered[each.request.identity, digest_of(each.request.operation)] = each.response
        while len(self._answered) > MAXIMUM_REMEMBERED:
            del self._answered[next(iter(self._answered))]
        return [(each.sender, each.response) for each in found]
