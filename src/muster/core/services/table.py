"""Services: the master's side of registration, launch, transfer and recovery (SPEC 6.5 to 6.9, 7.7).

Theory of operation. Each service is one record with a state. What may happen to it is an event; the table `RULES`
names for every (state, event) the rule that gives the next record; a pair that is not in the table cannot happen, and
raises. Why a service may start or must stop is said in `conditions.py`, where it may go in `placement.py`.
Each command to a node is a new generation: the index of the entry that gives it. Nodes learn of their command from the
committed record and repeat its result in their reports until the record has moved on.

Nothing changes a service on a node before that node has acknowledged the term with its report, or its incarnation is
proven to have stopped and the forced leave has reached the event manager's level (P6.2, P6.3).
"""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts
from muster.core.freezing import is_frozen
from muster.core.membership.membership import condemn
from muster.core.nodes import requests as configuration
from muster.core.services import instances
from muster.core.services.commands import is_cleanup
from muster.core.services.conditions import (
    immaturity,
    maintenance_of,
    obstacle,
    preferred_node,
    rests_ms,
    why_stop,
    with_none_by,
    with_takeover,
    working_children,
)
from muster.core.services.round import Round
from muster.core.transitions.transition import EVENT_MANAGER, reached
from muster.records.durations import duration_text
from muster.records.levels import NodeState
from muster.records.numbers import NO_STATUS
from muster.records.services import (
    CommandState,
    Ended,
    Exhausted,
    Rest,
    Service,
    ServiceState,
    Takeover,
    Unclean,
    token_of,
)
from muster.records.terms import NO_NODE
from muster.records.units import US_PER_MS
from muster.records.versions import TOKENS

DEREGISTERED, STARTING, REGISTERED, STOPPING, RECOVERING = ServiceState

FIRST_PAUSE_MS = 1000  # before a service that has failed twice is started again
LONGEST_PAUSE_MS = 60_000
FIRST_ROUND_MS = 10_000  # before its start is tried again on the nodes on all of which it has failed
_DOUBLINGS = 16

ACTION_OF = {STARTING: "start", STOPPING: "stop", RECOVERING: "recovery"}


class Event(Enum):
    """What can happen to a service."""

    LOST = "its node is proven dead"
    SUCCEEDED = "its command succeeded"
    FAILED = "its command failed"
    UNWANTED = "it is to end where it is: de-registered, transferred, or its node or its parent leaves"
    WANTED = "it is to run and does not"
    FREED = "a node for its recovery may be up"
    WAITS = "the cluster is not mature for it"
    ALONE = "no allowable node is up any more while it waits"
    ABANDONED = "its transfer has nowhere to go any more"
    MOVES = "it is to move as soon as its children have ended"
    PREFERRED = "a more preferred node has joined"
    BROKEN = "it has failed where it is registered"


def advance(draft: Draft, facts: Facts) -> None:
    """Let every service take at most one step (P6.1)."""
    if not facts.services_open:
        return
    _end_what_is_over(draft, facts)
    _forget_what_is_clean(draft, facts)
    round_ = Round(draft, facts)
    instances.expand(round_)
    for name in _in_turn(draft, facts.after):
        if draft.is_full:
            draft.stopped_at = draft.stopped_at or name
            break
        service = draft.services[name]
        happened = _what_happens(service, round_)
        if happened is not None:
            event, detail = happened
            RULES[service.state, event].rule(service, round_, detail)
        elif _may_be_forgotten(service) and not round_.children(service):
            draft.forget("service", service.name, f"{service.name}: forgotten")
    draft.placed = round_.placed


def _in_turn(draft: Draft, after: str) -> list[str]:
    """All services, beginning with the one before which the last round had to stop: so each has its turn (P9.5)."""
    names = list(draft.services)
    first = names.index(after) if after in draft.services else 0
    return names[first:] + names[:first]


