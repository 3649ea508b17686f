"""Operations about services: define, register, move, restart, clear (SPEC 6.2, 6.8, 6.9, 5.4)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import assert_never

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts, is_up
from muster.core.refusal import Refused, member_named
from muster.core.services import instances, redefinition
from muster.core.services.conditions import with_none_by
from muster.core.services.placement import WILDCARD, is_allowable
from muster.core.services.redefinition import redefined, tried_again
from muster.records.service_limits import MAXIMUM_GENERATIONS, contradictions, group_problems
from muster.records.services import (
    ApplyServices,
    ClearService,
    ConfirmClean,
    ConfirmStopped,
    Definition,
    DeregisterService,
    Ended,
    FailService,
    RegisterService,
    RestartService,
    Service,
    ServiceState,
    TransferService,
)
from muster.records.terms import NO_NODE

ServiceOperation = (
    ApplyServices
    | RegisterService
    | DeregisterService
    | TransferService
    | FailService
    | RestartService
    | ClearService
    | ConfirmClean
    | ConfirmStopped
)
_NAMED = 8  # services, in an outcome


def carry_out(operation: ServiceOperation, draft: Draft, facts: Facts) -> str:
    """Put what the operation changes into the draft; what it did in words. Raises `Refused`."""
    match operation:
        case ApplyServices():
            return _apply(operation, draft)
        case RegisterService(service=name):
            return _register(service_named(draft, name), draft)
        case DeregisterService(service=name):
            return _deregister(service_named(draft, name), draft)
        case TransferService(service=name, target=target):
            return _transfer(service_named(draft, name), target, draft)
        case FailService(service=name):
            return _fail(service_named(draft, name), operation, draft)
        case RestartService(service=name, cause=cause):
            return _restart(service_named(draft, name), cause, draft)
        case ClearService(service=name):
            return _clear(service_named(draft, name), draft)
        case ConfirmStopped():
            return _confirm_stopped(operation, draft)
        case ConfirmClean():
            return _confirm_clean(operation, draft, facts)
        case _:
            assert_never(operation)


def _apply(operation: ApplyServices, draft: Draft) -> str:
    known = {config.name for config in draft.nodes.values()}
    for definition in operation.definitions:
        _check_nodes(definition, known)
    defined_here = {service.name: service.definition for service in draft.services.values() if not service.template}
    definitions = with_inherited_policy(operation.definitions, defined_here)
    for definition in definitions:
        if (before := draft.services.get(definition.name)) is not None:
            _check_redefinition(before, definition)
    for name in operation.withdraw:
        service_named(draft, name)
    _check_groups(operation, draft)
    defined = changed = 0
    pending: list[str] = []
    for definition in definitions:
        before = draft.services.get(definition.name)
        if before is None:
            defined += 1
            service = Service(definition, uid=draft.index, wanted=definition.auto_register)
            draft.put(service, f"{definition.name}: defined")
        elif before.definition != definition or before.removed:
            changed += 1
            wanted = definition.auto_register if before.removed else before.wanted
            after = replace(redefined(before, definition, draft), removed=False, wanted=wanted)
            if redefinition.pending(after):
                pending.append(definition.name)
            draft.put(after, f"{definition.name}: redefined")
    for name in operation.withdraw:
        draft.put(replace(draft.services[name], removed=True, wanted=False), f"{name}: withdrawn")
    outcome = f"{defined} defined, {changed} changed, {len(operation.withdraw)} withdrawn"
    return outcome + (f"; restart pending: {', '.join(pending[:_NAMED])} runs as defined before" if pending else "")


def with_inherited_policy(
    definitions: tuple[Definition, ...], known: Mapping[str, Definition] = MappingProxyType({})
) -> list[Definition]:
    """A child has no placement policy of its own: below a parent placed on all nodes it is placed so too (SPEC 6.5).

    So a parent that is defined anew may bring its children along, though `definitions` does not name them.
    """
    every = {**known, **{definition.name: definition for definition in definitions}}
    named = {definition.name for definition in definitions}
    found = []
    for definition in (*definitions, *(each for name, each in every.items() if each.parent and name not in named)):
        inherited = replace(definition, on_all=_eldest(definition, every).on_all) if definition.parent else definition
        if definition.name in named or inherited != definition:
            found.append(inherited)
    return found


def _eldest(definition: Definition, known: Mapping[str, Definition]) -> Definition:
    """The parent of all in its group; itself without a parent."""
    for _ in range(MAXIMUM_GENERATIONS):
        if definition.parent not in known:
            break
        definition = known[definition.parent]
    return definition


def _check_redefinition(before: Service, definition: Definition) -> None:
    if before.template:
        raise Refused(f"{before.name} is an instance of {before.template}: define that one")
    if before.definition.on_all != definition.on_all and before.state is not ServiceState.DEREGISTERED:
        raise Refused(
            f"{before.name} is {before.state}, and its placement policy can change only while it is not registered: "
            f"muster service deregister {before.name}"
        )


def _check_nodes(definition: Definition, known: set[str]) -> None:
    lists = (definition.allowable_nodes, definition.disallowable_nodes, definition.ordered, definition.unordered)
    named = set().union(*lists) - {WILDCARD}
    unknown = sorted(named - known)
    if unknown:
        raise Refused(
            f"service {definition.name} names node {', '.join(unknown)}, which this cluster does not have; "
            f"it has {', '.join(sorted(known))}"
        )
    for found in contradictions(definition, known):
        raise Refused(f"service {definition.name}: {found.what}: {found.allowed}")


def _check_groups(operation: ApplyServices, draft: Draft) -> None:
    """Parents are defined, nobody is its own parent, and nobody loses its parent (SPEC 6.5)."""
    withdrawn = set(operation.withdraw)
    after = {
        name: service.definition
        for name, service in draft.services.items()
        if not service.removed and name not in withdrawn
    }
    after |= {definition.name: definition for definition in operation.definitions}
    for name, found in group_problems(after, [definition.name for definition in operation.definitions]):
        raise Refused(f"service {name}: {found.what}: {found.allowed}")
    orphans = sorted(name for name, definition in after.items() if definition.parent in withdrawn)
    if orphans:
        parent = after[orphans[0]].parent
        raise Refused(f"{parent} is the parent of {', '.join(orphans)}: withdraw them too, or redefine them without it")


def _refuse_instance(service: Service) -> None:
    if service.template:
        raise Refused(f"{service.name} follows {service.template}, which is placed on all nodes: name that one")


def _instances(service: Service, draft: Draft) -> list[Service]:
    """The service, and its instances if it has any."""
    found = [instance for instance in draft.services.values() if instance.template == service.name]
    return [service, *found] if instances.is_template(service) else [service]


def _register(service: Service, draft: Draft) -> str:
    _refuse_instance(service)
    if service.removed:
        raise Refused(f"{service.name} was withdrawn and is about to be forgotten: apply its definition again")
    if service.wanted and not service.cause and not service.failed and service.rest is None:
        return f"{service.name} is wanted already and {service.state}"
    if service.state is ServiceState.STOPPING and service.cause:
        raise Refused(f"{service.name} may still be running: {service.cause}")
    for each in _instances(service, draft):
        draft.put(replace(tried_again(each), wanted=True), f"{each.name}: registration requested")
    return f"{service.name} will be registered"


def _deregister(service: Service, draft: Draft) -> str:
    _refuse_instance(service)
    if service.state is ServiceState.DEREGISTERED and not service.wanted:
        return f"{service.name} is de-registered already"
    for each in _instances(service, draft):
        _deregister_one(each, draft)
    return f"{service.name} will be de-registered and stay down until it is registered again"


def _deregister_one(service: Service, draft: Draft) -> None:
    if service.state is ServiceState.STOPPING and service.cause and counts(draft.member(service.node)):
        retried = replace(service, wanted=False, intent=False, cause="", generation=draft.index)
        draft.put(retried, f"{service.name}: stop tried again")
        return
    stays = service.state is ServiceState.DEREGISTERED
    cause = "" if stays else service.cause
    changed = replace(
        service, wanted=False, intent=False, origin=NO_NODE, target=NO_NODE, waits_since=0, matured=False, cause=cause
    )
    draft.put(changed, f"{service.name}: de-registration requested")


def _transfer(service: Service, target_name: str, draft: Draft) -> str:
    _refuse_instance(service)
    if service.definition.parent:
        known = {each.name: each.definition for each in draft.services.values()}
        raise Refused(f"{service.name} goes where its parent is: move {_eldest(service.definition, known).name}")
    if instances.is_template(service):
        raise Refused(f"{service.name} is placed on all nodes: there is nowhere to move it")
    if service.state is not ServiceState.REGISTERED:
        next_step = service.cause or "wait until it is registered, or register it"
        raise Refused(f"{service.name} is {service.state}, only a registered service can be moved: {next_step}")
    here = draft.name(service.node)
    target = NO_NODE
    if target_name:
        target = member_named(draft, target_name).node
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
        why = _why_not_to(service, target, draft) if target_name else "no other node is joined and allowable for it"
        raise Refused(f"{service.name} stays on {here}: {why}")
    here_now = with_none_by(service, (member for member in draft.members.values() if is_up(member)))
    moved = replace(
        service, intent=True, origin=service.node, target=target, reason="", exhausted=(), takeovers=here_now
    )
    draft.put(moved, f"{service.name}: transfer requested")
    return f"{service.name} will move from {here}" + (f" to {target_name}" if target_name else "")


def _why_not_to(service: Service, target: int, draft: Draft) -> str:
    member = draft.member(target)
    name = draft.name(target)
    if not is_allowable(service.definition, name):
        return f"its definition does not allow {name}"
    return f"{name} is {member.state}" + (" and is to be forced out" if member.eviction is not None else "")


def _fail(service: Service, operation: FailService, draft: Draft) -> str:
    if operation.generation not in (0, service.generation):
        return f"{service.name} has moved on since: nothing is done about generation {operation.generation}"
    # It may fail before its registration is committed: that is acted upon as soon as it is.
    runs = service.state is ServiceState.REGISTERED or (service.state is ServiceState.STARTING and operation.generation)
    if not runs or instances.is_template(service):
        return f"{service.name} is {service.state}, not registered: nothing is done"
    if _has_failed(service):
        return f"{service.name} has failed already, and its failure policy is at work: nothing more is done"
    ended = _ended(service.definition, operation.status)
    if operation.has_own_action and service.definition.on_failure and ended is not Ended.DONE:
        return _left_to_its_action(service, operation, draft)
    failures = (*service.failures, draft.index)[-(service.definition.restarts + 1) :]  # one more, and it gives up
    if ended is Ended.DONE:
        failures = service.failures
    failed = replace(service, failures=failures, broken=operation.detail or "it failed", ended=ended)
    how = "has done its work" if ended is Ended.DONE else "failed"
    draft.put(failed, f"{service.name}: {how} on {draft.name(service.node)}: {failed.broken}")
    return f"the failure of {service.name} is recorded: its failure policy decides"


def _left_to_its_action(service: Service, operation: FailService, draft: Draft) -> str:
    """Its program has ended, and `on_failure` is what is done about it: that is shown until it ends here (P6.40)."""
    if service.broken:
        return f"{service.name} has failed already: nothing more is recorded"
    broken = operation.detail or "its program has ended"
    where = draft.name(service.node)
    draft.put(replace(service, broken=broken, ended=Ended.OWN), f"{service.name}: failed on {where}: {broken}")
    return f"the failure of {service.name} is recorded: its `on_failure` decides"


def _ended(definition: Definition, status: int) -> Ended:
    """What the exit status of its program says (P6.38)."""
    meanings = (
        (definition.success_exit_status, Ended.DONE),
        (definition.hard_exit_status, Ended.HARD),
        (definition.fatal_exit_status, Ended.FATAL),
    )
    return next((ended for statuses, ended in meanings if status in statuses), Ended.FAILED)


def _has_failed(service: Service) -> bool:
    """Whether a failure of the present generation is recorded: one is enough, however often it is seen (P6.26)."""
    return service.awaits_policy or service.ended in (Ended.DONE, Ended.FATAL)


def _restart(service: Service, cause: str, draft: Draft) -> str:
    if instances.is_template(service):
        raise Refused(f"{service.name} is placed on all nodes: name one of its instances, as {service.name}@NODE")
    if service.state is not ServiceState.REGISTERED:
        next_step = service.cause or f"register it: muster service register {service.name}"
        raise Refused(f"{service.name} is {service.state}, only a registered service can be restarted: {next_step}")
    reason = cause or "restarted by an operator"
    draft.put(replace(service, target=service.node, reason=reason), f"{service.name}: restart requested: {reason}")
    return f"{service.name} will be restarted on {draft.name(service.node)}"


def _clear(service: Service, draft: Draft) -> str:
    found = _instances(service, draft)
    for each in found:
        if each.state is ServiceState.STOPPING and each.cause:
            raise Refused(f"{each.name} may still be running: {each.cause}")
    changed = [each for each in found if _forgotten(each) != each]
    for each in changed:
        draft.put(_forgotten(each), f"{each.name}: cleared")
    if not changed:
        return f"{service.name} has nothing to clear: it is {service.state}"
    return f"{service.name} is cleared: it is placed again if it is wanted"


def _forgotten(service: Service) -> Service:
    return replace(tried_again(service), takeovers=())


def _confirm_stopped(operation: ConfirmStopped, draft: Draft) -> str:
    """An operator vouches that nothing of a service runs whose stop has failed: what Muster itself finds of it is
    ended, and it counts as stopped (P6.35).
    """
    service = service_named(draft, operation.service)
    stuck = [each for each in _instances(service, draft) if each.state is ServiceState.STOPPING and each.cause]
    if not stuck:
        raise Refused(f"{service.name} is {service.state}, and no stop of it has failed: there is nothing to confirm")
    for each in stuck:
        node = draft.name(each.node)
        if each.owes:
            raise Refused(
                f"its cleanup on {node} has failed; once you have cleared that machine: "
                f"muster service confirm-clean {each.name}"
            )
        if not counts(draft.member(each.node)):
            raise Refused(
                f"{node} is {draft.member(each.node).state}: {each.name} goes on when that is proven to be over"
            )
        said = f"{each.name}: nothing of it runs on {node}, on an operator's word"
        stopped = replace(each, cleaning=True, cause="", generation=draft.index)
        draft.put(stopped, said + (f": {operation.cause}" if operation.cause else ""))
    names = ", ".join(each.name for each in stuck)
    return f"on your word nothing of {names} runs; what Muster finds of it is ended, and it may go on"


def _confirm_clean(operation: ConfirmClean, draft: Draft, facts: Facts) -> str:
    """An operator vouches that nothing is left in a machine: of one service, or of all that ran on a node (P6.33)."""
    if bool(operation.service) == bool(operation.node):
        raise Refused("name either a service or a node: of one of them nothing is left in its machine")
    if operation.service:
        named = _instances(service_named(draft, operation.service), draft)
        found = [service for service in named if _is_unclean(service)]
        if not found:
            raise Refused(f"{operation.service} waits for no machine to be clean of it: there is nothing to confirm")
    else:
        member = member_named(draft, operation.node)
        found = [s for s in draft.services.values() if s.unclean is not None and s.unclean.node == member.node]
        if not counts(member):  # what it says of its last run, and what keeps the present one from joining
            last = max(member.incarnation, facts.slots.get(member.node, 0))
            said = f"{operation.node}: its machine is clean, on an operator's word"
            draft.put(replace(member, vouched_clean=last), said)
    for service in found:
        freed = replace(service, unclean=None)
        if service.unclean is None:  # its cleanup has failed where it still is: end what runs of it, and no more
            freed = replace(service, owes=False, cleaning=True, cause="", generation=draft.index)
        said = f"{service.name}: nothing is left of it, on an operator's word"
        draft.put(freed, said + (f": {operation.cause}" if operation.cause else ""))
    names = ", ".join(service.name for service in found)
    where = f"on {operation.node}" if operation.node else "where it was"
    return f"on your word nothing is left {where}" + (f"; {names} may go on" if names else "")


def _is_unclean(service: Service) -> bool:
    """Whether it waits for its machine to be clean, or is stuck because its cleanup has failed there."""
    stuck = service.state is ServiceState.STOPPING and service.owes and bool(service.cause)
    return stuck or service.unclean is not None


def service_named(draft: Draft, name: str) -> Service:
    """The defined service `name`. Raises `Refused`."""
    service = draft.services.get(name)
    if service is None:
        known = ", ".join(sorted(draft.services)) or "none"
        raise Refused(f"there is no service {name!r}; defined are: {known}")
    return service
