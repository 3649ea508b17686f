"""What all parts of a virtual cluster share: time, chance, the store, the kernel, the network, what an observer sees.

It knows none of the parts. A part gets it, or its own machine in it (`bare_machine.py`), and never the world.
"""

import zlib
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from muster.core.effects import RunCommand
from muster.core.node.built_in import RESIDENTS
from muster.core.transitions.resident import Resident
from muster.records.levels import Level
from muster.records.services import Definition
from muster.records.timing import Profile
from muster.records.units import US_PER_MS
from muster.sim.history import History
from muster.sim.world.decision_lock import VirtualDecisionLock
from muster.sim.world.disk import VirtualStore
from muster.sim.world.fence_unit import Outlets
from muster.sim.world.kernel import Kernel
from muster.sim.world.network import Network
from muster.sim.world.time import EventLoop

Point = Callable[[int, str, str], None]  # (node, what, stage): a `schedule.When` may wait for it


class Settings(NamedTuple):
    """What a virtual cluster is made of. `levels` are registered on every node, beside the event manager's."""

    nodes: int
    profile: Profile
    levels: tuple[Level, ...] = ()
    half_bytes: int = 1 << 20  # of one half of a journal
    cursed: frozenset[tuple[str, int]] = frozenset()  # (service, node): starts that always fail
    flaky: float = 0.0  # share of commands that fail
    reboots: float = 1.0  # share of nodes that boot again by themselves after they stopped
    names: tuple[str, ...] = ()  # of the nodes; empty: n0, n1, ...
    residents: tuple[Resident, ...] = RESIDENTS  # a rehearsal gives the event manager simulated work (SPEC 8.4)
    services: tuple[Definition, ...] = ()  # defined before the first node boots
    shared: bool = False  # each node is a machine of its own: an expired lease proves nothing (SPEC 7.1)
    kernel: bool = False  # all nodes run under one kernel, which is asked (P7.13); without it leases are proof
    elsewhere: frozenset[int] = frozenset()  # nodes in PID namespaces of their own: they cannot ask, nor be asked about
    apart: frozenset[int] = frozenset()  # nodes in network namespaces of their own: nothing is handed over (P7.20)
    trees: frozenset[int] = frozenset()  # nodes without a PID namespace, in a control group each (P7.11)
    hangs: float = 0.0  # share of the ends that hang in the kernel for a while
    objecting: float = 0.0  # share of planned changes to which subsystems that may object do so
    required: tuple[Level, ...] = ()  # that nodes must have before they join; each node's init starts the programs
    fenced: tuple[str, ...] = ()  # the methods by which each node is fenced, one device each (P7.22); in scope shared
    watchdogs: str = ""  # of each machine, in scope shared: `well`, `late` (as late as may be) or `board` (it waits)
    bank_ends: tuple[int, ...] = ()  # where each bank of the store's slots ends but the last one (P11.7)
    decides: bool = False  # there are lockspaces, so whoever has the decision lock decides on services (P6.42)
    drift: float = 1.0  # share of the drift that clocks may have; 0: they run alike, for people who read times


class Outcome(NamedTuple):
    """What becomes of one command."""

    duration_us: int
    succeeded: bool
    detail: str = ""  # of a failure, in words
    left: bool = True  # of a start that succeeded: something of it runs on


class VirtualSurroundings:
    """Shared by all parts of one virtual cluster."""

    def __init__(self, settings: Settings, random: Random, point: Point) -> None:
        """`point` is called when a node has reached a point of its work."""
        self.settings, self.random, self.profile = settings, random, settings.profile
        self.point = point
        self.loop = EventLoop()
        self.history: History = []
        self.stopped = False  # the core raised: nothing after that means anything
        self.calm = False  # all faults are over
        self.store = VirtualStore(
            self.loop, random, settings.nodes, settings.half_bytes, bank_ends=settings.bank_ends
        )  # that is at the path
        self.store_of_the_cluster = self.store
        self.path_is_away = False
        self.network = Network(self.loop, random, settings.nodes, self.profile.connect_ms * US_PER_MS)
        self.kernel = Kernel()
        self.outlets = Outlets(self.loop, self.history, settings.fenced, settings.profile.lease_ms)
        lock_random = Random(f"decision lock {settings.nodes}")  # apart: all other runs stay as they are
        self.decision_lock = VirtualDecisionLock(self.loop, self.history, lock_random)
        self.unanswered: set[str] = set()  # what clients have asked for and not been told the end of

    # ---- what is left to chance ----------------------------------------------------------------------------------

    def objects(self, identity: str) -> bool:
        """Whether subsystems object to what this request plans: all that are asked, and however often."""
        share = 0.0 if self.calm else self.settings.objecting
        return zlib.crc32(identity.encode()) % 1000 < 1000 * share

    def work_us(self, _level: int) -> int:
        """How long a subsystem takes for one barrier."""
        long = not self.calm and self.random.random() < 0.1
        return int(self.random.random() * (400 if long else 12) * US_PER_MS)

    def decide(self, node: int, command: RunCommand) -> Outcome:
        """What becomes of a service's command."""
        random = self.random.random
        duration_us = int((3 + random() * 150) * US_PER_MS)
        if self.calm:
            cursed = command.action == "start" and (command.service, node) in self.settings.cursed
            return Outcome(duration_us, not cursed)
        if random() < 0.1:
            duration_us *= 6
        if random() < 0.03:  # it never ends by itself
            return Outcome(command.timeout_ms * US_PER_MS, False)
        cursed = command.action == "start" and (command.service, node) in self.settings.cursed
        share = self.settings.flaky * (0.2 if command.action == "stop" else 1.0)
        return Outcome(duration_us, not cursed and random() >= share)
