"""The kernel's word about programs that have registered a level, and what a node makes of it (P3.16, P3.18)."""

import asyncio
import contextlib
import functools
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from core_cluster import joined_cluster
from muster.core.inputs import Input, LevelGone, LevelRegistered
from muster.daemon.levels.programs import Registrations
from muster.drivers.image.kernels_word import start_of
from muster.drivers.machine import program_process
from muster.drivers.machine.program_process import Peer, Program, found_again
from muster.records.levels import Required
from muster.records.refusal import ControlRefused

CONNECTS = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1); sys.stdin.read()"


class Child(NamedTuple):
    """A process that has connected; it lives on when its connection is shut down."""

    process: "subprocess.Popen[bytes]"
    connection: socket.socket

    @property
    def peer(self) -> Peer:
        """As the control socket makes it."""
        return Peer(self.connection, self.process.pid)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Child]]:
    """Starts a child; all are ended with the test."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(tmp_path / "socket"))
        server.listen()

        def start() -> Child:
            process = subprocess.Popen(
                [sys.executable, "-SIc", CONNECTS, str(tmp_path / "socket")], stdin=subprocess.PIPE
            )
            stack.callback(end, process)
            connection, _ = server.accept()
            stack.callback(connection.close)
            return Child(process, connection)

        yield start


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [program_process.SO_PEERPIDFD, 32_000])
def test_p3_16_a_process_has_ended_when_the_kernel_says_so_and_not_when_its_connection_has(
    start: Callable[[], Child], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The second time as under a kernel that has no such option."""
    monkeypatch.setattr(program_process, "SO_PEERPIDFD", number)
    child = start()
    peer = child.peer
    program = peer.program()
    child.connection.close()
    peer.close()
    assert program.is_known
    assert not program.has_ended()
    end(child.process)
    assert program.has_ended()
    program.close()
    assert program.has_ended()


def test_p3_16_the_process_that_a_registration_names_must_have_ended_too(start: Callable[[], Child]) -> None:
    child, named = start(), start()
    program = child.peer.program(named.process.pid)
    end(child.process)
    assert not program.has_ended()
    end(named.process)
    assert program.has_ended()
    program.close()


def test_p3_16_the_next_daemon_finds_a_process_again_by_number_and_start(start: Callable[[], Child]) -> None:
    child = start()
    noted = child.peer.program().noted
    assert noted == ((child.process.pid, start_of(child.process.pid)),)
    again = found_again(noted)
    assert again.is_known and not again.has_ended()
    assert again.is_of(child.peer.program())
    assert not again.is_of(start().peer.program())
    of_another = found_again(((child.process.pid, noted[0][1] + 1),))
    assert of_another.has_ended(), "the number is another process's"
    end(child.process)
    assert again.has_ended()
    assert found_again(noted).has_ended()
    unknown = found_again(())
    assert not unknown.is_known and not unknown.has_ended()


