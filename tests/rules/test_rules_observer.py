"""What a node makes of the lease registers and of the kernel's word, read by read (PROTOCOL 4.6, 7.13-7.17)."""

from muster.core.draft import Draft, Facts
from muster.core.inputs import StripRead
from muster.core.leases.lease import Evidence, next_incarnation
from muster.core.leases.observer import KernelIdentity, Observer
from muster.core.links.links import Links
from muster.core.membership.membership import admit
from muster.core.operations.clients import Clients
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.members import LeaveNode, Member, Proof
from muster.records.messages import Report, Response
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import Deadman, Lease, LeaseState, Life, ProofKind, RegisterKind, Strip, blank_register
from muster.records.terms import NO_TERM, Stamp, Term
from muster.records.timing import FAST, with_drift_ms

MS = 1000
BOOT, MACHINE = bytes(range(16)), bytes(range(1, 17))
INCARNATION = next_incarnation(0, 9)
LIFE = Life(MACHINE, 1, 1, 77, 1)
HERE = KernelIdentity(BOOT, MACHINE)
SILENCE_MS = with_drift_ms(FAST.lease_ms) + 200


def _lease(sequence: int = 4, life: Life | None = LIFE, boot: bytes = BOOT) -> Lease:
    stamp = Stamp(1, INCARNATION, NO_TERM, sequence)
    return Lease(stamp, LeaseState.LIVE, Deadman.PID_NAMESPACE, FAST.lease_ms, FAST.panic_bound_ms, boot, "", life)


def _database() -> Database:
    database = Database(Cluster("test", "0" * 32, "fast", ""), 1)
    for node in (0, 1):
        database.nodes[node] = NodeConfig(node, f"n{node}", (), "")
        database.members[node] = Member(node, NodeState.JOINED, INCARNATION)
    return database


class _Reader:
    """Node 0's observer, and the reads that it makes."""

    def __init__(self, kernel: KernelIdentity = HERE) -> None:
        self.blank = tuple(blank_register(kind, 0) for kind in RegisterKind)
        self.observer = Observer(0, INCARNATION, FAST, self._strip(_lease()), one_machine=True, kernel=kernel)
        self.now_ms = 0

    def _strip(self, lease: Lease) -> Strip:
        lease0, claim, view, marks = self.blank
        return Strip((lease0, lease), (claim,) * 2, (view,) * 2, (marks,) * 2)  # type: ignore[arg-type]

    def read(self, lease: Lease, for_ms: int = 1) -> Observer:
        """Read this lease of node 1 again and again."""
        until_ms = self.now_ms + for_ms
        while self.now_ms < until_ms:
            read = StripRead(1, self._strip(lease), self.now_ms * MS, (self.now_ms + 1) * MS)
            self.observer.see(read)
            self.observer.newly_dead(_database())
            self.now_ms += 100
        return self.observer

    @property
    def asked(self) -> list[int]:
        """The nodes that its guard is asked about now."""
        return [each.node for each in self.observer.to_ask(self.now_ms * MS)]


def test_p7_13_a_beat_that_lands_after_the_kernels_word_changes_nothing() -> None:
    reader = _Reader()
    observer = reader.read(_lease(4))
    assert observer.is_live(1)
    word = Evidence(ProofKind.KERNELS_WORD, INCARNATION, "its init has ended")
    assert observer.confirm(1, word)
    reader.read(_lease(5), 300)
    assert not observer.is_live(1)
    assert observer.evidence(1, INCARNATION) == word
    assert observer.rank(_database()) == 0
    assert reader.asked == []


def test_p7_13_only_the_very_machine_of_a_silent_record_gives_its_word() -> None:
    other_boot = bytes(16)
    assert _Reader(KernelIdentity(other_boot, MACHINE)).read(_lease(), SILENCE_MS).is_dead(1, INCARNATION)
    other_machine = bytes(range(2, 18))
    assert not _Reader(KernelIdentity(other_boot, other_machine)).read(_lease(), SILENCE_MS).is_dead(1, INCARNATION)
    nameless = _lease(life=LIFE._replace(machine_id=bytes(16)))
    assert not _Reader(KernelIdentity(other_boot, bytes(16))).read(nameless, SILENCE_MS).is_dead(1, INCARNATION)


