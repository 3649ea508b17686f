"""Where a service goes: a pure function of one snapshot (P6.19, SPEC 6.2, 6.3, 6.8).

Theory of operation. Two questions decide, each in one place. `Placement.obstacle` says what keeps a service from a
node. Among the nodes that nothing keeps it from, the smallest `Key` wins; the parts of a key are rules, the most
important one first, and the last part is the node's id, so that no two keys are equal. A node loses to the chosen one
by the first part in which their keys differ: so the very rules that choose also explain.

    part      of a node                                                       SPEC
    asked     0 if an administrator named it for this transfer, else 1        6.8
    left      1 if the service is being moved away from it, else 0            6.8
    listed    0 in the ordered list, 1 in the unordered one, 2 in none        6.2, 6.8
    rank      its place in the ordered list
    grade     how busy it has been of late, for the unordered list only       6.2
    load      how many services are assigned to it
    node      its id

Services with the same parameters share one heap of keys. Loads only grow while placing, so a key whose load is old is
too small, never too large: it is brought up to date when it comes to the top. So a choice among many nodes costs
little more than looking at the best, and the nodes are judged once for each set of parameters.
"""

from collections.abc import Collection, Mapping
from enum import StrEnum
from heapq import heapify, heapreplace
from types import MappingProxyType
from typing import NamedTuple

from msgspec import Struct

from muster.core.services.grades import described, grade_of
from muster.records.database import Database
from muster.records.nodes import NodeConfig
from muster.records.placements import PlacementSnapshot
from muster.records.service_limits import MAXIMUM_GENERATIONS
from muster.records.services import Definition, Performance, Service
from muster.records.terms import NO_NODE

WILDCARD = "*"
MAXIMUM_SHARED = 512  # sets of parameters whose heaps are kept; what is beyond them is judged node by node

_NAMED = 8  # nodes of a list in an explanation

ORDERED, UNORDERED, UNLISTED = range(3)
_LISTS = ("in the ordered list", "in the unordered list", "in no preference list")
_NOTHING: Mapping[int, str] = MappingProxyType({})


class Rule(StrEnum):
    """What decided about a node. The words are part of the stable output of `muster why`."""

    NOT_CONFIGURED = "not configured"
    NOT_ALLOWABLE = "not allowable"
    DISALLOWED = "disallowable"
    NOT_UP = "not up"
    WITHHELD = "withheld"
    EXCLUDED = "excluded"
    ASKED = "asked for"
    LEFT = "moved away from"
    LISTED = "preference list"
    RANK = "rank in the ordered list"
    GRADE = "recent performance"
    LOAD = "number of services"
    LOWEST = "lowest id"
    ONLY = "only one left"


class Key(NamedTuple):
    """How good a node is for a service: the smallest wins. Each part is a rule, in their order."""

    asked: int
    left: int
    listed: int
    rank: int
    grade: int
    load: int
    node: int


RULE_OF_PART = (Rule.ASKED, Rule.LEFT, Rule.LISTED, Rule.RANK, Rule.GRADE, Rule.LOAD, Rule.LOWEST)


class NodeVerdict(Struct, frozen=True, array_like=True):
    """What was decided about one node for one service, by which rule, in plain words."""

    node: int  # `NO_NODE` for a name that is no configured node's
    name: str
    rule: str  # a `Rule`
    possible: bool  # nothing keeps the service from the node
    chosen: bool
    words: str


def load_of(database: Database) -> dict[int, int]:
    """Number of services assigned to each node."""
    load: dict[int, int] = {}
    for service in database.services.values():
        if service.node != NO_NODE:
            load[service.node] = load.get(service.node, 0) + 1
    return load


def choosing_of(definition: Definition, services: Mapping[str, Service]) -> Definition:
    """The definition whose choosing parameters apply: of a child that of the parent of all in its group (SPEC 6.5)."""
    for _ in range(MAXIMUM_GENERATIONS):
        parent = services.get(definition.parent) if definition.parent else None
        if parent is None:
            break
        definition = parent.definition
    return definition


def is_allowable(definition: Definition, name: str) -> bool:
    """Whether the definition lets the service run on the node called `name` at all."""
    return _forbidden(definition, name) is None


def _forbidden(definition: Definition, name: str) -> Rule | None:
    """What in the definition forbids the node called `name`, if anything does (SPEC 6.2)."""
    if name in definition.disallowable_nodes:
        return Rule.DISALLOWED
    if WILDCARD in definition.allowable_nodes or name in definition.allowable_nodes:
        return None
    return Rule.NOT_ALLOWABLE


