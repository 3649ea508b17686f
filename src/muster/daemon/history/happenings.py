"""The one history of all that happened, as this node keeps it: bounded, and over restarts (P10.13).

In the order of commit indices. What this node has not seen, since it was down or took a snapshot, the others fill in
where somebody asks: all tell the same of an entry.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from muster.records.happenings import KINDS, Happening
from muster.records.refusal import ControlRefused

FILE_NAME = "history"
QUESTION = "history"
CAPACITY = 4096  # happenings in memory
SHOWN = 1000  # in an answer
WHERE = "query history"

Document = dict[str, Any]


class KeptLines(Protocol):
    """Lines in a file: `daemon/events/kept_history.py`."""

    def read(self) -> list[bytes]:
        """The lines that are kept, oldest first."""

    def add(self, line: bytes) -> None:
        """Keep a line; never waits."""

    def close(self) -> None:
        """Write what waits."""


class _Line(Struct):
    index: int
    at_s: float
    happening: Happening


class Happenings:
    """What this node has told of committed entries, the newest last."""

    def __init__(self, kept: KeptLines) -> None:
        self._kept = kept
        self._lines: deque[_Line] = deque(maxlen=CAPACITY)
        self.counts: Counter[tuple[str, str]] = Counter()  # kind and service, since this daemon began
        for text in kept.read():
            try:
                self._lines.append(msgspec.json.decode(text, type=_Line))
            except (msgspec.DecodeError, ValueError):
                continue  # cut off, or of another release
        self._last = max((line.index for line in self._lines), default=0)

    def add(self, index: int, found: Iterable[Happening]) -> None:
        """Entry `index` is committed. One that is known already is not told again."""
        if index <= self._last:
            return
        self._last = index
        at_s = round(time.time(), 3)
        for happening in found:
            if happening.subject.startswith("service/"):
                self._count(happening)
            line = _Line(index, at_s, happening)
            self._lines.append(line)
            self._kept.add(msgspec.json.encode(line))

    def _count(self, happening: Happening) -> None:
        if len(self.counts) < CAPACITY or (happening.kind, happening.subject) in self.counts:
            self.counts[happening.kind, happening.subject] += 1

    def forget(self, services: Iterable[str]) -> None:
        """Count no more what is defined no more; `services` are those that are."""
        known = {f"service/{name}" for name in services}
        for key in [key for key in self.counts if key[1] not in known]:
            del self.counts[key]

    def answer(self, subject: str) -> Document:
        """What this node knows, of the subjects and kinds that are asked for: filtered first, then cut."""
        wanted = json.loads(subject) if subject else {}
        names, kinds = wanted.get("subjects", []), wanted.get("kinds", [])
        found = [
            {
                "index": line.index, "at_s": line.at_s, "kind": line.happening.kind,
                "subject": line.happening.subject, "words": line.happening.words,
            }
            for line in self._lines
            if (not names or line.happening.subject in names) and (not kinds or line.happening.kind in kinds)
        ]  # fmt: skip
        return {"happened": found[-SHOWN:]}

    def close(self) -> None:
        """The daemon ends."""
        self._kept.close()


def question_of(arguments: Document) -> str:
    """The question for all nodes: happenings of `subject` (empty: of all) and of `kind`. Raises `ControlRefused`."""
    unknown = sorted(arguments.keys() - {"subject", "kind"})
    if unknown:
        raise ControlRefused(f"it takes no argument {unknown[0][:40]!r}", WHERE, "allowed: subject, kind")
    subject, kind = arguments.get("subject", ""), arguments.get("kind", "")
    if not isinstance(subject, str) or not isinstance(kind, str) or len(subject) > 300:
        raise ControlRefused("`subject` and `kind` must be texts", WHERE, "correct it and ask again")
    if kind and kind not in KINDS:
        raise ControlRefused(f"there is no kind {kind[:40]!r}", WHERE, f"use one of {', '.join(KINDS)}")
    subjects = [subject, f"service/{subject}", f"node/{subject}"] if subject else []
    return json.dumps({"subjects": subjects, "kinds": [kind] if kind else []})


def merged(answers: dict[str, Document]) -> list[Document]:
    """What several nodes tell as one history: each happening once, with the earliest time that somebody saw it."""
    found: dict[tuple[int, str, str], Document] = {}
    for answer in answers.values():
        for each in answer.get("happened", []):
            key = int(each["index"]), str(each["kind"]), str(each["words"])
            if key not in found or each["at_s"] < found[key]["at_s"]:
                found[key] = each | ({"place": found[key]["place"]} if key in found else {"place": len(found)})
    ordered = sorted(found.values(), key=lambda each: (each["index"], each["place"]))[-SHOWN:]
    return [{key: value for key, value in each.items() if key != "place"} for each in ordered]
