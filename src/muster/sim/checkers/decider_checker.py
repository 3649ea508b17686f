"""The judge of who decides on services: the recorded holder of the decision lock, by its grant (SPEC 6.4, 2.7)."""

from collections.abc import Iterator
from typing import NamedTuple

from muster.records.database import Entry
from muster.records.deciders import NO_GRANT, SERVICES, Decider, Grant
from muster.records.services import Service
from muster.records.terms import NO_NODE
from muster.sim.checkers.rule import Checker
from muster.sim.history import Applied, LockGranted, Observation, Proposed, Told

Findings = Iterator[str]
MASTERS = Decider(SERVICES, NO_NODE, 0)


class Known(NamedTuple):
    """What an entry did, as the state behind it shows."""

    decider: Decider  # before it
    decided: tuple[str, ...]  # services that it has brought into another state


class DecidedByHolder(Checker):
    """SPEC 6.4, 2.7: what is decided on services is by the recorded grant, and from the newest index (P6.42-P6.44)."""

    def __init__(self) -> None:
        self._granted: dict[Grant, tuple[int, int]] = {}  # to which incarnation of which node
        self._proposed: set[tuple[Grant, int]] = set()
        self._index = -1
        self._decider = MASTERS
        self._services: dict[str, Service] = {}
        self._known: dict[int, Known] = {}
        self._told: dict[int, Entry] = {}
        self._over: set[Grant] = set()  # by which nobody decides any more

    def see(self, seen: Observation) -> Findings:
        """Keep grants, proposals and states; compare what entries decide with them (SPEC 6.4)."""
        match seen:
            case LockGranted():
                self._granted[seen.grant] = (seen.node, seen.incarnation)
            case Proposed():
                self._proposed.add((seen.grant, seen.index))
            case Applied() if seen.index > self._index:
                yield from self._applied(seen)
            case Told() if seen.entry.index not in self._told:
                self._told[seen.entry.index] = seen.entry
                yield from self._judge(seen.entry.index)
            case _:
                return

    def _applied(self, seen: Applied) -> Findings:
        now = seen.state.deciders.get(SERVICES, MASTERS)
        if now != self._decider:
            yield from self._recorded(now)
        if seen.index == self._index + 1:
            before = self._services
            changed = tuple(
                name
                for name, each in seen.state.services.items()
                if name in before and (each.state, each.token) != (before[name].state, before[name].token)
            )
            self._known[seen.index] = Known(self._decider, changed)
            yield from self._judge(seen.index)
        self._index, self._decider, self._services = seen.index, now, seen.state.services

    def _recorded(self, now: Decider) -> Findings:
        before = self._decider
        if now.grant < before.grant:
            yield f"the recorded grant falls from {before.grant} to {now.grant}"
        if before.node != NO_NODE and (now.node, now.grant) != (before.node, before.grant):
            self._over.add(before.grant)
        if now.node == NO_NODE:
            return
        if now.grant in self._over or now.grant == NO_GRANT:
            yield f"n{now.node} decides by grant {now.grant}, which is over"
        if self._granted.get(now.grant) != (now.node, now.incarnation):
            yield f"n{now.node} decides by grant {now.grant}, which it never had"

    def _judge(self, index: int) -> Findings:
        known, entry = self._known.get(index), self._told.get(index)
        if known is None or entry is None:
            return
        del self._known[index]
        recorded = known.decider if known.decider.node != NO_NODE else None
        if known.decided:
            wanted = recorded.grant if recorded is not None else None
            if entry.grant != wanted:
                yield f"entry {index} decides on {known.decided[0]} by grant {entry.grant}; recorded is {wanted}"
        if entry.grant is None or (recorded is not None and recorded.node == entry.term.node):
            return
        if (entry.grant, index - 1) not in self._proposed:
            yield f"entry {index} is decided by grant {entry.grant} from another index than {index - 1}"
