"""Who gets a place at the control socket, what numbers may be, and that a connection ends alone (P10.5-P10.7)."""

import asyncio
import itertools
import json
import os
import socket
import ssl
import struct
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from interconnect_trial import until
from muster.daemon.loop import CONNECTION
from muster.daemon.metrics.endpoint import Endpoint
from muster.daemon.run import _broken
from muster.daemon.socket.access import LONGEST_ARGUMENTS_BYTES, Gate
from muster.daemon.socket.certificate_queries import describe_node
from muster.daemon.socket.operations import read_operation
from muster.daemon.socket.places import Client, allowance, make_room
from muster.daemon.socket.server import MAXIMUM_CONNECTIONS, ControlServer, _many_groups, decode_request
from muster.daemon.socket.shared_answers import SharedAnswers
from muster.daemon.trust.enrolment import MAXIMUM_VISITS_FROM_ONE_ADDRESS, Enrolments
from muster.drivers.interconnect.channel import VISITOR_GREETING, Channel, Phase
from muster.records import messages
from muster.records.access import Groups, Role
from muster.records.database import Database
from muster.records.names import shown
from muster.records.nodes import Cluster, Enrolment, NodeConfig
from muster.records.numbers import HIGHEST_NUMBER
from muster.records.operations import OPERATIONS
from muster.records.refusal import ControlRefused

NOBODY, ROOT, MAXIMUM = 65534, 0, 64
TOO_LARGE = (2**62 + 1, 2**63, 2**64, 2**70, 10**5000, -(2**63))


# ---- P10.5 -----------------------------------------------------------------------------------------------------------


def clients(role: Role, count: int, uid: int = NOBODY) -> dict[str, Client]:
    return {f"{uid}-{number}": Client(uid, role, float(number)) for number in range(count)}


def test_p10_5_the_lower_the_role_the_fewer_places_and_administrators_always_have_one() -> None:
    for role in (Role.NONE, Role.OBSERVER, Role.OPERATOR):
        others: dict[str, Client] = {}
        while True:
            newcomer = Client(1000 + len(others), role, 0.0)
            choice = make_room(newcomer, others, {}, set(others), MAXIMUM)
            if choice[0]:
                break
            assert choice[1] is None
            others[f"s{len(others)}"] = newcomer
        assert len(others) == allowance(role).places < MAXIMUM
        assert make_room(Client(ROOT, Role.ADMINISTRATOR, 0.0), others, {}, set(), MAXIMUM) == ("", None)


def test_p10_5_one_user_cannot_take_the_places_of_others_of_its_role() -> None:
    others = clients(Role.OBSERVER, allowance(Role.OBSERVER).of_a_user)
    assert "of this user" in make_room(Client(NOBODY, Role.OBSERVER, 99.0), others, {}, set(others), MAXIMUM)[0]
    assert make_room(Client(1, Role.OBSERVER, 99.0), others, {}, set(others), MAXIMUM) == ("", None)


def test_p10_5_room_is_made_by_who_lingers_then_by_who_is_silent_and_never_by_who_works() -> None:
    others = clients(Role.OPERATOR, 40, 5) | clients(Role.OBSERVER, 24, 6)
    admin = Client(ROOT, Role.ADMINISTRATOR, 99.0)
    assert make_room(admin, others, {"5-3": 7.0, "6-1": 8.0}, set(others), MAXIMUM) == ("", "5-3")
    assert make_room(admin, others, {}, {"5-2", "6-4", "6-3"}, MAXIMUM) == ("", "6-3"), "a lower role first"
    assert make_room(admin, others, {}, {"5-2"}, MAXIMUM) == ("", "5-2")
    assert make_room(admin, others, {}, set(), MAXIMUM) == ("64 clients are connected already", None)
    mine = clients(Role.ADMINISTRATOR, MAXIMUM, ROOT)
    ranks = {f"root-{n}": Client(ROOT, Role.ADMINISTRATOR, float(n)) for n in range(32)}
    ranks |= {f"7-{n}": Client(7, Role.OBSERVER, float(n)) for n in range(32)}
    observer = Client(8, Role.OBSERVER, 99.0)
    lingering = {"root-3": 1.0, "7-5": 2.0}
    assert make_room(observer, ranks, lingering, set(), MAXIMUM) == ("", "7-5"), "nobody above makes room for it"
    assert make_room(observer, ranks, {"root-3": 1.0}, set(), MAXIMUM)[1] is None
    assert make_room(admin, mine, {}, set(mine), MAXIMUM)[1] is None, "a user's own silent ones stay: they may be slow"


