"""Single steps of levels that come and go (P3.13-P3.15), on records as they may stand."""

from msgspec.structs import replace

from muster.core.draft import Draft, Facts
from muster.core.effects import Notify
from muster.core.node.built_in import RESIDENTS
from muster.core.transitions.registration import follow_reports, refusal
from muster.core.transitions.subsystems import Subsystems
from muster.core.transitions.transition import advance, open_forced_leave, take_out_the_gone
from muster.records.database import Database
from muster.records.levels import BUILT_IN, Barriers, Gone, Level, NodeState, TransitionKind
from muster.records.members import Member, Proof
from muster.records.messages import Report
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import ProofKind
from muster.records.terms import NO_TERM
from muster.records.transitions import Acknowledgement, Transition
from muster.records.versions import HIGHEST

FORCED, LEAVING, JOINING = TransitionKind.FORCED_LEAVING, TransitionKind.LEAVING, TransitionKind.JOINING


def level(number: int, registration: int = 1) -> Level:
    return Level(number, f"level{number}", Barriers(2, 1, 1), registration=registration)


def member(node: int, *numbers: int, state: NodeState = NodeState.JOINED, gone: tuple[Gone, ...] = ()) -> Member:
    """A member that is in the levels that it has registered, and in those that have gone and are not told of it yet."""
    inside = tuple(sorted({*numbers, *(each.level.number for each in gone)}))
    levels = tuple(level(number) for number in numbers)
    return Member(node, state, 5, levels, max(inside, default=0), by_level=True, inside=inside, gone=gone)


def draft_of(*members: Member, transitions: tuple[Transition, ...] = ()) -> Draft:
    nodes = {each.node: NodeConfig(each.node, f"n{each.node}", (), "") for each in members}
    cluster = Cluster("test", "0" * 32, "fast", "", active_version=HIGHEST)
    database = Database(
        cluster, 10, nodes=nodes, members={each.node: each for each in members},
        transitions={each.identity: each for each in transitions},
    )  # fmt: skip
    return Draft(database)


def facts_of(**reports: Report) -> Facts:
    by_node = {int(name[1:]): report for name, report in reports.items()}
    return Facts(0, 0, by_node, lambda _n, _i: None, lambda _n: True, {}, {}, services_open=True)


def report(*levels: Level, steps: tuple[Acknowledgement, ...] = ()) -> Report:
    return Report(NO_TERM, 10, 5, "", levels, steps)


def test_p3_15_those_that_have_ended_go_bottom_up_then_those_that_deregistered_top_down() -> None:
    gone = tuple(Gone(level(number), forced) for number, forced in ((60, False), (30, True), (50, False), (20, True)))
    draft = draft_of(member(0, 20, 30, 50, 60), member(1, gone=gone))
    order = []
    while draft.member(1).gone:
        take_out_the_gone(draft, 1)
        (out,) = draft.transitions.values()
        order.append((out.level, out.kind))
        done = report(*draft.member(0).levels, steps=(Acknowledgement(out.identity, out.level, 0),))
        advance(draft, facts_of(n0=done))
        draft = Draft(replace(draft.database, members=dict(draft.members), transitions={}))
    assert order == [(20, FORCED), (30, FORCED), (60, LEAVING), (50, LEAVING)]


def test_p3_14_a_level_that_must_wait_makes_those_above_it_wait() -> None:
    past = Transition(7, 2, 5, JOINING, (20,), 0, 1, (0,), barriers=2)  # n0's level 20 is past its first barrier
    for transitions, taken in (((past,), [10]), ((), [10, 20])):  # 30 follows when 20 has been told
        joining = member(2, 20, state=NodeState.JOINING)
        draft = draft_of(member(0, 20, 30), member(1, 10), joining, transitions=transitions)
        follow_reports(draft, facts_of(n1=report(level(10), level(20), level(30))))
        assert [each.number for each in draft.member(1).levels] == taken


def test_p3_15_a_level_is_not_taken_in_again_before_its_peers_have_done_with_its_last_end() -> None:
    out = Transition(7, 1, 5, FORCED, (20,), 0, 0, (0,), late=True)
    ended = replace(member(1, 10), inside=(10, 20))
    draft = draft_of(member(0, 20), ended, transitions=(out,))
    follow_reports(draft, facts_of(n1=report(level(10), level(20, 2))))
    assert [each.number for each in draft.member(1).levels] == [10]
    later = draft_of(member(0, 20), member(1, 10))
    follow_reports(later, facts_of(n1=report(level(10), level(20, 2))))
    assert [each.number for each in later.member(1).levels] == [10, 20]


