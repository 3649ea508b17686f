"""The locks of one node: as their owner, as the master of resources, as a part of the directory (P12.2-P12.9).

Theory of operation. A lock of a client here goes to its resource's master, which is found through the directory and may
be this node. Whatever the master decides about a lock comes back to its owner, by a message or at once. While a
recovery is under way, what a client asks about a lock whose master is being replaced is held back (P12.12).
"""

from collections.abc import Callable
from typing import cast

from muster.core.locks.directory import NOBODY
from muster.core.locks.messages import (
    NO_TOKEN,
    Ask,
    Blocking,
    Change,
    Denied,
    Dropped,
    Effect,
    Find,
    Found,
    Free,
    Given,
    Granted,
    LockId,
    NotGranted,
    NotHere,
    Reason,
    Released,
    Token,
    Wanted,
    Withdraw,
    owner_of,
)
from muster.core.locks.modes import GIVES_UP, NONE
from muster.core.locks.names import Bounds, bucket_of
from muster.core.locks.recovery import Phase, Recovery
from muster.core.locks.resource import Lock, News, Resource, What
from muster.core.locks.tables import Tables, Use
from muster.core.locks.wires import Wires


class LockRefused(Exception):
    """What a client asked for cannot be; the message says why."""


class Locking:
    """Those of one incarnation."""

    def __init__(self, node: int, recovery: Recovery, wires: Wires, bounds: Bounds, effects: list[Effect]) -> None:
        """What is to be done goes into `effects`."""
        self._node, self._recovery, self._bounds, self._effects = node, recovery, bounds, effects
        self._wires, self._send = wires, wires.send
        self.tables = Tables(node)
        self.count = 0  # locks of this node's clients
        self.is_leaving = False
        self.when_empty: Callable[[], None] = lambda: None  # called while it leaves, when the last of them is gone
        self.finds: list[tuple[int, Find]] = []  # questions to the directory that wait for the end of the recovery
        self.held: dict[LockId, tuple[Lock, str, tuple[object, ...]]] = {}  # operations that wait for it
        self._turn = 0  # of the last question to the directory

    # ---- what waits for the end of a recovery

    def hold_back(self, lock: Lock, what: str, arguments: tuple[object, ...], *, always: bool = False) -> bool:
        """Whether the operation waits until this node has resumed: its master is being replaced (P12.12)."""
        use = self.tables.uses.get(lock.key)
        if use is not None:
            if not use.held or lock.id not in use.locks:
                return False
        elif not self._recovery.round_of(lock.key):
            return False
        if len(self.held) >= self._bounds.held_back and not always:
            raise LockRefused("a recovery is under way, and too much waits for its end: ask again")
        self.held[lock.id] = (lock, what, arguments)
        return True

    def value_held_back(self, lock: Lock) -> bytes | None:
        """What was to be written to the value block by an operation that is held back; it is held back no more."""
        _, what, arguments = self.held.pop(lock.id, (lock, "", ()))
        return cast("bytes | None", arguments[0] if what == "free" else arguments[1] if what else None)

    def go_on_with_held(self) -> None:
        """Carry out the first operation that is held back."""
        number = next(iter(self.held))
        lock, what, arguments = self.held.pop(number)
        if number in self.tables.clients.get(lock.client, ()):  # else its wait has ended, and it with that
            getattr(self, what)(lock, *arguments)

    # ---- the owner: what it knows of its clients' locks (P12.9)

    def place(self, lock: Lock) -> None:
        """A new lock goes to the master, if it is known."""
        key = lock.key
        resource = self.tables.resources.get(key)
        if resource is not None:
            news: News = []
            resource.request(lock, self._recovery.resumed, news)
            self.tell(news)
            return
        use = self.tables.use_of(key)
        if use.master == NOBODY or use.held:
            use.put_off(lock)
            if use.asked == NOBODY and not use.held:
                self.find(key, use)
            return
        use.locks[lock.id] = lock
        self._send(use.master, Ask(key, lock.id, lock.client, lock.wanted, lock.no_queue, lock.serial))

    def convert(self, lock: Lock, mode: int, value: bytes | None, no_queue: bool) -> None:
        """Another mode, asked of the master, or taken by it where it is this node (P12.3)."""
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
                resource.give_up(lock, mode, value, version, self._recovery.resumed, news)
            else:
                resource.convert(lock, mode, self._recovery.resumed, news)
        else:
            use = self.tables.uses[lock.key]
            if gives_up:
                lock.mode, lock.told = mode, 0
            else:
                lock.wanted = mode
            self._send(use.master, Change(lock.key, lock.id, mode, no_queue, lock.serial, value, version))
        if gives_up:
            self._effects.append(Granted(lock.client, lock.id, mode, lock.token, lock.value, lock.valid))
        self.tell(news)

    def free(self, lock: Lock, value: bytes | None) -> None:
        """The lock is no more; the master hears of it (P12.9)."""
        key = lock.key
        self._forget(lock)
        self._effects.append(Released(lock.client, lock.id))
        resource = self.tables.resources.get(key)
        if resource is not None:
            news: News = []
            resource.free(lock, value, lock.version + 1, self._recovery.resumed, news)
            if news:
                self.tell(news)
            if resource.is_empty:
                self.rests(key)
        else:
            use = self.tables.uses[key]
            if lock in use.unsent:
                use.take_back(lock)
            else:
                del use.locks[lock.id]
                self._send(use.master, Free(key, lock.id, value, lock.version + 1))
            if use.is_empty:
                self.rests(key)
        self._look_emptied()

    def end_wait(self, lock: Lock, reason: Reason) -> None:
        """End the wait of a lock, if it is not granted before that; nothing where it waits for nothing."""
        if lock.wanted == NONE or lock.cancelling:
            return
        lock.cancelling = reason
        self.withdraw(lock)

    def withdraw(self, lock: Lock) -> None:
        """End its wait."""
        key = lock.key
        resource = self.tables.resources.get(key)
        if resource is not None:
            news: News = []
            resource.withdraw(lock, lock.cancelling, self._recovery.resumed, news)
            self.tell(news)
            if resource.is_empty:
                self.rests(key)
            return
        use = self.tables.uses[key]
        if lock in use.unsent:
            use.take_back(lock)
            self.denied(lock, Reason(lock.cancelling))
        elif not use.held:
            self._send(use.master, Withdraw(key, lock.id, lock.serial, Reason(lock.cancelling)))

    def _granted(self, lock: Lock) -> None:
        lock.cancelling = 0
        if lock.id not in self.held:  # its client has unlocked it already
            self._effects.append(Granted(lock.client, lock.id, lock.mode, lock.token, lock.value, lock.valid))

    def denied(self, lock: Lock, reason: Reason) -> None:
        """Its wait has ended without a grant."""
        lock.cancelling = 0
        lock.wanted = NONE
        if lock.mode == NONE:
            self._forget(lock)
        self._effects.append(NotGranted(lock.client, lock.id, reason))
        self._look_emptied()

    def _look_emptied(self) -> None:
        """After all that is to be said of what was freed: perhaps this was the last that the leave waited for."""
        if self.is_leaving and not self.count:
            self.when_empty()

    def _forget(self, lock: Lock) -> None:
        locks = self.tables.clients[lock.client]
        del locks[lock.id]
        if not locks:
            del self.tables.clients[lock.client]
        self.count -= 1

    def told_by_master(self, node: int, message: Given | Denied | Wanted | NotHere) -> None:
        """What a master has decided about a lock of this node's client (P12.9)."""
        use = self.tables.uses.get(message.key)
        if use is None:
            if isinstance(message, Given):  # it was freed while this was on its way
                self._send(node, Free(message.key, message.lock, None, 0))
            return
        if isinstance(message, NotHere):
            self._look_again(node, use, message.key)
            return
        if use.master == node and isinstance(message, Given):
            self._recovery.heard_of(use.round)  # only who has resumed grants
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
            use.take_back(lock)
            if isinstance(message, Given):
                use.locks[lock.id] = lock
                use.master, use.asked, use.held = node, NOBODY, use.held or not self._recovery.stays(node)
                self.send_unsent(message.key, use)
        if isinstance(message, Given):
            lock.mode, lock.wanted, lock.told = message.mode, NONE, 0
            lock.token, lock.value = message.token, message.value
            lock.version, lock.valid = message.version, message.valid
            self._granted(lock)
            return
        if lock.mode == NONE:
            use.locks.pop(lock.id, None)
        self.denied(lock, message.reason)
        if use.is_empty:
            self.rests(message.key)

    def _look_again(self, node: int, use: Use, key: str) -> None:
        """The node that was asked masters the resource no more; what it was asked is asked again of another."""
        if use.master != node:
            return
        new = [lock for lock in use.locks.values() if lock.mode == NONE]
        for lock in new:
            del use.locks[lock.id]
            use.put_off(lock)
        use.master = NOBODY
        for lock in [each for each in new if each.cancelling]:
            use.take_back(lock)
            self.denied(lock, Reason(lock.cancelling))
        if not use.held:
            self.find(key, use)

    # ---- the master

    def tell(self, news: News) -> None:
        """What has become of locks on a resource that is mastered here."""
        for what, lock, number in news:
            owner = owner_of(lock.id)
            if owner == self._node:
                if what is What.GRANTED:
                    self._granted(lock)
                elif what is What.BLOCKING:
                    self._effects.append(Blocking(lock.client, lock.id, number))
                else:
                    self.denied(lock, Reason(number))
            elif what is What.GRANTED:
                self._send(
                    owner,
                    Given(lock.key, lock.id, lock.serial, lock.mode, lock.token, lock.value, lock.version, lock.valid),
                )
            elif what is What.BLOCKING:
                self._send(owner, Wanted(lock.key, lock.id, number))
            else:
                self._send(owner, Denied(lock.key, lock.id, lock.serial, Reason(number)))

    def asked_of_master(self, node: int, message: Ask | Change | Free | Withdraw) -> None:
        """What an owner asks of this node as the master."""
        resource = self.tables.resources.get(message.key)
        if resource is None:
            use = self.tables.uses.get(message.key)
            if use is not None and use.master == NOBODY:
                self.tables.early.setdefault(message.key, []).append((node, message))
            elif isinstance(message, Ask):
                self._send(node, NotHere(message.key, message.lock))
            return
        news: News = []
        epoch = self._recovery.resumed
        lock = resource.find(message.lock)
        if lock is None and (message.key in self._recovery.unsettled or message.key in self.tables.early):
            # Who asks may not know that it came here in a round; if that does not count, it has to look again.
            self.tables.early.setdefault(message.key, []).append((node, message))
            return
        if lock is not None and node != self._node:  # its owner held this back until it had resumed
            self._recovery.heard_of(self._recovery.round_of(message.key))
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
        self.tell(news)
        if resource.is_empty:
            self.rests(message.key)

    # ---- the directory

    def find(self, key: str, use: Use) -> None:
        """Ask who the master is, unless the bucket is on its way to another node: then when this one has resumed."""
        bucket = bucket_of(key)
        if not self._recovery.resumed or bucket in self._recovery.moving:
            return
        self._turn += 1
        use.turn, use.asked = self._turn, self._recovery.places[bucket]
        self._send(use.asked, Find(key, use.turn))

    def asked_of_directory(self, node: int, message: Find) -> None:
        """Who is the master, asked of this node as the directory (P12.8)."""
        key, directory = message.key, self.tables.directory
        if not self._recovery.stays(node):
            return  # it leaves, and waits for nothing any more: never does it become a master after it has stopped
        bucket = bucket_of(key)
        master = self._node if key in self.tables.resources else directory.master(key)
        lost = master != NOBODY and not self._recovery.stays(master)
        unsettled = lost or bucket in self._recovery.moving or key in self._recovery.unsettled
        if unsettled or self._recovery.places[bucket] != self._node:
            self.finds.append((node, message))
            return
        mark: Token = NO_TOKEN
        if master == NOBODY:
            master = node
            if node != self._node:  # what it masters itself, it knows by its resources
                directory.note(key, node)
        if master == node:
            mark = directory.marks.get(bucket, NO_TOKEN)
        self._send(node, Found(key, message.turn, master, max(mark, (self._recovery.resumed, 0))))

    def found(self, message: Found) -> None:
        """The directory has answered."""
        key = message.key
        use = self.tables.uses.get(key)
        if use is None or use.turn != message.turn or use.master != NOBODY:
            return
        use.asked = NOBODY
        if message.master == self._node:
            resource = self.tables.resources[key] = Resource(key, message.mark)
            if not self._recovery.stays(self._node):
                self.tables.freeze(resource)  # said before all had stopped: it goes with all others
            self.enter_resource(key)
            return
        if not self._recovery.stays(message.master):
            return  # it has just been lost: asked again when this node has resumed
        use.master = message.master
        self.send_unsent(key, use)
        self.refuse(key)
        if use.is_empty:
            self.rests(key)

    def enter_resource(self, key: str) -> None:
        """This node has become the master: what has waited for that goes on."""
        use = self.tables.uses.pop(key, None)
        for lock in use.unsent if use is not None else ():
            self.place(lock)
        self.take_early(key)
        if self.tables.resources[key].is_empty:
            self.rests(key)

    def take_early(self, key: str) -> None:
        """What was asked before this node was, or knew itself to be, the master."""
        for node, early in self.tables.early.pop(key, ()):
            if (member := self._recovery.roster.get(node)) is not None:
                self._wires.deal(node, member.incarnation, early)

    def send_unsent(self, key: str, use: Use) -> None:
        """Ask the master for the new locks that it was not told of."""
        unsent, use.unsent = use.unsent, ()
        for lock in unsent:
            use.locks[lock.id] = lock
            self._send(use.master, Ask(key, lock.id, lock.client, lock.wanted, lock.no_queue, lock.serial))

    def rests(self, key: str) -> None:
        """Nobody here has a lock on it. Of such a bounded number is remembered (P12.10)."""
        idle = self.tables.idle
        idle[key] = None
        while len(idle) > self._bounds.idle and self._recovery.phase is Phase.AT_REST:
            self._drop(next(iter(idle)))

    def _drop(self, key: str) -> None:
        self.tables.idle.pop(key, None)
        resource = self.tables.resources.get(key)
        use = self.tables.uses.get(key)
        if resource is not None and resource.is_empty and not resource.frozen:
            del self.tables.resources[key]
            self._send(self._recovery.places[bucket_of(key)], Dropped(key, resource.token))
        elif use is not None and use.is_empty:
            del self.tables.uses[key]

    def refuse(self, key: str) -> None:
        """Who has asked too early of this node, which is not the master, looks again."""
        for node, early in self.tables.early.pop(key, ()):
            if isinstance(early, Ask):
                self._send(node, NotHere(key, early.lock))

    # ---- the end of a recovery

    def thaw(self, key: str) -> None:
        """The recovery has ended for a resource that is mastered here."""
        resource = self.tables.resources.get(key)
        del self.tables.frozen[key]
        if resource is None:
            return
        news: News = []
        resource.thaw(self._recovery.resumed, news)
        self.tell(news)
        for lock in [each for each in resource.queued() if each.cancelling]:
            if lock.cancelling:  # the end of another's wait may have granted it
                self.withdraw(lock)

    def resume_use(self, key: str, use: Use) -> None:
        """The recovery has ended for a resource that another node masters."""
        cancelled = [lock for lock in use.locks.values() if use.held and lock.cancelling]
        use.held, use.round = False, 0
        if use.master != NOBODY:
            self.send_unsent(key, use)
            for lock in cancelled:
                self.withdraw(lock)
        elif use.is_empty and key not in self.tables.early:
            del self.tables.uses[key]
        elif use.asked == NOBODY:
            self.find(key, use)
