"""The mastership machine at work: its actions as store effects, the answers of the store as its events (SPEC 2).

`machine.py` is a value that says what to do next; this carries it out: numbers each effect, knows which answer
belongs to it, and tries again what the store failed to do, which is always safe (`drivers/store/engine.py`), but only
for a bounded time: a node that cannot write what only it writes gives way (P2.11). What the node must know of comes
out as outcomes.
"""

from collections.abc import Iterator

import msgspec
from msgspec import Struct

from muster.core.effects import AppendFrame, Effect, ReadJournal, ReadStrip, WriteCheckpoint, WriteClaim
from muster.core.entries import apply
from muster.core.inputs import JournalRead, StoreRefused
from muster.core.leases.memory import holds
from muster.core.mastership import machine as mastership
from muster.core.mastership.machine import Became, Compact, Decided, Halt, IsOut, Phase, Withdrawn
from muster.records.database import Database, decode_database, decode_entry, encode_database
from muster.records.registers import Claim, ClaimFlag, Mark, Strip
from muster.records.terms import NO_TERM, Term
from muster.records.timing import Profile
from muster.records.units import US_PER_MS


class Trouble(Struct, frozen=True):
    """The store refused something; `event` is a phrase for the log. After `adoption failed` the claim was given up."""

    event: str
    detail: str


class GaveWay(Struct, frozen=True):
    """The claim or mastership was given up, because the store did not do within the bound what it takes (P2.11)."""

    detail: str


class Patience(Struct, frozen=True):
    """For how long the store may fail what a claim or mastership takes, or not answer (P2.11)."""

    failing_us: int  # from the first refusal to the withdrawal
    silent_us: int  # without an answer, or without a withdrawal that can be written: the node itself must end


def patience_of(profile: Profile) -> Patience:
    """The bounds of a profile: longer than a store's stalls, which a lease must outlive, too."""
    own_ms = profile.leadership_ms
    silent_ms = max(4 * own_ms, own_ms + LONGEST_STALL_MS, profile.lease_ms)
    return Patience(2 * own_ms * US_PER_MS, silent_ms * US_PER_MS)


Claims = tuple[Claim | None, ...]
Outcome = Became | Decided | Withdrawn | Halt | Compact | Trouble | GaveWay
JOURNAL_FULL = "journal full"  # event of a `Trouble`: the frame does not fit behind a fresh checkpoint
LONGEST_STALL_MS = 8000  # of a store that works: a write that hangs longer is taken for one that never ends


def newest_journal(strip: Strip) -> tuple[int, Mark] | None:
    """Owner and mark of the newest journal, or None while a claim register is unknown (SPEC 1.5)."""
    if any(claim is None for claim in strip.claims):
        return None
    return mastership.newest_mark(strip)


def restore(checkpoint: bytes, frames: tuple[bytes, ...]) -> Database:
    """The database that a journal amounts to. Raises `msgspec.DecodeError` or `ValueError` if it is none."""
    database = decode_database(checkpoint)
    for frame in frames:
        apply(database, decode_entry(frame))
    return database


