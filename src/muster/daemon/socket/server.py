"""The control socket of one node: newline-delimited JSON over a Unix socket (SPEC 8.1, 7.8).

A request is one line, `{"query": NAME, "arguments": {...}}` or `{"operation": NAME, "identity": TEXT, "arguments":
{...}}`; the identity makes a retry harmless (SPEC 9.1). The answer is one line, `{"ok": true, "result": ...}` or
`{"ok": false, "error": {"what": ..., "where": ..., "next": ...}}`. An answer in several lines has `"more": true` in all
but its last line, which has `"more": false` and no result. Requests of one connection are answered in order. What is
no request gets an error and the end of its connection. Where the handler answers by a `Conversation`, the client goes
on speaking while it is answered in several lines: what it says gets no answers of its own.

Anybody whom the socket's directory lets through gets in, and what they may do is judged by their credentials, which the
kernel gives (`access.py`): the socket has mode 0666. Its directory is the owner's alone (0700) or may be passed through
by others (0711), and is never listed or written by them. A lock beside the
socket tells a running daemon from a dead one, so that two daemons that start at once cannot both clear the socket away.

Credentials first, then bytes (P10.5): the kernel's word about a client decides whether it gets a place (`places.py`),
how much it may send and how fast, and, by the names alone, whether its request is decoded at all. An exception that
comes of one connection ends that connection and no other (P10.6).

Bounded: a request line and what it holds, the number of connections, the bytes that wait for a user, the time to send a
request, the time to take an answer; of long requests, one is decoded in a turn of the loop.
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import inspect
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from muster.client.address import reachable
from muster.daemon.levels.conversation import Conversation
from muster.daemon.loop import CONNECTION
from muster.daemon.socket.places import Client, allowance, make_room
from muster.drivers.image.descriptors import refuse_descriptors
from muster.drivers.machine.program_process import Peer
from muster.records.access import Role
from muster.records.refusal import ControlRefused

MAXIMUM_REQUEST_BYTES = 8 * 1024 * 1024  # a service file is one argument
MAXIMUM_CONNECTIONS = 64
MAXIMUM_NAME_CHARACTERS = 128
MAXIMUM_VALUES = 500_000  # in one request: what they take in memory is many times what they take on the line
LONG_REQUEST_BYTES = 64 * 1024  # from here on it waits for a turn of the loop that it has for itself
MAXIMUM_SPOKEN_BYTES = 64 * 1024  # of a line within a conversation
IDLE_MS = 60_000  # without a complete request, or without taking an answer
_MS_PER_S = 1000
_PEER_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_OTHERS_PERMISSIONS = 0o066  # passing through is allowed
_PEER_GROUPS = 59  # SO_PEERGROUPS
_PEER_GROUPS_BYTES = 1024  # what Python asks for at most
_GROUP = struct.Struct("I")
_MOST_GROUPS = 65_536  # NGROUPS_MAX
_PIECE_BYTES = 256 * 1024


Request = dict[str, Any]
Handle = Callable[[Request], Awaitable[object] | AsyncIterator[object] | Conversation]


class Denied(ControlRefused):
    """The client may not ask this; its next request is heard."""


class SocketRefused(Exception):
    """The control socket cannot be made; the message says what, where and what to do."""


def decode_request(line: bytes | bytearray, permit: Callable[[Request, int], None] | None = None) -> Request:
    """A checked request: `query` or `operation` with `identity`, and `arguments`. Raises `ControlRefused`.

    `permit(request, bytes)` is asked before the arguments, of so many bytes, are decoded, and refuses by raising.
    """
    if sum(map(line.count, (b",", b"[", b"{"))) > MAXIMUM_VALUES:  # at least as many as it has values
        raise _malformed(f"a request of more than {MAXIMUM_VALUES} values")
    parts = _decoded(line, dict[str, msgspec.Raw], "a request is a JSON object")
    if ("query" in parts) == ("operation" in parts):
        raise _malformed("a request has either `query` or `operation`")
    texts = {"query"} if "query" in parts else {"operation", "identity"}
    request = {key: _name_in(parts, key) for key in sorted(texts)}
    unknown = sorted(parts.keys() - texts - {"arguments"})
    if unknown:
        raise _malformed(f"unknown key `{unknown[0][:MAXIMUM_NAME_CHARACTERS]}`")
    given = parts.get("arguments", msgspec.Raw(b"{}"))
    if permit is not None:
        permit(request, len(memoryview(given)))
    arguments = _decoded(given, dict[str, Any], "`arguments` must be an object")
    try:
        msgspec.msgpack.encode(arguments)  # no number here is one that no record can hold
    except (OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise _malformed(f"a value that nothing can hold ({error})") from error
    return {**request, "arguments": arguments}


def _decoded(text: Any, kind: Any, otherwise: str) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", msgspec.json.decode(text, type=kind))
    except msgspec.ValidationError as error:
        raise _malformed(f"{otherwise} ({error})") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(f"this is not JSON ({error})") from error


def _name_in(parts: Mapping[str, Any], key: str) -> str:
    raw, value = parts.get(key, b""), None
    if 0 < len(memoryview(raw)) <= 16 * MAXIMUM_NAME_CHARACTERS:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = msgspec.json.decode(raw)
    if not isinstance(value, str) or not 0 < len(value) <= MAXIMUM_NAME_CHARACTERS:
        raise _malformed(f"`{key}` must be a text of 1 to {MAXIMUM_NAME_CHARACTERS} characters")
    return value


def credentials_of(handle: socket.socket) -> dict[str, Any]:
    """Process, user, group and supplementary groups of who has connected, as the kernel has noted them."""
    packed = handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    found: dict[str, Any] = dict(zip(("pid", "uid", "gid"), _PEER_CREDENTIALS.unpack(packed), strict=True))
    try:
        groups = handle.getsockopt(socket.SOL_SOCKET, _PEER_GROUPS, _PEER_GROUPS_BYTES)
    except OSError:  # more groups than fit there
        groups = _many_groups(handle)
    found["groups"] = [number for (number,) in _GROUP.iter_unpack(groups)]
    return found


def _many_groups(handle: socket.socket) -> bytes:
    """As many as a process can have, by the C library: the system's directory is not asked here (P10.9)."""
    buffer, size = ctypes.create_string_buffer(_MOST_GROUPS * _GROUP.size), ctypes.c_uint32(_MOST_GROUPS * _GROUP.size)
    where = handle.fileno(), socket.SOL_SOCKET, _PEER_GROUPS
    failed = ctypes.CDLL(None).getsockopt(*where, buffer, ctypes.byref(size))
    return b"" if failed else buffer.raw[: size.value]


