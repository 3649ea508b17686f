"""What a service file says that is probably not meant: warnings, never errors (SPEC 6.2, 7.8)."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import PurePath

from muster.records.service_limits import ANY_NODE, COMMANDS
from muster.records.services import Definition

_SHELLS = frozenset(("sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "busybox"))
_OWN_USE = frozenset(("awk", "gawk", "mawk", "sed", "perl", "find", "xargs"))  # of such words
_OPERATORS = frozenset(("|", "||", "&&", ";", "&", ">", ">>", "<", "2>", "2>>", "&>", "2>&1", ">&2"))
_EXPANSION = re.compile(r"`|\$[A-Za-z_{(]")
_BREAKS = re.compile(r"&&|\|\||[;&|\n(){}]|\b(?:then|do|else|exec)\b")  # a new command of a script begins behind it
_BEFORE = frozenset(("sudo", "env", "nice", "ionice", "nohup", "setsid", "timeout", "chrt", "command", "time"))
_MANAGERS = {
    "systemctl": "systemd", "service": "the machine's service manager", "docker": "Docker's daemon",
    "podman": "a container's own monitor", "at": "the at daemon", "systemd-run": "systemd", "pm2": "pm2's daemon",
    "supervisorctl": "supervisord", "virsh": "libvirtd", "crontab": "cron",
}  # fmt: skip
# What stays in the kernel when its process has ended: the program, and a word that it is given then.
_KERNELS = {
    "ip": ("add", "replace"), "ifconfig": ("up", "add"), "mount": (), "iptables": ("-A", "-I"),
    "ip6tables": ("-A", "-I"), "nft": ("add", "-f"), "losetup": (), "cryptsetup": ("open", "luksOpen"),
    "vgchange": ("-ay",), "lvchange": ("-ay",),
    "swapon": (), "ipvsadm": ("-A", "-a"), "tc": ("add",), "drbdadm": ("primary", "up"),
}  # fmt: skip
# Programs that end with loss at SIGTERM, or not at all, and the signal at which they end as they should.
_GRACEFUL = {
    "nginx": ("SIGQUIT", "cuts the answers that it is sending"), "php-fpm": ("SIGQUIT", "cuts requests"),
    "httpd": ("SIGWINCH", "cuts requests"), "apache2": ("SIGWINCH", "cuts requests"),
    "postgres": ("SIGINT", "waits for its clients to go"), "uwsgi": ("SIGINT", "starts again"),
}  # fmt: skip
_TELLS_NOTHING = frozenset(("true", "echo", "logger", ":", "sleep"))


def advice(definitions: Iterable[Definition], cluster: Mapping[str, Definition] | None = None) -> list[str]:
    """A sentence for each thing that is probably not meant. `cluster`: the services that are defined already."""
    defined = tuple(definitions)
    known = {**(cluster or {}), **{each.name: each for each in defined}}
    found: list[str] = []
    for definition in defined:
        for key in COMMANDS:
            found += _of_command(definition.name, key, getattr(definition, key))
        found += [*_of_kernel(definition), *_of_stop(definition), *_of_group(definition, known)]
    return found + _of_ports(defined)


def _of_command(name: str, key: str, command: tuple[str, ...]) -> list[str]:
    if not command or command[0].startswith("muster:"):
        return []
    program = PurePath(command[0]).name
    found = []
    shell = next((word for word in command[1:] if word in _OPERATORS), "")
    variable = next((word for word in command[1:] if _EXPANSION.search(word)), "")
    if program not in _SHELLS | _OWN_USE and not program.startswith("python") and (shell or variable):
        what = f"the word {shell!r}, as for a shell" if shell else f"{variable!r}, which nobody replaces"
        found.append(
            f"service {name!r}: {key} has {what}, but no shell runs it: the program gets the word as it is; "
            'write ["sh", "-c", "..."] if a shell is meant'
        )
    manager = next((words[0] for words in _programs(command) if words[0] in _MANAGERS), "")
    if manager and key in ("start_command", "run", "stop_command"):
        found.append(
            f"service {name!r}: {key} asks {_MANAGERS[manager]} by {manager!r}; what that starts is no part of the "
            "service; Muster does not see it end, and does not end it when the node fails (docs/SERVICES.md)"
        )
    return found


def _programs(command: tuple[str, ...]) -> Iterator[list[str]]:
    """What a command executes, as far as that can be seen: the name of each program, and its words."""
    words = list(command)
    while words and (PurePath(words[0]).name in _BEFORE or words[0].startswith("-") or "=" in words[0]):
        del words[0]  # sudo -n NAME=VALUE systemctl ...
    if not words:
        return
    program = PurePath(words[0]).name
    yield [program, *words[1:]]
    script = next((word for before, word in pairwise(words) if before in ("-c", "-ec", "-xc")), "")
    if program in _SHELLS and script:
        for part in _BREAKS.split(script):
            try:
                inner = tuple(shlex.split(part, comments=True))
            except ValueError:
                inner = tuple(part.split())
            yield from _programs(inner)  # a part of a word of this one: each is shorter


def _of_kernel(definition: Definition) -> list[str]:
    """What its start leaves in the kernel does not end with a node that fails."""
    if definition.cleanup_command:
        return []
    for key in ("start_command", "run"):
        for program, *words in _programs(getattr(definition, key)):
            given = _KERNELS.get(program)
            if given is not None and (not given or any(word in given for word in words)):
                what = f"service {definition.name!r}: {key} runs '{program} {next(iter(words), '')}'"
                follows = (
                    "what that leaves in the kernel stays there when its node fails, and the next node adds it too"
                )
                return [f"{what}: {follows}; name a cleanup_command that takes it away"]
    return []


def _of_stop(definition: Definition) -> list[str]:
    name, stop = definition.name, [words[0] for words in _programs(definition.stop_command)]
    if definition.run and stop and all(program in _TELLS_NOTHING | _SHELLS for program in stop):
        what = (
            f"service {name!r}: stop_command does not end its program, which has all of stop_timeout to end by itself"
        )
        return [f"{what}: leave stop_command out, or let it end the program"]
    if definition.stop_command or definition.stop_signal != "SIGTERM":
        return []
    for words in _programs(definition.run or definition.start_command):
        if words[0] in _GRACEFUL:
            better, what = _GRACEFUL[words[0]]
            return [f'service {name!r}: {words[0]} {what} at SIGTERM; stop_signal = "{better}" lets it end gracefully']
    return []


def _of_ports(defined: tuple[Definition, ...]) -> list[str]:
    """Two services with one port cannot run on one node; one that is there already makes the other's start fail."""
    of_port: dict[int, list[Definition]] = {}
    for each in defined:
        if each.ready_port:
            of_port.setdefault(each.ready_port, []).append(each)
    pairs = [
        (one.name, other.name, port)
        for port, found in of_port.items()
        for one, other in pairwise(found)
        if _may_meet(one, other)
    ]
    advises = "give each a port of its own, or other nodes"
    return [
        f"services {one!r} and {other!r} may run on one node, and both wait for port {port}: {advises}"
        for one, other, port in pairs
    ]


def _may_meet(one: Definition, other: Definition) -> bool:
    """Whether both may run on one node, as far as their own definitions say."""
    if one.parent or other.parent:
        return one.parent == other.parent
    named = {*one.allowable_nodes, *other.allowable_nodes} - {ANY_NODE}
    return not named or any(_allows(one, node) and _allows(other, node) for node in named)


def _allows(definition: Definition, node: str) -> bool:
    is_listed = ANY_NODE in definition.allowable_nodes or node in definition.allowable_nodes
    return is_listed and node not in definition.disallowable_nodes


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
        f"service {definition.name!r} will run on each node, one instance a node, as {eldest.name!r} does; its parent "
        f"{parent.name!r} is placed on every node, and a child goes where its parent is; if it is to be on one node, "
        "leave `parent` out"
    )
    return [words]
