"""The master's part of fencing: who is asked to fence a silent node, by which method, and what its answer means.

Theory of operation. A member that is condemned and silent, and of which something says how it is fenced, gets a
request: a record that names its incarnation, the asker, the method and a number of its own (P7.22). Only when that is
committed does the asker's node act on it (`asker.py`). What the asker says comes in its report. `off` is the proof of
death: the forced leave is opened by the same entry, and only a later request turns the node on again (P7.26). A
failure, or an asker that is gone or says nothing in time, is followed by another request: another asker, then the next
method, with growing pauses (P7.25). A node that was fenced too often within an hour stays off (P7.27).
"""

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, counts, is_silent, takes_part
from muster.core.transitions.transition import open_forced_leave
from muster.records.fencing import (
    KEPT_FENCINGS,
    KEPT_OUTCOMES,
    FenceAnswer,
    FenceMethod,
    FenceOutcome,
    FencePast,
    FencePhase,
    Fencing,
)
from muster.records.levels import NodeState
from muster.records.members import Proof
from muster.records.registers import ProofKind
from muster.records.terms import NO_NODE
from muster.records.texts import LEAST_TEXT_BYTES, clipped
from muster.records.versions import FENCING

TRIES = 2  # of one method in a row, each by another asker where there is one
LONGEST_PAUSE_MS = 60_000
SLACK_MS = 10_000  # beside the time of all calls, before an asker that says nothing is given up
TRIES_ON = 4  # to turn a node on again, before that is left to a person
QUARANTINE_AFTER = 3  # times within QUARANTINE_WINDOW_MS that a node was fenced
QUARANTINE_WINDOW_MS = 60 * 60 * 1000
US_PER_MS = 1000


def advance(draft: Draft, facts: Facts) -> None:
    """Make, follow up and end the requests about all nodes (P7.22-P7.27)."""
    if draft.cluster.active_version < FENCING or not facts.fences:
        return
    for node in sorted({*draft.fence_plans, *draft.fencing}):
        if draft.is_full:
            return
        _advance(draft, facts, node)


def _advance(draft: Draft, facts: Facts, node: int) -> None:
    record, member = draft.fencing.get(node) or Fencing(node), draft.member(node)
    is_it = counts(member) and member.incarnation == record.incarnation
    match record.phase:
        case FencePhase.IDLE if (
            node in draft.fence_plans and is_silent(member) and not _is_left_alone(draft, facts, node)
        ):
            assert member.eviction is not None
            begin(draft, facts, node, member.eviction.cause)
        case FencePhase.OFF if not is_it:
            _proven_otherwise(draft, facts, record)
        case FencePhase.OFF | FencePhase.ON:
            _pursue(draft, facts, record)
        case _:
            pass


def _is_left_alone(draft: Draft, facts: Facts, node: int) -> bool:
    """Whether a person works on it: maintenance keeps Muster from turning it off of its own accord (P6.30); or whether
    it may just be booting, as this node was a moment ago (P4.14).
    """
    if facts.graced(node):
        return True
    return "cluster/" in draft.maintenance or f"node/{draft.name(node)}" in draft.maintenance


def is_newer(facts: Facts, record: Fencing) -> bool:
    """Whether a later incarnation of the node has taken its lease."""
    return facts.slots.get(record.node, 0) > record.incarnation


def begin(draft: Draft, facts: Facts, node: int, cause: str) -> None:
    """The first request about this incarnation (P7.22)."""
    record, member = draft.fencing.get(node) or Fencing(node), draft.member(node)
    fenced = record.fenced
    if member.incarnation != record.incarnation:  # else its methods were changed in the midst of it
        window_us = QUARANTINE_WINDOW_MS * US_PER_MS
        recent = [index for index in fenced if facts.age_us(index) < window_us]
        fenced = (*recent, draft.index)[-KEPT_FENCINGS:]
    quarantined = record.quarantined or len(fenced) > QUARANTINE_AFTER
    fresh = replace(
        record, incarnation=member.incarnation, phase=FencePhase.OFF, method=0, attempt=0, cause=cause, fenced=fenced,
        quarantined=quarantined,
    )  # fmt: skip
    _ask(draft, facts, fresh)


