"""A new store from a backup: `muster store restore` (P11.8).

The old store is gone, or its copy is worth less than the backup. So nothing is known of what its nodes have done since,
and each may still run. The new store begins a *generation*: the high parts of index, epoch, terms and incarnations are
above all that the backup and the given homes know. Whoever was not asked has committed and booted less than one
generation's worth since, or its home refuses the store (P11.2). Each node gets a life that it never had: one that is a
member, silent and unproven; or, where the operator vouches for its end, one that has left a tombstone.

All of that is in the store before its header says that it is complete: an interrupted restore is refused by every
boot, and done again by the same command with --force.
"""

from collections.abc import Iterable
from typing import NamedTuple

from msgspec.structs import replace

from muster.core.leases.lease import INCARNATION_COUNTER_SHIFT
from muster.core.leases.memory import Remembered
from muster.drivers.store.disk.geometry import Header
from muster.drivers.store.disk.store import create_store
from muster.records.database import Database, encode_database
from muster.records.levels import NodeState
from muster.records.members import Eviction, Member
from muster.records.nodes import Unasked
from muster.records.registers import Claim, ClaimFlag, Deadman, Lease, LeaseState, Mark
from muster.records.services import Service
from muster.records.terms import NO_NODE, NO_TERM, Stamp, Term
from muster.records.versions import RESTORED

INDEX_SHIFT, TERM_SHIFT, BOOT_SHIFT = 36, 24, 12  # a generation's worth; also times 2^10 an index has 53 bits
CAUSE = "the store was restored from a backup, and it was not asked"
VOUCHED = "the store was restored from a backup: the operator confirmed that it was stopped"


class Known(NamedTuple):
    """The highest of everything that anybody who was asked has seen."""

    newest: int  # commit index
    term: int
    boots: int


class Begun(NamedTuple):
    """Where the new generation begins."""

    newest: int  # commit index, and epoch
    term: Term
    incarnation: int  # of every node


def known_of(database: Database, remembered: Iterable[Remembered]) -> Known:
    """What a backup and homes know."""
    homes = tuple(remembered)
    terms = [database.term.number, *(number for home in homes for number in home.terms.values())]
    lives = [member.incarnation for member in database.members.values()] + [home.incarnation for home in homes]
    index = max([database.index, *(home.index for home in homes)])
    return Known(index, max(terms), max([0, *lives]) >> INCARNATION_COUNTER_SHIFT)


def begun_above(known: Known) -> Begun:
    """The first index, term and incarnation of the generation above all that."""
    boots = ((known.boots >> BOOT_SHIFT) + 1) << BOOT_SHIFT
    return Begun(
        ((known.newest >> INDEX_SHIFT) + 1) << INDEX_SHIFT,
        Term(((known.term >> TERM_SHIFT) + 1) << TERM_SHIFT, 0),
        boots << INCARNATION_COUNTER_SHIFT,
    )


def restored(kept: Database, begun: Begun, stopped: frozenset[int]) -> Database:
    """The database of the new store: every node is a member that nobody has heard of since (P11.8)."""
    members = {node: _member(node, begun, node in stopped) for node in kept.nodes}
    unasked = tuple(Unasked(node, begun.incarnation) for node in sorted(kept.nodes) if node not in stopped)
    return Database(
        cluster=replace(kept.cluster, unasked=unasked, active_version=max(kept.cluster.active_version, RESTORED)),
        index=begun.newest,
        term=begun.term,
        epoch=begun.newest,
        nodes=kept.nodes,
        members=members,
        services={name: _service(service, begun) for name, service in kept.services.items()},
        maintenance=kept.maintenance,
        standby=kept.standby,
        event_groups=kept.event_groups,
        audit=kept.audit,
        revisions=kept.revisions,
        lineage=((begun.term, begun.newest),),
        fence_devices=kept.fence_devices,
        fence_plans=kept.fence_plans,
    )


def _member(node: int, begun: Begun, is_stopped: bool) -> Member:
    eviction = None if is_stopped else Eviction(begun.incarnation, CAUSE, silent=True)
    return Member(node, NodeState.JOINED, begun.incarnation, eviction=eviction)


def _service(service: Service, begun: Begun) -> Service:
    """A service that ran somewhere did so, for the new store, in the life that its node was given."""
    if service.node == NO_NODE:
        return service
    return replace(service, incarnation=begun.incarnation)


def write(path: str, header: Header, database: Database, begun: Begun, stopped: frozenset[int], *, force: bool) -> None:
    """Make the store. `header` has a store id of its own. Raises as `create_store`."""
    mark = Mark(begun.term, 0, 1)
    registers: list[Lease | Claim] = []
    for node in range(header.slots):
        claimed = Stamp(node, 0, Term(begun.term.number, node), 1)
        if node in database.nodes or node == begun.term.node:
            own = mark if node == begun.term.node else Mark(NO_TERM, 1, 0)
            registers.append(Claim(claimed, ClaimFlag.WITHDRAWN, own))
        if node in database.nodes:
            registers.append(_lease(node, begun, node in stopped))
    create_store(path, header, encode_database(database), overwrite=force, mark=mark, raised=registers)


def _lease(node: int, begun: Begun, is_stopped: bool) -> Lease:
    state = LeaseState.PANICKED if is_stopped else LeaseState.LIVE
    stamp = Stamp(node, begun.incarnation, NO_TERM, 1)
    return Lease(stamp, state, Deadman.NONE, 0, 0, bytes(16), VOUCHED if is_stopped else CAUSE)
