"""One account of a transition from all nodes' records, ordered by cause (SPEC 8.2, 9.4)."""

import asyncio
import contextlib
import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_cluster import joined_cluster
from dev_cluster import DevCluster
from muster.client import Barriers, ClientError, Subsystem, register
from muster.core.effects import Trace
from muster.core.entries import apply
from muster.core.transitions import narration as history
from muster.daemon.history import transition_history
from muster.daemon.history.flight_recorder import FlightRecorder, placed
from muster.daemon.history.timeline import Statement, account, overview
from muster.daemon.history.transition_history import TransitionHistory
from muster.daemon.history.transition_record import (
    MAXIMUM_EVENTS,
    MAXIMUM_EVENTS_OF_ONE,
    MAXIMUM_TRANSITIONS,
    TransitionRecord,
)
from muster.records.database import Database, Entry, Forget, initial_database
from muster.records.levels import NodeState, TransitionKind
from muster.records.members import Member, Proof
from muster.records.messages import (
    Abdicated,
    Happened,
    HistoryAnswer,
    HistoryRequest,
    Message,
    decode_message,
    encode_message,
)
from muster.records.nodes import Cluster, NodeConfig
from muster.records.refusal import ControlRefused
from muster.records.registers import ProofKind
from muster.records.terms import Term
from muster.records.transitions import Transition
from patience import DEADLINE_S, wait

JOINING, FORCED = TransitionKind.JOINING, TransitionKind.FORCED_LEAVING
TERM = Term(2, 0)
CLOCKS_US = {0: 5_000_000, 1: 900_000_000_000, 2: 70}  # nobody's clock tells anything about another's
LAG_US = {0: 0, 1: 300, 2: 90_000}  # how long an entry takes to the node: n2 is slow


def database() -> Database:
    """Three nodes without any transition."""
    nodes = tuple(NodeConfig(number, f"n{number}", (f"10.0.0.{number}:7700",), "PEM") for number in range(3))
    return initial_database(Cluster("test", "ab" * 16, "fast", "PEM"), nodes)


class World:
    """Three nodes that record one transition, 64, of n2; a true clock that nobody has."""

    def __init__(self) -> None:
        self.records: dict[int, list[Happened]] = {0: [], 1: [], 2: []}

    def entry(self, true_us: int, index: int, event: str, level: int = -1, **fields: Any) -> None:
        """An entry that all nodes apply, each when it arrives."""
        for node in fields.pop("seen_by", (0, 1, 2)):
            self.at(node, true_us + LAG_US[node], index, event, level, committed=True, **fields)

    def at(self, node: int, true_us: int, index: int, event: str, level: int = -1, **fields: Any) -> None:
        """An event that one node records."""
        given_ = {"detail": f"n2 joining: {event}", "transition": 64, "barrier": 0, "about": 2, "kind": int(JOINING)}
        values = {**given_, **fields}
        happened = Happened(CLOCKS_US[node] + true_us, event, values.pop("detail"), TERM, index, level=level, **values)
        self.records[node].append(happened)

    def step(self, true_us: int, index: int, level: int, took_us: dict[int, int]) -> int:
        """All are told of a step and acknowledge it; when the master has heard the last (true clock)."""
        self.entry(true_us, index, history.STEP_BEGUN, level, nodes=tuple(took_us))
        ends = []
        for node, own_us in took_us.items():
            told_us = true_us + LAG_US[node]
            self.at(node, told_us, index, history.STEP_TOLD, level)
            self.at(node, told_us + own_us, index, history.STEP_ACKNOWLEDGED, level)
            ends.append(told_us + own_us + LAG_US[node])
            if node:
                self.at(0, ends[-1], index, history.HEARD, level, nodes=(node,))
        return max(ends)

    def statements(self, *nodes: int) -> dict[int, Statement]:
        """What the nodes say, all asked at the true time of ten seconds."""
        return {node: Statement(CLOCKS_US[node] + 10_000_000, tuple(self.records[node])) for node in nodes}

    def tell(self, *nodes: int, transition: int = 64) -> Any:
        """The account from these nodes, after its way through JSON."""
        return json.loads(json.dumps(account(database(), transition, self.statements(*nodes))))


