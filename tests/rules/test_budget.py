"""The journal's room as one budget (P9.3-P9.6): whatever is accepted can be written, whatever becomes of it."""

from pathlib import Path
from random import Random

import msgspec
import pytest
from msgspec.structs import replace

from muster.core.decisions.decide import decide
from muster.core.draft import Draft, Facts
from muster.core.entries import apply
from muster.core.operations.identities import RETRY_WINDOW_MS
from muster.core.operations.operations import carry_out
from muster.core.operations.shedding import excess_of, shed
from muster.core.room import Room, capacity_of, fullness
from muster.records.access import ITSELF, Author
from muster.records.configuration import Audit, Operation, Revision
from muster.records.database import Database, Entry, encode_database, encode_entry, initial_database
from muster.records.events import ApplyEvents, EventDefinition, GroupDefinition
from muster.records.levels import EVENT_MANAGER_LEVEL, NodeState
from muster.records.members import Eviction, Member, Proof
from muster.records.messages import Report, Request
from muster.records.nodes import Cluster, NodeConfig
from muster.records.operations import OperationRequest
from muster.records.registers import ProofKind
from muster.records.services import (
    ApplyServices,
    Definition,
    DeregisterService,
    Exhausted,
    FailService,
    RegisterService,
    Service,
    ServiceState,
    SetMaintenance,
    SetStandby,
)
from muster.records.terms import Term
from muster.records.texts import LEAST_TEXT_BYTES, MAXIMUM_TEXT_BYTES, clipped
from muster.records.timing import FAST
from muster.records.units import US_PER_MS
from muster.records.versions import HIGHEST, KEEPS_HISTORY
from muster.sim import schedule
from muster.sim.checkers.checkers import Progress, judge
from muster.sim.history import Replied
from muster.sim.world.surroundings import Settings
from muster.sim.world.world import World

TERM = Term(1, 0)
REGIONS = (128 << 10, 256 << 10, 1 << 20, 4 << 20)
NODES = 3
PERSON = Author(0, "root", 3, "n0", 1)


def database(nodes: int = NODES, version: int = HIGHEST) -> Database:
    configs = tuple(NodeConfig(node, f"n{node}", (f"10.0.0.{node}:23720",), "c" * 800) for node in range(nodes))
    made = initial_database(Cluster("test", "0" * 32, "fast", "a" * 800, active_version=version), configs)
    for node in range(nodes):
        made.members[node] = Member(node, NodeState.JOINED, 5, (EVENT_MANAGER_LEVEL,), 40)
    return made


def facts_of(made: Database, room: Room, dead: tuple[int, ...] = (), aged: int = -1) -> Facts:
    reports = {node: Report(TERM, made.index, 5, "", (EVENT_MANAGER_LEVEL,)) for node in made.nodes if node not in dead}
    proof = Proof(ProofKind.FENCE_AGENT, 0, 5, "x" * 4000)
    return Facts(
        0, 1, reports, lambda node, _i: proof if node in dead else None, lambda _n: True, {}, {}, services_open=True,
        room=room, aged_index=aged,
    )  # fmt: skip


def commit(made: Database, draft: Draft) -> int:
    """Apply what a round decided; the bytes of its entry."""
    entry = Entry(draft.index, TERM, clipped("; ".join(draft.causes), 1500), draft.changes)
    apply(made, entry)
    return len(encode_entry(entry))


def ask(made: Database, room: Room, operation: OperationRequest, author: Author = PERSON, aged: int = -1) -> Operation:
    draft = Draft(made, room, room.capacity.entry)
    done = carry_out(
        Request(f"ask-{made.index}-{len(made.operations)}", operation, author), draft, facts_of(made, room, aged=aged)
    )
    assert done is not None
    if draft.changes:
        commit(made, draft)
    return done


def service(number: int, size: int = 0) -> Definition:
    return Definition(f"s{number}", start_command=("/bin/true", "x" * size), ordered=("n0",))


def filled(room: Room, size: int, nodes: int = NODES) -> Database:
    """As many services as are accepted, in operations of several."""
    made, number = database(nodes), 0
    while not ask(made, room, ApplyServices(tuple(service(number + each, size) for each in range(5)))).refused:
        number += 5
    return made


