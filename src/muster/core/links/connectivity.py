"""Who survives when links fail: arithmetic only (SPEC 7.4).

Every node's view register says whom it hears. A link counts only if both ends hear each other. The surviving set is
fully connected; among those a node whose own interfaces are down ranks last whatever it runs, then one that hears
nobody, then joined nodes count before joining or leaving ones, then the most protected work, then the most nodes, then
the lowest ids.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Candidate(NamedTuple):
    """One live member, as the choice sees it."""

    node: int
    joined: bool
    work: int  # services assigned to it
    heard: frozenset[int]
    cut_off: bool = False  # its own interfaces have no link, and nobody hears it


def broken_pairs(candidates: Mapping[int, Candidate]) -> set[tuple[int, int]]:
    """Pairs (a, b), a < b, of which at least one does not hear the other."""
    nodes = sorted(candidates)
    return {
        (a, b)
        for place, a in enumerate(nodes)
        for b in nodes[place + 1 :]
        if b not in candidates[a].heard or a not in candidates[b].heard
    }


def surviving_set(candidates: Mapping[int, Candidate]) -> frozenset[int]:
    """The best fully connected set (SPEC 7.4). The same views give the same answer on every node.

    Only nodes with a broken link need a decision: the others belong to every maximal set. The search over those is
    bounded by `_STEPS`; beyond that (dozens of broken links at once) the best set found so far is taken.
    """
    broken = broken_pairs(candidates)
    troubled = sorted({node for pair in broken for node in pair})
    untroubled = frozenset(candidates) - frozenset(troubled)
    apart = {node: {b if a == node else a for a, b in broken if node in (a, b)} for node in troubled}
    best: frozenset[int] = frozenset()
    steps = 0
    stack: list[tuple[int, frozenset[int]]] = [(0, frozenset())]
    while stack and steps < _STEPS:
        steps += 1
        place, chosen = stack.pop()
        if place == len(troubled):
            best = max(best, chosen, key=lambda nodes: _rank(nodes, candidates))
            continue
        node = troubled[place]
        stack.append((place + 1, chosen))
        if not apart[node] & chosen:
            stack.append((place + 1, chosen | {node}))
    return untroubled | best


_STEPS = 20_000


def _rank(
    nodes: frozenset[int], candidates: Mapping[int, Candidate]
) -> tuple[bool, bool, int, int, int, tuple[int, ...]]:
    members = [candidates[node] for node in nodes]
    linked = any(member.heard for member in members)
    joined = sum(1 for member in members if member.joined)
    work = sum(member.work for member in members)
    carried = bool(members) and not any(member.cut_off for member in members)
    return (carried, linked, joined, work, len(members), tuple(-node for node in sorted(nodes)))


_MEASURES = (
    "interfaces with a link",
    "hearing anybody",
    "joined nodes",
    "services at work",
    "nodes",
    "the lowest node ids",
)


class Reason(NamedTuple):
    """Why a node is outside: the best set that it could be in, and the first measure by which that one loses."""

    node: int
    instead: frozenset[int]
    measure: str  # one of `_MEASURES`
    chosen: int  # that measure of the surviving set
    other: int  # and of `instead`


def reasons(candidates: Mapping[int, Candidate]) -> tuple[frozenset[int], tuple[Reason, ...]]:
    """The surviving set, and for each node outside it why not a set with that node (SPEC 7.4)."""
    survivors = surviving_set(candidates)
    broken = broken_pairs(candidates)
    found = []
    for node in sorted(candidates.keys() - survivors):
        apart = {b if a == node else a for a, b in broken if node in (a, b)}
        with_it = surviving_set({key: each for key, each in candidates.items() if key not in apart and key != node})
        instead = with_it | {node}
        ranks = zip(_MEASURES, _rank(survivors, candidates), _rank(instead, candidates), strict=True)
        measure, chosen, other = next(((m, a, b) for m, a, b in ranks if a != b), (_MEASURES[-1], 0, 0))
        numbers = [value if isinstance(value, int) else 0 for value in (chosen, other)]
        found.append(Reason(node, instead, measure, int(numbers[0]), int(numbers[1])))
    return survivors, tuple(found)
