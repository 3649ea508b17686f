"""Levels, their barriers, and the states of a node that they are told of (SPEC 3.1, 3.2, 3.10)."""

from enum import IntEnum
from typing import NamedTuple

from muster.records.numbers import Count


class NodeState(IntEnum):
    """SPEC 3.1. `SILENT` is no state of a member: what a level is told of one that nobody waits for (P4.8)."""

    INACTIVE = 0
    JOINING = 1
    JOINED = 2
    LEAVING = 3
    FORCED_LEAVING = 4
    SILENT = 5

    def __str__(self) -> str:
        return _NODE_STATES[self]


# A notification spells the state of every node, once for each subsystem and transition: too often to build the words.
_NODE_STATES = {state: state.name.lower().replace("_", "-") for state in NodeState}


class TransitionKind(IntEnum):
    """SPEC 3.2. The values are those of the node state that a transition gives its node."""

    JOINING = NodeState.JOINING
    LEAVING = NodeState.LEAVING
    FORCED_LEAVING = NodeState.FORCED_LEAVING

    def __str__(self) -> str:
        return _NODE_STATES[self.value]


class Barriers(NamedTuple):
    """Number of barriers of one level for each type of transition (SPEC 3.2); at least one each."""

    joining: int = 1
    leaving: int = 1
    forced_leaving: int = 1


class Level(NamedTuple):
    """A registered subsystem: its place in the global transition order, its name, its barriers (SPEC 3.2).

    One that has not acknowledged within `deadline_ms` (0: never) is hung; `evicts` is the level's policy then: force
    its node out, or else wait and alert (SPEC 3.13). One that `vetoes` is asked before a planned change.
    `registration` tells it from others of its number before it on the same incarnation; it grows (P3.13).
    """

    number: Count
    name: str
    barriers: Barriers = Barriers()
    deadline_ms: Count = 0
    evicts: bool = False
    vetoes: bool = False
    registration: Count = 0

    @property
    def identity(self) -> tuple[int, int]:
        """What tells it from every other registration on one incarnation of a node (P3.13)."""
        return self.number, self.registration


class Required(NamedTuple):
    """A level that a node must have before it joins (P3.17); `name` of the program, empty: any."""

    number: Count
    name: str = ""


class Missing(NamedTuple):
    """A required level that a node has not registered; `found`: another program has, where the name is required."""

    number: Count
    name: str = ""
    found: str = ""


class Gone(NamedTuple):
    """A registration that has gone, and whose level has not been told yet (P3.15).

    `forced`: its program has ended or was lost; else it went by its own wish.
    """

    level: Level
    forced: bool


MAXIMUM_LEVEL = 65_535
MEMBERSHIP_LEVEL = Level(0, "membership")
LOCK_MANAGER_LEVEL = Level(10, "lock-manager", Barriers(2, 3, 2))  # reserved while there are lockspaces (P12.15)
EVENT_MANAGER_LEVEL = Level(40, "event manager")
BUILT_IN = (EVENT_MANAGER_LEVEL,)  # lowest first; no program may take their numbers (P3.19)
