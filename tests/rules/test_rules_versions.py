"""Versions, configuration history, audit and daemons anew, as docs/PROTOCOL.md has them in section 10."""

import msgspec
import pytest

from core_cluster import CoreCluster, joined_cluster
from muster.core.effects import Reply
from muster.core.inputs import RestartHeld
from muster.core.versions import revisions
from muster.core.versions.revisions import MAXIMUM_REVISIONS, MAXIMUM_UNDO_BYTES, UnknownVersion
from muster.daemon.shell.releases import version_problem
from muster.records.access import Author, Groups, Role
from muster.records.configuration import ConfigureCluster, FinishUpgrade, RollBack
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.members import RestartDaemon
from muster.records.nodes import Cluster
from muster.records.operations import OperationRequest
from muster.records.services import ApplyServices, Definition, DeregisterService, RegisterService
from muster.records.versions import HIGHEST, KEEPS_HISTORY, LOWEST, Software

OLD = Software(LOWEST, LOWEST)
ALICE = Author(1000, "alice", Role.ADMINISTRATOR, "n1", 1_700_000_000_000)


def booted(cluster: CoreCluster, nodes: int) -> CoreCluster:
    """All nodes have joined."""
    for node in range(nodes):
        cluster.boot(node)
        cluster.until_joined(node)
    return cluster


def asked(cluster: CoreCluster, node: int, operation: OperationRequest, author: Author = ALICE) -> Reply:
    """What becomes of an operation at a node."""
    return cluster.do(node, operation, author=author)


def define(*names: str, start: str = "/bin/true", expect: int = -1) -> ApplyServices:
    """Services that differ in their start command only."""
    return ApplyServices(tuple(Definition(name, start_command=(start,)) for name in names), expect=expect)


def services_at(database: Database, version: int) -> dict[str, str]:
    """Start commands by service, as the configuration had them."""
    found = revisions.configuration_at(database, version)
    return {key[1]: document["start_command"][0] for key, document in found.items() if key[0] == "service"}


# ---- P10.1 -----------------------------------------------------------------------------------------------------------


def test_p10_1_at_version_1_nothing_of_version_2_is_recorded_or_sent() -> None:
    cluster = booted(CoreCluster(2, active_version=LOWEST), 2)
    assert not asked(cluster, 1, define("web")).refused
    for operation in (RollBack(0), ConfigureCluster("observer_group", "x"), RestartDaemon("n0"), define("a", expect=0)):
        reply = asked(cluster, 1, operation)
        assert reply.refused
        assert "muster upgrade finish" in reply.outcome
    assert not cluster.database.audit
    assert not cluster.database.revisions


def test_p10_1_it_is_raised_once_every_configured_node_can_and_then_counts_on_all() -> None:
    cluster = CoreCluster(3, active_version=LOWEST)
    cluster.software[1] = OLD
    booted(cluster, 2)
    refusal = asked(cluster, 0, FinishUpgrade(HIGHEST)).outcome
    assert "n1: it runs versions 1 to 1" in refusal
    assert "n2: it has never said what it runs" in refusal
    assert "n0" not in refusal
    despite = asked(cluster, 0, FinishUpgrade(HIGHEST, despite_unknown=True))
    assert despite.refused  # one that is known to be older is never left behind
    assert "n1: it runs versions 1 to 1" in despite.outcome
    assert "n2" not in despite.outcome
    del cluster.software[1]
    cluster.restart_daemon(1)  # the new release is installed there
    cluster.until("it to be so", lambda: cluster.database.member(1).software.highest == HIGHEST)
    assert asked(cluster, 0, FinishUpgrade(HIGHEST)).refused  # n2 is still unknown
    assert not asked(cluster, 1, FinishUpgrade(HIGHEST, despite_unknown=True)).refused
    assert cluster.database.cluster.active_version == HIGHEST
    assert not asked(cluster, 1, define("web")).refused
    assert [record.operation for record in cluster.database.audit.values()] == ["finish_upgrade", "apply"] or [
        record.operation for record in cluster.database.audit.values()
    ] == ["apply"]
    assert "there is nothing to finish" in asked(cluster, 0, FinishUpgrade(HIGHEST)).outcome
    assert "never lowered" in asked(cluster, 0, FinishUpgrade(LOWEST)).outcome
    assert "not known to this release" in asked(cluster, 0, FinishUpgrade(HIGHEST + 1)).outcome


