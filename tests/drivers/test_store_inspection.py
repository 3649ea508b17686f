"""Looking at stores from outside: show, check, and what is on a path (SPEC 1.5, 7.8)."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from disk_trials import begin, damage, lease_of, read_bytes, run_with, small_header
from muster.drivers.store.disk.file import StoreUnusable
from muster.drivers.store.disk.geometry import BLOCK_BYTES, Header, encode_header
from muster.drivers.store.disk.inspection import Finding, check, describe, what_is_on
from muster.drivers.store.disk.lease_store import GuardStore
from muster.drivers.store.disk.sectors import Record, RecordKind, encode_record
from muster.drivers.store.disk.store import DiskStore, create_store, open_header
from muster.records.database import Entry, encode_database, encode_entry, initial_database
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import Claim, ClaimFlag, Lease, LeaseState, Mark, Marks, RegisterKind, View
from muster.records.services import Definition, Service, ServiceState
from muster.records.terms import Stamp, Term

CLUSTER = Cluster("trial", "ab" * 16, "fast", "PEM")
NODES = tuple(NodeConfig(node, f"n{node}", (f"127.0.0.1:{7000 + node}",), "PEM") for node in range(3))
DATABASE = encode_database(initial_database(CLUSTER, NODES))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of a cluster of three nodes in which node 1 was master and committed two entries."""
    target = tmp_path / "store"
    create_store(str(target), small_header(target), DATABASE)
    web = Service(Definition("web"), uid=2, state=ServiceState.REGISTERED, node=1)
    entries = (
        Entry(1, Term(2, 1), "join", (Member(1, NodeState.JOINED, incarnation=5),)),
        Entry(2, Term(2, 1), "apply", (web,)),
    )

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, DATABASE)
        for number, entry in enumerate(entries):
            await store.append_frame(mark, number, encode_entry(entry))
        await store.write_view(View(Stamp(1, 5, Term(2, 1), 4), frozenset({0, 2})))
        await store.write_marks(Marks(Stamp(1, 5, Term(2, 1), 1), ((2, 77),)))

    run_with(target, 1, scenario)
    guard = GuardStore(target, 1)
    guard.write_lease(lease_of(1, 9))
    guard.close()
    guard = GuardStore(target, 2)
    guard.write_lease(lease_of(2, 3)._replace(state=LeaseState.PANICKED, cause="node 1 forced it out"))
    guard.close()
    return target


def test_a_store_is_described_in_words(path: Path) -> None:
    report = describe(path)
    header = open_header(str(path))
    assert (report.cluster, report.identity, report.scope) == ("trial", header.identity, "host")
    assert len(report.slots) == header.slots
    assert [slot.name for slot in report.slots if slot.used] == ["n0", "n1", "n2"]
    n0, n1, n2 = report.slots[:3]
    assert n0.lease == "never ran"
    assert n1.lease == "live or lost: incarnation 5, beat 9, lease 600 ms, deadman pid namespace"
    assert n2.lease == "panicked: incarnation 5, beat 3: node 1 forced it out"
    assert n0.claim == "withdrawn from term 1.0; journal of term 1.0 in half 0, generation 1"
    assert n1.claim == "master of term 2.1; journal of term 2.1 in half 0, generation 1"
    assert n2.claim == "never claimed; no journal"
    assert n1.view == "hears 0, 2 (beat 4)"
    assert n1.marks == "forces out node 2 incarnation 77"
    assert n2.marks == "forces nobody out"
    journal = report.journal
    assert journal is not None
    assert (journal.owner_name, journal.term, journal.index, journal.frames) == ("n1", "2.1", 2, 2)
    assert [(node.name, node.state) for node in journal.nodes] == [
        ("n0", "inactive"),
        ("n1", "joined"),
        ("n2", "inactive"),
    ]
    assert [(service.name, service.state, service.node) for service in journal.services] == [
        ("web", "registered", "n1")
    ]
    assert msgspec.json.decode(msgspec.json.encode(report))["journal"]["index"] == 2


def test_a_sound_store_has_no_findings_and_looking_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    path.chmod(0o400)
    assert check(path) == []
    describe(path)
    what_is_on(path)
    assert path.read_bytes() == before


def test_a_newest_journal_that_cannot_be_read_is_said_so(path: Path) -> None:
    header = open_header(str(path))
    for copy in range(2):
        damage(path, header.region_offset(1, 0, copy) + 100, b"\xa5")
    report = describe(path)
    assert report.journal is None
    assert "checkpoint" in report.unreadable
    findings = check(path)
    assert [(finding.severity, finding.offset) for finding in findings] == [("error", header.region_offset(1, 0, 0))]
    assert "newest journal of node 1" in findings[0].where
    assert what_is_on(path) == "a Muster store of cluster trial whose newest journal cannot be read"


