"""Whom a node trusts, and with whose signature: rules P1.1 and P1.5 over real TLS (SPEC 1.6)."""

import asyncio
import stat
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Self, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from interconnect_trial import CLUSTER, DAY, NOW, Keys, Office, Station, run, until
from muster.core.inputs import RestartHeld
from muster.daemon.signs import signs as signs_module
from muster.daemon.signs.signs import SignsWatch
from muster.daemon.trust.authority_keys import AuthorityKeys
from muster.daemon.trust.trust import FIRST_PAUSE_S, NodeCredentials, Reason, own_certificate
from muster.drivers.certificates import signing
from muster.drivers.certificates.certificates import (
    CertificateRefused,
    Subject,
    client_context,
    create_authority,
    describe,
    request_certificate,
    server_context,
    verify_pair,
)
from muster.drivers.certificates.fields import NoCertificate, key_pin, split, validity
from muster.drivers.certificates.private_files import write_private
from muster.drivers.certificates.signing import NewAuthority, Reissue, SignRequest, sign
from muster.drivers.interconnect.mesh import Interconnect, Trust
from muster.drivers.machine.own_links import OwnLinks
from muster.records.database import Database
from muster.records.messages import Heartbeat, KeyAnswer, KeyRequest, Message
from muster.records.nodes import Cluster, NodeConfig, fingerprint
from muster.records.terms import NO_TERM
from muster.records.timing import FAST


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


class Mesh:
    """Two stations that go by a record of each other's keys."""

    def __init__(self, office: Office) -> None:
        self.keys = [office.keys(0), office.keys(1)]
        self.stations = [Station(0), Station(1)]
        self.office = office

    def trust(self, *pins: str, authorities: str = "") -> Trust:
        """A record of these keys, in place of the stations' own where empty ones are given."""
        found = [pin or key_pin(keys.certificate_pem) for pin, keys in zip(pins, self.keys, strict=True)]
        return Trust(authorities or self.office.authority.certificate_pem, dict(enumerate(found)))

    async def __aenter__(self) -> Self:
        for station, keys in zip(self.stations, self.keys, strict=True):
            await station.interconnect.start("127.0.0.1:0", *keys)
            station.interconnect.set_trust(self.trust("", ""), keys.certificate_pem)
        for station in self.stations:
            station.interconnect.set_peers({other.node: (other.address,) for other in self.stations})
        return self

    async def __aexit__(self, *_: object) -> None:
        for station in self.stations:
            await station.interconnect.close()

    async def connected(self) -> None:
        """Wait until they are."""
        await until(lambda: all(station.interconnect.connected for station in self.stations), *self.stations)


def test_p1_1_only_the_key_on_record_is_accepted_and_a_change_ends_connections(office: Office) -> None:
    async def scenario() -> None:
        async with Mesh(office) as mesh:
            await mesh.connected()
            first, second = mesh.stations
            other = key_pin(office.keys(1).certificate_pem)  # of the same authority and for the same node
            first.interconnect.set_trust(mesh.trust("", other), mesh.keys[0].certificate_pem)
            await until(lambda: first.losses and not first.interconnect.connected, first, second)
            await until(lambda: first.told("on record"), first, second)
            assert not first.interconnect.connected
            first.interconnect.set_trust(mesh.trust("", ""), mesh.keys[0].certificate_pem)
            await mesh.connected()

    run(scenario())


def test_p1_1_a_node_that_is_not_enrolled_or_not_configured_gets_in_with_no_certificate(office: Office) -> None:
    async def scenario() -> None:
        async with Mesh(office) as mesh:
            await mesh.connected()
            first, second = mesh.stations
            pins = {0: key_pin(mesh.keys[0].certificate_pem), 1: ""}
            first.interconnect.set_trust(Trust(office.authority.certificate_pem, pins), mesh.keys[0].certificate_pem)
            await until(lambda: first.losses, first, second)
            await until(lambda: first.told("on record"), first, second)
            first.interconnect.set_trust(
                Trust(office.authority.certificate_pem, {0: pins[0]}), mesh.keys[0].certificate_pem
            )
            first.interconnect.set_peers({0: (first.address,)})
            await until(lambda: first.told("not configured"), first, second)
            assert not first.interconnect.connected

    run(scenario())