def test_p10_1_what_a_node_ran_last_is_known_while_it_is_down() -> None:
    cluster = joined_cluster(3)
    cluster.kill(2)
    cluster.until("it to be so", lambda: cluster.database.member(2).state is NodeState.INACTIVE)
    assert cluster.database.member(2).software.highest == HIGHEST


def test_p10_1_a_release_that_does_not_know_the_active_version_does_not_boot() -> None:
    def problem_at(active: int) -> str:
        return version_problem(Database(Cluster("prod", "0" * 32, "fast", "", active_version=active)))

    assert not problem_at(LOWEST)
    assert not problem_at(HIGHEST)
    problem = problem_at(HIGHEST + 1)
    assert f"version {HIGHEST + 1} is active in cluster prod" in problem
    assert f"this release knows versions {LOWEST} to {HIGHEST}" in problem


# ---- P10.2 -----------------------------------------------------------------------------------------------------------


def test_p10_2_each_change_is_a_version_with_its_author_and_the_old_ones_can_be_shown() -> None:
    cluster = joined_cluster(2)
    asked(cluster, 1, define("web", "db"))
    asked(cluster, 0, define("web", start="/bin/false"))
    asked(cluster, 1, ApplyServices((), ("db",)))
    asked(cluster, 1, RegisterService("web"))  # changes no configuration
    database = cluster.database
    assert sorted(database.revisions) == [1, 2, 3]
    first = database.revisions[1]
    assert (first.user, first.uid, first.node, first.at_ms) == ("alice", 1000, "n1", ALICE.at_ms)
    assert services_at(database, 0) == {}
    assert services_at(database, 1) == {"web": "/bin/true", "db": "/bin/true"}
    assert services_at(database, 2) == {"web": "/bin/false", "db": "/bin/true"}
    assert services_at(database, 3) == {"web": "/bin/false"}
    assert database.revisions == cluster.core(1).database.revisions
    with pytest.raises(UnknownVersion, match="the newest is 3"):
        revisions.configuration_at(database, 4)


def test_p10_2_the_same_again_makes_no_version() -> None:
    cluster = joined_cluster(1)
    for _ in range(2):
        assert not asked(cluster, 0, define("web")).refused
    assert cluster.database.version == 1


def test_p10_2_a_change_made_from_another_version_is_refused_and_names_who_was_there_first() -> None:
    cluster = joined_cluster(2)
    assert not asked(cluster, 0, define("web", expect=0)).refused
    reply = asked(cluster, 1, define("db", expect=0))
    assert reply.refused
    assert "at version 1, made by alice at n1" in reply.outcome
    assert "db" not in cluster.database.services
    assert not asked(cluster, 1, define("db", expect=1)).refused


def test_p10_2_a_rollback_restores_services_and_settings_and_is_a_version_itself() -> None:
    cluster = joined_cluster(2)
    asked(cluster, 0, define("web"))
    asked(cluster, 0, define("web", "db", start="/bin/false"))
    asked(cluster, 0, ConfigureCluster("operator_group", "wheel"))
    reply = asked(cluster, 1, RollBack(1, expect=3))
    assert not reply.refused, reply.outcome
    database = cluster.database
    assert database.version == 4
    assert services_at(database, 4) == services_at(database, 1) == {"web": "/bin/true"}
    assert database.cluster.groups == Groups()
    assert services_at(database, 3) == {"web": "/bin/false", "db": "/bin/false"}
    assert "no version 99" in asked(cluster, 1, RollBack(99)).outcome