class Tenure:
    """One node's mastership machine with what it waits for."""

    def __init__(
        self, own: Claim, incarnation: int, retry_after_us: int, numbers: Iterator[int], patience: Patience
    ) -> None:
        self.state, self._action = mastership.boot(own, incarnation)
        self.adopted: Database | None = None  # the database being adopted
        self._must_hold = 0, NO_TERM  # an index, and the term that committed its entry
        self.retry_us: int | None = None  # when to try again what the store failed to do, or to read again
        self._retry_after_us = retry_after_us
        self._numbers = numbers
        self._incarnation, self._patience = incarnation, patience
        self._failing_since_us: int | None = None  # the store has refused all that was tried since
        self._asked_us = 0  # when what it waits for was asked of the store
        self._read = self._operation = 0  # what it waits for; 0 is nothing
        self._written_us = 0  # when the last own write was known to be durable
        self._effects: list[Effect] = []
        self._outcomes: list[Outcome] = []

    @property
    def is_master(self) -> bool:
        """Whether the node acts as master now."""
        return self.state.is_master

    @property
    def is_free(self) -> bool:
        """Whether the node is master and no frame is in flight."""
        return self.state.phase is Phase.MASTER

    @property
    def is_idle(self) -> bool:
        """Whether the node has no claim at work."""
        return self.state.phase is Phase.IDLE

    def drain(self) -> tuple[list[Effect], list[Outcome]]:
        """What is to be done, and what the node must know of, since the last call."""
        drained = self._effects, self._outcomes
        self._effects, self._outcomes = [], []
        return drained

    def start(self, now_us: int) -> None:
        """Withdraw whatever an earlier life of this node claimed (P2.1)."""
        self._do(self._action, now_us)

    def may_judge(self, read_started_us: int) -> bool:
        """Whether a read of the strip shows the own register as it was last written, and not as it was before."""
        return read_started_us > self._written_us

    def claim(self, strip: Strip, now_us: int) -> None:
        """Claim mastership (P2.2); the node has found `may_claim` in a read that it `may_judge`."""
        if strip.claim(self.state.node) != self.state.claim:
            cause = "its own claim register holds what it did not write: a second node runs under this name"
            self._outcomes.append(Halt(cause))
        else:
            self._step(mastership.claim(self.state, strip), now_us)

    def propose(self, frame: bytes, now_us: int) -> None:
        """Commit a frame; `Decided` follows, or `Withdrawn`."""
        self._step(mastership.propose(self.state, frame), now_us)

    def compact(self, database: Database, now_us: int) -> None:
        """Answer to `Compact`."""
        self._step(mastership.compact(self.state, encode_database(database)), now_us)

    def abdicate(self, now_us: int) -> None:
        """Give a mastership up, at once or when the frame in flight is decided."""
        self.state, action = mastership.abdicate(self.state)
        if action is not None:
            self._do(action, now_us)

    def observe(self, strip: Strip, now_us: int, *, may_lead: bool) -> bool:
        """Take a read of the strip that it did not ask for into account; True if it withdraws for it (P2.3, P2.13)."""
        self.state, action = mastership.observe(self.state, strip, may_lead=may_lead)
        if action is not None:
            self._do(action, now_us)
        return action is not None

    def awaits_read(self, read: int) -> bool:
        """Whether this read of the strip is the one it waits for."""
        return read == self._read != 0

    def read(self, strip: Strip, is_out: IsOut, now_us: int, *, may_lead: bool = True) -> None:
        """The read that it waited for."""
        self._read = 0
        self._failing_since_us = None
        self._step(mastership.read(self.state, strip, is_out, may_lead=may_lead), now_us)

    def unread(self, now_us: int) -> None:
        """The read that it waited for failed."""
        self._read = 0
        self._try_again("the claims cannot be read", now_us)

    def hopeless(self, strip: Strip, now_us: int) -> str:
        """Why this node must end itself, in words; empty where it need not (P2.11).

        `strip`: the newest read. The others wait for the claim that they see in this node's register, and it can
        neither act on that nor withdraw it; what is still on its way to the store may not be overtaken.
        """
        own = strip.claim(self.state.node)
        if own is None or own.flag is ClaimFlag.WITHDRAWN or own.stamp.incarnation != self._incarnation:
            return ""
        waits = bool(self._operation or self._read)
        waited_us = now_us - self._asked_us
        if waits and waited_us > self._patience.silent_us:
            return f"the store has not answered this node, which holds a claim, for {waited_us // US_PER_MS} ms"
        since_us = self._failing_since_us
        if self.state.phase is Phase.SETTLING and since_us is not None:
            failing_us = now_us - since_us
            if failing_us > self._patience.silent_us:
                return f"this node's claim register has refused every write for {failing_us // US_PER_MS} ms"
        return ""

    def awaits(self, operation: int) -> bool:
        """Whether this store operation is the one it waits for."""
        return operation == self._operation != 0

    def done(self, now_us: int, claims: Claims = (), is_out: IsOut | None = None, *, may_lead: bool = True) -> None:
        """The write that it waited for is durable.

        `claims`: all of them by a read that began after it was, if the store has done that read at once. It is the one
        that a commit waits for (P2.6); any other step reads for itself.
        """
        self._operation = 0
        self._failing_since_us = None
        self._written_us = now_us
        self.state, action = mastership.written(self.state)
        if claims and is_out is not None and self.state.phase is Phase.COMMIT_CHECK:
            self._action = action  # to be done again if the read decides nothing
            strip = Strip((), claims, (), ())
            self._step(mastership.read(self.state, strip, is_out, may_lead=may_lead), now_us)
        else:
            self._do(action, now_us)

    def journal_read(self, journal: JournalRead, index: int, term: Term, now_us: int) -> None:
        """The journal that it waited for was read. It must have the entry that `term` committed at `index` (P11.4)."""
        self._operation, self._must_hold = 0, (index, term)
        try:
            self.adopted = restore(journal.checkpoint, journal.frames)
        except (msgspec.DecodeError, ValueError) as error:
            self._give_up(f"the newest journal does not decode: {error}", now_us)
        else:
            self._step(mastership.loaded(self.state, encode_database(self.adopted)), now_us)

    def refused(self, refused: StoreRefused, now_us: int) -> None:
        """The operation that it waited for failed: compact, give the adoption up, withdraw, or try again."""
        self._operation = 0
        phase, full = self.state.phase, refused.kind == "full"
        if full and phase is Phase.COMMIT_WRITE:
            if self.state.frame_number == 0:
                self._outcomes.append(Trouble(JOURNAL_FULL, refused.error))
            self._step(mastership.full(self.state), now_us)
        elif phase is Phase.LOADING or (full and phase is Phase.ADOPT_CHECKPOINT):
            self._give_up(refused.error, now_us)
        elif full:
            self._outcomes.append(Trouble(JOURNAL_FULL, refused.error))
            self._step(mastership.withdraw(self.state), now_us)
        else:
            self._outcomes.append(Trouble("store failed", refused.error))
            self._try_again(refused.error, now_us)

    def _try_again(self, error: str, now_us: int) -> None:
        """Put off what the store failed to do; give way if it has failed for too long (P2.11)."""
        since_us = self._failing_since_us = now_us if self._failing_since_us is None else self._failing_since_us
        gives_way = self.state.phase not in (Phase.SETTLING, Phase.IDLE, Phase.MASTER)
        if gives_way and now_us - since_us >= self._patience.failing_us:
            self._outcomes.append(GaveWay(error))
            self._step(mastership.give_way(self.state), now_us)
        else:
            self.retry_us = now_us + self._retry_after_us

    def retry(self, now_us: int) -> None:
        """Do again what was put off, if its time has come."""
        if self.retry_us is not None and now_us >= self.retry_us:
            self.retry_us = None
            self._do(self._action, now_us)

    def _give_up(self, why: str, now_us: int) -> None:
        self._outcomes.append(Trouble("adoption failed", why))
        self._step(mastership.failed(self.state), now_us)

    def _step(self, step: tuple[mastership.Mastership, mastership.Action], now_us: int) -> None:
        self.state, action = step
        self._do(action, now_us)

    def _do(self, action: mastership.Action, now_us: int) -> None:
        self._action = action
        match action:
            case mastership.Read(again=True):
                self._action = mastership.Read()
                self.retry_us = now_us + self._retry_after_us
            case mastership.Read():
                self._read, self._asked_us = next(self._numbers), now_us
                self._effects.append(ReadStrip(self._read))
            case mastership.Write(claim=claim):
                self._effects.append(WriteClaim(self._next_operation(now_us), claim))
            case mastership.Load(owner=owner, mark=mark):
                self._effects.append(ReadJournal(self._next_operation(now_us), owner, mark))
            case mastership.Checkpoint() if self._lacks_committed():
                index, term = self._must_hold
                text = f"index {index} was committed under term {term}, and the newest journal does not hold that"
                self._outcomes.append(Halt(f"its store went back in time, or is another one: {text}"))
            case mastership.Checkpoint(mark=mark, blob=blob):
                self._effects.append(WriteCheckpoint(self._next_operation(now_us), mark, blob))
            case mastership.WriteFrame(mark=mark, number=number, frame=frame):
                self._effects.append(AppendFrame(self._next_operation(now_us), mark, number, frame))
            case Became() | Decided() | Withdrawn() | Halt() | Compact():
                self._outcomes.append(action)

    def _lacks_committed(self) -> bool:
        """Whether what is to be adopted, now known to be whole (P2.8), lacks what was committed (P11.4)."""
        if self.state.phase is not Phase.ADOPT_CHECKPOINT or self.adopted is None:
            return False
        return not holds(self.adopted, *self._must_hold)

    def _next_operation(self, now_us: int) -> int:
        self._operation, self._asked_us = next(self._numbers), now_us
        return self._operation
