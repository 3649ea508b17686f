"""P6.19: where services go, compared with a second, naive version that knows only what it compares (SPEC 6.2, 6.8)."""

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.core.services import placement
from muster.core.services.grades import GRADES, described, grade_of, is_news
from muster.core.services.placement import NodeVerdict, Placement, Rule, is_allowable, load_of
from muster.records.database import Database
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import Definition, Performance, Service, ServiceState
from muster.records.terms import NO_NODE

NODES = {node: NodeConfig(node, f"n{node}", (), "") for node in range(6)}
NAMES = [config.name for config in NODES.values()]
FULL_RUN = settings(max_examples=300, deadline=None, derandomize=True, database=None)


class Snapshot(NamedTuple):
    """What one choice is made of."""

    definition: Definition
    up: set[int]
    load: dict[int, int]
    performance: dict[int, Performance]
    excluded: set[int]
    origin: int
    target: int
    withheld: set[int]

    def choose(self) -> int | None:
        """What the core decides."""
        return self.placement().choose(self.definition, self.excluded, self.origin, self.target)

    def explain(self) -> list[NodeVerdict]:
        """What it says of it."""
        reasons = dict.fromkeys(self.excluded, "its start failed there")
        return self.placement().explain(self.definition, reasons, self.origin, self.target)

    def placement(self) -> Placement:
        """The snapshot as the core takes it."""
        withheld = dict.fromkeys(self.withheld, "it is on standby")
        return Placement(NODES, self.up, self.load, self.performance, withheld)

    def shut(self, node: int) -> bool:
        """Whether an operator keeps the service away from the node."""
        return node in self.withheld and node not in (self.origin, self.target)


def is_better(case: Snapshot, one: int, other: int) -> bool:
    """Whether `one` is to be preferred to `other`, rule by rule in their order."""
    ordered, unordered = list(case.definition.ordered), list(case.definition.unordered)
    first, second = NODES[one].name, NODES[other].name
    if case.target in (one, other):
        return case.target == one
    if case.origin in (one, other):
        return case.origin == other
    if (first in ordered) != (second in ordered):
        return first in ordered
    if first in ordered:
        return ordered.index(first) < ordered.index(second)
    if (first in unordered) != (second in unordered):
        return first in unordered  # nodes in no list rank after those that are
    if first in unordered:
        grades = [naive_grade(case.performance.get(node)) for node in (one, other)]
        if grades[0] != grades[1]:
            return grades[0] < grades[1]
    if case.load.get(one, 0) != case.load.get(other, 0):
        return case.load.get(one, 0) < case.load.get(other, 0)
    return one < other


def naive_grade(performance: Performance | None) -> int:
    """0 to 4, by the worst of the three; what is not known counts as idle."""
    if performance is None:
        return 0
    worst = 0
    for value, bounds in (
        (performance.cpu, (250, 500, 750, 900)),
        (performance.memory, (500, 700, 850, 950)),
        (performance.pressure, (20, 100, 250, 500)),
    ):
        for grade, bound in enumerate(bounds, 1):
            if value >= bound:
                worst = max(worst, grade)
    return worst


def allowed(definition: Definition, node: int) -> bool:
    """Whether the definition lets the service run there, in the words of SPEC 6.2."""
    name = NODES[node].name
    listed = any(entry in ("*", name) for entry in definition.allowable_nodes)
    return listed and all(entry != name for entry in definition.disallowable_nodes)


def second_version(case: Snapshot) -> int | None:
    """The node that no other allowed one is better than."""
    left = [
        node
        for node in NODES
        if node in case.up and node not in case.excluded and not case.shut(node) and allowed(case.definition, node)
    ]
    best = [node for node in left if not any(is_better(case, other, node) for other in left if other != node)]
    assert len(best) <= 1
    return best[0] if best else None


some_names = st.lists(st.sampled_from(NAMES), unique=True, max_size=6).map(tuple)
definitions = st.builds(
    Definition,
    name=st.just("web"),
    allowable_nodes=st.one_of(st.just(("*",)), some_names),
    disallowable_nodes=st.one_of(st.just(()), some_names),
    ordered=st.one_of(st.just(()), some_names),
    unordered=st.one_of(st.just(()), some_names),
)
sets = st.sets(st.integers(0, 5))
loads = st.dictionaries(st.integers(0, 5), st.integers(0, 3))
thousandths = st.sampled_from([0, 19, 20, 99, 100, 249, 250, 499, 500, 700, 749, 750, 850, 900, 950, 1000])
performances = st.dictionaries(st.integers(0, 5), st.builds(Performance, thousandths, thousandths, thousandths))
somewhere = st.one_of(st.just(NO_NODE), st.integers(0, 5))
snapshots = st.builds(Snapshot, definitions, sets, loads, performances, sets, somewhere, somewhere, sets)
plain = snapshots.map(lambda case: case._replace(excluded=set(), origin=NO_NODE, target=NO_NODE, withheld=set()))
cases = st.one_of(snapshots, plain)


