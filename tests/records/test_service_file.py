"""The service file: what it may say, and that everything wrong with it is named at once (SPEC 6.2, 6.6, 7.8)."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.files.reading import missing_programs, read
from muster.files.service_file import ServiceFileError, parse, services_of
from muster.files.service_keys import KEYS, Key, Wrong, duration_ms
from muster.files.toml_lines import key_lines
from muster.records.durations import duration_text
from muster.records.service_limits import problem_of
from muster.records.services import Definition

NODES = ("n0", "n1", "n2")


def problems_of(text: str, nodes: tuple[str, ...] | None = NODES) -> list[str]:
    with pytest.raises(ServiceFileError) as caught:
        parse(text, "services.toml", nodes)
    return [str(problem) for problem in caught.value.problems]


def only_problem(body: str) -> str:
    """The one problem of a service with `body` beside its name, which stands on line 2."""
    (problem,) = problems_of(f'[[service]]\nname = "web"\n{body}\n')
    return problem


WHOLE = """
[[service]]
name = "web.front-1_a"
allowable_nodes = ["n0", "n1"]
disallowable_nodes = ["n2"]
node_preferences = {ordered = ["n1", "n0"]}
auto_register = "manual"
placement_policy = "register_on_one"
maturity_count = 2
maturity_time = "5m"
transfer_cost = "free"
siblings = 4
notify_command = "tell 'the others'"
recovery_command = "recover"
run = "/bin/serve 'two words' \\"$HOME\\""
ready = {port = 5432}
stop_command = ["/bin/stop", "two words"]
start_timeout = "500ms"
stop_timeout = "60s"
notify_timeout = "3s"
recovery_timeout = "2m"
start_retries = 1
stop_retries = 2
notify_retries = 3
recovery_retries = 0
retry_pause = "250ms"
environment = {PORT = "80", ADDRESS = "a b"}
stop_failure = "evict"
grace = "0s"
check = {command = "probe", interval = "1s", timeout = "5s", failures = "3/5"}
restarts = 0
restart_window = "1h"
on_failure = "page me"

[[service]]
name = "child"
parent = "web.front-1_a"
child_failure = "group"
start_command = "begin"

