"""The command `muster sim`: campaigns of the simulator, and the exhaustive searches of mastership and transitions."""

import sys
import time
from collections.abc import Callable

import click

from muster.setup.errors import Mistaken
from muster.ui.options import EXIT_REFUSED, print_json, reporting

_PROGRESS_S = 1.0
_SHOWN_FAILURES = 3


@click.command()
@click.option("--seeds", type=click.IntRange(1, 10_000_000), default=200, show_default=True, help="How many runs.")
@click.option(
    "--from", "first", type=click.IntRange(0), default=1, show_default=True, metavar="SEED", help="First seed."
)
@click.option("--mutant", metavar="NAME", help="Run with this deliberate error; the checkers must find it.")
@click.option("--mutants", "list_mutants", is_flag=True, help="List the mutants.")
@click.option("--verbose", is_flag=True, help="Tell each run in full: its plan, its history, and what broke where.")
@click.option("--processes", type=click.IntRange(1, 1024), help="How many at a time [one a processor].")
@click.option("--exhaustive", is_flag=True, help="Instead, search all runs of the mastership machine.")
@click.option(
    "--transitions", is_flag=True, help="Instead, search all orders of events of small worlds of transitions."
)
@click.option("--nodes", type=click.IntRange(2, 3), default=2, show_default=True, help="Nodes to search with.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@reporting
def sim(
    seeds: int,
    first: int,
    mutant: str | None,
    list_mutants: bool,
    verbose: bool,
    processes: int | None,
    exhaustive: bool,
    transitions: bool,
    nodes: int,
    as_json: bool,
) -> None:
    """Run the very rules that the daemon runs, in a virtual world of faults, and judge every run.

    A seed is a whole world: the same seed always makes the same run. Ends with 1 if a rule was broken; prints the one
    command that shows the broken run again.

    \b
    Examples:
      muster sim --seeds 2000
      muster sim --seeds 1 --from 4711 --verbose
      muster sim --seeds 200 --mutant skip-proof
      muster sim --exhaustive --nodes 3
      muster sim --transitions
    """
    if list_mutants:
        _list_mutants(as_json=as_json)
    elif exhaustive:
        _search(nodes, as_json=as_json)
    elif transitions:
        _search_transitions(nodes, as_json=as_json)
    elif verbose:
        _tell(seeds, first, mutant)
    else:
        _campaign(seeds, first, mutant, processes, as_json=as_json)


def _list_mutants(*, as_json: bool) -> None:
    from muster.sim.faults.mutants import MUTANTS

    print_json({"mutants": sorted(MUTANTS)}) if as_json else click.echo("\n".join(sorted(MUTANTS)))


def _check_mutant(mutant: str | None) -> None:
    from muster.sim.faults.mutants import MUTANTS

    if mutant is not None and mutant not in MUTANTS:
        raise Mistaken(f"there is no mutant {mutant!r}", "--mutant", "there are " + ", ".join(sorted(MUTANTS)))


def _campaign(seeds: int, first: int, mutant: str | None, processes: int | None, *, as_json: bool) -> None:
    from muster.sim.faults import campaign

    _check_mutant(mutant)
    began = time.monotonic()
    summary = campaign.run(seeds, first, mutant, _progress(seeds), processes)
    seconds = time.monotonic() - began
    if as_json:
        print_json(
            {
                "seeds": summary.seeds,
                "first": summary.first,
                "mutant": mutant,
                "failures": [
                    {
                        "seed": failure.seed,
                        "violations": [violation._asdict() for violation in failure.violations],
                        "replay": failure.replay,
                    }
                    for failure in summary.failures
                ],
                "events": summary.events,
                "virtual_us": summary.virtual_us,
                "slowest_settled_us": summary.slowest_settled_us,
            }
        )
    else:
        for failure in summary.failures[:_SHOWN_FAILURES]:
            click.secho(f"seed {failure.seed} broke a rule", fg="red", bold=True)
            for violation in failure.violations:
                click.echo(f"  {violation.rule}: {violation.message}")
            for line in failure.events:
                click.echo(f"    {line}")
            click.echo(f"  show it again: {failure.replay}")
        click.echo(
            f"{summary.seeds} seeds from {summary.first}: {len(summary.failures) or 'no'} failed; "
            f"{summary.events:,} events in {summary.virtual_us / 1e6:,.0f} s of virtual time, {seconds:.0f} s of ours"
        )
    if summary.failures:
        raise SystemExit(EXIT_REFUSED)


def _tell(seeds: int, first: int, mutant: str | None) -> None:
    from muster.sim.faults import campaign

    _check_mutant(mutant)
    broken = False
    for seed in range(first, first + seeds):
        for line in campaign.account(seed, mutant):
            click.echo(line)
            broken = broken or line.lstrip().startswith("VIOLATION")
    if broken:
        raise SystemExit(EXIT_REFUSED)


def _search(nodes: int, *, as_json: bool) -> None:
    from muster.sim.search import exhaustive
    from muster.sim.search.mastership_model import Mode

    broken = False
    outcomes = []
    for mode, bounds in [(each, found) for each in Mode for found in exhaustive.suite(nodes, each)]:
        result = exhaustive.run(nodes, bounds, mode, _search_progress(mode.value))
        broken = broken or bool(result.violations)
        if as_json:
            outcomes.append({"mode": mode.value, "nodes": nodes, **bounds._asdict(), **_search_outcome(result)})
        else:
            click.echo(f"{nodes} nodes, {mode.value}, {_words(bounds)}: {result}")
    if as_json:
        print_json({"searches": outcomes})
    if broken:
        raise SystemExit(EXIT_REFUSED)


def _search_transitions(nodes: int, *, as_json: bool) -> None:
    from muster.sim.search import transition_search

    broken = False
    outcomes: list[dict[str, object]] = []
    met: set[str] = set()
    for world in transition_search.SUITES[nodes]:
        result = transition_search.run(world, _search_progress("transitions"))
        broken = broken or bool(result.violation)
        met |= set(transition_search.account(result))
        shown = {name: value for name, value in result._asdict().items() if name != "reached"}
        outcomes.append({"world": str(world), **shown})
        if not as_json:
            click.echo(f"{world}: {result}")
    if as_json:
        print_json({"searches": outcomes, "met": sorted(met)})
    else:
        click.echo("met: " + "; ".join(sorted(met)))
    if broken:
        raise SystemExit(EXIT_REFUSED)


def _words(bounds: tuple[int, ...]) -> str:
    names = getattr(bounds, "_fields", ())
    return ", ".join(f"{name} {value}" for name, value in zip(names, bounds, strict=True) if name != "states")


def _search_outcome(result: tuple[object, ...]) -> dict[str, object]:
    names = getattr(result, "_fields", ())
    shown = ("states", "transitions", "depth", "violations", "counterexample")
    return {name: value for name, value in zip(names, result, strict=True) if name in shown}


def _progress(total: int) -> Callable[[int, int], None] | None:
    """A line that counts, on terminals only."""
    if not sys.stderr.isatty():
        return None
    last = 0.0

    def show(done: int, failed: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_S or done == total:
            last = now
            click.echo(f"\r{done} of {total} seeds, {failed} failed ", nl=done == total, err=True)

    return show


def _search_progress(mode: str) -> Callable[[int, int, int], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(states: int, _transitions: int, depth: int) -> None:
        click.echo(f"\r{mode}: {states:,} states, depth {depth} ", nl=False, err=True)

    return show
