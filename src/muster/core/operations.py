"""Operations that people ask for: checked against one draft, carried out at most once (SPEC 7.8, 9.1).

Each either puts records into the draft and says what will happen, or refuses with what is wrong and what to do, and
changes nothing.
"""

import zlib

import msgspec
from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts, is_up
from muster.core.membership import condemn
from muster.core.placement import is_allowable
from muster.core.transition import open_forced_leave, open_leave
from muster.records.messages import (
    ApplyServices,
    DeregisterService,
    EvictNode,
    LeaveNode,
    OperationRequest,
    RegisterService,
    Request,
    TransferService,
)
from muster.records.registers import ProofKind
from muster.records.state import (
    Definition,
    Member,
    NodeState,
    Operation,
    Proof,
    Service,
    ServiceState,
)
from muster.records.terms import NO_NODE


class Refused(Exception):
    """The operation cannot be done; the message says why and what to do."""


def carry_out(request: Request, draft: Draft, facts: Facts) -> Operation:
    """Put what the operation changes into the draft, and the record of its outcome (P9.1).

    A refused one leaves nothing behind: every check comes before the first change.
    """
    try:
        operation = Operation(request.identity, draft.index, _dispatch(request.operation, draft, facts))
    except Refused as refusal:
        return Operation(request.identity, draft.database.index, str(refusal), refused=True)
    draft.put(operation)
    return operation


def _dispatch(operation: OperationRequest, draft: Draft, facts: Facts) -> str:
    match operation:
        case ApplyServices():
            return _apply(operation, draft, facts)
        case RegisterService(service=name):
            return _register(_service(draft, name), draft)
        case DeregisterService(service=name):
            return _deregister(_service(draft, name), draft)
        case TransferService(service=name, target=target):
            return _transfer(_service(draft, name), target, draft)
        case LeaveNode(node=name):
            return _leave(_member(draft, name), draft)
        case EvictNode(node=name):
            return _evict(_member(draft, name), operation, draft, facts)


def _apply(operation: ApplyServices, draft: Draft, facts: Facts) -> str:
    size = 2 * len(zlib.compress(msgspec.msgpack.encode(operation.definitions), level=1))
    free_bytes = facts.free_bytes()
    if size > free_bytes:
        raise Refused(
            f"the definitions need {size} bytes and the store has {max(0, free_bytes)} left for them: "
            "withdraw services, or make a new store with a larger --size (muster init)"
        )
    known = {config.name for config in draft.database.nodes.values()}
    for definition in operation.definitions:
        _check_nodes(definition, known)
    for name in operation.withdraw:
        _service(draft, name)
    defined = changed = 0
    for definition in operation.definitions:
        before = draft.services.get(definition.name)
        if before is None:
            defined += 1
            service = Service(definition, uid=draft.index, wanted=definition.auto_register)
            draft.put(service, f"{definition.name}: defined")
        elif before.definition != definition or before.removed:
            changed += 1
            wanted = definition.auto_register if before.removed else before.wanted
            draft.put(
                replace(before, definition=definition, removed=False, wanted=wanted), f"{definition.name}: redefined"
            )
    for name in operation.withdraw:
        draft.put(replace(draft.services[name], removed=True, wanted=False), f"{name}: withdrawn")
    return f"{defined} defined, {changed} changed, {len(operation.withdraw)} withdrawn"


def _check_nodes(definition: Definition, known: set[str]) -> None:
    named = {*definition.allowable_nodes, *definition.disallowable_nodes, *definition.ordered} - {"*"}
    unknown = sorted(named - known)
    if unknown:
        raise Refused(
            f"service {definition.name} names node {', '.join(unknown)}, which this cluster does not have; "
            f"it has {', '.join(sorted(known))}"
        )


def _register(service: Service, draft: Draft) -> str:
    if service.removed:
        raise Refused(f"{service.name} was withdrawn and is about to be forgotten: apply its definition again")
    if service.wanted and not service.cause and not service.failed:
        return f"{service.name} is wanted already and {service.state}"
    if service.state is ServiceState.STOPPING and service.cause:
        raise Refused(f"{service.name} may still be running: {service.cause}")
    draft.put(replace(service, wanted=True, cause="", failed=()), f"{service.name}: registration requested")
    return f"{service.name} will be registered"


