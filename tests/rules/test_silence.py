"""Leading needs silence, not proof of death: the rules P2.12 to P2.14 and P4.7 to P4.9 (SPEC 2.3, 2.6).

Nothing stands behind the leases of these clusters: only an operator's word proves that a silent node has stopped.
"""

import itertools

import pytest
from msgspec.structs import replace
from test_mastership import alive, checking_machine, claim_of, claiming_machine, master_machine, strip_of, withdrawn

from core_cluster import FILES, LOCKS, CoreCluster
from muster.core.draft import Draft, Facts, is_silent
from muster.core.effects import AppendFrame, Panic
from muster.core.events.resident import holding
from muster.core.freezing import is_frozen
from muster.core.leases.lease import LeaseWatch
from muster.core.mastership import machine as mastership
from muster.core.mastership.tenure import Tenure, patience_of
from muster.core.membership.membership import condemn_the_silent
from muster.core.node import insight
from muster.core.nodes import authority
from muster.core.operations.clients import Clients
from muster.core.services import round as rounds
from muster.core.services.conditions import MAXIMUM_TAKEOVERS, preferred_node, why_frozen
from muster.core.services.round import Round
from muster.core.services.table import advance as advance_services
from muster.core.transitions.transition import advance, barrier_conflict, is_past_first_barrier, told_at_level
from muster.records.database import Database
from muster.records.levels import Barriers, Level, NodeState, TransitionKind
from muster.records.members import Eviction, EvictNode, LeaveNode, Member
from muster.records.messages import Append, Report, Response
from muster.records.nodes import Cluster, NodeConfig, Rotation
from muster.records.registers import ClaimFlag, Deadman, Lease, LeaseState
from muster.records.services import (
    ApplyServices,
    Definition,
    DeregisterService,
    FailService,
    RegisterService,
    Service,
    ServiceState,
    Takeover,
    TransferService,
)
from muster.records.terms import NO_TERM, Stamp, Term
from muster.records.timing import FAST, with_drift_ms
from muster.records.transitions import Acknowledgement, Transition
from muster.records.versions import HIGHEST, KERNELS_WORD

MS = 1000
BOUND_US = with_drift_ms(FAST.lease_ms) * MS
SILENT = Eviction(5, "its lease has run out", silent=True)
WEB = ApplyServices(
    tuple(
        Definition(name, ordered=(node,), start_command=("/bin/start",), stop_command=("/bin/stop",))
        for name, node in (("on0", "n0"), ("on1", "n1"), ("on2", "n2"))
    )
)


def unproven_cluster(nodes: int = 3, levels: tuple[Level, ...] = (LOCKS,), version: int = HIGHEST) -> CoreCluster:
    """All nodes have joined, each has a service of its own; no lease has a deadman behind it; n0 is the master."""
    cluster = CoreCluster(nodes, deadman=Deadman.NONE, active_version=version)
    cluster.boot(0, levels=levels)
    cluster.until_joined(0)
    cluster.boot(*range(1, nodes), levels=levels)
    cluster.until_joined(*range(nodes))
    cluster.do(0, WEB)
    registered = ServiceState.REGISTERED
    cluster.until("all run", lambda: all(each.state is registered for each in cluster.database.services.values()))
    assert cluster.master == 0
    return cluster


def until_led_without(cluster: CoreCluster, *gone: int) -> int:
    """Go on until a node that is not of these leads; which."""
    cluster.until("another leads", lambda: set(cluster.masters()) - set(gone), within_ms=3000)
    (master,) = set(cluster.masters()) - set(gone)
    return master


def lease_of(beat: int, incarnation: int = 5, state: LeaseState = LeaseState.LIVE) -> Lease:
    return Lease(Stamp(1, incarnation, NO_TERM, beat), state, Deadman.NONE, FAST.lease_ms, 120, bytes(16), "")


def watched(*reads: tuple[int, Lease | None]) -> LeaseWatch:
    """A watch that has made these reads, each at its moment (us)."""
    watch = LeaseWatch(FAST.gap_ms, timers_prove=False)
    for at_us, lease in reads:
        watch.observe(lease, at_us, at_us)
    return watch


