"""The event manager daemon of a node, to which watchers connect (SPEC 5.1); its rules are `core/events/manager.py`.

Theory of operation. A watcher connects with the streaming request

    {"query": "watcher", "arguments": {"name": "disk", "events": ["disk-full"], "process": PID, "members": null}}

and is asked to detect the active events that name it as their watcher, and those that it names itself. The first line
of the answer holds its `token`; each further one asks it to detect an event, or to stop:

    {"watch": "disk-full", "in": {"path": "/srv"}, "environment": {...}}     with "surroundings" of a service's check
    {"unwatch": "disk-full"}
    {"settled": true}            once, after all that is active as it connects
    {"index": 7, "members": {"n0": ["joined", INCARNATION], ...}}     how the nodes stand after entry `members` (P8.8)

On another connection it tells of occurrences, `{"operation": "occurred", "arguments": {"token", "event", "out": {},
"in": {}}}`, and hears what was made of each; `in` is as it was asked, and may be left out (P8.6). A stream that ends,
however it ends, is a watcher that is gone; it connects again.

No watcher is part of the daemon: those that are built in are a process that connects like any other (`watcher.py`).

Bounded: watchers, what a watcher has not fetched, parameters, the history.
"""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from muster.client.watching import NOT_WATCHED, UNKNOWN_WATCHER
from muster.core.effects import Reply, RunCommand
from muster.core.events import manager as events
from muster.core.inputs import AwaitedHere
from muster.core.needs.need import Need
from muster.core.node.node import Node
from muster.daemon.events import command_log, event_history
from muster.daemon.events.command_log import CommandLog
from muster.daemon.events.event_history import EventHistory
from muster.daemon.events.kept_history import KeptHistory
from muster.daemon.events.output_files import JOURNAL, JOURNAL_VARIABLE, OutputFiles, Piece
from muster.drivers.runner_client import CommandEnded, ProgramExited, RunnerClient
from muster.records.events import EventDefinition
from muster.records.names import shown
from muster.records.operations import OperationRequest
from muster.records.refusal import ControlRefused
from muster.records.services import CommandState
from muster.records.units import NEVER_US
from muster.records.watchers import BUILT_IN_WATCHER, NEEDS_WATCHER, PROCESS_WATCHERS

MAXIMUM_WATCHERS = 24
MAXIMUM_UNFETCHED = 4096  # beside what is active
MAXIMUM_NAMED_EVENTS = 256
OPERATION_TIMEOUT_S = 10.0
SHOWN_OCCURRENCES = 256  # of a node, in an answer
SHOWN_COMMANDS = 64
WHERE = "query watcher"
NEEDS = 0  # the number of the daemon itself among the watchers: it detects what needs a person
US_PER_S = 1_000_000
LINGER_S = 10.0  # of the built-in watcher process when nothing needs it any more

Document = dict[str, Any]
Operate = Callable[[str, OperationRequest, float], Coroutine[Any, Any, Reply | None]]


class _Stream:
    """What one watcher has still to hear."""

    def __init__(self, number: int, name: str, process: int) -> None:
        self.number, self.name, self.process = number, name, process
        self.token = os.urandom(16).hex()
        self.lines: deque[Document] = deque()
        self.arrived = asyncio.Event()
        self.overrun = False

    def offer(self, line: Document, limit: int = MAXIMUM_UNFETCHED) -> None:
        """Queue a line; a watcher that reads no more is given up."""
        if len(self.lines) >= limit:
            self.overrun = True
        else:
            self.lines.append(line)
        self.arrived.set()


