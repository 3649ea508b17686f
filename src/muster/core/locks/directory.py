"""The directory: which node masters a resource, spread over the nodes by buckets (P12.8).

Theory of operation. Each bucket is at the node that scores highest for it, of all that stay. So a node that comes
takes buckets from all others and moves none between them, and one that goes leaves its own to all others. A bucket's
node knows who masters the resources in it, where that is not itself, and a mark: a token that is not below any that was
given for a resource of the bucket which nobody masters now.
"""

from collections.abc import Collection, Iterator
from functools import lru_cache
from itertools import chain
from zlib import crc32

from muster.core.locks.messages import NO_TOKEN, Token
from muster.core.locks.names import BUCKETS, bucket_of

NOBODY = -1
_NO_KEYS: dict[str, int] = {}


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
        self._masters: dict[int, dict[str, int]] = {}  # by bucket: a bucket comes or goes as a whole
        self.marks: dict[int, Token] = {}

    def master(self, key: str) -> int:
        """Who masters a resource, where that is another node."""
        return self._masters.get(bucket_of(key), _NO_KEYS).get(key, NOBODY)

    def note(self, key: str, master: int) -> None:
        """A node is the master of a resource."""
        self._masters.setdefault(bucket_of(key), {})[key] = master

    def keys(self) -> Iterator[str]:
        """All that it knows a master of."""
        return chain.from_iterable(self._masters.values())

    def raise_mark(self, bucket: int, token: Token) -> None:
        """No resource of this bucket starts below `token`."""
        if token > self.marks.get(bucket, NO_TOKEN):
            self.marks[bucket] = token

    def drop(self, key: str, master: int, token: Token) -> None:
        """The master keeps the resource no more."""
        bucket = bucket_of(key)
        if self._masters.get(bucket, _NO_KEYS).get(key) == master:
            del self._masters[bucket][key]
        self.raise_mark(bucket, token)

    def keep(self, buckets: Collection[int]) -> None:
        """Forget who masters what in all other buckets."""
        self._masters = {bucket: found for bucket, found in self._masters.items() if bucket in buckets}

    def prune(self, mine: Collection[int], nodes: Collection[int]) -> Iterator[None]:
        """Forget the buckets that are others' now, and masters that are gone (nobody has a lock on what was theirs).

        In pieces: a bucket each.
        """
        self.keep(mine)
        self.marks = {bucket: mark for bucket, mark in self.marks.items() if bucket in mine}
        for bucket in list(self._masters):
            found = self._masters[bucket]
            self._masters[bucket] = {key: master for key, master in found.items() if master in nodes}
            yield
