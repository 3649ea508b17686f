"""Levels that come late, hang, or end a join early: rules P3.9 to P3.13 of docs/PROTOCOL.md (SPEC 3.7, 3.10, 3.13)."""

import pytest

from core_cluster import FILES, LOCKS, TWO_BARRIERS, VOLUMES, CoreCluster, Envelope, Step, joined_cluster
from muster.core.node import insight
from muster.core.transitions.subsystems import Subsystems
from muster.records.configuration import FinishUpgrade
from muster.records.levels import EVENT_MANAGER_LEVEL, Barriers, Level, NodeState, TransitionKind
from muster.records.members import EvictNode, LeaveNode
from muster.records.messages import Report
from muster.records.registers import ProofKind

JOINING, LEAVING, FORCED = TransitionKind.JOINING, TransitionKind.LEAVING, TransitionKind.FORCED_LEAVING
THREE_LEVELS = (LOCKS, VOLUMES, FILES)
EVENT_MANAGER = EVENT_MANAGER_LEVEL.number


# ---- P3.9 late registration ------------------------------------------------------------------------------------------


def test_p3_9_a_joined_nodes_new_level_is_taken_through_its_join_at_that_level_alone() -> None:
    cluster = joined_cluster(2, (LOCKS, FILES))
    cluster.register(1, VOLUMES)
    cluster.acknowledges = lambda _node, _notification: False
    cluster.until("it is notified", lambda: cluster.notifications(level=20))
    late = cluster.transition(1)
    assert late is not None and late.late
    assert (late.kind, late.levels, late.participants) == (JOINING, (20,), (1,))
    assert cluster.state(1) is NodeState.JOINED  # it stays what it is
    cluster.acknowledge_all()
    cluster.until("the join at that level is done", lambda: cluster.is_quiet(0, 1))
    (only,) = cluster.notifications(level=20)
    assert (only.node, only.kind) == (1, JOINING)
    assert only.vector == {0: NodeState.INACTIVE, 1: NodeState.JOINING}  # n0 has nothing at that level (P3.14)
    assert cluster.levels_in_record(1) == [10, 20, 30, 40]


def cluster_joining_at_volumes(level: Level) -> CoreCluster:
    """n0 and n2 have `level` at 20, n1 has not; the join of n2 is there, and n0 has not acknowledged."""
    cluster = CoreCluster(3)
    cluster.boot(0, levels=(LOCKS, level))
    cluster.boot(1, levels=(LOCKS,))
    cluster.until_joined(0, 1)
    cluster.acknowledges = lambda node, notification: not (node == 0 and notification.level == 20)
    cluster.boot(2, levels=(LOCKS, level))
    cluster.until("the join is at 20", lambda: cluster.lives[0].owed)
    return cluster


def test_p3_9_a_level_is_not_committed_while_a_transition_is_past_its_first_barrier() -> None:
    level = VOLUMES._replace(barriers=Barriers(2, 2, 2))
    cluster = cluster_joining_at_volumes(level)
    cluster.acknowledge(0, cluster.lives[0].owed[0])
    cluster.until("it is at the second barrier", lambda: cluster.is_step(2, (20, 1)))
    cluster.register(1, level)
    cluster.run(1500)
    assert cluster.levels_in_record(1) == [10, EVENT_MANAGER]
    assert not cluster.notifications(1, level=20)
    cluster.acknowledge_all()
    cluster.until("it is registered", lambda: 20 in cluster.levels_in_record(1) and cluster.is_quiet(0, 1, 2))
    first, *_ = given = cluster.notifications(1, level=20)
    assert {n.node for n in given} == {1}  # n2's join has passed, and is in the vector; it is told in no other way
    assert first.vector[2] in (NodeState.JOINED, NodeState.JOINING)


