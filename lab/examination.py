"""Bringing a cluster under study to rest, and giving what was recorded up to there to the checkers (docs/LAB.md)."""

import time
from pathlib import Path
from typing import Any, Protocol

import msgspec

from lab.exclusive_record import Violation
from lab.histories import HistoryIncomplete, HistoryReader
from lab.judgement import Judgement
from lab.patient import Patient, Studied, now_us

REST_S = 240.0  # far beyond what it takes: others may share the machine
WHOLE_US = 500_000  # before that long ago, all that was recorded has reached its file

Document = dict[str, Any]


class Recorded(Studied, Protocol):
    """A cluster whose guards write what they are."""

    def guard_record(self, name: str) -> Document:
        """What the node's guard has written of itself; empty if it cannot be read."""


class Examination:
    """One cluster's history and the verdict on it."""

    def __init__(self, cluster: Recorded, patient: Patient, observations: Path, record: Path) -> None:
        self.cluster, self.patient = cluster, patient
        self._numbers = {name: number for number, name in enumerate(cluster.names)}
        self._reader = HistoryReader(observations, record, self._numbers)
        self.judgement = Judgement()

    def settle(self, deadline_s: float, state: Path) -> bool:
        """Wait for rest, judge; False where something is wrong: what the nodes say is in `state` then."""
        began_s = time.monotonic()
        try:
            views = self.patient.rest(deadline_s)
        except Violation as violation:
            self.broken(violation)
            views = {}
        if views is None:
            waited_s = time.monotonic() - began_s
            self.judgement.add("Soundness", f"not at rest {waited_s:.0f} s after the last fault", now_us())
        self._judge(views or {})
        if self.judgement.findings:
            state.write_text(self.patient.describe())
        return not self.judgement.findings

    def broken(self, violation: Violation) -> None:
        """The services' own record shows what must not be."""
        self.judgement.add("OneNodeAtATime", str(violation), now_us())

    def _judge(self, views: dict[str, Document]) -> None:
        until_us = now_us() - WHOLE_US
        living = {(self._numbers[name], self._incarnation(name)) for name in views}
        if not views:  # nobody can say; the newest life that a guard has recorded may run
            living = {(number, self._incarnation(name)) for name, number in self._numbers.items()}
        try:
            self.judgement.take(self._reader.batch(until_us, living))
        except (HistoryIncomplete, msgspec.DecodeError, ValueError) as error:
            self.judgement.add("history", f"cannot be read: {error}", until_us)
        for line in self.patient.defects():
            self.judgement.add("Soundness", line, until_us)

    def _incarnation(self, name: str) -> int:
        return int(self.cluster.guard_record(name).get("incarnation", 0))
