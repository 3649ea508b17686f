"""Which proofs of its end there can be for a node, for people (SPEC 7.1): by itself, by others, or by a person only."""

from typing import NamedTuple

from muster.core.leases.lease import expiry_proves
from muster.records.database import Database
from muster.records.registers import Lease, LeaseState
from muster.records.watchdogs import NONE

PERSON = "a person's word only"


class Proofs(NamedTuple):
    """In words: what needs nobody, if anything, and the methods by which it is fenced."""

    alone: str  # empty: between machines nothing proves the end of a node that is silent
    methods: tuple[str, ...]
    lacking: str = ""  # why its watchdog proves nothing

    @property
    def words(self) -> str:
        """What there is beside a tombstone, the next boot and a person's word, which there always is."""
        fenced = f"fence agents ({', '.join(self.methods)})" if self.methods else ""
        return " ".join(filter(None, (", ".join(filter(None, (self.alone, fenced))) or PERSON, self.lacking)))


def proves_by_expiry(lease: Lease | None) -> bool:
    """Whether the lease of a node that runs is proof between machines once it has run out (P7.30)."""
    return lease is not None and lease.state is LeaseState.LIVE and expiry_proves(lease)


def of_watchdog(database: Database, node: int, lease: Lease | None) -> str:
    """What its watchdog proves, in words; in brackets, why it proves nothing; empty: none is set (P7.30, P7.36)."""
    armed = lease.armed if lease is not None and lease.state is LeaseState.LIVE else None
    if lease is not None and armed is not None:
        if proves_by_expiry(lease):
            return f"its watchdog ({armed.identity}) once its lease of {lease.lease_ms / 1000:g} s is over"
        return f"(no proof: {armed.identity} is armed, but the clock of this virtual machine may stop)"
    is_set = watchdog_of(database, node) != NONE
    return "(no proof: a watchdog is set, and counts from its next boot)" if is_set and is_unarmed(lease) else ""


def watchdog_of(database: Database, node: int) -> str:
    """What is set for a node, by itself or for the cluster; `none` where nothing is (P7.34)."""
    config = database.nodes.get(node)
    own = config.watchdog if config is not None else None
    return (database.cluster.watchdog if own is None else own) or NONE


def is_unarmed(lease: Lease | None) -> bool:
    """Whether a node runs, and its record names no watchdog."""
    return lease is not None and lease.state is LeaseState.LIVE and lease.armed is None


def proofs_of(database: Database, node: int, *, one_machine: bool, lease: Lease | None = None) -> Proofs:
    """What can prove that this node has stopped, if it falls silent; `lease` is its record, as it was read last."""
    plan = database.fence_plans.get(node)
    methods = tuple(method.name for method in plan.methods) if plan is not None and not one_machine else ()
    if one_machine:
        return Proofs("the kernel's word", methods)
    watchdog = of_watchdog(database, node, lease)
    return Proofs(watchdog if proves_by_expiry(lease) else "", methods, "" if proves_by_expiry(lease) else watchdog)