def test_p1_1_certificates_of_two_authorities_are_accepted_while_one_replaces_the_other(tmp_path: Path) -> None:
    """A rotation as one pair of nodes sees it: trust both, show the new certificate, drop the old authority."""
    old, new = Office(tmp_path / "old"), Office(tmp_path / "new")

    def again(keys: Keys, node: int) -> str:
        job = Reissue(
            new.authority.certificate_pem,
            str(tmp_path / "key.pem"),
            ((Subject(node, f"n{node}", CLUSTER), keys.certificate_pem),),
        )
        (certificate,) = signing.carry_out(job).certificates
        return certificate

    (tmp_path / "key.pem").write_text(new.authority.key_pem)
    (tmp_path / "key.pem").chmod(0o600)

    async def scenario() -> None:
        async with Mesh(old) as mesh:
            await mesh.connected()
            alone = new.authority.certificate_pem
            both = old.authority.certificate_pem + new.authority.certificate_pem
            first, second = mesh.stations
            renewed = [again(keys, node) for node, keys in enumerate(mesh.keys)]
            with pytest.raises(CertificateRefused):
                first.interconnect.set_trust(mesh.trust("", ""), renewed[0])  # of an authority that it does not trust
            for station, keys in zip(mesh.stations, mesh.keys, strict=True):
                station.interconnect.set_trust(mesh.trust("", "", authorities=both), keys.certificate_pem)
            first.interconnect.set_trust(mesh.trust("", "", authorities=both), renewed[0])
            await _reconnect(first, second)
            for station, certificate in zip(mesh.stations, renewed, strict=True):
                station.interconnect.set_trust(mesh.trust("", "", authorities=alone), certificate)
            await _reconnect(first, second)
            first.interconnect.set_trust(mesh.trust("", "", authorities=alone), renewed[0])

    run(scenario())


async def _reconnect(first: Station, second: Station) -> None:
    """A new connection with what each shows and trusts now; keys have not changed, so the old one did not end."""
    assert first.interconnect.connected and second.interconnect.connected
    seen = len(first.losses)
    peers = {station.node: (station.address,) for station in (first, second)}
    second.interconnect.set_peers({})
    await until(lambda: len(first.losses) > seen, first, second)
    second.interconnect.set_peers(peers)
    await until(lambda: first.interconnect.connected and second.interconnect.connected, first, second)


def test_p1_1_who_refuses_and_who_is_refused_hears_that_its_record_may_be_old(office: Office) -> None:
    async def scenario() -> None:
        told: list[int] = []
        mesh = Mesh(office)
        mesh.stations = [Station(node, on_distrust=lambda node=node: told.append(node)) for node in (0, 1)]
        async with mesh:
            await mesh.connected()
            first, second = mesh.stations
            first.interconnect.set_trust(
                mesh.trust("", key_pin(office.keys(1).certificate_pem)), mesh.keys[0].certificate_pem
            )
            await until(lambda: {0, 1} <= set(told), first, second)

    run(scenario())


# --- what is read of certificates ------------------------------------------------------------------------------------


def test_p1_1_key_and_validity_are_read_as_the_maker_of_certificates_reads_them(office: Office) -> None:
    authority = office.authority
    for end in (NOW + DAY, NOW.replace(year=2049), NOW.replace(year=2061)):
        authority = create_authority("far", CLUSTER, not_after=end + DAY)
        known = x509.load_pem_x509_certificate(authority.certificate_pem.encode())
        spki = known.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        digest = hashes.Hash(hashes.SHA256())
        digest.update(spki)
        assert key_pin(authority.certificate_pem) == digest.finalize().hex()
        assert validity(authority.certificate_pem) == (known.not_valid_before_utc, known.not_valid_after_utc)
    two = office.authority.certificate_pem + authority.certificate_pem
    assert split(two) == [office.authority.certificate_pem, authority.certificate_pem]


