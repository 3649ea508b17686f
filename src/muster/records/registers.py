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
import zlib
from enum import IntEnum
from typing import NamedTuple

from muster.records.terms import NO_TERM, Stamp, Term
from muster.records.timing import WatchdogTimes


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
    KERNELS_WORD = 7  # of version 3: a node of the same kernel has asked it (P7.13)

    @property
    def words(self) -> str:
        """The proof in words."""
        return _PROOFS_IN_WORDS[self]


_PROOFS_IN_WORDS: dict[ProofKind, str] = {
    ProofKind.CLEAN_TOMBSTONE: "clean tombstone",
    ProofKind.PANIC_TOMBSTONE: "panic tombstone",
    ProofKind.LEASE_EXPIRED: "lease expired",
    ProofKind.NEXT_INCARNATION: "next incarnation",
    ProofKind.FENCE_AGENT: "fence agent",
    ProofKind.OPERATOR: "operator",
    ProofKind.KERNELS_WORD: "the kernel's word",
}
if lacking := [kind.name for kind in ProofKind if kind not in _PROOFS_IN_WORDS]:
    raise TypeError(f"records/registers.py has no words for the proof {', '.join(lacking)}")


def identity_of(uid: int, service: str) -> int:
    """What stands for a service in a register, in 64 bits: services that were defined together have the same uid.

    Of two that it does not tell apart, one would wait for the other's cleanup too.
    """
    return zlib.crc32(service.encode()) << 32 | uid & 0xFFFFFFFF


class Life(NamedTuple):
    """Where the kernel can be asked whether anything of an incarnation still runs (P7.14). Of version 3.

    The control group, where there is one, holds everything of the node but its guard and the guard's writers. Inodes
    tell whether who asks sees the same kernel's names: a pid means nothing in another PID namespace. `group_inode` is
    one that nothing else ever gets while this kernel runs: a descriptor that bears it counts everywhere (P7.20).
    """

    machine_id: bytes  # 16 bytes, zeros where the machine has none
    pid_namespace: int  # inode of the namespace in which `init_pid` counts: the guard's own
    time_namespace: int  # inode of the one in which `init_start` counts
    init_pid: int  # PID 1 of the node's own namespace; 0 where it has none
    init_start: int  # its start in clock ticks since boot; 0: not known
    group: str = ""  # path of the control group below the mount of control groups
    group_inode: int = 0  # of that group; where there is none, of init's pidfd; 0: not known
    group_root: int = 0  # inode of that mount's root


class Owed(NamedTuple):
    """What is still to be cleared in the machine's kernel, of services that ran there, by `identity_of` (P6.33).

    It speaks of the incarnations from `since` on. In a live record it is about those before it, in a tombstone about
    this one too.
    """

    since: int
    failed: tuple[int, ...] = ()  # their cleanup has failed
    waiting: tuple[int, ...] = ()  # their cleanup is at work, or waits for its turn
    more: bool = False  # the record has no room for all: nobody else is known to be clean either

    @property
    def is_empty(self) -> bool:
        """Whether nothing is owed."""
        return not (self.failed or self.waiting or self.more)


class Armed(NamedTuple):
    """The watchdog that stands behind a lease, armed before the record says so (P7.30, P7.33). Of version 6."""

    identity: str  # as the device names itself, at most 32 bytes
    times: WatchdogTimes
    proves: bool  # false: its clock may stop with the machine's, and no operator has said otherwise (P7.36)


class Lease(NamedTuple):
    """The node's lease; the stamp's sequence is its beat. Durations in milliseconds.

    `life` is None in a record of a release before version 3, and before anything of the incarnation runs.
    """

    stamp: Stamp
    state: LeaseState
    deadman: Deadman
    lease_ms: int
    panic_bound_ms: int
    boot_id: bytes  # 16 bytes, the kernel's boot id
    cause: str  # why it ended, for tombstones
    life: Life | None = None
    owed: Owed | None = None  # nothing said: what the incarnation has left is not known
    armed: Armed | None = None  # in a live record only


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
    heard_late: frozenset[int] = frozenset()  # those heard after their lease had run out (P4.6); of version 3


