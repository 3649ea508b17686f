"""Operations that people ask for: checked against one draft, carried out at most once (SPEC 7.8, 9.1).

Each either puts records into the draft and says what will happen, or refuses with what is wrong and what to do, and
changes nothing.
"""

import hashlib
from typing import assert_never

import msgspec
from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts
from muster.core.events import requests as event_operations
from muster.core.fencing import requests as fence_operations
from muster.core.membership.membership import condemn
from muster.core.nodes import authority
from muster.core.nodes import requests as configuration
from muster.core.operations import audit, identities
from muster.core.refusal import Refused, member_named
from muster.core.services import requests as service_operations
from muster.core.transitions.transition import open_forced_leave, open_leave
from muster.core.versions import requests as administration
from muster.core.versions import revisions
from muster.records.configuration import BreakLock, Operation
from muster.records.events import ApplyEvents, EnableEvents
from muster.records.levels import NodeState
from muster.records.members import EvictNode, LeaveNode, Member, Proof
from muster.records.messages import Request
from muster.records.nodes import AbandonRotation, RotateAuthority
from muster.records.operations import OperationRequest, kind_of
from muster.records.registers import ProofKind
from muster.records.services import FailService, Maintenance, SetMaintenance, SetStandby, Standby
from muster.records.versions import KERNELS_WORD

# What a repeated request cannot say as the first did: the version that it was made from, and an authority made for it.
_NOT_ASKED = frozenset({"expect", "incoming"})
_DIGEST_CHARACTERS = 16


def digest_of(operation: OperationRequest) -> str:
    """What tells one operation from another under the same identity (P9.1).

    Fields that have their default are left out, so that a release that knows more of them finds the same.
    """
    asked = {
        field.name: getattr(operation, field.name)
        for field in msgspec.structs.fields(operation)
        if field.name not in _NOT_ASKED and getattr(operation, field.name) != field.default
    }
    text = msgspec.json.encode([kind_of(operation).name, asked], order="deterministic")
    return hashlib.sha256(text).hexdigest()[:_DIGEST_CHARACTERS]


def carry_out(request: Request, draft: Draft, facts: Facts) -> Operation | None:
    """Put what the operation changes into the draft, and the records of its outcome and author (P9.1, P10.2, P10.4).

    A refused one leaves nothing behind, and neither does one that changes nothing: the index of its outcome is then
    that of the database (P9.4). None: it is for a later round (P9.5).
    """
    before, mark = draft.changed, draft.mark()
    may_grow = not kind_of(request.operation).only_removes
    used = facts.room.used(draft) if may_grow else 0
    try:
        administration.check_expected(request.operation, draft)
        outcome = _dispatch(request.operation, draft, facts)
        if not draft.changes_since(mark) and not is_done_elsewhere(request.operation):
            draft.restore(mark)
            return Operation(request.identity, draft.database.index if not before else draft.index, outcome)
        if may_grow:
            _check_room(used, draft, facts)
        operation = Operation(request.identity, draft.index, outcome, asked=digest_of(request.operation))
        what = f"{kind_of(request.operation).name}: {audit.subject_of(request.operation)}"
        revisions.record(draft, before, request.author, what, facts.room.capacity)
        audit.record(draft, request, operation.outcome, facts.room)
        if not is_safe_to_repeat(request.operation, draft):
            identities.remember(operation, request.author, draft, facts)
        if draft.bytes > facts.room.capacity.entry:
            if before:
                draft.restore(mark)
                return None
            _refuse_as_too_large(draft, facts)
    except identities.PutOff:
        draft.restore(mark)
        return None
    except Refused as refusal:
        draft.restore(mark)
        return Operation(request.identity, draft.database.index, str(refusal), refused=True)
    return operation


def is_done_elsewhere(operation: OperationRequest) -> bool:
    """Whether it changes no record: lock processes carry it out, and who has asked for it is kept (P12.21)."""
    return isinstance(operation, BreakLock)


def is_safe_to_repeat(operation: OperationRequest, draft: Draft) -> bool:
    """Whether the operation itself says what it is about, so that nothing has to remember that it was done (P9.4).

    A failure names the generation that failed, which fails once (P6.26). Older releases remember it all the same.
    """
    return is_about_one(operation) and draft.cluster.active_version >= KERNELS_WORD


def is_about_one(operation: OperationRequest) -> bool:
    """Whether it names the generation of a service that it is about: done once, it changes nothing any more."""
    return isinstance(operation, FailService) and operation.generation > 0


