"""Exhaustive search over the mastership machine: every interleaving of a few nodes on one store (SPEC 2.6, 2.3, 1.5).

What a step is, what may go wrong between two steps, and what must hold in each, is in `mastership_model.py`; the safety
argument is in docs/PROTOCOL.md, section "Mastership and the commit rule". `python -m muster.sim.exhaustive --nodes 2`
searches all modes and prints the number of states; a violation is printed as the run that leads to it, step by step.
"""

import argparse
import sys
from array import array
from collections.abc import Callable
from typing import NamedTuple

from muster.sim.search.mastership_model import Bounds, MastershipModel, Mode, Violated
from muster.sim.search.too_large import SearchTooLarge


class MastershipResult(NamedTuple):
    """Outcome of a search. `counterexample` is the run that ends in the violation, one step a line; empty if none."""

    states: int
    transitions: int
    depth: int
    violations: tuple[str, ...]
    counterexample: tuple[str, ...]
    reached: frozenset[str]  # phases that some process was in, `decided N` for histories of N frames, `halted`

    def __str__(self) -> str:
        head = f"{self.states:,} states, {self.transitions:,} transitions, depth {self.depth}"
        if not self.violations:
            return f"{head}: no violation"
        return "\n".join((f"{head}: {self.violations[0]}", *self.counterexample))


Progress = Callable[[int, int, int], None]  # states, transitions, depth; after each layer


def run(
    nodes: int,
    bounds: Bounds,
    mode: Mode,
    progress: Progress | None = None,
    *,
    check_progress: bool = False,
    truncates: bool = True,
) -> MastershipResult:
    """Search all runs of `nodes` nodes (2 to 4) within `bounds`, breadth first: a counterexample is a shortest one.

    With `check_progress` it is also checked that from every state, once crashes stop and nobody gives up without need,
    some node can still come to lead for good (this takes a second graph of the size of the first). With `truncates`
    the engine is worse than its contract: a half that is being rewritten, or that a crash left so, may pass for its old
    journal with fewer frames. Stops at the first violation.
    Raises `SearchTooLarge` and `ValueError` (a bound that is out of range).
    """
    if not 2 <= nodes <= 4:
        raise ValueError(f"{nodes} nodes: the search takes 2 to 4")
    model = MastershipModel(nodes, bounds, mode, truncates=truncates)
    parents: dict[int, int] = {model.start: -1}
    transitions = depth = 0
    layer = [model.start]
    try:
        while layer:
            following: list[int] = []
            for state in layer:
                successors = model.successors(state)
                transitions += len(successors)
                for successor in successors:
                    if successor not in parents:
                        parents[successor] = state
                        following.append(successor)
            if len(parents) > bounds.states:
                raise SearchTooLarge(f"more than {bounds.states} states at depth {depth}: lower the other bounds")
            if progress is not None:
                progress(len(parents), transitions, depth)
            depth += bool(following)
            layer = following
        if check_progress:
            _check_progress(model, parents, progress)
    except Violated as violated:
        trace = _trace(model, parents, violated)
        return MastershipResult(len(parents), transitions, depth, (violated.problem,), trace, frozenset(model.reached))
    return MastershipResult(len(parents), transitions, depth, (), (), frozenset(model.reached))


def _check_progress(model: MastershipModel, states: dict[int, int], progress: Progress | None) -> None:
    """Backward reachability: from every state some node can come to lead for good. Raises `Violated`.

    Only what each state leads to is asked, not what the steps on the way might spoil: a scheduler that is fair does not
    repeat a bad choice for ever, and after each bad choice the store is again in one of the states examined.
    """
    model.judges_histories = False
    origins = {model.resting(state): state for state in states}
    numbers = {state: number for number, state in enumerate(origins)}
    order = list(origins)
    # Edges, backwards, as linked lists in flat arrays: millions of small lists would take most of the time and memory.
    last_edge, edge_from, edge_before = array("q", [-1]) * len(order), array("q"), array("q")
    for number, state in enumerate(order):  # grows while it is walked
        for successor in model.successors(state):
            target = numbers.setdefault(successor, len(order))
            if target == len(order):
                order.append(successor)
                last_edge.append(-1)
            edge_before.append(last_edge[target])
            last_edge[target] = len(edge_from)
            edge_from.append(number)
    if progress is not None:
        progress(len(order), len(edge_from), 0)
    pending = [number for number, state in enumerate(order) if model.leads_for_good(state)]
    good = bytearray(len(order))
    for number in pending:
        good[number] = 1
    while pending:
        edge = last_edge[pending.pop()]
        while edge >= 0:
            source, edge = edge_from[edge], edge_before[edge]
            if not good[source]:
                good[source] = 1
                pending.append(source)
    for number, origin in enumerate(origins.values()):
        if not good[number]:
            problem = "from here no node can come to lead for good, whatever the scheduler does"
            raise Violated(origin, problem, problem)


