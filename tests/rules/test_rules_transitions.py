"""Transitions: the rules P3.x of docs/PROTOCOL.md, each by the tests named after it (SPEC 3)."""

import itertools

import pytest
from msgspec.structs import replace

from core_cluster import FILES, LOCKS, TWO_BARRIERS, VOLUMES, CoreCluster, Envelope, joined_cluster
from muster.core.draft import Draft, Facts
from muster.core.effects import AppendFrame, Effect, Notify, Send
from muster.core.inputs import Acknowledged, AcknowledgedTogether
from muster.core.membership.membership import admit
from muster.core.node import insight
from muster.core.transitions.transition import (
    MAY_FOLLOW,
    SETTLED_STATE,
    IllegalTransition,
    advance,
    all_acknowledged,
    begin_join,
    open_forced_leave,
    open_leave,
    step_of,
)
from muster.records.database import Database, Entry, decode_entry
from muster.records.levels import EVENT_MANAGER_LEVEL, Barriers, Level, NodeState, TransitionKind
from muster.records.members import LeaveNode, Member, Proof
from muster.records.messages import Append, Report
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import ProofKind
from muster.records.terms import Term
from muster.records.transitions import Acknowledgement, Transition

JOINING, LEAVING, FORCED = TransitionKind.JOINING, TransitionKind.LEAVING, TransitionKind.FORCED_LEAVING
THREE_LEVELS = (LOCKS, VOLUMES, FILES)
EVENT_MANAGER = EVENT_MANAGER_LEVEL.number


def database_of(*members: Member, transitions: tuple[Transition, ...] = ()) -> Database:
    """A database at index 10 with these members."""
    nodes = {member.node: NodeConfig(member.node, f"n{member.node}", (), "") for member in members}
    return Database(
        Cluster("test", "0" * 32, "fast", ""),
        10,
        nodes=nodes,
        members={member.node: member for member in members},
        transitions={each.identity: each for each in transitions},
    )


def joined(node: int, *levels: Level) -> Member:
    """A joined member that was told of at all its levels."""
    highest = max((level.number for level in levels), default=0)
    return Member(node, NodeState.JOINED, 5, levels, told_level=highest)


def report_of(*steps: Acknowledgement, incarnation: int = 5) -> Report:
    return Report(Term(1, 0), 10, incarnation, "", (), steps)


def facts_of(**reports: Report) -> Facts:
    """What a master knows that has these reports, n0=..., and no proof of any death."""
    by_node = {int(name[1:]): report for name, report in reports.items()}
    return Facts(0, 0, by_node, lambda _n, _i: None, lambda _n: True, {}, {}, services_open=True)


def is_join_of(notification: Notify, node: int) -> bool:
    return (notification.node, notification.kind) == (node, JOINING)


def entry_of(effect: Effect) -> Entry | None:
    """The entry that a store effect makes durable, if it does that."""
    return decode_entry(effect.frame) if isinstance(effect, AppendFrame) else None


def opens_join(effect: Effect, node: int) -> bool:
    """Whether a store effect makes the opening of this node's join durable."""
    entry = entry_of(effect)
    changes = entry.changes if entry is not None else ()
    return any(isinstance(each, Transition) and each.node == node and each.position == 0 for each in changes)


# ---- P3.1 order ------------------------------------------------------------------------------------------------------


def test_p3_1_joins_and_forced_leaves_take_their_levels_bottom_up_and_leaves_top_down() -> None:
    cluster = joined_cluster(3, THREE_LEVELS)
    assert cluster.levels_of(1, JOINING) == [10, 20, 30, 40]
    cluster.ask(0, LeaveNode("n1"))
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)
    assert cluster.levels_of(1, LEAVING) == [40, 30, 20, 10]
    cluster.kill(2)
    cluster.until("n2 is forced out", lambda: cluster.state(2) is NodeState.INACTIVE)
    assert cluster.levels_of(2, FORCED) == [10, 20, 30, 40]
    for node in range(3):  # and each node was notified in that very order
        assert [n.level for n in cluster.notifications(node, of=2, kind=JOINING)] == ([10, 20, 30])
        assert [n.level for n in cluster.notifications(node, of=1, kind=LEAVING)] == [30, 20, 10]


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_p3_1_a_level_is_entered_only_when_every_participant_has_acknowledged_the_one_below(slow: int) -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, 1, levels=THREE_LEVELS)
    cluster.until_joined(0, 1)
    cluster.acknowledges = lambda node, notification: not (node == slow and is_join_of(notification, 2))
    cluster.boot(2, levels=THREE_LEVELS)
    for level in (10, 20, 30):
        cluster.until(f"the join is at {level}", lambda level=level: cluster.is_at(2, level))  # type: ignore[misc]
        cluster.run(2000)
        assert cluster.is_at(2, level)
        assert {n.level for n in cluster.notifications(of=2)} == {each for each in (10, 20, 30) if each <= level}
        (owed,) = cluster.lives[slow].owed
        cluster.acknowledge(slow, owed)
    cluster.until_joined(2)


