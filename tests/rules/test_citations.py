"""docs/SPECIFICATION.md against rules, code and tests, and docs/INDEX.md, which says what cites what."""

import re

import pytest

from citations import (
    CODE,
    DOCUMENTS,
    INDEX,
    TESTS,
    Number,
    citing_rules,
    citing_sections,
    document,
    headings,
    index,
    name_of_section,
    parts,
    rules,
    rules_in,
    sections,
    sections_in,
)

# sections that nothing need cite yet, and why
LAYERS = "a layer that this release does not have"
NOT_YET: dict[tuple[int, int], str] = {}


def is_there(section: Number) -> bool:
    return section in sections() or (section[1] == 0 and section[0] in parts())


def leads_to(section: Number, folders: tuple[str, ...]) -> bool:
    """Whether a file of these folders cites the section, or a rule that refines it."""
    refining = {rule for heading in headings() if section in heading.refines for rule in heading.numbers}
    return section in citing_sections(folders) or any(rule in citing_rules(folders) for rule in refining)


def test_the_index_is_fresh() -> None:
    assert INDEX.read_text() == index(), (
        "docs/INDEX.md is stale, since citations have changed: run `make docs`, and commit it"
    )


def test_the_sections_are_numbered_in_order() -> None:
    assert list(parts()) == list(range(1, 10))
    for part in parts():
        numbers = [number for where, number in sections() if where == part]
        assert numbers == list(range(1, len(numbers) + 1)), f"part {part}"


@pytest.mark.parametrize("section", sections(), ids=name_of_section)
def test_every_section_leads_to_code_and_to_tests(section: Number) -> None:
    found = leads_to(section, CODE), leads_to(section, TESTS)
    if section in NOT_YET:
        assert not all(found), f"{name_of_section(section)} is cited now: take it from NOT_YET"
    else:
        assert all(found), f"{name_of_section(section)}: cited by code, by tests: {found}"


@pytest.mark.parametrize("folder", [*CODE, *TESTS])
def test_no_section_is_cited_that_does_not_exist(folder: str) -> None:
    found = citing_sections((folder,)).items()
    strangers = {name_of_section(section): files for section, files in found if not is_there(section)}
    assert not strangers, f"docs/SPECIFICATION.md has no such sections: {strangers}"


@pytest.mark.parametrize("name", sorted(path.name for path in DOCUMENTS.glob("*.md")))
def test_documents_refer_to_sections_that_exist(name: str) -> None:
    assert [name_of_section(section) for section in sections_in(document(name)) if not is_there(section)] == []


def test_the_specification_refers_to_sections_and_rules_that_exist() -> None:
    text = document("SPECIFICATION.md")
    bare = {(int(part), int(number)) for part, number in re.findall(r"(?<![\w.])(\d)\.(\d{1,2})(?![\w.]\w)", text)}
    assert len(bare) >= len(sections())
    assert bare <= set(sections())
    assert rules_in(text) <= set(rules())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("as SPEC 3.4 says", {"SPEC 3.4"}),
        ("it is so (SPEC 3.14).", {"SPEC 3.14"}),
        ("(SPEC 7.8, 8.1, P6.30)", {"SPEC 7.8", "SPEC 8.1"}),
        ("(SPEC 6.6-6.8, 7.7)", {"SPEC 6.6", "SPEC 6.7", "SPEC 6.8", "SPEC 7.7"}),
        ("SPEC 6.2 to 6.4", {"SPEC 6.2", "SPEC 6.3", "SPEC 6.4"}),
        ("the words of SPEC 3.1 and 6.7.", {"SPEC 3.1", "SPEC 6.7"}),
        ("(SPEC\n    # 7.1)", {"SPEC 7.1"}),
        ("(SPEC 3, 2.4)", {"SPEC 3", "SPEC 2.4"}),
        ("SPEC section 3 does", {"SPEC 3"}),
        ("SPEC 3.14, figs. 3-7", {"SPEC 3.14"}),
        ("SPEC tables 2 and 3", {"SPEC 6.9"}),
        ("SPEC 3.6, Table 1", {"SPEC 3.6"}),
        ("def test_spec_8_2_and_more", {"SPEC 8.2"}),
        ("P3.4, 3.4, specification 3.4, SPEC {rule}", set()),
    ],
)
def test_citations_of_sections_are_found_in_every_form(text: str, found: set[str]) -> None:
    assert {name_of_section(section) for section in sections_in(text)} == found
