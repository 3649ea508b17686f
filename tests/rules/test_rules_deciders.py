"""Who decides on services, and what of that is committed: P6.42 to P6.44 of docs/PROTOCOL.md (SPEC 6.4, 2.7)."""

import pytest
from msgspec.structs import replace

from core_cluster import CoreCluster, joined_cluster
from muster.core.decisions import decider
from muster.core.draft import Facts
from muster.core.effects import RunCommand, Send
from muster.core.inputs import DecisionLock
from muster.core.node import insight
from muster.records.configuration import ConfigureCluster
from muster.records.database import Change, Database, Entry, Forget
from muster.records.deciders import SERVICES, Decider
from muster.records.levels import LOCK_MANAGER_LEVEL, NodeState
from muster.records.members import Eviction, LeaveNode, Member
from muster.records.messages import Append, Proposal, Report
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import ApplyServices, Definition, RestartService, Service, ServiceState, TransferService
from muster.records.terms import NO_NODE, Term
from muster.records.versions import HIGHEST

WEB = Definition("web", start_command=("/bin/start",), stop_command=("/bin/stop",), ordered=("n1", "n0"))


def locking_cluster(nodes: int = 3) -> CoreCluster:
    """A cluster with lockspaces, whose members have the lock manager's level; n0 is the master."""
    cluster = joined_cluster(nodes, (LOCK_MANAGER_LEVEL,))
    assert not cluster.do(0, ConfigureCluster("lockspaces", "orders")).refused
    return cluster


def hold(cluster: CoreCluster, node: int, *grant: int) -> None:
    """The node is granted the lock, and recorded."""
    cluster.give(node, DecisionLock((grant[0], grant[1])))
    cluster.until(f"n{node} decides", lambda: recorded(cluster) == (node, grant))


def recorded(cluster: CoreCluster) -> tuple[int, tuple[int, int]]:
    known = cluster.database.deciders[SERVICES]
    return known.node, known.grant


def entries(cluster: CoreCluster) -> dict[int, Entry]:
    """Every entry that a master has told."""
    sent = (item.effect.message for item in cluster.history if isinstance(item.effect, Send))
    return {entry.index: entry for message in sent if isinstance(message, Append) for entry in message.entries}


def proposals(cluster: CoreCluster) -> list[tuple[int, Proposal]]:
    found = [(item.node, item.effect.message) for item in cluster.history if isinstance(item.effect, Send)]
    return [(node, message) for node, message in found if isinstance(message, Proposal)]


def test_p6_42_without_lockspaces_nothing_is_recorded_and_only_the_master_hears_of_a_node() -> None:
    cluster = joined_cluster(3)
    cluster.do(0, ApplyServices((WEB,)))
    cluster.until("web runs", lambda: cluster.service().state is ServiceState.REGISTERED)
    assert not cluster.database.deciders and not proposals(cluster)
    assert not any(insight.wants_decision_lock(life.daemon.core) for life in cluster.lives.values() if life.daemon)
    reports = [item.effect for item in cluster.history if isinstance(item.effect, Send)]
    assert {send.to for send in reports if isinstance(send.message, Report)} == {0}
    assert {entry.grant for entry in entries(cluster).values()} == {None}


def test_p6_42_whoever_has_the_lock_decides_and_each_entry_says_by_which_grant() -> None:
    cluster = locking_cluster()
    assert recorded(cluster)[0] == NO_NODE
    hold(cluster, 2, 1024, 1)
    before = cluster.database.index
    cluster.do(0, ApplyServices((WEB,)))
    cluster.until("web runs", lambda: cluster.service().state is ServiceState.REGISTERED)
    assert cluster.service().node == 1
    decided = [entry for index, entry in entries(cluster).items() if index > before and entry.grant is not None]
    assert [entry.grant for entry in decided] == [(1024, 1)] * 2  # starting, registered
    assert {node for node, _ in proposals(cluster)} == {2}
    assert all((2, entry.index - 1) in {(node, each.index) for node, each in proposals(cluster)} for entry in decided)
    hold(cluster, 0, 1024, 2)  # the master itself: nothing is proposed
    count = len(proposals(cluster))
    cluster.do(1, TransferService("web", "n0"))
    cluster.until("web has moved", lambda: (cluster.service().node, cluster.service().state) == (0, 2))
    assert len(proposals(cluster)) == count
    assert entries(cluster)[cluster.service().generation].grant == (1024, 2)


