"""The kinds of record that the database holds: one row each (SPEC 1.3).

Database, drafts, the room of the journal, versions of the configuration and narration follow this table. A new kind is
a struct in the file of its subject, a member of `Record`, a row here, a field of `Database` and of `Draft`. Whatever is
forgotten fails when the program is loaded. No draft takes a kind before the version that added it is active (P10.1).
"""

from collections.abc import Mapping
from types import GenericAlias, MappingProxyType
from typing import Any, NamedTuple

from msgspec import Struct

from muster.records.configuration import Audit, Operation, Revision
from muster.records.deciders import Decider
from muster.records.events import EventGroup
from muster.records.fencing import FenceDevice, FencePlan, Fencing
from muster.records.members import Member
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import Maintenance, Service, Standby
from muster.records.tables import check_rows, members_of
from muster.records.texts import NODE_TEXT_BYTES, OUTCOME_BYTES
from muster.records.transitions import Transition
from muster.records.versions import DECIDERS, FENCING, KEEPS_HISTORY, LOWEST

Record = (
    Cluster
    | NodeConfig
    | Member
    | Transition
    | Service
    | Operation
    | Maintenance
    | Standby
    | EventGroup
    | Audit
    | Revision
    | FenceDevice
    | FencePlan
    | Fencing
    | Decider
)

Key = int | str
_NO_TEXTS: Mapping[str, int] = MappingProxyType({})


class Kind(NamedTuple):
    """One kind of record; `name` is its tag in the bytes, and what a `Forget` calls it."""

    name: str
    struct: type[Struct]
    since: int  # the version that added it
    table: str  # the field of `Database`, and of a draft, that holds its records by key
    key: type[int] | type[str] | None  # type of the key; None: there is one record, which is never forgotten
    by: str  # the attribute that is the key
    is_configuration: bool  # people decide it: a change of it makes a version of the configuration (P10.2)
    is_counted: bool  # in the room of definitions, as large as it is; `core/room.py` says how all others are counted
    is_copied: bool  # into each draft; else a draft knows those only that are put into it
    texts: Mapping[str, int]  # its texts that are cut, and at how many bytes
    takes_along: str  # the kind whose record under the same key goes with it

    def key_of(self, record: Any) -> Any:
        """What the table holds it under."""
        return getattr(record, self.by) if self.key is not None else ""

    def key_in(self, text: str) -> Any:
        """The key that a `Forget` has as text."""
        assert self.key is not None, f"{self.name} cannot be forgotten"
        return self.key(text)


def _kind(
    struct: type[Struct],
    table: str,
    by: str,
    key: type[int] | type[str] | None,
    *,
    since: int,
    is_configuration: bool = False,
    is_counted: bool = False,
    is_copied: bool = True,
    texts: Mapping[str, int] = _NO_TEXTS,
    takes_along: str = "",
) -> Kind:
    name = str(struct.__struct_config__.tag)
    return Kind(name, struct, since, table, key, by, is_configuration, is_counted, is_copied, texts, takes_along)


_CAUSE = {"cause": NODE_TEXT_BYTES}

KINDS: tuple[Kind, ...] = (
    _kind(Cluster, "cluster", "", None, since=LOWEST, is_configuration=True),
    _kind(NodeConfig, "nodes", "node", int, since=LOWEST, is_configuration=True, takes_along="member"),
    _kind(Member, "members", "node", int, since=LOWEST),
    _kind(Transition, "transitions", "identity", int, since=LOWEST, texts=_CAUSE),
    _kind(Service, "services", "name", str, since=LOWEST, is_configuration=True),
    _kind(
        Operation, "operations", "identity", str, since=LOWEST,
        is_copied=False, texts={"outcome": OUTCOME_BYTES},
    ),
    _kind(Maintenance, "maintenance", "key", str, since=2, texts=_CAUSE),
    _kind(Standby, "standby", "node", int, since=2, texts=_CAUSE),
    _kind(EventGroup, "event_groups", "name", str, since=2, is_configuration=True, is_counted=True),
    _kind(Audit, "audit", "number", int, since=KEEPS_HISTORY),
    _kind(Revision, "revisions", "version", int, since=KEEPS_HISTORY),
    _kind(FenceDevice, "fence_devices", "name", str, since=FENCING, is_configuration=True, is_counted=True),
    _kind(FencePlan, "fence_plans", "node", int, since=FENCING, is_configuration=True, is_counted=True),
    _kind(Fencing, "fencing", "node", int, since=FENCING, texts=_CAUSE),
    _kind(Decider, "deciders", "what", str, since=DECIDERS, texts=_CAUSE),
)  # fmt: skip
BY_TYPE: dict[type, Kind] = {kind.struct: kind for kind in KINDS}
BY_NAME: dict[str, Kind] = {kind.name: kind for kind in KINDS}
check_rows("records/kinds.py", (kind.struct for kind in KINDS), members_of(Record))


def check_tables(holder: type) -> None:
    """Raise `TypeError` unless the class says of each kind that it holds its records, by key."""
    for kind in KINDS:
        wanted = kind.struct if kind.key is None else GenericAlias(dict, (kind.key, kind.struct))
        if holder.__annotations__.get(kind.table) != wanted:
            raise TypeError(f"{holder.__name__} has no field `{kind.table}: {wanted}` for records of kind {kind.name}")


def kind_of(record: Record) -> Kind:
    """The row of a record."""
    return BY_TYPE[type(record)]


def kind_named(name: str) -> Kind:
    """The row of a kind by its tag. Raises `ValueError` where there is none."""
    kind = BY_NAME.get(name)
    if kind is None:
        raise ValueError(f"nothing is known about records of kind {name!r}")
    return kind