class Placement:
    """Places one service after the other on the nodes of one snapshot.

    `up`: the nodes that may be chosen (SPEC 6.9); `load`: how many services are assigned to each node; `performance`:
    what is known of how busy each is; `withheld`: those of `up` from which an operator keeps services away, and why, so
    that they are chosen only where they were asked for, or when a service goes back there rather than nowhere. The
    caller's mappings are not changed.
    """

    def __init__(
        self,
        nodes: Mapping[int, NodeConfig],
        up: Collection[int],
        load: Mapping[int, int],
        performance: Mapping[int, Performance | None],
        withheld: Mapping[int, str] = _NOTHING,
    ) -> None:
        self._nodes = nodes
        self._up = frozenset(up) & nodes.keys()
        self._withheld = withheld
        self._snapshot = PlacementSnapshot(nodes, self._up, load, performance, withheld)
        self._by_name = {nodes[node].name: node for node in self._up}
        self._load = {node: load.get(node, 0) for node in nodes}
        self._performance = performance
        self._grades: dict[int, int] = {}
        self._heaps: dict[tuple[tuple[str, ...], ...], list[Key]] = {}

    @property
    def snapshot(self) -> PlacementSnapshot:
        """What it was made from: the load as it was before anything was placed."""
        return self._snapshot

    def without(self, node: int) -> "Placement":
        """The same with one service less on `node`: as it would be for the service that is there."""
        load = dict(self._load)
        load[node] = max(0, load.get(node, 0) - 1)
        return Placement(self._nodes, self._up, load, self._performance, self._withheld)

    def choose(
        self, definition: Definition, excluded: Collection[int] = (), origin: int = NO_NODE, target: int = NO_NODE
    ) -> int | None:
        """The node for the service; None if something keeps it from every node.

        `excluded`: where it may not go, though it is allowable and up, as its start failed there; `origin`: where it is
        being moved away from, and goes back to rather than nowhere; `target`: the node that was asked for (SPEC 6.8).
        """
        if origin in self._up or target in self._up or not self._up.isdisjoint(excluded):
            keys = self._keys(definition, excluded, origin, target)
            return min(keys).node if keys else None
        parameters = _parameters(definition)
        heap = self._heaps.get(parameters)
        if heap is None:
            heap = self._best_keys(definition)
            if len(self._heaps) >= MAXIMUM_SHARED:
                return min(heap).node if heap else None
            heapify(heap)
            self._heaps[parameters] = heap
        while heap:
            best = heap[0]
            load = self._load[best.node]
            if best.load == load:
                return best.node
            heapreplace(heap, Key(*best[:-2], load, best.node))
        return None

    def assigned(self, node: int) -> None:
        """The node has got one service more, which counts in the choices that follow."""
        if node in self._load:
            self._load[node] += 1

    def explain(
        self,
        definition: Definition,
        excluded: Mapping[int, str] = _NOTHING,
        origin: int = NO_NODE,
        target: int = NO_NODE,
        down: Mapping[int, str] = _NOTHING,
    ) -> list[NodeVerdict]:
        """What `choose` decides with the same arguments about every node, best first, then those that cannot be.

        `excluded` and `down` (nodes that are not up) give the reasons in words.
        """
        keys = sorted(self._keys(definition, excluded, origin, target))
        verdicts = [self._judged(keys, position) for position in range(len(keys))]
        for node in sorted(self._nodes):
            rule = self.obstacle(definition, node, excluded, origin, target)
            if rule is not None:
                words = self._obstacle_words(definition, rule, node, excluded, down)
                verdicts.append(NodeVerdict(node, self._nodes[node].name, rule, False, False, words))
        names = {config.name for config in self._nodes.values()}
        for name in definition.allowable_nodes:
            if name != WILDCARD and name not in names:
                words = "allowable_nodes names it, and the cluster has no such node"
                verdicts.append(NodeVerdict(NO_NODE, name, Rule.NOT_CONFIGURED, False, False, words))
        return verdicts

    def obstacle(
        self,
        definition: Definition,
        node: int,
        excluded: Collection[int] = (),
        origin: int = NO_NODE,
        target: int = NO_NODE,
    ) -> Rule | None:
        """What keeps the service from a configured node, if anything does."""
        forbidden = _forbidden(definition, self._nodes[node].name)
        if forbidden is not None:
            return forbidden
        if node not in self._up:
            return Rule.NOT_UP
        if node in excluded:
            return Rule.EXCLUDED
        return Rule.WITHHELD if node in self._withheld and node not in (origin, target) else None

    def _keys(
        self, definition: Definition, excluded: Collection[int] = (), origin: int = NO_NODE, target: int = NO_NODE
    ) -> list[Key]:
        """The key of every node that nothing keeps the service from."""
        return [
            self._key(definition, node, origin, target)
            for node in self._candidates(definition)
            if self.obstacle(definition, node, excluded, origin, target) is None
        ]

    def _best_keys(self, definition: Definition) -> list[Key]:
        """Those of `_keys` that are the best by the lists alone, so that the smallest of all is among them."""
        by_name = self._by_name
        for names in (*((name,) for name in definition.ordered), definition.unordered):
            keys = [
                self._key(definition, by_name[name], NO_NODE, NO_NODE)
                for name in names
                if name in by_name and self.obstacle(definition, by_name[name]) is None
            ]
            if keys:
                return keys
        return self._keys(definition)

    def _candidates(self, definition: Definition) -> Collection[int]:
        """The nodes that are up and that `allowable_nodes` names: all that have a chance."""
        if WILDCARD in definition.allowable_nodes:
            return self._up
        return {self._by_name[name] for name in definition.allowable_nodes if name in self._by_name}

    def _key(self, definition: Definition, node: int, origin: int, target: int) -> Key:
        listed, place = rank(definition, self._nodes[node].name)
        grade = self._grade(node) if listed == UNORDERED else 0
        return Key(int(node != target), int(node == origin), listed, place, grade, self._load[node], node)

    def _grade(self, node: int) -> int:
        if node not in self._grades:
            self._grades[node] = grade_of(self._performance.get(node))
        return self._grades[node]

    def _judged(self, keys: list[Key], position: int) -> NodeVerdict:
        """The verdict about a possible node, `keys` being those of all such nodes, best first."""
        own, best = keys[position], keys[0]
        name = self._nodes[own.node].name
        if len(keys) == 1:
            return NodeVerdict(
                own.node, name, Rule.ONLY, True, True, "nothing keeps the service from it, and it is the only one"
            )
        if own is best:
            rule, words = self._difference(own, keys[1])
            return NodeVerdict(
                own.node, name, rule, True, True, f"better than {self._nodes[keys[1].node].name}: {words}"
            )
        rule, words = self._difference(best, own)
        return NodeVerdict(own.node, name, rule, True, False, f"{self._nodes[best.node].name} is better: {words}")

    def _difference(self, better: Key, other: Key) -> tuple[Rule, str]:
        """The first rule that tells two nodes apart, and by what, the better one's value first."""
        part = next(part for part, value in enumerate(better) if value != other[part])
        rule = RULE_OF_PART[part]
        match rule:
            case Rule.ASKED:
                words = "it was asked for"
            case Rule.LEFT:
                words = f"the service is being moved away from {self._nodes[other.node].name}"
            case Rule.LISTED:
                words = f"{_LISTS[better.listed]}, the other {_LISTS[other.listed]}"
            case Rule.RANK:
                words = f"place {better.rank + 1} in the ordered list against place {other.rank + 1}"
            case Rule.GRADE:
                ours, theirs = (described(self._performance.get(key.node)) for key in (better, other))
                words = f"{ours} against {theirs}"
            case Rule.LOAD:
                words = f"{_services(better.load)} against {other.load}"
            case _:
                words = f"id {better.node} against {other.node}, all else being equal"
        return rule, words

    def _obstacle_words(
        self, definition: Definition, rule: Rule, node: int, excluded: Mapping[int, str], down: Mapping[int, str]
    ) -> str:
        match rule:
            case Rule.DISALLOWED:
                return "disallowable_nodes names it"
            case Rule.NOT_ALLOWABLE:
                names = definition.allowable_nodes
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                return f"allowable_nodes names {', '.join(names[:_NAMED]) or 'no node'}{more}"
            case Rule.NOT_UP:
                return down.get(node) or "it is not up"
            case Rule.WITHHELD:
                return self._withheld[node]
            case _:
                return excluded[node]


def _parameters(definition: Definition) -> tuple[tuple[str, ...], ...]:
    """All of a definition that the choice depends on."""
    return definition.allowable_nodes, definition.disallowable_nodes, definition.ordered, definition.unordered


def rank(definition: Definition, name: str) -> tuple[int, int]:
    """Which preference list the node called `name` is in, and where in the ordered one: the smaller, the better.

    What changes by itself has no part in it, so that no free transfer follows from it (SPEC 6.2, 6.8).
    """
    if name in definition.ordered:
        return ORDERED, definition.ordered.index(name)
    return (UNORDERED if name in definition.unordered else UNLISTED), 0


def _services(count: int) -> str:
    return "1 service" if count == 1 else f"{count} services"
