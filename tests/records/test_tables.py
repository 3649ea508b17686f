"""The tables of what the database holds: complete, and the gate of versions reads them (SPEC 9.2, P10.1)."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from core_cluster import CoreCluster
from muster.core.draft import Draft
from muster.core.entries import apply
from muster.core.node import insight
from muster.core.operations.plan import PlanRefused
from muster.core.transitions.objections import may_be_vetoed
from muster.records.access import Author
from muster.records.configuration import Audit
from muster.records.database import Database, Entry, Forget, initial_database
from muster.records.kinds import BY_NAME, KINDS, Record, check_tables, kind_named
from muster.records.members import Member
from muster.records.messages import Abdicated, KeyRequest, Request, version_of
from muster.records.nodes import Cluster, NodeConfig
from muster.records.operations import OPERATIONS
from muster.records.services import Maintenance, SetMaintenance, Standby
from muster.records.tables import check_rows
from muster.records.terms import Term
from muster.records.versions import HIGHEST, LOWEST
from recorded_samples import sample

FOLDER = Path(__file__).parents[1] / "recorded"


def test_a_table_with_a_row_forgotten_invented_or_twice_is_not_loaded() -> None:
    check_rows("a table", [int, str], (str, int))
    with pytest.raises(TypeError, match="a table has no row for str: each kind has its row there"):
        check_rows("a table", [int], (str, int))
    with pytest.raises(TypeError, match="a table has rows for bytes, which nothing knows"):
        check_rows("a table", [int, str, bytes], (str, int))
    with pytest.raises(TypeError, match="a table has two rows for one kind"):
        check_rows("a table", [int, str, int], (str, int))


def test_a_kind_without_a_field_in_the_database_is_not_loaded() -> None:
    class Lacking:
        cluster: Cluster
        nodes: dict[int, int]

    check_tables(Database)
    check_tables(Draft)
    with pytest.raises(TypeError, match=r"Lacking has no field `nodes: dict.int, muster.*NodeConfig.*of kind node"):
        check_tables(Lacking)


def test_a_kind_is_called_by_its_tag_and_an_unknown_one_is_an_error() -> None:
    assert set(BY_NAME) == {"cluster", "node", "member", "transition", "service", "operation", "maintenance",
                            "standby", "event_group", "audit", "revision", "fence_device", "fence_plan",
                            "fencing", "decider"}  # fmt: skip
    with pytest.raises(ValueError, match="nothing is known about records of kind 'lock'"):
        kind_named("lock")
    with pytest.raises(ValueError, match="nothing is known"):
        Draft(Database(Cluster("test", "0" * 32, "fast", ""))).forget("lock", "a")


def test_p10_1_a_kind_of_record_is_of_the_first_version_that_recorded_it() -> None:
    for kind in KINDS:
        versions = [int(path.parent.name) for path in FOLDER.glob(f"*/entry-{kind.struct.__name__}.bin")]
        assert min(versions) == kind.since, kind.name


def test_p10_1_an_operation_is_of_the_first_version_that_recorded_it() -> None:
    for kind in OPERATIONS:
        versions = [int(path.parent.name) for path in FOLDER.glob(f"*/operation-{kind.struct.__name__}.bin")]
        assert min(versions) == kind.since, kind.name


def test_p4_5_what_can_be_overridden_is_what_subsystems_are_asked_about() -> None:
    asked_about = []
    for kind in OPERATIONS:
        operation = replace(
            sample(kind.struct), **dict.fromkeys({"override", "end"} & set(kind.struct.__struct_fields__), False)
        )
        if may_be_vetoed(Request("1", operation, Author(1000, "alice")), HIGHEST):
            asked_about.append(kind.struct)
    assert asked_about == [kind.struct for kind in OPERATIONS if "override" in kind.struct.__struct_fields__]


@pytest.mark.parametrize("record", [Maintenance("cluster", "", 1), Standby(0, 1), Audit(1, 1, 0, 0, "", 0, *[""] * 4)])
def test_p10_1_no_draft_takes_a_record_before_the_version_that_added_its_kind(record: Record) -> None:
    with pytest.raises(AssertionError, match="is of version 2, not active yet"):
        Draft(Database(Cluster("test", "0" * 32, "fast", "", active_version=LOWEST))).put(record)
    draft = Draft(Database(Cluster("test", "0" * 32, "fast", "", active_version=2)))
    draft.put(record)
    assert draft.changes == (record,)


def test_p10_1_what_a_newer_version_added_is_not_planned_either() -> None:
    cluster = CoreCluster(1, active_version=LOWEST)
    cluster.boot(0)
    cluster.until_joined(0)
    plan = insight.plan(cluster.core(0))
    with pytest.raises(PlanRefused, match="this needs version 2, and version 1 is active"):
        plan.foresee([SetMaintenance("cluster")], [])


def test_a_node_takes_its_member_record_along() -> None:
    database = initial_database(Cluster("test", "0" * 32, "fast", ""), (NodeConfig(7, "n7", (), ""),))
    database.members[7] = Member(7)
    apply(database, Entry(1, Term(1, 0), "", (Forget("node", "7"),)))
    assert (database.nodes, database.members) == ({}, {})


def test_p10_1_nothing_that_was_forgotten_in_a_table_is_of_the_newest_version_by_default() -> None:
    assert {version_of(message) for message in (Abdicated(), KeyRequest("x"))} == {LOWEST, 2}
    with pytest.raises(KeyError):
        version_of(None)  # type: ignore[arg-type]
