"""Replicas and messages: the rules P5.x of docs/PROTOCOL.md, each by the tests named after it (SPEC 2.4, 2.5)."""

import itertools

import pytest
from msgspec.structs import replace

from core_cluster import LOCKS, CoreCluster, Envelope, joined_cluster
from muster.core.decisions.followers import Followers
from muster.core.effects import Notify, Panic, RunCommand, Send
from muster.core.entries import apply
from muster.core.inputs import LevelRegistered
from muster.core.replica.replica import accepts
from muster.core.replica.reporting import Reporting
from muster.core.this_node import ThisNode
from muster.records.database import Change, Database, Entry, Forget, decode_entry
from muster.records.levels import NodeState, TransitionKind
from muster.records.members import Member
from muster.records.messages import Append, Heartbeat, Report, Snapshot
from muster.records.nodes import Cluster
from muster.records.services import ApplyServices, Definition, DeregisterService, RegisterService, ServiceState
from muster.records.terms import Term
from muster.records.timing import FAST
from muster.records.units import US_PER_MS
from muster.records.versions import Software

WEB = ApplyServices((Definition("web", ("n1",), start_command=("/bin/start",)),))
IDLE = ApplyServices((Definition("idle", auto_register=False),))


# ---- P5.1 confirmed replicas -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "offered_index", "taken"),
    [
        (Term(3, 1), 0, True),  # a higher term, whatever its index
        (Term(2, 2), 0, True),  # terms are compared with their nodes
        (Term(2, 1), 11, True),
        (Term(2, 1), 10, False),
        (Term(2, 1), 9, False),
        (Term(2, 0), 99, False),
        (Term(1, 9), 99, False),
    ],
)
def test_p5_1_a_snapshot_replaces_a_confirmed_replica_if_its_term_is_higher_or_its_index_in_the_same(
    offered: Term, offered_index: int, taken: bool
) -> None:
    assert accepts(Term(2, 1), True, 10, offered, offered_index) is taken


@pytest.mark.parametrize(("offered", "taken"), [(Term(1, 9), False), (Term(2, 1), True), (Term(2, 2), True)])
def test_p5_1_an_unconfirmed_replica_is_replaced_by_any_term_that_is_not_below_what_it_knows(
    offered: Term, taken: bool
) -> None:
    for index in (0, 10, 99):
        assert accepts(Term(2, 1), False, 10, offered, index) is taken


def last_entry(cluster: CoreCluster, node: int) -> Entry | None:
    """The last frame that is durable in the node's journal."""
    frames = cluster.journals[node, cluster.claims[node].mark.half][2]
    return decode_entry(frames[-1]) if frames else None


def acted(cluster: CoreCluster, node: int, since: int) -> list[object]:
    """What a node was made to do since a moment in the history."""
    done = [item.effect for item in cluster.history[since:] if item.node == node]
    return [effect for effect in done if isinstance(effect, Notify | RunCommand | Panic)]


def test_p5_1_what_was_read_at_boot_and_never_committed_is_acted_on_by_nobody_until_it_is_adopted() -> None:
    cluster = joined_cluster(2)
    cluster.ask(0, WEB)
    before = cluster.core(1).database.index
    cluster.until("the frame is durable", lambda: (last := last_entry(cluster, 0)) and last.index == before + 1)
    cluster.kill(0)  # before the read that would have decided it
    cluster.restart_daemon(1)
    since = len(cluster.history)
    cluster.run(FAST.lease_ms - 2 * FAST.renew_ms)
    database = cluster.core(1).database
    assert database.index == before + 1
    assert (database.services["web"].state, database.services["web"].node) == (ServiceState.STARTING, 1)
    assert not acted(cluster, 1, since)
    cluster.until("n1 has adopted it", lambda: cluster.masters() == [1])
    cluster.until("and starts it", lambda: cluster.commands() == [(1, "start")])


