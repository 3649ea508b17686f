"""Transitions: a node's join, leave or forced leave, taken through all levels on all nodes in order (SPEC 3).

Theory of operation. A transition is one record in the database: the levels it takes in their order, where it is
(position, barrier), and who must acknowledge that (participants). The master commits the opening and every advance
before anyone is told (P3.2); nodes learn of it by the committed entry itself, notify their subsystem of that level,
and repeat the acknowledgement in their reports until the record has moved on (P3.3). So a new master needs nothing
but the database and the next reports to go on in the middle (SPEC 2.4).

Joins and forced leaves go bottom-up, graceful leaves top-down. A forced leave replaces whatever transition its node
had: it starts at the lowest level, ends at the highest that was ever told of the join, and skips the levels that a
graceful leave had already completed (SPEC 3.9). Each node has at most one transition; those of different nodes run
side by side (SPEC 3.5).

A level is told of the nodes that are in it, and of no others (P3.14): a node's transitions go through the levels which
that node has registered. Which levels know of a node is `Member.inside`. A program that comes late, or goes, is taken
in or out at its level alone, by a transition of its node that is `late`; a join or leave of that node which it
interrupts, between two levels, is opened again for what is left of it (P3.15). While a version below 3 is active, and
for members of that time, every level is told of every node (`by_level` is False).
"""

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts, is_silent, takes_part
from muster.records.database import Database
from muster.records.levels import BUILT_IN, EVENT_MANAGER_LEVEL, Gone, Level, NodeState, TransitionKind
from muster.records.members import Member, Proof
from muster.records.transitions import Acknowledgement, Transition
from muster.records.versions import KERNELS_WORD

# SPEC 3.6, Table 1: what may be sent to a subsystem that has been sent (or holds) something about a node, and what it
# holds once all have acknowledged (P3.6).
SETTLED_STATE = {
    TransitionKind.JOINING: NodeState.JOINED,
    TransitionKind.LEAVING: NodeState.INACTIVE,
    TransitionKind.FORCED_LEAVING: NodeState.INACTIVE,
}
MAY_FOLLOW = {
    NodeState.INACTIVE: (TransitionKind.JOINING,),
    NodeState.JOINING: (TransitionKind.FORCED_LEAVING,),
    NodeState.JOINED: (TransitionKind.LEAVING, TransitionKind.FORCED_LEAVING),
    NodeState.LEAVING: (TransitionKind.FORCED_LEAVING,),
    NodeState.FORCED_LEAVING: (),
    NodeState.SILENT: (),  # no state of a member
}


IDENTITIES_PER_ENTRY = 1024  # several transitions may open in one entry: identity = index * 1024 + node
ALONE = 512  # is added for that of one level alone which goes


class IllegalTransition(Exception):
    """Table 1 does not allow this transition from the node's state: a bug, and nothing was changed."""


def begin_join(
    draft: Draft, node: int, incarnation: int, levels: tuple[Level, ...], required: tuple[int, ...] = ()
) -> None:
    """Make a new incarnation a joining member; `open_joins` follows in the same draft (SPEC 3.8).

    `required`: the levels without which it does not get on in this join (P3.17).
    """
    before = draft.member(node)
    _check_allowed(before, TransitionKind.JOINING)
    for level in {other.level for other in draft.transitions.values()}:  # the last member to leave is in them still
        release(draft, node, level)
    by_level = draft.cluster.active_version >= KERNELS_WORD
    draft.put(
        Member(
            node, NodeState.JOINING, incarnation, levels, last_proof=before.last_proof, software=before.software,
            by_level=by_level, required=required,
        )
    )  # fmt: skip


def open_joins(draft: Draft, nodes: list[int]) -> None:
    """Open the joins of these joining members, each through the levels that it has registered (SPEC 3.4, P3.14).

    All of them are members before the first is opened: nodes that join together take part in each other's joins.
    """
    for node in nodes:
        for level in draft.member(node).levels:
            count_as_told(draft, level.number)
            take_part(draft, node, level.number)
    for node in nodes:
        member = draft.member(node)
        levels = _own(member) if member.by_level else set(draft.registered())
        _open(draft, member, TransitionKind.JOINING, tuple(sorted(levels)), "it asked to join")


def _own(member: Member) -> set[int]:
    return {level.number for level in member.levels}


