"""The lock manager of one node: clients' locks, resources mastered here, directory and recovery, composed (SPEC 4.1).

Theory of operation. A resource has one master. Whoever needs it first asks the directory, and becomes its master if
there is none; so what one node alone uses never leaves it. The master decides; owners keep what they have been granted,
and that is what a master is built up from again. A mode that is given up is given up at once at the owner, and the
master learns of it; a mode that is gained is gained when the master's grant has come.

It has three rooms: `Locking` is what owners, masters and the directory do, `Rounds` what a recovery asks of this node,
`Wires` its channels; here are what clients may ask, where messages go, and the search for deadlocks.

Inputs are the methods; what is to be done about them is in the list that `take` returns, in order. The machine reads no
clock and does no I/O: a timeout is an input (`expire`), and so is the wish to look for deadlocks (`suspect`). What a
client asks wrongly raises `LockRefused` and changes nothing. What a round of recovery asks of this node is done in
pieces (`work`), so that clients are served in between.
"""

from collections.abc import Iterable
from typing import cast

from muster.core.locks.deadlock import MAXIMUM_EDGES, Search, edges_of
from muster.core.locks.kernel import KernelSpaces
from muster.core.locks.locking import Locking, LockRefused
from muster.core.locks.messages import (
    NODE_BITS,
    Ask,
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
    Free,
    Given,
    Handed,
    KernelGo,
    KernelHalt,
    KernelHalted,
    KernelSaid,
    KernelStarted,
    KernelWish,
    LockId,
    Marks,
    Message,
    NotHere,
    Reason,
    Rebuilt,
    Stopped,
    Suspect,
    Wanted,
    Withdraw,
    owner_of,
)
from muster.core.locks.modes import GIVES_UP, NONE, WRITES, Mode
from muster.core.locks.names import (
    MAXIMUM_SPACES,
    MAXIMUM_VALUE,
    Bounds,
    key_of,
    name_problem,
    space_problem,
)
from muster.core.locks.recovering import Rounds
from muster.core.locks.recovery import Phase, Recovery
from muster.core.locks.resource import Lock
from muster.core.locks.wires import Wires

__all__ = ["LockManager", "LockRefused"]

_NO_BOUNDS = Bounds()


