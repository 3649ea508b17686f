"""One node: composes the machines and orders their effects. The daemon and the simulator drive this very class.

Theory of operation. `step(input, now_us)` returns effects; nothing else happens. A node holds a replica of the
database. It acts on it only once it is confirmed: received from the master of the highest term known, or adopted by
itself (P5.1). What it must do locally follows from the replica (`core/services/commands.py`); what the master must know
of it is one idempotent report (P5.3). On the master every input ends in a round of decisions: all rules work on one
draft, whose changes become one entry; one entry is in flight at a time; only when it is committed is it applied and
told (P2.6).

The rules are in the machines, each of which writes into one outbox and returns what has become of an input. Here is who
is asked, in which order: `_take` gives an input to its machine, `step` has the phases (docs/ARCHITECTURE.md).

Durations are microseconds inside; `now_us` comes from a clock that runs through suspend (SPEC 7.1).
"""

import itertools
from typing import assert_never

import msgspec

from muster.core.decisions.leadership import Beside, Leadership
from muster.core.decisions.term import MasterTerm, Told
from muster.core.effects import (
    Effect,
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
from muster.core.leases import sightings
from muster.core.leases.memory import Memory, Remembered
from muster.core.leases.observer import Observer
from muster.core.leases.reads import Reads
from muster.core.links.links import Links
from muster.core.mastership import machine as mastership
from muster.core.membership.own_registers import OwnRegisters
from muster.core.membership.presence import Asked, Presence
from muster.core.node.account import Account
from muster.core.node.setup import Setup
from muster.core.operations.desk import Desk
from muster.core.outbox import Outbox
from muster.core.replica import news
from muster.core.replica.replica import Replica, Taken
from muster.core.replica.reporting import Reporting
from muster.core.room import Room
from muster.core.services.commands import Executor
from muster.core.services.grades import is_news
from muster.core.services.places import Places
from muster.core.this_node import ThisNode
from muster.core.transitions import programs
from muster.core.transitions.subsystems import Subsystems
from muster.core.transitions.waiting import Waiting
from muster.records.access import Author
from muster.records.database import Database
from muster.records.levels import Level
from muster.records.messages import (
    Abdicated,
    Append,
    Ask,
    Heartbeat,
    Hello,
    HistoryAnswer,
    HistoryRequest,
    KeyAnswer,
    KeyRequest,
    LocalAnswer,
    LocalQuestion,
    Message,
    Report,
    Request,
    Response,
    Snapshot,
    Verdict,
)
from muster.records.operations import OperationRequest
from muster.records.registers import Strip
from muster.records.services import CommandState
from muster.records.terms import NO_TERM, Term
from muster.records.transitions import Acknowledgement
from muster.records.units import NEVER_US, US_PER_MS


class Node:
    """One node of the cluster: give it inputs, carry out its effects."""

    def __init__(
        self, setup: Setup, database: Database, strip: Strip, commands: tuple[CommandState, ...], now_us: int
    ) -> None:
        self.setup = setup
        self.me = setup.node
        self.this = me = ThisNode(setup.node, setup.name, setup.incarnation, setup.profile)
        self._profile = setup.profile
        own_claim = strip.claim(self.me)
        assert own_claim is not None, "the driver boots a node only from a strip whose claims are all known"
        self._numbers = itertools.count(1)  # of store operations and reads
        self.places = Places()
        self.observer = Observer(
            self.me,
            setup.incarnation,
            setup.profile,
            strip,
            one_machine=setup.one_machine,
            kernel=setup.kernel,
            started_us=now_us,
        )
        remembered = setup.remembered or Remembered("", "")
        self.memory = Memory(remembered.terms)
        self.executor = Executor(self.me, setup.incarnation, commands)
        self.subsystems = Subsystems(self.me, setup.incarnation, setup.residents)
        self.now_us = now_us
        view = strip.view(self.me)
        self.links = Links(self.me, setup.profile, now_us, view.stamp.sequence if view else 0)
        self._out = Outbox(self.links.connected)
        accepted, known = mastership.newest_mark(strip)[1].term, (remembered.index, remembered.term)
        self.replica = Replica(me, database, accepted, known, self._out)
        self._desk = Desk(me, self._out)
        self.waiting = Waiting()
        self.reporting = Reporting(me, msgspec.structs.replace(setup.software, started_index=database.index))
        config = database.nodes.get(self.me)
        generation = config.generation if config is not None else 0
        self._presence = Presence(me, generation, database.index, self._out)
        self._own = OwnRegisters(me, strip, self._numbers, self._out)
        self._reads = Reads(setup.profile, now_us)
        self.leadership = Leadership(me, own_claim, self._numbers, Room(setup.region_bytes), self._out)
        self.account = Account(self.replica, self.observer, self.subsystems, self.executor, self.reporting)
        self._beside = Beside(self.replica, self.observer, self.links, self._own)
        self._next_heartbeat_us = now_us
        self._look_at_links = True  # something has happened that may change whom this node hears

    # ---- the interface of the drivers ---------------------------------------------------------------------------

    @property
    def is_master(self) -> bool:
        """Whether this node acts as master now."""
        return self.leading is not None

    @property
    def leading(self) -> MasterTerm | None:
        """What this node is master with; it exists exactly while it is."""
        return self.leadership.term

    @property
    def database(self) -> Database:
        """This node's replica of the database."""
        return self.replica.database

    @property
    def trouble(self) -> str:
        """What keeps this node from following the cluster, in words."""
        return self.replica.trouble

    @property
    def master(self) -> int | None:
        """The node that this one takes for master, if any."""
        if self.is_master:
            return self.me
        holder = self.account.holder()
        return holder.node if holder is not None and self.observer.leads(holder.node) else None

    @property
    def term(self) -> Term:
        """The highest term that this node knows to have been in force."""
        return self.replica.accepted

    @property
    def confirmed(self) -> bool:
        """Whether all that the replica holds is known to be committed (P5.1)."""
        return self.replica.confirmed

    @property
    def incarnation(self) -> int:
        """The boot of this node that this is."""
        return self.setup.incarnation

    @property
    def connected(self) -> dict[int, int]:
        """Connected peers and their incarnations."""
        return self.links.connected

    @property
    def deadline_us(self) -> int:
        """When the next `Tick` is due; never, once the node has ended."""
        if self._out.has_ended:
            return NEVER_US
        times = [self._next_heartbeat_us, self.links.next_view_us]
        others = (self._reads.due_us, self.reporting.due_us, self.reporting.count_due_us, self.leadership.retry_us)
        return min(*times, *(due_us for due_us in others if due_us is not None))

    def invariant(self) -> str:
        """What does not hold of this node between two steps, though it always must, in words; empty where all does."""
        if len(self._out):
            return "something is left in the outbox"
        if self._out.has_ended:
            return ""  # it takes nothing in any more, and what was at work in its last step stays as it was
        return self.leadership.problem(self.replica) or self._own.problem()

    def start(self, now_us: int) -> list[Effect]:
        """The first effects: withdraw what an earlier life claimed, begin to read."""
        self.now_us = now_us
        self.leadership.start(now_us)
        self._settle()
        self._timers()
        self._report()
        return self._out.drain()

    def step(self, happened: Input, now_us: int) -> list[Effect]:
        """Take one input in; return what is to be done, in order."""
        if self._out.has_ended:
            return []
        self.now_us = max(self.now_us, now_us)
        may_decide = self._take(happened)  # 1: the input reaches its machine; what the store has decided is taken over
        if self.replica.take_advance():
            self._follow()  # 2: what the records ask of this node
        if not self._out.has_ended:
            may_decide = self._timers() or may_decide  # 3: what time has made due
            if self.leading is not None and (may_decide or self.leading.has_requests):
                self._decide()  # 4: one round of rules, one entry
        if not self._out.has_ended:
            self._report()  # 5: one report, whatever wanted it
        self._out.extend(self.subsystems.narrate(self.database))
        return self._out.drain()

    def _take(self, happened: Input) -> bool:
        """Give an input to the machine that it is for; whether it may change a decision of this master."""
        match happened:
            case StripRead() | StripUnread() | StoreDone() | StoreRefused() | JournalRead():
                self._store_answered(happened)
                self._settle()
            case MessageReceived(sender=sender, message=message):
                return self._message(sender, message)
            case PeerConnected() | PeerLost() | OwnLinksChanged():
                self._look_at_links = True
                self._link_changed(happened)
            case CommandFinished(command=command):
                self.executor.finished(command)
                self.reporting.want()
                return self.leading is None or self.reporting.counts_now(self.database, self.now_us)
            case LevelRegistered(level=level):
                self._register(level)
            case LevelGone(number=number, departed=departed):
                self._level_gone(number, departed=departed)
            case Acknowledged():
                return self._acknowledged((happened,))
            case AcknowledgedTogether(steps=steps):
                return self._acknowledged(steps)
            case OperationRequested(identity=identity, operation=operation, author=author):
                self._requested(identity, operation, author)
            case SubsystemAnswered(question=question, level=level, objection=objection):
                self._judged(self._desk.answered(question, level, objection))
            case PerformanceMeasured(performance=performance):
                if is_news(self.reporting.performance, performance):
                    self.reporting.performance = performance
                    self.reporting.want()
            case KeysHeld(authorities=authorities):
                return self._hold_keys(authorities)
            case FenceConfirmed() | KernelsWord():
                self._vouched_for(happened)
            case RestartHeld(cause=cause):
                self._presence.hold_restart(cause)
                self._follow()
                return False
            case PlacesAwaited(waiting=waiting, count=count):
                self.places.wait(waiting, count)
                return False
            case Tick():
                self._look_at_links = True
                return not self._reads.is_due(self.now_us)  # its answer is decided upon, and comes at once
            case _:
                assert_never(happened)
        return True

    def _hold_keys(self, authorities: tuple[str, ...]) -> bool:
        if authorities == self.reporting.keys:
            return False
        self.reporting.keys = authorities
        self.reporting.want()
        return True

    def _vouched_for(self, word: FenceConfirmed | KernelsWord) -> None:
        if sightings.take_word(self.observer, word, self.database, self._out):
            self.reporting.want()  # the master may be one that cannot ask
            self._claim_if_due()

    def _acknowledged(self, given: tuple[Acknowledged, ...]) -> bool:
        steps = (Acknowledgement(each.transition, each.level, each.barrier) for each in given)
        fresh = tuple(step for step in steps if self.subsystems.acknowledge(step))
        if not fresh:
            return True
        self.subsystems.settle(self.database)
        self.reporting.want()
        if self.leading is None:
            return False
        return news.may_complete(fresh, self.database, self.leading.has_acknowledged(self.subsystems))

    def _link_changed(self, change: PeerConnected | PeerLost | OwnLinksChanged) -> None:
        match change:
            case PeerConnected(node=node, incarnation=incarnation):
                self.links.connect(node, incarnation, self.now_us)
                self._heartbeat((node,))
                self.reporting.want(force=True)
            case PeerLost(node=node, cause=cause):
                if self.links.lose(node):
                    self._out.trace("link lost", f"{self.database.name_of(node)}: {cause}", about=node)
            case OwnLinksChanged(cut_off=cut_off):
                self.links.cut_off = cut_off
                self._out.trace("own links", "no interface of this node has a link" if cut_off else "they are up again")

    # ---- the store -----------------------------------------------------------------------------------------------

    def _store_answered(self, answer: StripRead | StripUnread | StoreDone | StoreRefused | JournalRead) -> None:
        match answer:
            case StripRead() if another := self.memory.another_store(answer, self.this):
                self._out.panic(f"its store went back in time, or is another one: {another}")
            case StripRead() if self.leadership.awaits(answer):
                self._observe(answer)
                self.leadership.take(answer, self._beside, self.now_us)
            case StripRead(read=read) if self._reads.awaits(read):
                self._strip_read(answer)
            case StripUnread(read=read) if self._reads.awaits(read):
                self._reads.failed(self.now_us)
                self.observer.lose_sight(self.now_us)
            case StoreRefused(kind="foreign"):
                self._out.panic(answer.error)
            case _ if self.leadership.awaits(answer):
                self.leadership.take(answer, self._beside, self.now_us)
            case StoreDone(operation=operation):
                self._register_written(self._own.ended(operation))
            case StoreRefused(operation=operation):
                self._register_refused(self._own.ended(operation), answer)
            case _:
                pass  # an answer that nobody waits for any more

    def _strip_read(self, read: StripRead) -> None:
        self._reads.done(read.started_us, self.now_us)
        self._observe(read)
        self.links.see_views(read.strip, self.now_us)
        self._deliver(self.leadership.look(read, self.observer, self.now_us))
        self.leadership.watch_links(self._beside, self.now_us)
        self._claim_if_due()
        self._find_master()

    def _observe(self, read: StripRead) -> None:
        sightings.take_read(self.observer, self.links, read, self.database, self.now_us, self._out)

    def _register_written(self, kind: str) -> None:
        self.leadership.inability.written(kind)
        if kind == "marks":
            self.leadership.publish_marks(self._beside)

    def _register_refused(self, kind: str, refused: StoreRefused) -> None:
        """The view or the marks could not be written: again soon (P2.11)."""
        if kind == "marks":
            self._own.publish_anew()
        elif kind == "view":
            self.links.view_refused(self.now_us)
        if kind:
            self.leadership.register_refused(kind, refused.error, self.now_us)

    def _settle(self) -> None:
        """Take over what has become of a claim or a mastership."""
        told, has_withdrawn = self.leadership.settle(self._beside, self.now_us)
        self._deliver(told)
        if has_withdrawn:
            self._presence.finish()

    def _claim_if_due(self) -> None:
        if not self._presence.is_going:
            self.leadership.claim_if_due(self._beside, self.now_us)

    # ---- the links -----------------------------------------------------------------------------------------------

    def _write_view_if_due(self, early_us: int) -> None:
        live = [node for node in self.database.nodes if self.observer.is_live(node)]
        sightings.note_late(self.observer, self.links, self.database, self.now_us, self._out)
        heard = self.links.view_due(len(self.database.nodes), live, self.now_us, early_us)
        if heard is not None:
            self._own.write_view(self.links, self.database, heard, self.leadership.claimed, self.now_us)

    # ---- messages ------------------------------------------------------------------------------------------------

    def _message(self, sender: int, message: Message) -> bool:
        """Give a message to the machine that it is for; whether it may change a decision of this master."""
        self.links.hear(sender, self.now_us)
        match message:
            case Heartbeat():
                self._heard(sender, message)
                return False
            case Snapshot() if self.leading is not None:
                self._reads.soon(self.now_us)  # only the store says whether this node is superseded
            case Snapshot():
                self._snapshot(message)
            case Append() if self.leading is None:
                self._append(sender, message)
            case Report() if self.leading is not None:
                return self._reported(sender, message, self.leading)
            case Request() if self.leading is not None:
                self._deliver(self.leading.request(sender, message, self.database, self.now_us))
            case Response():
                self._desk.hear(message, self.database.index)
            case Abdicated():
                self._reads.soon(self.now_us)
            case Ask() if sender == self.term.node:
                self._judged(self._desk.question(sender, message, self.subsystems))
            case Verdict() if self.leading is not None:
                self.leading.judged(sender, message)
                self._deliver(self.leading.decide_polls(self.database, self.now_us))
            case Append() | Report() | Request() | Ask() | Verdict():
                pass  # of no use to who is master, or to who is not
            case Hello() | HistoryRequest() | HistoryAnswer() | KeyRequest() | KeyAnswer():
                pass  # for the interconnect and the shell around this node
            case LocalQuestion() | LocalAnswer():
                pass
            case _:
                assert_never(message)
        return True

    def _heard(self, sender: int, heartbeat: Heartbeat) -> None:
        self.memory.heard(heartbeat.term, self.now_us)
        self.links.store_lost_ms[sender] = heartbeat.store_lost_ms
        self.leadership.inability.told[sender] = heartbeat.unable
        self.places.heard(sender, heartbeat)
        if self.leading is not None:
            self.leading.followers.is_at(sender, heartbeat.term, heartbeat.index)
        if heartbeat.term == self.term and heartbeat.term.node == sender:
            self.waiting.told = dict(heartbeat.waiting)

    def _snapshot(self, snapshot: Snapshot) -> None:
        taken = self.replica.take_snapshot(snapshot, self.now_us)
        if taken is not Taken.NOTHING:
            self.reporting.want(force=True)  # the master repeats it until it has heard of it

    def _append(self, sender: int, append: Append) -> None:
        taken = self.replica.take_entries(append, self.now_us)
        if taken is Taken.HIGHER_TERM:
            self.reporting.want(force=True, to=sender)  # asks for this term's snapshot
        elif taken is not Taken.NOTHING:
            self.reporting.want(force=taken is Taken.GAP)

    def _reported(self, sender: int, report: Report, leading: MasterTerm) -> bool:
        self.subsystems.settle(self.database)
        sightings.take_testimony(self.observer, sender, report, self.database, self._out)
        may_decide = leading.take_report(sender, report, self.replica, self.subsystems, self.now_us)
        if may_decide and not self.database.transitions:
            return self.reporting.decides_now(self.database, self.now_us)
        return may_decide

    def _requested(self, identity: str, operation: OperationRequest, author: Author) -> None:
        request = self._desk.ask(identity, operation, author, self.database, self.observer)
        if request is not None:
            self._forward(request)

    def _forward(self, request: Request) -> None:
        holder = self.account.holder()
        if self.leading is not None:
            self._desk.clients.asked(request.identity, self.term)
            self._deliver(self.leading.request(self.me, request, self.database, self.now_us))
        elif holder is not None:
            self._desk.clients.asked(request.identity, holder)
            self._out.send(holder.node, request)

    def _deliver(self, told: Told) -> None:
        """Tell the others what this master has to say to them, and this node itself."""
        for node, message in told:
            if node != self.me:
                self._out.send(node, message)
            elif isinstance(message, Ask):
                self._judged(self._desk.question(node, message, self.subsystems))
            else:
                self._desk.hear(message, self.database.index)

    def _judged(self, verdicts: list[Verdict]) -> None:
        """What the programs of this node have told its own master (P4.5)."""
        if self.leading is not None and verdicts:
            for verdict in verdicts:
                self.leading.judged(self.me, verdict)
            self._deliver(self.leading.decide_polls(self.database, self.now_us))

    def _heartbeat(self, nodes: tuple[int, ...]) -> None:
        waiting: tuple[tuple[int, tuple[int, ...]], ...] = ()
        if self.leading is not None and self.database.transitions:
            waiting = tuple(self.leading.waited_for(self.database, self.account.settled()).items())
        lost_ms = self.observer.lost_ms(self.now_us)
        heartbeat = Heartbeat(
            self.setup.incarnation, self.term, self.database.index, waiting, lost_ms, self.leadership.inability.own,
            *self.places.own(self.now_us),
        )  # fmt: skip
        for node in nodes:
            self._out.send(node, heartbeat)

    # ---- the replica and what follows from it --------------------------------------------------------------------

    def _follow(self) -> None:
        """Do what the committed records say that this node must do (P5.4, SPEC 3.4, 3.11, 3.12, 7.7)."""
        if not self.confirmed or self._out.has_ended:
            return
        asked = self._presence.look(self.database, self.subsystems.lost(self.replica.own.required))
        if asked in (Asked.TO_LEAVE, Asked.TO_RESTART):
            self._desk.reply(self.database.index)
            self._hand_over()
        if asked in (Asked.TO_LEAVE, Asked.TO_END):
            return
        self.observer.follow(self.database)
        self.waiting.follow(self.database, self.now_us)
        programs.follow(self.subsystems, self.database, is_confirmed=self.confirmed, out=self._out)
        self._out.extend(self.executor.due(self.database))
        self._desk.reply(self.database.index)

    def _register(self, level: Level) -> None:
        if programs.come(self.subsystems, level, self.database if self.confirmed else None, self._out):
            self.reporting.want()

    def _level_gone(self, number: int, *, departed: bool) -> None:
        self._judged(self._desk.lost(number))
        if programs.go(self.subsystems, number, self.replica.own_now, self._out, departed=departed):
            self.reporting.want()

    def _hand_over(self) -> None:
        """Give up what is left of a mastership; then this node goes (SPEC 3.11, P10.3)."""
        if self.leadership.hand_over(self.now_us):
            self._presence.finish()
        else:
            self._settle()

    def _report(self) -> None:
        """Tell the master what it must know of this node, if that has changed or must be repeated (P5.3)."""
        self.account.send(self.me, is_master=self.is_master, now_us=self.now_us, out=self._out)

    def _find_master(self) -> None:
        """A node that sees a higher mastership in the store than it has accepted makes itself known (SPEC 2.2)."""
        if self.leading is None and (self.account.holder() or NO_TERM) > self.replica.followed:
            self.reporting.want()

    # ---- decisions of the master ---------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Let all rules work on one draft; propose what they change as one entry (SPEC 2.7)."""
        while self.leadership.can_decide and not self._out.has_ended and not self._presence.is_going:
            self.reporting.round_us = self.now_us
            result = self.leadership.decide(self._beside, self.account.settled(), self.waiting, self.now_us)
            if result.is_awaited:
                self._reads.soon(self.now_us)
            self._deliver(result.told)
            if not result.frame:
                return
            self._settle()

    # ---- time ----------------------------------------------------------------------------------------------------

    def _timers(self) -> bool:
        """What time has made due; whether a round of decisions is."""
        counts = self.reporting.count_is_due(self.now_us)
        self.leadership.retry(self.now_us)
        self._settle()
        self.leadership.end_if_hopeless(self.observer, self.now_us)
        early_us = self._reads.begin_if_due(self._numbers, self.now_us, self._out)
        if self.now_us + early_us >= self._next_heartbeat_us:
            self._beat()
        if self._look_at_links or self.now_us + early_us >= self.links.next_view_us:
            self._look_at_links = False
            self._write_view_if_due(early_us)
        return counts

    def _beat(self) -> None:
        interval_ms = self.observer.beat_ms(len(self.database.nodes))
        self._next_heartbeat_us = self.now_us + interval_ms * US_PER_MS
        self._heartbeat(tuple(self.links.connected))
        for request in self._desk.clients.unanswered():
            self._forward(request)
        if self.leading is not None:
            self.leadership.publish_marks(self._beside)
            self._deliver(self.leading.decide_polls(self.database, self.now_us))
            self.leading.remind(self.links.connected, self.replica, self.now_us)
            self.leading.raise_alarms(self.replica, self.waiting, self.account.settled(), self.now_us)
        elif self.account.is_pending(self.me):
            self.reporting.want(force=True)
