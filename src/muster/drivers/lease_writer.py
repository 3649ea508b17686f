"""The lease writer: the only process of a node's guard that waits for the store (SPEC 7.1, 7.2).

The guard itself must die at once when the deadman kills it, because its death is what ends the node, and a process that
waits for a disk does not die before the disk answers. So all store access after the start is done here, in a
child of the guard, one request at a time; a disk that hangs holds up this process only, and the guard can still empty
the node in time. It keeps the lock on the node's home: while a write of it may still arrive, no successor starts.

Channel, SOCK_SEQPACKET: `renew` -> `renewed DEADLINE_US` | `stop CAUSE` | `failed TEXT`; anything else is the new
content of the guard's state file, which is written here for the same reason.
"""

import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn, Protocol

from muster.core.lease import LeaseKeeper, Stop
from muster.drivers.deadman import boottime_us, die_with_parent, hold_memory_and_priority, set_process_name
from muster.drivers.store import StoreFailed
from muster.records.registers import Lease, Marks

MAXIMUM_PACKET_BYTES = 4096
_MAXIMUM_TEXT_CHARACTERS = 800


class LeaseStore(Protocol):
    """What the guard needs of the store; `drivers.guard_store.GuardStore` is it. All may raise `StoreFailed`."""

    @property
    def one_machine(self) -> bool:
        """Whether all daemons of the cluster run on this machine (scope `host`)."""

    def read_own(self) -> Lease | None:
        """The node's own lease register; None if it is unknown."""

    def read_marks(self) -> tuple[Marks | None, ...]:
        """The marks register of every slot; None for one that is unknown."""

    def write_lease(self, lease: Lease) -> None:
        """Durably replace the node's lease register."""


class CycleFailed(Exception):
    """A cycle could not read or write what it must: nothing is renewed, the next one tries again."""


def renew(store: LeaseStore, keeper: LeaseKeeper) -> int | Stop:
    """One cycle: read, judge, write (SPEC 7.2). The new deadline (us), or why to stop. Raises `CycleFailed`."""
    started_us = boottime_us()
    try:
        own, marks = store.read_own(), store.read_marks()
        if own is None:
            raise CycleFailed("no copy of this node's lease register is valid; run `muster store check`")
        if None in marks:
            text = f"no copy of the marks register of node {marks.index(None)} is valid; run `muster store check`"
            raise CycleFailed(text)
        verdict = keeper.begin(started_us, own, marks)
        if isinstance(verdict, Stop):
            return verdict
        store.write_lease(verdict.lease)
    except (StoreFailed, OSError) as error:
        raise CycleFailed(str(error)) from error
    stop = keeper.renewed(verdict.lease, started_us, boottime_us())
    if stop is not None:
        return stop
    if keeper.deadline_us is None:
        raise AssertionError("a renewal without a deadline")
    return keeper.deadline_us


def write_tombstone(store: LeaseStore, keeper: LeaseKeeper, *, clean: bool, cause: str) -> None:
    """Write the last record of this incarnation, unless the register is another's by now. Raises `CycleFailed`.

    For the guard itself, when nothing of the node is left, the lease writer included.
    """
    try:
        if not keeper.catch_up(store.read_own()):
            raise CycleFailed("the lease register holds what this node did not write")
        store.write_lease(keeper.tombstone(clean, cause))
    except (StoreFailed, OSError) as error:
        raise CycleFailed(str(error)) from error


def run_lease_writer(
    channel: socket.socket,
    other_end: socket.socket,
    store: LeaseStore,
    keeper: LeaseKeeper,
    guard: int,
    state_path: str,
    say: Callable[[str], None],
) -> NoReturn:
    """Become the lease writer, in a process freshly forked by `guard`, which keeps `other_end` of the channel.

    `state_path` is the guard's state file; `say` prints a line for the log.
    """
    die_with_parent(signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(0)
    set_process_name("muster-lease")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches all of the group; the guard decides
    signal.set_wakeup_fd(-1)
    other_end.close()
    hold_memory_and_priority()
    failing = False
    while True:
        packet = channel.recv(MAXIMUM_PACKET_BYTES)
        if not packet:
            os._exit(0)
        if packet != b"renew":
            write_state(state_path, packet, say)
            continue
        answer = _answer(store, keeper)
        channel.send(answer.encode())
        if answer.startswith("failed ") != failing:
            failing = not failing
            say(f"the lease is not renewed: {answer[7:]}" if failing else "the lease is renewed again")


def _answer(store: LeaseStore, keeper: LeaseKeeper) -> str:
    try:
        outcome = renew(store, keeper)
    except CycleFailed as failure:
        return f"failed {failure}"[:_MAXIMUM_TEXT_CHARACTERS]
    return f"stop {outcome.cause}" if isinstance(outcome, Stop) else f"renewed {outcome}"


def write_state(path: str, state: bytes, say: Callable[[str], None]) -> None:
    """Replace the guard's state file at once: a reader sees the old or the new one."""
    try:
        with open(f"{path}.new", "wb") as file:
            file.write(state)
        os.rename(f"{path}.new", path)
    except OSError as error:
        say(f"cannot write {path}: {error.strerror}; `muster dev` will not find this node's processes")
