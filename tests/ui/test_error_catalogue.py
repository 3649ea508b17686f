"""Every command and every option refuses bad input with what, where and next, and the documented code (SPEC 7.8, 8.1).

The catalogue has two halves: what `errors.toml` lists, and what follows from the commands' own declarations, derived
here for every command there is, so that a new command or option is in it from its first day.
"""

import contextlib
import io
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from bad_input import clear
from dev_cluster import DevCluster
from muster.ui.command_line import main
from muster.ui.command_line import muster as program
from muster.ui.manual import EXIT_CODES, commands_of, reference
from muster.ui.parameter_types import Identity

CATALOGUE = Path(__file__).with_name("errors.toml")
DOCUMENTS = Path(__file__).parents[2] / "docs"
ERRORS: list[dict[str, Any]] = tomllib.loads(CATALOGUE.read_text())["error"]
CODES = {code for code, _ in EXIT_CODES}
CONNECTION = ("--dir", "--node", "--socket", "--timeout")
# Any text is good for these as far as the command line can tell: the cluster judges it (see the tests below).
JUDGED_BY_THE_CLUSTER = {
    *("name", "target", "value", "--cause", "--name", "--service", "--of-node", "--withdraw", "--register"),
    *("--deregister", "--transfer", "--clear", "--standby", "--active", "--end-maintenance", "--leave", "--lose"),
    *("--join", "--event", "file", "words", "command", "--space", "--prefix", "--after"),
    "--output",  # of config export, once the cluster has answered
    *(f"--on-{event}" for event in ("joining", "leaving", "forced-leaving", "planned")),
}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    output: str
    errors: str


def run(words: list[str]) -> Ended:
    """Run a command line in this process, which is a few hundred times cheaper than a process each."""
    output, errors = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return Ended(code, output.getvalue(), errors.getvalue())


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the user's chooses a cluster."""
    for name in ("MUSTER_DIR", "MUSTER_NODE", "MUSTER_SOCKET"):
        monkeypatch.delenv(name, raising=False)


def parts(ended: Ended) -> tuple[str, str, str]:
    """What, where and next of an error, which must be whole."""
    assert "Traceback" not in ended.errors, ended.errors
    found = re.search(r"(?ms)^muster: (.*?)\n  where: (.*?)\n  next:  (.*)\Z", ended.errors)
    assert found, ended
    return found[1], found[2], found[3]


