"""When entries were committed, by the clock of people: the same answer each time (SPEC 8.1)."""

import time

from muster.core.node import insight
from muster.core.node.node import Node

MAXIMUM_KEPT = 10_000


class TimesOfEntries:
    """Remembers what it has said: computed anew from an age, it would tremble."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._at_s: dict[int, int] = {}

    def at_s(self, index: int) -> int:
        """Seconds since 1970, as far as this node knows: an entry may be older."""
        known = self._at_s.get(index)
        if known is None:
            if len(self._at_s) >= MAXIMUM_KEPT:
                self._at_s.clear()
            known = self._at_s[index] = round(time.time() - insight.age_ms(self._node, index) / 1000)
        return known