def a_join() -> World:
    """n2 joins at level 10, where n1 is slowest by its own clock and n2 by the master's, and at level 20."""
    world = World()
    world.entry(0, 1, history.OPENED)
    end_us = world.step(0, 1, 10, {0: 5_000, 1: 40_000, 2: 1_000})
    world.entry(end_us, 2, history.LEVEL_DONE, 10)
    end_us = world.step(end_us, 2, 20, {0: 5_000, 1: 400_000, 2: 1_000})
    world.entry(end_us, 3, history.DONE, 20)
    return world


def shape(told: Any) -> list[tuple[str, str, int | None]]:
    """Who did what at which level."""
    return [(row["node"], row["event"], row["level"]) for row in told["account"]]


def test_what_is_told_comes_before_what_is_acknowledged_and_that_before_the_entry_that_follows() -> None:
    rows = shape(a_join().tell(0, 1, 2))
    assert rows[0] == ("n0", history.OPENED, None)
    assert rows[-1] == ("n0", history.DONE, None)
    expected = []
    for level in (10, 20):
        if level == 20:
            expected.append(("entry", history.LEVEL_DONE, 10))
        expected += [("entry", history.STEP_BEGUN, level)]
        expected += [("all", "told", level)] * 3 + [("all", "acknowledged", level)] * 3
    assert [(event, level) for _, event, level in rows[1:-1]] == [(event, level) for _, event, level in expected]
    for event in ("told", "acknowledged"):
        for level in (10, 20):
            assert {node for node, *rest in rows if rest == [event, level]} == {"n0", "n1", "n2"}


def test_each_clock_is_aligned_at_the_opening_entry_and_durations_are_of_one_clock() -> None:
    told = a_join().tell(0, 1, 2)
    at = {(row["node"], row["event"], row["level"]): row for row in told["account"]}
    assert at["n0", history.OPENED, None]["time_ms"] == 0
    assert [at[node, "told", 10]["time_ms"] for node in ("n0", "n1", "n2")] == [0, 0, 0]
    assert [at[node, "acknowledged", 10]["after_ms"] for node in ("n0", "n1", "n2")] == [5, 40, 1]
    assert told["transition"]["took_ms"] == 181 + 400.6
    assert told["transition"]["age_ms"] == 10_000


def test_a_step_waited_for_whom_the_master_heard_last_whatever_the_others_clocks_say() -> None:
    first, second = a_join().tell(0, 1, 2)["steps"]
    assert (first["level"], first["waited_for"], first["waited_ms"], first["took_ms"]) == (10, "n2", 181, 181)
    assert (second["level"], second["waited_for"], second["waited_ms"]) == (20, "n1", 400.6)
    assert first["participants"] == ["n0", "n1", "n2"]
    assert first["missing"] == second["missing"] == []


def test_what_a_master_heard_stands_for_a_node_whose_record_is_gone() -> None:
    told = a_join().tell(0, 1)
    rows = [row for row in told["account"] if row["node"] == "n2"]
    assert [(row["event"], row["level"], row["recorded_by"]) for row in rows] == [
        ("told", 10, "n0"),
        ("acknowledged", 10, "n0"),
        ("told", 20, "n0"),
        ("acknowledged", 20, "n0"),
    ]
    assert [step["waited_for"] for step in told["steps"]] == ["n2", "n1"]


def test_without_the_masters_record_the_last_is_known_by_the_nodes_own() -> None:
    told = a_join().tell(1, 2)
    assert [step["waited_for"] for step in told["steps"]] == ["n1", "n1"]
    assert [step["missing"] for step in told["steps"]] == [["n0"], ["n0"]]
    assert told["transition"]["opened_by"] == "n0"


def test_a_step_at_work_has_no_end_and_names_who_has_not_acknowledged() -> None:
    world = World()
    world.entry(0, 1, history.OPENED)
    world.step(0, 1, 10, {0: 10, 1: 10})
    world.entry(5_000, 2, history.LEVEL_DONE, 10)
    world.entry(5_000, 2, history.STEP_BEGUN, 20, nodes=(0, 1))
    world.at(0, 5_000, 2, history.STEP_TOLD, 20)
    world.at(0, 5_100, 2, history.STEP_ACKNOWLEDGED, 20)
    told = world.tell(0, 1)
    assert told["transition"]["outcome"] == "at work"
    assert told["steps"][1]["took_ms"] is told["steps"][1]["waited_for"] is None
    assert told["steps"][1]["missing"] == ["n1"]


