"""`muster install`, `muster uninstall` and `muster man` (P10.11)."""

import os
import re
import socket
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
from click.shell_completion import ShellComplete, get_completion_class

from muster import __version__
from muster.client.errors import ClientError
from muster.setup import installation
from muster.setup.errors import Mistaken
from muster.setup.installation import Step
from muster.ui.manual import pages, reference
from muster.ui.options import json_option, print_json, reporting

P = ParamSpec("P")
R = TypeVar("R")

_yes_option = click.option("--yes", is_flag=True, help="Do it; without, it is only shown.")


def place_options(function: Callable[P, R]) -> Callable[P, R]:
    """The options that say where something is installed."""
    text = "Install into this directory as if it were /: no group is made, no service manager told."
    root = click.option("--root", type=click.Path(path_type=Path), default=Path("/"), metavar="DIR", help=f"{text} [/]")
    prefix = click.option(
        "--prefix", default="/usr/local", show_default=True, metavar="DIR", help="Programs and pages."
    )
    return wraps(function)(root(prefix(function)))


@click.command()
@click.option("--node", metavar="NAME", help="This node's name in the cluster [the machine's name].")
@click.option("--store", required=True, metavar="PATH", help="The membership database: a block device, or a file.")
@click.option("--home", default="/var/lib/muster", show_default=True, metavar="DIR", help="This node's directory.")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="Groups that may use the control socket.")
@click.option("--metrics", default="", metavar="ENDPOINT", help="Serve metrics there: 127.0.0.1:PORT or unix:/PATH.")
@place_options
@click.option("--force", is_flag=True, help="Replace files that are not Muster's, or were changed.")
@_yes_option
@json_option
@reporting
def install(
    node: str | None,
    store: str,
    home: str,
    groups: tuple[str, ...],
    metrics: str,
    prefix: str,
    root: Path,
    force: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Set this machine up as a node: service, groups, directories, completion, manual pages.

    Shows what it would do; --yes does it. Nothing is started. What was there before is not replaced. What is put there
    is recorded, so that `muster uninstall` removes that and nothing else. What Debian's package has brought is not made
    again. Programs of a source tree are refused: they change while somebody works on them.

    \b
    Examples:
      muster install --store /dev/disk/by-id/wwn-0x5000 --node n0
      sudo muster install --store /dev/disk/by-id/wwn-0x5000 --node n0 --yes
      muster install --store /srv/store --node n0 --root ./image --prefix /usr --yes
    """
    name = node if node is not None else socket.gethostname().partition(".")[0]
    settings = installation.InstallationSettings(
        name,
        store,
        home,
        prefix,
        Path(os.path.abspath(root)),
        groups or installation.GROUPS,
        metrics,
        force,
        installation.packaged_below(),
    )
    installation.check_settings(settings)
    installation.refuse_source_tree(settings)
    steps = installation.plan(settings, pages(_program(), __version__), _completions())
    if yes:
        installation.carry_out(settings, steps)
    if as_json:
        print_json({**installation.document(settings, steps, done=yes), "hints": installation.hints(settings)})
        return
    _show(steps, done=yes, words={"new": "made", "changed": "replaced", "foreign": "replaced"})
    for hint in installation.hints(settings) if yes else ():
        click.echo(f"next: {hint}")
    if not yes:
        click.echo("nothing is changed yet: add --yes")


@click.command()
@place_options
@_yes_option
@json_option
@reporting
def uninstall(prefix: str, root: Path, yes: bool, as_json: bool) -> None:
    """Remove what `muster install` put there. The node's home, with its key, and the groups stay.

    Shows what it would do; --yes does it. Stop the node first: systemctl stop musterd.

    \b
    Example:
      sudo muster uninstall --yes
    """
    settings = installation.InstallationSettings("any", "/", "/", prefix, Path(os.path.abspath(root)))
    installation.check_settings(settings)
    steps = installation.removal(settings)
    if yes:
        if settings.is_live and os.geteuid() != 0:
            raise ClientError("only root can remove it", "muster uninstall", "run it with sudo, or name a --root")
        installation.take_away(settings, steps)
    if as_json:
        print_json(installation.document(settings, steps, done=yes))
        return
    _show(steps, done=yes, words={"installed": "removed", "new": "done"})
    if not yes:
        click.echo("nothing is changed yet: add --yes")


def _show(steps: list[Step], *, done: bool, words: dict[str, str]) -> None:
    shown: dict[tuple[str, str, str], list[Step]] = {}
    for step in steps:  # the pages of a directory are one line
        is_page = re.search(r"/man\d/", step.target) is not None
        key = os.path.dirname(step.target) if is_page else step.target
        shown.setdefault((step.state, step.kind, key), []).append(step)
    for (state, kind, target), alike in shown.items():
        about = alike[0].about if len(alike) == 1 else f"{len(alike)} of them, each: {alike[0].about}"
        where = alike[0].target if len(alike) == 1 else f"{target}/"
        word = words.get(state, state) if done else state
        click.echo(f"  {word:<10} {kind:<10} {where}  ({about})")


@click.command("man")
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where; made if need be.")
@click.option("--markdown", is_flag=True, help="One file COMMANDS.md instead.")
@reporting
def man(output: Path, markdown: bool) -> None:
    """Write the manual pages of all commands, made from the commands themselves.

    \b
    Examples:
      muster man --output build/man && man -l build/man/muster.1
      muster man --output docs --markdown
    """
    if output.exists() and not output.is_dir():
        raise Mistaken("it is no directory", str(output), "name a directory")
    output.mkdir(parents=True, exist_ok=True)
    if markdown:
        (output / "COMMANDS.md").write_text(reference(_program()))
        click.echo(f"{output / 'COMMANDS.md'} is written")
        return
    found = pages(_program(), __version__)
    for page in found:
        (output / page.file).write_text(page.text)
    click.echo(f"{output}: {len(found)} manual pages")


def _program() -> click.Command:
    return click.get_current_context().find_root().command


def _completions() -> dict[str, str]:
    """Place below the prefix and script of each shell's completion."""
    places = {
        "bash": "share/bash-completion/completions/muster",
        "zsh": "share/zsh/site-functions/_muster",
        "fish": "share/fish/vendor_completions.d/muster.fish",
    }
    found = {}
    for shell, place in places.items():
        kind = get_completion_class(shell)
        if kind is not None:
            found[place] = _template(kind)
    return found


def _template(kind: type[ShellComplete]) -> str:
    """The script without asking the shell for its version, which need not be installed here."""
    made = kind(_program(), {}, "muster", "_MUSTER_COMPLETE")
    return str(made.source_template % made.source_vars())