def _trace(model: MastershipModel, parents: dict[int, int], violated: Violated) -> tuple[str, ...]:
    """The steps to the offending one, in words."""
    lines = [violated.words]
    state = violated.state
    while parents[state] >= 0:
        words: list[str] = []
        following = model.successors(parents[state], words)
        lines.append(words[following.index(state)])
        state = parents[state]
    return tuple(f"{number:3}. {line}" for number, line in enumerate(reversed(lines), 1))


# What is searched by default: several bounds, because each reaches what the others cannot afford.
SUITES = {
    2: (
        Bounds(claims=2, frames=2, crashes=1, compactions=1, withdrawals=1, stale_claims=1),
        Bounds(claims=2, frames=2, crashes=2, compactions=1, withdrawals=0, stale_claims=0),
        Bounds(claims=3, frames=2, crashes=1, compactions=1, withdrawals=0, stale_claims=0),
        Bounds(claims=4, frames=2, crashes=0, compactions=1, withdrawals=0, stale_claims=0),
    ),
    3: (
        Bounds(claims=3, frames=2, crashes=1, compactions=0, withdrawals=0, stale_claims=0),
        Bounds(claims=2, frames=2, crashes=1, compactions=1, withdrawals=0, stale_claims=0),
        Bounds(claims=2, frames=1, crashes=0, compactions=0, withdrawals=1, stale_claims=1),
    ),
}
SILENT_SUITES = {
    2: (
        Bounds(claims=2, frames=2, crashes=1, compactions=1, withdrawals=1, stale_claims=1),
        Bounds(claims=2, frames=2, crashes=0, compactions=1, withdrawals=0, stale_claims=0, hangs=2),
        Bounds(claims=3, frames=1, crashes=1, compactions=0, withdrawals=0, stale_claims=0, hangs=1),
        Bounds(claims=3, frames=2, crashes=1, compactions=1, withdrawals=0, stale_claims=0),
    ),
    3: (
        Bounds(claims=2, frames=1, crashes=0, compactions=0, withdrawals=0, stale_claims=0, hangs=2),
        Bounds(claims=2, frames=2, crashes=1, compactions=1, withdrawals=0, stale_claims=0),
        Bounds(claims=2, frames=1, crashes=0, compactions=0, withdrawals=1, stale_claims=1),
    ),
}
CLONE_SUITES = {
    2: (
        Bounds(claims=2, frames=2, crashes=1, compactions=0, withdrawals=0, stale_claims=0),
        Bounds(claims=3, frames=1, crashes=1, compactions=0, withdrawals=0, stale_claims=0),
    ),
    3: (Bounds(claims=2, frames=1, crashes=1, compactions=0, withdrawals=0, stale_claims=0),),
}
# One search that covers something of everything, affordable in every mode.
DEFAULT_BOUNDS = {2: SUITES[2][2], 3: CLONE_SUITES[3][0]}


def suite(nodes: int, mode: Mode) -> tuple[Bounds, ...]:
    """The bounds that are searched by default, one after the other."""
    suites = {Mode.CLONE: CLONE_SUITES, Mode.SILENCE: SILENT_SUITES}
    return suites.get(mode, SUITES)[nodes]


def main(arguments: list[str] | None = None) -> int:
    """The command `python -m muster.sim.exhaustive`; exit status 1 if a property does not hold."""
    parser = argparse.ArgumentParser(prog="python -m muster.sim.exhaustive", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nodes", type=int, default=2, choices=sorted(SUITES))
    parser.add_argument("--mode", action="append", choices=[mode.value for mode in Mode], help="default: all")
    for field in Bounds._fields:
        option = f"--{field.replace('_', '-')}"
        parser.add_argument(option, type=int, metavar="N", help=f"at most N {field} instead of the default")
    options = parser.parse_args(arguments)
    given = {field: value for field in Bounds._fields if (value := getattr(options, field)) is not None}
    status = 0
    for mode in Mode:
        if options.mode and mode.value not in options.mode:
            continue
        for bounds in dict.fromkeys(bounds._replace(**given) for bounds in suite(options.nodes, mode)):
            progress = options.nodes == 2 and mode is not Mode.CLONE
            result = run(options.nodes, bounds, mode, _report, check_progress=progress)
            sys.stdout.write(f"{options.nodes} nodes, {mode.value}, {bounds}: {result}\n")
            sys.stdout.flush()
            status |= bool(result.violations)
    return status


def _report(states: int, transitions: int, depth: int) -> None:
    sys.stderr.write(f"depth {depth}: {states:,} states, {transitions:,} transitions\n")


if __name__ == "__main__":
    sys.exit(main())
