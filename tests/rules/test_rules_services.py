"""Services: the rules P6.x of docs/PROTOCOL.md, each by the tests named after it (SPEC 6.6-6.8, 7.7).

P6.4 to P6.17 are rows of one table, and each is proven on one snapshot of three nodes; the others on running nodes.
"""

import itertools

import pytest
from msgspec.structs import replace

from core_cluster import LOCKS, CoreCluster, Envelope, joined_cluster
from muster.client.locks.terms import Token
from muster.core.draft import Draft, Facts
from muster.core.effects import RunCommand
from muster.core.launching.ledger import is_newer
from muster.core.services.commands import Executor
from muster.core.services.table import ACTION_OF, RULES, Event, advance, is_lost
from muster.records.database import Database
from muster.records.levels import EVENT_MANAGER_LEVEL, Level, NodeState, TransitionKind
from muster.records.members import Eviction, EvictNode, LeaveNode, Member
from muster.records.messages import Append, Report
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import (
    ApplyServices,
    CommandState,
    Definition,
    DeregisterService,
    RestartService,
    Service,
    ServiceState,
    TransferService,
    token_of,
)
from muster.records.terms import NO_NODE, Term
from muster.records.timing import FAST
from muster.records.transitions import Transition
from muster.records.versions import HIGHEST, TOKENS

DEREGISTERED, STARTING, REGISTERED, STOPPING, RECOVERING = ServiceState
START, STOP, RECOVERY = ("/bin/start",), ("/bin/stop",), ("/bin/recover",)
FULL = Definition("web", start_command=START, stop_command=STOP, recovery_command=RECOVERY)
UP = Member(0, NodeState.JOINED, 5, (LOCKS, EVENT_MANAGER_LEVEL), told_level=40)
INDEX = 10
ON_N0 = Service(FULL, 3, REGISTERED, wanted=True, node=0, incarnation=5, generation=8, launched=True)


def changed(
    service: Service,
    *,
    result: bool | None = None,
    left: bool = True,
    members: dict[int, Member] | None = None,
    transitions: tuple[Transition, ...] = (),
    silent: tuple[int, ...] = (),
    generation: int | None = None,
) -> Service:
    """The service's record after one round of the master on a cluster of n0, n1 and n2, all joined but for `members`.

    `result`: how the service's present command has ended, as its node reports it; `left`: something of it is left.
    `silent` nodes have not reported. `generation`: what was done is of this one, not of the service's.
    """
    everyone = {node: replace(UP, node=node) for node in range(3)} | (members or {})
    nodes = {node: NodeConfig(node, f"n{node}", (), "") for node in range(3)}
    database = Database(
        Cluster("test", "0" * 32, "fast", "", active_version=HIGHEST), INDEX, nodes=nodes, members=everyone
    )
    database.services["web"] = service
    database.transitions.update({each.identity: each for each in transitions})
    reports = {node: Report(Term(1, 0), INDEX, 5, "", ()) for node in range(3) if node not in silent}
    if result is not None:
        said = service.generation if generation is None else generation
        command = CommandState("web", said, ACTION_OF[service.state], True, result, "exit status 1", left)
        reports[service.node] = replace(reports[service.node], commands=(command,))
    facts = Facts(0, 0, reports, lambda _n, _i: None, lambda _n: True, {}, {}, services_open=True)
    draft = Draft(database)
    advance(draft, facts)
    return draft.services["web"]


def state_of(service: Service) -> tuple[ServiceState, int]:
    return service.state, service.node


LOST = {0: Member(0, NodeState.INACTIVE, 5)}  # n0 was forced out
LEAVING = {0: replace(UP, state=NodeState.LEAVING)}
ALL_DOWN = {node: Member(node, NodeState.INACTIVE, 5) for node in range(3)}
IDLE = Service(FULL, 3, wanted=True)
STARTS = replace(ON_N0, state=STARTING, reason="registered", matured=True)
STOPS = replace(ON_N0, state=STOPPING, intent=True, origin=0)
RECOVERS = replace(ON_N0, state=RECOVERING, intent=True, previous=2, launched=False)