def steadily(lease: Lease | None, from_us: int, until_us: int) -> list[tuple[int, Lease | None]]:
    return [(at_us, lease) for at_us in range(from_us, until_us + 1, FAST.read_ms * MS)]


# ---- P2.12 run out ---------------------------------------------------------------------------------------------------


def test_p2_12_a_lease_has_run_out_after_lease_plus_drift_of_the_same_beat_and_that_proves_nothing() -> None:
    reads = steadily(lease_of(7), 0, BOUND_US - 1)
    assert not watched(*reads).ran_out(5)
    late = watched(*reads, (BOUND_US, lease_of(7)))
    assert late.ran_out(5)
    assert late.evidence(5) is None  # no deadman
    assert not watched(*reads, (BOUND_US, lease_of(8))).ran_out(5)


@pytest.mark.parametrize("gap", ["unknown", "unread"])
def test_p2_12_unknown_is_never_silent_and_a_gap_begins_the_count_anew(gap: str) -> None:
    half_us = BOUND_US // 2
    reads = steadily(lease_of(7), 0, half_us)
    between: list[tuple[int, Lease | None]] = [(half_us + 1, None)] if gap == "unknown" else []
    again_us = half_us + (2 if gap == "unknown" else (FAST.gap_ms + FAST.read_ms) * MS)
    later = steadily(lease_of(7), again_us, again_us + BOUND_US - 1)
    assert not watched(*reads, *between, *later).ran_out(5)
    assert watched(*reads, *between, *later, (again_us + BOUND_US, lease_of(7))).ran_out(5)
    assert not watched(*steadily(None, 0, 3 * BOUND_US)).ran_out(5)


def test_p2_12_a_later_incarnation_or_a_tombstone_is_an_end_at_once_and_an_older_one_says_nothing() -> None:
    assert watched((0, lease_of(1, incarnation=6))).ran_out(5)
    assert watched((0, lease_of(1, state=LeaseState.PANICKED))).ran_out(5)
    assert not watched(*steadily(lease_of(1, incarnation=4), 0, 3 * BOUND_US)).ran_out(5)
    assert not watched(*steadily(lease_of(1, 0, LeaseState.NEVER), 0, 3 * BOUND_US)).ran_out(0)


