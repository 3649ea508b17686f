"""Whether this node leads, and all that it does only for that: its claim, its term, its way out (P2.1-P2.14, SPEC 2).

Theory of operation. Three parts are put together here: the mastership machine at work with the store (`Tenure`), when
this node claims (`Candidacy`), and what it is master with (`MasterTerm`). The term exists exactly while the tenure is a
master's: it is dropped in the very call in which the tenure gives the mastership up. The node gives this the answers of
the store that it awaits, and hears from it whom of its own people to answer.
"""

from collections.abc import Iterator
from typing import NamedTuple

from muster.core.decisions.deciding import Deciding, OwnAccount
from muster.core.decisions.term import MasterTerm, Round, Told
from muster.core.effects import Elected
from muster.core.fencing.asker import Asker
from muster.core.inputs import JournalRead, StoreAnswer, StoreDone, StoreRefused, StripRead, StripUnread
from muster.core.leases import sightings
from muster.core.leases.observer import Observer
from muster.core.links.links import Links
from muster.core.mastership.candidacy import Candidacy, has_successor
from muster.core.mastership.inability import Inability
from muster.core.mastership.machine import Became, Compact, Decided, Halt, Withdrawn
from muster.core.mastership.tenure import JOURNAL_FULL, GaveWay, Outcome, Tenure, Trouble, patience_of
from muster.core.membership.own_registers import OwnRegisters
from muster.core.outbox import Outbox
from muster.core.replica.replica import Replica
from muster.core.room import Room
from muster.core.this_node import ThisNode
from muster.core.transitions import narration
from muster.core.transitions.subsystems import Subsystems
from muster.core.transitions.waiting import Waiting
from muster.records.messages import Abdicated, Report
from muster.records.registers import Claim
from muster.records.terms import Term
from muster.records.units import US_PER_MS


class Beside(NamedTuple):
    """The machines of the node that a call may look at or tell; the same ones at each call, and nobody keeps them."""

    replica: Replica
    observer: Observer
    links: Links
    registers: OwnRegisters
    subsystems: Subsystems
    asker: Asker