def test_p3_9_who_registers_at_the_first_barrier_takes_part_in_the_transition_at_work() -> None:
    cluster = cluster_joining_at_volumes(VOLUMES)
    cluster.acknowledges = lambda _node, notification: notification.level != 20
    cluster.register(1, VOLUMES)
    cluster.until("n1 is notified", lambda: len(cluster.notifications(1, level=20)) == 2)
    assert {n.node for n in cluster.notifications(1, level=20)} == {1, 2}
    cluster.acknowledge(0, next(n for n in cluster.lives[0].owed if n.node == 2))
    cluster.acknowledge(2, next(n for n in cluster.lives[2].owed if n.node == 2))
    cluster.run(1500)
    assert cluster.is_at(2, 20, JOINING)  # it is waited for
    cluster.acknowledge_all()
    cluster.until("all is done", lambda: cluster.is_quiet(0, 1, 2))
    assert sorted(n.node for n in cluster.notifications(1, level=20)) == [1, 2]


def test_p3_9_a_join_in_progress_below_takes_the_new_level_in() -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, 1, levels=(LOCKS,))
    cluster.until_joined(0, 1)
    cluster.acknowledges = lambda _node, notification: not (notification.node == 2 and notification.level == 10)
    cluster.boot(2, levels=(LOCKS,))
    cluster.until("the join is at 10", lambda: cluster.is_at(2, 10))
    cluster.register(1, VOLUMES)
    cluster.until("it is registered", lambda: 20 in cluster.levels_in_record(1) and cluster.transition(1) is None)
    cluster.register(2, VOLUMES)
    cluster.until("it is registered", lambda: 20 in cluster.levels_in_record(2))
    cluster.acknowledge_all()
    cluster.until_joined(2)
    assert [n.node for n in cluster.notifications(1, level=20)] == [1, 2]
    assert cluster.levels_of(2, JOINING) == [10, 20, 40]


# ---- P3.14 who is in a level -----------------------------------------------------------------------------------------

HIGH = Level(60, "application")


def told(cluster: CoreCluster, node: int, level: int, about: int) -> list[TransitionKind]:
    return [n.kind for n in cluster.notifications(node, level=level) if n.node == about and n.barrier == 0]


def pair(*levels: Level) -> CoreCluster:
    """n0 and n1 have joined with these levels; n2 is configured."""
    cluster = CoreCluster(3)
    for node in (0, 1):
        cluster.boot(node, levels=levels)
        cluster.until_joined(node)
    return cluster


def test_p3_14_a_level_is_told_only_of_the_nodes_that_are_in_it() -> None:
    cluster = pair(LOCKS)
    cluster.register(0, HIGH)
    cluster.until("it is registered", lambda: 60 in cluster.levels_in_record(0) and cluster.is_quiet(0, 1))
    cluster.boot(2)
    cluster.until_joined(2)
    cluster.kill(1)
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE and cluster.is_quiet(0, 2))
    assert [(n.node, n.kind) for n in cluster.notifications(0, level=60)] == [(0, JOINING)]
    (own,) = cluster.notifications(0, level=60)
    assert own.vector == {0: NodeState.JOINING, 1: NodeState.INACTIVE}
    assert told(cluster, 0, 10, 1) == [JOINING, FORCED]  # where it had something


def test_p3_14_a_late_join_is_told_to_its_level_alone_after_the_lower_ones_of_its_node() -> None:
    cluster = pair(LOCKS, FILES, HIGH)
    before = len(cluster.notifications(0))
    cluster.boot(2, levels=(LOCKS,))
    cluster.until_joined(2)
    cluster.acknowledges = lambda node, n: not (node == 0 and n.level == 30)
    cluster.register(2, HIGH)
    cluster.until("60 is at work or done", lambda: told(cluster, 0, 60, 2))
    cluster.until("it is done", lambda: cluster.is_quiet(0, 1))
    cluster.unregister(2, HIGH)
    cluster.until("it has gone", lambda: cluster.levels_in_record(2) == [10, 40] and cluster.is_quiet(0, 1))
    cluster.register(2, HIGH._replace(registration=7))
    cluster.register(2, FILES)  # in the same moment, and below
    cluster.until("30 is told", lambda: told(cluster, 0, 30, 2))
    cluster.run(1000)
    assert told(cluster, 0, 60, 2) == [JOINING, FORCED]  # 30 is at work: 60 waits for it
    cluster.acknowledge_all()
    cluster.until("all is told", lambda: len(told(cluster, 0, 60, 2)) == 3 and cluster.is_quiet(0, 1, 2))
    assert told(cluster, 0, 60, 2) == [JOINING, FORCED, JOINING]
    assert told(cluster, 0, 10, 2) == [JOINING]  # other levels hear nothing of it
    assert before < len(cluster.notifications(0))