# ---- P6.4 to P6.17, the table ----------------------------------------------------------------------------------------


def test_p6_4_what_is_wanted_starts_on_the_chosen_node_with_a_new_generation() -> None:
    after = changed(replace(IDLE, definition=replace(FULL, ordered=("n1",))))
    assert state_of(after) == (STARTING, 1)
    assert (after.generation, after.incarnation) == (INDEX + 1, 5)


def test_p6_4_without_a_start_command_it_is_registered_at_once() -> None:
    after = changed(replace(IDLE, definition=replace(FULL, start_command=())))
    assert state_of(after) == (REGISTERED, 0)
    assert not after.launched


@pytest.mark.parametrize("idle", [replace(IDLE, wanted=False), replace(IDLE, cause="stuck")])
def test_p6_4_what_is_not_wanted_or_stuck_or_has_no_node_left_stays(idle: Service) -> None:
    assert changed(idle) == idle
    assert changed(IDLE, members=ALL_DOWN) == IDLE


def test_p6_4_while_none_is_up_a_transfer_has_nowhere_to_go_and_a_first_start_waits() -> None:
    after = changed(replace(IDLE, intent=True, origin=0, target=2), members=ALL_DOWN)
    assert after == IDLE


def test_p6_4_where_every_node_that_is_up_has_failed_it_says_so() -> None:
    after = changed(replace(IDLE, failed=(0, 1, 2)))
    assert state_of(after) == (DEREGISTERED, NO_NODE)
    assert "start failed on n0, n1, n2" in after.cause and "muster service register web" in after.cause


def test_p6_5_a_start_that_succeeded_registers_and_clears_intent_target_and_failures() -> None:
    after = changed(replace(STARTS, intent=True, origin=1, target=0, failed=(2,)), result=True)
    assert state_of(after) == (REGISTERED, 0)
    assert (after.intent, after.origin, after.target, after.failed) == (False, NO_NODE, NO_NODE, ())
    assert after.generation == STARTS.generation


def test_p6_20_what_became_of_an_earlier_command_says_nothing_of_the_present_one() -> None:
    for result in (True, False):
        assert changed(STARTS, result=result, generation=STARTS.generation - 1) == STARTS


def test_p6_9_without_a_stop_command_stopping_is_skipped_only_where_the_start_has_left_nothing_running() -> None:
    startable = replace(STARTS, definition=replace(FULL, stop_command=()))
    for left, state in ((True, STOPPING), (False, DEREGISTERED)):
        registered = changed(startable, result=True, left=left)
        assert state_of(registered) == (REGISTERED, 0)
        assert state_of(changed(replace(registered, wanted=False)))[0] is state
    for left in (True, False):  # a stop command is run in any case
        assert changed(replace(changed(STARTS, result=True, left=left), wanted=False)).state is STOPPING
    assert changed(replace(startable, wanted=False)).state is STOPPING  # it may yet leave something


def test_p6_6_a_start_that_failed_goes_on_with_the_next_node() -> None:
    after = changed(STARTS, result=False)
    assert state_of(after) == (DEREGISTERED, NO_NODE)
    assert (after.failed, after.cause, after.previous) == ((0,), "", 0)
    assert state_of(changed(after)) == (STARTING, 1)  # n0 is passed over in this round


def test_p6_6_when_the_node_that_was_asked_for_fails_the_one_left_for_it_counts_as_any_other() -> None:
    preferred = replace(FULL, ordered=("n1",))
    moved = replace(STARTS, definition=preferred, intent=True, origin=1, target=0)
    after = changed(changed(moved, result=False))
    assert state_of(after) == (STARTING, 1)
    assert after.intent
    away = replace(moved, target=NO_NODE)  # it was to leave n1, wherever to
    assert state_of(changed(changed(away, result=False))) == (STARTING, 2)
    leaving = {1: replace(UP, node=1, state=NodeState.LEAVING)}
    assert changed(moved, result=False, members=leaving).origin == 1  # the leave waits for the start elsewhere


