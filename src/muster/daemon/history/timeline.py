"""Merges all nodes' records of one transition into one account, ordered by cause (SPEC 8.2, 9.4). Pure.

Theory of operation. Each node's clock is its own, so no two of them are compared. What orders the account is the commit
index: an entry comes before what it makes nodes do, and they were at its index at least when they did it. At one index,
what was told comes before what was acknowledged, and that before what a master heard of it. Time only orders what is
left.

Times are milliseconds since the beginning: the opening entry, which every member applies. A node's clock is aligned by
the first entry that it and the reference (the master that opened, or whoever else has recorded most) both applied. So
a time on another node than the reference is early by what that entry took to reach it, and no more. For how long a step
was at work, and whom it waited for, is told by the master's own clock where there is one: it heard of every
acknowledgement.

The formats are stable: new keys may come, none goes or changes its meaning.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from muster.core.transitions import narration as history
from muster.records.database import Database
from muster.records.levels import TransitionKind
from muster.records.messages import Happened
from muster.records.terms import Term
from muster.records.units import US_PER_MS

TOLD, ACKNOWLEDGED = "told", "acknowledged"
_CLOSING = {history.DONE: "done", history.REPLACED: "replaced", history.GONE: "over, unseen by those who answer"}
_RANKS = (  # of what bears the same commit index
    (history.LEVEL_DONE, history.BARRIER_DONE, history.DONE, history.REPLACED, history.RESUMED, history.DROPPED),
    ("node condemned", "link lost", "proof of death"),
    (history.FORCED_OUT,),
    (history.OPENED,),
    (history.PARKED, history.STEP_BEGUN, history.ADDED),
    (history.ELECTED,),
    (history.FOUND,),
    (history.STEP_TOLD,),
    (history.STEP_ACKNOWLEDGED,),
    (history.HEARD,),
    (history.HUNG,),
    (history.GONE,),
)
_WHOLE = (history.OPENED, history.DONE, history.FORCED_OUT, history.PARKED, history.RESUMED)  # no step's
_RANK = {event: rank for rank, events in enumerate(_RANKS) for event in events}

Document = dict[str, Any]
Place = tuple[int, int]  # level, barrier


class Statement(NamedTuple):
    """What one node has recorded: its clock when it was asked, the events, how many it had no room for."""

    now_us: int
    happened: tuple[Happened, ...]
    omitted: int = 0


class _Seen(NamedTuple):
    """An event, the node that recorded it, and when: microseconds since the beginning, None where unknown."""

    node: int
    happened: Happened
    time_us: int | None

    @property
    def place(self) -> Place:
        return self.happened.level, self.happened.barrier


def overview(database: Database, statements: Mapping[int, Statement]) -> list[Document]:
    """The recent transitions, newest first: `id`, `node`, `kind`, `age_ms`, `took_ms`, `outcome`, `cause`.

    `age_ms` is the time since it opened; null, as `took_ms`, where nobody who answers saw it open (or end).
    """
    found: dict[int, list[tuple[int, Happened]]] = {}
    for node in sorted(statements):
        for happened in statements[node].happened:
            if happened.transition:
                found.setdefault(happened.transition, []).append((node, happened))
    return [_summary(database, statements, identity, found[identity]) for identity in sorted(found, reverse=True)]


def account(database: Database, transition: int, statements: Mapping[int, Statement]) -> Document | None:
    """Everything about one transition: `transition`, `steps`, `account`; None if nobody knows it.

    `transition` is as in `overview`, with `opened_by`, `term`, `index`, `proof`, `replaces`, `replaced_by`. A step has
    `level`, `barrier`, `participants`, `began_ms`, `took_ms` (null while it is at work), `waited_for` (the last to
    acknowledge), `waited_ms`, and `missing`: of whom no acknowledgement is on record. A row of the account has
    `time_ms`, `index`, `node` (whose doing it was), `event`, `level`, `barrier`, `detail`, `after_ms` (of an
    acknowledgement: since that node was told) and `recorded_by`, where another node's record speaks for it.
    """
    own = [
        (node, happened)
        for node in sorted(statements)
        for happened in statements[node].happened
        if happened.transition == transition
    ]
    if not own:
        return None
    everything = _aligned(transition, statements)
    seen = [each for each in everything if each.happened.transition in (transition, 0)]
    before = [each for each in everything if each.happened.transition not in (transition, 0)]
    steps = _steps(seen)
    return {
        "transition": _summary(database, statements, transition, own) | _circumstances(database, seen, before),
        "steps": [step.document(database) for step in steps],
        "account": _rows(database, seen, before, steps),
        "omitted": sum(statement.omitted for statement in statements.values()),
    }


# ---- time -----------------------------------------------------------------------------------------------------------


def _aligned(transition: int, statements: Mapping[int, Statement]) -> list[_Seen]:
    """Every event with its time since the beginning, by cause."""
    entries = {
        node: _entries(statement.happened, transition) for node, statement in statements.items() if statement.happened
    }
    offsets = _offsets(_reference(transition, statements, entries), entries)
    found = []
    for node in sorted(entries):
        for happened in statements[node].happened:
            offset_us = offsets.get(node)
            time_us = happened.at_us - offset_us if offset_us is not None else None
            found.append(_Seen(node, happened, time_us))
    return sorted(found, key=_cause)


def _cause(seen: _Seen) -> tuple[int, int, bool, int, int]:
    happened = seen.happened
    index, time_us = happened.index, seen.time_us
    rank = _RANK.get(happened.event, len(_RANKS))
    return index, rank, time_us is None, time_us or 0, seen.node


def _entries(happened: Iterable[Happened], transition: int) -> dict[int, int]:
    """When the node applied each entry that belongs to the transition: commit index -> its own clock (us)."""
    found: dict[int, int] = {}
    for each in happened:
        if each.committed and transition in {each.transition, each.successor}:
            found[each.index] = min(each.at_us, found.get(each.index, each.at_us))
    return found


def _reference(transition: int, statements: Mapping[int, Statement], entries: Mapping[int, dict[int, int]]) -> int:
    """The node on whose clock the account runs: the same whoever is asked, as long as the same nodes answer."""

    def suitability(node: int) -> tuple[bool, bool, int, int]:
        opened = [
            each for each in statements[node].happened if each.transition == transition and each.event == history.OPENED
        ]
        return any(each.term.node == node for each in opened), bool(opened), len(entries[node]), -node

    return max(entries, key=suitability)


def _offsets(reference: int, entries: Mapping[int, dict[int, int]]) -> dict[int, int]:
    """What to take off each node's clock: by the first entry that it has in common with a node already aligned."""
    started_us = min(entries[reference].items(), default=(0, None))[1]
    if started_us is None:
        return {}
    offsets = {reference: started_us}
    agreed = {index: at_us - started_us for index, at_us in entries[reference].items()}
    waiting = sorted(set(entries) - {reference})
    for _ in range(len(waiting)):
        aligned = next((node for node in waiting if entries[node].keys() & agreed.keys()), None)
        if aligned is None:
            break  # who is left has nothing in common with anybody
        common = min(entries[aligned].keys() & agreed.keys())
        offsets[aligned] = entries[aligned][common] - agreed[common]
        for index, at_us in entries[aligned].items():
            agreed.setdefault(index, at_us - offsets[aligned])
        waiting.remove(aligned)
    return offsets


