"""Levels that come and go while the cluster runs (SPEC 3.2, 3.10, 3.13).

Theory of operation. A node's report lists the levels that are registered on it now; its member record lists those that
the cluster counts with. What is new in the report is committed into the record unless a transition is past the first
barrier of that level: from then on the subsystem takes part in everything that is at its level or reaches it later, and
what has passed it is in the state vector of its first notification, so it is told of everything once and misses nothing
(P3.9). A joining node's new level becomes part of its join; a joined node's new level is taken through the node's join
at that level alone, at once. Lower levels come first: one that must wait makes those above it wait (P3.14).

What is missing in the report is struck from the record, and its level is told: that the program was forced out where it
has ended, that it left where it said so (P3.15). A subsystem that goes and comes again, or gives its level over to
another one, may do so between two reports. Each registration has a number of its own, so the last one leaves its level
first all the same, and until then its node does not notify the new one: it begins at the beginning (P3.13).
"""

from collections.abc import Mapping

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts
from muster.core.transitions.transition import (
    barrier_conflict,
    count_as_told,
    is_past_first_barrier,
    open_late_join,
    release,
    state_at_level,
    take_out_the_gone,
    take_part,
)
from muster.records.database import Database
from muster.records.levels import BUILT_IN, MEMBERSHIP_LEVEL, Gone, Level, NodeState, TransitionKind
from muster.records.members import Member
from muster.records.messages import Report
from muster.records.versions import KERNELS_WORD


def refusal(
    level: Level, registered: Mapping[int, Level], database: Database | None, node: int, incarnation: int
) -> str:
    """Why this node cannot take `level` beside those `registered` on it; empty where it can (SPEC 3.2).

    `database`: the node's replica, if it is confirmed.
    """
    for own in (MEMBERSHIP_LEVEL, *BUILT_IN):
        if level.number == own.number:
            return f"level {own.number} is the {own.name}'s, which is part of Muster: take another one"
    if level.number < 0:
        return f"level {level.number} ({level.name}) lies below the lowest: take one above {MEMBERSHIP_LEVEL.number}"
    if level.number in registered:
        return f"level {level.number} is registered on this node already, by {registered[level.number].name}"
    if database is None:
        return ""
    return conflicts({level.number: level}, database, node, incarnation).get(level.number, "")


def why_loss_fails(number: int, registered: Mapping[int, Level], own: Member | None) -> str:
    """Why a node fails when the program of this level has ended, in words; empty where its level alone goes (P3.18).

    `own`: the node's record, if it is known and of this incarnation; `registered`: what is registered on it now.
    """
    if own is not None and number in own.required:
        return "its node has joined by that level (required_levels)"
    built_in = {level.number for level in BUILT_IN}
    above = [level for level in registered.values() if level.number > number and level.number not in built_in]
    if own is not None and own.state is NodeState.LEAVING:
        left = {level.identity for level in own.levels}
        above = [level for level in above if level.identity in left]
    if not above:
        return ""
    lowest = min(above)
    return f"{lowest.name} (level {lowest.number}) is registered above it on this node"


def conflicts(registered: Mapping[int, Level], database: Database, node: int, incarnation: int) -> dict[int, str]:
    """Which of the levels `registered` on this node cannot become part of its record, and why (P3.4, SPEC 3.2)."""
    own = database.member(node)
    counted = own.levels if own.incarnation == incarnation else ()
    waiting = [level for level in registered.values() if level not in counted]
    found = {level.number: barrier_conflict(Draft(database), node, (level,)) for level in waiting}
    return {number: reason for number, reason in found.items() if reason}


def follow_reports(draft: Draft, facts: Facts) -> None:
    """Bring the members' levels in line with what their reports show (P3.9, P3.14, P3.15)."""
    for node in sorted(draft.members):
        if draft.is_full:
            return  # the others have their turn in the next round (P9.5)
        member = draft.member(node)
        report = facts.report(member)
        if report is None or not counts(member) or member.eviction is not None:
            continue
        _begin_by_level(draft, node)
        present = {level.identity for level in report.levels}
        for level in member.levels:
            if level.identity not in present:
                _deregister(draft, node, level, forced=level.identity not in report.departed)
        take_out_the_gone(draft, node)
        if member.state is not NodeState.LEAVING:  # its levels only become fewer
            _take_in_fresh(draft, node, report)


