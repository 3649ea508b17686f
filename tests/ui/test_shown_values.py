"""Values of definitions are shown as they would be typed (SPEC 8.1)."""

import shlex

import pytest

from muster.ui.pages.screen import services_table
from muster.ui.values import as_typed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([["A", "two words"], ["B", 'quote"inside'], ["E", ""]], "A='two words' B='quote\"inside' E=''"),
        (["sh", "-c", "exit 1"], "sh -c 'exit 1'"),
        ([["n1", "n2"]], "n1=n2"),
        ([], ""),
        (3, "3"),
        ("a b", "a b"),
    ],
)
def test_each_value_is_shown_as_it_would_be_typed(value: object, text: str) -> None:
    assert as_typed(value) == text


@pytest.mark.parametrize(
    ("flags", "caption"),
    [
        ([], None),
        (["T"], "T: it moves to another node"),
        (["M", "N"], "M: it waits for more nodes before its first start; N: each node that joins is told where it is"),
    ],
)
def test_flags_are_explained_where_they_are_shown(flags: list[str], caption: str | None) -> None:
    service = {"state": "registered", "flags": flags, "node": "n1", "cause": "", "wanted": True}
    table = services_table({"services": {"web": service}})
    assert caption == (None if table.caption is None else str(table.caption))


def test_a_shell_reads_an_environment_back() -> None:
    pairs = [["A", "$HOME `id` \\ it's"], ["B", "new\nline"]]
    assert shlex.split(as_typed(pairs)) == ["=".join(pair) for pair in pairs]