def test_p3_14_a_member_of_the_version_before_is_taken_out_of_the_levels_in_which_it_has_nothing() -> None:
    cluster = CoreCluster(2, active_version=2)
    cluster.boot(0, levels=(LOCKS, HIGH))
    cluster.boot(1)
    cluster.until_joined(0, 1)
    cluster.until("it is quiet", lambda: cluster.is_quiet(0, 1))
    assert told(cluster, 0, 60, 1) == [JOINING]  # every level is told of every node
    assert not cluster.database.member(1).by_level
    cluster.ask(0, FinishUpgrade(3))
    cluster.until("n1 counts by level", lambda: cluster.database.member(1).by_level and cluster.is_quiet(0, 1))
    assert told(cluster, 0, 60, 1) == [JOINING, LEAVING]
    assert cluster.state(1) is NodeState.JOINED


# ---- P3.15 a program that goes ---------------------------------------------------------------------------------------


def test_p3_15_the_peers_of_a_program_that_has_ended_are_told_of_its_forced_leave_at_that_level_alone() -> None:
    cluster = joined_cluster(3, (LOCKS, HIGH))
    cluster.unregister(1, HIGH)
    cluster.until("it is out", lambda: cluster.is_quiet(0, 1, 2) and 60 not in cluster.levels_in_record(1))
    for node in (0, 2):
        assert told(cluster, node, 60, 1) == [*[JOINING] * (node == 0), FORCED]
        last = cluster.notifications(node, level=60)[-1]
        assert last.vector[1] is NodeState.FORCED_LEAVING
        assert told(cluster, node, 10, 1) == [JOINING] * (node == 0)
    assert cluster.state(1) is NodeState.JOINED
    cluster.kill(1)
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    assert told(cluster, 0, 60, 1)[-1:] == [FORCED] and told(cluster, 0, 60, 1).count(FORCED) == 1


def test_p3_15_one_that_deregisters_leaves_its_level() -> None:
    cluster = joined_cluster(2, (LOCKS, HIGH))
    cluster.unregister(1, HIGH, departed=True)
    cluster.until("it is out", lambda: cluster.is_quiet(0, 1) and 60 not in cluster.levels_in_record(1))
    assert told(cluster, 0, 60, 1) == [JOINING, LEAVING]


def test_p3_15_a_leave_that_loses_a_program_tells_its_peers_and_goes_on() -> None:
    cluster = joined_cluster(2, (LOCKS, HIGH))
    cluster.acknowledges = lambda node, n: not (node == 1 and n.level == 60)
    cluster.ask(0, LeaveNode("n1"))
    cluster.until("60 is at work", lambda: cluster.is_at(1, 60))
    cluster.unregister(1, HIGH)
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)
    assert told(cluster, 0, 60, 1) == [JOINING, LEAVING, FORCED]
    assert told(cluster, 0, 10, 1) == [JOINING, LEAVING]


def test_p3_15_when_the_master_dies_the_next_one_takes_the_program_out() -> None:
    cluster = joined_cluster(3, (LOCKS, HIGH))
    cluster.loses = lambda envelope: envelope.to == 0 and isinstance(envelope.message, Report)
    cluster.unregister(2, HIGH)
    cluster.run(300)
    cluster.kill(0)
    cluster.until("it is out", lambda: cluster.levels_in_record(2) == [10, 40] and cluster.is_quiet(1, 2))
    assert told(cluster, 1, 60, 2) == [JOINING, FORCED]


