"""What the runner knows of service commands: requests, runs, jobs (SPEC 6.6, 7.7); the rules are in `core/launching/`.

A request names its service and what the command is for:

    start, stop, recovery   the service's own commands: one at a time, a newer generation replaces an older one
    notify                  a command about a service that does not run here; it has a place of its own beside these
    act                     an action function of an event (SPEC 5.2); each is alone, and is forgotten when it has ended
"""

import errno
import json
import os
import signal
from collections.abc import Iterable, Iterator

from muster.core.launching.job import Progress
from muster.core.launching.ledger import DETAIL_CHARACTERS, NO_STATUS, Exited, LedgerEntry, Result
from muster.drivers.image.process_tree import explain_status
from muster.drivers.image.readiness import MAXIMUM_EXTENSION_US, Condition, Conditions
from muster.drivers.image.service_surroundings import LIMITS, UNLIMITED, Surroundings
from muster.records.units import US_PER_MS

OUTPUT_CHARACTERS = 2000  # of what a command wrote, for the history
GRACE_MS = 2000  # from SIGTERM to SIGKILL where the request does not say
MAXIMUM_NAME_CHARACTERS = 255
MAXIMUM_RETRIES = 1000
_SIGNALS = {each.name: each for each in signal.Signals}
ACTIONS = ("start", "stop", "recovery", "notify", "act")
LACKING = "cannot be executed: this node does not have what its definition names"


class RequestRefused(ValueError):
    """A packet from the daemon that is no valid request; the message says why."""


class Request:
    """A checked `run` request."""

    __slots__ = (
        "action", "command", "environment", "extend_limit_ms", "final", "follows", "generation", "grace_ms",
        "is_program", "ready", "retries", "retry_pause_ms", "service", "stop_signal", "surroundings", "timeout_ms",
        "uid",
    )  # fmt: skip

    def __init__(self, packet: dict[str, object]) -> None:
        """Take the request out of a packet. Raises `RequestRefused`."""
        self.service = text(packet, "service")
        if len(self.service) > MAXIMUM_NAME_CHARACTERS:
            raise RequestRefused(
                f"run: a name of {len(self.service)} characters; {MAXIMUM_NAME_CHARACTERS} are allowed"
            )
        self.action = text(packet, "action")
        self.uid = number(packet, "uid", 0)
        self.generation = number(packet, "generation", 1)
        self.timeout_ms = number(packet, "timeout_ms", 1)
        self.grace_ms = number(packet, "grace_ms", 1, GRACE_MS)
        self.retries = min(number(packet, "retries", 0, 0), MAXIMUM_RETRIES)
        self.retry_pause_ms = number(packet, "retry_pause_ms", 0, 0)
        if self.action not in ACTIONS:
            raise RequestRefused(f"run: action is {self.action!r}; it must be one of {', '.join(ACTIONS)}")
        environment = variables(packet.get("environment"), f"run {self.service}")
        self.command = words(packet.get("command"), f"run {self.service}: command")
        self.environment: dict[str, str] = environment
        self.is_program = packet.get("program") is True
        if self.is_program and (self.action != "start" or not self.command):
            raise RequestRefused(f"run {self.service}: only a start can have a program, and must name it")
        self.ready = _conditions(packet.get("ready"), self.service)
        self.surroundings = surroundings_in(packet.get("surroundings"), self.service)
        name = packet.get("stop_signal", "")
        self.stop_signal = _SIGNALS.get(str(name), signal.SIGTERM)
        self.follows = packet.get("follows") is True
        self.extend_limit_ms = number(packet, "extend_limit_ms", 0, MAXIMUM_EXTENSION_US // US_PER_MS)
        self.final = _statuses(packet.get("final", []), self.service)

    @property
    def is_cleanup(self) -> bool:
        """Whether it clears the machine of a start of before, and tells the service nothing (P6.32)."""
        return self.environment.get("MUSTER_ACTION") == "cleanup"


def surroundings_in(packet: object, service: str) -> Surroundings:
    """What a command is to begin with (P8.19). Raises `RequestRefused`."""
    if packet is None:
        return Surroundings()
    if not isinstance(packet, dict):
        raise RequestRefused(f"run {service}: surroundings must be an object")
    plain = Surroundings()
    texts = [packet.get(key, getattr(plain, key)) for key in ("user", "group", "directory", "environment_file")]
    limits, umask = packet.get("limits", []), packet.get("umask", plain.umask)
    if (
        not all(isinstance(each, str) and "\0" not in each for each in texts)
        or type(umask) is not int
        or not 0 <= umask <= 0o777
    ):
        raise RequestRefused(f"run {service}: surroundings must be texts, and umask a number")
    if not isinstance(limits, list) or not all(_is_limit(each) for each in limits):
        raise RequestRefused(f"run {service}: surroundings.limits must name known limits")
    user, group, directory, file = texts
    return Surroundings(user, group, directory, umask, tuple((str(a), str(b)) for a, b in limits), file)


def _is_limit(pair: object) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] not in LIMITS or not isinstance(pair[1], str):
        return False
    return all(each == UNLIMITED or (each.isascii() and each.isdecimal()) for each in pair[1].split(":")[:2])


