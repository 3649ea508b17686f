"""Commands of development clusters: `muster dev` (SPEC 8.3)."""

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from muster.client.errors import ClientError
from muster.dev.development_cluster import DevelopmentCluster, check_count, create, open_cluster
from muster.setup.errors import Mistaken
from muster.setup.log_end import open_log
from muster.setup.nodes import CLUSTER_FILE, Document, absolute, command_about
from muster.ui.options import (
    complete_nodes,
    connection_options,
    json_option,
    override_option,
    print_json,
    reporting,
    settings,
)
from muster.ui.parameter_types import Seconds

_FOLLOW_S = 0.2
P = ParamSpec("P")
R = TypeVar("R")


@click.group()
@connection_options
def dev() -> None:
    """A cluster of real daemons on this machine, to try, to teach and to test.

    Everything is under DIR; nothing survives `dev down`.

    \b
    Examples:
      muster dev up --nodes 3 --dir /tmp/try --profile fast
      muster status --dir /tmp/try --watch
      muster dev kill n0 --dir /tmp/try       a power cut
      muster dev boot n0 --dir /tmp/try
      muster dev down --dir /tmp/try
    """


def _directory() -> Path:
    directory = settings().directory
    if directory is None:
        raise Mistaken("no directory is named", "--dir", "add --dir DIR, where the development cluster is or shall be")
    return absolute(directory)


def _cluster() -> DevelopmentCluster:
    return open_cluster(_directory())


def _say(text: str) -> None:
    click.echo(f"  {text}", err=True)


def _node_command(function: Callable[P, R]) -> Callable[P, R]:
    """A command about one node of the development cluster."""
    function = reporting(function)
    return connection_options(click.argument("name", metavar="NODE", shell_complete=complete_nodes)(function))


_wait_option = click.option(
    "--wait",
    "wait_s",
    type=Seconds(min=1),
    default=60.0,
    metavar="SECONDS",
    show_default=True,
    help="Patience.",
)


@dev.command()
@click.option("--nodes", type=int, help="How many nodes: n0, n1, ... [3]")
@click.option("--profile", default="fast", show_default=True, metavar="NAME", help="Latency profile.")
@click.option("--services", "service_file", type=click.Path(path_type=Path), metavar="FILE", help="Apply these, too.")
@click.option("--certificate-lifetime", "lifetime", default="365d", show_default=True, metavar="DURATION")
@click.option(
    "--scope",
    type=click.Choice(["host", "shared"]),
    default="host",
    show_default=True,
    help="shared: as between machines, where nothing but a person proves that a silent node has stopped.",
)
@_wait_option
@connection_options
@reporting
def up(nodes: int | None, profile: str, service_file: Path | None, lifetime: str, scope: str, wait_s: float) -> None:
    """Make and start a cluster in DIR; returns when all nodes are joined.

    A cluster that was ended with `dev down --keep` comes back as it was.
    """
    directory = _directory()
    cluster, existed = _made_or_kept(directory, nodes, profile, service_file, lifetime, scope)
    try:
        for name in cluster.names:
            cluster.start(name)
        cluster.wait_joined(cluster.names, wait_s, _say)
        if service_file is not None:
            click.echo(_apply(cluster, service_file))
    except BaseException:
        click.echo("ending what was started ...", err=True)
        cluster.stop_everything()
        if not existed:
            cluster.remove()
        raise
    click.echo(f"all nodes are joined: {', '.join(cluster.names)}")
    _say_ties(cluster, cluster.names)
    click.echo(f"  {command_about(directory, 'status')}", err=True)


def _say_ties(cluster: DevelopmentCluster, names: list[str]) -> None:
    """How the kernel ends the nodes (P7.11), once each has told it; the log of each says the same."""
    for line in cluster.ties(names):
        click.echo(line)


def _made_or_kept(
    directory: Path, nodes: int | None, profile: str, service_file: Path | None, lifetime: str, scope: str
) -> tuple[DevelopmentCluster, bool]:
    """The cluster to start, and whether it existed already. The service file is checked first. Raises `ClientError`."""
    if os.path.exists(directory / CLUSTER_FILE):
        cluster = open_cluster(directory)
        if running := cluster.running():
            next_step = f"look: {command_about(directory, 'dev ls')}; end it: {command_about(directory, 'dev down')}"
            raise ClientError(f"the cluster is already up: {', '.join(running)}", str(directory), next_step)
        if nodes is not None and nodes != len(cluster.names):
            next_step = f"leave --nodes out, or remove it first: {command_about(directory, 'dev down')}"
            raise ClientError(f"there is a cluster of {len(cluster.names)} nodes already", str(directory), next_step)
        if service_file is not None:
            _definitions(service_file, tuple(cluster.names))
        return cluster, True
    count = 3 if nodes is None else nodes
    check_count(count)
    if service_file is not None:
        _definitions(service_file, tuple(f"n{number}" for number in range(count)), {})
    from muster.setup.joining import duration_s

    return create(
        directory, count, profile, lifetime_s=duration_s(lifetime, "--certificate-lifetime"), scope=scope
    ), False


def _definitions(path: Path, nodes: tuple[str, ...], cluster: Document | None = None) -> list[Document]:
    """What a service file defines; `cluster`: the services that there are, if that is known. Raises `ClientError`."""
    import msgspec

    from muster.ui.commands.services import read_service_file

    services, groups = read_service_file(path, nodes, cluster)
    if groups:
        what, next_step = "it has event groups, which `dev up` does not apply", "apply the file when the cluster is up"
        raise ClientError(what, str(path), f"{next_step}: muster apply {path}")
    return [msgspec.to_builtins(definition) for definition in services]


