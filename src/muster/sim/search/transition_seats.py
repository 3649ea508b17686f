"""What the states of the search over transitions are made of, and the real code in them (see `transition_model.py`)."""

import copy
from typing import Any, NamedTuple

from msgspec.structs import replace

from muster.core.draft import Draft
from muster.core.effects import Effect, Notify
from muster.core.entries import apply
from muster.core.events.resident import RehearsedEventManager
from muster.core.inputs import Input, StoreDone
from muster.core.node.built_in import RESIDENTS
from muster.core.node.node import Node
from muster.core.node.setup import Setup
from muster.core.transitions.resident import Resident as BuiltIn
from muster.core.transitions.subsystems import Subsystems
from muster.core.transitions.transition import IDENTITIES_PER_ENTRY
from muster.records.database import Change, Database, Entry, Forget
from muster.records.levels import EVENT_MANAGER_LEVEL, Level, Required, TransitionKind
from muster.records.members import Eviction, Member
from muster.records.messages import Report
from muster.records.nodes import Cluster
from muster.records.registers import RegisterKind, Strip, blank_register
from muster.records.required_levels import text_of
from muster.records.terms import Term
from muster.records.transitions import Acknowledgement, Transition
from muster.sim.search.transition_rules import Held, require

NOBODY = -1
NO_REPLICA = -1
INDEX = 1 << 20  # of every database in the search, plus the late joins so far: above all names of transitions
SERIALS = 16  # transitions of one incarnation, at most
TERM = Term(1, 0)
EVENT_MANAGER = EVENT_MANAGER_LEVEL.number
NOT_A_STATE = ("_narrated", "_residents")  # of `Subsystems`: what its history has told already, what never changes


class Budget(NamedTuple):
    """How often each thing that the nodes do not do by themselves may still happen."""

    boots: int = 0
    leaves: int = 0
    crashes: int = 0
    changes: int = 0  # of the master, which goes on as a node
    late: int = 0  # registrations of the world's `late_level`
    gone: int = 0  # subsystems of that level that go again
    restarts: int = 0  # of daemons
    evictions: int = 0
    corrections: int = 0  # of the required levels: nothing is required any more


class World(NamedTuple):
    """What is searched: how many nodes, how many have joined before it begins, their levels, and what may happen."""

    nodes: int
    joined: int
    levels: tuple[Level, ...]
    budget: Budget
    late_level: Level = Level(30, "late")
    event_manager: Level | None = EVENT_MANAGER_LEVEL  # works as a subsystem outside the node; None: inside, at once
    tall: Level | None = None  # only the last node has this level, from its boot on
    departs: bool = False  # what goes has said so; else its program has ended
    required: tuple[Required, ...] = ()  # that a node must have before it joins, from the beginning of the search on

    @property
    def residents(self) -> tuple[BuiltIn, ...]:
        """The built-in levels of each node."""
        return RESIDENTS if self.event_manager is None else (RehearsedEventManager(self.event_manager),)

    @property
    def barriers(self) -> dict[int, Level]:
        """All levels that there can be, by number."""
        own = self.event_manager or EVENT_MANAGER_LEVEL
        tall = (self.tall,) if self.tall is not None else ()
        return {level.number: level for level in (*self.levels, self.late_level, own, *tall)}

    def levels_of(self, node: int) -> tuple[Level, ...]:
        """What a node registers before it joins."""
        return (*self.levels, self.tall) if self.tall is not None and node == self.nodes - 1 else self.levels

    def __str__(self) -> str:
        levels = ", ".join(f"{level.number}:{'/'.join(map(str, level.barriers))}" for level in self.levels)
        may = ", ".join(f"{count} {name}" for name, count in self.budget._asdict().items() if count)
        where = "" if self.event_manager else ", event manager inside"
        where += ", by its own wish" if self.departs else ""
        where += f", {self.tall.number} on the last" if self.tall is not None else ""
        where += f", required {text_of(self.required)}" if self.required else ""
        return f"{self.nodes} nodes, {self.joined} joined; levels {levels}{where}; {may or 'nothing happens'}"


class Seat(NamedTuple):
    """One node: what runs there, what its subsystems know, and what the master knows of it."""

    running: bool = False
    incarnation: int = 0
    lag: int = NO_REPLICA  # entries behind the newest
    accepted: bool = False  # it has the database of this term's master
    subsystems: int = 0  # interned
    working: frozenset[Acknowledgement] = frozenset()  # steps that a subsystem has not acknowledged yet
    acknowledged: frozenset[tuple[int, Acknowledgement]] = frozenset()  # with the incarnation, of steps still at work
    held: frozenset[tuple[tuple[int, int], Held]] = frozenset()  # (level, about) -> what that subsystem holds
    report: int = 0  # interned: what the master holds; 0 is none
    farewell: int = 0  # what a dead node may have sent last
    proven: tuple[int, ...] = ()  # its incarnations of whose end the master has proof
    promised: int = 0  # the incarnation whose leave was accepted
    restarted: bool = False
    gone: frozenset[tuple[int, int, int]] = frozenset()  # (incarnation, level, registration) of subsystems that went