def test_p3_15_a_node_that_dies_meanwhile_is_recovered_below_beside_it() -> None:
    cluster = joined_cluster(2, (LOCKS, HIGH))
    cluster.acknowledges = lambda _node, n: n.level != 60
    cluster.unregister(1, HIGH)
    cluster.until("60 is told", lambda: told(cluster, 0, 60, 1) == [JOINING, FORCED])
    cluster.kill(1)
    cluster.until("n1 is inactive", lambda: cluster.state(1) is NodeState.INACTIVE)  # the lower levels wait for nobody
    cluster.boot(1, levels=(LOCKS, HIGH))
    cluster.run(1500)
    assert cluster.state(1) is NodeState.INACTIVE  # 60 has not recovered the program yet
    cluster.acknowledge_all()
    cluster.until_joined(1)
    assert told(cluster, 0, 60, 1) == [JOINING, FORCED, JOINING]


# ---- P3.9 again ------------------------------------------------------------------------------------------------------


def test_p3_9_a_late_level_with_other_barrier_counts_is_refused_and_the_node_stays() -> None:
    cluster = joined_cluster(2, (TWO_BARRIERS,))
    cluster.register(0, VOLUMES)
    cluster.until("n0 has it", lambda: 20 in cluster.levels_in_record(0) and cluster.is_quiet(0, 1))
    cluster.register(1, VOLUMES._replace(barriers=Barriers(1, 1, 4)))
    cluster.run(1000)
    (reason,) = cluster.refusals(1)
    assert "(1, 1, 4) on n1" in reason and "(1, 1, 1) on n0" in reason
    assert cluster.levels_in_record(1) == [10, EVENT_MANAGER]
    assert cluster.state(1) is NodeState.JOINED


def test_p3_9_a_level_that_the_report_no_longer_shows_is_struck_and_waited_for_no_more() -> None:
    cluster = joined_cluster(3, (LOCKS, VOLUMES))
    cluster.acknowledges = lambda node, notification: not (node == 1 and notification.level == 20)
    cluster.ask(0, LeaveNode("n2"))
    cluster.until("the leave waits for n1", lambda: cluster.is_at(2, 20))
    cluster.run(1000)
    assert cluster.is_at(2, 20)
    cluster.unregister(1, VOLUMES)
    cluster.until("n2 has left", lambda: 2 not in cluster.lives)
    assert cluster.levels_in_record(1) == [10, 40]


def test_p3_9_when_the_master_dies_the_next_one_goes_on_with_the_registration() -> None:
    cluster = joined_cluster(3, (LOCKS,))
    cluster.loses = lambda envelope: envelope.to == 0 and isinstance(envelope.message, Report)
    cluster.register(2, VOLUMES)
    cluster.run(500)
    cluster.kill(0)
    cluster.until("the next master has registered it", lambda: cluster.levels_in_record(2) == [10, 20, 40])
    cluster.until("it was notified", lambda: cluster.is_quiet(1, 2))
    assert [(n.node, n.kind) for n in cluster.notifications(2, level=20)] == [(2, JOINING)]


# ---- P3.10 hung subsystems -------------------------------------------------------------------------------------------


def hung_cluster(*, evicts: bool) -> CoreCluster:
    """Three nodes; the subsystem of n1 hangs in the join of n2, at the second barrier."""
    level = Level(10, "locks", Barriers(2, 1, 1), deadline_ms=800, evicts=evicts)
    cluster = CoreCluster(3)
    cluster.boot(0, 1, levels=(level,))
    cluster.until_joined(0, 1)
    cluster.acknowledges = lambda node, notification: not (node == 1 and notification.barrier == 1)
    cluster.boot(2, levels=(level,))
    cluster.until("n1 is asked", lambda: cluster.lives[1].owed)
    return cluster


