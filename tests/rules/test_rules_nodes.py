"""Nodes that come and go, and the authority that they trust: rules P1.2 to P1.7 (SPEC 1.1, 1.6, 9.1)."""

import pytest

from core_cluster import CoreCluster, joined_cluster
from muster.core.draft import Draft, Facts
from muster.core.effects import Panic
from muster.core.inputs import KeysHeld
from muster.core.node import insight
from muster.core.nodes import requests as configuration
from muster.core.refusal import Refused
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.members import EvictNode, LeaveNode
from muster.records.nodes import (
    AbandonRotation,
    AddNode,
    Certified,
    CertifyNodes,
    Cluster,
    EnrolNode,
    IssueToken,
    NodeConfig,
    RemoveNode,
    RotateAuthority,
    Rotation,
    fingerprint,
)
from muster.records.operations import OperationRequest
from muster.records.services import ApplyServices, Definition

VERIFIER = "ab" * 32
OTHER = "cd" * 32
N2 = AddNode("n2", ("127.0.0.1:7002",), VERIFIER, 2_000_000_000)


def cluster_of(nodes: int = 2, slots: int = 4) -> CoreCluster:
    """Joined nodes in a store with room for more, each with a certificate of the first authority."""
    cluster = CoreCluster(nodes, slots=slots)
    cluster.boot(*range(nodes))
    cluster.until("all have joined", lambda: all(cluster.state(node) is NodeState.JOINED for node in range(nodes)))
    return cluster


def config(cluster: CoreCluster, node: int) -> NodeConfig:
    """A node's committed configuration."""
    return cluster.database.nodes[node]


def rotation(cluster: CoreCluster) -> Rotation:
    """The step that the rotation of the authority is at."""
    return cluster.database.cluster.rotation


def refusal(cluster: CoreCluster, operation: OperationRequest) -> str:
    """Why an operation is refused; it must change nothing."""
    before = cluster.database.index
    reply = cluster.do(0, operation)
    assert reply.refused, reply.outcome
    assert cluster.database.index == before
    return reply.outcome


def enrol(cluster: CoreCluster, node: int, certificate: str, verifier: str = VERIFIER) -> OperationRequest:
    """What a member asks for once it has checked a token."""
    issuer = fingerprint(cluster.database.cluster.authority)
    return EnrolNode(node, config(cluster, node).generation, verifier, certificate, issuer)


def test_p1_2_a_node_is_added_in_a_free_slot_and_joins_while_the_cluster_runs() -> None:
    cluster = cluster_of()
    reply = cluster.do(1, N2)
    assert not reply.refused, reply.outcome
    added = config(cluster, 2)
    assert (added.name, added.addresses, added.certificate) == ("n2", ("127.0.0.1:7002",), "")
    assert added.generation == reply.index
    assert added.enrolment is not None and added.enrolment.verifier == VERIFIER
    assert not cluster.do(0, enrol(cluster, 2, "its certificate")).refused
    cluster.boot(2)
    cluster.until("n2 has joined", lambda: cluster.state(2) is NodeState.JOINED)
    assert {node: cluster.state(node) for node in (0, 1)} == {0: NodeState.JOINED, 1: NodeState.JOINED}


def test_p1_2_the_slot_of_a_node_that_still_renews_its_lease_is_not_free() -> None:
    nodes = {node: NodeConfig(node, f"n{node}", (f"127.0.0.1:{7000 + node}",), "") for node in range(2)}
    database = Database(Cluster("test", "0" * 32, "fast", ""), 5, nodes=nodes)

    def added(alive: tuple[int, ...]) -> set[int]:
        facts = Facts(
            0, 0, {}, lambda _n, _i: None, lambda node: node in alive, {}, {}, services_open=True,
            slots={0: 7, 1: 7, 2: 7, 3: 0},
        )  # fmt: skip
        draft = Draft(database)
        configuration.carry_out(N2, draft, facts)
        return draft.nodes.keys() - nodes.keys()

    assert added(()) == {3}  # unused ones first
    assert added((3,)) == {2}
    with pytest.raises(Refused, match="no free slot"):
        added((2, 3))


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (AddNode("n1", ("127.0.0.1:7009",), VERIFIER, 9), "already"),
        (AddNode("n9", ("127.0.0.1:7001",), VERIFIER, 9), "n1 has the address"),
        (AddNode("n9", ("127.0.0.1",), VERIFIER, 9), "HOST:PORT"),
        (AddNode("n9", ("h:1", "h:1"), VERIFIER, 9), "twice"),
        (AddNode("n9", (), VERIFIER, 9), "0 addresses"),
        (AddNode("-", ("h:1",), VERIFIER, 9), "letter or digit first"),
        (AddNode("authority", ("h:1",), VERIFIER, 9), "authority"),
        (AddNode("n9", ("h:1",), "short", 9), "SHA-256"),
    ],
)
def test_p1_2_what_cannot_be_added_is_refused_with_its_reason(operation: AddNode, words: str) -> None:
    assert words in refusal(cluster_of(), operation)


