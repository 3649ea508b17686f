"""Membership: who may join, who must go, and on what proof (SPEC 3.1, 3.8, 3.12, 7.1, 7.4).

Theory of operation. A running node that is not a member says `join` in its reports. The master opens its join when
every earlier incarnation of that node is inactive (P4.1). A member whose incarnation is proven to have stopped is
forced out; nothing else opens a forced leave (P4.2). A member that still runs but must go (the surviving set goes on
without it, or an operator says so) is first condemned: that decision is committed, then its mark is published, its
guard obeys and stops the node, and the proof of that opens the forced leave (P4.3). A member whose lease has run out,
or of which nothing is seen nor heard, is condemned too: nobody waits for it from then on, but what it held stays as it
is until that proof (P4.7 to P4.9, P4.13).
"""

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts, takes_part
from muster.core.freezing import unasked_node
from muster.core.room import NODE_BYTES
from muster.core.transitions.required import forget_who_waits_no_more, required_of, waits_of
from muster.core.transitions.transition import (
    barrier_conflict,
    begin_join,
    is_past_first_barrier,
    open_forced_leave,
    open_joins,
)
from muster.records.levels import NodeState
from muster.records.members import Eviction, Member, Proof, Waits
from muster.records.messages import Report
from muster.records.required_levels import words_of
from muster.records.terms import NO_NODE
from muster.records.versions import KERNELS_WORD

SILENCE = "its lease has run out, and nothing proves that it has stopped"
SUSPICION = "nothing is seen or heard of it, and nothing proves that it has stopped"  # its lease may run still (P4.13)
SEE_OR = "; see its log, or: "  # in a refusal: before the command that ends it


def force_out_the_dead(draft: Draft, facts: Facts) -> None:
    """Open the forced leave of every member whose incarnation is proven to have stopped (P4.2)."""
    for member in list(draft.members.values()):
        if draft.is_full:
            return
        if not counts(member):
            continue
        evidence = proof_of_death(member, facts)
        if evidence is not None:
            open_forced_leave(draft, member.node, evidence)


def forget_who_was_asked(draft: Draft) -> None:
    """The list of a restore goes with the last of its lives (P11.8)."""
    if draft.cluster.unasked and unasked_node(draft) == NO_NODE and not draft.is_full:
        draft.put(replace(draft.cluster, unasked=()), "every node is known to have stopped since the restore")


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
        if counts(member) and member.eviction is None and not draft.is_full:
            condemn(draft, member, cause)


def condemn(draft: Draft, member: Member, cause: str, *, silent: bool = False) -> None:
    """Decide that this incarnation must go; its mark is published once this is committed (P4.3)."""
    eviction = Eviction(member.incarnation, cause, silent)
    draft.put(replace(member, eviction=eviction), f"{draft.name(member.node)}: condemned ({cause})")


def condemn_the_silent(draft: Draft, facts: Facts) -> None:
    """Commit that nobody waits any more for a member whose lease has run out, or of which nothing is seen nor heard
    (P4.13), though nothing proves it dead (P4.7).

    Its guard stops it if it ever wakes: for its lease, before anything else (P7.4), or by its mark, which it reads
    before it renews (P4.3).
    """
    if draft.cluster.active_version < KERNELS_WORD:
        return
    for member in list(draft.members.values()):
        if draft.is_full:
            return
        if takes_part(member) and member.node != facts.me and facts.silent(member.node, member.incarnation):
            silence = SILENCE if facts.ran_out(member.node, member.incarnation) else SUSPICION
            cause = member.eviction.cause if member.eviction is not None else silence
            condemn(draft, member, cause, silent=True)


def admit(draft: Draft, facts: Facts) -> None:
    """Open the joins that are asked for and possible (P4.1, SPEC 3.8), once the required levels are there (P3.17).

    As many as the entry takes (P9.5).
    """
    forget_who_waits_no_more(draft, facts)
    admitted: list[int] = []
    for node, report in sorted(facts.reports.items()):
        if not draft.takes(NODE_BYTES * (len(admitted) + 1)):  # its join is opened below
            break
        if report.wish == "join" and node in draft.nodes and _admit(draft, facts, node, report):
            admitted.append(node)
    open_joins(draft, admitted)


