"""The event manager of one daemon in the virtual world: `core.events.manager`, and what carries its effects out.

As in `daemon/events/event_manager.py`: the built-in watcher connects to it, actions run on the node's runner, and
what an event does to a service is an ordinary operation of this node, asked again until it is answered (P8.7).
"""

from collections.abc import Callable

from muster.core import inputs
from muster.core.effects import Reply, RunCommand
from muster.core.events import manager as events
from muster.core.node.node import Node
from muster.records.access import ITSELF, Author
from muster.records.units import US_PER_MS
from muster.records.watchers import BUILT_IN_WATCHER, PROCESS_WATCHERS
from muster.sim.history import WatchBegan, WatchEnded, WatcherGone
from muster.sim.world.life import VirtualLife
from muster.sim.world.time import Process
from muster.sim.world.watcher import LINE_US, Watcher

ASK_AGAIN_US = 1500 * US_PER_MS


class VirtualEventManager:
    """What of a daemon has to do with events."""

    def __init__(self, life: VirtualLife, node: Node, process: Process, give: Callable[[inputs.Input], None]) -> None:
        """Of the daemon that is `process`; `give` gives its node an input."""
        self._life, self._node, self._process, self._give = life, node, process, give
        self._loop, self._history = life.machine.world.loop, life.machine.world.history
        self._machine = events.EventManager(node.me, node.incarnation, life.now_us())
        self._seen = (-1, False)  # the replica that the machine has seen, and whether as master
        self._wants_watcher: bool | None = None
        self._connection = 0
        self._watcher: Watcher | None = None
        self._requests: dict[int, events.RequestOperation] = {}

    def start(self) -> None:
        """Go on from what earlier daemons of this incarnation have kept (P8.9)."""
        life = self._life
        ended = tuple(events.ActionEnded(each.generation, each.succeeded, each.detail) for each in life.actions_ended)
        life.actions_ended.clear()
        self._step(events.Remembered(life.kept.read(), life.runner.actions_at_work, ended))

    @property
    def is_alive(self) -> bool:
        """Whether its daemon still runs."""
        return self._process.alive

    def look(self) -> None:
        """The replica may have changed; what has shown that may have been the last that its daemon did."""
        seen = (self._node.database.index, self._node.is_master)
        if seen == self._seen or not self._node.replica.confirmed or not self.is_alive:
            return
        self._seen = seen
        self._step(events.ReplicaChanged(self._node.database, self._node.is_master))
        needed = any(active.event.watcher in PROCESS_WATCHERS for active in self._machine.active.values())
        if needed != self._wants_watcher:
            self._wants_watcher = needed
            self._life.want_watcher(needed)

    # ---- the watcher's side -----------------------------------------------------------------------------------------

    def connect(self, watcher: Watcher) -> int:
        """The built-in watcher connects; the number of its connection."""
        self._connection += 1
        self._watcher = watcher
        self._loop.deliver_after(LINE_US, self._process, self._came, self._connection)
        return self._connection

    def _came(self, connection: int) -> None:
        if connection == self._connection:
            self._step(events.WatcherCame(connection, BUILT_IN_WATCHER))

    def disconnected(self, connection: int) -> None:
        """Its connection is gone."""
        self._loop.deliver_after(LINE_US, self._process, self._went, connection)

    def _went(self, connection: int) -> None:
        self._history.append(WatcherGone(self._loop.now_us, self._node.me, self._node.incarnation))
        self._step(events.WatcherWent(connection))

    def heard(self, connection: int, event: str, out: events.Values, parameters: events.Values) -> None:
        """It tells of an occurrence."""
        told = events.Occurred(connection, event, out, parameters)
        self._loop.deliver_after(LINE_US, self._process, self._step, told)

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
        wanted = self._machine.step(happened, self._life.now_us())
        if self._machine.changed:
            self._life.kept.keep(self._machine.changed.values(), self._loop.now_us)
            self._machine.changed.clear()
        for effect in wanted:
            match effect:
                case events.Watch(event=event, parameters=parameters):
                    self._have_watched(effect.watcher, event, parameters)
                case events.Unwatch(event=event):
                    self._have_watched(effect.watcher, event, None)
                case events.RunAction():
                    self._life.runner.request(
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
        now_us, node, incarnation = self._loop.now_us, self._node.me, self._node.incarnation
        if parameters is None:
            self._history.append(WatchEnded(now_us, node, incarnation, event))
        else:
            self._history.append(WatchBegan(now_us, node, incarnation, event, parameters))
        if self._watcher is not None:
            self._watcher.send(connection, event, parameters)

    def _ask(self, request: events.RequestOperation) -> None:
        """Ask until a master has answered; the identity makes it one and the same request (P9.1)."""
        if self._requests.get(request.number) is request:
            self._loop.deliver_after(ASK_AGAIN_US, self._process, self._ask, request)
            self._give(inputs.OperationRequested(request.identity, request.operation, Author(user=ITSELF)))
            self._life.machine.point("request", "begun")

    def _cancel(self, number: int, reason: str) -> None:
        if self._requests.pop(number, None) is None:
            self._life.runner.cancel_action(number)
            return
        # what was asked may still be carried out; the generation that it names makes it harmless when it is late
        ended = events.ActionEnded(number, False, reason)
        self._loop.deliver_after(0, self._process, self._step, ended)
