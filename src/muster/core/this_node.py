"""Who a node is, for the machines that it is made of."""

from typing import NamedTuple

from muster.records.timing import Profile


class ThisNode(NamedTuple):
    """What all machines of one node know of it."""

    node: int
    name: str
    incarnation: int
    profile: Profile
