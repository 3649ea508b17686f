"""The service file: what it may say, and that everything wrong with it is named at once (SPEC 6.2, 6.6, 7.8)."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.records.toml_lines import key_lines
from muster.ui.service_file import ServiceFileError, duration_ms, duration_text, missing_programs, parse, read

NODES = ("n0", "n1", "n2")


def problems_of(text: str, nodes: tuple[str, ...] | None = NODES) -> list[str]:
    with pytest.raises(ServiceFileError) as caught:
        parse(text, "services.toml", nodes)
    return [str(problem) for problem in caught.value.problems]


def only_problem(body: str) -> str:
    """The one problem of a service with `body` beside its name, which stands on line 2."""
    (problem,) = problems_of(f'[[service]]\nname = "web"\n{body}\n')
    return problem


def test_every_key_reaches_the_definition() -> None:
    (definition,) = parse(
        """
        [[service]]
        name = "web.front-1_a"
        allowable_nodes = ["n0", "n1"]
        disallowable_nodes = ["n2"]
        node_preferences = {ordered = ["n1", "n0"]}
        auto_register = "manual"
        placement_policy = "register_on_one"
        start_command = "/bin/start 'two words' \\"$HOME\\""
        stop_command = ["/bin/stop", "two words"]
        recovery_command = "recover"
        start_timeout = "500ms"
        stop_timeout = "60s"
        recovery_timeout = "2m"
        """,
        "services.toml",
        NODES,
    )
    assert definition.name == "web.front-1_a"
    assert definition.allowable_nodes == ("n0", "n1")
    assert definition.disallowable_nodes == ("n2",)
    assert definition.ordered == ("n1", "n0")
    assert definition.auto_register is False
    assert definition.start_command == ("/bin/start", "two words", "$HOME")
    assert definition.stop_command == ("/bin/stop", "two words")
    assert definition.recovery_command == ("recover",)
    timeouts = (definition.start_timeout_ms, definition.stop_timeout_ms, definition.recovery_timeout_ms)
    assert timeouts == (500, 60_000, 120_000)


def test_a_name_is_enough_and_means_any_node_and_automatic_registration() -> None:
    (definition,) = parse('[[service]]\nname = "web"\n', "f", NODES)
    assert definition.allowable_nodes == ("*",)
    assert definition.auto_register is True
    assert definition.start_command == ()


def test_all_problems_are_reported_at_once_in_the_order_of_their_lines() -> None:
    found = problems_of(
        """# a comment with [[service]] in it
[[service]]
name = "web"
description = '''
name = "not a key"
'''
allowable_nodes = [
    "n0",  # name = "n9"
]
start_timeout = "fast"

[[service]]
name = "web"
auto_register = true

[service.node_preferences]
orderd = ["n0"]

