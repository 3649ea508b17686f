"""The nodes that need a person: silent ones without a proof, lost ones, those that cannot join or work (P10.12)."""

from collections.abc import Iterator

from muster.core.boot_advice import advice_for
from muster.core.draft import is_silent
from muster.core.leases.diagnosis import (
    CUT_LINK,
    DAEMON_SILENT,
    DEAD,
    OWN_LINKS_DOWN,
    PAUSED,
    SILENT,
    STORE_LOST,
)
from muster.core.membership.membership import SEE_OR, SILENCE, SUSPICION
from muster.core.needs.need import HOLDS_US, NOTICE, TROUBLE, Need, Seen, Suspicion, certain
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.registers import ProofKind
from muster.records.required_levels import words_of
from muster.records.terms import NO_NODE

HOLDING = (NodeState.JOINING, NodeState.JOINED, NodeState.LEAVING)  # states that only the node or a proof ends
MAXIMUM_NAMED = 4  # services in a sentence
_CONDITIONS = {
    PAUSED: "{name} is paused: its machine answers, but nothing of the node does",
    SILENT: "there is no heartbeat from {name}",
    DAEMON_SILENT: "the daemon of {name} does nothing, though its guard goes on",
    STORE_LOST: "{name} cannot use the store",
    CUT_LINK: "the link with {name} is cut",
    OWN_LINKS_DOWN: "none of {name}'s own interfaces has a link",
}
_ENDS = {  # how it is known that a node has stopped
    ProofKind.CLEAN_TOMBSTONE: "it left in order",
    ProofKind.PANIC_TOMBSTONE: "it stopped itself",
    ProofKind.LEASE_EXPIRED: "its lease ran out",
    ProofKind.NEXT_INCARNATION: "it has booted again since",
    ProofKind.FENCE_AGENT: "a fence agent stopped it",
    ProofKind.OPERATOR: "an operator confirmed its end",
    ProofKind.KERNELS_WORD: "the kernel says that all its processes have ended",
}
_LOSES = {
    "log writer": "nothing that it says is logged",
    "caretaker": "what its services leave in its machine is cleared at its next boot only",
}


def confirm_dead(name: str) -> str:
    """The command by which a person gives the proof of a node's death."""
    return f"muster node evict {name} --confirmed-dead"


def setting_of_levels(database: Database, node: int) -> str:
    """The command that changes which levels a node must have before it joins."""
    own = database.nodes[node].required_levels is not None
    return f"muster config set required_levels ...{f' --of-node {database.name_of(node)}' if own else ''}"


def of_nodes(database: Database, seen: Seen) -> Iterator[Suspicion]:
    """What may be wrong with each node."""
    for node in sorted(database.nodes):
        member, subject = database.member(node), f"node/{database.name_of(node)}"
        yield from _of_life(database, seen, member, subject)
        yield from _of_join(database, seen, member, subject)
        if unable := seen.unable.get(node):
            name = database.name_of(node)
            words = f"{name} cannot lead the cluster: {unable}"
            yield certain(Need("cannot lead", subject, words, f"muster why {name}"))
    for lost in filter(None, seen.lacking.split(", ")):
        name = database.name_of(seen.node)
        words = f"the {lost} of {name} has ended, with its standby; {_LOSES.get(lost, 'it is not replaced')}"
        words += f"; it is started again once {name} has left and boots"
        yield certain(Need("processes lost", f"node/{name}", words, f"muster node leave {name}"), lost)


