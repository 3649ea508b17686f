"""What people see of a cluster: tables, and the same tables live. Imported only when a person looks."""

import io
import os
import re
import select
import sys
import time
from collections.abc import Callable
from typing import IO, cast

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from muster.client.errors import Unreachable
from muster.setup.errors import Mistaken
from muster.setup.harmless import harmless
from muster.setup.nodes import Document
from muster.ui.options import EXIT_REFUSED, connection_options, json_option, print_json, reporting, settings
from muster.ui.pages.needs_page import clock, failures_words, need_block, needs_page
from muster.ui.values import as_typed

_STYLES = {
    "joined": "green",
    "registered": "green",
    "joining": "yellow",
    "leaving": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
    "recovering": "magenta",
    "forced-leaving": "red",
    "inactive": "dim",
    "de-registered": "dim",
}
_WATCH_S = 0.25
_SINCE = re.compile(r", since \d+ s")  # for how long something has waited for a place
_LEAST_COLUMNS = 60
_UNBROKEN_COLUMNS = 400  # more than any row needs
_SHOWN_PERCENT = 50  # from here on the page says how full the store is; a warning follows later
_CAUSE_CHARACTERS = 240  # of a cause in a table; it may quote a page of what a command wrote
_watch_option = click.option("--watch", is_flag=True, help="Stay, and show every change; Ctrl-C ends it.")


@click.command()
@json_option
@_watch_option
@click.option("--check", is_flag=True, help="Only what needs a person: exit status 1 if anything does, for monitoring.")
@connection_options
@reporting
def status(as_json: bool, watch: bool, check: bool) -> None:
    """The whole cluster: what needs you, then master, nodes, services, transitions.

    What needs a person comes first, with the next command. The same sentences are in the log, in `warnings` of --json,
    in metrics and in `muster why`; also in the status line of systemd, and in events of the watcher `needs`.

    \b
    Examples:
      muster status --dir /tmp/try --watch
      muster status --check              exit status: 0 all is well, 1 something needs you, 3 no node answers
      muster status --json | jq .needs
    """
    if check:
        if watch:
            raise Mistaken("both --check and --watch are given", "muster status", "give one of them")
        _check(as_json=as_json)
        return
    _show("status", status_page, as_json=as_json, watch=watch)


def _check(*, as_json: bool) -> None:
    """Print what needs a person, and end with 1 if anything does."""
    answer = settings().connection().query("status")
    is_old = answer["node_state"] != "joined"
    if as_json:
        print_json(answer)
    else:
        screen = console()
        screen.print(needs_page(answer, screen.width, None))
        if is_old:
            screen.print(_plain(f"{answer['node']} is {answer['node_state']}: what it shows may be old"))
    if answer["needs"] or is_old:
        sys.exit(EXIT_REFUSED)


@click.command()
@json_option
@_watch_option
@connection_options
@reporting
def transitions(as_json: bool, watch: bool) -> None:
    """Transitions in progress: how far each is, who holds it up and for how long.

    \b
    Examples:
      muster transitions --dir /tmp/try --watch          live; on a terminal the times run
      muster transitions --json | jq '.transitions[].stragglers'
    """
    _show("transitions", transitions_page, as_json=as_json, watch=watch)


def _show(query: str, page: Callable[[Document], RenderableType], *, as_json: bool, watch: bool) -> None:
    if watch:
        _watch(query, page, as_json=as_json)
        return
    answer = settings().connection().query(query)
    print_json(answer) if as_json else console().print(page(answer))


def _watch(query: str, page: Callable[[Document], RenderableType], *, as_json: bool) -> None:
    """Poll until interrupted. On a terminal a live page; elsewhere one page, or one line of JSON, for each change."""
    connection = settings().connection()
    screen = console()
    last: Document | None = None
    live = Live(console=screen, auto_refresh=False) if screen.is_terminal and not as_json else None
    if live:
        live.start()
    try:
        while True:
            try:
                answer = connection.query(query)
            except Unreachable as error:
                answer = {"unreachable": error.where}
            changed = _timeless(answer) != last
            last = _timeless(answer)
            if changed or live:
                if as_json:
                    print_json(answer, line=True)
                elif live:
                    live.update(_page_or_silence(page, answer), refresh=True)
                else:
                    screen.print(_page_or_silence(page, answer))
            _end_if_nobody_reads()
            time.sleep(_WATCH_S)
    finally:
        if live:
            live.stop()