def test_p3_10_a_subsystem_that_hangs_is_named_with_node_level_barrier_and_time_on_every_node() -> None:
    cluster = hung_cluster(evicts=False)
    since_us = cluster.now_us
    cluster.run(700)
    assert not cluster.traces("subsystem hung")
    cluster.run(400)
    ((when_us, _, text),) = cluster.traces("subsystem hung")  # once
    assert "n1: locks (level 10)" in text and "barrier 1" in text
    assert f"{(when_us - since_us) // 1000} ms" in text
    cluster.run(1500)
    join = cluster.transition(2)
    assert join is not None
    for node in range(3):
        nodes, elapsed_us = insight.waited_for(cluster.core(node))[join.identity]
        assert nodes == (1,)
        assert abs(elapsed_us - (cluster.now_us - since_us)) < 300_000
    assert cluster.database.member(1).eviction is None
    assert cluster.is_at(2, 10)
    assert len(cluster.traces("subsystem hung")) == 1
    cluster.acknowledge_all()
    cluster.until_joined(2)
    assert insight.waited_for(cluster.core(0)) == {}


def test_p3_10_where_the_level_is_registered_with_that_policy_its_node_is_condemned() -> None:
    cluster = hung_cluster(evicts=True)
    cluster.run(700)
    assert cluster.database.member(1).eviction is None
    cluster.until("n1 is condemned", lambda: cluster.database.member(1).eviction)
    eviction = cluster.database.member(1).eviction
    assert eviction is not None and "locks (level 10) has not acknowledged barrier 1" in eviction.cause
    cluster.until_joined(2)
    assert 1 not in cluster.lives
    proof = cluster.database.member(1).last_proof
    assert proof is not None and proof.kind is ProofKind.PANIC_TOMBSTONE


def test_p3_10_the_time_counts_from_when_the_masters_own_replica_showed_the_step() -> None:
    cluster = hung_cluster(evicts=True)
    cluster.run(600)
    cluster.restart_daemon(0)  # its successor has seen the step for no time at all
    cluster.until("there is a master again", cluster.masters)
    started_us = cluster.now_us
    known_us = 0 if cluster.master == 0 else 600_000
    cluster.until("n1 is condemned", lambda: cluster.database.member(1).eviction)
    assert cluster.now_us - started_us >= 700_000 - known_us


# ---- P3.11 second step of the boot -----------------------------------------------------------------------------------


def test_p3_11_the_event_manager_registers_when_everything_below_has_joined() -> None:
    cluster = CoreCluster(2)
    cluster.acknowledges = lambda _node, notification: notification.level != 20
    cluster.boot(0, levels=(LOCKS, VOLUMES))
    cluster.until("its join is at 20", lambda: cluster.is_at(0, 20))
    cluster.run(1500)
    assert cluster.levels_in_record(0) == [10, 20]
    assert cluster.state(0) is NodeState.JOINING
    cluster.acknowledge_all()
    cluster.until_joined(0)
    parked = [
        moment for moment in cluster.moments for each in moment.transitions.values() if each.awaits == EVENT_MANAGER
    ]
    assert parked
    for moment in parked:
        assert moment.members[0].state is NodeState.JOINING
        assert all(level.number != EVENT_MANAGER for level in moment.members[0].levels)
    assert cluster.levels_of(0, JOINING) == [10, 20, 40]


def test_p3_11_a_join_stops_before_the_event_managers_level_until_its_own_has_registered() -> None:
    level = Level(50, "accounting")
    cluster = CoreCluster(2)
    cluster.boot(0, levels=(LOCKS, level))
    cluster.until_joined(0)
    cluster.boot(1, levels=(LOCKS, level))
    cluster.until("its join has begun", lambda: cluster.is_at(1, 10))
    cluster.loses = _shows_event_manager
    cluster.run(1500)
    parked = cluster.transition(1)
    assert parked is not None and parked.awaits == EVENT_MANAGER and not parked.participants
    assert cluster.state(1) is NodeState.JOINING
    assert not cluster.notifications(0, of=1, level=50)  # nothing above it is told either
    cluster.loses = lambda _envelope: False
    cluster.until_joined(1)
    assert cluster.levels_of(1, JOINING) == [10, 40, 50]


