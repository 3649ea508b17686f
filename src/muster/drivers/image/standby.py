"""A process in waiting: it takes the place of the one that it was forked by, where that one is killed (P7.19).

For the two processes that a node has beside those that the kernel ends together: log writer and caretaker. They are
nobody's children, so nobody who lives in a namespace or is the last subreaper of a process tree could fork another one
for them. So each has a standby, its child, that waits for its end and does nothing else. The one at work hands it the
descriptors that it gets later, says `done` before it ends by itself, and makes another standby where that was killed.

Part of the guard's image: the standard library only. It has no file open, and waits for no disk.
"""

import os
import signal
import socket
import time
from collections.abc import Callable
from typing import NoReturn

from muster.drivers.image.descriptors import send_descriptors
from muster.drivers.image.process_tree import close_descriptors_except, fork_into

_SETTLES_S = 0.05  # from its fork until it may take over, and once more then: whoever kills both at once ends both
_LONGEST_S = 3.0  # between two of a long row that were killed, or cannot go on
_DONE = b"done"


class Standby:
    """The standby of this process. In it, `take_over(handed, times)` goes on with the work, and never returns."""

    def __init__(
        self, take_over: Callable[[tuple[int, ...], int], NoReturn], keep: tuple[int, ...], handed: tuple[int, ...],
        times: int,
    ) -> None:  # fmt: skip
        """`keep` are the descriptors that the work needs, and `handed` those that were handed over so far.

        `times`: how many have taken over before.
        """
        self._take_over, self._keep, self._handed, self._times = take_over, keep, handed, times
        self._channel: socket.socket | None = None
        self.pid = 0  # 0: there is none

    def start(self) -> None:
        """Fork one, in the place of any before. That none can be made is no reason for anybody to stop."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if self._channel is not None:
            self._channel.close()
        try:
            self.pid = fork_into(lambda: self._stand(theirs))
        except OSError:
            self.pid = 0
        theirs.close()
        self._channel = ours

    def hand(self, *descriptors: int) -> None:
        """The work needs these from now on."""
        self._handed = descriptors
        self._say(b"handed", descriptors)

    def ended(self, pid: int) -> bool:
        """Whether this child that has ended was the standby."""
        is_it = pid == self.pid
        if is_it:
            self.pid = 0
        return is_it

    def done(self) -> None:
        """This process ends by itself: nobody is to take its place, and no other standby is to be made."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._say(_DONE, ())

    def _say(self, word: bytes, descriptors: tuple[int, ...]) -> None:
        try:
            if self._channel is not None:
                send_descriptors(self._channel, word, descriptors)
        except OSError:
            return  # it was killed: the next one is forked with them

    def _stand(self, channel: socket.socket) -> NoReturn:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)  # the one at work decides
        close_descriptors_except((channel.fileno(), *self._keep, *self._handed))
        time.sleep(_SETTLES_S)
        handed = self._handed
        while True:
            try:
                word, given, _flags, _address = socket.recv_fds(channel, 16, 8)
            except OSError:
                word, given = b"", []
            if word == _DONE:
                os._exit(0)
            if not word:
                break
            handed = tuple(given)
        channel.close()
        time.sleep(min(_LONGEST_S, _SETTLES_S * 2**self._times))
        self._take_over(handed, self._times + 1)
