"""Who gets a place at the control socket, and how much a user may send (P10.5). Pure rules; `server.py` keeps them.

A client is judged by the kernel's word about it before it has sent a byte. The lower its role, the fewer places it and
all like it can take, so that the rest is always there for those above. Where all places that a client may have are
taken, one that has its answers and lingers makes room, and then one that has never said anything: of a lower role
first, else of a user that holds more places than the newcomer's.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from typing import NamedTuple, TypeVar

from muster.records.access import Role

_MIB = 1024 * 1024
S = TypeVar("S", bound=Hashable)


class Client(NamedTuple):
    """Who has connected, and when by the clock of the loop."""

    uid: int
    role: Role
    came_s: float


class Allowance(NamedTuple):
    """What users of a role may have."""

    places: int  # of all users of this role or a lower one together
    of_a_user: int  # places
    line_bytes: int  # of one request
    held_bytes: int  # of a user's requests that wait
    idle_ms: int  # to send a request


_EVERYTHING = 1 << 30
_ALLOWANCES = {
    Role.NONE: Allowance(8, 2, 4096, 64 * 1024, 5_000),
    Role.OBSERVER: Allowance(32, 16, 8 * _MIB, 16 * _MIB, _EVERYTHING),
    Role.OPERATOR: Allowance(56, 48, 8 * _MIB, 32 * _MIB, _EVERYTHING),
    Role.ADMINISTRATOR: Allowance(_EVERYTHING, _EVERYTHING, _EVERYTHING, 64 * _MIB, _EVERYTHING),
}


def allowance(role: Role) -> Allowance:
    """What a user of this role may have."""
    return _ALLOWANCES[role]


def make_room(
    newcomer: Client, others: Mapping[S, Client], idle: Mapping[S, float], silent: Collection[S], maximum: int
) -> tuple[str, S | None]:
    """Why the newcomer gets no place, or else nothing; and the one that has to leave for it, if one has to.

    `idle`: those that have had an answer and have not asked again, since when. `silent`: those that have never asked.
    `maximum`: places in all.
    """
    limits = allowance(newcomer.role)
    of_user = [other for other, client in others.items() if client.uid == newcomer.uid]
    below = [other for other, client in others.items() if client.role <= newcomer.role]
    if len(of_user) >= limits.of_a_user:
        leaves = _lingering(of_user, idle)
        return ("" if leaves is not None else f"{len(of_user)} clients of this user are connected already"), leaves
    if len(others) < maximum and len(below) < limits.places:
        return "", None
    leaves = _lingering(below, idle)
    if leaves is None:
        leaves = _silent(newcomer, {other: others[other] for other in below}, silent)
    return ("" if leaves is not None else f"{len(others)} clients are connected already"), leaves


def _lingering(found: list[S], idle: Mapping[S, float]) -> S | None:
    lingering = [other for other in found if other in idle]
    return min(lingering, key=lambda other: idle[other]) if lingering else None


def _silent(newcomer: Client, others: Mapping[S, Client], silent: Collection[S]) -> S | None:
    """One of a lower role, or of a user with more places: of whom has most of them, the one that came first."""
    counts = Counter(client.uid for client in others.values())
    mine = counts[newcomer.uid] + 1
    found = [
        (client.role, -counts[client.uid], client.came_s, other)
        for other, client in others.items()
        if other in silent and (client.role < newcomer.role or counts[client.uid] > mine)
    ]
    return min(found, key=lambda each: each[:3])[3] if found else None
