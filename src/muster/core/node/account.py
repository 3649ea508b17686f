"""What this node says of itself: the report to its master and what a master counts of its own (P5.3).

A report shows five machines at once, so it is composed here, where all of them are known; it has no state of its own.
"""

from typing import NamedTuple

from muster.core.leases.observer import Observer
from muster.core.outbox import Outbox
from muster.core.replica.replica import Replica
from muster.core.replica.reporting import Reporting
from muster.core.services.commands import Executor
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

    def is_pending(self, node: int) -> bool:
        """Whether the master still has to act on something of this node's report, or has not shown that it has it."""
        self.begin_second_step()
        report = self.report()
        differ = set(report.levels) != set(self.replica.database.member(node).levels)
        pending = report.wish or report.acknowledgements or report.commands or differ
        return bool(pending) or report.term != (self.holder() or NO_TERM)

    def send(self, node: int, *, is_master: bool, now_us: int, out: Outbox) -> None:
        """Tell the master what it must know of this `node`, if that has changed or must be repeated."""
        wish, database = self.reporting.take_wish(now_us), self.replica.database
        if wish is None:
            return
        holder = self.holder()
        receiver = wish.to if wish.to is not None else holder.node if holder is not None else None
        if is_master or receiver is None or receiver == node:
            self.reporting.drop()
            return
        self.subsystems.settle(database)
        if not wish.force and self.reporting.waits(self.subsystems, database, now_us):
            return
        self.begin_second_step()
        report = self.reporting.next(self.report(), now_us, force=wish.force)
        if report is not None:
            out.send(receiver, report)
