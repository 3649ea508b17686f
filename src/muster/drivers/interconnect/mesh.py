"""The interconnect: a full mesh of mutually authenticated TLS 1.3 connections between the nodes (SPEC 1.6, 9.2).

Theory of operation. Each end of a connection (`channel.py`) first says `Hello`; the accepting end says its own only
when it is content with the other's (or to let the other see why it is not), so a connection that is open at the end
that made it is open at both.

*All addresses of a node are used together.* Each is a path with a connection of its own; the first address here and
the first of the peer are the same path, and so on. Heartbeats take all paths, so a cut is seen and survived without a
pause: other messages take the path they took last, until another is heard more lately; what was lost on the way the
rules send again. A link is up as long as one path is.

*One connection for two nodes, on each path.* Both ends connect, because either may be the one that has just booted;
the higher id gives the lower a head start. When both succeed at once, the lower id alone decides: it keeps the
connection that opened last and closes the other a little later, so the higher id never finds itself with none. A
connection made by the same end as an older one always replaces it: nobody makes a second one before the first has
ended. A peer's newer incarnation replaces whatever there was; an older one is refused.

*Who is absent costs little* (P1.9): all attempts to connect share one rate, however many nodes are configured.

*Trust* is a record of its own (P1.1): the authorities, and for each node the one public key that is accepted as its.
It may change at any time; connections that it no longer allows end at once.

*Nothing waits, nothing grows.* `send` never blocks. What a peer does not take waits in a queue of bounded bytes and
count; when that is full the connection is dropped and made anew: every message is idempotent, and the rules send
again. Connections that have not proven themselves are bounded in number, time and bytes. What goes wrong with whom is
told once, through tables of bounded size.

No callback is ever called from within `send` or `set_peers`, so the rules may call them at any moment.
"""

import asyncio
import errno
import os
import random
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

from msgspec.structs import replace

from muster.drivers.aside import aside
from muster.drivers.certificates.certificates import (
    CertificateRefused,
    client_context,
    peer_identity,
    server_context,
    verify_pair,
    visitor_context,
)
from muster.drivers.interconnect.channel import DAEMONS, Cause, Channel, Codec, Phase
from muster.records.addresses import host_to_use
from muster.records.messages import (
    MAXIMUM_FRAME_BYTES,
    WIRE_VERSIONS,
    Heartbeat,
    Hello,
    Message,
    version_of,
)
from muster.records.names import MAXIMUM_LINKS
from muster.records.timing import Profile

MAXIMUM_HALF_OPEN = 128  # accepted connections that have not said Hello
MAXIMUM_TROUBLES = 256
TROUBLE_REPEAT_S = 3600.0
FIRST_PAUSE_MS = 20  # after a first failed attempt to connect; doubles up to `connect_ms`
DIALS_PER_S = 40  # attempts to connect with all peers together, once `FREE_DIALS` are used up (P1.9)
FREE_DIALS = 64  # attempts that need not wait for their turn; they come back at that rate
HEAD_START_MS = 50  # of the lower id, when both ends want to connect
LINGER_MS = 250  # how long the lower id keeps the older of two connections
_MS_PER_S = 1000
NAMES_S = 1.0  # at the start, for the names of the own addresses to be known
LISTEN_AGAIN_S = 1.0  # between two attempts to listen at an address that cannot be had


Visitor = Callable[[asyncio.Transport, bytes, ssl.SSLContext], None]


class Trust(NamedTuple):
    """Whom a node accepts (P1.1)."""

    authorities: str  # PEM, one or more certificates
    keys: Mapping[int, str]  # pin of the one public key of each configured node; empty for one that is not enrolled


class _Credentials(NamedTuple):
    """TLS settings made from this node's certificate and the authorities that it trusts."""

    certificate_pem: str
    key_path: str
    authority_pem: str
    server: ssl.SSLContext
    client: ssl.SSLContext
    visitor: ssl.SSLContext


class InterconnectRefused(Exception):
    """The interconnect cannot start; the message says what, where and what to do."""


class AddressInUse(InterconnectRefused):
    """Another process has the address; it may be an earlier daemon's last moment (P11.6)."""


