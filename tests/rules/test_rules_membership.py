"""Membership: the rules P4.x of docs/PROTOCOL.md, each by the tests named after it (SPEC 3.8, 3.12, 7.1, 7.2, 7.4)."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from core_cluster import LOCKS, CoreCluster, joined_cluster
from muster.core.draft import Draft, Facts
from muster.core.effects import (
    AppendFrame,
    AskSubsystem,
    Committed,
    Reply,
    WriteClaim,
    WriteMarks,
    WriteView,
)
from muster.core.inputs import StripRead
from muster.core.leases.lease import Evidence
from muster.core.leases.observer import Observer
from muster.core.membership.membership import admit, condemned, force_out_the_dead
from muster.records.access import ITSELF, Author
from muster.records.database import Database
from muster.records.levels import Barriers, Level, NodeState, TransitionKind
from muster.records.members import Eviction, EvictNode, LeaveNode, Member
from muster.records.messages import Report
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import ClaimFlag, Deadman, Lease, LeaseState, Marks, ProofKind, Strip, View
from muster.records.services import (
    ApplyServices,
    Definition,
    DeregisterService,
    FailService,
    SetStandby,
    TransferService,
)
from muster.records.terms import NO_TERM, Stamp, Term
from muster.records.timing import FAST
from muster.records.versions import KERNELS_WORD

FORCED = TransitionKind.FORCED_LEAVING
WEB = ApplyServices((Definition("web", ordered=("n2",), start_command=("/bin/start",)),))


def draft_with(member: Member) -> Draft:
    """A draft for a cluster of n0, joined, and this member as n1."""
    nodes = {node: NodeConfig(node, f"n{node}", (), "") for node in (0, 1)}
    members = {0: Member(0, NodeState.JOINED, 5, (LOCKS,), told_level=10), 1: member}
    return Draft(Database(Cluster("test", "0" * 32, "fast", ""), 10, nodes=nodes, members=members))


def facts_with(report: Report | None, evidence: Evidence | None = None) -> Facts:
    """What a master knows that has this report of n1, and this evidence about it."""

    def about(node: int, incarnation: int) -> Evidence | None:
        return evidence if node == 1 and evidence is not None and evidence.incarnation == incarnation else None

    reports = {1: report} if report is not None else {}
    return Facts(0, 0, reports, about, lambda _node: True, {}, {}, services_open=True)


def asks_to_join(incarnation: int) -> Report:
    return Report(Term(1, 0), 10, incarnation, "join", (LOCKS,))


def test_p4_3_marks_are_published_for_as_long_as_a_condemned_node_is_a_member() -> None:
    eviction = Eviction(7, "it must go")
    members = {
        node: Member(node, state, 7, eviction=eviction if node % 2 else None)
        for node, state in enumerate(state for state in NodeState if state is not NodeState.SILENT for _ in range(2))
    }
    published = {node for node, incarnation in condemned(members) if incarnation == 7}
    going = (NodeState.INACTIVE, NodeState.FORCED_LEAVING)
    assert published == {node for node, member in members.items() if node % 2 and member.state not in going}


# ---- P4.1 admission --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(NodeState))
@pytest.mark.parametrize(("incarnation", "newer"), [(4, False), (5, False), (6, True)])
def test_p4_1_only_a_newer_incarnation_of_an_inactive_node_is_admitted(
    state: NodeState, incarnation: int, newer: bool
) -> None:
    before = Member(1, state, 5)
    draft = draft_with(before)
    admit(draft, facts_with(asks_to_join(incarnation)))
    if newer and state is NodeState.INACTIVE:
        assert (draft.member(1).state, draft.member(1).incarnation) == (NodeState.JOINING, incarnation)
        assert [transition.node for transition in draft.transitions.values()] == [1]
    else:
        assert draft.member(1) == before
        assert not draft.changes


def test_p4_1_who_has_died_since_it_asked_is_not_admitted() -> None:
    draft = draft_with(Member(1, NodeState.INACTIVE, 5))
    admit(draft, facts_with(asks_to_join(6), Evidence(ProofKind.PANIC_TOMBSTONE, 6, "")))
    assert not draft.changes


def test_p4_1_a_request_waits_until_the_forced_leave_of_the_life_before_is_done() -> None:
    cluster = joined_cluster(3, (LOCKS,))
    before = cluster.database.member(2).incarnation
    cluster.acknowledges = lambda _node, notification: notification.kind is not FORCED
    cluster.kill(2)
    cluster.boot(2, levels=(LOCKS,))
    cluster.until("its earlier life is forced out", lambda: cluster.state(2) is NodeState.FORCED_LEAVING)
    cluster.run(2000)
    member = cluster.database.member(2)
    assert (member.state, member.incarnation) == (NodeState.FORCED_LEAVING, before)
    assert member.last_proof is not None and member.last_proof.kind is ProofKind.NEXT_INCARNATION
    cluster.acknowledge_all()
    cluster.until_joined(2)
    assert cluster.database.member(2).incarnation == cluster.lives[2].incarnation > before


def test_p4_1_a_restarted_daemon_of_a_member_is_no_new_incarnation() -> None:
    cluster = joined_cluster(2, (LOCKS,))
    given = len(cluster.notifications())
    cluster.restart_daemon(1)
    cluster.run(2000)
    assert cluster.state(1) is NodeState.JOINED
    assert len(cluster.notifications()) == given


# ---- P4.2 proof ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(ProofKind))
def test_p4_2_a_forced_leave_opens_on_proof_alone_and_records_it(kind: ProofKind) -> None:
    joined = Member(1, NodeState.JOINED, 5, (LOCKS,), told_level=10)
    draft = draft_with(replace(joined, eviction=Eviction(5, "to go")))  # not even a condemned one without proof
    force_out_the_dead(draft, facts_with(None))
    force_out_the_dead(draft, facts_with(None, Evidence(kind, 4, "of another life")))
    assert not draft.changes
    force_out_the_dead(draft, facts_with(None, Evidence(kind, 5, "seen")))
    member = draft.member(1)
    assert member.state is NodeState.FORCED_LEAVING
    assert member.last_proof is not None
    assert (member.last_proof.kind, member.last_proof.incarnation, member.last_proof.detail) == (kind, 5, "seen")


def forced_out_at_us(cluster: CoreCluster, node: int) -> int:
    """When the first forced leave of the node was committed."""
    states = [(moment.now_us, moment.members.get(node, Member(node)).state) for moment in cluster.moments]
    return next(now_us for now_us, state in states if state is NodeState.FORCED_LEAVING)


def test_p4_2_a_silent_node_is_forced_out_only_when_its_lease_has_expired() -> None:
    cluster = joined_cluster(2)
    cluster.run(1000)
    silent_us = cluster.now_us
    cluster.kill(1)
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    proof = cluster.database.member(1).last_proof
    assert proof is not None and proof.kind is ProofKind.LEASE_EXPIRED
    assert forced_out_at_us(cluster, 1) - silent_us >= (FAST.lease_ms - FAST.renew_ms) * 1000


def test_p4_2_a_paused_node_is_forced_out_only_after_its_deadman_has_stopped_it() -> None:
    cluster = joined_cluster(2)
    cluster.run(1000)
    cluster.pause(1)
    deadman_us = cluster.lives[1].keeper.deadline_us
    assert deadman_us is not None
    cluster.until("n1 is forced out", lambda: cluster.state(1) is not NodeState.JOINED)
    assert 1 not in cluster.lives
    assert cluster.now_us >= deadman_us + FAST.panic_bound_ms * 1000


def test_p4_2_a_node_that_wakes_in_time_stays() -> None:
    cluster = joined_cluster(2)
    cluster.run(1000)
    cluster.pause(1)
    cluster.run(FAST.lease_ms - FAST.panic_bound_ms - 2 * FAST.renew_ms)
    cluster.resume(1)
    cluster.run(3000)
    assert cluster.state(1) is NodeState.JOINED
    assert 1 in cluster.lives


def test_p4_2_a_tombstone_is_proof_at_once() -> None:
    cluster = joined_cluster(2)
    panicked_us = cluster.now_us
    cluster._end(cluster.lives[1], clean=False, cause="its daemon gave no sign of life")
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    proof = cluster.database.member(1).last_proof
    assert proof is not None and proof.kind is ProofKind.PANIC_TOMBSTONE
    assert "its daemon gave no sign of life" in proof.detail
    assert cluster.now_us - panicked_us < FAST.lease_ms * 1000


def cluster_without_deadman() -> CoreCluster:
    """n0 and n1 have joined, nothing stops a node whose guard is stopped, and n1's power is cut."""
    cluster = CoreCluster(2, deadman=Deadman.NONE)
    cluster.boot(0, 1)
    cluster.until_joined(0, 1)
    cluster.kill(1)
    return cluster


