"""Commands about stores: make one, look at one, check one; offline and on a live store (SPEC 1.2-1.5)."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from muster.records.timing import PROFILES
from muster.records.versions import HIGHEST
from muster.setup.errors import Mistaken
from muster.setup.harmless import harmless_document, within
from muster.ui.options import EXIT_REFUSED, json_option, print_json, reporting

if TYPE_CHECKING:
    from muster.setup.stores import StoreReport

T = TypeVar("T")
_COLOURS = {"note": None, "warning": "yellow", "error": "red"}
_HIGHEST_INDEX = 1 << 53
_SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="The cluster's name.")
@click.option(
    "--nodes",
    required=True,
    metavar="NAME=HOST:PORT,...",
    help="The nodes and their addresses on the interconnect; several links of one node are joined by +.",
)
@click.option(
    "--profile", metavar="NAME", help=f"Latency profile: {', '.join(PROFILES)} [scope shared: shared; host: standard]."
)
@click.option("--set", "timers", multiple=True, metavar="KEY=VALUE", help="Set a timer: muster profile show.")
@click.option(
    "--scope",
    type=click.Choice(["host", "shared"]),
    default="shared",
    show_default=True,
    help="Daemons on one machine, or machines that share a device with working direct I/O.",
)
@click.option("--keys", type=click.Path(path_type=Path), metavar="DIR", help="Where private keys go [NAME-keys].")
@click.option(
    "--slots",
    type=int,
    metavar="NUMBER",
    help="How many nodes the store has room for [256 where the store has room for them, else 128, 64, 32 or 16].",
)
@click.option(
    "--size",
    metavar="BYTES",
    help="Size of the store, as 64M or 1G [for 16 slots 64M for a host, 256M shared; a file takes that much at first].",
)
@click.option(
    "--certificate-lifetime", default="365d", show_default=True, metavar="DURATION", help="Of nodes' certificates."
)
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@click.option(
    "--active-version",
    type=int,
    default=HIGHEST,
    show_default=True,
    metavar="NUMBER",
    help="Of records and messages; lower where some machines still have an older release.",
)
@reporting
def init(
    path: Path,
    name: str,
    nodes: str,
    profile: str | None,
    timers: tuple[str, ...],
    scope: str,
    keys: Path | None,
    slots: int | None,
    size: str | None,
    certificate_lifetime: str,
    force: bool,
    active_version: int,
) -> None:
    """Make the store of a new cluster at PATH, its authority, and a private key for each node.

    Refuses to overwrite anything, and says what is there. Carry each node's folder of keys to that node; it holds the
    authority's key too, so that any member can enrol further nodes. No private key is in the store. Certificates are
    renewed before they end, by the nodes themselves.

    \b
    Examples:
      muster init /dev/disk/by-id/wwn-0x5000 --name prod --nodes n0=10.0.0.1:7700,n1=10.0.0.2:7700
      muster init ./store --name test --nodes n0=127.0.0.1:7700 --scope host --profile fast
    """
    from muster.setup.initialisation import ClusterPlan, initialise, measured, parse_nodes, room_of
    from muster.setup.joining import duration_s
    from muster.setup.profiles import DEFAULT_PROFILES, chosen_profile, parse_overrides

    lifetime_s = duration_s(certificate_lifetime, "--certificate-lifetime")
    overrides = parse_overrides(timers)
    chosen = profile or DEFAULT_PROFILES[scope]
    plan = ClusterPlan(
        name, parse_nodes(nodes), chosen, scope, slots, _size_bytes(size), overrides, lifetime_s, active_version
    )
    folder = keys if keys is not None else Path(f"{name}-keys")
    identity = initialise(path.absolute(), plan, folder.absolute(), force=force)
    click.echo(f"{path} holds the new cluster {name} ({identity}) of {len(plan.nodes)} nodes; its keys are in {folder}")
    click.echo(room_of(path))
    if scope == "shared":
        click.echo(measured(path, chosen_profile(chosen, overrides, "--profile")))
    first = plan.nodes[0].name
    click.echo(
        f"next: on {first}, with {folder / first} as its home: musterd --store {path} --node {first} --home HOME"
    )


def _size_bytes(text: str | None) -> int | None:
    if text is None:
        return None
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in _SIZE_UNITS else (text, "")
    if not digits.isdigit() or len(digits) > 15:
        raise Mistaken(f"{text!r} is no size", "--size", "write bytes, or a number with K, M or G, as 64M")
    return int(digits) * _SIZE_UNITS.get(unit, 1)


@click.group()
def store() -> None:
    """Look at a store or check it, whether nodes are using it or not; make a copy the cluster's store."""


