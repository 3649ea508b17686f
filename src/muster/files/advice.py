"""What a service file says that is probably not meant: warnings, never errors (SPEC 6.2, 7.8)."""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath

from muster.records.service_limits import COMMANDS
from muster.records.services import Definition

_SHELLS = frozenset(("sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "busybox"))
_SHELLS |= {"awk", "gawk", "mawk", "sed", "perl", "find", "xargs"}  # which have a use of their own for such words
_OPERATORS = frozenset(("|", "||", "&&", ";", "&", ">", ">>", "<", "2>", "2>>", "&>", "2>&1", ">&2"))
_EXPANSION = re.compile(r"`|\$[A-Za-z_{(]")
_MANAGERS = {
    "systemctl": "systemd", "service": "the machine's service manager", "docker": "Docker's daemon",
    "podman": "a container's own monitor", "at": "the at daemon", "systemd-run": "systemd", "pm2": "pm2's daemon",
    "supervisorctl": "supervisord", "virsh": "libvirtd", "crontab": "cron",
}  # fmt: skip


def advice(definitions: Iterable[Definition], cluster: Mapping[str, Definition] | None = None) -> list[str]:
    """A sentence for each thing that is probably not meant. `cluster`: the services that are defined already."""
    defined = tuple(definitions)
    known = {**(cluster or {}), **{each.name: each for each in defined}}
    found: list[str] = []
    for definition in defined:
        for key in COMMANDS:
            found += _of_command(definition.name, key, getattr(definition, key))
        found += _of_group(definition, known)
    return found


def _of_command(name: str, key: str, command: tuple[str, ...]) -> list[str]:
    if not command or command[0].startswith("muster:"):
        return []
    program = PurePath(command[0]).name
    found = []
    shell = next((word for word in command[1:] if word in _OPERATORS), "")
    variable = next((word for word in command[1:] if _EXPANSION.search(word)), "")
    if program not in _SHELLS and not program.startswith("python") and (shell or variable):
        what = f"the word {shell!r}, as for a shell" if shell else f"{variable!r}, which nobody replaces"
        found.append(
            f"service {name!r}: {key} has {what}, but no shell runs it: the program gets the word as it is; "
            'write ["sh", "-c", "..."] if a shell is meant'
        )
    if program in _MANAGERS and key in ("start_command", "run", "stop_command"):
        found.append(
            f"service {name!r}: {key} asks {_MANAGERS[program]} by {program!r}: what that starts is no part of the "
            "service, and Muster neither sees it end nor ends it when the node fails (docs/SERVICES.md)"
        )
    return found


def _of_group(definition: Definition, known: Mapping[str, Definition]) -> list[str]:
    """A child of a service on all nodes is on all nodes, too: one that is to be on one node is not meant to be one."""
    parent = known.get(definition.parent) if definition.parent else None
    if parent is None or definition.on_all:
        return []
    eldest, seen = parent, {definition.name}
    while eldest.parent in known and eldest.name not in seen and not eldest.on_all:
        seen.add(eldest.name)
        eldest = known[eldest.parent]
    if not eldest.on_all:
        return []
    words = (
        f"service {definition.name!r} will run on each node, one instance a node, as {eldest.name!r} does: its parent "
        f"{parent.name!r} is placed on every node, and a child goes where its parent is; if it is to be on one node, "
        "leave `parent` out"
    )
    return [words]
