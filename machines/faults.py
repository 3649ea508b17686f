"""What happens to machines: a table of kinds, each with how it begins and how it ends (docs/LAB.md)."""

import contextlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from machines.machine import Machine, MachineFailed
from machines.systems import Systems

Span = tuple[float, float]
BOTH = (0, 1)
_ROLES = ("guard", "daemon", "runner", "lease")


class Fault(NamedTuple):
    """One fault, as the table below knows it."""

    kind: str
    names: tuple[str, ...]
    duration_s: float = 0.0
    choice: int = 0  # what else was drawn for it

    def __str__(self) -> str:
        lasting = f" for {self.duration_s:.2f}" if KINDS[self.kind].durations else ""
        return f"{self.kind} {','.join(self.names)}{lasting}"


class Faults:
    """Carries faults out, and takes them back."""

    def __init__(self, systems: Systems) -> None:
        self.systems = systems
        self.services: list[str] = []
        self.hurt = False  # a fault may have ended a service, or failed a command

    def begin(self, fault: Fault) -> None:
        """Raises `MachineFailed`, `OSError`."""
        self._on_each(fault, KINDS[fault.kind].begin)

    def end(self, fault: Fault) -> None:
        """Take a fault back. Raises as `begin`."""
        if (end := KINDS[fault.kind].end) is not None:
            self._on_each(fault, end)

    def _on_each(self, fault: Fault, act: Callable[[Machine, Fault], None]) -> None:
        with ThreadPoolExecutor(len(fault.names)) as pool:
            for done in [pool.submit(act, self.systems.machines[name], fault) for name in fault.names]:
                done.result()

    def heal(self) -> None:
        """Take back whatever is at work. Machines that are off stay so: a member turns on what it has fenced."""
        for machine in self.systems.machines.values():
            machine.set_store("pass")
            machine.thaw()
            for number in BOTH:
                machine.set_cable(number, cut=False)


class Kind(NamedTuple):
    """How a fault of this kind begins and ends, and what may be drawn for it."""

    words: str
    begin: Callable[[Machine, Fault], None]
    end: Callable[[Machine, Fault], None] | None = None
    durations: Span | None = None  # seconds
    weight: int = 2
    several: bool = False  # it may strike all machines at once


def _cut_power(machine: Machine, fault: Fault) -> None:
    machine.off(waiting=("drop", "pass")[fault.choice % 2])


def _reset(machine: Machine, fault: Fault) -> None:
    _cut_power(machine, fault)
    machine.on()


def _store(mode: str) -> Callable[[Machine, Fault], None]:
    return lambda machine, _fault: machine.set_store(mode)


def _pull(*, cut: bool, both: bool) -> Callable[[Machine, Fault], None]:
    def pull(machine: Machine, fault: Fault) -> None:
        for number in BOTH if both else (fault.choice % 2,):
            machine.set_cable(number, cut=cut)

    return pull


def _tell(script: str) -> Callable[[Machine, Fault], None]:
    """Have a command run in the machine; what is off, or on its way down, does nothing."""

    def tell(machine: Machine, _fault: Fault) -> None:
        with contextlib.suppress(MachineFailed):
            machine.run(script)

    return tell


def _kill(machine: Machine, fault: Fault) -> None:
    _tell(f"pkill -KILL -x muster-{_ROLES[fault.choice % len(_ROLES)]}")(machine, fault)


KINDS: dict[str, Kind] = {
    "power-cut": Kind("all of the machine ends, its cables first; a member turns it on again", _cut_power, weight=4),
    "power-loss": Kind(
        "the same, and somebody gives it power again",
        _cut_power,
        lambda machine, _fault: machine.on(),
        (0.5, 6.0),
        several=True,
    ),
    "reset": Kind("the power goes and comes at once", _reset),
    "reboot": Kind("systemctl reboot", _tell("systemctl reboot"), weight=3),
    "restart": Kind("systemctl restart musterd", _tell("systemctl restart --no-block musterd")),
    "kill": Kind("SIGKILL to guard, daemon, runner or lease writer", _kill),
    "freeze": Kind(
        "all of it stands still, as a paused virtual machine",
        lambda machine, _fault: machine.freeze(),
        lambda machine, _fault: machine.thaw(),
        (0.3, 12.0),
    ),
    "stall": Kind("its disk answers nothing", _store("hang"), _store("pass"), (0.2, 8.0), 3, several=True),
    "disk-errors": Kind("all reads and writes fail", _store("errors 100"), _store("pass"), (0.2, 5.0), several=True),
    "cable": Kind(
        "one of its two links is down", _pull(cut=True, both=False), _pull(cut=False, both=False), (0.5, 5.0)
    ),
    "cables": Kind("both are down", _pull(cut=True, both=True), _pull(cut=False, both=True), (0.2, 6.0)),
}


def draw(choices: random.Random, names: list[str]) -> Fault:
    """A random fault on one machine, or some."""
    kind = choices.choices(list(KINDS), [known.weight for known in KINDS.values()])[0]
    known = KINDS[kind]
    count = choices.choices((1, 2, len(names)), (85, 10, 15 if known.several else 0))[0]
    chosen = tuple(sorted(choices.sample(names, count)))
    return Fault(
        kind, chosen, choices.uniform(*known.durations) if known.durations else 0.0, choices.randrange(1 << 16)
    )
