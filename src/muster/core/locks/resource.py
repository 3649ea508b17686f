"""One resource at its master: who holds it, who waits, its value block and its last token (P12.2-P12.6).

Theory of operation. Locks are granted, converting (they hold one mode and wait for another) or waiting. Both queues are
first come, first served, and the conversion queue comes first: nobody overtakes. A new lock is granted at once only if
both queues are empty and all that is granted is compatible; a conversion only if no other one waits and all *other*
granted locks are compatible. After each change the queues are served from their heads, and serving stops at the first
that cannot be granted. A conversion that only gives up never waits, and a new NL lock neither: they disturb nobody.

Whatever follows for the owners is put into `news`, in order; the resource knows no node and sends nothing. One that is
*frozen* queues what it would grant until a recovery has ended (P12.12).
"""

from collections.abc import Iterator
from enum import IntEnum

from muster.core.locks.messages import NO_TOKEN, LockId, Reason, Token
from muster.core.locks.modes import COMPATIBLE, CONFLICTS, GIVES_UP, NONE, UNIT, WRITES, Mode

NL = Mode.NL


class Lock:
    """A lock: of this node's client, or this node's copy, as master, of another node's."""

    __slots__ = (
        "cancelling",
        "client",
        "id",
        "key",
        "mode",
        "no_queue",
        "serial",
        "token",
        "told",
        "valid",
        "value",
        "version",
        "wanted",
    )  # fmt: skip

    def __init__(self, key: str, lock: LockId, client: int, wanted: int, *, no_queue: bool = False) -> None:
        self.key, self.id, self.client = key, lock, client
        self.mode = NONE  # what it has
        self.wanted = wanted  # what it waits for, if anything
        self.no_queue = no_queue
        self.serial = 1  # of its newest wait
        self.cancelling = 0  # the reason, once its owner has asked to end the wait
        self.token: Token = NO_TOKEN
        self.value, self.version, self.valid = b"", 0, True  # the block as it was granted or written last
        self.told = 0  # for which modes the holder knows that somebody waits: one bit each


class What(IntEnum):
    """What has become of a lock."""

    GRANTED = 1
    DENIED = 2
    BLOCKING = 3


News = list[tuple[What, Lock, int]]  # the number: the mode that is wanted, or the reason