def _of_life(database: Database, seen: Seen, member: Member, subject: str) -> Iterator[Suspicion]:
    node, condition = member.node, seen.conditions.get(member.node, "")
    is_former = node == seen.node and member.state in HOLDING and member.incarnation != seen.incarnation
    if is_former and (seen.confirmed or seen.master == NO_NODE):  # else the master will say in a moment
        holds_us = 0 if seen.confirmed else HOLDS_US["no master"]
        yield Suspicion("former life", subject, lambda: _former(database, member), holds_us=holds_us)
    elif member.state in HOLDING and member.eviction is not None:
        yield Suspicion("unproven", subject, lambda: _unproven(database, member))
    elif member.state in HOLDING and node not in seen.live and node != seen.node:
        if condition != DEAD:
            yield Suspicion("unproven", subject, lambda: _unproven(database, member))
    elif member.state in HOLDING and condition in _CONDITIONS:
        name = database.name_of(node)
        command = "muster links" if condition in (CUT_LINK, OWN_LINKS_DOWN) else f"muster why {name}"
        yield certain(Need("unwell", subject, _CONDITIONS[condition].format(name=name), command))
    elif member.state is NodeState.INACTIVE and _was_lost(member) and node not in seen.live:
        yield Suspicion("lost", subject, lambda: _lost(database, member, seen.boots))


def _of_join(database: Database, seen: Seen, member: Member, subject: str) -> Iterator[Suspicion]:
    name = database.name_of(member.node)
    waiting = seen.waiting.get(member.node)
    if waiting is not None:
        words = f"{name}: it waits for {words_of(waiting.missing)}, and does not join before; start it there, or change"
        kind, severity = ("overdue level", TROUBLE) if waiting.is_overdue else ("level", NOTICE)
        setting = setting_of_levels(database, member.node)
        need = Need(kind, subject, f"{words} what is required", setting, severity)
        yield certain(need, age_ms=waiting.waited_ms)
    elif member.refusal and member.state is NodeState.INACTIVE:
        words, _, command = member.refusal.partition(SEE_OR)
        yield certain(Need("refused", subject, f"{name} may not join: {words}", command or "muster node list"))
    elif member.node in seen.barred:
        words = f"{name} is refused on the interconnect: {seen.barred[member.node]}"
        yield certain(Need("refused", subject, words, "muster node list"))


def held_by(database: Database, node: int) -> tuple[str, ...]:
    """The services that stay as they are until a silent node is proven to have stopped."""
    return tuple(sorted(name for name, service in database.services.items() if service.node == node))


def named(names: tuple[str, ...]) -> str:
    """Some of these names, and how many more there are."""
    more = f" and {len(names) - MAXIMUM_NAMED} more" if len(names) > MAXIMUM_NAMED else ""
    return ", ".join(names[:MAXIMUM_NAMED]) + more


def _unproven(database: Database, member: Member) -> Need:
    name, held = database.name_of(member.node), held_by(database, member.node)
    cause = member.eviction.cause if member.eviction is not None else SILENCE
    said = f" ({cause})" if cause not in (SILENCE, SUSPICION) else ""  # the sentence says that itself
    state = "is silent" if member.eviction is None or is_silent(member) else "is to be forced out"
    words = f"{name} {state}{said}, and nothing proves that it has stopped"
    words += f"; {named(held)} {'stays as it is' if len(held) == 1 else 'stay as they are'}" if held else ""
    words += "; look at the machine, and once you are sure that it is down, say so"
    return Need("unproven", f"node/{name}", words, confirm_dead(name), affects=held)


def _former(database: Database, member: Member) -> Need:
    name, held = database.name_of(member.node), held_by(database, member.node)
    words = (
        f"{name} runs again, but the cluster still counts a former life of it as a member; {name} waits until that one "
        "is known to have ended"
    )
    return Need("former life", f"node/{name}", words, confirm_dead(name), affects=held)


def _was_lost(member: Member) -> bool:
    proof = member.last_proof
    return proof is not None and proof.incarnation == member.incarnation


def _lost(database: Database, member: Member, boots: str) -> Need:
    name, proof = database.name_of(member.node), member.last_proof
    assert proof is not None
    words = f"{name} was lost ({_ENDS.get(proof.kind, proof.kind.words)}) and is not back"
    return Need("lost", f"node/{name}", words, advice_for(name, boots))