def _end_what_is_over(draft: Draft, facts: Facts) -> None:
    """Maintenance, standby and what counts as failures end by themselves when their time is over."""
    for record in list(draft.maintenance.values()):
        if record.duration_ms and facts.age_us(record.since) >= record.duration_ms * US_PER_MS:
            draft.forget(
                "maintenance", record.key, f"maintenance of {record.kind} {record.subject}".strip() + " is over"
            )
    for standby in list(draft.standby.values()):
        if standby.duration_ms and facts.age_us(standby.since) >= standby.duration_ms * US_PER_MS:
            draft.forget("standby", str(standby.node), f"{draft.name(standby.node)}: its standby is over")
    for service in list(draft.services.values()):
        if draft.is_full:
            return
        if (service.failures or service.exhausted) and not service.awaits_policy:
            _forget_what_is_long_ago(service, draft, facts)
        _forget_what_joins_anew(draft.services[service.name], draft)
        known = configuration.forget_removed(draft, draft.services[service.name])
        if known is not service and known != draft.services[service.name]:
            draft.put(known)


def _forget_what_joins_anew(service: Service, draft: Draft) -> None:
    """A node that boots again is tried again, though a service was given up on it before (P6.36)."""
    if service.state is not DEREGISTERED or not (service.failed or service.exhausted):
        return
    anew = {member.node for member in draft.members.values() if member.state is NodeState.JOINING}
    failed = tuple(node for node in service.failed if node not in anew)
    exhausted = tuple(given_up for given_up in service.exhausted if given_up.node not in anew)
    if (failed, exhausted) != (service.failed, service.exhausted):
        cause = service.cause if failed or exhausted else ""
        names = ", ".join(sorted(draft.name(node) for node in anew))
        rest = service.rest if cause or not service.cause else None
        after = replace(service, failed=failed, exhausted=exhausted, cause=cause, rest=rest)
        draft.put(after, f"{service.name}: may be tried again on {names}")


def _forget_what_is_clean(draft: Draft, facts: Facts) -> None:
    """What was lost on a machine that is known to be clean of it may go on elsewhere (P6.32)."""
    for service in list(draft.services.values()):
        if draft.is_full:
            return
        left = service.unclean
        if left is not None and not facts.unclean(left.node, left.incarnation, service.identity):
            cause = f"{service.name}: {draft.name(left.node)} is clean of it"
            draft.put(replace(service, unclean=None), cause)


def _may_be_forgotten(service: Service) -> bool:
    """A withdrawn service is kept until no machine holds what it left: another of its name would run beside that."""
    return service.removed and service.state is DEREGISTERED and service.unclean is None


def _left_behind(service: Service, round_: Round) -> Unclean | None:
    """Where the service, which was just lost, may have left something in the machine's kernel (P6.32)."""
    if not service.owes:
        return service.unclean
    if not round_.facts.unclean(service.node, service.incarnation, service.identity):
        return None
    return Unclean(service.node, service.incarnation)


def _forget_what_is_long_ago(service: Service, draft: Draft, facts: Facts) -> None:
    """Failures expire in the record, since a master that has just begun does not know how old an entry is (P6.26)."""
    entries = (*service.failures, *(given_up.entry for given_up in service.exhausted))
    window_us = service.definition.restart_window_ms * US_PER_MS
    if service.node != NO_NODE and max(entries) > service.generation:
        return  # what is done about it has not begun yet: its children have not ended
    if all(facts.age_us(entry) > window_us for entry in entries):
        is_why = service.state is DEREGISTERED and service.exhausted and not service.failed
        cause = "" if is_why else service.cause  # it was given up everywhere, and may be tried again (P6.36)
        draft.put(
            replace(service, failures=(), exhausted=(), cause=cause), f"{service.name}: its failures are long ago"
        )


def is_lost(service: Service, draft: Draft) -> bool:
    """Whether the node of the service is proven dead and its forced leave has reached the event manager (P6.3)."""
    if service.node == NO_NODE:
        return False
    member = draft.member(service.node)
    if member.incarnation != service.incarnation or member.state is NodeState.INACTIVE:
        return True
    transition = draft.transition_of(service.node)
    return member.state is NodeState.FORCED_LEAVING and (transition is None or reached(transition, EVENT_MANAGER))


Happening = tuple[Event, str]


