"""What a node answers: the same facts under stable keys and in the words of SPEC 3.1 and 6.7 (SPEC 8.1)."""

import json
from typing import Any

import pytest

from muster.core.entries import apply
from muster.core.needs.machine import Told
from muster.core.needs.need import Need
from muster.daemon.socket.catalogue import answer
from muster.daemon.socket.queries import NodeView
from muster.daemon.socket.why_node import why_node
from muster.records.database import Change, Database, Entry, initial_database
from muster.records.levels import EVENT_MANAGER_LEVEL, MEMBERSHIP_LEVEL, NodeState, TransitionKind
from muster.records.members import Eviction, Member, Proof
from muster.records.nodes import Cluster, NodeConfig
from muster.records.refusal import ControlRefused
from muster.records.registers import ProofKind
from muster.records.services import Definition, Ended, Service, ServiceState
from muster.records.terms import Term
from muster.records.transitions import Transition

LEVELS = (MEMBERSHIP_LEVEL, EVENT_MANAGER_LEVEL)


def database_with(*changes: Change) -> Database:
    """Three nodes n0, n1, n2, and one committed entry with `changes`."""
    nodes = tuple(NodeConfig(number, f"n{number}", (f"10.0.0.{number}:7700",), "PEM") for number in range(3))
    database = initial_database(Cluster("test", "ab" * 16, "fast", "PEM"), nodes)
    apply(database, Entry(1, Term(12, 0), "test", changes))
    return database


def view(**known: Any) -> NodeView:
    """What n0, master of term 12.0, sees."""
    given = {"node": 0, "incarnation": 7, "master": 0, "term": Term(12, 0), "links": frozenset({1})}
    return NodeView(**{**given, "live": frozenset({0, 1}), **known})


def ask(query: str, database: Database, seen: NodeView | None = None, **arguments: str) -> Any:
    """The answer after its way through JSON."""
    return json.loads(json.dumps(answer(query, dict(arguments), database, seen or view())))


def test_the_status_names_master_term_and_the_index_that_it_reflects() -> None:
    status = ask("status", database_with(Member(0, NodeState.JOINED, 7)))
    assert (status["cluster"], status["master"], status["term"], status["term_node"]) == ("test", "n0", 12, "n0")
    assert (status["index"], status["node"], status["node_state"]) == (1, "n0", "joined")
    assert status["cluster_identity"] == "ab" * 16


def test_without_a_master_the_status_says_so() -> None:
    status = ask("status", database_with(), NodeView(0, 7))
    assert status["master"] is None
    assert status["term_node"] is None
    assert status["node_state"] == "inactive"


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (NodeState.INACTIVE, "inactive"),
        (NodeState.JOINING, "joining"),
        (NodeState.JOINED, "joined"),
        (NodeState.LEAVING, "leaving"),
        (NodeState.FORCED_LEAVING, "forced-leaving"),
    ],
)
def test_node_states_have_the_words_of_the_specification(state: NodeState, word: str) -> None:
    nodes = ask("status", database_with(Member(1, state, 9)))["nodes"]
    assert nodes["n1"]["state"] == word
    assert nodes["n1"]["incarnation"] == 9
    assert nodes["n2"] == {**nodes["n2"], "state": "inactive", "incarnation": 0}


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (ServiceState.STARTING, "starting"),
        (ServiceState.REGISTERED, "registered"),
        (ServiceState.STOPPING, "stopping"),
        (ServiceState.RECOVERING, "recovering"),
    ],
)
def test_service_states_have_the_words_of_the_specification(state: ServiceState, word: str) -> None:
    service = ask("status", database_with(Service(Definition("web"), 1, state, node=1)))["services"]["web"]
    assert service["state"] == word
    assert service["node"] == "n1"
    assert service["nodes"] == {"n0": None, "n1": word, "n2": None}


