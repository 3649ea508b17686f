"""A small world of transitions as a graph: every state of a few nodes, and every step that leads on from it (SPEC 3).

Real code in it: `decide` (requests, admission, registration, deaths, `transition.advance`), its changes
applied by `core/entries.py`; and on each node a `Node`, given its replica and the inputs `LevelRegistered`,
`LevelGone` and `Acknowledged`: what it notifies, what it reports, when it registers its event manager, when it leaves
and when it panics is its own doing (`Subsystems` inside).

Abstract, and why that loses no run:
- Mastership is a name or nobody; whoever runs may be elected once nobody is master. That masters tell one and the same
  chain of entries, each committed before anybody is told, is proven elsewhere (`mastership_model.py`). An entry that is
  durable but was told to nobody when its master died is one that nobody has caught up with yet.
- Committed entries: each node is at some entry of the chain and catches up with the next one or with the newest, at any
  time; of a new master it first needs the whole database, and only then do its reports count.
- Reports: the master holds one of each node, and replaces it by the present one at any time. A report under way for
  long changes nothing: what its node does after sending it can be seen by nobody but through reports, so it may as well
  happen after the arrival. What a dead node sent last may still arrive. A new master has none.
- Proof of death comes at any time after the death, to each master anew. Leases, links and time are elsewhere.
- The names of transitions (identities), the epoch and the commit index are renumbered, causes and evidence are words:
  the rules compare identities only for equality.
"""

import copy
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from muster.core.decisions.decide import decide
from muster.core.draft import Facts
from muster.core.effects import Left, Notify, Panic
from muster.core.inputs import Acknowledged, Input, LevelGone, LevelRegistered
from muster.core.leases.lease import Evidence
from muster.core.node.setup import Setup
from muster.core.transitions.subsystems import Subsystems
from muster.records.configuration import ConfigureCluster
from muster.records.database import Database, initial_database
from muster.records.levels import Level, NodeState, TransitionKind
from muster.records.members import EvictNode, LeaveNode, Member
from muster.records.messages import Request
from muster.records.nodes import Cluster, NodeConfig
from muster.records.operations import OperationRequest
from muster.records.registers import ProofKind
from muster.records.timing import FAST
from muster.records.transitions import Acknowledgement
from muster.records.versions import HIGHEST
from muster.sim.search.transition_rules import (
    AcknowledgedBy,
    Broken,
    Held,
    Requirement,
    concerned,
    is_waited_for,
    judge_commit,
    judge_held,
    judge_loss,
    judge_notification,
    judge_order,
    present_step,
    require,
)
from muster.sim.search.transition_seats import (
    EVENT_MANAGER,
    INDEX,
    NO_REPLICA,
    NOBODY,
    Budget,
    Interned,
    Outcome,
    SearchedNode,
    Seat,
    World,
    blank_strip,
    committed,
    frozen,
    key_of,
)

Step = tuple[str | int, ...]  # what happened: a verb, the node, and what else is to be said
State = tuple[Any, ...]  # chain of databases, master, budget, seat of each node; all but the master interned


