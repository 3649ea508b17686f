"""The runner's side of the built-in watcher process: runs while an event needs it, again when it dies (SPEC 5.1).

The two have a channel of their own, SOCK_SEQPACKET, one JSON object a packet. The watcher asks about supervised
programs, and the runner, which alone learns how they end, tells (P8.1):

    {"service", "generation"}                          watcher: has this program ended?
    {"service", "generation", "status", "output"}      runner: it has; at once if it had, and else when it does
    {"waiting": [...], "count"}                        watcher: its checks that wait for a place, as the runner says it

The runner never waits for the watcher: it notes which services it has to tell of, at most each of them once, and what
it tells is what it remembers of them then. A watcher that dies takes the channel with it; the next one asks anew.
"""

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from muster.core.launching.ledger import Exited
from muster.core.launching.restarts import Restarts
from muster.drivers.image.commands import RequestRefused, number, text
from muster.drivers.image.deadman import Leash
from muster.drivers.image.process_tree import fork_into, send
from muster.drivers.image.watcher_packets import PACKET_BYTES

_RESTART_PAUSE_MS = 500
_PACKETS_A_TURN = 64


class WatcherProcess:
    """Keeps the process running while it is wanted. `exited`: how a service's program ended, if it is known to."""

    def __init__(
        self,
        leash: Leash,
        environment: dict[str, str],
        exited: Callable[[str], Exited | None],
    ) -> None:
        self._leash, self._environment = leash, environment
        self._exited = exited
        self._wanted = False
        self._restarts = Restarts(_RESTART_PAUSE_MS, _RESTART_PAUSE_MS)
        self._channel: socket.socket | None = None
        self._epoll: select.epoll | None = None
        self._untold: dict[str, None] = {}  # services, in the order in which their programs ended
        self.pid = 0
        self.waiting: tuple[list[object], int] = ([], 0)  # its checks that wait for a place, and how many (P8.12)

    @property
    def descriptor(self) -> int:
        """Of the channel; -1 while there is none."""
        return self._channel.fileno() if self._channel is not None else -1

    def want(self, wanted: bool) -> None:
        """Have it run, or end."""
        self._wanted = wanted
        if not wanted and self.pid:
            send([self.pid], signal.SIGTERM)

    def keep_running(self, now_us: int, epoll: select.epoll) -> None:
        """Fork it if it is wanted and not there; its channel is served through `epoll`."""
        if not self._wanted or not self._restarts.is_due(now_us):
            return
        self._restarts.begun(now_us)
        runner = os.getpid()
        try:
            own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self._restarts.not_begun(now_us)
            return
        try:
            self.pid = fork_into(lambda: self._become(runner, theirs))
        except OSError:
            self._restarts.not_begun(now_us)
            own.close()
        else:
            own.setblocking(False)
            self._channel, self._epoll = own, epoll
            epoll.register(own.fileno(), select.EPOLLIN)
        finally:
            theirs.close()

    def ended(self, pid: int, now_us: int) -> bool:
        """Whether the process that was reaped was this one."""
        if pid != self.pid:
            return False
        self._close()
        self.pid = 0
        self._restarts.ended(now_us, asked_for=not self._wanted)
        return True

    def tell(self, service: str) -> None:
        """The supervised program of a service has ended."""
        if self._channel is not None:
            self._untold[service] = None
            self._flush()

    def serve(self) -> None:
        """The channel is ready: answer what is asked, go on telling."""
        for _ in range(_PACKETS_A_TURN):
            channel = self._channel
            if channel is None:
                return
            try:
                data = channel.recv(PACKET_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._close()
                return
            with contextlib.suppress(RequestRefused, ValueError):  # nobody else is there, and it would ask again
                self._answer(json.loads(data))
        self._flush()

    def _answer(self, asked: object) -> None:
        if not isinstance(asked, dict):
            return
        if "waiting" in asked:
            self.waiting = (asked["waiting"], number(asked, "count", 0))
            return
        service, generation = text(asked, "service"), number(asked, "generation", 0)
        exited = self._exited(service)
        if exited is not None and exited.generation == generation:
            self._untold[service] = None

    def _flush(self) -> None:
        if self._channel is None or self._epoll is None:
            return
        while self._untold:
            service = next(iter(self._untold))
            exited = self._exited(service)  # nothing where a command has come since: that is the answer to it
            if exited is not None:
                packet = json.dumps({"service": service, **exited._asdict()}).encode()
                try:
                    self._channel.send(packet)
                except BlockingIOError:
                    break
                except OSError:
                    self._close()
                    return
            del self._untold[service]
        self._epoll.modify(self._channel.fileno(), select.EPOLLIN | (select.EPOLLOUT if self._untold else 0))

    def _close(self) -> None:
        self._untold.clear()
        self.waiting = ([], 0)
        if self._channel is not None and self._epoll is not None:
            self._epoll.unregister(self._channel.fileno())
            self._channel.close()
            self._channel = None

    def _become(self, runner: int, channel: socket.socket) -> NoReturn:
        # Loaded there only: a node without such events has no room for it in the image of all its processes.
        from muster.drivers.image.watcher import run_watcher

        run_watcher(self._leash, runner, self._environment, channel)