def at_worst(made: Database) -> None:
    """Every record as large as it may get."""
    for name, each in list(made.services.items()):
        failures = tuple(range(1 << 40, (1 << 40) + each.definition.restarts + 1))
        given_up = tuple(Exhausted(node, 1 << 40) for node in made.nodes)
        made.services[name] = replace(
            each, state=ServiceState.REGISTERED, node=0, incarnation=5, generation=1 << 40, failures=failures,
            exhausted=given_up, failed=tuple(made.nodes), reason="r" * LEAST_TEXT_BYTES, cause="c" * LEAST_TEXT_BYTES,
            broken="b" * LEAST_TEXT_BYTES, since=1 << 40, waits_since=1 << 40, launched=True, wanted=True,
        )  # fmt: skip


@pytest.mark.parametrize(
    "region", [pytest.param(each, marks=pytest.mark.long if each == max(REGIONS) else ()) for each in REGIONS]
)
@pytest.mark.parametrize("size", [0, 1900])
def test_p9_3_whatever_was_accepted_fits_into_a_checkpoint_at_its_worst(region: int, size: int) -> None:
    room = Room(region)
    made = filled(room, size)
    assert len(made.services) >= 5
    at_worst(made)
    shares = room.capacity.operations + room.capacity.history + room.capacity.audit
    assert len(encode_database(made)) <= room.capacity.growth + shares
    assert room.capacity.database + room.capacity.entry < region


@pytest.mark.parametrize("region", REGIONS)
def test_p9_5_the_loss_of_the_node_of_all_services_is_cut_into_entries_that_fit(region: int) -> None:
    room = Room(region)
    made = filled(room, 1000)
    at_worst(made)
    after, entries = "", 0
    while True:
        facts = facts_of(made, room, dead=(0,))
        facts.after = after
        draft, _ = decide(made, facts, [])
        if not draft.changes:
            break
        assert commit(made, draft) <= room.capacity.entry
        after, entries = draft.stopped_at, entries + 1
        assert entries < 100
    assert made.members[0].state in (NodeState.FORCED_LEAVING, NodeState.INACTIVE)
    assert len(encode_database(made)) <= room.capacity.database


def test_p9_5_who_was_not_looked_at_comes_first_in_the_next_round() -> None:
    room = Room(256 << 10)
    made = filled(room, 500)
    facts = facts_of(made, room)
    facts.entry_bytes = 6000
    draft, _ = decide(made, facts, [])
    assert draft.stopped_at
    first = {change.name for change in draft.changes if isinstance(change, Service)}
    commit(made, draft)
    facts.after = draft.stopped_at
    draft, _ = decide(made, facts, [])
    second = [change.name for change in draft.changes if isinstance(change, Service)]
    assert second[0] == facts.after
    assert not first & {second[0]}


def test_p9_3_event_groups_are_counted_with_services() -> None:
    room = Room(1 << 20)
    made = database()
    for number in range(1000):
        event = EventDefinition(f"e{number}", "mine", action=("/bin/true", "x" * 7500))
        if ask(made, room, ApplyEvents((GroupDefinition(f"g{number}", (event,)),))).refused:
            break
    full = fullness(room, made)
    assert 98 <= full.percent <= 100
    assert full.words
    assert ask(made, room, ApplyServices((service(1, 20_000),))).refused
    assert not ask(made, room, ApplyEvents((), ("g0", "g1", "g2"))).refused
    assert not ask(made, room, ApplyServices((service(1, 10_000),))).refused


def test_p9_3_compressible_definitions_count_as_they_go_over_the_wire() -> None:
    assert capacity_of(1 << 30).database <= 28 << 20
    room = Room(1 << 20)
    accepted = len(filled(room, 20_000).services)
    assert accepted * 20_000 <= room.capacity.growth


@pytest.mark.parametrize(
    ("definition", "words"),
    [(service(0, 30_000), "one service may take"),
     (Definition("all", start_command=("x" * 9000,), on_all=True), "instances")],
)  # fmt: skip
def test_p9_3_one_record_never_takes_the_room_of_an_entry(definition: Definition, words: str) -> None:
    done = ask(database(12), Room(512 << 10), ApplyServices((definition,)))
    assert done.refused
    assert words in done.outcome


def test_p9_3_a_template_is_counted_once_for_each_node() -> None:
    room = Room(1 << 20)
    few, many = database(3), database(12)
    definition = Definition("all", start_command=("x" * 100,), on_all=True)
    sizes = []
    for made in (few, many):
        before = room.used(made)
        ask(made, room, ApplyServices((definition,)))
        sizes.append(room.used(made) - before)
    assert sizes[1] > 3 * sizes[0]


