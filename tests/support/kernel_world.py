"""The kernels' lockspaces in virtual time, on the nodes of `lock_world.py`, and a checker (P12.30-P12.36).

`KernelWorld(seed).run()` is one history: lockspaces are made and given up on all nodes, a kernel takes its time for
each command, nodes die, pause, are cut off, join and leave at any moment, lock processes are told to end. The kernel
here is a model of Linux's: what is started grants locks among its members, who waits to be let in waits until it is
told, and what has not been stopped goes on.

The checker looks at every command that a kernel carries out. It knows all kernels, those of the dead as well, until
their deaths are proven.
"""

from dataclasses import dataclass

from lock_world import Broken, Host, World
from muster.core.locks.kernel import Command, End, Reach, Refuse, Seat, Start, Stop
from muster.core.locks.recovery import Phase

NAMES = ("fs1", "fs2")


@dataclass
class KernelSpace:
    """A lockspace of one kernel: `awaits` is the answer that it waits for, `enter`, `end` or nothing."""

    awaits: str = "enter"
    is_in: bool = False
    runs: bool = False
    members: frozenset[int] = frozenset()
    identity: int = 0


class Kernel:
    """That of one machine: commands are carried out one after the other."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.spaces: dict[str, KernelSpace] = {}
        self.commands: list[tuple[int, Command]] = []
        self.is_busy = False
        self.reach: dict[int, str] = {}
        self.starts = self.refused = 0

    @property
    def seat(self) -> Seat:
        """Whose it is."""
        return self.host.node, str(self.host.life)


class KernelWorld(World):
    """One seeded history."""

    def __init__(self, seed: int, *, faults: int = 8, actions: int = 120) -> None:
        super().__init__(seed, faults=faults, actions=actions, names=1)
        self.kernels: dict[tuple[int, int], Kernel] = {}
        self.starts = self.entered_spaces = self.ends = 0
        self.is_on = True
        self.over: set[tuple[int, int]] = set()  # lock processes that are told to end

    # ---- kernels

    def kernel(self, host: Host) -> Kernel:
        """That of a host; each boot has another one."""
        if host.identity not in self.kernels:
            self.kernels[host.identity] = Kernel(host)
            host.manager.kernel.is_on = self.is_on
        return self.kernels[host.identity]

    def effects(self, host: Host) -> None:
        """As there; and what the kernel is to do."""
        kernel = self.kernel(host)
        kernel.commands += host.manager.kernel.take()
        super().effects(host)
        kernel.commands += host.manager.kernel.take()
        self.go_on(kernel)

    def go_on(self, kernel: Kernel) -> None:
        """The next command takes its time; of a machine that is paused, too."""
        if kernel.commands and not kernel.is_busy:
            kernel.is_busy = True
            self.after(self.random.choice([1, 50, 2000]), self.carry_out, kernel)

    def carry_out(self, kernel: Kernel) -> None:
        """One command, unless the machine has ended."""
        host = kernel.host
        if not host.alive:
            return
        if host.paused:
            host.deferred.append((self.carry_out, (kernel,)))
            return
        kernel.is_busy = False
        number, command = kernel.commands.pop(0)
        self.obey(kernel, command)
        self.deliver(host, host.manager.kernel_has_done, number)
        self.go_on(kernel)

    def obey(self, kernel: Kernel, command: Command) -> None:
        """What Linux would do."""
        match command:
            case Reach(seats):
                kernel.reach = dict(seats)
            case Stop(name):
                kernel.spaces[name].runs = False
            case Start(name, identity, nodes, enters):
                self.start(kernel, name, identity, frozenset(nodes), enters=enters)
            case End(name):
                space = kernel.spaces[name]
                if space.awaits != "end":
                    raise Broken(f"{kernel.seat}: {name} is ended, and it waits for {space.awaits or 'nothing'}")
                del kernel.spaces[name]
                self.ends += 1
            case Refuse(name):
                if kernel.spaces[name].awaits == "enter":
                    del kernel.spaces[name]
                kernel.refused += 1

    def start(self, kernel: Kernel, name: str, identity: int, nodes: frozenset[int], *, enters: bool) -> None:
        """Only where all have stopped, and agree (P12.30)."""
        space = kernel.spaces[name]
        if space.runs:
            raise Broken(f"{kernel.seat}: {name} is started, and was not stopped")
        if kernel.host.node not in nodes or not nodes <= kernel.reach.keys():
            raise Broken(f"{kernel.seat}: {name} is started with {set(nodes)} and reaches {kernel.reach}")
        if enters != (space.awaits == "enter") and space.awaits != "end":
            raise Broken(f"{kernel.seat}: {name} is started with enters={enters}, and waits for {space.awaits!r}")
        for other in self.kernels.values():
            if other is not kernel and (other.host.node, other.host.incarnation) not in self.master.dead:
                self.judge(kernel, other, Start(name, identity, tuple(nodes), enters))
        space.runs, space.members, space.identity = True, nodes, identity
        self.starts += 1
        if enters:
            space.is_in, space.awaits = True, ""
            self.entered_spaces += 1

    @staticmethod
    def judge(kernel: Kernel, other: Kernel, start: Start) -> None:
        """Another kernel, alive or not proven dead, where this one starts a lockspace."""
        name, nodes = start.name, frozenset(start.nodes)
        if any(known != name and each.runs and each.identity == start.identity for known, each in other.spaces.items()):
            raise Broken(f"{name} has the number of another lockspace of {other.seat}")
        there = other.spaces.get(name)
        has_given_up = there is not None and there.awaits == "end" and not there.runs  # and waits to be let go
        if there is None or not there.is_in or has_given_up:
            return
        if other.host.node not in nodes or kernel.reach.get(other.host.node) != other.seat[1]:
            raise Broken(f"{kernel.seat}: {name} is started without {other.seat}, which is in it and not proven dead")
        if there.runs and there.members != nodes:
            raise Broken(f"{kernel.seat}: {name} with {set(nodes)}; {other.seat} goes on with {set(there.members)}")
        if there.identity != start.identity:
            raise Broken(f"{name} has two numbers")

    # ---- what machines do

    def act(self) -> None:
        """A file system is mounted or unmounted somewhere."""
        host = self.hosts.get(self.random.randrange(self.nodes))
        if host is None or not host.alive or host.paused:
            return
        kernel, name = self.kernel(host), self.random.choice(NAMES)
        space = kernel.spaces.get(name)
        if space is None:
            kernel.spaces[name] = KernelSpace()
            self.deliver(host, lambda: host.manager.kernel_asks(name, enters=True))
        elif space.awaits != "end" and (space.is_in or self.may_abandon(kernel, name)):
            self.give_up_space(host, name)

    def may_abandon(self, kernel: Kernel, name: str) -> bool:
        """Whether who waits is killed; an answer that is on its way would be taken for that to the end."""
        is_under_way = any(isinstance(command, Start) and command.name == name for _, command in kernel.commands)
        return not is_under_way and self.random.random() < 0.3

    def give_up_space(self, host: Host, name: str) -> None:
        """Unmounted, or who waited is killed."""
        space = self.kernel(host).spaces[name]
        space.awaits = "end"
        self.deliver(host, lambda: host.manager.kernel_asks(name, enters=False))

    def restart(self, host: Host) -> None:
        """Its process is told to end: whoever waits is refused, and it ends when there is no lockspace (P12.34)."""
        self.over.add(host.identity)
        self.deliver(host, host.manager.kernel.give_up)
        self.after(self.random.randrange(1, 500), self.end_when_unused, host)

    def end_when_unused(self, host: Host) -> None:
        """As the process does it: not before the kernel has no lockspace, nor with anything left to do."""
        kernel = self.kernel(host)
        is_unused = not kernel.spaces and not kernel.commands and not host.manager.kernel.spaces
        if self.may_restart(host) and is_unused:
            super().restart(host)
        elif host.alive and not self.is_down(host.node):
            self.after(500, self.end_when_unused, host)

    # ---- the end

    def settle(self) -> None:
        """All faults are over, and whatever leaves unmounts."""
        self.draining = True
        self.cut.clear()
        for host in self.hosts.values():
            if host.paused and host.alive:
                self.wake(host)
        for round_ in range(400):
            self.until(self.now + 2000)
            for host in list(self.hosts.values()):
                is_over = host.manager._locking.is_leaving or host.identity in self.over
                if host.alive and not host.paused and is_over:
                    for name, space in self.kernel(host).spaces.items():
                        if space.awaits == "" and space.is_in:
                            self.give_up_space(host, name)
            if round_ > 20 and self.is_quiet():
                return
        raise Broken(f"no rest: {self.describe()}")

    def is_quiet(self) -> bool:
        """Whether nothing is under way any more."""
        living = [host for host in self.hosts.values() if host.alive and not self.is_down(host.node)]
        return (
            not self.master.database.transitions
            and not any(host.seat.is_behind for host in living)
            and all(not kernel.commands and not kernel.is_busy for kernel in map(self.kernel, living))
            and all(host.manager.recovery.phase is Phase.AT_REST for host in self.members())
            and all(host.identity not in self.over for host in living)
            and all(not space.awaits for host in living for space in self.kernel(host).spaces.values())
        )

    def drain(self) -> None:
        """Nobody has locks here."""

    def describe(self) -> str:
        """For whoever looks for a mistake."""
        return "; ".join(
            f"{host.identity} {'alive' if host.alive else 'dead'} {host.manager.recovery.phase.name} "
            f"{self.kernel(host).spaces} {len(self.kernel(host).commands)}"
            for host in self.hosts.values()
        )

    def agree(self) -> None:
        """At rest every lockspace runs on each of its members, with exactly these."""
        living = [host for host in self.hosts.values() if host.alive and not self.is_down(host.node)]
        for name in NAMES:
            here = {host.node for host in living if name in self.kernel(host).spaces}
            for host in living:
                space = self.kernel(host).spaces.get(name)
                if space is not None and (not space.runs or space.members != here):
                    raise Broken(f"{name} on {host.identity}: {space}, and it is on {here}")
