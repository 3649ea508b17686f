"""When a guard takes what ran before it for gone, and when it gives its node up (P7.4, P7.6, P7.7, P7.12, P7.17).

Tables: every input in every state of the machines of `core/leases/` that guards run. `tests/drivers/` tries the same
with processes.
"""

from typing import Any

import pytest

from muster.core.leases.lease import LeaseWatch
from muster.core.leases.predecessor import (
    START_PATIENCE_US,
    Here,
    OtherKernels,
    Others,
    Patience,
    Predecessor,
    Verdict,
    settled,
    to_ask,
)
from muster.core.leases.vigil import ASKED_FOR_PATIENCE, LEAVE_US, TURNS_A_SPAN, GivesUp, Vigil, Why
from muster.records.registers import Deadman, Lease, LeaseState, Life
from muster.records.terms import NO_TERM, Stamp
from muster.records.timing import FAST, with_drift_ms

PROFILE = FAST
MS = 1000
HERE = Here(b"k" * 16, b"m" * 16, 7)
SILENT = Lease(Stamp(0, 7, NO_TERM, 9), LeaseState.LIVE, Deadman.PID_NAMESPACE, 600, 120, HERE.boot_id, "")
LIFE = Life(HERE.machine_id, 1, 2, 4711, 99)
BOUND_US = with_drift_ms(SILENT.lease_ms) * MS
READ_US = PROFILE.read_ms * MS
OTHER_BOOT = b"o" * 16


def beat(lease: Lease, number: int) -> Lease:
    """The same lease, renewed."""
    return lease._replace(stamp=lease.stamp._replace(sequence=number))


def watched(lease: Lease, until_us: int, *, one_kernel: bool) -> LeaseWatch:
    """One that has read the same from 0 until then."""
    watch = LeaseWatch(PROFILE.gap_ms, timers_prove=one_kernel)
    for at_us in [*range(0, until_us, READ_US), until_us]:
        watch.observe(lease, at_us, at_us)
    return watch


# ---- the predecessor -------------------------------------------------------------------------------------------------

NEVER, CLEAN, PANICKED = ({"state": state} for state in (LeaseState.NEVER, LeaseState.CLEAN, LeaseState.PANICKED))
NAMED: dict[str, Any] = {"life": LIFE}
NAMED_BEFORE: dict[str, Any] = {"life": LIFE, "boot_id": OTHER_BOOT}
ELSEWHERE: dict[str, Any] = {"boot_id": OTHER_BOOT, "stamp": Stamp(0, 6, NO_TERM, 9)}


@pytest.mark.parametrize("vouched", [False, True])
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("one_kernel", [False, True])
@pytest.mark.parametrize(
    ("change", "at_once", "silent"),
    [
        (NEVER, Verdict.GONE, Verdict.GONE),
        (CLEAN, Verdict.GONE, Verdict.GONE),
        (PANICKED, Verdict.GONE, Verdict.GONE),
        ({}, Verdict.WAIT, Verdict.GONE),  # a kernel timer of this very kernel has fired
        ({"deadman": Deadman.NONE}, Verdict.WAIT, Verdict.UNPROVEN),
        ({"deadman": Deadman.PROCESS_TREE}, Verdict.WAIT, Verdict.UNPROVEN),
        (NAMED, Verdict.WAIT, Verdict.STILL_RUNS),  # silence does not help where the kernel can be asked
        (NAMED_BEFORE, Verdict.WAIT, Verdict.GONE),
        ({**ELSEWHERE, "deadman": Deadman.PROCESS_TREE}, Verdict.WAIT, Verdict.UNPROVEN),
    ],
)
def test_p7_6_what_ran_before_is_gone_by_a_proof_by_its_machine_or_on_an_operators_word_and_never_before_its_time(
    change: dict[str, Any], at_once: Verdict, silent: Verdict, one_kernel: bool, asked: bool, vouched: bool
) -> None:
    lease = SILENT._replace(**change)
    for until_us, wanted in ((0, at_once), (BOUND_US - 1, at_once), (BOUND_US, silent)):
        expected = wanted
        if wanted is Verdict.STILL_RUNS and not asked:
            expected = Verdict.UNPROVEN  # the kernel it ran under is this one, and cannot be asked
        if vouched and until_us == BOUND_US:
            expected = Verdict.GONE
        watch = watched(lease, until_us, one_kernel=one_kernel)
        assert settled(lease, watch, HERE, vouched=vouched, asked=asked) is expected


