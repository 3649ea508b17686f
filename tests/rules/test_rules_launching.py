"""Registration and launch: P6.21 to P6.30 of docs/PROTOCOL.md, on rounds of the master's rules (SPEC 5.4, 6.2-6.8)."""

import pytest
from msgspec.structs import replace

from muster.core.services.commands import Executor
from muster.core.services.conditions import MAXIMUM_TAKEOVERS
from muster.records.numbers import NO_STATUS
from muster.records.services import (
    ApplyServices,
    ClearService,
    Definition,
    DeregisterService,
    FailService,
    RegisterService,
    RestartService,
    ServiceState,
    SetMaintenance,
    SetStandby,
    TransferService,
)
from muster.records.terms import NO_NODE
from rounds import Rounds

DEREGISTERED, STARTING, REGISTERED, STOPPING, RECOVERING = ServiceState
START, STOP, RECOVERY = ("/bin/start",), ("/bin/stop",), ("/bin/recover",)
WEB = Definition("web", start_command=START, stop_command=STOP)
TABLE_2 = replace(WEB, allowable_nodes=("n0", "n1"), maturity_count=2, maturity_time_ms=300_000)
FREE = replace(WEB, ordered=("n0", "n1"), free_transfer=True)
GROUP = (
    replace(WEB, name="disk"),
    replace(WEB, name="database", parent="disk"),
    replace(WEB, name="web", parent="database"),
    replace(WEB, name="mail", parent="database"),
)


def settled(*definitions: Definition, nodes: int = 3, up: tuple[int, ...] | None = None) -> Rounds:
    rounds = Rounds(nodes, up)
    rounds.define(*definitions)
    rounds.settle()
    return rounds


# ---- P6.21, P6.22 maturity -------------------------------------------------------------------------------------------


def test_p6_21_a_first_registration_waits_until_the_time_is_over() -> None:
    rounds = settled(TABLE_2, up=(2,))
    assert rounds.service("web").waits_since == 0  # no allowable node is up
    rounds.join(0)
    rounds.settle()
    assert rounds.at("web") == (DEREGISTERED, NO_NODE)
    assert rounds.service("web").waits_since > 0
    rounds.wait(299_000)
    assert rounds.at("web") == (DEREGISTERED, NO_NODE)
    rounds.wait(1_000)
    assert rounds.at("web") == (REGISTERED, 0)
    assert rounds.service("web").waits_since == 0


def test_p6_21_it_waits_no_longer_once_enough_nodes_or_the_primary_are_up() -> None:
    rounds = settled(TABLE_2, up=(0,))
    rounds.join(1)
    rounds.settle()
    assert rounds.placed()
    assert settled(replace(TABLE_2, ordered=("n0",)), up=(0,)).at("web") == (REGISTERED, 0)
    assert settled(replace(TABLE_2, ordered=("n0",)), up=(1,)).at("web") == (DEREGISTERED, NO_NODE)
    disallowed = replace(TABLE_2, ordered=("n0",), disallowable_nodes=("n0",), maturity_count=0)
    assert "primary node" not in settled(disallowed).why("web").summary  # which cannot be waited for


def test_p6_21_neither_a_transfer_nor_what_follows_a_loss_waits() -> None:
    rounds = settled(TABLE_2, up=(0, 1))
    rounds.stop(rounds.service("web").node)
    rounds.settle()
    assert rounds.at("web")[0] is REGISTERED
    rounds = settled(replace(TABLE_2, recovery_command=RECOVERY, allowable_nodes=("*",), maturity_count=3))
    here = rounds.service("web").node
    rounds.stop(here)
    rounds.settle()
    assert rounds.at("web")[0] is REGISTERED
    rounds.leave(rounds.service("web").node)
    rounds.settle()
    assert rounds.at("web")[0] is REGISTERED


def test_p6_21_after_a_graceful_end_of_its_last_node_the_next_registration_is_a_first_one() -> None:
    rounds = settled(TABLE_2, up=(0, 1))
    for node in (0, 1):
        rounds.leave(node)
        rounds.settle()
        rounds.stop(node)
        rounds.settle()
    assert not rounds.service("web").intent
    rounds.join(0)
    rounds.settle()
    assert rounds.service("web").waits_since > 0


def test_p6_22_without_an_allowable_node_the_wait_is_over_and_begins_anew() -> None:
    rounds = settled(TABLE_2, up=(0, 2))
    rounds.wait(200_000)
    rounds.stop(0)
    rounds.settle()
    assert rounds.service("web").waits_since == 0
    rounds.join(0)
    rounds.settle()
    rounds.wait(200_000)
    assert rounds.at("web") == (DEREGISTERED, NO_NODE)
    rounds.wait(100_000)
    assert rounds.at("web") == (REGISTERED, 0)


# ---- P6.27, P6.23, P6.24 groups --------------------------------------------------------------------------------------


