"""`muster debug bundle`: one file for a bug report, without secrets (SPEC 9.4)."""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bad_input import clear
from dev_cluster import CommandLine, DevCluster
from muster.setup import redaction

SECRETS = {
    "password": "hunter2-canary-a",
    "option": "canary-b-0123456789",
    "environment": "canary-c-environment-value",
    "url": "canary-d-in-a-url",
    "bearer": "canary-e.bearer.token",
    "log": "canary-f-in-the-log",
    "setting": "canary-g-of-a-service",
    "key": "MC4CAQAwBQYDK2VwBCIEIcanaryGinPEM",
}


def extracted(path: Path) -> dict[str, bytes]:
    """The files of a bundle by their path below its root."""
    with tarfile.open(path) as archive:
        found = {}
        for member in archive.getmembers():
            assert member.isfile()
            assert not member.name.startswith("/")
            assert ".." not in member.name
            data = archive.extractfile(member)
            assert data is not None
            found[member.name.partition("/")[2]] = data.read()
    return found


def service_file(folder: Path) -> Path:
    """Services whose commands carry secrets in all the usual ways."""
    path = folder / "services.toml"
    path.write_text(
        f"""
[[service]]
name = "web"
start_command = ["sh", "-c", "DB_PASSWORD={SECRETS["password"]} MY_SETTING={SECRETS["environment"]} sleep 1000 &"]
environment = {{ SETTING = "{SECRETS["setting"]}" }}
stop_command = ["/bin/true", "--api-key", "{SECRETS["option"]}", "--user=harmless-user"]
recovery_command = ["sh", "-c", "echo http://user:{SECRETS["url"]}@host/ 'Authorization: Bearer {SECRETS["bearer"]}'"]
"""
    )
    return path


def test_a_bundle_of_a_running_cluster_has_everything_and_no_secret(dev_cluster: DevCluster, tmp_path: Path) -> None:
    dev_cluster.up(2, "--services", str(service_file(tmp_path)))
    dev_cluster.wait_for("the service", lambda status: status["services"]["web"]["state"] == "registered")
    homes = dev_cluster.directory / "nodes"
    with (homes / "n0" / "log").open("a") as log:
        log.write(f"something said password: {SECRETS['log']}\n")
        log.write(f"-----BEGIN PRIVATE KEY-----\n{SECRETS['key']}\n-----END PRIVATE KEY-----\n")
        log.write(json.dumps({"event": "x", "detail": f"token={SECRETS['log']}"}) + "\n")
    target = tmp_path / "bug.tar.gz"
    answer = dev_cluster.json("debug", "bundle", "--output", str(target))
    assert answer["missing"] == []
    assert target.stat().st_mode & 0o777 == 0o600
    files = extracted(target)
    assert {each["path"] for each in answer["members"]} | {"CONTENTS.txt"} == set(files)
    for name in ("n0", "n1"):
        for query in (
            *("status", "nodes", "services", "transitions", "diagnostics", "timeline", "links", "config_history"),
            *("upgrade", "events"),
        ):
            assert json.loads(files[f"nodes/{name}/{query}.json"])["node" if query != "timeline" else "events"]
        assert b"daemon started" in files[f"logs/{name}.log"]
    diagnostics = json.loads(files["nodes/n0/diagnostics.json"])
    assert diagnostics["measures"]["store"]["read strip"]["number"] > 0
    assert diagnostics["profile"]["name"] == "virtualised"
    assert json.loads(files["store/database.json"])["nodes"]["1"]["name"] == "n1"
    assert json.loads(files["store/findings.json"]) is not None
    assert any(path.startswith("transitions/") and path != "transitions/recent.json" for path in files)
    for path in set(files) - {"CONTENTS.txt"}:
        assert path.encode() in files["CONTENTS.txt"]
    everything = b"\n".join(files.values())
    for what, secret in SECRETS.items():
        assert secret.encode() not in everything, what
    for key in homes.glob("*/key.pem"):
        body = "".join(key.read_text().splitlines()[1:-1])
        assert body[:40].encode() not in everything
    assert b"PRIVATE KEY" not in everything
    assert b"harmless-user" in everything  # what is no secret is still there
    assert b"MY_SETTING=" in everything


