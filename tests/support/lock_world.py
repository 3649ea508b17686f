"""A cluster of lock managers in virtual time: clients, a network, transitions, faults, and a checker (SPEC 4.1).

`World(seed).run()` is one history. The lock managers are the real ones; the rest is here:

- transitions, by the real rules (`lock_transitions.py`): each node applies the entries in order, after delays of its
  own, often several at once; the levels above and below take their time. A death is proven only after a while, and may
  be a silence before.
- the network: between each two incarnations one connection, in order, with delays; what is under way is lost when it is
  cut. What the dead have sent may still arrive.
- `Checker`: what clients may rely on, by what they have been told and what they have asked, nothing else.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from lock_transitions import LOCKS, Master, Seat
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
    Token,
    owner_of,
)
from muster.core.locks.modes import COMPATIBLE, GIVES_UP, KNOWS, NONE, WRITES, Mode, meanwhile
from muster.core.locks.names import Bounds
from muster.core.locks.recovery import Phase, life_of
from muster.core.transitions.transition import registration_of
from muster.records.levels import NodeState, TransitionKind
from muster.records.transitions import ENTRIES_TOGETHER, Acknowledgement, Transition

SPACE = "s"
Incarnation = tuple[int, int]  # node, life


class Broken(AssertionError):
    """What must hold does not."""


# ---- the checker


@dataclass
class Held:
    """A lock as its client knows it: what it may use, which is less than it has as soon as it gives it up."""

    key: str
    mode: int
    token: Token
    owner: Incarnation


@dataclass
class Block:
    """The value block of one resource as its clients know it."""

    value: bytes = b""
    written: set[bytes] = field(default_factory=lambda: {b""})
    may_be_empty: bool = True  # there was a moment in which no client had a lock, so it may have begun anew
    may_be_lost: bool = False  # a node was lost since it was written
    lost_epoch: int = 0  # a writer was lost: grants of this epoch and later must say so
    lost_mode: int = NONE


class Checker:
    """Judges by what clients see."""

    def __init__(self, is_quiet: Callable[[], bool]) -> None:
        """`is_quiet`: no forced leave is under way; while one is, what is written may be told to the dead."""
        self.is_quiet = is_quiet
        self.held: dict[LockId, Held] = {}
        self.waits: dict[LockId, Incarnation] = {}
        self.tokens: dict[str, dict[Token, LockId]] = {}
        self.highest: dict[str, list[Token]] = {}  # by mode
        self.blocks: dict[str, Block] = {}
        self.any_lost = False
        self.grants = 0
        self.marked = 0

    def block(self, key: str) -> Block:
        """The value block of a resource."""
        return self.blocks.setdefault(key, Block(may_be_lost=self.any_lost))

    def asked(self, lock: LockId, owner: Incarnation) -> None:
        """A client waits for a lock."""
        self.waits[lock] = owner

    def granted(self, key: str, told: Granted, owner: Incarnation, *, gained: bool) -> None:
        """A client was told that it has a lock."""
        self.grants += 1
        self.waits.pop(told.lock, None)
        if gained:
            for other, held in self.held.items():
                if other != told.lock and held.key == key and not COMPATIBLE[held.mode][told.mode]:
                    raise Broken(f"{key}: {told} to {owner} beside {held}")
            self._token(key, told)
            self._value(key, told)
        self.held[told.lock] = Held(key, told.mode, told.token, owner)

    def _token(self, key: str, told: Granted) -> None:
        tokens = self.tokens.setdefault(key, {})
        if tokens.setdefault(told.token, told.lock) != told.lock:
            raise Broken(f"{key}: the token of {told} was given before")
        highest = self.highest.setdefault(key, [(0, 0)] * len(Mode))
        for mode in Mode:
            if not COMPATIBLE[told.mode][mode] and highest[mode] >= told.token:
                raise Broken(f"{key}: the token of {told} is not above {highest[mode]} of an owner before")
        highest[told.mode] = max(highest[told.mode], told.token)

    def _value(self, key: str, told: Granted) -> None:
        block = self.block(key)
        if not told.valid:
            self.marked += 1
            if not (block.may_be_lost if KNOWS[told.mode] else self.any_lost):
                raise Broken(f"{key}: {told} has no valid value though nobody was lost")
            return
        if told.value not in block.written:
            raise Broken(f"{key}: {told} has a value that nobody wrote")
        fresh = told.value == b"" and block.may_be_empty
        excludes = block.lost_mode != NONE and not COMPATIBLE[block.lost_mode][told.mode]
        if block.lost_epoch and (excludes or told.token[0] >= block.lost_epoch) and not fresh:
            raise Broken(f"{key}: {told} does not say that a writer was lost")
        if KNOWS[told.mode] and told.value != block.value and not fresh:
            raise Broken(f"{key}: {told} where {block.value!r} was written last")

    def gave_up(self, lock: LockId, mode: int, value: bytes | None) -> None:
        """A client uses less from now on; `mode` NONE: nothing."""
        held = self.held[lock]
        block = self.block(held.key)
        if value is not None:
            block.value = value
            block.written.add(value)
            block.may_be_empty = False
            block.may_be_lost = self.any_lost and not self.is_quiet()
            block.lost_epoch, block.lost_mode = 0, NONE
        if mode == NONE:
            del self.held[lock]
            self._look_empty(held.key)
        else:
            held.mode = mode

    def ended(self, lock: LockId) -> None:
        """A wait has ended without a grant."""
        self.waits.pop(lock, None)

    def died(self, owner: Incarnation) -> None:
        """It runs no more, though nobody knows: what it holds counts on, what it waits for does not."""
        self.waits = {lock: other for lock, other in self.waits.items() if other != owner}

    def proven_dead(self, last: Incarnation, epoch: int, *, only_held: bool = False) -> None:
        """What a node held in all its lives up to this one may be taken over from the round `epoch` on."""
        over = {held.owner for held in self.held.values() if held.owner[0] == last[0] and held.owner <= last}
        if only_held and not over:
            return
        for lock, held in list(self.held.items()):
            if held.owner in over:
                block = self.block(held.key)
                if WRITES[held.mode]:
                    block.lost_epoch, block.lost_mode = epoch, held.mode
                del self.held[lock]
                self._look_empty(held.key)
        self.any_lost = True
        for block in self.blocks.values():
            block.may_be_lost = True

    def _look_empty(self, key: str) -> None:
        if not any(held.key == key for held in self.held.values()):
            self.block(key).may_be_empty = True


# ---- the world


class Connection:
    """Between two incarnations."""

    def __init__(self, ends: "tuple[Host, Host]") -> None:
        self.ends = ends
        self.up = True
        self.last_us = {ends[0].node: 0, ends[1].node: 0}  # when the last message to each arrives


class Host:
    """One incarnation of a node, with one lock process."""

    def __init__(self, node: int, incarnation: int, master: Master, seat: Seat | None = None) -> None:
        """`seat`: of the node, where it has had another lock process before."""
        self.node, self.incarnation = node, incarnation
        self.seat = seat or Seat(master, node, incarnation)
        self.life = self.seat.life
        self.manager = LockManager(node, self.life, Bounds(idle=3, piece=1))
        self.manager.follow_spaces([SPACE])
        self.alive = True
        self.paused = False
        self.deferred: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.works = False
        self.links: dict[int, Connection] = {}  # those that it knows of
        self.locks: dict[LockId, tuple[int, str]] = {}  # client and key
        self.modes: dict[LockId, int] = {}  # as the client was told
        self.busy: set[LockId] = set()  # an operation on it is not over
        self.blocking = 0
        self.over: set[LockId] = set()  # whose processes have ended

    @property
    def identity(self) -> Incarnation:
        """Node, and the life of its lock process."""
        return self.node, self.life


def last_life(node: int, incarnation: int) -> Incarnation:
    """The last that one incarnation of a node can have had."""
    return node, life_of(incarnation + 1, 0) - 1


class World:
    """One seeded history."""

    nodes = 4

    def __init__(self, seed: int, *, faults: int = 8, actions: int = 220, names: int = 5) -> None:
        self.random = Random(seed)
        self.now = 0
        self.order = 0
        self.heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.hosts: dict[int, Host] = {}
        self.last_incarnation = dict.fromkeys(range(self.nodes), 0)
        self.connections: dict[frozenset[int], Connection] = {}
        self.cut: set[frozenset[int]] = set()
        self.master = Master(self.nodes)
        self.master.on_entry = self.entered
        self.ended: dict[int, tuple[int, int]] = {}  # nodes whose lock process has ended by its own wish -> which
        self.checker = Checker(self.is_quiet)
        self.faults, self.actions = faults, actions
        self.keys = [f"orders/{number}" for number in range(names)]
        self.told: dict[str, int] = {}
        self.draining = False
        self.values = 0
        self.delay_us = self.random.choice([30, 300, 3000])

    def is_quiet(self) -> bool:
        """Whether nobody can be told what only the dead would hear."""
        open_ = self.master.database.transitions.values()
        lost = any(each.kind is TransitionKind.FORCED_LEAVING for each in open_)
        return not lost and not any(map(self.is_ending, self.ended))

    def is_ending(self, node: int) -> bool:
        """Whether the record still has the node's last lock process, which has ended."""
        member = self.master.member(node)
        there = {each.identity for each in (*member.levels, *(gone.level for gone in member.gone))}
        incarnation, registration = self.ended.get(node, (-1, 0))
        return member.incarnation == incarnation and (LOCKS.number, registration) in there

    # time

    def after(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        """Do it in that many microseconds."""
        self.order += 1
        heapq.heappush(self.heap, (self.now + delay, self.order, action, arguments))

    def until(self, time: int) -> None:
        """Let time pass."""
        while self.heap and self.heap[0][0] <= time:
            self.now, _, action, arguments = heapq.heappop(self.heap)
            action(*arguments)
        self.now = max(self.now, time)

    def deliver(self, host: Host, action: Callable[..., None], *arguments: Any) -> None:
        """Do it in a host: now, or when it wakes, or never."""
        if not host.alive:
            return
        if host.paused:
            host.deferred.append((action, arguments))
            return
        action(*arguments)
        self.effects(host)

    # hosts and their network

    def boot(self, node: int) -> None:
        """A new incarnation begins to join."""
        self.last_incarnation[node] += 1
        host = Host(node, self.last_incarnation[node], self.master)
        host.manager.is_paced = self.random.random() < 0.5
        for other in self.hosts.values():
            self.after(self.random.randrange(1, 2000), self.connect, host, other)
        if node in self.hosts:
            self.hosts[node].alive = False  # it has left, or is dead
        self.hosts[node] = host
        self.after(self.random.randrange(1, self.delay_us), self.report, host)

    def connect(self, one: Host, other: Host) -> None:
        """A connection between two incarnations, once nothing is cut."""
        pair = frozenset({one.node, other.node})
        if not (one.alive and other.alive):
            return
        if pair in self.cut:
            self.after(500, self.connect, one, other)
            return
        connection = self.connections[pair] = Connection((one, other))
        for host, peer in ((one, other), (other, one)):
            self.deliver(host, self.connected, host, peer, connection)

    @staticmethod
    def connected(host: Host, peer: Host, connection: Connection) -> None:
        """A host learns of a connection."""
        host.links[peer.node] = connection
        host.manager.connected(peer.node, peer.life)

    @staticmethod
    def lost(host: Host, peer: Host, connection: Connection) -> None:
        """A host learns that it has lost one."""
        if host.links.get(peer.node) is connection:
            del host.links[peer.node]
            host.manager.lost(peer.node)

    def sever(self, pair: frozenset[int]) -> None:
        """The connection is lost with all that is on it; another one comes later."""
        connection = self.connections.pop(pair, None)
        if connection is None:
            return
        connection.up = False
        one, other = connection.ends
        for host, peer in ((one, other), (other, one)):
            self.after(self.random.randrange(1, 300), self.deliver, host, self.lost, host, peer, connection)
        self.after(self.random.randrange(400, 3000), self.connect, one, other)

    def send(self, host: Host, effect: Send) -> None:
        """Put a frame on its way, if there is a connection."""
        connection = host.links.get(effect.node)
        if connection is None:
            return
        peer = next(end for end in connection.ends if end is not host)
        arrives = max(connection.last_us[peer.node], self.now + self.random.randrange(1, self.delay_us))
        connection.last_us[peer.node] = arrives
        self.after(arrives - self.now, self.arrive, connection, host, peer, effect.frame)

    def arrive(self, connection: Connection, host: Host, peer: Host, frame: Frame) -> None:
        """A frame arrives, if its connection lasts."""
        if connection.up:
            self.deliver(peer, peer.manager.received, host.node, host.life, frame)

    def kill(self, host: Host) -> None:
        """A node dies; that is proven later."""
        host.alive = False
        self.checker.died(host.identity)
        proven = self.random.randrange(10, 6000)
        if self.random.random() < 0.5:
            self.after(self.random.randrange(proven), self.grow_silent, host)
        self.after(proven, self.prove, host)

    def prove(self, host: Host) -> None:
        """Its death is proven: only now may anything of it be taken over."""
        self.master.dead.add((host.node, host.incarnation))
        self.decide()

    def grow_silent(self, host: Host) -> None:
        """Its lease has run out: nobody waits for it any more, and nothing of it may be taken over."""
        self.master.silent.add((host.node, host.incarnation))
        self.decide()

    def report(self, host: Host) -> None:
        """What a node says has arrived at the master."""
        if host.alive:
            self.master.reports[host.node] = host.seat.report()
            self.decide()

    def decide(self) -> None:
        """The master goes on as far as it can; every node looks into the log, each in its time."""
        before = self.master.database.index
        while self.master.decide():
            pass
        for node, incarnation in self.master.dead:
            member = self.master.member(node)
            has_passed = member.state is NodeState.FORCED_LEAVING and LOCKS.number not in member.inside
            is_gone = member.incarnation > incarnation or member.state is NodeState.INACTIVE or has_passed
            if is_gone and member.incarnation >= incarnation:  # perhaps nobody was there to be told
                index = self.master.database.index
                self.checker.proven_dead(last_life(node, incarnation), index * ENTRIES_TOGETHER, only_held=True)
        index = self.master.database.index
        for node, (incarnation, registration) in self.ended.items():
            if not self.is_ending(node):
                last = node, life_of(incarnation, registration)
                self.checker.proven_dead(last, index * ENTRIES_TOGETHER, only_held=True)
        if self.master.database.index > before:
            for host in self.hosts.values():
                if host.alive:
                    self.after(self.random.randrange(1, 2 * self.delay_us), self.deliver, host, self.apply, host)

    def entered(self, transition: Transition) -> None:
        """A transition has come to the locks' level."""
        node, incarnation = transition.node, transition.incarnation
        if transition.kind is TransitionKind.FORCED_LEAVING:
            self.checker.proven_dead(last_life(node, incarnation), transition.entry)
        elif transition.kind is TransitionKind.LEAVING and transition.late:
            registration = registration_of(self.master.member(node), LOCKS.number)
            self.checker.proven_dead((node, life_of(incarnation, registration)), transition.entry)

    def apply(self, host: Host) -> None:
        """Some of the entries that are there; the others later."""
        while host.seat.is_behind:
            host.seat.apply()
            if self.random.random() < 0.5:
                self.look(host)
            if self.random.random() < 0.2:
                self.after(self.random.randrange(1, 2 * self.delay_us), self.deliver, host, self.apply, host)
                break
        self.look(host)
        self.after(self.random.randrange(1, self.delay_us), self.report, host)  # what no level needs to hear is done

    def look(self, host: Host) -> None:
        """What the node's copy says is told to its levels."""
        steps, others = host.seat.due()
        for step in steps:
            host.manager.told(step)
            if self.random.random() < 0.2:
                host.manager.told(step)  # a restarted daemon tells it again
        for other in others:
            delay = self.random.choice([1, self.delay_us, 20 * self.delay_us])
            self.after(self.random.randrange(delay), self.elsewhere, host, other)

    def elsewhere(self, host: Host, step: Acknowledgement) -> None:
        """Another level of a node has done its part, whichever lock process runs there by now."""
        now = self.hosts[host.node]
        host = now if now.seat is host.seat else host
        self.deliver(host, self.acknowledge_elsewhere, host, step)

    def acknowledge_elsewhere(self, host: Host, step: Acknowledgement) -> None:
        """Another level has done its part."""
        host.seat.subsystems.acknowledge(step)
        self.after(self.random.randrange(1, self.delay_us), self.report, host)

    # effects

    def work(self, host: Host) -> None:
        """A piece of a round's work."""
        host.works = False
        host.manager.work()

    def effects(self, host: Host) -> None:
        """Carry out what a lock manager wants done."""
        if host.manager.has_work and not host.works:
            host.works = True
            self.after(self.random.randrange(1, self.delay_us), self.deliver, host, self.work, host)
        for effect in host.manager.take():
            match effect:
                case Send():
                    self.send(host, effect)
                case Acknowledge(transition, barrier):
                    host.seat.acknowledge(transition, barrier)
                    self.after(self.random.randrange(1, self.delay_us), self.report, host)
                case Granted():
                    self.granted(host, effect)
                case NotGranted(_, lock, _):
                    self.checker.ended(lock)
                    host.busy.discard(lock)
                    if lock in host.locks and host.modes[lock] == NONE:
                        del host.locks[lock], host.modes[lock]
                    elif lock in self.checker.held:
                        self.checker.held[lock].mode = host.modes[lock]  # it has what it had
                case Released(_, lock):
                    self.checker.ended(lock)
                    if lock in host.locks:
                        if lock not in host.over:
                            raise Broken(f"{lock} of node {host.node} is free, and its client has not given it up")
                        if lock in self.checker.held:
                            self.checker.gave_up(lock, NONE, None)
                        del host.locks[lock], host.modes[lock]
                        host.busy.discard(lock)
                case Blocking():
                    host.blocking += 1
                case EndClient(client):
                    self.after(self.random.randrange(1, 3000), self.empty, host, client)

    def empty(self, host: Host, client: int) -> None:
        """Nothing of a client runs any more."""
        if not host.alive:
            return
        host.over.update(lock for lock, (owner, _) in host.locks.items() if owner == client)
        for lock, (owner, _) in list(host.locks.items()):
            if owner == client and lock in self.checker.held and host.modes[lock] != NONE:
                self.checker.held[lock].mode = Mode.NL  # its processes use it no more
        self.deliver(host, host.manager.emptied, client)

    def granted(self, host: Host, told: Granted) -> None:
        """A client is told of a grant."""
        if told.lock not in host.locks:
            raise Broken(f"{told} for a lock that its client does not have")
        _, key = host.locks[told.lock]
        before = host.modes[told.lock]
        gained = before == NONE or not GIVES_UP[before][told.mode]
        self.checker.granted(key, told, host.identity, gained=gained)
        host.modes[told.lock] = told.mode
        host.busy.discard(told.lock)
        if self.draining:
            self.after(self.random.randrange(1, 200), self.unlock, host, told.lock)

    # what clients do

    def act(self) -> None:
        """One thing that one client does."""
        host = self.hosts.get(self.random.randrange(self.nodes))
        if host is None or not host.alive or host.paused or host.manager.recovery.resumed == 0:
            return
        what = self.random.random()
        lock = self.random.choice(list(host.locks)) if host.locks else None
        if what < 0.42 or lock is None:
            self.request(host)
        elif what < 0.66:
            self.unlock(host, lock)
        elif what < 0.84:
            self.convert(host, lock)
        elif what < 0.90:
            reason = self.random.choice([Reason.CANCELLED, Reason.TIMED_OUT])
            self.ask(host, host.manager.cancel, host.locks[lock][0], lock, reason)
        elif what < 0.96:
            self.ask(host, host.manager.suspect)
        else:
            self.ask(host, host.manager.disconnected, host.locks[lock][0])

    def ask(self, host: Host, action: Callable[..., object], *arguments: Any, **options: Any) -> bool:
        """Whether it was taken."""
        try:
            action(*arguments, **options)
        except LockRefused:
            return False
        finally:
            self.effects(host)
        return True

    def request(self, host: Host) -> None:
        """A client asks for a new lock."""
        client, key = self.random.randrange(3), self.random.choice(self.keys)
        mode = self.random.choice(list(Mode))
        number = host.manager._number + 1 << 16 | host.node  # its answer may come before the call returns
        host.locks[number], host.modes[number] = (client, key), NONE
        self.checker.asked(number, host.identity)
        no_queue = self.random.random() < 0.15
        if not self.ask(host, host.manager.request, client, SPACE, key, mode, no_queue=no_queue):
            del host.locks[number], host.modes[number]
            self.checker.ended(number)

    def value(self, mode: int) -> bytes | None:
        """What a writer writes, if it writes."""
        if not WRITES[mode] or self.random.random() < 0.3:
            return None
        self.values += 1
        return str(self.values).encode()

    def unlock(self, host: Host, lock: LockId) -> None:
        """A client gives its lock up, now or when it can."""
        if not host.alive or host.paused or lock not in host.locks:
            if host.alive and lock in host.locks:
                self.after(500, self.unlock, host, lock)
            return
        client, _ = host.locks[lock]
        if host.modes[lock] == NONE or lock not in self.checker.held:
            return
        value = self.value(host.modes[lock]) if lock not in host.busy else None
        before = self.checker.held[lock].mode
        if not WRITES[before]:
            value = None
        if not self.give_up(host, lock, NONE, value, host.manager.unlock, client, lock):
            self.after(1000, self.unlock, host, lock)

    def give_up(
        self, host: Host, lock: LockId, mode: int, value: bytes | None, action: Callable[..., None], *arguments: Any
    ) -> bool:
        """The client gives something up, and says so: it has stopped using it before the call."""
        try:
            action(*arguments, value=value)
        except LockRefused:
            return False
        self.checker.gave_up(lock, mode, value)
        if mode == NONE:
            host.locks.pop(lock)
            host.modes.pop(lock)
            host.busy.discard(lock)
            self.checker.ended(lock)
        self.effects(host)
        return True

    def convert(self, host: Host, lock: LockId) -> None:
        """A client asks for another mode."""
        client, _ = host.locks[lock]
        held, mode = host.modes[lock], self.random.choice(list(Mode))
        if held == NONE or lock in host.busy:
            return
        if GIVES_UP[held][mode]:
            value = self.value(held)
            host.busy.add(lock)
            if not self.give_up(host, lock, mode, value, host.manager.convert, client, lock, mode):
                host.busy.discard(lock)
            return
        host.busy.add(lock)
        self.checker.asked(lock, host.identity)
        self.checker.held[lock].mode = meanwhile(held, mode)
        no_queue = self.random.random() < 0.15
        if not self.ask(host, host.manager.convert, client, lock, mode, no_queue=no_queue):
            host.busy.discard(lock)
            self.checker.ended(lock)
            if lock in self.checker.held:
                self.checker.held[lock].mode = held

    # faults

    def fault(self) -> None:
        """One random fault, or a join or leave."""
        alive = [host for host in self.hosts.values() if host.alive]
        what = self.random.choice(["kill", "kill", "pause", "cut", "cut", "join", "join", "leave", "leave", "restart"])
        node = self.random.randrange(self.nodes)
        host = self.hosts.get(node)
        done = True
        if what == "kill" and host is not None and host.alive and len(alive) > 1:
            self.kill(host)
        elif what == "pause" and host is not None and host.alive:
            self.pause(host)
        elif what == "cut":
            pair = frozenset(self.random.sample(range(self.nodes), 2))
            self.cut.add(pair)
            self.sever(pair)
            self.after(self.random.randrange(10, 6000), self.cut.discard, pair)
        elif what == "join" and self.is_down(node):
            self.boot(node)
        elif what == "leave" and host is not None and host.alive and len(alive) > 2 and self.master.may_leave(node):
            self.master.leave(node)
            self.decide()
        elif what == "restart" and host is not None and self.may_restart(host):
            self.restart(host)
        else:
            done = False
        if done:
            self.told[what] = self.told.get(what, 0) + 1

    def may_restart(self, host: Host) -> bool:
        """Whether its lock process is in the level, and its node at rest."""
        member = self.master.member(host.node)
        settled = member.state is NodeState.JOINED and not member.gone and LOCKS.number in member.inside
        return host.alive and not host.paused and settled and not self.is_ending(host.node)

    def restart(self, host: Host) -> None:
        """Locks are switched off and on again, before others notice: it is another process (P12.22)."""
        self.ended[host.node] = host.incarnation, host.seat.registration
        host.seat.end_locks()
        host.alive = False
        self.checker.died(host.identity)
        new = self.hosts[host.node] = Host(host.node, host.incarnation, self.master, host.seat)
        new.manager.is_paced = host.manager.is_paced
        for other in self.hosts.values():
            if other is not new:
                self.after(self.random.randrange(1, 2000), self.connect, new, other)
        self.after(self.random.randrange(1, 20 * self.delay_us), self.registers, new)
        self.after(self.random.randrange(1, self.delay_us), self.report, new)
        self.deliver(new, self.apply, new)

    def registers(self, host: Host) -> None:
        """A new lock process has begun."""
        if host.alive:
            host.seat.begin_locks()
            self.deliver(host, self.apply, host)

    def pause(self, host: Host) -> None:
        """A short one goes on afterwards; a long one outlives the lease, and the node ends before it does anything."""
        host.paused = True
        if self.random.random() < 0.4:
            self.after(self.random.randrange(100, 3000), self.kill_if_alive, host)
        else:
            self.after(self.random.randrange(10, 5000), self.wake, host)

    def kill_if_alive(self, host: Host) -> None:
        """It has been paused past its lease."""
        if host.alive:
            self.kill(host)

    def wake(self, host: Host) -> None:
        """It goes on, with all that waited for it."""
        if not host.alive:
            return
        host.paused = False
        deferred, host.deferred = host.deferred, []
        for action, arguments in deferred:
            self.deliver(host, action, *arguments)

    # one history

    def run(self) -> "World":
        """The whole history; raises `Broken`."""
        for node in range(self.random.randrange(2, self.nodes + 1)):
            self.after(self.random.randrange(1, 3000), self.boot_if_not, node)
        length = 40_000
        for _ in range(self.actions):
            self.after(self.random.randrange(1000, length), self.act)
        for _ in range(self.faults):
            self.after(self.random.randrange(1000, length), self.fault)
        self.until(length)
        while not self.told:
            self.fault()
        self.settle()
        self.agree()
        self.drain()
        return self

    def boot_if_not(self, node: int) -> None:
        """The first boots."""
        if self.is_down(node):
            self.boot(node)

    def is_down(self, node: int) -> bool:
        """Whether a new incarnation of the node may boot: the last one is dead or has left."""
        host, member = self.hosts.get(node), self.master.member(node)
        has_left = host is not None and member.incarnation == host.incarnation and member.state is NodeState.INACTIVE
        return host is None or not host.alive or has_left

    def members(self) -> list[Host]:
        """Who lives and is in the cluster."""
        return [
            host
            for host in self.hosts.values()
            if host.alive and self.master.member(host.node).state is NodeState.JOINED
        ]

    def settle(self) -> None:
        """Heal everything; what is under way must come to its end."""
        self.cut.clear()
        for host in self.hosts.values():
            if host.paused and host.alive:
                self.wake(host)
        self.until(self.now + 1_000_000)
        if self.master.database.transitions:
            raise Broken(f"transitions do not end: {list(self.master.database.transitions.values())}")
        for host in self.members():
            if host.manager.recovery.phase is not Phase.AT_REST:
                raise Broken(f"node {host.node} has not resumed")

    def agree(self) -> None:
        """Owners and masters know the same; no two masters; nothing is held back or frozen."""
        hosts = {host.node: host for host in self.members()}
        masters: dict[str, int] = {}
        copies: dict[LockId, tuple[int, int, Token]] = {}
        for host in self.hosts.values():
            tables = host.manager.tables
            if host.alive and self.is_down(host.node) and (tables.clients or tables.resources):
                raise Broken(f"node {host.node} has left, and has {tables.clients} and {tables.resources}")
        for host in hosts.values():
            tables = host.manager.tables
            if host.manager._locking.held or host.manager._locking.finds or tables.frozen:
                raise Broken(f"node {host.node} still holds something back")
            for key, resource in tables.resources.items():
                if masters.setdefault(key, host.node) != host.node:
                    raise Broken(f"{key} has two masters")
                for lock in resource.locks.values():
                    copies[lock.id] = (lock.mode, lock.wanted, lock.token)
                    if owner_of(lock.id) not in hosts:
                        raise Broken(f"{key}: a lock of a node that is gone: {lock.id}")
        for host in hosts.values():
            for locks in host.manager.tables.clients.values():
                for lock in locks.values():
                    if copies.pop(lock.id, None) != (lock.mode, lock.wanted, lock.token):
                        raise Broken(f"{lock.key}: owner and master differ about {lock.id} of node {host.node}")
            for number, mode in host.modes.items():
                client, _ = host.locks[number]
                if host.manager.tables.clients[client][number].mode != mode:
                    raise Broken(f"the client of {number} was told something else")
        if copies:
            raise Broken(f"masters know locks that nobody has: {copies}")

    def drain(self) -> None:
        """Whoever has a lock gives it up: then nobody may be left waiting."""
        self.draining = True
        for host in self.members():
            for lock in list(host.locks):
                self.unlock(host, lock)
        self.until(self.now + 300_000)
        alive = {host.identity for host in self.members()}
        left = {lock: owner for lock, owner in self.checker.waits.items() if owner in alive}
        if left:
            raise Broken(f"these wait for ever: {left}")
        for host in self.members():
            if any(resource.locks for resource in host.manager.tables.resources.values()):
                raise Broken(f"locks are left on node {host.node}")
            if host.manager.tables.clients:
                raise Broken(f"clients' locks are left on node {host.node}")
