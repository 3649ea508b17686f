"""What a runner accepts, refuses, remembers and cancels (SPEC 7.7, P4.12, P6.20, P8.1-P8.3): a value machine.

Theory of operation. Each command belongs to a place: that of its service, or one of its own beside it (`place_of`). Of
a place the ledger remembers the highest generation ever asked for and what became of it. A newer generation is taken
and takes the place of one at work, which is cancelled and told as cancelled once what it began has ended; the same one
is answered from memory; an older one is refused. So however often, however late and in whatever order a daemon asks,
each generation runs once. When there are too many places the idle one asked for longest ago is forgotten, and from then
on nothing that is not newer than it is taken for a place that is not known.

It starts and ends nothing: whoever runs it (`drivers/image/runner.py`, `sim/world/runner.py`) does what an outcome
says, tells it what has ended, and may derive from `LedgerEntry` to keep its own things of a place there. The runner's
image imports this module, so it needs the standard library only.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

DETAIL_CHARACTERS = 1000  # of a result, of which the tail of the output gets what the cause leaves
MAXIMUM_SERVICES = 16_384
MAXIMUM_ACTS = 64  # action functions at work at once; the daemon asks for fewer
MAXIMUM_CANCELLED = 16
NO_STATUS = -1  # in place of an exit status
APART = ("notify", "act")  # those that never touch what the service's own commands do, nor the other way round


def place_of(service: str, generation: int, action: str) -> str:
    """Where a command belongs: its service, or a place of its own. Names hold no NUL characters."""
    if action == "notify":
        return f"{service}\0notify"
    return f"{service}\0{generation}" if action == "act" else service


def is_newer(generation: int, highest: int) -> bool:
    """Whether a command of `generation` may run where `highest` is the highest generation seen (P6.20, SPEC 7.7)."""
    return generation > highest


class CommandAsked(Protocol):
    """A command that is asked for, as far as the ledger judges it."""

    @property
    def service(self) -> str:
        """Its service, or what else it is about."""

    @property
    def generation(self) -> int:
        """Which of all that are asked for there."""

    @property
    def action(self) -> str:
        """What the command is for: start, stop, recovery, notify or act."""

    @property
    def is_program(self) -> bool:
        """Whether the command is itself what is to run: it is supervised."""


class Result:
    """What became of one generation's command."""

    __slots__ = ("action", "detail", "finished", "generation", "left", "status", "succeeded")

    def __init__(self, generation: int, action: str) -> None:
        self.generation, self.action = generation, action
        self.finished = self.succeeded = False
        self.detail = ""
        self.left = True  # something of it may run
        self.status = NO_STATUS  # the exit status of the command's last attempt, if it ended by itself

    def finish(self, succeeded: bool, detail: str) -> None:
        """Record the end of the command."""
        self.finished, self.succeeded, self.detail = True, succeeded, detail[:DETAIL_CHARACTERS]


class Exited(NamedTuple):
    """The end of a supervised program, or of what a start has left: what the failure policy is about (SPEC 5.4)."""

    generation: int
    status: str  # how it ended, in words
    code: int  # its exit status
    output: str
    at_us: int


class LedgerEntry:
    """What is remembered of one service, or of one place beside a service."""

    __slots__ = ("cancelled", "exited", "has_run", "is_at_work", "is_below", "name", "place", "result")

    def __init__(self, name: str, place: str) -> None:
        self.name, self.place = name, place
        self.result = Result(0, "")  # of the highest generation ever asked for
        self.is_at_work = False  # that has not ended
        self.cancelled: list[Result] = []  # older ones that it replaced, to be told once what they began has ended
        self.exited: Exited | None = None  # what the start of the present generation began has ended
        self.has_run = False  # a start of it has succeeded here
        self.is_below = False  # all that its last start has begun is, or was, below a keeper: not begun by others

    @property
    def is_apart(self) -> bool:
        """Whether this is a place of its own beside a service."""
        return self.place != self.name

    def is_idle(self) -> bool:
        """Whether nothing runs and nothing is to be done."""
        return not self.is_at_work

    def started(self, *, left: bool) -> None:
        """Its start is about to succeed; `left`: something of it runs, below a keeper."""
        self.has_run = True
        self.result.left = self.is_below = left

    def stop_fails(self) -> None:
        """Its stop is about to fail, with nothing below its keepers any more (P6.35)."""
        self.result.left = not self.is_below

    def awaits_an_end(self) -> bool:
        """Whether the end of what its start began would be news (P8.1): told once, until the next command."""
        return not self.is_at_work and self.exited is None and self.result.succeeded

    def ended(self, exited: Exited) -> bool:
        """What a start began has ended; whether that is to be told: not of an earlier generation."""
        if exited.generation != self.result.generation:
            return False
        self.exited = exited
        return True


E = TypeVar("E", bound=LedgerEntry)


class Taken(NamedTuple, Generic[E]):
    """The command is to run: end what an older generation must not leave, then begin it.

    `ends` is a command at work beside the service that it cancels, and `reason` why that ends.
    """

    entry: E
    ends: E | None
    reason: str


