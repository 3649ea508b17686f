"""What must hold of every committed step of a transition and of every notification, as pure functions (SPEC 3).

These are the judges of the exhaustive search (`transition_search.py`). They know the specification and the records,
and call nothing of the rules that they judge. `judge_commit` also says what else must have been true at that moment:
which subsystems must have acknowledged, which incarnations must have stopped; the search knows that for certain.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from muster.core.effects import Notify
from muster.records.database import Database
from muster.records.levels import EVENT_MANAGER_LEVEL, Level, NodeState, TransitionKind
from muster.records.members import Member
from muster.records.transitions import Acknowledgement, Transition

WAITED_FOR = (NodeState.JOINING, NodeState.JOINED, NodeState.LEAVING)
JOINING, LEAVING, FORCED = TransitionKind.JOINING, TransitionKind.LEAVING, TransitionKind.FORCED_LEAVING
EVENT_MANAGER = EVENT_MANAGER_LEVEL.number
SETTLES_AS = {JOINING: NodeState.JOINED, LEAVING: NodeState.INACTIVE, FORCED: NodeState.INACTIVE}


class Broken(Exception):
    """A rule of SPEC section 3 does not hold; the message cites it."""


class AcknowledgedBy(NamedTuple):
    """This incarnation's subsystem must have acknowledged this step, or this registration of it be gone; `gone`: it
    must be gone, for it has not been asked everything yet.
    """

    node: int
    incarnation: int
    step: Acknowledgement
    registration: int
    gone: bool = False


class StoppedAt(NamedTuple):
    """Nothing of this incarnation may run any more (SPEC 3.9, 7.1)."""

    node: int
    incarnation: int


Requirement = AcknowledgedBy | StoppedAt


class Held(NamedTuple):
    """What a subsystem was last told of a node, and whether it has acknowledged that. `transition` 0: as company."""

    incarnation: int
    kind: TransitionKind
    transition: int
    barrier: int
    acknowledged: bool


def require(holds: object, rule: str, message: str) -> None:
    """Raise `Broken` unless it holds."""
    if not holds:
        raise Broken(f"SPEC {rule}: {message}")


def is_waited_for(member: Member) -> bool:
    """SPEC 3.4: not inactive, and not forced out."""
    return member.state in WAITED_FOR


def concerned(database: Database, level: int) -> set[int]:
    """SPEC 3.4: every node that is not inactive or forced-leaving and has registered that level."""
    return {
        member.node
        for member in database.members.values()
        if is_waited_for(member) and any(entry.number == level for entry in member.levels)
    }


def barriers_of(database: Database, transition: Transition) -> int | None:
    """How many barriers the level at work has for this kind of transition; None if nobody has it any more."""
    for member in database.members.values():
        for level in member.levels:
            if level.number == transition.level:
                return {JOINING: level.barriers.joining, LEAVING: level.barriers.leaving}.get(
                    transition.kind, level.barriers.forced_leaving
                )
    return None


def present_step(transition: Transition) -> Acknowledgement:
    """(transition, level, barrier), as subsystems acknowledge it."""
    return Acknowledgement(transition.identity, transition.level, transition.barrier)


def words_of(transition: Transition) -> str:
    """A transition, for messages."""
    late = "late " if transition.late else ""
    return f"the {late}{transition.kind} of n{transition.node}"


# ---- one committed entry ---------------------------------------------------------------------------------------------


def judge_commit(old: Database, new: Database) -> tuple[Requirement, ...]:
    """Judge what one entry changed; return what must have been true besides. Raises `Broken`."""
    wanted: list[Requirement] = []
    for member in new.members.values():
        wanted += _judge_member(old.member(member.node), member, new)
    for transition in new.transitions.values():
        before = old.transitions.get(transition.identity)
        _judge_record(transition, new)
        if before is None:
            _judge_opening(transition, old, new)
        else:
            wanted += _judge_advance(before, transition, old, new)
    for identity, before in old.transitions.items():
        if identity not in new.transitions:
            wanted += _judge_end(before, old, new)
    return tuple(wanted)


def _judge_member(before: Member, after: Member, new: Database) -> Iterator[Requirement]:
    """SPEC 3.1, 3.8: states follow each other as they may; transitional ones have their one transition."""
    every = [each for each in new.transitions.values() if each.node == after.node]
    own = [each for each in every if not (_recovers_level(each) and len(every) > 1)]
    require(len(own) <= 1, "3.5", f"n{after.node} has {len(own)} transitions")
    if own and not (_recovers_level(own[0]) and after.state is NodeState.INACTIVE):
        during = {JOINING: (NodeState.JOINED,)}.get(own[0].kind, WAITED_FOR)
        fits = after.state in during if own[0].late else own[0].kind.value == after.state
        require(fits and own[0].incarnation == after.incarnation, "3.1", f"{words_of(own[0])} of one {after.state}")
    else:
        rests = after.state in (NodeState.JOINED, NodeState.INACTIVE) or _was_interrupted(after)
        require(rests, "3.1", f"n{after.node} is left {after.state}")
    if before.state is after.state and before.incarnation == after.incarnation:
        return
    may_follow = {
        NodeState.INACTIVE: (NodeState.JOINING, NodeState.JOINED),
        NodeState.JOINING: (NodeState.JOINED, NodeState.LEAVING, NodeState.FORCED_LEAVING, NodeState.INACTIVE),
        NodeState.JOINED: (NodeState.LEAVING, NodeState.FORCED_LEAVING, NodeState.INACTIVE),
        NodeState.LEAVING: (NodeState.FORCED_LEAVING, NodeState.INACTIVE),
        NodeState.FORCED_LEAVING: (NodeState.INACTIVE,),
    }[before.state]
    require(after.state in may_follow, "3.1", f"n{after.node} goes from {before.state} to {after.state}")
    anew = before.state is NodeState.INACTIVE
    require((after.incarnation > before.incarnation) == anew, "3.8", f"n{after.node}: incarnation {after.incarnation}")
    if anew:
        _judge_required(after, new)
    if before.state is NodeState.JOINING and after.state is NodeState.JOINED:
        has_it = any(level.number == EVENT_MANAGER for level in after.levels)
        require(has_it, "3.10", f"n{after.node} has joined before its event manager has come")
        lacking = set(after.required) - {level.number for level in after.levels}
        require(not lacking, "3.10", f"n{after.node} has joined without the levels {lacking}, which were required")
    proof = after.last_proof
    if proof is not None and proof != before.last_proof:
        require(proof.incarnation == before.incarnation, "7.1", f"the proof of n{after.node} is of another incarnation")
        yield StoppedAt(proof.node, proof.incarnation)
    elif after.state is NodeState.FORCED_LEAVING:
        require(False, "3.6", f"n{after.node} is forced out without a proof of its death")


def _judge_required(joining: Member, new: Database) -> None:
    """SPEC 3.10: who begins to join has every program that the operator requires, and its record says which."""
    has = {(level.number, name) for level in joining.levels for name in (level.name, "")}
    lacking = {(each.number, each.name) for each in new.cluster.required_levels} - has
    require(not lacking, "3.10", f"n{joining.node} joins without {lacking}")
    named = {each.number for each in new.cluster.required_levels}
    require(set(joining.required) == named, "3.10", f"n{joining.node} joins by {joining.required}, not {named}")


def _was_interrupted(member: Member) -> bool:
    """Its join or leave gave way to one of its levels, which is done: what is left of it opens next (SPEC 3.10)."""
    return member.state in (NodeState.JOINING, NodeState.LEAVING)  # that it does open is judged at rest


def _recovers_level(transition: Transition) -> bool:
    """SPEC 3.2, 3.6: the forced leave of one level goes on beside that of its node: nothing can follow it."""
    return transition.late and transition.kind is FORCED


def _judge_record(transition: Transition, new: Database) -> None:
    # A join takes what has been registered below it meanwhile next: what is to come is in order (SPEC 3.10).
    first = transition.position + 1 if transition.kind is JOINING else 0
    ahead = transition.levels[first:]
    ordered = sorted(set(ahead), reverse=transition.kind is LEAVING)
    require(list(ahead) == ordered, "3.4", f"{words_of(transition)} takes its levels as {transition.levels}")
    if transition.awaits:
        member = new.member(transition.node)
        has_it = any(level.number == transition.awaits for level in member.levels)
        fits = transition.kind is JOINING and transition.awaits in (EVENT_MANAGER, *member.required) and not has_it
        require(fits and not transition.participants, "3.10", f"{words_of(transition)} awaits {transition.awaits}")
        return
    if transition.kind is JOINING and not transition.late and transition.level >= EVENT_MANAGER:
        has_it = any(level.number == EVENT_MANAGER for level in new.member(transition.node).levels)
        require(has_it, "3.10", f"{words_of(transition)} is at {transition.level} before its event manager has come")
    counted = barriers_of(new, transition)
    require(counted in (None, transition.barriers), "3.4", f"{words_of(transition)} has {transition.barriers} barriers")
    told = transition.kind is not JOINING or new.member(transition.node).told_level >= transition.level
    require(told, "3.9", f"{words_of(transition)} is at {transition.level}, which does not count as told")


def _judge_opening(transition: Transition, old: Database, new: Database) -> None:
    before = old.member(transition.node)
    name, states = words_of(transition), {JOINING: (NodeState.INACTIVE,), FORCED: WAITED_FOR}
    allowed = states.get(transition.kind, (NodeState.JOINED, NodeState.JOINING))
    if transition.late:
        allowed = (NodeState.JOINED,) if transition.kind is JOINING else WAITED_FOR
    interrupted = before.state.value == transition.kind and before.incarnation == transition.incarnation
    require(before.state in allowed or interrupted, "3.6", f"{name} opens while it is {before.state}")
    own = {level.number for level in new.member(transition.node).levels}
    levels = set(transition.levels)
    if transition.late:
        require(len(levels) == 1, "3.10", f"{name} takes {transition.levels}")
        here = bool(levels & own)
        require(here == (transition.kind is JOINING), "3.2", f"{name} at {transition.levels}; registered are {own}")
    elif transition.kind is JOINING:
        now = {level.identity for level in new.member(before.node).levels}
        same = {level.number for level in before.levels if level.identity in now}
        held = set(before.inside) & same if interrupted else set()
        require(levels == own - held, "3.4", f"{name} takes {levels} of {own}, told before were {held}")
    else:
        going = {each.level for each in new.transitions.values() if each.node == transition.node and each.late}
        wanted = (set(before.inside) | _just_told(old, transition.node)) - going
        fresh = own - {level.number for level in before.levels}
        heard = {number for number in wanted if concerned(new, number) & concerned(old, number)}
        lacking, again = heard - levels - _just_left(old, transition.node), levels - wanted - fresh
        require(not lacking, "3.9", f"{name} leaves out {lacking}")
        require(not again, "3.9", f"{name} takes {again}, told were {wanted}")
    if transition.awaits:
        _judge_skipped(transition, 0, len(transition.levels), new, below=transition.awaits)
    else:
        alone = not transition.participants  # nobody is there to be told: the rules may be one barrier ahead
        require(transition.barrier == 0 or alone, "3.4", f"{name} opens at barrier {transition.barrier}")
        _judge_skipped(transition, 0, transition.position, new)
        _judge_participants(transition, old, new)


def _just_told(old: Database, node: int) -> set[int]:
    """The level at which the node's join or leave is: it was told, whatever is recorded beside it."""
    own = (each for each in old.transitions.values() if each.node == node and not each.awaits)
    return {each.level for each in own if each.kind is not FORCED}


