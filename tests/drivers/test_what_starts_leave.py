"""What starts leave running, and what it says: daemons, successors, helpers, times (P6.35, P6.38, P8.18)."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.drivers.image.readiness import Condition, Conditions, _is_of
from real_node import DEADLINE_S, SOURCE, wait_for
from real_runner import RealRunner, shell

SLOW = """
import os, socket, time
address = os.environ["NOTIFY_SOCKET"]
end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for _ in range(4):
    end.sendto(b"EXTEND_TIMEOUT_USEC=10000000\\n", "\\0" + address[1:])
    time.sleep(1)
end.sendto(b"READY=1\\n", "\\0" + address[1:])
time.sleep(1000)
"""
HELPER_OF_ANOTHER_USER = """
import os, socket, time
NOBODY = 65534
address = os.environ["NOTIFY_SOCKET"]
if os.fork() == 0:
    os.setuid(NOBODY)
    time.sleep(1000)
time.sleep(0.2)
helper = os.fork()
if helper == 0:
    os.setuid(NOBODY)
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1\\n", "\\0" + address[1:])
    os._exit(0)
os.waitpid(helper, 0)
time.sleep(1000)
"""
SUCCESSOR = """
import os, signal, sys, time
def hand_over(*_):
    if os.fork():
        os._exit(int(sys.argv[2]))
    os.execv("/bin/sleep", ["sleep", "1000"])
signal.signal(signal.SIGUSR2, hand_over)
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
while True:
    signal.pause()
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[RealRunner]:
    """A running runner."""
    real = RealRunner(tmp_path)
    yield real
    real.close()


def exited(runner: RealRunner, generation: int) -> dict[str, Any]:
    """What the runner says of an end."""
    return runner.take(lambda packet: packet["say"] == "exited" and packet["generation"] == generation)


def says_no_exit(runner: RealRunner) -> bool:
    """Whether it has told of none, though it has been asked something since."""
    runner.send({"do": "inventory", "request": 9})
    (command,) = runner.take(lambda packet: packet["say"] == "inventory")["commands"]
    return "exited" not in command


def sleeps(runner: RealRunner) -> list[int]:
    return [pid for pid, name in runner.below().items() if name == "sleep"]


# ---- P8.18 -----------------------------------------------------------------------------------------------------------


def test_p8_18_the_end_of_a_daemon_that_a_start_command_left_is_told_at_once(runner: RealRunner) -> None:
    runner.ask(1, "start", *shell("setsid sleep 1000 & setsid sleep 1000 & echo started"), follows=True)
    assert runner.result(1, "start")["left"]
    first, second = wait_for("both", lambda: sleeps(runner) if len(sleeps(runner)) == 2 else [])
    os.kill(first, signal.SIGTERM)
    wait_for("one", lambda: sleeps(runner) == [second])
    assert says_no_exit(runner)
    os.kill(second, signal.SIGKILL)
    told = exited(runner, 1)
    assert (told["status"], told["code"]) == ("left processes running, the last of which was killed by SIGKILL", -1)


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ("sh -c '{waits}' &", False),  # a helper: in the session of its command, gone soon, with status 0
        ("({waits}; exit 3) &", True),
        ("setsid sh -c '{waits}' &", True),
    ],
)
def test_p8_18_what_looks_like_a_helper_of_the_start_is_no_daemon(
    runner: RealRunner, tmp_path: Path, left: str, told: bool
) -> None:
    go = tmp_path / "go"
    runner.ask(1, "start", *shell(left.format(waits=f"until [ -e {go} ]; do sleep 0.02; done")), follows=True)
    assert runner.result(1, "start")["succeeded"]
    go.touch()
    if told:
        assert "left processes running" in exited(runner, 1)["status"]
    else:
        wait_for("its end", lambda: not runner.keepers())
        assert says_no_exit(runner)


def test_p8_18_where_a_start_is_not_followed_what_it_leaves_is_nothing_to_tell(runner: RealRunner) -> None:
    runner.ask(1, "start", *shell("setsid sleep 0.1 &"))
    assert runner.result(1, "start")["succeeded"]
    wait_for("its end", lambda: not runner.keepers())
    assert says_no_exit(runner)


def test_p8_18_a_program_that_hands_over_to_a_successor_goes_on_until_that_ends(
    runner: RealRunner, tmp_path: Path
) -> None:
    command = (sys.executable, "-S", "-c", SUCCESSOR, str(tmp_path / "pid"), "0")
    runner.ask(1, "start", *command, program=True, follows=True, ready={"file": str(tmp_path / "pid")})
    assert runner.result(1, "start")["succeeded"]
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR2)
    (successor,) = wait_for("the successor", lambda: sleeps(runner))
    assert says_no_exit(runner)
    os.kill(successor, signal.SIGTERM)
    words = "ended with status 0 and left processes running, the last of which was killed by SIGTERM"
    assert exited(runner, 1)["status"] == words