def at_work(draft: Draft, level: int) -> list[Transition]:
    """The transitions that are at `level` now, and go on: that of a silent node does not (P4.8)."""
    return [
        other
        for other in draft.transitions.values()
        if other.level == level and not other.awaits and not is_silent(draft.member(other.node))
    ]


def is_past_first_barrier(draft: Draft, level: int) -> bool:
    """Whether a newcomer to `level` has missed the first barrier of a transition that is at work there (P3.9).

    A forced leave does not count: a newcomer holds nothing of the dead node.
    """
    return any(other.barrier > 0 and other.kind is not TransitionKind.FORCED_LEAVING for other in at_work(draft, level))


def take_part(draft: Draft, node: int, level: int) -> None:
    """A newcomer to `level` takes part in what is at its first barrier there (P3.9)."""
    for other in at_work(draft, level):
        if other.kind is not TransitionKind.FORCED_LEAVING:
            draft.put(replace(other, participants=tuple(sorted({*other.participants, node}))))


def release(draft: Draft, node: int, level: int) -> None:
    """Nothing that is at work at `level` waits any more for its registration on `node`, which is gone (P3.13).

    At once, and not with the next look at the participants: its successor may be taken in by the same entry, and would
    be told the last one's barrier.
    """
    for other in list(draft.transitions.values()):
        if other.level == level and node in other.participants:
            remaining = tuple(each for each in other.participants if each != node)
            draft.put(replace(other, participants=remaining))


def count_as_told(draft: Draft, level: int) -> None:
    """A newcomer to `level` learns of joined members by its first vector: their ends concern it too (SPEC 3.9).

    Only members of a time when every level was told of every node: the others are in the levels that they are in.
    """
    for other in list(draft.members.values()):
        if counts(other) and not other.by_level and other.state is NodeState.JOINED and other.told_level < level:
            draft.put(replace(other, told_level=level))


def told_at_level(member: Member, transition: Transition | None, level: int) -> NodeState:
    """What the subsystems of `level` are told of a node beside another one's transition (SPEC 3.5).

    A silent one still holds all that it held there (P4.8): it is neither working nor gone.
    """
    state = state_at_level(member, transition, level)
    return NodeState.SILENT if is_silent(member) and state is not NodeState.INACTIVE else state


def state_at_level(member: Member, transition: Transition | None, level: int) -> NodeState:
    """What the subsystems of `level` hold of a node, by how far its transition has got (SPEC 3.2, 3.5, P3.14).

    A node that is not in the level is inactive there, whatever it is as a node.
    """
    if member.by_level:
        if transition is not None and transition.level == level and not transition.awaits:
            return NodeState(transition.kind.value)
        return NodeState.JOINED if level in member.inside else NodeState.INACTIVE
    if transition is None or (transition.late and transition.level != level):
        return member.state
    kind = transition.kind
    if transition.level == level and not transition.awaits:
        return NodeState(kind.value)
    passed = transition.level < level if kind is TransitionKind.LEAVING else transition.level >= level
    if kind is TransitionKind.JOINING:
        return NodeState.JOINED if passed else NodeState.INACTIVE
    return NodeState.INACTIVE if passed or level not in transition.levels else NodeState.JOINED


def members_at(database: Database, level: int, step: Transition) -> dict[int, tuple[int, bool, int]]:
    """Who is in `level` as of the entry by which `step` entered it: incarnation, whether it stays, and registration.

    What has entered later does not count (P12.17), so it is the same whenever a node is told of the step. One whose
    program has gone is there no more.
    """
    at_level = {each.node: each for each in database.transitions.values() if each.level == level and not each.awaits}
    found: dict[int, tuple[int, bool, int]] = {}
    for member in database.members.values():
        own = at_level.get(member.node)
        has_begun = own is not None and own.entry <= step.entry
        if own is None or (not has_begun and own.kind is not TransitionKind.JOINING):
            if level in member.inside:
                incarnation = own.incarnation if own is not None else member.incarnation
                found[member.node] = (incarnation, True, registration_of(member, level))
        elif has_begun and own.kind is TransitionKind.JOINING:
            found[member.node] = (own.incarnation, True, registration_of(member, level))
        elif has_begun and own.kind is TransitionKind.LEAVING and not own.late:
            found[member.node] = (own.incarnation, False, registration_of(member, level))
    return found