def methods_of(draft: Draft, node: int) -> tuple[FenceMethod, ...]:
    """How the node is fenced."""
    plan = draft.fence_plans.get(node)
    return plan.methods if plan is not None else ()


def _ask(draft: Draft, facts: Facts, record: Fencing, *, goes_on: bool = False) -> None:
    """Put the request that `record` is about, to an asker if there is one (P7.25).

    `goes_on`: to the one that was asked last, if it can be: only that one knows when what it called has ended (P7.26).
    """
    methods = methods_of(draft, record.node)
    if not methods or record.method >= len(methods):
        _end(draft, record, FenceOutcome.FAILED, "nothing says any more how it is fenced")
        return
    askers = _askers(draft, facts, record.node, methods[record.method])
    asker = askers[record.attempt % len(askers)] if askers else NO_NODE
    if goes_on and record.asker in askers:
        asker = record.asker
    incarnation = draft.member(asker).incarnation if asker != NO_NODE else 0
    before = draft.fencing.get(record.node)
    if asker == NO_NODE and before is not None and before.asker == NO_NODE and before.phase is record.phase:
        return  # it waits already
    asked = replace(
        record, number=record.number + 1, asker=asker, asker_incarnation=incarnation, since=draft.index
    )  # fmt: skip
    by = f"asked of {draft.name(asker)}" if asker != NO_NODE else "no member can do it now"
    draft.put(asked, f"{draft.name(record.node)}: to be turned {record.phase.word}, {by}")


def _askers(draft: Draft, facts: Facts, node: int, method: FenceMethod) -> list[int]:
    """The members that can be asked: this one first, and last those that could not use the devices lately (P7.25)."""
    devices = [draft.fence_devices.get(step.device) for step in method.steps]
    found = []
    for member in draft.members.values():
        report = facts.report(member)
        if member.node == node or not takes_part(member) or member.eviction is not None or report is None:
            continue
        if member.state not in (NodeState.JOINED, NodeState.LEAVING):
            continue
        if any(device is None or (device.askers and member.node not in device.askers) for device in devices):
            continue
        troubled = any(device is not None and device.name in report.fence_troubles for device in devices)
        found.append((troubled, member.node != facts.me, member.node))
    return [asker for *_, asker in sorted(found)]


def _pursue(draft: Draft, facts: Facts, record: Fencing) -> None:
    """A request is on its way, or waits for its turn."""
    if record.asker == NO_NODE:
        if facts.age_us(record.since) >= _pause_ms(draft, record) * US_PER_MS:
            _ask(draft, facts, record)
        return
    member = draft.member(record.asker)
    if not takes_part(member) or member.eviction is not None or member.incarnation != record.asker_incarnation:
        _again(draft, facts, record, "its asker is gone")
        return
    answer = _answer(facts, record)
    if answer is None:
        if facts.age_us(record.since) >= _bound_ms(draft, record) * US_PER_MS:
            _again(draft, facts, record, "its asker has said nothing in time")
    elif answer.outcome is FenceOutcome.NOT_NEEDED:
        pass  # what shows that to the asker shows it here, too
    elif answer.outcome is FenceOutcome.OFF and record.phase is FencePhase.OFF:
        _proven(draft, facts, record, answer)
    elif answer.outcome is FenceOutcome.ON and record.phase is FencePhase.ON:
        _end(draft, record, FenceOutcome.ON, answer.detail)
    else:
        _again(draft, facts, record, answer.detail)


def _answer(facts: Facts, record: Fencing) -> FenceAnswer | None:
    """What the asker has said of this very request."""
    report = facts.reports.get(record.asker)
    if report is None or report.incarnation != record.asker_incarnation:
        return None
    asked = (record.node, record.incarnation, record.number)
    return next((each for each in report.fences if (each.node, each.incarnation, each.number) == asked), None)


def _bound_ms(draft: Draft, record: Fencing) -> int:
    """How long an asker may take: two calls a device, and some time for reads and messages."""
    methods = methods_of(draft, record.node)
    steps = methods[record.method].steps if record.method < len(methods) else ()
    devices = [draft.fence_devices.get(step.device) for step in steps]
    return SLACK_MS + 2 * sum(device.timeout_ms for device in devices if device is not None)


