"""Answers that are about the whole cluster: made once for all who ask, in a bounded share of the loop (P8.11).

Each takes the longer the more services there are. One that was begun after somebody asked is as good as one of their
own: all who wait meanwhile get it, encoded already, each in a turn of the loop of its own. The next one is begun only
after a pause of several times what the last one took: however many look, rules and pulses have most of the loop.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

PAUSE_SHARE = 3  # of the time that an answer took: so they take a quarter of the loop at most

Document = dict[str, Any]


class Made(NamedTuple):
    """An answer as it was made last."""

    number: int  # another one for each that differs from the one before
    document: Document
    encoded: msgspec.Raw
    began_s: float  # by the clock of the loop


class SharedAnswers:
    """Makes the answers to those queries that have no arguments."""

    def __init__(self, answer: Callable[[str], Document]) -> None:
        self._answer = answer
        self._made: dict[str, Made] = {}
        self._lock = asyncio.Lock()
        self._free_at_s = 0.0  # when the next one may be begun
        self.longest_s = 0.0  # that one has taken

    async def get(self, name: str) -> Made:
        """The answer as it is now, or was at a moment since this was called."""
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        async with self._lock:  # waiting for it, each gets a turn of its own
            made = self._made.get(name)
            if made is not None and made.began_s > asked_s:
                return made
            await asyncio.sleep(max(0.0, self._free_at_s - loop.time()))
            return self._make(name, made, loop.time)

    def _make(self, name: str, before: Made | None, clock_s: Callable[[], float]) -> Made:
        began_s = clock_s()
        document = self._answer(name)
        if before is not None and before.document == document:
            made = before._replace(began_s=began_s)
        else:
            number = before.number + 1 if before else 1
            made = Made(number, document, msgspec.Raw(msgspec.json.encode(document)), began_s)
        self._made[name] = made
        took_s = clock_s() - began_s
        self.longest_s = max(self.longest_s, took_s)
        self._free_at_s = clock_s() + PAUSE_SHARE * took_s
        return made