def order_of(rounds: Rounds, state: ServiceState) -> list[str]:
    words = {REGISTERED: "registered on", STOPPING: "stopping on", STARTING: "starting on"}[state]
    return [told.partition(":")[0] for told in rounds.told if words in told]


def test_p6_27_children_start_after_their_parent_and_where_it_is() -> None:
    rounds = settled(*GROUP)
    assert set(rounds.placed().values()) == {rounds.service("disk").node}
    assert order_of(rounds, REGISTERED) == ["disk", "database", "web", "mail"]


def test_p6_24_in_a_transfer_children_stop_first_and_start_last() -> None:
    rounds = settled(*GROUP)
    before = rounds.service("disk").node
    rounds.told.clear()
    rounds.held = {("web", "stop")}
    rounds.ask(TransferService("disk", f"n{(before + 1) % 3}"))
    rounds.settle()
    assert rounds.at("disk") == (REGISTERED, before)
    assert rounds.service("disk").intent
    assert rounds.at("mail") == (DEREGISTERED, NO_NODE)
    assert rounds.service("mail").intent
    rounds.held.clear()
    rounds.settle()
    assert set(rounds.placed().values()) == {(before + 1) % 3}
    assert len(rounds.placed()) == 4
    assert order_of(rounds, STOPPING) in (["web", "mail", "database", "disk"], ["mail", "web", "database", "disk"])
    assert order_of(rounds, STARTING)[:2] == ["disk", "database"]
    assert not any(service.intent for service in rounds.database.services.values())


def test_p6_27_deregistering_a_parent_deregisters_its_children_first() -> None:
    rounds = settled(*GROUP)
    rounds.told.clear()
    rounds.ask(DeregisterService("disk"))
    rounds.settle()
    assert rounds.placed() == {}
    assert order_of(rounds, STOPPING)[2:] == ["database", "disk"]
    rounds.ask(RegisterService("disk"))
    rounds.settle()
    assert len(rounds.placed()) == 4


def test_p6_27_a_child_that_fails_to_start_stays_down_alone_until_its_group_moves() -> None:
    rounds = Rounds()
    rounds.failing = {("web", "start", node) for node in (0, 1)}
    rounds.define(*GROUP)
    rounds.settle()
    assert "start failed on n0" in rounds.service("web").cause
    assert len(rounds.placed()) == 3
    rounds.ask(TransferService("disk", "n2"))
    rounds.settle()
    assert set(rounds.placed().items()) == {(name, 2) for name in ("disk", "database", "web", "mail")}


def test_p6_27_or_takes_its_group_elsewhere_if_its_definition_says_so() -> None:
    rounds = Rounds()
    rounds.failing = {("web", "start", node) for node in (0, 1)}
    rounds.define(*GROUP[:2], replace(GROUP[2], child_failure="group"), GROUP[3])
    rounds.settle()
    assert set(rounds.placed().items()) == {(name, 2) for name in ("disk", "database", "web", "mail")}
    rounds.failing.add(("web", "start", 2))
    rounds.ask(DeregisterService("web"))
    rounds.settle()
    rounds.ask(RegisterService("web"))
    rounds.settle()
    assert "start failed on" in rounds.service("web").cause
    assert len(rounds.placed()) == 3


def test_p6_27_a_child_says_why_its_group_ends_not_every_generation_s_word_for_it() -> None:
    rounds = settled(*GROUP)
    rounds.told.clear()
    rounds.ask(TransferService("disk", "n1"))
    rounds.settle()
    stops = [told for told in rounds.told if "stopping" in told]
    assert stops[0] == "web: stopping on n0 (disk, further up in its group, ends: transferred by an operator)"
    assert stops[2] == "database: stopping on n0 (its parent disk ends: transferred by an operator)"
    rounds.told.clear()
    rounds.ask(DeregisterService("database"))
    rounds.settle()
    stops = [told for told in rounds.told if "stopping" in told]
    assert stops[0] == "web: stopping on n1 (its parent database ends: de-registered by an operator)"


def test_p6_27_so_many_siblings_start_at_a_time() -> None:
    children = [replace(WEB, name=f"c{number}", parent="disk") for number in range(6)]
    rounds = Rounds()
    rounds.define(replace(WEB, name="disk", siblings=2), *children)
    for seen in rounds.settle():
        assert sum(state is STARTING for name, (state, _) in seen.items() if name != "disk") <= 2
    assert len(rounds.placed()) == 7
    rounds.ask(DeregisterService("disk"))
    for seen in rounds.settle():
        assert sum(state is STOPPING for name, (state, _) in seen.items() if name != "disk") <= 2
    assert rounds.placed() == {}


