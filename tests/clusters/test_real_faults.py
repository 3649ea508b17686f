"""Real daemons, real faults: whatever is killed or stopped, no service ever runs twice (SPEC 7.1-7.3, 6.7).

The services keep their own record (`lab/exclusive_service.py`); it alone is judged (`lab/exclusive_record.py`).

    MUSTER_FAULT_ROUNDS   how many random rounds, in all parts together [24; `.ci/run`: 100]
    MUSTER_FAULT_SEED     an integer, to repeat the choices of a run; a failure prints it
"""

import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from dev_cluster import PATIENT
from faulty_cluster import (
    CORE_ROLES,
    DEADLINE_S,
    ROLES,
    Document,
    Fault,
    FaultyCluster,
    Hit,
    agree,
    faulty_cluster,
    is_same,
    now_us,
    outline,
)
from lab.exclusive_record import Line

ROUNDS = int(os.environ.get("MUSTER_FAULT_ROUNDS", "16"))
PARTS = 4  # the rounds spend most of their time waiting: parts run side by side
SEED = int(os.environ.get("MUSTER_FAULT_SEED") or int.from_bytes(os.urandom(4), "little"))


@pytest.fixture(scope="module")
def hasty_cluster() -> Iterator[FaultyCluster]:
    """Three nodes that run the services, through all rounds: what one has left, the next one has to live with."""
    with faulty_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def patient_cluster() -> Iterator[FaultyCluster]:
    """The same for one fault at a time: no node ends but by that fault, however busy this machine is."""
    with faulty_cluster(3, *PATIENT) as running:
        yield running


@pytest.fixture
def cluster(patient_cluster: FaultyCluster) -> FaultyCluster:
    """The patient cluster, whole again."""
    patient_cluster.settle()
    return patient_cluster


# ---- random moments --------------------------------------------------------------------------------------------------


class Rounds:
    """Draws faults and carries them out."""

    def __init__(self, cluster: FaultyCluster, choices: random.Random) -> None:
        self.cluster, self.choices = cluster, choices

    def run(self) -> None:
        """One round: something under way, a random moment, one or two nodes hit, recovery."""
        choices, cluster = self.choices, self.cluster
        nodes = list(cluster.names)
        choices.shuffle(nodes)
        self._set_something_going(nodes)
        time.sleep(choices.choice((0.0, choices.uniform(0.0, 0.4))))
        hits = [self._hit(self._draw(nodes[0]))]
        if choices.random() < 0.15:
            time.sleep(choices.uniform(0.0, 0.5))
            hits.append(self._hit(self._draw(nodes[1])))
        for hit in hits:
            cluster.await_end(hit)
        cluster.settle(whole=choices.random() < 0.5)
        for name in cluster.names:
            cluster.assert_no_strays(name)

    def _set_something_going(self, nodes: list[str]) -> None:
        """A transfer, a stop and a start, a graceful leave, or nothing."""
        choice = self.choices.random()
        service = self.choices.choice(self.cluster.services)
        if choice < 0.35:
            self.cluster.operate(nodes[0], "transfer", service=service)
        elif choice < 0.5:
            self.cluster.operate(nodes[-1], "deregister", service=service)
            self.cluster.operate(nodes[-1], "register", service=service)
        elif choice < 0.6:
            self.cluster.operate(nodes[-1], "leave", node=self.choices.choice(nodes))

    def _draw(self, node: str) -> Fault:
        choices = self.choices
        number = choices.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP))
        kinds = choices.choices(("one", "two", "all"), (70, 15, 15))[0]
        roles = tuple(choices.sample(ROLES, {"one": 1, "two": 2, "all": 0}[kinds]))
        resume_after_s = None
        # what watches them does not end a node for a stopped keeper or service, so these always go on
        if number == signal.SIGSTOP and (choices.random() < 0.5 or not set(roles) & {*CORE_ROLES, "daemon"}):
            resume_after_s = choices.uniform(0.0, 1.2)
        return Fault(node, number, roles, resume_after_s)

    def _hit(self, fault: Fault) -> Hit:
        hit = self.cluster.strike(fault)
        pause_s = fault.resume_after_s
        if fault.number == signal.SIGSTOP and not hit.must_end_node:
            pause_s = pause_s or 0.0  # nothing would ever end it
        if pause_s is not None:
            time.sleep(pause_s)
            self.cluster.resume(hit)
        return hit


