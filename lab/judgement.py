"""The verdict on a recorded history: the simulator's checkers, fed as the history grows (SPEC 2, 3, 6, 7)."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lab.histories import Batch, remembering
from muster.records.configuration import Operation
from muster.sim.checkers.checkers import CHECKERS
from muster.sim.checkers.event_checkers import ActedOnOnce, FailurePolicy
from muster.sim.checkers.loss_checker import NothingLost
from muster.sim.history import Applied, Observation, describe

UNTOLD = (ActedOnOnce, FailurePolicy)  # they need what operators ask for and what fails, which real nodes do not record
CONTEXT = 12  # observations before a violation that are shown


class Finding(NamedTuple):
    """A broken rule and where."""

    rule: str
    message: str
    at_us: int
    context: list[str]  # the observations before it, in words


class Judgement:
    """Takes the history in batches; remembers every finding."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.counts: dict[str, int] = {}  # observations by kind
        self._checkers = [checker() for checker in CHECKERS if checker not in UNTOLD]
        self._operations: dict[str, Operation] = {}

    def take(self, batch: Batch) -> list[Finding]:
        """Judge the next batch; what is new."""
        found = [Finding("AfterItsEnd", text, 0, []) for text in batch.too_late]
        for position, seen in enumerate(batch.observations):
            kind = type(seen).__name__
            self.counts[kind] = self.counts.get(kind, 0) + 1
            for rule, message in self._see(seen):
                before = batch.observations[max(0, position - CONTEXT) : position + 1]
                found.append(Finding(rule, message, seen.at_us, [describe(one) for one in before]))
        self.findings += found
        return found

    def add(self, rule: str, message: str, at_us: int) -> None:
        """A finding of somebody else: the services' record, a log, progress that is missing."""
        self.findings.append(Finding(rule, message, at_us, []))

    def _see(self, seen: Observation) -> Iterable[tuple[str, str]]:
        whole = remembering(seen, self._operations) if isinstance(seen, Applied) else seen
        for checker in self._checkers:
            rule = type(checker).__name__
            for message in checker.see(whole if isinstance(checker, NothingLost) else seen):
                yield rule, message

    def write(self, path: Path, about: dict[str, object]) -> None:
        """The verdict as JSON."""
        document = about | {
            "verdict": "violated" if self.findings else "no violation",
            "findings": [finding._asdict() for finding in self.findings],
            "observations": self.counts,
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
