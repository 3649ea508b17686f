"""`muster why`: the verdict of each rule in words, by the rules that decide; the past as it was (SPEC 8.2)."""

import pytest
from msgspec.structs import replace

from muster.core import boot_advice
from muster.core.services.explanation import _told_and_advice, explain_past, unexplained
from muster.core.services.placement import Rule
from muster.daemon.history.placement_record import MAXIMUM_DECISIONS, MAXIMUM_TOLD, PlacementRecord
from muster.records.nodes import NodeConfig
from muster.records.placements import Decision, PlacedTogether, PlacementSnapshot, Wish
from muster.records.services import (
    ClearService,
    Definition,
    DeregisterService,
    FailService,
    ServiceState,
    SetMaintenance,
    SetStandby,
    TransferService,
)
from muster.records.terms import NO_NODE, Term
from plain_words import faults
from rounds import Rounds

WEB = Definition("web", start_command=("/bin/start",), stop_command=("/bin/stop",))


def settled(*definitions: Definition, nodes: int = 3, up: tuple[int, ...] | None = None) -> Rounds:
    rounds = Rounds(nodes, up)
    rounds.define(*definitions)
    rounds.settle()
    return rounds


def first_in_the_way(rounds: Rounds, name: str = "web") -> tuple[str, str, str]:
    """The rule that keeps the service down, the summary and the next step."""
    explanation = rounds.why(name)
    assert [*faults(explanation.summary), *faults(explanation.next_step)] == []  # P10.14
    rule = next((finding.rule for finding in explanation.findings if not finding.holds), "")
    return rule, explanation.summary, explanation.next_step


def verdicts(rounds: Rounds, name: str = "web") -> dict[str, tuple[str, bool]]:
    """What is said of each node, and whether it would be taken."""
    return {verdict.name: (verdict.rule, verdict.chosen) for verdict in rounds.why(name).verdicts}


def test_spec_8_2_a_registered_service_says_where_it_would_go_as_if_it_were_not_there_yet() -> None:
    rounds = settled(WEB, replace(WEB, name="other"))
    assert rounds.at("web") == (ServiceState.REGISTERED, 0)
    assert rounds.why("web").summary == "web is registered on n0"
    assert rounds.why("web").next_step == ""
    assert verdicts(rounds) == {"n0": (Rule.LOWEST, True), "n2": (Rule.LOWEST, False), "n1": (Rule.LOAD, False)}


@pytest.mark.parametrize("advice", ["mend it, then: muster service clear web", "fix the cause, then: muster x"])
def test_p10_14_what_a_recorded_cause_advises_is_the_next_step_also_in_the_words_of_an_older_release(
    advice: str,
) -> None:
    assert _told_and_advice(f"start failed; last: exit 1; {advice}") == ("start failed; last: exit 1", advice)


def test_spec_8_2_a_service_that_nobody_wants() -> None:
    rounds = settled(replace(WEB, auto_register=False))
    rule, summary, next_step = first_in_the_way(rounds)
    assert rule == "wanted"
    assert summary.startswith("web is not running: it is not wanted")
    assert next_step == "muster service register web"


def test_spec_8_2_a_service_that_awaits_maturity_says_what_is_missing_and_since_when() -> None:
    rounds = settled(replace(WEB, ordered=("n1", "n0"), maturity_count=2, maturity_time_ms=300_000), up=(2,))
    rounds.wait(40_000)
    rule, summary, _ = first_in_the_way(rounds)
    assert rule == "maturity"
    assert "its primary node n1; or for 2 allowable nodes (1 up); or for 300 s (40 s so far)" in summary
    rounds.wait(300_000)
    assert rounds.at("web") == (ServiceState.REGISTERED, 2)


def test_spec_8_2_a_child_points_to_its_parent() -> None:
    rounds = settled(replace(WEB, name="disk", auto_register=False), replace(WEB, parent="disk"))
    rule, summary, next_step = first_in_the_way(rounds)
    assert (rule, next_step) == ("group", "muster why disk")
    assert "its parent disk is de-registered" in summary
    assert set(verdicts(rounds).values()) == {("group", False)}


def test_spec_8_2_a_child_that_has_failed_where_its_group_is_does_not_go_there() -> None:
    rounds = settled(replace(WEB, name="disk", ordered=("n2",)), replace(WEB, parent="disk", restarts=0))
    rounds.ask(FailService("web", "exit status 7", rounds.service("web").generation))
    rounds.settle()
    assert verdicts(rounds) == {"n2": ("excluded", False), "n0": ("group", False), "n1": ("group", False)}
    rule, summary, next_step = first_in_the_way(rounds)
    assert rule == "stuck"
    assert "it can run only where its parent disk does" in summary
    assert next_step == "fix the cause, then: muster service clear web"