class LockManager:
    """One incarnation of one node."""

    def __init__(self, node: int, incarnation: int, bounds: Bounds = _NO_BOUNDS) -> None:
        self.node, self.incarnation = node, incarnation
        self.spaces: frozenset[str] = frozenset()
        self.recovery = Recovery(node, bounds.piece)
        self.search = Search()
        self._bounds = bounds
        self._number = 0  # of the last lock that was made here
        self._effects: list[Effect] = []
        self._wires = Wires(node, incarnation, self.recovery, self._effects, self._message)
        self.kernel = KernelSpaces(node, incarnation, self._wires.send)
        self._locking = Locking(node, self.recovery, self._wires, bounds, self._effects)
        self._rounds = Rounds(
            node,
            incarnation,
            self.recovery,
            self._wires,
            self._locking,
            self.search,
            self.kernel,
            bounds,
            self._effects,
        )
        self._locking.when_empty = self._rounds.acknowledge
        self.tables = self._locking.tables
        # inputs that are one room's alone; what they mean is said there
        self.connected, self.lost, self.received = self._wires.connected, self._wires.lost, self._wires.received
        self.told, self.work = self._rounds.told, self._rounds.work

    def take(self) -> list[Effect]:
        """All that is to be done, in order."""
        effects = self._effects.copy()
        self._effects.clear()
        return effects

    @property
    def is_paced(self) -> bool:
        """Whether recoveries go on with `work` only, piece by piece; else at once."""
        return self._rounds.is_paced

    @is_paced.setter
    def is_paced(self, value: bool) -> None:
        self._rounds.is_paced = value

    @property
    def has_work(self) -> bool:
        """Whether `work` is to be called."""
        return self._rounds.has_work

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
        if self._locking.is_leaving:
            raise LockRefused("this node is leaving the cluster: ask on another one")
        if self._locking.count >= self._bounds.locks:
            raise LockRefused(f"this node has {self._bounds.locks} locks, which is all that it may have")
        if locks is None:
            locks = self.tables.clients[client] = {}
        elif len(locks) >= self._bounds.locks_of_client:
            raise LockRefused(f"this client has {self._bounds.locks_of_client} locks, which is all that it may have")
        self._number += 1
        self._locking.count += 1
        lock = Lock(key, self._number << NODE_BITS | self.node, client, mode, no_queue=no_queue)
        locks[lock.id] = lock
        self._locking.place(lock)
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
        if self._locking.hold_back(lock, "convert", (mode, value, no_queue)):
            return
        self._locking.convert(lock, mode, value, no_queue)

    def unlock(self, client: int, number: LockId, *, value: bytes | None = None) -> None:
        """The lock is no more, and no conversion that it waits for; `value` is written where it is a writer's."""
        lock = self._granted_lock(client, number)
        self._check_value(lock, value)
        if self._locking.hold_back(lock, "free", (value,)):
            return
        self._locking.free(lock, value)

    def cancel(self, client: int, number: LockId, reason: Reason = Reason.CANCELLED) -> None:
        """End the wait of a lock, if it is not granted before that; nothing where it waits for nothing."""
        self._locking.end_wait(self._lock(client, number), reason)

    def expire(self, client: int, number: LockId) -> None:
        """The time is over for which a client wants to wait."""
        if number in self.tables.clients.get(client, ()) and number not in self._locking.held:
            self.cancel(client, number, Reason.TIMED_OUT)

    def disconnected(self, client: int) -> None:
        """A client's connection is gone. What it waits for ends; what it holds, it holds until it is empty (P12.5)."""
        locks = self.tables.clients.get(client)
        if not locks:
            return
        self._effects.append(EndClient(client))
        for lock in list(locks.values()):
            _, what, arguments = self._locking.held.get(lock.id, (lock, "", ()))
            if what == "convert" and not GIVES_UP[lock.mode][cast("int", arguments[0])]:
                del self._locking.held[lock.id]
            if lock.wanted != NONE and lock.id not in self._locking.held:
                self.cancel(client, lock.id, Reason.CLIENT_GONE)

    def emptied(self, client: int) -> None:
        """It is proven that nothing of the client runs any more: its locks are free (P12.5)."""
        for lock in list(self.tables.clients.get(client, {}).values()):
            value = self._locking.value_held_back(lock)
            if not self._locking.hold_back(lock, "free", (value,), always=True):
                self._locking.free(lock, value)

    def suspect(self) -> None:
        """Somebody has waited for long: look for a deadlock (P12.14)."""
        if not self.recovery.roster or self.recovery.phase is not Phase.AT_REST:
            return
        lowest = min(self.recovery.roster)
        if lowest != self.node:
            self._wires.send(lowest, Suspect())
        elif not self.search.is_under_way:
            self._ask_for_edges()

    # ---- the kernel's lockspaces (P12.30)

    def kernel_asks(self, name: str, *, enters: bool) -> None:
        """The kernel waits for this node to be let into a lockspace, or out of it."""
        if enters:
            self.kernel.entering(name, is_leaving=self._locking.is_leaving)
        else:
            self.kernel.ending(name)
        self._rounds.go_on()

    def kernel_has_done(self, number: int) -> None:
        """The kernel has carried out this command, and all before it."""
        self.kernel.done(number)
        self._rounds.go_on()

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
        if number in self._locking.held:
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

    # ---- what others say

    def _message(self, node: int, incarnation: int, message: Message) -> None:
        recovery = self.recovery
        if self._rounds.is_out:
            return
        if isinstance(message, KernelSaid):
            self.kernel.heard(node, incarnation, message)
            return
        if isinstance(message, Stopped | Emptied):  # perhaps of a node of which this one is still to be told
            if isinstance(message, Stopped):
                recovery.take_stopped(node, incarnation, message)
            else:
                recovery.emptied[node] = incarnation
                self.kernel.emptied(node)
            self._rounds.go_on()
            return
        member = recovery.roster.get(node)
        if member is None or member.incarnation != incarnation:
            return
        match message:
            case Ask() | Change() | Free() | Withdraw():
                self._locking.asked_of_master(node, message)
            case Given() | Denied() | Wanted() | NotHere():
                self._locking.told_by_master(node, message)
            case Find():
                self._locking.asked_of_directory(node, message)
            case Found():
                self._locking.found(message)
            case Dropped():
                self.tables.directory.drop(message.key, node, message.token)
            case KernelWish() | KernelHalt() | KernelHalted() | KernelGo() | KernelStarted():
                self.kernel.heard(node, incarnation, message)
                self._rounds.acknowledge()  # the last change may have been what a leave waits for (P12.36)
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
                self._rounds.go_on()

    # ---- deadlocks

    def _ask_for_edges(self) -> None:
        nodes = list(self.recovery.roster)
        turn = self.search.ask(nodes)
        for node in nodes:
            self._wires.send(node, Collect(turn))

    def _search(self, node: int, message: Suspect | Collect | Edges | Chosen) -> None:
        match message:
            case Suspect():
                self.suspect()
            case Collect(turn):
                self._wires.send(node, Edges(turn, tuple(self._edges())))
            case Edges(turn, edges):
                if self.search.answered(node, turn, edges):
                    self.search.begin_second()
                    self._ask_for_edges()
                elif (victim := self.search.found()) is not None:
                    self._wires.send(owner_of(victim.lock), Chosen(victim.key, victim.lock, victim.serial))
            case Chosen(_, number, serial):
                for client, locks in self.tables.clients.items():
                    lock = locks.get(number)
                    if lock is not None:
                        if lock.serial == serial and lock.wanted != NONE and number not in self._locking.held:
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
