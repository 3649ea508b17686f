"""Why a service is where it is, or is not anywhere: the verdict of each rule, in plain words (SPEC 8.2).

Nothing is judged here. The rules about a service as a whole are those of `conditions.OBSTACLES`, those about each node
are `Placement`'s; both decide by the very predicates that explain. So an explanation cannot differ from a decision.

Decisions of the past are kept as what they were made of (`PlacedTogether`), and explained when somebody asks: each by
the same placement on the same snapshot, with the services that the same entry had placed before it.
"""

from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct

from muster.core.boot_advice import SYSTEMD, advice_for_any
from muster.core.services import instances
from muster.core.services.conditions import (
    OBSTACLES,
    immaturity,
    maintenance_of,
    not_clean,
    preferred_node,
    why_frozen,
    why_stop,
    working_children,
)
from muster.core.services.placement import NodeVerdict, Placement, Rule
from muster.core.services.redefinition import pending_words
from muster.core.services.round import Round
from muster.records.nodes import NodeConfig
from muster.records.placements import PlacedTogether, Wish
from muster.records.services import Service, ServiceState
from muster.records.terms import NO_NODE

GROUP = "group"  # the rule about the nodes of a child: it goes where its parent is
_ADVICE = ("; fix ", "; mend ")  # how a recorded cause goes on with what to do; the second in older records (P10.14)
MAXIMUM_NAMED = 4  # nodes in a sentence
INSTANCES = "instances"  # the rule about the nodes of a service that is placed on all of them


class Finding(Struct, frozen=True, array_like=True):
    """The verdict of one rule about the service as a whole."""

    rule: str
    holds: bool  # it does not keep the service from running
    words: str


class Explanation(Struct, frozen=True, array_like=True):
    """What every rule says of one service now."""

    summary: str
    findings: tuple[Finding, ...]
    verdicts: tuple[NodeVerdict, ...]  # where it would go if it were placed now
    next_step: str  # what a person can do about it, a command where there is one; empty where nothing is needed


def explain_past(placed: PlacedTogether, position: int) -> tuple[NodeVerdict, ...]:
    """Why the decision at `position` came out as it did, node by node."""
    snapshot, decision = placed.snapshot, placed.decisions[position]
    if decision.parent:
        return _with_parent(snapshot.nodes, decision.parent, decision.node)
    load = dict(snapshot.load)
    for before in placed.decisions[:position]:
        if before.node != NO_NODE:
            load[before.node] = load.get(before.node, 0) + 1
    placement = Placement(snapshot.nodes, snapshot.up, load, snapshot.performance, snapshot.withheld)
    return tuple(_explained(placement, decision.wish, placed.down))


def unexplained(placed: PlacedTogether) -> list[str]:
    """The decisions whose explanation names another node than the one that was taken: there must be none."""
    found = []
    for position, decision in enumerate(placed.decisions):
        chosen = [verdict.node for verdict in explain_past(placed, position) if verdict.chosen]
        if chosen != ([] if decision.node == NO_NODE else [decision.node]):
            found.append(f"{decision.service} is {decision.state} on {decision.node}, explained as {chosen}")
    return found


def explain(service: Service, round_: Round, boots: str = SYSTEMD) -> Explanation:
    """What every rule says of the service now. `boots`: the command that boots a node."""
    findings = tuple(_findings(service, round_))
    verdicts = _verdicts(service, round_)
    if service.state is ServiceState.DEREGISTERED and not instances.is_template(service):
        summary, next_step = _why_down(service, findings, verdicts, boots)
    else:
        summary, next_step = _why_here(service, round_)
    return Explanation(summary, findings, verdicts, next_step)


