"""Bad input of every kind, end to end: a clear error, nothing lost, the running cluster undisturbed (SPEC 7.8).

One cluster of three real nodes runs a service throughout the file. "Undisturbed" is: the same master, term and
incarnations, and the very same process of the service, still at work.
"""

import contextlib
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bad_input import COUNTER, DEADLINE_S, Running, clear, refused, until
from dev_cluster import CommandLine, DevCluster
from muster.client.errors import ClientError
from muster.dev import node_processes
from muster.dev.development_cluster import open_cluster


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Three nodes; the service runs on n1, the master is n0 unless another was faster."""
    base = tmp_path_factory.mktemp("bad-input")
    cluster = Running(base / "cluster")
    program = base / "counter.py"
    program.write_text(COUNTER)
    command = json.dumps([sys.executable, "-I", "-S", str(program), str(cluster.counter)])
    file = base / "services.toml"
    file.write_text(
        f'[[service]]\nname = "counter"\nstart_command = {command}\n'
        'node_preferences = { ordered = ["n1", "n0"] }\nallowable_nodes = ["n0", "n1"]\n'
    )
    try:
        cluster.up(3, "--services", str(file))
        registered = "registered"
        cluster.wait_for("the service", lambda status: status["services"]["counter"]["state"] == registered)
        until("its first number", cluster.counter.exists)
        yield cluster
    finally:
        if (cluster.directory / "cluster.json").exists():
            cluster.down()


# ---- beside a running cluster ----------------------------------------------------------------------------------------


def test_a_node_started_twice_is_refused_and_goes_on(running: Running, tmp_path: Path) -> None:
    home = running.directory / "nodes" / "n1"
    with running.undisturbed():
        line = refused(running.musterd("n1", home), status=75)
        assert "already runs" in line
        assert str(home) in line
        shutil.copy(home / "key.pem", tmp_path)
        line = refused(running.musterd("n1", tmp_path), status=75)
        assert f"daemon of node n1 with home {home}" in line
        booted = running.run("dev", "boot", "n1")
        assert "already runs" in clear(booted, 1)


def test_garbage_on_the_interconnect_disturbs_nobody(running: Running) -> None:
    client_hello = bytes.fromhex("16030102000100 01fc0303")
    noise = [b"\0", b"\0" * 10_000, b"GET / HTTP/1.0\r\n\r\n", client_hello, client_hello + b"\xa5" * 600]
    noise += [bytes((7 * place) % 256 for place in range(100_000))]
    with running.undisturbed(), contextlib.ExitStack() as held:
        for node in ("n0", "n1", "n2"):
            address = running.address(node)
            for data in noise:
                connection = held.enter_context(socket.create_connection(address, timeout=5))
                with contextlib.suppress(OSError):  # it may have been refused in the middle
                    connection.sendall(data)
            for _ in range(80):  # more than may wait for a handshake
                with contextlib.suppress(OSError):
                    held.enter_context(socket.create_connection(address, timeout=5)).sendall(client_hello)
            stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
            with contextlib.suppress(OSError):  # where it is refused is up to TLS; that it is, the master knows
                wrapped = held.enter_context(stranger.wrap_socket(socket.create_connection(address, timeout=5)))
                wrapped.sendall(b"x" * 100)
                assert wrapped.recv(100) == b""
        until("n0 to name the stranger", lambda: _trouble(running, "n0", "no certificate"))
        until("n0 to name the noise", lambda: _trouble(running, "n0", "does not speak TLS 1.3"))


def _trouble(running: Running, node: str, words: str) -> bool:
    events = running.client(node).query("timeline", since=0)["events"]
    return any(event["event"] == "interconnect trouble" and words in event["detail"] for event in events)


def definition(**fields: Any) -> dict[str, Any]:
    """Arguments of an `apply` of one service."""
    return {"definitions": [{"name": "x", "start_command": ["true"], **fields}]}


HOSTILE = [
    b"\n", b"{}\n", b"[]\n", b"null\n", b"NaN\n", b"1e999\n", b"\xff\xfe\n", b"GET / HTTP/1.1\r\n",
    b"[" * 100_000 + b"\n", b'{"a":' * 100_000 + b"\n",
    b'{"query": 1}\n',
    b'{"query": "none"}\n', b'{"query": "status", "arguments": []}\n',
    b'{"query": "service", "arguments": {"name": ["x"]}}\n', b'{"query": "timeline", "arguments": {"since": {}}}\n',
    b"x" * (9 * 1024 * 1024),
]  # fmt: skip
HOSTILE_OPERATIONS: list[tuple[str, dict[str, Any], str]] = [
    ("format", {}, "there is no operation"),
    ("apply", {}, "'definitions' is missing"),
    ("apply", {"definitions": 1}, "'definitions'"),
    ("apply", {"definitions": [{}]}, "name"),
    ("apply", definition(name=""), "a name has"),
    ("apply", definition(name="a/../b"), "a name has"),
    ("apply", definition(name="-x"), "a name has"),
    ("apply", definition(name="n" * 100_000), "a name has"),
    ("apply", definition(start_command=["a\0b"]), "NUL"),
    ("apply", definition(start_command=[""]), "names no program"),
    ("apply", definition(start_command=["x" * 100_000]), "longer than"),
    ("apply", definition(start_timeout_ms=-1), "start_timeout_ms"),
    ("apply", definition(start_timeout_ms=10**25), "a value that nothing can hold"),
    ("apply", definition(stop_timeout_ms="soon"), "'definitions'"),
    ("apply", definition(allowable_nodes=[]), "allowable_nodes"),
    ("apply", definition(allowable_nodes=["n0", "*"]), "wildcard"),
    ("apply", definition(ordered=["n"] * 2000), "ordered"),
    ("apply", definition(colour="red"), "colour"),
    ("apply", {"definitions": definition()["definitions"] * 2}, "defined twice"),
    ("apply", {**definition(), "withdraw": ["x"]}, "named twice"),
    ("apply", {"definitions": [], "withdraw": ["w" * 1000]}, "1000 characters"),
    ("apply", {"definitions": [], "withdraw": ["none"]}, "no service 'none'"),
    ("transfer", {"service": "counter", "target": ["n0"]}, "'target'"),
    ("transfer", {"service": "counter", "target": "\0"}, "no node"),
    ("transfer", {"service": "counter", "target": "n2"}, "does not allow n2"),
    ("leave", {"node": 0}, "'node'"),
    ("leave", {"node": "n0", "force": True}, "unknown argument"),
    ("evict", {"node": "n0", "cause": "c" * 100_000}, "at most 65536 are taken"),
    ("evict", {"node": "n0", "cause": "c", "confirmed_dead": "yes"}, "'confirmed_dead'"),
    ("evict", {"node": "n0", "cause": "c", "confirmed_dead": True}, "renews its lease"),
]


def exchange(path: Path, data: bytes) -> bytes:
    """Send bytes to a control socket; what it answers until it closes or a line is complete."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(os.fspath(path))
        with contextlib.suppress(OSError):  # it may close before it has taken all; what it answered counts
            connection.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while not answer.endswith(b"\n") and (part := connection.recv(65_536)):
                answer += part
        return answer