def _proven(draft: Draft, facts: Facts, record: Fencing, answer: FenceAnswer) -> None:
    """All devices of the method say that it is off: that is the proof (P7.24), and then it may be turned on (P7.26)."""
    method = methods_of(draft, record.node)[record.method].name if methods_of(draft, record.node) else ""
    detail = f"method {method}, asked of {draft.name(record.asker)}: {answer.detail}"
    open_forced_leave(draft, record.node, Proof(ProofKind.FENCE_AGENT, record.node, record.incarnation, detail))
    _then_on(draft, facts, _with_past(draft, record, FenceOutcome.OFF, answer.detail))


def _proven_otherwise(draft: Draft, facts: Facts, record: Fencing) -> None:
    """Its end was proven by something else. An agent may have turned it off meanwhile, and nobody knows (P7.26)."""
    over = _with_past(draft, record, FenceOutcome.NOT_NEEDED, "its end is proven otherwise")
    if record.asker == NO_NODE and not record.attempt:  # no agent has been called
        draft.put(_idle(over))
    else:
        _then_on(draft, facts, over)


def _then_on(draft: Draft, facts: Facts, record: Fencing) -> None:
    methods = methods_of(draft, record.node)
    stays_off = record.method >= len(methods) or methods[record.method].action != "reboot" or record.quarantined
    if stays_off:
        draft.put(_idle(record), f"{draft.name(record.node)}: stays off")
    else:
        _ask(draft, facts, replace(record, phase=FencePhase.ON, attempt=0), goes_on=True)


def _again(draft: Draft, facts: Facts, record: Fencing, detail: str) -> None:
    """The request has failed: another asker, another method, after a pause (P7.25)."""
    failed = _with_past(draft, record, FenceOutcome.FAILED, detail)
    failed = replace(failed, attempt=record.attempt + 1)
    if record.phase is FencePhase.ON:
        if draft.member(record.node).incarnation != record.incarnation or is_newer(facts, record):
            _end(draft, record, FenceOutcome.NOT_NEEDED, "it has booted")
            return
        if failed.attempt >= TRIES_ON:
            draft.put(_idle(failed), f"{draft.name(record.node)}: could not be turned on again")
            return
    else:
        methods = methods_of(draft, record.node)
        failed = replace(failed, method=failed.attempt // TRIES % len(methods) if methods else 0)
    if _pause_ms(draft, failed):
        waiting = replace(failed, asker=NO_NODE, asker_incarnation=0, since=draft.index)
        draft.put(waiting, f"{draft.name(record.node)}: {detail}")
    else:
        _ask(draft, facts, failed)


def _pause_ms(draft: Draft, record: Fencing) -> int:
    """How long to wait before the next request: growing with each round of all methods; each round begins with one."""
    in_a_round = TRIES * max(1, len(methods_of(draft, record.node)))
    rounds, position = divmod(record.attempt, in_a_round)
    if record.phase is FencePhase.ON:
        rounds, position = record.attempt, 0
    return min(LONGEST_PAUSE_MS, 1000 << min(rounds, 10)) if rounds and not position else 0


def _end(draft: Draft, record: Fencing, outcome: FenceOutcome, detail: str) -> None:
    cause = f"{draft.name(record.node)}: turned {record.phase.word}: {outcome.words}"
    draft.put(_idle(_with_past(draft, record, outcome, detail)), cause)


def _idle(record: Fencing) -> Fencing:
    return replace(record, phase=FencePhase.IDLE, asker=NO_NODE, asker_incarnation=0)


def _with_past(draft: Draft, record: Fencing, outcome: FenceOutcome, detail: str) -> Fencing:
    methods = methods_of(draft, record.node)
    method = methods[record.method].name if record.method < len(methods) else ""
    past = FencePast(
        record.number, record.incarnation, record.phase, method, record.asker, outcome,
        clipped(detail, LEAST_TEXT_BYTES), draft.index,
    )  # fmt: skip
    return replace(record, past=(*record.past, past)[-KEPT_OUTCOMES:])
