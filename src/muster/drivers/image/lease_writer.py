"""The lease writer: the only process of a node's guard that waits for the store (SPEC 7.1, 7.2).

The guard itself must die at once when the deadman kills it, because its death is what ends the node, and a process that
waits for a disk does not die before the disk answers. So all store access after the start is done here, in a
child of the guard, one request at a time; a disk that hangs holds up this process only, and the guard can still empty
the node in time. It keeps the lock on the node's home, and the guard does not: while a write of it may still arrive, no
successor starts.

Channel, SOCK_SEQPACKET: `renew` -> `renewed DEADLINE_US` | `stop CAUSE` | `failed TEXT`; `bury clean` or
`bury panic CAUSE`, asked only when nothing of the node runs any more -> `buried` | `unburied TEXT`; `owed JSON`, what
the next renewals say is owed to this machine (P6.33), without an
answer; `times JSON`, the same: what the next renewals say of times, and how far they move the deadline (P7.35);
`life BYTES`, the same: what the record says from now on of where the kernel can be asked about this
incarnation (P7.14).
"""

import json
import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from muster.core.leases.lease import LeaseKeeper, Stop
from muster.drivers.image.deadman import boottime_us, die_with_parent, hold_memory_and_priority, set_process_name
from muster.drivers.image.processes import LEASE_WRITER
from muster.drivers.store.failures import StoreFailed
from muster.drivers.store.lease_store import LeaseStore
from muster.records.registers import Armed, Owed, decode_life
from muster.records.timing import Profile, WatchdogTimes

MAXIMUM_PACKET_BYTES = 4096
OWED = b"owed "
_MAXIMUM_TEXT_CHARACTERS = 800
_LIFE = b"life "
_TIMES = b"times "


class CycleFailed(Exception):
    """A cycle could not read or write what it must: nothing is renewed, the next one tries again."""


def renew(store: LeaseStore, keeper: LeaseKeeper) -> int | Stop:
    """One cycle: read, judge, write, look (SPEC 7.2, P11.1). The new deadline (us), or why to stop.

    Raises `CycleFailed`.
    """
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
        other = store.replaced(verdict.lease)
    except (StoreFailed, OSError) as error:
        raise CycleFailed(str(error)) from error
    if other is None:
        raise CycleFailed("what is at the store's path shows no beat of this node that is valid")
    if other:
        return Stop(f"its store was replaced by another file or device while it ran: {other}")
    stop = keeper.renewed(verdict.lease, started_us, boottime_us())
    if stop is not None:
        return stop
    if keeper.deadline_us is None:
        raise AssertionError("a renewal without a deadline")
    return keeper.deadline_us


def write_tombstone(store: LeaseStore, keeper: LeaseKeeper, *, clean: bool, cause: str) -> None:
    """Write the last record of this incarnation, unless the register is another's by now. Raises `CycleFailed`."""
    try:
        if not keeper.catch_up(store.read_own()):
            raise CycleFailed("the lease register holds what this node did not write")
        store.write_lease(keeper.tombstone(clean, cause))
    except (StoreFailed, OSError) as error:
        raise CycleFailed(str(error)) from error


def run_lease_writer(
    channel: socket.socket,
    other_end: socket.socket,
    open_store: Callable[[], LeaseStore],
    keeper: LeaseKeeper,
    guard: int,
    say: Callable[[str], None],
) -> NoReturn:
    """Become the lease writer, in a process freshly forked by `guard`, which keeps `other_end` of the channel.

    `say` prints a line for the log.
    """
    die_with_parent(signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(0)
    set_process_name(LEASE_WRITER)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches all of the group; the guard decides
    signal.set_wakeup_fd(-1)
    other_end.close()
    hold_memory_and_priority()
    failing = False
    store: LeaseStore | None = None
    while True:
        packet = channel.recv(MAXIMUM_PACKET_BYTES)
        if not packet:
            os._exit(0)
        if packet.startswith(OWED):
            keeper.owed = read_owed(packet[len(OWED) :])
            continue
        if packet.startswith(_TIMES):
            keeper.retime(*read_times(packet[len(_TIMES) :]))
            continue
        if packet.startswith(_LIFE):
            keeper.life = decode_life(packet[len(_LIFE) :])
            continue
        try:
            store = store or open_store()
        except (StoreFailed, OSError) as error:
            channel.send(f"failed {error}"[:_MAXIMUM_TEXT_CHARACTERS].encode())
            continue
        if packet != b"renew":
            channel.send(_bury(store, keeper, packet.decode(errors="replace")).encode())
            continue
        answer = _answer(store, keeper)
        channel.send(answer.encode())
        if answer.startswith("failed ") != failing:
            failing = not failing
            say(f"the lease is not renewed: {answer[7:]}" if failing else "the lease is renewed again")


def read_owed(data: bytes) -> Owed:
    """What a caretaker has said (see `caretaker.py`)."""
    since, failed, waiting, more = json.loads(data)
    return Owed(since, tuple(failed), tuple(waiting), more)


def times_packet(profile: Profile, span_ms: int, armed: Armed | None) -> bytes:
    """Other times for a lease writer (`LeaseKeeper.retime`)."""
    watchdog = None if armed is None else (armed.identity, tuple(armed.times), armed.proves)
    return _TIMES + json.dumps((profile._asdict(), span_ms, watchdog)).encode()


def read_times(data: bytes) -> tuple[Profile, int, Armed | None]:
    """Inverse of `times_packet`, without its first word."""
    profile, span_ms, watchdog = json.loads(data)
    armed = None if watchdog is None else Armed(watchdog[0], WatchdogTimes(*watchdog[1]), watchdog[2])
    return Profile(**profile), span_ms, armed


def _answer(store: LeaseStore, keeper: LeaseKeeper) -> str:
    try:
        outcome = renew(store, keeper)
    except CycleFailed as failure:
        return f"failed {failure}"[:_MAXIMUM_TEXT_CHARACTERS]
    return f"stop {outcome.cause}" if isinstance(outcome, Stop) else f"renewed {outcome}"


def _bury(store: LeaseStore, keeper: LeaseKeeper, asked: str) -> str:
    _bury_word, how, cause = f"{asked} ".split(" ", 2)
    try:
        write_tombstone(store, keeper, clean=how == "clean", cause=cause.strip())
    except CycleFailed as failure:
        return f"unburied {failure}"[:_MAXIMUM_TEXT_CHARACTERS]
    return "buried"
