"""`musterd --clear`: the cleanups that a node left undone when it ended, without a boot of it (P6.34).

A service manager ends all of a node's processes with its guard, the caretaker and its standby too (systemd with
KillMode=mixed), and then runs this. It does what the caretaker would have done: it makes sure that nothing of the last
incarnation runs any more, by its tombstone or by the kernel's word; runs what the home keeps; and says in the lease
register what is still owed. Where it cannot be sure it does nothing, and the next boot does it.
"""

import functools
import os
import select
import socket
import time
from collections.abc import Callable

from muster.drivers.image.caretaker import Duty, run_caretaker
from muster.drivers.image.deadman import boottime_us
from muster.drivers.image.guard import (
    EXIT_CLEAN,
    StartRefused,
    empty_home,
    end_old_caretaker,
    end_recorded_group,
    lock_home,
)
from muster.drivers.image.kept_cleanups import LOCK, Kept, all_kept, last_run, path_of
from muster.drivers.image.kernels_word import CannotAsk, Witness, read_place
from muster.drivers.image.process_tree import fork_into
from muster.drivers.image.systemd import notify
from muster.drivers.store.lease_store import LeaseStore
from muster.records.registers import Deadman, Lease, LeaseState

WORD_US = 10_000_000  # for the kernel to end what was killed
MARGIN_MS = 60_000  # beside the cleanups' own limits
_LOOK_S = 0.02


def clear(home: str, name: str, node: int, open_store: Callable[[], LeaseStore], say: Callable[[str], None]) -> int:
    """Run what `home` keeps for the last incarnation of the node; the exit status.

    Raises `StartRefused` where the node runs, or something of it does not end; `StoreFailed`, `OSError`.
    """
    lock = lock_home(home)
    try:
        end_recorded_group(home)
        empty_home(home)
        end_old_caretaker(home)
        kept = all_kept(home)
        if not kept:
            return EXIT_CLEAN
        store = open_store()
        try:
            last = store.read_own()
        finally:
            store.close()
        if last is None or not has_ended(last):
            raise StartRefused("nothing proves that all of the node's last run has ended: its next boot clears it")
        limits = sum(_limit_ms(each) for each in kept)
        notify(f"EXTEND_TIMEOUT_USEC={(limits + MARGIN_MS) * 1000}", "STATUS=clearing what services have left")
        say(f"clearing what services have left in this machine: {', '.join(sorted({each.service for each in kept}))}")
        caretaker = _start(home, name, node, open_store, last)
        while not _has_begun(home, caretaker):
            if os.waitid(os.P_PID, caretaker, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(_LOOK_S)
    finally:
        os.close(lock)  # a boot of the node takes the work over from here
    os.waitpid(caretaker, 0)
    left = sorted({each.service for each in all_kept(home)})
    if left:
        say(f"not cleared: {', '.join(left)}; the next boot tries it again before the node joins")
    return EXIT_CLEAN


def _limit_ms(kept: Kept) -> int:
    commands = 3 if kept.probe else 1  # the probe before and after
    return (commands * kept.timeout_ms + kept.retry_pause_ms) * (1 + kept.retries)


def has_ended(last: Lease) -> bool:
    """Whether nothing of this incarnation runs any more: it is told by its tombstone, or the kernel says so (P7.13)."""
    if last.state in (LeaseState.CLEAN, LeaseState.PANICKED):
        return True
    if last.state is not LeaseState.LIVE or last.life is None:
        return False
    try:
        witness = Witness(last.life, last.boot_id, read_place())
    except (CannotAsk, OSError):
        return False
    poll = select.poll()
    for descriptor, mask in witness.descriptors.items():
        poll.register(descriptor, mask)
    give_up_us = boottime_us() + WORD_US
    try:
        while not witness.look():
            left_us = give_up_us - boottime_us()
            if left_us <= 0:
                return False
            poll.poll(min(100, left_us // 1000 + 1))
        return True
    finally:
        witness.close()


def _start(home: str, name: str, node: int, open_store: Callable[[], LeaseStore], last: Lease) -> int:
    """The caretaker of the incarnation that has ended, as a child; it is told what a guard would tell it."""
    incarnation = last.stamp.incarnation
    began, since = last_run(home)
    # of a run that did not begin with this home, the register is told nothing: no record has the incarnation zero
    duty = Duty(
        home, name, node, incarnation if began == incarnation else 0, since, open_store,
        is_tree=last.deadman is Deadman.PROCESS_TREE,
    )  # fmt: skip
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    caretaker = fork_into(functools.partial(run_caretaker, duty, theirs))
    theirs.close()
    ours.send(f"empty {last.cause or 'its node has ended'}".encode())
    ours.close()
    return caretaker


def _has_begun(home: str, caretaker: int) -> bool:
    """Whether the caretaker holds the lock on the cleanups."""
    try:
        with open(path_of(home, LOCK), "rb") as file:
            return int(file.read(32) or b"0") == caretaker
    except (OSError, ValueError):
        return False
