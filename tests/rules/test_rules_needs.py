"""P10.12: what needs a person, each kind from a made-up state, and nothing on a healthy cluster."""

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from muster.core.entries import apply
from muster.core.leases.diagnosis import CUT_LINK, DEAD, PAUSED, WELL
from muster.core.membership.membership import SEE_OR
from muster.core.needs.machine import MAXIMUM_NEEDS, Needs, Told, well
from muster.core.needs.need import HOLDS_US, KINDS, NOTICE, TROUBLE, US_PER_S, Need, Path, Seen, Straggler
from muster.core.replica.ages import Ages
from muster.core.room import Fullness
from muster.core.services.explanation import Explanation, Finding
from muster.core.services.placement import NodeVerdict, Rule
from muster.core.transitions import waiting as waiting_machine
from muster.core.transitions.required import AwaitingLevels
from muster.daemon.shell.readiness import status_line
from muster.daemon.socket.queries import NodeView
from muster.daemon.socket.queries import needs as documents
from muster.daemon.socket.why_node import why_cluster
from muster.records.database import Change, Database, Entry, initial_database
from muster.records.deciders import Decider
from muster.records.fencing import FenceDevice, FenceOutcome, FencePast, FencePhase, FencePlan, Fencing
from muster.records.levels import Missing, NodeState
from muster.records.members import Eviction, Member, Proof
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import ProofKind
from muster.records.services import Definition, Ended, Maintenance, Service, ServiceState, Standby, Unclean
from muster.records.terms import Term
from plain_words import faults

LATER_US = 60_000_000
JOINED = tuple(Member(node, NodeState.JOINED, 7) for node in range(3))
EVERY_NODE = frozenset({0, 1, 2})
CALM = dict.fromkeys(range(3), WELL)


def database_with(*changes: Change) -> Database:
    """Three joined nodes, web on n1, and these records."""
    nodes = tuple(NodeConfig(number, f"n{number}", (f"10.0.0.{number}:7700",), "PEM") for number in range(3))
    database = initial_database(Cluster("test", "ab" * 16, "fast", "PEM"), nodes)
    web = Service(Definition("web"), 1, ServiceState.REGISTERED, wanted=True, node=1, incarnation=7, generation=1)
    apply(database, Entry(1, Term(12, 0), "test", (*JOINED, web, *changes)))
    return database


def seen(**known: Any) -> Seen:
    """What n0, the master, sees of them where all is well."""
    given = {"node": 0, "incarnation": 7, "master": 0, "live": EVERY_NODE, "conditions": CALM}
    return Seen(**{**given, **known})


def needs_of(database: Database, what: Seen) -> tuple[Need, ...]:
    """What is told once it has held for a minute."""
    machine = Needs()
    machine.look(database, what, 1)
    return machine.look(database, what, LATER_US)


def explained(words: str, next_step: str, rule: str = "", chosen: bool = False) -> Any:
    """An account of any service: this rule is in its way."""
    findings = (Finding(rule, False, words),) if rule else ()
    verdicts = (NodeVerdict(0, "n0", Rule.EXCLUDED, chosen, chosen, words),)
    return lambda _name: Explanation(words, findings, verdicts, next_step)


def web(**changed: Any) -> Service:
    """The service in another state."""
    given = {"state": ServiceState.DEREGISTERED, "wanted": True, "node": -1, "incarnation": 0, "generation": 1}
    return Service(Definition("web"), 1, **{**given, **changed})


