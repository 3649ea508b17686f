"""The daemon's side of registrations: who fetches, what is offered again, what ends one (SPEC 3.2, P3.8 to P3.18)."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from muster.core.effects import AskSubsystem, Notify
from muster.core.inputs import Acknowledged, Input, LevelGone, LevelRegistered, SubsystemAnswered
from muster.daemon.levels.programs import (
    MAXIMUM_REGISTRATIONS,
    MAXIMUM_UNFETCHED,
    KeptRegistration,
    Registration,
    Registrations,
)
from muster.records.database import Database
from muster.records.levels import Level, NodeState, TransitionKind
from muster.records.members import LeaveNode, Member
from muster.records.nodes import Cluster, NodeConfig
from muster.records.refusal import ControlRefused
from muster.records.timing import FAST


def registration() -> Registration:
    return Registration(KeptRegistration("token", Level(10, "locks"), False, 1))


def told(transition: int) -> dict[str, Any]:
    return {"transition": transition, "level": 10, "barrier": 1}


def test_p3_8_a_connection_that_was_superseded_fetches_nothing_any_more() -> None:
    async def scenario() -> None:
        program = registration()
        first = program.attach()
        waiting = asyncio.create_task(program.fetch(first))
        await asyncio.sleep(0)
        second = program.attach()
        assert await waiting == []
        program.offer(told(1))
        assert await program.fetch(first) == []
        assert await program.fetch(second) == [told(1)]

    asyncio.run(scenario())


def test_p3_8_a_program_that_returns_is_told_again_what_it_has_not_acknowledged() -> None:
    async def scenario() -> None:
        program = registration()
        stream = program.attach()
        program.offer(told(1))
        program.offer(told(2))
        assert await program.fetch(stream) == [told(1), told(2)]
        program.outstanding.pop((1, 1))
        assert await program.fetch(program.attach()) == [told(2)]

    asyncio.run(scenario())


def test_spec_7_8_what_nobody_fetches_is_bounded() -> None:
    program = registration()
    assert all(program.offer(told(number)) for number in range(MAXIMUM_UNFETCHED))
    assert not program.offer(told(MAXIMUM_UNFETCHED))


# ---- all of a node's registrations -----------------------------------------------------------------------------------


class FakeProgram:
    """A process whose end the test decides."""

    is_known = True

    def __init__(self) -> None:
        self.over = False
        self.noted = ()
        self._tell: Callable[[], None] | None = None

    def has_ended(self) -> bool:
        """As the kernel says."""
        return self.over

    def is_of(self, other: object) -> bool:
        """Itself only."""
        return other is self

    def watch(self, _loop: object, ended: Callable[[], None]) -> None:
        """Somebody wants to know of its end."""
        self._tell = ended

    def unwatch(self) -> None:
        """Nobody does any more."""
        self._tell = None

    def close(self) -> None:
        """The same."""
        self.unwatch()

    def end(self) -> None:
        """It ends now."""
        self.over = True
        if self._tell is not None:
            self._tell()


class Desk:
    """The registrations of n0, what the core was told, what was logged, and why the node had to fail."""

    def __init__(self, folder: Path, incarnation: int = 7) -> None:
        self.database = Database(Cluster("test", "0" * 32, "fast", ""), 10, nodes={0: NodeConfig(0, "n0", (), "")})
        self.database.members[0] = Member(0, NodeState.JOINED, incarnation)
        self.told: list[Input] = []
        self.notes: list[str] = []
        self.panics: list[str] = []
        self.heard = asyncio.Event()  # the node had to fail, or a program is hung
        self.awaited_since_s = asyncio.get_running_loop().time()  # at the earliest
        self.levels: dict[int, Level] = {}  # that the core has registered
        setup = SimpleNamespace(name="n0", profile=FAST)
        self.node = SimpleNamespace(
            database=self.database, me=0, incarnation=incarnation, setup=setup,
            subsystems=SimpleNamespace(levels=self.levels), replica=SimpleNamespace(own_now=None),
        )  # fmt: skip
        self.registrations = Registrations(
            cast("Any", self.node), folder / "subsystems.json", self.told.append,
            self._note, self._panic,
        )  # fmt: skip

    def _note(self, event: str, _detail: str) -> None:
        self.notes.append(event)
        if event == "subsystem hung":
            self.heard.set()

    def _panic(self, cause: str) -> None:
        self.panics.append(cause)
        self.heard.set()

    def patience_s(self) -> float:
        """For how long the program of level 60 is awaited; 0: it is not."""
        handle = self.registrations._by_level[60].patience
        return handle.when() - self.awaited_since_s if handle is not None else 0.0

    async def come(self, program: FakeProgram, **arguments: object) -> "Line":
        """A program registers, or returns with its token."""
        given = arguments if "token" in arguments else {"name": "cache", "level": 60, **arguments}
        peer = SimpleNamespace(program=lambda *_process: program, pid=4711)
        line = Line(self.registrations.converse(given, cast("Any", peer)))
        await line.begin()
        return line

    def notify(self, transition: int, level: int = 60) -> None:
        """The core notifies the level."""
        self.registrations.notify(Notify(level, transition, 0, 7, TransitionKind.JOINING, 1, {}, 10))

    def has(self, wanted: type) -> int:
        """How many of these the core was told."""
        return sum(isinstance(each, wanted) for each in self.told)


class Line:
    """One connection of a program."""

    def __init__(self, conversation: Any) -> None:
        self._results, self._hear = conversation
        self.token = ""

    async def begin(self) -> None:
        """The first line of the answer."""
        self.token = (await anext(self._results))[0]["token"]

    async def next(self) -> list[dict[str, Any]]:
        """What is told next."""
        return cast("list[dict[str, Any]]", await asyncio.wait_for(anext(self._results), 5))

    def say(self, operation: str, **arguments: object) -> None:
        """One line of the program."""
        self._hear([json.dumps({"operation": operation, "arguments": arguments}).encode()])

    async def lose(self) -> None:
        """The connection ends."""
        await self._results.aclose()


def desk_runs(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(bounded())


def test_p3_16_a_program_that_is_back_in_time_is_not_awaited_any_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk, first, second = Desk(tmp_path), FakeProgram(), FakeProgram()
        line = await desk.come(first, on_loss="fail", deadline_ms=60_000)
        await line.lose()
        assert 60 <= desk.patience_s() < 3600
        back = await desk.come(second, token=line.token)
        assert desk.patience_s() == 0
        first.end()  # it is another process that has come back: this one says nothing any more
        assert not desk.panics and not desk.has(LevelGone)
        await back.lose()
        assert not desk.panics
        second.end()
        assert len(desk.panics) == 1

    desk_runs(scenario)


def test_p3_16_the_end_of_a_connection_that_was_superseded_says_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        line = await desk.come(FakeProgram(), on_loss="fail", deadline_ms=60_000)
        back = await desk.come(FakeProgram(), token=line.token)  # the daemon has not yet seen that the old line is dead
        await line.lose()
        assert desk.patience_s() == 0
        await back.lose()
        assert desk.patience_s() > 0

    desk_runs(scenario)


def test_spec_3_2_a_token_is_that_of_one_registration(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        await desk.come(FakeProgram())
        with pytest.raises(ControlRefused, match="no registration with token"):
            await desk.come(FakeProgram(), token="another")  # no secret

    desk_runs(scenario)


def test_p3_16_the_end_of_a_program_that_has_no_connection_is_seen_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk, program = Desk(tmp_path), FakeProgram()
        line = await desk.come(program)
        await line.lose()
        assert not desk.has(LevelGone)
        program.end()
        assert desk.told[-1] == LevelGone(60)
        with pytest.raises(ControlRefused, match="no registration with token"):
            await desk.come(program, token=line.token)

    desk_runs(scenario)


@pytest.mark.parametrize(("on_loss", "fails"), [("fail", True), ("deregister", False), ("", False)])
def test_p3_16_one_that_is_not_back_in_time_and_lives_fails_its_node_only_where_it_said_so(
    on_loss: str, fails: bool, tmp_path: Path
) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        line = await desk.come(FakeProgram(), on_loss=on_loss, deadline_ms=20)
        await line.lose()
        await desk.heard.wait()
        assert bool(desk.panics) is fails
        assert not desk.has(LevelGone)  # its level stays: it may still use what it was told

    desk_runs(scenario)


def test_p3_16_after_a_restart_of_the_daemon_programs_have_as_long_as_that_takes(tmp_path: Path) -> None:
    async def scenario() -> None:
        program = FakeProgram()
        desk = Desk(tmp_path)
        line = await desk.come(program, on_loss="fail", deadline_ms=20)
        desk.registrations.stop()
        await line.lose()
        program.end()
        assert not desk.panics and desk.patience_s() == 0  # a daemon that ends says nothing about its programs
        later = Desk(tmp_path)
        later.registrations.restore()
        assert later.told == desk.told
        assert later.patience_s() >= FAST.restart_ms / 1000
        await later.come(FakeProgram(), token=line.token)
        assert later.patience_s() == 0
        other = Desk(tmp_path, incarnation=8)
        other.registrations.restore()
        assert other.told == []

    desk_runs(scenario)


def test_p3_13_who_registers_anew_is_another_program(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk, program = Desk(tmp_path), FakeProgram()
        for _ in range(2):
            line = await desk.come(program)
            await line.lose()
        first, gone, second = desk.told
        assert isinstance(first, LevelRegistered) and isinstance(second, LevelRegistered)
        assert gone == LevelGone(60, departed=True)  # it has given its last registration up itself
        assert second.level.number == first.level.number == 60
        assert second.level.identity > first.level.identity

    desk_runs(scenario)


def test_p3_8_what_is_not_at_work_any_more_is_no_acknowledgement(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        line = await desk.come(FakeProgram())
        desk.notify(5)
        (told,) = await line.next()
        assert (told["transition"], told["node"], told["kind"]) == (5, "n0", "joining")
        desk.registrations.replica_advanced()  # transition 5 is over: no record of it is left
        line.say("acknowledge", transition=5, barrier=1)
        assert not desk.has(Acknowledged)
        desk.notify(6)
        line.say("acknowledge", transition=6, barrier=1)
        line.say("acknowledge", transition=6, barrier=1)
        assert [each for each in desk.told if isinstance(each, Acknowledged)] == [Acknowledged(6, 60, 1)]

    desk_runs(scenario)


def test_p3_8_what_was_acknowledged_before_a_malformed_line_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        line = await desk.come(FakeProgram())
        desk.notify(5)
        good = json.dumps({"operation": "acknowledge", "arguments": {"transition": 5, "barrier": 1}}).encode()
        with pytest.raises(ControlRefused):
            line._hear([good, b"{"])
        assert desk.told[-1] == Acknowledged(5, 60, 1)

    desk_runs(scenario)


def test_p4_5_a_program_hears_the_question_and_only_while_it_is_registered_it_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        line = await desk.come(FakeProgram(), vetoes=True)
        desk.registrations.ask(AskSubsystem(60, "q", LeaveNode("n0")))
        assert await line.next() == [{"question": "q", "change": "leave", "node": "n0", "service": ""}]
        line.say("answer", question="q", objection=" not\n now ")
        answered = desk.told[-1]
        assert isinstance(answered, SubsystemAnswered)
        assert (answered.question, answered.level) == ("q", 60)
        assert answered.objection == "cache (level 60) on n0 objects: not now"
        line.say("deregister_level")
        line.say("answer", question="q", objection="")
        assert desk.has(SubsystemAnswered) == 1
        assert desk.told[-1] == LevelGone(60, departed=True)

    desk_runs(scenario)


def test_spec_3_2_a_registration_counts_only_once_it_is_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path / "nowhere")
        with pytest.raises(ControlRefused, match="the registration cannot be kept"):
            await desk.come(FakeProgram())
        assert desk.told == []
        (tmp_path / "nowhere").mkdir()
        await desk.come(FakeProgram())
        assert desk.has(LevelRegistered) == 1

    desk_runs(scenario)


def test_spec_3_2_what_cannot_be_registered_is_refused_before_the_core_hears_of_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        own = desk.database.members[0]
        for state in (NodeState.LEAVING, NodeState.FORCED_LEAVING, NodeState.INACTIVE):
            desk.database.members[0] = replace(own, state=state)
            with pytest.raises(ControlRefused, match="n0 is leaving the cluster"):
                await desk.come(FakeProgram())
        desk.database.members[0] = own
        with pytest.raises(ControlRefused, match="there is no deadline"):
            await desk.come(FakeProgram(), on_hang="evict")
        desk.levels[70] = Level(70, "above")
        with pytest.raises(ControlRefused, match="on_loss of level 60 cannot be deregister: above"):
            await desk.come(FakeProgram(), on_loss="deregister")
        assert desk.told == []
        await desk.come(FakeProgram(), on_hang="evict", deadline_ms=1000)
        with pytest.raises(ControlRefused, match="level 60 is taken on this node, by cache"):
            await desk.come(FakeProgram(), name="other")
        for level in range(61, 60 + MAXIMUM_REGISTRATIONS):
            await desk.come(FakeProgram(), level=level)
        with pytest.raises(ControlRefused, match="are registered on this node already"):
            await desk.come(FakeProgram(), level=59)
        (evicting, *others) = (each.level for each in desk.told if isinstance(each, LevelRegistered))
        assert evicting.evicts and not any(each.evicts for each in others)

    desk_runs(scenario)


def test_p3_9_a_program_that_is_counted_with_in_its_nodes_leave_stays_registered_until_that_is_over(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        await desk.come(FakeProgram())
        (registered,) = desk.told
        assert isinstance(registered, LevelRegistered)
        own = desk.database.members[0]
        desk.database.members[0] = replace(own, state=NodeState.LEAVING, levels=(registered.level,))
        desk.registrations.replica_advanced()
        assert "subsystem deregistered" not in desk.notes
        desk.database.members[0] = replace(own, state=NodeState.LEAVING)
        desk.registrations.replica_advanced()
        assert "subsystem deregistered" in desk.notes
        assert not desk.has(LevelGone)

    desk_runs(scenario)