def test_p1_2_a_full_store_refuses_and_a_removed_nodes_slot_is_used_again_last() -> None:
    cluster = cluster_of(2, slots=3)
    cluster.do(0, N2)
    assert "no free slot: 3 slots, 3 nodes" in refusal(cluster, AddNode("n3", ("h:1",), VERIFIER, 9))
    cluster.do(0, LeaveNode("n1"))
    cluster.until("n1 has left", lambda: 1 not in cluster.lives)
    assert "it runs" in refusal(cluster, RemoveNode("n1")), "its tombstone has not been read yet"
    cluster.run(500)
    last = cluster.database.member(1).incarnation
    generation = config(cluster, 1).generation
    assert not cluster.do(0, RemoveNode("n1")).refused
    assert 1 not in cluster.database.nodes
    assert not cluster.do(0, RemoveNode("n2")).refused
    cluster.do(0, AddNode("n2", ("h:2",), VERIFIER, 9))
    assert 2 in cluster.database.nodes, "the slot that nobody ever ran in comes first"
    cluster.do(0, AddNode("n1", ("h:1",), VERIFIER, 9))
    again = config(cluster, 1)
    assert again.generation > generation
    assert cluster.database.member(1).incarnation == last, "what the earlier node of the slot said is old"
    cluster.boot(1)
    cluster.until("the new n1 has joined", lambda: cluster.state(1) is NodeState.JOINED)
    assert cluster.database.member(1).incarnation > last


def test_p1_3_only_a_node_that_neither_works_nor_runs_is_removed() -> None:
    cluster = cluster_of(3)
    assert "muster node leave n2" in refusal(cluster, RemoveNode("n2"))
    assert "no node 'n7'" in refusal(cluster, RemoveNode("n7"))
    cluster.do(0, ApplyServices((Definition("web", allowable_nodes=("n0", "n2"), start_command=("/bin/a",)),)))
    cluster.do(0, EvictNode("n2", "test"))
    cluster.until("n2 is out", lambda: cluster.state(2) is NodeState.INACTIVE)
    assert "service web names n2" in refusal(cluster, RemoveNode("n2"))
    cluster.do(0, ApplyServices((Definition("web", allowable_nodes=("n0",), start_command=("/bin/a",)),)))
    cluster.boot(2)
    cluster.until("n2 is back", lambda: cluster.state(2) is NodeState.JOINED)
    cluster.do(0, LeaveNode("n2"))
    cluster.until("n2 has left", lambda: 2 not in cluster.lives)
    cluster.run(500)
    assert not cluster.do(0, RemoveNode("n2")).refused
    assert 2 not in cluster.database.nodes and 2 not in cluster.database.members


def test_p1_3_a_removed_node_that_reads_of_it_stops() -> None:
    """It booted in the very moment in which it was removed: its lease was not seen yet."""
    cluster = cluster_of(2, slots=3)
    cluster.do(0, N2)
    cluster.do(0, enrol(cluster, 2, "its certificate"))
    cluster.acknowledges = lambda _node, notification: notification.node != 2
    cluster.boot(2)
    core = cluster.core(2)
    database = core.database
    core.database.nodes.pop(2)
    core.replica.confirmed = True
    core._follow()
    assert database is core.database
    (panic,) = [effect for effect in core._out.drain() if isinstance(effect, Panic)]
    assert "removed" in panic.cause


