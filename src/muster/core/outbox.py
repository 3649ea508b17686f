"""What one step of a node wants done, in order: every machine of the node writes into the one outbox it was given.

A machine never calls another one, and nobody calls back: what has become of an input it returns, what is to be done it
writes here. So the order of the effects is the order in which the node asked its machines.
"""

from collections.abc import Container, Iterable

from muster.core.effects import Effect, Left, Panic, Send, Trace
from muster.records.messages import Message


class Outbox:
    """The effects of the step that is under way."""

    def __init__(self, connected: Container[int]) -> None:
        """`connected`: the peers that can be sent to, whoever they are at the moment."""
        self.has_ended = False  # the node has been told to end: it takes nothing in any more
        self._connected = connected
        self._effects: list[Effect] = []

    def __len__(self) -> int:
        return len(self._effects)

    def put(self, effect: Effect) -> None:
        """One thing to do."""
        self._effects.append(effect)

    def extend(self, effects: Iterable[Effect]) -> None:
        """Several things to do, in this order."""
        self._effects.extend(effects)

    def trace(self, event: str, detail: str, about: int = -1) -> None:
        """An event for the log; `about`: the node that it is evidence about."""
        self._effects.append(Trace(event, detail, about=about))

    def send(self, node: int, message: Message) -> None:
        """A message to a peer, if it is connected."""
        if node in self._connected:
            self._effects.append(Send(node, message))

    def panic(self, cause: str) -> None:
        """The node must not go on (SPEC 3.12)."""
        self._effects.append(Panic(cause))
        self.has_ended = True

    def left(self) -> None:
        """The graceful leave of the node is complete (SPEC 3.11)."""
        self._effects.append(Left())
        self.has_ended = True

    def drain(self) -> list[Effect]:
        """All that is to be done, in order; the outbox is empty then."""
        effects, self._effects = self._effects, []
        return effects
