"""The faults of the lab: a table of kinds, each with how it begins and how it ends (docs/LAB.md).

A fault has a kind, nodes, for some kinds an amount, and for most a duration; written
`KIND NODES [AMOUNT] [for SECONDS]` as in `slow-link n0 120 for 2.5` or `split n0,n1 for 3`. Several may be at work.
"""

import contextlib
import random
import signal
from collections.abc import Callable
from typing import NamedTuple

from lab.machines import LabCluster
from muster.client.errors import ClientError
from muster.dev import node_processes
from muster.dev.node_processes import NodeProcess
from muster.setup.errors import Mistaken

ASK_S = 1.0  # for an operation that a fault may keep from being answered
Span = tuple[float, float]


class Fault(NamedTuple):
    """One fault or change, as the table below knows it."""

    kind: str
    nodes: tuple[str, ...]
    amount: int = 0
    duration_s: float = 0.0

    def __str__(self) -> str:
        words = [self.kind, ",".join(self.nodes)]
        words += [str(self.amount)] if KINDS[self.kind].amounts else []
        words += [f"for {self.duration_s:.2f}"] if KINDS[self.kind].durations else []
        return " ".join(words)


class Faults:
    """Carries faults out, and takes them back."""

    def __init__(self, cluster: LabCluster, choices: random.Random) -> None:
        self.cluster, self.network, self.choices = cluster, cluster.network, choices
        self.services: list[str] = []  # those that may be moved
        self.hurt = False  # a fault may have ended a service, or failed a command
        self._paused: dict[Fault, list[NodeProcess]] = {}
        self._met = True  # the fault that has just begun has met something

    def begin(self, fault: Fault) -> bool:
        """Whether it met anything: a node that is down has no processes. Raises `OSError`, `ClientError`."""
        self._met = True
        KINDS[fault.kind].begin(self, fault)
        return self._met

    def end(self, fault: Fault) -> None:
        """Take a fault back. Raises as `begin`."""
        if (end := KINDS[fault.kind].end) is not None:
            end(self, fault)

    def heal(self) -> None:
        """Take back whatever is at work. Raises as `begin`."""
        self.network.heal()
        for store in self.cluster.stores.values():
            store.set("pass")
        for paused in self._paused.values():
            self._continue(paused)
        self._paused.clear()

    # ---- processes -----------------------------------------------------------------------------------------------

    def pause(self, fault: Fault, *roles: str) -> None:
        """SIGSTOP to some processes, or all, of each node."""
        struck = [process for name in fault.nodes for process in self.cluster.strike(name, signal.SIGSTOP, roles)]
        self._paused[fault], self._met = struck, bool(struck)

    def resume(self, fault: Fault) -> None:
        """SIGCONT to what this very fault has stopped, as far as it still exists."""
        self._continue(self._paused.pop(fault, []))

    def _continue(self, paused: list[NodeProcess]) -> None:
        for process in paused:
            node_processes.send(process, signal.SIGCONT)

    def kill(self, fault: Fault, *roles: str) -> None:
        """SIGKILL to some processes of each node."""
        struck = [self.cluster.strike(name, signal.SIGKILL, roles) for name in fault.nodes]
        self._met = any(struck)
        self.hurt |= bool({"keeper", "service"} & set(roles))

    def cut_power(self, fault: Fault) -> None:
        """The links go down, then everything is killed; what waits for the store then lands or is lost."""
        for name in fault.nodes:
            self.network.cut(name)
        struck = [self.cluster.strike(name, signal.SIGKILL, ("guard",)) for name in fault.nodes]
        self._met = any(struck)
        for name in fault.nodes:
            if name in self.cluster.stores:
                self.cluster.stores[name].set(self.choices.choice(("drop", "pass")))
            self.cluster.kill(name)
            self.network.join(name)

    # ---- store, links, plans -------------------------------------------------------------------------------------

    def store(self, fault: Fault, mode: str) -> None:
        """Put the stores of these nodes into a mode of `faulty_store.py`."""
        for name in fault.nodes:
            self.cluster.stores[name].set(mode)

    def links(self, fault: Fault, change: Callable[[str], None]) -> None:
        """Change the link of each of these nodes."""
        for name in fault.nodes:
            change(name)

    def ask(self, fault: Fault, operation: str, **arguments: object) -> None:
        """Ask one of the nodes for an operation; whether it answers in time is not the lab's concern."""
        with contextlib.suppress(ClientError):
            connection = self.cluster.connection_to(fault.nodes[0], ASK_S)
            connection.operate(operation, **arguments)

    def leave(self, fault: Fault) -> None:
        """A graceful leave, asked of the node's guard as the service manager does it."""
        for name in fault.nodes:
            self.cluster.strike(name, signal.SIGTERM, ("guard",))

    def transfer(self, fault: Fault) -> None:
        """Move a service, to wherever it comes to be."""
        self.ask(fault, "transfer", service=self.choices.choice(self.services))

    def restart(self, fault: Fault) -> None:
        """Take a service down and up again."""
        service = self.choices.choice(self.services)
        self.ask(fault, "deregister", service=service)
        self.ask(fault, "register", service=service)


