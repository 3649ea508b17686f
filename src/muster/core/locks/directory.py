"""The directory: which node masters a resource, spread over the nodes by buckets (P12.8).

Theory of operation. Each bucket is at the node that scores highest for it, of all that stay. So a node that comes
takes buckets from all others and moves none between them, and one that goes leaves its own to all others. A bucket's
node knows who masters the resources in it, where that is not itself, and a mark: a token that is not below any that was
given for a resource of the bucket which nobody masters now.
"""

from collections.abc import Collection
from functools import lru_cache
from zlib import crc32

from muster.core.locks.messages import NO_TOKEN, Token
from muster.core.locks.names import BUCKETS, bucket_of

NOBODY = -1


def _score(node: int, bucket: int) -> int:
    return crc32(bucket.to_bytes(2, "big") + node.to_bytes(4, "big") + b"bucket")


@lru_cache(maxsize=64)
def layout(nodes: tuple[int, ...]) -> tuple[int, ...]:
    """The node of each bucket; the same for all who know the same nodes."""
    return tuple(
        max(nodes, key=lambda node: (_score(node, bucket), node)) if nodes else NOBODY for bucket in range(BUCKETS)
    )


class Directory:
    """This node's part of it."""

    def __init__(self) -> None:
        self.masters: dict[str, int] = {}
        self.marks: dict[int, Token] = {}

    def raise_mark(self, bucket: int, token: Token) -> None:
        """No resource of this bucket starts below `token`."""
        if token > self.marks.get(bucket, NO_TOKEN):
            self.marks[bucket] = token

    def drop(self, key: str, master: int, token: Token) -> None:
        """The master keeps the resource no more."""
        if self.masters.get(key) == master:
            del self.masters[key]
        self.raise_mark(bucket_of(key), token)

    def keep(self, buckets: Collection[int]) -> None:
        """Forget who masters what in all other buckets."""
        self.masters = {key: master for key, master in self.masters.items() if bucket_of(key) in buckets}

    def prune(self, mine: Collection[int], nodes: Collection[int]) -> None:
        """Forget the buckets that are others' now, and masters that are gone (nobody has a lock on what was theirs)."""
        self.masters = {
            key: master for key, master in self.masters.items() if master in nodes and bucket_of(key) in mine
        }
        self.marks = {bucket: mark for bucket, mark in self.marks.items() if bucket in mine}
