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
from collections.abc import Iterable
from typing import assert_never

import msgspec

from muster.core.decisions.desk import Desk
from muster.core.decisions.heartbeats import Heartbeats
from muster.core.decisions.leadership import Beside, Leadership
from muster.core.decisions.store_answers import StoreAnswers
from muster.core.decisions.term import MasterTerm
from muster.core.effects import Effect
from muster.core.fencing.asker import Asker
from muster.core.inputs import (
    Input,
    LevelGone,
    LinkChange,
    MessageReceived,
    OperationRequested,
    OwnNews,
    PeerConnected,
    PlacesAwaited,
    RestartHeld,
    StoreAnswer,
    SubsystemAnswered,
    Tick,
    Voucher,
)
from muster.core.leases import sightings
from muster.core.leases.memory import Remembered
from muster.core.leases.observer import Observer
from muster.core.links.links import Links
from muster.core.mastership import machine as mastership
from muster.core.membership.own_registers import OwnRegisters
from muster.core.membership.presence import Asked, Presence
from muster.core.node.account import Account
from muster.core.node.setup import Setup
from muster.core.outbox import Outbox
from muster.core.replica.replica import Replica
from muster.core.replica.reporting import Reporting
from muster.core.room import Room
from muster.core.services.commands import Executor
from muster.core.this_node import ThisNode
from muster.core.transitions import programs
from muster.core.transitions.subsystems import Subsystems
from muster.records.database import Database
from muster.records.messages import Abdicated, Append, ForDesk, ForShell, Heartbeat, Message, Report, Snapshot
from muster.records.registers import Strip
from muster.records.services import CommandState
from muster.records.units import NEVER_US