def test_p1_4_a_token_is_used_up_by_the_entry_that_commits_the_certificate() -> None:
    cluster = cluster_of()
    cluster.do(0, N2)
    assert "used or replaced" in refusal(cluster, enrol(cluster, 2, "a", OTHER))
    assert not cluster.do(1, enrol(cluster, 2, "b")).refused
    assert (config(cluster, 2).certificate, config(cluster, 2).enrolment) == ("b", None)
    assert "used or replaced" in refusal(cluster, enrol(cluster, 2, "c"))
    assert config(cluster, 2).certificate == "b"


def test_p1_4_a_new_token_voids_the_last_one_and_is_not_given_for_a_node_that_works() -> None:
    cluster = cluster_of()
    assert "only an inactive node" in refusal(cluster, IssueToken("n1", OTHER, 9))
    cluster.do(0, N2)
    assert not cluster.do(0, IssueToken("n2", OTHER, 9)).refused
    assert "used or replaced" in refusal(cluster, enrol(cluster, 2, "a", VERIFIER))
    assert not cluster.do(0, enrol(cluster, 2, "a", OTHER)).refused


def test_p1_4_a_token_of_a_removed_node_is_no_good_for_its_successor() -> None:
    cluster = cluster_of()
    cluster.do(0, N2)
    stale = enrol(cluster, 2, "a")
    cluster.do(0, RemoveNode("n2"))
    cluster.do(0, N2)
    assert "was removed" in refusal(cluster, stale)


def certify(cluster: CoreCluster, issuer: str, *nodes: int, mark: str = "new") -> CertifyNodes:
    """Certificates issued anew for these nodes."""
    found = [config(cluster, node) for node in nodes]
    return CertifyNodes(
        tuple(Certified(c.node, c.generation, fingerprint(c.certificate), f"{c.certificate} {mark}") for c in found),
        fingerprint(issuer),
    )


def certified_cluster() -> CoreCluster:
    """Three members and a configured node that does not run, all but that one with a certificate."""
    cluster = cluster_of(3)
    for node in (1, 2):
        cluster.do(0, LeaveNode(f"n{node}"))
    cluster.until("two have left", lambda: len(cluster.lives) == 1)
    cluster.run(500)
    for node in (1, 2):
        cluster.do(0, IssueToken(f"n{node}", VERIFIER, 9))
        assert not cluster.do(0, enrol(cluster, node, f"old n{node}")).refused
        cluster.boot(node)
    cluster.until("all have joined", lambda: all(cluster.state(node) is NodeState.JOINED for node in range(3)))
    return cluster


def test_p1_6_a_renewal_names_what_it_replaces_and_is_of_the_present_authority() -> None:
    cluster = certified_cluster()
    authority = cluster.database.cluster.authority
    first = certify(cluster, authority, 1)
    assert not cluster.do(1, first).refused
    assert config(cluster, 1).certificate == "old n1 new"
    assert "none of these" in refusal(cluster, first)
    assert "not the one that issues" in refusal(cluster, certify(cluster, "another", 1))


def test_p1_7_rotation_goes_through_its_barriers_to_the_new_authority_alone() -> None:
    cluster = certified_cluster()
    cluster.holds = lambda envelope: envelope.sender == 2  # n2 hears, and its reports are held
    assert not cluster.do(0, RotateAuthority("NEW")).refused
    cluster.run(100)
    assert rotation(cluster) is Rotation.TRUSTING, "one member has not shown that it trusts"
    assert "not the one that issues" in refusal(cluster, certify(cluster, "NEW", 1))
    cluster.holds = lambda _envelope: False
    cluster.release()
    cluster.until("all trust", lambda: rotation(cluster) is Rotation.CERTIFYING)
    assert "in use" in refusal(cluster, AbandonRotation())
    cluster.do(0, certify(cluster, "NEW", 1))
    cluster.run(500)
    assert rotation(cluster) is Rotation.CERTIFYING, "one certificate is of the old authority still"
    cluster.do(0, certify(cluster, "NEW", 2))
    cluster.until("the old one is gone", lambda: rotation(cluster) is Rotation.NONE)
    assert (cluster.database.cluster.authority, cluster.database.cluster.incoming) == ("NEW", "")


