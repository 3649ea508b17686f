"""`muster lock`: run a command under a lock, see what is locked, end a holder (SPEC 4.1, P12.19, P12.21)."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import click

from muster.client.errors import ClientError, Unreachable
from muster.client.locks.blocking import Locks, connect
from muster.client.locks.terms import SOCKET_FILE, LocksLost, Mode, NotGranted
from muster.records.durations import duration_of
from muster.setup.harmless import harmless_document
from muster.setup.locked_command import Wanted, run_locked
from muster.setup.nodes import Document
from muster.ui.options import connection_options, json_option, print_json, reporting, settings, show_error

EXIT_NOT_LOCKED = 125  # of `lock run`, where the lock was not had or was lost: the command has its own
CONNECT_S = 10.0
_MODES = click.Choice([mode.name for mode in Mode], case_sensitive=False)


def _duration(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float:
    """Seconds of `30s`, `500ms`; 0 where none is given. Raises `BadParameter`."""
    milliseconds = 0 if value is None else duration_of(value)
    if milliseconds is None:
        raise click.BadParameter(f'{value!r} is no duration with its unit, as "500ms", "60s", "2m"')
    return milliseconds / 1000


@click.group()
@connection_options
def lock() -> None:
    """The cluster's locks: hold one while a command runs, see who holds what.

    A NAME is SPACE:RESOURCE, or RESOURCE where the cluster has one lockspace; a resource is named by up to 16 parts
    between slashes. Lockspaces are a setting: muster config set lockspaces orders,reports
    """


@lock.command(context_settings={"ignore_unknown_options": False})
@click.option("--mode", type=_MODES, default="EX", show_default=True, help="How to share the resource with others.")
@click.option("--no-wait", is_flag=True, help="Only if it can be had at once.")
@click.option("--within", callback=_duration, metavar="DURATION", help="Wait for it at most so long, as 30s.")
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@connection_options
@reporting
def run(mode: str, no_wait: bool, within: float, name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND while NAME is locked.

    The lock is held while anything lives that the command has started. All of that is killed when the lock is lost.
    It is lost when the node stops or leaves, or when somebody breaks it. The command finds MUSTER_LOCK_TOKEN in its
    environment. It grows with each grant. What the lock protects must refuse a lower one than it has seen.

    Ends with the command's status; with 125 where the lock was not had, or was lost.

    \b
    Examples:
      muster lock run orders:42 -- ./settle 42
      muster lock run --mode PR --within 10s reports/daily -- ./read-report
    """
    wanted = Wanted(name, Mode[mode.upper()], no_wait, within)
    for control in _with_locks():
        with contextlib.suppress(Unreachable):  # another one may be there
            try:
                raise SystemExit(run_locked(control, wanted, command, min(settings().timeout_s, CONNECT_S)))
            except (NotGranted, LocksLost) as failed:
                show_error(failed)
                raise SystemExit(EXIT_NOT_LOCKED) from failed
    raise _nobody()


@lock.command()
@click.option("--space", default="", help="Of this lockspace only.")
@click.option("--prefix", default="", help="Only resources whose names begin so; with --space.")
@click.option("--after", default="", metavar="NAME", help="The page after this one, as the last page says.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Resources on a page.")
@click.argument("name", required=False)
@json_option
@connection_options
@reporting
def show(name: str | None, space: str, prefix: str, after: str, limit: int, as_json: bool) -> None:
    """What is locked in the cluster, by whom and since when; any node answers for all.

    \b
    Examples:
      muster lock show
      muster lock show orders:42
      muster lock show --space orders --prefix eu/ --json
    """
    if prefix and not space:
        raise click.UsageError("--prefix needs --space")
    with _connected() as locks:
        if name is None:
            answer = locks.show(space=space, prefix=prefix, after=after, limit=limit)
        else:
            in_space, resource = _parts(locks, name)
            answer = locks.show(space=in_space, name=resource)
    _print(answer, page, as_json=as_json)