def _timeless(answer: Document) -> Document:
    """The answer without the times that run on: what a reader of lines wants to see only when the rest changes."""
    if "nodes" in answer:  # the evidence counts milliseconds
        without = {"evidence": "", "waiting_for_places": {}}
        nodes = {name: {**_without_seconds(node), **without} for name, node in answer["nodes"].items()}
        answer = {**answer, "nodes": nodes}
    if "services" in answer:
        answer = {**answer, "services": {name: _without_seconds(each) for name, each in answer["services"].items()}}
    if "transitions" not in answer:
        return answer
    running = [{key: value for key, value in each.items() if key != "elapsed_ms"} for each in answer["transitions"]]
    return {**answer, "transitions": running}


def _without_seconds(found: Document) -> Document:
    return {**found, "cause": _SINCE.sub("", found["cause"])}


def _end_if_nobody_reads() -> None:
    """Raise `BrokenPipeError` when the reader of a pipe has gone, as with `| head -1`, even while there is no news."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if any(state & (select.POLLERR | select.POLLHUP) for _, state in output.poll(0)):
        raise BrokenPipeError


def _page_or_silence(page: Callable[[Document], RenderableType], answer: Document) -> RenderableType:
    if "unreachable" in answer:
        return Text(f"no node answers: {answer['unreachable']}", style="red")
    return page(answer)


class _Trimmed(io.TextIOBase):
    """Standard output without the blanks that fill a table's last column: for a file or a pipe."""

    def write(self, text: str) -> int:
        """Write the lines, each as far as something stands in it."""
        sys.stdout.write("\n".join(line.rstrip(" ") for line in text.split("\n")))
        return len(text)

    def flush(self) -> None:
        """Pass it on."""
        sys.stdout.flush()


class _Screen(Console):
    def on_broken_pipe(self) -> None:
        """It is no failure that the reader has gone; the library would end the process with one."""
        raise BrokenPipeError


def console() -> Console:
    """Standard output; coloured on terminals only, never with NO_COLOR.

    A row is one line in a file or a pipe, where somebody looks for words in it, unless COLUMNS says otherwise; and a
    terminal that is too narrow for a table breaks its lines, as no column may vanish.
    """
    if sys.stdout.isatty():
        screen: Console = _Screen(highlight=False, soft_wrap=False)
    else:
        width = None if os.environ.get("COLUMNS", "").isdecimal() else _UNBROKEN_COLUMNS
        screen = _Screen(file=cast("IO[str]", _Trimmed()), width=width, highlight=False, soft_wrap=False)
    screen.width = max(screen.width, _LEAST_COLUMNS)
    return screen


def _plain(text: str) -> Text:
    """Text as it is: what looks like markup is none, and what would steer a terminal is left out."""
    return Text(harmless(text, kept="\n"))


def _in_short(text: str) -> Text:
    """The text in one paragraph of bounded length: its beginning and its end, where the advice stands."""
    words = " ".join(_plain(text).plain.split())
    if len(words) > _CAUSE_CHARACTERS:
        words = f"{words[: _CAUSE_CHARACTERS // 2]} ... {words[-_CAUSE_CHARACTERS // 2 :]}"
    return Text(words)


def _state(word: str | None) -> Text:
    return Text(word or "", style=_STYLES.get(word or "", ""))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _heading(answer: Document) -> Text:
    text = Text.assemble((answer["cluster"], "bold"), "  master ", (answer["master"] or "none", "bold cyan"))
    text.append(f"  term {answer['term']}  index {answer['index']}  (as {answer['node']} sees it)")
    if (decider := answer.get("decider")) and decider["node"] is not None:
        text.append(f"  services decided by {decider['node']}")
    if "room" in answer and answer["room"]["percent"] >= _SHOWN_PERCENT:
        text.append(f"\nthe store is {answer['room']['percent']} % full")
    if answer["node_state"] != "joined":
        text.append(f"\n{answer['node']} is {answer['node_state']}: what it shows may be old", style="yellow")
    return text


def status_page(answer: Document) -> RenderableType:
    """The page of `muster status`."""
    parts: list[RenderableType] = [_heading(answer)]
    if "needs" in answer:  # a node of an earlier release does not say it
        screen = console()
        parts.append(needs_page(answer, screen.width, screen.height if screen.is_terminal else None))
    known = {f"{need['words']}; next: {need['next']}" for need in answer.get("needs", ())}
    others = (warning for warning in answer.get("warnings", ()) if warning not in known)
    parts += [Text(f"warning: {_plain(warning)}", style="yellow") for warning in others]
    parts += [Text(), nodes_table(answer)]
    if answer["services"]:
        parts += [Text(), services_table(answer)]
    if answer["transitions"]:
        parts += [Text(), transitions_page(answer)]
    return Group(*parts)