def test_who_missed_the_opening_is_aligned_by_the_first_entry_that_it_has_in_common() -> None:
    world = a_join()
    world.records[2] = [each for each in world.records[2] if each.index >= 2]
    told = world.tell(0, 1, 2)
    at = {(row["node"], row["event"], row["level"]): row for row in told["account"]}
    assert at["n2", "told", 20]["time_ms"] == 181  # when the master committed what told it
    assert at["n2", "told", 10]["recorded_by"] == "n0"


def test_without_the_opening_of_its_master_the_account_runs_on_the_clock_of_another() -> None:
    world = a_join()
    world.records[0] = [each for each in world.records[0] if each.index >= 2]
    told = world.tell(0, 1, 2)
    at = {(row["node"], row["event"], row["level"]): row for row in told["account"]}
    assert at["n0", history.OPENED, None]["time_ms"] == 0
    assert at["n0", "told", 20]["time_ms"] == at["n1", "told", 20]["time_ms"] == 181
    assert told["transition"]["age_ms"] == 9999.7  # by the time at which n1 was told


def test_who_has_no_entry_in_common_has_no_times_and_keeps_its_place() -> None:
    world = a_join()
    world.records[2] = [each for each in world.records[2] if not each.committed]
    told = world.tell(0, 1, 2)
    mine = [row for row in told["account"] if row["node"] == "n2"]
    assert [(row["time_ms"], row["event"], row["level"]) for row in mine] == [
        (None, "told", 10),
        (None, "acknowledged", 10),
        (None, "told", 20),
        (None, "acknowledged", 20),
    ]
    assert [row["after_ms"] for row in mine if row["event"] == "acknowledged"] == [1, 1]


@settings(max_examples=60, deadline=None)
@given(
    clocks=st.lists(st.integers(0, 1 << 50), min_size=3, max_size=3),
    order=st.permutations([0, 1, 2]),
)
def test_the_account_is_the_same_whoever_gathers_it_and_whatever_the_clocks_say(
    clocks: list[int], order: list[int]
) -> None:
    world = a_join()
    moved = {}
    for node in order:
        before = world.statements(node)[node]
        shift = clocks[node]
        happened = tuple(
            Happened(*(each.at_us + shift, *[getattr(each, key) for key in each.__struct_fields__[1:]]))
            for each in before.happened
        )
        moved[node] = Statement(before.now_us + shift, happened)
    assert account(database(), 64, moved) == account(database(), 64, world.statements(0, 1, 2))


def test_what_was_begun_under_a_replaced_transition_is_told_again() -> None:
    world = a_join()
    world.records = {0: [], 1: [], 2: []}
    world.entry(0, 1, history.OPENED, seen_by=(0, 1))
    world.entry(0, 1, history.STEP_BEGUN, 10, nodes=(0, 1), seen_by=(0, 1))
    for node in (0, 1):
        world.at(node, 10, 1, history.STEP_TOLD, 10)
    world.at(1, 20, 1, history.STEP_ACKNOWLEDGED, 10)
    fields: dict[str, Any] = {"seen_by": (0, 1)}
    world.entry(900, 2, history.REPLACED, 10, successor=130, detail="n2 joining: by forced-leaving", **fields)
    fields |= {"transition": 130, "kind": int(FORCED)}
    world.entry(900, 2, history.FORCED_OUT, detail="n2 on proof: lease expired", **fields)
    world.entry(900, 2, history.OPENED, detail="n2 forced-leaving: no beat for 694 ms", **fields)
    world.entry(900, 2, history.STEP_BEGUN, 10, nodes=(0, 1), **fields)
    for node in (0, 1):
        world.at(node, 1_000, 2, history.STEP_TOLD, 10, transition=130, kind=int(FORCED))
    old, new = world.tell(0, 1), world.tell(0, 1, transition=130)
    assert (old["transition"]["outcome"], old["transition"]["replaced_by"]) == ("replaced", 130)
    assert (new["transition"]["replaces"], new["transition"]["proof"]) == (64, "lease expired")
    assert new["transition"]["cause"] == "no beat for 694 ms"
    told = {row["node"]: row["detail"] for row in new["account"] if row["event"] == "told"}
    assert "re-notification" in told["n0"]
    assert told["n1"] == ""
    assert [row["event"] for row in new["account"]][:2] == [history.REPLACED, history.FORCED_OUT]