@pytest.mark.random_faults
@pytest.mark.parametrize("part", range(PARTS))
def test_no_signal_to_any_process_at_any_moment_runs_a_service_twice(hasty_cluster: FaultyCluster, part: int) -> None:
    print(f"to repeat these choices: MUSTER_FAULT_SEED={SEED}")
    hasty_cluster.settle()
    rounds = Rounds(hasty_cluster, random.Random(f"{SEED} {part}"))
    for number in range(part, ROUNDS, PARTS):
        hasty_cluster.told.append(f"round {number} of seed {SEED}")
        rounds.run()


# ---- one fault at a time ---------------------------------------------------------------------------------------------


def strike_the_node_of(cluster: FaultyCluster, service: str, number: signal.Signals, *roles: str) -> Hit:
    """Hit processes of the node that runs the service."""
    return cluster.strike(Fault(cluster.node_of(service), number, roles))


def await_takeover(cluster: FaultyCluster, hit: Hit) -> None:
    """Wait until the others have forced the node out and run everything; nobody boots it meanwhile."""
    since_us = now_us()

    def taken_over() -> bool:
        views = cluster.views()
        views.pop(hit.fault.node, None)
        return (
            len(views) == len(cluster.names) - 1
            and agree(views)
            and all(
                view["nodes"][hit.fault.node]["state"] == "inactive"
                and all(cluster.runs(service, view, since_us) for service in cluster.services)
                for view in views.values()
            )
        )

    cluster.wait(f"the others to take over from {hit.fault.node}", taken_over)
    # what the kernel's word is about has ended; the guard above it may take a moment more
    cluster.wait(f"the end of {hit.fault.node}", lambda: not cluster.processes(hit.fault.node))


def known_of(cluster: FaultyCluster, node: str) -> Document:
    """What the others know of the node."""
    other = next(name for name in cluster.names if name != node)
    known: Document = cluster.client(other, DEADLINE_S).query("nodes")["nodes"][node]
    return known


def expect_a_panic(cluster: FaultyCluster, hit: Hit, cause: str) -> None:
    """The node has ended itself, and has said why with its last breath.

    The others may go by the kernel's word, which is mostly there before the tombstone is (P7.18).
    """
    cluster.await_end(hit)
    await_takeover(cluster, hit)
    proof = known_of(cluster, hit.fault.node)["last_proof"]
    assert proof["kind"] in ("the kernel's word", "panic tombstone"), proof

    def says_why() -> bool:
        return cause in (known_of(cluster, hit.fault.node)["last_words"] or "")

    cluster.wait(f"the others to read why {hit.fault.node} has ended", says_why)


def expect_the_kernels_word(cluster: FaultyCluster, hit: Hit) -> None:
    """The node was ended without a word of its own, and the kernel has said so (P7.13)."""
    await_takeover(cluster, hit)
    proof = known_of(cluster, hit.fault.node)["last_proof"]
    assert proof["kind"] == "the kernel's word", proof


def test_a_killed_daemon_comes_back_in_the_same_incarnation_and_no_service_notices(cluster: FaultyCluster) -> None:
    node = cluster.node_of("daemon")
    before = cluster.settle()[node]
    mine = {name for name in cluster.services if before["services"][name]["node"] == node}
    lines: dict[str, Line | None] = {name: cluster.record.judge.newest(name) for name in mine}
    hit = cluster.strike(Fault(node, signal.SIGKILL, ("daemon",)))
    (killed,) = hit.struck
    services = {process for process, role in hit.processes.items() if role in {"service", "other"}}
    cluster.wait("another daemon", lambda: "daemon" in cluster.processes(node).values() and not is_same(killed))
    cluster.wait("its answer", lambda: cluster.views().get(node))
    after = cluster.settle()[node]
    assert after["nodes"][node] == before["nodes"][node]
    assert outline(after)["services"] == outline(before)["services"]
    assert all(is_same(process) for process in services)
    for name, line in lines.items():
        now = cluster.record.judge.newest(name)
        assert line is not None and now is not None
        assert (now.instance, now.pid) == (line.instance, line.pid)
    cluster.await_end(hit)


