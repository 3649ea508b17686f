"""When a guard gives its node up, and how far its deadman may be moved (P7.4, P7.7, P7.12, P6.31): a value machine.

Theory of operation. A guard's loop hears renewals, signs of life and ends, and tells them to its vigil; each turn the
vigil says what the deadman is moved to, and whether there is a cause to give up. It gives up a little before the end of
the lease, so that a panic can still write its tombstone; when a process owes a sign of life; and when a node that has
left does not end. There are two deadlines: the lease's, which only renewals move, and the loop's, which each turn does.

`drivers/image/guard.py` and `sim/world/guard.py` run it. The guard's image imports this module, so it needs the
standard library only.
"""

from enum import Enum, auto
from typing import NamedTuple

from muster.records.timing import Profile
from muster.records.units import US_PER_MS

ASKED_FOR_PATIENCE = 4  # times the restart bound, for a daemon that was asked for: the first, or one in its place
LEAVE_US = 10_000_000  # from the end of a graceful leave until all that the node ran must have ended
TURNS_A_SPAN = 3  # of the loop, at least, while the loop deadline would pass
DAEMON = "daemon"


class Why(Enum):
    """What a guard gives up for."""

    NOT_RENEWED = auto()  # its lease, soon enough
    NOT_EMPTIED = auto()  # the node, after its leave
    SILENT = auto()  # a process of it


class GivesUp(NamedTuple):
    """The node must panic now."""

    why: Why
    who: str = ""  # which process is silent


class Vigil:
    """What one guard waits for, from its lease to the end of its node."""

    __slots__ = (
        "_daemon_up", "_due_us", "_loop_us", "_moved_for_us", "_profile", "_turned_us", "deadline_us", "emptied_by_us",
        "lease_deadline_us", "leaving", "stands_apart",
    )  # fmt: skip

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self.stands_apart = False  # others ask the kernel if this node runs: nobody counts its lease (P7.12)
        self.lease_deadline_us = 0  # moved by renewals
        self.deadline_us = 0  # of the deadman: that of the lease, or that of the loop, whichever is first
        self._loop_us, self._turned_us = profile.loop_ms * US_PER_MS, 0
        self._moved_for_us = 0  # the lease's deadline that the deadman was last moved for
        self._due_us: dict[str, int] = {}  # when the sign of life of each process is overdue
        self._daemon_up = False  # the present daemon has given one
        self.leaving = False
        self.emptied_by_us = 0  # when a node that leaves must run nothing any more

    def begun(self, name: str, now_us: int) -> None:
        """A process has been started for the first time: a sign of life is due within the restart bound.

        Nothing of a service runs before the first daemon is up, so a busy machine may take its time to load that.
        """
        self._expect(name, now_us, ASKED_FOR_PATIENCE if name == DAEMON else 1)

    def _expect(self, name: str, now_us: int, patience: int) -> None:
        self._due_us[name] = now_us + patience * self._profile.restart_ms * US_PER_MS

    def pulsed(self, name: str, now_us: int) -> None:
        """A process has given a sign of life."""
        self._daemon_up = self._daemon_up or name == DAEMON
        self._due_us[name] = now_us + self._profile.pulse_loss_ms * US_PER_MS

    def daemon_ended(self, now_us: int, *, asked_for: bool) -> None:
        """The daemon has ended. `asked_for`: for a successor, which is no sign of a fault (P10.3)."""
        if self._daemon_up:  # one that dies again before its first pulse gets no more time
            self._expect(DAEMON, now_us, ASKED_FOR_PATIENCE if asked_for else 1)
        self._daemon_up = False

    def leaves(self, now_us: int) -> None:
        """The graceful leave is complete: from now on only the end of all that the node runs is waited for (P6.31)."""
        self.leaving, self.emptied_by_us = True, now_us + LEAVE_US

    def is_late(self, now_us: int) -> bool:
        """Whether the guard has woken after its deadline: it gives up before anything moves that (P7.4)."""
        return now_us >= self.deadline_us

    def turned(self, now_us: int) -> int | None:
        """The loop turns: where the deadman is to be moved, no further than the lease lets it (P7.12)."""
        self._turned_us = now_us
        deadline_us = min(self.lease_deadline_us, now_us + self._loop_us)
        gained_us = deadline_us - self.deadline_us
        by_renewal = deadline_us == self.lease_deadline_us != self._moved_for_us  # all of it counts (P7.31)
        if gained_us <= 0 or (gained_us < self._loop_us // 8 and not by_renewal):  # less is not worth the system calls
            return None
        self._moved_for_us = self.lease_deadline_us
        self.deadline_us = deadline_us
        return deadline_us

    def retime(self, profile: Profile, span_ms: int, lease_deadline_us: int) -> None:
        """Other times count from now on; the deadman may have to be moved to an earlier moment (P7.35)."""
        self._profile, self._loop_us = profile, span_ms * US_PER_MS
        self.lease_deadline_us = lease_deadline_us
        self.deadline_us = min(self.deadline_us, lease_deadline_us)

    def give_up_us(self) -> int:
        """When a panic that can still write its tombstone must begin, if the lease has not been renewed by then."""
        profile = self._profile
        margin_ms = min(profile.renew_ms, profile.panic_bound_ms)
        if self.stands_apart:
            margin_ms = profile.loop_ms  # the lease is so long there that a panic may have all the time it needs
        return self.lease_deadline_us - margin_ms * US_PER_MS

    def judgement_us(self) -> int:
        """When there is something to judge, if nothing is heard until then."""
        others_us = [self.emptied_by_us] if self.leaving else list(self._due_us.values())
        return min([self.give_up_us(), *others_us])

    def wake_us(self) -> int:
        """When the loop must turn again, whatever happens."""
        return min(self.judgement_us(), self._turned_us + self._loop_us // TURNS_A_SPAN)

    def judge(self, now_us: int) -> GivesUp | None:
        """Why the node must be given up now. Everything that has arrived must have been told before."""
        if now_us >= self.give_up_us():
            return GivesUp(Why.NOT_RENEWED)
        if self.leaving:
            return GivesUp(Why.NOT_EMPTIED) if now_us >= self.emptied_by_us else None
        for name, due_us in self._due_us.items():
            if now_us >= due_us:
                return GivesUp(Why.SILENT, name)
        return None