def test_p4_2_without_a_deadman_silence_proves_nothing_and_a_fence_agent_does() -> None:
    cluster = cluster_without_deadman()
    cluster.run(20 * FAST.lease_ms)
    assert cluster.state(1) is NodeState.JOINED
    cluster.fence(1)
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    proof = cluster.database.member(1).last_proof
    assert proof is not None and proof.kind is ProofKind.FENCE_AGENT


def test_p4_2_an_operators_word_counts_while_no_beat_advances() -> None:
    cluster = cluster_without_deadman()
    cluster.run(20 * FAST.lease_ms)
    reply = cluster.do(0, EvictNode("n1", "I pulled the plug", confirmed_dead=True))
    assert not reply.refused, reply.outcome
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    proof = cluster.database.member(1).last_proof
    assert proof is not None and proof.kind is ProofKind.OPERATOR
    assert "I pulled the plug" in proof.detail


def test_p4_2_an_operators_word_is_proof_when_it_was_the_master_that_fell_silent() -> None:
    cluster = CoreCluster(3, deadman=Deadman.NONE)
    cluster.boot(0, 1, 2)
    cluster.until_joined(0, 1, 2)
    master = cluster.master
    cluster.kill(master)
    asked = next(iter(cluster.lives))
    cluster.run(20 * FAST.lease_ms)
    cluster.ask(asked, EvictNode(f"n{master}", "its power supply burned", confirmed_dead=True))
    cluster.until("the dead one is out", lambda: cluster.state(master) is NodeState.INACTIVE)
    proof = cluster.database.member(master).last_proof
    assert proof is not None and proof.kind is ProofKind.OPERATOR


