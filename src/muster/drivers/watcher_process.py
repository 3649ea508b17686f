"""The runner's side of the built-in watcher process: runs while an event needs it, again when it dies (SPEC 5.1)."""

import os
import signal
from typing import NoReturn

from muster.drivers.deadman import Leash
from muster.drivers.process_tree import fork_into, send

_RESTART_PAUSE_US = 500_000


class WatcherProcess:
    """The runner's side: keeps the process running while it is wanted."""

    def __init__(self, leash: Leash, environment: dict[str, str], open_files: tuple[int, int]) -> None:
        self._leash, self._environment, self._open_files = leash, environment, open_files
        self._wanted = False
        self._not_before_us = 0
        self.pid = 0

    def want(self, wanted: bool) -> None:
        """Have it run, or end."""
        self._wanted = wanted
        if not wanted and self.pid:
            send([self.pid], signal.SIGTERM)

    def keep_running(self, now_us: int) -> None:
        """Fork it if it is wanted and not there."""
        if not self._wanted or self.pid or now_us < self._not_before_us:
            return
        runner = os.getpid()
        try:
            self.pid = fork_into(lambda: self._become(runner))
        except OSError:
            self._not_before_us = now_us + _RESTART_PAUSE_US

    def ended(self, pid: int, now_us: int) -> bool:
        """Whether the process that was reaped was this one."""
        if pid != self.pid:
            return False
        self.pid, self._not_before_us = 0, now_us + _RESTART_PAUSE_US
        return True

    def _become(self, runner: int) -> NoReturn:
        # Loaded there only: a node without such events has no room for it in the image of all its processes.
        from muster.drivers.watcher import run_watcher

        run_watcher(self._leash, runner, self._environment, self._open_files)