def _what_happens(service: Service, round_: Round) -> Happening | None:
    """The event for this service in this round, if any; none while a silent node keeps it as it is (P4.9)."""
    if is_frozen(service, round_.draft):
        return None
    if service.state is DEREGISTERED:
        return _while_deregistered(service, round_)
    if instances.is_template(service):
        return None
    if service.node == NO_NODE:
        return None if service.unclean or maintenance_of(service, round_) else (Event.FREED, "")
    if is_lost(service, round_.draft):
        return Event.LOST, f"{round_.name(service.node)} was lost"
    result = _result(service, round_)
    if result is not None and result.finished:
        return (Event.SUCCEEDED if result.succeeded else Event.FAILED), result.detail
    return _unwanted(service, round_)


def _while_deregistered(service: Service, round_: Round) -> Happening | None:
    if not service.wanted or service.removed:
        return None
    if instances.is_template(service):
        return _while_immature(service, immaturity(service, round_), round_)
    if service.intent and (maintenance_of(service, round_) or not _goes_on(service, round_)):
        return Event.ABANDONED, ""
    waiting = immaturity(service, round_)
    if not obstacle(service, round_):
        return Event.WANTED, ""
    return _while_immature(service, waiting, round_) if not service.template else None


def _while_immature(service: Service, waiting: str, round_: Round) -> Happening | None:
    """The wait for maturity begins with the first allowable node that is up, and ends with the last (P6.21, P6.22)."""
    if waiting and not service.waits_since and not service.cause and round_.place(service) is not None:
        return Event.WAITS, waiting
    if service.waits_since and round_.place(service) is None:
        return Event.ALONE, ""
    return None


def _result(service: Service, round_: Round) -> CommandState | None:
    """What the service's node says of the command of the present generation."""
    if service.cause or service.state not in ACTION_OF:
        return None
    command = round_.command(service, service.node)
    return command if command is not None and command.action == ACTION_OF[service.state] else None


def _unwanted(service: Service, round_: Round) -> Happening | None:
    """Whether it must leave its node; its children do so first (P6.27)."""
    if service.state not in (STARTING, REGISTERED):
        return None
    member = round_.draft.member(service.node)
    if round_.facts.report(member) is None or not counts(member):
        return None
    stop = why_stop(service, round_)
    if stop is not None:
        if not working_children(service, round_):
            return None if _too_many_stop(service, round_) else (Event.UNWANTED, stop.reason)
        return (Event.MOVES, stop.reason) if stop.moves and not service.intent and service.state is REGISTERED else None
    if service.state is not REGISTERED or maintenance_of(service, round_):
        return None
    if service.awaits_policy:
        return Event.BROKEN, service.broken
    node = preferred_node(service, round_)
    return (Event.PREFERRED, round_.name(node)) if node is not None else None


def _too_many_stop(service: Service, round_: Round) -> bool:
    parent = round_.parent(service)
    bound = parent.definition.siblings if parent is not None else 0
    return bool(bound) and round_.at_work_beside(service, STOPPING) >= bound


def _await_maturity(service: Service, round_: Round, _detail: str) -> None:
    """Flag M: an allowable node is up, and the cluster is not mature for the service (SPEC 6.3)."""
    round_.put(replace(service, waits_since=round_.draft.index), "awaits maturity")


def _wait_no_more(service: Service, round_: Round, _detail: str) -> None:
    round_.put(replace(service, waits_since=0), "no allowable node is up any more")


def _announce_move(service: Service, round_: Round, detail: str) -> None:
    """Transfer intent is set when a move begins, though its children have to end first (SPEC 6.5, 6.7)."""
    round_.put(replace(service, intent=True, origin=service.node, reason=detail), f"is to move ({detail})")


def _take_over(service: Service, round_: Round, name: str) -> None:
    """A more preferred node takes the service over, because its transfer is free (P6.25, SPEC 6.8)."""
    node = round_.draft.database.node_named(name)
    assert node is not None
    takeover = Takeover(round_.draft.index, node, round_.draft.member(node).incarnation)
    moved = replace(
        service, intent=True, origin=service.node, target=node, reason=f"{name} is preferred and has joined",
        takeovers=with_takeover(service, takeover),
    )  # fmt: skip
    round_.put(moved, f"taken over by {name}, which is preferred")
    _stop_at_once(moved, round_)


