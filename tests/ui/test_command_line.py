"""The command line: help, errors, exit codes, init and store commands; and processes of development clusters.

What runs daemons is in the tests of development clusters.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dev_cluster import CommandLine
from muster.client.errors import ClientError, Unreachable
from muster.dev import node_processes
from muster.dev.development_cluster import free_addresses
from muster.setup.initialisation import ClusterPlan, NodePlan, check_plan, parse_nodes
from muster.setup.nodes import Connection
from muster.ui.commands.demonstration import phases
from muster.ui.pages.screen import services_table

NODES = "n0=127.0.0.1:7700,n1=127.0.0.1:7701"
SMALL = ("--slots", "4", "--size", "1M", "--scope", "host")

COMMANDS = [
    [],
    *([name] for name in ("init", "status", "services", "transitions", "apply", "sim", "demo", "completion")),
    *(["node", *rest] for rest in ([], ["list"], ["leave"], ["evict"])),
    *(["service", *rest] for rest in ([], ["register"], ["deregister"], ["transfer"], ["withdraw"], ["show"])),
    *(["store", *rest] for rest in ([], ["show"], ["check"])),
    *(
        ["dev", *rest]
        for rest in ([], *([name] for name in ["up", "kill", "hang", "resume", "boot", "leave", "down", "ls", "logs"]))
    ),
]


def complete(message: str) -> bool:
    """Whether an error says what, where and next."""
    return "muster: " in message and "\n  where: " in message and "\n  next:  " in message


def test_no_two_options_of_a_command_share_a_name() -> None:
    """The value of one would be taken for that of the other, as --node for --of-node."""
    program = """
import click
from muster.ui.command_line import muster
def walk(command, path):
    names = [each.name for each in command.params]
    assert len(names) == len(set(names)), (path, names)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            walk(command.get_command(context, name), [*path, name])
walk(muster, ["muster"])
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_every_command_explains_itself() -> None:
    # in one process: a few dozen starts would take longer than they show
    program = f"""
import sys
from click.testing import CliRunner
from muster.ui.command_line import muster
for words in {COMMANDS!r}:
    result = CliRunner().invoke(muster, [*words, "--help"], prog_name="muster")
    assert result.exit_code == 0, (words, result.output, result.exception)
    assert "Usage: muster " + " ".join(words) in result.output, result.output
    assert result.output.count("\\n") > 5, result.output
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_query_imports_neither_tables_nor_cryptography_nor_asyncio() -> None:
    program = """
import sys
from click.testing import CliRunner
from muster.ui.command_line import muster
result = CliRunner().invoke(muster, ["services", "--json", "--socket", "/nowhere/control.sock"])
assert result.exit_code == 3, result.output
heavy = {"rich", "cryptography", "asyncio", "psutil", "tomllib"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status", "--json", "--socket", "/nowhere/control.sock"], 3),
        (["status", "--node", "n0"], 2),
        (["status", "--dir", "/nowhere"], 2),
        (["dev", "ls"], 2),
        (["dev", "up", "--nodes", "0", "--dir", "/nowhere/x"], 2),
        (["dev", "up", "--nodes", "99", "--dir", "/nowhere/x"], 2),
        (["dev", "up", "--dir", "/proc/x"], 1),
        (["dev", "kill", "n0", "--dir", "/nowhere"], 2),
        (["apply", "/nowhere/services.toml"], 2),
        (["store", "show", "/nowhere/store"], 1),
        (["store", "check", "/nowhere/store"], 1),
        (["sim", "--mutant", "none-such"], 2),
    ],
)
def test_an_error_says_what_where_and_next_and_ends_with_its_code(
    muster: CommandLine, arguments: list[str], code: int
) -> None:
    ended = muster.run(*arguments, MUSTER_DIR="", MUSTER_NODE="", MUSTER_SOCKET="")
    assert ended.returncode == code, ended.stderr
    assert complete(ended.stderr), ended.stderr
    assert ended.stdout == ""
    assert "\x1b" not in ended.stderr


def test_a_command_that_a_node_runs_for_a_service_talks_to_that_node(muster: CommandLine, tmp_path: Path) -> None:
    """Its variable MUSTER_NODE says where it runs; it is no wish for a node of a development cluster."""
    ended = muster.run("status", MUSTER_NODE="n0", MUSTER_NODE_HOME=str(tmp_path), MUSTER_DIR="", MUSTER_SOCKET="")
    assert ended.returncode == 3, ended.stderr
    assert str(tmp_path / "control.sock") in ended.stderr
    asked_for = muster.run("status", "--node", "n0", MUSTER_DIR="", MUSTER_SOCKET="")
    assert asked_for.returncode == 2
    assert "--node needs the directory" in asked_for.stderr