def test_p9_5_an_operation_is_one_entry_or_is_refused() -> None:
    room, made = Room(256 << 10), database()
    many = ApplyServices(tuple(service(number, 300) for number in range(150)))
    done = ask(made, room, many)
    assert done.refused
    assert not made.services
    assert made.index == 0
    few = tuple(Request(f"r{n}", ApplyServices((service(n, 4000),)), PERSON) for n in range(30))
    draft, answers = decide(made, facts_of(made, room), list(few))
    assert None in answers
    assert draft.bytes <= room.capacity.entry
    done_now = [answer for answer in answers if answer is not None and not answer.refused]
    assert set(draft.services) == {f"s{n}" for n in range(len(done_now))}


def test_p9_3_long_texts_are_kept_only_out_of_spare_room() -> None:
    for made, room, spare in ((database(), Room(1 << 20), True), (filled(Room(1 << 20), 3000), Room(1 << 20), False)):
        draft = Draft(made, room, room.capacity.entry)
        before = room.used(draft)
        for number in range(200):
            draft.put(Service(service(1000 + number), 1, cause="o" * 5000))
        lengths = [len(draft.services[f"s{1000 + number}"].cause) for number in range(200)]
        assert set(lengths) <= {LEAST_TEXT_BYTES, MAXIMUM_TEXT_BYTES}
        assert lengths.count(MAXIMUM_TEXT_BYTES) > 100 if spare else lengths.count(MAXIMUM_TEXT_BYTES) < 20
        assert before + sum(length - LEAST_TEXT_BYTES for length in lengths) <= room.capacity.growth


def test_p9_3_withdrawing_is_possible_in_the_fullest_store() -> None:
    room = Room(256 << 10)
    made = filled(room, 0)
    for name in list(made.services)[:40]:
        assert not ask(made, room, ApplyServices((), (name,))).refused
        assert not ask(made, room, DeregisterService(name)).refused or made.services[name].removed


UNCHANGING: list[tuple[OperationRequest, OperationRequest]] = [
    (SetMaintenance("service", "s1", cause="disks"), SetMaintenance("service", "s1", cause="disks")),
    (SetMaintenance("cluster"), SetMaintenance("cluster")),
    (RegisterService("s1"), SetMaintenance("cluster", end=True)),
    (SetStandby("n1"), SetStandby("n1")),
    (RegisterService("s1"), SetStandby("n2", end=True)),
    (DeregisterService("s1"), DeregisterService("s1")),
    (RegisterService("s1"), RegisterService("s1")),
    (RegisterService("s1"), ApplyServices((service(1),))),
    (RegisterService("s1"), FailService("s1", "down", 99)),
    (RegisterService("s1"), FailService("s1", "down")),
]


@pytest.mark.parametrize(("first", "again"), UNCHANGING)
def test_p9_4_an_operation_that_changes_nothing_is_no_entry(first: OperationRequest, again: OperationRequest) -> None:
    room, made = Room(1 << 20), database()
    ask(made, room, ApplyServices((service(1),)))
    ask(made, room, first)
    index, kept, audit = made.index, dict(made.operations), dict(made.audit)
    done = ask(made, room, again)
    assert not done.refused
    assert done.index == made.index == index
    assert (made.operations, made.audit) == (kept, audit)


def test_p9_4_a_rule_that_puts_what_is_there_commits_nothing() -> None:
    made = database()
    made.members[0] = replace(made.members[0], eviction=Eviction(5, "x" * 240))
    draft = Draft(made)
    draft.put(replace(made.members[0], eviction=Eviction(5, "x" * 240)))
    draft.forget("standby", "1")
    assert not draft.changes


def test_p9_4_a_draft_goes_back_to_where_it_was() -> None:
    made = database()
    made.services["s1"] = Service(service(1), 1)
    draft = Draft(made)
    draft.put(Service(service(2), 1), "two")
    mark, size = draft.mark(), draft.bytes
    draft.put(Service(service(3), 1), "three")
    draft.put(replace(made.services["s1"], wanted=True), "one")
    draft.forget("service", "s2", "gone")
    draft.put(replace(made.cluster, profile="standard"))
    draft.restore(mark)
    assert (set(draft.services), draft.causes, draft.bytes) == ({"s1", "s2"}, ["two"], size)
    assert draft.services["s1"] is made.services["s1"]
    assert draft.cluster is made.cluster
    assert [change.name for change in draft.changes if isinstance(change, Service)] == ["s2"]


def full_of_identities(room: Room) -> Database:
    made = database()
    ask(made, room, ApplyServices((service(1),)))
    for number in range(5000):
        if ask(made, room, SetMaintenance("service", "s1", number + 1, "why " * 40)).refused:
            return made
    pytest.fail("the identities have no bound")


