"""What a node learns from the store: who lives, who has provably stopped, who holds the mastership (SPEC 7.1, 2.2).

One lease watch a node; every read of the strip goes through `see`, so that all judgements come from the same chain
of reads. Beside them stands what others vouch for: the kernel, by the own guard (P7.13); a member, in a committed
record (P7.16); fence agents and operators. What they have said of an incarnation is final: no later beat of it counts.
"""

from collections.abc import Collection
from typing import NamedTuple

from muster.core.draft import counts
from muster.core.effects import WatchLife
from muster.core.inputs import StripRead
from muster.core.leases.lease import Evidence, LeaseWatch
from muster.core.links.links import Links
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.members import EvictNode
from muster.records.messages import Testimony
from muster.records.registers import ClaimFlag, Lease, LeaseState, Owed, ProofKind, Strip
from muster.records.terms import NO_TERM, Term
from muster.records.timing import Profile
from muster.records.units import US_PER_MS

PREFERENCE = (
    NodeState.JOINED,
    NodeState.JOINING,
    NodeState.LEAVING,
    NodeState.INACTIVE,
    NodeState.FORCED_LEAVING,
)


class KernelIdentity(NamedTuple):
    """The kernel that this node runs under; zeros where nobody has said."""

    boot_id: bytes = bytes(16)
    machine_id: bytes = bytes(16)


NO_KERNEL = KernelIdentity()