class TransitionModel:
    """The graph. `reached` collects what the search has met, for its account."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.reached: set[tuple[str, ...]] = set()
        self._levels = world.barriers
        configs = tuple(NodeConfig(node, f"n{node}", (), "") for node in range(world.nodes))
        database = initial_database(Cluster("search", "0" * 32, FAST.name, "", active_version=HIGHEST), configs)
        database.index = INDEX
        self.databases = Interned(key_of(database))
        self.databases.values[0] = database
        self.seats, self.budgets, self.reports = Interned(Seat()), Interned(world.budget), Interned(None)
        self._subsystems = Interned(())
        self._outcomes: dict[tuple[Any, ...], Outcome] = {}
        self._decisions: dict[tuple[Any, ...], tuple[int, bool] | None] = {}
        self._seen: dict[tuple[int, int, int], int] = {}
        self._variants: dict[tuple[Any, ...], int] = {}  # of seats
        self._judged: set[int] = set()  # databases in which nobody waits in vain
        self._requirements: dict[tuple[int, int], tuple[Requirement, ...]] = {}
        self._reported: dict[tuple[int, int, int], int] = {}
        self._strip = blank_strip(world.nodes)
        self.start = self._starting_state()

    # ---- states ------------------------------------------------------------------------------------------------------

    def _starting_state(self) -> State:
        """The world at rest, after the nodes that have joined before the search have booted one by one."""
        state: State = ((0,), NOBODY, 0, *(0 for _ in range(self.world.nodes)))
        for node in range(self.world.joined):
            state = self._boot(state, node)
            while following := self.progress(state):
                state = following[0][1]
        self.reached.clear()
        return self._requiring(state) if self.world.required else state

    def _requiring(self, state: State) -> State:
        """The operator has made the setting, and all know it: it binds the joins to come."""
        database = copy.copy(self.database(state))
        database.cluster = replace(database.cluster, required_levels=self.world.required)
        return ((self.databases.number(key_of(database), database),), *state[1:])

    def seat(self, state: State, node: int) -> Seat:
        """One node's seat."""
        seat: Seat = self.seats.values[state[3 + node]]
        return seat

    def database(self, state: State) -> Database:
        """The newest committed database."""
        database: Database = self.databases.values[state[0][-1]]
        return database

    def _with(self, state: State, changed: dict[int, Seat], master: int = -2) -> State:
        """The state with these seats."""
        numbers = list(state[3:])
        for node, seat in changed.items():
            numbers[node] = self.seats.number(seat)
        return self._trimmed(state[0], state[1] if master == -2 else master, state[2], numbers)

    def _put(self, state: State, node: int, number: int) -> State:
        """The state with this seat for one node."""
        numbers = list(state[3:])
        numbers[node] = number
        return self._trimmed(state[0], state[1], state[2], numbers)

    def _trimmed(self, chain: tuple[int, ...], master: int, budget: int, numbers: list[int]) -> State:
        """A state without the entries that everybody has seen."""
        if len(chain) > 1:
            seats = self.seats.values
            deepest = max(0, *(seats[number].lag for number in numbers))
            chain = chain[-1 - deepest :]
        return (chain, master, budget, *numbers)

    def _variant(self, number: int, **fields: Any) -> int:
        """Number of the seat that differs from another in these fields."""
        key = (number, *fields.items())
        found = self._variants.get(key)
        if found is None:
            found = self._variants[key] = self.seats.number(self.seats.values[number]._replace(**fields))
        return found

    def _spend(self, state: State, what: str) -> State:
        budget = self.budgets.values[state[2]]
        spent = self.budgets.number(budget._replace(**{what: getattr(budget, what) - 1}))
        return (*state[:2], spent, *state[3:])

    def _replica(self, state: State, seat: Seat) -> int:
        """Number of the database that a node's replica shows."""
        number: int = state[0][-1 - seat.lag]
        return number

    # ---- steps -------------------------------------------------------------------------------------------------------

    def successors(self, state: State) -> tuple[list[tuple[Step, State]], list[tuple[Step, State]]]:
        """What the nodes do by themselves, and what happens to them. Raises `Broken`, also for a dead end."""
        progress = self.progress(state)
        if not progress:
            self._judge_rest(state)
        return progress, self._events(state)

    def progress(self, state: State) -> list[tuple[Step, State]]:
        """Every step that needs nothing but time."""
        master: int = state[1]
        found: list[tuple[Step, State]] = []
        for node in range(self.world.nodes):
            seat = self.seat(state, node)
            if seat.running:
                if master == NOBODY:
                    found.append((("elect", node), self._elect(state, node)))
                found += self._local(state, node, seat)
            if master not in (NOBODY, node):
                found += self._reporting(state, node, seat)
            if master != NOBODY:
                found += self._proving(state, node, seat)
        if master != NOBODY:
            decided = self._decide(state, None)
            if decided is not None:
                found.append((("decide", master), decided))
            else:
                self._judge_waiting(state[0][-1])
        return found

    def _events(self, state: State) -> list[tuple[Step, State]]:
        """Everything that may happen from outside, as far as the budget goes."""
        budget, master = self.budgets.values[state[2]], state[1]
        found: list[tuple[Step, State]] = []
        if budget.changes and master != NOBODY:
            found.append((("abdicate", master), self._without_master(self._spend(state, "changes"), {})))
        if budget.corrections and master != NOBODY:
            wanted = ConfigureCluster("required_levels", "none")
            if (corrected := self._decide(self._spend(state, "corrections"), wanted)) is not None:
                found.append((("correct the setting", master), corrected))
        for node in range(self.world.nodes):
            seat = self.seat(state, node)
            if not seat.running:
                if budget.boots:
                    found.append((("boot", node), self._boot(self._spend(state, "boots"), node)))
                continue
            if budget.crashes:
                self._note_crash(state, node, seat)
                found.append((("crash", node), self._crash(self._spend(state, "crashes"), node)))
            if budget.restarts and seat.accepted:
                found.append((("restart daemon", node), self._restart(self._spend(state, "restarts"), node)))
            found += self._registering(state, node, seat, budget)
            if master != NOBODY:
                found += self._asking(state, node, budget)
        return found

    def _local(self, state: State, node: int, seat: Seat) -> list[tuple[Step, State]]:
        """What a running node does alone: its subsystems acknowledge, it catches up, it obeys its mark."""
        found: list[tuple[Step, State]] = []
        for step in seat.working:
            following = self._put(state, node, self._acknowledge(state, node, seat, step))
            found.append((("acknowledge", node, step.transition, step.level, step.barrier), following))
        if seat.accepted:
            lags = {0, seat.lag - 1} if seat.lag else ()  # by one entry, or to the newest
            found += [(("catch up", node, lag), self._catch_up(state, node, lag)) for lag in lags]
        elif state[1] != NOBODY:
            found.append((("accept", node), self._catch_up(state, node, 0)))
        member = self.database(state).member(node)
        if member.eviction is not None and member.eviction.incarnation == seat.incarnation and is_waited_for(member):
            found.append((("obey the mark", node), self._crash(state, node)))
        return found

    def _reporting(self, state: State, node: int, seat: Seat) -> list[tuple[Step, State]]:
        report = self._report(state, node, seat) if seat.running and seat.accepted else seat.farewell
        if report in (0, seat.report):
            return []
        return [(("report", node), self._put(state, node, self._variant(state[3 + node], report=report)))]

    def _proving(self, state: State, node: int, seat: Seat) -> list[tuple[Step, State]]:
        """Proof of an end is found, if the master can have a use for it."""
        member = self.database(state).member(node)
        useful = {member.incarnation} if is_waited_for(member) else set()
        if seat.report:
            useful.add(self.reports.values[seat.report].incarnation)
        found: list[tuple[Step, State]] = []
        for incarnation in useful - set(seat.proven):
            if incarnation < seat.incarnation or not seat.running:
                proven = tuple(sorted({*seat.proven, incarnation}))
                following = self._put(state, node, self._variant(state[3 + node], proven=proven))
                found.append((("prove", node, incarnation), following))
        return found

    def _boot(self, state: State, node: int) -> State:
        seat = self.seat(state, node)
        incarnation = seat.incarnation + 1
        subsystems = self._registered(node, incarnation, self.world.levels_of(node))
        fresh = Seat(
            True, incarnation, subsystems=subsystems, acknowledged=seat.acknowledged, report=seat.report,
            proven=seat.proven, gone=seat.gone,
        )  # fmt: skip
        return self._with(state, {node: fresh})

    def _registered(self, node: int, incarnation: int, levels: Iterable[Level]) -> int:
        """A node's subsystems, registered before it knows anything of the cluster."""
        subsystems = Subsystems(node, incarnation, self.world.residents)
        for level in levels:
            subsystems.register(level)
        return self._keep(subsystems)

    def _crash(self, state: State, node: int) -> State:
        seat = self.seat(state, node)
        heard = seat.running and seat.accepted and state[1] not in (NOBODY, node)
        farewell = self._report(state, node, seat) if heard else 0
        dead = Seat(
            False, seat.incarnation, acknowledged=seat.acknowledged, report=seat.report, farewell=farewell,
            proven=seat.proven, gone=seat.gone,
        )  # fmt: skip
        if state[1] == node:
            return self._without_master(state, {node: dead})
        return self._with(state, {node: dead})

    def _without_master(self, state: State, changed: dict[int, Seat]) -> State:
        seats = {node: changed.get(node, self.seat(state, node)) for node in range(self.world.nodes)}
        forgotten = {
            node: seat._replace(report=0, farewell=0, proven=(), accepted=False) for node, seat in seats.items()
        }
        return self._with(state, forgotten, master=NOBODY)

    def _elect(self, state: State, node: int) -> State:
        state = (state[0], node, *state[2:])
        return self._catch_up(state, node, 0)

    def _catch_up(self, state: State, node: int, lag: int) -> State:
        return self._shown(state, node, self._variant(state[3 + node], lag=lag, accepted=True))

    def _shown(self, state: State, node: int, number: int) -> State:
        """The node sees its replica as it is now; it may end by that (SPEC 3.11)."""
        replica = state[0][-1 - self.seats.values[number].lag]
        key = (node, number, replica)
        if key not in self._seen:
            self._seen[key] = self.seats.number(self._see(node, self.seats.values[number], replica))
        shown = self._seen[key]
        if state[1] == node and not self.seats.values[shown].running:
            return self._without_master(state, {node: self.seats.values[shown]})
        return self._put(state, node, shown)

    def _restart(self, state: State, node: int) -> State:
        """The daemon dies and comes back in the same incarnation; its subsystems register again and are told again."""
        seat = self.seat(state, node)
        own: Subsystems = self._subsystems.values[seat.subsystems]
        again = self._registered(node, seat.incarnation, (own.levels[n] for n in own.levels if n != EVENT_MANAGER))
        seat = seat._replace(subsystems=again, restarted=True, working=frozenset())
        if state[1] == node:
            state = self._without_master(state, {node: seat})
            seat = self.seat(state, node)
        return self._with(state, {node: seat._replace(lag=NO_REPLICA, accepted=False)})

    def _registering(self, state: State, node: int, seat: Seat, budget: Budget) -> list[tuple[Step, State]]:
        """The late level comes or goes on a node that runs."""
        happened: Input
        # Registrations are counted up from the budget's end: each is above all before it.
        level = self.world.late_level._replace(registration=self.world.budget.late - budget.late)
        here = level.number in self._subsystems.values[seat.subsystems].levels
        if here:
            if not budget.gone:
                return []
            what, happened, spent = "gone", LevelGone(level.number, departed=self.world.departs), "gone"
            kept = frozenset(item for item in seat.held if item[0][0] != level.number)
            own: Subsystems = self._subsystems.values[seat.subsystems]
            seat = seat._replace(
                held=kept,
                working=frozenset(step for step in seat.working if step.level != level.number),
                acknowledged=frozenset(each for each in seat.acknowledged if each[1].level != level.number),
                gone=seat.gone | {(seat.incarnation, *own.levels[level.number].identity)},
            )
        else:
            if not budget.late:
                return []
            what, happened, spent = "register", LevelRegistered(level), "late"
        number = self._replica(state, seat) if seat.lag != NO_REPLICA else NO_REPLICA
        outcome = self._input(node, seat, number, happened)
        if here and not self.world.departs:
            failed = outcome.ended.startswith("panicked")
            registered = self._subsystems.values[seat.subsystems].levels.values()
            judge_loss(level.number, registered, self._own_record(node, seat, number), failed=failed)
            if failed:
                self.reached.add(("a loss that its node does not outlive",))
                return [(("fail by a loss", node, level.number), self._crash(self._spend(state, spent), node))]
        changed = self._take_in(seat._replace(subsystems=outcome.subsystems), number, outcome)
        return [((what, node, level.number), self._with(self._spend(state, spent), {node: changed}))]

    def _own_record(self, node: int, seat: Seat, number: int) -> Member | None:
        """What a node with this replica knows of itself as a member."""
        if number == NO_REPLICA:
            return None
        member: Member = self.databases.values[number].member(node)
        return member if member.incarnation == seat.incarnation else None

    def _asking(self, state: State, node: int, budget: Budget) -> list[tuple[Step, State]]:
        """Somebody asks for the leave of a node, or for its eviction."""
        asked: list[tuple[str, str, OperationRequest]] = []
        if budget.leaves:
            asked.append(("ask to leave", "leaves", LeaveNode(f"n{node}")))
        if budget.evictions:
            asked.append(("evict", "evictions", EvictNode(f"n{node}", "unwanted")))
        found: list[tuple[Step, State]] = []
        for what, spent, operation in asked:
            before = self._spend(state, spent)
            seat = self.seat(state, node)
            if spent == "leaves" and seat.incarnation == self.database(state).member(node).incarnation:
                before = self._with(before, {node: seat._replace(promised=seat.incarnation)})
            following = self._decide(before, operation)
            if following is not None:
                found.append(((what, node), following))
        return found

    # ---- the master --------------------------------------------------------------------------------------------------

    def _decide(self, state: State, operation: OperationRequest | None) -> State | None:
        """One round of the rules, committed and seen by the master itself; None if it changes nothing or is refused."""
        master = state[1]
        seats = [self.seat(state, node) for node in range(self.world.nodes)]
        reports = [seat.report for seat in seats]
        reports[master] = self._report(state, master, seats[master])
        proven = tuple(seat.proven for seat in seats)
        key = (state[0][-1], master, tuple(reports), proven, operation)
        if key not in self._decisions:
            self._decisions[key] = self._decided(*key)
        decided = self._decisions[key]
        if decided is None or decided[1]:
            return None
        number = decided[0]
        for requirement in self._required(state[0][-1], number):
            self._check(requirement, seats)
        numbers = [
            each if seat.lag == NO_REPLICA or node == master else self._variant(each, lag=seat.lag + 1)
            for node, (each, seat) in enumerate(zip(state[3:], seats, strict=True))
        ]
        following = ((*state[0], number), master, state[2], *numbers)
        return self._shown(following, master, numbers[master])

    def _decided(
        self, number: int, master: int, reports: tuple[int, ...], proven: tuple[Any, ...], operation: Any
    ) -> tuple[int, bool] | None:
        database: Database = self.databases.values[number]

        def evidence(node: int, incarnation: int) -> Evidence | None:
            found = incarnation in proven[node]
            return Evidence(ProofKind.LEASE_EXPIRED, incarnation, "it is silent") if found else None

        known = {node: self.reports.values[report] for node, report in enumerate(reports) if report}
        facts = Facts(0, master, known, evidence, lambda _node: False, {}, {}, services_open=True)
        asked = [Request("asked", operation)] if operation is not None else []
        draft, answers = decide(database, facts, asked)
        if any(answer is not None and answer.refused for answer in answers):
            return number, True
        following = committed(database, draft)
        if following is None:
            return None
        registered = {
            node: frozenset(level.number for level in report.levels)
            for node, report in known.items()
            if report.incarnation == following.member(node).incarnation
        }
        judge_order(database, following, registered)
        self._note(database, following)
        return self.databases.number(key_of(following), following), False

    def _required(self, old: int, new: int) -> tuple[Requirement, ...]:
        if (old, new) not in self._requirements:
            before, after = self.databases.values[old], self.databases.values[new]
            self._requirements[old, new] = judge_commit(before, after)
        return self._requirements[old, new]

    def _check(self, requirement: Requirement, seats: list[Seat]) -> None:
        seat = seats[requirement.node]
        if isinstance(requirement, AcknowledgedBy):
            done = (requirement.incarnation, requirement.step) in seat.acknowledged
            gone = (requirement.incarnation, requirement.step.level, requirement.registration) in seat.gone
            where = f"n{requirement.node}, level {requirement.step.level}"
            require(gone or not requirement.gone, "3.4", f"{where} is left in the middle of {requirement.step}")
            require(done or gone, "3.4", f"n{requirement.node} has not acknowledged {requirement.step}, and it goes on")
        else:
            stopped = seat.incarnation > requirement.incarnation or not seat.running
            require(stopped, "3.9", f"incarnation {requirement.incarnation} of n{requirement.node} still runs")

    # ---- a node ------------------------------------------------------------------------------------------------------

    def _keep(self, subsystems: Subsystems) -> int:
        return self._subsystems.number(frozen(vars(subsystems)), subsystems)

    def _resident(self, node: int, seat: Seat, number: int) -> SearchedNode:
        """The node itself, with the replica and the subsystems that it has in this state."""
        setup = Setup(node, f"n{node}", seat.incarnation, FAST, residents=self.world.residents)
        database = self.databases.values[max(0, number)]
        return SearchedNode(
            setup, database, self._strip, self._subsystems.values[seat.subsystems], number != NO_REPLICA
        )

    def _input(self, node: int, seat: Seat, number: int, happened: Input | None) -> Outcome:
        """What an input, or (None) the sight of this replica, makes the node do."""
        key = (node, seat.incarnation, seat.subsystems, number, happened)
        if key not in self._outcomes:
            resident = self._resident(node, seat, number)
            effects, subsystems, report = resident.given(happened)
            ended = "left" if any(isinstance(effect, Left) for effect in effects) else ""
            panic = next((effect for effect in effects if isinstance(effect, Panic)), None)
            self._outcomes[key] = Outcome(
                self._keep(subsystems),
                tuple(effect for effect in effects if isinstance(effect, Notify)),
                f"panicked: {panic.cause}" if panic is not None else ended,
                frozenset(report.acknowledgements),
            )
        return self._outcomes[key]

    def _see(self, node: int, seat: Seat, number: int) -> Seat:
        """The node acts on its replica: it notifies, it registers its event manager, or it ends."""
        outcome = self._input(node, seat, number, None)
        if outcome.ended == "left":
            require(seat.promised == seat.incarnation, "3.7", f"n{node} has left, and nobody had asked it to")
            return Seat(
                False, seat.incarnation, acknowledged=seat.acknowledged, report=seat.report, proven=seat.proven,
                gone=seat.gone,
            )  # fmt: skip
        if outcome.ended and self._has_lost_what_it_requires(node, seat, number):
            self.reached.add(("a loss before the sight of the opened join",))
            return Seat(
                False, seat.incarnation, acknowledged=seat.acknowledged, report=seat.report, proven=seat.proven,
                gone=seat.gone,
            )  # fmt: skip
        require(not outcome.ended, "3.12", f"n{node} {outcome.ended}, and it was not proven dead")
        database: Database = self.databases.values[number]
        steps = {present_step(each) for each in database.transitions.values()}
        kept = seat._replace(
            subsystems=outcome.subsystems,
            working=frozenset(step for step in seat.working if step in steps),
            acknowledged=frozenset(item for item in seat.acknowledged if item[1] in steps),
        )
        return self._take_in(kept, number, outcome)

    def _has_lost_what_it_requires(self, node: int, seat: Seat, number: int) -> bool:
        """Whether the node learns of its open join only after a program has ended that this join requires."""
        own = self._own_record(node, seat, number)
        here = self._subsystems.values[seat.subsystems].levels
        ended = {level for incarnation, level, _ in seat.gone if incarnation == seat.incarnation and level not in here}
        return own is not None and not self.world.departs and not ended.isdisjoint(own.required)

    def _take_in(self, seat: Seat, number: int, outcome: Outcome) -> Seat:
        """The subsystems have been notified: judge it by what they held, and keep what they hold now."""
        database: Database = self.databases.values[max(0, number)]
        held = dict(seat.held)
        for told in outcome.notified:
            self._be_told(told, held, database, repeated=seat.restarted)
        working = seat.working | {
            Acknowledgement(told.transition, told.level, told.barrier) for told in outcome.notified
        }
        inside = outcome.steps if self.world.event_manager is None else ()
        done = frozenset((seat.incarnation, step) for step in inside if step.level == EVENT_MANAGER)
        return seat._replace(held=frozenset(held.items()), working=working, acknowledged=seat.acknowledged | done)

    def _be_told(self, told: Notify, held: dict[tuple[int, int], Held], database: Database, *, repeated: bool) -> None:
        key = (told.level, told.node)
        before = held.get(key)
        barriers = self._count(told.level, before.kind) if before is not None else 1
        judge_notification(told, before, barriers, database, repeated)
        again = before is not None and (before.transition, before.barrier) == (told.transition, told.barrier)
        done = again and before is not None and before.acknowledged  # then it is answered from memory (SPEC 3.4)
        held[key] = Held(told.incarnation, told.kind, told.transition, told.barrier, acknowledged=done)
        for other, state in told.vector.items():
            if state is NodeState.JOINED and (told.level, other) not in held:
                last = self._count(told.level, TransitionKind.JOINING) - 1
                company = Held(database.member(other).incarnation, TransitionKind.JOINING, 0, last, acknowledged=True)
                held[told.level, other] = company

    def _count(self, level: int, kind: TransitionKind) -> int:
        barriers = self._levels[level].barriers
        if kind is TransitionKind.JOINING:
            return barriers.joining
        return barriers.leaving if kind is TransitionKind.LEAVING else barriers.forced_leaving

    def _acknowledge(self, state: State, node: int, seat: Seat, step: Acknowledgement) -> int:
        """A subsystem is done with a barrier; the number of the seat that follows."""
        replica = self._replica(state, seat) if seat.lag != NO_REPLICA else NO_REPLICA
        key = (state[3 + node], replica, step)
        if key not in self._variants:
            self._variants[key] = self.seats.number(self._acknowledging(node, seat, replica, step))
        return self._variants[key]

    def _acknowledging(self, node: int, seat: Seat, replica: int, step: Acknowledgement) -> Seat:
        outcome = self._input(node, seat, replica, Acknowledged(step.transition, step.level, step.barrier))
        held = dict(seat.held)
        for key, entry in seat.held:
            if (entry.transition, key[0], entry.barrier) == (step.transition, step.level, step.barrier):
                held[key] = entry._replace(acknowledged=True)
        return seat._replace(
            subsystems=outcome.subsystems,
            working=seat.working - {step},
            held=frozenset(held.items()),
            acknowledged=seat.acknowledged | {(seat.incarnation, step)},
        )

    def _report(self, state: State, node: int, seat: Seat) -> int:
        """Number of the report that a node would send now."""
        replica = self._replica(state, seat)
        key = (node, state[3 + node], replica)
        if key not in self._reported:
            resident = self._resident(node, seat, replica)
            self._reported[key] = self.reports.number(resident.report())
        return self._reported[key]

    # ---- what must hold ----------------------------------------------------------------------------------------------

    def _judge_waiting(self, number: int) -> None:
        """SPEC 3.4: when the rules have nothing left to change, nobody waits for who has gone or has no such level."""
        if number in self._judged:
            return
        self._judged.add(number)
        database: Database = self.databases.values[number]
        for transition in database.transitions.values():
            extra = set(transition.participants) - concerned(database, transition.level)
            require(
                not extra, "3.4", f"the {transition.kind} of n{transition.node} waits for {extra}, who cannot answer"
            )

    def _judge_rest(self, state: State) -> None:
        """Nothing goes on by itself: then everything is as if nothing had ever disturbed it (SPEC 2.4)."""
        database = self.database(state)
        seats = [self.seat(state, node) for node in range(self.world.nodes)]
        if not any(seat.running for seat in seats):
            return  # nobody is there to finish anything
        for transition in database.transitions.values():
            parked = transition.awaits in database.member(transition.node).required
            if not parked:  # else its node is looked at below
                raise Broken(f"SPEC 2.4: nobody moves the {transition.kind} of n{transition.node}: {transition}")
        for node, seat in enumerate(seats):
            member = database.member(node)
            if seat.running and self._waits_rightly(node, seat, database):
                continue
            wanted = NodeState.JOINED if seat.running else NodeState.INACTIVE
            current = member.incarnation == seat.incarnation or not seat.running
            rests = member.state is wanted and current and member.eviction is None
            require(rests, "2.4", f"n{node} ends {member.state} (running: {seat.running}): {member}")
            if seat.running:
                require(seat.promised != seat.incarnation, "3.7", f"n{node} was to leave, and has joined")
                self._judge_subsystems(node, seat, database)

    def _waits_rightly(self, node: int, seat: Seat, database: Database) -> bool:
        """SPEC 3.10: a node that runs may rest outside, or in its join, while a required level is not there."""
        member = database.member(node)
        here = {level.number for level in self._subsystems.values[seat.subsystems].levels.values()}
        if member.state is NodeState.JOINING and member.incarnation == seat.incarnation:
            lacking = set(member.required) - here
            awaited = {each.awaits for each in database.transitions.values() if each.node == node}
            self.reached.add(("a join that waits for a required level to come back",))
            return bool(lacking) and awaited <= lacking
        lacking = {each.number for each in database.cluster.required_levels} - here
        outside = member.state is NodeState.INACTIVE and member.waits is not None
        if outside and member.waits is not None and member.waits.incarnation == seat.incarnation and lacking:
            self.reached.add(("a node that waits for a required level",))
            return {each.number for each in member.waits.missing} == lacking
        return False

    def _judge_subsystems(self, node: int, seat: Seat, database: Database) -> None:
        here = {level.identity for level in self._subsystems.values[seat.subsystems].levels.values()}
        counted = {level.identity for level in database.member(node).levels}
        require(counted == here, "3.10", f"n{node} has levels {sorted(here)}, {sorted(counted)} count")
        heard = {key for key, _ in seat.held}
        for number, _ in here:
            if number == EVENT_MANAGER and self.world.event_manager is None:
                continue  # inside, it reads the record itself, and tells nobody outside what it was told
            for member in database.members.values():
                inside = member.state is NodeState.JOINED and any(each.number == number for each in member.levels)
                known = (number, member.node) in heard or not inside
                require(known, "3.10", f"level {number} on n{node} was never told of n{member.node}")
        require(not seat.working, "3.4", f"n{node} still works on {set(seat.working)}")
        for (level, about), held in seat.held:
            judge_held(node, level, database.member(about), held, self._count(level, held.kind))

    # ---- the account -------------------------------------------------------------------------------------------------

    def _note_crash(self, state: State, node: int, seat: Seat) -> None:
        """At which points of which transitions a node was lost."""
        database, role = self.database(state), "master" if state[1] == node else "node"
        for each in database.transitions.values():
            if node not in each.participants and each.node != node:
                continue
            step = present_step(each)
            acknowledged = (seat.incarnation, step) in seat.acknowledged
            when = "after" if acknowledged else "before" if step in seat.working else "unaware"
            whose = "its own" if each.node == node else "another's"
            self.reached.add(("crash", role, whose, str(each.kind), str(each.level), str(each.barrier), when))

    def _note(self, before: Database, after: Database) -> None:
        for each in after.transitions.values():
            if each.identity in before.transitions:
                continue
            aborted = next((old for old in before.transitions.values() if old.node == each.node), None)
            suffix = f"{' late' if each.late else ''}{f' replaces {aborted.kind}' if aborted else ''}"
            self.reached.add(("opened", f"{each.kind}{suffix}"))
        places = {(each.level, each.barrier) for each in after.transitions.values()}
        if len(after.transitions) > 1:
            self.reached.add(("side by side", f"{len(after.transitions)} at {len(places)} places"))
        if any(each.awaits for each in after.transitions.values()):
            self.reached.add(("second step of a boot",))
        if any(member.leave_asked for member in after.members.values()):
            self.reached.add(("leave asked for while joining",))
