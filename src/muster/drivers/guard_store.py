"""The store as the guard sees it: its own lease, and everybody's forced-leaving marks (SPEC 7.2).

Blocking and small: the guard has one thread, no event loop, and must never wait for anything but the store.
"""

import os
from typing import cast

from muster.drivers.disk_file import open_store
from muster.drivers.disk_registers import OwnRegister, RegisterReader
from muster.drivers.store import StoreFailed
from muster.records.geometry import Scope
from muster.records.registers import Lease, Marks, RegisterKind


class GuardStore:
    """One node's lease and all nodes' marks. Every method may raise `StoreFailed`."""

    def __init__(self, path: str | os.PathLike[str], node: int) -> None:
        """Open the store for node id `node`. Raises `StoreUnusable` with what is wrong and what to do."""
        name = os.fspath(path)
        self._file, self.header = open_store(name, writable=True)
        if not 0 <= node < self.header.slots:
            self._file.close()
            raise StoreFailed(f"store {name} has node slots 0 to {self.header.slots - 1}; there is no node {node}")
        self._lease = OwnRegister(self._file, self.header, RegisterKind.LEASE, node)
        self._marks = RegisterReader(self._file, self.header, (RegisterKind.MARKS,))

    @property
    def one_machine(self) -> bool:
        """Whether all daemons of the cluster run on this machine (SPEC 1.5: scope `host`)."""
        return self.header.scope is Scope.HOST

    def read_own(self) -> Lease | None:
        """The node's own lease register; None if no copy of it is valid: unknown, not empty (SPEC 1.5)."""
        return cast("Lease | None", self._lease.read())

    def read_marks(self) -> tuple[Marks | None, ...]:
        """The marks register of every slot, by node id; None for one that is unknown."""
        return cast("tuple[Marks | None, ...]", self._marks.read()[0])

    def write_lease(self, lease: Lease) -> None:
        """Replace both copies of the node's lease, durable on return.

        After `StoreFailed` either value may be in the store: the next `read_own` may show `lease` or its predecessor.
        """
        self._lease.write(lease)

    def close(self) -> None:
        """Release the file."""
        self._file.close()
