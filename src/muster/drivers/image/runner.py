"""The runner: parent of all service commands of a node; outlives the daemon (SPEC 7.3, 7.7, 6.6).

Theory of operation. One small loop. Per service it knows the highest generation ever asked for, what became of it, and
the live `Run`s: a run is one command with its keeper (see `keeper.py`), alive until nothing of the command is left. A
request with a newer generation becomes the service's `Job`. What decides is in `core/launching/`, which the simulator
runs too: `ledger.py` says what is accepted, refused, remembered and cancelled, `job.py` what follows what in a job,
`turns.py` which starts may begin. Here are processes, pipes and packets.

A job's command runs below a keeper; a program that is to be supervised is at that until it is ready (`readiness.py`).
A job reports only when a ladder has found everything gone, or that something does not go even after SIGKILL, which is
a failure. A supervised program goes on after its start; its end, at any time before the next request, is told and
remembered.

Channel to the daemon: SOCK_SEQPACKET, one JSON object a packet of at most `PACKET_BYTES` (both ends ask for a send
buffer of four times that, and the kernel's default holds three). The daemon's end is kept open by init across restarts.

    {"do": "run", "service", "uid", "generation", "action", "command": [...], "timeout_ms", "environment": {...},
     and where wanted "grace_ms", "retries", "retry_pause_ms", "program": true,
     "ready": {"command": [...], "port": N, "file", "notify": true},
     "surroundings": {"user", "group", "directory", "umask", "limits": [[NAME, VALUE], ...], "environment_file"},
     "stop_signal",   what a stop sends in place of SIGTERM
     "extend_limit_ms",   by how much a program may lengthen its start or stop in all (P8.21)
     "follows": true   what a start leaves running goes on for it (P8.18),
     "final": [N, ...]}   exit statuses after which it is not tried again (P6.38)
    {"do": "cancel", "service", "generation", "action": "act", "reason"}
    {"do": "watcher", "wanted": BOOL}   the built-in watcher process, see `watcher.py`
    {"do": "locks", "command": [...], "environment": {...}, "silence_ms": N}   the lock process (P12.16), see
        `lock_process.py`; without a command: none is wanted
    {"do": "retire"}   take nothing but stops from now on, and answer nothing else, until the node ends (P4.12)
    {"do": "panic"}   the node must stop: end everything, whether or not guard and init do (P7.10)
    {"do": "inventory", "request": N}
    {"do": "output", "request": N, "service"}
    {"say": "finished", "service", "generation", "action", "succeeded", "detail", "status", "left"}   `left`: something
        of it may run; of a stop that failed, whether what its start had begun may (P6.35)
    {"say": "ended", "service", "generation", "action", "attempt", "failure", "status", "duration_ms", "output"}   one
        attempt of a command, for the history only: left out while many packets wait
    {"say": "exited", "service", "generation", "status", "code", "output", "at_us"}   a supervised program, or what a
        start has left; for the history only, as the watcher process is told of it on a channel of its own (see
        `watcher_process.py`)
    {"say": "wrote", "service", "generation", "text", "omitted": BYTES}   to be kept; what is written faster
        than that is told is left out
    {"say": "output", "request": N, "output", "status"}   of what runs now
    {"say": "waiting", "named": [[kind, name, taken, places, by, since_us], ...], "count": N}   what waits for a place
        (P8.12): those that have waited longest, `count` in all; again every second, and when nothing does any more
    {"say": "inventory", "request": N, "last": BOOL, "highest": {service: generation},
     "commands": [{"service", "generation", "action", "finished", "succeeded", "detail", "exited": {...}}, ...]}
        in one or more packets; `exited` of a supervised program that has ended
    {"say": "refused", "detail"}   a packet that is no request; where it names a command, that has failed, and is told
        as `finished` beside it

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

from muster.core.launching import ledger
from muster.core.launching.job import CLEAR, END, KILL_BOUND_MS, PAUSE, QUIT, RUN, Next, Whom
from muster.core.launching.ledger import (
    DETAIL_CHARACTERS,
    MAXIMUM_ACTS,
    MAXIMUM_SERVICES,
    NO_STATUS,
    Exited,
    Ledger,
    Result,
)
from muster.core.launching.turns import MAXIMUM_STARTS, PLACE_MS, Turns, lane_of
from muster.drivers.image.asking import EnvironmentReaders
from muster.drivers.image.commands import (
    OUTPUT_CHARACTERS,
    Job,
    Request,
    RequestRefused,
    Run,
    Service,
    exit_of,
    exit_status,
    failure_of,
    inventory_of,
    number,
    result_packet,
    text,
    variables,
    words,
)
from muster.drivers.image.deadman import LEASH_SIGNAL, Leash, adopt_orphans, boottime_us, set_process_name
from muster.drivers.image.keeper import Launch, spawn_keeper
from muster.drivers.image.lock_process import LockProcess
from muster.drivers.image.looker import start_looker
from muster.drivers.image.process_tree import (
    descendants,
    drain,
    end_everything_below,
    explain_status,
    only_wake,
    read_activity,
    read_name,
    read_parents,
    reaped,
    send,
)
from muster.drivers.image.processes import RUNNER
from muster.drivers.image.readiness import Condition, PortTaken
from muster.drivers.image.runner_packets import PACKET_BYTES, SEND_BUFFER_BYTES
from muster.drivers.image.watcher_packets import MAXIMUM_NAMED
from muster.drivers.image.watcher_process import WatcherProcess
from muster.records.units import NEVER_US, US_PER_MS

OUTBOX_LIMIT = 256
TAIL_BYTES = 8 * 1024  # of a command's output, kept in memory
HELPER_US = 60_000_000  # what a start command leaves for no longer than this may be a helper of it
KEPT_ACTIONS = ("start", "stop", "recovery")  # of a service, whose output is kept
UNSAID_BYTES = 48 * 1024  # of it, before the daemon is told
WRITTEN_BYTES = 8 * 1024  # told at a time: as JSON it may be six times as long
WRITTEN_PIECES = 4  # of one command, in a turn
WRITTEN_PAUSE_US = 150_000  # from one turn to the next
WRITTEN_OUTBOX = 32  # while so many packets wait, no more of that kind
WAITED_US = 1_000_000  # what has waited for a place for so long is told, and so often
MAXIMUM_OPEN_FILES = 65_536
_READ_BYTES = 64 * 1024
_READS_A_TURN = 4
_FINAL_READS = 64  # of what a command wrote before it ended: more than a pipe holds
_INVENTORY_BYTES = PACKET_BYTES // 2
_SWEEP_US = 10_000_000
_ASKED_S = 1.0  # for what the processes of a killed keeper belong to


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
        self._open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._pulse_us = pulse_ms * US_PER_MS
        self._next_pulse_us = 0
        self._turns = Turns(MAXIMUM_STARTS, PLACE_MS)
        self._say_waiting_us = 0  # when it may be told next
        self._has_said_waiting = False
        self._environment = base_environment
        self._ledger = Ledger(Service, MAXIMUM_SERVICES, MAXIMUM_ACTS)
        self._keepers: dict[int, tuple[Service, Run]] = {}
        self._readers: dict[int, tuple[Service, Run]] = {}
        self._lookers: set[int] = set()  # the pids of lookers and of readers, see `looker.py` and `asking.py`
        self._outbox: deque[bytes] = deque()
        self._unsaid: dict[int, Run] = {}  # by identity: runs whose output is to be told
        self._say_written_us = NEVER_US
        self._watcher = WatcherProcess(leash, base_environment, self._exit_of)
        self._locks = LockProcess(base_environment)
        self._epoll = select.epoll()
        self._wake_read, self._wake_write = os.pipe()
        self._parents: dict[int, int] | None = None  # of this turn of the loop
        self._orphaned = False

    def prepare(self) -> None:
        """Signals, descriptors and limits of this process."""
        for descriptor in (self._wake_read, self._wake_write, self._guard.fileno(), self._daemon.fileno()):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, only_wake)
        signal.signal(LEASH_SIGNAL, self._on_orphaned)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD, LEASH_SIGNAL))
        for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(caught, signal.SIG_IGN)  # only the guard and init decide when the runner ends
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
            if self._leash.is_over() or self._orphaned:
                end_everything_below(boottime_us() + _SWEEP_US, boottime_us)
                os._exit(1)
            self._pulse_if_due()
            wake_us = min(
                self._next_pulse_us,
                self._say_written_us,
                self._leash.deadline_us(),
                self._locks.wake_us,
                *(service.job.wake_us for service in self._ledger.working.values() if service.job),
            )
            ready = self._epoll.poll(max(0.0, (wake_us - boottime_us()) / 1e6))
            self._parents = None
            for descriptor, mask in ready:
                self._serve(descriptor, mask)
            self._reap()
            self._parents = None
            self._count_starts(boottime_us())
            for service in list(self._ledger.working.values()):
                self._advance(service, boottime_us())
                self._pulse_if_due()  # each may fork, and there may be thousands
            self._watcher.keep_running(boottime_us(), self._epoll)
            self._locks.keep_running(boottime_us(), self._epoll)
            self._say_waiting(boottime_us())
            self._say_written(boottime_us())
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
        elif descriptor == self._watcher.descriptor:
            self._watcher.serve()
        elif descriptor == self._locks.descriptor:
            self._locks.serve(boottime_us())
        elif descriptor in self._readers:
            service, run = self._readers[descriptor]
            if descriptor == run.status_fd:
                self._read_status(run)
                self._note_exit(service)
                self._look_again(service)
            elif descriptor == run.output_fd:
                self._read_output(run, _READS_A_TURN)
            elif run.condition is not None and descriptor == run.condition.looker_fd:
                self._hear_looker(service, run.condition)
            elif run.condition is not None:
                run.condition.receive(run.keeper, boottime_us(), in_namespace=not self._leash.is_tree)
                if service.job is not None:
                    service.job.lengthen(run.condition.extended_us, is_its_own=service.job.run is run)
                self._look_again(service)

    def _look_again(self, service: Service) -> None:
        """What a program's start waits for may have come."""
        job = service.job
        if job is not None and job.phase == RUN and job.run is not None and job.run.condition is not None:
            job.wake_us = 0

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
                    raise RequestRefused(
                        f"a packet is longer than {PACKET_BYTES} bytes; shorten the command or environment"
                    )
                self._handle(data)
            except RequestRefused as refusal:
                self._say({"say": "refused", "detail": str(refusal)[:DETAIL_CHARACTERS]})

    def _handle(self, data: bytes) -> None:
        try:
            packet = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RequestRefused(f"a packet is not JSON: {error}") from None
        what = packet.get("do") if isinstance(packet, dict) else None
        if what == "run":
            try:
                self._accept(Request(packet))
            except RequestRefused as refusal:
                self._fail_refused(packet, str(refusal))
                raise
        elif what == "cancel":
            act = self._ledger.act_at_work(text(packet, "service"), number(packet, "generation", 1))
            if act is not None:
                self._cancel(act, text(packet, "reason"))
        elif what == "watcher":
            self._watcher.want(packet.get("wanted") is True)
        elif what == "locks":
            command, environment = words(packet.get("command"), "locks"), packet.get("environment")
            self._locks.want(command, variables(environment, "locks"), number(packet, "silence_ms", 1))
        elif what == "retire":
            self._ledger.retire()
        elif what == "panic":
            self._orphaned = True
        elif what == "inventory":
            self._say_inventory(number(packet, "request", 0))
        elif what == "output":
            self._say_output(number(packet, "request", 0), text(packet, "service"))
        else:
            known = "'run', 'cancel', 'watcher', 'locks', 'retire', 'panic', 'inventory' and 'output'"
            raise RequestRefused(f"a packet asks for {what!r}; known are {known}")

    def _say(self, packet: dict[str, object]) -> None:
        self._outbox.append(json.dumps(packet).encode())

    def _say_finished(self, name: str, result: Result) -> None:
        self._say({"say": "finished", "service": name, **result_packet(result, with_state=False)})

    def _say_ended(self, service: Service, action: str, run: Run, failure: str) -> None:
        """For the history: nobody waits for it, so it never holds up what somebody does wait for."""
        if len(self._outbox) < OUTBOX_LIMIT // 2:
            status = failure or "is ready" if run.status is None else explain_status(run.status)
            duration_ms = (boottime_us() - run.launched_us) // US_PER_MS
            self._say(
                {
                    "say": "ended", "service": service.name, "generation": run.generation, "action": action,
                    "attempt": run.attempt, "failure": failure, "status": status,
                    "duration_ms": duration_ms, "output": run.output(),
                }
            )  # fmt: skip

    def _say_killed(self, service: Service, job: Job, status: str) -> None:
        """For the history: a stop that needed SIGKILL, which may have lost what its service had still to do (P8.21)."""
        if len(self._outbox) < OUTBOX_LIMIT // 2:
            self._say(
                {
                    "say": "ended", "service": service.name, "generation": job.request.generation, "action": "stop",
                    "attempt": max(1, job.attempt), "failure": "", "status": status,
                    "duration_ms": (boottime_us() - job.began_us) // US_PER_MS, "output": "",
                }
            )  # fmt: skip

    def _say_written(self, now_us: int) -> None:
        """Tell the daemon what commands have written, a piece of each at a time; nobody waits for a disk here."""
        if now_us < self._say_written_us:
            return
        for key, run in list(self._unsaid.items()):
            for _ in range(WRITTEN_PIECES):
                if run.unsaid and len(self._outbox) < WRITTEN_OUTBOX:
                    self._say_piece(run)
            if not run.unsaid:
                del self._unsaid[key]
        self._say_written_us = now_us + WRITTEN_PAUSE_US if self._unsaid else NEVER_US

    def _say_piece(self, run: Run) -> None:
        piece = bytes(run.unsaid[:WRITTEN_BYTES])
        del run.unsaid[:WRITTEN_BYTES]
        self._say(
            {
                "say": "wrote", "service": run.service, "generation": run.generation,
                "text": piece.decode(errors="replace"), "omitted": run.omitted,
            }
        )  # fmt: skip
        run.omitted = 0

    def _keep(self, run: Run, data: bytes) -> None:
        if not run.service:
            return
        run.unsaid += data
        over = len(run.unsaid) - UNSAID_BYTES
        if over > 0:
            del run.unsaid[:over]
            run.omitted += over
        self._unsaid[id(run)] = run
        self._say_written_us = min(self._say_written_us, boottime_us() + WRITTEN_PAUSE_US)

    def _say_output(self, request: int, name: str) -> None:
        service = self._ledger.places.get(name)
        runs = [] if service is None else [run for run in service.runs if run.status is None]
        output = "\n".join(run.output() for run in runs)[-OUTPUT_CHARACTERS:]
        status = next((run.condition.status for run in runs if run.condition), "")
        self._say({"say": "output", "request": request, "output": output, "status": status})

    def _say_inventory(self, request: object) -> None:
        """Every service's result, in as many packets as it takes (SPEC 7.7)."""
        for part in inventory_of(self._ledger.places.values(), _INVENTORY_BYTES):
            self._say({"say": "inventory", "request": request, **part})

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
        """Make the request its place's job, or answer from memory, or refuse it (SPEC 7.7, P6.20, P8.2, P8.3)."""
        match self._ledger.take(request):
            case ledger.Taken(entry=service, ends=notice, reason=reason):
                service.job = job = Job(request)
                for run in service.runs:
                    if run.condition is not None:
                        run.condition.extended_us = 0  # it asked for that for what it did before
                self._enter_ladder(service, job, CLEAR)
                if notice is not None:
                    self._cancel(notice, reason)
            case ledger.Known(result=Result() as result):
                self._say_finished(request.service, result)
            case ledger.Refusal(detail=detail):
                self._say_failed(request.service, request.generation, request.action, detail)
            case ledger.NoRoom(detail=detail):
                raise RequestRefused(detail)

    def _fail_refused(self, packet: dict[str, object], detail: str) -> None:
        """A command that is refused has failed: somebody waits for its end (P6.31)."""
        service, generation, action = packet.get("service"), packet.get("generation"), packet.get("action")
        if isinstance(service, str) and type(generation) is int and isinstance(action, str):
            self._say_failed(service, generation, action, f"refused: {detail}")

    def _say_failed(self, service: str, generation: int, action: str, detail: str) -> None:
        self._say_finished(service, ledger.refused(generation, action, detail))

    def _cancel(self, service: Service, reason: str) -> None:
        """End a job that stands apart: nothing else waits for it."""
        if service.job is not None and service.job.is_cancelled(reason):
            self._enter_ladder(service, service.job, END)

    # --- jobs ---

    def _enter_ladder(self, service: Service, job: Job, phase: str) -> None:
        now_us = boottime_us()
        self._parents = None
        job.enter(phase, now_us)
        self._signal(service, job, job.asks_with)
        self._advance(service, now_us)

    def _doomed(self, service: Service, job: Job) -> tuple[list[Run], set[int]]:
        """The runs and strays that the ladder of the job's phase must see the end of."""
        match job.whom():
            case Whom.COMMANDS_AT_WORK:
                return [run for run in service.runs if run.status is None and not run.is_supervised], set()
            case Whom.THIS_ATTEMPT:
                return [run for run in service.runs if run is job.run], set()
            case Whom.EVERYTHING:
                return service.runs, service.strays

    def _advance(self, service: Service, now_us: int) -> None:
        job = service.job
        if job is None:
            return
        if job.phase == RUN:
            self._advance_command(service, job, now_us)
        elif job.phase == QUIT:
            quitting = [run for run in service.runs if _may_quit(run)]
            if not quitting or job.quitting_is_over(now_us, lambda: self._has_been_told(job, quitting)):
                self._enter_ladder(service, job, END)
        elif job.phase == PAUSE:
            if now_us >= job.wake_us and self._may_launch(service, job, now_us):
                self._launch(service, job)
        elif not any(self._doomed(service, job)):
            if job.phase != CLEAR or self._may_launch(service, job, now_us):
                self._ladder_done(service, job)
        elif now_us >= job.wake_us:
            self._kill_again(service, job, now_us)

    def _may_launch(self, service: Service, job: Job, now_us: int) -> bool:
        """Whether there is a place for it: no start waits for one that is slow or hangs (P8.10)."""
        if job.request.action == "start" and not self._turns.has_place(_lane(service, job.request)):
            job.wake_us, job.waits_since_us = now_us + self._pulse_us, job.waits_since_us or now_us
            return False
        job.waits_since_us = 0
        return True

    def _say_waiting(self, now_us: int) -> None:
        """Tell who has waited for a place for long, at most once a second, and when nobody does any more (P8.12)."""
        if now_us < self._say_waiting_us or len(self._outbox) >= OUTBOX_LIMIT // 2:
            return
        self._say_waiting_us = now_us + WAITED_US
        jobs = [(service, service.job) for service in self._ledger.working.values() if service.job is not None]
        late = [(job.waits_since_us, service, job) for service, job in jobs if job.waits_since_us]
        starts = sorted((each for each in late if each[0] <= now_us - WAITED_US), key=lambda each: each[0])
        named = [[*self._place_awaited(service, job), since_us] for since_us, service, job in starts[:MAXIMUM_NAMED]]
        checks, of_checks = self._watcher.waiting
        count = len(starts) + of_checks
        if count or self._has_said_waiting:
            self._has_said_waiting = count > 0
            self._say({"say": "waiting", "named": named + checks, "count": count})

    def _place_awaited(self, service: Service, job: Job) -> tuple[str, str, int, int, str]:
        """What a start waits for: its kind and name, places taken of how many, and by what."""
        return "start", service.name, *self._turns.awaited(_lane(service, job.request))

    def _count_starts(self, now_us: int) -> None:
        """Which places are taken; a program has one until it has been executed."""
        starts: list[tuple[int, int]] = []
        for service in self._ledger.working.values():
            job = service.job
            if job is None or job.phase != RUN or job.request.action != "start" or job.run is None:
                continue
            if job.run.executed_us is None:
                starts.append((_lane(service, job.request), job.run.launched_us))
        self._turns.count(starts, now_us)

    def _kill_again(self, service: Service, job: Job, now_us: int) -> None:
        if job.hangs(now_us, KILL_BOUND_MS):
            runs, strays = self._doomed(service, job)
            left = self._below(runs, strays) or [run.keeper for run in runs]
            names = ", ".join(f"{pid} ({read_name(pid)})" for pid in left[:5])
            self._finish(service, False, f"still there after SIGKILL, so the kernel holds them: {names}")
            return
        self._signal(service, job, signal.SIGKILL)

    def _ladder_done(self, service: Service, job: Job) -> None:
        for cancelled in self._ledger.cleared(service):
            self._say_finished(service.name, cancelled)
        match job.ladder_is_done(boottime_us()):
            case Next.FINISH:
                if job.request.action == "stop" and job.failure is not None:
                    service.stop_fails()
                killed = f"what was left ignored {job.asks_with.name} and was killed" if job.killing else ""
                if killed and job.request.action == "stop":
                    self._say_killed(service, job, killed)
                self._finish(service, job.failure is None, job.failure or killed)
            case Next.LAUNCH:
                self._launch(service, job)
            case Next.END_THE_REST:
                self._enter_ladder(service, job, END)
            case Next.SUCCEED:
                self._finish(service, True, "")
            case Next.WAIT:
                return

    def _launch(self, service: Service, job: Job) -> None:
        """Begin an attempt."""
        request = job.request
        job.attempt_begins()
        job.run = job.probe = None
        condition: Condition | None = None
        if request.action == "stop" and job.activity is None:
            job.activity = self._activity([run for run in service.runs if _may_quit(run)])
        try:
            waits = request.is_program or (request.action == "start" and not request.ready.is_empty)
            condition = Condition(request.ready) if waits else None
            run = self._spawn(service, job, request.command, request.action, condition)
        except PortTaken as taken:
            self._attempt_failed(service, job, str(taken))
            return
        except OSError as error:
            if condition is not None:
                condition.close()
            advice = "free processes or descriptors of the node"
            self._attempt_failed(service, job, f"cannot start {request.command[0]}: {error.strerror}; {advice}")
            return
        if request.action == "start":
            self._turns.begun(_lane(service, request))
        run.follows = request.follows
        job.run = run
        job.launched(run.launched_us)

    def _spawn(
        self, service: Service, job: Job, command: tuple[str, ...], action: str, condition: Condition | None = None
    ) -> Run:
        """Start a command below a keeper. Raises `OSError`."""
        request = job.request
        own = {"MUSTER_GENERATION": str(request.generation), "MUSTER_ACTION": action}
        if request.is_cleanup:
            own = {}  # it is about a start of before, and says so itself (P6.32)
        elif request.action != "act":
            own |= {"MUSTER_SERVICE": request.service, "MUSTER_UID": str(request.uid)}
        said = condition.environment if condition else {}
        environment = {**self._environment, **request.environment, **own, **said}
        looks_at = condition.conditions.file if condition else ""
        launch = Launch(
            request.service,
            command,
            environment,
            condition is not None,
            looks_at=looks_at,
            surroundings=request.surroundings,
        )
        run = Run(request.generation, job.attempt, *spawn_keeper(launch, self._leash), boottime_us())
        run.condition = condition
        run.service = service.name if action in KEPT_ACTIONS and not service.is_apart else ""
        service.runs.append(run)
        self._keepers[run.keeper] = (service, run)
        heard = condition.listener.fileno() if condition and condition.listener else -1
        for descriptor in (run.status_fd, run.output_fd, heard):
            if descriptor >= 0:
                self._readers[descriptor] = (service, run)
                self._epoll.register(descriptor, select.EPOLLIN)
        return run

    def _advance_command(self, service: Service, job: Job, now_us: int) -> None:
        run, request = job.run, job.request
        if run is None:
            raise AssertionError(f"{service.name}: a command runs without a run")
        missing = ""
        if self._is_under_way(job, run) and now_us < job.deadline_us:
            if run.status is None and not request.is_program:  # its conditions count once the command has ended
                job.wake_us = job.deadline_us
                return
            if run.condition is None or now_us < job.wake_us:
                return
            missing = self._advance_program(service, job, run, run.condition, now_us)
            if missing and not self._is_lost(service, run):
                return
        elif run.condition is not None:
            missing = run.condition.missing(run.executed_us, now_us)
        self._read_output(run, _FINAL_READS)
        failure = failure_of(run, request, missing)
        if failure and run.has_left and run.last_status is not None:
            failure = f"what it had left running {explain_status(run.last_status)}; {failure}"
        self._say_ended(service, request.action, run, failure)
        if failure:
            is_known = run.status is not None and not run.cannot_execute and not run.is_lacking
            service.result.status = exit_status(run.status) if is_known and run.status is not None else NO_STATUS
            self._attempt_failed(service, job, failure)
        elif request.action == "start":
            self._started(service, job, run)
        elif request.action == "stop" and not request.is_cleanup:
            job.quits(now_us, is_program=any(each.is_supervised for each in service.runs))
            self._advance(service, now_us)
        else:
            self._enter_ladder(service, job, END)

    def _is_under_way(self, job: Job, run: Run) -> bool:
        """Whether an attempt may still succeed: its command runs, or what it has left is to be ready yet."""
        if run.status is None or job.request.is_program:
            return run.status is None or run.goes_on
        return run.status == 0 and run.condition is not None

    def _is_lost(self, service: Service, run: Run) -> bool:
        """Whether a start left something that was to become ready, and all of that has ended."""
        return run.has_left and run not in service.runs

    def _started(self, service: Service, job: Job, run: Run) -> None:
        run.is_supervised = job.request.is_program
        service.started(left=run.status is None or run.has_left)
        self._finish(service, True, "")
        if run not in service.runs and _was_a_daemon(run):
            self._tell_exit(service, run)  # it has ended in this very moment

    def _advance_program(self, service: Service, job: Job, run: Run, condition: Condition, now_us: int) -> str:
        """What keeps the program from being ready; has its ready command run in its turn."""
        if condition.wants_looker:
            self._start_looker(service, run, condition)
        probe = job.probe
        if probe is not None and probe.status is not None:
            cannot = probe.cannot_execute or probe.is_lacking
            failure = "cannot be executed" if cannot else explain_status(probe.status)
            condition.command_ended(failure if probe.status or cannot else "", now_us)
            if probe in service.runs:
                send(self._below([probe], set()), signal.SIGKILL)  # what a ready command leaves is nothing to keep
            job.probe = None
        missing = condition.missing(run.executed_us, now_us)
        job.wake_us = min(job.deadline_us, condition.next_look_us)
        if condition.wants_command and job.probe is None and now_us >= condition.next_command_us:
            try:
                job.probe = self._spawn(service, job, condition.conditions.command, "ready")
            except OSError as error:
                condition.command_ended(f"cannot be started: {error.strerror}", now_us)
        return missing

    def _start_looker(self, service: Service, run: Run, condition: Condition) -> None:
        """Somebody is to wait for the program's ready file; where nobody can now, the next look tries it again."""
        try:
            said, says = os.pipe()
        except OSError:
            return
        try:
            looker = start_looker(condition.conditions.file, condition.file_before, says)
        except OSError:
            os.close(said)
        else:
            os.set_blocking(said, False)
            condition.looker, condition.looker_fd = looker, said
            self._lookers.add(looker)
            self._readers[said] = (service, run)
            self._epoll.register(said, select.EPOLLIN)
        finally:
            os.close(says)

    def _hear_looker(self, service: Service, condition: Condition) -> None:
        try:
            said = os.read(condition.looker_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if said:
            condition.take_look(said)
        if not said or condition.file_has_come:
            self._end_looker(condition)
        self._look_again(service)

    def _end_looker(self, condition: Condition) -> None:
        if condition.looker_fd >= 0:
            condition.looker_fd = self._close(condition.looker_fd)
            if condition.looker in self._lookers:
                send((condition.looker,), signal.SIGKILL)

    def _attempt_failed(self, service: Service, job: Job, failure: str) -> None:
        self._enter_ladder(service, job, job.attempt_failed(failure, service.result.status))

    def _finish(self, service: Service, succeeded: bool, detail: str) -> None:
        service.job = None
        for result in self._ledger.finish(service, succeeded, detail):
            self._say_finished(service.name, result)
        self._note_exit(service)  # of a program that has ended just now
        self._ledger.drop_act(service)

    def _note_exit(self, service: Service) -> None:
        """Tell and remember that the program of the present generation has ended, or all that its start left (P8.1)."""
        if not service.awaits_an_end():
            return
        for run in service.runs:
            if run.is_supervised and run.status is not None and not run.goes_on:
                self._tell_exit(service, run)
                return

    def _tell_exit(self, service: Service, run: Run) -> None:
        self._read_output(run, _FINAL_READS)
        exited = exit_of(run, boottime_us())
        if service.ended(exited):
            self._watcher.tell(service.name)
            self._say({"say": "exited", "service": service.name, **exited._asdict()})

    def _exit_of(self, name: str) -> Exited | None:
        """What is remembered of the end of a service's program."""
        service = self._ledger.places.get(name)
        return service.exited if service is not None else None

    # --- processes ---

    def _below(self, runs: list[Run], strays: set[int]) -> list[int]:
        if self._parents is None:
            self._parents = read_parents()
        return [*strays, *descendants([*(run.keeper for run in runs), *strays], self._parents)]

    def _activity(self, runs: list[Run]) -> dict[tuple[int, int], tuple[bytes, ...]]:
        """How much everything below these keepers has run."""
        return read_activity(self._below(runs, set()))

    def _has_been_told(self, job: Job, quitting: list[Run]) -> bool:
        """Whether the stop command may have told it to quit: some of it has run since then, or runs (P8.21)."""
        now = self._activity(quitting)
        return now != job.activity or any(b"runs" in counts for counts in now.values())

    def _signal(self, service: Service, job: Job, number: int) -> None:
        """Signal everything that the job's ladder ends, but keepers only to wake them if they were stopped.

        A keeper that has not come to its command, because it still looks at a file, is ended itself.
        """
        runs, strays = self._doomed(service, job)
        if not runs and not strays:
            return
        below = self._below(runs, strays)
        send(below, number)
        send(below, signal.SIGCONT)  # a stopped process ends on SIGTERM only once it runs again
        send((run.keeper for run in runs), signal.SIGCONT)
        if number == signal.SIGKILL:
            send((run.keeper for run in runs if run.condition and run.condition.is_looked_for), signal.SIGKILL)

    def _reap(self) -> None:
        bereaved: list[Service] = []  # whose processes may have become children of the runner
        may_have_orphans = False
        for pid, status in reaped():
            if pid in self._lookers:
                self._lookers.discard(pid)
            elif self._watcher.ended(pid, boottime_us()):
                may_have_orphans = True
            elif self._locks.ended(pid, boottime_us()):
                pass
            elif pid in self._keepers:
                service, run = self._keepers.pop(pid)
                self._bury(service, run)
                if status != 0:
                    bereaved.append(service)
            else:
                owners = [service for service in self._ledger.places.values() if pid in service.strays]
                for service in owners:
                    service.strays.discard(pid)
                bereaved += owners  # what it leaves behind has no keeper either
                may_have_orphans = may_have_orphans or not owners
        if bereaved:
            self._adopt_strays(bereaved)
        if may_have_orphans:
            self._end_orphaned_checks()

    def _bury(self, service: Service, run: Run) -> None:
        """The keeper has gone: nothing of the run is left, unless the keeper was killed."""
        self._read_status(run)
        self._read_output(run, _FINAL_READS)
        if run.status is None:
            run.status = signal.SIGKILL  # nobody can tell any more how the command ended
        self._note_exit(service)
        if service.awaits_an_end() and _was_a_daemon(run):
            self._tell_exit(service, run)
        self._close_status(run)
        self._close_output(run)
        if run.condition is not None:
            self._end_looker(run.condition)
        if run.condition is not None and run.condition.listener is not None:
            self._close(run.condition.listener.detach())
        service.runs.remove(run)
        self._ledger.drop_act(service)

    def _end_orphaned_checks(self) -> None:
        """A check ends with the watcher that ran it (P8.6); what it had started comes here, as its keeper dies too."""
        mine = self._children_of_others()
        actions = self._ask(mine, b"MUSTER_ACTION")
        send((pid for pid in mine if actions.get(pid) == b"check"), signal.SIGKILL)

    def _children_of_others(self) -> list[int]:
        """The children that this process did not fork: what a keeper that was killed has left."""
        own = self._keepers.keys() | self._lookers | {self._watcher.pid, self._locks.pid}
        return [pid for pid, parent in read_parents().items() if parent == os.getpid() and pid not in own]

    def _ask(self, pids: list[int], name: bytes) -> dict[int, bytes]:
        """What a variable of these processes is, as far as that can be told soon: the node's signs of life go on."""
        if not pids:
            return {}
        asked = EnvironmentReaders(pids, name)
        self._lookers.update(asked.readers)

        def may_wait() -> bool:
            self._pulse_if_due()
            return not self._orphaned and not self._leash.is_over()

        return asked.answers(_ASKED_S, may_wait)

    def _adopt_strays(self, bereaved: list[Service]) -> None:
        """Children that the runner did not fork had a killed keeper, or descend from such; find whose they are."""
        strays = self._children_of_others()
        names = self._ask(strays, b"MUSTER_SERVICE")
        for pid in strays:
            # Not only among the bereaved: of keepers that died at once, some may not have been reaped yet.
            named = self._ledger.places.get(names.get(pid, b"").decode(errors="replace"))
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
                elif line[:1] == b"M":
                    run.is_lacking = True
                elif line[:1] == b"X":
                    run.executed_us = boottime_us()
                elif line[:1] == b"L":
                    run.has_left = True
                elif line[:1] == b"H":
                    run.helped_only = boottime_us() - run.launched_us < HELPER_US
                elif line[:1] == b"D":
                    run.last_status = int(line[1:])
                elif line[:1] == b"F":
                    if run.condition is not None:
                        run.condition.take_before(line[1:])
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
            self._keep(run, data)

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


def _may_quit(run: Run) -> bool:
    """Whether this is what its service is, which a stop command that has succeeded may have told to end (P8.21)."""
    if run.is_supervised:
        return run.status is None or run.goes_on
    return run.follows and run.has_left


def _was_a_daemon(run: Run) -> bool:
    """Whether what a start has left, all of which has ended, was what its service is, and no helper (P8.18)."""
    return run.follows and run.has_left and (run.is_supervised or not run.helped_only)


def _lane(service: Service, request: Request) -> int:
    """Which places a start takes: what has run here before, and programs, begin quickly, and wait for no others."""
    return lane_of(has_run=service.has_run, is_program=request.is_program)


def run_runner(
    guard: socket.socket,
    daemon: socket.socket,
    leash: Leash,
    parent: int,
    pulse_ms: int,
    base_environment: dict[str, str],
) -> NoReturn:
    """Become the runner, in a process freshly forked by `parent`. `guard` and `daemon` are its ends of the channels."""
    set_process_name(RUNNER)
    adopt_orphans()
    runner = Runner(guard, daemon, leash, pulse_ms, base_environment)
    runner.prepare()
    leash.bind(parent)
    gc.freeze()
    gc.enable()
    runner.loop()
