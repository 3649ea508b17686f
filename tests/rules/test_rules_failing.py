"""What follows when services fail, are mended, or have done their work: P6.30, P6.35 to P6.39 (SPEC 5.4, 6.6, 6.8)."""

import typing

import pytest
from msgspec.structs import replace

from muster.core.services.commands import Executor, follows
from muster.core.services.redefinition import pending
from muster.core.services.table import FIRST_PAUSE_MS, FIRST_ROUND_MS, LONGEST_PAUSE_MS
from muster.core.versions.upgrade import refusal
from muster.records.levels import NodeState
from muster.records.operations import OperationRequest
from muster.records.service_limits import problem_of
from muster.records.services import (
    ApplyServices,
    ClearService,
    ConfirmStopped,
    Definition,
    DeregisterService,
    Ended,
    FailService,
    RegisterService,
    RestartService,
    ServiceState,
    SetMaintenance,
    SetStandby,
    TransferService,
)
from muster.records.terms import NO_NODE
from muster.records.versions import OWNERS_KEYS
from rounds import Rounds

DEREGISTERED, STARTING, REGISTERED, STOPPING, RECOVERING = ServiceState
WEB = Definition("web", run=("/bin/web",), stop_command=("/bin/stop",))
ONE_HOUR_MS = 3_600_000


def settled(*definitions: Definition, nodes: int = 3) -> Rounds:
    rounds = Rounds(nodes)
    rounds.define(*definitions)
    rounds.settle()
    return rounds


def fail(rounds: Rounds, name: str = "web", status: int = 1) -> None:
    rounds.ask(FailService(name, "ended with status 1", rounds.service(name).generation, status))
    rounds.settle()


# ---- P6.26 a failure is kept until its service begins to end --------------------------------------------------------

ASKED_MEANWHILE = {
    "cleared": (ClearService("volume"),),
    "registered anew": (DeregisterService("volume"), RegisterService("volume")),
    "cleared, then registered anew": (ClearService("volume"), DeregisterService("volume"), RegisterService("volume")),
    "registered anew, then cleared": (DeregisterService("volume"), RegisterService("volume"), ClearService("volume")),
    "its window is over": (),
}
POLICIES = {
    "restarted": ({"restarts": 1}, 1),
    "given up": ({"restarts": 0}, 1),
    "hard": ({"hard_exit_status": (5,)}, 5),
    "fatal": ({"fatal_exit_status": (6,)}, 6),
    "done": ({"success_exit_status": (0,)}, 0),
}


@pytest.mark.parametrize("in_turn", [True, False], ids=["a round after each", "one after the other"])
@pytest.mark.parametrize("asked", ASKED_MEANWHILE.values(), ids=ASKED_MEANWHILE)
@pytest.mark.parametrize(("policy", "status"), POLICIES.values(), ids=POLICIES)
def test_p6_26_what_has_failed_ends_whatever_is_forgotten_while_it_waits_for_its_children(
    policy: dict[str, typing.Any], status: int, asked: tuple[OperationRequest, ...], in_turn: bool
) -> None:
    window = {"restart_window_ms": 60_000, "allowable_nodes": ("n0",)}
    rounds = settled(replace(WEB, name="volume", **window, **policy), replace(WEB, name="database", parent="volume"))
    generation = rounds.service("volume").generation
    rounds.held = {("database", "stop")}
    fail(rounds, "volume", status)
    for operation in asked:
        rounds.ask(operation)
        if in_turn:
            rounds.settle()
    rounds.wait(70_000)
    assert rounds.service("volume").generation == generation  # its child has not ended
    rounds.held.clear()
    rounds.settle()
    rounds.wait(70_000)
    service = rounds.service("volume")
    assert service.state is not REGISTERED or service.generation > generation
    if RegisterService("volume") in asked or (asked and status != 0):
        assert service.state is REGISTERED  # people wanted it to be tried


