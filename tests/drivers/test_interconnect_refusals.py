"""Whom the interconnect refuses, and that it costs nothing else (SPEC 1.6, 7.8, 9.2)."""

import contextlib
import copy
import ssl
from datetime import datetime

import pytest

from interconnect_trial import (
    CLUSTER,
    DAY,
    NOW,
    QUICK,
    Office,
    Station,
    beat,
    ends,
    frame,
    raw,
    raw_or_alert,
    receive,
    run,
    running,
    undisturbed,
    until,
)
from muster.drivers.certificates.certificates import CertificateRefused
from muster.drivers.interconnect import mesh as interconnect_module
from muster.drivers.interconnect.channel import MAXIMUM_HELLO_BYTES, Cause
from muster.drivers.interconnect.mesh import TroubleTable
from muster.records.messages import (
    MAXIMUM_FRAME_BYTES,
    WIRE_VERSIONS,
    Hello,
    LocalQuestion,
    version_of,
)
from muster.records.timing import FAST
from muster.records.versions import LOWEST


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


@pytest.fixture(scope="module")
def other_office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    """Another cluster's authority."""
    return Office(tmp_path_factory.mktemp("other"), "f" * 32)


REFUSED_CERTIFICATES = [
    ({"not_before": NOW - 2 * DAY, "not_after": NOW - DAY}, ("certificate has expired", "clocks")),
    ({"not_before": NOW + DAY, "not_after": NOW + 2 * DAY}, ("certificate is not yet valid", "clocks")),
]


@pytest.mark.parametrize(("validity", "words"), REFUSED_CERTIFICATES)
def test_a_peer_whose_certificate_is_out_of_its_time_is_refused_once_and_by_name_of_the_reason(
    office: Office, validity: dict[str, datetime], words: tuple[str, ...]
) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1)
        async with running(office, first, second):
            for _ in range(3):
                async with raw_or_alert(first.port, office.client(5, **validity)) as reader:
                    await ends(reader)
            await until(lambda: first.told(*words), first)
            await undisturbed(first, second)
            assert len(first.told(*words)) == 1

    run(scenario())


def test_an_expired_certificate_of_ones_own_stops_the_start(office: Office) -> None:
    async def scenario() -> None:
        for validity, words in REFUSED_CERTIFICATES:
            station = Station(0)
            with pytest.raises(CertificateRefused, match=f"certificate of this node.*{words[0]}"):
                await station.interconnect.start("127.0.0.1:0", *office.keys(0, **validity))
            await station.interconnect.close()

    run(scenario())


def test_a_certificate_made_for_another_node_stops_the_start(office: Office) -> None:
    async def scenario() -> None:
        station = Station(0)
        with pytest.raises(CertificateRefused, match=rf"names muster://{CLUSTER}/4, and this is node 0"):
            await station.interconnect.start("127.0.0.1:0", *office.keys(4))
        await station.interconnect.close()

    run(scenario())


def test_a_certificate_of_another_clusters_authority_is_refused(office: Office, other_office: Office) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1)
        async with running(office, first, second):
            async with raw_or_alert(first.port, other_office.client(1)) as reader:
                await ends(reader)
            await until(lambda: first.told("127.0.0.1", "certificate is refused", "this cluster's authority"), first)
            await undisturbed(first, second)

    run(scenario())


def test_a_node_of_another_cluster_behind_a_configured_address_is_refused(office: Office, other_office: Office) -> None:
    async def scenario() -> None:
        first, foreign = Station(0), Station(1, cluster="f" * 32)
        async with running(office, first, meet=False), running(other_office, foreign, meet=False):
            first.interconnect.set_peers({1: (foreign.address,)})
            foreign.interconnect.set_peers({0: (first.address,)})
            await until(lambda: first.told("node 1", "certificate is refused"), first)
            await until(lambda: foreign.told("node 0", "certificate is refused"), foreign)
            assert not first.links
            assert not foreign.links

    run(scenario())


