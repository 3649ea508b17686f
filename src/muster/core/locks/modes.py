"""The six modes of a lock, and what follows from two of them: tables, nothing else (P12.2, P12.3)."""

from enum import IntEnum


class Mode(IntEnum):
    """SPEC 4.1. The stronger of two comparable modes has the higher number; CW and PR are not comparable."""

    NL = 0  # interest only: keeps the resource and its value block
    CR = 1  # concurrent read
    CW = 2  # concurrent write
    PR = 3  # protected read
    PW = 4  # protected write
    EX = 5  # exclusive


NONE = -1  # no mode: of a lock that has none yet, or wants none
_, X = False, True

# May the two be granted at the same time?
COMPATIBLE: tuple[tuple[bool, ...], ...] = (
    # NL CR CW PR PW EX
    (X, X, X, X, X, X),  # NL
    (X, X, X, X, X, _),  # CR
    (X, X, X, _, _, _),  # CW
    (X, X, _, X, _, _),  # PR
    (X, X, _, _, _, _),  # PW
    (X, _, _, _, _, _),  # EX
)

# Is a conversion from the row's mode to the column's a gift: can it disturb nobody, so that it never waits?
GIVES_UP: tuple[tuple[bool, ...], ...] = (
    # NL CR CW PR PW EX
    (X, _, _, _, _, _),  # NL
    (X, X, _, _, _, _),  # CR
    (X, X, X, _, _, _),  # CW
    (X, X, _, X, _, _),  # PR
    (X, X, X, X, X, _),  # PW
    (X, X, X, X, X, X),  # EX
)

# The one pair of modes of which neither includes the other: who waits to have the one for the other uses neither
# meanwhile, but CR, which both include. If the wait ends without a grant, it has what it had.
SIDEWAYS = frozenset({Mode.CW, Mode.PR})

# Which modes may write the value block, when they are given up or renewed.
WRITES: tuple[bool, ...] = (_, _, _, _, X, X)

# Which modes keep every writer out: whoever holds one knows the value block as it is.
KNOWS: tuple[bool, ...] = (_, _, X, X, X, X)

# How many locks of each mode a resource has granted is one number, with a field of so many bits for each mode.
FIELD_BITS = 24
UNIT: tuple[int, ...] = tuple(1 << FIELD_BITS * mode for mode in Mode)
_FIELD = (1 << FIELD_BITS) - 1
CONFLICTS: tuple[int, ...] = tuple(
    sum(_FIELD << FIELD_BITS * other for other in Mode if not COMPATIBLE[mode][other]) for mode in Mode
)


def meanwhile(held: int, wanted: int) -> int:
    """What a holder may use while it waits for a conversion (P12.3)."""
    return Mode.CR if {held, wanted} == SIDEWAYS else held