class Kind(NamedTuple):
    """How a fault of this kind begins and ends, and what may be drawn for it."""

    words: str
    begin: Callable[[Faults, Fault], None]
    end: Callable[[Faults, Fault], None] | None = None
    durations: Span | None = None  # seconds
    amounts: tuple[int, int] | None = None
    unit: str = ""
    everybody: bool = False  # it may well strike all nodes at once
    weight: int = 2  # how often it is drawn


def _pause(words: str, durations: Span, *roles: str) -> Kind:
    return Kind(words, lambda lab, fault: lab.pause(fault, *roles), lambda lab, fault: lab.resume(fault), durations)


def _kill(words: str, *roles: str, weight: int = 2) -> Kind:
    return Kind(words, lambda lab, fault: lab.kill(fault, *roles), weight=weight)


def _store(words: str, mode: str, amounts: tuple[int, int] | None = None, unit: str = "") -> Kind:
    def begin(lab: Faults, fault: Fault) -> None:
        lab.store(fault, f"{mode} {fault.amount}" if amounts else mode)

    return Kind(words, begin, lambda lab, fault: lab.store(fault, "pass"), (0.1, 3.0), amounts, unit, everybody=True)


def _one_way(words: str, direction: str) -> Kind:
    def change(broken: bool) -> Callable[[Faults, Fault], None]:
        return lambda lab, fault: lab.links(fault, lambda name: lab.network.one_way(name, direction, broken=broken))

    return Kind(words, change(True), change(False), (0.1, 4.0))


def _shaped(
    words: str, act: Callable[[Faults, str, int], None], amounts: tuple[int, int], unit: str
) -> Kind:  # fmt: skip
    return Kind(
        words,
        lambda lab, fault: lab.links(fault, lambda name: act(lab, name, fault.amount)),
        lambda lab, fault: lab.links(fault, lambda name: act(lab, name, 0)),
        (0.3, 4.0),
        amounts,
        unit,
    )