def test_p6_27_a_child_ends_where_its_parent_is_not() -> None:
    rounds = settled(replace(WEB, name="disk"), replace(WEB, name="web", parent="disk"))
    (node,) = set(rounds.placed().values())
    other = (node + 1) % 3
    parent = rounds.service("disk")
    rounds.database.services["disk"] = replace(
        parent, node=other, incarnation=rounds.database.member(other).incarnation
    )
    rounds.settle()
    assert rounds.placed() == {"disk": other, "web": other}
    assert any("its parent disk is not registered here" in told for told in rounds.told)


def test_p6_27_after_the_loss_of_its_node_the_whole_group_is_elsewhere() -> None:
    rounds = settled(*[replace(each, recovery_command=RECOVERY) for each in GROUP])
    before = rounds.service("disk").node
    rounds.told.clear()
    rounds.stop(before)
    rounds.settle()
    assert len(rounds.placed()) == 4
    assert len(set(rounds.placed().values()) - {before}) == 1
    assert sum("recovering on" in told for told in rounds.told) == 4
    assert order_of(rounds, REGISTERED)[:2] == ["disk", "database"]


def test_p6_23_a_leave_does_not_wait_for_a_child_whose_group_has_nowhere_to_go() -> None:
    rounds = settled(*GROUP, up=(0, 1))
    here, there = rounds.service("disk").node, 1 - rounds.service("disk").node
    rounds.failing = {("disk", "start", there)}
    rounds.leave(here)
    rounds.settle()
    assert not any(service.intent for service in rounds.database.services.values())
    assert "start failed on" in rounds.service("disk").cause
    rounds.stop(here)
    rounds.join(here)
    rounds.settle()
    assert set(rounds.placed().values()) == {here}
    assert len(rounds.placed()) == 4


# ---- P6.25 free transfers --------------------------------------------------------------------------------------------


def test_p6_25_a_preferred_node_takes_a_free_service_over_once_it_has_joined() -> None:
    rounds = settled(FREE, up=(1, 2))
    assert rounds.at("web") == (REGISTERED, 1)
    rounds.join(0)
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, 0)
    assert settled(replace(FREE, free_transfer=False), up=(2,)).at("web") == (REGISTERED, 2)


def test_spec_6_2_a_preferred_node_may_be_disallowed_for_a_while_which_moves_nothing() -> None:
    rounds = settled(FREE)
    banned = replace(FREE, disallowable_nodes=("n0",))
    assert not rounds.ask(ApplyServices((banned,))).refused
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, 0)
    rounds.ask(TransferService("web"))
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, 1)
    rounds.stop(0)
    rounds.settle()
    rounds.join(0)
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, 1)


def test_p6_25_with_a_notify_command_it_hears_first_where_the_service_is() -> None:
    rounds = settled(replace(FREE, notify_command=("/bin/notify",)), up=(1,))
    rounds.join(0)
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, 1)
    rounds.notified[0, "web"] = rounds.service("web").generation
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, 0)


def test_p6_25_a_node_that_comes_and_goes_does_not_make_the_service_flap() -> None:
    rounds = settled(FREE, up=(1,))
    moves = 0
    for _ in range(20):
        rounds.join(0)
        rounds.wait(5_000)
        moves += rounds.at("web") == (REGISTERED, 0)
        rounds.stop(0)
        rounds.settle()
        assert rounds.at("web") == (REGISTERED, 1)
    assert moves <= 2
    rounds.join(0)
    rounds.wait(3_600_000)
    assert rounds.at("web") == (REGISTERED, 0)


def test_p6_25_the_hold_counts_from_the_last_takeover() -> None:
    rounds = settled(FREE, up=(1, 0))
    _comes_and_goes(rounds, 0)
    assert rounds.at("web") == (REGISTERED, 0)  # the first takeover
    rounds.wait(61_000)
    _comes_and_goes(rounds, 0)
    assert rounds.at("web") == (REGISTERED, 0)  # the second one: two minutes from now on
    rounds.wait(100_000)
    _comes_and_goes(rounds, 0)
    assert rounds.at("web") == (REGISTERED, 1)
    rounds.wait(21_000)
    assert rounds.at("web") == (REGISTERED, 0)


def _comes_and_goes(rounds: Rounds, node: int) -> None:
    rounds.stop(node)
    rounds.settle()
    rounds.join(node)
    rounds.settle()


def test_p6_25_so_many_free_transfers_are_under_way_at_a_time() -> None:
    names = [f"web{number}" for number in range(2 * MAXIMUM_TAKEOVERS)]
    rounds = settled(*(replace(FREE, name=name) for name in names), up=(1,))
    rounds.held = {(name, "stop") for name in names}
    rounds.join(0)
    rounds.settle()
    assert sum(rounds.service(name).intent for name in names) == MAXIMUM_TAKEOVERS
    rounds.held.clear()
    rounds.settle()
    assert {rounds.service(name).node for name in names} == {0}


