"""What nothing happens to before the death of a silent node is proven (P4.9)."""

from typing import Protocol

from muster.core.draft import is_silent
from muster.records.members import Member
from muster.records.service_limits import MAXIMUM_GENERATIONS
from muster.records.services import Service
from muster.records.terms import NO_NODE


class Records(Protocol):
    """What a database and a draft have in common here."""

    @property
    def services(self) -> dict[str, Service]:
        """All services, by their names."""

    def member(self, node: int) -> Member:
        """The member record of a configured node."""


def silent_node_of(service: Service, records: Records) -> int:
    """The silent node that keeps the service as it is until its death is proven: its own, or that of a parent (P4.9).

    NO_NODE if there is none.
    """
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


def is_frozen(service: Service, records: Records) -> bool:
    """Whether nothing happens to the service before the death of a silent node is proven (P4.9)."""
    return silent_node_of(service, records) != NO_NODE
