"""The daemon's end of the channel to its runner; the packets are those of `runner.py` (SPEC 7.3, 7.7).

A daemon that has just been started asks for the inventory first: it names every command that earlier daemons of this
incarnation asked for, so what they started is known, and nothing is started twice. Results that arrive before the
inventory is complete are part of it. Results that arrive after it go to `on_finished`, the first of them not before
the coroutine that awaited the inventory has had its turn.
"""

import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from msgspec import structs

from muster.core.effects import RunCommand
from muster.core.inputs import AwaitedHere
from muster.drivers.image.runner_packets import PACKET_BYTES, SEND_BUFFER_BYTES
from muster.records.messages import PlaceAwaited
from muster.records.numbers import NO_STATUS
from muster.records.services import CommandState

MAXIMUM_WAITING = 16_384  # requests that the runner has not taken yet; one for every service it can hold
MAXIMUM_EARLY = 1024
FENCE_CALL = "fence agent "  # begins the names of calls of fence agents: no event is called so (P7.29)
_PACKETS_A_TURN = 64
_SECONDS_A_TURN = 0.02  # each may have the node look at all its services (P8.13)


class CommandEnded(NamedTuple):
    """One attempt of a command has ended, or its program is ready: for the history (SPEC 6.6)."""

    service: str
    generation: int
    action: str
    attempt: int
    failure: str  # nothing where it succeeded
    status: str  # how its process ended, in words
    duration_ms: int
    output: str  # the end of it


class ProgramExited(NamedTuple):
    """The supervised program of this generation of a service has ended (P8.1)."""

    service: str
    generation: int
    status: str
    output: str
    at_us: int  # CLOCK_BOOTTIME


class Output(NamedTuple):
    """What is known of a service's commands that run now."""

    output: str
    status: str  # what its program last said of itself (sd_notify)


class PlacesOfRunner(NamedTuple):
    """What waits for a place among the runner's commands and the watcher's checks (P8.12)."""

    named: tuple[AwaitedHere, ...]  # those that have waited longest; of checks the service is not known here
    in_all: int


class RunnerLost(Exception):
    """The channel to the runner has closed: the node is ending."""


