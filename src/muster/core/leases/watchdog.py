"""A watchdog behind a lease: when it may be fed, recorded, closed, and given other times (P7.30 to P7.36).

Theory of operation. A watchdog resets its machine unless it is fed. It is fed by a process of its own, and only before
the deadline that the last accepted renewal has given: so some time after that deadline nothing of the machine runs any
more, whatever hangs. The lease is so long that this time is over when it runs out. Then its expiry is proof.

Three small machines, which the real processes and the simulator's run alike: `Feeding` of the feeder, `WatchdogState`
of the guard, and `Retiming`, for a profile that changes while the node runs. The guard's image takes them: the standard
library only.
"""

from enum import Enum, auto
from typing import NamedTuple

from muster.records.registers import Armed
from muster.records.timing import LEAST_GRANULARITY_MS, Profile, WatchdogTimes
from muster.records.units import US_PER_MS

FEEDINGS = 3  # within the watchdog's time, at least
SOFTWARE = "Software Watchdog"  # as the kernel's softdog names itself


class Kind(NamedTuple):
    """What is known of a kind of watchdog by the name that its driver gives it."""

    waits: bool  # a feeding may wait for something outside of the kernel, as for a management board
    stages: int  # it resets on that expiry
    software: bool = False  # a timer of the very kernel that it is to guard against


UNKNOWN = Kind(waits=True, stages=2)  # the most careful assumption
KINDS: dict[str, Kind] = {
    "i6300ESB timer": Kind(waits=False, stages=1),  # its driver gives each of the two stages half of the time
    "IB700 WDT": Kind(waits=False, stages=1),
    "iTCO_wdt": Kind(waits=False, stages=2),
    "SP5100 TCO timer": Kind(waits=False, stages=1),
    "wdat_wdt": Kind(waits=False, stages=1),
    SOFTWARE: Kind(waits=False, stages=1, software=True),
}


def times_of(identity: str, timeout_ms: int, profile: Profile, *, held: bool, stages: int = 0) -> WatchdogTimes:
    """The times of a device that has been set to `timeout_ms`, as it was read back (P7.31).

    `held`: a process that nothing ends with the node keeps the device open, so that no close can feed it late.
    `stages`: as an operator knows them; 0: as its kind is known.
    """
    kind = KINDS.get(identity, UNKNOWN)
    granularity_ms = max(LEAST_GRANULARITY_MS, profile.granularity_ms)
    granularity_ms += ((stages or kind.stages) - 1) * timeout_ms
    return WatchdogTimes(timeout_ms, granularity_ms, profile.reset_ms, held and not kind.waits)


class Turn(NamedTuple):
    """One turn of the feeder."""

    timer_us: int  # the kernel is to end this process then; moved there before anything else is done
    may: bool  # do what feeds: setting its time does, too
    due: bool  # feed it now


