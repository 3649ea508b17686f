"""The built-in levels of a node, lowest first: a further one is a room of its own and a line here (P3.19)."""

from muster.core.events.resident import EventManagerLevel
from muster.core.transitions.resident import Resident
from muster.records.levels import BUILT_IN

RESIDENTS: tuple[Resident, ...] = (EventManagerLevel(),)

assert tuple(resident.level for resident in RESIDENTS) == BUILT_IN, "each built-in level has its resident"