@pytest.mark.parametrize("step", [Rotation.TRUSTING, Rotation.SETTLING])
def test_p1_7_rotation_waits_until_every_member_has_the_new_key(step: Rotation) -> None:
    """Else the only disk with the key may go when all certificates in use depend on it."""
    cluster = certified_cluster()
    old, new = fingerprint(cluster.database.cluster.authority), fingerprint("NEW")
    for node in range(2):
        cluster.give(node, KeysHeld((old, new)))
    lacking = 1 if cluster.masters() == [0] else 0  # and n2 is of a release that does not say
    if step is Rotation.TRUSTING:
        cluster.give(lacking, KeysHeld((old,)))
    cluster.do(0, RotateAuthority("NEW"))
    if step is Rotation.SETTLING:
        cluster.until("all trust", lambda: rotation(cluster) is Rotation.CERTIFYING)
        cluster.give(lacking, KeysHeld((old,)))  # its home was made anew
        cluster.run(100)
        cluster.do(0, certify(cluster, "NEW", 1, 2))
    cluster.run(2000)
    assert rotation(cluster) is step
    (master,) = cluster.masters()
    assert insight.behind_rotation(cluster.core(master)) == (lacking,)
    cluster.give(lacking, KeysHeld((old, new)))
    after = {Rotation.TRUSTING: Rotation.CERTIFYING, Rotation.SETTLING: Rotation.NONE}[step]
    cluster.until("the next step", lambda: rotation(cluster) is after)


def test_p1_7_a_member_that_lacks_the_new_key_and_dies_is_not_waited_for() -> None:
    cluster = certified_cluster()
    (master,) = cluster.masters()
    lacking = next(node for node in range(3) if node != master)
    cluster.give(lacking, KeysHeld(()))
    cluster.do(master, RotateAuthority("NEW"))
    cluster.run(500)
    assert rotation(cluster) is Rotation.TRUSTING
    cluster.kill(lacking)
    cluster.until("all others trust", lambda: rotation(cluster) is Rotation.CERTIFYING)


@pytest.mark.parametrize("when", [Rotation.TRUSTING, Rotation.CERTIFYING])
def test_p1_7_rotation_goes_on_when_the_master_dies(when: Rotation) -> None:
    cluster = certified_cluster()
    (master,) = cluster.masters()
    asked = next(node for node in range(3) if node != master)
    if when is Rotation.TRUSTING:
        cluster.holds = lambda envelope: envelope.sender not in (master, asked)
    cluster.do(asked, RotateAuthority("NEW"))
    cluster.until("the step", lambda: cluster.core(asked).database.cluster.rotation is when)
    cluster.kill(master)
    cluster.holds = lambda _envelope: False
    cluster.release()
    cluster.until("a new master", lambda: cluster.masters() and cluster.masters() != [master])
    cluster.until("all trust", lambda: rotation(cluster) is Rotation.CERTIFYING)
    cluster.do(asked, certify(cluster, "NEW", 1, 2))
    cluster.until("the old one is gone", lambda: cluster.database.cluster.authority == "NEW")


def test_p1_7_a_rotation_is_begun_once_abandoned_early_or_begun_again() -> None:
    cluster = certified_cluster()
    assert "nothing to abandon" in refusal(cluster, AbandonRotation())
    cluster.holds = lambda envelope: envelope.sender == 2
    cluster.do(0, RotateAuthority("LOST"))
    assert "--restart" in refusal(cluster, RotateAuthority("NEW"))
    assert not cluster.do(0, AbandonRotation()).refused
    assert cluster.database.cluster.incoming == ""
    cluster.holds = lambda _envelope: False
    cluster.release()
    cluster.do(0, RotateAuthority("LOST"))
    cluster.until("all trust", lambda: rotation(cluster) is Rotation.CERTIFYING)
    cluster.do(0, certify(cluster, "LOST", 1))
    assert not cluster.do(0, RotateAuthority("NEW", restart=True)).refused
    assert "LOST" in cluster.database.cluster.authority, "n1 shows a certificate of it"
    cluster.until("all trust again", lambda: rotation(cluster) is Rotation.CERTIFYING)
    cluster.do(0, certify(cluster, "NEW", 1, 2))
    cluster.until("the old ones are gone", lambda: cluster.database.cluster.authority == "NEW")


def test_p1_2_operations_are_refused_alike_by_every_node() -> None:
    cluster = joined_cluster(2)
    assert "no free slot: 2 slots, 2 nodes" in refusal(cluster, AddNode("n3", ("h:1",), VERIFIER, 9))