def test_p7_15_the_guard_is_asked_once_about_each_record_and_again_when_it_has_fallen_silent() -> None:
    reader = _Reader()
    reader.read(_lease(4))
    assert reader.asked == [1]
    for sequence in range(5, 5 + 2 * FAST.lease_ms // 100):
        reader.read(_lease(sequence))
        assert reader.asked == []  # it beats
    reader.read(_lease(5 + 2 * FAST.lease_ms // 100), SILENCE_MS)
    assert reader.asked == [1]
    assert reader.asked == []


def test_p7_15_nobody_is_asked_about_what_runs_under_another_kernel() -> None:
    reader = _Reader()
    reader.read(_lease(4, boot=bytes(16)))
    assert reader.asked == []


def test_p7_16_a_node_testifies_what_its_kernel_has_told_it_and_nothing_else() -> None:
    reader = _Reader()
    observer = reader.read(_lease())
    observer.confirm(1, Evidence(ProofKind.FENCE_AGENT, INCARNATION, "its power was cut"))
    assert observer.testimony(_database()) == ()
    told = _Reader().read(_lease())
    told.confirm(1, Evidence(ProofKind.KERNELS_WORD, INCARNATION, "its init has ended"))
    assert [each.node for each in told.testimony(_database())] == [1]


def test_p7_16_what_was_committed_is_taken_over_and_stays() -> None:
    observer = _Reader().read(_lease())
    database = _database()
    proof = Proof(ProofKind.KERNELS_WORD, 1, INCARNATION, "its init has ended")
    database.members[1] = Member(1, NodeState.FORCED_LEAVING, INCARNATION, last_proof=proof)
    observer.follow(database)
    assert observer.is_dead(1, INCARNATION)


def test_p4_2_there_is_no_proof_of_a_nodes_own_death() -> None:
    observer = _Reader().read(_lease())
    observer.confirm(0, Evidence(ProofKind.FENCE_AGENT, INCARNATION, "its power was cut"))
    assert not observer.is_dead(0, INCARNATION)
    observer.confirm(0, Evidence(ProofKind.FENCE_AGENT, INCARNATION - 1, "its power was cut"))
    assert observer.is_dead(0, INCARNATION - 1)


# ---- P4.6: frames that arrive after the end --------------------------------------------------------------------------


def _late(frame_after_ms: int, incarnation: int = INCARNATION) -> frozenset[int]:
    """Whom node 0 hears late, which has heard a frame of node 1 so long after that one's lease ran out."""
    reader = _Reader()
    observer = reader.read(_lease(4), 2 * SILENCE_MS)
    links = Links(0, FAST, 0, 0)
    links.connected[1] = incarnation
    links.hear(1, observer._watches[1].ran_out_us() + frame_after_ms * MS)
    return observer.late(frozenset({1}), links)


def test_p4_6_only_a_frame_of_that_incarnation_after_its_lease_ran_out_is_late() -> None:
    assert _late(1) == {1}
    assert _late(0) == {1}
    assert _late(-1) == frozenset()
    assert _late(1, INCARNATION + 1) == frozenset()


# ---- P7.17, P4.1 -----------------------------------------------------------------------------------------------------


def test_p7_17_a_node_that_runs_under_another_kernel_is_kept_out_and_told_why() -> None:
    for foreign in (False, True):
        database = _database()
        database.members[1] = Member(1)
        report = Report(NO_TERM, 1, INCARNATION, "join", ())
        facts = Facts(0, 0, {1: report}, lambda _n, _i: None, lambda _n: True, {}, {}, services_open=True)
        facts.foreign = lambda node, _incarnation, foreign=foreign: foreign and node == 1  # type: ignore[misc]
        draft = Draft(database)
        admit(draft, facts)
        joins = draft.member(1).state is not NodeState.INACTIVE
        assert joins is not foreign
        assert ("under another kernel" in draft.member(1).refusal) is foreign


# ---- P2.14 -----------------------------------------------------------------------------------------------------------


def test_p2_14_the_highest_master_that_was_asked_is_listened_to_whichever_was_asked_last() -> None:
    clients = Clients()
    clients.add("x", LeaveNode("n1"))
    clients.asked("x", Term(5, 1))
    clients.asked("x", Term(4, 0))  # the store still shows the old one
    clients.answered(Response("x", Term(4, 0), 0, True, "it is not a member"))
    assert clients.due(100) == []
