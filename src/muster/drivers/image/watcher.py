"""The built-in watcher process of a node: programs, membership, checks, processes, timers (SPEC 5.1).

Forked by the runner from its own image while an event needs it, and forked again when it dies; a watcher as any other
to the event manager, which it talks to through `muster.client`. It keeps nothing that it could lose: what it is asked
to detect it hears anew from whatever daemon it connects to, and what holds it tells anew.

    program     the end of the program of `service` at `generation`: the runner knows it (P8.1, `watcher_process.py`)
    membership  a change of the nodes' states that fits `node` and `state`, each given or not (P8.8)
    check       runs a command every `interval`; `failures` failures of the last `of` runs are an occurrence
    process     the end of a process, by its pidfd: `pid`, or what `pid_file` holds, looked at again when it changes
    timer       every `interval`, or each day `at` HH:MM by the local clock (`daily.py`); what is due while no daemon
                listens is told to the next one, once
    unchecked   a check of a service cannot be executed (P8.16)

Each check runs below a keeper of its own and is ended with all that it started when its `timeout` is over. Of one check
that fails, all failures until it succeeds again are one (P8.15): each is told with the time of the first.
"""

import contextlib
import gc
import heapq
import json
import os
import re
import select
import shlex
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple, NoReturn

from muster.client.address import SOCKET_FILE
from muster.client.errors import ClientError, Refused
from muster.client.watching import NOT_WATCHED, Asked, Change, Members, Watcher
from muster.core.launching.checks import (
    NOT_EXECUTED,
    AtWork,
    Meaning,
    Place,
    Tally,
    is_slow,
    is_starting,
    meaning_of,
    places_of,
)
from muster.core.launching.ledger import NO_STATUS
from muster.drivers.image.commands import LACKING, surroundings_in
from muster.drivers.image.daily import Daily, local_seconds
from muster.drivers.image.deadman import LEASH_SIGNAL, Leash, adopt_orphans, boottime_us, set_process_name
from muster.drivers.image.keeper import Launch, restore_default_signals, spawn_keeper
from muster.drivers.image.process_tree import (
    close_descriptors_except,
    descendants,
    end_everything_below,
    explain_status,
    read_parents,
    say,
    send,
)
from muster.drivers.image.processes import WATCHER
from muster.drivers.image.watcher_packets import MAXIMUM_NAMED, PACKET_BYTES
from muster.records.units import NEVER_US, US_PER_MS
from muster.records.watchers import (
    CHECK_WATCHER,
    MEMBERSHIP_WATCHER,
    PROGRAM_WATCHER,
    TOLD_APART_BY,
    UNCHECKED_WATCHER,
)

Program = tuple[str, int]  # service and generation

NAME = "built-in"
MAXIMUM_UNTOLD = 4096  # changes of members that fit an event, while the daemon does not hear
TAIL_BYTES = 2000
WAITED_US = 1_000_000  # what has waited for a place for so long is told, and so often
_CONNECT_PAUSE_S = 0.1
_LOOK_MS = 500  # for a pid file that is not there or has not changed
_PLACE_LOOK_MS = 100  # for a place for a check
_SWEEP_US = 5_000_000
_KILL_AGAIN_MS = 20
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)")


