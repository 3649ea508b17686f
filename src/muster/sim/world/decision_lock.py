"""The decision lock as daemons see it: asked for, granted in turn, given up, lost without their knowing it (P6.42).

What lock processes do about it has a simulator of its own (`tests/support/lock_world.py`). Here it is one queue. A
holder that ends frees it after a while, as a recovery would. It may also be taken away from a holder that hears of that
much later, or never: somebody has confirmed it dead, which is wrong.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from muster.records.deciders import Grant
from muster.records.units import US_PER_MS
from muster.sim.history import History, LockGranted
from muster.sim.world.time import EventLoop, Process

FIRST_EPOCH = 1024


class Seat(NamedTuple):
    """A daemon that asks for the lock."""

    node: int
    incarnation: int
    process: Process
    tell: Callable[[Grant | None], None]
    point: Callable[[str, str], None]


class VirtualDecisionLock:
    """Who has it, and who waits."""

    def __init__(self, loop: EventLoop, history: History, random: Random) -> None:
        self._loop, self._history, self._random = loop, history, random
        self._waiting: list[Seat] = []
        self._holder: Seat | None = None
        self._count = 0

    @property
    def holder(self) -> int | None:
        """The node that has it."""
        return self._holder.node if self._holder is not None else None

    def want(self, seat: Seat) -> None:
        """A daemon asks for it."""
        self._waiting.append(seat)
        self._serve_soon()

    def give_up(self, seat: Seat) -> None:
        """A daemon has it no more, or waits no more."""
        self._forget(seat)

    def ended(self, seat: Seat) -> None:
        """The daemon has ended; what it held is free when that is known."""
        if seat in self._waiting:
            self._waiting.remove(seat)
        self._loop.after(self._delay_us(800), self._forget, seat)

    def take_away(self, for_us: int) -> None:
        """It is another's; who had it hears of that in `for_us`."""
        lost, self._holder = self._holder, None
        if lost is not None:
            self._loop.deliver_after(for_us, lost.process, lost.tell, None)
        self._serve_soon()

    def _forget(self, seat: Seat) -> None:
        if seat in self._waiting:
            self._waiting.remove(seat)
        if self._holder == seat:
            self._holder = None
        self._serve_soon()

    def _delay_us(self, most_ms: int) -> int:
        return int(self._random.random() * most_ms * US_PER_MS)

    def _serve_soon(self) -> None:
        self._loop.after(self._delay_us(10), self._serve)

    def _serve(self) -> None:
        if self._holder is not None or not self._waiting:
            return
        seat = self._holder = self._waiting.pop(0)
        self._count += 1
        grant = (FIRST_EPOCH + 7 * (self._count // 3), self._count)
        self._history.append(LockGranted(self._loop.now_us, seat.node, seat.incarnation, grant))
        self._loop.deliver_after(self._delay_us(4), seat.process, seat.tell, grant)
        seat.point("granted", "begun")
