"""Whom this node accepts, by the newest record that it knows: its replica, or the store where that is newer (P1.1)."""

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from muster.drivers.aside import Shared
from muster.drivers.certificates.certificates import CertificateRefused, client_context, server_context, verify_pair
from muster.drivers.certificates.fields import NoCertificate, key_pin, split, validity
from muster.drivers.interconnect.mesh import Interconnect, Trust
from muster.drivers.store.engine import newest_record
from muster.drivers.store.failures import StoreFailed
from muster.records.database import Database
from muster.records.nodes import NodeConfig

KEY_FILE = "key.pem"
CERTIFICATE_FILE = "certificate.pem"
FIRST_PAUSE_S = 2.0  # between two looks into the store for a newer record; doubles while there is none
LONGEST_PAUSE_S = 60.0


def trust_of(database: Database) -> Trust:
    """What a record of the cluster says of authorities and keys."""
    return Trust(authorities_of(database), {config.node: pin_of(config) for config in database.nodes.values()})


def authorities_of(database: Database) -> str:
    """The certificates of all authorities that are trusted, PEM."""
    return database.cluster.authority + database.cluster.incoming


def pin_of(config: NodeConfig) -> str:
    """The pin of a node's public key; empty where it is not enrolled."""
    try:
        return key_pin(config.certificate) if config.certificate else ""
    except NoCertificate:
        return ""


def own_certificate(config: NodeConfig, home: Path, authorities: str) -> str:
    """The certificate to show: the one in the record, or a later one for the same key in this node's home.

    The latter is there when it was renewed on this machine while no cluster could commit it. Raises
    `CertificateRefused` if neither can be used.
    """
    found = [config.certificate]
    try:
        local = (home / CERTIFICATE_FILE).read_text()
        if key_pin(local) == pin_of(config) and validity(local).not_after > validity(config.certificate).not_after:
            found.insert(0, local)
    except (OSError, UnicodeDecodeError, NoCertificate):
        pass  # then the record's is the only one
    for certificate in found:
        try:
            verify(certificate, home, authorities)
        except CertificateRefused:
            if certificate is found[-1]:
                raise
        else:
            return certificate
    raise AssertionError("unreachable: the last one is returned or refused")


def verify(certificate: str, home: Path, authorities: str) -> None:
    """Shake hands with oneself. Raises `CertificateRefused`."""
    key = str(home / KEY_FILE)
    verify_pair(server_context(certificate, key, authorities), client_context(certificate, key, authorities))


def is_early(certificate: str) -> bool:
    """Whether a certificate is not valid yet by this machine's clock: it has not been set, most likely."""
    try:
        return time.time() < validity(certificate).not_before.timestamp()
    except NoCertificate:
        return False


def is_out_of_time(certificate: str) -> bool:
    """Whether it is not valid now, and was or will be: the certificate has ended, or the clock has jumped."""
    end_s = expected_end_s(certificate)
    return is_early(certificate) or (end_s is not None and end_s < time.time())


def expected_end_s(certificate: str) -> int | None:
    """When a certificate ends, in seconds since 1970; none where that cannot be read."""
    try:
        return int(validity(certificate).not_after.timestamp())
    except NoCertificate:
        return None


def authority_end_s(authority: str) -> int | None:
    """When the authority ends that issues at present, in seconds since 1970."""
    return expected_end_s(split(authority)[0]) if split(authority) else None


class Reason(StrEnum):
    """Why the store may hold what this node does not know."""

    DISTRUST = "a connection was refused"
    UNREACHABLE = "nobody is at an address"


class _Looks:
    """When the store was looked into, and for how long it is not looked into again."""

    def __init__(self) -> None:
        self.at_s, self.pause_s = -LONGEST_PAUSE_S, FIRST_PAUSE_S


class NodeCredentials:
    """What this node shows and whom it accepts, kept in step with the record. `note` records an event (P1.1)."""

    def __init__(self, me: int, home: Path, note: Callable[[str, str], None]) -> None:
        self._me, self._home, self._note = me, home, note
        self._newer: Database | None = None  # from the store, while the replica has not got there
        self._followed: tuple[object, ...] = ()
        self._looks = {reason: _Looks() for reason in Reason}
        self._looking = Shared()  # a store that hangs holds up one look

    def at_boot(self, database: Database) -> tuple[str, str]:
        """The certificate to show and the authorities to trust. Raises `CertificateRefused`."""
        authorities = authorities_of(database)
        return own_certificate(database.nodes[self._me], self._home, authorities), authorities

    def follow(self, replica: Database, interconnect: Interconnect) -> None:
        """Let the interconnect go by the newest record."""
        if self._newer is not None and replica.index >= self._newer.index:
            self._newer = None
        database = self._newer or replica
        interconnect.set_peers({config.node: config.addresses for config in database.nodes.values()})
        if self._me in database.nodes:
            interconnect.set_own(database.nodes[self._me].addresses)
        cluster = database.cluster
        seen = (cluster.authority, cluster.incoming, *((c.node, c.certificate) for c in database.nodes.values()))
        if seen == self._followed or self._me not in database.nodes:
            return
        self._followed = seen
        config = database.nodes[self._me]
        try:
            certificate = own_certificate(config, self._home, authorities_of(database))
        except CertificateRefused:
            certificate = config.certificate  # it is told below; whom to accept is followed all the same
        try:
            interconnect.set_trust(trust_of(database), certificate)
        except CertificateRefused as error:
            self._note("certificate refused", str(error))

    def may_look_again(self, reason: "Reason") -> bool:
        """Whether the store may be asked for a newer record now: bounded for each reason, whoever knocks."""
        looks, now_s = self._looks[reason], time.monotonic()
        if now_s - looks.at_s < looks.pause_s:
            return False
        looks.at_s, looks.pause_s = now_s, min(2 * looks.pause_s, LONGEST_PAUSE_S)
        return True

    async def look_again(self, store: str, replica: Callable[[], Database], interconnect: Interconnect) -> None:
        """Read the newest record from the store, and go by it if it is newer than the replica."""
        try:
            record = await self._looking.get(store, newest_record, store)
        except (StoreFailed, OSError):
            return  # the store's own trouble is told where it is met
        found = record.database
        if record.header.identity != replica().cluster.identity:
            return  # another cluster's store is at that path: the guard finds that out by itself (P11.1)
        if found.index > replica().index:
            self._newer = found
            for looks in self._looks.values():
                looks.pause_s = FIRST_PAUSE_S
            self.follow(replica(), interconnect)