@pytest.mark.parametrize(("policy", "status"), POLICIES.values(), ids=POLICIES)
def test_p6_26_what_follows_from_a_failure_follows_too_where_its_parent_is_restarted_in_the_same_moment(
    policy: dict[str, typing.Any], status: int
) -> None:
    window = {"restart_window_ms": 60_000}
    rounds = settled(replace(WEB, name="volume"), replace(WEB, name="database", parent="volume", **window, **policy))
    node = rounds.service("database").node
    rounds.ask(RestartService("volume"))
    rounds.ask(FailService("database", "ended", rounds.service("database").generation, status))
    rounds.settle()
    assert (rounds.service("volume").state, rounds.service("volume").node) == (REGISTERED, node)
    database = rounds.service("database")
    if policy.get("restarts"):
        assert database.state is REGISTERED
        return
    assert database.state is DEREGISTERED
    assert database.wanted is (status != 0)
    assert bool(database.cause) is (status != 0)
    if status not in (0, 6):
        assert [given_up.node for given_up in database.exhausted] == [node]


def test_p6_38_what_a_program_says_counts_before_its_registration_is_committed_too() -> None:
    rounds = Rounds()
    rounds.held = {("web", "start")}
    rounds.define(replace(WEB, fatal_exit_status=(6,)))
    rounds.settle()
    rounds.ask(FailService("web", "ended with status 6", rounds.service("web").generation, 6))
    rounds.held.clear()
    rounds.settle()
    assert rounds.at("web") == (DEREGISTERED, NO_NODE) and "another try does not help" in rounds.service("web").cause


# ---- P6.35 a stop that fails where nothing runs ----------------------------------------------------------------------


def test_p6_35_a_stop_that_fails_counts_only_where_something_of_its_service_may_run() -> None:
    for leaves_nothing in (True, False):
        rounds = settled(WEB)
        here = rounds.service("web").node
        rounds.failing = {("web", "stop", here)}
        rounds.leaves_nothing = {"web"} if leaves_nothing else set()
        fail(rounds)
        if leaves_nothing:
            assert rounds.at("web") == (REGISTERED, here)
            assert any("nothing of it runs any more" in told for told in rounds.told)
        else:
            assert rounds.at("web") == (STOPPING, here)
            assert "muster service confirm-stopped web" in rounds.service("web").cause


def test_p6_35_what_it_leaves_in_the_machine_is_cleared_all_the_same() -> None:
    rounds = settled(replace(WEB, cleanup_command=("/bin/clear",)))
    rounds.failing = {("web", "stop", rounds.service("web").node)}
    rounds.leaves_nothing = {"web"}
    rounds.ask(DeregisterService("web"))
    rounds.settle()
    assert (rounds.service("web").state, rounds.service("web").cleaning) == (STOPPING, True)


def test_p6_35_an_operator_may_vouch_that_it_has_stopped_and_what_muster_finds_of_it_is_ended_first() -> None:
    rounds = settled(WEB)
    here = rounds.service("web").node
    assert "there is nothing to confirm" in rounds.ask(ConfirmStopped("web")).outcome
    rounds.failing = {("web", "stop", here)}
    rounds.ask(RestartService("web"))
    rounds.settle()
    assert rounds.service("web").cause
    assert "on your word" in rounds.ask(ConfirmStopped("web", "looked at it")).outcome
    (command,) = Executor(here, rounds.database.member(here).incarnation, ()).due(rounds.database)
    assert (command.action, command.command) == ("stop", ())
    rounds.failing.clear()
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, here)
    rounds.database.cluster = replace(rounds.database.cluster, active_version=3)
    assert "this needs version 4" in refusal(ConfirmStopped("web"), rounds.database)


# ---- P6.30 maintenance of a child ------------------------------------------------------------------------------------


VOLUME = replace(WEB, name="volume", ordered=("n1", "n2", "n0"), free_transfer=True)
GROUP = (VOLUME, replace(WEB, name="database", parent="volume"), replace(WEB, name="reports", parent="database"))