def _just_left(old: Database, node: int) -> set[int]:
    """The level at which the node's leave is: it may be done with it in the very entry that follows."""
    return {each.level for each in old.transitions.values() if each.node == node and each.kind is not JOINING}


def _numbers(database: Database) -> set[int]:
    return {level.number for member in database.members.values() for level in member.levels}


def _judge_skipped(transition: Transition, first: int, end: int, new: Database, below: int = 1 << 30) -> None:
    """No level that somebody concerned has registered may be passed over (SPEC 3.4)."""
    skipped = [level for level in transition.levels[max(0, first) : max(0, end)] if level < below]
    if transition.kind is JOINING:  # what has gone meanwhile is no part of it any more
        own = {level.number for level in new.member(transition.node).levels}
        skipped = [level for level in skipped if level in own]
    passed = [level for level in skipped if concerned(new, level)]
    require(not passed, "3.4", f"{words_of(transition)} passes over level {passed}")


def _judge_participants(transition: Transition, old: Database, new: Database) -> None:
    """Who must acknowledge a level that was just entered. Who went in the same entry may still be named."""
    wanted, named = concerned(new, transition.level), set(transition.participants)
    require(wanted <= named, "3.4", f"{words_of(transition)} does not wait for {wanted - named} at {transition.level}")
    gone = named - wanted - concerned(old, transition.level)
    require(not gone, "3.4", f"{words_of(transition)} waits for {gone} at {transition.level}, which has no such level")


