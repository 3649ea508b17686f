"""Levels that come and go while the cluster runs (SPEC 3.2, 3.10, 3.13).

Theory of operation. A node's report lists the levels that are registered on it now; its member record lists those that
the cluster counts with. What is new in the report is committed into the record when no transition is at work at that
level: from then on the subsystem takes part in everything that reaches its level later, and what has passed it is in
the state vector of its first notification, so it is told of everything once and misses nothing (P3.9). A joining node's
new level above the one at work simply becomes part of its join; a joined node's new level is taken through the node's
join at that level alone, at once. What is missing in the report is struck from the record.
"""

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts
from muster.core.transition import barrier_conflict, open_late_join
from muster.records.state import Level, Member, NodeState, TransitionKind


def follow_reports(draft: Draft, facts: Facts) -> None:
    """Bring the members' levels in line with what their reports show (P3.9)."""
    for node in sorted(draft.members):
        member = draft.member(node)
        report = facts.report(member)
        if report is None or member.state not in (NodeState.JOINING, NodeState.JOINED) or member.eviction is not None:
            continue
        reported = {level.number: level for level in report.levels}
        for level in member.levels:
            if level.number not in reported:
                _deregister(draft, node, level)
        registered = {level.number for level in member.levels}
        for number in sorted(reported.keys() - registered):
            if _may_register(draft, node, reported[number]):
                _register(draft, node, reported[number])


def _deregister(draft: Draft, node: int, level: Level) -> None:
    member = draft.member(node)
    remaining = tuple(entry for entry in member.levels if entry.number != level.number)
    cause = f"{draft.name(node)}: level {level.number} ({level.name}) is no longer registered"
    draft.put(replace(member, levels=remaining), cause)


def _may_register(draft: Draft, node: int, level: Level) -> bool:
    """Whether the new level can be committed in this round; a conflict is recorded as a refusal (SPEC 3.2)."""
    member = draft.member(node)
    refusal = barrier_conflict(draft, node, (level,))
    if refusal:
        if member.refusal != refusal:
            draft.put(replace(member, refusal=refusal), f"{draft.name(node)}: registration refused ({refusal})")
        return False
    if any(other.level == level.number and not other.awaits for other in draft.transitions.values()):
        return False  # who comes in the middle of a level would have missed its first barrier
    own = draft.transition_of(node)
    if own is None:
        return True
    joins = own.kind is TransitionKind.JOINING and not own.late
    return joins and (own.awaits == level.number or own.level < level.number)


def _register(draft: Draft, node: int, level: Level) -> None:
    member = draft.member(node)
    levels = tuple(sorted((*member.levels, level)))
    cause = f"{draft.name(node)}: level {level.number} ({level.name}) registered"
    draft.put(replace(member, levels=levels, refusal=""), cause)
    for other in list(draft.members.values()):
        _tell(draft, other, level)
    if draft.transition_of(node) is None:
        open_late_join(draft, node, level.number)


def _tell(draft: Draft, other: Member, level: Level) -> None:
    """The new subsystem learns of joined members by its first state vector: their ends concern it too (SPEC 3.9)."""
    if counts(other) and other.state is NodeState.JOINED and other.told_level < level.number:
        draft.put(replace(other, told_level=level.number))
