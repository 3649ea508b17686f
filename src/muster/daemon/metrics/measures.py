"""What a node counts of itself: plain numbers, always on, bounded; shown by metrics and debug bundles (SPEC 9.4).

All are of this daemon's life. Whatever could make a table grow (names of services, of clients) is not in them.
"""

from bisect import bisect_left
from collections import Counter
from typing import Any

from muster.core.effects import RunCommand, Trace
from muster.core.transitions import narration as history
from muster.records.levels import TransitionKind
from muster.records.services import CommandState

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
MAXIMUM_OPEN = 4096  # transitions and commands whose beginning is remembered; beyond, durations are not measured
_US_PER_S = 1_000_000


class Durations:
    """How long something took, in buckets: `counts[i]` took at most `BOUNDS_S[i]`, the last one longer than all."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0
        self.longest_s = 0.0

    @property
    def number(self) -> int:
        """How many were measured."""
        return sum(self.counts)

    def add(self, seconds: float) -> None:
        """One more was measured: it took so long."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds
        self.longest_s = max(self.longest_s, seconds)

    def document(self) -> dict[str, Any]:
        """For JSON: number, mean and longest in milliseconds."""
        number = self.number
        mean_ms = 1000 * self.total_s / number if number else 0.0
        return {"number": number, "mean_ms": round(mean_ms, 3), "longest_ms": round(1000 * self.longest_s, 3)}


class Measures:
    """The counters and durations of one daemon."""

    def __init__(self) -> None:
        self.entries = 0  # committed entries that this node has applied
        self.elections = 0  # masterships that this node has won
        self.link_losses = 0
        self.frames: Counter[str] = Counter()  # sent, received, dropped
        self.renewals: Counter[str] = Counter()  # done, failed
        self.margin_s: float | None = None  # least time that a renewal left before the deadman, of the last second told
        self.least_margin_s: float | None = None  # of all
        self.transitions: dict[str, Durations] = {str(kind): Durations() for kind in TransitionKind}
        self.commands: dict[tuple[str, str], Durations] = {}  # by action and outcome
        self.store: dict[str, Durations] = {}  # by operation
        self.store_failures: Counter[str] = Counter()
        self.turns = Durations()  # of the event loop
        self._opened_us: dict[int, int] = {}
        self._given_us: dict[tuple[str, int], int] = {}

    def traced(self, at_us: int, trace: Trace) -> None:
        """An event of the core."""
        if trace.event == "link lost":
            self.link_losses += 1
        elif trace.event == history.OPENED and len(self._opened_us) < MAXIMUM_OPEN:
            self._opened_us[trace.transition] = at_us
        elif trace.event in {history.DONE, history.REPLACED, history.GONE}:
            opened_us = self._opened_us.pop(trace.transition, None)
            if opened_us is not None and trace.event == history.DONE and trace.kind in list(TransitionKind):
                self.transitions[str(TransitionKind(trace.kind))].add((at_us - opened_us) / _US_PER_S)

    def command_given(self, at_us: int, command: RunCommand) -> None:
        """The runner gets a command."""
        if len(self._given_us) < MAXIMUM_OPEN:
            self._given_us[command.service, command.generation] = at_us

    def command_ended(self, at_us: int, command: CommandState) -> None:
        """The runner reports the end of one."""
        given_us = self._given_us.pop((command.service, command.generation), None)
        if given_us is not None:
            key = (command.action, "succeeded" if command.succeeded else "failed")
            self.commands.setdefault(key, Durations()).add((at_us - given_us) / _US_PER_S)

    def store_answered(self, operation: str, took_us: int, *, failed: bool) -> None:
        """The store has done, or refused, an operation of a fixed kind."""
        self.store.setdefault(operation, Durations()).add(took_us / _US_PER_S)
        if failed:
            self.store_failures[operation] += 1

    def turned(self, seconds: float) -> None:
        """The event loop has made a turn."""
        self.turns.add(seconds)

    def lease_told(self, renewals: int, failures: int, margin_us: int) -> None:
        """The guard's account of the last second: renewals, failed cycles, least margin (us; negative: none known)."""
        self.renewals["done"] += renewals
        self.renewals["failed"] += failures
        if margin_us >= 0:
            self.margin_s = margin_us / _US_PER_S
            self.least_margin_s = min(self.margin_s, self.least_margin_s or self.margin_s)

    def document(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "entries": self.entries,
            "elections": self.elections,
            "link_losses": self.link_losses,
            "frames": dict(self.frames),
            "renewals": dict(self.renewals),
            "margin_ms": None if self.margin_s is None else round(1000 * self.margin_s, 3),
            "least_margin_ms": None if self.least_margin_s is None else round(1000 * self.least_margin_s, 3),
            "transitions": {kind: durations.document() for kind, durations in self.transitions.items()},
            "commands": {" ".join(key): durations.document() for key, durations in self.commands.items()},
            "store": {name: durations.document() for name, durations in self.store.items()},
            "store_failures": dict(self.store_failures),
            "turns": self.turns.document(),
        }
