"""This node's part of fencing: it calls the agents that it was asked to call, and says what became of it (P7.22-P7.29).

Theory of operation. A committed request that names this incarnation as its asker becomes a job: the calls of the
method's devices, one after the other. To turn a node off: `off` of every device, then `status` of every device, and
only if each says `off` the job has succeeded (P7.24). Before each call the node reads the strip anew, and goes on only
if that read shows its own lease advancing, and no later incarnation of the node that is to end (P7.23). What has become
of a job is in this node's report until the record has moved on.

While no job is at work each device that this node can reach is asked for `monitor` now and then (P7.28).
"""

from collections import deque
from typing import NamedTuple

from muster.core.effects import CallFenceAgent, CancelFenceCall
from muster.core.inputs import FenceAnswered
from muster.core.leases.observer import Observer
from muster.core.links.links import Links
from muster.core.outbox import Outbox
from muster.core.this_node import ThisNode
from muster.records.database import Database
from muster.records.fencing import (
    FenceAnswer,
    FenceDevice,
    FenceMethod,
    FenceOutcome,
    FencePhase,
    Fencing,
    Parameters,
)
from muster.records.registers import Lease, LeaseState
from muster.records.texts import LEAST_TEXT_BYTES, clipped
from muster.records.units import NEVER_US, US_PER_MS

HEALTH_US = 5 * 60 * 1_000_000  # from one `monitor` of a device to the next
HEALTH_AGAIN_US = 10_000_000  # after one that has failed
FIRST_HEALTH_US = 2_000_000
SPREAD_US = 700_000  # by which nodes are apart with their first ones
FAILURES_TOLD = 2  # of `monitor` in a row, before a device is said to be in trouble
LATE_CALL_US = 5_000_000  # beside its own limit: after that a call without an answer has failed
MAXIMUM_TROUBLES = 8  # that are told with a heartbeat


class Call(NamedTuple):
    """One call of an agent."""

    action: str
    device: FenceDevice
    parameters: Parameters


def calls_of(phase: FencePhase, method: FenceMethod, devices: dict[str, FenceDevice]) -> list[Call]:
    """What is to be called, in this order. Raises `KeyError` for a device that is not defined any more."""
    every = [(devices[step.device], step.parameters) for step in method.steps]
    actions = ("off", "status") if phase is FencePhase.OFF else ("on",)
    return [Call(action, device, (*device.parameters, *own)) for action in actions for device, own in every]


def is_asked_of(record: Fencing, me: ThisNode) -> bool:
    """Whether this incarnation of this node is asked to do something."""
    asker = (record.asker, record.asker_incarnation)
    return record.phase is not FencePhase.IDLE and asker == (me.node, me.incarnation)


def why_not(record: Fencing, observer: Observer) -> str:
    """Why no agent may be called for this request now, by the newest read of the strip; empty where one may (P7.23)."""
    if record.phase is FencePhase.ON:
        return ""  # an `off` may have come after that boot (P7.26)
    lease = observer.strip.lease(record.node)
    newer = lease is not None and lease.stamp.incarnation > record.incarnation
    return "a later incarnation of the node runs" if newer else ""


class _Job:
    """One request at work."""

    def __init__(self, record: Fencing, calls: list[Call], now_us: int) -> None:
        self.record, self.calls = record, deque(calls)
        self.call = 0  # that is under way; 0: a read is waited for
        self.read_from_us = now_us  # only a read that began then or later counts
        self.late_us = NEVER_US  # when the call under way has failed
        self.proven_us = NEVER_US  # when the first `status` was asked
        self.lease: Lease | None = None  # as it was when the first `status` was asked
        self.said: list[str] = []


class _Health:
    """What is known of one device here."""

    def __init__(self, device: FenceDevice, due_us: int) -> None:
        self.device, self.due_us, self.failures, self.why = device, due_us, 0, ""
        self.call, self.late_us = 0, NEVER_US


