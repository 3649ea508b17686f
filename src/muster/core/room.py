"""The journal's room as one budget (P9.3-P9.6): what a database may grow to, and what an entry may hold.

Theory of operation. A region of a journal holds one checkpoint and the frames behind it. Everything that these hold is
counted uncompressed, and what can grow at its largest: so a database that is accepted today can always be written,
whatever becomes of its services and nodes. The shares of a region:

    70 %   the database: definitions and all that may become of them (its *growth*), and beside it three shares of
           their own, for the remembered identities (an eighth of it), the history of versions (an eighth) and the
           audit (a sixteenth)
    24 %   one entry: whatever is committed together. It fits behind the largest checkpoint, so it never jams
     6 %   heads of records, and padding to sectors

What adds to the growth is refused when it would not fit; what takes away or merely happens never is.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import msgspec

from muster.records.database import Database
from muster.records.fencing import KEPT_FENCINGS, KEPT_OUTCOMES, FencePlan, Fencing
from muster.records.kinds import KINDS
from muster.records.levels import LOCK_MANAGER_LEVEL
from muster.records.members import Member
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import Definition, Maintenance, Service, Standby
from muster.records.texts import LEAST_TEXT_BYTES, NODE_TEXT_BYTES

DATABASE_PERCENT = 70
ENTRY_PERCENT = 24
MAXIMUM_DATABASE_BYTES = 28 << 20  # of a snapshot: a message has at most 32 MiB
MAXIMUM_ENTRY_BYTES = 8 << 20
MINIMUM_ENTRY_BYTES = 4096  # to try, where the journal refuses larger entries
MAXIMUM_OPERATIONS_BYTES = 1 << 20
MAXIMUM_HISTORY_BYTES = 128 << 10
MAXIMUM_AUDIT_BYTES = 96 << 10

BASE_BYTES = 1300  # of the database itself, and its lineage
AUTHORITY_BYTES = 3000  # for an incoming authority beside the present one
CERTIFICATE_BYTES = 1200  # of a node: a renewed one, or one of another authority
ENROLMENT_BYTES = 250
LEVELS_BYTES = 600  # of one node: what its registered levels take, whatever they take now
# The rest of a node: its member record, its transition, its standby and its maintenance, with their texts.
NODE_BYTES = 2000
MISSING_BYTES = 80  # of a required level beside its name: its number, and another program's name (P3.17)
STATE_BYTES = 320  # of a service: everything that has a fixed size, and the names of its template
TEXTS = ("reason", "cause", "broken")
TEXT_HEAD_BYTES = 3
INDEX_BYTES = 9
GIVEN_UP_BYTES = 14  # on one node: failed there, exhausted there
TAKEOVER_BYTES = 24
RECENT_TAKEOVERS = 6  # as `core/services/conditions.py` keeps, and one a node that is not to take it over
# Of what is asked about one node that is fenced, and what became of it.
FENCING_BYTES = 200 + NODE_TEXT_BYTES + KEPT_OUTCOMES * (120 + LEAST_TEXT_BYTES) + KEPT_FENCINGS * INDEX_BYTES
HEAD_BYTES = 32  # of a record that is counted as large as it is
SHARE_OF_A_RECORD = 10  # one service's record may take one part in so many of an entry: it never goes alone
SHARE_OF_INSTANCES = 2  # those of one template change together

_COUNTED = tuple(kind for kind in KINDS if kind.is_counted)
_encoder = msgspec.msgpack.Encoder()


class Capacity(NamedTuple):
    """What a store of this size leaves, in bytes (P9.3)."""

    database: int
    entry: int
    operations: int
    history: int
    audit: int

    @property
    def growth(self) -> int:
        """What definitions, nodes and all that may become of them may take."""
        return self.database - self.operations - self.history - self.audit

    @property
    def consequences(self) -> int:
        """From which size of an entry on nothing more follows in it: the rest follows in the next (P9.5)."""
        return self.entry * 3 // 4


def capacity_of(region_bytes: int) -> Capacity:
    """What a journal region of this size leaves (P9.3)."""
    database = min(region_bytes * DATABASE_PERCENT // 100, MAXIMUM_DATABASE_BYTES)
    entry = min(region_bytes * ENTRY_PERCENT // 100, MAXIMUM_ENTRY_BYTES)
    return Capacity(
        database, entry,
        min(database // 8, MAXIMUM_OPERATIONS_BYTES),
        min(database // 8, MAXIMUM_HISTORY_BYTES),
        min(database // 16, MAXIMUM_AUDIT_BYTES),
    )  # fmt: skip


class Contents(Protocol):
    """A database, or the draft of its successor."""

    cluster: Cluster
    nodes: dict[int, NodeConfig]
    members: dict[int, Member]
    services: dict[str, Service]
    maintenance: dict[str, Maintenance]
    standby: dict[int, Standby]
    fence_plans: dict[int, FencePlan]
    fencing: dict[int, Fencing]


class Room:
    """Measures databases against one capacity; remembers what it has measured."""

    def __init__(self, region_bytes: int) -> None:
        self.capacity = capacity_of(region_bytes)
        self.entry_bytes = self.capacity.entry  # less while the journal refuses even smaller ones (P9.5)
        self._definitions: dict[str, tuple[Definition, int]] = {}
        self._sizes: dict[tuple[str, str | int], tuple[object, int]] = {}

    def entry_refused(self) -> None:
        """The journal takes no entry behind a fresh checkpoint: half as much next time (P9.5)."""
        self.entry_bytes = max(MINIMUM_ENTRY_BYTES, self.entry_bytes // 2)

    def entry_taken(self) -> None:
        """The journal has taken an entry: twice as much next time, up to the capacity."""
        self.entry_bytes = min(2 * self.entry_bytes, self.capacity.entry)

    def used(self, contents: Contents) -> int:
        """What the database may grow to without anything being added: without identities, history and audit."""
        nodes = len(contents.nodes)
        total = BASE_BYTES + len(_encoder.encode(contents.cluster)) + AUTHORITY_BYTES
        total += sum(self._node(contents, config) for config in contents.nodes.values())
        for service in contents.services.values():
            total += self.of_service(service, nodes, contents.services)
        for kind in _COUNTED:
            records = getattr(contents, kind.table)
            total += sum(HEAD_BYTES + self._size(kind.name, key, each) for key, each in records.items())
        total += FENCING_BYTES * len(contents.fence_plans.keys() | contents.fencing.keys())
        for key, each in contents.maintenance.items():
            if each.kind == "service":  # that of nodes and of the cluster has its room in those
                total += self._size("maintenance", key, each)
        self._forget(contents)
        return total

    def of_service(self, service: Service, nodes: int, services: Mapping[str, Service]) -> int:
        """What a service's record may grow to; that of a template with one instance a node.

        An instance is counted with its template, but for the texts in it that are longer than what has its room.
        """
        texts = sum(max(0, len(getattr(service, key).encode()) - LEAST_TEXT_BYTES) for key in TEXTS)
        if service.takeovers and not service.definition.free_transfer:
            texts += len(service.takeovers) * TAKEOVER_BYTES
        if service.as_started is not None:
            texts += len(_encoder.encode(service.as_started))
        template = services.get(service.template) if service.template else None
        if template is not None and template.definition.on_all:
            return texts
        alone = self.of_definition(service.definition, nodes)
        return texts + alone * (1 + nodes if service.definition.on_all and not service.template else 1)

    def of_definition(self, definition: Definition, nodes: int) -> int:
        """What a record of a service that is so defined may grow to, without longer texts."""
        known = self._definitions.get(definition.name)
        if known is None or known[0] is not definition:
            known = self._definitions[definition.name] = (definition, len(_encoder.encode(definition)))
        failures = (definition.restarts + 1) * INDEX_BYTES
        takeovers = (RECENT_TAKEOVERS + nodes) * TAKEOVER_BYTES if definition.free_transfer else 0
        texts = len(TEXTS) * (LEAST_TEXT_BYTES + TEXT_HEAD_BYTES)
        return known[1] + STATE_BYTES + texts + failures + takeovers + nodes * GIVEN_UP_BYTES

    def too_large(self, definition: Definition, nodes: int) -> str:
        """Why a definition cannot be taken whatever else there is, in words; empty where it can (P9.4)."""
        size, most = self.of_definition(definition, nodes), self.capacity.entry // SHARE_OF_A_RECORD
        if size > most:
            return f"service {definition.name} may grow to {size} bytes, and one service may take {most} in this store"
        most = self.capacity.entry // SHARE_OF_INSTANCES
        if definition.on_all and size * (1 + nodes) > most:
            return (
                f"service {definition.name} may grow to {size * (1 + nodes)} bytes on {nodes} nodes; "
                f"the instances of one service may take {most} bytes in this store"
            )
        return ""

    def kept(self, kind: str, records: Mapping[int, object] | Mapping[str, object]) -> int:
        """What identities, versions or audit records take, as they are."""
        return sum(self._size(kind, key, record) for key, record in records.items())

    def _node(self, contents: Contents, config: NodeConfig) -> int:
        member = contents.members.get(config.node)
        levels = self._size("member", config.node, member) if member is not None else 0
        if member is not None and member.waits is not None:  # counted below, whether it waits or not
            levels -= self._size("waits", config.node, member.waits)
        spare = CERTIFICATE_BYTES - min(CERTIFICATE_BYTES, len(config.certificate))
        own = config.required_levels
        required = contents.cluster.required_levels if own is None else own  # what it waits for, by name
        waits = sum(len(each.name) + MISSING_BYTES for each in required)
        waits += len(LOCK_MANAGER_LEVEL.name) + MISSING_BYTES if contents.cluster.has_locks else 0
        return self._size("node", config.node, config) + spare + ENROLMENT_BYTES + waits + max(
            levels, NODE_BYTES // 2 + LEVELS_BYTES
        ) + NODE_BYTES // 2  # fmt: skip

    def _size(self, kind: str, key: str | int, record: object) -> int:
        known = self._sizes.get((kind, key))
        if known is None or known[0] is not record:
            known = self._sizes[kind, key] = (record, len(_encoder.encode(record)))
        return known[1]

    def _forget(self, contents: Contents) -> None:
        """Remember no more than there is."""
        if len(self._definitions) > 2 * len(contents.services) + 100:
            self._definitions.clear()
        if len(self._sizes) > 20_000:
            self._sizes.clear()


class Fullness(NamedTuple):
    """How full a store is, for people."""

    used_bytes: int
    growth_bytes: int

    @property
    def percent(self) -> int:
        """Of the growth; may be above 100 in a store that an older release has filled."""
        return self.used_bytes * 100 // max(1, self.growth_bytes)

    @property
    def words(self) -> str:
        """What to do about it; empty while there is room."""
        if self.percent > 100:
            return (
                f"the store is over full ({self.percent} % of what definitions and nodes may take): nothing can be "
                "added; withdraw services or event groups, or move to a store with a larger --size"
            )
        if self.percent >= WARN_PERCENT:
            return (
                f"the store is {self.percent} % full: definitions and nodes take {self.used_bytes} of "
                f"{self.growth_bytes} bytes; withdraw what is not needed, or plan a store with a larger --size"
            )
        return ""


WARN_PERCENT = 75


def fullness(room: Room, database: Database) -> Fullness:
    """How full the store is with this database."""
    return Fullness(room.used(database), room.capacity.growth)
