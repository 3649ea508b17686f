"""The lock manager of one node: clients' locks, resources mastered here, directory and recovery, composed (SPEC 4.1).

Theory of operation. A resource has one master. Whoever needs it first asks the directory, and becomes its master if
there is none; so what one node alone uses never leaves it. The master decides; owners keep what they have been granted,
and that is what a master is built up from again. A mode that is given up is given up at once at the owner, and the
master learns of it; a mode that is gained is gained when the master's grant has come.

Inputs are the methods; what is to be done about them is in the list that `take` returns, in order. The machine reads no
clock and does no I/O: a timeout is an input (`expire`), and so is the wish to look for deadlocks (`suspect`). What a
client asks wrongly raises `LockRefused` and changes nothing. What a round of recovery asks of this node is done in
pieces (`work`), so that clients are served in between.
"""

from collections.abc import Iterable, Iterator
from typing import cast

from muster.core.locks.channel import Channel
from muster.core.locks.deadlock import MAXIMUM_EDGES, Search, edges_of
from muster.core.locks.directory import NOBODY
from muster.core.locks.messages import (
    NO_TOKEN,
    NODE_BITS,
    Acknowledge,
    Ask,
    Blocking,
    Change,
    Chosen,
    Collect,
    Copies,
    Denied,
    Dropped,
    Edge,
    Edges,
    Effect,
    Emptied,
    EndClient,
    Entries,
    Find,
    Found,
    Frame,
    Free,
    Given,
    Granted,
    Handed,
    LockId,
    Marks,
    Message,
    NotGranted,
    NotHere,
    Reason,
    Rebuilt,
    Released,
    Send,
    Stopped,
    Suspect,
    Token,
    Wanted,
    Withdraw,
    owner_of,
)
from muster.core.locks.modes import GIVES_UP, NONE, WRITES, Mode
from muster.core.locks.names import (
    MAXIMUM_SPACES,
    MAXIMUM_VALUE,
    Bounds,
    bucket_of,
    key_of,
    name_problem,
    space_problem,
)
from muster.core.locks.recovery import BARRIERS, MASK, Kind, Member, Phase, Recovery, Step, Work
from muster.core.locks.resource import Lock, News, Resource, What
from muster.core.locks.tables import Tables, Use

_NO_BOUNDS = Bounds()


class LockRefused(Exception):
    """What a client asked for cannot be; the message says why."""


