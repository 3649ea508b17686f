"""Operations as the control socket takes them: JSON arguments into a checked record (SPEC 7.8, 8.1).

The core may rely on it: every text and number is bounded before it is put into an entry, sent or run. Whether what an
operation names exists, and whether it is possible now, is the master's to say.
"""

from typing import Any, cast

import msgspec

from muster.records.event_limits import MAXIMUM_GROUPS, problem_of_group
from muster.records.events import ApplyEvents
from muster.records.names import shown
from muster.records.operations import OPERATIONS, OperationRequest, kind_named
from muster.records.refusal import ControlRefused
from muster.records.service_limits import MAXIMUM_DURATION_MS, MAXIMUM_SERVICES, problem_of
from muster.records.services import (
    ApplyServices,
)

MAXIMUM_TEXT_CHARACTERS = 200  # a name that may not exist, a cause: it comes back in messages and stays in records


def read_operation(name: str, arguments: dict[str, Any]) -> OperationRequest:
    """The operation `name` with its JSON arguments. Raises `ControlRefused`."""
    row = kind_named(name)
    if row is None or not row.is_read or row.role is None:
        known = ", ".join(kind.name for kind in OPERATIONS if kind.is_read and kind.role is not None)
        raise ControlRefused(f"there is no operation {shown(name)}", "control socket", f"use one of: {known}")
    kind, where = row.struct, f"operation {row.name}"
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    unknown = sorted(arguments.keys() - fields.keys())
    if unknown:
        raise ControlRefused(f"unknown argument {shown(unknown[0])}", where, f"use {', '.join(fields)}")
    missing = [key for key, field in fields.items() if field.required and key not in arguments]
    if missing:
        raise ControlRefused(f"argument {missing[0]!r} is missing", where, f"use {', '.join(fields)}")
    values: dict[str, Any] = {}
    for key, value in arguments.items():
        try:
            values[key] = msgspec.convert(value, fields[key].type)
        except msgspec.ValidationError as error:
            what = _problem_of_duration(key, value) or f"argument {key!r}: {error}"
            raise ControlRefused(what, where, "correct it and ask again") from error
    operation = cast("OperationRequest", kind(**values))
    match operation:
        case ApplyServices():
            problem = _problem_of_apply(operation)
        case ApplyEvents():
            problem = _problem_of_events(operation)
        case _:
            problem = _problem_of_texts(values)
    if problem:
        raise ControlRefused(problem, where, "correct it and ask again")
    return operation


def _problem_of_apply(operation: ApplyServices) -> str:
    count = len(operation.definitions) + len(operation.withdraw)
    if count > MAXIMUM_SERVICES:
        return f"it is about {count} services; at most {MAXIMUM_SERVICES} are allowed in one operation"
    names: set[str] = set()
    for position, definition in enumerate(operation.definitions):
        if problem := problem_of(definition):
            return f"service {shown(definition.name)} (number {position + 1}): {problem}"
        if definition.name in names:
            return f"service {definition.name!r} is defined twice"
        names.add(definition.name)
    for name in operation.withdraw:
        if name in names:
            return f"service {shown(name)} is named twice, to be withdrawn and otherwise"
        names.add(name)
    return _problem_of_texts({f"withdraw[{position}]": name for position, name in enumerate(operation.withdraw)})


def _problem_of_events(operation: ApplyEvents) -> str:
    if len(operation.groups) + len(operation.withdraw) > MAXIMUM_GROUPS:
        return f"it is about more than {MAXIMUM_GROUPS} event groups; that many are allowed"
    names = [group.name for group in operation.groups]
    for group in operation.groups:
        if problem := problem_of_group(group):
            return f"event group {shown(group.name)}: {problem}"
        if names.count(group.name) > 1 or group.name in operation.withdraw:
            return f"event group {group.name!r} is named twice"
    return _problem_of_texts({f"withdraw[{position}]": name for position, name in enumerate(operation.withdraw)})


def _problem_of_texts(values: dict[str, Any]) -> str:
    for key, value in values.items():
        if isinstance(value, str) and len(value) > MAXIMUM_TEXT_CHARACTERS:
            return f"argument {key!r} has {len(value)} characters; at most {MAXIMUM_TEXT_CHARACTERS} are allowed"
        if problem := _problem_of_duration(key, value):
            return problem
    return ""


def _problem_of_duration(key: str, value: object) -> str:
    if key != "duration_ms" or not isinstance(value, int) or 0 <= value <= MAXIMUM_DURATION_MS:
        return ""
    return f"argument {key!r} is {shown(value)}; allowed are 0 (until it is ended) to {MAXIMUM_DURATION_MS}"
