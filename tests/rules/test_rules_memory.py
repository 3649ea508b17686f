"""A store that went back in time: rules P11.2 to P11.5 of docs/PROTOCOL.md (SPEC 7.4)."""

import errno
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from muster.core.entries import apply
from muster.core.inputs import JournalRead, StripRead
from muster.core.leases.memory import Memory, Remembered, holds, problem
from muster.core.mastership.machine import Halt, Phase
from muster.core.mastership.tenure import Tenure, patience_of
from muster.daemon.shell import home_memory
from muster.daemon.shell.home_memory import HomeMemory
from muster.drivers.store.disk.adoption import BOOT_MARGIN, INDEX_MARGIN, adopt, plan_adoption
from muster.drivers.store.disk.file import Refusal, StoreUnusable, open_header
from muster.drivers.store.disk.geometry import BLOCK_BYTES, COPIES, encode_header, new_header
from muster.drivers.store.disk.inspection import newest_record
from muster.drivers.store.disk.lease_store import GuardStore
from muster.drivers.store.disk.registers import OwnRegister
from muster.drivers.store.disk.store import create_store
from muster.drivers.store.failures import StoreFailed
from muster.drivers.store.identity import Scope
from muster.drivers.store.remembered_file import FILE, MAXIMUM_CLUSTERS, all_remembered, remember, remembered_of
from muster.records.database import Database, Entry, encode_database, initial_database
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import (
    NO_MARK,
    Claim,
    ClaimFlag,
    Deadman,
    Lease,
    LeaseState,
    Mark,
    RegisterKind,
    Strip,
    View,
)
from muster.records.terms import NO_TERM, Stamp, Term
from muster.records.timing import FAST

CLUSTER, STORE = "ab" * 16, "cd" * 16
BOOT = 5 << 32


def lease(node: int, incarnation: int, state: LeaseState = LeaseState.CLEAN, beat: int = 3) -> Lease:
    return Lease(Stamp(node, incarnation, NO_TERM, beat), state, Deadman.PID_NAMESPACE, 100, 20, bytes(16), "")


def claim(node: int, number: int, marked: int = 0) -> Claim:
    mark = Mark(Term(marked, node), 0, 1) if marked else NO_MARK
    return Claim(Stamp(node, BOOT, Term(number, node), 1), ClaimFlag.WITHDRAWN, mark)


def strip(*terms: int, incarnation: int = BOOT) -> Strip:
    nodes = range(len(terms))
    return Strip(
        tuple(lease(node, incarnation) for node in nodes),
        tuple(claim(node, number, number) for node, number in enumerate(terms)),
        (),
        (),
    )


def database(*terms: int) -> Database:
    """One entry for each term number, all of node 0."""
    found = initial_database(Cluster("test", CLUSTER, "fast", ""), ())
    for number in terms:
        apply(found, Entry(found.index + 1, Term(number, 0), "", ()))
    return found


REMEMBERED = Remembered(CLUSTER, STORE, 4, Term(3, 0), {0: 3, 1: 2}, BOOT)


# ---- P11.2 what homes remember ---------------------------------------------------------------------------------------


def test_p11_2_each_index_has_one_term_as_far_as_the_lineage_tells() -> None:
    found = database(1, 1, 3, 3, 7)
    assert [found.term_at(index) for index in range(7)] == [
        None, Term(1, 0), Term(1, 0), Term(3, 0), Term(3, 0), Term(7, 0), None,
    ]  # fmt: skip
    assert holds(found, 4, Term(3, 0)) and not holds(found, 4, Term(1, 0)) and not holds(found, 6, Term(7, 0))
    found.lineage = ()  # as a release that knows of none wrote it
    assert holds(found, 4, Term(9, 0)) and not holds(found, 5, Term(9, 0))


def test_p11_2_a_lineage_is_bounded_and_says_nothing_of_what_it_has_forgotten() -> None:
    found = database(*range(1, 101))
    assert len(found.lineage) == 32
    assert found.term_at(50) is None and found.term_at(90) == Term(90, 0)


