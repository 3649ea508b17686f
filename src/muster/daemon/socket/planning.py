"""The query `plan`: what a change of services or nodes would start, stop and move (`core/operations/plan.py`)."""

from collections.abc import Collection
from typing import Any, NamedTuple

from muster.core.operations.plan import NodeChange, Plan, PlanRefused
from muster.daemon.socket.operations import read_operation
from muster.records.members import LeaveNode
from muster.records.names import shown
from muster.records.operations import OperationRequest
from muster.records.refusal import ControlRefused
from muster.records.terms import NO_NODE

MAXIMUM_CHANGES = 256
KINDS = ("join", "leave", "lose")
WHERE = "query plan"

Document = dict[str, Any]


class Change(NamedTuple):
    """What is to be tried."""

    operations: tuple[OperationRequest, ...]
    nodes: tuple[NodeChange, ...]


def read_change(arguments: Document) -> Change:
    """`operations`: [{"operation": NAME, "arguments": {...}}]; `nodes`: [{"kind": KIND, "node": NAME}].

    Raises `ControlRefused`.
    """
    unknown = sorted(arguments.keys() - {"operations", "nodes"})
    if unknown:
        raise ControlRefused(f"query 'plan' takes no argument {shown(unknown[0])}", WHERE, "allowed: operations, nodes")
    operations, nodes = arguments.get("operations", []), arguments.get("nodes", [])
    for name, value in (("operations", operations), ("nodes", nodes)):
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise ControlRefused(f"`{name}` is {shown(value)}", WHERE, "send a list of objects")
        if len(value) > MAXIMUM_CHANGES:
            raise ControlRefused(f"`{name}` has {len(value)} changes", WHERE, f"send at most {MAXIMUM_CHANGES}")
    return Change(tuple(_operation(each) for each in operations), tuple(_node_change(each) for each in nodes))


def _operation(document: Document) -> OperationRequest:
    name, values = document.get("operation"), document.get("arguments", {})
    if not isinstance(name, str) or not isinstance(values, dict):
        what = f"{shown(document)} is no operation"
        raise ControlRefused(what, WHERE, 'send {"operation": NAME, "arguments": {...}}')
    operation = read_operation(name, values)
    if isinstance(operation, LeaveNode):
        what = "a leave is a change of a node, not an operation, in a plan"
        raise ControlRefused(what, WHERE, 'send it in `nodes`, as {"kind": "leave", "node": NAME}')
    return operation


def _node_change(document: Document) -> NodeChange:
    kind, node = document.get("kind"), document.get("node")
    if kind not in KINDS or not isinstance(node, str):
        what = f"{shown(document)} is no change of a node"
        raise ControlRefused(what, WHERE, f'send {{"kind": KIND, "node": NAME}} with one of {", ".join(KINDS)}')
    return NodeChange(str(kind), node)


def assumptions(
    change: Change, *, one_machine: bool, fenced: Collection[str] = (), watched: Collection[str] = ()
) -> list[str]:
    """What the plan takes for granted of the nodes that it loses, and how that is in this very cluster.

    `fenced`: the nodes that fence agents can turn off. `watched`: those with a watchdog behind their lease.
    """
    found = []
    for lost in (each.node for each in change.nodes if each.kind == "lose"):
        if one_machine:
            words = f"{lost} is taken for proven dead: the kernel's word proves it here, as all nodes share one kernel"
        elif lost in fenced:
            words = f"{lost} is taken for proven dead: its fence agents prove it here, once their own status says off"
        elif lost in watched:
            words = f"{lost} is taken for proven dead: its watchdog proves it here, once its lease is over"
        else:
            words = (
                f"{lost} is taken for proven dead. In this cluster (scope shared) nothing proves that by itself "
                f"after a power cut. What {lost} holds waits until its machine boots again, or until you confirm its "
                f"end: muster node evict {lost} --confirmed-dead"
            )
        found.append(words)
    return found


def answer(plan: Plan, change: Change, names: dict[int, str]) -> Document:
    """The outlook as a document. Raises `ControlRefused` where the change would be refused."""
    try:
        outlook = plan.foresee(change.operations, change.nodes)
    except PlanRefused as refusal:
        raise ControlRefused(str(refusal), WHERE, "plan something else; see `muster status`") from refusal

    def name(node: int) -> str | None:
        return names.get(node) if node != NO_NODE else None

    steps = [
        {"service": step.service, "action": step.action, "node": name(step.node), "reason": step.reason}
        for step in outlook.steps
    ]
    services = {
        service: {
            "before": name(outlook.before.get(service, NO_NODE)),
            "after": name(outlook.after.get(service, NO_NODE)),
        }
        for service in sorted({*outlook.before, *outlook.after})
    }
    changed = {service: each for service, each in services.items() if each["before"] != each["after"]}
    return {
        "steps": steps,
        "changed": changed,
        "unchanged": len(services) - len(changed),
        "stuck": outlook.causes,
        "outcomes": list(outlook.outcomes),
    }
