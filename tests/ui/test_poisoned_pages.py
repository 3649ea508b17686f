"""Every command prints what is clean, whatever stands in the records of the cluster (P10.8).

The commands are those of the command table: a new one is walked from its first day, or this test fails. Each gets the
answers of a real node in which every text ends in what would steer a terminal and forge a line, as a user, the output
of a service or another node could have it. The standard streams, the second net, are not cleaned here.
"""

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import click
import pytest
from test_error_catalogue import COMMANDS, WITH_CONNECTION, Ended, required, run

from dev_cluster import DevCluster
from muster.client import control as client
from muster.client.control import ControlClient
from muster.client.errors import ClientError
from muster.drivers.store.disk.geometry import new_header
from muster.drivers.store.disk.store import create_store
from muster.drivers.store.identity import Scope
from muster.records.database import encode_database, initial_database
from muster.records.levels import Level, NodeState
from muster.records.members import Member
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import Definition, Service, ServiceState
from muster.ui import options as connection
from muster.ui.commands import locks

FORGED = "muster: FORGED"
POISON = f"\x1b]0;PWNED\x07\x1b[2J\x1b[31mred\x9b2J\u202eevil\u2066\x00\r\n{FORGED}"
STEERING = set("\x1b\x07\x9b\x00\r\u202e\u2066")
CLUSTER_ID = bytes(range(16))
Answer = Callable[[ControlClient, dict[str, Any], float], Any]

