"""`muster subsystem run`: commands that take part in transitions, one for each kind (SPEC 3.2, 3.6, 3.13).

Each notification runs the command of its kind; exit status 0 acknowledges it. Anything else is shown and tried again,
never acknowledged: if the cluster must not wait, that is for the level's deadline to say. Notifications about different
nodes are worked on side by side. One that follows another about the same node aborts what is still at work there: a
node that dies while it joins is recovered, its join no longer processed (SPEC 3.6).
"""

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click

from muster.client import (
    AsyncNotification,
    AsyncSubsystem,
    Barriers,
    ClientError,
    Kind,
    Planned,
    Unreachable,
    register_async,
)
from muster.records.durations import duration_of
from muster.setup.errors import Mistaken
from muster.ui.commands.children import end_group
from muster.ui.options import connection_options, reporting, settings

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
JUDGE_S = 4.0  # for the command that judges a planned change: the cluster takes later silence for an objection

SHELL = "/bin/sh"
PLAIN_WORD = re.compile(r"[\w./+-]+")  # means the same to every shell, and is no assignment

Commands = dict[Kind, str]


def read_command(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """A command for the shell, with redirections and all; it must parse, and its program be there.

    Raises `BadParameter`: a mistake shows now, not when a node has died.
    """
    if value is None:
        return None
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} cannot be split into words: {error}") from error
    if not words:
        raise click.BadParameter("it is empty: leave the option out where there is nothing to do")
    parsed = _shell_says("-n", "-c", value)
    if parsed:
        raise click.BadParameter(f"{value!r} is no command for {SHELL}: {parsed}")
    if PLAIN_WORD.fullmatch(words[0]) and not _is_command(words[0]):
        raise click.BadParameter(f"there is no program {words[0]!r} that can be run: give its path")
    return value


def _is_command(word: str) -> bool:
    """Whether this names a program that can be run, or something that the shell does itself."""
    if shutil.which(word) is not None:
        return True
    return "/" not in word and not _shell_says("-c", 'command -v "$0" >/dev/null || echo no', word)


