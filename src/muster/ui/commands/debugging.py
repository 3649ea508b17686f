"""`muster debug`: what helps to find out what is wrong (SPEC 9.4)."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from muster.client.errors import Unreachable
from muster.setup.errors import Mistaken
from muster.setup.nodes import development_homes
from muster.ui.options import Settings, connection_options, json_option, print_json, reporting, settings, show_beside

if TYPE_CHECKING:
    from muster.setup.bundle import Bundle

_STORE_FILE = "store"  # of a development cluster
_LOG_FILE = "log"


@click.group()
@connection_options
def debug() -> None:
    """Collect what a bug report needs."""


@debug.command()
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Where to [muster-debug-TIME.tar.gz].")
@click.option(
    "--store",
    "store_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Look at this store, too, even while no node runs.",
)
@json_option
@connection_options
@reporting
def bundle(output: Path | None, store_path: Path | None, as_json: bool) -> None:
    """One file for a bug report: what the nodes say, their logs, what the store holds, releases.

    Works with what is there: from any node, and from the store alone when no daemon runs. CONTENTS.txt in the file
    says what is in it, what could not be had and why. Private keys, tokens, passwords and the values of environment
    variables are left out; still, look through it before you send it. Nothing is sent anywhere.

    \b
    Examples:
      muster debug bundle                                     on a machine with a node
      muster debug bundle --dir /tmp/try --output bug.tar.gz  a development cluster, with all its nodes' logs
      muster debug bundle --store /dev/disk/by-id/wwn-0x5000  while nothing runs
    """
    from muster.setup.bundle import Bundle

    target = output or Path(time.strftime("muster-debug-%Y%m%dT%H%M%SZ.tar.gz", time.gmtime()))
    if target.exists():
        raise Mistaken("there is something already", str(target), "name another file with --output")
    if not target.absolute().parent.is_dir():
        raise Mistaken("its directory does not exist", str(target), "make it first, or name another with --output")
    if store_path is not None and not store_path.exists():
        raise Mistaken("there is no such store", str(store_path), "give the path of the store")
    found = Bundle()
    cluster = _gather(found, settings(), store_path)
    size = found.write(target, cluster)
    missing = [{"path": member.path, "why": member.about} for member in found.members if member.data is None]
    members = [
        {"path": member.path, "bytes": len(member.data), "about": member.about}
        for member in found.members
        if member.data is not None
    ]
    if as_json:
        print_json({"file": str(target), "bytes": size, "members": members, "missing": missing})
        return
    click.echo(f"{target}: {len(members)} files, {size / 1024:.0f} KiB; CONTENTS.txt in it says what each one is")
    for each in missing:
        show_beside(f"  not in it: {each['path']}: {each['why']}")
    click.echo("keys, tokens and environment values are left out; look through it before you send it", err=True)


def _gather(found: "Bundle", chosen: Settings, store_path: Path | None) -> str:
    """Gather everything that can be had; the cluster's name. Raises `Unreachable` where there is nothing at all."""
    from muster.setup import bundle as parts

    parts.gather_surroundings(found)
    sockets = chosen.sockets()
    timeout_s = min(10.0, chosen.timeout_s)
    reports = [report for name, path in sockets.items() if (report := parts.gather_node(found, name, path, timeout_s))]
    if reports:
        parts.gather_histories(found, chosen.connection())
    homes = development_homes(chosen.directory) if chosen.directory is not None and chosen.socket is None else {}
    for name, home in homes.items():
        parts.gather_log(found, name, home / _LOG_FILE)
    if not homes:
        files = {str(report["node"]): report["log_file"] for report in reports if report.get("log_file")}
        for name, file in files.items():
            parts.gather_log(found, name, Path(file))
        if not files:
            parts.gather_journal(found)
    if store_path is None and homes and chosen.directory is not None:
        store_path = chosen.directory / _STORE_FILE
    elif store_path is None and reports:
        store_path = Path(str(reports[0]["store"]))
    if store_path is not None:
        parts.gather_store(found, store_path)
    elif not found.node_answers:
        where = ", ".join(map(str, sockets.values()))
        raise Unreachable("no node answers, and no store is named", where, "name the store: --store PATH")
    return str(reports[0]["cluster"]) if reports else "(no node answers)"