EVICTED = Member(1, NodeState.JOINED, 7, eviction=Eviction(7, "its lease has run out", silent=True))
LOST = Member(1, NodeState.INACTIVE, 7, last_proof=Proof(ProofKind.PANIC_TOMBSTONE, 1, 7))
STUCK = web(state=ServiceState.STOPPING, node=1, incarnation=7, cause="stop failed on n1")
WAITING = {2: AwaitingLevels(2, 8, (Missing(15, "storage"),), 3000, False)}
EVICT = "muster node evict {} --confirmed-dead"
STRAGGLER = Straggler(1, 60, "cache", 2, "leaving", False)
FENCED = FencePast(3, 7, FencePhase.OFF, "power", 1, FenceOutcome.FAILED, "no route", 9)
CASES: dict[str, tuple[tuple[Change, ...], dict[str, Any], str, str, str]] = {
    # records, what is seen, then the kind, a part of the sentence, and the next step
    "no master": ((), {"master": -1}, "no master", "no node leads", "muster links"),
    "not following": ((), {"trouble": "of a later release"}, "not following", "later release", "muster upgrade status"),
    "silent": ((), {"live": frozenset({0, 2})}, "unproven", "web stays as it is", EVICT.format("n1")),
    "condemned": ((EVICTED,), {}, "unproven", "its lease has run out", EVICT.format("n1")),
    "former": ((), {"incarnation": 8}, "former life", "former life", EVICT.format("n0")),
    "paused": ((), {"conditions": {**CALM, 2: PAUSED}}, "unwell", "n2 is paused", "muster why n2"),
    "cut": ((), {"conditions": {**CALM, 2: CUT_LINK}}, "unwell", "link with n2 is cut", "muster links"),
    "blocked": ((STUCK,), {"explain": explained("web is stuck", "muster x")}, "blocked", "web is stuck", "muster x"),
    "failed": (
        (web(cause="failed everywhere"),), {"explain": explained("failed", "muster service clear web", "stuck")},
        "failed", "failed", "muster service clear web",
    ),
    "nowhere": ((web(),), {"explain": explained("no node is up", "boot one")}, "nowhere", "no node is up", "boot one"),
    "immature": (
        (web(waits_since=1),), {"explain": explained("not mature", "boot one", "maturity")},
        "nowhere", "not mature", "boot one",
    ),
    "unclean": (
        (web(unclean=Unclean(1, 6)),), {"explain": explained("n1 is not clean", "confirm it", "clean")},
        "unclean", "not clean", "confirm it",
    ),
    "lost": ((LOST,), {"live": frozenset({0, 2})}, "lost", "was lost", "systemctl start musterd"),
    "path": (
        (), {"paths": (Path(1, "10.0.0.1:1", "up"), Path(1, "10.1.0.1:1", "down"))},
        "link", "1 of 2 paths between n0 and n1 are down: 10.1.0.1:1", "muster links",
    ),
    "refused": ((Member(2, refusal="no room"),), {}, "refused", "no room", "muster node list"),
    "no decider": (
        (Cluster("test", "0" * 32, "fast", "", lockspaces=("orders",)), Decider("services", -1, 0, cause="n1 hangs")),
        {"age_ms": lambda _index: 60_000},
        "decision lock", "no node decides on services by the decision lock, and the master does: n1 hangs",
        "muster lock show muster:services",
    ),
    "waits": ((Member(2),), {"waiting": WAITING}, "level", "it waits for storage (level 15)", "required_levels"),
    "awaited": ((), {"stragglers": (STRAGGLER,)}, "level", "cache (level 60) on n1", "muster transitions"),
    "hung": (
        (), {"stragglers": (STRAGGLER._replace(is_hung=True),)},
        "overdue level", "cache (level 60)", "muster transitions",
    ),
    "full": ((), {"fullness": Fullness(80, 100)}, "store", "80 % full", "withdraw what is not needed"),
    "cannot lead": ((), {"unable": {1: "its journal is broken"}}, "cannot lead", "journal is broken", "muster why n1"),
    "processes": ((), {"lacking": "caretaker"}, "processes lost", "the caretaker of n0", "muster node leave n0"),
    "certificate": ((), {"certificates": (("it ends", "renew it"),)}, "certificate", "it ends", "renew it"),
    "maintenance": (
        (Maintenance("service", "web", 1, cause="kernel patch"),), {}, "maintenance",
        "service web is in maintenance (kernel patch)", "muster maintenance end --service web --yes",
    ),
    "quarantine": (
        (Fencing(2, 7, quarantined=True, fenced=(1, 2, 3, 4)),), {}, "quarantine",
        "n2 is in quarantine: it was fenced 4 times", "muster fence release n2",
    ),
    "fencing": (
        (Fencing(2, 7, FencePhase.OFF, past=(FENCED,)),), {}, "fencing fails",
        "n2 could not be fenced yet", "muster fence history n2",
    ),
    "nobody reaches": (
        (Fencing(2, 7, FencePhase.OFF),), {}, "fencing fails", "no member can reach its devices", "muster fence list",
    ),
    "not on again": (
        (Fencing(2, 7, past=(replace(FENCED, phase=FencePhase.ON),)),), {}, "fencing fails",
        "n2 is off, and could not be turned on again", "muster fence history n2",
    ),
    "device": (
        (FenceDevice("pdu", "fence_x"),), {"fence_troubles": {1: {"pdu": "no route"}}}, "fence device",
        "n1 cannot use fence device pdu", "muster fence test pdu",
    ),
    "not fenced": (
        tuple(FencePlan(node, ()) for node in (0, 1)), {"fences": True}, "not fenced",
        "nothing says how n2 is fenced", "muster fence method n2",
    ),
    "watchdog": (
        (NodeConfig(2, "n2", ("10.0.0.2:7700",), "PEM", watchdog="auto"),), {"fences": True, "unarmed": EVERY_NODE},
        "watchdog", "a watchdog is set for n2, and proves nothing yet", "muster node leave n2",
    ),
    "standby": ((Standby(1, 1),), {}, "standby", "n1 is on standby: it gets no services, and still has web",
                "muster node active n1"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_p10_12_each_state_that_needs_a_person_is_told_by_every_instrument_in_the_same_words(name: str) -> None:
    changes, known, kind, words, next_step = CASES[name]
    database, what = database_with(*changes), seen(**known)
    (need,) = needs_of(database, what)
    assert (need.kind, need.words.count(words)) == (kind, 1), need
    assert next_step in need.next_step
    assert [*faults(need.words), *faults(need.next_step)] == []  # P10.14, as it is put together
    told = Told((need,), 0, well(database, what, (need,)))
    shown = documents(database, NodeView(0, 7, needs=told))
    assert shown["warnings"] == [need.line]
    assert [(each["words"], each["next"]) for each in shown["needs"]] == [(need.words, need.next_step)]
    assert told.about(need.subject) == need

    class Speaker:
        """As much of a node as the status line asks for."""

        def __init__(self) -> None:
            self.database, self.me, self.incarnation, self.is_master = database, 0, 7, True
            self.leading, self.now_us = None, 0
            self.heartbeats = SimpleNamespace(waiting=waiting_machine.Waiting())
            self.replica = SimpleNamespace(ages=Ages())

    assert status_line(Speaker(), told).startswith(f"NEEDS YOU: {need.line}; ")  # type: ignore[arg-type]


def test_p10_14_a_node_that_holds_many_services_is_told_in_short_sentences() -> None:
    kept: dict[str, Any] = {
        "state": ServiceState.REGISTERED,
        "wanted": True,
        "node": 1,
        "incarnation": 7,
        "generation": 1,
    }
    many = [Service(Definition(f"web{number}"), 1, **kept) for number in range(9)]
    (need,) = needs_of(database_with(EVICTED, *many), seen(live=frozenset({0, 2})))
    assert "web, web0, web1, web2 and 6 more stay as they are" in need.words
    assert list(faults(need.line)) == []


def test_p10_12_each_kind_has_a_case() -> None:
    assert {case[2] for case in CASES.values()} == set(KINDS)


def test_p10_12_a_healthy_cluster_needs_nobody() -> None:
    database, what = database_with(web(state=ServiceState.REGISTERED, node=1, incarnation=7)), seen()
    assert needs_of(database, what) == ()
    assert well(database, what, ()).words == "1 of 1 services and 3 of 3 nodes are well"
    assert documents(database, NodeView(0, 7))["warnings"] == []


HARMLESS: dict[str, tuple[tuple[Change, ...], dict[str, Any]]] = {
    "stopped by an operator": ((web(wanted=False),), {}),
    "withdrawn": ((web(removed=True),), {}),
    "about to start": ((web(),), {"explain": explained("soon", "", chosen=True)}),
    "matures with time": (
        (Service(Definition("web", maturity_time_ms=5000), 1, wanted=True),),
        {"explain": explained("not mature", "", "maturity")},
    ),
    "waits for its parent": (
        (Service(Definition("child", parent="web"), 1, wanted=True),),
        {"explain": explained("its parent", "", "group")},
    ),
    "left gracefully": ((Member(2, NodeState.INACTIVE, 7),), {"live": frozenset({0, 1})}),
    "never ran": ((Member(2, NodeState.INACTIVE, 0),), {"live": frozenset({0, 1})}),
    "boots again after its death": ((LOST,), {}),
    "proven dead, and about to be forced out": ((), {"live": frozenset({0, 2}), "conditions": {**CALM, 1: DEAD}}),
    "all paths of a link": ((), {"paths": (Path(1, "a:1", "down"), Path(1, "b:1", "down"))}),
    "no watchdog is set": ((), {"fences": True, "unarmed": EVERY_NODE}),
    "a watchdog is set, and armed": (
        (NodeConfig(2, "n2", ("10.0.0.2:7700",), "PEM", watchdog="auto"),),
        {"fences": True, "unarmed": frozenset({0, 1})},
    ),
    "a watchdog is set, and one kernel is asked": (
        (NodeConfig(2, "n2", ("10.0.0.2:7700",), "PEM", watchdog="auto"),), {"unarmed": EVERY_NODE},
    ),
    "waits for a service at Muster's own level": (
        (), {"stragglers": (STRAGGLER._replace(level=40, name="event manager"),)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_p10_12_what_passes_by_itself_or_is_told_elsewhere_is_no_need(name: str) -> None:
    changes, known = HARMLESS[name]
    assert needs_of(database_with(*changes), seen(**known)) == ()


def test_p10_12_a_service_that_a_silent_node_keeps_is_told_with_the_node_and_is_not_well() -> None:
    frozen = web(cause="x", state=ServiceState.STOPPING, node=1, incarnation=7)
    database, what = database_with(EVICTED, frozen), seen(live=frozenset({0, 2}))
    (need,) = needs_of(database, what)
    assert need.affects == ("web",)
    assert Told((need,)).about("service/web") == need
    assert well(database, what, (need,)) == (0, 1, 2, 3)


def test_p10_12_a_service_that_is_tried_again_is_the_same_need_until_a_start_succeeds() -> None:
    machine, failed = Needs(), web(cause="start failed everywhere", rounds=1)
    what = seen(explain=explained("it failed", "muster service clear web", "stuck"))
    (need,) = machine.look(database_with(failed), what, 1000)
    tried_again = (
        web(cause="start failed everywhere", rounds=1),  # its pause is over, and it has not been started yet
        web(state=ServiceState.STARTING, node=1, incarnation=7, rounds=1),
        web(rounds=1),  # between two nodes
    )
    for number, service in enumerate(tried_again):
        about_to = seen(explain=explained("it has failed on every node", "muster x"))
        assert machine.look(database_with(service), about_to, 2000 + number) == (need,)
    assert machine.look(database_with(failed), what, LATER_US) == (need,)
    running = web(state=ServiceState.REGISTERED, node=1, incarnation=7)
    assert machine.look(database_with(running), what, LATER_US) == ()
    assert machine.look(database_with(tried_again[1]), what, LATER_US) == (), "nothing was told that could go on"


def test_p10_12_a_former_life_is_told_where_nobody_leads_who_could_end_it_and_not_while_a_master_is_about_to() -> None:
    machine, database = Needs(), database_with()
    booting = seen(incarnation=8, confirmed=False)
    assert machine.look(database, booting, 1) == machine.look(database, booting, LATER_US) == ()
    leaderless, begun_us = seen(incarnation=8, confirmed=False, master=-1), 2 * LATER_US
    assert machine.look(database, leaderless, begun_us) == ()
    assert machine.look(database, leaderless, begun_us + HOLDS_US["no master"] - 1) == ()
    told = machine.look(database, leaderless, begun_us + HOLDS_US["no master"])
    assert [need.kind for need in told] == ["no master", "former life"]


def test_p10_12_a_refusal_that_names_a_command_has_it_for_its_next_step() -> None:
    refused = Member(2, refusal=f"its machine is not clean{SEE_OR}muster node confirm-clean n2")
    (need,) = needs_of(database_with(refused), seen())
    assert (need.words, need.next_step) == (
        "n2 may not join: its machine is not clean", "muster node confirm-clean n2"
    )  # fmt: skip


def test_p10_12_a_maintenance_names_what_is_not_running_because_of_it() -> None:
    kept = Maintenance("service", "web", 1)
    (need,) = needs_of(database_with(web(), kept), seen(explain=explained("it is in maintenance", "", "maintenance")))
    assert need.words.endswith("restarted there; not running: web")
    assert need.affects == ("web",)
    running = database_with(web(state=ServiceState.REGISTERED, node=1, incarnation=7), kept)
    assert needs_of(running, seen())[0].affects == ()


def test_p10_12_causes_are_told_before_what_follows_from_them() -> None:
    follows = ("blocked", "failed", "unclean", "nowhere")
    causes = ("no master", "not following", "unproven", "former life", "unwell", "lost", "refused", "overdue level")
    assert set(KINDS[: len(causes)]) == set(causes)
    assert all(KINDS.index(kind) >= len(causes) for kind in follows)


def test_p10_12_what_is_about_a_nodes_link_or_level_is_about_the_node() -> None:
    needs = [Need("x", subject, "", "") for subject in ("link/n1", "level/60@n1", "node/n1", "level/60@n11")]
    assert [need.subject for need in needs if need.is_about("node/n1")] == ["link/n1", "level/60@n1", "node/n1"]
    assert Told(tuple(needs)).about("node/n1") == needs[2], "first what is about itself"
    assert Need("x", "node/n1", "", "", affects=("web",)).is_about("service/web")
    assert not Need("x", "node/n1", "", "", affects=("n0",)).is_about("node/n0")


def test_p10_12_why_without_a_name_tells_all_that_needs_a_person() -> None:
    database, what = database_with(STUCK, Standby(2, 1)), seen(explain=explained("web is stuck", "muster x"))
    found = needs_of(database, what)
    said = why_cluster(database, NodeView(0, 7, master=0, needs=Told(found, 0, well(database, what, found))))
    assert said["summary"] == "2 things need you: 0 of 1 services and 3 of 3 nodes are well"
    assert [each["words"] for each in said["needs"]] == [need.words for need in found]
    assert said["next_step"] == "muster x"
    assert [row["rule"] for row in said["rules"] if not row["holds"]] == ["services", "left alone"]
    calm = why_cluster(database_with(), NodeView(0, 7, master=0))
    assert (calm["summary"].startswith("nothing needs you"), calm["next_step"]) == (True, "")
    assert all(row["holds"] for row in calm["rules"])


def test_p10_12_what_holds_only_for_a_moment_is_not_told_and_since_when_stays() -> None:
    machine, database = Needs(), database_with()
    silent, hold_us = seen(live=frozenset({0, 2})), HOLDS_US["unproven"]
    assert machine.look(database, silent, 1000) == ()
    assert machine.look(database, silent, 1000 + hold_us - 1) == ()
    assert machine.look(database, seen(), 1000 + hold_us) == ()
    assert machine.look(database, silent, 2000 + hold_us) == ()
    (need,) = machine.look(database, silent, 2000 + 2 * hold_us)
    assert need.since_us == 2000 + hold_us
    (again,) = machine.look(database, silent, LATER_US)
    assert again == need


def test_p10_12_all_but_a_missing_master_is_told_within_two_seconds() -> None:
    assert {kind for kind, hold_us in HOLDS_US.items() if hold_us > 1_000_000} == {"no master"}


def test_p10_12_a_record_says_since_when_and_its_age_does_not_make_that_tremble() -> None:
    machine, database = Needs(), database_with(Standby(1, 1))
    (need,) = machine.look(database, seen(age_ms=lambda _index: 30_000), LATER_US)
    assert need.since_us == LATER_US - 30_000_000
    (again,) = machine.look(database, seen(age_ms=lambda _index: 30_999), LATER_US + 1_000_500)
    assert again.since_us == need.since_us


def test_p10_12_trouble_comes_first_and_the_list_is_bounded() -> None:
    left_alone = [Maintenance("service", f"s{number}", 1) for number in range(MAXIMUM_NEEDS + 5)]
    database = database_with(*left_alone, EVICTED)
    machine = Needs()
    found = machine.look(database, seen(), LATER_US)
    found = machine.look(database, seen(), 2 * LATER_US)
    assert len(found) == MAXIMUM_NEEDS
    assert machine.beyond == 6
    assert [need.severity for need in found[:2]] == [TROUBLE, NOTICE]
    lines = documents(database, NodeView(0, 7, needs=Told(found, machine.beyond)))["warnings"]
    assert lines[-1].startswith("6 more things need you")


def test_p6_40_a_program_that_has_ended_and_is_left_to_its_action_needs_a_person_until_it_is_to_start_again() -> None:
    left = web(
        state=ServiceState.REGISTERED, node=1, incarnation=7, broken="its program ended", ended=Ended.OWN
    )  # fmt: skip
    what, machine = seen(explain=explained("web has failed there", "muster service restart web")), Needs()
    database = database_with(left)
    assert machine.look(database, what, 1000) == (), "its action may restart it at once"
    (need,) = machine.look(database, what, 1000 + US_PER_S)
    assert (need.kind, need.subject, need.words) == ("failed", "service/web", "web has failed there")
    assert (need.next_step, need.affects, need.severity) == ("muster service restart web", ("web",), TROUBLE)
    assert well(database, what, (need,)).services == 0
    for passes in (
        replace(left, target=1), replace(left, intent=True), replace(left, wanted=False),
        replace(left, ended=Ended.FAILED), replace(left, broken="", ended=Ended.FAILED),
    ):  # fmt: skip
        assert needs_of(database_with(passes), what) == (), passes
    kept = seen(explain=explained("it is in maintenance", "", "maintenance"))
    assert needs_of(database, kept) == (), "the maintenance is told"
