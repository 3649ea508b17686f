"""Lockspaces as a setting, the level that goes with them, and what its programs are told: P12.15 and P12.17."""

import pytest
from msgspec.structs import replace

from core_cluster import CoreCluster
from muster.core.draft import Draft
from muster.core.locks.names import MAXIMUM_SPACES, SPACE
from muster.core.node import insight
from muster.core.refusal import Refused
from muster.core.transitions.required import required_of
from muster.core.transitions.transition import members_at
from muster.core.versions import revisions
from muster.core.versions.requests import KERNEL_LOCKS_IMAGE, carry_out
from muster.records.configuration import BreakLock, ConfigureCluster, RollBack
from muster.records.levels import LOCK_MANAGER_LEVEL, Barriers, Level, Missing, NodeState, Required, TransitionKind
from muster.records.lockspaces import LOCKSPACE, MAXIMUM_LOCKSPACES, parse, text_of
from muster.records.members import Member
from muster.records.nodes import Cluster, NodeConfig
from muster.records.transitions import ENTRIES_TOGETHER, Transition
from muster.records.versions import HIGHEST, KERNEL_LOCKS, LOWEST, Software

LEVEL = LOCK_MANAGER_LEVEL
JOINING, LEAVING, FORCED = TransitionKind.JOINING, TransitionKind.LEAVING, TransitionKind.FORCED_LEAVING


def set_spaces(cluster: CoreCluster, value: str) -> str:
    done = cluster.do(0, ConfigureCluster("lockspaces", value))
    assert not done.refused, done.outcome
    return done.outcome


def test_p12_15_lockspaces_are_read_as_they_are_written_and_as_the_rules_of_locks_take_them() -> None:
    assert parse("reports, orders,orders") == ("orders", "reports")
    assert parse("none") == parse("") == ()
    assert text_of(parse("b,a")) == "a,b"
    assert text_of(()) == "none"
    assert LOCKSPACE.pattern == SPACE.pattern
    assert MAXIMUM_LOCKSPACES + 1 == MAXIMUM_SPACES  # and Muster's own
    for wrong in ("a:b", "-a", "x" * 33, "none,a", ",".join(f"s{number}" for number in range(65))):
        with pytest.raises(ValueError, match=r"lockspace|none"):
            parse(wrong)


def test_p12_15_while_there_are_lockspaces_each_node_needs_their_level_before_it_joins() -> None:
    cluster = CoreCluster(2)
    cluster.boot(0)
    cluster.until_joined(0)
    assert set_spaces(cluster, "orders") == "lockspaces is orders"
    assert set_spaces(cluster, "orders") == "lockspaces is orders already"
    cluster.boot(1)
    cluster.until("it waits", lambda: insight.required_levels(cluster.core(0)))
    (waiting,) = insight.required_levels(cluster.core(0))
    assert waiting.missing == (Missing(LEVEL.number, LEVEL.name),)
    cluster.register(1, LEVEL)
    cluster.until_joined(1)
    cluster.register(0, LEVEL)
    cluster.until("it is in the level", lambda: LEVEL.number in cluster.levels_in_record(0))
    assert "locks are off" in set_spaces(cluster, "none")
    undone = cluster.do(0, RollBack(1))
    assert not undone.refused
    assert cluster.database.cluster.lockspaces == ("orders",)


def test_p12_33_the_kernels_locks_are_switched_on_where_every_image_knows_them_and_bring_the_level() -> None:
    cluster = CoreCluster(2)
    cluster.boot(0)
    cluster.until_joined(0)
    draft = Draft(cluster.database)
    assert "n0: an image from before" in str(drive(draft, "on", Refused))
    draft.put(replace(draft.member(0), software=Software(LOWEST, HIGHEST, "", KERNEL_LOCKS_IMAGE)))
    assert "is on or off" in str(drive(draft, "perhaps", Refused))
    assert "is off already" in drive(draft, "off")
    assert "no dlm_controld" in drive(draft, "on")
    assert required_of(draft.cluster, None) == (Required(LEVEL.number, LEVEL.name),)
    assert revisions.document_of(draft.cluster)["kernel_locks"] == "on"  # type: ignore[index]
    assert "nothing enters" in drive(draft, "off")
    draft.put(replace(draft.cluster, active_version=KERNEL_LOCKS - 1))
    assert "finish the upgrade" in str(drive(draft, "on", Refused))
    assert required_of(draft.cluster, None) == ()
    draft.put(replace(draft.cluster, active_version=KERNEL_LOCKS))
    draft.put(replace(draft.member(0), levels=(Level(LEVEL.number, "another"),)))
    assert "another has it" in str(drive(draft, "on", Refused))


