"""Certificates: what is issued, and what a node refuses to start with (SPEC 1.6, 7.8)."""

import os
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from muster.drivers.certificates.certificates import (
    CertificateRefused,
    Credentials,
    Identity,
    client_context,
    create_authority,
    describe,
    issue,
    peer_identity,
    server_context,
    verify_pair,
)

CLUSTER = "00112233445566778899aabbccddeeff"
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> Credentials:
    return create_authority("trial", CLUSTER)


def write_key(directory: Path, credentials: Credentials, mode: int = 0o600) -> str:
    path = directory / "node.key"
    path.write_text(credentials.key_pem)
    path.chmod(mode)
    return str(path)


def pair(directory: Path, own: Credentials, authority_pem: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    key = write_key(directory, own)
    return (
        server_context(own.certificate_pem, key, authority_pem),
        client_context(own.certificate_pem, key, authority_pem),
    )


def test_a_certificate_names_its_node_and_cluster(authority: Credentials) -> None:
    description = describe(issue(authority, 7, "n7", CLUSTER).certificate_pem)
    assert description.identity == Identity(CLUSTER, 7)
    assert description.identity.uri == f"muster://{CLUSTER}/7"
    assert "CN=n7" in description.subject
    assert not description.is_authority
    assert description.not_before < datetime.now(UTC) < description.not_after
    assert describe(authority.certificate_pem).is_authority
    assert describe(authority.certificate_pem).identity is None


def test_no_certificate_outlives_its_authority() -> None:
    short = create_authority("trial", CLUSTER, not_before=NOW - DAY, not_after=NOW + DAY)
    assert describe(issue(short, 1, "n1", CLUSTER).certificate_pem).not_after <= NOW + DAY


def test_a_good_certificate_serves_both_ends_of_a_connection(authority: Credentials, tmp_path: Path) -> None:
    own = issue(authority, 3, "n3", CLUSTER)
    assert verify_pair(*pair(tmp_path, own, authority.certificate_pem)) == Identity(CLUSTER, 3)


@pytest.mark.parametrize(
    ("not_before", "not_after", "complaint"),
    [(NOW - 2 * DAY, NOW - DAY, "expired"), (NOW + DAY, NOW + 2 * DAY, "not yet valid")],
)
def test_a_certificate_out_of_its_time_is_found_at_boot(
    authority: Credentials, tmp_path: Path, not_before: datetime, not_after: datetime, complaint: str
) -> None:
    own = issue(authority, 3, "n3", CLUSTER, not_before=not_before, not_after=not_after)
    with pytest.raises(CertificateRefused, match=f"certificate of this node.*{complaint}.*clocks"):
        verify_pair(*pair(tmp_path, own, authority.certificate_pem))


def test_a_certificate_of_another_authority_is_found_at_boot(authority: Credentials, tmp_path: Path) -> None:
    other = create_authority("trial", CLUSTER)  # same names, another key
    own = issue(other, 3, "n3", CLUSTER)
    with pytest.raises(CertificateRefused, match="certificate is refused"):
        verify_pair(*pair(tmp_path, own, authority.certificate_pem))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_can_read_is_refused(authority: Credentials, tmp_path: Path, mode: int) -> None:
    own = issue(authority, 3, "n3", CLUSTER)
    key = write_key(tmp_path, own, mode)
    with pytest.raises(CertificateRefused, match=rf"{key}.*{mode:04o}.*chmod 600"):
        server_context(own.certificate_pem, key, authority.certificate_pem)


def test_a_key_of_another_certificate_is_refused(authority: Credentials, tmp_path: Path) -> None:
    own, other = issue(authority, 3, "n3", CLUSTER), issue(authority, 4, "n4", CLUSTER)
    key = write_key(tmp_path, other)
    with pytest.raises(CertificateRefused, match=f"{key}.*cannot be used together"):
        client_context(own.certificate_pem, key, authority.certificate_pem)


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(
    authority: Credentials, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization

    own = issue(authority, 3, "n3", CLUSTER)
    private = serialization.load_pem_private_key(own.key_pem.encode(), password=None)
    encrypted = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    key = write_key(tmp_path, Credentials(own.certificate_pem, encrypted.decode()))
    with pytest.raises(CertificateRefused, match="encrypted"):
        server_context(own.certificate_pem, key, authority.certificate_pem)


@pytest.mark.parametrize("content", ["", "garbage", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key_is_refused(authority: Credentials, tmp_path: Path, content: str) -> None:
    own = issue(authority, 3, "n3", CLUSTER)
    key = write_key(tmp_path, Credentials(own.certificate_pem, content))
    with pytest.raises(CertificateRefused, match=key):
        server_context(own.certificate_pem, key, authority.certificate_pem)


def test_a_missing_key_and_a_directory_for_a_key_are_refused(authority: Credentials, tmp_path: Path) -> None:
    own = issue(authority, 3, "n3", CLUSTER)
    with pytest.raises(CertificateRefused, match=r"missing\.key: No such file.*put the node's key there"):
        server_context(own.certificate_pem, str(tmp_path / "missing.key"), authority.certificate_pem)
    with pytest.raises(CertificateRefused, match="not a regular file"):
        server_context(own.certificate_pem, str(tmp_path), authority.certificate_pem)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a file away")
def test_a_key_of_another_user_is_refused(authority: Credentials, tmp_path: Path) -> None:
    own = issue(authority, 3, "n3", CLUSTER)
    key = write_key(tmp_path, own)
    os.chown(key, 65534, 65534)
    with pytest.raises(CertificateRefused, match=r"belongs to user 65534.*chown 0"):
        server_context(own.certificate_pem, key, authority.certificate_pem)


def test_text_that_is_no_certificate_is_refused(authority: Credentials, tmp_path: Path) -> None:
    own = issue(authority, 3, "n3", CLUSTER)
    key = write_key(tmp_path, own)
    with pytest.raises(CertificateRefused, match=r"certificate of the authority.*muster store check"):
        server_context(own.certificate_pem, key, "garbage")
    with pytest.raises(CertificateRefused, match="cannot be used together"):
        server_context("garbage", key, authority.certificate_pem)
    with pytest.raises(CertificateRefused, match="no PEM certificate"):
        describe("garbage")


def test_bad_wishes_are_refused(authority: Credentials) -> None:
    with pytest.raises(CertificateRefused, match="node id 65536"):
        issue(authority, 65536, "n", CLUSTER)
    with pytest.raises(CertificateRefused, match="never be valid"):
        issue(authority, 1, "n", CLUSTER, not_before=NOW, not_after=NOW - DAY)
    with pytest.raises(CertificateRefused, match="ASCII"):
        issue(authority, 1, "knoten-ä", CLUSTER)
    with pytest.raises(CertificateRefused, match="does not belong to the authority"):
        issue(Credentials(authority.certificate_pem, create_authority("x", CLUSTER).key_pem), 1, "n", CLUSTER)


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("https://example.org/",),
        (f"muster://{CLUSTER}",),
        (f"muster://{CLUSTER}/",),
        ("muster:///1",),
        (f"muster://{CLUSTER}/-1",),
        (f"muster://{CLUSTER}/01",),
        (f"muster://{CLUSTER}/65536",),
        (f"muster://{CLUSTER}/1", f"muster://{CLUSTER}/2"),
    ],
)
def test_a_certificate_that_does_not_name_one_node_is_nobodys(uris: tuple[str, ...]) -> None:
    with pytest.raises(CertificateRefused, match="names no node"):
        peer_identity({"subjectAltName": tuple(("URI", uri) for uri in uris)})
    with pytest.raises(CertificateRefused, match="names no node"):
        peer_identity(None)


def test_the_daemon_never_loads_what_issues_certificates() -> None:
    program = (
        "import sys, muster.drivers.interconnect.mesh, muster.daemon.socket.server\n"
        "sys.exit(' '.join(name for name in ('cryptography', 'psutil') if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_using_credentials_leaves_nothing_on_disk(authority: Credentials, tmp_path: Path) -> None:
    own = issue(authority, 3, "n3", CLUSTER)
    before = len(os.listdir("/proc/self/fd"))
    pair(tmp_path, own, authority.certificate_pem)
    assert [path.name for path in tmp_path.iterdir()] == ["node.key"]
    assert len(os.listdir("/proc/self/fd")) == before
