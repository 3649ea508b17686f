"""Who cites which section of docs/SPECIFICATION.md and rule of docs/PROTOCOL.md; writes docs/INDEX.md (`make docs`).

    .venv/bin/python tests/citations.py

A section is cited as `SPEC 3.4` (also `SPEC 3.4, 3.5`, `SPEC 7.1-7.3`, `SPEC 3` for a whole part, `SPEC table 2`, and
`spec_3_4` in the name of a test), a rule as `P3.4` (also `P3.4-P3.6`, `P3.4 to P3.6`, `p3_4` in the name of a test).
The index has a table for each section: the section itself and each rule that refines it, with the files that cite them.
Files are found wherever they are; there are no numbers of lines, so that it changes only when somebody cites anew.
"""

import ast
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

Number = tuple[int, int]  # of a section or a rule: (3, 4) is SPEC 3.4 or P3.4; (3, 0) is all of part 3 of SPEC

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
DOCUMENTS = ROOT / "docs"
INDEX = DOCUMENTS / "INDEX.md"
PACKAGE = "src/muster"
CODE = (PACKAGE, "lab", "bench")
TESTS = ("tests",)
_SUFFIXES = (".py", ".toml")
# these speak of citations, and cite nothing
_NOT_CITING = ("citations.py", "test_citations.py", "test_protocol.py")

_RULE = re.compile(r"(?<![A-Za-z0-9])[Pp](\d+)[._](\d+)(?![\d.]*\d)(?:(?:-| to |_to_)[Pp]\1[._](\d+)(?!\d))?")
_ITEM = r"\d+(?:\.\d+(?!\.?\d)|(?![\d.]*\d))"
_RANGE = rf"{_ITEM}(?:(?:-|\sto\s){_ITEM})?"
_GAP = r"[\s#]+"  # a citation may go on in the next line of a comment
_SECTIONS = re.compile(
    rf"\bSPEC{_GAP}(?:sections?{_GAP})?({_RANGE}(?:(?:,|{_GAP}and|{_GAP}or){_GAP}{_RANGE}(?![\w]))*)"
)
_TABLES = re.compile(rf"\bSPEC{_GAP}tables?{_GAP}(\d)(?:{_GAP}and{_GAP}(\d))?")
_SECTION_OF_TEST = re.compile(r"(?<![A-Za-z0-9])spec_(\d+)_(\d+)(?!\d)")

_RULE_HEADING = re.compile(r"^\*\*(P\d+\.\d+(?:-P\d+\.\d+)?) ([^*]*?)(?: \(SPEC [^)]*\))?\.?\*\*", re.MULTILINE)
_PART_HEADING = re.compile(r"^## (\d+)\. (.+)$", re.MULTILINE)
_SECTION_HEADING = re.compile(r"^### (\d+)\.(\d+) (.+)$", re.MULTILINE)
_CODE_NAMED = re.compile(r"\*?Code\*?:\s((?:[^`.]|`[^`]*`)*)\.(?=\s|$)")
_TESTS_NAMED = re.compile(r"\*?Tests\*?:\s((?:[^`.]|`[^`]*`)*)\.(?=\s|$)")
_TABLE_HEADING = re.compile(r"^\*\*Table (\d)\.?\*\*", re.MULTILINE)


class Rules(NamedTuple):
    """One heading of PROTOCOL: a rule, or several in one table, and the sections that it refines or cites below."""

    name: str
    title: str
    numbers: tuple[Number, ...]
    refines: frozenset[Number]


_NAMING = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Assign, ast.AnnAssign)


# ---- what a text cites


def rules_in(text: str) -> set[Number]:
    """The rules that a text cites, ranges expanded."""
    found = set()
    for section, first, last in _RULE.findall(text):
        found |= {(int(section), number) for number in range(int(first), int(last or first) + 1)}
    return found


def sections_in(text: str) -> set[Number]:
    """The sections that a text cites, ranges expanded; a whole part is (number, 0)."""
    found = {(int(part), int(section)) for part, section in _SECTION_OF_TEST.findall(text)}
    for cited in _SECTIONS.findall(text):
        for first, last in re.findall(rf"({_ITEM})(?:(?:-|\sto\s)({_ITEM}))?", cited):
            found |= _between(first, last or first)
    for numbers in _TABLES.findall(text):
        found |= {section_of_table(int(number)) for number in numbers if number}
    return found