def _apply(cluster: DevelopmentCluster, path: Path) -> str:
    definitions = _definitions(path, tuple(cluster.names))
    return str(cluster.connection().operate("apply", definitions=definitions, withdraw=[])["outcome"])


@dev.command()
@_node_command
def kill(name: str) -> None:
    """Cut the power of NODE: SIGKILL to everything it runs, no goodbye."""
    click.echo(f"{name} is dead" if _cluster().kill(name) else f"{name} ran nothing")


@dev.command()
@_node_command
def hang(name: str) -> None:
    """Stop NODE in its tracks: SIGSTOP to everything it runs. Its deadman ends it when its lease runs out."""
    click.echo(f"{name} hangs: {_cluster().hang(name)} processes are stopped")


@dev.command()
@_node_command
def resume(name: str) -> None:
    """Wake NODE after `hang`: SIGCONT to everything that is left of it."""
    cluster = _cluster()
    if count := cluster.resume(name):
        click.echo(f"{name} goes on: {count} processes")
    else:
        boot_it = command_about(cluster.directory, f"dev boot {name}")
        click.echo(f"nothing of {name} is left to wake; boot it: {boot_it}")


@dev.command()
@click.option("--no-wait", is_flag=True, help="Return at once, not when it is joined.")
@_wait_option
@_node_command
def boot(name: str, no_wait: bool, wait_s: float) -> None:
    """Start NODE again; returns when it is joined."""
    cluster = _cluster()
    cluster.start(name)
    if no_wait:
        click.echo(f"{name} boots")
        return
    cluster.wait_joined([name], wait_s, _say)
    click.echo(f"{name} is joined")
    _say_ties(cluster, [name])


@dev.command()
@_wait_option
@override_option
@_node_command
def leave(name: str, wait_s: float, override: bool) -> None:
    """Have NODE leave gracefully; returns when it has ended."""
    _cluster().leave(name, wait_s, _say, override)
    click.echo(f"{name} has left")


@dev.command()
@click.argument("name", metavar="[NODE]", default="")
@_wait_option
@connection_options
@reporting
def add(name: str, wait_s: float) -> None:
    """Add a node to the running cluster, by the way that a new machine takes; returns when it is joined.

    Without NODE, it gets the next free name: n3, n4, ...
    """
    cluster = _cluster()
    taken = set(cluster.names)
    name = name or next(free for number in range(len(taken) + 1) if (free := f"n{number}") not in taken)
    cluster.add(name, wait_s, _say)
    cluster.start(name)
    cluster.wait_joined([name], wait_s, _say)
    click.echo(f"{name} is joined")


@dev.command()
@_wait_option
@_node_command
def remove(name: str, wait_s: float) -> None:
    """Have NODE leave, and remove it from the cluster with all that it kept in DIR."""
    _cluster().remove_node(name, wait_s, _say)
    click.echo(f"{name} is removed")


@dev.command()
@click.option("--keep", is_flag=True, help="Keep store, keys and logs: `dev up` brings the cluster back.")
@connection_options
@reporting
def down(keep: bool) -> None:
    """End every node at once and remove what `dev up` made in DIR."""
    cluster = _cluster()
    cluster.stop_everything()
    if not keep:
        cluster.remove()
    click.echo("everything has ended" + (f"; files are kept in {cluster.directory}" if keep else ""))


@dev.command("ls")
@json_option
@connection_options
@reporting
def list_nodes(as_json: bool) -> None:
    """Each node's state and processes; by process evidence also `stopped` (runs nothing) and `hung` (SIGSTOP)."""
    nodes = _cluster().listing()
    if as_json:
        print_json({"nodes": nodes})
        return
    for node in nodes:
        pids = " ".join(map(str, node["pids"][:8])) + (" ..." if len(node["pids"]) > 8 else "")
        click.echo(f"{node['name']:<6} {node['state']:<15} {pids}")


@dev.command()
@click.argument("name", metavar="[NODE]", default="", shell_complete=complete_nodes)
@click.option(
    "-n", "--lines", type=click.IntRange(1, 100_000), default=40, show_default=True, help="How many, from the end."
)
@click.option("-f", "--follow", is_flag=True, help="Stay, and print what comes; Ctrl-C ends it.")
@connection_options
@reporting
def logs(name: str, lines: int, follow: bool) -> None:
    """The end of NODE's log, or of all nodes' logs."""
    cluster = _cluster()
    names = [name] if name else cluster.names
    positions: dict[str, int] = {}
    for one in names:
        path = cluster.log(one)
        prefix = f"{one}: " if len(names) > 1 else ""
        try:
            with open_log(path) as file:
                for line in deque(file, maxlen=lines):
                    click.echo(prefix + line.decode(errors="replace").rstrip("\n"))
                positions[one] = file.tell()
        except FileNotFoundError:
            positions[one] = 0  # never started yet
        except OSError as error:
            what = f"the log of {one} cannot be read: {error.strerror or error}"
            raise ClientError(what, str(path), f"see what it is: ls -lL {path}") from error
    while follow:
        time.sleep(_FOLLOW_S)
        for one in names:
            positions[one] = _print_new(cluster.log(one), positions[one], f"{one}: " if len(names) > 1 else "")


def _print_new(path: Path, position: int, prefix: str) -> int:
    """Print whole lines after `position` bytes; the position after them."""
    try:
        with open_log(path) as file:
            if os.fstat(file.fileno()).st_size < position:
                position = 0  # it was full and has been emptied
            file.seek(position)
            data = file.read(1024 * 1024)
    except OSError:
        return 0
    whole = data.rpartition(b"\n")[0]
    for line in whole.splitlines():
        click.echo(prefix + line.decode(errors="replace"))
    return position + len(whole) + (1 if whole else 0)
