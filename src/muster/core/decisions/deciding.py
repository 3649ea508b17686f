"""This node as the decider on services, while it is one and not the master (P6.44; SPEC 6.4).

Theory of operation. All nodes send their reports to the recorded decider as well as to the master. It works out the
round of services on its own replica, by the same rules, and proposes what follows to the master, whole, with its grant
and the index it was made from. What is committed it sees in its replica; what is not, was refused or lost, and is
worked out again. It keeps nothing that counts: the next decider begins from its own replica and its own reports.
"""

from typing import NamedTuple, Protocol

from msgspec.structs import replace

from muster.core.decisions.decide import all_have_reported
from muster.core.decisions.decider import recorded
from muster.core.draft import Draft, Facts, committed
from muster.core.effects import Placed
from muster.core.leases.observer import Observer
from muster.core.outbox import Outbox
from muster.core.replica.replica import Replica
from muster.core.replica.reporting import Reporting, pause_of_round_us
from muster.core.room import Room
from muster.core.services import table as service
from muster.core.this_node import ThisNode
from muster.records.database import Change, Database
from muster.records.deciders import Grant
from muster.records.messages import Proposal, Report
from muster.records.terms import NO_TERM, Term
from muster.records.texts import ENTRY_CAUSE_BYTES, clipped
from muster.records.units import US_PER_MS


class OwnAccount(Protocol):
    """What this node says of itself (`core/node/account.py`)."""

    @property
    def reporting(self) -> Reporting:
        """By which grant it has the lock, among others."""

    def settled(self) -> Report:
        """Its own report."""


class Sent(NamedTuple):
    """What was proposed last."""

    made_from: int  # index
    at_us: int
    changes: dict[tuple[str, str], Change]
    placed: Placed | None  # what it places, if it is committed


class Deciding:
    """What it has heard in this term, and what it has proposed."""

    def __init__(self, me: ThisNode, out: Outbox) -> None:
        self.due_us: int | None = None  # when to look again, if nothing happens before
        self._me, self._out = me, out
        self._pause_us = me.profile.heartbeat_ms * US_PER_MS
        self._term = NO_TERM
        self._reports: dict[int, Report] = {}
        self._open = False
        self._after = ""  # the service before which the last round had to stop
        self._sent: Sent | None = None
        self._round_us = -self._pause_us

    def hear(self, sender: int, report: Report, followed: Term) -> None:
        """A node has reported, to this one too: what it says counts in the term that both follow."""
        if report.term != followed or followed == NO_TERM:
            return
        self._begin(followed)
        last = self._reports.get(sender)
        if last is None or last.incarnation != report.incarnation or last.sent_us <= report.sent_us:
            self._reports[sender] = report

    def _begin(self, term: Term) -> None:
        if term != self._term:
            self._term, self._reports, self._open, self._after, self._sent = term, {}, False, "", None

    def decide(
        self, replica: Replica, observer: Observer, account: OwnAccount, room: Room, now_us: int, *, has_news: bool
    ) -> None:
        """Propose what follows now, if this node is the decider."""
        me, database = self._me, replica.database
        due_us, self.due_us = self.due_us, None
        grant = account.reporting.grant
        known = recorded(database) if grant is not None and replica.confirmed else None
        if known is None or (known.node, known.incarnation, known.grant) != (me.node, me.incarnation, grant):
            return
        self._begin(replica.followed)
        self._see_committed(database)
        if not has_news and (due_us is None or now_us < due_us):
            self._wake(due_us)
            return
        next_us = self._round_us + pause_of_round_us(database)
        if self._sent is not None:
            next_us = max(next_us, self._sent.at_us + self._pause_us)  # it is on its way, or was refused or lost
        if now_us < next_us:
            self._wake(next_us)
            return
        self._round_us = now_us
        self._propose(database, known.grant, self._facts(replica, observer, account.settled(), room, now_us), now_us)

    def _wake(self, at_us: int | None) -> None:
        if at_us is not None:
            self.due_us = at_us if self.due_us is None else min(self.due_us, at_us)

    def _see_committed(self, database: Database) -> None:
        """What was proposed is committed, or the cluster has gone on without it."""
        sent = self._sent
        if sent is None or database.index == sent.made_from:
            return
        self._sent = None
        is_whole = database.index == sent.made_from + 1 and all(
            committed(database, key) == change for key, change in sent.changes.items()
        )
        if sent.placed is not None and is_whole:
            self._out.put(sent.placed)

    def _facts(self, replica: Replica, observer: Observer, own: Report, room: Room, now_us: int) -> Facts:
        reports = {**self._reports, self._me.node: replace(own, term=self._term)}
        facts = Facts(
            now_us, self._me.node, reports, observer.evidence, observer.is_live, {}, {}, self._open,
            lambda index: replica.ages.counted_us(index, now_us),
            unclean=observer.unclean, room=room, entry_bytes=room.entry_bytes, after=self._after,
        )  # fmt: skip
        if not self._open:
            self._open = facts.services_open = all_have_reported(replica.database, facts)
        return facts

    def _propose(self, database: Database, grant: Grant, facts: Facts, now_us: int) -> None:
        draft = Draft(database, facts.room, facts.entry_bytes or facts.room.capacity.entry)
        service.advance(draft, facts)
        self._after, changes = draft.stopped_at, draft.changes
        if not changes:
            return
        cause = clipped("; ".join(draft.causes), ENTRY_CAUSE_BYTES)
        placed = Placed(draft.index, draft.placed) if draft.placed is not None else None
        self._sent = Sent(database.index, now_us, draft.changed, placed)
        proposal = Proposal(self._term, database.index, self._me.incarnation, grant, cause, changes)
        self._out.send(self._term.node, proposal)
        self._wake(now_us + self._pause_us)
