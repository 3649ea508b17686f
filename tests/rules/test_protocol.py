"""docs/PROTOCOL.md against code and tests: each rule is cited by both, and nobody cites a rule that does not exist."""

import re
from collections.abc import Iterable
from fnmatch import fnmatch

import pytest

from citations import (
    CODE,
    DOCUMENTS,
    PACKAGE,
    TESTS,
    Number,
    citing_rules,
    document,
    functions_of_tests,
    headings,
    is_in_package,
    name_of_rule,
    named_as_code,
    named_as_tests,
    rules,
    rules_in,
)
from muster.core.services.table import RULES

DOCUMENT = document("PROTOCOL.md")
ROW = re.compile(r"^\| (P\d+\.\d+) \| ([a-z-]+) \| ([a-z]+) \|", re.MULTILINE)


def names(found: Iterable[Number]) -> list[str]:
    return [name_of_rule(rule) for rule in sorted(found)]


def test_the_rules_of_each_section_are_in_order_and_named_once() -> None:
    documented = rules()
    assert len(documented) > 50
    assert len(set(documented)) == len(documented)
    assert list(documented) == sorted(documented)


@pytest.mark.parametrize("folder", [PACKAGE, *TESTS])
def test_every_rule_is_cited(folder: str) -> None:
    missing = names(set(rules()) - set(citing_rules((folder,))))
    assert not missing, f"nothing under {folder} cites {', '.join(missing)}: cite them where they are kept or proven"


@pytest.mark.parametrize("folder", [*CODE, *TESTS])
def test_no_rule_is_cited_that_does_not_exist(folder: str) -> None:
    strangers = {name_of_rule(rule): files for rule, files in citing_rules((folder,)).items() if rule not in rules()}
    assert not strangers, f"docs/PROTOCOL.md has no such rules: {strangers}"


@pytest.mark.parametrize("name", sorted(path.name for path in DOCUMENTS.glob("*.md")))
def test_documents_refer_to_rules_that_exist(name: str) -> None:
    assert not names(rules_in(document(name)) - set(rules()))


def test_every_rule_refines_a_section_of_the_specification() -> None:
    lone = [heading.name for heading in headings() if not heading.refines]
    assert not lone, f"{lone} name no section that they refine: put it behind the rule's name, as in (SPEC 3.4)"


@pytest.mark.parametrize("name", named_as_code())
def test_what_the_document_names_as_code_is_in_the_package(name: str) -> None:
    assert is_in_package(name), f"docs/PROTOCOL.md says Code: `{name}`, and there is no such file, class or function"


@pytest.mark.parametrize("name", named_as_tests())
def test_what_the_document_names_as_tests_and_mutants_is_there(name: str) -> None:
    # a mutant is a function, or it is made in a test that names it
    found = any(fnmatch(function, name) or f"_the_mutant_{name}_" in function for function in functions_of_tests())
    assert found, f"docs/PROTOCOL.md names `{name}` as a test or a mutant, and there is none of that name"


def test_every_rule_has_a_test_that_is_named_after_it_or_a_file_that_says_which_rules_it_proves() -> None:
    named: set[Number] = set()
    for name in functions_of_tests():
        if name.startswith("test_"):
            named |= rules_in(name)
    # what only real processes or real disks prove is cited in the docstrings of those tests
    real = {(2, 9), (2, 10), (7, 5), (7, 6), (7, 7)}
    assert names(set(rules()) - named - real) == []


def test_the_table_of_services_is_that_of_the_code_row_by_row() -> None:
    rows = ROW.findall(DOCUMENT)
    assert [name for name, _, _ in rows] == [f"P6.{number}" for number in (*range(4, 18), *range(21, 27))]
    assert [(state, event) for _, state, event in rows] == [(str(state), event.name.lower()) for state, event in RULES]


@pytest.mark.parametrize(
    ("text", "found"),
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
def test_citations_are_found_in_every_form(text: str, found: set[str]) -> None:
    assert {name_of_rule(rule) for rule in rules_in(text)} == found
