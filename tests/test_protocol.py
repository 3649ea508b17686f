"""docs/PROTOCOL.md against code and tests: each rule is cited by both, and nobody cites a rule that does not exist."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from muster.core.service import RULES

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "PROTOCOL.md").read_text()
# P3.4, p3_4 in the name of a test, and ranges of them: P3.4-P3.6, P3.4 to P3.6.
CITATION = re.compile(r"(?<![A-Za-z0-9])[Pp](\d+)[._](\d+)(?![\d.]*\d)(?:(?:-| to |_to_)[Pp]\1[._](\d+)(?!\d))?")
HEADING = re.compile(r"^\*\*(P\d+\.\d+(?:-P\d+\.\d+)?) ", re.MULTILINE)
ROW = re.compile(r"^\| (P\d+\.\d+) \| ([a-z-]+) \| ([a-z]+) \|", re.MULTILINE)

Rule = tuple[int, int]


def rules_in(text: str) -> set[Rule]:
    """The rules that a text cites, ranges expanded."""
    found = set()
    for section, first, last in CITATION.findall(text):
        found |= {(int(section), number) for number in range(int(first), int(last or first) + 1)}
    return found


def name_of(rule: Rule) -> str:
    return f"P{rule[0]}.{rule[1]}"


@cache
def documented() -> tuple[Rule, ...]:
    """The rules of the document, in its order."""
    found: list[Rule] = []
    for heading in HEADING.findall(DOCUMENT):
        found += sorted(rules_in(heading))
    return tuple(found)


@cache
def cited(folder: str) -> dict[Rule, set[str]]:
    """Which files of a folder cite which rules."""
    found: dict[Rule, set[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path.name != Path(__file__).name:
            for rule in rules_in(path.read_text()):
                found.setdefault(rule, set()).add(str(path.relative_to(ROOT)))
    return found


def names(rules: Iterable[Rule]) -> list[str]:
    return [name_of(rule) for rule in sorted(rules)]


def test_the_rules_of_each_section_are_numbered_without_a_gap_and_named_once() -> None:
    rules = documented()
    assert len(rules) > 50
    assert len(set(rules)) == len(rules)
    for section in {rule[0] for rule in rules}:
        numbers = [rule[1] for rule in rules if rule[0] == section]
        assert numbers == list(range(1, len(numbers) + 1)), f"section {section}"


@pytest.mark.parametrize("folder", ["src/muster", "tests"])
def test_every_rule_is_cited(folder: str) -> None:
    missing = names(set(documented()) - set(cited(folder)))
    assert not missing, f"nothing under {folder} cites {', '.join(missing)}: cite them where they are kept or proven"


@pytest.mark.parametrize("folder", ["src/muster", "tests"])
def test_no_rule_is_cited_that_does_not_exist(folder: str) -> None:
    strangers = {name_of(rule): sorted(files) for rule, files in cited(folder).items() if rule not in documented()}
    assert not strangers, f"docs/PROTOCOL.md has no such rules: {strangers}"


def test_the_document_itself_refers_to_rules_that_exist() -> None:
    assert not names(rules_in(DOCUMENT) - set(documented()))


def test_every_rule_has_a_test_that_is_named_after_it_or_a_file_that_says_which_rules_it_proves() -> None:
    named: set[Rule] = set()
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE):
            named |= rules_in(name)
    # what only real processes or real disks prove is cited in the docstrings of those tests
    real = {(2, 9), (2, 10), (7, 5), (7, 6), (7, 7)}
    assert names(set(documented()) - named - real) == []


def test_the_table_of_services_is_that_of_the_code_row_by_row() -> None:
    rows = ROW.findall(DOCUMENT)
    assert [name for name, _, _ in rows] == [f"P6.{number}" for number in (*range(4, 18), *range(21, 27))]
    assert [(state, event) for _, state, event in rows] == [(str(state), event.name.lower()) for state, event in RULES]


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("as P3.4 says", {"P3.4"}),
        ("def test_p3_4_and_more", {"P3.4"}),
        ("def test_p6_10_p6_13_too", {"P6.10", "P6.13"}),
        ("P6.4-P6.6", {"P6.4", "P6.5", "P6.6"}),
        ("rules P6.9 to P6.11 of", {"P6.9", "P6.10", "P6.11"}),
        ("test_p6_4_to_p6_6_are", {"P6.4", "P6.5", "P6.6"}),
        ("(P3.1, P3.10).", {"P3.1", "P3.10"}),
        ("SPEC 3.4, HTTP1.1, P2.x, step 2_1", set()),
    ],
)
def test_citations_are_found_in_every_form(text: str, rules: set[str]) -> None:
    assert {name_of(rule) for rule in rules_in(text)} == rules
