"""The runner with real commands (SPEC 6.6, 7.3, 7.7, 7.8)."""

import asyncio
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from muster.core.effects import RunCommand
from muster.core.launching.ledger import DETAIL_CHARACTERS
from muster.drivers.image.commands import MAXIMUM_NAME_CHARACTERS
from muster.drivers.image.process_tree import read_parents, send
from muster.drivers.image.runner import OUTBOX_LIMIT
from muster.drivers.image.runner_packets import PACKET_BYTES
from muster.drivers.runner_client import RunnerClient, RunnerLost
from muster.records.services import CommandState
from real_node import DEADLINE_S, wait_for
from real_runner import RealRunner, shell

DETACHED = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        if "stubborn" in sys.argv:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(sys.argv[1], "w").write(str(os.getpid()))
        os.execve("/bin/sleep", ["sleep", "1000"], {})
    os._exit(0)
os.wait()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[RealRunner]:
    """A running runner."""
    real = RealRunner(tmp_path)
    yield real
    real.close()


def test_a_start_ends_with_its_command_and_what_it_leaves_goes_on_until_the_stop(runner: RealRunner) -> None:
    # The background process holds the output open: the end of a command is its exit, not the end of its output.
    result = runner.run(1, "start", *shell("sleep 1000 & sleep 1000 & echo started"))
    assert (result["succeeded"], result["detail"], result["service"]) == (True, "", "s")
    wait_for("both", lambda: sorted(runner.below().values()) == ["sleep", "sleep"])
    result = runner.run(2, "stop")
    assert (result["succeeded"], result["detail"]) == (True, "")
    assert not runner.below()
    wait_for("no keeper", lambda: not runner.keepers())


# How long the processes sleep that are counted: of all on this machine only those of this run of the tests do so.
MARK = f"9876.{os.getpid()}"


def count_marked(into: Path) -> str:
    """What writes into a file how many of them there are; the shell that says so is not counted."""
    return f"ps -A -o args | grep -c '[s]leep {MARK}' > {into}"


@pytest.mark.parametrize("stubborn", ["", "stubborn"])
def test_a_process_that_detached_itself_twice_and_cleared_its_environment_ends_before_the_stop_is_reported(
    stubborn: str, runner: RealRunner, tmp_path: Path
) -> None:
    command = (sys.executable, "-c", DETACHED, str(tmp_path / "pid"), stubborn)
    assert runner.run(1, "start", *command)["succeeded"]
    wait_for("sleep", lambda: list(runner.below().values()) == ["sleep"])
    pid = int((tmp_path / "pid").read_text())
    result = runner.run(2, "stop", timeout_ms=300 if stubborn else 20_000, stop_signal="SIGTERM")
    assert result["succeeded"]
    assert ("ignored SIGTERM and was killed" in result["detail"]) == bool(stubborn)
    stops = [packet["status"] for packet in runner.heard if packet["say"] == "ended" and packet["action"] == "stop"]
    assert stops == (["what was left ignored SIGTERM and was killed"] if stubborn else [])  # P8.21
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_a_stop_command_leaves_is_ended_too(runner: RealRunner, tmp_path: Path) -> None:
    runner.run(1, "start", *shell(f"sleep {MARK} &"))
    # The service is still there when its own stop command runs.
    result = runner.run(2, "stop", *shell(f"{count_marked(tmp_path / 'seen')}; sleep 999 &"))
    assert result["succeeded"]
    assert (tmp_path / "seen").read_text() == "1\n"
    assert not runner.below()


def test_a_failed_stop_command_is_reported_as_failed_and_yet_nothing_runs(runner: RealRunner) -> None:
    runner.run(1, "start", *shell("sleep 1000 &"))
    result = runner.run(2, "stop", *shell("echo 'disk is busy' >&2; exit 4"))
    assert (result["succeeded"], result["detail"]) == (False, "ended with status 4; it wrote: disk is busy")
    assert not runner.below()


