"""The channels between the lock processes of the nodes: the interconnect's ways, for another purpose (P12.18).

A node's process listens at the host of each of its addresses, on a port that the system chooses, and connects to those
of all others: so there are as many paths as links. What a process says takes one of them; where that changes, the
machine sends again all that was not acknowledged, for what is under way on the one may be lost or come later.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from muster.core.locks.messages import Copies, Edges, Entries, Frame, Handed
from muster.core.locks.recovery import life_of
from muster.daemon.locks.codec import LOCKS, Answer, Question, Received, written
from muster.drivers.interconnect.mesh import Interconnect, Trust, parse_address
from muster.records.timing import Profile

PURPOSE = "/locks"  # in Hello: no daemon takes a lock process for one of its kind
BATCH_ENTRIES = 512  # of one message: frames, and what the frames of a recovery list
BATCHES_A_TURN = 4  # then the loop has its turn: clients and other nodes go on meanwhile
QUEUED_BYTES = 8 * 1024 * 1024  # that the interconnect holds for a peer: more waits here, where it costs no copy
PUMP_S = 0.005
SEEK_S = 0.25  # between two questions where those are who are not connected

Settings = dict[str, Any]


def hosts_of(addresses: list[str]) -> list[str]:
    """The hosts at which a node's lock process listens, one for each of the node's addresses (P1.8)."""
    hosts = [parse_address(address)[0] for address in addresses]
    return [f"[{host}]" if ":" in host else host for host in hosts]


class Taker(Protocol):
    """Whom the channels tell what happens on them."""

    def connected(self, node: int, incarnation: int) -> None:
        """There is a connection, or another one: all that was not acknowledged is to be sent again."""

    def lost(self, node: int) -> None:
        """There is none any more."""

    def received(self, node: int, incarnation: int, frames: list[Frame]) -> None:
        """Frames of a node, in order."""


def entries_of(frame: Frame) -> int:
    """How much a frame holds: one thing, or as many as it lists."""
    match frame.message:
        case Copies(copies=listed) | Handed(kept=listed) | Entries(keys=listed) | Edges(edges=listed):
            return max(1, len(listed))
    return 1


class Peers:
    """This node's end of all of them. `asked(node, question)` and `answered(node, answer)`: what people want to see."""

    def __init__(self, settings: Settings, *, tell: Callable[[str], None]) -> None:
        self.incarnations: dict[int, int] = {}  # lives of who is connected
        self._settings = settings
        self._ports: dict[int, tuple[int, ...]] = {}
        self._waiting: dict[int, deque[Frame]] = {}  # frames that the interconnect has not been given
        self._taker: Taker | None = None  # until this process has registered, it has no name for others to know
        self.asked: Callable[[int, Question], None] = lambda _node, _question: None
        self.answered: Callable[[int, Answer], None] = lambda _node, _answer: None
        self._loop = asyncio.get_running_loop()
        self._pump: asyncio.TimerHandle | None = None
        self._interconnect = Interconnect(
            settings["node"], settings["cluster"], settings["incarnation"], Profile(**settings["profile"]),
            on_message=self._on_message, on_connected=self._on_connected, on_lost=self._on_lost, on_trouble=tell,
            codec=LOCKS, purpose=PURPOSE, in_order=True, life_of=life_of,
        )  # fmt: skip

    async def start(self, key: str) -> None:
        """Listen at this node's hosts; nobody is let in yet. `key` is the path of its private key.

        An address that cannot be had yet is tried again (P11.6). Raises `CertificateRefused`.
        """
        own = self._settings
        listen = tuple(f"{host}:0" for host in hosts_of(own["nodes"][str(own["node"])]["addresses"]))
        await self._interconnect.start(listen, own["certificate"], key, own["authorities"], patient=True)
        self._trust()

    @property
    def ports(self) -> list[int]:
        """Where this process listens, in the order of its node's addresses; 0 where it cannot yet."""
        return list(self._interconnect.ports)

    def begin(self, registration: int, taker: Taker) -> None:
        """This process is registered, so it has a name (P12.22): others may come, and what they say is the taker's."""
        self._taker = taker
        self._interconnect.set_process(registration)
        self._place()

    def follow(self, settings: Settings) -> None:
        """What the daemon knows has changed. Raises `CertificateRefused`."""
        self._settings = settings
        self._trust()
        self._place()

    def _trust(self) -> None:
        own = self._settings
        keys = {int(node): each["key"] for node, each in own["nodes"].items()}
        self._interconnect.set_trust(Trust(own["authorities"], keys), own["certificate"])

    def found(self, ports: dict[int, tuple[int, ...]]) -> None:
        """Where lock processes listen, as their daemons say."""
        self._ports.update(ports)
        self._place()

    def _place(self) -> None:
        nodes = {int(node): hosts_of(each["addresses"]) for node, each in self._settings["nodes"].items()}
        self._interconnect.set_peers(
            {
                node: tuple(
                    f"{host}:{port}" if port else ""
                    for host, port in zip(hosts, self._ports.get(node, ()), strict=False)
                )
                for node, hosts in nodes.items()
            }
        )  # who has no port yet may come by itself

    def paths(self, node: int) -> list[str]:
        """How each link to a node is: `up`, `silent` or `down`."""
        return [str(path["state"]) for path in self._interconnect.paths(node)]

    async def close(self) -> None:
        """End all connections."""
        await self._interconnect.close()

    # ---- sending

    def send(self, node: int, frames: list[Frame]) -> None:
        """Frames of one turn, in order; lost with the connection, and then the machine sends them again."""
        waiting = self._waiting.get(node)
        if waiting is None and len(frames) <= BATCH_ENTRIES and all(entries_of(frame) == 1 for frame in frames):
            self._interconnect.send(node, written(frames))  # type: ignore[arg-type]  # of this codec
            return
        self._waiting.setdefault(node, deque()).extend(frames)
        if waiting is None:
            self._give(node)

    def say(self, node: int, said: Question | Answer) -> bool:
        """A question or an answer; false if it certainly does not arrive."""
        return self._interconnect.send(node, said)  # type: ignore[arg-type]  # of this codec

    def _give(self, node: int) -> None:
        """Give the interconnect some of what waits for a node; the rest in later turns of the loop."""
        waiting = self._waiting[node]
        for _ in range(BATCHES_A_TURN):
            if not waiting or self._interconnect.queued_bytes(node) >= QUEUED_BYTES:
                break
            batch, entries = [], 0
            while waiting and entries < BATCH_ENTRIES:
                batch.append(waiting.popleft())
                entries += entries_of(batch[-1])
            if not self._interconnect.send(node, written(batch)):  # type: ignore[arg-type]  # of this codec
                break  # it is lost, and comes again
        if not waiting:
            del self._waiting[node]
        elif self._pump is None:
            self._pump = self._loop.call_later(PUMP_S, self._give_more)

    def _give_more(self) -> None:
        self._pump = None
        for node in list(self._waiting):
            self._give(node)

    # ---- the interconnect's callbacks

    def _on_connected(self, node: int, incarnation: int) -> None:
        self._waiting.pop(node, None)  # the machine sends all of it again
        self.incarnations[node] = incarnation
        self._known_taker.connected(node, incarnation)

    def _on_lost(self, node: int, _cause: str) -> None:
        self._waiting.pop(node, None)
        self.incarnations.pop(node, None)
        self._known_taker.lost(node)

    @property
    def _known_taker(self) -> Taker:
        assert self._taker is not None, "nobody connects before `begin`"
        return self._taker

    def _on_message(self, node: int, message: object) -> None:
        try:
            self._take(node, message)
        except Exception as error:  # not this connection's alone: the machine is not what it should be any more
            self._loop.call_exception_handler({"message": f"what node {node} has sent", "exception": error})
            raise

    def _take(self, node: int, message: object) -> None:
        match message:
            case Received(frames):
                incarnation = self.incarnations.get(node)
                if incarnation is not None:
                    self._known_taker.received(node, incarnation, frames)
            case Question():
                self.asked(node, message)
            case Answer():
                self.answered(node, message)