_NO_NAME_YET = "nobody has said yet which address that name has; this node listens there once that is known"
_SUPERFLUOUS = Cause("superfluous", "another connection with it opened first")


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, [IPV6]:PORT or :PORT (every interface). Raises `InterconnectRefused`."""
    host, separator, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not (port.isascii() and port.isdecimal() and len(port) <= 5) or int(port) > 0xFFFF:
        raise InterconnectRefused(f"address {address!r}: it is not HOST:PORT; correct it in the node's configuration")
    if ":" in host and not bracketed:
        raise InterconnectRefused(f"address {address!r}: an IPv6 address needs brackets; write [{host}]:{port}")
    return host_to_use(host[1:-1]) if bracketed else host, int(port)


class TroubleTable:
    """Tells each cause once a source, and again after an hour if it goes on. Bounded: see `_make_room`."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()  # when, and how often since
        self._overflow_told_at = -TROUBLE_REPEAT_S

    def note(self, source: str, cause: Cause) -> None:
        """`source` has caused `cause`: tell it unless it has been told."""
        key, now = (source, cause.kind), time.monotonic()
        told_at, repeats = self._told.get(key, (None, 0))
        if told_at is not None and now - told_at < TROUBLE_REPEAT_S:
            self._told[key] = (told_at, repeats + 1)
            return
        if told_at is None and not self._make_room(now):
            return
        self._told[key] = (now, 0)
        self._told.move_to_end(key)
        again = f" (and {repeats} times more since this was last told)" if repeats else ""
        self._tell(f"interconnect: {source}: {cause.text}{again}")

    def forget(self, source: str) -> None:
        """All is well with `source`: tell its next trouble anew."""
        for key in [key for key in self._told if key[0] == source]:
            del self._told[key]

    def _make_room(self, now: float) -> bool:
        """Whether one more may be told: never more than the table holds in an hour, whoever knocks."""
        if len(self._told) < MAXIMUM_TROUBLES:
            return True
        oldest = next(iter(self._told))
        if now - self._told[oldest][0] >= TROUBLE_REPEAT_S:
            del self._told[oldest]
            return True
        if now - self._overflow_told_at >= TROUBLE_REPEAT_S:
            self._overflow_told_at = now
            self._tell(f"interconnect: {len(self._told)} different troubles within an hour: further ones are not told")
        return False


class Path:
    """One of a peer's addresses: connections that are made to it, or by it to the address of that number here."""

    def __init__(self, number: int, address: str) -> None:
        self.number, self.address = number, address
        self.vacant = asyncio.Event()  # none is open
        self.vacant.set()
        self.lasted_s = 0.0  # for how long the last connection was open
        self.attempts = 0  # to connect
        self.moves = False  # the peer has moved here: connect though there is a connection with it on this path (P1.8)
        self.dialler: asyncio.Task[None] | None = None


class Listener:
    """An address of this node: where it listens, or will."""

    def __init__(self, address: str, path: int) -> None:
        self.address, self.path = address, path
        self.server: asyncio.Server | None = None
        self.waiting: asyncio.Task[None] | None = None  # for an address that cannot be had yet
        self.is_former = False  # it is no address of this node any more

    def close(self) -> None:
        """Listen no more; connections stay."""
        if self.server is not None:
            self.server.close()
        if self.waiting is not None:
            self.waiting.cancel()