def test_what_a_failed_start_left_is_ended_before_the_failure_is_reported(runner: RealRunner) -> None:
    result = runner.run(1, "start", *shell("sleep 1000 & echo no license; kill -USR2 $$"))
    assert (result["succeeded"], result["detail"]) == (False, "was killed by SIGUSR2; it wrote: no license")
    assert not runner.below()


def test_a_command_that_never_ends_is_ended_at_its_time_limit(runner: RealRunner) -> None:
    command = shell("trap '' TERM; echo waiting; sleep 1000 & while :; do wait; done")
    result = runner.run(1, "start", *command, timeout_ms=2000)
    assert not result["succeeded"], result
    assert result["detail"] == "did not end within 2000 ms; it wrote: waiting"
    assert not runner.below()


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (None, 0, "No such file or directory; install it on this node"),
        ("#!/bin/sh\n", 0o600, "Permission denied; make it executable"),
        ("#!/nowhere/sh\n", 0o700, "No such file or directory; install it"),
        ("just words\n", 0o700, "Exec format error; begin the script with a line such as #!/bin/sh"),
    ],
)
def test_a_command_that_cannot_be_executed_is_named_with_the_reason(
    content: str | None, mode: int, says: str, runner: RealRunner, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    result = runner.run(1, "start", str(program), "--now")
    assert not result["succeeded"], result
    assert f"cannot execute {program}: {says}" in result["detail"]


def test_a_program_is_looked_up_in_the_path_of_its_service(runner: RealRunner) -> None:
    assert runner.run(1, "start", "true")["succeeded"]
    assert "cannot execute no-such-program-anywhere" in runner.run(2, "start", "no-such-program-anywhere")["detail"]


def test_a_flood_of_output_is_drained_and_costs_neither_memory_nor_pulses(runner: RealRunner) -> None:
    assert runner.run(1, "start", *shell("yes & yes & sleep 0.1"))["succeeded"]
    before_kib = runner.resident_kib()
    runner.pulses()
    seen = 0
    deadline = time.monotonic() + DEADLINE_S
    while seen < 20:
        seen += runner.pulses()
        assert time.monotonic() < deadline
    # A writer that is never held up: the kernel counts what it has written.
    yes = next(pid for pid, name in runner.below().items() if name == "yes")

    def written() -> int:
        return int(Path(f"/proc/{yes}/io").read_text().split("wchar: ")[1].split()[0])

    wait_for("it to have written much", lambda: written() > 100 * 65536)
    assert runner.resident_kib() < before_kib + 4096
    assert runner.run(2, "stop")["succeeded"]
    assert not runner.below()


def test_of_much_output_the_end_is_reported_within_its_bound(runner: RealRunner) -> None:
    result = runner.run(1, "start", *shell("seq 1 100000; printf '\\377\\n'; echo last words; exit 3"))
    assert result["detail"].startswith("ended with status 3; it wrote: ...")
    assert result["detail"].endswith("99999\n100000\n\ufffd\nlast words")
    assert len(result["detail"]) <= DETAIL_CHARACTERS


def test_a_repeated_request_is_answered_from_memory_and_an_older_one_refused(
    runner: RealRunner, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    command = shell(f"echo once >> {record}; echo failing; exit 1")
    first = runner.run(5, "start", *command)
    assert runner.run(5, "start", *command) == first
    assert record.read_text() == "once\n"
    for generation, action in ((4, "start"), (4, "stop"), (5, "stop")):
        refused = runner.run(generation, action, *command)
        assert not refused["succeeded"]
        assert refused["detail"] == f"refused: generation {generation} is not newer than 5"
    assert record.read_text() == "once\n"
    runner.ask(6, "start", *shell("sleep 0.2; echo once"))
    assert runner.run(6, "start", *shell("sleep 0.2; echo once"))["succeeded"]  # asked for twice, run and told once
    assert runner.run(7, "stop")["succeeded"]
    assert not [packet for packet in runner.heard if packet["generation"] == 6 and packet["say"] == "finished"]


def test_a_stop_cancels_the_start_under_way_and_every_start_that_arrives_after_it(
    runner: RealRunner, tmp_path: Path
) -> None:
    runner.ask(2, "start", *shell(f"trap '' TERM; touch {tmp_path}/begun; while :; do sleep 1000; done"))
    wait_for("the start", (tmp_path / "begun").exists)
    runner.ask(4, "stop", *shell(f"touch {tmp_path}/stopped"))
    runner.ask(3, "start", *shell(f"touch {tmp_path}/late"))
    cancelled = runner.result(2, "start")
    assert (cancelled["succeeded"], cancelled["detail"]) == (False, "cancelled by generation 4 (stop)")
    assert "not newer than 4" in runner.result(3, "start")["detail"]
    assert runner.result(4, "stop")["succeeded"]
    assert (tmp_path / "stopped").exists()
    assert not (tmp_path / "late").exists()
    assert not runner.below()


def test_a_start_or_recovery_begins_only_when_nothing_of_the_service_is_left(
    runner: RealRunner, tmp_path: Path
) -> None:
    check = f"{count_marked(tmp_path / 'seen')}; true"
    assert runner.run(1, "start", *shell(f"sleep {MARK} &"))["succeeded"]
    assert runner.run(2, "start", *shell(check))["succeeded"]
    assert (tmp_path / "seen").read_text() == "0\n"
    assert runner.run(3, "start", *shell(f"sleep {MARK} &"))["succeeded"]
    assert runner.run(4, "recovery", *shell(f"{check}; sleep ''{MARK} &"))["succeeded"]
    assert (tmp_path / "seen").read_text() == "0\n"
    assert not runner.below()


def test_services_do_not_touch_each_other(runner: RealRunner) -> None:
    for service in ("a", "b"):
        assert runner.run(1 + ord(service), "start", *shell("sleep 1000 &"), service=service)["succeeded"]
    runner.ask(300, "start", *shell("sleep 0.5; exit 1"), service="c")
    assert runner.run(301, "stop", service="a")["succeeded"]
    assert sorted(runner.below().values()).count("sleep") >= 1
    assert not runner.result(300, "start")["succeeded"]
    assert list(runner.below().values()) == ["sleep"]


def test_a_command_gets_its_environment_a_session_of_its_own_and_nothing_else(
    runner: RealRunner, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    program = (
        "import json, os, resource, signal, sys; json.dump({'environment': dict(os.environ), 'leader': os.getsid(0), "
        "'pid': os.getpid(), 'files': sorted(map(int, os.listdir('/proc/self/fd'))), 'folder': os.getcwd(), "
        "'stdin': os.readlink('/proc/self/fd/0'), 'blocked': list(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "
        "'limit': resource.getrlimit(resource.RLIMIT_NOFILE)}, open(sys.argv[1], 'w'))"
    )
    assert runner.run(9, "start", sys.executable, "-S", "-c", program, str(out))["succeeded"]
    seen = json.loads(out.read_text())
    environment = seen["environment"]
    expected = {"SERVICE": "s", "UID": "7", "GENERATION": "9", "ACTION": "start", "NODE_HOME": str(runner.home)}
    ours = {key: value for key, value in environment.items() if "MUSTER_" in key and os.environ.get(key) != value}
    assert {key.removeprefix("MUSTER_"): value for key, value in ours.items()} == expected
    assert environment["COLOUR"] == "blue"
    assert seen["leader"] == seen["pid"]
    assert seen["files"][:3] == [0, 1, 2] and len(seen["files"]) == 4  # the fourth lists the others
    assert (seen["folder"], seen["stdin"], seen["blocked"]) == ("/", "/dev/null", [])
    assert seen["limit"][0] == 1024  # whatever this process has (P8.19)


def test_what_a_killed_keeper_leaves_still_belongs_to_its_service(runner: RealRunner) -> None:
    assert runner.run(1, "start", *shell("env -i setsid sleep 1000 & setsid sleep 1001 &"))["succeeded"]
    wait_for("two", lambda: list(runner.below().values()) == ["sleep", "sleep"])
    (keeper,) = runner.keepers()
    os.kill(keeper, signal.SIGSTOP)  # so that it cannot end its own orphans
    send([keeper], signal.SIGKILL)
    wait_for("no keeper", lambda: not runner.keepers())
    assert list(runner.below().values()) == ["sleep", "sleep"]
    assert runner.run(2, "stop")["succeeded"]
    assert not runner.below()


def test_a_command_whose_keeper_is_killed_has_failed(runner: RealRunner) -> None:
    runner.ask(1, "start", *shell("sleep 1000"))
    (keeper,) = wait_for("keeper", lambda: runner.keepers() if runner.below() else None)
    os.kill(keeper, signal.SIGKILL)
    result = runner.result(1, "start")
    assert not result["succeeded"], result
    assert not runner.below()


def test_a_stopped_process_and_a_stopped_keeper_end_all_the_same(runner: RealRunner) -> None:
    assert runner.run(1, "start", *shell("sleep 1000 &"))["succeeded"]
    send([*runner.below(), *runner.keepers()], signal.SIGSTOP)
    result = runner.run(2, "stop")
    assert (result["succeeded"], result["detail"]) == (True, "")
    assert not runner.below()


def test_nothing_outlives_the_runner_in_a_process_tree(runner: RealRunner, tmp_path: Path) -> None:
    command = (sys.executable, "-c", DETACHED, str(tmp_path / "pid"), "stubborn")
    assert runner.run(1, "start", *command)["succeeded"]
    pid = int((tmp_path / "pid").read_text())
    runner.process.kill()
    runner.process.wait(DEADLINE_S)
    wait_for("its end", lambda: pid not in read_parents() and not runner.left())


@pytest.mark.parametrize(
    ("packet", "says"),
    [
        (b"\xff garbage", "a packet is not JSON"),
        (b"[" * 30_000, "a packet is not JSON"),
        (b"7", "asks for None"),
        ({"do": "dance"}, "asks for 'dance'"),
        ({"do": "run"}, "service is None"),
        ({"do": "inventory", "request": "x"}, "request is 'x'"),
        (b"x" * (PACKET_BYTES + 10), f"longer than {PACKET_BYTES} bytes"),
    ],
)
def test_a_packet_that_is_no_request_is_refused_with_the_reason(packet: object, says: str, runner: RealRunner) -> None:
    runner.send(packet)
    assert says in runner.take(lambda heard: heard["say"] == "refused")["detail"]
    assert runner.run(1, "start", "true")["succeeded"]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("service", "", "service is ''"),
        ("service", "x" * (MAXIMUM_NAME_CHARACTERS + 1), "characters"),
        ("generation", 0, "generation is 0"),
        ("generation", True, "generation is True"),
        ("timeout_ms", -1, "timeout_ms is -1"),
        ("action", "restart", "action is 'restart'"),
        ("command", "sleep 1", "command must be a list"),
        ("command", ["a\0b"], "command must be a list of texts without NUL"),
        ("environment", {"A=B": "c"}, "environment must map names"),
        ("environment", {"A": 1}, "environment must map names"),
    ],
)
def test_a_request_with_a_wrong_part_is_refused_by_name(key: str, value: object, says: str, runner: RealRunner) -> None:
    good = {"do": "run", "service": "s", "uid": 1, "generation": 1, "action": "stop", "command": []}
    runner.send({**good, "timeout_ms": 100, "environment": {}, key: value})
    assert says in runner.take(lambda heard: heard["say"] == "refused")["detail"]


def test_p6_31_a_command_that_is_refused_has_failed(runner: RealRunner) -> None:
    failed = runner.run(3, "stop", environment={"MUSTER_REASON": "it wrote a\0b"})
    assert (failed["succeeded"], failed["service"]) == (False, "s")
    assert failed["detail"].startswith("refused: run s: environment must map names")
    assert runner.run(4, "stop")["succeeded"]


def test_p6_31_a_daemon_asks_no_runner_for_what_it_would_refuse(runner: RealRunner) -> None:
    async def run() -> None:
        finished: list[CommandState] = []
        client = RunnerClient(runner.daemon.dup(), finished.append)
        await client.inventory()
        client.run(replace(request(1, "stop"), environment={"MUSTER_REASON": "a\0b"}))
        client.run(replace(request(2, "stop"), environment={"A=B": "c"}))
        client.run(request(3, "stop", "a\0b"))
        await heard_by(finished, 3)
        assert [command.succeeded for command in finished] == [False] * 3
        assert all(command.detail.startswith("refused: ") for command in finished)
        assert await client.inventory() == ()
        client.close()

    asyncio.run(run())


def test_no_result_is_lost_while_nobody_listens(runner: RealRunner) -> None:
    count = 3 * OUTBOX_LIMIT
    names = [f"{number:0200d}" for number in range(count)]
    runner.daemon.setblocking(False)
    waiting = list(names)
    while waiting:  # until the runner takes no more, and then as it hears that somebody listens again
        try:
            runner.ask(1, "stop", service=waiting[0])
            waiting.pop(0)
        except BlockingIOError:
            select.select([runner.daemon], [], [], DEADLINE_S)
            runner.heard.append(json.loads(runner.daemon.recv(PACKET_BYTES)))
    for name in names:
        assert runner.take(lambda packet, name=name: packet["service"] == name)["succeeded"]  # type: ignore[misc]
    runner.send({"do": "inventory", "request": 3})
    parts = [runner.take(lambda packet: packet["say"] == "inventory")]
    while not parts[-1]["last"]:
        parts.append(runner.take(lambda packet: packet["say"] == "inventory"))
    assert len(parts) > 1
    assert [command["service"] for part in parts for command in part["commands"]] == names
    assert dict.fromkeys(names, 1) == {name: value for part in parts for name, value in part["highest"].items()}


def request(generation: int, action: str, *command: str, timeout_ms: int = 20_000) -> RunCommand:
    return RunCommand("s", 1, generation, action, command, timeout_ms, {})


async def heard_by(finished: list[CommandState], count: int) -> None:
    """Wait until the client has handed over so many results."""
    async with asyncio.timeout(DEADLINE_S):
        while len(finished) < count:  # noqa: ASYNC110 - it is a plain list, as a daemon would fill it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("start", "left"),
    [
        ("exit 0", False),
        ("sleep 1000 &", True),
        ("(setsid sleep 1000 & exit 0) >/dev/null", True),
        ("sleep 0.1 & wait", False),
        ("env -i setsid sh -c 'sleep 1000 & exit 0'", True),
    ],
)
def test_p6_9_a_start_that_has_left_nothing_running_says_so(runner: RealRunner, start: str, left: bool) -> None:
    async def run() -> None:
        finished: list[CommandState] = []
        client = RunnerClient(runner.daemon.dup(), finished.append)
        await client.inventory()
        client.run(request(1, "start", *shell(start)))
        await heard_by(finished, 1)
        assert finished == [CommandState("s", 1, "start", True, True, "", left)]
        assert await client.inventory() == (finished[0],)
        client.close()

    asyncio.run(run())