def test_unknown_claims_are_said_beside_the_newest_readable_journal(path: Path) -> None:
    header = open_header(str(path))
    for copy in range(2):
        damage(path, header.register_offset(RegisterKind.CLAIM, 1, copy), bytes(512))
    report = describe(path)
    assert report.slots[1].claim == "unknown: no copy is valid"
    assert report.journal is not None
    assert report.journal.term == "1.0"
    assert "[1]" in report.unreadable


def spoil(path: Path, offset: int) -> None:
    damage(path, offset, b"\xa5" * 512)


def one_copy_of_a_register(path: Path, header: Header) -> tuple[int, str]:
    offset = header.register_offset(RegisterKind.LEASE, 1, 1)
    spoil(path, offset)
    return offset, "warning"


def both_copies_of_a_register(path: Path, header: Header) -> tuple[int, str]:
    for copy in range(2):
        spoil(path, header.register_offset(RegisterKind.VIEW, 2, copy))
    return header.register_offset(RegisterKind.VIEW, 2, 0), "error"


def an_interrupted_write(path: Path, header: Header) -> tuple[int, str]:
    offset = header.register_offset(RegisterKind.MARKS, 1, 1)
    older = read_bytes(path, offset, 512)
    run_with(path, 1, lambda store: store.write_marks(Marks(Stamp(1, 5, Term(2, 1), 2), ())))
    damage(path, offset, older)
    return offset, "note"


def two_writers(path: Path, header: Header) -> tuple[int, str]:
    stamp = Stamp(1, 5, Term(2, 1), 1)
    offset = header.register_offset(RegisterKind.MARKS, 1, 1)
    damage(path, offset, encode_record(Record(RecordKind.MARKS, stamp, b""), header.cluster_id, offset, 512))
    return header.register_offset(RegisterKind.MARKS, 1, 0), "error"


def one_copy_of_the_header(path: Path, header: Header) -> tuple[int, str]:
    damage(path, BLOCK_BYTES + 90, b"\xa5")
    return BLOCK_BYTES, "warning"


def one_copy_of_a_checkpoint(path: Path, header: Header) -> tuple[int, str]:
    spoil(path, header.region_offset(1, 0, 0))
    return header.region_offset(1, 0, 0), "warning"


def a_last_frame_in_one_copy_only(path: Path, header: Header) -> tuple[int, str]:
    start = header.region_offset(1, 0, 1)
    length = len(read_bytes(path, start, header.region_bytes).rstrip(b"\0"))
    offset = start + (length - 1) // 512 * 512
    damage(path, offset, bytes(512))
    return offset, "note"


def an_older_journal(path: Path, header: Header) -> tuple[int, str]:
    for copy in range(2):
        spoil(path, header.region_offset(0, 0, copy))
    return header.region_offset(0, 0, 0), "warning"


def a_journal_that_does_not_decode(path: Path, header: Header) -> tuple[int, str]:
    async def scenario(store: DiskStore) -> None:
        await begin(store, 1, 1, b"\xc1 is no database", generation=2)

    run_with(path, 1, scenario)
    return header.region_offset(1, 1, 0), "error"


def a_mark_above_its_term(path: Path, header: Header) -> tuple[int, str]:
    claim = Claim(Stamp(2, 5, Term(2, 2), 1), ClaimFlag.WITHDRAWN, Mark(Term(3, 2), 0, 1))
    run_with(path, 2, lambda store: store.write_claim(claim))
    return header.register_offset(RegisterKind.CLAIM, 2, 0), "error"


DAMAGES = [
    one_copy_of_a_register,
    both_copies_of_a_register,
    an_interrupted_write,
    two_writers,
    one_copy_of_the_header,
    one_copy_of_a_checkpoint,
    a_last_frame_in_one_copy_only,
    an_older_journal,
    a_journal_that_does_not_decode,
    a_mark_above_its_term,
]


@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
def test_every_kind_of_damage_is_found_where_it_is(path: Path, harm: Callable[[Path, Header], tuple[int, str]]) -> None:
    offset, severity = harm(path, open_header(str(path)))
    findings = check(path)
    found = [finding for finding in findings if finding.offset == offset]
    assert [finding.severity for finding in found] == [severity], findings
    assert found[0].sector == offset // 512
    assert found[0].problem
    assert found[0].advice
    if harm is not a_mark_above_its_term:  # such a mark names a journal that does not exist either
        assert len(findings) == 1, findings


