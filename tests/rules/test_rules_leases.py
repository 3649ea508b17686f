"""Leases and time: the rules P7.1 to P7.4 and P7.8 of docs/PROTOCOL.md (SPEC 7.1-7.3, 7.6).

P7.5 to P7.7 are about real processes: tests/drivers/test_guard.py.
"""

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.core.leases.lease import (
    Evidence,
    LeaseKeeper,
    LeaseWatch,
    Renewal,
    Shown,
    Stop,
    expiry_proves,
    next_incarnation,
    replacement,
)
from muster.records.registers import Armed, Deadman, Lease, LeaseState, Marks, ProofKind, RegisterKind, blank_register
from muster.records.terms import NO_TERM, Stamp
from muster.records.timing import (
    FAST,
    PROFILES,
    SHORT,
    STANDARD,
    InconsistentProfile,
    Profile,
    WatchdogTimes,
    check,
    with_drift_ms,
)

MS = 1000
NODE, INCARNATION = 1, next_incarnation(0, 7)


def blank() -> Lease:
    register = blank_register(RegisterKind.LEASE, NODE)
    assert isinstance(register, Lease)
    return register


def keeper_of(predecessor: Lease | None = None) -> LeaseKeeper:
    return LeaseKeeper(NODE, INCARNATION, predecessor or blank(), FAST, Deadman.PID_NAMESPACE, bytes(16))


def renew(keeper: LeaseKeeper, own: Lease, started_us: int, durable_us: int) -> Lease:
    """One successful renewal."""
    judged = keeper.begin(started_us, own, no_marks())
    assert isinstance(judged, Renewal)
    assert keeper.renewed(judged.lease, started_us, durable_us) is None
    return judged.lease


def no_marks() -> tuple[Marks, ...]:
    return tuple(Marks(Stamp(node, 0, NO_TERM, 0), ()) for node in range(3))


def lease_at(
    beat: int, deadman: Deadman = Deadman.WATCHDOG, state: LeaseState = LeaseState.LIVE, incarnation: int = INCARNATION
) -> Lease:
    stamp = Stamp(NODE, incarnation, NO_TERM, beat)
    return Lease(stamp, state, deadman, FAST.lease_ms, FAST.panic_bound_ms, bytes(16), "")


def armed(lease: Lease, **given: bool) -> Lease:
    """With a watchdog behind it whose times fit."""
    times = WatchdogTimes(1000, 1000, 100, late_excluded=given.pop("late_excluded", True))
    behind = Armed("a watchdog", times, proves=given.pop("proves", True))
    return lease._replace(deadman=Deadman.WATCHDOG, lease_ms=2700, panic_bound_ms=2100, armed=behind)


# ---- P7.1 renewal ----------------------------------------------------------------------------------------------------


def test_p7_1_a_mark_for_its_incarnation_in_any_register_stops_the_node() -> None:
    for place in range(3):
        marks = list(no_marks())
        marks[place] = Marks(Stamp(place, 1, NO_TERM, 4), ((0, INCARNATION), (NODE, INCARNATION)))
        judged = keeper_of().begin(0, blank(), tuple(marks))
        assert isinstance(judged, Stop) and f"node {place} forced it out" in judged.cause


@pytest.mark.parametrize("mark", [(0, INCARNATION), (NODE, INCARNATION - 1), (NODE, INCARNATION + 1)])
def test_p7_1_a_mark_for_another_incarnation_does_not(mark: tuple[int, int]) -> None:
    marks = (Marks(Stamp(0, 1, NO_TERM, 4), (mark,)),)
    assert isinstance(keeper_of().begin(0, blank(), marks), Renewal)


def test_p7_1_a_register_that_it_did_not_write_stops_the_node() -> None:
    keeper = keeper_of()
    own = renew(keeper, blank(), 0, 1)
    clone = own._replace(stamp=own.stamp._replace(incarnation=INCARNATION + 1, sequence=own.stamp.sequence + 1))
    later = own._replace(stamp=own.stamp._replace(sequence=own.stamp.sequence + 1))
    for found in (clone, later, blank(), None):
        judged = keeper.begin(80 * MS, found, no_marks())
        assert isinstance(judged, Stop) and "second node" in judged.cause
    assert isinstance(keeper.begin(80 * MS, own, no_marks()), Renewal)