def test_p4_2_an_operators_word_is_refused_while_the_beat_advances() -> None:
    cluster = joined_cluster(2)
    reply = cluster.do(0, EvictNode("n1", "it looks dead to me", confirmed_dead=True))
    assert reply.refused and "renews its lease" in reply.outcome
    cluster.run(1000)
    assert cluster.state(1) is NodeState.JOINED
    assert cluster.database.member(1).eviction is None


# ---- P4.3 condemning -------------------------------------------------------------------------------------------------


def marks_written(cluster: CoreCluster) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
    """(place in the history, marks) of every marks register written."""
    return [
        (place, item.effect.marks.condemned)
        for place, item in enumerate(cluster.history)
        if isinstance(item.effect, WriteMarks)
    ]


def test_p4_3_first_the_record_then_the_mark_then_the_end_then_the_forced_leave() -> None:
    cluster = joined_cluster(2)
    incarnation = cluster.lives[1].incarnation
    cluster.holds_store = lambda _node, effect: isinstance(effect, AppendFrame)
    cluster.ask(0, EvictNode("n1", "by hand"))
    cluster.run(1000)
    assert not marks_written(cluster)  # no mark before the commit
    cluster.holds_store = lambda _node, effect: isinstance(effect, WriteMarks)
    cluster.release_held_store()
    cluster.run(2000)
    member = cluster.database.member(1)
    assert member.eviction == Eviction(incarnation, "by hand")
    assert member.state is NodeState.JOINED and 1 in cluster.lives  # and nothing ends without the mark
    ((place, condemned),) = marks_written(cluster)
    assert condemned == ((1, incarnation),)
    committed = [
        i
        for i, item in enumerate(cluster.history)
        if isinstance(item.effect, Committed) and item.effect.index == cluster.database.index
    ]
    assert min(committed) < place
    cluster.release_store()
    cluster.until("its guard obeys", lambda: 1 not in cluster.lives)
    assert cluster.leases[1].state is LeaseState.PANICKED
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    proof = cluster.database.member(1).last_proof
    assert proof is not None
    assert (proof.kind, proof.incarnation) == (ProofKind.PANIC_TOMBSTONE, incarnation)
    assert "n0" in proof.detail or "node 0 forced it out" in proof.detail


