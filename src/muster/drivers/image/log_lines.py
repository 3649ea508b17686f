"""The lines of a node's log, the same for each of its processes (SPEC 9.4).

A line is `key=value` text, or one JSON object where MUSTER_LOG_FORMAT=json. Both carry

    time      the time of day, UTC, for people and other logs: it may jump, nothing is ordered by it
    at        CLOCK_BOOTTIME in seconds, which all processes of one machine share and which runs through suspend
    level     debug, info, warning or error; lines below MUSTER_LOG_LEVEL are left out
    node, process, event, detail

and the daemon's also `term`, `index` (commit index) and `stimulus`: the input that the event follows from.

The guard's image imports this module: the standard library only, and little of it.
"""

import functools
import json
import os
import select
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii

from muster.drivers.image.process_tree import say

FORMAT, LEVEL, FILE, FILE_BYTES = "MUSTER_LOG_FORMAT", "MUSTER_LOG_LEVEL", "MUSTER_LOG_FILE", "MUSTER_LOG_BYTES"
FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
_LINE_BYTES = select.PIPE_BUF - 1  # what one write to a pipe puts there in one piece, its line break left out
_ELLIPSIS = " ..."


def compose(fields: dict[str, object], *, as_json: bool) -> str:
    """One line of bounded length: where it is too long, `detail`, its last field, is cut, so that it stays whole."""
    line = _line(fields, as_json=as_json)
    detail = str(fields.get("detail", ""))
    while len(line) > _LINE_BYTES and detail:  # ASCII: characters are bytes
        detail = detail[: max(0, len(detail) - (len(line) - _LINE_BYTES) // 6 - len(_ELLIPSIS))]
        line = _line({**fields, "detail": detail + _ELLIPSIS}, as_json=as_json)
    return line


def _line(fields: dict[str, object], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(fields)
    return " ".join([f"{key}={value if key in _BARE else _quoted(value)}" for key, value in fields.items()])


def _quoted(value: object) -> str:
    """As `json.dumps` has it; text without the way there: a transition of many nodes writes hundreds of lines."""
    return encode_basestring_ascii(value) if type(value) is str else json.dumps(value)


_BARE = ("time", "at", "level", "process")  # never need quotes


def moment(at_us: int) -> dict[str, object]:
    """The fields `time` and `at` of an event that happened at `at_us` of CLOCK_BOOTTIME (microseconds)."""
    ago_s = time.clock_gettime(time.CLOCK_BOOTTIME) - at_us / 1e6
    wall_s = time.time() - ago_s
    return {"time": f"{_second(int(wall_s))}.{int(wall_s % 1 * 1e6):06d}Z", "at": f"{at_us / 1e6:.6f}"}


@functools.lru_cache(maxsize=2)  # lines come in bursts
def _second(wall_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall_s))


class Log:
    """One process's way into the log. Never waits and never raises; a line that cannot be written is lost."""

    def __init__(self, node: str, process: str, write: Callable[[str], bool] = say) -> None:
        self._node, self._process, self._write = node, process, write
        self.as_json = os.environ.get(FORMAT) == "json"
        level = os.environ.get(LEVEL, "info")
        self._lowest = LEVELS.index(level) if level in LEVELS else LEVELS.index("info")

    def wants(self, level: str) -> bool:
        """Whether lines of this level are written at all."""
        return LEVELS.index(level) >= self._lowest

    def tell(self, level: str, event: str, detail: str, at_us: int | None = None, **fields: object) -> bool:
        """Write a line; False where it was lost. One that is not wanted is not lost."""
        if not self.wants(level):
            return True
        at_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000 if at_us is None else at_us
        head = {**moment(at_us), "level": level, "node": self._node, "process": self._process}
        return self._write(compose({**head, **fields, "event": event, "detail": detail}, as_json=self.as_json))

    def tell_lost(self, lines: int) -> bool:
        """Say how many lines could not be written; a line break first: the last may have been lost in its middle."""
        return self._write("") and self.tell("error", "lines lost", f"{lines} lines could not be written to the log")

    def refuse(self, text: str) -> None:
        """Say why this process does not start: to whoever started it, in plain words unless the log is JSON."""
        if self.as_json:
            self.tell("error", "start refused", text)
        else:
            self._write(text)
