"""Refusing an operation, and finding what it names (SPEC 7.8)."""

from muster.core.draft import Draft
from muster.records.members import Member
from muster.records.nodes import NodeConfig


class Refused(Exception):
    """The operation cannot be done; the message says why and what to do."""


def configured(draft: Draft, name: str) -> NodeConfig:
    """The configured node `name`. Raises `Refused` where there is none."""
    for config in draft.nodes.values():
        if config.name == name:
            return config
    known = ", ".join(config.name for config in draft.nodes.values())
    raise Refused(f"there is no node {name!r}; configured are: {known}")


def member_named(draft: Draft, name: str) -> Member:
    """The member record of the configured node `name`. Raises `Refused`."""
    return draft.member(configured(draft, name).node)
