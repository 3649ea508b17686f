"""What a node learns from the store: who lives, who has provably stopped, who holds the mastership (SPEC 7.1, 2.2).

One lease watch a node; every read of the strip goes through `observe`, so that all judgements come from the same chain
of reads.
"""

from muster.core.draft import counts
from muster.core.inputs import StripRead
from muster.core.lease import Evidence, LeaseWatch
from muster.records.registers import ClaimFlag, Strip
from muster.records.state import Database, NodeState
from muster.records.terms import NO_TERM, Term
from muster.records.timing import Profile

PREFERENCE = (
    NodeState.JOINED,
    NodeState.JOINING,
    NodeState.LEAVING,
    NodeState.INACTIVE,
    NodeState.FORCED_LEAVING,
)


class Observer:
    """This node's view of all registers."""

    def __init__(self, me: int, incarnation: int, profile: Profile, strip: Strip, *, one_machine: bool) -> None:
        self._me, self._incarnation = me, incarnation
        self.strip = strip
        self.read_started_us = 0  # of the read that gave `strip`
        self.read_us = 0  # when that read ended
        self._watches = [LeaseWatch(profile.gap_ms, timers_prove=one_machine) for _ in strip.leases]
        self._confirmed: dict[tuple[int, int], Evidence] = {}  # by fence agents and operators
        self._told: set[tuple[int, int]] = set()

    def observe(self, read: StripRead, database: Database) -> list[tuple[int, Evidence]]:
        """Take a read in; returns the members that it is the first to prove dead."""
        self.strip, self.read_started_us, self.read_us = read.strip, read.started_us, read.finished_us
        for watch, lease in zip(self._watches, read.strip.leases, strict=True):
            watch.observe(lease, read.started_us, read.finished_us)
        found = []
        for member in database.members.values():
            evidence = self.evidence(member.node, member.incarnation) if counts(member) else None
            if evidence is not None and (member.node, member.incarnation) not in self._told:
                self._told.add((member.node, member.incarnation))
                found.append((member.node, evidence))
        return found

    def lose_sight(self, now_us: int) -> None:
        """A read failed: every chain of reads is broken."""
        for watch in self._watches:
            watch.observe(None, now_us, now_us)

    def confirm(self, node: int, evidence: Evidence) -> None:
        """A fence agent or an operator vouches for the stop of an incarnation."""
        self._confirmed[node, evidence.incarnation] = evidence

    def evidence(self, node: int, incarnation: int) -> Evidence | None:
        """Proof that an incarnation has stopped (P4.2); there is never one of this node's own life."""
        if node == self._me and incarnation >= self._incarnation:
            return None
        return self._confirmed.get((node, incarnation)) or self._watches[node].evidence(incarnation)

    def is_dead(self, node: int, incarnation: int) -> bool:
        """Whether there is such proof."""
        return self.evidence(node, incarnation) is not None

    def silent_us(self, node: int) -> int:
        """For how long the chain of reads has shown the same beat of the node's lease."""
        return self._watches[node].silent_us() if node < len(self._watches) else 0

    def is_live(self, node: int) -> bool:
        """Whether the node's newest incarnation renews its lease, as far as this node can tell."""
        return node == self._me or (node < len(self._watches) and self._watches[node].is_live())

    def slots(self) -> dict[int, int]:
        """The last incarnation that ran in each slot of the store; slots whose lease is unknown are left out."""
        return {slot: lease.stamp.incarnation for slot, lease in enumerate(self.strip.leases) if lease is not None}

    def highest_term(self) -> Term:
        """The highest term that anybody has claimed."""
        return max((claim.stamp.term for claim in self.strip.claims if claim is not None), default=NO_TERM)

    def holder(self, accepted: Term) -> Term | None:
        """The highest mastership in force, by the store and by the term whose database this node has accepted."""
        terms = [
            claim.stamp.term for claim in self.strip.claims if claim is not None and claim.flag is ClaimFlag.MASTER
        ]
        if accepted.number:
            claim = self.strip.claims[accepted.node]
            withdrawn = claim is not None and claim.flag is ClaimFlag.WITHDRAWN and claim.stamp.term >= accepted
            if not withdrawn:
                terms.append(accepted)
        return max(terms, default=None)

    def rank(self, database: Database) -> int:
        """This node's place among the live candidates (P2.10). Only spares duels; safety does not need it."""

        def order(node: int) -> tuple[int, int]:
            return (PREFERENCE.index(database.member(node).state), node)

        live = sorted((node for node in database.nodes if self.is_live(node)), key=order)
        return live.index(self._me) if self._me in live else len(live)
