"""`muster history`: all that happened in the cluster, in one order (SPEC 8.2, 9.4)."""

import time

import click

from muster.records.happenings import KINDS
from muster.setup.harmless import one_line
from muster.ui.options import connection_options, json_option, print_json, reporting, settings

_COLOURS = {"lost": "red", "condemned": "red", "failure": "red", "stuck": "red", "move": "yellow", "change": "cyan"}
DEFAULT_LINES = 40


@click.command()
@click.argument("name", metavar="[SERVICE|NODE]", default="")
@click.option("--kind", type=click.Choice(KINDS), help="Only what is of this kind.")
@click.option("--last", type=click.IntRange(min=1), default=DEFAULT_LINES, show_default=True, help="How many.")
@json_option
@connection_options
@reporting
def history(name: str, kind: str | None, last: int, as_json: bool) -> None:
    """All that happened, the newest last: moves, failures, joins, ends of nodes, changes by people, in one order.

    The order is that of the cluster's commits, not of clocks. Each node keeps it over restarts, in a bounded file of
    its home; what one has missed the others fill in.

    \b
    Examples:
      muster history                   the last 40 things
      muster history web               of one service
      muster history --kind failure    what has failed

    \b
    With --json: happened [{index, at_s, kind, subject, words}], unanswered [{node, why}]. kind: master, join, leave,
    lost, condemned, start, restart, move, stop, failure, stuck, change.
    """
    answer = settings().connection().query("history", subject=name, kind=kind or "")
    answer["happened"] = answer["happened"][-last:]
    if as_json:
        print_json(answer)
        return
    for each in answer["happened"]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["at_s"]))
        click.echo(f"{when}  {each['index']:>6}  ", nl=False)
        click.secho(f"{each['kind']:<9}  {one_line(each['words'])}", fg=_COLOURS.get(each["kind"]))
    if not answer["happened"]:
        about = f" about {one_line(name)}" if name else ""
        click.echo(f"nothing is known to have happened{about}; the nodes keep the last few thousand happenings")
    for each in answer["unanswered"]:
        click.secho(f"not heard: {each['node']}: {each['why']}", fg="yellow", err=True)
