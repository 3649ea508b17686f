"""The runner: parent of all service commands of a node; outlives the daemon (SPEC 7.3, 7.7, 6.6).

Theory of operation. One small loop. Per service it knows the highest generation ever asked for, what became of it, and
the live `Run`s: a run is one command with its keeper (see `keeper.py`), alive until nothing of the command is left. A
request with a newer generation becomes the service's `Job`, which goes through phases:

    CLEAR    end what an older generation must not leave: for stop, its command if that still runs; for start and
             recovery, everything of the service
    RUN      the command, until it ends or its time is over (an empty command succeeds at once)
    END      unless a start succeeded: end what is left of the service, SIGTERM, grace, SIGKILL
    done     report, and remember the result

CLEAR and END are the same ladder. A job reports only when the ladder has found everything gone, or that something does
not go even after SIGKILL, which is a failure. A newer request replaces the job at any phase; the replaced one is
reported as cancelled when the new one has cleared.

Channel to the daemon: SOCK_SEQPACKET, one JSON object a packet of at most `PACKET_BYTES` (both ends ask for a send
buffer of four times that, and the kernel's default holds three). The daemon's end is kept open by init across restarts.

    {"do": "run", "service", "uid", "generation", "action", "command": [...], "timeout_ms", "environment": {...}}
    {"do": "inventory", "request": N}
    {"say": "finished", "service", "generation", "action", "succeeded", "detail"}
    {"say": "inventory", "request": N, "last": BOOL, "highest": {service: generation},
     "commands": [{"service", "generation", "action", "finished", "succeeded", "detail"}, ...]}   one or more packets
    {"say": "refused", "detail"}   a packet that is no request

The runner holds its result until the daemon's end has room; while `OUTBOX_LIMIT` results wait it reads no requests.
"""

import errno
import gc
import json
import os
import resource
import select
import signal
import socket
from collections import deque
from typing import NoReturn

from muster.core.lease import US_PER_MS
from muster.drivers.deadman import LEASH_SIGNAL, Leash, adopt_orphans, boottime_us, set_process_name
from muster.drivers.keeper import Launch, spawn_keeper
from muster.drivers.process_tree import (
    descendants,
    drain,
    end_everything_below,
    explain_status,
    only_wake,
    read_environment,
    read_name,
    read_parents,
    send,
)

PACKET_BYTES = 64 * 1024
SEND_BUFFER_BYTES = 4 * PACKET_BYTES
OUTBOX_LIMIT = 256
TAIL_BYTES = 8 * 1024  # of a command's output, kept in memory
DETAIL_CHARACTERS = 1000  # of a result, of which the tail of the output gets what the cause leaves
GRACE_MS = 2000  # from SIGTERM to SIGKILL, for a command that is late or cancelled and for what a failed start left
LEFTOVER_GRACE_MS = 5000  # the same, for what a stop command left; without a stop command it is the stop's time limit
KILL_BOUND_MS = 10_000  # processes that are still there so long after SIGKILL hang in the kernel
MAXIMUM_SERVICES = 16_384
MAXIMUM_STARTS = 32  # start commands at work at once; the others wait for their turn, stops and recoveries never
MAXIMUM_NAME_CHARACTERS = 255
MAXIMUM_OPEN_FILES = 65_536
MAXIMUM_CANCELLED = 16
_KILL_AGAIN_MS = 20
_READ_BYTES = 64 * 1024
_READS_A_TURN = 4
_FINAL_READS = 64  # of what a command wrote before it ended: more than a pipe holds
_INVENTORY_BYTES = PACKET_BYTES // 2
_SWEEP_US = 10_000_000
ACTIONS = ("start", "stop", "recovery")
_CLEAR, _RUN, _END = "clear", "run", "end"


class Refused(ValueError):
    """A packet from the daemon that is no valid request; the message says why."""


