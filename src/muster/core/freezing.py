"""What nothing happens to before the death of a silent node is proven (P4.9)."""

from typing import Protocol

from muster.core.draft import is_silent
from muster.records.members import Member
from muster.records.nodes import Cluster
from muster.records.service_limits import MAXIMUM_GENERATIONS
from muster.records.services import Service
from muster.records.terms import NO_NODE


class Records(Protocol):
    """What a database and a draft have in common here."""

    @property
    def cluster(self) -> Cluster:
        """What the whole cluster shares."""

    @property
    def services(self) -> dict[str, Service]:
        """All services, by their names."""

    def member(self, node: int) -> Member:
        """The member record of a configured node."""


def silent_node_of(service: Service, records: Records) -> int:
    """The silent node that keeps the service as it is until its death is proven: its own, or that of a parent (P4.9);
    or one that a restore did not ask, which may run any (P11.8).

    NO_NODE if there is none.
    """
    if (unasked := unasked_node(records)) != NO_NODE:
        return unasked
    for _ in range(MAXIMUM_GENERATIONS):
        if service.node != NO_NODE:
            member = records.member(service.node)
            if member.incarnation == service.incarnation and is_silent(member):
                return service.node
        parent = records.services.get(service.definition.parent) if service.definition.parent else None
        if parent is None:
            break
        service = parent
    return NO_NODE


def unasked_node(records: Records) -> int:
    """The first node that may still run what it ran before the store was restored; NO_NODE if there is none (P11.8)."""
    return next(
        (node for node, incarnation in records.cluster.unasked if _may_run(node, incarnation, records)), NO_NODE
    )


def _may_run(node: int, incarnation: int, records: Records) -> bool:
    member = records.member(node)
    return member.incarnation == incarnation and is_silent(member)


def is_frozen(service: Service, records: Records) -> bool:
    """Whether nothing happens to the service before the death of a silent node is proven (P4.9)."""
    return silent_node_of(service, records) != NO_NODE