@pytest.mark.parametrize(
    ("store", "registers", "history", "words"),
    [
        (STORE, strip(3, 2), (1, 1, 3, 3), ""),
        (STORE, strip(9, 2), (1, 1, 3, 3, 9), ""),
        (STORE, strip(3, 2), (1, 1, 3), "index 4 was committed, and it holds no more than index 3"),
        (STORE, strip(2, 2), (1, 1, 3, 3), "node 0 had claimed term 3, and its register shows 2"),
        (STORE, strip(3, 9), (1, 1, 3, 9, 9), "index 4 was committed under term 3.0, and it has one of term 9.0"),
        (STORE, strip(3, 2, incarnation=BOOT - 1), (1, 1, 3, 3), f"incarnation {BOOT} of this node ran"),
        (STORE, strip(3, 2)._replace(claims=(None, None)), (1, 1, 3, 3), ""),  # unknown says nothing
        ("ef" * 16, strip(9, 9), (8, 8, 8, 8, 8), ""),  # adopted: another history, and above
        ("ef" * 16, strip(9, 9), (8, 8, 8, 8), "it was adopted, but not above index 4"),
        ("ef" * 16, strip(9, 1), (8, 8, 8, 8, 8), "node 1 had claimed term 2"),
    ],
)
def test_p11_2_a_store_that_shows_less_than_a_home_remembers_is_refused(
    store: str, registers: Strip, history: tuple[int, ...], words: str
) -> None:
    found = problem(REMEMBERED, store, registers, database(*history), 0)
    assert found == words if not words else words in found


def test_p11_2_the_incarnation_that_a_home_remembers_is_one_of_its_slot() -> None:
    """The home of a removed node may be that of the next one of its name, in another slot that nobody ran in (P1.2)."""
    registers, history = strip(3, 2, incarnation=BOOT - 1), database(1, 1, 3, 3)
    for slot, refused in ((-1, True), (0, True), (1, False)):
        found = problem(msgspec.structs.replace(REMEMBERED, slot=slot), STORE, registers, history, 0)
        assert found.startswith(f"incarnation {BOOT} of this node ran") if refused else found == ""


class KnowingNode:
    """As much of a node as its home's memory asks for."""

    incarnation, me = BOOT, 0

    def __init__(self) -> None:
        self.knows(4, Term(3, 0), {0: 3})

    def knows(self, index: int, term: Term, terms: dict[int, int]) -> None:
        """What its replica and its memory say from now on."""
        self.replica = SimpleNamespace(known=(index, term))
        self.store = SimpleNamespace(memory=SimpleNamespace(terms=terms))


def kept(home: Path, node: KnowingNode, store_id: bytes = b"") -> HomeMemory:
    header = new_header(bytes.fromhex(CLUSTER), "t", Scope.HOST, store_bytes=4 << 20)._replace(adopted_id=store_id)
    memory = HomeMemory(home, header, node, lambda _event, _text: None)  # type: ignore[arg-type]
    memory.keep()
    if memory._writing is not None:
        memory._writing.join()
    return memory


def test_p11_2_a_home_keeps_what_its_node_knows_of_each_cluster(tmp_path: Path) -> None:
    said: list[str] = []
    assert remembered_of(tmp_path, bytes.fromhex(CLUSTER), said.append) is None and not said
    node = KnowingNode()
    kept(tmp_path, node)
    node.knows(9, Term(5, 0), {0: 5})
    kept(tmp_path, node, b"s" * 16)
    assert all_remembered(tmp_path) == (Remembered(CLUSTER, (b"s" * 16).hex(), 9, Term(5, 0), {0: 5}, BOOT, 0),)
    assert remembered_of(tmp_path, bytes(16), said.append) is None and not said
    (tmp_path / FILE).write_text("{")
    assert remembered_of(tmp_path, bytes.fromhex(CLUSTER), said.append) is None
    assert len(said) == 1 and "an older copy of it would not be noticed" in said[0]