def test_p1_1_bytes_that_are_no_certificate_are_refused_whatever_they_are(office: Office) -> None:
    der = x509.load_pem_x509_certificate(office.authority.certificate_pem.encode()).public_bytes(
        serialization.Encoding.DER
    )
    key_pin(der)
    for wrong in (b"", b"\x30", b"\x30\x80", b"\x30\x03\x30\x01\x00", der[:200], b"\x31" + der[1:], "no PEM"):
        with pytest.raises(NoCertificate):
            key_pin(wrong)


# --- the authority's key ---------------------------------------------------------------------------------------------


class Keepers:
    """Nodes' keys of the authority, and the messages between them."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.notes: list[str] = []
        self.sent: list[Message] = []
        self.homes = [folder / f"n{node}" for node in range(count)]
        self.nodes: list[AuthorityKeys] = []
        for node, home in enumerate(self.homes):
            home.mkdir()
            self.nodes.append(
                AuthorityKeys(home, self._sender(node), lambda event, text: self.notes.append(event + text))
            )

    def _sender(self, sender: int):  # type: ignore[no-untyped-def]
        def send(node: int, message: Message) -> None:
            self.sent.append(message)
            assert self.nodes[node].takes(sender, message)

        return send


@pytest.fixture
def keepers(tmp_path: Path) -> Keepers:
    return Keepers(tmp_path)


def test_p1_5_a_member_without_the_key_gets_it_from_one_that_has_it(office: Office, keepers: Keepers) -> None:
    authority = office.authority
    cluster = Cluster("c", CLUSTER, "fast", authority.certificate_pem)
    first, second = keepers.nodes
    first.keep(authority.certificate_pem, authority.key_pem)
    assert not second.holds(authority.certificate_pem)
    second.follow(cluster, (0,))
    assert second.holds(authority.certificate_pem)
    path = Path(second.path(authority.certificate_pem))
    assert path.read_text() == authority.key_pem
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    asked = len(keepers.sent)
    second.follow(cluster, (0,))
    assert len(keepers.sent) == asked, "who has it asks nobody"
    assert not any(authority.key_pem in note for note in keepers.notes)
    assert not first.takes(1, Heartbeat(1, NO_TERM, 0))


def test_p1_5_a_key_is_taken_only_when_it_was_asked_for_and_is_that_authoritys(
    office: Office, keepers: Keepers
) -> None:
    authority, stranger = office.authority, create_authority("other", CLUSTER)
    (first, _) = keepers.nodes
    name = fingerprint(authority.certificate_pem)
    assert first.takes(1, KeyAnswer(name, authority.key_pem))
    assert not first.holds(authority.certificate_pem), "nobody has asked"
    first.follow(Cluster("c", CLUSTER, "fast", authority.certificate_pem), ())
    assert first.takes(1, KeyAnswer(name, stranger.key_pem))
    assert not first.holds(authority.certificate_pem), "it is the key of another authority"
    assert first.takes(1, KeyRequest("../../etc/passwd"))
    assert first.takes(1, KeyAnswer(name, authority.key_pem))
    assert first.holds(authority.certificate_pem)


def test_p1_5_a_replaced_authoritys_key_is_deleted_and_a_fresh_one_is_kept(office: Office, keepers: Keepers) -> None:
    old, new = office.authority, create_authority("new", CLUSTER)
    (first, _) = keepers.nodes
    first.keep(old.certificate_pem, old.key_pem)
    first.keep_fresh(new.certificate_pem, new.key_pem)
    first.follow(Cluster("c", CLUSTER, "fast", old.certificate_pem), ())
    assert first.holds(new.certificate_pem), "it is about to be proposed"
    first.proposed(new.certificate_pem)
    first.follow(Cluster("c", CLUSTER, "fast", old.certificate_pem, incoming=new.certificate_pem), ())
    assert first.holds(old.certificate_pem) and first.holds(new.certificate_pem)
    first.follow(Cluster("c", CLUSTER, "fast", new.certificate_pem), ())
    assert first.holds(new.certificate_pem) and not first.holds(old.certificate_pem)


def test_p1_5_signing_is_done_in_a_process_of_its_own(office: Office, keepers: Keepers, tmp_path: Path) -> None:
    authority = office.authority.certificate_pem
    (first, _) = keepers.nodes
    first.keep(authority, office.authority.key_pem)
    key_pem, request = request_certificate("n7")
    subject = Subject(7, "n7", CLUSTER)

    async def scenario() -> str:
        (certificate,) = (
            await sign(SignRequest(authority, first.path(authority), subject, request, 3600))
        ).certificates
        return certificate

    certificate = asyncio.run(scenario())
    described = describe(certificate)
    assert described.identity is not None and described.identity.uri == f"muster://{CLUSTER}/7"
    assert timedelta(0) < described.not_after - NOW < timedelta(hours=2)
    key = tmp_path / "n7.pem"
    key.write_text(key_pem)
    key.chmod(0o600)
    verify_pair(server_context(certificate, str(key), authority), client_context(certificate, str(key), authority))
    again = signing.carry_out(Reissue(authority, first.path(authority), ((subject, certificate),), 7200))
    assert key_pin(again.certificates[0]) == key_pin(certificate)
    assert validity(again.certificates[0]).not_after > validity(certificate).not_after
    same = signing.carry_out(Reissue(authority, first.path(authority), ((subject, certificate),)))
    assert validity(same.certificates[0]) == validity(certificate)


def test_p1_5_what_cannot_be_signed_is_refused_with_its_reason(office: Office, keepers: Keepers) -> None:
    authority = office.authority.certificate_pem
    (first, _) = keepers.nodes
    subject = Subject(7, "n7", CLUSTER)
    _, request = request_certificate("n7")

    async def scenario() -> None:
        with pytest.raises(CertificateRefused, match="No such file"):
            await sign(SignRequest(authority, first.path(authority), subject, request, 3600))
        first.keep(authority, office.authority.key_pem)
        with pytest.raises(CertificateRefused, match="request"):
            await sign(SignRequest(authority, first.path(authority), subject, "nonsense", 3600))
        made = await sign(NewAuthority("prod", CLUSTER))
        assert describe(made.certificates[0]).is_authority
        with pytest.raises(CertificateRefused, match="another certificate"):
            first.keep(authority, made.key)

    asyncio.run(scenario())


# ---- what a node shows, and which record it goes by ------------------------------------------------------------------


def test_p1_1_of_record_and_home_the_later_certificate_for_the_key_on_record_is_shown(
    office: Office, tmp_path: Path
) -> None:
    keys = office.keys(0, not_after=NOW + 10 * DAY)
    authorities = office.authority.certificate_pem
    config = NodeConfig(0, "n0", (), keys.certificate_pem)
    write_private(tmp_path / "key.pem", Path(keys.key_path).read_text())

    def shown(certificate: str) -> bool:
        """Whether this one, in the home, is shown."""
        (tmp_path / "certificate.pem").write_text(certificate)
        return own_certificate(config, tmp_path, authorities) == certificate

    assert own_certificate(config, tmp_path, authorities) == keys.certificate_pem
    later, earlier = (_for_the_key(office, keys, NOW + days * DAY) for days in (20, 5))
    assert shown(later)
    assert not shown(earlier)
    assert not shown(office.keys(0, not_after=NOW + 20 * DAY).certificate_pem)  # for another key: nobody takes it
    assert not shown("this is no certificate")


def _for_the_key(office: Office, keys: Keys, not_after: datetime) -> str:
    old = x509.load_pem_x509_certificate(keys.certificate_pem.encode())
    made = x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer).public_key(old.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(old.not_valid_before_utc)
    made = made.not_valid_after(not_after)
    for extension in old.extensions:
        made = made.add_extension(extension.value, extension.critical)
    signer = serialization.load_pem_private_key(office.authority.key_pem.encode(), None)
    signed = made.sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    return signed.public_bytes(serialization.Encoding.PEM).decode()


class Followed:
    """In the place of an interconnect: what it was told to go by."""

    def __init__(self) -> None:
        self.peers: list[int] = []
        self.trusts: list[list[int]] = []

    def set_peers(self, peers: dict[int, object]) -> None:
        """Who is configured."""
        self.peers = sorted(peers)

    def set_own(self, addresses: object) -> None:
        """Where it listens."""

    def set_trust(self, trust: Trust, _certificate: str) -> None:
        """Whom it accepts."""
        self.trusts.append(sorted(trust.keys))


def record_of_nodes(index: int, *nodes: int, identity: str = CLUSTER) -> Database:
    configured = {node: NodeConfig(node, f"n{node}", (), f"certificate {node}") for node in nodes}
    return Database(Cluster("trial", identity, "fast", "authority"), index, nodes=configured)


def test_p1_1_a_newer_record_of_the_store_is_gone_by_until_the_replica_has_got_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed, replica = Followed(), [record_of_nodes(10, 0, 1, 2)]
    credentials = NodeCredentials(0, tmp_path, lambda _event, _text: None)
    to = cast("Interconnect", followed)

    def look(found: Database) -> None:
        record = SimpleNamespace(database=found, header=SimpleNamespace(identity=found.cluster.identity))
        monkeypatch.setattr("muster.daemon.trust.trust.newest_record", lambda _store: record)
        asyncio.run(credentials.look_again("store", lambda: replica[0], to))

    credentials.follow(replica[0], to)  # its own certificate cannot be used: whom to accept is followed all the same
    assert followed.trusts == [[0, 1, 2]]
    credentials.follow(replica[0], to)
    assert len(followed.trusts) == 1  # nothing has changed
    assert credentials.may_look_again(Reason.DISTRUST)
    look(record_of_nodes(9, 0))
    look(record_of_nodes(10, 0))
    assert credentials._looks[Reason.DISTRUST].pause_s == 2 * FIRST_PAUSE_S  # it is looked at ever more seldom
    look(record_of_nodes(99, 0, identity="f" * 32))  # of another cluster
    assert (len(followed.trusts), followed.peers) == (1, [0, 1, 2])
    look(record_of_nodes(20, 0, 1))
    assert (followed.trusts[-1], followed.peers) == ([0, 1], [0, 1])  # n2 was removed: it opens nothing any more
    replica[0] = record_of_nodes(15, 0, 1, 2)
    credentials.follow(replica[0], to)
    assert (followed.trusts[-1], followed.peers) == ([0, 1], [0, 1])
    replica[0] = record_of_nodes(21, 0, 1, 3)
    credentials.follow(replica[0], to)
    assert (followed.trusts[-1], followed.peers) == ([0, 1, 3], [0, 1, 3])


def test_p10_3_a_daemon_whose_certificate_is_out_of_time_is_not_started_anew(office: Office) -> None:
    fed: list[object] = []
    keys = office.keys(0, not_after=NOW + DAY)
    config = SimpleNamespace(certificate=keys.certificate_pem)
    node = SimpleNamespace(
        me=0, setup=SimpleNamespace(profile=FAST), database=SimpleNamespace(nodes={0: config}),
        links=SimpleNamespace(frame_age_us=lambda _peer, _now: 0),
    )  # fmt: skip

    async def scenario() -> None:
        signs = SignsWatch(SimpleNamespace(node=node, feed=fed.append), OwnLinks())  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(signs_module, "CLOCK_PAUSE_US", 0)
            patch.setattr(signs, "_pause_us", 0)
            signs.look()
            assert fed == []
            patch.setattr("muster.daemon.trust.trust.time.time", (NOW + 2 * DAY).timestamp)
            signs.look()
            signs.look()
            (held,) = fed
            assert isinstance(held, RestartHeld) and "set the clock" in held.cause
            patch.undo()
            patch.setattr(signs_module, "CLOCK_PAUSE_US", 0)
            signs._pause_us = signs._next_clock_us = 0
            signs.look()
            assert fed[1:] == [RestartHeld("")]
        signs.close()

    asyncio.run(scenario())
