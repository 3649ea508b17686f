"""Commands about releases and versions: what each node runs, raising the active version (SPEC 9.2, docs/UPGRADE.md)."""

import click

from muster.client.errors import ClientError
from muster.setup.nodes import Document
from muster.ui.options import (
    answer_of,
    change_options,
    connection_options,
    json_option,
    print_json,
    reporting,
    settings,
    show_change,
)

HEAD = ("cluster", "node", "node_state", "index", "term")  # of every answer
HOW_TO = (
    "on each machine, one after the other: install the release, then muster node restart-daemon NAME",
    "where the guard's image changed too: muster node leave NAME, then boot it (its services move, and move back)",
    "when every node has the release: muster upgrade finish",
)


@click.group()
@connection_options
def upgrade() -> None:
    """A new release on every node, one after the other, with no service interrupted."""


@upgrade.command()
@json_option
@connection_options
@reporting
def status(as_json: bool) -> None:
    """The active version, what each node runs, and what is missing for a higher version."""
    answer = answer_of("upgrade", as_json=as_json)
    if answer is None:
        return
    low, high = answer["understood"]
    click.echo(f"active: version {answer['active']}; this node's release knows {low} to {high}")
    images = {node["image"] for node in answer["nodes"].values() if node["known"]}
    for name, node in answer["nodes"].items():
        click.echo(f"  {name}: {_node_words(node, max(images, default=0))}")
    if answer["wanted"] == answer["active"]:
        click.echo("nothing to raise")
        return
    for name, lacking in answer["missing"].items():
        click.secho(f"missing for version {answer['wanted']}: {name}: {lacking}", fg="yellow")
    if answer["missing"]:
        click.echo("how to go on:\n  " + "\n  ".join(HOW_TO))
    else:
        click.echo(f"every node knows version {answer['wanted']}: raise it with  muster upgrade finish")


@upgrade.command()
@click.option("--yes", is_flag=True, help="Do it; without, what would be raised is shown and nothing changes.")
@click.option(
    "--despite-unknown",
    is_flag=True,
    help="Also where a node has never said what it runs; with an older release it cannot join from then on.",
)
@change_options
@connection_options
@reporting
def finish(yes: bool, despite_unknown: bool, as_json: bool) -> None:
    """Make the newest version active, once every configured node knows it. There is no way back.

    \b
    Examples:
      muster upgrade finish           what would be raised
      muster upgrade finish --yes
    """
    connection = settings().connection()
    answer = connection.query("upgrade")
    active, wanted = answer["active"], answer["wanted"]
    is_repeated = yes and "identity" in settings().typed  # then the cluster says what the first time has done
    if wanted == active and not is_repeated:
        document = {key: answer[key] for key in (*HEAD, "active", "wanted")}
        print_json({**document, "raised": False}) if as_json else click.echo(
            f"version {active} is active, and this release knows no newer one: nothing to finish"
        )
        return
    lacking = {
        name: text
        for name, text in answer["missing"].items()
        if answer["nodes"][name]["known"] or not despite_unknown
    }  # fmt: skip
    if lacking:
        what = f"version {wanted} cannot become active yet"
        where = "; ".join(f"{name}: {text}" for name, text in lacking.items())
        raise ClientError(what, where, "see `muster upgrade status` for how to go on")
    if not yes:
        document = {key: answer[key] for key in (*HEAD, "active", "wanted")}
        print_json({**document, "raised": False}) if as_json else click.echo(
            f"would raise the active version from {active} to {wanted}; releases that know only {active} could not "
            "join any more. Nothing was changed (dry run); to do it: muster upgrade finish --yes"
        )
        return
    done = connection.operate("finish_upgrade", version=wanted, despite_unknown=despite_unknown)
    show_change(done, as_json=as_json, active=wanted, wanted=wanted, raised=True)


def _node_words(node: Document, newest_image: int) -> str:
    if not node["known"]:
        return f"{node['state']}; it has never said what it runs"
    text = f"{node['state']}; release {node['release'] or 'unknown'}, versions {node['lowest']} to {node['highest']}"
    if node["restart_pending"]:
        text += "; its daemon is being restarted"
    if node["image"] < newest_image:
        text += "; its guard is of an older image: it must leave and boot to replace it"
    return text
