"""The interconnect over real sockets and real TLS on the loopback interface (SPEC 1.6, 2.5)."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from interconnect_trial import (
    CLUSTER,
    DEADLINE_S,
    QUICK,
    Gate,
    Office,
    Station,
    beat,
    frame,
    raw,
    run,
    running,
    until,
)
from muster.drivers.interconnect import channel as channel_module
from muster.drivers.interconnect import mesh as interconnect_module
from muster.drivers.interconnect.mesh import DIALS_PER_S, FREE_DIALS, InterconnectRefused, Peer, parse_address
from muster.records.messages import (
    MAXIMUM_FRAME_BYTES,
    WIRE_VERSIONS,
    Abdicated,
    Hello,
    Snapshot,
    encode_message,
)
from muster.records.terms import Term
from muster.records.timing import FAST


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


def test_three_nodes_form_a_full_mesh_and_messages_arrive_in_order(office: Office) -> None:
    async def scenario() -> None:
        stations = [Station(node, incarnation=node + 10) for node in range(3)]
        async with running(office, *stations):
            for station in stations:
                assert station.interconnect.connected == {n: n + 10 for n in range(3) if n != station.node}
                for other in stations:
                    for number in range(50):
                        assert station.interconnect.send(other.node, beat(number)) == (other is not station)
            await until(lambda: all(len(station.messages) == 100 for station in stations), *stations)
            for station in stations:
                for sender in {0, 1, 2} - {station.node}:
                    received = [message for node, message in station.messages if node == sender]
                    assert received == [beat(number) for number in range(50)]
                assert not station.losses
                assert not station.told("handshake")

    run(scenario())


def test_a_message_of_the_largest_size_arrives_and_a_larger_one_is_refused(office: Office) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1)
        async with running(office, first, second):
            overhead = len(encode_message(Snapshot(Term(1, 0), b""))) + 4  # a longer length of the blob
            largest = Snapshot(Term(1, 0), bytes(MAXIMUM_FRAME_BYTES - overhead))
            assert first.interconnect.send(1, largest)
            assert not first.interconnect.send(1, Snapshot(Term(1, 0), bytes(MAXIMUM_FRAME_BYTES)))
            assert first.interconnect.send(1, beat(7))
            await until(lambda: len(second.messages) == 2, first, second)
            assert second.messages == [(0, largest), (0, beat(7))]
            assert first.told("node 1", "not sent")
            assert not first.losses

    run(scenario())


def test_nodes_that_start_together_settle_on_one_connection_for_each_pair(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interconnect_module, "HEAD_START_MS", 0)  # provoke that both succeed at once

    async def scenario() -> None:
        stations = [Station(node) for node in range(4)]
        async with running(office, *stations):
            await until(lambda: all(len(station.interconnect._channels) == 3 for station in stations), *stations)
            for station in stations:
                assert not station.losses  # nobody saw a node go
                for other in stations:
                    station.interconnect.send(other.node, beat(station.node))
            await until(lambda: all(len(station.messages) == 3 for station in stations), *stations)

    for _ in range(3):
        run(scenario())


def test_a_daemon_that_is_restarted_under_its_incarnation_is_connected_again(office: Office) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1, incarnation=5)
        async with running(office, first, second):
            address = second.address
            await second.interconnect.close()
            await until(lambda: first.losses, first)
            assert first.losses == [(1, "it closed the connection")]
            again = Station(1, incarnation=5)
            again.interconnect.set_peers({0: (first.address,)})
            async with running(office, again, listen=address, meet=False):
                await until(lambda: first.interconnect.connected == {1: 5} and again.interconnect.connected, first)
                again.interconnect.send(0, beat(3))
                await until(lambda: first.messages == [(1, beat(3))], first)

    run(scenario())


def test_a_newer_incarnation_replaces_the_older_and_an_older_one_is_refused(office: Office) -> None:
    async def scenario() -> None:
        first, old, new = Station(0), Station(1, incarnation=5), Station(1, incarnation=6)
        async with running(office, first, old), running(office, new, meet=False):
            new.interconnect.set_peers({0: (first.address,)})
            await until(lambda: first.interconnect.connected == {1: 6}, first, new)
            assert first.links[:3] == [(1, 5), (1, "incarnation 6 has replaced incarnation 5"), (1, 6)]
            await until(lambda: first.told("incarnation 5 of node 1", "6 has been here"), first)  # it came back
            await until(lambda: old.losses, old)
            first.interconnect.send(1, beat(9))
            await until(lambda: new.messages == [(0, beat(9))], first, new)
            assert not old.messages

    run(scenario())


def test_a_node_that_is_no_longer_configured_is_dismissed_and_can_come_back(office: Office) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1)
        async with running(office, first, second):
            first.interconnect.set_peers({})
            assert not first.losses  # never from within the call
            await until(lambda: first.losses, first)
            assert first.losses == [(1, "it is no longer configured")]
            assert not first.interconnect.send(1, beat())
            await until(lambda: first.told("node 1 is not configured"), first, second)
            first.interconnect.set_peers({1: (second.address,)})
            await until(lambda: first.interconnect.connected and second.interconnect.connected, first, second)

    run(scenario())


def test_the_second_address_of_a_node_is_used_when_the_first_leads_nowhere(office: Office) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1)
        async with running(office, first, second, meet=False):
            second.interconnect.set_peers({0: ()})
            with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
                nowhere = f"127.0.0.1:{silent.getsockname()[1]}"
                first.interconnect.set_peers({1: ("not an address", nowhere, "127.0.0.1:1", second.address)})
                await until(lambda: first.interconnect.connected and second.interconnect.connected, first, second)

    run(scenario())


def test_a_peer_that_cannot_be_reached_is_named_once(office: Office) -> None:
    async def scenario() -> None:
        station = Station(0, profile=QUICK)
        async with running(office, station, meet=False):
            station.interconnect.set_peers({1: ("127.0.0.1:1",), 2: ("[::1:1",), 3: ("no..host:1",)})
            await until(lambda: len(station.troubles) >= 3, station)
            attempts = station.interconnect._peers[1].paths[0]
            await until(lambda: attempts.attempts >= 5, station)
            refused = station.told("node 1", "127.0.0.1:1", "refused", "is musterd running there?")
            assert len(refused) == 1
            assert station.told("node 2", "brackets")
            assert station.told("node 3", "no..host", "label")
            assert not station.links

    run(scenario())


def test_p1_9_however_many_peers_are_absent_attempts_have_one_rate_and_the_present_one_is_reached(
    office: Office,
) -> None:
    async def scenario() -> None:
        here, there = Station(0, profile=QUICK), Station(254, profile=QUICK)
        async with running(office, here, there, meet=False):
            absent = dict.fromkeys(range(1, 254), ("127.0.0.1:1",))
            here.interconnect.set_peers(absent | {254: there.interconnect.addresses})
            there.interconnect.set_peers({0: ("127.0.0.1:1",)})  # it cannot come by itself
            began_s = here.interconnect.loop.time()
            await until(lambda: 254 in here.interconnect.connected, here)
            passed_s = here.interconnect.loop.time() - began_s
            paths = [path for peer in here.interconnect._peers.values() for path in peer.paths]
            tried = sum(path.attempts for path in paths)
            assert all(path.attempts for path in paths[:-1]), "the others had their turns before"
            assert tried <= 1 + FREE_DIALS + DIALS_PER_S * passed_s

    run(scenario())


def test_frames_may_arrive_in_any_pieces(office: Office) -> None:
    async def scenario() -> None:
        station = Station(0)
        async with running(office, station, meet=False):
            station.interconnect.set_peers({1: ()})
            async with raw(station.port, office.client(1)) as (_, writer):
                data = frame(Hello(CLUSTER, 1, 9, *WIRE_VERSIONS)) + b"".join(frame(beat(n)) for n in range(5))
                for index in range(len(data)):
                    writer.write(data[index : index + 1])
                    await writer.drain()
                    await asyncio.sleep(0)
                await until(lambda: len(station.messages) == 5, station)
                assert station.messages == [(1, beat(n)) for n in range(5)]

    run(scenario())


PROCESS = """
import asyncio, json, sys
from muster.drivers.interconnect.mesh import Interconnect
from muster.records.timing import FAST