def _check_room(used: int, draft: Draft, facts: Facts) -> None:
    """Raise `Refused` if the operation adds what the store has no room for (P9.3)."""
    nodes, growth = len(draft.nodes), facts.room.capacity.growth
    for kind, name in draft.changed:
        service = draft.services.get(name) if kind == "service" else None
        former = draft.database.services.get(name) if service is not None else None
        if service is None or (former is not None and former.definition == service.definition):
            continue
        if problem := facts.room.too_large(service.definition, nodes):
            raise Refused(f"{problem}: put what is long into a file, or make a new store with a larger --size")
    needed = facts.room.used(draft)
    if needed > growth and needed > used:
        raise Refused(
            f"the store has no room for this: it may grow by {needed - used} bytes, and {max(0, growth - used)} of "
            f"{growth} are left; withdraw services or event groups, or make a new store with a larger --size "
            "(muster init)"
        )


def _refuse_as_too_large(draft: Draft, facts: Facts) -> None:
    raise Refused(
        f"this is too large for one change: {draft.bytes} bytes, and {facts.room.capacity.entry} is the most in this "
        "store; do it in several smaller ones"
    )


def _dispatch(operation: OperationRequest, draft: Draft, facts: Facts) -> str:
    if isinstance(operation, service_operations.ServiceOperation):
        return service_operations.carry_out(operation, draft, facts)
    if isinstance(operation, configuration.ConfigurationRequest):
        return configuration.carry_out(operation, draft, facts)
    if isinstance(operation, administration.Administration):
        return administration.carry_out(operation, draft, lambda other: _dispatch(other, draft, facts))
    if isinstance(operation, fence_operations.FenceRequest):
        return fence_operations.carry_out(operation, draft, facts)
    match operation:
        case LeaveNode(node=name):
            return _leave(member_named(draft, name), draft)
        case EvictNode(node=name):
            return _evict(member_named(draft, name), operation, draft, facts)
        case SetStandby(node=name):
            return _set_standby(member_named(draft, name), operation, draft)
        case SetMaintenance():
            return _set_maintenance(operation, draft)
        case ApplyEvents():
            return event_operations.apply(operation, draft)
        case EnableEvents():
            return event_operations.enable(operation, draft)
        case RotateAuthority() | AbandonRotation():
            return authority.carry_out(operation, draft, facts)
        case _:
            assert_never(operation)


def _leave(member: Member, draft: Draft) -> str:
    name = draft.name(member.node)
    match member.state:
        case NodeState.JOINING | NodeState.JOINED if (
            member.state is NodeState.JOINING or draft.transition_of(member.node) is not None
        ):
            draft.put(replace(member, leave_asked="asked to leave"), f"{name}: asked to leave while joining")
            return f"{name} will leave as soon as the level at work is done"
        case NodeState.JOINED:
            open_leave(draft, member.node, "asked to leave")
            return f"{name} is leaving"
        case NodeState.LEAVING:
            return f"{name} is leaving already"
        case NodeState.INACTIVE:
            raise Refused(f"{name} is not a member now: there is nothing to leave")
        case _:
            raise Refused(f"{name} is {member.state}: it is on its way out already, and has nothing left to leave with")


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


def _set_standby(member: Member, operation: SetStandby, draft: Draft) -> str:
    name = draft.name(member.node)
    if operation.end:
        if member.node not in draft.standby:
            return f"{name} is not on standby"
        draft.forget("standby", str(member.node), f"{name}: standby ended")
        return f"{name} gets services again"
    before = draft.standby.get(member.node)
    if before is not None and (before.duration_ms, operation.duration_ms, before.cause) == (0, 0, operation.cause):
        return f"{name} is on standby already"
    record = Standby(member.node, draft.index, operation.duration_ms, operation.cause)
    draft.put(record, f"{name}: on standby" + (f": {operation.cause}" if operation.cause else ""))
    return f"{name} is on standby: it gets no services, and those that can run elsewhere move away"


def _set_maintenance(operation: SetMaintenance, draft: Draft) -> str:
    kind, subject = operation.kind, operation.subject
    match kind:
        case "cluster" if not subject:
            pass
        case "node":
            member_named(draft, subject)
        case "service":
            service_operations.service_named(draft, subject)
        case _:
            raise Refused(f"maintenance is of the cluster, a node or a service, not of {kind!r} {subject!r}")
    record = Maintenance(kind, subject, draft.index, operation.duration_ms, operation.cause)
    words = f"{kind} {subject}".strip()
    before = None if operation.end else draft.maintenance.get(record.key)
    if before is not None and (before.duration_ms, operation.duration_ms, before.cause) == (0, 0, operation.cause):
        return f"{words} is in maintenance already"
    if operation.end:
        if record.key not in draft.maintenance:
            return f"{words} is not in maintenance"
        draft.forget("maintenance", record.key, f"maintenance of {words} ended")
        return f"Muster looks after {words} again"
    draft.put(record, f"maintenance of {words}" + (f": {operation.cause}" if operation.cause else ""))
    return f"{words} is in maintenance: nothing is started, moved or restarted there by Muster itself"
