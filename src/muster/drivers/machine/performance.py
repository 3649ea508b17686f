"""How busy this machine is: CPU, memory and pressure from /proc, smoothed over about a minute (SPEC 6.2).

Three small files are read every few seconds; psutil would cost the daemon more memory than the figures are worth. The
kernel smooths pressure itself (`avg60` of /proc/pressure); CPU and memory are smoothed here, exponentially.
"""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

from muster.records.services import Performance

SMOOTHING_S = 60.0  # after this long, about two thirds of a measurement are of what has happened since
WHOLE = 1000
_STAT_IDLE = (3, 4)  # of the numbers in the line `cpu` of /proc/stat: idle, waiting for a disk


class PerformanceMeter:
    """Measures again with each call of `measure`. `clock_s`: seconds by any clock that does not jump."""

    def __init__(self, clock_s: Callable[[], float], proc: Path = Path("/proc")) -> None:
        self._clock_s, self._proc = clock_s, proc
        self._ticks: tuple[int, int] | None = None  # all, idle; when they were last read
        self._measured_s = 0.0
        self._smoothed: tuple[float, float] | None = None  # CPU, memory

    def measure(self) -> Performance | None:
        """How busy the machine has been of late; None at first, and where the kernel does not tell."""
        now_s, before = self._clock_s(), self._ticks
        try:
            self._ticks = self._read_ticks()
            memory = self._read_memory()
        except (OSError, ValueError, IndexError, KeyError, ZeroDivisionError):
            self._ticks = None
            return None
        elapsed_s, self._measured_s = now_s - self._measured_s, now_s
        if before is None or self._ticks[0] <= before[0]:
            return None
        total = self._ticks[0] - before[0]
        cpu = min(1.0, max(0.0, 1 - (self._ticks[1] - before[1]) / total))
        if self._smoothed is None:
            self._smoothed = (cpu, memory)
        else:
            weight = 1 - math.exp(-max(0.0, elapsed_s) / SMOOTHING_S)
            old_cpu, old_memory = self._smoothed
            self._smoothed = (old_cpu + weight * (cpu - old_cpu), old_memory + weight * (memory - old_memory))
        cpu, memory = self._smoothed
        return Performance(round(WHOLE * cpu), round(WHOLE * memory), self._read_pressure())

    def _read_ticks(self) -> tuple[int, int]:
        """Clock ticks of all processors since boot: all of them, and those in which they had nothing to do."""
        words = (self._proc / "stat").read_text().partition("\n")[0].split()
        ticks = [int(word) for word in words[1:9]]  # what guests used is within the first ones
        return sum(ticks), sum(ticks[position] for position in _STAT_IDLE)

    def _read_memory(self) -> float:
        """The share of memory that no new program could have."""
        found = {}
        for line in (self._proc / "meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0])
        return min(1.0, max(0.0, 1 - found["MemAvailable"] / found["MemTotal"]))

    def _read_pressure(self) -> int:
        """Thousandths of the last minute in which something waited for what is scarcest; 0 where no one counts it."""
        worst = 0.0
        for kind in ("cpu", "memory", "io"):
            with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
                line = (self._proc / "pressure" / kind).read_text().partition("\n")[0]
                fields = dict(word.split("=", 1) for word in line.split()[1:])
                worst = max(worst, float(fields["avg60"]))
        return min(WHOLE, round(worst * WHOLE / 100))
