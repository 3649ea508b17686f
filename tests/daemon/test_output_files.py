"""P8.20: what services write is kept in files of the node's home, bounded, whatever they write."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.daemon.events.output_files import MAXIMUM_LINE_BYTES, OutputFiles, Piece
from real_node import DEADLINE_S, wait_for


def kept(home: Path, file_bytes: int = 10_000, told: list[str] | None = None) -> OutputFiles:
    """The files of a node with this home."""
    return OutputFiles(home, (told if told is not None else []).append, file_bytes)


def texts(files: OutputFiles, service: str) -> list[str]:
    """The lines without their times."""
    return [line.partition(" ")[2] for line in files.tail(service)]


def test_p8_20_whole_lines_are_kept_with_their_times_over_a_restart_of_the_daemon(tmp_path: Path) -> None:
    first = kept(tmp_path)
    for text in ("one\ntw", "o\nthree\n", "cut off"):
        first.add(Piece("web", text))
    first.add(Piece("db@n0", "another's\n"))
    first.close(5.0)
    second = kept(tmp_path)
    second.add(Piece("web", "after it\n", 17))
    second.close(5.0)
    left_out = "... 17 bytes left out: it wrote more than is kept at a time"
    assert texts(second, "web") == ["one", "two", "three", left_out, "after it"]
    assert texts(second, "db@n0") == ["another's"]
    assert second.tail("web")[0][:5].isdecimal() is False and second.tail("web")[0][4] == "-"
    assert (tmp_path / "output" / "web.log").stat().st_mode & 0o777 == 0o600
    assert second.tail("unknown") == []


def test_p8_20_a_file_is_bounded_and_the_newest_lines_stay(tmp_path: Path) -> None:
    files = kept(tmp_path, file_bytes=2000)
    for number in range(500):
        files.add(Piece("web", f"line {number}\n"))
    files.add(Piece("web", "x" * 3 * MAXIMUM_LINE_BYTES))
    files.close(5.0)
    sizes = [path.stat().st_size for path in (tmp_path / "output").iterdir()]
    assert len(sizes) == 2 and min(sizes) <= 2000
    assert max(sizes) <= MAXIMUM_LINE_BYTES + 100
    assert len(texts(files, "web")[-1]) == MAXIMUM_LINE_BYTES


def test_p8_20_what_cannot_be_written_is_lost_and_told_once(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("somebody's file")
    told: list[str] = []
    files = kept(tmp_path, told=told)
    for _ in range(3):
        files.add(Piece("web", "line\n"))
        files.add(Piece("web", "line\n"))
    files.close(5.0)
    assert len(told) == 1 and "is not kept" in told[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="not applicable: no pipes have names here")
def test_p8_20_what_lies_in_the_place_of_a_file_makes_nobody_wait(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    os.mkfifo(tmp_path / "output" / "web.log")
    files = kept(tmp_path)
    files.add(Piece("web", "line\n"))
    files.close(5.0)
    assert files.tail("web") == []


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that listens as systemd's journal does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.settimeout(DEADLINE_S)
        found.bind(str(tmp_path / "journal"))
        yield found


def entry(journal: socket.socket) -> dict[str, str]:
    """The next entry, by systemd's native protocol: NAME=VALUE a line."""
    data = journal.recv(64 * 1024).decode()
    assert data.endswith("\n")
    return dict(line.split("=", 1) for line in data[:-1].split("\n"))


def test_p8_20_what_is_for_the_journal_goes_there_a_line_an_entry_and_is_kept_as_well(
    tmp_path: Path, journal: socket.socket
) -> None:
    told: list[str] = []
    files = OutputFiles(tmp_path, told.append, journal=str(tmp_path / "journal"))
    files.add(Piece("web", "one = 1\ntwo", 0, True, "n0"))
    files.add(Piece("other", "not for it\n", 0, False, "n0"))
    files.add(Piece("web", " and a half\n", 7, True, "n0"))
    found = [entry(journal) for _ in range(3)]
    assert found[0] == {
        "MESSAGE": "one = 1", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "web", "MUSTER_SERVICE": "web", "MUSTER_NODE": "n0",
    }  # fmt: skip
    assert [each["MESSAGE"] for each in found[1:]] == [
        "... 7 bytes left out: it wrote more than is kept at a time", "two and a half",
    ]  # fmt: skip
    files.close(DEADLINE_S)
    assert not told
    assert texts(files, "web")[0] == "one = 1" and texts(files, "web")[-1] == "two and a half"


def test_p8_20_where_no_journal_takes_it_that_is_said_once_and_the_file_has_it(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "journal"
    files = OutputFiles(tmp_path, told.append, journal=str(path))
    files._journal_pause_s = 0.0
    for _ in range(3):
        files.add(Piece("web", "line\n", 0, True, "n0"))
    wait_for("the lines", lambda: texts(files, "web") == ["line"] * 3)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.settimeout(DEADLINE_S)
        journal.bind(str(path))
        files.add(Piece("web", "now\n", 0, True, "n0"))
        assert entry(journal)["MESSAGE"] == "now"
    assert len(told) == 1 and "no journal listens on this machine" in told[0]
    files.add(Piece("web", "gone\n", 0, True, "n0"))  # its socket is there, and nobody listens
    wait_for("the word of it", lambda: len(told) == 2)
    assert "Connection refused" in told[1]
    files.close(DEADLINE_S)
