"""Operations on fence devices, on how nodes are fenced, and on what is asked of them now (P7.27, P7.28)."""

from typing import assert_never

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts
from muster.core.fencing import fencing
from muster.core.membership.membership import condemn
from muster.core.refusal import Refused, configured
from muster.records.fencing import (
    MAXIMUM_DEVICES,
    FenceDevice,
    FenceNow,
    FencePhase,
    FencePlan,
    ReleaseNode,
    RemoveFenceDevice,
    SetFenceDevice,
    SetFenceMethods,
    device_problem,
    methods_problem,
)

FenceRequest = SetFenceDevice | RemoveFenceDevice | SetFenceMethods | FenceNow | ReleaseNode


def carry_out(operation: FenceRequest, draft: Draft, facts: Facts) -> str:
    """Put what the operation changes into the draft; what will happen, in words. Raises `Refused`."""
    match operation:
        case SetFenceDevice():
            return _set_device(operation, draft, facts)
        case RemoveFenceDevice(name=name):
            return _remove_device(name, draft)
        case SetFenceMethods():
            return _set_methods(operation, draft)
        case FenceNow():
            return _fence(operation, draft, facts)
        case ReleaseNode():
            return _release(operation, draft)
        case _:
            assert_never(operation)


def _refuse_if(problem: str) -> None:
    if problem:
        raise Refused(problem)


def _set_device(operation: SetFenceDevice, draft: Draft, facts: Facts) -> str:
    if not facts.fences:
        raise Refused(
            "the store of this cluster is of scope host: all nodes run under one kernel; it says itself when a node "
            "has ended, and a cut of its power would end them all"
        )
    _refuse_if(device_problem(operation))
    if operation.name not in draft.fence_devices and len(draft.fence_devices) >= MAXIMUM_DEVICES:
        raise Refused(f"there are {MAXIMUM_DEVICES} fence devices already: remove one that no node needs")
    askers = tuple(sorted({configured(draft, name).node for name in operation.askers}))
    device = FenceDevice(
        operation.name, operation.agent, operation.parameters, operation.secrets, askers, operation.timeout_ms
    )  # fmt: skip
    if draft.fence_devices.get(device.name) == device:
        return f"fence device {device.name} is so already"
    draft.put(device, f"fence device {device.name} set")
    where = f"; put its secrets into the file fence/{device.name} of each node's home" if device.secrets else ""
    return f"fence device {device.name} is set{where}"


def _remove_device(name: str, draft: Draft) -> str:
    if name not in draft.fence_devices:
        raise Refused(
            f"there is no fence device {name!r}; there are: {', '.join(sorted(draft.fence_devices)) or 'none'}"
        )
    users = sorted(
        draft.name(plan.node)
        for plan in draft.fence_plans.values()
        if any(step.device == name for method in plan.methods for step in method.steps)
    )
    if users:
        raise Refused(f"{', '.join(users)} is fenced by it: change that first (muster fence method --help)")
    draft.forget("fence_device", name, f"fence device {name} removed")
    return f"fence device {name} is removed"


def _set_methods(operation: SetFenceMethods, draft: Draft) -> str:
    config = configured(draft, operation.node)
    _refuse_if(methods_problem(operation.methods))
    for method in operation.methods:
        for step in method.steps:
            if step.device not in draft.fence_devices:
                known = ", ".join(sorted(draft.fence_devices)) or "none"
                raise Refused(f"there is no fence device {step.device!r}; there are: {known}")
            both = dict(step.parameters).keys() & set(draft.fence_devices[step.device].secrets)
            if both:
                raise Refused(f"{', '.join(sorted(both))} is a secret of {step.device}: it is no parameter of a method")
            if draft.fence_devices[step.device].askers == (config.node,):
                raise Refused(f"only {config.name} reaches {step.device}, and a node does not fence itself")
    before = draft.fence_plans.get(config.node)
    if (before.methods if before is not None else ()) == operation.methods:
        return f"{config.name} is fenced so already"
    if not operation.methods:
        draft.forget("fence_plan", str(config.node), f"{config.name}: not fenced any more")
        return f"{config.name} is not fenced any more"
    names = ", ".join(method.name for method in operation.methods)
    draft.put(FencePlan(config.node, operation.methods), f"{config.name}: is fenced by {names}")
    return f"{config.name} is fenced by {names}"


def _fence(operation: FenceNow, draft: Draft, facts: Facts) -> str:
    """An operator wants a member fenced, silent or not: it is condemned, and the request is made in the same entry."""
    config = configured(draft, operation.node)
    name, member = config.name, draft.member(config.node)
    if not counts(member):
        raise Refused(f"{name} is {member.state}: only a member is fenced")
    if config.node not in draft.fence_plans:
        raise Refused(f"nothing says how {name} is fenced: see muster fence method --help")
    record = draft.fencing.get(config.node)
    if record is not None and record.phase is FencePhase.OFF and record.incarnation == member.incarnation:
        return f"{name} is being fenced already"
    cause = operation.cause or "an operator has it fenced"
    if member.eviction is None:
        condemn(draft, member, cause)
    fencing.begin(draft, facts, config.node, cause)
    if draft.fencing[config.node].asker < 0:
        raise Refused(f"no other member can fence {name} now: see muster fence list")
    return f"{name} is fenced; it is forced out once the agent's own status says that it is off"


def _release(operation: ReleaseNode, draft: Draft) -> str:
    config = configured(draft, operation.node)
    record = draft.fencing.get(config.node)
    if record is None or not record.quarantined:
        return f"{config.name} is not in quarantine"
    draft.put(replace(record, quarantined=False, fenced=()), f"{config.name}: released from its quarantine")
    return f"{config.name} may join again; turn it on if it is off"