class Leadership:
    """This node as candidate and as master."""

    def __init__(self, me: ThisNode, claim: Claim, numbers: Iterator[int], room: Room, out: Outbox) -> None:
        """`claim`: this node's, as it was read at its boot; `numbers`: of store operations and reads."""
        self.term: MasterTerm | None = None  # exists exactly while this node is master
        self.inability = Inability(me.profile)
        self.deciding = Deciding(me, out)
        self.room = room
        self._me, self._out = me, out
        read_us = me.profile.read_ms * US_PER_MS
        self._tenure = Tenure(claim, me.incarnation, read_us, numbers, patience_of(me.profile))
        self._candidacy = Candidacy(me)
        self._own_told: Told = []  # by what is being settled, to this node itself
        self._has_withdrawn = False

    @property
    def claimed(self) -> Term:
        """The highest term that this node ever claimed."""
        return self._tenure.state.term

    @property
    def can_decide(self) -> bool:
        """Whether this node is master, and no entry is in flight."""
        return self._tenure.is_free

    @property
    def retry_us(self) -> int | None:
        """When to try again what the store failed to do, or to propose again what has not been committed."""
        times_us = (self._tenure.retry_us, self.deciding.due_us)
        return min((due_us for due_us in times_us if due_us is not None), default=None)

    def start(self, now_us: int) -> None:
        """Withdraw what an earlier life claimed (P2.1)."""
        self._tenure.start(now_us)

    # ---- the store answers --------------------------------------------------------------------------------------

    def awaits(self, answer: StoreAnswer) -> bool:
        """Whether this answer of the store is the one that a claim or a mastership waits for."""
        if isinstance(answer, StripRead | StripUnread):
            return self._tenure.awaits_read(answer.read)
        return self._tenure.awaits(answer.operation)

    def take(self, answer: StoreAnswer, beside: Beside, now_us: int) -> None:
        """The answer that it `awaits`; what the node sees in a read is noted before."""
        observer, tenure = beside.observer, self._tenure
        match answer:
            case StripRead(strip=strip):
                tenure.read(strip, observer.is_out, now_us, may_lead=observer.may_lead(now_us))
            case StripUnread():
                tenure.unread(now_us)
            case StoreDone(claims=claims):
                tenure.done(now_us, claims, observer.is_out, may_lead=observer.may_lead(now_us))
            case StoreRefused():
                tenure.refused(answer, now_us)
            case JournalRead():
                tenure.journal_read(answer, *beside.replica.known, now_us)
        self._end_term_if_over()

    def look(self, read: StripRead, observer: Observer, now_us: int) -> Told:
        """A periodic read: whether it ends the mastership (P2.3, P2.13), and whom to answer after it (P9.4)."""
        may_lead = observer.may_lead(now_us)
        if self._tenure.observe(read.strip, now_us, may_lead=may_lead):
            self._end_term_if_over()
            self._out.trace("superseded", "a higher term was claimed" if may_lead else "its own lease has run out")
        if self.term is None or None in read.strip.claims or not may_lead:
            return []
        if observer.highest_term() > self.term.term:
            return []
        return self.term.claims_read(read.started_us)

    def _lapse_if_due(self, observer: Observer, now_us: int) -> None:
        """A master that has not seen its own lease advance for that of a mastership stops by its own clock (P2.15).

        What is in flight is decided by the read that it waits for, or not at all.
        """
        if self.term is None or not self._tenure.is_free or observer.may_lead(now_us):
            return
        self._tenure.abdicate(now_us)
        self._end_term_if_over()
        self._out.trace("superseded", "its own lease has not advanced for that of a mastership")

    def watch_links(self, beside: Beside, now_us: int) -> None:
        """As master: find who is outside the surviving set; give way if this node is (P4.4, SPEC 7.4)."""
        if self.term is not None and self.term.judge_links(
            beside.links, beside.observer, beside.replica.database, now_us
        ):
            self._out.trace("abdicating", "its links failed; the surviving set goes on without it")
            self._abdicate(now_us)

    def claim_if_due(self, beside: Beside, now_us: int) -> None:
        """Claim mastership if no predecessor may lead any more and no better candidate claims (P2.2, P2.10, P2.13)."""
        observer, links = beside.observer, beside.links
        unable = self.inability.everywhere(self._me.node, links.connected).keys()
        if self._candidacy.has_its_turn(self._tenure, observer, links, beside.replica.database, unable, now_us):
            self._candidacy.claimed()
            self._out.trace("claiming", f"above term {observer.highest_term()}")
            self._tenure.claim(observer.strip, now_us)

    def register_refused(self, kind: str, error: str, now_us: int) -> None:
        """The view or the marks could not be written: a master without marks gives way (P2.11).

        A mark stops a condemned node that lives (P4.3). Its view tells the others whom this node hears: who leads looks
        at all of them, so whoever cannot write its own is no good candidate.
        """
        if not self.inability.refused(kind, now_us):
            return
        self._found_unable(f"its {kind} register cannot be written: {error}", now_us)
        if kind == "marks" and self.term is not None:
            self._out.trace("gives way", "it cannot publish its marks")
            self._abdicate(now_us)

    def retry(self, observer: Observer, now_us: int) -> None:
        """Do again what the store failed to do, if its time has come; a master whose time is over stops."""
        self._lapse_if_due(observer, now_us)
        self._tenure.retry(now_us)

    def end_if_hopeless(self, observer: Observer, now_us: int) -> None:
        """A claim that this node can neither act on nor withdraw keeps all others waiting: end with it (P2.11)."""
        why = self._tenure.hopeless(observer.strip, now_us)
        if why:
            self._out.panic(f"{why}; the others wait for its claim")

    # ---- what becomes of it -------------------------------------------------------------------------------------

    def settle(self, beside: Beside, now_us: int) -> tuple[Told, bool]:
        """Take over what the tenure wants done and what has become of it.

        Returns whom of this node's own people to answer, and whether a claim or a mastership has been withdrawn.
        """
        self._own_told, self._has_withdrawn = [], False
        while True:
            self._end_term_if_over()
            effects, outcomes = self._tenure.drain()
            self._out.extend(effects)
            if not outcomes or self._out.has_ended:
                return self._own_told, self._has_withdrawn
            for outcome in outcomes:
                self._outcome(outcome, beside, now_us)

    def hand_over(self, now_us: int) -> bool:
        """Give up what is left of a mastership; whether nothing is, and the node may go at once."""
        if self._tenure.is_idle:
            return True
        self._abdicate(now_us)
        return False

    def decide(self, beside: Beside, own: Report, waiting: Waiting, now_us: int) -> Round:
        """One round of rules on one draft; what they change is proposed as one entry (SPEC 2.7)."""
        assert self.term is not None
        facts = self.term.facts(beside.replica, beside.observer, beside.links, own, waiting, self.room, now_us)
        proposed = self.term.judge_proposal(beside.replica.database, facts)
        result = Round(proposed, [], False) if proposed else self.term.decide(beside.replica.database, facts)
        if result.frame:
            self._tenure.propose(result.frame, now_us)
        return result

    def take_report(self, sender: int, report: Report, beside: Beside, now_us: int) -> bool:
        """A node has reported, and may vouch for a death (P7.16); whether that may change a decision."""
        if self.term is None:
            self.deciding.hear(sender, report, beside.replica.followed)
            return True
        beside.subsystems.settle(beside.replica.database)
        sightings.take_testimony(beside.observer, sender, report, beside.replica.database, self._out)
        return self.term.take_report(sender, report, beside.replica, beside.subsystems, now_us)

    def propose(self, beside: Beside, account: OwnAccount, now_us: int, *, has_news: bool) -> None:
        """As the decider on services, and not the master: propose what follows now (P6.44)."""
        if self.term is None:
            self.deciding.decide(beside.replica, beside.observer, account, self.room, now_us, has_news=has_news)

    def publish_marks(self, beside: Beside) -> None:
        """Publish the marks of every committed eviction, as master only (P4.3, SPEC 7.2)."""
        if self.term is not None:
            beside.registers.publish_marks(beside.replica.database, self.claimed, beside.observer.is_live)

    def write_view_if_due(self, beside: Beside, now_us: int, early_us: int) -> None:
        """Say in the own view whom this node hears, and the highest term that it claimed (SPEC 1.6)."""
        replica, links = beside.replica, beside.links
        beside.registers.write_view_if_due(links, beside.observer, replica.database, self.claimed, now_us, early_us)

    def problem(self, replica: Replica) -> str:
        """What does not hold of it between two steps, in words."""
        if (self.term is not None) != self._tenure.is_master:
            return "a term as master exists, or none does, against what the tenure says"
        if self.term is None:
            return ""
        if not replica.confirmed:
            return "a master's replica is not confirmed"
        if not self.term.term == replica.accepted == self.claimed:
            return f"a master of term {self.term.term} has accepted {replica.accepted} and claimed {self.claimed}"
        if (self.term.in_flight is None) != self._tenure.is_free:
            return "an entry is in flight without a frame, or a frame without an entry"
        return ""

    def _end_term_if_over(self) -> None:
        if not self._tenure.is_master:
            self.term = None

    def _abdicate(self, now_us: int) -> None:
        """Give a mastership up, at once or when the frame in flight is decided."""
        self._tenure.abdicate(now_us)
        self._end_term_if_over()

    def _found_unable(self, why: str, now_us: int) -> None:
        """This node could not do what leading takes: all others go first from now on (P2.11)."""
        self._candidacy.put_off(now_us + self.inability.found(why))

    def _outcome(self, outcome: Outcome, beside: Beside, now_us: int) -> None:
        match outcome:
            case Became(term=term):
                self._became(term, beside, now_us)
            case Decided():
                self._decided(beside, now_us)
            case Withdrawn():
                for node in beside.links.connected:
                    self._out.send(node, Abdicated(self.claimed))
                self._has_withdrawn = True
            case Compact():
                self._tenure.compact(beside.replica.database, now_us)
            case Halt(cause=cause):
                self._out.panic(cause)
            case Trouble(event=event, detail=detail):
                self._out.trace(event, detail)
                if event == JOURNAL_FULL:
                    self.room.entry_refused()
                self._candidacy.after_trouble(now_us)
            case GaveWay(detail=detail):
                self._out.trace("gives way", f"{detail}; another node may lead")
                self._found_unable(detail, now_us)

    def _became(self, term: Term, beside: Beside, now_us: int) -> None:
        adopted = self._tenure.adopted
        assert adopted is not None
        self.term = MasterTerm(self._me, term, self._out)
        self.deciding.due_us = None
        self.inability.over()
        beside.replica.adopt(adopted, term, now_us)
        beside.registers.publish_anew()
        self._out.put(Elected(term.number, term.node))
        self._out.trace(narration.ELECTED, f"{self._me.name} is master, term {term}, at index {adopted.index}")
        self.publish_marks(beside)
        self._abdicate_if_due(beside, now_us)
        if self.term is not None:
            self.term.remind(beside.links.connected, beside.replica, now_us)

    def _decided(self, beside: Beside, now_us: int) -> None:
        assert self.term is not None
        self.room.entry_taken()
        for node, message in self.term.committed(beside.replica, now_us):
            if node == self._me.node:
                self._own_told.append((node, message))
            else:
                self._out.send(node, message)
        self.publish_marks(beside)
        self._abdicate_if_due(beside, now_us)

    def _abdicate_if_due(self, beside: Beside, now_us: int) -> None:
        """A leaving master hands over to a joined member; a decision to abdicate waits for the frame in flight."""
        if self.term is None or not self._tenure.is_free:
            return
        if self._tenure.state.abdicating:
            self._abdicate(now_us)
        elif has_successor(beside.replica.database, self._me.node, self.term.followers.reports):
            self._out.trace("abdicating", "it leaves the cluster")
            self._abdicate(now_us)
