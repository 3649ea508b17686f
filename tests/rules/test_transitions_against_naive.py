"""The rules of transitions beside a second version, written straight from SPEC 3: both tell subsystems the same things.

`Naive` knows no database, no draft, no report and no list of levels to come: a move knows where it is, and what follows
is looked up in what is registered at that moment. Random stories of boots, registrations, leaves, deaths and
acknowledgements are told to both; after each event both must have told the same subsystems the same things.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from muster.core.decisions.decide import decide
from muster.core.draft import Facts
from muster.core.effects import Notify
from muster.core.entries import apply
from muster.core.events.resident import RehearsedEventManager
from muster.core.leases.lease import Evidence
from muster.core.transitions import transition
from muster.core.transitions.subsystems import Subsystems
from muster.records.database import Entry, initial_database
from muster.records.levels import EVENT_MANAGER_LEVEL, Barriers, Level, NodeState, TransitionKind
from muster.records.members import LeaveNode
from muster.records.messages import Report, Request
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import ProofKind
from muster.records.terms import Term
from muster.records.transitions import Acknowledgement
from muster.records.versions import HIGHEST

JOINING, LEAVING, FORCED = TransitionKind.JOINING, TransitionKind.LEAVING, TransitionKind.FORCED_LEAVING
EVENT_MANAGER = EVENT_MANAGER_LEVEL.number
NODES = (0, 1, 2)
LEVELS = {
    10: Level(10, "low", Barriers(2, 1, 1)),
    20: Level(20, "middle", Barriers(1, 2, 1)),
    30: Level(30, "high", Barriers(1, 1, 2)),
    EVENT_MANAGER: EVENT_MANAGER_LEVEL,
    50: Level(50, "above", Barriers(2, 2, 1)),
}
ROUNDS = 100  # of decisions after one event: far beyond what any takes
TERM = Term(1, 0)


class Told(NamedTuple):
    """One notification: where, to whom, and of what."""

    node: int
    level: int
    kind: TransitionKind
    about: int
    incarnation: int
    barrier: int


# ---- the second version ----------------------------------------------------------------------------------------------


@dataclass
class Seat:
    """One node as everybody knows it. `registered` counts; `wanted` is what its subsystems have asked for.

    `incarnation` is the one that runs, or ran last; `member` the one that `state` is about.
    """

    state: NodeState = NodeState.INACTIVE
    incarnation: int = 0
    member: int = 0
    alive: bool = False
    wanted: set[int] = field(default_factory=set)
    registered: set[int] = field(default_factory=set)
    inside: set[int] = field(default_factory=set)  # the levels that know of it: told of its join, not of its leave
    ended: list[int] = field(default_factory=list)  # levels that know of it, and whose program has ended
    leave_asked: bool = False

    @property
    def counts(self) -> bool:
        """SPEC 3.4: not inactive and not forced-leaving."""
        return self.state in (NodeState.JOINING, NodeState.JOINED, NodeState.LEAVING)


@dataclass
class Move:
    """One node's transition, at one barrier of one level; `asked` must acknowledge it, `answered` have."""

    kind: TransitionKind
    about: int
    level: int = 0
    barrier: int = 0
    asked: set[int] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)
    heard: set[int] = field(default_factory=set)  # who was told of this barrier
    through: set[int] = field(default_factory=set)  # of a forced leave: the levels that it takes
    late: bool = False  # not the node's own, but that of one level which came later or went (SPEC 3.2, 3.10)
    parked: bool = False  # waits for the second step of the boot (SPEC 3.10)

    @property
    def barriers(self) -> int:
        """How many the level at work has."""
        joining, leaving, forced = LEVELS[self.level].barriers
        return {JOINING: joining, LEAVING: leaving, FORCED: forced}[self.kind]


