"""Docstrings say what a thing does: none only points elsewhere, and none is but a number or two words."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "lab", "bench", "distribution", "tests/support")
SAYS_NOTHING = re.compile(r"(See|As) (`[^`]*`|the module)\.?|[\s(]*(SPEC |P)[0-9 .,()P-]*", re.ASCII)
FEWEST_WORDS = 3


def empty_docstrings(text: str) -> list[str]:
    """The names of what has a docstring that says nothing."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            words = ast.get_docstring(node)
            if words and (SAYS_NOTHING.fullmatch(words) or len(words.split()) < FEWEST_WORDS):
                found.append(f"{node.name}: {words}")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_docstring_says_something(folder: str) -> None:
    found = {str(path): empty_docstrings(path.read_text()) for path in (ROOT / folder).rglob("*.py")}
    assert found, "nothing was read"
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize("words", ["See `Checker`.", "SPEC 6.7.", "As `Daemon.operate`.", "P7.1, P4.3.", "One more."])
def test_what_says_nothing_is_found(words: str) -> None:
    assert empty_docstrings(f'def told() -> None:\n    """{words}"""\n') == [f"told: {words}"]
    assert not empty_docstrings('def told() -> None:\n    """See whether it is due (P7.1)."""\n')