def drive(draft: Draft, value: str, refusal: type[Exception] | None = None) -> str:
    """Set `kernel_locks`; what is said, by a refusal where one is expected."""
    operation = ConfigureCluster("kernel_locks", value)
    if refusal is None:
        return carry_out(operation, draft, lambda _operation: "")
    with pytest.raises(refusal) as refused:
        carry_out(operation, draft, lambda _operation: "")
    return str(refused.value)


def test_p12_15_the_level_is_added_to_what_is_required_for_other_reasons() -> None:
    cluster = Cluster("c", "0" * 32, "fast", "", required_levels=(Required(15, "storage"),))
    own = NodeConfig(1, "n1", ("h:1",), "", required_levels=(Required(10, "mine"), Required(30)))
    assert required_of(cluster, None) == (Required(15, "storage"),)
    locked = replace(cluster, lockspaces=("orders",))
    assert required_of(locked, None) == (Required(10, LEVEL.name), Required(15, "storage"))
    assert required_of(locked, own) == (Required(10, LEVEL.name), Required(30))


def test_p12_15_the_setting_is_refused_while_another_program_has_the_level() -> None:
    cluster = CoreCluster(1)
    cluster.boot(0, levels=(Level(10, "mine"),))
    cluster.until_joined(0)
    done = cluster.do(0, ConfigureCluster("lockspaces", "orders"))
    assert done.refused
    assert "on n0 mine has it" in done.outcome
    wrong = cluster.do(0, ConfigureCluster("lockspaces", "a:b"))
    assert wrong.refused
    assert "cannot be the name of a lockspace" in wrong.outcome


def test_p12_17_steps_have_the_same_names_everywhere_in_the_order_in_which_they_entered_the_level() -> None:
    cluster = CoreCluster(3)
    level = Level(10, "locks", Barriers(2, 3, 2))
    cluster.boot(0, 1, 2, levels=(level,))
    for node in range(3):
        cluster.until_joined(node)
    told: dict[tuple[int, int], set[int]] = {}
    for node in range(3):
        entries = [(each.entry, each.barrier) for each in cluster.notifications(node) if each.level == 10]
        opened = [entry for entry, barrier in entries if barrier == 0]
        assert opened == sorted(opened), "first barriers are told in the order of their entries"
        for each in cluster.notifications(node):
            if each.level == 10:
                told.setdefault((each.transition, each.barrier), set()).add(each.entry)
    assert told
    assert all(len(entries) == 1 for entries in told.values())
    names = {entry for entries in told.values() for entry in entries}
    assert len(names) == 3, "one for each join"
    assert all(0 < name // ENTRIES_TOGETHER <= cluster.database.index for name in names), "by the entry that began it"


def member(node: int, state: NodeState = NodeState.JOINED, *inside: int) -> Member:
    return Member(node, state, 7, levels=(LEVEL,), by_level=True, inside=inside)


def test_p12_17_the_members_are_those_as_of_the_step_whatever_has_entered_since() -> None:
    cluster = CoreCluster(1)
    cluster.boot(0)
    cluster.until_joined(0)
    step = Transition(1, 1, 7, JOINING, (10,), participants=(0, 1), entered=50)
    earlier_leave = Transition(2, 2, 7, LEAVING, (10,), participants=(0,), entered=49)
    later_leave = Transition(3, 3, 7, LEAVING, (10,), participants=(0,), entered=51)
    later_join = Transition(4, 4, 7, JOINING, (10,), participants=(0,), entered=50)  # by the same entry, a higher node
    dead = Transition(5, 5, 7, FORCED, (10,), participants=(0,), entered=40)
    dies_later = Transition(6, 6, 7, FORCED, (10,), participants=(0,), entered=60)
    elsewhere = Transition(7, 7, 7, LEAVING, (40, 10), participants=(0,), entered=48)
    database = replace(
        cluster.database,
        members={number: member(number, NodeState.JOINED, 10) for number in range(9)} | {8: member(8)},
        transitions={
            each.identity: each
            for each in (step, earlier_leave, later_leave, later_join, dead, dies_later, elsewhere)
        },
    )  # fmt: skip
    assert members_at(database, 10, step) == {
        0: (7, True, 0), 1: (7, True, 0), 2: (7, False, 0), 3: (7, True, 0), 6: (7, True, 0), 7: (7, True, 0),
    }  # fmt: skip


def test_p12_21_who_says_that_a_holder_is_dead_is_recorded_and_nothing_else_changes() -> None:
    cluster = CoreCluster(1)
    cluster.boot(0)
    cluster.until_joined(0)
    assert cluster.do(0, BreakLock("orders", "42", "alice")).refused
    set_spaces(cluster, "orders")
    before = cluster.database
    done = cluster.do(0, BreakLock("orders", "42", "alice"))
    assert done.outcome == "the holders of orders:42 are taken for dead"
    newest = max(cluster.database.audit)
    assert cluster.database.audit[newest].subject == "space=orders name=42 by=alice"
    assert (cluster.database.cluster, cluster.database.members) == (before.cluster, before.members)