class Naive:
    """SPEC 3, sentence by sentence."""

    def __init__(self) -> None:
        self.seats = {node: Seat() for node in NODES}
        self.moves: list[Move] = []
        self.told: list[Told] = []

    # events

    def boot(self, node: int, levels: set[int]) -> None:
        """A new incarnation starts and wants to join."""
        self.seats[node].alive, self.seats[node].wanted = True, set(levels)
        self.seats[node].incarnation += 1
        for move in self.moves:  # what an earlier incarnation heard and said counts for nothing
            move.heard.discard(node)
            move.answered.discard(node)
        self._go_on()

    def register(self, node: int, level: int) -> None:
        """A subsystem comes."""
        self.seats[node].wanted.add(level)
        self._go_on()

    def gone(self, node: int, level: int) -> None:
        """A subsystem goes."""
        self.seats[node].wanted.discard(level)
        for move in self.moves:
            if move.level == level:
                move.answered.discard(node)
                move.heard.discard(node)
        self._go_on()

    def leave(self, node: int) -> None:
        """SPEC 3.4, 3.7: a leave, or the wish to leave between levels."""
        seat = self.seats[node]
        if self._move_of(node) is None and seat.state is NodeState.JOINED:
            self._open_leave(node)
        elif seat.state in (NodeState.JOINING, NodeState.JOINED):
            seat.leave_asked = True
        self._go_on()

    def die(self, node: int) -> None:
        """It stops, and that is proven at once."""
        self.seats[node].alive = False
        self._go_on()

    def acknowledge(self, told: Told) -> None:
        """The subsystem has processed this."""
        move = next(each for each in self.moves if (each.about, each.level) == (told.about, told.level))
        move.answered.add(told.node)
        self._go_on()

    def pending(self) -> list[Told]:
        """What subsystems still work on."""
        return sorted(
            Told(node, move.level, move.kind, move.about, self.seats[move.about].member, move.barrier)
            for move in self.moves
            for node in move.heard - move.answered
            if self.seats[node].alive and move.level in self.seats[node].wanted
        )

    # rules

    def _go_on(self) -> None:
        for _ in range(ROUNDS):
            before = repr((self.seats, self.moves))
            self._admit()
            self._take_registrations()
            self._force_out()
            for node in NODES:
                self._take_up(node)
            for move in list(self.moves):
                if move in self.moves:
                    self._advance(move)
            self._tell()
            if repr((self.seats, self.moves)) == before:
                return
        raise AssertionError("the naive version does not come to rest")

    def _having(self, level: int) -> set[int]:
        return {node for node, seat in self.seats.items() if seat.counts and level in seat.registered}

    def _move_of(self, node: int) -> Move | None:
        return next((move for move in sorted(self.moves, key=lambda m: m.late) if move.about == node), None)

    def _at(self, level: int) -> list[Move]:
        """What a newcomer to this level takes part in; of the dead it knows nothing."""
        return [m for m in self.moves if m.level == level and not m.parked and m.kind is not FORCED]

    def _admit(self) -> None:
        """SPEC 3.8: a new incarnation joins when the last one is inactive."""
        admitted = []
        for node, seat in self.seats.items():
            missed = any(move.barrier > 0 for level in seat.wanted for move in self._at(level))
            fresh = seat.alive and seat.incarnation > seat.member
            free = seat.state is NodeState.INACTIVE and self._move_of(node) is None
            if fresh and free and not missed:
                seat.state, seat.registered, seat.inside = NodeState.JOINING, set(seat.wanted), set()
                seat.ended = []
                seat.member = seat.incarnation
                admitted.append(node)
        for node in admitted:
            for level in self.seats[node].registered:
                self._newcomer(node, level)
        for node in admitted:
            self._begin(Move(JOINING, node))

    def _newcomer(self, node: int, level: int) -> None:
        """It takes part in what begins at its level."""
        for move in self._at(level):
            move.asked.add(node)

    def _take_registrations(self) -> None:
        """SPEC 3.2, 3.10, 3.11: levels that came or went while the node is a member; lower ones come first."""
        for node, seat in self.seats.items():
            if not seat.counts or not seat.alive:
                continue
            for level in sorted(seat.registered - seat.wanted):
                seat.registered.discard(level)
                if level in seat.inside:
                    seat.ended.append(level)
            self._tell_of_the_ended(node)
            for level in sorted(seat.wanted - seat.registered):
                move = self._move_of(node)
                joins = move is not None and move.kind is JOINING and not move.late
                free = move is None or (joins and seat.state is NodeState.JOINING)
                missed = any(other.barrier > 0 for other in self._at(level))
                if seat.state is NodeState.LEAVING or not free or missed or level in seat.inside:
                    break
                seat.registered.add(level)
                self._newcomer(node, level)
                if move is None and seat.state is NodeState.JOINED:
                    self._begin(Move(JOINING, node, late=True), level)

    def _tell_of_the_ended(self, node: int) -> None:
        """SPEC 3.2: a forced leave of the level alone, between those of its node's move or aborting it there."""
        seat, move = self.seats[node], self._move_of(node)
        if not seat.ended or not seat.counts:
            return
        level = min(seat.ended)
        if move is not None and not move.parked:
            if move.level not in seat.ended or move.kind is FORCED:
                return
            level = move.level
        if move is not None:
            self.moves.remove(move)
        self._begin(Move(FORCED, node, late=True), level)

    def _take_up(self, node: int) -> None:
        """What gave way to one level, or waited for it."""
        seat = self.seats[node]
        if self._move_of(node) is not None or not seat.counts:
            return
        if seat.ended:
            self._tell_of_the_ended(node)
        elif seat.leave_asked:
            self._open_leave(node)
        elif seat.state in (NodeState.JOINING, NodeState.LEAVING):
            self._begin(Move(JOINING if seat.state is NodeState.JOINING else LEAVING, node))

    def _force_out(self) -> None:
        """SPEC 3.9: from the lowest level to the highest that knows of it."""
        for node, seat in self.seats.items():
            if seat.alive or not seat.counts:
                continue
            aborted = self._move_of(node)
            recovering = aborted is not None and aborted.late and aborted.kind is FORCED
            if aborted is not None and not recovering:
                self.moves.remove(aborted)
            seat.state, seat.leave_asked, seat.ended = NodeState.FORCED_LEAVING, False, []
            through = seat.inside - ({aborted.level} if aborted is not None and recovering else set())
            self._begin(Move(FORCED, node, through=through))

    def _open_leave(self, node: int) -> None:
        seat = self.seats[node]
        seat.state, seat.leave_asked = NodeState.LEAVING, False
        if seat.ended:
            self._tell_of_the_ended(node)
        else:
            self._begin(Move(LEAVING, node))

    def _begin(self, move: Move, level: int | None = None) -> None:
        self.moves.append(move)
        self._enter(move, self._following(move) if level is None else level)

    def _following(self, move: Move) -> int | None:
        """SPEC 3.4, 3.9: the next level in the order of this kind of transition; levels that nobody has are passed."""
        if move.late:
            return None
        seat = self.seats[move.about]
        while True:
            if move.kind is JOINING:
                return min(seat.registered - seat.inside, default=None)
            level = max(seat.inside, default=None) if move.kind is LEAVING else min(move.through, default=None)
            if level is None or self._having(level):
                return level
            self._left(move, level)

    def _left(self, move: Move, level: int) -> None:
        """The level knows of the node no more."""
        seat = self.seats[move.about]
        seat.inside.discard(level)
        seat.ended = [each for each in seat.ended if each != level]
        move.through.discard(level)

    def _enter(self, move: Move, level: int | None) -> None:
        seat = self.seats[move.about]
        second_step = move.kind is JOINING and not move.late and EVENT_MANAGER not in seat.registered
        if second_step and (level is None or level >= EVENT_MANAGER):
            move.parked = True
            return
        if level is not None and move.late and not self._having(level):
            self._left(move, level)
            level = None
        if level is None:
            self.moves.remove(move)
            if move.late:
                return
            seat.state = NodeState.JOINED if move.kind is JOINING else NodeState.INACTIVE
            if move.kind is not JOINING:
                seat.registered, seat.inside, seat.ended = set(), set(), []
            if move.kind is LEAVING:
                seat.alive = False  # it is back where it can boot again
            return
        move.level, move.barrier, move.parked = level, 0, False
        move.asked, move.answered, move.heard = self._having(level), set(), set()
        if move.kind is JOINING:
            seat.inside.add(level)

    def _advance(self, move: Move) -> None:
        seat = self.seats[move.about]
        if move.parked:
            if seat.leave_asked:
                self._turn(move)
            elif seat.registered - seat.inside:
                self._enter(move, self._following(move))
            return
        move.asked &= self._having(move.level)  # nobody waits for who is gone
        if not move.asked <= move.answered or self._owes(move):
            return
        if move.barrier + 1 < move.barriers:
            move.barrier, move.answered, move.heard = move.barrier + 1, set(), set()
            return
        if move.kind is LEAVING:
            seat.registered.discard(move.level)
        if move.kind is not JOINING:
            self._left(move, move.level)
        if seat.ended and not move.late:
            self.moves.remove(move)
            self._tell_of_the_ended(move.about)
        elif move.kind is JOINING and seat.leave_asked:
            self._turn(move)
        else:
            self._enter(move, self._following(move))

    def _owes(self, move: Move) -> bool:
        """SPEC 3.11: its subsystem is deregistered with its last acknowledgement, of whatever it has begun."""
        if move.kind is not LEAVING or move.barrier + 1 < move.barriers:
            return False
        return any(
            other is not move and move.about in other.asked and other.level == move.level and not other.parked
            and (move.about not in other.answered or other.barrier + 1 < other.barriers)
            for other in self.moves
        )  # fmt: skip

    def _turn(self, move: Move) -> None:
        """SPEC 3.7: only the levels that joined are taken down."""
        self.moves.remove(move)
        self._open_leave(move.about)

    def _tell(self) -> None:
        """Every subsystem that is asked, once; who has left or died hears nothing. Then the boots take their step."""
        for move in self.moves:
            for node in sorted(move.asked - move.heard):
                if not move.parked and self.seats[node].alive and move.level in self.seats[node].wanted:
                    move.heard.add(node)
                    member = self.seats[move.about].member
                    self.told.append(Told(node, move.level, move.kind, move.about, member, move.barrier))
            if move.parked and self.seats[move.about].alive:
                self.seats[move.about].wanted.add(EVENT_MANAGER)