def test_p6_6_a_start_that_failed_of_what_is_not_wanted_any_more_needs_nobody_to_mend_it() -> None:
    after = changed(replace(STARTS, wanted=False, intent=True, origin=1), result=False)
    assert state_of(after) == (DEREGISTERED, NO_NODE)
    assert (after.cause, after.intent, after.origin) == ("", False, NO_NODE)


def test_p6_6_when_no_node_is_left_it_is_stuck_with_a_cause() -> None:
    after = changed(replace(STARTS, failed=(1, 2), intent=True, origin=2), result=False)
    assert state_of(after) == (DEREGISTERED, NO_NODE)
    assert "start failed on n1, n2, n0; last: exit status 1" in after.cause
    assert (after.intent, after.failed) == (False, (1, 2, 0))
    assert changed(after) == after


def test_p6_7_a_loss_while_starting_counts_as_a_failed_start_and_the_next_start_is_told() -> None:
    after = changed(STARTS, members=LOST)
    assert state_of(after) == (DEREGISTERED, NO_NODE)  # and is not recovered, though it has a command for that
    assert after.reason == "lost while starting: n0 was lost"
    following = changed(after, members=LOST)
    assert state_of(following) == (STARTING, 1)
    assert (following.reason, following.previous) == (after.reason, 0)


@pytest.mark.parametrize("members", [{}, LEAVING])
def test_p6_8_an_unwanted_start_is_stopped_by_a_higher_generation(members: dict[int, Member]) -> None:
    after = changed(replace(STARTS, wanted=bool(members)), members=members)
    assert state_of(after) == (STOPPING, 0)
    assert after.generation == INDEX + 1 > STARTS.generation
    assert after.intent is bool(members)


@pytest.mark.parametrize("members", [{}, LEAVING])
def test_p6_9_what_is_unwanted_where_it_is_stops_with_intent_unless_it_was_de_registered(
    members: dict[int, Member],
) -> None:
    after = changed(replace(ON_N0, wanted=bool(members)), members=members)
    assert state_of(after) == (STOPPING, 0)
    assert (after.intent, after.origin) == ((True, 0) if members else (False, NO_NODE))
    assert after.generation == INDEX + 1


def test_p6_9_a_transfer_stops_with_intent() -> None:
    after = changed(replace(ON_N0, intent=True, origin=0, target=2))
    assert (state_of(after), after.intent, after.target) == ((STOPPING, 0), True, 2)


def test_p6_9_what_a_start_left_is_ended_even_without_a_stop_command() -> None:
    definition = replace(FULL, stop_command=())
    after = changed(replace(ON_N0, definition=definition, wanted=False))
    assert state_of(after) == (STOPPING, 0)
    redefined = replace(definition, start_command=())  # since it was launched
    assert state_of(changed(replace(ON_N0, definition=redefined, wanted=False))) == (STOPPING, 0)
    nothing_runs = replace(ON_N0, definition=redefined, wanted=False, launched=False)
    assert state_of(changed(nothing_runs)) == (DEREGISTERED, NO_NODE)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize(("rule", "before"), [("P6.10", ON_N0), ("P6.13", STOPS), ("P6.17", RECOVERS)])
def test_p6_10_p6_13_p6_17_what_is_lost_is_recovered_first_if_it_can_be(
    rule: str, before: Service, wanted: bool
) -> None:
    after = changed(replace(before, wanted=wanted), members=LOST)
    assert state_of(after) == (RECOVERING, 1), rule
    assert after.intent is wanted
    assert after.generation == INDEX + 1
    assert after.previous == (2 if before is RECOVERS else 0)  # where it ran, not where its recovery was lost
    assert not after.launched
    nobody = changed(replace(before, wanted=wanted), members=ALL_DOWN)
    assert state_of(nobody) == (RECOVERING, NO_NODE)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize(("rule", "before"), [("P6.10", ON_N0), ("P6.13", STOPS), ("P6.17", RECOVERS)])
def test_p6_10_p6_13_p6_17_without_a_recovery_command_it_is_de_registered(
    rule: str, before: Service, wanted: bool
) -> None:
    definition = replace(FULL, recovery_command=())
    after = changed(replace(before, definition=definition, wanted=wanted), members=LOST)
    assert state_of(after) == (DEREGISTERED, NO_NODE), rule
    assert (after.intent, after.previous, after.cause) == (wanted, 0, "")
    if wanted:
        assert state_of(changed(after, members=LOST)) == (STARTING, 1)


