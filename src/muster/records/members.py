"""Who is a member, in which incarnation, what proved that the last one is dead (SPEC 1.3 b); operations on members."""

from typing import NamedTuple

from msgspec import Struct

from muster.records.levels import Gone, Level, Missing, NodeState
from muster.records.numbers import Count
from muster.records.registers import ProofKind
from muster.records.versions import Software


class Proof(Struct, frozen=True, array_like=True):
    """Proof of death of one incarnation; `detail` is the evidence in words."""

    kind: ProofKind
    node: int
    incarnation: int
    detail: str = ""


class Eviction(Struct, frozen=True, array_like=True):
    """A committed decision to force an incarnation out, not yet proven dead: the reason of its mark (SPEC 7.2).

    `silent`: its lease has run out as well, so nobody waits for it any more (P4.7).
    """

    incarnation: int
    cause: str
    silent: bool = False


class Waits(NamedTuple):
    """An incarnation whose join is not opened, since entry `since`: these required levels are missing (P3.17)."""

    incarnation: Count
    since: Count
    missing: tuple[Missing, ...]


class Member(Struct, frozen=True, array_like=True, tag="member"):
    """Transient membership state of one node (SPEC 1.3 b)."""

    node: int
    state: NodeState = NodeState.INACTIVE
    incarnation: int = 0
    levels: tuple[Level, ...] = ()
    told_level: int = 0  # highest level that was ever told of this incarnation's join (SPEC 3.9)
    eviction: Eviction | None = None
    last_proof: Proof | None = None  # of the last incarnation that was forced out
    refusal: str = ""  # why the last request to join, or to register a level, was refused
    leave_asked: str = ""  # a leave asked for while joining, and why: the join turns at the next level (SPEC 3.7)
    software: Software = Software()  # of its last incarnation, as it last said
    restart_asked: int = 0  # index of the entry that asked its daemon to be started anew (P10.3)
    vouched_clean: int = 0  # an operator says that up to this incarnation nothing is left in its machine (P6.33)
    by_level: bool = False  # `inside` says who knows of it; False: of a version that told every level of every node
    inside: tuple[int, ...] = ()  # the levels that know of it: told of its join, not of its end (P3.14)
    gone: tuple[Gone, ...] = ()  # registrations that are to be taken out of their levels (P3.15)
    required: tuple[Count, ...] = ()  # the levels that were required as its join was opened (P3.17)
    waits: Waits | None = None  # for required levels, before its join is opened


class LeaveNode(Struct, frozen=True, array_like=True, tag="leave"):
    """Graceful leave of a node (SPEC 3.4)."""

    node: str
    override: bool = False  # of what subsystems object


class EvictNode(Struct, frozen=True, array_like=True, tag="evict"):
    """Force a node out. `confirmed_dead`: the operator vouches that it has stopped (SPEC 7.1)."""

    node: str
    cause: str
    confirmed_dead: bool = False


class RestartDaemon(Struct, frozen=True, array_like=True, tag="restart_daemon"):
    """Have the daemon of a member end and be started again, from what is installed now (P10.3)."""

    node: str