def test_p7_1_each_renewal_has_a_new_beat() -> None:
    keeper, own, beats = keeper_of(), blank(), []
    for number in range(5):
        own = renew(keeper, own, number * 80 * MS, number * 80 * MS + 1)
        beats.append(own.stamp.sequence)
    assert beats == sorted(set(beats))


# ---- P7.2 deadline ---------------------------------------------------------------------------------------------------


def test_p7_2_the_deadman_counts_from_the_start_of_the_last_renewal_that_succeeded() -> None:
    keeper = keeper_of()
    span_us = (FAST.lease_ms - FAST.panic_bound_ms) * MS
    own = renew(keeper, blank(), 0, 100 * MS)
    assert keeper.deadline_us == span_us
    assert isinstance(keeper.begin(200 * MS, own, no_marks()), Renewal)  # and this one fails
    assert keeper.deadline_us == span_us
    renew(keeper, own, 300 * MS, 420 * MS)
    assert keeper.deadline_us == 300 * MS + span_us


@pytest.mark.parametrize("late_us", [0, 1, 10_000])
def test_p7_2_a_renewal_that_ends_after_the_old_deadline_is_not_accepted(late_us: int) -> None:
    keeper = keeper_of()
    own = renew(keeper, blank(), 0, 1)
    deadline_us = keeper.deadline_us
    assert deadline_us is not None
    judged = keeper.begin(deadline_us - 1, own, no_marks())
    assert isinstance(judged, Renewal)
    assert isinstance(keeper.renewed(judged.lease, deadline_us - 1, deadline_us + late_us), Stop)
    assert keeper.deadline_us == deadline_us


def test_p7_2_the_first_renewal_may_not_take_longer_than_its_lease_either() -> None:
    keeper = keeper_of()
    judged = keeper.begin(0, blank(), no_marks())
    assert isinstance(judged, Renewal)
    assert isinstance(keeper.renewed(judged.lease, 0, (FAST.lease_ms - FAST.panic_bound_ms) * MS), Stop)


# ---- P7.3 proof by expiry --------------------------------------------------------------------------------------------


def watched(*reads: tuple[Lease | None, int, int]) -> LeaseWatch:
    """A watch that has seen these reads: what was there, and when (ms) the read began and ended."""
    watch = LeaseWatch(FAST.gap_ms)
    for lease, started_ms, finished_ms in reads:
        watch.observe(lease, started_ms * MS, finished_ms * MS)
    return watch


def chain(lease: Lease, until_ms: int, step_ms: int = 60) -> list[tuple[Lease | None, int, int]]:
    """Reads of the same record, each soon after the last; the first ends at 10, the last begins at `until_ms`."""
    starts = [*range(0, until_ms, step_ms), until_ms]
    return [(lease, start, start + 10) for start in starts]


def test_p7_3_the_same_beat_for_the_lease_and_the_drift_is_proof_and_a_moment_less_is_none() -> None:
    needed_ms = 10 + with_drift_ms(FAST.lease_ms)  # counted from the end of the first read to the start of the last
    assert watched(*chain(lease_at(5), needed_ms - 1)).evidence(INCARNATION) is None
    watch = watched(*chain(lease_at(5), needed_ms))
    evidence = watch.evidence(INCARNATION)
    assert isinstance(evidence, Evidence) and evidence.kind is ProofKind.LEASE_EXPIRED
    assert not watch.is_live()


