"""A node gets other addresses while the cluster runs, and no link and no member is lost (P1.8)."""

import asyncio
import socket
from pathlib import Path

import pytest

from core_cluster import CoreCluster, joined_cluster
from dev_cluster import DevCluster
from interconnect_trial import Office, Station, beat, run, running, until
from muster.daemon.trust.trust import NodeCredentials, Reason
from muster.dev.development_cluster import free_addresses
from muster.drivers.interconnect.mesh import LISTEN_AGAIN_S
from muster.records.levels import NodeState
from muster.records.nodes import NodeConfig, SetAddresses

PAIRS = ((0, 1), (1, 0))  # (who moves, its peer): whichever of the two has the lower id


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


# ---- the entry -------------------------------------------------------------------------------------------------------


def config(cluster: CoreCluster, node: int) -> NodeConfig:
    return cluster.database.nodes[node]


def test_p1_8_addresses_are_replaced_and_nothing_else() -> None:
    cluster = joined_cluster(3)
    before, states = config(cluster, 1), {node: cluster.state(node) for node in range(3)}
    cluster.do(0, SetAddresses("n1", ("10.0.0.9:1", "10.1.0.9:1")))
    after = config(cluster, 1)
    assert after.addresses == ("10.0.0.9:1", "10.1.0.9:1")
    assert (after.name, after.generation, after.certificate) == (before.name, before.generation, before.certificate)
    cluster.run(2000)
    assert {node: cluster.state(node) for node in range(3)} == states
    index = cluster.database.index
    assert "already" in cluster.do(0, SetAddresses("n1", ("10.0.0.9:1", "10.1.0.9:1"))).outcome
    assert cluster.database.index == index, "what changes nothing is not committed"


def test_p1_8_a_node_that_is_down_is_moved_too_and_boots() -> None:
    cluster = joined_cluster(3)
    cluster.kill(2)
    cluster.until("it is out", lambda: cluster.state(2) is NodeState.INACTIVE)
    assert not cluster.do(0, SetAddresses("n2", ("10.0.0.9:1",))).refused
    cluster.boot(2)
    cluster.until("it has joined", lambda: cluster.state(2) is NodeState.JOINED)
    assert config(cluster, 2).addresses == ("10.0.0.9:1",)


@pytest.mark.parametrize(
    ("addresses", "words"),
    [
        (("nonsense",), "HOST:PORT"),
        ((), "0 addresses"),
        (("h:1", "H:01"), "twice"),
        (("[::ffff:10.0.0.2]:7",), "n2 has the address"),
    ],
)
def test_p1_8_what_is_no_address_or_anothers_is_refused(addresses: tuple[str, ...], words: str) -> None:
    cluster = joined_cluster(3)
    cluster.do(0, SetAddresses("n2", ("10.0.0.2:7",)))
    reply = cluster.do(0, SetAddresses("n1", addresses))
    assert reply.refused and words in reply.outcome
    assert cluster.do(0, SetAddresses("n9", ("h:1",))).refused


def test_p1_8_it_cannot_be_asked_for_before_version_3_is_active() -> None:
    cluster = CoreCluster(2, active_version=2)
    cluster.boot(0, 1)
    cluster.until_joined(0, 1)
    reply = cluster.do(0, SetAddresses("n1", ("10.0.0.2:7",)))
    assert reply.refused and "version 3" in reply.outcome


# ---- connections -----------------------------------------------------------------------------------------------------


def accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1.0).close()
    except OSError:
        return False
    return True


async def goes_on(first: Station, second: Station) -> None:
    """Two stations have lost nothing, and hear each other; what was under way when they moved the rules send again."""

    def heard() -> bool:
        first.interconnect.send(second.node, beat(77))
        second.interconnect.send(first.node, beat(77))
        return len(first.messages) > before[0] and len(second.messages) > before[1]

    before = len(first.messages), len(second.messages)
    await until(heard, first, second)
    assert not first.losses
    assert not second.losses


