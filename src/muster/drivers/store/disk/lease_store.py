"""The store as the guard sees it: its own lease, and everybody's forced-leaving marks (SPEC 7.2).

Blocking and small: the guard has one thread, no event loop, and must never wait for anything but the store.
"""

import errno
import os
from typing import cast

from muster.core.leases.lease import Shown, replacement
from muster.drivers.store.disk.file import HEADER_AREA_BYTES, DiskFile, open_store
from muster.drivers.store.disk.geometry import COPIES, Header, InvalidGeometry, choose_header
from muster.drivers.store.disk.registers import OwnRegister, RegisterReader, judge
from muster.drivers.store.failures import StoreFailed
from muster.drivers.store.identity import Scope
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
        self._path, self._node = name, node
        self._judged: tuple[bytes, Header | None] = (b"", None)  # the last header that a look found, and what it says

    @property
    def one_machine(self) -> bool:
        """Whether all daemons of the cluster run on this machine (SPEC 1.5: scope `host`)."""
        return self.header.scope is Scope.HOST

    def read_own(self) -> Lease | None:
        """The node's own lease register; None if no copy of it is valid: unknown, not empty (SPEC 1.5)."""
        return cast("Lease | None", self._lease.read())

    def read_leases(self) -> tuple[Lease | None, ...]:
        """The lease register of every slot, by node id; None for one that is unknown. Only while the node starts."""
        reader = RegisterReader(self._file, self.header, (RegisterKind.LEASE,))
        return cast("tuple[Lease | None, ...]", reader.read()[0])

    def read_marks(self) -> tuple[Marks | None, ...]:
        """The marks register of every slot, by node id; None for one that is unknown."""
        return cast("tuple[Marks | None, ...]", self._marks.read()[0])

    def write_lease(self, lease: Lease) -> None:
        """Replace both copies of the node's lease, durable on return.

        After `StoreFailed` either value may be in the store: the next `read_own` may show `lease` or its predecessor.
        """
        self._lease.write(lease)

    def replaced(self, written: Lease) -> str | None:
        """Open the path afresh, after `written` was written: `core.leases.lease.replacement` of what is there (P11.1).

        It is opened for reading only, so that no device manager takes the closing for a change. Raises `StoreFailed`.
        """
        first = self._lease.offset(0)
        length = self._lease.offset(COPIES - 1) + self.header.sector_bytes - first
        start = 0 if self._node < self.header.banks[0].slots else first  # in the first bank one read takes both
        try:
            with _look(self._path, first + length - start, direct=self._file.direct) as file:
                data = file.read_around_damage(start, first + length - start)
                header = file.read_around_damage(0, HEADER_AREA_BYTES) if start else data[:HEADER_AREA_BYTES]
        except OSError as error:
            text = f"store {self._path} cannot be opened any more ({os.strerror(error.errno or 0)})"
            raise StoreFailed(f"{text}: put back what was there, or connect the device again") from error
        opened = self.header.cluster_id, self.header.store_id
        data, sector_bytes = data[first - start :], self.header.sector_bytes
        return replacement(opened, written, self._shown(header, (data[:sector_bytes], data[-sector_bytes:])))

    def _shown(self, header: bytes, copies: tuple[bytes, bytes]) -> Shown | None:
        there = self._header_of(header)
        if there is None:
            return None
        if _places(there) != _places(self.header):
            return Shown(there.cluster_id, there.store_id, None)
        lease = self._lease.as_written(copies)
        if lease is None:
            lease, _choice = judge(self.header, RegisterKind.LEASE, self._node, copies)
        return Shown(there.cluster_id, there.store_id, cast("Lease | None", lease))

    def _header_of(self, data: bytes) -> Header | None:
        """What the header's bytes say; they are the same at nearly every look."""
        if data != self._judged[0]:
            try:
                self._judged = data, choose_header(data).header
            except InvalidGeometry:
                self._judged = data, None
        return self._judged[1]

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def _places(header: Header) -> tuple[bytes, int, int, int]:
    return header.cluster_id, header.version, header.slots, header.sector_bytes


def _look(path: str, length: int, *, direct: bool) -> DiskFile:
    length = max(length, HEADER_AREA_BYTES)
    flags = os.O_RDONLY | os.O_NONBLOCK  # a pipe of that name must not hold anybody up
    try:
        return DiskFile(path, flags, direct=direct, buffer_bytes=length)
    except OSError as error:
        if not direct or error.errno != errno.EINVAL:
            raise
        return DiskFile(path, flags, direct=False, buffer_bytes=length)  # on a file system that has none: another file