async def main(node, cluster, incarnation, listen, keys, peers):
    def connected(peer, number):
        print("connected", peer, flush=True)
    interconnect = Interconnect(node, cluster, incarnation, FAST, on_message=lambda sender, message: None,
        on_connected=connected, on_lost=lambda *cause: None, on_trouble=lambda text: None)
    await interconnect.start(listen, *keys)
    interconnect.set_peers({int(peer): tuple(addresses) for peer, addresses in peers.items()})
    print("listens", interconnect.addresses[0], flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*json.loads(sys.argv[1])))
"""


@contextlib.contextmanager
def process(arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A node in a process of its own."""
    child = subprocess.Popen([sys.executable, "-c", PROCESS, arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=DEADLINE_S)


def arguments_of(office: Office, node: int, incarnation: int, listen: str, peers: dict[int, tuple[str]]) -> str:
    return json.dumps([node, CLUSTER, incarnation, listen, office.keys(node), peers])


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_node_is_named_at_once_and_its_next_incarnation_connects_by_itself(
    office: Office, victim: int
) -> None:
    async def scenario() -> None:
        station = Station(1)
        async with running(office, station, meet=False):
            peers = {1: (station.address,)}
            with process(arguments_of(office, victim, 7, "127.0.0.1:0", peers)) as child:
                assert child.stdout is not None
                address = (await asyncio.to_thread(child.stdout.readline)).split()[1]
                station.interconnect.set_peers({victim: (address,)})
                await until(lambda: station.interconnect.connected == {victim: 7}, station)
                child.send_signal(signal.SIGKILL)
                await until(lambda: station.losses, station)
            with process(arguments_of(office, victim, 8, address, peers)):
                await until(lambda: station.interconnect.connected == {victim: 8}, station)
            assert station.losses[0][0] == victim

    run(scenario())


def test_a_stopped_node_costs_a_bounded_queue_and_is_connected_anew_when_it_goes_on(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "MAXIMUM_QUEUE_BYTES", 4 * 1024 * 1024)

    async def scenario() -> None:
        station = Station(1, profile=FAST._replace(connect_ms=30_000))
        async with running(office, station, meet=False):
            with process(arguments_of(office, 2, 7, "127.0.0.1:0", {1: (station.address,)})) as child:
                await until(lambda: not station.interconnect.connected, station)
                station.interconnect.set_peers({2: ()})
                await until(lambda: station.interconnect.connected == {2: 7}, station)
                child.send_signal(signal.SIGSTOP)
                message = Snapshot(Term(1, 1), bytes(1024 * 1024))
                for _ in range(200):
                    if not station.interconnect.send(2, message):
                        break
                    assert station.interconnect.queued_bytes(2) < 6 * 1024 * 1024
                    await asyncio.sleep(0.01)
                assert not station.losses  # never from within `send`
                await until(lambda: station.losses, station)
                assert "it is connected again" in str(station.losses[0][1])
                assert station.told("node 2", "gathered for it")
                assert station.interconnect.queued_bytes(2) == 0
                child.send_signal(signal.SIGCONT)
                await until(lambda: station.interconnect.connected == {2: 7}, station)
                assert station.interconnect.send(2, beat())

    run(scenario())


def test_too_many_small_messages_for_a_peer_are_bounded_too(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MAXIMUM_QUEUE_FRAMES", 100)

    async def scenario() -> None:
        first, second = Station(0), Station(1)
        async with running(office, first, second):
            sent = [first.interconnect.send(1, beat(number)) for number in range(101)]  # in one turn of the loop
            assert sent == [True] * 100 + [False]
            assert not first.losses
            await until(lambda: len(first.losses) == 1, first)
            await until(lambda: first.interconnect.connected and second.interconnect.connected, first, second)

    run(scenario())


def test_an_address_in_use_names_the_address_and_the_process_that_holds_it(office: Office) -> None:
    async def scenario() -> None:
        station = Station(0)
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = holder.getsockname()[1]
            with pytest.raises(InterconnectRefused, match=rf"127\.0\.0\.1:{port}.*in use by process {os.getpid()} \("):
                await station.interconnect.start(("127.0.0.1:0", f"127.0.0.1:{port}"), *office.keys(0))
        assert not station.interconnect.addresses  # the first address is given back

    run(scenario())


def test_p11_6_an_address_that_cannot_be_had_yet_is_told_and_listened_at_as_soon_as_it_can(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interconnect_module, "LISTEN_AGAIN_S", 0.02)

    async def scenario() -> None:
        station = Station(0)
        with socket.create_server(("127.0.0.1", 0)) as holder:
            taken = f"127.0.0.1:{holder.getsockname()[1]}"
            listen = ("127.0.0.1:0", taken, "203.0.113.1:7000")
            await station.interconnect.start(listen, *office.keys(0), patient=True)
            assert len(station.interconnect.addresses) == 1
            assert station.told(taken, "in use") and station.told("203.0.113.1:7000", "tried again")
        await until(lambda: taken in station.interconnect.addresses)
        assert len(station.told(taken, "cannot listen")) == 1 and station.told(taken, "listens there now")
        await station.interconnect.close()
        assert not [task for task in asyncio.all_tasks() if "_listen_later" in repr(task)]

    run(scenario())


def test_p1_2_an_ipv4_address_in_ipv6_clothes_is_listened_at_and_reached(office: Office) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1)
        async with running(office, first, second, listen="[::ffff:127.0.0.1]:0", meet=False):
            places = {one.node: one.interconnect.addresses[0] for one in (first, second)}
            clothed = {node: (f"[::ffff:127.0.0.1]:{parse_address(place)[1]}",) for node, place in places.items()}
            first.interconnect.set_peers(clothed)
            second.interconnect.set_peers(clothed)
            await until(lambda: first.interconnect.connected and second.interconnect.connected, first, second)

    run(scenario())


@pytest.mark.parametrize("address", ["203.0.113.1:7000", "nonsense", "127.0.0.1:", "127.0.0.1:70000", "::1:80"])
def test_an_address_that_cannot_be_had_is_refused_with_what_to_do(office: Office, address: str) -> None:
    async def scenario() -> None:
        station = Station(0)
        with pytest.raises(InterconnectRefused, match=r"(correct|write)") as refusal:
            await station.interconnect.start(address, *office.keys(0))
        assert address in str(refusal.value)
        await station.interconnect.close()

    run(scenario())


def test_closing_leaves_no_socket_and_calls_nobody(office: Office) -> None:
    async def scenario() -> None:
        stations = [Station(node) for node in range(3)]
        before = len(os.listdir("/proc/self/fd"))
        async with running(office, *stations):
            seen = list(stations[0].links)
            stations[0].interconnect.send(1, beat())
            await stations[0].interconnect.close()
            assert stations[0].links == seen
            assert not stations[0].interconnect._channels
            assert not stations[0].interconnect.send(1, beat())
        assert len(os.listdir("/proc/self/fd")) == before

    run(scenario())


def test_all_addresses_are_used_together_and_a_link_is_up_as_long_as_one_path_is(office: Office) -> None:
    async def scenario() -> None:
        patient = FAST._replace(link_loss_beats=1000)  # nothing is sent here unless the test does it
        one, other = Station(0, profile=patient), Station(1, profile=patient)
        gates = [Gate(), Gate()]
        try:
            for station in (one, other):
                await station.interconnect.start(("127.0.0.1:0", "127.0.0.1:0"), *office.keys(station.node))
            for gate, address in zip(gates, one.interconnect.addresses, strict=True):
                await gate.open_to(address)
            one.interconnect.set_peers({1: ()})
            other.interconnect.set_peers({0: tuple(gate.address for gate in gates)})

            def states() -> list[object]:
                return [path["state"] for path in other.interconnect.paths(0)]

            await until(lambda: states() == ["up", "up"], one, other)
            one.messages.clear()
            other.interconnect.send(0, beat(7))
            await until(lambda: len(one.messages) >= 2, one)  # a heartbeat takes both
            other.interconnect.send(0, Abdicated(Term(3, 1)))
            await until(lambda: any(isinstance(message, Abdicated) for _, message in one.messages), one)
            losses = len(other.losses)
            for place, gate in enumerate(gates):
                await gate.cut()
                await until(lambda place=place: states()[place] == "down", other)  # type: ignore[misc]
                assert states()[1 - place] == "up"
                assert other.interconnect.connected == {0: 1}
                one.messages.clear()
                assert other.interconnect.send(0, Abdicated(Term(4, 1)))
                await until(lambda: one.messages, one)
                await gate.open_to(one.interconnect.addresses[place])
                await until(lambda: states() == ["up", "up"], one, other)
            assert len(other.losses) == losses  # the link was never lost
            for gate in gates:
                await gate.cut()
            await until(lambda: other.interconnect.connected == {}, other)
            assert len(other.losses) == losses + 1
        finally:
            for gate in gates:
                await gate.cut()
            for station in (one, other):
                await station.interconnect.close()

    asyncio.run(scenario())


def test_messages_leave_a_path_that_falls_silent_for_one_that_is_heard() -> None:
    class Heard:
        def __init__(self, path: int) -> None:
            self.path, self.heard_s = path, 0.0

    first, second = Heard(0), Heard(1)
    channels: list[Any] = [first, second]
    peer = Peer(1)
    peer.channels = channels

    def used() -> Any:
        return peer.used(0.15)

    first.heard_s = 10.0
    assert used() is first
    second.heard_s = 10.1
    assert used() is first  # a little later is no silence
    second.heard_s = 10.2
    assert used() is second
    first.heard_s = 10.25
    assert used() is second  # no going back and forth
    peer.channels = channels[:1]
    assert used() is first