# ---- the rules themselves --------------------------------------------------------------------------------------------


class Real:
    """The core's rules and its subsystems, with a master that is always there and a network that takes no time."""

    def __init__(self) -> None:
        configs = tuple(NodeConfig(node, f"n{node}", (), "") for node in NODES)
        self.database = initial_database(Cluster("naive", "0" * 32, "fast", "", active_version=HIGHEST), configs)
        self.running: dict[int, Subsystems] = {}
        self.incarnations = dict.fromkeys(NODES, 0)
        self.told: list[Told] = []
        self._notified: dict[Told, Acknowledgement] = {}
        self._requests = self._registrations = 0

    def boot(self, node: int, levels: set[int]) -> None:
        """As `Naive`, all of them."""
        self.incarnations[node] += 1
        self.running[node] = Subsystems(node, self.incarnations[node], (RehearsedEventManager(),))
        for level in sorted(levels):
            self.running[node].register(LEVELS[level])
        self._go_on()

    def register(self, node: int, level: int) -> None:
        """A subsystem comes."""
        self._registrations += 1
        self.running[node].register(LEVELS[level]._replace(registration=self._registrations))
        self._go_on()

    def gone(self, node: int, level: int) -> None:
        """A subsystem goes."""
        assert self.running[node].unregister(level)
        self._go_on()

    def leave(self, node: int) -> None:
        """An operator asks for a leave; that may be refused."""
        self._requests += 1
        self._go_on(Request(f"leave {self._requests}", LeaveNode(f"n{node}")))

    def die(self, node: int) -> None:
        """It stops."""
        del self.running[node]
        self._go_on()

    def acknowledge(self, told: Told) -> None:
        """A subsystem is done."""
        if self.running[told.node].acknowledge(self._notified[told]):
            self._go_on()
        else:
            self.told.append(told._replace(barrier=-1))  # it was not waited for: the two have parted

    def states(self) -> dict[int, tuple[NodeState, int]]:
        """What has become of each node."""
        members = (self.database.member(node) for node in NODES)
        return {member.node: (member.state, member.incarnation) for member in members}

    def _go_on(self, *requests: Request) -> None:
        asked = list(requests)
        changes: object = ()
        for _ in range(ROUNDS):
            self._look()
            draft, _ = decide(self.database, self._facts(), asked)
            asked = []
            changes = draft.changes
            if not draft.changes:
                return
            apply(self.database, Entry(draft.index, TERM, "", draft.changes))
        raise AssertionError(f"the rules do not come to rest: {changes}")

    def _look(self) -> None:
        """Every node does what its replica says."""
        for node, subsystems in list(self.running.items()):
            member = self.database.member(node)
            if member.incarnation == self.incarnations[node]:
                if member.state is NodeState.INACTIVE:
                    del self.running[node]  # it has left
                    continue
                assert member.state is not NodeState.FORCED_LEAVING
            join = next((each for each in self.database.transitions.values() if each.node == node), None)
            parked = join is not None and (join.awaits, join.incarnation) == (EVENT_MANAGER, self.incarnations[node])
            if parked and EVENT_MANAGER not in subsystems.levels:
                subsystems.register(EVENT_MANAGER_LEVEL)
            for notification in subsystems.due(self.database):
                self._note(node, notification)
            subsystems.settle(self.database)

    def _note(self, node: int, n: Notify) -> None:
        told = Told(node, n.level, n.kind, n.node, n.incarnation, n.barrier)
        self.told.append(told)
        self._notified[told] = Acknowledgement(n.transition, n.level, n.barrier)

    def _facts(self) -> Facts:
        reports = {}
        for node, subsystems in self.running.items():
            wish = "" if self.database.member(node).incarnation == self.incarnations[node] else "join"
            levels = tuple(subsystems.levels[number] for number in sorted(subsystems.levels))
            steps = subsystems.acknowledged(self.database)
            reports[node] = Report(TERM, self.database.index, self.incarnations[node], wish, levels, steps)

        def evidence(node: int, incarnation: int) -> Evidence | None:
            stopped = incarnation < self.incarnations[node] or node not in self.running
            return Evidence(ProofKind.LEASE_EXPIRED, incarnation, "it is silent") if stopped else None

        return Facts(
            0, 0, reports, evidence, lambda node: node in self.running, {}, {}, services_open=True,
        )  # fmt: skip