def test_p7_6_a_beat_under_the_own_name_refuses_the_start_and_a_tombstone_does_not() -> None:
    for state, verdict in ((LeaseState.LIVE, Verdict.BEATS), (LeaseState.PANICKED, Verdict.WAIT)):
        predecessor = Predecessor(PROFILE.gap_ms, one_kernel=True)
        assert predecessor.read(None, 0, 0) is Verdict.WAIT
        assert predecessor.read(SILENT, READ_US, READ_US) is Verdict.WAIT
        assert predecessor.read(SILENT, 2 * READ_US, 2 * READ_US) is Verdict.WAIT
        assert predecessor.read(beat(SILENT, 10)._replace(state=state), 3 * READ_US, 3 * READ_US) is verdict


def test_p11_6_a_store_that_cannot_be_read_refuses_a_start_for_now_and_only_after_a_while() -> None:
    predecessor, patience = Predecessor(PROFILE.gap_ms, one_kernel=True), Patience()
    for at_us in (0, START_PATIENCE_US - 1):
        assert predecessor.read(None, at_us, at_us) is Verdict.WAIT
        assert not patience.is_over(at_us, failed=True)
    assert predecessor.read(SILENT, START_PATIENCE_US, START_PATIENCE_US) is Verdict.WAIT
    assert not patience.is_over(START_PATIENCE_US, failed=False)
    for at_us, over in ((START_PATIENCE_US + 1, False), (2 * START_PATIENCE_US + 1, True)):
        assert predecessor.read(None, at_us, at_us) is (Verdict.UNREADABLE if over else Verdict.WAIT)
        assert patience.is_over(at_us, failed=True) is over


@pytest.mark.parametrize("state", list(LeaseState))
@pytest.mark.parametrize("life", [None, LIFE])
def test_p7_14_the_kernel_is_asked_about_what_is_named_and_has_not_said_its_end(
    state: LeaseState, life: Life | None
) -> None:
    assert to_ask(SILENT._replace(state=state, life=life)) == (life if state is LeaseState.LIVE else None)


# ---- other kernels ---------------------------------------------------------------------------------------------------

FOREIGN = SILENT._replace(boot_id=OTHER_BOOT)


def test_p7_17_what_runs_under_another_kernel_is_waited_for_until_it_is_silent_and_bars_the_start_if_it_beats() -> None:
    assert OtherKernels(PROFILE.gap_ms, HERE.boot_id).read((SILENT, None), 0, 0) == Others(False)
    for lease in (FOREIGN._replace(state=state) for state in LeaseState if state is not LeaseState.LIVE):
        assert OtherKernels(PROFILE.gap_ms, HERE.boot_id).read((lease,), 0, 0) == Others(False)
    others = OtherKernels(PROFILE.gap_ms, HERE.boot_id)
    for at_us in range(0, BOUND_US, READ_US):
        assert others.read((SILENT, FOREIGN), at_us, at_us) == Others(True)
    assert others.read((SILENT, FOREIGN), BOUND_US, BOUND_US) == Others(False)
    assert others.read((SILENT, None), BOUND_US, BOUND_US) == Others(False)
    assert others.read((SILENT, beat(FOREIGN, 10)), BOUND_US, BOUND_US) == Others(True, 1)


def test_p7_17_a_read_that_fails_says_nothing_of_other_kernels() -> None:
    others = OtherKernels(PROFILE.gap_ms, HERE.boot_id)
    assert others.read(None, 0, 0) == Others(True)  # nothing is known yet
    for leases in ((SILENT, FOREIGN), None, (SILENT, None), None):
        assert others.read(leases, READ_US, READ_US) == Others(True)
    assert others.read((SILENT, FOREIGN._replace(boot_id=HERE.boot_id)), READ_US, READ_US) == Others(False)
    assert others.read(None, READ_US, READ_US + START_PATIENCE_US) == Others(True)
    late_us = READ_US + 2 * START_PATIENCE_US
    assert others.read(None, late_us, late_us) == Others(True, unreadable=True)


# ---- when a guard gives up -------------------------------------------------------------------------------------------

PROCESSES = ("init", "runner", "daemon")
LEASE_US = 3600_000 * MS
RESTART_US, PULSE_US, LOOP_US = PROFILE.restart_ms * MS, PROFILE.pulse_loss_ms * MS, PROFILE.loop_ms * MS


