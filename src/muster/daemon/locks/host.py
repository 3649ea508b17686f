"""The lock manager of a node at work: its machine, its clients, and what is told to whom (P12.15-P12.20).

Theory of operation. Whatever happens is given to the machine at once; `settle` then carries out all that it wants done,
so what arises in one turn of the loop leaves together. No lock has a task or a timer of its own: waits are kept in the
order in which they began, deadlines in a heap, and one timer looks at both.
"""

import asyncio
import contextlib
import heapq
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, assert_never

from muster.core.locks.machine import LockManager, LockRefused
from muster.core.locks.messages import (
    Acknowledge,
    Blocking,
    EndClient,
    Frame,
    Granted,
    LockId,
    NotGranted,
    Reason,
    Released,
    Send,
)
from muster.core.locks.modes import NONE
from muster.core.locks.recovery import Step
from muster.daemon.locks import requests
from muster.drivers.machine.program_process import Program
from muster.records.lockspaces import RESERVED

LOOK_S = 0.5  # between two looks at what waits
WORK_S = 0.002  # at once of what a round of recovery asks of this node
SUSPECT_S = 1.0  # who waits longer may be in a deadlock (P12.14)
GRACE_S = 5.0  # for a holder that is asked to end, before it is killed
REASONS = {
    Reason.WOULD_WAIT: "would-wait",
    Reason.CANCELLED: "cancelled",
    Reason.TIMED_OUT: "timed-out",
    Reason.DEADLOCK: "deadlock",
    Reason.CLIENT_GONE: "leaving",
}


class Talker(Protocol):
    """The connection of a client."""

    def say(self, line: tuple[object, ...]) -> None:
        """Queue a line for it."""

    def end(self) -> None:
        """Close the connection when all that was said is taken."""


class Holder:
    """A holder group: whose processes hold (P12.19).

    `is_daemon`: this node's own, which alone may lock in Muster's lockspace. What it does by a lock names its grant,
    and is refused by that: so it holds for as long as its connection lasts, and is never ended for it (P6.42).
    """

    __slots__ = ("asked_to_end_s", "is_daemon", "name", "process", "program", "talker", "uid")

    def __init__(self, talker: Talker, program: Program, name: str, process: int, uid: int) -> None:
        self.talker: Talker | None = talker
        self.program, self.name, self.process, self.uid = program, name, process, uid
        self.asked_to_end_s = 0.0  # loop time; 0: nobody has
        self.is_daemon = False


class Wait(NamedTuple):
    """What a client waits for."""

    client: int
    ref: int
    since_s: float
    is_new: bool  # a lock that has no mode yet


