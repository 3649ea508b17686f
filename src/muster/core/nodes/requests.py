"""Nodes come and go while the cluster runs: adding, enrolling, renewing, removing (SPEC 1.1, 1.4, 1.6, 9.1).

Theory of operation. A configured node is a slot of the store with a name, addresses and a certificate. Adding one
commits its name and addresses and the *verifier* of a one-time token; the machine that shows the token to a member has
its certificate signed by that member, and one entry commits the certificate and uses the token up (P1.4). Removing one
takes its record away; from that commit on nobody accepts its key (P1.1, P1.3). A slot that is used again holds a node
of another generation, whose incarnations are above all that ever ran in the slot (P1.2).
"""

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts
from muster.core.refusal import Refused, configured
from muster.records.addresses import same_address
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.names import addresses_problem, node_name_problem
from muster.records.nodes import (
    AddNode,
    Certified,
    CertifyNodes,
    Enrolment,
    EnrolNode,
    IssueToken,
    NodeConfig,
    RemoveNode,
    Rotation,
    SetAddresses,
    fingerprint,
)
from muster.records.services import Service, ServiceState
from muster.records.terms import NO_NODE

VERIFIER_CHARACTERS = 64  # SHA-256, hexadecimal
_HEXADECIMAL = frozenset("0123456789abcdef")

ConfigurationRequest = AddNode | SetAddresses | RemoveNode | IssueToken | EnrolNode | CertifyNodes


def carry_out(operation: ConfigurationRequest, draft: Draft, facts: Facts) -> str:
    """Put what the operation changes into the draft; what will happen, in words. Raises `Refused`."""
    match operation:
        case AddNode():
            return _add(operation, draft, facts)
        case SetAddresses():
            return _set_addresses(operation, draft)
        case RemoveNode(node=name):
            return _remove(configured(draft, name), draft, facts)
        case IssueToken():
            return _issue_token(operation, draft, facts)
        case EnrolNode():
            return _enrol(operation, draft)
        case CertifyNodes():
            return _certify(operation, draft)


def _add(operation: AddNode, draft: Draft, facts: Facts) -> str:
    """Configure a node in a free slot (P1.2)."""
    name = operation.node
    _refuse_if(node_name_problem(name))
    _refuse_if(addresses_problem(operation.addresses), f"{name}: ")
    if any(config.name == name for config in draft.nodes.values()):
        raise Refused(
            f"there is a node {name!r} already: choose another name; for a new token of that node: "
            f"muster node token {name}"
        )
    _refuse_taken(name, operation.addresses, draft)
    slot = _free_slot(draft, facts)
    draft.put(
        NodeConfig(
            slot, name, operation.addresses, "", draft.index, _enrolment(operation.verifier, operation.expires_s)
        ),
        f"{name}: added",
    )
    # What was heard of an earlier node of the slot is older.
    draft.put(Member(slot, incarnation=facts.slots.get(slot, 0)))
    return f"{name} is configured as node {slot}; it can be enrolled with its token"


def _refuse_taken(name: str, addresses: tuple[str, ...], draft: Draft) -> None:
    for config in draft.nodes.values():
        if config.name != name and (taken := same_address(addresses, config.addresses)):
            raise Refused(f"{config.name} has the address {taken} already: give {name} one of its own")


def _set_addresses(operation: SetAddresses, draft: Draft) -> str:
    """Give a node other addresses, whether or not it runs (P1.8)."""
    config = configured(draft, operation.node)
    name, addresses = config.name, operation.addresses
    _refuse_if(addresses_problem(addresses), f"{name}: ")
    _refuse_taken(name, addresses, draft)
    if config.addresses == addresses:
        return f"{name} has these addresses already"
    listed = " ".join(addresses)
    draft.put(replace(config, addresses=addresses), f"{name}: its addresses are {listed}")
    return f"{name} is at {listed} from now on; it was at {' '.join(config.addresses)}"


def _free_slot(draft: Draft, facts: Facts) -> int:
    """The slot that was used least, and lowest, of those that nobody has or runs in (P1.2).

    One of a bank that is not in use only where the others have none: a further bank costs all nodes reading (P11.7).
    """
    used = {*draft.nodes, *draft.database.nodes}
    for service in draft.services.values():
        used |= remembered_by(service)  # of a node that was removed a moment ago
    free = [(last > 0, slot) for slot, last in facts.slots.items() if slot not in used and not facts.alive(slot)]
    free = free or [(False, slot) for slot in facts.shut if slot not in used]
    if not free:
        slots = len(facts.slots) + len(facts.shut)
        raise Refused(
            f"the store has no free slot: {slots} slots, {len(draft.nodes)} nodes; remove a node that is "
            "not needed any more (muster node remove), or make a new store with more --slots (muster init)"
        )
    return min(free)[1]


def _enrolment(verifier: str, expires_s: int) -> Enrolment:
    if len(verifier) != VERIFIER_CHARACTERS or not _HEXADECIMAL.issuperset(verifier) or expires_s <= 0:
        raise Refused("the token's verifier is no SHA-256 in hexadecimal, or its end no time: let `muster` make both")
    return Enrolment(verifier, expires_s)


