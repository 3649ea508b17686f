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
"""

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts
from muster.records.messages import Acknowledgement
from muster.records.state import (
    EVENT_MANAGER_LEVEL,
    Level,
    Member,
    NodeState,
    Proof,
    Transition,
    TransitionKind,
)

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
}


IDENTITIES_PER_ENTRY = 1024  # several transitions may open in one entry: identity = index * 1024 + node


class IllegalTransition(Exception):
    """Table 1 does not allow this transition from the node's state: a bug, and nothing was changed."""


def begin_join(draft: Draft, node: int, incarnation: int, levels: tuple[Level, ...]) -> None:
    """Make a new incarnation a joining member; `open_joins` follows in the same draft (SPEC 3.8)."""
    before = draft.member(node)
    _check_allowed(before, TransitionKind.JOINING)
    draft.put(
        Member(node, NodeState.JOINING, incarnation, levels, last_proof=before.last_proof, software=before.software)
    )


def open_joins(draft: Draft, nodes: list[int]) -> None:
    """Open the joins of these joining members, each through every level registered anywhere (SPEC 3.4).

    All of them are members before the first is opened: nodes that join together take part in each other's joins.
    """
    everywhere = {level.number for other in draft.members.values() if counts(other) for level in other.levels}
    for node in nodes:
        for level in draft.member(node).levels:
            count_as_told(draft, level.number)
            take_part(draft, node, level.number)
    for node in nodes:
        _open(draft, draft.member(node), TransitionKind.JOINING, tuple(sorted(everywhere)), "it asked to join")


def at_work(draft: Draft, level: int) -> list[Transition]:
    """The transitions that are at `level` now."""
    return [other for other in draft.transitions.values() if other.level == level and not other.awaits]


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


def count_as_told(draft: Draft, level: int) -> None:
    """A newcomer to `level` learns of joined members by its first vector: their ends concern it too (SPEC 3.9)."""
    for other in list(draft.members.values()):
        if counts(other) and other.state is NodeState.JOINED and other.told_level < level:
            draft.put(replace(other, told_level=level))


def state_at_level(member: Member, transition: Transition | None, level: int) -> NodeState:
    """What the subsystems of `level` hold of a node, by how far its transition has got (SPEC 3.2, 3.5).

    Above the level at work a join has not arrived yet and a leave has passed; a forced leave arrives bottom-up.
    """
    if transition is None or (transition.late and transition.level != level):
        return member.state
    kind = transition.kind
    if transition.level == level and not transition.awaits:
        return NodeState(kind.value)
    passed = transition.level < level if kind is TransitionKind.LEAVING else transition.level >= level
    if kind is TransitionKind.JOINING:
        return NodeState.JOINED if passed else NodeState.INACTIVE
    return NodeState.INACTIVE if passed or level not in transition.levels else NodeState.JOINED


def open_late_join(draft: Draft, node: int, level: int) -> None:
    """Take a joined node's newly registered level through the node's join, at that level alone (SPEC 3.10)."""
    member = draft.member(node)
    identity = draft.index * IDENTITIES_PER_ENTRY + node
    cause = "a level was registered after it had joined"
    late = Transition(identity, node, member.incarnation, TransitionKind.JOINING, (level,), cause=cause, late=True)
    draft.put(late, f"{draft.name(node)}: joining at level {level} opened ({cause})")
    _enter(draft, late, 0)


def open_leave(draft: Draft, node: int, cause: str) -> None:
    """Open the graceful leave of a joined node, top-down (SPEC 3.4)."""
    _check_allowed(draft.member(node), TransitionKind.LEAVING)
    _leave(draft, draft.member(node), cause)