def test_p9_4_identities_that_may_be_repeated_are_never_pushed_out() -> None:
    room = Room(256 << 10)
    made = full_of_identities(room)
    kept = list(made.operations)
    refused = ask(made, room, SetMaintenance("service", "s1", 7, "x"))
    assert refused.refused
    assert f"{RETRY_WINDOW_MS // 1000} s" in refused.outcome
    assert list(made.operations) == kept
    draft = Draft(made, room, room.capacity.entry)
    itself = Author(0, ITSELF, 3, "n0", 1)
    assert (
        carry_out(Request("own", SetMaintenance("service", "s1", 7, "x"), itself), draft, facts_of(made, room)) is None
    )
    assert not draft.changes
    oldest = made.operations[kept[3]].index
    assert not ask(made, room, SetMaintenance("service", "s1", 7, "x"), aged=oldest).refused
    assert kept[0] not in made.operations
    assert kept[4] in made.operations
    assert room.kept("operation", made.operations) <= room.capacity.operations


def test_p9_3_a_release_before_keeps_as_many_identities_as_it_did() -> None:
    made = database(version=KEEPS_HISTORY)
    for number in range(600):
        apply(made, Entry(made.index + 1, TERM, "", (Operation(f"o{number}", made.index + 1, "done"),)))
    assert len(made.operations) == 512


def test_p9_6_an_over_full_store_sheds_in_its_order_and_keeps_states_and_identities() -> None:
    room = Room(256 << 10)
    made = filled(room, 0)
    for number in range(40):
        made.revisions[number + 1] = Revision(number + 1, 1, 0, 0, "root", "n0", "apply", b"u" * 600)
    for number in range(150):
        made.audit[number + 1] = Audit(number + 1, 1, 0, 0, "root", 3, "n0", "apply", "s" * 100, "o" * 100)
    for number in range(1000, 1040):
        made.services[f"s{number}"] = Service(
            service(number, 2500), 1, ServiceState.REGISTERED, node=1, cause="c" * 1500
        )
    services, operations = dict(made.services), dict(made.operations)
    assert excess_of(Draft(made), room) > 0
    assert fullness(room, made).percent > 100
    for _ in range(50):
        facts = facts_of(made, room)
        facts.sheds, facts.services_open = True, False
        draft, _ = decide(made, facts, [])
        if not draft.changes:
            break
        assert commit(made, draft) <= room.capacity.entry
    assert not any(revision.undo for revision in made.revisions.values())
    assert len(made.audit) == 1
    assert len(made.revisions) == 1
    assert made.operations == operations
    states = {name: (each.state, each.node, each.definition) for name, each in services.items()}
    assert {name: (each.state, each.node, each.definition) for name, each in made.services.items()} == states
    assert max(len(each.cause) for each in made.services.values()) <= LEAST_TEXT_BYTES
    assert ask(made, room, ApplyServices((service(5000),))).refused
    assert not ask(made, room, ApplyServices((), ("s1000",))).refused


def test_p9_6_as_little_as_needed_is_given_up() -> None:
    room = Room(256 << 10)
    made = filled(room, 0)
    for number in range(60):
        made.revisions[number + 1] = Revision(number + 1, 1, 0, 0, "root", "n0", "apply", b"u" * 1200)
    excess = excess_of(Draft(made), room)
    assert excess > 0
    facts = facts_of(made, room)
    facts.sheds, facts.services_open = True, False
    draft, _ = decide(made, facts, [])
    commit(made, draft)
    undone = [revision for revision in made.revisions.values() if not revision.undo]
    assert 0 < len(undone) < 60
    assert excess_of(Draft(made), room) <= 0


def shed_once(made: Database, room: Room) -> Draft:
    """What one entry gives up of a store that is over full by a little."""
    assert 0 < excess_of(Draft(made), room) < 8000
    draft = Draft(made, room, room.capacity.entry)
    shed(draft, room)
    assert -4000 < excess_of(draft, room) <= 0
    return draft


def test_p9_6_each_kind_is_given_up_only_when_what_comes_before_it_is_not_enough() -> None:
    room = Room(256 << 10)
    for has_undo, has_audit, gives in ((True, True, "undo"), (False, True, "audit"), (False, False, "causes")):
        made = filled(room, 0)
        made.revisions.clear()
        made.audit.clear()
        for number in range(20):
            undo = b"u" * 600 if has_undo else b""
            made.revisions[number + 1] = Revision(number + 1, 1, 0, 0, "root", "n0", "apply", undo)
        for number in range(40 if has_audit else 1):
            made.audit[number + 1] = Audit(number + 1, 1, 0, 0, "root", 3, "n0", "apply", "s" * 100, "o" * 100)
        number = 1000
        while excess_of(Draft(made), room) <= 4000:
            made.services[f"s{number}"] = Service(
                service(number, 500), 1, ServiceState.REGISTERED, node=1, cause="c" * 1500
            )
            number += 1
        draft = shed_once(made, room)
        given_up = {
            "undo": any(not each.undo for each in draft.revisions.values()) and has_undo,
            "audit": len(draft.audit) < len(made.audit),
            "causes": any(len(each.cause) < 1500 for each in draft.services.values() if each.cause),
            "history": len(draft.revisions) < len(made.revisions),
        }
        assert [what for what, is_so in given_up.items() if is_so] == [gives]
        assert max(draft.audit) == max(made.audit)  # the newest stays


