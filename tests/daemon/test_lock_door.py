"""The socket of a lock process, with one node and no cluster: who comes in, what is answered and bounded (P12.20)."""

import asyncio
import json
import os
import socket
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from muster.client.locks.asynchronous import AsyncLocks
from muster.client.locks.exchange import Exchange
from muster.core.locks.machine import LockManager
from muster.core.locks.recovery import Kind, Member, Step
from muster.daemon.locks.door import Door
from muster.daemon.locks.host import Host
from muster.daemon.locks.session import Extra, LockSession
from muster.daemon.socket.access import Gate
from muster.locks import EX, PR, LocksLost, NotGranted, Unreachable
from muster.records.access import Groups

DEADLINE_S = 20.0
HELLO = b'["hello",{}]\n'


class Alone:
    """A lock process without a node: the only one of its level."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "locks.sock"
        self.acknowledged: list[tuple[int, int]] = []
        self.told: list[str] = []
        self.manager = LockManager(0, 7)
        self.manager.follow_spaces(["orders"])
        self.host = Host(self.manager, lambda _node, _frames: None, self._acknowledge, self.told.append)
        gate = Gate("n0", lambda: Groups("", "", ""), lambda _event, text: self.told.append(text))
        extra: Extra = lambda session, request: session.say(("answer", request.ref, {}))  # noqa: E731
        self.door = Door(self.path, self.host, gate, extra, lambda: {"node": "n0", "spaces": ["orders"]}, lambda: 0)
        for barrier in (0, 1):
            self.host.told(Step(1, Kind.JOINING, 0, 7, barrier, 9, {0: Member(7)}))

    def _acknowledge(self, transition: int, barrier: int) -> None:
        self.acknowledged.append((transition, barrier))

    async def client(self) -> AsyncLocks:
        """A client of `muster.locks`."""
        exchange = Exchange(str(self.path))
        welcome = await exchange.begin((), DEADLINE_S)
        return AsyncLocks(exchange, welcome["node"], welcome["spaces"])

    async def spoken(self, *packets: bytes, handles: tuple[int, ...] = ()) -> list[list[Any]]:
        """What is answered to these packets before the connection ends, or is quiet."""
        before = len(self.door._sessions)
        reader, writer = await self.raw(handles, packets[0])
        for packet in packets[1:]:
            writer.write(packet)
        found = []
        try:
            while line := await asyncio.wait_for(reader.readline(), 0.5):
                found.append(json.loads(line))
        except (TimeoutError, ConnectionResetError):
            pass
        writer.close()
        while len(self.door._sessions) > before:  # noqa: ASYNC110 - the door tells nobody
            await asyncio.sleep(0.002)  # until it is known here: nothing is granted to it after that
        return found

    async def raw(self, handles: tuple[int, ...], first: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that has said this first, with these descriptors."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        connection.connect(str(self.path))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", handles))] if handles else []
        connection.sendmsg([first], rights)
        return await asyncio.open_unix_connection(sock=connection)


@asynccontextmanager
async def alone(directory: Path) -> AsyncIterator[Alone]:
    """It is closed in the end."""
    found = Alone(directory)
    found.door.open()
    try:
        yield found
    finally:
        found.door.close()
        await asyncio.sleep(0)


def run(directory: Path, work: Callable[[Alone], Awaitable[None]]) -> None:
    """Some work with a lock process."""

    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S), alone(directory) as found:
            await work(found)

    asyncio.run(main())


def test_p12_17_the_barriers_of_its_own_join_are_acknowledged(tmp_path: Path) -> None:
    async def work(process: Alone) -> None:
        assert process.acknowledged == [(1, 0), (1, 1)]

    run(tmp_path, work)


@pytest.mark.parametrize(
    ("packets", "answer"),
    [
        ((b"nonsense\n",), "this is no hello"),
        ((b'["lock",1,"orders","x",5,false,0]\n',), "this is no hello"),
        ((HELLO, b"nonsense\n"), "a line is no request"),
        ((HELLO + b"nonsense\n",), "a line is no request"),
        ((HELLO + b'["unlock",1,77,null]\n',), "this client has no lock 77"),
        ((HELLO + b"x" * 100_000,), "a line of more than 65536 bytes"),
        ((HELLO, b'["lock",0,"orders","x",5,false,0]\n'), "a line is no request"),
        ((HELLO, b'["lock",1,"orders","x",5,false]\n'), "a line is no request"),
        ((HELLO, b'["steal",1]\n'), "a line is no request"),
        ((HELLO, b"\xff\n"), "a line is no request"),
        ((HELLO, b"[" * 50_000 + b"\n"), "a line is no request"),
        ((HELLO, b"x" * 70_000), "a line of more than 65536 bytes"),
        ((HELLO, b'["lock",1,"orders","x",9,false,0]\n'), "there is no mode 9"),
        ((HELLO, b'["lock",1,"orders","x",-1,false,0]\n'), "there is no mode -1"),
        ((HELLO, b'["lock",1,"nothing","x",5,false,0]\n'), "there is no lockspace 'nothing'"),
        ((HELLO, b'["lock",1,"orders","' + b"x" * 300 + b'",5,false,0]\n'), "at most 255 bytes"),
        ((HELLO, b'["unlock",1,77,null]\n'), "this client has no lock 77"),
        ((HELLO, b'["convert",1,77,5,false,0,null]\n'), "this client has no lock 77"),
    ],
)
def test_p12_20_what_is_asked_wrongly_is_refused_in_words(
    tmp_path: Path, packets: tuple[bytes, ...], answer: str
) -> None:
    async def work(process: Alone) -> None:
        said = await process.spoken(*packets)
        assert any(each[0] == "refused" and answer in each[2] for each in said), said
        assert not process.manager.tables.clients
        async with await process.client() as other, other.space("orders").lock("x", EX):
            pass  # others are served

    run(tmp_path, work)


def test_p12_19_a_descriptor_that_is_no_handle_on_a_process_is_refused(tmp_path: Path) -> None:
    async def work(process: Alone) -> None:
        read, write = os.pipe()
        try:
            (said,) = await process.spoken(HELLO, handles=(read,))
            assert "no pidfd" in said[2]
        finally:
            os.close(read)
            os.close(write)

    run(tmp_path, work)


def test_p12_20_two_requests_of_one_number_are_told_apart_by_a_refusal(tmp_path: Path) -> None:
    async def work(process: Alone) -> None:
        async with await process.client() as other, other.space("orders").lock("x", EX):
            lines = b'["lock",1,"orders","x",5,false,0]\n' * 2
            said = await process.spoken(HELLO, lines)
            assert [each[:2] for each in said] == [["welcome", said[0][1]], ["refused", 1]]

    run(tmp_path, work)


def test_p12_19_who_only_waits_when_its_connection_ends_is_left_alone(tmp_path: Path) -> None:
    async def work(process: Alone) -> None:
        async with await process.client() as other:
            async with other.space("orders").lock("x", EX):
                said = await process.spoken(HELLO, b'["lock",1,"orders","x",5,false,0]\n')
                assert [each[0] for each in said] == ["welcome"]
            await other.space("orders").acquire("x", EX)
        assert not process.manager.tables.clients

    run(tmp_path, work)  # else this very process would have been ended


def test_p12_20_a_client_that_does_not_read_is_not_read_and_nothing_of_it_grows(tmp_path: Path) -> None:
    async def work(process: Alone) -> None:
        reader, writer = await process.raw((), HELLO)
        await reader.readline()  # it is let in
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        lines = b"".join(b'["unlock",%d,1,null]\n' % (number + 1) for number in range(2000))
        sent = 0
        while writer.transport.get_write_buffer_size() < 2**20:
            writer.write(lines)
            sent += len(lines)
            assert sent < 64 * 2**20, "all of it is taken, though no answer is read"
            await asyncio.sleep(0)
        (session,) = process.door._sessions
        before = _held_bytes(session)
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert _held_bytes(session) == before
        async with await process.client() as other, other.space("orders").lock("x", EX):
            pass
        writer.transport.abort()

    run(tmp_path, work)


def _held_bytes(session: LockSession) -> int:
    assert session._transport is not None
    lines = sum(map(len, session._lines)) + len(session._inbox)
    assert lines < 2**20
    return lines + session._transport.get_write_buffer_size()


def test_p12_9_waits_end_by_cancelling_or_in_time_and_conversions_are_told(tmp_path: Path) -> None:
    async def work(process: Alone) -> None:
        async with await process.client() as one, await process.client() as other:
            grant = await one.space("orders").acquire("x", EX)
            with pytest.raises(NotGranted, match="not granted in time"):
                await other.space("orders").acquire("x", PR, timeout_s=0.05)
            with pytest.raises(NotGranted, match="others hold it"):
                await other.space("orders").acquire("x", PR, no_queue=True)
            waiting = asyncio.ensure_future(other.space("orders").acquire("x", PR))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await grant.convert(PR, value=b"v")
            taken = await other.space("orders").acquire("x", PR)
            assert (taken.value, taken.valid) == (b"v", True)
            assert len(process.manager.tables.resources["orders:x"].locks) == 2

    run(tmp_path, work)


def test_p12_19_a_grant_that_comes_together_with_the_wish_to_end_is_lost_and_so_is_its_block(tmp_path: Path) -> None:
    async def work(process: Alone) -> None:
        for is_block in (False, True):
            first = await process.client()
            await first.space("orders").acquire("x", EX)
            (holder,) = process.host.holders
            other = await process.client()
            waiting = asyncio.create_task((_block if is_block else _grant)(other))
            while len(process.manager.tables.clients) < 2:  # noqa: ASYNC110 - the lock process tells nobody
                await asyncio.sleep(0)
            (lock,) = process.manager.tables.clients[holder]
            process.manager.unlock(holder, lock)  # with what follows, in one turn of the loop and so in one write
            process.host.settle()
            talker = process.host.holders[max(process.host.holders)].talker
            assert talker is not None
            talker.say(("end", "this node leaves"))
            try:
                await asyncio.wait_for(waiting, DEADLINE_S / 4)
            finally:
                for client in (other, first):
                    await client.close()  # who ends without that, and holds, is killed
            while process.host.holders:  # noqa: ASYNC110 - the lock process tells nobody
                await asyncio.sleep(0)

    run(tmp_path, work)


async def _grant(client: AsyncLocks) -> None:
    assert (await client.space("orders").acquire("x", EX)).is_lost


async def _block(client: AsyncLocks) -> None:
    with pytest.raises(LocksLost, match="this node leaves"):
        async with client.space("orders").lock("x", EX):
            await asyncio.Event().wait()


def test_p12_20_who_has_no_process_there_is_told_so(tmp_path: Path) -> None:
    async def work() -> None:
        with pytest.raises(Unreachable, match="no such socket"):
            await Exchange(str(tmp_path / "locks.sock")).begin((), 1.0)

    asyncio.run(work())
