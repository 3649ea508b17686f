"""Keys of incarnations on disks with persistent reservations, and what is said to such a disk (P7.37, P7.38).

A disk is reserved for writing to all who have a key registered (write exclusive, all registrants). A registration is
of one path: of one connection between one node and the disk. Everything here is plain data; the standard library only,
for a process of its own runs these rules, since a disk can hang.
"""

import zlib
from enum import Enum, auto
from typing import NamedTuple

ALL_REGISTRANTS = 7  # the type "write exclusive, all registrants", as SCSI numbers it
NO_RESERVATION = 0
_CLUSTER_BITS, _NODE_BITS, _INCARNATION_BITS = 16, 16, 32


class Owner(NamedTuple):
    """The incarnation of a node that a key is of."""

    node: int
    incarnation: int


def tag_of(cluster: str) -> int:
    """What the keys of a cluster begin with, by its identity: 1 to 65,535."""
    return zlib.crc32(cluster.encode()) % ((1 << _CLUSTER_BITS) - 1) + 1


def key_of(tag: int, owner: Owner) -> int:
    """The key of an incarnation, in 64 bits; never 0. Raises `ValueError` for what has no room in it (P7.37)."""
    node, incarnation = owner
    if not (0 < tag < 1 << _CLUSTER_BITS and 0 <= node < 1 << _NODE_BITS and 0 < incarnation < 1 << _INCARNATION_BITS):
        raise ValueError(f"no key has room for cluster {tag}, node {node}, incarnation {incarnation}")
    return tag << _NODE_BITS + _INCARNATION_BITS | node << _INCARNATION_BITS | incarnation


def owner_of(tag: int, key: int) -> Owner | None:
    """Whose key it is; None for one of no incarnation of this cluster."""
    if key >> _NODE_BITS + _INCARNATION_BITS != tag:
        return None
    incarnation = key & (1 << _INCARNATION_BITS) - 1
    return Owner(key >> _INCARNATION_BITS & (1 << _NODE_BITS) - 1, incarnation) if incarnation else None


class Verb(Enum):
    """What a disk is asked; each by one path."""

    CAPABILITIES = auto()
    READ = auto()  # the keys, one for each registration, and the type of the reservation
    REGISTER = auto()  # the own key on this path, whatever key the path has
    PROBE = auto()  # the own key in place of the own key: changes nothing, and conflicts where this path has none
    RESERVE = auto()
    PREEMPT_ABORT = auto()  # take out all registrations of the victim's key, and end what they have under way
    PREEMPT = auto()  # take them out only: for keys of what has stopped, and no proof of anything


class Command(NamedTuple):
    """One command by one path; `victim` is the key that is to be preempted."""

    verb: Verb
    path: str
    key: int
    victim: int = 0


class Status(Enum):
    """What came of a command."""

    GOOD = auto()
    CONFLICT = auto()  # this path has not the key that the command needs, or another kind of reservation is held
    REFUSED = auto()  # the disk does not know the command
    LOST = auto()  # no answer: nobody knows whether it was carried out, or will be


class Capabilities(NamedTuple):
    """What a disk says that it can do."""

    types: frozenset[int]
    aborts: bool  # it knows preempt-and-abort
    keeps: bool  # it keeps keys and reservation when it loses its power


class View(NamedTuple):
    """Keys and reservation as they were read."""

    keys: tuple[int, ...]
    type: int = NO_RESERVATION


class Answer(NamedTuple):
    """What a disk has answered."""

    status: Status
    view: View = View(())
    capabilities: Capabilities | None = None


def why_no_proof(found: Capabilities) -> str:
    """Why reservations on this disk prove nothing; empty where they do (P7.38)."""
    if ALL_REGISTRANTS not in found.types:
        return "it has no reservation of the type write exclusive, all registrants"
    if not found.aborts:
        return "it does not know preempt-and-abort, so what a node has under way could still be written"
    if not found.keeps:
        return "it forgets keys and reservation when it loses its power"
    return ""
