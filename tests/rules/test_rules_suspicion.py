"""Detection and mastership that do not wait for long leases (PROTOCOL 2.15, 4.13, 4.14)."""

import pytest

from core_cluster import CoreCluster
from muster.core.inputs import PeerConnected, StripRead
from muster.core.leases.lease import LeaseWatch
from muster.core.leases.observer import Observer
from muster.core.leases.predecessor import Here, Verdict, settled
from muster.core.links.links import Links
from muster.core.membership.membership import SILENCE, SUSPICION
from muster.records.fencing import FenceMethod, FenceStep, SetFenceDevice, SetFenceMethods
from muster.records.levels import NodeState
from muster.records.members import EvictNode
from muster.records.registers import (
    Deadman,
    Lease,
    LeaseState,
    Life,
    ProofKind,
    RegisterKind,
    Strip,
    View,
    blank_register,
)
from muster.records.services import ApplyServices, Definition
from muster.records.terms import NO_TERM, Stamp
from muster.records.timing import FAST, InconsistentProfile, Profile, check, with_drift_ms

MS = 1000
LONG = check(
    FAST._replace(
        name="long",
        lease_ms=6000,
        panic_bound_ms=1200,
        heartbeat_ms=150,
        suspect_ms=900,
        mastership_ms=800,
        boot_grace_ms=12_000,
    )
)
X_MS = with_drift_ms(LONG.suspect_ms)
SLACK_MS = 2 * LONG.read_ms + LONG.heartbeat_ms  # until a read shows it, and a round of decisions follows
INCARNATION = 5


def cluster_of_machines(profile: Profile = LONG, *, fenced: bool = True) -> CoreCluster:
    """n0, n1, n2 on machines of their own, with long leases and a fence agent; n2 has a service; n0 leads."""
    cluster = CoreCluster(3, profile, deadman=Deadman.NONE)
    cluster.shared = True
    cluster.boot(0)
    cluster.until_joined(0)
    cluster.boot(1, 2)
    cluster.until_joined(0, 1, 2)
    cluster.do(0, ApplyServices((Definition("web", ordered=("n2", "n0", "n1"), start_command=("/bin/start",)),)))
    cluster.until("it runs", lambda: cluster.service().node == 2)
    if fenced:
        cluster.do(0, SetFenceDevice("pdu", "fence_x"))
        for node in range(3):
            step = FenceStep("pdu", (("plug", str(node)),))
            cluster.do(0, SetFenceMethods(f"n{node}", (FenceMethod("power", "off", (step,)),)))
    cluster.run(2 * LONG.read_ms)
    return cluster


def turned_off(cluster: CoreCluster) -> set[int]:
    """The nodes that an agent has been asked to turn off."""
    return {call.node for _, call in cluster.fence_calls if call.action == "off"}


def lease_of(node: int, beat: int, incarnation: int = INCARNATION) -> Lease:
    stamp = Stamp(node, incarnation, NO_TERM, beat)
    return Lease(stamp, LeaseState.LIVE, Deadman.NONE, LONG.lease_ms, LONG.panic_bound_ms, bytes(16), "")


class Watcher:
    """A watch of one lease, and its reads every `read_ms`."""

    def __init__(self) -> None:
        self.watch, self.now_us, self.beat = LeaseWatch(LONG.gap_ms, timers_prove=False), 1_000_000, 1

    def read(self, for_ms: int, *, beats: bool = False) -> LeaseWatch:
        """Read for so long, the last time at the end of it."""
        until_us = self.now_us + for_ms * MS
        while self.now_us < until_us:
            self.beat += beats
            self.watch.observe(lease_of(1, self.beat), self.now_us, self.now_us)
            self.now_us += LONG.read_ms * MS
        self.now_us = until_us
        self.watch.observe(lease_of(1, self.beat), self.now_us, self.now_us)
        return self.watch

    def gap(self, for_ms: int) -> None:
        """No read succeeds."""
        self.now_us += for_ms * MS

    def is_suspect(self) -> bool:
        """Whether its beats have been silent for X."""
        return self.watch.is_suspect(INCARNATION, LONG.suspect_ms)