[other]
x = 1
"""
    )
    assert [problem.partition(": ")[0].removeprefix("services.toml:") for problem in found] == [
        *("4", "10", "13", "14", "17", "19")
    ]
    assert "unknown key 'description'" in found[0]
    assert "start_timeout is 'fast'" in found[1]
    assert '"500ms"' in found[1]
    assert "is defined twice, first at line 3" in found[2]
    assert '"auto"' in found[3]
    assert "did you mean 'ordered'?" in found[4]
    assert "unknown table or key" in found[5]


@pytest.mark.parametrize(
    ("body", "what", "allowed"),
    [
        ('strt_command = "x"', "unknown key 'strt_command'", "did you mean 'start_command'?"),
        ("allowable_nodes = []", "allowable_nodes is empty", "at least one"),
        ('allowable_nodes = "n0"', "allowable_nodes is 'n0'", "a list of node names"),
        ('allowable_nodes = ["*", "n0"]', "mixes the wildcard", "name the nodes"),
        ('disallowable_nodes = ["*"]', "cannot take the wildcard", "name the nodes"),
        ('allowable_nodes = ["n0", "n0"]', "names 'n0' twice", "once"),
        ('allowable_nodes = ["node7"]', "unknown node 'node7'", "configured are n0, n1, n2"),
        ('disallowable_nodes = ["n0", "n1", "n2"]', "leaves it no node at all", "at least one"),
        ('node_preferences = ["n0"]', "node_preferences is ['n0']", "{ordered"),
        ('node_preferences = {unordered = ["n0"]}', "unknown key 'unordered'", "did you mean 'ordered'?"),
        (
            'allowable_nodes = ["n0"]\nnode_preferences = {ordered = ["n1"]}',
            "prefers node 'n1'",
            "allowable nodes only",
        ),
        ('disallowable_nodes = ["n1"]\nnode_preferences = {ordered = ["n1"]}', "forbids", "allowable nodes only"),
        ('auto_register = "yes"', "auto_register is 'yes'", '"manual"'),
        ('placement_policy = "register_on_all"', "placement_policy is 'register_on_all'", "register_on_one"),
        ('placement_policy = ["register_on_one"]', "placement_policy is", "register_on_one"),
        ("start_command = ''", "start_command is empty", "leave start_command out"),
        ("start_command = []", "start_command is empty", "leave start_command out"),
        ("start_command = [1]", "start_command is [1]", "list of words"),
        ('start_command = "sh -c \'x"', "cannot be split", "close the quotation"),
        ('start_command = "a\\u0000b"', "NUL", "no program"),
        ("stop_timeout = 5", "stop_timeout is 5", '"60s"'),
        ('stop_timeout = "0s"', "stop_timeout is '0s'", "more than nothing"),
        ('stop_timeout = "25h"', "stop_timeout is '25h'", "at most 24h"),
        ('stop_timeout = "5"', "stop_timeout is '5'", "with its unit"),
        ('stop_timeout = "-5s"', "stop_timeout is '-5s'", "with its unit"),
    ],
)
def test_a_wrong_value_names_its_line_its_key_and_what_is_allowed(body: str, what: str, allowed: str) -> None:
    problem = only_problem(body)
    assert problem.startswith(("services.toml:3: service 'web': ", "services.toml:4: service 'web': "))
    assert what in problem
    assert allowed in problem


@pytest.mark.parametrize("name", ['""', '"two words"', '"a/b"', '"é"', "7", f'"{"x" * 65}"', '"a\\n"'])
def test_names_are_limited(name: str) -> None:
    (problem,) = problems_of(f"[[service]]\nname = {name}\n")
    assert "services.toml:2" in problem
    assert "1 to 64 characters" in problem


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "services.toml: ", "defines no service"),
        ("[[service]]\n", "services.toml:1: service number 1", "has no name"),
        ('[service]\nname = "web"\n', "services.toml:1", "no list of tables"),
        ("service = 5\n", "services.toml:1", "no list of tables"),
        ('\n[[service]\nname = "web"\n', "services.toml:2", "TOML"),
        ('[[service]]\nname = "web"\nname = "web"\n', "services.toml:3", "TOML"),
        ('[[service]]\nname = "web', "services.toml:2", "TOML"),
    ],
)
def test_a_file_of_another_shape_is_explained(text: str, where: str, what: str) -> None:
    (problem,) = problems_of(text)
    assert problem.startswith(where)
    assert what in problem


def test_node_names_are_not_judged_where_the_cluster_is_not_known() -> None:
    (definition,) = parse('[[service]]\nname = "web"\nallowable_nodes = ["somewhere"]\n', "f", None)
    assert definition.allowable_nodes == ("somewhere",)


def test_an_unreadable_file_is_a_problem_like_any_other(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b'[[service]]\nname = "\xff"\n')
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    for path, what in (
        (tmp_path / "none", "cannot be read"),
        (tmp_path, "cannot be read"),
        (large, "larger than 4 MiB"),
    ):
        with pytest.raises(ServiceFileError, match=what):
            read(path)
    with pytest.raises(ServiceFileError, match=r"binary\.toml:2: the file: is not UTF-8"):
        read(binary)


def test_a_missing_program_is_named_and_is_no_error() -> None:
    text = '[[service]]\nname = "web"\nstart_command = "/nowhere/at/all x"\nstop_command = "sh -c true"\n'
    (warning,) = missing_programs(parse(text, "f"))
    assert "web" in warning
    assert "/nowhere/at/all" in warning


@given(st.integers(1, 24 * 3_600_000))
def test_a_duration_reads_back_as_it_was_written(milliseconds: int) -> None:
    assert duration_ms(duration_text(milliseconds)) == milliseconds


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")) | st.just("\n"), max_size=20)


@st.composite
def _documents(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """A TOML text with keys k0, k1, ... among strings and comments made to confuse, and the line of each key."""
    lines: list[str] = []
    expected: dict[str, int] = {}
    for number in range(draw(st.integers(1, 8))):
        lines += ["# " + draw(_TEXT).replace("\n", " ") for _ in range(draw(st.integers(0, 2)))]
        value = draw(_TEXT)
        basic = value.replace("\\", "\\\\").replace('"', '\\"')
        form = draw(st.integers(0, 4))
        if form == 0:
            text = '"' + basic.replace("\n", "\\n") + '"'
        elif form == 1:
            text = '"""' + basic + '"""'
        elif form == 2:
            text = "'" + value.replace("'", "").replace("\n", "") + "'"
        elif form == 3:
            text = "'''" + value.replace("'", "") + "'''"
        else:
            text = '[\n "' + basic.replace("\n", "\\n") + '", # ]\n {a = "}"},\n]'
        expected[f"k{number}"] = sum(line.count("\n") + 1 for line in lines) + 1
        lines.append(f"k{number} = {text}")
    return "\n".join(lines) + "\n", expected


@given(_documents())
def test_the_line_of_every_key_is_found_whatever_its_neighbours_contain(case: tuple[str, dict[str, int]]) -> None:
    text, expected = case
    assert set(tomllib.loads(text)) == set(expected)
    assert {str(place[0]): line for place, line in key_lines(text).items() if len(place) == 1} == expected