def _failed_in_service(service: Service, round_: Round, detail: str) -> None:
    """The failure policy: restart in place so many times within the window, then move, then stop (P6.26, SPEC 5.4).

    That it has failed stays in the record until it begins to end, which may have to wait for its children: whatever is
    forgotten meanwhile of how often it has failed, or of what is to follow, this is asked again.
    """
    here = round_.name(service.node)
    if service.ended is Ended.DONE or service.ended is Ended.FATAL:
        is_done = service.ended is Ended.DONE
        reason = f"it has done its work on {here}: {detail}" if is_done else f"it failed on {here}: {detail}, {_FATAL}"
        ending = replace(service, wanted=service.wanted and not is_done, broken="", reason=reason)
        round_.put(ending, reason)
        _stop_at_once(ending, round_)
        return
    recent = _recent_failures(service, round_)
    if not _has_failed_too_often(service, recent):
        restarts = service.definition.restarts
        pause_ms = _pause_ms(service, len(recent), round_)
        later = f", in {duration_text(pause_ms)}" if pause_ms else ""
        how = f"restart {len(recent)} of {restarts}" if recent else "restarted, its failures are forgotten"
        reason = f"it failed on {here}: {detail}; {how}{later}"
        rest = Rest(round_.draft.index, pause_ms) if pause_ms else None
        restarting = replace(service, target=service.node, failures=recent, reason=reason, rest=rest)
        round_.put(restarting, reason)
        _stop_at_once(restarting, round_)
        return
    times = "once" if len(recent) == 1 else f"{len(recent)} times"
    reason = f"it failed {times} within {duration_text(service.definition.restart_window_ms)} on {here}: {detail}"
    after = replace(_given_up_here(service, round_), reason=reason)
    if round_.elsewhere(after) is not None:
        after = replace(after, intent=True, origin=service.node)
    round_.put(after, reason)
    _stop_at_once(after, round_)


def _recent_failures(service: Service, round_: Round) -> tuple[int, ...]:
    window_ms = service.definition.restart_window_ms
    return tuple(index for index in service.failures if round_.age_ms(index) <= window_ms)


def _has_failed_too_often(service: Service, recent: tuple[int, ...]) -> bool:
    return len(recent) > service.definition.restarts or service.ended is Ended.HARD


def _given_up_here(service: Service, round_: Round) -> Service:
    others = tuple(earlier for earlier in service.exhausted if earlier.node != service.node)
    given_up = (*others, Exhausted(service.node, round_.draft.index))
    return replace(service, failures=(), exhausted=given_up, rest=None, ended=Ended.FAILED)


def _with_failures_answered(service: Service, round_: Round) -> Service:
    """The service that ends for another reason than its failure: what follows from that follows all the same (P6.26).

    Not where an operator has asked for something of this very service.
    """
    is_asked_for = service.intent or service.target != NO_NODE or not service.wanted
    if not service.awaits_policy or is_asked_for:
        return service
    if service.ended is Ended.DONE:
        return replace(service, wanted=False)
    if service.ended is Ended.FATAL or not _has_failed_too_often(service, _recent_failures(service, round_)):
        return service
    return _given_up_here(service, round_)


_FATAL = "which says that another try does not help"


def _pause_ms(service: Service, failures: int, round_: Round) -> int:
    """How long it rests before it is started again: not at all after its first failure within its window, wherever
    that was, and twice as long after each further one (P6.36).
    """
    elsewhere = len(round_.exhausted(service) - {service.node}) * (service.definition.restarts + 1)
    further = failures + elsewhere - 2
    return 0 if further < 0 else min(FIRST_PAUSE_MS << min(further, _DOUBLINGS), LONGEST_PAUSE_MS)


def _stop_at_once(service: Service, round_: Round) -> None:
    """Whoever has no children to wait for begins to stop in the very entry that says why."""
    if not working_children(service, round_) and not _too_many_stop(service, round_):
        _stop(service, round_, service.reason)


def _started(service: Service, round_: Round, _detail: str) -> None:
    command = round_.command(service, service.node)
    launched = service.launched and (command is None or command.left)
    done = replace(
        service, state=REGISTERED, launched=launched, intent=False, origin=NO_NODE, target=NO_NODE, failed=(),
        reason="", cause="", rest=None, rounds=0,
        takeovers=with_none_by(service, (round_.draft.member(node) for node in service.failed)),
    )  # fmt: skip
    round_.put(done, f"registered on {round_.name(service.node)}")