def test_p6_25_a_node_on_which_the_start_fails_gets_one_try_only() -> None:
    rounds = settled(FREE, up=(1,))
    rounds.failing = {("web", "start", 0)}
    rounds.join(0)
    rounds.settle()
    rounds.wait(10_000_000)
    assert rounds.at("web") == (REGISTERED, 1)
    assert sum("taken over" in told for told in rounds.told) == 1


def test_p6_25_a_node_on_which_the_first_start_failed_does_not_take_it_over() -> None:
    rounds = Rounds(up=(0, 2))
    rounds.failing = {("web", "start", 0)}
    rounds.define(FREE)
    rounds.settle()
    rounds.wait(10_000_000)
    assert rounds.at("web") == (REGISTERED, 2)
    rounds.join(1)  # which has not failed, and need not wait
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, 1)
    rounds.failing.clear()
    rounds.wait(10_000_000)
    assert rounds.at("web") == (REGISTERED, 1)
    rounds.ask(ClearService("web"))  # mended
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, 0)


def test_p6_25_what_an_operator_has_moved_stays_until_a_preferred_node_joins_anew() -> None:
    rounds = settled(FREE)
    assert rounds.at("web") == (REGISTERED, 0)
    rounds.ask(TransferService("web", "n2"))
    rounds.settle()
    rounds.wait(10_000_000)
    assert rounds.at("web") == (REGISTERED, 2)
    rounds.stop(0)
    rounds.settle()
    rounds.join(0)
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, 0)  # the move has left no ban behind


# ---- P6.26 the failure policy ----------------------------------------------------------------------------------------


def fail(rounds: Rounds, name: str = "web", status: int = NO_STATUS) -> None:
    """It fails, and what is done about it is done, though that may take a pause."""
    rounds.ask(FailService(name, "exit status 7", rounds.service(name).generation, status))
    rounds.settle()
    rest = rounds.service(name).rest
    if rest is not None and not rounds.service(name).cause:
        rounds.wait(rest.ms)


def test_p6_26_it_restarts_in_place_then_moves_then_stops_with_a_cause() -> None:
    rounds = settled(replace(WEB, restarts=2, restart_window_ms=3_600_000, allowable_nodes=("n0", "n1")))
    first = rounds.service("web").node
    for _ in range(2):
        generation = rounds.service("web").generation
        fail(rounds)
        assert rounds.at("web") == (REGISTERED, first)
        assert rounds.service("web").generation > generation
    fail(rounds)
    assert rounds.at("web") == (REGISTERED, 1 - first)
    for _ in range(3):
        fail(rounds)
    assert rounds.at("web") == (DEREGISTERED, NO_NODE)
    assert "failed too often on n0, n1" in rounds.service("web").cause
    assert "muster service clear web" in rounds.service("web").cause
    rounds.ask(ClearService("web"))
    rounds.settle()
    assert rounds.at("web")[0] is REGISTERED


def test_p6_26_a_policy_of_very_many_restarts_gives_up_too() -> None:
    rounds = settled(replace(WEB, restarts=150, restart_window_ms=36_000_000))
    first = rounds.service("web").node
    for _ in range(150):
        fail(rounds)
    assert rounds.at("web") == (REGISTERED, first)
    fail(rounds)
    assert rounds.at("web")[1] != first


def test_p6_26_failures_expire() -> None:
    rounds = settled(replace(WEB, restarts=1, restart_window_ms=60_000))
    first = rounds.service("web").node
    for _ in range(5):
        fail(rounds)
        rounds.wait(61_000)
    assert rounds.at("web") == (REGISTERED, first)


def test_p6_26_only_failures_within_the_window_count() -> None:
    rounds = settled(replace(WEB, restarts=2, restart_window_ms=60_000))
    first = rounds.service("web").node
    for _ in range(4):  # never more than two within a minute, and never none
        fail(rounds)
        rounds.wait(40_000)
    assert rounds.at("web") == (REGISTERED, first)


def test_p6_26_a_node_is_given_up_for_the_length_of_the_window_only() -> None:
    rounds = settled(replace(WEB, restarts=1, restart_window_ms=60_000), nodes=2)
    first = rounds.service("web").node
    fail(rounds)
    fail(rounds)
    assert rounds.at("web") == (REGISTERED, 1 - first)
    rounds.wait(40_000)
    fail(rounds)
    rounds.wait(25_000)  # the failures on the first node are out of the window, that on the other is not
    rounds.leave(1 - first)
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, first)


def test_p6_26_a_failure_of_an_earlier_generation_changes_nothing() -> None:
    rounds = settled(WEB)
    late = rounds.service("web").generation
    fail(rounds)
    before = rounds.service("web")
    assert "moved on" in rounds.ask(FailService("web", "exit status 7", late)).outcome
    rounds.settle()
    assert rounds.service("web") == before