def test_a_killed_runner_ends_its_node_with_a_tombstone(cluster: FaultyCluster) -> None:
    hit = strike_the_node_of(cluster, "parent", signal.SIGKILL, "runner")
    expect_a_panic(cluster, hit, "runner was killed by SIGKILL")


def test_a_killed_lease_writer_ends_its_node_with_a_tombstone(cluster: FaultyCluster) -> None:
    hit = strike_the_node_of(cluster, "plain", signal.SIGKILL, "lease")
    expect_a_panic(cluster, hit, "lease writer was killed by SIGKILL")


def test_a_stopped_daemon_makes_the_guard_end_the_node(cluster: FaultyCluster) -> None:
    hit = strike_the_node_of(cluster, "slow", signal.SIGSTOP, "daemon")
    expect_a_panic(cluster, hit, "daemon gave no sign of life")


def test_a_stopped_guard_is_killed_by_its_deadman_and_its_node_with_it(cluster: FaultyCluster) -> None:
    hit = strike_the_node_of(cluster, "daemon", signal.SIGSTOP, "guard")
    cluster.await_end(hit)
    expect_the_kernels_word(cluster, hit)


def test_of_a_node_stopped_as_a_whole_nothing_is_left_to_continue(cluster: FaultyCluster) -> None:
    hit = strike_the_node_of(cluster, "parent", signal.SIGSTOP)
    expect_the_kernels_word(cluster, hit)
    cluster.resume(hit)
    cluster.assert_nothing_is_left(hit)
    cluster.await_end(hit)


def test_a_start_whose_keeper_is_killed_leaves_nothing_when_it_has_failed(cluster: FaultyCluster) -> None:
    cluster.operate("n0", "deregister", service="slow")
    starts = cluster.record.judge.starts("slow")
    cluster.operate("n0", "register", service="slow")
    cluster.wait("its start", lambda: cluster.record.judge.starts("slow") > starts)
    hit = strike_the_node_of(cluster, "slow", signal.SIGKILL, "keeper")  # its start command takes a while yet
    cluster.settle()
    assert all(is_same(process) for process, role in hit.processes.items() if role in CORE_ROLES)
    cluster.await_end(hit)


def test_services_whose_keepers_are_killed_together_stay_apart_and_can_still_be_stopped(cluster: FaultyCluster) -> None:
    for service in cluster.services:
        if cluster.node_of(service) != "n0":
            cluster.operate("n1", "transfer", service=service, target="n0")
    cluster.settle()
    assert {cluster.node_of(service) for service in cluster.services} == {"n0"}
    judge = cluster.record.judge
    starts = {name: judge.starts(name) for name in cluster.services}
    hit = cluster.strike(Fault("n0", signal.SIGKILL, ("keeper",)))
    cluster.hurt.clear()  # no command was at work, so nobody may have to mend anything
    # the end of a keeper is the end of what it kept (P8.18): each is stopped, and started again in its place
    cluster.wait("their restart", lambda: all(judge.starts(name) > starts[name] for name in cluster.services))
    cluster.settle()
    for service in cluster.services:
        cluster.operate("n1", "transfer", service=service)
        cluster.settle()
        assert cluster.node_of(service) != "n0"
    cluster.await_end(hit)


def test_survivors_of_the_master_agree_and_run_its_services_exactly_once() -> None:
    with faulty_cluster(5, *PATIENT) as cluster:
        (master,) = {view["master"] for view in cluster.settle().values()}
        cluster.operate(master, "transfer", service="plain", target=master)
        before = cluster.settle()[master]
        moved = {name for name in cluster.services if before["services"][name]["node"] == master}
        assert "plain" in moved
        starts = {name: cluster.record.judge.starts(name) for name in cluster.services}
        hit = cluster.strike(Fault(master, signal.SIGKILL, ()))
        await_takeover(cluster, hit)
        cluster.await_end(hit)
        views = {name: view for name, view in cluster.views().items() if name != master}
        (outlined,) = {str(outline(view)) for view in views.values()}
        assert master not in {view["master"] for view in views.values()}, outlined
        for name in cluster.services:
            assert (cluster.record.judge.starts(name) - starts[name]) == (1 if name in moved else 0), name
