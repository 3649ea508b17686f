"""One term of this node as master: what it has heard, what is asked of it, and the entry that is in flight.

Theory of operation. This object exists exactly while the node is master: it comes with the adoption of the database and
goes, with all that is in it, in the moment in which the mastership is given up. So nothing of a term can be used in
another one. Every round lets all rules work on one draft (`decide.py`); what changes becomes one entry, one entry is in
flight at a time, and only when it is committed is it applied and told (P2.6). Whom to answer what is returned: who is
told so may be this node itself.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from muster.core.decisions import decider
from muster.core.decisions.decide import all_have_reported, decide
from muster.core.decisions.followers import Followers
from muster.core.draft import Facts, counts
from muster.core.effects import Placed, Trace
from muster.core.leases.observer import Observer
from muster.core.links.links import Links
from muster.core.operations import shedding
from muster.core.operations.clients import MAXIMUM_QUEUED
from muster.core.operations.identities import RETRY_WINDOW_MS
from muster.core.operations.unchanged import Unchanged
from muster.core.outbox import Outbox
from muster.core.replica import news
from muster.core.replica.replica import Replica
from muster.core.room import Room
from muster.core.this_node import ThisNode
from muster.core.transitions import narration, required
from muster.core.transitions.objections import Polls
from muster.core.transitions.subsystems import Subsystems
from muster.core.transitions.waiting import Straggler, Waiting, acknowledged_by, missing
from muster.records.access import ITSELF
from muster.records.configuration import Operation
from muster.records.database import Database, Entry, encode_entry
from muster.records.messages import Ask, Proposal, Report, Request, Response, Verdict
from muster.records.placements import PlacedTogether
from muster.records.terms import Term
from muster.records.texts import ENTRY_CAUSE_BYTES, clipped
from muster.records.transitions import Acknowledgement
from muster.records.units import US_PER_MS

MAXIMUM_OVERTAKEN = 5  # proposals in a row that came too late, before the master decides itself (P6.43)
Told = list[tuple[int, Response | Ask]]  # whom to tell what; this node itself may be among them


class InFlight(NamedTuple):
    """The entry that is being committed, and what follows once it is."""

    entry: Entry
    length: int
    placed: PlacedTogether | None
    responses: list[tuple[int, Response]]


class Round(NamedTuple):
    """What one round of decisions has come to."""

    frame: bytes  # of the entry to commit; empty where nothing changes
    told: Told
    is_awaited: bool  # a person waits for a read of the claims (P9.4)


class MasterTerm:
    """The memory of one term as master; forgotten with the term."""

    def __init__(self, me: ThisNode, term: Term, out: Outbox) -> None:
        self.term = term
        self.followers = Followers(term, me.profile)
        self.in_flight: InFlight | None = None
        self.services_open = False
        self.unreachable: dict[int, str] = {}  # node -> why the surviving set goes on without it
        self._me, self._out = me.node, out
        self._requests: dict[str, tuple[int, Request]] = {}
        self._polls = Polls()
        self._unchanged = Unchanged()
        self._alarmed: set[tuple[int, int]] = set()  # incarnations that were named as waiting for too long
        self._sheds = True  # the store may be over full (P9.6)
        self._next_service = ""  # before which the last round had to stop
        self._proposal: tuple[int, Proposal] | None = None  # of the decider; by whom
        self._overtaken = 0  # how many of its proposals in a row came too late

    @property
    def has_requests(self) -> bool:
        """Whether operations or a proposal wait for a round of decisions."""
        return bool(self._requests) or self._proposal is not None

    # ---- what the others say ------------------------------------------------------------------------------------

    def reports(self, own: Report) -> dict[int, Report]:
        """The reports of this term, the `own` one included."""
        return {**self.followers.reports, self._me: replace(own, term=self.term)}

    def has_acknowledged(self, subsystems: Subsystems) -> Callable[[int, Acknowledgement], bool]:
        """(node, step) -> whether the node has processed the step, as far as it has said."""

        def acknowledged(node: int, step: Acknowledgement) -> bool:
            if node == self._me:
                return subsystems.has_acknowledged(step)
            report = self.followers.reports.get(node)
            return report is not None and step in report.acknowledgements

        return acknowledged

    def take_report(self, sender: int, report: Report, replica: Replica, subsystems: Subsystems, now_us: int) -> bool:
        """A node has reported; whether that may change a decision."""
        before = self.followers.reports.get(sender)
        self.followers.reported(sender, report)
        now = self.followers.reports.get(sender)
        self._out.extend(narration.heard(replica.database, sender, before, now))
        self.repeat(sender, replica, now_us)
        return news.may_change_a_decision(before, now, replica.database, self.has_acknowledged(subsystems))

    def repeat(self, node: int, replica: Replica, now_us: int) -> None:
        """Send what the node has missed, or the snapshot that it has not answered (P5.2)."""
        message = self.followers.repeat(node, replica.database, replica.ages, now_us)
        if message is not None:
            self._out.send(node, message)

    def remind(self, connected: Iterable[int], replica: Replica, now_us: int) -> None:
        """The same for all that have reported, or that the cluster counts."""
        for node in connected:
            if node in self.followers.reports or counts(replica.database.member(node)):
                self.repeat(node, replica, now_us)

    def judge_links(self, links: Links, observer: Observer, database: Database, now_us: int) -> bool:
        """Find who is outside the surviving set; whether this node itself is (P4.4, SPEC 7.4)."""
        candidates = links.candidates(database, observer.strip, observer.is_live, now_us)
        outside = links.judge(candidates, observer.strip, len(database.nodes), now_us)
        self.unreachable = {}
        if self._me in outside:
            return True
        for node, lost in outside.items():
            names = ", ".join(sorted(database.name_of(other) for other in lost))
            self.unreachable[node] = f"its links to {names} failed"
        return False

    def raise_alarms(self, replica: Replica, waiting: Waiting, own: Report, now_us: int) -> None:
        """Say once a term which node waits for a required level for too long (P3.17)."""
        database = replica.database
        waited_for = waiting.since(database, self.waited_for(database, own), now_us)
        for each in required.waiting(database, partial(replica.ages.age_ms, now_us=now_us), waited_for):
            life = (each.node, each.incarnation)
            if each.is_overdue and life not in self._alarmed:
                self._alarmed.add(life)
                self._out.trace(narration.OVERDUE, f"{database.name_of(each.node)}: {each.words}", each.node)

    # ---- what is asked of it ------------------------------------------------------------------------------------

    def request(self, sender: int, request: Request, database: Database, now_us: int) -> Told:
        """An operation is asked for: answer it, have a round carry it out, or first ask who may object to it (P4.5)."""
        done = database.operations.get(request.identity)
        if done is not None:
            return [(sender, Response(done.identity, self.term, done.index, done.refused, done.outcome))]
        if (unchanged := self._unchanged.answered(request)) is not None:
            return [(sender, unchanged)]
        if len(self._requests) >= MAXIMUM_QUEUED or self._is_at_work(request.identity):
            return []
        passes, asks = self._polls.passes(sender, request, database, now_us)
        if passes:
            self._requests[request.identity] = (sender, request)
        return list(asks.items())

    def judged(self, node: int, verdict: Verdict) -> None:
        """A node has asked its subsystems whether they object; see `decide_polls`."""
        self._polls.answered(node, verdict)

    def decide_polls(self, database: Database, now_us: int) -> Told:
        """Carry out what nobody objects to; refuse the rest (P4.5)."""
        told: Told = []
        for poll in self._polls.decided(database, now_us):
            if poll.objections:
                text = "; ".join(poll.objections) + "; to do it anyway, repeat it with --override"
                told.append((poll.sender, Response(poll.request.identity, self.term, 0, True, text)))
            else:
                told += self.request(poll.sender, poll.request, database, now_us)
        return told

    def claims_read(self, began_us: int) -> Told:
        """A read of all claims has shown no higher term: answer what changed nothing (P9.4)."""
        return list(self._unchanged.confirmed(began_us))

    def _is_at_work(self, identity: str) -> bool:
        responses = self.in_flight.responses if self.in_flight is not None else []
        return self._unchanged.waits(identity) or any(response.identity == identity for _, response in responses)

    # ---- who decides on services --------------------------------------------------------------------------------

    def propose(self, sender: int, proposal: Proposal) -> None:
        """The decider wants this committed, in place of what it wanted before (P6.44)."""
        self._proposal = (sender, proposal)

    def judge_proposal(self, database: Database, facts: Facts) -> bytes:
        """The frame of what the decider wants, which is in flight then; empty where it is refused, or there is none."""
        if self._proposal is None:
            return b""
        (sender, proposal), self._proposal = self._proposal, None
        why = decider.refusal(proposal, sender, self.term, database, facts)
        entry = Entry(database.index + 1, self.term, proposal.cause, proposal.changes, proposal.grant)
        frame = b"" if why else encode_entry(entry)
        if not why and len(frame) > (facts.entry_bytes or facts.room.capacity.entry):
            why = "it is too large for one entry"
        if why:
            self._overtaken += 1
            self._out.put(Trace("decision refused", f"of {database.name_of(sender)}: {why}", about=sender, quiet=True))
            return b""
        self._overtaken = 0
        self.in_flight = InFlight(entry, len(frame), None, [])
        return frame

    def _why_no_decider(self, links: Links, database: Database, now_us: int) -> Callable[[int], str]:
        """(node) -> why it cannot decide now though it has the lock (P6.43)."""

        def why(node: int) -> str:
            if node == self._me:
                return ""
            if node not in links.heard(len(database.nodes), now_us):
                return f"the master does not hear {database.name_of(node)}, which has the decision lock"
            if self._overtaken >= MAXIMUM_OVERTAKEN:
                return f"what {database.name_of(node)} decides comes too late again and again"
            return ""

        return why

    # ---- decisions ----------------------------------------------------------------------------------------------

    def facts(
        self,
        replica: Replica,
        observer: Observer,
        links: Links,
        own: Report,
        waiting: Waiting,
        room: Room,
        now_us: int,
    ) -> Facts:
        """What the rules work with; names every subsystem whose deadline is over, once (P3.10)."""
        reports = self.reports(own)
        facts = Facts(
            now_us, self._me, reports, observer.evidence, observer.is_live, self.unreachable,
            self._find_hung(replica.database, waiting, reports, now_us), self.services_open,
            lambda index: replica.ages.counted_us(index, now_us),
            observer.slots(), partial(observer.is_suspect, links=links, now_us=now_us), observer.ran_out,
            partial(observer.is_graced, now_us=now_us), observer.unclean, observer.owed, observer.foreign,
            room=room, entry_bytes=room.entry_bytes, sheds=self._sheds, after=self._next_service,
            aged_index=replica.ages.index_before(RETRY_WINDOW_MS * US_PER_MS, now_us),
            why_no_decider=self._why_no_decider(links, replica.database, now_us),
            shut=observer.shut_slots(), fences=not observer.one_machine,
        )  # fmt: skip
        if not self.services_open:
            self.services_open = facts.services_open = all_have_reported(replica.database, facts)
        return facts

    def decide(self, database: Database, facts: Facts) -> Round:
        """Let all rules work on one draft; what they change is in flight then, as one entry (SPEC 2.7)."""
        asked = list(self._requests.values())
        self._requests = {}
        draft, answers = decide(database, facts, [request for _, request in asked])
        changes = draft.changes
        responses, told, is_awaited = self._responses(
            asked, answers, draft.index if changes else 0, database, facts.now_us
        )
        self._sheds = self._sheds and shedding.excess_of(draft, facts.room) > 0
        self._next_service = draft.stopped_at
        if not changes:
            return Round(b"", told, is_awaited)
        cause = clipped("; ".join(draft.causes), ENTRY_CAUSE_BYTES)
        entry = Entry(draft.index, self.term, cause, changes, decider.grant_of(database, facts))
        frame = encode_entry(entry)
        self.in_flight = InFlight(entry, len(frame), draft.placed, responses)
        return Round(frame, told, is_awaited)

    def committed(self, replica: Replica, now_us: int) -> Told:
        """The entry in flight is committed: apply it, and tell all; returns whom to answer (P2.6)."""
        assert self.in_flight is not None
        entry, length, placed, responses = self.in_flight
        self.in_flight = None
        replica.apply(entry, now_us)
        if placed is not None:
            self._out.put(Placed(entry.index, placed))
        for node, append in self.followers.committed(entry, length, now_us).items():
            self._out.send(node, append)
        return list(responses)

    def _responses(
        self,
        asked: list[tuple[int, Request]],
        answers: list[Operation | None],
        index: int,
        database: Database,
        now_us: int,
    ) -> tuple[list[tuple[int, Response]], Told, bool]:
        """What to say once the entry `index` is committed, and what at once: refusals change nothing (P9.1).

        What changes nothing waits for a read of the claims, or for that entry if it was judged by what is in it (P9.4);
        the last of the three is whether a person waits for that read.
        """
        waiting: list[tuple[int, Response]] = []
        told: Told = []
        is_awaited = False
        for (sender, request), done in zip(asked, answers, strict=True):
            if done is None:
                self._requests[request.identity] = (sender, request)
                continue
            stands_at = done.index if done.index == index else min(done.index, database.index)
            response = Response(done.identity, self.term, stands_at, done.refused, done.outcome)
            if done.refused:
                told.append((sender, response))
            elif done.index != index:
                self._unchanged.judged(sender, request, response, now_us)
                is_awaited = is_awaited or request.author.user != ITSELF
            else:
                waiting.append((sender, response))
        return waiting, told, is_awaited

    # ---- transitions --------------------------------------------------------------------------------------------

    def waited_for(self, database: Database, own: Report) -> dict[int, tuple[int, ...]]:
        """Transition -> who has not acknowledged its present step."""
        acknowledged = acknowledged_by(self.reports(own))
        return {record.identity: missing(record, acknowledged) for record in database.transitions.values()}

    def _find_hung(
        self, database: Database, waiting: Waiting, reports: Mapping[int, Report], now_us: int
    ) -> dict[int, str]:
        """Name every subsystem whose deadline is over, once; return those whose node must go (P3.10)."""
        if not database.transitions or not _has_deadlines(database):
            return {}
        stragglers = waiting.stragglers(database, reports, now_us)
        for hung in waiting.newly_hung(stragglers):
            about = database.transitions[hung.transition].node
            at = (hung.transition, hung.level.number, hung.barrier)
            self._out.put(Trace(narration.HUNG, _describe(hung, database), *at, about, nodes=(hung.node,)))
        return {hung.node: _describe(hung, database) for hung in stragglers if hung.is_hung and hung.level.evicts}


def _describe(straggler: Straggler, database: Database) -> str:
    level = straggler.level
    who = f"{database.name_of(straggler.node)}: {level.name} (level {level.number})"
    elapsed_ms = straggler.elapsed_us // US_PER_MS
    return f"{who} has not acknowledged barrier {straggler.barrier} for {elapsed_ms} ms"


def _has_deadlines(database: Database) -> bool:
    return any(level.deadline_ms for member in database.members.values() for level in member.levels)