# What a command wants beyond its declaration, to get to its page.
WORDS: dict[str, tuple[str, ...]] = {
    "apply": ("{file}",),
    "config diff": ("0", "1"),
    "config rollback": ("1",),
    "config set": ("observer_group", "staff"),
    "debug bundle": ("--output", "{folder}/{name}.tar.gz"),
    "event show": ("tick",),
    "fence add": ("pdu", "--agent", "fence_x", "--unchecked"),
    "maintenance begin": ("--service", "web"),
    "maintenance end": ("--service", "web"),
    "node add": ("n9", "127.0.0.1:7709"),
    "node remove": ("n1",),
    "node restart-daemon": ("n1",),
    "node set-addresses": ("n1", "127.0.0.1:7709"),
    "plan": ("--leave", "n1"),
}
# Commands that ask no node: what they print is of the one who runs them, of a file that he names, or tested elsewhere.
NO_ANSWER = {
    *("completion", "demo", "enrol", "init", "install", "man", "rehearse", "service schema", "sim", "uninstall"),
    *(
        "store adopt",
        "store backup",
        "store check",
        "store restore",
        "store show",
    ),  # the store's records: the test below
    *("lock run", "lock show", "lock break"),  # they ask the lock process: the test below
    *("subsystem run", "watcher run"),  # by `muster.client`, which hands texts to programs and prints none
    *("dev add", "dev remove"),  # they start and end processes
    *("dev boot", "dev down", "dev hang", "dev kill", "dev logs", "dev resume", "dev up", "profile show"),
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[DevCluster]:
    """Two joined nodes with something of every kind."""
    with tempfile.TemporaryDirectory(prefix="muster-test-", ignore_cleanup_errors=True) as base:
        dev = DevCluster(Path(base) / "cluster")
        file = Path(base) / "services.toml"
        file.write_text(
            '[[service]]\nname = "web"\nrun = ["/bin/sleep", "1000"]\nnotify_command = ["/bin/true"]\n'
            '[[service]]\nname = "odd"\nstart_command = ["/bin/false"]\n'
            '[[event_group]]\nname = "g"\n[[event_group.event]]\nname = "tick"\nwatcher = "timer"\n'
            'in = {interval = "300ms"}\naction = ["/bin/echo", "{out.time}"]\n'
        )
        try:
            dev.up(2)
            dev.succeed("apply", str(file))
            dev.succeed("maintenance", "begin", "--service", "web", "--cause", "a test")
            dev.succeed("node", "standby", "n1", "--cause", "a test")
            dev.wait_for("odd has failed", lambda status: bool(status["services"]["odd"]["cause"]))
            yield dev
        finally:
            if (dev.directory / "cluster.json").exists():
                dev.down()


def poisoned(found: Any, key: str = "") -> Any:
    """A document whose texts are poisoned, names that are keys by another one beside them."""
    if isinstance(found, str):
        return found if found in NAMES or key in WORDS_OF_OURS else found + POISON
    if isinstance(found, list):
        return [poisoned(each, key) for each in found] or []
    if isinstance(found, dict):
        made = {name: poisoned(value, name) for name, value in found.items()}
        if made and all(isinstance(value, dict) for value in made.values()):
            made[f"zzz{POISON}"] = next(iter(made.values()))
        return made
    return found


def words_for(name: str, folder: Path) -> list[str]:
    """The command line that gets to the page of a command."""
    command = COMMANDS[name]
    if name in WORDS:
        return [
            *name.split(),
            *(word.format(file=folder / "s.toml", folder=folder, name=time.monotonic_ns()) for word in WORDS[name]),
        ]
    known: dict[object, str] = {
        connection.complete_nodes: "n1", connection.complete_services: "web", connection.complete_groups: "g",
    }  # fmt: skip
    words = name.split()
    for parameter in command.params:
        if isinstance(parameter, click.Argument) and (parameter.required or parameter._custom_shell_complete):
            words.append(known.get(parameter._custom_shell_complete, "x"))
    return words if len(words) > len(name.split()) else [*name.split(), *required(command)]


MOMENT_S = 0.01  # who looks at processes pauses for less, for each on this machine that is being executed just now


def walk(name: str, nodes: DevCluster, folder: Path, answer: Answer, *more: str) -> tuple[Ended, int]:
    """Run a command with these answers, for a bounded time; how it ended, and how many answers it was given."""
    given = 0
    slept, real_sleep = 0, time.sleep

    def call(self: ControlClient, request: dict[str, Any], deadline: float) -> Any:
        nonlocal given
        given += 1
        return answer(self, request, deadline)

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds > MOMENT_S
        if slept > 20:
            raise KeyboardInterrupt
        real_sleep(min(seconds, 0.02))

    (folder / "s.toml").write_text('[[service]]\nname = "new"\nstart_command = ["/bin/true"]\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.ControlClient, "_call", call)
        patch.setattr(time, "sleep", sleep)
        ended = run([*words_for(name, folder), "--dir", str(nodes.directory), *more])
    return ended, given


def assert_clean(name: str, ended: Ended) -> None:
    """Nothing steers a terminal, and no line of ours is forged."""
    for text in (ended.output, ended.errors):
        assert not STEERING & set(text), f"{name}: {text!r}"
        assert not re.search(f"^{FORGED}", text, re.MULTILINE), f"{name} lets a text forge a line: {text}"


NAMES = {"dev", "n0", "n1", "web", "odd", "g", "tick"}  # by which pages look things up; see the keys of `poisoned`
WORDS_OF_OURS = {"change"}  # no page prints another one
ORIGINAL = client.ControlClient._call


def answered(self: ControlClient, request: dict[str, Any], deadline: float) -> Any:
    """A node's true answer, poisoned; an operation is not carried out."""
    if "operation" in request:
        head = {"cluster": "dev", "index": 9, "node": "n0", "node_state": "joined", "identity": request["identity"]}
        return poisoned({**head, "outcome": "done"})
    return poisoned(ORIGINAL(self, request, deadline))


def refused(_self: ControlClient, _request: dict[str, Any], _deadline: float) -> Any:
    """A node's refusal, poisoned."""
    raise ClientError(f"what{POISON}", f"where{POISON}", f"next{POISON}")


def flags(name: str) -> list[str]:
    """The options of a command that take no value, each of which may lead to another page."""
    return [parameter.opts[0] for parameter in COMMANDS[name].params if getattr(parameter, "is_flag", False)]


def test_p10_8_every_command_is_walked_or_asks_no_node() -> None:
    assert COMMANDS.keys() >= NO_ANSWER
    assert COMMANDS.keys() - set(WITH_CONNECTION) <= NO_ANSWER, "say above why they print nothing of a cluster"


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - NO_ANSWER))
def test_p10_8_what_a_command_prints_of_a_poisoned_cluster_is_clean(
    name: str, nodes: DevCluster, tmp_path: Path
) -> None:
    ended, given = walk(name, nodes, tmp_path, answered)
    assert given, f"muster {name} has asked no node, so its page was not walked: {ended}"
    for flag in ("", *flags(name)):
        ended, _ = walk(name, nodes, tmp_path, answered, *filter(None, (flag,)))
        assert "Traceback" not in ended.errors, ended.errors
        assert_clean(f"{name} {flag}", ended)
    for more in ((), ("--json", "--yes")):
        ended, _ = walk(name, nodes, tmp_path, refused, *(word for word in more if word in flags(name)))
        assert_clean(name, ended)


