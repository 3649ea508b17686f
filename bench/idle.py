"""What nodes cost that have nothing to do, and whether healthy ones are left alone.

CPU time is what the kernel counted for every thread of every process of a node (`/proc/PID/task/*/schedstat`,
nanoseconds), so it does not depend on what else the machine does, but for caches. Memory is the proportional set size:
a page that several processes share counts in parts, so all nodes' figures sum up to what they really take. On a machine
that runs one node only, pages shared with nobody else count whole: the case `1 nodes` shows that.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean

from bench.announcements import boottime_us
from bench.cluster import Rig, repeated, rig, settle
from bench.figures import Measurement
from bench.scales import Scale
from muster.dev import node_processes

SETTLE_S = 1.5
BUSY_LOOPS = 4
NS_PER_S = 1_000_000_000
EVICTIONS = ("proof of death", "node condemned", "forced out", "panic", "superseded", "elected", "daemon started")


def measure(scale: Scale, directory: Path, measurement: Measurement) -> None:
    """CPU seconds a minute and PSS of a node, by size of the cluster and profile."""
    for nodes, profile in scale.idle:
        title = f"{nodes} nodes, {profile}"
        make = partial(rig, directory, nodes, profile)
        once = partial(_look, title, scale.idle_s, measurement)
        repeated(scale.idle_runs, make, once, measurement, title)


def measure_steadiness(scale: Scale, directory: Path, measurement: Measurement) -> None:
    """Evictions and elections that nothing called for (SPEC 7.6), in a given time."""
    if not scale.steady_s:
        measurement.add("left out at this scale", "seconds", 0)
        return
    for loops in (0, BUSY_LOOPS):
        title = f"{loops} busy loops beside 3 nodes"
        once = partial(_stay, title, scale.steady_s, loops, measurement)
        repeated(1, partial(rig, directory, 3), once, measurement, title)


def _look(title: str, seconds: float, measurement: Measurement, rig_: Rig) -> None:
    settle(SETTLE_S)
    index, since_us = int(rig_.status()["index"]), boottime_us()
    pids = {name: [process.pid for process in _processes(rig_, name)] for name in rig_.names}
    before = {name: [cpu_ns(pid) for pid in found] for name, found in pids.items()}
    began_s = time.monotonic()
    time.sleep(seconds)
    after = {name: [cpu_ns(pid) for pid in found] for name, found in pids.items()}
    minutes = (time.monotonic() - began_s) / 60
    used_ns = {name: sum(after[name]) - sum(before[name]) for name in rig_.names}
    measurement.add(title, "cpu_s_per_minute", mean(used_ns.values()) / NS_PER_S / minutes)
    measurement.add(title, "cpu_s_per_minute_of_busiest", max(used_ns.values()) / NS_PER_S / minutes)
    by_role: dict[str, int] = {}
    for name, found in pids.items():
        for pid, new, old in zip(found, after[name], before[name], strict=True):
            role = _role(pid)
            by_role[role] = by_role.get(role, 0) + new - old
    for role, role_ns in sorted(by_role.items()):
        measurement.add(title, f"{role}_cpu_s_per_minute", role_ns / NS_PER_S / minutes / len(rig_.names))
    measurement.add(title, "pss_mib", mean(sum(pss_kib(pid) for pid in found) for found in pids.values()) / 1024)
    measurement.add(title, "evictions", _evictions(rig_, index, since_us))


def _processes(rig_: Rig, name: str) -> list[node_processes.NodeProcess]:
    return node_processes.processes_of(rig_.cluster.home(name))


def cpu_ns(pid: int) -> int:
    """Nanoseconds that all threads of a process have spent on a core; 0 for one that has ended."""
    total = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # numbers only
            with open(f"/proc/{pid}/task/{thread}/schedstat", "rb") as file:  # many small reads
                total += int(file.read().split()[0])
    except OSError:
        return total
    return total


def pss_kib(pid: int) -> int:
    """The proportional set size of a process; 0 for one that has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def _role(pid: int) -> str:
    """`guard`, `lease`, `init`, `runner`; the daemon is an interpreter of its own, without such a name."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"
    return name.removeprefix("muster-") if name.startswith("muster-") else "daemon"


def _evictions(rig_: Rig, index: int, since_us: int) -> int:
    """How many different events speak of a node that was given up, or of a master or daemon that was lost."""
    events = rig_.timeline(index, since_us)
    return len({(event["event"], event["detail"]) for event in events if event["event"] in EVICTIONS})


def _stay(title: str, seconds: float, loops: int, measurement: Measurement, rig_: Rig) -> None:
    settle(SETTLE_S)
    index, since_us = int(rig_.status()["index"]), boottime_us()
    with _busy_loops(loops):
        time.sleep(seconds)
    measurement.add(title, "seconds", seconds)
    measurement.add(title, "evictions", _evictions(rig_, index, since_us))
    states = rig_.cluster.states()
    measurement.add(title, "nodes_not_joined", sum(states.get(name) != "joined" for name in rig_.names))


@contextmanager
def _busy_loops(count: int) -> Iterator[None]:
    """So many processes that do nothing but use a core."""
    loops: list[subprocess.Popen[bytes]] = []
    try:
        loops.extend(subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"]) for _ in range(count))
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
