"""A node's channels to all others, and who is heard on them (P12.7)."""

from collections.abc import Callable

from muster.core.locks.channel import Channel
from muster.core.locks.messages import Effect, Frame, Message, Send
from muster.core.locks.recovery import Recovery


class Wires:
    """Those of one incarnation. `deal(node, incarnation, message)` is given what has come, in order."""

    def __init__(
        self,
        node: int,
        incarnation: int,
        recovery: Recovery,
        effects: list[Effect],
        deal: Callable[[int, int, Message], None],
    ) -> None:
        """What is to be sent goes into `effects`."""
        self._node, self._incarnation = node, incarnation
        self._recovery, self._effects, self.deal = recovery, effects, deal
        self._channels: dict[int, Channel] = {}
        self._connected: dict[int, int] = {}  # node -> incarnation
        self._gone: dict[int, int] = {}  # nodes whose incarnations up to this one are heard no more

    def connected(self, node: int, incarnation: int) -> None:
        """There is a connection to this incarnation of a node: all that it has not acknowledged is sent (again)."""
        known = self._channels.get(node)
        if incarnation <= self._gone.get(node, -1) or (known is not None and incarnation < known.incarnation):
            return
        self._connected[node] = incarnation
        for frame in self._channel(node, incarnation).again():
            self._effects.append(Send(node, frame))

    def lost(self, node: int) -> None:
        """The connection is gone. Nothing follows: only proof of death ends what a node holds."""
        self._connected.pop(node, None)

    def received(self, node: int, incarnation: int, frame: Frame) -> None:
        """A frame has come. What an incarnation that is gone has sent is never honoured again (P12.7)."""
        known = self._channels.get(node)
        if incarnation <= self._gone.get(node, -1) or (known is not None and incarnation < known.incarnation):
            return
        channel = self._channel(node, incarnation)
        message = channel.taken(frame)
        if message is not None:
            self.deal(node, incarnation, message)
        if self._connected.get(node) == incarnation and (acknowledgement := channel.acknowledgement()) is not None:
            self._effects.append(Send(node, acknowledgement))

    def _channel(self, node: int, incarnation: int) -> Channel:
        channel = self._channels.get(node)
        if channel is None or channel.incarnation != incarnation:
            channel = self._channels[node] = Channel(incarnation)
        return channel

    def send(self, node: int, message: Message) -> None:
        """To a node of the roster, this one too; to one that is gone nothing is to be said."""
        if node == self._node:
            self.deal(node, self._incarnation, message)
            return
        member = self._recovery.roster.get(node)
        if member is None:
            return  # proven dead, or gone: nothing is to be said
        incarnation = member.incarnation
        if node in self._channels and self._channels[node].incarnation > incarnation:
            return  # its next life is here: it is to be forced out
        frame = self._channel(node, incarnation).sent(message)
        if self._connected.get(node) == incarnation:
            self._effects.append(Send(node, frame))

    def bid_farewell(self, node: int, incarnation: int) -> None:
        """This incarnation is proven dead, or has left: it is heard no more."""
        self._gone[node] = max(incarnation, self._gone.get(node, -1))
        if node in self._channels and self._channels[node].incarnation <= incarnation:
            del self._channels[node]
