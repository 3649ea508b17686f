"""The caretaker: clears this machine's kernel of what the services of its node have left there (P6.34).

Theory of operation. The guard makes one for each incarnation, before it enters the node's namespace, and forks it
twice: it is nobody's child, gets no signal when the guard dies, and outlives all that is killed. It does two things.

At boot: it clears what an earlier run has left (the guard holds the home's lock by now, and nothing of that run goes
on), tells the guard what is still owed, and tries again what has failed. When the incarnation has ended, whatever way:
it runs what the home keeps, says in the lease register what is owed (P6.33), and ends. The kernel's word for the end is
that of init, the last process of its namespace to go; in a process tree it is the guard's packet after its sweep, and
without one nothing is known, and the next boot does the work. At SIGTERM it ends at once: a next run has begun. Where
it is killed, its standby takes its place (`standby.py`).

Each cleanup runs below a cleaner of its own, a child of the caretaker and the adopter of all that the command starts.
At the command's end, at its time limit, or when the caretaker has died, it ends everything below itself.

Channel to the guard, SOCK_SEQPACKET: `init` with a pidfd of init and one of the lease writer; `empty CAUSE` when the
guard has seen the end of all that the node ran; the other way `owed JSON`.
"""

import errno
import fcntl
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from muster.core.launching.clearing import END_US, QUICK_US, Deed, Ending
from muster.core.leases.lease import statement
from muster.drivers.image import kernel_spaces
from muster.drivers.image.commands import explain_missing
from muster.drivers.image.deadman import adopt_orphans, boottime_us, set_process_name
from muster.drivers.image.descriptors import receive_descriptors
from muster.drivers.image.keeper import restore_default_signals
from muster.drivers.image.kept_cleanups import Kept, all_kept, drop, is_kept, lock_folder, lock_kept
from muster.drivers.image.log_lines import Log
from muster.drivers.image.process_tree import (
    close_descriptors_except,
    end_everything_below,
    explain_status,
    fork_into,
    reaped,
)
from muster.drivers.image.processes import CARETAKER
from muster.drivers.image.service_surroundings import DEFAULT_PATH, DEFAULT_UMASK, reset_inherited, reset_limits
from muster.drivers.image.standby import Standby
from muster.drivers.store.failures import StoreFailed
from muster.drivers.store.lease_store import LeaseStore
from muster.records.registers import Lease, Owed
from muster.records.units import US_PER_MS

MAXIMUM_AT_WORK = 8  # cleanups at a time
_SWEEP_US = 10_000_000
_LOCK_S = 15.0  # for a cleaner of an earlier caretaker to end
_TEXT_BYTES = 1000
_NOT_EXECUTED = 127
_NOT_THERE = (1, 3)  # exit statuses of a probe: 3 is what a service manager says of a unit that does not run


class Duty(NamedTuple):
    """What a caretaker is made for. `since`: the first incarnation that this home answers for (P6.33)."""

    home: str
    name: str  # of the node
    node: int
    incarnation: int
    since: int
    open_store: Callable[[], LeaseStore]
    is_tree: bool