def _remove(config: NodeConfig, draft: Draft, facts: Facts) -> str:
    """Take a node's record away (P1.3)."""
    name, member = config.name, draft.member(config.node)
    _refuse_if_it_works(config, draft, facts, "be removed")
    for service in draft.services.values():
        definition = service.definition
        listed = (definition.allowable_nodes, definition.disallowable_nodes, definition.ordered, definition.unordered)
        if not service.template and any(name in names for names in listed):
            raise Refused(
                f"service {service.name} names {name}: apply its definition without {name} first (muster apply)"
            )
        if service.state is not ServiceState.DEREGISTERED and service.node == config.node:
            raise Refused(f"service {service.name} is {service.state} on {name}: {service.cause or 'wait for its end'}")
        if service.unclean is not None and service.unclean.node == config.node:
            advice = f"clear it there, then: muster service confirm-clean {service.name}"
            raise Refused(f"{name} is not known to be clean of service {service.name}: {advice}")
    if draft.transition_of(config.node) is not None:
        raise Refused(f"a transition of {name} is under way: wait until it is done (muster transitions)")
    if config.node in draft.standby:
        draft.forget("standby", str(config.node))
    if f"node/{name}" in draft.maintenance:
        draft.forget("maintenance", f"node/{name}")
    for kind, table in (("fence_plan", draft.fence_plans), ("fencing", draft.fencing)):
        if config.node in table:
            draft.forget(kind, str(config.node))
    draft.forget("node", str(config.node), f"{name}: removed")
    return f"{name} is removed (it was node {config.node}, last incarnation {member.incarnation})"


def remembered_by(service: Service) -> set[int]:
    """The nodes that a service's record names."""
    named = {service.node, service.origin, service.target, service.previous, *service.failed}
    named.update(given_up.node for given_up in service.exhausted)
    named.update(takeover.node for takeover in service.takeovers)
    return named - {NO_NODE}


def forget_removed(draft: Draft, service: Service) -> Service:
    """The service without what it remembers of nodes that were removed, which it forgets one after the other (P9.5)."""
    for node in remembered_by(service) - draft.nodes.keys():
        service = _without(service, node)
    return service


def _without(service: Service, node: int) -> Service:
    """The service without what it remembers of a node whose slot may get another one."""
    return replace(
        service,
        node=NO_NODE if service.node == node else service.node,
        origin=NO_NODE if service.origin == node else service.origin,
        target=NO_NODE if service.target == node else service.target,
        previous=NO_NODE if service.previous == node else service.previous,
        failed=tuple(failed for failed in service.failed if failed != node),
        exhausted=tuple(given_up for given_up in service.exhausted if given_up.node != node),
        takeovers=tuple(takeover for takeover in service.takeovers if takeover.node != node),
    )


def _refuse_if_it_works(config: NodeConfig, draft: Draft, facts: Facts, wish: str) -> None:
    """Raise `Refused` for a node that is a member, or that renews its lease all the same."""
    name, member = config.name, draft.member(config.node)
    if counts(member) or member.state is NodeState.FORCED_LEAVING:
        raise Refused(
            f"{name} is {member.state}, and only an inactive node can {wish}; let it leave (muster node leave {name}), "
            f"or force it out (muster node evict {name}), and wait until it is inactive"
        )
    if facts.alive(config.node):
        raise Refused(f"{name} is no member, but it runs: stop musterd on it first, it would come back")


def _issue_token(operation: IssueToken, draft: Draft, facts: Facts) -> str:
    config = configured(draft, operation.node)
    _refuse_if_it_works(config, draft, facts, "be enrolled again")
    enrolment = _enrolment(operation.verifier, operation.expires_s)
    draft.put(replace(config, enrolment=enrolment), f"{config.name}: new token")
    return f"{config.name} can be enrolled with its new token; its earlier tokens do not work any more"


def _enrol(operation: EnrolNode, draft: Draft) -> str:
    """Commit a node's first certificate, or one of a new key, and use the token up (P1.4)."""
    config = draft.nodes.get(operation.node)
    if config is None or config.generation != operation.generation:
        raise Refused("the node was removed in the meantime: add it again (muster node add)")
    if config.enrolment is None or config.enrolment.verifier != operation.verifier:
        raise Refused(
            f"the token for {config.name} has been used or replaced: get a new one (muster node token {config.name})"
        )
    if operation.issuer not in _issuers(draft):
        raise Refused("the authority is being replaced at this moment: try again")
    draft.put(
        replace(config, certificate=operation.certificate, issuer=operation.issuer, enrolment=None),
        f"{config.name}: enrolled",
    )
    return f"{config.name} is enrolled"


def _issuers(draft: Draft) -> tuple[str, ...]:
    """Fingerprints of the authorities that may issue now: the incoming one alone as soon as it may (P1.7)."""
    cluster = draft.cluster
    return (fingerprint(cluster.incoming if cluster.rotation >= Rotation.CERTIFYING else cluster.authority),)


def _certify(operation: CertifyNodes, draft: Draft) -> str:
    """Commit certificates that were issued anew for the same keys (P1.6, P1.7)."""
    if operation.issuer not in _issuers(draft):
        raise Refused("the authority that issued these certificates is not the one that issues now")
    renewed = [each for each in operation.certificates if _replaces(each, draft)]
    if not renewed:
        raise Refused("none of these certificates replaces the present one of its node")
    for each in renewed:
        config = draft.nodes[each.node]
        draft.put(
            replace(config, certificate=each.certificate, issuer=operation.issuer),
            f"{config.name}: certificate renewed",
        )
    return f"{len(renewed)} certificates are renewed"


def _replaces(certified: Certified, draft: Draft) -> bool:
    config = draft.nodes.get(certified.node)
    return (
        config is not None
        and config.generation == certified.generation
        and bool(config.certificate)
        and fingerprint(config.certificate) == certified.replaces
    )


def _refuse_if(problem: str, where: str = "") -> None:
    if problem:
        raise Refused(where + problem)