def test_p3_1_transitions_of_several_nodes_run_side_by_side_each_in_its_own_order() -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, levels=THREE_LEVELS)
    cluster.until_joined(0)
    cluster.acknowledges = lambda _node, notification: notification.node != 1
    cluster.boot(1, levels=THREE_LEVELS)
    cluster.until("n1 joins", lambda: cluster.is_at(1, 10))
    cluster.boot(2, levels=THREE_LEVELS)
    cluster.until("n2 has joined while n1 is at its first level", lambda: cluster.state(2) is NodeState.JOINED)
    assert cluster.is_at(1, 10)


def test_p3_1_when_the_master_dies_the_next_one_goes_on_from_where_the_record_says() -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, 1, levels=THREE_LEVELS)
    cluster.until_joined(0, 1)
    cluster.acknowledges = lambda _node, notification: not (notification.node == 2 and notification.level == 20)
    cluster.boot(2, levels=THREE_LEVELS)
    cluster.until("the join is at 20", lambda: len(cluster.notifications(of=2, level=20)) == 3)
    opened = cluster.transition(2)
    cluster.kill(0)
    cluster.until("n0 is out", lambda: cluster.state(0) is NodeState.INACTIVE)
    resumed = cluster.transition(2)
    assert opened is not None and resumed is not None
    assert (resumed.identity, resumed.level) == (opened.identity, 20)
    cluster.acknowledge_all()
    cluster.until_joined(1, 2)
    assert [n.level for n in cluster.notifications(1, of=2)] == [10, 20, 30]


# ---- P3.2 commit before telling --------------------------------------------------------------------------------------


def appended_to_others(cluster: CoreCluster, at_least: int) -> bool:
    """Whether an entry from this index on was sent to anybody."""
    return any(entry.index >= at_least for append in cluster.sent(Append) for entry in append.entries)


def test_p3_2_an_opening_is_committed_before_anybody_is_told() -> None:
    cluster = joined_cluster(2, (LOCKS,))
    before = cluster.database.index
    cluster.holds_store = lambda _node, effect: isinstance(effect, AppendFrame)
    cluster.ask(1, LeaveNode("n1"))
    cluster.run(2000)
    assert not appended_to_others(cluster, before + 1)
    assert not cluster.notifications(kind=LEAVING)
    assert cluster.state(1) is NodeState.JOINED
    cluster.release_store()
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)


def test_p3_2_every_advance_is_committed_before_anybody_is_told() -> None:
    cluster = joined_cluster(2, (TWO_BARRIERS, VOLUMES))
    cluster.ask(1, LeaveNode("n1"))
    told: list[tuple[int, int]] = []
    for step in ((40, 0), (20, 0), (10, 0), (10, 1)):
        cluster.holds_store = lambda _node, effect: isinstance(effect, AppendFrame)
        cluster.run(300)
        assert [(n.level, n.barrier) for n in cluster.notifications(1, kind=LEAVING)] == told
        cluster.holds_store = lambda _node, effect, last=step: _goes_beyond(effect, 1, last)  # type: ignore[misc]
        cluster.release_held_store()
        cluster.until(f"{step} is committed", lambda step=step: cluster.is_step(1, step))  # type: ignore[misc]
        cluster.settle()
        told += [step] if step[0] != EVENT_MANAGER else []
        assert [(n.level, n.barrier) for n in cluster.notifications(1, kind=LEAVING)] == told


def _goes_beyond(effect: Effect, node: int, last: tuple[int, int]) -> bool:
    """Whether the effect makes an entry durable that moves the node's transition past `last`."""
    entry = entry_of(effect)
    changes = entry.changes if entry is not None else ()
    moved = [each for each in changes if isinstance(each, Transition) and each.node == node]
    over = entry is not None and not moved
    return over or any((each.level, each.barrier) != last for each in moved)


