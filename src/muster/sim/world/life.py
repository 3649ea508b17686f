"""One incarnation of a node in the virtual world: init, runner, daemon and services, and how it ends (P7.7-P7.13).

It ends by init's end, as a PID namespace does: when the guard says so or dies, when init itself sees that the deadline
has passed (P7.9), when the daemon says so (P7.10). What the kernel holds ends no sooner than it lets it go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from msgspec.structs import replace

from muster.core import effects, inputs
from muster.core.events import manager as events
from muster.records.levels import Level
from muster.records.registers import Life as Named
from muster.records.services import CommandState
from muster.records.units import US_PER_MS
from muster.sim.history import LifeBegan, LifeEnded, ProgramCame, ProgramWent
from muster.sim.world.bare_machine import BareMachine
from muster.sim.world.leftovers import Leftovers
from muster.sim.world.runner import Runner
from muster.sim.world.time import US_PER_S, Clock, Process
from muster.sim.world.watcher import LINE_US, Watcher

ToGuard = effects.WatchLife | effects.Left | effects.Panic  # what a daemon tells the guard of its life


class RunningDaemon(Protocol):
    """What a life, and its guard, know of its daemon."""

    process: Process

    def load(self) -> None:
        """It begins, as its program does once it has been loaded."""

    def end(self, silently: bool) -> None:
        """It dies. `silently`: with its machine, so that nobody is told."""

    def command_finished(self, command: CommandState) -> None:
        """A command or an action function has ended."""

    def watcher_came(self, watcher: Watcher) -> None:
        """There is a new watcher: have it connect."""

    def program_came(self, level: Level) -> None:
        """A program registers."""

    def program_went(self, number: int, *, departed: bool) -> None:
        """A program deregisters, or it has ended."""

    def program_is_lost(self, level: Level) -> None:
        """A program is not back in time."""

    def kernel_said(self, word: inputs.KernelsWord) -> None:
        """The guard has asked the kernel."""


class KeptHistory:
    """The occurrences that daemons of one incarnation have written; the last ones are lost where a daemon dies."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, events.Occurrence]] = []

    def keep(self, changed: Iterable[events.Occurrence], now_us: int) -> None:
        """Write what is known of these now."""
        self._lines += [(now_us, replace(occurrence)) for occurrence in changed]

    def lose(self, since_us: int) -> None:
        """What was to be written since then is not."""
        while self._lines and self._lines[-1][0] >= since_us:
            self._lines.pop()

    def read(self) -> tuple[events.Occurrence, ...]:
        """What is known of each, oldest first."""
        found = {occurrence.number: replace(occurrence) for _, occurrence in self._lines}
        return tuple(found[number] for number in sorted(found))


