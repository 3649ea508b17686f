"""The service file: TOML tables `[[service]]` into definitions, with every problem named at once (SPEC 6.2, 6.6, 7.8).

Theory of operation. `tomllib` gives the values but not where they stand, so `toml_lines` walks over the text once more
and notes the line of every key. The value of each key is then read by the one function of `service_keys.KEYS`; a
function that finds something wrong raises `Wrong`, which becomes a `Problem` with the key's line. What no key can know
alone is said by `limits.contradictions` and `limits.group_problems`. Nothing is applied as long as there is a problem.

A file of another kind that has such tables, as a scenario, reads them with `services_of`, and may add keys of its own.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from muster.files.service_keys import KEYS, Key, Nodes, Wrong, nearest
from muster.files.toml_lines import Place, Problem, document_of, key_lines, nearest_line
from muster.records.service_limits import MAXIMUM_SERVICES, contradictions, group_problems
from muster.records.services import Definition

_NO_KEYS: Mapping[str, Key] = MappingProxyType({})
TABLES = "service"
GROUP_TABLES = "event_group"  # read by `event_file.py`
Definitions = Mapping[str, Definition] | None  # by name


class ServiceFileError(ValueError):
    """The service file cannot be used; `problems` is everything wrong with it, in the order of its lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("\n".join(map(str, self.problems)))


class ServiceTable(NamedTuple):
    """One `[[service]]` table that was read: its definition, and the values of keys that its kind of file adds."""

    definition: Definition
    added: dict[str, Any]


def parse(text: str, source: str, nodes: Nodes = None, cluster: Definitions = None) -> tuple[Definition, ...]:
    """The definitions in a service file's text; `source` is its name in problems. Raises `ServiceFileError`.

    `nodes`: the cluster's node names; `cluster`: the services that it has. Where one of them is None, what the file
    names is not judged by it.
    """
    document = document_of(text, source)
    if isinstance(document, Problem):
        raise ServiceFileError([document])
    lines = key_lines(text)
    problems = [
        Problem(
            source,
            lines.get((key,), 0),
            key,
            "unknown table or key",
            nearest(key, (TABLES, GROUP_TABLES), "only [[service]] and [[event_group]] tables"),
        )
        for key in document
        if key not in (TABLES, GROUP_TABLES)
    ]
    if document.get(TABLES, []) == [] and not problems and GROUP_TABLES not in document:
        advice = "begin each service with a line [[service]]"
        problems.append(Problem(source, 0, "the file", "defines no service", advice))
    tables, found = services_of(document, lines, source, nodes, cluster)
    problems += found
    if problems:
        raise ServiceFileError(problems)
    return tuple(table.definition for table in tables)


def services_of(
    document: dict[str, Any],
    lines: dict[Place, int],
    source: str,
    nodes: Nodes = None,
    cluster: Definitions = None,
    added: Mapping[str, Key] = _NO_KEYS,
) -> tuple[list[ServiceTable], list[Problem]]:
    """The `[[service]]` tables of a TOML document, and everything wrong with them.

    `lines`: of the document's keys, from `key_lines`; `added`: keys that a table may have beside those of a service.
    """
    reading = _Reading(source, lines, nodes, cluster, added)
    return reading.tables(document.get(TABLES, [])), reading.problems


class _Reading:
    """One reading of the tables of one file: collects problems."""

    def __init__(
        self, source: str, lines: dict[Place, int], nodes: Nodes, cluster: Definitions, added: Mapping[str, Key]
    ) -> None:
        self._source, self._lines, self._nodes, self._cluster = source, lines, nodes, cluster
        self._keys, self._added = {**KEYS, **added}, added
        self.problems: list[Problem] = []

    def tables(self, tables: object) -> list[ServiceTable]:
        """Every table that could be read. Problems are in `problems`."""
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._add((TABLES,), "service", "is no list of tables", "begin each service with a line [[service]]")
            return []
        if len(tables) > MAXIMUM_SERVICES:
            self._add((), "the file", f"defines {len(tables)} services", f"at most {MAXIMUM_SERVICES} at once")
            return []
        found = {position: self._table(position, table) for position, table in enumerate(tables)}
        self._check_duplicates(tables)
        read = {position: table for position, table in found.items() if table is not None}
        self._check_groups(read, {name for table in tables if isinstance(name := table.get("name"), str)})
        return list(read.values())

    def _table(self, position: int, table: dict[str, Any]) -> ServiceTable | None:
        name = table.get("name")
        subject = _subject(name, position)
        place: Place = (TABLES, position)
        before = len(self.problems)
        if "name" not in table:
            self._add(place, subject, "has no name", 'add name = "..."')
        fields: dict[str, Any] = {}
        added: dict[str, Any] = {}
        for key, value in table.items():
            if key not in self._keys:
                allowed = nearest(key, self._keys, "allowed are " + ", ".join(self._keys))
                self._add((*place, key), subject, f"unknown key {key!r}", allowed)
                continue
            try:
                values = self._keys[key].read(value, self._nodes)
            except Wrong as wrong:
                self._add((*place, key, *wrong.inner), subject, f"{key} {wrong.what}", wrong.allowed)
            else:
                (added if key in self._added else fields).update(values)
        if len(self.problems) > before:
            return None
        definition = Definition(**fields)
        for found in contradictions(definition, self._nodes):
            self._add((*place, found.key), subject, found.what, found.allowed)
        if definition.parent and "placement_policy" in table:
            what = "placement_policy is given, and it has a parent: a child is placed as its parent is"
            allowed = f"leave placement_policy out, or set it for {definition.parent}"
            self._add((*place, "placement_policy"), subject, what, allowed)
        return ServiceTable(definition, added)

    def _check_duplicates(self, tables: list[dict[str, Any]]) -> None:
        first: dict[str, int] = {}
        for position, table in enumerate(tables):
            name = table.get("name")
            if not isinstance(name, str):
                continue
            if name in first:
                line = self._lines.get((TABLES, first[name], "name"), 0)
                what = f"is defined twice, first at line {line}" if line else "is defined twice"
                self._add(
                    (TABLES, position, "name"), _subject(name, position), what, "give each service a name of its own"
                )
            first.setdefault(name, position)

    def _check_groups(self, tables: dict[int, ServiceTable], named: set[str]) -> None:
        """Parents, among the services of the file and those of the cluster; `named` also has those with a problem."""
        positions = {table.definition.name: position for position, table in tables.items()}
        own = {table.definition.name: table.definition for table in tables.values()}
        everything = {**(self._cluster or {}), **own}
        faulty = named - own.keys()
        for name, found in group_problems(everything, own, whole=self._cluster is not None):
            if own[name].parent in faulty:
                continue  # the parent is in the file, and has a problem of its own
            self._add((TABLES, positions[name], found.key), _subject(name, positions[name]), found.what, found.allowed)

    def _add(self, place: Place, subject: str, what: str, allowed: str) -> None:
        line = nearest_line(self._lines, place)
        self.problems.append(Problem(self._source, line, subject, what, allowed))


def _subject(name: object, position: int) -> str:
    return f"service {name!r}" if isinstance(name, str) else f"service number {position + 1}"