@pytest.mark.parametrize("deadman", [Deadman.PID_NAMESPACE, Deadman.PROCESS_TREE, Deadman.WATCHDOG])
def test_p7_3_on_another_machine_only_a_watchdog_makes_silence_a_proof(deadman: Deadman) -> None:
    watch = LeaseWatch(FAST.gap_ms, timers_prove=False)
    silent = armed(lease_at(5)) if deadman is Deadman.WATCHDOG else lease_at(5)._replace(deadman=deadman)
    for lease, started_ms, finished_ms in chain(silent, 20 * FAST.lease_ms):
        assert lease is not None
        watch.observe(lease, started_ms * MS, finished_ms * MS)
    assert (watch.evidence(INCARNATION) is not None) == (deadman is Deadman.WATCHDOG)
    assert not watch.is_live()  # nor is it taken for a candidate


def test_p7_30_only_a_record_whose_own_times_fit_proves_anything() -> None:
    good = armed(lease_at(5))
    assert expiry_proves(good)
    times = WatchdogTimes(1000, 1000, 100, late_excluded=True)
    assert not expiry_proves(armed(good, proves=False))
    assert not expiry_proves(good._replace(armed=None))
    assert not expiry_proves(good._replace(deadman=Deadman.PID_NAMESPACE))
    assert not expiry_proves(good._replace(panic_bound_ms=times.bound_ms - 1))
    assert not expiry_proves(armed(good, late_excluded=False))  # 2T + g + r
    assert not expiry_proves(good._replace(lease_ms=good.panic_bound_ms))
    for wrong in (times._replace(timeout_ms=0), times._replace(granularity_ms=999)):
        assert not expiry_proves(good._replace(armed=Armed("a watchdog", wrong, proves=True)))


def test_p7_33_a_keeper_records_its_watchdog_in_live_records_only() -> None:
    behind = armed(lease_at(1)).armed
    keeper = keeper_of()
    keeper.retime(FAST, FAST.loop_ms, behind)
    live, buried = keeper.begin(0, blank(), no_marks()), keeper.tombstone(clean=True, cause="")
    assert isinstance(live, Renewal) and live.lease.armed == behind and live.lease.deadman is Deadman.WATCHDOG
    assert buried.armed is None


def test_p7_35_a_keeper_moves_its_deadline_by_the_span_that_it_is_told() -> None:
    keeper = keeper_of()
    own = renew(keeper, blank(), 0, 1)
    keeper.retime(SHORT, 300, None)
    own = renew(keeper, own, 100 * MS, 101 * MS)
    assert (keeper.deadline_us, own.lease_ms, own.panic_bound_ms) == (400 * MS, SHORT.lease_ms, SHORT.panic_bound_ms)


def test_p7_3_a_beat_that_advances_begins_the_count_anew() -> None:
    reads = chain(lease_at(5), 400)
    reads += [(lease_at(6), start + 460, end + 460) for _, start, end in chain(lease_at(6), 600)]
    assert watched(*reads).evidence(INCARNATION) is None


@pytest.mark.parametrize("gap", ["a pause", "a failed read", "a slow read"])
def test_p7_3_a_gap_between_or_in_its_reads_restarts_the_count(gap: str) -> None:
    lease, half_ms = lease_at(5), 400
    reads = chain(lease, half_ms)
    resumed_ms = half_ms + 10 + FAST.gap_ms + (1 if gap == "a pause" else 0)
    match gap:
        case "a failed read":
            reads.append((None, half_ms + 50, half_ms + 50))
            resumed_ms = half_ms + 70
        case "a slow read":
            reads.append((lease, half_ms + 50, half_ms + 51 + FAST.gap_ms))
            resumed_ms = half_ms + 60 + FAST.gap_ms
    enough_ms = 10 + with_drift_ms(FAST.lease_ms)
    again = [(lease, start + resumed_ms, end + resumed_ms) for _, start, end in chain(lease, enough_ms)]
    assert watched(*reads, *again[:-2]).evidence(INCARNATION) is None
    assert watched(*reads, *again).evidence(INCARNATION) is not None


@pytest.mark.parametrize("deadman", [Deadman.NONE, Deadman.PROCESS_TREE])
def test_p7_3_without_a_deadman_or_with_a_process_tree_an_expired_lease_proves_nothing(deadman: Deadman) -> None:
    """P7.11: what could end a process tree may be stopped itself, also on the same kernel."""
    watch = watched(*chain(lease_at(5, deadman), 10_000))
    assert watch.evidence(INCARNATION) is None


