"""What a checker is: one rule that every history keeps, judged by what an observer sees."""

from collections.abc import Iterator
from typing import Protocol

from muster.sim.history import Observation


class Checker(Protocol):
    """One rule. The name of its class is that of the rule in what is found; each history has a checker of its own.

    A new one is a class that names this one as its base, in `sim/checkers/`, and a line in `CHECKERS`.
    """

    def see(self, seen: Observation) -> Iterator[str]:
        """The next observation of the history, in its order: each way in which it breaks the rule, in words.

        What is for readers only (`FOR_THE_READER`) is not shown. Nothing of what is seen may be changed, for all
        checkers see the same.
        """