def test_p6_26_a_failure_that_is_told_before_the_registration_is_committed_is_acted_upon_after_it() -> None:
    rounds = Rounds()
    rounds.held = {("web", "start")}
    rounds.define(WEB)
    rounds.settle()
    generation = rounds.service("web").generation
    rounds.ask(FailService("web", "exit status 7", generation))
    rounds.held.clear()
    rounds.settle()
    assert rounds.at("web")[0] is REGISTERED
    assert rounds.service("web").generation > generation
    assert any("restart 1 of" in told for told in rounds.told)


def test_p6_26_a_failing_parent_takes_its_children_along_a_failing_child_nobody() -> None:
    rounds = settled(*(replace(each, restarts=1) for each in GROUP))
    here = rounds.service("disk").node
    rounds.told.clear()
    fail(rounds, "web")
    assert order_of(rounds, STOPPING) == ["web"]
    rounds.told.clear()
    fail(rounds, "disk")
    assert order_of(rounds, STARTING)[:2] == ["disk", "database"]
    assert set(rounds.placed().values()) == {here}
    fail(rounds, "disk")
    assert len(rounds.placed()) == 4
    assert here not in rounds.placed().values()


def test_p6_26_a_failing_parent_with_nowhere_to_go_stops_after_its_children() -> None:
    bound = replace(GROUP[0], allowable_nodes=("n0",), restarts=0)
    rounds = settled(bound, *GROUP[1:])
    rounds.told.clear()
    fail(rounds, "disk")
    assert rounds.placed() == {}
    assert order_of(rounds, STOPPING)[2:] == ["database", "disk"]
    assert "muster service clear disk" in rounds.service("disk").cause


def test_p6_26_what_has_failed_too_often_everywhere_is_started_once_another_node_is_up() -> None:
    rounds = settled(replace(WEB, restarts=0, allowable_nodes=("n0", "n1")), up=(0,))
    fail(rounds)
    assert rounds.at("web") == (DEREGISTERED, NO_NODE)
    rounds.join(1)
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, 1)
    fail(rounds)
    rounds.wait(500_000)
    assert rounds.at("web") == (DEREGISTERED, NO_NODE)


def test_p6_26_a_child_that_fails_too_often_stays_down_alone_until_its_group_moves() -> None:
    rounds = settled(GROUP[0], replace(GROUP[1], restarts=0), GROUP[2])
    rounds.told.clear()
    fail(rounds, "database")
    assert rounds.placed() == {"disk": 0}
    assert order_of(rounds, STARTING) == []
    assert "muster service clear database" in rounds.service("database").cause
    rounds.ask(TransferService("disk", "n1"))
    rounds.settle()
    assert rounds.placed() == dict.fromkeys(("disk", "database", "web"), 1)


def test_p6_26_or_takes_its_group_elsewhere_and_stays_down_once_it_has_failed_everywhere() -> None:
    rounds = settled(GROUP[0], replace(GROUP[1], restarts=0, child_failure="group"), GROUP[2])
    for node in (1, 2):
        fail(rounds, "database")
        assert rounds.placed() == dict.fromkeys(("disk", "database", "web"), node)
    fail(rounds, "database")
    assert rounds.placed() == {"disk": 2}
    assert "failed too often on n0, n1, n2" in rounds.service("database").cause


def test_p6_26_an_operators_restart_counts_as_no_failure() -> None:
    rounds = settled(replace(WEB, restarts=0))
    here, generation = rounds.service("web").node, rounds.service("web").generation
    rounds.ask(RestartService("web"))
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, here)
    assert rounds.service("web").generation > generation
    assert rounds.service("web").failures == ()


# ---- P6.28 instances -------------------------------------------------------------------------------------------------

EVERYWHERE = replace(WEB, on_all=True, disallowable_nodes=("n2",))


def test_p6_28_a_service_placed_on_all_nodes_runs_on_each_allowable_one() -> None:
    rounds = settled(EVERYWHERE, up=(0, 2))
    assert rounds.at("web@n0") == (REGISTERED, 0)
    assert rounds.at("web")[0] is REGISTERED
    assert "web@n2" not in rounds.database.services
    rounds.join(1)
    rounds.settle()
    assert rounds.at("web@n1") == (REGISTERED, 1)
    rounds.stop(0)
    rounds.settle()
    assert rounds.at("web@n0") == (DEREGISTERED, NO_NODE)
    rounds.ask(DeregisterService("web"))
    rounds.settle()
    assert {rounds.at(name)[0] for name in ("web", "web@n0", "web@n1")} == {DEREGISTERED}
    rounds.ask(ApplyServices((), ("web",)))
    rounds.settle()
    assert not rounds.database.services