def _start_failed(service: Service, round_: Round, detail: str) -> None:
    command = round_.command(service, service.node)
    status = command.status if command is not None else NO_STATUS
    if status in service.definition.fatal_exit_status:
        service = replace(service, ended=Ended.FATAL)
    if service.owes:  # what it has left is cleared first; then the next node is tried (P6.32)
        failed = replace(service, failed=(*service.failed, service.node))
        _clean_up(failed, round_, f"{_START_FAILED}{detail}")
    else:
        _give_start_up(service, round_, detail)


_START_FAILED = "start failed: "


def _clean_up(service: Service, round_: Round, reason: str) -> None:
    """What a start or a stop that failed has left on its node is cleared there, by the cleanup of its start (P6.32)."""
    name = round_.name(service.node)
    cleaning = _assigned(replace(service, cleaning=True), round_, STOPPING, service.node, reason)
    round_.put(cleaning, f"{reason}; it is cleared on {name}")


def _give_start_up(service: Service, round_: Round, detail: str) -> None:
    failed = service.failed if service.node in service.failed else (*service.failed, service.node)
    reason = f"start failed on {round_.name(service.node)}"
    # It was not to leave its last node but to be on this one: so that one is as good as any again.
    went_in_vain = service.target == service.node and service.origin in round_.up
    origin = NO_NODE if went_in_vain else service.origin
    after = _released(service, failed=failed, origin=origin, target=NO_NODE, reason=reason)
    if not after.wanted:
        after = replace(after, intent=False, origin=NO_NODE, matured=False)  # what failed is not wanted any more
    elif after.ended is Ended.FATAL:
        cause = f"{reason}: {detail}, {_FATAL}; {_advice(service)}"
        after = replace(after, cause=cause, intent=False, origin=NO_NODE, failed=(), exhausted=())
    elif round_.place(after) is None and not _move_group(after, round_):
        after = _given_up_for_now(after, round_, f"; last: {detail}")
    round_.put(after, f"start failed on {round_.name(service.node)}: {detail}")


def _given_up_for_now(service: Service, round_: Round, detail: str) -> Service:
    """Its start has failed on every node that is there: it is tried again after a pause, longer each time (P6.36)."""
    longest_ms = max(FIRST_ROUND_MS, service.definition.restart_window_ms)
    pause_ms = min(FIRST_ROUND_MS << min(service.rounds, _DOUBLINGS), longest_ms)
    names = ", ".join(round_.name(node) for node in service.failed)
    again = f"the start is tried again after {duration_text(pause_ms)}, or at once: muster service register "
    cause = f"start failed on {names}{detail}; fix the cause; {again}{service.name}"
    return replace(
        service, cause=cause, intent=False, origin=NO_NODE,
        rest=Rest(round_.draft.index, pause_ms), rounds=service.rounds + 1,
    )  # fmt: skip


def _move_group(child: Service, round_: Round) -> bool:
    """A child that cannot start where its group is takes the group elsewhere, if its definition says so (SPEC 6.5)."""
    parents = list(round_.ancestors(child))
    if child.definition.child_failure != "group" or not parents:
        return False
    eldest = parents[-1]
    if maintenance_of(eldest, round_):
        return False
    shunned = (*eldest.failed, *round_.shunned(child))
    target = round_.place(replace(eldest, origin=eldest.node, failed=shunned, target=NO_NODE))
    if target is None or target in shunned or eldest.state is not REGISTERED or eldest.intent:
        return False
    if is_frozen(eldest, round_.draft):
        return False
    reason = f"its child {child.name} cannot run on {round_.name(eldest.node)}"
    round_.put(replace(eldest, intent=True, origin=eldest.node, target=target, reason=reason), f"is to move: {reason}")
    return True


def _lost_while_starting(service: Service, round_: Round, detail: str) -> None:
    """A loss while starting counts as a failed start; the next start is told so (SPEC 6.7, 7.7)."""
    unclean = _left_behind(service, round_)
    round_.put(_released(service, reason=f"lost while starting: {detail}", unclean=unclean), detail)


