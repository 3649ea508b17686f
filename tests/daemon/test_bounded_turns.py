"""One turn of a daemon's loop is bounded, and so is what one entry or message holds (P8.13, P9.5, P5.2)."""

import asyncio
import json
import socket
import time
from typing import Any

import pytest

from core_cluster import joined_cluster
from muster.core.decisions.decide import decide
from muster.core.decisions.followers import RECENT_BYTES, REPEATED_BYTES, Followers
from muster.core.draft import MAXIMUM_CHANGES, Facts
from muster.core.entries import apply
from muster.core.replica import reporting
from muster.core.replica.ages import Ages
from muster.core.room import Room
from muster.core.this_node import ThisNode
from muster.daemon.metrics.measures import Measures
from muster.daemon.shell.turns import TimedSelector, run_timed
from muster.drivers.runner_client import RunnerClient
from muster.records.database import Database, Entry, encode_entry, initial_database
from muster.records.levels import EVENT_MANAGER_LEVEL, Level, NodeState
from muster.records.members import Member
from muster.records.messages import Append, Report, Request, Snapshot
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import ApplyServices, CommandState, Definition, Service, ServiceState
from muster.records.terms import Term
from muster.records.timing import FAST
from muster.records.versions import HIGHEST, Software

TERM = Term(1, 0)


def database(nodes: int, name: str = "n") -> Database:
    configs = tuple(NodeConfig(node, f"{name}{node}", (f"10.0.0.{node}:1",), "c" * 800) for node in range(nodes))
    return initial_database(Cluster("test", "0" * 32, "fast", "a" * 800, active_version=HIGHEST), configs)


def facts_of(made: Database, room: Room, reports: dict[int, Report]) -> Facts:
    return Facts(0, 0, reports, lambda _n, _i: None, lambda _n: True, {}, {}, services_open=True, room=room)


def commit(made: Database, facts: Facts, requests: list[Request]) -> Entry | None:
    """One round, applied; its entry."""
    draft, _ = decide(made, facts, requests)
    facts.after = draft.stopped_at
    entry = Entry(draft.index, TERM, "; ".join(draft.causes)[:1500], draft.changes)
    if not draft.changes:
        return None
    apply(made, entry)
    return entry


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_p8_13_the_longest_turn_of_the_loop_is_measured() -> None:
    measures = Measures()

    async def serve(turns: TimedSelector) -> None:
        turns.took = measures.turned
        asyncio.get_running_loop().call_soon(time.sleep, 0.06)
        await asyncio.sleep(0.001)
        await asyncio.sleep(0)

    run_timed(serve)
    assert measures.turns.longest_s >= 0.06
    assert measures.document()["turns"]["longest_ms"] >= 60


def test_p8_13_what_the_runner_tells_is_taken_in_until_the_turn_has_taken_its_time() -> None:
    taken: list[CommandState] = []

    async def serve() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def finished(command: CommandState) -> None:
            taken.append(command)
            time.sleep(0.03)

        client = RunnerClient(ours, finished)
        result = {"say": "finished", "generation": 1, "action": "start", "succeeded": True, "detail": ""}
        for number in range(20):
            theirs.send(json.dumps({**result, "service": f"s{number}"}).encode())
        client._readable()
        assert len(taken) == 1
        client._readable()
        assert len(taken) == 2
        client.close()
        theirs.close()

    asyncio.run(serve())


# ---- pauses ----------------------------------------------------------------------------------------------------------


def flood(services: int, ends: int) -> Any:
    """A follower and a master with so many services, on which so many commands end, one a millisecond."""
    cluster = joined_cluster(2)
    cluster.outcome = lambda _node, _command: None
    definitions = [Definition(f"s{number:04}", start_command=("/bin/start",)) for number in range(services)]
    cluster.do(0, ApplyServices(tuple(definitions)))
    cluster.run(2000)
    starting = [each for each in cluster.database.services.values() if each.state is ServiceState.STARTING]
    assert len(starting) == services
    before = len(cluster.sent(Report, 1)), cluster.database.index
    for each in [each for each in starting if each.node == 1][:ends]:
        cluster.finish(1, each.name)
        cluster.run(1)
    cluster.run(1000)
    registered = [each for each in cluster.database.services.values() if each.state is ServiceState.REGISTERED]
    assert len(registered) == ends
    return len(cluster.sent(Report, 1)) - before[0], cluster.database.index - before[1]


def test_p8_13_reports_and_rounds_get_fewer_where_each_looks_at_many_services(monkeypatch: pytest.MonkeyPatch) -> None:
    few = flood(300, 60)
    monkeypatch.setattr(reporting, "FEW", 0)
    monkeypatch.setattr(reporting, "ROUND_PAUSE_US", 100)
    monkeypatch.setattr(reporting, "SERVICE_PAUSE_US", 50)
    many = flood(300, 60)
    assert few[0] >= 60_000 // reporting.REPORT_PAUSE_US // 2
    assert many[0] <= few[0] // 2  # those that repeat it with the heartbeat included
    assert many[1] <= 60_000 // (300 * 100) + 2 < few[1]