def test_p6_11_a_stop_that_succeeded_de_registers_and_keeps_the_intent_while_a_node_is_left() -> None:
    after = changed(STOPS, members=LEAVING, result=True)
    assert state_of(after) == (DEREGISTERED, NO_NODE)
    assert (after.intent, after.origin, after.launched) == (True, 0, False)
    assert state_of(changed(after, members=LEAVING)) == (STARTING, 1)


def test_p6_11_the_intent_is_cleared_if_no_allowable_node_remains() -> None:
    only_here = replace(STOPS, definition=replace(FULL, allowable_nodes=("n0",)))
    after = changed(only_here, members=LEAVING, result=True)
    assert (state_of(after), after.intent, after.origin) == ((DEREGISTERED, NO_NODE), False, NO_NODE)


@pytest.mark.parametrize("wanted", [True, False])
def test_p6_12_a_stop_that_failed_stays_where_it_is_with_a_cause(wanted: bool) -> None:
    after = changed(replace(STOPS, wanted=wanted), result=False)
    assert state_of(after) == (STOPPING, 0)
    assert "stop failed on n0: exit status 1" in after.cause and "muster node evict n0" in after.cause
    assert changed(after, result=False) == after
    assert changed(after, result=True) == after  # nor by the same result once more


def test_p6_13_what_failed_to_stop_is_released_by_the_proof_that_its_node_is_dead() -> None:
    after = changed(replace(STOPS, cause="stop failed on n0"), members=LOST)
    assert (state_of(after), after.cause) == ((RECOVERING, 1), "")


def test_p6_14_a_recovery_begins_when_a_node_for_it_is_up() -> None:
    waiting = replace(RECOVERS, node=NO_NODE, incarnation=0, generation=8)
    assert changed(waiting, members=ALL_DOWN) == waiting
    after = changed(waiting, members=ALL_DOWN | {2: replace(UP, node=2)})
    assert state_of(after) == (RECOVERING, 2)
    assert (after.generation, after.incarnation) == (INDEX + 1, 5)


@pytest.mark.parametrize("wanted", [True, False])
def test_p6_15_a_recovery_that_succeeded_de_registers_with_intent_if_wanted(wanted: bool) -> None:
    after = changed(replace(RECOVERS, wanted=wanted, failed=(1,)), result=True)
    assert state_of(after) == (DEREGISTERED, NO_NODE)
    assert (after.intent, after.failed, after.previous) == (wanted, (), 2)
    assert state_of(changed(after))[0] is (STARTING if wanted else DEREGISTERED)


def test_p6_16_a_recovery_that_failed_goes_on_with_the_next_node() -> None:
    after = changed(RECOVERS, result=False)
    assert state_of(after) == (RECOVERING, 1)
    assert (after.failed, after.generation, after.previous) == ((0,), INDEX + 1, 2)


def test_p6_16_when_no_node_is_left_the_recovery_is_stuck_with_a_cause() -> None:
    after = changed(replace(RECOVERS, failed=(1, 2)), result=False)
    assert state_of(after) == (DEREGISTERED, NO_NODE)
    assert "recovery failed on n1, n2, n0; last: exit status 1" in after.cause
    assert changed(after) == after


def test_p6_4_to_p6_17_and_p6_21_to_p6_26_are_all_there_is_and_every_state_is_reached() -> None:
    assert len(RULES) == 20
    for pair in set(itertools.product(ServiceState, Event)) - set(RULES):
        with pytest.raises(KeyError):
            RULES[pair]
    assert {state for state, _ in RULES} == set(ServiceState)


# ---- P6.1 one step an entry ------------------------------------------------------------------------------------------