def test_the_worst_comes_first(path: Path) -> None:
    header = open_header(str(path))
    for harm in (one_copy_of_a_register, both_copies_of_a_register, an_interrupted_write):
        harm(path, header)
    assert [finding.severity for finding in check(path)] == ["error", "warning", "note"]


def test_a_running_cluster_has_no_findings(path: Path) -> None:
    """Registers and journals change under the check all the time; nothing of that is damage."""
    done = threading.Event()

    def renew() -> None:
        guard = GuardStore(path, 1)
        beat = 10
        while not done.is_set():
            guard.write_lease(lease_of(1, beat))
            beat += 1
        guard.close()

    async def scenario(store: DiskStore) -> None:
        generation, sequence = 1, 5
        while not done.is_set():
            generation += 1
            mark = await begin(store, 1, (generation - 1) % 2, DATABASE, number=generation, generation=generation)
            for number in range(5):
                entry = Entry(
                    number + 1, Term(generation, 1), "join", (Member(2, NodeState.JOINED, incarnation=number),)
                )
                await store.append_frame(mark, number, encode_entry(entry))
                await store.write_view(View(Stamp(1, 5, Term(generation, 1), sequence), frozenset()))
                sequence += 1

    writers = [threading.Thread(target=renew), threading.Thread(target=lambda: run_with(path, 1, scenario))]
    findings: list[Finding] = []
    try:
        for writer in writers:
            writer.start()
        for _ in range(5):
            findings += check(path)
            assert describe(path).cluster == "trial"
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert findings == []
    assert check(path) == []


def test_what_cannot_be_opened_is_refused_not_described(tmp_path: Path) -> None:
    for look in (describe, check):
        with pytest.raises(StoreUnusable, match="does not exist"):
            look(tmp_path / "missing")


def test_what_is_on_a_path_is_said_in_words(path: Path, tmp_path: Path) -> None:
    header = open_header(str(path))
    assert what_is_on(path) == "a Muster store of cluster trial with 3 nodes, last written by n1"
    other = tmp_path / "other"
    assert what_is_on(other) == "nothing (it does not exist)"
    other.touch()
    assert what_is_on(other) == "nothing (it is empty)"
    other.write_bytes(bytes(1 << 20))
    assert what_is_on(other) == "nothing (it is blank)"
    other.write_bytes(bytes(1 << 20) + b"x")
    assert what_is_on(other) == "unknown data behind a blank start"
    other.write_bytes(b"notes to myself")
    assert what_is_on(other) == "unknown data"
    other.write_bytes(b"\0" * 512 + b"LABELONE" + bytes(16) + b"LVM2 001" + bytes(4096))
    assert what_is_on(other) == "an LVM physical volume"
    other.write_bytes(path.read_bytes()[: 1 << 20])
    assert what_is_on(other) == "a Muster store that was cut off"
    for copy in range(2):
        damage(path, copy * BLOCK_BYTES, encode_header(header._replace(complete=False), copy))
    assert what_is_on(path).startswith("a half-written Muster store")
    for copy in range(2):
        damage(path, copy * BLOCK_BYTES + 90, b"\xa5")
    assert what_is_on(path) == "a Muster store whose header is damaged"
    assert what_is_on(tmp_path).startswith("what cannot be told")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (("mkfs.ext4", "-q"), "an ext2, ext3 or ext4 file system"),
        (("mkswap",), "swap space"),
    ],
)
def test_file_systems_and_their_like_are_recognised(tmp_path: Path, program: tuple[str, ...], words: str) -> None:
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    tool = shutil.which(program[0], path=search)
    if tool is None:
        pytest.skip(f"not applicable: {program[0]} is not installed")
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    image.chmod(0o600)
    subprocess.run([tool, *program[1:], image], check=True, capture_output=True)
    assert what_is_on(image) == words
    with pytest.raises(StoreUnusable, match="--force"):
        create_store(str(image), small_header(image), DATABASE)


def test_words_for_a_clean_leave(path: Path) -> None:
    guard = GuardStore(path, 1)
    lease: Lease = lease_of(1, 10)._replace(state=LeaseState.CLEAN)
    guard.write_lease(lease)
    guard.close()
    assert describe(path).slots[1].lease == "left cleanly: incarnation 5, beat 10"
