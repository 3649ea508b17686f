"""What a node answers to a query: pure functions from the replicated database and what the node itself sees (SPEC 8.1).

Every answer is ready for JSON. Names, never numbers, stand for nodes; states are the words of SPEC 3.1 and 6.7. The
document formats are stable: new keys may come, none goes or changes its meaning. Every answer carries

    cluster     the cluster's name
    index       the commit index that the answer reflects (SPEC 9.1)
    node        who answers
    node_state  what the cluster holds the answering node for: what a node says that is not `joined` may be old
"""

from collections.abc import Callable
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, field

from muster.core.draft import is_silent
from muster.core.events.resident import holding
from muster.core.fencing.proofs import proofs_of
from muster.core.freezing import is_frozen
from muster.core.needs.machine import NOTHING, Told
from muster.core.needs.need import Need
from muster.core.needs.of_cluster import maintenance_words
from muster.core.needs.of_nodes import confirm_dead, setting_of_levels
from muster.core.room import Fullness
from muster.core.services.instances import instances_of, is_template
from muster.core.services.places import AwaitedThere, summary, words, words_about
from muster.core.services.redefinition import pending
from muster.core.transitions.required import AwaitingLevels
from muster.daemon.history.why import decider_of
from muster.daemon.socket.certificate_queries import describe_authority, describe_node
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.refusal import ControlRefused
from muster.records.registers import Lease, LeaseState
from muster.records.services import Ended, Maintenance, Service, ServiceState, Standby
from muster.records.terms import NO_NODE, NO_TERM, Term
from muster.records.transitions import Transition

Document = dict[str, Any]
HOLDING = (NodeState.JOINING, NodeState.JOINED, NodeState.LEAVING)  # states that only the node or a proof ends