def _difference(later_us: int | None, earlier_us: int | None) -> int | None:
    return None if later_us is None or earlier_us is None else later_us - earlier_us


def _ms(time_us: int | None) -> float | None:
    return None if time_us is None else round(time_us / US_PER_MS, 3)


# ---- the transition -------------------------------------------------------------------------------------------------


def _summary(
    database: Database, statements: Mapping[int, Statement], identity: int, own: list[tuple[int, Happened]]
) -> Document:
    opened = [(node, each) for node, each in own if each.event == history.OPENED]
    ends = [(node, each) for node, each in own if each.event in _CLOSING]
    best = sorted(opened, key=lambda pair: (pair[1].term.node != pair[0], pair[0]))
    found = [(node, each) for node, each in own if each.event == history.FOUND]
    cause = best[0][1].detail if best else found[0][1].detail if found else ""
    age_us = took_us = None
    if best:
        node, first = best[0]
        age_us = statements[node].now_us - first.at_us
        # the closing on the same clock, if that node saw it; else on that of any other that saw both
        both = [
            last.at_us - begun.at_us
            for begun_on, begun in best
            for ended_on, last in ends
            if begun_on == ended_on and last.committed
        ]
        took_us = both[0] if both else None
    known = next(each for _, each in own)
    end = min((each.event for _, each in ends), key=list(_CLOSING).index, default=None)
    return {
        "id": identity,
        "node": database.name_of(known.about),
        "kind": str(TransitionKind(known.kind)),
        "age_ms": _ms(age_us),
        "took_ms": _ms(took_us),
        "outcome": _CLOSING[end] if end else "at work",
        "cause": cause.partition(": ")[2],
    }