def _lost(service: Service, round_: Round, detail: str) -> None:
    """From registered, stopping or recovering: recover first if the service has a command for it (SPEC 6.6)."""
    unclean = _left_behind(service, round_)
    service = replace(service, launched=False, broken="", owes=False, cleaning=False, unclean=unclean)
    if service.definition.recovery_command:
        previous = service.previous if service.state is RECOVERING else service.node
        waiting = replace(
            service, state=RECOVERING, node=NO_NODE, incarnation=0, generation=round_.draft.index,
            intent=service.wanted, origin=NO_NODE, target=NO_NODE, previous=previous, reason=detail, cause="",
        )  # fmt: skip
        if unclean or maintenance_of(service, round_) or not _begin_recovery(waiting, round_):
            waits_for = "until that machine is clean of it" if unclean else "for an allowable node"
            round_.put(waiting, f"{detail}; its recovery waits {waits_for}")
        return
    released = _released(service, intent=service.wanted, origin=NO_NODE, target=NO_NODE, reason=detail, cause="")
    round_.put(released, detail)


def _freed(service: Service, round_: Round, _detail: str) -> None:
    _begin_recovery(service, round_)


def _begin_recovery(service: Service, round_: Round) -> bool:
    node = round_.place(service)
    if node is None:
        return False
    round_.put(_assigned(service, round_, RECOVERING, node, service.reason), f"recovering on {round_.name(node)}")
    return True


def _recovered(service: Service, round_: Round, _detail: str) -> None:
    after = _released(service, failed=(), intent=service.wanted, previous=service.previous)
    round_.put(after, f"recovered on {round_.name(service.node)}")


def _recovery_failed(service: Service, round_: Round, detail: str) -> None:
    failed = (*(node for node in service.failed if node != service.node), service.node)
    waiting = replace(service, node=NO_NODE, incarnation=0, failed=failed)
    if not _begin_recovery(waiting, round_):
        names = ", ".join(round_.name(node) for node in failed)
        cause = f"recovery failed on {names}; last: {detail}; fix the cause, then: muster service register "
        stuck = _released(service, previous=service.previous, cause=cause + service.name, intent=False)
        round_.put(replace(stuck, failed=()), "recovery failed")


def _stop(service: Service, round_: Round, detail: str) -> None:
    """End it on its node: with transfer intent if it is to go on elsewhere (SPEC 6.7)."""
    service, stop = _with_failures_answered(service, round_), why_stop(service, round_)
    moves = stop is not None and stop.moves and service.wanted
    origin = service.node if moves else NO_NODE
    reason = stop.reason if stop is not None else detail
    target = NO_NODE if service.target == origin else service.target  # it would be brought back, and so on (P6.30)
    leaving = replace(
        service, intent=moves, origin=origin, target=target, cause="", reason=reason, failed=(), broken="",
        cleaning=False,
    )  # fmt: skip
    if not service.definition.stop_command and not service.launched and not service.owes:
        _stopped(leaving, round_, reason)  # nothing of it is running (SPEC 6.7)
        return
    stopping = _assigned(leaving, round_, STOPPING, service.node, reason)
    round_.put(stopping, f"stopping on {round_.name(service.node)} ({reason})")


def _stopped(service: Service, round_: Round, _detail: str) -> None:
    _released_by(service, round_, f"stopped on {round_.name(service.node)}")


def _released_by(service: Service, round_: Round, how: str) -> None:
    """Its stop has come to its end: `how`, in words."""
    if service.cleaning and service.node in service.failed:
        _give_start_up(service, round_, service.reason.removeprefix(_START_FAILED))
        return
    after = _released(service)
    if not service.wanted:
        after = replace(after, matured=False)
    elif service.ended is Ended.FATAL:
        after = replace(after, cause=f"{service.reason}; {_advice(service)}", failures=(), exhausted=())
    if service.intent and not _goes_on(after, round_):  # the service is down: the next registration is a first one
        after = replace(after, intent=False, origin=NO_NODE, target=NO_NODE, matured=False)
    round_.put(after, how)


