"""Services: the master's side of registration, launch, transfer and recovery (SPEC 6.7, 6.8, 7.7).

Theory of operation. Each service is one record with a state. What may happen to it is an event; the table `RULES`
names for every (state, event) the rule that gives the next record; a pair that is not in the table cannot happen and
changes nothing. Each command to a node is a new generation: the index of the entry that gives it. Nodes learn of
their command from the committed record and repeat its result in their reports until the record has moved on.

Nothing changes a service on a node before that node has acknowledged the term with its report, or its incarnation is
proven to have stopped and the forced leave has reached the event manager's level (P6.2, P6.3).
"""

from collections.abc import Callable
from enum import Enum

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts, is_up
from muster.core.placement import choose, is_allowable, load_of
from muster.core.transition import EVENT_MANAGER, reached
from muster.records.messages import CommandState, Report
from muster.records.state import NodeState, Service, ServiceState
from muster.records.terms import NO_NODE

DEREGISTERED, STARTING, REGISTERED, STOPPING, RECOVERING = ServiceState

ACTION_OF = {STARTING: "start", STOPPING: "stop", RECOVERING: "recovery"}


class Event(Enum):
    """What can happen to a service."""

    LOST = "its node is proven dead"
    SUCCEEDED = "its command succeeded"
    FAILED = "its command failed"
    UNWANTED = "it is to end where it is: de-registered, or its node leaves"
    WANTED = "it is to run and does not"
    FREED = "a node for its recovery may be up"


class Round:
    """One pass over all services: the draft, the facts, and the load as it grows while placing."""

    def __init__(self, draft: Draft, facts: Facts) -> None:
        self.draft, self.facts = draft, facts
        self.load = load_of(draft.database)
        self._commands: dict[int, dict[str, CommandState]] = {}  # by identity: the facts keep the reports alive
        self.up = [
            member.node for member in draft.members.values() if is_up(member) and facts.report(member) is not None
        ]

    def commands_of(self, report: Report) -> dict[str, CommandState]:
        """What a node's report says of each service; a node reports one command a service."""
        if id(report) not in self._commands:
            self._commands[id(report)] = {command.service: command for command in report.commands}
        return self._commands[id(report)]

    def place(self, service: Service) -> int | None:
        """Choose a node: the operator's target once, else by the definition; away from a transfer's origin."""
        nodes = self.draft.database.nodes
        target = service.target
        definition = service.definition
        if target in self.up and target not in service.failed and is_allowable(definition, nodes[target].name):
            return target
        chosen = choose(definition, nodes, self.up, self.load, {*service.failed, service.origin})
        if chosen is None and service.origin not in service.failed:
            chosen = choose(definition, nodes, self.up, self.load, service.failed)  # back rather than nowhere
        return chosen

    def put(self, service: Service, cause: str) -> None:
        """Keep a new record; causes name the service."""
        if service.node != NO_NODE:
            self.load[service.node] = self.load.get(service.node, 0) + 1
        self.draft.put(service, f"{service.name}: {cause}" if cause else "")

    def name(self, node: int) -> str:
        """The node's name."""
        return self.draft.name(node)


def advance(draft: Draft, facts: Facts) -> None:
    """Let every service take at most one step (P6.1)."""
    if not facts.services_open:
        return
    round_ = Round(draft, facts)
    for service in list(draft.services.values()):
        happened = _what_happens(service, round_)
        if happened is not None:
            event, detail = happened
            RULES[service.state, event](service, round_, detail)
        elif service.removed and service.state is DEREGISTERED:
            draft.forget("service", service.name, f"{service.name}: forgotten")


def is_lost(service: Service, draft: Draft) -> bool:
    """Whether the node of the service is proven dead and its forced leave has reached the event manager (P6.3)."""
    if service.node == NO_NODE:
        return False
    member = draft.member(service.node)
    if member.incarnation != service.incarnation or member.state is NodeState.INACTIVE:
        return True
    transition = draft.transition_of(service.node)
    return member.state is NodeState.FORCED_LEAVING and (transition is None or reached(transition, EVENT_MANAGER))