def test_a_step_told_again_by_a_restarted_daemon_says_so() -> None:
    world = a_join()
    world.at(1, 20_000, 1, history.STEP_TOLD, 10)
    details = [
        row["detail"] for row in world.tell(0, 1, 2)["account"] if row["event"] == "told" and row["node"] == "n1"
    ]
    assert ["restarted" in detail for detail in details] == [False, True, False]


def test_the_list_has_the_newest_first_with_duration_outcome_and_age() -> None:
    world = a_join()
    world.entry(2_000_000, 9, history.OPENED, transition=578, detail="n2 joining: again")
    first, second = overview(database(), world.statements(0, 1, 2))
    assert (first["id"], first["outcome"], first["took_ms"], first["age_ms"]) == (578, "at work", None, 8_000)
    assert (second["id"], second["node"], second["kind"], second["outcome"]) == (64, "n2", "joining", "done")
    assert second["took_ms"] == 581.6
    assert account(database(), 99, world.statements(0, 1, 2)) is None


# ---- what a node records ---------------------------------------------------------------------------------------------


def narrated(record: TransitionRecord, at: Database, *changes: Any) -> None:
    """Commit an entry and record its events."""
    entry = Entry(at.index + 1, TERM, "", changes)
    for trace in history.narrate(at, entry):
        record.add(happened(trace, at.index + 1))
    apply(at, entry)


def happened(trace: Trace, index: int) -> Happened:
    """As the flight recorder keeps it."""
    return placed(1, trace, TERM, index)


def test_a_forced_leave_keeps_the_evidence_about_its_node_and_what_it_replaces() -> None:
    record, at = TransitionRecord(), database()
    join = Transition(64, 2, 7, JOINING, (10,), participants=(0, 1, 2), cause="it asked to join")
    narrated(record, at, Member(2, NodeState.JOINING, 7), join)
    for about in (1, 2):
        record.add(happened(Trace("proof of death", f"n{about}: lease expired", about=about), 1))
    member = Member(2, NodeState.FORCED_LEAVING, 7, last_proof=Proof(ProofKind.LEASE_EXPIRED, 2, 7, "silent"))
    forced = Transition(130, 2, 7, FORCED, (10,), participants=(0, 1), cause="silent")
    narrated(record, at, Forget("transition", "64"), member, forced)
    record.add(happened(Trace("link lost", "n2: late", about=2), 2))
    found, omitted = record.of(130)
    assert omitted == 0
    assert [each.event for each in found if each.transition == 64] == [
        history.OPENED,
        history.STEP_BEGUN,
        history.REPLACED,
    ]
    assert [(each.event, each.about) for each in found if each.transition != 64] == [
        ("proof of death", 2),
        (history.FORCED_OUT, 2),
        (history.OPENED, 2),
        (history.STEP_BEGUN, 2),
        ("link lost", 2),
    ]
    assert [(each.transition, each.event) for each in record.milestones()] == [
        (64, history.OPENED),
        (64, history.REPLACED),
        (130, history.OPENED),
    ]


def test_a_parked_join_ends_its_level_when_it_parks_and_goes_on_when_its_node_has_registered() -> None:
    at = database()
    join = Transition(64, 2, 7, JOINING, (10,), participants=(0, 2))
    parked = Transition(64, 2, 7, JOINING, (10,), participants=(), awaits=40)
    resumed = Transition(64, 2, 7, JOINING, (10, 40), 1, participants=(0, 2))
    events = []
    for change in (join, parked, resumed, Forget("transition", "64")):
        entry = Entry(at.index + 1, TERM, "", (change,))
        events.append([(trace.event, trace.level, trace.nodes) for trace in history.narrate(at, entry)])
        apply(at, entry)
    assert events == [
        [(history.OPENED, 10, ()), (history.STEP_BEGUN, 10, (0, 2))],
        [(history.LEVEL_DONE, 10, ()), (history.PARKED, 10, ())],
        [(history.RESUMED, 40, ()), (history.STEP_BEGUN, 40, (0, 2))],
        [(history.DONE, 40, ())],
    ]


