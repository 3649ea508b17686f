"""A machine's watchdog in the virtual world: the device, and the process that feeds it (P7.30 to P7.36).

The feeder runs the machine of `core.leases.watchdog` that the real one runs. The device counts on the machine's clock,
and what it resets ends at that instant, whatever it waited for. It is as late as its times allow, or a little less.
"""

from collections.abc import Callable

from muster.core.leases.watchdog import Feeding
from muster.records.registers import Armed
from muster.records.timing import FAST, Profile, WatchdogTimes
from muster.records.units import US_PER_MS
from muster.sim.history import Logged
from muster.sim.world.surroundings import VirtualSurroundings
from muster.sim.world.time import Clock, Process

WATCHED = FAST._replace(
    name="watched", lease_ms=600 + FAST.panic_bound_ms, watchdog_ms=1000, reset_ms=100, stall_ms=250, write_ms=50
)  # its panic bound is what a panic takes; that of a node follows its watchdog (P7.31)
IDENTITY = "virtual watchdog"
FOREVER_US = 1 << 60


def retimed(profile: Profile, deadline_ms: int, watchdog_ms: int) -> Profile:
    """The profile with another deadline and another timeout of its watchdog; its panic bound is what a panic takes."""
    return profile._replace(lease_ms=deadline_ms + profile.panic_bound_ms, watchdog_ms=watchdog_ms)


class VirtualWatchdog:
    """The device of one machine, its holder and its feeder: all that outlives a guard."""

    def __init__(self, world: VirtualSurroundings, node: int, kind: str, reset: Callable[[], None]) -> None:
        """`reset` is what becomes of the machine. `kind`: see `Settings.watchdogs`."""
        self._world, self._node, self._kind, self._reset = world, node, kind, reset
        self._feeder = Process("feeder")
        self._clock: Clock | None = None  # of the boot that has armed it; none: it does not run
        self._armed_us = 0  # counts the armings: an expiry that was planned before one means nothing
        self._fed_us = 0  # world time
        self._deadline_us = FOREVER_US  # as the guard published it, by the machine's clock
        self._timer_us = FOREVER_US  # when the kernel ends the feeder
        self._wanted_ms = self.set_ms = 0
        self._feeding = Feeding(1000)
        self._times = WatchdogTimes(1000, 1000, 0, late_excluded=True)

    @property
    def is_armed(self) -> bool:
        """Whether it runs."""
        return self._clock is not None

    def armed(self, profile: Profile) -> Armed:
        """What it is when it is armed with the timeout of a profile."""
        times = WatchdogTimes(
            profile.watchdog_ms, profile.granularity_ms, profile.reset_ms, late_excluded=self._kind != "board"
        )
        return Armed(IDENTITY, times, proves=True)

    def arm(self, guard: Process, clock: Clock, armed: Armed, then: Callable[[Armed | None], None]) -> None:
        """Open it, set it, read it back: that takes its time, and may fail. It can be opened once."""
        random = self._world.random.random
        slow = not self._world.calm and random() < 0.15
        fails = self.is_armed or (not self._world.calm and random() < 0.05)
        delay_us = int((1 + random() * (1500 if slow else 20)) * US_PER_MS)
        self._world.loop.deliver_after(delay_us, guard, self._opened, clock, armed, fails, then)

    def _opened(self, clock: Clock, armed: Armed, fails: bool, then: Callable[[Armed | None], None]) -> None:
        if fails or self.is_armed:
            then(None)
            return
        self._clock, self._times = clock, armed.times
        self._armed_us += 1
        self._deadline_us = self._timer_us = FOREVER_US
        self._wanted_ms = self.set_ms = armed.times.timeout_ms
        self._feeder, self._feeding = Process("feeder"), Feeding(self.set_ms)
        self._feed()
        self._look(self._armed_us)
        then(armed)

    def extend(self, deadline_us: int) -> None:
        """The guard publishes its deadline, after its own deadman was moved there."""
        self._deadline_us = deadline_us

    def want(self, timeout_ms: int) -> None:
        """The guard wants another timeout."""
        self._wanted_ms = timeout_ms

    def close(self) -> None:
        """Magic close: it stops."""
        self._clock = None
        self._feeder.kill()

    def guard_ends(self) -> None:
        """The holder sees its guard gone: where no deadline was ever published, nothing has run."""
        if self._deadline_us == FOREVER_US:
            self.close()

    def power_cut(self) -> None:
        """The machine has lost its power, or was reset."""
        self.close()

    # ---- the feeder --------------------------------------------------------------------------------------------------

    def _look(self, arming: int) -> None:
        clock, loop = self._clock, self._world.loop
        if clock is None or arming != self._armed_us:
            return
        now_us = clock.local_us(loop.now_us)
        turn = self._feeding.turn(now_us, self._deadline_us)
        if turn.timer_us != self._timer_us:
            self._timer_us = turn.timer_us
            loop.at(clock.world_us(turn.timer_us), self._kernel_ends_feeder, arming)
        if turn.may and self._wanted_ms != self._feeding.timeout_ms:
            delay_us = int(self._world.random.random() * 120 * US_PER_MS)  # a slow device
            loop.deliver_after(delay_us, self._feeder, self._set, arming, self._wanted_ms)
        elif turn.due:
            self._feeding.fed(now_us)
            waits_us = self._times.timeout_ms * US_PER_MS * 3 // 5 if self._kind == "board" else 0
            loop.after(
                int(self._world.random.random() * waits_us), self._lands, arming
            )  # whatever becomes of the feeder
        pause_us = self._feeding.pause_us(now_us, self._deadline_us)
        loop.deliver_after(pause_us, self._feeder, self._look, arming)

    def _kernel_ends_feeder(self, arming: int) -> None:
        """Its own timer: it fires whatever the feeder does, if it was not moved since."""
        clock = self._clock
        if clock is not None and arming == self._armed_us and self._world.loop.now_us >= clock.world_us(self._timer_us):
            self._feeder.kill()

    def _set(self, arming: int, timeout_ms: int) -> None:
        clock = self._clock
        if clock is None or arming != self._armed_us:
            return
        if self._feeding.turn(clock.local_us(self._world.loop.now_us), self._deadline_us).may:
            self._feeding.timeout_ms = self.set_ms = timeout_ms
            self._times = self._times._replace(timeout_ms=timeout_ms)
            self._feed()

    def _lands(self, arming: int) -> None:
        if self.is_armed and arming == self._armed_us:
            self._feed()

    # ---- the device --------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Its time begins anew."""
        clock = self._clock
        assert clock is not None
        self._fed_us = self._world.loop.now_us
        share = 0.97 if self._kind != "well" or self._world.random.random() < 0.3 else self._world.random.random()
        late_ms = share * (self._times.granularity_ms + self._times.reset_ms)
        expires_us = clock.local_us(self._fed_us) + self._times.timeout_ms * US_PER_MS + int(late_ms * US_PER_MS)
        self._world.loop.at(clock.world_us(expires_us), self._expires, self._armed_us, self._fed_us)

    def _expires(self, arming: int, fed_us: int) -> None:
        if self.is_armed and (arming, fed_us) == (self._armed_us, self._fed_us):
            self._world.history.append(Logged(self._world.loop.now_us, self._node, "its watchdog resets the machine"))
            self._reset()