KINDS: dict[str, Kind] = {
    "cut": Kind(
        "the link is down",
        lambda lab, fault: lab.links(fault, lab.network.cut),
        lambda lab, fault: lab.links(fault, lab.network.join),
        (0.1, 4.0),
    ),
    "one-way-from": _one_way("nothing of the node reaches the others", "from"),
    "one-way-to": _one_way("nothing of the others reaches the node", "to"),
    "split": Kind(
        "these nodes and the others do not hear each other",
        lambda lab, fault: lab.network.split(list(fault.nodes)),
        lambda lab, fault: lab.network.split(list(fault.nodes), broken=False),
        (0.1, 4.0),
    ),
    "slow-link": _shaped("frames are late", lambda lab, name, ms: lab.network.slow(name, ms), (20, 150), "ms"),
    "lossy-link": _shaped("frames get lost", lambda lab, name, part: lab.network.lossy(name, part), (5, 60), "percent"),
    "power-cut": Kind("link down, then SIGKILL to everything", Faults.cut_power, weight=4, everybody=True),
    "pause-daemon": _pause("SIGSTOP to the daemon", (0.05, 2.0), "daemon"),
    "pause-guard": _pause("SIGSTOP to the guard", (0.05, 1.5), "guard"),
    "pause-lease": _pause("SIGSTOP to the lease writer", (0.05, 1.5), "lease"),
    "pause-runner": _pause("SIGSTOP to init and the runner", (0.05, 2.0), "init", "runner"),
    "pause-node": _pause("SIGSTOP to everything, as a suspended machine", (0.05, 2.0)),
    "kill-daemon": _kill("SIGKILL to the daemon; init starts another", "daemon", weight=3),
    "kill-guard": _kill("SIGKILL to the guard", "guard"),
    "kill-lease": _kill("SIGKILL to the lease writer", "lease", weight=1),
    "kill-runner": _kill("SIGKILL to the runner", "runner", weight=1),
    "kill-service": _kill("SIGKILL to the services' processes and their keepers", "keeper", "service", weight=1),
    "store-read-only": _store("writes fail with EROFS", "read-only"),
    "store-errors": _store("reads and writes fail with EIO", "errors", (10, 100), "percent"),
    "store-slow": _store("reads and writes take longer", "slow", (20, 800), "ms"),
    "store-hang": _store("reads and writes are not answered", "hang"),
    "leave": Kind("the node is asked to leave", Faults.leave, weight=3),
    "transfer": Kind("a service is to move", Faults.transfer, weight=3),
    "restart": Kind("a service is taken down and up", Faults.restart),
}
CHANGES = ("leave", "transfer", "restart")  # what an operator does: no faults, and not counted as such


def draw(choices: random.Random, names: list[str]) -> Fault:
    """A random fault on one node, some nodes, or all."""
    kind = choices.choices(list(KINDS), [known.weight for known in KINDS.values()])[0]
    known = KINDS[kind]
    count = choices.choices((1, 2, len(names)), (85, 10, 15 if known.everybody else 1))[0]
    if kind == "split":
        count = choices.randrange(1, len(names))
    nodes = tuple(sorted(choices.sample(names, min(count, len(names)))))
    amount = choices.randint(*known.amounts) if known.amounts else 0
    return Fault(kind, nodes, amount, choices.uniform(*known.durations) if known.durations else 0.0)


def written(kind: str) -> str:
    """The form in which a fault of this kind is written."""
    known = KINDS[kind]
    amount = f" {known.unit.upper()}" if known.amounts else ""
    return f"{kind} NODES{amount}{' for SECONDS' if known.durations else ''}"


def parse_fault(words: list[str], names: list[str], where: str) -> Fault:
    """A fault from its words, as `Fault` is written. Raises `Mistaken`."""
    kind, *rest = words or [""]
    known = KINDS.get(kind)
    if known is None:
        raise Mistaken(f"there is no fault {kind!r}", where, "choose one of " + ", ".join(KINDS))
    form = written(kind)
    nodes = tuple(names if rest[:1] == ["all"] else rest[0].split(",") if rest else ())
    if not nodes or set(nodes) - set(names):
        raise Mistaken(f"{kind} needs nodes", where, f"write `{form}`; the nodes are {', '.join(names)}, or all")
    try:
        amount = int(rest[1]) if known.amounts else 0
        duration = rest[2 if known.amounts else 1 :]
        if duration[:1] != (["for"] if known.durations else []):
            raise ValueError
        return Fault(kind, nodes, amount, float(duration[1]) if known.durations else 0.0)
    except (ValueError, IndexError) as error:
        raise Mistaken(f"{' '.join(words)!r} is incomplete", where, f"write `{form}`") from error