class Marks(NamedTuple):
    """Forced-leaving marks published after their commit: (node id, incarnation) (SPEC 7.2)."""

    stamp: Stamp
    condemned: tuple[tuple[int, int], ...]


Register = Lease | Claim | View | Marks

WATCHDOG_SINCE = 6  # version from which a lease may name a watchdog: `versions.WATCHDOGS`, likewise
LIFE_SINCE = 3  # version from which a lease may have one: `versions.KERNELS_WORD`, which the image cannot import
BANK_ENDS = (16, 32, 64, 128, 256)  # the slots of a store in banks: bank 0 has 0 to 15, bank 1 16 to 31, ... (P11.7)
MAXIMUM_SLOTS = BANK_ENDS[-1]
MAXIMUM_MARKS = 40  # of one register: as many as fit into a sector of 512 bytes
_CAUSE_BYTES = 120
_GROUP_BYTES = 160
_LEASE = struct.Struct("<BBII16sH")
_LIFE = struct.Struct("<16sQQIQQQH")
_CLAIM = struct.Struct("<BQHBI")
_VIEW = struct.Struct("<Q")
_NARROW = 64  # nodes that it has bits for
_WIDE_BYTES = MAXIMUM_SLOTS // 8  # of the bits where a view names a node beyond these
_WIDE = struct.Struct(f"<{_WIDE_BYTES}s?{_WIDE_BYTES}s")  # heard, cut off, heard late
_CUT_OFF = b"\x01"  # after it, only where it is so
_LATE = struct.Struct("<?Q")  # after it, in place of that, only where somebody is heard late
_MARK = struct.Struct("<HQ")
_OWED = struct.Struct("<QBB?")  # then the services of both kinds, and at the very end the length of all that and a sign
_OWED_END = struct.Struct("<H4s")
_OWED_SIGN = b"\xffOW\xfe"  # of no text: no record without a statement ends with it
_IDENTITY = struct.Struct("<Q")
_ARMED = struct.Struct("<IIIBB")  # T, g, r, late feeding is excluded, it proves; then the identity, and an end
_ARMED_SIGN = b"\xffWD\xfe"
_IDENTITY_BYTES = 32
_LEASE_BYTES = 512 - 88  # of a small sector, without its header
MAXIMUM_OWED = 24


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
            life = b"" if register.life is None else encode_life(register.life)
            return _with_owed(head + cause + life + _armed(register.armed), register.owed)
        case Claim():
            mark = register.mark
            return _CLAIM.pack(register.flag, mark.term.number, mark.term.node, mark.half, mark.generation)
        case View():
            if max(register.heard | register.heard_late, default=0) >= _NARROW:
                return _WIDE.pack(_wide(register.heard), register.cut_off, _wide(register.heard_late))
            head = _VIEW.pack(_bits(register.heard))
            if register.heard_late:
                return head + _LATE.pack(register.cut_off, _bits(register.heard_late))
            return head + (_CUT_OFF if register.cut_off else b"")
        case Marks():
            return b"".join(_MARK.pack(node, incarnation) for node, incarnation in register.condemned)