@pytest.mark.parametrize("arguments", [["sttus"], ["status", "--jsn"], ["dev", "kill"], ["completion", "tcsh"]])
def test_a_wrong_command_line_ends_with_2(muster: CommandLine, arguments: list[str]) -> None:
    ended = muster.run(*arguments)
    assert ended.returncode == 2
    assert "Usage: muster" in ended.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(muster: CommandLine, shell: str) -> None:
    assert "_MUSTER_COMPLETE" in muster.succeed("completion", shell)


def test_completion_offers_commands_and_the_nodes_of_a_development_cluster(muster: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text(json.dumps({"nodes": [{"name": "n0"}, {"name": "n1"}]}))
    ended = muster.run(
        _MUSTER_COMPLETE="bash_complete", COMP_WORDS="muster dev kill ", COMP_CWORD="3", MUSTER_DIR=str(tmp_path)
    )
    assert ended.stdout.split() == ["plain,n0", "plain,n1"]


# ---- init and store --------------------------------------------------------------------------------------------------


@pytest.fixture
def made(muster: CommandLine, tmp_path: Path) -> Path:
    """A small store with two nodes at `store`, its keys in `keys`; their directory."""
    muster.succeed(
        "init", str(tmp_path / "store"), "--name", "c", "--nodes", NODES, "--keys", str(tmp_path / "keys"), *SMALL
    )
    return tmp_path


def test_init_makes_a_store_and_private_keys_that_only_their_owner_reads(muster: CommandLine, made: Path) -> None:
    for name in ("authority", "n0", "n1"):
        folder = made / "keys" / name
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
        assert "BEGIN CERTIFICATE" in (folder / "certificate.pem").read_text()
    store = (made / "store").read_bytes()
    for name in ("authority", "n0", "n1"):
        secret = (made / "keys" / name / "key.pem").read_text().splitlines()[1]
        assert secret.encode() not in store
    shown = muster.json("store", "show", str(made / "store"))
    assert shown["cluster"] == "c"
    assert [node["name"] for node in shown["journal"]["nodes"]] == ["n0", "n1"]
    assert muster.json("store", "check", str(made / "store"))["findings"] == []
    assert "cluster c " in muster.succeed("store", "show", str(made / "store"))
    assert "no damage" in muster.succeed("store", "check", str(made / "store"))


def test_init_refuses_to_overwrite_and_says_what_is_there(muster: CommandLine, made: Path) -> None:
    before = (made / "store").read_bytes()
    again = ("init", str(made / "store"), "--name", "other", "--nodes", NODES, "--keys", str(made / "keys2"), *SMALL)
    ended = muster.run(*again)
    assert ended.returncode == 1
    assert "cluster c with 2 nodes" in ended.stderr
    assert "--force" in ended.stderr
    assert complete(ended.stderr)
    assert (made / "store").read_bytes() == before
    assert not (made / "keys2").exists()
    muster.succeed(*again, "--force")
    assert muster.json("store", "show", str(made / "store"))["cluster"] == "other"


def test_init_refuses_to_replace_keys(muster: CommandLine, made: Path) -> None:
    key = (made / "keys" / "n0" / "key.pem").read_text()
    arguments = ("init", str(made / "second"), "--name", "c", "--nodes", NODES, "--keys", str(made / "keys"), *SMALL)
    ended = muster.run(*arguments)
    assert ended.returncode == 1
    assert complete(ended.stderr)
    assert (made / "keys" / "n0" / "key.pem").read_text() == key
    assert not (made / "second").exists()


def test_what_is_no_store_is_refused_by_init_and_explained_by_show(muster: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_bytes(b"precious data" * 1000)
    ended = muster.run("init", str(path), "--name", "c", "--nodes", NODES, "--keys", str(tmp_path / "keys"), *SMALL)
    assert ended.returncode == 1
    assert complete(ended.stderr)
    assert path.read_bytes() == b"precious data" * 1000
    assert not (tmp_path / "keys").exists()
    ended = muster.run("store", "show", str(path))
    assert ended.returncode == 1
    assert complete(ended.stderr)


def test_a_damaged_store_fails_its_check_with_the_place(muster: CommandLine, made: Path) -> None:
    with (made / "store").open("r+b") as file:
        file.seek(2 * 4096)
        file.write(b"\xff" * 512)
    ended = muster.run("store", "check", str(made / "store"), "--json")
    assert ended.returncode == 1, ended.stderr
    findings = json.loads(ended.stdout)["findings"]
    assert any(finding["offset"] == 2 * 4096 and finding["advice"] for finding in findings)


@pytest.mark.parametrize(
    ("options", "slots", "words"),
    [
        (("--size", "64M"), 16, "it has slots for 16 nodes; 256 take 1024M"),
        (("--size", "200M"), 32, "it has slots for 32 nodes; 256 take 1024M"),
        (("--size", "1G"), 256, "it has slots for 256 nodes"),
        (("--slots", "256", "--size", "64M"), 256, "it has slots for 256 nodes"),
        (("--size", "1G", "--active-version", "3"), 16, "it has slots for 16 nodes"),
    ],
)
def test_p11_7_init_makes_as_many_slots_as_there_is_room_for_and_says_so(
    muster: CommandLine, tmp_path: Path, options: tuple[str, ...], slots: int, words: str
) -> None:
    path = tmp_path / "store"
    made = ("init", str(path), "--name", "c", "--nodes", NODES, "--keys", str(tmp_path / "keys"), "--scope", "host")
    assert words in muster.succeed(*made, *options)
    shown = muster.json("store", "show", str(path))
    assert len(shown["slots"]) == slots
    assert shown["highest_format"] == (1 if slots == 16 else 2)
    if "1G" in options and slots == 256:
        assert path.stat().st_blocks * 512 < 80 << 20  # a file fills only as far as there are nodes
    assert muster.json("store", "check", str(path))["findings"] == []


def test_p9_3_a_store_that_its_nodes_alone_would_fill_is_not_made(muster: CommandLine, tmp_path: Path) -> None:
    nodes = ",".join(f"n{number}=127.0.0.1:{7700 + number}" for number in range(40))
    made = ("init", str(tmp_path / "store"), "--name", "c", "--nodes", nodes, "--keys", str(tmp_path / "keys"))
    ended = muster.run(*made, "--slots", "64", "--size", "64M", "--scope", "host")
    assert ended.returncode == 2, ended.stderr
    assert "40 nodes alone would fill" in ended.stderr
    assert "--size" in ended.stderr
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "keys").exists()
    muster.succeed(*made, "--slots", "64", "--size", "256M", "--scope", "host")


def test_p11_7_init_for_older_releases_makes_a_store_that_they_know(muster: CommandLine, tmp_path: Path) -> None:
    made = ("init", str(tmp_path / "store"), "--name", "c", "--nodes", NODES, "--keys", str(tmp_path / "keys"))
    ended = muster.run(*made, "--slots", "41", "--active-version", "3")
    assert ended.returncode == 2
    assert "choose 1 to 40" in ended.stderr


def test_a_failed_init_leaves_no_keys_behind(muster: CommandLine, tmp_path: Path) -> None:
    arguments = ("init", str(tmp_path / "store"), "--name", "c", "--nodes", NODES, "--keys", str(tmp_path / "keys"))
    ended = muster.run(*arguments, "--slots", "40", "--size", "64K", "--scope", "host")
    assert ended.returncode == 2, ended.stderr
    assert complete(ended.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("nodes", "what"),
    [
        ("n0", "no address"),
        ("n0=somewhere", "no address"),
        ("n0=h:0", "no address"),
        ("n0=h:70000", "no address"),
        ("n 0=h:1", "cannot be"),
        ("=h:1", "cannot be"),
        ("n0=h:1,n0=h:2", "two nodes are called"),
        ("n0=h:1,n1=h:1", "same address"),
        ("authority=h:1", "authority"),
        (",".join(f"n{number}=h:{number + 1}" for number in range(17)), "do not fit"),
    ],
)
def test_bad_nodes_are_named(nodes: str, what: str) -> None:
    with pytest.raises(ClientError, match=what):
        check_plan(ClusterPlan("c", parse_nodes(nodes), "fast", "host"))


def test_several_links_and_ipv6_addresses_are_understood() -> None:
    (plan,) = parse_nodes("n0=10.0.0.1:7700+[2001:db8::1]:7700")
    assert plan == NodePlan("n0", ("10.0.0.1:7700", "[2001:db8::1]:7700"))


# ---- the service file on the command line ----------------------------------------------------------------------------


def test_dev_up_checks_the_service_file_before_it_makes_anything(muster: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "services.toml"
    file.write_text('[[service]]\nname = "web"\nallowable_nodes = ["n5"]\n')
    directory = tmp_path / "cluster"
    ended = muster.run("dev", "up", "--nodes", "3", "--dir", str(directory), "--services", str(file))
    assert ended.returncode == 2
    assert f"{file}:3" in ended.stderr
    assert "unknown node 'n5'" in ended.stderr
    assert not directory.exists()


# ---- directories of development clusters -----------------------------------------------------------------------------


def test_dev_up_takes_no_directory_that_holds_something_else(muster: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    ended = muster.run("dev", "up", "--dir", str(tmp_path))
    assert ended.returncode == 1
    assert "thesis.txt" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_ports_of_a_development_cluster_differ_and_are_free() -> None:
    addresses = free_addresses(40)
    assert len(set(addresses)) == 40


# ---- processes of a node, found and signalled ------------------------------------------------------------------------

_FAMILY = """
import subprocess, sys, time
# one that lost its environment and has its parent; one that lost its parent and has its environment
subprocess.Popen(["sleep", "600"], env={}, start_new_session=True)
script = 'sleep 600 & echo $! > "$0.new"; mv "$0.new" "$0"'
subprocess.run(["sh", "-c", script, sys.argv[1] + "/orphan"], check=True)
time.sleep(600)
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Path]:
    """A stand-in for a node: a parent, a child without environment, an orphan; the directory of the node."""
    environment = os.environ | {node_processes.COOKIE: str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", _FAMILY, str(tmp_path)], env=environment)
    try:
        until(lambda: (tmp_path / "orphan").exists() and len(node_processes.processes_of(tmp_path)) == 3)
        (tmp_path / "guard.json").write_text(json.dumps({"pid": parent.pid}))
        yield tmp_path
    finally:
        node_processes.kill_all(tmp_path, 10)
        parent.kill()
        parent.wait()


def until(holds: Callable[[], Any], timeout_s: float = 20.0) -> None:
    """Poll until `holds`; fail when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_everything_that_a_node_runs_is_found_guard_first(family: Path) -> None:
    found = node_processes.processes_of(family)
    assert found[0].pid == json.loads((family / "guard.json").read_text())["pid"]
    assert int((family / "orphan").read_text()) in {process.pid for process in found}
    assert len(found) == 3


def test_a_power_cut_leaves_nothing_of_a_node(family: Path) -> None:
    found = node_processes.processes_of(family)
    assert node_processes.kill_all(family, 10) == []
    assert node_processes.processes_of(family) == []
    assert not any(node_processes.send(process, signal.SIGCONT) for process in found)


def test_hang_and_resume_reach_everything_that_a_node_runs(family: Path) -> None:
    assert all(process.stopped for process in node_processes.stop_all(family))
    assert len(node_processes.processes_of(family)) == 3
    assert not any(process.stopped for process in node_processes.continue_all(family))
    assert len(node_processes.processes_of(family)) == 3


def test_a_pid_that_belongs_to_another_process_by_now_is_not_signalled(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as bystander:
        try:
            (tmp_path / "guard.json").write_text(json.dumps({"pid": bystander.pid}))
            assert node_processes.processes_of(tmp_path) == []
            stale = node_processes.NodeProcess(bystander.pid, os.getpid(), "S", 1)
            assert not node_processes.send(stale, signal.SIGKILL)
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_a_node_of_another_directory_is_not_touched(family: Path, tmp_path: Path) -> None:
    other = tmp_path.with_name(tmp_path.name + "-other")  # one name is the beginning of the other
    other.mkdir()
    try:
        assert node_processes.processes_of(other) == []
        assert node_processes.kill_all(other, 1) == []
        assert len(node_processes.processes_of(family)) == 3
    finally:
        shutil.rmtree(other)


# ---- which node answers ----------------------------------------------------------------------------------------------


def test_without_any_node_the_error_names_each_that_was_tried(tmp_path: Path) -> None:
    connection = Connection({"n0": tmp_path / "a.sock", "n1": tmp_path / "b.sock"}, 1.0)
    with pytest.raises(Unreachable) as caught:
        connection.query("status")
    assert "n0: " in caught.value.where
    assert "n1: " in caught.value.where


# ---- the demonstration's arithmetic ----------------------------------------------------------------------------------


def test_the_phases_of_an_outage_add_up_to_it() -> None:
    events = [
        {"at_us": 1_020, "event": "link lost"},
        {"at_us": 1_600, "event": "proof of death"},
        {"at_us": 1_610, "event": "transition opened"},
        {"at_us": 1_640, "event": "transition done"},
        {"at_us": 1_700, "event": "service registered"},
    ]
    expected = [("detection", 20), ("proof", 580), ("levels", 40), ("start", 60), ("answer", 5)]
    assert phases(1_000, 1_705, events) == expected
    assert phases(1_000, 1_690, events) == [*expected[:3], ("start", 50)]  # answered before the start was committed
    nothing = [("detection", 0), ("proof", 0), ("levels", 0)]
    assert phases(1_000, 1_500, []) == [*nothing, ("start", 500)]


WIDE = """
from muster.ui.pages.screen import console, _table
table = _table("NODE", "CAUSE")
table.add_row("n0", "word " * 40 + "end")
table.add_row("n1", "")
console().print(table)
"""


def test_a_row_is_one_line_for_a_program_and_no_column_vanishes_where_it_is_narrow() -> None:
    def shown(**environment: str) -> list[str]:
        given = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | environment
        command = [sys.executable, "-c", WIDE]
        return subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout.splitlines()

    assert [line.split()[0] for line in shown()] == ["NODE", "n0", "n1"]
    assert shown()[1].endswith("word end")
    for columns in ("0", "1", "20", "-5", "abc"):
        lines = shown(COLUMNS=columns)
        assert all(line == line.rstrip() for line in lines)
        assert lines[1].startswith("n0    word word")


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["--dir", "/typed", "status"], "/typed"),
        (["status", "--dir", "/typed"], "/typed"),
        (["--socket", "/typed.sock", "status"], "/typed.sock"),
        (["--dir", "/first", "status", "--dir", "/typed"], "/typed"),
    ],
)
def test_what_is_typed_counts_more_than_a_variable_wherever_it_stands(
    muster: CommandLine, words: list[str], where: str
) -> None:
    for socket in ("", "/variable.sock"):
        text = muster.run(*words, MUSTER_DIR="/variable", MUSTER_SOCKET=socket).stderr
        assert where in text
        assert "variable" not in text


def test_what_is_no_socket_is_named_as_such(muster: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file"):
        ended = muster.run("status", "--socket", str(path))
        assert (ended.returncode, "that is no socket" in ended.stderr) == (3, True)
    ended = muster.run("status", "--socket", "")
    assert (ended.returncode, "it is empty" in ended.stderr) == (2, True)


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `muster` is the program; its status is that of the first part of a pipe."""
    made = f'muster() {{ {sys.executable} -m muster.ui.command_line "$@"; }}; {line}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(["bash", "-c", made], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", ["--help", "service schema", "profile show fast", "profile show --json fast"])
def test_a_reader_that_goes_or_never_was_is_no_failure(command: str) -> None:
    for line in (f"muster {command} | head -c 1", f"muster {command} | true", f"muster {command} >&-"):
        ended = shell(line)
        assert (ended.returncode, ended.stderr) == (0, ""), line
    assert shell("muster service show x --socket /nowhere 2>&-").returncode == 3
    assert shell(f"muster {command} <&- | cat").returncode == 0


# ---- services --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "cause"),
    [
        ({"state": "registered", "flags": [], "wanted": True}, ""),
        ({"state": "de-registered", "flags": [], "wanted": False}, "not wanted: muster service register web"),
        ({"state": "de-registered", "flags": ["M"], "wanted": True}, "awaits maturity: muster why web@n0"),
        ({"state": "de-registered", "flags": [], "wanted": True}, "waits: muster why web@n0"),
        ({"state": "de-registered", "flags": [], "wanted": True, "cause": "start failed"}, "start failed"),
    ],
)
def test_a_service_that_is_down_always_shows_what_to_do(service: dict[str, Any], cause: str) -> None:
    table = services_table({"services": {"web@n0": {"cause": "", "node": None, **service}}})
    assert [str(cell) for cell in table.columns[-1].cells] == [cause]