# ---- P4.13 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [2, 0])
def test_p4_13_who_is_silent_in_the_store_and_on_all_links_is_fenced_long_before_its_lease_is_over(victim: int) -> None:
    cluster = cluster_of_machines()
    began_us, incarnation = cluster.now_us, cluster.database.member(victim).incarnation
    cluster.kill(victim)
    cluster.until("it is proven dead", lambda: cluster.database.member(victim).last_proof is not None)
    assert LONG.suspect_ms - LONG.renew_ms <= (cluster.now_us - began_us) / MS <= X_MS + SLACK_MS + LONG.renew_ms
    proof = cluster.database.member(victim).last_proof
    assert proof is not None
    assert (proof.kind, proof.incarnation) == (ProofKind.FENCE_AGENT, incarnation)
    if victim == 2:
        cluster.until("its service runs elsewhere", lambda: cluster.service().node == 0)


def test_p4_13_without_an_agent_suspicion_freezes_and_nothing_is_recovered_before_a_persons_word() -> None:
    cluster = cluster_of_machines(fenced=False)
    cluster.kill(2)
    cluster.until("it is condemned", lambda: cluster.database.member(2).eviction, within_ms=X_MS + SLACK_MS)
    eviction = cluster.database.member(2).eviction
    assert eviction is not None
    assert (eviction.cause, eviction.silent) == (SUSPICION, True)
    cluster.run(2 * LONG.lease_ms)
    assert cluster.service().node == 2
    assert cluster.database.member(2).last_proof is None
    cluster.do(0, EvictNode("n2", "looked", confirmed_dead=True))
    cluster.until("its service runs elsewhere", lambda: cluster.service().node == 0)


def test_p4_13_silent_in_the_store_but_heard_waits_for_the_lease() -> None:
    cluster = cluster_of_machines()
    cluster.hang_guard(2)
    cluster.run(LONG.lease_ms - LONG.renew_ms)
    assert cluster.database.member(2).eviction is None
    cluster.until("it is condemned", lambda: cluster.database.member(2).eviction)
    eviction = cluster.database.member(2).eviction
    assert eviction is not None
    assert eviction.cause == SILENCE


def test_p4_13_not_heard_but_beating_is_not_suspected() -> None:
    cluster = cluster_of_machines()
    cluster.pause_daemon(2)  # its guard beats
    cluster.run(3 * X_MS)
    assert cluster.database.member(2).eviction is None
    assert not turned_off(cluster)


def test_p4_13_with_the_lease_for_x_nothing_is_sooner_than_before() -> None:
    cluster = cluster_of_machines(LONG._replace(suspect_ms=0))
    cluster.kill(2)
    cluster.run(LONG.lease_ms - LONG.renew_ms)
    assert cluster.database.member(2).eviction is None
    cluster.until("it is condemned", lambda: cluster.database.member(2).eviction)


def test_p4_13_the_same_beat_for_x_in_a_chain_that_has_seen_it_advance() -> None:
    seen = Watcher()
    seen.read(300, beats=True)
    seen.read(X_MS - LONG.read_ms - 1)
    assert not seen.is_suspect()
    seen.read(LONG.read_ms + 1)
    assert seen.is_suspect()
    assert not seen.watch.ran_out(INCARNATION)
    assert not seen.watch.is_suspect(INCARNATION - 1, LONG.suspect_ms)


def test_p4_13_who_was_never_seen_to_beat_waits_for_its_lease() -> None:
    seen = Watcher()
    seen.read(3 * X_MS)
    assert not seen.is_suspect()
    seen.read(with_drift_ms(LONG.lease_ms))
    assert seen.watch.ran_out(INCARNATION)


def test_p4_13_after_a_gap_x_counts_anew_and_as_much_longer_as_the_gap_was_until_a_beat_is_seen() -> None:
    seen = Watcher()
    seen.read(300, beats=True)
    seen.gap(2000)
    seen.read(X_MS + 1)  # the gap's last read is at most a read before it
    assert not seen.is_suspect()
    seen.read(1900)
    assert not seen.is_suspect()
    seen.read(200)
    assert seen.is_suspect()
    seen.read(LONG.read_ms, beats=True)
    seen.read(X_MS + LONG.read_ms)
    assert seen.is_suspect()


