"""What every reader of a TOML file of ours needs: problems that name their line, durations, and where each key stands.

`tomllib` does not tell where a key stands, so `key_lines` walks over the text once more. The walk knows only what it
must to tell a key from the inside of a value: strings of all four kinds, comments, and brackets that keep a value open
over several lines. It is used on texts that `tomllib` has accepted, and only for the line numbers in error messages:
where it is lost, a message has no line.
"""

import re
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple

Place = tuple[str | int, ...]  # path of a key: ("service", 0, "name"); an array of tables contributes a position

_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")' r"|'''.*?'{3,5}(?!')" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_KEY_PART = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*(\.)?""")

MAXIMUM_KEY_PARTS = 100  # what the library takes for a key grows with the square of its parts


class Problem(NamedTuple):
    """One thing wrong in a file. `line` is 0 where none can be named."""

    source: str
    line: int
    subject: str  # the service, the step, or what else it is about
    what: str
    allowed: str  # what to write instead

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}" if self.line else self.source
        return f"{place}: {self.subject}: {self.what}; {self.allowed}"


def nearest_line(lines: Mapping[Place, int], place: Place) -> int:
    """The line of a key, or else of the nearest place around it that has one; 0 where none has."""
    while place and not lines.get(place, 0):
        place = place[:-1]
    return lines.get(place, 0) if place else 0


def document_of(text: str, source: str) -> dict[str, Any] | Problem:
    """The tables of a TOML text; where it is none, the problem, with its line. `source` is its name in problems."""
    if line := _endless_key(text):
        what = f"a key of more than {MAXIMUM_KEY_PARTS} parts"
        return Problem(source, line, "TOML", what, "no key here has more than a few; correct it")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        found = re.search(r"\(at line (\d+)", str(error))
        line = int(found.group(1)) if found else text.count("\n") + 1
        reason = re.sub(r" *\(at .*\)$", "", str(error))
        return Problem(source, line, "TOML", reason, "see https://toml.io for its syntax")


def _endless_key(text: str) -> int:
    """The line of a key of so many parts that reading it would take minutes; 0 where there is none."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") < MAXIMUM_KEY_PARTS:
            continue
        run = 0
        for part in line.split("."):
            run = run + 1 if part.strip() and len(part.split()) == 1 else 0
            if run > MAXIMUM_KEY_PARTS:
                return number
    return 0


def key_lines(text: str) -> dict[Place, int]:
    """The line, counted from 1, of every table and key of `text`."""
    lines: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    table: Place = ()
    for line, statement in _statements(text):
        if statement.startswith("["):
            is_array = statement.startswith("[[")
            table = _resolve(_parts(statement.lstrip("[")), counts, is_array=is_array)
            lines.setdefault(table[:-1] if is_array else table, line)
            place = table
        else:
            place = table + _parts(statement)
        for length in range(len(table) + 1, len(place) + 1):  # a dotted key also defines what is before its dots
            lines.setdefault(place[:length], line)
        lines.setdefault(place, line)
    return lines


def _resolve(path: Place, counts: dict[Place, int], *, is_array: bool) -> Place:
    """The table's place, with the position in each array of tables on the way to it."""
    place: Place = ()
    for part in path[:-1]:
        place = (*place, part)
        if place in counts:
            place = (*place, counts[place])
    place = place + path[-1:]
    if is_array:
        counts[place] = counts.get(place, -1) + 1
        place = (*place, counts[place])
    return place


def _parts(statement: str) -> Place:
    """The parts of the dotted key at the beginning of a statement."""
    parts: list[str] = []
    position = 0
    while found := _KEY_PART.match(statement, position):
        parts.append(next(part for part in found.groups()[:3] if part is not None))
        position = found.end()
        if not found.group(4):
            break
    return tuple(parts)


def _statements(text: str) -> list[tuple[int, str]]:
    """(line, beginning of the statement) of each table header and key; bounded by the text's length."""
    found: list[tuple[int, str]] = []
    position, line, depth, fresh = 0, 1, 0, True
    while position < len(text):
        character = text[position]
        if fresh and not character.isspace() and character != "#":
            end = text.find("\n", position)
            found.append((line, text[position : end if end >= 0 else len(text)]))
            fresh = False
        if character == "#":
            end = text.find("\n", position)
            position = end if end >= 0 else len(text)
            continue
        string = _STRING.match(text, position) if character in "\"'" else None
        if string:
            line += string.group().count("\n")
            position = string.end()
            continue
        if character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "\n":
            line += 1
            fresh = depth <= 0
        position += 1
    return found
