"""What members find among the keys on a disk, again and again, and what follows (P7.41, P7.44)."""

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from muster.core.reservations.keys import ALL_REGISTRANTS, Owner, View, owner_of


class Standing(Enum):
    """What the committed records say of an incarnation."""

    LIVES = auto()  # or nobody has condemned it
    ISOLATED = auto()  # it was proven to write nothing more, and may run
    STOPPED = auto()  # it is proven that nothing of it runs


class Findings(NamedTuple):
    """What is wrong, or to be tidied; keys in their order, each once."""

    back: tuple[int, ...] = ()  # of isolated incarnations: preempt them again, withdraw their proofs, alarm
    left: tuple[int, ...] = ()  # of stopped ones: take them out
    strange: tuple[int, ...] = ()  # of nobody in this cluster: alarm
    is_unreserved: bool = False  # whoever has no key may write: all proofs by this disk are withdrawn; alarm


def audit(tag: int, own: int, view: View, standing: Callable[[Owner], Standing]) -> Findings:
    """Judge the keys on a disk, as a member with the key `own` has read them (P7.44).

    The own key is never among what is taken out: so somebody's key is always left, and the reservation with it (P7.41).
    """
    back, left, strange = [], [], []
    for key in sorted(set(view.keys) - {own}):
        owner = owner_of(tag, key)
        if owner is None:
            strange.append(key)
        elif standing(owner) is Standing.ISOLATED:
            back.append(key)
        elif standing(owner) is Standing.STOPPED:
            left.append(key)
    return Findings(tuple(back), tuple(left), tuple(strange), view.type != ALL_REGISTRANTS)
