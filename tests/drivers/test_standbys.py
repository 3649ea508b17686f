"""What takes the place of a process that was killed: rule P7.19 of docs/PROTOCOL.md; the caretaker's: test_cleanups."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from muster.core.needs.machine import Needs
from muster.core.needs.need import Seen
from muster.drivers.image import standby
from muster.drivers.image.process_tree import read_command_line, read_name, read_parents
from muster.records.database import Database
from muster.records.nodes import Cluster, NodeConfig
from real_node import RealNode, kill_at_once, make_store, wait_for


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RealNode]:
    """A node that is not started yet."""
    made = RealNode(make_store(tmp_path), tmp_path, 0)
    yield made
    made.close()


def writers(of: RealNode) -> dict[int, int]:
    """The log writer and its standby, each with its parent."""
    found = {pid: parent for pid, parent in read_parents().items() if read_name(pid) == "muster-log"}
    return {pid: parent for pid, parent in found.items() if os.fsencode(of.home) in read_command_line(pid)}


def pair(of: RealNode) -> tuple[int, int]:
    """Both, once there are both."""

    def probe() -> tuple[int, int] | None:
        found = writers(of)
        both = [(parent, pid) for pid, parent in found.items() if parent in found]
        return both[0] if len(found) == 2 and both else None

    return wait_for("a log writer and its standby", probe)


def test_p7_19_a_killed_log_writer_is_replaced_and_the_log_and_the_state_go_on(node: RealNode) -> None:
    node.start()
    daemon = node.up()["daemon_pid"]
    words = "the log writer was killed: another one has taken its place"
    for times in (1, 2):
        at_work, standby = pair(node)
        os.kill(at_work, signal.SIGKILL)
        wait_for("its word", lambda times=times: node.log().count(words) == times)  # type: ignore[misc]
        assert pair(node)[0] == standby
    os.kill(daemon, signal.SIGKILL)
    wait_for("a line of the guard", lambda: "it is started again, the services go on" in node.log())
    wait_for("the state", lambda: node.state()["daemon_pid"] not in (0, daemon))
    node.order("guard", "leave")
    assert node.ended() == 0
    wait_for("the end of both", lambda: not writers(node))
    assert not node.state()


def test_p7_19_a_killed_standby_is_replaced(node: RealNode) -> None:
    node.start()
    node.up()
    at_work, standby = pair(node)
    os.kill(standby, signal.SIGKILL)
    wait_for("another one", lambda: standby not in writers(node) and pair(node))
    assert pair(node)[0] == at_work


def test_p7_19_where_both_are_killed_the_daemon_is_told(node: RealNode) -> None:
    node.start()
    daemon = node.up()["daemon_pid"]
    kill_at_once(pair(node))

    def told() -> list[str]:
        return [each["text"] for each in node.heard("guard") if each["text"].startswith("lacks")]

    wait_for("the word", lambda: told() == ["lacks log writer"])
    os.kill(daemon, signal.SIGKILL)
    wait_for("the word again", lambda: told() == ["lacks log writer"] * 2)
    node.order("guard", "leave")
    assert node.ended() == 0, "nobody waits for it"


def test_p7_19_status_warns_of_what_is_lost_and_says_what_that_means() -> None:
    database = Database(Cluster("test", "0" * 32, "fast", ""), 40, nodes={0: NodeConfig(0, "n0", (), "")})

    def told(lacking: str) -> list[str]:
        seen = Seen(0, 5, master=0, live=frozenset({0}), lacking=lacking)
        return [need.line for need in Needs().look(database, seen, 1_000_000)]

    assert told("") == []
    first, second = told("log writer, caretaker")
    assert first == (
        "the log writer of n0 has ended, with its standby; nothing that it says is logged; it is started again once "
        "n0 has left and boots; next: muster node leave n0"
    )
    assert "the caretaker of n0" in second and "at its next boot only" in second


# ---- a standby by itself ---------------------------------------------------------------------------------------------


class Taken(Exception):
    """In place of going on with the work: what was handed over, and how many have taken over."""


class Gone(Exception):
    """In place of the end of this process."""


def stand(
    monkeypatch: pytest.MonkeyPatch, *said: tuple[bytes, tuple[int, ...]], handed: tuple[int, ...] = (), times: int = 0
) -> list[float]:
    """What a standby does that hears this, and then the end of the one at work; its pauses. Raises what it does."""
    pauses: list[float] = []

    def take_over(given: tuple[int, ...], number: int) -> NoReturn:
        raise Taken(given, number, pauses)

    def end(status: int) -> NoReturn:
        raise Gone(status)

    monkeypatch.setattr(standby, "close_descriptors_except", lambda _kept: None)
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(signal, "signal", lambda *_arguments: None)
    monkeypatch.setattr(signal, "set_wakeup_fd", lambda _descriptor: -1)
    monkeypatch.setattr(os, "_exit", end)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for word, descriptors in said:
        socket.send_fds(ours, [word], descriptors)
    ours.close()
    try:
        standby.Standby(take_over, (), handed, times)._stand(theirs)
    finally:
        theirs.close()


def test_p7_19_a_standby_goes_on_with_what_was_handed_over_last(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Taken) as taken:
        stand(monkeypatch, handed=(70, 71))
    assert taken.value.args[:2] == ((70, 71), 1)
    read_end, write_end = os.pipe()
    with pytest.raises(Taken) as taken:
        stand(monkeypatch, (b"handed", (0, 1)), (b"handed", (write_end,)), times=3)
    (given,), times, _pauses = taken.value.args
    assert times == 4
    os.write(given, b"it is the last one")
    assert os.read(read_end, 100) == b"it is the last one"
    for descriptor in (read_end, write_end, given):
        os.close(descriptor)


def test_p7_19_where_the_one_at_work_ends_by_itself_nobody_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Gone):
        stand(monkeypatch, (b"done", ()))


def test_p7_19_a_long_row_of_killed_ones_takes_over_ever_later_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for times in (0, 1, 2, 40):
        with pytest.raises(Taken) as taken:
            stand(monkeypatch, times=times)
        found.append(taken.value.args[2][-1])
    assert found[:3] == [standby._SETTLES_S, 2 * standby._SETTLES_S, 4 * standby._SETTLES_S]
    assert found[3] == standby._LONGEST_S


def test_p7_19_the_end_of_another_child_is_not_the_standbys() -> None:
    made = standby.Standby(lambda _handed, _times: os._exit(1), (), (), 0)
    made.pid = 4711
    assert not made.ended(4712) and made.pid == 4711
    assert made.ended(4711) and made.pid == 0
