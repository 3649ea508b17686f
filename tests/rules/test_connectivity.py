"""The surviving set, P4.4, against a second version that tries every set of nodes (SPEC 7.4)."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from muster.core.links.connectivity import Candidate, Reason, broken_pairs, reasons, surviving_set

FULL_RUN = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@st.composite
def clusters(draw: st.DrawFn, most: int = 7) -> dict[int, Candidate]:
    """Live members with some links broken, in one direction or in both, and what they carry."""
    nodes = draw(st.sets(st.integers(0, 12), min_size=1, max_size=most))
    directed = [(a, b) for a in sorted(nodes) for b in sorted(nodes) if a != b]
    deaf = draw(st.sets(st.sampled_from(directed), max_size=12)) if directed else set()
    return {
        node: Candidate(
            node,
            draw(st.booleans()),
            draw(st.integers(0, 3)),
            frozenset(other for other in nodes if other != node and (node, other) not in deaf),
            draw(st.booleans()) if {(node, other) for other in nodes - {node}} <= deaf else False,
        )
        for node in nodes
    }


def hear_each_other(candidates: dict[int, Candidate], one: int, other: int) -> bool:
    return other in candidates[one].heard and one in candidates[other].heard


def is_connected(candidates: dict[int, Candidate], nodes: tuple[int, ...]) -> bool:
    return all(hear_each_other(candidates, one, other) for one, other in itertools.combinations(nodes, 2))


def is_better(candidates: dict[int, Candidate], one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether `one` survives rather than `other`: any link, joined nodes, then work, then size, then the lowest ids."""
    for measure in (
        lambda nodes: int(not any(candidates[node].cut_off for node in nodes)),
        lambda nodes: int(any(candidates[node].heard for node in nodes)),
        lambda nodes: sum(candidates[node].joined for node in nodes),
        lambda nodes: sum(candidates[node].work for node in nodes),
        len,
    ):
        if measure(one) != measure(other):
            return measure(one) > measure(other)
    return sorted(one) < sorted(other)


def second_version(candidates: dict[int, Candidate]) -> set[int]:
    """The fully connected set that no other is better than."""
    best: tuple[int, ...] = ()
    for size in range(1, len(candidates) + 1):
        for nodes in itertools.combinations(sorted(candidates), size):
            if is_connected(candidates, nodes) and (not best or is_better(candidates, nodes, best)):
                best = nodes
    return set(best)


@FULL_RUN
@given(clusters())
def test_p4_4_the_surviving_set_is_that_of_a_naive_second_version(candidates: dict[int, Candidate]) -> None:
    assert surviving_set(candidates) == second_version(candidates)


@FULL_RUN
@given(clusters(), st.randoms(use_true_random=False))
def test_p4_4_the_same_views_give_the_same_set_on_every_node(
    candidates: dict[int, Candidate], chance: st.DataObject
) -> None:
    shuffled = list(candidates.items())
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert surviving_set(dict(shuffled)) == surviving_set(candidates)


@FULL_RUN
@given(clusters())
def test_p4_4_a_link_counts_only_if_both_ends_hear_each_other(candidates: dict[int, Candidate]) -> None:
    expected = {
        (one, other)
        for one, other in itertools.combinations(sorted(candidates), 2)
        if not hear_each_other(candidates, one, other)
    }
    assert broken_pairs(candidates) == expected


def joined(node: int, *heard: int, work: int = 0, is_joined: bool = True) -> Candidate:
    return Candidate(node, is_joined, work, frozenset(heard))


def test_p4_4_joined_nodes_come_before_joining_ones_however_many_and_however_busy() -> None:
    halves = {
        0: joined(0, 1),
        1: joined(1, 0),
        2: joined(2, 3, 4, work=9, is_joined=False),
        3: joined(3, 2, 4, work=9, is_joined=False),
        4: joined(4, 2, 3, work=9, is_joined=False),
    }
    assert surviving_set(halves) == {0, 1}


def test_p4_4_a_node_whose_own_links_are_down_ranks_last_whatever_it_runs() -> None:
    cut_off = {
        0: joined(0, work=9),
        1: joined(1, 2, is_joined=False),
        2: joined(2, 1, is_joined=False),
    }
    assert surviving_set(cut_off) == {1, 2}


def test_p4_4_then_the_most_work_then_the_most_nodes_then_the_lowest_ids() -> None:
    halves = {0: joined(0, 1), 1: joined(1, 0), 2: joined(2, 3, work=1), 3: joined(3, 2)}
    assert surviving_set(halves) == {2, 3}
    triple = {0: joined(0), 1: joined(1, 2), 2: joined(2, 1)}
    assert surviving_set(triple) == {1, 2}
    assert surviving_set({0: joined(0, 1), 1: joined(1, 0), 2: joined(2, 3), 3: joined(3, 2)}) == {0, 1}


def test_p4_4_of_two_nodes_the_one_with_more_work_survives_and_else_the_lower_id() -> None:
    assert surviving_set({0: joined(0), 1: joined(1)}) == {0}
    assert surviving_set({0: joined(0), 1: joined(1, work=1)}) == {1}


def test_p4_4_with_dozens_of_broken_links_the_answer_is_still_a_fully_connected_set() -> None:
    nodes = range(40)
    ring = {node: joined(node, (node + 1) % 40, (node - 1) % 40) for node in nodes}
    chosen = surviving_set(ring)
    assert chosen
    assert is_connected(ring, tuple(chosen))


def test_p4_4_without_broken_links_all_survive() -> None:
    whole = {node: joined(node, *(other for other in range(5) if other != node)) for node in range(5)}
    assert surviving_set(whole) == set(range(5))
    assert surviving_set({}) == frozenset()


def test_p4_4_a_node_whose_own_interfaces_are_down_ranks_last_whatever_it_runs() -> None:
    laden = Candidate(0, joined=True, work=100, heard=frozenset(), cut_off=True)
    idle = Candidate(1, joined=False, work=0, heard=frozenset())
    assert surviving_set({0: laden, 1: idle}) == {1}
    assert surviving_set({0: laden._replace(cut_off=False), 1: idle}) == {0}  # with links, its work counts
    assert surviving_set({0: laden, 1: idle._replace(cut_off=True)}) == {0}  # all cables pulled: work again


@given(clusters())
@FULL_RUN
def test_whoever_is_outside_is_told_a_set_that_is_really_worse(candidates: dict[int, Candidate]) -> None:
    survivors, found = reasons(candidates)
    assert survivors == surviving_set(candidates)
    assert {each.node for each in found} == candidates.keys() - survivors
    for each in found:
        assert each.node in each.instead
        assert is_connected(candidates, tuple(sorted(each.instead)))
        assert is_better(candidates, tuple(sorted(survivors)), tuple(sorted(each.instead)))


def test_the_reason_is_the_first_measure_by_which_the_other_set_loses() -> None:
    pair = {
        0: Candidate(0, joined=True, work=1, heard=frozenset({2})),
        1: Candidate(1, joined=True, work=3, heard=frozenset({2})),
        2: Candidate(2, joined=True, work=0, heard=frozenset({0, 1})),
    }
    survivors, (reason,) = reasons(pair)
    assert survivors == {1, 2}
    assert reason == Reason(0, frozenset({0, 2}), "services at work", 3, 1)
