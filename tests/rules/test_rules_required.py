"""Levels that a node must have before it joins, and losses that a node does not outlive: P3.17 and P3.18."""

import msgspec
import pytest
from msgspec.structs import replace

from core_cluster import FILES, LOCKS, VOLUMES, CoreCluster, joined_cluster
from muster.core.draft import Draft, Facts
from muster.core.effects import Panic
from muster.core.membership import membership
from muster.core.node import insight
from muster.core.room import Room
from muster.core.transitions import narration as history
from muster.daemon.shell.readiness import is_ready, status_line
from muster.records.access import Author, Role
from muster.records.configuration import ConfigureCluster, RollBack
from muster.records.levels import EVENT_MANAGER_LEVEL, Level, Missing, NodeState, Required, TransitionKind
from muster.records.members import LeaveNode, Member, Waits
from muster.records.messages import Report
from muster.records.required_levels import MAXIMUM_REQUIRED, parse, text_of
from muster.records.terms import NO_TERM
from muster.records.versions import KERNELS_WORD

JOINING = TransitionKind.JOINING
ALICE = Author(1000, "alice", Role.ADMINISTRATOR, "n1")
STORAGE = Level(15, "storage")
HIGH = Level(60, "application")


def require(cluster: CoreCluster, value: str, node: str = "", through: int = 0) -> str:
    done = cluster.do(through, ConfigureCluster("required_levels", value, node=node), author=ALICE)
    assert not done.refused, done.outcome
    return done.outcome


def requiring(value: str = "storage:15", nodes: int = 2) -> CoreCluster:
    """n0 has joined, before the setting was made; all others are configured."""
    cluster = CoreCluster(nodes)
    cluster.boot(0)
    cluster.until_joined(0)
    require(cluster, value)
    return cluster


def missing(cluster: CoreCluster, node: int) -> tuple[Missing, ...]:
    waits = cluster.database.member(node).waits
    return waits.missing if waits is not None else ()


# ---- P3.17 -----------------------------------------------------------------------------------------------------------


def test_p3_17_a_join_is_not_opened_before_the_required_levels_are_registered() -> None:
    cluster = requiring("storage:15,30")
    cluster.boot(1, levels=(LOCKS,))
    cluster.until("it is known to wait", lambda: missing(cluster, 1))
    assert missing(cluster, 1) == (Missing(15, "storage"), Missing(30))
    cluster.register(1, STORAGE)
    cluster.until("one is there", lambda: missing(cluster, 1) == (Missing(30),))
    cluster.run(3000)
    assert cluster.state(1) is NodeState.INACTIVE
    assert not cluster.levels_of(1, JOINING)
    cluster.register(1, FILES)
    cluster.until_joined(1)
    assert cluster.levels_of(1, JOINING) == [10, 15, 30, 40]
    member = cluster.database.member(1)
    assert (member.waits, member.required) == (None, (15, 30))


def test_p10_15_a_start_is_over_with_the_join_or_when_a_program_is_waited_for_that_begins_after_it() -> None:
    cluster = requiring()
    cluster.boot(1)
    assert is_ready(cluster.core(0)) and not is_ready(cluster.core(1)), "it has not joined, and knows of no wait"
    cluster.until("it knows that it waits", lambda: insight.required_levels(cluster.core(1)))
    assert is_ready(cluster.core(1)), "the unit of that program is ordered after the node's"
    cluster.register(1, STORAGE)
    cluster.until_joined(1)
    assert is_ready(cluster.core(1))


def test_p3_17_a_program_of_another_name_does_not_count_and_is_named() -> None:
    cluster = requiring()
    cluster.boot(1, levels=(Level(15, "cache"),))
    cluster.until("it is known to wait", lambda: missing(cluster, 1))
    assert missing(cluster, 1) == (Missing(15, "storage", found="cache"),)
    cluster.until("it knows it, too", lambda: insight.required_levels(cluster.core(1)))
    assert status_line(cluster.core(1)).startswith("inactive, waits for storage (level 15), which cache has taken; ")
    (waiting,) = insight.required_levels(cluster.core(0))
    assert waiting.words.startswith("it waits for storage (level 15), which cache has taken, for ")


def test_p3_17_a_refusal_that_is_over_is_not_shown_beside_what_is_waited_for() -> None:
    cluster = requiring("storage:15")
    cluster.boot(1)
    cluster.until("it waits", lambda: missing(cluster, 1))
    waiting = cluster.database.member(1)
    cluster.database.members[1] = replace(waiting, refusal="its machine is not clean")
    draft = Draft(cluster.database)
    report = Report(NO_TERM, 0, cluster.core(1).incarnation, "join", (), (), ())
    seen = cluster.core(0).observer
    facts = Facts(cluster.now_us, 0, {1: report}, seen.evidence, seen.is_live, {}, {}, services_open=True)
    assert not membership._admit(draft, facts, 1, report)
    assert draft.member(1) == waiting


