"""The event manager as a level of transitions: what a leave of this node waits for there (P6.18, SPEC 6.8, 6.9)."""

from collections.abc import Iterable, Iterator

from muster.core.effects import Notify
from muster.core.freezing import is_frozen
from muster.records.database import Database
from muster.records.levels import EVENT_MANAGER_LEVEL, Level, TransitionKind
from muster.records.services import Service
from muster.records.transitions import Transition


class EventManagerLevel:
    """Acknowledges at once, but for the leave of its own node: that waits until no service is left there."""

    def __init__(self, level: Level = EVENT_MANAGER_LEVEL) -> None:
        self.level = level

    def told(self, notify: Notify) -> Iterable[Notify]:  # noqa: ARG002  # of the port
        """Nothing is to be done: services follow the records (P6.2, P6.3)."""
        return ()

    def has_done(self, node: int, transition: Transition, database: Database, *, answered: bool) -> bool:  # noqa: ARG002
        """All but the leave of its own node; that once nothing is left which it waits for."""
        own_leave = transition.kind is TransitionKind.LEAVING and transition.node == node
        return not (own_leave and any(holding(database, node)))


class RehearsedEventManager(EventManagerLevel):
    """In a rehearsal: works outside the node too, as a program does, for as long as the scenario says (SPEC 8.4)."""

    def told(self, notify: Notify) -> Iterable[Notify]:
        """The notification goes on to the rehearsal."""
        return (notify,)

    def has_done(self, node: int, transition: Transition, database: Database, *, answered: bool) -> bool:
        """Once the rehearsal has acknowledged, too."""
        return answered and super().has_done(node, transition, database, answered=answered)


def holding(database: Database, node: int) -> Iterator[Service]:
    """The services that the leave of `node` waits for: those it has, and those it handed over that run nowhere yet.

    What it handed over to a node that has fallen silent since is that one's: nobody waits for it (P4.8).
    """
    for service in database.services.values():
        if service.node == node or (service.origin == node and service.intent and not is_frozen(service, database)):
            yield service
