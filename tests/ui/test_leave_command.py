"""What `muster node leave` says of a leave that came about, and of one that did not."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from muster.client.errors import ClientError
from muster.setup.nodes import Connection
from muster.ui.commands.nodes import wait_until_inactive

INCARNATION = 7


def cluster(state: str, proof: dict[str, Any] | None) -> Connection:
    """A connection to a cluster in which n1 is in that state."""
    node = {"state": state, "incarnation": INCARNATION, "cause": ""}
    answers = {
        "status": {"cluster": "dev", "nodes": {"n1": node}, "transitions": []},
        "nodes": {"cluster": "dev", "nodes": {"n1": {**node, "last_proof": proof}}},
    }
    return cast("Connection", SimpleNamespace(query=answers.__getitem__))


def test_a_node_that_dies_on_its_way_out_has_not_left() -> None:
    died = {"kind": "the kernel's word", "incarnation": INCARNATION, "detail": "its init has ended"}
    with pytest.raises(ClientError, match="n1 has not left gracefully, it was forced out: the kernel's word"):
        wait_until_inactive(cluster("inactive", died), "n1", INCARNATION, 1.0)


@pytest.mark.parametrize(
    "proof", [None, {"kind": "lease expired", "incarnation": INCARNATION - 1, "detail": "long ago"}]
)
def test_a_node_that_has_left_has_whatever_was_proven_of_an_earlier_incarnation(proof: dict[str, Any] | None) -> None:
    wait_until_inactive(cluster("inactive", proof), "n1", INCARNATION, 1.0)


def test_a_leave_that_takes_too_long_says_what_it_waits_for() -> None:
    with pytest.raises(ClientError, match="n1 is still leaving after"):
        wait_until_inactive(cluster("leaving", None), "n1", INCARNATION, 0.0)