def registration_of(member: Member, level: int) -> int:
    """The number of the program that the record has at this level of a node, also of one that is going (P3.13)."""
    there = (*member.levels, *(gone.level for gone in member.gone))
    return next((each.registration for each in there if each.number == level), 0)


def open_late_join(draft: Draft, node: int, level: int) -> None:
    """Take a joined node's newly registered level through the node's join, at that level alone (SPEC 3.10, P3.14)."""
    member = draft.member(node)
    identity = draft.index * IDENTITIES_PER_ENTRY + node
    cause = "a level was registered after it had joined"
    late = Transition(identity, node, member.incarnation, TransitionKind.JOINING, (level,), cause=cause, late=True)
    draft.put(late, f"{draft.name(node)}: joining at level {level} opened ({cause})")
    _enter(draft, late, 0)


def take_out_the_gone(draft: Draft, node: int) -> None:
    """Take what has gone out of its level, at that level alone, as soon as its node's transition allows (P3.15).

    That is when it has none, when its join waits for a level, or when the level at work is the very one: its peers then
    abort what they process (Table 1). Otherwise `_step` comes here between two levels.
    """
    member, own = draft.member(node), draft.transition_of(node)
    if not member.gone or not counts(member):
        return
    gone = _first_out(member.gone)
    if own is not None and not own.awaits:
        at_work = [each for each in member.gone if each.level.number == own.level]
        if not at_work or own.kind is TransitionKind.FORCED_LEAVING:
            return
        gone = at_work[0]
        if own.kind is TransitionKind.LEAVING and not gone.forced:
            return  # it leaves that level as it is, without the one that went
    if own is not None:
        draft.forget("transition", str(own.identity))
    aborts = own is not None and not own.awaits  # its peers were told of a join or leave: Table 1 has one way on
    kind = TransitionKind.FORCED_LEAVING if gone.forced or aborts else TransitionKind.LEAVING
    number, why = gone.level.number, "its program has ended" if gone.forced else "its program has deregistered"
    identity = draft.index * IDENTITIES_PER_ENTRY + ALONE + node  # its node's own may open in the same entry
    out = Transition(identity, node, member.incarnation, kind, (number,), cause=why, late=True)
    draft.put(out, f"{draft.name(node)}: {kind} of level {number} ({gone.level.name}) alone opened ({why})")
    _enter(draft, out, 0)


def _first_out(gone: tuple[Gone, ...]) -> Gone:
    """Those that have ended bottom-up, then those that went by themselves top-down (SPEC 3.4)."""
    return min(gone, key=lambda each: (not each.forced, each.level.number if each.forced else -each.level.number))


def _go_on(draft: Draft, node: int) -> None:
    """A level of this node has come or gone: what was interrupted for it, or waited for it, follows (P3.15).

    Not in the same round: what has been registered meanwhile is taken in first, since lower levels come first (P3.14).
    """
    member = draft.member(node)
    waits = is_silent(member) or draft.transition_of(node) is not None
    if not member.by_level or not counts(member) or waits:
        return
    if member.gone:
        take_out_the_gone(draft, node)
    elif member.leave_asked and member.state in (NodeState.JOINING, NodeState.JOINED):
        _leave(draft, member, member.leave_asked)
    elif member.state is NodeState.JOINING:
        left = tuple(sorted(_own(member) - set(member.inside)))
        _open(draft, member, TransitionKind.JOINING, left, "its join goes on")
    elif member.state is NodeState.LEAVING:
        left = tuple(sorted(member.inside, reverse=True))
        _open(draft, member, TransitionKind.LEAVING, left, "its leave goes on")


def open_leave(draft: Draft, node: int, cause: str) -> None:
    """Open the graceful leave of a joined node, top-down (SPEC 3.4)."""
    _check_allowed(draft.member(node), TransitionKind.LEAVING)
    _leave(draft, draft.member(node), cause)


def _leave(draft: Draft, before: Member, cause: str) -> None:
    member = replace(before, state=NodeState.LEAVING, leave_asked="")
    draft.put(member)
    if member.gone:
        take_out_the_gone(draft, member.node)  # first: nobody is there to leave that level
        return
    everywhere = draft.registered().keys()
    told = set(member.inside) if member.by_level else {level for level in everywhere if level <= member.told_level}
    _open(draft, member, TransitionKind.LEAVING, tuple(sorted(told, reverse=True)), cause)


