"""The control socket: a real server, the real client, and clients that misbehave (SPEC 7.8, 8.1, 9.1)."""

import asyncio
import contextlib
import gc
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest

from muster.client import ControlClient, Refused, ReplyLost, Unreachable, control_client
from muster.client.errors import ClientError
from muster.daemon.levels.conversation import Conversation
from muster.daemon.socket import server as control
from muster.daemon.socket.server import ControlServer, Handle, Request, SocketRefused
from muster.drivers.image.descriptors import refuse_descriptors, send_descriptors
from muster.records.refusal import ControlRefused

DEADLINE_S = 20.0
IDLE_MS = 1000  # a busy machine may keep a client from its first word for a while


class Desk:
    """A control server in a thread of its own, as a daemon is in a process of its own."""

    def __init__(self, path: Path, handle: Handle | None = None, idle_ms: int = 60_000) -> None:
        self.path = path
        self.requests: list[Request] = []
        self.failures: list[dict[str, Any]] = []
        self.closed_streams = 0
        self._handle = handle or self._answer
        self._idle_ms = idle_ms
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.server: ControlServer | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.call(self._start)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.server is not None:
                self.call(self.server.close)
        finally:
            self._stop()

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a coroutine function in the server's loop."""
        return asyncio.run_coroutine_threadsafe(function(), self._loop).result(DEADLINE_S)

    async def _start(self) -> None:
        self.server = ControlServer(self.path, self._handle, idle_ms=self._idle_ms)
        await self.server.start()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()

    async def _answer(self, request: Request) -> object:
        self.requests.append(request)
        name, arguments = request.get("query") or request.get("operation"), request["arguments"]
        if name == "refuse":
            raise ControlRefused("there is no such service", "service web", "see `muster services`")
        if name == "fail":
            raise KeyError("a defect")
        if name == "unspeakable":
            return object()
        if name == "slow":
            await asyncio.sleep(arguments["seconds"])
        if name == "large":
            return "x" * arguments["bytes"]
        if name == "watch":
            return self._counting(arguments["count"])
        return {"name": name, "arguments": arguments, "peer": request["peer"]}

    async def _counting(self, count: int) -> AsyncIterator[object]:
        try:
            for number in range(count):
                yield {"number": number}
            if count > 10:
                await asyncio.Event().wait()  # a stream that goes on
        finally:
            self.closed_streams += 1


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node's home, its own only."""
    directory = tmp_path / "home"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def path(home: Path) -> Path:
    return home / "control.sock"


@pytest.fixture
def desk(path: Path) -> Iterator[Desk]:
    with Desk(path) as desk:
        yield desk