def _between(first: str, last: str) -> set[Number]:
    part, from_section = _number(first)
    _, to_section = _number(last)
    return {(part, section) for section in range(from_section, to_section + 1)}


def _number(text: str) -> Number:
    part, _, section = text.partition(".")
    return int(part), int(section or 0)


# ---- the two documents


@cache
def document(name: str) -> str:
    """The text of a document."""
    return (DOCUMENTS / name).read_text()


@cache
def parts() -> dict[int, str]:
    """The titles of the specification's parts."""
    return {int(number): title for number, title in _PART_HEADING.findall(document("SPECIFICATION.md"))}


@cache
def sections() -> dict[Number, str]:
    """The titles of the specification's sections, in its order."""
    found = _SECTION_HEADING.findall(document("SPECIFICATION.md"))
    return {(int(part), int(section)): title for part, section, title in found}


@cache
def section_of_table(table: int) -> Number:
    """The section in which a table of the specification stands; (0, 0) if there is none of that number."""
    text = document("SPECIFICATION.md")
    for found in _TABLE_HEADING.finditer(text):
        if table == int(found[1]):
            last = _SECTION_HEADING.findall(text[: found.start()])[-1]
            return int(last[0]), int(last[1])
    return 0, 0


@cache
def headings() -> tuple[Rules, ...]:
    """The headings of PROTOCOL's rules, in its order."""
    text = document("PROTOCOL.md")
    found = list(_RULE_HEADING.finditer(text))
    ends = [heading.start() for heading in found[1:]] + [len(text)]
    made = []
    for heading, end in zip(found, ends, strict=True):
        section_end = text.find("\n#", heading.start(), end)
        below = text[heading.start() : end if section_end < 0 else section_end]
        numbers = tuple(sorted(rules_in(heading[1])))
        made.append(Rules(heading[1], heading[2], numbers, frozenset(sections_in(below))))
    return tuple(made)


def rules() -> tuple[Number, ...]:
    """All rules of PROTOCOL, in its order."""
    return tuple(number for heading in headings() for number in heading.numbers)


# ---- the files