class Feeding:
    """When the feeder feeds: at least every third of the watchdog's time, and never after the deadline (P7.32)."""

    __slots__ = ("_fed_us", "timeout_ms")

    def __init__(self, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms
        self._fed_us: int | None = None

    def turn(self, now_us: int, deadline_us: int) -> Turn:
        """What to do now, while the deadline that the guard has published is this."""
        may = now_us < deadline_us
        return Turn(deadline_us, may, may and self._is_due(now_us))

    def _is_due(self, now_us: int) -> bool:
        """Whether the next turn would be too late."""
        return self._fed_us is None or now_us + self._turn_us() >= self._fed_us + self._most_us()

    def fed(self, began_us: int) -> None:
        """A feeding that began then has ended."""
        self._fed_us = began_us

    def pause_us(self, now_us: int, deadline_us: int) -> int:
        """Until the next look: soon enough to feed, and to see a deadline that was moved before it has come."""
        return max(US_PER_MS, min(self._turn_us(), (deadline_us - now_us) // 4))

    def _most_us(self) -> int:
        return self.timeout_ms * US_PER_MS // FEEDINGS

    def _turn_us(self) -> int:
        return self._most_us() // 3


class Stage(Enum):
    """How far a guard has come with its watchdog."""

    NONE = auto()
    ASKED = auto()  # to be opened, set and read back
    ARMED = auto()
    CLOSED = auto()  # or given up before anything ran


class WatchdogState:
    """The watchdog of a node as its guard knows it: armed, then recorded; buried, then closed (P7.33)."""

    __slots__ = ("_armed", "stage")

    def __init__(self) -> None:
        self.stage = Stage.NONE
        self._armed: Armed | None = None

    def asked(self, armed: Armed) -> None:
        """It is to be armed; `armed` is what it is expected to be."""
        self.stage, self._armed = Stage.ASKED, armed

    def is_armed(self, armed: Armed) -> None:
        """It was opened, set and read back: this is what it is."""
        self.stage, self._armed = Stage.ARMED, armed

    def recorded(self) -> Armed | None:
        """What a lease record may say of it: nothing before it is armed."""
        return self._armed if self.stage is Stage.ARMED else None

    def may_close(self, *, empty: bool, buried: bool) -> bool:
        """Whether it may be told to stop: nothing of the node runs, and the tombstone that says so is durable."""
        return self.stage is Stage.ARMED and empty and buried

    def closed(self) -> None:
        """It was told to stop, or is to reset the machine: nothing more is done with it."""
        self.stage, self._armed = Stage.CLOSED, None


class Order(Enum):
    """What is to be done next for other times, in this order (P7.35)."""

    LESSEN = auto()  # deadman and watchdog to the smaller values, at a moment at which that is not over yet
    READ_BACK = auto()  # the watchdog's, before anything is recorded
    RECORD = auto()  # a renewal that says the new times is to be accepted
    EXTEND = auto()  # deadman and watchdog to the new values
    DONE = auto()


class Retiming:
    """Other times for a node that runs (P7.35): less at once, then the record, then more.

    Whatever record an observer goes by, deadman and watchdog have gone by no more than it says when it became durable.
    Nothing of it is done while a renewal is under way.
    """

    __slots__ = ("_new", "_old", "order")

    def __init__(self, old: Profile, new: Profile) -> None:
        """Both as the node has them, with its watchdog (`Profile.with_watchdog`)."""
        self._old, self._new = old, new
        self.order = Order.LESSEN

    @property
    def span_ms(self) -> int:
        """How far a renewal moves the deadline now."""
        if self.order is Order.LESSEN:
            return self._old.loop_ms
        if self.order in (Order.EXTEND, Order.DONE):
            return self._new.loop_ms
        return min(self._old.loop_ms, self._new.loop_ms)

    @property
    def timeout_ms(self) -> int:
        """What the watchdog is to be set to now."""
        if self.order is Order.LESSEN:
            return self._old.watchdog_ms
        if self.order in (Order.EXTEND, Order.DONE):
            return self._new.watchdog_ms
        return min(self._old.watchdog_ms, self._new.watchdog_ms)

    @property
    def in_record(self) -> Profile:
        """What a renewal says now."""
        return self._new if self.order in (Order.RECORD, Order.EXTEND, Order.DONE) else self._old

    def lessened(self, deadline_us: int, now_us: int) -> int | None:
        """The deadline that is to count from now on; None: it would be over too soon, try after the next renewal."""
        sooner_us = deadline_us - max(0, self._old.loop_ms - self._new.loop_ms) * US_PER_MS
        if sooner_us - now_us < 2 * self._new.renew_ms * US_PER_MS and sooner_us != deadline_us:
            return None
        self.order = Order.READ_BACK
        return sooner_us

    def read_back(self, set_ms: int) -> bool:
        """The watchdog's timeout is now this; whether that will do. Without a watchdog it is 0."""
        if not 0 <= set_ms <= self.timeout_ms:
            return False
        self.order = Order.RECORD
        return True

    def recorded(self) -> None:
        """A renewal that says the new times has been accepted."""
        self.order = Order.EXTEND

    def extended(self) -> None:
        """Deadman and watchdog go by the new times."""
        self.order = Order.DONE
