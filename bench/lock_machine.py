"""The lock manager's rules alone, without processes or a network: what is left of a second for these (SPEC 4.1).

Counted is processor time. Each run is a process of its own, so that memory is that of this work. `pair_us`: a lock and
an unlock of a resource that is mastered on the same node. `bytes_per_lock`: growth of the process by so many locks,
each on a resource of its own. In a recovery, of three nodes one is lost; each resource is mastered by one node, and has
locks of two: `node_ms` is what the busier survivor does until it has resumed, and `longest_ms` the most at once.
"""

import gc
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as `python bench/lock_machine.py`, by `measure`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import psutil  # type: ignore[import-untyped]

from bench.figures import Measurement
from bench.scales import Scale
from muster.client.errors import ClientError
from muster.core.locks.machine import LockManager
from muster.core.locks.messages import Acknowledge, Send
from muster.core.locks.modes import Mode
from muster.core.locks.names import Bounds
from muster.core.locks.recovery import BARRIERS, Kind, Member, Step

SPACE = "s"
PAIRS, BATCH, NAMES = 100_000, 64, 1000  # as a client that pipelines
LOCKS = 100_000
TIMEOUT_S = 120


def measure(scale: Scale, directory: Path, measurement: Measurement) -> None:  # noqa: ARG001 - as all measurements
    """Pairs and memory of one node, and the recovery of three."""
    for _ in range(scale.lock_machine_runs):
        measurement.add_all("one node", {**_run("pairs"), **_run("memory")})
        measurement.add_all(f"{LOCKS} locks, one of 3 nodes lost", _run("recovery"))


def _run(what: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise ClientError("locking failed", " ".join(command), done.stderr[-1000:] or "run it by hand")
    found: dict[str, float] = json.loads(done.stdout)
    return found


class Cluster:
    """Lock managers whose messages arrive at once, and the processor time of each."""

    def __init__(self, nodes: int) -> None:
        self.managers = {node: LockManager(node, 1, Bounds(locks_of_client=LOCKS)) for node in range(nodes)}
        self.spent_s = dict.fromkeys(self.managers, 0.0)
        self.longest_s = 0.0
        self._entry = 0
        self._working: set[int] = set()
        self._queue: deque[tuple[int, Callable[[], object]]] = deque()
        for node, manager in self.managers.items():
            manager.is_paced = True  # as in a process, which serves clients between two pieces of a recovery's work
            manager.follow_spaces([SPACE])
            for other in self.managers:
                if other != node:
                    manager.connected(other, 1)
        roster: dict[int, Member] = {}
        for node in self.managers:
            roster = {**roster, node: Member(1)}
            self.take_through(Kind.JOINING, node, roster)

    def take_through(self, kind: Kind, node: int, roster: dict[int, Member]) -> None:
        """A transition, barrier after barrier."""
        self._entry += 1
        for barrier in range(BARRIERS[kind]):
            for member in roster:
                step = Step(self._entry, kind, node, 1, barrier, self._entry, roster)
                self._queue.append((member, lambda member=member, step=step: self.managers[member].told(step)))  # type: ignore[misc]
            done = self.pump()
            assert done == set(roster), f"{kind} of {node}, barrier {barrier}: {done}"

    def pump(self, *asked: int) -> set[int]:
        """Let everything arrive, also of nodes whose clients have asked; who has acknowledged a barrier."""
        done: set[int] = set()
        self._queue.extend((node, lambda: None) for node in asked)
        while self._queue:
            node, work = self._queue.popleft()
            manager = self.managers.get(node)
            if manager is None:
                continue
            began_s = time.process_time()
            work()
            effects = manager.take()
            took_s = time.process_time() - began_s
            self.spent_s[node] += took_s
            self.longest_s = max(self.longest_s, took_s)
            if manager.has_work and node not in self._working:
                self._working.add(node)
                self._queue.append((node, lambda node=node: self._work(node)))  # type: ignore[misc]
            for effect in effects:
                if isinstance(effect, Send):
                    self._arrive(node, effect)
                elif isinstance(effect, Acknowledge):
                    done.add(node)
        return done

    def _work(self, node: int) -> None:
        self._working.discard(node)
        self.managers[node].work()

    def _arrive(self, node: int, effect: Send) -> None:
        receiver = self.managers.get(effect.node)
        if receiver is not None:
            self._queue.append((effect.node, lambda: receiver.received(node, 1, effect.frame)))


def _pairs() -> dict[str, float]:
    manager = Cluster(1).managers[0]
    names = [f"orders/{number}" for number in range(NAMES)]
    gc.collect()
    began_s = time.process_time()
    for start in range(0, PAIRS, BATCH):
        locks = [manager.request(1, SPACE, names[(start + each) % NAMES], Mode.EX) for each in range(BATCH)]
        manager.take()
        for lock in locks:
            manager.unlock(1, lock)
        manager.take()
    return {"pair_us": (time.process_time() - began_s) * 1e6 / PAIRS}


def _memory() -> dict[str, float]:
    manager = Cluster(1).managers[0]
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    for number in range(LOCKS):
        manager.request(1, SPACE, f"orders/{number:012}", Mode.EX)
        manager.take()
    gc.collect()
    return {"bytes_per_lock": (process.memory_info().rss - before) / LOCKS}


def _recovery() -> dict[str, float]:
    cluster = Cluster(3)
    for number in range(LOCKS // 2):
        for node in (number % 3, (number + 1) % 3):
            cluster.managers[node].request(1, SPACE, f"orders/{number}", Mode.PR)
            cluster.pump(node)
    gc.collect()
    gc.freeze()
    del cluster.managers[0]
    cluster.spent_s, cluster.longest_s = dict.fromkeys(cluster.managers, 0.0), 0.0
    cluster.take_through(Kind.FORCED_LEAVING, 0, {node: Member(1) for node in cluster.managers})
    return {"node_ms": max(cluster.spent_s.values()) * 1000, "longest_ms": cluster.longest_s * 1000}


RUNS = {"pairs": _pairs, "memory": _memory, "recovery": _recovery}

if __name__ == "__main__":
    print(json.dumps(RUNS[sys.argv[1]]()))