def test_a_certificate_of_ones_own_authority_for_another_cluster_is_refused(office: Office) -> None:
    async def scenario() -> None:
        elsewhere = copy.copy(office)  # one authority for two clusters
        elsewhere.cluster = "f" * 32
        first, second = Station(0), Station(1)
        async with running(office, first, second):
            async with raw_or_alert(first.port, elsewhere.client(1)) as reader:
                await ends(reader)
            await until(lambda: first.told("127.0.0.1", f"its certificate is of cluster {'f' * 32}"), first)
            await undisturbed(first, second)

    run(scenario())


def test_another_node_than_meant_behind_an_address_is_refused(office: Office) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1)
        async with running(office, first, second, meet=False):
            second.interconnect.set_peers({0: ()})
            first.interconnect.set_peers({2: (second.address,)})
            await until(lambda: first.told("node 1 answers there, not node 2", "configured addresses"), first)
            assert not first.links

    run(scenario())


REFUSED_HELLOS = [
    (Hello(CLUSTER, 2, 9, *WIRE_VERSIONS), "calls itself node 2, and its certificate names node 1"),
    (Hello("e" * 32, 1, 9, *WIRE_VERSIONS), "it is of cluster"),
    (Hello(CLUSTER, 1, 9, 7, 9), "it speaks versions 7 to 9, this node {} to {}".format(*WIRE_VERSIONS)),
    (Hello(CLUSTER, 1, 9, 0, 0), "it speaks versions 0 to 0, this node {} to {}".format(*WIRE_VERSIONS)),
]


@pytest.mark.parametrize(("hello", "reason"), REFUSED_HELLOS)
def test_a_hello_that_does_not_fit_is_refused_with_the_reason_and_answered_with_ours(
    office: Office, hello: Hello, reason: str
) -> None:
    async def scenario() -> None:
        station = Station(0)
        async with running(office, station, meet=False):
            station.interconnect.set_peers({1: (), 2: ()})
            for _ in range(2):
                async with raw(station.port, office.client(1)) as (reader, writer):
                    writer.write(frame(hello) + frame(beat()))
                    assert await receive(reader) == Hello(CLUSTER, 0, 1, *WIRE_VERSIONS)
                    assert await ends(reader) == b""
            assert len(station.told("node 1 at 127.0.0.1", reason)) == 1
            assert not station.links
            assert not station.messages

    run(scenario())


def test_nodes_whose_version_ranges_do_not_meet_both_name_both_ranges(office: Office) -> None:
    async def scenario() -> None:
        old, new = Station(0, versions=(1, 2)), Station(1, versions=(3, 5))
        async with running(office, old, new, meet=False):
            old.interconnect.set_peers({1: (new.address,)})
            new.interconnect.set_peers({0: ()})
            await until(lambda: old.told("speaks versions 3 to 5, this node 1 to 2", "upgrade the older"), old, new)
            await until(lambda: new.told("speaks versions 1 to 2, this node 3 to 5", "upgrade the older"), old, new)
            assert not old.links
            assert not new.links

    run(scenario())


def test_nodes_whose_version_ranges_overlap_connect(office: Office) -> None:
    async def scenario() -> None:
        async with running(office, Station(0, versions=(1, 3)), Station(1, versions=(3, 5))):
            pass  # `running` waits for the connection

    run(scenario())


def test_p10_1_a_node_that_cannot_follow_the_active_version_is_refused_and_stands_in_the_status(office: Office) -> None:
    async def scenario() -> None:
        new, old = Station(0, versions=(1, 3)), Station(1, versions=(1, 2))
        async with running(office, new, old, meet=False):
            new.interconnect.active_version = 3
            new.interconnect.set_peers({1: (old.address,)})
            old.interconnect.set_peers({0: ()})
            text = "it speaks versions 1 to 2, and version 3 is active in this cluster"
            await until(lambda: new.told(text, "install a release that knows it on node 1"), new, old)
            assert text in new.interconnect.barred[1]
            new.interconnect.active_version = 2
            await until(lambda: 1 in new.interconnect.connected, new, old)
            assert not new.interconnect.barred

    run(scenario())


