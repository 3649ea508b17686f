"""When a node tells the master what it must know: one report, whole and idempotent (P5.3).

What changes closely together goes together. An acknowledgement waits for nothing where the node owes no other; that the
replica has advanced is nothing that anybody waits for. Composing a report, and deciding upon what ended, look at every
service: with thousands of them both are done the more seldom, so that they take a bounded share of the loop (P8.13).
"""

from typing import NamedTuple

from msgspec.structs import replace

from muster.core.leases.observer import Observer
from muster.core.replica.replica import Replica, Taken
from muster.core.this_node import ThisNode
from muster.core.transitions.subsystems import Subsystems
from muster.records.database import Database
from muster.records.deciders import Decider, Grant
from muster.records.fencing import FenceAnswer
from muster.records.messages import Report
from muster.records.services import CommandState, Performance
from muster.records.versions import Software

INDEX_PAUSE_US = 25_000  # before a report whose only news is that the replica has advanced
REPORT_PAUSE_US = 3000  # between two reports that nobody asked for: a hundred commands that end together are one report
FEW = 500  # services: up to here their number adds nothing to the pauses
SERVICE_PAUSE_US = 5  # added to a pause for each service beyond: twenty times of what a report takes
COMMAND_PAUSE_US = 20  # the same for each command that is told
ROUND_PAUSE_US = 20  # the same, on a master, between two rounds about commands
ACKNOWLEDGEMENT_PAUSE_US = 1000  # the same where a transition may wait for it, and this node still has others at work


class Wish(NamedTuple):
    """A report that some part of the step wants."""

    force: bool  # also where it tells nothing new
    to: int | None  # whom; the master, where it is not said


