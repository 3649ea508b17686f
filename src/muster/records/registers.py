"""The four single-writer registers that every node has in the store (SPEC 1.5, 2.6, 7.1, 7.2, 7.4).

| register | writer | says |
|---|---|---|
| lease | guard | this incarnation is alive, or its tombstone |
| claim | daemon | the highest term ever claimed, what became of it, and where its journal is |
| view | daemon | whom this daemon hears on the interconnect; the daemon's own heartbeat |
| marks | daemon | incarnations that this node, as master, has committed to force out |

Plain named tuples and `struct`, no schema library: the guard process imports this module and must stay small.
Each register fits in one sector with its header (`sectors.py`).
"""

import struct
from enum import IntEnum
from typing import NamedTuple

from muster.records.terms import NO_TERM, Stamp, Term


class RegisterKind(IntEnum):
    """The registers of a slot, in their order in the strip."""

    LEASE = 1
    CLAIM = 2
    VIEW = 3
    MARKS = 4


class LeaseState(IntEnum):
    """What the lease register of a node says about its newest incarnation."""

    NEVER = 0  # no incarnation of this node has ever run
    LIVE = 1  # renewed by a running guard
    CLEAN = 2  # tombstone of a completed graceful leave
    PANICKED = 3  # tombstone written after a panic had emptied the node


class Deadman(IntEnum):
    """What stops a node whose guard can no longer renew its lease (SPEC 7.1)."""

    NONE = 0  # nothing: an expired lease proves nothing
    PID_NAMESPACE = 1  # kernel timer that kills the guard, whose death kills the node's PID namespace
    PROCESS_TREE = 2  # the same timer, but only parent-death signals below it
    WATCHDOG = 3  # a hardware or kernel watchdog resets the machine


class ProofKind(IntEnum):
    """What proved that an incarnation has stopped (SPEC 7.1)."""

    CLEAN_TOMBSTONE = 1
    PANIC_TOMBSTONE = 2
    LEASE_EXPIRED = 3
    NEXT_INCARNATION = 4
    FENCE_AGENT = 5
    OPERATOR = 6

    @property
    def words(self) -> str:
        """The proof in words."""
        return self.name.lower().replace("_", " ")


class Lease(NamedTuple):
    """The node's lease; the stamp's sequence is its beat. Durations in milliseconds."""

    stamp: Stamp
    state: LeaseState
    deadman: Deadman
    lease_ms: int
    panic_bound_ms: int
    boot_id: bytes  # 16 bytes, the kernel's boot id
    cause: str  # why it ended, for tombstones


class ClaimFlag(IntEnum):
    """What became of the highest term that the node ever claimed (SPEC 2.6)."""

    WITHDRAWN = 0  # never claimed, withdrawn, or abdicated: the node acts on no term
    CLAIMING = 1
    MASTER = 2


class Mark(NamedTuple):
    """Adoption mark: where the journal of `term` is in its owner's area. Written last (SPEC 2.6)."""

    term: Term
    half: int
    generation: int  # counts the checkpoints ever written by this node


NO_MARK = Mark(NO_TERM, 1, 0)


class Claim(NamedTuple):
    """The node's claim; the stamp's term is the highest term that it ever claimed."""

    stamp: Stamp
    flag: ClaimFlag
    mark: Mark


class View(NamedTuple):
    """Whom the daemon hears; rewritten at least every `view_ms`, so its sequence is the daemon's heartbeat."""

    stamp: Stamp
    heard: frozenset[int]  # node ids whose interconnect frames arrived within the link bound
    cut_off: bool = False  # no interface that carries an address of the node has a link (SPEC 7.4)


class Marks(NamedTuple):
    """Forced-leaving marks published after their commit: (node id, incarnation) (SPEC 7.2)."""

    stamp: Stamp
    condemned: tuple[tuple[int, int], ...]


Register = Lease | Claim | View | Marks

MAXIMUM_SLOTS = 40  # as many marks as fit into one 512-byte sector
_CAUSE_BYTES = 120
_LEASE = struct.Struct("<BBII16sH")
_CLAIM = struct.Struct("<BQHBI")
_VIEW = struct.Struct("<Q")
_CUT_OFF = b"\x01"  # after it, only where it is so
_MARK = struct.Struct("<HQ")


class MalformedRegister(ValueError):
    """The payload of a sector with a good checksum does not decode: a writer of another release, or a bug."""


def encode_register(register: Register) -> bytes:
    """Payload of a register, without its sector header. Fixed little-endian layout (docs/DISK_FORMAT.md)."""
    match register:
        case Lease():
            cause = register.cause.encode()[:_CAUSE_BYTES]
            head = _LEASE.pack(
                register.state,
                register.deadman,
                register.lease_ms,
                register.panic_bound_ms,
                register.boot_id,
                len(cause),
            )
            return head + cause
        case Claim():
            mark = register.mark
            return _CLAIM.pack(register.flag, mark.term.number, mark.term.node, mark.half, mark.generation)
        case View():
            return _VIEW.pack(sum(1 << node for node in register.heard)) + (_CUT_OFF if register.cut_off else b"")
        case Marks():
            return b"".join(_MARK.pack(node, incarnation) for node, incarnation in register.condemned)


def decode_register(kind: RegisterKind, stamp: Stamp, payload: bytes) -> Register:
    """Inverse of `encode_register`. Raises `MalformedRegister`."""
    try:
        if kind is RegisterKind.LEASE:
            state, deadman, lease_ms, panic_bound_ms, boot_id, length = _LEASE.unpack_from(payload)
            cause = payload[_LEASE.size : _LEASE.size + length].decode(errors="replace")
            return Lease(stamp, LeaseState(state), Deadman(deadman), lease_ms, panic_bound_ms, boot_id, cause)
        if kind is RegisterKind.CLAIM:
            flag, number, node, half, generation = _CLAIM.unpack(payload)
            return Claim(stamp, ClaimFlag(flag), Mark(Term(number, node), half, generation))
        if kind is RegisterKind.VIEW:
            (bits,) = _VIEW.unpack(payload.removesuffix(_CUT_OFF) if len(payload) > _VIEW.size else payload)
            heard = frozenset(node for node in range(64) if bits >> node & 1)
            return View(stamp, heard, cut_off=len(payload) > _VIEW.size)
        return Marks(stamp, tuple(_MARK.iter_unpack(payload)))
    except (struct.error, ValueError) as error:
        raise MalformedRegister(f"{kind.name.lower()} register of node {stamp.owner}: {error}") from error


def blank_register(kind: RegisterKind, owner: int) -> Register:
    """The register as `muster init` writes it, before the node has ever run."""
    stamp = Stamp(owner, 0, NO_TERM, 0)
    if kind is RegisterKind.LEASE:
        return Lease(stamp, LeaseState.NEVER, Deadman.NONE, 0, 0, bytes(16), "")
    if kind is RegisterKind.CLAIM:
        return Claim(stamp, ClaimFlag.WITHDRAWN, NO_MARK)
    if kind is RegisterKind.VIEW:
        return View(stamp, frozenset())
    return Marks(stamp, ())


class Strip(NamedTuple):
    """All registers of all slots, as one read of the store shows them. `None` is unknown, never empty (SPEC 1.5)."""

    leases: tuple[Lease | None, ...]
    claims: tuple[Claim | None, ...]
    views: tuple[View | None, ...]
    marks: tuple[Marks | None, ...]