def test_p4_3_a_condemned_node_that_is_paused_ends_by_its_lease() -> None:
    cluster = joined_cluster(2)
    cluster.pause(1)
    cluster.do(0, EvictNode("n1", "by hand"))
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    proof = cluster.database.member(1).last_proof
    assert proof is not None and proof.kind is ProofKind.LEASE_EXPIRED


def test_p4_3_a_late_mark_harms_no_successor() -> None:
    cluster = joined_cluster(2)
    before = cluster.lives[1].incarnation
    cluster.do(0, EvictNode("n1", "by hand"))
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    register = cluster.marks[0]
    stamp = register.stamp._replace(sequence=register.stamp.sequence + 1)
    cluster.boot(1)
    cluster.until_joined(1)
    cluster.marks[0] = Marks(stamp, ((1, before),))
    cluster.run(3000)
    assert cluster.state(1) is NodeState.JOINED
    assert cluster.lives[1].incarnation > before


@pytest.mark.parametrize("fate", ["its power is cut", "its daemon is restarted"])
def test_p4_3_when_the_master_dies_after_the_record_the_next_one_publishes_the_mark(fate: str) -> None:
    cluster = joined_cluster(3)
    cluster.holds_store = lambda _node, effect: isinstance(effect, WriteMarks)
    cluster.do(1, EvictNode("n2", "by hand"))
    cluster.run(300)
    assert 2 in cluster.lives
    if fate == "its power is cut":
        cluster.kill(0)
    else:
        cluster.restart_daemon(0)
    cluster.release_store()
    cluster.until("n2 is out", lambda: cluster.masters() and cluster.state(2) is NodeState.INACTIVE)


# ---- P4.4 the surviving set ------------------------------------------------------------------------------------------


def condemned_at_us(cluster: CoreCluster, node: int) -> int:
    """When the node's eviction was committed first."""
    known = [moment for moment in cluster.moments if node in moment.members]
    return next(moment.now_us for moment in known if moment.members[node].eviction is not None)


def test_p4_4_two_members_that_lose_their_link_are_judged_by_the_master_after_the_link_bound() -> None:
    cluster = joined_cluster(3)
    cluster.run(1500)
    cut_us = cluster.now_us
    cluster.cut(1, 2)
    cluster.until("n2 is out", lambda: cluster.state(2) is NodeState.INACTIVE)
    eviction_us = condemned_at_us(cluster, 2)
    assert eviction_us - cut_us >= FAST.link_loss_ms(3) * 1000
    assert next(moment.node for moment in cluster.moments if moment.now_us == eviction_us) == 0  # the master, first
    assert {0, 1} <= set(cluster.lives)
    assert "n1" in str(cluster.traces("node condemned"))


def test_p4_4_what_a_service_is_on_survives() -> None:
    cluster = joined_cluster(3)
    cluster.do(0, WEB)
    cluster.until("web is on n2", lambda: str(cluster.service().state) == "registered")
    cluster.cut(1, 2)
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    assert {0, 2} <= set(cluster.lives)


def test_p4_4_views_written_before_the_loss_was_seen_decide_nothing() -> None:
    cluster = joined_cluster(3)
    cluster.run(1500)
    cluster.cut(1, 2)
    cluster.until("n1 has written that", lambda: 2 not in cluster.views[1].heard)
    cluster.until("n2 has written that", lambda: 1 not in cluster.views[2].heard)
    cluster.holds_store = lambda node, effect: node == 2 and isinstance(effect, WriteView)
    cluster.run(3000)
    assert all(cluster.state(node) is NodeState.JOINED and node in cluster.lives for node in range(3))
    cluster.release_store()
    cluster.until("n2 is out", lambda: cluster.state(2) is NodeState.INACTIVE)


def test_p4_4_a_link_that_comes_back_within_the_bound_condemns_nobody() -> None:
    cluster = joined_cluster(3)
    cluster.run(1500)
    cluster.cut(1, 2)
    cluster.run(FAST.link_loss_ms(3) - 100)
    cluster.mend()
    cluster.run(3000)
    assert all(cluster.state(node) is NodeState.JOINED for node in range(3))


