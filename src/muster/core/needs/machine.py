"""What needs a person now: the one list that every instrument reads (P10.12).

Theory of operation. A pure pass over the replica and what this node sees makes suspicions, cheaply. One that has held
for as long as its kind asks becomes a need, with its words. So a restart, an election or a start that is under way is
no trouble, and nothing on a healthy cluster is. How long something has held is known from its record where there is
one, and else from when this daemon saw it first.

The list is bounded: of more than `MAXIMUM_NEEDS` the rest is only counted.
"""

from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from muster.core.needs.need import HOLDS_US, KINDS, TROUBLE, US_PER_S, Need, Seen, Suspicion
from muster.core.needs.of_cluster import of_cluster
from muster.core.needs.of_fencing import of_fencing
from muster.core.needs.of_nodes import of_nodes
from muster.core.needs.of_services import of_services
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.services import ServiceState
from muster.records.units import US_PER_MS

MAXIMUM_NEEDS = 64


class Well(NamedTuple):
    """How many are as they should be, of how many: services that are wanted, nodes that are configured."""

    services: int
    of_services: int
    nodes: int
    of_nodes: int

    @property
    def words(self) -> str:
        """In words, as the pages have it."""
        return f"{self.services} of {self.of_services} services and {self.nodes} of {self.of_nodes} nodes are well"


class Told(NamedTuple):
    """What every instrument is given: the needs in their order, how many more there are, and how much is well."""

    needs: tuple[Need, ...] = ()
    beyond: int = 0
    well: Well = Well(0, 0, 0, 0)

    def about(self, subject: str) -> Need | None:
        """The first need about `kind/NAME` itself, else the first that concerns it."""
        own = (need for need in self.needs if need.subject == subject)
        return next(own, None) or next((need for need in self.needs if need.is_about(subject)), None)


NOTHING = Told()


def suspicions(database: Database, seen: Seen) -> Iterator[Suspicion]:
    """Everything that may need a person, if it lasts."""
    yield from of_cluster(database, seen)
    yield from of_nodes(database, seen)
    yield from of_fencing(database, seen)
    yield from of_services(database, seen)


class Needs:
    """Since when each suspicion has held."""

    def __init__(self) -> None:
        self._since_us: dict[tuple[str, str], int] = {}
        self._said: dict[tuple[str, str], Need] = {}  # what was told last
        self.beyond = 0  # needs that are not in the list

    @property
    def suspects(self) -> bool:
        """Whether the last look found anything that may become a need."""
        return bool(self._since_us)

    def look(self, database: Database, seen: Seen, now_us: int) -> tuple[Need, ...]:
        """What needs a person now, trouble first."""
        before, self._since_us = self._since_us, {}
        due = []
        for each in suspicions(database, seen):
            key = (each.kind, each.subject)
            since_us = now_us - each.age_ms * US_PER_MS
            known_us = before.get(key)
            if known_us is not None and known_us - since_us < US_PER_S:
                since_us = known_us  # ages are in milliseconds: what is told must not tremble
            self._since_us[key] = since_us
            if now_us - since_us >= max(HOLDS_US[each.kind], each.holds_us):
                due.append((each, since_us))
        due.sort(key=lambda found: KINDS.index(found[0].kind))
        self.beyond = max(0, len(due) - MAXIMUM_NEEDS)
        told = ((self._need(each), since_us) for each, since_us in due[:MAXIMUM_NEEDS])
        needs = [replace(need, since_us=since_us) for need, since_us in told if need is not None]
        self._said = {need.key: need for need in needs}
        return tuple(sorted(needs, key=lambda need: need.severity != TROUBLE))

    def _need(self, suspicion: Suspicion) -> Need | None:
        need = suspicion.tell()
        if need is None and suspicion.goes_on:
            return self._said.get((suspicion.kind, suspicion.subject))
        return need


def well(database: Database, seen: Seen, needs: tuple[Need, ...]) -> Well:
    """How many services and nodes are as they should be."""
    troubled = {need.subject for need in needs if need.severity == TROUBLE}
    affected = {name for need in needs if need.severity == TROUBLE for name in need.affects}
    wanted = [
        service
        for service in database.services.values()
        if service.wanted and not service.removed and not (service.definition.on_all and not service.template)
    ]
    registered = [
        service
        for service in wanted
        if service.state is ServiceState.REGISTERED and not service.broken and service.name not in affected
    ]
    joined = [
        node
        for node in database.nodes
        if database.member(node).state is NodeState.JOINED
        and (node in seen.live or node == seen.node)
        and f"node/{database.name_of(node)}" not in troubled
    ]
    return Well(len(registered), len(wanted), len(joined), len(database.nodes))