# ---- stories ---------------------------------------------------------------------------------------------------------

Event = tuple[str, int, int]  # a verb, a node, and a number that chooses the rest
VERBS = ("boot", "boot", "register", "gone", "leave", "die", *("acknowledge",) * 10)
STORIES = st.lists(
    st.tuples(st.sampled_from(VERBS), st.sampled_from(NODES), st.integers(0, 11)), min_size=100, max_size=100
)
ALIKE = ({10, 20},)  # what nodes have at their boot, by the number of the event
MIXED = ({10}, {10, 20}, {20, 50}, {10, 20, 30})


def _tell_both(naive: Naive, real: Real, event: Event, boots: Sequence[set[int]]) -> bool:
    """Let the event happen in both, where it can; whether it could."""
    verb, node, number = event
    seat, level = naive.seats[node], (10, 20, 30, 50)[number % 4]
    pending = naive.pending()
    match verb:
        case "boot" if not seat.alive:
            levels = boots[number % len(boots)]
            naive.boot(node, levels)
            real.boot(node, levels)
        case "register" if seat.alive and level not in seat.wanted:
            naive.register(node, level)
            real.register(node, level)
        case "gone" if seat.alive and level in seat.wanted:
            naive.gone(node, level)
            real.gone(node, level)
        case "leave" if seat.alive and seat.counts:
            naive.leave(node)
            real.leave(node)
        case "die" if seat.alive:
            naive.die(node)
            real.die(node)
        case "acknowledge" if pending:
            naive.acknowledge(pending[number % len(pending)])
            real.acknowledge(pending[number % len(pending)])
        case _:
            return False
    return True


