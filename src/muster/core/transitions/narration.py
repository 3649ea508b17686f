"""What a committed entry means in words, for the log and the timeline (SPEC 8.2, 9.4).

Every node narrates the entries that it applies, what its own subsystems are told and acknowledge, and as master what it
hears of others. `daemon/history/timeline.py` merges the records of all nodes into one account of a transition.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from muster.core.effects import Trace
from muster.core.transitions.transition import step_of
from muster.records.configuration import Audit, Operation, Revision
from muster.records.database import Database, Entry, Forget
from muster.records.deciders import Decider
from muster.records.events import EventGroup
from muster.records.fencing import FenceDevice, FencePhase, FencePlan, Fencing
from muster.records.kinds import KINDS, kind_named
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.messages import Report
from muster.records.nodes import Cluster, NodeConfig
from muster.records.required_levels import words_of
from muster.records.services import Maintenance, Service, Standby
from muster.records.tables import check_rows
from muster.records.transitions import Transition

OPENED = "transition opened"
STEP_BEGUN = "step begun"
STEP_TOLD = "step told"
STEP_ACKNOWLEDGED = "step acknowledged"
HEARD = "acknowledgement heard"
ADDED = "participant added"
DROPPED = "participant dropped"
BARRIER_DONE = "barrier done"
LEVEL_DONE = "level done"
PARKED = "join parked"
RESUMED = "join resumed"
REPLACED = "transition replaced"
DONE = "transition done"
FOUND = "transition found"
GONE = "transition gone"
FORCED_OUT = "forced out"
HUNG = "subsystem hung"
WAITS = "join waits"
OVERDUE = "join overdue"
ELECTED = "elected"


def narrate(before: Database, entry: Entry) -> list[Trace]:
    """The events of `entry`, which is about to be applied to `before`."""
    traces: list[Trace] = []
    for change in entry.changes:
        if isinstance(change, Forget):
            traces += _NARRATORS[kind_named(change.kind).struct].forgotten(before, entry, change.key)
        else:
            traces += _NARRATORS[type(change)].put(before, entry, change)
    return traces


def _member(before: Database, entry: Entry, now: Member) -> list[Trace]:
    name = before.name_of(now.node)
    if now.eviction is not None:
        return [Trace("node condemned", f"{name}: {now.eviction.cause}", about=now.node, index=entry.index)]
    if now.state is NodeState.FORCED_LEAVING and now.last_proof is not None:
        detail = f"{name} on proof: {now.last_proof.kind.words}"
        opened = _opened(before, entry, now.node)
        identity, kind = (opened.identity, opened.kind.value) if opened else (0, 0)
        return [Trace(FORCED_OUT, detail, identity, about=now.node, kind=kind, index=entry.index)]
    return _kept_out(before, now)


def _kept_out(before: Database, now: Member) -> list[Trace]:
    """Why a join is not opened, where that has changed (P3.17, P4.1)."""
    was, name, traces = before.member(now.node), before.name_of(now.node), []
    if now.refusal and now.refusal != was.refusal:
        traces.append(Trace("join refused", f"{name}: {now.refusal}"))
    if now.waits is not None and now.waits != was.waits:
        traces.append(Trace(WAITS, f"{name}: for {words_of(now.waits.missing)}", about=now.node))
    return traces


def skipped(before: Database, after: Database) -> list[Trace]:
    """What became of the transitions where a replica is replaced as a whole: its entries were never narrated here."""
    traces = []
    for now in after.transitions.values():
        was = before.transitions.get(now.identity)
        if was is None or step_of(was) != step_of(now):
            traces.append(_step(FOUND, after, now, f": {now.cause}", nodes=now.participants))
    gone = [was for was in before.transitions.values() if was.identity not in after.transitions]
    return traces + [_step(GONE, after, was) for was in gone]


def told(database: Database, transition: Transition) -> Trace:
    """A subsystem of this node is told the present step."""
    return _step(STEP_TOLD, database, transition)


def acknowledged(database: Database, transition: Transition) -> Trace:
    """A subsystem of this node has acknowledged the present step."""
    return _step(STEP_ACKNOWLEDGED, database, transition)


def heard(database: Database, node: int, before: Report | None, now: Report | None) -> list[Trace]:
    """On the master: the acknowledgements of present steps that a node's report `now` has and `before` had not.

    They outlive the node in the master's record, and are all on one clock: who was the last is seen from them.
    """
    steps = now.acknowledgements if now is not None else ()
    known = before.acknowledgements if before is not None else ()
    if steps == known:
        return []
    fresh = [database.transitions.get(step.transition) for step in steps if step not in known]
    return [
        _step(HEARD, database, transition, f": {database.name_of(node)}", nodes=(node,), quiet=True)
        for transition in fresh
        if transition is not None and step_of(transition) in steps
    ]


def _transition(before: Database, entry: Entry, now: Transition) -> list[Trace]:
    name = before.name_of(now.node)
    was = before.transitions.get(now.identity)
    traces = []
    if was is None:
        traces.append(_entered(OPENED, f"{name} {now.kind}: {now.cause}", now, entry.index))
    elif was.awaits and not now.awaits:
        detail = f"{name} {now.kind}: it has registered level {was.awaits}"
        traces.append(_entered(RESUMED, detail, now, entry.index))
    elif was.position != now.position or (now.awaits and not was.awaits):
        detail = f"{name} {now.kind} level {was.level}"
        traces.append(_entered(LEVEL_DONE, detail, was, entry.index))
    elif was.barrier != now.barrier:
        detail = f"{name} {now.kind} level {was.level} barrier {was.barrier}"
        traces.append(_entered(BARRIER_DONE, detail, was, entry.index))
    else:
        return _participants_changed(before, entry, was, now)
    if now.awaits:
        detail = f"{name} {now.kind}: waits for {name} to register level {now.awaits}"
        traces.append(_entered(PARKED, detail, now, entry.index))
    else:
        participants = _names(before, now.participants)
        detail = f"{name} {now.kind} level {now.level} barrier {now.barrier}: {participants}"
        traces.append(_entered(STEP_BEGUN, detail, now, entry.index, now.participants))
    return traces


def _participants_changed(before: Database, entry: Entry, was: Transition, now: Transition) -> list[Trace]:
    """Nobody waits any more for who was forced out; who is new to the level takes part in the step (SPEC 3.4)."""
    step = f"{before.name_of(now.node)} {now.kind} level {now.level} barrier {now.barrier}"
    before_it, after_it = set(was.participants), set(now.participants)
    gone = tuple(node for node in was.participants if node not in after_it)
    new = tuple(node for node in now.participants if node not in before_it)
    return [
        _entered(event, f"{step}: {_names(before, nodes)}", now, entry.index, nodes)
        for event, nodes in ((DROPPED, gone), (ADDED, new))
        if nodes
    ]


def _over(before: Database, entry: Entry, key: str) -> list[Trace]:
    """The transition is complete, or another one of its node takes its place (SPEC 3.7, 3.9)."""
    over = before.transitions.get(int(key))
    if over is None:
        return []
    name = before.name_of(over.node)
    opened = _opened(before, entry, over.node)
    if opened is None:
        return [_entered(DONE, f"{name} {over.kind}", over, entry.index)]
    detail = f"{name} {over.kind} level {over.level} barrier {over.barrier}: by {opened.kind}"
    return [_entered(REPLACED, detail, over, entry.index, successor=opened.identity)]


def _opened(before: Database, entry: Entry, node: int) -> Transition | None:
    """The transition of `node` that the entry opens."""
    return next(
        (
            change
            for change in entry.changes
            if isinstance(change, Transition) and change.node == node and change.identity not in before.transitions
        ),
        None,
    )


def _entered(
    event: str, detail: str, at: Transition, index: int, nodes: tuple[int, ...] = (), successor: int = 0
) -> Trace:
    return Trace(
        event, detail, at.identity, at.level, at.barrier, at.node, at.kind.value, index, nodes, successor
    )  # fmt: skip


def _step(
    event: str, database: Database, at: Transition, more: str = "", nodes: tuple[int, ...] = (), *, quiet: bool = False
) -> Trace:
    detail = f"{database.name_of(at.node)} {at.kind} level {at.level} barrier {at.barrier}{more}"
    return Trace(
        event, detail, at.identity, at.level, at.barrier, at.node, at.kind.value, nodes=nodes, quiet=quiet
    )  # fmt: skip


def _names(database: Database, nodes: tuple[int, ...]) -> str:
    return ", ".join(database.name_of(node) for node in nodes) or "nobody"


def _service(before: Database, _entry: Entry, now: Service) -> list[Trace]:
    was = before.services.get(now.name)
    traces = []
    if was is None or was.state is not now.state or was.node != now.node:
        where = f" on {before.name_of(now.node)}" if now.node >= 0 else ""
        traces.append(Trace(f"service {now.state}", f"{now.name}{where}"))
    if now.cause and (was is None or was.cause != now.cause):
        traces.append(Trace("service stuck", f"{now.name}: {now.cause}"))
    return traces


def _fencing(before: Database, entry: Entry, now: Fencing) -> list[Trace]:
    was, name = before.fencing.get(now.node) or Fencing(now.node), before.name_of(now.node)
    traces = []
    for past in now.past:
        if past.entry == entry.index:
            by = f" by {before.name_of(past.asker)}" if past.asker >= 0 else ""
            detail = f"{name}: method {past.method}, {past.phase.word}{by}: {past.outcome.words}"
            traces.append(
                Trace("fence answered", f"{detail}{f' ({past.detail})' if past.detail else ''}", about=now.node)
            )
    if now.phase is not FencePhase.IDLE and now.asker >= 0 and now.number != was.number:
        asked = before.name_of(now.asker)
        detail = f"{name}: request {now.number}, {now.phase.word}, asked of {asked}: {now.cause}"
        traces.append(Trace("fence asked", detail, about=now.node, index=entry.index))
    if now.quarantined and not was.quarantined:
        traces.append(Trace("node quarantined", f"{name}: fenced {len(now.fenced)} times within an hour"))
    return traces


def _silent(_before: Database, _entry: Entry, _what: object) -> list[Trace]:
    """Nothing for the timeline."""
    return []


class _Narrator(NamedTuple):
    """What is told where a record of one kind is put, and where it is forgotten."""

    put: Callable[[Database, Entry, Any], list[Trace]]
    forgotten: Callable[[Database, Entry, str], list[Trace]] = _silent


_NARRATORS: dict[type, _Narrator] = {
    Transition: _Narrator(_transition, _over),
    Service: _Narrator(_service),
    Member: _Narrator(_member),
    **dict.fromkeys((Cluster, NodeConfig, Maintenance, Standby, EventGroup), _Narrator(_silent)),
    **dict.fromkeys((Operation, Audit, Revision, FenceDevice, FencePlan, Decider), _Narrator(_silent)),
    Fencing: _Narrator(_fencing),
}
check_rows("core/transitions/narration.py", _NARRATORS, (kind.struct for kind in KINDS))
