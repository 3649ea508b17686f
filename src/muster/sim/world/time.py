"""The virtual world's time: one heap of events, integer microseconds, and processes that pause and die.

Everything in a run happens because an event in this heap came due; equal times keep the order in which they were
scheduled. So one seed gives one history, on every machine.
"""

import heapq
from collections.abc import Callable
from typing import Any

US_PER_S = 1_000_000
MAXIMUM_DEFERRED = 20_000  # what a paused process finds waiting; more is lost, as in a full socket buffer

Action = Callable[..., None]


class Process:
    """Something that runs: it can be paused and resumed, and it dies once."""

    __slots__ = ("alive", "deferred", "in_kernel", "lost_power", "name", "paused_at_us")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.lost_power = False  # it died in a power cut: its writes under way may land, tear or vanish
        self.paused_at_us: int | None = None
        self.in_kernel = False  # it waits there: no signal reaches it
        self.deferred: list[tuple[Action, tuple[Any, ...]]] = []

    @property
    def running(self) -> bool:
        """Whether it takes instructions now."""
        return self.alive and self.paused_at_us is None

    def kill(self) -> None:
        """End it, paused or not; nothing it was about to do happens."""
        self.alive = False
        self.deferred.clear()


class EventLoop:
    """The heap of events, and now."""

    def __init__(self) -> None:
        self.now_us = 0
        self.events_run = 0
        self._order = 0
        self._heap: list[tuple[int, int, Action, tuple[Any, ...]]] = []

    def at(self, time_us: int, action: Action, *arguments: Any) -> None:
        """Run `action` at `time_us`, or now if that is past."""
        self._order += 1
        heapq.heappush(self._heap, (max(time_us, self.now_us), self._order, action, arguments))

    def after(self, delay_us: int, action: Action, *arguments: Any) -> None:
        """Run `action` in `delay_us`."""
        self._order += 1
        heapq.heappush(self._heap, (self.now_us + delay_us, self._order, action, arguments))

    def run_until(self, time_us: int) -> None:
        """Run every event up to and including `time_us`."""
        heap = self._heap
        pop = heapq.heappop
        while heap and heap[0][0] <= time_us:
            self.now_us, _, action, arguments = pop(heap)
            self.events_run += 1
            action(*arguments)
        self.now_us = max(self.now_us, time_us)

    def deliver(self, process: Process, action: Action, *arguments: Any) -> None:
        """Run `action` in `process`: now, or when it is resumed, or never if it is dead."""
        if process.paused_at_us is None:
            if process.alive:
                action(*arguments)
        elif process.alive and len(process.deferred) < MAXIMUM_DEFERRED:
            process.deferred.append((action, arguments))

    def deliver_after(self, delay_us: int, process: Process, action: Action, *arguments: Any) -> None:
        """`deliver`, in `delay_us`."""
        self.after(delay_us, self.deliver, process, action, *arguments)

    def pause(self, process: Process) -> None:
        """Stop a process (SIGSTOP): what comes due for it waits."""
        if process.alive and process.paused_at_us is None:
            process.paused_at_us = self.now_us

    def hold(self, process: Process) -> None:
        """It waits in the kernel from now on."""
        process.in_kernel = True
        self.pause(process)

    def let_go(self, process: Process) -> None:
        """What it waited for has come: it goes on."""
        process.in_kernel = False
        self.resume(process)

    def resume(self, process: Process) -> None:
        """Continue a process (SIGCONT): what waited happens now, in its order. Nothing while it waits in the kernel."""
        if process.paused_at_us is None or process.in_kernel:
            return
        process.paused_at_us = None
        waiting, process.deferred = process.deferred, []
        for action, arguments in waiting:
            self.after(0, self.deliver, process, action, *arguments)


class Clock:
    """A machine's own clock: it starts anywhere and runs up to 0.5 % fast or slow."""

    __slots__ = ("_offset_us", "_rate")

    SCALE = 1_000_000

    def __init__(self, offset_us: int, drift_ppm: int) -> None:
        self._offset_us = offset_us
        self._rate = self.SCALE + drift_ppm

    def local_us(self, world_us: int) -> int:
        """What this clock shows at `world_us`."""
        return self._offset_us + world_us * self._rate // self.SCALE

    def world_us(self, local_us: int) -> int:
        """The first moment at which this clock shows `local_us`."""
        return -(-(local_us - self._offset_us) * self.SCALE // self._rate)