def decode_register(kind: RegisterKind, stamp: Stamp, payload: bytes) -> Register:
    """Inverse of `encode_register`. Raises `MalformedRegister`."""
    try:
        if kind is RegisterKind.LEASE:
            payload, owed = _without_owed(payload)
            payload, armed = _without_armed(payload)
            state, deadman, lease_ms, panic_bound_ms, boot_id, length = _LEASE.unpack_from(payload)
            cause = payload[_LEASE.size : _LEASE.size + length].decode(errors="replace")
            rest = payload[_LEASE.size + length :]
            life = decode_life(rest) if rest else None
            return Lease(
                stamp, LeaseState(state), Deadman(deadman), lease_ms, panic_bound_ms, boot_id, cause, life, owed, armed
            )  # fmt: skip
        if kind is RegisterKind.CLAIM:
            flag, number, node, half, generation = _CLAIM.unpack(payload)
            return Claim(stamp, ClaimFlag(flag), Mark(Term(number, node), half, generation))
        if kind is RegisterKind.VIEW:
            return _decode_view(stamp, payload)
        return Marks(stamp, tuple(_MARK.iter_unpack(payload)))
    except (struct.error, ValueError) as error:
        raise MalformedRegister(f"{kind.name.lower()} register of node {stamp.owner}: {error}") from error


def _with_owed(payload: bytes, owed: Owed | None) -> bytes:
    """The payload of a lease and what is owed, as far as it can be named: the failed ones first."""
    if owed is None:
        return payload
    room = (_LEASE_BYTES - len(payload) - _OWED.size - _OWED_END.size) // _IDENTITY.size
    named = max(0, min(room, MAXIMUM_OWED))
    failed = owed.failed[:named]
    waiting = owed.waiting[: named - len(failed)]
    more = owed.more or len(failed) < len(owed.failed) or len(waiting) < len(owed.waiting)
    services = b"".join(_IDENTITY.pack(each) for each in (*failed, *waiting))
    said = _OWED.pack(owed.since, len(failed), len(waiting), more) + services
    return payload + said + _OWED_END.pack(len(said), _OWED_SIGN)


def _without_owed(payload: bytes) -> tuple[bytes, Owed | None]:
    """Inverse of `_with_owed`. Raises `struct.error`."""
    if not payload.endswith(_OWED_SIGN):
        return payload, None
    length, _sign = _OWED_END.unpack(payload[-_OWED_END.size :])
    end = len(payload) - _OWED_END.size
    said = payload[end - length : end]
    since, failed, waiting, more = _OWED.unpack_from(said)
    services = tuple(each for (each,) in _IDENTITY.iter_unpack(said[_OWED.size :]))
    if len(services) != failed + waiting:
        raise ValueError(f"{len(services)} services are owed a cleanup, {failed} and {waiting} are announced")
    return payload[: end - length], Owed(since, services[:failed], services[failed:], more)


def _armed(armed: Armed | None) -> bytes:
    """What a lease says of its watchdog; nothing where it has none."""
    if armed is None:
        return b""
    times = armed.times
    said = _ARMED.pack(times.timeout_ms, times.granularity_ms, times.reset_ms, times.late_excluded, armed.proves)
    said += armed.identity.encode()[:_IDENTITY_BYTES]
    return said + _OWED_END.pack(len(said), _ARMED_SIGN)


def _without_armed(payload: bytes) -> tuple[bytes, Armed | None]:
    """Inverse of `_armed`, behind all that comes before it. Raises `struct.error`."""
    if not payload.endswith(_ARMED_SIGN):
        return payload, None
    length, _sign = _OWED_END.unpack(payload[-_OWED_END.size :])
    end = len(payload) - _OWED_END.size
    said = payload[end - length : end]
    timeout_ms, granularity_ms, reset_ms, late_excluded, proves = _ARMED.unpack_from(said)
    times = WatchdogTimes(timeout_ms, granularity_ms, reset_ms, bool(late_excluded))
    identity = said[_ARMED.size :].decode(errors="replace")
    return payload[: end - length], Armed(identity, times, bool(proves))


def _bits(nodes: frozenset[int]) -> int:
    return sum(1 << node for node in nodes)


def _nodes(bits: int) -> frozenset[int]:
    return frozenset(node for node in range(bits.bit_length()) if bits >> node & 1)


def _wide(nodes: frozenset[int]) -> bytes:
    return _bits(nodes).to_bytes(_WIDE_BYTES, "little")


