"""Supervised programs, readiness and exits; retries, notify commands, action functions (SPEC 6.6, 5.2, 5.4)."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.core.effects import Readiness, RunCommand
from muster.dev.development_cluster import free_addresses
from muster.drivers.image.process_tree import read_parents
from muster.drivers.runner_client import CommandEnded, ProgramExited, RunnerClient
from muster.records.services import CommandState
from real_node import DEADLINE_S, wait_for
from real_runner import RealRunner, shell

NOTIFIER = """
import os, socket, sys, time
address = os.environ["NOTIFY_SOCKET"]
assert address[0] == "@", address
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
    end.sendto(b"STATUS=loading\\n", "\\0" + address[1:])
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    end.sendto(b"STATUS=serving\\nREADY=1\\n", "\\0" + address[1:])
time.sleep(1000)
"""
LISTENER = """
import os, socket, sys, time
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    time.sleep(1000)
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[RealRunner]:
    """A running runner."""
    real = RealRunner(tmp_path)
    yield real
    real.close()


def start(runner: RealRunner, generation: int, *command: str, ready: dict[str, Any] | None = None, **more: Any) -> None:
    """Ask for a program to be started and supervised."""
    runner.ask(generation, "start", *command, program=True, ready=ready or {}, **more)


def exited(runner: RealRunner, generation: int) -> dict[str, Any]:
    """What the runner says of the end of a program."""
    return runner.take(lambda packet: packet["say"] == "exited" and packet["generation"] == generation)


def test_p8_1_a_program_is_started_when_it_has_survived_a_moment_and_its_end_is_told_once(runner: RealRunner) -> None:
    start(runner, 1, *shell("echo hello; exec sleep 1000"))
    assert runner.result(1, "start")["succeeded"]
    (pid,) = wait_for("the program", lambda: [pid for pid, name in runner.below().items() if name == "sleep"])
    os.kill(pid, signal.SIGKILL)
    told = exited(runner, 1)
    assert (told["service"], told["status"], told["output"]) == ("s", "was killed by SIGKILL", "hello")
    # whoever was not there to hear it finds it in the inventory
    runner.send({"do": "inventory", "request": 1})
    (command,) = runner.take(lambda packet: packet["say"] == "inventory")["commands"]
    assert command["exited"]["status"] == "was killed by SIGKILL"
    assert runner.run(2, "start", "true")["succeeded"]
    runner.send({"do": "inventory", "request": 2})
    (command,) = runner.take(lambda packet: packet["say"] == "inventory")["commands"]
    assert "exited" not in command
    assert not [packet for packet in runner.heard if packet["say"] == "exited"]


@pytest.mark.parametrize("status", [0, 3])
def test_a_program_that_ends_before_it_is_ready_has_failed_to_start(runner: RealRunner, status: int) -> None:
    start(runner, 1, *shell(f"echo no license; exit {status}"), ready={"file": "/nowhere/at/all"})
    result = runner.result(1, "start")
    assert not result["succeeded"]
    assert f"ended with status {status} before it was ready" in result["detail"]
    assert "no license" in result["detail"]
    assert ("foreground" in result["detail"]) == (status == 0)


def test_a_program_that_cannot_be_executed_has_failed_to_start(runner: RealRunner) -> None:
    start(runner, 1, "/nowhere/at/all")
    assert "cannot execute /nowhere/at/all" in runner.result(1, "start")["detail"]


def test_a_program_is_ready_when_it_says_so_and_its_status_is_known(runner: RealRunner, tmp_path: Path) -> None:
    start(runner, 1, sys.executable, "-S", "-c", NOTIFIER, str(tmp_path / "go"), ready={"notify": True})

    def says_loading() -> bool:
        runner.send({"do": "output", "request": 1, "service": "s"})
        return bool(runner.take(lambda packet: packet["say"] == "output")["status"] == "loading")

    wait_for("its status", says_loading)
    assert not [packet for packet in runner.heard if packet["say"] == "finished"]
    (tmp_path / "go").touch()
    assert runner.result(1, "start")["succeeded"]


