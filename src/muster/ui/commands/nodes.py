"""Commands about nodes: list, leave, evict (SPEC 3.4, 3.12)."""

import time

import click

from muster.client.errors import ClientError, Unreachable
from muster.setup.nodes import Connection, Document
from muster.ui.commands.node_configuration import add, remove, set_addresses, show, token
from muster.ui.durations import duration_option
from muster.ui.options import (
    answer_of,
    change_options,
    complete_nodes,
    connection_options,
    json_option,
    override_option,
    overriding,
    reporting,
    settings,
    show_beside,
    show_change,
)
from muster.ui.parameter_types import Seconds

_POLL_S = 0.05


@click.group()
@connection_options
def node() -> None:
    """List nodes, add and remove them, keep services away from one, take one out, or force one out."""


for _command in (show, add, token, set_addresses, remove):
    node.add_command(_command)


@node.command("list")
@json_option
@connection_options
@reporting
def list_nodes(as_json: bool) -> None:
    """Every configured node: its state, address, and what is known of its last end."""
    answer = answer_of("nodes", as_json=as_json)
    if answer is None:
        return
    from muster.ui.pages.screen import show_nodes

    show_nodes(answer)


@node.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.option("--no-wait", is_flag=True, help="Return when the leave is committed, not when it is complete.")
@click.option("--wait", "wait_s", type=Seconds(min=1), default=600.0, metavar="SECONDS", show_default=True)
@override_option
@change_options
@connection_options
@reporting
def leave(name: str, no_wait: bool, wait_s: float, override: bool, as_json: bool) -> None:
    """Take NODE out gracefully: its services move elsewhere first, and every level leaves in order.

    \b
    Example:
      muster node leave n1 --dir /tmp/try
    """
    connection = settings().connection()
    before = connection.query("nodes")
    answer = connection.operate("leave", node=name, override=override)
    if not as_json:
        show_change(answer, as_json=False)
    # an unknown node has been refused by now, but for one that has left and was removed since
    found = before["nodes"].get(name, {"incarnation": None, "state": "inactive"})
    is_repeated = answer["index"] <= before["index"]
    if not no_wait and not (is_repeated and found["state"] in {"joined", "inactive"}):  # what left then is back
        wait_until_inactive(connection, name, found["incarnation"], wait_s)
    if as_json:
        show_change(answer, as_json=True, complete=not no_wait)
    elif not no_wait:
        click.echo(f"{name} has left")


@node.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.option("--cause", default="an operator's decision", show_default=True, help="Why; shown in status and history.")
@click.option(
    "--confirmed-dead",
    is_flag=True,
    help="You confirm that the machine has stopped, and its services are recovered at once. If it has not, "
    "two nodes may touch the same data: look at the machine first.",
)
@change_options
@connection_options
@reporting
def evict(name: str, cause: str, confirmed_dead: bool, as_json: bool) -> None:
    """Force NODE out: it stops everything at once; its services start elsewhere once it is proven to have stopped.

    \b
    Examples:
      muster node evict n1 --cause "burning"
      muster node evict n1 --confirmed-dead
    """
    answer = settings().connection().operate("evict", node=name, cause=cause, confirmed_dead=confirmed_dead)
    show_change(answer, as_json=as_json)


@node.command("confirm-clean")
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.option("--cause", default="", help="How you know; shown in the history.")
@change_options
@connection_options
@reporting
def confirm_clean(name: str, cause: str, as_json: bool) -> None:
    """You confirm that nothing is left in NODE's machine of what ran there before its end.

    Services that wait for that go on elsewhere, and the node may join though a cleanup fails there. If an address or a
    mount is still there, two machines may have it: look at the machine first.
    """
    answer = settings().connection().operate("confirm_clean", node=name, cause=cause)
    show_change(answer, as_json=as_json)


@node.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@duration_option
@click.option("--cause", default="", help="Why; shown in status and history.")
@override_option
@change_options
@connection_options
@reporting
def standby(name: str, duration_ms: int, cause: str, override: bool, as_json: bool) -> None:
    """Keep services away from NODE: it gets none, and those that can run elsewhere move. It stays a member.

    \b
    Examples:
      muster node standby n1 --for 2h --cause "new kernel"
      muster node active n1
    """
    answer = (
        settings()
        .connection()
        .operate("standby", node=name, duration_ms=duration_ms, cause=cause, **overriding(override))
    )
    show_change(answer, as_json=as_json)


@node.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@change_options
@connection_options
@reporting
def active(name: str, as_json: bool) -> None:
    """End the standby of NODE: it gets services again."""
    show_change(settings().connection().operate("standby", node=name, end=True), as_json=as_json)


@node.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.option("--wait", "wait_s", type=Seconds(min=1), default=600.0, metavar="SECONDS", show_default=True)
@click.option("--cause", default="drained", show_default=True, help="Why; shown in status and history.")
@override_option
@change_options
@connection_options
@reporting
def drain(name: str, wait_s: float, cause: str, override: bool, as_json: bool) -> None:
    """Put NODE on standby and wait until no service is on it, saying what it waits for.

    The instance that each node has of a service (placement_policy register_on_all) stays, until the node leaves.

    \b
    Example:
      muster node drain n1 && ssh n1 reboot
    """
    connection = settings().connection()
    answer = connection.operate("standby", node=name, cause=cause, **overriding(override))
    if not as_json:
        show_change(answer, as_json=False)
    stays = wait_until_empty(connection, name, wait_s)
    if as_json:
        show_change(answer, as_json=True, complete=True)
    else:
        what = f"has only what each node has ({', '.join(stays)})" if stays else "is empty"
        click.echo(f"{name} {what}; it stays on standby until: muster node active {name}")