@pytest.mark.parametrize("kept", ["database", "reports"])
def test_p6_30_a_parent_is_left_alone_while_a_service_below_it_is_in_maintenance(kept: str) -> None:
    rounds = Rounds(3, (0, 2))
    rounds.define(*GROUP)
    rounds.settle()
    before = {name: rounds.service(name).generation for name in ("volume", "database", "reports")}
    rounds.ask(SetMaintenance("service", kept))
    rounds.join(1)
    rounds.settle()  # a more preferred node is there
    fail(rounds, "volume")
    rounds.ask(SetStandby("n2"))
    rounds.settle()
    assert {name: rounds.service(name).generation for name in before} == before
    assert set(rounds.placed().values()) == {2}
    assert kept in rounds.why("volume").summary and "in maintenance" in rounds.why("volume").summary
    rounds.ask(SetMaintenance("service", kept, end=True))
    rounds.settle()
    assert set(rounds.placed().values()) == {1}


def test_p6_30_a_child_moves_no_group_of_which_another_is_in_maintenance() -> None:
    sister = replace(WEB, name="mail", parent="volume", child_failure="group")
    rounds = settled(*GROUP, sister)
    here = rounds.service("volume").node
    rounds.ask(SetMaintenance("service", "reports"))
    rounds.failing = {("mail", "start", here)}
    fail(rounds, "mail")
    assert rounds.service("volume").node == here and rounds.service("mail").cause


def test_p6_30_what_people_ask_of_a_parent_is_done_all_the_same() -> None:
    rounds = settled(*GROUP)
    rounds.ask(SetMaintenance("service", "database"))
    rounds.ask(TransferService("volume", "n0"))
    rounds.settle()
    assert rounds.placed()["volume"] == 0


# ---- P6.36 pauses, and another try -----------------------------------------------------------------------------------


def starts(rounds: Rounds) -> int:
    return sum("starting on" in told for told in rounds.told)


def test_p6_36_each_further_failure_is_followed_by_a_longer_pause_and_the_first_by_none() -> None:
    rounds = settled(replace(WEB, restarts=20, restart_window_ms=ONE_HOUR_MS))
    pauses = []
    for _ in range(10):
        fail(rounds)
        waited_ms = 0
        while rounds.at("web")[0] is not REGISTERED:
            assert "it pauses for" in rounds.why("web").summary
            assert "muster service register web" in rounds.why("web").next_step
            rounds.wait(500)
            waited_ms += 500
        pauses.append(waited_ms)
    assert pauses[:5] == [0, FIRST_PAUSE_MS, 2 * FIRST_PAUSE_MS, 4 * FIRST_PAUSE_MS, 8 * FIRST_PAUSE_MS]
    assert pauses[-1] == LONGEST_PAUSE_MS


def test_p6_36_what_fails_at_once_wherever_it_is_started_is_not_given_up_within_seconds() -> None:
    rounds = settled(replace(WEB, restart_window_ms=ONE_HOUR_MS))
    rounds.told.clear()
    for second in range(1, 1000):
        if rounds.at("web")[0] is REGISTERED:
            fail(rounds)
        if rounds.service("web").cause:
            break
        if second == 10:
            assert starts(rounds) < 8
        rounds.wait(1000)
    assert second > 120
    assert "it is tried again when that is 1h ago" in rounds.service("web").cause


def test_p6_36_the_pause_ends_at_once_where_an_operator_asks_for_it() -> None:
    rounds = settled(WEB)
    fail(rounds)
    fail(rounds)
    assert rounds.at("web")[0] is DEREGISTERED
    rounds.ask(RegisterService("web"))
    rounds.settle()
    assert rounds.at("web")[0] is REGISTERED


def test_p6_36_what_was_given_up_everywhere_is_tried_again_when_its_window_is_over() -> None:
    rounds = settled(replace(WEB, restarts=0, restart_window_ms=60_000))
    for _ in range(3):
        fail(rounds)
    assert "it failed too often on n0, n1, n2" in rounds.service("web").cause
    rounds.wait(30_000)
    assert rounds.at("web") == (DEREGISTERED, NO_NODE)
    rounds.wait(31_000)
    assert rounds.at("web")[0] is REGISTERED


