"""What a latency profile means: its timeline after a death, and the bound on each kind of outage (SPEC 7.6).

Everything is computed from the profile, and from the rules named beside it; the time that the store itself takes, and a
service's own start, come on top. Docs and pictures are made from this, so they cannot disagree with the timers.
"""

from typing import NamedTuple

from muster.records.timing import InconsistentProfile, Profile, check, with_drift_ms

MAXIMUM_TIMER_MS = 3_600_000
MAXIMUM_HEARTBEATS = 1000  # a second
_VIEWS = 2  # rows of the views register newer than a loss (`core/links/links.py`)


UNPROVEN = (
    "no proof comes by itself, unless a fence agent gives it; what it held waits until its machine boots again, or a "
    "person confirms (muster node evict NODE --confirmed-dead)"
)
"""Scope `shared`: a lease that has run out is no proof there while no watchdog stands behind it (docs/FENCING.md)."""


class Moment(NamedTuple):
    """Something in the timeline of a death: between `from_ms` and `to_ms` after the last renewal began."""

    from_ms: int
    to_ms: int
    what: str


class Outage(NamedTuple):
    """A fault: until when others may have what ran there (None: `how` says why there is no such bound), and how."""

    fault: str
    bound_ms: int | None
    how: str


def profile_with(base: Profile, overrides: tuple[tuple[str, int], ...]) -> Profile:
    """A profile with some of its timers set otherwise. Raises `InconsistentProfile`: the key, or the inequality."""
    known = [name for name in base._fields if name != "name"]
    for key, value in overrides:
        if key not in known:
            raise InconsistentProfile(f"there is no timer {key!r}; there are {', '.join(known)}")
        limit = MAXIMUM_HEARTBEATS if key == "heartbeats_per_second" else MAXIMUM_TIMER_MS
        if not 0 < value <= limit:
            raise InconsistentProfile(f"it must hold that 0 < {key} <= {limit}; it is {value}")
    return check(base._replace(**dict(overrides)))  # type: ignore[arg-type]  # names and types are those checked above


def takeover_ms(profile: Profile) -> int:
    """Longest time from the proof of a master's death to its successor's claim: its next read, and its turn (P2.10)."""
    return profile.read_ms + profile.claim_stagger_ms


def eviction_ms(profile: Profile, nodes: int) -> int:
    """Longest time from a cut link to the mark that forces the losing side out (P4.4).

    Both ends stop hearing, write that into their views, and the master must see it for the link bound in views that are
    newer than the loss.
    """
    loss_ms = profile.link_loss_ms(nodes)
    return loss_ms + profile.read_ms + max(loss_ms, _VIEWS * profile.view_ms) + profile.read_ms


def host_timeline(profile: Profile, nodes: int) -> tuple[Moment, ...]:
    """Scope `host`, a node that hangs: in ms after the start of the last renewal, which is its loop's last turn."""
    leased = profile.leased(one_machine=True)
    return (
        Moment(0, profile.renew_ms, "last turn of the guard's loop, and last lease renewal; then the node hangs"),
        Moment(0, profile.link_loss_ms(nodes), "its links fall silent and are named lost"),
        Moment(profile.loop_ms, profile.loop_ms, "loop deadline: the deadman and init end what hangs"),
        Moment(profile.loop_ms, profile.lease_ms, "panic bound: its last process goes, and the kernel's word says so"),
        Moment(
            profile.lease_ms,
            profile.lease_ms + takeover_ms(profile),
            "takeover of the mastership, if it was the master",
        ),
        Moment(leased.loop_ms, leased.loop_ms, "lease deadline: if it was only the store that failed, all this time"),
    )


def host_outages(profile: Profile, nodes: int) -> tuple[Outage, ...]:
    """Scope `host`, where the kernel is asked and nobody counts leases: each fault with its bound in ms, and how."""
    p, leased = profile, profile.leased(one_machine=True)
    end_s = leased.loop_ms / 1000
    kept = {outage.fault: outage for outage in outages(profile, nodes)}
    return (
        kept["daemon crash"],
        kept["daemon hangs"],
        kept["daemon gone for good"],
        kept["node crash"],
        Outage("guard or init killed", p.panic_bound_ms, "the kernel ends the node, and its word of that is told"),
        Outage("guard killed, master", p.panic_bound_ms + takeover_ms(p), "the same, and the takeover"),
        Outage("node hangs", p.lease_ms, "loop deadline, panic bound, the kernel's word"),
        Outage("store hangs", None, f"no outage up to {p.store_stall_ms} ms: changes wait for it, services go on"),
        Outage("store lost", None, f"until it is back: every node stops itself after {end_s:.1f} s; then all boot"),
        kept[f"cut link, {nodes} nodes"],
    )


def unproven(faults: tuple[Outage, ...]) -> tuple[Outage, ...]:
    """The faults of scope `shared` as they are where no timer proves a death (P7.3): those that a lease would end have
    no bound.
    """
    by_lease = ("power cut", "power cut, master", "pause of a node", "store lost, one node")
    return tuple(Outage(each.fault, None, UNPROVEN) if each.fault in by_lease else each for each in faults)


def timeline_without_proof(moments: tuple[Moment, ...]) -> tuple[Moment, ...]:
    """The timeline of scope `shared` where no timer proves a death: the cluster goes on, what the node held waits."""
    words = "the lease has run out: the others go on without the node; what it held waits for a proof"
    return tuple(each._replace(what=words) if each.what.startswith("proof of death") else each for each in moments)