def _conditions(packet: object, service: str) -> Conditions:
    if packet is None:
        return Conditions()
    if not isinstance(packet, dict):
        raise RequestRefused(f"run {service}: ready must be an object")
    command = words(packet.get("command", []), f"run {service}: ready.command")
    port, file = number(packet, "port", 0, 0), packet.get("file", "")
    if port > 65_535 or not isinstance(file, str) or "\0" in file:
        raise RequestRefused(f"run {service}: ready.port must be at most 65535, ready.file a path")
    return Conditions(command, port, file, packet.get("notify") is True)


def _statuses(value: object, service: str) -> frozenset[int]:
    if not isinstance(value, list) or not all(type(status) is int and 0 <= status <= 255 for status in value):
        raise RequestRefused(f"run {service}: final must be a list of exit statuses")
    return frozenset(value)


def words(value: object, what: str) -> tuple[str, ...]:
    """A command in a packet. Raises `RequestRefused`."""
    if not isinstance(value, list) or not all(isinstance(word, str) and "\0" not in word for word in value):
        raise RequestRefused(f"{what} must be a list of texts without NUL characters")
    return tuple(value)


def variables(value: object, what: str) -> dict[str, str]:
    """An environment in a packet. Raises `Refused`."""
    if not isinstance(value, dict) or not all(_is_variable(*item) for item in value.items()):
        raise RequestRefused(f"{what}: environment must map names without '=' to texts without NUL characters")
    return value


def _is_variable(name: object, value: object) -> bool:
    texts = isinstance(name, str) and isinstance(value, str)
    return texts and name != "" and "=" not in str(name) and "\0" not in f"{name}{value}"


def text(packet: dict[str, object], key: str) -> str:
    """A text in a packet. Raises `RequestRefused`."""
    value = packet.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise RequestRefused(f"run: {key} is {value!r}; it must be a text")
    return value


def number(packet: dict[str, object], key: str, lowest: int, otherwise: int | None = None) -> int:
    """A number in a packet, `otherwise` where there is none. Raises `RequestRefused`."""
    value = packet.get(key, otherwise)
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise RequestRefused(
            f"{packet.get('do', 'ready')}: {key} is {value!r}; it must be a number of at least {lowest}"
        )
    return value


class Run:
    """One command and everything it started, from its keeper's fork until the keeper is reaped."""

    __slots__ = (
        "attempt", "cannot_execute", "condition", "executed_us", "follows", "generation", "has_left", "helped_only",
        "is_lacking", "is_supervised", "keeper", "last_status", "launched_us", "omitted", "output_fd", "service",
        "status", "status_fd", "tail", "unsaid",
    )  # fmt: skip

    def __init__(self, generation: int, attempt: int, keeper: int, status_fd: int, output_fd: int, now_us: int) -> None:
        self.generation, self.attempt, self.keeper = generation, attempt, keeper
        self.status_fd, self.output_fd = status_fd, output_fd  # -1 once closed
        self.launched_us = now_us
        self.executed_us: int | None = None  # of a program: when it was executed
        self.status: int | None = None  # wait status of the command itself, once it has ended
        self.cannot_execute = 0  # errno
        self.is_lacking = False  # not begun: this machine has not what the definition names; its output says what
        self.has_left = False  # the command has ended and left something running
        self.tail = bytearray()
        self.service = ""  # whose output is kept; empty: nobody's, as of a probe
        self.unsaid = bytearray()  # what it has written and the daemon has not been told
        self.omitted = 0  # bytes before that for which there was no room
        self.condition: Condition | None = None  # of a program: when it is ready
        self.is_supervised = False  # a program that is ready: its end is a failure of its service
        self.follows = False  # what it has left running goes on for it: the end of that is the end of it
        self.last_status: int | None = None  # wait status of the last process that it had left, if the keeper said so
        self.helped_only = False  # what it had left looks like helpers, not like a daemon (`keeper.py`)

    @property
    def goes_on(self) -> bool:
        """Whether what a program has left goes on for it: it ended as it wanted to, and is followed (P8.18)."""
        return self.follows and self.status == 0 and self.has_left and self.last_status is None

    def output(self) -> str:
        """The end of what it wrote, for the history."""
        return self.tail.decode(errors="replace").strip()[-OUTPUT_CHARACTERS:]


def result_packet(result: Result, with_state: bool) -> dict[str, object]:
    """A result as in a packet to the daemon."""
    described: dict[str, object] = {"generation": result.generation, "action": result.action}
    if with_state:
        described["finished"] = result.finished
    found = {"succeeded": result.succeeded, "detail": result.detail, "left": result.left, "status": result.status}
    return {**described, **found}


