"""The cluster's authority, the certificates of its nodes, and the TLS settings that trust nothing else (SPEC 1.6).

Two halves. Issuing (`create_authority`, `issue`, `describe`) is done by an operator's command and needs the package
`cryptography`, which is imported when it is first used. The TLS contexts are what the daemon needs, and need only
`ssl`: a daemon never loads the other half.

A node is named by one URI in its certificate, `muster://CLUSTER_IDENTITY/NODE_ID`; the DNS name beside it is for
people and their tools. Host names play no part in trust: a node may have any address.
"""

import hashlib
import os
import re
import ssl
import stat
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

URI_SCHEME = "muster://"
MAXIMUM_NODE = 0xFFFF
VALIDITY_DAYS = 3650
BACKDATING_DAYS = 1  # clocks of the nodes may differ; a certificate must be good on the slowest of them at once
_COMMON_NAME_CHARACTERS = 64  # X.520 upper bound
_OTHERS_PERMISSIONS = 0o077
_NODE_NUMBER = re.compile("0|[1-9][0-9]{0,4}")


class CertificateRefused(Exception):
    """A certificate or private key cannot be used; the message says what, where and what to do."""


class Identity(NamedTuple):
    """Whom a certificate names: a node (`node` id) of the cluster `cluster` (its identity)."""

    cluster: str
    node: int

    @property
    def uri(self) -> str:
        """As it stands in the certificate."""
        return f"{URI_SCHEME}{self.cluster}/{self.node}"


class Credentials(NamedTuple):
    """A certificate and its private key, both PEM."""

    certificate_pem: str
    key_pem: str


class Description(NamedTuple):
    """What an operator wants to know of a certificate. Times are aware, in UTC."""

    subject: str
    identity: Identity | None  # none for an authority
    is_authority: bool
    not_before: datetime
    not_after: datetime
    fingerprint: str  # SHA-256 of the certificate, hexadecimal


# --- Issuing --------------------------------------------------------------------------------------------------------


