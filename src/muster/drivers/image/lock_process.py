"""The runner's side of the lock process: executed while the daemon wants it, killed when it is hung (P12.16).

Unlike the watcher process it is executed afresh: it speaks TLS and JSON, and has no place in the image of all
processes. It outlives the daemon, and writes a byte to a pipe again and again: that is its sign of life. Whether its
end ends the node is not decided here: the daemon has a handle on it from its registration, and the kernel tells.
"""

import contextlib
import os
import select
import signal
from typing import NoReturn

from muster.drivers.image.deadman import die_with_parent
from muster.drivers.image.keeper import restore_default_signals
from muster.drivers.image.process_tree import close_descriptors_except, fork_into, send
from muster.records.units import NEVER_US, US_PER_MS

RESTART_PAUSE_US = 500_000
START_SHARE = 4  # an interpreter that starts gives its first sign of life later than the others
_NOT_EXECUTED = 127


class LockProcess:
    """Keeps the process running while it is wanted."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._base, self._environment = environment, environment
        self._command: tuple[str, ...] = ()
        self._silence_us = NEVER_US
        self._not_before_us = 0
        self._alive_fd = -1
        self._deadline_us = NEVER_US
        self._epoll: select.epoll | None = None
        self.pid = 0

    @property
    def descriptor(self) -> int:
        """Where its signs of life arrive; -1 while there is none."""
        return self._alive_fd

    @property
    def wake_us(self) -> int:
        """When it is hung, unless it gives a sign of life; or when it may be executed again."""
        return self._deadline_us if self.pid else self._not_before_us if self._command else NEVER_US

    def want(self, command: tuple[str, ...], environment: dict[str, str], silence_ms: int) -> None:
        """Have it run, hung after so long without a sign of life; without a command have it end."""
        self._command, self._environment = command, {**self._base, **environment}
        self._silence_us = silence_ms * US_PER_MS
        if not command and self.pid:
            send([self.pid], signal.SIGTERM)

    def keep_running(self, now_us: int, epoll: select.epoll) -> None:
        """Execute it if it is wanted and not there; kill it if it is hung."""
        if self.pid:
            if now_us >= self._deadline_us:
                self._deadline_us = NEVER_US
                send([self.pid], signal.SIGKILL)
            return
        if not self._command or now_us < self._not_before_us:
            return
        self._not_before_us = now_us + RESTART_PAUSE_US
        runner, command = os.getpid(), self._command
        try:
            alive, writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return
        try:
            self.pid = fork_into(lambda: self._execute(runner, command, writes))
        except OSError:
            os.close(alive)
        else:
            self._alive_fd, self._epoll = alive, epoll
            self._deadline_us = now_us + START_SHARE * self._silence_us
            epoll.register(alive, select.EPOLLIN)
        finally:
            os.close(writes)

    def serve(self, now_us: int) -> None:
        """It has given signs of life, or closed the pipe."""
        with contextlib.suppress(BlockingIOError):
            if os.read(self._alive_fd, 4096):
                self._deadline_us = now_us + self._silence_us
            else:
                self._close()

    def ended(self, pid: int, now_us: int) -> bool:
        """Whether the process that was reaped was this one."""
        if pid != self.pid:
            return False
        self._close()
        self.pid, self._deadline_us = 0, NEVER_US
        self._not_before_us = now_us + RESTART_PAUSE_US
        return True

    def _close(self) -> None:
        if self._alive_fd >= 0 and self._epoll is not None:
            self._epoll.unregister(self._alive_fd)
            os.close(self._alive_fd)
            self._alive_fd = -1

    def _execute(self, runner: int, command: tuple[str, ...], alive: int) -> NoReturn:
        die_with_parent(signal.SIGKILL)
        if os.getppid() != runner:
            os._exit(_NOT_EXECUTED)
        os.setsid()
        signal.set_wakeup_fd(-1)
        close_descriptors_except((alive,))
        os.set_inheritable(alive, True)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        restore_default_signals()
        with contextlib.suppress(OSError):
            os.execve(command[0], [*command, "--alive", str(alive)], self._environment)
        os._exit(_NOT_EXECUTED)
