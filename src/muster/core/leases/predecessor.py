"""When a guard takes for gone what may run before it: its predecessor, and nodes of another kernel (P7.6, P7.17).

Theory of operation. A guard that starts reads the lease registers again and again, and gives each read to these
machines. They say whether it is to go on waiting, may begin, or must not start. What the kernel can be asked about is
asked by whoever runs them; what is said here is what follows from the answer, from the registers, from what this
machine remembers of itself, and from silence.

`drivers/image/guard.py` and `sim/world/guard.py` run them. The guard's image imports this module, so it needs the
standard library only.
"""

from enum import Enum, auto
from typing import NamedTuple

from muster.core.leases.lease import LeaseWatch
from muster.records.registers import Deadman, Lease, LeaseState, Life
from muster.records.timing import with_drift_ms
from muster.records.units import US_PER_MS

START_PATIENCE_US = 10_000_000  # a store that cannot be read for so long, while starting, refuses the start


class Here(NamedTuple):
    """The machine on which a guard starts, and what its home remembers."""

    boot_id: bytes
    machine_id: bytes
    ran_here: int  # the last incarnation that the home knows of; 0 for none


class Verdict(Enum):
    """What follows from a read."""

    WAIT = auto()
    GONE = auto()  # the predecessor has stopped
    UNREADABLE = auto()  # for too long: the start is refused for now (P11.6)
    BEATS = auto()  # somebody renews the lease under this very name
    STILL_RUNS = auto()  # by the kernel's word, though its lease has run out
    UNPROVEN = auto()  # it is silent, and nothing proves that it has stopped


class Patience:
    """With a store that cannot be read or written while the node starts: what passes by itself refuses nothing."""

    __slots__ = ("_since_us",)

    def __init__(self) -> None:
        self._since_us: int | None = None

    def is_over(self, now_us: int, *, failed: bool) -> bool:
        """Whether one attempt after another has failed for too long; the newest one did, or did not."""
        if not failed:
            self._since_us = None
            return False
        self._since_us = now_us if self._since_us is None else self._since_us
        return now_us - self._since_us >= START_PATIENCE_US


class Predecessor:
    """The last incarnation of the node that starts, through successive reads of its lease register."""

    __slots__ = ("_first", "_patience", "watch")

    def __init__(self, gap_ms: int, *, one_kernel: bool) -> None:
        self.watch = LeaseWatch(gap_ms, timers_prove=one_kernel)
        self._first: Lease | None = None
        self._patience = Patience()

    def read(self, lease: Lease | None, started_us: int, finished_us: int) -> Verdict:
        """Take in one read; `WAIT`: it refuses nothing. None: no copy of the register is valid, or it was not read."""
        self.watch.observe(lease, started_us, finished_us)
        if self._patience.is_over(finished_us, failed=lease is None):
            return Verdict.UNREADABLE
        if lease is None:
            return Verdict.WAIT
        self._first = self._first or lease
        beats = lease.stamp != self._first.stamp and lease.state is LeaseState.LIVE
        return Verdict.BEATS if beats else Verdict.WAIT


def to_ask(lease: Lease) -> Life | None:
    """What the kernel may be asked about, where it can be (P7.14)."""
    return lease.life if lease.state is LeaseState.LIVE else None


def settled(lease: Lease, watch: LeaseWatch, here: Here, *, vouched: bool, asked: bool, suspect_ms: int = 0) -> Verdict:
    """Whether the predecessor is gone, where the kernel has not said so (P7.6).

    `vouched`: an operator says that it has stopped. `asked`: the kernel can be asked, and something runs. `suspect_ms`:
    of the profile, if that names one: an earlier boot of this very machine is over, and no long lease is waited for.
    """
    if lease.state is LeaseState.NEVER or watch.evidence(lease.stamp.incarnation) is not None:
        return Verdict.GONE
    bound_ms = lease.lease_ms
    if suspect_ms and lease.life is not None and has_stopped_here(lease, here):
        bound_ms = min(bound_ms, suspect_ms)
    if watch.silent_us() < with_drift_ms(bound_ms) * US_PER_MS:
        return Verdict.WAIT
    if vouched or has_stopped_here(lease, here):
        return Verdict.GONE
    return Verdict.STILL_RUNS if asked and lease.life is not None else Verdict.UNPROVEN


def has_stopped_here(lease: Lease, here: Here) -> bool:
    """Whether a silent incarnation ran on this very machine, under a kernel that is gone or by an older release.

    The lock on the home is held by now. The home must be the machine's own: what it records is taken for what ran here.
    """
    if not any(lease.boot_id):  # a life that a restore has given it, which ran nowhere (P11.8)
        return True
    if lease.deadman is Deadman.NONE:
        return False
    if lease.life is not None:  # nothing is inferred from silence on the kernel that it ran under (P7.6)
        same_machine = any(lease.life.machine_id) and lease.life.machine_id == here.machine_id
        ran_here = same_machine or lease.stamp.incarnation == here.ran_here
        return ran_here and lease.boot_id != here.boot_id
    if lease.boot_id == here.boot_id:
        return lease.deadman is not Deadman.PROCESS_TREE  # P7.11
    return lease.stamp.incarnation == here.ran_here


class Others(NamedTuple):
    """What a read says of nodes under another kernel."""

    may_run: bool  # wait: one of them may
    beats: int = -1  # the node of one that does: this one must not start
    unreadable: bool = False  # for too long: the start is refused for now (P11.6)


class OtherKernels:
    """Leases under another boot id, in a store that is for the nodes of one kernel (P7.17).

    A read that fails, or shows a register in no valid copy, says nothing: what was seen before counts as it did.
    """

    __slots__ = ("_boot_id", "_first", "_gap_ms", "_patience", "_watches")

    def __init__(self, gap_ms: int, boot_id: bytes) -> None:
        self._gap_ms, self._boot_id = gap_ms, boot_id
        self._watches: dict[int, LeaseWatch] = {}
        self._first: dict[int, Lease] = {}
        self._patience = Patience()

    def read(self, leases: tuple[Lease | None, ...] | None, started_us: int, finished_us: int) -> Others:
        """Take in one read of all lease registers; None, if they could not be read."""
        if self._patience.is_over(finished_us, failed=leases is None):
            return Others(may_run=True, unreadable=True)
        if leases is None:
            return Others(may_run=True)
        for node, lease in enumerate(leases):
            if lease is None:
                continue
            if lease.state is not LeaseState.LIVE or lease.boot_id == self._boot_id:
                self._watches.pop(node, None)
                continue
            self._watches.setdefault(node, LeaseWatch(self._gap_ms)).observe(lease, started_us, finished_us)
            if lease.stamp != self._first.setdefault(node, lease).stamp:
                return Others(may_run=True, beats=node)
        return Others(any(watch.is_live() for watch in self._watches.values()))