def test_p6_21_a_service_of_all_nodes_waits_for_maturity_as_a_whole_and_once() -> None:
    rounds = settled(replace(EVERYWHERE, maturity_count=2, maturity_time_ms=300_000), up=(0,))
    assert rounds.placed() == {}
    assert rounds.service("web").waits_since > 0
    assert "not mature" in rounds.why("web@n0").summary
    assert "not mature" in rounds.why("web").summary
    rounds.join(1)
    rounds.settle()
    assert {rounds.at("web@n0")[0], rounds.at("web@n1")[0], rounds.at("web")[0]} == {REGISTERED}
    assert rounds.service("web").waits_since == 0
    for node in (1, 0):
        rounds.stop(node)
        rounds.settle()
        if node == 1:
            rounds.join(1)  # whoever joins later finds the wait over
            rounds.settle()
            assert rounds.at("web@n1") == (REGISTERED, 1)
            rounds.stop(1)
            rounds.settle()
    rounds.join(0)  # the service was down everywhere: its next registration is a first one
    rounds.settle()
    assert rounds.at("web@n0") == (DEREGISTERED, NO_NODE)
    rounds.wait(300_000)
    assert rounds.at("web@n0") == (REGISTERED, 0)


def test_p6_28_a_child_of_such_a_service_is_beside_each_of_its_instances() -> None:
    rounds = Rounds()
    rounds.ask(ApplyServices((EVERYWHERE, replace(WEB, name="log", parent="web"))))
    rounds.settle()
    assert {name for name in rounds.placed() if "@" in name} == {"web@n0", "web@n1", "log@n0", "log@n1"}
    rounds.told.clear()
    rounds.ask(RestartService("web@n1"))
    rounds.settle()
    assert order_of(rounds, STOPPING) == ["log@n1", "web@n1"]
    assert rounds.at("log@n1") == (REGISTERED, 1)


def test_p6_28_children_follow_a_placement_policy_that_is_defined_anew() -> None:
    """Also those that the new definition does not name; and a definition that changes nothing is not refused."""
    log, tail = replace(WEB, name="log", parent="web"), replace(WEB, name="tail", parent="log")
    rounds = Rounds()
    rounds.ask(ApplyServices((EVERYWHERE, log, tail)))
    rounds.settle()
    assert not rounds.ask(ApplyServices((EVERYWHERE, log, tail))).refused
    assert rounds.ask(ApplyServices((replace(EVERYWHERE, on_all=False),))).refused
    rounds.ask(DeregisterService("web"))
    rounds.settle()
    assert not rounds.ask(ApplyServices((replace(EVERYWHERE, on_all=False),))).refused
    rounds.ask(RegisterService("web"))
    rounds.settle()
    assert {name for name, node in rounds.placed().items() if node != NO_NODE} == {"web", "log", "tail"}
    assert not any("@" in name for name in rounds.database.services)


def test_p6_28_what_is_cleared_for_a_service_is_cleared_for_all_its_instances() -> None:
    rounds = settled(replace(EVERYWHERE, restarts=0))
    fail(rounds, "web@n0")
    assert "muster service clear web@n0" in rounds.service("web@n0").cause
    rounds.ask(ClearService("web"))
    rounds.settle()
    assert rounds.at("web@n0") == (REGISTERED, 0)


# ---- P6.29 notify ----------------------------------------------------------------------------------------------------

NOTIFYING = replace(WEB, notify_command=("/bin/notify",), disallowable_nodes=("n2",))


def commands_due(rounds: Rounds, executor: Executor) -> list[tuple[str, str]]:
    return [(command.service, command.action) for command in executor.due(rounds.database)]


def test_p6_29_a_joined_allowable_node_hears_once_of_each_registration_elsewhere() -> None:
    rounds = settled(NOTIFYING, up=(0,))
    executor = Executor(1, 1, ())
    assert commands_due(rounds, executor) == []  # it has not joined
    rounds.join(1)
    assert commands_due(rounds, executor) == [("web", "notify")]
    assert commands_due(rounds, executor) == []
    rounds.ask(RestartService("web"))
    rounds.settle()
    (command,) = executor.due(rounds.database)
    assert command.command == ("/bin/notify",)
    assert (command.environment["MUSTER_ACTION"], command.environment["MUSTER_OTHER_NODE"]) == ("notify", "n0")


def test_p6_29_a_child_tells_the_nodes_that_are_allowable_for_its_group() -> None:
    child = Definition("child", parent="web", start_command=START, notify_command=("/bin/notify",))
    rounds = settled(replace(WEB, disallowable_nodes=("n2",)), child)
    assert rounds.at("child") == (REGISTERED, 0)
    assert commands_due(rounds, Executor(1, 1, ())) == [("child", "notify")]
    assert commands_due(rounds, Executor(2, 1, ())) == []