def test_p6_42_only_a_grant_above_the_recorded_one_makes_a_decider() -> None:
    cluster = locking_cluster()
    hold(cluster, 2, 1024, 5)
    for grant in ((1024, 5), (1024, 4), (0, 9)):
        cluster.give(1, DecisionLock(grant))
        cluster.run(500)
        assert recorded(cluster) == (2, (1024, 5))
    hold(cluster, 1, 1024, 6)
    former = cluster.lives[2].daemon
    assert former is not None
    cluster.until("n2 gives up what is over", lambda: not insight.wants_decision_lock(former.core))


@pytest.mark.parametrize("how", ["dies", "loses it", "leaves", "hangs"])
def test_p6_43_without_its_decider_the_master_decides_and_nobody_does_again_by_that_grant(how: str) -> None:
    cluster = locking_cluster()
    hold(cluster, 2, 1024, 1)
    match how:
        case "dies":
            cluster.kill(2)
        case "loses it":
            cluster.give(2, DecisionLock(None))
        case "leaves":
            cluster.do(0, LeaveNode("n2"))
        case _:
            cluster.pause_daemon(2)
    cluster.until("the master decides", lambda: recorded(cluster) == (NO_NODE, (1024, 1)))
    cluster.do(0, ApplyServices((WEB,)))
    cluster.until("web runs", lambda: cluster.service().state is ServiceState.REGISTERED)
    assert entries(cluster)[cluster.service().generation].grant is None
    if how == "loses it":
        cluster.give(2, DecisionLock((1024, 1)))
        cluster.run(500)
    assert recorded(cluster) == (NO_NODE, (1024, 1))
    hold(cluster, 1, 1024, 2)


def test_p6_44_a_decider_that_dies_before_its_decision_arrives_has_decided_nothing() -> None:
    cluster = locking_cluster()
    hold(cluster, 2, 1024, 1)
    cluster.holds = lambda envelope: isinstance(envelope.message, Proposal)
    cluster.do(0, ApplyServices((WEB,)))
    cluster.until("it is proposed", lambda: proposals(cluster))
    cluster.kill(2)
    late = proposals(cluster)[0][1]
    cluster.until("web starts", lambda: cluster.service().state is ServiceState.STARTING)
    start = cluster.service()
    master = cluster.lives[0].daemon
    assert master is not None and master.core.leading is not None
    master.core.leading.propose(2, late)
    cluster.until("web runs", lambda: cluster.service().state is ServiceState.REGISTERED)
    assert cluster.service().generation == start.generation
    assert len([item for item in cluster.history if isinstance(item.effect, RunCommand)]) == 1


def test_p6_44_what_is_too_late_again_and_again_is_decided_by_the_master() -> None:
    """Each of its decisions meets another entry: nobody waits for it for ever."""
    cluster = locking_cluster()
    hold(cluster, 2, 1024, 1)
    cluster.do(0, ApplyServices((WEB,)))
    cluster.until("web runs", lambda: cluster.service().state is ServiceState.REGISTERED)
    master = cluster.lives[0].daemon
    assert master is not None and master.core.leading is not None
    stale = replace(proposals(cluster)[0][1], index=cluster.database.index - 1)
    for _ in range(5):
        master.core.leading.propose(2, stale)
        cluster.do(0, RestartService("nothing"))  # a round
    cluster.until("the master decides", lambda: recorded(cluster) == (NO_NODE, (1024, 1)))