def test_p4_4_a_master_outside_the_surviving_set_abdicates_and_does_not_claim() -> None:
    cluster = joined_cluster(3)
    cluster.run(1500)
    cluster.cut(0, 1)
    cluster.cut(0, 2)
    cluster.until("another is master", lambda: cluster.masters() not in ([0], []))
    assert cluster.claims[0].flag is ClaimFlag.WITHDRAWN
    cluster.until("n0 is out", lambda: cluster.state(0) is NodeState.INACTIVE)
    claims = [i.effect.claim.flag for i in cluster.history if i.node == 0 and isinstance(i.effect, WriteClaim)]
    assert claims.count(ClaimFlag.CLAIMING) == 1  # its first
    assert {1, 2} <= set(cluster.lives)
    cluster.mend()
    cluster.boot(0)
    cluster.until_joined(0)


def test_p4_4_two_nodes_need_no_third_vote() -> None:
    cluster = joined_cluster(2)
    cluster.run(1500)
    cluster.cut(0, 1)
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    assert cluster.master == 0


def test_p4_4_a_next_master_counts_afresh() -> None:
    cluster = joined_cluster(4)
    cluster.run(1500)
    cluster.cut(2, 3)
    cluster.run(FAST.link_loss_ms(4) - 100)
    cluster.pause(0)
    cluster.until("n1 is master", lambda: cluster.masters() == [1], within_ms=5000)
    assert all(cluster.database.member(node).eviction is None for node in range(4))
    elected_us = cluster.now_us
    cluster.until("n3 is condemned", lambda: cluster.database.member(3).eviction)
    assert cluster.now_us - elected_us >= FAST.link_loss_ms(4) * 1000


def test_p4_4_a_restarted_daemon_says_nothing_of_links_that_it_could_not_have_made_yet() -> None:
    cluster = joined_cluster(3)
    cluster.run(1500)
    cluster.cut(1, 2)  # so that n1 and n2 do not connect at once
    cluster.cut(0, 2)
    views = len([item for item in cluster.history if item.node == 2 and isinstance(item.effect, WriteView)])
    cluster.restart_daemon(2)
    cluster.run(FAST.link_loss_ms(3) - 150)
    assert len([i for i in cluster.history if i.node == 2 and isinstance(i.effect, WriteView)]) == views
    cluster.mend()
    cluster.run(3000)
    assert all(cluster.state(node) is NodeState.JOINED for node in range(3))


def test_p4_4_a_daemon_that_dies_again_soon_after_its_restart_has_lost_no_link() -> None:
    cluster = joined_cluster(3)
    cluster.run(1500)
    for _ in range(4):
        cluster.end_daemon(1)
        cluster.run(FAST.link_loss_ms(3) - 150)
        cluster.restart_daemon(1)
        cluster.until(
            "it is heard", lambda: 1 in cluster.core(0).links.connected and 1 in cluster.core(2).links.connected
        )
    cluster.run(3000)
    assert not cluster.traces("node condemned")
    assert all(cluster.state(node) is NodeState.JOINED for node in range(3))


# ---- P4.5 objections -------------------------------------------------------------------------------------------------

VETO = Level(60, "backup", Barriers(), vetoes=True)


def vetoing_cluster(objects: Callable[[int, AskSubsystem], str | None]) -> CoreCluster:
    """Three nodes with a service on n2; a subsystem of each is asked before planned changes, and answers so."""
    cluster = joined_cluster(3, (VETO,))
    cluster.do(0, WEB)
    cluster.until("web is on n2", lambda: str(cluster.service().state) == "registered")
    cluster.objects = objects
    return cluster


def questions(cluster: CoreCluster) -> list[int]:
    """The nodes whose subsystems were asked."""
    return [item.node for item in cluster.history if isinstance(item.effect, AskSubsystem)]


Planned = LeaveNode | TransferService | SetStandby | DeregisterService
PLANNED = [LeaveNode("n2"), TransferService("web"), SetStandby("n2"), DeregisterService("web")]