def test_p3_2_if_the_master_dies_before_the_commit_nothing_has_happened() -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, 1, levels=(LOCKS,))
    cluster.until_joined(0, 1)
    cluster.holds_store = lambda _node, effect: opens_join(effect, 2)
    cluster.boot(2, levels=(LOCKS,))
    cluster.run(1000)
    cluster.kill(2)
    cluster.kill(0)
    cluster.holds_store = lambda _node, _effect: False
    cluster.until("n0 is out", lambda: cluster.state(0) is NodeState.INACTIVE)
    assert not cluster.notifications(of=2)
    assert cluster.database.member(2) == Member(2)


def test_p3_2_if_the_master_dies_after_the_commit_and_before_telling_the_next_master_tells() -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, 1, levels=(LOCKS,))
    cluster.until_joined(0, 1)
    cluster.loses = lambda envelope: envelope.sender == 0 and isinstance(envelope.message, Append)
    cluster.boot(2, levels=(LOCKS,))
    cluster.until("it is committed on n0", lambda: cluster.core(0).database.member(2).state is NodeState.JOINING)
    assert not cluster.notifications(1, of=2)
    opened = cluster.transition(2)
    cluster.kill(0)
    cluster.until_joined(1, 2)
    assert opened is not None
    assert {n.transition for n in cluster.notifications(1, of=2)} == {opened.identity}


# ---- P3.3 acknowledgements -------------------------------------------------------------------------------------------


def test_p3_3_an_acknowledgement_is_repeated_until_the_record_has_moved_on() -> None:
    cluster = joined_cluster(2, (LOCKS,))
    cluster.loses = lambda envelope: envelope.sender == 1 and isinstance(envelope.message, Report)
    cluster.ask(0, LeaveNode("n1"))
    cluster.until("n1 is notified", lambda: cluster.core(1).database.member(1).state is NodeState.LEAVING)
    cluster.run(1500)
    assert cluster.is_at(1, EVENT_MANAGER)
    cluster.loses = lambda _envelope: False
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)


def test_p3_3_an_acknowledgement_is_not_lost_with_a_master() -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, 1, levels=(LOCKS,))
    cluster.until_joined(0, 1)
    cluster.acknowledges = lambda node, notification: not (node == 0 and is_join_of(notification, 2))
    cluster.boot(2, levels=(LOCKS,))
    cluster.until("all are notified", lambda: len(cluster.notifications(of=2)) == 3)
    cluster.run(500)  # n1 and n2 have acknowledged to n0
    assert insight.waited_for(cluster.core(0)).popitem()[1][0] == (0,)
    cluster.kill(0)
    cluster.until_joined(1, 2)
    assert len(cluster.notifications(1, of=2)) == len(cluster.notifications(2, of=2)) == 1


OTHER_STEPS = [
    Acknowledgement(704, 10, 0),  # another barrier
    Acknowledgement(704, 20, 1),  # another level
    Acknowledgement(703, 10, 1),  # another transition
]


def test_p3_3_only_the_incarnation_and_the_step_that_are_asked_for_count() -> None:
    two = TWO_BARRIERS
    join = Transition(704, 0, 5, JOINING, (10, 20), 0, 1, (0, 1), barriers=2)
    draft = Draft(database_of(joined(0, two), joined(1, two), transitions=(join,)))
    wanted = report_of(step_of(join))
    assert all_acknowledged(join, draft, facts_of(n0=wanted, n1=wanted))
    assert not all_acknowledged(join, draft, facts_of(n0=wanted))
    for step in OTHER_STEPS:
        assert not all_acknowledged(join, draft, facts_of(n0=wanted, n1=report_of(step)))
    for incarnation in (4, 6):
        assert not all_acknowledged(
            join, draft, facts_of(n0=wanted, n1=report_of(step_of(join), incarnation=incarnation))
        )


def test_p3_3_a_subsystem_cannot_acknowledge_what_it_was_not_notified_of() -> None:
    cluster = CoreCluster(2)
    cluster.boot(0, levels=(TWO_BARRIERS,))
    cluster.until_joined(0)
    cluster.acknowledges = lambda node, _notification: node != 0
    cluster.boot(1, levels=(TWO_BARRIERS,))
    cluster.until("n0 is notified", lambda: cluster.lives[0].owed)
    (owed,) = cluster.lives[0].owed
    cluster.give(0, Acknowledged(owed.transition, 10, 1))
    cluster.run(1000)
    assert cluster.is_step(1, (10, 0))
    cluster.acknowledge(0, owed)
    cluster.until("the second barrier is asked for", lambda: cluster.is_step(1, (10, 1)))
    cluster.run(1000)
    assert cluster.is_step(1, (10, 1))