class Peer:
    """Another configured node: where it is, and the connections with it that are open."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.paths: list[Path] = []
        self.incarnation = 0  # highest that ever said Hello
        self.channels: list[Channel] = []  # open ones, in the order in which they opened
        self._used: Channel | None = None

    def on_path(self, number: int) -> list[Channel]:
        """The open connections of one path; its last is used."""
        return [channel for channel in self.channels if channel.path == number]

    def used(self, stale_s: float) -> Channel:
        """The connection that messages take: the same as long as another path is not heard much more lately."""
        last = {channel.path: channel for channel in self.channels}.values()
        freshest = max(last, key=lambda channel: channel.heard_s)
        before = self._used
        if before is None or before not in last or freshest.heard_s - before.heard_s > stale_s:
            self._used = freshest
            return freshest
        return before

    @property
    def used_before(self) -> Channel | None:
        """The connection that the last message took, if it is open."""
        return self._used if self._used in self.channels else None


class Interconnect:
    """One node's end of the mesh (SPEC 1.6). Belongs to the event loop that runs `start`.

    Callbacks, all called from the event loop: `on_message(sender, message)`; `on_connected(node, incarnation)` when a
    connection opens (again without a loss between when a new one has replaced it: what was under way may be lost);
    `on_lost(node, cause)` when none is left; `on_trouble(text)` for people, each cause once; `on_distrust()` when this
    end or the other has refused a connection for what it knows of nodes and certificates, which may be old;
    `on_unreachable()` when no connection with a configured node is open and none could be made;
    `on_visitor(transport, data, settings)` when somebody connects to be enrolled.
    """

    def __init__(
        self,
        node: int,
        cluster_identity: str,
        incarnation: int,
        profile: Profile,
        *,
        on_message: Callable[[int, Message], None],
        on_connected: Callable[[int, int], None],
        on_lost: Callable[[int, str], None],
        on_trouble: Callable[[str], None],
        on_distrust: Callable[[], None] = lambda: None,
        on_unreachable: Callable[[], None] = lambda: None,
        on_visitor: Visitor | None = None,
        versions: tuple[int, int] = WIRE_VERSIONS,
        codec: Codec = DAEMONS,
        purpose: str = "",
        in_order: bool = False,
        life_of: Callable[[int, int], int] = lambda incarnation, _process: incarnation,
    ) -> None:
        """`codec`: of what is said after Hello; `purpose`: of other processes than daemons, told in Hello (P12.18).

        `in_order`: for those who need to know when what they send takes another path, for then it may arrive before
        what took the last one: `on_connected` is called again, as after a loss. `life_of`: incarnation and process of a
        Hello as one number, which is what "incarnation" means here; it grows with both.
        """
        self.node, self.handshake_ms, self.codec = node, profile.connect_ms, codec
        self._profile = profile
        self.loop = asyncio.get_running_loop()
        self._cluster = cluster_identity
        self._hello = Hello(cluster_identity + purpose, node, incarnation, *versions)
        self._on_message, self._on_connected, self._on_lost = on_message, on_connected, on_lost
        self._strangers, self._acquaintances = TroubleTable(on_trouble), TroubleTable(on_trouble)
        self._peers: dict[int, Peer] = {}
        self._encoded: tuple[Message | None, bytes] = (None, b"")  # the last message sent, and its bytes
        self._channels: set[Channel] = set()  # all that have a socket
        self._half_open: OrderedDict[Channel, None] = OrderedDict()  # accepted, no Hello yet; oldest first
        self._listeners: list[Listener] = []
        self._accepted: dict[Channel, Listener] = {}  # where each came in
        self._credentials: _Credentials | None = None
        self._keys: Mapping[int, str] | None = None
        self._on_distrust, self._on_unreachable, self._on_visitor = on_distrust, on_unreachable, on_visitor
        self._closing, self._in_order = False, in_order
        self._life_of = life_of
        self._dials_until_s = 0.0  # attempts that have had their turn fill the rate up to this moment
        self.active_version = 0  # of the cluster, once known: who cannot understand it is refused (P10.1)
        self.barred: dict[int, str] = {}  # configured nodes that were refused, or that refuse this one, and why

    async def start(
        self,
        listen: str | tuple[str, ...],
        certificate_pem: str,
        key_path: str,
        authority_pem: str,
        *,
        patient: bool = False,
    ) -> None:
        """Listen on HOST:PORT (or several), and keep connecting to the peers that `set_peers` names.

        Raises `CertificateRefused` for a certificate or key that no peer would accept, and `InterconnectRefused` for
        an address that cannot be had, naming the process that holds it where that can be known. `patient`: such an
        address is told as trouble instead, and tried again until it can be had (P11.6).
        """
        self._credentials = self._load(certificate_pem, key_path, authority_pem)
        try:
            for path, address in enumerate((listen,) if isinstance(listen, str) else listen):
                self._listeners.append(Listener(address, path))
            for listener in self._listeners:
                if patient:
                    listener.waiting = self.loop.create_task(self._listen_or_wait(listener, patient=True))
                else:
                    await self._listen_or_wait(listener, patient=False)
            waiting = [each.waiting for each in self._listeners if each.waiting is not None]
            if waiting:
                await asyncio.wait(waiting, timeout=NAMES_S)
            for listener in self._listeners:
                if listener.server is None and listener.waiting in waiting:  # its name is still looked up
                    self._acquaintances.note(listener.address, Cause("cannot listen", _NO_NAME_YET))
        except InterconnectRefused:
            self._credentials = None
            await self.close()
            raise
        for peer in self._peers.values():
            for each in peer.paths:
                if each.address:
                    self._dial_always(peer, each)

    def set_trust(self, trust: Trust, certificate_pem: str) -> None:
        """Go by this record from now on (P1.1), and show this certificate. May be called at any time once started.

        Raises `CertificateRefused` where the certificate is not for this node's key, or of no trusted authority: then
        the old one is still shown, and the old authorities are trusted; the keys are changed all the same.
        """
        self._keys = dict(trust.keys)
        for peer in self._peers.values():
            for channel in [each for each in peer.channels if each.peer_key() != self._keys.get(peer.node)]:
                cause = Cause("other key", "its certificate is no longer accepted")
                self.loop.call_soon(lambda channel=channel, cause=cause: channel.end(cause))  # type: ignore[misc]
        old = self._credentials
        if old is None or (old.certificate_pem, old.authority_pem) == (certificate_pem, trust.authorities):
            return
        self._credentials = self._load(certificate_pem, old.key_path, trust.authorities)

    def _load(self, certificate_pem: str, key_path: str, authority_pem: str) -> _Credentials:
        server = server_context(certificate_pem, key_path, authority_pem)
        client = client_context(certificate_pem, key_path, authority_pem)
        identity = verify_pair(server, client)
        if (identity.cluster, identity.node) != (self._cluster, self.node):
            wanted = f"node {self.node} of cluster {self._cluster}"
            text = f"certificate of this node: it names {identity.uri}, and this is {wanted}"
            raise CertificateRefused(f"{text}; give the certificate and key that were made for this node")
        visitor = visitor_context(certificate_pem, key_path)
        return _Credentials(certificate_pem, key_path, authority_pem, server, client, visitor)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where this node listens, as HOST:PORT with the real port."""
        servers = [each.server for each in self._listeners if each.server is not None]
        names = [handle.getsockname() for server in servers for handle in server.sockets]
        return tuple(f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}" for name in names)

    @property
    def ports(self) -> tuple[int, ...]:
        """Where this node listens, one port for each of the addresses given; 0 for one that cannot be had yet."""
        servers = [each.server for each in self._listeners]
        return tuple(0 if server is None else server.sockets[0].getsockname()[1] for server in servers)

    def set_process(self, process: int) -> None:
        """Say this number in Hello from now on; only before there are peers, which know each other by it (P12.22)."""
        assert not self._peers, "peers have been told another one"
        self._hello = replace(self._hello, process=process)

    def life(self, hello: Hello) -> int:
        """Who has said Hello, among all that its node has ever been."""
        return self._life_of(hello.incarnation, hello.process)

    @property
    def connected(self) -> dict[int, int]:
        """Incarnation of every node that a connection is open with."""
        return {node: peer.channels[-1].incarnation for node, peer in self._peers.items() if peer.channels}

    def acknowledged(self, node: int) -> bool | None:
        """Whether the kernel of `node` acknowledges what is sent there; None where no connection is open."""
        peer = self._peers.get(node)
        found = [channel.acknowledged() for channel in peer.channels] if peer else []
        return None if not found else any(found)

    def _stale_s(self) -> float:
        return 1.5 * self._profile.heartbeat_interval_ms(len(self._peers) + 1) / _MS_PER_S

    def paths(self, node: int) -> list[dict[str, object]]:
        """Each path to `node`: its address, and whether it is `up`, `silent` (open, and not heard) or `down`."""
        peer = self._peers.get(node)
        bound_s = self._profile.link_loss_ms(len(self._peers) + 1) / _MS_PER_S
        found: list[dict[str, object]] = []
        for path in peer.paths if peer else ():
            channels = peer.on_path(path.number) if peer else []
            age_s = min((self.loop.time() - channel.heard_s for channel in channels), default=None)
            state = "down" if age_s is None else "up" if age_s <= bound_s else "silent"
            heard_ms = None if age_s is None else int(age_s * _MS_PER_S)
            found.append({"address": path.address, "state": state, "heard_ms_ago": heard_ms})
        return found

    def queued_bytes(self, node: int) -> int:
        """Bytes that wait in this process for `node`."""
        peer = self._peers.get(node)
        return sum(channel.queued_bytes for channel in peer.channels) if peer else 0

    def set_peers(self, peers: Mapping[int, tuple[str, ...]]) -> None:
        """The configured nodes and their addresses; this node itself may be among them. May be called at any time.

        An empty address is one that is not known yet: that path is the other end's to open.
        """
        for node in [node for node in self._peers if node not in peers]:
            peer = self._peers.pop(node)
            self.barred.pop(node, None)
            self._give_up(peer.paths)
            self.loop.call_soon(self._dismiss, peer)
        for node, addresses in peers.items():
            if node == self.node:
                continue
            peer = self._peers.setdefault(node, Peer(node))
            self._set_paths(peer, tuple(addresses))

    def set_own(self, addresses: tuple[str, ...]) -> None:
        """The addresses of this node itself, once started: listen at new ones, let go of others later (P1.8)."""
        present = [each for each in self._listeners if not each.is_former]
        if self._credentials is None or addresses == tuple(each.address for each in present):
            return
        known = {each.address: each for each in self._listeners}
        for each in self._listeners:
            each.is_former = True
        for path, address in enumerate(addresses):
            listener = known.get(address)
            if listener is None:
                listener = Listener(address, path)
                self._listeners.append(listener)
                listener.waiting = self.loop.create_task(self._listen_soon(listener))
            listener.path, listener.is_former = path, False
        present = [each for each in self._listeners if not each.is_former]
        present.sort(key=lambda each: each.path)
        former = [each for each in self._listeners if each.is_former]
        for each in former[:-MAXIMUM_LINKS]:
            each.close()
        self._listeners = [*former[-MAXIMUM_LINKS:], *present]
        for peer in self._peers.values():
            self._leave_gone_paths(peer)
        self.loop.call_soon(self._let_go)

    def _leave_gone_paths(self, peer: Peer) -> None:
        """End connections on paths that are none any more, where the peer is connected otherwise (P1.8)."""
        count = max(len(peer.paths), sum(1 for each in self._listeners if not each.is_former))
        gone = [channel for channel in peer.channels if channel.path >= count]
        if len(gone) < len(peer.channels):
            for channel in gone:
                self.loop.call_soon(channel.end, Cause("replaced", "its path is no longer configured"))

    def _let_go(self) -> None:
        """Leave the former addresses, once all who are connected have come to those of now (P1.8)."""
        former = [each for each in self._listeners if each.is_former]
        if not former or any(each.server is None for each in self._listeners if not each.is_former):
            return
        for peer in self._peers.values():
            came = [self._accepted[channel] for channel in peer.channels if channel in self._accepted]
            if peer.channels and (not came or any(each.is_former for each in came)):
                return
        for each in former:
            each.close()
            self._listeners.remove(each)
            self._acquaintances.note(each.address, Cause("let go", "this node has left that address"))

    def _set_paths(self, peer: Peer, addresses: tuple[str, ...]) -> None:
        """Keep the paths whose addresses stay; dial the new ones. Connections of others stay while they last."""
        if addresses == tuple(path.address for path in peer.paths):
            return
        old = {(path.number, path.address): path for path in peer.paths}
        peer.paths = [old.pop(key) if key in old else Path(*key) for key in enumerate(addresses)]
        moved = {path.number for path in old.values() if path.address}
        self._give_up(old.values())
        for path in peer.paths:
            path.moves = path.moves or path.number in moved
            if peer.on_path(path.number):
                path.vacant.clear()
            if path.dialler is None and path.address and self._credentials is not None:
                self._dial_always(peer, path)
        if self._credentials is not None:
            self._leave_gone_paths(peer)

    def _give_up(self, paths: Iterable[Path]) -> None:
        for path in paths:
            if path.dialler is not None:
                path.dialler.cancel()

    def send(self, node: int, message: Message) -> bool:
        """Send, if `node` is connected. Never blocks; false if the message certainly does not arrive."""
        peer = self._peers.get(node)
        if peer is None or not peer.channels or 0 < self.active_version < version_of(message):
            return False
        before = peer.used_before
        channel = peer.used(self._stale_s())
        if self._in_order and before is not None and channel is not before:
            self.loop.call_soon(self._on_connected, node, channel.incarnation)
        payload = self._payload_of(message, node)
        if payload is None:
            return False
        if len(payload) > MAXIMUM_FRAME_BYTES:
            what = f"{type(message).__name__} of {len(payload)} bytes, where {MAXIMUM_FRAME_BYTES} are allowed"
            cause = Cause("message too large", f"{what}: not sent; make the configuration smaller")
            self.loop.call_soon(self._acquaintances.note, f"node {node}", cause)
            return False
        if isinstance(message, Heartbeat):  # on every path, so that each is known to be up
            for number in {each.path for each in peer.channels} - {channel.path}:
                peer.on_path(number)[-1].send(payload)
        if channel.send(payload):
            return True
        text = f"it took nothing while {channel.queued_bytes} bytes gathered for it; it is connected again"
        cause = Cause("queue full", text)
        self.loop.call_soon(lambda: channel.end(cause, at_once=True))
        return False

    def _payload_of(self, message: Message, node: int) -> bytes | None:
        """Its bytes; what goes to all is encoded once. None for what cannot be: the edges let no such thing in."""
        if message is not self._encoded[0]:
            try:
                self._encoded = message, self.codec.encode(message)
            except (OverflowError, UnicodeEncodeError) as error:
                cause = Cause("message not encoded", f"{type(message).__name__} not sent: {error}; report this")
                self.loop.call_soon(self._acquaintances.note, f"node {node}", cause)
                return None
        return self._encoded[1]

    async def close(self) -> None:
        """End everything. No callback is called from now on; every socket is closed on return."""
        self._closing = True
        for listener in self._listeners:
            listener.close()
        tasks = [path.dialler for peer in self._peers.values() for path in peer.paths if path.dialler is not None]
        tasks += [listener.waiting for listener in self._listeners if listener.waiting is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        channels = tuple(self._channels)
        for channel in channels:
            channel.end(Cause("this node closes", "this node ends"))
        for channel in channels:  # bounded: `end` aborts what the peer does not take
            await channel.gone.wait()

    # --- Called by channels ---

    def silence_ms(self) -> int:
        """How long sent bytes may stay unacknowledged before the kernel ends the connection."""
        return max(self.handshake_ms, self._profile.link_loss_ms(len(self._peers) + 1))

    def admit(self, channel: Channel) -> bool:
        """Take up a connection that is just made; false if it had to be ended at once."""
        self._channels.add(channel)
        if self._closing:
            channel.end(Cause("this node closes", "this node ends"), at_once=True)
            return False
        if channel.outgoing:
            return True
        self._half_open[channel] = None
        if len(self._half_open) > MAXIMUM_HALF_OPEN:
            self._drop_slowest()
        return True

    def divert(self, channel: Channel, transport: asyncio.Transport, data: bytes) -> None:
        """Somebody wants to be enrolled (P1.4), or is lost."""
        self._half_open.pop(channel, None)
        if self._on_visitor is None or self._credentials is None or self._closing:
            transport.abort()
        else:
            self._on_visitor(transport, data, self._credentials.visitor)

    def channel_secured(self, channel: Channel) -> None:
        """TLS is up: see whom the certificate names, and greet."""
        try:
            identity = peer_identity(channel.peer_certificate())
        except CertificateRefused as error:
            channel.end(Cause("no node", str(error)))
            return
        if identity.cluster != self._cluster:
            text = f"its certificate is of cluster {identity.cluster}, this is {self._hello.cluster}"
            channel.end(Cause("other cluster", f"{text}; correct the address, or the address of this cluster's node"))
            return
        if channel.outgoing and identity.node != channel.expected:
            text = f"node {identity.node} answers there, not node {channel.expected}; correct the configured addresses"
            channel.end(Cause("other node", text))
            return
        channel.node = identity.node
        if self._keys is not None and identity.node in self._keys and channel.peer_key() != self._keys[identity.node]:
            text = "its certificate is not for the key that this cluster has on record for it"
            channel.end(Cause("other key", f"{text}; a removed or replaced machine is running, stop it"))
            return
        if not channel.outgoing:
            return
        peer = self._peers.get(identity.node)
        if peer is None or (peer.on_path(channel.path) and _moving(peer, channel) is None):
            channel.end(_SUPERFLUOUS)
        else:
            channel.say_hello(self._hello)

    def channel_greeted(self, channel: Channel, hello: Hello) -> None:
        """The other's Hello is here: accept it or say why not (SPEC 9.2)."""
        refusal = self._judge(channel, hello)
        if not channel.greeted and (refusal is None or refusal.kind in _MUTUAL):
            channel.say_hello(self._hello)
        if refusal is None:
            self._open(channel, hello)
        else:
            channel.end(refusal)

    def channel_received(self, channel: Channel, message: Message) -> None:
        """A message on an open connection."""
        if not self._closing and channel.node is not None:
            self._on_message(channel.node, message)

    def channel_ended(self, channel: Channel, before: Phase, cause: Cause) -> None:
        """A connection has ended, from phase `before`: tell whom it concerns."""
        self._half_open.pop(channel, None)
        if self._closing:
            return
        if before is Phase.OPEN and channel.node is not None:
            self._lost(channel, channel.node, cause)
            if cause.kind in _ORDINARY:
                return
        if cause is _SUPERFLUOUS:
            return
        if channel.outgoing and channel.node in self._peers and not self._peers[channel.node].channels:
            self._on_unreachable()
        if before is not Phase.OPEN and (cause.kind in _DISTRUST or cause.kind.startswith("TLS")):
            self._on_distrust()
        if cause.kind in _BARS and channel.node in self._peers:
            self.barred[channel.node] = cause.text
        if channel.outgoing or before is Phase.OPEN:
            self._acquaintances.note(f"node {channel.node}", Cause(cause.kind, f"at {channel.address}: {cause.text}"))
        else:
            name = "" if channel.node is None else f"node {channel.node} at "
            self._strangers.note(name + channel.address, cause)

    def discard(self, channel: Channel) -> None:
        """The channel's socket is closed."""
        self._channels.discard(channel)
        self._accepted.pop(channel, None)

    # --- Inside ---

    def _judge(self, channel: Channel, hello: Hello) -> Cause | None:
        """Why the other end cannot be accepted, if so."""
        own, low, high = self._hello, hello.lowest_version, hello.highest_version
        peer = self._peers.get(hello.node)
        if hello.cluster != own.cluster:
            text = f"it is of cluster {hello.cluster!r}, this is {own.cluster!r}; correct the configured addresses"
            return Cause("other cluster", text)
        if hello.node != channel.node:
            text = f"it calls itself node {hello.node}, and its certificate names node {channel.node}"
            return Cause("other node", f"{text}; give it the certificate and key made for it")
        if low > own.highest_version or high < own.lowest_version:
            ranges = f"it speaks versions {low} to {high}, this node {own.lowest_version} to {own.highest_version}"
            return Cause("versions", f"{ranges}; upgrade the older of the two")
        if self.active_version and not low <= self.active_version <= high:
            text = f"it speaks versions {low} to {high}, and version {self.active_version} is active in this cluster"
            return Cause("versions", f"{text}; install a release that knows it on node {hello.node}")
        if hello.node == self.node:
            return Cause("own name", f"it is node {self.node}, and so is this one; stop one of the two")
        if peer is None:
            return Cause("not configured", f"node {hello.node} is not configured; add it to the cluster first")
        if self.life(hello) < peer.incarnation:
            text = f"incarnation {self.life(hello)} of node {hello.node}, and {peer.incarnation} has been here"
            return Cause("old incarnation", f"{text}; a clone or a leftover of the node is running, stop it")
        return None

    def _open(self, channel: Channel, hello: Hello) -> None:
        peer, life = self._peers[hello.node], self.life(hello)
        self._half_open.pop(channel, None)
        channel.open(life)
        if (path := _moving(peer, channel)) is not None:
            path.moves = False
        older: list[Channel] = []  # replaced by this one, whatever the ids
        rivals: list[Channel] = []  # made by the other end at the same time
        others: list[Channel] = []  # on other paths
        for other in peer.channels:
            if other.incarnation < life or (other.path, other.outgoing) == (
                channel.path,
                channel.outgoing,
            ):
                older.append(other)
            else:
                (rivals if other.path == channel.path else others).append(other)
        previous = peer.incarnation if peer.channels else life
        peer.incarnation = life
        peer.channels = [*others, *rivals, channel]
        for path in peer.paths:
            (path.vacant.clear if peer.on_path(path.number) else path.vacant.set)()
        for other in older:  # no longer in `peer.channels`: their end is no loss
            other.end(Cause("replaced", "a newer connection has replaced it"))
        if self.node < peer.node:
            for other in rivals:
                self.loop.call_later(LINGER_MS / _MS_PER_S, self._retire, peer, other)
        self._acquaintances.forget(f"node {peer.node}")
        self.barred.pop(peer.node, None)
        if previous < life:
            self._on_lost(peer.node, f"incarnation {life} has replaced incarnation {previous}")
        self._on_connected(peer.node, life)
        self._leave_gone_paths(peer)
        self._let_go()

    def _retire(self, peer: Peer, channel: Channel) -> None:
        """Close the older of two connections, if it is still the older of two."""
        if channel in peer.on_path(channel.path)[:-1]:
            channel.end(Cause("replaced", "a newer connection has replaced it"))

    def _lost(self, channel: Channel, node: int, cause: Cause) -> None:
        peer = self._peers.get(node)
        if peer is None or channel not in peer.channels:
            return
        used = channel is peer.used_before or channel is peer.used(self._stale_s())
        peer.channels.remove(channel)
        for path in peer.paths:
            if path.number == channel.path and not peer.on_path(path.number):
                path.lasted_s = self.loop.time() - channel.opened_s
                path.vacant.set()
        if not peer.channels:
            self._on_lost(node, cause.text)
        elif used:
            self._on_connected(node, peer.channels[-1].incarnation)
        self._let_go()

    def _dismiss(self, peer: Peer) -> None:
        """`peer` is no longer configured."""
        channels, peer.channels = peer.channels, []
        for channel in channels:
            channel.end(Cause("replaced", "the node is no longer configured"))
        if channels and not self._closing:
            self._on_lost(peer.node, "it is no longer configured")

    def _drop_slowest(self) -> None:
        """Too many unproven connections: end the oldest of the source that has most of them."""
        counts: dict[str, int] = {}
        for channel in self._half_open:
            counts[channel.address] = counts.get(channel.address, 0) + 1
        busiest = max(counts, key=lambda address: counts[address])
        slowest = next(channel for channel in self._half_open if channel.address == busiest)
        text = f"more than {MAXIMUM_HALF_OPEN} connections wait for a handshake; find out what program connects here"
        slowest.end(Cause("too many handshakes", text), at_once=True)

    async def _listen_or_wait(self, listener: Listener, *, patient: bool) -> None:
        try:
            listener.server = await self._listen(listener)
        except InterconnectRefused as error:
            if not patient:
                raise
            text = f"{error}; it is tried again until it can be had"
            self._acquaintances.note(listener.address, Cause("cannot listen", text))
            listener.waiting = self.loop.create_task(self._listen_later(listener))

    async def _listen_soon(self, listener: Listener) -> None:
        """Listen at an address that has just become one of this node's."""
        await self._listen_or_wait(listener, patient=True)
        if listener.server is not None:
            self._acquaintances.note(listener.address, Cause("listens", "this node listens there now"))
            self._let_go()

    async def _listen_later(self, listener: Listener) -> None:
        while True:
            await asyncio.sleep(LISTEN_AGAIN_S)
            try:
                listener.server = await self._listen(listener)
            except InterconnectRefused:
                continue  # told once
            self._acquaintances.forget(listener.address)
            self._acquaintances.note(listener.address, Cause("listens", "this node listens there now"))
            self._let_go()
            return

    async def _listen(self, listener: Listener) -> asyncio.Server:
        address = listener.address
        host, port = parse_address(address)
        try:
            return await self.loop.create_server(lambda: self._accept(listener), host or None, port)
        except OSError as error:
            raise InterconnectRefused(await aside(_cannot_listen, address, port, error)) from error

    def _accept(self, listener: Listener) -> Channel:
        assert self._credentials is not None, "nobody listens before that"
        channel = Channel(self, self._credentials.server, None, "", listener.path)
        self._accepted[channel] = listener
        return channel

    def _dial_always(self, peer: Peer, path: Path) -> None:
        path.dialler = self.loop.create_task(self._dial(peer, path), name=f"interconnect to node {peer.node}")

    async def _dial(self, peer: Peer, path: Path) -> None:
        """Connect whenever no connection is open on this path, for as long as it is configured; once if it is new."""
        pause_ms = float(FIRST_PAUSE_MS)
        while True:
            if not path.moves:
                await path.vacant.wait()
            if path.lasted_s * _MS_PER_S > self.handshake_ms:  # that was a connection, and no door slammed
                path.lasted_s, pause_ms = 0.0, FIRST_PAUSE_MS
            if self.node > peer.node:
                await self._pause(HEAD_START_MS)
            await self._turn()
            if path.moves or not peer.on_path(path.number):
                await self._attempt(peer, path)
            failed = not peer.on_path(path.number) and path.lasted_s * _MS_PER_S <= self.handshake_ms
            if path.moves or failed:
                await self._pause(pause_ms)
                pause_ms = min(2 * pause_ms, self.handshake_ms)

    async def _turn(self) -> None:
        """Wait until one more attempt is within the rate: absent peers, however many, cost the same (P1.9)."""
        now = self.loop.time()
        self._dials_until_s = max(self._dials_until_s, now - FREE_DIALS / DIALS_PER_S) + 1 / DIALS_PER_S
        if self._dials_until_s > now:
            await asyncio.sleep(self._dials_until_s - now)

    async def _pause(self, longest_ms: float) -> None:
        """Wait between half of `longest_ms` and all of it, so that nodes do not stay in step."""
        await asyncio.sleep(random.uniform(0.5, 1.0) * longest_ms / _MS_PER_S)

    async def _attempt(self, peer: Peer, path: Path) -> None:
        """Connect once, and stay until that connection ends."""
        address = path.address
        path.attempts += 1
        bound_s = self.handshake_ms / _MS_PER_S
        if self._credentials is None:
            raise AssertionError("dialling before start")
        channel = Channel(self, self._credentials.client, peer.node, address, path.number)
        try:
            host, port = parse_address(address)
            async with asyncio.timeout(bound_s):
                await self.loop.create_connection(lambda: channel, host, port)
            await channel.ended
        except TimeoutError:
            reason = f"no answer within {bound_s * _MS_PER_S:.0f} ms; is its machine up, and the network between?"
            channel.end(Cause("no answer", reason))
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be one
            reason = _reason(error)
            channel.end(Cause(f"cannot connect: {reason}", f"cannot connect: {reason}; is musterd running there?"))
        except InterconnectRefused as error:
            channel.end(Cause("address", str(error)))


def _moving(peer: Peer, channel: Channel) -> Path | None:
    """The path on which the connection brings a peer to the address that it has moved to (P1.8)."""
    if not channel.outgoing:
        return None
    wanted = (channel.path, channel.address)
    return next((path for path in peer.paths if path.moves and (path.number, path.address) == wanted), None)


_ORDINARY = frozenset({"closed", "broken", "replaced"})  # ends of open connections that only the rules need to know
_DISTRUST = frozenset({"other key", "not configured", "no node", "closed early"})  # what we or they know may be old
_BARS = frozenset({"versions", "other cluster", "other node", "own name", "old incarnation"})  # last until mended
_MUTUAL = frozenset({"other cluster", "other node", "versions"})  # refusals that the other end can see by our Hello


def _reason(error: OSError | ValueError) -> str:
    """The system's own words; asyncio puts the address there, which the caller has told already."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number is not None and number > 0 else getattr(error, "strerror", None) or str(error)


def check_address(address: str) -> None:
    """Find out before the node begins whether it can listen on HOST:PORT. Raises `InterconnectRefused`."""
    host, port = parse_address(address)
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        kind = AddressInUse if error.errno == errno.EADDRINUSE else InterconnectRefused
        raise kind(_cannot_listen(address, port, error)) from error


def _cannot_listen(address: str, port: int, error: OSError) -> str:
    """Why, and what to do; it asks the system who has the port, which takes a moment."""
    reason, advice = _reason(error), "correct this node's address in the configuration"
    if error.errno == errno.EADDRINUSE:
        reason = f"it is in use by {_holder_of(port)}"
        advice = "stop that, or give this node another address"
    return f"address {address}: cannot listen there: {reason}; {advice}"


def _name_of(name: str, arguments: list[str]) -> str:
    """A process in words: a daemon of ours by its node, which tells at once that a node was started twice."""
    if "muster.daemon.run" not in arguments:
        return name
    given = dict(pairwise(arguments))
    return f"the daemon of node {given.get('--node', '?')} with home {given.get('--home', '?')}"


def _holder_of(port: int) -> str:
    """The process that listens on TCP `port`, in words; other users' processes cannot be seen by all."""
    import psutil  # type: ignore[import-untyped]

    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f"process {connection.pid} ({_name_of(process.name(), process.cmdline())})"
    except (psutil.Error, OSError):
        pass
    return "another process"