@pytest.mark.parametrize(("status", "follows"), [("1", True), ("0", False)])
def test_p8_18_a_program_that_crashes_or_is_not_followed_has_ended_whatever_it_leaves(
    runner: RealRunner, tmp_path: Path, status: str, follows: bool
) -> None:
    command = (sys.executable, "-S", "-c", SUCCESSOR, str(tmp_path / "pid"), status)
    runner.ask(1, "start", *command, program=True, follows=follows, ready={"file": str(tmp_path / "pid")})
    assert runner.result(1, "start")["succeeded"]
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR2)
    told = exited(runner, 1)
    assert told["status"].startswith(f"ended with status {status}")


@pytest.mark.parametrize("waits", [False, True])
def test_p8_18_a_program_that_goes_into_the_background_at_its_start_is_what_it_leaves(
    runner: RealRunner, tmp_path: Path, waits: bool
) -> None:
    flag = tmp_path / "ready"
    daemon = f"setsid sh -c 'sleep 0.3; touch {flag}; exec sleep 1000' & exit 0"
    runner.ask(1, "start", *shell(daemon), program=True, follows=True, ready={"file": str(flag)} if waits else None)
    result = runner.result(1, "start")
    assert (result["succeeded"], result["left"]) == (True, True), result
    assert flag.exists() or not waits
    (left,) = wait_for("what it left", lambda: sleeps(runner) if flag.exists() else [])
    assert says_no_exit(runner)
    os.kill(left, signal.SIGTERM)
    assert exited(runner, 1)["status"].endswith("the last of which was killed by SIGTERM")


@pytest.mark.parametrize(
    ("left", "follows", "told"),
    [
        ("setsid sleep 1000 & exit 0", False, "must stay in the foreground, or needs `forking = true`"),
        ("setsid sleep 1000 & exit 3", True, "ended with status 3 before it was ready"),
        ("setsid sh -c 'exit 7' & exit 0", True, "ended with status 0 before it was ready"),
        ("exit 0", True, "ended with status 0 before it was ready"),
    ],
)
def test_p8_18_a_program_that_ends_at_its_start_and_leaves_nothing_that_goes_on_has_failed_to_start(
    runner: RealRunner, left: str, follows: bool, told: str
) -> None:
    result = runner.run(1, "start", *shell(left), program=True, follows=follows, ready={"file": "/nowhere/at/all"})
    assert not result["succeeded"]
    assert told in result["detail"]


def test_p8_18_a_start_command_may_have_something_to_wait_for(runner: RealRunner, tmp_path: Path) -> None:
    ready, go = {"file": str(tmp_path / "ready")}, tmp_path / "go"
    daemon = f"setsid sh -c 'while ! [ -e {go} ]; do sleep 0.02; done; touch {ready['file']}; exec sleep 1000' &"
    runner.ask(1, "start", *shell(daemon), ready=ready, follows=True)
    wait_for("the daemon", runner.below)
    assert not [packet for packet in runner.heard if packet["say"] == "finished"]
    go.touch()
    assert runner.result(1, "start")["succeeded"]
    assert runner.run(2, "stop")["succeeded"]
    result = runner.run(3, "start", *shell("exit 0"), ready={"file": "/nowhere/at/all"}, timeout_ms=1500)
    assert "was not ready within 1500 ms: file /nowhere/at/all is not there" in result["detail"]
    result = runner.run(4, "start", *shell("setsid sh -c 'exit 7' & sleep 0.1"), ready={"file": "/nowhere/at/all"},
                        timeout_ms=300)  # fmt: skip
    assert not result["succeeded"]


def test_p8_18_a_daemon_that_ends_before_it_is_ready_has_failed_to_start_at_once(runner: RealRunner) -> None:
    # it ends once the start command has, whose process id the outer shell puts in
    daemon = 'setsid sh -c "while kill -0 $$ 2>/dev/null; do sleep 0.02; done; sleep 0.2; exit 7" & sleep 0.1'
    result = runner.run(1, "start", *shell(daemon), ready={"file": "/nowhere/at/all"}, follows=True)
    assert "what it had left running ended with status 7" in result["detail"]


def test_p8_18_a_program_is_given_the_time_that_it_asks_for(runner: RealRunner) -> None:
    command = (sys.executable, "-S", "-c", SLOW)
    runner.ask(1, "start", *command, program=True, ready={"notify": True}, timeout_ms=3000)  # it takes four seconds
    assert runner.result(1, "start")["succeeded"]
    runner.ask(2, "start", *shell("exec sleep 1000"), program=True, ready={"notify": True}, timeout_ms=300)
    assert "was not ready within 300 ms" in runner.result(2, "start")["detail"]