def test_p10_1_what_a_version_added_is_not_sent_before_it_is_active(office: Office) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1)
        added = LocalQuestion("q", "status")
        async with running(office, first, second):
            for active, is_sent in ((LOWEST, False), (version_of(added), True)):
                first.interconnect.active_version = active
                assert first.interconnect.send(1, added) is is_sent
                await undisturbed(first, second)
                assert ((0, added) in second.messages) is is_sent

    run(scenario())


def test_a_clone_under_this_nodes_own_id_is_refused(office: Office) -> None:
    async def scenario() -> None:
        station, clone = Station(0), Station(0)
        async with running(office, station, clone, meet=False):
            async with raw(station.port, office.client(0)) as (reader, writer):
                writer.write(frame(Hello(CLUSTER, 0, 1, *WIRE_VERSIONS)))
                assert await ends(reader) == b""
            assert station.told("it is node 0, and so is this one")

    run(scenario())


def test_a_client_without_certificate_is_refused(office: Office) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1)
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
        async with running(office, first, second):
            async with raw_or_alert(first.port, bare) as reader:
                await ends(reader)
            await until(lambda: first.told("127.0.0.1", "presented no certificate"), first)
            await undisturbed(first, second)

    run(scenario())


def test_an_older_tls_is_refused(office: Office) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1)
        context = office.client(5)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        async with running(office, first, second):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                async with raw(first.port, context):
                    pass
            await until(lambda: first.told("127.0.0.1", "does not speak TLS 1.3"), first)
            await undisturbed(first, second)

    run(scenario())


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        bytes(range(256)) * 20,
        b"\x16\x03\x01\x40\x00" + b"\x01" * 16_384,  # looks like a TLS record, and is none
        b"\x00" * 5,
        b"",
    ],
)
def test_plain_garbage_is_refused_and_told_once(office: Office, garbage: bytes) -> None:
    async def scenario() -> None:
        first, second = Station(0, profile=QUICK), Station(1)
        async with running(office, first, second):
            for _ in range(3):
                async with raw(first.port) as (reader, writer):
                    writer.write(garbage)
                    if not garbage:
                        writer.write_eof()
                    await ends(reader)
            await until(lambda: not first.interconnect._half_open and first.told("interconnect: 127.0.0.1: "), first)
            strangers = first.told("interconnect: 127.0.0.1: ")
            assert len(strangers) == len(set(strangers))
            await undisturbed(first, second)

    run(scenario())


