"""Mastership and the commit rule: Dekker's mutual exclusion over single-writer registers, carried to a log (SPEC 2).

Theory of operation. Each node has one claim register (the highest term it ever claimed, a flag, and the mark of its
journal). To become master a node writes `claiming, T` with T above every term that it has read, then reads all claims
(P2.2). A higher term anywhere: it withdraws (P2.3). A lower claim of a node that may still lead: it waits until that
one withdraws, is proven dead, or has let its lease run out (P2.4, P2.12). Then it adopts: it loads the journal with the
newest mark, reads all claims again to be sure that what it loaded was whole (P2.8), writes its contents as a checkpoint
into the half that its own mark does not name, and writes the mark last (P2.5). The mark counts as the term's first
commit: another read of all claims follows it.

A change is committed once its frame is durable in the master's journal and a read of all claims that began after that
shows no higher term (P2.6). Whoever claims writes first and reads afterwards; whoever commits writes first and reads
afterwards; so of a claimer and a committer one sees the other: either the committer sees the higher term and tells
nobody, or its frame was durable before the claimer looks for the newest journal. No clock is involved: that a
predecessor is out (proven dead, or its lease has run out) only decides who may lead next, never what is decided.

The machine is a value: every function takes a `Mastership` and returns the next one with the single thing to do next,
whose completion is the only event it then waits for. So the exhaustive search (`sim/search/exhaustive.py`) runs this
code. Terms are compared, never flags, and a higher term is obeyed however dead its writer may be.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from muster.records.registers import Claim, ClaimFlag, Mark, Strip
from muster.records.terms import NO_TERM, Stamp, Term, next_term


class Phase(IntEnum):
    """What the machine waits for."""

    SETTLING = 0  # WITHDRAWN is being written
    IDLE = 1  # nothing: not master
    CLAIM_WRITE = 2
    CLAIM_READ = 3
    LOADING = 4
    ADOPT_VERIFY = 5
    ADOPT_CHECKPOINT = 6
    ADOPT_MARK = 7
    ADOPT_CHECK = 8
    MASTER = 9  # nothing: master
    COMMIT_WRITE = 10
    COMMIT_CHECK = 11
    COMPACT_CHECKPOINT = 12
    COMPACT_MARK = 13


class Mastership(NamedTuple):
    """The state of one node's mastership machine."""

    phase: Phase
    claim: Claim  # own register: as last written, or as it is being written
    next_mark: Mark  # journal being adopted or compacted into
    frame_number: int = 0  # of the next frame in the own journal
    frame: bytes = b""  # the frame in flight
    abdicating: bool = False  # withdraw as soon as the frame in flight is decided
    blob: bytes = b""  # the database being adopted, until it is known to be whole

    @property
    def node(self) -> int:
        """The node whose machine this is."""
        return self.claim.stamp.owner

    @property
    def term(self) -> Term:
        """The highest term that this node ever claimed."""
        return self.claim.stamp.term

    @property
    def is_master(self) -> bool:
        """Whether the adoption of `term` is committed and no higher term was seen since."""
        return self.phase >= Phase.MASTER


class Write(NamedTuple):
    """Durably write the own claim register, then call `written`."""

    claim: Claim


class Read(NamedTuple):
    """Read all claims, beginning now, then call `read`. `again`: pause first, the last read decided nothing."""

    again: bool = False


class Load(NamedTuple):
    """Load the journal `mark` of `owner`, then call `loaded` or `failed`."""

    owner: int
    mark: Mark


class Checkpoint(NamedTuple):
    """Write the database as a checkpoint of `mark`, then call `written`."""

    mark: Mark
    blob: bytes


class WriteFrame(NamedTuple):
    """Durably append the frame to the own journal, then call `written` or `full`."""

    mark: Mark
    number: int
    frame: bytes


class Compact(NamedTuple):
    """The journal is full: call `compact` with the database as it is committed."""


class Became(NamedTuple):
    """The node is master of `term` from now on."""

    term: Term


class Decided(NamedTuple):
    """The frame in flight is committed."""

    frame: bytes


class Withdrawn(NamedTuple):
    """The node no longer acts on its term; nothing is in flight. An undecided frame may or may not survive."""


class Halt(NamedTuple):
    """The own register holds what this node did not write: panic (SPEC 1.5)."""

    cause: str


Action = Write | Read | Load | Checkpoint | WriteFrame | Compact | Became | Decided | Withdrawn | Halt
IsOut = Callable[[int, int], bool]  # (node, incarnation) -> proven to have stopped, or its lease has run out (P2.12)


