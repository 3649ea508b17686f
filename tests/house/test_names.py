"""One word, one thing: what one reader reads together has no two classes of one name (CONTRIBUTING.md).

Read together is a file with all that it imports, and a folder. Private names are for the reader of one file only. Nor
do names of files of one layer differ by no more than an `s`: nobody remembers which of the two is which.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "muster"
SAME_THING = {
    "Elected": "the history of the virtual world keeps that very effect",
}
OF_TWO_PROGRAMS = {
    ("core", "table", "tables"): "`tables.py` is of the lock manager, a process of its own that reads nothing else",
}


class File(NamedTuple):
    """What a reader of one file sees."""

    classes: frozenset[str]
    imports: frozenset[str]  # modules


def names_in(text: str) -> File:
    """The public classes that a file defines, and all that it names in its imports."""
    tree = ast.parse(text)
    imports: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            imports |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
        elif isinstance(node, ast.Import):
            imports |= {each.name for each in node.names}
    classes = (node.name for node in tree.body if isinstance(node, ast.ClassDef))
    return File(frozenset(name for name in classes if not name.startswith("_")), frozenset(imports))


def twice(files: dict[str, File], together: Iterable[str]) -> Iterator[str]:
    """The classes that stand in more than one of these modules, with the modules."""
    seen: dict[str, str] = {}
    for module in sorted(set(together) & files.keys()):
        for name in sorted(files[module].classes):
            if name in seen and name not in SAME_THING:
                yield f"{name}: {seen[name]} and {module}"
            seen[name] = module


FILES = {
    ".".join(("muster", *path.relative_to(PACKAGE).with_suffix("").parts)): names_in(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}
FOLDERS = sorted({module.rpartition(".")[0] for module in FILES})
LAYERS = sorted({module.split(".")[1] for module in FILES if module.count(".") > 1})


def test_no_file_and_what_it_imports_have_two_classes_of_one_name() -> None:
    found = {module: list(twice(FILES, {module, *file.imports})) for module, file in FILES.items()}
    assert not {module: names for module, names in found.items() if names}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_has_two_classes_of_one_name(folder: str) -> None:
    assert not list(twice(FILES, (module for module in FILES if module.rpartition(".")[0] == folder)))


@pytest.mark.parametrize("layer", LAYERS)
def test_no_names_of_files_of_one_layer_differ_by_an_s(layer: str) -> None:
    names = {module.rpartition(".")[2] for module in FILES if module.startswith(f"muster.{layer}.")}
    pairs = {(layer, name, f"{name}s") for name in names if f"{name}s" in names}
    assert pairs == {each for each in OF_TWO_PROGRAMS if each[0] == layer}


def test_every_exception_is_needed() -> None:
    for name in SAME_THING:
        assert sum(name in file.classes for file in FILES.values()) > 1, f"{name} is no exception any more"


def test_two_of_one_name_are_found() -> None:
    files = {
        "muster.a": names_in("class Verdict: ...\n"),
        "muster.b": names_in("from muster import a\nclass Verdict: ...\nclass _Own: ...\n"),
        "muster.c": names_in("class _Own: ...\nclass Elected: ...\n"),
        "muster.d": names_in("class Elected: ...\n"),
    }
    assert "muster.a" in files["muster.b"].imports
    assert list(twice(files, files)) == ["Verdict: muster.a and muster.b"]
