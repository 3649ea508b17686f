"""What services leave in one machine's kernel, what its home keeps to clear that, and its caretaker (P6.32-P6.34).

What a start leaves is there from its first moment on, outlives everything that the node runs, and goes only by a stop
that succeeds, by the very cleanup of that start, or with the machine's power.
"""

from collections.abc import Callable
from typing import NamedTuple

from muster.core.effects import RunCommand
from muster.core.leases import lease as leases
from muster.records.registers import Lease, LeaseState, Owed, RegisterKind, identity_of
from muster.records.units import US_PER_MS
from muster.sim.history import KernelCleared, KernelHeld
from muster.sim.world.bare_machine import BareMachine
from muster.sim.world.disk import RegisterTarget, TwoCopyWrite
from muster.sim.world.time import Process

RETRY_US = 400 * US_PER_MS
FAILS = 0.35  # of the cleanups, until it is calm


class KeptHere(NamedTuple):
    """A cleanup in the node's home."""

    service: str
    command: tuple[str, ...]
    incarnation: int


class Held(NamedTuple):
    """What a start has left in the kernel, and what clears it."""

    generation: int
    command: tuple[str, ...]


class Leftovers:
    """What services have left in one machine, and how far its cleanups are (P6.32)."""

    def __init__(self, machine: BareMachine) -> None:
        self.machine, self.world = machine, machine.world
        self.held: dict[str, Held] = {}
        self.kept: dict[tuple[int, int], KeptHere] = {}  # by the service's identity and the generation
        self.writing = False  # the caretaker's write is on its way to the store
        self._caretaker = Process("caretaker")
        self._failed: set[int] = set()

    # --- what the node's processes do ---

    def keep(self, command: RunCommand, incarnation: int) -> None:
        """The daemon keeps the cleanup of a start before that runs."""
        if command.cleanup is not None:
            kept = KeptHere(command.service, command.cleanup.command, incarnation)
            self.kept[identity_of(command.uid, command.service), command.generation] = kept

    def newest(self, command: RunCommand) -> tuple[str, ...] | None:
        """The cleanup that is kept of the newest start of a service."""
        service = identity_of(command.uid, command.service)
        generations = [generation for kept, generation in self.kept if kept == service]
        return self.kept[service, max(generations)].command if generations else None

    def began(self, command: RunCommand, incarnation: int) -> None:
        """A start that was given a cleanup has begun."""
        if command.cleanup is not None:
            self.held[command.service] = Held(command.generation, command.cleanup.command)
            node = self.machine.node
            self.world.history.append(KernelHeld(self.world.loop.now_us, node, incarnation, command.service))

    def stopped(self, command: RunCommand) -> None:
        """A stop has succeeded: it has cleared what it is able to, and what was kept before is void."""
        if command.action != "stop":
            return
        if command.clears:
            self._clear(command.service, command.command)
        elif command.command:
            self._gone(command.service)
        for kept, generation in list(self.kept):
            if kept == identity_of(command.uid, command.service) and generation < command.generation:
                del self.kept[kept, generation]

    def power_cut(self) -> None:
        """The kernel has gone; the home knows that it is another one, whenever it is booted again."""
        self._caretaker.kill()
        self.writing = False
        for service in list(self.held):
            self._gone(service)
        self.kept.clear()

    def _clear(self, service: str, command: tuple[str, ...]) -> None:
        held = self.held.get(service)
        if held is not None and held.command == command:
            self._gone(service)

    def _gone(self, service: str) -> None:
        if self.held.pop(service, None) is not None:
            self.world.history.append(KernelCleared(self.world.loop.now_us, self.machine.node, service))

    # --- the caretaker ---

    def owed(self) -> Owed:
        """What the machine is not known to be clean of. Homes never move here: each answers for all its runs."""
        services = {service for service, _generation in self.kept}
        return Owed(0, tuple(sorted(services & self._failed)), tuple(sorted(services - self._failed)))

    def end_caretaker(self) -> None:
        """A boot ends the caretaker of the last run before anything else."""
        self._caretaker.kill()

    def boot(self, incarnation: int, owes: Callable[[Owed], None]) -> None:
        """The caretaker of a new run clears what earlier ones have left, again and again until it is clean.

        `owes` is told each time what is left.
        """
        self._caretaker = Process("caretaker")
        self._failed = set()
        if self.kept:
            self.world.loop.deliver_after(self._takes_us(), self._caretaker, self._try_at_boot, incarnation, owes)

    def _takes_us(self) -> int:
        """A cleanup takes its time: sometimes longer than a join or a recovery."""
        longest_ms = 120 if self.world.calm or self.world.random.random() < 0.5 else 2500
        return int((3 + self.world.random.random() * longest_ms) * US_PER_MS)

    def _try_at_boot(self, incarnation: int, owes: Callable[[Owed], None]) -> None:
        earlier = [key for key, kept in self.kept.items() if kept.incarnation != incarnation]
        self._run(earlier)
        owes(self.owed())
        if any(key in self.kept for key in earlier):
            self.world.loop.deliver_after(RETRY_US, self._caretaker, self._try_at_boot, incarnation, owes)

    def ended(self, incarnation: int, guard: Process) -> None:
        """Nothing of this incarnation runs any more; `guard` is its guard, which may still be at work."""
        self._caretaker.kill()
        self._caretaker = Process("caretaker")
        self._failed = set()
        delay_us = self._takes_us() if self.kept else 1000
        self.world.loop.deliver_after(delay_us, self._caretaker, self._settle, incarnation, guard)

    def _settle(self, incarnation: int, guard: Process) -> None:
        self._run(list(self.kept))
        self._say(incarnation, guard)

    def _run(self, keys: list[tuple[int, int]]) -> None:
        for key in keys:
            kept = self.kept[key]
            if not self.world.calm and self.world.random.random() < FAILS:
                self._failed.add(key[0])
                continue
            self._clear(kept.service, kept.command)
            del self.kept[key]
            self._failed.discard(key[0])

    def _say(self, incarnation: int, guard: Process) -> None:
        """Into the lease register, once nobody else writes it."""
        loop, access = self.world.loop, self.machine.access
        if guard.alive or access.waits_for_write("lease"):
            loop.deliver_after(5 * US_PER_MS, self._caretaker, self._say, incarnation, guard)
            return
        own = access.store.cells[RegisterKind.LEASE][self.machine.node].current
        if not isinstance(own, Lease) or own.stamp.incarnation != incarnation or own.state is LeaseState.NEVER:
            return
        self._write(leases.statement(own, self.owed(), "its guard has ended it"), incarnation, guard)

    def _write(self, lease: Lease, incarnation: int, guard: Process) -> None:
        access = self.machine.access
        self.writing = True

        def written(succeeded: bool) -> None:
            self.writing = False
            if not succeeded:
                self.world.loop.deliver_after(50 * US_PER_MS, self._caretaker, self._say, incarnation, guard)

        cell = access.store.cells[RegisterKind.LEASE][self.machine.node]
        TwoCopyWrite(access, self._caretaker, "statement", RegisterTarget(access.store, cell, lease), written)
