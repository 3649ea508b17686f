"""The runner of one incarnation, and the services below it, as `core.effects.RunCommand` describes them (SPEC 7.7).

Commands take their time and sometimes fail or hang; services outlive the daemon, and a paused runner does not stop
them. Whatever runs when the incarnation dies, dies at its own moment within the panic bound.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from muster.core import executor
from muster.core.effects import RunCommand
from muster.records.messages import CommandState
from muster.sim.events import US_PER_MS, EventLoop, Process
from muster.sim.history import CommandEnded, CommandTaken, History, ServiceBegan, ServiceEnded


class Outcome(NamedTuple):
    """What becomes of one command."""

    duration_us: int
    succeeded: bool
    detail: str = ""  # of a failure, in words


Decide = Callable[[int, RunCommand], Outcome]  # (node, command) -> what becomes of it


class Runner:
    """Parent of all service commands of one incarnation."""

    def __init__(
        self,
        loop: EventLoop,
        random: Random,
        history: History,
        node: int,
        incarnation: int,
        decide: Decide,
        finished: Callable[[CommandState], None],
    ) -> None:
        self.loop, self.random, self.history = loop, random, history
        self.node, self.incarnation = node, incarnation
        self.process = Process(f"runner of n{node}")
        self._decide, self._finished = decide, finished
        self._commands: dict[str, CommandState] = {}  # the highest generation seen of each service
        self._active: dict[str, int] = {}  # service -> generation of which something runs

    @property
    def active(self) -> tuple[str, ...]:
        """The services of which something runs."""
        return tuple(self._active)

    def inventory(self) -> tuple[CommandState, ...]:
        """What became of the newest command of each service."""
        return tuple(self._commands.values())

    def request(self, command: RunCommand) -> None:
        """The daemon asks for a command."""
        self.loop.deliver_after(60, self.process, self._take, command)

    def _take(self, command: RunCommand) -> None:
        known = self._commands.get(command.service)
        if known is not None and not executor.is_newer(command.generation, known.generation):
            self._refuse(command, known)
            return
        self._commands[command.service] = CommandState(command.service, command.generation, command.action, False)
        self.history.append(
            CommandTaken(
                self.loop.now_us, self.node, self.incarnation, command.service, command.generation, command.action,
                int(command.environment["MUSTER_EPOCH"]),
            )
        )  # fmt: skip
        if command.action == "recovery":
            self.end_service(command.service)
        if command.action not in ("stop", "notify"):
            self._begin_service(command)
        outcome = self._decide(self.node, command)
        self.loop.after(outcome.duration_us, self._command_exits, command, outcome)

    def _refuse(self, command: RunCommand, known: CommandState) -> None:
        """An old generation is answered from memory: its own result, or that it came too late (SPEC 7.7)."""
        repeated = (known.generation, known.action) == (command.generation, command.action)
        if repeated and known.finished:
            self._say(known)
        elif not repeated:
            self._say(
                CommandState(
                    command.service, command.generation, command.action, True, False,
                    f"generation {command.generation} is not newer than {known.generation}",
                )
            )  # fmt: skip

    def _begin_service(self, command: RunCommand) -> None:
        self._active[command.service] = command.generation
        self.history.append(
            ServiceBegan(self.loop.now_us, self.node, self.incarnation, command.service, command.generation)
        )

    def generation_of(self, service: str) -> int:
        """The generation of which something of the service runs; 0 for none."""
        return self._active.get(service, 0)

    def is_started(self, service: str) -> bool:
        """Whether its start has succeeded here: what fails before is the start command's to say."""
        known = self._commands.get(service)
        return known is not None and known.action == "start" and known.finished and known.succeeded

    def end_service(self, service: str) -> None:
        """Nothing of the service runs any more."""
        generation = self._active.pop(service, None)
        if generation is not None:
            self.history.append(ServiceEnded(self.loop.now_us, self.node, self.incarnation, service, generation))

    def _command_exits(self, command: RunCommand, outcome: Outcome) -> None:
        """The command's process ends, whatever the runner does at this moment."""
        known = self._commands[command.service]
        if known.generation != command.generation or not self.process.alive:
            return  # a newer command has cancelled it, or everything is being killed
        self.loop.deliver(self.process, self._end_command, command, outcome)

    def _end_command(self, command: RunCommand, outcome: Outcome) -> None:
        succeeded = outcome.succeeded
        known = self._commands[command.service]
        if known.generation != command.generation:
            return
        # A stop that failed leaves the service as it is; a failed start is cleaned up before it is reported.
        failed_or_stopped = succeeded == (command.action == "stop")
        if command.action == "recovery" or (failed_or_stopped and command.action != "notify"):
            self.end_service(command.service)
        detail = "" if succeeded else outcome.detail or f"{command.action} ended with status 1"
        state = CommandState(command.service, command.generation, command.action, True, succeeded, detail)
        self._commands[command.service] = state
        self.history.append(
            CommandEnded(
                self.loop.now_us, self.node, self.incarnation, command.service, command.generation, command.action,
                succeeded,
            )
        )  # fmt: skip
        self._say(state)

    def _say(self, state: CommandState) -> None:
        self.loop.after(60 + int(self.random.random() * 2 * US_PER_MS), self._finished, state)