def _findings(service: Service, round_: Round) -> list[Finding]:
    found = []
    if not round_.facts.services_open:
        words = "the new master waits until every member has shown what it runs"
        found.append(Finding("inventory", False, words))
    if service.state is ServiceState.DEREGISTERED:
        for obstacle in OBSTACLES:
            words = obstacle.test(service, round_)
            found.append(Finding(obstacle.rule, not words, words or obstacle.fine))
        return found
    if frozen := why_frozen(service, round_):
        return [*found, Finding("silence", False, frozen)]
    stop = why_stop(service, round_) if service.node != NO_NODE else None
    found.append(Finding("stay", stop is None, f"it must end here: {stop.reason}" if stop else "nothing ends it here"))
    if service.cause:
        found.append(Finding("stuck", False, service.cause))
    if service.broken:
        found.append(Finding("failure", False, f"it has failed here: {service.broken}"))
    maintenance = maintenance_of(service, round_)
    found.append(Finding("maintenance", not maintenance, maintenance or "neither it nor its node is in maintenance"))
    if service.state is ServiceState.REGISTERED and service.definition.free_transfer:
        node = preferred_node(service, round_)
        words = f"{round_.name(node)} takes it over now" if node is not None else "no node takes it over now"
        found.append(Finding("free transfer", node is None, words))
    return found


def _verdicts(service: Service, round_: Round) -> tuple[NodeVerdict, ...]:
    nodes = round_.draft.database.nodes
    if instances.is_template(service):
        return _of_instances(service, round_)
    if service.definition.parent and service.state is not ServiceState.RECOVERING:
        parent = round_.parent(service)
        node = parent.node if parent is not None and parent.state is ServiceState.REGISTERED else NO_NODE
        return _with_parent(nodes, service.definition.parent, node, round_.shunned(service))
    placement = round_.placement
    if service.node != NO_NODE:
        placement = placement.without(service.node)
    down = {node: words for node in nodes if (words := round_.why_down(node))}
    return tuple(_explained(placement, round_.wish(service), down))


def _explained(placement: Placement, wish: Wish, down: Mapping[int, str]) -> list[NodeVerdict]:
    return placement.explain(wish.definition, wish.excluded, wish.origin, wish.target, down)


def _with_parent(
    nodes: Mapping[int, NodeConfig], parent: str, node: int, shunned: Mapping[int, str] = MappingProxyType({})
) -> tuple[NodeVerdict, ...]:
    """The verdicts about a child's nodes: it has no choosing factors of its own (SPEC 6.5)."""
    found = []
    for each in sorted(nodes):
        here = each == node
        words = f"its parent {parent} is registered here" if here else f"its parent {parent} is not registered here"
        if here and each in shunned:
            found.append(NodeVerdict(each, nodes[each].name, Rule.EXCLUDED, False, False, f"{shunned[each]}; {words}"))
            continue
        found.append(NodeVerdict(each, nodes[each].name, GROUP, here, here, words))
    return tuple(sorted(found, key=lambda verdict: not verdict.chosen))


def _of_instances(template: Service, round_: Round) -> tuple[NodeVerdict, ...]:
    found = []
    for node, config in sorted(round_.draft.database.nodes.items()):
        instance = round_.draft.services.get(f"{template.name}{instances.SEPARATOR}{config.name}")
        if instance is None:
            rule = round_.placement.obstacle(template.definition, node)
            found.append(NodeVerdict(node, config.name, rule or INSTANCES, False, False, "it has no instance here"))
        else:
            chosen = instance.state is not ServiceState.DEREGISTERED
            words = f"its instance {instance.name} is {instance.state}; ask why of that one"
            found.append(NodeVerdict(node, config.name, INSTANCES, True, chosen, words))
    return tuple(found)