def _shows_event_manager(envelope: Envelope) -> bool:
    """Whether a message registers the event manager of n1."""
    message = envelope.message
    return envelope.sender == 1 and isinstance(message, Report) and EVENT_MANAGER_LEVEL in message.levels


# ---- P3.12 a join that turns -----------------------------------------------------------------------------------------


def test_p3_12_a_join_turns_between_levels_into_a_leave_of_the_levels_that_have_joined() -> None:
    cluster = CoreCluster(2)
    cluster.boot(0, levels=THREE_LEVELS)
    cluster.until_joined(0)
    cluster.acknowledges = lambda node, notification: not (node == 1 and notification.level == 20)
    cluster.boot(1, levels=THREE_LEVELS)
    cluster.until("its join is at 20", lambda: cluster.is_at(1, 20))
    cluster.do(1, LeaveNode("n1"))
    cluster.run(1000)
    assert cluster.is_at(1, 20, JOINING)  # the level at work completes first
    assert not cluster.notifications(kind=LEAVING)
    cluster.acknowledge_all()
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)
    assert [(step.kind, step.level) for step in cluster.steps(1)] == [
        (JOINING, 10),
        (JOINING, 20),
        (LEAVING, 20),
        (LEAVING, 10),
    ]
    cluster.until("it is inactive", lambda: cluster.state(1) is NodeState.INACTIVE)
    cluster.boot(1, levels=THREE_LEVELS)
    cluster.until_joined(1)


def test_p3_12_all_barriers_of_the_level_at_work_come_first() -> None:
    cluster = CoreCluster(2)
    cluster.boot(0, levels=(TWO_BARRIERS, VOLUMES))
    cluster.until_joined(0)
    cluster.acknowledges = lambda node, _notification: node != 1
    cluster.boot(1, levels=(TWO_BARRIERS, VOLUMES))
    cluster.until("its join is at 10", lambda: cluster.is_at(1, 10))
    cluster.do(0, LeaveNode("n1"))
    cluster.acknowledge_all()
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)
    assert cluster.steps(1) == [
        Step(1, JOINING, 10, 0),
        Step(1, JOINING, 10, 1),
        Step(1, LEAVING, 10, 0),
        Step(1, LEAVING, 10, 1),
    ]


def test_p3_12_a_join_that_waits_for_its_event_manager_turns_at_once() -> None:
    cluster = CoreCluster(2)
    cluster.boot(0, levels=(LOCKS,))
    cluster.until_joined(0)
    cluster.boot(1, levels=(LOCKS,))
    cluster.loses = _shows_event_manager
    cluster.run(1000)
    parked = cluster.transition(1)
    assert parked is not None and parked.awaits
    cluster.loses = lambda _envelope: False
    cluster.holds = _shows_event_manager
    cluster.do(0, LeaveNode("n1"))
    cluster.until("it turns", lambda: cluster.state(1) is NodeState.LEAVING)
    assert cluster.levels_of(1, LEAVING) == [10]
    cluster.release()
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)


def test_p3_12_when_the_master_dies_the_next_one_turns_the_join() -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, 1, levels=THREE_LEVELS)
    cluster.until_joined(0, 1)
    cluster.acknowledges = lambda node, notification: not (node == 2 and notification.level == 10)
    cluster.boot(2, levels=THREE_LEVELS)
    cluster.until("its join is at 10", lambda: cluster.is_at(2, 10))
    cluster.do(1, LeaveNode("n2"))
    cluster.kill(0)
    cluster.until("n1 is master", lambda: cluster.masters() == [1])
    assert cluster.is_at(2, 10, JOINING)
    cluster.acknowledge_all()
    cluster.until("n2 has left", lambda: 2 not in cluster.lives)
    assert cluster.levels_of(2, LEAVING) == [10]
    assert cluster.do(1, EvictNode("n2", "")).refused