class VirtualLife:
    """One incarnation of a node: its init, its daemon, its runner, and its services."""

    def __init__(
        self,
        machine: BareMachine,
        clock: Clock,
        incarnation: int,
        leftovers: Leftovers,
        new_daemon: Callable[[VirtualLife], RunningDaemon],
        over: Callable[[], None],
    ) -> None:
        """`over` is called when nothing of it runs any more, unless by a power cut."""
        world = machine.world
        self.machine, self.clock, self.incarnation = machine, clock, incarnation
        self.leftovers, self._new_daemon, self._over = leftovers, new_daemon, over
        self.runner = Runner(
            world.loop, world.random, world.history, machine.node, incarnation, world.decide, self._command_finished,
            self._program_ended, leftovers,
        )  # fmt: skip
        self.kept = KeptHistory()
        self.actions_ended: list[CommandState] = []  # while no daemon listened
        self.watcher: Watcher | None = None  # a child of the runner; it outlives daemons
        self._wants_watcher = False
        self.init = Process("init")
        self.daemon: RunningDaemon | None = None
        self.acknowledged: set[tuple[int, int, int]] = set()  # what the subsystems have processed
        self.programs: dict[int, Level] = {}  # that have registered a level; they outlive a daemon
        self.kept_programs: dict[int, Level] = {}  # as the daemons know them: the last change may be on its way
        self.dropped: dict[int, list[Callable[[], None]]] = {}  # of those without a connection: what waits for it
        self.named: Named | None = None  # as the lease record names it
        self.is_tree = machine.node in world.settings.trees  # no PID namespace: a control group instead (P7.11)
        self.hangs_us = 0  # so long the kernel holds what was killed
        self.held: list[Process] = []  # they wait in the kernel; no set: its order would be that of addresses
        self._stop_later = ""  # why init ends when it goes on
        self._detached = False  # something of it is found by its control group only
        self.began = False  # its first daemon was started
        self.lost_power = False
        self.daemon_process: Process | None = None  # of the last daemon
        self.stopping = False
        self.ended = False
        self.cause = ""
        world.history.append(LifeBegan(world.loop.now_us, machine.node, incarnation))
        self._bring_required()

    def now_us(self) -> int:
        """This machine's clock."""
        return self.clock.local_us(self.machine.world.loop.now_us)

    def start_daemon(self) -> None:
        """Init starts the daemon (again)."""
        if self.stopping or self.daemon is not None:
            return
        self.daemon = self._new_daemon(self)
        self.daemon_process = self.daemon.process
        self.daemon.load()

    def _command_finished(self, command: CommandState) -> None:
        if self.daemon is not None:
            self.daemon.command_finished(command)
        elif command.action == "act":
            self.actions_ended.append(command)

    def _program_ended(self, service: str, generation: int) -> None:
        watcher = self.watcher
        if watcher is not None:
            self.machine.world.loop.deliver_after(LINE_US, watcher.process, watcher.program_ended, service, generation)

    def want_watcher(self, wanted: bool) -> None:
        """The runner has a watcher process while there is something for it to detect."""
        self.machine.world.loop.deliver_after(LINE_US, self.runner.process, self._keep_watcher, wanted)

    def _keep_watcher(self, wanted: bool) -> None:
        self._wants_watcher = wanted
        if not wanted:
            self._end_watcher()
        elif self.watcher is None:
            self.watcher = Watcher(self.machine.world.loop, self.runner)
            if self.daemon is not None:
                self.daemon.watcher_came(self.watcher)

    def _end_watcher(self) -> None:
        if self.watcher is not None:
            self.watcher.end()
            self.watcher = None

    def kill_watcher(self) -> None:
        """The watcher is killed: the runner forks another one."""
        if self.watcher is not None:
            self._end_watcher()
            delay_us = int((1 + self.machine.world.random.random() * 150) * US_PER_MS)
            self.machine.world.loop.deliver_after(delay_us, self.runner.process, self._watch_again)

    def _watch_again(self) -> None:
        if not self.stopping:
            self._keep_watcher(self._wants_watcher)

    def service_dies(self, service: str) -> bool:
        """A service ends of itself; whether anything of it runs here that can."""
        if not self.runner.dies(service):
            return False
        self.machine.point("failure", "begun")
        self.service_ails(service)
        return True

    def service_ails(self, service: str) -> None:
        """From now on its check fails, if it has one."""
        self.runner.ail(service)
        if self.watcher is not None:
            self.watcher.service_ails(service)

    def come(self, level: Level) -> None:
        """A program registers a level; the daemon that runs, or else the next one, takes it in (SPEC 3.10, P3.13)."""
        machine = self.machine
        level = level._replace(registration=machine.world.loop.now_us)
        self.programs[level.number] = level
        machine.world.history.append(ProgramCame(level.registration, machine.node, self.incarnation, level))
        if self.daemon is not None:
            self.daemon.program_came(level)

    def go(self, number: int, *, departed: bool = False) -> None:
        """The program of a level ends, with all that it has processed and not processed.

        `departed`: it deregisters first.
        """
        level = self.programs.pop(number, None)
        self.dropped.pop(number, None)
        if level is None:
            return
        machine = self.machine
        self.acknowledged = {step for step in self.acknowledged if step[1] != number}
        now_us = machine.world.loop.now_us
        machine.world.history.append(ProgramWent(now_us, machine.node, self.incarnation, level))
        if self.daemon is not None:
            self.daemon.program_went(number, departed=departed)
        self._bring_required()

    def _bring_required(self) -> None:
        """Init starts the required programs that are not there, sooner or later."""
        world = self.machine.world
        if not world.settings.required:
            return
        late = not world.calm and world.random.random() < 0.25
        delay_us = int(world.random.random() * (3000 if late else 200) * US_PER_MS)
        world.loop.after(delay_us, self._start_required)

    def _start_required(self) -> None:
        for level in self.machine.world.settings.required:
            if level.number not in self.programs and not self.stopping and not self.ended:
                self.come(level)

    def drop(self, number: int, for_us: int, *, fails: bool) -> None:
        """The connection of a program that lives is lost: its daemon awaits it (P3.16)."""
        level, world = self.programs.get(number), self.machine.world
        if level is None or number in self.dropped:
            return
        self.dropped[number] = []
        world.loop.after(for_us, self._returns, level)
        bound_us = (level.deadline_ms or world.profile.restart_ms) * US_PER_MS
        if fails and for_us > bound_us:
            world.loop.after(bound_us, self._overdue, level)

    def _returns(self, level: Level) -> None:
        """It is back with its token: it is told what it has not acknowledged, and says what it has processed."""
        if self.programs.get(level.number) == level:
            for go_on in self.dropped.pop(level.number, ()):
                go_on()

    def _overdue(self, level: Level) -> None:
        if self.programs.get(level.number) == level and level.number in self.dropped and self.daemon is not None:
            self.daemon.program_is_lost(level)

    def pulsing(self) -> dict[str, Process]:
        """The processes that owe the guard signs of life, as its vigil names them, those that live."""
        found = {"init": self.init, "runner": self.runner.process}
        if self.daemon is not None:
            found["daemon"] = self.daemon.process
        return {name: process for name, process in found.items() if process.alive and self.began}

    # ---- the end -------------------------------------------------------------------------------------------------

    def bound_us(self) -> int:
        """From a SIGKILL to the last process gone: mostly a few milliseconds, sometimes nearly all that is allowed."""
        world = self.machine.world
        bound_us = world.profile.panic_bound_ms * US_PER_MS * 98 // 100
        if world.random.random() < 0.3:
            return bound_us
        return min(bound_us, 500 + int(world.random.random() * 12 * US_PER_MS))

    def stop(self, cause: str, within_us: int, *, swept: bool = False) -> None:
        """SIGKILL for everything but the guard, by init's end; each part dies at its own moment in `within_us`.

        `swept`: the guard sees to it that nothing has detached itself, as in a process tree something may (P7.11).
        """
        if self.ended or self.lost_power:
            return
        if self.stopping:
            if swept:
                self.sweep()
            return
        if self.init in self.held:  # its SIGKILL waits for it
            self._stop_later = cause
            return
        self.stopping, self.cause = True, cause
        world = self.machine.world
        paused = any(process.paused_at_us is not None for process in self._processes())
        self._detached = self.is_tree and self.began and not swept and (paused or world.random.random() < 0.5)
        hangs = world.settings.hangs if world.settings.kernel and self.began and not world.calm else 0.0
        if world.random.random() < hangs:
            self.hangs_us = int((0.1 + (4 if world.random.random() < 0.8 else 60) * world.random.random()) * US_PER_S)
        for process in self._processes():
            world.loop.after(int(world.random.random() * within_us), self._kill_process, process)
        world.loop.after(within_us + self.hangs_us, self.all_gone)

    def power_cut(self) -> None:
        """Everything ends now."""
        if self.ended:
            return
        self.lost_power = self.stopping = True
        self.cause = self.cause or "power cut"
        for process in self._processes():
            process.lost_power = True
        self._kill_all()

    def deadline_passed(self) -> None:
        """Init sees by its own clock that the deadline is over, and ends the node; else the runner what is below it."""
        loop = self.machine.world.loop
        if self.init not in self.held:
            loop.deliver(self.init, self.stop, "its deadline has passed", self.bound_us())
        else:
            self.told_to_stop("its deadline has passed")

    def told_to_stop(self, cause: str) -> None:
        """The daemon, or the deadline, says that the node must end: init and runner act upon it without the guard."""
        loop = self.machine.world.loop
        loop.deliver(self.init, self.stop, cause, self.bound_us())
        loop.deliver(self.runner.process, self._end_services)

    def _end_services(self) -> None:
        if not self.runner.process.alive or self.is_tree:  # in a tree each keeper does it, unless it is stopped
            return
        self.runner.process.kill()
        self._end_watcher()
        for service in self.runner.active:
            self.runner.end_service(service)

    def hold(self, which: str) -> None:
        """`init` or `runner` waits in the kernel: it does nothing, and SIGKILL does not end it before it goes on."""
        process = self.init if which == "init" else self.runner.process
        if not self.ended and process.alive and process not in self.held:
            self.held.append(process)
            self.machine.world.loop.hold(process)

    def release(self) -> None:
        """What the kernel held goes on, and ends if it was killed meanwhile."""
        loop = self.machine.world.loop
        held, self.held = self.held, []
        if self.ended:
            return
        if self.stopping:
            if held or self.hangs_us:
                loop.after(int(self.machine.world.random.random() * 5 * US_PER_MS), self.all_gone)
        elif self._stop_later:
            self.stop(self._stop_later, self.bound_us())
        else:
            for process in held:
                loop.let_go(process)

    def sweep(self) -> None:
        """Its guard, or the next one, kills the control group with what is left of this incarnation (P7.11)."""
        if self._detached:
            self._detached = False
            delay_us = int(self.machine.world.random.random() * 20 * US_PER_MS)
            self.machine.world.loop.after(delay_us, self.all_gone)

    def _processes(self) -> list[Process]:
        processes = [self.runner.process, self.init]
        if self.daemon is not None:
            processes.append(self.daemon.process)
        if self.watcher is not None:
            processes.append(self.watcher.process)
        return processes

    def _kill_process(self, process: Process) -> None:
        if not process.alive or process in self.held:
            return
        if self.daemon is not None and process is self.daemon.process:
            self.daemon.end(silently=False)
        process.kill()

    def all_gone(self) -> None:
        """Everything has had the time to end; what the kernel holds, or has detached itself, has not."""
        if self.held or self._detached:
            return
        if self.machine.world.settings.kernel and self.machine.access.waits_for_write_of(self.daemon_process):
            return  # a process has not ended before its system calls have
        self._kill_all()

    def _kill_all(self) -> None:
        if self.ended:
            return
        self.ended = True
        if self.daemon is not None:
            self.daemon.end(silently=self.lost_power)
            self.daemon = None
        self.runner.process.kill()
        self.init.kill()
        self._end_watcher()
        for service in self.runner.active:
            self.runner.end_service(service)
        world = self.machine.world
        world.history.append(LifeEnded(world.loop.now_us, self.machine.node, self.incarnation, self.cause))
        if self.named is not None:
            world.kernel.end(self.named)
        if not self.lost_power:
            self._over()