class Request:
    """A checked `run` request."""

    __slots__ = ("action", "command", "environment", "generation", "service", "timeout_ms", "uid")

    def __init__(self, packet: dict[str, object]) -> None:
        """Take the request out of a packet. Raises `Refused`."""
        self.service = _text(packet, "service")
        if len(self.service) > MAXIMUM_NAME_CHARACTERS:
            raise Refused(f"run: a name of {len(self.service)} characters; {MAXIMUM_NAME_CHARACTERS} are allowed")
        self.action = _text(packet, "action")
        self.uid = _number(packet, "uid", 0)
        self.generation = _number(packet, "generation", 1)
        self.timeout_ms = _number(packet, "timeout_ms", 1)
        if self.action not in ACTIONS:
            raise Refused(f"run: action is {self.action!r}; it must be one of {', '.join(ACTIONS)}")
        command, environment = packet.get("command"), packet.get("environment")
        if not isinstance(command, list) or not all(isinstance(word, str) and "\0" not in word for word in command):
            raise Refused(f"run {self.service}: command must be a list of texts without NUL characters")
        if not isinstance(environment, dict) or not all(_is_variable(*item) for item in environment.items()):
            raise Refused(f"run {self.service}: environment must map names without '=' to texts without NUL characters")
        self.command: tuple[str, ...] = tuple(command)
        self.environment: dict[str, str] = environment


def _is_variable(name: object, value: object) -> bool:
    texts = isinstance(name, str) and isinstance(value, str)
    return texts and name != "" and "=" not in str(name) and "\0" not in f"{name}{value}"


def _text(packet: dict[str, object], key: str) -> str:
    value = packet.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise Refused(f"run: {key} is {value!r}; it must be a text")
    return value


def _number(packet: dict[str, object], key: str, lowest: int) -> int:
    value = packet.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise Refused(f"{packet.get('do')}: {key} is {value!r}; it must be a number of at least {lowest}")
    return value


class Run:
    """One command and everything it started, from its keeper's fork until the keeper is reaped."""

    __slots__ = ("cannot_execute", "generation", "keeper", "output_fd", "status", "status_fd", "tail")

    def __init__(self, generation: int, keeper: int, status_fd: int, output_fd: int) -> None:
        self.generation, self.keeper = generation, keeper
        self.status_fd, self.output_fd = status_fd, output_fd  # -1 once closed
        self.status: int | None = None  # wait status of the command itself, once it has ended
        self.cannot_execute = 0  # errno
        self.tail = bytearray()


class Result:
    """What became of one generation's command."""

    __slots__ = ("action", "detail", "finished", "generation", "succeeded")

    def __init__(self, generation: int, action: str) -> None:
        self.generation, self.action = generation, action
        self.finished = self.succeeded = False
        self.detail = ""

    def finish(self, succeeded: bool, detail: str) -> None:
        """Record the end of the command."""
        self.finished, self.succeeded, self.detail = True, succeeded, detail[:DETAIL_CHARACTERS]


class Job:
    """The request that a service works on, and how far it is."""

    __slots__ = ("cancelled", "failure", "kill_us", "killing", "phase", "request", "run", "wake_us")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.cancelled: list[Result] = []  # older requests that this one replaced, to be reported once cleared
        self.phase = ""
        self.run: Run | None = None
        self.failure: str | None = None  # why it will be reported as failed
        self.kill_us = 0  # when the ladder of the present phase goes on to SIGKILL
        self.killing = False
        self.wake_us = 0  # when to look at it again, whatever happens


class Service:
    """All that the runner knows of one service."""

    __slots__ = ("job", "name", "result", "runs", "strays")

    def __init__(self, name: str) -> None:
        self.name = name
        self.result = Result(0, "")  # of the highest generation ever asked for
        self.job: Job | None = None
        self.runs: list[Run] = []
        self.strays: set[int] = set()  # children of the runner whose keeper was killed

    def is_idle(self) -> bool:
        """Whether nothing runs and nothing is to be done."""
        return self.job is None and not self.runs and not self.strays


