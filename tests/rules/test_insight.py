"""Whoever asks a node changes nothing in it, and between two steps a node is whole (`Node.invariant`)."""

import copy
import inspect
import itertools
from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import Any

import msgspec
import pytest

from core_cluster import LOCKS, CoreCluster
from muster.core.decisions.term import InFlight, MasterTerm
from muster.core.node import insight
from muster.core.node.node import Node
from muster.core.outbox import Outbox
from muster.core.replica.ages import Ages
from muster.core.room import Room
from muster.core.this_node import ThisNode
from muster.records.database import Database, Entry
from muster.records.levels import EVENT_MANAGER_LEVEL
from muster.records.nodes import Cluster
from muster.records.services import ApplyServices, Definition, Rest, Service, SetMaintenance

QUERIES = {
    name: found
    for name, found in vars(insight).items()
    if inspect.isfunction(found) and found.__module__ == insight.__name__ and not name.startswith("_")
}
ARGUMENTS = {int: (0, 1, 2, LOCKS.number, EVENT_MANAGER_LEVEL.number, 1 << 40), str: ("web", "stuck", "nobody")}
CACHES = ("_sizes", "_definitions")  # of `Room`: what it has measured already


def frozen(value: Any) -> Any:
    """All that an object holds, as a value that can be compared."""
    match value:
        case None | bool() | int() | float() | str() | bytes() | Enum():
            return value
        case dict():
            return tuple((frozen(key), frozen(each)) for key, each in value.items())
        case set() | frozenset():
            return frozenset(frozen(each) for each in value)
        case list() | tuple() | deque():
            return tuple(frozen(each) for each in value)
        case msgspec.Struct():
            return (type(value).__name__, *(frozen(getattr(value, field)) for field in value.__struct_fields__))
        case itertools.count():
            return repr(value)
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    held = {name: getattr(value, name) for name in (*slots, *getattr(value, "__dict__", {}))}
    kept = {name: each for name, each in held.items() if not (isinstance(value, Room) and name in CACHES)}
    return (type(value).__name__, frozen(kept))


def asked(node: Node) -> Iterator[str]:
    """Ask everything that can be asked; the name of each query after it was answered."""
    for name, query in QUERIES.items():
        wanted = list(inspect.signature(query).parameters.values())[1:]
        for given in itertools.product(*(ARGUMENTS[each.annotation] for each in wanted)):
            answer = query(node, *given)
            if callable(answer):
                for service in ARGUMENTS[str]:
                    answer(service)
            yield f"{name}{given}"


@pytest.fixture(scope="module")
def cluster() -> CoreCluster:
    """n0 leads, n1 keeps n2's join waiting; a service does not start, another one is in maintenance."""
    found = CoreCluster(3)
    for node in (0, 1):
        found.boot(node, levels=(LOCKS,))
        found.until_joined(node)
    found.outcome = lambda _node, command: None if command.service == "stuck" else True
    web, stuck = (Definition(name, ("n1",), start_command=("/s",)) for name in ("web", "stuck"))
    assert not found.do(0, ApplyServices((web, stuck))).refused
    assert not found.do(0, SetMaintenance("service", "web", 60_000)).refused
    found.acknowledges = lambda node, notification: (node, notification.node) != (1, 2)
    found.boot(2, levels=(LOCKS,))
    found.until("n2's join waits", lambda: found.core(0).database.transitions)
    found.run(500)
    return found


def node_of(cluster: CoreCluster, role: str) -> Node:
    if role in ("master", "member", "joining"):
        return cluster.core({"master": 0, "member": 1, "joining": 2}[role])
    booted = cluster.core(1)
    node = Node(booted.setup, copy.deepcopy(booted.database), cluster.strip(), (), cluster.now_us)
    if role == "started":
        node.start(cluster.now_us)
    return node


@pytest.mark.parametrize("role", ["master", "member", "joining", "started", "not started"])
def test_p5_1_a_query_changes_nothing_in_the_node_that_is_asked(cluster: CoreCluster, role: str) -> None:
    node = node_of(cluster, role)
    assert node.is_master == (role == "master") and node.replica.confirmed == ("started" not in role)
    node.now_us += 5000  # time has passed since its last step
    before = frozen(copy.deepcopy(node))
    assert before == frozen(node)
    queries = 0
    for query in asked(node):
        assert frozen(node) == before, query
        queries += 1
    assert queries >= len(QUERIES) >= 15


def test_p2_6_a_node_is_whole_between_two_steps_and_says_what_is_not(cluster: CoreCluster) -> None:
    for role in ("master", "member", "joining", "started"):
        assert not node_of(cluster, role).invariant(), role
    member = copy.deepcopy(node_of(cluster, "member"))
    member.leadership.term = MasterTerm(
        ThisNode(member.me, "n1", member.incarnation, member.setup.profile), member.replica.accepted, Outbox({})
    )
    assert "term" in member.invariant()
    master = copy.deepcopy(node_of(cluster, "master"))
    master.replica.confirmed = False
    assert "confirmed" in master.invariant()
    master = copy.deepcopy(node_of(cluster, "master"))
    assert master.leading is not None
    master.leading.in_flight = InFlight(Entry(1, master.replica.accepted, "", ()), 1, None, [])
    assert "in flight" in master.invariant()
    master.leadership.term = None
    assert "term" in master.invariant()


def test_p6_36_an_entry_that_a_service_rests_from_is_counted_and_a_rule_counts_whatever_it_asks_for() -> None:
    database = Database(Cluster("test", "0" * 32, "fast", ""), 20)
    database.services["web"] = Service(Definition("web"), 1, rest=Rest(7, 1000))
    ages = Ages()
    ages.adopted(database, ((7, 400),), 5_000_000)
    assert ages.age_ms(7, 5_100_000) == 500
    assert [ages.age_us(9, now_us) for now_us in (6_000_000, 7_000_000)] == [0, 0]  # a query counts nothing
    assert [ages.counted_us(9, now_us) for now_us in (8_000_000, 9_000_000)] == [0, 1_000_000]
