"""Commands about services: apply a file, register, deregister, transfer, withdraw, show (SPEC 6.2, 6.8, 6.9)."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from muster.client.errors import Unreachable
from muster.setup.errors import Mistaken
from muster.setup.harmless import one_line
from muster.setup.nodes import Connection, Document
from muster.ui.commands.waiting import Awaited, WaitingCommand, settled_words, wait_option
from muster.ui.options import (
    answer_of,
    change_options,
    complete_nodes,
    complete_services,
    connection_options,
    expect_option,
    json_option,
    override_option,
    overriding,
    print_json,
    reporting,
    settings,
    show_beside,
    show_change,
)
from muster.ui.pages.plan_page import plan_of, show_foreseen

FOLLOW_S = 0.5
SHOWN_COMMANDS = 6  # with everything else that is known of a service
SHOWN_PROBLEMS = 50  # of a service file; the first ones, in the order of its lines


@click.command()
@json_option
@connection_options
@reporting
def services(as_json: bool) -> None:
    """Every service: its state, where it is, and what keeps it from being elsewhere."""
    answer = answer_of("services", as_json=as_json)
    if answer is None:
        return
    from muster.ui.pages.screen import show_services

    show_services(answer)


@click.command(cls=WaitingCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@expect_option
@wait_option
@change_options
@connection_options
@reporting
def apply(file: Path, dry_run: bool, expect: int | None, wait_s: float | None, as_json: bool) -> None:
    """Define or change the services and event groups in FILE; others stay as they are.

    Every problem in the file is named with its line, and nothing is applied before there is none. What is probably not
    meant is a warning. With --dry-run it also says what would be started, stopped and moved.

    \b
    Example of a service file:
      [[service]]
      name = "web"
      start_command = "/usr/sbin/nginx -c /srv/web.conf"
      stop_command = "/usr/sbin/nginx -s quit"
      start_timeout = "10s"
      node_preferences = {ordered = ["n0", "n1"]}
    """
    import msgspec

    from muster.files.advice import advice
    from muster.files.reading import missing_programs

    connection = settings().connection()
    try:
        current = connection.query("services")
        nodes = tuple(connection.query("nodes")["nodes"])
    except Unreachable:
        read_service_file(file)  # what is wrong with the text alone can be said without any node
        raise
    known = parents_of(current)
    definitions, groups = read_service_file(file, nodes, known)
    warnings = advice(definitions, known)
    documents = [msgspec.to_builtins(definition) for definition in definitions]
    changes = [_change(document, current["services"].get(document["name"])) for document in documents]
    of_groups = _changes_of_groups(connection, groups) if groups else []
    if dry_run:
        warnings += missing_programs(definitions)
        _warn(warnings)
        foreseen = plan_of(connection, "apply", definitions=documents, withdraw=[]) if documents else {}
        if as_json:
            document = {"changes": changes, "event_groups": of_groups, "warnings": warnings, "index": current["index"]}
            print_json(document | {"plan": foreseen or None})
        else:
            _show_changes([*changes, *of_groups])
            show_foreseen(foreseen)
        return
    _warn(warnings)
    expected = {} if expect is None else {"expect": expect}
    answers = [connection.operate("apply", definitions=documents, withdraw=[], **expected)] if documents else []
    if groups:
        found = [msgspec.to_builtins(group) for group in groups]
        expected = {} if answers else expected  # the services have made a version of their own
        # `events` by its former name, which nodes of older releases know too
        answers.append(connection.operate("apply_events", "groups", groups=found, withdraw=[], **expected))
    outcome = "; ".join(answer["outcome"] for answer in answers)
    document = answers[-1] | {"outcome": outcome}
    more: dict[str, Any] = {"changes": changes, "event_groups": of_groups, "warnings": warnings}
    names = [each["name"] for each in documents]
    show_settled(connection, document if as_json else answers, names, wait_s, as_json=as_json, **more)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        click.secho(f"warning: {warning}", err=True, fg="yellow")


def show_settled(
    connection: Connection, answers: Document | list[Document], names: Iterable[str], wait_s: float | None, *,
    as_json: bool, anew: bool = False, target: str = "", **more: object,
) -> None:  # fmt: skip
    """What an operation has done, and, where `wait_s` is given, where these services have come to.

    `anew`: each is to be started after the operation; `target`: on that node. Raises `ClientError` for a service that
    fails, or is late.
    """
    found = answers if isinstance(answers, list) else [answers]
    if not as_json:
        for answer in found:
            show_change(answer, as_json=False)
    if wait_s is None:
        settled: dict[str, Document] = {}
    else:
        settled = Awaited(connection, names, int(found[-1]["index"]), anew=anew, target=target).wait(wait_s)
    if as_json:
        keys = ("state", "node", "wanted", "cause")
        told = {name: {key: each[key] for key in keys} for name, each in settled.items()}
        show_change(found[-1], as_json=True, **more, **({"services": told} if wait_s is not None else {}))
        return
    for line in settled_words(settled):
        click.echo(line)


def _changes_of_groups(connection: Connection, groups: tuple[Any, ...]) -> list[Document]:
    """What applying the event groups changes, as `_change` says it of services."""
    import msgspec

    known = {group["group"]: group["definition"] for group in connection.query("events")["groups"]}
    changes = []
    for group in groups:
        before = known.get(group.name)
        after = msgspec.json.decode(msgspec.json.encode(group))
        keys = {} if before is None else {key: [before.get(key), after[key]] for key in after}
        keys = {key: pair for key, pair in keys.items() if pair[0] != pair[1]}
        change = "new" if before is None else "changed" if keys else "unchanged"
        changes.append({"service": f"event group {group.name}", "change": change, "keys": keys})
    return changes


def read_service_file(
    path: Path, nodes: tuple[str, ...] | None = None, cluster: dict[str, Any] | None = None
) -> tuple[Any, ...]:
    """The services and event groups in a file. Raises `Mistaken` with every problem, a line each."""
    from muster.files.reading import read_all
    from muster.files.service_file import ServiceFileError

    try:
        return read_all(path, nodes, cluster)
    except ServiceFileError as error:
        count = len(error.problems)
        what = f"the service file has {count} problem{'s' if count > 1 else ''}; nothing was applied"
        lines = [str(problem) for problem in error.problems[:SHOWN_PROBLEMS]]
        if count > SHOWN_PROBLEMS:
            lines.append(f"... and {count - SHOWN_PROBLEMS} more")
        next_step = f"fix {'them' if count > 1 else 'it'}, and look with --dry-run first"
        raise Mistaken(what, "\n         ".join(lines), next_step) from error


def parents_of(answer: Document) -> dict[str, Any]:
    """The services that the cluster has, as far as groups are concerned: what else they are is its own matter."""
    from muster.records.services import Definition

    return {
        name: Definition(
            name, parent=service["definition"].get("parent", ""), on_all=service["definition"].get("on_all", False)
        )
        for name, service in answer["services"].items()
        if not service["removed"]
    }


def _change(document: Document, current: Document | None) -> Document:
    """What applying one definition changes: `change` is `new`, `changed` or `unchanged`; `keys` {key: [old, new]}."""
    import msgspec

    from muster.records.services import Definition

    name = document["name"]
    if current is None:
        return {"service": name, "change": "new", "keys": {}}
    # what is left out is the default, on either side
    old, new = (msgspec.convert(each, Definition) for each in (current["definition"], document))
    pairs = {key: [getattr(old, key), getattr(new, key)] for key in Definition.__struct_fields__}
    keys = {key: msgspec.to_builtins(pair) for key, pair in pairs.items() if pair[0] != pair[1]}
    return {"service": name, "change": "changed" if keys or current.get("removed") else "unchanged", "keys": keys}


def _show_changes(changes: list[Document]) -> None:
    signs = {"new": ("+", "green"), "changed": ("~", "yellow"), "unchanged": ("=", None)}
    for change in changes:
        sign, colour = signs[change["change"]]
        click.secho(f"{sign} {change['service']}: {change['change']}", fg=colour)
        for key, (old, new) in change["keys"].items():
            click.echo(f"    {key}: {old!r} -> {new!r}")
    counts = {kind: sum(change["change"] == kind for change in changes) for kind in signs}
    click.echo(", ".join(f"{count} {kind}" for kind, count in counts.items()) + "; nothing was changed (dry run)")


@click.group()
@connection_options
def service() -> None:
    """Register, de-register, move, withdraw or show one service."""


_service_argument = click.argument("name", metavar="SERVICE", shell_complete=complete_services)


def _operate(
    operation: str, *, as_json: bool, wait_s: float | None = None, anew: bool = False, **arguments: object
) -> None:
    connection = settings().connection()
    answer = connection.operate(operation, **arguments)
    names = [str(arguments["service"])] if "service" in arguments else []
    target = str(arguments.get("target", ""))
    show_settled(connection, answer, names, wait_s, as_json=as_json, anew=anew, target=target)


@service.command(cls=WaitingCommand)
@_service_argument
@wait_option
@change_options
@connection_options
@reporting
def register(name: str, wait_s: float | None, as_json: bool) -> None:
    """Have SERVICE run, on the best allowable node."""
    _operate("register", as_json=as_json, wait_s=wait_s, service=name)


@service.command(cls=WaitingCommand)
@_service_argument
@override_option
@wait_option
@change_options
@connection_options
@reporting
def deregister(name: str, override: bool, wait_s: float | None, as_json: bool) -> None:
    """Stop SERVICE; it stays down until it is registered again."""
    _operate("deregister", as_json=as_json, wait_s=wait_s, service=name, **overriding(override))


@service.command(cls=WaitingCommand)
@_service_argument
@click.argument("target", metavar="[NODE]", required=False, shell_complete=complete_nodes)
@override_option
@wait_option
@change_options
@connection_options
@reporting
def transfer(name: str, target: str | None, override: bool, wait_s: float | None, as_json: bool) -> None:
    """Move SERVICE to NODE, or to the best other node, once; no preference or ban stays behind."""
    if target == "":
        raise Mistaken(
            "the node's name is empty", "muster service transfer", "name a node, or none: the best other one"
        )
    arguments = {"service": name, "target": target or "", "override": override}
    _operate("transfer", as_json=as_json, wait_s=wait_s, anew=True, **arguments)


@service.command()
@_service_argument
@change_options
@connection_options
@reporting
def withdraw(name: str, as_json: bool) -> None:
    """Stop SERVICE and forget its definition."""
    _operate("apply", as_json=as_json, definitions=[], withdraw=[name])


@service.command()
@json_option
def schema(as_json: bool) -> None:
    """Every key of a service file: its type, its default, what it means."""
    from muster.ui.pages.service_schema import document, pages

    if as_json:
        print_json(document())
        return
    from muster.ui.pages.screen import console

    for page in pages():
        console().print(page)


@service.command(cls=WaitingCommand)
@_service_argument
@click.option("--cause", default="", help="Why; given to its commands and shown in the history.")
@wait_option
@change_options
@connection_options
@reporting
def restart(name: str, cause: str, wait_s: float | None, as_json: bool) -> None:
    """Stop SERVICE and start it again where it is; its children stop first and start last."""
    _operate("restart", as_json=as_json, wait_s=wait_s, anew=True, service=name, cause=cause)


@service.command(cls=WaitingCommand)
@_service_argument
@wait_option
@change_options
@connection_options
@reporting
def clear(name: str, wait_s: float | None, as_json: bool) -> None:
    """Forget why SERVICE is stuck and how often it failed: it is placed again if it is wanted."""
    _operate("clear", as_json=as_json, wait_s=wait_s, service=name)


@service.command("confirm-clean")
@_service_argument
@click.option("--cause", default="", help="How you know; shown in the history.")
@change_options
@connection_options
@reporting
def confirm_clean(name: str, cause: str, as_json: bool) -> None:
    """You confirm that nothing of SERVICE is left in the machine where it was: it may go on elsewhere.

    For a service with a cleanup_command: its node was lost and may not be clean, or the cleanup failed. If its address
    or its mount is still there, two machines may have it: look at that machine first.
    """
    _operate("confirm_clean", as_json=as_json, service=name, cause=cause)


@service.command("confirm-stopped")
@_service_argument
@click.option("--cause", default="", help="How you know; shown in the history.")
@change_options
@connection_options
@reporting
def confirm_stopped(name: str, cause: str, as_json: bool) -> None:
    """You confirm that nothing of SERVICE runs any more where its stop has failed: it may go on.

    What Muster itself finds of it there is ended first, and if that does not end, it stays blocked. Its stop command
    may have been to stop something that another manager runs, as systemd. If that still runs, it may run twice: look at
    that machine first.
    """
    _operate("confirm_stopped", as_json=as_json, service=name, cause=cause)


@service.command()
@_service_argument
@click.option("-f", "--follow", is_flag=True, help="Stay, and print what it writes; Ctrl-C ends it.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, 1000),
    default=300,
    show_default=True,
    help="So many of what it has written.",
)
@json_option
@connection_options
@reporting
def log(name: str, follow: bool, lines: int, as_json: bool) -> None:
    """What the commands of SERVICE did last on each node: how they ended, and what they wrote.

    What they and its program have written is kept on each node, in output/SERVICE.log of its home; 1 MiB of it. That
    is so with `output = "journal"`, too; on that node, `journalctl -t SERVICE` has more of it.

    \b
    Examples:
      muster service log web
      muster service log web -f         stays, as `tail -f` does
      muster service log web -n 1000

    \b
    With --json: commands [{node, at_s, action, generation, attempt, succeeded, status, duration_ms, output}], oldest
    first, running {node: {output, status}} of what runs now, written {node: [line]}, unanswered [{node, why}].
    """
    connection = settings().connection()
    answer = connection.query("service_log", name=name)
    answer["written"] = {node: found[max(0, len(found) - lines) :] for node, found in answer.get("written", {}).items()}
    if follow:
        follow_log(connection, name, answer, as_json=as_json)
        return
    if as_json:
        print_json(answer)
        return
    from muster.ui.pages.event_pages import show_log

    show_log(answer)


def follow_log(connection: Connection, name: str, answer: Document, *, as_json: bool) -> None:
    """Print the lines that are kept, and each that comes, with its node, until somebody ends it."""
    told: dict[str, list[str]] = {}
    while True:
        for node, found in answer.get("written", {}).items():
            before = told.get(node, [])
            fresh = found[_overlap(before, found) :]
            for line in fresh:
                if as_json:
                    print_json({"node": node, "line": line}, line=True)
                else:
                    click.echo(f"{node}  {one_line(line)}")
            told[node] = found
        sys.stdout.flush()
        time.sleep(FOLLOW_S)
        try:
            answer = connection.query("service_log", name=name)
        except Unreachable as error:
            show_beside(f"no node answers: {error.where}")


def _overlap(before: list[str], now: list[str]) -> int:
    """How many of the lines were there before: the end of `before` is somewhere in `now`."""
    tail = before[-20:]
    for end in range(len(now), 0, -1):
        if tail and now[max(0, end - len(tail)) : end] == tail[-end:]:
            return end
    return 0


@service.command()
@_service_argument
@json_option
@connection_options
@reporting
def show(name: str, as_json: bool) -> None:
    """Everything known of SERVICE: state, cause, definition, and what its commands did last (more: `service log`).

    With --json, `commands`, `running` and `unanswered` are those of `muster service log`, the newest commands only.
    """
    connection = settings().connection()
    answer = connection.query("service", name=name)
    log = connection.query("service_log", name=name)
    log = {key: log[key] for key in ("running", "unanswered")} | {"commands": log["commands"][-SHOWN_COMMANDS:]}
    if as_json:
        print_json(answer | log)
        return
    from muster.ui.pages.event_pages import show_log
    from muster.ui.pages.screen import show_service

    show_service(answer)
    if log["commands"]:
        click.echo()
        show_log(log)
