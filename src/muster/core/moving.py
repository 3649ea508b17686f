"""A cluster that goes on in another store while its nodes run: who may do what, and when (P11.9-P11.14).

Theory of operation. Three entries of the old store's history speak of a move: it is *begun*, *given up* or *closed*.
While it is begun the cluster lives on as ever; the guards renew in both stores, and the master copies the database.
The entry that closes is the last one of the old store: it is committed as any other (P2.6), and every later master
finds it. From then on the only thing left to do is to write the *sign*, "moved to (path, store id, mark)", into both
copies of the old header, copy A first. It can be done by anybody, twice, and in any order of crashes. Nobody acts in
the new store before both copies are durable; nobody acts in the old one after seeing any of them.

The functions here decide from what a node has read, and do nothing. `sim/search/move_model.py` runs them through every
order of steps, crashes and losses of a disk.
"""

from collections.abc import Iterable, Mapping
from enum import Enum, IntEnum
from typing import NamedTuple


class Place(Enum):
    """One of the two stores."""

    OLD = "old"
    NEW = "new"


class Step(Enum):
    """An entry about a move."""

    BEGUN = "begun"
    GIVEN_UP = "given up"
    CLOSED = "closed"


class Stage(IntEnum):
    """How far a history has come."""

    NONE = 0
    BEGUN = 1
    CLOSED = 2


class Sign(IntEnum):
    """What a look at the old header has shown of "moved to"."""

    NONE = 0
    ONE = 1  # of the first copy only: closed, and not known to be seen by everybody who looks from now on
    BOTH = 2


class Start(Enum):
    """What a boot does with a store that it was told to use."""

    HERE = "here"
    FOLLOW = "follow"
    REFUSE = "refuse"


class Standing(NamedTuple):
    """A configured node, as the master knows it when it is asked to move."""

    name: str
    is_member: bool  # joined, and nothing is under way about it
    beats: bool  # its lease advances
    is_proven: bool  # its last life has ended, by a proof


BOTH_PLACES = frozenset(Place)


def stage(history: Iterable[object]) -> Stage:
    """How far the newest move of a history has come; other entries say nothing of it."""
    found = Stage.NONE
    for entry in history:
        if entry is Step.BEGUN:
            found = Stage.BEGUN
        elif entry is Step.GIVEN_UP:
            found = Stage.NONE
        elif entry is Step.CLOSED:
            return Stage.CLOSED
    return found


# ---- the master (P11.9, P11.10)


def refusal(nodes: Iterable[Standing]) -> str:
    """Why no move may begin, with what to do; empty where one may (P11.9)."""
    for node in nodes:
        if not node.is_proven and not (node.is_member and node.beats):
            return (
                f"node {node.name} is no member that renews its lease, nor is it proven dead: "
                f"wait for it; or stop it, then run `muster node evict {node.name} --confirmed-dead`"
            )
    return ""


def decides(reached: Stage) -> bool:
    """Whether anything else may be decided in the old store (P11.10)."""
    return reached is not Stage.CLOSED


def may_give_up(reached: Stage) -> bool:
    """Whether the move may be given up: never after it was closed (P11.10)."""
    return reached is Stage.BEGUN


def may_close(
    reached: Stage,
    newest: int,
    copied: int,
    members: Mapping[int, int],
    new_beats: Mapping[int, int],
    proven: frozenset[int],
) -> bool:
    """Whether the last entry of the old store may be proposed (P11.10).

    `newest`: the number of entries decided so far, all of which the copy of `copied` entries must hold. `members`: the
    newest incarnation of each configured node. `new_beats`: the one whose beats the master's own reads of the new
    store show to advance. `proven`: the nodes that are proven dead in that incarnation.
    """
    if reached is not Stage.BEGUN or copied != newest:
        return False
    return all(node in proven or new_beats.get(node) == life for node, life in members.items())


def may_sign(reached: Stage) -> bool:
    """Whether the sign may be written into the old header: the decision is made, and is never taken back (P11.11)."""
    return reached is Stage.CLOSED


# ---- every node (P11.11, P11.12)


def sign_of(shows_a: bool, shows_b: bool) -> Sign:
    """What two copies of the header show: copy A was durable before copy B was begun (P11.11)."""
    if shows_b:
        return Sign.BOTH
    return Sign.ONE if shows_a else Sign.NONE


def acts_in(sign: Sign) -> Place | None:
    """By which store a node judges leases, claims and decides; None: by neither, the sign is not complete (P11.11)."""
    return {Sign.NONE: Place.OLD, Sign.ONE: None, Sign.BOTH: Place.NEW}[sign]


def renewed_in(takes_part: bool, sign: Sign) -> frozenset[Place]:
    """In which stores a renewal must be durable before it moves the deadline (P11.12).

    `takes_part`: from the first beat in the new store, for this move, until it is known to have been given up.
    """
    if sign is Sign.BOTH:
        return frozenset((Place.NEW,))
    return BOTH_PLACES if takes_part else frozenset((Place.OLD,))


# ---- boots (P11.13)


def start_on_old(sign: Sign, named: bytes, found: bytes | None) -> Start:
    """A boot on the old store. `named`: the store id in the sign; `found`: the one at the new path, if any (P11.13)."""
    if sign is Sign.NONE:
        return Start.HERE
    return Start.FOLLOW if found == named else Start.REFUSE


def start_on_new(is_in_force: bool, old_sign: Sign | None) -> Start:
    """A boot on the new store. `is_in_force`: a master adopted there. `old_sign`: None where the old one is gone."""
    return Start.HERE if is_in_force or old_sign is Sign.BOTH else Start.REFUSE
