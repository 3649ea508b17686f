"""Leases: how a node keeps its own, and how others learn from it that an incarnation has stopped (SPEC 7.1-7.3).

Theory of operation. The guard of a node renews its lease register every `renew_ms`. Each successful renewal that
*started* at time s moves the deadman to s + lease - panic bound: a kernel timer (or watchdog) that stops the node even
if the guard is stopped itself. So nothing of the node runs after s + lease. An observer that saw a beat in a read that
ended at t knows that the renewal which wrote it started before t. If the beat is still the same in a read that started
at t + lease (plus drift) or later, no newer renewal had succeeded by then; the deadman fired before; the incarnation
has stopped. The observer must itself not have been paused in between: its reads form an unbroken chain (PROTOCOL P7.x).

The guard process imports this module, so it uses plain named tuples only. What it does with the verdicts is P7.7;
where its durations come from is P7.8.
"""

from typing import NamedTuple

from muster.records.registers import Armed, Deadman, Lease, LeaseState, Life, Marks, Owed, ProofKind
from muster.records.terms import NO_TERM, Stamp
from muster.records.timing import Profile, with_drift_ms
from muster.records.units import US_PER_MS

INCARNATION_COUNTER_SHIFT = 32  # an incarnation is (boot counter << 32 | random), and fits into 53 bits


def next_incarnation(last: int, random_32: int) -> int:
    """The incarnation after `last`: greater, and never reused even by a clone that counts alike (SPEC 3.8, 9.1)."""
    return ((last >> INCARNATION_COUNTER_SHIFT) + 1) << INCARNATION_COUNTER_SHIFT | (random_32 & 0xFFFFFFFF)


class Evidence(NamedTuple):
    """Proof that `incarnation` has stopped, and the evidence in words."""

    kind: ProofKind
    incarnation: int
    detail: str


