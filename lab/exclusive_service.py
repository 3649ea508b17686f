"""A service that must never run twice, and that keeps its own record of when it ran, independent of Muster.

    python exclusive_service.py FORM RECORD LOCKS [PAUSE_MS]

Theory of operation. An instance is everything that one start command leaves running. From its first moment to its last
it appends a line to RECORD every few milliseconds, and it holds a lock on LOCKS/SERVICE, which ends only with the last
of its processes. An instance that does not get the lock says so in the record, and runs on all the same, so that the
overlap shows in the lines too. Stop and recovery commands record themselves in the same way: they too act for the
service; a recovery command also tries the lock.

Every line has the same length, a divisor of the page size, and is appended by one write: a write that is killed half
way ends at a page boundary, so a line is there whole or not at all, and lines never mix.

Forms of a start command:

    plain       one process in the background
    daemon      double fork, session of its own, standard files closed
    parent      a process that only waits, and its child, executed anew without any environment, that records
    slow        as plain, but the command ends PAUSE_MS after the service runs, which takes its time to end on SIGTERM

and of others: `act`, which records for PAUSE_MS and ends. Only modules that load fast are imported.
"""

import fcntl
import os
import signal
import sys
import time
from typing import NoReturn

LINE_BYTES = 128
PERIOD_S = int(os.environ.get("EXCLUSIVE_PERIOD_MS", "5")) / 1000
LINGER_S = 0.1
FORMS = ("plain", "daemon", "parent", "slow", "act")


def boottime_us() -> int:
    """Microseconds since boot, through suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Recorder:
    """Appends the lines of one instance to an open file."""

    def __init__(self, record: int, identity: list[str]) -> None:
        self.record, self.identity = record, identity

    def say(self, event: str) -> None:
        """Append one line."""
        text = " ".join((str(boottime_us()), *self.identity, str(os.getpid()), event))
        line = text.encode().ljust(LINE_BYTES - 1) + b"\n"
        if len(line) != LINE_BYTES:
            raise ValueError(f"a line of {len(line)} bytes: {text}")
        os.write(self.record, line)

    def run(self) -> NoReturn:
        """Run for ever; a first SIGTERM ends it."""
        while True:
            self.say("runs")
            time.sleep(PERIOD_S)

    def run_for(self, duration_s: float) -> None:
        """Run for a while."""
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            self.say("runs")
            time.sleep(PERIOD_S)


def begin(record_path: str, locks: str) -> Recorder:
    """Take part in the record under the identity that the environment gives, and take the lock."""
    given = [os.environ[f"MUSTER_{key}"] for key in ("NODE", "INCARNATION", "GENERATION", "EPOCH", "ACTION")]
    token = os.environ.get("MUSTER_TOKEN", "").partition("-")[0] or "0"
    identity = [os.environ["MUSTER_SERVICE"], os.urandom(4).hex(), str(int(token)), *given]
    record = os.open(record_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    recorder = Recorder(record, identity)
    recorder.say("begins")
    if identity[-1] != "stop":
        lock = os.open(os.path.join(locks, identity[0]), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by every process that inherits the descriptor
        except BlockingIOError:
            recorder.say("overlaps")
        os.set_inheritable(lock, True)
    return recorder


def into_background() -> bool:
    """Fork; True in the child, which has a session of its own."""
    if os.fork():
        return False
    os.setsid()
    return True


def run_daemon(recorder: Recorder) -> NoReturn:
    """In the session of a first child: fork again, and let go of everything inherited but record and lock."""
    if os.fork():
        os._exit(0)
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    recorder.run()


def run_parent(recorder: Recorder) -> NoReturn:
    """Leave the recording to a child that nothing but its descent ties to the node."""
    child = os.fork()
    if child == 0:
        os.set_inheritable(recorder.record, True)
        words = ["-I", "-S", "-B", __file__, "recorder", str(recorder.record), *recorder.identity]
        os.execve(sys.executable, [sys.executable, *words], {})
    os.waitpid(child, 0)
    while True:
        signal.pause()


def run_slow(recorder: Recorder) -> NoReturn:
    """Go on for a while after SIGTERM."""

    def linger(_number: int, _frame: object) -> NoReturn:
        recorder.run_for(LINGER_S)
        os._exit(0)

    signal.signal(signal.SIGTERM, linger)
    recorder.run()


def main(words: list[str]) -> None:
    """Be what FORM says."""
    form, *rest = words
    if form == "recorder":
        Recorder(int(rest[0]), rest[1:]).run()
    if form not in FORMS:
        raise SystemExit(f"exclusive service: FORM is {form!r}; it must be one of {', '.join(FORMS)}")
    record_path, locks = rest[:2]
    pause_s = int(rest[2]) / 1000 if len(rest) > 2 else 0.0
    recorder = begin(record_path, locks)
    if form == "act":
        recorder.run_for(pause_s)
    elif into_background():
        {"plain": Recorder.run, "daemon": run_daemon, "parent": run_parent, "slow": run_slow}[form](recorder)
    else:
        time.sleep(pause_s)


if __name__ == "__main__":
    main(sys.argv[1:])
