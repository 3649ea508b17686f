"""Where a service goes: a pure function of one snapshot (P6.19, SPEC 6.2, 6.3)."""

from collections.abc import Collection, Mapping

from muster.records.state import Database, Definition, NodeConfig

WILDCARD = "*"


def is_allowable(definition: Definition, name: str) -> bool:
    """Whether the definition lets the service run on the node called `name` at all."""
    if name in definition.disallowable_nodes:
        return False
    return WILDCARD in definition.allowable_nodes or name in definition.allowable_nodes


def choose(
    definition: Definition,
    nodes: Mapping[int, NodeConfig],
    up: Collection[int],
    load: Mapping[int, int],
    excluded: Collection[int] = (),
) -> int | None:
    """The node to start the service on, or None if no allowable node is up.

    Ordered preferences first, in their order; allowable nodes that are in no list rank after those that are (SPEC
    6.8); among equals the one with the fewest services (`load`), then the lowest id.
    """
    ranks = {name: rank for rank, name in enumerate(definition.ordered)}
    unlisted = len(ranks)
    candidates = [
        (ranks.get(nodes[node].name, unlisted), load.get(node, 0), node)
        for node in up
        if node in nodes and node not in excluded and is_allowable(definition, nodes[node].name)
    ]
    return min(candidates)[2] if candidates else None


def load_of(database: Database) -> dict[int, int]:
    """Number of services assigned to each node."""
    load: dict[int, int] = {}
    for service in database.services.values():
        if service.node >= 0:
            load[service.node] = load.get(service.node, 0) + 1
    return load
