"""Exhaustive search over the move of a cluster to another store, with a crash, a pause and a lost disk at every step.

What a step is, is in `move_model.py`; why it is safe, in docs/PROTOCOL.md, P11.9-P11.14. The command
`python -m muster.sim.move_search` searches the suites below; a violation is printed as the shortest run that leads to
it. From every state in which no disk is lost the move must come to an end, if nobody crashes any more: one master who
decides, in the one store or in the other.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import NamedTuple

from muster.core import moving
from muster.core.moving import Place, Stage
from muster.sim.search.move_model import MoveBounds, MoveModel, MoveViolated, State
from muster.sim.search.too_large import SearchTooLarge

SUITES = (
    MoveBounds(claims=3, frames=1, crashes=1, boots=1),
    MoveBounds(claims=2, frames=1, crashes=2, boots=2),
    MoveBounds(claims=2, frames=1, crashes=1, boots=1, old_lost=1),
    MoveBounds(claims=2, frames=1, crashes=1, boots=1, new_lost=1),
    MoveBounds(claims=2, frames=0, moves=2, crashes=1, boots=1),
)


class MoveResult(NamedTuple):
    """Outcome of a search. `counterexample` is the run that ends in the violation, one step a line; empty if none."""

    states: int
    steps: int
    violation: str
    counterexample: tuple[str, ...]
    reached: frozenset[str]  # what some run has met

    def __str__(self) -> str:
        head = f"{self.states:,} states, {self.steps:,} steps"
        if not self.violation:
            return f"{head}: no violation"
        return "\n".join((f"{head}: {self.violation}", *self.counterexample))


def run(bounds: MoveBounds, nodes: int = 2, *, checks_ends: bool = True) -> MoveResult:
    """Search all runs within `bounds`, breadth first. Stops at the first violation. Raises `SearchTooLarge`.

    With `checks_ends` it is also checked that from every state the move comes to an end.
    """
    model = MoveModel(nodes, bounds)
    origins: dict[State, tuple[State, str] | None] = {model.start: None}
    layer, steps, ends = [model.start], 0, _Ends(model)
    while layer:
        following: list[State] = []
        for state in layer:
            said = ""
            try:
                model.judge(state)
                if checks_ends:
                    ends.check(state)
                for said, after in model.successors(state):
                    steps += 1
                    if after not in origins:
                        origins[after] = state, said
                        following.append(after)
            except MoveViolated as violated:
                trace = tuple(_trace(origins, state))
                return MoveResult(len(origins), steps, str(violated), trace, frozenset(model.reached))
        if len(origins) > bounds.states:
            raise SearchTooLarge(f"more than {bounds.states} states: lower the other bounds")
        layer = following
    return MoveResult(len(origins), steps, "", (), frozenset(model.reached))


class _Ends:
    """Which states are known to come to an end, with no disk lost and nobody crashing any more."""

    def __init__(self, model: MoveModel) -> None:
        self._model = model
        self._known: set[State] = set()

    def check(self, state: State) -> None:
        """That the cluster comes to an end of the move from here, by claims and boots. Raises `MoveViolated`."""
        if state.old.is_lost or state.new.is_lost:
            return
        calm, passed = state._replace(left=_CALM), list[State]()
        while calm not in self._known:
            passed.append(calm)
            if _is_settled(calm):
                break
            if len(passed) > _LONGEST:
                raise MoveViolated("from here the move comes to no end")
            calm = self._onwards(calm)
        self._known.update(passed)

    def _onwards(self, state: State) -> State:
        """One step of a run in which all who can go on do; who is idle claims only when nothing else is left to do."""
        claim = None
        for said, following in self._model.successors(state._replace(left=(1, *_CALM[1:]))):
            after = following._replace(left=_CALM)
            if " claims " in said:
                claim = claim or after
            elif after != state and not any(word in said for word in _NOT_CALM):
                return after
        if claim is None:
            raise MoveViolated("from here nobody can do anything")
        return claim


_CALM = (0, 0, 0, 0, 9, 0, 0)  # what is left of each bound in a run without further trouble
_LONGEST = 200  # steps of such a run
_NOT_CALM = (" writes ", " copies", " is made")  # what a master may do, and need not


def _is_settled(state: State) -> bool:
    for node in state.nodes:
        place = moving.acts_in(node.sign)
        if node.is_up and node.phase == "lead" and place is not None:
            store = state.old if place is Place.OLD else state.new
            closed = place is Place.OLD and moving.stage(step for step, _ in node.log) is Stage.CLOSED
            if max(store.claims) == node.term and not closed:
                return True
    return False


def _trace(origins: dict[State, tuple[State, str] | None], state: State) -> Iterator[str]:
    said = []
    origin = origins[state]
    while origin is not None:
        said.append(origin[1])
        origin = origins[origin[0]]
    for number, words in enumerate(reversed(said), 1):
        yield f"{number:3}. {words}"


def main(arguments: list[str] | None = None) -> int:
    """The command `python -m muster.sim.move_search`; exit status 1 if a property does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m muster.sim.move_search", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--nodes", type=int, default=2, choices=(2, 3))
    options = parser.parse_args(arguments)
    status = 0
    for bounds in SUITES:
        result = run(bounds, options.nodes)
        sys.stdout.write(f"{options.nodes} nodes, {bounds}: {result}\n")
        sys.stdout.flush()
        status |= bool(result.violation)
    return status


if __name__ == "__main__":
    sys.exit(main())