def open_forced_leave(draft: Draft, node: int, proof: Proof) -> None:
    """Open the forced leave of an incarnation that is proven to have stopped (P3.5, SPEC 3.9, 7.1)."""
    before = draft.member(node)
    _check_allowed(before, TransitionKind.FORCED_LEAVING)
    aborted = draft.transition_of(node)
    everywhere = {level.number for other in draft.members.values() if counts(other) for level in other.levels}
    own = {level.number for level in before.levels}
    completed: set[int] = set()
    if aborted is not None:
        if aborted.kind is TransitionKind.LEAVING:  # also what newcomers have registered above it: they see it as gone
            completed = {level for level in everywhere | own if level > aborted.level}
        recovers = before.by_level and aborted.late and aborted.kind is TransitionKind.FORCED_LEAVING
        if not recovers:
            draft.forget("transition", str(aborted.identity))
    levels = tuple(sorted(level for level in (everywhere | own) - completed if level <= before.told_level))
    if before.by_level:
        # A level that a leave has completed is told of it no more. One that is at work on the forced leave of its part
        # goes on with that beside the others: there is nothing that could follow it (Table 1).
        at_work = {each.level for each in draft.transitions.values() if each.node == node}
        levels = tuple(sorted(set(before.inside) - at_work))
    cause = before.eviction.cause if before.eviction else proof.detail
    member = replace(before, state=NodeState.FORCED_LEAVING, eviction=None, last_proof=proof, gone=())
    draft.put(member)
    _open(draft, member, TransitionKind.FORCED_LEAVING, levels, cause)


def advance(draft: Draft, facts: Facts) -> None:
    """Move every transition on as far as its acknowledgements allow: one barrier at a time (SPEC 3.4).

    That of a silent node stays where it is until the proof of its death replaces it by its forced leave (P4.8); only
    those that are gone are struck from it, since their successors were never told of it (P3.13).
    """
    for node in list(draft.members):
        if draft.is_full:
            return
        _go_on(draft, node)
    for transition in list(draft.transitions.values()):
        if draft.is_full:
            return
        _shed_participants(draft, transition)
        if is_silent(draft.member(transition.node)):
            continue
        _include_new_levels(draft, draft.transitions[transition.identity])
        current = draft.transitions[transition.identity]
        if current.awaits:
            _resume(draft, current)
        elif all_acknowledged(current, draft, facts) and not _owes_others(current, draft, facts):
            _step(draft, current)


def all_acknowledged(transition: Transition, draft: Draft, facts: Facts) -> bool:
    """Whether every participant has acknowledged the present level and barrier (P3.3)."""
    wanted = step_of(transition)
    for node in transition.participants:
        report = facts.report(draft.member(node))
        if report is None or wanted not in report.acknowledgements:
            return False
    return True


def step_of(transition: Transition) -> Acknowledgement:
    """The present step of a transition, as it is acknowledged."""
    return Acknowledgement(transition.identity, transition.level, transition.barrier)


def _resume(draft: Draft, transition: Transition) -> None:
    """Go on with a join that waited for a level of its own node, or for nothing since a leave is wanted (SPEC 3.10)."""
    member, awaits = draft.member(transition.node), transition.awaits
    came_below = member.by_level and min(_own(member) - set(member.inside), default=awaits) < awaits
    if member.leave_asked:
        _turn(draft, transition)
    elif came_below or any(level.number == awaits for level in member.levels):
        _enter(draft, replace(transition, awaits=0), transition.position + 1)


def _turn(draft: Draft, transition: Transition) -> None:
    """Between levels, a join becomes a leave of the levels that have joined (P3.12, SPEC 3.7).

    The subsystems of those levels hold `joined`, so Table 1 allows `leaving` to each of them.
    """
    member = draft.member(transition.node)
    draft.forget("transition", str(transition.identity))
    told_level = member.told_level if transition.late else transition.level
    _leave(draft, replace(member, told_level=told_level), member.leave_asked)