@FULL_RUN
@given(cases)
def test_p6_19_the_chosen_node_is_that_of_a_naive_second_version(case: Snapshot) -> None:
    assert case.choose() == second_version(case)


@FULL_RUN
@given(snapshots, st.lists(definitions, min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=40))
def test_p6_19_many_choices_from_one_snapshot_are_those_of_the_naive_version_one_after_the_other(
    case: Snapshot, several: list[Definition], sequence: list[int]
) -> None:
    placing = case.placement()
    load = dict(case.load)
    for number in sequence:
        definition = several[number % len(several)]
        by_hand = case._replace(definition=definition, load=load, excluded=set(), origin=NO_NODE, target=NO_NODE)
        chosen = placing.choose(definition)
        assert chosen == second_version(by_hand)
        if chosen is not None:
            placing.assigned(chosen)
            load[chosen] = load.get(chosen, 0) + 1


@FULL_RUN
@given(cases)
def test_p6_19_the_explanation_has_every_node_once_and_tells_what_was_chosen(case: Snapshot) -> None:
    verdicts = case.explain()
    assert sorted(verdict.node for verdict in verdicts) == sorted(NODES)
    assert [verdict.node for verdict in verdicts if verdict.chosen] == [
        node for node in (second_version(case),) if node is not None
    ]
    for verdict in verdicts:
        possible = verdict.node in case.up - case.excluded and not case.shut(verdict.node)
        assert verdict.possible == (possible and allowed(case.definition, verdict.node))
        assert verdict.words
    ranked = [verdict.node for verdict in verdicts if verdict.possible]
    assert all(is_better(case, ranked[n], ranked[n + 1]) for n in range(len(ranked) - 1)), "best first"


@FULL_RUN
@given(cases)
def test_p6_19_the_rule_that_is_named_is_the_one_that_decided(case: Snapshot) -> None:
    """Where the named rule is made to say nothing between two nodes, the better one is no longer better by it."""
    verdicts = {verdict.node: verdict for verdict in case.explain()}
    best = next((verdict.node for verdict in verdicts.values() if verdict.chosen), None)
    ordered, unordered = case.definition.ordered, case.definition.unordered
    for node, verdict in verdicts.items():
        name = NODES[node].name
        match verdict.rule:
            case Rule.DISALLOWED:
                assert name in case.definition.disallowable_nodes
            case Rule.NOT_ALLOWABLE:
                assert not allowed(case.definition, node)
                assert name not in case.definition.disallowable_nodes
            case Rule.NOT_UP:
                assert allowed(case.definition, node)
                assert node not in case.up
            case Rule.EXCLUDED:
                assert allowed(case.definition, node)
                assert node in case.up & case.excluded
            case Rule.WITHHELD:
                assert allowed(case.definition, node)
                assert node in (case.up - case.excluded) & case.withheld - {case.origin, case.target}
            case _ if verdict.chosen or best is None:
                continue
            case Rule.ASKED:
                assert case.target == best
            case Rule.LEFT:
                assert case.origin == node
            case Rule.LISTED:
                better = NODES[best].name
                assert (better in ordered) > (name in ordered) or (better in unordered) > (name in unordered)
            case Rule.RANK:
                assert ordered.index(NODES[best].name) < ordered.index(name)
            case Rule.GRADE:
                assert {name, NODES[best].name} <= set(unordered)
                assert grade_of(case.performance.get(best)) < grade_of(case.performance.get(node))
            case Rule.LOAD:
                assert case.load.get(best, 0) < case.load.get(node, 0)
            case Rule.LOWEST:
                assert best < node
                assert case.load.get(best, 0) == case.load.get(node, 0)
            case _:
                pytest.fail(f"no rule for a node that lost: {verdict}")


@FULL_RUN
@given(snapshots, st.randoms(use_true_random=False))
def test_p6_19_the_same_snapshot_gives_the_same_node_in_whatever_order_it_is_read(
    case: Snapshot, chance: st.DataObject
) -> None:
    shuffled = sorted(case.up)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    nodes = dict(sorted(NODES.items(), reverse=True))
    backwards = dict(sorted(case.load.items(), reverse=True))
    performance = dict(sorted(case.performance.items(), reverse=True))
    other = Placement(nodes, shuffled, backwards, performance, dict.fromkeys(case.withheld, ""))
    assert other.choose(case.definition, sorted(case.excluded), case.origin, case.target) == case.choose()


@FULL_RUN
@given(definitions, st.integers(0, 5))
def test_p6_19_a_disallowed_node_is_never_allowable_even_under_the_wildcard(definition: Definition, node: int) -> None:
    assert is_allowable(definition, NODES[node].name) == allowed(definition, node)