@cache
def _texts(folders: tuple[str, ...]) -> dict[str, str]:
    """The texts of all files that may cite, by their paths below the root."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in _SUFFIXES and path.name not in _NOT_CITING and "__pycache__" not in path.parts:
                found[str(path.relative_to(ROOT))] = path.read_text()
    return found


def _citing(folders: tuple[str, ...], read: Callable[[str], set[Number]]) -> dict[Number, list[str]]:
    found: dict[Number, list[str]] = {}
    for path, text in _texts(folders).items():
        for number in read(text):
            found.setdefault(number, []).append(path)
    return found


@cache
def citing_rules(folders: tuple[str, ...]) -> dict[Number, list[str]]:
    """Which files of these folders cite which rules."""
    return _citing(folders, rules_in)


@cache
def citing_sections(folders: tuple[str, ...]) -> dict[Number, list[str]]:
    """Which files of these folders cite which sections."""
    return _citing(folders, sections_in)


@cache
def names_in_package() -> frozenset[str]:
    """All names that the package defines: `name`, and `Class.name` or `module.name`, also of attributes."""
    found: set[str] = set()
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        tree = ast.parse(path.read_text())
        for owner, body in [(path.stem, tree), *((node.name, node) for node in _classes(tree))]:
            names = {name for child in ast.walk(body) if isinstance(child, _NAMING) for name in _defined(child)}
            found |= names | {f"{owner}.{name}" for name in names}
    return frozenset(found)


def _classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def _defined(node: ast.AST) -> list[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            found = [name for target in targets for name in _assigned(target)]
        case ast.AnnAssign(target=target):
            found = _assigned(target)
        case _:
            found = []
    return found


def _assigned(target: ast.expr) -> list[str]:
    match target:
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name):
            return [name]
        case ast.Tuple(elts=elements):
            return [name for element in elements for name in _assigned(element)]
    return []


@cache
def functions_of_tests() -> frozenset[str]:
    """The names of all functions and classes of the tests."""
    text = "\n".join(_texts(TESTS).values())
    return frozenset(re.findall(r"^ *(?:async )?(?:def|class) (\w+)", text, re.MULTILINE))


@cache
def named_as_code() -> tuple[str, ...]:
    """What PROTOCOL names behind each of its words "Code:"."""
    found: list[str] = []
    for sentence in _CODE_NAMED.findall(document("PROTOCOL.md")):
        found += re.findall(r"`([^`]+)`", sentence)
    return tuple(dict.fromkeys(found))


@cache
def named_as_tests() -> tuple[str, ...]:
    """What PROTOCOL names behind each of its words "Tests:"; `*` stands for whatever comes there."""
    found = [
        name for sentence in _TESTS_NAMED.findall(document("PROTOCOL.md")) for name in re.findall(r"`(\S+)`", sentence)
    ]
    return tuple(dict.fromkeys(found))


def is_in_package(name: str) -> bool:
    """Whether a file (`core/x.py`, `core/x.py:function`) or a name (`function`, `Class.method`) is in the package."""
    file, _, rest = name.partition(":")
    if "/" in file:
        return (ROOT / PACKAGE / file).exists() and (not rest or f"{Path(file).stem}.{rest}" in names_in_package())
    return ".".join(name.split(".")[-2:]) in names_in_package()


# ---- the index


def name_of_rule(rule: Number) -> str:
    """How a rule is cited."""
    return f"P{rule[0]}.{rule[1]}"


def name_of_section(section: Number) -> str:
    """How a section, or a whole part, is cited."""
    return f"SPEC {section[0]}.{section[1]}" if section[1] else f"SPEC {section[0]}"


def index() -> str:
    """What docs/INDEX.md has to be."""
    linked: dict[str, str] = {}
    lines = [
        "# Index",
        "",
        "From each section of the [specification](SPECIFICATION.md) to the rules of [PROTOCOL](PROTOCOL.md) that",
        "refine it, and to the code and the tests that cite that section or those rules. Made by `make docs`; a test",
        "says when it is stale.",
    ]
    for part, part_title in parts().items():
        lines += ["", f"## {part}. {part_title}"]
        if any(_citing_section((part, 0))):
            lines += _table([_section_row((part, 0), "", linked)])
        for section, title in sections().items():
            if section[0] == part:
                lines += ["", f"### {section[0]}.{section[1]} {title}", *_section(section, title, linked)]
    lines += ["", *(f"[{short}]: ../{path}" for short, path in sorted(linked.items()))]
    return "\n".join(lines) + "\n"


def _table(rows: list[str]) -> list[str]:
    return ["", "| | code | tests |", "|---|---|---|", *rows]


def _section(section: Number, title: str, linked: dict[str, str]) -> list[str]:
    rows = [_section_row(section, f"#{anchor(f'{section[0]}.{section[1]} {title}')}", linked)]
    return _table(rows + [_rules_row(heading, linked) for heading in headings() if section in heading.refines])


def _section_row(section: Number, where: str, linked: dict[str, str]) -> str:
    code, tests = (_links(paths, linked) for paths in _citing_section(section))
    return f"| [{name_of_section(section)}](SPECIFICATION.md{where}) | {code} | {tests} |"


def _citing_section(section: Number) -> tuple[list[str], list[str]]:
    return citing_sections(CODE).get(section, []), citing_sections(TESTS).get(section, [])


def _rules_row(heading: Rules, linked: dict[str, str]) -> str:
    code, tests = (_links(_citing_any(heading.numbers, folders), linked) for folders in (CODE, TESTS))
    return f"| {heading.name} {heading.title} | {code} | {tests} |"


def _citing_any(numbers: tuple[Number, ...], folders: tuple[str, ...]) -> list[str]:
    citing = {path for rule in numbers for path in citing_rules(folders).get(rule, ())}
    return [path for path in _texts(folders) if path in citing]


def _links(paths: list[str], linked: dict[str, str]) -> str:
    """Links by reference, so that a row can be read as text; `linked` takes what they refer to."""
    for path in paths:
        assert linked.setdefault(_short(path), path) == path, f"{path} and {linked[_short(path)]} would be one link"
    return ", ".join(f"[{_short(path)}]" for path in paths)


def _short(path: str) -> str:
    return path.removeprefix(f"{PACKAGE}/").removeprefix("tests/")


def anchor(title: str) -> str:
    """The anchor that a heading gets where the documents are shown."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def main() -> int:
    """Write docs/INDEX.md."""
    INDEX.write_text(index())
    sys.stdout.write(f"{INDEX.relative_to(ROOT)} is written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