def _malformed(what: str) -> ControlRefused:
    return ControlRefused(what, "request", 'send one line: {"query": NAME, "arguments": {...}}')


def _error(error: ControlRefused) -> bytes:
    parts = {"what": error.what, "where": error.where, "next": error.next_step}
    return msgspec.json.encode({"ok": False, "error": parts})


class Session(asyncio.Protocol):
    """One client's connection: takes its requests one after the other."""

    def __init__(self, server: "ControlServer") -> None:
        self.gone = asyncio.Event()
        self.idle_since_s: float | None = None  # loop time; none while it has a request under way, or never had one
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._credentials: dict[str, Any] = {}
        self._peer: Peer | None = None
        self._inbox = bytearray()
        self._searched = 0  # bytes of the inbox known to hold no newline
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._reading = True
        self._eof = False
        self._streaming = False
        self._hear: Callable[[list[bytes]], None] | None = None  # within a conversation
        self.client = Client(-1, Role.NONE, 0.0)
        self._idle_ms = server.idle_ms
        self._waits_for_turn = False  # with a long request
        self._has_asked = False

    # --- Called by asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_PIECE_BYTES)
        try:
            connection = self._transport.get_extra_info("socket")
            self._credentials = credentials_of(connection)
            self._peer = Peer(connection, self.process)
            role = self._server.role(self._credentials)
        except Exception as error:  # noqa: BLE001 - nobody can say who that is
            self._failed("a client's credentials", error)
            return
        self.client = Client(int(self._credentials["uid"]), role, self._loop.time())
        self._idle_ms = min(self._idle_ms, allowance(role).idle_ms)
        if reason := self._server.admit(self):
            self._refuse(ControlRefused(reason, "control socket", "end some of them, or try again later"))
            return
        self._arm(self._late_request)
        if (known := self._server.introduce(self._credentials)) is not None:
            self._task = self._loop.create_task(self._introduced(known, self._transport))

    async def _introduced(self, known: Awaitable[None], transport: asyncio.Transport) -> None:
        """Go on once it is known who that is, or as one of whom no more is known (P10.9)."""
        transport.pause_reading()  # not before: asyncio begins to read after `connection_made`
        await known
        self._task = None
        role = self._server.role(self._credentials)
        self.client = self.client._replace(role=role)
        self._idle_ms = min(self._server.idle_ms, allowance(role).idle_ms)
        if not transport.is_closing():
            self._arm(self._late_request)
            transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        try:
            self._take(data, transport)
        except Exception as error:  # noqa: BLE001 - this connection's alone (P10.6)
            self._failed("what a client has sent", error)

    def _take(self, data: bytes, transport: asyncio.Transport) -> None:
        self._inbox += data
        if len(self._inbox) > LONG_REQUEST_BYTES and (reason := self._server.over_budget(self)):
            self._refuse(ControlRefused(reason, "request", "send smaller requests, or one after the other"))
        elif self._hear is not None:
            self._hear_lines(self._hear)
        elif self._is_idle():
            self._next_request()
        elif len(self._inbox) > MAXIMUM_REQUEST_BYTES and self._reading:
            self._reading = False  # it sends ahead of its answers: let it wait
            transport.pause_reading()

    def _is_idle(self) -> bool:
        return self._task is None and not self._waits_for_turn

    def eof_received(self) -> bool:
        """The client sends no more; it may still wait for an answer, but nobody watches a stream that way."""
        self._eof = True
        if self._waits_for_turn:
            return True
        if self._task is None:
            if self._inbox:
                text = "the client closed its end within a line"
                self._refuse(ControlRefused(text, "request", "end each request with a newline"))
            return False
        if self._streaming:
            self._task.cancel()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's interface
        """The socket is closed."""
        self._disarm()
        self._writable.set()
        if self._task is not None:
            self._task.cancel()
        if self._peer is not None:
            self._peer.close()
        self.gone.set()
        self._server.discard(self)

    def pause_writing(self) -> None:
        """The client takes no more for now."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The client takes more again."""
        self._writable.set()

    # --- Inside ---

    @property
    def process(self) -> int:
        """The client's, as the kernel has noted it."""
        return int(self._credentials["pid"])

    @property
    def is_silent(self) -> bool:
        """Whether it has never made a request."""
        return not self._has_asked

    @property
    def held_bytes(self) -> int:
        """What it has sent and nobody has taken."""
        return len(self._inbox)

    def drop(self) -> None:
        """Close at once, without waiting."""
        if self._transport is not None:
            self._transport.abort()

    async def end(self) -> None:
        """Close at once, and wait until what was under way has stopped."""
        task = self._task
        if self._transport is not None:
            self._transport.abort()
            await self.gone.wait()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def _arm(self, action: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self._loop.call_later(self._idle_ms / _MS_PER_S, action)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late_request(self) -> None:
        if not self._inbox:
            self._close()
            return
        text = f"no complete request within {self._idle_ms} ms"
        self._refuse(ControlRefused(text, "request", "end each request with a newline"))

    def _next_request(self) -> None:
        """Begin the next request, if a whole line of it is here."""
        end = self._inbox.find(b"\n", self._searched)
        longest = min(MAXIMUM_REQUEST_BYTES, allowance(self.client.role).line_bytes)
        if (len(self._inbox) if end < 0 else end) > longest:
            text = f"a line of more than {longest} bytes"
            self._refuse(
                ControlRefused(text, "request", "send smaller requests, for instance fewer services at a time")
            )
            return
        if end < 0:
            self._searched = len(self._inbox)
            if self._eof:
                self._close()
            return
        self.idle_since_s = None
        self._has_asked = True
        self._disarm()
        if end > LONG_REQUEST_BYTES:
            self._waits_for_turn = True
            self._server.take_turn(lambda: self._begin(end))
        else:
            self._begin(end)

    def _begin(self, end: int) -> None:
        """Decode the request that is the first `end` bytes here, and have it answered."""
        self._waits_for_turn = False
        if self._transport is None or self._transport.is_closing():
            return
        line = self._inbox[:end]
        del self._inbox[: end + 1]
        self._searched = 0
        try:
            request = decode_request(line, self._permit)
        except Denied as error:
            self._work(self._write(_error(error)))
            return
        except ControlRefused as error:
            self._refuse(error)
            return
        except Exception as error:  # noqa: BLE001 - this connection's alone (P10.6)
            self._failed("a request", error)
            return
        request["peer"], request["process"] = self._credentials, self._peer
        self._work(self._answer(request))

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(self._answered)

    def _permit(self, request: Request, size: int) -> None:
        try:
            self._server.permit({**request, "peer": self._credentials}, size)
        except ControlRefused as error:
            raise Denied(error.what, error.where, error.next_step) from error

    def _failed(self, what: str, error: Exception) -> None:
        """A defect that one connection has shown: it ends, and the defect is told."""
        text = f"{what} from process {self._credentials.get('pid', '?')} was more than this node could take"
        self._loop.call_exception_handler({"message": text, "exception": error, CONNECTION: True})
        if self._transport is not None:
            self._transport.abort()

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._task = None
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if task.cancelled():
            self._close()
            return
        if not self._reading:
            self._reading = True
            transport.resume_reading()
        self._arm(self._late_request)
        self.idle_since_s = self._loop.time()
        self._next_request()

    async def _answer(self, request: Request) -> None:
        try:
            outcome = self._server.handle(request)
            result = await outcome if inspect.isawaitable(outcome) else outcome
            if isinstance(result, Conversation):
                await self._converse(result)
            elif isinstance(result, AsyncIterator):
                await self._stream(result)
            else:
                await self._write(msgspec.json.encode({"ok": True, "result": result}))
        except ControlRefused as error:
            await self._write(_error(error))
        except Exception as error:  # noqa: BLE001 - told to the loop's handler, where the daemon decides what it means
            name = request.get("query") or request.get("operation")
            text = f"the daemon failed to answer: {type(error).__name__}: {error}"
            await self._write(
                _error(ControlRefused(text, str(name), "see the daemon's log, and report this as a defect"))
            )
            context = {"message": f"control request {name!r} failed", "exception": error, CONNECTION: True}
            self._loop.call_exception_handler(context)

    def _hear_lines(self, hear: Callable[[list[bytes]], None]) -> None:
        """Pass on all whole lines that are here; one that is refused is the client's last."""
        end = self._inbox.rfind(b"\n")
        lines = bytes(self._inbox[: end + 1]).splitlines()
        del self._inbox[: end + 1]
        try:
            if len(self._inbox) > MAXIMUM_SPOKEN_BYTES:
                text = f"a line of more than {MAXIMUM_SPOKEN_BYTES} bytes within a conversation"
                raise ControlRefused(text, "request", "send shorter lines")
            if lines:
                hear(lines)
        except ControlRefused as error:
            self._refuse(error)

    async def _converse(self, conversation: Conversation) -> None:
        self._streaming = True
        try:
            if self._eof:
                return
            async for batch in conversation.results:
                lines = (msgspec.json.encode({"ok": True, "result": result, "more": True}) for result in batch)
                await self._write(b"\n".join(lines))
                if self._hear is None:
                    self._hear = conversation.hear
                    self._hear_lines(conversation.hear)  # what it has sent ahead
                    if not self._reading and self._transport is not None:
                        self._reading = True
                        self._transport.resume_reading()
            await self._write(msgspec.json.encode({"ok": True, "result": None, "more": False}))
        finally:
            self._streaming, self._hear = False, None
            await conversation.results.aclose()

    async def _stream(self, results: AsyncIterator[object]) -> None:
        self._streaming = True
        try:
            if self._eof:
                return
            async for result in results:
                await self._write(msgspec.json.encode({"ok": True, "result": result, "more": True}))
            await self._write(msgspec.json.encode({"ok": True, "result": None, "more": False}))
        finally:
            self._streaming = False
            close = getattr(results, "aclose", None)
            if close is not None:
                await close()

    async def _write(self, line: bytes) -> None:
        """Send a line, and wait until the client has taken all but a little of it."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(line + b"\n")
        if not self._writable.is_set():
            self._arm(self._transport.abort)
            await self._writable.wait()
            self._disarm()

    def _refuse(self, error: ControlRefused) -> None:
        if self._transport is not None:
            self._transport.write(_error(error) + b"\n")
        self._close()

    def _close(self) -> None:
        """Close once what is written is taken, and in any case before long."""
        self._inbox.clear()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            self._arm(self._transport.abort)


class ControlServer:
    """Serves one node's control socket with `handle`.

    `handle(request)` gets a checked request with `peer` (`pid`, `uid`, `gid` of the client) and `process` (a
    `Peer`) added. It returns an awaitable of the result (anything that msgspec makes JSON of), or of an
    asynchronous iterator of results, or such an iterator itself. It raises `ControlRefused` to answer with an
    error; any other exception goes to the event loop's exception handler, and the client is told so. A client that
    goes away cancels what it waits for.
    `is_part_of_node` says of a process that no number of other clients keeps it out. `role` says what a client may do;
    `permit(request, bytes)` refuses a request of that many bytes of arguments before they are decoded. `introduce` says
    what to wait for, a moment at most, before a client is judged by its role and heard.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        handle: Handle,
        *,
        idle_ms: int = IDLE_MS,
        is_part_of_node: Callable[[int], bool] = lambda _process: False,
        role: Callable[[dict[str, Any]], Role] = lambda _peer: Role.ADMINISTRATOR,
        permit: Callable[[Request, int], None] = lambda _request, _bytes: None,
        introduce: Callable[[dict[str, Any]], Awaitable[None] | None] = lambda _peer: None,
    ) -> None:
        self.path = Path(path)
        self.handle = handle
        self.idle_ms = idle_ms
        self.role, self.permit, self.introduce = role, permit, introduce
        self._is_part_of_node = is_part_of_node
        self._turns: deque[Callable[[], None]] = deque()  # of long requests, one in a turn of the loop
        self._sessions: set[Session] = set()
        self._leaving: set[Session] = set()  # too many; their sockets are about to close
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._lock: int | None = None

    async def start(self) -> None:
        """Make the socket and serve it. A dead daemon's socket is replaced. Raises `SocketRefused`."""
        prepare_directory(self.path.parent)
        self._lock = _take_lock(self.path)
        try:
            _clear_stale(self.path)
            listener = _bind(self.path)
            self._inode = self.path.stat().st_ino
            # Not create_unix_server: newer ones remove the socket by an address that may be gone (`reachable`).
            self._server = await asyncio.get_running_loop().create_server(lambda: Session(self), sock=listener)
        except BaseException:
            self._release()
            raise

    async def close(self) -> None:
        """End all connections and remove the socket, if it is still this one."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(FileNotFoundError):
                if self.path.stat().st_ino == self._inode:
                    self.path.unlink()
        for session in (*self._sessions, *self._leaving):
            await session.end()
        self._release()

    def admit(self, session: Session) -> str:
        """Why one more client cannot stay; empty where it can (P10.5)."""
        others = {other: other.client for other in self._sessions}
        idle = {other: other.idle_since_s for other in self._sessions if other.idle_since_s is not None}
        silent = {other for other in self._sessions if other.is_silent}
        choice = make_room(session.client, others, idle, silent, MAXIMUM_CONNECTIONS)
        reason, leaves = choice
        if leaves is not None:
            leaves.drop()
            self._sessions.discard(leaves)
            self._leaving.add(leaves)
        elif reason and not self._is_part_of_node(session.process):
            self._leaving.add(session)
            return reason
        self._sessions.add(session)
        return ""

    def over_budget(self, session: Session) -> str:
        """Why a user may not have any more bytes wait here; empty where it may."""
        user, limit = session.client.uid, allowance(session.client.role).held_bytes
        held = sum(other.held_bytes for other in self._sessions if other.client.uid == user)
        return f"more than {limit} bytes of this user's requests wait already" if held > limit else ""

    def take_turn(self, work: Callable[[], None]) -> None:
        """Do it in a turn of the loop in which no other such work is done."""
        self._turns.append(work)
        if len(self._turns) == 1:
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        try:
            self._turns[0]()
        finally:
            self._turns.popleft()
            if self._turns:
                asyncio.get_running_loop().call_soon(self._next_turn)

    def discard(self, session: Session) -> None:
        """The session's socket is closed."""
        self._sessions.discard(session)
        self._leaving.discard(session)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def prepare_directory(directory: Path) -> None:
    """Make `directory` with mode 0700, or make sure that only the user lists and writes it. Raises `SocketRefused`."""
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        status = directory.stat()
    except OSError as error:
        raise SocketRefused(f"directory {directory}: {error.strerror}; make it, with mode 0700") from error
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode):
        raise SocketRefused(f"{directory}: it is not a directory; move it away, or choose another home for the node")
    if status.st_uid != os.geteuid():
        text = f"directory {directory}: it belongs to user {status.st_uid}, this is user {os.geteuid()}"
        raise SocketRefused(f"{text}; run as its owner, or choose another home for the node")
    if mode & _OTHERS_PERMISSIONS:
        text = f"directory {directory}: its permissions {mode:04o} let other users list or change it"
        raise SocketRefused(
            f"{text}; run `chmod 700 {directory}`, or 711 to let in the users with a role in the cluster"
        )