def timeline(profile: Profile, nodes: int) -> tuple[Moment, ...]:
    """Scope `shared`, a power cut: what happens when, in ms after the start of the dead node's last renewal."""
    deadman_ms = profile.lease_ms - profile.panic_bound_ms
    proof_ms = with_drift_ms(profile.lease_ms)
    moments = (
        Moment(0, profile.renew_ms, "last lease renewal; the power goes before the next one would begin"),
        Moment(0, profile.link_loss_ms(nodes), "its links fall silent and are named lost"),
        Moment(deadman_ms, deadman_ms, "deadman: a node that still ran would be stopped now"),
        Moment(deadman_ms, profile.lease_ms, "panic bound: all that it ran is gone by the end of it"),
        Moment(proof_ms, profile.proof_ms(), "proof of death: the others have counted the lease and the clocks' drift"),
        Moment(
            profile.proof_ms(),
            profile.proof_ms() + takeover_ms(profile),
            "takeover of the mastership, if it was the master",
        ),
    )
    return _with_short_leases(profile, moments)


def watchdog_lines(profile: Profile) -> tuple[str, ...]:
    """The times of a node with a watchdog that is as quick as the profile assumes, one relation a line (P7.31)."""
    p = profile
    return (
        f"a storage stall of {p.stall_ms} ms ends no node",
        f"deadline {p.loop_ms} >= stall {p.stall_ms} + 2 x renewal {p.renew_ms} + write {p.write_ms} ms",
        f"panic {p.panic_bound_ms} >= timeout {p.watchdog_ms} + granularity {p.granularity_ms} + reset {p.reset_ms} ms",
        "where a feeding may come late: one watchdog more, for that node alone",
        f"lease {p.lease_ms} >= deadline + panic; without a watchdog its end proves nothing",
    )


def suspicion_ms(profile: Profile) -> int:
    """Scope `shared`: longest time from a node's sudden death until it is condemned, and an agent asked (P4.13)."""
    return with_drift_ms(profile.suspicion_ms) + 2 * profile.read_ms


def claim_ms(profile: Profile) -> int:
    """Scope `shared`: longest time from a master's sudden death to its successor's claim (P2.15)."""
    return with_drift_ms(profile.leadership_ms) + profile.read_ms + takeover_ms(profile)


def _with_short_leases(profile: Profile, moments: tuple[Moment, ...]) -> tuple[Moment, ...]:
    """With suspicion and takeover where they come, if they do not wait for the lease (P4.13, P2.15)."""
    *others, takeover = moments
    short = []
    if profile.mastership_ms:
        words = f"{takeover.what}: its mastership has a lease of its own"
        short.append(Moment(with_drift_ms(profile.leadership_ms), claim_ms(profile), words))
    else:
        others.append(takeover)
    if profile.suspect_ms:
        words = "suspected, its links being silent, too: condemned, and a fence agent called where there is one"
        short.append(Moment(with_drift_ms(profile.suspicion_ms), suspicion_ms(profile), words))
    return (*others[:2], *sorted([*short, *others[2:]], key=lambda moment: (moment.to_ms, moment.from_ms)))


def outages(profile: Profile, nodes: int) -> tuple[Outage, ...]:
    """Scope `shared`: every kind of fault with its bound in ms, from the fault to where its services may be started
    elsewhere.
    """
    p = profile
    stopped_ms = p.panic_bound_ms + p.read_ms  # the node empties itself, and its tombstone is read
    cut_ms = eviction_ms(p, nodes) + p.renew_ms + stopped_ms
    return (
        Outage(
            "daemon crash",
            None,
            f"no outage: services go on; the daemon is back, or the node panics, in {p.restart_ms} ms",
        ),
        Outage("daemon hangs", p.pulse_loss_ms + stopped_ms, "pulse loss, panic, tombstone read"),
        Outage(
            "daemon gone for good",
            p.restart_ms + stopped_ms,
            "restart bound, panic, tombstone read; services run until then",
        ),
        Outage("node crash", stopped_ms, "panic: everything is stopped, and the tombstone read"),
        Outage("power cut", p.proof_ms(), "lease with drift, and two reads: no tombstone comes"),
        Outage("power cut, master", *_of_a_master(p)),
        *_by_agent(p),
        Outage("pause of a node", p.proof_ms(), "as a power cut: its deadman has stopped it before the lease is over"),
        Outage("store lost, one node", p.proof_ms(), "it stops itself before its deadman; it cannot write a tombstone"),
        Outage(
            "store lost, all nodes",
            None,
            f"until it is back: every node stops itself within {p.lease_ms - p.panic_bound_ms} ms; then all boot",
        ),
        Outage(
            f"cut link, {nodes} nodes", cut_ms, "loss seen by both ends, in newer views; mark, panic, tombstone read"
        ),
    )


def _of_a_master(profile: Profile) -> tuple[int, str]:
    if not profile.mastership_ms:
        return profile.proof_ms() + takeover_ms(profile), "the same, and the takeover"
    return max(profile.proof_ms(), claim_ms(profile)), "the same: another leads long before that"


def _by_agent(profile: Profile) -> tuple[Outage, ...]:
    """Where suspicion does not wait for the lease, an agent need not either (P4.13)."""
    if not profile.suspect_ms:
        return ()
    agent = "silent for so long, and two reads; the agent's own time comes on top"
    bound_ms = max(suspicion_ms(profile), claim_ms(profile) if profile.mastership_ms else 0)
    return (Outage("power cut, fenced", bound_ms, agent),)