def run_watcher(leash: Leash, runner: int, environment: dict[str, str], channel: socket.socket) -> NoReturn:
    """Become the watcher, in a process freshly forked by the runner; `channel` leads there."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    signal.set_wakeup_fd(-1)  # shared with the runner
    restore_default_signals()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a daemon that has gone is an error of the call, not this one's end
    signal.signal(LEASH_SIGNAL, lambda _number, _frame: os._exit(1))
    leash.bind(runner)
    adopt_orphans()
    set_process_name(WATCHER)
    close_descriptors_except((channel.fileno(),))
    gc.freeze()
    gc.enable()
    path = os.path.join(environment["MUSTER_NODE_HOME"], SOCKET_FILE)
    membership, memory = Membership(), Memory()
    while True:
        try:
            with Watcher(path, NAME, (), 10.0, 0.0, membership.members) as watcher:
                built_in = BuiltIn(watcher, leash, environment, channel, membership, memory)
                try:
                    built_in.loop()
                finally:
                    built_in.close()  # else each daemon that ends leaves descriptors here
        except ClientError:
            end_everything_below(boottime_us() + _SWEEP_US, boottime_us)  # checks of a daemon that is gone
            time.sleep(_CONNECT_PAUSE_S)


class Membership:
    """The nodes' states, and what is still to be told of them: both outlast a connection (P8.8)."""

    def __init__(self) -> None:
        self.members = Members(since=0)  # what one before this had no time to tell is known already if it had
        self._untold: deque[tuple[str, Change]] = deque(maxlen=MAXIMUM_UNTOLD)

    def tell(self, watcher: Watcher) -> bool:
        """Tell of each change to each event that it fits; False if that has to be tried again later. Raises `Lost`."""
        if not self.members.is_current:
            return True  # what is asked is not known yet
        for change in watcher.changes():
            self._untold += [(event, change) for event, asked in watcher.asked.items() if _fits(asked, change)]
        while self._untold:
            event, change = self._untold[0]
            if event in watcher.asked:
                out = {key: str(value) for key, value in change._asdict().items()}
                try:
                    watcher.occurred(event, **out)
                except Refused as refused:
                    _say_refused(event, refused)
                    return False
            self._untold.popleft()
        return True


class Memory:
    """What outlasts a connection: a daemon that is started anew changes nothing of it."""

    def __init__(self) -> None:
        self.timers: dict[str, tuple[Asked, int]] = {}  # event -> as it was asked for, and when it is due
        self.daily: dict[str, tuple[Asked, Daily]] = {}
        self.asked_us: dict[Program, int] = {}  # since when a service's program or check is watched for
        self.failing_us: dict[Program, int] = {}  # since when its check fails
        self.succeeded: set[Program] = set()  # its check has succeeded once: what it needed to start is over

    def keep(self, asked: Mapping[str, Asked]) -> None:
        """All that is asked has been said: what is about nothing of it is void."""
        self.timers = {event: kept for event, kept in self.timers.items() if event in asked}
        self.daily = {event: daily for event, daily in self.daily.items() if event in asked}
        programs = {_program_of(each) for each in asked.values() if "generation" in each.parameters}
        self.asked_us = {program: at_us for program, at_us in self.asked_us.items() if program in programs}
        self.failing_us = {program: at_us for program, at_us in self.failing_us.items() if program in programs}
        self.succeeded &= programs


def _program_of(asked: Asked) -> Program:
    values = asked.parameters
    return values.get("service", ""), number(values.get("generation", ""), 1)


def _fits(asked: Asked, change: Change) -> bool:
    wanted = asked.parameters
    is_membership = kind_of(wanted) == MEMBERSHIP_WATCHER
    return is_membership and all(wanted.get(key, value) == value for key, value in change._asdict().items())


def kind_of(parameters: Mapping[str, str]) -> str:
    """Which of the watchers an event is for: each has IN parameters that those below it do not take."""
    apart = TOLD_APART_BY.items()
    return next((name for name, signs in apart if any(sign in parameters for sign in signs)), MEMBERSHIP_WATCHER)


class Check:
    """One run of a check's command."""

    def __init__(self, keeper: int, status_fd: int, output_fd: int, began_us: int, deadline_us: int) -> None:
        self.began_us = began_us
        self.keeper, self.status_fd, self.output_fd, self.deadline_us = keeper, status_fd, output_fd, deadline_us
        self.tail = bytearray()
        self.status = ""  # in words, once known; nothing for a success
        self.cannot = ""  # why it could not be executed, or says nothing
        self.is_known = False


