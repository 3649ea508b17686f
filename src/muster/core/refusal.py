"""Refusing an operation, and finding what it names (SPEC 7.8)."""

from muster.core.draft import Draft
from muster.records.state import Member


class Refused(Exception):
    """The operation cannot be done; the message says why and what to do."""


def member_named(draft: Draft, name: str) -> Member:
    """The member record of the configured node `name`. Raises `Refused`."""
    node = draft.database.node_named(name)
    if node is None:
        known = ", ".join(config.name for config in draft.database.nodes.values())
        raise Refused(f"there is no node {name!r}; configured are: {known}")
    return draft.member(node)