def _circumstances(database: Database, seen: list[_Seen], before: list[_Seen]) -> Document:
    """By whom it was opened and on what proof; what it replaces and what replaces it."""
    opened = next((each.happened for each in seen if each.happened.event == history.OPENED), None)
    proof = next((each.happened.detail for each in seen if each.happened.event == history.FORCED_OUT), "")
    by = next((each.happened for each in seen if each.happened.event == history.REPLACED), None)
    return {
        "opened_by": database.name_of(opened.term.node) if opened else None,
        "term": opened.term.number if opened else None,
        "index": opened.index if opened else None,
        "proof": proof.partition(" on proof: ")[2] or None,
        "replaces": next((each.happened.transition for each in before), None),
        "replaced_by": by.successor if by else None,
    }


# ---- steps ----------------------------------------------------------------------------------------------------------


class _Step:
    """One barrier of one level, while all participants must acknowledge it."""

    def __init__(self, begun: _Seen) -> None:
        self.place = begun.place
        self.index = begun.happened.index
        self.participants = set(begun.happened.nodes)
        self.began_us = begun.time_us
        self.ended_us: int | None = None
        self.is_over = False
        self.told: dict[int, _Seen] = {}  # by the participant's own record
        self.acknowledged: dict[int, _Seen] = {}  # by the participant's own record
        self.heard: dict[int, _Seen] = {}  # by that of a master

    def arrivals(self) -> dict[int, int]:
        """When each acknowledgement came in, on the master's clock as far as one has heard it (us)."""
        best = {**self.acknowledged, **self.heard}
        return {node: each.time_us for node, each in best.items() if each.time_us is not None}

    def document(self, database: Database) -> Document:
        """The step, ready for JSON."""
        arrivals = self.arrivals()
        last = max(arrivals, key=lambda node: (arrivals[node], node), default=None)
        missing = sorted(self.participants - self.acknowledged.keys() - self.heard.keys())
        return {
            "level": self.place[0],
            "level_name": _level_name(database, self.place[0]),
            "barrier": self.place[1],
            "participants": _names(database, sorted(self.participants)),
            "began_ms": _ms(self.began_us),
            "took_ms": _ms(_difference(self.ended_us, self.began_us)),
            "waited_for": database.name_of(last) if last is not None and (self.is_over or not missing) else None,
            "waited_ms": _ms(_difference(arrivals[last] if last is not None else None, self.began_us)),
            "missing": _names(database, missing),
        }


def _steps(seen: list[_Seen]) -> list[_Step]:
    """The steps in their order, each with who was told and who acknowledged."""
    steps: dict[Place, _Step] = {}
    for each in _once(seen):
        event = each.happened.event
        if event == history.STEP_BEGUN:
            steps.setdefault(each.place, _Step(each))
        elif event in (history.LEVEL_DONE, history.BARRIER_DONE, history.DONE, history.REPLACED):
            step = steps.get(each.place)
            if step is not None and not step.is_over:
                step.is_over, step.ended_us = True, each.time_us
        elif event in (history.ADDED, history.DROPPED) and each.place in steps:
            participants = steps[each.place].participants
            change = participants.update if event == history.ADDED else participants.difference_update
            change(each.happened.nodes)
    for each in seen:
        step = steps.get(each.place)
        if step is None:
            continue
        if each.happened.event == history.STEP_TOLD:
            step.told.setdefault(each.node, each)
        elif each.happened.event == history.STEP_ACKNOWLEDGED:
            step.acknowledged.setdefault(each.node, each)
        elif each.happened.event == history.HEARD:
            step.heard.setdefault(each.happened.nodes[0], each)
    return list(steps.values())


def _once(seen: list[_Seen]) -> list[_Seen]:
    """Of each entry's event, which many nodes have recorded, the record of the master or else the first one."""
    found: dict[tuple[int, str, Place, Term], _Seen] = {}
    for each in seen:
        happened = each.happened
        if happened.committed:
            key = (happened.index, happened.event, each.place, happened.term)
            if key not in found or (happened.term.node == each.node and found[key].node != each.node):
                found[key] = each
    return list(found.values())


