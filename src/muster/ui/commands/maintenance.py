"""The commands `muster maintenance`: begin it, end it after a look at what that does, list it (P6.30)."""

import sys
from collections.abc import Callable

import click

from muster.client.errors import ClientError
from muster.setup.errors import Mistaken
from muster.setup.nodes import Connection, Document
from muster.ui.durations import duration_option
from muster.ui.options import (
    answer_of,
    change_options,
    complete_nodes,
    complete_services,
    connection_options,
    json_option,
    reporting,
    settings,
    show_change,
)
from muster.ui.pages.plan_page import show_plan


@click.group()
@connection_options
def maintenance() -> None:
    """Have Muster leave a service, a node or the whole cluster alone for a while.

    Meanwhile nothing is started, moved or restarted by Muster itself; what is lost is recorded, and a leave or an
    operator's command still stops services.
    """


Command = Callable[..., None]


def _subject_options(command: Command) -> Command:
    service = click.option("--service", metavar="SERVICE", shell_complete=complete_services, help="A service.")
    on_node = click.option("--of-node", "node_name", metavar="NODE", shell_complete=complete_nodes, help="A node.")
    cluster = click.option("--cluster", "whole", is_flag=True, help="The whole cluster.")
    return service(on_node(cluster(command)))


def _subject(service: str | None, node_name: str | None, *, whole: bool) -> tuple[str, str]:
    given = [("service", service or "")] * (service is not None) + [("node", node_name or "")] * (node_name is not None)
    given += [("cluster", "")] * whole
    if len(given) != 1:
        what = "it is of one thing at a time" if given else "it does not say of what"
        raise Mistaken(what, "muster maintenance", "give one of --service SERVICE, --of-node NODE, --cluster")
    return given[0]


@maintenance.command("begin")
@_subject_options
@duration_option
@click.option("--cause", default="", help="Why; shown in status and history.")
@change_options
@connection_options
@reporting
def begin(service: str | None, node_name: str | None, whole: bool, duration_ms: int, cause: str, as_json: bool) -> None:
    """Begin it. Without --for it lasts until it is ended.

    \b
    Examples:
      muster maintenance begin --service web --for 30m --cause "new disks"
      muster maintenance begin --cluster
    """
    kind, subject = _subject(service, node_name, whole=whole)
    answer = settings().connection().operate(
        "maintain", kind=kind, subject=subject, duration_ms=duration_ms, cause=cause
    )  # fmt: skip
    show_change(answer, as_json=as_json)


@maintenance.command("end")
@_subject_options
@click.option("--yes", is_flag=True, help="End it without a look at what that does.")
@change_options
@connection_options
@reporting
def end(service: str | None, node_name: str | None, whole: bool, yes: bool, as_json: bool) -> None:
    """End it. Shows first what that would start, stop and move, and asks.

    \b
    Example:
      muster maintenance end --service web
    """
    kind, subject = _subject(service, node_name, whole=whole)
    if as_json and not yes:
        next_step = "add --yes; what it would do says muster plan with --end-maintenance and --json"
        raise Mistaken("a program cannot be asked", "muster maintenance end --json", next_step)
    connection = settings().connection()
    if not yes:
        _preview(connection, kind, subject)
        _ask()
    show_change(connection.operate("maintain", kind=kind, subject=subject, end=True), as_json=as_json)


def _ask() -> None:
    """Return if somebody says yes. Raises `ClientError`."""
    what = "nobody said yes"
    try:
        if click.confirm("End it?"):
            return
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo()
        what = "nobody is there who could say yes"
    raise ClientError(f"{what}: nothing was changed", "muster maintenance end", "add --yes to end it unasked")


def _preview(connection: Connection, kind: str, subject: str) -> None:
    ended: Document = {"operation": "maintain", "arguments": {"kind": kind, "subject": subject, "end": True}}
    show_plan(connection.query("plan", operations=[ended], nodes=[]))


@maintenance.command("list")
@json_option
@connection_options
@reporting
def list_maintenance(as_json: bool) -> None:
    """What is in maintenance, and which nodes are on standby."""
    answer = answer_of("maintenance", as_json=as_json)
    if answer is None:
        return
    for each in answer["maintenance"]:
        words = f"{each['kind']} {each['subject']}".strip()
        click.echo(f"{words} is in maintenance{_until(each)}{_because(each)}")
    for name, each in answer["standby"].items():
        click.echo(f"{name} is on standby{_until(each)}{_because(each)}")
    if not answer["maintenance"] and not answer["standby"]:
        click.echo("nothing is in maintenance, and no node is on standby")


def _until(each: Document) -> str:
    return f" for {each['remaining_ms'] / 1000:.0f} s more" if each["remaining_ms"] is not None else ""


def _because(each: Document) -> str:
    return f": {each['cause']}" if each["cause"] else ""