def test_p4_13_a_second_gap_takes_nothing_of_the_first_away() -> None:
    seen = Watcher()
    seen.read(300, beats=True)
    seen.gap(2000)
    seen.read(LONG.read_ms)
    seen.gap(LONG.gap_ms + 1)
    seen.read(X_MS + 1000)
    assert not seen.is_suspect()


class Eyes:
    """Node 0's observer and links, with what nodes 1 and 2 have in the store."""

    def __init__(self) -> None:
        self.now_us, self.beat, self.view, self.heard = 1_000_000, 1, 1, frozenset[int]()
        self.links = Links(0, LONG, self.now_us, 0)
        self.observer = Observer(0, INCARNATION, LONG, self._strip(), one_machine=False, started_us=self.now_us)

    def _strip(self) -> Strip:
        claim, marks = (blank_register(kind, 0) for kind in (RegisterKind.CLAIM, RegisterKind.MARKS))
        stamps = [Stamp(node, INCARNATION, NO_TERM, self.view) for node in range(3)]
        views = tuple(View(stamp, self.heard if stamp.owner == 1 else frozenset()) for stamp in stamps)
        leases = (lease_of(0, self.now_us), lease_of(1, self.now_us), lease_of(2, self.beat))
        return Strip(leases, (claim,) * 3, views, (marks,) * 3)  # type: ignore[arg-type]

    def read(self, for_ms: int, *, beats: bool = False, views: bool = True) -> None:
        """Read for so long."""
        until_us = self.now_us + for_ms * MS
        while self.now_us < until_us:
            self.now_us += LONG.read_ms * MS
            self.beat, self.view = self.beat + beats, self.view + views
            self.observer.see(StripRead(1, self._strip(), self.now_us, self.now_us))
            self.links.see_views(self.observer.strip, self.now_us)

    def suspects(self) -> bool:
        """Whether node 0 suspects node 2."""
        return self.observer.is_suspect(2, INCARNATION, self.links, self.now_us)


def test_p4_13_a_frame_within_x_stands_against_it() -> None:
    eyes = Eyes()
    eyes.links.take(PeerConnected(2, INCARNATION), None, eyes.now_us, None)  # type: ignore[arg-type]
    eyes.read(300, beats=True)
    eyes.read(X_MS)
    eyes.links.hear(2, eyes.now_us)
    eyes.read(LONG.suspect_ms - 2 * LONG.read_ms)
    assert not eyes.suspects()
    eyes.read(3 * LONG.read_ms)
    assert eyes.suspects()


def test_p4_13_so_does_the_view_of_a_member_that_hears_it_as_long_as_that_is_written() -> None:
    eyes = Eyes()
    eyes.heard = frozenset({2})
    eyes.read(300, beats=True)
    eyes.read(3 * X_MS)
    assert not eyes.suspects()
    eyes.read(LONG.suspect_ms - 2 * LONG.read_ms, views=False)
    assert not eyes.suspects()
    eyes.read(3 * LONG.read_ms, views=False)
    assert eyes.suspects()  # the witness says nothing any more
    eyes.heard = frozenset()
    eyes.read(LONG.read_ms)
    assert eyes.suspects()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"suspect_ms": 400}, "3 * renew_ms <= suspect_ms"),
        ({"suspect_ms": 500}, "2 * gap_ms <= suspect_ms"),
        ({"suspect_ms": 590}, "view_ms + read_ms <= suspect_ms"),
        ({"link_loss_beats": 7}, "link_loss_beats * heartbeat_ms <= suspect_ms"),
        ({"mastership_ms": 530}, "2 * renew_ms + 2 * read_ms <= mastership_ms"),
        ({"gap_ms": 410}, "2 * gap_ms <= mastership_ms"),
    ],
)
def test_p7_8_a_single_late_beat_read_or_view_makes_nobody_suspect(changed: dict[str, int], words: str) -> None:
    with pytest.raises(InconsistentProfile) as error:
        check(LONG._replace(**changed))  # type: ignore[arg-type]
    assert words in str(error.value)