def test_garbage_on_the_control_socket_gets_an_error_each_and_disturbs_nobody(running: Running) -> None:
    path = running.directory / "nodes" / "n0" / "control.sock"
    with running.undisturbed():
        for data in HOSTILE:
            answer = json.loads(exchange(path, data))
            assert answer["ok"] is False, data[:80]
            assert all(answer["error"][key] for key in ("what", "where", "next")), answer
            assert "defect" not in answer["error"]["next"], answer


def test_hostile_operations_are_refused_before_anything_is_committed(running: Running) -> None:
    index = running.index()
    with running.undisturbed():
        for name, arguments, what in HOSTILE_OPERATIONS:
            with pytest.raises(ClientError) as caught:
                running.client("n0").operate(name, **arguments)
            message = str(caught.value)
            assert what in message, (name, message)
            assert len(message) < 1000, (name, message)
            assert "defect" not in message, (name, message)
        assert running.index() == index


def test_too_many_clients_are_told_so_and_disturb_nobody(running: Running) -> None:
    path = os.fspath(running.directory / "nodes" / "n2" / "control.sock")
    with running.undisturbed():
        with contextlib.ExitStack() as held:
            for _ in range(70):
                connection = held.enter_context(socket.socket(socket.AF_UNIX))
                connection.settimeout(20)
                connection.connect(path)
                connection.send(b"{")
            assert "clients are connected already" in clear(running.run("status", "--node", "n2"), 1)
            assert json.loads(running.succeed("status", "--json"))["master"]  # another node answers
        until("the socket to be free again", lambda: running.run("status", "--node", "n2").returncode == 0)


# ---- service files ---------------------------------------------------------------------------------------------------

MISTAKES = """
[[service]]
name = "web"
start_comand = "x"
start_timeout = 5
allowable_nodes = ["n7"]

[[service]]
name = "web"
stop_command = 'echo "open'

[[service]]
name = "a b"
recovery_command = []

[[servce]]
"""