class Outcome(NamedTuple):
    """What one input made a node do."""

    subsystems: int
    notified: tuple[Notify, ...]
    ended: str  # `left`, `panicked`, or nothing
    steps: frozenset[Acknowledgement]  # that are acknowledged now, as its report would say


class Interned:
    """Values and their numbers; 0 is the first one."""

    def __init__(self, first: Any) -> None:
        self._numbers: dict[Any, int] = {first: 0}
        self.values: list[Any] = [first]

    def number(self, key: Any, value: Any = None) -> int:
        """The number of `key`; `value` is kept in its place if it is given."""
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self.values)
            self.values.append(key if value is None else value)
        return found


class SearchedNode(Node):
    """A node in one state of the search, built anew for one input."""

    def __init__(self, setup: Setup, database: Database, strip: Strip, subsystems: Subsystems, confirmed: bool) -> None:
        super().__init__(setup, database, strip, (), 0)
        for effect in self.start(0):
            self.step(StoreDone(getattr(effect, "operation", 0)), 0)
        vars(self.subsystems).update(vars(_copy_of(subsystems)))
        self.replica.confirmed, self.replica.accepted = confirmed, TERM

    def given(self, happened: Input | None) -> tuple[list[Effect], Subsystems, Report]:
        """Take an input in, or look at the replica; the effects, the subsystems, and the report that follows."""
        if happened is None:
            self._follow()
        else:
            self._take(happened)
        effects = self._out.drain()
        require(not (wrong := self.invariant()), "2.6", wrong)
        return effects, self.subsystems, self.report()

    def report(self) -> Report:
        """The report that would be sent now, without what nobody decides by."""
        report = self.account.settled()
        return replace(report, index=0, term=TERM, software=replace(report.software, started_index=0))


def _copy_of(subsystems: Subsystems) -> Subsystems:
    """A copy that shares nothing that ever changes: what its dicts and sets hold never does."""
    found = copy.copy(subsystems)
    for name, value in vars(subsystems).items():
        if isinstance(value, dict | set):
            setattr(found, name, value.copy())
        elif name == "_narrated":
            setattr(found, name, tuple(each.copy() for each in value))
    return found


def frozen(fields: dict[str, Any]) -> tuple[Any, ...]:
    """The attributes of an object as a value; without those that only serve the account of what it did."""
    return tuple(
        tuple(sorted(value.items()))
        if isinstance(value, dict)
        else frozenset(value)
        if isinstance(value, set)
        else value
        for name, value in fields.items()
        if name not in NOT_A_STATE
    )


def key_of(database: Database) -> tuple[Any, ...]:
    """What tells databases apart: the members, the transitions in their order, and what is required."""
    required = database.cluster.required_levels
    return (database.index, tuple(database.members.values()), tuple(database.transitions.values()), required)


_LOOKED_AT = (Cluster, Member, Transition, Forget)  # not who asked for what, and when


def committed(database: Database, draft: Draft) -> Database | None:
    """The database with the draft's entry applied, renumbered; None if nothing in it changes. Raises `Broken`."""
    changes = [_plain(change) for change in draft.changes if isinstance(change, _LOOKED_AT)]
    following = copy.copy(database)
    following.members, following.transitions = dict(database.members), dict(database.transitions)
    apply(following, Entry(draft.index, TERM, "", tuple(changes)))
    following.members = dict(sorted(following.members.items()))
    following.index = database.index
    for identity in [each for each in following.transitions if each not in database.transitions]:
        _rename(following, following.transitions.pop(identity))
    following.epoch = 0
    if key_of(following) != key_of(database):
        return following
    require(draft.operations or not changes, "2.7", f"an entry that changes nothing would follow for ever: {changes}")
    return None


def _rename(database: Database, opened: Transition) -> None:
    """Give a transition that was just opened a name that no other one of this incarnation has ever had."""
    serial = {TransitionKind.JOINING: 1, TransitionKind.LEAVING: 2, TransitionKind.FORCED_LEAVING: 3}[opened.kind]
    member = database.member(opened.node)
    again = opened.kind is not TransitionKind.FORCED_LEAVING and bool(member.inside)  # it was interrupted for a level
    if opened.late or again:
        database.index += 1  # counts the late joins, and what follows them
        serial = 3 + database.index - INDEX
    assert serial < SERIALS, "more late registrations than the search can name"
    identity = (opened.incarnation * SERIALS + serial) * IDENTITIES_PER_ENTRY + opened.node
    database.transitions[identity] = replace(opened, identity=identity)


def _plain(change: Change) -> Change:
    """Without words that only people read."""
    match change:
        case Transition():
            return replace(change, cause="")
        case Member(eviction=eviction, last_proof=proof):
            return replace(
                change,
                eviction=Eviction(eviction.incarnation, "") if eviction is not None else None,
                last_proof=replace(proof, detail="") if proof is not None else None,
            )
    return change


def blank_strip(nodes: int) -> Strip:
    """All registers of a store that nobody has used."""

    def blank(kind: RegisterKind) -> Any:
        return tuple(blank_register(kind, node) for node in range(nodes))

    return Strip(
        blank(RegisterKind.LEASE), blank(RegisterKind.CLAIM), blank(RegisterKind.VIEW), blank(RegisterKind.MARKS)
    )  # fmt: skip