def test_p8_13_rounds_about_reports_are_as_far_apart_as_the_services_are_many() -> None:
    few, many = database(1), database(1)
    for made, count in ((few, reporting.FEW), (many, reporting.FEW + 100)):
        for number in range(count):
            definition = Definition(f"s{number}", start_command=("/bin/true",))
            made.services[definition.name] = Service(definition, number, ServiceState.DEREGISTERED)
    told = reporting.Reporting(ThisNode(0, "n0", 5, FAST), Software())
    told.round_us = 1000
    due_us = 1000 + 100 * reporting.ROUND_PAUSE_US
    assert told.decides_now(few, 1000)
    assert not told.decides_now(many, due_us - 1)
    assert not told.count_is_due(due_us - 1)
    assert told.decides_now(many, due_us) and told.count_is_due(due_us), "what was put off is decided then"


# ---- entries ---------------------------------------------------------------------------------------------------------


def test_p8_13_what_follows_from_an_operation_on_thousands_is_cut_by_number() -> None:
    room, made = Room(64 << 20), database(3)
    for node in range(3):
        made.members[node] = Member(node, NodeState.JOINED, 5, (EVENT_MANAGER_LEVEL,), 40)
    facts = facts_of(made, room, {n: Report(TERM, made.index, 5, "", (EVENT_MANAGER_LEVEL,)) for n in range(3)})
    asked = ApplyServices(tuple(Definition(f"s{n}", start_command=("/bin/true",)) for n in range(5000)))
    first = commit(made, facts, [Request("x", asked)])
    assert first is not None and len(made.services) == 5000, "the operation is one entry"
    assert {change.state for change in first.changes if isinstance(change, Service)} == {ServiceState.DEREGISTERED}
    sizes = []
    while (entry := commit(made, facts, [])) is not None:
        sizes.append(sum(isinstance(change, Service) for change in entry.changes))
        assert len(sizes) < 10
    assert sum(sizes) == 5000 and max(sizes) <= MAXIMUM_CHANGES and len(sizes) == 3


def test_p9_5_a_boot_of_many_nodes_at_once_is_cut_into_entries_that_fit() -> None:
    room, made = Room(128 << 10), database(32, "node-with-a-name-that-is-as-long-as-names-may-be-for-a-node-")
    levels = tuple(Level(number, "subsystem-" + "x" * 40 + str(number)) for number in range(10, 19))
    levels = (*levels, EVENT_MANAGER_LEVEL)
    reports = {node: Report(TERM, made.index, 7, "join", levels) for node in made.nodes}
    facts = facts_of(made, room, reports)
    entries = 0
    while any(made.member(node).state is NodeState.INACTIVE for node in made.nodes):
        entry = commit(made, facts, [])
        assert entry is not None, "some wait, and nothing is done about it"
        assert len(encode_entry(entry)) <= room.capacity.entry
        entries += 1
        assert entries <= 32
    assert entries > 1
    assert {member.state for member in made.members.values()} == {NodeState.JOINING}


def test_p9_5_levels_that_come_on_many_nodes_at_once_are_cut_into_entries_that_fit() -> None:
    room, made = Room(128 << 10), database(32)
    for node in made.nodes:
        made.members[node] = Member(node, NodeState.JOINED, 7, (EVENT_MANAGER_LEVEL,), 40, by_level=True, inside=(40,))
    levels = tuple(Level(number, "y" * 60 + str(number)) for number in range(1, 30))
    reports = {node: Report(TERM, made.index, 7, "", (*levels, EVENT_MANAGER_LEVEL)) for node in made.nodes}
    facts, entries = facts_of(made, room, reports), 0
    facts.entry_bytes = 8000  # a journal that refuses larger ones
    while any(len(member.levels) == 1 for member in made.members.values()):
        entry = commit(made, facts, [])
        assert entry is not None
        assert len(encode_entry(entry)) <= facts.entry_bytes
        entries += 1
        assert entries <= 64
    assert entries > 1


# ---- followers -------------------------------------------------------------------------------------------------------


def entry_of(index: int) -> Entry:
    return Entry(index, TERM, f"entry {index}", ())


def test_p5_2_what_a_node_has_missed_is_repeated_in_messages_of_bounded_length() -> None:
    followers, made = Followers(TERM, FAST), database(2)
    followers.reported(1, Report(TERM, 0, 5, "", ()))
    for index in range(1, 7):
        followers.committed(entry_of(index), REPEATED_BYTES * 2 // 5, 0)
    followers.committed(entry_of(7), 3 * REPEATED_BYTES, 0)
    made.index, now_us, got = 7, 0, []
    while followers._index[1] < 7:
        now_us += 1_000_000
        message = followers.repeat(1, made, Ages(), now_us)
        assert isinstance(message, Append)
        got.append([entry.index for entry in message.entries])
        followers.reported(1, Report(TERM, got[-1][-1], 5, "", (), sent_us=now_us))
    assert got == [[1, 2], [3, 4], [5, 6], [7]]


def test_p5_2_a_master_keeps_no_more_entries_than_so_many_bytes() -> None:
    followers, made = Followers(TERM, FAST), database(2)
    followers.reported(1, Report(TERM, 0, 5, "", ()))
    for index in range(1, 5):
        followers.committed(entry_of(index), RECENT_BYTES // 3 + 1, 0)
    made.index = 4
    assert isinstance(followers.repeat(1, made, Ages(), 1_000_000), Snapshot)
    assert len(followers._recent) == 2
    followers.committed(entry_of(5), 2 * RECENT_BYTES, 0)
    assert [entry.index for entry, _ in followers._recent] == [5]
