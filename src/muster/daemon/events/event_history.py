"""The occurrences of this node as they are kept across restarts of its daemon (PROTOCOL P8.9).

An occurrence is a line each time that something is known of it: the last one with its number and incarnation counts.
Its times are by the clock of this boot, so the line also says when it was by the clock of people.
"""

import time
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from muster.core.events.manager import CAPACITY, Occurrence
from muster.daemon.events.kept_history import KeptHistory

FILE_NAME = "event-history"
UNFINISHED = ("waiting", "running")
US_PER_S = 1_000_000

Document = dict[str, Any]


class _Line(Struct):
    incarnation: int
    at_s: float
    occurrence: Occurrence


class EventHistory:
    """What `kept` holds of occurrences. `incarnation` is the present one."""

    def __init__(self, kept: KeptHistory, incarnation: int) -> None:
        self._kept, self._incarnation = kept, incarnation

    def keep(self, changed: Iterable[Occurrence], now_us: int) -> None:
        """Write what is known of these now."""
        offset_s = time.time() - now_us / US_PER_S
        for occurrence in changed:
            line = _Line(self._incarnation, offset_s + occurrence.at_us / US_PER_S, occurrence)
            self._kept.add(msgspec.json.encode(line))

    def read(self, now_us: int) -> tuple[Occurrence, ...]:
        """The newest occurrences, oldest first, with their times by the clock of this boot."""
        found: dict[tuple[int, int], _Line] = {}
        for text in self._kept.read():
            try:
                line = msgspec.json.decode(text, type=_Line)
            except (msgspec.DecodeError, ValueError):
                continue  # cut off, or of another release
            found[line.incarnation, line.occurrence.number] = line
        offset_s = time.time() - now_us / US_PER_S
        newest = sorted(found.values(), key=lambda line: line.at_s)[-CAPACITY:]
        return tuple(self._at_this_boot(line, offset_s, now_us) for line in newest)

    def _at_this_boot(self, line: _Line, offset_s: float, now_us: int) -> Occurrence:
        occurrence = line.occurrence
        if line.incarnation == self._incarnation:
            return occurrence
        took_us = max(0, occurrence.ended_us - occurrence.at_us)
        occurrence.at_us = min(now_us, int((line.at_s - offset_s) * US_PER_S))
        occurrence.ended_us = occurrence.at_us + took_us
        if occurrence.result in UNFINISHED:
            occurrence.result, occurrence.detail = "unknown", "the node ended"
        return occurrence

    def close(self) -> None:
        """The daemon ends."""
        self._kept.close()


def described(occurrence: Occurrence, node: str, offset_s: float) -> Document:
    """An occurrence for people and for JSON."""
    return {
        "node": node, "number": occurrence.number, "at_s": offset_s + occurrence.at_us / US_PER_S,
        "event": occurrence.event, "group": occurrence.group, "in": dict(occurrence.parameters),
        "out": dict(occurrence.out), "verdict": occurrence.verdict, "action": list(occurrence.action),
        "result": occurrence.result, "detail": occurrence.detail,
        "took_ms": max(0, occurrence.ended_us - occurrence.at_us) // 1000,
    }  # fmt: skip