class Node:
    """One node of the cluster: give it inputs, carry out its effects."""

    def __init__(
        self, setup: Setup, database: Database, strip: Strip, commands: tuple[CommandState, ...], now_us: int
    ) -> None:
        self.setup, self.now_us = setup, now_us
        me = ThisNode(setup.node, setup.name, setup.incarnation, setup.profile)
        self.me, self.incarnation = me.node, me.incarnation
        claim, view, config = strip.claim(self.me), strip.view(self.me), database.nodes.get(self.me)
        assert claim is not None, "the driver boots a node only from a strip whose claims are all known"
        remembered = setup.remembered or Remembered("", "")
        accepted, known = mastership.newest_mark(strip)[1].term, (remembered.index, remembered.term)
        numbers = itertools.count(1)  # of store operations and reads
        self.observer = Observer(
            self.me, me.incarnation, me.profile, strip,
            one_machine=setup.one_machine, kernel=setup.kernel, started_us=now_us,
            is_first=database.member(self.me).incarnation != me.incarnation,
        )  # fmt: skip
        self.executor = Executor(self.me, me.incarnation, commands)
        self.subsystems = Subsystems(self.me, me.incarnation, setup.residents)
        self.links = Links(self.me, me.profile, now_us, view.stamp.sequence if view else 0)
        self._out = Outbox(self.links.connected)
        self.replica = Replica(me, database, accepted, known, self._out)
        self.reporting = Reporting(me, msgspec.structs.replace(setup.software, started_index=database.index))
        asker = Asker(me, self._out)
        self.account = Account(self.replica, self.observer, self.subsystems, self.executor, self.reporting, asker)
        self._presence = Presence(me, config.generation if config is not None else 0, database.index, self._out)
        self._own = OwnRegisters(me, strip, numbers, self._out)
        self.leadership = Leadership(me, claim, numbers, Room(setup.region_bytes), self._out)
        self.store = StoreAnswers(me, remembered.terms, numbers, now_us, self._out)
        self.heartbeats = Heartbeats(me, now_us, self._out)
        self._desk = Desk(me, self._out)
        self._beside = Beside(self.replica, self.observer, self.links, self._own, self.subsystems, asker)

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
    def deadline_us(self) -> int:
        """When the next `Tick` is due; never, once the node has ended."""
        if self._out.has_ended:
            return NEVER_US
        always = (self.heartbeats.next_us, self.links.next_view_us)
        others = (self.store.reads.due_us, *self.account.times_us, self.leadership.retry_us)
        return min(*always, *(due_us for due_us in others if due_us is not None))

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
            self.leadership.propose(self._beside, self.account, self.now_us, has_news=may_decide)  # or one of services
        if not self._out.has_ended:
            self._report()  # 5: one report, whatever wanted it
        self._out.extend(self.subsystems.narrate(self.database))
        return self._out.drain()

    # ---- what comes in ------------------------------------------------------------------------------------------

    def _take(self, happened: Input) -> bool:
        """Give an input to the machine that it is for; whether it may change a decision of this master."""
        if isinstance(happened, StoreAnswer):
            self._store_answered(happened)
            return True
        if isinstance(happened, OwnNews):
            if isinstance(happened, LevelGone):
                self._desk.lost(happened.number, self.leading, self._beside, self.now_us)
            return self.account.take(happened, self.leading, self.now_us, self._out)
        if isinstance(happened, LinkChange):
            self.links.take(happened, self.database, self.now_us, self._out)
            if isinstance(happened, PeerConnected):
                self._heartbeat((happened.node,))
                self.reporting.want(force=True)
            return True
        if isinstance(happened, Voucher):
            if sightings.take_word(self.observer, happened, self.database, self._out):
                self.reporting.want()  # the master may be one that cannot ask
                self._claim_if_due()
            return True
        match happened:
            case MessageReceived(sender=sender, message=message):
                return self._message(sender, message)
            case OperationRequested():
                self._desk.ask(happened, self.leading, self._beside, self.now_us)
            case SubsystemAnswered(question=question, level=level, objection=objection):
                self._desk.objected(question, level, objection, self.leading, self._beside, self.now_us)
            case RestartHeld(cause=cause):
                self._presence.hold_restart(cause)
                self._follow()
                return False
            case PlacesAwaited(waiting=waiting, count=count):
                self.heartbeats.places.wait(waiting, count)
                return False
            case Tick():
                self.links.look_again()
                return not self.store.reads.is_due(self.now_us)  # its answer is decided upon, and comes at once
            case _:
                assert_never(happened)
        return True

    def _store_answered(self, answer: StoreAnswer) -> None:
        taken = self.store.take(answer, self.leadership, self._beside, self.now_us)
        self._desk.deliver(taken.told, self.leading, self._beside, self.now_us)
        if taken.shows_strip:
            self.leadership.watch_links(self._beside, self.now_us)
            self._claim_if_due()
            self.account.look(self.links, is_master=self.is_master, now_us=self.now_us)
        self._settle()

    def _message(self, sender: int, message: Message) -> bool:
        """Give a message to the machine that it is for; whether it may change a decision of this master."""
        self.links.hear(sender, self.now_us)
        if isinstance(message, ForDesk):
            self._desk.hear(sender, message, self.leading, self._beside, self.now_us)
            return True
        if isinstance(message, ForShell):
            return True
        match message:
            case Heartbeat():
                memory = self.store.memory
                self.heartbeats.hear(sender, message, self.leadership, self._beside, memory, self.now_us)
                return False
            case Report():
                may_decide = self.leadership.take_report(sender, message, self._beside, self.now_us)
                if not may_decide or not self.is_master or self.database.transitions:
                    return may_decide
                return self.reporting.decides_now(self.database, self.now_us)
            case Snapshot() if self.is_master:
                self.store.reads.soon(self.now_us)  # only the store says whether this node is superseded
            case Snapshot():
                self.reporting.took_snapshot(self.replica.take_snapshot(message, self.now_us))
            case Append():
                if not self.is_master:
                    self.reporting.took_entries(self.replica.take_entries(message, self.now_us), sender)
            case Abdicated():
                self.store.reads.soon(self.now_us)
            case _:
                assert_never(message)
        return True

    # ---- what follows -------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Take over what has become of a claim or a mastership."""
        told, has_withdrawn = self.leadership.settle(self._beside, self.now_us)
        self._desk.deliver(told, self.leading, self._beside, self.now_us)
        if has_withdrawn:
            self._presence.finish()

    def _claim_if_due(self) -> None:
        if not self._presence.is_going:
            self.leadership.claim_if_due(self._beside, self.now_us)

    def _follow(self) -> None:
        """Do what the committed records say that this node must do (P5.4, SPEC 3.4, 3.11, 3.12, 7.7)."""
        if not self.replica.confirmed or self._out.has_ended:
            return
        asked = self._presence.look(self.database, self.subsystems.lost(self.replica.own.required))
        if asked in (Asked.TO_LEAVE, Asked.TO_RESTART):
            self._desk.reply(self.database.index)
            self._hand_over()
        if asked in (Asked.TO_LEAVE, Asked.TO_END):
            return
        self.observer.follow(self.database)
        self.heartbeats.waiting.follow(self.database, self.now_us)
        programs.follow(self.subsystems, self.database, is_confirmed=self.replica.confirmed, out=self._out)
        self.account.follow(self.now_us, self._out)
        self._desk.reply(self.database.index)

    def _hand_over(self) -> None:
        """Give up what is left of a mastership; then this node goes (SPEC 3.11, P10.3)."""
        if self.leadership.hand_over(self.now_us):
            self._presence.finish()
        else:
            self._settle()

    def _decide(self) -> None:
        """Let all rules work on one draft; propose what they change as one entry (SPEC 2.7)."""
        while self.leadership.can_decide and not self._out.has_ended and not self._presence.is_going:
            self.reporting.round_us = self.now_us
            own, waiting = self.account.settled(), self.heartbeats.waiting
            result = self.leadership.decide(self._beside, own, waiting, self.now_us)
            if result.is_awaited:
                self.store.reads.soon(self.now_us)
            self._desk.deliver(result.told, self.leading, self._beside, self.now_us)
            if not result.frame:
                return
            self._settle()

    def _report(self) -> None:
        """Tell the master what it must know of this node, if that has changed or must be repeated (P5.3)."""
        self.account.send(self.me, is_master=self.is_master, now_us=self.now_us, out=self._out)

    # ---- time ---------------------------------------------------------------------------------------------------

    def _timers(self) -> bool:
        """What time has made due; whether a round of decisions is."""
        counts = self.account.count_is_due(self.now_us)
        self.leadership.retry(self.observer, self.now_us)
        self._settle()
        self.leadership.end_if_hopeless(self.observer, self.now_us)
        early_us = self.store.begin_read_if_due(self.now_us, at_once=self.account.asker.take_wish())
        if self.heartbeats.is_due(self.now_us + early_us):
            self._beat()
        if self.links.is_due(self.now_us, early_us):
            self.leadership.write_view_if_due(self._beside, self.now_us, early_us)
        return counts

    def _beat(self) -> None:
        """Tell all peers that this node is there; say again what nobody has answered."""
        self.heartbeats.begin(self._beside, self.now_us)
        self._heartbeat(tuple(self.links.connected))
        self._desk.repeat(self.leading, self._beside, self.now_us)
        if self.leading is not None:
            self.leadership.publish_marks(self._beside)
            self._desk.decide_polls(self.leading, self._beside, self.now_us)
            self.leading.remind(self.links.connected, self.replica, self.now_us)
            self.leading.raise_alarms(self.replica, self.heartbeats.waiting, self.account.settled(), self.now_us)
        self.account.repeat(self.me, is_master=self.is_master)

    def _heartbeat(self, nodes: Iterable[int]) -> None:
        waiting: dict[int, tuple[int, ...]] = {}
        if self.leading is not None and self.database.transitions:
            waiting = self.leading.waited_for(self.database, self.account.settled())
        self.heartbeats.tell(nodes, waiting, self.leadership.inability.own, self._beside, self.now_us)
