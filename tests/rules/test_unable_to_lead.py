"""A node that cannot write what only it writes gives way (P2.11), in the virtual world and step by step."""

import itertools
from random import Random

import pytest

from muster.core.effects import AppendFrame, WriteClaim
from muster.core.inputs import StoreRefused
from muster.core.mastership.inability import LONGEST_PAUSE_MS, Inability
from muster.core.mastership.tenure import GaveWay, Patience, Tenure, patience_of
from muster.core.node import insight
from muster.records.members import EvictNode
from muster.records.registers import Claim, ClaimFlag, Mark, Strip
from muster.records.services import ApplyServices, Definition, RegisterService
from muster.records.terms import Stamp, Term
from muster.records.timing import FAST, PROFILES
from muster.records.units import US_PER_MS
from muster.sim import schedule
from muster.sim.checkers.checkers import Progress, judge
from muster.sim.history import Elected, Replied
from muster.sim.world.surroundings import Settings
from muster.sim.world.world import World

MARK = Mark(Term(3, 0), 0, 4)
OWN = Claim(Stamp(0, 7, Term(3, 0), 5), ClaimFlag.WITHDRAWN, MARK)
PATIENCE = Patience(1000, 4000)
JOURNAL = ("frame", "checkpoint")
REGISTER = ("claim", "mark", "withdrawal")


def cluster(nodes: int = 3) -> World:
    """A calm cluster with one service, whose master is node 0."""
    world = World(Settings(nodes, FAST, reboots=0.0), Random(5))
    for node in range(nodes):
        world.perform(schedule.Boot(node))
    settle(world)
    ask(world, 0, "define", ApplyServices((Definition("web", start_command=("start",)),)))
    assert master(world) == 0
    return world


def settle(world: World, nodes: int | None = None) -> None:
    outlook = Progress(world.history, nodes or world.settings.nodes)
    for _ in range(200):
        if not outlook.missing():
            break
        run(world, 50)
    assert not outlook.missing()
    assert not judge(world.history)


def run(world: World, milliseconds: float) -> None:
    world.run_until(world.loop.now_us + int(milliseconds * US_PER_MS))


def master(world: World) -> int | None:
    leading = [m.node for m in world.machines if m.daemon and m.daemon.node and m.daemon.node.is_master]
    return leading[0] if leading else None


def ask(world: World, node: int, identity: str, operation: ApplyServices | RegisterService | EvictNode) -> None:
    """Ask, and wait for the answer."""
    world.perform(schedule.Ask(node, identity, operation))
    for _ in range(300):
        if any(isinstance(item, Replied) and item.identity == identity for item in world.history):
            return
        run(world, 50)
    pytest.fail(f"{identity} is not answered within 15 s")


@pytest.mark.parametrize("what", [JOURNAL, ("frame",), (*JOURNAL, "mark")])
def test_p2_11_a_master_that_cannot_write_its_journal_gives_way_and_another_one_decides(what: tuple[str, ...]) -> None:
    world = cluster()
    world.perform(schedule.Spoil(what, node=0))
    ask(world, 1, "after", ApplyServices((Definition("page"),)))
    assert master(world) in (1, 2)
    for machine in world.machines:
        assert machine.life is not None, "no node has to stop for that"
        assert machine.daemon is not None
        assert machine.daemon.node is not None
        if "frame" in what:
            assert "error" in insight.unable_to_lead(machine.daemon.node)[0]
    settle(world)


def test_p2_11_the_mutant_never_giving_way_stops_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muster.core.decisions.leadership.patience_of", lambda _profile: Patience(1 << 60, 1 << 61))
    world = cluster()
    world.perform(schedule.Spoil(JOURNAL, node=0))
    world.perform(schedule.Ask(1, "after", ApplyServices((Definition("page"),))))
    run(world, 30_000)
    assert master(world) == 0
    assert not any(isinstance(item, Replied) and item.identity == "after" for item in world.history)


def test_p2_11_a_node_that_cannot_lead_is_passed_over_at_the_next_election() -> None:
    world = cluster()
    world.perform(schedule.Spoil(JOURNAL, node=0))
    ask(world, 1, "after", ApplyServices((Definition("page"),)))
    first = master(world)
    assert first is not None
    run(world, LONGEST_PAUSE_MS / 10)
    began_us = world.loop.now_us
    world.perform(schedule.Kill("guard", first))
    for _ in range(200):
        if master(world) not in (None, first):
            break
        run(world, 20)
    elected = [item for item in world.history if isinstance(item, Elected) and item.at_us > began_us]
    assert [item.node for item in elected] == [3 - first]
    assert elected[0].at_us - began_us < 2 * (FAST.proof_ms() + 2 * FAST.claim_stagger_ms) * US_PER_MS


def test_p2_11_it_leads_again_once_it_can_write() -> None:
    world = cluster()
    world.perform(schedule.Spoil(JOURNAL, node=0))
    ask(world, 1, "after", ApplyServices((Definition("page"),)))
    world.perform(schedule.Mend(0))
    for node in (1, 2):
        world.perform(schedule.Kill("guard", node))
    for _ in range(200):
        if master(world) == 0:
            break
        run(world, 50)
    ask(world, 0, "again", RegisterService("web"))
    assert master(world) == 0
    daemon = world.machines[0].daemon
    assert daemon is not None
    assert daemon.node is not None
    assert not insight.unable_to_lead(daemon.node)


