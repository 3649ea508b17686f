"""Calls of fence agents: commands of the runner, as action functions are, so they end with the node (P7.29).

A daemon that begins ends what its predecessor has had called: what becomes of that, nobody can tell any more.
"""

import asyncio
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

from muster.core.effects import CallFenceAgent, CancelFenceCall, RunCommand
from muster.core.inputs import FenceAnswered
from muster.drivers.fence_call import VARIABLE, Call, encoded
from muster.drivers.runner_client import FENCE_CALL, RunnerClient
from muster.records.services import CommandState

PROGRAM = "muster.drivers.fence_call"
BESIDE_MS = 3000  # what a call may take beside its agent
GRACE_MS = 200
MAXIMUM_DETAIL_CHARACTERS = 300
TEST = 1 << 40  # from here on the numbers of calls that a person asks for


class FenceCalls:
    """The calls that are under way."""

    def __init__(self, home: Path, clock_us: Callable[[], int], answered: Callable[[FenceAnswered], None]) -> None:
        """`answered` is told of the end of each call that the node has asked for."""
        self._home, self._clock_us, self._answered = home.resolve(), clock_us, answered
        self._runner: RunnerClient | None = None
        self._under_way: dict[int, tuple[int, str]] = {}  # generation of the command -> number of the call, its name
        self._left: set[int] = set()  # generations of calls that an earlier daemon has begun, and that have not ended
        self._waiting: list[CallFenceAgent] = []  # for their end
        self._tests: dict[int, asyncio.Future[FenceAnswered]] = {}
        self._test_numbers = itertools.count(TEST)

    def start(self, runner: RunnerClient) -> None:
        """End what an earlier daemon of this incarnation has had called."""
        self._runner = runner
        for name, generation in runner.fence_calls_at_work:
            self._left.add(generation)
            runner.cancel_act(name, generation, "its daemon has ended")

    def carry_out(self, effect: CallFenceAgent | CancelFenceCall) -> None:
        """What the node wants called, or ended."""
        if isinstance(effect, CallFenceAgent):
            self.call(effect)
        else:
            self.cancel(effect)

    def call(self, effect: CallFenceAgent) -> None:
        """Have an agent called. Never waits."""
        assert self._runner is not None
        if self._left:
            self._waiting.append(effect)
            return
        device = effect.device
        call = Call(
            device.name, device.agent, effect.action, [list(each) for each in effect.parameters], list(device.secrets),
            str(self._home), device.timeout_ms,
        )  # fmt: skip
        # Above that of every earlier call, of other daemons too: the runner runs each once.
        generation = max(self._clock_us(), *(number + 1 for number in self._under_way), 1)
        self._under_way[generation] = effect.call, FENCE_CALL + device.name
        self._runner.run(
            RunCommand(
                FENCE_CALL + device.name, 0, generation, "act", (sys.executable, "-P", "-m", PROGRAM),
                device.timeout_ms + BESIDE_MS, {VARIABLE: encoded(call)}, grace_ms=GRACE_MS,
            )
        )  # fmt: skip

    def cancel(self, effect: CancelFenceCall) -> None:
        """End a call; its end is told as any other."""
        for generation, (call, name) in list(self._under_way.items()):
            if call == effect.call and self._runner is not None:
                self._runner.cancel_act(name, generation, "it is not wanted any more")

    async def ask(self, effect: CallFenceAgent) -> FenceAnswered:
        """A call that a person asks for (`muster fence test`): `effect.call` is given another number."""
        number = next(self._test_numbers)
        future: asyncio.Future[FenceAnswered] = asyncio.get_running_loop().create_future()
        self._tests[number] = future
        try:
            self.call(CallFenceAgent(number, effect.device, effect.action, effect.parameters))
            return await future
        finally:
            self._tests.pop(number, None)

    def ended(self, command: CommandState) -> bool:
        """The runner tells of the end of a command; whether it was a call of an agent."""
        if not command.service.startswith(FENCE_CALL):
            return False
        self._left.discard(command.generation)
        while self._waiting and not self._left:
            self.call(self._waiting.pop(0))
        number, _ = self._under_way.pop(command.generation, (0, ""))
        if number:
            detail = command.detail[:MAXIMUM_DETAIL_CHARACTERS]
            answer = FenceAnswered(number, command.succeeded, "" if command.succeeded else detail)
            test = self._tests.get(number)
            if test is not None and not test.done():
                test.set_result(answer)
            elif number < TEST:
                self._answered(answer)
        return True
