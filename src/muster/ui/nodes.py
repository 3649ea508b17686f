"""Commands about nodes: list, leave, evict (SPEC 3.4, 3.12)."""

import time

import click

from muster.ui.client import MusterError
from muster.ui.connection import (
    Connection,
    Document,
    Unreachable,
    complete_nodes,
    connection_options,
    json_option,
    override_option,
    print_json,
    reporting,
    settings,
)
from muster.ui.durations import duration_option
from muster.ui.node_configuration import add, remove, show, token

_POLL_S = 0.05


@click.group()
@connection_options
def node() -> None:
    """List nodes, add and remove them, keep services away from one, take one out, or force one out."""


for _command in (show, add, token, remove):
    node.add_command(_command)


@node.command("list")
@json_option
@connection_options
@reporting
def list_nodes(as_json: bool) -> None:
    """Every configured node: its state, address, and what is known of its last end."""
    answer = settings().connection().query("nodes")
    if as_json:
        print_json(answer)
        return
    from muster.ui.screen import show_nodes

    show_nodes(answer)


@node.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.option("--no-wait", is_flag=True, help="Return when the leave is committed, not when it is complete.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=1), default=600.0, metavar="SECONDS", show_default=True)
@override_option
@connection_options
@reporting
def leave(name: str, no_wait: bool, wait_s: float, override: bool) -> None:
    """Take NODE out gracefully: its services move elsewhere first, and every level leaves in order.

    \b
    Example:
      muster node leave n1 --dir /tmp/try
    """
    connection = settings().connection()
    incarnation = _incarnation(connection, name)
    answer = connection.operate("leave", node=name, override=override)
    click.echo(answer["outcome"])
    if not no_wait:
        wait_until_inactive(connection, name, incarnation, wait_s)
        click.echo(f"{name} is inactive")


@node.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.option("--cause", default="an operator's decision", show_default=True, help="Why; shown in status and history.")
@click.option(
    "--confirmed-dead",
    is_flag=True,
    help="You vouch that the machine has stopped, and its services are recovered at once. If it has not, "
    "two nodes may touch the same data: look at the machine first.",
)
@connection_options
@reporting
def evict(name: str, cause: str, confirmed_dead: bool) -> None:
    """Force NODE out: it stops everything at once, and its services are recovered when it is proven to have stopped.

    \b
    Examples:
      muster node evict n1 --cause "burning"
      muster node evict n1 --confirmed-dead
    """
    answer = settings().connection().operate("evict", node=name, cause=cause, confirmed_dead=confirmed_dead)
    click.echo(answer["outcome"])


@node.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@duration_option
@click.option("--cause", default="", help="Why; shown in status and history.")
@connection_options
@reporting
def standby(name: str, duration_ms: int, cause: str) -> None:
    """Keep services away from NODE: it gets none, and those that can run elsewhere move. It stays a member.

    \b
    Examples:
      muster node standby n1 --for 2h --cause "new kernel"
      muster node active n1
    """
    answer = settings().connection().operate("standby", node=name, duration_ms=duration_ms, cause=cause)
    click.echo(answer["outcome"])


@node.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@connection_options
@reporting
def active(name: str) -> None:
    """End the standby of NODE: it gets services again."""
    click.echo(settings().connection().operate("standby", node=name, end=True)["outcome"])


@node.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.option("--wait", "wait_s", type=click.FloatRange(min=1), default=600.0, metavar="SECONDS", show_default=True)
@click.option("--cause", default="drained", show_default=True, help="Why; shown in status and history.")
@connection_options
@reporting
def drain(name: str, wait_s: float, cause: str) -> None:
    """Put NODE on standby and wait until no service is on it, saying what it waits for.

    \b
    Example:
      muster node drain n1 && ssh n1 reboot
    """
    connection = settings().connection()
    click.echo(connection.operate("standby", node=name, cause=cause)["outcome"])
    deadline, said = time.monotonic() + wait_s, ""
    while True:
        services = connection.query("nodes")["nodes"][name]["services"]
        if not services:
            click.echo(f"{name} is empty; it stays on standby until: muster node active {name}")
            return
        progress = f"{name} still has {', '.join(services[:5])}" + (" and others" if len(services) > 5 else "")
        if progress != said:
            click.echo(progress, err=True)
            said = progress
        if time.monotonic() > deadline:
            next_step = f"see why: muster why {services[0]} ; or give it up: muster node active {name}"
            raise MusterError(f"{progress} after {wait_s:g} s", f"node {name}", next_step)


@node.command("restart-daemon")
@click.argument("name", metavar="[NODE]", required=False, shell_complete=complete_nodes)
@click.option("--all", "every", is_flag=True, help="Every joined node, one after the other, the master last.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=1), default=60.0, metavar="SECONDS", show_default=True)
@connection_options
@reporting
def restart_daemon(name: str | None, every: bool, wait_s: float) -> None:
    """Start the daemon of NODE anew, from what is installed on its machine now. No service notices.

    Guard and runner go on: to replace them, take the node out and boot it (muster upgrade status says where).

    \b
    Examples:
      muster node restart-daemon n1
      muster node restart-daemon --all
    """
    if every == (name is not None):
        raise click.UsageError("name one node, or all of them with --all")
    connection = settings().connection()
    if name is not None:
        _restart_daemon(connection, name, wait_s)
        return
    status = connection.query("status")
    joined = [other for other, found in status["nodes"].items() if found["state"] == "joined"]
    for other in sorted(joined, key=lambda other: other == status["master"]):
        _restart_daemon(connection, other, wait_s)


def _restart_daemon(connection: Connection, name: str, wait_s: float) -> None:
    """Ask for it, and wait until the new daemon has reported to a master. Raises `MusterError`."""
    asked = connection.operate("restart_daemon", node=name)["index"]
    deadline = time.monotonic() + wait_s
    while True:
        try:
            found = connection.query("upgrade")["nodes"].get(name)
        except Unreachable as error:  # the very daemon that is started anew
            found, cause = None, error.what
        else:
            cause = f"{name} has not reported yet"
        if found is not None and found["started_index"] >= asked:
            click.echo(f"{name}: a new daemon runs, release {found['release']}")
            return
        if time.monotonic() > deadline:
            next_step = f"look at the log of {name} and at `muster status`; asking again does no harm"
            raise MusterError(f"no new daemon within {wait_s:g} s: {cause}", f"node {name}", next_step)
        time.sleep(_POLL_S)


def _incarnation(connection: Connection, name: str) -> int | None:
    found = connection.query("nodes")["nodes"].get(name)
    return int(found["incarnation"]) if found else None  # an unknown one: the cluster's refusal says so best


def wait_until_inactive(connection: Connection, name: str, incarnation: int | None, wait_s: float) -> None:
    """Wait, saying what it waits for, until `incarnation` of the node is no member. Raises `MusterError`."""
    deadline = time.monotonic() + wait_s
    said = ""
    while True:
        try:
            answer = connection.query("status")
        except Unreachable:
            return  # the last node has left: with it the cluster is down, as asked
        found = answer["nodes"].get(name)
        if found is None or found["state"] == "inactive" or found["incarnation"] != incarnation:
            return
        progress = leave_progress(answer, name)
        if progress != said:
            click.echo(progress, err=True)
            said = progress
        if time.monotonic() > deadline:
            raise MusterError(
                f"{name} is still {found['state']} after {wait_s:g} s: {progress}",
                f"cluster {answer['cluster']}",
                "the leave goes on; see `muster transitions` for who holds it up, or wait longer with --wait",
            )
        time.sleep(_POLL_S)


def leave_progress(status: Document, name: str) -> str:
    """In words, how far a node's transition has come."""
    for transition in status["transitions"]:
        if transition["node"] == name:
            waiting = ", ".join(transition["waiting_for"]) or "the next step"
            level = f"level {transition['level']} {transition['level_name']}".rstrip()
            words = f"{name} {transition['kind']}: {level}, barrier {transition['barrier']}, waiting for {waiting}"
            cause = status["nodes"][name]["cause"]
            return f"{words}; {cause}" if cause else words
    return f"{name} is {status['nodes'][name]['state']}"
