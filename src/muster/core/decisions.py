"""One round of the master's decisions: all rules on one draft, in a fixed order (SPEC 2.7).

The order matters: what was asked for comes first, so that it is judged by the state that its client saw; joins before
forced leaves, so that who joins takes part in the forced leaves that are opened with it; services last, because they
follow membership.
"""

import zlib

import msgspec

from muster.core import authority, membership, operations, registration, service, transition, upgrade
from muster.core.draft import Draft, Facts
from muster.records.messages import Request
from muster.records.state import Database, NodeState, Operation


def decide(database: Database, facts: Facts, requests: list[Request]) -> tuple[Draft, list[Operation]]:
    """The draft of the next entry, and what became of each request, in order."""
    draft = Draft(database)
    answers = [operations.carry_out(request, draft, facts) for request in requests]
    authority.advance(draft, facts)
    membership.admit(draft, facts)
    registration.follow_reports(draft, facts)
    upgrade.follow_reports(draft, facts)
    membership.force_out_the_dead(draft, facts)
    membership.condemn_the_unfit(draft, facts)
    transition.advance(draft, facts)
    service.advance(draft, facts)
    return draft, answers


def all_have_reported(database: Database, facts: Facts) -> bool:
    """Whether every member of this term has shown its inventory, is condemned, or is dead (P6.2)."""
    return all(
        facts.report(member) is not None or member.eviction is not None
        for member in database.members.values()
        if member.state in (NodeState.JOINED, NodeState.LEAVING)
    )


def bytes_of_services(database: Database) -> int:
    """What the service records take of a checkpoint, which is written deflated."""
    return len(zlib.compress(msgspec.msgpack.encode(list(database.services.values())), level=1))