def _begin_by_level(draft: Draft, node: int) -> None:
    """A member that joined while every level was told of every node: who has nothing in a level leaves it (P3.14)."""
    member = draft.member(node)
    settled = member.state is NodeState.JOINED and draft.transition_of(node) is None
    if member.by_level or draft.cluster.active_version < KERNELS_WORD or not settled:
        return
    own = {level.number for level in member.levels}
    without = [number for number in draft.registered() if number <= member.told_level and number not in own]
    gone = tuple(Gone(Level(number, "no program"), forced=False) for number in without)
    inside = tuple(sorted({*own, *without}))
    draft.put(replace(member, by_level=True, inside=inside, gone=gone), f"{draft.name(node)}: counts by level")


def _take_in_fresh(draft: Draft, node: int, report: Report) -> None:
    """Commit what is newly registered, the lower levels first: a level that must wait makes those above it wait."""
    member = draft.member(node)
    registered = {level.number for level in member.levels}
    fresh = tuple(sorted(level for level in report.levels if level.number not in registered))
    if member.refusal and not barrier_conflict(draft, node, fresh):
        draft.put(replace(draft.member(node), refusal=""))  # what was refused has been given up
    for level in fresh:
        if _is_refused(draft, node, level):
            continue
        if _may_register(draft, node, level):
            _register(draft, node, level)
        elif member.by_level:
            return


def _deregister(draft: Draft, node: int, level: Level, *, forced: bool) -> None:
    """Strike a registration; where its level was told of this node, its peers are to hear of its end (P3.15)."""
    member = draft.member(node)
    remaining = tuple(entry for entry in member.levels if entry.number != level.number)
    cause = f"{draft.name(node)}: level {level.number} ({level.name}) is no longer registered"
    gone = member.gone
    if member.by_level and state_at_level(member, draft.transition_of(node), level.number) is not NodeState.INACTIVE:
        gone = (*gone, Gone(level, forced))
    draft.put(replace(member, levels=remaining, gone=gone), cause)
    release(draft, node, level.number)


def _is_refused(draft: Draft, node: int, level: Level) -> bool:
    """Whether other nodes have registered the level otherwise; that is recorded (SPEC 3.2)."""
    member = draft.member(node)
    refusal = barrier_conflict(draft, node, (level,))
    if refusal and member.refusal != refusal:
        draft.put(replace(member, refusal=refusal), f"{draft.name(node)}: registration refused ({refusal})")
    return bool(refusal)


def _may_register(draft: Draft, node: int, level: Level) -> bool:
    """Whether the new level can be committed in this round."""
    if is_past_first_barrier(draft, level.number):
        return False  # who comes in the middle of a level has missed its first barrier
    member, own = draft.member(node), draft.transition_of(node)
    if member.by_level and level.number in member.inside:
        return False  # its level is to be told first that the last one has gone (P3.15)
    if own is None:
        return True  # a join that gave way to another level takes it in as it goes on
    joins = own.kind is TransitionKind.JOINING and not own.late
    if member.by_level:
        return joins and member.state is NodeState.JOINING  # taken next, also where the join is above it (P3.14)
    return joins and (own.awaits == level.number or own.level < level.number)


def _register(draft: Draft, node: int, level: Level) -> None:
    member = draft.member(node)
    levels = tuple(sorted((*member.levels, level)))
    cause = f"{draft.name(node)}: level {level.number} ({level.name}) registered"
    draft.put(replace(member, levels=levels, refusal=""), cause)
    count_as_told(draft, level.number)
    take_part(draft, node, level.number)
    if draft.transition_of(node) is None and member.state is NodeState.JOINED:
        open_late_join(draft, node, level.number)