@pytest.mark.parametrize(("mover", "other"), PAIRS)
def test_p1_8_peers_come_over_without_losing_the_link_and_then_the_old_address_is_left(
    office: Office, mover: int, other: int
) -> None:
    async def scenario() -> None:
        stations = [Station(0), Station(1)]
        moving, peer = stations[mover], stations[other]
        async with running(office, *stations):
            old = moving.address
            (new,) = free_addresses(1)
            moving.interconnect.set_own((new,))
            await until(lambda: new in moving.interconnect.addresses, moving)
            assert old in moving.interconnect.addresses, "nobody has come over yet"
            peer.interconnect.set_peers({mover: (new,), other: (peer.address,)})
            await until(lambda: moving.interconnect.addresses == (new,), *stations)
            assert not await asyncio.to_thread(accepts, old)
            await goes_on(moving, peer)
            assert [path["address"] for path in peer.interconnect.paths(mover)] == [new]

    run(scenario())


def test_p1_8_a_wrong_address_leaves_all_as_it_is_and_is_told(office: Office) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1)
        async with running(office, first, second):
            old = second.address
            wrong, right = free_addresses(2)
            second.interconnect.set_own(("192.0.2.1:7700",))  # an address that this machine has not
            first.interconnect.set_peers({0: (first.address,), 1: (wrong,)})
            await until(lambda: first.told("cannot connect", wrong) and second.told("cannot listen"), first, second)
            assert second.interconnect.addresses == (old,)
            await goes_on(first, second)
            second.interconnect.set_own((right,))
            first.interconnect.set_peers({0: (first.address,), 1: (right,)})
            await until(lambda: second.interconnect.addresses == (right,), first, second)
            await goes_on(first, second)

    run(scenario())


