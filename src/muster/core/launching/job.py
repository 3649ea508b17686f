"""How far the command of a place is, and what follows: retries, and the ladder that ends things (SPEC 6.6, 7.7).

    CLEAR    end what an older generation must not leave: for stop, its command if that still runs; else everything
    RUN      the command, until it ends or its time is over (an empty command succeeds at once)
    AGAIN    it failed and may be retried: end what the attempt left, of a stop only the stop command's own processes
    PAUSE    until the next attempt
    QUIT     the stop command has succeeded: what its start had begun has its time to end by itself (P8.21)
    END      unless a start succeeded: end what is left of the service
    done     tell the result, and remember it

CLEAR, AGAIN and END are the same ladder: a signal that asks, a grace, SIGKILL again and again, and a bound after which
what is still there hangs in the kernel. This machine says what is next; the driver signals, looks and waits. The
runner's image imports it, so it needs the standard library only.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from muster.records.units import US_PER_MS

KILL_BOUND_MS = 10_000  # processes that are still there so long after SIGKILL hang in the kernel
KILL_AGAIN_MS = 20
DOUBT_MS = 1000  # who has not run for so long after the stop command's end was told nothing by it
CLEAR, RUN, AGAIN, PAUSE, QUIT, END = "clear", "run", "again", "pause", "quit", "end"


class Next(Enum):
    """What follows when all that a ladder had to end is gone."""

    FINISH = auto()  # the command has failed if it has a `failure`, else succeeded
    WAIT = auto()  # for the next attempt
    LAUNCH = auto()  # the command
    END_THE_REST = auto()  # there is no command: the ladder is what stops the service
    SUCCEED = auto()  # there is no command, and nothing to do


class Whom(Enum):
    """What the ladder of a phase must see the end of."""

    COMMANDS_AT_WORK = auto()  # what still runs of older commands; the rest is the stop command's work
    THIS_ATTEMPT = auto()
    EVERYTHING = auto()


class Wanted(Protocol):
    """What a request says of how its command is to be carried out."""

    @property
    def action(self) -> str:
        """What the command is for: start, stop, recovery, notify or act."""

    @property
    def command(self) -> tuple[str, ...]:
        """Its words; none: there is nothing to execute."""

    @property
    def timeout_ms(self) -> int:
        """Within which an attempt must end."""

    @property
    def grace_ms(self) -> int:
        """From the signal that asks to SIGKILL."""

    @property
    def retries(self) -> int:
        """How often it is tried again."""

    @property
    def retry_pause_ms(self) -> int:
        """How long to wait before each of these."""

    @property
    def final(self) -> frozenset[int]:
        """Exit statuses after which it is not tried again (P6.38)."""

    @property
    def extend_limit_ms(self) -> int:
        """By how much its program may lengthen an attempt, or the grace of a stop, in all (P8.21)."""


class Progress:
    """One command, from its being taken to its result."""

    __slots__ = (
        "attempt", "began_us", "deadline_us", "doubt_us", "failure", "kill_us", "killing", "latest_us", "phase",
        "waits_since_us", "wake_us", "wanted",
    )  # fmt: skip

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.phase = ""
        self.attempt = 0  # number of the present one; the first is 1
        self.failure: str | None = None  # why it will be told as failed
        self.deadline_us = 0  # of the attempt
        self.began_us = 0  # when the ladder of the present phase began
        self.kill_us = 0  # when it goes on to SIGKILL
        self.killing = False
        self.latest_us = 0  # to when a program may move the end of the attempt, or of the grace, by asking for time
        self.doubt_us = 0  # when to ask whether a stop command has told its program anything; 0 where that is known
        self.waits_since_us = 0  # for a place among the starts; 0 while it does not
        self.wake_us = 0  # when to look at it again, whatever happens

    def enter(self, phase: str, now_us: int) -> None:
        """A ladder begins: what it must end is to be asked to end now."""
        wanted = self.wanted
        grace_ms = min(wanted.grace_ms, wanted.timeout_ms) if wanted.action == "stop" else wanted.grace_ms
        self.phase, self.killing, self.began_us = phase, False, now_us
        self.kill_us = now_us + grace_ms * US_PER_MS
        self.wake_us = self.kill_us
        self.latest_us = self.kill_us + wanted.extend_limit_ms * US_PER_MS

    def whom(self) -> Whom:
        """What the ladder of this phase ends."""
        if self.wanted.action == "stop" and self.phase == CLEAR:
            return Whom.COMMANDS_AT_WORK
        return Whom.THIS_ATTEMPT if self.wanted.action == "stop" and self.phase == AGAIN else Whom.EVERYTHING

    def hangs(self, now_us: int, bound_ms: int = KILL_BOUND_MS) -> bool:
        """The grace is over, and something is left: whether it hangs. If not, it is to be killed again now."""
        self.killing = True
        self.wake_us = now_us + KILL_AGAIN_MS * US_PER_MS
        return now_us >= self.kill_us + bound_ms * US_PER_MS

    def ladder_is_done(self, now_us: int) -> Next:
        """Nothing is left of what this phase had to end."""
        if self.phase == END:
            return Next.FINISH
        if self.phase == AGAIN:
            self.phase, self.wake_us = PAUSE, now_us + self.wanted.retry_pause_ms * US_PER_MS
            return Next.WAIT
        if self.wanted.command:
            return Next.LAUNCH
        return Next.END_THE_REST if self.wanted.action == "stop" else Next.SUCCEED

    def attempt_begins(self) -> None:
        """Another attempt begins."""
        self.attempt += 1
        self.failure = None

    def launched(self, at_us: int) -> None:
        """Its command runs."""
        self.phase = RUN
        self.wake_us = self.deadline_us = at_us + self.wanted.timeout_ms * US_PER_MS
        self.latest_us = self.deadline_us + self.wanted.extend_limit_ms * US_PER_MS

    def quits(self, now_us: int, *, is_program: bool) -> None:
        """A stop command has succeeded: what it may have told to end has its time for that (P8.21). What is no program
        may be helpers, which nobody has told to end.
        """
        self.phase = QUIT
        if not is_program:
            self.deadline_us = min(self.deadline_us, now_us + self.wanted.grace_ms * US_PER_MS)
        self.doubt_us = now_us + DOUBT_MS * US_PER_MS
        self.wake_us = min(self.deadline_us, self.doubt_us)

    def quitting_is_over(self, now_us: int, has_been_told: Callable[[], bool]) -> bool:
        """What is left of a service whose stop command has succeeded is to be ended now (P8.21).

        `has_been_told`: whether any of it has run since before that command began; it is asked once.
        """
        if now_us < self.deadline_us and 0 < self.doubt_us <= now_us:
            self.doubt_us = 0
            if not has_been_told():
                return True
        self.wake_us = min(self.deadline_us, self.doubt_us or self.deadline_us)
        return now_us >= self.deadline_us

    def lengthen(self, until_us: int, *, is_its_own: bool) -> None:
        """The program of this attempt, or of what a stop is to end, has asked for time (P8.21)."""
        wanted_us = min(until_us, self.latest_us)
        is_stop = self.wanted.action == "stop"
        if is_its_own or (is_stop and self.phase in (RUN, QUIT)):
            self.deadline_us = max(self.deadline_us, wanted_us)
        elif is_stop and self.phase == END and not self.killing:
            self.kill_us = self.wake_us = max(self.kill_us, wanted_us)

    def attempt_failed(self, failure: str, status: int) -> str:
        """The attempt has failed, with this exit status: the phase that follows."""
        attempts = f"attempt {self.attempt} of {self.wanted.retries + 1}: " if self.wanted.retries else ""
        self.failure = attempts + failure
        is_final = status in self.wanted.final
        return AGAIN if self.attempt <= self.wanted.retries and not is_final else END

    def is_cancelled(self, reason: str) -> bool:
        """It is to end, as nothing else waits for it; false where its end is under way already."""
        if self.phase == END:
            return False
        self.failure = reason
        return True
