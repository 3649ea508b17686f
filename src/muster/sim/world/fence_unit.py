"""Fence devices of the virtual world, and the outlets of the nodes that they switch (P7.22-P7.29).

Each device has an outlet for each node, and all of them switch the same power: a node without it runs nothing, and does
not boot. A call runs in the runner of the node that makes it: a runner that is stopped is late, one that has ended has
ended its agents. What a device does wrong is said by its mode. `status` is always true: nothing survives one
that is not (docs/FENCING.md).
"""

from collections.abc import Callable
from random import Random

from muster.core.effects import CallFenceAgent
from muster.records.fencing import FenceDevice, FenceMethod, FencePlan, FenceStep
from muster.records.units import US_PER_MS
from muster.sim.history import FenceCalled, FenceStatus, History
from muster.sim.world.time import EventLoop, Process

MODES = ("well", "slow", "fails", "lies", "hangs")
CALL_MS = 2000  # that a call may take
BOOT_US = 400_000  # from the power to the boot, and as much again by chance
PLUG = "plug"

Answer = Callable[[int, bool, str], None]  # number of the call, whether it has succeeded, why it has not


def devices(names: tuple[str, ...]) -> dict[str, FenceDevice]:
    """The records of the devices."""
    return {name: FenceDevice(name, "fence_sim", timeout_ms=CALL_MS) for name in names}


def plan(node: int, names: tuple[str, ...]) -> FencePlan:
    """A node that is fenced by each of the devices, the first one first."""
    methods = (FenceMethod(name, "reboot", (FenceStep(name, ((PLUG, str(node)),)),)) for name in names)
    return FencePlan(node, tuple(methods))


class Outlets:
    """The power of all nodes, and the devices. `cut` and `give` are what becomes of a machine."""

    def __init__(self, loop: EventLoop, history: History, names: tuple[str, ...], lease_ms: int) -> None:
        self.off: set[int] = set()
        self.modes = dict.fromkeys(names, "well")
        self.cut: Callable[[int], None] = lambda _node: None
        self.give: Callable[[int], None] = lambda _node: None
        self._loop, self._history = loop, history
        self._lease_us = lease_ms * US_PER_MS
        self._random = Random(f"fencing {len(names)}")  # its own: all other chance stays as it is

    def calm(self) -> None:
        """Every device is well, and everything has its power."""
        self.modes = dict.fromkeys(self.modes, "well")
        self.off.clear()

    def call(
        self, effect: CallFenceAgent, asker: int, incarnation: int, read_us: int, runner: Process, answer: Answer
    ) -> None:
        """The agent of a device is called by what a read showed that began then; `answer` when it has ended."""
        if effect.number:
            self._history.append(
                FenceCalled(
                    self._loop.now_us, asker, incarnation, effect.device.name, effect.action, effect.node,
                    effect.incarnation, effect.number, read_us,
                )
            )  # fmt: skip
        mode, most_us = self.modes.get(effect.device.name, "fails"), effect.device.timeout_ms * US_PER_MS
        took_us = int((20 + self._random.random() * 280) * US_PER_MS)
        if mode == "slow":
            took_us = int(most_us * (0.4 + self._random.random() * 0.5))
        if mode == "hangs":
            self._loop.deliver_after(most_us, runner, answer, effect.call, False, "it has not ended in time")
            return
        due_us = self._loop.now_us + took_us
        self._loop.deliver_after(took_us, runner, self._act, effect, asker, incarnation, mode, due_us, answer)

    def _act(
        self, effect: CallFenceAgent, asker: int, incarnation: int, mode: str, due_us: int, answer: Answer
    ) -> None:
        if self._loop.now_us - due_us > self._lease_us:
            return  # it was stopped with its node, which is past its deadline: that ends it (P7.29)
        node = int(dict(effect.parameters).get(PLUG, "-1"))
        fails = mode == "fails"
        if fails and (effect.action in ("status", "monitor") or self._random.random() < 0.5):
            answer(effect.call, False, "the device does not answer")
            return
        match effect.action:
            case "off" if mode != "lies":
                self.off.add(node)
                self.cut(node)
            case "on" if mode != "lies":
                self.off.discard(node)
                self._loop.after(BOOT_US + int(self._random.random() * BOOT_US), self.give, node)
            case "status" if node not in self.off:
                answer(effect.call, False, "it says that it is on")
                return
            case "status":
                self._history.append(
                    FenceStatus(
                        self._loop.now_us, asker, incarnation, effect.device.name, node, effect.incarnation,
                        effect.number,
                    )
                )  # fmt: skip
        answer(effect.call, not fails, "it failed half way" if fails else "")