class Resource:
    """What is locked under one name, as its master keeps it: holders, queue, value block."""

    __slots__ = (
        "_many", "_only", "converting", "counter", "epoch", "frozen", "granted", "key", "valid", "value", "version",
        "waiting",
    )  # fmt: skip

    def __init__(self, key: str, mark: Token = NO_TOKEN) -> None:
        """`mark`: a token that is not below any that was given for this resource."""
        self.key = key
        self._only: Lock | None = None  # most resources have one lock, and a dictionary for it would be half of all
        self._many: dict[LockId, Lock] | None = None  # two or more
        self.granted = 0  # how many of each mode, see `modes.UNIT`
        self.converting: list[Lock] | None = None
        self.waiting: list[Lock] | None = None
        self.epoch, self.counter = mark
        self.value, self.version, self.valid = b"", 0, True
        self.frozen = False

    @property
    def token(self) -> Token:
        """The last one that was given."""
        return self.epoch, self.counter

    # ---- its locks

    @property
    def is_empty(self) -> bool:
        """Whether nobody has a lock on it, or waits for one."""
        return self._only is None and self._many is None

    @property
    def locks(self) -> dict[LockId, Lock]:
        """All of them, to be read."""
        if self._many is not None:
            return self._many
        return {} if self._only is None else {self._only.id: self._only}

    def find(self, number: LockId) -> Lock | None:
        """The lock of this number, if it is there."""
        if self._many is not None:
            return self._many.get(number)
        return self._only if self._only is not None and self._only.id == number else None

    def _put(self, lock: Lock) -> None:
        if self._many is not None:
            self._many[lock.id] = lock
        elif self._only is None:
            self._only = lock
        else:
            self._many = {self._only.id: self._only, lock.id: lock}
            self._only = None

    def _drop(self, lock: Lock) -> None:
        if self._many is None:
            self._only = None
            return
        del self._many[lock.id]
        if len(self._many) == 1:
            (self._only,) = self._many.values()
            self._many = None

    # ---- what owners ask

    def request(self, lock: Lock, epoch: int, news: News) -> None:
        """A new lock (P12.2)."""
        self._put(lock)
        wanted = lock.wanted
        if not self.frozen:
            free = not self.granted & CONFLICTS[wanted] and not self.converting and not self.waiting
            if wanted == NL or free:
                self._grant(lock, epoch, news)
                return
            if lock.no_queue:
                self._drop(lock)
                news.append((What.DENIED, lock, Reason.WOULD_WAIT))
                return
        if self.waiting is None:
            self.waiting = []
        self.waiting.append(lock)
        self.tell_holders(news)

    def convert(self, lock: Lock, wanted: int, epoch: int, news: News) -> None:
        """A conversion that may have to wait (P12.3); `give_up` is for those that never do."""
        lock.wanted = wanted
        if not self.frozen:
            if not self.converting and not (self.granted - UNIT[lock.mode]) & CONFLICTS[wanted]:
                self._grant(lock, epoch, news)
                self.serve(epoch, news)  # CW and PR exclude others each: who waits may fit what it is now
                return
            if lock.no_queue:
                lock.wanted = NONE
                news.append((What.DENIED, lock, Reason.WOULD_WAIT))
                return
        if self.converting is None:
            self.converting = []
        self.converting.append(lock)
        self.tell_holders(news)

    def give_up(self, lock: Lock, mode: int, value: bytes | None, version: int, epoch: int, news: News) -> None:
        """A conversion to a mode that disturbs nobody; it may write the value block (P12.3, P12.4)."""
        assert GIVES_UP[lock.mode][mode]
        if value is not None and WRITES[lock.mode]:
            self._write(value, version)
        self.granted += UNIT[mode] - UNIT[lock.mode]
        lock.mode = mode
        lock.told = 0
        self.serve(epoch, news)

    def free(self, lock: Lock, value: bytes | None, version: int, epoch: int, news: News) -> None:
        """The lock is no more, whatever it held or waited for; it may write the value block (P12.4)."""
        self._drop(lock)
        if lock.wanted != NONE:
            self._unqueue(lock)
        if lock.mode != NONE:
            if value is not None and WRITES[lock.mode]:
                self._write(value, version)
            self.granted -= UNIT[lock.mode]
            lock.mode = NONE
        if not self.is_empty:
            self.serve(epoch, news)
        else:
            self.value, self.version, self.valid = b"", 0, True  # the block lasts as long as somebody has a lock

    def withdraw(self, lock: Lock, reason: int, epoch: int, news: News) -> None:
        """Its wait ends without a grant: it is what it was before, which for a new one is nothing."""
        self._unqueue(lock)
        if lock.mode == NONE:
            self._drop(lock)
        news.append((What.DENIED, lock, reason))
        if not self.is_empty:
            self.serve(epoch, news)

    # ---- recovery

    def lose(self, lock: Lock) -> None:
        """Its owner's node is proven dead: whatever it was writing is lost (P12.4). Nobody is served yet."""
        self._drop(lock)
        if lock.wanted != NONE:
            self._unqueue(lock)
        if lock.mode != NONE:
            self.granted -= UNIT[lock.mode]
            if WRITES[lock.mode]:
                self.valid = False
        if self.is_empty:
            self.value, self.version, self.valid = b"", 0, True

    def restore(self, lock: Lock) -> None:
        """A lock as its owner knows it, into a resource that is being built up again; `order` comes afterwards."""
        self._put(lock)
        if lock.mode != NONE:
            assert not self.granted & CONFLICTS[lock.mode], f"{self.key}: two owners hold what excludes the other"
            self.granted += UNIT[lock.mode]
        if lock.wanted != NONE:
            queue = "waiting" if lock.mode == NONE else "converting"
            if getattr(self, queue) is None:
                setattr(self, queue, [])
            getattr(self, queue).append(lock)

    def thaw(self, epoch: int, news: News) -> None:
        """The recovery has ended: grant what can be, refuse what would not wait."""
        self.frozen = False
        for lock in [each for each in self.waiting or () if each.wanted == NL]:
            self._unqueue(lock, keep=True)
            self._grant(lock, epoch, news)
        self.serve(epoch, news)
        refused = [each for each in self.queued() if each.no_queue]
        for lock in refused:
            if lock.wanted != NONE:  # the end of another's wait may have granted it
                self.withdraw(lock, Reason.WOULD_WAIT, epoch, news)

    # ---- the queues

    def queued(self) -> Iterator[Lock]:
        """Who waits, in the order in which they are served."""
        yield from self.converting or ()
        yield from self.waiting or ()

    def serve(self, epoch: int, news: News) -> None:
        """Grant from the heads of the queues what can be granted now (P12.2, P12.3)."""
        if self.frozen:
            return
        while self.converting:
            head = self.converting[0]
            if (self.granted - UNIT[head.mode]) & CONFLICTS[head.wanted]:
                break
            self._unqueue(head, keep=True)
            self._grant(head, epoch, news)
        while self.waiting and not self.converting:
            head = self.waiting[0]
            if self.granted & CONFLICTS[head.wanted]:
                break
            self._unqueue(head, keep=True)
            self._grant(head, epoch, news)
        if self.converting or self.waiting:
            self.tell_holders(news)

    def tell_holders(self, news: News) -> None:
        """Each holder learns once, for each mode, that somebody waits to have it (P12.5)."""
        wanted = [0] * len(Mode)
        for lock in self.queued():
            wanted[lock.wanted] += 1
        modes = [mode for mode in Mode if wanted[mode] and self.granted & CONFLICTS[mode]]
        if not modes:
            return
        for lock in self.locks.values():
            held = lock.mode
            if held == NONE:
                continue
            for mode in modes:
                others = wanted[mode] - (lock.wanted == mode)
                if others and not COMPATIBLE[held][mode] and not lock.told >> mode & 1:
                    lock.told |= 1 << mode
                    news.append((What.BLOCKING, lock, mode))

    def _grant(self, lock: Lock, epoch: int, news: News) -> None:
        if lock.mode != NONE:
            self.granted -= UNIT[lock.mode]
        lock.mode, lock.wanted = lock.wanted, NONE
        self.granted += UNIT[lock.mode]
        self.epoch = max(self.epoch, epoch)
        self.counter += 1
        lock.token = (self.epoch, self.counter)
        lock.value, lock.version, lock.valid = self.value, self.version, self.valid
        lock.told = 0
        news.append((What.GRANTED, lock, lock.mode))

    def _unqueue(self, lock: Lock, *, keep: bool = False) -> None:
        """Out of its queue; `keep`: what it wants stays, to be granted."""
        if lock.mode == NONE:
            assert self.waiting is not None
            self.waiting.remove(lock)
            if not self.waiting:
                self.waiting = None
        else:
            assert self.converting is not None
            self.converting.remove(lock)
            if not self.converting:
                self.converting = None
        if not keep:
            lock.wanted = NONE

    def _write(self, value: bytes, version: int) -> None:
        self.value, self.version, self.valid = value, version, True
