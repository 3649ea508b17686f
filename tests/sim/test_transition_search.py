"""Every order in which small worlds of transitions can go, and every point at which a node can die (SPEC 3, 2.4)."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from random import Random
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from muster.core.draft import Draft, Facts
from muster.core.events.resident import RehearsedEventManager
from muster.core.membership import membership
from muster.core.transitions import registration, subsystems, transition
from muster.records.levels import EVENT_MANAGER_LEVEL, Barriers, Level, NodeState, Required, TransitionKind
from muster.records.members import LeaveNode, Member, Proof
from muster.records.registers import ProofKind
from muster.records.timing import FAST
from muster.records.transitions import Acknowledgement, Transition
from muster.records.units import US_PER_MS
from muster.sim import schedule
from muster.sim.checkers.checkers import judge
from muster.sim.history import Applied, LevelAcknowledged, Notified, ReplicaState
from muster.sim.search.too_large import SearchTooLarge
from muster.sim.search.transition_search import LATE, LOW, ONE, ONE_TWICE, SUITES, TWO, account, run
from muster.sim.search.transition_seats import Budget, World
from muster.sim.world.surroundings import Settings
from muster.sim.world.world import World as Virtual

JOINING, LEAVING, FORCED = TransitionKind.JOINING, TransitionKind.LEAVING, TransitionKind.FORCED_LEAVING

# ---- the exhaustive search -------------------------------------------------------------------------------------------


LARGE = (SUITES[2][3], SUITES[2][11])  # 86,000 and 144,000 states
unbroken = functools.cache(run)  # several errors are looked for in one world


@pytest.mark.parametrize(
    "world", [pytest.param(each, marks=pytest.mark.long) if each in LARGE else each for each in SUITES[2]], ids=str
)
def test_no_order_of_events_breaks_a_rule_of_transitions_and_all_end_as_if_undisturbed(world: World) -> None:
    result = run(world)
    print(result)  # the number of states belongs to the proof
    assert not result.violation, str(result)
    assert result.states > 400


@pytest.mark.soak
@pytest.mark.parametrize("world", SUITES[3], ids=str)
def test_no_order_of_events_of_three_nodes_breaks_a_rule_of_transitions(world: World) -> None:
    result = run(world)
    print(result)
    assert not result.violation, str(result)


def test_the_search_loses_each_node_at_every_step_of_every_transition_before_and_after_it_acknowledges() -> None:
    levels = (ONE_TWICE, TWO, EVENT_MANAGER_LEVEL)
    reached: set[tuple[str, ...]] = set()
    for budget, joined in ((Budget(boots=1, crashes=1), 1), (Budget(leaves=1, crashes=1), 2), (Budget(crashes=2), 3)):
        reached |= run(World(3, joined, levels[:2], budget)).reached
    reached |= run(World(3, 2, levels[:2], Budget(boots=1, crashes=1))).reached
    missing = [
        (role, str(kind), level.number, barrier, when)
        for role in ("master", "node")
        for kind, number in ((JOINING, 0), (LEAVING, 1), (FORCED, 2))
        for level in levels
        for barrier in range(level.barriers[number])
        for when in ("before", "after", "unaware")
        if not (role == "master" and when == "unaware")  # it sees what it commits at once
        and not _lost_at(reached, role, str(kind), str(level.number), str(barrier), when)
    ]
    assert not missing


def _lost_at(reached: set[tuple[str, ...]], role: str, kind: str, level: str, barrier: str, when: str) -> bool:
    return any(("crash", role, whose, kind, level, barrier, when) in reached for whose in ("its own", "another's"))


def test_the_search_meets_turned_and_aborted_joins_late_levels_and_transitions_side_by_side() -> None:
    met: set[str] = set()
    for world in (SUITES[2][0], SUITES[2][4]):
        met |= set(account(run(world)))
    assert {
        "leave asked for while joining",
        "opened forced-leaving replaces joining",
        "opened forced-leaving replaces leaving",
        "opened joining late",
        "opened leaving replaces joining",
        "second step of a boot",
        "side by side 2 at 2 places",
    } <= met


def test_p3_17_the_search_meets_nodes_that_wait_for_required_levels_and_losses_that_nodes_do_not_outlive() -> None:
    met: set[str] = set()
    for departs in (False, True):
        world = World(2, 1, (), Budget(boots=1, late=1, gone=1), LATE, departs=departs, required=(Required(30),))
        result = run(world)
        assert "required 30" in str(world) and f"{result.states:,} states" in str(result)
        met |= set(account(result))
    assert {
        "a node that waits for a required level",
        "a join that waits for a required level to come back",
        "a loss that its node does not outlive",
        "a loss before the sight of the opened join",
    } <= met


def test_a_search_that_grows_too_large_says_so() -> None:
    with pytest.raises(SearchTooLarge, match=r"more than 500 states at depth .*: let less happen"):
        run(SUITES[2][0], maximum_states=500)


# ---- the search can fail: deliberate errors in the rules, each with what must be said of it --------------------------


def _never_shed(_draft: Draft, _transition: Transition) -> None:
    """Wait for the dead."""


def _believed_dead(member: Member, _facts: Facts) -> Proof | None:
    """Force n1 out on no evidence."""
    dead = member.node == 1 and member.state is NodeState.LEAVING
    return Proof(ProofKind.LEASE_EXPIRED, member.node, member.incarnation) if dead else None


def _begun_again(draft: Draft, node: int, proof: Proof) -> None:
    """Take a forced leave also through the levels that a graceful leave has completed."""
    current = draft.transition_of(node)
    if current is not None and current.kind is LEAVING:
        draft.put(replace(draft.member(node), inside=tuple(sorted(current.levels))))
    transition.open_forced_leave(draft, node, proof)


def _never_told(draft: Draft, node: int, proof: Proof) -> None:
    """Take a forced leave only through the lowest level."""
    draft.put(replace(draft.member(node), inside=(10,)))
    transition.open_forced_leave(draft, node, proof)


def _all_levels(draft: Draft, node: int, proof: Proof) -> None:
    """Take a forced leave through levels that were never told of the join."""
    draft.put(replace(draft.member(node), inside=(10, 20, 40)))
    transition.open_forced_leave(draft, node, proof)


def _told_elsewhere(draft: Draft, node: int, level: int) -> None:
    """Tell a late join to all levels of the node."""
    transition.open_late_join(draft, node, level)
    late = draft.transition_of(node)
    assert late is not None
    draft.put(replace(late, levels=tuple(sorted(each.number for each in draft.member(node).levels))))


def _untold(draft: Draft, node: int, level: Level, *, forced: bool) -> None:
    """Strike a registration without telling its level."""
    del forced
    member = draft.member(node)
    levels = tuple(each for each in member.levels if each.number != level.number)
    draft.put(replace(member, levels=levels, inside=tuple(each for each in member.inside if each != level.number)))


def _twice(draft: Draft, node: int) -> None:
    """Take a registration in again while its level still knows of the last one."""
    member = draft.member(node)
    kept = tuple(each.level.number for each in member.gone)
    draft.put(replace(member, gone=(), inside=tuple(each for each in member.inside if each not in kept)))


def _forgetful(self: subsystems.Subsystems, step: Acknowledgement) -> bool:
    """Notify a subsystem again once it has acknowledged."""
    self._notified.discard(step)
    self._acknowledged.add(step)
    return True


def _only_its_event_manager(draft: Draft, joining: Transition, level: int) -> int:
    """Let a join go on above a required level that has gone."""
    missing = all(each.number != transition.EVENT_MANAGER for each in draft.member(joining.node).levels)
    own = joining.kind is JOINING and not joining.late and level >= transition.EVENT_MANAGER
    return transition.EVENT_MANAGER if own and missing else 0


def _by_number(levels: Mapping[int, Level], counted: Level) -> bool:
    """Take the last registration of a level for the present one."""
    return counted.number in levels


class Mutant(NamedTuple):
    """An error, where it is put in, the world that it is searched in, and what the search must say."""

    place: object
    name: str
    error: Callable[..., object]
    world: World
    said: str


DEATHS = World(3, 3, (ONE,), Budget(crashes=2))
JOIN = World(2, 1, (ONE, TWO), Budget(boots=1, crashes=1))
LEAVE = World(2, 2, (ONE, TWO), Budget(leaves=1, crashes=1))
LEAVES = World(2, 2, (ONE,), Budget(leaves=2))
REPLACED = World(2, 2, (ONE,), Budget(late=2, gone=1), LATE)
COMES = World(2, 2, (ONE,), Budget(late=1), LATE)
GOES = World(2, 2, (), Budget(late=3, gone=1), LATE)
REQUIRES = World(2, 1, (), Budget(boots=1, late=1, gone=1), LATE, departs=True, required=(Required(30),))
STANDS_ON = World(2, 1, (ONE,), Budget(late=1, gone=1), LOW)
MUTANTS = (
    Mutant(membership, "waits_of", lambda *_: None, REQUIRES, r"SPEC 3.10: n1 joins without {\(30, ''\)}"),
    Mutant(transition, "_awaited", _only_its_event_manager, REQUIRES, r"SPEC 3.10: .* have gone"),
    Mutant(registration, "why_loss_fails", lambda *_: "", STANDS_ON, r"SPEC 3.2: level 5 ends below \{10\}"),
    Mutant(transition, "all_acknowledged", lambda *_: True, LEAVE, r"SPEC 3.4"),
    Mutant(transition, "_owes_others", lambda *_: False, LEAVES, r"SPEC 3.4: n\d has not acknowledged"),
    Mutant(
        transition, "_shed_participants", _never_shed, DEATHS, r"SPEC 3.4: the .* waits for {\d}, who cannot answer"
    ),
    Mutant(transition, "_awaited", lambda *_: 0, JOIN, r"SPEC 3.10: .* (before its event manager|are registered)"),
    Mutant(membership, "proof_of_death", _believed_dead, LEAVE, r"SPEC 3.9: incarnation 1 of n1 still runs"),
    Mutant(membership, "open_forced_leave", _begun_again, LEAVE, r"SPEC 3.9: .* takes {\d+}, told were"),
    Mutant(membership, "open_forced_leave", _never_told, LEAVE, r"SPEC 3.9: .* leaves out {.*}"),
    Mutant(membership, "open_forced_leave", _all_levels, JOIN, r"SPEC 3.9: .* takes {.*}, told were"),
    Mutant(membership, "barrier_conflict", lambda *_: "no", JOIN, r"SPEC 2.4: n\d ends inactive \(running: True\)"),
    Mutant(subsystems.Subsystems, "acknowledge", _forgetful, LEAVE, r"SPEC 3.6: level \d+ is told .* twice"),
    Mutant(subsystems, "is_present", _by_number, REPLACED, r"SPEC 3.6, Table 1: .* still processes joining"),
    Mutant(registration, "open_late_join", _told_elsewhere, COMES, r"SPEC 3.4: the late joining of n0 has \d barriers"),
    Mutant(registration, "_deregister", _untold, GOES, r"SPEC 3.4: .* is left in the middle"),
    Mutant(registration, "take_out_the_gone", _twice, GOES, r"SPEC 3.4: .* is left in the middle"),
)


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.name}-{mutant.error.__name__}")
def test_the_search_finds_a_deliberate_error(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not unbroken(mutant.world).violation
    with monkeypatch.context() as patched:
        patched.setattr(mutant.place, mutant.name, mutant.error)
        result = run(mutant.world)
    assert re.search(mutant.said, result.violation), str(result)


# ---- the same in the virtual world: real nodes, store and network, one power cut at every point ----------------------

LEVELS = (Level(10, "low", Barriers(2, 2, 2)), Level(20, "high"))
EVENT_MANAGER = EVENT_MANAGER_LEVEL
NODES = (0, 1, 2)
MOVING = 2  # the node that joins, leaves or is forced out
NETWORK_US = 2 * US_PER_MS  # by then the master has the acknowledgement of a calm network
PATIENCE = 200  # slices of 50 ms of virtual time until everything must be over


class Point(NamedTuple):
    """The moment of a power cut: a node is told or acknowledges for the `occurrence`th time, and so long after that."""

    what: str
    occurrence: int
    delay_us: int
    step: tuple[int, int]  # (level, barrier), for the reader


def _begin(kind: TransitionKind) -> Virtual:
    """A calm cluster at rest, in which the transition is about to begin; n0 is master."""
    world = Virtual(
        Settings(len(NODES), FAST, LEVELS, reboots=0.0, residents=(RehearsedEventManager(EVENT_MANAGER),)), Random(7)
    )
    present = NODES[:2] if kind is JOINING else NODES
    world.perform(schedule.Boot(0))
    _rest(world, {0: NodeState.JOINED})
    for node in present[1:]:
        world.perform(schedule.Boot(node))
    _rest(world, dict.fromkeys(present, NodeState.JOINED))
    return world


def _disturb(world: Virtual, kind: TransitionKind) -> None:
    if kind is JOINING:
        world.perform(schedule.Boot(MOVING))
    elif kind is LEAVING:
        world.perform(schedule.Ask(1, "leave", LeaveNode(f"n{MOVING}")))
    else:
        world.perform(schedule.PowerCut(MOVING))


def _newest(world: Virtual) -> ReplicaState | None:
    applied = [item for item in world.history if isinstance(item, Applied)]
    return max(applied, key=lambda item: item.index).state if applied else None


def _is_at_rest(world: Virtual, expected: dict[int, NodeState]) -> bool:
    """Whether these nodes are in these states, nothing is at work, and all that run know it."""
    state = _newest(world)
    if state is None or state.transitions:
        return False
    last = {item.node: item for item in world.history if isinstance(item, Applied)}
    running = [node for node in expected if world.machines[node].is_on]
    known = all(node in last and last[node].state == state for node in running)
    return known and all(state.members.get(node, Member(node)).state is wanted for node, wanted in expected.items())


def _rest(world: Virtual, expected: dict[int, NodeState]) -> None:
    for _ in range(PATIENCE):
        if _is_at_rest(world, expected):
            break
        world.run_until(world.loop.now_us + 50 * US_PER_MS)
    state = _newest(world)
    assert _is_at_rest(world, expected), f"{expected} expected: {state.members if state else None}"
    assert not judge(world.history)


def _settled(kind: TransitionKind) -> dict[int, NodeState]:
    """What the undisturbed run must lead to."""
    moved = NodeState.JOINED if kind is JOINING else NodeState.INACTIVE
    return {0: NodeState.JOINED, 1: NodeState.JOINED, MOVING: moved}


@cache
def _points(kind: TransitionKind, victim: int) -> tuple[Point, ...]:
    """Every point at which the victim is told or acknowledges in the undisturbed run."""
    world = _begin(kind)
    first = len(world.history)
    _disturb(world, kind)
    _rest(world, _settled(kind))
    own = [item for item in world.history[first:] if isinstance(item, Notified | LevelAcknowledged)]
    told = [item for item in own if item.node == victim and isinstance(item, Notified)]
    done = [item for item in own if item.node == victim and isinstance(item, LevelAcknowledged)]
    assert all(item.kind is kind and item.about == MOVING for item in told)
    before = [Point("notify", count, 0, (item.level, item.barrier)) for count, item in enumerate(told, 1)]
    after = [
        Point("acknowledge", count, delay_us, (item.level, item.barrier))
        for count, item in enumerate(done, 1)
        for delay_us in (0, NETWORK_US)
    ]
    return (*before, *after)


def _cases() -> Iterator[tuple[TransitionKind, int]]:
    return ((kind, victim) for kind in TransitionKind for victim in NODES if (kind, victim) != (FORCED, MOVING))


@pytest.mark.parametrize(("kind", "victim"), list(_cases()), ids=str)
def test_a_power_cut_at_every_point_of_a_transition_leads_to_the_same_final_states(
    kind: TransitionKind, victim: int
) -> None:
    """SPEC 2.4, 3.9: each node, the master (n0) too, before and after each acknowledgement."""
    points = _points(kind, victim)
    places = {point.step for point in points}
    assert places == {(10, 0), (10, 1), (20, 0), (40, 0)}
    assert len(points) == 3 * len(places)
    for point in points:
        world = _begin(kind)
        deed = schedule.PowerCut(victim)
        world.perform(schedule.When(point.what, "begun", point.occurrence, deed, victim, point.delay_us))
        _disturb(world, kind)
        world.run_until(world.loop.now_us + 300 * US_PER_MS)
        _rest(world, {**_settled(kind), victim: NodeState.INACTIVE})
        assert not world.machines[victim].is_on, f"nobody cut the power at {point}"