def _shell_says(*arguments: str) -> str:
    """The last line that the shell writes, in which it names what is wrong; nothing where all is well."""
    asked = subprocess.run(
        [SHELL, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return asked.stdout.decode(errors="replace").strip().rpartition("\n")[2].rpartition(f"{SHELL}: ")[2]


def read_duration(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int:
    """Milliseconds of `30s`, `500ms`, `2m`; 0 where none is given. Raises `BadParameter`."""
    milliseconds = 0 if value is None else duration_of(value)
    if milliseconds is None:
        raise click.BadParameter(f'{value!r} is no duration with its unit, as "500ms", "60s", "2m"')
    return milliseconds


class Steps:
    """Runs the commands of one registration."""

    def __init__(self, subsystem: AsyncSubsystem, commands: Commands, say: Callable[[str], None]) -> None:
        self._subsystem, self._commands, self._say = subsystem, commands, say
        self._at_work: dict[str, asyncio.Task[None]] = {}  # by the node that the notification is about

    async def run(self) -> None:
        """Until the registration ends. Raises `ClientError`."""
        try:
            async for told in self._subsystem:
                before = self._at_work.get(told.node)
                self._at_work[told.node] = asyncio.create_task(self._process(told, before))
        finally:
            for task in self._at_work.values():
                task.cancel()
            await asyncio.gather(*self._at_work.values(), return_exceptions=True)

    async def _process(self, told: AsyncNotification, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            before.cancel()
            await asyncio.gather(before, return_exceptions=True)
        what = f"{told.node} {told.kind}, barrier {told.barrier}"
        started_s = time.monotonic()
        if told.kind in self._commands:
            await self._until_it_succeeds(told, what)
        try:
            await told.acknowledge()
        except ClientError as error:
            self._say(f"{what}: done, but not acknowledged: {error}")
        else:
            self._say(f"{what}: acknowledged after {(time.monotonic() - started_s) * 1000:.0f} ms")

    async def _until_it_succeeds(self, told: AsyncNotification, what: str) -> None:
        pause_s = FIRST_PAUSE_S
        while outcome := await self._attempt(told):
            self._say(f"{what}: {self._commands[told.kind]} {outcome}; again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _attempt(self, told: AsyncNotification) -> str:
        """Run the command once; in words why it did not succeed, or nothing."""
        try:
            process = await asyncio.create_subprocess_exec(
                SHELL, "-c", self._commands[told.kind], env=os.environ | _environment(told),
                stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return f"cannot be run: {error.strerror or error}"
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            await end_group(process)
            raise
        if status < 0:
            return f"was ended by signal {-status}"
        return f"ended with status {status}" if status else ""


def _environment(told: AsyncNotification) -> dict[str, str]:
    return {
        "MUSTER_TRANSITION": str(told.transition),
        "MUSTER_KIND": str(told.kind),
        "MUSTER_ABOUT_NODE": told.node,
        "MUSTER_BARRIER": str(told.barrier),
        "MUSTER_EPOCH": str(told.epoch),
        "MUSTER_VECTOR": json.dumps(dict(told.vector)),
    }


class Program:
    """What `muster subsystem run` is: registers, works, and registers anew when its node is back."""

    def __init__(
        self, path: Path, name: str, level: int, barriers: Barriers, deadline_ms: int, on_hang: str,
        on_loss: Literal["deregister", "fail"] | None, commands: Commands, on_planned: str | None,
    ) -> None:  # fmt: skip
        self._on_planned = on_planned
        self._path, self._name, self._level, self._barriers = path, name, level, barriers
        self._deadline_ms, self._commands = deadline_ms, commands
        self._evicts, self._on_loss = on_hang == "evict", on_loss
        self._subsystem: AsyncSubsystem | None = None
        self._said = ""

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; then deregister. Raises `ClientError` where the first registration fails."""
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ending.set)
        work = asyncio.create_task(self._work())
        asked = asyncio.create_task(ending.wait())
        await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if work.done():
            await work
            return
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        if self._subsystem is not None and not self._subsystem.is_over:
            try:
                await self._subsystem.deregister()
            except ClientError as error:
                self._say(f"not deregistered: {error}")
            else:
                self._say("deregistered")

    async def _work(self) -> None:
        self._subsystem = await self._register()
        while True:
            self._say(f"registered at level {self._level} with {self._subsystem.node}")
            try:
                await Steps(self._subsystem, self._commands, self._say).run()
                self._say(f"{self._subsystem.node} has left at this level: registering again when it has booted")
            except ClientError as error:
                self._say(f"{error}: registering again when that is possible")
            finally:
                if self._subsystem.is_over:
                    await self._subsystem.close()
            self._subsystem = await self._register_again()

    async def _register(self) -> AsyncSubsystem:
        return await register_async(
            self._name, self._level, barriers=self._barriers, deadline_s=self._deadline_ms / 1000,
            on_hang="evict" if self._evicts else "wait", on_loss=self._on_loss,
            judge=self._judge if self._on_planned else None,
            socket=self._path,
        )  # fmt: skip

    async def _register_again(self) -> AsyncSubsystem:
        pause_s, last = FIRST_PAUSE_S, ""
        while True:
            try:
                return await self._register()
            except ClientError as error:
                if not isinstance(error, Unreachable) and error.what != last:
                    last = error.what
                    self._say(str(error))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def _judge(self, planned: Planned) -> str:
        """Run the command that judges a planned change; what it objects, in its own last words."""
        assert self._on_planned is not None
        environment = {
            "MUSTER_CHANGE": planned.change, "MUSTER_ABOUT_NODE": planned.node, "MUSTER_SERVICE": planned.service,
        }  # fmt: skip
        with subprocess.Popen(
            [SHELL, "-c", self._on_planned], env=os.environ | environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                output, _ = process.communicate(timeout=JUDGE_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                return f"{self._on_planned} could not judge: it has not ended within {JUDGE_S:g} s"
        words = output.decode(errors="replace").split("\n")
        said = next((line.strip() for line in reversed(words) if line.strip()), f"status {process.returncode}")
        return said if process.returncode else ""

    def _say(self, text: str) -> None:
        click.echo(f"{self._name}: {text}")


@click.group()
@connection_options
def subsystem() -> None:
    """Let commands take part in the cluster's transitions."""


def _command_option(kind: str, when: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(f"--on-{kind}", callback=read_command, metavar="COMMAND", help=f"Run this when a node {when}.")


def _barriers_option(kind: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        f"--barriers-{kind}", type=click.IntRange(1, 64), default=1, metavar="N", help=f"Barriers for {kind} [1]."
    )


@subsystem.command()
@click.option("--name", metavar="NAME", help="What the cluster calls it [level-N].")
@click.option(
    "--level", required=True, type=click.IntRange(min=1), metavar="N", help="Its place, above 0; lower first."
)
@_command_option("joining", "joins")
@_command_option("leaving", "leaves")
@_command_option("forced-leaving", "has been forced out, and is proven to have stopped")
@click.option(
    "--on-planned", callback=read_command, metavar="COMMAND",
    help="Ask this before a node leaves or is drained, or a service is moved or de-registered. Any status but 0 "
    "objects, with its last words.",
)  # fmt: skip
@_barriers_option("joining")
@_barriers_option("leaving")
@_barriers_option("forced-leaving")
@click.option("--deadline", callback=read_duration, metavar="DURATION", help="Hung if longer at work, as 30s [none].")
@click.option("--on-hang", type=click.Choice(["wait", "evict"]), default="wait", help="What is done then [wait].")
@click.option(
    "--on-loss", type=click.Choice(["deregister", "fail"]),
    help="What the death of this program means: its level goes, or its node fails [deregister; where the level is "
    "required, or a higher one is registered on the node, only fail].",
)  # fmt: skip
@connection_options
@reporting
def run(
    name: str | None, level: int, on_joining: str | None, on_leaving: str | None, on_forced_leaving: str | None,
    on_planned: str | None, barriers_joining: int, barriers_leaving: int, barriers_forced_leaving: int, deadline: int,
    on_hang: str, on_loss: Literal["deregister", "fail"] | None,
) -> None:  # fmt: skip
    """Register with a node, and run a command for each transition; SIGTERM deregisters.

    A command is run by /bin/sh. It gets MUSTER_TRANSITION, MUSTER_KIND, MUSTER_ABOUT_NODE and MUSTER_BARRIER;
    MUSTER_EPOCH, a fencing token; and MUSTER_VECTOR: the state of every node at this level, as JSON. Exit status 0
    acknowledges; otherwise it is run again. The one that is asked about plans gets MUSTER_CHANGE, MUSTER_ABOUT_NODE and
    MUSTER_SERVICE.

    \b
    Example:
      muster subsystem run --dir /tmp/try --node n0 --level 60 --name cache \\
          --on-leaving "./flush.sh --all" --on-forced-leaving ./drop.sh --deadline 30s
    """
    found = {Kind.JOINING: on_joining, Kind.LEAVING: on_leaving, Kind.FORCED_LEAVING: on_forced_leaving}
    commands = {kind: command for kind, command in found.items() if command is not None}
    barriers = Barriers(barriers_joining, barriers_leaving, barriers_forced_leaving)
    program = Program(
        _socket(), name or f"level-{level}", level, barriers, deadline, on_hang, on_loss, commands, on_planned
    )
    asyncio.run(program.run())


def _socket() -> Path:
    sockets = settings().sockets()
    if len(sockets) > 1:
        raise Mistaken(
            "a subsystem is a part of one node",
            "muster subsystem run",
            f"name it: --node {' or --node '.join(sockets)}",
        )
    (path,) = sockets.values()
    return path