def _what_happens(service: Service, round_: Round) -> tuple[Event, str] | None:
    """The event for this service in this round, if any."""
    if service.state is DEREGISTERED:
        wanted = service.wanted and not service.cause and not service.removed
        return (Event.WANTED, "") if wanted else None
    if service.node == NO_NODE:
        return Event.FREED, ""
    if is_lost(service, round_.draft):
        return Event.LOST, f"{round_.name(service.node)} was lost"
    result = _result(service, round_)
    if result is not None and result.finished:
        return (Event.SUCCEEDED if result.succeeded else Event.FAILED), result.detail
    return _unwanted(service, round_)


def _result(service: Service, round_: Round) -> CommandState | None:
    """What the service's node says of the command of the present generation."""
    report = round_.facts.report(round_.draft.member(service.node))
    if report is None or service.cause:
        return None
    wanted = (service.generation, ACTION_OF.get(service.state))
    command = round_.commands_of(report).get(service.name)
    return command if command is not None and (command.generation, command.action) == wanted else None


def _unwanted(service: Service, round_: Round) -> tuple[Event, str] | None:
    if service.state not in (STARTING, REGISTERED):
        return None
    member = round_.draft.member(service.node)
    if round_.facts.report(member) is None or not counts(member):
        return None
    if not service.wanted:
        return Event.UNWANTED, "de-registered by an operator"
    if member.state is NodeState.LEAVING:
        return Event.UNWANTED, f"{round_.name(service.node)} leaves"
    if service.state is REGISTERED and service.intent and service.origin == service.node:
        return Event.UNWANTED, "transferred by an operator"
    return None


def _started(service: Service, round_: Round, _detail: str) -> None:
    done = replace(
        service, state=REGISTERED, intent=False, origin=NO_NODE, target=NO_NODE, failed=(), reason="", cause=""
    )
    round_.put(done, f"registered on {round_.name(service.node)}")


def _start_failed(service: Service, round_: Round, detail: str) -> None:
    failed = (*service.failed, service.node)
    after = _released(service, failed=failed, target=NO_NODE, reason=f"start failed on {round_.name(service.node)}")
    if _place_after(after, round_) is None:
        names = ", ".join(round_.name(node) for node in failed)
        cause = f"start failed on {names}; last: {detail}; mend it, then: muster service register {service.name}"
        after = replace(after, cause=cause, intent=False, origin=NO_NODE, failed=())
    round_.put(after, f"start failed on {round_.name(service.node)}: {detail}")


def _lost_while_starting(service: Service, round_: Round, detail: str) -> None:
    """A loss while starting counts as a failed start; the next start is told so (SPEC 6.7, 7.7)."""
    round_.put(_released(service, reason=f"lost while starting: {detail}"), detail)


def _lost(service: Service, round_: Round, detail: str) -> None:
    """From registered, stopping or recovering: recover first if the service has a command for it (SPEC 6.6)."""
    service = replace(service, launched=False)
    if service.definition.recovery_command:
        previous = service.previous if service.state is RECOVERING else service.node
        waiting = replace(
            service, state=RECOVERING, node=NO_NODE, incarnation=0, generation=round_.draft.index,
            intent=service.wanted, origin=NO_NODE, target=NO_NODE, previous=previous, reason=detail, cause="",
        )  # fmt: skip
        if not _begin_recovery(waiting, round_):
            round_.put(waiting, f"{detail}; its recovery waits for an allowable node")
        return
    round_.put(_released(service, intent=service.wanted, origin=NO_NODE, reason=detail, cause=""), detail)


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
    failed = (*service.failed, service.node)
    waiting = replace(service, node=NO_NODE, incarnation=0, failed=failed)
    if not _begin_recovery(waiting, round_):
        names = ", ".join(round_.name(node) for node in failed)
        cause = f"recovery failed on {names}; last: {detail}; mend it, then: muster service register {service.name}"
        stuck = _released(service, previous=service.previous, cause=cause, intent=False)
        round_.put(replace(stuck, failed=()), "recovery failed")