def test_p9_3_the_documented_capacity_of_each_size_is_what_it_holds() -> None:
    small = Definition("web-server", run=("/usr/sbin/web", "--port", "80"), restarts=3)
    text = (Path(__file__).parents[2] / "docs" / "DISK_FORMAT.md").read_text()
    for region in (256 << 10, 1 << 20, 4 << 20, 16 << 20):
        room, made = Room(region), database()
        made.members.clear()
        for node in made.nodes:
            made.members[node] = Member(node)
            made.nodes[node] = replace(made.nodes[node], addresses=(f"10.0.0.{node}:1",))
        capacity = room.capacity
        count = (capacity.growth - room.used(made)) // room.of_definition(small, NODES)
        row = (capacity.database, capacity.entry, capacity.growth, count)
        assert " | ".join(f"{number:,}" for number in row) in text, row
        definitions = (replace(small, name=f"web-server-{number}"[:10]) for number in range(count))
        assert sum(room.of_definition(each, NODES) for each in definitions) <= capacity.growth - room.used(made)


def world_of(half_bytes: int) -> World:
    world = World(Settings(3, FAST, half_bytes=half_bytes, reboots=0.0), Random(3))
    for node in range(3):
        world.perform(schedule.Boot(node))
    world.run_until(4000 * US_PER_MS)
    return world


def answers(world: World) -> dict[str, Replied]:
    return {item.identity: item for item in world.history if isinstance(item, Replied)}


@pytest.mark.parametrize("half", [90_000, 150_000])
def test_p9_3_a_full_cluster_survives_the_loss_of_the_node_of_all_services(half: int) -> None:
    world = world_of(half)
    for number in range(30):
        definitions = tuple(replace(service(10 * number + each, 200), name=f"w{number}-{each}") for each in range(3))
        world.perform(schedule.Ask(1, f"define-{number}", ApplyServices(definitions)))
        world.run_until(world.loop.now_us + 300 * US_PER_MS)
    told = answers(world)
    assert any(reply.refused for reply in told.values())
    assert not told["define-0"].refused
    world.perform(schedule.PowerCut(0))
    world.run_until(world.loop.now_us + 9000 * US_PER_MS)
    world.perform(schedule.Ask(1, "after", SetMaintenance("cluster")))
    outlook = Progress(world.history, 3)
    world.run_until(world.loop.now_us + 3000 * US_PER_MS)
    assert not answers(world)["after"].refused
    assert outlook is not None
    assert not judge(world.history)


def test_p9_4_a_repeat_of_what_changed_nothing_is_answered_and_no_entry() -> None:
    world = world_of(1 << 20)
    world.perform(schedule.Ask(1, "define", ApplyServices((service(1),))))
    world.run_until(world.loop.now_us + 2000 * US_PER_MS)
    world.perform(schedule.Ask(2, "once", RegisterService("s1")))
    world.run_until(world.loop.now_us + 1000 * US_PER_MS)
    first = answers(world)["once"]
    assert not first.refused
    assert "already" in first.outcome
    world.perform(schedule.Ask(1, "down", DeregisterService("s1")))
    world.run_until(world.loop.now_us + 2000 * US_PER_MS)
    world.perform(schedule.Ask(2, "once", RegisterService("s1")))  # a repeat that was still on its way
    world.run_until(world.loop.now_us + 1000 * US_PER_MS)
    daemon = world.machines[1].daemon
    assert daemon is not None
    assert daemon.node is not None
    assert not daemon.node.database.services["s1"].wanted
    assert not judge(world.history)


def test_texts_are_cut_to_bytes() -> None:
    assert clipped("short", 5) == "short"
    assert clipped("ä" * 100, 100) == "ä" * 48 + "..."
    assert len(clipped("\ud800" * 400, 100).encode()) <= 100
    assert msgspec.msgpack.encode(clipped("x" * 1000, 50))
