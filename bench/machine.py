"""The machine on which something is measured, and what else it was doing meanwhile."""

import os
import platform
from pathlib import Path
from typing import Any


def describe(directory: Path) -> dict[str, Any]:
    """Cores, kernel, interpreter, memory, and the file system below `directory`, where the stores are."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": _file_system(directory),
    }


def load() -> dict[str, float]:
    """How busy the machine is: load average of the last minute, and how long tasks waited for a core lately."""
    found = {"load_average": round(os.getloadavg()[0], 2)}
    try:
        first = Path("/proc/pressure/cpu").read_text().split()
        found["waiting_percent"] = float(first[1].partition("=")[2])  # some avg10
    except (OSError, IndexError, ValueError):
        pass  # a kernel without pressure information
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _file_system(directory: Path) -> str:
    """The type of the file system that holds `directory`."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        point = fields[1].replace("\\040", " ")
        inside = directory == Path(point) or Path(point) in directory.parents
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind
