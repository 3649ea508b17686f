"""The virtual interconnect: one connection between each two daemons, which loses, delays, repeats and reorders.

A real connection would not do all of that while it lasts; the core is owed none of it, so the world gives none of it.
What does hold, as with real connections: nothing arrives that was sent on a connection after its receiver has been
told that it ended, and a daemon that died is never heard again once its successor is.
"""

from collections.abc import Callable
from random import Random
from typing import Any

from muster.records.messages import Message, decode_message, encode_message
from muster.records.units import US_PER_MS
from muster.sim.world.time import EventLoop, Process

Received = Callable[[int, Message], None]
MAXIMUM_RETRY_US = 300 * US_PER_MS


class Endpoint:
    """A daemon as the network knows it."""

    __slots__ = ("connected", "incarnation", "lost", "node", "process", "received")

    def __init__(
        self,
        node: int,
        incarnation: int,
        process: Process,
        received: Received,
        connected: Callable[[int, int], None],
        lost: Callable[[int, str], None],
    ) -> None:
        self.node, self.incarnation, self.process = node, incarnation, process
        self.received, self.connected, self.lost = received, connected, lost


class Connection:
    """One connection between two daemons; each end learns of its end by itself."""

    __slots__ = ("ended", "ends", "open_at")

    def __init__(self, ends: tuple[Endpoint, Endpoint]) -> None:
        self.ends = ends
        self.open_at = set[int]()  # nodes that have been told that it is up, and not that it ended
        self.ended = False


class Link:
    """One direction between two nodes."""

    __slots__ = ("delay_us", "duplicated", "jitter_us", "lost", "up")

    def __init__(self) -> None:
        self.calm()

    def calm(self) -> None:
        """From now on nothing is lost or doubled, and delays are the usual ones."""
        self.up = True
        self.lost = 0.0  # share of messages
        self.duplicated = 0.0
        self.delay_us = 80
        self.jitter_us = 150


class Network:
    """All links, and the daemons that speak over them."""

    def __init__(self, loop: EventLoop, random: Random, nodes: int, connect_us: int) -> None:
        self.loop = loop
        self.random = random
        self._connect_us = connect_us
        self.links = {(a, b): Link() for a in range(nodes) for b in range(nodes) if a != b}
        self._endpoints: dict[int, Endpoint] = {}
        self._connections: dict[tuple[int, int], Connection] = {}

    def attach(self, endpoint: Endpoint) -> None:
        """A daemon has started: it connects to every other one."""
        self._endpoints[endpoint.node] = endpoint
        for node in sorted(self._endpoints):
            if node != endpoint.node:
                self._retry(endpoint, node, 40 * US_PER_MS)

    def detach(self, endpoint: Endpoint, silently: bool) -> None:
        """A daemon has died. A machine without power says no goodbye: others notice much later."""
        if self._endpoints.get(endpoint.node) is endpoint:
            del self._endpoints[endpoint.node]
        for connection in list(self._connections.values()):
            if endpoint in connection.ends:
                delay_us = 3000 * US_PER_MS if silently else 10 * US_PER_MS
                cause = "it did not answer" if silently else "it closed the connection"
                self.loop.after(int(self.random.random() * delay_us), self._end, connection, cause)

    def send(self, source: Endpoint, to: int, message: Message) -> None:
        """Send on the present connection, if there is one."""
        connection = self._connections.get(_pair(source.node, to))
        if connection is None or connection.ended or source.node not in connection.open_at:
            return
        link = self.links[source.node, to]
        random = self.random.random
        if not link.up or (link.lost and random() < link.lost):
            return
        if random() < 0.01:
            message = decode_message(encode_message(message))
        self._carry(connection, link, source.node, to, message)
        if link.duplicated and random() < link.duplicated:
            self._carry(connection, link, source.node, to, message)

    def _carry(self, connection: Connection, link: Link, source: int, to: int, message: Message) -> None:
        delay_us = link.delay_us + int(self.random.random() * link.jitter_us)
        self.loop.after(delay_us, self._arrive, connection, source, to, message)

    def _arrive(self, connection: Connection, source: int, to: int, message: Message) -> None:
        receiver = connection.ends[0] if connection.ends[0].node == to else connection.ends[1]
        self._deliver(receiver, self._take, connection, receiver, source, message)

    def _take(self, connection: Connection, receiver: Endpoint, source: int, message: Message) -> None:
        if receiver.node in connection.open_at:
            receiver.received(source, message)

    def _deliver(self, endpoint: Endpoint, action: Callable[..., None], *arguments: Any) -> None:
        self.loop.deliver(endpoint.process, action, *arguments)

    def _retry(self, endpoint: Endpoint, other: int, within_us: int) -> None:
        delay_us = 1 * US_PER_MS + int(self.random.random() * min(within_us, self._connect_us))
        self.loop.after(delay_us, self._attempt, endpoint, other)

    def _attempt(self, endpoint: Endpoint, other: int) -> None:
        """`endpoint` tries to connect; it goes on until it is connected, or it or the other is no longer there."""
        peer = self._endpoints.get(other)
        if peer is None or self._endpoints.get(endpoint.node) is not endpoint or not endpoint.process.alive:
            return
        pair = _pair(endpoint.node, other)
        ends = (endpoint, peer) if endpoint.node < other else (peer, endpoint)
        present = self._connections.get(pair)
        if present is not None and present.ends == ends and not present.ended:
            return
        both_run = endpoint.process.running and peer.process.running
        if not (both_run and self.links[pair].up and self.links[pair[1], pair[0]].up):
            self._retry(endpoint, other, MAXIMUM_RETRY_US)
            return
        if present is not None:
            self._end(present, "a newer connection replaced it")
        connection = Connection(ends)
        self._connections[pair] = connection
        for end, far in (ends, ends[::-1]):
            self.loop.after(int(self.random.random() * 500), self._deliver, end, self._opened, connection, end, far)

    def _opened(self, connection: Connection, end: Endpoint, far: Endpoint) -> None:
        if not connection.ended:
            connection.open_at.add(end.node)
            end.connected(far.node, far.incarnation)

    def _end(self, connection: Connection, cause: str) -> None:
        if connection.ended:
            return
        connection.ended = True
        pair = (connection.ends[0].node, connection.ends[1].node)
        if self._connections.get(pair) is connection:
            del self._connections[pair]
        for end, far in (connection.ends, connection.ends[::-1]):
            self._deliver(end, self._closed, connection, end, far.node, cause)
            if self._endpoints.get(end.node) is end:
                self._retry(end, far.node, MAXIMUM_RETRY_US)

    def _closed(self, connection: Connection, end: Endpoint, far: int, cause: str) -> None:
        if end.node in connection.open_at:
            connection.open_at.discard(end.node)
            end.lost(far, cause)

    def cut(self, source: int, to: int) -> None:
        """One direction carries nothing any more; the connection breaks after a while."""
        self.links[source, to].up = False
        delay_us = (300 + int(self.random.random() * 1700)) * US_PER_MS
        self.loop.after(delay_us, self._break_if_cut, source, to)

    def _break_if_cut(self, source: int, to: int) -> None:
        connection = self._connections.get(_pair(source, to))
        if connection is not None and not self.links[source, to].up:
            self._end(connection, "it did not answer")

    def calm(self) -> None:
        """All links carry everything again."""
        for link in self.links.values():
            link.calm()


def _pair(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)
