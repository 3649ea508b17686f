"""One node: composes the machines and orders their effects. The daemon and the simulator drive this very class.

Theory of operation. `step(input, now_us)` returns effects; nothing else happens. A node holds a replica of the
database. It acts on it only once it is confirmed: received from the master of the highest term known, or adopted by
itself (P5.1). What it must do locally follows from the replica (`core/services/commands.py`); what the master must know
of it is one idempotent report (P5.3). On the master every input ends in a round of decisions: all rules work on one
draft, whose changes become one entry; one entry is in flight at a time; only when it is committed is it applied and
told (P2.6).

Durations are microseconds inside; `now_us` comes from a clock that runs through suspend (SPEC 7.1).
"""

import itertools
from collections.abc import Callable

import msgspec

from muster.core.decisions.decide import all_have_reported, decide
from muster.core.decisions.followers import Followers
from muster.core.draft import Draft, Facts, counts
from muster.core.effects import (
    Effect,
    Elected,
    LevelRefused,
    Placed,
    ReadStrip,
    Reply,
    Trace,
)
from muster.core.inputs import (
    Acknowledged,
    AcknowledgedTogether,
    CommandFinished,
    FenceConfirmed,
    Input,
    JournalRead,
    KernelsWord,
    KeysHeld,
    LevelGone,
    LevelRegistered,
    MessageReceived,
    OperationRequested,
    OwnLinksChanged,
    PeerConnected,
    PeerLost,
    PerformanceMeasured,
    PlacesAwaited,
    RestartHeld,
    StoreDone,
    StoreRefused,
    StripRead,
    StripUnread,
    SubsystemAnswered,
    Tick,
)
from muster.core.leases.lease import Evidence
from muster.core.leases.memory import Memory, Remembered
from muster.core.leases.observer import Kernel, Observer
from muster.core.leases.reads import Reads
from muster.core.links.connectivity import Candidate, surviving_set
from muster.core.links.links import Links
from muster.core.mastership import machine as mastership
from muster.core.mastership.candidacy import Candidacy, has_successor
from muster.core.mastership.inability import Inability
from muster.core.mastership.machine import Became, Compact, Decided, Halt, Withdrawn
from muster.core.mastership.tenure import JOURNAL_FULL, Claims, GaveWay, Outcome, Tenure, Trouble, patience_of
from muster.core.membership.own_registers import OwnRegisters
from muster.core.membership.presence import Asked, Presence
from muster.core.nodes import authority
from muster.core.operations import shedding
from muster.core.operations.clients import MAXIMUM_PENDING, MAXIMUM_QUEUED, Clients
from muster.core.operations.identities import RETRY_WINDOW_MS
from muster.core.operations.plan import Plan
from muster.core.operations.unchanged import Unchanged
from muster.core.outbox import Outbox
from muster.core.replica import news
from muster.core.replica.replica import Replica, Taken
from muster.core.replica.reporting import Reporting
from muster.core.room import Fullness, Room, fullness
from muster.core.services.commands import Executor
from muster.core.services.explanation import Explanation, explain
from muster.core.services.grades import is_news
from muster.core.services.places import AwaitedThere, Places
from muster.core.services.round import Round
from muster.core.this_node import ThisNode
from muster.core.transitions import narration as history
from muster.core.transitions import registration, required
from muster.core.transitions.objections import Polls, Questions
from muster.core.transitions.subsystems import Subsystems
from muster.core.transitions.waiting import Straggler, Waiting, acknowledged_by, missing
from muster.core.versions import upgrade
from muster.records.access import ITSELF, Author
from muster.records.configuration import Operation
from muster.records.database import Database, Entry, encode_entry
from muster.records.levels import EVENT_MANAGER_LEVEL, Level, NodeState
from muster.records.members import EvictNode, Member
from muster.records.messages import (
    Abdicated,
    Append,
    Ask,
    Heartbeat,
    Message,
    Report,
    Request,
    Response,
    Snapshot,
    Verdict,
)
from muster.records.operations import OperationRequest
from muster.records.placements import PlacedTogether
from muster.records.registers import ProofKind, Strip
from muster.records.services import CommandState, Performance
from muster.records.terms import NO_TERM, Term
from muster.records.texts import ENTRY_CAUSE_BYTES, clipped
from muster.records.timing import Profile
from muster.records.transitions import Acknowledgement
from muster.records.units import NEVER_US, US_PER_MS
from muster.records.versions import HIGHEST, LOWEST, Software

MINIMUM_ENTRY_BYTES = 4096  # to try, where the journal refuses larger entries


class Setup(msgspec.Struct, frozen=True):
    """What a node is told at boot. `region_bytes`: of one region of a journal of its store."""

    node: int
    name: str
    incarnation: int
    profile: Profile
    region_bytes: int = 1 << 20
    one_machine: bool = True  # all daemons share one kernel: scope `host` (SPEC 1.5, 7.1)
    rehearsed_event_manager: Level | None = None  # in a rehearsal: registered in its place, works outside the node
    software: Software = Software(LOWEST, HIGHEST)
    kernel: Kernel = Kernel()  # that this node runs under
    remembered: Remembered | None = None  # what this node's home holds of the store that it has booted on (P11.2)


