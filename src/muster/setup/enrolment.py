"""`muster enrol`: this machine becomes a node with the store's path, its name and a one-time token (P1.4, SPEC 1.4).

The private key is made here and never leaves; it is durable before anybody is asked, so that whatever interrupts this
can be repeated with the same token, or finds that it had been done. The member that is asked is known by the authority
and the key that the store names: the token is shown to nobody else.
"""

import json
import socket
import ssl
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from muster.client.errors import ClientError
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.nodes import NodeConfig
from muster.setup.errors import Mistaken

KEY_FILE, CERTIFICATE_FILE, DRAFT_FILE = "key.pem", "certificate.pem", "enrolling-key.pem"
DEFAULT_HOME = Path("/var/lib/muster")
MAXIMUM_TOKEN_CHARACTERS = 200
_CONNECT_S = 5.0
_ANSWER_S = 60.0
_PAUSE_S = 0.5
_GREETING, _WELCOME = b"MUSTER-ENROL 1\n", b"go\n"  # drivers/interconnect/channel.py, daemon/trust/enrolment.py
_MAXIMUM_ANSWER_BYTES = 64 * 1024


class MemberToAsk(NamedTuple):
    """Somebody to ask."""

    config: NodeConfig
    address: str


class _Refused(Exception):
    """A member's answer."""

    def __init__(self, what: str, next_step: str, *, final: bool) -> None:
        super().__init__(what)
        self.what, self.next_step, self.final = what, next_step, final


def become(store: Path, name: str, home: Path, token: Callable[[], str], wait_s: float) -> str:
    """Enrol this machine; what has been done, in words. Raises `Mistaken`, `ClientError`."""
    from muster.drivers.certificates.certificates import request_for

    if home.exists() and not home.is_dir():
        raise Mistaken("the node's home is no directory", str(home), "name a directory, or a new one, with --home")
    database = _database(store)
    config = _configured(database, name, store)
    if (home / DRAFT_FILE).exists() and _is_ours(config, _own_key(home, name)):
        return _finish(home, config, f"{name} is enrolled already")
    if _is_kept(config, home) and config.enrolment is None:
        return f"{name} is enrolled already, with the key in {home}"
    if config.enrolment is None:
        next_step = f"get a token on a running node: muster node token {name}"
        raise ClientError(f"no token is open for {name}", str(store), next_step)
    shown = token()
    key_pem = _own_key(home, name)  # only now: what is refused before leaves no key behind
    visit = {
        "cluster": database.cluster.identity,
        "node": name,
        "token": shown,
        "request": request_for(key_pem, name),
    }
    outcome = _ask_until_done(store, name, key_pem, visit, wait_s)
    return _finish(home, _committed(store, name, key_pem, wait_s), outcome)


def _ask_until_done(store: Path, name: str, key_pem: str, visit: dict[str, str], wait_s: float) -> str:
    deadline = time.monotonic() + wait_s
    troubles: dict[str, str] = {}
    while True:
        database = _database(store)
        if _is_ours(_configured(database, name, store), key_pem):
            return f"{name} is enrolled"  # an earlier answer was lost
        members = _members(database, name)
        refusals = []
        for member in members:
            try:
                return _visit(database, member, visit)
            except _Refused as refusal:
                if refusal.final:
                    raise ClientError(refusal.what, member.config.name, refusal.next_step) from refusal
                troubles[member.config.name] = refusal.what
                refusals.append(refusal)
            except OSError as error:  # also what TLS has to say
                troubles[member.config.name] = f"{member.address}: {error.strerror or error}"
        if refusals and len(refusals) == len(members) and time.monotonic() > deadline - wait_s / 2:
            raise ClientError(refusals[0].what, members[0].config.name, refusals[0].next_step)
        if time.monotonic() > deadline:
            where = "; ".join(f"{member}: {text}" for member, text in sorted(troubles.items()))
            what = f"no member has enrolled {name} within {wait_s:g} s"
            raise ClientError(what, where or str(store), "see that a node of the cluster runs, and the network to it")
        time.sleep(_PAUSE_S)