_path_argument = click.argument("path", type=click.Path(path_type=Path))


@store.command()
@_path_argument
@json_option
@reporting
def show(path: Path, as_json: bool) -> None:
    """What the store at PATH holds: its header, each node's registers, the newest journal."""
    import msgspec

    from muster.setup.stores import described

    report = described(path)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _print_report(report)


@store.command()
@_path_argument
@json_option
@reporting
def check(path: Path, as_json: bool) -> None:
    """Look for damage in the store at PATH: invalid copies, copies that disagree, journals that cannot be read.

    Ends with 1 if there is a warning or an error; a note needs nobody, as one about a register that is just written.
    """
    import msgspec

    from muster.setup.stores import damage

    findings = damage(path)
    if as_json:
        print_json({"path": str(path), "findings": msgspec.to_builtins(findings)})
    else:
        for finding in map(_for_people, findings):
            click.secho(f"{finding.severity}: {finding.where}: {finding.problem}", fg=_COLOURS.get(finding.severity))
            click.echo(f"  where: offset {finding.offset}, sector {finding.sector}")
            click.echo(f"  next:  {finding.advice}")
        click.echo(f"{path}: " + (f"{len(findings)} findings" if findings else "no damage"))
    if any(finding.severity != "note" for finding in findings):
        raise SystemExit(EXIT_REFUSED)


@store.command()
@_path_argument
@click.option(
    "--home",
    "homes",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="A node's home; what it remembers of the store counts; may be given more than once. Copies of other machines' "
    "homes will do.",
)
@click.option("--above", type=int, default=0, metavar="INDEX", help="A commit index that is known from elsewhere.")
@click.option("--yes", is_flag=True, help="Do it: every node is stopped, and what came after the copy may be lost.")
@json_option
@reporting
def adopt(path: Path, homes: tuple[Path, ...], above: int, yes: bool, as_json: bool) -> None:
    """Make the copy at PATH the cluster's store: after it was moved, or restored from a backup.

    With every node of the cluster stopped. Without --yes it only says what it would do. The copy gets a store id of
    its own. Its index, epoch and terms are above all that it and the given homes know; so no fencing token is ever
    given twice. Then start the nodes on it. A node whose home knows more than that refuses it, and says what to give.

    \b
    Examples:
      muster store adopt /dev/disk/by-id/wwn-0x5000
      muster store adopt /dev/disk/by-id/wwn-0x5000 --home /var/lib/muster --yes
    """
    import msgspec

    from muster.setup.stores import adopted

    if not 0 <= above < _HIGHEST_INDEX:
        raise Mistaken(f"{above} is no commit index", "--above", "give a number that a node has shown as index")
    done, remembering = adopted(path, homes, above, really=yes)
    if as_json:
        print_json({**msgspec.to_builtins(done), "done": yes, "homes": remembering})
        return
    done = _for_people(done)
    click.echo(
        f"{path}: cluster {done.cluster} ({done.identity}), store {done.former_store_id}, index {done.former_index}"
    )
    click.echo(f"  watched for {done.silent_ms / 1000:.1f} s: no node runs on it")
    click.echo(f"  {remembering} of {len(homes)} homes remember this cluster; highest known index {done.known_index}")
    if lost := done.known_index - done.former_index:
        click.secho(f"  {lost} changes were committed after this copy was made, and are lost with it", fg="yellow")
    click.echo(
        f"  {'now' if yes else 'would become'}: store {done.store_id}, index and epoch {done.index}, term {done.term}"
    )
    click.echo(f"next: {'start the nodes on it' if yes else 'the same with --yes, when every node is stopped'}")


@store.command()
@_path_argument
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Write the backup there."
)
@json_option
@reporting
def backup(path: Path, output: Path, as_json: bool) -> None:
    """Back up what people have decided: nodes, settings, services, events, fence devices. Nodes may be running.

    Keep it with the nodes' homes: these hold the keys, and the backup does not. It holds no leases, claims, marks or
    tombstones, so nothing that a node runs is in it.

    \b
    Example:
      muster store backup /dev/disk/by-id/wwn-0x5000 --output /srv/backup/prod.muster
    """
    from muster.setup.backups import back_up

    made = back_up(path, output.absolute())
    if as_json:
        about = {"cluster": made.cluster, "identity": made.identity, "index": made.index, "version": made.version}
        print_json({"path": str(path), "file": str(output), **about, "digest": made.digest})
        return
    click.echo(
        f"{output} holds cluster {within(made.cluster)} ({made.identity}) at index {made.index}, version {made.version}"
    )
    click.echo("the nodes' keys are in their homes, and not in it")


