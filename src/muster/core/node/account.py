"""What changes in this node itself, and what it says of that to its master (P5.3, P8.13).

Theory of operation. What a node is answerable for changes in six machines: commands and calls of fence agents end,
programs come, go and acknowledge, its load and its keys change. Each such input is given to its machine here, and a
report is wanted if it is news; on a master it is said whether it may change a decision. The report shows the six
machines at once, so it is composed here, where all of them are known; this has no state of its own.
"""

from collections.abc import Iterable
from typing import NamedTuple, assert_never

from muster.core.decisions import decider
from muster.core.decisions.term import MasterTerm
from muster.core.fencing.asker import Asker
from muster.core.inputs import (
    Acknowledged,
    AcknowledgedTogether,
    CommandFinished,
    DecisionLock,
    FenceAnswered,
    KeysHeld,
    LevelGone,
    LevelRegistered,
    OwnNews,
    PerformanceMeasured,
)
from muster.core.leases.observer import Observer
from muster.core.links.links import Links
from muster.core.outbox import Outbox
from muster.core.replica import news
from muster.core.replica.replica import Replica
from muster.core.replica.reporting import Reporting
from muster.core.services.commands import Executor
from muster.core.services.grades import is_news
from muster.core.transitions import programs
from muster.core.transitions.subsystems import Subsystems
from muster.records.messages import Report
from muster.records.terms import NO_TERM, Term


class Account(NamedTuple):
    """The machines that a report shows."""

    replica: Replica
    observer: Observer
    subsystems: Subsystems
    executor: Executor
    reporting: Reporting
    asker: Asker

    @property
    def times_us(self) -> tuple[int | None, ...]:
        """When something of these machines is due."""
        return *self.reporting.times_us, self.asker.due_us

    def take(self, happened: OwnNews, leading: MasterTerm | None, now_us: int, out: Outbox) -> bool:
        """Something of this node has changed; whether that may change a decision of this master, `leading`."""
        match happened:
            case CommandFinished(command=command):
                self.executor.finished(command)
                self.reporting.want()
                return leading is None or self.reporting.counts_now(self.replica.database, now_us)
            case LevelRegistered(level=level):
                known = self.replica.database if self.replica.confirmed else None
                if programs.come(self.subsystems, level, known, out):
                    self.reporting.want()
            case LevelGone(number=number, departed=departed):
                if programs.go(self.subsystems, number, self.replica.own_now, out, departed=departed):
                    self.reporting.want()
            case Acknowledged():
                return self._acknowledged((happened,), leading)
            case AcknowledgedTogether(steps=steps):
                return self._acknowledged(steps, leading)
            case PerformanceMeasured(performance=performance):
                if is_news(self.reporting.performance, performance):
                    self.reporting.performance = performance
                    self.reporting.want()
            case FenceAnswered():
                self._fenced(changed=self.asker.answered(happened, now_us))
            case DecisionLock(grant=grant):
                self.reporting.grant = grant
                self.reporting.want(force=True)
            case KeysHeld(authorities=authorities):
                return self.reporting.hold_keys(authorities)
            case _:
                assert_never(happened)
        return True

    def _acknowledged(self, given: Iterable[Acknowledged], leading: MasterTerm | None) -> bool:
        fresh = programs.acknowledged(self.subsystems, given, self.replica.database)
        if not fresh:
            return True
        self.reporting.want()
        if leading is None:
            return False
        return news.may_complete(fresh, self.replica.database, leading.has_acknowledged(self.subsystems))

    def report(self) -> Report:
        """All that the master must know of this node, as it is now."""
        commands = self.executor.states(self.replica.database)
        return self.reporting.compose(self.replica, self.subsystems, self.observer, commands)

    def begin_second_step(self) -> None:
        """Register each built-in level whose time has come (P3.11)."""
        self.subsystems.begin_second_step(self.replica.database, is_confirmed=self.replica.confirmed)

    def settled(self) -> Report:
        """The same, once all has been acknowledged and registered that can be."""
        self.subsystems.settle(self.replica.database)
        self.begin_second_step()
        return self.report()

    def holder(self) -> Term | None:
        """Whom this node follows: who holds the highest mastership that it knows of."""
        return self.observer.holder(self.replica.followed)

    def follow(self, now_us: int, out: Outbox) -> None:
        """A confirmed replica has advanced: begin the commands and the calls of fence agents that it asks for."""
        database = self.replica.database
        self.reporting.follow_decider(decider.recorded(database))
        out.extend(self.executor.due(database))
        self._fenced(changed=self.asker.follow(database, now_us, fences=not self.observer.one_machine))

    def _fenced(self, *, changed: bool) -> None:
        """What this node says of fencing may have changed (P7.22, P7.28)."""
        if changed:
            self.reporting.tell_of_fencing(self.asker.answers, tuple(self.asker.troubles))

    def count_is_due(self, now_us: int) -> bool:
        """Do what time has made due of these machines; whether what has ended is counted now."""
        self._fenced(changed=self.asker.tick(now_us))
        return self.reporting.count_is_due(now_us)

    def look(self, links: Links, *, is_master: bool, now_us: int) -> None:
        """A read of the strip has ended: fencing goes on by it, and a master may be seen in it."""
        self._fenced(changed=self.asker.look(self.observer, links, now_us))
        self._look_for_master(is_master=is_master)

    def _look_for_master(self, *, is_master: bool) -> None:
        """A node that sees a higher mastership in the store than it has accepted makes itself known (SPEC 2.2)."""
        if not is_master and (self.holder() or NO_TERM) > self.replica.followed:
            self.reporting.want()

    def is_pending(self, node: int) -> bool:
        """Whether the master still has to act on something of this node's report, or has not shown that it has it."""
        self.begin_second_step()
        report = self.report()
        differ = set(report.levels) != set(self.replica.database.member(node).levels)
        pending = report.wish or report.acknowledgements or report.commands or differ or report.fences
        return bool(pending) or report.term != (self.holder() or NO_TERM)

    def repeat(self, node: int, *, is_master: bool) -> None:
        """Say again what this node has to say, where it may be lost: a decider asks for nothing (P6.44)."""
        if self._who_decides(is_master=True) - {node} or (not is_master and self.is_pending(node)):
            self.reporting.want(force=True)

    def _who_decides(self, *, is_master: bool) -> set[int]:
        """Who is told what this node must say: the master, and who decides on services (P5.3, P6.44)."""
        master, known = None if is_master else self.holder(), decider.recorded(self.replica.database)
        return {each.node for each in (master, known) if each is not None}

    def send(self, node: int, *, is_master: bool, now_us: int, out: Outbox) -> None:
        """Tell those who decide what they must know of this `node`, if that has changed or must be repeated."""
        wish, database = self.reporting.take_wish(now_us), self.replica.database
        if wish is None:
            return
        receivers = {wish.to} if wish.to is not None else self._who_decides(is_master=is_master)
        receivers.discard(node)
        if not receivers:
            self.reporting.drop()
            return
        self.subsystems.settle(database)
        if not wish.force and self.reporting.waits(self.subsystems, database, now_us):
            return
        self.begin_second_step()
        report = self.reporting.next(self.report(), now_us, force=wish.force)
        if report is not None:
            for receiver in sorted(receivers):
                out.send(receiver, report)
