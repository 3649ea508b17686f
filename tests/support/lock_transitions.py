"""What lock managers are told of transitions, by the real rules of the master and of the nodes (PROTOCOL 3 and 4).

`Master` decides as the membership's master does, and each decision is an entry; `Seat` is a node's copy of the
database, and what its subsystems are told by it. So a lock manager is told in tests what it is told in a cluster, and
nothing else. A node has a level below the locks and one above, so what comes to theirs may have waited elsewhere.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from muster.core import entries
from muster.core.draft import Draft, Facts
from muster.core.effects import Notify
from muster.core.locks.recovery import BARRIERS, Kind, Step, life_of, step_of
from muster.core.membership import membership
from muster.core.transitions import registration, transition
from muster.core.transitions.subsystems import Subsystems
from muster.records.database import Entry, initial_database
from muster.records.levels import EVENT_MANAGER_LEVEL, Barriers, Level, NodeState
from muster.records.members import Member as MemberRecord
from muster.records.messages import Report
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import ProofKind
from muster.records.terms import Term
from muster.records.transitions import Acknowledgement, Transition
from muster.records.versions import HIGHEST

BELOW = Level(5, "below")
LOCKS = Level(10, "locks", Barriers(BARRIERS[Kind.JOINING], BARRIERS[Kind.LEAVING], BARRIERS[Kind.FORCED_LEAVING]))
LEVELS = (BELOW, LOCKS, EVENT_MANAGER_LEVEL)
TERM = Term(1, 0)
BETWEEN_PROCESSES_NS = 500_000_000


class Evidence(NamedTuple):
    """That an incarnation has stopped."""

    kind: ProofKind = ProofKind.FENCE_AGENT
    detail: str = "fenced"


class Master:
    """The membership's master, which is none of the nodes and never fails."""

    def __init__(self, nodes: int) -> None:
        configs = tuple(NodeConfig(node, f"n{node}", (f"127.0.0.1:{7000 + node}",), "") for node in range(nodes))
        cluster = Cluster("locks", "0" * 32, "fast", "", active_version=HIGHEST)
        self.database = initial_database(cluster, configs)
        self.entries: list[Entry] = []
        self.reports: dict[int, Report] = {}
        self.dead: set[tuple[int, int]] = set()  # incarnations that are proven to have stopped
        self.silent: set[tuple[int, int]] = set()  # whose leases have run out
        self.entered: set[int] = set()  # transitions that have come to the locks' level
        self.on_entry: Callable[[Transition], None] = lambda _transition: None
        self._leaves: list[int] = []

    def leave(self, node: int) -> None:
        """Somebody asks for a graceful leave."""
        self._leaves.append(node)

    def may_leave(self, node: int) -> bool:
        """Whether a leave would be taken."""
        return self.member(node).state in (NodeState.JOINING, NodeState.JOINED) and not self.member(node).leave_asked

    def member(self, node: int) -> MemberRecord:
        """A node's record."""
        return self.database.member(node)

    def decide(self) -> bool:
        """Whether there is another entry."""
        draft, facts = Draft(self.database), self._facts()
        leaves, self._leaves = self._leaves, []
        for node in leaves:
            self._take_leave(draft, node)
        membership.admit(draft, facts)
        registration.follow_reports(draft, facts)
        membership.force_out_the_dead(draft, facts)
        membership.condemn_the_silent(draft, facts)
        transition.advance(draft, facts)
        if not draft.changes:
            return False
        entry = Entry(draft.index, TERM, "", draft.changes)
        entries.apply(self.database, entry)
        self.entries.append(entry)
        for change in entry.changes:
            if isinstance(change, Transition) and change.level == LOCKS.number and change.identity not in self.entered:
                self.entered.add(change.identity)
                self.on_entry(change)
        return True

    def _take_leave(self, draft: Draft, node: int) -> None:
        member = draft.member(node)
        if member.state is NodeState.JOINED and draft.transition_of(node) is None:
            transition.open_leave(draft, node, "asked")
        elif member.state in (NodeState.JOINING, NodeState.JOINED):
            draft.put(replace(member, leave_asked="asked"))

    def _facts(self) -> Facts:
        def evidence(node: int, incarnation: int) -> Evidence | None:
            return Evidence() if (node, incarnation) in self.dead else None

        def ran_out(node: int, incarnation: int) -> bool:
            return (node, incarnation) in self.silent

        reports = dict(self.reports)
        return Facts(0, -1, reports, evidence, lambda _node: True, {}, {}, services_open=True, silent=ran_out)


class Seat:
    """One incarnation of a node, as far as transitions go."""

    def __init__(self, master: Master, node: int, incarnation: int, levels: tuple[Level, ...] = LEVELS) -> None:
        self.node, self.incarnation, self._master = node, incarnation, master
        self.database = copy.copy(master.database)
        self.database.members = dict(master.database.members)
        self.database.transitions = dict(master.database.transitions)
        self.subsystems = Subsystems(node, incarnation)
        self.registration = 0  # of the lock process
        for level in levels:
            self.subsystems.register(level)

    @property
    def is_behind(self) -> bool:
        """Whether there are entries that it has not applied."""
        return self.database.index < self._master.database.index

    def apply(self) -> None:
        """The next entry."""
        entries.apply(self.database, self._master.entries[self.database.index])

    def due(self) -> tuple[list[Step], list[Acknowledgement]]:
        """What the lock manager is told now; and the steps that other levels are told of."""
        told = self.subsystems.due(self.database)
        locks = [self._step(each) for each in told if each.level == LOCKS.number]
        others = [
            Acknowledgement(each.transition, each.level, each.barrier) for each in told if each.level != LOCKS.number
        ]
        return locks, others

    def acknowledge(self, transition_: int, barrier: int) -> None:
        """The lock manager has acknowledged."""
        self.subsystems.acknowledge(Acknowledgement(transition_, LOCKS.number, barrier))

    def report(self) -> Report:
        """What the node tells the master now."""
        levels = tuple(self.subsystems.levels.values())
        acknowledged = self.subsystems.acknowledged(self.database)
        departed = self.subsystems.departed(self.database)
        return Report(TERM, self.database.index, self.incarnation, "join", levels, acknowledged, departed=departed)

    @property
    def life(self) -> int:
        """What names the lock process that is registered, or is about to be."""
        return life_of(self.incarnation, self.registration)

    def end_locks(self) -> None:
        """The lock process ends by its own wish; the next one has another name (P12.22)."""
        self.subsystems.unregister(LOCKS.number, departed=True)
        self.registration += BETWEEN_PROCESSES_NS

    def begin_locks(self) -> None:
        """Another one registers."""
        self.subsystems.register(LOCKS._replace(registration=self.registration))

    @staticmethod
    def _step(told: Notify) -> Step:
        life = told.incarnation, told.registration
        kind = Kind[told.kind.name]
        return step_of(told.transition, kind, told.node, life, told.barrier, told.entry, told.members, alone=told.alone)