MALFORMED_GREETINGS = [
    ((MAXIMUM_HELLO_BYTES + 1).to_bytes(4, "little"), "a frame of 1025 bytes, where 1024 are allowed"),
    (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
    (frame(beat()), "Heartbeat out of turn"),
    ((4).to_bytes(4, "little") + b"\xc1\xc1\xc1\xc1", "a frame that is no message"),
    ((0).to_bytes(4, "little"), "a frame that is no message"),
    ((64).to_bytes(4, "little") + b"\x91" * 64, "a frame that is no message"),
]


@pytest.mark.parametrize(("data", "reason"), MALFORMED_GREETINGS)
def test_a_malformed_greeting_of_an_authenticated_peer_is_refused(office: Office, data: bytes, reason: str) -> None:
    async def scenario() -> None:
        station = Station(0)
        async with running(office, station, meet=False):
            station.interconnect.set_peers({1: ()})
            async with raw(station.port, office.client(1)) as (reader, writer):
                writer.write(data)
                assert await ends(reader) == b""
            assert station.told("node 1 at 127.0.0.1", reason)
            assert not station.links

    run(scenario())


MALFORMED_FRAMES = [
    ((MAXIMUM_FRAME_BYTES + 1).to_bytes(4, "little"), "where 33554432 are allowed"),
    (frame(Hello(CLUSTER, 1, 9, *WIRE_VERSIONS)), "Hello out of turn"),
    ((3).to_bytes(4, "little") + b"\x93\x02\x01", "a frame that is no message"),
    ((2).to_bytes(4, "little") + b"\x92\x63", "a frame that is no message"),
]


@pytest.mark.parametrize(("data", "reason"), MALFORMED_FRAMES)
def test_a_malformed_frame_on_an_open_connection_ends_it_after_what_came_before(
    office: Office, data: bytes, reason: str
) -> None:
    async def scenario() -> None:
        station = Station(0)
        async with running(office, station, meet=False):
            station.interconnect.set_peers({1: ()})
            async with raw(station.port, office.client(1)) as (reader, writer):
                writer.write(frame(Hello(CLUSTER, 1, 9, *WIRE_VERSIONS)))
                assert isinstance(await receive(reader), Hello)
                writer.write(frame(beat(1)) + data + frame(beat(2)))
                assert await ends(reader) == b""
            assert station.messages == [(1, beat(1))]
            assert station.links[0] == (1, 9)
            assert len(station.losses) == 1
            assert reason in str(station.losses[0][1])
            assert station.told("node 1", reason)

    run(scenario())


@pytest.mark.parametrize("secured", [False, True])
def test_half_a_frame_and_then_silence_before_hello_is_ended_in_time(office: Office, secured: bool) -> None:
    async def scenario() -> None:
        station = Station(0, profile=QUICK)
        async with running(office, station, meet=False):
            station.interconnect.set_peers({1: ()})
            async with raw(station.port, office.client(1) if secured else None) as (reader, writer):
                writer.write(b"\x16\x03\x01" if not secured else b"\x30\x00\x00\x00half")
                assert await ends(reader) == b""
            assert station.told("127.0.0.1", "no handshake and Hello within 400 ms")
            assert not station.interconnect._half_open

    run(scenario())


def test_half_a_frame_and_then_silence_on_an_open_connection_is_ended_in_time(office: Office) -> None:
    async def scenario() -> None:
        station = Station(0, profile=QUICK)
        async with running(office, station, meet=False):
            station.interconnect.set_peers({1: ()})
            async with raw(station.port, office.client(1)) as (reader, writer):
                writer.write(frame(Hello(CLUSTER, 1, 9, *WIRE_VERSIONS)))
                assert isinstance(await receive(reader), Hello)
                writer.write(frame(beat())[:-1])
                assert await ends(reader) == b""
            assert station.losses == [(1, "it stopped within a frame for 400 ms; is its machine overloaded?")]

    run(scenario())


def test_connections_without_handshake_are_bounded_and_keep_no_node_out(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interconnect_module, "MAXIMUM_HALF_OPEN", 16)

    async def scenario() -> None:
        station, late = Station(0, profile=FAST._replace(connect_ms=20_000)), Station(1)
        async with running(office, station, late, meet=False):
            station.interconnect.set_peers({1: ()})
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(50):
                    await stack.enter_async_context(raw(station.port))
                await until(lambda: station.told("more than 16 connections wait for a handshake"), station)
                assert len(station.interconnect._half_open) <= 16
                late.interconnect.set_peers({0: (station.address,)})
                await until(lambda: station.interconnect.connected == {1: 1}, station, late)
            assert len(station.told("more than 16 connections")) == 1

    run(scenario())


def test_a_trouble_is_told_once_for_each_source_and_the_table_is_bounded() -> None:
    told: list[str] = []
    table = TroubleTable(told.append)
    for _ in range(3):
        table.note("a", Cause("x", "x happened"))
        table.note("b", Cause("x", "x happened"))
        table.note("a", Cause("y", "y happened"))
    assert told == [
        "interconnect: a: x happened",
        "interconnect: b: x happened",
        "interconnect: a: y happened",
    ]
    table.forget("a")
    table.note("a", Cause("x", "x happened"))
    assert told[3:] == ["interconnect: a: x happened"]
    for number in range(10 * interconnect_module.MAXIMUM_TROUBLES):
        table.note(f"source {number}", Cause("x", "x happened"))
    assert len(table._told) == interconnect_module.MAXIMUM_TROUBLES
    assert len(told) == interconnect_module.MAXIMUM_TROUBLES + 3  # one forgotten, told again, and the overflow
    assert "further ones are not told" in told[-1]
