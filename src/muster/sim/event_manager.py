"""The event manager of one daemon in the virtual world: the machine of `core.events`, and what carries its effects out.

As `daemon/event_manager.py` does: the built-in watcher connects to it, action functions run on the node's runner, and
what an event does to a service is an ordinary operation of this node, asked again until it is answered (P8.7).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from muster.core import events, inputs
from muster.core.effects import Reply, RunCommand
from muster.records.events import BUILT_IN_WATCHER, PROCESS_WATCHERS
from muster.sim.events import US_PER_MS
from muster.sim.history import WatchBegan, WatchEnded, WatcherGone
from muster.sim.watcher import LINE_US

if TYPE_CHECKING:
    from muster.core.node import Node
    from muster.sim.daemon import Daemon
    from muster.sim.watcher import Watcher

ASK_AGAIN_US = 1500 * US_PER_MS


class KeptHistory:
    """The occurrences that daemons of one incarnation have written; the last ones are lost where a daemon dies."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, events.Occurrence]] = []

    def keep(self, changed: Iterable[events.Occurrence], now_us: int) -> None:
        """Write what is known of these now."""
        self._lines += [(now_us, replace(occurrence)) for occurrence in changed]

    def lose(self, since_us: int) -> None:
        """What was to be written since then is not."""
        while self._lines and self._lines[-1][0] >= since_us:
            self._lines.pop()

    def read(self) -> tuple[events.Occurrence, ...]:
        """What is known of each, oldest first."""
        found = {occurrence.number: replace(occurrence) for _, occurrence in self._lines}
        return tuple(found[number] for number in sorted(found))


class EventManager:
    """What of a daemon has to do with events."""

    def __init__(self, daemon: Daemon, node: Node) -> None:
        self._daemon, self._node = daemon, node
        self._machine = events.EventManager(node.me, node.incarnation, daemon.now_us())
        self._seen = (-1, False)  # the replica that the machine has seen, and whether as master
        self._wants_watcher: bool | None = None
        self._connection = 0
        self._watcher: Watcher | None = None
        self._requests: dict[int, events.RequestOperation] = {}

    def start(self) -> None:
        """Go on from what earlier daemons of this incarnation have kept (P8.9)."""
        life = self._daemon.life
        ended = tuple(events.ActionEnded(each.generation, each.succeeded, each.detail) for each in life.actions_ended)
        life.actions_ended.clear()
        self._step(events.Remembered(life.kept.read(), life.runner.actions_at_work, ended))

    @property
    def is_alive(self) -> bool:
        """Whether its daemon still runs."""
        return self._daemon.process.alive

    def look(self) -> None:
        """The replica may have changed; what has shown that may have been the last that its daemon did."""
        seen = (self._node.database.index, self._node.is_master)
        if seen == self._seen or not self._node.confirmed or not self.is_alive:
            return
        self._seen = seen
        self._step(events.ReplicaChanged(self._node.database, self._node.is_master))
        needed = any(active.event.watcher in PROCESS_WATCHERS for active in self._machine.active.values())
        if needed != self._wants_watcher:
            self._wants_watcher = needed
            self._daemon.life.want_watcher(needed)

    # ---- the watcher's side -----------------------------------------------------------------------------------------

    def connect(self, watcher: Watcher) -> int:
        """The built-in watcher connects; the number of its connection."""
        self._connection += 1
        self._watcher = watcher
        self._daemon.world.loop.deliver_after(LINE_US, self._daemon.process, self._came, self._connection)
        return self._connection

    def _came(self, connection: int) -> None:
        if connection == self._connection:
            self._step(events.WatcherCame(connection, BUILT_IN_WATCHER))

    def disconnected(self, connection: int) -> None:
        """Its connection is gone."""
        self._daemon.world.loop.deliver_after(LINE_US, self._daemon.process, self._went, connection)

    def _went(self, connection: int) -> None:
        self._daemon.record(WatcherGone(self._daemon.world.loop.now_us, self._node.me, self._node.incarnation))
        self._step(events.WatcherWent(connection))

    def heard(self, connection: int, event: str, out: events.Values, parameters: events.Values) -> None:
        """It tells of an occurrence."""
        told = events.Occurred(connection, event, out, parameters)
        self._daemon.world.loop.deliver_after(LINE_US, self._daemon.process, self._step, told)

    # ---- what its actions lead to -----------------------------------------------------------------------------------

    def replied(self, reply: Reply) -> None:
        """An operation of this node is answered."""
        for number, request in list(self._requests.items()):
            if request.identity == reply.identity:
                del self._requests[number]
                self._step(events.ActionEnded(number, not reply.refused, reply.outcome))

    def action_ended(self, number: int, succeeded: bool, detail: str) -> None:
        """The runner says that an action function has ended."""
        self._step(events.ActionEnded(number, succeeded, detail))

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _step(self, happened: events.Happening) -> None:
        wanted = self._machine.step(happened, self._daemon.now_us())
        if self._machine.changed:
            self._daemon.life.kept.keep(self._machine.changed.values(), self._daemon.world.loop.now_us)
            self._machine.changed.clear()
        for effect in wanted:
            match effect:
                case events.Watch(event=event, parameters=parameters):
                    self._have_watched(effect.watcher, event, parameters)
                case events.Unwatch(event=event):
                    self._have_watched(effect.watcher, event, None)
                case events.RunAction():
                    self._daemon.life.runner.request(
                        RunCommand(
                            effect.event, 0, effect.number, "act", effect.command, effect.timeout_ms,
                            effect.environment,
                        )
                    )  # fmt: skip
                case events.RequestOperation(number=number):
                    self._requests[number] = effect
                    self._ask(effect)
                case events.CancelAction(number=number):
                    self._cancel(number, effect.reason)
                case _:
                    raise AssertionError(f"nobody carries out {type(effect).__name__}")

    def _have_watched(self, connection: int, event: str, parameters: events.Values | None) -> None:
        now_us, node, incarnation = self._daemon.world.loop.now_us, self._node.me, self._node.incarnation
        if parameters is None:
            self._daemon.record(WatchEnded(now_us, node, incarnation, event))
        else:
            self._daemon.record(WatchBegan(now_us, node, incarnation, event, parameters))
        if self._watcher is not None:
            self._watcher.send(connection, event, parameters)

    def _ask(self, request: events.RequestOperation) -> None:
        """Ask until a master has answered; the identity makes it one and the same request (P9.1)."""
        if self._requests.get(request.number) is request:
            loop, process = self._daemon.world.loop, self._daemon.process
            loop.deliver_after(ASK_AGAIN_US, process, self._ask, request)
            self._daemon.step(inputs.OperationRequested(request.identity, request.operation))
            self._daemon.machine.point("request", "begun")

    def _cancel(self, number: int, reason: str) -> None:
        if self._requests.pop(number, None) is None:
            self._daemon.life.runner.cancel_action(number)
            return
        # what was asked may still be carried out; the generation that it names makes it harmless when it is late
        ended = events.ActionEnded(number, False, reason)
        self._daemon.world.loop.deliver_after(0, self._daemon.process, self._step, ended)
