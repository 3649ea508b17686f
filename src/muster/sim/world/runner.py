"""The runner of one incarnation, and the services below it, as `core.effects.RunCommand` describes them (SPEC 7.7).

Commands take their time and sometimes fail or hang; services outlive the daemon, and a paused runner does not stop
them. Whatever runs when the incarnation dies, dies at its own moment within the panic bound.
"""

from collections.abc import Callable
from random import Random

from muster.core.effects import RunCommand
from muster.core.services import commands as executor
from muster.records.services import CommandState
from muster.records.units import US_PER_MS
from muster.sim.history import (
    ActionBegan,
    CommandEnded,
    CommandTaken,
    History,
    ServiceBegan,
    ServiceEnded,
    ServiceFailed,
)
from muster.sim.world.leftovers import Leftovers
from muster.sim.world.surroundings import Outcome
from muster.sim.world.time import EventLoop, Process

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
        program_ended: Callable[[str, int], None] = lambda _service, _generation: None,
        leftovers: Leftovers | None = None,
    ) -> None:
        self.loop, self.random, self.history = loop, random, history
        self.node, self.incarnation = node, incarnation
        self.process = Process(f"runner of n{node}")
        self._leftovers = leftovers  # of its machine
        self._decide, self._finished, self._program_ended = decide, finished, program_ended
        self._commands: dict[str, CommandState] = {}  # the highest generation seen of each service
        self._active: dict[str, int] = {}  # service -> generation of which something runs
        self._at_work: dict[str, RunCommand] = {}  # the newest command of each service, while it has not ended
        self._supervised: dict[str, int] = {}  # service -> generation of its program
        self._exits: dict[str, int] = {}  # service -> generation of its program that has ended, until the next command
        self._ailing: dict[str, int] = {}  # service -> generation whose check fails
        self._actions: dict[int, RunCommand] = {}  # action functions, by the number of their occurrence

    @property
    def active(self) -> tuple[str, ...]:
        """The services of which something runs."""
        return tuple(self._active)

    def inventory(self) -> tuple[CommandState, ...]:
        """What became of the newest command of each service."""
        return tuple(self._commands.values())

    def request(self, command: RunCommand) -> None:
        """The daemon asks for a command; an action function stands apart from those of services (P8.3)."""
        take = self._take_action if command.action == "act" else self._take
        self.loop.deliver_after(60, self.process, take, command)

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
        self._at_work[command.service] = command
        self._exits.pop(command.service, None)
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
        if self._leftovers is not None:
            self._leftovers.began(command, self.incarnation)
        if command.program:
            self._supervised[command.service] = command.generation
        self.history.append(
            ServiceBegan(self.loop.now_us, self.node, self.incarnation, command.service, command.generation)
        )

    def generation_of(self, service: str) -> int:
        """The generation of which something of the service runs; 0 for none."""
        return self._active.get(service, 0)

    def exit_of(self, service: str) -> int:
        """The generation of its supervised program, if that has ended and no command has come since (P8.1)."""
        return self._exits.get(service, 0)

    def ails(self, service: str) -> int:
        """The generation of it whose check fails."""
        return self._ailing.get(service, 0)

    def is_started(self, service: str) -> bool:
        """Whether its start has succeeded here: what fails before is the start command's to say."""
        known = self._commands.get(service)
        return known is not None and known.action == "start" and known.finished and known.succeeded

    def ail(self, service: str) -> None:
        """From now on the check of the service fails, until its next command or an action function that succeeds."""
        generation = self._commands[service].generation if service in self._commands else 0
        if generation and self.is_started(service) and self._ailing.get(service) != generation:
            self._ailing[service] = generation
            self._failed(service, generation, ended=False)

    def dies(self, service: str) -> bool:
        """The service ends of itself, whatever the runner does at this moment; whether there was anything to end."""
        generation, known = self.generation_of(service), self._commands.get(service)
        if not generation or known is None or known.action not in ("start", "stop"):
            return False
        started = self.is_started(service)
        self.end_service(service)
        if started:
            self._failed(service, generation, ended=True)
            if self._supervised.get(service) == generation:
                self.loop.deliver(self.process, self._note_exit, service, generation)
        elif (at_work := self._at_work.get(service)) is not None and known.action == "start":
            # it has died before it was ready
            self.loop.deliver(self.process, self._end_command, at_work, Outcome(0, succeeded=False))
        return True

    def _failed(self, service: str, generation: int, ended: bool) -> None:
        self.history.append(ServiceFailed(self.loop.now_us, self.node, self.incarnation, service, generation, ended))

    def _note_exit(self, service: str, generation: int) -> None:
        """Remember the end of a program, and tell of it, unless a newer command has answered it (P8.1)."""
        if self._commands[service].generation == generation:
            self._exits[service] = generation
            self._program_ended(service, generation)

    def _take_action(self, command: RunCommand) -> None:
        number = command.generation
        self._actions[number] = command
        self.history.append(ActionBegan(self.loop.now_us, self.node, self.incarnation, command.service, number))
        outcome = self._decide(self.node, command)
        self.loop.deliver_after(outcome.duration_us, self.process, self._end_action, number, outcome.succeeded)

    def _end_action(self, number: int, succeeded: bool) -> None:
        command = self._actions.pop(number, None)
        if command is None:
            return
        if succeeded:  # it has mended the service that it is about
            self._ailing.pop(command.environment.get("MUSTER_IN_SERVICE", ""), None)
        self._say(CommandState(command.service, number, "act", True, succeeded, "" if succeeded else "status 1"))

    @property
    def actions_at_work(self) -> frozenset[int]:
        """The action functions that have not ended."""
        return frozenset(self._actions)

    def cancel_action(self, number: int) -> None:
        """The daemon cancels an action function."""
        self.loop.deliver_after(60, self.process, self._end_action, number, False)

    def end_service(self, service: str) -> None:
        """Nothing of the service runs any more."""
        generation = self._active.pop(service, None)
        if generation is not None:
            self.history.append(ServiceEnded(self.loop.now_us, self.node, self.incarnation, service, generation))

    def _command_exits(self, command: RunCommand, outcome: Outcome) -> None:
        """The command's process ends, whatever the runner does at this moment."""
        if self._at_work.get(command.service) is not command or not self.process.alive:
            return  # a newer command has cancelled it, its program has died, or everything is being killed
        self.loop.deliver(self.process, self._end_command, command, outcome)

    def _end_command(self, command: RunCommand, outcome: Outcome) -> None:
        succeeded = outcome.succeeded
        if self._at_work.get(command.service) is not command:
            return
        del self._at_work[command.service]
        # A stop that failed leaves the service as it is; a failed start is cleaned up before it is reported.
        failed_or_stopped = succeeded == (command.action == "stop")
        if command.action == "recovery" or (failed_or_stopped and command.action != "notify"):
            self.end_service(command.service)
        if succeeded and self._leftovers is not None:
            self._leftovers.stopped(command)
        left = outcome.left or command.action != "start"
        if not left:
            self.end_service(command.service)
        if command.action == "stop" and not succeeded:  # it may have failed because there was nothing to stop (P6.35)
            left = command.service in self._active
        detail = "" if succeeded else outcome.detail or f"{command.action} ended with status 1"
        state = CommandState(command.service, command.generation, command.action, True, succeeded, detail, left)
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