class Clocked:
    """A home's memory with a clock of its own, and how often it was written."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.notes, self.written, self.failing = 0.0, list[str](), 0, False
        monkeypatch.setattr(home_memory, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(home_memory, "remember", self._remember)
        header = new_header(bytes.fromhex(CLUSTER), "t", Scope.HOST, store_bytes=4 << 20)
        self.node = KnowingNode()
        self.memory = HomeMemory(home, header, self.node, lambda event, _text: self.notes.append(event))  # type: ignore[arg-type]

    def _remember(self, home: Path, known: Remembered) -> None:
        self.written += 1
        if self.failing:
            raise OSError(errno.ENOSPC, "no space")
        remember(home, known)

    def keep(self, later_s: float) -> int:
        """What the daemon does in each turn, so much later; how often it has been written in all."""
        self.now_s += later_s
        self.memory.keep()
        if self.memory._writing is not None:
            self.memory._writing.join()
        return self.written


def test_p11_2_a_home_is_written_when_more_is_known_and_once_a_second_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked = Clocked(tmp_path, monkeypatch)
    assert clocked.keep(0) == 1
    assert clocked.keep(5) == 1, "nothing was committed"
    clocked.node.knows(5, Term(3, 0), {0: 3})
    assert clocked.keep(1) == 2
    clocked.node.knows(6, Term(3, 0), {0: 3})
    assert clocked.keep(0.5) == 2
    assert clocked.keep(0.5) == 3
    assert all_remembered(tmp_path)[0].index == 6
    assert not clocked.notes


def test_p11_2_what_could_not_be_written_is_told_once_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked = Clocked(tmp_path, monkeypatch)
    clocked.failing = True
    assert [clocked.keep(1) for _ in range(3)] == [1, 2, 3]
    assert clocked.notes == ["memory not written"]
    clocked.failing = False
    assert clocked.keep(1) == 4
    assert all_remembered(tmp_path)[0].index == 4
    assert clocked.keep(1) == 4
    clocked.failing = True
    clocked.node.knows(5, Term(3, 0), {0: 3})
    clocked.keep(1)
    clocked.keep(1)
    assert clocked.notes == ["memory not written"] * 2


def test_p11_2_a_home_remembers_so_many_clusters_those_written_last(tmp_path: Path) -> None:
    def known(number: int) -> Remembered:
        return Remembered(f"{number:032x}", STORE, number, Term(1, 0), {}, 1, 0)

    for number in range(MAXIMUM_CLUSTERS + 2):
        remember(tmp_path, known(number))
    remember(tmp_path, known(2))
    assert [each.index for each in all_remembered(tmp_path)] == [3, 4, 5, 6, 7, 8, 9, 2]


# ---- P11.3 what peers know -------------------------------------------------------------------------------------------


def read(registers: Strip, started_us: int) -> StripRead:
    return StripRead(1, registers, started_us, started_us + 10)


def test_p11_3_a_term_that_was_heard_must_be_in_each_read_that_begins_later() -> None:
    memory = Memory({})
    shown = strip(3, 2)
    assert not memory.judge(read(shown, 100))
    assert memory.terms == {0: 3, 1: 2}
    memory.heard(Term(5, 1), 200)
    assert not memory.judge(read(shown, 150))  # it began before
    assert "node 1 is known to have claimed term 5" in memory.judge(read(shown, 201))
    assert not memory.judge(read(strip(3, 5), 300))


def test_p11_3_what_was_read_and_marked_stays_and_a_claim_that_was_not_marked_need_not() -> None:
    memory = Memory({1: 2})
    unmarked = strip(3, 2)._replace(claims=(claim(0, 8, 3), claim(1, 2, 2)))
    assert not memory.judge(read(unmarked, 100))
    assert not memory.judge(read(strip(3, 2), 200))
    assert "node 0 is known" in memory.judge(read(strip(2, 2), 300))
    assert "node 1 is known" in Memory({1: 2}).judge(read(strip(3, 1), 0))


# ---- P11.4 nothing committed is left out -----------------------------------------------------------------------------


@pytest.mark.parametrize(("history", "halts"), [((1, 1, 3, 3), False), ((1, 1, 3), True), ((1, 1, 3, 2), True)])
def test_p11_4_a_journal_without_what_was_committed_is_not_adopted(history: tuple[int, ...], halts: bool) -> None:
    tenure = Tenure(claim(0, 3, 3), BOOT, 1000, iter(range(1, 100)), patience_of(FAST))
    tenure.start(0)
    tenure.done(1)
    shown = strip(3, 2)._replace(claims=(tenure.state.claim, claim(1, 2, 2)))
    tenure.claim(shown, 2)
    tenure.done(3)
    shown = shown._replace(claims=(tenure.state.claim, claim(1, 2, 2)))
    tenure.read(shown, lambda _node, _incarnation: True, 4)
    assert tenure.state.phase is Phase.LOADING
    tenure.journal_read(JournalRead(0, encode_database(database(*history)), ()), 4, Term(3, 0), 5)
    tenure.drain()
    tenure.read(shown, lambda _node, _incarnation: True, 6)
    effects, outcomes = tenure.drain()
    assert any(isinstance(outcome, Halt) for outcome in outcomes) == halts
    assert bool(effects) != halts


# ---- P11.5 adoption --------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of three nodes, of which n0 and n1 have run, at index 4."""
    path = tmp_path / "store"
    header = new_header(bytes.fromhex(CLUSTER), "test", Scope.HOST, slots=4, store_bytes=2 << 20)
    found = database(1, 1, 3, 3)
    found.nodes = {node: NodeConfig(node, f"n{node}", (f"127.0.0.1:{node + 1}",), "") for node in range(3)}
    create_store(str(path), header, encode_database(found))
    for node in (0, 1):
        guard = GuardStore(str(path), node)
        guard.write_lease(lease(node, BOOT + node, LeaseState.LIVE))
        guard.close()
    return path