class EventManagerShell:
    """Drives the machine of one node. `operate` and `note` are the daemon's."""

    def __init__(
        self, node: Node, operate: Operate, note: Callable[[str, str], None], clock_us: Callable[[], int], home: Path
    ) -> None:
        self._node, self._operate, self._note, self._clock_us = node, operate, note, clock_us
        # above what an earlier daemon of this incarnation has counted: it did not count one every microsecond
        self._machine = events.EventManager(node.me, node.incarnation, clock_us())
        self._runner: RunnerClient | None = None
        self._streams: dict[str, _Stream] = {}  # by token
        self._numbers = 0
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._is_scheduled = False
        self._has_watcher: bool | None = None  # an earlier daemon may have had one
        self._lingering: asyncio.TimerHandle | None = None  # until it is ended
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._needs: tuple[Need, ...] = ()
        self._asked_of_needs: dict[str, tuple[events.Values, set[tuple[str, str]]]] = {}  # event -> asked for, told
        self._history = EventHistory(self.kept(home / event_history.FILE_NAME), node.incarnation)
        self.commands = CommandLog(self.kept(home / command_log.FILE_NAME))
        journal = os.environ.get(JOURNAL_VARIABLE) or JOURNAL
        self.outputs = OutputFiles(home, self._lost_lines, journal=journal)

    def kept(self, path: Path) -> KeptHistory:
        """A history in the node's home; why it loses lines goes into the log."""
        return KeptHistory(path, self._lost_lines)

    def _lost_lines(self, why: str) -> None:
        """Heard in a thread that writes."""
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._note, "history not kept", why)

    # ---- the daemon's side ----------------------------------------------------------------------------------------

    def start(self, runner: RunnerClient) -> None:
        """Begin, with what was recorded before, and what the runner remembers of it (P8.9)."""
        self._runner = runner
        runner.on_wrote = self._keep_output
        for ended in runner.ended_early:
            self.command_ended(ended)
        for exited in runner.exited.values():
            self.program_exited(exited)
        acts = tuple(
            events.ActionEnded(each.generation, each.succeeded, each.detail) for each in runner.acts_ended_early
        )
        past = self._history.read(self._clock_us())
        self._step(events.Remembered(past, frozenset(runner.acts_at_work), acts))
        self._step(events.WatcherCame(NEEDS, NEEDS_WATCHER))
        self.replica_advanced()

    def _keep_output(self, name: str, text: str, omitted: int) -> None:
        """A command of a service has written something (P8.20)."""
        database = self._node.database
        service = database.services.get(name)
        journal = service is not None and service.definition.output == "journal"
        self.outputs.add(Piece(name, text, omitted, journal, database.name_of(self._node.me)))

    def stop(self) -> None:
        """The daemon ends: watchers connect again to the next one, which hears of every exit anew."""
        self._stopped = True
        self._history.close()
        self.commands.close()
        self.outputs.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._lingering is not None:
            self._lingering.cancel()
        for task in self._requests.values():
            task.cancel()

    def replica_advanced(self) -> None:
        """The replica may have changed: look at it once, after all that comes with it."""
        if not self._is_scheduled and not self._stopped:
            self._is_scheduled = True
            self._loop.call_soon(self._look)

    def needs_changed(self, needs: tuple[Need, ...]) -> None:
        """What needs a person has changed (P10.12): each new need is an occurrence of the events that ask for it."""
        self._needs = needs
        for event in list(self._asked_of_needs):
            self._tell_needs(event)

    def _tell_needs(self, event: str) -> None:
        parameters, told = self._asked_of_needs.get(event, ((), set()))
        told &= {need.key for need in self._needs}
        for need in self._needs:
            values = {"kind": need.kind, "subject": need.subject, "severity": need.severity}
            wanted = all(values.get(key, value) == value for key, value in parameters)
            if wanted and need.key not in told and event in self._asked_of_needs:
                told.add(need.key)
                out = _texts(values | {"words": need.words, "next": need.next_step})
                self._step(events.Occurred(NEEDS, event, out, parameters))

    def program_exited(self, exited: ProgramExited) -> None:
        """The runner tells of the end of a supervised program, for the history: the watcher tells of the event."""
        if self.commands.exited(exited, self._clock_us()):
            self._note("program ended", f"{exited.service} (generation {exited.generation}) {exited.status}")

    def command_ended(self, ended: CommandEnded) -> None:
        """The runner tells of an attempt of a command, for the history."""
        self.commands.ended(ended)
        if ended.failure and ended.action != "act":
            what = f"{ended.service}: {ended.action} (generation {ended.generation}), attempt {ended.attempt}"
            self._note("command failed", f"{what}: {ended.failure}; it took {ended.duration_ms} ms")

    def action_ended(self, state: CommandState) -> None:
        """The runner tells of the end of an action function."""
        self._note("action ended", f"{state.service}: {'succeeded' if state.succeeded else state.detail}")
        self._step(events.ActionEnded(state.generation, state.succeeded, state.detail))

    # ---- the watchers' side ---------------------------------------------------------------------------------------

    async def stream(self, arguments: Document, peer: dict[str, int]) -> AsyncIterator[Document]:
        """Connect a watcher; then what it is asked to detect. Raises `ControlRefused`."""
        name, named, process, members = _checked(arguments)
        is_built_in = name == BUILT_IN_WATCHER
        if is_built_in and peer["uid"] not in (0, os.geteuid()):
            raise ControlRefused(f"watcher {name!r} is the node's own", WHERE, "choose another name")
        if len(self._streams) >= MAXIMUM_WATCHERS and not is_built_in:  # no others keep that out
            raise ControlRefused(f"{MAXIMUM_WATCHERS} watchers are connected already", WHERE, "end one of them")
        self._numbers += 1
        stream = _Stream(self._numbers, name, process)
        self._streams[stream.token] = stream
        try:
            node = self._node
            yield {"token": stream.token, "node": node.setup.name, "incarnation": node.incarnation}
            self._step(events.WatcherCame(stream.number, name, frozenset(named), members))
            stream.offer({"settled": True})
            while not stream.overrun:
                while stream.lines:
                    yield stream.lines.popleft()
                stream.arrived.clear()
                if not stream.lines:
                    await stream.arrived.wait()
            self._note("watcher given up", f"{name or ', '.join(named)}: it has not fetched {MAXIMUM_UNFETCHED} lines")
        finally:
            self._streams.pop(stream.token, None)
            self._step(events.WatcherWent(stream.number))

    def occurred(self, arguments: Document) -> Document:
        """A watcher has detected an event: what was made of it. Raises `ControlRefused`."""
        where = "operation occurred"
        token, event, out, asked = (arguments.get(key) for key in ("token", "event", "out", "in"))
        if not isinstance(token, str) or not isinstance(event, str) or not isinstance(out, dict):
            raise ControlRefused("it needs `token`, `event` and `out`", where, "send them as connected")
        if not isinstance(asked, dict | None) or arguments.keys() - {"token", "event", "out", "in"}:
            raise ControlRefused("beside them it takes `in`", where, "send it as the event was asked for")
        if len(out) > events.MAXIMUM_OUT:
            raise ControlRefused(f"it takes `out` with at most {events.MAXIMUM_OUT} values", where, "send fewer")
        stream = self._streams.get(token)
        if stream is None:
            raise ControlRefused("no watcher is connected under this one", UNKNOWN_WATCHER, "connect again")
        parameters = None if asked is None else _texts(asked)
        self._step(events.Occurred(stream.number, event, _texts(out), parameters))
        number, verdict = self._machine.answer
        if verdict == "not enabled":
            raise ControlRefused(
                f"event {shown(event)} is not watched for here now",
                NOT_WATCHED,
                "see `muster event list` for what is enabled",
            )
        return {"occurrence": number, "verdict": verdict}

    def waiting(self, now_us: int) -> tuple[list[AwaitedHere], int]:
        """The actions that wait for a place, the first of each group, and how many wait in all (P8.12)."""
        return self._machine.waiting(now_us)

    def service_of(self, event: str) -> str:
        """The service that an event that is watched for is about; nothing where it is about none."""
        active = self._machine.active.get(event)
        return active.service if active is not None else ""

    # ---- queries --------------------------------------------------------------------------------------------------

    def described(self) -> Document:
        """The groups and their events as they stand on this node, and the watchers connected here."""
        database, machine = self._node.database, self._machine
        watching = {
            event: name or "a watcher of this event" for name, found in machine.watchers.values() for event in found
        }
        groups = []
        for group in sorted(database.event_groups.values(), key=lambda each: each.name):
            why = machine.why_not(group.definition)
            own = [_described_event(event, watching) for event in group.definition.events]
            groups.append(
                {
                    "group": group.name, "service": group.definition.service, "enabled_by_hand": group.enabled,
                    "nodes": list(group.definition.nodes), "on_master": group.definition.on_master,
                    "windows": list(group.definition.windows), "enabled_here": not why, "why_not": why, "events": own,
                    "definition": msgspec.to_builtins(group.definition),
                }
            )  # fmt: skip
        of_services: dict[str, list[Document]] = {}
        for active in machine.active.values():
            if active.service:
                of_services.setdefault(active.group, []).append(_described_event(active.event, watching))
        for name, own in sorted(of_services.items()):
            groups.append(
                {
                    "group": name, "service": name.removeprefix("service/"), "enabled_by_hand": True, "nodes": ["*"],
                    "on_master": False, "windows": [], "enabled_here": True, "why_not": "", "events": own,
                    "definition": None,
                }
            )  # fmt: skip
        watchers = [{"name": stream.name, "process": stream.process} for stream in self._streams.values()]
        return {"groups": groups, "watchers": watchers}

    def history(self) -> list[Document]:
        """Every occurrence that this node remembers, oldest first; times by the clock of people."""
        offset_s = time.time() - self._clock_us() / US_PER_S
        name = self._node.setup.name
        return [event_history.described(each, name, offset_s) for each in self._machine.history]

    async def answer(self, question: str, subject: str) -> Document:
        """What this node itself knows. Raises `ControlRefused`."""
        match question:
            case "events":
                return self.described()
            case "event_history":
                found = [each for each in self.history() if subject in ("", each["event"])]  # then it is cut
                return {"occurrences": found[-SHOWN_OCCURRENCES:]}
            case "service_log" if subject and "\0" not in subject and self._runner is not None:
                now = await self._runner.output(subject, 1.0)
                commands = self.commands.of(subject)[-SHOWN_COMMANDS:]
                written = await asyncio.to_thread(self.outputs.tail, subject)
                running = {"output": now.output, "status": now.status}
                return {"commands": commands, "running": running, "written": written}
        raise ControlRefused(f"this node cannot say what {shown(question)} is", "control socket", "see the help")

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._is_scheduled = False
        if self._node.replica.confirmed and not self._stopped:
            self._step(events.ReplicaChanged(self._node.database, self._node.is_master))
            self._want_watcher()
            if self._timer is None and self._machine.deadline_us != NEVER_US:
                self._read_clock()

    def _want_watcher(self) -> None:
        """The built-in watcher process runs while there is something for it to detect."""
        needed = any(active.event.watcher in PROCESS_WATCHERS for active in self._machine.active.values())
        if needed and self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self._has_watcher and not needed:
            # a service that restarts needs it again at once, and the end of its next program is to be told at once
            self._lingering = self._lingering or self._loop.call_later(LINGER_S, self._end_watcher)
        elif needed != self._has_watcher:
            self._tell_runner(needed)

    def _end_watcher(self) -> None:
        self._lingering = None
        if not self._stopped:
            self._tell_runner(False)

    def _tell_runner(self, needed: bool) -> None:
        assert self._runner is not None
        self._has_watcher = needed
        self._runner.want_watcher(needed)

    def _read_clock(self) -> None:
        self._timer = None
        if self._stopped:
            return
        now = time.localtime()
        self._step(events.ClockRead(now.tm_wday, now.tm_hour * 60 + now.tm_min))
        self._want_watcher()
        if self._machine.deadline_us != NEVER_US:
            delay_s = (self._machine.deadline_us - self._clock_us()) / US_PER_S
            self._timer = self._loop.call_later(max(0.1, delay_s), self._read_clock)

    def _step(self, happened: events.Happening) -> None:
        if self._stopped:
            return
        effects = self._machine.step(happened, self._clock_us())
        if self._machine.changed:
            self._history.keep(self._machine.changed.values(), self._clock_us())
            self._machine.changed.clear()
        for effect in effects:
            match effect:
                case events.Watch(watcher=watcher, event=event) if watcher == NEEDS:
                    self._asked_of_needs[event] = (effect.parameters, set())
                    self._loop.call_soon(self._tell_needs, event)
                case events.Unwatch(watcher=watcher, event=event) if watcher == NEEDS:
                    self._asked_of_needs.pop(event, None)
                case events.Watch(watcher=watcher, event=event):
                    line = {"watch": event, "in": dict(effect.parameters), "environment": dict(effect.environment)}
                    if effect.surroundings is not None:
                        line["surroundings"] = structs.asdict(effect.surroundings)
                    self._offer(watcher, line)
                case events.Unwatch(watcher=watcher, event=event):
                    self._offer(watcher, {"unwatch": event})
                case events.TellNodeStates(watcher=watcher, snapshot=snapshot):
                    members = {name: [state, incarnation] for name, state, incarnation in snapshot.members}
                    self._offer(watcher, {"index": snapshot.index, "members": members})
                case events.RunAction():
                    self._run(effect)
                case events.RequestOperation(number=number):
                    self._requests[number] = self._loop.create_task(self._request(effect))
                case events.CancelAction(number=number):
                    self._cancel(effect)
                case _:
                    raise AssertionError(f"nobody carries out {type(effect).__name__}")

    def _offer(self, watcher: int, line: Document) -> None:
        limit = MAXIMUM_UNFETCHED + 2 * len(self._machine.active)  # all that is active is asked for at once
        for stream in self._streams.values():
            if stream.number == watcher:
                stream.offer(line, limit)

    def _run(self, effect: events.RunAction) -> None:
        assert self._runner is not None
        self._note("action", f"{effect.event}: {' '.join(effect.command)}"[:500])
        self._runner.run(
            RunCommand(
                effect.event, 0, effect.number, "act", effect.command, effect.timeout_ms, effect.environment,
            )
        )  # fmt: skip

    async def _request(self, effect: events.RequestOperation) -> None:
        """Ask until a master has answered; the identity makes it one and the same request (P9.1)."""
        try:
            while (reply := await self._operate(effect.identity, effect.operation, OPERATION_TIMEOUT_S)) is None:
                self._note("action waits", f"no master has answered {type(effect.operation).__name__} yet")
            self._step(events.ActionEnded(effect.number, not reply.refused, reply.outcome))
        finally:
            self._requests.pop(effect.number, None)

    def _cancel(self, effect: events.CancelAction) -> None:
        task = self._requests.get(effect.number)
        if task is None:
            assert self._runner is not None
            self._runner.cancel_act(effect.event, effect.number, effect.reason)
            return
        # what was asked may still be carried out; the generation that it names makes it harmless when it is late
        task.cancel()
        self._loop.call_soon(self._step, events.ActionEnded(effect.number, False, effect.reason))


