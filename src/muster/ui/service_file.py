"""The service file: TOML tables `[[service]]` into definitions, with every problem named at once (SPEC 6.2, 6.6, 7.8).

Theory of operation. `tomllib` gives the values but not where they stand, so `toml_lines` walks over the text once more
and notes the line of every key. The value of each key is then read by the one function of `_KEYS`; a function that
finds something wrong raises `_Wrong`, which becomes a `Problem` with the key's line. Nothing is applied as long as
there is a problem.
"""

import shlex
import shutil
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from muster.records.limits import (
    ANY_NODE,
    MAXIMUM_SERVICES,
    MAXIMUM_TIMEOUT_MS,
    NAME,
    NAME_RULE,
    command_problem,
    shown,
)
from muster.records.state import Definition
from muster.records.toml_lines import UNITS_MS, Place, Problem, document_of, duration_of, key_lines

MAXIMUM_FILE_BYTES = 4 * 1024 * 1024
PLACEMENT_POLICIES = ("register_on_one",)


class ServiceFileError(ValueError):
    """The service file cannot be used; `problems` is everything wrong with it, in the order of its lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("\n".join(map(str, self.problems)))


class _Wrong(Exception):
    """What is wrong with one value, and what is allowed; `inner`: at which key inside the value."""

    def __init__(self, what: str, allowed: str, inner: Place = ()) -> None:
        super().__init__(what)
        self.what, self.allowed, self.inner = what, allowed, inner


def read(path: Path, nodes: Collection[str] | None = None) -> tuple[Definition, ...]:
    """The definitions in the file at `path`. `nodes`: the cluster's node names, to check those in the file against.

    Raises `ServiceFileError` with every problem, also for a file that cannot be read.
    """
    source = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAXIMUM_FILE_BYTES + 1)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise ServiceFileError([Problem(source, 0, "the file", what, "name a readable file")]) from error
    if len(data) > MAXIMUM_FILE_BYTES:
        what = f"is larger than {MAXIMUM_FILE_BYTES // 1024 // 1024} MiB"
        raise ServiceFileError([Problem(source, 0, "the file", what, "split it and apply the parts one by one")])
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = Problem(source, line, "the file", "is not UTF-8 text", "save it as UTF-8, as TOML demands")
        raise ServiceFileError([problem]) from error
    return parse(text, source, nodes)


def parse(text: str, source: str, nodes: Collection[str] | None = None) -> tuple[Definition, ...]:
    """As `read`, of a text; `source` is its name in problems. Raises `ServiceFileError`."""
    document = document_of(text, source)
    if isinstance(document, Problem):
        raise ServiceFileError([document])
    return _Reading(source, key_lines(text), nodes).definitions(document)


class _Reading:
    """One reading of one file: collects problems."""

    def __init__(self, source: str, lines: dict[Place, int], nodes: Collection[str] | None) -> None:
        self._source = source
        self._lines = lines
        self._nodes = nodes
        self._problems: list[Problem] = []

    def definitions(self, document: dict[str, Any]) -> tuple[Definition, ...]:
        """Every `[[service]]` table. Raises `ServiceFileError`."""
        for key in document:
            if key != "service":
                self._add((key,), key, "unknown table or key", _nearest(key, ("service",), "only [[service]] tables"))
        tables = document.get("service", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._add(("service",), "service", "is no list of tables", "begin each service with a line [[service]]")
            tables = []
        elif not tables and not self._problems:
            self._add((), "the file", "defines no service", "begin each service with a line [[service]]")
        if len(tables) > MAXIMUM_SERVICES:
            self._add((), "the file", f"defines {len(tables)} services", f"at most {MAXIMUM_SERVICES} at once")
            tables = []
        found = [self._definition(position, table) for position, table in enumerate(tables)]
        self._check_duplicates(tables)
        if self._problems:
            raise ServiceFileError(self._problems)
        return tuple(definition for definition in found if definition is not None)

    def _definition(self, position: int, table: dict[str, Any]) -> Definition | None:
        name = table.get("name")
        subject = f"service {name!r}" if isinstance(name, str) else f"service number {position + 1}"
        place: Place = ("service", position)
        before = len(self._problems)
        if "name" not in table:
            self._add(place, subject, "has no name", 'add name = "..."')
        values: dict[str, Any] = {}
        for key, value in table.items():
            reader = _KEYS.get(key)
            if reader is None:
                allowed = _nearest(key, _KEYS, "allowed are " + ", ".join(_KEYS))
                self._add((*place, key), subject, f"unknown key {key!r}", allowed)
                continue
            try:
                values |= reader(value, self._nodes)
            except _Wrong as wrong:
                self._add((*place, key, *wrong.inner), subject, f"{key} {wrong.what}", wrong.allowed)
        if len(self._problems) > before:
            return None
        definition = Definition(**values)
        self._check_together(place, subject, definition)
        return definition

    def _check_together(self, place: Place, subject: str, definition: Definition) -> None:
        """What no key can know alone: the node sets must leave a node, and preferences must lie within them."""
        allowable, disallowed = definition.allowable_nodes, definition.disallowable_nodes
        known = set(self._nodes or ())
        candidates = known if ANY_NODE in allowable else set(allowable)
        if candidates and not candidates - set(disallowed):
            what = "disallowable_nodes leaves it no node at all"
            self._add((*place, "disallowable_nodes"), subject, what, "leave at least one allowable node")
        for node in definition.ordered:
            if node in disallowed:
                what = f"prefers node {node!r}, which disallowable_nodes forbids"
            elif ANY_NODE not in allowable and node not in allowable:
                what = f"prefers node {node!r}, which is not in allowable_nodes"
            else:
                continue
            self._add((*place, "node_preferences"), subject, what, "name allowable nodes only")

    def _check_duplicates(self, tables: list[dict[str, Any]]) -> None:
        first: dict[str, int] = {}
        for position, table in enumerate(tables):
            name = table.get("name")
            if not isinstance(name, str):
                continue
            if name in first:
                line = self._lines.get(("service", first[name], "name"), 0)
                what = f"is defined twice, first at line {line}" if line else "is defined twice"
                self._add(
                    ("service", position, "name"), f"service {name!r}", what, "give each service a name of its own"
                )
            first.setdefault(name, position)

    def _add(self, place: Place, subject: str, what: str, allowed: str) -> None:
        line = 0
        while place and not line:  # the nearest place around it that has a line
            line = self._lines.get(place, 0)
            place = place[:-1]
        self._problems.append(Problem(self._source, line, subject, what, allowed))


def _nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else otherwise


Nodes = Collection[str] | None
Reader = Callable[[Any, Nodes], dict[str, Any]]


def _name(value: object, _nodes: Nodes) -> dict[str, Any]:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise _Wrong(f"is {shown(value)}", f"a name has {NAME_RULE}")
    return {"name": value}


def _node_list(key: str, value: object, nodes: Nodes, *, wildcard: bool = False) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(node, str) for node in value):
        raise _Wrong(f"is {shown(value)}", f'a list of node names, as {key} = ["n0", "n1"]')
    if len(set(value)) < len(value):
        twice = next(node for node in value if value.count(node) > 1)
        raise _Wrong(f"names {twice!r} twice", "name each node once")
    if ANY_NODE in value and (not wildcard or len(value) > 1):
        raise _Wrong("mixes the wildcard with names" if wildcard else "cannot take the wildcard", "name the nodes")
    for node in value:
        if nodes is not None and node != ANY_NODE and node not in nodes:
            configured = "configured are " + (", ".join(sorted(nodes)) or "none")
            raise _Wrong(f"names the unknown node {node!r}", _nearest(node, nodes, configured))
    return tuple(value)


def _allowable(value: object, nodes: Nodes) -> dict[str, Any]:
    names = _node_list("allowable_nodes", value, nodes, wildcard=True)
    if not names:
        raise _Wrong("is empty", f'name at least one node, or all of them: ["{ANY_NODE}"]')
    return {"allowable_nodes": names}


def _disallowable(value: object, nodes: Nodes) -> dict[str, Any]:
    return {"disallowable_nodes": _node_list("disallowable_nodes", value, nodes)}


def _preferences(value: object, nodes: Nodes) -> dict[str, Any]:
    example = 'write node_preferences = {ordered = ["n0", "n1"]}'
    if not isinstance(value, dict):
        raise _Wrong(f"is {shown(value)}", example)
    for key in value:
        if key != "ordered":
            raise _Wrong(f"has the unknown key {key!r}", _nearest(key, ("ordered",), example), (key,))
    return {"ordered": _node_list("ordered", value.get("ordered", []), nodes)}


def _auto_register(value: object, _nodes: Nodes) -> dict[str, Any]:
    if value not in {"auto", "manual"} if isinstance(value, str) else True:
        raise _Wrong(f"is {shown(value)}", 'allowed are "auto" (the default) and "manual"')
    return {"auto_register": value == "auto"}


def _placement_policy(value: object, _nodes: Nodes) -> dict[str, Any]:
    if value not in PLACEMENT_POLICIES if isinstance(value, str) else True:
        raise _Wrong(f"is {shown(value)}", f'this release places with "{PLACEMENT_POLICIES[0]}" only')
    return {}


def _command(key: str) -> Reader:
    def read_command(value: object, _nodes: Nodes) -> dict[str, Any]:
        example = f'write {key} = "/path/program argument", or a list of words'
        if isinstance(value, str):
            try:
                words = shlex.split(value)
            except ValueError as error:
                raise _Wrong(
                    f"cannot be split as a shell would: {error}", "close the quotation, or write a list"
                ) from error
        elif isinstance(value, list) and all(isinstance(word, str) for word in value):
            words = list(value)
        else:
            raise _Wrong(f"is {shown(value)}", example)
        if not words or not words[0].strip():
            raise _Wrong("is empty", f"leave {key} out for no command")
        if problem := command_problem(tuple(words)):
            what, _, allowed = problem.partition(": ")
            raise _Wrong(what, allowed)
        return {key: tuple(words)}

    return read_command


def _timeout(key: str) -> Reader:
    def read_timeout(value: object, _nodes: Nodes) -> dict[str, Any]:
        return {key + "_ms": duration_ms(value)}

    return read_timeout


def duration_ms(value: object) -> int:
    """Milliseconds of a duration as `"500ms"`, `"60s"`, `"2m"` or `"1h"`."""
    milliseconds = duration_of(value)
    if milliseconds is None:
        raise _Wrong(f"is {shown(value)}", 'a duration with its unit, as "500ms", "60s", "2m" or "1h"')
    if not 0 < milliseconds <= MAXIMUM_TIMEOUT_MS:
        raise _Wrong(f"is {shown(value)}", "more than nothing, and at most 24h")
    return milliseconds


_KEYS: dict[str, Reader] = {
    "name": _name,
    "allowable_nodes": _allowable,
    "disallowable_nodes": _disallowable,
    "node_preferences": _preferences,
    "auto_register": _auto_register,
    "placement_policy": _placement_policy,
    "start_command": _command("start_command"),
    "stop_command": _command("stop_command"),
    "recovery_command": _command("recovery_command"),
    "start_timeout": _timeout("start_timeout"),
    "stop_timeout": _timeout("stop_timeout"),
    "recovery_timeout": _timeout("recovery_timeout"),
}


def missing_programs(definitions: Iterable[Definition]) -> list[str]:
    """A sentence for each command whose program is not on this machine: no error, it may be on the nodes."""
    found: list[str] = []
    for definition in definitions:
        for key in ("start_command", "stop_command", "recovery_command"):
            command = getattr(definition, key)
            if command and shutil.which(command[0]) is None:
                found.append(f"service {definition.name!r}: {key}: no executable {command[0]!r} on this machine")
    return found


def duration_text(milliseconds: int) -> str:
    """The shortest exact text of a duration, as a service file takes it."""
    for unit in ("h", "m", "s"):
        if milliseconds % UNITS_MS[unit] == 0:
            return f"{milliseconds // UNITS_MS[unit]}{unit}"
    return f"{milliseconds}ms"