def test_p5_1_messages_of_an_old_master_change_nothing() -> None:
    cluster = joined_cluster(3)
    cluster.holds = lambda envelope: envelope.sender == 0 and isinstance(envelope.message, Append | Snapshot)
    for operation in (IDLE, WEB):
        cluster.do(0, operation)
    old = list(cluster.held)
    assert old
    cluster.kill(0)
    cluster.until("n0 is out", lambda: cluster.masters() == [1] and cluster.state(0) is NodeState.INACTIVE)
    cluster.run(500)
    cluster.holds = lambda _envelope: False
    newest = cluster.core(2).database
    before = (newest.index, newest.term, cluster.core(2).replica.accepted)
    for envelope in (*old, *reversed(old)):
        cluster.deliver(envelope)
    cluster.run(500)
    assert (newest.index, newest.term, cluster.core(2).replica.accepted) == before
    assert cluster.core(2).database is newest


# ---- P5.2 entries in order -------------------------------------------------------------------------------------------


def test_p5_2_entries_that_arrive_out_of_order_are_applied_in_order() -> None:
    cluster = joined_cluster(2)
    before = cluster.core(1).database.index
    cluster.holds = lambda envelope: envelope.to == 1 and isinstance(envelope.message, Append)
    for number in range(3):
        cluster.ask(0, ApplyServices((Definition(f"idle-{number}", auto_register=False),)))
        cluster.settle()
    held, cluster.held = cluster.held, []
    assert len(held) == 3
    reports = len(cluster.sent(Report, 1))
    cluster.deliver(held[2])
    cluster.settle()
    assert cluster.core(1).database.index == before
    assert len(cluster.sent(Report, 1)) > reports  # it says that it misses some
    cluster.deliver(held[0])
    cluster.settle()
    assert cluster.core(1).database.index == before + 1
    cluster.holds = lambda _envelope: False  # the others stay lost: the master repeats what is missing
    cluster.until("n1 has got them", lambda: cluster.core(1).database.index == before + 3)
    assert not cluster.sent(Snapshot, 0)[1:]  # the first was for its join
    applied = [moment.at_index for moment in cluster.moments if moment.node == 1]
    assert applied == sorted(set(applied))
    assert cluster.core(1).database == cluster.core(0).database


@pytest.mark.parametrize("index", [9, 10, 12])
def test_p5_2_a_replica_takes_no_entry_but_the_next(index: int) -> None:
    database = Database(Cluster("test", "0" * 32, "fast", ""), index=10)
    with pytest.raises(ValueError, match="does not follow index 10"):
        apply(database, Entry(index, Term(1, 0), "", (Member(0),)))
    assert (database.index, database.members) == (10, {})
    apply(database, Entry(11, Term(1, 0), "", (Member(0),)))
    assert (database.index, database.members) == (11, {0: Member(0)})


def test_sec7_7_the_epoch_moves_with_a_node_s_state_or_incarnation_and_with_nothing_else() -> None:
    joined = Member(0, NodeState.JOINED, 4)
    database = Database(Cluster("test", "0" * 32, "fast", ""))
    other = (replace(joined, refusal="a word"), replace(joined, incarnation=5), Member(0))
    changes: tuple[Change, ...] = (joined, *other, Forget("member", "0"))
    epochs = []
    for index, change in enumerate(changes, start=1):
        apply(database, Entry(index, Term(1, 0), "", (change,)))
        epochs.append(database.epoch)
    assert epochs == [1, 1, 3, 4, 4]


def test_p5_2_entries_of_another_term_are_not_applied() -> None:
    cluster = joined_cluster(2)
    database = cluster.core(1).database
    before = database.index
    accepted = cluster.core(1).replica.accepted
    for term in (Term(accepted.number - 1, 0), Term(accepted.number, 1), Term(accepted.number + 1, 0)):
        entry = Entry(before + 1, term, "a stranger's", ())
        cluster.deliver(Envelope(0, 1, Append(term, before, (entry,))))
        cluster.settle()
        assert database.index == before


def test_p5_2_whoever_lags_far_gets_the_whole_database() -> None:
    cluster = joined_cluster(2)
    cluster.loses = lambda envelope: envelope.to == 1 and isinstance(envelope.message, Append | Snapshot)
    for _ in range(70):
        cluster.do(0, IDLE)
        for operation in (RegisterService("idle"), DeregisterService("idle")):
            cluster.do(0, operation)
    cluster.loses = lambda _envelope: False
    snapshots = len(cluster.sent(Snapshot, 0))
    cluster.until("n1 has caught up", lambda: cluster.core(1).database == cluster.core(0).database)
    assert len(cluster.sent(Snapshot, 0)) == snapshots + 1


