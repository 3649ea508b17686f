"""The end of a node's log, whatever the log is: bounded, and of regular files only."""

import errno
import os
from pathlib import Path

import pytest

from muster.setup.log_end import TAIL_BYTES, end_of, last_lines, open_log


def test_the_last_lines_are_read_and_no_more_than_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)) + "half a line")
    assert last_lines(log, 3) == "line 99998\nline 99999\nhalf a line"
    assert len(last_lines(log, 100_000)) <= TAIL_BYTES
    assert end_of(log, 24) == "line 99999\nhalf a line"[-22:]  # the line that was cut is left out
    log.write_bytes(b"\xff\xfe short\n")
    assert last_lines(log, 5) == "\ufffd\ufffd short"


def test_a_line_without_an_end_costs_no_memory(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1 << 40)  # a hole: nothing of it is on the disk
    assert last_lines(log, 15) == ""


@pytest.mark.parametrize("target", ["/dev/full", "/dev/zero", "/dev/null", "pipe", "."])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, target: str) -> None:
    """A device gives zeros for ever, and a pipe that nobody writes to holds a reader up for ever."""
    os.mkfifo(tmp_path / "pipe")
    log = tmp_path / "log"
    log.symlink_to(tmp_path / target)
    with pytest.raises(OSError, match="is no regular file"):
        open_log(log)
    assert "is no regular file" in last_lines(log, 15)


def test_a_log_that_is_not_there_is_said_in_words(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "log", 15) == f"(no log: {os.strerror(errno.ENOENT)})"
