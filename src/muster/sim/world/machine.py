"""One configured node of the virtual cluster with what runs on it: guard, lives, daemon, and what they leave."""

from collections.abc import Callable
from functools import partial

from muster.core import effects
from muster.core.leases.memory import Remembered
from muster.core.node import insight
from muster.records.units import US_PER_MS
from muster.sim.world.bare_machine import BareMachine
from muster.sim.world.daemon import Daemon
from muster.sim.world.guard import Guard
from muster.sim.world.leftovers import Leftovers
from muster.sim.world.life import ToGuard, VirtualLife
from muster.sim.world.surroundings import VirtualSurroundings
from muster.sim.world.time import Process
from muster.sim.world.watchdog import VirtualWatchdog

HandOver = Callable[[BareMachine, effects.WatchLife], bool]  # whether the guard asked about hands a descriptor to it


class Machine(BareMachine):
    """A node that can be switched on and off. It alone knows its guard and its daemon."""

    def __init__(
        self, world: VirtualSurroundings, node: int, stopped: "Callable[[Machine], None]", hand_over: HandOver
    ) -> None:
        """`stopped` is called each time that its guard has ended."""
        super().__init__(world, node)
        self._stopped, self._hand_over = stopped, hand_over
        self.guard: Guard | None = None
        self.leftovers = Leftovers(self)
        self.lives: list[VirtualLife] = []  # those that have not ended; an earlier one may still be dying
        kind = world.settings.watchdogs
        self.watchdog = VirtualWatchdog(world, node, kind, self._reset_by_watchdog) if kind else None

    @property
    def is_on(self) -> bool:
        """Whether a guard runs: it may still be waiting for its predecessor's proof."""
        return self.guard is not None

    @property
    def life(self) -> VirtualLife | None:
        """The incarnation that runs now, if any."""
        return self.guard.life if self.guard is not None else None

    @property
    def daemon(self) -> Daemon | None:
        """The daemon that runs now, if any."""
        daemon = self.life.daemon if self.life is not None else None
        assert daemon is None or isinstance(daemon, Daemon)
        return daemon

    def runs(self, incarnation: int) -> bool:
        """Whether anything of this incarnation runs here still, by the word of its own kernel."""
        return any(life.incarnation == incarnation for life in self.lives)

    def boot(self) -> None:
        """Start the guard, if none runs."""
        if self.guard is not None or self.node in self.world.outlets.off:
            return
        # The last run's caretaker is ended first, when a write of it has landed; its lease writer holds the home.
        stalls = self.access.held_until_us > self.world.loop.now_us
        if stalls or self.leftovers.writing or self.access.waits_for_write("lease"):
            self.world.loop.after(5 * US_PER_MS, self.boot)
            return
        self.leftovers.end_caretaker()
        self.access.store = self.world.store
        self.guard = Guard(
            self, self.boot_clock(), sweep=self._sweep, begin=self._begin, ended=self._guard_ended,
            hand_over=lambda asked: self._hand_over(self, asked), watchdog=self.watchdog,
        )  # fmt: skip
        self.guard.boot()

    def _begin(self, guard: Guard, incarnation: int) -> VirtualLife:
        """A guard holds the lease: its node's new incarnation begins."""
        life = VirtualLife(
            self, guard.clock, incarnation, self.leftovers, self._new_daemon,
            lambda: self._life_ended(guard, incarnation),
        )  # fmt: skip
        self.lives.append(life)
        guard.owes(self.leftovers.owed())
        self.leftovers.boot(incarnation, guard.owes)
        return life

    def _new_daemon(self, life: VirtualLife) -> Daemon:
        return Daemon(
            life, tell_guard=lambda what: self._tell_guard(life, what), restart=self._restart_daemon,
            remember=self._remember,
        )  # fmt: skip

    def _tell_guard(self, life: VirtualLife, what: ToGuard) -> None:
        """The daemon of a life tells its guard something, which hears it while it is the machine's."""
        guard = self.guard
        if guard is not None and guard.life is life:
            self.world.loop.deliver_after(100, guard.process, guard.hear, what)

    def _life_ended(self, guard: Guard, incarnation: int) -> None:
        """Nothing of this incarnation runs any more; its guard may still be at work."""
        if self.guard is None or self.guard is guard:  # else the next run has begun: it clears this at its boot
            self.leftovers.ended(incarnation, guard.process)

    def _guard_ended(self, guard: Guard) -> None:
        """The guard is gone, and its node with it."""
        guard.process.kill()
        self.lives = [life for life in self.lives if not life.ended]
        if self.guard is guard:
            self.guard = None
            self._stopped(self)

    @property
    def is_paused(self) -> bool:
        """Whether anything of it was stopped by SIGSTOP."""
        held = self.life.held if self.life is not None else []
        return any(process.paused_at_us is not None for process in self.processes("daemon") if process not in held)

    def _remember(self) -> None:
        """The daemon writes into the home what its node knows for certain."""
        daemon = self.daemon
        if daemon is not None and daemon.node is not None:
            index, term, terms = insight.remembered(daemon.node)
            incarnation = daemon.life.incarnation
            self.remembered = Remembered(*self.access.store.ids, index, term, dict(terms), incarnation, self.node)

    def _sweep(self) -> None:
        """A boot ends what earlier incarnations have left below their control groups (P7.11)."""
        for life in self.lives:
            if life is not self.life:
                life.sweep()

    def let_go(self) -> None:
        """Nothing waits in the kernel any more."""
        for life in list(self.lives):
            life.release()
        if self.guard is not None:
            self.guard.wake()

    def _reset_by_watchdog(self) -> None:
        """Everything ends, and the machine comes up again."""
        had_guard = self.guard is not None
        self.power_cut()
        if not had_guard:
            self._stopped(self)

    def power_cut(self) -> None:
        """Everything ends now."""
        if self.watchdog is not None:
            self.watchdog.power_cut()
        for life in self.lives:
            life.power_cut()
        if self.guard is not None:
            self.guard.power_cut()
        self.leftovers.power_cut()

    def kill(self, which: str) -> None:
        """SIGKILL to one process; what its death causes follows (docs/ARCHITECTURE.md)."""
        guard, life = self.guard, self.life
        if guard is None:
            return
        if which == "guard":
            guard.die("its guard was killed")
        elif life is not None and not life.stopping:
            if which == "runner":
                life.runner.process.kill()
                self.world.loop.deliver_after(2 * US_PER_MS, guard.process, guard.panic, "the runner has ended")
            elif which == "watcher":
                life.kill_watcher()
            elif life.daemon is not None:
                self._daemon_dies(life)

    def _restart_daemon(self) -> None:
        """The daemon ends for a successor, as it was asked to (P10.3)."""
        life = self.life
        if life is not None and not life.stopping and life.daemon is not None:
            self._daemon_dies(life, asked_for=True)

    def _daemon_dies(self, life: VirtualLife, *, asked_for: bool = False) -> None:
        loop = self.world.loop
        assert life.daemon is not None
        life.daemon.end(silently=False)
        life.kept.lose(loop.now_us - int(self.world.random.random() * 2 * US_PER_MS))
        life.daemon = None
        if self.guard is not None:
            loop.deliver(self.guard.process, partial(self.guard.daemon_ended, life, asked_for=asked_for))
        back_us = loop.now_us + int((5 + self.world.random.random() * 250) * US_PER_MS)
        # A process has not ended before its system calls have: its writes under way land first.
        restart_us = max(back_us, self.access.busy_until_us + 1)
        loop.at(restart_us, loop.deliver, life.init, life.start_daemon)

    def plug(self, plugged: bool) -> None:
        """Its own interfaces have a link, or none; its daemon sees that when it looks next (SPEC 7.4)."""
        if plugged != self.plugged:
            self.plugged = plugged
            if self.daemon is not None:
                self.daemon.watch_own_links()

    def processes(self, which: str) -> list[Process]:
        """The processes that `which` names: `guard`, `daemon`, `runner`, `watcher` or `all`."""
        found = []
        if self.guard is not None and which in ("guard", "all"):
            found.append(self.guard.process)
        if self.life is not None:
            if which in ("runner", "all"):
                found.append(self.life.runner.process)
            if which == "all":
                found.append(self.life.init)
            if self.life.watcher is not None and which in ("watcher", "all"):
                found.append(self.life.watcher.process)
            if self.life.daemon is not None and which in ("daemon", "all"):
                found.append(self.life.daemon.process)
        return found
