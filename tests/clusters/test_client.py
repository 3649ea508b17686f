"""The client library, against a real daemon (SPEC 3.2, 3.4, 3.6, 7.8), and the worked example."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev_cluster import DevCluster
from muster.client import (
    AsyncSubsystem,
    Barriers,
    ClientError,
    Kind,
    Lost,
    Notification,
    Refused,
    Subsystem,
    Unreachable,
    register,
    register_async,
)
from muster.client.address import reachable, socket_path
from muster.client.control import ControlClient
from muster.daemon.levels import programs as subsystems
from patience import DEADLINE_S, wait

DOCUMENT = Path(__file__).parents[2] / "docs" / "CLIENT.md"
EXAMPLE = Path(__file__).parents[2] / "examples" / "write_back_cache" / "cache.py"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """One node, whose directory's path is too long for a socket address."""
    cluster = DevCluster(tmp_path_factory.mktemp("client") / ("long" * 20) / "cluster")
    cluster.directory.parent.mkdir()
    try:
        cluster.up(1)
        yield cluster
    finally:
        if (cluster.directory / "cluster.json").exists():
            cluster.down()


def ask(cluster: DevCluster, name: str, /, **arguments: Any) -> Any:
    return ControlClient(cluster.directory / "nodes" / "n0" / "control.sock", 10.0).query(name, **arguments)


def operate(cluster: DevCluster, name: str, /, **arguments: Any) -> Any:
    return ControlClient(cluster.directory / "nodes" / "n0" / "control.sock", 10.0).operate(name, **arguments)


def levels(cluster: DevCluster) -> dict[int, str]:
    return {level["level"]: level["name"] for level in ask(cluster, "nodes")["nodes"]["n0"]["levels"]}


def connect_unix(connection: socket.socket, path: Path) -> None:
    """Connect, however long the path is."""
    with reachable(str(path)) as address:
        connection.connect(address)


def joins(cluster: DevCluster, name: str = "cache", level: int = 60, **options: Any) -> Subsystem:
    return register(name, level, directory=cluster.directory, node="n0", **options)


def test_a_program_hears_of_its_own_node_barrier_by_barrier_and_deregisters(one: DevCluster) -> None:
    with joins(one, barriers=Barriers(joining=3), deadline_s=20) as cache:
        assert (cache.name, cache.level, cache.node) == ("cache", 60, "n0")
        heard = []
        for barrier in range(3):
            told = cache.next_notification(DEADLINE_S)
            assert told is not None
            heard.append(told)
            assert told.barrier == barrier
            with pytest.raises(TimeoutError):  # to hear it has acknowledged nothing
                cache.next_notification(0.1)
            told.acknowledge()
        assert {(told.node, told.kind, told.transition) for told in heard} == {
            ("n0", Kind.JOINING, heard[0].transition)
        }
        assert heard[0].vector == {"n0": "joining"}
        assert heard[0].epoch > 0
        assert heard[0].incarnation == cache.incarnation == ask(one, "nodes")["nodes"]["n0"]["incarnation"]
        wait("the join to be over", lambda: ask(one, "transitions")["transitions"] == [])
        assert levels(one)[60] == "cache"
        heard[2].acknowledge()  # once more: harmless
    wait("the level to go", lambda: 60 not in levels(one))
    assert cache.next_notification() is None
    cache.deregister()  # once more: harmless


def test_the_same_for_asyncio(one: DevCluster) -> None:
    async def take_part() -> list[str]:
        heard: list[str] = []
        async with await register_async("cache", 61, directory=one.directory, node="n0") as cache:
            async for told in cache:
                heard.append(f"{told.node} {told.kind}")
                await told.acknowledge()
                asyncio.get_running_loop().call_soon(asyncio.ensure_future, cache.deregister())
        return heard

    assert asyncio.run(take_part()) == ["n0 joining"]
    wait("the level to go", lambda: 61 not in levels(one))


def test_a_thread_that_waits_for_a_notification_ends_with_the_registration(one: DevCluster) -> None:
    cache = joins(one)
    heard: list[Notification] = []
    thread = threading.Thread(target=lambda: heard.extend(cache))
    thread.start()
    wait("the first notification", lambda: heard)
    cache.deregister()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert len(heard) == 1
    with pytest.raises(Lost, match="the registration is over"):
        heard[0].acknowledge()


