"""The network lab: a short campaign finds nothing, planted violations are found, and nothing outlives a lab."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broken_way import broken_way
from lab.exclusive_service import LINE_BYTES
from lab.faults import CHANGES, KINDS, parse_fault
from lab.histories import HistoryReader
from lab.judgement import Judgement
from lab.sandbox import SCRATCH_PREFIX, missing
from muster.daemon.history import observations as told
from muster.drivers.image.process_tree import read_command_line, read_parents
from muster.records.database import Entry
from muster.records.levels import Level, NodeState, TransitionKind
from muster.records.members import Member, Proof
from muster.records.registers import ProofKind
from muster.records.terms import Term
from muster.records.transitions import Transition
from muster.setup.errors import Mistaken

ROOT = Path(__file__).parents[2]
CAMPAIGN_S = 18
TIMEOUT_S = 900.0  # others share the machine
REASON = f"not applicable: {missing()}" if "/dev/fuse" in missing() else missing()
needs_lab = pytest.mark.skipif(bool(REASON), reason=REASON)


def start_lab(*words: str, source: Path = ROOT / "src") -> subprocess.Popen[str]:
    """A lab on the daemons in `source`."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "lab"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(source)},
    )


def run_lab(*words: str, source: Path = ROOT / "src") -> tuple[int, str]:
    """The status and all output of a lab, which is killed if it takes too long."""
    lab = start_lab(*words, source=source)
    try:
        output, errors = lab.communicate(timeout=TIMEOUT_S)
    finally:
        lab.kill()
        lab.wait()
    return lab.returncode, output + errors


# ---- real faults -----------------------------------------------------------------------------------------------------


@needs_lab
@pytest.mark.long
def test_a_short_random_campaign_finds_no_violation_and_keeps_its_history(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(3), "little")
    status, output = run_lab("random", "--seconds", str(CAMPAIGN_S), "--seed", str(seed), "--output", str(tmp_path))
    assert status == 0, output
    verdict = json.loads((tmp_path / str(seed) / "verdict.json").read_text())
    assert verdict["verdict"] == "no violation"
    assert verdict["findings"] == []
    assert verdict["rounds"] > 0
    # every source has given the checkers something
    seen = {
        "Applied",
        "Told",
        "Elected",
        "ClaimWritten",
        "Notified",
        "LevelAcknowledged",
        "CommandTaken",
        "ServiceBegan",
    }
    assert verdict["observations"].keys() >= seen, verdict["observations"]
    kept = {path.name for path in (tmp_path / str(seed)).iterdir()}
    assert kept >= {"observations", "record", "faults.jsonl", "n0.log", "n1.log", "n2.log"}
    assert "verdict: no violation" in output
    status, output = run_lab("judge", str(tmp_path / str(seed)))
    assert (status, "no violation" in output) == (0, True), output


@needs_lab
@pytest.mark.long
def test_a_script_carries_out_each_kind_of_fault(tmp_path: Path) -> None:
    """All kinds of one node each, a few at a time; the cluster comes to rest, and nothing is found (SPEC 2.4, 7)."""
    lines = []
    for number, (kind, known) in enumerate(KINDS.items()):
        amount = f" {known.amounts[0]}" if known.amounts else ""
        lines.append(f"{number * 0.3:.1f} {kind} n{number % 3}{amount}{' for 0.4' if known.durations else ''}")
    script = tmp_path / "script"
    script.write_text("\n".join(lines) + "\n")
    status, output = run_lab("script", str(script), "--seed", "7", "--output", str(tmp_path))
    assert status == 0, output
    verdict = json.loads((tmp_path / "7" / "verdict.json").read_text())
    assert set(verdict["faults"]) <= set(KINDS)
    assert len(set(verdict["faults"]) - set(CHANGES)) >= 8, "what strikes a node that is down is not counted"
    what = [json.loads(line)["what"] for line in (tmp_path / "7" / "faults.jsonl").read_text().splitlines()]
    assert {text.split()[1] for text in what} == set(KINDS)


