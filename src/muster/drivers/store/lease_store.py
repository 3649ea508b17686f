"""The store as the guard sees it: its own lease, and everybody's marks (SPEC 7.2). The guard's image takes this."""

from collections.abc import Callable
from typing import Protocol, cast

from muster.drivers.store.choice import engine_of, part
from muster.records.registers import Lease, Marks


class LeaseStore(Protocol):
    """What the guard needs of every engine. All may raise `StoreFailed`."""

    @property
    def one_machine(self) -> bool:
        """Whether all daemons of the cluster run on this machine (scope `host`)."""

    def read_own(self) -> Lease | None:
        """The node's own lease register; None if it is unknown."""

    def read_leases(self) -> tuple[Lease | None, ...]:
        """The lease register of every slot; None for one that is unknown."""

    def read_marks(self) -> tuple[Marks | None, ...]:
        """The marks register of every slot; None for one that is unknown."""

    def write_lease(self, lease: Lease) -> None:
        """Durably replace the node's lease register."""

    def replaced(self, written: Lease) -> str | None:
        """What a fresh open of the store's path says after that write (P11.1): see `core.leases.lease.replacement`."""

    def close(self) -> None:
        """Release the descriptors."""


def lease_store_of(store: str) -> Callable[[str, int], LeaseStore]:
    """What opens the leases of a store, by its name and a node id: loaded now, since a guard loads nothing later.

    Raises `StoreFailed` for an engine that there is not.
    """
    return cast("Callable[[str, int], LeaseStore]", part(engine_of(store).lease_store))
