"""What grows with a store's slots and with those in use: what is read, in which time, the guard's memory (P11.7).

Each case is a store of its own in which the first nodes have written their leases. A read is one of the whole strip by
a running reader, and registers change between reads as they do in service. CPU time is this process's own, so it does
not depend on what else the machine does. The guard's memory is what a process that imports what a guard imports has to
itself (private pages), after it has read its own lease and all marks.
"""

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from bench.figures import Measurement
from bench.scales import Scale
from muster.drivers.store.disk.file import open_store
from muster.drivers.store.disk.geometry import BLOCK_BYTES, Header
from muster.drivers.store.disk.lease_store import GuardStore
from muster.drivers.store.disk.registers import OwnRegister, RegisterReader
from muster.drivers.store.disk.store import create_store, plan_header
from muster.drivers.store.identity import Scope
from muster.records.database import encode_database, initial_database
from muster.records.nodes import Cluster
from muster.records.registers import Deadman, Lease, LeaseState, RegisterKind
from muster.records.terms import NO_TERM, Stamp

CASES = ((16, 3), (256, 3), (16, 16), (256, 16), (40, 40), (256, 40), (256, 256))  # slots, nodes that have run
RUNS = 5
READS = 200  # of one run
REGION_BYTES = 16 * 1024
_GUARD = """
import sys
from muster.drivers.store.disk.lease_store import GuardStore
store = GuardStore(sys.argv[1], 0)
for _ in range(50):
    store.read_own(), store.read_marks()
with open("/proc/self/smaps_rollup") as file:
    print(sum(int(line.split()[1]) for line in file if line.startswith("Private")))
"""


def measure(scale: Scale, directory: Path, measurement: Measurement) -> None:
    """One case after the other: time and memory of a read, by slots and by nodes that have run."""
    runs, reads = min(RUNS, scale.store_runs), min(READS, scale.store_runs)
    for slots, used in CASES:
        path = directory / f"{slots}-{used}"
        header = _make(path, slots, used)
        case = f"{slots} slots, {used} nodes"
        for _ in range(runs):
            _read(path, header, used, reads, case, measurement)
            measurement.add(case, "guard_private_kib", float(_guard_kib(path)))
        measurement.add(case, "store_mib", header.total_bytes / (1 << 20))
        measurement.add(case, "store_taken_mib", path.stat().st_blocks * 512 / (1 << 20))
        path.unlink()


def _make(path: Path, slots: int, used: int) -> Header:
    size = slots * (4 * REGION_BYTES + BLOCK_BYTES) + (4 << 20)
    header = plan_header(str(path), secrets.token_bytes(16), "bench", Scope.HOST, slots=slots, store_bytes=size)
    create_store(str(path), header, encode_database(initial_database(Cluster("bench", "0" * 32, "fast", ""), ())))
    for node in range(used):
        guard = GuardStore(path, node)
        guard.write_lease(_lease(node, 1))
        guard.close()
    return header


def _lease(node: int, beat: int) -> Lease:
    stamp = Stamp(node, 5, NO_TERM, beat)
    return Lease(stamp, LeaseState.LIVE, Deadman.PID_NAMESPACE, 600, 120, bytes(16), "")


def _read(path: Path, header: Header, used: int, reads: int, case: str, measurement: Measurement) -> None:
    writer, _header = open_store(str(path), writable=True)
    reader, _header = open_store(str(path), writable=False, buffer_bytes=header.strip_bytes)
    with writer, reader:
        registers = RegisterReader(reader, header, tuple(RegisterKind))
        own = [OwnRegister(writer, header, RegisterKind.LEASE, node) for node in range(min(used, 3))]
        registers.read()
        before = _bytes_read()
        registers.read()
        measurement.add(case, "read_kib", (_bytes_read() - before) / 1024)
        wall_ns, cpu_ns = 0, 0
        for number in range(reads):
            if number % 8 == 0:
                own[number % len(own)].write(_lease(number % len(own), 2 + number))
            began_ns, began_cpu_ns = time.perf_counter_ns(), time.process_time_ns()
            registers.read()
            wall_ns += time.perf_counter_ns() - began_ns
            cpu_ns += time.process_time_ns() - began_cpu_ns
    measurement.add(case, "read_us", wall_ns / reads / 1000)
    measurement.add(case, "read_cpu_us", cpu_ns / reads / 1000)


def _bytes_read() -> int:
    """What this process has read so far, by the kernel's count; the look itself is the same each time."""
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


def _guard_kib(path: Path) -> int:
    command = [sys.executable, "-c", _GUARD, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "src")}
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
