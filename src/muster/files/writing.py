"""Definitions as a file that `muster apply` takes: the inverse of reading one (SPEC 9.3).

A key that has its default is left out. What is written is read again before anybody sees it, and compared: so what an
export holds is what the cluster has, or there is none.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from muster.files.event_file import parse_groups
from muster.files.service_file import ServiceFileError, parse
from muster.files.service_keys import KEYS
from muster.records.durations import duration_text
from muster.records.events import EventDefinition, GroupDefinition
from muster.records.services import Definition

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN = Definition("plain")
_PLAIN_EVENT = EventDefinition("plain")
_PLAIN_GROUP = GroupDefinition("plain", ())


class NotWritten(ValueError):
    """What was written does not read as what it was made of: a fault of this program; the message says where."""


def text_of(definitions: Iterable[Definition], groups: Iterable[GroupDefinition]) -> str:
    """The text of a file that defines these. Raises `NotWritten`."""
    services, events = tuple(definitions), tuple(groups)
    text = "\n".join([*(_service(each) for each in services), *(_group(each) for each in events)])
    if services or events:
        _compare(text, services, events)
    return text


def _compare(text: str, services: tuple[Definition, ...], events: tuple[GroupDefinition, ...]) -> None:
    """Raise `NotWritten` where the text says anything else."""
    groups, problems = parse_groups(text, "export")
    try:
        read = parse(text, "export")
    except ServiceFileError as error:
        problems = [*problems, *error.problems]
        read = ()
    if problems:
        raise NotWritten("\n".join(map(str, problems)))
    wrong = [each.name for each, other in zip(services, read, strict=False) if each != other]
    wrong += [each.name for each, other in zip(events, groups, strict=False) if each != other]
    if wrong or len(read) != len(services) or len(groups) != len(events):
        raise NotWritten(f"what was written for {', '.join(wrong) or 'some of them'} reads as something else")


def _service(definition: Definition) -> str:
    lines = [f"{key} = {value}" for key in KEYS if (value := _value(key, definition)) is not None]
    return "\n".join(["[[service]]", *lines, ""])


def _value(key: str, definition: Definition) -> str | None:
    """The TOML of a key; None where it is left out."""
    if key in _SPECIAL:
        return _SPECIAL[key](definition)
    field = key if hasattr(definition, key) else f"{key}_ms"
    value = getattr(definition, field)
    if value == getattr(_PLAIN, field) and key != "name":
        return None
    return _duration(value) if field.endswith("_ms") else _toml(value)


def _toml(value: Any) -> str:
    """A text, a number, a truth, a list or a table, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {_toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's rules are those of JSON
    return str(value).lower() if isinstance(value, bool) else str(value)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _toml(name)


def _duration(milliseconds: int) -> str:
    return _toml(duration_text(milliseconds))


def _worded(field: str, words: dict[Any, str]) -> Callable[[Definition], str | None]:
    """A key that has a word for each value of a field."""

    def write(definition: Definition) -> str | None:
        value = getattr(definition, field)
        return None if value == getattr(_PLAIN, field) else _toml(words[value])

    return write


def _table(table: dict[str, Any]) -> str | None:
    return _toml(table) if table else None


def _ready(definition: Definition) -> str | None:
    found = {
        "port": definition.ready_port,
        "file": definition.ready_file,
        "command": list(definition.ready_command),
        "notify": definition.ready_notify,
    }
    return _table({key: value for key, value in found.items() if value})


def _check(definition: Definition) -> str | None:
    d = definition
    if not d.check_command:
        return None
    found: dict[str, Any] = {"command": list(d.check_command)}
    found["interval"] = duration_text(d.check_interval_ms)
    found["timeout"] = duration_text(d.check_timeout_ms)
    found["failures"] = f"{d.check_failures}/{d.check_of}"
    found["success_exit_status"] = list(d.check_success_exit_status)
    found["unknown_exit_status"] = list(d.check_unknown_exit_status)
    found["user"] = d.check_user
    return _table({key: value for key, value in found.items() if value not in ("", [])})


_SPECIAL: dict[str, Callable[[Definition], str | None]] = {
    "node_preferences": lambda d: _table(
        {name: list(value) for name, value in (("ordered", d.ordered), ("unordered", d.unordered)) if value}
    ),
    "placement_policy": _worded("on_all", {True: "register_on_all", False: "register_on_one"}),
    "auto_register": _worded("auto_register", {True: "auto", False: "manual"}),
    "transfer_cost": _worded("free_transfer", {True: "free", False: "costly"}),
    "environment": lambda d: _table(dict(d.environment)),
    "limits": lambda d: _table(dict(d.limits)),
    "umask": lambda d: None if d.umask == _PLAIN.umask else _toml(f"{d.umask:03o}"),
    "ready": _ready,
    "check": _check,
}


def _group(group: GroupDefinition) -> str:
    lines = ["[[event_group]]"]
    lines += [
        f"{key} = {_toml(getattr(group, key))}"
        for key in ("name", "nodes", "service", "on_master", "windows", "enabled")
        if key == "name" or getattr(group, key) != getattr(_PLAIN_GROUP, key)
    ]
    return "\n".join([*lines, "", *(_event(each) for each in group.events)])


def _event(event: EventDefinition) -> str:
    lines = ["[[event_group.event]]", f"name = {_toml(event.name)}"]
    if event.watcher:
        lines.append(f"watcher = {_toml(event.watcher)}")
    if event.parameters:
        lines.append(f"in = {_toml(dict(event.parameters))}")
    lines += [f"{key} = {_toml(value)}" for key, value in (("out", event.out), ("action", event.action)) if value]
    if event.debounce_ms:
        lines.append(f"debounce = {_duration(event.debounce_ms)}")
    if event.rate_count:
        lines.append(f"rate = {_toml(f'{event.rate_count}/{duration_text(event.rate_window_ms)}')}")
    if event.timeout_ms != _PLAIN_EVENT.timeout_ms:
        lines.append(f"timeout = {_duration(event.timeout_ms)}")
    return "\n".join([*lines, ""])
