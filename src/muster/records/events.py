"""Events, their groups, and when a group is enabled (SPEC 5.2, 5.3); what is wrong with one: `event_limits.py`.

An event is what a watcher detects: its IN parameters say what, its OUT parameters are filled in on an occurrence, its
action function says what is done then. A group ties events together and says where and when they are watched for.
"""

import re
from typing import NamedTuple

from msgspec import Struct

from muster.records.numbers import CountOrNone
from muster.records.watchers import BUILT_IN

MINUTES_A_DAY = 24 * 60
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
REFERENCE = re.compile(r"\{(in|out)\.([a-z][a-z0-9_]*)\}")
ACTIONS = ("muster:fail", "muster:restart", "muster:transfer", "muster:register", "muster:deregister")

_WINDOW = re.compile(r"(?:(?P<days>[a-z,-]+))?\s*(?:(?P<from>\d{1,2}:\d{2})-(?P<to>\d{1,2}:\d{2}))?")


class EventDefinition(Struct, frozen=True, forbid_unknown_fields=True):
    """One event (SPEC 5.2). `watcher` is a built-in one, or the name that a foreign one connects under.

    `debounce_ms`: an occurrence so soon after one that was acted upon is recorded only. `rate_count` within
    `rate_window_ms`: no more actions than that (0: no limit).
    """

    name: str
    watcher: str = ""
    parameters: tuple[tuple[str, str], ...] = ()  # IN
    out: tuple[str, ...] = ()
    action: tuple[str, ...] = ()
    debounce_ms: int = 0
    rate_count: int = 0
    rate_window_ms: int = 0
    timeout_ms: int = 60_000  # of the action

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of its OUT parameters."""
        return self.out or BUILT_IN.get(self.watcher, ((), ()))[1]


class GroupDefinition(Struct, frozen=True, forbid_unknown_fields=True):
    """An event group (SPEC 5.3): enabled where and while all that it names holds, unless it was disabled by hand."""

    name: str
    events: tuple[EventDefinition, ...]
    nodes: tuple[str, ...] = ("*",)
    service: str = ""  # only on the node where this service is registered, while it is
    on_master: bool = False  # only on the node that is master: for what is to be done once in the cluster
    windows: tuple[str, ...] = ()  # "mon-fri 22:00-06:00", "sat,sun", "08:00-18:00"; any of them, by the local clock
    enabled: bool = True  # at first


class EventGroup(Struct, frozen=True, array_like=True, tag="event_group"):
    """A group in the database (SPEC 1.3 c)."""

    definition: GroupDefinition
    uid: int  # index of the entry that first defined it
    enabled: bool = True  # by hand

    @property
    def name(self) -> str:
        """The name in its definition, unique in the cluster."""
        return self.definition.name


class ApplyEvents(Struct, frozen=True, array_like=True, tag="events"):
    """Define or change event groups; `withdraw` names groups whose definition goes (SPEC 5.3).

    `expect`: the version of the configuration that it was made from; -1: whatever it is.
    """

    groups: tuple[GroupDefinition, ...]
    withdraw: tuple[str, ...] = ()
    expect: CountOrNone = -1


class EnableEvents(Struct, frozen=True, array_like=True, tag="enable"):
    """Enable a group by hand, or disable it; it stays so until told otherwise."""

    group: str
    enabled: bool


class Window(NamedTuple):
    """Days (0: Monday) and minutes of the day; one that ends before it begins goes on into the next day."""

    days: frozenset[int]
    first: int
    last: int

    def contains(self, weekday: int, minute: int) -> bool:
        """Whether the window is open then."""
        if self.first < self.last:
            return weekday in self.days and self.first <= minute < self.last
        return (weekday in self.days and minute >= self.first) or (
            (weekday - 1) % 7 in self.days and minute < self.last
        )


def window_of(text: str) -> Window | None:
    """A window in words, as `mon-fri 22:00-06:00`; None where it is none."""
    found = _WINDOW.fullmatch(text.strip().lower())
    if found is None or not text.strip():
        return None
    days = _days_of(found["days"] or "mon-sun")
    first, last = (_minute_of(found[name] or "0:00") for name in ("from", "to"))
    if not days or first is None or last is None:
        return None
    return Window(days, first, last if found["to"] and last else MINUTES_A_DAY)


def _days_of(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            return frozenset()
        begin, end = DAYS.index(first), DAYS.index(last if dash else first)
        found |= {(begin + step) % 7 for step in range((end - begin) % 7 + 1)}
    return frozenset(found)


def _minute_of(text: str) -> int | None:
    hours, _, minutes = text.partition(":")
    found = int(hours) * 60 + int(minutes)
    return found if int(minutes) < 60 and found <= MINUTES_A_DAY else None