@pytest.mark.parametrize("mutated", [False, True])
def test_p2_12_a_member_whose_lease_cannot_be_read_is_not_condemned(
    mutated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = unproven_cluster()
    if mutated:  # silence counted through reads that showed nothing: the rule is what keeps n2
        observe = LeaseWatch.observe

        def counting(watch: LeaseWatch, seen: Lease | None, started_us: int, finished_us: int) -> None:
            observe(watch, watch.lease if seen is None else seen, started_us, finished_us)

        monkeypatch.setattr(LeaseWatch, "observe", counting)
    whole = cluster.strip
    monkeypatch.setattr(cluster, "strip", lambda: whole()._replace(leases=(*whole().leases[:2], None)))
    cluster.run(4 * FAST.lease_ms)
    assert is_silent(cluster.database.member(2)) is mutated


def test_p2_12_a_survivor_leads_though_nothing_proves_that_the_master_has_stopped() -> None:
    cluster = unproven_cluster()
    before_us = cluster.now_us
    cluster.kill(0)
    master = until_led_without(cluster, 0)
    assert cluster.now_us - before_us <= BOUND_US + (3 * FAST.read_ms + 2 * FAST.claim_stagger_ms) * MS
    assert master in (1, 2)
    assert cluster.state(0) is NodeState.JOINED  # not forced out: nothing is proven
    cluster.run(20 * FAST.lease_ms)
    assert cluster.masters() == [master]  # it leads for good


def test_p2_12_a_claimer_goes_on_beside_the_lower_claim_of_one_whose_lease_has_run_out() -> None:
    lower = claim_of(1, Term(3, 1), ClaimFlag.CLAIMING)
    state = claiming_machine(lower)
    out = {(1, lower.stamp.incarnation)}
    assert isinstance(
        mastership.read(state, strip_of(state.claim, lower), lambda *life: life in out)[1], mastership.Load
    )
    assert mastership.read(state, strip_of(state.claim, lower), alive)[1] == mastership.Read(again=True)


# ---- P2.13 the own lease ---------------------------------------------------------------------------------------------


def test_p2_13_a_node_whose_own_lease_has_run_out_does_not_claim() -> None:
    cluster = unproven_cluster(2)
    cluster.hang_guard(1)
    cluster.run(100)
    cluster.kill(0)
    cluster.run(20 * FAST.lease_ms)
    assert cluster.masters() == []
    assert 1 in cluster.lives


def test_p2_13_a_master_whose_own_lease_has_run_out_withdraws_and_another_leads_for_good() -> None:
    cluster = unproven_cluster()
    cluster.hang_guard(0)
    master = until_led_without(cluster, 0)
    assert cluster.masters() == [master]
    assert [text for _, node, text in cluster.traces("superseded") if node == 0]
    assert not cluster.do(master, DeregisterService("on1")).refused


def test_p2_13_with_two_guards_that_hang_the_third_node_leads() -> None:
    cluster = unproven_cluster()
    cluster.hang_guard(0)
    cluster.hang_guard(1)
    assert until_led_without(cluster, 0, 1) == 2
    cluster.until("both are condemned", lambda: all(is_silent(cluster.database.member(node)) for node in (0, 1)))


def test_p2_13_the_own_lease_must_be_seen_to_move_and_what_was_not_read_is_no_advance() -> None:
    assert not watched(*steadily(lease_of(7), 0, BOUND_US)).advances(5)  # never seen to move
    moved = [(0, lease_of(7)), (1000, lease_of(8))]
    assert watched(*moved).advances(5)
    assert not watched(*moved).advances(6)
    assert watched(*moved, (1000 + BOUND_US - 1, lease_of(8))).advances(5)  # a gap between reads
    for between in ((500_000, None), (500_000, lease_of(8))):
        assert not watched(*moved, between, (1000 + BOUND_US, lease_of(8))).advances(5)
    assert not watched(*moved, (2000, lease_of(9, state=LeaseState.PANICKED))).advances(5)


@pytest.mark.parametrize("after_ms", range(0, 4 * FAST.lease_ms, 333))
def test_p2_13_a_guard_that_wakes_at_any_moment_leaves_one_master(after_ms: int) -> None:
    cluster = unproven_cluster()
    cluster.hang_guard(0)
    cluster.run(after_ms)
    wakes = 0 in cluster.lives  # it has not heard yet that it is condemned
    if wakes:
        cluster.wake_guard(0)
    cluster.until("one leads", lambda: len(cluster.masters()) == 1)
    cluster.run(3 * FAST.lease_ms)
    assert len(cluster.masters()) == 1
    if wakes and 0 not in cluster.lives:
        cluster.until("it is out: it wrote a tombstone", lambda: cluster.state(0) is NodeState.INACTIVE)


def test_p2_13_whatever_it_waited_for_a_read_that_shows_the_own_lease_run_out_ends_the_tenure() -> None:
    for state in (claiming_machine(withdrawn(1)), checking_machine()):
        _, action = mastership.read(state, strip_of(state.claim, withdrawn(1)), alive, may_lead=False)
        assert isinstance(action, mastership.Write)
        assert action.claim.flag is ClaimFlag.WITHDRAWN
    master = master_machine()
    _, withdrawal = mastership.observe(master, strip_of(master.claim, withdrawn(1)), may_lead=False)
    assert isinstance(withdrawal, mastership.Write)


def test_p2_13_the_engines_read_after_an_append_decides_only_while_the_own_lease_has_not_run_out() -> None:
    own = checking_machine().claim
    tenure = Tenure(own, own.stamp.incarnation, 1000, itertools.count(1), patience_of(FAST))
    tenure.state = checking_machine()._replace(phase=mastership.Phase.COMMIT_WRITE)
    tenure.done(1, (own, withdrawn(1)), alive, may_lead=False)
    assert tenure.drain()[1] == []


# ---- P2.14 what an old master may still do ---------------------------------------------------------------------------


def test_p2_14_what_an_old_master_says_is_not_listened_to_once_a_later_one_was_asked() -> None:
    clients = Clients()
    clients.add("x", DeregisterService("web"))
    clients.asked("x", Term(4, 0))
    clients.asked("x", Term(5, 1))
    clients.answered(Response("x", Term(4, 0), 0, True, "there is no service web"))
    assert clients.due(100) == []
    clients.answered(Response("x", Term(5, 1), 7, False, "done"))
    assert [reply.refused for reply in clients.due(100)] == [False]


def test_p2_14_an_old_master_decides_nothing_and_its_messages_change_nothing() -> None:
    cluster = unproven_cluster()
    cluster.holds_store = lambda node, effect: node == 0 and isinstance(effect, AppendFrame)
    cluster.ask(0, DeregisterService("on1"))
    cluster.run(10)
    cluster.hang_guard(0)
    cluster.pause_daemon(0)
    master = until_led_without(cluster, 0)
    cluster.until("it is condemned", lambda: is_silent(cluster.database.member(0)))
    told = len(cluster.sent(Append, 0))
    cluster.release_store()  # its frame becomes durable behind a mark that counts no more
    cluster.resume_daemon(0)
    cluster.run(500)
    assert cluster.masters() == [master]
    assert len(cluster.sent(Append, 0)) == told


# ---- P4.7 condemning the silent --------------------------------------------------------------------------------------


def test_p4_7_the_first_entry_of_a_term_condemns_every_member_whose_lease_has_run_out() -> None:
    cluster = unproven_cluster(4)
    cluster.kill(3)
    cluster.run(100)
    cluster.kill(0)
    master = until_led_without(cluster, 0, 3)
    before = cluster.core(master).database.index
    cluster.until("its first entry", lambda: cluster.database.index > before)
    assert [is_silent(cluster.database.member(node)) for node in range(4)] == [True, False, False, True]
    assert {cluster.state(node) for node in (0, 3)} == {NodeState.JOINED}


def test_p4_7_a_member_that_falls_silent_later_is_condemned_and_its_guard_stops_it_when_it_wakes() -> None:
    cluster = unproven_cluster()
    cluster.pause_daemon(2)
    cluster.hang_guard(2)
    cluster.until("n2 is condemned", lambda: is_silent(cluster.database.member(2)), within_ms=2000)
    assert 2 in cluster.lives
    cluster.wake_guard(2)
    assert 2 not in cluster.lives
    cluster.until("n2 is out", lambda: cluster.state(2) is NodeState.INACTIVE)


def test_p4_7_a_daemon_that_reads_that_its_node_is_condemned_for_its_silence_panics() -> None:
    cluster = unproven_cluster()
    cluster.hang_guard(2)
    cluster.until("n2 ends", lambda: 2 not in cluster.lives)
    assert [item.effect.cause for item in cluster.history if isinstance(item.effect, Panic) and item.node == 2]


def test_p4_7_not_before_version_3_is_active() -> None:
    cluster = unproven_cluster(version=KERNELS_WORD - 1)
    cluster.kill(2)
    cluster.run(5 * FAST.lease_ms)
    assert cluster.database.member(2).eviction is None


def test_p4_7_who_is_condemned_already_keeps_the_cause_and_the_master_never_condemns_itself() -> None:
    members = {node: Member(node, NodeState.JOINED, 5) for node in range(3)}
    members[1] = replace(members[1], eviction=Eviction(5, "by hand"))
    draft = Draft(database_of(members))
    condemn_the_silent(draft, facts_of(0, ran_out={0, 1}))
    assert draft.member(0).eviction is None
    assert draft.member(1).eviction == Eviction(5, "by hand", silent=True)
    assert draft.member(2).eviction is None


# ---- P4.8 nobody waits for it ----------------------------------------------------------------------------------------


def database_of(members: dict[int, Member], **parts: dict[str, Service] | dict[int, Transition]) -> Database:
    nodes = {node: NodeConfig(node, f"n{node}", (), "") for node in members}
    cluster = Cluster("test", "0" * 32, "fast", "", active_version=HIGHEST)
    return Database(cluster, 10, nodes=nodes, members=members, **parts)  # type: ignore[arg-type]


def facts_of(me: int, ran_out: set[int] = frozenset(), reporting: tuple[int, ...] = ()) -> Facts:  # type: ignore[assignment]
    reports = {node: Report(NO_TERM, 10, 5, "", (), (), ()) for node in reporting}
    return Facts(
        0, me, reports, lambda _n, _i: None, lambda _n: True, {}, {}, True,
        silent=lambda node, _incarnation: node in ran_out,
    )  # fmt: skip


def test_p4_8_transitions_of_others_go_on_without_it() -> None:
    cluster = unproven_cluster(4, (LOCKS, FILES))
    cluster.kill(3)
    cluster.acknowledges = lambda _node, _told: True
    assert not cluster.do(1, LeaveNode("n2")).refused
    cluster.until("n2 has left", lambda: cluster.state(2) is NodeState.INACTIVE, within_ms=5000)
    assert is_silent(cluster.database.member(3))
    cluster.until("n2 is down", lambda: 2 not in cluster.lives)
    cluster.boot(2, levels=(LOCKS, FILES))
    cluster.until("n2 has joined again", lambda: cluster.state(2) is NodeState.JOINED, within_ms=5000)


def test_p4_8_a_new_master_does_not_wait_for_its_inventory_and_moves_a_failed_service_of_its_own() -> None:
    cluster = unproven_cluster()
    cluster.kill(0)
    master = until_led_without(cluster, 0)
    for _ in range(5):
        service = cluster.service(f"on{master}")
        if service.node != master or service.state is not ServiceState.REGISTERED:
            break
        cluster.do(master, FailService(service.name, "its check failed", service.generation))
        cluster.run(300)
    assert cluster.service(f"on{master}").node not in (0, master)
    assert not cluster.do(master, ApplyServices((Definition("new", start_command=("/bin/start",)),))).refused
    cluster.until("new runs", lambda: cluster.service("new").state is ServiceState.REGISTERED)
    assert cluster.service("new").node != 0


@pytest.mark.parametrize("mutated", [False, True])
def test_p4_8_a_condemned_member_is_up_for_nothing(mutated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = unproven_cluster()
    if mutated:
        monkeypatch.setattr(rounds, "is_up", lambda member: member.state is NodeState.JOINED)
    cluster.ask(0, EvictNode("n1", "by hand"))  # its guard has not seen the mark yet: it reports on
    cluster.ask(0, ApplyServices((Definition("new", ordered=("n1", "n2"), start_command=("/bin/start",)),)))
    cluster.until("new is placed", lambda: "new" in cluster.database.services and cluster.service("new").generation)
    assert 1 in cluster.lives
    assert cluster.service("new").node == (1 if mutated else 2)


def test_p4_8_its_silence_is_no_objection() -> None:
    veto = Level(60, "backup", Barriers(), vetoes=True)
    cluster = unproven_cluster(3, (veto,))
    cluster.kill(0)
    until_led_without(cluster, 0)
    before_us = cluster.now_us
    assert not cluster.do(1, TransferService("on1", "n2")).refused
    assert cluster.now_us - before_us < 1000 * MS


def test_p4_8_whatever_it_still_reports_it_counts_for_nothing() -> None:
    member = Member(1, NodeState.JOINED, 5, eviction=SILENT)
    facts = facts_of(0, reporting=(0, 1))
    assert facts.report(member) is None
    assert facts.report(replace(member, eviction=Eviction(5, "by hand"))) is not None


def test_p4_8_a_rotation_does_not_wait_for_it() -> None:
    cluster = Cluster("test", "0" * 32, "fast", "", incoming="X", rotation=Rotation.SETTLING, rotation_index=5)
    members = [Member(0, NodeState.JOINED, 5), Member(1, NodeState.JOINED, 5, eviction=SILENT)]
    report = Report(NO_TERM, 10, 5, "", (), (), ())
    found = authority.behind(members, lambda member: report if member.node == 0 else None, cluster)
    assert found == ()


def frozen_join(barrier: int) -> Draft:
    """n1 fell silent in its join, at this barrier of level 10; n0 and n2 are members."""
    level = Level(10, "locks", Barriers(2, 2, 2))
    members = {
        0: Member(0, NodeState.JOINED, 5, (level,), 10),
        1: Member(1, NodeState.JOINING, 5, (level,), 10, SILENT),
        2: Member(2, NodeState.JOINED, 5, (), 0),
    }
    joining = Transition(7, 1, 5, TransitionKind.JOINING, (10,), 0, barrier, (0,), barriers=2)  # nobody waits for n1
    return Draft(database_of(members, transitions={7: joining}))


@pytest.mark.parametrize("barrier", [0, 1])
def test_p4_8_its_own_transition_stays_as_it_is_and_no_newcomer_waits_for_it(barrier: int) -> None:
    draft = frozen_join(barrier)
    advance(draft, facts_of(0, reporting=(0, 1, 2)))
    assert draft.changes == ()
    assert not is_past_first_barrier(draft, 10)
    assert barrier_conflict(draft, 2, (Level(10, "locks", Barriers(3, 3, 3)),)).count("on n1") == 0


def test_p4_8_its_transition_stays_also_where_all_others_have_acknowledged_it() -> None:
    draft = frozen_join(0)
    facts = facts_of(0, reporting=(0, 1, 2))
    step = Acknowledgement(7, 10, 0)
    facts.reports[0] = replace(facts.reports[0], acknowledgements=(step,))
    advance(draft, facts)
    assert draft.changes == ()
    draft.put(replace(draft.member(1), eviction=None))
    advance(draft, facts)
    assert draft.transitions[7].barrier == 1


def test_p4_8_a_leaving_subsystem_owes_nothing_to_the_transition_of_a_silent_node() -> None:
    for eviction in (None, SILENT):
        level = Level(10, "locks", Barriers())
        members = {
            0: Member(0, NodeState.LEAVING, 5, (level,), 10),
            1: Member(1, NodeState.JOINING, 5, (level,), 10, eviction),
            2: Member(2, NodeState.JOINED, 5, (level,), 10),
        }
        leaving = Transition(6, 0, 5, TransitionKind.LEAVING, (10,), 0, 0, (0, 2))
        joining = Transition(7, 1, 5, TransitionKind.JOINING, (10,), 0, 0, (0, 2))
        draft = Draft(database_of(members, transitions={6: leaving, 7: joining}))
        facts = facts_of(0, reporting=(0, 1, 2))
        for node in (0, 2):
            facts.reports[node] = replace(facts.reports[node], acknowledgements=(Acknowledgement(6, 10, 0),))
        advance(draft, facts)
        assert (6 not in draft.transitions) is (eviction is not None)


def test_p4_8_a_level_is_told_that_it_is_silent_and_still_holds_what_it_held() -> None:
    joined = Member(1, NodeState.JOINED, 5, (LOCKS,), 10, SILENT)
    assert told_at_level(joined, None, 10) is NodeState.SILENT
    assert told_at_level(replace(joined, eviction=None), None, 10) is NodeState.JOINED
    joining = Transition(7, 1, 5, TransitionKind.JOINING, (10, 20), 0, 0, (0, 1))
    fresh = replace(joined, state=NodeState.JOINING)
    assert told_at_level(fresh, joining, 10) is NodeState.SILENT
    assert told_at_level(fresh, joining, 20) is NodeState.INACTIVE
    cluster = unproven_cluster()
    cluster.kill(0)
    until_led_without(cluster, 0)
    cluster.until("n0 is condemned", lambda: is_silent(cluster.database.member(0)))
    cluster.do(1, LeaveNode("n2"))
    cluster.until("n2 has left", lambda: cluster.state(2) is NodeState.INACTIVE)
    told = cluster.notifications(1, of=2, kind=TransitionKind.LEAVING)
    assert [each.vector[0] for each in told] == [NodeState.SILENT] * len(told) != []


# ---- P4.9 frozen until proof -----------------------------------------------------------------------------------------


def test_p4_9_what_it_held_stays_as_it_is_until_the_operators_word_then_it_moves() -> None:
    cluster = unproven_cluster()
    held = cluster.service("on0")
    cluster.kill(0)
    master = until_led_without(cluster, 0)
    cluster.run(10 * FAST.lease_ms)
    assert cluster.service("on0") == held
    assert not cluster.notifications(of=0, kind=TransitionKind.FORCED_LEAVING)
    explained = insight.explain(cluster.core(master), "on0")
    assert explained is not None
    assert any("silent" in finding.words and "--confirmed-dead" in finding.words for finding in explained.findings)
    assert not cluster.do(master, EvictNode("n0", "I pulled the plug", confirmed_dead=True)).refused
    cluster.until("on0 has moved", lambda: cluster.service("on0").node in (1, 2))
    cluster.until("n0 is out", lambda: cluster.state(0) is NodeState.INACTIVE)


def test_p4_9_its_group_is_frozen_with_it_and_a_leave_does_not_wait_for_what_was_handed_to_it() -> None:
    parent = Service(Definition("db"), 1, ServiceState.REGISTERED, True, 1, 5)
    child = Service(Definition("web", parent="db"), 2, wanted=True, intent=True, origin=2)
    other = Service(Definition("mail"), 3, ServiceState.REGISTERED, True, 0, 5)
    members = {
        0: Member(0, NodeState.JOINED, 5),
        1: Member(1, NodeState.JOINED, 5, eviction=SILENT),
        2: Member(2, NodeState.LEAVING, 5),
    }
    services = {each.name: each for each in (parent, child, other)}
    draft = Draft(database_of(members, services=services))
    assert [is_frozen(each, draft) for each in services.values()] == [True, True, False]
    round_ = Round(draft, facts_of(0, reporting=(0, 1, 2)))
    assert "it was on n1" in why_frozen(parent, round_) and "its group was on n1" in why_frozen(child, round_)
    assert not list(holding(database_of(members, services=services), 2))  # what it handed over is n1's
    awaited = {**members, 1: replace(members[1], eviction=None)}
    assert list(holding(database_of(awaited, services=services), 2)) == [child]
    later = replace(parent, incarnation=4)  # of a life before: that one is proven
    assert not is_frozen(later, draft)


def test_p4_9_a_child_that_is_on_its_way_to_its_frozen_parent_is_not_given_up() -> None:
    parent = Service(Definition("db"), 1, ServiceState.REGISTERED, True, 1, 5)
    child = Service(Definition("web", parent="db", ordered=("n1",)), 2, wanted=True, intent=True, origin=2)
    members = {node: Member(node, NodeState.JOINED, 5) for node in range(3)}
    for eviction, frozen in ((SILENT, True), (Eviction(5, "by hand"), False)):
        members[1] = replace(members[1], eviction=eviction)
        draft = Draft(database_of(members, services={"db": parent, "web": child}))
        advance_services(draft, facts_of(0, reporting=(0, 1, 2)))
        assert (draft.services["web"] == child) is frozen
        assert draft.services["db"] == parent


def test_p4_9_free_transfers_that_are_frozen_take_no_place_of_others() -> None:
    free = Definition("web", ordered=("n0", "n2"), free_transfer=True)
    members = {node: Member(node, NodeState.JOINED, 5) for node in range(3)}
    takeover = Takeover(9, 0, 5)
    moving = [
        Service(
            replace(free, name=f"s{n}"), n, ServiceState.STOPPING, True, 1, 5, 7, intent=True, origin=1, target=0,
            takeovers=(takeover,),
        )
        for n in range(MAXIMUM_TAKEOVERS)
    ]  # fmt: skip
    waiting = Service(free, 99, ServiceState.REGISTERED, True, 2, 5, 7)
    services = {each.name: each for each in (*moving, waiting)}
    for eviction, expected in ((None, None), (SILENT, 0)):
        members[1] = replace(members[1], eviction=eviction)
        round_ = Round(Draft(database_of(members, services=services)), facts_of(0, reporting=(0, 1, 2)))
        assert preferred_node(waiting, round_) == expected


def test_p4_9_after_a_power_cut_with_one_machine_left_dead_everything_else_starts() -> None:
    cluster = unproven_cluster()
    for node in range(3):
        cluster.kill(node)
    cluster.boot(1, 2, levels=(LOCKS,))
    until_led_without(cluster, 0)
    cluster.until("n1 and n2 have joined", lambda: {cluster.state(1), cluster.state(2)} == {NodeState.JOINED})
    cluster.until(
        "their services run",
        lambda: all(cluster.service(f"on{node}").state is ServiceState.REGISTERED for node in (1, 2)),
    )
    assert {cluster.service("on1").node, cluster.service("on2").node} <= {1, 2}
    held = cluster.service("on0")
    assert (held.state, held.node) == (ServiceState.REGISTERED, 0)
    assert not cluster.do(1, RegisterService("on1")).refused
