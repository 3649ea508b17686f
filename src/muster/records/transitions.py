"""Joins and leaves under way, and the acknowledgement that each waits for (SPEC 3.4)."""

from msgspec import Struct

from muster.records.levels import TransitionKind
from muster.records.numbers import Count, CountOrNone

ENTRIES_TOGETHER = 1024  # of so many nodes may a transition enter a level by one entry


class Transition(Struct, frozen=True, array_like=True, tag="transition"):
    """One node's transition at its current level and barrier (SPEC 3.4). Identities are unique and grow."""

    identity: int
    node: int
    incarnation: int
    kind: TransitionKind
    levels: tuple[int, ...]  # in the order in which they are taken
    position: int = 0  # index into `levels`
    barrier: int = 0
    participants: tuple[int, ...] = ()  # who must acknowledge (level, barrier); shrinks when one is forced out
    cause: str = ""
    barriers: int = 1  # of the level at work
    awaits: int = 0  # level that the joining node itself must register before its join goes on (SPEC 3.10)
    late: bool = False  # not the node's own, but that of one of its levels alone, which came or went (SPEC 3.2, 3.10)
    entered: Count = 0  # index of the entry by which it entered the level at work (P12.17)

    @property
    def level(self) -> int:
        """The level at work; 0 before the first."""
        return self.levels[self.position] if 0 <= self.position < len(self.levels) else 0

    @property
    def entry(self) -> int:
        """What this transition is called at the level at work: unique there, and in the order of the log (P12.17)."""
        return self.entered * ENTRIES_TOGETHER + self.node


class Acknowledgement(Struct, frozen=True, array_like=True):
    """A subsystem has processed one barrier of a notification (SPEC 3.4)."""

    transition: Count
    level: CountOrNone
    barrier: Count