def test_spec_8_2_a_failure_that_maintenance_holds_up_is_told() -> None:
    rounds = settled(WEB)
    rounds.ask(SetMaintenance("service", "web"))
    rounds.ask(FailService("web", "exit status 7", rounds.service("web").generation))
    rounds.settle()
    explained = rounds.why("web")
    assert "has failed there: exit status 7; nothing is done about it, as service web is in maint" in explained.summary
    assert "muster maintenance end" in explained.next_step
    assert ("failure", False) in {(finding.rule, finding.holds) for finding in explained.findings}


def test_spec_8_2_a_child_that_runs_is_where_its_parent_is() -> None:
    rounds = settled(replace(WEB, name="disk", ordered=("n2",)), replace(WEB, parent="disk"))
    assert verdicts(rounds) == {"n2": ("group", True), "n0": ("group", False), "n1": ("group", False)}


@pytest.mark.parametrize("kind", ["cluster", "service"])
def test_spec_8_2_maintenance_is_named(kind: str) -> None:
    rounds = Rounds(3)
    rounds.define(WEB)
    rounds.ask(SetMaintenance(kind, "web" if kind == "service" else ""))
    rounds.settle()
    rule, summary, next_step = first_in_the_way(rounds)
    assert rule == "maintenance"
    assert f"{kind}" in summary
    assert next_step


def test_spec_8_2_a_node_on_standby_or_in_maintenance_is_no_candidate() -> None:
    rounds = settled(WEB, up=(0, 1))
    rounds.ask(SetStandby("n0"))
    rounds.ask(SetMaintenance("node", "n1"))
    said = {verdict.name: verdict.words for verdict in rounds.why("web").verdicts}
    assert said == {"n0": "it is on standby", "n1": "it is in maintenance", "n2": "it is not a member now"}


def test_spec_8_2_a_service_whose_starts_failed_names_every_node_and_the_next_command() -> None:
    rounds = Rounds(3)
    rounds.failing = {("web", "start", node) for node in range(3)}
    rounds.define(WEB)
    rounds.settle()
    rule, summary, next_step = first_in_the_way(rounds)
    assert rule == "stuck"
    assert "start failed on" in summary
    assert next_step.startswith("fix the cause; the start is tried again after ")
    assert next_step.endswith(", or at once: muster service register web")
    assert set(verdicts(rounds).values()) == {(Rule.EXCLUDED, False)}
    (last,) = rounds.decided[-1].decisions
    assert (last.service, last.node) == ("web", NO_NODE), "that no node was left is recorded, too"
    assert {verdict.rule for verdict in explain_past(rounds.decided[-1], 0)} == {Rule.EXCLUDED}
    rounds.failing.clear()
    rounds.ask(ClearService("web"))
    rounds.settle()
    assert rounds.at("web")[0] is ServiceState.REGISTERED


def test_spec_8_2_a_stop_that_failed_says_how_to_go_on() -> None:
    rounds = settled(WEB)
    rounds.failing = {("web", "stop", 0)}
    rounds.ask(DeregisterService("web"))
    rounds.settle()
    rule, summary, next_step = first_in_the_way(rounds)
    assert rule in ("stay", "stuck")
    assert summary.startswith("web is stopping on n0 and stuck: stop failed")
    assert "muster" not in summary, "what to do is the next step, and told once"
    assert "muster service deregister web" in next_step
    assert "muster node evict n0" in next_step


def test_spec_8_2_a_parent_that_waits_for_a_child_names_it() -> None:
    rounds = settled(replace(WEB, name="disk"), replace(WEB, parent="disk"))
    rounds.failing = {("web", "stop", 0)}
    rounds.ask(TransferService("disk", "n1"))
    rounds.settle()
    explained = rounds.why("disk")
    assert "about to end there: transferred by an operator; first its child web ends" in explained.summary
    assert "which is stopping, and stuck: stop failed on n0" in explained.summary
    assert explained.next_step == "muster why web"


def test_spec_8_2_no_allowable_node_is_up() -> None:
    rounds = settled(replace(WEB, allowable_nodes=("n2",)), up=(0, 1))
    explanation = rounds.why("web")
    assert all(finding.holds for finding in explanation.findings)
    assert explanation.summary == "web is not running: no allowable node is up"
    assert explanation.next_step == "boot n2: there, systemctl start musterd"
    assert boot_advice.advice_for_any("n2", "muster dev boot {name}") == "boot n2: muster dev boot n2"
    assert boot_advice.advice_for_any("n1 or n2", "muster dev boot {name}") == "boot n1 or n2: muster dev boot NAME"
    assert verdicts(rounds) == {
        "n0": (Rule.NOT_ALLOWABLE, False),
        "n1": (Rule.NOT_ALLOWABLE, False),
        "n2": (Rule.NOT_UP, False),
    }


