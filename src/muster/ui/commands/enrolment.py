"""`muster enrol`: this machine becomes a node; what is done is in `setup/enrolment.py` (P1.4, SPEC 1.4)."""

import os
import sys
from pathlib import Path
from typing import IO

import click

from muster.setup.enrolment import DEFAULT_HOME, MAXIMUM_TOKEN_CHARACTERS, become
from muster.setup.errors import Mistaken
from muster.ui.options import reporting
from muster.ui.parameter_types import Seconds


@click.command()
@click.option(
    "--store", required=True, type=click.Path(path_type=Path), metavar="PATH", help="The membership database."
)
@click.option("--name", required=True, metavar="NODE", help="The name under which the node was added.")
@click.option("--home", type=click.Path(path_type=Path), default=DEFAULT_HOME, show_default=True, metavar="DIR")
@click.option(
    "--token-file",
    type=click.File("r"),
    metavar="FILE",
    help="Read the token there [the terminal, or else standard input; so does -].",
)
@click.option("--start", is_flag=True, help="Then run musterd here, in the foreground.")
@click.option("--wait", "wait_s", type=Seconds(min=1), default=30.0, metavar="SECONDS", show_default=True)
@reporting
def enrol(store: Path, name: str, home: Path, token_file: IO[str] | None, start: bool, wait_s: float) -> None:
    """Make this machine a node of the cluster, with the token that `muster node add` has printed.

    Nothing else is needed: addresses, certificates and timing are in the store. The private key is made in the home,
    and stays there. A token is never given on the command line, where other users could read it.

    \b
    Examples:
      muster enrol --store /dev/disk/by-id/wwn-0x5000 --name n3 --start
      muster enrol --store /dev/disk/by-id/wwn-0x5000 --name n3 --token-file n3.token
    """
    click.echo(become(store.absolute(), name, home.absolute(), lambda: _read_token(token_file), wait_s), err=True)
    command = ["-m", "muster.daemon.main", "--store", str(store.absolute()), "--node", name]
    command += ["--home", str(home.absolute())]
    if start:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *command])  # a list of arguments, no shell
    click.echo(f"next: musterd --store {store} --node {name} --home {home}", err=True)


def _read_token(file: IO[str] | None) -> str:
    if file is not None:
        text = file.read(MAXIMUM_TOKEN_CHARACTERS + 2)
    elif sys.stdin.isatty():
        text = str(click.prompt("token", hide_input=True, err=True))
    else:
        text = sys.stdin.read(MAXIMUM_TOKEN_CHARACTERS + 2)
    token = text.strip()
    if not token or len(token) > MAXIMUM_TOKEN_CHARACTERS or not token.isascii() or len(token.split()) != 1:
        raise Mistaken("this is no token", "the token", "give what `muster node add` printed, and nothing else")
    return token
