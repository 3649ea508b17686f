"""One call of a fence agent: what it is given, what is believed of it, and what nobody sees (P7.24, P7.28)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from muster.drivers.fence_call import FOLDER, VARIABLE, Call, CallFailed, encoded, read_secrets, said, says_off
from muster.setup.errors import Mistaken
from muster.setup.fencing import check, keep_secret

AGENT = """#!/bin/sh
cat > {seen}
env > {seen}.env
echo "$@" > {seen}.arguments
{body}
"""


def agent(folder: Path, body: str) -> str:
    """An agent that writes down what it was told, then does this."""
    path = folder / "fence_try"
    path.write_text(AGENT.format(seen=folder / "seen", body=body))
    path.chmod(0o700)
    return str(path)


def call(
    folder: Path, action: str, body: str, secrets: tuple[str, ...] = (), timeout_ms: int = 10_000
) -> tuple[int, str]:
    """Exit status and output of a call, made as the runner makes it."""
    made = Call(
        "pdu", agent(folder, body), action, [["ip", "192.0.2.1"], ["plug", "3"]], list(secrets), str(folder), timeout_ms
    )  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "muster.drivers.fence_call"], env={VARIABLE: encoded(made)}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert not ended.stderr
    return ended.returncode, ended.stdout.strip()


def test_p7_28_an_agent_gets_everything_on_standard_input_and_its_secret_is_seen_nowhere_else(tmp_path: Path) -> None:
    keep_secret(tmp_path, "pdu", "passwd", "hunter2")
    status, output = call(tmp_path, "off", 'echo "login with hunter2"', ("passwd",))
    assert (status, output) == (0, "login with ***")
    lines = (tmp_path / "seen").read_text().splitlines()
    assert lines == ["action=off", "ip=192.0.2.1", "plug=3", "passwd=hunter2"]
    for other in ("seen.env", "seen.arguments"):
        assert "hunter2" not in (tmp_path / other).read_text()
    assert VARIABLE not in (tmp_path / "seen.env").read_text()


@pytest.mark.parametrize(
    ("status", "output", "off"),
    [
        (2, "Status: OFF\n", True),
        (0, "Status: OFF\n", True),
        (2, "", False),
        (2, "Failed: You have to set login name\n", False),
        (0, "Status: ON\n", False),
        (1, "Status: OFF\n", False),
        (2, "Status: OFF\nStatus: ON\n", False),
        (2, "it was off\n", False),
    ],
)
def test_p7_24_off_is_believed_only_by_word_and_exit_status(status: int, output: str, off: bool) -> None:
    assert says_off(status, output) is off


def test_p7_24_a_status_of_on_and_of_wrong_parameters_fail_with_what_was_printed(tmp_path: Path) -> None:
    assert call(tmp_path, "status", 'echo "Status: OFF"; exit 2') == (0, "Status: OFF")
    status, output = call(tmp_path, "status", 'echo "Status: ON"')
    assert status
    assert "does not say that it is off (exit status 0): Status: ON" in output
    assert call(tmp_path, "status", "exit 2")[0]


def test_p7_29_an_agent_that_hangs_or_prints_garbage_or_is_missing_has_failed_in_words(tmp_path: Path) -> None:
    status, output = call(tmp_path, "off", "sleep 60", timeout_ms=300)
    assert status
    assert "has not ended within 0.3 s" in output
    status, output = call(tmp_path, "off", "head -c 20000 /dev/urandom; exit 7")
    assert status
    assert output.startswith("exit status 7")
    missing = Call("pdu", str(tmp_path / "nothing"), "off", [], [], str(tmp_path), 1000)
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "muster.drivers.fence_call"], env={VARIABLE: encoded(missing)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode
    assert "cannot be executed" in ended.stdout


def test_p7_28_a_file_of_secrets_counts_only_if_nobody_else_can_read_it(tmp_path: Path) -> None:
    path = keep_secret(tmp_path, "pdu", "passwd", "a b=c")
    keep_secret(tmp_path, "pdu", "other", "x")
    keep_secret(tmp_path, "pdu", "passwd", "new=er")
    assert read_secrets(path, ["passwd", "other"]) == {"passwd": "new=er", "other": "x"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o640)
    with pytest.raises(CallFailed, match="chmod 600"):
        read_secrets(path, ["passwd"])
    path.chmod(0o600)
    with pytest.raises(CallFailed, match="does not hold third"):
        read_secrets(path, ["third"])
    link = tmp_path / FOLDER / "link"
    link.symlink_to(path)
    with pytest.raises(CallFailed, match="cannot be read"):
        read_secrets(link, ["passwd"])
    with pytest.raises(CallFailed, match="cannot be read"):
        read_secrets(tmp_path / FOLDER / "nothing", ["passwd"])
    os.mkfifo(tmp_path / FOLDER / "pipe", 0o600)
    with pytest.raises(CallFailed, match="may be read by others"):
        read_secrets(tmp_path / FOLDER / "pipe", ["passwd"])
    assert read_secrets(tmp_path / "nowhere", []) == {}


def test_p7_28_the_value_of_a_secret_is_taken_out_of_what_is_shown() -> None:
    assert said("a hunter2 b\nhunter2hunter\n", {"p": "hunter2", "q": "hunter"}) == "a *** b / ******"


METADATA = """<?xml version="1.0" ?>
<resource-agent name="fence_try"><parameters><parameter name="action" required="1"/>
<parameter name="ip" required="1"/><parameter name="passwd"/></parameters>
<actions><action name="on"/><action name="off"/><action name="status"/><action name="monitor"/></actions>
</resource-agent>"""


def test_p7_28_parameters_are_compared_with_what_the_agent_says_of_itself(tmp_path: Path) -> None:
    found = agent(tmp_path, f"cat <<'END'\n{METADATA}\nEND")
    check(found, {"ip": "x", "plug": "1"}, ("passwd",))
    assert (tmp_path / "seen").read_text() == "action=metadata\n"
    with pytest.raises(Mistaken, match="knows no parameter ipaddr"):
        check(found, {"ipaddr": "x"}, ())
    with pytest.raises(Mistaken, match="prints no metadata"):
        check(agent(tmp_path, "echo garbage"), {}, ())
    with pytest.raises(Mistaken, match="cannot off"):
        check(agent(tmp_path, f"sed 's|<action name=.off./>||' <<'END'\n{METADATA}\nEND"), {}, ())
    with pytest.raises(Mistaken, match="is not on this machine"):
        check("fence_nothing_of_that_name", {}, ())
