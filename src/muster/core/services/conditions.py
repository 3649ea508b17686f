"""When a service may start, must stop, or had better move: predicates on one snapshot (SPEC 6.3, 6.5, 6.8).

Each says why in words, so that the rules which act on it and the explanations that people read are the same code.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec.structs import replace

from muster.core.freezing import is_frozen, silent_node_of, unasked_node
from muster.core.services.placement import is_allowable, rank
from muster.core.services.round import Round
from muster.records.durations import duration_text
from muster.records.members import Member
from muster.records.service_limits import MAXIMUM_GENERATIONS
from muster.records.services import Definition, Ended, Service, ServiceState, Takeover
from muster.records.terms import NO_NODE

AT_WORK = (ServiceState.STARTING, ServiceState.REGISTERED, ServiceState.STOPPING)
MAXIMUM_TAKEOVERS = 8  # free transfers in progress at a time, of all services
TAKEOVER_HOLD_MS = 60_000  # after one free transfer of a service; twice as long after each further one
MAXIMUM_TAKEOVER_HOLD_MS = 3_600_000
RECENT_TAKEOVERS = 6


class StopReason(NamedTuple):
    """Why a service must end where it is; `moves`: it is to go on elsewhere, so with transfer intent (SPEC 6.7)."""

    reason: str
    moves: bool


def maintenance_of(service: Service, round_: Round) -> str:
    """What keeps Muster from acting on the service of its own accord, in words; empty where nothing does (P6.30)."""
    found = round_.draft.maintenance
    if not found:
        return ""
    keys = ["cluster/", f"service/{service.name}", f"service/{service.template}"]
    keys += [f"service/{ancestor.name}" for ancestor in round_.ancestors(service)]
    if service.node != NO_NODE:
        keys.append(f"node/{round_.name(service.node)}")
    for key in keys:
        if key in found:
            kind, _, subject = key.partition("/")
            return f"{kind} {subject}".strip() + " is in maintenance"
    return _maintenance_below(service, round_)


def _maintenance_below(service: Service, round_: Round) -> str:
    """Which service at work further down in its group is in maintenance, in words: it would have to end first."""
    below = working_children(service, round_)
    for _ in range(MAXIMUM_GENERATIONS):
        for child in below:
            keys = (f"service/{child.name}", f"service/{child.template}")
            if any(key in round_.draft.maintenance for key in keys):
                return f"{child.name}, which runs where it does and ends with it, is in maintenance"
        below = [grandchild for child in below for grandchild in working_children(child, round_)]
    return ""


def why_frozen(service: Service, round_: Round) -> str:
    """Which silent node keeps the service as it is, in words; empty where none does (P4.9)."""
    node = silent_node_of(service, round_.draft)
    if node == NO_NODE:
        return ""
    name, whose = round_.name(node), "it" if service.node == node else "its group"
    if node == unasked_node(round_.draft):
        return (
            f"the store was restored, and {name} may still run what it ran before; nothing is started before {name} "
            f"has booted, or is known to have stopped: muster node evict {name} --confirmed-dead"
        )
    return (
        f"{whose} was on {name}, which is silent and may still run it; nothing is done before {name} is known to have "
        f"stopped; once you are sure that it has: muster node evict {name} --confirmed-dead"
    )


def has_maturity(definition: Definition) -> bool:
    """Whether a first registration waits for anything at all (SPEC 6.3)."""
    return bool(definition.maturity_count or definition.maturity_time_ms)


def immaturity(service: Service, round_: Round) -> str:
    """What the first registration of the service waits for, in words; empty once the cluster is mature (P6.21)."""
    template = round_.draft.services.get(service.template) if service.template else None
    if template is not None and not service.intent and not service.definition.parent:
        return immaturity(template, round_)  # its instances wait together
    definition = service.definition
    if not has_maturity(definition) or service.matured or service.intent or definition.parent:
        return ""
    up = [node for node in round_.up if is_allowable(definition, round_.name(node))]
    names = {round_.name(node) for node in up}
    if not up:
        return "no allowable node is up"
    lacking = []
    if definition.ordered and is_allowable(definition, definition.ordered[0]):
        if definition.ordered[0] in names:
            return ""
        lacking.append(f"its primary node {definition.ordered[0]}")
    if definition.maturity_count:
        if len(up) >= definition.maturity_count:
            return ""
        lacking.append(f"{definition.maturity_count} allowable nodes ({len(up)} up)")
    if definition.maturity_time_ms:
        waited_ms = round_.age_ms(service.waits_since) if service.waits_since else 0
        if service.waits_since and waited_ms >= definition.maturity_time_ms:
            return ""
        lacking.append(f"{definition.maturity_time_ms / 1000:g} s ({waited_ms / 1000:.0f} s so far)")
    return "the cluster is not mature for it; it waits for " + "; or for ".join(lacking)


def obstacle(service: Service, round_: Round) -> str:
    """What keeps a de-registered service from being started now, in words; empty where nothing does.

    Whether a node is left for it is `Round.place`'s to say.
    """
    return next((words for each in OBSTACLES if (words := each.test(service, round_))), "")


def _withdrawn(service: Service, _round: Round) -> str:
    return "its definition was withdrawn" if service.removed else ""


def _unwanted(service: Service, _round: Round) -> str:
    if service.wanted:
        return ""
    return "it is not wanted: an operator has de-registered it, or it registers on request only"


def _has_instances(service: Service, _round: Round) -> str:
    return "it runs as one instance a node" if service.definition.on_all and not service.template else ""


def _stuck(service: Service, round_: Round) -> str:
    return "" if may_try_again(service, round_) else service.cause


def may_try_again(service: Service, round_: Round) -> bool:
    """Whether a node is up that a service which failed on others has not tried yet, or may be tried again (SPEC 5.4,
    6.6): since its pause is over, or since what it failed there is longer ago than its window.
    """
    if service.ended is Ended.FATAL:
        return False
    if service.failed and service.rest is not None and rests_ms(service, round_) == 0:
        return True
    tried = (*service.failed, *round_.exhausted(service))
    is_about_them = bool(service.failed or service.exhausted)
    return is_about_them and round_.place(replace(service, failed=tried)) is not None


def rests_ms(service: Service, round_: Round) -> int:
    """For how long it is not yet to be started again after a failure (P6.36)."""
    rest = service.rest
    return max(0, rest.ms - round_.age_ms(rest.entry)) if rest is not None else 0


def _resting(service: Service, round_: Round) -> str:
    if service.cause or service.rest is None or not rests_ms(service, round_):
        return ""
    return f"it pauses for {duration_text(service.rest.ms)} before it is started again: {service.reason}"


def not_clean(service: Service, round_: Round) -> str:
    """What keeps the service from running elsewhere: what it may have left where it was lost (P6.32)."""
    left = service.unclean
    if left is None:
        return ""
    why = round_.facts.unclean(left.node, left.incarnation, service.identity)
    return f"{round_.name(left.node)} is not known to be clean of it: {why}" if why else ""


def _obstacle_of_group(service: Service, round_: Round) -> str:
    if not service.definition.parent:
        return ""
    parent = round_.parent(service)
    if parent is None:
        return f"its parent {service.definition.parent} is not defined"
    if parent.state is not ServiceState.REGISTERED:
        return f"its parent {parent.name} is {parent.state}"
    if (stop := why_stop(parent, round_)) is not None:
        return f"its parent {parent.name} is about to stop: {stop.reason}"
    bound = parent.definition.siblings
    if bound and round_.at_work_beside(service, ServiceState.STARTING) >= bound:
        return f"{bound} of its siblings are starting, and no more may at a time"
    return ""


class Obstacle(NamedTuple):
    """A rule about a de-registered service as a whole: `test` says what is in the way, `fine` that nothing is."""

    rule: str
    test: Callable[[Service, Round], str]
    fine: str


# In their order: the first that is in the way is the reason why the service is not started.
OBSTACLES = (
    Obstacle("definition", _withdrawn, "it is defined"),
    Obstacle("wanted", _unwanted, "it is wanted"),
    Obstacle("silence", why_frozen, "no silent node holds it or its group"),
    Obstacle("policy", _has_instances, "it is placed on one node"),
    Obstacle("stuck", _stuck, "it is not stuck"),
    Obstacle("pause", _resting, "it need not pause after a failure"),
    Obstacle("clean", not_clean, "no machine is known to hold what it left there"),
    Obstacle("maintenance", maintenance_of, "neither it nor the cluster is in maintenance"),
    Obstacle("group", _obstacle_of_group, "no parent keeps it waiting"),
    Obstacle("maturity", immaturity, "the cluster is mature for it, or it need not be"),
)


def why_stop(service: Service, round_: Round) -> StopReason | None:
    """Why a service that is starting or registered must end where it is; None if it may stay (P6.8, P6.9)."""
    own = _own_stop(service, round_)
    return own if own is not None or not service.definition.parent else _stop_of_group(service, round_)


def _own_stop(service: Service, round_: Round) -> StopReason | None:
    """Why it must end, but for what its group asks of it."""
    node = service.node
    if not service.wanted:
        done = service.ended is Ended.DONE
        return StopReason(service.reason if done else "de-registered by an operator", moves=False)
    if round_.is_leaving(node):
        return StopReason(f"{round_.name(node)} leaves", moves=True)
    if service.state is ServiceState.REGISTERED:
        if service.intent and service.origin == node:
            return StopReason(service.reason or "transferred by an operator", moves=True)
        is_over = service.ended in (Ended.DONE, Ended.FATAL) and not service.broken  # and that was acted upon
        if service.target == node or is_over or node in round_.exhausted(service):
            return StopReason(service.reason or "restarted by an operator", moves=False)
    if service.definition.parent or node not in round_.draft.standby:
        return None  # a child is moved with its parent
    if not maintenance_of(service, round_) and round_.elsewhere(service) is not None:
        return StopReason(f"{round_.name(node)} is on standby", moves=True)
    return None


def _stop_of_group(service: Service, round_: Round) -> StopReason | None:
    if round_.parent(service) is None:
        return StopReason(f"its parent {service.definition.parent} is no longer defined", moves=False)
    found: StopReason | None = None
    for generation, ancestor in enumerate(round_.ancestors(service)):
        who = f"its parent {ancestor.name}" if generation == 0 else f"{ancestor.name}, further up in its group,"
        if ancestor.state is not ServiceState.REGISTERED or ancestor.node != service.node:
            return found or StopReason(f"{who} is not registered here", moves=ancestor.intent)
        stop = _own_stop(ancestor, round_)
        if stop is not None:
            found = StopReason(f"{who} ends: {stop.reason}", stop.moves)
        if stop is not None and not (ancestor.intent and ancestor.definition.parent):
            break  # what moves with its own parent has the reason from further up
    return found


def working_children(service: Service, round_: Round) -> list[Service]:
    """The children that must have ended before this service may (SPEC 6.5)."""
    return [child for child in round_.children(service) if child.state in AT_WORK]


def preferred_node(service: Service, round_: Round) -> int | None:
    """The more preferred node that may take the service over now, free of cost (P6.25, SPEC 6.8)."""
    definition = service.definition
    preferences = definition.ordered or definition.unordered
    if not definition.free_transfer or not preferences or definition.parent or service.template or service.intent:
        return None
    here = rank(definition, round_.name(service.node))
    worse = [node for node in round_.present if not rank(definition, round_.name(node)) < here]
    if len(worse) == len(round_.present):
        return None  # as nearly always
    shunned = round_.exhausted(service)
    had_their_turn = {
        past.node for past in service.takeovers if round_.draft.member(past.node).incarnation == past.incarnation
    }
    node = round_.placement.choose(definition, {*worse, *shunned, *had_their_turn})
    if node is None or _is_held(service, round_) or not _was_notified(service, node, round_):
        return None
    return node if _takeovers_in_progress(round_) < MAXIMUM_TAKEOVERS else None


def with_takeover(service: Service, takeover: Takeover) -> tuple[Takeover, ...]:
    """Its takeovers with one more: of those that took place the recent ones."""
    barred = tuple(past for past in service.takeovers if not past.entry)
    begun = tuple(past for past in service.takeovers if past.entry)
    return (*barred, *(*begun, takeover)[-RECENT_TAKEOVERS:])


def with_none_by(service: Service, members: Iterable[Member]) -> tuple[Takeover, ...]:
    """Its takeovers, with none to come by the present incarnations of `members`: where it could not be started, or
    from where an operator has moved it (P6.25). They may take it over when they have joined anew, or after a clear.
    """
    if not service.definition.free_transfer:
        return service.takeovers
    known = {(past.node, past.incarnation) for past in service.takeovers}
    barred = {
        member.node: Takeover(0, member.node, member.incarnation)
        for member in members
        if (member.node, member.incarnation) not in known
    }
    kept = (past for past in service.takeovers if past.entry or past.node not in barred)
    return (*barred.values(), *kept)


def _is_held(service: Service, round_: Round) -> bool:
    """Whether the last free transfer is too recent: a node that comes and goes must not make the service flap."""
    begun = [past for past in service.takeovers if past.entry]
    recent = [past for past in begun if round_.age_ms(past.entry) < MAXIMUM_TAKEOVER_HOLD_MS]
    if not recent:
        return False
    hold_ms = min(TAKEOVER_HOLD_MS << (len(recent) - 1), MAXIMUM_TAKEOVER_HOLD_MS)
    return round_.age_ms(recent[-1].entry) < hold_ms


def _was_notified(service: Service, node: int, round_: Round) -> bool:
    """A node that has just joined hears first where the service is, and takes it over then (SPEC table 3)."""
    if not service.definition.notify_command:
        return True
    command = round_.command(service, node)
    return command is not None and command.finished


def _takeovers_in_progress(round_: Round) -> int:
    return sum(
        service.intent
        and bool(service.takeovers)
        and service.takeovers[-1].node == service.target
        and not is_frozen(service, round_.draft)
        for service in round_.draft.services.values()
    )