[[service]]
name = "other"
node_preferences = {unordered = ["n1"]}
transfer_cost = "costly"
run = ["serve"]
ready.file = "/run/ready"
check = {command = "probe", failures = 2}
"""


def test_every_key_reaches_the_definition() -> None:
    web, child, other = parse(WHOLE, "services.toml", NODES, {})
    assert web == Definition(
        name="web.front-1_a",
        allowable_nodes=("n0", "n1"),
        disallowable_nodes=("n2",),
        ordered=("n1", "n0"),
        auto_register=False,
        maturity_count=2,
        maturity_time_ms=300_000,
        free_transfer=True,
        siblings=4,
        notify_command=("tell", "the others"),
        recovery_command=("recover",),
        run=("/bin/serve", "two words", "$HOME"),
        ready_port=5432,
        stop_command=("/bin/stop", "two words"),
        start_timeout_ms=500,
        stop_timeout_ms=60_000,
        notify_timeout_ms=3000,
        recovery_timeout_ms=120_000,
        start_retries=1,
        stop_retries=2,
        notify_retries=3,
        retry_pause_ms=250,
        environment=(("ADDRESS", "a b"), ("PORT", "80")),
        stop_failure="evict",
        grace_ms=0,
        check_command=("probe",),
        check_interval_ms=1000,
        check_timeout_ms=5000,
        check_failures=3,
        check_of=5,
        restarts=0,
        restart_window_ms=3_600_000,
        on_failure=("page", "me"),
    )
    assert child == Definition("child", parent="web.front-1_a", child_failure="group", start_command=("begin",))
    assert other == Definition(
        "other",
        unordered=("n1",),
        run=("serve",),
        ready_file="/run/ready",
        check_command=("probe",),
        check_failures=2,
        check_of=2,
    )


def test_every_field_of_a_definition_can_be_set_in_a_file() -> None:
    set_by: dict[str, set[str]] = {}
    samples: dict[str, list[Any]] = {
        "node_preferences": [{"ordered": ["n0"]}, {"unordered": ["n0"]}],
        "ready": [{"port": 1}, {"file": "/f"}, {"command": "c"}, {"notify": True}],
        "limits": [{"nofile": 1024}],
        "check": [{"command": "c", "interval": "1s", "timeout": "1s", "failures": "1/2"}],
    }
    samples["check"][0] |= {"success_exit_status": [1], "unknown_exit_status": [3], "user": "root"}
    kinds: dict[str, Any] = {"duration": "1s", "number": 1, "list of nodes": ["n0"], "table of texts": {"A": "b"}}
    kinds |= {"name of a service": "other", "list of exit statuses": [5], "true or false": True}
    for key, entry in KEYS.items():
        for value in samples.get(key, [kinds.get(entry.kind, entry.kind.partition(" or ")[0].strip('"'))]):
            set_by.setdefault(key, set()).update(entry.read(value, None))
    assert set().union(*set_by.values()) == {field.name for field in msgspec.structs.fields(Definition)}


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
        ('node_preferences = {orderd = ["n0"]}', "unknown key 'orderd'", "did you mean 'ordered'?"),
        ('node_preferences = {ordered = ["n0"], unordered = ["n1"]}', "both an ordered and", "keep one"),
        ('node_preferences = {unordered = ["n9"]}', "unknown node 'n9'", "configured are"),
        (
            'allowable_nodes = ["n0"]\nnode_preferences = {ordered = ["n1"]}',
            "prefers node 'n1'",
            "allowable nodes only",
        ),
        ('auto_register = "yes"', "auto_register is 'yes'", '"manual"'),
        ('placement_policy = "register_on_some"', "placement_policy is 'register_on_some'", "register_on_all"),
        ("maturity_count = 0", "maturity_count is 0", "a whole number from 1"),
        ("maturity_count = true", "maturity_count is true", "a whole number"),
        ("maturity_count = 4", "only 3 nodes are allowable", "at most 3"),
        ('maturity_count = 2\nallowable_nodes = ["n0"]', "only 1 nodes are allowable", "at most 1"),
        ("maturity_time = 5", "maturity_time is 5", '"2m"'),
        ('transfer_cost = "cheap"', "transfer_cost is 'cheap'", '"free"'),
        ('parent = "no name"', "parent is 'no name'", "1 to 64"),
        ('parent = "web"', "its own parent", "another service"),
        ('parent = "db"\nallowable_nodes = ["n0"]', "allowable_nodes is given, and it has a parent", "set it for db"),
        ('parent = "db"\ndisallowable_nodes = ["n0"]', "goes where its parent goes", "leave disallowable_nodes out"),
        ('parent = "db"\nnode_preferences = {ordered = ["n0"]}', "node_preferences is given", "leave node_pref"),
        ('parent = "db"\nmaturity_count = 2', "maturity_count is given", "leave maturity_count out"),
        ('parent = "db"\nmaturity_time = "2s"', "maturity_time is given", "leave maturity_time out"),
        ('parent = "db"\ntransfer_cost = "free"', "transfer_cost is given", "leave transfer_cost out"),
        ('parent = "db"\nplacement_policy = "register_on_one"', "placed as its parent is", "set it for db"),
        ("siblings = -1", "siblings is -1", "from 0 to"),
        ('child_failure = "group"', "it has no parent", "leave it out"),
        ('environment = {MUSTER_NODE = "x"}', "'MUSTER_NODE'", "Muster's own"),
        ('environment = {"A B" = "x"}', "has the variable 'A B'", "letters, digits and underscores"),
        ("environment = {A = 1}", "gives A the value 1", "quotation marks"),
        ('environment = ["A=1"]', "environment is ['A=1']", "environment = {NAME"),
        ('environment = {A = "a\\u0000"}', "NUL", "no program"),
        ("start_retries = 1.5", "start_retries is 1.5", "a whole number"),
        ('stop_failure = "panic"', "stop_failure is 'panic'", '"evict"'),
        ('grace = "-1s"', "grace is '-1s'", "with its unit"),
        ('run = "a"\nstart_command = "b"', "both run and start_command", "keep one"),
        ("ready = {port = 80}", "ready is given, and there is nothing to start", "leave ready out"),
        ('run = "a"\nready = {port = 80, file = "/f"}', "more than one condition", "{port = 5432}"),
        ('run = "a"\nready = {}', "names no condition", "{port = 5432}"),
        ('run = "a"\nready = {port = 65536}', "has port, which is 65536", "from 1 to 65535"),
        ('run = "a"\nready = {file = "run/x"}', "has file, which is 'run/x'", "from the root"),
        ('run = "a"\nready = {notify = false}', "has notify, which is false", "leave ready out"),
        ('run = "a"\nready = "notify"', "ready is 'notify'", "{notify = true}"),
        ('check = {interval = "5s"}', "has no command", "{command ="),
        ('check = {command = "a", failures = "5/3"}', "has failures, which is '5/3'", "of the last n"),
        ('check = {command = "a", failures = 0}', "has failures, which is 0", "of the last n"),
        ('check = {command = "a", intervall = "5s"}', "unknown key 'intervall'", "did you mean 'interval'?"),
        ('restarts = "3"', "restarts is '3'", "a whole number"),
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


def of_group(*pairs: str) -> str:
    """A file of services `name<parent`, or `name` alone."""
    lines = []
    for pair in pairs:
        name, _, parent = pair.partition("<")
        lines += ["[[service]]", f'name = "{name}"'] + ([f'parent = "{parent}"'] if parent else [])
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("pairs", "what"),
    [
        (("a<b", "b<a"), ("3: service 'a': it has itself among its parents: a -> b -> a", "6: service 'b': it has")),
        (("a<b", "b<c", "c<b"), ("3: service 'a': it has itself", "6: service 'b': it has", "9: service 'c': it has")),
        (("a<nobody",), ("3: service 'a': its parent 'nobody' is not defined; define nobody too",)),
        (("a<nobody", "b<a"), ("3: service 'a': its parent 'nobody'",)),
        ((*(f"s{n}<s{n + 1}" for n in range(17)), "s17"), ("3: service 's0': its group has more than 16",)),
    ],
)
def test_groups_are_checked_as_a_whole(pairs: tuple[str, ...], what: tuple[str, ...]) -> None:
    with pytest.raises(ServiceFileError) as caught:
        parse(of_group(*pairs), "services.toml", NODES, {})
    found = [str(problem) for problem in caught.value.problems]
    expected = [f"services.toml:{each}" for each in what]
    shown = [text[: len(each)] for text, each in zip(found, expected, strict=False)]
    assert shown == expected
    assert len(found) == len(expected) or len(pairs) > 10


def test_a_parent_may_be_a_service_of_the_cluster_and_closes_a_circle_with_it() -> None:
    cluster = {"old": Definition("old"), "older": Definition("older", parent="new")}
    (child,) = parse(of_group("new<old"), "f", NODES, cluster)
    assert child.parent == "old"
    with pytest.raises(ServiceFileError, match="new -> older -> new"):
        parse(of_group("new<older"), "f", NODES, cluster)
    assert parse(of_group("new<unknown"), "f", NODES, None)  # where the cluster is not known, it may have it


def test_another_kind_of_file_reads_the_tables_and_adds_keys_of_its_own() -> None:
    def read(value: object, _nodes: object) -> dict[str, object]:
        if not isinstance(value, dict):
            raise Wrong("is no table", "write a table")
        return {"rehearsal": value}

    text = '[[service]]\nname = "a"\nrehearsal = {start = "2s"}\n[[service]]\nname = "b"\nrehearsal = 5\n[[step]]\n'
    added = {"rehearsal": Key(read, "table", "{}", "How long its commands take.")}
    tables, problems = services_of(tomllib.loads(text), key_lines(text), "f", NODES, {}, added)
    assert [(table.definition.name, table.added) for table in tables] == [("a", {"rehearsal": {"start": "2s"}})]
    assert [str(problem) for problem in problems] == ["f:6: service 'b': rehearsal is no table; write a table"]


@pytest.mark.parametrize(
    "fields",
    [
        {"unordered": ("n0", "n0")},
        {"ordered": ("n0",), "unordered": ("n1",)},
        {"maturity_count": -1},
        {"maturity_count": 2, "on_all": True, "allowable_nodes": ("n0",)},
        {"maturity_time_ms": 1 << 40},
        {"maturity_count": 2, "allowable_nodes": ("n0",)},
        {"parent": "two words"},
        {"parent": "web"},
        {"parent": "db", "free_transfer": True},
        {"parent": "db", "ordered": ("n0",)},
        {"siblings": -1},
        {"child_failure": "other", "parent": "db"},
        {"child_failure": "group"},
        {"notify_command": ("a\0",)},
        {"notify_timeout_ms": 0},
        {"start_retries": 1 << 20},
        {"retry_pause_ms": -5},
        {"environment": (("MUSTER_X", "1"),)},
        {"environment": (("A", "1"), ("A", "2"))},
        {"environment": tuple((f"A{n}", "") for n in range(300))},
        {"environment": (("A", "x" * 40_000),)},
        {"stop_failure": ""},
        {"grace_ms": -1},
        {"run": ("a",), "start_command": ("b",)},
        {"run": (" ",)},
        {"ready_port": 80},
        {"run": ("a",), "ready_port": 70_000},
        {"run": ("a",), "ready_port": 80, "ready_notify": True},
        {"run": ("a",), "ready_file": "here"},
        {"check_of": 101},
        {"check_failures": 3, "check_of": 2},
        {"restarts": -1},
        {"restart_window_ms": 0},
        {"on_failure": ("x" * 40_000,)},
    ],
)
def test_a_definition_that_comes_another_way_is_judged_by_the_same_rules(fields: dict[str, Any]) -> None:
    assert not problem_of(Definition("web"))
    what, _, allowed = problem_of(Definition("web", **fields)).partition(": ")
    assert what
    assert allowed


def test_what_a_file_may_say_may_also_come_another_way() -> None:
    assert [problem_of(definition) for definition in parse(WHOLE, "f", NODES, {})] == ["", "", ""]


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
