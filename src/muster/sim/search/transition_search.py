"""Exhaustive search over transitions in small worlds: joins, leaves, deaths and masters in every order (SPEC 3, 2.4).

What is real code and what is abstract, and why that is sound, is in `transition_model.py`; what must hold of every
committed entry and every notification is in `transition_rules.py`. Searched is every order in which two or three nodes
catch up, acknowledge and report, proofs are found, masters are elected, and the things of the budget happen: boots,
leaves asked for, crashes, evictions, changes of master, restarts of daemons, levels that are registered late or go.
From every state, what the nodes do by themselves must come to an end, whatever its order, and every end must be that of
the undisturbed run: who runs has joined, or has left if it was asked to; the dead are inactive; each subsystem holds
that, and owes nothing. A violation is printed as the shortest run that leads to it.
"""

import argparse
import sys
from array import array
from collections.abc import Callable
from typing import NamedTuple

from muster.records.levels import Barriers, Level, Required
from muster.sim.search.too_large import SearchTooLarge
from muster.sim.search.transition_model import State, Step, TransitionModel
from muster.sim.search.transition_rules import Broken
from muster.sim.search.transition_seats import Budget, World

MAXIMUM_STATES = 20_000_000


class TransitionResult(NamedTuple):
    """Outcome of a search. `counterexample` is the run that ends in the violation, one step a line; empty if none."""

    states: int
    steps: int
    depth: int
    crash_points: int  # distinct (role, whose transition, kind, level, barrier, before or after acknowledging)
    reached: frozenset[tuple[str, ...]]  # what the search has met
    violation: str
    counterexample: tuple[str, ...]

    def __str__(self) -> str:
        head = f"{self.states:,} states, {self.steps:,} steps, depth {self.depth}, {self.crash_points} crash points"
        if not self.violation:
            return f"{head}: no violation"
        return "\n".join((f"{head}: {self.violation}", *self.counterexample))


Progress = Callable[[int, int, int], None]  # states, steps, depth; after each layer


class _Found(Exception):
    """A violation, after so many states."""

    def __init__(self, state: int, problem: str, last: str) -> None:
        super().__init__(problem)
        self.state, self.problem, self.last = state, problem, last


class _Search:
    """One search: the states by number, how each was first reached, and the steps between them."""

    def __init__(self, world: World, maximum_states: int) -> None:
        self.model = TransitionModel(world)
        self.numbers: dict[State, int] = {self.model.start: 0}
        self.order: list[State] = [self.model.start]
        self.parents = array("q", [-1])
        self.first_steps: list[Step] = [("start",)]
        self.steps = self.depth = 0
        self._targets, self._ends = array("q"), array("q")  # progress steps of each state, one after the other
        self._maximum_states = maximum_states

    def explore(self, progress: Progress | None) -> None:
        """Breadth first. Raises `_Found` and `SearchTooLarge`."""
        number = layer_end = 0
        while number < len(self.order):
            if number > layer_end:
                layer_end = len(self.order) - 1
                self.depth += 1
                if progress is not None:
                    progress(len(self.order), self.steps, self.depth)
            self._expand(number)
            if len(self.order) > self._maximum_states:
                raise SearchTooLarge(
                    f"more than {self._maximum_states:,} states at depth {self.depth}: let less happen (Budget)"
                )
            number += 1

    def _expand(self, number: int) -> None:
        try:
            own, events = self.model.successors(self.order[number])
        except Broken as broken:
            raise _Found(number, str(broken), "and then") from broken
        self.steps += len(own) + len(events)
        for step, following in own:
            self._targets.append(self._number(following, number, step))
        self._ends.append(len(self._targets))
        for step, following in events:
            self._number(following, number, step)

    def _number(self, state: State, parent: int, step: Step) -> int:
        found = self.numbers.get(state)
        if found is None:
            found = self.numbers[state] = len(self.order)
            self.order.append(state)
            self.parents.append(parent)
            self.first_steps.append(step)
        return found

    def check_ends(self) -> None:
        """No circle: what nodes do by themselves ends, in a state that the model has judged. Raises `_Found`."""
        entered, left = bytearray(len(self.order)), bytearray(len(self.order))
        for root in range(len(self.order)):
            if entered[root]:
                continue
            entered[root] = 1
            path = [(root, self._begin(root))]
            while path:
                state, edge = path.pop()
                if edge == self._ends[state]:
                    left[state] = 1
                    continue
                path.append((state, edge + 1))
                target = self._targets[edge]
                if entered[target] and not left[target]:
                    raise _Found(target, "SPEC 2.4: from here the nodes can go round in a circle for ever", "")
                if not entered[target]:
                    entered[target] = 1
                    path.append((target, self._begin(target)))

    def _begin(self, state: int) -> int:
        return self._ends[state - 1] if state else 0

    def trace(self, found: _Found) -> tuple[str, ...]:
        """The steps to the violation, in words."""
        lines = [found.last] if found.last else []
        state = found.state
        while state:
            lines.append(f"{_words(self.first_steps[state]):<40} {self._shown(self.order[state])}")
            state = self.parents[state]
        return tuple(f"{number:3}. {line}" for number, line in enumerate(reversed(lines), 1))

    def _shown(self, state: State) -> str:
        database = self.model.database(state)
        members = ", ".join(f"n{m.node} {m.state}" for m in database.members.values())
        transitions = "; ".join(
            f"{each.kind} of n{each.node} at {each.level}.{each.barrier} {each.participants}"
            for each in database.transitions.values()
        )
        return f"[{members}] {transitions}"