def _advice(service: Service) -> str:
    return f"fix the cause, then apply its definition, or: muster service register {service.name}"


def _goes_on(service: Service, round_: Round) -> bool:
    """Whether the transfer has somewhere to go: a child follows its parent as long as that one is on its way."""
    parent = round_.parent(service)
    on_its_way = parent is not None and parent.intent and service.wanted
    return on_its_way or _place_after(service, round_) is not None


def _abandon_transfer(service: Service, round_: Round, _detail: str) -> None:
    """Nothing waits for a start that cannot come: the node that it left may go (P6.18, SPEC 6.8)."""
    is_stuck = _place_after(service, round_) is None  # else it is held up by maintenance only
    if is_stuck and (service.failed or round_.exhausted(service)):
        _cannot_start(service, round_)
    else:
        round_.put(replace(service, intent=False, origin=NO_NODE, target=NO_NODE), "its transfer has nowhere to go")


def _stop_failed(service: Service, round_: Round, detail: str) -> None:
    """The service may still run: block rather than run it twice, or end its node, as its policy says (SPEC 6.6)."""
    name, node = service.name, round_.name(service.node)
    if service.owes and not service.cleaning and service.definition.stop_command:
        _clean_up(service, round_, f"stop failed: {detail}")  # where that succeeds it has stopped and left nothing
        return
    command = round_.command(service, service.node)
    if not service.owes and command is not None and not command.left:  # P6.35
        _released_by(service, round_, f"stopped on {node}: its stop command failed, and nothing of it runs any more")
        return
    what = "cleanup" if is_cleanup(service) else "stop"
    if service.definition.stop_failure == "evict":
        cause = f"{what} failed on {node}: {detail}; {node} is forced out, as the stop policy of {name} says"
        member = round_.draft.member(service.node)
        if member.eviction is None:
            condemn(round_.draft, member, f"the {what} of {name} failed there: {detail}")
    else:
        advice = (
            f"fix the stop command and apply its definition, or try the stop again: muster service deregister {name}; "
            f"once you are sure that nothing of it runs there: muster service confirm-stopped {name}; "
            f"or force the node out: muster node evict {node}"
        )
        if what == "cleanup":
            advice = (
                f"fix its cleanup_command, or clear that machine by hand, then: muster service confirm-clean {name}"
            )
        cause = f"{what} failed on {node}: {detail}; {advice}"
    round_.put(replace(service, cause=cause), f"{what} failed on {node}")


def _begin_start(service: Service, round_: Round, _detail: str) -> None:
    if service.cause and service.rest is not None and not rests_ms(service, round_):
        service = replace(service, failed=())  # its pause is over: each node may be tried again (P6.36)
    node = round_.place(service)
    if node is None:
        _cannot_start(service, round_)
        return
    reason = service.reason if service.matured else ""  # a first registration follows from nothing in the past
    service = replace(
        service, matured=True, waits_since=0, cause="", broken="", reason=reason, rest=None, ended=Ended.FAILED,
        as_started=None,
    )  # fmt: skip
    if node == service.origin:
        service = replace(service, origin=NO_NODE)  # back where it was: the transfer has found no other place
    definition = service.definition
    if definition.start_command or definition.run:
        starting = _assigned(service, round_, STARTING, node, service.reason or "registered")
        starting = replace(starting, launched=True, owes=bool(definition.cleanup_command), cleaning=False)
        round_.put(starting, f"starting on {round_.name(node)}")
    else:
        _started(_assigned(service, round_, REGISTERED, node, ""), round_, "")


def _cannot_start(service: Service, round_: Round) -> None:
    """No node is left: wait for one to come up, or say which ones have failed (SPEC 6.6, 6.7)."""
    exhausted = round_.exhausted(service)
    given_up = replace(service, intent=False, origin=NO_NODE, target=NO_NODE)
    if (service.failed or exhausted) and _move_group(service, round_):
        round_.put(given_up, "its group is to move")
        return
    nowhere = "no other allowable node is up"
    if service.definition.parent:
        nowhere = f"it can run only where its parent {service.definition.parent} does"
    if service.failed and round_.place(replace(service, failed=())) is not None:
        round_.put(_given_up_for_now(given_up, round_, f"; {nowhere}"), "start failed everywhere")
    elif exhausted and round_.place(replace(service, exhausted=(), failed=())) is not None:
        names = ", ".join(sorted(round_.name(node) for node in exhausted))
        cause = (
            f"it failed too often on {names}; {nowhere}; last: {service.reason}; it is tried again when that is "
            f"{duration_text(service.definition.restart_window_ms)} ago; fix the cause, then: muster service clear "
        )
        round_.put(replace(given_up, cause=cause + service.name), "failed too often everywhere")
    elif service.intent:
        round_.put(given_up, "no allowable node is up")