def test_every_mistake_in_a_service_file_is_named_with_its_line_and_nothing_is_applied(
    running: Running, tmp_path: Path
) -> None:
    file = tmp_path / "services.toml"
    index = running.index()
    with running.undisturbed():
        file.write_text(MISTAKES)
        text = clear(running.run("apply", str(file)), 2)
        for line, what in (
            (4, "did you mean 'start_command'?"), (5, "a duration with its unit"), (6, "unknown node 'n7'"),
            (9, "is defined twice, first at line 3"), (10, "close the quotation"), (13, "a name has"),
            (14, "is empty"), (16, "did you mean 'service'?"),
        ):  # fmt: skip
            assert re.search(rf"services\.toml:{line}: .*{re.escape(what)}", text), (line, what, text)
        for content, what in (
            (b"", "defines no service"), (b"\xff\xfe", "is not UTF-8"), (b"[[service]", "TOML"), (b"[" * 5000, "TOML"),
        ):  # fmt: skip
            file.write_bytes(content)
            assert what in clear(running.run("apply", str(file)), 2)
        file.write_text("".join(f'[[service]]\nname = "s{number}"\ncolour = 1\n' for number in range(1000)))
        text = clear(running.run("apply", str(file)), 2)
        assert "1000 problems" in text
        assert "... and 950 more" in text
        assert len(text.splitlines()) < 60
        assert "cannot be read" in clear(running.run("apply", str(tmp_path)), 2)
        assert "cannot be read" in clear(running.run("apply", str(tmp_path / "none")), 2)
    assert running.index() == index


def test_hundreds_of_services_and_two_applies_at_once_are_taken(running: Running, tmp_path: Path) -> None:
    files = [tmp_path / "one.toml", tmp_path / "other.toml"]
    names = [[f"{letter}{number}" for number in range(280)] for letter in "vw"]
    for file, own in zip(files, names, strict=True):
        entry = '[[service]]\nname = "{}"\nstart_command = "true"\nauto_register = "manual"\n'
        file.write_text("".join(entry.format(name) for name in own))
    command = [sys.executable, "-m", "muster.ui.command_line", "apply"]
    environment = os.environ | {"MUSTER_DIR": str(running.directory)}
    with running.undisturbed():
        both = [subprocess.Popen([*command, str(file)], env=environment, stdout=subprocess.PIPE) for file in files]
        for each in both:
            output, _ = each.communicate(timeout=DEADLINE_S)
            assert each.returncode == 0
            assert b"280 defined" in output
        for name in ("n0", "n1", "n2"):
            until(f"{name} to know all", partial(_knows, running, name, 561))
        running.client("n2").operate("apply", definitions=[], withdraw=[name for own in names for name in own])
        until("them to be forgotten", lambda: len(_services(running, "n0")) == 1)


def _knows(running: Running, node: str, count: int) -> bool:
    return len(_services(running, node)) == count


def _services(running: Running, node: str) -> dict[str, Any]:
    found: dict[str, Any] = running.client(node).query("status")["services"]
    return found


# ---- commands --------------------------------------------------------------------------------------------------------


