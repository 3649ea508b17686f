"""Machines that become nodes: a member checks the token, has the request signed, and commits the certificate (P1.4).

The new machine connects to a member's interconnect address and says so in its first bytes. Then TLS: the machine knows
the member by the authority and the key that the store names, so it shows its token to nobody else. One line of JSON
each way: `{"cluster": ..., "node": ..., "token": ..., "request": PEM}`, and `{"ok": true}` or `{"ok": false, "what":
..., "next": ..., "final": ...}`; where a refusal is not final, another member may know better.

Bounded: machines at a time, of them those from one address, the length of a line, the time of a visit. Whatever a
visitor does ends its visit and nothing else (P10.6).
"""

import asyncio
import hashlib
import hmac
import secrets
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from muster.core.effects import Reply
from muster.core.node.node import Node
from muster.daemon.trust.authority_keys import AuthorityKeys
from muster.drivers.certificates.certificates import CertificateRefused, Subject
from muster.drivers.certificates.fields import split
from muster.drivers.certificates.signing import SignRequest, sign
from muster.drivers.interconnect.channel import VISITOR_GREETING, Cause
from muster.drivers.interconnect.mesh import TroubleTable
from muster.records.access import NOBODY, Author
from muster.records.levels import NodeState
from muster.records.names import shown
from muster.records.nodes import Cluster, EnrolNode, NodeConfig, Rotation, fingerprint
from muster.records.operations import OperationRequest

MAXIMUM_VISITS = 8
MAXIMUM_VISITS_FROM_ONE_ADDRESS = 4
MAXIMUM_LINE_BYTES = 16 * 1024
VISIT_S = 60.0
GREETING_S = 5.0
OPERATION_S = 20.0
WELCOME = b"go\n"

Operate = Callable[[str, OperationRequest, float, Author], Awaitable[Reply | None]]


class Visit(Struct, frozen=True, forbid_unknown_fields=True):
    """What a machine says that wants to become a node."""

    cluster: Annotated[str, Meta(max_length=64)]
    node: Annotated[str, Meta(max_length=64)]
    token: Annotated[str, Meta(max_length=256)]
    request: str  # PEM; the line bounds it


class EnrolmentRefused(Exception):
    """Why a machine is not enrolled. `final`: no other member would say otherwise."""

    def __init__(self, what: str, next_step: str, *, final: bool) -> None:
        super().__init__(f"{what}; {next_step}")
        self.what, self.next_step, self.final = what, next_step, final


def verifier_of(token: str) -> str:
    """What the store holds of a token (P1.4)."""
    return hashlib.sha256(token.encode()).hexdigest()


def issuing_authority(cluster: Cluster) -> str:
    """The certificate of the authority that issues at present; empty where none may (P1.7)."""
    if cluster.rotation >= Rotation.CERTIFYING:
        return cluster.incoming
    return cluster.authority if len(split(cluster.authority)) == 1 else ""


