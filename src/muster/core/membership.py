"""Membership: who may join, who must go, and on what proof (SPEC 3.1, 3.8, 3.12, 7.1, 7.4).

Theory of operation. A running node that is not a member says `join` in its reports. The master opens its join when
every earlier incarnation of that node is inactive (P4.1). A member whose incarnation is proven to have stopped is
forced out; nothing else opens a forced leave (P4.2). A member that still runs but must go (the surviving set goes on
without it, or an operator says so) is first condemned: that decision is committed, then its mark is published, its
guard obeys and stops the node, and the proof of that opens the forced leave (P4.3).
"""

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts
from muster.core.transition import barrier_conflict, begin_join, is_past_first_barrier, open_forced_leave, open_joins
from muster.records.messages import Report
from muster.records.state import Eviction, Member, NodeState, Proof


def force_out_the_dead(draft: Draft, facts: Facts) -> None:
    """Open the forced leave of every member whose incarnation is proven to have stopped (P4.2)."""
    for member in list(draft.members.values()):
        if not counts(member):
            continue
        evidence = proof_of_death(member, facts)
        if evidence is not None:
            open_forced_leave(draft, member.node, evidence)


def proof_of_death(member: Member, facts: Facts) -> Proof | None:
    """The proof that this incarnation has stopped, in the form in which it is recorded (P4.2, SPEC 7.1)."""
    evidence = facts.evidence(member.node, member.incarnation)
    if evidence is None:
        return None
    return Proof(evidence.kind, member.node, member.incarnation, evidence.detail)


def condemn_the_unfit(draft: Draft, facts: Facts) -> None:
    """Commit the eviction of live members outside the surviving set, and of those with a hung subsystem whose level
    is registered with that policy (P4.3, P3.10).
    """
    for node, cause in (*facts.unreachable.items(), *facts.hung.items()):
        member = draft.member(node)
        if counts(member) and member.eviction is None:
            condemn(draft, member, cause)


def condemn(draft: Draft, member: Member, cause: str) -> None:
    """Decide that this incarnation must go; its mark is published once this is committed (P4.3)."""
    draft.put(
        replace(member, eviction=Eviction(member.incarnation, cause)), f"{draft.name(member.node)}: condemned ({cause})"
    )


def admit(draft: Draft, facts: Facts) -> None:
    """Open the joins that are asked for and possible (P4.1, SPEC 3.8)."""
    admitted = [
        node
        for node, report in sorted(facts.reports.items())
        if report.wish == "join" and node in draft.nodes and _admit(draft, facts, node, report)
    ]
    open_joins(draft, admitted)


def _admit(draft: Draft, facts: Facts, node: int, report: Report) -> bool:
    member = draft.member(node)
    if member.state is not NodeState.INACTIVE or report.incarnation <= member.incarnation:
        return False  # its earlier incarnation is still being processed, or this one has been a member before
    if facts.evidence(node, report.incarnation) is not None:
        return False  # it asked, and has died since
    if any(is_past_first_barrier(draft, level.number) for level in report.levels):
        return False  # its turn comes when that level is done (P3.9)
    refusal = barrier_conflict(draft, node, report.levels)
    if not refusal:
        begin_join(draft, node, report.incarnation, report.levels)
    elif member.refusal != refusal:
        draft.put(replace(member, refusal=refusal), f"{draft.name(node)}: join refused ({refusal})")
    return not refusal


def condemned(members: dict[int, Member]) -> tuple[tuple[int, int], ...]:
    """The marks that a master must have published for these members (P4.3)."""
    return tuple(
        (member.node, member.eviction.incarnation)
        for member in sorted(members.values(), key=lambda member: member.node)
        if member.eviction is not None and counts(member)
    )
