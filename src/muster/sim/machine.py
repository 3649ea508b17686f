"""One configured node of the virtual cluster: its clock, its way to the store, and what runs on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from muster.sim.daemon import Daemon
from muster.sim.disk import StoreAccess
from muster.sim.events import US_PER_MS, Clock, Process
from muster.sim.guard import Guard, Life

if TYPE_CHECKING:
    from muster.sim.world import World

MAXIMUM_DRIFT_PPM = 4500  # two clocks differ by less than `records.timing.DRIFT_PERCENT`
CLOCK_ORIGINS_US = 10_000_000_000


class Machine:
    """A node that can be switched on and off."""

    def __init__(self, world: World, node: int) -> None:
        self.world, self.node = world, node
        self.name = world.settings.names[node] if world.settings.names else f"n{node}"
        self.access = StoreAccess(world.store, node)
        self.guard: Guard | None = None
        self.lives: list[Life] = []  # those that have not ended; an earlier one may still be dying
        self.plugged = True  # its own interfaces have a link
        self.hung: set[int] = set()  # levels whose subsystem does not get on
        self._drift_ppm = int((world.random.random() * 2 - 1) * MAXIMUM_DRIFT_PPM * world.settings.drift)
        self._unfinished: list[tuple[int, Callable[[], None]]] = []  # work of hung levels

    @property
    def is_on(self) -> bool:
        """Whether a guard runs: it may still be waiting for its predecessor's proof."""
        return self.guard is not None

    @property
    def life(self) -> Life | None:
        """The incarnation that runs now, if any."""
        return self.guard.life if self.guard is not None else None

    @property
    def daemon(self) -> Daemon | None:
        """The daemon that runs now, if any."""
        return self.life.daemon if self.life is not None else None

    def point(self, what: str, stage: str) -> None:
        """This node's store traffic has reached a point (see `schedule.When`)."""
        self.world.point(self.node, what, stage)

    def boot(self) -> None:
        """Start the guard, if none runs."""
        if self.guard is not None:
            return
        clock = Clock(int(self.world.random.random() * CLOCK_ORIGINS_US), self._drift_ppm)
        self.guard = Guard(self, clock)
        self.guard.boot()

    def start_daemon(self, life: Life) -> None:
        """Init starts the daemon (again)."""
        if life.stopping or life.daemon is not None:
            return
        life.daemon = Daemon(life)
        life.daemon.load()

    def guard_ended(self, guard: Guard) -> None:
        """The guard is gone, and its node with it."""
        guard.process.kill()
        self.lives = [life for life in self.lives if not life.ended]
        if self.guard is guard:
            self.guard = None
            self.world.machine_stopped(self)

    def power_cut(self) -> None:
        """Everything ends now."""
        for life in self.lives:
            life.stop("power cut", 0, lost_power=True)
        if self.guard is not None:
            self.guard.die("power cut", lost_power=True)

    def kill(self, which: str) -> None:
        """SIGKILL to one process; what its death causes follows (docs/ARCHITECTURE.md)."""
        guard, life = self.guard, self.life
        if guard is None:
            return
        if which == "guard":
            guard.die("its guard was killed", lost_power=False)
        elif life is not None and not life.stopping:
            if which == "runner":
                life.runner.process.kill()
                self.world.loop.deliver_after(2 * US_PER_MS, guard.process, guard.panic, "the runner has ended")
            elif which == "watcher":
                life.kill_watcher()
            elif life.daemon is not None:
                self._daemon_dies(life)

    def _daemon_dies(self, life: Life) -> None:
        loop = self.world.loop
        assert life.daemon is not None
        life.daemon.end(silently=False)
        life.kept.lose(loop.now_us - int(self.world.random.random() * 2 * US_PER_MS))
        life.daemon, life.daemon_absent_us = None, loop.now_us
        back_us = loop.now_us + int((5 + self.world.random.random() * 250) * US_PER_MS)
        # A process has not ended before its system calls have: its writes under way land first.
        restart_us = max(back_us, self.access.busy_until_us + 1)
        loop.at(restart_us, loop.deliver, life.init, self.start_daemon, life)

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

    def work(self, level: int, done: Callable[[], None]) -> None:
        """A subsystem processes one barrier; `done` when it has, in the world's own time."""
        self.world.loop.after(self.world.work_us(level), self._worked, level, done)

    def _worked(self, level: int, done: Callable[[], None]) -> None:
        if level in self.hung:
            self._unfinished.append((level, done))
        else:
            done()

    def unhang(self, level: int) -> None:
        """A hung subsystem finishes what it had begun."""
        self.hung.discard(level)
        waiting, self._unfinished = self._unfinished, []
        for waiting_level, done in waiting:
            self._worked(waiting_level, done)
