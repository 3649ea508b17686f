"""The daemon's end of the channel to its runner, without a runner (SPEC 7.3, 7.7; P6.31)."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from muster.core.effects import RunCommand
from muster.drivers import runner_client
from muster.drivers.image.runner_packets import PACKET_BYTES
from muster.drivers.runner_client import CommandEnded, ProgramExited, RunnerClient, RunnerLost
from muster.records.services import CommandState


class Desk:
    """A client, the runner's end of its channel, and what the daemon was told."""

    def __init__(self) -> None:
        ours, self.runner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.runner.setblocking(False)
        self.finished: list[CommandState] = []
        self.ended: list[CommandEnded] = []
        self.exited: list[ProgramExited] = []
        self.client = RunnerClient(ours, self.finished.append, on_ended=self.ended.append, on_exited=self.exited.append)

    def tell(self, packet: dict[str, Any]) -> None:
        """The runner says something, and the client takes it in."""
        self.runner.send(json.dumps(packet).encode())
        self.client._readable()

    def asked(self) -> list[dict[str, Any]]:
        """What the runner has been asked since."""
        found = []
        while True:
            try:
                found.append(json.loads(self.runner.recv(PACKET_BYTES)))
            except BlockingIOError:
                return found

    async def inventory(self, *commands: dict[str, Any]) -> tuple[CommandState, ...]:
        """Ask for it, and have the runner answer."""
        asking = asyncio.ensure_future(self.client.inventory())
        await asyncio.sleep(0)
        (question,) = self.asked()
        assert question["do"] == "inventory"
        self.tell(inventory(question["request"], *commands))
        return await asking


def command(service: str, generation: int, action: str, **more: Any) -> dict[str, Any]:
    """One line of an inventory."""
    known = {"service": service, "generation": generation, "action": action}
    return {**known, "finished": False, "succeeded": False, "detail": "", **more}


def finished(service: str, generation: int, action: str = "start") -> dict[str, Any]:
    """The end of a command, as the runner tells it."""
    return {"say": "finished", **command(service, generation, action, succeeded=True)}


def inventory(request: int, *commands: dict[str, Any], last: bool = True) -> dict[str, Any]:
    """A packet of an inventory."""
    return {"say": "inventory", "request": request, "commands": list(commands), "last": last}


def run(service: str, *words: str, **environment: str) -> RunCommand:
    """A start."""
    return RunCommand(service, 7, 1, "start", words, 1000, environment)


def desk_runs(scenario: Callable[[Desk], Awaitable[None]]) -> None:
    async def bounded() -> None:
        desk = Desk()
        try:
            await asyncio.wait_for(scenario(desk), 30)
        finally:
            desk.client.close()
            desk.runner.close()

    asyncio.run(bounded())


def test_spec_7_7_the_inventory_is_the_answer_to_this_daemons_question_and_is_whole() -> None:
    async def scenario(desk: Desk) -> None:
        asking = asyncio.ensure_future(desk.client.inventory())
        await asyncio.sleep(0)
        request = desk.asked()[0]["request"]
        desk.tell(inventory(request + 1, command("old", 3, "start")))  # what an earlier daemon asked for
        assert not asking.done()
        desk.tell(inventory(request, command("web", 4, "start"), last=False))
        assert not asking.done()
        desk.tell(inventory(request, command("mail", 5, "stop")))
        assert [(state.service, state.action) for state in await asking] == [("web", "start"), ("mail", "stop")]

    desk_runs(scenario)


def test_spec_7_7_a_notify_command_hides_no_other_one_of_its_service_in_the_inventory() -> None:
    async def scenario(desk: Desk) -> None:
        found = await desk.inventory(command("web", 4, "start"), command("web", 5, "notify"), command("e", 9, "act"))
        assert sorted((state.generation, state.action) for state in found) == [(4, "start"), (5, "notify")]
        assert desk.client.acts_at_work == {9}

    desk_runs(scenario)