def run(world: World, progress: Progress | None = None, maximum_states: int = MAXIMUM_STATES) -> TransitionResult:
    """Search a world. Stops at the first violation. Raises `SearchTooLarge`."""
    try:
        search = _Search(world, maximum_states)
    except Broken as broken:
        return TransitionResult(
            0, 0, 0, 0, frozenset(), str(broken), ("before anything happens, while the first nodes join",)
        )
    violation = ""
    counterexample: tuple[str, ...] = ()
    try:
        search.explore(progress)
        search.check_ends()
    except _Found as found:
        violation, counterexample = found.problem, search.trace(found)
    reached = frozenset(search.model.reached)
    crash_points = sum(1 for each in reached if each[0] == "crash")
    return TransitionResult(
        len(search.order), search.steps, search.depth, crash_points, reached, violation, counterexample
    )  # fmt: skip


def _words(step: Step) -> str:
    match step:
        case ("acknowledge", node, transition, level, barrier):
            return f"n{node} acknowledges {level}.{barrier} of {transition}"
        case ("catch up", node, lag):
            return f"n{node} catches up to {lag} behind"
        case (verb, node, *rest):
            return " ".join(map(str, (f"n{node}", verb, *rest)))
    return str(step[0])


ONE, TWO = Level(10, "low"), Level(20, "high")
ONE_TWICE, TWO_TWICE = Level(10, "low", Barriers(2, 1, 2)), Level(20, "high", Barriers(1, 2, 1))
LATE, TALL = Level(30, "late", Barriers(2, 1, 1)), Level(50, "tall")
LATE_TWICE, LOW = Level(30, "late", Barriers(1, 2, 2)), Level(5, "lowest", Barriers(2, 1, 2))