class LeaseWatch:
    """Observes one node's lease register through successive reads. The only judge of proof by lease (P7.3, P7.6)."""

    __slots__ = (
        "_advanced_us",
        "_before_us",
        "_blind_us",
        "_first_seen_us",
        "_gap_us",
        "_last_finished_us",
        "_last_started_us",
        "_seen_us",
        "_timers_prove",
        "lease",
    )

    def __init__(self, gap_ms: int, *, timers_prove: bool = True) -> None:
        """`timers_prove`: whether a kernel timer is a deadman in the sense of SPEC 7.1: only where all daemons run on
        one machine. Another machine's kernel may itself have stopped, and its timer with it: there only a watchdog is.
        """
        self._timers_prove = timers_prove
        self.lease: Lease | None = None
        self._gap_us = gap_ms * US_PER_MS
        self._advanced_us: int | None = None  # end of the read that last showed another beat than the one before
        self._first_seen_us = 0  # end of the read that first showed the present beat, in the present chain
        self._last_started_us = 0
        self._last_finished_us: int | None = None
        self._seen_us: int | None = None  # the same, also across a gap
        self._before_us: int | None = None  # start of the last read that still showed the beat before the present one
        self._blind_us = 0  # how long the gap was before the present chain, until that has shown the beat advance

    def observe(self, lease: Lease | None, started_us: int, finished_us: int) -> None:
        """Take one read of the register into account. `None` (unknown) breaks the chain."""
        if lease is None:
            self._last_finished_us = None
            return
        broken = self._last_finished_us is None or started_us - self._last_finished_us > self._gap_us
        slow = finished_us - started_us > self._gap_us
        changed = self.lease is None or lease.stamp != self.lease.stamp
        if broken or slow:
            gap_us = finished_us - self._seen_us if self._seen_us is not None else 0
            self._blind_us = max(self._blind_us, gap_us)
        elif changed:
            self._blind_us = 0
        if broken or slow or changed:
            self._first_seen_us = finished_us
        if self.lease is not None and changed:
            self._advanced_us = finished_us
            self._before_us = self._last_started_us if self._seen_us is not None else None
        self.lease = lease
        self._last_started_us, self._last_finished_us = started_us, finished_us
        self._seen_us = finished_us

    def silent_us(self) -> int:
        """For how long the chain of reads has shown the same beat."""
        return max(0, self._last_started_us - self._first_seen_us)

    def is_live(self) -> bool:
        """Whether the register speaks of an incarnation that renews its lease, as far as the chain of reads can tell.

        Without a deadman a silent one is neither live nor proven dead (SPEC 7.1).
        """
        lease = self.lease
        if lease is None or lease.state is not LeaseState.LIVE:
            return False
        return self.silent_us() < with_drift_ms(lease.lease_ms) * US_PER_MS

    def ran_out(self, incarnation: int) -> bool:
        """Whether the lease of `incarnation` has run out: it shows the same beat through an unbroken chain of reads for
        lease plus drift, or has ended with a tombstone or a later incarnation (P2.12). No proof that anything stopped.
        """
        lease = self.lease
        if lease is None or lease.state is LeaseState.NEVER or lease.stamp.incarnation < incarnation:
            return False
        if lease.stamp.incarnation > incarnation or lease.state is not LeaseState.LIVE:
            return True
        return self.silent_us() >= with_drift_ms(lease.lease_ms) * US_PER_MS

    def is_silent(self, incarnation: int, bound_ms: int) -> bool:
        """Whether `incarnation` is the newest, and the chain of reads shows the same beat of it for longer than
        `bound_ms` on any clock.
        """
        lease = self.lease
        if lease is None or lease.state is not LeaseState.LIVE or lease.stamp.incarnation != incarnation:
            return False
        return self.silent_us() >= with_drift_ms(bound_ms) * US_PER_MS

    def is_suspect(self, incarnation: int, bound_ms: int) -> bool:
        """Whether the beats of `incarnation` have been silent for longer than `bound_ms`, in a chain of reads that has
        seen them advance (P4.13).

        After a gap in the reads that takes as long again as the gap was, until a beat is seen: what this node could not
        reach for a while, others may get back later. Who was never seen to beat waits for its lease.
        """
        if self._advanced_us is None or not self.is_silent(incarnation, bound_ms):
            return False
        return self.silent_us() >= with_drift_ms(bound_ms) * US_PER_MS + self._blind_us

    def has_moved(self) -> bool:
        """Whether these reads have ever shown the beat advance."""
        return self._advanced_us is not None

    def held_until_us(self, bound_ms: int) -> int:
        """Until when nobody can have seen the present beat for `bound_ms`: the read that still showed the one before it
        began before the present one was durable (P2.15).
        """
        return self._before_us + bound_ms * US_PER_MS if self._before_us is not None else 0

    def ran_out_us(self) -> int:
        """When the lease of the newest incarnation ran out, as the present chain of reads tells (P4.6)."""
        lease_ms = self.lease.lease_ms if self.lease is not None else 0
        return self._first_seen_us + with_drift_ms(lease_ms) * US_PER_MS

    def advances(self, incarnation: int) -> bool:
        """Whether the reads have shown the lease of `incarnation` advance, less than lease plus drift ago (P2.13).

        For a node's own lease: it must have been seen to move. What was not read, or not known, is no advance.
        """
        lease = self.lease
        if lease is None or self._advanced_us is None or lease.state is not LeaseState.LIVE:
            return False
        still_us = self._last_started_us - self._advanced_us
        return lease.stamp.incarnation == incarnation and still_us < with_drift_ms(lease.lease_ms) * US_PER_MS

    def evidence(self, incarnation: int) -> Evidence | None:
        """Proof that `incarnation` of the node has stopped, if the register gives one (SPEC 7.1)."""
        lease = self.lease
        if lease is None or lease.stamp.incarnation < incarnation:
            return None
        if lease.stamp.incarnation > incarnation:
            return Evidence(ProofKind.NEXT_INCARNATION, incarnation, "a later incarnation emptied the node and booted")
        if lease.state is LeaseState.CLEAN:
            return Evidence(ProofKind.CLEAN_TOMBSTONE, incarnation, "it left cleanly and wrote its tombstone")
        if lease.state is LeaseState.PANICKED:
            return Evidence(ProofKind.PANIC_TOMBSTONE, incarnation, f"it wrote its tombstone: {lease.cause}")
        return self._expiry(lease)

    def _expiry_proves(self, lease: Lease) -> bool:
        """On one kernel nobody has to infer an end that the record names a witness of: the kernel is asked (P7.13)."""
        if self._timers_prove:
            # What could end a process tree may be stopped itself, whatever the clock says (P7.11).
            return lease.life is None and lease.deadman not in {Deadman.NONE, Deadman.PROCESS_TREE}
        return expiry_proves(lease)

    def _expiry(self, lease: Lease) -> Evidence | None:
        if lease.state is not LeaseState.LIVE or not self._expiry_proves(lease):
            return None
        bound_ms = with_drift_ms(lease.lease_ms)
        if self.silent_us() < bound_ms * US_PER_MS:
            return None
        armed = lease.deadman.name.lower().replace("_", " ")
        detail = f"no beat for {self.silent_us() // US_PER_MS} ms; lease {lease.lease_ms} ms, deadman: {armed}"
        return Evidence(ProofKind.LEASE_EXPIRED, lease.stamp.incarnation, detail)