# ---- P3.13 one registration, one subsystem ---------------------------------------------------------------------------

TWICE = VOLUMES._replace(barriers=Barriers(2, 2, 2))


def half_way() -> CoreCluster:
    """Three nodes; n2 has registered level 20, and its own join there is at the second of two barriers."""
    cluster = joined_cluster(3, (LOCKS,))
    cluster.acknowledges = lambda _node, notification: not (notification.level == 20 and notification.barrier == 1)
    cluster.register(2, TWICE)
    cluster.until("its join is at the second barrier", lambda: cluster.is_step(2, (20, 1)) and cluster.lives[2].owed)
    return cluster


def gap_is_lost(envelope: Envelope) -> bool:
    """No report of n2 without the level arrives: the master sees only the successor's."""
    message = envelope.message
    return envelope.sender == 2 and isinstance(message, Report) and all(each.number != 20 for each in message.levels)


def replace_at_once(cluster: CoreCluster, level: Level) -> int:
    """The program on n2 goes and another one comes in its place; how many notifications had been given by then."""
    cluster.loses = gap_is_lost
    cluster.unregister(2, TWICE)
    before = len(cluster.notifications(2, level=20))
    cluster.register(2, level)
    return before


def test_p3_13_who_registers_again_at_once_is_told_from_the_first_barrier_and_of_its_own_join() -> None:
    cluster = half_way()
    first = cluster.transition(2)
    assert first is not None
    before = replace_at_once(cluster, TWICE)
    cluster.acknowledge_all()
    cluster.until("it has joined there", lambda: cluster.is_quiet(0, 1, 2) and 20 in cluster.levels_in_record(2))
    fresh = cluster.notifications(2, level=20)[before:]
    assert [(n.node, n.kind, n.barrier) for n in fresh] == [(2, JOINING, 0), (2, JOINING, 1)]
    assert {n.transition for n in fresh}.isdisjoint({first.identity})


def test_p3_13_a_successor_with_other_barriers_is_told_as_it_has_registered() -> None:
    cluster = half_way()
    before = replace_at_once(cluster, Level(20, "cache", Barriers(1, 1, 1)))
    cluster.acknowledge_all()
    cluster.until("it has joined there", lambda: cluster.is_quiet(0, 1, 2) and 20 in cluster.levels_in_record(2))
    assert [(n.node, n.kind, n.barrier) for n in cluster.notifications(2, level=20)[before:]] == [(2, JOINING, 0)]
    assert [level.name for level in cluster.database.member(2).levels] == ["locks", "cache", "event manager"]


def test_p3_13_what_waits_for_the_last_one_goes_on_without_the_new_one() -> None:
    """n0's leave is at the second barrier of the level: the successor on n2 has missed the first, and is not told."""
    cluster = joined_cluster(3, (LOCKS, TWICE))
    cluster.acknowledges = lambda node, notification: (
        not (node == 2 and (notification.level, notification.barrier) == (20, 1))
    )
    cluster.ask(1, LeaveNode("n1"))
    cluster.until("n2 holds the leave up", lambda: cluster.is_step(1, (20, 1)) and cluster.lives[2].owed)
    before = replace_at_once(cluster, TWICE)
    cluster.acknowledge_all()
    cluster.until("n1 has left", lambda: 1 not in cluster.lives and cluster.is_quiet(0, 2))
    cluster.until("the new one has joined", lambda: 20 in cluster.levels_in_record(2) and cluster.is_quiet(0, 2))
    fresh = cluster.notifications(2, level=20)[before:]
    assert [(n.node, n.kind, n.barrier) for n in fresh] == [(2, JOINING, 0), (2, JOINING, 1)]
    assert fresh[0].vector[1] is NodeState.INACTIVE or fresh[0].vector[1] is NodeState.LEAVING