@contextlib.contextmanager
def raw(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(str(path))
        yield connection


def answers(connection: socket.socket) -> list[dict[str, Any]]:
    """Everything that comes until the server closes; fails if it does not."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            data += piece
    return [json.loads(line) for line in data.splitlines()]


def descriptors() -> int:
    """How many this process has open; what other tests have left behind is gone."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_a_query_is_answered_and_carries_who_asks(desk: Desk, path: Path) -> None:
    answer = ControlClient(path).query("status", name="web", deep=[1, {"two": None}])
    assert answer["name"] == "status"
    assert answer["arguments"] == {"name": "web", "deep": [1, {"two": None}]}
    groups = answer["peer"].pop("groups")
    assert answer["peer"] == {"pid": os.getpid(), "uid": os.geteuid(), "gid": os.getegid()}
    assert set(groups) == set(os.getgroups())


def test_a_client_cannot_say_that_it_is_somebody_else(desk: Desk, path: Path) -> None:
    with raw(path) as connection:
        connection.sendall(b'{"query": "status", "peer": {"uid": 0}}\n')
        (answer,) = answers(connection)
    assert answer["error"]["what"] == "unknown key `peer`"
    assert not desk.requests


def test_an_operation_has_an_identity_of_its_own(desk: Desk, path: Path) -> None:
    client = ControlClient(path)
    client.operate("register", service="web")
    client.operate("register", service="web")
    first, second = desk.requests
    assert first["operation"] == second["operation"] == "register"
    assert first["arguments"] == {"service": "web"}
    assert first["identity"] != second["identity"]


def test_an_error_says_what_where_and_what_next(desk: Desk, path: Path) -> None:
    with pytest.raises(ClientError) as refusal:
        ControlClient(path).query("refuse")
    error = refusal.value
    assert (error.what, error.where, error.next_step) == (
        "there is no such service",
        "service web",
        "see `muster services`",
    )
    assert str(error) == "service web: there is no such service; see `muster services`"
    assert not desk.failures


@pytest.mark.parametrize(("name", "failure"), [("fail", "KeyError"), ("unspeakable", "TypeError")])
def test_a_defect_in_a_handler_is_told_to_both_sides_and_the_next_request_is_answered(
    desk: Desk, path: Path, name: str, failure: str
) -> None:
    with pytest.raises(ClientError, match=rf"{name}: the daemon failed to answer: {failure}.*report this"):
        ControlClient(path).query(name)
    until(lambda: desk.failures)
    assert type(desk.failures[0]["exception"]).__name__ == failure
    assert ControlClient(path).query("status")["name"] == "status"


def test_a_watch_streams_until_its_end(desk: Desk, path: Path) -> None:
    assert [item["number"] for item in ControlClient(path).watch(count=5)] == [0, 1, 2, 3, 4]
    until(lambda: desk.closed_streams == 1)


def test_a_watch_ends_when_its_client_goes(desk: Desk, path: Path) -> None:
    stream = ControlClient(path).watch(count=11)
    assert [next(stream)["number"] for _ in range(11)] == list(range(11))
    assert desk.closed_streams == 0
    stream.close()  # type: ignore[attr-defined]
    until(lambda: desk.closed_streams == 1)
    until(lambda: desk.server is not None and not desk.server._sessions)


def test_a_handler_may_itself_be_an_asynchronous_generator(path: Path) -> None:
    async def handle(request: Request) -> AsyncIterator[object]:
        yield request["query"]
        yield 2

    with Desk(path, handle):
        assert list(ControlClient(path).watch("both")) == ["both", 2]


def talking(heard: list[list[bytes]], hear: Callable[[list[bytes]], None] | None = None) -> Handle:
    """A handler that answers by a conversation, which ends when its client has said `end`."""
    over = asyncio.Event()

    async def results() -> AsyncGenerator[list[Any]]:
        yield ["first", "second"]
        await over.wait()

    def take(lines: list[bytes]) -> None:
        heard.append(lines)
        if hear is not None:
            hear(lines)
        if b"end" in lines:
            over.set()

    return lambda request: Conversation(results(), take) if request.get("query") == "talk" else asyncio.sleep(0, "ok")


def test_a_conversation_hears_all_lines_of_one_turn_together_and_the_connection_goes_on(path: Path) -> None:
    heard: list[list[bytes]] = []
    with Desk(path, talking(heard)), raw(path) as connection, connection.makefile("rb") as reader:
        connection.sendall(b'{"query": "talk"}\nsent\nahead\n')
        assert [json.loads(reader.readline())["result"] for _ in range(2)] == ["first", "second"]
        until(lambda: heard == [[b"sent", b"ahead"]])
        connection.sendall(b"one\ntwo\nhal")
        until(lambda: heard[1:] == [[b"one", b"two"]])
        connection.sendall(b"f\nend\n")
        assert json.loads(reader.readline()) == {"ok": True, "result": None, "more": False}
        assert heard[2:] == [[b"half", b"end"]]
        connection.sendall(b'{"query": "other"}\n')
        assert json.loads(reader.readline()) == {"ok": True, "result": "ok"}


@pytest.mark.parametrize("said", [b"wrong\n", b"x" * (control.MAXIMUM_SPOKEN_BYTES + 1)], ids=["refused", "too long"])
def test_what_is_refused_within_a_conversation_ends_the_connection_with_an_error(path: Path, said: bytes) -> None:
    def hear(lines: list[bytes]) -> None:
        raise ControlRefused("not understood", "connection", f"not {lines[0]!r}")

    with Desk(path, talking([], hear)) as desk, raw(path) as connection:
        connection.sendall(b'{"query": "talk"}\n')
        connection.recv(4096)
        connection.sendall(said)
        (error,) = answers(connection)
        assert not error["ok"]
        until(lambda: desk.server is not None and not desk.server._sessions)
        assert not desk.failures


def test_requests_sent_ahead_are_answered_in_order(desk: Desk, path: Path) -> None:
    with raw(path) as connection:
        lines = [json.dumps({"query": "echo", "arguments": {"number": number}}) for number in range(100)]
        connection.sendall("".join(line + "\n" for line in lines).encode())
        connection.shutdown(socket.SHUT_WR)  # and the last answers still come
        received = answers(connection)
    assert [answer["result"]["arguments"]["number"] for answer in received] == list(range(100))


GARBAGE = [
    (b"hello\n", "not JSON"),
    (b"\n", "not JSON"),
    (b"\xff\xfe\x00\n", "not JSON"),
    (b"[" * 100_000 + b"\n", "JSON object"),
    (b"[]\n", "JSON object"),
    (b"{}\n", "either `query` or `operation`"),
    (b'{"query": "a", "operation": "b", "identity": "c"}\n', "either `query` or `operation`"),
    (b'{"query": 7}\n', "`query` must be a text"),
    (b'{"query": ""}\n', "`query` must be a text"),
    (b'{"query": "' + b"x" * 200 + b'"}\n', "`query` must be a text"),
    (b'{"operation": "register"}\n', "`identity` must be a text"),
    (b'{"query": "status", "arguments": []}\n', "`arguments` must be an object"),
    (b'{"query": "status", "identity": "x"}\n', "unknown key `identity`"),
    (b'{"query": "status"', "within a line"),
]


@pytest.mark.parametrize(("data", "complaint"), GARBAGE)
def test_garbage_gets_an_error_and_the_end_of_its_connection(
    desk: Desk, path: Path, data: bytes, complaint: str
) -> None:
    with raw(path) as connection:
        connection.sendall(data)
        if not data.endswith(b"\n"):
            connection.shutdown(socket.SHUT_WR)
        (answer,) = answers(connection)
    assert not answer["ok"]
    assert complaint in answer["error"]["what"]
    assert answer["error"]["where"]
    assert answer["error"]["next"]
    assert not desk.requests
    assert ControlClient(path).query("status")["name"] == "status"


@pytest.mark.parametrize("ended", [False, True])
def test_a_line_that_is_too_long_is_refused(
    desk: Desk, path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    monkeypatch.setattr(control, "MAXIMUM_REQUEST_BYTES", 200_000)
    with raw(path) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b'{"query": "' + b"x" * 300_000 + (b'"}\n' if ended else b""))
        (answer,) = answers(connection)
    assert "more than 200000 bytes" in answer["error"]["what"]
    with pytest.raises(ClientError, match="more than 200000 bytes"):
        ControlClient(path).operate("apply", text="x" * 3_000_000)


def test_a_large_request_and_a_large_answer_pass(desk: Desk, path: Path) -> None:
    text = "x" * (control.MAXIMUM_REQUEST_BYTES - 1000)
    assert ControlClient(path).query("echo", text=text)["arguments"] == {"text": text}


def test_a_client_that_never_ends_its_request_is_told_and_dropped(path: Path) -> None:
    with Desk(path, idle_ms=IDLE_MS), raw(path) as connection:
        connection.sendall(b'{"query": ')
        (answer,) = answers(connection)
    assert f"no complete request within {IDLE_MS} ms" in answer["error"]["what"]


def test_dripping_bytes_do_not_prolong_a_request(path: Path) -> None:
    with Desk(path, idle_ms=IDLE_MS), raw(path) as connection:
        connection.settimeout(0.01)
        deadline = time.monotonic() + DEADLINE_S
        received = b""
        while not received:
            assert time.monotonic() < deadline
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(b" ")
            with contextlib.suppress(TimeoutError):
                received = connection.recv(65_536)
    assert b"no complete request" in received


def test_an_idle_client_is_dropped_in_silence_and_a_busy_one_is_not(path: Path) -> None:
    with Desk(path, idle_ms=IDLE_MS) as desk, raw(path) as connection:
        assert ControlClient(path).query("slow", seconds=2 * IDLE_MS / 1000)["name"] == "slow"
        assert answers(connection) == []
        assert len(desk.requests) == 1


def test_a_client_that_has_its_answer_and_asks_nothing_more_is_dropped_in_time(path: Path) -> None:
    with Desk(path, idle_ms=IDLE_MS), raw(path) as connection:
        connection.sendall(b'{"query": "echo"}\n')
        (answer,) = answers(connection)
    assert answer["ok"]


def test_a_request_that_comes_while_another_is_answered_waits_for_that(path: Path) -> None:
    asked: list[str] = []
    may_answer = threading.Event()

    async def answer(request: Request) -> str:
        asked.append(request["query"])
        await asyncio.to_thread(may_answer.wait, DEADLINE_S)
        return str(request["query"])

    with Desk(path, answer) as desk, raw(path) as connection:
        connection.sendall(b'{"query": "first"}\n')
        until(lambda: asked)
        connection.sendall(b'{"query": "second"}\n')
        sessions = desk.server._sessions if desk.server is not None else set()
        until(lambda: asked[1:] or any(session.held_bytes for session in sessions))
        assert asked == ["first"]
        may_answer.set()
        connection.shutdown(socket.SHUT_WR)
        assert [each["result"] for each in answers(connection)] == ["first", "second"]


def test_a_client_that_does_not_take_its_answer_is_dropped(path: Path) -> None:
    with Desk(path, idle_ms=IDLE_MS) as desk, raw(path) as connection:
        connection.sendall(b'{"query": "large", "arguments": {"bytes": 8000000}}\n')
        until(lambda: desk.requests)
        until(lambda: desk.server is not None and not desk.server._sessions)
        assert ControlClient(path).query("status")["name"] == "status"


def test_many_clients_at_once_are_answered(desk: Desk, path: Path) -> None:
    def ask(number: int) -> int:
        answer = ControlClient(path, DEADLINE_S).query("echo", number=number)
        return int(answer["arguments"]["number"])

    with ThreadPoolExecutor(control.MAXIMUM_CONNECTIONS) as pool:
        assert list(pool.map(ask, range(400))) == list(range(400))


def test_more_clients_than_allowed_are_told_so_and_the_others_stay(
    desk: Desk, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAXIMUM_CONNECTIONS", 3)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(raw(path)) for _ in range(3)]
        until(lambda: desk.server is not None and len(desk.server._sessions) == 3)
        with pytest.raises(ClientError, match="3 clients are connected already"):
            ControlClient(path).query("status")
        held[0].sendall(b'{"query": "status"}\n')
        assert json.loads(held[0].recv(65_536))["ok"]
        held.pop().close()
        until(lambda: desk.server is not None and len(desk.server._sessions) == 2)
        assert ControlClient(path).query("status")["name"] == "status"


def test_a_client_that_has_its_answer_and_lingers_makes_room_for_another(
    desk: Desk, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAXIMUM_CONNECTIONS", 2)
    with raw(path) as first, raw(path) as second:
        for connection in (first, second):
            connection.sendall(b'{"query": "status"}\n')
            assert json.loads(connection.recv(65_536))["ok"]
        assert ControlClient(path).query("status")["name"] == "status"
        assert answers(first) == []
        second.sendall(b'{"query": "status"}\n')
        assert json.loads(second.recv(65_536))["ok"]


def test_the_socket_is_for_all_whom_its_directory_lets_through_and_a_new_directory_lets_nobody(tmp_path: Path) -> None:
    path = tmp_path / "made" / "control.sock"
    before = os.umask(0)
    try:
        with Desk(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o704])
def test_a_directory_that_others_may_list_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(SocketRefused, match=rf"{mode:04o}.*chmod 700 {directory}"), Desk(directory / "control.sock"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a directory away")
def test_a_directory_of_another_user_is_refused(home: Path, path: Path) -> None:
    os.chown(home, 65534, 65534)
    with pytest.raises(SocketRefused, match="belongs to user 65534"), Desk(path):
        pass


def test_a_missing_or_false_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SocketRefused, match="make it"), Desk(tmp_path / "a" / "b" / "control.sock"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(SocketRefused, match="not a directory"), Desk(tmp_path / "file" / "control.sock"):
        pass


LEAVE_SOCKET = """
import asyncio, os, sys
from muster.daemon.socket.server import ControlServer
async def main():
    async def handle(request): return None
    await ControlServer(sys.argv[1], handle).start()
    print("serves", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_the_socket_of_a_killed_daemon_is_replaced_and_that_of_a_live_one_is_not(path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", LEAVE_SOCKET, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "serves\n"
        with pytest.raises(SocketRefused, match=f"daemon {child.pid} serves it already"), Desk(path):
            pass
        assert ControlClient(path).query("still there?") is None
    finally:
        child.kill()
        child.communicate(timeout=DEADLINE_S)
    assert path.exists()  # left behind
    with pytest.raises(ClientError, match="no daemon serves it"):
        ControlClient(path).query("status")
    with Desk(path):
        assert ControlClient(path).query("status")["name"] == "status"


def test_a_socket_that_another_program_serves_is_not_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(SocketRefused, match="another process serves it"), Desk(path):
            pass
        assert path.exists()


def test_something_else_in_the_sockets_place_is_never_removed(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(SocketRefused, match="something else is there"), Desk(path):
        pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("relative", [False, True])
def test_a_path_longer_than_a_socket_address_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    home = tmp_path / ("d" * 120) / ("e" * 120)
    home.mkdir(parents=True)
    home.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    path = (home / "control.sock").relative_to(tmp_path) if relative else home / "control.sock"
    before = descriptors()
    for _ in range(2):
        with Desk(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            assert ControlClient(path).query("status")["name"] == "status"
            with pytest.raises(SocketRefused, match="serves it already"), Desk(path):
                pass
        assert not path.exists()
    directory = os.open(home, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as dead:  # bound and never served: what a power cut leaves
        dead.bind(f"/proc/self/fd/{directory}/control.sock")
    os.close(directory)
    with Desk(path):
        assert ControlClient(path).query("status")["name"] == "status"
    assert descriptors() == before


def test_closing_ends_requests_under_way_and_leaves_nothing(path: Path) -> None:
    before = descriptors()
    with Desk(path) as desk, raw(path) as connection:
        connection.sendall(b'{"query": "slow", "arguments": {"seconds": 1000}}\n')
        until(lambda: desk.requests)
        assert desk.server is not None
        desk.call(desk.server.close)
        assert answers(connection) == []
    assert not path.exists()
    assert descriptors() == before


@contextlib.contextmanager
def impostor(path: Path, replies: list[bytes | None]) -> Iterator[list[bytes]]:
    """A server that takes one line a connection and gives these replies; `None` closes without one."""
    received: list[bytes] = []
    stop = threading.Event()

    def serve() -> None:
        for reply in replies:
            connection, _ = listener.accept()
            with connection:
                line = b""
                while not line.endswith(b"\n") and (piece := connection.recv(65_536)):
                    line += piece
                if stop.is_set():
                    return
                received.append(line)
                if reply is not None:
                    connection.sendall(reply)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(DEADLINE_S)
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield received
        finally:
            stop.set()
            with raw(path):  # wakes it
                pass
            thread.join(DEADLINE_S)


def test_an_operation_whose_reply_is_lost_is_sent_again_under_the_same_identity(path: Path) -> None:
    with impostor(path, [None, b'{"ok": tr', b'{"ok": true, "result": {"outcome": "done"}}\n']) as received:
        assert ControlClient(path, DEADLINE_S).operate("register", service="web")["outcome"] == "done"
    assert len(received) == 3
    assert len({json.loads(line)["identity"] for line in received}) == 1


def test_an_operation_whose_reply_stays_lost_says_that_it_may_have_been_carried_out(path: Path) -> None:
    with impostor(path, [None] * 1000) as received:
        with pytest.raises(ClientError, match="it may have been carried out") as refusal:
            ControlClient(path, 0.3).operate("register", service="web")
        until(lambda: received)
        assert json.loads(received[0])["identity"] in refusal.value.where


def test_a_refused_operation_is_not_repeated(path: Path) -> None:
    error = {"ok": False, "error": {"what": "no", "where": "here", "next": "stop"}}
    with impostor(path, [json.dumps(error).encode() + b"\n"] * 2) as received:
        with pytest.raises(ClientError, match="here: no; stop"):
            ControlClient(path).operate("register", service="web")
        assert len(received) == 1


def test_a_query_whose_answer_does_not_come_ends_in_time(desk: Desk, path: Path) -> None:
    with pytest.raises(ClientError, match=r"no answer within 0\.2 s"):
        ControlClient(path, 0.2).query("slow", seconds=1000)


@pytest.mark.parametrize("reply", [b"220 mail.example ESMTP\n", b'{"ok": "yes"}\n', b"[]\n", b'{"ok": false}\n'])
def test_what_is_no_daemon_is_named_as_such(path: Path, reply: bytes) -> None:
    with impostor(path, [reply]), pytest.raises(ClientError, match="no Muster daemon"):
        ControlClient(path).query("status")


def test_a_missing_socket_is_named_with_what_to_do(home: Path) -> None:
    missing = home / "missing.sock"
    with pytest.raises(ClientError, match=r"there is no such socket.*start the node") as refusal:
        ControlClient(missing).operate("register")
    assert str(missing) in refusal.value.where


def test_a_program_tells_by_the_kind_of_the_error_whether_anything_may_have_been_done(desk: Desk, path: Path) -> None:
    with pytest.raises(Refused) as refused:
        control_client(socket=path).operate("refuse")
    error = refused.value
    assert (error.what, error.where, error.next_step) == (
        "there is no such service", "service web", "see `muster services`",
    )  # fmt: skip
    with pytest.raises(ReplyLost, match="no answer within"):
        control_client(socket=path, timeout_s=0.2).query("slow", seconds=1000)
    with pytest.raises(ReplyLost, match="it may have been carried out"):
        control_client(socket=path, timeout_s=0.2).operate("slow", seconds=1000)
    with pytest.raises(Unreachable):
        control_client(socket=path.with_name("missing.sock")).operate("register")


def test_a_program_names_the_node_that_it_talks_to(tmp_path: Path) -> None:
    assert control_client().path == "/var/lib/muster/control.sock"
    assert control_client(directory=tmp_path, node="n1").path == str(tmp_path / "nodes" / "n1" / "control.sock")
    wrong: list[dict[str, Any]] = [{"node": "n1"}, {"socket": "a", "node": "n1"}, {"timeout_s": 0}]
    for arguments in (*wrong, {"timeout_s": float("inf")}):
        with pytest.raises(ValueError, match=r"give|a development cluster needs both"):
            control_client(**arguments)


def test_the_client_imports_neither_asyncio_nor_msgspec() -> None:
    program = "import sys, muster.client.control; sys.exit(bool({'asyncio', 'msgspec', 'ssl'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == 0


def test_p10_6_a_client_that_sends_descriptors_along_holds_nobody_up(desk: Desk, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as tried:
        try:
            refuse_descriptors(tried)
        except OSError:
            pytest.skip("not applicable: this kernel (before Linux 6.16) can refuse no descriptors")
    with raw(path) as hostile, pytest.raises(PermissionError):
        send_descriptors(hostile, b"{}", (0,))
    assert ControlClient(path).query("status")["name"] == "status"