def test_p1_8_an_address_that_comes_up_later_is_taken_then(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        first, second = Station(0), Station(1)
        async with running(office, first, second):
            (new,) = free_addresses(1)
            host, _, port = new.rpartition(":")
            holder = socket.create_server((host, int(port)))
            second.interconnect.set_own((new,))
            first.interconnect.set_peers({0: (first.address,), 1: (new,)})
            await until(lambda: second.told("cannot listen", new), second)
            holder.close()
            await until(lambda: second.interconnect.addresses == (new,), first, second)
            await goes_on(first, second)

    assert LISTEN_AGAIN_S <= 1.0
    run(scenario())


def test_p1_8_with_nobody_connected_the_old_address_is_kept_until_the_new_one_can_be_had(office: Office) -> None:
    async def scenario() -> None:
        station = Station(0)
        async with running(office, station, meet=False):
            old = station.address
            station.interconnect.set_own(("192.0.2.1:7700",))
            await until(lambda: station.told("cannot listen"), station)
            await asyncio.sleep(0)
            assert station.interconnect.addresses == (old,)
            (new,) = free_addresses(1)
            station.interconnect.set_own((new,))
            await until(lambda: station.interconnect.addresses == (new,), station)

    run(scenario())


def test_p1_8_a_peer_that_stays_where_it_was_keeps_the_old_address_in_use(office: Office) -> None:
    async def scenario() -> None:
        stations = [Station(node) for node in range(3)]
        async with running(office, *stations):
            old = stations[1].address
            (new,) = free_addresses(1)
            stations[1].interconnect.set_own((new,))
            stations[0].interconnect.set_peers(
                {0: (stations[0].address,), 1: (new,), 2: (stations[2].address,)}
            )  # and n2 is of an older release, or has not read the entry
            await until(
                lambda: any(each.address == new for each in stations[1].interconnect._accepted.values()), *stations
            )
            assert set(stations[1].interconnect.addresses) == {old, new}
            await goes_on(stations[1], stations[2])
            await stations[2].interconnect.close()  # it has gone: nobody needs the old address
            await until(lambda: stations[1].interconnect.addresses == (new,), *stations[:2])
            assert [node for node, _ in stations[1].losses] == [2]

    run(scenario())


@pytest.mark.parametrize(("mover", "other"), PAIRS)
def test_p1_8_a_link_that_is_taken_away_ends_and_the_other_goes_on(office: Office, mover: int, other: int) -> None:
    async def scenario() -> None:
        stations = [Station(0), Station(1)]
        moving, peer = stations[mover], stations[other]
        two = tuple(free_addresses(2))
        async with running(office, *stations):
            await moving.interconnect.close()
            again = stations[mover] = moving = Station(mover, incarnation=2)
            await again.interconnect.start(two, *office.keys(mover))
            peers = {mover: two, other: (peer.address,)}
            for station in stations:
                station.interconnect.set_peers(peers)
            await until(lambda: len(peer.interconnect._peers[mover].channels) == 2, *stations)
            known = len(peer.losses), len(again.losses)
            again.interconnect.set_own(two[:1])
            peer.interconnect.set_peers({mover: two[:1], other: (peer.address,)})
            await until(lambda: again.interconnect.addresses == two[:1], *stations)
            await until(lambda: {c.path for c in peer.interconnect._peers[mover].channels} == {0}, *stations)
            assert (len(peer.losses), len(again.losses)) == known
            before = len(again.messages)
            await until(lambda: peer.interconnect.send(mover, beat(5)) and len(again.messages) > before, *stations)
            await again.interconnect.close()

    run(scenario())


def test_p1_8_who_reaches_nobody_is_told_of_it_so_that_the_store_can_be_asked(office: Office) -> None:
    asked: list[int] = []

    async def scenario() -> None:
        station = Station(0, on_unreachable=lambda: asked.append(1))
        async with running(office, station, meet=False):
            station.interconnect.set_peers({1: tuple(free_addresses(1))})
            await until(lambda: asked, station)

    run(scenario())


def test_p1_8_looks_into_the_store_for_an_address_use_up_none_of_those_for_trust(tmp_path: Path) -> None:
    credentials = NodeCredentials(0, tmp_path, lambda _event, _text: None)
    assert credentials.may_look_again(Reason.UNREACHABLE)
    assert not credentials.may_look_again(Reason.UNREACHABLE)
    assert credentials.may_look_again(Reason.DISTRUST)


# ---- a real cluster --------------------------------------------------------------------------------------------------


def test_p1_8_a_running_cluster_moves_its_nodes_and_nothing_happens_to_members_or_services(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    dev_cluster.up(3)
    file = tmp_path / "s.toml"
    file.write_text('[[service]]\nname = "web"\nrun = ["/bin/sleep", "1000"]\nallowable_nodes = ["n1"]\n')
    dev_cluster.succeed("apply", str(file))
    dev_cluster.wait_for("web", lambda status: status["services"]["web"]["state"] == "registered")
    before, epoch = dev_cluster.json("node", "list")["nodes"], dev_cluster.status()["epoch"]
    service = dev_cluster.json("service", "show", "web")["service"]
    old = before["n1"]["addresses"][0]
    port, second = (each.rpartition(":")[2] for each in free_addresses(2))
    new = f"127.0.0.2:{port}"
    dev_cluster.succeed("node", "set-addresses", "n1", new)

    def moved() -> bool:
        return accepts(new) and not accepts(old)

    dev_cluster.wait_for("n1 has moved", lambda _status: moved())
    after = dev_cluster.json("node", "list")["nodes"]
    assert after["n1"]["addresses"] == [new]
    assert {name: each["incarnation"] for name, each in after.items()} == {
        name: each["incarnation"] for name, each in before.items()
    }
    status = dev_cluster.status()
    assert {each["state"] for each in status["nodes"].values()} == {"joined"}
    assert {each["link"] for each in status["nodes"].values()} == {True}
    assert status["epoch"] == epoch, "no node's state has changed"
    assert dev_cluster.json("service", "show", "web")["service"]["generation"] == service["generation"]
    # a boot goes by the store; also that of a node that was down when its address was changed
    dev_cluster.succeed("dev", "kill", "n1")
    dev_cluster.wait_for("n1 is out", lambda status: status["nodes"]["n1"]["state"] == "inactive", node="n0")
    dev_cluster.succeed("node", "set-addresses", "n1", f"127.0.0.1:{second}", "--node", "n0")
    dev_cluster.succeed("dev", "boot", "n1")
    whole = {"joined"}
    dev_cluster.wait_for(
        "n1 is back",
        lambda status: (
            {each["state"] for each in status["nodes"].values()} == whole
            and all(each["link"] for each in status["nodes"].values())
        ),
        node="n0",
    )
    assert accepts(f"127.0.0.1:{second}") and not accepts(new)