def _include_new_levels(draft: Draft, transition: Transition) -> None:
    """Levels registered meanwhile that the transition has not passed become part of it (P3.9)."""
    if transition.late or transition.kind is TransitionKind.FORCED_LEAVING:
        return
    taken = transition.levels[: transition.position + 1]
    member = draft.member(transition.node)
    if member.by_level:
        joins = transition.kind is TransitionKind.JOINING
        left = _own(member) - set(member.inside) if joins else set(member.inside) - {transition.level}
        levels = (*taken, *sorted(left, reverse=not joins))
        if levels != transition.levels:
            draft.put(replace(transition, levels=levels))
        return
    everywhere = draft.registered().keys()
    if transition.kind is TransitionKind.JOINING:
        ahead = sorted(level for level in everywhere if level > transition.level)
    else:
        told_level = draft.member(transition.node).told_level
        ahead = sorted(
            (level for level in everywhere if level < transition.level and level <= told_level), reverse=True
        )
    kept = {level for level in transition.levels if level not in taken} | set(ahead)
    levels = (*taken, *sorted(kept, reverse=transition.kind is TransitionKind.LEAVING))
    if levels != transition.levels:
        draft.put(replace(transition, levels=levels))


def _owes_others(transition: Transition, draft: Draft, facts: Facts) -> bool:
    """Whether a leaving node's subsystem still has work at this level for another node's transition (P3.7).

    It is deregistered with its last acknowledgement (SPEC 3.11), so it must first finish what it has begun: every
    barrier of a level in which it takes part.
    """
    if transition.kind is not TransitionKind.LEAVING or transition.barrier + 1 < transition.barriers:
        return False
    report = facts.report(draft.member(transition.node))
    done = report.acknowledgements if report is not None else ()
    return any(
        other.identity != transition.identity
        and other.level == transition.level
        and transition.node in other.participants
        and not is_silent(draft.member(other.node))
        and (other.barrier + 1 < other.barriers or step_of(other) not in done)
        for other in draft.transitions.values()
    )


def reached(transition: Transition, level: int) -> bool:
    """Whether a bottom-up transition has got to `level`, or does not take it at all."""
    return transition.level >= level or level not in transition.levels


def barrier_conflict(draft: Draft, node: int, levels: tuple[Level, ...]) -> str:
    """Why these levels may not join beside those registered already, or nothing (SPEC 3.2)."""
    for other in draft.members.values():
        if not takes_part(other) or other.node == node:
            continue
        registered = {level.number: level for level in other.levels}
        for level in levels:
            there = registered.get(level.number)
            if there is not None and there.barriers != level.barriers:
                return (
                    f"level {level.number} ({level.name}) registers barriers {tuple(level.barriers)} on "
                    f"{draft.name(node)}, but {tuple(there.barriers)} on {draft.name(other.node)}: make them equal"
                )
    return ""


def _check_allowed(member: Member, kind: TransitionKind) -> None:
    if kind not in MAY_FOLLOW[member.state]:
        raise IllegalTransition(f"{kind} of node {member.node}, which is {member.state}")


def _open(draft: Draft, member: Member, kind: TransitionKind, levels: tuple[int, ...], cause: str) -> None:
    identity = draft.index * IDENTITIES_PER_ENTRY + member.node
    transition = Transition(identity, member.node, member.incarnation, kind, levels, cause=cause)
    draft.put(transition, f"{draft.name(member.node)}: {kind} opened ({cause})")
    _enter(draft, transition, 0)


def _enter(draft: Draft, transition: Transition, position: int) -> None:
    """Enter the first level at or after `position` that has anybody to notify; finish if there is none (P3.1)."""
    first = position
    while position < len(transition.levels):
        level = transition.levels[position]
        if _awaited(draft, transition, level):
            break
        participants = draft.participants(level)
        if participants and transition.kind is TransitionKind.JOINING:
            member = draft.member(transition.node)
            inside = tuple(sorted({*member.inside, level})) if member.by_level else ()
            draft.put(replace(member, told_level=max(level, member.told_level), inside=inside))
        if participants:
            entered = replace(
                transition, position=position, barrier=0, participants=participants, entered=draft.index
            )  # fmt: skip
            draft.put(replace(entered, barriers=_barriers(draft, entered)))
            return
        _has_left(draft, transition, level)
        position += 1
    next_level = transition.levels[position] if position < len(transition.levels) else ABOVE_ALL
    if awaits := _awaited(draft, transition, next_level):
        draft.put(replace(transition, position=first - 1, participants=(), awaits=awaits))
    else:
        _finish(draft, transition)


