"""A decision in the making: the database as committed, and what the rules of this round want changed in it.

The master's rules (membership, transition, service) all work on one draft, one after the other; what comes out is one
entry. So a decision never mixes two snapshots, and the entry's index is known while it is made (SPEC 2.7, 7.7).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from muster.core.room import TEXTS, Room
from muster.records.configuration import Audit, Operation, Revision
from muster.records.database import Change, Database, Forget
from muster.records.deciders import Decider
from muster.records.events import EventGroup
from muster.records.fencing import FenceDevice, FencePlan, Fencing
from muster.records.kinds import KINDS, Kind, Record, check_tables, kind_named, kind_of
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.messages import Report
from muster.records.nodes import Cluster, NodeConfig
from muster.records.placements import PlacedTogether
from muster.records.registers import Owed, ProofKind
from muster.records.services import Maintenance, Service, Standby
from muster.records.texts import (
    ENTRY_CAUSE_BYTES,
    LEAST_TEXT_BYTES,
    MAXIMUM_TEXT_BYTES,
    NODE_TEXT_BYTES,
    clipped,
)
from muster.records.transitions import Transition

UNBOUNDED_BYTES = 1 << 28  # of a region, where nobody has said how large one is
ENTRY_HEAD_BYTES = 64 + ENTRY_CAUSE_BYTES
CHANGE_HEAD_BYTES = 2
MAXIMUM_CHANGES = 2000  # of an entry, from which on what follows goes into the next one: each takes its time to apply
_MEMBER_TEXTS = {"refusal": NODE_TEXT_BYTES, "leave_asked": NODE_TEXT_BYTES}
_encoder = msgspec.msgpack.Encoder()
_NOTHING = object()


class DraftMark(NamedTuple):
    """Where a draft was."""

    undo: int
    causes: int
    cluster: Cluster
    changed: dict[tuple[str, str], Change]
    sizes: dict[tuple[str, str], int]
    bytes: int


class StopEvidence(Protocol):
    """What `core.leases.lease.Evidence` and the confirmations of operators and fence agents have in common."""

    @property
    def kind(self) -> ProofKind:
        """What kind of proof it is."""

    @property
    def detail(self) -> str:
        """The evidence in words."""


class Facts(msgspec.Struct):
    """What the master knows beside the database: volatile, gathered anew by each master, never copied."""

    now_us: int
    me: int
    reports: dict[int, Report]  # of this term only: a node in here has acknowledged the term (SPEC 7.7)
    evidence: Callable[[int, int], StopEvidence | None]  # (node, incarnation) -> proof that it has stopped
    alive: Callable[[int], bool]  # node -> its lease is being renewed at this moment
    unreachable: dict[int, str]  # node -> why the surviving set goes on without it
    hung: dict[int, str]  # node -> which of its subsystems is hung, where the level's policy is to force it out
    services_open: bool  # every member of the term's first hour has reported or is gone (SPEC 7.7)
    age_us: Callable[[int], int] = lambda _index: 0  # how long ago an entry was committed (`core/replica/ages.py`)
    slots: dict[int, int] = msgspec.field(default_factory=dict)  # of the store: slot -> last incarnation that ran in it
    silent: Callable[[int, int], bool] = lambda _node, _incarnation: False
    """(node, incarnation) -> nobody waits for it any more: its lease has run out, or it is suspected (P4.7, P4.13)."""
    ran_out: Callable[[int, int], bool] = lambda _node, _incarnation: True  # for words: its lease has run out
    graced: Callable[[int], bool] = lambda _node: False  # node -> it may be booting: not to be fenced yet (P4.14)
    unclean: Callable[[int, int, int], str] = lambda _node, _incarnation, _service: ""
    """(node, incarnation, `identity_of` a service) -> why that machine is not known to be clean of it (P6.33)."""
    owed: Callable[[int, int], Owed | None] = lambda _node, _incarnation: None
    """(node, incarnation) -> what a booting incarnation says is still to be cleared in its machine (P6.33)."""
    foreign: Callable[[int, int], bool] = lambda _node, _incarnation: False  # it runs under another kernel (P7.17)
    room: Room = msgspec.field(default_factory=lambda: Room(UNBOUNDED_BYTES))  # what the journal can take (P9.3)
    entry_bytes: int = 0  # what an entry may hold where that is less than the capacity says; 0: it is not
    aged_index: int = -1  # the newest entry that is older than a client may repeat a request; -1: none is known to be
    sheds: bool = False  # the store may be over full: whoever has filled it did not count as this release does (P9.6)
    after: str = ""  # the service at which the last round had to stop: this one begins behind it (P9.5)
    fences: bool = False  # silence has to be proven from outside here: each node is a machine of its own (P7.22)
    why_no_decider: Callable[[int], str] = lambda _node: ""
    """node -> why it cannot decide on services now though it has the lock, in words (P6.43)."""
    shut: range = range(0)  # the slots of the store's banks in which nobody has ever run (P11.7)

    def report(self, member: Member) -> Report | None:
        """The report of exactly this incarnation, in this term; none of a silent one, whatever it says (P4.8)."""
        if is_silent(member):
            return None
        report = self.reports.get(member.node)
        return report if report is not None and report.incarnation == member.incarnation else None


class Draft:
    """Reads through to the database; collects whole new records."""

    cluster: Cluster
    nodes: dict[int, NodeConfig]
    members: dict[int, Member]
    transitions: dict[int, Transition]
    services: dict[str, Service]
    operations: dict[str, Operation]  # those of this round only: there are thousands in the database
    maintenance: dict[str, Maintenance]
    standby: dict[int, Standby]
    event_groups: dict[str, EventGroup]
    audit: dict[int, Audit]
    revisions: dict[int, Revision]
    fence_devices: dict[str, FenceDevice]
    fence_plans: dict[int, FencePlan]
    fencing: dict[int, Fencing]
    deciders: dict[str, Decider]

    def __init__(self, database: Database, room: Room | None = None, entry_bytes: int = 0) -> None:
        """`room` bounds texts, and `entry_bytes` the entry; without them they are not bounded."""
        self.database = database
        self.index = database.index + 1
        self.bytes = ENTRY_HEAD_BYTES  # of the entry as it is, at most
        self.stopped_at = ""  # the service before which the round had to stop, the entry being full (P9.5)
        self._room, self._entry_bytes = room, entry_bytes
        self._sizes: dict[tuple[str, str], int] = {}
        self._spare: int | None = None  # what longer texts may still take; None: to be found out
        self.causes: list[str] = []
        self._said: set[str] = set()  # the same, to be asked quickly: an entry may have thousands
        self.cluster = database.cluster
        for kind in KINDS:
            if kind.key is not None:
                setattr(self, kind.table, dict(getattr(database, kind.table)) if kind.is_copied else {})
        self._registered: dict[int, frozenset[int]] | None = None  # by level, gathered when asked for
        self.placed: PlacedTogether | None = None  # where services go by it, and why
        self._changed: dict[tuple[str, str], Change] = {}
        self._undo: list[tuple[dict[Any, Any], Any, Any]] = []  # table, key, record before

    def mark(self) -> DraftMark:
        """Where the draft is now, for `restore`."""
        self._spare = None
        changed, sizes = dict(self._changed), dict(self._sizes)
        return DraftMark(len(self._undo), len(self.causes), self.cluster, changed, sizes, self.bytes)

    def restore(self, mark: DraftMark) -> None:
        """Forget all that was put since `mark`."""
        while len(self._undo) > mark.undo:
            table, key, before = self._undo.pop()
            if before is None:
                table.pop(key, None)
            else:
                table[key] = before
        for cause in self.causes[mark.causes :]:
            self._said.discard(cause)
        del self.causes[mark.causes :]
        self.cluster, self.bytes = mark.cluster, mark.bytes
        self._changed, self._sizes = mark.changed, mark.sizes
        self._registered = self._spare = None

    def changes_since(self, mark: DraftMark) -> bool:
        """Whether anything is now other than it was at `mark`, and not only put again as it was."""
        for key, change in self._changed.items():
            before = mark.changed.get(key, _NOTHING)
            if before is change:
                continue
            if before is _NOTHING:
                before = committed(self.database, key)
                if before is None and isinstance(change, Forget):
                    continue
            if before != change:
                return True
        return False

    @property
    def is_full(self) -> bool:
        """Whether the entry has got so large that what else follows goes into the next one (P9.5, P8.13)."""
        return not self.takes(0)

    def takes(self, more_bytes: int) -> bool:
        """Whether what follows from a change may add so much to the entry (P9.5)."""
        if not self._entry_bytes:
            return True
        return self.bytes + more_bytes <= self._entry_bytes * 3 // 4 and len(self._changed) < MAXIMUM_CHANGES

    def _set(self, table: dict[Any, Any], key: Any, record: Any) -> None:
        self._undo.append((table, key, table.get(key)))
        if record is None:
            table.pop(key, None)
        else:
            table[key] = record

    def _count(self, key: tuple[str, str], change: Change) -> None:
        size = len(_encoder.encode(change)) + CHANGE_HEAD_BYTES
        self.bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self._changed[key] = change

    def _fitted(self, record: Record) -> Record:
        """The record with its texts as long as they may be (P9.3)."""
        match record:
            case Service():
                return self._fitted_service(record)
            case Member():
                return _fitted_member(record)
            case _:
                return _with_texts(record, kind_of(record).texts)

    def _fitted_service(self, record: Service) -> Service:
        """Longer texts where there is room to spare; what is accepted later finds that they have taken it."""
        lengths = [len(getattr(record, key)) for key in TEXTS]
        if max(lengths) * 4 <= LEAST_TEXT_BYTES:
            return record
        whole = _with_texts(record, dict.fromkeys(TEXTS, MAXIMUM_TEXT_BYTES))
        before = self.services.get(record.name)
        wanted = _longer_texts(whole) - (_longer_texts(before) if before is not None else 0)
        if self._room is None or wanted <= 0:
            return whole
        if self._spare is None:
            self._spare = self._room.capacity.growth - self._room.used(self)
        if wanted > self._spare:
            return _with_texts(record, dict.fromkeys(TEXTS, LEAST_TEXT_BYTES))
        self._spare -= wanted
        return whole

    def member(self, node: int) -> Member:
        """The member record of a configured node."""
        return self.members.get(node) or Member(node)

    def put(self, record: Record, cause: str = "") -> None:
        """Replace a record. `cause` goes into the entry's cause."""
        kind, record = kind_of(record), self._fitted(record)
        assert kind.since <= self.cluster.active_version, f"{kind.name} is of version {kind.since}, not active yet"
        key = kind.key_of(record)
        if kind.key is None:
            setattr(self, kind.table, record)
        else:
            self._set(getattr(self, kind.table), key, record)
        if kind.struct is Member:
            self._registered = None
        self._count((kind.name, str(key)), record)
        self._because(cause)

    def forget(self, kind: str, key: str, cause: str = "") -> None:
        """Remove a record of any kind; that of a node goes with its member record."""
        row = kind_named(kind)
        self._remove(row, key)
        if row.takes_along:
            self._remove(kind_named(row.takes_along), key)
            self._changed.pop((row.takes_along, key), None)
            self.bytes -= self._sizes.pop((row.takes_along, key), 0)
        self._count((kind, key), Forget(kind, key))
        self._because(cause)

    def _remove(self, kind: Kind, key: str) -> None:
        if kind.is_copied:
            self._set(getattr(self, kind.table), kind.key_in(key), None)
        if kind.struct is Member:
            self._registered = None

    def _because(self, cause: str) -> None:
        if cause and cause not in self._said:
            self._said.add(cause)
            self.causes.append(cause)

    @property
    def changed(self) -> dict[tuple[str, str], Change]:
        """Every record that differs from the database, by kind and key."""
        return dict(self._changed)

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every record that differs from the database, each once: what was put as it was is no change (P9.4)."""
        database = self.database
        return tuple(
            change
            for key, change in self._changed.items()
            if change != (before := committed(database, key)) and not (before is None and isinstance(change, Forget))
        )

    def name(self, node: int) -> str:
        """The configured name of `node`."""
        config = self.nodes.get(node)
        return config.name if config is not None else self.database.name_of(node)

    def transition_of(self, node: int) -> Transition | None:
        """The transition of `node`; its own before that of a level which still recovers (P3.15)."""
        return min((t for t in self.transitions.values() if t.node == node), key=lambda t: t.late, default=None)

    def participants(self, level: int) -> tuple[int, ...]:
        """Every node that takes part in transitions and has registered `level` (SPEC 3.4)."""
        return tuple(sorted(self.registered().get(level, ())))

    def registered(self) -> dict[int, frozenset[int]]:
        """By level, every node that takes part in transitions and has registered it. Not to be changed."""
        if self._registered is None:
            found: dict[int, set[int]] = {}
            for member in self.members.values():
                if takes_part(member):
                    for level in member.levels:
                        found.setdefault(level.number, set()).add(member.node)
            self._registered = {level: frozenset(nodes) for level, nodes in found.items()}
        return self._registered


check_tables(Draft)
TextRecord = TypeVar("TextRecord", bound=msgspec.Struct)


def _with_texts(record: TextRecord, limits: Mapping[str, int]) -> TextRecord:
    """The record with each of these texts in at most so many bytes."""
    cut = {key: clipped(text, most) for key, most in limits.items() if len(text := getattr(record, key)) * 4 > most}
    return replace(record, **cut) if cut else record


def _fitted_member(member: Member) -> Member:
    fitted = _with_texts(member, _MEMBER_TEXTS)
    if member.eviction is not None:
        fitted = replace(fitted, eviction=_with_texts(member.eviction, {"cause": NODE_TEXT_BYTES}))
    if member.last_proof is not None:
        fitted = replace(fitted, last_proof=_with_texts(member.last_proof, {"detail": NODE_TEXT_BYTES}))
    return fitted


def _longer_texts(service: Service) -> int:
    """What its texts take beyond what always has its room, in bytes."""
    return sum(max(0, len(getattr(service, key).encode()) - LEAST_TEXT_BYTES) for key in TEXTS)


def committed(database: Database, key: tuple[str, str]) -> Change | None:
    """The committed record of this kind and key, if there is one."""
    kind = kind_named(key[0])
    table = getattr(database, kind.table)
    found: Change | None = table if kind.key is None else table.get(kind.key_in(key[1]))
    return found


def counts(member: Member) -> bool:
    """Whether this is a member that no forced leave takes out (SPEC 3.4)."""
    return member.state in (NodeState.JOINING, NodeState.JOINED, NodeState.LEAVING)


def is_silent(member: Member) -> bool:
    """Whether it is condemned because it has fallen silent, and not proven dead: it holds all that it held (P4.7)."""
    return member.eviction is not None and member.eviction.silent and counts(member)


def takes_part(member: Member) -> bool:
    """Whether others wait for this member: for no forced-out one (SPEC 3.4), and for no silent one (P4.8)."""
    return counts(member) and not is_silent(member)


def is_up(member: Member) -> bool:
    """Whether a node may be chosen for services: its join is complete and nothing takes it away (SPEC 6.9)."""
    return member.state is NodeState.JOINED and member.eviction is None
