"""`muster profile`: the timers, and what they mean for every kind of outage (SPEC 7.6)."""

import click

from muster.client.errors import Unreachable
from muster.records.profiles import (
    Moment,
    Outage,
    host_outages,
    host_timeline,
    outages,
    profile_with,
    timeline,
    timeline_without_proof,
    unproven,
    watchdog_lines,
)
from muster.records.timing import PROFILES, InconsistentProfile, Profile
from muster.setup.errors import Mistaken
from muster.setup.nodes import Document
from muster.setup.profiles import chosen_profile, parse_overrides
from muster.ui.options import connection_options, json_option, print_json, reporting, settings

DEFAULT = "standard"
_WIDTH = 56  # of the picture


@click.group()
@connection_options
def profile() -> None:
    """Latency profiles: how soon a dead node is known to be dead, and what that costs."""


def _complete_profiles(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in PROFILES if name.startswith(incomplete)]


@profile.command()
@click.argument("name", required=False, metavar="[NAME]", shell_complete=_complete_profiles)
@click.option("--set", "words", multiple=True, metavar="KEY=VALUE", help="Try another value of a timer; repeatable.")
@click.option("--nodes", type=click.IntRange(1, 1000), metavar="N", help="How many [those of the cluster, or 3].")
@json_option
@connection_options
@reporting
def show(name: str | None, words: tuple[str, ...], nodes: int | None, as_json: bool) -> None:
    """The timeline that profile NAME gives, as a picture; the bound on each outage, for each scope of a store.

    Without NAME it is the profile of the running cluster, and standard where no node answers. Of the running cluster
    only the scope of its store is shown. Each node is shown with what proves its death, and the times of its lease.
    Bounds are from the fault to where a service may be started elsewhere; the store's own latency and the start itself
    come on top. Between machines (scope shared) the end of a lease proves nothing without a watchdog. Then such a fault
    has no bound, and waits for a fence agent or a person. With --set a timer is tried out, and refused with the
    inequality that it breaks: as at `muster init --set`.

    \b
    Examples:
      muster profile show fast
      muster profile show standard --set lease_ms=4000 --set panic_bound_ms=800
      muster profile show --nodes 16 --json | jq '.outages[] | {fault, bound_ms}'
    """
    overrides, scope, proofs, leases = parse_overrides(words), "", dict[str, str](), dict[str, Document]()
    if name is not None:
        found, source = chosen_profile(name, overrides, name), "as this release has it"
    else:
        base, proofs, leases, source, scope = _running()
        count = len(proofs) or 3
        nodes = nodes or count
        try:
            found = profile_with(base, overrides)
        except InconsistentProfile as error:
            raise Mistaken(str(error), "--set", "see the timers: muster profile show") from error
    nodes = nodes or 3
    if as_json:
        print_json(document(found, nodes, overrides, scope) | ({"proofs": proofs, "leases": leases} if proofs else {}))
        return
    click.secho(f"profile {found.name}, {nodes} nodes", bold=True, nl=False)
    click.echo(f"  ({source}{', with --set' if overrides else ''})")
    if scope in ("", "shared"):
        if found.watchdog_ms:
            _print_relations(found)
            _print_scope("scope shared, a power cut, with a watchdog:", timeline(found, nodes), outages(found, nodes))
        else:
            moments = timeline_without_proof(timeline(found, nodes))
            _print_scope("scope shared, a power cut:", moments, unproven(outages(found, nodes)))
    if scope in ("", "host"):
        _print_scope("scope host, a node that hangs:", host_timeline(found, nodes), host_outages(found, nodes))
    _print_proofs(proofs, leases if scope == "shared" else {})
    _print_timers(found, overrides)


def _print_proofs(proofs: dict[str, str], leases: dict[str, Document]) -> None:
    """What proves the death of each node that falls silent, and the times of its lease (P7.31)."""
    if proofs:
        click.secho("if a node falls silent, its death is proven by:", bold=True)
        for name, words in proofs.items():
            click.echo(f"  {name:<16} {words}")
        for name, lease in leases.items():
            click.echo(f"  {name:<16} {_times(lease)}")
        click.echo()


def _times(lease: Document) -> str:
    """The times of one node's lease and watchdog, in ms."""
    words = f"deadline {lease['deadline_ms']}, panic bound {lease['panic_bound_ms']}, lease {lease['lease_ms']} ms"
    watchdog = lease["watchdog"]
    if watchdog is None:
        return f"{words}; no watchdog"
    late = "" if watchdog["late_excluded"] else ", fed late at worst"
    return (
        f"{words}; watchdog {watchdog['identity']}: timeout {watchdog['timeout_ms']}, granularity "
        f"{watchdog['granularity_ms']}, reset {watchdog['reset_ms']} ms{late}"
    )