def test_p3_13_the_only_one_at_a_forced_leave_s_later_barrier_is_replaced_and_its_successor_is_not_told_of_it() -> None:
    """Nobody else is at the level: the old registration is struck and the new one taken in by the same entry."""
    level = Level(20, "cache", Barriers(1, 1, 2))
    cluster = CoreCluster(3)
    cluster.boot(0, levels=(LOCKS,))
    for node in (1, 2):
        cluster.boot(node, levels=(LOCKS, level))
    cluster.until_joined(0, 1, 2)
    cluster.acknowledges = lambda node, notification: (
        not (node == 2 and (notification.level, notification.barrier) == (20, 1))
    )
    cluster.kill(1)
    cluster.until("n2 holds the forced leave up", lambda: cluster.is_step(1, (20, 1)) and cluster.lives[2].owed)
    before = replace_at_once(cluster, level)
    cluster.acknowledge_all()
    cluster.until("the new one has joined", lambda: 20 in cluster.levels_in_record(2) and cluster.is_quiet(0, 2))
    fresh = cluster.notifications(2, level=20)[before:]
    assert [(n.node, n.kind, n.barrier) for n in fresh] == [(2, JOINING, 0)]


def test_p3_13_when_the_master_dies_the_next_one_strikes_the_last_registration() -> None:
    cluster = half_way()
    cluster.loses = lambda envelope: envelope.sender == 2 and envelope.to == 0 and isinstance(envelope.message, Report)
    before = len(cluster.notifications(2, level=20))
    cluster.unregister(2, TWICE)
    cluster.register(2, TWICE)
    cluster.run(500)
    assert len(cluster.notifications(2, level=20)) == before
    cluster.kill(0)
    cluster.acknowledge_all()
    cluster.until("it has joined there", lambda: cluster.is_quiet(1, 2) and 20 in cluster.levels_in_record(2))
    own = [(n.node, n.kind, n.barrier) for n in cluster.notifications(2, level=20)[before:] if n.node == 2]
    assert own == [(2, JOINING, 0), (2, JOINING, 1)]


def test_p3_13_on_a_node_that_leaves_the_last_one_is_struck_and_the_new_one_hears_nothing() -> None:
    cluster = joined_cluster(3, (LOCKS, TWICE))
    cluster.acknowledges = lambda node, notification: not (node == 2 and notification.level == 20)
    cluster.ask(1, LeaveNode("n2"))
    cluster.until("its leave is at the level", lambda: cluster.is_step(2, (20, 0)) and cluster.lives[2].owed)
    before = replace_at_once(cluster, TWICE)
    cluster.until("n2 has left", lambda: 2 not in cluster.lives)
    assert len(cluster.notifications(2, level=20)) == before


def test_p3_13_a_program_that_returns_to_a_restarted_daemon_keeps_its_registration() -> None:
    cluster = half_way()
    before, identity = len(cluster.moments), cluster.lives[2].levels[-1].identity
    cluster.restart_daemon(2)
    cluster.until("it is told again", lambda: cluster.lives[2].owed)
    cluster.acknowledge_all()
    cluster.until("it has joined there", lambda: cluster.is_quiet(0, 1, 2))
    later = [moment.members[2] for moment in cluster.moments[before:] if 2 in moment.members]
    assert later and all(identity in [level.identity for level in member.levels] for member in later)


def test_p3_13_a_registration_that_cannot_be_told_from_the_last_one_is_a_bug_of_the_driver() -> None:
    subsystems = Subsystems(0, 1)
    subsystems.register(TWICE._replace(registration=5))
    subsystems.unregister(20)
    with pytest.raises(ValueError, match="level 20 registers as 5, after 5: take a higher one"):
        subsystems.register(TWICE._replace(registration=5))
    subsystems.register(TWICE._replace(registration=6))
