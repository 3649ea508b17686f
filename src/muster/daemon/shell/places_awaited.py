"""Gathers what waits for a place on this node: what the runner tells, and the event manager's own queue (P8.12)."""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from muster.core.events.manager import WAITED_US
from muster.core.inputs import AwaitedHere, PlacesAwaited
from muster.core.services.places import MAXIMUM_NAMED
from muster.drivers.runner_client import PlacesOfRunner

NOTHING = PlacesAwaited((), 0)


class PlacesHere:
    """Tells the node what waits, when that has changed. `actions`: those that wait, the first of each group.

    `service_of`: the service that an event is about, or nothing.
    """

    def __init__(
        self,
        feed: Callable[[PlacesAwaited], None],
        actions: Callable[[int], tuple[Sequence[AwaitedHere], int]],
        service_of: Callable[[str], str],
    ) -> None:
        self._feed, self._actions, self._service_of = feed, actions, service_of
        self._of_runner = PlacesOfRunner((), 0)
        self._told = NOTHING
        self._look_at_us = 0

    def heard(self, told: PlacesOfRunner) -> None:
        """The runner has told what waits there."""
        self._of_runner = told
        self._look_at_us = 0

    def look(self, now_us: int) -> None:
        """Tell the node, at most once a second unless the runner has news."""
        if now_us < self._look_at_us:
            return
        self._look_at_us = now_us + WAITED_US
        found, count = self._actions(now_us)
        waiting = [*found, *map(self._named, self._of_runner.named)]
        waiting.sort(key=lambda each: each.since_us)
        told = PlacesAwaited(tuple(waiting[:MAXIMUM_NAMED]), count + self._of_runner.in_all)
        if told != self._told:
            self._told = told
            self._feed(told)

    def _named(self, told: AwaitedHere) -> AwaitedHere:
        name = told.place.name
        service = name if told.place.kind == "start" else self._service_of(name)
        return AwaitedHere(told.since_us, replace(told.place, service=service))