def test_a_restarted_daemon_finds_what_earlier_ones_started(runner: RealRunner, tmp_path: Path) -> None:
    async def first() -> None:
        finished: list[CommandState] = []
        client = RunnerClient(runner.daemon.dup(), finished.append)
        assert await client.inventory() == ()
        client.run(request(1, "start", *shell("sleep 1000 &")))
        await heard_by(finished, 1)
        assert finished == [CommandState("s", 1, "start", True, True, "", left=True)]
        client.run(request(2, "stop", *shell(f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done")))
        await client.inventory()  # and dies in the middle of the stop
        client.close()

    async def second() -> None:
        finished: list[CommandState] = []
        client = RunnerClient(runner.daemon.dup(), finished.append)
        assert await client.inventory() == (CommandState("s", 2, "stop", False, False, ""),)
        (tmp_path / "go").touch()
        await heard_by(finished, 1)
        assert finished == [CommandState("s", 2, "stop", True, True, "")]
        client.run(request(2, "stop"))
        await heard_by(finished, 2)
        assert finished[1] == finished[0]
        client.close()

    asyncio.run(first())
    asyncio.run(second())


def test_results_that_nobody_took_are_in_the_next_inventory_once(runner: RealRunner) -> None:
    assert runner.run(1, "start", "true")["succeeded"]
    runner.send({"do": "inventory", "request": 5})  # the answer to a daemon that is gone
    runner.ask(2, "start", "false")
    wait_for("its end", lambda: not runner.keepers())

    async def successor() -> None:
        finished: list[CommandState] = []
        client = RunnerClient(runner.daemon.dup(), finished.append)
        (state,) = await client.inventory()
        if not state.finished:
            await heard_by(finished, 1)
            (state,) = finished
        assert (state.generation, state.succeeded, state.detail) == (2, False, "ended with status 1; it wrote nothing")
        client.close()

    asyncio.run(successor())


def test_a_command_too_long_for_the_channel_fails_with_its_size(runner: RealRunner) -> None:
    async def ask() -> None:
        finished: list[CommandState] = []
        client = RunnerClient(runner.daemon.dup(), finished.append)
        client.run(request(1, "start", "echo", "x" * PACKET_BYTES))
        assert not finished  # never from within the request itself
        await heard_by(finished, 1)
        assert not finished[0].succeeded
        assert f"{PACKET_BYTES} are allowed" in finished[0].detail
        client.close()

    asyncio.run(ask())


def test_the_end_of_the_runner_is_told_to_whoever_waits_for_it(runner: RealRunner) -> None:
    async def wait() -> None:
        finished: list[CommandState] = []
        client = RunnerClient(runner.daemon.dup(), finished.append)
        os.kill(runner.process.pid, signal.SIGSTOP)
        waiting = asyncio.ensure_future(client.inventory())
        await asyncio.sleep(0)
        runner.process.kill()
        runner.process.wait(DEADLINE_S)
        with pytest.raises(RunnerLost):
            await waiting
        with pytest.raises(RunnerLost):
            await client.inventory()

    runner.inits_end.close()
    asyncio.run(wait())


# What a process was executed with cannot be read while a file `hung` is there: it holds the lock that this takes.
HUNG = """
import os, time
from muster.drivers.image import asking
real = asking.read_environment
def read_environment(pid):
    while os.path.exists({home!r} + "/hung"):
        time.sleep(0.01)
    return real(pid)
asking.read_environment = read_environment
"""


@pytest.mark.parametrize("hangs", [False, True])
def test_p7_9_whose_a_stray_is_may_hang_and_its_service_is_ended_all_the_same(hangs: bool, tmp_path: Path) -> None:
    runner = RealRunner(tmp_path, HUNG.format(home=str(tmp_path)))
    try:
        for service in ("s", "other"):
            assert runner.run(1, "start", *shell("sleep 1000 &"), service=service)["succeeded"]
        keepers = runner.keepers()
        if hangs:
            (tmp_path / "hung").touch()
        runner.pulses()
        os.kill(keepers[0], signal.SIGKILL)
        wait_for("the keeper's end", lambda: keepers[0] not in read_parents())
        assert runner.run(1, "start", "true", service="third")["succeeded"]
        wait_for("pulses that go on", lambda: runner.pulses() > 0)
        for service in ("s", "other"):
            assert runner.run(2, "stop", service=service)["succeeded"]
            runner.heard.clear()
        assert not runner.below()
        wait_for("no reader is left", lambda: not children(runner))
    finally:
        runner.close()


# Signals reach nothing, as where the kernel holds processes.
HELD = """
from muster.drivers.image import runner
runner.KILL_BOUND_MS = 50
runner.send = lambda pids, number: list(pids) and None
"""


def test_processes_that_are_there_after_sigkill_are_a_failure_and_named(tmp_path: Path) -> None:
    runner = RealRunner(tmp_path, HELD)
    try:
        assert runner.run(1, "start", *shell("sleep 1000 &"))["succeeded"]
        wait_for("sleep", lambda: list(runner.below().values()) == ["sleep"])
        result = runner.run(2, "stop", timeout_ms=20)
        assert not result["succeeded"]
        (pid,) = runner.below()
        assert result["detail"].startswith("still there after SIGKILL, so the kernel holds them: ")
        assert f"{pid} (sleep)" in result["detail"]
    finally:
        runner.close()


def test_of_a_forgotten_service_nothing_older_is_taken(tmp_path: Path) -> None:
    runner = RealRunner(tmp_path, "from muster.drivers.image import runner\nrunner.MAXIMUM_SERVICES = 2\n")
    try:
        for generation, service in ((5, "a"), (6, "b"), (7, "c")):  # for c there is no room beside the others
            assert runner.run(generation, "stop", service=service)["succeeded"]
        runner.send({"do": "inventory", "request": 1})
        assert runner.take(lambda packet: packet["say"] == "inventory")["highest"] == {"b": 6, "c": 7}
        result = runner.run(5, "start", "true", service="a")
        assert (result["succeeded"], result["detail"]) == (False, "refused: generation 5 is not newer than 5")
        assert runner.run(6, "stop", service="a")["succeeded"]
    finally:
        runner.close()


FEW = """
from muster.drivers.image import runner
runner.MAXIMUM_STARTS, runner.PLACE_MS, runner.MAXIMUM_ACTS = 1, 1_000_000, 2
"""


def test_p8_10_stops_and_recoveries_wait_for_no_place_among_the_starts(tmp_path: Path) -> None:
    runner = RealRunner(tmp_path, FEW)
    try:
        runner.ask(1, "start", *shell("exec sleep 1000"), service="slow", timeout_ms=1_000_000)
        wait_for("it is at work", lambda: list(runner.below().values()) == ["sleep"])
        runner.ask(2, "start", "true", service="waits")
        assert runner.run(3, "stop", "true", service="other")["succeeded"]
        assert runner.run(4, "recovery", "true", service="other")["succeeded"]
        assert runner.run(5, "stop", "true", service="slow")["succeeded"]
        assert runner.result(2, "start")["succeeded"]  # now there is a place
    finally:
        runner.close()


def test_p8_3_of_action_functions_a_bounded_number_is_at_work(tmp_path: Path) -> None:
    runner = RealRunner(tmp_path, FEW)
    try:
        for number in (1, 2):
            runner.ask(number, "act", *shell("exec sleep 1000"), service="e", timeout_ms=1_000_000)
        result = runner.run(3, "act", "true", service="e")
        detail = "refused: 2 action functions are at work on this node already"
        assert (result["succeeded"], result["detail"]) == (False, detail)
        runner.send({"do": "cancel", "service": "e", "generation": 1, "action": "act", "reason": "enough"})
        assert not runner.result(1, "act")["succeeded"]
        assert runner.run(4, "act", "true", service="e")["succeeded"]
    finally:
        runner.close()


def children(runner: RealRunner) -> list[int]:
    """Of the runner, those included that have ended and are not reaped."""
    return [pid for pid, parent in read_parents().items() if parent == runner.process.pid]


def test_p8_20_the_output_of_commands_is_told_in_pieces_and_a_flood_neither_blocks_nor_fills(
    runner: RealRunner,
) -> None:
    flood = "head -c 20000000 /dev/zero | tr '\\0' x; echo; echo the end; exec sleep 1000"
    assert runner.run(1, "start", *shell(flood), program=True)["succeeded"]
    told = ""
    while not told.endswith("the end\n"):
        piece = runner.take(lambda packet: packet["say"] == "wrote")
        assert (piece["service"], piece["generation"]) == ("s", 1)
        told = f"{told}{piece['text']}"[-50_000:]
        omitted = piece["omitted"] or 0
        assert omitted >= 0
    assert runner.resident_kib() < 60_000
    assert runner.run(2, "stop", *shell("echo stopping"))["succeeded"]
    assert runner.take(lambda packet: packet["say"] == "wrote" and packet["generation"] == 2)["text"] == "stopping\n"