def _leave(draft: Draft, before: Member, cause: str) -> None:
    member = replace(before, state=NodeState.LEAVING, leave_asked="")
    draft.put(member)
    everywhere = {level.number for other in draft.members.values() if counts(other) for level in other.levels}
    told = tuple(sorted((level for level in everywhere if level <= member.told_level), reverse=True))
    _open(draft, member, TransitionKind.LEAVING, told, cause)


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
        draft.forget("transition", str(aborted.identity))
    levels = tuple(sorted(level for level in (everywhere | own) - completed if level <= before.told_level))
    cause = before.eviction.cause if before.eviction else proof.detail
    member = replace(before, state=NodeState.FORCED_LEAVING, eviction=None, last_proof=proof)
    draft.put(member)
    _open(draft, member, TransitionKind.FORCED_LEAVING, levels, cause)


def advance(draft: Draft, facts: Facts) -> None:
    """Move every transition on as far as its acknowledgements allow: one barrier at a time (SPEC 3.4)."""
    for transition in list(draft.transitions.values()):
        _shed_participants(draft, transition)
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
    member = draft.member(transition.node)
    if member.leave_asked:
        _turn(draft, transition)
    elif any(level.number == transition.awaits for level in member.levels):
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
    everywhere = draft.registered().keys()
    taken = transition.levels[: transition.position + 1]
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
        and (other.barrier + 1 < other.barriers or step_of(other) not in done)
        for other in draft.transitions.values()
    )


def reached(transition: Transition, level: int) -> bool:
    """Whether a bottom-up transition has got to `level`, or does not take it at all."""
    return transition.level >= level or level not in transition.levels


def barrier_conflict(draft: Draft, node: int, levels: tuple[Level, ...]) -> str:
    """Why these levels may not join beside those registered already, or nothing (SPEC 3.2)."""
    for other in draft.members.values():
        if not counts(other) or other.node == node:
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
        if _must_await(draft, transition, level):
            break
        participants = draft.participants(level)
        if participants and transition.kind is TransitionKind.JOINING:
            member = draft.member(transition.node)
            draft.put(replace(member, told_level=max(level, member.told_level)))
        if participants:
            entered = replace(transition, position=position, barrier=0, participants=participants)
            draft.put(replace(entered, barriers=_barriers(draft, entered)))
            return
        position += 1
    if _must_await(draft, transition, EVENT_MANAGER):
        draft.put(replace(transition, position=first - 1, participants=(), awaits=EVENT_MANAGER))
    else:
        _finish(draft, transition)


def _must_await(draft: Draft, transition: Transition, level: int) -> bool:
    """Whether a join stops before `level`: the event manager of the joining node registers in the second step of its
    boot, when everything below it has joined (P3.11, SPEC 3.10).
    """
    if transition.kind is not TransitionKind.JOINING or transition.late or level < EVENT_MANAGER:
        return False
    return all(entry.number != EVENT_MANAGER for entry in draft.member(transition.node).levels)


def _step(draft: Draft, transition: Transition) -> None:
    """All acknowledged: the next barrier, or else the next level."""
    if transition.barrier + 1 < transition.barriers:
        participants = tuple(node for node in transition.participants if counts(draft.member(node)))
        draft.put(replace(transition, barrier=transition.barrier + 1, participants=participants))
        return
    if transition.kind is TransitionKind.LEAVING:
        _deregister(draft, transition.node, transition.level)
    draft.causes.append(f"{draft.name(transition.node)}: {transition.kind} done at level {transition.level}")
    if transition.kind is TransitionKind.JOINING and draft.member(transition.node).leave_asked:
        _turn(draft, transition)
        return
    _enter(draft, transition, transition.position + 1)


def _finish(draft: Draft, transition: Transition) -> None:
    member = draft.member(transition.node)
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
    """Nobody waits for a participant that has been forced out, or whose subsystem is gone (P3.7, SPEC 3.4)."""
    registered = draft.registered().get(transition.level, frozenset())
    if not registered.issuperset(transition.participants):
        remaining = tuple(node for node in transition.participants if node in registered)
        draft.put(replace(transition, participants=remaining))


EVENT_MANAGER = EVENT_MANAGER_LEVEL.number