def test_p6_36_a_node_that_boots_again_takes_what_was_given_up_everywhere() -> None:
    rounds = settled(replace(WEB, restarts=0))
    for _ in range(3):
        fail(rounds)
    rounds.stop(1)
    rounds.settle()
    member = rounds.database.member(1)
    rounds.database.members[1] = replace(member, state=NodeState.JOINING, incarnation=member.incarnation + 1)
    rounds.settle()
    rounds.database.members[1] = replace(rounds.database.member(1), state=NodeState.JOINED, told_level=40)
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, 1)


def test_p6_36_a_start_that_fails_everywhere_is_tried_again_after_a_longer_pause_each_time() -> None:
    rounds = Rounds()
    rounds.failing = {("web", "start", node) for node in range(3)}
    rounds.define(WEB)
    rounds.settle()
    assert "the start is tried again after 10s, or at once: muster service register web" in rounds.service("web").cause
    for number in range(1, 4):
        before = starts(rounds)
        rounds.wait((FIRST_ROUND_MS << (number - 1)) - 1000)
        assert starts(rounds) == before
        rounds.wait(1000)
        assert starts(rounds) == before + 3
    rounds.failing.clear()
    rounds.wait(ONE_HOUR_MS)
    assert rounds.at("web")[0] is REGISTERED
    assert (rounds.service("web").rest, rounds.service("web").rounds) == (None, 0)


# ---- P6.37 a mended definition is tried ------------------------------------------------------------------------------


def test_p6_37_a_definition_that_is_mended_is_tried_at_once() -> None:
    rounds = Rounds()
    rounds.failing = {("web", "start", node) for node in range(3)}
    rounds.define(WEB)
    rounds.settle()
    rounds.failing.clear()
    rounds.ask(ApplyServices((WEB,)))
    rounds.settle()
    assert rounds.service("web").cause  # nothing is mended
    rounds.ask(ApplyServices((replace(WEB, run=("/bin/web", "--mended")),)))
    rounds.settle()
    assert rounds.at("web")[0] is REGISTERED


def test_p6_37_a_stop_command_that_is_mended_is_tried_at_once_too() -> None:
    rounds = settled(WEB)
    here = rounds.service("web").node
    rounds.failing = {("web", "stop", here)}
    rounds.ask(RestartService("web"))
    rounds.settle()
    rounds.ask(ApplyServices((replace(WEB, restarts=7),)))
    rounds.settle()
    assert rounds.service("web").cause  # that has nothing to do with it
    rounds.failing.clear()
    rounds.ask(ApplyServices((replace(WEB, stop_command=("/bin/mended",)),)))
    rounds.settle()
    assert rounds.at("web") == (REGISTERED, here)


# ---- P6.38 exit statuses ---------------------------------------------------------------------------------------------


def test_p6_38_a_program_that_has_done_its_work_is_deregistered_and_has_not_failed() -> None:
    rounds = settled(replace(WEB, success_exit_status=(0,)))
    fail(rounds, status=0)
    service = rounds.service("web")
    assert (service.state, service.wanted, service.failures, service.cause) == (DEREGISTERED, False, (), "")
    assert "it has done its work" in service.reason
    rounds.ask(RegisterService("web"))
    rounds.settle()
    assert rounds.at("web")[0] is REGISTERED


def test_p6_38_a_hard_status_gives_its_node_up_at_once_and_a_fatal_one_all_of_them() -> None:
    rounds = settled(replace(WEB, hard_exit_status=(5,), fatal_exit_status=(6,)))
    here = rounds.service("web").node
    fail(rounds, status=5)
    state, there = rounds.at("web")
    assert state is REGISTERED and there != here
    fail(rounds, status=6)
    assert rounds.at("web") == (DEREGISTERED, NO_NODE)
    assert "another try does not help" in rounds.service("web").cause
    rounds.wait(ONE_HOUR_MS)
    assert rounds.at("web") == (DEREGISTERED, NO_NODE)
    rounds.ask(ClearService("web"))
    rounds.settle()
    assert rounds.at("web")[0] is REGISTERED