def _assigned(service: Service, round_: Round, state: ServiceState, node: int, reason: str) -> Service:
    """The record with a command of a new generation for `node` (SPEC 7.7); but for a stop, of a new owner (P6.41)."""
    incarnation = round_.draft.member(node).incarnation
    generation, token = round_.draft.index, service.token
    if state is not STOPPING and round_.draft.cluster.active_version >= TOKENS:
        token = token_of(generation)
    return replace(
        service, state=state, node=node, incarnation=incarnation, generation=generation, reason=reason, token=token
    )


def _released(service: Service, **fields: object) -> Service:
    """The record de-registered; what it keeps is the caller's word."""
    base = {"state": DEREGISTERED, "node": NO_NODE, "incarnation": 0, "previous": service.node, "launched": False}
    return replace(service, **(base | {"owes": False, "cleaning": False, "as_started": None} | fields))


def _place_after(service: Service, round_: Round) -> int | None:
    return round_.place(service) if service.wanted else None


Rule = Callable[[Service, Round, str], None]


class Row(NamedTuple):
    """The rule of one state and event, and the states to which it may lead (docs/DIAGRAMS.md is drawn from them)."""

    rule: Rule
    leads_to: tuple[ServiceState, ...]


# SPEC 6.7 (Figs. 18-20) as data: rules P6.4 to P6.17 and P6.21 to P6.26 of docs/PROTOCOL.md, in this order.
RULES: dict[tuple[ServiceState, Event], Row] = {
    (DEREGISTERED, Event.WANTED): Row(_begin_start, (STARTING, REGISTERED, DEREGISTERED)),
    (STARTING, Event.SUCCEEDED): Row(_started, (REGISTERED,)),
    (STARTING, Event.FAILED): Row(_start_failed, (DEREGISTERED,)),
    (STARTING, Event.LOST): Row(_lost_while_starting, (DEREGISTERED,)),
    (STARTING, Event.UNWANTED): Row(_stop, (STOPPING,)),
    (REGISTERED, Event.UNWANTED): Row(_stop, (STOPPING, DEREGISTERED)),
    (REGISTERED, Event.LOST): Row(_lost, (RECOVERING, DEREGISTERED)),
    (STOPPING, Event.SUCCEEDED): Row(_stopped, (DEREGISTERED,)),
    (STOPPING, Event.FAILED): Row(_stop_failed, (STOPPING,)),
    (STOPPING, Event.LOST): Row(_lost, (RECOVERING, DEREGISTERED)),
    (RECOVERING, Event.FREED): Row(_freed, (RECOVERING,)),
    (RECOVERING, Event.SUCCEEDED): Row(_recovered, (DEREGISTERED,)),
    (RECOVERING, Event.FAILED): Row(_recovery_failed, (RECOVERING, DEREGISTERED)),
    (RECOVERING, Event.LOST): Row(_lost, (RECOVERING, DEREGISTERED)),
    (DEREGISTERED, Event.WAITS): Row(_await_maturity, (DEREGISTERED,)),
    (DEREGISTERED, Event.ALONE): Row(_wait_no_more, (DEREGISTERED,)),
    (DEREGISTERED, Event.ABANDONED): Row(_abandon_transfer, (DEREGISTERED,)),
    (REGISTERED, Event.MOVES): Row(_announce_move, (REGISTERED,)),
    (REGISTERED, Event.PREFERRED): Row(_take_over, (STOPPING, DEREGISTERED, REGISTERED)),
    (REGISTERED, Event.BROKEN): Row(_failed_in_service, (STOPPING, DEREGISTERED, REGISTERED)),
}