def expiry_proves(lease: Lease) -> bool:
    """Whether the expiry of this very record is proof between machines: a watchdog has reset the machine by then.

    The record itself must say so of times that fit (P7.30, P7.31).
    """
    armed = lease.armed
    if lease.deadman is not Deadman.WATCHDOG or armed is None or not armed.proves:
        return False
    return armed.times.fits(lease.lease_ms, lease.panic_bound_ms)


class Renewal(NamedTuple):
    """The lease record to write now."""

    lease: Lease


class Stop(NamedTuple):
    """The node must panic, for this cause."""

    cause: str


class Shown(NamedTuple):
    """What a fresh open of the store's path showed: whose store it is, and this node's lease in it (P11.1)."""

    cluster_id: bytes
    store_id: bytes
    lease: Lease | None  # None: no copy of it is valid there


def replacement(opened: tuple[bytes, bytes], written: Lease, shown: Shown | None) -> str | None:
    """What a fresh look after a write says: empty, the path shows that very write; words, another store is there.

    `opened`: cluster and store id of the store that was opened. None: it says nothing, so the cycle has failed (P11.1).
    """
    if shown is None:
        return None
    if (shown.cluster_id, shown.store_id) != opened:
        return f"store {shown.store_id.hex()} of cluster {shown.cluster_id.hex()} is there"
    if shown.lease is None:
        return None
    if shown.lease != written:
        return f"what is there holds beat {shown.lease.stamp.sequence} of this node, not {written.stamp.sequence}"
    return ""


