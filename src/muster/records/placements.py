"""What placement decides on, and what it decided, as values: for rules now, and for people who ask later (P6.19)."""

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from muster.records.nodes import NodeConfig
from muster.records.services import Definition, Performance
from muster.records.terms import NO_NODE


class PlacementSnapshot(NamedTuple):
    """All that placement depends on, beside what is to be placed; see `Placement`."""

    nodes: Mapping[int, NodeConfig]
    up: frozenset[int]
    load: Mapping[int, int]
    performance: Mapping[int, Performance | None]
    withheld: Mapping[int, str]


class Wish(NamedTuple):
    """The arguments of one choice, as `Placement.choose` takes them; `excluded` says why in words."""

    definition: Definition  # with the choosing parameters that apply
    excluded: dict[int, str]
    origin: int = NO_NODE
    target: int = NO_NODE


class Decision(NamedTuple):
    """A service got a node, or none was left for it."""

    service: str
    node: int  # `NO_NODE`: something keeps it from every node
    state: str  # what it is from then on
    words: str  # the cause of the change
    wish: Wish
    parent: str = ""  # nothing was chosen: it goes where this service is


class PlacedTogether(Struct, frozen=True):
    """What one entry placed, in this order, and the snapshot that it was decided on."""

    snapshot: PlacementSnapshot
    down: dict[int, str]  # why nodes could not be chosen
    decisions: tuple[Decision, ...]