class Subject:
    """One event that is watched for."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        values = asked.parameters
        self.interval_us = milliseconds(values.get("interval", ""), 10_000) * US_PER_MS
        self.timeout_us = milliseconds(values.get("timeout", ""), 10_000) * US_PER_MS
        self.grace_us = milliseconds(values.get("grace", ""), 0) * US_PER_MS  # of its service's start
        self.success = _statuses(values.get("success", "")) | {0}  # exit statuses that say that all is well
        self.unknown = _statuses(values.get("unknown", ""))  # and that say nothing
        self.tally = Tally(number(values.get("failures", ""), 1), number(values.get("of", ""), 1))
        self.check: Check | None = None
        self.is_slow = False  # its last check took longer than it has a place
        self.cannot = ""  # why it could not be executed the last time
        self.waits_since_us = 0  # its check waits for a place since then
        self.pid = 0
        self.pidfd = -1
        self.ended: dict[str, str] | None = None  # how its program ended


class Way(NamedTuple):
    """What is done about an event of one kind."""

    begin: Callable[["BuiltIn", str, Subject], None]  # it is asked for
    work: Callable[["BuiltIn", str, Subject, int], None]  # it is due


class BuiltIn:
    """The loop of the watcher process."""

    def __init__(
        self,
        watcher: Watcher,
        leash: Leash,
        environment: dict[str, str],
        runner: socket.socket,
        membership: Membership,
        memory: Memory,
    ) -> None:
        self._watcher, self._leash, self._memory = watcher, leash, memory
        self._runner, self._membership = runner, membership
        self._members_at_us = 0  # when untold changes are to be told again
        self._environment = environment
        self._subjects: dict[str, Subject] = {}
        self._due: list[tuple[int, str, int]] = []  # a heap: when, event, identity of its subject
        self._poll = select.poll()
        self._readers: dict[int, Subject] = {}
        self._ending: set[int] = set()  # keepers of checks that are over, until nothing is below them
        self._programs: dict[Program, str] = {}  # -> event
        self._tell_waiting_us = 0  # when the runner may be told next of what waits for a place
        self._has_told_waiting = True  # what one before this has told is void

    def loop(self) -> None:
        """Until the connection ends. Raises `ClientError`."""
        for descriptor in (self._watcher.fileno(), self._runner.fileno()):
            self._poll.register(descriptor, select.POLLIN)
        while True:
            if self._watcher.wait(0.0):
                self._follow()
                self._members_at_us = 0
            now_us = boottime_us()
            if now_us >= self._members_at_us:
                told = self._membership.tell(self._watcher)
                self._members_at_us = NEVER_US if told else now_us + _LOOK_MS * US_PER_MS
            while self._due and self._due[0][0] <= now_us:
                _at_us, event, identity = heapq.heappop(self._due)
                subject = self._subjects.get(event)
                if subject is not None and id(subject) == identity:
                    self._work(event, subject, now_us)
            if now_us >= self._tell_waiting_us:
                self._tell_of_waiting(now_us)
            next_us = min(self._due[0][0] if self._due else NEVER_US, self._members_at_us)
            wait_ms = max(0, (next_us - boottime_us()) // US_PER_MS + 1) if next_us < NEVER_US else None
            if self._ending:
                wait_ms = _KILL_AGAIN_MS if wait_ms is None else min(wait_ms, _KILL_AGAIN_MS)
            for descriptor, _mask in self._poll.poll(wait_ms):
                if descriptor == self._runner.fileno():
                    self._hear_of_program()
                subject = self._readers.get(descriptor)
                if subject is not None:
                    self._readable(descriptor, subject)
            self._reap()

    def _follow(self) -> None:
        """Begin and end what has been asked for since."""
        asked = self._watcher.asked
        for event, subject in list(self._subjects.items()):
            if asked.get(event) != subject.asked:
                self._end(subject)
                del self._subjects[event]
        for event, wanted in asked.items():
            if event not in self._subjects:
                self._begin(event, wanted)
        if self._membership.members.is_current:  # all that is asked has been said
            self._memory.keep(asked)

    def close(self) -> None:
        """The connection has ended: let go of what is watched for."""
        for subject in self._subjects.values():
            self._end(subject)
        self._subjects.clear()

    def _begin(self, event: str, wanted: Asked) -> None:
        values = wanted.parameters
        subject = self._subjects[event] = Subject(wanted)
        if "generation" in values:
            self._memory.asked_us.setdefault(_program_of(wanted), boottime_us())
        self.WAYS[kind_of(values)].begin(self, event, subject)

    def _begin_program(self, event: str, subject: Subject) -> None:
        service, generation = _program_of(subject.asked)
        self._programs[service, generation] = event
        self._runner.send(json.dumps({"service": service, "generation": generation}).encode())

    def _begin_process(self, event: str, subject: Subject) -> None:
        self._later(event, subject, boottime_us())

    def _begin_timer(self, event: str, subject: Subject) -> None:
        wanted = subject.asked
        if "at" in wanted.parameters:
            if self._memory.daily.get(event, (None, None))[0] != wanted:
                self._memory.daily[event] = (wanted, Daily(wanted.parameters["at"], local_seconds(), boottime_us()))
            self._later(event, subject, boottime_us())
            return
        asked_before, due_us = self._memory.timers.get(event, (None, 0))
        self._due_at(event, subject, due_us if asked_before == wanted else boottime_us() + subject.interval_us)

    def _begin_check(self, event: str, subject: Subject) -> None:
        self._later(event, subject, boottime_us() + subject.interval_us)

    def _begin_nothing(self, _event: str, _subject: Subject) -> None:
        """The connection tells of its changes, or a check does."""

    def _due_at(self, event: str, subject: Subject, at_us: int) -> None:
        self._memory.timers[event] = (subject.asked, at_us)
        self._later(event, subject, at_us)

    def _later(self, event: str, subject: Subject, at_us: int) -> None:
        heapq.heappush(self._due, (at_us, event, id(subject)))

    def _work(self, event: str, subject: Subject, now_us: int) -> None:
        self.WAYS[kind_of(subject.asked.parameters)].work(self, event, subject, now_us)

    def _work_on_timer(self, event: str, subject: Subject, now_us: int) -> None:
        if "at" in subject.asked.parameters:
            self._look_at_clock(event, subject, now_us)
            return
        self._tell_time(event)
        self._due_at(event, subject, now_us + subject.interval_us)

    def _work_on_nothing(self, _event: str, _subject: Subject, _now_us: int) -> None:
        """It is never due."""

    def _look_at_clock(self, event: str, subject: Subject, now_us: int) -> None:
        """Whether a daily timer is due by the local clock, which may jump (P8.17). Raises `Lost`: it is due still."""
        _asked, daily = self._memory.daily[event]
        wait_s = daily.look(local_seconds(), now_us)
        if daily.is_due:
            self._tell_time(event)
            daily.is_due = False
        self._later(event, subject, now_us + int(wait_s * 1_000_000))

    def _tell_time(self, event: str) -> None:
        """A timer is due. Raises `Lost`, and then it is due still."""
        try:
            self._watcher.occurred(event, time=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        except Refused as refused:
            _say_refused(event, refused)

    # --- programs of services (P8.1) ---

    def _hear_of_program(self) -> None:
        data = self._runner.recv(PACKET_BYTES)
        if not data:
            os._exit(1)  # the runner has ended, and with it the node
        told = json.loads(data)
        event = self._programs.get((told["service"], told["generation"]), "")
        subject = self._subjects.get(event)
        if subject is not None:
            detail = f"its program {told['status']}"
            subject.ended = {"status": told["status"], "output": told["output"], "detail": detail}
            if told.get("code", NO_STATUS) != NO_STATUS:
                subject.ended["code"] = str(told["code"])
            since_us = self._memory.failing_us.get(_program_of(subject.asked))
            if since_us is not None:  # its check has seen the same failure before (P8.15)
                subject.ended["since"] = _place(since_us)
            self._tell_of_program(event, subject, boottime_us())

    def _tell_of_program(self, event: str, subject: Subject, _now_us: int) -> None:
        """Tell of its end once; again if the daemon refuses to hear it now. Raises `Lost`."""
        try:
            if subject.ended is not None:
                self._watcher.occurred(event, **subject.ended)
            subject.ended = None
            self._programs.pop(_program_of(subject.asked), None)  # the runner may tell twice: now, and when asked
        except Refused as refused:  # which is the last word only if the event is not to be watched for any more
            _say_refused(event, refused)
            self._later(event, subject, boottime_us() + _LOOK_MS * US_PER_MS)

    # --- checks ---

    def _work_on_check(self, event: str, subject: Subject, now_us: int) -> None:
        if subject.check is not None:  # its time is over; the next one begins an interval later, as after any other
            self._kill(subject.check)
            self._judge(event, subject, f"did not end within {subject.timeout_us // US_PER_MS} ms")
            self._later(event, subject, now_us + subject.interval_us)
            return
        if not self._has_place(subject, now_us):
            subject.waits_since_us = subject.waits_since_us or now_us
            self._later(event, subject, now_us + _PLACE_LOOK_MS * US_PER_MS)
            return
        subject.waits_since_us = 0
        try:
            subject.check = self._start(event, subject, now_us)
        except (OSError, ValueError) as error:
            self._cannot_check(event, subject, f"cannot be started: {error}")
            self._later(event, subject, now_us + subject.interval_us)
            return
        self._later(event, subject, subject.check.deadline_us)

    def _has_place(self, subject: Subject, now_us: int) -> bool:
        """Whether its check may begin: quick ones never wait for those that hang, nor these for each other (P8.10)."""
        return all(each.taken < each.places for each in self._places(subject, now_us))

    def _places(self, subject: Subject, now_us: int) -> tuple[Place, ...]:
        at_work = [AtWork(each.check.began_us, each.is_slow) for each in self._subjects.values() if each.check]
        return places_of(subject.is_slow, at_work, now_us)

    def _tell_of_waiting(self, now_us: int) -> None:
        """Tell the runner which checks have waited for a place for long, at most once a second (P8.12)."""
        self._tell_waiting_us = now_us + WAITED_US
        late_us = now_us - WAITED_US
        found = [(each.waits_since_us, name, each) for name, each in self._subjects.items() if each.waits_since_us]
        late = sorted((each for each in found if each[0] <= late_us), key=lambda each: each[:2])
        if not late and not self._has_told_waiting:
            return
        self._has_told_waiting = bool(late)
        named = []
        for since_us, name, subject in late[:MAXIMUM_NAMED]:
            full = next((each for each in self._places(subject, now_us) if each.taken >= each.places), None)
            if full is not None:  # the others begin in a moment
                named.append(["check", name, *full, since_us])
        with contextlib.suppress(BlockingIOError):  # it is told again in a second
            self._runner.send(json.dumps({"waiting": named, "count": len(late)}).encode(), socket.MSG_DONTWAIT)

    def _start(self, event: str, subject: Subject, now_us: int) -> Check:
        """Run the command. Raises `OSError`, `ValueError`."""
        command = tuple(shlex.split(subject.asked.parameters["command"]))
        if not command:
            raise ValueError("its command has no words")
        environment = {
            **self._environment,
            **subject.asked.environment,
            "MUSTER_EVENT": event,
            "MUSTER_ACTION": "check",
        }
        surroundings = surroundings_in(subject.asked.surroundings or None, event)
        launch = Launch(event, command, environment, dies_with_keeper=True, surroundings=surroundings)
        keeper = spawn_keeper(launch, self._leash)
        for descriptor in (keeper.status_fd, keeper.output_fd):
            self._readers[descriptor] = subject
            self._poll.register(descriptor, select.POLLIN)
        return Check(*keeper, now_us, now_us + subject.timeout_us)

    def _readable(self, descriptor: int, subject: Subject) -> None:
        check = subject.check
        event = subject.asked.event
        if descriptor == subject.pidfd:
            self._process_ended(event, subject)
            return
        if check is None:
            return
        try:
            data = os.read(descriptor, 64 * 1024)
        except BlockingIOError:
            return
        if descriptor == check.output_fd:
            check.tail = (check.tail + data)[-TAIL_BYTES:]
            if not data:
                self._close(descriptor)
                check.output_fd = -1
        for line in data.split() if descriptor == check.status_fd else ():
            if line[:1] == b"E":
                check.cannot = os.strerror(int(line[1:]))
            elif line[:1] == b"M":
                check.cannot = LACKING.partition(": ")[2]
            elif line[:1] == b"S":
                self._take_status(subject, check, int(line[1:]))
                check.is_known = True
        if check.is_known:
            self._drain(check)
            self._kill(check)
            if check.cannot:
                self._cannot_check(event, subject, f"cannot be executed: {check.cannot}")
            else:
                self._judge(event, subject, check.status)
            self._reschedule(event, subject)

    def _take_status(self, subject: Subject, check: Check, status: int) -> None:
        """How a check ended, and what that says: its service is well, has failed, or nothing of it is known (P8.16)."""
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        if check.cannot:
            return
        meaning = meaning_of(code, subject.success, subject.unknown)
        if meaning is Meaning.NOTHING:
            check.cannot = f"it {explain_status(status)}, {NOT_EXECUTED.get(code, 'which says nothing of its service')}"
        elif meaning is Meaning.FAILED:
            check.status = explain_status(status)

    def _cannot_check(self, event: str, subject: Subject, why: str) -> None:
        """A check that could not be executed says nothing of its service: it neither fails nor succeeds (P8.16)."""
        check, subject.check = subject.check, None
        subject.is_slow = False
        if subject.cannot == why:
            return  # it has been told
        subject.cannot = why
        output = check.tail.decode(errors="replace").strip() if check else ""
        detail = f"its check {why}" + (f"; it wrote: {output[-150:]}" if output else "")
        say(f"muster watcher process: {event}: {detail}; nothing is known of what it checks until this is put right")
        told = next((name for name, asked in self._watcher.asked.items() if asked.parameters.get("check") == event), "")
        if told:
            self._tell(told, status=why, output=output, detail=detail)

    def _drain(self, check: Check) -> None:
        with contextlib.suppress(BlockingIOError):
            while check.output_fd >= 0 and (data := os.read(check.output_fd, 64 * 1024)):
                check.tail = (check.tail + data)[-TAIL_BYTES:]

    def _reschedule(self, event: str, subject: Subject) -> None:
        """The next run, an interval after the end of this one; the entry for its time limit is void."""
        self._due = [entry for entry in self._due if entry[2] != id(subject)]
        heapq.heapify(self._due)
        self._later(event, subject, boottime_us() + subject.interval_us)

    def _judge(self, event: str, subject: Subject, failure: str) -> None:
        """A run is over: k failures of the last n are an occurrence, and are counted anew after it."""
        check, subject.check = subject.check, None
        subject.is_slow = check is not None and is_slow(check.began_us, boottime_us())
        if subject.cannot:
            subject.cannot = ""
            say(f"muster watcher process: {event}: its check can be executed again")
        program = _program_of(subject.asked)
        if not failure:
            self._memory.failing_us.pop(program, None)
            self._memory.succeeded.add(program)
        elif self._is_starting(subject, program):
            return
        occurrence = subject.tally.add(failed=bool(failure))
        if occurrence is None:
            return
        output = check.tail.decode(errors="replace").strip() if check else ""
        of = f" ({occurrence.failures} of {occurrence.of})" if subject.tally.counts_several else ""
        detail = f"its check {failure}{of}" + (f"; it wrote: {output[-150:]}" if output else "")
        since = {}
        if "generation" in subject.asked.parameters:
            since = {"since": _place(self._memory.failing_us.setdefault(program, boottime_us()))}
        self._tell(event, status=failure, output=output, failures=str(occurrence.failures), detail=detail, **since)

    def _is_starting(self, subject: Subject, program: Program) -> bool:
        """Whether its service may still need time: within its `start_grace`, until a check succeeds (P8.18)."""
        since_us, has_succeeded = self._memory.asked_us.get(program, 0), program in self._memory.succeeded
        return is_starting(since_us, subject.grace_us, boottime_us(), has_succeeded=has_succeeded)

    def _kill(self, check: Check) -> None:
        """End what is left of a check, again until nothing is: it may be forking right now."""
        self._ending.add(check.keeper)
        send(descendants([check.keeper], read_parents()), signal.SIGKILL)
        for descriptor in (check.status_fd, check.output_fd):
            if descriptor >= 0:
                self._close(descriptor)
        check.status_fd = check.output_fd = -1

    # --- processes ---

    def _look_for_process(self, event: str, subject: Subject, now_us: int) -> None:
        if subject.pidfd >= 0:
            return
        pid = _pid_of(subject.asked.parameters)
        if pid and pid != subject.pid:
            with contextlib.suppress(OSError):
                subject.pidfd = os.pidfd_open(pid)
                subject.pid = pid
                self._readers[subject.pidfd] = subject
                self._poll.register(subject.pidfd, select.POLLIN)
                return
        self._later(event, subject, now_us + _LOOK_MS * US_PER_MS)

    def _process_ended(self, event: str, subject: Subject) -> None:
        self._close(subject.pidfd)
        subject.pidfd = -1
        self._tell(event, pid=str(subject.pid), detail=f"process {subject.pid} has ended")
        self._later(event, subject, boottime_us() + _LOOK_MS * US_PER_MS)

    # --- all of them ---

    def _tell(self, event: str, **out: str) -> None:
        try:
            self._watcher.occurred(event, **out)
        except ClientError as error:
            _say_refused(event, error)

    def _end(self, subject: Subject) -> None:
        if kind_of(subject.asked.parameters) == PROGRAM_WATCHER:
            self._programs.pop(_program_of(subject.asked), None)
        if subject.check is not None:
            self._kill(subject.check)
        if subject.pidfd >= 0:
            self._close(subject.pidfd)

    def _close(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._readers[descriptor]
        os.close(descriptor)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._ending.discard(pid)
        if self._ending:
            send(descendants(self._ending, read_parents()), signal.SIGKILL)

    WAYS: ClassVar = {  # what is done about each kind: as it begins, and when it is due
        CHECK_WATCHER: Way(_begin_check, _work_on_check),
        "process": Way(_begin_process, _look_for_process),
        "timer": Way(_begin_timer, _work_on_timer),
        UNCHECKED_WATCHER: Way(_begin_nothing, _work_on_nothing),
        PROGRAM_WATCHER: Way(_begin_program, _tell_of_program),
        MEMBERSHIP_WATCHER: Way(_begin_nothing, _work_on_nothing),
    }


if BuiltIn.WAYS.keys() != TOLD_APART_BY.keys():
    lacking = ", ".join(sorted(BuiltIn.WAYS.keys() ^ TOLD_APART_BY.keys()))
    raise TypeError(f"drivers/image/watcher.py has no row for {lacking}")


def milliseconds(text: str, otherwise: int) -> int:
    """A duration such as `500ms`, `60s`, `2m`, `1h`."""
    found = _DURATION.fullmatch(text.strip())
    return max(1, round(float(found[1]) * _UNITS_MS[found[2]])) if found else otherwise


def number(text: str, otherwise: int) -> int:
    """A number above 0."""
    return max(1, int(text)) if text.isdigit() else otherwise


def _say_refused(event: str, error: ClientError) -> None:
    """A line about what the daemon did not take; none where it ended the event while it was told of it."""
    if not (isinstance(error, Refused) and error.where == NOT_WATCHED):
        say(f"muster watcher process: {event}: {error}")


def _statuses(text: str) -> frozenset[int]:
    """Exit statuses, as `1,3`."""
    return frozenset(int(part) for part in text.split(",") if part.strip().isdigit())


def _place(at_us: int) -> str:
    """A time as the place of what began then: later ones sort behind earlier ones."""
    return f"{at_us:020d}"


def _pid_of(parameters: object) -> int:
    values = parameters if isinstance(parameters, dict) else {}
    text = values.get("pid", "")
    if not text:
        try:
            with open(values.get("pid_file", ""), encoding="ascii", errors="replace") as file:
                text = file.read(32).strip()
        except OSError:
            return 0
    return int(text) if text.isdigit() else 0