def test_spec_7_7_what_ends_before_the_inventory_is_complete_is_part_of_it_and_not_told() -> None:
    async def scenario(desk: Desk) -> None:
        asking = asyncio.ensure_future(desk.client.inventory())
        await asyncio.sleep(0)
        request = desk.asked()[0]["request"]
        desk.tell(finished("web", 4))
        desk.tell(finished("event", 9, "act"))  # the inventory has no word of it
        ended = dict(zip(CommandEnded._fields, ("web", 4, "start", 1, "", "exited with 0", 5, ""), strict=True))
        desk.tell({"say": "ended", **ended})
        gone = dict(zip(ProgramExited._fields, ("web", 4, "exited with 1", "", 77), strict=True))
        desk.tell({"say": "exited", **gone})
        del gone["service"]
        desk.tell(inventory(request, command("web", 4, "start", finished=True, exited=gone)))
        (state,) = await asking
        assert state.finished
        assert not desk.finished and not desk.ended and not desk.exited
        assert [act.generation for act in desk.client.acts_ended_early] == [9]
        assert [each.service for each in desk.client.ended_early] == ["web"]
        assert desk.client.exited == {"web": ProgramExited("web", 4, "exited with 1", "", 77)}
        desk.tell(finished("web", 6))
        desk.tell({"say": "ended", **ended})
        desk.tell({"say": "exited", "service": "web", **gone})
        assert [state.generation for state in desk.finished] == [6]
        assert len(desk.ended) == len(desk.exited) == 1

    desk_runs(scenario)


def test_p6_9_a_runner_of_an_older_image_does_not_say_what_is_left_so_something_may_be() -> None:
    async def scenario(desk: Desk) -> None:
        await desk.inventory()
        desk.tell(finished("web", 1))
        desk.tell({**finished("web", 2), "left": False})
        assert [state.left for state in desk.finished] == [True, False]

    desk_runs(scenario)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (run("web", "/bin/x", "a\0b"), "holds a NUL character"),
        (run("web", "/bin/x", NAME="a\0b"), "no process can be given 'NAME'"),
        (run("web", "/bin/x", **{"A=B": "c"}), "no process can be given 'A=B'"),
        (run("web", "/bin/x", **{"": "c"}), "no process can be given ''"),
        (run("web", "/bin/x", "y" * PACKET_BYTES), "bytes, "),
    ],
)
def test_p6_31_what_no_runner_would_take_fails_at_once_and_is_not_sent(asked: RunCommand, words: str) -> None:
    async def scenario(desk: Desk) -> None:
        desk.client.run(asked)
        assert not desk.finished, "within the step of the core that asked for it"
        await asyncio.sleep(0)
        (state,) = desk.finished
        assert (state.service, state.generation, state.finished, state.succeeded) == ("web", 1, True, False)
        assert words in state.detail
        assert desk.asked() == []

    desk_runs(scenario)


def test_what_the_runner_does_not_take_waits_in_order_and_no_more_than_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_client, "MAXIMUM_WAITING", 3)

    async def scenario(desk: Desk) -> None:
        number = 0
        while not desk.client._waiting:  # the channel takes so much
            desk.client.run(run(f"s{number}", "/bin/x"))
            number += 1
        for _ in range(3):
            desk.client.run(run(f"s{number}", "/bin/x"))
            number += 1
        await asyncio.sleep(0)
        assert [state.service for state in desk.finished] == [f"s{number - 1}"]
        assert "3 commands wait for the runner already" in desk.finished[0].detail
        taken: list[str] = []
        while len(taken) < number - 1:
            taken += [packet["service"] for packet in desk.asked()]
            await asyncio.sleep(0)
        assert taken == [f"s{each}" for each in range(number - 1)]

    desk_runs(scenario)


def test_who_waits_for_a_runner_that_ends_is_told_so() -> None:
    async def scenario(desk: Desk) -> None:
        asking = asyncio.ensure_future(desk.client.inventory())
        await asyncio.sleep(0)
        desk.runner.close()
        with pytest.raises(RunnerLost):
            await asking
        with pytest.raises(RunnerLost):
            await desk.client.inventory()
        desk.client.run(run("web", "/bin/x"))
        await asyncio.sleep(0)
        assert "this node is ending" in desk.finished[0].detail

    desk_runs(scenario)
