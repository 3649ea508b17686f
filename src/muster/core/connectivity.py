"""Who survives when links fail: arithmetic only (SPEC 7.4).

Every node's view register says whom it hears. A link counts only if both ends hear each other. The surviving set is
fully connected; among those a node that hears nobody ranks last whatever it runs, then joined nodes count before
joining or leaving ones, then the most protected work, then the most nodes, then the lowest ids.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Candidate(NamedTuple):
    """One live member, as the choice sees it."""

    node: int
    joined: bool
    work: int  # services assigned to it
    heard: frozenset[int]


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


def _rank(nodes: frozenset[int], candidates: Mapping[int, Candidate]) -> tuple[bool, int, int, int, tuple[int, ...]]:
    members = [candidates[node] for node in nodes]
    linked = any(member.heard for member in members)
    joined = sum(1 for member in members if member.joined)
    work = sum(member.work for member in members)
    return (linked, joined, work, len(members), tuple(-node for node in sorted(nodes)))