def nodes_table(answer: Document) -> Table:
    """One row a node."""
    table = _table("NODE", "STATE", "LEASE", "LINK", "SERVICES", "CAUSE")
    for name, node in answer["nodes"].items():
        shown = Text(name, style="bold cyan") if name == answer.get("master") else Text(name)
        services = ", ".join(node["services"][:6]) + (" ..." if len(node["services"]) > 6 else "")
        lease = Text("live", style="green") if node["live"] else Text("silent", style="dim")
        link = Text("up", style="green") if node["link"] else Text("down", style="dim")
        table.add_row(shown, _state(node["state"]), lease, link, _plain(services), _in_short(_why(node)))
    return table


def _why(node: Document) -> str:
    """What ails a node and the evidence; then what waits for it. Of one that is well only the latter."""
    condition, evidence = node.get("condition", "well"), node.get("evidence", "")
    ails = f"{condition}: {evidence}" if evidence and condition != "never ran" else ""
    return "; ".join(filter(None, (node.get("held", ""), ails, node["cause"])))


def _why_down(name: str, service: Document) -> str:
    """What there is to know or to do about a service that is down without a cause."""
    if service["state"] != "de-registered":
        return ""
    if not service["wanted"]:
        words = service.get("down") or "not wanted"
        return f"{words}: muster service register {name.partition('@')[0]}"
    words = "awaits maturity" if "M" in service["flags"] else service.get("down") or "waits"
    return f"{words}: muster why {name}"


def _about(name: str, service: Document) -> str:
    """Its cause; that of one that is de-registered begins with what that means: it failed, was stopped, waits, ..."""
    cause = service["cause"]
    words = service.get("down_word") or ""  # a node of an earlier release does not say it
    if service["state"] != "de-registered" or not cause:
        return cause or _why_down(name, service)
    return cause if not words or cause.startswith(words) else f"{words}: {cause}"


_FLAGS = {
    "T": "T: it moves to another node",
    "M": "M: it waits for more nodes before its first start",
    "N": "N: each node that joins is told where it is",
}


def services_table(answer: Document) -> Table:
    """One row a service, and what the flags mean that stand there."""
    table = _table("SERVICE", "STATE", "FLAGS", "NODE", "CAUSE")
    shown: set[str] = set()
    for name, service in answer["services"].items():
        words = filter(None, (service.get("held", ""), _about(name, service), failures_words(service.get("failures"))))
        shown.update(service["flags"])
        flags = ",".join(service["flags"])
        table.add_row(_plain(name), _state(service["state"]), flags, service["node"], _in_short("; ".join(words)))
    meaning = [words for flag, words in _FLAGS.items() if flag in shown]
    if meaning:
        table.caption, table.caption_justify = Text("; ".join(meaning), style="dim"), "left"
    return table


def transitions_page(answer: Document) -> RenderableType:
    """One row a transition, and who holds it up."""
    if not answer["transitions"]:
        return Text("no transition in progress")
    table = _table("ID", "NODE", "KIND", "LEVEL", "BARRIER", "WAITING FOR", "ELAPSED", "CAUSE")
    for found in answer["transitions"]:
        level = f"{found['level']} {found['level_name']}".rstrip()
        waiting = Text(", ").join(_straggler(straggler) for straggler in found["stragglers"])
        levels = found["levels"]
        step = f" ({levels.index(found['level']) + 1}/{len(levels)})" if found["level"] in levels else ""
        elapsed = f"{found['elapsed_ms'] / 1000:.1f} s"
        identity, barrier, cause = str(found["id"]), str(found["barrier"]), _in_short(found["cause"])
        kind = _state(found["kind"])
        table.add_row(identity, found["node"], kind, _plain(level + step), barrier, waiting, elapsed, cause)
    return table


def _straggler(straggler: Document) -> Text:
    """Who has not acknowledged; a hung one stands out."""
    text = _plain(f"{straggler['node']} {straggler['subsystem']}".rstrip())
    return Text.assemble(text, " (hung)", style="red") if straggler["hung"] else text