# ---- P2.15 ---------------------------------------------------------------------------------------------------------


def test_p2_15_another_leads_long_before_the_lease_of_the_dead_master_is_over() -> None:
    cluster = cluster_of_machines()
    began_us = cluster.now_us
    cluster.kill(0)
    cluster.until("another leads", lambda: 1 in cluster.masters())
    assert (cluster.now_us - began_us) / MS <= with_drift_ms(LONG.mastership_ms) + 3 * LONG.read_ms


def test_p2_15_a_master_whose_beats_stall_stops_before_anybody_claims_and_its_node_lives_on() -> None:
    cluster = cluster_of_machines()
    incarnation = cluster.database.member(0).incarnation
    cluster.hang_guard(0)
    cluster.until("it has stopped", lambda: 0 not in cluster.masters(), within_ms=LONG.mastership_ms + LONG.read_ms)
    assert cluster.masters() == []
    cluster.until("another leads", cluster.masters)
    assert 0 not in cluster.masters()
    cluster.run(LONG.suspect_ms)
    cluster.wake_guard(0)  # before the lease of its node is over
    cluster.run(LONG.lease_ms)
    assert cluster.lives[0].incarnation == incarnation
    assert cluster.database.member(0).state is NodeState.JOINED
    assert cluster.database.member(0).eviction is None
    assert not turned_off(cluster)
    assert cluster.masters() == [1]


def test_p2_15_a_master_whose_reads_never_end_stops_by_its_own_clock_before_anybody_claims() -> None:
    cluster = cluster_of_machines()
    cluster.hang_guard(0)
    cluster.stalled, cluster.holds_store = {0}, lambda node, _effect: node == 0
    cluster.until("it has stopped", lambda: 0 not in cluster.masters(), within_ms=LONG.mastership_ms + SLACK_MS)
    assert cluster.masters() == []
    cluster.until("another leads", cluster.masters)


@pytest.mark.parametrize("after_ms", range(0, 3 * LONG.mastership_ms, 170))
def test_p2_15_beats_that_go_on_at_any_moment_leave_one_master(after_ms: int) -> None:
    cluster = cluster_of_machines(fenced=False)
    cluster.hang_guard(0)
    cluster.run(after_ms)
    cluster.wake_guard(0)
    cluster.run(3 * LONG.mastership_ms)  # each step looks whether there are two (`CoreCluster._take`)
    assert len(cluster.masters()) == 1
    assert set(cluster.lives) == {0, 1, 2}


def test_p2_15_it_counts_from_the_read_that_still_showed_the_beat_before() -> None:
    watch = LeaseWatch(LONG.gap_ms, timers_prove=False)
    watch.observe(lease_of(1, 1), 1_000_000, 1_100_000)
    assert watch.held_until_us(LONG.mastership_ms) == 0
    watch.observe(lease_of(1, 2), 1_200_000, 1_300_000)
    assert watch.held_until_us(LONG.mastership_ms) == 1_000_000 + LONG.mastership_ms * MS
    watch.observe(lease_of(1, 2), 1_400_000, 1_500_000)
    watch.observe(lease_of(1, 3), 1_600_000, 1_700_000)
    assert watch.held_until_us(LONG.mastership_ms) == 1_400_000 + LONG.mastership_ms * MS


def test_p2_15_a_claim_is_waited_for_until_the_same_beat_was_read_for_m_plus_drift() -> None:
    eyes = Eyes()
    eyes.read(300, beats=True)
    eyes.read(LONG.mastership_ms - LONG.read_ms)
    assert not eyes.observer.is_out(2, INCARNATION)
    eyes.read(2 * LONG.read_ms)
    assert eyes.observer.is_out(2, INCARNATION)
    assert eyes.observer.is_live(2)  # its node may live on
    assert not eyes.observer.is_dead(2, INCARNATION)
    eyes.observer.lose_sight(eyes.now_us)
    eyes.read(LONG.read_ms)
    assert not eyes.observer.is_out(2, INCARNATION)