class Host:
    """One node's lock manager. `send` gives frames to a node's channel, `acknowledge` is the level's (P12.17)."""

    def __init__(
        self,
        manager: LockManager,
        send: Callable[[int, list[Frame]], None],
        acknowledge: Callable[[int, int], None],
        tell: Callable[[str], None],
    ) -> None:
        self.manager = manager
        self.holders: dict[int, Holder] = {}
        self.waits: dict[LockId, Wait] = {}  # in the order in which they began
        self.since_s: dict[LockId, float] = {}  # since when each lock is as it is
        self._send, self._acknowledge, self._tell = send, acknowledge, tell
        self._loop = asyncio.get_running_loop()
        self._unlocking: dict[LockId, int] = {}  # the number of the request
        self._refs: dict[tuple[int, int], LockId] = {}  # client and request -> what waits by it
        self._deadlines: list[tuple[float, LockId, int]] = []
        self._ending: set[int] = set()  # holders that are asked to end
        self._clients = 0
        self._timer: asyncio.TimerHandle | None = None
        manager.is_paced = True
        self.drive_kernel: Callable[[], None] = lambda: None  # gives the kernel what the machine wants of it (P12.30)
        self._works = False  # more of a round's work has its turn soon

    # ---- clients

    def came(self, holder: Holder) -> int:
        """A client is here; its number."""
        self._clients += 1
        self.holders[self._clients] = holder
        return self._clients

    def went(self, client: int) -> None:
        """Its connection has ended. What it holds, it holds until its processes have ended (P12.5, P12.19)."""
        holder = self.holders[client]
        holder.talker = None
        if holder.is_daemon:
            self.emptied(client)
            return
        self.manager.disconnected(client)
        self.settle()
        if not self._forget_if_empty(client):
            if holder.program.has_ended():
                self.emptied(client)
            else:
                holder.program.watch(self._loop, lambda: self.emptied(client))

    def emptied(self, client: int) -> None:
        """All processes of a holder have ended."""
        self.manager.emptied(client)
        self.settle()
        self._forget_if_empty(client)

    def _forget_if_empty(self, client: int) -> bool:
        holder = self.holders.get(client)
        if holder is None or holder.talker is not None or client in self.manager.tables.clients:
            return holder is None
        holder.program.close()
        self._ending.discard(client)
        del self.holders[client]
        return True

    def ask(self, client: int, asked: Iterable[requests.OfLocks]) -> None:
        """Some requests of one client, then whatever follows from them."""
        now_s = self._loop.time()
        holder = self.holders[client]
        talker = holder.talker
        assert talker is not None
        for request in asked:
            try:
                match request:
                    case requests.LockRequest():
                        self._lock(client, holder, request, now_s)
                    case requests.Unlock(ref, lock, value):
                        self.manager.unlock(client, lock, value=value)
                        self._unlocking[lock] = ref
                    case requests.Convert():
                        self._convert(client, request, now_s)
                    case requests.Cancel(ref, other):
                        self._cancel(client, other)
                        talker.say(("done", ref))
                    case _:
                        assert_never(request)
            except LockRefused as refused:
                talker.say(("refused", request.ref, str(refused)))
        self.settle()

    def _lock(self, client: int, holder: Holder, request: requests.LockRequest, now_s: float) -> None:
        if not holder.program.is_known:
            raise LockRefused("the kernel cannot say here when this client ends: hand over a pidfd of it")
        if request.space == RESERVED and not holder.is_daemon:
            raise LockRefused(f"lockspace {RESERVED} is Muster's own: name another one")
        if request.space not in self.manager.spaces:
            known = ", ".join(sorted(set(self.manager.spaces) - {RESERVED})) or "none"
            raise LockRefused(f"there is no lockspace {request.space[:60]!r}; there are: {known}")
        self._may_wait(client, request.ref)
        lock = self.manager.request(client, request.space, request.name, request.mode, no_queue=request.no_queue)
        self._waits(lock, Wait(client, request.ref, now_s, is_new=True), request.timeout_ms)

    def _convert(self, client: int, request: requests.Convert, now_s: float) -> None:
        self._may_wait(client, request.ref)
        self.manager.convert(client, request.lock, request.mode, value=request.value, no_queue=request.no_queue)
        self._waits(request.lock, Wait(client, request.ref, now_s, is_new=False), request.timeout_ms)

    def _may_wait(self, client: int, ref: int) -> None:
        if (client, ref) in self._refs:
            raise LockRefused(f"request {ref} of this client waits already: give each a number of its own")

    def _waits(self, lock: LockId, wait: Wait, timeout_ms: int) -> None:
        self.waits[lock] = wait
        self.since_s[lock] = wait.since_s
        self._refs[wait.client, wait.ref] = lock
        if timeout_ms:
            heapq.heappush(self._deadlines, (wait.since_s + timeout_ms / 1000, lock, wait.ref))
            self._rearm()

    def _cancel(self, client: int, ref: int) -> None:
        lock = self._refs.get((client, ref))
        if lock is None:
            return  # its answer is on its way
        self.manager.cancel(client, lock)

    # ---- transitions and the network

    def told(self, step: Step) -> None:
        """One barrier of a transition (P12.17)."""
        self.manager.told(step)
        self.settle()

    def connected(self, node: int, incarnation: int) -> None:
        """There is a connection to a node's lock process."""
        self.manager.connected(node, incarnation)
        self.settle()

    def lost(self, node: int) -> None:
        """There is none any more."""
        self.manager.lost(node)
        self.settle()

    def received(self, node: int, incarnation: int, frames: Iterable[Frame]) -> None:
        """Frames of a node, in order."""
        for frame in frames:
            self.manager.received(node, incarnation, frame)
        self.settle()

    def follow_spaces(self, spaces: Iterable[str]) -> None:
        """The lockspaces of the cluster have changed."""
        self.manager.follow_spaces(spaces)
        self.settle()

    # ---- what follows

    def settle(self) -> None:
        """Carry out all that the machine wants done, in order; begin with what a round asks of this node."""
        self._carry_out()
        if self.manager.has_work and not self._works:
            self._work()

    def _carry_out(self) -> None:
        out: dict[int, list[Frame]] = {}
        while effects := self.manager.take():
            for effect in effects:
                match effect:
                    case Granted():
                        self._granted(effect)
                    case Released(client, lock):
                        self._released(client, lock)
                    case Send(node, frame):
                        out.setdefault(node, []).append(frame)
                    case Blocking(client, lock, mode):
                        self._say(client, ("blocking", lock, mode))
                    case NotGranted(client, lock, reason):
                        self._not_granted(client, lock, REASONS[reason])
                    case Acknowledge(transition, barrier):
                        self._acknowledge(transition, barrier)
                    case EndClient(client):
                        self._end_if_it_holds(client)
                    case _:
                        assert_never(effect)
        for node, frames in out.items():
            self._send(node, frames)
        self.drive_kernel()
        if self.waits or self._ending:
            self._rearm()

    def _work(self) -> None:
        """Some of what a round asks of this node; clients and peers have their turn before there is more (P12.12)."""
        until_s = self._loop.time() + WORK_S
        while self.manager.work() and self._loop.time() < until_s:
            pass
        self._works = self.manager.has_work
        if self._works:
            self._loop.call_soon(self._work)
        self._carry_out()

    def _say(self, client: int, line: tuple[object, ...]) -> None:
        holder = self.holders.get(client)
        if holder is not None and holder.talker is not None:
            holder.talker.say(line)

    def _ended_wait(self, lock: LockId) -> int:
        """The number of the request that has waited by this lock; 0 for none."""
        wait = self.waits.pop(lock, None)
        if wait is None:
            return 0
        self._refs.pop((wait.client, wait.ref), None)
        return wait.ref

    def _granted(self, told: Granted) -> None:
        wait = self.waits.get(told.lock)
        self.since_s[told.lock] = self._loop.time()
        if wait is None:
            return
        self._ended_wait(told.lock)
        holder = self.holders.get(told.client)
        if wait.is_new and (holder is None or holder.talker is None):
            with contextlib.suppress(LockRefused):  # then it is free when its processes have ended
                self.manager.unlock(told.client, told.lock)  # its connection has ended: it never knew of this
            return
        epoch, counter = told.token
        line = ("granted", wait.ref, told.lock, told.mode, epoch, counter, told.value, told.valid)
        self._say(told.client, line)

    def _released(self, client: int, lock: LockId) -> None:
        self.since_s.pop(lock, None)
        if ref := self._ended_wait(lock):
            self._say(client, ("ended", ref, REASONS[Reason.CANCELLED]))
        if ref := self._unlocking.pop(lock, 0):
            self._say(client, ("done", ref))

    def _not_granted(self, client: int, lock: LockId, reason: str) -> None:
        if lock not in self.manager.tables.clients.get(client, ()):
            self.since_s.pop(lock, None)
        if ref := self._ended_wait(lock):
            self._say(client, ("ended", ref, reason))

    # ---- holders that are to end

    def _end_if_it_holds(self, client: int) -> None:
        """Its connection has ended, or its node leaves: who only waits need not end for that (P12.5, P12.19)."""
        locks = self.manager.tables.clients.get(client, {})
        if any(lock.mode != NONE for lock in locks.values()):
            self.end(client, "this node leaves the cluster: what it has locked must be given up")

    def end(self, client: int, why: str, *, at_once: bool = False) -> None:
        """A holder is to end: it is asked if it is there, and killed if it does not (P12.19)."""
        holder = self.holders.get(client)
        if holder is None:
            return
        if holder.talker is not None and not holder.asked_to_end_s:
            holder.talker.say(("end", why))
        if at_once or holder.talker is None:
            holder.program.kill()
        if not holder.asked_to_end_s:
            holder.asked_to_end_s = self._loop.time()
            self._ending.add(client)

    def confirmed_dead(self, client: int) -> None:
        """An administrator says that nothing of a holder runs any more (P12.21): it has no more to say here."""
        holder = self.holders[client]
        talker = holder.talker
        self.emptied(client)
        if talker is not None:
            talker.end()

    # ---- the one timer

    def _rearm(self) -> None:
        if self._timer is None:
            pause_s = LOOK_S
            if self._deadlines:
                pause_s = min(pause_s, max(0.0, self._deadlines[0][0] - self._loop.time()))
            self._timer = self._loop.call_later(pause_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, lock, ref = heapq.heappop(self._deadlines)
            wait = self.waits.get(lock)
            if wait is not None and wait.ref == ref:
                self.manager.expire(wait.client, lock)
                heapq.heappush(self._deadlines, (now_s + LOOK_S, lock, ref))  # if it is held back (P12.12)
        oldest = next(iter(self.waits.values()), None)
        if oldest is not None and now_s - oldest.since_s >= SUSPECT_S:
            self.manager.suspect()
        for client in [each for each in self._ending if now_s - self.holders[each].asked_to_end_s >= GRACE_S]:
            self._ending.discard(client)
            if self.holders[client].is_daemon:
                self.confirmed_dead(client)
                continue
            self.holders[client].program.kill()
            self._tell(f"{self.described(client)} has not ended within {GRACE_S:g} s, and was killed where that can be")
        self.settle()
        if self._deadlines:
            self._rearm()

    def described(self, client: int) -> str:
        """A holder, for people."""
        holder = self.holders[client]
        return f"{holder.name or 'a client'} (process {holder.process or 'unknown'}, user {holder.uid})"
