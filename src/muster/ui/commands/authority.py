"""Commands about the cluster's authority: show it, replace it (P1.7)."""

import time

import click

from muster.client.errors import ClientError
from muster.setup.nodes import Connection, Document
from muster.ui.options import (
    answer_of,
    change_options,
    connection_options,
    json_option,
    print_json,
    reporting,
    settings,
    show_beside,
    show_change,
)
from muster.ui.parameter_types import Seconds

_POLL_S = 0.2


@click.group()
@connection_options
def authority() -> None:
    """The cluster's own authority, which issues the nodes' certificates: show it, or replace it."""


@authority.command()
@json_option
@connection_options
@reporting
def show(as_json: bool) -> None:
    """The authority, when it ends, and how far its replacement has come."""
    answer = answer_of("authority", as_json=as_json)
    if answer is None:
        return
    from muster.ui.pages.screen import show_authority

    show_authority(answer)


@authority.command()
@click.option("--yes", is_flag=True, help="Do it; without, it is only shown.")
@click.option("--restart", is_flag=True, help="Also where a rotation is under way whose new key is lost.")
@click.option("--no-wait", is_flag=True, help="Return when it has begun, not when it is done.")
@click.option("--wait", "wait_s", type=Seconds(min=1), default=600.0, metavar="SECONDS", show_default=True)
@change_options
@connection_options
@reporting
def rotate(yes: bool, restart: bool, no_wait: bool, wait_s: float, as_json: bool) -> None:
    """Replace the authority and its key while everything runs; no service is touched, no connection interrupted.

    Shows what it would do; --yes does it. Three steps: every member trusts the new authority beside the old one; every
    certificate is issued again; the old authority is dropped. Each waits for all members; a node that dies is waited
    for until it is forced out. Nodes keep their own keys, so one that is down boots as ever when it comes back.
    """
    connection = settings().connection()
    if not yes:
        before = connection.query("authority")
        print_json({**before, "done": False}) if as_json else _show_plan(connection, before)
        return
    answer = connection.operate("rotate_authority", restart=restart)
    if not as_json:
        show_change(answer, as_json=False)
    present = None if no_wait else _wait(connection, wait_s)
    if as_json:
        show_change(answer, as_json=True, done=True, complete=present is not None, present=present)
    elif present is not None:
        click.echo(f"the authority is now {present[0]['fingerprint']}, until {present[0]['ends']}")


@authority.command()
@change_options
@connection_options
@reporting
def abandon(as_json: bool) -> None:
    """Give a rotation up that is still in its first step."""
    show_change(settings().connection().operate("abandon_rotation"), as_json=as_json)


def _show_plan(connection: Connection, answer: Document) -> None:
    nodes = connection.query("nodes")["nodes"]
    for present in answer["present"]:
        click.echo(f"present authority: {present['fingerprint']}, ends {present['ends']}")
    for name, found in nodes.items():
        certificate = found["certificate"]
        after = "gets a certificate of the new authority" if certificate else "is not enrolled: nothing changes"
        click.echo(f"  {name:<8} {found['state']:<15} {after}")
    silent = [name for name, found in nodes.items() if found["state"] != "inactive" and not found["live"]]
    if silent:
        click.echo(f"it would wait for {', '.join(silent)}: silent, and not proven to have stopped")
    if answer["incoming"]:
        click.echo(f"a rotation is under way already ({answer['step']}): muster authority show")
    click.echo("--yes does it")


def _wait(connection: Connection, wait_s: float) -> list[Document]:
    """Wait, saying what it waits for, until the rotation is over; the authorities then. Raises `ClientError`."""
    from muster.ui.pages.screen import rotation_progress

    deadline = time.monotonic() + wait_s
    said = ""
    while True:
        answer = connection.query("authority")
        if answer["incoming"] is None:
            present: list[Document] = answer["present"]
            return present
        text = rotation_progress(answer)
        if text != said:
            show_beside(text)
            said = text
        if time.monotonic() > deadline:
            next_step = "it goes on; see muster authority show, and muster status for who is silent"
            raise ClientError(f"after {wait_s:g} s: {text}", f"cluster {answer['cluster']}", next_step)
        time.sleep(_POLL_S)