class Node:
    """One node of the cluster: give it inputs, carry out its effects."""

    def __init__(
        self, setup: Setup, database: Database, strip: Strip, commands: tuple[CommandState, ...], now_us: int
    ) -> None:
        self.setup = setup
        self.me = setup.node
        me = ThisNode(setup.node, setup.name, setup.incarnation, setup.profile)
        self._profile = setup.profile
        own_claim = strip.claims[self.me]
        assert own_claim is not None, "the driver boots a node only from a strip whose claims are all known"
        self._numbers = itertools.count(1)  # of store operations and reads
        self._tenure = Tenure(
            own_claim, setup.incarnation, setup.profile.read_ms * US_PER_MS, self._numbers, patience_of(setup.profile)
        )
        self._inability = Inability(setup.profile)
        self._places = Places()
        self._observer = Observer(
            self.me, setup.incarnation, setup.profile, strip, one_machine=setup.one_machine, kernel=setup.kernel
        )
        remembered = setup.remembered or Remembered("", "")
        self._memory = Memory(remembered.terms)
        self._room = Room(setup.region_bytes)
        self._entry_bytes = self._room.capacity.entry  # less while the journal refuses even smaller ones (P9.5)
        self._executor = Executor(self.me, setup.incarnation, commands)
        self._subsystems = Subsystems(self.me, setup.incarnation, setup.rehearsed_event_manager is not None)
        self._now_us = now_us
        self._started_us = now_us
        view = strip.views[self.me]
        self._links = Links(self.me, setup.profile, now_us, view.stamp.sequence if view else 0)
        self._out = Outbox(self._links.connected)
        accepted, known = mastership.newest_mark(strip)[1].term, (remembered.index, remembered.term)
        self._replica = Replica(me, database, accepted, known, self._out)
        self._clients = Clients()
        self._waiting = Waiting()
        self._questions = Questions()
        self._performance: Performance | None = None  # as it was last told
        self._keys: tuple[str, ...] | None = None  # of authorities; None: nobody has said
        self._reporting = Reporting(self._subsystems)
        config = database.nodes.get(self.me)
        generation = config.generation if config is not None else 0
        self._candidacy = Candidacy(me)
        self._presence = Presence(me, generation, database.index, self._out)
        self._own = OwnRegisters(me, strip, self._numbers, self._out)
        self._reads = Reads(setup.profile, now_us)
        self._software = msgspec.structs.replace(setup.software, started_index=database.index)
        self._begin_term(NO_TERM)
        self._next_heartbeat_us = now_us
        self._may_decide_anew = True  # false while an input is taken in that can change no decision
        self._look_at_links = True  # something has happened that may change whom this node hears

    def _begin_term(self, term: Term) -> None:
        """Forget what was gathered for the last term as master."""
        self._followers = Followers(term, self._profile)
        self._requests: dict[str, tuple[int, Request]] = {}
        self._in_flight: tuple[Entry, int, list[tuple[int, Response]]] | None = None  # with its length
        self._placed: PlacedTogether | None = None  # by the entry in flight
        self._services_open = False
        self._unreachable: dict[int, str] = {}
        self._unchanged = Unchanged()
        self._alarmed: set[tuple[int, int]] = set()  # incarnations that were named as waiting for too long
        self._sheds = False  # the store may be over full (P9.6)
        self._next_service = ""  # before which the last round had to stop
        self._polls = Polls()

    # ---- the interface of the drivers ---------------------------------------------------------------------------

    @property
    def is_master(self) -> bool:
        """Whether this node acts as master now."""
        return self._tenure.is_master

    @property
    def database(self) -> Database:
        """This node's replica of the database."""
        return self._replica.database

    @property
    def trouble(self) -> str:
        """What keeps this node from following the cluster, in words."""
        return self._replica.trouble

    @property
    def master(self) -> int | None:
        """The node that this one takes for master, if any."""
        if self.is_master:
            return self.me
        holder = self._holder()
        return holder.node if holder is not None and self._observer.is_live(holder.node) else None

    @property
    def term(self) -> Term:
        """The highest term that this node knows to have been in force."""
        return self._replica.accepted

    @property
    def confirmed(self) -> bool:
        """Whether all that the replica holds is known to be committed (P5.1)."""
        return self._replica.confirmed

    def remembered(self) -> tuple[int, Term, dict[int, int]]:
        """What this node knows for certain, for its home: an index, its entry's term, durable terms (P11.2)."""
        return *self._replica.known, self._memory.terms

    @property
    def incarnation(self) -> int:
        """The boot of this node that this is."""
        return self.setup.incarnation

    @property
    def connected(self) -> dict[int, int]:
        """Connected peers and their incarnations."""
        return self._links.connected

    @property
    def deadline_us(self) -> int:
        """When the next `Tick` is due; never, once the node has ended."""
        if self._out.has_ended:
            return NEVER_US
        times = [self._next_heartbeat_us, self._links.next_view_us]
        others = (self._reads.due_us, self._reporting.due_us, self._reporting.count_due_us, self._tenure.retry_us)
        return min(*times, *(due_us for due_us in others if due_us is not None))

    def heard(self) -> frozenset[int]:
        """The nodes whose frames arrived within the link bound."""
        return self._links.heard(len(self.database.nodes), self._now_us)

    def is_live(self, node: int) -> bool:
        """Whether the node's newest incarnation renews its lease, as far as this node can tell."""
        return self._observer.is_live(node)

    def last_words(self, node: int) -> str:
        """Why the last incarnation of a node panicked, as its tombstone says; empty where none was read (P7.18)."""
        incarnation, words = self._observer.last_words.get(node, (0, ""))
        return words if incarnation == self.database.member(node).incarnation else ""

    def store_lost_ms(self) -> int:
        """For how long no read of the store has succeeded, if that is longer than a gap; else 0 (SPEC 7.5)."""
        silent_ms = (self._now_us - max(self._observer.read_us, self._started_us)) // US_PER_MS
        return silent_ms if silent_ms > self._profile.gap_ms else 0

    def unable_to_lead(self) -> dict[int, str]:
        """The nodes that say that they cannot lead, and why: their own area cannot be written (P2.11)."""
        said = {node: why for node, why in self._inability.told.items() if why and node in self._links.connected}
        return said | ({self.me: self._inability.own} if self._inability.own else {})

    def places_awaited(self) -> dict[int, AwaitedThere]:
        """What waits for a place, by node, as far as this node hears of it (P8.12)."""
        return self._places.everywhere(self.me, self._links.connected, self._now_us)

    @property
    def links(self) -> Links:
        """What this node hears, for reports."""
        return self._links

    @property
    def observer(self) -> Observer:
        """What this node has read from the store, for reports."""
        return self._observer

    def connectivity(self) -> dict[int, Candidate]:
        """The live members as the choice of the surviving set sees them, for reports."""
        return self._link_candidates()

    def waited_for(self) -> dict[int, tuple[tuple[int, ...], int]]:
        """Who has not acknowledged the present step of each transition, and for how long it has been at work (us).

        The master knows; the others know what it told them last, and before that take all participants.
        """
        acknowledged = acknowledged_by(self._reports()) if self.is_master else {}
        found = {}
        for record in self.database.transitions.values():
            nodes = missing(record, acknowledged) if self.is_master else self._waiting.told.get(record.identity)
            elapsed_us = self._waiting.elapsed_us(record, self._now_us)
            found[record.identity] = (record.participants if nodes is None else nodes, elapsed_us)
        return found

    def age_ms(self, index: int) -> int:
        """How long ago entry `index` was committed, as far as this node knows."""
        return self._replica.ages.age_us(index, self._now_us) // US_PER_MS

    def plan(self) -> Plan:
        """A copy of what this node knows, to try a change on; on the master with how busy the nodes are."""
        reports = self._reports() if self.is_master else {}
        performance = {node: report.performance for node, report in reports.items()}
        return Plan(self.database, dict(self._replica.ages.told(self.database, self._now_us)), performance, self._room)

    def behind_rotation(self) -> tuple[int, ...]:
        """On the master: the members that the present step of a rotation waits for (P1.7); nobody on others."""
        cluster = self.database.cluster
        if not self.is_master or not cluster.incoming:
            return ()
        reports = self._reports()

        def report(member: Member) -> Report | None:
            found = reports.get(member.node)
            return found if found is not None and found.incarnation == member.incarnation else None

        return authority.behind(self.database.members.values(), report, cluster)

    def start(self, now_us: int) -> list[Effect]:
        """The first effects: withdraw what an earlier life claimed, begin to read."""
        self._now_us = now_us
        self._tenure.start(now_us)
        self._settle_tenure()
        self._timers()
        return self._out.drain()

    def step(self, happened: Input, now_us: int) -> list[Effect]:
        """Take one input in; return what is to be done, in order."""
        if self._out.has_ended:
            return []
        self._now_us = max(self._now_us, now_us)
        self._may_decide_anew = True
        self._take(happened)
        if not self._out.has_ended:
            self._timers()
            if self._may_decide_anew or self._requests:
                self._decide()
        self._out.extend(self._subsystems.narrate(self.database))
        return self._out.drain()

    def _take(self, happened: Input) -> None:
        match happened:
            case StripRead() | StripUnread() | StoreDone() | StoreRefused() | JournalRead():
                self._store_answered(happened)
                self._settle_tenure()
            case MessageReceived(sender=sender, message=message):
                self._message(sender, message)
            case PeerConnected() | PeerLost() | OwnLinksChanged():
                self._look_at_links = True
                self._link_changed(happened)
            case CommandFinished(command=command):
                self._executor.finished(command)
                self._send_report()
                self._may_decide_anew = not self.is_master or self._reporting.counts_now(self.database, self._now_us)
            case LevelRegistered(level=level):
                self._register(level)
            case LevelGone(number=number, departed=departed):
                self._level_gone(number, departed=departed)
            case Acknowledged():
                self._acknowledged((happened,))
            case AcknowledgedTogether(steps=steps):
                self._acknowledged(steps)
            case OperationRequested(identity=identity, operation=operation, author=author):
                self._requested(identity, operation, author)
            case SubsystemAnswered(question=question, level=level, objection=objection):
                self._questions.answered(question, level, objection)
                self._tell_verdicts()
            case PerformanceMeasured(performance=performance):
                if is_news(self._performance, performance):
                    self._performance = performance
                    self._send_report()
            case KeysHeld(authorities=authorities):
                self._hold_keys(authorities)
            case FenceConfirmed() | KernelsWord():
                self._vouched_for(happened)
            case RestartHeld(cause=cause):
                self._presence.hold_restart(cause)
                self._may_decide_anew = False
                self._replica_changed()
            case PlacesAwaited(waiting=waiting, count=count):
                self._places.wait(waiting, count)
                self._may_decide_anew = False
            case Tick():
                self._look_at_links = True
                self._may_decide_anew = not self._reads.is_due(
                    self._now_us
                )  # the answer to a read is decided upon, and comes at once

    def _hold_keys(self, authorities: tuple[str, ...]) -> None:
        self._may_decide_anew = authorities != self._keys
        if authorities != self._keys:
            self._keys = authorities
            self._send_report()

    def _vouched_for(self, word: FenceConfirmed | KernelsWord) -> None:
        """A fence agent has stopped an incarnation, or the own guard has asked the kernel about it (P7.13, P7.15)."""
        if isinstance(word, KernelsWord) and not word.given:
            self._observer.cannot_ask(word.node, word.incarnation, word.detail)
            return
        kind = ProofKind.KERNELS_WORD if isinstance(word, KernelsWord) else ProofKind.FENCE_AGENT
        self._take_evidence(word.node, Evidence(kind, word.incarnation, word.detail))
        self._send_report()  # the master may be one that cannot ask
        self._consider_claim()

    def _take_evidence(self, node: int, evidence: Evidence) -> None:
        if self._observer.confirm(node, evidence):
            detail = f"{self.database.name_of(node)}: {evidence.kind.words}, {evidence.detail}"
            self._out.trace("proof of death", detail, about=node)

    def _acknowledged(self, given: tuple[Acknowledged, ...]) -> None:
        steps = (Acknowledgement(each.transition, each.level, each.barrier) for each in given)
        fresh = tuple(step for step in steps if self._subsystems.acknowledge(step))
        if fresh:
            self._subsystems.settle(self.database)
            self._may_decide_anew = news.may_complete(fresh, self.database, self._has_acknowledged)
            self._send_report()

    def _link_changed(self, change: PeerConnected | PeerLost | OwnLinksChanged) -> None:
        match change:
            case PeerConnected(node=node, incarnation=incarnation):
                self._links.connect(node, incarnation, self._now_us)
                self._heartbeat((node,))
                self._send_report(force=True)
            case PeerLost(node=node, cause=cause):
                if self._links.lose(node):
                    self._out.trace("link lost", f"{self.database.name_of(node)}: {cause}", about=node)
            case OwnLinksChanged(cut_off=cut_off):
                self._links.cut_off = cut_off
                self._out.trace("own links", "no interface of this node has a link" if cut_off else "they are up again")

    # ---- the store -----------------------------------------------------------------------------------------------

    def _store_answered(self, answer: StripRead | StripUnread | StoreDone | StoreRefused | JournalRead) -> None:
        match answer:
            case StripRead() if another := self._another_store(answer):
                self._out.panic(f"its store went back in time, or is another one: {another}")
            case StripRead(read=read) if self._tenure.awaits_read(read):
                self._observe(answer)
                self._tenure.read(answer.strip, self._observer.is_out, self._now_us, may_lead=self._observer.may_lead)
            case StripRead(read=read) if self._reads.awaits(read):
                self._strip_read(answer)
            case StripUnread(read=read) if self._tenure.awaits_read(read):
                self._tenure.unread(self._now_us)
            case StripUnread(read=read) if self._reads.awaits(read):
                self._reads.failed(self._now_us)
                self._observer.lose_sight(self._now_us)
            case JournalRead(operation=operation) if self._tenure.awaits(operation):
                index, term, _terms = self.remembered()
                self._tenure.journal_read(answer, index, term, self._now_us)
            case StoreDone(operation=operation, claims=claims):
                self._store_done(operation, claims)
            case StoreRefused():
                self._store_refused(answer)
            case _:
                pass  # an answer that nobody waits for any more

    def _answer_unchanged(self, read: StripRead) -> None:
        """A read of all claims has shown no higher term: answer what changed nothing (P9.4)."""
        known = None not in read.strip.claims
        if known and self.is_master and self._observer.highest_term() <= self.term and self._observer.may_lead:
            for sender, response in self._unchanged.confirmed(read.started_us):
                self._respond(sender, response)

    def _strip_read(self, read: StripRead) -> None:
        self._reads.done(read.started_us, self._now_us)
        self._observe(read)
        self._links.see_views(read.strip, self._now_us)
        may_lead = self._observer.may_lead
        if self._tenure.observe(read.strip, self._now_us, may_lead=may_lead):
            why = "a higher term was claimed" if may_lead else "its own lease has run out"
            self._out.trace("superseded", why)
        self._answer_unchanged(read)
        self._watch_links()
        self._consider_claim()
        self._find_master()

    def _another_store(self, read: StripRead) -> str:
        """Why this read cannot be of the store that this node booted on, in words (P11.3)."""
        lease = read.strip.leases[self.me]
        if lease is not None and lease.stamp.incarnation < self.setup.incarnation:
            return f"its own lease register shows an earlier incarnation, {lease.stamp.incarnation}"
        return self._memory.judge(read)

    def _observe(self, read: StripRead) -> None:
        self._observer.see(read)
        self._note_late()
        for node, evidence in self._observer.newly_dead(self.database):
            detail = f"{self.database.name_of(node)}: {evidence.kind.words}, {evidence.detail}"
            self._out.trace("proof of death", detail, about=node)
        for node in self._observer.take_last_words(self.database):
            self._out.trace("last words", f"{self.database.name_of(node)}: {self.last_words(node)}", about=node)
        for marks in read.strip.marks:  # the guard obeys them too, unless it hangs (P7.10)
            if marks is not None and (self.me, self.setup.incarnation) in marks.condemned:
                self._out.panic(f"node {marks.stamp.owner} forced it out")
        self._out.extend(self._observer.to_ask(self._now_us))

    def _store_done(self, operation: int, claims: Claims) -> None:
        if self._tenure.awaits(operation):
            observer = self._observer
            self._tenure.done(self._now_us, claims, observer.is_out, may_lead=observer.may_lead)
        else:
            kind = self._own.ended(operation)
            self._inability.written(kind)
            if kind == "marks":
                self._publish_marks()

    def _store_refused(self, refused: StoreRefused) -> None:
        if refused.kind == "foreign":
            self._out.panic(refused.error)
        elif self._tenure.awaits(refused.operation):
            self._tenure.refused(refused, self._now_us)
        else:
            self._register_refused(self._own.ended(refused.operation), refused)

    def _register_refused(self, kind: str, refused: StoreRefused) -> None:
        """The view or the marks could not be written: again soon; a master without marks gives way (P2.11).

        A mark stops a condemned node that lives (P4.3). Its view tells the others whom this node hears: who leads looks
        at all of them, so whoever cannot write its own is no good candidate.
        """
        if kind == "marks":
            self._own.publish_anew()
        elif kind == "view":
            self._links.view_refused(self._now_us)
        if kind and self._inability.refused(kind, self._now_us):
            self._found_unable(f"its {kind} register cannot be written: {refused.error}")
            if kind == "marks" and self.is_master:
                self._out.trace("gives way", "it cannot publish its marks")
                self._tenure.abdicate(self._now_us)
                self._settle_tenure()

    # ---- mastership ----------------------------------------------------------------------------------------------

    def _settle_tenure(self) -> None:
        """Take over what the mastership machine wants done and what has become of it."""
        while True:
            effects, outcomes = self._tenure.drain()
            self._out.extend(effects)
            if not outcomes or self._out.has_ended:
                return
            for outcome in outcomes:
                self._tenure_outcome(outcome)

    def _tenure_outcome(self, outcome: Outcome) -> None:
        match outcome:
            case Became(term=term):
                self._became(term)
            case Decided():
                self._decided()
            case Withdrawn():
                self._withdrawn()
            case Compact():
                self._tenure.compact(self.database, self._now_us)
            case Halt(cause=cause):
                self._out.panic(cause)
            case Trouble(event=event, detail=detail):
                self._out.trace(event, detail)
                if event == JOURNAL_FULL:
                    self._entry_bytes = max(MINIMUM_ENTRY_BYTES, self._entry_bytes // 2)
                self._candidacy.after_trouble(self._now_us)
            case GaveWay(detail=detail):
                self._out.trace("gives way", f"{detail}; another node may lead")
                self._found_unable(detail)

    def _found_unable(self, why: str) -> None:
        """This node could not do what leading takes: all others go first from now on (P2.11)."""
        self._candidacy.put_off(self._now_us + self._inability.found(why))

    def _end_if_hopeless(self) -> None:
        """A claim that this node can neither act on nor withdraw keeps all others waiting: end with it (P2.11)."""
        why = self._tenure.hopeless(self._observer.strip, self._now_us)
        if why:
            self._out.panic(f"{why}; the others wait for its claim")

    def _consider_claim(self) -> None:
        """Claim mastership if no predecessor may lead any more and no better candidate claims (P2.2, P2.10, P2.13)."""
        unable = self.unable_to_lead().keys()
        if self._presence.is_going or not self._candidacy.has_its_turn(
            self._tenure, self._observer, self.database, unable, self._now_us
        ):
            return
        if not self._may_lead():
            return
        self._candidacy.claimed()
        self._out.trace("claiming", f"above term {self._observer.highest_term()}")
        self._tenure.claim(self._observer.strip, self._now_us)

    def _may_lead(self) -> bool:
        """A member outside the surviving set leaves the claim to that set (SPEC 7.4)."""
        candidates = self._link_candidates()
        return self.me not in candidates or self.me in surviving_set(candidates)

    def _became(self, term: Term) -> None:
        adopted = self._tenure.adopted
        assert adopted is not None
        self._begin_term(term)
        self._inability.over()
        self._sheds = True
        self._replica.adopt(adopted, term, self._now_us)
        self._own.publish_anew()
        self._out.put(Elected(term.number, term.node))
        self._out.trace(history.ELECTED, f"{self.setup.name} is master, term {term}, at index {adopted.index}")
        self._publish_marks()
        self._abdicate_if_due()
        self._replica_changed()
        self._remind()

    def _decided(self) -> None:
        assert self._in_flight is not None
        entry, length, responses = self._in_flight
        self._in_flight = None
        self._entry_bytes = min(2 * self._entry_bytes, self._room.capacity.entry)
        self._replica.apply(entry, self._now_us)
        if self._placed is not None:
            self._out.put(Placed(entry.index, self._placed))
        for node, append in self._followers.committed(entry, length, self._now_us).items():
            self._out.send(node, append)
        for sender, response in responses:
            self._respond(sender, response)
        self._publish_marks()
        self._abdicate_if_due()
        self._replica_changed()

    def _withdrawn(self) -> None:
        for node in self._links.connected:
            self._out.send(node, Abdicated(self._tenure.state.term))
        self._begin_term(NO_TERM)
        self._presence.finish()

    def _abdicate_if_due(self) -> None:
        """A leaving master hands over to a joined member; a decision to abdicate waits for the frame in flight."""
        if self._tenure.state.abdicating and self._tenure.is_free:
            self._tenure.abdicate(self._now_us)
            return
        if self._tenure.is_free and has_successor(self.database, self.me, self._followers.reports):
            self._out.trace("abdicating", "it leaves the cluster")
            self._tenure.abdicate(self._now_us)

    # ---- the links -----------------------------------------------------------------------------------------------

    def _link_candidates(self) -> dict[int, Candidate]:
        return self._links.candidates(self.database, self._observer.strip, self.is_live, self._now_us)

    def _watch_links(self) -> None:
        """On the master: find who is outside the surviving set; abdicate if this node is (P4.4, SPEC 7.4)."""
        if not self.is_master:
            return
        nodes = len(self.database.nodes)
        outside = self._links.judge(self._link_candidates(), self._observer.strip, nodes, self._now_us)
        self._unreachable = {}
        if self.me in outside:
            self._out.trace("abdicating", "its links failed; the surviving set goes on without it")
            self._tenure.abdicate(self._now_us)
            return
        for node, lost in outside.items():
            names = ", ".join(sorted(self.database.name_of(other) for other in lost))
            self._unreachable[node] = f"its links to {names} failed"

    def _write_view_if_due(self, early_us: int) -> None:
        live = [node for node in self.database.nodes if self.is_live(node)]
        self._note_late()
        heard = self._links.view_due(len(self.database.nodes), live, self._now_us, early_us)
        if heard is not None:
            self._own.write_view(self._links, self.database, heard, self._tenure.state.term, self._now_us)

    def _note_late(self) -> None:
        """Note who is heard though its lease has run out; who is so for the first time is shown (P4.6)."""
        heard = self.heard()
        late = self._observer.late(heard, self._links)
        for node in sorted(self._links.note_late(late)):
            detail = f"{self.database.name_of(node)}: its lease has run out, and it is still heard: no proof by expiry"
            self._out.trace("heard late", detail, about=node)
        self._observer.note_heard(heard, late)

    def _publish_marks(self) -> None:
        """Publish the marks of every committed eviction, as master only (P4.3, SPEC 7.2)."""
        if self.is_master:
            self._own.publish_marks(self.database, self._tenure.state.term)

    # ---- messages ------------------------------------------------------------------------------------------------

    def _message(self, sender: int, message: Message) -> None:
        self._links.hear(sender, self._now_us)
        match message:
            case Heartbeat(term=term, index=index):
                self._memory.heard(term, self._now_us)
                self._links.store_lost_ms[sender] = message.store_lost_ms
                self._inability.told[sender] = message.unable
                self._places.heard(sender, message)
                self._may_decide_anew = False
                self._followers.is_at(sender, term, index)
                if term == self.term and term.node == sender:
                    self._waiting.told = dict(message.waiting)
            case Snapshot():
                self._snapshot(message)
            case Append() if not self.is_master:
                self._append(sender, message)
            case Report():
                self._reported(sender, message)
            case Request():
                self._request(sender, message)
            case Response():
                self._clients.answered(message)
                self._answer()
            case Abdicated():
                self._reads.soon(self._now_us)
            case Ask() if sender == self.term.node:
                self._asked(sender, message)
            case Verdict() if self.is_master:
                self._polls.answered(sender, message)
                self._decide_polls()
            case _:
                pass

    def _snapshot(self, snapshot: Snapshot) -> None:
        if self.is_master:
            self._reads.soon(self._now_us)  # only the store says whether this node is superseded
            return
        taken = self._replica.take_snapshot(snapshot, self._now_us)
        if taken is Taken.ADVANCED:
            self._replica_changed()
        if taken is not Taken.NOTHING:
            self._send_report(force=True)  # the master repeats it until it has heard of it

    def _append(self, sender: int, append: Append) -> None:
        taken = self._replica.take_entries(append, self._now_us)
        if taken is Taken.HIGHER_TERM:
            self._send_report(force=True, to=sender)  # asks for this term's snapshot
        elif taken is not Taken.NOTHING:
            self._replica_changed()
            self._send_report(force=taken is Taken.GAP)

    def _reported(self, sender: int, report: Report) -> None:
        if not self.is_master:
            return
        before = self._followers.reports.get(sender)
        self._followers.reported(sender, report)
        now = self._followers.reports.get(sender)
        self._subsystems.settle(self.database)
        self._may_decide_anew = news.may_change_a_decision(before, now, self.database, self._has_acknowledged)
        if self._may_decide_anew and not self.database.transitions:
            self._may_decide_anew = self._reporting.decides_now(self.database, self._now_us)
        for word in report.words:
            detail = f"{self.database.name_of(sender)} has asked: {word.detail}"
            self._take_evidence(word.node, Evidence(ProofKind.KERNELS_WORD, word.incarnation, detail))
        self._out.extend(history.heard(self.database, sender, before, now))
        self._repeat(sender)

    def _repeat(self, node: int) -> None:
        message = self._followers.repeat(node, self.database, self._replica.ages, self._now_us)
        if message is not None:
            self._out.send(node, message)

    def _requested(self, identity: str, operation: OperationRequest, author: Author) -> None:
        if identity not in self.database.operations and (refusal := upgrade.refusal(operation, self.database)):
            self._out.put(Reply(identity, True, refusal, self.database.index))
            return
        if isinstance(operation, EvictNode) and operation.confirmed_dead:
            self._believe(operation)
        request = self._clients.add(identity, operation, author)
        if request is None:
            text = f"{MAXIMUM_PENDING} operations wait on this node already: ask again when they are done"
            self._out.put(Reply(identity, True, text, self.database.index))
        else:
            self._forward(request)

    def _believe(self, evict: EvictNode) -> None:
        """An operator vouches for the stop of a silent node: without a master, this very node may then claim (P4.2)."""
        node = self.database.node_named(evict.node)
        lease = self._observer.strip.leases[node] if node is not None else None
        if node is None or lease is None or node == self.me or self.is_live(node):
            return
        detail = f"confirmed by hand: {evict.cause}"
        self._observer.confirm(node, Evidence(ProofKind.OPERATOR, lease.stamp.incarnation, detail))

    def _forward(self, request: Request) -> None:
        holder = self._holder()
        if self.is_master:
            self._clients.asked(request.identity, self.term)
            self._request(self.me, request)
        elif holder is not None:
            self._clients.asked(request.identity, holder)
            self._out.send(holder.node, request)

    def _request(self, sender: int, request: Request) -> None:
        if not self.is_master:
            return
        done = self.database.operations.get(request.identity)
        if done is not None:
            self._respond(sender, Response(done.identity, self.term, done.index, done.refused, done.outcome))
        elif (unchanged := self._unchanged.answered(request)) is not None:
            self._respond(sender, unchanged)
        elif len(self._requests) < MAXIMUM_QUEUED and not self._is_in_flight(request):
            self._poll(sender, request)

    def _poll(self, sender: int, request: Request) -> None:
        """Carry the request out, or first ask the subsystems that may object to it (P4.5)."""
        passes, asks = self._polls.passes(sender, request, self.database, self._now_us)
        if passes:
            self._requests[request.identity] = (sender, request)
        for node, ask in asks.items():
            if node == self.me:
                self._asked(node, ask)
            else:
                self._out.send(node, ask)

    def _decide_polls(self) -> None:
        for poll in self._polls.decided(self.database, self._now_us):
            if poll.objections:
                text = "; ".join(poll.objections) + "; to do it all the same, repeat it with --override"
                self._respond(poll.sender, Response(poll.request.identity, self.term, 0, True, text))
            else:
                self._request(poll.sender, poll.request)

    def _asked(self, asker: int, ask: Ask) -> None:
        self._out.extend(self._questions.ask(asker, ask, self._subsystems.levels.values()))
        self._tell_verdicts()

    def _tell_verdicts(self) -> None:
        for asker, verdict in self._questions.over():
            if asker != self.me:
                self._out.send(asker, verdict)
            elif self.is_master:
                self._polls.answered(self.me, verdict)
                self._decide_polls()

    def _is_in_flight(self, request: Request) -> bool:
        responses = self._in_flight[2] if self._in_flight is not None else []
        if self._unchanged.waits(request.identity):
            return True
        return any(response.identity == request.identity for _, response in responses)

    def _respond(self, sender: int, response: Response) -> None:
        if sender == self.me:
            self._clients.answered(response)
            self._answer()
        else:
            self._out.send(sender, response)

    def _answer(self) -> None:
        self._out.extend(self._clients.due(self.database.index))

    def _heartbeat(self, nodes: tuple[int, ...]) -> None:
        waiting: tuple[tuple[int, tuple[int, ...]], ...] = ()
        if self.is_master and self.database.transitions:
            acknowledged = acknowledged_by(self._reports())
            waiting = tuple((t.identity, missing(t, acknowledged)) for t in self.database.transitions.values())
        lost_ms = self.store_lost_ms()
        heartbeat = Heartbeat(
            self.setup.incarnation, self.term, self.database.index, waiting, lost_ms, self._inability.own,
            *self._places.own(self._now_us),
        )  # fmt: skip
        for node in nodes:
            self._out.send(node, heartbeat)

    # ---- the replica and what follows from it --------------------------------------------------------------------

    def _replica_changed(self) -> None:
        """Do what the committed records say that this node must do (P5.4, SPEC 3.4, 3.11, 3.12, 7.7)."""
        if not self.confirmed or self._out.has_ended:
            return
        asked = self._presence.look(self.database, self._subsystems.lost(self._replica.own.required))
        if asked in (Asked.TO_LEAVE, Asked.TO_RESTART):
            self._answer()
            self._hand_over()
        if asked in (Asked.TO_LEAVE, Asked.TO_END):
            return
        self._observer.follow(self.database)
        self._waiting.follow(self.database, self._now_us)
        self._refuse_conflicting_levels()
        self._begin_second_step()
        self._out.extend(self._subsystems.due(self.database))
        self._subsystems.settle(self.database)
        self._out.extend(self._executor.due(self.database))
        self._answer()

    def _register(self, level: Level) -> None:
        """Take a subsystem in, before the node joins or at any time later (P3.9, SPEC 3.2, 3.10)."""
        database = self.database if self.confirmed else None
        reason = registration.refusal(level, self._subsystems.levels, database, self.me, self.setup.incarnation)
        if reason:
            self._out.put(LevelRefused(level.number, reason))
            return
        self._subsystems.register(level)
        if self.confirmed:
            self._out.extend(self._subsystems.due(self.database))
        self._send_report()

    def _level_gone(self, number: int, *, departed: bool) -> None:
        """A subsystem has deregistered, or its program has ended: then its node may have to fail with it (P3.18)."""
        self._questions.lost(number)
        self._tell_verdicts()
        fails = "" if departed else self._why_loss_fails(number)
        level = self._subsystems.levels.get(number)
        if not self._subsystems.unregister(number, departed=departed, ended=not departed):
            return
        if fails and level is not None:
            self._out.panic(f"subsystem {level.name} of level {number} has ended, and {fails}")
        else:
            self._send_report()

    def _why_loss_fails(self, number: int) -> str:
        own = self.database.member(self.me)
        known = own if self._replica.is_of_this_life else None
        return registration.why_loss_fails(number, self._subsystems.levels, known)

    def why_not_deregistered(self, number: int) -> str:
        """Why the end of a program that registers this level could not be its level's alone, in words (P3.18)."""
        names = {each.number for each in required.required_of(self.database.cluster, self.database.nodes.get(self.me))}
        if number in names:
            return f"nodes join only with level {number} (required_levels)"
        return self._why_loss_fails(number)

    def required_levels(self) -> list[required.Waiting]:
        """The nodes that wait for required levels, as this node knows it (P3.17)."""
        return required.waiting(self.database, self.age_ms, self.waited_for())

    def _raise_alarms(self) -> None:
        """On the master: name every node that has waited too long for a required level, once a term (P3.17)."""
        for waiting in self.required_levels():
            life = (waiting.node, waiting.incarnation)
            if waiting.is_overdue and life not in self._alarmed:
                self._alarmed.add(life)
                name = self.database.name_of(waiting.node)
                self._out.trace(history.OVERDUE, f"{name}: {waiting.words}", waiting.node)

    def _refuse_conflicting_levels(self) -> None:
        """Give up what was registered here while another node registered it differently (P3.4)."""
        found = registration.conflicts(self._subsystems.levels, self.database, self.me, self.setup.incarnation)
        for number, reason in found.items():
            self._subsystems.unregister(number)
            self._out.put(LevelRefused(number, reason))

    def _hand_over(self) -> None:
        """Give up what is left of a mastership; then this node goes (SPEC 3.11, P10.3)."""
        if self._tenure.is_idle:
            self._presence.finish()
        else:
            self._tenure.abdicate(self._now_us)
            self._settle_tenure()

    def _own_report(self) -> Report:
        wish = "" if self._replica.is_of_this_life else "join"
        return Report(
            self._replica.followed,
            self.database.index,
            self.setup.incarnation,
            wish,
            tuple(self._levels()),
            self._subsystems.acknowledged(self.database),
            self._executor.states(self.database),
            performance=self._performance,
            software=self._software,
            keys=self._keys,
            words=self._observer.testimony(self.database),
            departed=self._subsystems.departed(self.database),
        )

    def _levels(self) -> list[Level]:
        """The registered levels: the event manager's from the second step of the boot on (SPEC 3.10)."""
        self._begin_second_step()
        return [self._subsystems.levels[number] for number in sorted(self._subsystems.levels)]

    def _begin_second_step(self) -> None:
        levels = self._subsystems.levels
        if EVENT_MANAGER_LEVEL.number in levels:
            return
        own, mine = self._replica.own, self._replica.is_of_this_life
        join = next((t for t in self.database.transitions.values() if mine and t.node == self.me), None)
        parked = join is not None and join.awaits == EVENT_MANAGER_LEVEL.number
        nothing_below = all(number > EVENT_MANAGER_LEVEL.number for number in levels)
        counted = any(level.number == EVENT_MANAGER_LEVEL.number for level in own.levels)  # before a daemon's restart
        if nothing_below or parked or (mine and (counted or own.state is not NodeState.JOINING)):
            self._subsystems.register(self.setup.rehearsed_event_manager or EVENT_MANAGER_LEVEL)

    def _send_report(self, force: bool = False, to: int | None = None) -> None:
        """Tell the master what it must know of this node, if that has changed or must be repeated (P5.3)."""
        holder = None if self.is_master else self._holder()
        receiver = None if self.is_master else to if to is not None else holder.node if holder is not None else None
        if receiver is None or receiver == self.me:
            self._reporting.drop()
            return
        self._subsystems.settle(self.database)
        report = self._reporting.next(self._own_report, self.database, self._now_us, force=force)
        if report is not None:
            self._out.send(receiver, report)

    def _has_something_pending(self) -> bool:
        report = self._own_report()
        differ = set(report.levels) != set(self.database.member(self.me).levels)
        pending = report.wish or report.acknowledgements or report.commands or differ
        return bool(pending) or report.term != self._claimed_term()

    def _holder(self) -> Term | None:
        return self._observer.holder(self._replica.followed)

    def _claimed_term(self) -> Term:
        return self._holder() or NO_TERM

    def _find_master(self) -> None:
        """A node that sees a higher mastership in the store than it has accepted makes itself known (SPEC 2.2)."""
        if not self.is_master and self._claimed_term() > (self._replica.followed):
            self._send_report()

    # ---- decisions of the master ---------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Let all rules work on one draft; propose what they change as one entry (SPEC 2.7)."""
        while self._tenure.is_free and not self._out.has_ended and not self._presence.is_going:
            asked = list(self._requests.values())
            self._requests = {}
            self._reporting.round_us = self._now_us
            draft, answers = decide(self.database, self._facts(), [request for _, request in asked])
            changes = draft.changes
            responses = self._responses(asked, answers, draft.index if changes else 0)
            self._sheds = self._sheds and shedding.excess_of(draft, self._room) > 0
            self._next_service = draft.stopped_at
            if not changes:
                return
            entry = Entry(draft.index, self.term, clipped("; ".join(draft.causes), ENTRY_CAUSE_BYTES), changes)
            frame = encode_entry(entry)
            self._in_flight, self._placed = (entry, len(frame), responses), draft.placed
            self._tenure.propose(frame, self._now_us)
            self._settle_tenure()

    def _has_acknowledged(self, node: int, step: Acknowledgement) -> bool:
        """On the master: whether the node has processed the step, as far as it has said."""
        if node == self.me:
            return self._subsystems.has_acknowledged(step)
        report = self._followers.reports.get(node)
        return report is not None and step in report.acknowledgements

    def _facts(self) -> Facts:
        reports = self._reports()
        facts = Facts(
            self._now_us, self.me, reports, self._observer.evidence, self.is_live, self._unreachable,
            self._find_hung(reports), self._services_open,
            lambda index: self._replica.ages.age_us(index, self._now_us),
            self._observer.slots(), self._observer.ran_out, self._observer.unclean, self._observer.owed,
            self._observer.foreign,
            room=self._room, entry_bytes=self._entry_bytes, sheds=self._sheds, after=self._next_service,
            aged_index=self._replica.ages.index_before(RETRY_WINDOW_MS * US_PER_MS, self._now_us),
        )  # fmt: skip
        if not self._services_open:
            self._services_open = facts.services_open = all_have_reported(self.database, facts)
        return facts

    def _reports(self) -> dict[int, Report]:
        """On the master: the reports of this term, the own one included."""
        self._subsystems.settle(self.database)
        own = msgspec.structs.replace(self._own_report(), term=self.term)
        return {**self._followers.reports, self.me: own}

    def explain(self, name: str) -> Explanation | None:
        """Why the service is where it is, or is not anywhere, as this node knows it; None if there is none such."""
        return self.explainer()(name)

    def explainer(self) -> Callable[[str], Explanation | None]:
        """Explains services as they are now, several of them from one snapshot.

        Only the master has the nodes' reports: another node takes every joined member for one that has reported.
        """
        rounds: list[Round] = []

        def explained(name: str) -> Explanation | None:
            service = self.database.services.get(name)
            if service is None:
                return None
            if not rounds:
                rounds.append(self._round_of_now())
            return explain(service, rounds[0])

        return explained

    def _round_of_now(self) -> Round:
        if self.is_master:
            reports = self._reports()
        else:
            members = self.database.members.values()
            reports = {m.node: Report(self.term, 0, m.incarnation, "", (), (), ()) for m in members if counts(m)}
        facts = Facts(
            self._now_us, self.me, reports, self._observer.evidence, self.is_live, self._unreachable, {},
            self._services_open or not self.is_master,
            lambda index: self._replica.ages.age_us(index, self._now_us),
            unclean=self._observer.unclean,
        )  # fmt: skip
        return Round(Draft(self.database), facts)

    def _find_hung(self, reports: dict[int, Report]) -> dict[int, str]:
        """Name every subsystem whose deadline is over, once; return those whose node must go (P3.10)."""
        if not self.database.transitions or not _has_deadlines(self.database):
            return {}
        stragglers = self._waiting.stragglers(self.database, reports, self._now_us)
        for hung in self._waiting.newly_hung(stragglers):
            about = self.database.transitions[hung.transition].node
            at = (hung.transition, hung.level.number, hung.barrier)
            self._out.put(Trace(history.HUNG, self._describe(hung), *at, about, nodes=(hung.node,)))
        return {hung.node: self._describe(hung) for hung in stragglers if hung.is_hung and hung.level.evicts}

    def _describe(self, straggler: Straggler) -> str:
        level = straggler.level
        who = f"{self.database.name_of(straggler.node)}: {level.name} (level {level.number})"
        elapsed_ms = straggler.elapsed_us // US_PER_MS
        return f"{who} has not acknowledged barrier {straggler.barrier} for {elapsed_ms} ms"

    def fullness(self) -> Fullness:
        """How full the store is, as far as this node's replica knows."""
        return fullness(self._room, self.database)

    def _responses(
        self, asked: list[tuple[int, Request]], answers: list[Operation | None], index: int
    ) -> list[tuple[int, Response]]:
        """What to say once the entry `index` is committed; refusals change nothing and are said at once (P9.1).

        What changes nothing waits for a read of the claims, or for that entry if it was judged by what is in it (P9.4).
        """
        waiting = []
        for (sender, request), done in zip(asked, answers, strict=True):
            if done is None:
                self._requests[request.identity] = (sender, request)
                continue
            stands_at = done.index if done.index == index else min(done.index, self.database.index)
            response = Response(done.identity, self.term, stands_at, done.refused, done.outcome)
            if done.refused:
                self._respond(sender, response)
            elif done.index != index:
                self._unchanged.judged(sender, request, response, self._now_us)
                if request.author.user != ITSELF:
                    self._reads.soon(self._now_us)  # a person waits for it
            else:
                waiting.append((sender, response))
        return waiting

    # ---- time ----------------------------------------------------------------------------------------------------

    def _timers(self) -> None:
        report_due_us = self._reporting.due_us
        if report_due_us is not None and self._now_us >= report_due_us:
            self._send_report()
        if self._reporting.count_is_due(self._now_us):
            self._may_decide_anew = True
        self._tenure.retry(self._now_us)
        self._settle_tenure()
        self._end_if_hopeless()
        early_us = 0
        if self._reads.is_due(self._now_us):
            number = next(self._numbers)
            self._reads.begin(number)
            self._out.put(ReadStrip(number))
            early_us = self._reads.early_us
        if self._now_us + early_us >= self._next_heartbeat_us:
            self._beat()
        if self._look_at_links or self._now_us + early_us >= self._links.next_view_us:
            self._look_at_links = False
            self._write_view_if_due(early_us)

    def _beat(self) -> None:
        interval_ms = self._profile.heartbeat_interval_ms(len(self.database.nodes))
        self._next_heartbeat_us = self._now_us + interval_ms * US_PER_MS
        self._heartbeat(tuple(self._links.connected))
        for request in self._clients.unanswered():
            self._forward(request)
        if self.is_master:
            self._publish_marks()
            self._decide_polls()
            self._remind()
            self._raise_alarms()
        elif self._has_something_pending():
            self._send_report(force=True)

    def _remind(self) -> None:
        """On the master: repeat what a node has missed, or the snapshot that it has not answered."""
        for node in self._links.connected:
            if node in self._followers.reports or counts(self.database.member(node)):
                self._repeat(node)


def _has_deadlines(database: Database) -> bool:
    return any(level.deadline_ms for member in database.members.values() for level in member.levels)