def test_p3_3_acknowledgements_given_together_are_one_report_and_the_last_that_is_owed_waits_for_nothing() -> None:
    cluster = CoreCluster(4)
    levels = (Level(10, "dlm"),)
    cluster.boot(0, levels=levels)
    cluster.until_joined(0)
    cluster.boot(1, levels=levels)
    cluster.until_joined(1)
    cluster.acknowledges = lambda node, _notification: node != 1
    cluster.boot(2, 3, levels=levels)
    cluster.until("n1 is notified of both joins", lambda: len(cluster.lives[1].owed) == 2)
    core = cluster.core(1)
    steps = [Acknowledged(owed.transition, owed.level, owed.barrier) for owed in cluster.lives[1].owed]
    now_us = core.reporting.told_us + 1  # directly after another report
    effects = core.step(AcknowledgedTogether(tuple(steps)), now_us)
    reports = [each.message for each in effects if isinstance(each, Send) and isinstance(each.message, Report)]
    assert [len(report.acknowledgements) for report in reports] == [2]


# ---- P3.4 barriers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_p3_4_next_barrier_only_after_all_acknowledged(slow: int) -> None:
    level = Level(10, "locks", Barriers(3, 2, 1))
    cluster = joined_cluster(3, (level,))
    cluster.ask(0, LeaveNode("n2"))
    cluster.acknowledges = lambda node, _notification: node != slow
    for barrier in (0, 1):
        cluster.until("all are notified", lambda: len(cluster.notifications(of=2, kind=LEAVING)) == 3 * (barrier + 1))  # noqa: B023
        cluster.run(1500)
        assert {n.barrier for n in cluster.notifications(of=2, kind=LEAVING)} == set(range(barrier + 1))
        (owed,) = cluster.lives[slow].owed
        cluster.acknowledge(slow, owed)
    cluster.until("n2 has left", lambda: 2 not in cluster.lives)
    join = [step.barrier for step in cluster.steps(2) if step.kind is JOINING and step.level == 10]
    leave = [step.barrier for step in cluster.steps(2) if step.kind is LEAVING and step.level == 10]
    assert (join, leave) == ([0, 1, 2], [0, 1])


def test_p3_4_a_level_with_other_barrier_counts_is_refused_with_both_counts() -> None:
    cluster = CoreCluster(2)
    cluster.boot(0, levels=(TWO_BARRIERS,))
    cluster.until_joined(0)
    cluster.boot(1, levels=(Level(10, "locks", Barriers(2, 3, 2)), VOLUMES))
    cluster.until_joined(1)
    (reason,) = cluster.refusals(1)
    assert "(2, 3, 2) on n1" in reason and "(2, 2, 2) on n0" in reason
    assert cluster.levels_in_record(1) == [20, EVENT_MANAGER]
    assert not cluster.notifications(1, level=10)
    cluster.register(1, TWO_BARRIERS)
    cluster.until("the same counts are taken", lambda: 10 in cluster.levels_in_record(1))
    assert len(cluster.refusals(1)) == 1


def test_p3_4_of_two_nodes_that_join_together_with_different_counts_one_is_refused() -> None:
    draft = Draft(database_of(Member(0), Member(1)))
    asking = report_of()
    mine = replace(asking, wish="join", levels=(TWO_BARRIERS,))
    other = replace(asking, wish="join", levels=(LOCKS,))
    admit(draft, facts_of(n0=mine, n1=other))
    assert draft.member(0).state is NodeState.JOINING
    assert draft.member(1).state is NodeState.INACTIVE
    assert "(2, 2, 2) on n0" in draft.member(1).refusal and "(1, 1, 1) on n1" in draft.member(1).refusal


# ---- P3.5 forced leaves ----------------------------------------------------------------------------------------------