WEB = ApplyServices((replace(FULL, ordered=("n1",)),))
# SPEC 6.7 by hand: what may follow what in two successive entries.
FOLLOWS = {
    (DEREGISTERED, STARTING),
    (STARTING, REGISTERED),
    (STARTING, STOPPING),
    (STARTING, DEREGISTERED),
    (REGISTERED, STOPPING),
    (REGISTERED, RECOVERING),
    (STOPPING, DEREGISTERED),
    (STOPPING, RECOVERING),
    (RECOVERING, DEREGISTERED),
}


def serving_cluster(nodes: int = 3, levels: tuple[Level, ...] = ()) -> CoreCluster:
    """A cluster with the service on n1, and after that rather on n2 than on n0."""
    cluster = joined_cluster(nodes, levels)
    ordered = tuple(f"n{node}" for node in range(1, nodes))
    assert not cluster.do(0, ApplyServices((replace(FULL, ordered=ordered),))).refused
    cluster.until("web is on n1", lambda: cluster.is_quiet() and state_of(cluster.service()) == (REGISTERED, 1))
    return cluster


def states_seen(cluster: CoreCluster, node: int) -> list[tuple[ServiceState, int]]:
    """The service's states as this node's replica went through them, without repetitions."""
    seen = [state_of(moment.services["web"]) for moment in cluster.moments if moment.node == node and moment.services]
    return [state for state, _ in itertools.groupby(seen)]


def test_p6_1_every_state_that_a_service_goes_through_is_committed_told_and_seen() -> None:
    cluster = serving_cluster()
    cluster.do(2, TransferService("web"))
    cluster.until("web is on n2", lambda: state_of(cluster.service()) == (REGISTERED, 2))
    cluster.kill(2)
    cluster.until("web is on n1", lambda: state_of(cluster.service()) == (REGISTERED, 1))
    cluster.do(0, DeregisterService("web"))
    cluster.until("web is down", lambda: cluster.is_quiet() and cluster.service().state is DEREGISTERED)
    expected = [
        *((STARTING, 1), (REGISTERED, 1), (STOPPING, 1), (DEREGISTERED, NO_NODE), (STARTING, 2), (REGISTERED, 2)),
        *((RECOVERING, 1), (DEREGISTERED, NO_NODE), (STARTING, 1), (REGISTERED, 1), (STOPPING, 1)),
        (DEREGISTERED, NO_NODE),
    ]
    for node in (0, 1):
        assert states_seen(cluster, node) == expected
    assert {(a, b) for (a, _), (b, _) in itertools.pairwise(expected)} <= FOLLOWS


# ---- P6.2 inventory first --------------------------------------------------------------------------------------------


def cluster_with_a_silent_member() -> CoreCluster:
    """n0 is dead and n1 master; n3 has not reported to it; a service is asked for."""
    cluster = joined_cluster(4)
    cluster.loses = lambda envelope: envelope.sender == 3 and isinstance(envelope.message, Report)
    cluster.kill(0)
    cluster.until("n1 is master", lambda: cluster.masters() == [1])
    assert not cluster.do(1, WEB).refused
    cluster.run(300)
    assert cluster.service() == Service(WEB.definitions[0], cluster.service().uid, wanted=True)
    return cluster


def test_p6_2_a_new_master_changes_no_service_before_every_member_has_reported() -> None:
    cluster = cluster_with_a_silent_member()
    cluster.run(3000)
    assert state_of(cluster.service()) == (DEREGISTERED, NO_NODE)
    cluster.loses = lambda _envelope: False
    cluster.until("web goes on", lambda: state_of(cluster.service()) == (REGISTERED, 1))


@pytest.mark.parametrize("fate", ["is dead", "is condemned"])
def test_p6_2_a_member_that_is_dead_or_condemned_is_not_waited_for(fate: str) -> None:
    cluster = cluster_with_a_silent_member()
    if fate == "is dead":
        cluster.kill(3)
    else:
        cluster.do(1, EvictNode("n3", "by hand"))
    cluster.until("web goes on", lambda: state_of(cluster.service()) == (STARTING, 1))
    assert (3 in cluster.lives) == (fate == "is condemned")


