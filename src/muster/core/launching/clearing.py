"""How long a caretaker tries to clear its machine, and when it says in the lease register what is owed (P6.33, P6.34).

Theory of operation. While its node runs, a caretaker tries again whatever has failed, after a pause. Once all that the
node ran has ended, everything is tried once more, and what is owed by then is written into the node's lease register:
as the last word, so not before nobody else may write there. The guard and its lease writer must have ended, or have had
their time: a guard that hangs may wake and write its tombstone over it, so what was written is looked at once more, and
written again where it is hidden. All of it has a bound: then the next boot says it. Whoever runs this does what `next`
says, and tells what has become of it. The image of the guard imports this module: the standard library only.
"""

from enum import Enum, auto

from muster.records.registers import Owed

RETRY_US = 10_000_000  # at boot, from a failure to the next try
END_US = 600_000_000  # after the guard's end: no longer than this for the rest to end and the store to take a record
WRITER_US = 5_000_000  # for the guard and its writer to end by themselves before the register is written all the same
STORE_US = 1_000_000  # from one attempt at the store to the next
VERIFY_US = 1_000_000  # from a write to the look at it, where a guard may still be there
QUICK_US = 30_000  # what has ended so soon is told in one record, not in two
NEVER = -1


class Deed(Enum):
    """What a caretaker does next about what it owes."""

    WAIT = auto()
    WRITE = auto()  # into the lease register: then `written`, if it was
    LOOK = auto()  # at the register: then `looked`
    GIVE_UP = auto()  # the store has not taken it


class Ending:
    """The end of one incarnation, as its caretaker follows it. Times are microseconds since the machine's boot."""

    def __init__(self) -> None:
        self.ended_us: int | None = None  # since when nothing of the node runs any more
        self._guard_gone_us: int | None = None
        self._store_us = 0  # when the store may be tried next
        self._written_us = 0  # when the newest statement was written; 0: there is none
        self._written: Owed | None = None

    @property
    def has_begun(self) -> bool:
        """Whether all that the node ran has ended."""
        return self.ended_us is not None

    @property
    def guard_is_gone(self) -> bool:
        """Whether the guard has ended."""
        return self._guard_gone_us is not None

    def guard_went(self, now_us: int) -> None:
        """The guard has ended; what it kept alive may take a moment longer."""
        self._guard_gone_us = now_us

    def begin(self, now_us: int) -> bool:
        """Everything that the node ran has ended; whether that was not known."""
        if self.ended_us is not None:
            return False
        self.ended_us = now_us
        return True

    def never_comes(self, now_us: int) -> bool:
        """Whether nobody waits any longer for the node to end: its guard has been gone for too long."""
        return self._guard_gone_us is not None and now_us > self._guard_gone_us + END_US

    def next_try_us(self, now_us: int) -> int:
        """When a cleanup that has just failed is tried again; `NEVER` at the end: each is tried once more there."""
        return NEVER if self.has_begun else now_us + RETRY_US

    def is_young(self, now_us: int) -> bool:
        """Whether it has only just begun, so that much may happen soon."""
        return self.ended_us is not None and now_us < self.ended_us + STORE_US

    def next(self, owed: Owed, now_us: int, *, is_done: bool, writer_is_over: bool) -> Deed:
        """What to do about `owed` now. `is_done`: every cleanup has been tried for the last time."""
        assert self.ended_us is not None
        if now_us > self.ended_us + END_US and is_done:
            return Deed.GIVE_UP
        if not is_done and now_us < self.ended_us + QUICK_US:
            return Deed.WAIT
        if owed == self._written:
            is_old = self.guard_is_gone or now_us >= self._written_us + VERIFY_US
            return Deed.LOOK if is_done and is_old else Deed.WAIT
        if self._may_write(now_us, writer_is_over=writer_is_over) and now_us >= self._store_us:
            self._store_us = now_us + STORE_US
            return Deed.WRITE
        return Deed.WAIT

    def written(self, owed: Owed, now_us: int) -> None:
        """The register holds this statement now."""
        self._written, self._written_us, self._store_us = owed, now_us, 0

    def hidden(self) -> None:
        """Somebody has written over it since: it is to be written again."""
        self._written, self._written_us = None, 0

    def _may_write(self, now_us: int, *, writer_is_over: bool) -> bool:
        """Nobody else may write the register any more: the guard and its lease writer have ended, or had their time."""
        assert self.ended_us is not None
        return now_us >= self.ended_us + WRITER_US or (self.guard_is_gone and writer_is_over)