def test_p3_5_a_join_that_is_cut_off_is_undone_from_the_lowest_level_to_the_highest_that_was_told() -> None:
    cluster = CoreCluster(2)
    cluster.boot(0, levels=THREE_LEVELS)
    cluster.until_joined(0)
    cluster.acknowledges = lambda _node, notification: notification.level < 20
    cluster.boot(1, levels=THREE_LEVELS)
    cluster.until("the join is at 20", lambda: cluster.is_at(1, 20))
    join = cluster.transition(1)
    cluster.acknowledges = lambda _node, _notification: True
    cluster.kill(1)  # Figs. 13-15: the level at work is told again, the ones above are not told at all
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    assert cluster.levels_of(1, FORCED) == [10, 20]
    assert [n.level for n in cluster.notifications(0, of=1)] == [10, 20, 10, 20]
    assert join is not None and join.identity not in cluster.database.transitions


def test_p3_5_what_a_graceful_leave_had_completed_is_skipped() -> None:
    cluster = joined_cluster(2, THREE_LEVELS)
    cluster.acknowledges = lambda _node, notification: notification.level != 20
    cluster.ask(0, LeaveNode("n1"))
    cluster.until("the leave is at 20", lambda: cluster.is_at(1, 20))
    cluster.acknowledges = lambda _node, _notification: True
    cluster.kill(1)
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    assert cluster.levels_of(1, LEAVING) == [40, 30, 20]
    assert cluster.levels_of(1, FORCED) == [10, 20]


def test_p3_5_a_joined_node_is_taken_out_at_every_level() -> None:
    cluster = joined_cluster(2, THREE_LEVELS)
    cluster.kill(1)
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    assert cluster.levels_of(1, FORCED) == [10, 20, 30, 40]
    assert {n.incarnation for n in cluster.notifications(0, of=1)} == {cluster.database.member(1).incarnation}


# ---- P3.6 Table 1 ----------------------------------------------------------------------------------------------------

# SPEC 3.6, by hand: (what the node's state is, what may be opened); everything else is a bug.
ALLOWED = {
    (NodeState.INACTIVE, JOINING),
    (NodeState.JOINING, FORCED),
    (NodeState.JOINED, LEAVING),
    (NodeState.JOINED, FORCED),
    (NodeState.LEAVING, FORCED),
}


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(NodeState, TransitionKind)))
def test_p3_6_what_the_table_does_not_allow_raises_and_changes_nothing(state: NodeState, kind: TransitionKind) -> None:
    draft = Draft(database_of(joined(0, LOCKS), replace(joined(1, LOCKS), state=state)))

    def attempt() -> None:
        match kind:
            case TransitionKind.JOINING:
                begin_join(draft, 1, 9, (LOCKS,))
            case TransitionKind.LEAVING:
                open_leave(draft, 1, "asked to leave")
            case TransitionKind.FORCED_LEAVING:
                open_forced_leave(draft, 1, Proof(ProofKind.FENCE_AGENT, 1, 5))

    if (state, kind) in ALLOWED:
        attempt()
        assert draft.member(1).state == NodeState(kind.value)
    else:
        with pytest.raises(IllegalTransition):
            attempt()
        assert draft.changes == ()
    assert ((state, kind) in ALLOWED) == (kind in MAY_FOLLOW[state])


@pytest.mark.parametrize(
    ("kind", "settled"), [(JOINING, NodeState.JOINED), (LEAVING, NodeState.INACTIVE), (FORCED, NodeState.INACTIVE)]
)
def test_p3_6_once_all_have_acknowledged_a_node_is_what_the_table_says(
    kind: TransitionKind, settled: NodeState
) -> None:
    last = Transition(700, 1, 5, kind, (40,), 0, 0, (0,))
    going = replace(joined(1, EVENT_MANAGER_LEVEL), state=NodeState(kind.value))
    draft = Draft(database_of(joined(0, EVENT_MANAGER_LEVEL), going, transitions=(last,)))
    advance(draft, facts_of(n0=report_of(), n1=report_of()))
    assert draft.member(1).state is NodeState(kind.value)
    advance(draft, facts_of(n0=report_of(step_of(last)), n1=report_of()))
    assert draft.member(1).state is settled is SETTLED_STATE[kind]
    assert not draft.transitions


def test_p3_6_a_notification_carries_all_states_with_at_least_one_real_transition() -> None:
    cluster = joined_cluster(3, (LOCKS,))
    cluster.ask(0, LeaveNode("n1"))
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)
    settled = {NodeState.INACTIVE, NodeState.JOINED}
    for notification in cluster.notifications():
        assert notification.vector[notification.node] is NodeState(notification.kind.value)
        assert set(notification.vector.values()) - settled
    (last,) = cluster.notifications(0, of=1, kind=LEAVING)
    assert last.vector == {0: NodeState.JOINED, 1: NodeState.LEAVING, 2: NodeState.JOINED}


