"""Metrics for Prometheus, on this machine only; and what systemd is told (SPEC 9.4)."""

import asyncio
import contextlib
import os
import socket
import threading
import typing
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bad_input import until
from dev_cluster import DevCluster
from muster.core.effects import RunCommand, Trace
from muster.core.needs.machine import NOTHING, Told
from muster.core.needs.need import Need
from muster.core.transitions import narration as history
from muster.daemon.metrics.endpoint import Endpoint, MetricsRefused, check_endpoint
from muster.daemon.metrics.measures import BOUNDS_S, Durations, Measures
from muster.daemon.metrics.metrics import Collector
from muster.daemon.shell import readiness
from muster.daemon.shell.guard_channel import GuardChannel
from muster.drivers.image import systemd as service_manager
from muster.drivers.image.lease_account import TELL_US, LeaseAccount
from muster.records.database import initial_database
from muster.records.levels import TransitionKind
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import CommandState
from muster.records.timing import VIRTUALISED

SERVICE = '[[service]]\nname = "sleeper"\nstart_command = "sh -c \'sleep 1000 &\'"\n'


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("0.0.0.0:9464", "this machine only"),
        ("10.0.0.1:9464", "this machine only"),
        ("[::]:9464", "this machine only"),
        ("example.org:80", "this machine only"),
        ("9464", "no endpoint"),
        ("127.0.0.1:0", "no endpoint"),
        ("127.0.0.1:99999", "no endpoint"),
        ("unix:metrics.sock", "not absolute"),
    ],
)
def test_an_endpoint_that_others_could_reach_is_refused(endpoint: str, words: str) -> None:
    with pytest.raises(MetricsRefused, match=words) as refused:
        check_endpoint(endpoint)
    assert f"--metrics {endpoint}" in str(refused.value)


def test_loopback_addresses_and_unix_sockets_are_endpoints() -> None:
    assert check_endpoint("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert check_endpoint("[::1]:9464") == ("::1", 9464)
    assert check_endpoint("localhost:1") == ("localhost", 1)
    assert check_endpoint("unix:/run/m.sock") == "/run/m.sock"


def test_durations_count_each_value_in_the_first_bucket_that_holds_it() -> None:
    durations = Durations()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[0] + 1e-9, BOUNDS_S[-1], 1e9):
        durations.add(seconds)
    assert (durations.counts[0], durations.counts[1], durations.counts[-2], durations.counts[-1]) == (2, 1, 1, 1)
    assert durations.number == 5


def test_a_transition_is_measured_from_its_opening_to_its_end_and_a_replaced_one_is_not() -> None:
    measures = Measures()
    kind = int(TransitionKind.JOINING)
    measures.traced(1_000_000, Trace(history.OPENED, "", 64, kind=kind))
    measures.traced(1_000_000, Trace(history.OPENED, "", 65, kind=kind))
    measures.traced(1_500_000, Trace(history.REPLACED, "", 65, kind=kind, successor=66))
    measures.traced(3_000_000, Trace(history.DONE, "", 64, kind=kind))
    measures.traced(3_000_000, Trace(history.DONE, "", 65, kind=kind))
    assert measures.transitions["joining"].document() == {"number": 1, "mean_ms": 2000.0, "longest_ms": 2000.0}


def test_commands_are_measured_by_action_and_outcome_and_unknown_ones_are_not() -> None:
    measures = Measures()
    measures.command_given(0, RunCommand("web", 1, 7, "start", ("true",), 1000, {}))
    measures.command_ended(250_000, CommandState("web", 7, "start", finished=True, succeeded=True))
    measures.command_ended(250_000, CommandState("web", 7, "start", finished=True, succeeded=True))
    assert {key: each.document()["number"] for key, each in measures.commands.items()} == {("start", "succeeded"): 1}


def test_the_guard_tells_renewals_and_the_least_margin_and_loses_none() -> None:
    account = LeaseAccount()
    for margin_us in (400_000, 90_000, 300_000):
        account.renewed(margin_us)
    account.failed()
    assert account.packet(5) == b"lease 3 1 90000"
    assert account.packet(6) is None
    account.renewed(-5)  # the first packet was not taken: it is told with the next
    assert account.packet(5 + TELL_US) == b"lease 4 1 0"
    account.told()
    assert account.packet(5 + 2 * TELL_US) == b"lease 0 0 -1"