class LockManager:
    """One incarnation of one node."""

    def __init__(self, node: int, incarnation: int, bounds: Bounds = _NO_BOUNDS) -> None:
        self.node, self.incarnation = node, incarnation
        self.tables = Tables(node)
        self.recovery = Recovery(node, bounds.piece)
        self.search = Search()
        self.spaces: frozenset[str] = frozenset()
        self.is_leaving = False
        self.is_paced = False  # recoveries go on with `work` only, piece by piece; else at once
        self._job: Iterator[None] | None = None
        self._may_hold_absent = False  # resources here may have locks of nodes that are proven dead
        self.is_out = False  # all have done with its leave: it only acknowledges what others' transitions still ask
        self._bounds = bounds
        self._count = 0  # locks of this node's clients
        self._number = 0  # of the last lock that was made here
        self._turn = 0  # of the last question to the directory
        self._channels: dict[int, Channel] = {}
        self._connected: dict[int, int] = {}  # node -> incarnation
        self._gone: dict[int, int] = {}  # nodes whose incarnations up to this one are heard no more
        self._finds: list[tuple[int, Find]] = []  # questions to the directory that wait for the end of the recovery
        self._held: dict[LockId, tuple[Lock, str, tuple[object, ...]]] = {}  # operations that wait for it
        self._effects: list[Effect] = []

    def take(self) -> list[Effect]:
        """All that is to be done, in order."""
        effects, self._effects = self._effects, []
        return effects

    # ---- what clients ask

    def follow_spaces(self, spaces: Iterable[str]) -> None:
        """The lockspaces of the cluster, by its configuration; locks in one that is no more are left alone."""
        wanted = frozenset(spaces)
        for space in wanted:
            if problem := space_problem(space):
                raise LockRefused(problem)
        if len(wanted) > MAXIMUM_SPACES:
            raise LockRefused(f"a cluster has at most {MAXIMUM_SPACES} lockspaces")
        self.spaces = wanted

    def request(self, client: int, space: str, name: str, mode: int, *, no_queue: bool = False) -> LockId:
        """A new lock; the grant comes as an effect, perhaps much later. Raises `LockRefused`."""
        key = key_of(space, name)
        if key not in self.tables.resources or space not in self.spaces:
            self._check_name(space, name)
        locks = self.tables.clients.get(client)
        if not 0 <= mode <= Mode.EX:
            raise LockRefused(f"there is no mode {mode!r}: modes are {', '.join(each.name for each in Mode)}")
        if self.is_leaving:
            raise LockRefused("this node is leaving the cluster: ask on another one")
        if self._count >= self._bounds.locks:
            raise LockRefused(f"this node has {self._bounds.locks} locks, which is all that it may have")
        if locks is None:
            locks = self.tables.clients[client] = {}
        elif len(locks) >= self._bounds.locks_of_client:
            raise LockRefused(f"this client has {self._bounds.locks_of_client} locks, which is all that it may have")
        self._number += 1
        self._count += 1
        lock = Lock(key, self._number << NODE_BITS | self.node, client, mode, no_queue=no_queue)
        locks[lock.id] = lock
        self._place(lock)
        return lock.id

    def convert(
        self, client: int, number: LockId, mode: int, *, value: bytes | None = None, no_queue: bool = False
    ) -> None:
        """Another mode for a lock; `value` is written to the value block where a writer gives up or renews its mode."""
        lock = self._granted_lock(client, number)
        if not 0 <= mode <= Mode.EX:
            raise LockRefused(f"there is no mode {mode!r}: modes are {', '.join(each.name for each in Mode)}")
        if lock.wanted != NONE:
            raise LockRefused("the lock waits for a conversion: cancel that one first")
        self._check_value(lock, value)
        if value is not None and not GIVES_UP[lock.mode][mode]:
            raise LockRefused("a value block is written when a mode is given up or kept, not when one is gained")
        if self._hold_back(lock, "_convert", (mode, value, no_queue)):
            return
        self._convert(lock, mode, value, no_queue)

    def unlock(self, client: int, number: LockId, *, value: bytes | None = None) -> None:
        """The lock is no more, and no conversion that it waits for; `value` is written where it is a writer's."""
        lock = self._granted_lock(client, number)
        self._check_value(lock, value)
        if self._hold_back(lock, "_free", (value,)):
            return
        self._free(lock, value)

    def cancel(self, client: int, number: LockId, reason: Reason = Reason.CANCELLED) -> None:
        """End the wait of a lock, if it is not granted before that; nothing where it waits for nothing."""
        lock = self._lock(client, number)
        if lock.wanted == NONE or lock.cancelling:
            return
        lock.cancelling = reason
        self._withdraw(lock)

    def expire(self, client: int, number: LockId) -> None:
        """The time is over for which a client wants to wait."""
        if number in self.tables.clients.get(client, ()) and number not in self._held:
            self.cancel(client, number, Reason.TIMED_OUT)

    def disconnected(self, client: int) -> None:
        """A client's connection is gone. What it waits for ends; what it holds, it holds until it is empty (P12.5)."""
        locks = self.tables.clients.get(client)
        if not locks:
            return
        self._effects.append(EndClient(client))
        for lock in list(locks.values()):
            _, what, arguments = self._held.get(lock.id, (lock, "", ()))
            if what == "_convert" and not GIVES_UP[lock.mode][cast("int", arguments[0])]:
                del self._held[lock.id]
            if lock.wanted != NONE and lock.id not in self._held:
                self.cancel(client, lock.id, Reason.CLIENT_GONE)

    def emptied(self, client: int) -> None:
        """It is proven that nothing of the client runs any more: its locks are free (P12.5)."""
        for lock in list(self.tables.clients.get(client, {}).values()):
            value = self._value_held_back(lock)
            if not self._hold_back(lock, "_free", (value,), always=True):
                self._free(lock, value)

    def suspect(self) -> None:
        """Somebody has waited for long: look for a deadlock (P12.14)."""
        if not self.recovery.roster or self.recovery.phase is not Phase.AT_REST:
            return
        lowest = min(self.recovery.roster)
        if lowest != self.node:
            self._send(lowest, Suspect())
        elif not self.search.is_under_way:
            self._ask_for_edges()

    # ---- the network

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
            self._message(node, incarnation, message)
        if self._connected.get(node) == incarnation and (acknowledgement := channel.acknowledgement()) is not None:
            self._effects.append(Send(node, acknowledgement))

    def _channel(self, node: int, incarnation: int) -> Channel:
        channel = self._channels.get(node)
        if channel is None or channel.incarnation != incarnation:
            channel = self._channels[node] = Channel(incarnation)
        return channel

    def _send(self, node: int, message: Message) -> None:
        if node == self.node:
            self._message(node, self.incarnation, message)
            return
        member = self.recovery.roster.get(node)
        if member is None:
            return  # proven dead, or gone: nothing is to be said
        incarnation = member.incarnation
        if node in self._channels and self._channels[node].incarnation > incarnation:
            return  # its next life is here: it is to be forced out
        frame = self._channel(node, incarnation).sent(message)
        if self._connected.get(node) == incarnation:
            self._effects.append(Send(node, frame))

    def _bid_farewell(self, node: int, incarnation: int) -> None:
        self._gone[node] = max(incarnation, self._gone.get(node, -1))
        if node in self._channels and self._channels[node].incarnation <= incarnation:
            del self._channels[node]

    def _message(self, node: int, incarnation: int, message: Message) -> None:
        recovery = self.recovery
        if self.is_out:
            return
        if isinstance(message, Stopped | Emptied):  # perhaps of a node of which this one is still to be told
            if isinstance(message, Stopped):
                recovery.take_stopped(node, incarnation, message)
            else:
                recovery.emptied[node] = incarnation
            self._go_on()
            return
        member = recovery.roster.get(node)
        if member is None or member.incarnation != incarnation:
            return
        match message:
            case Ask() | Change() | Free() | Withdraw():
                self._asked_of_master(node, message)
            case Given() | Denied() | Wanted() | NotHere():
                self._told_by_master(node, message)
            case Find():
                self._asked_of_directory(node, message)
            case Found():
                self._found(message)
            case Dropped():
                self.tables.directory.drop(message.key, node, message.token)
            case Suspect() | Collect() | Edges() | Chosen():
                self._search(node, message)
            case _:
                self._told_in_round(node, message)

    def _told_in_round(self, node: int, message: Message) -> None:
        recovery = self.recovery
        match message:
            case Entries():
                if recovery.takes(message.epoch):
                    recovery.take_entries(node, message.keys)
            case Marks():
                for bucket, mark in message.marks:
                    self.tables.directory.raise_mark(bucket, mark)
            case Copies():
                if recovery.takes(message.epoch):
                    recovery.take_copies(message.copies)
            case Handed():
                if recovery.takes(message.epoch):
                    recovery.take_handed(message.kept)
            case Rebuilt():
                recovery.take_rebuilt(node, recovery.roster[node].incarnation, message)
                self._go_on()

    # ---- clients' locks: what the owner knows (P12.9)

    def _check_name(self, space: str, name: str) -> None:
        if space not in self.spaces:
            known = ", ".join(sorted(self.spaces)) or "none"
            raise LockRefused(f"there is no lockspace {space[:60]!r}; there are: {known}")
        if problem := name_problem(name):
            raise LockRefused(problem)

    def _lock(self, client: int, number: LockId) -> Lock:
        lock = self.tables.clients.get(client, {}).get(number)
        if lock is None:
            raise LockRefused(f"this client has no lock {number}")
        if number in self._held:
            raise LockRefused("another operation on this lock waits for the end of a recovery")
        return lock

    def _granted_lock(self, client: int, number: LockId) -> Lock:
        lock = self._lock(client, number)
        if lock.mode == NONE:
            raise LockRefused("the lock is not granted yet: cancel it, or wait")
        return lock

    @staticmethod
    def _check_value(lock: Lock, value: bytes | None) -> None:
        if value is None:
            return
        if len(value) > MAXIMUM_VALUE:
            raise LockRefused(f"a value block has at most {MAXIMUM_VALUE} bytes, not {len(value)}")
        if not WRITES[lock.mode]:
            raise LockRefused(f"only PW and EX may write the value block, and this lock has {Mode(lock.mode).name}")

    def _hold_back(self, lock: Lock, what: str, arguments: tuple[object, ...], *, always: bool = False) -> bool:
        """Whether the operation waits until this node has resumed: its master is being replaced (P12.12)."""
        use = self.tables.uses.get(lock.key)
        if use is not None:
            if not use.held or lock.id not in use.locks:
                return False
        elif not self.recovery.round_of(lock.key):
            return False
        if len(self._held) >= self._bounds.held_back and not always:
            raise LockRefused("a recovery is under way, and too much waits for its end: ask again")
        self._held[lock.id] = (lock, what, arguments)
        return True

    def _value_held_back(self, lock: Lock) -> bytes | None:
        """What was to be written to the value block by an operation that is held back; it is held back no more."""
        _, what, arguments = self._held.pop(lock.id, (lock, "", ()))
        return cast("bytes | None", arguments[0] if what == "_free" else arguments[1] if what else None)

    def _place(self, lock: Lock) -> None:
        """A new lock goes to the master, if it is known."""
        key = lock.key
        resource = self.tables.resources.get(key)
        if resource is not None:
            news: News = []
            resource.request(lock, self.recovery.resumed, news)
            self._tell(news)
            return
        use = self.tables.use_of(key)
        if use.master == NOBODY or use.held:
            use.unsent.append(lock)
            if use.asked == NOBODY and not use.held:
                self._find(key, use)
            return
        use.locks[lock.id] = lock
        self._send(use.master, Ask(key, lock.id, lock.client, lock.wanted, lock.no_queue, lock.serial))

    def _convert(self, lock: Lock, mode: int, value: bytes | None, no_queue: bool) -> None:
        gives_up = GIVES_UP[lock.mode][mode]
        resource = self.tables.resources.get(lock.key)
        version = lock.version
        if value is not None:
            version += 1
            lock.value, lock.version, lock.valid = value, version, True
        if not gives_up:
            lock.serial += 1
            lock.no_queue = no_queue
        news: News = []
        if resource is not None:
            if gives_up:
                resource.give_up(lock, mode, value, version, self.recovery.resumed, news)
            else:
                resource.convert(lock, mode, self.recovery.resumed, news)
        else:
            use = self.tables.uses[lock.key]
            if gives_up:
                lock.mode, lock.told = mode, 0
            else:
                lock.wanted = mode
            self._send(use.master, Change(lock.key, lock.id, mode, no_queue, lock.serial, value, version))
        if gives_up:
            self._effects.append(Granted(lock.client, lock.id, mode, lock.token, lock.value, lock.valid))
        self._tell(news)

    def _free(self, lock: Lock, value: bytes | None) -> None:
        key = lock.key
        self._forget(lock)
        self._effects.append(Released(lock.client, lock.id))
        resource = self.tables.resources.get(key)
        if resource is not None:
            news: News = []
            resource.free(lock, value, lock.version + 1, self.recovery.resumed, news)
            if news:
                self._tell(news)
            if resource.is_empty:
                self._rests(key)
        else:
            use = self.tables.uses[key]
            if lock in use.unsent:
                use.unsent.remove(lock)
            else:
                del use.locks[lock.id]
                self._send(use.master, Free(key, lock.id, value, lock.version + 1))
            if use.is_empty:
                self._rests(key)
        self._look_emptied()

    def _withdraw(self, lock: Lock) -> None:
        """End its wait."""
        key = lock.key
        resource = self.tables.resources.get(key)
        if resource is not None:
            news: News = []
            resource.withdraw(lock, lock.cancelling, self.recovery.resumed, news)
            self._tell(news)
            if resource.is_empty:
                self._rests(key)
            return
        use = self.tables.uses[key]
        if lock in use.unsent:
            use.unsent.remove(lock)
            self._denied(lock, Reason(lock.cancelling))
        elif not use.held:
            self._send(use.master, Withdraw(key, lock.id, lock.serial, Reason(lock.cancelling)))

    def _granted(self, lock: Lock) -> None:
        lock.cancelling = 0
        if lock.id not in self._held:  # its client has unlocked it already
            self._effects.append(Granted(lock.client, lock.id, lock.mode, lock.token, lock.value, lock.valid))

    def _denied(self, lock: Lock, reason: Reason) -> None:
        lock.cancelling = 0
        lock.wanted = NONE
        if lock.mode == NONE:
            self._forget(lock)
        self._effects.append(NotGranted(lock.client, lock.id, reason))
        self._look_emptied()

    def _look_emptied(self) -> None:
        """After all that is to be said of what was freed: perhaps this was the last that the leave waited for."""
        if self.is_leaving and not self._count:
            self._acknowledge()

    def _forget(self, lock: Lock) -> None:
        locks = self.tables.clients[lock.client]
        del locks[lock.id]
        if not locks:
            del self.tables.clients[lock.client]
        self._count -= 1

    def _tell(self, news: News) -> None:
        """What has become of locks on a resource that is mastered here."""
        for what, lock, number in news:
            owner = owner_of(lock.id)
            if owner == self.node:
                if what is What.GRANTED:
                    self._granted(lock)
                elif what is What.BLOCKING:
                    self._effects.append(Blocking(lock.client, lock.id, number))
                else:
                    self._denied(lock, Reason(number))
            elif what is What.GRANTED:
                self._send(
                    owner,
                    Given(lock.key, lock.id, lock.serial, lock.mode, lock.token, lock.value, lock.version, lock.valid),
                )
            elif what is What.BLOCKING:
                self._send(owner, Wanted(lock.key, lock.id, number))
            else:
                self._send(owner, Denied(lock.key, lock.id, lock.serial, Reason(number)))

    # ---- masters

    def _asked_of_master(self, node: int, message: Ask | Change | Free | Withdraw) -> None:
        resource = self.tables.resources.get(message.key)
        if resource is None:
            use = self.tables.uses.get(message.key)
            if use is not None and use.master == NOBODY:
                self.tables.early.setdefault(message.key, []).append((node, message))
            elif isinstance(message, Ask):
                self._send(node, NotHere(message.key, message.lock))
            return
        news: News = []
        epoch = self.recovery.resumed
        lock = resource.find(message.lock)
        if lock is None and (message.key in self.recovery.unsettled or message.key in self.tables.early):
            # Who asks may not know that it came here in a round; if that does not count, it has to look again.
            self.tables.early.setdefault(message.key, []).append((node, message))
            return
        if lock is not None and node != self.node:
            self.recovery.heard_of(self.recovery.round_of(message.key))  # its owner held this back until it had resumed
        if isinstance(message, Ask):
            if lock is None:
                lock = Lock(message.key, message.lock, message.client, message.mode, no_queue=message.no_queue)
                lock.serial = message.serial
                resource.request(lock, epoch, news)
        elif lock is None:
            pass  # it was refused, or freed, while this was on its way
        elif isinstance(message, Change):
            if GIVES_UP[lock.mode][message.mode]:
                resource.give_up(lock, message.mode, message.value, message.version, epoch, news)
            else:
                lock.serial, lock.no_queue = message.serial, message.no_queue
                resource.convert(lock, message.mode, epoch, news)
        elif isinstance(message, Free):
            resource.free(lock, message.value, message.version, epoch, news)
        elif lock.serial == message.serial and lock.wanted != NONE:
            resource.withdraw(lock, message.reason, epoch, news)
        self._tell(news)
        if resource.is_empty:
            self._rests(message.key)

    def _told_by_master(self, node: int, message: Given | Denied | Wanted | NotHere) -> None:
        use = self.tables.uses.get(message.key)
        if use is None:
            if isinstance(message, Given):  # it was freed while this was on its way
                self._send(node, Free(message.key, message.lock, None, 0))
            return
        if isinstance(message, NotHere):
            self._look_again(node, use, message.key)
            return
        if use.master == node and isinstance(message, Given):
            self.recovery.heard_of(use.round)  # only who has resumed grants
        lock = use.locks.get(message.lock)
        if lock is None:
            lock = next((each for each in use.unsent if each.id == message.lock), None)
            if lock is None:
                if isinstance(message, Given):
                    self._send(node, Free(message.key, message.lock, None, 0))
                return
        if isinstance(message, Wanted):
            if lock.mode != NONE:
                self._effects.append(Blocking(lock.client, lock.id, message.mode))
            return
        if lock.serial != message.serial or lock.wanted == NONE:
            return
        if lock.id not in use.locks:  # it was to be sent anew, and the first time has arrived all the same
            use.unsent.remove(lock)
            if isinstance(message, Given):
                use.locks[lock.id] = lock
                use.master, use.asked, use.held = node, NOBODY, use.held or not self.recovery.stays(node)
                self._send_unsent(message.key, use)
        if isinstance(message, Given):
            lock.mode, lock.wanted, lock.told = message.mode, NONE, 0
            lock.token, lock.value = message.token, message.value
            lock.version, lock.valid = message.version, message.valid
            self._granted(lock)
            return
        if lock.mode == NONE:
            use.locks.pop(lock.id, None)
        self._denied(lock, message.reason)
        if use.is_empty:
            self._rests(message.key)

    def _look_again(self, node: int, use: Use, key: str) -> None:
        """The node that was asked masters the resource no more; what it was asked is asked again of another."""
        if use.master != node:
            return
        new = [lock for lock in use.locks.values() if lock.mode == NONE]
        for lock in new:
            del use.locks[lock.id]
            use.unsent.append(lock)
        use.master = NOBODY
        for lock in [each for each in new if each.cancelling]:
            use.unsent.remove(lock)
            self._denied(lock, Reason(lock.cancelling))
        if not use.held:
            self._find(key, use)

    # ---- the directory

    def _find(self, key: str, use: Use) -> None:
        """Ask who the master is, unless the bucket is on its way to another node: then when this one has resumed."""
        bucket = bucket_of(key)
        if not self.recovery.resumed or bucket in self.recovery.moving:
            return
        self._turn += 1
        use.turn, use.asked = self._turn, self.recovery.places[bucket]
        self._send(use.asked, Find(key, use.turn))

    def _asked_of_directory(self, node: int, message: Find) -> None:
        key, directory = message.key, self.tables.directory
        if not self.recovery.stays(node):
            return  # it leaves, and waits for nothing any more: never does it become a master after it has stopped
        bucket = bucket_of(key)
        master: int | None = self.node if key in self.tables.resources else directory.masters.get(key)
        lost = master is not None and not self.recovery.stays(master)
        unsettled = lost or bucket in self.recovery.moving or key in self.recovery.unsettled
        if unsettled or self.recovery.places[bucket] != self.node:
            self._finds.append((node, message))
            return
        mark: Token = NO_TOKEN
        if master is None:
            master = node
            if node != self.node:  # what it masters itself, it knows by its resources
                directory.masters[key] = node
        if master == node:
            mark = directory.marks.get(bucket, NO_TOKEN)
        self._send(node, Found(key, message.turn, master, max(mark, (self.recovery.resumed, 0))))

    def _found(self, message: Found) -> None:
        key = message.key
        use = self.tables.uses.get(key)
        if use is None or use.turn != message.turn or use.master != NOBODY:
            return
        use.asked = NOBODY
        if message.master == self.node:
            resource = self.tables.resources[key] = Resource(key, message.mark)
            if not self.recovery.stays(self.node):
                self.tables.freeze(resource)  # said before all had stopped: it goes with all others
            self._enter_resource(key)
            return
        if not self.recovery.stays(message.master):
            return  # it has just been lost: asked again when this node has resumed
        use.master = message.master
        self._send_unsent(key, use)
        self._refuse(key)
        if use.is_empty:
            self._rests(key)

    def _enter_resource(self, key: str) -> None:
        """This node has become the master: what has waited for that goes on."""
        use = self.tables.uses.pop(key, None)
        for lock in use.unsent if use is not None else ():
            self._place(lock)
        self._take_early(key)
        if self.tables.resources[key].is_empty:
            self._rests(key)

    def _take_early(self, key: str) -> None:
        """What was asked before this node was, or knew itself to be, the master."""
        for node, early in self.tables.early.pop(key, ()):
            if (member := self.recovery.roster.get(node)) is not None:
                self._message(node, member.incarnation, early)

    def _send_unsent(self, key: str, use: Use) -> None:
        unsent, use.unsent = use.unsent, []
        for lock in unsent:
            use.locks[lock.id] = lock
            self._send(use.master, Ask(key, lock.id, lock.client, lock.wanted, lock.no_queue, lock.serial))

    def _rests(self, key: str) -> None:
        """Nobody here has a lock on it. Of such a bounded number is remembered (P12.10)."""
        idle = self.tables.idle
        idle[key] = None
        while len(idle) > self._bounds.idle and self.recovery.phase is Phase.AT_REST:
            self._drop(next(iter(idle)))

    def _drop(self, key: str) -> None:
        self.tables.idle.pop(key, None)
        resource = self.tables.resources.get(key)
        use = self.tables.uses.get(key)
        if resource is not None and resource.is_empty and not resource.frozen:
            del self.tables.resources[key]
            self._send(self.recovery.places[bucket_of(key)], Dropped(key, resource.token))
        elif use is not None and use.is_empty:
            del self.tables.uses[key]

    # ---- transitions

    def told(self, step: Step) -> None:
        """One barrier of one transition (P12.11). Told twice, it is the same one."""
        recovery, is_own = self.recovery, step.node == self.node
        if self.is_out or not (recovery.roster or is_own):
            self._told_outside(step)
            return
        work = recovery.work.get(step.transition)
        if step.barrier == 0 and work is None and step.entry > recovery.epoch:
            self._begin(step)
            return
        if work is None:  # it began before this node was in the level, or is told again
            work = recovery.work[step.transition] = Work(step)
        work.step = step
        work.acknowledged = min(work.acknowledged, step.barrier - 1)
        if step.barrier == 2 and is_own:
            self.is_out, self._job = True, None
            for each in list(recovery.work.values()):
                self._effects.append(Acknowledge(each.step.transition, each.step.barrier))
            return
        self._go_on()

    def _told_outside(self, step: Step) -> None:
        """This node is not in the level yet, or no more: it takes no part."""
        if step.barrier == 2:
            self.recovery.seen_off.add((step.node, step.incarnation))
        if self.is_out and step.kind is Kind.JOINING and step.barrier == 0:
            self.recovery.roster[step.node] = Member(step.incarnation)
            self._send(step.node, Emptied())  # the new node may have been told that this one was leaving
        self._effects.append(Acknowledge(step.transition, step.barrier))

    def _see_off(self, node: int) -> None:
        """A graceful leave is over."""
        if (member := self.recovery.roster.get(node)) is not None:
            self._bid_farewell(node, member.incarnation)
            self.recovery.forget(node)

    def _begin(self, step: Step) -> None:
        recovery, tables = self.recovery, self.tables
        recovery.begin(step)
        self.search.give_up()
        if step.kind is Kind.FORCED_LEAVING:
            self._bid_farewell(step.node, step.incarnation)
            self._may_hold_absent = True
            self._finds = [(node, find) for node, find in self._finds if node != step.node]
            for key, early in tables.early.items():
                tables.early[key] = [(node, message) for node, message in early if node != step.node]
        if step.kind is Kind.LEAVING and step.node == self.node:
            self.is_leaving = True
            self._effects.extend(map(EndClient, tables.clients))
            for lock in [each for locks in tables.clients.values() for each in locks.values() if each.wanted != NONE]:
                if lock.id not in self._held and lock.wanted != NONE:
                    self.cancel(lock.client, lock.id, Reason.CLIENT_GONE)  # nobody becomes a master to leave at once
        if step.kind is Kind.JOINING and self.node in recovery.emptied:
            self._send(step.node, Emptied())  # said to all others before this one came
        self._start(self._stop())

    # ---- what a round asks of this node, in pieces

    @property
    def has_work(self) -> bool:
        """Whether `work` is to be called."""
        return self._job is not None

    def work(self) -> bool:
        """Do a piece of what a round asks of this node; whether there is more. Clients are served in between (P12.12).

        Only where `is_paced`; else all is done as soon as it can be.
        """
        job = self._job
        if job is None:
            return False
        for _ in job:
            return True
        if self._job is job:
            self._job = None
            self._go_on()
        return self._job is not None

    def _start(self, job: Iterator[None]) -> None:
        """Begin a job; one that a new round makes needless is over."""
        self._job = job
        while not self.is_paced and self.work():
            pass

    def _go_on(self) -> None:
        """As far as the round can go now."""
        recovery = self.recovery
        for work in list(recovery.work.values()):
            if work.step.barrier == 2 and recovery.has_emptied(work.step.node):
                self._see_off(work.step.node)
        if self._job is None:
            if recovery.all_have_stopped:
                self._start(self._tell_all())
            elif recovery.all_have_told:
                self._start(self._build())
            elif recovery.may_resume:
                self._start(self._resume())
        self._acknowledge()

    def _stop(self) -> Iterator[None]:
        """Stop what the round concerns, and say so."""
        recovery, tables = self.recovery, self.tables
        leaves = not recovery.stays(self.node)
        if self._may_hold_absent or leaves:
            for number, resource in enumerate(list(tables.resources.values())):
                if number % self._bounds.piece == 0:
                    yield
                tables.lose_absent(resource, recovery.roster, MASK)
                if leaves:
                    tables.freeze(resource)
            self._may_hold_absent = False
        for number, (key, use) in enumerate(list(tables.uses.items())):
            if number % self._bounds.piece == 0:
                yield
            if use.master != NOBODY and not recovery.stays(use.master):
                use.held = True
                if use.master not in recovery.roster:
                    for lock in use.locks.values():
                        lock.valid = lock.valid and lock.mode != NONE  # who waits there cannot know what it has lost
            if use.asked != NOBODY and bucket_of(key) in recovery.moving:
                use.asked = NOBODY
        stopped = recovery.stop()
        for node in recovery.roster:
            if node != self.node:
                self._send(node, stopped)

    def _tell_all(self) -> Iterator[None]:
        """All have stopped: tell what this node knows to whom it concerns."""
        recovery = self.recovery
        recovery.begin_telling()
        for each in recovery.tell(self.tables, lambda lock: self._denied(lock, Reason(lock.cancelling))):
            if each is not None:
                self._send(*each)
            yield
        self._refuse_early()
        recovery.end_telling()
        for node in recovery.roster:
            if node != self.node:
                self._send(node, Rebuilt(recovery.epoch))
        self._message(self.node, self.incarnation, Rebuilt(recovery.epoch))

    def _build(self) -> Iterator[None]:
        """All have told: become the master of what was told to this node."""
        for number, (key, strays) in enumerate(self.recovery.build(self.tables)):
            if not strays:
                self._enter_resource(key)
            for copy in strays:
                self._send(owner_of(copy.lock), NotHere(copy.key, copy.lock))
            if number % self._bounds.piece == 0:
                yield

    def _refuse_early(self) -> None:
        """What was asked too early of a master that this node will not be: who has asked looks again (P12.8)."""
        tables, recovery = self.tables, self.recovery
        leaves = not recovery.stays(self.node)
        for key in [each for each in tables.early if leaves or each in recovery.unsettled]:
            if key not in tables.resources:
                self._refuse(key)

    def _refuse(self, key: str) -> None:
        for node, early in self.tables.early.pop(key, ()):
            if isinstance(early, Ask):
                self._send(node, NotHere(key, early.lock))

    def _resume(self) -> Iterator[None]:
        """All are ready: go on with what was stopped. What is not reached yet still stands as it stood."""
        recovery, tables = self.recovery, self.tables
        recovery.resume()
        mine = {bucket for bucket, node in enumerate(recovery.places) if node == self.node}
        tables.directory.prune(mine, {node for node, member in recovery.roster.items() if member.stays})
        for number, key in enumerate(list(tables.frozen)):
            if number % self._bounds.piece == 0:
                yield
            self._thaw(key)
        for key in [each for each in tables.early if each in tables.resources]:
            self._take_early(key)
        for number, (key, use) in enumerate(list(tables.uses.items())):
            if number % self._bounds.piece == 0:
                yield
            if tables.uses.get(key) is use:
                self._resume_use(key, use)
        while self._finds:
            node, find = self._finds.pop(0)
            if recovery.places[bucket_of(find.key)] == self.node:
                self._asked_of_directory(node, find)
        while self._held:  # one after the other: what one frees may be granted to another, which is to end
            number = next(iter(self._held))
            lock, what, arguments = self._held.pop(number)
            if number in tables.clients.get(lock.client, ()):  # else its wait has ended, and it with that
                getattr(self, what)(lock, *arguments)
            yield
        for key in [key for key, resource in tables.resources.items() if resource.is_empty]:
            self._rests(key)

    def _thaw(self, key: str) -> None:
        resource = self.tables.resources.get(key)
        del self.tables.frozen[key]
        if resource is None:
            return
        news: News = []
        resource.thaw(self.recovery.resumed, news)
        self._tell(news)
        for lock in [each for each in resource.queued() if each.cancelling]:
            if lock.cancelling:  # the end of another's wait may have granted it
                self._withdraw(lock)

    def _resume_use(self, key: str, use: Use) -> None:
        cancelled = [lock for lock in use.locks.values() if use.held and lock.cancelling]
        use.held, use.round = False, 0
        if use.master != NOBODY:
            self._send_unsent(key, use)
            for lock in cancelled:
                self._withdraw(lock)
        elif use.is_empty and key not in self.tables.early:
            del self.tables.uses[key]
        elif use.asked == NOBODY:
            self._find(key, use)

    def _acknowledge(self) -> None:
        """What this node has done of each transition's newest step (P12.11)."""
        if self._is_at_rest and self.is_leaving and not self._count:
            self._say_emptied()
        for name, work in list(self.recovery.work.items()):
            step = work.step
            if work.acknowledged < step.barrier and self._has_done(step):
                work.acknowledged = step.barrier
                self._effects.append(Acknowledge(step.transition, step.barrier))
                if step.barrier + 1 == BARRIERS[step.kind]:
                    del self.recovery.work[name]

    def _has_done(self, step: Step) -> bool:
        """First barriers, once all have told; the second ones, once this node has resumed.

        The later ones of a leave, once nothing more comes of the leaving node, whenever this one came.
        """
        if step.barrier == 0:
            return self.recovery.phase in {Phase.READY, Phase.AT_REST}
        has_emptied = step.kind is not Kind.LEAVING or self.recovery.has_emptied(step.node)
        return has_emptied and (self._is_at_rest or step.barrier == 2)

    @property
    def _is_at_rest(self) -> bool:
        """Whether this node has resumed, and has gone on with everything."""
        return self.recovery.phase is Phase.AT_REST and self._job is None

    def _say_emptied(self) -> None:
        """All that its clients had is free, and all that says so is on its way, before this."""
        if self.node in self.recovery.emptied:
            return
        self.recovery.emptied[self.node] = self.incarnation
        for node in self.recovery.roster:
            if node != self.node:
                self._send(node, Emptied())

    # ---- deadlocks

    def _ask_for_edges(self) -> None:
        nodes = list(self.recovery.roster)
        turn = self.search.ask(nodes)
        for node in nodes:
            self._send(node, Collect(turn))

    def _search(self, node: int, message: Suspect | Collect | Edges | Chosen) -> None:
        match message:
            case Suspect():
                self.suspect()
            case Collect(turn):
                self._send(node, Edges(turn, tuple(self._edges())))
            case Edges(turn, edges):
                if self.search.answered(node, turn, edges):
                    self.search.begin_second()
                    self._ask_for_edges()
                elif (victim := self.search.found()) is not None:
                    self._send(owner_of(victim.lock), Chosen(victim.key, victim.lock, victim.serial))
            case Chosen(_, number, serial):
                for client, locks in self.tables.clients.items():
                    lock = locks.get(number)
                    if lock is not None:
                        if lock.serial == serial and lock.wanted != NONE and number not in self._held:
                            self.cancel(client, number, Reason.DEADLOCK)
                        return

    def _edges(self) -> list[Edge]:
        edges: list[Edge] = []
        for resource in self.tables.resources.values():
            if resource.converting or resource.waiting:
                edges.extend(edges_of(resource))
                if len(edges) >= MAXIMUM_EDGES:
                    break
        return edges[:MAXIMUM_EDGES]
