"""The guard of one node, and the incarnation that it keeps alive: boot, lease, deadman, panic (SPEC 7.1-7.3).

It uses `core.lease` exactly as the real guard does. The deadman is a kernel timer: it fires whatever is paused, kills
the guard, and everything else of the incarnation dies at moments of its own within the panic bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from muster.core.lease import LeaseKeeper, LeaseWatch, Stop, next_incarnation
from muster.records.messages import CommandState
from muster.records.registers import Deadman, Lease, LeaseState, Marks, RegisterKind
from muster.records.state import Level
from muster.sim.disk import RegisterTarget, TwoCopyWrite
from muster.sim.event_manager import KeptHistory
from muster.sim.events import US_PER_MS, Clock, Process
from muster.sim.history import LifeBegan, LifeEnded, Logged, ProgramCame, ProgramWent
from muster.sim.runner import Runner
from muster.sim.watcher import LINE_US, Watcher

if TYPE_CHECKING:
    from muster.sim.daemon import Daemon
    from muster.sim.machine import Machine

TOMBSTONE_TRIES = 3

AllMarks = tuple[Marks | None, ...]
Judge = Callable[[Lease | None, AllMarks | None, int], None]  # (own lease, marks, when the read began)


class Life:
    """One incarnation of a node: its guard, its daemon, its runner, and its services."""

    def __init__(self, machine: Machine, clock: Clock, incarnation: int) -> None:
        world = machine.world
        self.machine, self.clock, self.incarnation = machine, clock, incarnation
        self.runner = Runner(
            world.loop, world.random, world.history, machine.node, incarnation, world.decide, self._command_finished,
            self._program_ended,
        )  # fmt: skip
        self.kept = KeptHistory()
        self.actions_ended: list[CommandState] = []  # while no daemon listened
        self.watcher: Watcher | None = None  # a child of the runner; it outlives daemons
        self._wants_watcher = False
        self.init = Process("init")
        self.daemon: Daemon | None = None
        self.daemon_absent_us = world.loop.now_us  # since when there is no daemon, while there is none
        self.acknowledged: set[tuple[int, int, int]] = set()  # what the subsystems have processed
        self.programs: dict[int, Level] = {}  # that have registered a level; they outlive a daemon
        self.stopping = False
        self.ended = False
        self.cause = ""
        machine.lives.append(self)
        world.history.append(LifeBegan(world.loop.now_us, machine.node, incarnation))

    def _command_finished(self, command: CommandState) -> None:
        if command.action != "act":
            if self.daemon is not None:
                self.daemon.command_finished(command)
        elif self.daemon is not None and self.daemon.events is not None:
            self.daemon.action_ended(command.generation, command.succeeded, command.detail)
        else:
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
            self.watcher = Watcher(self)
            if self.daemon is not None and self.daemon.events is not None:
                self.watcher.daemon_came(self.daemon.events)

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

    def go(self, number: int) -> None:
        """The program of a level ends, with all that it has processed and not processed."""
        level = self.programs.pop(number, None)
        if level is None:
            return
        machine = self.machine
        self.acknowledged = {step for step in self.acknowledged if step[1] != number}
        now_us = machine.world.loop.now_us
        machine.world.history.append(ProgramWent(now_us, machine.node, self.incarnation, level))
        if self.daemon is not None:
            self.daemon.program_went(number)

    def pulse_lost(self, now_us: int) -> str:
        """Why the guard must panic for want of a pulse, or nothing."""
        profile = self.machine.world.profile
        processes = [self.runner.process] if self.daemon is None else [self.runner.process, self.daemon.process]
        for process in processes:
            paused_us = process.paused_at_us
            if paused_us is not None and now_us - paused_us > profile.pulse_loss_ms * US_PER_MS:
                return f"no pulse from the {process.name}"
        if self.daemon is None and now_us - self.daemon_absent_us > profile.restart_ms * US_PER_MS:
            return "the daemon did not come back"
        return ""

    def stop(self, cause: str, within_us: int, lost_power: bool = False) -> None:
        """Kill everything but the guard; each part dies at its own moment in `within_us`."""
        world = self.machine.world
        self.stopping, self.cause = True, self.cause or cause
        if lost_power:
            for process in self._processes():
                process.lost_power = True
        if within_us == 0:
            self._kill_all(lost_power)
            return
        for process in self._processes():
            world.loop.after(int(world.random.random() * within_us), self._kill_process, process)
        world.loop.after(within_us, self._kill_all, False)

    def _processes(self) -> list[Process]:
        processes = [self.runner.process, self.init]
        if self.daemon is not None:
            processes.append(self.daemon.process)
        if self.watcher is not None:
            processes.append(self.watcher.process)
        return processes

    def _kill_process(self, process: Process) -> None:
        if not process.alive:
            return
        if self.daemon is not None and process is self.daemon.process:
            self.daemon.end(silently=False)
        process.kill()

    def _kill_all(self, lost_power: bool) -> None:
        if self.ended:
            return
        self.ended = True
        if self.daemon is not None:
            self.daemon.end(silently=lost_power)
            self.daemon = None
        self.runner.process.kill()
        self.init.kill()
        self._end_watcher()
        for service in self.runner.active:
            self.runner.end_service(service)
        world = self.machine.world
        world.history.append(LifeEnded(world.loop.now_us, self.machine.node, self.incarnation, self.cause))


class Guard:
    """One guard process: from `boot` until its node has stopped."""

    def __init__(self, machine: Machine, clock: Clock) -> None:
        self.machine, self.clock, self.world = machine, clock, machine.world
        self.process = Process("guard")
        self.life: Life | None = None
        self._keeper: LeaseKeeper | None = None
        self._watch = LeaseWatch(self.world.profile.gap_ms)
        self._first_seen: Lease | None = None
        self._deadman_us: int | None = None  # world time; None until it is armed
        self._panicking = False
        self._busy = False  # a cycle is under way

    def now_us(self) -> int:
        """This machine's clock."""
        return self.clock.local_us(self.world.loop.now_us)

    def boot(self) -> None:
        """Watch the own lease until the predecessor is proven to have stopped (SPEC 7.1)."""
        self._read(self._observe)

    def _read(self, then: Judge) -> None:
        """Read the own lease and all marks; call `then(lease, marks, started)` in this process."""
        started_us = self.world.loop.now_us
        self.world.loop.after(self.machine.access.latency_us(), self._read_ends, then, started_us)

    def _read_ends(self, then: Judge, started_us: int) -> None:
        access = self.machine.access
        lease: Lease | None = None
        marks: AllMarks | None = None
        if not access.fails():
            strip = access.sampled(started_us)
            lease = strip.leases[self.machine.node]
            marks = None if any(register is None for register in strip.marks) else strip.marks
        self.world.loop.deliver(self.process, then, lease, marks, self.clock.local_us(started_us))

    def _observe(self, lease: Lease | None, _marks: AllMarks | None, started_us: int) -> None:
        self._watch.observe(lease, started_us, self.now_us())
        if lease is not None:
            if lease.state is LeaseState.NEVER or self._watch.evidence(lease.stamp.incarnation) is not None:
                self._acquire(lease)
                return
            if self._first_seen is not None and self._first_seen.stamp != lease.stamp:
                self._log("boot refused: the lease beats")
                self.machine.guard_ended(self)
                return
            self._first_seen = lease
        self.world.loop.deliver_after(self.world.profile.read_ms * US_PER_MS, self.process, self.boot)

    def _acquire(self, predecessor: Lease) -> None:
        world, machine = self.world, self.machine
        incarnation = next_incarnation(predecessor.stamp.incarnation, world.random.getrandbits(32))
        boot_id = world.random.getrandbits(128).to_bytes(16, "little")
        self._keeper = LeaseKeeper(
            machine.node, incarnation, predecessor, world.profile, Deadman.PID_NAMESPACE, boot_id
        )
        self.life = Life(machine, self.clock, incarnation)
        self._cycle()

    def _cycle(self) -> None:
        world = self.world
        world.loop.deliver_after(world.profile.renew_ms * US_PER_MS, self.process, self._cycle)
        if self._busy or self._panicking or self.life is None:
            return
        cause = self.life.pulse_lost(world.loop.now_us)
        if cause:
            self.panic(cause)
            return
        self._busy = True
        self._read(self._judge)

    def _judge(self, own: Lease | None, marks: AllMarks | None, started_us: int) -> None:
        assert self._keeper is not None
        if own is None or marks is None:
            self._busy = False  # no renewal without the marks (SPEC 7.2)
            return
        verdict = self._keeper.begin(started_us, own, marks)
        if isinstance(verdict, Stop):
            self._busy = False
            self.panic(verdict.cause)
            return
        self._write(verdict.lease, lambda succeeded: self._written(verdict.lease, started_us, succeeded))

    def _write(self, lease: Lease, done: Callable[[bool], None]) -> None:
        access = self.machine.access
        cell = access.store.cells[RegisterKind.LEASE][self.machine.node]
        TwoCopyWrite(access, self.process, "lease", RegisterTarget(access.store, cell, lease), done)

    def _written(self, lease: Lease, started_us: int, succeeded: bool) -> None:
        assert self._keeper is not None
        assert self.life is not None
        self._busy = False
        if not succeeded:
            return
        first = self._keeper.deadline_us is None
        verdict = self._keeper.renewed(lease, started_us, self.now_us())
        if verdict is not None:
            self.panic(verdict.cause)
            return
        assert self._keeper.deadline_us is not None
        self._arm(self.clock.world_us(self._keeper.deadline_us))
        if first:
            self.machine.start_daemon(self.life)

    def _arm(self, deadline_us: int) -> None:
        unarmed = self._deadman_us is None
        self._deadman_us = deadline_us
        if unarmed:
            self.world.loop.at(deadline_us, self._deadman)

    def _deadman(self) -> None:
        """The kernel's timer: no process of this node takes part in it."""
        if not self.process.alive:
            return
        assert self._deadman_us is not None
        if self.world.loop.now_us < self._deadman_us:
            self.world.loop.at(self._deadman_us, self._deadman)
            return
        self._log("deadman fired")
        self.die("its lease ran out", lost_power=False)

    def die(self, cause: str, lost_power: bool) -> None:
        """This guard is killed; the rest of the node dies with it, at once or within the panic bound."""
        if not self.process.alive:
            return
        self.process.lost_power = lost_power
        self.process.kill()
        if self.life is not None:
            self.life.stop(cause, 0 if lost_power else self._bound_us(), lost_power)
        self.machine.guard_ended(self)

    def _bound_us(self) -> int:
        """Mostly a few milliseconds, sometimes nearly all that the panic bound allows on this machine's clock."""
        bound_us = self.world.profile.panic_bound_ms * US_PER_MS * 98 // 100
        if self.world.random.random() < 0.3:
            return bound_us
        return min(bound_us, 500 + int(self.world.random.random() * 12 * US_PER_MS))

    def panic(self, cause: str) -> None:
        """Empty the node, then write the tombstone (SPEC 3.12, 7.1)."""
        self._end_node(cause, clean=False)

    def leave(self) -> None:
        """The graceful leave is complete: empty the node, then write the clean tombstone."""
        self._end_node("it left", clean=True)

    def _end_node(self, cause: str, clean: bool) -> None:
        if self._panicking or self.life is None:
            return
        if self._busy:  # one thread: a renewal that is under way is finished first
            self.world.loop.deliver_after(US_PER_MS, self.process, self._end_node, cause, clean)
            return
        self._panicking = True
        self._log(f"the guard stops the node: {cause}")
        within_us = self._bound_us() // 2 + 1
        self.life.stop(cause, within_us)
        self.world.loop.deliver_after(within_us + 1, self.process, self._bury, cause, clean, TOMBSTONE_TRIES)

    def _bury(self, cause: str, clean: bool, tries: int) -> None:
        """Everything has ended: say so in the store, if it can be reached, and end."""
        assert self._keeper is not None
        assert self.life is not None
        assert self.life.ended
        if tries == 0 or self._keeper.deadline_us is None:
            # Without a tombstone the lease simply runs out.
            self.process.kill()
            self.machine.guard_ended(self)
            return
        tombstone = self._keeper.tombstone(clean, cause)
        self._write(tombstone, lambda succeeded: self._buried(cause, clean, tries, succeeded))

    def _buried(self, cause: str, clean: bool, tries: int, succeeded: bool) -> None:
        if succeeded:
            self.process.kill()
            self.machine.guard_ended(self)
            return
        self.world.loop.deliver_after(10 * US_PER_MS, self.process, self._bury, cause, clean, tries - 1)

    def _log(self, what: str) -> None:
        self.world.history.append(Logged(self.world.loop.now_us, self.machine.node, what))