@store.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_path_argument
@click.option(
    "--home", "homes", multiple=True, type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
    help="A node's home, or a copy of it; what it remembers counts. May be given more than once.",
)  # fmt: skip
@click.option(
    "--stopped",
    multiple=True,
    metavar="NODE",
    help="You are sure that this node runs nothing. May be given more often.",
)
@click.option("--force", is_flag=True, help="Overwrite what is at PATH.")
@click.option("--yes", is_flag=True, help="Do it; without, what would be done is shown and nothing is written.")
@json_option
@reporting
def restore(
    file: Path, path: Path, homes: tuple[Path, ...], stopped: tuple[str, ...], force: bool, yes: bool, as_json: bool
) -> None:
    """Make a new store at PATH of the backup in FILE, where the old store is lost.

    It begins a new generation, above all that the backup and the given homes know. So nodes that still run on the
    old store refuse the new one. No service starts before each node has booted on it, was fenced, or is known to have
    stopped. Name with --stopped those of which you are sure; the first node that starts fences the
    others, where it can. What was changed since the backup is lost.

    \b
    Examples:
      muster store restore prod.muster /dev/disk/by-id/wwn-0x6000 --home /var/lib/muster
      muster store restore prod.muster /dev/disk/by-id/wwn-0x6000 --home /var/lib/muster --stopped n2 --yes
    """
    from muster.setup.backups import restore as make

    done = make(file, path, homes, stopped, really=yes, force=force)
    begun, made = done.begun, done.backup
    if as_json:
        about = {"cluster": made.cluster, "identity": made.identity, "backup_index": made.index, "homes": done.asked}
        new = {"store_id": done.store_id, "index": begun.newest, "term": begun.term.number}
        print_json({"path": str(path), "done": yes, **about, **new, "unproven": list(done.unproven)})
        return
    click.echo(
        f"{file}: cluster {within(made.cluster)} ({made.identity}), index {made.index}, {done.services} services"
    )
    click.echo(f"  {done.asked} of {len(homes)} homes remember this cluster")
    click.echo(f"  {'now' if yes else 'would become'}: store {done.store_id}, index and epoch {begun.newest}")
    if done.unproven:
        names = ", ".join(map(within, done.unproven))
        click.secho(f"  may still run: {names}; no service starts before each is known", fg="yellow")
    click.echo(f"next: {'start the nodes on it' if yes else 'the same with --yes'}")


def _for_people(found: T) -> T:
    """What was read from a store, without what would steer a terminal or forge a line (P10.8)."""
    import msgspec

    return msgspec.convert(harmless_document(msgspec.to_builtins(found)), type(found))


def _print_report(report: "StoreReport") -> None:
    """A store for people: what it is, who is in it, what the newest journal says."""
    report = _for_people(report)
    formats = f"format {report.lowest_format}..{report.highest_format}"
    access = "direct I/O" if report.direct else "buffered I/O"
    click.secho(f"{report.path}: cluster {report.cluster} ({report.identity})", bold=True)
    if report.store_id != report.identity:
        click.echo(f"  store {report.store_id}, adopted after a move or a restore")
    size = f"{report.total_bytes / (1 << 20):.1f} MiB in sectors of {report.sector_bytes}"
    click.echo(f"  scope {report.scope}, {formats}, {size}, {len(report.slots)} slots, {access}")
    for slot in report.slots:
        if slot.used:
            click.secho(f"slot {slot.node}  {slot.name or '(not configured)'}", bold=True)
            for word in ("lease", "claim", "view", "marks"):
                click.echo(f"  {word:<6} {getattr(slot, word)}")
    journal = report.journal
    if journal is None:
        click.secho(f"newest journal: {report.unreadable}", fg="red")
        return
    click.secho(f"newest journal: {journal.owner_name}, term {journal.term}, index {journal.index}", bold=True)
    filled = f"{journal.used_bytes} of {journal.region_bytes} bytes"
    click.echo(f"  half {journal.half}, generation {journal.generation}, {journal.frames} frames, {filled}")
    for node in journal.nodes:
        click.echo(f"  node {node.name}: {node.state}, incarnation {node.incarnation}")
    for service in journal.services:
        click.echo(f"  service {service.name}: {service.state}" + (f" on {service.node}" if service.node else ""))
