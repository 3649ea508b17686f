"""The built-in watcher process of one incarnation: it detects what its node's event manager asks for (SPEC 5.4, P8.6).

It is a process of its own below the runner: it outlives daemons and connects to each of them, it can be paused and
killed, and the runner forks another one. It keeps nothing but what it was asked on its present connection, as the real
one keeps what it may forget.
"""

from __future__ import annotations

from typing import Protocol

from muster.core.events.manager import Values
from muster.records.units import US_PER_MS
from muster.sim.world.runner import Runner
from muster.sim.world.time import EventLoop, Process

LINE_US = 100  # between it and the daemon or the runner: each way, so that all lines keep their order
CONNECT_US = 2 * US_PER_MS


class Listener(Protocol):
    """What a watcher knows of the event manager that it connects to."""

    @property
    def is_alive(self) -> bool:
        """Whether its daemon still runs."""

    def connect(self, watcher: Watcher) -> int:
        """This watcher connects; the number of its connection."""

    def disconnected(self, connection: int) -> None:
        """Its connection is gone."""

    def heard(self, connection: int, event: str, out: Values, parameters: Values) -> None:
        """It tells of an occurrence."""


class Watcher:
    """One watcher process; `connection` 0 is none."""

    def __init__(self, loop: EventLoop, runner: Runner) -> None:
        self.loop, self._runner = loop, runner
        self.process = Process("watcher")
        self._manager: Listener | None = None
        self._connection = 0
        self._asked: dict[str, Values] = {}

    # ---- the connection -------------------------------------------------------------------------------------------

    def daemon_came(self, manager: Listener) -> None:
        """A daemon listens: connect."""
        self.loop.deliver_after(CONNECT_US, self.process, self._connect, manager)

    def _connect(self, manager: Listener) -> None:
        if manager.is_alive and manager is not self._manager:
            self._manager = manager
            self._asked.clear()
            self._connection = manager.connect(self)

    def end(self) -> None:
        """It dies, and its connection with it."""
        self.process.kill()
        if self._manager is not None:
            self._manager.disconnected(self._connection)

    def send(self, connection: int, event: str, parameters: Values | None) -> None:
        """The daemon asks it to detect an event, or with None for parameters to stop."""
        self.loop.deliver_after(LINE_US, self.process, self._take, connection, event, parameters)

    def _tell(self, event: str, out: Values) -> None:
        if self._manager is not None:
            self._manager.heard(self._connection, event, out, self._asked[event])

    # ---- what it detects ------------------------------------------------------------------------------------------

    def _take(self, connection: int, event: str, parameters: Values | None) -> None:
        if connection != self._connection:
            return
        if parameters is None:
            self._asked.pop(event, None)
            return
        self._asked[event] = parameters
        values = dict(parameters)
        if event.endswith(":exit"):
            self.loop.deliver_after(
                LINE_US, self._runner.process, self._ask_runner, values["service"], int(values["generation"])
            )
        elif "command" in values:
            self._look_later(connection, event, parameters)

    def _ask_runner(self, service: str, generation: int) -> None:
        """The runner answers at once if the program has ended already, and else tells when it ends (P8.1)."""
        if self._runner.exit_of(service) == generation:
            self.loop.deliver_after(LINE_US, self.process, self.program_ended, service, generation)

    def program_ended(self, service: str, generation: int) -> None:
        """The runner tells of the end of a supervised program."""
        event = f"{service}:exit"
        asked = dict(self._asked.get(event, ()))
        if asked.get("generation") == str(generation):
            status = "ended with status 1"
            self._tell(event, (("status", status), ("output", ""), ("detail", f"its program {status}")))

    def service_ails(self, service: str) -> None:
        """The check of a service fails from now on: seen when it is made next."""
        event = f"{service}:check"
        if event in self._asked:
            self._look_later(self._connection, event, self._asked[event])

    def _look_later(self, connection: int, event: str, parameters: Values) -> None:
        """Only checks that fail are made at all: all others would lead to nothing."""
        values = dict(parameters)
        if self._runner.ails(values["service"]) == int(values["generation"]):
            interval_us = int(values["interval"].removesuffix("ms")) * US_PER_MS
            self.loop.deliver_after(interval_us, self.process, self._look, connection, event, parameters)

    def _look(self, connection: int, event: str, parameters: Values) -> None:
        values = dict(parameters)
        ails = self._runner.ails(values["service"]) == int(values["generation"])
        if connection != self._connection or self._asked.get(event) != parameters or not ails:
            return
        out = (("status", "failed"), ("output", ""), ("failures", "1"), ("detail", "its check failed"))
        self._tell(event, out)
        self._look_later(connection, event, parameters)
