"""What is fixed when a store is made, of every engine: whose it is, who may share it, how large a journal may be.

The standard library only: the guard's image takes it.
"""

from enum import IntEnum
from typing import Protocol


class Scope(IntEnum):
    """Who may share the store (SPEC 1.5)."""

    HOST = 1  # daemons on one machine; any file
    SHARED = 2  # several machines; working direct I/O required

    def __str__(self) -> str:
        return self.name.lower()


class StoreIdentity(Protocol):
    """The same of one store, as its engine reads it. A disk's is its header (`disk/geometry.py`)."""

    @property
    def cluster_id(self) -> bytes:
        """16 bytes, never reused (SPEC 9.1)."""

    @property
    def cluster_name(self) -> str:
        """What people call the cluster."""

    @property
    def identity(self) -> str:
        """The cluster id as 32 hexadecimal digits."""

    @property
    def store_id(self) -> bytes:
        """Which of the cluster's stores this is: the cluster id until a move or a restore gives it another one."""

    @property
    def scope(self) -> Scope:
        """Who may share it."""

    @property
    def region_bytes(self) -> int:
        """How much of a journal, and so of the database, it holds (bytes)."""