def _deregister(service: Service, draft: Draft) -> str:
    if service.state is ServiceState.DEREGISTERED and not service.wanted:
        return f"{service.name} is de-registered already"
    if service.state is ServiceState.STOPPING and service.cause and counts(draft.member(service.node)):
        retried = replace(service, wanted=False, intent=False, cause="", generation=draft.index)
        draft.put(retried, f"{service.name}: stop tried again")
        return f"{service.name} will be stopped again"
    stays = service.state is ServiceState.DEREGISTERED
    changed = replace(service, wanted=False, intent=False, cause="" if stays else service.cause)
    draft.put(changed, f"{service.name}: de-registration requested")
    return f"{service.name} will be de-registered and stay down until it is registered again"


def _transfer(service: Service, target_name: str, draft: Draft) -> str:
    if service.state is not ServiceState.REGISTERED:
        next_step = service.cause or "wait until it is registered, or register it"
        raise Refused(f"{service.name} is {service.state}, only a registered service can be moved: {next_step}")
    here = draft.name(service.node)
    target = NO_NODE
    if target_name:
        target = _member(draft, target_name).node
        if target == service.node:
            return f"{service.name} is on {target_name} already"
    others = [
        member.node
        for member in draft.members.values()
        if is_up(member)
        and member.node != service.node
        and target in (NO_NODE, member.node)
        and is_allowable(service.definition, draft.name(member.node))
    ]
    if not others:
        wish = f"{target_name} is" if target_name else "no other node is"
        raise Refused(f"{service.name} stays on {here}: {wish} not joined and allowable for it (muster status)")
    draft.put(replace(service, intent=True, origin=service.node, target=target), f"{service.name}: transfer requested")
    return f"{service.name} will move from {here}" + (f" to {target_name}" if target_name else "")


def _leave(member: Member, draft: Draft) -> str:
    name = draft.name(member.node)
    match member.state:
        case NodeState.JOINING | NodeState.JOINED if draft.transition_of(member.node) is not None:
            draft.put(replace(member, leave_asked="asked to leave"), f"{name}: asked to leave while joining")
            return f"{name} will leave as soon as the level at work has joined"
        case NodeState.JOINED:
            open_leave(draft, member.node, "asked to leave")
            return f"{name} is leaving"
        case NodeState.LEAVING:
            return f"{name} is leaving already"
        case NodeState.INACTIVE:
            raise Refused(f"{name} is not a member now: there is nothing to leave")
        case _:
            raise Refused(f"{name} is {member.state}: wait until it has joined, or evict it (muster node evict {name})")


def _evict(member: Member, operation: EvictNode, draft: Draft, facts: Facts) -> str:
    name = draft.name(member.node)
    if not counts(member) and operation.confirmed_dead:
        return f"{name} is {member.state}"  # as was wanted; where no master was left, the word alone brought it about
    if not counts(member):
        raise Refused(f"{name} is {member.state}: there is nothing to force out")
    if operation.confirmed_dead:
        if facts.alive(member.node):
            raise Refused(
                f"{name} renews its lease at this moment, so it is not dead: evict it without confirming that"
            )
        proof = Proof(ProofKind.OPERATOR, member.node, member.incarnation, f"confirmed by hand: {operation.cause}")
        open_forced_leave(draft, member.node, proof)
        return f"{name} is being forced out on your word that it has stopped"
    if member.eviction is None:
        condemn(draft, member, operation.cause or "evicted by an operator")
    return f"{name} is condemned; it is forced out once it is proven to have stopped"


def _service(draft: Draft, name: str) -> Service:
    service = draft.services.get(name)
    if service is None:
        known = ", ".join(sorted(draft.services)) or "none"
        raise Refused(f"there is no service {name!r}; defined are: {known}")
    return service


def _member(draft: Draft, name: str) -> Member:
    node = draft.database.node_named(name)
    if node is None:
        known = ", ".join(config.name for config in draft.database.nodes.values())
        raise Refused(f"there is no node {name!r}; configured are: {known}")
    return draft.member(node)