@pytest.mark.parametrize("operation", PLANNED)
def test_p4_5_one_objection_refuses_a_planned_change_with_its_reason_and_changes_nothing(operation: Planned) -> None:
    cluster = vetoing_cluster(lambda node, _question: "a backup is being written" if node == 1 else "")
    before = cluster.database.index
    reply = cluster.do(2, operation)
    assert reply.refused
    assert "a backup is being written" in reply.outcome and "--override" in reply.outcome
    assert sorted(questions(cluster)) == [0, 1, 2]
    cluster.run(1000)
    assert cluster.database.index == before


@pytest.mark.parametrize("operation", PLANNED)
def test_p4_5_an_override_asks_nobody(operation: Planned) -> None:
    cluster = vetoing_cluster(lambda _node, _question: "no")
    assert not cluster.do(2, replace(operation, override=True)).refused
    assert not questions(cluster)


def test_p4_5_where_nobody_objects_the_change_goes_on() -> None:
    cluster = vetoing_cluster(lambda _node, _question: "")
    assert not cluster.do(0, LeaveNode("n2")).refused
    assert sorted(questions(cluster)) == [0, 1, 2]
    cluster.until("n2 has left", lambda: 2 not in cluster.lives)


def test_p4_5_nothing_changes_before_the_last_answer_and_silence_refuses() -> None:
    cluster = vetoing_cluster(lambda node, _question: None if node == 1 else "")
    before = cluster.database.index
    asked = cluster.ask(0, LeaveNode("n2"))
    cluster.run(4500)
    assert cluster.reply(asked) is None
    assert cluster.database.index == before
    cluster.until("it is refused", lambda: cluster.reply(asked), within_ms=2000)
    reply = cluster.reply(asked)
    assert isinstance(reply, Reply) and reply.refused
    assert "n1 have not answered" in reply.outcome
    cluster.run(1000)
    assert cluster.state(2) is NodeState.JOINED


def test_p4_5_a_forced_leave_and_other_operations_ask_nobody() -> None:
    cluster = vetoing_cluster(lambda _node, _question: "no")
    assert not cluster.do(0, FailService("web", "its check failed")).refused
    assert not cluster.do(0, SetStandby("n1", end=True)).refused
    assert not cluster.do(0, EvictNode("n2", "by hand")).refused
    cluster.until("n2 is out", lambda: cluster.state(2) is NodeState.INACTIVE)
    assert not questions(cluster)


@pytest.mark.parametrize("operation", [TransferService("web"), DeregisterService("web")])
def test_p4_5_what_a_node_asks_for_by_itself_after_an_event_is_put_to_nobody(operation: Planned) -> None:
    cluster = vetoing_cluster(lambda _node, _question: "no")
    assert not cluster.do(1, operation, author=Author(user=ITSELF, node="n1")).refused
    assert not questions(cluster)


def test_p4_5_the_leave_that_sigterm_asks_for_is_an_operators_wish() -> None:
    cluster = vetoing_cluster(lambda _node, _question: "no")
    assert cluster.do(1, LeaveNode("n1"), author=Author(user=ITSELF, node="n1")).refused


@pytest.mark.parametrize("operation", [SetStandby("n2"), DeregisterService("web")])
def test_p4_5_an_older_node_is_not_asked_what_it_would_not_answer(operation: Planned) -> None:
    cluster = vetoing_cluster(lambda _node, _question: "no")
    for node in cluster.lives:
        database = cluster.core(node).database
        database.cluster = replace(database.cluster, active_version=KERNELS_WORD - 1)
    assert not cluster.do(0, operation).refused
    assert not questions(cluster)


def test_p4_5_who_is_proven_dead_is_not_waited_for() -> None:
    cluster = vetoing_cluster(lambda node, _question: None if node == 1 else "")
    asked = cluster.ask(0, LeaveNode("n2"))
    cluster.run(100)
    cluster.kill(1)
    cluster.until("it is answered", lambda: cluster.reply(asked), within_ms=4000)
    reply = cluster.reply(asked)
    assert reply is not None and not reply.refused


