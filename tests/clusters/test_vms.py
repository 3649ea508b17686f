"""The laboratory of virtual machines: what it judges by, and how it speaks with machines. `make vms` runs it whole."""

import json
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from lab.machines import NodeStore
from lab.vms import board, guest, laboratory, watchdog_run
from lab.vms.guest_agent import GuestAgent, GuestSilent
from lab.vms.monitor import Monitor, MonitorFailed
from lab.vms.witness import Judgement
from muster.core.leases import watchdog


def test_the_witness_finds_an_instance_that_runs_on_after_another_was_started() -> None:
    judgement = Judgement()
    for at_s, said in enumerate(
        ("web n0 1 5 a 7", "web n0 1 5 a 7", "web n1 2 8 b 9", "other n0 1 5 a 8", "web n1 2 8 b 9")
    ):
        judgement.hear(said, float(at_s))
    assert judgement.findings == []
    assert [(each.service, each.node) for each in judgement.instances] == [
        ("web", "n0"),
        ("web", "n1"),
        ("other", "n0"),
    ]
    judgement.hear("web n0 1 5 a 7", 9.0)
    assert len(judgement.findings) == 1
    assert "n0 1 5 a 7 still runs, after n1 2 8 b 9 was started" in judgement.findings[0]


@pytest.mark.parametrize("name", watchdog_run.TIMERS)
def test_p7_31_the_profiles_of_the_watchdog_run_have_room_for_the_emulated_one(name: str) -> None:
    profile = watchdog_run.profile_of(laboratory.Settings(profile=name, timers=watchdog_run.TIMERS[name]))
    times = watchdog.times_of("i6300ESB timer", profile.watchdog_ms, profile, held=True)
    assert profile.with_watchdog(times) == profile, "its lease is as the profile says"


def test_the_boards_agent_tells_the_board_what_it_was_told(tmp_path: Path) -> None:
    """It is a shell script; here a listener answers in the board's place."""
    agent = tmp_path / "fence_lab"
    busybox = tmp_path / "busybox"
    said = tmp_path / "said"
    busybox.write_text(f"#!/bin/sh\ncat >{said}\necho '2 Status: OFF'\n")
    agent.write_text(board.AGENT)
    for program in (agent, busybox):
        program.chmod(0o755)
    told = "action=status\nplug=n1\npasswd=x\n"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([agent], input=told, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "Status: OFF\n")
    assert said.read_text() == told.rstrip() + "\n\n"
    described = subprocess.run(
        [agent], input="action=metadata\n", capture_output=True, text=True, env=environment, check=True
    )
    assert '<parameter name="plug"' in described.stdout


def test_a_guest_that_was_reset_in_the_middle_of_an_answer_is_spoken_with_anew(tmp_path: Path) -> None:
    """What is left of an old answer is passed over, until the number comes back that was asked for."""
    path = tmp_path / "agent"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            connection.sendall(b'{"return": {"pi')  # half an answer of the boot before
            for line in lines:
                asked = json.loads(line.rpartition(b"\xff")[2])
                is_number = asked["execute"] == "guest-sync-delimited"
                answer = asked["arguments"]["id"] if is_number else {"pong": 1}
                connection.sendall(b"\xff" * is_number + json.dumps({"return": answer}).encode() + b"\n")

    thread = threading.Thread(target=serve)
    thread.start()
    agent = GuestAgent(path)
    try:
        assert agent.ask("guest-ping", 10) == {"pong": 1}
    finally:
        agent.forget()
        thread.join(10)
        listener.close()
    with pytest.raises(GuestSilent):
        GuestAgent(tmp_path / "nobody").ask("guest-ping", 0.1)


def test_the_monitor_tells_events_apart_from_answers_and_says_when_it_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "monitor"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                command = json.loads(line)["execute"]
                if command == "quit":
                    return
                answer = {"error": {"desc": "no"}} if command == "refused" else {"return": {}}
                for said in ({"event": "WATCHDOG", "data": {"action": "reset"}}, answer):
                    connection.sendall(json.dumps(said).encode() + b"\n")

    thread = threading.Thread(target=serve)
    thread.start()
    monitor = Monitor(path)
    try:
        found = monitor.wait_event("WATCHDOG", 0.0, 10.0)
        assert found is not None
        assert found.data == {"action": "reset"}
        with pytest.raises(MonitorFailed, match="no"):
            monitor.ask("refused")
        with pytest.raises(MonitorFailed, match="has gone"):
            monitor.ask("quit")
    finally:
        monitor.close()
        thread.join(10)
        listener.close()


def test_what_the_laboratory_lacks_is_named_with_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _tool: None)
    assert "apt-get install" in laboratory.missing()
    assert "qemu-system-x86" in laboratory.missing()


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="needs qemu-utils")
@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")
@pytest.mark.parametrize(("block_bytes", "undone"), [(512, True), (guest.BLOCK_BYTES, False)])
def test_an_emulator_undoes_what_others_write_beside_a_block_that_is_smaller_than_the_guests(
    tmp_path: Path, block_bytes: int, undone: bool
) -> None:
    """Why guests have large blocks. Two emulators write neighbouring blocks of the shared disk again and again."""
    backing, ways = tmp_path / "backing", [tmp_path / "way0", tmp_path / "way1"]
    backing.write_bytes(bytes(64 * 1024))
    stores = [NodeStore(way, backing) for way in ways]
    try:
        for store in stores:
            store.set("slow 200")  # between the emulator's reading and its writing
        lost = any(_written_at_once(ways, backing, block_bytes, turn) for turn in range(1, 9))
        assert lost == undone
    finally:
        for store in stores:
            store.close()


def _written_at_once(ways: list[Path], backing: Path, block_bytes: int, turn: int) -> bool:
    """Whether of two blocks, each written by an emulator of its own, one is not as it was written."""
    commands = [f"write -P {turn} {at * block_bytes} {block_bytes}" for at in range(len(ways))]
    words = ("qemu-io", "-f", "raw", "--cache=none", "-c")
    writers = [
        subprocess.Popen([*words, command, way], stdout=subprocess.DEVNULL)
        for command, way in zip(commands, ways, strict=True)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    data = backing.read_bytes()
    return any(data[at * block_bytes] != turn for at in range(len(ways)))