def test_p3_15_a_leave_tells_of_a_program_that_has_ended_meanwhile_before_it_goes_on() -> None:
    leaving = Transition(7, 1, 5, LEAVING, (60, 30), 0, 0, (0,))
    ended = replace(member(1, 60, state=NodeState.LEAVING, gone=(Gone(level(30), forced=True),)), leave_asked="")
    draft = draft_of(member(0, 30, 60), ended, transitions=(leaving,))
    acknowledged = report(level(30), level(60), steps=(Acknowledgement(7, 60, 0),))
    advance(draft, facts_of(n0=acknowledged, n1=report(level(60))))
    (out,) = draft.transitions.values()
    assert (out.kind, out.level, out.late) == (FORCED, 30, True)


def test_p3_14_a_subsystem_is_not_told_the_end_of_a_life_whose_join_it_never_heard_of() -> None:
    own = Subsystems(0, 5)
    own.register(level(20))
    first = Transition(7, 1, 5, FORCED, (20,), 0, 0, (0,))
    members = {0: member(0, 20), 1: member(1, 20, state=NodeState.FORCED_LEAVING)}
    before = draft_of(*members.values(), transitions=(first,)).database
    assert [each.transition for each in own.due(before)] == [7]
    again = replace(first, identity=9, incarnation=6)  # the next life has come and gone between two looks
    after = draft_of(*members.values(), transitions=(again,)).database
    assert own.due(after) == []
    assert own.has_acknowledged(Acknowledgement(9, 20, 0))


def test_p3_5_a_forced_leave_takes_no_level_that_a_leave_of_an_older_release_had_completed() -> None:
    leaver = replace(member(1, 10, 30, state=NodeState.LEAVING), by_level=False, inside=(), told_level=60)
    leaving = Transition(7, 1, 5, LEAVING, (60, 30, 10), 1, 0, (0, 1))
    draft = draft_of(member(0, 10, 30, 60), leaver, transitions=(leaving,))
    open_forced_leave(draft, 1, Proof(ProofKind.FENCE_AGENT, 1, 5))
    (forced,) = draft.transitions.values()
    assert forced.levels == (10, 30)


class Disks:
    """A made resident of level 20: it does its work when the test says so."""

    def __init__(self) -> None:
        self.level = level(20)
        self.heard: list[Notify] = []
        self.is_ready = False

    def told(self, notify: Notify) -> tuple[Notify, ...]:
        """It hears it."""
        self.heard.append(notify)
        return ()

    def has_done(self, node: int, transition: Transition, database: Database, *, answered: bool) -> bool:
        """Once the test says so."""
        assert (node, transition.identity, database.epoch, answered) == (0, 7, database.epoch, False)
        return self.is_ready


def test_p3_19_a_resident_is_told_as_a_program_is_and_what_it_has_done_counts() -> None:
    disks = Disks()
    own = Subsystems(0, 5, (disks,))
    joining = Transition(7, 1, 5, TransitionKind.JOINING, (20,), 0, 0, (0, 1))
    database = draft_of(member(0, 20), member(1, 20, state=NodeState.JOINING), transitions=(joining,)).database
    own.begin_second_step(database, is_confirmed=True)
    assert list(own.levels) == [20]
    own.begin_second_step(database, is_confirmed=True)
    assert own.due(database) == [] and not own.settle(database)
    assert [(each.transition, each.vector[1]) for each in disks.heard] == [(7, NodeState.JOINING)]
    assert own.owes
    disks.is_ready = True
    assert own.settle(database) and own.has_acknowledged(Acknowledgement(7, 20, 0))
    assert own.due(database) == [] and len(disks.heard) == 1, "it is told once"
    restarted = Subsystems(0, 5, (disks,))
    restarted.register(level(20))
    restarted.due(database)
    assert len(disks.heard) == 2, "a daemon that is started again tells it again"


def test_p3_19_a_resident_registers_when_all_below_it_has_joined_and_its_number_is_reserved() -> None:
    database = draft_of(member(0, 10, state=NodeState.JOINING)).database
    waits = Subsystems(0, 5, (Disks(),))
    waits.register(level(10))
    waits.begin_second_step(database, is_confirmed=True)
    assert list(waits.levels) == [10], "something below it has not joined"
    parked = Transition(7, 0, 5, TransitionKind.JOINING, (10,), 1, 0, (), awaits=20)
    joined = draft_of(member(0, 10, state=NodeState.JOINING), transitions=(parked,)).database
    waits.begin_second_step(joined, is_confirmed=False)
    assert list(waits.levels) == [10], "what the replica says is not known to hold"
    waits.begin_second_step(joined, is_confirmed=True)
    assert list(waits.levels) == [10, 20]
    for built_in in BUILT_IN:
        assert "take another one" in refusal(built_in, {}, None, 0, 5)
    assert tuple(each.level for each in RESIDENTS) == BUILT_IN