def wait_until_empty(connection: Connection, name: str, wait_s: float) -> list[str]:
    """Wait, saying what it waits for, until no service is on the node but its instances of those that are on each.

    Those are the answer. Raises `ClientError`.
    """
    deadline, said = time.monotonic() + wait_s, ""
    while True:
        there = connection.query("nodes")["nodes"].get(name, {"services": []})["services"]
        services = [service for service in there if not service.endswith(f"@{name}")]
        if not services:
            return sorted(there)
        progress = f"{name} still has {', '.join(services[:5])}" + (" and others" if len(services) > 5 else "")
        if progress != said:
            show_beside(progress)
            said = progress
        if time.monotonic() > deadline:
            next_step = f"see why: muster why {services[0]} ; or give it up: muster node active {name}"
            raise ClientError(f"{progress} after {wait_s:g} s", f"node {name}", next_step)
        time.sleep(_POLL_S)


@node.command("restart-daemon")
@click.argument("name", metavar="[NODE]", required=False, shell_complete=complete_nodes)
@click.option("--all", "every", is_flag=True, help="Every joined node, one after the other, the master last.")
@click.option("--wait", "wait_s", type=Seconds(min=1), default=60.0, metavar="SECONDS", show_default=True)
@change_options
@connection_options
@reporting
def restart_daemon(name: str | None, every: bool, wait_s: float, as_json: bool) -> None:
    """Restart the daemon of NODE, from what is installed on its machine now. No service notices.

    Guard and runner go on: to replace them, take the node out and boot it (muster upgrade status says where).

    \b
    Examples:
      muster node restart-daemon n1
      muster node restart-daemon --all
    """
    if every == (name is not None):
        raise click.UsageError("name one node, or all of them with --all")
    connection = settings().connection()
    names = [name] if name is not None else _joined_master_last(connection)
    answers: list[Document] = []
    releases: dict[str, str] = {}
    for each in names:
        answers.append(connection.operate("restart_daemon", each if every else "", node=each))
        releases[each] = _release_after(connection, each, answers[-1]["index"], wait_s)
        if not as_json:
            click.echo(f"{each}: a new daemon runs, release {releases[each]} (index {answers[-1]['index']})")
    if as_json:
        last = max(answers, key=lambda answer: int(answer["index"]))
        show_change(last, as_json=True, outcome=f"new daemons run: {', '.join(sorted(names))}", releases=releases)


def _joined_master_last(connection: Connection) -> list[str]:
    status = connection.query("status")
    joined = [name for name, found in status["nodes"].items() if found["state"] == "joined"]
    if not joined:
        next_step = "boot a node first; see `muster status`"
        raise ClientError("no node is joined", f"cluster {status['cluster']}", next_step)
    return sorted(joined, key=lambda name: name == status["master"])


def _release_after(connection: Connection, name: str, asked: int, wait_s: float) -> str:
    """Wait until a daemon that was started after index `asked` has reported; its release. Raises `ClientError`."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            found = connection.query("upgrade")["nodes"].get(name)
        except Unreachable as error:  # the very daemon that is started anew
            found, cause = None, error.what
        else:
            cause = f"{name} has not reported yet"
        if found is not None and found["started_index"] >= asked:
            return str(found["release"])
        if time.monotonic() > deadline:
            next_step = f"look at the log of {name} and at `muster status`; asking again does no harm"
            raise ClientError(f"no new daemon within {wait_s:g} s: {cause}", f"node {name}", next_step)
        time.sleep(_POLL_S)


def wait_until_inactive(connection: Connection, name: str, incarnation: int | None, wait_s: float) -> None:
    """Wait, saying what it waits for, until `incarnation` of the node has left.

    Raises `ClientError` where it has not in time, or was forced out meanwhile.
    """
    deadline = time.monotonic() + wait_s
    said = ""
    while True:
        try:
            answer = connection.query("status")
        except Unreachable:
            return  # the last node has left: with it the cluster is down, as asked
        found = answer["nodes"].get(name)
        if found is None or found["state"] == "inactive" or found["incarnation"] != incarnation:
            _refuse_forced_out(connection, name, incarnation)
            return
        progress = leave_progress(answer, name)
        if progress != said:
            show_beside(progress)
            said = progress
        if time.monotonic() > deadline:
            raise ClientError(
                f"{name} is still {found['state']} after {wait_s:g} s: {progress}",
                f"cluster {answer['cluster']}",
                "the leave goes on; see `muster transitions` for who holds it up, or wait longer with --wait",
            )
        time.sleep(_POLL_S)


def _refuse_forced_out(connection: Connection, name: str, incarnation: int | None) -> None:
    """Raise `ClientError` if the node has died on its way out: its services were recovered, not moved."""
    try:
        answer = connection.query("nodes")
    except Unreachable:
        return
    proof = answer["nodes"].get(name, {}).get("last_proof")
    if proof is not None and proof["incarnation"] == incarnation:
        what = f"{name} has not left gracefully, it was forced out: {proof['kind']}: {proof['detail']}"
        next_step = "nothing of it runs any more, and its services were recovered; see `muster timeline --last`"
        raise ClientError(what, f"cluster {answer['cluster']}", next_step)


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
