"""How busy a node is: measured from /proc, smoothed, and told to the master only when its grade changes (SPEC 6.2)."""

import time
from pathlib import Path

import pytest

from core_cluster import joined_cluster
from muster.core.inputs import PerformanceMeasured
from muster.drivers.machine.performance import SMOOTHING_S, PerformanceMeter
from muster.records.messages import Report
from muster.records.services import ApplyServices, Definition, Performance, ServiceState

MEMINFO = "MemTotal:  1000 kB\nMemFree:   10 kB\nMemAvailable: {available} kB\n"
PRESSURE = "some avg10=0.00 avg60={share:.2f} avg300=0.00 total=1\nfull avg10=0.00 avg60=99.00 avg300=0.00 total=1\n"


class Machine:
    """A directory that looks like /proc, of a machine whose load a test sets, with a clock of its own."""

    def __init__(self, proc: Path) -> None:
        self.proc, self.now_s = proc, 100.0
        self._busy = self._idle = 1000.0
        (proc / "pressure").mkdir()
        self.set(available=1000, pressure=0.0)
        self.meter = PerformanceMeter(lambda: self.now_s, proc)

    def set(self, *, available: int, pressure: float) -> None:
        """Memory that is left, of 1000; percent of time in which something waited for the disk."""
        (self.proc / "meminfo").write_text(MEMINFO.format(available=available))
        for kind, share in (("cpu", 0.0), ("memory", 0.0), ("io", pressure)):
            (self.proc / "pressure" / kind).write_text(PRESSURE.format(share=share))

    def run(self, seconds: float, cpu: float) -> Performance | None:
        """So many seconds pass at this load, then it is measured."""
        self.now_s += seconds
        self._busy += 100 * seconds * cpu
        self._idle += 100 * seconds * (1 - cpu)
        half = int(self._idle) // 2  # half of the time without work is spent waiting for the disk
        (self.proc / "stat").write_text(
            f"cpu  {int(self._busy)} 0 0 {int(self._idle) - half} {half} 0 0 0 9 9\ncpu0 1\n"
        )
        return self.meter.measure()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_said_before_two_readings(machine: Machine) -> None:
    assert machine.run(1, 0.5) is None
    assert machine.run(5, 0.5) == Performance(500, 0, 0)


def test_cpu_and_memory_are_smoothed_over_about_a_minute_and_pressure_is_the_kernels_worst(machine: Machine) -> None:
    machine.run(1, 0.0)
    machine.run(5, 0.0)
    machine.set(available=200, pressure=12.5)
    seen = []
    for _ in range(int(SMOOTHING_S / 5)):
        measured = machine.run(5, 1.0)
        assert measured is not None
        assert measured.pressure == 125
        seen.append((measured.cpu, measured.memory))
    assert seen == sorted(seen)
    assert seen[0][0] < 100, "one peak of five seconds is hardly seen"
    assert 600 <= seen[-1][0] <= 660, "after the smoothing time it is about two thirds of the change"
    assert 480 <= seen[-1][1] <= 530


def test_a_long_gap_counts_as_much_as_it_lasted(machine: Machine) -> None:
    machine.run(1, 0.0)
    machine.run(5, 0.0)
    measured = machine.run(20 * SMOOTHING_S, 0.8)
    assert measured is not None
    assert measured.cpu == pytest.approx(800, abs=2)


@pytest.mark.parametrize("name", ["stat", "meminfo"])
@pytest.mark.parametrize("text", [None, "", "cpu one two\n", "MemTotal: 0 kB\nMemAvailable: 0 kB\n", "cpu 1\n"])
def test_what_the_kernel_does_not_tell_is_not_guessed(machine: Machine, name: str, text: str | None) -> None:
    machine.run(1, 0.5)
    path = machine.proc / name
    good = path.read_text()
    path.unlink() if text is None else path.write_text(text)
    assert machine.meter.measure() is None
    path.write_text(good)
    machine.run(5, 0.5)
    assert machine.run(5, 0.5) == Performance(500, 0, 0)


def test_a_kernel_without_pressure_figures_is_taken_as_it_is(machine: Machine) -> None:
    for path in (machine.proc / "pressure").iterdir():
        path.unlink()
    machine.run(1, 0.5)
    assert machine.run(5, 0.5) == Performance(500, 0, 0)


def test_this_machine_tells_its_performance() -> None:
    meter = PerformanceMeter(time.monotonic)
    assert meter.measure() is None
    until_s = time.monotonic() + 30
    while (measured := meter.measure()) is None:
        assert time.monotonic() < until_s
        sum(range(100_000))  # give it some work, and the clock of /proc/stat a tick
    assert all(0 <= value <= 1000 for value in (measured.cpu, measured.memory, measured.pressure))
    assert measured.memory > 0


def test_p6_19_the_least_busy_node_of_an_unordered_list_is_chosen_by_what_the_nodes_report() -> None:
    cluster = joined_cluster(3)
    for node, cpu in ((0, 600), (1, 950), (2, 300)):
        cluster.give(node, PerformanceMeasured(Performance(cpu, 100, 0)))
    cluster.run(100)
    lists = {"web": ("n0", "n1"), "mail": ("n1", "n2"), "all": ("n0", "n1", "n2")}
    defined = tuple(Definition(name, unordered=nodes) for name, nodes in lists.items())
    assert not cluster.do(1, ApplyServices(defined)).refused
    cluster.until("all registered", lambda: all(cluster.service(n).state is ServiceState.REGISTERED for n in lists))
    assert {name: cluster.service(name).node for name in lists} == {"web": 0, "mail": 2, "all": 2}


def test_p5_3_a_measurement_of_the_same_grade_makes_no_traffic() -> None:
    cluster = joined_cluster(3)
    follower = next(node for node in range(3) if node != cluster.master)
    cluster.give(follower, PerformanceMeasured(Performance(300, 100, 0)))
    cluster.run(100)
    before = len(cluster.sent(Report, follower))
    for cpu in (310, 490, 260, 300, 245):
        cluster.give(follower, PerformanceMeasured(Performance(cpu, 100, 0)))
    cluster.run(100)
    assert len(cluster.sent(Report, follower)) == before
    cluster.give(follower, PerformanceMeasured(Performance(500, 100, 0)))
    cluster.run(100)
    told = cluster.sent(Report, follower)[before:]
    assert [report.performance for report in told] == [Performance(500, 100, 0)]
