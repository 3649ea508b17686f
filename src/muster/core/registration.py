"""Levels that come and go while the cluster runs (SPEC 3.2, 3.10, 3.13).

Theory of operation. A node's report lists the levels that are registered on it now; its member record lists those that
the cluster counts with. What is new in the report is committed into the record unless a transition is past the first
barrier of that level: from then on the subsystem takes part in everything that is at its level or reaches it later, and
what has passed it is in the state vector of its first notification, so it is told of everything once and misses nothing
(P3.9). A joining node's new level above the one at work simply becomes part of its join; a joined node's new level is
taken through the node's join at that level alone, at once. What is missing in the report is struck from the record.

A subsystem that goes and comes again, or gives its level over to another one, may do so between two reports. Each
registration has a number of its own, so the record of the last one is struck first all the same, and until then its
node does not notify the new one: it begins at the beginning (P3.13).
"""

from collections.abc import Mapping

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts
from muster.core.transition import barrier_conflict, count_as_told, is_past_first_barrier, open_late_join, take_part
from muster.records.state import (
    EVENT_MANAGER_LEVEL,
    MEMBERSHIP_LEVEL,
    Database,
    Level,
    NodeState,
    TransitionKind,
)


def refusal(
    level: Level, registered: Mapping[int, Level], database: Database | None, node: int, incarnation: int
) -> str:
    """Why this node cannot take `level` beside those `registered` on it; empty where it can (SPEC 3.2).

    `database`: the node's replica, if it is confirmed.
    """
    for own in (MEMBERSHIP_LEVEL, EVENT_MANAGER_LEVEL):
        if level.number == own.number:
            return f"level {own.number} is the {own.name}'s, which is part of Muster: take another one"
    if level.number < 0:
        return f"level {level.number} ({level.name}) lies below the lowest: take one above {MEMBERSHIP_LEVEL.number}"
    if level.number in registered:
        return f"level {level.number} is registered on this node already, by {registered[level.number].name}"
    if database is None:
        return ""
    return conflicts({level.number: level}, database, node, incarnation).get(level.number, "")


def conflicts(registered: Mapping[int, Level], database: Database, node: int, incarnation: int) -> dict[int, str]:
    """Which of the levels `registered` on this node cannot become part of its record, and why (P3.4, SPEC 3.2)."""
    own = database.member(node)
    counted = own.levels if own.incarnation == incarnation else ()
    waiting = [level for level in registered.values() if level not in counted]
    found = {level.number: barrier_conflict(Draft(database), node, (level,)) for level in waiting}
    return {number: reason for number, reason in found.items() if reason}


def follow_reports(draft: Draft, facts: Facts) -> None:
    """Bring the members' levels in line with what their reports show (P3.9)."""
    for node in sorted(draft.members):
        member = draft.member(node)
        report = facts.report(member)
        if report is None or not counts(member) or member.eviction is not None:
            continue
        reported = {level.number: level for level in report.levels}
        present = {level.identity for level in report.levels}
        for level in member.levels:
            if level.identity not in present:
                _deregister(draft, node, level)
        if member.state is NodeState.LEAVING:
            continue  # its levels only become fewer
        registered = {level.number for level in member.levels}
        fresh = [reported[number] for number in sorted(reported.keys() - registered)]
        if member.refusal and not barrier_conflict(draft, node, tuple(fresh)):
            draft.put(replace(draft.member(node), refusal=""))  # what was refused has been given up
        for level in fresh:
            if _may_register(draft, node, level):
                _register(draft, node, level)


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
    if is_past_first_barrier(draft, level.number):
        return False  # who comes in the middle of a level has missed its first barrier
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
    count_as_told(draft, level.number)
    take_part(draft, node, level.number)
    if draft.transition_of(node) is None:
        open_late_join(draft, node, level.number)
