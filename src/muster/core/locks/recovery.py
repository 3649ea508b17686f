"""Transitions as the lock manager's recovery: rounds in which all stop, tell what they know, resume (P12.11-P12.13).

Theory of operation. The first barrier of a join, a leave or a forced leave begins a *round*, named by the index of the
entry that opened it. Every node of the roster stops what the round concerns and says `Stopped` to all others. Channels
keep their order: when all have said it, nothing that was sent before is on its way any more, so what owners know and
what masters know agrees. Then each node tells what it knows to whom it concerns now: as an owner its locks on resources
that have lost their master, to the directory's node, which becomes the master; as a master that leaves, value block,
token and queues; as a master that stays, its resources, to directories that are new to them. It ends with `Rebuilt`.
A node that has heard that of all is *ready*: it has all that anybody alive knows, and acknowledges the first barrier.
At the second one all have acknowledged the first: it resumes.

A second death begins another round, and what was told in the first counts only if somebody has resumed it (then all
were ready, so all agree on it); else it is told again to whom the newer layout names. Each node says in `Stopped` which
round it knows to have been resumed, so all judge alike, by the same messages.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Generic, NamedTuple, TypeVar

from muster.core.locks.directory import NOBODY, layout
from muster.core.locks.messages import (
    BATCH,
    NODE_BITS,
    Copies,
    Copy,
    Entries,
    Handed,
    Kept,
    LockId,
    Marks,
    Message,
    Rebuilt,
    Stopped,
    Token,
    owner_of,
)
from muster.core.locks.modes import KNOWS, NONE, WRITES
from muster.core.locks.names import BUCKETS, bucket_of
from muster.core.locks.resource import Lock, Resource
from muster.core.locks.tables import Tables, copy_of, highest, lock_of

MASK = (1 << NODE_BITS) - 1
T = TypeVar("T")


class Kind(IntEnum):
    """What a transition does to its node."""

    JOINING = 1
    LEAVING = 2
    FORCED_LEAVING = 3
    ENDED = 4  # a leave of which nothing more comes: the lock process has ended by its own wish, and its node has not


BARRIERS = {Kind.JOINING: 2, Kind.LEAVING: 3, Kind.FORCED_LEAVING: 2, Kind.ENDED: 3}
AT_ONCE = frozenset({Kind.FORCED_LEAVING, Kind.ENDED})  # all that its node has had is over with the first barrier
LIFE_BITS = 40  # of a registration, in units of about a millisecond
_REGISTRATION_UNIT_BITS = 20


def life_of(incarnation: int, registration: int) -> int:
    """What names one lock process of a node: above all earlier ones, also of the same incarnation (P12.22).

    `registration`: nanoseconds of the machine's clock, as registrations are numbered; two of them are far more than a
    millisecond apart, for the runner pauses between two processes.
    """
    return incarnation << LIFE_BITS | registration >> _REGISTRATION_UNIT_BITS & (1 << LIFE_BITS) - 1


class Member(NamedTuple):
    """A node of the level; one that leaves takes part, and gets nothing more. `incarnation`: the life that it has."""

    incarnation: int
    stays: bool = True


class Step(NamedTuple):
    """One barrier of one transition at this level.

    `entry`: names the entry by which it entered this level, the same for all its barriers and no other transition's,
    and rising in the order of the log. Of steps that a node learns of together, first barriers are told first, in the
    order of their entries (P12.11). `roster`: who is in the level as of that entry; read by a node that has just come.
    """

    transition: int
    kind: Kind
    node: int
    incarnation: int
    barrier: int
    entry: int
    roster: dict[int, Member]


def step_of(
    transition: int,
    kind: Kind,
    node: int,
    life: tuple[int, int],
    barrier: int,
    entry: int,
    members: Mapping[int, tuple[int, bool, int]],
    *,
    alone: bool,
) -> Step:
    """A step as the level is told of it (P12.17, P12.22).

    `life`: incarnation and registration of what it is about; `members`: incarnation, whether it stays, and registration
    of each; `alone`: only a lock process comes or goes, and not its node.
    """
    incarnation, registration = life
    number = life_of(incarnation, registration)
    if kind is Kind.FORCED_LEAVING and not alone:
        number = life_of(incarnation + 1, 0) - 1  # all that this incarnation of the node has ever run
    if kind is Kind.LEAVING and alone:
        kind = Kind.ENDED
    roster = {each: Member(life_of(known[0], known[2]), known[1]) for each, known in members.items()}
    return Step(transition, kind, node, number, barrier, entry, roster)


class Work:
    """A transition that is not over for this node: its newest step, and the last barrier that was acknowledged."""

    __slots__ = ("acknowledged", "step")

    def __init__(self, step: Step) -> None:
        self.step = step
        self.acknowledged = -1


class Last(NamedTuple):
    """A resource that this node masters no more since `round_`; `writer`: the node whose client may write its block."""

    round_: int
    kept: Kept
    writer: int


class Phase(IntEnum):
    """How far the round is."""

    AT_REST = 0
    STOPPING = 1
    REBUILDING = 2
    READY = 3


Outgoing = Iterator[tuple[int, Message] | None]


class Recovery:
    """The round of one node, and what it has been told in it."""

    def __init__(self, node: int, piece: int) -> None:
        """`piece`: of so many resources is something told before there is a pause."""
        self.node, self._piece = node, piece
        self.epoch = 0  # the newest round
        self.resumed = 0  # the newest that this node has resumed: the epoch of its tokens
        self.final = 0  # the newest that somebody is known to have resumed
        self.phase = Phase.AT_REST
        self.roster: dict[int, Member] = {}
        self.seen_off: set[tuple[int, int]] = set()  # incarnations that had left before this node was in the level
        self.work: dict[int, Work] = {}
        self.emptied: dict[int, int] = {}  # leaving nodes of whose clients nothing more will come -> incarnation
        self.places: tuple[int, ...] = (NOBODY,) * BUCKETS  # the directory's nodes, as of the last layout told to
        self.moving: set[int] = set()  # buckets that have changed their node since this one last resumed
        self._next: tuple[int, ...] = self.places
        self._layouts: list[tuple[int, tuple[int, ...]]] = [(0, self.places)]  # of rounds; the first one counts
        self._agreed = 0  # the newest round that somebody has resumed by the words of all
        self._stopped: dict[int, tuple[int, Stopped]] = {}
        self._rebuilt: dict[int, tuple[int, int]] = {}
        self._copies: dict[str, list[Copy]] = {}
        self._kept: dict[str, list[Kept]] = {}
        self._entries: list[tuple[int, tuple[str, ...]]] = []  # who masters what, told in this round
        self._young: dict[str, int] = {}  # resources that came here in a round, until it is final
        self.unsettled: set[str] = set()  # those that came here since this node last resumed, and may have gone again
        self._handed: dict[str, Last] = {}  # those that went, with all that this node, their last master, knew

    # ---- steps

    def begin(self, step: Step) -> None:
        """The first barrier of a transition: a new round (P12.11)."""
        if not self.roster:
            self.roster = {
                node: member for node, member in step.roster.items() if (node, member.incarnation) not in self.seen_off
            }
        if step.kind in AT_ONCE:
            self.forget(step.node)
            for key, last in self._handed.items():
                if last.writer == step.node:
                    self._handed[key] = last._replace(kept=last.kept._replace(valid=False))
            self.work = {name: work for name, work in self.work.items() if work.step.node != step.node}
        else:
            self.roster[step.node] = Member(step.incarnation, step.kind is Kind.JOINING)
        self.work[step.transition] = Work(step)
        self.epoch = step.entry
        self.phase = Phase.STOPPING
        self._copies, self._kept, self._entries = {}, {}, []
        self._next = layout(tuple(sorted(node for node, member in self.roster.items() if member.stays)))
        self.moving |= {bucket for bucket in range(BUCKETS) if self._next[bucket] != self.places[bucket]}

    def stop(self) -> Stopped:
        """What this node says when it has stopped what the round concerns.

        Who has said that nothing more will come of it has nothing at stake, and says so: others may have seen it off
        already, and all must judge by the same words.
        """
        stopped = Stopped(self.epoch, 0 if self.node in self.emptied else self.final)
        self._stopped[self.node] = (self.roster[self.node].incarnation, stopped)
        return stopped

    def take_stopped(self, node: int, incarnation: int, stopped: Stopped) -> None:
        """One that another node says, perhaps before this one knows of the round, or of that node."""
        self._stopped[node] = (incarnation, stopped)

    def take_rebuilt(self, node: int, incarnation: int, rebuilt: Rebuilt) -> None:
        """A node has told all."""
        self._rebuilt[node] = (incarnation, rebuilt.epoch)

    def forget(self, node: int) -> None:
        """A node is in the level no more."""
        self.roster.pop(node, None)
        self.emptied.pop(node, None)

    def has_emptied(self, node: int) -> bool:
        """Whether nothing more will come of a leaving node's clients, or it is not in the level at all."""
        member = self.roster.get(node)
        return member is None or self.emptied.get(node) == member.incarnation

    def takes(self, epoch: int) -> bool:
        """Whether what is told in this round can still be used."""
        return epoch == self.epoch and self.phase in {Phase.STOPPING, Phase.REBUILDING}

    def take_copies(self, copies: Iterable[Copy]) -> None:
        """Locks on resources whose master is to be this node."""
        for copy in copies:
            self._copies.setdefault(copy.key, []).append(copy)

    def take_handed(self, kept: Iterable[Kept]) -> None:
        """What a master that masters them no more knows of such resources."""
        for each in kept:
            self._kept.setdefault(each.key, []).append(each)

    def take_entries(self, node: int, keys: tuple[str, ...]) -> None:
        """What a node masters, in buckets that are this node's now."""
        self._entries.append((node, keys))

    def heard_of(self, round_: int) -> None:
        """Something was said that only a node that has resumed this round can say.

        What counts is what this node says of it the next time that all stop: all judge by the same words.
        """
        self.final = max(self.final, round_)

    def round_of(self, key: str) -> int:
        """The round in which a resource came here, if that is not known to be final."""
        return self._young.get(key, 0)

    # ---- everybody has stopped

    @property
    def all_have_stopped(self) -> bool:
        """Whether nothing that was sent before the round is on its way any more."""
        return self.phase is Phase.STOPPING and all(
            (heard := self._stopped.get(node)) is not None
            and heard[0] == member.incarnation
            and heard[1].epoch == self.epoch
            for node, member in self.roster.items()
        )

    def begin_telling(self) -> None:
        """All have stopped: what they say of earlier rounds is what all judge by (P12.13)."""
        self._agreed = max(self._stopped[node][1].final for node in self.roster)
        self.heard_of(self._agreed)
        self.phase = Phase.REBUILDING

    @property
    def coordinator(self) -> int:
        """Who lets nodes into the kernel's lockspaces; the same for all when all have stopped (P12.31, P12.36)."""
        staying = [node for node, member in self.roster.items() if member.stays]
        last = [node for node in self.roster if not self.has_emptied(node)]
        return min(staying or last or self.roster)

    def tell(self, tables: Tables, end_wait: Callable[[Lock], None]) -> Outgoing:
        """All that this node has to tell, and to whom; to itself, too (P12.12). In pieces: None is a pause.

        `end_wait`: a wait that its client has cancelled ends instead; no grant of it is on its way any more.
        """
        yield from self._tell_handed(tables)
        yield from self._tell_copies(tables, end_wait)
        yield from self._tell_directory(tables)

    def end_telling(self) -> None:
        """Everything is told."""
        self.places = self._next
        self._layouts.append((self.epoch, self.places))

    def _tell_handed(self, tables: Tables) -> Outgoing:
        """Resources that this node masters no more: it leaves, or the round in which they came here does not count."""
        out: _Batches[Kept] = _Batches()
        self._handed = {key: last for key, last in self._handed.items() if last.round_ > self._agreed}
        self._young = {key: round_ for key, round_ in self._young.items() if round_ > self._agreed}
        leaves = not self.roster[self.node].stays
        for number, key in enumerate(list(tables.resources if leaves else self._young)):
            resource = tables.give_away(key, MASK)
            self._young.pop(key, None)
            if not resource.is_empty:
                self._handed[key] = Last(self.epoch, *_kept(resource))
            else:
                tables.directory.raise_mark(bucket_of(key), resource.token)
            if number % self._piece == 0:
                yield None
        for key, last in list(self._handed.items()):
            self._handed[key] = last._replace(round_=self.epoch)
            if some := out.add(self._next[bucket_of(key)], last.kept):
                yield some[0], Handed(self.epoch, tuple(some[1]))
        for node, each in out.rest():
            yield node, Handed(self.epoch, tuple(each))

    def _tell_copies(self, tables: Tables, end_wait: Callable[[Lock], None]) -> Outgoing:
        """The locks of this node's clients on resources that have no master now."""
        out: _Batches[Copy] = _Batches()
        for number, (key, use) in enumerate(list(tables.uses.items())):
            if number % self._piece == 0:
                yield None
            if use.round <= self._agreed:
                use.round = 0
            if use.round == 0 and use.master != NOBODY and self.stays(use.master):
                continue  # what is held back of it waits until this node has resumed, all the same
            for lock in [each for each in use.locks.values() if each.cancelling]:
                if lock.mode == NONE:
                    del use.locks[lock.id]
                end_wait(lock)
            if not use.locks:
                use.master = NOBODY
                continue
            use.master = self._next[bucket_of(key)]
            use.round, use.held = self.epoch, True
            for lock in use.locks.values():
                if some := out.add(use.master, copy_of(lock)):
                    yield some[0], Copies(self.epoch, tuple(some[1]))
        for node, each in out.rest():
            yield node, Copies(self.epoch, tuple(each))

    def _tell_directory(self, tables: Tables) -> Outgoing:
        """What moves from where it was in the last round that counts; what a later one has told does not count."""
        while len(self._layouts) > 1 and self._layouts[1][0] <= self._agreed:
            del self._layouts[0]
        before = self._layouts[0][1]
        if len(self._layouts) > 1 or self._layouts[0][0] != self.resumed:
            tables.directory.keep({bucket for bucket in range(BUCKETS) if before[bucket] == self.node})
        del self._layouts[1:]
        out: _Batches[str] = _Batches()
        moved = {bucket for bucket in range(BUCKETS) if self._next[bucket] not in {before[bucket], self.node}}
        for number, key in enumerate(list(tables.resources) if moved else ()):
            if number % self._piece == 0:
                yield None
            if (bucket := bucket_of(key)) in moved and (some := out.add(self._next[bucket], key)):
                yield some[0], Entries(self.epoch, tuple(some[1]))
        for node, keys in out.rest():
            yield node, Entries(self.epoch, tuple(keys))
        marks: dict[int, list[tuple[int, Token]]] = {}
        for bucket, mark in tables.directory.marks.items():
            if self._next[bucket] != self.node:
                marks.setdefault(self._next[bucket], []).append((bucket, mark))
        for node, each in marks.items():
            yield node, Marks(self.epoch, tuple(each))

    def stays(self, node: int) -> bool:
        """Whether a node is there, and will be."""
        member = self.roster.get(node)
        return member is not None and member.stays

    # ---- everybody has told

    @property
    def all_have_told(self) -> bool:
        """Whether this node has all that anybody alive knows."""
        return self.phase is Phase.REBUILDING and all(
            self._rebuilt.get(node) == (member.incarnation, self.epoch) for node, member in self.roster.items()
        )

    def build(self, tables: Tables) -> Iterator[tuple[str, list[Copy]]]:
        """The resources that this node masters from now on, one after the other, frozen until it resumes.

        And locks that were told to it though another node lives which masters the resource: their owners had asked a
        node that was the master once and died before it could say so. They have been granted nothing.
        """
        for node, keys in self._entries:
            for key in keys:
                tables.directory.note(key, node)
        self._entries = []
        for key in {**self._copies, **self._kept}:
            copies, kept = self._copies.get(key, []), self._kept.get(key, [])
            if not copies:
                tables.directory.raise_mark(bucket_of(key), highest([each.token for each in kept]))
                continue
            master = tables.directory.master(key)
            if key in tables.resources or (master != self.node and self.stays(master)):
                assert all(copy.mode == NONE for copy in copies), f"{key} has two masters"
                yield key, copies
                continue
            use = tables.uses.get(key)
            own = use.locks if use is not None else {}
            resource = rebuilt(key, [own.get(copy.lock) or lock_of(copy) for copy in copies], kept)
            tables.resources[key] = resource
            tables.freeze(resource)
            self._young[key] = self.epoch
            self.unsettled.add(key)
            yield key, []
        self._copies, self._kept = {}, {}
        self.phase = Phase.READY

    @property
    def may_resume(self) -> bool:
        """Whether the round's own transition has come to its second barrier, and this node is ready (P12.12)."""
        return self.phase is Phase.READY and any(
            work.step.entry == self.epoch and work.step.barrier >= 1 for work in self.work.values()
        )

    def resume(self) -> None:
        """The round is over for this node."""
        self.phase = Phase.AT_REST
        self.resumed = self.epoch
        self.heard_of(self.epoch)
        self.moving.clear()
        self.unsettled.clear()
        self._young, self._handed = {}, {}


