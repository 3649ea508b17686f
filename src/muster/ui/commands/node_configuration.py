"""Commands about which nodes there are: show, add, token, remove (P1.2-P1.4). They belong to `muster node`."""

from datetime import UTC, datetime

import click

from muster.client.errors import ClientError
from muster.records.names import addresses_problem, node_name_problem
from muster.setup.errors import Mistaken
from muster.setup.joining import new_token, remove_node
from muster.setup.nodes import Connection, Document
from muster.ui.options import (
    change_options,
    complete_nodes,
    connection_options,
    json_option,
    print_json,
    reporting,
    settings,
    show_change,
)


@click.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@json_option
@connection_options
@reporting
def show(name: str, as_json: bool) -> None:
    """NODE in full: state, addresses, levels, certificate and when it ends."""
    head, found = _configured(settings().connection(), name)
    if as_json:
        print_json({**head, "name": name, **found})
        return
    from muster.ui.pages.screen import show_node

    show_node(name, found)


_lifetime_option = click.option(
    "--expires",
    "lifetime",
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="How long the token is good: 30m, 1h, 2d.",
)


@click.command()
@click.argument("name", metavar="NAME")
@click.argument("addresses", metavar="HOST:PORT...", nargs=-1, required=True)
@_lifetime_option
@json_option
@connection_options
@reporting
def add(name: str, addresses: tuple[str, ...], lifetime: str, as_json: bool) -> None:
    """Configure a new node NAME while the cluster runs, and print the one-time token that its machine enrols with.

    Several addresses are several links of the node. The token is all that is printed on standard output. It is shown
    once and stored nowhere: `muster node token` makes another one.

    \b
    Examples:
      muster node add n3 10.0.0.3:7700
      muster node add n3 10.0.0.3:7700 10.1.0.3:7700 --expires 10m > n3.token
    """
    if problem := node_name_problem(name) or addresses_problem(addresses):
        what, _, next_step = problem.partition(": ")
        raise Mistaken(what, "muster node add", next_step or "correct it")
    token, verifier, expires_s = new_token(lifetime)
    connection = settings().connection()
    answer = connection.operate(
        "add_node", node=name, addresses=list(addresses), verifier=verifier, expires_s=expires_s
    )
    _print_token(name, token, expires_s, answer, as_json=as_json)


@click.command("set-addresses")
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.argument("addresses", metavar="HOST:PORT...", nargs=-1, required=True)
@change_options
@connection_options
@reporting
def set_addresses(name: str, addresses: tuple[str, ...], as_json: bool) -> None:
    """Give NODE these addresses, in place of those that it has, while the cluster runs.

    It listens at the new ones at once, or as soon as its machine has them. It listens at the old ones, too, until every
    connected node uses the new ones; so no connection is lost. A node that is down boots with the new ones. `muster
    links` shows how far it is.

    \b
    Examples:
      muster node set-addresses n1 10.0.0.21:7700
      muster node set-addresses n1 10.0.0.21:7700 10.1.0.21:7700     two links
    """
    if problem := addresses_problem(addresses):
        what, _, next_step = problem.partition(": ")
        raise Mistaken(what, "muster node set-addresses", next_step or "correct it")
    answer = settings().connection().operate("set_addresses", node=name, addresses=list(addresses))
    show_change(answer, as_json=as_json)


@click.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@_lifetime_option
@json_option
@connection_options
@reporting
def token(name: str, lifetime: str, as_json: bool) -> None:
    """Print a new one-time token for NODE, which must not run; its machine, or another one, is enrolled with it.

    For a node that was not enrolled in time; for one whose certificate has expired; for a machine that is replaced.
    Earlier tokens of NODE do not work any more.
    """
    made, verifier, expires_s = new_token(lifetime)
    answer = settings().connection().operate("issue_token", node=name, verifier=verifier, expires_s=expires_s)
    _print_token(name, made, expires_s, answer, as_json=as_json)


@click.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.option("--yes", is_flag=True, help="Do it; without, it is only shown.")
@change_options
@connection_options
@reporting
def remove(name: str, yes: bool, as_json: bool) -> None:
    """Take NODE, which must be inactive, out of the configuration for good; its slot is free, its key worth nothing.

    Shows what it would do; --yes does it. First have it leave: muster node leave NODE.
    """
    connection = settings().connection()
    if yes:
        show_change(remove_node(connection, name), as_json=as_json, done=True)
        return
    head, found = _configured(connection, name)
    if as_json:
        print_json({**head, "name": name, **found, "done": False})
    else:
        click.echo(
            f"would remove {name}: node {found['id']}, {found['state']}, addresses {' '.join(found['addresses'])}"
        )
        click.echo("its key is no longer accepted from then on, and its slot is free; --yes does it")


def _print_token(name: str, made: str, expires_s: int, answer: Document, *, as_json: bool) -> None:
    ends = f"{datetime.fromtimestamp(expires_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if as_json:
        show_change(answer, as_json=True, name=name, token=made, ends=ends)
        return
    click.echo(f"{answer['outcome']} (index {answer['index']}); the token is good until {ends}", err=True)
    click.echo(f"  on its machine: muster enrol --store PATH --name {name} --start   (it asks for the token)", err=True)
    click.echo(made)


def _configured(connection: Connection, name: str) -> tuple[Document, Document]:
    """What every answer carries, and the node. Raises `ClientError`."""
    answer = connection.query("nodes")
    nodes = answer.pop("nodes")
    if name not in nodes:
        raise ClientError(f"there is no node {name!r}", "the cluster's configuration", "it has " + ", ".join(nodes))
    return answer, nodes[name]
