"""What a node answers about fencing: how each node is fenced, what was asked, and a test by a person (P7.22-P7.29)."""

import asyncio
from typing import Any

from muster.core.effects import CallFenceAgent
from muster.core.fencing.proofs import proofs_of
from muster.daemon.shell.daemon import Daemon
from muster.daemon.socket.queries import NodeView
from muster.records.database import Database
from muster.records.fencing import FenceDevice, FenceMethod, FencePast, FencePhase, Fencing, Parameters
from muster.records.refusal import ControlRefused
from muster.records.terms import NO_NODE

Document = dict[str, Any]
WHERE = "query fence_test"
TESTED = ("monitor", "status")  # nothing that a test calls changes anything


def fencing(database: Database, view: NodeView) -> Document:
    """Devices and nodes: how each node is fenced, what is asked now, what became of it, which proofs there are."""
    return {
        "devices": {name: _device(database, view, each) for name, each in sorted(database.fence_devices.items())},
        "nodes": {database.name_of(node): _node(database, view, node) for node in sorted(database.nodes)},
    }


def _device(database: Database, view: NodeView, device: FenceDevice) -> Document:
    return {
        "agent": device.agent,
        "parameters": dict(device.parameters),
        "secrets": list(device.secrets),
        "from": [database.name_of(node) for node in device.askers],
        "timeout_ms": device.timeout_ms,
        "troubles": {
            database.name_of(node): told[device.name]
            for node, told in sorted(view.fence_troubles.items())
            if device.name in told
        },
    }


def _node(database: Database, view: NodeView, node: int) -> Document:
    plan, record = database.fence_plans.get(node), database.fencing.get(node) or Fencing(node)
    methods = plan.methods if plan is not None else ()
    asked = None
    if record.phase is not FencePhase.IDLE:
        asked = {
            "number": record.number,
            "incarnation": record.incarnation,
            "action": record.phase.word,
            "method": methods[record.method].name if record.method < len(methods) else "",
            "asked_of": None if record.asker == NO_NODE else database.name_of(record.asker),
            "since_ms": view.age_ms(record.since),
            "cause": record.cause,
        }
    return {
        "methods": [_method(method) for method in methods],
        "proofs": proofs_of(database, node, one_machine=view.one_machine, lease=view.lease(node)).words,
        "request": asked,
        "quarantined": record.quarantined,
        "fenced_lately": len(record.fenced),
        "history": [_past(database, view, past) for past in record.past],
    }


def _method(method: FenceMethod) -> Document:
    steps = [{"device": step.device, "parameters": dict(step.parameters)} for step in method.steps]
    return {"name": method.name, "action": method.action, "devices": steps}


def _past(database: Database, view: NodeView, past: FencePast) -> Document:
    return {
        "number": past.number,
        "incarnation": past.incarnation,
        "action": past.phase.word,
        "method": past.method,
        "asked_of": None if past.asker == NO_NODE else database.name_of(past.asker),
        "outcome": past.outcome.words,
        "detail": past.detail,
        "at_s": view.at_s(past.entry),
        "index": past.entry,
    }


async def test(daemon: Daemon, arguments: Document) -> Document:
    """Have this node call `monitor` of a device, or `monitor` and `status` of all of a node: that changes nothing."""
    name = arguments.get("name")
    if not isinstance(name, str) or arguments.keys() - {"name"}:
        raise ControlRefused("it takes `name`, of a device or a node, and nothing else", WHERE, "send that")
    database = daemon.node.database
    node = database.node_named(name)
    calls: list[tuple[FenceDevice, str, Parameters]] = []
    if name in database.fence_devices:
        device = database.fence_devices[name]
        calls.append((device, "monitor", device.parameters))
    elif node is not None and node in database.fence_plans:
        for method in database.fence_plans[node].methods:
            for step in method.steps:
                device = database.fence_devices[step.device]
                calls += [(device, action, (*device.parameters, *step.parameters)) for action in TESTED]
    elif node is not None:
        raise ControlRefused(f"nothing says how {name} is fenced", WHERE, "see muster fence method --help")
    else:
        known = ", ".join([*database.fence_devices, *(config.name for config in database.nodes.values())])
        raise ControlRefused(f"there is no fence device and no node {name!r}", WHERE, f"there are: {known}")
    answers = await asyncio.gather(*(_call(daemon, *call) for call in calls))
    return {"tested": name, "by": database.name_of(daemon.node.me), "calls": list(answers)}


async def _call(daemon: Daemon, device: FenceDevice, action: str, parameters: Parameters) -> Document:
    found = await daemon.fence_calls.ask(CallFenceAgent(0, device, action, parameters))
    # `status` of a node that is on has succeeded, too: it fails only as a proof
    says_on = action == "status" and not found.succeeded and "status: on" in found.detail.lower()
    says = "off" if action == "status" and found.succeeded else "on" if says_on else ""
    return {
        "device": device.name, "action": action, "works": found.succeeded or says_on, "says": says,
        "detail": "" if found.succeeded or says_on else found.detail,
    }  # fmt: skip