def test_p6_2_no_service_is_changed_on_a_node_whose_report_of_this_term_is_missing() -> None:
    for before in (replace(STARTS, wanted=False), replace(ON_N0, wanted=False), replace(ON_N0, intent=True, origin=0)):
        assert changed(before, silent=(0,)) == before
    assert state_of(changed(IDLE, silent=(0,))) == (STARTING, 1)
    assert state_of(changed(IDLE, silent=(0, 1, 2))) == (DEREGISTERED, NO_NODE)
    condemned = {0: replace(UP, eviction=Eviction(5, "to go"))}
    assert state_of(changed(IDLE, members=condemned)) == (STARTING, 1)


def test_p6_2_what_an_old_master_still_sends_is_refused() -> None:
    cluster = serving_cluster()
    cluster.loses = lambda envelope: envelope.sender == 0 and isinstance(envelope.message, Append)
    cluster.do(0, TransferService("web", "n2"))
    cluster.until("n0 has decided the stop", lambda: cluster.core(0).database.services["web"].state is STOPPING)
    appends = cluster.sent(Append, 0)
    assert appends[-1].term == Term(1, 0)
    cluster.kill(0)
    cluster.loses = lambda _envelope: False
    cluster.until("n1 has taken over", lambda: cluster.masters() == [1] and not cluster.database.transitions)
    cluster.until("and goes on with it", lambda: state_of(cluster.service()) == (REGISTERED, 2))
    given = len(cluster.commands())
    for append in appends:
        cluster.deliver(_from_n0(append))
    cluster.run(1000)
    assert len(cluster.commands()) == given


def _from_n0(append: Append) -> Envelope:
    return Envelope(0, 1, append)


# ---- P6.3 lost -------------------------------------------------------------------------------------------------------


def test_p6_3_a_service_is_lost_only_when_the_forced_leave_has_reached_the_event_manager() -> None:
    cluster = serving_cluster(3, (LOCKS,))
    cluster.acknowledges = lambda node, _notification: node != 2
    cluster.kill(1)
    cluster.run(FAST.lease_ms - FAST.renew_ms)
    assert state_of(cluster.service()) == (REGISTERED, 1)
    cluster.until("n1 is forced out at the locks", lambda: cluster.is_at(1, 10))
    cluster.run(2000)
    assert state_of(cluster.service()) == (REGISTERED, 1)  # its locks are not recovered yet
    assert cluster.commands() == [(1, "start")]
    cluster.acknowledge_all()
    cluster.until("web is on n2", lambda: state_of(cluster.service()) == (REGISTERED, 2))
    assert cluster.commands() == [(1, "start"), (2, "recovery"), (2, "start")]


@pytest.mark.parametrize(
    ("state", "incarnation", "level", "lost"),
    [
        (NodeState.JOINED, 5, None, False),
        (NodeState.LEAVING, 5, 10, False),
        (NodeState.FORCED_LEAVING, 5, 10, False),
        (NodeState.FORCED_LEAVING, 5, 40, True),
        (NodeState.INACTIVE, 5, None, True),
        (NodeState.JOINING, 6, 10, True),  # the next life: this one has been forced out
        (NodeState.JOINED, 6, None, True),
    ],
)
def test_p6_3_lost_is_what_was_on_an_incarnation_that_is_gone(
    state: NodeState, incarnation: int, level: int | None, lost: bool
) -> None:
    member = replace(UP, state=state, incarnation=incarnation)
    database = Database(Cluster("test", "0" * 32, "fast", ""), INDEX, members={0: member})
    if level is not None:
        kind = TransitionKind(state.value)
        levels = (40, 10) if kind is TransitionKind.LEAVING else (10, 40)
        database.transitions[700] = Transition(700, 0, incarnation, kind, levels, levels.index(level))
    assert is_lost(ON_N0, Draft(database)) is lost


def test_p6_3_an_evicted_node_that_still_runs_has_lost_nothing() -> None:
    condemned = {0: replace(UP, eviction=Eviction(5, "to go"))}
    assert changed(ON_N0, members=condemned) == ON_N0


# ---- P6.18 leaving ---------------------------------------------------------------------------------------------------


