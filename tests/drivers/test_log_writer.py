"""The log writer by itself, in this process: what it writes, and what it says where it cannot (P7.9)."""

import contextlib
import errno
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.drivers.image import log_writer
from muster.drivers.image.log_lines import FILE, FILE_BYTES
from muster.drivers.image.log_writer import LEAST_BYTES, NOTHING_YET, REMOVE, LogWriter, _Writer, rotate, write_state


class Bench:
    """A log writer whose log is a file, with the guard's end of its channel."""

    def __init__(self, folder: Path) -> None:
        self.path, self.state_path = folder / "log", folder / "guard.json"
        self.guard, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.writer = _Writer("n0", 0, theirs, str(self.state_path), 0)
        self.told = LogWriter(1, self.guard, 0)

    def text(self) -> str:
        """The log."""
        return self.path.read_text()


@contextlib.contextmanager
def log_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Standard error is the log meanwhile (no fixture: pytest puts its own there before the test)."""
    monkeypatch.setenv(FILE, str(folder / "log"))
    monkeypatch.setenv(FILE_BYTES, str(LEAST_BYTES))
    before = os.dup(2)
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    os.dup2(log, 2)
    os.close(log)
    made = Bench(folder)
    try:
        yield made
    finally:
        os.dup2(before, 2)
        os.close(before)
        made.guard.close()
        made.writer._state.close()


def test_p7_9_a_log_that_outgrows_its_limit_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with log_in(tmp_path, monkeypatch) as bench:
        assert bench.writer._write(b"x" * LEAST_BYTES)
        bench.writer._keep_bounded()
        assert len(bench.text()) == LEAST_BYTES, "not before it is over its limit"
        assert bench.writer._write(b"y\n")
        bench.writer._keep_bounded()
        assert bench.text() == ""
        assert bench.path.with_name("log.1").read_text().endswith("xy\n")


def test_p7_9_that_it_cannot_be_moved_aside_is_told_once_and_it_stays_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with log_in(tmp_path, monkeypatch) as bench:
        in_the_way = bench.path.with_name("log.new")

        def outgrow() -> str:
            bench.writer._write(b"x" * (LEAST_BYTES + 1))
            bench.writer._keep_bounded()
            return bench.text()

        in_the_way.mkdir()
        first, second = outgrow(), outgrow()
        assert "log not rotated" in first and len(first) < LEAST_BYTES
        assert second == ""
        in_the_way.rmdir()
        assert outgrow() == ""
        in_the_way.mkdir()
        assert "log not rotated" in outgrow(), "it is news again once it has been possible in between"


def test_p7_9_what_a_full_disk_did_not_take_is_counted_and_told_once_it_takes_lines_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with log_in(tmp_path, monkeypatch) as bench:
        write, full = os.write, [True]

        def write_unless_full(descriptor: int, data: bytes) -> int:
            if descriptor == 2 and full[0]:
                raise OSError(errno.ENOSPC, "no space")
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", write_unless_full)
        assert not bench.writer._write(b"1234567\n")
        assert not bench.writer._write(b"89\n")
        full[0] = False
        assert bench.writer._write(b"again\n")
        lines = bench.text().splitlines()
        assert len(lines) == 2 and lines[1] == "again"
        assert "11 bytes of the log could not be written" in lines[0]
        assert bench.writer._write(b"and again\n")
        assert len(bench.text().splitlines()) == 3


def test_p7_9_the_state_is_what_the_guard_said_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with log_in(tmp_path, monkeypatch) as bench:
        for content in (b'{"pid": 1}', b'{"pid": 2}'):
            assert bench.told.tell_state(content)
            assert bench.writer._take_state()
            assert bench.state_path.read_bytes() == content
        assert bench.told.tell_state(REMOVE)
        assert bench.writer._take_state()
        assert not bench.state_path.exists()
        assert bench.told.tell_state(REMOVE)
        assert bench.writer._take_state(), "it is gone already: nothing is wrong"
        assert bench.text() == ""
        bench.guard.close()
        assert not bench.writer._take_state(), "the guard has ended"


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk that is full needs a file system of its own")
def test_p7_9_on_a_full_disk_the_state_is_written_where_the_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "test", str(disk)], check=True)
    try:
        with log_in(disk, monkeypatch) as bench:
            assert bench.told.tell_state(NOTHING_YET)
            assert bench.writer._take_state()
            with contextlib.suppress(OSError), (disk / "fill").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            for state in ({"pid": 12345, "incarnation": 7}, {"pid": 1}):
                assert bench.told.tell_state(json.dumps(state).encode())
                assert bench.writer._take_state()
                assert json.loads(bench.state_path.read_bytes()) == state
            assert not bench.state_path.with_name("guard.json.new").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_p7_9_a_state_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with log_in(tmp_path, monkeypatch) as bench:
        bench.state_path.with_name("guard.json.new").mkdir()
        bench.told.tell_state(b"{}")
        assert bench.writer._take_state()
        assert "state not written" in bench.text()


def test_p7_9_a_reader_of_the_state_sees_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "guard.json"
    write_state(str(path), b"old")
    seen = []
    rename = os.rename

    def look(source: str, target: str) -> None:
        seen.append((path.read_bytes(), Path(source).read_bytes()))
        rename(source, target)

    monkeypatch.setattr(os, "rename", look)
    write_state(str(path), b"new")
    assert seen == [(b"old", b"new")]
    assert path.read_bytes() == b"new"


def test_p7_9_the_guard_does_not_wait_for_a_log_writer_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with log_in(tmp_path, monkeypatch) as bench:
        for _ in range(100_000):
            if not bench.told.tell_state(b"x" * 1000):
                break
        else:
            pytest.fail("what nobody takes is queued without a bound")
        bench.writer._state.close()
        assert bench.told.tell_state(b"x"), "nobody is left to tell: it is not said again"


def test_of_a_log_that_is_far_too_large_the_newest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n" * 1000 + b"new\n" * 10)
    path.chmod(0o640)
    rotate(str(path), 20)
    assert (tmp_path / "log.1").read_bytes() == b"new\n" * 10
    assert (tmp_path / "log.1").stat().st_mode & 0o777 == 0o640
    path.write_bytes(b"newer\n")
    rotate(str(path), 20)
    assert (tmp_path / "log.2").read_bytes() == b"new\n" * 10
    assert (tmp_path / "log.1").read_bytes() == b"newer\n"
    assert log_writer.KEPT == 2