def _differences(story: list[Event], boots: Sequence[set[int]] = ALIKE) -> Iterator[str]:
    """Where the two part, event by event."""
    naive, real = Naive(), Real()
    for place, event in enumerate(story):
        before = len(naive.told), len(real.told)
        if not _tell_both(naive, real, event, boots):
            continue
        expected, seen = sorted(naive.told[before[0] :]), sorted(real.told[before[1] :])
        if expected != seen:
            yield f"event {place}, {event}: told {seen}, the naive version {expected}; after {story[:place]}"
            return
        states = {node: (seat.state, seat.member) for node, seat in naive.seats.items()}
        if states != real.states():
            yield f"event {place}, {event}: {real.states()}, the naive version {states}; after {story[:place]}"
            return


QUICK = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
UNSHRUNK = settings(QUICK, phases=(Phase.generate,))
LONG = settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))


@UNSHRUNK
@given(STORIES)
def test_both_versions_tell_the_same_subsystems_the_same_things_in_the_same_order(story: list[Event]) -> None:
    """SPEC 3.2-3.11."""
    assert list(_differences(story)) == []


@UNSHRUNK
@given(STORIES)
def test_both_versions_agree_where_nodes_have_different_levels(story: list[Event]) -> None:
    """SPEC 3.2-3.11."""
    assert list(_differences(story, MIXED)) == []


