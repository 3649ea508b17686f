"""Heartbeats: what each node tells all others all the time, and what it has heard of theirs (SPEC 2.5, 3.13, 7.5).

Theory of operation. A heartbeat is about the present only: each replaces the last one of its sender, and a lost one is
made good by the next. So nothing is decided by one alone. It tells which term and entry its sender is at, for how long
its sender could not read the store, whether it could lead, what waits for a place there; and a master's also who holds
up which transition, so that any node can answer the question. What concerns another machine is given to it here; what
is only kept for people, the waiting of transitions and of places, stands in this one.
"""

from collections.abc import Iterable, Mapping

from muster.core.decisions.leadership import Beside, Leadership
from muster.core.leases.memory import Memory
from muster.core.outbox import Outbox
from muster.core.services.places import Places
from muster.core.this_node import ThisNode
from muster.core.transitions.waiting import Waiting
from muster.records.messages import Heartbeat
from muster.records.units import US_PER_MS


class Heartbeats:
    """When the next ones are due, and what those of the others have said that is for people."""

    def __init__(self, me: ThisNode, now_us: int, out: Outbox) -> None:
        self.next_us = now_us
        self.places = Places()
        self.waiting = Waiting()
        self.fence_troubles: dict[int, dict[str, str]] = {}  # by node, as it says (P7.28)
        self._incarnation, self._out = me.incarnation, out

    def is_due(self, now_us: int) -> bool:
        """Whether all peers are to be told now; the next ones are then due an interval later."""
        return now_us >= self.next_us

    def begin(self, beside: Beside, now_us: int) -> None:
        """They go out now: when the next ones are due, with as many nodes as are configured (P4.6)."""
        self.next_us = now_us + beside.observer.beat_ms(len(beside.replica.database.nodes)) * US_PER_MS

    def tell(
        self, nodes: Iterable[int], waiting: Mapping[int, tuple[int, ...]], unable: str, beside: Beside, now_us: int
    ) -> None:
        """Send one to each of `nodes`. `waiting`: of a master; `unable`: why this node cannot lead, in words."""
        replica, lost_ms = beside.replica, beside.observer.lost_ms(now_us)
        heartbeat = Heartbeat(
            self._incarnation, replica.accepted, replica.database.index, tuple(waiting.items()), lost_ms, unable,
            *self.places.own(now_us), tuple(beside.asker.troubles.items()),
        )  # fmt: skip
        for node in nodes:
            self._out.send(node, heartbeat)

    def hear(
        self, sender: int, heartbeat: Heartbeat, leadership: Leadership, beside: Beside, memory: Memory, now_us: int
    ) -> None:
        """Another node has sent one."""
        memory.heard(heartbeat.term, now_us)
        beside.links.store_lost_ms[sender] = heartbeat.store_lost_ms
        leadership.inability.told[sender] = heartbeat.unable
        self.places.heard(sender, heartbeat)
        self.fence_troubles[sender] = dict(heartbeat.fence_troubles)
        if leadership.term is not None:
            leadership.term.followers.is_at(sender, heartbeat.term, heartbeat.index)
        if heartbeat.term == beside.replica.accepted and heartbeat.term.node == sender:
            self.waiting.told = dict(heartbeat.waiting)