def test_each_command_is_told_of_the_other_node() -> None:
    """SPEC 7.7, 6.6: where it was, where it is to go, or where it runs."""
    rounds = settled(WEB)
    others = []
    for operation in (RestartService("web"), TransferService("web", "n2"), TransferService("web")):
        rounds.ask(operation)
        for action in ("stop", "start"):
            rounds.held = {("web", "stop"), ("web", "start")}
            rounds.settle()
            node = rounds.service("web").node
            executor = Executor(node, rounds.database.member(node).incarnation, ())
            (command,) = executor.due(rounds.database)
            assert command.action == action
            others.append((action, f"n{node}", command.environment["MUSTER_OTHER_NODE"]))
            rounds.held = {("web", "start")} if action == "stop" else set()
            rounds.settle()
    assert others == [
        ("stop", "n0", ""), ("start", "n0", "n0"),
        ("stop", "n0", "n2"), ("start", "n2", "n0"),
        ("stop", "n2", ""), ("start", "n0", "n2"),
    ]  # fmt: skip


def test_p6_29_neither_the_registered_nor_a_leaving_nor_a_forbidden_node_runs_it() -> None:
    rounds = settled(NOTIFYING)
    assert rounds.at("web") == (REGISTERED, 0)
    assert commands_due(rounds, Executor(0, 1, ())) == []
    assert commands_due(rounds, Executor(2, 1, ())) == []
    rounds.leave(1)
    assert commands_due(rounds, Executor(1, 1, ())) == []
    rounds.stop(1)
    rounds.join(1)
    assert commands_due(rounds, Executor(1, 2, ())) == [("web", "notify")]


# ---- P6.30 maintenance and standby -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cluster", "service", "node"])
def test_p6_30_in_maintenance_nothing_is_done_of_muster_s_own_accord(kind: str) -> None:
    rounds = settled(FREE, up=(1,))
    subject = {"cluster": "", "service": "web", "node": "n1"}[kind]
    rounds.ask(SetMaintenance(kind, subject, duration_ms=600_000))
    rounds.join(0)
    rounds.settle()
    fail(rounds)
    assert rounds.at("web") == (REGISTERED, 1)
    rounds.wait(600_000)
    assert rounds.database.maintenance == {}
    assert any("restart 1 of 3" in told for told in rounds.told)  # the failure is acted upon
    assert rounds.at("web") == (REGISTERED, 0)  # and the preferred node takes it over


def test_p6_30_maintenance_of_a_parent_is_that_of_all_below_it() -> None:
    rounds = settled(*GROUP)
    before = rounds.placed()
    rounds.ask(SetMaintenance("service", "disk"))
    generation = rounds.service("web").generation
    fail(rounds)
    assert rounds.placed() == before
    assert rounds.service("web").generation == generation
    rounds.ask(SetMaintenance("service", "disk", end=True))
    rounds.settle()
    assert rounds.service("web").generation > generation  # the failure is acted upon


def test_p6_30_maintenance_of_a_service_placed_on_all_nodes_is_that_of_its_instances() -> None:
    rounds = settled(replace(WEB, on_all=True))
    instance = next(name for name, service in rounds.database.services.items() if service.template)
    rounds.ask(SetMaintenance("service", "web"))
    generation = rounds.service(instance).generation
    fail(rounds, instance)
    assert rounds.service(instance).generation == generation
    rounds.ask(SetMaintenance("service", "web", end=True))
    rounds.settle()
    assert rounds.service(instance).generation > generation


def test_p6_30_a_recovery_waits_for_the_end_of_maintenance() -> None:
    rounds = settled(replace(WEB, recovery_command=RECOVERY))
    rounds.ask(SetMaintenance("service", "web"))
    rounds.stop(rounds.service("web").node)
    rounds.settle()
    assert rounds.at("web") == (RECOVERING, NO_NODE)
    rounds.ask(SetMaintenance("service", "web", end=True))
    rounds.settle()
    assert rounds.at("web")[0] is REGISTERED


def test_p6_30_standby_for_a_time_ends_by_itself() -> None:
    rounds = settled(WEB)
    rounds.ask(SetStandby("n0", duration_ms=60_000))
    rounds.wait(59_000)
    assert 0 in rounds.database.standby
    rounds.wait(1_000)
    assert rounds.database.standby == {}


def test_p6_30_what_is_lost_in_maintenance_is_started_when_it_ends() -> None:
    rounds = settled(WEB)
    here = rounds.service("web").node
    rounds.ask(SetMaintenance("service", "web"))
    rounds.stop(here)
    rounds.settle()
    assert rounds.at("web") == (DEREGISTERED, NO_NODE)
    rounds.ask(SetMaintenance("service", "web", end=True))
    rounds.settle()
    assert rounds.at("web")[0] is REGISTERED


def test_p6_30_a_service_that_moves_away_from_its_failures_goes_on_when_maintenance_ends() -> None:
    """Another node is up for it: it is not stuck, and does not say so."""
    rounds = settled(replace(WEB, restarts=0), nodes=2)
    rounds.ask(FailService("web", "exit status 7", rounds.service("web").generation))
    assert rounds.step()
    assert rounds.service("web").state is STOPPING
    first = rounds.service("web").node
    rounds.ask(SetMaintenance("service", "web"))
    rounds.settle()
    assert rounds.at("web") == (DEREGISTERED, NO_NODE)
    assert rounds.service("web").cause == ""
    rounds.ask(SetMaintenance("service", "web", end=True))
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, 1 - first)


