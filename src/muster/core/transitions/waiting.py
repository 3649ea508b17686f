"""For how long each step of a transition has been at work, and who holds it up (SPEC 3.13, 8.2).

Every node keeps the time since its own replica showed the step; the master also knows who has not acknowledged it, and
tells the others with its heartbeat, so that any node can answer the question.
"""

from collections.abc import Mapping

from msgspec import Struct

from muster.core.draft import takes_part
from muster.core.transitions.transition import step_of
from muster.records.database import Database
from muster.records.levels import Level
from muster.records.messages import Report
from muster.records.transitions import Acknowledgement, Transition
from muster.records.units import US_PER_MS


class Straggler(Struct, frozen=True):
    """A subsystem that has not acknowledged the present step of a transition."""

    node: int
    transition: int
    level: Level
    barrier: int
    elapsed_us: int

    @property
    def is_hung(self) -> bool:
        """Whether its level's deadline is over."""
        deadline_ms = self.level.deadline_ms
        return deadline_ms > 0 and self.elapsed_us > deadline_ms * US_PER_MS


Acknowledged = Mapping[int, frozenset[Acknowledgement]]  # by node: all that its report shows
NOTHING: frozenset[Acknowledgement] = frozenset()


def acknowledged_by(reports: Mapping[int, Report]) -> Acknowledged:
    """What the reports show, for many questions: with many joins in flight, each report holds an answer to each."""
    return {node: frozenset(report.acknowledgements) for node, report in reports.items()}


def missing(transition: Transition, acknowledged: Acknowledged) -> tuple[int, ...]:
    """The participants whose report does not show the acknowledgement of the present step."""
    step = step_of(transition)
    return tuple(node for node in transition.participants if step not in acknowledged.get(node, NOTHING))


class Waiting:
    """Since when each step has been at work."""

    def __init__(self) -> None:
        self._since_us: dict[Acknowledgement, int] = {}
        self.told: dict[int, tuple[int, ...]] = {}  # transition -> who is missing, as the master last told
        self._alerted: set[tuple[int, Acknowledgement]] = set()

    def follow(self, database: Database, now_us: int) -> None:
        """The replica has changed."""
        steps = {step_of(transition) for transition in database.transitions.values()}
        self._since_us = {step: self._since_us.get(step, now_us) for step in steps}
        self._alerted = {(node, step) for node, step in self._alerted if step in steps}

    def elapsed_us(self, transition: Transition, now_us: int) -> int:
        """For how long the present step has been at work, as seen here."""
        return now_us - self._since_us.get(step_of(transition), now_us)

    def since(
        self, database: Database, known: Mapping[int, tuple[int, ...]], now_us: int
    ) -> dict[int, tuple[tuple[int, ...], int]]:
        """Transition -> who is waited for, all participants where that is not `known`, and for how long (us)."""
        return {
            record.identity: (known.get(record.identity, record.participants), self.elapsed_us(record, now_us))
            for record in database.transitions.values()
        }

    def stragglers(self, database: Database, reports: Mapping[int, Report], now_us: int) -> list[Straggler]:
        """On the master: every subsystem that is waited for."""
        found = []
        acknowledged = acknowledged_by(reports)
        for transition in database.transitions.values():
            for node in missing(transition, acknowledged):
                level = next((e for e in database.member(node).levels if e.number == transition.level), None)
                if level is not None and takes_part(database.member(node)):
                    elapsed_us = self.elapsed_us(transition, now_us)
                    found.append(Straggler(node, transition.identity, level, transition.barrier, elapsed_us))
        return found

    def newly_hung(self, stragglers: list[Straggler]) -> list[Straggler]:
        """Those whose deadline is over and who were not named before."""
        fresh = []
        for straggler in stragglers:
            step = Acknowledgement(straggler.transition, straggler.level.number, straggler.barrier)
            if straggler.is_hung and (straggler.node, step) not in self._alerted:
                self._alerted.add((straggler.node, step))
                fresh.append(straggler)
        return fresh