@pytest.mark.parametrize("error", ERRORS, ids=[each["line"] for each in ERRORS])
def test_each_line_of_the_catalogue_ends_as_it_says(error: dict[str, Any], tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_bytes(b"\x00\x01 no sense [[[\n" * 400)

    def filled(text: str) -> str:
        return text.replace("{dir}", str(folder)).replace("{file}", str(file))

    ended = run(shlex.split(filled(error["line"]))[1:])
    assert ended.code == error["code"], ended
    assert ended.code in CODES
    for part, words in zip(parts(ended), (error["what"], error["where"], error["next"]), strict=True):
        assert filled(words) in part, ended.errors
    assert ended.output == ""
    assert list(folder.iterdir()) == []  # what is refused leaves nothing behind


# ---- what follows from the declarations ------------------------------------------------------------------------------


# What a command wants beyond what its declaration says.
WHOLE = {
    "maintenance begin": ("--service", "x"),
    "maintenance end": ("--service", "x"),
    "node restart-daemon": ("x",),
}


def commands() -> dict[str, click.Command]:
    """Every command that does something, by its words."""
    return {
        " ".join(words[1:]): context.command
        for words, context in commands_of(program)
        if not isinstance(context.command, click.Group)
    }


COMMANDS = commands()


def good_value(parameter: click.Parameter) -> str:
    """A value that the declaration accepts."""
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return str(kind.choices[0])
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        return str(kind.min if kind.min is not None else 1)
    return "1" if kind in (click.INT, click.FLOAT) else "x"


def required(command: click.Command, without: click.Parameter | None = None) -> list[str]:
    """The arguments and options that a command needs, but for one."""
    words: list[str] = []
    for parameter in command.params:
        if parameter.required and parameter is not without:
            words += [parameter.opts[0]] if isinstance(parameter, click.Option) else []
            words.append(good_value(parameter))
    return words


def bad_values(parameter: click.Parameter) -> Iterator[str]:
    """Values that the declaration refuses; none where any text is accepted."""
    kind = parameter.type
    if isinstance(kind, click.Choice):
        yield "none-such"
    if isinstance(kind, Identity):
        yield from ("", "a b", "a:b", "\N{SNOWMAN}", "x" * 65)
    if isinstance(kind, (click.types.IntParamType, click.types.FloatParamType, click.IntRange, click.FloatRange)):
        yield from ("soon", "", "1e999999x", "nan")
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        if kind.min is not None:
            yield str(kind.min - 1)
        if kind.max is not None:
            yield str(kind.max + 1)


def derived() -> Iterator[tuple[str, list[str], str]]:
    """Command, its words, and what the error must name."""
    for name, command in COMMANDS.items():
        yield name, [*required(command), "--no-such-option"], "--no-such-option"
        for parameter in command.params:
            option = parameter.opts[0] if isinstance(parameter, click.Option) else ""
            if parameter.required:
                yield name, required(command, parameter), option
            for value in bad_values(parameter):
                yield name, [*required(command, parameter), *filter(None, [option]), value], option
            if isinstance(parameter, click.Option) and not parameter.is_flag:
                yield name, [*required(command), option], option


DERIVED = list(derived())
DERIVED_NAMES = [f"{each[0]} {' '.join(each[1])}" for each in DERIVED]
WITH_CONNECTION = [name for name, each in COMMANDS.items() if any("--dir" in found.opts for found in each.params)]


@pytest.mark.parametrize(("name", "words", "named"), DERIVED, ids=DERIVED_NAMES)
def test_what_a_declaration_refuses_is_explained_with_its_usage(name: str, words: list[str], named: str) -> None:
    ended = run([*name.split(), *words])
    assert ended.code == 2, ended
    what, where, next_step = parts(ended)
    assert where == f"muster {name}"
    assert f"`muster {name} --help`" in next_step
    assert f"Usage: muster {name}" in next_step
    assert named.lower() in what.lower()


@pytest.mark.parametrize("name", WITH_CONNECTION)
def test_every_command_that_talks_to_a_node_explains_where_none_can_be_found(name: str, tmp_path: Path) -> None:
    command = COMMANDS[name]
    words = [*name.split(), *required(command), *WHOLE.get(name, ())]
    if name.startswith("debug"):
        words += ["--output", str(tmp_path / "x.tar.gz")]
    if name in ("node add", "node set-addresses"):
        words = [*name.split(), "n3", "127.0.0.1:7703"]
    if name == "apply":
        (tmp_path / "services.toml").write_text('[[service]]\nname = "x"\n')
        words = [name, str(tmp_path / "services.toml")]
    if name != "dev up":
        ended = run([*words, "--dir", str(tmp_path / "none")])
        assert ended.code == 2, ended
        where = parts(ended)[1]
        assert str(tmp_path / "none") in where or where == f"muster {name}"  # it may want something else first
    if not name.startswith(("dev", "profile", "subsystem", "watcher")):  # a subsystem waits for its node to come
        ended = run([*words, "--socket", str(tmp_path / "none.sock")])
        assert ended.code == 3, ended
        assert str(tmp_path / "none.sock") in ended.errors
        parts(ended)


# What prints for people only: programs that run on, pages and scripts, what makes a cluster or a machine's keys.
NO_DOCUMENT = {"init", "enrol", "man", "demo", "completion", "watcher run", "subsystem run", "lock run"}
WITH_A_TOKEN = {"node add", "node token"}  # shown once: repeating these makes another one, which is harmless


def test_every_query_and_every_change_answers_in_json_and_a_change_can_be_named() -> None:
    silent = {
        name
        for name, command in COMMANDS.items()
        if not name.startswith("dev ") and not any("--json" in each.opts for each in command.params)
    }
    assert silent == NO_DOCUMENT
    named = {name for name, command in COMMANDS.items() if any("--identity" in each.opts for each in command.params)}
    assert named == {
        *("apply", "config rollback", "config set", "upgrade finish", "authority rotate", "authority abandon"),
        *(f"service {verb}" for verb in ("register", "deregister", "transfer", "withdraw", "restart", "clear")),
        *(
            f"node {verb}"
            for verb in ("leave", "evict", "standby", "active", "drain", "restart-daemon", "remove", "set-addresses")
        ),
        *("service confirm-clean", "service confirm-stopped", "node confirm-clean"),
        *(f"fence {verb}" for verb in ("add", "remove", "method", "now", "release")),
        *("event enable", "event disable", "event withdraw", "maintenance begin", "maintenance end"),
    }
    assert not named & WITH_A_TOKEN


def test_every_option_that_takes_a_value_is_in_the_catalogue() -> None:
    listed: dict[str, set[str]] = {}
    for error in ERRORS:
        words = shlex.split(error["line"])[1:]
        name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        listed.setdefault(name, set()).update(word for word in words if word.startswith("--"))
        listed[name].add("(argument)")
    missing = []
    for name, command in COMMANDS.items():
        for parameter in command.params:
            option = max(parameter.opts, key=len)
            if getattr(parameter, "is_flag", False) or option in CONNECTION or option in JUDGED_BY_THE_CLUSTER:
                continue
            word = option if isinstance(parameter, click.Option) else "(argument)"
            if not any(True for _ in bad_values(parameter)) and word not in listed.get(name, set()):
                missing.append(f"muster {name} {option}")
    assert not missing, "add to tests/errors.toml a line in which its value is refused: " + ", ".join(missing)


def test_every_command_is_in_the_page_of_commands_and_says_what_the_code_says() -> None:
    page = (DOCUMENTS / "COMMANDS.md").read_text()
    assert page == reference(program), "docs/COMMANDS.md is not of these commands: run `make docs`"
    for code, meaning in EXIT_CODES:
        assert f"| {code} | {meaning} |" in page


# ---- what the cluster judges, and its documents ----------------------------------------------------------------------

UNKNOWN = [
    ("node leave none", "none"),
    ("node evict none", "none"),
    (f"node evict n0 --cause {'x' * 300}", "300 characters"),
    ("service show none", "there is no service 'none'"),
    ("service register none", "none"),
    ("service deregister none", "none"),
    ("service transfer none", "none"),
    ("service transfer sleeper none", "none"),
    ("service withdraw none", "none"),
    ("timeline 999999999", "999999999"),
    ("why none", "there is no service 'none'"),
    ("why sleeper none", "there is no node 'none'"),
    ("why sleeper --at 1", "no node that answers has a record"),
    ("dev kill none", "there is no node 'none'"),
    ("dev hang none", "there is no node 'none'"),
    ("dev resume none", "there is no node 'none'"),
    ("dev boot none", "there is no node 'none'"),
    ("dev leave none", "there is no node 'none'"),
    ("dev logs none", "there is no node 'none'"),
    ("status --node none", "there is no node 'none'"),
]

DOCUMENTED = {
    "status": "status",
    "services": "services",
    "service show sleeper": "service show",
    "transitions": "transitions",
    "node list": "node list",
    "links": "links",
    "timeline": "timeline",
    "history": "history",
    "why n0": "why",
    "service log sleeper": "service log",
    "why sleeper": "why",
    "plan --lose n0 --lose n1": "plan",
    "maintenance list": "maintenance list",
    "fence list": "fence list, fence history, fence test, fence now --dry-run, fence secret",
    "fence history": "fence list, fence history, fence test, fence now --dry-run, fence secret",
    "timeline --last": "timeline ID",
    "node show n0": "node show",
    "authority show": "authority show",
    "config history": "config history, config show, config diff",
    "config show": "config history, config show, config diff",
    "config diff 0": "config history, config show, config diff",
    "upgrade status": "upgrade status",
    "audit": "audit",
    "event list": "event list, event show, event history",
    "event history": "event list, event show, event history",
    "plan --leave n1": "plan",
    "upgrade finish": "every change",
    "profile show": "profile show",
    "dev ls": "dev ls",
}
ANSWERED_BY_NO_NODE = {"profile show", "dev ls"}


def test_names_that_the_cluster_does_not_know_and_the_form_of_its_documents(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    services = tmp_path / "services.toml"
    services.write_text('[[service]]\nname = "sleeper"\nstart_command = "sh -c \'sleep 1000 &\'"\n')
    dev_cluster.up(2, "--services", str(services))
    dev_cluster.wait_for("the service", lambda status: status["services"]["sleeper"]["state"] == "registered")
    for line, words in UNKNOWN:
        ended = dev_cluster.run(*line.split())
        assert words in clear(ended), line
        assert ended.returncode in {1, 2}, line
    dev_cluster.run("maintenance", "begin", "--service", "sleeper", "--cause", "its documents")
    dev_cluster.run("node", "standby", "n1")
    documented = documented_keys()
    wrong = []
    for line, title in DOCUMENTED.items():
        found = dev_cluster.json(*line.split())
        assert found["format"] == 1, line
        assert line in ANSWERED_BY_NO_NODE or documented["every answer"] <= found.keys(), line
        assert line in ANSWERED_BY_NO_NODE or (found["cluster"], found["node_state"]) == ("dev", "joined"), line
        unknown = keys_of(found) - documented[title] - documented["every answer"]
        wrong += [f"{title}: {key}" for key in sorted(unknown) if not below_open(key, documented[title])]
    assert not wrong, f"docs/JSON.md does not say what these mean: {wrong}"


def documented_keys() -> dict[str, set[str]]:
    """The keys of each section of docs/JSON.md: the first cell of its table's rows."""
    found: dict[str, set[str]] = {}
    title = ""
    for line in (DOCUMENTS / "JSON.md").read_text().splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ").replace("`", "")
            found[title] = set()
        elif line.startswith("| `"):
            found[title].update(re.findall(r"`([^`]+)`", line.split("|")[1]))
    return found


def below_open(key: str, documented: set[str]) -> bool:
    """Whether a key is below one that is documented as a whole, as `definition.*` is."""
    return any(each.endswith(".*") and key.startswith(each[:-1]) for each in documented)


NAMED = ("nodes", "services", "matrix", "members", "releases", "watchers", "keys", "changed", "stuck", "standby")


def keys_of(document: Any, path: str = "") -> set[str]:
    """The paths of all keys; NAME stands for what is named by people, [] for the elements of a list."""
    found: set[str] = set()
    match document:
        case dict():
            for key, value in document.items():
                named = path.rpartition(".")[2] in NAMED and isinstance(value, (dict, str, list, type(None)))
                below = f"{path}.{'NAME' if named else key}".lstrip(".")
                found |= {below} | keys_of(value, below)
        case list():
            for value in document:
                found |= keys_of(value, f"{path}[]")
    return found


def test_json_answers_without_a_cluster_carry_their_format(tmp_path: Path) -> None:
    assert run(["init", str(tmp_path / "s"), "--name", "c", "--nodes", "n0=127.0.0.1:7700", "--scope", "host",
                "--size", "1M", "--slots", "4", "--keys", str(tmp_path / "k")]).code == 0  # fmt: skip
    documented = documented_keys()
    for line, title in (
        (f"store show {tmp_path / 's'}", "store show"),
        (f"store check {tmp_path / 's'}", "store check"),
        ("profile show fast", "profile show"),
        (f"install --store /x --node n0 --root {tmp_path}", "install"),
    ):
        ended = run([*line.split(), "--json"])
        assert ended.code == 0, ended
        found = json.loads(ended.output)
        assert found["format"] == 1
        unknown = keys_of(found) - documented[title] - documented["every answer"]
        assert not [key for key in unknown if not below_open(key, documented[title])], title