def start_caretaker(duty: Duty) -> socket.socket:
    """Fork the caretaker of this incarnation, twice, so that it is nobody's child; the guard's end of its channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def between() -> None:
        fork_into(lambda: run_caretaker(duty, theirs))
        os._exit(0)

    child = fork_into(between)
    theirs.close()
    os.waitpid(child, 0)
    return ours


def run_caretaker(duty: Duty, channel: socket.socket) -> NoReturn:
    """Become a caretaker, in a freshly forked process; `channel` is its end of that to the guard."""
    _Caretaker(duty, channel).run()


class _Work:
    """One cleanup on its way."""

    __slots__ = ("failure", "heard", "kept", "pid", "pipe", "try_us")

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.pid = 0  # of its cleaner, while it runs
        self.pipe = -1  # what the cleaner says at its end
        self.heard = b""
        self.failure = ""  # of the last try
        self.try_us = 0  # when to try next; no more: -1


class _Caretaker:
    def __init__(self, duty: Duty, channel: socket.socket, shown: tuple[int, ...] = (), times: int = 0) -> None:
        """`shown`: pidfds of init and lease writer, where they are known; `times`: how many were killed before."""
        self._duty, self._channel, self._times = duty, channel, times
        self._log = Log(duty.name, "caretaker")
        self._works: dict[str, _Work] = {}  # by the name of what the home keeps
        self._poll = select.poll()
        self._wake_read, self._wake_write = os.pipe()
        self._init, self._writer = (*shown, -1, -1)[:2]  # pidfds
        self._itself = -1  # the same: it tells a cleaner of this process's death
        self._standby = Standby(self._taken_over, (channel.fileno(),), shown, times)
        self._store: LeaseStore | None = None
        self._told: Owed | None = None  # to the guard
        self._handed_over = False
        self._ending = Ending()
        self._cause = "an earlier run of the node has left it"

    # --- its life ---

    def run(self) -> NoReturn:
        """Until there is nothing more to do."""
        os.setsid()
        set_process_name(CARETAKER)
        self._prepare()
        lock = lock_folder(self._duty.home)
        if lock is None:
            self._say("error", f"another caretaker holds {self._duty.home}/cleanups/lock: this one ends")
            os._exit(1)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        if self._times:
            self._say("warning", "the caretaker was killed: another one has taken its place")
        self._take_up()
        while not self._handed_over:
            now_us = boottime_us()
            if not self._standby.pid:
                self._standby.start()
            self._begin_what_is_due(now_us)
            if self._ending.has_begun:
                if self._settle(now_us):
                    break
            else:
                self._tell_guard()
                self._judge_end(now_us)
            self._wait()
        self._exit(0)

    def _taken_over(self, shown: tuple[int, ...], times: int) -> NoReturn:
        """In the standby: go on where the one that was killed has stopped; what is to be done the home says."""
        _Caretaker(self._duty, self._channel, shown, times).run()

    def _exit(self, status: int) -> NoReturn:
        """End by itself; a cleaner that is still at work ends with this process."""
        self._standby.done()
        os._exit(status)

    def _prepare(self) -> None:
        shown = [descriptor for descriptor in (self._init, self._writer) if descriptor >= 0]
        close_descriptors_except((self._channel.fileno(), self._wake_read, self._wake_write, *shown))
        self._itself = os.pidfd_open(os.getpid())
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._poll.register(self._wake_read, select.POLLIN)
        for descriptor in (self._channel.fileno(), *shown):
            self._poll.register(descriptor, select.POLLIN)

    def _on_term(self, _number: int, _frame: object) -> None:
        self._handed_over = True

    def _say(self, level: str, text: str) -> None:
        self._log.tell(level, "cleanup", text)

    def _take_up(self) -> None:
        """Take what the home keeps; what this incarnation has started only when all of it has ended."""
        try:
            kept = all_kept(self._duty.home)
        except OSError as error:
            self._say("error", f"{self._duty.home}/cleanups cannot be read: {error.strerror}; nothing is cleared")
            return
        for each in kept:
            if each.incarnation == self._duty.incarnation and not self._ending.has_begun:
                continue  # one that has taken another's place finds what runs now
            work = self._works.setdefault(each.file_name, _Work(each))
            if self._ending.has_begun and not work.pid:
                work.try_us = 0  # what had failed at boot is tried once more

    def _judge_end(self, now_us: int) -> None:
        """Whether everything that the node ran has ended, by the kernel's word or the guard's (P6.32)."""
        if self._init >= 0 and not self._duty.is_tree and _is_over(self._init):
            self._end_begins("its guard has ended it" if self._ending.guard_is_gone else "it has ended", now_us)
        elif self._ending.guard_is_gone and (self._duty.is_tree or self._init < 0):
            self._say("warning", "the guard has ended without a word that the node is empty: the next boot clears it")
            self._exit(0)
        elif self._ending.never_comes(now_us):
            self._say("error", f"what the node ran has not ended {END_US // 60_000_000} minutes after its guard")
            self._exit(1)

    def _end_begins(self, cause: str, now_us: int) -> None:
        if self._ending.begin(now_us):
            self._cause = cause
            self._take_up()

    def _wait(self) -> None:
        waits_us = [1_000_000]
        now_us = boottime_us()
        waits_us += [work.try_us - now_us for work in self._works.values() if not work.pid and work.try_us > now_us]
        if self._ending.has_begun:
            waits_us.append(QUICK_US if self._ending.is_young(now_us) else 8 * QUICK_US)
        is_over = self._ending.has_begun or self._ending.guard_is_gone
        idle = not is_over and not self._works and self._standby.pid
        timeout_ms = None if idle else max(1, min(waits_us) // US_PER_MS)
        for descriptor, _mask in self._poll.poll(timeout_ms):
            if descriptor == self._wake_read:
                os.read(self._wake_read, 4096)
            elif descriptor == self._channel.fileno():
                self._hear()
            else:
                self._poll.unregister(descriptor)  # init or the lease writer: it has ended, and shows that from now on
        self._reap()

    def _hear(self) -> None:
        try:
            data, descriptors = receive_descriptors(self._channel, 4096, 2)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        word, _space, rest = data.decode(errors="replace").partition(" ")
        if word == "init" and descriptors:
            self._init, self._writer = (*descriptors, -1)[:2]
            for descriptor in descriptors:
                self._poll.register(descriptor, select.POLLIN)
            self._standby.hand(*descriptors)
        elif word == "empty":
            if rest:
                self._cause = rest  # the guard knows it; that init has ended may have been seen before this was heard
            self._end_begins(rest or "it has left", boottime_us())
        elif not data:
            self._poll.unregister(self._channel)
            self._ending.guard_went(boottime_us())

    def _tell_guard(self) -> None:
        owed = self._owed()
        if owed == self._told or self._ending.guard_is_gone:
            return
        try:
            self._channel.send(b"owed " + json.dumps(owed).encode(), socket.MSG_DONTWAIT)
        except OSError:
            return  # told again with the next turn
        self._told = owed

    # --- the cleanups ---

    def _owed(self) -> Owed:
        """What this machine is not known to be clean of."""
        failed = {work.kept.identity for work in self._works.values() if work.failure}
        waiting = {work.kept.identity for work in self._works.values()} - failed
        return Owed(self._duty.since, tuple(sorted(failed)), tuple(sorted(waiting)))

    def _begin_what_is_due(self, now_us: int) -> None:
        at_work = [work for work in self._works.values() if work.pid]
        busy = {work.kept.identity for work in at_work}
        room = MAXIMUM_AT_WORK - len(at_work)
        for key, work in sorted(self._works.items(), key=lambda item: item[1].kept.generation):
            if work.pid or work.kept.identity in busy or not 0 <= work.try_us <= now_us:
                continue
            if not is_kept(self._duty.home, work.kept):
                del self._works[key]  # an operator has cleared it by hand, and the node has joined since
            elif room > 0:
                busy.add(work.kept.identity)  # of one service one after the other
                room -= 1
                self._begin(work)

    def _begin(self, work: _Work) -> None:
        if work.kept.problem:
            self._failed(work, work.kept.problem)
            return
        said, says = os.pipe()
        reason = self._cause
        try:
            work.pid = fork_into(lambda: _clean(self._duty.home, work.kept, reason, says, self._itself))
        except OSError as error:
            os.close(said)
            self._failed(work, f"cannot fork: {error.strerror}")
        else:
            work.pipe = said
            os.set_blocking(said, False)
        finally:
            os.close(says)

    def _hear_cleaner(self, work: _Work) -> None:
        """Take what a cleaner that has ended had to say."""
        try:
            work.heard = os.read(work.pipe, 2 * _TEXT_BYTES)
        except BlockingIOError:
            work.heard = b""
        os.close(work.pipe)
        work.pipe = -1

    def _reap(self) -> None:
        for pid, status in reaped():
            self._standby.ended(pid)
            for work in [work for work in self._works.values() if work.pid == pid]:
                self._hear_cleaner(work)
                work.pid = 0
                self._ended(work, status)

    def _ended(self, work: _Work, status: int) -> None:
        kept = work.kept
        if status == 0:
            drop(self._duty.home, kept)
            self._works.pop(kept.file_name, None)
            self._say("info", f"service {kept.service}, generation {kept.generation}: this machine is clean of it")
            return
        self._failed(work, work.heard.decode(errors="replace").strip() or f"its cleaner {explain_status(status)}")

    def _failed(self, work: _Work, failure: str) -> None:
        kept = work.kept
        work.failure = failure
        work.try_us = self._ending.next_try_us(boottime_us())
        follows = "it stays blocked until" if self._ending.has_begun else "the node does not join before"
        self._say(
            "error",
            f"the cleanup of service {kept.service} (generation {kept.generation}) failed: {failure}; this machine may "
            f"still hold what it left; {follows} that is cleared, or an operator says that it is "
            f"(muster service confirm-clean {kept.service}, muster node confirm-clean {self._duty.name})",
        )

    # --- the end of the incarnation ---

    def _settle(self, now_us: int) -> bool:
        """Write down what is owed, again whenever that has changed; whether there is nothing more to do."""
        owed, ending = self._owed(), self._ending
        is_done = not any(work.pid or work.try_us >= 0 for work in self._works.values())
        match ending.next(owed, now_us, is_done=is_done, writer_is_over=self._writer < 0 or _is_over(self._writer)):
            case Deed.WAIT:
                return False
            case Deed.WRITE:
                if self._write(owed):
                    ending.written(owed, now_us)
                return False
            case Deed.LOOK:
                return self._is_written(owed)
            case Deed.GIVE_UP:
                self._say("error", "the store has not taken what this node's machine still owes: the next boot says it")
                return True

    def _write(self, owed: Owed) -> bool:
        try:
            own = self._read_own()
            if own is None:
                return False
            if self._store is not None and not self._store.one_machine and kernel_spaces.held():
                return False  # the kernel has not ended, and this would say that the node has (P12.34)
            if self._store is not None and own.stamp.incarnation == self._duty.incarnation:
                self._store.write_lease(statement(own, owed, self._cause))
        except (StoreFailed, OSError) as error:
            self._store = None
            self._say("warning", f"what this machine owes cannot be written yet: {error}")
            return False
        return True

    def _read_own(self) -> Lease | None:
        self._store = self._store or self._duty.open_store()
        return self._store.read_own()

    def _is_written(self, owed: Owed) -> bool:
        """A guard that ended late may have written its tombstone over the statement: then it is written again."""
        try:
            own = self._read_own()
        except (StoreFailed, OSError):
            own = self._store = None
        if own is not None and (own.stamp.incarnation != self._duty.incarnation or own.owed == owed):
            return True
        self._ending.hidden()
        return False


def _is_over(pidfd: int) -> bool:
    return bool(select.select((pidfd,), (), (), 0)[0])


# --- a cleaner ---


def _clean(home: str, kept: Kept, reason: str, says: int, caretaker: int) -> NoReturn:
    """Run one cleanup in a process of its own, retries included, and end all that it has started."""
    os.setsid()
    set_process_name(CARETAKER)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    adopt_orphans()
    close_descriptors_except((says, caretaker))
    held = lock_kept(home, kept, _LOCK_S)
    if held is None:
        os._exit(0 if not is_kept(home, kept) else _fail(says, "an earlier run of it has not ended"))
    failure = ""
    for attempt in range(kept.retries + 1):
        if attempt:
            time.sleep(kept.retry_pause_ms / 1000)
        failure = _clear(kept, reason, caretaker)
        if not end_everything_below(boottime_us() + _SWEEP_US, boottime_us):
            os._exit(_fail(says, f"processes of it do not end even after SIGKILL; {failure}"))
        if not failure or _is_over(caretaker):
            break
    os._exit(_fail(says, failure) if failure else 0)


def _fail(says: int, failure: str) -> int:
    os.write(says, failure.encode()[: 2 * _TEXT_BYTES])
    return 1


def _clear(kept: Kept, reason: str, caretaker: int) -> str:
    """Clear once what the probe finds, or whatever there is where there is none; why that has failed, or nothing.

    The probe has the last word (P7.45): what it does not find is gone, whatever the cleanup says.
    """
    if not kept.probe:
        return _attempt(kept, kept.command, "cleanup", reason, caretaker)[1]
    is_there, failure = _probe(kept, reason, caretaker)
    if failure or not is_there:
        return failure
    cleared = _attempt(kept, kept.command, "cleanup", reason, caretaker)[1]
    is_there, failure = _probe(kept, reason, caretaker)
    if failure or not is_there:
        return failure
    words = f"after its cleanup, which {cleared}" if cleared else "after its cleanup"
    return f"its probe finds it on this machine still, {words}"


def _probe(kept: Kept, reason: str, caretaker: int) -> tuple[bool, str]:
    """Whether this machine holds anything of the service; or why nobody knows."""
    status, failure = _attempt(kept, kept.probe, "probe", reason, caretaker)
    if status in _NOT_THERE:
        return False, ""
    return status == 0, f"its probe, which is to say 0 or 1, {failure}" if status else ""


def _attempt(kept: Kept, words: tuple[str, ...], action: str, reason: str, caretaker: int) -> tuple[int, str]:
    """Run a command once, within the time limit; its exit status, and why it has failed, or nothing.

    Where it has not ended by itself, or was not executed, the status is negative.
    """
    read_end, write_end = os.pipe()
    executed_read, executed_write = os.pipe()
    environment = {"PATH": DEFAULT_PATH, **kept.environment, "MUSTER_ACTION": action, "MUSTER_REASON": reason}
    command = fork_into(lambda: _execute(words, environment, write_end, executed_write))
    os.close(write_end)
    os.close(executed_write)
    os.set_blocking(read_end, False)
    give_up_us = boottime_us() + kept.timeout_ms * US_PER_MS
    pidfd = os.pidfd_open(command)
    poll = select.poll()
    for descriptor in (pidfd, caretaker, read_end):
        poll.register(descriptor, select.POLLIN)
    tail, failure, status = b"", "", -1
    while not failure:
        left_us = give_up_us - boottime_us()
        ready = [descriptor for descriptor, _mask in poll.poll(max(0, left_us) // US_PER_MS + 1)]
        if read_end in ready:
            tail, is_open = _read(read_end, tail)
            if not is_open:
                poll.unregister(read_end)
        if pidfd in ready:
            break
        if caretaker in ready:
            failure = "its caretaker has ended"
        elif boottime_us() >= give_up_us:
            failure = f"did not end within {kept.timeout_ms} ms"
    if not failure:
        status, failure = _outcome(command, words[0], executed_read)
        tail, _is_open = _read(read_end, tail)
    for descriptor in (read_end, executed_read, pidfd):
        os.close(descriptor)
    wrote = tail.decode(errors="replace").replace("\0", "?").strip()
    return status, f"{failure}; it wrote: {wrote}" if failure and wrote else failure


def _read(descriptor: int, tail: bytes) -> tuple[bytes, bool]:
    """The end of what a command has written so far, and whether it may write more."""
    try:
        data = os.read(descriptor, 65536)
    except BlockingIOError:
        return tail, True
    return (tail + data)[-_TEXT_BYTES:], bool(data)


def _outcome(command: int, program: str, executed: int) -> tuple[int, str]:
    _pid, status = os.waitpid(command, 0)
    error = os.read(executed, 16)
    if error:
        return -1, explain_missing(program, int(error))
    return os.waitstatus_to_exitcode(status), explain_status(status) if status else ""


def _execute(command: tuple[str, ...], environment: dict[str, str], output: int, executed: int) -> NoReturn:
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir("/")
        os.umask(DEFAULT_UMASK)
        reset_inherited()
        reset_limits()
        restore_default_signals()
        fcntl.fcntl(executed, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        os.execvpe(command[0], command, environment)
    except OSError as error:
        os.write(executed, b"%d" % (error.errno or errno.EIO))
    os._exit(_NOT_EXECUTED)