def exit_of(run: Run, at_us: int) -> Exited:
    """The end of a run, as it is remembered and told."""
    status, code = _end_of(run)
    return Exited(run.generation, status, code, run.output(), at_us)


def _end_of(run: Run) -> tuple[str, int]:
    """How a run has ended, in words, and its exit status."""
    own = run.status if run.status is not None else signal.SIGKILL
    if not run.has_left:
        return explain_status(own), exit_status(own)
    ended = f"{explain_status(own)} and " if run.is_supervised else ""
    if run.last_status is None:
        return f"{ended}left processes running, and its keeper was killed", NO_STATUS
    words = f"{ended}left processes running, the last of which {explain_status(run.last_status)}"
    return words, exit_status(run.last_status)


def exit_status(status: int) -> int:
    """The exit status in a wait status; `NO_STATUS` of what a signal has ended."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else NO_STATUS


class Job(Progress):
    """The request that a service works on, and how far it is."""

    __slots__ = ("activity", "probe", "request", "run")

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.request = request
        self.run: Run | None = None
        self.activity: dict[tuple[int, int], tuple[bytes, ...]] | None = None  # of the service, before its stop command
        self.probe: Run | None = None  # the ready command of the program

    @property
    def asks_with(self) -> signal.Signals:
        """The signal with which its ladders ask what is to end."""
        return self.request.stop_signal if self.request.action == "stop" else signal.SIGTERM


class Service(LedgerEntry):
    """All that the runner knows of one service, or of one place beside a service."""

    __slots__ = ("job", "runs", "strays")

    def __init__(self, name: str, place: str) -> None:
        super().__init__(name, place)
        self.job: Job | None = None
        self.runs: list[Run] = []
        self.strays: set[int] = set()  # children of the runner whose keeper was killed

    def is_idle(self) -> bool:
        """Whether nothing runs and nothing is to be done."""
        return super().is_idle() and not self.runs and not self.strays


def with_tail(cause: str, run: Run) -> str:
    """The cause of a failure and the end of the output, within `DETAIL_CHARACTERS`."""
    found = run.tail.decode(errors="replace").strip()
    if not found:
        return f"{cause}; it wrote nothing"
    room = DETAIL_CHARACTERS - len(cause) - len("; it wrote: ...")
    return f"{cause}; it wrote: {found if len(found) <= room else '...' + found[-room:]}"


def explain_missing(program: str, error: int) -> str:
    """Why a command could not be executed, and what to do."""
    advice = {
        errno.ENOENT: "install it on this node, or correct its path (of a script also the first line's)",
        errno.EACCES: "make it executable (chmod +x) for the user of the node",
        errno.ENOEXEC: "begin the script with a line such as #!/bin/sh",
        errno.E2BIG: "shorten its arguments and environment",
    }
    return f"cannot execute {program}: {os.strerror(error)}; {advice.get(error, 'correct the service')}"


_FOREGROUND = "a program given as `run` must stay in the foreground, or needs `forking = true`"


def failure_of(run: Run, request: Request, missing: str) -> str:
    """Why an attempt that is over has not succeeded; nothing where it has."""
    if run.cannot_execute:
        return explain_missing(request.command[0], run.cannot_execute)
    if run.is_lacking:
        return with_tail(LACKING, run)
    works = run.status is None or run.goes_on if request.is_program else run.status == 0
    if run.condition is not None and works:
        if not missing:
            return ""
        within = "the time that it had asked for" if run.condition.extended_us else f"{request.timeout_ms} ms"
        return with_tail(f"was not ready within {within}: {missing}", run)
    if run.status is None:
        return with_tail(f"did not end within {request.timeout_ms} ms", run)
    if run.condition is not None and request.is_program:
        advice = _FOREGROUND if run.status == 0 and not run.follows else ""
        return with_tail("; ".join(filter(None, (f"{explain_status(run.status)} before it was ready", advice))), run)
    return with_tail(explain_status(run.status), run) if run.status else ""


def inventory_of(services: Iterable[Service], limit_bytes: int) -> Iterator[dict[str, object]]:
    """What is known of all commands, in parts of about that size; the last one says so."""
    part: list[dict[str, object]] = []
    highest: dict[str, int] = {}
    size = 0
    for service in services:
        command = {"service": service.name, **result_packet(service.result, with_state=True)}
        if service.exited is not None:
            command["exited"] = service.exited._asdict()
        length = len(json.dumps(command)) + len(json.dumps(service.name)) + 32
        if part and size + length > limit_bytes:
            yield {"last": False, "commands": part, "highest": highest}
            part, highest, size = [], {}, 0
        part.append(command)
        if not service.is_apart:
            highest[service.name] = service.result.generation
        size += length
    yield {"last": True, "commands": part, "highest": highest}