def test_a_de_registered_service_is_on_no_node_even_if_it_was_on_one() -> None:
    service = Service(Definition("web"), 1, ServiceState.DEREGISTERED, node=1, intent=True, cause="no node is up")
    shown = ask("status", database_with(service))["services"]["web"]
    assert shown["state"] == "de-registered"
    assert shown["node"] is None
    assert set(shown["nodes"].values()) == {None}
    assert shown["flags"] == ["T"]
    assert shown["cause"] == "no node is up"


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"wanted": False, "generation": 4}, "stopped by an operator"),
        ({"wanted": False}, "never started"),
        ({"wanted": False, "ended": Ended.DONE}, "has done its work"),
        ({"wanted": True, "cause": "start failed on n1"}, "failed"),
        ({"wanted": True}, "waits for its first start"),
        ({"wanted": True, "previous": 1}, "waits to be started again"),
        ({"wanted": True, "removed": True}, "withdrawn"),
        ({"definition": Definition("web", parent="disk"), "wanted": True}, "waits for its parent disk"),
    ],
)
def test_a_de_registered_service_is_shown_as_what_it_is(known: dict[str, Any], words: str) -> None:
    service = Service(**{"definition": Definition("web"), "uid": 1, **known})
    answer = ask("status", database_with(Service(Definition("disk"), 2), service))
    shown = answer["services"]["web"]
    assert (shown["state"], shown["down"]) == ("de-registered", words)
    registered = Service(Definition("web"), 1, ServiceState.REGISTERED, node=1, wanted=True)
    assert ask("status", database_with(registered))["services"]["web"]["down"] == ""


def test_why_a_node_tells_its_need_what_it_holds_and_each_sign() -> None:
    silent = Member(1, NodeState.JOINED, 9, eviction=Eviction(9, "its lease has run out", silent=True))
    held = Service(Definition("web"), 1, ServiceState.REGISTERED, node=1, incarnation=9)
    need = Need("unproven", "node/n1", "n1 is silent", "muster node evict n1 --confirmed-dead")
    seen = view(live=frozenset({0}), needs=Told((need,)))
    found = why_node(database_with(silent, held), seen, "n1")
    assert (found["summary"], found["next_step"]) == (need.words, need.next_step)
    assert found["services"] == [
        {"service": "web", "words": "registered; it stays so until the node is proven to have stopped"}
    ]
    rules = {each["rule"]: (each["holds"], each["words"]) for each in found["rules"]}
    assert rules["proof"] == (False, "silent: its lease has run out")
    assert rules["lease"] == (False, "its lease is not renewed")
    well = why_node(database_with(Member(1, NodeState.JOINED, 9)), view(), "n1")
    assert (well["next_step"], well["services"], well["summary"].startswith("n1 is joined")) == ("", [], True)


def test_a_service_of_all_nodes_shows_on_which_it_is() -> None:
    definition = Definition("cache", on_all=True)
    of_n1 = Service(
        Definition("cache@n1"), 1, ServiceState.REGISTERED, wanted=True, node=1, incarnation=7, template="cache"
    )
    of_n0 = Service(Definition("cache@n0"), 1, wanted=True, template="cache")
    template = Service(definition, 1, ServiceState.REGISTERED, wanted=True)
    shown = ask("services", database_with(template, of_n0, of_n1))["services"]["cache"]
    assert shown["nodes"] == {"n0": None, "n1": "registered", "n2": None}
    assert shown["node"] is None


def test_lease_and_link_of_a_node_are_what_the_answering_node_sees() -> None:
    nodes = ask("status", database_with())["nodes"]
    assert [(node["live"], node["link"]) for node in nodes.values()] == [(True, True), (True, True), (False, False)]


def test_a_node_to_be_forced_out_shows_the_cause_and_what_is_waited_for() -> None:
    member = Member(1, NodeState.JOINED, 9, LEVELS, eviction=Eviction(9, "its links are down"))
    cause = ask("status", database_with(member))["nodes"]["n1"]["cause"]
    assert "its links are down" in cause
    assert "proof" in cause


def test_a_leave_names_the_service_that_it_waits_for() -> None:
    leaving = Member(1, NodeState.LEAVING, 7)
    stuck = Service(Definition("web"), 1, ServiceState.STOPPING, node=1, incarnation=7, cause="stop failed on n1: why")
    moved = Service(Definition("db"), 1, ServiceState.STARTING, node=0, incarnation=7, origin=1, intent=True)
    elsewhere = Service(Definition("mail"), 1, ServiceState.REGISTERED, node=0, incarnation=7)
    cause = ask("status", database_with(leaving, elsewhere, moved, stuck))["nodes"]["n1"]["cause"]
    assert cause == "its leave waits for web, which is stopping, and for 1 more: stop failed on n1: why"
    cause = ask("status", database_with(leaving, elsewhere, moved))["nodes"]["n1"]["cause"]
    assert cause == "its leave waits for db, which is starting"
    assert ask("status", database_with(leaving, elsewhere))["nodes"]["n1"]["cause"] == ""