class Served:
    """A control server for a user of some role; what its handler was asked and what its loop was told."""

    def __init__(self, path: Path, role: Role) -> None:
        self.path, self.asked, self.told = path, [], []  # type: ignore[var-annotated]
        self.gate = Gate("n0", Groups, lambda *_: None)
        self.gate.admit = self._admit  # type: ignore[assignment,method-assign]
        self._role = role
        self.server = ControlServer(path, self._handle, role=lambda _peer: role, permit=self.gate.permit)

    def _admit(self, _request: dict[str, Any]) -> None:
        if self._role is Role.NONE:
            raise ControlRefused("this needs a role", "control socket", "join a group")

    async def _handle(self, request: dict[str, Any]) -> str:
        self.asked.append(request)
        return "done"

    async def __aenter__(self) -> typing.Self:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.told.append(context))
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()

    async def ask(self, data: bytes) -> dict[str, Any]:
        """The answer to these bytes."""
        reader, writer = await asyncio.open_unix_connection(str(self.path), limit=1 << 20)
        writer.write(data)
        async with asyncio.timeout(20):
            answer: dict[str, Any] = json.loads(await reader.readline())
        writer.close()
        return answer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return home / "control.sock"


def test_p10_5_a_user_without_a_role_is_told_so_and_sends_next_to_nothing(path: Path) -> None:
    async def trial() -> None:
        async with Served(path, Role.NONE) as served:
            refused = await served.ask(b'{"query": "status", "arguments": {"a": [[]]}}\n')
            assert refused["error"]["what"] == "this needs a role"
            longest = allowance(Role.NONE).line_bytes
            refused = await served.ask(b"x" * (longest + 1))
            assert f"more than {longest} bytes" in refused["error"]["what"]
            assert served.asked == [] and served.told == []

    asyncio.run(trial())


def test_p10_9_a_client_is_heard_once_it_is_known_who_that_is_with_the_role_of_then(path: Path) -> None:
    roles = [Role.NONE]

    async def trial() -> None:
        known, waiting = asyncio.Event(), asyncio.Event()

        async def learn() -> None:
            waiting.set()
            await known.wait()
            roles[0] = Role.OBSERVER

        async with Served(path, Role.OBSERVER) as served:
            served.server.role = lambda _peer: roles[0]
            served.server.introduce = lambda _peer: learn()
            long = b'{"query": "plan", "arguments": {"a": "' + b"x" * allowance(Role.NONE).held_bytes + b'"}}\n'
            answer = asyncio.create_task(served.ask(long))
            await waiting.wait()
            for _ in range(5):
                await asyncio.sleep(0.01)
            assert served.asked == []
            known.set()
            assert (await answer)["result"] == "done"
            assert served.told == []

    asyncio.run(trial())


def test_p10_9_who_leaves_before_it_is_known_who_that_is_leaves_nothing_behind(path: Path) -> None:
    async def trial() -> None:
        async with Served(path, Role.OBSERVER) as served:
            waiting = asyncio.Event()

            async def learn() -> None:
                waiting.set()
                await asyncio.sleep(0.05)

            served.server.introduce = lambda _peer: learn()
            _, writer = await asyncio.open_unix_connection(str(path))
            await waiting.wait()
            writer.close()
            served.server.introduce = lambda _peer: None
            await until(lambda: not served.server._sessions)
            assert (await served.ask(b'{"query": "status"}\n'))["result"] == "done"
            assert served.told == []

    asyncio.run(trial())


def test_p10_9_a_process_in_more_groups_than_fit_is_judged_by_the_kernels_word() -> None:
    one, other = socket.socketpair()
    with one, other:
        found = [number for (number,) in struct.iter_unpack("I", _many_groups(one))]
        assert found == list(os.getgroups())