def test_an_outcome_that_was_not_acknowledged_is_dropped_with_the_registration(one: DevCluster) -> None:
    with joins(one) as cache:
        told = cache.next_notification(DEADLINE_S)
        assert told is not None
        wait("it to be waited for", lambda: ask(one, "transitions")["transitions"])
    wait("nobody to wait any more", lambda: ask(one, "transitions")["transitions"] == [])
    with joins(one) as again:  # told of everything anew
        told_again = again.next_notification(DEADLINE_S)
        assert told_again is not None
        assert told_again.transition > told.transition


@pytest.mark.parametrize(
    ("name", "level", "options", "words"),
    [
        ("cache", 0, {}, "level 0 is the membership's"),
        ("cache", 40, {}, "level 40 is the event manager's"),
        ("cache", -1, {}, "levels are 1 to"),
        ("cache", 70_000, {}, "levels are 1 to"),
        ("", 60, {}, "a name has 1 to 64 characters"),
        ("a cache", 60, {}, "a name has 1 to 64 characters"),
        ("cache", 60, {"barriers": Barriers(leaving=0)}, "barriers for leaving are 0"),
        ("cache", 60, {"deadline_s": 1e6}, "deadline_ms is 1000000000"),
        ("cache", 60, {"on_hang": "evict"}, "there is no deadline"),
        ("cache", 60, {"on_loss": "ignore"}, "Invalid enum value 'ignore'"),
    ],
)
def test_a_registration_that_cannot_be_is_refused(
    one: DevCluster, name: str, level: int, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(Refused) as caught:
        joins(one, name, level, **options)
    assert words in caught.value.what
    assert caught.value.next_step
    assert ask(one, "status")["nodes"]["n0"]["state"] == "joined"


def test_a_level_that_is_taken_is_refused_with_its_holder(one: DevCluster) -> None:
    with joins(one, "first"):
        with pytest.raises(Refused) as caught:
            joins(one, "second")
        assert f"taken on this node, by first (process {os.getpid()})" in caught.value.what
        assert levels(one).get(60, "first") == "first"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"name": "x"},
        {"name": 1, "level": 60},
        {"name": "x", "level": "60"},
        {"name": "x", "level": 60, "colour": "blue"},
        {"name": "x", "level": 60, "barriers": [1, 1, 1]},
        {"name": "x", "level": 60, "barriers": {"joining": 10**30}},
        {"token": None},
        {"token": "unknown"},
        {"token": {"a": [1]}},
    ],
    ids=json.dumps,
)
def test_hostile_registrations_get_an_error_and_disturb_nothing(one: DevCluster, arguments: dict[str, Any]) -> None:
    with pytest.raises(ClientError) as caught:
        ask(one, "subsystem", **arguments)
    assert caught.value.next_step
    assert ask(one, "status")["nodes"]["n0"]["state"] == "joined"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("acknowledge", {}),
        ("acknowledge", {"token": "unknown", "transition": 1, "barrier": 0}),
        ("acknowledge", {"token": "x", "transition": "1", "barrier": True}),
        ("deregister_level", {"token": 5}),
    ],
)
def test_hostile_acknowledgements_get_an_error(one: DevCluster, name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ClientError) as caught:
        operate(one, name, **arguments)
    assert "operation" in caught.value.where
    assert operate(one, "deregister_level", token="unknown") == {"deregistered": False}


def test_an_acknowledgement_of_what_was_never_told_changes_nothing(one: DevCluster) -> None:
    with joins(one) as cache:
        told = cache.next_notification(DEADLINE_S)
        assert told is not None
        cache.acknowledge(told.transition, 7)
        cache.acknowledge(told.transition + 64, 0)
        (transition,) = ask(one, "transitions")["transitions"]
        assert transition["waiting_for"] == ["n0"]
        told.acknowledge()
        wait("the join to be over", lambda: ask(one, "transitions")["transitions"] == [])