class Known(NamedTuple):
    """It was taken before: `result` is what became of it, none where it is at work."""

    result: Result | None


class Refusal(NamedTuple):
    """It is not taken, and has failed."""

    detail: str


class NoRoom(NamedTuple):
    """It is not taken, and has failed: everything that is remembered is at work or runs."""

    detail: str


class Retired(NamedTuple):
    """It is not taken, and not answered: the node ends, and its last stops are given elsewhere (P4.12)."""


Outcome = Taken[E] | Known | Refusal | NoRoom | Retired


class Ledger(Generic[E]):
    """All places of one runner. `make(name, place)` makes an entry; there are at most so many."""

    def __init__(
        self, make: Callable[[str, str], E], maximum: int = MAXIMUM_SERVICES, maximum_acts: int = MAXIMUM_ACTS
    ) -> None:
        self._make, self._maximum, self._maximum_acts = make, maximum, maximum_acts
        self.places: dict[str, E] = {}
        self.working: dict[str, E] = {}  # those with a command at work, in the order in which they began
        self._forgotten = 0  # highest generation of a service that was dropped from memory
        self._retired = False

    def retire(self) -> None:
        """Take nothing but stops from now on (P4.12)."""
        self._retired = True

    def take(self, asked: CommandAsked) -> Outcome[E]:
        """Judge a command that is asked for (SPEC 7.7, P6.20, P8.2, P8.3)."""
        if self._retired and asked.action != "stop":
            return Retired()
        entry = self.places.get(place_of(asked.service, asked.generation, asked.action))
        highest = entry.result.generation if entry else 0 if asked.action in APART else self._forgotten
        if entry and asked.generation == highest and asked.action == entry.result.action:
            return Known(entry.result if entry.result.finished else None)
        if asked.action == "notify" and (own := self.places.get(asked.service)) is not None:
            highest = max(highest, own.result.generation)  # what this node was told of the service is newer
        if not is_newer(asked.generation, highest):
            return Refusal(f"refused: generation {asked.generation} is not newer than {highest}")
        if asked.action == "act" and self._acts() >= self._maximum_acts:
            return Refusal(f"refused: {self._maximum_acts} action functions are at work on this node already")
        if entry is None and not self._has_room():
            return NoRoom(f"run: {self._maximum} services run on this node already; no node can hold more")
        return self._begin(asked, entry)

    def _acts(self) -> int:
        return sum(entry.result.action == "act" for entry in self.working.values())

    def _has_room(self) -> bool:
        """Whether there is a place left; the idle one asked for longest ago is dropped for that."""
        if len(self.places) < self._maximum:
            return True
        idle = [entry for entry in self.places.values() if entry.is_idle()]
        if not idle:
            return False
        oldest = min(idle, key=lambda entry: (not entry.is_apart, entry.result.generation))
        if not oldest.is_apart:
            self._forgotten = max(self._forgotten, oldest.result.generation)
        del self.places[oldest.place]
        return True

    def _begin(self, asked: CommandAsked, entry: E | None) -> Taken[E]:
        reason = f"cancelled by generation {asked.generation} ({asked.action})"
        if entry is None:
            place = place_of(asked.service, asked.generation, asked.action)
            entry = self.places[place] = self._make(asked.service, place)
        if entry.is_at_work:
            entry.result.finish(False, reason)
            entry.cancelled = [*entry.cancelled, entry.result][-MAXIMUM_CANCELLED:]
        entry.result, entry.exited = Result(asked.generation, asked.action), None
        if asked.action == "start":
            entry.is_below = asked.is_program  # of a start command that is known once it has ended
        entry.is_at_work = True
        self.working[entry.place] = entry
        notice = None if entry.is_apart else self.places.get(place_of(entry.name, 0, "notify"))
        return Taken(entry, notice if notice is not None and notice.is_at_work else None, reason)

    def act_at_work(self, service: str, generation: int) -> E | None:
        """The action function that is to be cancelled, if it is at work (P8.3)."""
        act = self.places.get(place_of(service, generation, "act"))
        return act if act is not None and act.is_at_work else None

    def cleared(self, entry: E) -> list[Result]:
        """Nothing of the older generations is left: the results to tell, of those that it has cancelled."""
        cancelled, entry.cancelled = entry.cancelled, []
        return cancelled

    def finish(self, entry: E, succeeded: bool, detail: str) -> list[Result]:
        """The command at work has ended: the results to tell, in their order."""
        entry.is_at_work = False
        del self.working[entry.place]
        entry.result.finish(succeeded, detail)
        return [*self.cleared(entry), entry.result]

    def drop_act(self, entry: E) -> None:
        """Forget an action function of which nothing runs any more: it is asked for once."""
        if entry.result.action == "act" and entry.is_idle():
            del self.places[entry.place]


def refused(generation: int, action: str, detail: str) -> Result:
    """What becomes of a command that is refused: it has failed, as somebody waits for its end (P6.31)."""
    result = Result(generation, action)
    result.finish(False, detail)
    return result