def test_p8_18_time_that_a_program_asks_for_is_bounded_and_never_less_than_it_has() -> None:
    condition = Condition(Conditions(notify=True))
    for text, until_us in (
        ("EXTEND_TIMEOUT_USEC=5000000", 6_000_000), ("EXTEND_TIMEOUT_USEC=1", 6_000_000),
        ("EXTEND_TIMEOUT_USEC=-1", 6_000_000), (f"EXTEND_TIMEOUT_USEC={'9' * 18}", 86_401_000_000),
        (f"EXTEND_TIMEOUT_USEC={'9' * 30}", 86_401_000_000),
    ):  # fmt: skip
        condition._take(text, 1_000_000)
        assert condition.extended_us == until_us
    condition.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="not applicable: only root has helpers of another user")
def test_a_helper_of_another_user_may_say_that_its_program_is_ready(runner: RealRunner) -> None:
    command = (sys.executable, "-S", "-c", HELPER_OF_ANOTHER_USER)
    runner.ask(1, "start", *command, program=True, ready={"notify": True}, timeout_ms=10_000)
    assert runner.result(1, "start")["succeeded"]


def test_nobody_outside_a_namespace_is_heard_and_whoever_has_ended_inside_is() -> None:
    def said_by(pid: int, user: int) -> list[tuple[int, int, bytes]]:
        credentials = b"".join(number.to_bytes(4, sys.byteorder) for number in (pid, user, user))
        return [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]

    gone, somebody = 1 << 22, os.geteuid() + 4242  # no kernel gives that number
    assert not _is_of(os.getpid(), said_by(0, os.geteuid()), in_namespace=True)
    assert _is_of(os.getpid(), said_by(gone, somebody), in_namespace=True)
    assert not _is_of(os.getpid(), said_by(gone, somebody), in_namespace=False)
    assert _is_of(os.getpid(), said_by(gone, os.geteuid()), in_namespace=False)


UNHEARD = """
import os, resource, sys
from muster.drivers.image.deadman import Leash, adopt_orphans
from muster.drivers.image.keeper import Launch, spawn_keeper
from muster.records.registers import Deadman
adopt_orphans()
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
launch = Launch("check", ("/bin/sh", "-c", sys.argv[1]), dict(os.environ), dies_with_keeper=True)
keeper = spawn_keeper(launch, Leash(Deadman.PROCESS_TREE))
os.close(keeper.status_fd)
os.close(keeper.output_fd)
print(os.waitstatus_to_exitcode(os.waitpid(keeper.pid, 0)[1]))
"""


@pytest.mark.parametrize("check", ["exit 3", "sleep 0.2 & exit 0", "/nowhere/at/all"])
def test_a_keeper_whom_nobody_hears_any_more_reaps_what_is_below_it_and_writes_nothing(check: str) -> None:
    """As of a check whose time is over while it begins: it must leave neither processes nor lines in the log."""
    ended = subprocess.run(
        [sys.executable, "-c", UNHEARD, check], capture_output=True, text=True, timeout=DEADLINE_S, check=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    assert (ended.stdout, ended.stderr) == ("0\n", "")


# ---- P6.35, P6.38 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "program", "may_run"),
    [
        ("exec sleep 1000", True, False),
        ("setsid sleep 1000 &", False, False),
        ("exit 0", False, True),  # what it has started, if anything, is not below its keeper
    ],
)
def test_p6_35_of_a_stop_that_fails_it_is_told_whether_anything_of_its_service_may_run(
    runner: RealRunner, start: str, program: bool, may_run: bool
) -> None:
    runner.ask(1, "start", *shell(start), program=program)
    assert runner.result(1, "start")["succeeded"]
    for generation in (2, 3):  # whether its program runs or has ended before
        result = runner.run(generation, "stop", *shell("echo not running; exit 1"))
        assert (result["succeeded"], result["left"]) == (False, may_run)
        assert not runner.below()


def test_p6_35_of_a_start_command_that_was_cancelled_nobody_knows(runner: RealRunner) -> None:
    runner.ask(1, "start", *shell("sleep 1000"))
    wait_for("it", lambda: sleeps(runner))
    assert runner.run(2, "stop", "false")["left"]


def test_p6_38_a_start_is_not_tried_again_after_a_status_that_says_that_it_is_in_vain(
    runner: RealRunner, tmp_path: Path
) -> None:
    runner.ask(1, "start", *shell(f"echo >> {tmp_path}/tries; exit 6"), retries=3, final=[5, 6])
    result = runner.result(1, "start")
    assert (result["succeeded"], result["status"]) == (False, 6)
    assert len((tmp_path / "tries").read_text().splitlines()) == 1
    runner.ask(2, "start", *shell(f"echo >> {tmp_path}/tries; exit 4"), retries=1, final=[5, 6])
    assert runner.result(2, "start")["status"] == 4
    assert len((tmp_path / "tries").read_text().splitlines()) == 3
