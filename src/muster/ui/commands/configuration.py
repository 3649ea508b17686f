"""Commands about the configuration as versions: history, show, diff, rollback, set (SPEC 9.3)."""

import time
from pathlib import Path
from typing import Any

import click

from muster.setup.nodes import Document
from muster.ui.options import (
    answer_of,
    change_options,
    complete_nodes,
    connection_options,
    expect_option,
    json_option,
    print_json,
    reporting,
    settings,
    show_change,
)
from muster.ui.pages.plan_page import plan_of, show_foreseen
from muster.ui.values import as_typed

SETTINGS = (
    *("observer_group", "operator_group", "administrator_group"),
    *("required_levels", "required_levels_within", "lockspaces", "kernel_locks", "profile", "watchdog"),
)
_SIGNS = {"new": ("+", "green"), "changed": ("~", "yellow"), "removed": ("-", "red")}
_version_type = click.IntRange(min=0)


@click.group()
@connection_options
def config() -> None:
    """What people have decided: who changed what, when, from where; and how to go back."""


@config.command()
@json_option
@connection_options
@reporting
def history(as_json: bool) -> None:
    """Every version of the configuration that is kept, newest first; version 0 is what `muster init` made."""
    answer = answer_of("config_history", as_json=as_json)
    if answer is None:
        return
    for made in answer["versions"]:
        click.echo(f"{made['version']:>6}  {when(made['at_ms'])}  {_by(made)}  {made['what']}")
    if answer["version"] and answer["oldest"]:
        click.echo(f"older ones than {answer['oldest']} are no longer kept")
    elif not answer["version"]:
        click.echo("nothing has been changed yet: this is version 0")


@config.command()
@click.argument("version", type=_version_type, required=False)
@json_option
@connection_options
@reporting
def show(version: int | None, as_json: bool) -> None:
    """The configuration as it was at VERSION, or as it is."""
    answer = answer_of("config_show", as_json=as_json, version="" if version is None else str(version))
    if answer is None:
        return
    made = answer["made"]
    click.secho(
        f"version {answer['version']}" + (f", {when(made['at_ms'])}, by {_by(made)}" if made else ""), bold=True
    )
    for key, value in answer["settings"].items():
        if value not in ([], ""):
            click.echo(f"  {key}: {_text(value)}")
    for kind in ("nodes", "services", "event_groups"):
        for name, document in answer[kind].items():
            click.secho(f"{kind[:-1].replace('_', ' ')} {name}", bold=True)
            for key, value in document.items():
                if key != "name" and value not in ([], "", None):
                    click.echo(f"  {key}: {_text(value)}")


@config.command()
@click.argument("version", type=_version_type, required=False)
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it there [standard output].")
@json_option
@connection_options
@reporting
def export(version: int | None, output: Path | None, as_json: bool) -> None:
    """Services and event groups as a file that `muster apply` takes: of VERSION, or of now.

    What no such file can hold is in it as comments: the commands for settings and fence devices. Secrets are in no
    export. A node is added with `muster node add`.

    \b
    Example:
      muster config export --output prod.toml
      muster apply prod.toml --dry-run
    """
    from muster.setup.exporting import export_of

    connection = settings().connection()
    answer = connection.query("config_show", version="" if version is None else str(version))
    found = export_of(answer, connection.query("fencing") if version is None else {})
    if output is not None:
        output.write_text(found.whole)
    if as_json:
        file = None if output is None else str(output)
        print_json({"version": answer["version"], "file": file, "text": found.text, "commands": list(found.commands)})
    elif output is None:
        click.echo(found.whole, nl=False)
    else:
        click.echo(f"version {answer['version']} is in {output}; take it with: muster apply {output}")


@config.command()
@click.argument("old", type=_version_type)
@click.argument("new", type=_version_type, required=False)
@json_option
@connection_options
@reporting
def diff(old: int, new: int | None, as_json: bool) -> None:
    """What differs between version OLD and version NEW (without NEW: the newest)."""
    answer = answer_of("config_diff", as_json=as_json, old=str(old), new="" if new is None else str(new))
    if answer is None:
        return
    show_differences(answer["differences"])
    if not answer["differences"]:
        click.echo(f"versions {answer['old']} and {answer['new']} are the same")