def boot(own: Claim, incarnation: int) -> tuple[Mastership, Action]:
    """Begin with the own register as it was found: withdraw whatever an earlier life of this node claimed (P2.1).

    The highest term ever claimed and the mark stay in the register for ever.
    """
    stamp = Stamp(own.stamp.owner, incarnation, own.stamp.term, own.stamp.sequence)
    state = Mastership(Phase.IDLE, own._replace(stamp=stamp), own.mark)
    return withdraw(state)


def may_claim(strip: Strip, node: int, is_out: IsOut) -> bool:
    """Whether every predecessor has withdrawn, is proven dead, or has let its lease run out (P2.2, P2.12).

    False while any claim is unknown (SPEC 1.5).
    """
    if any(claim is None for claim in strip.claims):
        return False
    return not _live_claims(strip, node, is_out)


def claim(state: Mastership, strip: Strip) -> tuple[Mastership, Action]:
    """Claim a term above all that `strip` shows. Only from IDLE, only when `may_claim` holds (P2.2)."""
    assert state.phase is Phase.IDLE
    highest = max((seen.stamp.term for seen in strip.claims if seen is not None), default=NO_TERM)
    term = next_term(max(highest, state.term), state.node)
    return _write(state._replace(phase=Phase.CLAIM_WRITE, abdicating=False), ClaimFlag.CLAIMING, term, state.claim.mark)


def written(state: Mastership) -> tuple[Mastership, Action]:
    """The write that the machine waited for is durable."""
    match state.phase:
        case Phase.SETTLING:
            return state._replace(phase=Phase.IDLE, abdicating=False, frame=b""), Withdrawn()
        case Phase.CLAIM_WRITE:
            return state._replace(phase=Phase.CLAIM_READ), Read()
        case Phase.ADOPT_CHECKPOINT:
            adopted = state._replace(phase=Phase.ADOPT_MARK, frame_number=0)
            return _write(adopted, ClaimFlag.MASTER, state.term, state.next_mark)
        case Phase.ADOPT_MARK:
            return state._replace(phase=Phase.ADOPT_CHECK), Read()
        case Phase.COMMIT_WRITE:
            return state._replace(phase=Phase.COMMIT_CHECK), Read()
        case Phase.COMPACT_CHECKPOINT:
            compacted = state._replace(phase=Phase.COMPACT_MARK, frame_number=0)
            return _write(compacted, ClaimFlag.MASTER, state.term, state.next_mark)
        case Phase.COMPACT_MARK:
            return _append(state)
        case _:
            raise AssertionError(f"no write is awaited in {state.phase.name}")


def read(state: Mastership, strip: Strip, is_out: IsOut, *, may_lead: bool = True) -> tuple[Mastership, Action]:
    """The read of all claims that the machine waited for; it began after the machine asked for it.

    `may_lead`: the own lease advances in the own reads; else the machine gives up what it is at (P2.13).
    """
    own = strip.claim(state.node)
    if own is not None and own != state.claim:
        return state, Halt("its own claim register holds what it did not write: a second node runs under this name")
    if own is None or any(seen is None for seen in strip.claims):
        return state, Read(again=True)  # unknown is never empty
    if _higher_term(state, strip) or not may_lead:
        return withdraw(state)
    match state.phase:
        case Phase.CLAIM_READ:
            if _live_claims(strip, state.node, is_out):
                return state, Read(again=True)
            owner, mark = newest_mark(strip)
            return state._replace(phase=Phase.LOADING), Load(owner, mark)
        case Phase.ADOPT_VERIFY:
            return state._replace(phase=Phase.ADOPT_CHECKPOINT, blob=b""), Checkpoint(state.next_mark, state.blob)
        case Phase.ADOPT_CHECK:
            return state._replace(phase=Phase.MASTER), Became(state.term)
        case Phase.COMMIT_CHECK:
            decided = state._replace(phase=Phase.MASTER, frame_number=state.frame_number + 1, frame=b"")
            return decided, Decided(state.frame)
        case _:
            raise AssertionError(f"no read is awaited in {state.phase.name}")


def loaded(state: Mastership, blob: bytes) -> tuple[Mastership, Action]:
    """The newest journal was read; `blob` is the database that it amounts to (P2.5).

    The half that was read can only have been rewritten meanwhile under a term above this one that was durable before:
    a read of all claims that begins now and shows none proves that what was read was whole (P2.8).
    """
    assert state.phase is Phase.LOADING
    return state._replace(phase=Phase.ADOPT_VERIFY, next_mark=_other_half(state), blob=blob), Read()


def failed(state: Mastership) -> tuple[Mastership, Action]:
    """The newest journal cannot be read whole, or the adoption cannot be written: give the claim up (P2.5)."""
    assert state.phase in (Phase.LOADING, Phase.ADOPT_CHECKPOINT)
    return withdraw(state)