@lock.command("break")
@click.option(
    "--holder-confirmed-dead", "confirmed", is_flag=True,
    help="They have ended, by your word: the lock is free at once, proof or not.",
)  # fmt: skip
@click.argument("name")
@json_option
@connection_options
@reporting
def break_holders(confirmed: bool, name: str, as_json: bool) -> None:
    """End the holders of NAME, with all that they run; the lock is free when that has ended.

    A holder is asked to end, and killed after some seconds where its node may. One that cannot be ended goes on
    holding. With --holder-confirmed-dead nothing is waited for: if the holder still lives, two have the lock. The
    audit says who has done it.

    \b
    Examples:
      muster lock break orders:42
      muster lock break orders:42 --holder-confirmed-dead
    """
    with _connected() as locks:
        answer = locks.break_holders(*_parts(locks, name), confirmed_dead=confirmed)
    _print(answer, lambda told: ended_page(told, confirmed=confirmed), as_json=as_json)


def _connected() -> Locks:
    """A connection to the first node whose lock process answers. Raises `Unreachable`, `Refused`."""
    for control in _with_locks():
        with contextlib.suppress(Unreachable):
            return connect(socket=control, timeout_s=min(settings().timeout_s, CONNECT_S))
    raise _nobody()


def _with_locks() -> list[Path]:
    """The control sockets of nodes that have a lock process, or had one."""
    return [control for control in settings().sockets().values() if (control.parent / SOCKET_FILE).is_socket()]


def _nobody() -> Unreachable:
    where = ", ".join(map(str, settings().sockets().values()))
    advice = "see `muster status`; there are locks while `lockspaces` is set (muster config set)"
    return Unreachable("no lock process answers", f"beside {where}", advice)


def _parts(locks: Locks, name: str) -> tuple[str, str]:
    space, colon, resource = name.partition(":")
    if colon:
        return space, resource
    if len(locks.spaces) == 1:
        return locks.spaces[0], name
    raise ClientError("which lockspace?", f"lock {name}", f"write SPACE:{name}; there are: {', '.join(locks.spaces)}")


def page(answer: Document) -> list[str]:
    """A line for each lock: the resource first, then who holds it, then who waits."""
    lines: list[str] = []
    for each in answer["locks"]:
        value = "not valid" if each.get("valid") is False else each.get("value") or "-"
        lines.append(f"{each['space']}:{each['name']}  master {each['master'] or 'unknown'}  value {value}")
        lines += [f"  holds {_described(lock, lock['mode'])}" for lock in each["holders"]]
        lines += [f"  waits {_described(lock, lock['wants'])}" for lock in each["waiters"]]
    if not lines:
        lines.append("nothing is locked")
    if answer["more"]:
        lines.append(f"there is more: --after {answer['after']}")
    lines += [f"{node} has not answered: what its clients have locked is not shown" for node in answer["unanswered"]]
    return lines


def ended_page(answer: Document, *, confirmed: bool) -> list[str]:
    """A line for each holder, and for each node whose holders are not known."""
    what = "taken for dead" if confirmed else "is to end"
    lines = [f"{holder}: {what}" for holder in answer["holders"]] or ["nobody holds it"]
    return lines + [f"{node} has not answered: its clients may hold it, too" for node in answer["unanswered"]]


def _print(answer: Document, lines_of: Callable[[Document], list[str]], *, as_json: bool) -> None:
    """As JSON, or for people without what would steer a terminal (P10.8)."""
    if as_json:
        print_json(answer)
        return
    for line in lines_of(harmless_document(answer)):
        click.echo(line)


def _described(lock: Document, mode: str) -> str:
    since = "" if lock["for_s"] is None else f", for {lock['for_s']:.1f} s"
    gone = "" if lock["connected"] else ", its connection is gone: held until its processes have ended"
    return f"{mode}: {lock['holder'] or 'a client'} on {lock['node']} (process {lock['process']}){since}{gone}"