def test_p6_30_a_leave_in_maintenance_ends_and_does_not_wait_for_a_start() -> None:
    rounds = settled(WEB)
    rounds.ask(SetMaintenance("cluster"))
    rounds.leave(rounds.service("web").node)
    rounds.settle()
    assert rounds.at("web") == (DEREGISTERED, NO_NODE)
    assert not rounds.service("web").intent


def test_p6_30_from_a_node_on_standby_services_move_away_if_they_can() -> None:
    rounds = settled(*GROUP, replace(WEB, name="bound", allowable_nodes=("n0",)))
    rounds.ask(SetStandby("n0"))
    rounds.ask(SetStandby("n1"))
    rounds.settle()
    placed = rounds.placed()
    assert placed.pop("bound") == 0
    assert len(placed) == 4
    assert set(placed.values()) == {2}
    rounds.ask(SetStandby("n0", end=True))
    rounds.stop(2)
    rounds.settle()
    assert rounds.service("disk").node == 0


def test_p6_30_standby_in_the_midst_of_a_restart_does_not_bring_the_service_back_for_ever() -> None:
    rounds = settled(WEB)
    node = rounds.service("web").node
    rounds.held.add(("web", "start"))
    rounds.ask(RestartService("web"))
    rounds.settle()
    assert rounds.at("web") == (STARTING, node)
    rounds.ask(SetStandby(f"n{node}"))
    rounds.settle()
    assert rounds.at("web")[0] is STARTING and rounds.service("web").node != node


def test_p6_30_what_is_in_maintenance_stays_on_a_node_on_standby_until_that_is_over() -> None:
    rounds = settled(WEB)
    node = rounds.service("web").node
    rounds.ask(SetMaintenance("service", "web"))
    rounds.ask(SetStandby(f"n{node}"))
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, node)
    rounds.ask(SetMaintenance("service", "web", end=True))
    rounds.settle()
    assert rounds.at("web")[0] is REGISTERED and rounds.service("web").node != node


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (ApplyServices((Definition("a", parent="nobody"),)), "its parent 'nobody' is not defined"),
        (ApplyServices((Definition("a", parent="b"), Definition("b", parent="a"))), "a -> b -> a"),
        (ApplyServices((Definition("top", parent="child"),)), "top -> child -> top"),
        (ApplyServices((), withdraw=("top",)), "top is the parent of child: withdraw them too"),
        (ApplyServices((Definition("a", parent="top"),), withdraw=("top", "child")), "its parent 'top' is not defined"),
        (ApplyServices((Definition("a", unordered=("n7",)),)), "names node n7"),
        (ApplyServices((Definition("a", maturity_count=4),)), "only 3 nodes are allowable"),
        (ApplyServices((Definition("a", disallowable_nodes=("n0", "n1", "n2")),)), "leaves it no node at all"),
    ],
)
def test_spec_6_5_what_cannot_be_is_refused_where_the_cluster_is_known(operation: ApplyServices, words: str) -> None:
    rounds = Rounds(3)
    rounds.define(Definition("top"), Definition("child", parent="top"))
    before = dict(rounds.database.services)
    done = rounds.ask(operation)
    assert done.refused
    assert words in done.outcome
    assert rounds.database.services == before


def test_spec_6_5_a_withdrawn_parent_is_forgotten_after_its_children() -> None:
    rounds = settled(*GROUP)
    rounds.ask(ApplyServices((), withdraw=tuple(definition.name for definition in GROUP)))
    rounds.settle()
    assert rounds.database.services == {}
    forgotten = [told.partition(":")[0] for told in rounds.told if told.endswith(": forgotten")]
    assert set(forgotten) == {definition.name for definition in GROUP}
    assert forgotten[-2:] == ["database", "disk"]


def test_p6_12_a_failed_stop_forces_its_node_out_where_its_policy_says_so() -> None:
    rounds = settled(replace(WEB, stop_failure="evict"))
    here = rounds.service("web").node
    rounds.failing = {("web", "stop", here)}
    rounds.ask(TransferService("web", f"n{(here + 1) % 3}"))
    rounds.settle()
    eviction = rounds.database.member(here).eviction
    assert eviction is not None
    assert "the stop of web failed there" in eviction.cause


def test_spec_6_5_a_parent_and_its_children_may_be_defined_and_withdrawn_together() -> None:
    rounds = Rounds(3)
    assert not rounds.ask(ApplyServices((Definition("child", parent="top"), Definition("top")))).refused
    rounds.settle()
    assert not rounds.ask(ApplyServices((), withdraw=("top", "child"))).refused
    rounds.settle()
    assert rounds.database.services == {}
