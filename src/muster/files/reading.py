"""Service files on a disk: reading one, and what of it is not on this machine (SPEC 7.8)."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from muster.files.event_file import parse_groups
from muster.files.service_file import Definitions, ServiceFileError, parse
from muster.files.service_keys import Nodes
from muster.files.toml_lines import Problem
from muster.records.events import GroupDefinition
from muster.records.service_limits import COMMANDS
from muster.records.services import Definition

MAXIMUM_FILE_BYTES = 4 * 1024 * 1024


def read(path: Path, nodes: Nodes = None, cluster: Definitions = None) -> tuple[Definition, ...]:
    """The services in the file at `path`; `nodes` and `cluster` as in `parse`.

    Raises `ServiceFileError` with every problem, also for a file that cannot be read.
    """
    return read_all(path, nodes, cluster)[0]


def read_all(
    path: Path, nodes: Nodes = None, cluster: Definitions = None
) -> tuple[tuple[Definition, ...], tuple[GroupDefinition, ...]]:
    """The services and the event groups in the file at `path`. Raises `ServiceFileError` with every problem."""
    text, source = _text_of(path), str(path)
    groups, problems = parse_groups(text, source, nodes)
    try:
        services = parse(text, source, nodes, cluster)
    except ServiceFileError as error:
        raise ServiceFileError([*error.problems, *problems]) from error
    if problems:
        raise ServiceFileError(problems)
    return services, groups


def _text_of(path: Path) -> str:
    source = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAXIMUM_FILE_BYTES + 1)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise ServiceFileError([Problem(source, 0, "the file", what, "name a readable file")]) from error
    if len(data) > MAXIMUM_FILE_BYTES:
        what = f"is larger than {MAXIMUM_FILE_BYTES // 1024 // 1024} MiB"
        raise ServiceFileError([Problem(source, 0, "the file", what, "split it and apply the parts one by one")])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = Problem(source, line, "the file", "is not UTF-8 text", "save it as UTF-8, as TOML demands")
        raise ServiceFileError([problem]) from error


def missing_programs(definitions: Iterable[Definition]) -> list[str]:
    """A sentence for each command whose program is not on this machine: no error, it may be on the nodes."""
    found: list[str] = []
    for definition in definitions:
        for key in COMMANDS:
            command = getattr(definition, key)
            if command and shutil.which(command[0]) is None:
                found.append(f"service {definition.name!r}: {key}: no executable {command[0]!r} on this machine")
    return found
