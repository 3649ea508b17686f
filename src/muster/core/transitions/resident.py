"""Built-in levels: what a foreign program is to its node over the socket, a resident is inside it (SPEC 3.2, P3.19).

A resident is told by the very notifications that a program gets, each once, and what it has done counts as a program's
acknowledgement does: the transition goes on when every resident and program of the level has acknowledged. The numbers
of built-in levels are reserved (`records.levels.BUILT_IN`); which residents a node has is said in
`core/node/built_in.py`, one line each.
"""

from collections.abc import Iterable
from typing import Protocol

from muster.core.effects import Notify
from muster.records.database import Database
from muster.records.levels import Level
from muster.records.transitions import Transition


class Resident(Protocol):
    """One built-in level of one node. It decides by the replica alone, so a restarted daemon needs no memory of it."""

    @property
    def level(self) -> Level:
        """What it registers as."""

    def told(self, notify: Notify) -> Iterable[Notify]:
        """It is told of a step of a transition, once; what is to be told on, to its part outside the node."""

    def has_done(self, node: int, transition: Transition, database: Database, *, answered: bool) -> bool:
        """Whether `node`'s part of the transition's present step is done.

        `answered`: its part outside the node has acknowledged what it was told.
        """