def test_p6_18_a_leave_waits_at_the_event_manager_for_the_stop_and_for_the_start_elsewhere() -> None:
    cluster = serving_cluster()
    cluster.outcome = lambda _node, _command: None
    cluster.do(0, LeaveNode("n1"))
    cluster.until("web stops", lambda: "web" in cluster.lives[1].running)
    cluster.run(1500)
    assert cluster.is_at(1, 40, TransitionKind.LEAVING)
    assert state_of(cluster.service()) == (STOPPING, 1)
    cluster.finish(1, "web")
    cluster.until("web starts elsewhere", lambda: "web" in cluster.lives[2].running)
    cluster.run(1500)
    assert cluster.is_at(1, 40, TransitionKind.LEAVING)
    assert state_of(cluster.service()) == (STARTING, 2)
    cluster.finish(2, "web")
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)
    assert state_of(cluster.service()) == (REGISTERED, 2)


def test_p6_18_a_leave_does_not_wait_where_no_allowable_node_remains() -> None:
    cluster = joined_cluster(2)
    cluster.do(0, ApplyServices((replace(FULL, allowable_nodes=("n1",)),)))
    cluster.until("web is on n1", lambda: state_of(cluster.service()) == (REGISTERED, 1))
    cluster.do(0, LeaveNode("n1"))
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)
    assert (cluster.service().state, cluster.service().intent) == (DEREGISTERED, False)


def test_p6_18_a_leave_does_not_wait_for_a_start_that_has_been_given_up() -> None:
    cluster = serving_cluster(2)
    cluster.outcome = lambda _node, command: command.action != "start"
    cluster.do(0, LeaveNode("n1"))
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)
    assert "start failed on" in cluster.service().cause


def test_p6_31_what_a_check_wrote_keeps_no_command_from_being_run() -> None:
    database = Database(Cluster("test", "0" * 32, "fast", ""), INDEX, members={0: UP})
    database.services["web"] = replace(STOPS, reason="its check failed: a\0b")
    (command,) = Executor(0, 5, ()).due(database)
    assert command.environment["MUSTER_REASON"] == "its check failed: a?b"


# ---- P6.41 tokens ----------------------------------------------------------------------------------------------------


def test_p6_41_each_owner_has_a_higher_token_though_nobody_comes_or_goes() -> None:
    cluster = serving_cluster()
    for target in (2, 1, 2):  # there and back
        cluster.do(0, TransferService("web", f"n{target}"))
        there = (REGISTERED, target)
        cluster.until("web has moved", lambda there=there: state_of(cluster.service()) == there)  # type: ignore[misc]
    cluster.do(0, RestartService("web"))  # another owner, though it is the same incarnation
    cluster.until("web has stopped", lambda: cluster.service().state is not REGISTERED)
    cluster.until("web is there again", lambda: state_of(cluster.service()) == (REGISTERED, 2))
    commands = [item.effect for item in cluster.history if isinstance(item.effect, RunCommand)]
    told = [(each.action, each.environment["MUSTER_TOKEN"]) for each in commands]
    starts, stops = ([token for action, token in told if action == wanted] for wanted in ("start", "stop"))
    assert len({each.environment["MUSTER_EPOCH"] for each in commands}) == 1
    assert len(starts) == 5 and starts == sorted(set(starts))
    assert stops == starts[:-1]
    assert cluster.service().token == token_of(cluster.service().generation)
    assert starts[-1] == str(Token(cluster.service().token, 0))


def test_p6_41_who_recovers_is_an_owner_and_who_then_starts_is_the_next() -> None:
    recovering = changed(replace(ON_N0, token=5), members=LOST)
    assert (recovering.state, recovering.token) == (RECOVERING, token_of(INDEX + 1))
    idle = changed(replace(recovering, generation=8), result=True, members=LOST)
    assert (idle.state, idle.token) == (DEREGISTERED, recovering.token)
    plain = replace(IDLE, definition=replace(FULL, start_command=()))
    assert changed(plain).token == token_of(INDEX + 1)
    assert changed(replace(STOPS, token=5), result=True).token == 5


