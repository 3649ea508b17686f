"""Deadlocks across nodes: who waits for whom, and who has to give way (P12.14).

Theory of operation. One node, the lowest, asks all masters who waits for whom, twice, one time after the other. A wait
has a serial and a holding has a stamp, so a wait for a holder that is in both answers has lasted from the first to the
second: at the moment between them all of these lasted at once. A circle of such waits is a deadlock, and none ends by
itself; so nobody is ever taken for a victim by answers that were of different moments. A wait for one's own lock is no
deadlock, also where others are between the two: only that client can know whether it will give it up.
"""

from collections.abc import Callable, Iterable, Iterator

from muster.core.locks.messages import Edge, LockId, owner_of
from muster.core.locks.modes import COMPATIBLE, NONE
from muster.core.locks.resource import Lock, Resource

Client = tuple[int, int]
MAXIMUM_EDGES = 20_000  # of one answer


def client_of(lock: Lock) -> Client:
    """Whose lock it is."""
    return owner_of(lock.id), lock.client


def edges_of(resource: Resource) -> Iterator[Edge]:
    """Who waits for whom: for holders that exclude it, and for whoever is before it in the queues."""
    ahead: Lock | None = None
    for lock in resource.queued():
        if ahead is not None:
            yield Edge(client_of(lock), lock.id, lock.serial, lock.key, client_of(ahead), ahead.id, (ahead.serial,))
        for holder in resource.locks.values():
            excludes = holder.mode != NONE and not COMPATIBLE[holder.mode][lock.wanted]
            if excludes and client_of(holder) != client_of(lock):
                stamp = (*holder.token, holder.mode)
                yield Edge(client_of(lock), lock.id, lock.serial, lock.key, client_of(holder), holder.id, stamp)
        ahead = lock


def victim_of(edges: Iterable[Edge]) -> Edge | None:
    """The wait that has to end: of the first circle found, that of the highest client. None: there is no circle.

    It follows from the waits alone, so every node would choose the same.
    """
    waits: dict[LockId, list[Edge]] = {}
    of_client: dict[Client, list[LockId]] = {}
    for edge in sorted(edges):
        if edge.lock not in waits:
            of_client.setdefault(edge.waiter, []).append(edge.lock)
        waits.setdefault(edge.lock, []).append(edge)

    def after(wait: LockId) -> Iterator[LockId]:
        for edge in waits[wait]:
            if len(edge.stamp) > 1:  # a holder: it gives up nothing while any of its client's waits lasts
                for other in of_client.get(edge.blocker, ()):
                    if other == edge.blocking or waits[other][0].key != edge.key:  # else it waits for its own lock
                        yield other
            elif edge.blocking in waits:
                yield edge.blocking

    circle = _circle(list(waits), after)
    return max((waits[wait][0] for wait in circle), default=None)


def _circle(starts: Iterable[LockId], after: Callable[[LockId], Iterator[LockId]]) -> list[LockId]:
    """Waits that are each after the one before, and the first after the last; empty where there are none."""
    done: set[LockId] = set()
    for start in starts:
        if start in done:
            continue
        path, walk, on_path = [start], [after(start)], {start}
        while walk:
            following = next(walk[-1], None)
            if following is None:
                walk.pop()
                done.add(path[-1])
                on_path.discard(path.pop())
            elif following in on_path:
                return path[path.index(following) :]
            elif following not in done:
                path.append(following)
                on_path.add(following)
                walk.append(after(following))
    return []


class Search:
    """The search that is under way, at the node that asks."""

    def __init__(self) -> None:
        self.turn = 0
        self._asked: frozenset[int] = frozenset()
        self._answers: dict[int, tuple[Edge, ...]] = {}
        self._first: frozenset[Edge] | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether answers are awaited."""
        return bool(self._asked)

    def ask(self, nodes: Iterable[int]) -> int:
        """All of these are asked now; the number of this turn."""
        self.turn += 1
        self._asked, self._answers = frozenset(nodes), {}
        return self.turn

    def give_up(self) -> None:
        """Who is asked has changed."""
        self._asked, self._first = frozenset(), None

    def answered(self, node: int, turn: int, edges: tuple[Edge, ...]) -> bool:
        """One answer; whether a second turn is to be asked."""
        if turn != self.turn or node not in self._asked:
            return False
        self._answers[node] = edges
        return len(self._answers) == len(self._asked) and self._first is None

    def begin_second(self) -> None:
        """What the first turn said is kept."""
        self._first = frozenset(edge for edges in self._answers.values() for edge in edges)

    def found(self) -> Edge | None:
        """The victim, when both turns are answered; the search has ended then."""
        if self._first is None or len(self._answers) < len(self._asked) or not self._asked:
            return None
        both = self._first & {edge for edges in self._answers.values() for edge in edges}
        self.give_up()
        return victim_of(both)