def test_p3_17_no_member_is_needed_to_lead_to_answer_and_to_correct_the_setting() -> None:
    cluster = requiring(nodes=2)
    cluster.do(0, LeaveNode("n0"))
    cluster.until("the last has left", lambda: 0 not in cluster.lives)
    cluster.boot(0, 1)
    cluster.until("both wait", lambda: cluster.masters() and missing(cluster, 0) and missing(cluster, 1))
    cluster.run(3000)
    assert [cluster.state(node) for node in (0, 1)] == [NodeState.INACTIVE] * 2
    assert insight.required_levels(cluster.core(1))  # any node can say it
    require(cluster, "none", through=1)
    cluster.until_joined(0, 1)


def test_p3_17_a_changed_setting_binds_the_next_join_only() -> None:
    cluster = joined_cluster(2, (LOCKS,))
    assert "binds the next join" in require(cluster, "storage:15")
    cluster.run(2000)
    assert [cluster.state(node) for node in (0, 1)] == [NodeState.JOINED] * 2
    cluster.unregister(1, LOCKS)
    cluster.run(1000)
    assert cluster.state(1) is NodeState.JOINED  # what was not required as it joined is not now
    cluster.kill(1)
    cluster.until("it is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    cluster.boot(1, levels=(LOCKS,))
    cluster.until("it waits", lambda: missing(cluster, 1))


def test_p3_17_a_node_may_have_a_setting_of_its_own() -> None:
    cluster = requiring("storage:15", nodes=3)
    assert require(cluster, "", node="n1") == "required_levels of n1 is none; it binds its next join"
    require(cluster, "volumes:20", node="n2")
    cluster.boot(1, 2)
    cluster.until_joined(1)
    assert missing(cluster, 2) == (Missing(20, "volumes"),)
    assert "that of the cluster" in require(cluster, "cluster", node="n2")
    cluster.until("it waits for another one", lambda: missing(cluster, 2) == (Missing(15, "storage"),))


def test_p3_17_after_the_bound_an_alarm_is_raised_once_and_the_node_goes_on_waiting() -> None:
    cluster = requiring()
    cluster.do(0, ConfigureCluster("required_levels_within", "2s"), author=ALICE)
    cluster.boot(1)
    cluster.until("it waits", lambda: missing(cluster, 1))
    assert not cluster.traces(history.OVERDUE)
    cluster.run(8000)
    ((_, by, text),) = cluster.traces(history.OVERDUE)
    assert by == 0
    assert text.startswith("join overdue: n1: it waits for storage (level 15)")
    assert all(insight.required_levels(cluster.core(node))[0].is_overdue for node in (0, 1))
    assert cluster.state(1) is NodeState.INACTIVE
    cluster.register(1, STORAGE)
    cluster.until_joined(1)
    assert not insight.required_levels(cluster.core(0))


def test_p3_17_the_next_master_knows_since_when_and_raises_the_alarm_again() -> None:
    cluster = CoreCluster(3)
    cluster.boot(0, 1)
    cluster.until_joined(0, 1)
    require(cluster, "storage:15")
    cluster.do(0, ConfigureCluster("required_levels_within", "4s"), author=ALICE)
    cluster.boot(2)
    cluster.until("it waits", lambda: missing(cluster, 2))
    cluster.run(3000)
    first = cluster.master
    cluster.kill(first)
    cluster.until("another leads", cluster.masters)
    cluster.until("it is overdue", lambda: cluster.traces(history.OVERDUE), within_ms=4000)
    assert missing(cluster, 2) == (Missing(15, "storage"),)


def test_p3_17_the_wait_of_a_node_that_has_died_is_forgotten() -> None:
    cluster = requiring()
    cluster.boot(1)
    cluster.until("it waits", lambda: missing(cluster, 1))
    cluster.kill(1)
    cluster.until("nobody waits", lambda: not missing(cluster, 1))


def test_p3_17_a_program_that_ends_before_the_join_is_waited_for_again() -> None:
    cluster = requiring("storage:15,30")
    cluster.boot(1, levels=(STORAGE,))
    cluster.until("it waits", lambda: missing(cluster, 1) == (Missing(30),))
    cluster.unregister(1, STORAGE)
    cluster.until("it waits for both", lambda: len(missing(cluster, 1)) == 2)
    cluster.register(1, FILES)
    cluster.run(2000)
    assert cluster.state(1) is NodeState.INACTIVE
    cluster.register(1, STORAGE._replace(registration=1))
    cluster.until_joined(1)
    assert 1 in cluster.lives


def test_p3_17_a_join_does_not_pass_a_required_level_that_has_deregistered_meanwhile() -> None:
    cluster = requiring("storage:15")
    cluster.acknowledges = lambda node, told: not (node == 1 and told.level == 10)
    cluster.boot(1, levels=(LOCKS, STORAGE, VOLUMES))
    cluster.until("the join is at 10", lambda: cluster.is_at(1, 10))
    cluster.unregister(1, STORAGE, departed=True)
    cluster.acknowledge_all()
    cluster.until("it waits", lambda: (found := cluster.transition(1)) is not None and found.awaits == 15)
    cluster.run(2000)
    assert cluster.levels_of(1, JOINING) == [10]
    (waiting,) = insight.required_levels(cluster.core(0))
    assert waiting.missing == (Missing(15, "storage"),)
    assert waiting.waited_ms > 1000
    cluster.register(1, STORAGE._replace(registration=1))
    cluster.until_joined(1)
    assert cluster.levels_of(1, JOINING) == [10, 15, 20, 40]


def test_p3_17_a_join_that_waits_for_a_required_level_may_still_turn_into_a_leave() -> None:
    cluster = requiring("storage:15")
    cluster.acknowledges = lambda node, told: not (node == 1 and told.level == 10)
    cluster.boot(1, levels=(LOCKS, STORAGE))
    cluster.until("the join is at 10", lambda: cluster.is_at(1, 10))
    cluster.unregister(1, STORAGE, departed=True)
    cluster.acknowledge_all()
    cluster.until("it waits", lambda: (found := cluster.transition(1)) is not None and found.awaits == 15)
    cluster.do(0, LeaveNode("n1"))
    cluster.until("it has left", lambda: cluster.state(1) is NodeState.INACTIVE)


def test_p3_17_the_setting_is_refused_with_what_is_wrong_and_needs_its_version() -> None:
    cluster = joined_cluster(1)
    for value, words in (
        ("storage", "names no level"),
        ("storage:", "names no level"),
        (":15", "names no program"),
        ("sto rage:15", "names no level"),
        ("40", "event manager"),
        ("0", "membership"),
        ("99999", "1 to 65535"),
        ("٣", "names no level"),
        ("a:15,b:15", "twice"),
        (",".join(str(50 + n) for n in range(MAXIMUM_REQUIRED + 1)), "at most 16"),
    ):
        done = cluster.do(0, ConfigureCluster("required_levels", value), author=ALICE)
        assert done.refused, value
        assert words in done.outcome, (value, done.outcome)
    assert "no node 'n7'" in cluster.do(0, ConfigureCluster("required_levels", "15", node="n7"), author=ALICE).outcome
    within = ConfigureCluster("required_levels_within", "soon")
    assert "a duration" in cluster.do(0, within, author=ALICE).outcome
    named = ConfigureCluster("observer_group", "x", node="n0")
    assert "whole cluster" in cluster.do(0, named, author=ALICE).outcome
    old = CoreCluster(1, active_version=KERNELS_WORD - 1)
    old.boot(0)
    old.until_joined(0)
    assert "needs version 3" in old.do(0, ConfigureCluster("required_levels", "15"), author=ALICE).outcome


def test_p3_17_the_setting_is_a_version_of_the_configuration_and_goes_back_with_it() -> None:
    cluster = joined_cluster(2)
    require(cluster, "storage:15")
    require(cluster, "20 , files:30", node="n1")
    cluster.do(0, ConfigureCluster("required_levels_within", "5m"), author=ALICE)
    database = cluster.database
    assert database.version == 3
    assert text_of(database.nodes[1].required_levels or ()) == "20,files:30"
    done = cluster.do(1, RollBack(0), author=ALICE)
    assert not done.refused, done.outcome
    assert cluster.database.nodes[1].required_levels is None
    shared = cluster.database.cluster
    assert (shared.required_levels, shared.required_within_ms) == ((), 60_000)
    cluster.do(1, RollBack(3), author=ALICE)
    assert cluster.database.cluster.required_levels == (Required(15, "storage"),)
    assert cluster.database.cluster.required_within_ms == 300_000
    assert cluster.database.nodes[1].required_levels == parse("20 files:30")


def test_p9_3_what_a_node_may_wait_for_has_its_room_before_it_waits() -> None:
    cluster = joined_cluster(1)
    database, room = cluster.database, Room(1 << 20)
    free = room.used(database)
    names = tuple(Required(1000 + number, f"{number:x}" * 64) for number in range(MAXIMUM_REQUIRED))
    database.cluster = replace(database.cluster, required_levels=names)
    counted = room.used(database)
    assert counted > free
    waits = Waits(1 << 60, 1 << 60, tuple(Missing(*each, "o" * 64) for each in names))
    database.members[0] = replace(Member(0), incarnation=1 << 60, waits=waits)
    assert room.used(database) <= counted
    joined = replace(cluster.database.member(0), waits=None, required=tuple(each.number for each in names))
    database.members[0] = joined
    assert room.used(database) <= counted
    assert len(msgspec.msgpack.encode(waits)) <= counted - free


# ---- P3.18 -----------------------------------------------------------------------------------------------------------


def with_storage(*levels: Level) -> CoreCluster:
    cluster = requiring()
    cluster.boot(1, levels=(STORAGE, *levels))
    cluster.until_joined(1)
    return cluster


def test_p3_18_the_end_of_a_required_program_fails_its_node() -> None:
    cluster = with_storage()
    require(cluster, "none")  # binds the next join only
    cluster.holds = lambda _envelope: True  # it needs nobody's word for that
    cluster.unregister(1, STORAGE)
    cluster.until("its node has ended", lambda: 1 not in cluster.lives, within_ms=50)
    cluster.release()
    (panic,) = [item.effect for item in cluster.history if isinstance(item.effect, Panic)]
    assert "has joined by that level" in panic.cause
    cluster.until("it is forced out", lambda: cluster.state(1) is NodeState.INACTIVE)


def test_p3_18_a_required_program_that_deregisters_fails_nobody() -> None:
    cluster = with_storage()
    cluster.unregister(1, STORAGE, departed=True)
    cluster.until("its level is gone", lambda: cluster.levels_in_record(1) == [40] and cluster.is_quiet(0, 1))
    cluster.register(1, STORAGE._replace(registration=1))
    cluster.until("its level is back", lambda: cluster.levels_in_record(1) == [15, 40])
    assert cluster.state(1) is NodeState.JOINED


@pytest.mark.parametrize("late", [False, True])
def test_p3_18_the_end_of_a_program_below_another_one_fails_its_node(late: bool) -> None:
    cluster = joined_cluster(2, (LOCKS,) if late else (LOCKS, HIGH))
    if late:
        cluster.register(1, HIGH)
        cluster.until("it counts", lambda: 60 in cluster.levels_in_record(1) and cluster.is_quiet(0, 1))
    cluster.unregister(1, LOCKS)
    cluster.until("its node has ended", lambda: 1 not in cluster.lives)
    cluster.until("it is forced out", lambda: cluster.state(1) is NodeState.INACTIVE)


def test_p3_18_the_event_manager_does_not_count_as_a_higher_level() -> None:
    cluster = joined_cluster(2, (LOCKS,))
    assert EVENT_MANAGER_LEVEL.number > LOCKS.number
    cluster.unregister(1, LOCKS)
    cluster.until("its level alone has gone", lambda: cluster.levels_in_record(1) == [40] and cluster.is_quiet(0, 1))
    assert cluster.state(1) is NodeState.JOINED


def test_p3_18_a_higher_level_that_a_leaving_node_has_left_stands_on_nothing() -> None:
    cluster = joined_cluster(2, (LOCKS, HIGH))
    cluster.acknowledges = lambda node, told: not (node == 0 and told.level == 10)
    cluster.do(0, LeaveNode("n1"))
    cluster.until("its leave is at 10", lambda: cluster.is_at(1, 10))
    cluster.unregister(1, LOCKS)
    cluster.acknowledge_all()
    cluster.until("it has left", lambda: cluster.state(1) is NodeState.INACTIVE)
    proof = cluster.database.member(1).last_proof
    assert proof is None, proof


def test_p3_18_a_loss_that_came_before_the_sight_of_the_opened_join_is_judged_then() -> None:
    cluster = requiring()
    cluster.boot(1)
    cluster.until("it waits", lambda: missing(cluster, 1))
    cluster.register(1, STORAGE)
    cluster.holds = lambda envelope: envelope.sender == 0
    cluster.until("the join is open", lambda: cluster.core(0).database.member(1).state is NodeState.JOINING)
    cluster.unregister(1, STORAGE)
    assert 1 in cluster.lives
    cluster.release()
    cluster.until("its node has ended", lambda: 1 not in cluster.lives)