class Asker:
    """Jobs, their answers, and the health of the devices as this node finds it."""

    def __init__(self, me: ThisNode, out: Outbox) -> None:
        self._me, self._out = me, out
        self._jobs: dict[tuple[int, int], _Job] = {}  # by node and number
        self._answers: dict[tuple[int, int], FenceAnswer] = {}
        self._health: dict[str, _Health] = {}
        self._calls = 0
        self._ending: dict[int, int] = {}  # calls that were cancelled, and until when their end is waited for
        self._next_read_wanted = False

    # ---- what others are told -----------------------------------------------------------------------------------

    @property
    def answers(self) -> tuple[FenceAnswer, ...]:
        """What became of the requests that still stand."""
        return tuple(self._answers[key] for key in sorted(self._answers))

    @property
    def troubles(self) -> dict[str, str]:
        """The devices that this node cannot use, and why (P7.28)."""
        found = {name: each.why for name, each in sorted(self._health.items()) if each.failures >= FAILURES_TOLD}
        return dict(list(found.items())[:MAXIMUM_TROUBLES])

    @property
    def due_us(self) -> int:
        """When something is due without any other input."""
        if not self._jobs and not self._health:
            return NEVER_US  # asked after each step of a node, and most clusters fence nobody
        jobs = [job.late_us for job in self._jobs.values()]
        health = [min(each.late_us, NEVER_US if each.call else each.due_us) for each in self._health.values()]
        return min([*jobs, *health], default=NEVER_US)

    def take_wish(self) -> bool:
        """Whether a read of the strip is wanted at once; said once."""
        wanted, self._next_read_wanted = self._next_read_wanted, False
        return wanted

    # ---- the records --------------------------------------------------------------------------------------------

    def follow(self, database: Database, now_us: int, *, fences: bool) -> bool:
        """Take over what is asked for by a confirmed replica; whether the answers have changed.

        `fences`: nodes are machines of their own here, so that fencing means anything.
        """
        before = self.answers
        asked = {
            (record.node, record.number): record
            for record in database.fencing.values()
            if fences and is_asked_of(record, self._me) and record.node != self._me.node
        }
        for key in [key for key in self._jobs if key not in asked]:
            self._drop(key, now_us)
        self._answers = {key: answer for key, answer in self._answers.items() if key in asked}
        for key, record in asked.items():
            if key not in self._jobs and key not in self._answers:
                self._begin(key, record, database, now_us)
        self._watch_devices(database, now_us, fences=fences)
        return self.answers != before

    def _begin(self, key: tuple[int, int], record: Fencing, database: Database, now_us: int) -> None:
        plan = database.fence_plans.get(record.node)
        try:
            method = plan.methods[record.method] if plan is not None else None
            calls = calls_of(record.phase, method, database.fence_devices) if method is not None else []
        except (IndexError, KeyError):
            calls = []
        if calls:
            self._jobs[key] = _Job(record, calls, now_us)
            self._next_read_wanted = True
        else:
            self._answer(record, FenceOutcome.FAILED, "its method or a device of it is not defined any more")

    def _drop(self, key: tuple[int, int], now_us: int) -> None:
        job = self._jobs.pop(key)
        if job.call:
            self._cancel(job.call, now_us)

    def _cancel(self, call: int, now_us: int) -> None:
        """End an agent; what is asked next waits for that end: `on` must not overtake `off` (P7.26)."""
        self._ending[call] = now_us + LATE_CALL_US
        self._out.put(CancelFenceCall(call))

    def _answer(self, record: Fencing, outcome: FenceOutcome, detail: str) -> None:
        self._answers[record.node, record.number] = FenceAnswer(
            record.node, record.incarnation, record.number, outcome, clipped(detail, LEAST_TEXT_BYTES)
        )

    # ---- a job --------------------------------------------------------------------------------------------------

    def look(self, observer: Observer, links: Links, now_us: int) -> bool:
        """A read of the strip has ended: go on with what has waited for one; whether the answers have changed."""
        before = self.answers
        self._ending = {call: until_us for call, until_us in self._ending.items() if now_us < until_us}
        for key, job in list(self._jobs.items()):
            if job.call or self._ending:
                continue
            if not self._is_fresh(job, observer, now_us):
                self._next_read_wanted = True
                continue
            if not observer.may_lead(now_us):
                continue  # its own lease does not advance: the guard stops this node, or it goes on
            if refusal := why_not(job.record, observer):
                del self._jobs[key]
                self._answer(job.record, FenceOutcome.NOT_NEEDED, refusal)
            elif job.calls:
                self._call(job, observer, now_us)
            else:
                del self._jobs[key]
                self._succeeded(job, observer, links)
        return self.answers != before

    def _is_fresh(self, job: _Job, observer: Observer, now_us: int) -> bool:
        """Whether this job may go by the newest read: later than what it waited for, not old, and whole (P7.23)."""
        began_us = observer.read_started_us
        if observer.strip.lease(job.record.node) is None:
            return False
        return began_us >= job.read_from_us and now_us - began_us <= self._me.profile.gap_ms * US_PER_MS

    def _call(self, job: _Job, observer: Observer, now_us: int) -> None:
        record, call = job.record, job.calls[0]
        if call.action == "status" and job.lease is None:
            job.lease, job.proven_us = observer.strip.lease(record.node), now_us
        self._calls += 1
        job.call, job.late_us = self._calls, now_us + call.device.timeout_ms * US_PER_MS + LATE_CALL_US
        self._out.trace("fence agent", f"{call.device.name}: {call.action}, request {record.number}", about=record.node)
        self._out.put(
            CallFenceAgent(
                job.call, call.device, call.action, call.parameters, record.node, record.incarnation, record.number
            )
        )

    def _succeeded(self, job: _Job, observer: Observer, links: Links) -> None:
        record = job.record
        if record.phase is FencePhase.ON:
            self._answer(record, FenceOutcome.ON, "")
        elif lie := _lie(job, observer, links):
            self._answer(record, FenceOutcome.FAILED, lie)
        else:
            self._answer(record, FenceOutcome.OFF, f"status of {', '.join(job.said)} says off")

    def answered(self, answer: FenceAnswered, now_us: int) -> bool:
        """A call has ended; whether the answers, or what is known of the devices, have changed."""
        if self._ending.pop(answer.call, None) is not None:
            self._next_read_wanted = bool(self._jobs)
            return False
        for key, job in self._jobs.items():
            if job.call == answer.call:
                return self._job_answered(key, job, answer, now_us)
        for health in self._health.values():
            if health.call == answer.call:
                return self._monitored(health, answer, now_us)
        return False

    def _job_answered(self, key: tuple[int, int], job: _Job, answer: FenceAnswered, now_us: int) -> bool:
        call = job.calls.popleft()
        job.call, job.late_us, job.read_from_us = 0, NEVER_US, now_us
        if not answer.succeeded:
            del self._jobs[key]
            self._answer(job.record, FenceOutcome.FAILED, f"{call.device.name}, {call.action}: {answer.detail}")
            return True
        if call.action == "status":
            job.said.append(call.device.name)
        self._next_read_wanted = True
        return False

    # ---- time ---------------------------------------------------------------------------------------------------

    def tick(self, now_us: int) -> bool:
        """Whatever time has made due; whether the answers, or what is known of the devices, have changed."""
        changed = False
        for key, job in list(self._jobs.items()):
            if now_us >= job.late_us:
                self._cancel(job.call, now_us)
                late = FenceAnswered(job.call, succeeded=False, detail="its agent has not ended in time")
                changed = self._job_answered(key, job, late, now_us) or changed
        for health in self._health.values():
            if health.call and now_us >= health.late_us:
                self._cancel(health.call, now_us)
                late = FenceAnswered(health.call, succeeded=False, detail="its agent has not ended in time")
                changed = self._monitored(health, late, now_us) or changed
            elif not health.call and now_us >= health.due_us:
                self._monitor(health, now_us)
        return changed

    def _watch_devices(self, database: Database, now_us: int, *, fences: bool) -> None:
        reached = {
            name: device
            for name, device in database.fence_devices.items()
            if fences and (not device.askers or self._me.node in device.askers)
        }
        for name in [name for name, each in self._health.items() if reached.get(name) != each.device]:
            gone = self._health.pop(name)
            if gone.call:
                self._cancel(gone.call, now_us)
        for name, device in reached.items():
            if name not in self._health:
                due_us = now_us + FIRST_HEALTH_US + self._me.node * SPREAD_US
                self._health[name] = _Health(device, due_us)

    def _monitor(self, health: _Health, now_us: int) -> None:
        if self._jobs:
            health.due_us = now_us + HEALTH_AGAIN_US  # a device may serve one at a time, and fencing goes first
            return
        self._calls += 1
        health.call, health.late_us = self._calls, now_us + health.device.timeout_ms * US_PER_MS + LATE_CALL_US
        self._out.put(CallFenceAgent(health.call, health.device, "monitor", health.device.parameters))

    def _monitored(self, health: _Health, answer: FenceAnswered, now_us: int) -> bool:
        before = self.troubles
        health.call, health.late_us = 0, NEVER_US
        if answer.succeeded:
            health.failures, health.why, health.due_us = 0, "", now_us + HEALTH_US
        else:
            health.failures, health.why = health.failures + 1, clipped(answer.detail, LEAST_TEXT_BYTES)
            health.due_us = now_us + (HEALTH_AGAIN_US if health.failures < FAILURES_TOLD else HEALTH_AGAIN_US * 6)
        if self.troubles != before:
            name = health.device.name
            self._out.trace("fence device", f"{name}: {f'in trouble: {health.why}' if health.failures else 'well'}")
        return self.troubles != before


def _lie(job: _Job, observer: Observer, links: Links) -> str:
    """What shows that the node runs on though every device says that it is off; empty where nothing does (P7.24)."""
    lease, before = observer.strip.lease(job.record.node), job.lease
    if lease is not None and lease.state is LeaseState.LIVE and before is not None and lease.stamp != before.stamp:
        return "its devices say that it is off, and its lease advances"
    if links.heard_since(job.record.node, job.proven_us):
        return "its devices say that it is off, and it is heard"
    return ""
