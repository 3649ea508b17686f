"""Who may do what, and who did it (SPEC 7.8, 9.3; docs/ACCESS.md).

A person's role follows from Unix groups on the machine of the node that is asked. The role and its holder travel with
the operation to the master, which records them; nodes trust each other's word about it, as they do about everything.
"""

from enum import IntEnum
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from muster.records.numbers import CountOrNone

MAXIMUM_GROUP_CHARACTERS = 32  # what useradd(8) allows


class Role(IntEnum):
    """What somebody may do; each role includes those below it."""

    NONE = 0
    OBSERVER = 1  # sees everything, changes nothing
    OPERATOR = 2  # starts, stops, moves; takes nodes out gracefully
    ADMINISTRATOR = 3  # decides what runs, and what counts as dead

    def __str__(self) -> str:
        return self.name.lower()


class Groups(NamedTuple):
    """The Unix group that gives each role; a setting of the cluster."""

    observer: str = "muster-observer"
    operator: str = "muster-operator"
    administrator: str = "muster-admin"

    def of(self, role: Role) -> str:
        """The group of one role; empty for none."""
        return {Role.OBSERVER: self.observer, Role.OPERATOR: self.operator, Role.ADMINISTRATOR: self.administrator}.get(
            role, ""
        )


class Author(Struct, frozen=True, array_like=True):
    """Who asked for an operation, in which role, at which node, and when by that node's wall clock."""

    uid: CountOrNone = -1
    user: str = ""
    role: Annotated[int, Meta(ge=0, le=255)] = Role.NONE
    node: str = ""
    at_ms: CountOrNone = 0  # since 1970


NOBODY = Author()
"""Of what came from a release that did not say."""

ITSELF = "(the node itself)"
"""As the user of what a node asked for by itself: a failure that it has seen, a renewal, a leave upon SIGTERM."""