def _narrowed(data: bytes) -> frozenset[int]:
    """Inverse of `_wide`."""
    return _nodes(int.from_bytes(data, "little"))


def _decode_view(stamp: Stamp, payload: bytes) -> View:
    if len(payload) == _WIDE.size:
        heard, cut_off, heard_late = _WIDE.unpack(payload)
        return View(stamp, _narrowed(heard), cut_off, _narrowed(heard_late))
    (bits,) = _VIEW.unpack_from(payload)
    rest = payload[_VIEW.size :]
    if rest in {b"", _CUT_OFF}:
        return View(stamp, _nodes(bits), rest == _CUT_OFF)
    cut_off, late = _LATE.unpack(rest)
    return View(stamp, _nodes(bits), cut_off, _nodes(late))


def encode_life(life: Life) -> bytes:
    """Where to ask the kernel about an incarnation; inverse of `decode_life`. Raises `ValueError` if it is too long."""
    group = life.group.encode()
    if len(group) > _GROUP_BYTES:
        raise ValueError(f"the path of a control group may have {_GROUP_BYTES} bytes; {life.group} has {len(group)}")
    return _LIFE.pack(*life[:5], life.group_inode, life.group_root, len(group)) + group


def decode_life(payload: bytes) -> Life:
    """Inverse of `encode_life`. Raises `struct.error` or `ValueError`."""
    machine_id, pids, times, init, start, group_inode, group_root, length = _LIFE.unpack_from(payload)
    group = payload[_LIFE.size : _LIFE.size + length].decode()
    return Life(machine_id, pids, times, init, start, group, group_inode, group_root)


def blank_register(kind: RegisterKind, owner: int) -> Register:
    """The register as `muster init` writes it, before the node has ever run."""
    if kind is RegisterKind.LEASE:
        return _blank_lease(owner)
    if kind is RegisterKind.CLAIM:
        return _blank_claim(owner)
    if kind is RegisterKind.VIEW:
        return _blank_view(owner)
    return Marks(Stamp(owner, 0, NO_TERM, 0), ())


def _blank_lease(owner: int) -> Lease:
    return Lease(Stamp(owner, 0, NO_TERM, 0), LeaseState.NEVER, Deadman.NONE, 0, 0, bytes(16), "")


def _blank_claim(owner: int) -> Claim:
    return Claim(Stamp(owner, 0, NO_TERM, 0), ClaimFlag.WITHDRAWN, NO_MARK)


def _blank_view(owner: int) -> View:
    return View(Stamp(owner, 0, NO_TERM, 0), frozenset())


def bank_of(slot: int) -> int:
    """In which bank a slot of a store in banks is (P11.7)."""
    return next(bank for bank, end in enumerate(BANK_ENDS) if slot < end)


class Strip(NamedTuple):
    """All registers, as one read of the store shows them. `None` is unknown, never empty (SPEC 1.5).

    The slots of banks whose doors were shut are left out: nobody had ever written there (P11.7). `lease`, `claim` and
    `view` answer for every slot of the store.
    """

    leases: tuple[Lease | None, ...]
    claims: tuple[Claim | None, ...]
    views: tuple[View | None, ...]
    marks: tuple[Marks | None, ...]
    slots: int = 0  # of the store; 0: no more than are here

    def lease(self, node: int) -> Lease | None:
        """The lease of a slot; a blank one where its bank is shut, and None for no slot of the store."""
        if node < len(self.leases):
            return self.leases[node]
        return _blank_lease(node) if node < self.slots else None

    def claim(self, node: int) -> Claim | None:
        """The claim of a slot, likewise."""
        if node < len(self.claims):
            return self.claims[node]
        return _blank_claim(node) if node < self.slots else None

    def view(self, node: int) -> View | None:
        """The view of a slot, likewise."""
        if node < len(self.views):
            return self.views[node]
        return _blank_view(node) if node < self.slots else None