@pytest.mark.parametrize("name", sorted(name for name in COMMANDS.keys() - NO_ANSWER if "--json" in flags(name)))
def test_p10_8_json_of_a_poisoned_cluster_steers_nothing_and_keeps_everything(
    name: str, nodes: DevCluster, tmp_path: Path
) -> None:
    ended, given = walk(name, nodes, tmp_path, answered, "--json", *({"--yes"} & set(flags(name))))
    assert given
    assert_clean(name, ended)
    if ended.code == 0:
        documents = [ended.output] if ended.output.startswith("{\n") else ended.output.splitlines()
        found = json.dumps([json.loads(each) for each in documents])
        assert FORGED in found or name == "debug bundle", f"{name}: texts are not kept as they are"


class LockProcess:
    """Answers as a node's lock process does, poisoned."""

    spaces = ("orders",)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, **_wanted: object) -> Any:
        """One lock, whose holder and waiter have chosen their names."""
        lock = {
            "lock": 1, "mode": "EX", "wants": "PR", "token": [1, 2], "for_s": 1.5, "holder": "sh", "process": 7,
            "user": 0, "connected": False, "node": "n0",
        }  # fmt: skip
        resource = {
            "space": "orders", "name": "42", "master": "n0", "value": "00", "valid": True, "token": [1, 2],
            "frozen": False, "holders": [lock], "waiters": [lock],
        }  # fmt: skip
        return poisoned({"locks": [resource], "more": True, "after": "orders:42", "unanswered": ["n1"]})

    def break_holders(self, *_named: str, confirmed_dead: bool) -> Any:
        """It is to end, or taken for dead."""
        return poisoned({"holders": [f"n0: sh {confirmed_dead}"], "unanswered": ["n1"]})


@pytest.mark.parametrize(
    "words", ["lock show", "lock show 42", "lock break 42", "lock break 42 --holder-confirmed-dead"]
)
def test_p10_8_what_is_locked_by_programs_with_poisoned_names_is_shown_clean(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_connected", LockProcess)
    for more in ((), ("--json",)):
        ended = run([*words.split(), *more])
        assert ended.code == 0, ended
        assert "42" in ended.output or "sh" in ended.output
        assert_clean(words, ended)


def test_p10_8_what_the_commands_about_a_store_print_of_it_is_clean(tmp_path: Path) -> None:
    nodes = tuple(NodeConfig(node, f"n{node}{POISON}", (f"127.0.0.1:1{POISON}",), "") for node in range(2))
    cluster = Cluster(f"c{POISON}", CLUSTER_ID.hex(), "fast", "")
    database = initial_database(cluster, nodes)
    level = Level(30, f"locks{POISON}")
    database.members[0] = Member(0, NodeState.JOINED, 5, (level,), refusal=POISON)
    definition = Definition(f"web{POISON}", start_command=(f"/bin/x{POISON}",))
    database.services["web"] = Service(definition, 9, ServiceState.STARTING, cause=POISON, reason=POISON)
    path = tmp_path / "store"
    create_store(
        str(path), new_header(CLUSTER_ID, "c", Scope.HOST, slots=2, store_bytes=8 << 20), encode_database(database)
    )
    backup, another = str(tmp_path / "backup"), str(tmp_path / "another")
    commands: list[tuple[str, ...]] = [(word, str(path)) for word in ("show", "check")]
    commands += [("backup", str(path), "--output", backup), ("restore", backup, another)]
    commands += [("restore", backup, another, "--yes"), ("show", another)]
    for words in (as_given for each in commands for as_given in (each, (*each, "--json"))):
        ended = run(["store", *words])
        assert "Traceback" not in ended.errors, ended
        assert_clean(f"store {words}", ended)