def test_p6_41_there_are_no_tokens_before_version_6() -> None:
    cluster = CoreCluster(1, active_version=TOKENS - 1)
    cluster.boot(0)
    cluster.until_joined(0)
    cluster.do(0, ApplyServices((FULL,)))
    cluster.until("web runs", lambda: cluster.service().state is REGISTERED)
    assert cluster.service().token == 0
    (start,) = [item.effect for item in cluster.history if isinstance(item.effect, RunCommand)]
    assert start.environment["MUSTER_TOKEN"] == ""


# ---- P6.20 generations -----------------------------------------------------------------------------------------------


def test_p6_20_only_a_higher_generation_is_run() -> None:
    assert [is_newer(generation, 7) for generation in (6, 7, 8)] == [False, False, True]
    seen = CommandState("web", 8, "start", finished=True, succeeded=True)
    database = Database(Cluster("test", "0" * 32, "fast", ""), INDEX, members={0: UP})
    for generation, due in ((7, 0), (8, 0), (9, 1)):
        database.services["web"] = replace(STARTS, generation=generation)
        assert len(Executor(0, 5, (seen,)).due(database)) == due


def test_p6_20_what_an_earlier_incarnation_was_told_to_run_is_not_run() -> None:
    database = Database(Cluster("test", "0" * 32, "fast", ""), INDEX, members={0: UP})
    database.services["web"] = STARTS
    assert Executor(0, STARTS.incarnation, ()).due(database)
    assert not Executor(0, STARTS.incarnation + 1, ()).due(database)
    assert not Executor(1, STARTS.incarnation, ()).due(database)


def test_p6_20_each_command_of_a_service_has_a_higher_generation_than_the_last() -> None:
    cluster = serving_cluster()
    cluster.do(2, TransferService("web"))
    cluster.until("web is on n2", lambda: state_of(cluster.service()) == (REGISTERED, 2))
    cluster.kill(2)
    cluster.until("web is on n1", lambda: state_of(cluster.service()) == (REGISTERED, 1))
    commands = [item.effect for item in cluster.history if isinstance(item.effect, RunCommand)]
    generations = [command.generation for command in commands]
    assert len(generations) == 5
    assert generations == sorted(set(generations))
    assert all(command.environment["MUSTER_GENERATION"] == str(command.generation) for command in commands)


def test_p6_20_a_daemon_that_dies_after_giving_a_command_gives_it_no_second_time() -> None:
    cluster = joined_cluster(2)
    cluster.outcome = lambda _node, _command: None
    cluster.do(0, ApplyServices((replace(FULL, ordered=("n1",)),)))
    cluster.until("the start runs", lambda: "web" in cluster.lives[1].running)
    cluster.restart_daemon(1)
    cluster.run(1500)
    assert cluster.commands() == [(1, "start")]
    cluster.finish(1, "web")
    cluster.until("it is registered", lambda: state_of(cluster.service()) == (REGISTERED, 1))
    assert cluster.commands() == [(1, "start")]


def test_p6_20_what_ended_while_no_daemon_was_there_is_taken_from_the_inventory() -> None:
    cluster = joined_cluster(2)
    cluster.outcome = lambda _node, _command: None
    cluster.do(0, ApplyServices((replace(FULL, ordered=("n1",)),)))
    cluster.until("the start runs", lambda: "web" in cluster.lives[1].running)
    cluster._end_daemon(cluster.lives[1])
    cluster.finish(1, "web")
    cluster.run(500)
    assert state_of(cluster.service()) == (STARTING, 1)
    cluster._start_daemon(cluster.lives[1])
    cluster.until("it is registered", lambda: state_of(cluster.service()) == (REGISTERED, 1))
    assert cluster.commands() == [(1, "start")]


def test_p6_20_a_stop_cancels_a_start_that_never_ends() -> None:
    cluster = joined_cluster(2)
    cluster.outcome = lambda _node, command: None if command.action == "start" else True
    cluster.do(0, WEB)
    cluster.until("the start runs", lambda: "web" in cluster.lives[1].running)
    cluster.do(0, DeregisterService("web"))
    cluster.until("it is de-registered", lambda: cluster.service().state is DEREGISTERED)
    assert cluster.commands() == [(1, "start"), (1, "stop")]