@pytest.mark.parametrize(
    ("state", "kind"),
    [(LeaseState.CLEAN, ProofKind.CLEAN_TOMBSTONE), (LeaseState.PANICKED, ProofKind.PANIC_TOMBSTONE)],
)
def test_p7_3_a_tombstone_and_a_later_incarnation_are_proof_at_once(state: LeaseState, kind: ProofKind) -> None:
    watch = watched((lease_at(5, state=state), 0, 10))
    evidence = watch.evidence(INCARNATION)
    assert evidence is not None and evidence.kind is kind
    assert watch.evidence(INCARNATION + 1) is None  # which may only be about to start
    later = watched((lease_at(6, incarnation=INCARNATION + 1), 0, 10)).evidence(INCARNATION)
    assert later is not None and later.kind is ProofKind.NEXT_INCARNATION


class Past(NamedTuple):
    """What a guard and an observer did, in us."""

    visible: list[tuple[int, Lease]]  # from when on each record could be read
    reads: list[tuple[int, int, int]]  # when each read began, looked, and ended
    stopped_us: int  # nothing of the node runs from then on: its deadman has fired and the panic bound is over


@st.composite
def pasts(draw: st.DrawFn) -> Past:
    """Renewals as the guard's rules allow them, the last one perhaps never finished, and reads with gaps."""
    keeper, own, now_us = keeper_of(), blank(), 0
    visible = []
    waits_us, takes_us = st.integers(0, 400_000), st.integers(1, 300_000)
    for wait_us, take_us in draw(st.lists(st.tuples(waits_us, takes_us), min_size=1, max_size=8)):
        judged = keeper.begin(now_us + wait_us, own, no_marks())
        if isinstance(judged, Stop):
            break
        started_us, now_us = now_us + wait_us, now_us + wait_us + take_us
        visible.append((started_us + draw(st.integers(0, take_us)), judged.lease))
        if draw(st.integers(0, 4)) == 0 or keeper.renewed(judged.lease, started_us, now_us) is not None:
            break  # it is stopped, paused or killed in the middle of the write, which arrives all the same
        own = judged.lease
    stopped_us = (keeper.deadline_us or 0) + FAST.panic_bound_ms * MS
    reads = []
    now_us = draw(st.integers(0, 500_000))
    pauses_us = st.one_of(st.integers(0, 90_000), st.integers(0, 90_000), st.integers(0, 300_000))
    for pause_us, before_us, after_us in draw(
        st.lists(st.tuples(pauses_us, st.integers(0, 60_000), st.integers(0, 60_000)), min_size=10, max_size=60)
    ):
        started_us = now_us + pause_us
        now_us = started_us + before_us + after_us
        reads.append((started_us, started_us + before_us, now_us))
    return Past(visible, reads, stopped_us)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(pasts())
def test_p7_3_proof_never_comes_before_the_deadman_has_fired_and_the_panic_bound_is_over(past: Past) -> None:
    watch = LeaseWatch(FAST.gap_ms)
    for started_us, looked_us, finished_us in past.reads:
        seen = [lease for visible_us, lease in past.visible if visible_us <= looked_us]
        watch.observe(seen[-1] if seen else blank(), started_us, finished_us)
        if watch.evidence(INCARNATION) is not None:
            assert started_us >= past.stopped_us


# ---- P7.4 waking -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late_us", [0, 1, 3_600_000_000])
def test_p7_4_a_guard_that_wakes_after_its_deadline_stops_the_node_before_anything_else(late_us: int) -> None:
    keeper = keeper_of()
    own = renew(keeper, blank(), 0, 1)
    deadline_us = keeper.deadline_us
    assert deadline_us is not None
    judged = keeper.begin(deadline_us + late_us, own, no_marks())
    assert isinstance(judged, Stop) and "woke after its lease had run out" in judged.cause
    assert isinstance(keeper.begin(deadline_us - 1, own, no_marks()), Renewal)