def test_p3_16_where_one_of_two_processes_cannot_be_seen_nothing_is_known(
    start: Callable[[], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, unseen = start(), start()
    noted = tuple((child.process.pid, start_of(child.process.pid)) for child in (seen, unseen))
    hidden = unseen.process.pid
    monkeypatch.setattr(program_process, "start_of", lambda pid: 0 if pid == hidden else start_of(pid))
    again = found_again(noted)
    end(seen.process)
    assert not again.is_known and not again.has_ended()
    assert not found_again(noted).has_ended()  # the other one may live


def test_p3_16_a_program_that_is_not_visible_by_number_is_known_by_its_connection(start: Callable[[], Child]) -> None:
    child = start()
    program = Peer(child.connection, 0).program(7)
    assert program.is_known and not program.has_ended()
    assert program.noted == ()
    end(child.process)
    assert program.has_ended()


class Programs:
    """The registrations of one node, and what came of them."""

    def __init__(self, path: Path) -> None:
        daemon = joined_cluster(1).lives[0].daemon
        assert daemon is not None
        self.node = daemon.core
        self.given: list[Input] = []
        self.notes: list[tuple[str, str]] = []
        self.panics: list[str] = []
        self.path = path
        self.core_hears = False  # what the registrations tell is also given to the node itself
        self.registrations = self.daemon()

    def daemon(self) -> Registrations:
        """The next daemon's."""
        self.registrations = Registrations(
            self.node, self.path, self.feed, lambda *note: self.notes.append(note), self.panics.append
        )
        return self.registrations

    def feed(self, happened: Input) -> None:
        """What the registrations tell the core."""
        self.given.append(happened)
        if self.core_hears:
            self.node.step(happened, 0)

    async def connect(self, child: Child, **arguments: Any) -> tuple[AsyncGenerator[list[Any]], str]:
        """The stream of a registration, or of one that returns; its token."""
        if "token" not in arguments:
            arguments = {"name": "cache", "level": 60, **arguments}
        stream = self.registrations.converse(arguments, child.peer).results
        (first,) = await anext(stream)
        return stream, first["token"]

    @property
    def gone(self) -> list[LevelGone]:
        """What the core was told of ends."""
        return [each for each in self.given if isinstance(each, LevelGone)]


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path / "subsystems.json")


def in_a_loop(work: Callable[[Programs, Callable[[], Child]], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in an event loop, and stops what it has left."""

    @functools.wraps(work)
    def test(programs: Programs, start: Callable[[], Child]) -> None:
        async def whole() -> None:
            try:
                await work(programs, start)
            finally:
                programs.registrations.stop()

        asyncio.run(whole())

    return test


async def until(what: str, probe: Callable[[], object]) -> None:
    """Look until the answer is true."""
    for _ in range(4000):
        if probe():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"waited 20 s until {what}")


@in_a_loop
async def test_p3_16_who_only_loses_its_connection_is_awaited_and_may_return(
    programs: Programs, start: Callable[[], Child]
) -> None:
    child = start()
    stream, token = await programs.connect(child, deadline_ms=50)
    await stream.aclose()
    stream, _ = await programs.connect(child, token=token)
    await asyncio.sleep(0.1)  # beyond its deadline
    assert programs.notes[-1][0] == "subsystem registered"
    await stream.aclose()
    await until("it is overdue", lambda: programs.notes[-1][0] == "subsystem hung")
    assert "its process lives" in programs.notes[-1][1]
    assert not programs.gone
    with pytest.raises(ControlRefused, match="which has lost its connection and may live"):
        await programs.connect(start())
    end(child.process)
    await until("its level goes", lambda: programs.gone)
    assert programs.gone == [LevelGone(60)]
    assert programs.notes[-1][0] == "subsystem lost"


@in_a_loop
async def test_p3_16_who_is_killed_is_gone_at_once(programs: Programs, start: Callable[[], Child]) -> None:
    child = start()
    stream, _ = await programs.connect(child, deadline_ms=3_600_000)
    end(child.process)
    await stream.aclose()
    assert programs.gone == [LevelGone(60)]


@in_a_loop
async def test_p3_16_where_its_loss_fails_the_node_who_is_overdue_does(
    programs: Programs, start: Callable[[], Child]
) -> None:
    stream, _ = await programs.connect(start(), deadline_ms=50, on_loss="fail")
    await stream.aclose()
    assert not programs.panics
    await until("the node fails", lambda: programs.panics)
    assert "subsystem cache of level 60 is lost: its connection has ended" in programs.panics[0]
    assert not programs.gone


@in_a_loop
async def test_p3_16_a_process_that_registers_anew_has_given_its_last_registration_up(
    programs: Programs, start: Callable[[], Child]
) -> None:
    child = start()
    stream, _ = await programs.connect(child)
    await stream.aclose()
    await programs.connect(child)
    assert programs.gone == [LevelGone(60, departed=True)]
    assert isinstance(programs.given[-1], LevelRegistered)


@in_a_loop
async def test_p3_16_after_a_restart_of_the_daemon_the_same(programs: Programs, start: Callable[[], Child]) -> None:
    lives, dies, unseen = start(), start(), start()
    await programs.connect(lives)
    await programs.connect(dies, level=61)
    hidden = Peer(unseen.connection, 0)
    await anext(programs.registrations.converse({"name": "far", "level": 62}, hidden).results)
    programs.registrations.stop()
    end(dies.process)
    end(unseen.process)  # nobody can tell
    programs.given.clear()
    programs.daemon().restore()
    assert programs.gone == [LevelGone(61)]
    await until("they are overdue", lambda: [what for what, _ in programs.notes].count("subsystem hung") == 2)
    texts = " ".join(text for what, text in programs.notes if what == "subsystem hung")
    assert "its process lives" in texts and "the kernel cannot say whether it lives" in texts
    assert programs.gone == [LevelGone(61)]
    end(lives.process)
    await until("its level goes", lambda: programs.gone == [LevelGone(61), LevelGone(60)])


def test_a_program_without_handles_says_nothing() -> None:
    assert not Program([]).has_ended()


# ---- P3.18: the loss that its node does not outlive ------------------------------------------------------------------


@in_a_loop
async def test_p3_18_deregister_is_refused_where_a_higher_level_is_registered_and_taken_elsewhere(
    programs: Programs, start: Callable[[], Child]
) -> None:
    programs.core_hears = True
    await programs.connect(start(), level=50, on_loss="deregister")
    await programs.connect(start(), level=60, on_loss="deregister")
    with pytest.raises(
        ControlRefused, match=r"cannot be deregister: cache \(level 50\) is registered above"
    ) as refused:
        await programs.connect(start(), level=20, on_loss="deregister")
    assert refused.value.next_step == "register with on_loss fail, or without on_loss"
    await programs.connect(start(), level=20)
    await programs.connect(start(), level=30, on_loss="fail")


@in_a_loop
async def test_p3_18_deregister_is_refused_for_a_required_level(programs: Programs, start: Callable[[], Child]) -> None:
    database = programs.node.database
    database.cluster = replace(database.cluster, required_levels=(Required(60, "cache"),))
    with pytest.raises(ControlRefused, match=r"nodes join only with level 60 \(required_levels\)"):
        await programs.connect(start(), on_loss="deregister")
    await programs.connect(start())


@in_a_loop
async def test_p3_18_after_a_restart_of_the_daemon_an_end_is_judged_by_all_that_were_registered(
    programs: Programs, start: Callable[[], Child]
) -> None:
    lower, higher = start(), start()
    await programs.connect(lower, level=20)
    await programs.connect(higher, level=60)
    programs.registrations.stop()
    end(lower.process)
    programs.given.clear()
    programs.daemon().restore()
    assert [type(each) for each in programs.given] == [LevelRegistered, LevelRegistered, LevelGone]