class RunnerClient:
    """Sends commands to the runner, and hands what became of them to `on_finished`.

    `trouble` is told of requests that the runner refused as malformed, which only a defect of this program can cause.
    `on_ended` hears of each attempt of a command, `on_exited` of the end of a supervised program; of one that ended
    while no daemon listened the inventory tells, and then `exited` holds it.
    """

    def __init__(
        self,
        end: socket.socket,
        on_finished: Callable[[CommandState], None],
        trouble: Callable[[str], None] | None = None,
        on_ended: Callable[[CommandEnded], None] | None = None,
        on_exited: Callable[[ProgramExited], None] | None = None,
        on_waiting: Callable[[PlacesOfRunner], None] | None = None,
    ) -> None:
        """Take over `end`. Must be called in the running event loop."""
        self.exited: dict[str, ProgramExited] = {}
        # what was told before the inventory is complete, for whom the inventory says nothing
        self.ended_early: deque[CommandEnded] = deque(maxlen=MAXIMUM_EARLY)
        self.acts_ended_early: deque[CommandState] = deque(maxlen=MAXIMUM_EARLY)
        self.acts_at_work: set[int] = set()
        self.fence_calls_at_work: list[tuple[str, int]] = []  # of earlier daemons: names and generations
        self._on_ended, self._on_exited, self._on_waiting = on_ended, on_exited, on_waiting
        self.on_wrote: Callable[[str, str, int], None] | None = None  # service, text, bytes left out before it
        self._outputs: dict[int, asyncio.Future[Output]] = {}
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._end, self._on_finished, self._trouble = end, on_finished, trouble
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[bytes] = deque()
        self._request = 0
        self._inventory: asyncio.Future[tuple[CommandState, ...]] | None = None
        self._commands: dict[tuple[str, bool], CommandState] = {}  # a notify command stands beside the others
        self._closed = self._retired = False
        self._loop.add_reader(end, self._readable)

    async def inventory(self) -> tuple[CommandState, ...]:
        """The state of every service's newest command on this node (SPEC 7.7). Raises `RunnerLost`.

        One at a time. It ends when the runner answers; a runner that does not is ended by the guard, with the node.
        """
        if self._closed:
            raise RunnerLost("the channel to the runner is closed: this node is ending")
        # Unlike a counter, this differs from what an earlier daemon asked, whose answer may still be on its way.
        self._request = int.from_bytes(os.urandom(6), "little")
        self._commands, self.exited = {}, {}
        self._inventory = self._loop.create_future()
        self._send({"do": "inventory", "request": self._request})
        return await self._inventory

    def panic(self) -> None:
        """Have the runner end everything that it runs, whatever guard and init do (P7.10)."""
        if not self._closed:
            self._send({"do": "panic"})

    async def retire(self) -> tuple[CommandState, ...]:
        """Have nothing run any more but `run_last` (P4.12); then as `inventory`. Raises `RunnerLost`.

        The runner, which outlives this daemon, takes nothing but stops from now on; an older image's takes more.
        """
        self.want_watcher(False)
        self._retired = True
        self._send({"do": "retire"})
        return await self.inventory()

    def run(self, command: RunCommand) -> None:
        """Have the runner run a command; `on_finished` is called once for it, also if it is refused. Never waits.

        After `retire` it is neither run nor answered: what a refusal says, that nothing of it runs, would not be so.
        """
        if not self._retired:
            self.run_last(command)

    def run_last(self, command: RunCommand) -> None:
        """As `run`, also after `retire`: for the stops of a node that ends."""
        packet = {
            "do": "run",
            "service": command.service,
            "uid": command.uid,
            "generation": command.generation,
            "action": command.action,
            "command": command.command,
            "timeout_ms": command.timeout_ms,
            "environment": command.environment,
            "grace_ms": command.grace_ms,
            "retries": command.retries,
            "retry_pause_ms": command.retry_pause_ms,
            "extend_limit_ms": command.extend_limit_ms,
        }
        if command.surroundings is not None:
            packet["surroundings"] = structs.asdict(command.surroundings)
        if command.stop_signal != "SIGTERM":
            packet["stop_signal"] = command.stop_signal
        if command.program:
            packet["program"] = True
        if command.action == "start":
            packet |= {
                "ready": structs.asdict(command.ready), "follows": command.follows, "final": list(command.final),
            }  # fmt: skip
        refusal = _problem(command) or self._send(packet)
        if refusal:
            state = CommandState(command.service, command.generation, command.action, True, False, refusal)
            self._loop.call_soon(self._on_finished, state)

    def cancel_act(self, event: str, number: int, reason: str) -> None:
        """End an action function that this daemon has had run; it is reported as any other end. Never waits."""
        self._send({"do": "cancel", "service": event, "generation": number, "action": "act", "reason": reason})

    def want_watcher(self, wanted: bool) -> None:
        """Have the built-in watcher process run, or end. Never waits."""
        if not self._retired:
            self._send({"do": "watcher", "wanted": wanted})

    def want_locks(self, command: tuple[str, ...], environment: dict[str, str], silence_ms: int) -> None:
        """Have the lock process run, or without a command end (P12.16). Never waits."""
        if not self._retired:
            packet = {"do": "locks", "command": command, "environment": environment, "silence_ms": silence_ms}
            self._send(packet)

    async def output(self, service: str, timeout_s: float) -> Output:
        """What the commands of a service that run now have written, the end of it; nothing if none answers."""
        request = int.from_bytes(os.urandom(6), "little")
        future = self._outputs[request] = self._loop.create_future()
        try:
            if self._send({"do": "output", "request": request, "service": service}):
                return Output("", "")
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            return Output("", "")
        finally:
            del self._outputs[request]

    def close(self) -> None:
        """Let go of the runner, which goes on by itself."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._end)
        self._loop.remove_writer(self._end)
        self._end.close()
        if self._inventory is not None and not self._inventory.done():
            self._inventory.set_exception(RunnerLost("the runner has ended, and with it this node"))

    def _send(self, packet: dict[str, object]) -> str:
        """Send or queue a packet; why it cannot be, or nothing."""
        data = json.dumps(packet).encode()
        if len(data) > PACKET_BYTES:
            return f"command and environment take {len(data)} bytes, {PACKET_BYTES} are allowed; shorten them"
        if self._closed:
            return "the channel to the runner is closed: this node is ending"
        if len(self._waiting) >= MAXIMUM_WAITING:
            return f"{MAXIMUM_WAITING} commands wait for the runner already; try again later"
        self._waiting.append(data)
        self._flush()
        return ""

    def _flush(self) -> None:
        while self._waiting:
            try:
                self._end.send(self._waiting[0])
            except BlockingIOError:
                self._loop.add_writer(self._end, self._flush)
                return
            except OSError:
                self.close()
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._end)

    def _readable(self) -> None:
        """Take in what the runner tells; the rest in the next turn of the loop, once this one has taken its time."""
        end_s = self._loop.time() + _SECONDS_A_TURN
        for number in range(_PACKETS_A_TURN):
            if number and self._loop.time() >= end_s:
                return
            try:
                data = self._end.recv(PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            if self._take(json.loads(data)):
                # What follows the inventory must wait until its reader is ready for it.
                self._loop.remove_reader(self._end)
                self._loop.call_soon(self._listen_again)
                return

    def _listen_again(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._end, self._readable)

    def _take(self, packet: dict[str, Any]) -> bool:
        """Act on a packet; whether it completed the inventory."""
        match packet:
            case {"say": "finished", "service": str(service)} if self._is_early and service.startswith(FENCE_CALL):
                pass  # of an earlier daemon
            case {"say": "finished", "action": "act"} if self._is_early:
                self.acts_ended_early.append(_command_state({**packet, "finished": True}))
            case {"say": "finished"}:
                if self._inventory is None or self._inventory.done():
                    self._on_finished(_command_state({**packet, "finished": True}))
            case {"say": "ended"} if self._on_ended:
                ended = CommandEnded(*(packet[name] for name in CommandEnded._fields))
                if self._is_early:
                    self.ended_early.append(ended)
                else:
                    self._on_ended(ended)
            case {"say": "exited"} if self._on_exited and (self._inventory is None or self._inventory.done()):
                self._on_exited(ProgramExited(*(packet[name] for name in ProgramExited._fields)))
            case {"say": "waiting", "named": [*named], "count": int(count)} if self._on_waiting:
                self._on_waiting(PlacesOfRunner(tuple(_waiting(*each) for each in named), count))
            case {"say": "wrote", "service": str(service), "text": str(text), "omitted": int(omitted)} if self.on_wrote:
                self.on_wrote(service, text, omitted)
            case {"say": "output", "request": int(request), "output": output, "status": status}:
                future = self._outputs.get(request)
                if future is not None and not future.done():
                    future.set_result(Output(output, status))
            case {"say": "inventory", "request": self._request, "commands": [*commands], "last": last}:
                for command in commands:
                    self._take_command(command)
                if last and self._inventory is not None and not self._inventory.done():
                    self._inventory.set_result(tuple(self._commands.values()))
                    return True
            case {"say": "refused", "detail": detail} if self._trouble:
                self._trouble(f"the runner refused a request: {detail}")
        return False

    @property
    def _is_early(self) -> bool:
        """Whether the daemon is still on its way up: it has not heard the inventory that it asks for first."""
        return self._inventory is None or not self._inventory.done()

    def _take_command(self, command: dict[str, Any]) -> None:
        state = _command_state(command)
        if state.action == "act" and state.service.startswith(FENCE_CALL):
            self.fence_calls_at_work.append((state.service, state.generation))
            return
        if state.action == "act":
            self.acts_at_work.add(state.generation)
            return
        self._commands[state.service, state.action == "notify"] = state
        if "exited" in command:
            found = {"service": state.service, **command["exited"]}
            self.exited[state.service] = ProgramExited(*(found[name] for name in ProgramExited._fields))


def _problem(command: RunCommand) -> str:
    """Why no runner would take the command, in words: one of an older image says so to nobody who waits (P6.31)."""
    if any("\0" in word for word in command.command):
        return "refused: its command holds a NUL character; correct the service"
    for name, value in command.environment.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            return f"refused: no process can be given {name!r}, or the value that its environment gives it"
    return ""


def _waiting(kind: str, name: str, taken: int, places: int, by: str, since_us: int) -> AwaitedHere:
    return AwaitedHere(since_us, PlaceAwaited(kind, name, "", 0, taken, places, by))


def _command_state(packet: Mapping[str, object]) -> CommandState:
    return CommandState(
        service=str(packet["service"]),
        generation=int(str(packet["generation"])),
        action=str(packet["action"]),
        finished=packet["finished"] is True,
        succeeded=packet["succeeded"] is True,
        detail=str(packet["detail"]),
        left=packet.get("left", True) is not False,  # a runner of an older image does not say
        status=int(str(packet.get("status", NO_STATUS))),
    )