# What is searched by default: several worlds, because each reaches what the others cannot afford.
SUITES = {
    2: (
        World(2, 1, (ONE_TWICE, TWO), Budget(boots=1, leaves=1, crashes=1), LATE),
        World(2, 1, (ONE_TWICE, TWO_TWICE), Budget(boots=1, crashes=2), LATE),
        World(2, 2, (ONE_TWICE, TWO_TWICE), Budget(leaves=1, crashes=2), LATE),
        World(2, 1, (ONE, TWO), Budget(boots=1, leaves=1, crashes=1, changes=1), LATE),
        World(2, 1, (ONE,), Budget(boots=1, crashes=1, late=1), LATE),
        World(2, 1, (ONE, TWO), Budget(boots=1, crashes=1, restarts=1), LATE),
        World(2, 2, (ONE, TWO), Budget(evictions=1, crashes=1, boots=1), LATE),
        World(2, 1, (ONE, TWO), Budget(boots=1, leaves=1, crashes=1), LATE, event_manager=None),
        World(2, 1, (ONE,), Budget(boots=1, leaves=1, crashes=1), LATE, tall=TALL),
        World(3, 3, (ONE_TWICE, TWO), Budget(crashes=2), LATE),
        World(2, 1, (), Budget(boots=1, late=1, gone=1), LATE),
        World(2, 2, (), Budget(leaves=1, late=2, gone=1), LATE, departs=True),
        World(2, 2, (), Budget(crashes=1, late=2, gone=1), LATE),
        World(2, 1, (), Budget(boots=1, late=1, gone=1), LOW),
        World(2, 1, (), Budget(boots=1, late=2, gone=1), LATE, departs=True, required=(Required(30),)),
        World(2, 1, (ONE,), Budget(boots=1, late=1, corrections=1), LATE, required=(Required(30),)),
        World(2, 1, (ONE,), Budget(boots=1, late=1, gone=1), LOW, required=(Required(5, "lowest"),)),
        World(2, 1, (ONE,), Budget(boots=1, changes=1, late=1, gone=1), LATE, required=(Required(30),)),
        World(2, 1, (), Budget(boots=1, restarts=1, late=1, gone=1), LATE, required=(Required(30),)),
    ),
    3: (
        World(3, 2, (ONE_TWICE, TWO), Budget(boots=1, crashes=2), LATE),
        World(3, 3, (ONE, TWO_TWICE), Budget(leaves=1, crashes=2), LATE),
        World(3, 3, (ONE, TWO), Budget(crashes=2, changes=1), LATE),
        World(3, 2, (ONE,), Budget(boots=1, leaves=1, crashes=1), LATE),
        World(3, 2, (ONE, TWO), Budget(boots=1, crashes=1, changes=1), LATE),
        World(3, 3, (ONE,), Budget(leaves=2, crashes=1), LATE),
        World(3, 1, (ONE,), Budget(boots=2, crashes=1), LATE),
        World(3, 3, (ONE,), Budget(crashes=1, late=1), LATE),
        World(2, 1, (ONE, TWO), Budget(boots=2, leaves=1, crashes=1), LATE),
        World(2, 1, (ONE, TWO), Budget(boots=1, leaves=1, crashes=1, late=1), LATE),
        World(2, 1, (ONE,), Budget(boots=1, crashes=1, late=2, gone=1), LATE),
        World(2, 1, (ONE,), Budget(boots=1, crashes=1, late=1), LOW),
        World(2, 1, (ONE,), Budget(boots=1, late=2, gone=1), LATE),
        World(2, 2, (ONE,), Budget(leaves=1, late=2, gone=1), LATE),
        World(2, 2, (ONE,), Budget(crashes=1, late=2, gone=1), LATE),
        World(2, 2, (), Budget(late=3, gone=2), LATE),
        World(2, 2, (), Budget(leaves=1, late=2, gone=1), LATE_TWICE, departs=True),
        World(2, 1, (ONE,), Budget(boots=1, changes=1, late=2, gone=1), LATE),
        World(2, 2, (ONE,), Budget(restarts=1, changes=1, late=2, gone=1), LATE),
        World(2, 2, (), Budget(leaves=1, crashes=1, late=2, gone=1), LATE_TWICE),
        World(3, 3, (), Budget(late=2, gone=1), LATE),
        World(2, 1, (), Budget(boots=1, late=2, gone=1, corrections=1), LATE, departs=True, required=(Required(30),)),
        World(2, 1, (), Budget(boots=1, late=2, gone=1), LATE, required=(Required(30, "late"),)),
        World(2, 1, (ONE,), Budget(boots=1, late=2, gone=1), LOW, required=(Required(5, "lowest"),)),
        World(2, 1, (), Budget(boots=2, crashes=1, late=1), LATE, required=(Required(30),)),
    ),
}


def account(result: TransitionResult) -> list[str]:
    """What a search has met, in words, one kind a line; crash points are counted in the result."""
    return sorted(" ".join(each) for each in result.reached if each[0] != "crash")


def main(arguments: list[str] | None = None) -> int:
    """The command `python -m muster.sim.transition_search`; exit status 1 if a rule does not hold."""
    parser = argparse.ArgumentParser(prog="python -m muster.sim.transition_search", description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=2, choices=sorted(SUITES))
    nodes = parser.parse_args(arguments).nodes
    status = 0
    met: set[str] = set()
    for world in SUITES[nodes]:
        result = run(world, _report)
        sys.stdout.write(f"{world}: {result}\n")
        sys.stdout.flush()
        met |= set(account(result))
        status |= bool(result.violation)
    sys.stdout.write("met: " + "; ".join(sorted(met)) + "\n")
    return status


def _report(states: int, steps: int, depth: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"depth {depth}: {states:,} states, {steps:,} steps\r")


if __name__ == "__main__":
    sys.exit(main())