# ---- P5.3 reports ----------------------------------------------------------------------------------------------------


def test_p5_3_a_report_is_repeated_while_anything_in_it_is_unresolved_and_not_beyond() -> None:
    cluster = joined_cluster(2)
    cluster.run(1000)
    heartbeats, reports = len(cluster.sent(Heartbeat, 1)), len(cluster.sent(Report, 1))
    cluster.run(2000)
    assert len(cluster.sent(Heartbeat, 1)) >= heartbeats + 2000 // FAST.heartbeat_ms
    assert len(cluster.sent(Report, 1)) == reports  # nothing to tell
    cluster.do(0, WEB)
    cluster.until("it is registered", lambda: cluster.service().state is ServiceState.REGISTERED)
    cluster.loses = lambda envelope: isinstance(envelope.message, Report)
    cluster.run(500)
    cluster.do(0, DeregisterService("web"))
    reports = len(cluster.sent(Report, 1))
    cluster.run(2000)
    assert (
        len(cluster.sent(Report, 1)) > reports + 2000 // FAST.heartbeat_ms - 2
    )  # the end of its stop, again and again
    assert cluster.service().state is ServiceState.STOPPING
    cluster.loses = lambda _envelope: False
    cluster.until("it is de-registered", lambda: cluster.service().state is ServiceState.DEREGISTERED)
    cluster.run(500)
    reports = len(cluster.sent(Report, 1))
    cluster.run(2000)
    assert len(cluster.sent(Report, 1)) == reports


def test_p5_3_reports_that_come_again_change_nothing() -> None:
    cluster = joined_cluster(3, (LOCKS,))
    seen: list[Envelope] = []

    def keep(envelope: Envelope) -> bool:
        if isinstance(envelope.message, Report):
            seen.append(envelope)
        return False

    cluster.loses = keep
    cluster.do(0, WEB)
    cluster.until("it is registered", lambda: cluster.service().state is ServiceState.REGISTERED)
    cluster.run(500)
    before = cluster.database.index
    for envelope in itertools.chain(seen, reversed(seen)):
        cluster.deliver(envelope)
    cluster.run(1000)
    assert cluster.database.index == before


def test_p5_3_a_report_that_was_overtaken_says_nothing() -> None:
    followers = Followers(Term(4, 0), FAST)
    newer = Report(Term(4, 0), 7, 5, "", (), sent_us=200)
    followers.reported(1, newer)
    followers.reported(1, Report(Term(4, 0), 6, 5, "join", (), sent_us=100))
    assert followers.reports[1] == newer
    assert followers.reported(1, Report(Term(3, 2), 6, 5, "", (), sent_us=100))  # not even of another term
    assert followers.reports[1] == newer
    later = Report(Term(4, 0), 2, 6, "join", (), sent_us=1)  # a new life has a new clock
    followers.reported(1, later)
    assert followers.reports[1] == later


def test_p5_3_commands_of_the_master_that_end_within_a_moment_are_one_entry_and_a_single_one_waits_for_nothing() -> (
    None
):
    cluster = joined_cluster(1)
    cluster.outcome = lambda _node, _command: None
    names = [f"s{number}" for number in range(20)]
    cluster.do(0, ApplyServices(tuple(Definition(name, start_command=("/bin/start",)) for name in names)))
    cluster.until("all start", lambda: all(cluster.service(name).state is ServiceState.STARTING for name in names))
    cluster.run(100)
    before = cluster.database.index
    cluster.finish(0, names[0])
    cluster.until("it runs", lambda: cluster.service(names[0]).state is ServiceState.REGISTERED, within_ms=2)
    for name in names[1:]:
        cluster.finish(0, name)
        cluster.run(1)
    cluster.until("all run", lambda: all(cluster.service(name).state is ServiceState.REGISTERED for name in names))
    assert cluster.database.index - before <= len(names) // 2