class Reporting:
    """What was told last, and when the next report is due. On a master: when its own commands are counted next."""

    def __init__(self, me: ThisNode, software: Software) -> None:
        """`software`: what this node runs."""
        self.performance: Performance | None = None  # as it is told
        self.keys: tuple[str, ...] | None = None  # of authorities; None: nobody has said
        self.fences: tuple[FenceAnswer, ...] = ()  # what became of what this node was asked to fence (P7.22)
        self.fence_troubles: tuple[str, ...] = ()  # the fence devices that it cannot use
        self.grant: Grant | None = None  # by which this node has the decision lock (P6.42)
        self._decider: Decider | None = None
        self._incarnation, self._software = me.incarnation, software
        self._wish: Wish | None = None  # to report, before the step is over
        self.due_us: int | None = None  # when there is something to tell that waits for what comes closely after it
        self.count_due_us: int | None = None  # when the master is to count what has ended since it last did
        self._last: Report | None = None
        self.told_us = 0  # when the last one was sent
        self._stamp_us = 0  # that the last one bore
        self._index_due_us = 0  # when the others are told of a new index, if there is nothing else to tell
        self._counted_us = 0
        self.round_us = 0  # on a master: when its last round of decisions was

    @property
    def times_us(self) -> tuple[int | None, int | None]:
        """When time alone makes a report or a round of decisions due, if it does."""
        return self.due_us, self.count_due_us

    def want(self, *, force: bool = False, to: int | None = None) -> None:
        """There may be something to tell: one report goes at the end of the step, however many wanted it.

        `force`: it goes even if it tells nothing new; `to`: not to the master but to this node.
        """
        before = self._wish or Wish(False, None)
        self._wish = Wish(before.force or force, to if to is not None else before.to)

    def took_snapshot(self, taken: Taken) -> None:
        """A master's database has come: the master repeats it until it has heard that it was taken."""
        if taken is not Taken.NOTHING:
            self.want(force=True)

    def took_entries(self, taken: Taken, sender: int) -> None:
        """A master's entries have come: what is missing must be said, and a higher term is asked for its snapshot."""
        if taken is Taken.HIGHER_TERM:
            self.want(force=True, to=sender)
        elif taken is not Taken.NOTHING:
            self.want(force=taken is Taken.GAP)

    def hold_keys(self, authorities: tuple[str, ...]) -> bool:
        """This node holds the private keys of these authorities now; whether it did not (P1.5, P1.7)."""
        if authorities == self.keys:
            return False
        self.keys = authorities
        self.want()
        return True

    def follow_decider(self, decider: Decider | None) -> None:
        """Another one decides on services now: it has to hear of all (P6.44)."""
        if decider != self._decider:
            self._decider = decider
            self.want(force=True)

    def take_wish(self, now_us: int) -> Wish | None:
        """What was wanted in this step, or was put off until now; None for no report."""
        if self.due_us is not None and now_us >= self.due_us:
            self.want()
        wish, self._wish = self._wish, None
        return wish

    def compose(
        self, replica: Replica, subsystems: Subsystems, observer: Observer, commands: tuple[CommandState, ...]
    ) -> Report:
        """All that a master must know of this node, as it is now."""
        database, levels = replica.database, subsystems.levels
        return Report(
            replica.followed,
            database.index,
            self._incarnation,
            "" if replica.is_of_this_life else "join",
            tuple(levels[number] for number in sorted(levels)),
            subsystems.acknowledged(database),
            commands,
            performance=self.performance,
            software=self._software,
            keys=self.keys,
            words=observer.testimony(database),
            departed=subsystems.departed(database),
            fences=self.fences,
            fence_troubles=self.fence_troubles,
            grant=self.grant,
        )

    def tell_of_fencing(self, fences: tuple[FenceAnswer, ...], troubles: tuple[str, ...]) -> None:
        """What became of what this node was asked to fence, and the fence devices that it cannot use."""
        self.fences, self.fence_troubles = fences, troubles
        self.want()

    def waits(self, subsystems: Subsystems, database: Database, now_us: int) -> bool:
        """Whether what there is to tell goes at `due_us` with others, and not now."""
        planned_us, self.due_us = self.due_us, None
        if now_us < self._soonest(planned_us, self.told_us + self._longest_pause_us(database)):
            due_us = self._soonest(planned_us, self.told_us + self._pause_us(subsystems, database))
            if now_us < due_us:
                self.due_us = due_us
                return True
        return False

    def next(self, report: Report, now_us: int, *, force: bool) -> Report | None:
        """The report to send now; None if it tells nothing new, or it waits until `due_us`. `force`: anyway."""
        self.due_us = None
        if not force and self._last is not None:
            if report == self._last:
                return None
            if not has_news(self._last, report):
                self._index_due_us = self._index_due_us or now_us + INDEX_PAUSE_US
                if now_us < self._index_due_us:
                    self.due_us = self._index_due_us
                    return None
        self._last, self.told_us, self._index_due_us = report, now_us, 0
        # Later than that of every report before, also in one moment: of two, the receiver must tell the newer.
        self._stamp_us = max(now_us, self._stamp_us + 1)
        return replace(report, sent_us=self._stamp_us)

    def drop(self) -> None:
        """There is nobody to tell."""
        self.due_us = None

    def counts_now(self, database: Database, now_us: int) -> bool:
        """On a master: whether the end of an own command is counted now, or at `count_due_us` with others."""
        due_us = max(self._counted_us + REPORT_PAUSE_US, self._round_due_us(database))
        if now_us < due_us:
            self.count_due_us = due_us
            return False
        self._counted_us = now_us
        return True

    def decides_now(self, database: Database, now_us: int) -> bool:
        """On a master: whether what a node has reported is decided upon now, or at `count_due_us` with others."""
        due_us = self._round_due_us(database)
        if now_us >= due_us:
            return True
        self.count_due_us = self._soonest(self.count_due_us, due_us)
        return False

    def _round_due_us(self, database: Database) -> int:
        return self.round_us + pause_of_round_us(database)

    def count_is_due(self, now_us: int) -> bool:
        """Whether what was put off is counted now."""
        if self.count_due_us is None or now_us < self.count_due_us:
            return False
        self.count_due_us, self._counted_us = None, now_us
        return True

    @staticmethod
    def _soonest(planned_us: int | None, due_us: int) -> int:
        return due_us if planned_us is None else min(planned_us, due_us)

    def _pause_us(self, subsystems: Subsystems, database: Database) -> int:
        """How long after the last report the next one goes: a step of a transition may wait for it, or nothing does."""
        known = self._last.acknowledgements if self._last is not None else ()
        if all(step in known for step in subsystems.acknowledged(database)):
            return self._longest_pause_us(database)
        return ACKNOWLEDGEMENT_PAUSE_US if subsystems.owes else 0

    def _longest_pause_us(self, database: Database) -> int:
        told = len(self._last.commands) if self._last is not None else 0
        more_us = SERVICE_PAUSE_US * _beyond(len(database.services)) + COMMAND_PAUSE_US * _beyond(told)
        return REPORT_PAUSE_US + more_us


def pause_of_round_us(database: Database) -> int:
    """Between two rounds of decisions on services."""
    return ROUND_PAUSE_US * _beyond(len(database.services))


def _beyond(number: int) -> int:
    return max(0, number - FEW)


def without_acknowledgements(report: Report) -> Report:
    """What of a report does not come and go with each step of a transition."""
    return replace(report, index=0, sent_us=0, acknowledgements=())


def has_news(last: Report, now: Report) -> bool:
    """Whether a report tells more than that the replica has advanced, past what was acknowledged in `last`."""
    if any(step not in last.acknowledgements for step in now.acknowledgements):
        return True
    return without_acknowledgements(now) != without_acknowledgements(last)
