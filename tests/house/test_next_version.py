"""A made next version, added from outside: each new thing is its room and its rows; the gate of versions holds (P10.1).

The made release (`tests/support/next_version.py`) runs in a process of its own and knows one version more. Whatever it
sends and writes is read here, by this release: the older one of the two.
"""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from muster.daemon.shell.releases import version_problem
from muster.drivers.store.choice import ENGINES, engine_of
from muster.drivers.store.failures import StoreFailed
from muster.records.database import decode_database, decode_entry
from muster.records.messages import Append, MalformedMessage, decode_message
from muster.records.versions import HIGHEST
from next_version import EDITS, ROOT, Release
from recorded_samples import decode, encode, samples

NEXT = HIGHEST + 1
LOADED = "import muster.daemon.run, muster.sim.world.daemon, muster.drivers.image.watcher"
PROGRAM = """
import base64, json, pathlib, tempfile
from core_cluster import CoreCluster
from muster.core.effects import Hailed, Trace
from muster.core.inputs import Knock, MessageReceived
from muster.core.room import Room
from muster.core.versions import revisions
from muster.daemon.socket import catalogue
from muster.daemon.socket.operations import read_operation
from muster.daemon.socket.queries import NodeView
from muster.drivers.image.watcher import BuiltIn, kind_of
from muster.drivers.store import choice
from muster.drivers.store.engine import newest_record
from muster.drivers.store.lease_store import lease_store_of
from muster.records import event_limits, events
from muster.records.access import Author, Role
from muster.records.configuration import FinishUpgrade
from muster.records.database import Entry, encode_database, encode_entry
from muster.records.locks import Hail, LockSpace
from muster.records.messages import Request, encode_message, version_of
from muster.records.registers import ProofKind
from muster.records.services import ApplyServices, Definition
from muster.records.terms import Term
from muster.records.versions import HIGHEST, Software
from real_node import make_store
from recorded_samples import encode, samples

ALICE = Author(1000, "alice", Role.OPERATOR, "n0", 1_700_000_000_000)
said, found = [], {}


def heard(envelope):
    said.append(base64.b64encode(encode_message(envelope.message)).decode())
    return False


def do(node, operation):
    return cluster.do(node, operation, author=ALICE).outcome


def set_space(slots):
    return read_operation("set_lock_space", {"name": "a", "slots": slots})


def everywhere(what, holds):
    cluster.until(what, lambda: all(holds(cluster.core(node).database) for node in range(3)))


cluster = CoreCluster(3, active_version=HIGHEST - 1)
cluster.software[1] = Software(1, HIGHEST - 1, "older")
cluster.loses = heard
for node in range(3):
    cluster.boot(node)
    cluster.until_joined(node)
found["before"] = [do(node, set_space(2)) for node in range(3)]
do(0, ApplyServices((Definition("web", start_command=("/bin/true",)),)))
found["lacking"] = do(0, FinishUpgrade(HIGHEST))
found["said"], said = said, []
found["written"] = base64.b64encode(encode_database(cluster.database)).decode()

del cluster.software[1]  # the made release is installed there
cluster.restart_daemon(1)
cluster.until("it says so", lambda: cluster.database.member(1).software.highest == HIGHEST)
used = Room(1 << 20).used(cluster.database)
found["finished"] = do(0, FinishUpgrade(HIGHEST))
found["after"] = [do(2, set_space(2)), do(2, set_space(3))]
everywhere("the space", lambda database: "a" in database.lock_spaces)
database = cluster.database
found["audit"] = [[each.operation, each.subject, each.user] for each in database.audit.values()][-2:]
found["configuration"] = revisions.configuration(database)["lock_space", "a"]
found["version before"] = revisions.configuration_at(database, database.version - 1)["lock_space", "a"]
found["grown"] = Room(1 << 20).used(database) - used
found["answer"] = catalogue.answer("lock_spaces", {}, database, NodeView(0, 1))["lock_spaces"]
asked = ({"query": "lock_spaces"}, {"operation": "set_lock_space"})
found["roles"] = [str(catalogue.right_of(each).role) for each in asked]
cluster.give(1, MessageReceived(0, Hail("a")))
cluster.settle()
found["hailed"] = [each.effect.space for each in cluster.history if isinstance(each.effect, Hailed)]
cluster.give(1, Knock("alice"))
cluster.settle()
found["proof"] = ProofKind.FENCED.words
nap = events.EventDefinition("rest", "nap", (("nap", "5s"),))
found["watcher"] = [event_limits.problem_of_event(nap), kind_of(dict(nap.parameters)), "nap" in BuiltIn.WAYS]
with tempfile.TemporaryDirectory() as folder:
    store = f"made://{make_store(pathlib.Path(folder))}"
    leases = lease_store_of(store)(store, 3)
    opens = choice.part(choice.engine_of(store).store).__module__
    found["engine"] = [newest_record(store).database.cluster.name, leases.one_machine, opens]
    leases.close()
found["newest"] = {
    "entry": base64.b64encode(encode_entry(Entry(1, Term(1, 0), "", (LockSpace("a", 2),)))).decode(),
    "request": base64.b64encode(encode_message(Request("1", set_space(2)))).decode(),
    "message": base64.b64encode(encode_message(Hail("a"))).decode(),
    "database": base64.b64encode(encode_database(database)).decode(),
}
found["sent from"] = version_of(Hail("a"))
do(0, set_space(0))
everywhere("it to be gone", lambda database: not database.lock_spaces)
traces = [each.effect for each in cluster.history if isinstance(each.effect, Trace)]
found["told"] = sorted({(each.event, each.detail) for each in traces if each.event.startswith("lock space")})
found["knocks"] = [each.detail for each in traces if each.event == "knock"]
found["samples"] = {name: base64.b64encode(encode(name, value)).decode() for name, value in samples().items()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return Release(tmp_path_factory.mktemp("next"), NEXT)


def run(release: Release, program: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(release.root / folder) for folder in ("src", "tests/support"))
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=300, check=False, cwd=release.root,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(release: Release) -> dict[str, Any]:
    """What the made release did."""
    done = run(release, PROGRAM)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_p10_1_before_its_version_is_active_nothing_new_is_done_said_or_written(found: dict[str, Any]) -> None:
    assert all(f"this needs version {NEXT}, and version {HIGHEST} is active" in each for each in found["before"])
    assert f"n1: it runs release older, versions 1 to {HIGHEST}" in found["lacking"]
    messages = [decode_message(base64.b64decode(each)) for each in found["said"]]
    entries = [entry for each in messages if isinstance(each, Append) for entry in each.entries]
    assert len(messages) > 20, "it has run"
    assert any("web" in entry.cause for entry in entries)
    written = decode_database(base64.b64decode(found["written"]))
    assert "web" in written.services
    assert version_problem(written) == ""


def test_p10_1_once_it_is_active_each_new_thing_works_everywhere(found: dict[str, Any]) -> None:
    assert found["finished"] == f"version {NEXT} is active"
    assert found["after"] == ["a has 2 slots", "a has 3 slots"]
    assert found["audit"] == [["set_lock_space", f"name=a slots={slots}", "alice"] for slots in (2, 3)]
    assert found["configuration"] == {"name": "a", "slots": 3}
    assert found["version before"] == {"name": "a", "slots": 2}
    assert found["grown"] > 0, "its room is counted"
    assert found["answer"] == {"a": 3}
    assert found["roles"] == ["observer", "operator"]
    assert found["hailed"] == ["a"]
    assert found["told"] == [["lock space gone", "a"], ["lock space set", "a"]]
    assert found["knocks"] == ["alice"]
    assert found["proof"] == "its power was cut"
    assert found["watcher"] == ["", "nap", True]
    assert found["engine"] == ["test", True, "muster.drivers.store.made.store"]


def test_p10_1_an_older_release_refuses_what_is_new_and_does_not_boot_at_its_version(found: dict[str, Any]) -> None:
    newest = {name: base64.b64decode(data) for name, data in found["newest"].items()}
    with pytest.raises(msgspec.ValidationError, match="lock_space"):
        decode_entry(newest["entry"])
    for name in ("request", "message"):
        with pytest.raises(MalformedMessage):
            decode_message(newest[name])
    with pytest.raises(StoreFailed, match="there is no store engine 'made'"):
        engine_of("made:///a/path")
    assert engine_of("/a:/path") == ENGINES["disk"]
    assert found["sent from"] == NEXT  # an interconnect sends it from then on (`Interconnect.send`)
    assert f"version {NEXT} is active" in version_problem(decode_database(newest["database"]))


def test_what_there_was_before_has_the_very_bytes_that_it_had(found: dict[str, Any]) -> None:
    new = {"entry-LockSpace", "operation-SetLockSpace", "message-Hail"}
    assert set(found["samples"]) - set(samples()) == new
    for name, value in samples().items():
        data = base64.b64decode(found["samples"][name])
        if name == "database":  # which has one more field
            assert decode(name, data) == value
        else:
            assert data == encode(name, value), name


ROWS = {
    "the union of records": "records/kinds.py has rows for LockSpace, which nothing knows",
    "the row of the record": "records/kinds.py has no row for LockSpace",
    "the field of the database": "Database has no field `lock_spaces: dict",
    "the field of a draft": "Draft has no field `lock_spaces: dict",
    "the narrator": "core/transitions/narration.py has no row for LockSpace",
    "the document of a version": "core/versions/revisions.py has no row for LockSpace",
    "the union of operations": "records/operations.py has rows for SetLockSpace, which nothing knows",
    "the row of the operation": "records/operations.py has no row for SetLockSpace",
    "the union of messages": "records/messages.py has rows for Hail, which nothing knows",
    "the version of the message": "records/messages.py has no row for Hail",
    "the union of effects": "sim/world/daemon.py has rows for Hailed, which nothing knows",
    "the row of the simulator": "sim/world/daemon.py has no row for Hailed",
    "the proof": "AttributeError: FENCED",
    "the words of the proof": "records/registers.py has no words for the proof FENCED",
    "what the watcher takes": "records/watchers.py lacks a row for nap",
    "what tells the watcher": "records/watchers.py lacks a row for nap",
    "the way of the watcher": "drivers/image/watcher.py has no row for nap",
}
ARMS = {edit.name: edit.file for edit in EDITS if edit.name.startswith("the arm")}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_is_forgotten_fails_when_the_program_is_loaded(release: Release, name: str) -> None:
    (file,) = {edit.file for edit in EDITS if edit.name == name}
    try:
        release.write(file, without=(name,))
        done = run(release, LOADED)
    finally:
        release.write(file)
    assert done.returncode == 1
    assert ROWS[name] in done.stderr.splitlines()[-1], done.stderr[-2000:]


def test_every_edit_is_tried() -> None:
    others = {edit.name for edit in EDITS} - ROWS.keys() - ARMS.keys()
    # What no other line names: such a query or engine is refused as one that there is not.
    assert others == {
        "the effect itself", "the input itself", "the union of inputs", "the row of the query", "the row of the engine",
    }  # fmt: skip


@pytest.mark.long  # mypy from nothing
def test_an_arm_that_is_forgotten_does_not_type_check(release: Release, tmp_path: Path) -> None:
    def problems() -> str:
        files = [str(release.root / "src" / "muster" / file) for file in sorted(set(ARMS.values()))]
        command = [
            sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir",
            str(tmp_path), *files,
        ]  # fmt: skip
        path = os.pathsep.join(str(release.root / folder) for folder in ("src", "tests/support"))
        environment = {**os.environ, "MYPYPATH": path}
        done = subprocess.run(
            command, env=environment, cwd=release.root, capture_output=True, text=True, timeout=600, check=False
        )
        return done.stdout

    assert "assert_never" not in problems()
    try:
        for file in set(ARMS.values()):
            release.write(file, without=tuple(name for name, of in ARMS.items() if of == file))
        found = problems()
    finally:
        for file in ARMS.values():
            release.write(file)
    for kind in ("SetLockSpace", "Hail", "Hailed", "Knock"):
        assert f'Argument 1 to "assert_never" has incompatible type "{kind}"' in found, found
    assert found.count("assert_never") == len(ARMS)
