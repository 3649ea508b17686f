"""One configured node without what runs on it: its place, its way to the store, its interfaces, its home, its work.

It is what the parts of a node know of their machine. Guard and daemon are known to `machine.Machine` alone.
"""

from collections.abc import Callable

from muster.core.leases.memory import Remembered, problem
from muster.core.mastership.tenure import newest_journal, restore
from muster.records.registers import Strip
from muster.sim.world.disk import StoreAccess
from muster.sim.world.kernel import SHARED_NAMESPACE
from muster.sim.world.surroundings import VirtualSurroundings
from muster.sim.world.time import Clock

OTHER_NAMESPACES = 100
MAXIMUM_DRIFT_PPM = 4500  # two clocks differ by less than `records.timing.DRIFT_PERCENT`
CLOCK_ORIGINS_US = 10_000_000_000


class BareMachine:
    """What there is of a node whether it is on or off."""

    def __init__(self, world: VirtualSurroundings, node: int) -> None:
        self.world, self.node = world, node
        self.name = world.settings.names[node] if world.settings.names else f"n{node}"
        self.access = StoreAccess(world.store, node)
        self.remembered: Remembered | None = None  # what its home remembers of the store (P11.2)
        self.ran_here: set[int] = set()  # incarnations that the home has recorded (P7.6)
        self.plugged = True  # its own interfaces have a link
        self.hung: set[int] = set()  # levels whose subsystem does not get on
        self._drift_ppm = int((world.random.random() * 2 - 1) * MAXIMUM_DRIFT_PPM * world.settings.drift)
        self._unfinished: list[tuple[int, Callable[[], None]]] = []  # work of hung levels

    @property
    def namespace(self) -> int:
        """The PID namespace in which this node's guard runs."""
        return OTHER_NAMESPACES + self.node if self.node in self.world.settings.elsewhere else SHARED_NAMESPACE

    def runs(self, _incarnation: int) -> bool:
        """Whether anything of this incarnation runs here still, by the word of its own kernel."""
        return False

    def is_handed_by(self, other: "BareMachine") -> bool:
        """Whether that node's guard can hand this one's a descriptor: both are in one network namespace (P7.20)."""
        return not {self.node, other.node} & self.world.settings.apart

    def point(self, what: str, stage: str) -> None:
        """This node has reached a point of its work (see `schedule.When`)."""
        self.world.point(self.node, what, stage)

    def boot_clock(self) -> Clock:
        """The clock of a boot: it starts anywhere, and drifts as the machine's clocks do."""
        return Clock(int(self.world.random.random() * CLOCK_ORIGINS_US), self._drift_ppm)

    def wrong_with(self, strip: Strip) -> str:
        """Why the opened store may not be booted on, by what the home remembers; empty where it may (P11.2)."""
        store = self.access.store
        if self.remembered is None or self.remembered.cluster_id != store.ids[0]:
            return "" if store.ids[0] == self.world.store_of_the_cluster.ids[0] else "it is another cluster's store"
        newest = newest_journal(strip)
        image = store.halves[newest[0]][newest[1].half].read(newest[1]) if newest is not None else None
        if image is None:
            return ""  # it is read again before anything is done with it
        return problem(self.remembered, store.ids[1], strip, restore(*image), self.node)

    # ---- the work of subsystems ------------------------------------------------------------------------------------

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
