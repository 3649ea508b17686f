"""Why a node, or the cluster as a whole, is as it is: what signs and records say, for people (P10.12, SPEC 8.2)."""

from typing import Any

from muster.core.draft import is_silent
from muster.core.freezing import is_frozen
from muster.core.membership.membership import SILENCE
from muster.core.transitions.required import required_of
from muster.daemon.socket import queries
from muster.daemon.socket.queries import NodeView
from muster.records.database import Database
from muster.records.fencing import FencePhase
from muster.records.levels import NodeState
from muster.records.required_levels import words_of
from muster.records.services import Service, ServiceState
from muster.records.terms import NO_NODE

Document = dict[str, Any]


def why_node(database: Database, view: NodeView, name: str) -> Document:
    """The account of one node: `summary`, `next_step`, `rules`, `services`, `needs`."""
    node = database.node_named(name)
    assert node is not None, "whoever asks has looked"
    found = queries.nodes(database, view)["nodes"][name]
    need = view.needs.about(f"node/{name}")
    held = [service for service in database.services.values() if service.node == node]
    summary = need.words if need is not None else _summary(name, found)
    return {
        "subject": {"kind": "node", "name": name, "state": found["state"], "condition": found["condition"]},
        "summary": summary,
        "next_step": need.next_step if need is not None else "",
        "needs": queries.needs_about(view, f"node/{name}"),
        "rules": _rules(database, view, node, found),
        "services": [{"service": each.name, "words": _of_service(database, each)} for each in held],
    }


def why_cluster(database: Database, view: NodeView) -> Document:
    """The account of the whole: all that needs a person, and what each instrument would say of the whole."""
    found = queries.needs(database, view)
    told, well = found["needs"], view.needs.well
    count = len(told) + found["needs_beyond"]
    says = "nothing needs you" if not count else "1 thing needs you" if count == 1 else f"{count} things need you"
    return {
        "subject": {"kind": "cluster", "name": database.cluster.name, "state": "", "condition": ""},
        "summary": f"{says}: {well.words}",
        "next_step": told[0]["next"] if told else "",
        "needs": told,
        "rules": _rules_of_cluster(database, view),
        "services": [],
    }


def _rules_of_cluster(database: Database, view: NodeView) -> list[Document]:
    leads = view.master != NO_NODE
    master = f"{database.name_of(view.master)} leads" if leads else "no node leads: nothing is decided"
    well, held = view.needs.well, len(database.maintenance) + len(database.standby)
    left_alone = f"in maintenance or on standby: {held}" if held else "nothing is taken out of its hands"
    rows = (
        ("master", leads, master),
        ("nodes", well.nodes == well.of_nodes, f"{well.nodes} of {well.of_nodes} are well"),
        ("services", well.services == well.of_services, f"{well.services} of {well.of_services} are well"),
        ("store", not view.fullness.words, view.fullness.words or f"it is {view.fullness.percent} % full"),
        ("left alone", not held, left_alone),
    )
    return [{"rule": rule, "holds": holds, "words": words} for rule, holds, words in rows]


def _summary(name: str, found: Document) -> str:
    """A node that needs nobody."""
    ails = f", {found['condition']}" if found["condition"] not in ("well", "unknown") else ""
    cause = f": {found['cause']}" if found["cause"] else ""
    return f"{name} is {found['state']}{ails}{cause}"


def _rules(database: Database, view: NodeView, node: int, found: Document) -> list[Document]:
    member, own = database.member(node), node == view.node
    required = required_of(database.cluster, database.nodes[node])
    waiting = view.waiting.get(node)
    needed = f"it waits for {words_of(waiting.missing)}" if waiting else "no required program is missing"
    evicted = member.eviction
    condemned = f"to be forced out: {evicted.cause}" if evicted is not None else "nobody forces it out"
    if is_silent(member):
        condemned = f"silent: {evicted.cause if evicted else SILENCE}"
    proof = found["last_proof"]
    past = f"; its last life ended by {proof['kind']}: {proof['detail']}" if proof else ""
    rows = (
        ("member", member.state is NodeState.JOINED, f"it is {found['state']}{past}"),
        ("lease", found["live"], "its lease is renewed" if found["live"] else "its lease is not renewed"),
        ("link", found["link"], "it is heard" if found["link"] else "it is not heard on the interconnect"),
        ("signs", found["condition"] == "well", f"{found['condition']}: {found['evidence']}".rstrip(": ")),
        ("proof", evicted is None, condemned),
        ("fencing", not _fencing(database, node), _fencing(database, node) or f"proven by {found['proofs']}"),
        ("required", waiting is None, needed if required or waiting else "it must wait for no program"),
        ("refusal", not member.refusal, member.refusal or "its join is not refused"),
        ("lead", node not in view.unable, view.unable.get(node) or "it can lead"),
        ("services", not found["held"], found["held"] or "it may be given services"),
    )
    return [
        {"rule": rule, "holds": bool(holds), "words": words}
        for rule, holds, words in rows
        if not (own and rule in ("link", "signs"))
    ]


def _fencing(database: Database, node: int) -> str:
    """What is asked of fence agents about it now, in words."""
    record = database.fencing.get(node)
    if record is None or (record.phase is FencePhase.IDLE and not record.quarantined):
        return ""
    if record.phase is FencePhase.IDLE:
        return "it is in quarantine: it was fenced too often within an hour"
    by = database.name_of(record.asker) if record.asker != NO_NODE else "nobody yet"
    return f"it is to be turned {record.phase.word}; asked of {by} (request {record.number})"


def _of_service(database: Database, service: Service) -> str:
    if is_frozen(service, database):
        return f"{service.state}; it stays so until the node is proven to have stopped"
    if service.cause:
        return f"{service.state}; stuck: {service.cause}"
    return "it runs here" if service.state is ServiceState.REGISTERED else str(service.state)
