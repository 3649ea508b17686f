"""One sample of everything that nodes say and write, and its bytes (SPEC 9.2): made from the types themselves.

A new kind of record, message or operation has its sample at once: every field gets a value that follows from its type.
"""

from types import UnionType
from typing import Any, get_args

import msgspec
from msgspec import inspect

from muster.drivers.store import identity
from muster.drivers.store.disk import geometry, sectors
from muster.records import database, messages, operations, registers
from muster.records.terms import Stamp, Term
from muster.records.timing import WatchdogTimes

CLUSTER_ID = bytes(range(16))
_SECTOR_BYTES = 512
_NUMBER, _TEXT, _BYTES = 7, "text", b"\x00\x01\xff"


def sample(kind: Any) -> Any:
    """A value of the type, always the same one; no field is at its default where its type allows that."""
    return _sample(inspect.type_info(kind))


def _sample(info: inspect.Type) -> Any:
    match info:
        case inspect.BoolType():
            return True
        case inspect.IntType():
            return _NUMBER
        case inspect.FloatType():
            return 1.5
        case inspect.StrType():
            return _TEXT
        case inspect.BytesType():
            return _BYTES
        case inspect.EnumType(cls=kind):
            return list(kind)[-1]
        case inspect.VarTupleType(item_type=item):
            return (_sample(item),)
        case inspect.TupleType(item_types=items):
            return tuple(_sample(item) for item in items)
        case inspect.ListType(item_type=item):
            return [_sample(item)]
        case inspect.DictType(key_type=key, value_type=value):
            return {_sample(key): _sample(value)}
        case inspect.StructType(cls=kind, fields=fields) | inspect.NamedTupleType(cls=kind, fields=fields):
            return kind(**{field.name: _of_field(field) for field in fields})
        case inspect.UnionType(types=types):
            return _sample(next(item for item in types if not isinstance(item, inspect.NoneType)))
        case _:
            raise TypeError(f"no sample for {info}: add it to tests/support/recorded_samples.py")


def _of_field(field: inspect.Field) -> Any:
    """Never the default, which may be left out of the bytes."""
    return field.default is not True if isinstance(field.type, inspect.BoolType) else _sample(field.type)


def members(union: Any) -> tuple[type, ...]:
    """The types of a union."""
    assert isinstance(union, UnionType)
    return get_args(union)


def decode(name: str, data: bytes) -> Any:
    """What this release makes of recorded bytes; `name` says which kind they are."""
    kind = name.split("-", maxsplit=1)[0]
    if kind in ("message", "operation"):
        return messages.decode_message(data)
    if kind == "entry":
        return database.decode_entry(data)
    if kind == "database":
        return database.decode_database(data)
    if kind == "header":
        return geometry.decode_header(data, 0)
    assert kind == "register"
    number = sectors.RecordKind[name.split("-")[1].upper()]
    record = sectors.decode_record(data, sectors.Place(CLUSTER_ID, 0, 1, number), _SECTOR_BYTES)
    assert isinstance(record, sectors.Record), record
    return registers.decode_register(registers.RegisterKind(number), record.stamp, record.payload)


def encode(name: str, value: Any) -> bytes:
    """Inverse of `decode`."""
    kind = name.split("-", maxsplit=1)[0]
    if kind in ("message", "operation"):
        return messages.encode_message(value)
    if kind == "entry":
        return database.encode_entry(value)
    if kind == "database":
        return database.encode_database(value)
    if kind == "header":
        return geometry.encode_header(value, 0)
    number = sectors.RecordKind[name.split("-")[1].upper()]
    record = sectors.Record(number, value.stamp, registers.encode_register(value))
    return sectors.encode_record(record, CLUSTER_ID, 0, _SECTOR_BYTES)


def samples() -> dict[str, Any]:
    """Every sample of this release, by the name of its file."""
    found: dict[str, Any] = {}
    for kind in members(messages.Message):
        found[f"message-{kind.__name__}"] = sample(kind)
    for kind in members(operations.OperationRequest):
        request = sample(messages.Request)
        found[f"operation-{kind.__name__}"] = msgspec.structs.replace(request, operation=sample(kind))
    for kind in members(database.Change):
        found[f"entry-{kind.__name__}"] = database.Entry(_NUMBER, Term(3, 1), _TEXT, (sample(kind),))
    found["database"] = sample(database.Database)
    found["header"] = geometry.Header(CLUSTER_ID, "test", identity.Scope.SHARED, 512, 16, 1 << 20, complete=True)
    stamp = Stamp(1, 5, Term(3, 1), 9)
    found["register-lease"] = registers.Lease(
        stamp,
        registers.LeaseState.LIVE,
        registers.Deadman.PID_NAMESPACE,
        600,
        150,
        bytes(range(16)),
        "a cause",
        registers.Life(bytes(range(16, 32)), 4026531836, 4026531834, 4711, 123456, "/muster/n1", 77, 1),
        armed=registers.Armed("a watchdog", WatchdogTimes(5000, 1000, 800, late_excluded=True), proves=True),
    )
    mark = registers.Mark(Term(2, 1), 1, 4)
    found["register-claim"] = registers.Claim(stamp, registers.ClaimFlag.MASTER, mark)
    found["register-view"] = registers.View(stamp, frozenset({0, 1, 39}))
    found["register-marks"] = registers.Marks(stamp, ((2, 11),))
    return found
