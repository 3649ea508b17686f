"""The Unix socket of the lock process: who comes, as the kernel says, with which processes (P12.19, P12.20).

Credentials first, then bytes, as at the control socket. The first line comes with descriptors (pidfds) of the holder's
processes, so it is read by hand; from then on the connection is asyncio's, and takes no descriptors where the kernel
can refuse them.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from muster.client.address import reachable
from muster.daemon.locks.host import Holder, Host
from muster.daemon.locks.requests import MAXIMUM_HELLO_BYTES, Greeting, encoder, hello_decoder
from muster.daemon.locks.session import Extra, LockSession
from muster.daemon.socket.access import Gate
from muster.daemon.socket.server import SocketRefused, credentials_of
from muster.drivers.image.descriptors import receive_descriptors, refuse_descriptors
from muster.drivers.machine.program_process import Peer, Program, is_pidfd
from muster.records.access import Role

SOCKET_FILE = "locks.sock"
MAXIMUM_CLIENTS = 1024
MAXIMUM_OF_USER = 512  # who is no administrator
MAXIMUM_PROCESSES = 8  # of one holder
HELLO_S = 10.0
BACKLOG = 256


class Door:
    """Lets clients in."""

    def __init__(
        self, path: Path, host: Host, gate: Gate, extra: Extra, welcome: Callable[[], dict[str, object]],
        daemon: Callable[[], int],
    ) -> None:  # fmt: skip
        """`daemon`: the process of this node's daemon."""
        self.path = path
        self._host, self._gate, self._extra, self._welcome, self._daemon = host, gate, extra, welcome, daemon
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._sessions: set[LockSession] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Listen. Raises `SocketRefused`; what an earlier process of this node has left at that path is replaced."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            with reachable(self.path) as address:
                listener.bind(address)
            self.path.chmod(0o666)  # who may do what is judged by role
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise SocketRefused(f"socket {self.path}: {error.strerror or error}; see to the node's home") from error
        self._listener = listener
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Listen no more, and end all connections."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        for session in list(self._sessions):
            session.end()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone again, or there are no descriptors: the others are served
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._let_in(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _let_in(self, connection: socket.socket) -> None:
        """Find out who it is, hear its hello, and leave the rest to a session."""
        handles: list[int] = []
        try:
            if problem := await self._admit(connection, handles):
                with contextlib.suppress(OSError):
                    connection.send(encoder.encode(("refused", 0, problem)) + b"\n")
                connection.close()
        except (OSError, TimeoutError):
            connection.close()
        finally:
            for handle in handles:
                os.close(handle)

    async def _admit(self, connection: socket.socket, handles: list[int]) -> str:
        """Why it cannot come in; empty where a session has it. What is left in `handles` is closed."""
        peer = credentials_of(connection)
        noted = Peer(connection, int(peer["pid"]))
        try:
            if (known := self._gate.introduce(peer)) is not None:
                await known
            role, user = self._gate.role(peer), self._gate.names.user_name(int(peer["uid"]))
            if role is Role.NONE:
                return f"user {user} has no role in this cluster: see `muster config show` for the groups that have one"
            if problem := self._full(int(peer["uid"]), role):
                return problem
            data = await self._first_bytes(connection, handles)
            line, newline, rest = data.partition(b"\n")
            try:
                greeting = hello_decoder.decode(line).greeting if newline else None
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                greeting = None
            if greeting is None:
                return 'this is no hello: send ["hello", {"name": ..., "process": ...}] in one piece'
            if not all(is_pidfd(handle) for handle in handles):
                return "a descriptor that came with the hello is no pidfd"
            who = Newcomer(int(peer["uid"]), int(peer["pid"]), user, role, greeting)
            await self._begin(connection, who, noted, handles, rest)
        finally:
            noted.close()
        return ""

    def _full(self, uid: int, role: Role) -> str:
        if role >= Role.ADMINISTRATOR:
            return ""
        if len(self._sessions) >= MAXIMUM_CLIENTS:
            return f"{MAXIMUM_CLIENTS} clients are here already: end some of them"
        if sum(1 for session in self._sessions if session.uid == uid) >= MAXIMUM_OF_USER:
            return f"{MAXIMUM_OF_USER} clients of this user are here already: end some of them"
        return ""

    async def _first_bytes(self, connection: socket.socket, handles: list[int]) -> bytes:
        """What comes first, with its descriptors; nothing where the client has gone."""
        readable = asyncio.Event()
        self._loop.add_reader(connection, readable.set)
        try:
            await asyncio.wait_for(readable.wait(), HELLO_S)
            data, found = receive_descriptors(connection, MAXIMUM_HELLO_BYTES, MAXIMUM_PROCESSES)
            handles += found
            return data
        finally:
            self._loop.remove_reader(connection)

    async def _begin(
        self, connection: socket.socket, who: "Newcomer", noted: Peer, handles: list[int], rest: bytes
    ) -> None:
        with contextlib.suppress(OSError):  # an older kernel cannot
            refuse_descriptors(connection)
        taken = noted.program()
        program = Program([*taken.give_up(), *handles])
        handles.clear()
        session = LockSession(self._host, who.role, self._extra, self._gone)
        session.uid, session.user = who.uid, who.user
        process = who.pid or who.greeting.process
        holder = Holder(session, program, who.greeting.name, process, who.uid)
        holder.is_daemon = who.pid != 0 and who.pid == self._daemon()
        session.client = self._host.came(holder)
        self._sessions.add(session)
        session.say(("welcome", self._welcome()))
        try:
            await self._loop.connect_accepted_socket(lambda: session, connection)
        except BaseException:
            self._gone(session)
            raise
        if rest:
            session.data_received(rest)

    def _gone(self, session: LockSession) -> None:
        self._sessions.discard(session)
        self._host.went(session.client)


class Newcomer(msgspec.Struct, frozen=True):
    """Who has come."""

    uid: int
    pid: int  # 0 where this namespace has no number for it
    user: str
    role: Role
    greeting: Greeting