def test_p10_2_the_history_is_bounded_and_says_what_is_no_longer_kept() -> None:
    cluster = joined_cluster(1)
    for number in range(MAXIMUM_REVISIONS + 5):
        asked(cluster, 0, define("web", start=f"/bin/{number}"))
    database = cluster.database
    assert len(database.revisions) == MAXIMUM_REVISIONS
    assert database.version == MAXIMUM_REVISIONS + 5
    oldest = revisions.oldest_kept(database)
    assert oldest == 5
    assert services_at(database, oldest) == {"web": "/bin/4"}
    with pytest.raises(UnknownVersion, match="no longer kept; the oldest that is: 5"):
        revisions.configuration_at(database, oldest - 1)
    assert sum(len(revision.undo) for revision in database.revisions.values()) <= MAXIMUM_UNDO_BYTES


# ---- P10.3 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", [0, 1])
def test_p10_3_a_daemon_is_started_anew_once_under_its_incarnation_also_the_masters(node: int) -> None:
    cluster = joined_cluster(3)
    before = cluster.database.member(node)
    reply = asked(cluster, 2, RestartDaemon(f"n{node}"))
    cluster.until("it to be so", lambda: cluster.database.member(node).software.started_index >= reply.index)
    cluster.until("it to be so", cluster.masters)
    cluster.run(2000)
    after = cluster.database.member(node)
    assert cluster.restarts == 1
    assert (after.incarnation, after.state) == (before.incarnation, NodeState.JOINED)


@pytest.mark.parametrize("node", [0, 1])
def test_p10_3_a_daemon_whose_successor_could_not_connect_goes_on_until_it_could(node: int) -> None:
    cluster = joined_cluster(3)
    cluster.until("it to be so", cluster.masters)
    masters = cluster.masters()
    cluster.give(node, RestartHeld("the clock is wrong"))
    reply = asked(cluster, 2, RestartDaemon(f"n{node}"))
    cluster.run(5000)
    assert cluster.restarts == 0
    assert cluster.masters() == masters, "it leads on where it led"
    cluster.give(node, RestartHeld(""))
    cluster.until("it to be so", lambda: cluster.database.member(node).software.started_index >= reply.index)
    assert cluster.restarts == 1


def test_p10_3_a_node_that_is_no_member_has_no_daemon_to_start_anew() -> None:
    cluster = joined_cluster(2)
    cluster.kill(1)
    cluster.until("it to be so", lambda: cluster.database.member(1).state is NodeState.INACTIVE)
    assert "n1 is inactive" in asked(cluster, 0, RestartDaemon("n1")).outcome
    assert "configured are: n0, n1" in asked(cluster, 0, RestartDaemon("n7")).outcome


# ---- P10.4 -----------------------------------------------------------------------------------------------------------


def test_p10_4_every_change_has_its_record_and_a_refused_one_has_none() -> None:
    cluster = joined_cluster(2)
    asked(cluster, 1, define("web", start="/opt/secret --password=hunter2"))
    assert asked(cluster, 0, RegisterService("none-such")).refused
    asked(cluster, 0, DeregisterService("web"))
    records = list(cluster.database.audit.values())
    assert [(record.operation, record.subject, record.user, record.node) for record in records] == [
        ("apply", "define web", "alice", "n1"),
        ("deregister", "service=web", "alice", "n1"),
    ]
    assert b"hunter2" not in msgspec.msgpack.encode(records)
    assert records[0].index < records[1].index


def test_p9_1_a_repeated_operation_runs_once_across_a_change_of_master_and_leaves_one_record() -> None:
    cluster = joined_cluster(3)
    first = cluster.do(1, define("web"), identity="the very same", author=ALICE)
    cluster.kill(0)
    cluster.until("it to be so", lambda: cluster.masters() and cluster.database.member(0).state is NodeState.INACTIVE)
    cluster.restart_daemon(2)
    cluster.until("it to be so", lambda: cluster.core(2).replica.confirmed)
    again = cluster.do(2, define("web"), identity="the very same", author=ALICE)
    assert (again.index, again.outcome) == (first.index, first.outcome)
    assert [record.operation for record in cluster.database.audit.values()] == ["apply"]
    assert cluster.database.version == KEEPS_HISTORY - 1