def test_p2_11_a_daemon_that_is_started_anew_while_it_leads_has_waited_for_nothing_yet() -> None:
    world = cluster()
    world.perform(schedule.Kill("daemon", 0))
    run(world, 1500)
    assert world.machines[0].life is not None
    settle(world)


@pytest.mark.parametrize("hangs", [False, True])
def test_p2_11_a_claim_that_can_be_neither_used_nor_withdrawn_ends_its_node(hangs: bool) -> None:
    world = cluster()
    world.perform(schedule.Spoil((*JOURNAL, *REGISTER), node=0, hangs=hangs))
    ask(world, 1, "after", ApplyServices((Definition("page"),)))
    assert master(world) in (1, 2)
    assert world.machines[0].life is None
    assert not judge(world.history)


def test_p2_11_a_write_that_hangs_is_never_overtaken_by_a_withdrawal() -> None:
    world = cluster()
    world.perform(schedule.Spoil(("frame",), node=0, hangs=True))
    ask(world, 1, "after", ApplyServices((Definition("page"),)))
    assert world.machines[0].life is None
    world.perform(schedule.Mend(0))
    run(world, 500)
    assert not judge(world.history)


def test_p2_11_a_node_that_holds_no_claim_needs_its_register_for_nothing() -> None:
    world = cluster()
    world.perform(schedule.Spoil((*JOURNAL, *REGISTER), node=2, hangs=True))
    run(world, 15_000)
    assert world.machines[2].life is not None
    settle(world)


def test_p2_11_a_master_whose_marks_cannot_be_written_hands_over() -> None:
    world = cluster()
    world.perform(schedule.Spoil(("marks",), node=0))
    ask(world, 1, "evict", EvictNode("n2", "a test"))
    for _ in range(100):
        if master(world) == 1 and world.machines[2].life is None:
            break
        run(world, 100)
    assert (master(world), world.machines[2].life) == (1, None)
    assert not judge(world.history)


def tenure(flag: ClaimFlag = ClaimFlag.WITHDRAWN) -> Tenure:
    """A machine at boot, whose withdrawal is under way."""
    made = Tenure(OWN._replace(flag=flag), 7, 10, itertools.count(1), PATIENCE)
    made.start(0)
    return made


def strip(flag: ClaimFlag, incarnation: int = 7) -> Strip:
    return Strip((), (Claim(Stamp(0, incarnation, Term(3, 0), 5), flag, MARK),), (), ())


def refuse(made: Tenure, now_us: int) -> None:
    """The store refuses what was asked last."""
    effects, _ = made.drain()
    last = effects[-1]
    assert isinstance(last, WriteClaim | AppendFrame)
    made.refused(StoreRefused(last.operation, "failed", "input/output error"), now_us)


def test_p2_11_a_withdrawal_is_never_given_up() -> None:
    made = tenure()
    for now_us in range(0, 3000, 500):
        refuse(made, now_us)
        made.retry(now_us + 10)
    effects, outcomes = made.drain()
    assert isinstance(effects[-1], WriteClaim)
    assert not any(isinstance(outcome, GaveWay) for outcome in outcomes)


@pytest.mark.parametrize(
    ("shown", "incarnation", "ends"),
    [(ClaimFlag.MASTER, 7, True), (ClaimFlag.CLAIMING, 7, True), (ClaimFlag.WITHDRAWN, 7, False),
     (ClaimFlag.MASTER, 6, False)],
)  # fmt: skip
def test_p2_11_only_a_claim_that_others_wait_for_ends_the_node(shown: ClaimFlag, incarnation: int, ends: bool) -> None:
    made = tenure(ClaimFlag.MASTER)
    refuse(made, 0)
    assert not made.hopeless(strip(shown, incarnation), PATIENCE.silent_us)
    assert bool(made.hopeless(strip(shown, incarnation), PATIENCE.silent_us + 1)) is ends


def test_p2_11_an_unknown_register_ends_nobody() -> None:
    made = tenure(ClaimFlag.MASTER)
    refuse(made, 0)
    assert not made.hopeless(Strip((), (None,), (), ()), 100 * PATIENCE.silent_us)


def test_p2_11_bounds_outlive_a_stall_of_the_store() -> None:
    for profile in PROFILES.values():
        patience = patience_of(profile)
        assert patience.failing_us < patience.silent_us
        own_ms = profile.leadership_ms  # between machines a mastership has a lease of its own (P2.15)
        assert patience.silent_us >= max(own_ms + 8000, profile.lease_ms) * US_PER_MS


def test_p2_11_the_pause_before_the_next_attempt_grows_to_a_bound() -> None:
    inability = Inability(FAST)
    pauses = [inability.found("no") for _ in range(12)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_MS * US_PER_MS
    inability.over()
    assert inability.found("no") == pauses[0]
    assert inability.own


def test_p2_11_a_register_that_is_written_again_makes_the_node_a_candidate_again() -> None:
    inability = Inability(FAST)
    bound_us = patience_of(FAST).failing_us
    assert not inability.refused("view", 0)
    assert not inability.refused("view", bound_us - 1)
    assert inability.refused("view", bound_us)
    inability.found("its view register cannot be written: no")
    inability.over()
    assert inability.own
    inability.written("view")
    assert not inability.own
