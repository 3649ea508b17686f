"""The node's side of transitions: whom this node must notify now, derived from its replica (SPEC 3.4).

It remembers no orders: it compares the committed records with what was told already, so that lost, repeated or
reordered messages, a restarted daemon and a new master all come to the same.
"""

from collections.abc import Iterable, Mapping

from muster.core.draft import is_silent
from muster.core.effects import Notify, Trace
from muster.core.transitions import narration as history
from muster.core.transitions import registration
from muster.core.transitions.resident import Resident
from muster.core.transitions.transition import members_at, registration_of, told_at_level
from muster.records.database import Database
from muster.records.levels import Level, NodeState, TransitionKind
from muster.records.members import Member
from muster.records.transitions import Acknowledgement, Transition


class Subsystems:
    """Notifies the local subsystems, each (transition, level, barrier) once, and remembers their acknowledgements."""

    def __init__(self, node: int, incarnation: int, residents: Iterable[Resident] = ()) -> None:
        """`residents`: the built-in levels, told as any other once they are registered (P3.19)."""
        self._node, self._incarnation = node, incarnation
        self._residents = tuple(residents)
        self._answered: set[Acknowledgement] = set()  # what residents have asked for outside, and was acknowledged
        self.levels: dict[int, Level] = {}
        self._ended: dict[int, int] = {}  # level -> the last registration that has gone
        self._departed: set[tuple[int, int]] = set()  # (level, registration) of those that went by their own wish
        self._lost: set[int] = set()  # levels whose program has ended, until they are registered again
        self._notified: set[Acknowledgement] = set()
        self._acknowledged: set[Acknowledgement] = set()
        # (level, node) -> the forced leave of which it was last told; nothing once it knows of that node again
        self._ends: dict[tuple[int, int], int] = {}
        self._narrated: tuple[set[Acknowledgement], set[Acknowledgement]] = (set(), set())  # told, acknowledged

    def register(self, level: Level) -> None:
        """A subsystem registers (SPEC 3.2).

        Raises ValueError if the level is taken on this node, or the registration cannot be told from one that has
        gone (P3.13).
        """
        if level.number in self.levels:
            raise ValueError(f"level {level.number} is registered already, by {self.levels[level.number].name}")
        if level.registration <= self._ended.get(level.number, -1):
            last = self._ended[level.number]
            raise ValueError(f"level {level.number} registers as {level.registration}, after {last}: take a higher one")
        self.levels[level.number] = level
        self._lost.discard(level.number)

    def why_not(self, level: Level, database: Database | None) -> str:
        """Why this node cannot take a program's level, in words; empty where it can (SPEC 3.2, 3.10).

        `database`: the node's replica, if it is confirmed.
        """
        return registration.refusal(level, self.levels, database, self._node, self._incarnation)

    def give_up_conflicting(self, database: Database) -> dict[int, str]:
        """Give up what was registered here while another node registered it differently: level -> why (P3.4)."""
        found = registration.conflicts(self.levels, database, self._node, self._incarnation)
        for number in found:
            self.unregister(number)
        return found

    def begin_second_step(self, database: Database, *, is_confirmed: bool) -> None:
        """Register each resident once all below it has joined: the second step of the boot (P3.11, SPEC 3.10)."""
        own = database.member(self._node)
        known = own if is_confirmed and own.incarnation == self._incarnation else None
        for resident in self._residents:
            if self._is_time_for(resident.level.number, database, known):
                self.register(resident.level)

    def _is_time_for(self, number: int, database: Database, own: Member | None) -> bool:
        if number in self.levels:
            return False
        if all(other > number for other in self.levels):
            return True  # nothing is below it
        if own is None:
            return False
        if any(level.number == number for level in own.levels) or own.state is not NodeState.JOINING:
            return True  # it was registered before a daemon's restart
        return any(each.node == self._node and each.awaits == number for each in database.transitions.values())

    def unregister(self, number: int, *, departed: bool = False, ended: bool = False) -> bool:
        """The subsystem of this level is gone, and what it had not acknowledged with it. False if there was none.

        `departed`: by its own wish (P3.15); `ended`: its program has ended (P3.18); else it was refused.
        """
        gone = self.levels.pop(number, None)
        if gone is None:
            return False
        if departed:
            self._departed.add(gone.identity)
        if ended:
            self._lost.add(number)
        self._ended[number] = gone.registration
        self._notified = {step for step in self._notified if step.level != number}
        self._acknowledged = {step for step in self._acknowledged if step.level != number}
        self._ends = {about: end for about, end in self._ends.items() if about[0] != number}
        return True

    def lost(self, required: Iterable[int]) -> int:
        """The lowest of the `required` levels whose program has ended and is not back; 0 for none (P3.18)."""
        return min(self._lost.intersection(required), default=0)

    def departed(self, database: Database) -> tuple[tuple[int, int], ...]:
        """Who went by its own wish and still counts: for this node's report (P3.15)."""
        return tuple(sorted(self._departed_of(database)))

    def _departed_of(self, database: Database) -> set[tuple[int, int]]:
        own = database.member(self._node)
        if not self._departed or own.incarnation != self._incarnation:
            return self._departed
        return self._departed & {level.identity for level in own.levels}

    def due(self, database: Database) -> list[Notify]:
        """Tell residents what is new, and return what to tell programs, each once (P3.8). Forgets what is over."""
        standing = self._standing(database)  # what was told of one that is silent since counts as told (P4.8)
        self._notified &= standing.keys()
        self._acknowledged &= standing.keys()
        self._answered &= standing.keys()
        current = _not_of_silent(standing, database)
        notifications: list[Notify] = []
        vectors: dict[int, dict[int, NodeState]] = {}
        for step, transition in sorted(current.items(), key=lambda each: (each[1].barrier > 0, each[1].entry)):
            if step in self._notified:
                continue
            self._notified.add(step)
            if step.level not in vectors:
                vectors[step.level] = _vector(database, step.level)
            if self._never_heard(step, transition):
                self._acknowledged.add(step)
                continue
            self._remember(step, transition, vectors[step.level])
            notify = Notify(
                step.level, transition.identity, transition.node, transition.incarnation, transition.kind,
                transition.barrier, vectors[step.level], database.epoch, transition.entry,
                members_at(database, step.level, transition),
                registration_of(database.member(transition.node), step.level), transition.late,
            )  # fmt: skip
            resident = self._resident_of(step.level)
            notifications += (notify,) if resident is None else resident.told(notify)
        return notifications

    def _resident_of(self, number: int) -> Resident | None:
        return next((each for each in self._residents if each.level.number == number), None)

    def _never_heard(self, step: Acknowledgement, transition: Transition) -> bool:
        """Whether this is the end of a join that was over before this node saw it: its subsystem is told nothing.

        It holds the node as inactive, and Table 1 has no way from there but a join (P3.6, P3.15).
        """
        last = self._ends.get((step.level, transition.node), 0)
        return transition.kind is TransitionKind.FORCED_LEAVING and last not in (0, transition.identity)

    def _remember(self, step: Acknowledgement, transition: Transition, vector: Mapping[int, NodeState]) -> None:
        for node, state in vector.items():
            if state in (NodeState.JOINED, NodeState.JOINING):
                self._ends.pop((step.level, node), None)
        if transition.kind is TransitionKind.FORCED_LEAVING:
            self._ends[step.level, transition.node] = transition.identity

    def settle(self, database: Database) -> bool:
        """Let the residents acknowledge what they have done; True if one newly did (P3.19)."""
        self._departed = self._departed_of(database)
        if not database.transitions:
            return False
        before = len(self._acknowledged)
        for resident in self._residents:
            if resident.level.number in self.levels:
                for step, transition in self._current(database, resident.level.number).items():
                    if resident.has_done(self._node, transition, database, answered=step in self._answered):
                        self._acknowledged.add(step)
        return len(self._acknowledged) != before

    def acknowledge(self, step: Acknowledgement) -> bool:
        """A subsystem has processed a notification. False if it was not asked (stale, or never notified)."""
        if step not in self._notified:
            return False
        (self._acknowledged if self._resident_of(step.level) is None else self._answered).add(step)
        return True

    @property
    def owes(self) -> bool:
        """Whether a subsystem was told of something that it has not acknowledged."""
        return not self._notified <= self._acknowledged | self._answered

    def has_acknowledged(self, step: Acknowledgement) -> bool:
        """Whether this node's subsystem has processed the step."""
        return step in self._acknowledged

    def acknowledged(self, database: Database) -> tuple[Acknowledgement, ...]:
        """What to repeat in this node's report until the transitions have moved on (P3.3)."""
        if not self._acknowledged:
            return ()
        counted = self._counted(database)
        steps = sorted(self._acknowledged, key=_order)
        return tuple(
            step for step in steps if self._waits_for(database.transitions.get(step.transition), step, counted)
        )

    def narrate(self, database: Database) -> list[Trace]:
        """What was told and what was acknowledged since the last call, for the history (SPEC 8.2)."""
        traces: list[Trace] = []
        told, acknowledged = self._narrated
        if self._notified == told and self._acknowledged == acknowledged:
            return traces
        for fresh, event in (
            (self._notified - told, history.told),
            (self._acknowledged - acknowledged, history.acknowledged),
        ):
            for step in sorted(fresh, key=_order):
                transition = database.transitions.get(step.transition)
                if transition is not None:
                    traces.append(event(database, transition))
        self._narrated = (set(self._notified), set(self._acknowledged))
        return traces

    def _current(self, database: Database, only: int | None = None) -> dict[Acknowledgement, Transition]:
        """What may be told of the steps that stand: nothing more of a silent node until its proof (P4.8)."""
        return _not_of_silent(self._standing(database, only), database)

    def _standing(self, database: Database, only: int | None = None) -> dict[Acknowledgement, Transition]:
        """The steps that wait for a subsystem of this node, or for that of level `only`.

        While the record still shows the last registration of a level, they wait for that one, which is gone, and its
        successor hears of nothing (P3.13).
        """
        counted = self._counted(database)
        if only is not None:
            counted &= {only}
        if not counted:
            return {}
        return {
            Acknowledgement(transition.identity, transition.level, transition.barrier): transition
            for transition in database.transitions.values()
            if transition.level in counted and self._node in transition.participants
        }

    def _counted(self, database: Database) -> set[int]:
        """The levels of this node with which the record counts, and whose subsystems are here."""
        own = database.member(self._node)
        if own.incarnation != self._incarnation:
            return set()
        return {level.number for level in own.levels if is_present(self.levels, level)}

    def _waits_for(self, transition: Transition | None, step: Acknowledgement, counted: set[int]) -> bool:
        """Whether the step is the transition's present one, and waits for this node."""
        if transition is None or (transition.level, transition.barrier) != (step.level, step.barrier):
            return False
        return step.level in counted and self._node in transition.participants


def _not_of_silent(
    steps: Mapping[Acknowledgement, Transition], database: Database
) -> dict[Acknowledgement, Transition]:
    return {step: transition for step, transition in steps.items() if not is_silent(database.member(transition.node))}


def is_present(levels: Mapping[int, Level], counted: Level) -> bool:
    """Whether the subsystem that the record counts with is the one that is registered now (P3.13)."""
    here = levels.get(counted.number)
    return here is not None and here.identity == counted.identity


def _order(step: Acknowledgement) -> tuple[int, int, int]:
    return (step.transition, step.level, step.barrier)


def _vector(database: Database, level: int) -> dict[int, NodeState]:
    """The state of every node as it is at this level (SPEC 3.5, P3.14)."""
    transitions: dict[int, Transition] = {}
    for transition in database.transitions.values():
        if transition.node not in transitions or (transition.level == level and not transition.awaits):
            transitions[transition.node] = transition  # of two, the one that is at work here (P3.15)
    return {
        member.node: told_at_level(member, transitions.get(member.node), level) for member in database.members.values()
    }