def test_the_daemon_hears_the_guards_account_and_its_term_alike() -> None:
    heard: list[object] = []

    async def listen() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            lost = asyncio.Event()
            GuardChannel(ours, lambda _age_ms: heard.append("term"), lost.set, lambda *told: heard.append(told))
            for packet in (b"lease 12 0 345678901", b"term"):
                theirs.send(packet)
            theirs.shutdown(socket.SHUT_RDWR)
            async with asyncio.timeout(30):
                await lost.wait()

    asyncio.run(listen())
    assert heard == [(12, 0, 345_678_901), "term"]


def test_the_endpoint_answers_get_only_and_survives_whatever_else_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"

    async def ask(data: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(data)
        if not data.endswith(b"\r\n\r\n"):
            writer.write_eof()
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                await writer.wait_closed()

    async def serve() -> None:
        endpoint = Endpoint(f"unix:{path}", lambda: b"up 1\n")
        await endpoint.start()
        try:
            assert (await ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).endswith(b"\r\n\r\nup 1\n")
            for data, status in (
                (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
                (b"GET / HTTP/1.1\r\n\r\n", b"404"),
                (b"\0\xff nonsense\r\n\r\n", b"400"),
            ):
                assert (await ask(data)).split(b" ")[1] == status
            assert await ask(b"x" * 100_000) == b""
            assert b"up 1" in await ask(b"GET /metrics HTTP/1.0\r\n\r\n")
            again = Endpoint(f"unix:{path.parent}/nowhere/m.sock", lambda: b"")
            with pytest.raises(MetricsRefused, match="choose another"):
                await again.start()
        finally:
            await endpoint.close()
        assert not path.exists()

    asyncio.run(serve())


def test_p10_12_what_each_service_and_node_has_suffered_is_counted_by_its_name() -> None:
    nodes = tuple(NodeConfig(number, f"n{number}", (f"10.0.0.{number}:7700",), "PEM") for number in range(2))
    database = initial_database(Cluster("test", "ab" * 16, "fast", "PEM"), nodes)
    need = Need("unproven", "node/n1", "n1 is silent", "look at it", affects=("web",))
    counts = {("failure", "service/web"): 3, ("restart", "service/web"): 2, ("move", "service/web"): 1}
    node = typing.cast("Any", SimpleNamespace(database=database))
    metrics = Collector(node, Measures(), "1", lambda: Told((need,)), lambda: counts)
    found = {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in metrics._people()
        for sample in family.samples
    }
    suffered = [found[f"muster_service_{name}_total", "web"] for name in ("failures", "restarts", "moves")]
    assert suffered == [3, 2, 1]
    assert (found["muster_node_unproven", "n0"], found["muster_node_unproven", "n1"]) == (0, 1)
    assert (found["muster_needs_you", "unproven,node/n1"], found["muster_needs", ""]) == (1, 1)


def test_a_running_node_shows_its_metrics_where_it_is_told_to(
    dev_cluster: DevCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MUSTER_METRICS", f"127.0.0.1:{port}")
    services = tmp_path / "services.toml"
    services.write_text(SERVICE)
    dev_cluster.up(1, "--services", str(services))
    dev_cluster.wait_for("the service", lambda status: status["services"]["sleeper"]["state"] == "registered")

    def scrape() -> dict[tuple[str, str], float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return {
            (sample.name, ",".join(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def settled() -> dict[tuple[str, str], float] | None:
        found = scrape()
        return found if ("muster_lease_margin_seconds", "") in found else None

    found = until("the guard's account of its renewals", settled)
    assert found["muster_master", ""] == 1
    assert found["muster_elections_total", ""] == 1
    assert found["muster_services", "registered"] == 1
    assert found["muster_nodes", "joined"] == 1
    assert found["muster_entries_total", ""] >= 3
    assert found["muster_transition_seconds_count", "joining"] == 1
    assert found["muster_command_seconds_count", "start,succeeded"] == 1
    assert found["muster_store_seconds_count", "append frame"] >= 1
    assert found["muster_lease_renewals_total", "done"] >= 1
    lease_ms = VIRTUALISED.leased(one_machine=True).lease_ms
    assert 0 < found["muster_lease_margin_seconds", ""] < lease_ms / 1000
    assert found["muster_daemon_resident_bytes", ""] > 1 << 20


# ---- what systemd is told --------------------------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's socket, with NOTIFY_SOCKET naming it."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(path))
        end.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield end


def test_a_message_is_one_datagram_of_lines(manager: socket.socket) -> None:
    assert service_manager.notify("READY=1", "STATUS=all\nis well")
    assert manager.recv(4096) == b"READY=1\nSTATUS=all is well"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify", "@muster-test-nobody-listens"])
def test_without_a_service_manager_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not service_manager.notify("READY=1")


def test_a_manager_that_takes_nothing_is_not_waited_for(manager: socket.socket) -> None:
    for _ in range(100_000):
        if not service_manager.notify("STATUS=" + "x" * 1000):
            return
    pytest.fail("its queue has no end")


def test_p10_12_a_manager_that_was_busy_is_told_what_is_true_later(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "AGAIN_S", 0.01)
    monkeypatch.setattr(readiness, "status_line", lambda node, _told: node)
    monkeypatch.setattr(readiness, "is_ready", lambda node: node == "well")
    while service_manager.notify("STATUS=old"):
        pass  # until it takes nothing more

    class Changing:
        """As much of a daemon as it asks for."""

        node, needs = "busy", staticmethod(lambda: NOTHING)

        def changes(self) -> contextlib.AbstractContextManager[asyncio.Event]:
            return contextlib.nullcontext(asyncio.Event())

    def news() -> bytes:
        while (heard := manager.recv(4096)) == b"STATUS=old":
            pass
        return heard

    async def scenario() -> bytes:
        daemon = Changing()
        telling = asyncio.create_task(readiness.keep_service_manager_informed(daemon))  # type: ignore[arg-type]
        await asyncio.sleep(0)  # it has tried once
        daemon.node = "well"
        try:
            return await asyncio.to_thread(news)
        finally:
            telling.cancel()

    assert asyncio.run(scenario()) == b"READY=1\nSTATUS=well"


@pytest.mark.parametrize(
    ("usec", "pid", "pause_us"),
    [("9000000", "", 3_000_000), ("9000000", "1", 0), ("", "", 0), ("soon", "", 0), ("9000000", "own", 3_000_000)],
)
def test_the_watchdog_is_petted_by_the_process_that_is_asked_and_often_enough(
    usec: str, pid: str, pause_us: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert service_manager.watchdog_pause_us() == pause_us


def test_a_real_node_is_ready_says_what_it_does_is_petted_and_stops(
    manager: socket.socket, dev_cluster: DevCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    heard: list[str] = []

    def listen() -> None:
        while "STATUS=has left the cluster" not in "".join(heard[-1:]):
            heard.append(manager.recv(4096).decode())  # ends with the fixture's time limit at the latest

    threading.Thread(target=listen, daemon=True).start()
    kept = tmp_path / "environment"
    services = tmp_path / "services.toml"
    services.write_text(f'[[service]]\nname = "sleeper"\nstart_command = "sh -c \'env > {kept}\'"\n')
    dev_cluster.up(1, "--services", str(services))
    dev_cluster.wait_for("the service", lambda status: status["services"]["sleeper"]["state"] == "registered")
    assert "MUSTER_SERVICE=sleeper" in kept.read_text()
    assert "NOTIFY_SOCKET" not in kept.read_text()
    assert "WATCHDOG_USEC" not in kept.read_text()
    dev_cluster.succeed("dev", "leave", "n0")
    until("its last word", lambda: "STATUS=has left the cluster" in "".join(heard))
    ready = [message for message in heard if "READY=1" in message]  # P10.15
    assert len(ready) == 1 and ready[0].startswith("READY=1\nSTATUS=joined; ")
    assert not any("STATUS=joined" in message for message in heard[: heard.index(ready[0])])
    assert any("STATUS=joined; master n0; 1 of 1 nodes joined; 1 services here" in message for message in heard)
    assert heard.count("WATCHDOG=1") >= 2
    assert any(message.startswith("STOPPING=1") for message in heard)