def show_nodes(answer: Document) -> None:
    """The page of `muster node list`."""
    table = _table("NODE", "STATE", "INCARNATION", "ADDRESSES", "LEVELS", "CERTIFICATE ENDS", "LAST PROOF OF DEATH")
    for name, node in answer["nodes"].items():
        levels = ", ".join(f"{level['level']} {level['name']}" for level in node["levels"])
        proof = node["last_proof"]
        evidence = f"{proof['kind']}: {proof['detail']}" if proof else ""
        state = _state(node["state"])
        addresses = ", ".join(node["addresses"])
        number = str(node["incarnation"])
        table.add_row(name, state, number, _plain(addresses), _plain(levels), _ends(node), _in_short(evidence))
    console().print(table)


def _ends(node: Document) -> Text:
    """When a node's certificate ends, or that it has none yet."""
    if node["certificate"]:
        return Text(str(node["certificate"]["ends"])[:10])
    return Text(f"not enrolled; token until {node['token_ends']}" if node["token_ends"] else "not enrolled", "yellow")


def show_node(name: str, node: Document) -> None:
    """The page of `muster node show`."""
    table = _pairs()
    certificate = node["certificate"] or {}
    for key in ("id", "generation", "state", "incarnation", "live", "link", "addresses", "services", "cause", "held"):
        _row(table, key, node.get(key))
    _row(table, "levels", ", ".join(f"{level['level']} {level['name']}" for level in node["levels"]))
    _row(table, "certificate ends", certificate.get("ends", "not enrolled"))
    _row(table, "certificate", certificate.get("fingerprint", ""))
    _row(table, "issued by authority", certificate.get("authority", ""))
    _row(table, "open token ends", node["token_ends"])
    if proof := node["last_proof"]:
        _row(table, "last proof of death", f"incarnation {proof['incarnation']}: {proof['kind']}, {proof['detail']}")
    if node["last_words"]:
        _row(table, "last words", node["last_words"])
    console().print(Text(name, style="bold"))
    console().print(table)


def _pairs() -> Table:
    """What a thing is called, and what it is; no heading."""
    table = _table("", "")
    table.show_header = False
    return table


def show_authority(answer: Document) -> None:
    """The page of `muster authority show`."""
    table = _table("AUTHORITY", "", "ENDS")
    for authority in answer["present"]:
        table.add_row(authority["fingerprint"], "present", authority["ends"])
    if incoming := answer["incoming"]:
        table.add_row(incoming["fingerprint"], Text("incoming", style="yellow"), incoming["ends"])
    console().print(table)
    if incoming:
        click.echo(rotation_progress(answer))


def rotation_progress(answer: Document) -> str:
    """In words, how far a rotation of the authority has come."""
    words = {
        "trusting": "step 1 of 3, every member is told of the new authority",
        "certifying": "step 2 of 3, every certificate is issued again",
        "settling": "step 3 of 3, every member shows its new certificate; then the old authority goes",
    }
    text = words.get(answer["step"], "no rotation is under way")
    waiting = answer["waiting_for"] or answer["not_yet_certified"]
    return text + (f"; waiting for {', '.join(waiting)}" if waiting else "")


def show_services(answer: Document) -> None:
    """The page of `muster services`."""
    if answer["services"]:
        console().print(services_table(answer))
    else:
        click.echo("no service is defined; define some: muster apply FILE")


def show_service(answer: Document) -> None:
    """The page of `muster service show`."""
    found = answer["service"]
    table = _pairs()
    for need in answer.get("needs", ()):
        console().print(need_block(need))
    for key in ("state", "node", "wanted", "cause", "reason", "flags", "origin", "target", "previous", "failed", "uid"):
        _row(table, key, found[key])
    _row(table, "since", clock(found["since_s"]) if found.get("since_s") else "")
    _row(table, "held", found.get("held", ""))
    _row(table, "failures", failures_words(found.get("failures")))
    if was := found.get("as_started"):
        keys = ", ".join(f"{key} = {as_typed(value)}" for key, value in was.items())
        _row(table, "restart pending", f"it runs as it was defined when it started: {keys or 'otherwise'}")
    for key, value in found["definition"].items():
        _row(table, key, value)
    console().print(Text(found["name"], style="bold"))
    console().print(table)


def _row(table: Table, key: str, value: object) -> None:
    text = "" if value is None else as_typed(value)
    if text:
        table.add_row(key.replace("_", " "), _state(text) if key == "state" else _plain(text))