class Observer:
    """This node's view of all registers."""

    def __init__(
        self,
        me: int,
        incarnation: int,
        profile: Profile,
        strip: Strip,
        *,
        one_machine: bool,
        kernel: KernelIdentity = NO_KERNEL,
        started_us: int = 0,
        is_first: bool = False,
    ) -> None:
        """`is_first`: no daemon of this incarnation has been a member before, so it has just booted (P4.14)."""
        self._me, self._incarnation = me, incarnation
        self._kernel, self._one_machine = kernel, one_machine
        self._asked_us: dict[tuple[int, int], int] = {}  # when the guard was last asked about an incarnation
        self._ask_again_us = profile.lease_ms * US_PER_MS
        self._unable: dict[int, tuple[int, str]] = {}  # node -> incarnation, and why the kernel cannot be asked here
        self.strip = strip
        self.read_started_us = 0  # of the read that gave `strip`
        self._read_us = started_us  # when that read ended
        self._gap_ms = profile.gap_ms
        self._watches: list[LeaseWatch] = []  # of the slots that reads have shown
        self._never = LeaseWatch(profile.gap_ms, timers_prove=one_machine)  # of a slot whose bank is shut (P11.7)
        self._watch_as_many(max(me + 1, len(strip.leases)))
        self._watches[me].lease = strip.lease(me)  # what the own lease advances from
        self._confirmed: dict[tuple[int, int], Evidence] = {}  # by the kernel, members, fence agents and operators
        self._told: set[tuple[int, int]] = set()
        self.last_words: dict[int, tuple[int, str]] = {}  # node -> incarnation, and why it panicked (P7.18)
        self.heard_late: frozenset[int] = frozenset()  # by this node itself (P4.6)
        self.hears: frozenset[int] = frozenset()  # this node itself, whenever that was
        self._profile = profile
        self._graced_until_us = started_us + profile.boot_grace_ms * US_PER_MS if is_first else 0

    def see(self, read: StripRead) -> None:
        """Take a read in. Whom this node hears late by it is to be noted before it is judged (P4.6)."""
        self.strip, self.read_started_us, self._read_us = read.strip, read.started_us, read.finished_us
        leases = read.strip.leases
        self._watch_as_many(len(leases))
        for watch, lease in zip(self._watches, leases, strict=False):
            watch.observe(lease, read.started_us, read.finished_us)
        for node in range(len(leases), len(self._watches)):  # what was in use cannot be shut again: another store's
            self._watches[node].observe(read.strip.lease(node), read.started_us, read.finished_us)

    def _watch_as_many(self, slots: int) -> None:
        """Watch further slots, from the first read that shows their bank."""
        for _ in range(len(self._watches), slots):
            self._watches.append(LeaseWatch(self._gap_ms, timers_prove=self._one_machine))

    def _watch(self, node: int) -> LeaseWatch:
        return self._watches[node] if node < len(self._watches) else self._never

    def _say_us(self) -> int:
        """From a node's end until a member that hears it has had a frame more, has written its view, and that is read.

        Nobody beats more slowly than the slots tell that the newest read shows (`beat_ms`).
        """
        profile = self._profile
        return (profile.heartbeat_interval_ms(len(self.strip.leases)) + 2 * profile.read_ms) * US_PER_MS

    def beat_ms(self, nodes: int) -> int:
        """How often this node sends a heartbeat, with that many nodes configured (P4.6).

        Those of banks that are shut have never run, and do not count.
        """
        return self._profile.heartbeat_interval_ms(min(nodes, len(self.strip.leases)))

    def newly_dead(self, database: Database) -> list[tuple[int, Evidence]]:
        """The members that the last read is the first to prove dead."""
        found = []
        for member in database.members.values():
            evidence = self.evidence(member.node, member.incarnation) if counts(member) else None
            if evidence is not None and (member.node, member.incarnation) not in self._told:
                self._told.add((member.node, member.incarnation))
                found.append((member.node, evidence))
        return found

    def note_heard(self, heard: frozenset[int], late: frozenset[int]) -> None:
        """Whom this node hears now, and whom of them `late` (P4.6)."""
        self.hears, self.heard_late = heard, late

    def take_last_words(self, database: Database) -> list[int]:
        """The nodes that this one has known to be dead, and of whose panic it now first reads the tombstone (P7.18)."""
        found = []
        for node, lease in enumerate(self.strip.leases):
            if node == self._me or lease is None or lease.state is not LeaseState.PANICKED:
                continue
            words = (lease.stamp.incarnation, lease.cause)
            if lease.stamp.incarnation == database.member(node).incarnation and self.last_words.get(node) != words:
                self.last_words[node] = words
                if (node, lease.stamp.incarnation) in self._told:
                    found.append(node)
        return found

    def lost_ms(self, now_us: int) -> int:
        """For how long no read of the store has succeeded, if that is longer than a gap; else 0 (SPEC 7.5)."""
        silent_ms = (now_us - self._read_us) // US_PER_MS
        return silent_ms if silent_ms > self._gap_ms else 0

    def lose_sight(self, now_us: int) -> None:
        """A read failed: every chain of reads is broken."""
        for watch in self._watches:
            watch.observe(None, now_us, now_us)

    def confirm(self, node: int, evidence: Evidence) -> bool:
        """Somebody vouches for the stop of an incarnation, for good; whether there was no proof of it before."""
        fresh = self.evidence(node, evidence.incarnation) is None
        self._confirmed.setdefault((node, evidence.incarnation), evidence)
        self._told.add((node, evidence.incarnation))
        return fresh

    def believe(self, evict: EvictNode, database: Database) -> None:
        """An operator vouches for the stop of a silent node: without a master, this very node may then claim (P4.2)."""
        node = database.node_named(evict.node)
        lease = self.strip.lease(node) if node is not None else None
        if node is None or lease is None or node == self._me or self.is_live(node):
            return
        detail = f"confirmed by hand: {evict.cause}"
        self.confirm(node, Evidence(ProofKind.OPERATOR, lease.stamp.incarnation, detail))

    def follow(self, database: Database) -> None:
        """Take over what members have testified, as it is committed (P7.16); `database` is a confirmed replica."""
        for member in database.members.values():
            proof = member.last_proof
            if proof is not None and (proof.node, proof.incarnation) not in self._confirmed:
                self._confirmed[proof.node, proof.incarnation] = Evidence(proof.kind, proof.incarnation, proof.detail)

    def cannot_ask(self, node: int, incarnation: int, why: str) -> None:
        """The own guard cannot ask the kernel about an incarnation."""
        self._unable[node] = (incarnation, why)

    def unable(self, node: int) -> str:
        """Why this node cannot ask the kernel about the newest incarnation of another; empty where it can."""
        lease = self._lease(node)
        incarnation, why = self._unable.get(node, (0, ""))
        return why if lease is not None and lease.stamp.incarnation == incarnation else ""

    def forced_out_by(self) -> list[int]:
        """The nodes whose marks condemn this incarnation (P4.3)."""
        own = (self._me, self._incarnation)
        return [marks.stamp.owner for marks in self.strip.marks if marks is not None and own in marks.condemned]

    def to_ask(self, now_us: int) -> list[WatchLife]:
        """Whom the guard is to ask the kernel about (P7.15): who is new, and again who has fallen silent since."""
        found = []
        for node, lease in enumerate(self.strip.leases):
            if node == self._me or lease is None or lease.state is not LeaseState.LIVE or lease.life is None:
                continue
            key = (node, lease.stamp.incarnation)
            if lease.boot_id != self._kernel.boot_id or key in self._confirmed:
                continue
            asked_us = self._asked_us.get(key)
            if asked_us is None or (now_us - asked_us >= self._ask_again_us and not self._watch(node).is_live()):
                self._asked_us[key] = now_us
                found.append(WatchLife(node, key[1], lease.boot_id, lease.life))
        return found

    def testimony(self, database: Database) -> tuple[Testimony, ...]:
        """What the kernel has said here of members, for a master that cannot ask it (P7.16)."""
        found = []
        for member in database.members.values():
            evidence = self._confirmed.get((member.node, member.incarnation)) if counts(member) else None
            if evidence is not None and evidence.kind is ProofKind.KERNELS_WORD:
                found.append(Testimony(member.node, member.incarnation, evidence.detail))
        return tuple(found)

    def foreign(self, node: int, incarnation: int) -> bool:
        """Whether an incarnation runs under another kernel, in a store that one kernel only may use (P7.17)."""
        lease = self._lease(node)
        if not self._one_machine or lease is None or lease.stamp.incarnation != incarnation:
            return False
        return lease.boot_id != self._kernel.boot_id and any(self._kernel.boot_id)

    def _lease(self, node: int) -> Lease | None:
        return self.strip.lease(node)

    def evidence(self, node: int, incarnation: int) -> Evidence | None:
        """Proof that an incarnation has stopped (P4.2); there is never one of this node's own life."""
        if node == self._me and incarnation >= self._incarnation:
            return None
        found = self._confirmed.get((node, incarnation)) or self._watch(node).evidence(incarnation)
        if found is not None and found.kind is ProofKind.LEASE_EXPIRED and self._may_be_heard(node):
            return None
        return found or self._gone_with_its_kernel(node, incarnation)

    def _may_be_heard(self, node: int) -> bool:
        """Whether a node is heard late, or was heard of late by a member that has not had the time to say so (P4.6)."""
        if self.hearers(node):
            return True
        heard = node in self.hears or any(
            view is not None and node in view.heard and self.is_live(other)
            for other, view in enumerate(self.strip.views)
            if other not in (self._me, node)
        )
        return heard and self.read_started_us < self._watch(node).ran_out_us() + self._say_us()

    def hearers(self, node: int) -> tuple[int, ...]:
        """The members that have heard a node after its lease had run out: as long as one does, that is no proof (P4.6).

        What a node says whose own lease has run out counts for nothing.
        """
        told = [
            other for other, view in enumerate(self.strip.views)
            if view is not None and node in view.heard_late and other not in (self._me, node) and self.is_live(other)
        ]  # fmt: skip
        return tuple(sorted([*told, *([self._me] if node in self.heard_late else [])]))

    def late(self, heard: frozenset[int], links: Links) -> frozenset[int]:
        """Those of whom this node has heard a frame after their lease had run out, and within the link bound (P4.6)."""
        return frozenset(
            node
            for node in heard
            if node < len(self._watches)
            and (lease := self._watches[node].lease) is not None
            and lease.state is LeaseState.LIVE
            and self._watches[node].ran_out(lease.stamp.incarnation)
            and links.heard_since(node, self._watches[node].ran_out_us())
            and links.connected.get(node) == lease.stamp.incarnation
        )

    def _gone_with_its_kernel(self, node: int, incarnation: int) -> Evidence | None:
        """A silent record of an earlier boot of this very machine: its kernel is gone, and all with it (P7.13)."""
        lease = self._lease(node)
        if not self._one_machine or lease is None or lease.stamp.incarnation != incarnation or lease.life is None:
            return None
        mine = any(self._kernel.machine_id) and lease.life.machine_id == self._kernel.machine_id
        if lease.state is not LeaseState.LIVE or not mine or lease.boot_id == self._kernel.boot_id:
            return None
        if self._watch(node).is_live():
            return None
        return Evidence(ProofKind.KERNELS_WORD, incarnation, "this machine has booted since, and it is silent")

    def is_dead(self, node: int, incarnation: int) -> bool:
        """Whether there is such proof."""
        return self.evidence(node, incarnation) is not None

    def ran_out(self, node: int, incarnation: int) -> bool:
        """Whether the lease of an incarnation has run out in this node's reads (P2.12)."""
        return self._watch(node).ran_out(incarnation)

    def is_out(self, node: int, incarnation: int) -> bool:
        """Whether nobody waits for a claim of this incarnation: it is proven dead, or its lease has run out (P2.2), or
        that of a mastership of it has (P2.15).
        """
        if self.is_dead(node, incarnation) or self.ran_out(node, incarnation):
            return True
        bound_ms = self._leadership_ms
        return bound_ms > 0 and self._watch(node).is_silent(incarnation, bound_ms)

    def may_claim_soon(self, node: int) -> bool:
        """Whether a node is live, and a claim of it would be waited for: who claims first does not wait for others
        (P2.10, P2.15).
        """
        lease = self._watch(node).lease
        if node == self._me or lease is None:
            return self.is_live(node)
        return self.is_live(node) and not self.is_out(node, lease.stamp.incarnation)

    def is_suspect(self, node: int, incarnation: int, links: Links, now_us: int) -> bool:
        """Whether nobody waits for this incarnation any more, though nothing may prove it dead: its lease has run out
        (P4.7), or its beats and all links have been silent for long enough (P4.13).
        """
        if self.ran_out(node, incarnation):
            return True
        bound_ms = 0 if self._one_machine or not self._profile.suspect_ms else self._profile.suspicion_ms
        if not bound_ms or not self._watch(node).is_suspect(incarnation, bound_ms):
            return False
        return not self._is_heard(node, links, bound_ms * US_PER_MS, now_us)

    def _is_heard(self, node: int, links: Links, bound_us: int, now_us: int) -> bool:
        """Whether a frame of a node has arrived here of late, or a view that was written of late says so elsewhere."""
        if links.frame_age_us(node, now_us) < bound_us:
            return True
        return any(
            view is not None and node in view.heard and links.view_age_us(other, now_us) < bound_us
            for other, view in enumerate(self.strip.views)
            if other not in (self._me, node)
        )

    def is_graced(self, node: int, now_us: int) -> bool:
        """Whether nobody is to fence a silent node yet: this one has just booted, and has not seen it beat since, so it
        may be booting as well (P4.14).
        """
        return now_us < self._graced_until_us and not self._watch(node).has_moved()

    @property
    def _leadership_ms(self) -> int:
        """The lease that masterships have of their own; 0 if none: where the kernel is asked nobody needs it."""
        return 0 if self._one_machine or not self._profile.mastership_ms else self._profile.leadership_ms

    @property
    def one_machine(self) -> bool:
        """Whether all nodes run under one kernel, which is asked (P7.13): else only from outside is an end proven."""
        return self._one_machine

    def may_lead(self, now_us: int) -> bool:
        """Whether this node's own lease advances in its own reads: else it neither claims nor leads (P2.13). Where a
        mastership has a lease of its own, by the own clock, too: nobody else can count that one over yet (P2.15).
        """
        watch = self._watches[self._me]
        if not watch.advances(self._incarnation):
            return False
        bound_ms = self._leadership_ms
        return not bound_ms or now_us < watch.held_until_us(bound_ms)

    def silent_us(self, node: int) -> int:
        """For how long the chain of reads has shown the same beat of the node's lease."""
        return self._watch(node).silent_us()

    def is_live(self, node: int) -> bool:
        """Whether the node's newest incarnation renews its lease, as far as this node can tell."""
        if node == self._me:
            return True
        watch = self._watch(node)
        if not watch.is_live():
            return False
        lease = watch.lease
        return lease is None or (node, lease.stamp.incarnation) not in self._confirmed

    def may_live(self, node: int) -> bool:
        """Whether the node renews its lease, or may do so as no read of this daemon has shown that yet (P4.4)."""
        if self._watch(node).lease is None:
            lease = self.strip.lease(node)
            return lease is not None and lease.state is LeaseState.LIVE
        return self.is_live(node)

    def leads(self, node: int) -> bool:
        """Whether a node that has a claim lives, and it is the claim of this life of it: a dead master leads nobody."""
        if not self.is_live(node) or not node < min(len(self.strip.claims), len(self.strip.leases)):
            return self.is_live(node)
        claim, lease = self.strip.claims[node], self.strip.leases[node]
        return claim is None or lease is None or claim.stamp.incarnation >= lease.stamp.incarnation

    def unclean(self, node: int, incarnation: int, service: int) -> str:
        """Why the node's machine is not known to be clean of what a service left there; empty if it is (P6.33).

        `service` is its `identity_of`.
        """
        lease = self.strip.lease(node)
        if lease is None or lease.stamp.incarnation < incarnation:
            return "its lease register does not show that incarnation"
        own = lease.stamp.incarnation == incarnation
        if lease.owed is None or incarnation < lease.owed.since or (own and lease.state is LeaseState.LIVE):
            return "it has not said what it has left: its machine has not cleared that yet, or cannot"
        if service in lease.owed.failed:
            return "the cleanup failed there (its log says why)"
        return "the cleanup has not ended there" if service in lease.owed.waiting or lease.owed.more else ""

    def owed(self, node: int, incarnation: int) -> Owed | None:
        """What this incarnation says is still to be cleared in its machine."""
        lease = self.strip.lease(node)
        return lease.owed if lease is not None and lease.stamp.incarnation == incarnation else None

    def slots(self) -> dict[int, int]:
        """The last incarnation that ran in each slot of the banks in use; those whose lease is unknown are left out."""
        return {slot: lease.stamp.incarnation for slot, lease in enumerate(self.strip.leases) if lease is not None}

    def shut_slots(self) -> range:
        """The slots of the store of banks that are not in use: nobody has ever run there (P11.7)."""
        return range(len(self.strip.leases), max(len(self.strip.leases), self.strip.slots))

    def highest_term(self) -> Term:
        """The highest term that anybody has claimed."""
        return max((claim.stamp.term for claim in self.strip.claims if claim is not None), default=NO_TERM)

    def holder(self, accepted: Term) -> Term | None:
        """The highest mastership in force, by the store and by the term whose database this node has accepted."""
        terms = [
            claim.stamp.term for claim in self.strip.claims if claim is not None and claim.flag is ClaimFlag.MASTER
        ]
        if accepted.number:
            claim = self.strip.claim(accepted.node)
            withdrawn = claim is not None and claim.flag is ClaimFlag.WITHDRAWN and claim.stamp.term >= accepted
            if not withdrawn:
                terms.append(accepted)
        return max(terms, default=None)

    def rank(self, database: Database, unable: Collection[int] = ()) -> int:
        """This node's place among the live candidates (P2.10). Only spares duels; safety does not need it.

        `unable`: the nodes that say that they cannot lead; they come last (P2.11).
        """

        def order(node: int) -> tuple[bool, int, int]:
            return (node in unable, PREFERENCE.index(database.member(node).state), node)

        live = sorted((node for node in database.nodes if self.may_claim_soon(node)), key=order)
        return live.index(self._me) if self._me in live else len(live)
