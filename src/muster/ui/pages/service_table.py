"""A rehearsal of services as a table: a row whenever a service, or which nodes are up, has changed (SPEC 6.9)."""

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from muster.sim.rehearsal.rehearsal import Frame, Verdict
    from muster.sim.rehearsal.scenario import Scenario

_UP = ("joined", "leaving")
_SHORT = {"de-registered": "-"}


class ServiceTable:
    """The columns of SPEC tables 2 and 3: event, time, summary, flags, and each node's own state."""

    def __init__(self, scenario: "Scenario", seed: int) -> None:
        self._scenario = scenario
        self._rows = 0
        self._events: list[str] = []
        self._shown: dict[str, tuple[str, ...]] = {}
        self._verbs = tuple(str(step) for step in scenario.steps)
        names = [service.definition.name for service in scenario.services]
        self._with_name = len(names) > 1
        self._name_width = max(len("service"), *map(len, names))
        click.secho(scenario.title or "A rehearsal", bold=True)
        click.echo(f"seed {seed}; flags: T transfer intent, M awaiting maturity, N has a notify command")
        cells = [f"{'row':<4}", f"{'seconds':>9}"] + ([f"{'service':<{self._name_width}}"] if self._with_name else [])
        cells += [f"{'summary':<11}", f"{'flags':<5}"]
        cells += [f"{self._head(node):<{self._width(node)}}" for node in scenario.nodes]
        click.secho("  ".join([*cells, "what happened"]), underline=True)

    def _head(self, node: str) -> str:
        """The node's name, with I where it is in the allowable set of the only service."""
        if len(self._scenario.services) != 1:
            return node
        definition = self._scenario.services[0].definition
        listed = node in definition.allowable_nodes or "*" in definition.allowable_nodes
        return f"{node}, I" if listed and node not in definition.disallowable_nodes else node

    def _width(self, node: str) -> int:
        return max(10, len(self._head(node)))

    def frame(self, frame: "Frame") -> None:
        """The services at one moment: a row for each that has changed."""
        self._events += [event for event in frame.events if self._is_told(event, frame)]
        for name, service in frame.services.items():
            row = self._cells(frame, service)
            if self._shown.get(name) != row:
                self._shown[name] = row
                self._row(frame.at_us, name, row)

    def _is_told(self, event: str, frame: "Frame") -> bool:
        """What the script did, also in vain, and what became of a service or of one of its instances."""
        subject = event.partition(": ")[0]
        return subject.removesuffix(" refused") in self._verbs or subject.partition("@")[0] in frame.services

    def _cells(self, frame: "Frame", service: dict[str, Any]) -> tuple[str, ...]:
        summary = _SHORT.get(service["state"], service["state"])
        nodes = []
        for node in self._scenario.nodes:
            is_up = frame.nodes[node] in _UP
            nodes.append(str(service["nodes"][node] or "up") if is_up else "down")
        return (summary, ",".join(service["flags"]), *nodes)

    def _row(self, at_us: int, name: str, row: tuple[str, ...]) -> None:
        summary, flags, *nodes = row
        cells = [f"t{self._rows:<3}", f"{at_us / 1e6:9.3f}"] + (
            [f"{name:<{self._name_width}}"] if self._with_name else []
        )
        cells += [f"{summary:<11}", f"{flags:<5}"]
        cells += [f"{cell:<{self._width(node)}}" for node, cell in zip(self._scenario.nodes, nodes, strict=True)]
        told, self._events = "; ".join(dict.fromkeys(self._events)), []
        click.echo("  ".join([*cells, told]).rstrip())
        self._rows += 1

    def verdict(self, verdict: "Verdict") -> None:
        """Whether it settled, and what the checkers found."""
        for event in self._events:
            click.echo(f"then: {event}")
        show_verdict(verdict)


def show_verdict(verdict: "Verdict") -> None:
    """The end of a rehearsal in words."""
    for broken in verdict.violations:
        click.secho(f"a rule was broken at {broken.at_us / 1e6:.4f} s: {broken.rule}: {broken.message}", fg="red")
    if verdict.settled:
        click.echo(f"settled at {verdict.at_us / 1e6:.1f} s")
    else:
        click.secho(f"not settled by {verdict.at_us / 1e6:.1f} s: {verdict.missing}", fg="red")
    if not verdict.violations:
        click.echo("the checkers found nothing")