# ---- the account ----------------------------------------------------------------------------------------------------


def _rows(database: Database, seen: list[_Seen], before: list[_Seen], steps: list[_Step]) -> list[Document]:
    by_place = {step.place: step for step in steps}
    interrupted = _interrupted(before)
    committed = {id(each) for each in _once(seen)}
    rows: list[tuple[_Seen, Document]] = []
    for each in seen:
        event = each.happened.event
        step = by_place.get(each.place)
        if each.happened.committed:
            if id(each) in committed:
                rows.append((each, _row(database, each, each.happened.term.node)))
        elif event == history.STEP_TOLD:
            again = (each.node, each.place[0]) in interrupted
            repeated = step is not None and step.told[each.node] is not each
            detail = "a re-notification: it was still at work on what this replaces" if again else ""
            detail = "told again: its daemon has been restarted" if repeated else detail
            rows.append((each, _row(database, each, each.node, TOLD, detail)))
        elif event == history.STEP_ACKNOWLEDGED:
            told = step.told.get(each.node) if step is not None else None
            after_us = each.happened.at_us - told.happened.at_us if told is not None else None
            rows.append((each, _row(database, each, each.node, ACKNOWLEDGED, "", after_us)))
        elif event != history.HEARD:
            rows.append((each, _row(database, each, each.node)))
    for step in steps:
        rows += _by_others(database, step)
    for each in before:
        if each.happened.event == history.REPLACED:
            rows.append((each, _row(database, each, each.happened.term.node)))
            break
    return [row for _, row in sorted(rows, key=lambda pair: _cause(pair[0]))]


def _by_others(database: Database, step: _Step) -> list[tuple[_Seen, Document]]:
    """What a master's record says of participants whose own is missing: they have left, died or booted since."""
    rows = []
    for node, heard in step.heard.items():
        if node in step.acknowledged:
            continue
        happened = heard.happened
        recorder = database.name_of(heard.node)
        if node not in step.told:
            detail = "told by the entry; its own record is missing"
            time_us = step.began_us
            told = _Seen(node, _at(happened, history.STEP_TOLD, step.index), time_us)
            rows.append((told, _row(database, told, node, TOLD, detail) | {"recorded_by": recorder}))
        since_us = _difference(heard.time_us, step.began_us)
        acknowledged = _Seen(node, _at(happened, history.STEP_ACKNOWLEDGED, happened.index), heard.time_us)
        detail = "as the master heard it; its own record is missing"
        row = _row(database, acknowledged, node, ACKNOWLEDGED, detail, since_us)
        rows.append((acknowledged, row | {"recorded_by": recorder}))
    return rows


def _at(happened: Happened, event: str, index: int) -> Happened:
    return Happened(
        happened.at_us, event, "", happened.term, index, transition=happened.transition,
        level=happened.level, barrier=happened.barrier, about=happened.about, kind=happened.kind,
    )  # fmt: skip


def _interrupted(before: list[_Seen]) -> set[tuple[int, int]]:
    """(node, level) that was told of the transition which was replaced, and had not acknowledged it."""
    told = {(each.node, each.place) for each in before if each.happened.event == history.STEP_TOLD}
    done = {(each.node, each.place) for each in before if each.happened.event == history.STEP_ACKNOWLEDGED}
    return {(node, place[0]) for node, place in told - done}


def _row(
    database: Database, seen: _Seen, node: int, event: str = "", detail: str | None = None, after_us: int | None = None
) -> Document:
    happened = seen.happened
    in_step = happened.level > 0 and happened.event not in _WHOLE
    return {
        "time_ms": _ms(seen.time_us),
        "index": happened.index,
        "node": database.name_of(node),
        "event": event or happened.event,
        "level": happened.level if in_step else None,
        "barrier": happened.barrier if in_step else None,
        "detail": happened.detail if detail is None else detail,
        "after_ms": _ms(after_us),
        "recorded_by": None,
    }


def _names(database: Database, nodes: Iterable[int]) -> list[str]:
    return [database.name_of(node) for node in nodes]


def _level_name(database: Database, number: int) -> str:
    names = (level.name for member in database.members.values() for level in member.levels if level.number == number)
    return next(names, "")