# ---- P3.7 nobody waits for the dead ----------------------------------------------------------------------------------


def test_p3_7_a_participant_that_is_forced_out_is_waited_for_no_longer() -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, 1, levels=(LOCKS,))
    cluster.until_joined(0, 1)
    cluster.acknowledges = lambda node, notification: not (node == 1 and is_join_of(notification, 2))
    cluster.boot(2, levels=(LOCKS,))
    cluster.until("all are notified", lambda: len(cluster.notifications(of=2)) == 3)
    cluster.run(1000)
    cluster.kill(1)
    cluster.run(300)
    assert cluster.is_at(2, 10, JOINING)  # not proven dead yet, so it is waited for
    cluster.until_joined(2)


def test_p3_7_a_leaving_subsystem_first_finishes_every_barrier_of_a_level_in_which_it_takes_part() -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, 1, levels=(TWO_BARRIERS,))
    cluster.until_joined(0, 1)
    cluster.acknowledges = lambda node, notification: not (node == 1 and is_join_of(notification, 2))
    cluster.boot(2, levels=(TWO_BARRIERS,))
    cluster.until("n1 is notified of the join", lambda: cluster.lives[1].owed)
    cluster.ask(0, LeaveNode("n1"))
    cluster.until("its own leave is at its last barrier", lambda: cluster.is_step(1, (10, 1)))
    for barrier in (0, 1):
        cluster.run(1500)
        assert cluster.is_step(1, (10, 1))
        assert cluster.is_step(2, (10, barrier))
        (owed,) = cluster.lives[1].owed
        assert (owed.node, owed.barrier) == (2, barrier)
        cluster.acknowledge(1, owed)
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)
    cluster.until_joined(0, 2)


# ---- P3.8 each notification once -------------------------------------------------------------------------------------


def assert_each_once(cluster: CoreCluster) -> None:
    """No node was notified of one step twice."""
    given = [
        (item.node, item.incarnation, item.effect.transition, item.effect.level, item.effect.barrier)
        for item in cluster.history
        if isinstance(item.effect, Notify)
    ]
    assert given
    assert len(given) == len(set(given))


def test_p3_8_repeated_and_reordered_messages_notify_nobody_twice() -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, levels=THREE_LEVELS)
    cluster.until_joined(0)
    seen: list[Envelope] = []

    def repeat_all(envelope: Envelope) -> bool:
        seen.append(envelope)
        for old in seen[-5:]:
            cluster.deliver(old)
        return False

    cluster.loses = repeat_all
    cluster.boot(1, levels=THREE_LEVELS)
    cluster.until_joined(1)
    cluster.boot(2, levels=THREE_LEVELS)
    cluster.until_joined(2)
    cluster.ask(2, LeaveNode("n1"))
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)
    assert_each_once(cluster)


def test_p3_8_a_new_master_notifies_nobody_twice() -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, 1, levels=THREE_LEVELS)
    cluster.until_joined(0, 1)
    cluster.acknowledges = lambda _node, notification: not is_join_of(notification, 2)
    cluster.boot(2, levels=THREE_LEVELS)
    cluster.until("all are notified", lambda: len(cluster.notifications(of=2)) == 3)
    cluster.kill(0)
    cluster.until("n1 is master", lambda: cluster.masters() == [1])
    cluster.run(1000)
    assert cluster.is_at(2, 10)
    cluster.acknowledge_all()
    cluster.until_joined(1, 2)
    assert_each_once(cluster)


def test_p3_8_what_a_restarted_daemon_repeats_is_the_same_notification() -> None:
    cluster = CoreCluster(2)
    cluster.boot(0, levels=(LOCKS,))
    cluster.until_joined(0)
    cluster.acknowledges = lambda node, _notification: node != 1
    cluster.boot(1, levels=(LOCKS,))
    cluster.until("n1 is notified", lambda: cluster.lives[1].owed)
    cluster.restart_daemon(1)
    cluster.until("n1 is notified again", lambda: cluster.lives[1].owed)
    cluster.acknowledge_all()
    cluster.until_joined(1)
    first, again = cluster.notifications(1)
    assert first == again