class LeaseKeeper:
    """The guard's own side: when it may renew, and when it must stop the node (P7.1, P7.2, P7.4)."""

    __slots__ = (
        "_attempted", "_deadman", "_last_written", "_profile", "_span_ms", "armed", "boot_id", "deadline_us",
        "incarnation", "life", "node", "owed",
    )  # fmt: skip

    def __init__(
        self, node: int, incarnation: int, predecessor: Lease, profile: Profile, deadman: Deadman, boot_id: bytes
    ) -> None:
        self.node, self.incarnation, self.boot_id = node, incarnation, boot_id
        self._profile, self._deadman = profile, deadman
        self._span_ms = profile.loop_ms  # from the start of an accepted renewal to the deadline
        self.armed: Armed | None = None  # the watchdog, once it is armed (P7.33)
        self._last_written = predecessor  # what our register must still hold before the next write ...
        self._attempted = predecessor.stamp.sequence  # ... or a later record of ours whose write only seemed to fail
        self.deadline_us: int | None = None  # when the deadman fires; none before the first renewal
        self.owed: Owed | None = None  # what earlier runs have left in this machine (P6.33); no tombstone says that
        self.life: Life | None = None  # where the kernel can be asked, once something runs (P7.14)

    def begin(self, started_us: int, own: Lease | None, marks: tuple[Marks | None, ...]) -> Renewal | Stop:
        """Judge the read that precedes a renewal, which began at `started_us`; give the record to write, or stop.

        `own` and `marks` must come from reads that began after `started_us`. Where a register
        cannot be read, the cycle has failed before this, and nothing is renewed: see `drivers/image/lease_writer.py`.
        """
        if self.deadline_us is not None and started_us >= self.deadline_us:
            return Stop("it woke after its lease had run out")
        if not self.is_own(own):
            return Stop("its own lease register holds what it did not write: a second node runs under this name")
        for register in marks:
            if register is not None and (self.node, self.incarnation) in register.condemned:
                return Stop(f"node {register.stamp.owner} forced it out")
        return Renewal(self._record(LeaseState.LIVE, ""))

    def renewed(self, lease: Lease, started_us: int, now_us: int) -> Stop | None:
        """A renewal begun at `started_us` has become durable at `now_us`: move the deadline, or stop (SPEC 7.3)."""
        if self.deadline_us is not None and now_us >= self.deadline_us:
            return Stop("its renewal ended after its lease had run out")
        self._last_written = lease
        self.deadline_us = started_us + self._span_ms * US_PER_MS
        if now_us >= self.deadline_us:
            return Stop("its renewal took longer than its lease")
        return None

    def is_own(self, lease: Lease | None) -> bool:
        """Whether the register holds this guard's last write, or one after it that failed but arrived (SPEC 1.5)."""
        if lease is None:
            return False
        last, stamp = self._last_written.stamp, lease.stamp
        mine = (stamp.owner, stamp.incarnation) == (self.node, self.incarnation)
        return stamp == last or (mine and last.sequence < stamp.sequence <= self._attempted)

    def catch_up(self, own: Lease | None) -> bool:
        """Continue after what another process of this very guard wrote; false if the register is not this one's."""
        if own is None or (own.stamp.owner, own.stamp.incarnation) != (self.node, self.incarnation):
            return False
        self._last_written = own
        self._attempted = max(self._attempted, own.stamp.sequence)
        return True

    def retime(self, profile: Profile, span_ms: int, armed: Armed | None) -> None:
        """Records say this from now on, and each renewal moves the deadline by `span_ms` (P7.35)."""
        self._profile, self._span_ms, self.armed = profile, span_ms, armed

    def tombstone(self, clean: bool, cause: str) -> Lease:
        """The last record of this incarnation; written only after everything it ran has ended (P7.5, SPEC 7.1)."""
        return self._record(LeaseState.CLEAN if clean else LeaseState.PANICKED, cause)

    def _record(self, state: LeaseState, cause: str) -> Lease:
        # A new sequence for each attempt: were the beat of a failed write that arrived after all written again, its
        # observers would already be counting it when it moves the deadline.
        self._attempted += 1
        stamp = Stamp(self.node, self.incarnation, NO_TERM, self._attempted)
        profile = self._profile
        live = state is LeaseState.LIVE
        armed = self.armed if live else None
        deadman = Deadman.WATCHDOG if armed is not None and armed.proves else self._deadman
        return Lease(
            stamp, state, deadman, profile.lease_ms, profile.panic_bound_ms, self.boot_id, cause,
            self.life if live else None, self.owed if live else None, armed,
        )  # fmt: skip


def statement(own: Lease, owed: Owed, cause: str) -> Lease:
    """The last record of an incarnation of which nothing runs any more, with what its machine still owes (P6.33)."""
    state = LeaseState.PANICKED if own.state is LeaseState.LIVE else own.state
    return own._replace(
        stamp=own.stamp._replace(sequence=own.stamp.sequence + 1), state=state, cause=own.cause or cause, owed=owed
    )
