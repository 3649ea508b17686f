"""Choosing a node for a service: P6.19, against a second version that only tries and compares (SPEC 6.2, 6.8)."""

from hypothesis import given, settings
from hypothesis import strategies as st

from muster.core.placement import choose, is_allowable, load_of
from muster.records.state import Cluster, Database, Definition, NodeConfig, Service, ServiceState

NODES = {node: NodeConfig(node, f"n{node}", (), "") for node in range(6)}
NAMES = [config.name for config in NODES.values()]
FULL_RUN = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def is_better(definition: Definition, one: int, other: int, load: dict[int, int]) -> bool:
    """Whether `one` is to be preferred to `other`, rule by rule in their order."""
    names = list(definition.ordered)
    first, second = NODES[one].name, NODES[other].name
    if (first in names) != (second in names):
        return first in names  # nodes in no list rank after those that are
    if first in names and names.index(first) != names.index(second):
        return names.index(first) < names.index(second)
    if load.get(one, 0) != load.get(other, 0):
        return load.get(one, 0) < load.get(other, 0)
    return one < other


def allowed(definition: Definition, node: int) -> bool:
    """Whether the definition lets the service run there, in the words of SPEC 6.2."""
    name = NODES[node].name
    listed = any(entry in ("*", name) for entry in definition.allowable_nodes)
    return listed and all(entry != name for entry in definition.disallowable_nodes)


def second_version(definition: Definition, up: set[int], load: dict[int, int], excluded: set[int]) -> int | None:
    """The node that no other allowed one is better than."""
    left = [node for node in NODES if node in up and node not in excluded and allowed(definition, node)]
    best = [node for node in left if not any(is_better(definition, other, node, load) for other in left)]
    assert len(best) <= 1
    return best[0] if best else None


some_names = st.lists(st.sampled_from(NAMES), unique=True, max_size=6).map(tuple)
definitions = st.builds(
    Definition,
    name=st.just("web"),
    allowable_nodes=st.one_of(st.just(("*",)), some_names),
    disallowable_nodes=some_names,
    ordered=some_names,
)
sets = st.sets(st.integers(0, 5))
loads = st.dictionaries(st.integers(0, 5), st.integers(0, 3))


@FULL_RUN
@given(definitions, sets, loads, sets)
def test_p6_19_the_chosen_node_is_that_of_a_naive_second_version(
    definition: Definition, up: set[int], load: dict[int, int], excluded: set[int]
) -> None:
    assert choose(definition, NODES, up, load, excluded) == second_version(definition, up, load, excluded)


@FULL_RUN
@given(definitions, sets, loads, sets, st.randoms(use_true_random=False))
def test_p6_19_the_same_snapshot_gives_the_same_node_in_whatever_order_it_is_read(
    definition: Definition, up: set[int], load: dict[int, int], excluded: set[int], chance: st.DataObject
) -> None:
    shuffled = sorted(up)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    nodes = dict(sorted(NODES.items(), reverse=True))
    backwards = dict(sorted(load.items(), reverse=True))
    chosen = choose(definition, NODES, sorted(up), load, excluded)
    assert choose(definition, nodes, shuffled, backwards, frozenset(excluded)) == chosen


@FULL_RUN
@given(definitions, st.integers(0, 5))
def test_p6_19_a_disallowed_node_is_never_allowable_even_under_the_wildcard(definition: Definition, node: int) -> None:
    assert is_allowable(definition, NODES[node].name) == allowed(definition, node)


def test_p6_19_a_node_that_is_not_configured_is_never_chosen() -> None:
    assert choose(Definition("web"), NODES, [17], {}) is None
    assert choose(Definition("web"), NODES, [17, 3], {}) == 3


def test_p6_19_the_load_of_a_node_is_the_number_of_services_assigned_to_it() -> None:
    database = Database(Cluster("test", "0" * 32, "fast", ""))
    for number, node in enumerate((0, 2, 2, -1)):
        name = f"s{number}"
        database.services[name] = Service(Definition(name), number, ServiceState.REGISTERED, node=node)
    assert load_of(database) == {0: 1, 2: 2}