def _take_lock(path: Path) -> int:
    """A descriptor that holds the lock of the socket `path` until it is closed."""
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SocketRefused(f"lock {lock}: {error.strerror}; choose another home for the node") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise SocketRefused(
                f"lock {lock}: {error.strerror}; the node's home must be a local file system"
            ) from error
        text = f"control socket {path}: daemon {holder or 'of unknown pid'} serves it already"
        raise SocketRefused(f"{text}; this node runs: stop it first") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _clear_stale(path: Path) -> None:
    """Remove the socket that a dead daemon has left. Called with the lock held."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SocketRefused(f"control socket {path}: something else is there; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, reachable(path) as address:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # that one is alive, and very busy
                text = f"control socket {path}: it cannot be told whether a daemon serves it ({error})"
                raise SocketRefused(f"{text}; choose another home for the node") from error
    raise SocketRefused(f"control socket {path}: another process serves it; stop that, or choose another home")


def _bind(path: Path) -> socket.socket:
    """A socket bound to `path`, which everybody may connect to whom the directory lets through."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with reachable(path) as address:
            listener.bind(address)
        path.chmod(0o666)  # whatever the umask took away
        with contextlib.suppress(OSError):  # an older kernel cannot
            refuse_descriptors(listener)  # of strangers: to read past them may hold up the loop
    except OSError as error:
        listener.close()
        raise SocketRefused(f"control socket {path}: {error.strerror or error}; choose another home") from error
    return listener