def test_a_replica_that_is_replaced_as_a_whole_tells_which_transitions_it_found_and_which_are_gone() -> None:
    before, after = database(), database()
    apply(before, Entry(1, TERM, "", (Transition(64, 2, 7, JOINING, (10,)), Transition(65, 1, 7, JOINING, (10,)))))
    apply(
        after,
        Entry(1, TERM, "", (Transition(65, 1, 7, JOINING, (10,), barrier=1), Transition(66, 0, 7, FORCED, (10,)))),
    )
    found = [(trace.event, trace.transition, trace.index) for trace in history.skipped(before, after)]
    assert found == [(history.FOUND, 65, 0), (history.FOUND, 66, 0), (history.GONE, 64, 0)]
    assert history.skipped(after, after) == []


def test_every_node_records_each_step_once_and_the_master_hears_each_acknowledgement_once() -> None:
    cluster = joined_cluster(3)
    traces = [(item.node, item.effect) for item in cluster.history if isinstance(item.effect, Trace)]
    done = {trace.transition for _, trace in traces if trace.event == history.DONE}
    assert len(done) == 3
    (master,) = cluster.masters()
    for identity in done:
        mine = [(node, trace) for node, trace in traces if trace.transition == identity]
        (begun,) = {trace.nodes for _, trace in mine if trace.event == history.STEP_BEGUN}
        for event in (history.STEP_TOLD, history.STEP_ACKNOWLEDGED):
            assert sorted(node for node, trace in mine if trace.event == event) == sorted(begun)
        heard = [node for _, trace in mine if trace.event == history.HEARD for node in trace.nodes]
        assert sorted(heard) == sorted(set(begun) - {master})


def event_of(transition: int, event: str = history.STEP_TOLD) -> Happened:
    """Something about a transition of n0."""
    return Happened(1, event, "x" * 5000, TERM, 1, transition=transition, level=10, about=0, kind=int(JOINING))


