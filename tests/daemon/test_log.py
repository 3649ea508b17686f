"""The log of a node: whole lines, both formats, bounded (SPEC 9.4)."""

import asyncio
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bad_input import until
from dev_cluster import DevCluster
from muster.core.effects import Trace
from muster.core.inputs import MessageReceived, OperationRequested, Tick
from muster.daemon.history.flight_recorder import FlightRecorder, level_of
from muster.daemon.log import log_file
from muster.daemon.log.log_file import keep_log_bounded
from muster.daemon.shell.stimuli import described
from muster.drivers.image.log_lines import FILE, FILE_BYTES, FORMAT, LEVEL, Log, compose, moment
from muster.drivers.image.log_writer import rotate
from muster.records.messages import Request
from muster.records.services import DeregisterService
from muster.records.terms import Term


def collected(monkeypatch: pytest.MonkeyPatch, **environment: str) -> tuple[list[str], Callable[[str], bool]]:
    """Lines, and what writes them."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    lines: list[str] = []

    def write(line: str) -> bool:
        lines.append(line)
        return True

    return lines, write


def test_lines_of_one_turn_are_written_together_and_urgent_ones_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, write = collected(monkeypatch)
    turns: list[Callable[[], None]] = []
    recorder = FlightRecorder("n0", write)
    recorder.hold(turns.append)
    for number in range(40):
        recorder.note(0, "step begun", f"number {number} " + 100 * "x", Term(3, 1), 42)
    assert not pieces
    (end,) = turns
    end()
    assert all(len(piece) < select.PIPE_BUF for piece in pieces)
    assert 1 < len(pieces) < 10
    assert [line.split("number ")[1].split()[0] for line in "\n".join(pieces).splitlines()] == [*map(str, range(40))]
    recorder.note(0, "step begun", "before", Term(3, 1), 42)
    recorder.note(0, "panic", "why", Term(3, 1), 42)
    assert [("before" in line, "why" in line) for line in pieces[-1].splitlines()] == [(True, False), (False, True)]
    recorder.hold(None)
    recorder.note(0, "left", "at once", Term(3, 1), 42)
    assert "at once" in pieces[-1]


def test_lines_that_are_lost_together_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, write = collected(monkeypatch)
    full = True
    recorder = FlightRecorder("n0", lambda line: not full and write(line))
    recorder.hold(lambda _end: None)
    for _ in range(3):
        recorder.note(0, "step begun", "lost", Term(3, 1), 42)
    recorder.flush()
    full = False
    recorder.note(0, "step begun", "kept", Term(3, 1), 42)
    recorder.flush()
    assert "3 lines could not be written" in pieces[1]
    assert "kept" in pieces[2]


def test_an_event_bears_term_index_stimulus_level_and_both_times(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, write = collected(monkeypatch, MUSTER_LOG_FORMAT="json")
    recorder = FlightRecorder("n0", write)
    recorder.stimulus = lambda: "17 operation abc"
    now_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
    recorder.trace(now_us, Trace("link lost", "n1: gone"), Term(3, 1), 42)
    (line,) = lines
    seen = json.loads(line)
    clock = re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", seen.pop("time"))
    assert clock
    assert abs(float(seen.pop("at")) * 1e6 - now_us) < 2
    assert seen == {
        "level": "warning",
        "node": "n0",
        "process": "daemon",
        "term": "3.1",
        "index": 42,
        "stimulus": "17 operation abc",
        "event": "link lost",
        "detail": "n1: gone",
    }
    (kept,) = recorder.since(0)
    assert (kept["stimulus"], kept["level"]) == ("17 operation abc", "warning")


def test_the_text_form_has_the_same_fields_as_key_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, write = collected(monkeypatch)
    Log("n0", "guard", write).tell("error", "guard", 'it said "no"\nand ended')
    pattern = (
        r'time=\S+Z at=\d+\.\d{6} level=error node="n0" process=guard event="guard" detail="it said \\"no\\"\\n.*"'
    )
    assert re.fullmatch(pattern, lines[0])


def test_the_time_of_day_is_that_of_the_event_and_not_of_the_line() -> None:
    an_hour_ago_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000 - 3_600_000_000
    told = str(moment(an_hour_ago_us)["time"])
    assert told.startswith(time.strftime("%Y-%m-%dT%H:", time.gmtime(time.time() - 3600)))


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("detail", ["x" * 100_000, "\0" * 5000, "\U0001f600" * 3000, 'a"\\' * 4000, ""])
def test_a_line_fits_into_one_write_and_stays_whole(detail: str, *, as_json: bool) -> None:
    line = compose({"node": "n0", "event": "failure", "detail": detail}, as_json=as_json)
    assert len(line.encode()) < 4096
    assert "\n" not in line
    if as_json:
        assert json.loads(line)["event"] == "failure"


def test_lines_below_the_level_are_left_out_of_the_log_and_kept_in_the_recorder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines, write = collected(monkeypatch, MUSTER_LOG_LEVEL="error")
    recorder = FlightRecorder("n0", write)
    for event in ("link lost", "panic", "claiming"):
        recorder.note(1, event, "x", Term(0, 0), 0)
    assert [level_of(event) for event in ("link lost", "panic", "claiming")] == ["warning", "error", "info"]
    assert len(lines) == 1
    assert "panic" in lines[0]
    assert len(recorder.since(0)) == 3


def test_lines_that_the_log_did_not_take_are_counted_and_said_in_a_line_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines, write = collected(monkeypatch, MUSTER_LOG_FORMAT="json")
    full = True
    recorder = FlightRecorder("n0", lambda line: not full and write(line))
    for _ in range(3):
        recorder.note(1, "claiming", "x", Term(0, 0), 0)
    full = False
    recorder.note(1, "panic", "x", Term(0, 0), 0)
    assert lines[0] == ""  # ends a line that was lost in its middle
    assert [json.loads(line)["event"] for line in lines[1:]] == ["lines lost", "panic"]
    assert json.loads(lines[1])["detail"].startswith("3 lines")


def test_a_stimulus_is_named_alike_on_every_node_that_an_operation_passes() -> None:
    operation = DeregisterService("web")
    asked = described(OperationRequested("0123456789abcdef0123456789abcdef", operation))
    passed_on = described(MessageReceived(2, Request("0123456789abcdef0123456789abcdef", operation)))
    assert asked == "operation 0123456789abcdef01234567"
    assert passed_on == f"{asked} from 2"
    assert described(Tick()) == "tick"


def test_a_log_that_is_too_large_is_moved_aside_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        for generation in range(5):
            os.write(writer, f"generation {generation}\n".encode() * 10_000)
            rotate(str(path), 64 << 10)
            assert path.read_bytes() == b""
        os.write(writer, b"goes on\n")
    finally:
        os.close(writer)
    assert path.read_text() == "goes on\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert (tmp_path / "log.1").read_text().endswith("generation 4\n")
    assert all(each.stat().st_size <= 128 << 10 for each in tmp_path.iterdir())


def test_a_log_stays_bounded_even_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * (1 << 20))
    (tmp_path / "log.new").mkdir()  # in the way
    lines, write = collected(monkeypatch, **{FILE: str(path), FILE_BYTES: "65536"})
    monkeypatch.setattr(log_file, "_LOOK_S", 0.01)

    async def look() -> None:
        told = asyncio.Event()

        def tell(line: str) -> bool:
            told.set()
            return write(line)

        task = asyncio.ensure_future(keep_log_bounded(Log("n0", "daemon", tell)))
        async with asyncio.timeout(30):
            await told.wait()
        task.cancel()

    asyncio.run(look())
    assert path.stat().st_size == 0
    assert "log not rotated" in lines[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--log-file", "/nowhere/log"], "--log-file /nowhere/log: No such file or directory; make its directory"),
        (["--log-file", "/dev/null"], "it is no regular file"),
        (["--log-bytes", "7"], "--log-bytes 7: too little"),
    ],
)
def test_a_log_that_cannot_be_is_refused_before_the_node_starts(options: list[str], words: str) -> None:
    program = "import sys; from muster.daemon.main import *; from muster.daemon.log.log_file import *\n"
    program += "import argparse; parser = argparse.ArgumentParser(); add_log_options(parser)\n"
    program += "o = parser.parse_args(sys.argv[1:])\n"
    program += "prepare_log(o.log_file, o.log_format, o.log_level, o.log_bytes)\n"
    ended = subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 1
    assert f"LogRefused: {words}" in ended.stderr or words in ended.stderr


def test_every_process_of_a_node_writes_whole_json_lines_and_the_file_stays_bounded(
    dev_cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ((FORMAT, "json"), (LEVEL, "debug"), (FILE_BYTES, "65536")):
        monkeypatch.setenv(name, value)
    dev_cluster.up(1)
    log = dev_cluster.directory / "nodes" / "n0" / "log"

    def lines() -> list[Any]:
        return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    expected = {"elected", "transition opened", "service starting"}
    until("its first lines", lambda: expected & {each["event"] for each in lines()})
    seen = lines()
    assert all({"time", "at", "level", "node", "process", "event", "detail"} <= set(each) for each in seen)
    assert all("stimulus" in each for each in seen if each["event"] == "elected")
    with log.open("a") as file:
        file.write("x" * 100_000 + "\n")
    guard = json.loads((dev_cluster.directory / "nodes" / "n0" / "guard.json").read_text())
    os.kill(guard["daemon_pid"], 9)
    until("its rotation, after the guard's word of that", log.with_suffix(".1").exists)

    def written() -> str:
        return "".join(path.read_text() for path in (log.with_suffix(".1"), log) if path.exists())

    until("the guard's word", lambda: '"guard"' in (text := written()) and "started again" in text)