def _visit(database: Database, member: MemberToAsk, visit: dict[str, str]) -> str:
    """Ask one member. Raises `_Refused`, `OSError`."""
    from muster.drivers.certificates.certificates import CertificateRefused, Identity, enrolling_context, peer_identity
    from muster.drivers.certificates.fields import key_pin

    cluster = database.cluster
    host, _, port = member.address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S) as plain:
        plain.sendall(_GREETING)
        if _line(plain) != _WELCOME:
            raise OSError("what answers there enrols nobody")
        with enrolling_context(cluster.authority + cluster.incoming).wrap_socket(plain) as secured:
            try:
                found = peer_identity(secured.getpeercert())
            except CertificateRefused as error:
                raise OSError(str(error)) from error
            pin = key_pin(secured.getpeercert(binary_form=True) or b"")
            wanted = Identity(cluster.identity, member.config.node)
            if found != wanted or pin != key_pin(member.config.certificate):
                raise OSError(
                    f"{found.uri} answers there with a key that the store does not name; nothing was told to it"
                )
            secured.settimeout(_ANSWER_S)
            secured.sendall(json.dumps(visit).encode() + b"\n")
            answer = json.loads(_line(secured) or b"{}")
    if answer.get("ok") is True:
        return str(answer["outcome"])
    what, next_step = str(answer.get("what", "it gave no answer")), str(answer.get("next", "see its log"))
    raise _Refused(what, next_step, final=bool(answer.get("final")))


def _line(source: socket.socket | ssl.SSLSocket) -> bytes:
    collected = b""
    while not collected.endswith(b"\n") and len(collected) < _MAXIMUM_ANSWER_BYTES:
        data = source.recv(4096 if isinstance(source, ssl.SSLSocket) else 1)
        if not data:
            break
        collected += data
    return collected


def _members(database: Database, name: str) -> list[MemberToAsk]:
    """Whom to ask: those that were joined last, first."""
    configs = [config for config in database.nodes.values() if config.certificate and config.name != name]
    configs.sort(key=lambda config: (database.member(config.node).state is not NodeState.JOINED, config.node))
    return [MemberToAsk(config, address) for config in configs for address in config.addresses]


def _database(store: Path) -> Database:
    from muster.drivers.store.disk.inspection import newest_database
    from muster.drivers.store.failures import StoreFailed

    try:
        return newest_database(str(store))
    except (StoreFailed, OSError) as error:
        raise ClientError(str(error), str(store), "check the path, and that you may read it") from error


def _configured(database: Database, name: str, store: Path) -> NodeConfig:
    node = database.node_named(name)
    if node is None:
        known = ", ".join(config.name for config in database.nodes.values())
        what = f"cluster {database.cluster.name} has no node {name!r}; it has {known}"
        raise Mistaken(what, str(store), f"add it on a running node: muster node add {name} HOST:PORT")
    return database.nodes[node]


def _own_key(home: Path, name: str) -> str:
    """The key to be enrolled: of an attempt that was interrupted, or a new one, durable before anybody is asked."""
    from muster.drivers.certificates.certificates import request_certificate
    from muster.drivers.certificates.private_files import write_private

    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o066:  # as mkdir leaves it: the node would refuse a home that others may list or change
        home.chmod(mode & 0o711)
    draft = home / DRAFT_FILE
    if draft.exists():
        return draft.read_text()
    key_pem, _ = request_certificate(name)
    write_private(draft, key_pem)
    return key_pem


def _is_ours(config: NodeConfig, key_pem: str) -> bool:
    from muster.drivers.certificates.certificates import CertificateRefused, private_key_pin
    from muster.drivers.certificates.fields import key_pin

    try:
        return bool(config.certificate) and key_pin(config.certificate) == private_key_pin(key_pem)
    except CertificateRefused as error:
        raise ClientError(str(error), DRAFT_FILE, "remove that file from the node's home, and enrol again") from error


def _is_kept(config: NodeConfig, home: Path) -> bool:
    """Whether the node's home holds the very key that is on record."""
    key = home / KEY_FILE
    return key.exists() and _is_ours(config, key.read_text())


def _committed(store: Path, name: str, key_pem: str, wait_s: float) -> NodeConfig:
    """The configuration with this key, as the store has it. Raises `ClientError`."""
    deadline = time.monotonic() + wait_s
    while True:
        config = _configured(_database(store), name, store)
        if _is_ours(config, key_pem):
            return config
        if time.monotonic() > deadline:
            next_step = "is this the store of that cluster? see muster node show on a running node"
            raise ClientError(f"the store does not show the certificate of {name}", str(store), next_step)
        time.sleep(_PAUSE_S)


def _finish(home: Path, config: NodeConfig, outcome: str) -> str:
    """The key takes its place; done again, nothing changes."""
    from muster.drivers.certificates.private_files import write_private

    write_private(home / CERTIFICATE_FILE, config.certificate)
    draft = home / DRAFT_FILE
    if draft.exists():
        write_private(home / KEY_FILE, draft.read_text())
        draft.unlink()
    return f"{outcome}; its key is in {home}"