def _why_here(service: Service, round_: Round) -> tuple[str, str]:
    """The summary for a service that is at work, and the next step."""
    if instances.is_template(service):
        if service.waits_since and (waiting := immaturity(service, round_)):
            return f"{service.name} is not running: {waiting}", _NEXT_STEPS["maturity"]
        return f"{service.name} runs as one instance a node; its instances are {service.state}", ""
    if service.node == NO_NODE and (left := not_clean(service, round_)):
        return f"{service.name} is not recovered: {left}", _NEXT_STEPS["clean"].format(name=service.name, parent="")
    if service.node == NO_NODE:
        summary = f"{service.name} waits for a node where its recovery can run ({service.reason})"
        return summary, "boot an allowable node, or: muster status"
    where = f"{service.name} is {service.state} on {round_.name(service.node)}"
    if service.cause:
        told, step = _told_and_advice(service.cause)
        return f"{where} and stuck: {told}", step or _NEXT_STEPS["stop"].format(
            name=service.name, node=round_.name(service.node)
        )
    stop = why_stop(service, round_)
    if service.broken and stop is None:
        held = maintenance_of(service, round_)
        failed = f"{where}, and has failed there: {service.broken}"
        if held:
            return f"{failed}; nothing is done about it, as {held}", _NEXT_STEPS["maintenance"]
        if service.is_left_to_its_action:
            words = f"{service.name} has failed on {round_.name(service.node)}: {service.broken}"
            return f"{words}; only its `on_failure` acts on that", f"muster service restart {service.name}"
        return f"{failed}; its failure policy decides", ""
    if service.reason:
        where += f" ({service.reason})"
    if words := pending_words(service):
        where += f"; {words}"
    if stop is None:
        return where, f"muster service restart {service.name}" if words else ""
    where += f"; it is about to end there: {stop.reason}"
    child = _held_by(service, round_)
    if child is None:
        return where, ""
    cause = f", and stuck: {child.cause}" if child.cause else ""
    return f"{where}; first its child {child.name} ends, which is {child.state}{cause}", f"muster why {child.name}"


def _held_by(service: Service, round_: Round) -> Service | None:
    """The child that this service waits for before it may end: one that is stuck before others (P6.27)."""
    children = working_children(service, round_)
    return next((child for child in children if child.cause), children[0] if children else None)


def _why_down(
    service: Service, findings: tuple[Finding, ...], verdicts: tuple[NodeVerdict, ...], boots: str
) -> tuple[str, str]:
    """The summary for a service that runs nowhere, and the next step: of the first rule that keeps it down."""
    first = next((finding for finding in findings if not finding.holds), None)
    name = service.name
    if first is not None:
        told, advice = _told_and_advice(first.words)
        step = _NEXT_STEPS.get(first.rule, "").format(name=name, parent=service.definition.parent)
        return f"{name} is not running: {told}", advice or step
    if any(verdict.chosen for verdict in verdicts):
        chosen = next(verdict.name for verdict in verdicts if verdict.chosen)
        return f"{name} is about to start on {chosen}", ""
    allowable = [v for v in verdicts if v.rule not in (Rule.NOT_ALLOWABLE, Rule.DISALLOWED, Rule.NOT_CONFIGURED)]
    if any(verdict.rule == Rule.EXCLUDED for verdict in allowable):
        words = "it has failed on every allowable node that is up"
        return f"{name} is not running: {words}", f"fix the cause, then: muster service clear {name}"
    if not allowable:
        words = "no configured node is allowable for it"
        return f"{name} is not running: {words}", "allow one in its definition, then: muster apply FILE"
    names = sorted(verdict.name for verdict in allowable)
    more = " or another" if len(names) > MAXIMUM_NAMED else ""
    nodes = " or ".join(names[:MAXIMUM_NAMED]) + more
    return f"{name} is not running: no allowable node is up", advice_for_any(nodes, boots)


def _told_and_advice(cause: str) -> tuple[str, str]:
    """What a recorded cause tells, and what it says to do about it; that is empty where it says nothing of the kind."""
    for mark in _ADVICE:
        told, found, advice = cause.rpartition(mark)
        if found:
            return told, mark.removeprefix("; ") + advice
    return cause, ""


_NEXT_STEPS = {
    "inventory": "wait a moment; if it lasts, `muster status` names the member that is silent",
    "definition": "apply its definition again: muster apply FILE",
    "wanted": "muster service register {name}",
    "stop": "try the stop again: muster service deregister {name}; once you are sure that nothing of it runs there: "
    "muster service confirm-stopped {name}; or force the node out: muster node evict {node}",
    "stuck": "fix the cause, then: muster service clear {name}",
    "pause": "fix the cause; the service is started again by itself, or at once: muster service register {name}",
    "clean": "boot that node, or clear its machine by hand, then: muster service confirm-clean {name}",
    "maintenance": "when the work is done, end it: muster maintenance list, muster maintenance end",
    "group": "muster why {parent}",
    "maturity": "boot one of the nodes that it waits for, or wait",
}
