"""Commands about events: what is watched for, what has occurred, and scripts as watchers (SPEC 5)."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import click

from muster.client import Asked, AsyncWatcher, ClientError, watch_async
from muster.setup.errors import Mistaken
from muster.ui.commands.children import end_group
from muster.ui.commands.subsystem import read_duration
from muster.ui.options import (
    answer_of,
    change_options,
    complete_groups,
    connection_options,
    json_option,
    print_json,
    reporting,
    settings,
    show_change,
)

FIRST_PAUSE_S = 0.5
MAXIMUM_OUTPUT_CHARACTERS = 2000
MAXIMUM_LINE_BYTES = 64 * 1024
_PAIR = re.compile(r"([a-z][a-z0-9_]{0,31})=(.*)")


@click.group()
@connection_options
def event() -> None:
    """What is watched for, and what has occurred."""


@event.command("list")
@json_option
@connection_options
@reporting
def list_(as_json: bool) -> None:
    """Every event group: where it is enabled, and its events.

    \b
    With --json: groups [{group, service, enabled_by_hand, nodes, on_master, windows, events, enabled_on, why_not
    {node: words}, watched_by {event: {node: watcher}}}], watchers {node: [{name, process}]}, unanswered [{node, why}].
    """
    answer = answer_of("events", as_json=as_json)
    if answer is None:
        return
    from muster.ui.pages.event_pages import show_events

    show_events(answer)


@event.command()
@click.argument("name", metavar="GROUP|EVENT", shell_complete=complete_groups)
@json_option
@connection_options
@reporting
def show(name: str, as_json: bool) -> None:
    """One group, or the group of one event, in full: what keeps it from being enabled, and who watches."""
    answer = settings().connection().query("events")
    groups = answer["groups"]
    found = [group for group in groups if name in (group["group"], *(each["event"] for each in group["events"]))]
    if not found:
        known = ", ".join(group["group"] for group in groups) or "none"
        raise ClientError(f"there is no event group and no event {name!r}", "muster event show", f"groups: {known}")
    if as_json:
        print_json(answer | {"groups": found})
        return
    from muster.ui.pages.event_pages import show_event

    show_event(answer, name)


@event.command()
@click.argument("name", metavar="[EVENT]", default="")
@json_option
@connection_options
@reporting
def history(name: str, as_json: bool) -> None:
    """What has occurred on the nodes, of EVENT or of all, with what was done about it; the newest last.

    The nodes remember the last thousand occurrences each. Of an action that was under way when the daemon was restarted
    the result may be unknown.

    \b
    With --json: occurrences [{node, number, at_s, event, group, in, out, verdict, action, result, detail, took_ms}],
    unanswered [{node, why}]. verdict: acted upon, debounced, over the rate, too many wait, same
    failure, not enabled.
    """
    asked = {"name": name} if name else {}
    answer = settings().connection().query("event_history", **asked)
    if name:
        answer["occurrences"] = [each for each in answer["occurrences"] if each["event"] == name]
        if not answer["occurrences"]:
            _check_known(name)
    if as_json:
        print_json(answer)
        return
    from muster.ui.pages.event_pages import show_history

    show_history(answer)


def _check_known(name: str) -> None:
    """Raise `ClientError` where no group has such an event."""
    groups = settings().connection().query("events")["groups"]
    known = sorted({str(each["event"]) for group in groups for each in group["events"]})
    if name not in known:
        next_step = f"events: {', '.join(known) or 'none'}"
        raise ClientError(f"there is no event {name!r}, and none of that name has occurred", "event history", next_step)


def _enable(name: str, *, enabled: bool, as_json: bool) -> None:
    show_change(settings().connection().operate("enable_events", group=name, enabled=enabled), as_json=as_json)


@event.command()
@click.argument("name", metavar="GROUP", shell_complete=complete_groups)
@change_options
@connection_options
@reporting
def enable(name: str, as_json: bool) -> None:
    """Let GROUP be watched for, on each node that its definition allows."""
    _enable(name, enabled=True, as_json=as_json)


@event.command()
@click.argument("name", metavar="GROUP", shell_complete=complete_groups)
@change_options
@connection_options
@reporting
def disable(name: str, as_json: bool) -> None:
    """Have nobody watch for GROUP, until it is enabled again."""
    _enable(name, enabled=False, as_json=as_json)


@event.command()
@click.argument("name", metavar="GROUP", shell_complete=complete_groups)
@change_options
@connection_options
@reporting
def withdraw(name: str, as_json: bool) -> None:
    """Forget the definition of GROUP."""
    show_change(settings().connection().operate("apply_events", groups=[], withdraw=[name]), as_json=as_json)


@click.group()
@connection_options
def watcher() -> None:
    """Let commands detect events."""


def _read_program(_context: click.Context, _parameter: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    if words and shutil.which(words[0]) is None:
        raise click.BadParameter(f"there is no program {words[0]!r} that can be run: give its path")
    return words


class Script:
    """A command that detects events: run again and again, for an exit status or for the lines that it writes."""

    def __init__(
        self, connected: AsyncWatcher, words: list[str], interval_s: float, *, lines: bool, say: Callable[[str], None]
    ) -> None:
        self._watcher, self._words, self._interval_s = connected, words, interval_s
        self._lines, self._say = lines, say
        self._at_work: dict[str, tuple[Asked, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Until it is cancelled. Raises `ClientError`."""
        try:
            while True:
                asked = dict(self._watcher.asked)
                for name, (before, task) in list(self._at_work.items()):
                    if asked.get(name) != before:
                        task.cancel()
                        await asyncio.gather(task, return_exceptions=True)
                        del self._at_work[name]
                        self._say(f"{name}: no longer to be detected here")
                for name, each in asked.items():
                    if name not in self._at_work:
                        self._say(f"{name}: to be detected")
                        self._at_work[name] = (each, asyncio.create_task(self._detect(each)))
                await self._watcher.wait()
        finally:
            for _, task in self._at_work.values():
                task.cancel()
            await asyncio.gather(*(task for _, task in self._at_work.values()), return_exceptions=True)

    async def _detect(self, asked: Asked) -> None:
        while True:
            began_s = time.monotonic()
            try:
                await (self._follow(asked) if self._lines else self._once(asked))
            except (OSError, ClientError) as error:
                self._say(f"{asked.event}: {error}")
            await asyncio.sleep(max(FIRST_PAUSE_S, self._interval_s - (time.monotonic() - began_s)))

    async def _once(self, asked: Asked) -> None:
        """Another exit status than 0 is an occurrence."""
        process = await self._start(asked)
        try:
            written, _ = await process.communicate()
        except asyncio.CancelledError:
            await end_group(process)
            raise
        text = written.decode(errors="replace")
        if process.returncode:
            await self._tell(asked, _pairs(text) | {"status": str(process.returncode)}, text)

    async def _follow(self, asked: Asked) -> None:
        """Each line is an occurrence."""
        process = await self._start(asked)
        assert process.stdout is not None
        try:
            async for line in _lines_of(process.stdout):
                await self._tell(asked, _pairs(line), line)
        finally:
            await end_group(process)

    async def _start(self, asked: Asked) -> asyncio.subprocess.Process:
        values = {f"MUSTER_IN_{key.upper()}": value for key, value in asked.parameters.items()}
        return await asyncio.create_subprocess_exec(
            *self._words, env=os.environ | dict(asked.environment) | values | {"MUSTER_EVENT": asked.event},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    async def _tell(self, asked: Asked, out: dict[str, str], text: str) -> None:
        out.setdefault("output", text.strip()[-MAXIMUM_OUTPUT_CHARACTERS:])
        try:
            verdict = await self._watcher.occurred(asked.event, **out)
        except ClientError as error:
            self._say(f"{asked.event}: occurred, but not told: {error}")
        else:
            self._say(f"{asked.event}: occurred, {verdict}")


async def _lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """The lines that a command writes, each cut off where it is too long."""
    begun = b""
    while data := await stream.read(MAXIMUM_LINE_BYTES):
        *whole, rest = data.split(b"\n")
        for part in whole:
            yield (begun + part)[:MAXIMUM_LINE_BYTES].decode(errors="replace")
            begun = b""
        begun = (begun + rest)[:MAXIMUM_LINE_BYTES]
    if begun:
        yield begun.decode(errors="replace")


def _pairs(text: str) -> dict[str, str]:
    """The OUT parameters that a script writes: `key=value`, a line each."""
    found = (_PAIR.fullmatch(line.strip()) for line in text.splitlines())
    return {each[1]: each[2] for each in found if each is not None}


@watcher.command()
@click.option("--event", "names", multiple=True, metavar="NAME", help="An event that the command detects; repeatable.")
@click.option("--name", default="", metavar="WATCHER", help="All events whose `watcher` is this name.")
@click.option("--interval", callback=read_duration, metavar="DURATION", help="Run it again after so long [10s].")
@click.option("--lines", is_flag=True, help="It goes on: each line that it writes is an occurrence.")
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True, callback=_read_program)
@connection_options
@reporting
def run(names: tuple[str, ...], name: str, interval: int, lines: bool, words: tuple[str, ...]) -> None:
    """Let COMMAND detect events, until SIGTERM; write -- before it if it has options of its own.

    COMMAND gets the event's IN parameters as MUSTER_IN_NAME and its name as MUSTER_EVENT. It is run every --interval
    while the event is enabled on this node; another exit status than 0 is an occurrence. With --lines it is to go on,
    and each line that it writes is one; if it ends, it is run again after --interval. What it writes as key=value are
    the OUT parameters; all of it is `output`.

    \b
    Examples:
      muster watcher run --dir /tmp/try --node n0 --event disk-full --interval 30s -- ./disk_ok.sh
      muster watcher run --dir /tmp/try --node n0 --event intruder --lines -- tail -Fn0 /var/log/auth.log
    """
    if not names and not name:
        raise Mistaken("it is not said what it detects", "muster watcher run", "give --event NAME or --name WATCHER")
    asyncio.run(_run(_socket(), names, name, list(words), (interval or 10_000) / 1000, lines=lines))


async def _run(
    path: Path, names: tuple[str, ...], name: str, words: list[str], interval_s: float, *, lines: bool
) -> None:
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    async with await watch_async(name, events=names, socket=path, reconnect_s=60.0) as connected:
        click.echo(f"connected to {connected.node}")
        work = asyncio.create_task(Script(connected, words, interval_s, lines=lines, say=click.echo).run())
        asked = asyncio.create_task(ending.wait())
        await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if work.done():
            await work
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


def _socket() -> Path:
    sockets = settings().sockets()
    if len(sockets) > 1:
        next_step = f"name it: --node {' or --node '.join(sockets)}"
        raise Mistaken("a watcher watches on one node", "muster watcher run", next_step)
    (path,) = sockets.values()
    return path