@pytest.mark.soak
@LONG
@given(STORIES)
def test_both_versions_agree_on_many_more_stories(story: list[Event]) -> None:
    assert list(_differences(story)) == []


BOOTS: list[Event] = [("boot", 0, 1), *[("acknowledge", 0, 0)] * 12, ("boot", 1, 1), *[("acknowledge", 0, 0)] * 12]


@pytest.mark.parametrize(
    ("name", "story"),
    [
        ("all_acknowledged", BOOTS),
        ("_owes_others", [*BOOTS, ("leave", 0, 0), ("leave", 1, 0), *[("acknowledge", 0, 1)] * 20]),
    ],
)
def test_the_comparison_finds_a_deliberate_error(
    name: str, story: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not list(_differences(story))
    monkeypatch.setattr(transition, name, lambda *_: name == "all_acknowledged")
    assert list(_differences(story))


def test_the_stories_reach_every_kind_of_notification_at_every_level() -> None:
    """A comparison that compares nothing proves nothing."""
    real, naive = Real(), Naive()
    story: list[Event] = [
        *[("boot", node, 3) for node in NODES], *[("acknowledge", 0, 0)] * 60,
        *[("register", node, 3) for node in NODES], *[("acknowledge", 0, 0)] * 36, ("leave", 1, 0),
        *[("acknowledge", 0, 0)] * 30, ("die", 2, 0), *[("acknowledge", 0, 0)] * 30,
    ]  # fmt: skip
    for event in story:
        _tell_both(naive, real, event, MIXED)
    assert {(told.kind, told.level) for told in real.told} == {
        *((kind, level) for kind in (JOINING, LEAVING, FORCED) for level in LEVELS if level != 50),
        *((kind, 50) for kind in (JOINING, LEAVING, FORCED)),
    }
    assert [state for state, _ in real.states().values()] == [NodeState.JOINED, NodeState.INACTIVE, NodeState.INACTIVE]
