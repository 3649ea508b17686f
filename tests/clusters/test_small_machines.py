"""The small machines of a node, one by one: ages of entries, followers of a master, reports and their moments."""

from pathlib import Path

import msgspec
from msgspec.structs import replace

from muster.core.decisions.followers import Followers
from muster.core.leases.lease import LeaseKeeper, Renewal, next_incarnation
from muster.core.leases.memory import Remembered
from muster.core.operations.unchanged import Unchanged
from muster.core.replica.ages import Ages
from muster.core.replica.reporting import Reporting
from muster.core.room import SHARE_OF_A_RECORD, Room, capacity_of
from muster.core.this_node import ThisNode
from muster.core.transitions.waiting import Straggler, Waiting
from muster.drivers.store.remembered_file import all_remembered, remember
from muster.records.database import Database, Entry
from muster.records.levels import Barriers, Level, TransitionKind
from muster.records.messages import Report, Request, Response
from muster.records.nodes import Cluster
from muster.records.registers import Deadman, RegisterKind, blank_register
from muster.records.services import Definition, Exhausted, RegisterService, Standby
from muster.records.terms import NO_TERM, Term
from muster.records.timing import FAST
from muster.records.transitions import Transition
from muster.records.versions import HIGHEST, LOWEST, Software

MS, S = 1000, 1_000_000
TERM = Term(3, 0)


def database_of(index: int = 10, standby_since: int = 4) -> Database:
    database = Database(Cluster("test", "0" * 32, "fast", ""), index)
    database.standby[1] = Standby(1, standby_since, 600_000, "")
    return database


def report_of(sent_us: int, index: int = 10, term: Term = TERM, incarnation: int = 5) -> Report:
    return Report(term, index, incarnation, "", (), sent_us=sent_us)


# ---- P6.21: how old an entry is --------------------------------------------------------------------------------------


def test_p6_21_the_age_that_comes_with_a_snapshot_counts_on_and_what_was_seen_here_stays() -> None:
    ages = Ages()
    ages.adopted(database_of(), ((4, 7000),), 20 * S)
    assert ages.age_us(4, 21 * S) == 8 * S
    seen = Ages()
    seen.applied(4, database_of(4), 10 * S)
    seen.adopted(database_of(), ((4, 1000),), 20 * S)
    assert seen.age_us(4, 20 * S) == 10 * S
    assert seen.told(database_of(), 20 * S) == ((4, 10_000),)


def test_p9_4_only_what_was_there_so_long_ago_is_older() -> None:
    ages = Ages()
    for second in range(0, 100, 10):
        ages.applied(second, database_of(), second * S)
    assert ages.index_before(60 * S, 90 * S) == 30
    assert ages.index_before(60 * S, 90 * S - 1) == 20
    assert ages.index_before(91 * S, 90 * S) == -1


# ---- P5.2, P5.3: a master and its followers --------------------------------------------------------------------------


def test_p5_3_a_report_that_was_overtaken_does_not_replace_the_later_one() -> None:
    followers = Followers(TERM, FAST)
    assert followers.reported(1, report_of(20, index=12))
    assert followers.reported(1, report_of(10, index=11))
    assert followers.reports[1].index == 12
    assert followers.reported(1, report_of(10, index=11, incarnation=6))  # its next life begins to count anew
    assert followers.reports[1].incarnation == 6


def test_p6_2_a_node_that_has_not_accepted_the_term_counts_for_nothing_and_is_sent_the_database() -> None:
    followers = Followers(TERM, FAST)
    assert followers.reported(1, report_of(10))
    assert not followers.reported(1, report_of(20, term=Term(2, 2)))
    assert 1 not in followers.reports


def test_p5_2_an_entry_says_what_it_follows_and_goes_to_those_that_have_accepted_the_term() -> None:
    followers = Followers(TERM, FAST)
    followers.reported(1, report_of(10))
    sent = followers.committed(Entry(11, TERM, "", ()), 100, 0)
    assert list(sent) == [1]
    assert sent[1].previous_index == 10


def test_p5_2_what_another_term_s_heartbeat_says_of_an_index_is_no_news() -> None:
    followers, ages, database = Followers(TERM, FAST), Ages(), database_of(10)
    followers.reported(1, report_of(10))
    followers.is_at(1, Term(2, 1), 4)
    assert followers.repeat(1, database, ages, 100 * S) is None
    followers.is_at(1, TERM, 4)
    assert followers.repeat(1, database, ages, 100 * S) is not None


# ---- P5.3: when a node reports ---------------------------------------------------------------------------------------


def test_p5_3_of_two_reports_of_one_moment_the_second_bears_a_later_stamp_and_nothing_new_is_told_once() -> None:
    reporting = Reporting(ThisNode(1, "n1", 5, FAST), Software(LOWEST, HIGHEST))
    first = reporting.next(report_of(0), 5 * S, force=True)
    second = reporting.next(report_of(0), 5 * S, force=True)
    assert first is not None
    assert second is not None
    assert (first.sent_us, second.sent_us) == (5 * S, 5 * S + 1)
    for later_s in (9, 29, 49):
        assert reporting.next(report_of(0), later_s * S, force=False) is None
    fresh = Report(TERM, 10, 5, "join", ())
    assert reporting.next(fresh, 69 * S, force=False) is not None
    assert NO_TERM < TERM