def create_authority(
    cluster_name: str,
    cluster_identity: str,
    *,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> Credentials:
    """Make the cluster's own authority, good for ten years unless told otherwise (SPEC 1.6).

    Raises `CertificateRefused` if the validity is empty or a name cannot stand in a certificate.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = _distinguished_name(f"Muster authority of {cluster_name}", cluster_identity)
    start, end = _validity(not_before, not_after, None)
    usage = _key_usage(signs_certificates=True)
    builder = (
        _builder(subject, key.public_key(), start, end)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return Credentials(certificate.decode(), _key_text(key))


def issue(
    authority: Credentials,
    node: int,
    node_name: str,
    cluster_identity: str,
    *,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> Credentials:
    """Make a key and issue a node's certificate for it, for both ends of a connection (SPEC 1.6).

    Without times it is good from a day ago until the authority itself ends, at most ten years. Raises
    `CertificateRefused`.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = Subject(node, node_name, cluster_identity)
    return Credentials(_certify(authority, subject, key.public_key(), not_before, not_after), _key_text(key))


class Subject(NamedTuple):
    """The node that a certificate is for."""

    node: int
    name: str
    cluster_identity: str


def request_certificate(node_name: str) -> tuple[str, str]:
    """Make a private key, and a request for a certificate of it: (key, request), both PEM (P1.4)."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key_pem = _key_text(ec.generate_private_key(ec.SECP256R1()))
    return key_pem, request_for(key_pem, node_name)


def request_for(key_pem: str, node_name: str) -> str:
    """A request (PEM) for a certificate of a key that exists. Raises `CertificateRefused`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    name = _distinguished_name(node_name, "")
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(_load_key(key_pem), hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def private_key_pin(key_pem: str) -> str:
    """The pin of a private key's public half, as `certificate_fields.key_pin`. Raises `CertificateRefused`."""
    from cryptography.hazmat.primitives import serialization

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public = _load_key(key_pem).public_key().public_bytes(serialization.Encoding.DER, form)
    return hashlib.sha256(public).hexdigest()


def sign_request(
    authority: Credentials, subject: Subject, request_pem: str, *, not_after: datetime | None = None
) -> str:
    """Issue a certificate (PEM) for the key of a request, whose own signature proves that the asker has it (P1.4).

    Raises `CertificateRefused`.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        valid = request.is_signature_valid
    except (ValueError, TypeError) as error:
        raise CertificateRefused(
            f"certificate request: it cannot be read ({error}); make it with muster enrol"
        ) from error
    key = request.public_key()
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey):
        raise CertificateRefused("certificate request: its signature is not of its own key; make it with muster enrol")
    return _certify(authority, subject, key, None, not_after)


def reissue(
    authority: Credentials,
    subject: Subject,
    certificate_pem: str,
    *,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> str:
    """Issue a certificate (PEM) anew for the key of another one (P1.6, P1.7). Raises `CertificateRefused`."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key = _load_certificate(certificate_pem, f"certificate of {subject.name}").public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CertificateRefused(f"certificate of {subject.name}: its key is of another kind; enrol the node again")
    return _certify(authority, subject, key, not_before, not_after)


def _certify(
    authority: Credentials,
    subject: Subject,
    key: "ec.EllipticCurvePublicKey",
    not_before: datetime | None,
    not_after: datetime | None,
) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    node, node_name, cluster_identity = subject
    if not 0 <= node <= MAXIMUM_NODE:
        raise CertificateRefused(f"node id {node} of {node_name!r}: it must lie in 0 to {MAXIMUM_NODE}; choose another")
    issuer, issuer_key = _load_authority(authority)
    start, end = _validity(not_before, not_after, issuer.not_valid_after_utc)
    names = _alternative_names(Identity(cluster_identity, node), node_name)
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        _builder(_distinguished_name(node_name, cluster_identity), key, start, end)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(purposes, critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def describe(certificate_pem: str) -> Description:
    """Subject, identity and validity of a certificate. Raises `CertificateRefused` if it is none."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    certificate = _load_certificate(certificate_pem, "certificate")
    identity = None
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
            identity = _sole_identity(tuple(uris))
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    return Description(
        certificate.subject.rfc4514_string(),
        identity,
        constraints.ca,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _distinguished_name(common_name: str, cluster_identity: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"Muster cluster {cluster_identity}"),
                x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_COMMON_NAME_CHARACTERS]),
            ]
        )
    except ValueError as error:
        where = f"name {common_name!r} of cluster {cluster_identity!r}"
        raise CertificateRefused(f"{where}: it cannot stand in a certificate ({error}); choose another") from error


def _alternative_names(identity: Identity, node_name: str) -> "x509.SubjectAlternativeName":
    from cryptography import x509

    try:
        uri = x509.UniformResourceIdentifier(identity.uri)
        return x509.SubjectAlternativeName([uri, x509.DNSName(node_name)])
    except ValueError as error:
        hint = "use ASCII letters, digits, '-' and '.'"
        raise CertificateRefused(f"node name {node_name!r}: it cannot stand in a certificate; {hint}") from error


def _key_usage(*, signs_certificates: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _validity(start: datetime | None, end: datetime | None, limit: datetime | None) -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    start = start or now - timedelta(days=BACKDATING_DAYS)
    end = end or min(now + timedelta(days=VALIDITY_DAYS), limit or datetime.max.replace(tzinfo=UTC))
    if end <= start:
        text = f"certificate from {start.isoformat()} to {end.isoformat()}: it would never be valid"
        raise CertificateRefused(f"{text}; give an end after the start, and check that the authority has not expired")
    return start, end


def _builder(
    subject: "x509.Name", public_key: "ec.EllipticCurvePublicKey", start: datetime, end: datetime
) -> "x509.CertificateBuilder":
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_text(key: "ec.EllipticCurvePrivateKey") -> str:
    from cryptography.hazmat.primitives import serialization

    private = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()).decode()


def _load_certificate(pem: str, what: str) -> "x509.Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise CertificateRefused(f"{what}: this is no PEM certificate ({error}); give the file's whole text") from error


def _load_key(pem: str, what: str = "private key of this node") -> "ec.EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError) as error:
        advice = "give the key that Muster made, unencrypted"
        raise CertificateRefused(f"{what}: it cannot be read ({error}); {advice}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateRefused(f"{what}: it is of another kind than Muster makes; give the key that Muster made")
    return key


def _load_authority(authority: Credentials) -> tuple["x509.Certificate", "ec.EllipticCurvePrivateKey"]:
    certificate = _load_certificate(authority.certificate_pem, "certificate of the authority")
    key = _load_key(authority.key_pem, "private key of the authority")
    if key.public_key() != certificate.public_key():
        raise CertificateRefused(
            "private key of the authority: it does not belong to the authority's certificate; "
            "give the key that the same `muster init` made"
        )
    return certificate, key


# --- Using: what the daemon needs -----------------------------------------------------------------------------------


def server_context(certificate_pem: str, key_path: str, authority_pem: str) -> ssl.SSLContext:
    """TLS settings for accepted connections: 1.3 only, a client certificate of this cluster required (SPEC 1.6).

    `key_path` names a file that only its owner can read. Raises `CertificateRefused`.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, certificate_pem, key_path, authority_pem)
    context.num_tickets = 0  # no resumption: every connection proves itself by a certificate that is valid today
    return context


def client_context(certificate_pem: str, key_path: str, authority_pem: str) -> ssl.SSLContext:
    """TLS settings for connections that this node makes; like `server_context`. Raises `CertificateRefused`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, certificate_pem, key_path, authority_pem)


def visitor_context(certificate_pem: str, key_path: str) -> ssl.SSLContext:
    """TLS settings towards a machine that is no node yet: it knows us by our certificate, we it by its token (P1.4).

    Raises `CertificateRefused`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    _load_own(context, certificate_pem, key_path)
    return context


def enrolling_context(authority_pem: str) -> ssl.SSLContext:
    """TLS settings of a machine that is no node yet: it has no certificate, and trusts this authority only (P1.4)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the node's URI and its key are checked instead
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=authority_pem)
    return context


def check_pair(certificate_pem: str, key_path: str) -> None:
    """Raise `CertificateRefused` unless the key at `key_path` is its owner's only, and that of the certificate."""
    _load_own(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate_pem, key_path)


def peer_identity(certificate: Mapping[str, object] | None) -> Identity:
    """Whom a verified certificate (as `getpeercert` gives it) names. Raises `CertificateRefused`."""
    names = cast("tuple[tuple[str, str], ...]", (certificate or {}).get("subjectAltName", ()))
    identity = _sole_identity(tuple(value for kind, value in names if kind == "URI"))
    if identity is None:
        raise CertificateRefused("the certificate names no node of a Muster cluster; issue one with Muster's authority")
    return identity


def verify_pair(server: ssl.SSLContext, client: ssl.SSLContext) -> Identity:
    """Shake hands with oneself, so that a bad certificate of one's own is found at boot and not by every peer.

    Returns whom the certificate names. Raises `CertificateRefused`: expired, not valid yet, of another authority.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    accepting = server.wrap_bio(to_server, to_client, server_side=True)
    connecting = client.wrap_bio(to_client, to_server, server_side=False)
    waiting = [connecting, accepting]
    for _ in range(8):  # TLS 1.3 needs two turns of each
        for side in tuple(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                raise CertificateRefused(f"certificate of this node: {explain_tls(error)}") from error
        if not waiting:
            return peer_identity(accepting.getpeercert())
    raise CertificateRefused("certificate of this node: a handshake with itself does not end; report this as a defect")


def explain_tls(error: ssl.SSLError) -> str:
    """What went wrong in a handshake, and what to do, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = _VERIFICATION_ADVICE.get(error.verify_code, "issue a certificate with this cluster's authority")
        return f"its certificate is refused: {error.verify_message}; {advice}"
    reason = error.reason or error.__class__.__name__
    return _TLS_ADVICE.get(reason, f"TLS failed ({reason}); check what speaks there, and both certificates")


_EXPIRED = "issue a new one, and check the clocks of both machines"
_VERIFICATION_ADVICE = {
    9: "check the clocks of both machines, or wait until it is valid",  # X509_V_ERR_CERT_NOT_YET_VALID
    10: _EXPIRED,  # X509_V_ERR_CERT_HAS_EXPIRED
}
_NOT_TLS = "it does not speak TLS 1.3; only nodes of this cluster connect here, find out what the program is"
_TLS_ADVICE = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it presented no certificate; only nodes of this cluster connect here",
    "HTTP_REQUEST": _NOT_TLS,
    "WRONG_VERSION_NUMBER": _NOT_TLS,
    "UNSUPPORTED_PROTOCOL": _NOT_TLS,
    "UNEXPECTED_MESSAGE": _NOT_TLS,
    "UNEXPECTED_EOF_WHILE_READING": "it closed the connection during the handshake; see its log",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it refuses TLS 1.3; check what listens there",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": f"it refuses this node's certificate as expired; {_EXPIRED}",
    "SSLV3_ALERT_BAD_CERTIFICATE": f"it refuses this node's certificate, see its log; {_EXPIRED}",
    "TLSV1_ALERT_UNKNOWN_CA": "it refuses this node's certificate: it trusts another authority; is it of this cluster?",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate and got none; check this node's certificate",
}


def _context(protocol: int, certificate_pem: str, key_path: str, authority_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the node's URI is checked instead, against whom we meant to reach
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cadata=authority_pem)
    except (ssl.SSLError, ValueError) as error:
        raise CertificateRefused(
            f"certificate of the authority: this is no PEM certificate ({error}); it is in the "
            "store, check that with `muster store check`"
        ) from error
    _load_own(context, certificate_pem, key_path)
    return context


def _load_own(context: ssl.SSLContext, certificate_pem: str, key_path: str) -> None:
    """Load through descriptors: the key that was checked is the key that is used, and nothing is left on disk."""
    key = _open_key(key_path)
    try:
        certificate = os.memfd_create("certificate")
        try:
            with os.fdopen(os.dup(certificate), "wb") as file:
                file.write(certificate_pem.encode())
            paths = [f"/proc/self/fd/{descriptor}" for descriptor in (certificate, key)]
            context.load_cert_chain(paths[0], paths[1], password=_refuse_password)
        finally:
            os.close(certificate)
    except (ssl.SSLError, OSError, ValueError) as error:
        what = f"private key {key_path} and this node's certificate in the store cannot be used together"
        advice = "put the key there that `muster init` made for this node"
        raise CertificateRefused(f"{what} ({_key_trouble(error)}); {advice}") from error
    finally:
        os.close(key)


def _key_trouble(error: Exception) -> str:
    """Why a key could not be loaded, in words."""
    reason = error.reason if isinstance(error, ssl.SSLError) else ""
    if reason == "KEY_VALUES_MISMATCH":
        return "it is the key of another certificate"
    if isinstance(error, ssl.SSLError):
        return f"one of them cannot be read: {reason or 'it is no PEM text'}"
    return str(error)


def _refuse_password() -> str:
    raise ValueError("the key is encrypted, and a daemon has nobody to ask for its password")


def _open_key(path: str) -> int:
    """A descriptor of the private key, checked to be its owner's only. Raises `CertificateRefused`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        advice = "put the node's key there, readable by the user that runs musterd"
        raise CertificateRefused(f"private key {path}: {error.strerror}; {advice}") from error
    status = os.fstat(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = "it is not a regular file; give the path of the key"
    elif mode & _OTHERS_PERMISSIONS:
        problem = (
            f"its permissions {mode:04o} let other users at it; run `chmod 600 {path}`, and issue a new key "
            "if one of them may have read it"
        )
    elif status.st_uid not in (0, os.geteuid()):
        problem = f"it belongs to user {status.st_uid}; run `chown {os.geteuid()} {path}`"
    if problem:
        os.close(descriptor)
        raise CertificateRefused(f"private key {path}: {problem}")
    return descriptor


def _sole_identity(uris: tuple[str, ...]) -> Identity | None:
    """The one Muster name among the URIs of a certificate; none if there is no or more than one."""
    names = [uri.removeprefix(URI_SCHEME) for uri in uris if uri.startswith(URI_SCHEME)]
    if len(names) != 1:
        return None
    cluster, separator, node = names[0].rpartition("/")
    if not (cluster and separator) or _NODE_NUMBER.fullmatch(node) is None or int(node) > MAXIMUM_NODE:
        return None
    return Identity(cluster, int(node))