def test_spec_8_2_a_recovery_that_waits_for_a_node() -> None:
    rounds = settled(replace(WEB, allowable_nodes=("n0",), recovery_command=("/bin/recover",)))
    rounds.stop(0)
    rounds.settle()
    assert rounds.at("web") == (ServiceState.RECOVERING, NO_NODE)
    assert "waits for a node where its recovery can run" in rounds.why("web").summary


def test_spec_8_2_a_service_on_all_nodes_names_its_instances() -> None:
    rounds = settled(replace(WEB, on_all=True, disallowable_nodes=("n1",)))
    assert verdicts(rounds) == {
        "n0": ("instances", True),
        "n1": (Rule.DISALLOWED, False),
        "n2": ("instances", True),
    }


def test_spec_8_2_a_transfer_says_that_it_was_asked_for() -> None:
    rounds = settled(WEB)
    rounds.ask(TransferService("web", "n2"))
    rounds.settle()
    assert rounds.at("web") == (ServiceState.REGISTERED, 2)
    position = next(n for n, decision in enumerate(rounds.decided[-1].decisions) if decision.service == "web")
    best, *others = explain_past(rounds.decided[-1], position)
    assert (best.name, best.rule, best.chosen) == ("n2", Rule.ASKED, True)
    assert {verdict.name: verdict.rule for verdict in others} == {"n0": Rule.ASKED, "n1": Rule.ASKED}


@pytest.mark.parametrize("seed", range(6))
def test_spec_8_2_what_is_about_to_happen_by_the_explanation_is_what_happens(seed: int) -> None:
    """Alone in the cluster, a service starts in the next round exactly if and where its explanation says so."""
    variants = (
        replace(WEB, ordered=("n2", "n1")),
        replace(WEB, unordered=("n1",), maturity_count=2),
        replace(WEB, allowable_nodes=("n1", "n2"), disallowable_nodes=("n1",)),
        replace(WEB, maturity_time_ms=5000),
        replace(WEB, auto_register=False),
        replace(WEB, allowable_nodes=("n0",)),
    )
    rounds = Rounds(3, up=())
    rounds.define(variants[seed])
    for change, node in ((rounds.join, 1), (rounds.join, 2), (rounds.stop, 2), (rounds.join, 0)):
        change(node)
        for _ in range(8):
            before, said = rounds.service("web"), rounds.why("web")
            rounds.now_ms += 1000
            if before.state is not ServiceState.DEREGISTERED:
                rounds.step()
                continue
            ready = all(finding.holds for finding in rounds.why("web").findings)
            chosen = [verdict.node for verdict in said.verdicts if verdict.chosen]
            rounds.step()
            after = rounds.service("web")
            assert after.node == (chosen[0] if ready and chosen else NO_NODE)


def together(count: int) -> PlacedTogether:
    """One entry that places `count` equal services on three nodes."""
    nodes = {node: NodeConfig(node, f"n{node}", (), "") for node in range(3)}
    snapshot = PlacementSnapshot(nodes, frozenset(nodes), {}, {}, {})
    decisions = tuple(Decision(f"s{n}", n % 3, "starting", "", Wish(Definition(f"s{n}"), {})) for n in range(count))
    return PlacedTogether(snapshot, {}, decisions)


def test_spec_9_4_the_record_of_decisions_is_bounded_and_tells_the_newest_first() -> None:
    record = PlacementRecord()
    for index in range(1, 101):
        record.add(index * 1000, Term(1, 0), index, together(200))
    assert record._decisions <= MAXIMUM_DECISIONS
    found = record.of("s7", now_us=200_000)
    assert [decision.index for decision in found] == list(range(100, 100 - MAXIMUM_TOLD, -1))
    assert found[0].age_us == 100_000
    assert [verdict.name for verdict in found[0].verdicts if verdict.chosen] == ["n1"]
    assert next(decision.index for decision in record.of("s7", 200_000, at=90)) == 90
    assert record.of("s7", 200_000, at=1) == (), "it was forgotten"
    assert record.of("nothing", 200_000) == ()


def test_spec_8_2_a_decision_that_the_rules_do_not_give_is_noticed() -> None:
    placed = together(6)
    assert unexplained(placed) == []
    wrong = placed.decisions[4]._replace(node=0)
    assert unexplained(PlacedTogether(placed.snapshot, {}, (*placed.decisions[:4], wrong)))