def test_p2_15_on_one_kernel_a_mastership_lasts_as_long_as_its_nodes_lease() -> None:
    cluster = CoreCluster(2, LONG)
    cluster.boot(0)
    cluster.until_joined(0)
    cluster.boot(1)
    cluster.until_joined(0, 1)
    cluster.hang_guard(0)
    cluster.run(LONG.lease_ms - LONG.renew_ms)
    assert cluster.masters() == [0]


# ---- P4.14 ---------------------------------------------------------------------------------------------------------


def power_cut(cluster: CoreCluster) -> int:
    """All nodes lose their power; when (us)."""
    for node in list(cluster.lives):
        cluster.kill(node)
    return cluster.now_us


def test_p4_14_whoever_is_back_first_turns_off_nobody_that_may_be_booting() -> None:
    cluster = cluster_of_machines()
    power_cut(cluster)
    cluster.boot(1)
    cluster.run(LONG.lease_ms + 1000)
    assert cluster.masters() == [1]
    assert cluster.database.member(2).eviction  # nobody waits for them
    cluster.boot(0, 2)
    cluster.until("all are back", lambda: cluster.is_quiet(0, 1, 2))
    cluster.until("its service runs", lambda: cluster.service().node in (0, 1, 2))
    assert not turned_off(cluster)


def test_p4_14_who_does_not_come_back_is_turned_off_once_the_time_is_over() -> None:
    cluster = cluster_of_machines()
    power_cut(cluster)
    cluster.boot(0, 1)
    began_us = cluster.now_us
    cluster.until("it is turned off", lambda: turned_off(cluster) == {2})
    assert (cluster.now_us - began_us) / MS >= LONG.boot_grace_ms
    cluster.until("its service runs elsewhere", lambda: cluster.service().node == 0)


def test_p4_14_who_was_seen_since_is_turned_off_at_once_and_a_daemon_started_anew_gives_no_grace() -> None:
    cluster = cluster_of_machines()
    power_cut(cluster)
    cluster.boot(0, 1, 2)
    cluster.until("all are back", lambda: cluster.is_quiet(0, 1, 2))
    cluster.run(500)
    began_us = cluster.now_us
    cluster.kill(2)
    cluster.until("it is turned off", lambda: turned_off(cluster) == {2})
    assert (cluster.now_us - began_us) / MS <= X_MS + SLACK_MS
    again = cluster_of_machines()
    again.kill(2)
    for node in (0, 1):
        again.restart_daemon(node)
    began_us = again.now_us
    again.until("it is turned off", lambda: turned_off(again) == {2})
    assert (again.now_us - began_us) / MS <= with_drift_ms(LONG.lease_ms) + SLACK_MS + LONG.gap_ms


# ---- P7.6 ----------------------------------------------------------------------------------------------------------

BOOT, LATER_BOOT, MACHINE = bytes(range(16)), bytes(range(1, 17)), bytes(range(2, 18))


@pytest.mark.parametrize(
    ("here", "verdict"),
    [
        (Here(LATER_BOOT, MACHINE, 0), Verdict.GONE),
        (Here(BOOT, MACHINE, INCARNATION), Verdict.WAIT),  # the kernel that it ran under: nothing is inferred
        (Here(LATER_BOOT, bytes(16), 0), Verdict.WAIT),  # another machine
    ],
)
def test_p7_6_a_boot_does_not_wait_for_the_long_lease_of_an_earlier_boot_of_its_machine(
    here: Here, verdict: Verdict
) -> None:
    lease = lease_of(1, 1)._replace(deadman=Deadman.PID_NAMESPACE, boot_id=BOOT, life=Life(MACHINE, 1, 1, 77, 1))
    watch = LeaseWatch(LONG.gap_ms, timers_prove=False)
    found = {}
    for now_ms in range(0, LONG.lease_ms, LONG.read_ms):
        watch.observe(lease, now_ms * MS, now_ms * MS)
        found[now_ms] = settled(lease, watch, here, vouched=False, asked=False, suspect_ms=LONG.suspect_ms)
    assert {found[each] for each in found if each < X_MS} == {Verdict.WAIT}
    assert {found[each] for each in found if each >= X_MS} == {verdict}
    assert settled(lease, watch, here, vouched=True, asked=False) is Verdict.WAIT  # without such a time: the lease
