"""The judge of the services' own record catches what it is for: with made lines, and with real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import exclusive_service
from lab.exclusive_record import Judge, Line, RecordReader, Violation

DEADLINE_S = 30.0


def line(
    time_us: int, instance: str, node: str = "n0", generation: int = 1, action: str = "start", epoch: int = 1
) -> Line:
    return Line(time_us, "s", instance, node, 7, generation, epoch, action, 2, "runs")


def test_instances_one_after_the_other_are_no_violation() -> None:
    judge = Judge()
    judge.take([line(1, "a"), line(5, "a"), line(6, "b", "n1", 2), line(9, "b", "n1", 2), line(10, "c", "n0", 3)])
    newest = judge.newest("s")
    assert newest is not None
    assert newest.instance == "c"
    assert judge.instances("s") == 3


def test_a_line_of_an_instance_after_the_beginning_of_the_next_is_a_violation() -> None:
    with pytest.raises(Violation, match="runs twice"):
        Judge().take([line(1, "a"), line(5, "b", "n1", 2), line(6, "a")])


def test_a_line_with_a_later_time_than_the_beginning_of_the_next_is_a_violation() -> None:
    with pytest.raises(Violation, match="is later than"):
        Judge().take([line(1, "a"), line(6, "a"), line(5, "b", "n1", 2)])


def test_a_stop_runs_beside_its_instance_but_on_no_other_node() -> None:
    Judge().take([line(1, "a"), line(2, "b", generation=2, action="stop"), line(3, "a"), line(4, "b")])
    with pytest.raises(Violation, match="runs twice"):
        Judge().take([line(1, "a"), line(2, "b", "n1", generation=2, action="stop"), line(3, "a")])
    with pytest.raises(Violation, match="runs twice"):
        Judge().take([line(1, "a", action="stop"), line(2, "b", "n1", generation=2), line(3, "a")])


def test_p6_41_each_owner_has_a_higher_token_and_a_stop_that_of_what_it_stops() -> None:
    first, stop = line(1, "a")._replace(token=1024), line(2, "b", generation=2, action="stop")._replace(token=1024)
    next_line = line(3, "c", generation=3)
    Judge().take([first, stop, next_line._replace(token=3072)])
    with pytest.raises(Violation, match="without a higher token"):
        Judge().take([first, stop, next_line._replace(token=1024)])


def test_generations_and_epochs_never_go_back() -> None:
    with pytest.raises(Violation, match="generation"):
        Judge().take([line(1, "a", generation=2), line(2, "b", generation=2)])
    with pytest.raises(Violation, match="epoch"):
        Judge().take([line(1, "a", epoch=5), line(2, "b", generation=2, epoch=4)])


class Instances:
    """Starts instances as a runner would; ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, folder / "record"
        self.reader = RecordReader(self.record)

    def start(self, form: str, generation: int, *, action: str = "start") -> None:
        """Run a command of service `s` to its end."""
        given = {"SERVICE": "s", "NODE": "n0", "INCARNATION": "7", "EPOCH": "1", "ACTION": action}
        environment = {f"MUSTER_{key}": value for key, value in given.items()} | {"MUSTER_GENERATION": str(generation)}
        words = [sys.executable, "-I", "-S", "-B", exclusive_service.__file__, form, str(self.record), str(self.folder)]
        ended = subprocess.run([*words, "20"], env=os.environ | environment, timeout=DEADLINE_S, check=False)
        assert ended.returncode == 0

    def read_on(self) -> None:
        """Judge what comes, until the deadline. Raises `Violation`."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            self.reader.read()
            time.sleep(0.01)

    def processes(self) -> list[int]:
        """All that runs of them: every process that has the record open."""
        found = []
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                links = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
            except OSError:
                continue
            if pid != os.getpid() and str(self.record) in links:
                found.append(pid)
        return found

    def kill(self) -> None:
        """End everything, and wait for it."""
        deadline = time.monotonic() + DEADLINE_S
        while pids := self.processes():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def instances(tmp_path: Path) -> Iterator[Instances]:
    """Real instances of one service."""
    made = Instances(tmp_path)
    yield made
    made.kill()
    made.reader.close()


@pytest.mark.parametrize("form", ["plain", "daemon", "parent", "slow"])
def test_a_second_real_instance_is_caught_whatever_its_form(instances: Instances, form: str) -> None:
    instances.start(form, 1)
    instances.reader.read()
    instances.start("plain", 2)
    with pytest.raises(Violation, match="runs twice"):  # once the first one has said again that it runs
        instances.read_on()


@pytest.mark.parametrize("form", ["plain", "daemon", "parent", "slow"])
def test_a_stopped_real_instance_is_caught_by_its_lock(instances: Instances, form: str) -> None:
    instances.start(form, 1)
    for pid in instances.processes():
        os.kill(pid, signal.SIGSTOP)
    instances.reader.read()
    instances.start("plain", 2)
    with pytest.raises(Violation, match="its lock is not free"):
        instances.reader.read()


def test_real_instances_one_after_the_other_are_no_violation(instances: Instances) -> None:
    for generation, form in enumerate(("plain", "daemon", "parent", "slow"), 1):
        instances.start(form, generation)
        instances.kill()
    instances.start("act", 9, action="recovery")
    instances.reader.read()
    assert instances.reader.judge.instances("s") == 5
