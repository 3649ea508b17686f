"""Levels that a node must have before it joins: the first step of its boot ends when they are there (P3.17, SPEC 3.10).

Theory of operation. The operator names them, for the cluster or for one node. The master opens a join only for a report
that shows all of them; until then the member's record says which are missing and since when, so that every node can say
so. Nothing else waits for that. An open join has its levels in its member's record, and goes on by those: a setting
that has changed meanwhile binds the next one.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from muster.core.draft import Draft, Facts
from muster.records.database import Database
from muster.records.levels import LOCK_MANAGER_LEVEL, Level, Missing, NodeState, Required
from muster.records.members import Member, Waits
from muster.records.messages import Report
from muster.records.nodes import Cluster, NodeConfig
from muster.records.required_levels import words_of

Waited = Mapping[int, tuple[tuple[int, ...], int]]  # transition -> who is waited for, for how long (us)


def required_of(cluster: Cluster, config: NodeConfig | None) -> tuple[Required, ...]:
    """What this node must have before its next join: its own setting, or else the cluster's."""
    own = config.required_levels if config is not None else None
    named = cluster.required_levels if own is None else own
    if not cluster.has_locks:
        return named
    locks = Required(LOCK_MANAGER_LEVEL.number, LOCK_MANAGER_LEVEL.name)  # while there are locks (P12.15)
    return tuple(sorted({each.number: each for each in (*named, locks)}.values()))


def missing_of(required: Iterable[Required], levels: Iterable[Level]) -> tuple[Missing, ...]:
    """Which of `required` are not among the registered `levels`."""
    names = {level.number: level.name for level in levels}
    found = []
    for each in required:
        name = names.get(each.number)
        if name is None or each.name not in ("", name):
            found.append(Missing(each.number, each.name, name or ""))
    return tuple(found)


def waits_of(draft: Draft, member: Member, report: Report) -> Waits | None:
    """What this report still lacks for a join, and since when its incarnation waits; nothing where it may join."""
    missing = missing_of(required_of(draft.cluster, draft.nodes.get(member.node)), report.levels)
    if not missing:
        return None
    again = member.waits is not None and member.waits.incarnation == report.incarnation
    since = member.waits.since if member.waits is not None and again else draft.index
    return Waits(report.incarnation, since, missing)


def forget_who_waits_no_more(draft: Draft, facts: Facts) -> None:
    """A node that waited has ended: its wait is over (P3.17)."""
    for member in list(draft.members.values()):
        waits = member.waits
        if waits is not None and facts.evidence(member.node, waits.incarnation) is not None:
            draft.put(replace(member, waits=None), f"{draft.name(member.node)}: waits no more")


class AwaitingLevels(NamedTuple):
    """A node that waits for programs that it must have."""

    node: int
    incarnation: int
    missing: tuple[Missing, ...]
    waited_ms: int
    is_overdue: bool

    @property
    def words(self) -> str:
        """For what it waits, and since when, in words for people."""
        return f"it waits for {words_of(self.missing)}, for {self.waited_ms / 1000:.0f} s"


def waiting(database: Database, age_ms: Callable[[int], int], waited: Waited) -> list[AwaitingLevels]:
    """Every node that waits for required levels: before its join, or in it for one that has gone again."""
    found = []
    for node in sorted(database.members):
        member = database.member(node)
        if member.waits is not None:
            waited_ms, missing = age_ms(member.waits.since), member.waits.missing
            incarnation = member.waits.incarnation
        elif parked := _parked(database, member):
            identity, missing = parked
            waited_ms, incarnation = waited.get(identity, ((), 0))[1] // 1000, member.incarnation
        else:
            continue
        overdue = waited_ms > database.cluster.required_within_ms
        found.append(AwaitingLevels(node, incarnation, missing, waited_ms, overdue))
    return found


def _parked(database: Database, member: Member) -> tuple[int, tuple[Missing, ...]] | None:
    """The join of this member that waits for a required level to come back, and which."""
    if member.state is not NodeState.JOINING:
        return None
    for transition in database.transitions.values():
        if transition.node == member.node and transition.awaits in member.required:
            names = {each.number: each.name for each in required_of(database.cluster, database.nodes.get(member.node))}
            return transition.identity, (Missing(transition.awaits, names.get(transition.awaits, "")),)
    return None