def test_only_the_program_itself_can_say_that_it_is_ready(runner: RealRunner, tmp_path: Path) -> None:
    start(runner, 1, *shell(f"echo $NOTIFY_SOCKET > {tmp_path}/address; exec sleep 1000"), ready={"notify": True},
          timeout_ms=3000)  # fmt: skip
    file = tmp_path / "address"
    address: str = wait_for("the address", lambda: file.read_text() if file.exists() else "")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.sendto(b"READY=1", "\0" + address.strip()[1:])
    detail = runner.result(1, "start")["detail"]
    assert "was not ready within 3000 ms: it has not said READY=1" in detail
    assert not runner.below()


def test_a_program_is_ready_when_its_port_accepts(runner: RealRunner, tmp_path: Path) -> None:
    port = int(free_addresses(1)[0].rpartition(":")[2])
    go = tmp_path / "go"
    start(runner, 1, sys.executable, "-S", "-c", LISTENER, str(port), str(go), ready={"port": port})
    wait_for("the program", runner.below)
    assert not [packet for packet in runner.heard if packet["say"] == "finished"]
    go.touch()
    assert runner.result(1, "start")["succeeded"]


def test_a_port_that_another_program_has_is_named_before_anything_is_started(runner: RealRunner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        start(runner, 1, "sleep", "1000", ready={"port": port})
        detail = runner.result(1, "start")["detail"]
    assert f"port {port} of this machine's loopback address accepts connections before it was started" in detail


def test_a_file_that_an_earlier_life_left_does_not_make_a_program_ready(runner: RealRunner, tmp_path: Path) -> None:
    file, go = tmp_path / "ready", tmp_path / "go"
    file.touch()
    program = shell(f"while [ ! -e {go} ]; do sleep 0.02; done; echo > {file}; exec sleep 1000")
    start(runner, 1, *program, ready={"file": str(file)})
    wait_for("the program", runner.below)
    assert not [packet for packet in runner.heard if packet["say"] == "finished"]
    go.touch()
    assert runner.result(1, "start")["succeeded"]


# A file system that hangs: who looks at a file below /hung, or below a folder that has a file `hung`, waits for ever.
HUNG = """
import os, time
from muster.drivers.image import keeper, looker
real = looker.stamp_of
def stamp_of(path):
    while path.startswith("/hung") or os.path.exists(os.path.dirname(path) + "/hung"):
        time.sleep(0.01)
    return real(path)
keeper.stamp_of = looker.stamp_of = stamp_of
"""


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[RealRunner]:
    """A runner on a machine with a file system that hangs."""
    real = RealRunner(tmp_path, HUNG)
    yield real
    real.close()


def test_p7_9_a_ready_file_whose_file_system_hangs_holds_up_its_own_start_only(hanging: RealRunner) -> None:
    start(hanging, 1, "sleep", "1000", ready={"file": "/hung/ready"}, timeout_ms=1500)
    hanging.pulses()
    assert hanging.run(1, "start", "true", service="other")["succeeded"]
    result = hanging.result(1, "start")
    assert not result["succeeded"]
    assert "/hung/ready cannot be looked at: its file system has not answered" in result["detail"]
    assert hanging.pulses() > 5, "the runner goes on meanwhile"
    wait_for("the end of all", lambda: not hanging.keepers())
    assert not hanging.below(), "nothing is executed whose file before the start is not known"


def test_p7_9_a_file_system_that_hangs_after_the_start_holds_up_the_start_until_it_answers(
    hanging: RealRunner, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    program = shell(f"touch {folder}/hung {folder}/ready; exec sleep 1000")
    start(hanging, 1, *program, ready={"file": str(folder / "ready")})
    wait_for("the program", lambda: "sleep" in hanging.below().values())
    assert hanging.run(1, "start", "true", service="other")["succeeded"]
    (folder / "hung").unlink()
    assert hanging.result(1, "start")["succeeded"]
    wait_for("the end of the looker", lambda: len(hanging.keepers()) == 1)
    assert hanging.run(2, "stop")["succeeded"]
    assert not hanging.keepers()


def test_p7_9_a_looker_that_is_killed_is_replaced_and_one_that_is_not_needed_any_more_ends(
    runner: RealRunner, tmp_path: Path
) -> None:
    file = tmp_path / "ready"
    start(runner, 1, "sleep", "1000", ready={"file": str(file)})
    wait_for("the program", runner.below)

    def lookers() -> set[int]:
        parents = set(read_parents().values())
        return {pid for pid in runner.keepers() if pid not in parents}  # nothing runs below it

    # a keeper that has just been forked has nothing below it either
    (looker,) = wait_for("its looker, alone", lambda: found if len(found := lookers()) == 1 else None)
    os.kill(looker, signal.SIGKILL)
    wait_for("another one", lambda: lookers() - {looker})
    file.touch()
    assert runner.result(1, "start")["succeeded"]
    wait_for("its end", lambda: not lookers())
    start(runner, 2, "sleep", "1000", ready={"file": str(file)}, timeout_ms=2000)
    assert f"{file} is an old one" in runner.result(2, "start")["detail"]
    wait_for("the end of all", lambda: not runner.keepers())


def test_a_ready_command_is_repeated_until_it_succeeds(runner: RealRunner, tmp_path: Path) -> None:
    probe = list(shell(f"echo >> {tmp_path}/tries; [ $(wc -l < {tmp_path}/tries) -ge 3 ]"))
    start(runner, 1, "sleep", "1000", ready={"command": probe})
    assert runner.result(1, "start")["succeeded"]
    assert (tmp_path / "tries").read_text() == "\n\n\n"
    assert runner.run(2, "stop")["succeeded"]
    assert not runner.below()


def test_a_stop_command_finds_the_program_running_and_the_ladder_ends_it(runner: RealRunner, tmp_path: Path) -> None:
    assert runner.run(1, "start", *shell("sleep 1111 &"), service="bystander")["succeeded"]
    file = tmp_path / "pid"
    own = f"trap '' TERM; echo $$ > {file}.new; mv {file}.new {file}; while :; do sleep 0.05; done"
    start(runner, 2, *shell(own), ready={"file": str(file)})
    assert runner.result(2, "start")["succeeded"]
    program = int(file.read_text())
    stop = shell(f"kill -0 {program} && touch {tmp_path}/alive")
    result = runner.run(3, "stop", *stop, timeout_ms=500, grace_ms=100)
    assert (result["succeeded"], result["detail"]) == (True, "what was left ignored SIGTERM and was killed")
    assert (tmp_path / "alive").exists()
    command, killed = [packet for packet in runner.heard if packet["say"] == "ended" and packet["generation"] == 3]
    assert (command["action"], command["status"]) == ("stop", "ended with status 0")
    assert (killed["action"], killed["status"], killed["failure"]) == ("stop", result["detail"], "")
    assert killed["duration_ms"] >= 100
    assert len(runner.below()) == 1  # the bystander
    assert not [packet for packet in runner.heard if packet["say"] == "exited"]


def test_a_failed_command_is_tried_again_before_it_counts_as_failed(runner: RealRunner, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    command = shell(f"sleep 1000 & echo $$ >> {tries}; echo try $(wc -l < {tries}); [ $(wc -l < {tries}) -ge 3 ]")
    assert runner.run(1, "start", *command, retries=2, retry_pause_ms=20)["succeeded"]
    attempts = [packet for packet in runner.heard if packet["say"] == "ended"]
    assert [(each["attempt"], each["status"], each["output"]) for each in attempts] == [
        (1, "ended with status 1", "try 1"), (2, "ended with status 1", "try 2"), (3, "ended with status 0", "try 3"),
    ]  # fmt: skip
    assert len(runner.below()) == 1  # what the failed attempts had left was ended
    result = runner.run(2, "stop", *shell("exit 4"), retries=1, retry_pause_ms=10)
    assert not result["succeeded"]
    assert result["detail"].startswith("attempt 2 of 2: ended with status 4")


def test_a_stop_that_is_tried_again_leaves_its_service_alone_in_between(runner: RealRunner, tmp_path: Path) -> None:
    seen, pid = tmp_path / "seen", tmp_path / "pid"
    assert runner.run(1, "start", *shell(f"sleep 1000 & echo $! > {pid}"))["succeeded"]
    looks = f"kill -0 $(cat {pid}) && echo alive >> {seen} || echo gone >> {seen}"
    stop = shell(f"{looks}; [ -e {seen}2 ] || (touch {seen}2; sleep 1000)")
    result = runner.run(2, "stop", *stop, retries=1, retry_pause_ms=10, timeout_ms=4000, grace_ms=100)
    assert result["succeeded"], result
    assert seen.read_text().split() == ["alive", "alive"]
    assert not runner.below()


def test_p8_2_a_notify_command_cancels_nothing_and_gives_way_to_what_is_newer(
    runner: RealRunner, tmp_path: Path
) -> None:
    assert runner.run(5, "start", *shell("sleep 1000 &"))["succeeded"]
    refused = runner.run(4, "notify", "true")
    assert "generation 4 is not newer than 5" in refused["detail"]
    assert runner.run(6, "stop")["succeeded"]
    assert runner.run(7, "notify", "true")["succeeded"]
    runner.ask(8, "notify", *shell(f"touch {tmp_path}/begun; sleep 1000"))
    wait_for("the notify command", (tmp_path / "begun").exists)
    assert runner.run(9, "start", *shell("sleep 1000 &"))["succeeded"]
    assert runner.result(8, "notify")["detail"] == "cancelled by generation 9 (start)"
    assert len(runner.below()) == 1
    runner.send({"do": "inventory", "request": 1})
    commands = runner.take(lambda packet: packet["say"] == "inventory")["commands"]
    assert {(command["action"], command["generation"]) for command in commands} == {("start", 9), ("notify", 8)}


def test_p8_3_action_functions_run_side_by_side_are_ended_on_demand_and_leave_nothing(
    runner: RealRunner, tmp_path: Path
) -> None:
    for number in (1, 2):
        runner.ask(number, "act", *shell(f"touch {tmp_path}/{number}; sleep 1000"), service="alarm")
    wait_for("both", lambda: (tmp_path / "1").exists() and (tmp_path / "2").exists())
    runner.send({"do": "cancel", "service": "alarm", "generation": 1, "action": "act", "reason": "the node leaves"})
    result = runner.result(1, "act")
    assert (result["succeeded"], result["detail"]) == (False, "the node leaves")
    assert runner.run(3, "act", *shell("sleep 1000 & echo $MUSTER_SERVICE."), service="alarm")["succeeded"]
    assert runner.take(lambda packet: packet["say"] == "ended" and packet["generation"] == 3)["output"] == "."
    runner.send({"do": "inventory", "request": 1})
    commands = runner.take(lambda packet: packet["say"] == "inventory")["commands"]
    assert [command["generation"] for command in commands] == [2]  # the others are forgotten


def test_p8_1_an_exit_that_no_daemon_heard_is_in_the_next_daemons_inventory(runner: RealRunner) -> None:
    async def first() -> None:
        heard: list[CommandState] = []
        client = RunnerClient(runner.daemon.dup(), heard.append)
        await client.inventory()
        ready = Readiness(command=("true",))
        client.run(
            RunCommand("s", 1, 1, "start", shell("echo up; exec sleep 1000"), 20_000, {}, 0, 0, 100, True, ready)
        )
        async with asyncio.timeout(DEADLINE_S):
            while not heard:  # noqa: ASYNC110 - a plain list, as a daemon would fill it
                await asyncio.sleep(0.01)
        assert heard == [CommandState("s", 1, "start", True, True, "")]
        assert (await client.output("s", DEADLINE_S)).output == "up"
        client.close()

    async def second() -> None:
        ended: list[CommandEnded] = []
        told: list[ProgramExited] = []
        client = RunnerClient(runner.daemon.dup(), lambda _: None, None, ended.append, told.append)
        assert [state.succeeded for state in await client.inventory()] == [True]
        assert not told
        assert (client.exited["s"].generation, client.exited["s"].status) == (1, "was killed by SIGTERM")
        client.close()

    asyncio.run(first())
    (pid,) = [pid for pid, name in runner.below().items() if name == "sleep"]
    os.kill(pid, signal.SIGTERM)
    wait_for("its end", lambda: not runner.keepers())
    asyncio.run(second())
