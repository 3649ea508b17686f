"""What a restored store lets happen before every node is known (P11.8): rounds of the rules, without nodes."""

from msgspec.structs import replace

from muster.core.draft import Draft
from muster.core.membership.membership import forget_who_was_asked
from muster.records.levels import NodeState
from muster.records.members import Eviction, Member
from muster.records.nodes import Unasked
from muster.records.services import Definition
from rounds import Rounds


def restored() -> Rounds:
    """n0 has joined since a restore; n1 and n2 were not asked, and have the lives that it has given them."""
    rounds = Rounds(3, up=[0])
    for node in (1, 2):
        life = Member(node, NodeState.JOINED, 5, eviction=Eviction(5, "not asked", silent=True))
        rounds.database.members[node] = life
    rounds.database.cluster = replace(rounds.database.cluster, unasked=(Unasked(0, 5), Unasked(1, 5), Unasked(2, 5)))
    rounds.define(Definition("web"), Definition("pinned", allowable_nodes=("n0",)))
    return rounds


def forgotten(rounds: Rounds) -> bool:
    """Whether the master would take the list away now."""
    draft = Draft(rounds.database)
    forget_who_was_asked(draft)
    return draft.cluster.unasked == ()


def test_p11_8_no_service_takes_a_step_while_a_node_that_was_not_asked_may_run_it() -> None:
    rounds = restored()
    rounds.settle()
    assert rounds.placed() == {} and not forgotten(rounds)
    assert "the store was restored, and n1 may still run what it ran before" in str(rounds.why("web"))
    rounds.stop(1)
    rounds.settle()
    assert rounds.placed() == {} and not forgotten(rounds)
    assert "n2 may still run" in str(rounds.why("pinned"))
    rounds.join(2)  # a later life of it: it has booted on the new store
    assert forgotten(rounds)
    rounds.settle()
    assert set(rounds.placed()) == {"web", "pinned"}


def test_p11_8_a_later_life_that_falls_silent_holds_what_it_holds_and_no_more() -> None:
    rounds = restored()
    rounds.stop(1)
    rounds.join(2)
    rounds.settle()
    silent = replace(
        rounds.database.member(2), eviction=Eviction(rounds.database.member(2).incarnation, "x", silent=True)
    )
    rounds.database.members[2] = silent
    rounds.define(Definition("new", allowable_nodes=("n0",)))
    rounds.settle()
    assert rounds.placed()["new"] == 0