def test_p10_5_who_is_refused_a_request_may_make_the_next_one(path: Path) -> None:
    async def trial() -> None:
        async with Served(path, Role.OBSERVER):
            reader, writer = await asyncio.open_unix_connection(str(path))
            long = b'{"query": "status", "arguments": {"a": "' + b"x" * LONGEST_ARGUMENTS_BYTES + b'"}}\n'
            writer.write(long + b'{"query": "status"}\n')
            async with asyncio.timeout(20):
                assert "at most" in json.loads(await reader.readline())["error"]["what"]
                assert json.loads(await reader.readline())["result"] == "done"
            writer.close()

    asyncio.run(trial())


def test_p10_5_long_requests_are_decoded_one_in_a_turn(path: Path) -> None:
    turns: list[int] = []

    async def trial() -> None:
        loop, turn = asyncio.get_running_loop(), [0]

        def count() -> None:
            turn[0] += 1
            loop.call_soon(count)

        async with Served(path, Role.ADMINISTRATOR) as served:
            served.server.permit = lambda *_: turns.append(turn[0])
            count()
            long = b'{"query": "plan", "arguments": {"a": "' + b"x" * 100_000 + b'"}}\n'
            await asyncio.gather(*(served.ask(long) for _ in range(8)))

    asyncio.run(trial())
    assert len(turns) == len(set(turns)) == 8


def test_p10_5_what_a_request_holds_is_bounded_before_it_is_decoded() -> None:
    with pytest.raises(ControlRefused, match="values"):
        decode_request(b'{"query":"plan","arguments":{"a":[' + b"[]," * 300_000 + b"0]}}")
    for deep in (b"[" * 50_000, b'{"a":' * 50_000):
        with pytest.raises(ControlRefused, match="not JSON"):
            decode_request(b'{"query": "plan", "arguments": {"a": ' + deep + b"}}")


class Holder:
    """In the place of a connection: whose it is, and how many bytes of it wait."""

    def __init__(self, uid: int, held_bytes: int, role: Role = Role.OBSERVER) -> None:
        self.client, self.held_bytes = Client(uid, role, 0.0), held_bytes


