"""The runner of one incarnation, and the services below it, as `core.effects.RunCommand` describes them (SPEC 7.7).

What it accepts, refuses, remembers and cancels the real runner's ledger says (`core/launching/ledger.py`). Here is what
becomes of processes. Commands take their time and sometimes fail or hang; services outlive the daemon, and a paused
runner does not stop them. Whatever runs when the incarnation dies, dies at its own moment within the panic bound.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from muster.core.effects import RunCommand
from muster.core.launching import ledger
from muster.core.launching.ledger import Exited, Ledger, LedgerEntry, Result
from muster.records.services import CommandState
from muster.records.units import US_PER_MS
from muster.sim.history import (
    ActionBegan,
    CommandAnswered,
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


class VirtualCommand(NamedTuple):
    """A command, as the ledger judges it."""

    service: str
    generation: int
    action: str
    is_program: bool


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
        self._ledger = Ledger(LedgerEntry)
        self._active: dict[str, int] = {}  # service -> generation of which something runs
        self._at_work: dict[str, RunCommand] = {}  # the newest command of each place, while it has not ended
        self._supervised: dict[str, int] = {}  # service -> generation of its program
        self._ailing: dict[str, int] = {}  # service -> generation whose check fails
        self._actions: dict[int, RunCommand] = {}  # action functions, by the number of their occurrence

    @property
    def active(self) -> tuple[str, ...]:
        """The services of which something runs."""
        return tuple(self._active)

    def inventory(self) -> tuple[CommandState, ...]:
        """What became of the newest command of each place."""
        found = self._ledger.places.values()
        return tuple(_state(entry.name, entry.result) for entry in found if entry.result.action != "act")

    def request(self, command: RunCommand) -> None:
        """The daemon asks for a command."""
        self.loop.deliver_after(60, self.process, self._take, command)

    def _take(self, command: RunCommand) -> None:
        match self._ledger.take(VirtualCommand(command.service, command.generation, command.action, command.program)):
            case ledger.Taken(entry=entry, ends=notice, reason=reason):
                self._at_work[entry.place] = command
                self._run(command, entry)
                if notice is not None:
                    del self._at_work[notice.place]
                    self._finish(notice, succeeded=False, detail=reason)
            case ledger.Known(result=Result() as result):
                self._say(command.service, result)
            case ledger.Refusal(detail=detail) | ledger.NoRoom(detail=detail):
                self._say(command.service, ledger.refused(command.generation, command.action, detail))

    def _run(self, command: RunCommand, entry: LedgerEntry) -> None:
        if command.action == "act":
            self._actions[command.generation] = command
            self.history.append(
                ActionBegan(self.loop.now_us, self.node, self.incarnation, command.service, command.generation)
            )
            outcome = self._decide(self.node, command)
            ending = (command.generation, outcome.succeeded)
            self.loop.deliver_after(outcome.duration_us, self.process, self._end_action, *ending)
            return
        self.history.append(
            CommandTaken(
                self.loop.now_us, self.node, self.incarnation, command.service, command.generation, command.action,
                int(command.environment["MUSTER_EPOCH"]),
                int(command.environment.get("MUSTER_TOKEN", "").partition("-")[0] or 0),
            )
        )  # fmt: skip
        if command.action == "recovery":
            self.end_service(command.service)
        for cancelled in self._ledger.cleared(entry):  # what it had begun ends at once, or is the new one's
            self._say(command.service, cancelled)
        if command.action not in ("stop", "notify"):
            self._begin_service(command)
        outcome = self._decide(self.node, command)
        self.loop.after(outcome.duration_us, self._command_exits, command, outcome)

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
        entry = self._ledger.places.get(service)
        return entry.exited.generation if entry is not None and entry.exited is not None else 0

    def ails(self, service: str) -> int:
        """The generation of it whose check fails."""
        return self._ailing.get(service, 0)

    def is_started(self, service: str) -> bool:
        """Whether its start has succeeded here: what fails before is the start command's to say."""
        known = self._known(service)
        return known.action == "start" and known.finished and known.succeeded

    def _known(self, service: str) -> Result:
        """What is remembered of the newest command of a service; generation 0 where nothing is."""
        entry = self._ledger.places.get(service)
        return entry.result if entry is not None else Result(0, "")

    def ail(self, service: str) -> None:
        """From now on the check of the service fails, until its next command or an action function that succeeds."""
        generation = self._known(service).generation
        if generation and self.is_started(service) and self._ailing.get(service) != generation:
            self._ailing[service] = generation
            self._failed(service, generation, ended=False)

    def dies(self, service: str) -> bool:
        """The service ends of itself, whatever the runner does at this moment; whether there was anything to end."""
        generation, known = self.generation_of(service), self._known(service)
        if not generation or known.action not in ("start", "stop"):
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
        entry = self._ledger.places.get(service)
        exited = Exited(generation, "it ended", 0, "", self.loop.now_us)
        if entry is not None and entry.awaits_an_end() and entry.ended(exited):
            self._program_ended(service, generation)

    def _end_action(self, number: int, succeeded: bool) -> None:
        command = self._actions.pop(number, None)
        act = self._ledger.act_at_work(command.service, number) if command is not None else None
        if command is None or act is None:
            return
        del self._at_work[act.place]
        if succeeded:  # it has mended the service that it is about
            self._ailing.pop(command.environment.get("MUSTER_IN_SERVICE", ""), None)
        self._finish(act, succeeded=succeeded, detail="" if succeeded else "status 1")

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
        if self._at_work.get(_place(command)) is not command or not self.process.alive:
            return  # a newer command has cancelled it, its program has died, or everything is being killed
        self.loop.deliver(self.process, self._end_command, command, outcome)

    def _end_command(self, command: RunCommand, outcome: Outcome) -> None:
        succeeded = outcome.succeeded
        if self._at_work.get(_place(command)) is not command:
            return
        del self._at_work[_place(command)]
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
        entry = self._ledger.places[_place(command)]
        if command.action == "start" and succeeded:
            entry.started(left=left)
        entry.result.left = left  # of a stop that failed: here it is known what runs
        self.history.append(
            CommandEnded(
                self.loop.now_us, self.node, self.incarnation, command.service, command.generation, command.action,
                succeeded,
            )
        )  # fmt: skip
        detail = "" if succeeded else outcome.detail or f"{command.action} ended with status 1"
        self._finish(entry, succeeded=succeeded, detail=detail)

    def _finish(self, entry: LedgerEntry, *, succeeded: bool, detail: str) -> None:
        """The command of a place has ended: tell it, and remember it."""
        for result in self._ledger.finish(entry, succeeded, detail):
            self._say(entry.name, result)
        self._ledger.drop_act(entry)

    def _say(self, name: str, result: Result) -> None:
        state = _state(name, result)
        if result.action != "act":
            self.history.append(
                CommandAnswered(
                    self.loop.now_us, self.node, self.incarnation, name, result.generation, result.action,
                    result.succeeded,
                )
            )  # fmt: skip
        self.loop.after(60 + int(self.random.random() * 2 * US_PER_MS), self._finished, state)


def _place(command: RunCommand) -> str:
    return ledger.place_of(command.service, command.generation, command.action)


def _state(name: str, result: Result) -> CommandState:
    """A result as the daemon is told of it."""
    return CommandState(
        name, result.generation, result.action, result.finished, result.succeeded, result.detail, result.left
    )