class Runner:
    """The loop. `guard` takes pulses; `daemon` is the channel of the module's text."""

    def __init__(
        self,
        guard: socket.socket,
        daemon: socket.socket,
        leash: Leash,
        pulse_ms: int,
        base_environment: dict[str, str],
    ) -> None:
        self._guard, self._daemon, self._leash = guard, daemon, leash
        self._pulse_us = pulse_ms * US_PER_MS
        self._next_pulse_us = 0
        self._starts = 0  # start commands at work
        self._environment = base_environment
        self._services: dict[str, Service] = {}
        self._forgotten_generation = 0  # highest generation of a service that was dropped from memory
        self._keepers: dict[int, tuple[Service, Run]] = {}
        self._readers: dict[int, tuple[Service, Run]] = {}
        self._working: dict[str, Service] = {}  # services with a job
        self._outbox: deque[bytes] = deque()
        self._epoll = select.epoll()
        self._wake_read, self._wake_write = os.pipe()
        self._parents: dict[int, int] | None = None  # of this turn of the loop
        self._orphaned = False
        self._open_files = resource.getrlimit(resource.RLIMIT_NOFILE)

    def prepare(self) -> None:
        """Signals, descriptors and limits of this process."""
        for descriptor in (self._wake_read, self._wake_write, self._guard.fileno(), self._daemon.fileno()):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, only_wake)
        signal.signal(LEASH_SIGNAL, self._on_orphaned)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD, LEASH_SIGNAL))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)  # only the guard and init decide when the runner ends
        # Each live service has two descriptors here; its commands get the limits that the runner itself was given.
        hard = self._open_files[1]
        wanted = MAXIMUM_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAXIMUM_OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, self._open_files[0]), hard))
        self._daemon.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._epoll.register(self._daemon.fileno(), select.EPOLLIN)

    def _on_orphaned(self, _number: int, _frame: object) -> None:
        self._orphaned = True

    def loop(self) -> NoReturn:
        """Serve until the node ends."""
        while True:
            if self._orphaned or (self._leash.is_tree and self._leash.is_over()):
                end_everything_below(boottime_us() + _SWEEP_US, boottime_us)
                os._exit(1)
            self._pulse_if_due()
            wake_us = min(
                [self._next_pulse_us, *(service.job.wake_us for service in self._working.values() if service.job)]
            )
            ready = self._epoll.poll(max(0.0, (wake_us - boottime_us()) / 1e6))
            self._parents = None
            for descriptor, mask in ready:
                self._serve(descriptor, mask)
            self._reap()
            self._parents = None
            self._starts = self._starts_at_work()
            for service in list(self._working.values()):
                self._advance(service, boottime_us())
                self._pulse_if_due()  # each may fork, and there may be thousands
            self._flush()

    def _pulse_if_due(self) -> None:
        now_us = boottime_us()
        if now_us >= self._next_pulse_us:
            self._pulse()
            self._next_pulse_us = now_us + self._pulse_us

    def _pulse(self) -> None:
        try:
            self._guard.send(b"pulse", socket.MSG_DONTWAIT)
        except BlockingIOError:
            return  # the guard is late itself; it reads what is queued before it judges
        except OSError:
            self._orphaned = True

    def _serve(self, descriptor: int, mask: int) -> None:
        if descriptor == self._wake_read:
            drain(descriptor)
        elif descriptor == self._daemon.fileno():
            # Init keeps the other end open for as long as the node lives.
            self._orphaned = self._orphaned or bool(mask & select.EPOLLHUP)
            self._receive()
        elif descriptor in self._readers:
            _service, run = self._readers[descriptor]
            if descriptor == run.status_fd:
                self._read_status(run)
            else:
                self._read_output(run, _READS_A_TURN)

    # --- the daemon's channel ---

    def _receive(self) -> None:
        for _ in range(OUTBOX_LIMIT):
            if len(self._outbox) >= OUTBOX_LIMIT:
                return
            try:
                data, _ancillary, flags, _address = self._daemon.recvmsg(PACKET_BYTES)
            except BlockingIOError:
                return
            if not data:
                return
            self._pulse_if_due()
            try:
                if flags & socket.MSG_TRUNC:
                    raise Refused(f"a packet is longer than {PACKET_BYTES} bytes; shorten the command or environment")
                self._handle(data)
            except Refused as refusal:
                self._say({"say": "refused", "detail": str(refusal)[:DETAIL_CHARACTERS]})

    def _handle(self, data: bytes) -> None:
        try:
            packet = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Refused(f"a packet is not JSON: {error}") from None
        what = packet.get("do") if isinstance(packet, dict) else None
        if what == "run":
            self._accept(Request(packet))
        elif what == "inventory":
            self._say_inventory(_number(packet, "request", 0))
        else:
            raise Refused(f"a packet asks for {what!r}; known are 'run' and 'inventory'")

    def _say(self, packet: dict[str, object]) -> None:
        self._outbox.append(json.dumps(packet).encode())

    def _say_finished(self, name: str, result: Result) -> None:
        self._say({"say": "finished", "service": name, **_describe(result, with_state=False)})

    def _say_inventory(self, request: object) -> None:
        """Every service's result, in as many packets as it takes (SPEC 7.7)."""
        part: list[dict[str, object]] = []
        highest: dict[str, int] = {}
        size = 0
        for name, service in self._services.items():
            command = {"service": name, **_describe(service.result, with_state=True)}
            length = len(json.dumps(command)) + len(json.dumps(name)) + 32
            if part and size + length > _INVENTORY_BYTES:
                self._say_part(request, part, highest, last=False)
                part, highest, size = [], {}, 0
            part.append(command)
            highest[name] = service.result.generation
            size += length
        self._say_part(request, part, highest, last=True)

    def _say_part(self, request: object, part: list[dict[str, object]], highest: dict[str, int], last: bool) -> None:
        self._say({"say": "inventory", "request": request, "last": last, "commands": part, "highest": highest})

    def _flush(self) -> None:
        while self._outbox:
            try:
                self._daemon.send(self._outbox[0])
            except BlockingIOError:
                break
            except OSError:
                self._orphaned = True
                return
            self._outbox.popleft()
        reading = select.EPOLLIN if len(self._outbox) < OUTBOX_LIMIT else 0
        self._epoll.modify(self._daemon.fileno(), reading | (select.EPOLLOUT if self._outbox else 0))

    # --- requests ---

    def _accept(self, request: Request) -> None:
        """Make the request its service's job, or answer from memory, or refuse it (SPEC 7.7)."""
        service = self._services.get(request.service)
        highest = service.result.generation if service else self._forgotten_generation
        if service and request.generation == highest and request.action == service.result.action:
            if service.result.finished:
                self._say_finished(service.name, service.result)
            return
        if request.generation <= highest:
            refused = Result(request.generation, request.action)
            refused.finish(False, f"refused: generation {request.generation} is not newer than {highest}")
            self._say_finished(request.service, refused)
            return
        if service is None:
            self._forget()
            service = self._services[request.service] = Service(request.service)
        job = Job(request)
        if service.job is not None:
            service.result.finish(False, f"cancelled by generation {request.generation} ({request.action})")
            job.cancelled = [*service.job.cancelled, service.result][-MAXIMUM_CANCELLED:]
        service.result = Result(request.generation, request.action)
        service.job = job
        self._working[service.name] = service
        self._enter_ladder(service, job, _CLEAR, GRACE_MS)

    def _forget(self) -> None:
        """Drop the idle service asked for longest ago when there are too many; no older command is taken afterwards."""
        if len(self._services) < MAXIMUM_SERVICES:
            return
        idle = [service for service in self._services.values() if service.is_idle()]
        if not idle:
            raise Refused(f"run: {MAXIMUM_SERVICES} services run on this node already; no node can hold more")
        oldest = min(idle, key=lambda service: service.result.generation)
        self._forgotten_generation = max(self._forgotten_generation, oldest.result.generation)
        del self._services[oldest.name]

    # --- jobs ---

    def _enter_ladder(self, service: Service, job: Job, phase: str, grace_ms: int) -> None:
        now_us = boottime_us()
        job.phase, job.killing = phase, False
        self._parents = None
        job.kill_us = now_us + grace_ms * US_PER_MS
        job.wake_us = job.kill_us
        self._signal(service, job, signal.SIGTERM)
        self._advance(service, now_us)

    def _doomed(self, service: Service, job: Job) -> tuple[list[Run], set[int]]:
        """The runs and strays that the ladder of the job's phase must see the end of."""
        if job.phase == _CLEAR and job.request.action == "stop":
            return [run for run in service.runs if run.status is None], set()  # the rest is its stop command's work
        return service.runs, service.strays

    def _advance(self, service: Service, now_us: int) -> None:
        job = service.job
        if job is None:
            return
        if job.phase == _RUN:
            self._advance_command(service, job, now_us)
        elif not any(self._doomed(service, job)):
            if job.phase == _CLEAR and job.request.action == "start" and self._starts >= MAXIMUM_STARTS:
                job.wake_us = now_us + self._pulse_us
            else:
                self._ladder_done(service, job)
        elif now_us >= job.wake_us:
            self._kill_again(service, job, now_us)

    def _starts_at_work(self) -> int:
        jobs = [service.job for service in self._working.values()]
        return sum(1 for job in jobs if job and job.phase == _RUN and job.request.action == "start")

    def _kill_again(self, service: Service, job: Job, now_us: int) -> None:
        job.killing = True
        if now_us >= job.kill_us + KILL_BOUND_MS * US_PER_MS:
            left = self._below(*self._doomed(service, job))
            names = ", ".join(f"{pid} ({read_name(pid)})" for pid in left[:5])
            self._finish(service, job, False, f"still there after SIGKILL, so the kernel holds them: {names}")
            return
        self._signal(service, job, signal.SIGKILL)
        job.wake_us = now_us + _KILL_AGAIN_MS * US_PER_MS

    def _ladder_done(self, service: Service, job: Job) -> None:
        for cancelled in job.cancelled:
            self._say_finished(service.name, cancelled)
        job.cancelled = []
        if job.phase == _END:
            killed = "what was left ignored SIGTERM and was killed" if job.killing else ""
            self._finish(service, job, job.failure is None, job.failure or killed)
        elif job.request.command:
            self._launch(service, job)
        elif job.request.action == "stop":
            self._enter_ladder(service, job, _END, job.request.timeout_ms)
        else:
            self._finish(service, job, True, "")

    def _launch(self, service: Service, job: Job) -> None:
        request = job.request
        environment = {
            **self._environment,
            **request.environment,
            "MUSTER_SERVICE": request.service,
            "MUSTER_UID": str(request.uid),
            "MUSTER_GENERATION": str(request.generation),
            "MUSTER_ACTION": request.action,
        }
        launch = Launch(request.service, request.command, environment, self._open_files)
        try:
            run = self._spawn(request.generation, launch)
        except OSError as error:
            advice = "free processes or descriptors of the node"
            job.failure = f"cannot start {request.command[0]}: {error.strerror}; {advice}"
            self._enter_ladder(service, job, _END, GRACE_MS)
            return
        self._starts += request.action == "start"
        service.runs.append(run)
        self._keepers[run.keeper] = self._readers[run.status_fd] = self._readers[run.output_fd] = (service, run)
        self._epoll.register(run.status_fd, select.EPOLLIN)
        self._epoll.register(run.output_fd, select.EPOLLIN)
        job.run, job.phase = run, _RUN
        job.wake_us = boottime_us() + request.timeout_ms * US_PER_MS

    def _spawn(self, generation: int, launch: Launch) -> Run:
        opened: list[int] = []
        try:
            opened += os.pipe()
            opened += os.pipe()
            keeper = spawn_keeper(launch, opened[1], opened[3], self._leash)
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        os.close(opened[1])
        os.close(opened[3])
        os.set_blocking(opened[0], False)
        os.set_blocking(opened[2], False)
        return Run(generation, keeper, opened[0], opened[2])

    def _advance_command(self, service: Service, job: Job, now_us: int) -> None:
        run, request = job.run, job.request
        if run is None:
            raise AssertionError(f"{service.name}: a command runs without a run")
        if run.status is None and now_us < job.wake_us:
            return
        self._read_output(run, _FINAL_READS)
        if run.status is None:
            # Its own ladder would only kill the command; nothing that it started may stay either.
            job.failure = _with_tail(f"did not end within {request.timeout_ms} ms", run)
        elif run.cannot_execute:
            job.failure = _explain_missing(request.command[0], run.cannot_execute)
        elif run.status != 0:
            job.failure = _with_tail(explain_status(run.status), run)
        if request.action == "start" and job.failure is None:
            self._finish(service, job, True, "")
        elif request.action == "stop" and run.status == 0:
            self._enter_ladder(service, job, _END, min(LEFTOVER_GRACE_MS, request.timeout_ms))
        else:
            self._enter_ladder(service, job, _END, GRACE_MS)

    def _finish(self, service: Service, job: Job, succeeded: bool, detail: str) -> None:
        service.job = None
        del self._working[service.name]
        for cancelled in job.cancelled:
            self._say_finished(service.name, cancelled)
        service.result.finish(succeeded, detail)
        self._say_finished(service.name, service.result)

    # --- processes ---

    def _below(self, runs: list[Run], strays: set[int]) -> list[int]:
        if self._parents is None:
            self._parents = read_parents()
        return [*strays, *descendants([*(run.keeper for run in runs), *strays], self._parents)]

    def _signal(self, service: Service, job: Job, number: int) -> None:
        """Signal everything that the job's ladder ends, but keepers only to wake them if they were stopped."""
        runs, strays = self._doomed(service, job)
        if not runs and not strays:
            return
        below = self._below(runs, strays)
        send(below, number)
        send(below, signal.SIGCONT)  # a stopped process ends on SIGTERM only once it runs again
        send((run.keeper for run in runs), signal.SIGCONT)

    def _reap(self) -> None:
        bereaved: list[Service] = []  # whose processes may have become children of the runner
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in self._keepers:
                service, run = self._keepers.pop(pid)
                self._bury(service, run)
                if status != 0:
                    bereaved.append(service)
            else:
                for service in self._services.values():
                    if pid in service.strays:
                        service.strays.discard(pid)
                        bereaved.append(service)  # what it leaves behind has no keeper either
        if bereaved:
            self._adopt_strays(bereaved)

    def _bury(self, service: Service, run: Run) -> None:
        """The keeper has gone: nothing of the run is left, unless the keeper was killed."""
        self._read_status(run)
        self._read_output(run, _FINAL_READS)
        if run.status is None:
            run.status = signal.SIGKILL  # nobody can tell any more how the command ended
        self._close_status(run)
        self._close_output(run)
        service.runs.remove(run)

    def _adopt_strays(self, bereaved: list[Service]) -> None:
        """Children that the runner did not fork had a killed keeper, or descend from such; find whose they are."""
        for pid, parent in read_parents().items():
            if parent != os.getpid() or pid in self._keepers:
                continue
            # Not only among the bereaved: of keepers that died at once, some may not have been reaped yet.
            named = self._services.get(read_environment(pid).get(b"MUSTER_SERVICE", b"").decode(errors="replace"))
            # One without a name may be of each of them, and is theirs even if it was another's before: ended too
            # early rather than never.
            for service in (named,) if named else bereaved:
                service.strays.add(pid)

    def _read_status(self, run: Run) -> None:
        while run.status_fd >= 0:
            try:
                data = os.read(run.status_fd, 256)
            except BlockingIOError:
                return
            if not data:
                self._close_status(run)
                return
            for line in data.split():
                if line[:1] == b"E":
                    run.cannot_execute = int(line[1:]) or errno.EIO
                else:
                    run.status = int(line[1:])

    def _read_output(self, run: Run, reads: int) -> None:
        """Take what the command has written; bounded work a call, bounded memory whatever it writes (SPEC 7.8)."""
        for _ in range(reads):
            if run.output_fd < 0:
                return
            try:
                data = os.read(run.output_fd, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._close_output(run)
                return
            run.tail += data[-TAIL_BYTES:]
            del run.tail[:-TAIL_BYTES]

    def _close_status(self, run: Run) -> None:
        run.status_fd = self._close(run.status_fd)

    def _close_output(self, run: Run) -> None:
        run.output_fd = self._close(run.output_fd)

    def _close(self, descriptor: int) -> int:
        if descriptor >= 0:
            self._epoll.unregister(descriptor)
            del self._readers[descriptor]
            os.close(descriptor)
        return -1


def _describe(result: Result, with_state: bool) -> dict[str, object]:
    described: dict[str, object] = {"generation": result.generation, "action": result.action}
    if with_state:
        described["finished"] = result.finished
    return {**described, "succeeded": result.succeeded, "detail": result.detail}


def _with_tail(cause: str, run: Run) -> str:
    """The cause of a failure and the end of the output, within `DETAIL_CHARACTERS`."""
    text = run.tail.decode(errors="replace").strip()
    if not text:
        return f"{cause}; it wrote nothing"
    room = DETAIL_CHARACTERS - len(cause) - len("; it wrote: ...")
    return f"{cause}; it wrote: {text if len(text) <= room else '...' + text[-room:]}"


def _explain_missing(program: str, number: int) -> str:
    advice = {
        errno.ENOENT: "install it on this node, or correct its path (of a script also the first line's)",
        errno.EACCES: "make it executable (chmod +x) for the user of the node",
        errno.ENOEXEC: "begin the script with a line such as #!/bin/sh",
        errno.E2BIG: "shorten its arguments and environment",
    }
    return f"cannot execute {program}: {os.strerror(number)}; {advice.get(number, 'correct the service')}"


def run_runner(
    guard: socket.socket,
    daemon: socket.socket,
    leash: Leash,
    parent: int,
    pulse_ms: int,
    base_environment: dict[str, str],
) -> NoReturn:
    """Become the runner, in a process freshly forked by `parent`. `guard` and `daemon` are its ends of the channels."""
    set_process_name("muster-runner")
    adopt_orphans()
    runner = Runner(guard, daemon, leash, pulse_ms, base_environment)
    runner.prepare()
    leash.bind(parent)
    gc.freeze()
    gc.enable()
    runner.loop()