def test_commands_that_misbehave_fail_with_their_cause_and_leave_nothing(running: Running, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    commands: dict[str, tuple[list[str], str]] = {
        "missing": (["/no/such/program"], "No such file or directory; install it on this node"),
        "locked": ([str(plain)], "make it executable (chmod +x)"),
        "folder": ([str(tmp_path)], "Permission denied"),
        "never": (["sleep", "987654"], "did not end within 400 ms"),
        "deaf": (["sh", "-c", "trap '' TERM; sleep 987654 & sleep 987654"], "did not end within 400 ms"),
        "flood": (["sh", "-c", "yes flooding"], "did not end within 400 ms"),
        "forks": (["sh", "-c", "for i in 1 2 3 4 5 6; do (sleep 987654 & sleep 987654) & done; exit 3"], "status 3"),
        "closes": (["sh", "-c", "exec <&- >&- 2>&-; exit 4"], "status 4"),
        "signal": (["sh", "-c", "kill -SEGV $$"], "killed by SIGSEGV"),
        "group": (["sh", "-c", "kill -KILL 0"], "killed by SIGKILL"),
        "markup": (["sh", "-c", r"printf '[/red] \033[2J\007\377 [bold]\n'; exit 5"], "status 5"),
    }  # fmt: skip
    definitions = [
        {"name": name, "allowable_nodes": ["n2"], "start_command": command,
         "start_timeout_ms": 400 if "400 ms" in what else 60_000}
        for name, (command, what) in commands.items()
    ]  # fmt: skip
    with running.undisturbed():
        running.client("n0").operate("apply", definitions=definitions)
        stuck = until("all of them to have failed", lambda: _stuck(running, list(commands)))
        for name, (_, what) in commands.items():
            cause = stuck[name]["cause"]
            assert "start failed on n2" in cause, (name, cause)
            assert what in cause, (name, cause)
            assert f"muster service register {name}" in cause, (name, cause)
            assert len(cause) < 1500, (name, cause)
        page = running.succeed("status")
        assert "[/red]" in page
        assert not set(page) & {"\x1b", "\x07"}
        assert len(page.splitlines()) < 12 * len(commands)
        assert "[bold]" in running.succeed("service", "show", "markup")
        processes = node_processes.processes_of(running.directory / "nodes" / "n2")
        lines = [_command_line(process.pid) for process in processes]
        assert not [line for line in lines if "987654" in line or "flooding" in line]
        running.client("n0").operate("apply", definitions=[], withdraw=list(commands))
        until("them to be forgotten", lambda: len(_services(running, "n0")) == 1)


def _stuck(running: Running, names: list[str]) -> dict[str, Any] | None:
    found = _services(running, "n0")
    states = {name: found[name] for name in names}
    done = all(each["state"] == "de-registered" and each["cause"] for each in states.values())
    return states if done else None


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_a_command_that_signals_everything_ends_no_daemon(running: Running) -> None:
    """As root or not: the node's own processes share user and namespace with the services."""
    command = ["sh", "-c", "trap '' TERM HUP INT; kill -TERM -1; kill -HUP -1; kill -INT -1; exit 7"]
    home = running.directory / "nodes" / "n2"
    if json.loads((home / "guard.json").read_text())["deadman"] != "pid_namespace":
        pytest.skip("not applicable without PID namespaces: the command would signal this test, too")
    before = json.loads((home / "guard.json").read_text())
    with running.undisturbed():
        service = {"name": "killer", "allowable_nodes": ["n2"], "start_command": command}
        running.client("n0").operate("apply", definitions=[service])
        stuck = until("it to have failed", lambda: _stuck(running, ["killer"]))
        assert "status 7" in stuck["killer"]["cause"]
        assert json.loads((home / "guard.json").read_text()) == before
        running.client("n0").operate("apply", definitions=[], withdraw=["killer"])
        until("it to be forgotten", lambda: len(_services(running, "n0")) == 1)


# ---- a node that is gone, a log that is full -------------------------------------------------------------------------


def test_requests_about_a_dead_node_are_refused_and_a_full_log_costs_lines_only(running: Running) -> None:
    home = running.directory / "nodes" / "n2"
    with running.undisturbed(without="n2"):
        running.succeed("dev", "kill", "n2")
        running.wait_for("n2 to be forced out", lambda status: status["nodes"]["n2"]["state"] == "inactive")
        assert "ran nothing" in running.succeed("dev", "kill", "n2")
        assert "runs nothing" in clear(running.run("dev", "hang", "n2"), 1)
        assert "does not run" in clear(running.run("dev", "leave", "n2"), 1)
        assert "not a member" in clear(running.run("node", "leave", "n2"), 1)
        assert "nothing to force out" in clear(running.run("node", "evict", "n2"), 1)
        assert "stays on" in clear(running.run("service", "transfer", "counter", "n2"), 1)
        clear(running.run("status", "--node", "n2"), 3)
        for words in (["node", "leave", "n 9"], ["node", "evict", "ü"], ["service", "transfer", "counter", "../n1"]):
            assert "configured are: n0, n1, n2" in clear(running.run(*words), 1)
        for words in (["service", "show", "a b"], ["service", "register", "x" * 150], ["service", "deregister", "/"]):
            assert "there is no service" in clear(running.run(*words), 1)
        # Every line that the node writes is refused by the device.
        (home / "log").rename(home / "log.before")
        (home / "log").symlink_to("/dev/full")
        try:
            running.succeed("dev", "boot", "n2")
            first = json.loads((home / "guard.json").read_text())
            os.kill(first["daemon_pid"], signal.SIGKILL)
            until("another daemon", lambda: _daemon_of(home) not in (0, first["daemon_pid"]))
            until("it to answer", lambda: running.run("status", "--node", "n2").returncode == 0)
            assert running.status("n2")["nodes"]["n2"]["incarnation"] == first["incarnation"]
            assert running.status("n2")["nodes"]["n2"]["state"] == "joined"
            assert "is no regular file" in clear(running.run("dev", "logs", "n2"), 1)  # zeros without an end
        finally:
            (home / "log").unlink()
            (home / "log.before").rename(home / "log")


def _daemon_of(home: Path) -> int:
    return int(json.loads((home / "guard.json").read_text())["daemon_pid"])


# ---- directories of development clusters -----------------------------------------------------------------------------


def test_directories_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "loop").symlink_to("loop")
    tries = {
        tmp_path / "file": "no directory",
        tmp_path / "file" / "below": "cannot be made",
        tmp_path / ("n" * 300): "too long",
        tmp_path / "loop": "no directory",
        tmp_path / "loop" / "below": "cannot be made",
        Path("/dev/null"): "no directory",
        Path("/proc/none"): "cannot be made",
    }
    for directory, what in tries.items():
        text = clear(CommandLine().run("dev", "up", "--nodes", "1", "--dir", str(directory)), 1)
        assert what in text, (directory, text)
    for count in ("-1", "0", "41", "99999999999999999999"):
        text = clear(CommandLine().run("dev", "up", f"--nodes={count}", "--dir", str(tmp_path / "d")), 2)
        assert "choose 1 to 40" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]
    assert (tmp_path / "file").read_text() == "precious"