def test_a_record_is_bounded_in_transitions_in_events_and_in_words() -> None:
    record = TransitionRecord()
    for transition in range(1, 2 * MAXIMUM_TRANSITIONS + 1):
        record.add(event_of(transition, history.OPENED))
    assert [each.transition for each in record.milestones()] == list(
        range(MAXIMUM_TRANSITIONS + 1, 2 * MAXIMUM_TRANSITIONS + 1)
    )
    for transition in range(1000, 1000 + 2 * MAXIMUM_EVENTS // MAXIMUM_EVENTS_OF_ONE):
        for _ in range(MAXIMUM_EVENTS_OF_ONE + 10):
            record.add(event_of(transition))
        record.add(event_of(transition, history.DONE))
    kept = [each.transition for each in record.milestones() if each.event == history.DONE]
    found, omitted = record.of(kept[-1])
    assert len(kept) <= MAXIMUM_EVENTS // MAXIMUM_EVENTS_OF_ONE
    assert (len(found), omitted, found[-1].event) == (MAXIMUM_EVENTS_OF_ONE, 11, history.DONE)
    assert max(len(each.detail) for each in found) <= 1000
    assert record.of(1) == ((), 0)


# ---- asking the others -----------------------------------------------------------------------------------------------


class Asked:
    """n0's history in a cluster of three, whose messages go where a test sends them."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Message]] = []
        self.asked_all = asyncio.Event()
        self.node = joined_cluster(3).core(0)
        self.record = TransitionRecord()
        self.history = TransitionHistory(self.node, self.record, self._send, lambda: 77)

    def _send(self, node: int, message: Message) -> None:
        self.sent.append((node, decode_message(encode_message(message))))
        if len(self.sent) == 2:
            self.asked_all.set()


def test_who_does_not_answer_within_the_bound_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transition_history, "GATHER_S", 0.05)
    asked = Asked()
    asked.record.add(event_of(64, history.OPENED))

    async def ask() -> Any:
        task = asyncio.ensure_future(asked.history.answer({"id": 64}))
        await asked.asked_all.wait()
        (first, second) = asked.sent
        assert {first[0], second[0]} == {1, 2}
        assert isinstance(first[1], HistoryRequest)
        assert first[1].transition == 64
        for sender, identity in ((1, first[1].identity), (1, first[1].identity), (2, "of somebody else")):
            assert asked.history.takes(sender, HistoryAnswer(identity, 1, (event_of(64, history.DONE),)))
        return await task

    answer = asyncio.run(ask())
    assert [each["node"] for each in answer["unanswered"]] == ["n2"]
    assert [row["event"] for row in answer["account"]].count(history.DONE) == 1


def test_the_flight_recorder_keeps_what_belongs_to_a_transition_and_logs_all_but_the_quiet() -> None:
    lines: list[str] = []

    def write(line: str) -> bool:
        lines.append(line)
        return True

    recorder = FlightRecorder("n0", write)
    for trace in (
        Trace(history.OPENED, "n1 joining: it asked", 64, about=1, kind=int(JOINING), index=3),
        Trace(history.HEARD, "n1", 64, 10, 0, 1, int(JOINING), nodes=(2,), quiet=True),
        Trace("service starting", "web on n0"),
    ):
        recorder.trace(9, trace, TERM, 4)
    kept, _ = recorder.transitions.of(64)
    assert [(each.event, each.index, each.committed) for each in kept] == [
        (history.OPENED, 3, True),
        (history.HEARD, 4, False),
    ]
    assert [each["event"] for each in recorder.since(0)] == [history.OPENED, "service starting"]
    assert ["transition=64" in line for line in lines] == [True, False]


def test_a_node_answers_from_its_record_at_once_and_leaves_other_messages_alone() -> None:
    asked = Asked()
    asked.record.add(event_of(64, history.OPENED))
    assert asked.history.takes(2, HistoryRequest("a", 64))
    assert asked.history.takes(2, HistoryRequest("b", 65))
    ((to, known), (_, unknown)) = asked.sent
    assert to == 2
    assert isinstance(known, HistoryAnswer)
    assert isinstance(unknown, HistoryAnswer)
    assert (known.identity, known.now_us, len(known.happened)) == ("a", 77, 1)
    assert unknown.happened == ()
    assert not asked.history.takes(2, Abdicated(TERM))


@pytest.mark.parametrize("arguments", [{"id": "64"}, {"id": True}, {"id": 0}, {"id": -1}, {"id": 1 << 70}, {"to": 1}])
def test_a_query_with_other_arguments_is_refused_with_what_is_allowed(arguments: dict[str, Any]) -> None:
    with pytest.raises(ControlRefused) as refused:
        asyncio.run(Asked().history.answer(arguments))
    assert "id" in refused.value.what + refused.value.next_step


# ---- real nodes ------------------------------------------------------------------------------------------------------


def work(subsystem: Subsystem) -> None:
    """Acknowledge whatever comes, until the registration ends."""
    try:
        for told in subsystem:
            told.acknowledge()
    except ClientError:
        pass  # its node has ended


def newest(cluster: DevCluster, node: str, kind: str, known: int = 0) -> Any:
    """The newest transition of this kind of n2, once it is over, if it is another one than `known`."""
    found = cluster.json("timeline", "--node", node)["history"]
    of_kind = (each for each in found if (each["kind"], each["node"], each["outcome"]) == (kind, "n2", "done"))
    last = next(of_kind, None)
    return None if last is None or last["id"] == known else last


def check(cluster: DevCluster, kind: str, asked: tuple[str, ...], steps: list[tuple[int, int]], known: int = 0) -> Any:
    """Ask several nodes for the account; it is the same, complete and in order. It."""
    identity = str(wait(f"the {kind} of n2", lambda: newest(cluster, asked[0], kind, known))["id"])

    def agreed() -> Any:
        """The account once all tell the same: a node that is ending may still have answered one of them."""
        accounts = [cluster.json("timeline", identity, "--node", node) for node in asked]
        first = accounts[0]
        same = all((each["account"], each["steps"]) == (first["account"], first["steps"]) for each in accounts)
        return first if same else None

    told = wait(f"one account of the {kind} of n2 from {asked}", agreed)
    rows = [(row["event"], row["level"], row["barrier"], row["node"]) for row in told["account"]]
    assert [(step["level"], step["barrier"]) for step in told["steps"]] == steps
    last = -1
    for step in told["steps"]:
        place = step["level"], step["barrier"]
        assert step["missing"] == []
        assert step["waited_for"] in step["participants"]
        begun = next(at for at, row in enumerate(rows) if row[:3] == (history.STEP_BEGUN, *place))
        spans = []
        for event in ("told", "acknowledged"):
            at = [at for at, row in enumerate(rows) if row[:3] == (event, *place)]
            assert sorted(rows[each][3] for each in at) == step["participants"]
            spans.append((min(at), max(at)))
        assert last < begun < spans[0][0] <= spans[0][1] < spans[1][0]
        last = spans[1][1]
    assert last < next(at for at, row in enumerate(rows) if row[0] == history.DONE)
    return told


def test_join_leave_and_death_on_real_nodes_are_told_alike_by_every_node(dev_cluster: DevCluster) -> None:
    dev_cluster.up(3)
    programs: list[Subsystem] = []
    threads: list[threading.Thread] = []

    def begin(node: str) -> None:
        """A program of level 60 on that node."""
        barriers = Barriers(joining=2, forced_leaving=2)
        programs.append(register("proxy", 60, directory=dev_cluster.directory, node=node, barriers=barriers))
        threads.append(threading.Thread(target=work, args=(programs[-1],)))
        threads[-1].start()

    everywhere = ("n0", "n1", "n2")
    try:
        first = wait("the join of n2", lambda: newest(dev_cluster, "n0", "joining"))["id"]
        for node in everywhere:
            begin(node)
        # a level is told of the nodes that are in it, and a late join to its level alone (P3.14)
        check(dev_cluster, "joining", everywhere, [(60, 0), (60, 1)], known=first)
        dev_cluster.succeed("dev", "leave", "n2")  # returns when its last process has ended: nothing of it answers
        left = check(dev_cluster, "leaving", ("n0", "n1"), [(60, 0), (40, 0)])
        assert all(step["participants"] == ["n0", "n1", "n2"] for step in left["steps"])
        # what n2 committed, if it was the master, others have from the entries themselves
        gone = [row for row in left["account"] if row["node"] == "n2" and row["event"] in ("told", "acknowledged")]
        assert {row["recorded_by"] for row in gone} <= {"n0", "n1"}
        assert [each["node"] for each in left["unanswered"]] == ["n2"]
        before = newest(dev_cluster, "n0", "joining")["id"]
        dev_cluster.succeed("dev", "boot", "n2")
        joined = check(dev_cluster, "joining", everywhere, [(40, 0)], known=before)
        assert joined["steps"][0]["participants"] == ["n0", "n1", "n2"]
        assert all(row["recorded_by"] is None for row in joined["account"])
        begin("n2")
        check(dev_cluster, "joining", everywhere, [(60, 0), (60, 1)], known=joined["transition"]["id"])
        dev_cluster.succeed("dev", "kill", "n2")
        forced = check(dev_cluster, "forced-leaving", ("n0", "n1"), [(40, 0), (60, 0), (60, 1)])
        assert forced["transition"]["proof"] == "the kernel's word"  # all run on one kernel (P7.13)
        assert forced["account"][0]["event"] in ("link lost", "proof of death")
        page = dev_cluster.succeed("timeline", "--last")
        assert all(word in page for word in ("n2 forced-leaving", "the kernel's word", "acknowledged", "WAITED FOR"))
        assert str(forced["transition"]["id"]) in dev_cluster.succeed("timeline")
        unknown = dev_cluster.run("timeline", "1")
        assert unknown.returncode == 1
        assert f"{forced['transition']['id']} (n2 forced-leaving)" in unknown.stderr
    finally:
        for program in programs:
            with contextlib.suppress(ClientError):  # its node may be gone
                program.deregister()
        for thread in threads:
            thread.join(DEADLINE_S)