def test_p4_5_when_the_master_dies_nothing_has_changed_and_the_next_one_asks_anew() -> None:
    cluster = vetoing_cluster(lambda node, _question: None if node == 2 else "")
    asked = cluster.ask(1, LeaveNode("n2"))
    cluster.run(200)
    cluster.kill(0)
    cluster.objects = lambda _node, _question: ""
    cluster.until("it is answered", lambda: cluster.reply(asked))
    reply = cluster.reply(asked)
    assert reply is not None and not reply.refused
    assert questions(cluster).count(1) == 2
    cluster.until("n2 has left", lambda: 2 not in cluster.lives)
    assert not cluster.notifications(of=2, kind=FORCED)


# ---- P4.6 heard after its end ----------------------------------------------------------------------------------------


def test_p4_6_a_node_whose_guard_hangs_is_heard_shown_and_condemned_and_counts_as_dead_only_when_it_is_silent() -> None:
    cluster = joined_cluster(3)
    cluster.lives[2].guard_hangs = True  # in its exit: nothing ends, and the daemon goes on
    cluster.until("n2 is out", lambda: cluster.state(2) is NodeState.INACTIVE)
    told = [text for _, _, text in cluster.traces()]
    gone = told.index("link lost: n2: it closed the connection")  # condemned, it reads its mark (P7.10)
    proven = [place for place, text in enumerate(told) if text.startswith("proof of death: n2: lease expired")]
    assert gone < min(proven)


def observes(
    *hearing_late: int, life_of_1: int = 5, hears: bool = False, state: LeaseState = LeaseState.LIVE
) -> Observer:
    """Node 0's observer: node 2 has been silent for two leases; these nodes say that they hear it late.

    The beat of node 1 advances `life_of_1` times.
    """

    def strip(beat: int) -> Strip:
        def lease(node: int, sequence: int) -> Lease:
            kind = state if node == 2 else LeaseState.LIVE
            return Lease(Stamp(node, 7, NO_TERM, sequence), kind, Deadman.PID_NAMESPACE, 600, 120, bytes(16), "")

        late = [frozenset({2}) if node in hearing_late else frozenset[int]() for node in range(3)]
        heard = frozenset({2}) if hears else frozenset[int]()
        views = tuple(View(Stamp(node, 7, NO_TERM, 1), heard, False, late[node]) for node in range(3))
        leases = (lease(0, beat), lease(1, min(beat, life_of_1)), lease(2, 1))
        return Strip(leases, (None,) * 3, views, (None,) * 3)

    observer = Observer(0, 7, FAST, strip(0), one_machine=True)
    database = Database(Cluster("test", "0" * 32, "fast", ""), 1)
    for beat in range(13):
        started_us = beat * 100_000
        observer.see(StripRead(1, strip(beat), started_us, started_us + 1))
        observer.newly_dead(database)
    return observer


def test_p4_6_an_expired_lease_is_no_proof_while_a_living_member_hears_the_node() -> None:
    assert observes().is_dead(2, 7)
    heard = observes(1, life_of_1=99)
    assert not heard.is_dead(2, 7)
    assert heard.hearers(2) == (1,)
    assert observes(1, life_of_1=0).is_dead(2, 7)  # that member's own lease has run out too
    assert observes(2).is_dead(2, 7)  # what it says of itself
    own = observes()
    own.heard_late = frozenset({2})
    assert not own.is_dead(2, 7)


def test_p4_6_who_heard_it_before_has_time_to_hear_it_again_and_to_say_so() -> None:
    assert not observes(life_of_1=99, hears=True).is_dead(2, 7)
    longer = observes(life_of_1=99, hears=True)
    for beat in range(13, 20):
        read = StripRead(1, longer.strip, beat * 100_000, beat * 100_000 + 1)
        longer.see(read)
    assert longer.is_dead(2, 7)


@pytest.mark.parametrize("kind", [ProofKind.KERNELS_WORD, ProofKind.FENCE_AGENT, ProofKind.OPERATOR])
def test_p4_6_what_stands_above_expiry_counts_though_the_node_is_heard(kind: ProofKind) -> None:
    observer = observes(1, life_of_1=99)
    assert observer.confirm(2, Evidence(kind, 7, "seen"))
    assert observer.is_dead(2, 7)
    assert observes(1, life_of_1=99, state=LeaseState.PANICKED).is_dead(2, 7)