def test_p11_5_an_adoption_puts_everything_above_what_is_known(store: Path) -> None:
    known = Remembered(CLUSTER, CLUSTER, 900, Term(40, 2), {0: 7, 2: 40}, (9 << 32) + 5)
    before = store.read_bytes()
    planned = plan_adoption(str(store), b"n" * 16, (known,), 0)
    assert store.read_bytes() == before
    done = adopt(str(store), b"n" * 16, (known,), 0)
    assert done.index == planned.index == 900 + INDEX_MARGIN
    record = newest_record(str(store))
    assert record.header.store_id == b"n" * 16 and record.header.cluster_id == bytes.fromhex(CLUSTER)
    assert record.database.index == record.database.epoch == 900 + INDEX_MARGIN
    for node in range(3):
        mine = known if node != 1 else Remembered(CLUSTER, CLUSTER, 900, Term(40, 2), known.terms, BOOT + 1)
        if node != 2:  # it has never run
            assert not problem(mine, record.header.store_id.hex(), record.strip, record.database, node)
            found = record.strip.leases[node]
            assert found is not None and found.state is LeaseState.PANICKED
            assert found.stamp.incarnation >> 32 == 9 + BOOT_MARGIN
    above = Remembered(CLUSTER, CLUSTER, 900 + INDEX_MARGIN, Term(40, 2), {}, 0)
    assert "not above index" in problem(above, record.header.store_id.hex(), record.strip, record.database, 0)
    again = adopt(str(store), b"m" * 16, (), 5_000_000)
    assert again.index == 5_000_000 + INDEX_MARGIN and again.term > done.term


def test_p11_5_a_store_that_somebody_runs_on_is_not_adopted(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = open_header(str(store))

    def beat(_pause_s: float) -> None:
        guard = GuardStore(str(store), 1)
        OwnRegister(guard._file, header, RegisterKind.VIEW, 1).write(View(Stamp(1, BOOT + 1, NO_TERM, 9), frozenset()))
        guard.close()

    monkeypatch.setattr("muster.drivers.store.disk.adoption.time.sleep", beat)
    with pytest.raises(StoreFailed, match="n1 runs on it; stop every node of the cluster first"):
        adopt(str(store), b"n" * 16, (), 0)
    assert open_header(str(store)) == header


@pytest.mark.parametrize("at", ["OwnJournal.write_checkpoint", "_raise_claim", "_raise_lease"])
def test_p11_5_an_adoption_that_ends_anywhere_leaves_what_no_node_boots_on(
    at: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError("the power is out")

    with monkeypatch.context() as patch:
        patch.setattr(f"muster.drivers.store.disk.adoption.{at}", fail)
        with pytest.raises(OSError, match="the power is out"):
            adopt(str(store), b"n" * 16, (), 0)
    with pytest.raises(StoreUnusable, match="`muster store adopt` was interrupted; run it again"):
        newest_record(str(store))
    adopt(str(store), b"n" * 16, (), 0)
    assert newest_record(str(store)).header.store_id == b"n" * 16


def test_p11_5_an_adoption_that_was_interrupted_is_refused_at_boot_and_finished_by_doing_it_again(store: Path) -> None:
    header = open_header(str(store))._replace(complete=False, adopted_id=b"n" * 16, sequence=9)
    with store.open("r+b") as file:
        for copy in range(COPIES):
            file.seek(copy * BLOCK_BYTES)
            file.write(encode_header(header, copy))
    with pytest.raises(StoreUnusable, match="`muster store adopt` was interrupted; run it again") as caught:
        newest_record(str(store))
    assert caught.value.refusal is Refusal.HALF_WRITTEN
    adopt(str(store), b"o" * 16, (), 0)
    assert newest_record(str(store)).header.store_id == b"o" * 16


def test_a_header_without_a_store_id_is_as_it_always_was() -> None:
    header = new_header(bytes.fromhex(CLUSTER), "test", Scope.HOST, store_bytes=4 << 20)
    assert header.store_id == header.cluster_id
    assert len(encode_header(header._replace(adopted_id=b"n" * 16), 0)) == BLOCK_BYTES