def _described_event(event: EventDefinition, watching: dict[str, str]) -> Document:
    return {
        "event": event.name, "watcher": event.watcher, "in": dict(event.parameters), "out": list(event.outputs),
        "action": list(event.action), "debounce_ms": event.debounce_ms, "rate_count": event.rate_count,
        "rate_window_ms": event.rate_window_ms, "watched_by": watching.get(event.name, ""),
    }  # fmt: skip


def _texts(document: Document) -> events.Values:
    return tuple((str(key), value if isinstance(value, str) else str(value)) for key, value in document.items())


def _checked(arguments: Document) -> tuple[str, list[str], int, int | None]:
    name, named, process = arguments.get("name", ""), arguments.get("events", []), arguments.get("process", 0)
    members = arguments.get("members")
    unknown = sorted(arguments.keys() - {"name", "events", "process", "members"})
    if unknown:
        raise ControlRefused(f"unknown argument {shown(unknown[0])}", WHERE, "use name, events, process, members")
    if not isinstance(name, str) or len(name) > 64:
        raise ControlRefused("`name` must be a text of at most 64 characters", WHERE, "shorten it")
    if name in (*PROCESS_WATCHERS, NEEDS_WATCHER):
        raise ControlRefused(f"watcher {name!r} is a built-in one", WHERE, "choose another name")
    if not isinstance(named, list) or not all(isinstance(each, str) and 0 < len(each) <= 255 for each in named):
        raise ControlRefused("`events` must be a list of names", WHERE, "name events that exist: muster event list")
    if len(named) > MAXIMUM_NAMED_EVENTS or not (name or named):
        raise ControlRefused(f"it needs a name, or up to {MAXIMUM_NAMED_EVENTS} events", WHERE, "give either")
    if not isinstance(process, int) or isinstance(process, bool):
        raise ControlRefused("`process` must be a number", WHERE, "send the id of the process")
    if members is not None and (type(members) is not int or not -1 <= members < 1 << 63):
        raise ControlRefused("`members` must be an entry, or null", WHERE, "send -1 to hear how the nodes stand")
    return name, named, process, members