@needs_lab
@pytest.mark.long
def test_nothing_outlives_a_lab_that_is_killed(tmp_path: Path) -> None:
    lab = start_lab("random", "--minutes", "5", "--output", str(tmp_path))
    try:
        assert lab.stdout is not None
        while "round" not in (line := lab.stdout.readline()):
            assert line, lab.communicate()[1]
        scratch = _scratch_of(lab.pid)
    finally:
        lab.kill()
        lab.communicate()
    mark = os.fsencode(scratch)
    deadline = time.monotonic() + 30
    while any(mark in b" ".join(read_command_line(pid)) for pid in read_parents()):
        assert time.monotonic() < deadline, f"processes of {scratch} go on after their lab was killed"
        time.sleep(0.02)
    assert mark not in Path("/proc/self/mountinfo").read_bytes()
    assert scratch.is_dir()
    status, output = run_lab("script", "/dev/null", "--output", str(tmp_path))
    assert (status, "there is nothing to do" in output) == (2, True)
    script = tmp_path / "one"
    script.write_text("0 transfer n0\n")
    status, output = run_lab("script", str(script), "--output", str(tmp_path))
    assert status == 0, output
    assert not scratch.exists(), "the next lab removes what a killed one has left"


def _scratch_of(lab: int) -> Path:
    """The scratch directory that the guards below this lab were given: other labs may run beside it."""
    parents = read_parents()
    for pid in parents:
        ancestor = pid
        while ancestor not in (0, lab):
            ancestor = parents.get(ancestor, 0)
        for word in read_command_line(pid) if ancestor else ():
            if found := re.match(rb"/.*/" + SCRATCH_PREFIX.encode() + rb"[^/]+(?=/nodes/)", word):
                return Path(os.fsdecode(found.group()))
    raise AssertionError(f"nothing below process {lab} has a home in a scratch directory")


@needs_lab
@pytest.mark.soak
def test_daemons_that_believe_in_a_death_too_soon_are_found(tmp_path: Path) -> None:
    """SPEC 7.1: real daemons whose count of a silent lease is too short recover a node that still runs its services."""
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src" / "muster", source / "muster", ignore=shutil.ignore_patterns("__pycache__"))
    lease = source / "muster" / "core" / "leases" / "lease.py"
    sound = lease.read_text()
    unsound = sound.replace("bound_ms = with_drift_ms(lease.lease_ms)", "bound_ms = 150")
    assert unsound != sound
    lease.write_text(unsound)
    script = tmp_path / "script"
    script.write_text("1 pause-lease n1 for 0.4\n1 pause-lease n2 for 0.4\n")  # one of them is not master
    status, output = run_lab("script", str(script), "--seed", "1", "--output", str(tmp_path), source=source)
    assert status == 1, output
    rules = {finding["rule"] for finding in json.loads((tmp_path / "1" / "verdict.json").read_text())["findings"]}
    assert "ProofFirst" in rules, output


# ---- the store that fails --------------------------------------------------------------------------------------------