def give_way(state: Mastership) -> tuple[Mastership, Action]:
    """What the machine waits for cannot be done within its bound: withdraw, so that another node leads (P2.11).

    A write that failed may have happened all the same: an undecided frame or an unchecked mark, which P2.1 and lemma 3
    allow for. A withdrawal itself is never given up.
    """
    assert state.phase not in (Phase.SETTLING, Phase.IDLE, Phase.MASTER)
    return withdraw(state)


def propose(state: Mastership, frame: bytes) -> tuple[Mastership, Action]:
    """Commit `frame`. Only from MASTER: one frame is in flight at a time (P2.6)."""
    assert state.phase is Phase.MASTER
    return _append(state._replace(frame=frame))


def full(state: Mastership) -> tuple[Mastership, Action]:
    """The frame does not fit behind the others: start the other half with a checkpoint (P2.7).

    A frame that does not even fit behind a fresh checkpoint never will; and two compactions without a read of the
    claims between them would overwrite what a reader may still trust (P2.8).
    """
    assert state.phase is Phase.COMMIT_WRITE
    if state.frame_number == 0:
        return withdraw(state)
    return state._replace(phase=Phase.COMPACT_CHECKPOINT), Compact()


def compact(state: Mastership, blob: bytes) -> tuple[Mastership, Action]:
    """Continue in the other half with `blob`, the database as committed so far (P2.7)."""
    assert state.phase is Phase.COMPACT_CHECKPOINT
    mark = _other_half(state)
    return state._replace(next_mark=mark), Checkpoint(mark, blob)


def abdicate(state: Mastership) -> tuple[Mastership, Action | None]:
    """Give the mastership up, once the frame in flight, if any, is decided (SPEC 2.4). The term stays (P2.1)."""
    if state.phase is Phase.MASTER:
        return withdraw(state)
    return state._replace(abdicating=True), None


def observe(state: Mastership, strip: Strip, *, may_lead: bool = True) -> tuple[Mastership, Action | None]:
    """A read that nobody waited for: a master that sees a higher term stops at once, not at its next commit (P2.3).

    So does one whose own lease does not advance in its own reads any more (P2.13).
    """
    if state.phase is Phase.MASTER and (_higher_term(state, strip) or not may_lead):
        return withdraw(state)
    return state, None


def withdraw(state: Mastership) -> tuple[Mastership, Action]:
    """Write WITHDRAWN beside the term; the term and the mark stay (P2.1)."""
    return _write(
        state._replace(phase=Phase.SETTLING, blob=b""), ClaimFlag.WITHDRAWN, withdrawn_term(state), state.claim.mark
    )


def withdrawn_term(state: Mastership) -> Term:
    """The term that stays in the register after a withdrawal: never a lower one (P2.1)."""
    return state.term


def newest_mark(strip: Strip) -> tuple[int, Mark]:
    """Owner and mark of the journal that must be adopted: no other is newer (P2.5)."""
    claims = [claim for claim in strip.claims if claim is not None]
    newest = max(claims, key=lambda claim: (claim.mark.term, claim.mark.generation))
    return newest.stamp.owner, newest.mark


def obeys(own: Term, other: Term) -> bool:
    """Whether a node that claimed `own` must give way to `other`, whoever wrote it and whatever its flag (P2.3)."""
    return other > own


def _higher_term(state: Mastership, strip: Strip) -> bool:
    return any(seen is not None and obeys(state.term, seen.stamp.term) for seen in strip.claims)


def _live_claims(strip: Strip, node: int, is_out: IsOut) -> list[int]:
    return [
        seen.stamp.owner
        for seen in strip.claims
        if seen is not None
        and seen.stamp.owner != node
        and seen.flag is not ClaimFlag.WITHDRAWN
        and not is_out(seen.stamp.owner, seen.stamp.incarnation)
    ]


def _write(state: Mastership, flag: ClaimFlag, term: Term, mark: Mark) -> tuple[Mastership, Action]:
    stamp = state.claim.stamp
    new = Claim(Stamp(stamp.owner, stamp.incarnation, term, stamp.sequence + 1), flag, mark)
    return state._replace(claim=new), Write(new)


def _append(state: Mastership) -> tuple[Mastership, Action]:
    state = state._replace(phase=Phase.COMMIT_WRITE)
    return state, WriteFrame(state.claim.mark, state.frame_number, state.frame)


def _other_half(state: Mastership) -> Mark:
    """Where the next checkpoint goes: never onto the journal that the own mark names (P2.5)."""
    own = state.claim.mark
    return Mark(state.term, 1 - own.half, own.generation + 1)
