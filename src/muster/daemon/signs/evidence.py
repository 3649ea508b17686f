"""What this node can tell of the others, for people: conditions with their evidence, and the links (SPEC 7.4, 7.5)."""

from typing import Any

from muster.core.draft import counts
from muster.core.leases.diagnosis import WELL, Diagnosis, Signs, diagnose
from muster.core.links.connectivity import Reason, broken_pairs, reasons
from muster.core.node import insight
from muster.daemon.shell.daemon import Daemon, boottime_us
from muster.records.levels import NodeState
from muster.records.registers import LeaseState
from muster.records.units import US_PER_MS

Document = dict[str, Any]


def conditions(daemon: Daemon) -> dict[int, Diagnosis]:
    """Every configured node's condition as this node can tell. Of itself a node knows that it is well, or blind."""
    return {node: _own(daemon) if node == daemon.node.me else _of(daemon, node) for node in daemon.node.database.nodes}


def _own(daemon: Daemon) -> Diagnosis:
    lost_ms = insight.store_lost_ms(daemon.node)
    if lost_ms:
        return Diagnosis(
            "store lost", f"this node has not been able to read the store for {lost_ms} ms; {_others(daemon)}"
        )
    if daemon.node.links.cut_off:
        return Diagnosis("own links down", "no interface that carries an address of this node has a link")
    return Diagnosis(WELL, "")


def _others(daemon: Daemon) -> str:
    """Whether the store is lost to all, or to this node only (SPEC 7.5)."""
    node = daemon.node
    heard = sorted(insight.heard(node))
    blind = [other for other in heard if node.links.store_lost_ms.get(other, 0)]
    if not heard:
        return "nobody is heard who could say whether it is the store or this node"
    names = ", ".join(node.database.name_of(other) for other in (blind or heard))
    if len(blind) == len(heard):
        return f"all that are heard say the same ({names}): the store is lost, not this node's way to it"
    return f"{names} cannot either; the rest can" if blind else f"{names} can: it is this node's own way to it"


def _of(daemon: Daemon, other: int) -> Diagnosis:
    node = daemon.node
    found = diagnose(signs(daemon, other), node.setup.profile, len(node.database.nodes))
    before = daemon.last_conditions.get(other)
    incarnation = node.database.member(other).incarnation
    if found.condition == "dead" and before is not None and before[0] == incarnation:
        return Diagnosis(found.condition, f"{found.evidence}; before that {before[1].condition}: {before[1].evidence}")
    return found


def signs(daemon: Daemon, other: int) -> Signs:
    """The signs of one other node."""
    node, now_us = daemon.node, boottime_us()
    observer, links, database = node.observer, node.links, node.database
    strip = observer.strip
    lease, view = strip.lease(other), strip.view(other)
    member = database.member(other)
    evidence = observer.evidence(other, member.incarnation)
    proof = member.last_proof
    gone = f"{evidence.kind.words}: {evidence.detail}" if evidence is not None else ""
    if not gone and proof is not None and proof.incarnation == member.incarnation:
        gone = f"{proof.kind.words}: {proof.detail}"
    words = insight.last_words(node, other)
    if gone and words and words not in gone:
        gone = f"{gone}; its last words: {words}"
    heard_by = [
        database.name_of(third)
        for third, each in enumerate(strip.views)
        if each is not None and other in each.heard and third != node.me and observer.is_live(third)
    ]
    state = lease.state if lease is not None else LeaseState.LIVE
    return Signs(
        lease="never" if state is LeaseState.NEVER else state.name.lower(),
        lease_silent_ms=observer.silent_us(other) // US_PER_MS,
        view_silent_ms=links.view_age_us(other, now_us) // US_PER_MS,
        frame_silent_ms=links.frame_age_us(other, now_us) // US_PER_MS,
        connected=other in node.links.connected,
        acknowledges=daemon.acknowledged(other),
        cut_off=view is not None and view.cut_off,
        heard_by=tuple(heard_by),
        store_lost_ms=links.store_lost_ms.get(other, 0) if other in node.links.connected else 0,
        own_store_lost_ms=insight.store_lost_ms(node),
        gone=gone,
        member=member.state in (NodeState.JOINING, NodeState.JOINED, NodeState.LEAVING),
    )


def links(daemon: Daemon) -> Document:
    """The connectivity matrix from the views in the store, and whom the master would let survive, with the reasons."""
    node, now_us = daemon.node, boottime_us()
    database = node.database
    candidates = insight.connectivity(node)
    survivors, outside = reasons(candidates)
    name = database.name_of
    matrix = {}
    for number in sorted(database.nodes):
        view = node.observer.strip.view(number)
        own = number == node.me
        heard = insight.heard(node) if own else view.heard if view is not None else frozenset()
        cut_off = node.links.cut_off if own else view is not None and view.cut_off
        matrix[name(number)] = {
            "hears": [name(other) for other in sorted(heard) if other in database.nodes],
            "own_links": "down" if cut_off else "up",
            "view_age_ms": 0 if own else node.links.view_age_us(number, now_us) // US_PER_MS,
            "live": node.observer.is_live(number),
            "member": counts(database.member(number)),
            "counted": number in candidates,
        }
    return {
        "paths": {name(number): daemon.paths(number) for number in sorted(database.nodes) if number != node.me},
        "matrix": matrix,
        "broken": [[name(a), name(b)] for a, b in sorted(broken_pairs(candidates))],
        "surviving": [name(number) for number in sorted(survivors)],
        "outside": [{"node": name(each.node), "reason": _reason(daemon, survivors, each)} for each in outside],
    }


def _reason(daemon: Daemon, survivors: frozenset[int], reason: Reason) -> str:
    def named(nodes: frozenset[int]) -> str:
        return "{" + ", ".join(daemon.node.database.name_of(node) for node in sorted(nodes)) + "}"

    if reason.measure == "interfaces with a link":
        return f"its own interfaces have no link, and those of {named(survivors)} have"
    if reason.measure == "hearing anybody":
        return f"{named(reason.instead)} hears nobody"
    if reason.measure == "the lowest node ids":
        return f"{named(survivors)} is as good as {named(reason.instead)}, and has the lower ids"
    numbers = f"{reason.measure}: {reason.chosen} against {reason.other}"
    return f"{named(survivors)} is better than {named(reason.instead)} ({numbers})"
