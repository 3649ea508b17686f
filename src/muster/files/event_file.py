"""Event groups in the file that `muster apply` takes: `[[event_group]]` tables, all problems named (SPEC 5.3, 7.8).

[[event_group]]
name = "disk"
nodes = ["n0", "n1"]                  # where: all nodes without it
windows = ["mon-fri 22:00-06:00"]     # when: always without it

[[event_group.event]]
name = "disk-full"
watcher = "check"
in = {command = "/usr/local/bin/disk_ok /srv", interval = "30s", failures = 2, of = 3}
action = ["/usr/local/bin/page", "{out.output}"]
debounce = "10m"
rate = "3/1h"
"""

import re
from collections.abc import Callable
from typing import Any

from muster.files.service_keys import Nodes, Wrong, duration_ms, nearest, words_of
from muster.files.toml_lines import Place, Problem, document_of, key_lines, nearest_line
from muster.records.durations import duration_of
from muster.records.event_limits import MAXIMUM_GROUPS, problem_of_group
from muster.records.events import EventDefinition, GroupDefinition
from muster.records.names import shown

TABLES = "event_group"
_RATE = re.compile(r"(\d+)\s*/\s*(.+)")


def parse_groups(text: str, source: str, nodes: Nodes = None) -> tuple[tuple[GroupDefinition, ...], list[Problem]]:
    """The event groups in a text, and everything wrong with them; of a text that is no TOML nothing is said here."""
    document = document_of(text, source)
    if isinstance(document, Problem):
        return (), []
    reading = _Reading(source, key_lines(text), nodes)
    return reading.groups(document.get(TABLES, [])), reading.problems