def _acknowledged_by_all(before: Transition, old: Database, new: Database) -> Iterator[Requirement]:
    """SPEC 3.4: every living participant of the step that is over must have acknowledged it."""
    still = concerned(new, before.level)
    for node in before.participants:
        same = old.member(node).incarnation == new.member(node).incarnation
        if same and (node in still or _has_left(node, before.level, old, new)):
            yield _acknowledged_by(old.member(node), before)


def _acknowledged_by(member: Member, transition: Transition) -> AcknowledgedBy:
    registrations = [level.registration for level in member.levels if level.number == transition.level]
    return AcknowledgedBy(member.node, member.incarnation, present_step(transition), max(registrations, default=0))


def _has_left(node: int, level: int, old: Database, new: Database) -> bool:
    """Whether this entry takes the node's graceful leave past `level`: it is deregistered there (SPEC 3.11)."""
    if new.member(node).last_proof != old.member(node).last_proof:
        return False
    own = next((each for each in old.transitions.values() if each.node == node and each.kind is LEAVING), None)
    if own is None or own.level != level:
        return False
    after = new.transitions.get(own.identity)
    return after is None or after.position > own.position


def _judge_advance(before: Transition, after: Transition, old: Database, new: Database) -> Iterator[Requirement]:
    name = words_of(before)
    same = (before.node, before.incarnation, before.kind, before.late)
    require(same == (after.node, after.incarnation, after.kind, after.late), "3.4", f"{name} became {words_of(after)}")
    taken = before.levels[: before.position + 1]
    require(after.levels[: len(taken)] == taken, "3.4", f"{name} forgets levels {taken}: {after.levels}")
    if (before.position, before.barrier, before.awaits) == (after.position, after.barrier, after.awaits):
        yield from _judge_membership_of_step(before, after, old, new)
        return
    if not before.awaits:
        yield from _acknowledged_by_all(before, old, new)
    if after.position == before.position and not after.awaits:
        require(after.barrier == before.barrier + 1 < before.barriers + 1, "3.4", f"{name} jumps to {after.barrier}")
        require(after.barrier < before.barriers, "3.4", f"{name} goes beyond its last barrier")
        return
    last = before.awaits or before.barrier + 1 == before.barriers
    require(last, "3.4", f"{name} leaves level {before.level} after barrier {before.barrier} of {before.barriers}")
    if after.awaits:
        _judge_skipped(after, before.position + 1, len(after.levels), new, below=after.awaits)
        return
    onward = after.position > before.position and after.barrier == 0
    require(onward, "3.4", f"{name} goes from {present_step(before)} to {present_step(after)}")
    _judge_skipped(after, before.position + 1, after.position, new)
    _judge_participants(after, old, new)