def _admit(draft: Draft, facts: Facts, node: int, report: Report) -> bool:
    member = draft.member(node)
    if member.state is not NodeState.INACTIVE or report.incarnation <= member.incarnation:
        return False  # its earlier incarnation is still being processed, or this one has been a member before
    if facts.evidence(node, report.incarnation) is not None:
        return False  # it asked, and has died since
    if draft.transition_of(node) is not None:
        return False  # a level is still at work on the forced leave of the last one's program (P3.15)
    if any(is_past_first_barrier(draft, level.number) for level in report.levels):
        return False  # its turn comes when that level is done (P3.9)
    if facts.slots.get(node, report.incarnation) < report.incarnation and _has_cleanups(draft):
        return False  # its report came faster than the record that says what its machine owes (P6.33)
    refusal = barrier_conflict(draft, node, report.levels) or why_unclean(draft, facts, member, report.incarnation)
    refusal = refusal or why_quarantined(draft, node)
    if facts.foreign(node, report.incarnation):
        refusal = "it runs under another kernel, and a store of scope host is for the nodes of one machine"
    waits = waits_of(draft, member, report)
    if not refusal and waits is None:
        required = tuple(each.number for each in required_of(draft.cluster, draft.nodes[node]))
        begin_join(draft, node, report.incarnation, report.levels, required)
        return True
    _keep_out(draft, member, refusal, waits)
    return False


def _keep_out(draft: Draft, member: Member, refusal: str, waits: Waits | None) -> None:
    """Record why a join is not opened: it is refused, or required levels are not there yet (P3.17)."""
    name = draft.name(member.node)
    if member.refusal != refusal:
        draft.put(replace(member, refusal=refusal), f"{name}: join refused ({refusal})" if refusal else "")
    if waits != member.waits:
        words = f"{name}: waits for {words_of(waits.missing)}" if waits is not None else f"{name}: waits no more"
        draft.put(replace(draft.member(member.node), waits=waits), words)


def _has_cleanups(draft: Draft) -> bool:
    """Whether any machine may owe anything: else no join waits for a read of the store."""
    return any(each.definition.cleanup_command or each.owes or each.unclean for each in draft.services.values())


def why_unclean(draft: Draft, facts: Facts, member: Member, incarnation: int) -> str:
    """Why a node is kept out until its machine is clean of what it ran before, in words; empty where it is (P6.33)."""
    owed = facts.owed(member.node, incarnation)
    if owed is None or owed.is_empty or incarnation <= member.vouched_clean:
        return ""
    names = {service.identity: service.name for service in draft.services.values()}
    parts = []
    for services, words in ((owed.failed, "failed"), (owed.waiting, "has not ended")):
        listed = ", ".join(names.get(each, "a service that is gone") for each in services)
        parts += [f"the cleanup of {listed} {words}"] if listed else []
    name = draft.name(member.node)
    says = "; ".join(parts) or "it owes more cleanups than it can name"
    return f"its machine may still hold what it ran before: {says}{SEE_OR}muster node confirm-clean {name}"


def why_quarantined(draft: Draft, node: int) -> str:
    """Why a node is kept out that was fenced again and again; empty where it was not (P7.27)."""
    fencing = draft.fencing.get(node)
    if fencing is None or not fencing.quarantined:
        return ""
    words = f"it was fenced {len(fencing.fenced)} times within an hour: find out why before it runs again"
    return f"{words}{SEE_OR}muster fence release {draft.name(node)}"


def condemned(members: dict[int, Member]) -> tuple[tuple[int, int], ...]:
    """The marks that a master must have published for these members (P4.3)."""
    return tuple(
        (member.node, member.eviction.incarnation)
        for member in sorted(members.values(), key=lambda member: member.node)
        if member.eviction is not None and counts(member)
    )