def test_p5_2_what_a_new_master_commits_before_a_node_has_accepted_its_term_follows_at_once() -> None:
    cluster = joined_cluster(3)
    cluster.kill(0)
    cluster.holds = lambda envelope: isinstance(envelope.message, Report)  # it takes a moment to accept the term
    cluster.until("there is another master", lambda: cluster.masters() not in ([], [0]))
    master = cluster.master
    other = next(node for node in (1, 2) if node != master)
    cluster.until("n0 is being forced out", lambda: cluster.database.member(0).state is NodeState.FORCED_LEAVING)
    cluster.release()
    committed = cluster.database.index
    cluster.until("the other one knows", lambda: cluster.core(other).database.index >= committed, within_ms=10)


def test_p5_3_a_report_of_another_term_counts_for_nothing() -> None:
    followers = Followers(Term(4, 0), FAST)
    followers.reported(1, Report(Term(4, 0), 7, 5, "", (), sent_us=200))
    assert not followers.reported(1, Report(Term(3, 0), 7, 5, "", (), sent_us=300))
    assert not followers.reports


# ---- P5.4 forced out -------------------------------------------------------------------------------------------------


def panics(cluster: CoreCluster, node: int) -> list[str]:
    """Why the node's daemon asked for its end."""
    return [i.effect.cause for i in cluster.history if i.node == node and isinstance(i.effect, Panic)]


def test_p5_4_a_node_that_reads_that_it_is_forced_out_panics() -> None:
    cluster = joined_cluster(3, (LOCKS,))
    cluster.acknowledges = lambda _node, notification: notification.kind is not TransitionKind.FORCED_LEAVING
    cluster.fence(1)  # and the fence agent was wrong: n1 runs
    cluster.until("n1 has ended", lambda: 1 not in cluster.lives)
    assert panics(cluster, 1) == ["the others have forced this node out"]
    assert cluster.state(1) is NodeState.FORCED_LEAVING
    assert not panics(cluster, 0) + panics(cluster, 2)


def test_p5_4_a_forced_leave_that_is_over_already_ends_the_node_as_well() -> None:
    cluster = joined_cluster(2)
    cluster.loses = lambda envelope: envelope.sender == 0
    cluster.fence(1)
    cluster.until("the forced leave is over", lambda: cluster.core(0).database.member(1).state is NodeState.INACTIVE)
    cluster.loses = lambda _envelope: False
    cluster.until("n1 has ended", lambda: 1 not in cluster.lives)
    assert panics(cluster, 1) == ["the others have forced this node out"]


def test_p5_4_only_a_confirmed_replica_says_so() -> None:
    cluster = joined_cluster(3, (LOCKS,))
    cluster.acknowledges = lambda _node, notification: notification.kind is not TransitionKind.FORCED_LEAVING
    cluster.loses = lambda envelope: envelope.to == 1
    cluster.fence(1)
    cluster.until("it is committed", lambda: cluster.state(1) is NodeState.FORCED_LEAVING)
    cluster.restart_daemon(1)
    cluster.run(1500)
    assert cluster.core(1).database.member(1).state is NodeState.FORCED_LEAVING  # read from the journal
    assert not panics(cluster, 1)
    cluster.loses = lambda _envelope: False
    cluster.until("n1 has ended", lambda: 1 not in cluster.lives)
    assert panics(cluster, 1)


def test_p5_3_a_step_sends_one_report_whatever_wanted_it_and_sends_it_last() -> None:
    cluster = joined_cluster(2)
    core = cluster.core(1)
    now_us = core.now_us + 10 * FAST.heartbeat_ms * US_PER_MS  # its heartbeat is due, and repeats what is pending
    effects = core.step(LevelRegistered(LOCKS), now_us)
    sent = [each.message for each in effects if isinstance(each, Send)]
    assert any(isinstance(message, Heartbeat) for message in sent)
    assert [type(message) for message in sent].count(Report) == 1
    assert isinstance(sent[-1], Report) and LOCKS in sent[-1].levels


def test_p5_3_what_several_want_is_one_report_that_goes_as_the_most_urgent_of_them_wants() -> None:
    reporting = Reporting(ThisNode(1, "n1", 7, FAST), Software())
    assert reporting.take_wish(0) is None
    reporting.want(force=True)
    reporting.want(to=2)
    reporting.want()
    wish = reporting.take_wish(0)
    assert wish is not None and wish.force and wish.to == 2
    assert reporting.take_wish(0) is None
    reporting.due_us = 5000
    assert reporting.take_wish(4999) is None
    wish = reporting.take_wish(5000)
    assert wish is not None and not wish.force