def test_a_silent_node_without_proof_shows_what_an_operator_can_do() -> None:
    database = database_with(Member(1, NodeState.JOINED, 9, LEVELS))
    assert ask("status", database, view(live=frozenset({0, 1})))["nodes"]["n1"]["cause"] == ""
    cause = ask("status", database, view(live=frozenset({0})))["nodes"]["n1"]["cause"]
    assert "not proven to have stopped" in cause
    assert "muster node evict n1 --confirmed-dead" in cause


def test_transitions_name_who_has_not_acknowledged() -> None:
    transition = Transition(5, 2, 9, TransitionKind.FORCED_LEAVING, (0, 40), 1, 0, (0, 1), cause="died")
    database = database_with(Member(0, NodeState.JOINED, 7, LEVELS), transition)
    (shown,) = ask("transitions", database, view(waited_for={5: ((1,), 2_500_000)}))["transitions"]
    assert (shown["id"], shown["node"], shown["kind"], shown["cause"]) == (5, "n2", "forced-leaving", "died")
    assert (shown["level"], shown["level_name"], shown["barrier"]) == (40, EVENT_MANAGER_LEVEL.name, 0)
    assert shown["participants"] == ["n0", "n1"]
    assert (shown["waiting_for"], shown["elapsed_ms"]) == (["n1"], 2500)
    (unknown,) = ask("status", database)["transitions"]
    assert unknown["waiting_for"] == ["n0", "n1"]


def test_a_service_in_full_has_its_definition_and_history() -> None:
    definition = Definition("web", ordered=("n1",), start_command=("run", "it"))
    service = Service(definition, 3, ServiceState.STARTING, True, 2, 9, 8, True, 1, 2, (0,), 1, "node lost")
    shown = ask("service", database_with(service), view(running=("web",)), name="web")["service"]
    assert (shown["name"], shown["uid"], shown["generation"], shown["reason"]) == ("web", 3, 8, "node lost")
    names = {key: shown[key] for key in ("node", "origin", "target", "previous", "failed")}
    assert names == {"node": "n2", "origin": "n1", "target": "n2", "previous": "n1", "failed": ["n0"]}
    assert shown["runs_here"] is True
    assert shown["definition"]["start_command"] == ["run", "it"]
    assert shown["definition"]["ordered"] == ["n1"]
    assert ask("services", database_with(service))["services"]["web"].items() <= shown.items()


def test_nodes_in_full_show_addresses_levels_and_the_last_proof_of_death() -> None:
    proof = Proof(ProofKind.LEASE_EXPIRED, 1, 8, "silent for 610 ms")
    nodes = ask("nodes", database_with(Member(1, NodeState.JOINED, 9, LEVELS, last_proof=proof)))["nodes"]
    assert nodes["n1"]["addresses"] == ["10.0.0.1:7700"]
    assert nodes["n1"]["last_proof"]["kind"] == "lease expired"
    assert nodes["n1"]["last_proof"]["detail"] == "silent for 610 ms"
    assert [level["level"] for level in nodes["n1"]["levels"]] == [0, 40]
    assert nodes["n0"]["last_proof"] is None


@pytest.mark.parametrize(
    ("query", "arguments", "what", "next_step"),
    [
        ("statsu", {}, "no query 'statsu'", "status"),
        ("status", {"deep": "yes"}, "no argument 'deep'", "none"),
        ("service", {}, "needs 'name'", "name"),
        ("service", {"name": 5}, "needs 'name' as text", "name"),
        ("service", {"name": "wbe"}, "no service 'wbe'", "'web'"),
        ("service", {"name": "other"}, "no service 'other'", "muster services"),
    ],
)
def test_a_bad_query_is_refused_with_what_to_do(query: str, arguments: Any, what: str, next_step: str) -> None:
    with pytest.raises(ControlRefused) as caught:
        answer(query, arguments, database_with(Service(Definition("web"), 1)), view())
    assert what in caught.value.what
    assert next_step in caught.value.next_step


def test_two_nodes_with_the_same_replica_give_the_same_status_but_for_what_they_see_themselves() -> None:
    database = database_with(
        Member(0, NodeState.JOINED, 7), Service(Definition("web"), 1, ServiceState.REGISTERED, node=0)
    )
    here, there = ask("status", database), ask("status", database, view(node=1, links=frozenset({0})))
    for status in (here, there):
        del status["node"], status["node_state"]
        for node in status["nodes"].values():
            del node["live"], node["link"]
    assert here == there
