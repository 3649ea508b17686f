"""The command `muster rehearse`: a script of boots, leaves and failures, played by the very rules (SPEC 8.4)."""

import json
from typing import TYPE_CHECKING

import click

from muster.setup.errors import Mistaken
from muster.setup.nodes import Document
from muster.ui.options import EXIT_REFUSED, json_option, reporting
from muster.ui.pages.service_table import ServiceTable, show_verdict

if TYPE_CHECKING:
    from muster.sim.rehearsal.rehearsal import Frame, Verdict
    from muster.sim.rehearsal.scenario import Scenario

LETTERS = {
    "not registered": "-",
    "inactive": ".",
    "joining": "j",
    "joined": "J",
    "leaving": "l",
    "forced-leaving": "f",
}
_WIDEST_LEVELS = 80  # characters; wider, the table leaves the levels to the words and to --json


@click.command()
@click.argument("scenario")
@json_option
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of clocks, delays and store times.")
@reporting
def rehearse(scenario: str, as_json: bool, seed: int) -> None:
    """Play a SCENARIO through the very rules that the daemon runs, in a virtual cluster.

    SCENARIO is a file, or one of those that come with Muster: fig-3-7, fig-8-10, fig-11-12, fig-13-15, table-2 and
    table-3. There are some of nodes that hang and stores that change, too: hung-guard, held-processes, late-beat,
    store-stall, new-boot and set-back. Each change is shown: how the subsystem of each level on each node sees each
    node. Where there are services, their states are shown instead. At the end stands what the simulator's checkers
    say. The same seed always makes the same run. Ends with 1 if a rule was broken.

    \b
    A scenario:
      title = "N0 fails"
      [cluster]
      nodes = ["N0", "N1"]
      levels = {dlm = 10, vdm = 20, sfs = 30, em = 40}   # the default
      work = {dlm = "50ms"}                              # for one barrier
      barriers = {dlm = {joining = 2}}
      [[step]]
      at = "1s"
      do = "boot N0"

    \b
    What can be done:
      boot N, leave N, kill N (power cut), pause N, resume N,
      isolate N (interconnect lost), blind N (store lost), heal N,
      hang N LEVEL (that subsystem acknowledges nothing, until its node has ended), unhang N LEVEL,
      stall N guard|init|runner|writer (it waits in the kernel, and no signal ends it), wake N (all of it goes on),
      power-cycle (the one machine of all nodes loses its power and comes up again: boot its nodes),
      copy-store, replace-store copy|other|nothing|itself (it is renamed over the store's path),
      register S, deregister S, transfer S N, fail S N (its process dies on N)

    \b
    A service: a table as in a service file, with how its commands end:
      [[service]]
      name = "web"
      start_command = "/usr/bin/web"
      rehearsal = {start = "20s", stop = {N0 = "fail", default = "2s"}}

    \b
    Examples:
      muster rehearse fig-13-15
      muster rehearse friday.toml --json --seed 7
    """
    from muster.sim.rehearsal import rehearsal
    from muster.sim.rehearsal.scenario import ScenarioError, find

    try:
        found = find(scenario)
    except ScenarioError as error:
        count = len(error.problems)
        what = f"the scenario has {count} problem{'s' if count > 1 else ''}; nothing was rehearsed"
        where = "\n         ".join(map(str, error.problems))
        raise Mistaken(what, where, "fix them; see muster rehearse --help") from error
    lines: _JsonLines | _Table | ServiceTable
    table = ServiceTable if found.services else _Table
    lines = _JsonLines() if as_json else table(found, seed)
    verdict: Verdict | None = None
    for seen in rehearsal.rehearse(found, seed):
        if isinstance(seen, rehearsal.Frame):
            lines.frame(seen)
        else:
            verdict = seen
    assert verdict is not None
    lines.verdict(verdict)
    if verdict.violations:
        raise SystemExit(EXIT_REFUSED)


class _JsonLines:
    """One JSON object a line."""

    def frame(self, frame: "Frame") -> None:
        """The cluster at one moment."""
        self._line(
            {
                "t": frame.at_us / 1e6,
                "event": "; ".join(frame.events),
                "nodes": frame.nodes,
                "master": frame.master,
                "term": frame.term,
                "levels": frame.levels,
                "services": frame.services,
            }
        )

    def verdict(self, verdict: "Verdict") -> None:
        """The last line; `missing` says why the cluster did not settle, where it did not."""
        violations = [{"t": it.at_us / 1e6, "rule": it.rule, "message": it.message} for it in verdict.violations]
        last: Document = {"settled": verdict.settled, "violations": violations}
        if verdict.missing:
            last["missing"] = verdict.missing
        self._line(last)

    def _line(self, document: Document) -> None:
        click.echo(json.dumps(document, ensure_ascii=False))  # its form is that of the scenario language, as it is


class _Table:
    """A row for each moment, in letters and in words."""

    def __init__(self, scenario: "Scenario", seed: int) -> None:
        groups = len(scenario.nodes) * (len(scenario.nodes) + 1) - 1
        self._width = {level.name: max(groups, len(level.name)) for level in scenario.levels}
        self._with_levels = sum(self._width.values()) <= _WIDEST_LEVELS
        self._master_width = max(6, *(len(name) for name in scenario.nodes))
        self._shown: dict[str, str] = {}
        click.secho(scenario.title or "A rehearsal", bold=True)
        click.echo(f"seed {seed}; nodes in their order: {' '.join(scenario.nodes)}")
        click.echo("states: " + ", ".join(f"{letter} {state}" for state, letter in LETTERS.items()))
        if self._with_levels:
            click.echo("below a level: a group for each node that runs it; in it a letter for each node that it sees")
        heads = [f"{'seconds':>10}", f"{'master':<{self._master_width}}", f"{'nodes':<{max(5, len(scenario.nodes))}}"]
        if self._with_levels:
            heads += [f"{name:<{width}}" for name, width in self._width.items()]
        click.secho("  ".join([*heads, "what happened"]), underline=True)

    def frame(self, frame: "Frame") -> None:
        """The cluster at one moment; a level that has changed stands out."""
        nodes = "".join(LETTERS[state] for state in frame.nodes.values())
        cells = [f"{frame.at_us / 1e6:10.4f}", f"{frame.master or '-':<{self._master_width}}"]
        cells.append(self._cell("", f"{nodes:<{max(5, len(nodes))}}"))
        if self._with_levels:
            for name, holders in frame.levels.items():
                groups = " ".join("".join(LETTERS[state] for state in held.values()) for held in holders.values())
                cells.append(self._cell(name, f"{groups:<{self._width[name]}}"))
        first, *others = frame.events or ("",)
        before = "  ".join(cells)
        click.echo(f"{before}  {first}")
        for event in others:
            click.echo(" " * (len(click.unstyle(before)) + 2) + event)

    def _cell(self, name: str, text: str) -> str:
        changed = self._shown.get(name, text) != text
        self._shown[name] = text
        return click.style(text, bold=True, fg="yellow") if changed else text

    def verdict(self, verdict: "Verdict") -> None:
        """Whether it settled, and what the checkers found."""
        show_verdict(verdict)