@pytest.fixture
def faulty_store(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A mounted store of 8 KiB, and how to give it a command."""
    if REASON:
        pytest.skip(REASON)
    backing, mounted = tmp_path / "backing", tmp_path / "store"
    backing.write_bytes(bytes(8192))
    with broken_way(mounted, backing) as tell:
        yield mounted, tell


def _attempt(path: Path, data: bytes | None = None) -> int:
    """Read the first sector, or write it durably; the error number, or 0."""
    descriptor = os.open(path, os.O_RDWR | os.O_DSYNC)
    try:
        if data is None:
            os.pread(descriptor, 512, 0)
        else:
            os.pwrite(descriptor, data, 0)
    except OSError as error:
        return error.errno or -1
    else:
        return 0
    finally:
        os.close(descriptor)


def _until(wanted: int, path: Path, data: bytes | None = None) -> None:
    """A command reaches the server beside the requests: wait until it is seen."""
    deadline = time.monotonic() + 20
    while _attempt(path, data) != wanted:
        assert time.monotonic() < deadline, f"no error {wanted} from {path}"
        time.sleep(0.01)


def test_a_store_fails_as_it_is_told(faulty_store: tuple[Path, Callable[[str], None]]) -> None:
    path, tell = faulty_store
    data = b"muster".ljust(512, b".")
    assert _attempt(path, data) == 0
    assert path.read_bytes() == data + bytes(8192 - 512)
    tell("read-only")
    _until(errno.EROFS, path, b"x" * 512)
    assert _attempt(path) == 0
    tell("errors 100")
    _until(errno.EIO, path)
    assert _attempt(path, b"x" * 512) == errno.EIO
    tell("slow 300")
    _until(0, path)
    began_s = time.monotonic()
    assert _attempt(path) == 0
    assert time.monotonic() - began_s >= 0.3
    tell("pass")
    _until(0, path)
    assert path.with_name("backing").read_bytes() == data + bytes(8192 - 512)
    tell("refuse 100 200")
    _until(errno.EIO, path, data)
    assert path.read_bytes()[:512] == data, "what is refused is not written, and can be read"
    tell("accept")
    _until(0, path, data)


def test_what_waits_for_a_hung_store_lands_late_or_is_dropped(
    faulty_store: tuple[Path, Callable[[str], None]],
) -> None:
    path, tell = faulty_store
    for last_word, landed in (("pass", b"late"), ("drop", b"late")):
        tell("hang")
        text = b"late" if last_word == "pass" else b"lost"
        program = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_WRONLY), sys.argv[2].encode(), 0)"
        writer = subprocess.Popen([sys.executable, "-c", program, str(path), text.decode()], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 20
        while not _waits_for_fuse(writer.pid):
            assert time.monotonic() < deadline, "the writer does not wait for the store"
            time.sleep(0.01)
        assert writer.poll() is None
        tell(last_word)
        writer.communicate(timeout=20)
        assert (writer.returncode == 0) == (last_word == "pass")
        tell("pass")
        assert path.with_name("backing").read_bytes()[:4] == landed


def _waits_for_fuse(pid: int) -> bool:
    return Path(f"/proc/{pid}/wchan").read_text() in ("request_wait_answer", "fuse_direct_io", "__fuse_simple_request")


# ---- planted violations ----------------------------------------------------------------------------------------------


class Recorded:
    """A history as the daemons and services of a lab leave it, written by a test."""

    def __init__(self, folder: Path) -> None:
        self.observations, self.record = folder / "observations", folder / "record"
        self.observations.mkdir()
        self.record.touch()
        self.reader = HistoryReader(self.observations, self.record, {"n0": 0, "n1": 1})
        self.judgement = Judgement()

    def daemon(self, node: int, incarnation: int, *lines: told.Line) -> None:
        """Lines of one daemon process."""
        path = self.observations / f"n{node}-{node}-{incarnation}-1-ab.jsonl"
        with path.open("ab") as file:
            file.writelines(msgspec.json.encode(line) + b"\n" for line in lines)

    def service(self, at_us: int, instance: str, node: int, incarnation: int, generation: int) -> None:
        """A line of a service that runs."""
        words = (
            f"{at_us} plain {instance} {1024 * generation} n{node} {incarnation} {generation} {generation} start 5 runs"
        )
        with self.record.open("ab") as file:
            file.write(words.encode().ljust(LINE_BYTES - 1) + b"\n")

    def broken(self, living: set[tuple[int, int]], until_us: int = 10**9) -> set[str]:
        """The rules that are broken up to that moment."""
        return {finding.rule for finding in self.judgement.take(self.reader.batch(until_us, living))}


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path)


TERM = Term(1, 0)


def showed(at_us: int, index: int, **tables: object) -> told.Showed:
    return msgspec.structs.replace(told.Showed(at_us, index, TERM, names={0: "n0", 1: "n1"}), **tables)


def dead(incarnation: int) -> Member:
    proof = Proof(ProofKind.LEASE_EXPIRED, 1, incarnation)
    return Member(1, NodeState.FORCED_LEAVING, incarnation, last_proof=proof)


def test_two_replicas_that_differ_at_one_index_are_found(recorded: Recorded) -> None:
    recorded.daemon(0, 5, told.Began(1, 0, TERM), showed(2, 1, members={0: Member(0)}))
    recorded.daemon(1, 6, told.Began(1, 0, TERM), showed(3, 1, members={0: Member(0, NodeState.JOINED, 5)}))
    assert recorded.broken({(0, 5), (1, 6)}) == {"OneHistory"}


def test_states_are_rebuilt_from_their_differences(recorded: Recorded) -> None:
    recorded.daemon(0, 5, showed(2, 1, members={0: Member(0), 1: Member(1)}), showed(3, 2, members={1: None}))
    recorded.daemon(1, 6, showed(4, 2, members={0: Member(0)}))
    assert recorded.broken({(0, 5), (1, 6)}) == set()


def test_a_service_on_two_nodes_at_a_time_is_found(recorded: Recorded) -> None:
    recorded.service(100, "a", 0, 5, 1)
    recorded.service(200, "b", 1, 6, 2)
    recorded.service(300, "a", 0, 5, 1)
    assert recorded.broken({(0, 5), (1, 6)}) == {"OneNodeAtATime"}


def test_a_service_that_goes_on_after_the_batch_in_which_it_was_followed_is_found(recorded: Recorded) -> None:
    recorded.service(100, "a", 0, 5, 1)
    recorded.service(200, "b", 1, 6, 2)
    assert recorded.broken({(0, 5), (1, 6)}, 500) == set()
    recorded.service(600, "a", 0, 5, 1)
    assert recorded.broken({(0, 5), (1, 6)}, 1000) == {"AfterItsEnd"}


def test_a_service_that_moves_in_order_is_not_accused(recorded: Recorded) -> None:
    for at_us in (100, 150):
        recorded.service(at_us, "a", 0, 5, 1)
    recorded.service(200, "b", 1, 6, 2)
    assert recorded.broken({(0, 5), (1, 6)}) == set()


def test_a_proof_that_a_sign_of_life_belies_is_found(recorded: Recorded) -> None:
    recorded.service(100, "a", 1, 6, 1)
    recorded.daemon(0, 5, showed(200, 1, members={1: dead(6)}))
    recorded.service(300, "a", 1, 6, 1)
    assert recorded.broken({(0, 5)}) == {"ProofFirst", "NothingAfterExpiry"}


def test_a_proof_after_the_last_sign_of_life_is_not_accused(recorded: Recorded) -> None:
    recorded.service(100, "a", 1, 6, 1)
    recorded.daemon(0, 5, showed(200, 1, members={1: dead(6)}))
    assert recorded.broken({(0, 5)}) == set()


def test_a_sign_of_life_after_the_judged_end_is_found_in_a_later_batch(recorded: Recorded) -> None:
    recorded.service(100, "a", 1, 6, 1)
    assert recorded.broken({(0, 5)}, 500) == set()
    recorded.service(600, "a", 1, 6, 1)
    assert recorded.broken({(0, 5)}, 1000) == {"AfterItsEnd"}


def test_a_notification_of_a_step_that_was_not_committed_is_found(recorded: Recorded) -> None:
    vector = {1: NodeState.JOINING}
    recorded.daemon(0, 5, told.Notified(100, 10, 77, 1, 6, TransitionKind.JOINING, 0, vector))
    assert recorded.broken({(0, 5), (1, 6)}) == {"LevelsInOrder"}


def level_at_work(levels: tuple[Level, ...], position: int) -> dict[str, Any]:
    """n1 joins through levels 10 and 20; n0 takes part."""
    members = {0: Member(0, NodeState.JOINED, 5, levels), 1: Member(1, NodeState.JOINING, 6)}
    at_work = Transition(9, 1, 6, TransitionKind.JOINING, (10, 20), position, participants=(0,))
    return {"members": members, "transitions": {9: at_work}}


BOTH = (Level(10, "ten"), Level(20, "twenty"))


@pytest.mark.parametrize(("withdrawn", "rules"), [((), {"LevelsInOrder"}), ((told.Withdrawn(150, 10),), set())])
def test_a_level_is_waited_for_as_long_as_it_is_registered(
    recorded: Recorded, withdrawn: tuple[told.Line, ...], rules: set[str]
) -> None:
    """P3.9, P3.13: a level that a report no longer shows is struck from the record, and nobody waits for it."""
    first, then = showed(100, 1, **level_at_work(BOTH, 0)), showed(200, 2, **level_at_work(BOTH, 1))
    recorded.daemon(0, 5, told.Registered(50, BOTH[0]), first, *withdrawn, then)
    assert recorded.broken({(0, 5), (1, 6)}) == rules


def test_a_restarted_daemon_that_registers_again_what_is_registered_changes_nothing(recorded: Recorded) -> None:
    """P3.13: the program goes on where it was, and hears its next barrier."""
    vector = {1: NodeState.JOINING}
    at_work = level_at_work((BOTH[0],), 0)
    at_barrier = msgspec.structs.replace(at_work["transitions"][9], barrier=1)
    recorded.daemon(
        0, 5, told.Began(10, 0, TERM), told.Registered(50, BOTH[0]), showed(100, 1, **at_work),
        told.Notified(110, 10, 9, 1, 6, TransitionKind.JOINING, 0, vector), told.Answered(120, 9, 10, 0),
        told.Began(130, 1, TERM), told.Registered(140, BOTH[0]),
        showed(150, 2, transitions={9: at_barrier}),
        told.Notified(160, 10, 9, 1, 6, TransitionKind.JOINING, 1, vector),
    )  # fmt: skip
    assert recorded.broken({(0, 5), (1, 6)}) == set()


def test_masters_that_tell_different_entries_are_found(recorded: Recorded) -> None:
    recorded.daemon(0, 5, told.Said(100, TERM, Entry(3, TERM, "one", ())))
    recorded.daemon(1, 6, told.Said(200, Term(2, 1), Entry(3, Term(2, 1), "other", ())))
    assert recorded.broken({(0, 5), (1, 6)}) == {"OneHistory"}


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        ("1.0 cat n0 for 1", "there is no fault 'cat'"),
        ("1.0 cut n9 for 1", "the nodes are n0, n1, n2"),
        ("1.0 cut n0", "write `cut NODES for SECONDS`"),
        ("1.0 slow-link n0 for 1", "write `slow-link NODES MS for SECONDS`"),
        ("soon cut n0 for 1", "'soon' is no moment"),
    ],
)
def test_a_mistaken_script_is_refused_with_its_line(line: str, phrase: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"# faults\n{line}\n")
    status, output = run_lab("script", str(script), "--output", str(tmp_path / "out"))
    assert status == 2
    assert f"{script}, line 2" in output
    assert phrase in output
    assert not (tmp_path / "out").exists()


def test_what_a_fault_is_written_as_is_read_as_the_same_fault() -> None:
    names = ["n0", "n1", "n2"]
    for kind, known in KINDS.items():
        text = f"{kind} n0,n2{f' {known.amounts[1]}' if known.amounts else ''}{' for 1.25' if known.durations else ''}"
        assert str(parse_fault(text.split(), names, "here")) == text
    with pytest.raises(Mistaken):
        parse_fault([], names, "here")


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "nft" else tool)
    assert missing() == "the lab needs nft: apt-get install nftables"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "run it as root" in missing()


@needs_lab
@pytest.mark.long
def test_a_lab_that_is_asked_to_end_takes_its_cluster_down_itself() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lab = start_lab("random", "--minutes", "5", "--output", folder)
        try:
            assert lab.stdout is not None
            while "round" not in (line := lab.stdout.readline()):
                assert line, lab.communicate()[1]
            lab.send_signal(signal.SIGTERM)
            lab.communicate(timeout=TIMEOUT_S)
            assert lab.returncode == 128 + signal.SIGTERM
        finally:
            lab.kill()
            lab.communicate()
