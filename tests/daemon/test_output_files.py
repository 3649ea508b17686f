"""P8.20: what services write is kept in files of the node's home, bounded, whatever they write."""

import os
from pathlib import Path

import pytest

from muster.daemon.events.output_files import MAXIMUM_LINE_BYTES, OutputFiles, Piece


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