# ---- P9.3, P9.5: the room of a store ---------------------------------------------------------------------------------


def test_p9_3_a_service_is_counted_with_all_its_failures_and_given_up_on_every_node() -> None:
    room = Room(1 << 20)
    plain, failing = Definition("a", restarts=0), Definition("a", restarts=100)
    index = msgspec.msgpack.encode(1 << 62)
    assert room.of_definition(failing, 3) - room.of_definition(plain, 3) >= 100 * len(index)
    given_up = (7, Exhausted(7, 1 << 62))  # failed there, exhausted there
    apiece = len(msgspec.msgpack.encode(given_up)) - 1
    assert room.of_definition(plain, 40) - room.of_definition(plain, 8) >= 32 * apiece


def test_p9_5_what_follows_stops_where_one_record_more_still_fits() -> None:
    for region in (64 << 10, 1 << 20, 64 << 20):
        capacity = capacity_of(region)
        assert capacity.consequences + capacity.entry // SHARE_OF_A_RECORD <= capacity.entry


# ---- P9.4: what changed nothing --------------------------------------------------------------------------------------


def test_p9_4_what_changed_nothing_is_answered_after_a_read_that_began_later_and_its_repeat_the_same() -> None:
    unchanged = Unchanged()
    request = Request("x", RegisterService("web"))
    answer = Response("x", TERM, 10, False, "web is wanted already")
    unchanged.judged(2, request, answer, 10 * S)
    assert unchanged.confirmed(10 * S) == []
    assert unchanged.waits("x")
    assert unchanged.answered(request) is None
    assert unchanged.confirmed(10 * S + 1) == [(2, answer)]
    assert not unchanged.waits("x")
    assert unchanged.answered(request) == answer
    assert unchanged.answered(Request("x", RegisterService("mail"))) is None


# ---- P7.1: a node's own lease ----------------------------------------------------------------------------------------


def test_p7_1_only_a_later_write_of_this_very_guard_is_its_own() -> None:
    incarnation = next_incarnation(0, 9)
    keeper = LeaseKeeper(1, incarnation, blank_register(RegisterKind.LEASE, 1), FAST, Deadman.PID_NAMESPACE, bytes(16))  # type: ignore[arg-type]
    renewal = keeper.begin(0, blank_register(RegisterKind.LEASE, 1), ())  # type: ignore[arg-type]
    assert isinstance(renewal, Renewal)
    written = renewal.lease
    assert keeper.is_own(written)  # it arrived, though its write seemed to fail
    stamp = written.stamp
    assert not keeper.is_own(written._replace(stamp=stamp._replace(incarnation=next_incarnation(0, 8))))
    assert not keeper.is_own(written._replace(stamp=stamp._replace(owner=2)))
    assert not keeper.is_own(written._replace(stamp=stamp._replace(sequence=stamp.sequence + 1)))


def test_p7_6_an_incarnation_is_above_the_last_one_whatever_was_drawn() -> None:
    last = 0
    for drawn in (1 << 31, 5, 5, 0):
        following = next_incarnation(last, drawn)
        assert following > last
        assert following < 1 << 53
        last = following


# ---- P11.2: what a home remembers of several clusters ----------------------------------------------------------------


def test_p11_2_what_is_remembered_of_one_cluster_leaves_what_is_of_another(tmp_path: Path) -> None:
    first, second = Remembered("aa", "1", 7), Remembered("bb", "2", 3)
    for known in (first, second, replace(first, index=8)):
        remember(tmp_path, known)
    assert [(each.cluster_id, each.index) for each in all_remembered(tmp_path)] == [("bb", 3), ("aa", 8)]


# ---- P3.10: who is hung ----------------------------------------------------------------------------------------------


def test_p3_10_only_a_level_with_a_deadline_is_ever_hung_and_only_after_it() -> None:
    patient, bounded = Level(10, "locks", Barriers()), Level(20, "volumes", Barriers(), deadline_ms=500)
    assert not Straggler(1, 7, patient, 0, 3600 * S).is_hung
    assert not Straggler(1, 7, bounded, 0, 500 * MS).is_hung
    assert Straggler(1, 7, bounded, 0, 500 * MS + 1).is_hung


def test_p3_10_the_time_of_a_step_counts_from_when_it_was_first_shown() -> None:
    waiting, database = Waiting(), database_of()
    step = Transition(7, 1, 5, TransitionKind.JOINING, (10, 20), 0, 0, (0,))
    database.transitions[7] = step
    waiting.follow(database, 10 * S)
    waiting.follow(database, 12 * S)
    assert waiting.elapsed_us(step, 13 * S) == 3 * S
    moved = replace(step, position=1)
    database.transitions[7] = moved
    waiting.follow(database, 14 * S)
    assert waiting.elapsed_us(moved, 15 * S) == 1 * S
