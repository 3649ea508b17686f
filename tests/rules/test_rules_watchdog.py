"""The watchdog behind a lease: its times, its feeding, its order (P7.30 to P7.36)."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.core.leases.vigil import Vigil
from muster.core.leases.watchdog import KINDS, SOFTWARE, Feeding, Order, Retiming, Stage, WatchdogState, times_of
from muster.records import watchdogs
from muster.records.registers import Armed
from muster.records.timing import PROFILES, SHARED, SHORT, Profile, WatchdogTimes, check
from muster.records.watchdogs import WatchdogSetting

MS = 1000
FOR_MACHINES = (SHARED, SHORT)


# ---- P7.31 the times -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", FOR_MACHINES, ids=lambda each: each.name)
def test_p7_31_the_profiles_for_machines_keep_the_relations(profile: Profile) -> None:
    deadline_ms = profile.lease_ms - profile.panic_bound_ms
    assert check(profile).loop_ms == deadline_ms
    assert deadline_ms >= profile.stall_ms + profile.renew_ms + profile.write_ms
    assert profile.panic_bound_ms >= profile.watchdog_ms + profile.granularity_ms + profile.reset_ms
    assert profile.granularity_ms >= 1000
    guard_gives_up_ms = deadline_ms - profile.renew_ms
    assert guard_gives_up_ms >= profile.stall_ms + profile.renew_ms + profile.write_ms


def test_p7_31_the_two_are_as_fast_as_they_are_said_to_be() -> None:
    assert (SHARED.stall_ms, SHARED.watchdog_ms, SHARED.lease_ms) == (20_000, 5000, 28_000)
    assert (SHORT.stall_ms, SHORT.watchdog_ms, SHORT.lease_ms) == (1500, 5000, 8500)
    assert SHARED.proof_ms() <= 30_000 and SHORT.proof_ms() <= 9000


def test_p7_31_no_other_profile_has_room_for_a_watchdog() -> None:
    assert {profile.name for profile in PROFILES.values() if profile.watchdog_ms} == {"shared", "short"}


def test_p7_31_a_late_feeding_that_is_not_excluded_costs_another_timeout() -> None:
    times = WatchdogTimes(5000, 1000, 800, late_excluded=True)
    assert times.bound_ms == 6800
    assert times._replace(late_excluded=False).bound_ms == 11_800
    assert times.fits(28_000, 6800) and not times.fits(28_000, 6799)
    slow = SHARED.with_watchdog(times._replace(late_excluded=False))
    assert (slow.loop_ms, slow.panic_bound_ms, slow.lease_ms) == (SHARED.loop_ms, 11_800, SHARED.loop_ms + 11_800)
    assert SHARED.with_watchdog(times) == SHARED


@given(st.sampled_from([*KINDS, "anything"]), st.integers(1, 60), st.booleans(), st.integers(0, 3))
def test_p7_31_whatever_the_device_is_its_lease_outlives_deadline_and_reset(
    identity: str, timeout_s: int, held: bool, stages: int
) -> None:
    for profile in FOR_MACHINES:
        times = times_of(identity, timeout_s * 1000, profile, held=held, stages=stages)
        node = profile.with_watchdog(times)
        assert node.loop_ms == profile.loop_ms
        assert node.lease_ms >= node.loop_ms + times.bound_ms
        assert times.granularity_ms >= 1000 and times.fits(node.lease_ms, node.panic_bound_ms)


def test_p7_31_what_is_known_of_a_device() -> None:
    assert times_of("i6300ESB timer", 5000, SHARED, held=True) == (5000, 1000, 800, True)
    assert not times_of("i6300ESB timer", 5000, SHARED, held=False).late_excluded
    assert times_of("iTCO_wdt", 5000, SHARED, held=True).granularity_ms == 6000  # on the second expiry
    unknown = times_of("IPMI", 5000, SHARED, held=True)
    assert not unknown.late_excluded and unknown.granularity_ms == 6000
    assert times_of("IPMI", 5000, SHARED, held=True, stages=1).granularity_ms == 1000
    assert KINDS[SOFTWARE].software


def test_p7_31_each_accepted_renewal_moves_the_deadman_by_all_that_it_gives() -> None:
    vigil = Vigil(SHARED)
    for start_ms in range(0, 4000, SHARED.renew_ms):
        vigil.lease_deadline_us = (start_ms + SHARED.loop_ms) * MS
        assert vigil.turned((start_ms + 50) * MS) == vigil.lease_deadline_us
        assert vigil.turned((start_ms + 60) * MS) is None


# ---- P7.32 feeding ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.lists(st.integers(1, 300_000), min_size=1, max_size=40), st.integers(1, 100_000))
def test_p7_32_it_is_fed_every_third_before_the_deadline_and_never_after(
    timeout_s: int, late_us: list[int], deadline_ms: int
) -> None:
    feeding, now_us, fed_us, deadline_us = Feeding(timeout_s * 1000), 0, [0], deadline_ms * MS
    for late in (*late_us, *[0] * 200):
        turn = feeding.turn(now_us, deadline_us)
        assert turn.timer_us == deadline_us
        assert turn.may == (now_us < deadline_us)
        if turn.due:
            assert now_us < deadline_us
            feeding.fed(now_us)
            fed_us.append(now_us)
        elif turn.may:
            assert now_us - fed_us[-1] <= timeout_s * 1_000_000 // 3
        now_us += feeding.pause_us(now_us, deadline_us) + (late if late < timeout_s * 30_000 else 0)
    gaps = [later - earlier for earlier, later in pairwise(fed_us)]
    assert max(gaps) <= timeout_s * 1_000_000 // 3


def test_p7_32_the_feeder_looks_again_before_a_deadline_that_it_has_seen() -> None:
    feeding = Feeding(60_000)
    feeding.fed(0)
    assert feeding.pause_us(0, 400 * MS) == 100 * MS
    assert feeding.pause_us(0, 1) > 0


# ---- P7.33 armed, then recorded; buried, then closed -----------------------------------------------------------------


def test_p7_33_nothing_is_recorded_before_it_is_armed_nor_closed_before_it_is_buried() -> None:
    armed = Armed("a watchdog", WatchdogTimes(5000, 1000, 800, late_excluded=True), proves=True)
    watch = WatchdogState()
    assert watch.recorded() is None
    watch.asked(armed)
    assert watch.recorded() is None and not watch.may_close(empty=True, buried=True)
    watch.is_armed(armed._replace(proves=False))
    assert watch.recorded() == armed._replace(proves=False)
    for empty, buried in ((False, False), (True, False), (False, True)):
        assert not watch.may_close(empty=empty, buried=buried)
    assert watch.may_close(empty=True, buried=True)
    watch.closed()
    assert watch.recorded() is None and watch.stage is Stage.CLOSED


# ---- P7.34 the setting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("", None),
        ("none", None),
        ("auto", WatchdogSetting("auto")),
        ("softdog", WatchdogSetting("softdog")),
        ("/dev/watchdog1", WatchdogSetting("/dev/watchdog1")),
        ("auto, trusted, stages=2", WatchdogSetting("auto", trusted=True, stages=2)),
        ("/dev/watchdog0,kept", WatchdogSetting("/dev/watchdog0", kept=True)),
    ],
)
def test_p7_34_a_setting_is_read_and_written(text: str, setting: WatchdogSetting | None) -> None:
    assert watchdogs.parse(text) == setting
    assert watchdogs.parse(watchdogs.text_of(setting)) == setting


@pytest.mark.parametrize(
    "text",
    ["watchdog0", "/etc/passwd", "/dev/../etc", "auto,fast", "auto,stages=0", "auto,stages=9", "none,kept", "a" * 500],
)
def test_p7_34_what_names_no_watchdog_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write none, auto, softdog or a path"):
        watchdogs.parse(text)


# ---- P7.35 other times while it runs ---------------------------------------------------------------------------------

_times = st.tuples(st.integers(1500, 40_000), st.integers(1, 30))


@given(_times, _times)
def test_p7_35_what_is_in_force_is_never_more_than_any_record_says(old: tuple[int, int], new: tuple[int, int]) -> None:
    before, after = (_profile(*each) for each in (old, new))
    retiming, now_us = Retiming(before, after), 0
    seen = [before.lease_ms]  # what records have said so far

    def in_force_ms() -> int:
        times = WatchdogTimes(retiming.timeout_ms, 1000, 800, late_excluded=True)
        return retiming.span_ms + times.bound_ms

    assert retiming.in_record == before and in_force_ms() <= before.lease_ms
    deadline_us = retiming.lessened(before.loop_ms * MS, now_us)
    if deadline_us is None:
        assert after.loop_ms < before.loop_ms
        return
    assert deadline_us == min(before.loop_ms, after.loop_ms) * MS
    assert retiming.order is Order.READ_BACK and retiming.in_record == before
    assert in_force_ms() <= min(before.lease_ms, after.lease_ms)
    assert not retiming.read_back(retiming.timeout_ms + 1) and not retiming.read_back(-1)
    assert retiming.in_record == before
    assert retiming.read_back(retiming.timeout_ms)
    seen.append(retiming.in_record.lease_ms)
    assert retiming.in_record == after and in_force_ms() <= min(seen)
    retiming.recorded()
    assert in_force_ms() <= after.lease_ms and retiming.span_ms == after.loop_ms
    retiming.extended()
    assert in_force_ms() == after.lease_ms


def _profile(deadline_ms: int, timeout_s: int) -> Profile:
    times = WatchdogTimes(timeout_s * 1000, 1000, 800, late_excluded=True)
    return SHARED._replace(lease_ms=deadline_ms + 100, panic_bound_ms=100).with_watchdog(times)


def test_p7_35_a_smaller_deadline_waits_for_a_moment_at_which_it_is_not_over() -> None:
    retiming = Retiming(SHARED, SHORT)
    assert retiming.lessened(SHARED.loop_ms * MS - 500_000, 0) is not None
    stalled = Retiming(SHARED, SHORT)
    assert stalled.lessened(SHARED.loop_ms * MS - 20_000_000, 0) is None
    assert stalled.order is Order.LESSEN and stalled.span_ms == SHARED.loop_ms