def test_p6_38_a_start_that_ends_with_a_fatal_status_is_tried_nowhere_else() -> None:
    definition = Definition("web", start_command=("/bin/web",), hard_exit_status=(5,), fatal_exit_status=(6,))
    rounds = Rounds()
    rounds.failing = {("web", "start", node) for node in range(3)}
    rounds.statuses = {("web", "start"): 6}
    rounds.define(definition)
    rounds.settle()
    assert starts(rounds) == 1
    rounds.wait(ONE_HOUR_MS)
    assert starts(rounds) == 1 and "another try does not help" in rounds.service("web").cause
    rounds.failing.clear()
    rounds.ask(ApplyServices((replace(definition, start_timeout_ms=1000),)))
    rounds.held = {("web", "start")}
    rounds.settle()
    node = rounds.service("web").node
    (command,) = Executor(node, rounds.database.member(node).incarnation, ()).due(rounds.database)
    assert command.final == (5, 6)  # the runner tries no start again that has ended with one of them


def test_p6_38_a_status_has_one_meaning() -> None:
    assert "status 5 is in hard_exit_status and in fatal_exit_status" in problem_of(
        replace(WEB, hard_exit_status=(5,), fatal_exit_status=(5, 6))
    )
    assert "an exit status is 0 to 255" in problem_of(replace(WEB, hard_exit_status=(256,)))
    started = Definition("web", start_command=("/bin/web",), success_exit_status=(1,))
    assert "without run" in problem_of(started)


def test_p6_38_the_keys_of_version_4_are_taken_only_where_it_is_active() -> None:
    rounds = settled()
    rounds.database.cluster = replace(rounds.database.cluster, active_version=3)
    started = Definition("web", start_command=("/bin/web",), ready_port=80)
    check = replace(WEB, check_command=("/bin/probe",))
    for definition in (
        replace(WEB, fatal_exit_status=(6,)), replace(WEB, forking=False), started,
        replace(check, start_grace_ms=1), replace(check, check_unknown_exit_status=(3,)),
    ):  # fmt: skip
        assert "this needs version 4" in refusal(ApplyServices((WEB, definition)), rounds.database)
    assert refusal(ApplyServices((WEB, check)), rounds.database) == ""


# ---- P6.39 what runs is what was defined when it started -------------------------------------------------------------


def test_p6_39_what_runs_is_shown_as_it_was_defined_when_it_started_until_it_is_started_again() -> None:
    rounds = settled(WEB)
    here = rounds.service("web").node
    assert "restart pending: web" in rounds.ask(ApplyServices((replace(WEB, run=("/bin/other",)),))).outcome
    rounds.ask(ApplyServices((replace(WEB, run=("/bin/third",), restarts=7),)))
    rounds.settle()
    service = rounds.service("web")
    assert rounds.at("web") == (REGISTERED, here)
    assert service.as_started is not None and service.as_started.run == ("/bin/web",)
    assert pending(service) == ("run",)
    assert "restart pending: it runs as it was defined when it started" in rounds.why("web").summary
    assert rounds.why("web").next_step == "muster service restart web"
    rounds.ask(RestartService("web"))
    rounds.settle()
    assert rounds.service("web").as_started is None


def test_p6_39_what_counts_at_once_is_not_pending_nor_is_what_was_put_back() -> None:
    rounds = settled(WEB)
    checked = replace(WEB, check_command=("/bin/probe",), stop_timeout_ms=1000)
    assert "pending" not in rounds.ask(ApplyServices((checked,))).outcome
    rounds.ask(ApplyServices((replace(WEB, environment=(("A", "1"),)),)))
    assert pending(rounds.service("web")) == ("environment",)
    rounds.ask(ApplyServices((WEB,)))
    assert pending(rounds.service("web")) == ()


# ---- P8.18 what a start leaves running -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("definition", "followed"),
    [
        (Definition("web", start_command=("/bin/web",)), True),
        (Definition("web", start_command=("/bin/web",), forking=False), False),
        (Definition("web", run=("/bin/web",)), False),
        (Definition("web", run=("/bin/web",), check_command=("/bin/probe",)), True),
        (Definition("web", run=("/bin/web",), check_command=("/bin/probe",), forking=False), False),
        (Definition("web", run=("/bin/web",), forking=True), True),
    ],
)
def test_p8_18_what_a_start_leaves_goes_on_for_it_where_that_can_be_meant(
    definition: Definition, followed: bool
) -> None:
    assert follows(definition) is followed