class _Reading:
    """One reading of one file: collects problems."""

    def __init__(self, source: str, lines: dict[Place, int], nodes: Nodes) -> None:
        self._source, self._lines, self._nodes = source, lines, nodes
        self.problems: list[Problem] = []

    def groups(self, tables: object) -> tuple[GroupDefinition, ...]:
        """Every `[[event_group]]` that could be read."""
        if not _are_tables(tables):
            self._add((TABLES,), TABLES, "is no list of tables", "begin each group with a line [[event_group]]")
            return ()
        assert isinstance(tables, list)
        if len(tables) > MAXIMUM_GROUPS:
            self._add((TABLES,), "the file", f"defines {len(tables)} event groups", f"at most {MAXIMUM_GROUPS} at once")
            return ()
        found = [self._group(position, table) for position, table in enumerate(tables)]
        groups = tuple(group for group in found if group is not None)
        self._check_names(groups)
        return groups

    def _check_names(self, groups: tuple[GroupDefinition, ...]) -> None:
        owners: dict[str, str] = {}
        names = [group.name for group in groups]
        for position, group in enumerate(groups):
            if names.index(group.name) != position:
                self._add((TABLES, position), f"event group {group.name!r}", "is defined twice", "give it another name")
            for event in group.events:
                owner = owners.setdefault(event.name, group.name)
                if owner != group.name:
                    what = f"event {event.name!r} is in group {owner!r} too"
                    self._add((TABLES, position), f"event group {group.name!r}", what, "an event's name is unique")

    def _group(self, position: int, table: dict[str, Any]) -> GroupDefinition | None:
        place: Place = (TABLES, position)
        subject = f"event group {table.get('name', position + 1)!r}"
        before = len(self.problems)
        events = table.get("event", [])
        if not _are_tables(events):
            self._add((*place, "event"), subject, "event is no list of tables", "write [[event_group.event]]")
            events = []
        found = [self._event((*place, "event", number), event, number) for number, event in enumerate(events)]
        rest = {key: value for key, value in table.items() if key != "event"}
        values = self._values(place, subject, rest, _GROUP_KEYS)
        if "name" not in table:
            self._add(place, subject, "has no name", 'add name = "..."')
        for node in values.get("nodes", ()):
            if self._nodes is not None and node != "*" and node not in self._nodes:
                allowed = nearest(node, self._nodes, f"the cluster has {', '.join(self._nodes)}")
                self._add((*place, "nodes"), subject, f"nodes names {node!r}, which the cluster does not have", allowed)
        if len(self.problems) > before:
            return None
        group = GroupDefinition(events=tuple(event for event in found if event is not None), **values)
        if problem := problem_of_group(group):
            self._add(place, subject, problem, "see docs/EVENTS.md")
            return None
        return group

    def _event(self, place: Place, table: dict[str, Any], number: int) -> EventDefinition | None:
        subject = f"event {table.get('name', number + 1)!r}"
        before = len(self.problems)
        values = self._values(place, subject, table, _EVENT_KEYS)
        if "name" not in table:
            self._add(place, subject, "has no name", 'add name = "..."')
        return EventDefinition(**values) if len(self.problems) == before else None

    def _values(
        self, place: Place, subject: str, table: dict[str, Any], keys: dict[str, Callable[[object], dict[str, Any]]]
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key not in keys:
                allowed = nearest(key, keys, "allowed are " + ", ".join(keys))
                self._add((*place, key), subject, f"unknown key {key!r}", allowed)
                continue
            try:
                values |= keys[key](value)
            except Wrong as wrong:
                self._add((*place, key), subject, f"{key} {wrong.what}", wrong.allowed)
        return values

    def _add(self, place: Place, subject: str, what: str, allowed: str) -> None:
        line = nearest_line(self._lines, place)
        self.problems.append(Problem(self._source, line, subject, what, allowed))


def _are_tables(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(table, dict) for table in value)


def _text(key: str) -> Callable[[object], dict[str, Any]]:
    def read(value: object) -> dict[str, Any]:
        if not isinstance(value, str):
            raise Wrong(f"is {shown(value)}", "a text in quotation marks")
        return {key: value}

    return read


def _texts(key: str) -> Callable[[object], dict[str, Any]]:
    def read(value: object) -> dict[str, Any]:
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise Wrong(f"is {shown(value)}", "a list of texts")
        return {key: tuple(found)}

    return read


def _truth(key: str) -> Callable[[object], dict[str, Any]]:
    def read(value: object) -> dict[str, Any]:
        if not isinstance(value, bool):
            raise Wrong(f"is {shown(value)}", "true or false")
        return {key: value}

    return read


def _parameters(value: object) -> dict[str, Any]:
    example = 'write in = {path = "/srv"}'
    if not isinstance(value, dict):
        raise Wrong(f"is {shown(value)}", example)
    for key, each in value.items():
        if isinstance(each, bool) or not isinstance(each, str | int):
            raise Wrong(f"gives {key} the value {shown(each)}", f"a text or a number; {example}")
    return {"parameters": tuple((key, str(each)) for key, each in value.items())}


def _rate(value: object) -> dict[str, Any]:
    found = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    window_ms = duration_of(found[2]) if found else None
    if found is None or not window_ms or not int(found[1]):
        raise Wrong(f"is {shown(value)}", 'so many actions in so long, as "3/1h"')
    return {"rate_count": int(found[1]), "rate_window_ms": window_ms}


_GROUP_KEYS: dict[str, Callable[[object], dict[str, Any]]] = {
    "name": _text("name"),
    "nodes": _texts("nodes"),
    "service": _text("service"),
    "on_master": _truth("on_master"),
    "windows": _texts("windows"),
    "enabled": _truth("enabled"),
}
_EVENT_KEYS: dict[str, Callable[[object], dict[str, Any]]] = {
    "name": _text("name"),
    "watcher": _text("watcher"),
    "in": _parameters,
    "out": _texts("out"),
    "action": lambda value: {"action": words_of("action", value)},
    "debounce": lambda value: {"debounce_ms": duration_ms(value)},
    "rate": _rate,
    "timeout": lambda value: {"timeout_ms": duration_ms(value)},
}
