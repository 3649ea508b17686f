"""A cluster of etcd on this machine, and a client that locks in it: what locks are measured beside.

A lock is a transaction that puts a key under a lease if it is not there, and a delete gives it up. The client speaks
gRPC over one HTTP/2 connection by hand, with as many calls under way as are wanted, so that no library's own cost is
counted. etcd's locks are durable, on three members; those of Muster are in memory only.
"""

import asyncio
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "etcd"
MEMBERS = 3
BEGIN_S = 20.0
LEASE_S = 600
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_WINDOW = 65_535
_MOST_WINDOW = (1 << 31) - 1 - _WINDOW


def is_there() -> bool:
    """Whether etcd is installed."""
    return shutil.which(PROGRAM) is not None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def running(directory: Path) -> Iterator[int]:
    """Three members below `directory`; the port of one for clients. Raises `TimeoutError`."""
    ports = _free_ports(2 * MEMBERS)
    clients, peers = ports[:MEMBERS], ports[MEMBERS:]
    cluster = ",".join(f"m{number}=http://127.0.0.1:{port}" for number, port in enumerate(peers))
    members = []
    try:
        for number in range(MEMBERS):
            client, peer = f"http://127.0.0.1:{clients[number]}", f"http://127.0.0.1:{peers[number]}"
            words = {
                "name": f"m{number}", "data-dir": str(directory / f"m{number}"), "initial-cluster": cluster,
                "listen-client-urls": client, "advertise-client-urls": client, "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer, "initial-cluster-state": "new", "logger": "zap",
                "log-level": "error",
            }  # fmt: skip
            command = [PROGRAM, *(f"--{name}={value}" for name, value in words.items())]
            members.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        asyncio.run(_begun(clients[0]))
        yield clients[0]
    finally:
        for member in members:
            member.kill()
        for member in members:
            member.wait()


async def _begun(port: int) -> None:
    deadline = time.monotonic() + BEGIN_S
    while True:
        try:
            async with asyncio.timeout(1.0):
                client = await Etcd.connect(port)
                try:
                    await client.lock(b"begun", await client.lease())
                finally:
                    client.close()
        except (OSError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _numbers_in(message: bytes) -> dict[int, int]:
    """The numbers among a message's fields."""
    found: dict[int, int] = {}
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        key = number()
        if key & 7 == 0:
            found[key >> 3] = number()
        elif key & 7 == 2:
            length = number()
            place += length
        else:
            place += 8 if key & 7 == 1 else 4
    return found


def _header_block(path: bytes, authority: bytes) -> bytes:
    """Nothing of it is indexed, but for names that every table has."""
    return (
        b"\x83\x86\x04" + bytes([len(path)]) + path + b"\x01" + bytes([len(authority)]) + authority
        + b"\x0f\x10\x10application/grpc" + b"\x00\x02te\x08trailers"
    )  # fmt: skip


class Etcd(asyncio.Protocol):
    """A connection to one member."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._inbox = bytearray()
        self._stream = -1
        self._calls: dict[int, tuple[asyncio.Future[bytes], bytearray]] = {}
        self._window = _WINDOW
        self._opened = asyncio.Event()
        self._blocks: dict[bytes, bytes] = {}
        self._out = bytearray()
        self._authority = b""

    @classmethod
    async def connect(cls, port: int) -> "Etcd":
        """A client of the member at this port. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(cls, "127.0.0.1", port)
        client._authority = f"127.0.0.1:{port}".encode()  # noqa: SLF001 - its own
        return client

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    async def lease(self) -> int:
        """A new lease."""
        answer = await self._call(b"/etcdserverpb.Lease/LeaseGrant", _number(1, LEASE_S))
        return _numbers_in(answer)[2]

    async def lock(self, key: bytes, lease: int) -> bool:
        """Put the key, if it is not there; whether it was not."""
        is_absent = _bytes(1, _bytes(3, key) + _number(4, 0))
        put = _bytes(2, _bytes(2, _bytes(1, key) + _bytes(2, b"x") + _number(3, lease)))
        answer = await self._call(b"/etcdserverpb.KV/Txn", is_absent + put)
        return _numbers_in(answer).get(2, 0) == 1

    async def unlock(self, key: bytes) -> None:
        """Delete the key."""
        await self._call(b"/etcdserverpb.KV/DeleteRange", _bytes(1, key))

    async def _call(self, path: bytes, message: bytes) -> bytes:
        while self._window < len(message) + 5:
            self._opened.clear()
            await self._opened.wait()
        self._stream += 2
        stream = self._stream
        block = self._blocks.get(path)
        if block is None:
            block = self._blocks[path] = _header_block(path, self._authority)
        self._window -= len(message) + 5
        self._frame(_HEADERS, _END_HEADERS, stream, block)
        self._frame(_DATA, _END_STREAM, stream, b"\x00" + struct.pack(">I", len(message)) + message)
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._calls[stream] = future, bytearray()
        return await future

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes(self._out))
        self._out.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who speaks, and open the window for answers."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.write(_PREFACE)
        self._frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, (1 << 31) - 1))
        self._frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _MOST_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody answers any more."""
        for future, _ in self._calls.values():
            if not future.done():
                future.set_exception(exc or ConnectionResetError("etcd has ended the connection"))

    def data_received(self, data: bytes) -> None:
        """Frames of the member."""
        self._inbox += data
        place = 0
        while len(self._inbox) - place >= 9:
            length = int.from_bytes(self._inbox[place : place + 3], "big")
            if len(self._inbox) - place - 9 < length:
                break
            kind, flags = self._inbox[place + 3], self._inbox[place + 4]
            stream = int.from_bytes(self._inbox[place + 5 : place + 9], "big")
            payload = bytes(self._inbox[place + 9 : place + 9 + length])
            place += 9 + length
            self._take(kind, flags, stream, payload)
        del self._inbox[:place]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._frame(_PING, _ACK, 0, payload)
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
            self._opened.set()
        elif kind == _GOAWAY:
            self.close()
        elif stream in self._calls:
            future, answer = self._calls[stream]
            if kind == _DATA:
                answer += payload
            if flags & _END_STREAM and kind in {_DATA, _HEADERS}:
                del self._calls[stream]
                if not future.done():
                    self._settle(future, bytes(answer))

    @staticmethod
    def _settle(future: "asyncio.Future[bytes]", answer: bytes) -> None:
        if len(answer) >= 5:
            future.set_result(answer[5:])
        else:
            future.set_exception(OSError("etcd refuses the call"))
