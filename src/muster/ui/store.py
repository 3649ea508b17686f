"""Commands about stores: make one, look at one, check one; offline and on a live store (SPEC 1.2-1.5)."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muster.records.versions import HIGHEST
from muster.ui.client import MusterError
from muster.ui.connection import EXIT_REFUSED, Mistaken, json_option, print_json, reporting

if TYPE_CHECKING:
    from muster.drivers.store_inspection import StoreReport

_COLOURS = {"note": None, "warning": "yellow", "error": "red"}
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
@click.option("--profile", default="standard", show_default=True, help="Latency profile: fast, standard, virtualised.")
@click.option("--set", "timers", multiple=True, metavar="KEY=VALUE", help="Set a timer: muster profile show.")
@click.option(
    "--scope",
    type=click.Choice(["host", "shared"]),
    default="shared",
    show_default=True,
    help="Daemons on one machine, or machines that share a device with working direct I/O.",
)
@click.option("--keys", type=click.Path(path_type=Path), metavar="DIR", help="Where private keys go [NAME-keys].")
@click.option("--slots", type=int, default=16, show_default=True, help="How many nodes the store has room for.")
@click.option("--size", metavar="BYTES", help="Size of the store, as 64M or 1G [64M for a host, 256M shared].")
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
    profile: str,
    timers: tuple[str, ...],
    scope: str,
    keys: Path | None,
    slots: int,
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
    from muster.ui.initialisation import ClusterPlan, initialise, parse_nodes
    from muster.ui.node_configuration import duration_s
    from muster.ui.profile import parse_overrides

    lifetime_s = duration_s(certificate_lifetime, "--certificate-lifetime")
    overrides = parse_overrides(timers)
    plan = ClusterPlan(
        name, parse_nodes(nodes), profile, scope, slots, _size_bytes(size), overrides, lifetime_s, active_version
    )
    folder = keys if keys is not None else Path(f"{name}-keys")
    identity = initialise(path.absolute(), plan, folder.absolute(), force=force)
    click.echo(f"{path} holds the new cluster {name} ({identity}) of {len(plan.nodes)} nodes; its keys are in {folder}")
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
    """Look at a store or check it, whether nodes are using it or not."""


_path_argument = click.argument("path", type=click.Path(path_type=Path))


@store.command()
@_path_argument
@json_option
@reporting
def show(path: Path, as_json: bool) -> None:
    """What the store at PATH holds: its header, each node's registers, the newest journal."""
    import msgspec

    from muster.drivers.store import StoreFailed
    from muster.drivers.store_inspection import describe

    try:
        report = describe(str(path))
    except (StoreFailed, OSError) as error:
        raise MusterError(str(error), str(path), "see what is there: muster store check PATH") from error
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

    from muster.drivers.store import StoreFailed
    from muster.drivers.store_inspection import check as find

    try:
        findings = find(str(path))
    except (StoreFailed, OSError) as error:
        raise MusterError(str(error), str(path), "check the path, and that you may read it") from error
    if as_json:
        print_json({"path": str(path), "findings": msgspec.to_builtins(findings)})
    else:
        for finding in findings:
            click.secho(f"{finding.severity}: {finding.where}: {finding.problem}", fg=_COLOURS.get(finding.severity))
            click.echo(f"  where: offset {finding.offset}, sector {finding.sector}")
            click.echo(f"  next:  {finding.advice}")
        click.echo(f"{path}: " + (f"{len(findings)} findings" if findings else "no damage"))
    if any(finding.severity != "note" for finding in findings):
        raise SystemExit(EXIT_REFUSED)


def _print_report(report: "StoreReport") -> None:
    """A store for people: what it is, who is in it, what the newest journal says."""
    formats = f"format {report.lowest_format}..{report.highest_format}"
    access = "direct I/O" if report.direct else "buffered I/O"
    click.secho(f"{report.path}: cluster {report.cluster} ({report.identity})", bold=True)
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