def _awaited(draft: Draft, transition: Transition, level: int) -> int:
    """The level for whose registration a join stops before `level`; 0 where it goes on.

    A built-in level of the joining node registers in the second step of its boot, when everything below it has joined
    (P3.11, SPEC 3.10). What this join requires was there when it was opened, and may have gone since (P3.17).
    """
    if transition.kind is not TransitionKind.JOINING or transition.late:
        return 0
    member = draft.member(transition.node)
    lacking = {*(level.number for level in BUILT_IN), *member.required} - _own(member)
    return min((number for number in lacking if number <= level), default=0)


def _step(draft: Draft, transition: Transition) -> None:
    """All acknowledged: the next barrier, or else the next level."""
    if transition.barrier + 1 < transition.barriers:
        participants = tuple(node for node in transition.participants if takes_part(draft.member(node)))
        draft.put(replace(transition, barrier=transition.barrier + 1, participants=participants))
        return
    if transition.kind is TransitionKind.LEAVING:
        _deregister(draft, transition.node, transition.level)
    _has_left(draft, transition, transition.level)
    draft.causes.append(f"{draft.name(transition.node)}: {transition.kind} done at level {transition.level}")
    if draft.member(transition.node).gone and not transition.late:
        draft.forget("transition", str(transition.identity))
        take_out_the_gone(draft, transition.node)  # between two levels; `_go_on` opens what is left
        return
    if transition.kind is TransitionKind.JOINING and draft.member(transition.node).leave_asked:
        _turn(draft, transition)
        return
    _enter(draft, transition, transition.position + 1)


def _has_left(draft: Draft, transition: Transition, level: int) -> None:
    """The level is done with a leave or forced leave, or has nobody to be told of it: the node is in it no more."""
    member = draft.member(transition.node)
    if not member.by_level or transition.kind is TransitionKind.JOINING:
        return
    gone = tuple(each for each in member.gone if each.level.number != level)
    draft.put(replace(member, inside=tuple(each for each in member.inside if each != level), gone=gone))


def _finish(draft: Draft, transition: Transition) -> None:
    member = draft.member(transition.node)
    if transition.late and member.by_level:
        what = "joining at" if transition.kind is TransitionKind.JOINING else f"{transition.kind} of"
        cause = f"{draft.name(transition.node)}: {what} level {transition.levels[0]} complete"
        draft.put(replace(member, refusal=""))
        draft.forget("transition", str(transition.identity), cause)
        return  # what it interrupted, or what waited for it, follows in the next round (`_go_on`)
    state = SETTLED_STATE[transition.kind]
    if state is NodeState.INACTIVE:
        member = Member(member.node, state, member.incarnation, last_proof=member.last_proof, software=member.software)
    else:
        member = replace(member, state=state, refusal="")
    draft.put(member)
    cause = f"{draft.name(transition.node)}: {transition.kind} complete, {state}"
    draft.forget("transition", str(transition.identity), cause)


def _deregister(draft: Draft, node: int, level: int) -> None:
    """A leaving node's subsystem hears nothing more after its last acknowledgement (SPEC 3.11)."""
    member = draft.member(node)
    draft.put(replace(member, levels=tuple(entry for entry in member.levels if entry.number != level)))


def _barriers(draft: Draft, transition: Transition) -> int:
    """Number of barriers of the level that is entered; equal on all nodes (SPEC 3.2)."""
    for node in transition.participants:
        for level in draft.member(node).levels:
            if level.number == transition.level:
                barriers = level.barriers
                return {
                    TransitionKind.JOINING: barriers.joining,
                    TransitionKind.LEAVING: barriers.leaving,
                    TransitionKind.FORCED_LEAVING: barriers.forced_leaving,
                }[transition.kind]
    return 1


def _shed_participants(draft: Draft, transition: Transition) -> None:
    """Nobody waits for a participant that has been forced out or is silent, or whose subsystem is gone (P3.7, P4.8)."""
    registered = draft.registered().get(transition.level, frozenset())
    if not registered.issuperset(transition.participants):
        remaining = tuple(node for node in transition.participants if node in registered)
        draft.put(replace(transition, participants=remaining))


EVENT_MANAGER = EVENT_MANAGER_LEVEL.number
ABOVE_ALL = 1 << 30
