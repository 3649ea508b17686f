"""One round of the master's decisions: all rules on one draft, in a fixed order (SPEC 2.7).

The order matters: what was asked for comes first, so that it is judged by the state that its client saw; joins before
forced leaves, so that who joins takes part in the forced leaves that are opened with it; services last, because they
follow membership, and only where no other node is the decider on them (P6.42).
"""

from muster.core.decisions import decider
from muster.core.draft import Draft, Facts
from muster.core.fencing import fencing
from muster.core.membership import membership
from muster.core.nodes import authority
from muster.core.operations import operations, shedding
from muster.core.services import table as service
from muster.core.transitions import registration, transition
from muster.core.versions import upgrade
from muster.records.configuration import Operation
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.messages import Request


def decide(database: Database, facts: Facts, requests: list[Request]) -> tuple[Draft, list[Operation | None]]:
    """The draft of the next entry, and what became of each request, in order; None of one for a later round (P9.5)."""
    capacity = facts.room.capacity
    draft = Draft(database, facts.room, facts.entry_bytes or capacity.entry)
    answers = [operations.carry_out(request, draft, facts) for request in requests]
    if facts.sheds:
        shedding.shed(draft, facts.room)
    authority.advance(draft, facts)
    membership.admit(draft, facts)
    registration.follow_reports(draft, facts)
    upgrade.follow_reports(draft, facts)
    membership.force_out_the_dead(draft, facts)
    membership.forget_who_was_asked(draft)
    membership.condemn_the_unfit(draft, facts)
    membership.condemn_the_silent(draft, facts)
    fencing.advance(draft, facts)
    transition.advance(draft, facts)
    decider.follow(draft, facts)
    if decider.is_the_masters(draft, facts):
        service.advance(draft, facts)
    return draft, answers


def all_have_reported(database: Database, facts: Facts) -> bool:
    """Whether every member of this term has shown its inventory, is condemned, or is dead (P6.2)."""
    return all(
        facts.report(member) is not None or member.eviction is not None
        for member in database.members.values()
        if member.state in (NodeState.JOINED, NodeState.LEAVING)
    )