def test_a_bundle_can_be_had_from_the_store_while_nothing_runs(
    muster: CommandLine, dev_cluster: DevCluster, tmp_path: Path
) -> None:
    dev_cluster.up(1)
    dev_cluster.succeed("dev", "down", "--keep")
    target = tmp_path / "kept.tar.gz"
    ended = dev_cluster.run("debug", "bundle", "--output", str(target))
    assert ended.returncode == 0, ended.stderr
    assert "nodes/n0/" in ended.stderr  # says what is not in it
    assert {"store/report.json", "store/database.json", "logs/n0.log", "machine.json"} <= set(extracted(target))
    store = tmp_path / "store"
    shutil.copy(dev_cluster.directory / "store", store)
    other = tmp_path / "store.tar.gz"
    nowhere = ("--socket", "/nowhere/control.sock")
    muster.succeed("debug", "bundle", "--store", str(store), "--output", str(other), *nowhere)
    assert json.loads(extracted(other)["store/database.json"])["cluster"]["profile"] == "virtualised"


def test_a_damaged_store_is_no_reason_for_no_bundle(muster: CommandLine, tmp_path: Path) -> None:
    store, target = tmp_path / "store", tmp_path / "x.tar.gz"
    store.write_bytes(b"no store at all" * 1000)
    nowhere = ("--socket", "/nowhere/control.sock")
    ended = muster.run("debug", "bundle", "--store", str(store), "--output", str(target), *nowhere)
    assert ended.returncode == 0, ended.stderr
    contents = extracted(target)["CONTENTS.txt"].decode()
    assert re.search(r"store/report\.json: .*store", contents.partition("Not here:")[2])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--output", "{here}"], 2, "there is something already"),
        (["--output", "/nowhere/x.tar.gz"], 2, "its directory does not exist"),
        (["--store", "/nowhere/store", "--output", "{new}"], 2, "there is no such store"),
        (["--output", "{new}", "--socket", "/nowhere/control.sock"], 3, "no node answers, and no store is named"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    muster: CommandLine, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "here").write_text("x")
    filled = [each.format(here=tmp_path / "here", new=tmp_path / "new.tar.gz") for each in arguments]
    ended = muster.run("debug", "bundle", *filled, MUSTER_DIR="", MUSTER_NODE="", MUSTER_SOCKET="")
    assert words in clear(ended, code)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["here"]


@pytest.mark.parametrize(
    ("text", "kept", "gone"),
    [
        ("PASSWORD=abc123 cmd", "cmd", "abc123"),
        ("X_Y='abc 123' cmd", "cmd", "abc 123"),
        ('run --password "abc 123" --port 80', "--port 80", "abc 123"),
        ("run --db-token=abc123 --port 80", "--port 80", "abc123"),
        ("mysql://root:abc123@db/x", "db/x", "abc123"),
        ("said api_key: abc123, and went", "and went", "abc123"),
        ("Authorization: Basic abc123== x", "Authorization", "abc123"),
        ("n1: its links to n2 failed; index=7 term=3.1", "index=7 term=3.1", "(left out)"),
        ("lease 600 ms, deadman: pid namespace", "deadman: pid namespace", "(left out)"),
    ],
)
def test_a_text_loses_its_secrets_and_keeps_the_rest(text: str, kept: str, gone: str) -> None:
    cleaned = redaction.clean_text(text)
    assert kept in cleaned
    assert gone not in cleaned


def test_a_document_loses_what_stands_under_a_secrets_name() -> None:
    document: dict[str, Any] = {
        "token": "abc123",
        "enrolment_tokens": ["abc123"],
        "private-key": "abc123",
        "environment": {"HOME": "abc123", "LANG": "abc123"},
        "epoch": 7,
        "authority": "-----BEGIN CERTIFICATE-----",
        "command": ["x", "--secret", "abc123", "last"],
        "nested": [{"password": "abc123", "name": "web"}],
    }
    cleaned = redaction.clean(document)
    assert "abc123" not in json.dumps(cleaned)
    assert cleaned["epoch"] == 7
    assert cleaned["authority"].startswith("-----BEGIN")
    assert cleaned["environment"] == {"HOME": redaction.LEFT_OUT, "LANG": redaction.LEFT_OUT}
    assert cleaned["command"] == ["x", "--secret", redaction.LEFT_OUT, "last"]
    assert cleaned["nested"][0]["name"] == "web"
