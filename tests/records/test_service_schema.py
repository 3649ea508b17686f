"""docs/SERVICES.md and `muster service schema` show exactly the keys that the reader knows, and true defaults."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from muster.files.service_file import parse
from muster.files.service_keys import INNER_KEYS, KEYS
from muster.records.services import Definition
from muster.ui.pages.service_schema import document, markdown, tables

DOCUMENT = (Path(__file__).parents[2] / "docs" / "SERVICES.md").read_text()


@pytest.mark.parametrize("title", list(tables()))
def test_the_document_has_the_table_of_the_reader(title: str) -> None:
    assert markdown(title) in DOCUMENT, f"docs/SERVICES.md lags behind; its table is now:\n{markdown(title)}"


def test_the_schema_names_every_key_with_type_default_and_meaning() -> None:
    found = document()
    assert list(found) == ["[[service]]", *INNER_KEYS]
    assert list(found["[[service]]"]) == list(KEYS)
    assert all(
        set(key) == {"type", "default", "meaning"} and all(key.values()) for t in found.values() for key in t.values()
    )


@pytest.mark.parametrize(
    "key", [name for name, key in KEYS.items() if not key.default.startswith(("[none", "[req", "[as"))]
)
def test_the_default_that_is_shown_is_the_one_that_is_used(key: str) -> None:
    fields = KEYS[key].read(tomllib.loads(f"x = {KEYS[key].default}")["x"], None)
    defaults = {field.name: field.default for field in msgspec.structs.fields(Definition)}
    assert fields == {field: defaults[field] for field in fields}


@pytest.mark.parametrize("key", ["interval", "timeout", "failures"])
def test_the_default_of_a_check_is_the_one_that_is_used(key: str) -> None:
    (given, left_out) = parse(
        f'[[service]]\nname = "a"\ncheck = {{command = "c", {key} = {INNER_KEYS["check"][key].default}}}\n'
        '[[service]]\nname = "b"\ncheck.command = "c"\n',
        "f",
    )
    assert msgspec.structs.replace(given, name="b") == left_out


def test_the_example_of_the_document_is_a_service_file() -> None:
    example = DOCUMENT.partition("```toml\n")[2].partition("```")[0]
    names = [definition.name for definition in parse(example, "docs/SERVICES.md", ("n0", "n1", "n2"), {})]
    assert names == ["database", "analyze", "load"]