def _running() -> tuple[Profile, dict[str, str], dict[str, Document], str, str]:
    """The profile of the running cluster, proofs and lease of each node, where that is from, its store's scope."""
    try:
        answer = settings().connection().query("diagnostics")
        nodes = settings().connection().query("nodes")["nodes"]
    except Unreachable:
        return PROFILES[DEFAULT], {}, {}, "no node answers: this is what a new cluster gets", ""
    scope = answer.get("scope", "")
    proofs = {name: str(each.get("proofs", "unknown")) for name, each in nodes.items()}
    leases = {name: each["lease"] for name, each in nodes.items() if each.get("lease")}
    return Profile(**answer["profile"]), proofs, leases, f"of the running cluster {answer['cluster']}", scope


def document(found: Profile, nodes: int, overrides: tuple[tuple[str, int], ...], scope: str = "") -> Document:
    """Everything for JSON; `scope` is that of the running cluster's store, empty where it is no running cluster's."""
    return {
        "profile": found.name,
        "nodes": nodes,
        "timers": found.shown(),
        "overrides": dict(overrides),
        "scope": scope or None,
        "timeline": [moment._asdict() for moment in timeline_without_proof(timeline(found, nodes))],
        "outages": [outage._asdict() for outage in unproven(outages(found, nodes))],
        "with_watchdog": _with_watchdog(found, nodes),
        "host": {
            "timeline": [moment._asdict() for moment in host_timeline(found, nodes)],
            "outages": [outage._asdict() for outage in host_outages(found, nodes)],
        },
    }


def _with_watchdog(found: Profile, nodes: int) -> Document | None:
    """Scope shared, where a watchdog stands behind each lease; nothing where the profile has no room for one."""
    if not found.watchdog_ms:
        return None
    return {
        "stall_ms": found.stall_ms,
        "deadline_ms": found.loop_ms,
        "panic_bound_ms": found.panic_bound_ms,
        "lease_ms": found.lease_ms,
        "timeline": [moment._asdict() for moment in timeline(found, nodes)],
        "outages": [outage._asdict() for outage in outages(found, nodes)],
    }


def picture(moments: tuple[Moment, ...]) -> list[str]:
    """The timeline to scale: one line a moment, a bar from its beginning to its end."""
    end_ms = max(moment.to_ms for moment in moments)
    unit_ms = _tick_ms(end_ms)
    lines = ["  ms after the last renewal began", "  " + _ruler(end_ms, unit_ms)]
    for moment in moments:
        begin, end = (moment.from_ms * _WIDTH // end_ms, moment.to_ms * _WIDTH // end_ms)
        bar = " " * begin + ("*" if begin == end else "|" + "=" * (end - begin - 1) + "|")
        when = str(moment.to_ms) if moment.from_ms == moment.to_ms else f"{moment.from_ms}..{moment.to_ms}"
        lines += [f"  {bar:<{_WIDTH + 2}} {when:>13}", f"  {'':{min(begin, _WIDTH // 2)}}{moment.what}"]
    return lines


def _tick_ms(end_ms: int) -> int:
    """A round number, so that four to nine of them fill the picture."""
    unit = 1
    while end_ms / unit >= 10:
        unit *= 10
    return next(step for step in (unit // 5 or 1, unit // 2 or 1, unit) if end_ms / step < 10)


def _ruler(end_ms: int, unit_ms: int) -> str:
    ruler = [" "] * (_WIDTH + 12)
    for tick_ms in range(0, end_ms + 1, unit_ms):
        place = tick_ms * _WIDTH // end_ms
        for offset, character in enumerate(f"'{tick_ms}"):
            ruler[place + offset] = character
    return "".join(ruler).rstrip()


def _print_scope(title: str, moments: tuple[Moment, ...], faults: tuple[Outage, ...]) -> None:
    click.secho(title, bold=True)
    for line in picture(moments):
        click.echo(line)
    click.echo()
    click.secho(f"  {'FAULT':<24} {'BOUND':>9}  HOW", bold=True)
    for outage in faults:
        bound = "-" if outage.bound_ms is None else f"{outage.bound_ms} ms"
        click.echo(f"  {outage.fault:<24} {bound:>9}  {outage.how}")
    click.echo()


def _print_relations(found: Profile) -> None:
    """What a profile with room for a watchdog says of it (P7.31)."""
    click.secho("scope shared, a watchdog behind the lease (docs/WATCHDOGS.md):", bold=True)
    for words in watchdog_lines(found):
        click.echo(f"  {words}")
    click.echo()


def _print_timers(found: Profile, overrides: tuple[tuple[str, int], ...]) -> None:
    changed = dict(overrides)
    pairs = [f"{key}={value}{'*' if key in changed else ''}" for key, value in found.shown().items()]
    for start in range(0, len(pairs), 4):
        click.echo("  " + "  ".join(f"{pair:<26}" for pair in pairs[start : start + 4]).rstrip())