def _judge_membership_of_step(
    before: Transition, after: Transition, old: Database, new: Database
) -> Iterator[Requirement]:
    """Within a step the participants shrink by those that are gone and grow by those that have just registered."""
    name = words_of(before)
    shed = set(before.participants) - set(after.participants)
    wrongly = shed & concerned(new, before.level)
    again = {node for node in wrongly if old.member(node).incarnation != new.member(node).incarnation}
    require(wrongly <= again, "3.4", f"{name} no longer waits for {wrongly - again} at {before.level}")
    for node in shed - wrongly:
        if _has_left(node, before.level, old, new):  # it must have finished what it had begun (SPEC 3.4, 3.11)
            last = before.barrier + 1 == before.barriers
            yield _acknowledged_by(old.member(node), before)._replace(gone=not last)
    added = set(after.participants) - set(before.participants)
    fresh = concerned(new, before.level) - concerned(old, before.level)
    require(added <= fresh, "3.10", f"{name} now waits for {added - fresh} at {before.level}")
    require(not added or after.barrier == 0, "3.4", f"{name} takes {added} in after its first barrier")


def _judge_end(before: Transition, old: Database, new: Database) -> Iterator[Requirement]:
    """A transition is over: replaced by a forced leave, turned into a leave, interrupted for a level, or complete."""
    name, member = words_of(before), new.member(before.node)
    successor = next((each for each in new.transitions.values() if each.node == before.node), None)
    was_forced = member.last_proof is not None and member.last_proof.incarnation == before.incarnation
    if before.kind is not FORCED and was_forced:
        return
    if not before.awaits:
        number, registration = _registration_of(old, before)
        gone = (number, registration) not in [level.identity for level in member.levels]
        given_way = successor is not None and successor.late and successor.level == before.level
        alone = not concerned(new, before.level) - {before.node}
        if gone and before.kind is not FORCED and (before.kind is JOINING or given_way or (alone and not before.late)):
            step = AcknowledgedBy(before.node, before.incarnation, present_step(before), registration)
            yield step._replace(gone=before.kind is JOINING or given_way)
            return
        yield from _acknowledged_by_all(before, old, new)
        last = before.barrier + 1 == before.barriers
        require(last, "3.4", f"{name} ends after barrier {before.barrier} of {before.barriers} at {before.level}")
    interrupted = successor is None and member.state.value == before.kind
    if before.late or interrupted or (successor is not None and (successor.late or successor.kind is LEAVING)):
        return  # what follows is judged as it opens, or at rest
    if successor is None or successor.kind is not before.kind:
        _judge_skipped(before, before.position + 1, len(before.levels), new)
    settled = SETTLES_AS[before.kind]
    require(member.state is settled or successor is not None, "3.1", f"{name} ends and it is {member.state}")