def _kept(resource: Resource) -> tuple[Kept, int]:
    order = tuple(lock.id for lock in resource.queued())
    holders = (lock for lock in resource.locks.values() if lock.mode != NONE)
    writer = next((owner_of(lock.id) for lock in holders if WRITES[lock.mode]), NOBODY)
    return Kept(resource.key, resource.token, resource.value, resource.version, resource.valid, order), writer


def rebuilt(key: str, locks: Iterable[Lock], kept: Iterable[Kept]) -> Resource:
    """A resource from what owners, and its last master if it lives, know of it (P12.4, P12.12).

    The value block is the newest that anybody knows. It is valid if somebody knows that nothing newer can have been
    written: the last master, or an owner whose mode keeps every writer out. Where nobody has a mode, it is the empty
    one of a new resource; who waits says whether a master was lost that may have known another one.
    """
    known, last = list(locks), list(kept)
    order: dict[LockId, int] = {}
    for each in last:
        order.update({lock: place for place, lock in enumerate(each.order)})
    known.sort(key=lambda lock: (order.get(lock.id, len(order)), lock.id >> NODE_BITS, lock.id))
    resource = Resource(key, highest([lock.token for lock in known] + [each.token for each in last]))
    for lock in known:
        resource.restore(lock)
    blocks = [(each.version, each.valid, each.value) for each in last]
    blocks.extend((lock.version, lock.valid and KNOWS[lock.mode], lock.value) for lock in known if lock.mode != NONE)
    resource.version, resource.valid, resource.value = max(blocks, default=(0, all(lock.valid for lock in known), b""))
    return resource


class _Batches(Generic[T]):
    """What is told to each node, in messages of bounded size."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[T]] = {}

    def add(self, node: int, each: T) -> tuple[int, list[T]] | None:
        """One more; what is to be sent now, if that is a whole message."""
        waiting = self._waiting.setdefault(node, [])
        waiting.append(each)
        return (node, self._waiting.pop(node)) if len(waiting) == BATCH else None

    def rest(self) -> Iterator[tuple[int, list[T]]]:
        """What is left."""
        yield from self._waiting.items()
