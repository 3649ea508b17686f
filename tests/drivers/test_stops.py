"""P8.21: what a stop command has told to end may end by itself, and a program that needs longer says so."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.core.launching.job import CLEAR, END, QUIT, RUN
from muster.drivers.image.commands import Job, Request
from real_node import wait_for
from real_runner import RealRunner, shell

# Ends half a second after SIGUSR1, as nginx does after `nginx -s quit`; at SIGTERM at once.
QUITS = """
trap 'sleep 0.5; echo quit > {0}; exit 0' USR1
trap 'echo cut > {0}; exit 0' TERM
echo $$ > {0}.pid; while :; do sleep 0.02; done
"""
# After SIGTERM it needs so many tenths of a second, and says so; it has two seconds.
NEEDS_TIME = """
import os, signal, socket, sys, time
end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
end.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
def stop(*_):
    for _ in range(int(sys.argv[2])):
        end.send(b"EXTEND_TIMEOUT_USEC=10000000")
        time.sleep(0.1)
    open(sys.argv[1], "w").write("flushed")
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
end.send(b"READY=1")
while True:
    time.sleep(10)
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[RealRunner]:
    """A running runner."""
    real = RealRunner(tmp_path)
    yield real
    real.close()


def started(runner: RealRunner, told: Path, way: str) -> None:
    """Start what quits, as a program or as a daemon that a start command leaves."""
    script = QUITS.format(told)
    if way == "program":
        runner.ask(1, "start", *shell(script), program=True, ready={"file": f"{told}.pid"})
    else:
        runner.ask(1, "start", *shell(f'setsid sh -c "$SCRIPT" & until [ -s {told}.pid ]; do sleep 0.02; done'),
                   environment={"SCRIPT": script}, follows=True)  # fmt: skip
    assert runner.result(1, "start")["succeeded"]


