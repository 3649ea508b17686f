"""What a committed entry means for people: moves, failures, joins, ends of nodes, changes by persons (P10.13).

Every node tells it from the same records, so all of them say the same of an entry, and any of them can fill in what
another has missed. In words without running times; bounded for each entry.
"""

from collections.abc import Iterator

from muster.core.draft import is_silent
from muster.records.access import ITSELF
from muster.records.configuration import Audit
from muster.records.database import Database, Entry
from muster.records.fencing import FenceOutcome, Fencing
from muster.records.happenings import (
    CHANGE,
    CONDEMNED,
    FAILURE,
    FENCE,
    JOIN,
    LEAVE,
    LOST,
    MASTER,
    MOVE,
    RESTART,
    START,
    STOP,
    STUCK,
    Happening,
)
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.services import Service, ServiceState
from muster.records.terms import NO_NODE

MAXIMUM_OF_ONE = 200  # happenings of an entry; of more, the last one says how many


def chronicle(before: Database, entry: Entry) -> tuple[Happening, ...]:
    """What happened in `entry`, which is about to be applied to `before`, in its order."""
    found: list[Happening] = []
    if entry.term != before.term:
        name = before.name_of(entry.term.node)
        found.append(Happening(MASTER, f"node/{name}", f"{name} leads the cluster, term {entry.term.number}"))
    for change in entry.changes:
        match change:
            case Member():
                found += _of_member(before, change)
            case Service():
                found += _of_service(before, change)
            case Fencing():
                found += _of_fencing(before, change, entry.index)
            case Audit() if change.user == ITSELF and change.operation == "fail":
                pass  # what a watcher has seen: the service tells it
            case Audit():
                words = f"{change.user}@{change.node}: {change.operation} {change.subject}".rstrip()
                found.append(Happening(CHANGE, change.subject or change.operation, f"{words}: {change.outcome}"))
            case _:
                pass
    if len(found) > MAXIMUM_OF_ONE:
        more = len(found) - MAXIMUM_OF_ONE + 1
        rest = Happening(CHANGE, "cluster", f"and {more} more of the same entry")
        found = [*found[: MAXIMUM_OF_ONE - 1], rest]
    return tuple(found)


def _of_member(before: Database, now: Member) -> Iterator[Happening]:
    was, name = before.member(now.node), before.name_of(now.node)
    if now.eviction is not None and (was.eviction is None or is_silent(was) != is_silent(now)):
        what = "is silent, and nobody waits for it" if is_silent(now) else "is to be forced out"
        yield Happening(CONDEMNED, f"node/{name}", f"{name} {what}: {now.eviction.cause}")
    if now.state is was.state and now.incarnation == was.incarnation:
        return
    proof = now.last_proof
    match now.state:
        case NodeState.JOINED:
            yield Happening(JOIN, f"node/{name}", f"{name} has joined")
        case NodeState.LEAVING:
            yield Happening(LEAVE, f"node/{name}", f"{name} leaves")
        case NodeState.FORCED_LEAVING:
            evidence = f": {proof.kind.words}, {proof.detail}" if proof is not None else ""
            yield Happening(LOST, f"node/{name}", f"{name} is lost, on proof of its death{evidence}")
        case NodeState.INACTIVE if was.state is NodeState.LEAVING:
            yield Happening(LEAVE, f"node/{name}", f"{name} has left")


def _of_fencing(before: Database, now: Fencing, index: int) -> Iterator[Happening]:
    was, name = before.fencing.get(now.node) or Fencing(now.node), before.name_of(now.node)
    subject = f"node/{name}"
    for past in now.past:
        if past.entry == index and past.outcome is FenceOutcome.FAILED:
            words = f"{name} could not be turned {past.phase.word} by method {past.method}: {past.detail}"
            yield Happening(FENCE, subject, words)
        elif past.entry == index and past.outcome is FenceOutcome.ON:
            yield Happening(FENCE, subject, f"{name} is turned on again")
    if now.incarnation != was.incarnation and now.asker >= 0:
        yield Happening(FENCE, subject, f"{name} is fenced by {before.name_of(now.asker)}: {now.cause}")
    if now.quarantined != was.quarantined:
        what = "stays off and does not join: it was fenced too often" if now.quarantined else "may join again"
        yield Happening(FENCE, subject, f"{name} {what}")


def _of_service(before: Database, now: Service) -> Iterator[Happening]:
    was, subject = before.services.get(now.name), f"service/{now.name}"
    if now.definition.on_all and not now.template:
        return  # its instances tell
    where = f" on {before.name_of(now.node)}" if now.node != NO_NODE else ""
    if was is not None and now.broken and now.broken != was.broken:
        yield Happening(FAILURE, subject, f"{now.name} has failed{where}: {now.broken}")
    elif was is not None and not was.broken and _failures(now) - _failures(was):
        yield Happening(FAILURE, subject, f"{now.name} has failed: {now.reason}")
    if was is not None:
        for node in set(now.failed) - set(was.failed):
            yield Happening(FAILURE, subject, f"a start of {now.name} has failed on {before.name_of(node)}")
    if now.cause and (was is None or now.cause != was.cause):
        yield Happening(STUCK, subject, f"{now.name} is stuck: {now.cause}")
    state = was.state if was is not None else ServiceState.DEREGISTERED
    if now.state is ServiceState.REGISTERED and state is not ServiceState.REGISTERED:
        yield _started(before, was, now, where)
    elif now.state is ServiceState.DEREGISTERED and was is not None and state not in _NEVER_RAN:
        why = f": {was.reason}" if was.reason else ""
        yield Happening(STOP, subject, f"{now.name} has ended on {before.name_of(was.node)}{why}")


_NEVER_RAN = (ServiceState.DEREGISTERED, ServiceState.STARTING)


def _failures(service: Service) -> set[int]:
    return {*service.failures, *(found.entry for found in service.exhausted)}


def _started(before: Database, was: Service | None, now: Service, where: str) -> Happening:
    subject, why = f"service/{now.name}", f" ({now.reason})" if now.reason else ""
    before_it = was.previous if was is not None else NO_NODE
    if was is not None and was.origin != NO_NODE:
        before_it = was.origin
    if before_it in (NO_NODE, now.node):
        kind = RESTART if before_it == now.node else START
        return Happening(kind, subject, f"{now.name} runs {'again' if kind == RESTART else ''}".rstrip() + where + why)
    words = f"{now.name} has moved from {before.name_of(before_it)} to {before.name_of(now.node)}"
    return Happening(MOVE, subject, words + why)