def test_the_registrations_of_a_node_are_bounded(one: DevCluster) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(subsystems.MAXIMUM_REGISTRATIONS):
            stack.enter_context(joins(one, "many", 100 + number))
        with pytest.raises(Refused, match=f"{subsystems.MAXIMUM_REGISTRATIONS} subsystems are registered"):
            joins(one, "more", 99)
        assert ask(one, "status")["nodes"]["n0"]["state"] == "joined"
    wait("all levels to go", lambda: levels(one).keys() == {40})


def test_the_example_of_the_document_runs_as_it_stands(one: DevCluster) -> None:
    program = DOCUMENT.read_text().partition("\n## An example\n")[2].split("```python\n")[1].split("```")[0]
    assert program.count('"/tmp/try"') == 1
    command = [sys.executable, "-c", program.replace('"/tmp/try"', repr(str(one.directory)))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=4 * DEADLINE_S, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    said = dict(line.split(": ", 1) for line in ended.stdout.splitlines())
    assert "sleepre" in said.pop("refused")
    assert said == {"nodes": "n0", "once": "True", "runs on": "n0", "seen": "True"}
    wait("the service to have stopped", lambda: "sleeper" not in ask(one, "services")["services"])


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="there is no such socket"):
        register("cache", 60, socket=tmp_path / "control.sock")
    with pytest.raises(Unreachable, match="there is no such socket"):
        asyncio.run(register_async("cache", 60, socket=tmp_path / "control.sock"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"deadline_s": -1}, "0 or more seconds"),
        ({"deadline_s": float("nan")}, "0 or more seconds"),
        ({"deadline_s": float("inf")}, "0 or more seconds"),
        ({"timeout_s": 0}, "timeout_s more than 0"),
        ({"reconnect_s": float("nan")}, "0 or more seconds"),
        ({"barriers": {"joining": 2}}, r"pass muster.client.Barriers"),
        ({"judge": "no"}, "pass a function"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anybody_is_asked(
    tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        register("x", 60, socket=tmp_path / "nobody", **arguments)


def test_a_node_is_named_by_its_socket_or_its_cluster(tmp_path: Path) -> None:
    assert socket_path(tmp_path, "n0", None) == str(tmp_path / "nodes" / "n0" / "control.sock")
    assert socket_path(None, None, "a") == "a"
    assert socket_path(None, None, None).endswith("/control.sock")
    for wrong in ((tmp_path, None, None), (None, "n0", None), (tmp_path, "../n0", None), (tmp_path, "n0", "a")):
        with pytest.raises(ValueError, match=r"give either|needs both"):
            socket_path(*wrong)


def test_a_program_that_breaks_has_died_if_its_death_counts(dev_cluster: DevCluster) -> None:
    dev_cluster.up(1)
    with contextlib.suppress(ZeroDivisionError), joins(dev_cluster) as mild:
        raise ZeroDivisionError
    assert mild.next_notification() is None
    with pytest.raises(ZeroDivisionError), joins(dev_cluster, on_loss="fail", deadline_s=0.5, reconnect_s=0.2):
        raise ZeroDivisionError
    log = dev_cluster.directory / "nodes" / "n0" / "log"
    wait("the node to fail", lambda: "subsystem cache of level 60 is lost" in log.read_text(errors="replace"))


def test_the_client_needs_the_standard_library_only() -> None:
    program = (
        "import sys, muster.client\n"
        "names = {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names\n"
        "print(sorted(names - {'muster', '__main__'}), [n for n in sys.modules if n.startswith('muster.')])"
    )
    ended = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    others, own = ended.stdout.split("] [")
    assert others == "["
    assert all(name.strip("'] \n").startswith("muster.client") for name in own.split(", "))


class FakeDaemon:
    """The daemon's end of the socket, played line by line: what no real daemon can be made to do on demand."""

    def __init__(self, path: Path, *connections: list[dict[str, Any] | None]) -> None:
        self.asked: list[dict[str, Any]] = []
        self._path, self._connections = path, list(connections)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Streams take the next script; None in it breaks the connection. Operations are agreed to."""
        request = json.loads(await reader.readline())
        self.asked.append(request)
        lines = [{"ok": True, "result": {}}] if "operation" in request else self._connections.pop(0)
        for line in lines:
            if line is None:
                break
            writer.write(json.dumps(line).encode() + b"\n")
        else:
            if "operation" not in request:
                await reader.read()  # until the client goes
        writer.close()


FIRST = {"ok": True, "more": True, "result": {"token": "t", "node": "n0", "incarnation": 7, "level": 60}}
LEAVE = {"transition": 64, "level": 60, "barrier": 0, "node": "n1", "incarnation": 3, "kind": "leaving",
         "vector": {"n0": "joined", "n1": "leaving"}, "epoch": 5}  # fmt: skip
NEXT = LEAVE | {"transition": 128, "node": "n2"}
BROKEN = None


def told(notification: dict[str, Any]) -> dict[str, Any]:
    return {"ok": True, "more": True, "result": notification}


def test_a_repeated_notification_is_heard_once_and_answered_from_memory(tmp_path: Path) -> None:
    scripts: list[list[dict[str, Any] | None]] = [
        [FIRST, told(LEAVE), BROKEN],
        [FIRST, told(LEAVE), told(LEAVE), told(NEXT)],
    ]
    daemon = FakeDaemon(tmp_path / "s", *scripts)

    async def take_part() -> list[str]:
        async with await asyncio.start_unix_server(daemon.serve, daemon._path):
            cache: AsyncSubsystem
            async with await register_async("cache", 60, socket=daemon._path) as cache:
                first = await cache.next_notification()
                assert first is not None
                await first.acknowledge()
                second = await cache.next_notification()
                assert second is not None
                return [first.node, second.node]

    assert asyncio.run(take_part()) == ["n1", "n2"]
    resumed = [request["arguments"] for request in daemon.asked if request.get("query")][1]
    assert resumed == {"token": "t"}
    acknowledged = [r["arguments"]["transition"] for r in daemon.asked if r.get("operation") == "acknowledge"]
    assert acknowledged.count(64) >= 2
    assert set(acknowledged) == {64}


def test_operations_go_together_on_the_own_connection_where_the_daemon_hears_them(tmp_path: Path) -> None:
    """Three acknowledgements that are ready together are one write; a deregistration ends the stream."""
    arrived: list[bytes] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readline()
        first = FIRST | {"result": FIRST["result"] | {"converses": True}}  # type: ignore[operator]
        notifications = [told(LEAVE | {"transition": number}) for number in (64, 128, 192)]
        writer.write(b"".join(json.dumps(line).encode() + b"\n" for line in (first, *notifications)))
        while not b"".join(arrived).endswith(b'"deregister_level", "arguments": {}}\n'):
            arrived.append(await reader.read(65536))
        writer.write(b'{"ok": true, "result": null, "more": false}\n')
        writer.close()

    async def take_part() -> None:
        async with (
            await asyncio.start_unix_server(serve, tmp_path / "s"),
            await register_async("cache", 60, socket=tmp_path / "s") as cache,
        ):
            heard = [await anext(cache) for _ in range(3)]
            await asyncio.gather(*(notification.acknowledge() for notification in heard))

    asyncio.run(take_part())
    assert connections == 1
    assert [json.loads(line)["arguments"]["transition"] for line in arrived[0].splitlines()] == [64, 128, 192]
    said = [json.loads(line)["operation"] for line in b"".join(arrived).splitlines()]
    assert said == ["acknowledge"] * 3 + ["deregister_level"]


def test_a_program_of_an_earlier_release_acknowledges_by_requests_of_its_own(one: DevCluster) -> None:
    """And one of this release says it on its own connection; the daemon takes either, and ends what is neither."""
    path = one.directory / "nodes" / "n0" / "control.sock"
    for name, converses in (("old", False), ("new", True)):
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as reader:
            connection.settimeout(DEADLINE_S)
            connect_unix(connection, path)
            request = {"query": "subsystem", "arguments": {"name": name, "level": 71}}
            connection.sendall(json.dumps(request).encode() + b"\n")
            token = json.loads(reader.readline())["result"]["token"]
            notification = json.loads(reader.readline())["result"]
            step = {key: notification[key] for key in ("transition", "barrier")}
            if converses:
                connection.sendall(json.dumps({"operation": "acknowledge", "arguments": step}).encode() + b"\n")
            else:
                assert operate(one, "acknowledge", token=token, **step) == {"acknowledged": True}
            wait("the transition to end", lambda: not ask(one, "status")["transitions"])
            if converses:
                connection.sendall(b'{"operation": "transfer", "arguments": {}}\n')
                error = json.loads(reader.readline())["error"]
                assert "transfer" in error["what"]
                assert reader.readline() == b""
                assert 71 in levels(one)  # it lives, and may come back
            assert operate(one, "deregister_level", token=token) == {"deregistered": True}
            if not converses:
                assert json.loads(reader.readline())["more"] is False
        wait("the level to go", lambda: 71 not in levels(one))


def test_a_registration_that_cannot_be_resumed_is_lost_and_a_late_refusal_is_told(tmp_path: Path) -> None:
    refusal = {"ok": False, "error": {"what": "no such token", "where": "query subsystem", "next": "register again"}}
    scripts: dict[str, list[list[dict[str, Any] | None]]] = {
        "Lost": [[FIRST, BROKEN], [refusal]],
        "Refused": [[FIRST, refusal]],
    }
    for error, script in scripts.items():
        daemon = FakeDaemon(tmp_path / error, *script)

        async def take_part(daemon: FakeDaemon = daemon) -> None:
            async with (
                await asyncio.start_unix_server(daemon.serve, daemon._path),
                await register_async("cache", 60, socket=daemon._path) as cache,
            ):
                await cache.next_notification()

        with pytest.raises(ClientError, match="no such token") as caught:
            asyncio.run(take_part())
        assert type(caught.value).__name__ == error


class Caches:
    """The example on every node of a cluster, as its README has it."""

    def __init__(self, cluster: DevCluster, stack: contextlib.ExitStack) -> None:
        self.cluster, self._stack = cluster, stack
        self.file = cluster.directory / "shared.json"

    def serve(self, node: str) -> "subprocess.Popen[bytes]":
        """Start a node's cache; killed at the end of the test."""
        words = ["--dir", str(self.cluster.directory), "--node", node, "serve", "--file", str(self.file)]
        process = subprocess.Popen([sys.executable, str(EXAMPLE), *words], stdout=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def say(self, node: str, *words: str) -> str:
        """One request to a node's cache."""
        command = [sys.executable, str(EXAMPLE), "--dir", str(self.cluster.directory), "--node", node, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False).stdout.strip()


def test_the_example_cache_flushes_before_a_leave_and_drops_what_a_dead_node_had_not_written(
    dev_cluster: DevCluster,
) -> None:
    dev_cluster.up(3)
    with contextlib.ExitStack() as stack:
        caches = Caches(dev_cluster, stack)
        programs = {node: caches.serve(node) for node in ("n0", "n1", "n2")}
        wait("all caches to take part", lambda: ready(dev_cluster))
        assert caches.say("n2", "set", "colour", "blue") == "set"
        assert caches.say("n0", "get", "colour") == "blue"
        assert not caches.file.exists()
        dev_cluster.succeed("dev", "leave", "n2")
        assert json.loads(caches.file.read_text())["entries"] == {"colour": "blue"}
        assert programs["n2"].wait(DEADLINE_S) == 0
        assert caches.say("n0", "get", "colour") == "blue"
        assert caches.say("n1", "set", "colour", "red") == "set"
        assert caches.say("n0", "get", "colour") == "red"
        before = json.loads(caches.file.read_text())["epoch"]
        programs["n1"].send_signal(signal.SIGKILL)  # its node fails with it: on_loss="fail"
        wait("n1 to be forced out", lambda: ask(dev_cluster, "status")["nodes"]["n1"]["state"] == "inactive")
        assert caches.say("n0", "get", "colour") == "blue"
        assert json.loads(caches.file.read_text())["epoch"] > before
        assert caches.say("n0", "set", "shape", "round") == "set"
        assert caches.say("n0", "flush") == "1 flushed"
        assert json.loads(caches.file.read_text())["entries"] == {"colour": "blue", "shape": "round"}


def ready(cluster: DevCluster) -> bool:
    nodes = ask(cluster, "nodes")["nodes"]
    counted = all(60 in {level["level"] for level in nodes[node]["levels"]} for node in ("n0", "n1", "n2"))
    return counted and ask(cluster, "transitions")["transitions"] == []
