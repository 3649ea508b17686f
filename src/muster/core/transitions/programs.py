"""Programs of this node that come and go, before it joins or at any time later (P3.9, P3.18, SPEC 3.2, 3.10)."""

from collections.abc import Iterable

from muster.core.effects import LevelRefused
from muster.core.inputs import Acknowledged
from muster.core.outbox import Outbox
from muster.core.transitions import registration
from muster.core.transitions.subsystems import Subsystems
from muster.records.database import Database
from muster.records.levels import Level
from muster.records.members import Member
from muster.records.transitions import Acknowledgement


def come(subsystems: Subsystems, level: Level, replica: Database | None, out: Outbox) -> bool:
    """Take a subsystem in; False where it is refused. `replica`: the node's, if it is confirmed."""
    if reason := subsystems.why_not(level, replica):
        out.put(LevelRefused(level.number, reason))
        return False
    subsystems.register(level)
    if replica is not None:
        out.extend(subsystems.due(replica))
    return True


def go(subsystems: Subsystems, number: int, own: Member | None, out: Outbox, *, departed: bool) -> bool:
    """A subsystem has deregistered, or its program has ended: then its node may have to fail with it (P3.18).

    Whether the master is to be told. `own`: the node's record, if it is of this life.
    """
    fails = "" if departed else registration.why_loss_fails(number, subsystems.levels, own)
    level = subsystems.levels.get(number)
    if not subsystems.unregister(number, departed=departed, ended=not departed):
        return False
    if fails and level is not None:
        out.panic(f"subsystem {level.name} of level {number} has ended, and {fails}")
        return False
    return True


def acknowledged(
    subsystems: Subsystems, given: Iterable[Acknowledged], database: Database
) -> tuple[Acknowledgement, ...]:
    """Programs acknowledge what they were told; those acknowledgements that were waited for (P3.3)."""
    steps = (Acknowledgement(each.transition, each.level, each.barrier) for each in given)
    fresh = tuple(step for step in steps if subsystems.acknowledge(step))
    if fresh:
        subsystems.settle(database)
    return fresh


def follow(subsystems: Subsystems, database: Database, *, is_confirmed: bool, out: Outbox) -> None:
    """What an advanced replica asks of them: who must give way goes, the rest is told what is new (P3.4, P3.8)."""
    conflicting = subsystems.give_up_conflicting(database)
    out.extend(LevelRefused(number, reason) for number, reason in conflicting.items())
    subsystems.begin_second_step(database, is_confirmed=is_confirmed)
    out.extend(subsystems.due(database))
    subsystems.settle(database)