class Enrolments:
    """One member's part in enrolling machines."""

    def __init__(self, node: Node, keys: AuthorityKeys, operate: Operate, note: Callable[[str, str], None]) -> None:
        self._node, self._keys, self._operate, self._note = node, keys, operate, note
        self._troubles = TroubleTable(lambda text: note("enrolment refused", text))
        self._visits: Counter[str] = Counter()  # by the visitor's address

    def visit(self, transport: asyncio.Transport, data: bytes, settings: ssl.SSLContext) -> None:
        """A connection that begins with `data`, which is no handshake."""
        address = str((transport.get_extra_info("peername") or ("somewhere",))[0])
        if self._visits.total() >= MAXIMUM_VISITS or self._visits[address] >= MAXIMUM_VISITS_FROM_ONE_ADDRESS:
            transport.abort()
            return
        self._visits[address] += 1
        reader = asyncio.StreamReader(limit=MAXIMUM_LINE_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader, partial(self._serve, settings, address))
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    async def _serve(
        self, settings: ssl.SSLContext, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(VISIT_S):
                await self._talk(settings, reader, writer, address)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this visit's alone (P10.6)
            self._troubles.note(address, Cause("visit", f"its visit has failed: {shown(error)}"))
        finally:
            self._visits[address] -= 1
            self._visits += Counter()  # drops those that are at 0
            writer.close()

    async def _talk(
        self, settings: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str
    ) -> None:
        async with asyncio.timeout(GREETING_S):
            if await reader.readexactly(len(VISITOR_GREETING)) != VISITOR_GREETING:
                self._troubles.note(
                    address, Cause("no TLS", "it speaks neither TLS nor enrolment; find out what it is")
                )
                return
            writer.write(WELCOME)
            await writer.drain()
            await writer.start_tls(settings)
            line = await reader.readuntil(b"\n")
        try:
            visit = msgspec.json.decode(line, type=Visit)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            answer: dict[str, object] = {
                "ok": False,
                "what": f"this is no request ({error})",
                "next": "use muster enrol",
            }
        else:
            answer = await self._answer(visit, address)
        writer.write(msgspec.json.encode(answer) + b"\n")
        await writer.drain()

    async def _answer(self, visit: Visit, address: str) -> dict[str, object]:
        try:
            outcome = await self._enrol(visit)
        except EnrolmentRefused as refusal:
            self._troubles.note(address, Cause(refusal.what, str(refusal)))
            return {"ok": False, "what": refusal.what, "next": refusal.next_step, "final": refusal.final}
        self._troubles.forget(address)
        self._note("node enrolled", f"{visit.node}, from {address}")
        return {"ok": True, "outcome": outcome}

    async def _enrol(self, visit: Visit) -> str:
        config, cluster = self._checked(visit), self._node.database.cluster
        authority = issuing_authority(cluster)
        if not self._keys.holds(authority):
            raise EnrolmentRefused("this member has not got the authority's key yet", "try again", final=False)
        subject = Subject(config.node, config.name, cluster.identity)
        lifetime_s = cluster.certificate_lifetime_s
        path = self._keys.path(authority)
        try:
            answer = await sign(SignRequest(authority, path, subject, visit.request, lifetime_s))
        except CertificateRefused as error:
            raise EnrolmentRefused(
                f"its certificate cannot be signed: {error}", "see this node's log", final=False
            ) from error
        operation = EnrolNode(
            config.node, config.generation, verifier_of(visit.token), answer.certificates[0], fingerprint(authority)
        )
        reply = await self._operate(f"enrol-{secrets.token_hex(16)}", operation, OPERATION_S, NOBODY)
        if reply is None:
            raise EnrolmentRefused("no master has decided it in time", "try again in a moment", final=False)
        if reply.refused:
            raise EnrolmentRefused(reply.outcome, "see `muster node list` on a running node", final=True)
        return reply.outcome

    def _checked(self, visit: Visit) -> NodeConfig:
        """The configuration of the node that the visitor may become. Raises `EnrolmentRefused`."""
        node, database = self._node, self._node.database
        if visit.cluster != database.cluster.identity:
            raise EnrolmentRefused("this is another cluster", "correct the path of the store", final=True)
        own = database.member(node.me)
        if own.state is not NodeState.JOINED or own.incarnation != node.incarnation:
            raise EnrolmentRefused("this node is no member at present", "try again when it has joined", final=False)
        config = next((each for each in database.nodes.values() if each.name == visit.node), None)
        if config is None:
            add = f"add it on a running node: muster node add {visit.node[:64]} ADDRESS"
            raise EnrolmentRefused(f"there is no node {visit.node[:64]!r}", add, final=False)
        again = f"get a new one on a running node: muster node token {config.name}"
        if config.enrolment is None:
            raise EnrolmentRefused(f"no token is open for {config.name}: it has been used", again, final=False)
        if not hmac.compare_digest(config.enrolment.verifier, verifier_of(visit.token)):
            raise EnrolmentRefused(f"this is not the token of {config.name}, or not its last one", again, final=False)
        if time.time() >= config.enrolment.expires_s:
            raise EnrolmentRefused(f"the token of {config.name} has expired", again, final=True)
        return config
