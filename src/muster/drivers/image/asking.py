"""Reading what other processes were executed with: in processes of their own, for it may hang (P7.9).

To read an environment takes a lock of that process's memory, which it holds while it waits for a file system in the
kernel, and may bring a page of it back from a disk. So the runner has small forks of itself read them, at most a few at
a time, and goes by what they have told within a bound.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from muster.drivers.image.process_tree import close_descriptors_except, fork_into, read_environment, send

MAXIMUM_READERS = 16
_TURN_S = 0.02


class EnvironmentReaders:
    """Who has been asked about which processes. The readers are children that the caller has to reap."""

    def __init__(self, pids: Sequence[int], name: bytes) -> None:
        """Have the value of variable `name` read for each of these; of one whose reader cannot be made, nothing."""
        self.readers: list[int] = []
        self._said: dict[int, bytearray] = {}
        for number in range(min(MAXIMUM_READERS, len(pids))):
            part = pids[number::MAXIMUM_READERS]
            try:
                said, says = os.pipe()
            except OSError:
                return
            try:
                self.readers.append(fork_into(lambda part=part, says=says: _read(part, name, says)))  # type: ignore[misc]
            except OSError:
                os.close(said)
            else:
                self._said[said] = bytearray()
            finally:
                os.close(says)

    def answers(self, bound_s: float, may_wait: Callable[[], bool]) -> dict[int, bytes]:
        """The values that are known within the bound; empty for what has none, absent for what is not known.

        `may_wait` is asked again and again while this waits. The readers have ended then, or are killed.
        """
        give_up_s = time.monotonic() + bound_s
        poll = select.poll()
        for said in self._said:
            poll.register(said, select.POLLIN)
        left = set(self._said)
        while left and time.monotonic() < give_up_s and may_wait():
            for said, _mask in poll.poll(int(_TURN_S * 1000)):
                data = os.read(said, 65536)
                self._said[said] += data
                if not data:
                    poll.unregister(said)
                    left.discard(said)
        for said in self._said:
            os.close(said)
        send(self.readers, signal.SIGKILL)
        found = {}
        for content in self._said.values():
            for record in bytes(content).split(b"\0\0")[:-1]:  # the last one may not be whole
                pid, _equals, value = record.partition(b"=")
                found[int(pid)] = value
        return found


def _read(pids: Sequence[int], name: bytes, says: int) -> NoReturn:
    signal.set_wakeup_fd(-1)  # shared with the runner
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    close_descriptors_except((says,))
    for pid in pids:
        value = read_environment(pid).get(name, b"")
        left = memoryview(b"%d=%s\0\0" % (pid, value))
        while left:
            left = left[os.write(says, left) :]
    os._exit(0)
