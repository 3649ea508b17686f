"""The keys of a service's table in a service file: type, default, meaning, and how each value is read (SPEC 6.2, 6.6).

`docs/SERVICES.md` shows this table to people, and `muster service schema` prints it. A reader returns the fields of
`Definition` that a value stands for, and raises `Wrong` with what is wrong and what is allowed.
"""

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from muster.files.toml_lines import Place
from muster.records.durations import duration_of
from muster.records.names import NAME, NAME_RULE, shown
from muster.records.service_limits import (
    ANY_NODE,
    MAXIMUM_CHECKS,
    MAXIMUM_COUNT,
    MAXIMUM_PORT,
    MAXIMUM_TIMEOUT_MS,
    account_problem,
    command_problem,
    environment_problem,
    exit_status_problem,
    file_problem,
    limit_problem,
    signal_problem,
)

Nodes = Collection[str] | None
Reader = Callable[[Any, Nodes], dict[str, Any]]

DURATION = "duration"
COMMAND = "command"
STATUSES = "list of exit statuses"
ALLOWED_DURATION = 'a duration with its unit, as "500ms", "60s", "2m" or "1h"'
_OCTAL = re.compile(r"0?[0-7]{3}")
_FAILURES = re.compile(r"(\d{1,3})\s*/\s*(\d{1,3})")


class Wrong(Exception):
    """What is wrong with one value, and what is allowed; `inner`: at which key inside the value."""

    def __init__(self, what: str, allowed: str, inner: Place = ()) -> None:
        super().__init__(what)
        self.what, self.allowed, self.inner = what, allowed, inner


class Key(NamedTuple):
    """One key of a table, for its reader and for people. `default` is TOML, or words in brackets."""

    read: Reader
    kind: str
    default: str
    meaning: str


def nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    """Advice for an unknown word: the known one that was probably meant, or `otherwise`."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else otherwise


def duration_ms(value: object, *, minimum_ms: int = 1) -> int:
    """Milliseconds of a duration as `"500ms"`, `"60s"`, `"2m"` or `"1h"`. Raises `Wrong`."""
    milliseconds = duration_of(value)
    if milliseconds is None:
        raise Wrong(f"is {shown(value)}", ALLOWED_DURATION)
    if not minimum_ms <= milliseconds <= MAXIMUM_TIMEOUT_MS:
        raise Wrong(f"is {shown(value)}", "at most 24h" if not minimum_ms else "more than nothing, and at most 24h")
    return milliseconds


def words_of(key: str, value: object) -> tuple[str, ...]:
    """The words of a command: of a string, split as a shell would, or of a list. Raises `Wrong`."""
    if isinstance(value, str):
        try:
            words = tuple(shlex.split(value))
        except ValueError as error:
            raise Wrong(f"cannot be split as a shell would: {error}", "close the quotation, or write a list") from error
    elif isinstance(value, list) and all(isinstance(word, str) for word in value):
        words = tuple(value)
    else:
        raise Wrong(f"is {shown(value)}", f'write {key} = "/path/program argument", or a list of words')
    if not words or not words[0].strip():
        raise Wrong("is empty", f"leave {key} out for no command")
    _refuse(command_problem(words))
    return words


def _refuse(problem: str) -> None:
    """Raise `Wrong` for a problem of `records/service_limits.py`: what is wrong, a colon, what is allowed."""
    if problem:
        what, _, allowed = problem.partition(": ")
        raise Wrong(what, allowed)


def table_of(value: object, keys: Mapping[str, Key], nodes: Nodes, example: str) -> dict[str, Any]:
    """The fields of an inner table. Raises `Wrong`, with the place of what is wrong in it."""
    if not isinstance(value, dict):
        raise Wrong(f"is {shown(value)}", example)
    fields: dict[str, Any] = {}
    for key, inner in value.items():
        if key not in keys:
            raise Wrong(f"has the unknown key {key!r}", nearest(key, keys, example), (key,))
        try:
            fields |= keys[key].read(inner, nodes)
        except Wrong as wrong:
            raise Wrong(f"has {key}, which {wrong.what}", wrong.allowed, (key, *wrong.inner)) from wrong
    return fields


# ---- readers ------------------------------------------------------------------------------------------------------


def _name(field: str) -> Reader:
    def read(value: object, _nodes: Nodes) -> dict[str, Any]:
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise Wrong(f"is {shown(value)}", f"a name has {NAME_RULE}")
        return {field: value}

    return read


def _node_list(key: str, value: object, nodes: Nodes, *, wildcard: bool = False) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(node, str) for node in value):
        raise Wrong(f"is {shown(value)}", f'a list of node names, as {key} = ["n0", "n1"]')
    if len(set(value)) < len(value):
        twice = next(node for node in value if value.count(node) > 1)
        raise Wrong(f"names {twice!r} twice", "name each node once")
    if ANY_NODE in value and (not wildcard or len(value) > 1):
        raise Wrong("mixes the wildcard with names" if wildcard else "cannot take the wildcard", "name the nodes")
    for node in value:
        if nodes is not None and node != ANY_NODE and node not in nodes:
            configured = "configured are " + (", ".join(sorted(nodes)) or "none")
            raise Wrong(f"names the unknown node {node!r}", nearest(node, nodes, configured))
        if node != ANY_NODE and not NAME.fullmatch(node):
            raise Wrong(f"names {shown(node)}", f"a node's name has {NAME_RULE}")
    return tuple(value)


def _allowable(value: object, nodes: Nodes) -> dict[str, Any]:
    names = _node_list("allowable_nodes", value, nodes, wildcard=True)
    if not names:
        raise Wrong("is empty", f'name at least one node, or all of them: ["{ANY_NODE}"]')
    return {"allowable_nodes": names}


def _nodes(key: str) -> Reader:
    return lambda value, nodes: {key: _node_list(key, value, nodes)}


def _preferences(value: object, nodes: Nodes) -> dict[str, Any]:
    example = 'write node_preferences = {ordered = ["n0", "n1"]}, or {unordered = ["n0", "n1"]}'
    fields = table_of(value, PREFERENCE_KEYS, nodes, example)
    if len(fields) > 1:
        raise Wrong("has both an ordered and an unordered list", "keep one of them")
    return fields


def _one_of(field: str, meanings: dict[str, Any]) -> Reader:
    def read(value: object, _nodes: Nodes) -> dict[str, Any]:
        if not isinstance(value, str) or value not in meanings:
            raise Wrong(f"is {shown(value)}", "allowed are " + " and ".join(f'"{word}"' for word in meanings))
        return {field: meanings[value]}

    return read


def _number(field: str, minimum: int, maximum: int) -> Reader:
    def read(value: object, _nodes: Nodes) -> dict[str, Any]:
        if type(value) is not int or not minimum <= value <= maximum:
            raise Wrong(f"is {shown(value)}", f"a whole number from {minimum} to {maximum}")
        return {field: value}

    return read


def _statuses(field: str) -> Reader:
    def read(value: object, _nodes: Nodes) -> dict[str, Any]:
        if not isinstance(value, list) or not all(type(status) is int for status in value):
            raise Wrong(f"is {shown(value)}", "a list of exit statuses, as [1, 78]")
        _refuse(exit_status_problem(tuple(value)))
        return {field: tuple(sorted(value))}

    return read


def _yes_or_no(field: str) -> Reader:
    def read(value: object, _nodes: Nodes) -> dict[str, Any]:
        if not isinstance(value, bool):
            raise Wrong(f"is {shown(value)}", "true or false")
        return {field: value}

    return read


def _command(key: str, field: str = "") -> Reader:
    return lambda value, _nodes: {field or key: words_of(key, value)}


def _duration(field: str, *, minimum_ms: int = 1) -> Reader:
    return lambda value, _nodes: {field: duration_ms(value, minimum_ms=minimum_ms)}


def _environment(value: object, _nodes: Nodes) -> dict[str, Any]:
    example = 'write environment = {NAME = "value"}'
    if not isinstance(value, dict):
        raise Wrong(f"is {shown(value)}", example)
    for name, text in value.items():
        if not isinstance(text, str):
            raise Wrong(f"gives {name} the value {shown(text)}", f"a text in quotation marks; {example}", (name,))
    pairs = tuple(sorted(value.items()))
    _refuse(environment_problem(pairs))
    return {"environment": pairs}


def _text(field: str, problem: Callable[[str], str]) -> Reader:
    def read(value: object, _nodes: Nodes) -> dict[str, Any]:
        if not isinstance(value, str) or not value:
            raise Wrong(f"is {shown(value)}", f"a text in quotation marks, or leave {field} out")
        _refuse(problem(value))
        return {field: value}

    return read


def _umask(value: object, _nodes: Nodes) -> dict[str, Any]:
    allowed = 'octal digits as a text, as "027", from "000" to "777"'
    if not isinstance(value, str) or not _OCTAL.fullmatch(value):
        raise Wrong(f"is {shown(value)}", allowed)
    return {"umask": int(value, 8)}


def _limits(value: object, _nodes: Nodes) -> dict[str, Any]:
    example = 'write limits = {nofile = 65536, core = "unlimited", nproc = "512:1024"}'
    if not isinstance(value, dict):
        raise Wrong(f"is {shown(value)}", example)
    found = []
    for name, limit in value.items():
        text = str(limit) if type(limit) is int else limit
        if not isinstance(text, str):
            raise Wrong(f"gives {name} the value {shown(limit)}", example, (name,))
        _refuse(limit_problem(name, text))
        found.append((name, text))
    return {"limits": tuple(sorted(found))}


def _file(value: object, _nodes: Nodes) -> dict[str, Any]:
    if not isinstance(value, str):
        raise Wrong(f"is {shown(value)}", 'a path, as "/run/service.ready"')
    _refuse(file_problem(value))
    return {"ready_file": value}


def _notify(value: object, _nodes: Nodes) -> dict[str, Any]:
    if value is not True:
        raise Wrong(f"is {shown(value)}", "write notify = true, or leave ready out")
    return {"ready_notify": True}


def _ready(value: object, nodes: Nodes) -> dict[str, Any]:
    example = 'write ready = {port = 5432}, {file = "/run/ready"}, {command = "..."} or {notify = true}'
    fields = table_of(value, READY_KEYS, nodes, example)
    if len(fields) != 1:
        raise Wrong("names no condition" if not fields else "names more than one condition", example)
    return fields


def _check(value: object, nodes: Nodes) -> dict[str, Any]:
    example = 'write check = {command = "...", interval = "10s", timeout = "5s", failures = "3/5"}'
    fields = table_of(value, CHECK_KEYS, nodes, example)
    if "check_command" not in fields:
        raise Wrong("has no command", example)
    return fields


def _failures(value: object, _nodes: Nodes) -> dict[str, Any]:
    allowed = f'"k/n": k failures of the last n checks, n at most {MAXIMUM_CHECKS}; or k alone: that many in a row'
    if type(value) is int:
        failures, checks = value, value
    else:
        found = _FAILURES.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise Wrong(f"is {shown(value)}", allowed)
        failures, checks = int(found.group(1)), int(found.group(2))
    if not 1 <= failures <= checks <= MAXIMUM_CHECKS:
        raise Wrong(f"is {shown(value)}", allowed)
    return {"check_failures": failures, "check_of": checks}


# ---- the tables ---------------------------------------------------------------------------------------------------

PREFERENCE_KEYS: dict[str, Key] = {
    "ordered": Key(_nodes("ordered"), "list of nodes", "[]", "Highest rank first; the first one is the primary node."),
    "unordered": Key(
        _nodes("unordered"), "list of nodes", "[]", "Preferred to others; among them recent performance decides."
    ),
}

READY_KEYS: dict[str, Key] = {
    "port": Key(
        _number("ready_port", 1, MAXIMUM_PORT), "number", "[none]", "This TCP port of 127.0.0.1 accepts a connection."
    ),
    "file": Key(_file, "path", "[none]", "This file exists; it is removed before the program starts."),
    "command": Key(_command("command", "ready_command"), COMMAND, "[none]", "This command succeeds."),
    "notify": Key(_notify, "true", "[none]", "The program says READY=1 on $NOTIFY_SOCKET (sd_notify)."),
}

CHECK_KEYS: dict[str, Key] = {
    "command": Key(_command("command", "check_command"), COMMAND, "[required]", "Succeeds as long as all is well."),
    "interval": Key(_duration("check_interval_ms"), DURATION, '"10s"', "From the end of one check to the next."),
    "timeout": Key(_duration("check_timeout_ms"), DURATION, '"10s"', "A check that takes longer has failed."),
    "failures": Key(_failures, '"k/n"', '"1/1"', "So many failures of so many checks are a failure of the service."),
    "success_exit_status": Key(
        _statuses("check_success_exit_status"),
        STATUSES,
        "[]",
        "Statuses, beside 0, that say that all is well: as 1 of a plug-in that warns.",
    ),
    "unknown_exit_status": Key(
        _statuses("check_unknown_exit_status"),
        STATUSES,
        "[]",
        "Statuses, beside 126 and 127, that say nothing of the service: as 3 of a plug-in.",
    ),
}

CHECK_KEYS["user"] = Key(
    _text("check_user", account_problem), "user", "[none: the service's]", 'Runs as this user, as "root".'
)

_TIMEOUT = "It is killed, and has failed, if it takes longer."
_RETRIES = "Tries after the first one, on the same node, before the command counts as failed."

KEYS: dict[str, Key] = {
    "name": Key(_name("name"), "name", "[required]", "Unique in the cluster."),
    # where it may run
    "allowable_nodes": Key(_allowable, "list of nodes", '["*"]', 'Where it may run; ["*"] stands for every node.'),
    "disallowable_nodes": Key(
        _nodes("disallowable_nodes"), "list of nodes", "[]", "Where it may not run, even if allowable_nodes names it."
    ),
    "node_preferences": Key(
        _preferences, "table", "{}", "Which allowable nodes come first: `ordered` or `unordered`, see below."
    ),
    "placement_policy": Key(
        _one_of("on_all", {"register_on_one": False, "register_on_all": True}),
        '"register_on_one" or "register_on_all"', '"register_on_one"',
        "On one node, or an instance on each allowable one, called NAME@NODE.",
    ),
    "auto_register": Key(
        _one_of("auto_register", {"auto": True, "manual": False}), '"auto" or "manual"', '"auto"',
        "Whether it is registered by itself, once the cluster is up and mature, or only on request.",
    ),
    "maturity_count": Key(
        _number("maturity_count", 1, MAXIMUM_COUNT), "number", "[none]",
        "Its first registration waits until so many allowable nodes are up, or its primary node is.",
    ),
    "maturity_time": Key(
        _duration("maturity_time_ms"), DURATION, "[none]", "Its first registration waits no longer than this."
    ),
    "transfer_cost": Key(
        _one_of("free_transfer", {"costly": False, "free": True}), '"costly" or "free"', '"costly"',
        "With `free`, a more preferred node that joins takes it over.",
    ),
    # groups
    "parent": Key(_name("parent"), "name of a service", "[none]", "It runs where its parent runs, and while it does."),
    "siblings": Key(
        _number("siblings", 0, MAXIMUM_COUNT), "number", "0",
        "How many of its children start or stop at a time; 0 means all at once.",
    ),
    "child_failure": Key(
        _one_of("child_failure", {"alone": "alone", "group": "group"}), '"alone" or "group"', '"alone"',
        "What follows where this child cannot start, or fails too often: it stays down alone, or its group moves.",
    ),
    # commands
    "start_command": Key(_command("start_command"), COMMAND, "[none]", "Starts it; it is registered if this succeeds."),
    "stop_command": Key(
        _command("stop_command"), COMMAND, "[none]",
        "Stops it. When it has succeeded, the program has the rest of `stop_timeout` to end by itself; then Muster "
        "ends it. Without one, stopping is skipped where its start left nothing.",
    ),
    "notify_command": Key(
        _command("notify_command"), COMMAND, "[none]", "Tells the other allowable nodes where it has been started."
    ),
    "recovery_command": Key(
        _command("recovery_command"), COMMAND, "[none]", "Repairs what its lost node has left, before it is started."
    ),
    "cleanup_command": Key(
        _command("cleanup_command"), COMMAND, "[none]",
        "Clears what it leaves in its machine's kernel (an address, a mount, a rule), see below. Once lost, it starts "
        "elsewhere only when that machine is known to be clean.",
    ),
    "probe_command": Key(
        _command("probe_command"), COMMAND, "[none]",
        "Finds out whether this machine holds anything of it, see below: 0 is yes, 1 or 3 no. Asked before each join "
        "of the node; what it finds, `cleanup_command` ends.",
    ),
    "start_timeout": Key(_duration("start_timeout_ms"), DURATION, '"60s"', _TIMEOUT),
    "stop_timeout": Key(_duration("stop_timeout_ms"), DURATION, '"60s"', _TIMEOUT),
    "notify_timeout": Key(_duration("notify_timeout_ms"), DURATION, '"60s"', _TIMEOUT),
    "recovery_timeout": Key(_duration("recovery_timeout_ms"), DURATION, '"60s"', _TIMEOUT),
    "cleanup_timeout": Key(_duration("cleanup_timeout_ms"), DURATION, '"60s"', _TIMEOUT),
    "start_retries": Key(_number("start_retries", 0, MAXIMUM_COUNT), "number", "0", _RETRIES),
    "stop_retries": Key(_number("stop_retries", 0, MAXIMUM_COUNT), "number", "0", _RETRIES),
    "notify_retries": Key(_number("notify_retries", 0, MAXIMUM_COUNT), "number", "0", _RETRIES),
    "recovery_retries": Key(_number("recovery_retries", 0, MAXIMUM_COUNT), "number", "0", _RETRIES),
    "cleanup_retries": Key(_number("cleanup_retries", 0, MAXIMUM_COUNT), "number", "0", _RETRIES),
    "retry_pause": Key(_duration("retry_pause_ms"), DURATION, '"1s"', "Between two tries of a command."),
    "environment": Key(
        _environment, "table of texts", "{}", "Given to each of its commands, beside the variables MUSTER_*."
    ),
    "environment_file": Key(
        _text("environment_file", file_problem), '"/etc/default/web" or another path', "[none]",
        "NAME=VALUE a line, read on the node before each command; `#` begins a comment.",
    ),
    "user": Key(
        _text("user", account_problem), "user", "[none: the node's]",
        "Its commands run as this user, with its groups and HOME. `cleanup_command` and `on_failure` run as the node.",
    ),
    "group": Key(_text("group", account_problem), "group", "[none: the user's]", "The main group of its commands."),
    "working_directory": Key(
        _text("working_directory", file_problem), '"/srv/web" or another path', '"/"', "Where its commands start."
    ),
    "umask": Key(_umask, '"022" or other octal digits', '"022"', "Which rights its new files do not get."),
    "limits": Key(
        _limits, "table", "{}", "As `ulimit` has them: nofile, nproc, core, memlock, stack and others, see below."
    ),
    "stop_signal": Key(
        _text("stop_signal", signal_problem), '"SIGQUIT" or another signal', '"SIGTERM"',
        "What `run`, or what a command has left, is sent first when it is to end; SIGKILL follows after `grace`.",
    ),
    "extend_limit": Key(
        _duration("extend_limit_ms", minimum_ms=0), DURATION, '"1h"',
        "By how much its program may lengthen a start or a stop in all, by EXTEND_TIMEOUT_USEC of sd_notify.",
    ),
    "output": Key(
        _one_of("output", {"file": "file", "journal": "journal"}), '"file" or "journal"', '"file"',
        "Where what its commands write is kept: in a bounded file of each node; or in its journal, too, see below.",
    ),
    "stop_failure": Key(
        _one_of("stop_failure", {"block": "block", "evict": "evict"}), '"block" or "evict"', '"block"',
        "Where its stop fails: it is blocked there with an alert, or that node is forced out.",
    ),
    "grace": Key(
        _duration("grace_ms", minimum_ms=0), DURATION, '"5s"',
        "Between SIGTERM and SIGKILL, for `run` and for all that a command leaves running; before it, after a "
        "`stop_command`, for what a start command has left.",
    ),
    # supervision
    "run": Key(_command("run"), COMMAND, "[none]", "A long-running program, in place of a start command."),
    "ready": Key(_ready, "table", "[as soon as it runs]", "When it has started, see below."),
    "check": Key(_check, "table", "[none]", "A command that watches the service while it is registered, see below."),
    "restarts": Key(
        _number("restarts", 0, MAXIMUM_COUNT), "number", "3",
        "How often it is restarted in place within `restart_window` before it is moved.",
    ),
    "restart_window": Key(_duration("restart_window_ms"), DURATION, '"10m"', "A failure is forgotten after this."),
    "start_grace": Key(
        _duration("start_grace_ms", minimum_ms=0), DURATION, '"0s"',
        "For so long after its start failures of its check do not count, until one has succeeded.",
    ),
    "forking": Key(
        _yes_or_no("forking"), "true or false", "[as said below]",
        "Whether what its program leaves running when it ends is the service still.",
    ),
    "success_exit_status": Key(
        _statuses("success_exit_status"), STATUSES, "[]",
        "Where `run` ends with one of these it has done its work: it is de-registered, and has not failed.",
    ),
    "hard_exit_status": Key(
        _statuses("hard_exit_status"), STATUSES, "[]",
        "With one of these, `run` or the start command says: another try on this node does not help.",
    ),
    "fatal_exit_status": Key(
        _statuses("fatal_exit_status"), STATUSES, "[]",
        "With one of these, `run` or the start command says: no other try helps, on any node. It stops, and says why.",
    ),
    "on_failure": Key(
        _command("on_failure"), COMMAND, "[none]",
        "Runs where it has failed, in place of restarting and moving it. If its program has ended, it needs you.",
    ),
}  # fmt: skip

INNER_KEYS: dict[str, dict[str, Key]] = {
    "node_preferences": PREFERENCE_KEYS,
    "ready": READY_KEYS,
    "check": CHECK_KEYS,
}