def test_a_cluster_of_another_user_is_refused_rather_than_found_empty(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ClientError, match="belongs to another user"):
        open_cluster(running.directory)


def test_a_long_and_odd_directory_works_and_its_last_node_can_leave(tmp_path: Path) -> None:
    odd = tmp_path / "it's a long \u00fcber path" / ("d" * 120) / os.fsdecode(b"\xff$HOME")
    cluster = DevCluster(odd / "cluster")
    try:
        cluster.up(1)
        assert cluster.status()["nodes"]["n0"]["state"] == "joined"
        # what is printed to be copied can be: a shell takes it for the words that it stands for
        hint = clear(cluster.run("dev", "up"), 1).partition("end it: ")[2].strip()
        assert shlex.split(hint)[:4] == ["muster", "dev", "down", "--dir"]
        assert "leaving" in cluster.succeed("node", "leave", "n0")
        until("the last node to end", lambda: not node_processes.is_running(cluster.directory / "nodes" / "n0"))
        clear(cluster.run("services"), 3)
    finally:
        if cluster.directory.exists():
            cluster.down()
    assert list(tmp_path.iterdir()) == []


# ---- terminals and pipes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["status"], ["status", "--watch"], ["status", "--watch", "--json"]], ids=" ".join
)
def test_a_reader_that_goes_away_ends_the_command_quietly(running: Running, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "muster.ui.command_line", *arguments]
    environment = os.environ | {"MUSTER_DIR": str(running.directory)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as child:  # type: ignore[call-overload]
        try:
            assert child.stdout.read(1)
            child.stdout.close()
            child.wait(DEADLINE_S)
            assert child.stderr.read() == b""
        finally:
            child.kill()


def test_output_that_cannot_be_written_is_an_error(running: Running) -> None:
    command = [sys.executable, "-m", "muster.ui.command_line", "status"]
    environment = os.environ | {"MUSTER_DIR": str(running.directory)}
    for words in ([], ["--json"]):
        with Path("/dev/full").open("w") as full:
            ended = subprocess.run(
                [*command, *words], env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert ended.returncode != 0
        assert "No space left on device" in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "variables",
    [{"COLUMNS": "1"}, {"COLUMNS": "0", "LINES": "0"}, {"COLUMNS": "many"}, {"TERM": "dumb"}, {"NO_COLOR": "1"}, {}],
    ids=str,
)
def test_any_terminal_gets_a_page(running: Running, variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "muster.ui.command_line", "status"]
    environment = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "COLUMNS", "LINES"}}
    environment |= {"MUSTER_DIR": str(running.directory), "TERM": "xterm", **variables}
    leader, follower = pty.openpty()
    try:
        with subprocess.Popen(command, env=environment, stdout=follower, stderr=follower) as child:
            os.close(follower)
            try:
                output = _read_all(leader)
                assert child.wait(DEADLINE_S) == 0, output
            finally:
                child.kill()
    finally:
        os.close(leader)
    assert "Traceback" not in output
    if variables.get("TERM") == "dumb" or "NO_COLOR" in variables:
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]", output), output  # no colour
        assert "registered" in output
    elif not variables:
        assert "\x1b[" in output


def _read_all(leader: int) -> str:
    data = b""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if select.select([leader], [], [], 0.1)[0]:
            try:
                part = os.read(leader, 65_536)
            except OSError:  # the last holder of the other end has gone
                break
            data += part
    return data.decode(errors="replace")