def _stop(service: Service, round_: Round, detail: str) -> None:
    """Leave the node: with transfer intent, unless it is not wanted any more (SPEC 6.7)."""
    intent = service.wanted
    origin = service.node if intent else NO_NODE
    leaving = replace(service, intent=intent, origin=origin, cause="", reason=detail, failed=())
    if not service.definition.stop_command and not service.launched:
        round_.put(_released(leaving), detail)  # nothing of ours can be running (SPEC 6.7)
        return
    stopping = _assigned(leaving, round_, STOPPING, service.node, detail)
    round_.put(stopping, f"stopping on {round_.name(service.node)} ({detail})")


def _stopped(service: Service, round_: Round, _detail: str) -> None:
    after = _released(service)
    if _place_after(after, round_) is None:
        after = replace(after, intent=False, origin=NO_NODE, target=NO_NODE)
    round_.put(after, f"stopped on {round_.name(service.node)}")


def _stop_failed(service: Service, round_: Round, detail: str) -> None:
    """The service may still run: block rather than run it twice (SPEC 6.6)."""
    name, node = service.name, round_.name(service.node)
    advice = f"mend it, then: muster service deregister {name}, or: muster node evict {node}"
    cause = f"stop failed on {node}: {detail}; {advice}"
    round_.put(replace(service, cause=cause), f"stop failed on {node}")


def _begin_start(service: Service, round_: Round, _detail: str) -> None:
    node = round_.place(service)
    if node is None:
        _cannot_start(service, round_)
        return
    if node == service.origin:
        service = replace(service, origin=NO_NODE)  # back where it was: the transfer has found no other place
    if service.definition.start_command:
        starting = _assigned(service, round_, STARTING, node, service.reason or "registered")
        round_.put(replace(starting, launched=True), f"starting on {round_.name(node)}")
    else:
        _started(_assigned(service, round_, REGISTERED, node, ""), round_, "")


def _cannot_start(service: Service, round_: Round) -> None:
    """No node is left: wait for one to come up, or say which ones have failed (SPEC 6.6, 6.7)."""
    given_up = replace(service, intent=False, origin=NO_NODE, target=NO_NODE)
    if round_.place(replace(service, failed=())) is not None:
        names = ", ".join(round_.name(node) for node in service.failed)
        cause = f"start failed on {names}, and no other allowable node is up; mend it, then: muster service register"
        round_.put(replace(given_up, cause=f"{cause} {service.name}", failed=()), "start failed everywhere")
    elif service.intent:
        round_.put(given_up, "no allowable node is up")


def _assigned(service: Service, round_: Round, state: ServiceState, node: int, reason: str) -> Service:
    """The record with a command of a new generation for `node` (SPEC 7.7)."""
    incarnation = round_.draft.member(node).incarnation
    generation = round_.draft.index
    return replace(service, state=state, node=node, incarnation=incarnation, generation=generation, reason=reason)


def _released(service: Service, **fields: object) -> Service:
    """The record de-registered; what it keeps is the caller's word."""
    base = {"state": DEREGISTERED, "node": NO_NODE, "incarnation": 0, "previous": service.node, "launched": False}
    return replace(service, **(base | fields))


def _place_after(service: Service, round_: Round) -> int | None:
    return round_.place(service) if service.wanted else None


Rule = Callable[[Service, Round, str], None]

# SPEC 6.7 (Figs. 18-20) as data: rules P6.4 to P6.17 of docs/PROTOCOL.md, in this order.
RULES: dict[tuple[ServiceState, Event], Rule] = {
    (DEREGISTERED, Event.WANTED): _begin_start,
    (STARTING, Event.SUCCEEDED): _started,
    (STARTING, Event.FAILED): _start_failed,
    (STARTING, Event.LOST): _lost_while_starting,
    (STARTING, Event.UNWANTED): _stop,
    (REGISTERED, Event.UNWANTED): _stop,
    (REGISTERED, Event.LOST): _lost,
    (STOPPING, Event.SUCCEEDED): _stopped,
    (STOPPING, Event.FAILED): _stop_failed,
    (STOPPING, Event.LOST): _lost,
    (RECOVERING, Event.FREED): _freed,
    (RECOVERING, Event.SUCCEEDED): _recovered,
    (RECOVERING, Event.FAILED): _recovery_failed,
    (RECOVERING, Event.LOST): _lost,
}
