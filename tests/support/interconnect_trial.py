"""A trial of the interconnect: an authority, stations that record what they are told, and raw connections."""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from muster.drivers.certificates.certificates import Credentials, create_authority, issue
from muster.drivers.interconnect.mesh import Interconnect, parse_address
from muster.records.messages import (
    Heartbeat,
    Message,
    decode_message,
    encode_message,
)
from muster.records.terms import Term
from muster.records.timing import FAST

CLUSTER = "00112233445566778899aabbccddeeff"
DEADLINE_S = 20.0
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
USUAL = FAST._replace(connect_ms=2000)  # a busy machine may take its time to shake hands
QUICK = FAST._replace(connect_ms=400)  # for what must run into its bound


class Keys(NamedTuple):
    """A node's credentials on disk, and the authority that it trusts."""

    certificate_pem: str
    key_path: str
    authority_pem: str


class Office:
    """An authority, and the nodes that it has issued certificates to."""

    def __init__(self, directory: Path, cluster: str = CLUSTER) -> None:
        directory.mkdir(exist_ok=True)
        self.directory, self.cluster = directory, cluster
        self.authority = create_authority("trial", cluster)

    def keys(self, node: int, **validity: datetime) -> Keys:
        """A new certificate and key for `node`."""
        return self._store(node, issue(self.authority, node, f"n{node}", self.cluster, **validity))

    def _store(self, node: int, credentials: Credentials) -> Keys:
        path = self.directory / f"n{node}.{os.urandom(4).hex()}.key"
        path.write_text(credentials.key_pem)
        path.chmod(0o600)
        return Keys(credentials.certificate_pem, str(path), self.authority.certificate_pem)

    def client(self, node: int, **validity: datetime) -> ssl.SSLContext:
        """TLS settings of a client that may be up to no good: it verifies nothing."""
        keys = self.keys(node, **validity)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        certificate = self.directory / f"n{node}.{os.urandom(4).hex()}.pem"
        certificate.write_text(keys.certificate_pem)
        context.load_cert_chain(certificate, keys.key_path)
        return context


class Station:
    """An interconnect and what it has told."""

    def __init__(self, node: int, incarnation: int = 1, **options: Any) -> None:
        self.node = node
        self.messages: list[tuple[int, Message]] = []
        self.links: list[tuple[int, int | str]] = []  # (node, incarnation) of a connection, (node, cause) of a loss
        self.troubles: list[str] = []
        self.interconnect = Interconnect(
            node,
            options.pop("cluster", CLUSTER),
            incarnation,
            options.pop("profile", USUAL),
            on_message=lambda sender, message: self.messages.append((sender, message)),
            on_connected=lambda peer, number: self.links.append((peer, number)),
            on_lost=lambda peer, cause: self.links.append((peer, cause)),
            on_trouble=self.troubles.append,
            **options,
        )

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.interconnect.addresses[0]

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return parse_address(self.address)[1]

    @property
    def losses(self) -> list[tuple[int, int | str]]:
        """The losses among the links."""
        return [link for link in self.links if isinstance(link[1], str)]

    def told(self, *words: str) -> list[str]:
        """The troubles that name all of `words`."""
        return [trouble for trouble in self.troubles if all(word in trouble for word in words)]


class Gate:
    """A relay in front of an address, which can be cut and opened again at the same place."""

    def __init__(self) -> None:
        self.address = ""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._target = ("", 0)

    async def open_to(self, address: str) -> None:
        """Pass connections on to `address`."""
        self._target = parse_address(address)
        host, port = parse_address(self.address) if self.address else ("127.0.0.1", 0)
        self._server = await asyncio.start_server(self._pass, host, port)
        name = self._server.sockets[0].getsockname()
        self.address = f"{name[0]}:{name[1]}"

    async def cut(self) -> None:
        """End what goes through, and let nothing more in."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        far_writer: asyncio.StreamWriter | None = None
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers.add(far_writer)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except OSError:
            pass  # one of the ends has gone
        finally:
            for each in filter(None, (writer, far_writer)):
                self._writers.discard(each)
                each.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.transport.abort()


async def until(condition: Callable[[], object], *stations: Station) -> None:
    """Wait for `condition`, or fail with what the stations have seen."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            seen = [(station.node, station.links[-5:], station.troubles[-5:]) for station in stations]
            raise AssertionError(f"it did not happen; {seen}")
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(
    office: Office, *stations: Station, listen: str = "127.0.0.1:0", meet: bool = True
) -> AsyncIterator[None]:
    """The stations, started, knowing each other if they are to `meet`."""
    try:
        for station in stations:
            await station.interconnect.start(listen, *office.keys(station.node))
        if meet:
            peers = {station.node: (station.address,) for station in stations}
            for station in stations:
                station.interconnect.set_peers(peers)
            await until(lambda: all(len(station.interconnect.connected) == len(stations) - 1 for station in stations))
        yield
    finally:
        for station in stations:
            await station.interconnect.close()


def beat(number: int = 0) -> Heartbeat:
    return Heartbeat(1, Term(1, 0), number)


def frame(message: Message) -> bytes:
    payload = encode_message(message)
    return len(payload).to_bytes(4, "little") + payload


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 3 * DEADLINE_S))


@contextlib.asynccontextmanager
async def raw(
    port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ends(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other end closes; fails if it does not."""
    collected = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await asyncio.wait_for(reader.read(65_536), DEADLINE_S):
            collected += data
    return collected


async def receive(reader: asyncio.StreamReader) -> Message:
    length = int.from_bytes(await asyncio.wait_for(reader.readexactly(4), DEADLINE_S), "little")
    return decode_message(await asyncio.wait_for(reader.readexactly(length), DEADLINE_S))


@contextlib.asynccontextmanager
async def raw_or_alert(port: int, context: ssl.SSLContext) -> AsyncIterator[asyncio.StreamReader]:
    """Like `raw`, for handshakes that the other end may refuse before or after they are done here."""
    try:
        async with raw(port, context) as (reader, _):
            yield reader
    except (ssl.SSLError, ConnectionError):
        reader = asyncio.StreamReader()
        reader.feed_eof()
        yield reader


async def undisturbed(first: Station, second: Station) -> None:
    """Two connected stations have noticed nothing, and still hear each other."""
    assert not first.losses
    assert not second.losses
    before = len(second.messages)
    assert first.interconnect.send(second.node, beat(77))
    await until(lambda: len(second.messages) > before, first, second)