MEMBER = Member(1, NodeState.JOINED, 5)
NOW = Decider(SERVICES, 1, 5, (1024, 3))
TERM = Term(4, 0)
GOOD = Proposal(TERM, 20, 5, (1024, 3), "web: it starts", (Service(WEB, 3),))
OF_A_MEMBER: tuple[Change, ...] = (replace(MEMBER, levels=(LOCK_MANAGER_LEVEL,)),)


def refusal(proposal: Proposal = GOOD, sender: int = 1, member: Member = MEMBER, now: Decider = NOW, *,
            says: tuple[int, int] | None = (1024, 3), is_open: bool = True) -> str:  # fmt: skip
    database = Database(Cluster("test", "0" * 32, "fast", "", active_version=HIGHEST), 20)
    database.members = {1: member}
    database.nodes = {1: NodeConfig(1, "n1", (), "")}
    database.deciders = {SERVICES: now}
    reports = {1: Report(TERM, 20, 5, "", (), grant=says)}
    facts = Facts(0, 0, reports, lambda _n, _i: None, lambda _n: True, {}, {}, services_open=is_open)
    return decider.refusal(proposal, sender, TERM, database, facts)


def test_p6_44_a_decision_is_committed_only_as_its_decider_and_from_the_newest_index() -> None:
    assert refusal() == ""
    condemned = replace(MEMBER, eviction=Eviction(5, "it is silent", silent=True))
    assert refusal(replace(GOOD, changes=(condemned, Forget("service", "db")))) == ""
    refused = [
        refusal(replace(GOOD, term=Term(3, 1))),
        refusal(replace(GOOD, index=19)),
        refusal(replace(GOOD, index=21)),
        refusal(replace(GOOD, grant=(1024, 2))),
        refusal(replace(GOOD, incarnation=4)),
        refusal(sender=2),
        refusal(now=replace(NOW, node=NO_NODE, incarnation=0)),
        refusal(now=replace(NOW, grant=(1024, 4))),
        refusal(member=condemned),
        refusal(member=replace(MEMBER, state=NodeState.LEAVING)),
        refusal(member=replace(MEMBER, incarnation=6)),
        refusal(says=None),
        refusal(says=(1024, 4)),
        refusal(is_open=False),
        refusal(replace(GOOD, changes=())),
        refusal(replace(GOOD, changes=(*GOOD.changes, NOW))),
        refusal(replace(GOOD, changes=OF_A_MEMBER)),
        refusal(replace(GOOD, changes=(Forget("member", "1"),))),
    ]
    assert all(refused), refused


def test_p6_43_services_are_decided_under_a_steady_stream_of_entries() -> None:
    """Every decision of the decider arrives one entry late, and it asks anew: the master decides in between."""
    cluster = locking_cluster()
    hold(cluster, 2, 1024, 1)
    cluster.holds = lambda envelope: isinstance(envelope.message, Proposal)
    grants, deciders = 1, set()
    for number in range(60):
        late, cluster.held = cluster.held, []
        if number % 20 == 0:
            assert {each.state for each in cluster.database.services.values()} <= {ServiceState.REGISTERED}
            cluster.do(0, ApplyServices((replace(WEB, name=f"web{number}"),)))
        cluster.do(0, ConfigureCluster("lockspaces", f"orders,r{number}"))
        for envelope in late:
            cluster.deliver(envelope)
        cluster.run(20)
        deciders.add(recorded(cluster)[0])
        if recorded(cluster)[0] == NO_NODE:
            grants += 1
            cluster.give(2, DecisionLock((1024, grants)))
    assert {service.state for service in cluster.database.services.values()} == {ServiceState.REGISTERED}
    assert len(cluster.database.services) == 3
    assert deciders == {NO_NODE, 2}  # of each moment one is recorded, so `status` and `why` say who
    assert grants > 2