def vigil_of(state: str) -> Vigil:
    """The vigil of a guard at time 0: its node begins, is up, has lost its daemon, or leaves."""
    vigil = Vigil(PROFILE)
    vigil.lease_deadline_us = LEASE_US
    vigil.turned(0)
    for name in PROCESSES:
        vigil.begun(name, 0)
    if state != "begins":
        for name in PROCESSES:
            vigil.pulsed(name, 0)
    if state in ("lost", "succeeded"):
        vigil.daemon_ended(0, asked_for=state == "succeeded")
    if state == "leaves":
        vigil.leaves(0)
    return vigil


@pytest.mark.parametrize(
    ("state", "silent", "due_us", "gives_up"),
    [
        ("begins", "init", RESTART_US, GivesUp(Why.SILENT, "init")),
        ("begins", "runner", RESTART_US, GivesUp(Why.SILENT, "runner")),
        ("begins", "daemon", ASKED_FOR_PATIENCE * RESTART_US, GivesUp(Why.SILENT, "daemon")),
        *(("up", name, PULSE_US, GivesUp(Why.SILENT, name)) for name in PROCESSES),
        ("lost", "daemon", RESTART_US, GivesUp(Why.SILENT, "daemon")),
        ("lost", "runner", PULSE_US, GivesUp(Why.SILENT, "runner")),
        ("succeeded", "daemon", ASKED_FOR_PATIENCE * RESTART_US, GivesUp(Why.SILENT, "daemon")),
        *(("leaves", name, LEAVE_US, GivesUp(Why.NOT_EMPTIED)) for name in PROCESSES),
    ],
)
def test_p7_7_each_process_owes_a_sign_of_life_in_its_time_and_a_node_that_has_left_its_end(
    state: str, silent: str, due_us: int, gives_up: GivesUp
) -> None:
    vigil = vigil_of(state)
    for name in PROCESSES:
        if name != silent:
            vigil.pulsed(name, due_us)
    assert vigil.judge(due_us - 1) is None
    assert vigil.judgement_us() == due_us
    assert vigil.judge(due_us) == gives_up
    if state != "leaves":
        vigil.pulsed(silent, due_us)
        assert vigil.judge(due_us) is None


def test_p7_7_a_daemon_that_dies_again_before_its_first_sign_of_life_gets_no_more_time() -> None:
    vigil = vigil_of("lost")
    for name in ("init", "runner"):
        vigil.pulsed(name, RESTART_US)
    vigil.daemon_ended(RESTART_US - 1, asked_for=True)
    assert vigil.judge(RESTART_US) == GivesUp(Why.SILENT, "daemon")


@pytest.mark.parametrize("state", ["begins", "up", "lost", "leaves"])
@pytest.mark.parametrize("apart", [False, True])
def test_p7_12_every_guard_gives_up_so_long_before_its_lease_ends_that_a_tombstone_can_be_written(
    state: str, apart: bool
) -> None:
    vigil = vigil_of(state)
    vigil.stands_apart = apart
    vigil.lease_deadline_us = 50 * MS + 1000 * MS
    margin_ms = PROFILE.loop_ms if apart else min(PROFILE.renew_ms, PROFILE.panic_bound_ms)
    at_us = vigil.lease_deadline_us - margin_ms * MS
    assert vigil.give_up_us() == at_us
    for name in PROCESSES:
        vigil.pulsed(name, at_us)
    assert vigil.judge(at_us - 1) is None
    assert vigil.judge(at_us) == GivesUp(Why.NOT_RENEWED)


def test_p7_12_the_deadman_is_moved_by_turns_no_further_than_the_lease_and_not_for_a_trifle() -> None:
    vigil = Vigil(PROFILE)
    vigil.lease_deadline_us = LEASE_US
    assert vigil.turned(0) == LOOP_US == vigil.deadline_us
    trifle_us = LOOP_US // 8
    assert vigil.turned(trifle_us - 1) is None and vigil.deadline_us == LOOP_US
    assert vigil.turned(trifle_us) == LOOP_US + trifle_us
    vigil.lease_deadline_us = 2 * LOOP_US
    assert vigil.turned(2 * LOOP_US - 1) == 2 * LOOP_US
    assert vigil.turned(3 * LOOP_US) is None  # only a renewal moves it now


def test_p7_4_a_guard_is_late_from_its_deadline_on_and_turns_often_enough_before() -> None:
    vigil = vigil_of("up")
    assert [vigil.is_late(LOOP_US - 1), vigil.is_late(LOOP_US)] == [False, True]
    assert vigil.wake_us() == min(LOOP_US // TURNS_A_SPAN, PULSE_US)