@config.command()
@click.argument("version", type=_version_type)
@click.option("--yes", is_flag=True, help="Do it; without, what would change is shown and nothing changes.")
@expect_option
@change_options
@connection_options
@reporting
def rollback(version: int, yes: bool, expect: int | None, as_json: bool) -> None:
    """Give services and settings the definitions they had at VERSION; that makes a new version.

    Nodes are not added or removed this way, and the active version never goes back.

    \b
    Examples:
      muster config rollback 3
      muster config rollback 3 --yes
    """
    connection = settings().connection()
    plan = connection.query("config_rollback", version=str(version))
    if yes:
        # without --expect: what was shown a moment ago is what is done, or nothing
        wanted = plan["from"] if expect is None else expect
        answer = connection.operate("roll_back", version=version, expect=wanted)
        show_change(answer, as_json=as_json, changes=plan["changes"], done=True)
        return
    foreseen = plan_of(connection, "roll_back", version=version, expect=plan["from"]) if plan["changes"] else {}
    if as_json:
        print_json({**plan, "done": False, "plan": foreseen or None})
        return
    show_differences(plan["changes"])
    for change in plan["stays"]:
        click.secho(f"= {change['kind']} {change['name']}: {change['change']}, stays as it is", dim=True)
    show_foreseen(foreseen)
    if plan["changes"]:
        click.echo(f"nothing was changed (dry run); to do it: muster config rollback {version} --yes")
    else:
        click.echo(f"nothing to change: services and settings are as at version {version}")


@config.command("set")
@click.argument("setting", type=click.Choice(SETTINGS), metavar="SETTING")
@click.argument("value")
@click.option(
    "--of-node", "of_node", metavar="NODE", default="", shell_complete=complete_nodes,
    help="Of required_levels and watchdog: for this node alone; the VALUE cluster takes it back.",
)  # fmt: skip
@expect_option
@change_options
@connection_options
@reporting
def set_setting(setting: str, value: str, of_node: str, expect: int | None, as_json: bool) -> None:
    """Change a setting of the cluster.

    observer_group, operator_group, administrator_group: the Unix group that gives a role; an empty VALUE gives it to
    nobody.

    required_levels: the programs, as NAME:LEVEL or LEVEL, that must have registered on a node before it joins; "none"
    for no such condition. It binds the next join of each node. After required_levels_within, a duration, a node that
    still waits for one of them is an alarm.

    lockspaces: the spaces in which programs lock, and by that whether there are locks at all; "none" for no locks.
    Level 10 is the lock manager's while there is one (docs/LOCKS.md).

    kernel_locks: on or off. On: each node drives the lock manager of its kernel (DLM), which GFS2 needs.

    profile: another latency profile, with commas and timers behind it if they are to differ. Leases and watchdogs of
    machines go over to it at once; daemons when they are restarted (docs/WATCHDOGS.md).

    watchdog: the device behind each node's lease: auto, softdog, a path below /dev, or none. It binds the next boot.

    \b
    Examples:
      muster config set lockspaces orders,reports
      muster config set operator_group wheel
      muster config set required_levels storage:15,locks:20
      muster config set required_levels none --of-node n3
      muster config set required_levels_within 5m
      muster config set profile short,renew_ms=200
      muster config set watchdog auto
      muster config set watchdog /dev/watchdog1,stages=2 --of-node n3
    """
    wanted = -1 if expect is None else expect
    own = {"node": of_node} if of_node else {}  # which a node of an earlier release does not know
    answer = settings().connection().operate("configure", setting=setting, value=value, expect=wanted, **own)
    show_change(answer, as_json=as_json)


@click.command()
@json_option
@connection_options
@reporting
def audit(as_json: bool) -> None:
    """Who asked for which change, in which role, when, at which node, and what became of it; newest first.

    What was refused is kept by the node that refused it, for as long as its daemon runs.
    """
    answer = answer_of("audit", as_json=as_json)
    if answer is None:
        return
    for entry in answer["audit"]:
        words = f"{entry['operation']} {entry['subject']}".rstrip()
        click.echo(f"{when(entry['at_ms'])}  {_by(entry)} ({entry['role']})  {words}: {entry['outcome']}")
    if not answer["audit"]:
        click.echo("nothing has been asked for yet")


def when(at_ms: int) -> str:
    """A wall clock's time, in the local zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000)) if at_ms else "unknown time"


def _by(made: Document) -> str:
    return f"{made['user']}@{made['node']}" if made["node"] else "the cluster itself"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner or 'nobody'}" for key, inner in value.items())
    return as_typed(value)


def show_differences(differences: list[Document]) -> None:
    """One line a record, one a key below."""
    for change in differences:
        sign, colour = _SIGNS[change["change"]]
        click.secho(f"{sign} {change['kind']} {change['name']}: {change['change']}", fg=colour)
        if change["change"] == "changed":
            for key, (old, new) in change["keys"].items():
                click.echo(f"    {key}: {old!r} -> {new!r}")