def _registration_of(database: Database, transition: Transition) -> tuple[int, int]:
    """The registration of the transition's own node at the level at work; it may have gone already."""
    member = database.member(transition.node)
    every = (*member.levels, *(each.level for each in member.gone))
    return next((each.identity for each in every if each.number == transition.level), (transition.level, 0))


def judge_order(old: Database, new: Database, registered: Mapping[int, frozenset[int]]) -> None:
    """SPEC 3.10: a node's levels are taken in after the lower ones of that node. Raises `Broken`.

    `registered`: what the master knows to be registered on each node. A fresh level waits for all of them below it; one
    that counted before, for those that count by now.
    """
    for transition in new.transitions.values():
        before = old.transitions.get(transition.identity)
        entered = transition.kind is JOINING and not transition.awaits
        if not entered or (before is not None and not before.awaits and before.level == transition.level):
            continue
        member = new.member(transition.node)
        counted = {level.number for level in member.levels}
        fresh = all(level.number != transition.level for level in old.member(transition.node).levels)
        known = counted | registered.get(transition.node, frozenset()) if fresh else counted
        early = {number for number in known if number < transition.level} - set(member.inside)
        require(not early, "3.10", f"{words_of(transition)} is at {transition.level}, and {early} are registered there")
        own = () if transition.late else member.required
        lacking = {each for each in own if each <= transition.level} - counted
        require(not lacking, "3.10", f"{words_of(transition)} is at {transition.level}, and {lacking} have gone")