class NodeView(Struct, frozen=True):
    """What the answering node knows beside the database."""

    node: int  # its own id
    incarnation: int
    master: int = NO_NODE  # whom it holds for master
    term: Term = NO_TERM  # of that mastership
    trouble: str = ""  # what keeps the node from following the cluster
    links: frozenset[int] = frozenset()  # whom it hears on the interconnect
    live: frozenset[int] = frozenset()  # nodes whose lease in the store is being renewed
    running: tuple[str, ...] = ()  # services that its runner holds started
    conditions: dict[int, tuple[str, str]] = field(default_factory=dict)
    """node -> its condition (`core/leases/diagnosis.py`) and the evidence, in words"""
    last_words: Callable[[int], str] = lambda _node: ""  # why a node panicked, as its tombstone says
    age_ms: Callable[[int], int] = lambda _index: 0  # how long ago an entry was committed
    holds_key: bool = True  # the authority's, in its home
    needs: Told = NOTHING  # what needs a person (P10.12)
    at_s: Callable[[int], int | None] = lambda _index: None  # when an entry was committed, by the clock of people
    behind_rotation: tuple[int, ...] = ()  # on the master: whom a rotation of the authority waits for
    waited_for: dict[int, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    """transition -> nodes that have not acknowledged its present step, and how long that is at work (us)"""
    barred: dict[int, str] = field(default_factory=dict)  # nodes that cannot connect with this one, and why
    refused: tuple[Document, ...] = ()  # operations that were refused at this node
    fullness: Fullness = Fullness(0, 1)  # of the store
    waiting: dict[int, AwaitingLevels] = field(default_factory=dict)  # nodes that wait for required levels (P3.17)
    unable: dict[int, str] = field(default_factory=dict)  # nodes that say that they cannot lead, and why (P2.11)
    one_machine: bool = True  # all nodes run under one kernel, which is asked
    lease: Callable[[int], Lease | None] = lambda _node: None  # the record of a node's lease, as it was read last
    fence_troubles: dict[int, dict[str, str]] = field(default_factory=dict)  # node -> fence device -> why (P7.28)
    awaited: dict[int, AwaitedThere] = field(default_factory=dict)  # what waits for a place, by node (P8.12)


def status(database: Database, view: NodeView) -> Document:
    """The whole cluster on one page: `master`, `term`, `nodes`, `services`, `transitions`."""
    return {
        "cluster_identity": database.cluster.identity,
        "profile": database.cluster.profile,
        "epoch": database.epoch,
        "master": _name(database, view.master),
        "decider": decider_of(database),
        "trouble": view.trouble,
        "term_node": _name(database, view.term.node) if view.term != NO_TERM else None,
        "nodes": {name: _node(database, view, node) for name, node in _by_name(database)},
        "services": {name: _service(database, view, database.services[name]) for name in sorted(database.services)},
        **maintenance(database, view),
        "transitions": _transitions(database, view),
        "room": {
            "used_bytes": view.fullness.used_bytes,
            "limit_bytes": view.fullness.growth_bytes,
            "percent": view.fullness.percent,
        },
        **needs(database, view),
    }


def needs(database: Database, view: NodeView) -> Document:
    """What needs a person, trouble first, as documents and as lines; how many services and nodes are well (P10.12)."""
    told = view.needs
    lines = [need.line for need in told.needs]
    if told.beyond:
        lines.append(f"{told.beyond} more things need you; next: muster why SERVICE")
    if database.cluster.incoming:
        lines.append(f"the authority is being replaced ({database.cluster.rotation}): muster authority show")
    return {
        "needs": [_need(need) for need in told.needs],
        "needs_beyond": told.beyond,
        "well": told.well._asdict(),
        "warnings": lines,
    }


def needs_about(view: NodeView, subject: str) -> list[Document]:
    """Those about `kind/NAME`, or that affect it."""
    return [_need(need) for need in view.needs.needs if need.is_about(subject)]


def _need(need: Need) -> Document:
    return {
        "kind": need.kind, "subject": need.subject, "severity": need.severity, "words": need.words,
        "next": need.next_step, "since_s": need.since_s, "affects": list(need.affects),
    }  # fmt: skip


def services(database: Database, view: NodeView) -> Document:
    """Every service: what `status` says of it, its definition, and how it came to where it is."""
    return {
        "services": {
            name: _service_in_full(database, view, database.services[name]) for name in sorted(database.services)
        }
    }


def service(database: Database, view: NodeView, name: str) -> Document:
    """One service in full, as `service`; `runs_here` says whether the answering node's runner holds it started."""
    found = database.services.get(name)
    if found is None:
        close = get_close_matches(name, list(database.services), n=1)
        next_step = f"did you mean {close[0]!r}?" if close else "see `muster services` for those that are defined"
        raise ControlRefused(f"there is no service {name!r}", f"cluster {database.cluster.name}", next_step)
    document = {"name": name, **_service_in_full(database, view, found), "runs_here": name in view.running}
    return {"service": document, "needs": needs_about(view, f"service/{name}")}


def transitions(database: Database, view: NodeView) -> Document:
    """The transitions in progress, oldest first, and who holds each one up (SPEC 8.2)."""
    return {"transitions": _transitions(database, view)}


def nodes(database: Database, view: NodeView) -> Document:
    """Every configured node in full: what `status` says of it, its addresses, levels and last proof of death."""
    return {"nodes": {name: _node_in_full(database, view, node) for name, node in _by_name(database)}}


def maintenance(database: Database, view: NodeView) -> Document:
    """What Muster leaves alone, and the nodes on standby; `remaining_ms` is null where it has no end."""
    found = [database.maintenance[key] for key in sorted(database.maintenance)]
    return {
        "maintenance": [
            {"kind": each.kind, "subject": each.subject, "cause": each.cause, "remaining_ms": _remaining(each, view)}
            for each in found
        ],
        "standby": {
            database.name_of(node): {"cause": each.cause, "remaining_ms": _remaining(each, view)}
            for node, each in sorted(database.standby.items())
        },
    }


def authority(database: Database, view: NodeView) -> Document:
    """The authority's certificates, and how far its replacement is (P1.7)."""
    return describe_authority(database, view.behind_rotation, holds_key=view.holds_key)


def head(database: Database, view: NodeView) -> Document:
    """What every answer carries."""
    return {
        "cluster": database.cluster.name,
        "index": database.index,
        "node": database.name_of(view.node),
        "node_state": str(database.member(view.node).state),
        "term": view.term.number,
    }


def _by_name(database: Database) -> list[tuple[str, int]]:
    return [(database.nodes[node].name, node) for node in sorted(database.nodes)]


def _name(database: Database, node: int) -> str | None:
    return None if node == NO_NODE else database.name_of(node)


def _names(database: Database, found: tuple[int, ...] | list[int]) -> list[str]:
    return [database.name_of(node) for node in found]


def _node(database: Database, view: NodeView, node: int) -> Document:
    member = database.member(node)
    own = node == view.node
    return {
        "id": node,
        "state": str(member.state),
        "incarnation": member.incarnation,
        "live": own or node in view.live,
        "link": own or node in view.links,
        "services": sorted(name for name, service in database.services.items() if service.node == node),
        "condition": view.conditions.get(node, ("unknown", ""))[0],
        "evidence": view.conditions.get(node, ("unknown", ""))[1],
        "cause": _node_cause(database, view, member),
        "held": _node_held(database, node),
        "proofs": proofs_of(database, node, one_machine=view.one_machine, lease=view.lease(node)).words,
        "lease": _lease(view.lease(node)),
        **_required(view, node),
        "unable_to_lead": view.unable.get(node, ""),
        "waiting_for_places": _waiting_for_places(database, view, node),
    }


def _lease(lease: Lease | None) -> Document | None:
    """The times of the lease that a node renews, and what stands behind it (P7.31); nothing where it renews none."""
    if lease is None or lease.state is not LeaseState.LIVE:
        return None
    armed = lease.armed
    watchdog = None
    if armed is not None:
        watchdog = {"identity": armed.identity, **armed.times._asdict(), "proves": armed.proves}
    return {
        "lease_ms": lease.lease_ms,
        "deadline_ms": lease.lease_ms - lease.panic_bound_ms,
        "panic_bound_ms": lease.panic_bound_ms,
        "watchdog": watchdog,
    }


def _node_held(database: Database, node: int) -> str:
    """What an operator has taken out of Muster's hands there, in words."""
    standby, maintained = database.standby.get(node), database.maintenance.get(f"node/{database.name_of(node)}")
    words = [f"on standby{_said(standby)}"] if standby else []
    return ", ".join(words + ([f"in maintenance{_said(maintained)}"] if maintained else []))


def _said(record: Maintenance | Standby) -> str:
    return f" ({record.cause})" if record.cause else ""


def _required(view: NodeView, node: int) -> Document:
    """The programs that it waits for before it joins, and for how long; is that too long? (P3.17)"""
    waiting = view.waiting.get(node)
    if waiting is None:
        return {"waits_for": [], "waits_ms": None, "overdue": False}
    missing = [{"level": each.number, "name": each.name, "found": each.found} for each in waiting.missing]
    return {"waits_for": missing, "waits_ms": waiting.waited_ms, "overdue": waiting.is_overdue}


def _waits(database: Database, view: NodeView, node: int) -> str:
    """For which programs a node waits, and what to do about it."""
    waiting = view.waiting.get(node)
    if waiting is None:
        return ""
    return f"{waiting.words}, and does not join before; start it there, or: {setting_of_levels(database, node)}"


def _node_cause(database: Database, view: NodeView, member: Member) -> str:
    if member.eviction is not None and is_silent(member):
        name = database.name_of(member.node)
        return (
            f"silent: {member.eviction.cause}; nobody waits for it, and what it held stays as it is; "
            f"once you are sure that it is down: {confirm_dead(name)}"
        )
    if member.eviction is not None:
        return f"to be forced out: {member.eviction.cause}; waiting for proof that it has stopped"
    if member.state in HOLDING and member.node not in {*view.live, view.node}:
        advice = f"if it is down for sure: {confirm_dead(database.name_of(member.node))}"
        return f"silent, and not proven to have stopped; {advice}"
    if member.node in view.barred:
        return f"refused on the interconnect: {view.barred[member.node]}"
    unable = view.unable.get(member.node, "")
    awaited = view.awaited.get(member.node)
    found = (
        member.refusal or _services_that_hold(database, member),
        _waits(database, view, member.node),
        unable and f"it cannot lead: {unable}",
        awaited and summary(awaited, database.name_of(member.node)),
    )
    return "; ".join(filter(None, found))


def _waiting_for_places(database: Database, view: NodeView, node: int) -> Document:
    """What waits for a place on the node: those that have waited longest, and how many in all (P8.12)."""
    awaited = view.awaited.get(node, AwaitedThere((), 0))
    named = [
        {
            "kind": place.kind,
            "name": place.name,
            "service": place.service,
            "waited_ms": place.waited_ms,
            "taken": place.taken,
            "places": place.places,
            "words": words(place, database.name_of(node)),
        }
        for place in awaited.named
    ]
    return {"named": named, "count": awaited.in_all}


def _services_that_hold(database: Database, member: Member) -> str:
    """What a leave waits for at the event manager's level: a stop there, or a start elsewhere (P6.18, SPEC 6.8)."""
    if member.state is not NodeState.LEAVING:
        return ""
    found = list(holding(database, member.node))
    stuck = [service for service in found if service.cause]
    if not found:
        return ""
    first = (stuck or found)[0]
    more = f", and for {len(found) - 1} more" if len(found) > 1 else ""
    why = f": {first.cause}" if first.cause else ""
    return f"its leave waits for {first.name}, which is {first.state}{more}{why}"


def _node_in_full(database: Database, view: NodeView, node: int) -> Document:
    member = database.member(node)
    proof = member.last_proof
    return _node(database, view, node) | {
        "addresses": list(database.nodes[node].addresses),
        **describe_node(database, database.nodes[node]),
        "levels": [{"level": level.number, "name": level.name} for level in member.levels],
        "told_level": member.told_level,
        "last_proof": proof and {"kind": proof.kind.words, "incarnation": proof.incarnation, "detail": proof.detail},
        "last_words": view.last_words(node) or None,
    }


def _service(database: Database, view: NodeView, service: Service) -> Document:
    active = service.state is not ServiceState.DEREGISTERED
    placed = instances_of(service, database) if is_template(service) else [service]
    states = {each.node: str(each.state) for each in placed if each.state is not ServiceState.DEREGISTERED}
    down = _why_down(database, service)
    return {
        "state": str(service.state),
        "flags": _flags(service),
        "node": _name(database, service.node) if active else None,
        "nodes": {name: states.get(node) for name, node in _by_name(database)},
        "wanted": service.wanted,
        "token": service.token or None,
        "cause": service.cause or _why_held(database, view, service),
        "held": maintenance_words(database, service),
        "down": down.words if down is not None else "",
        "down_word": str(down.word) if down is not None else "",
        "since_s": view.at_s(service.since) if service.since else None,
        "failures": _failures(database, view, service),
        "pending": list(pending(service)),
    }


def _failures(database: Database, view: NodeView, service: Service) -> Document | None:
    """How often it has failed within its window, and where it was given up; null where it has not (SPEC 5.4)."""
    if not service.failures and not service.exhausted:
        return None
    window_s = service.definition.restart_window_ms / 1000
    first_s, last_s = (view.at_s(index) if service.failures else None for index in (
        min(service.failures, default=0), max(service.failures, default=0)))  # fmt: skip
    return {
        "count": len(service.failures),
        "restarts": service.definition.restarts,
        "since_s": first_s,
        "until_s": None if last_s is None else round(last_s + window_s),
        "given_up": [
            {"node": database.name_of(found.node), "until_s": _plus(view.at_s(found.entry), window_s)}
            for found in service.exhausted
        ],
    }


def _plus(at_s: int | None, more_s: float) -> int | None:
    return None if at_s is None else round(at_s + more_s)


class DownWord(StrEnum):
    """What a de-registered service is, in a word of the glossary (docs/SPECIFICATION.md)."""

    WITHDRAWN = "withdrawn"
    DONE = "done"
    STOPPED = "stopped"
    NEVER_STARTED = "never started"
    FAILED = "failed"
    WAITS = "waits"


class Down(NamedTuple):
    """The same, and in full."""

    word: DownWord
    words: str


def _why_down(database: Database, service: Service) -> Down | None:
    """What a de-registered service is: stopped by a person, failed, waiting, or never started; None for others."""
    if service.state is not ServiceState.DEREGISTERED:
        return None
    parent = database.services.get(service.definition.parent) if service.definition.parent else None
    if service.removed:
        return Down(DownWord.WITHDRAWN, "withdrawn")
    if not service.wanted:
        if service.ended is Ended.DONE:
            return Down(DownWord.DONE, "has done its work")
        if service.generation or service.previous != NO_NODE:
            return Down(DownWord.STOPPED, "stopped by an operator")
        return Down(DownWord.NEVER_STARTED, "never started")
    if service.cause:
        return Down(DownWord.FAILED, "failed")
    if is_frozen(service, database):
        return Down(DownWord.WAITS, "waits for proof that its node has stopped")
    if parent is not None and parent.state is not ServiceState.REGISTERED:
        return Down(DownWord.WAITS, f"waits for its parent {parent.name}")
    first = service.previous == NO_NODE
    return Down(DownWord.WAITS, "waits for its first start" if first else "waits to be started again")


def _why_held(database: Database, view: NodeView, service: Service) -> str:
    """Why it is not as wanted though it is not stuck, in words."""
    awaited = view.awaited.get(service.node)
    place = words_about(service.name, awaited, database.name_of(service.node)) if awaited is not None else ""
    if service.broken:
        return "; ".join(filter(None, (f"it has failed: {service.broken}", place)))
    if place:
        return place
    if service.unclean is None:
        return ""
    where = database.name_of(service.unclean.node)
    return f"it waits until {where} is known to be clean of it: see muster why {service.name}"


def _flags(service: Service) -> list[str]:
    """T transfer intent, M awaiting maturity, N has a notify command (SPEC 6.9)."""
    flags = (("T", service.intent), ("M", service.waits_since), ("N", service.definition.notify_command))
    return [letter for letter, is_set in flags if is_set]


def _remaining(each: Maintenance | Standby, view: NodeView) -> int | None:
    return max(0, each.duration_ms - view.age_ms(each.since)) if each.duration_ms else None


def _service_in_full(database: Database, view: NodeView, service: Service) -> Document:
    return _service(database, view, service) | {
        "uid": service.uid,
        "generation": service.generation,
        "reason": service.reason,
        "origin": _name(database, service.origin),
        "target": _name(database, service.target),
        "previous": _name(database, service.previous),
        "failed": _names(database, service.failed),
        "unclean": _name(database, service.unclean.node) if service.unclean is not None else None,
        "removed": service.removed,
        "definition": msgspec.to_builtins(service.definition),
        "as_started": _as_started(service),
    }


def _as_started(service: Service) -> Document | None:
    """The keys that have changed since it started, as they were then; null where none has (P6.39)."""
    if service.as_started is None:
        return None
    return {key: msgspec.to_builtins(getattr(service.as_started, key)) for key in pending(service)}


def _transitions(database: Database, view: NodeView) -> list[Document]:
    return [_transition(database, view, database.transitions[key]) for key in sorted(database.transitions)]


def _transition(database: Database, view: NodeView, transition: Transition) -> Document:
    waiting, elapsed_us = view.waited_for.get(transition.identity, (transition.participants, 0))
    return {
        "id": transition.identity,
        "node": database.name_of(transition.node),
        "kind": str(transition.kind),
        "incarnation": transition.incarnation,
        "level": transition.level,
        "level_name": _level_name(database, transition.level),
        "levels": list(transition.levels),
        "barrier": transition.barrier,
        "participants": _names(database, transition.participants),
        "waiting_for": _names(database, waiting),
        "elapsed_ms": elapsed_us // 1000,
        "stragglers": [_straggler(database, transition, node, elapsed_us // 1000) for node in waiting],
        "awaits_level": transition.awaits or None,
        "cause": transition.cause,
    }


def _straggler(database: Database, transition: Transition, node: int, elapsed_ms: int) -> Document:
    """Which subsystem is waited for on `node`, and whether its deadline is over (SPEC 3.13)."""
    level = next((e for e in database.member(node).levels if e.number == transition.level), None)
    deadline_ms = level.deadline_ms if level else 0
    return {
        "node": database.name_of(node),
        "subsystem": level.name if level else "",
        "deadline_ms": deadline_ms or None,
        "hung": 0 < deadline_ms < elapsed_ms,
    }


def _level_name(database: Database, number: int) -> str:
    for member in database.members.values():
        for level in member.levels:
            if level.number == number:
                return level.name
    return ""
