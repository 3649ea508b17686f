"""The runner's side of the lock process: it runs while it is wanted, and is killed when it hangs (P12.16)."""

import os
import select
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from muster.drivers.image.deadman import boottime_us
from muster.drivers.image.lock_process import RESTART_PAUSE_US, LockProcess
from muster.records.units import NEVER_US

SILENCE_MS = 400
DEADLINE_S = 20.0
ALIVE = """
import os, sys, time
alive = int(sys.argv[-1])
for _ in range({signs}):
    os.write(alive, b".")
    time.sleep(0.05)
time.sleep(600)
"""


class Runner:
    """As much of a runner's loop as the lock process needs."""

    def __init__(self) -> None:
        self.process = LockProcess({"PATH": os.environ["PATH"]})
        self.epoll = select.epoll()
        self.ends: list[int] = []  # wait statuses

    def turn(self) -> None:
        """One turn of the loop."""
        self.process.keep_running(boottime_us(), self.epoll)
        for descriptor, _ in self.epoll.poll(0.01):
            assert descriptor == self.process.descriptor
            self.process.serve(boottime_us())
        if self.process.pid:
            pid, status = os.waitpid(self.process.pid, os.WNOHANG)
            if pid:
                assert self.process.ended(pid, boottime_us())
                self.ends.append(status)

    def until(self, what: str, holds: object) -> None:
        """Turn until it holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds():  # type: ignore[operator]
            assert time.monotonic() < deadline, what
            self.turn()


@pytest.fixture
def runner() -> Iterator[Runner]:
    """Its process is ended with the test."""
    found = Runner()
    yield found
    if found.process.pid:
        os.kill(found.process.pid, signal.SIGKILL)
        os.waitpid(found.process.pid, 0)
    found.epoll.close()


def command(signs: int) -> tuple[str, ...]:
    return (sys.executable, "-c", ALIVE.format(signs=signs))


def test_p12_16_one_that_gives_no_sign_of_life_any_more_is_killed(runner: Runner) -> None:
    assert runner.process.wake_us == NEVER_US
    runner.process.want(command(signs=3), {}, SILENCE_MS)
    runner.turn()
    assert runner.process.pid
    runner.until("its end", lambda: runner.ends)
    assert runner.ends == [signal.SIGKILL]


def test_p12_16_one_that_goes_on_is_left_alone_and_ends_when_it_is_wanted_no_more(runner: Runner) -> None:
    runner.process.want(command(signs=10_000), {}, SILENCE_MS)
    end = time.monotonic() + 4 * SILENCE_MS / 1000
    runner.until("some time to pass", lambda: time.monotonic() > end)
    assert runner.process.pid
    assert not runner.ends
    runner.process.want((), {}, SILENCE_MS)
    runner.until("its end", lambda: runner.ends)
    assert runner.ends == [signal.SIGTERM]
    assert runner.process.wake_us == NEVER_US
    runner.turn()
    assert not runner.process.pid


def test_p12_16_one_that_has_ended_is_executed_again_after_a_pause(runner: Runner) -> None:
    runner.process.want((sys.executable, "-c", "pass"), {}, SILENCE_MS)
    runner.until("its end", lambda: runner.ends)
    began_us = boottime_us()
    runner.until("another", lambda: runner.process.pid)
    assert boottime_us() - began_us > RESTART_PAUSE_US // 2
    assert runner.process.ended(os.getpid(), boottime_us()) is False