def test_p6_19_a_node_that_is_not_configured_is_never_chosen() -> None:
    assert Placement(NODES, [17], {}, {}).choose(Definition("web")) is None
    assert Placement(NODES, [17, 3], {17: 0}, {}).choose(Definition("web"), [17], 17, 17) == 3


def test_p6_19_from_where_services_are_kept_away_one_gets_none_but_what_was_asked_for_or_goes_back() -> None:
    placing = Placement(NODES, [3, 4], {4: 7}, {}, {3: "it is on standby"})
    web, bound = Definition("web"), Definition("bound", allowable_nodes=("n3",))
    assert placing.choose(web) == 4 and placing.choose(bound) is None
    assert placing.choose(web, (), NO_NODE, 3) == 3
    assert placing.choose(web, (), 3) == 4 and placing.choose(bound, (), 3) == 3, "rather than nowhere"
    assert placing.choose(web, [4]) is None and placing.choose(web, [3, 4], 3, 3) is None


def test_p6_19_how_busy_nodes_are_counts_in_the_unordered_list_only() -> None:
    busy = {0: Performance(900, 900, 900), 1: Performance(0, 0, 0)}
    placing = Placement(NODES, [0, 1], {1: 1}, busy)
    assert placing.choose(Definition("web", unordered=("n0", "n1"))) == 1
    assert placing.choose(Definition("web", ordered=("n0", "n1"))) == 0
    assert placing.choose(Definition("web")) == 0, "it has fewer services"


def test_p6_19_a_service_does_not_count_against_the_node_that_it_is_on() -> None:
    placing = Placement(NODES, [0, 1], {0: 1, 1: 1}, {})
    assert placing.without(1).choose(Definition("web")) == 1
    assert placing.choose(Definition("web")) == 0
    assert Placement(NODES, [0, 1], {0: 1}, {}).without(1).choose(Definition("web")) == 1


def test_p6_19_an_allowable_node_that_is_not_configured_is_named() -> None:
    (*_, verdict) = Placement(NODES, [3], {}, {}).explain(Definition("web", allowable_nodes=("n3", "n17")))
    assert (verdict.node, verdict.name, verdict.rule, verdict.possible) == (NO_NODE, "n17", "not configured", False)


@pytest.mark.parametrize("ordered", [(), ("n4", "n9")])
def test_p6_19_equal_services_spread_evenly(ordered: tuple[str, ...]) -> None:
    placing = Placement(NODES, [0, 1, 2, 5], {}, {})
    definition = Definition("web", ordered=ordered)
    counts: Counter[int | None] = Counter()
    for _ in range(42):
        chosen = placing.choose(definition)
        assert chosen is not None
        placing.assigned(chosen)
        counts[chosen] += 1
    assert counts == {0: 11, 1: 11, 2: 10, 5: 10}


def test_p6_19_more_sets_of_parameters_than_are_kept_change_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    several = [Definition(f"s{n}", unordered=tuple(NAMES[: n % 6 + 1])) for n in range(60)]
    plenty, none = Placement(NODES, NODES, {}, {}), Placement(NODES, NODES, {}, {})
    for definition in several:
        chosen = plenty.choose(definition)
        with monkeypatch.context() as patch:
            patch.setattr(placement, "MAXIMUM_SHARED", 2)
            assert none.choose(definition) == chosen
        assert chosen is not None
        plenty.assigned(chosen)
        none.assigned(chosen)
    assert len(none._heaps) == 2


def test_p6_19_the_load_of_a_node_is_the_number_of_services_assigned_to_it() -> None:
    database = Database(Cluster("test", "0" * 32, "fast", ""))
    for number, node in enumerate((0, 2, 2, -1)):
        name = f"s{number}"
        database.services[name] = Service(Definition(name), number, ServiceState.REGISTERED, node=node)
    assert load_of(database) == {0: 1, 2: 2}


@FULL_RUN
@given(st.builds(Performance, thousandths, thousandths, thousandths))
def test_p6_19_a_node_is_as_busy_as_what_is_scarcest_on_it(performance: Performance) -> None:
    assert grade_of(performance) == naive_grade(performance)
    assert described(performance).startswith(GRADES[grade_of(performance)])


EACH = st.integers(0, 1000)


@FULL_RUN
@given(st.builds(Performance, EACH, EACH, EACH), st.integers(-10, 10))
def test_p5_3_a_node_tells_its_performance_when_the_grade_changes_and_not_for_noise(
    told: Performance, noise: int
) -> None:
    assert is_news(None, told)
    assert not is_news(told, told)
    near = Performance(*(min(1000, max(0, value + noise)) for value in (told.cpu, told.memory, told.pressure)))
    if is_news(told, near):
        assert not is_news(near, told) or not (grade_of(told) < grade_of(near)), "it would tell both for ever"
    worse = Performance(1000, told.memory, told.pressure)
    assert is_news(told, worse) == (grade_of(told) < 4)
    idle = Performance(0, 0, 0)
    assert is_news(told, idle) == (grade_of(told) > 0), "what has gone for good is told"