@pytest.mark.parametrize("way", ["program", "daemon"])
def test_p8_21_what_a_stop_command_has_told_to_end_may_end_by_itself(
    way: str, runner: RealRunner, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    started(runner, told, way)
    result = runner.run(2, "stop", *shell(f"kill -USR1 $(cat {told}.pid)"))
    assert (result["succeeded"], result["detail"]) == (True, "")
    assert told.read_text() == "quit\n"
    assert not runner.below()


@pytest.mark.parametrize("way", ["program", "daemon"])
def test_p8_21_what_has_not_ended_when_its_time_is_over_is_ended(way: str, runner: RealRunner, tmp_path: Path) -> None:
    told = tmp_path / "told"
    started(runner, told, way)
    began = time.monotonic()
    limits = {"timeout_ms": 700} if way == "program" else {"timeout_ms": 3_600_000, "grace_ms": 700}
    assert runner.run(2, "stop", "true", **limits)["succeeded"]
    assert time.monotonic() - began >= 0.7
    assert told.read_text() == "cut\n"


@pytest.mark.parametrize(
    ("start", "stop", "more"),
    [
        ("sleep 1000 &", ("true",), {}),  # not followed: nothing that it leaves is the service
        ("exec sleep 1000", ("true",), {"environment": {"MUSTER_ACTION": "cleanup"}}),  # which tells it nothing
        ("exec sleep 1000", ("false",), {}),
        ("exec sleep 1000", (), {}),
    ],
)
def test_p8_21_what_nobody_has_told_to_end_is_ended_at_once(
    start: str, stop: tuple[str, ...], more: dict[str, Any], runner: RealRunner
) -> None:
    runner.ask(1, "start", *shell(start), program="exec" in start)
    assert runner.result(1, "start")["succeeded"]
    runner.ask(2, "stop", *stop, timeout_ms=3_600_000, **more)
    runner.result(2, "stop")
    assert not runner.below()


def _sleeps(pid: int) -> bool:
    """Whether a process waits for the end of its time: it has been executed, and does nothing."""
    try:
        return "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("way", ["program", "daemon"])
def test_p8_21_a_program_that_rests_and_was_told_nothing_is_ended_soon(way: str, runner: RealRunner) -> None:
    if way == "program":
        runner.ask(1, "start", "sleep", "1000", program=True)
    else:
        runner.ask(1, "start", *shell("setsid sleep 1000 &"), follows=True)
    assert runner.result(1, "start")["succeeded"]
    # one that still starts would seem to have been told
    wait_for("it to rest", lambda: (below := runner.below()) and all(map(_sleeps, below)))
    assert runner.run(2, "stop", "true", timeout_ms=3_600_000, grace_ms=3_600_000)["succeeded"]
    assert not runner.below()


def test_p8_21_a_program_that_was_told_may_rest_on_its_way_to_its_end(runner: RealRunner, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = (
        "import pathlib, signal, sys, time\n"
        "def end(*_): time.sleep(2.5), pathlib.Path(sys.argv[1]).write_text('quit'), sys.exit(0)\n"
        "signal.signal(signal.SIGUSR1, end)\n"
        "pathlib.Path(sys.argv[1] + '.up').touch()\n"
        "signal.pause()\n"
    )
    runner.ask(1, "start", sys.executable, "-S", "-c", script, str(told), program=True, ready={"file": f"{told}.up"})
    assert runner.result(1, "start")["succeeded"]
    (pid,) = wait_for("the program", lambda: list(runner.below()))
    assert runner.run(2, "stop", "kill", "-USR1", str(pid), timeout_ms=3_600_000)["succeeded"]
    assert told.read_text() == "quit"


def test_p8_21_of_a_program_that_has_ended_what_is_left_is_ended_at_once(runner: RealRunner, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f"sleep 1000 & {QUITS.format(told)}"
    runner.ask(1, "start", *shell(script), program=True, ready={"file": f"{told}.pid"})
    assert runner.result(1, "start")["succeeded"]
    assert runner.run(2, "stop", *shell(f"kill -USR1 $(cat {told}.pid)"), timeout_ms=3_600_000)["succeeded"]
    assert told.read_text() == "quit\n"
    assert not runner.below()


@pytest.mark.parametrize(("stop", "limit_ms"), [((), 60_000), (("kill",), 60_000), ((), 0)])
def test_p8_21_a_program_that_needs_longer_to_stop_is_given_the_time_within_its_bound(
    stop: tuple[str, ...], limit_ms: int, runner: RealRunner, tmp_path: Path
) -> None:
    file = tmp_path / "flushed"
    command = (sys.executable, "-S", "-c", NEEDS_TIME, str(file), "40" if limit_ms else "1000")
    runner.ask(1, "start", *command, program=True, ready={"notify": True})
    assert runner.result(1, "start")["succeeded"]
    if stop:  # `kill` ends with success, and the program goes on to end by itself
        (pid,) = wait_for("the program", lambda: list(runner.below()))
        stop = ("kill", str(pid))
    more = {"timeout_ms": 2000} if stop else {"grace_ms": 2000}
    result = runner.run(2, "stop", *stop, extend_limit_ms=limit_ms, **more)
    assert result["succeeded"]
    assert file.exists() == (limit_ms > 0)


def test_p8_21_what_a_program_asks_for_lengthens_what_it_is_about_and_never_beyond_the_bound() -> None:
    packet = {"service": "s", "uid": 1, "generation": 2, "action": "stop", "command": ["true"], "timeout_ms": 1000,
              "environment": {}, "extend_limit_ms": 5000}  # fmt: skip
    job = Job(Request(packet))
    job.launched(0)
    for phase, asked_us, until_us in ((CLEAR, 3_000_000, 1_000_000), (RUN, 3_000_000, 3_000_000),
                                      (QUIT, 2_000_000, 3_000_000), (QUIT, 99_000_000, 6_000_000)):  # fmt: skip
        job.phase = phase
        job.lengthen(asked_us, is_its_own=False)
        assert job.deadline_us == until_us, phase
    job.enter(END, 6_000_000)
    assert (job.kill_us, job.latest_us) == (7_000_000, 12_000_000)
    job.lengthen(99_000_000, is_its_own=False)
    assert job.kill_us == job.wake_us == 12_000_000
    assert not job.hangs(12_000_000)
    job.latest_us = 13_000_000
    job.lengthen(99_000_000, is_its_own=False)
    assert job.kill_us == 12_000_000, "what is being killed has no more time"