def test_p10_5_what_waits_of_all_requests_of_one_user_is_bounded(tmp_path: Path) -> None:
    limit = allowance(Role.OBSERVER).held_bytes
    server = ControlServer(tmp_path / "socket", lambda _request: None)  # type: ignore[arg-type,return-value]
    first, second, other = Holder(5, limit // 2), Holder(5, limit // 2), Holder(6, limit)
    server._sessions = typing.cast("Any", {first, second, other})
    over = [server.over_budget(typing.cast("Any", each)) for each in (first, second, other)]
    assert over == ["", "", ""]
    second.held_bytes += 1
    told = f"more than {limit} bytes of this user's requests wait already"
    over = [server.over_budget(typing.cast("Any", each)) for each in (first, second, other)]
    assert over == [told, told, ""]


class Arrived:
    """In the place of a connection that is served, or wants to be."""

    is_silent = False

    def __init__(self, process: int, idle_since_s: float | None = None) -> None:
        self.client, self.process, self.idle_since_s = Client(ROOT, Role.ADMINISTRATOR, 0.0), process, idle_since_s
        self.dropped = False

    def drop(self) -> None:
        """It makes room."""
        self.dropped = True


def test_p10_5_where_all_places_are_taken_one_that_lingers_leaves_and_the_nodes_own_get_in_all_the_same(
    tmp_path: Path,
) -> None:
    server = ControlServer(tmp_path / "socket", _broken_down, is_part_of_node=lambda process: process == 1)
    busy = [Arrived(10 + number) for number in range(MAXIMUM_CONNECTIONS - 1)]
    lingers, late, own, other = Arrived(2, 5.0), Arrived(3), Arrived(1), Arrived(4)
    served = typing.cast("set[Arrived]", server._sessions)

    def admit(session: Arrived) -> str:
        return server.admit(typing.cast("Any", session))

    assert [admit(each) for each in (*busy, lingers, late)] == [""] * (MAXIMUM_CONNECTIONS + 1)
    assert lingers.dropped and not any(each.dropped for each in busy)
    assert served == {*busy, late}
    assert admit(other) == f"{MAXIMUM_CONNECTIONS} clients are connected already"
    assert other not in served
    assert admit(own) == "" and own in served


# ---- P10.6 -----------------------------------------------------------------------------------------------------------


def _broken_down(*_: object) -> Any:
    raise KeyError("a defect")


class Guard:
    """Notes whether it was asked to panic."""

    def __init__(self) -> None:
        self.causes: list[str] = []

    def panic(self, cause: str) -> None:
        """The node is to end."""
        self.causes.append(cause)


class Lines:
    """A log that nobody reads."""

    def tell(self, *_: str) -> None:
        """Nothing."""


def test_p10_6_only_the_nodes_own_failures_end_it() -> None:
    guard: Any = Guard()
    for context in ({CONNECTION: True}, {"transport": 1, "protocol": 2}):
        _broken(guard, typing.cast("Any", Lines()), {"message": "m", "exception": KeyError("x"), **context})
    assert guard.causes == []
    _broken(guard, typing.cast("Any", Lines()), {"message": "m", "exception": AssertionError("x")})
    assert len(guard.causes) == 1


def test_p10_6_a_defect_that_a_request_shows_ends_its_connection_alone(path: Path) -> None:
    async def trial() -> None:
        async with Served(path, Role.OBSERVER) as served:
            served.server.permit = _broken_down
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(b'{"query": "status"}\n')
            async with asyncio.timeout(20):
                assert await reader.read() == b""
            writer.close()
            assert [CONNECTION in context for context in served.told] == [True]
            served.server.permit = lambda *_: None
            assert (await served.ask(b'{"query": "status"}\n'))["result"] == "done"

    asyncio.run(trial())


def test_p10_6_a_visitor_ends_its_visit_alone_and_one_address_cannot_take_all_places() -> None:
    notes: list[str] = []

    async def trial() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: notes.append(f"handler: {context}"))
        enrolments = Enrolments(None, None, None, lambda _, text: notes.append(text))  # type: ignore[arg-type]

        class Taken(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                enrolments.visit(typing.cast("Any", transport), VISITOR_GREETING[:1], typing.cast("Any", object()))

        server = await loop.create_server(Taken, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAXIMUM_VISITS_FROM_ONE_ADDRESS)]
        late = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(20):
            assert await late[0].read() == b"", "one more from there is sent away"
            for _, writer in held:  # the settings are no TLS context: as bad as anything that can happen
                writer.write(VISITOR_GREETING[1:])
            for reader, _ in held:
                assert await reader.read() == b"go\n"
        assert not enrolments._visits
        for _, writer in (*held, late):
            writer.close()
        server.close()

    asyncio.run(trial())
    assert not [note for note in notes if note.startswith("handler")]
    assert any("its visit has failed" in note for note in notes)


def test_p10_6_a_page_that_cannot_be_made_ends_its_connection_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    async def trial() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        endpoint = Endpoint(f"127.0.0.1:{port}", _broken_down)
        await endpoint.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()
        await endpoint.close()

    asyncio.run(trial())
    assert [CONNECTION in context for context in told] == [True]


def test_p10_6_a_frame_that_is_too_much_for_the_node_ends_its_channel_alone() -> None:
    ended: list[str] = []

    class Owner:
        loop = asyncio.new_event_loop()
        handshake_ms = 1000

        def channel_ended(self, _channel: Channel, _before: Phase, cause: Any) -> None:
            ended.append(cause.kind)

    channel = Channel(typing.cast("Any", Owner()), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), None, "")
    channel.phase = Phase.OPEN
    channel._incoming = typing.cast("Any", None)  # whatever is defective
    channel.data_received(b"\x16x")
    assert ended == ["defect"]
    Owner.loop.close()


# ---- P10.7 -----------------------------------------------------------------------------------------------------------


