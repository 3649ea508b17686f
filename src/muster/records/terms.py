"""Terms and stamps: the two things every record and every message carries (SPEC 2.5, 2.6, 1.5)."""

from typing import NamedTuple

NO_NODE = -1


class Term(NamedTuple):
    """One mastership. Ordered by number, then node id, so two terms never tie (SPEC 2.6)."""

    number: int
    node: int

    def __str__(self) -> str:
        return f"{self.number}.{self.node}"


NO_TERM = Term(0, 0)


def next_term(highest: Term, node: int) -> Term:
    """The lowest term of `node` that is above `highest`."""
    return Term(highest.number + 1, node)


class Stamp(NamedTuple):
    """Who wrote a register, and which of the writer's records is the newer (SPEC 1.5).

    `incarnation` is the boot of the owner that wrote it; `sequence` grows by one with every write of that register
    for as long as the store exists, across incarnations.
    """

    owner: int
    incarnation: int
    term: Term
    sequence: int