# ---- P6.40 a program that has ended is shown so, whatever is done about it -------------------------------------------

PAGED = replace(WEB, on_failure=("/bin/page",), restarts=0)


def end_program(rounds: Rounds, status: int = 1) -> None:
    """The program of `web` ends, and is left to its action."""
    generation = rounds.service("web").generation
    rounds.ask(FailService("web", "its program ended", generation, status, has_own_action=True))
    rounds.settle()


def is_left_on(rounds: Rounds, node: str) -> bool:
    return rounds.at("web") == (REGISTERED, int(node[1:])) and rounds.service("web").broken == "its program ended"


def test_p6_40_no_step_of_the_failure_policy_follows_and_it_lasts_until_the_service_is_started_again() -> None:
    rounds = settled(PAGED)
    before = rounds.service("web")
    end_program(rounds)
    end_program(rounds)
    rounds.wait(ONE_HOUR_MS)
    assert is_left_on(rounds, "n0")
    assert rounds.service("web") == replace(before, broken="its program ended", ended=Ended.OWN)
    explained = rounds.why("web")
    assert explained.summary == "web has failed on n0: its program ended; only its `on_failure` acts on that"
    assert explained.next_step == "muster service restart web"
    for asked in (ClearService("web"), RegisterService("web")):  # neither starts what is registered
        rounds.ask(asked)
        rounds.settle()
        assert is_left_on(rounds, "n0")
    rounds.ask(RestartService("web"))
    rounds.settle()
    after = rounds.service("web")
    assert (after.state, after.node, after.broken, after.ended) == (REGISTERED, 0, "", Ended.FAILED)
    assert after.generation > before.generation


ENDS_IT = {
    "de-registered": (DeregisterService("web"), (DEREGISTERED, NO_NODE)),
    "moved": (TransferService("web", "n1"), (REGISTERED, 1)),
    "handed over to the policy": (FailService("web", "it is hopeless"), (REGISTERED, 1)),
    "redefined without an action": (ApplyServices((replace(PAGED, on_failure=(), restarts=3),)), (REGISTERED, 0)),
}


@pytest.mark.parametrize(("asked", "place"), ENDS_IT.values(), ids=ENDS_IT)
def test_p6_40_what_its_action_or_a_person_asks_for_is_done(
    asked: OperationRequest, place: tuple[ServiceState, int]
) -> None:
    rounds = settled(PAGED)
    generation = rounds.service("web").generation
    end_program(rounds)
    assert not rounds.ask(asked).refused
    rounds.settle()
    assert rounds.at("web") == place
    assert rounds.service("web").broken == ""
    assert rounds.service("web").generation > generation


def test_p6_40_it_waits_for_its_children_and_a_program_that_has_done_its_work_is_no_failure() -> None:
    rounds = settled(replace(PAGED, success_exit_status=(0,)), replace(WEB, name="child", parent="web"))
    rounds.held = {("child", "stop")}
    end_program(rounds)
    assert rounds.service("child").state is REGISTERED, "nothing ends it"
    rounds.ask(RestartService("web"))
    rounds.settle()
    assert is_left_on(rounds, "n0")
    rounds.held.clear()
    rounds.settle()
    assert (rounds.service("web").state, rounds.service("web").broken) == (REGISTERED, "")
    end_program(rounds, status=0)
    assert (rounds.service("web").state, rounds.service("web").wanted) == (DEREGISTERED, False)


def test_p6_40_it_is_asked_for_only_where_each_master_knows_it() -> None:
    policys = FailService("web", "its program ended", 5)
    own, database = replace(policys, has_own_action=True), settled(WEB).database
    database.cluster = replace(database.cluster, active_version=OWNERS_KEYS - 1)
    assert not refusal(policys, database)
    assert "this needs version 4" in refusal(own, database)
    database.cluster = replace(database.cluster, active_version=OWNERS_KEYS)
    assert not refusal(own, database)
