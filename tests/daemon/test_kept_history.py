"""Histories on the disk of a node: what is kept, what is lost, and that the daemon never suffers from it (P8.9)."""

import asyncio
import os
import resource
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from muster.core.events.manager import Occurrence
from muster.daemon.events.command_log import CommandLog
from muster.daemon.events.event_history import EventHistory
from muster.daemon.events.event_manager import SHOWN_OCCURRENCES, EventManagerShell
from muster.daemon.events.kept_history import MAXIMUM_UNWRITTEN, KeptHistory
from muster.drivers.runner_client import CommandEnded, ProgramExited

SECOND_US = 1_000_000


class Kept:
    """Histories in one file, one after the other, as daemons begin and end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: list[str] = []
        self.told = threading.Event()

    def _on_trouble(self, why: str) -> None:
        self.trouble.append(why)
        self.told.set()

    def begin(self, file_bytes: int = 1 << 20) -> KeptHistory:
        """As the next daemon does."""
        return KeptHistory(self.path, self._on_trouble, file_bytes)

    def write(self, *lines: bytes, file_bytes: int = 1 << 20) -> None:
        """As one daemon does, which ends then."""
        found = self.begin(file_bytes)
        for line in lines:
            found.add(line)
        found.close()


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """A file that is not there yet."""
    return Kept(tmp_path / "history")


def occurrence(number: int, **known: object) -> Occurrence:
    found = Occurrence(number, number * SECOND_US, "e", "g", (("a", "b"),), (("c", "d"),), "acted upon")
    for name, value in known.items():
        setattr(found, name, value)
    return found


def test_p8_9_lines_are_kept_for_the_next_daemon_and_for_its_user_only(kept: Kept) -> None:
    before = threading.active_count()
    assert kept.begin().read() == []
    assert (threading.active_count(), kept.path.exists()) == (before, False)  # nothing to keep costs nothing
    kept.write(b"one", b"two")
    kept.write(b"three")
    assert kept.begin().read() == [b"one", b"two", b"three"]
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600


def test_p8_9_a_line_that_was_cut_off_spoils_no_other(kept: Kept) -> None:
    kept.write(b'{"whole": 1}')
    with kept.path.open("ab") as file:
        file.write(b'{"cut o')
    kept.write(b'{"whole": 2}')
    assert kept.begin().read() == [b'{"whole": 1}', b'{"cut o', b'{"whole": 2}']


def test_p8_9_the_files_are_bounded_and_hold_the_newest(kept: Kept) -> None:
    lines = [b"%06d" % number for number in range(1000)]
    kept.write(*lines, file_bytes=700)
    found = kept.begin(700).read()
    assert found == lines[-len(found) :]
    assert 100 <= len(found) <= 200
    assert sum(path.stat().st_size for path in kept.path.parent.iterdir()) <= 1400


def test_p8_9_a_full_disk_loses_lines_and_says_so_once(kept: Kept) -> None:
    kept.write(b"before")
    found = kept.begin()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, hard))  # as a full disk: part of a line may still fit
    try:
        found.add(b"there is no room for this")
        assert kept.told.wait(10)
        kept.told.clear()
        found.add(b"nor for this")
        found.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 1 <= len(kept.trouble) <= 2  # cut off once, then not even begun
    kept.write(b"after")
    read = kept.begin().read()
    assert (read[0], read[-1]) == (b"before", b"after")


@pytest.mark.parametrize("spoil", [lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to("/dev/full")])
def test_p8_9_whatever_lies_there_the_node_goes_on(kept: Kept, spoil: Callable[[Path], object]) -> None:
    spoil(kept.path)
    found = kept.begin()
    assert found.read() == []
    found.add(b"lost")
    found.close()
    assert len(kept.trouble) == 1
    assert str(kept.path) in kept.trouble[0]


def test_p8_9_a_disk_that_hangs_holds_nobody_up_and_the_lines_that_wait_are_bounded(kept: Kept) -> None:
    found = kept.begin()
    hang = threading.Event()
    found._write = lambda _lines: hang.wait()  # type: ignore[method-assign,assignment]
    for _ in range(MAXIMUM_UNWRITTEN + 100):
        found.add(b"x")
    assert len(found._lines) <= MAXIMUM_UNWRITTEN
    found.close()  # gives up after a while
    hang.set()


def test_p8_9_of_an_occurrence_the_last_line_counts_and_its_times_are_of_this_boot(kept: Kept) -> None:
    now_us = 1000 * SECOND_US
    first = EventHistory(kept.begin(), 7)
    running = occurrence(900, result="running", action=("x",))
    first.keep([running, occurrence(901, result="running")], now_us)
    running.result, running.ended_us = "succeeded", running.at_us + 5000
    first.keep([running], now_us)
    first.close()
    with kept.path.open("ab") as file:
        file.write(b'{"incarnation":7,"at_s":"nonsense"}\n\xff\xfe\n{"inc')
    same = EventHistory(kept.begin(), 7).read(now_us)
    assert [(each.number, each.result, each.at_us) for each in same] == [
        (900, "succeeded", 900 * SECOND_US),
        (901, "running", 901 * SECOND_US),
    ]
    # after the next boot, when the machine's clock has begun anew
    other = EventHistory(kept.begin(), 8).read(50 * SECOND_US)
    assert [(each.number, each.result, each.detail) for each in other] == [
        (900, "succeeded", ""),
        (901, "unknown", "the node ended"),
    ]
    assert [round((50 * SECOND_US - each.at_us) / SECOND_US) for each in other] == [100, 99]
    assert other[0].ended_us - other[0].at_us == 5000


def test_occurrences_of_one_event_are_chosen_before_the_answer_is_cut() -> None:
    known = [{"event": "rare", "number": 0}, *({"event": "often", "number": n} for n in range(2 * SHOWN_OCCURRENCES))]
    manager = SimpleNamespace(history=lambda: known)
    for name, count in (("rare", 1), ("often", SHOWN_OCCURRENCES), ("", SHOWN_OCCURRENCES), ("never", 0)):
        answer = asyncio.run(EventManagerShell.answer(manager, "event_history", name))  # type: ignore[arg-type]
        assert len(answer["occurrences"]) == count, name
        assert all(each["event"] == name or not name for each in answer["occurrences"])


def test_p8_9_commands_are_kept_and_the_end_of_a_program_is_recorded_once(kept: Kept) -> None:
    exited = ProgramExited("web", 5, "was killed by SIGKILL", "last words", 10 * SECOND_US)
    first = CommandLog(kept.begin())
    first.ended(CommandEnded("web", 5, "start", 1, "", "ended with status 0", 12, "up"))
    assert first.exited(exited, 11 * SECOND_US)
    first.close()
    second = CommandLog(kept.begin())
    assert not second.exited(exited, 12 * SECOND_US)  # as the runner remembers it
    assert [(each["action"], each["output"]) for each in second.of("web")] == [("start", "up"), ("exit", "last words")]
