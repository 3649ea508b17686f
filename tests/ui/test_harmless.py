"""What is printed is clean (P10.8): one place takes from texts what would steer a terminal, for every page."""

import ast
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from muster.client import control as client
from muster.setup.harmless import CleanedStream, escaped, harmless, harmless_document, one_line
from muster.setup.nodes import Connection
from muster.ui.pages.plan_page import show_plan
from muster.ui.pages.screen import console
from muster.ui.pages.why_page import present_page

POISON = "\x1b]0;PWNED\x07\x1b[2J\x1b[31mred\x9b2J\u202eevil\u2066\x00\r"
STEERING = set("\x1b\x07\x9b\x00\r\u202e\u2066")
PRINTING = ("ui", "setup", "dev")  # the layers that talk to people


def test_p10_8_nothing_that_steers_a_terminal_is_left() -> None:
    assert not STEERING & set(harmless(POISON))
    assert harmless("a\tb\nc \u00e9 \u4e16") == "a\tb\nc \u00e9 \u4e16"
    assert one_line("a\nmuster: all is well") == "a muster: all is well"
    cleaned = json.dumps(harmless_document({POISON: [POISON, {"a": POISON}], "n": 1}), ensure_ascii=False)
    assert not STEERING & set(cleaned) and '"n": 1' in cleaned


def test_p10_8_json_keeps_everything_as_escapes() -> None:
    text = escaped(json.dumps({"a": POISON + "\U000e0001"}, ensure_ascii=False, indent=2))
    assert not STEERING & set(text)
    assert json.loads(text) == {"a": POISON + "\U000e0001"}


def test_p10_8_a_stream_passes_styles_on_terminals_only() -> None:
    raw = io.BytesIO()
    stream = CleanedStream(raw, encoding="utf-8", write_through=True)
    stream.write(POISON)
    assert not STEERING & set(raw.getvalue().decode())
    there, here = pty.openpty()
    with os.fdopen(here, "wb", buffering=0) as end, CleanedStream(end, encoding="utf-8", write_through=True) as stream:
        stream.write("\x1b[1mbold\x1b[0m \x1b]0;PWNED\x07\x1b[2J")
        assert os.read(there, 1000) == b"\x1b[1mbold\x1b[0m ?]0;PWNED??[2J"
    os.close(there)


def test_p10_8_every_command_ends_in_cleaned_streams() -> None:
    words = [
        sys.executable,
        "-m",
        "muster.ui.command_line",
        "service",
        "show",
        POISON.replace("\0", ""),
        "--socket",
        "/nowhere",
    ]
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode != 0
    assert not STEERING & set((done.stdout + done.stderr).decode())


def test_p10_8_all_answers_come_in_by_the_one_place_and_nothing_goes_out_beside_it() -> None:
    package = Path(client.__file__).parents[1]
    for path in (each for layer in PRINTING for each in (package / layer).rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name != "ControlClient" or path.name == "nodes.py", f"{path}: answers are not cleaned there"
                assert name not in ("os.write", "sys.stdout.buffer.write", "print"), f"{path}:{node.lineno}: {name}"


def test_p10_8_answers_and_refusals_are_clean_before_any_page_sees_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = {"node_state": "joined", "cause": POISON, POISON: [{"output": POISON}]}
    monkeypatch.setattr(client.ControlClient, "_call", lambda *_: answer)
    connection = Connection({"n0": tmp_path / "control.sock"}, 1.0)
    for found in (connection.query("why"), connection.operate("clear", service="x")):
        assert not STEERING & set(json.dumps(found, ensure_ascii=False)) and "evil" in found["cause"]


def test_p10_8_a_decision_and_a_plan_forge_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    forged = "ended with status 1; it wrote: \nmuster: all is well"
    node = {"node": "n1", "possible": False, "chosen": False, "rule": "up", "words": forged}
    decision = {"index": 7, "age_ms": 0, "cause": forged, "nodes": [node]}
    answer = {
        "summary": forged, "is_master": True, "decision": decision, "nodes": [node], "rules": [], "next_step": forged,
        "service": {"node": None, "state": "de-registered"}, "unanswered": [],
    }  # fmt: skip
    console().print(present_page(answer, whole=True))
    show_plan({"outcomes": [forged], "steps": [], "changed": {}, "stuck": {"web": forged}, "unchanged": 0})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5 and not [line for line in lines if line.startswith("muster:")]