def judge_loss(number: int, registered: Iterable[Level], own: Member | None, *, failed: bool) -> None:
    """SPEC 3.2: the end of a program is its node's, where others stand on it; else its level goes alone.

    `registered`: all that is registered on the node, itself included; `own`: the node's record as the node knows it.
    Raises `Broken`.
    """
    above = {level.number for level in registered if level.number > number and level.number != EVENT_MANAGER}
    if own is not None and own.state is NodeState.LEAVING:
        above &= {level.number for level in own.levels}
    must_fail = bool(above) or (own is not None and number in own.required)
    require(failed == must_fail, "3.2", f"level {number} ends below {above or 'nothing'}: its node fails: {failed}")


# ---- notifications ---------------------------------------------------------------------------------------------------


def judge_notification(told: Notify, before: Held | None, barriers: int, database: Database, repeated: bool) -> None:
    """Judge one notification by what the same subsystem was told of that node before: SPEC 3.6, Table 1.

    `barriers`: of this level for the kind that it was told of last. `repeated`: the daemon has been restarted since.
    Raises `Broken`.
    """
    what = f"level {told.level} is told {told.kind} of n{told.node}"
    require(told.vector.get(told.node) == told.kind.value, "3.5", f"{what} against the vector {told.vector}")
    member = database.member(told.node)
    require(member.incarnation == told.incarnation, "3.5", f"{what}, incarnation {told.incarnation}")
    if before is not None and before.transition == told.transition:
        same = (before.incarnation, before.kind) == (told.incarnation, told.kind)
        require(same, "3.6", f"{what}; the same step was {before.kind} of incarnation {before.incarnation} before")
        again = before.barrier == told.barrier
        require(not again or repeated, "3.6", f"{what} twice (barrier {told.barrier})")
        onward = before.barrier + 1 == told.barrier and before.acknowledged
        require(again or onward, "3.4", f"{what} barrier {told.barrier} after {before.barrier}")
        return
    require(told.barrier == 0, "3.4", f"{what} and begins with barrier {told.barrier}")
    if before is None:
        return
    done = before.acknowledged and before.barrier + 1 == barriers
    if told.kind is JOINING:  # also of the same incarnation, whose program has left the level in between (SPEC 3.2)
        fits = done and before.kind is not JOINING and told.incarnation >= before.incarnation
    elif told.kind is FORCED:
        fits = before.kind is not FORCED and before.incarnation == told.incarnation
    else:
        fits = done and before.kind is JOINING and before.incarnation == told.incarnation
    state = "it has processed" if done else "it still processes"
    require(fits, "3.6, Table 1", f"{what}, while {state} {before.kind} of incarnation {before.incarnation}")


def judge_held(node: int, level: int, about: Member, held: Held | None, barriers: int) -> None:
    """At rest every subsystem holds whether each node is in its level,
    or was never told of it (SPEC 3.2, 3.6). Raises `Broken`.
    """
    if held is None:
        return
    done = held.acknowledged and held.barrier + 1 == barriers
    holds = SETTLES_AS[held.kind]
    same = held.incarnation == about.incarnation
    never_arrived = holds is NodeState.INACTIVE and held.incarnation < about.incarnation  # a join that ended below
    inside = about.state is NodeState.JOINED and any(each.number == level for each in about.levels)
    inside = inside or (about.state is NodeState.JOINING and level in about.inside)  # its join waits (SPEC 3.10)
    fits = done and holds is (NodeState.JOINED if inside else NodeState.INACTIVE) and (same or never_arrived)
    if not inside and done and holds is NodeState.INACTIVE and same:
        return
    where = f"level {level} on n{node} ends with {held.kind} of n{about.node} (incarnation {held.incarnation}"
    require(
        fits,
        "3.6",
        f"{where}, done: {done}), which is {about.state} (incarnation {about.incarnation}), inside: {inside}",
    )