def test_p7_4_a_guard_that_was_paused_in_the_middle_of_a_renewal_stops_as_well() -> None:
    keeper = keeper_of()
    own = renew(keeper, blank(), 0, 1)
    judged = keeper.begin(80 * MS, own, no_marks())
    assert isinstance(judged, Renewal)
    assert isinstance(keeper.renewed(judged.lease, 80 * MS, 80 * MS + FAST.lease_ms * MS), Stop)


# ---- P7.8 time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", list(PROFILES.values()), ids=list(PROFILES))
def test_p7_8_every_profile_keeps_its_relations(profile: Profile) -> None:
    assert check(profile) is profile
    assert profile.proof_ms() >= with_drift_ms(profile.lease_ms) > profile.lease_ms


BROKEN = [
    ({"renew_ms": 0}, "0 < renew_ms"),
    ({"renew_ms": 641}, "3 * renew_ms <= lease_ms - panic_bound_ms"),
    ({"panic_bound_ms": 1201}, "3 * renew_ms <= lease_ms - panic_bound_ms"),
    ({"read_ms": 501, "claim_stagger_ms": 5000}, "read_ms * 2 <= gap_ms"),
    ({"gap_ms": 2400}, "gap_ms < lease_ms"),
    ({"pulse_ms": 701}, "pulse_ms * 5 <= pulse_loss_ms"),
    ({"pulse_loss_ms": 8001}, "pulse_loss_ms <= restart_ms"),
    ({"link_loss_beats": 1}, "2 <= link_loss_beats"),
    ({"view_ms": 2401}, "view_ms <= lease_ms"),
    ({"claim_stagger_ms": 499}, "2 * read_ms <= claim_stagger_ms"),
]


@pytest.mark.parametrize(("override", "inequality"), BROKEN)
def test_p7_8_an_inconsistent_override_is_refused_with_the_inequality_that_it_breaks(
    override: dict[str, int], inequality: str
) -> None:
    with pytest.raises(InconsistentProfile) as refused:
        check(STANDARD._replace(**override))  # type: ignore[arg-type]
    assert inequality in str(refused.value)


@pytest.mark.parametrize("nodes", [2, 5, 20, 40])
def test_p7_8_heartbeats_of_one_node_stay_bounded_whatever_the_number_of_nodes(nodes: int) -> None:
    for profile in PROFILES.values():
        interval_ms = profile.heartbeat_interval_ms(nodes)
        assert interval_ms >= profile.heartbeat_ms
        assert (nodes - 1) * 1000 / interval_ms <= 1.02 * profile.heartbeats_per_second  # whole milliseconds
        assert profile.link_loss_ms(nodes) == profile.link_loss_beats * interval_ms


# ---- P11.1 the fresh look --------------------------------------------------------------------------------------------

OPENED = (b"c" * 16, b"s" * 16)


@pytest.mark.parametrize(
    ("shown", "verdict"),
    [
        (Shown(*OPENED, lease_at(7)), ""),
        (None, None),  # no file, no answer, nothing valid: a failed cycle
        (Shown(*OPENED, None), None),
        (Shown(*OPENED, lease_at(6)), "what is there holds beat 6 of this node, not 7"),
        (Shown(*OPENED, lease_at(7, incarnation=INCARNATION - 1)), "what is there holds beat 7"),
        (Shown(*OPENED, lease_at(7)._replace(boot_id=b"x" * 16)), "what is there holds beat 7"),
        (Shown(OPENED[0], b"t" * 16, lease_at(7)), f"store {(b't' * 16).hex()}"),
        (Shown(b"d" * 16, OPENED[1], lease_at(7)), f"of cluster {(b'd' * 16).hex()}"),
        (Shown(b"d" * 16, OPENED[1], None), f"of cluster {(b'd' * 16).hex()}"),
    ],
)
def test_p11_1_a_write_counts_only_where_a_fresh_open_of_the_path_shows_it(
    shown: Shown | None, verdict: str | None
) -> None:
    found = replacement(OPENED, lease_at(7), shown)
    assert found == verdict if not verdict else verdict in (found or "")