def numbers_of(kind: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each whole number in a record: names of fields, and 0 for the first of a tuple."""
    if isinstance(kind, msgspec.inspect.IntType):
        return [path]
    if isinstance(kind, msgspec.inspect.StructType):
        return [found for field in kind.fields for found in numbers_of(field.type, (*path, field.name))]
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return numbers_of(kind.item_type, (*path, 0))
    return []


def minimal(kind: Any) -> Any:
    """Arguments with the least that a type takes, so that only one number is wrong."""
    if isinstance(kind, msgspec.inspect.StructType):
        return {field.name: minimal(field.type) for field in kind.fields if field.required} | (
            {"name": "x"} if "name" in {field.name for field in kind.fields} else {}
        )
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return [minimal(kind.item_type)] if isinstance(kind.item_type, msgspec.inspect.StructType) else []
    if isinstance(kind, msgspec.inspect.BoolType):
        return False
    return 1 if isinstance(kind, msgspec.inspect.IntType) else "x"


def test_p10_7_every_number_of_every_operation_is_bounded_where_it_comes_in() -> None:
    tried = 0
    for kind in (each for each in OPERATIONS if each.is_read and each.role is not None):
        name, described = kind.name, msgspec.inspect.type_info(kind.struct)
        for way in numbers_of(described):
            for value in (*TOO_LARGE, True, 0.5, float("nan")):
                arguments = minimal(described)
                place = arguments
                for step in way[:-1]:
                    place = place.setdefault(step, [{}]) if isinstance(place, dict) else place[step]
                place[way[-1]] = value
                with pytest.raises(ControlRefused):
                    read_operation(name, arguments)
                tried += 1
    assert tried > 200


def test_p10_7_every_number_of_every_message_is_bounded_where_it_comes_in() -> None:
    own = [each for each in vars(messages).values() if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    found = [
        (kind.__name__, field.name)
        for kind in own
        if kind.__module__ == messages.__name__
        for field in msgspec.structs.fields(kind)
        if isinstance(bare := msgspec.inspect.type_info(field.type), msgspec.inspect.IntType)
        and (bare.le is None or bare.le > HIGHEST_NUMBER or bare.ge is None)
    ]
    assert found == []
    packed = msgspec.msgpack.encode([2, 2**63, [1, 0], 0])
    with pytest.raises(messages.MalformedMessage, match="<="):
        messages.decode_message(packed)


def test_p10_7_a_number_that_nothing_can_hold_refuses_the_whole_request() -> None:
    for value in (2**64, 2**70, -(2**63) - 1, "1" * 5000):
        for text in ("%s", "[[{}, %s]]"):
            with pytest.raises(ControlRefused):
                decode_request(b'{"query": "status", "arguments": {"a": %s}}' % (text % value).encode())


def test_p10_7_what_an_older_release_has_recorded_is_shown_all_the_same() -> None:
    config = NodeConfig(1, "n1", ("h:1",), "", enrolment=Enrolment("ab", 2**63))
    assert describe_node(Database(Cluster("c", "", "", "fast")), config)["token_ends"].startswith("41")
    assert len(shown(10**5000)) < 100


# ---- P8.11 -----------------------------------------------------------------------------------------------------------


def test_p8_11_an_answer_about_everything_is_made_once_for_all_who_wait_and_never_before_they_ask() -> None:
    made: list[int] = []

    async def trial() -> None:
        def answer(_name: str) -> dict[str, Any]:
            made.append(len(made))
            return {"changes": len(made) // 2}

        shared = SharedAnswers(answer)
        first = await asyncio.gather(*(shared.get("status") for _ in range(63)))
        assert len(made) <= 2, "the first of them, and one for those that asked while it was made"
        assert {json.loads(bytes(memoryview(each.encoded)))["changes"] for each in first[1:]} <= {0, 1}
        before = len(made)
        later = await shared.get("status")
        assert len(made) == before + 1, "one that was made before somebody asked would not show what they did"
        assert later.began_s > max(each.began_s for each in first)

    asyncio.run(trial())


def test_p8_11_looking_takes_a_bounded_share_of_the_loop() -> None:
    spans: list[tuple[float, float]] = []

    async def trial() -> None:
        loop = asyncio.get_running_loop()

        def answer(_name: str) -> dict[str, Any]:
            began_s = loop.time()
            while loop.time() - began_s < 0.01:
                pass
            spans.append((began_s, loop.time()))
            return {}

        shared = SharedAnswers(answer)
        for _ in range(6):
            await shared.get("status")

    asyncio.run(trial())
    for (began_s, ended_s), (next_s, _) in itertools.pairwise(spans):
        assert ended_s - began_s < (next_s - began_s) / 2


def test_p8_11_what_has_not_changed_has_the_same_number() -> None:
    async def trial() -> None:
        answers = iter(({"a": 1}, {"a": 1}, {"a": 2}))
        shared = SharedAnswers(lambda _name: next(answers))
        assert [(await shared.get("status")).number for _ in range(3)] == [1, 1, 2]

    asyncio.run(trial())
