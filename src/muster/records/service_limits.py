"""What a service definition may hold, wherever it comes from (SPEC 6.2, 6.5, 7.8).

The reader of service files says it with lines and advice, key by key. Here is the same for a definition that came
another way, and what no key can know alone: contradictions within a definition (`contradictions`) and among those of a
group (`group_problems`). Keys in messages are those of a service file.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from muster.records.names import NAME, NAME_RULE, RESERVED, VARIABLE, shown
from muster.records.services import Definition

MAXIMUM_SERVICES = 10_000  # in one operation
MAXIMUM_COMMAND_BYTES = 32 * 1024
MAXIMUM_TIMEOUT_MS = 24 * 60 * 60 * 1000
MAXIMUM_DURATION_MS = 366 * MAXIMUM_TIMEOUT_MS  # of a maintenance or a standby
MAXIMUM_LISTED_NODES = 1024
MAXIMUM_COUNT = 1000  # nodes, retries, restarts, siblings
MAXIMUM_CHECKS = 100  # of which the failures are counted
MAXIMUM_PORT = 65_535
MAXIMUM_VARIABLES = 256
MAXIMUM_PATH_BYTES = 4095
MAXIMUM_GENERATIONS = 16  # of a group, the eldest parent included
ANY_NODE = "*"
# Each field that is a command, a duration, a number or a word, and what it may be.
COMMANDS = (
    "start_command", "stop_command", "notify_command", "recovery_command",
    "run", "ready_command", "check_command", "on_failure", "cleanup_command", "probe_command",
)  # fmt: skip
_TIMEOUTS = (
    "start_timeout_ms", "stop_timeout_ms", "notify_timeout_ms", "recovery_timeout_ms", "retry_pause_ms",
    "check_interval_ms", "check_timeout_ms", "restart_window_ms", "cleanup_timeout_ms",
)  # fmt: skip
_BOUNDS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(_TIMEOUTS, (1, MAXIMUM_TIMEOUT_MS)),
    **dict.fromkeys(("maturity_time_ms", "grace_ms", "start_grace_ms", "extend_limit_ms"), (0, MAXIMUM_TIMEOUT_MS)),
    **dict.fromkeys(
        ("start_retries", "stop_retries", "notify_retries", "recovery_retries", "cleanup_retries"), (0, MAXIMUM_COUNT)
    ),
    **dict.fromkeys(("maturity_count", "siblings", "restarts"), (0, MAXIMUM_COUNT)),
    **dict.fromkeys(("check_failures", "check_of"), (1, MAXIMUM_CHECKS)),
    "ready_port": (0, MAXIMUM_PORT),
}
MAXIMUM_EXIT_STATUS = 255
EXIT_STATUSES = (
    "success_exit_status", "hard_exit_status", "fatal_exit_status",
    "check_success_exit_status", "check_unknown_exit_status",
)  # fmt: skip
LIMITS = (
    "as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "sigpending", "stack",
)  # fmt: skip
STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGKILL")
ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\$?")
LIMIT = re.compile(r"(?:\d{1,15}|unlimited)(?::(?:\d{1,15}|unlimited))?")
_WORDS = {
    "child_failure": ("alone", "group"),
    "stop_failure": ("block", "evict"),
    "output": ("file", "journal"),
}
_NODE_LISTS = ("allowable_nodes", "disallowable_nodes", "ordered", "unordered")
# The parameters that only a service without a parent has: a child goes where its parent goes (SPEC 6.5).
_CHOOSING: tuple[tuple[str, Callable[[Definition], bool]], ...] = (
    ("allowable_nodes", lambda definition: definition.allowable_nodes != (ANY_NODE,)),
    ("disallowable_nodes", lambda definition: bool(definition.disallowable_nodes)),
    ("node_preferences", lambda definition: bool(definition.ordered or definition.unordered)),
    ("maturity_count", lambda definition: definition.maturity_count > 0),
    ("maturity_time", lambda definition: definition.maturity_time_ms > 0),
    ("transfer_cost", lambda definition: definition.free_transfer),
)


class Contradiction(NamedTuple):
    """What is wrong with a definition as a whole: at which key of its table, and what to do."""

    key: str
    what: str
    allowed: str


def problem_of(definition: Definition) -> str:
    """What is wrong with a definition and what is allowed, in words; empty where nothing is."""
    if not NAME.fullmatch(definition.name):
        return f"name is {shown(definition.name)}: a name has {NAME_RULE}"
    if definition.parent and not NAME.fullmatch(definition.parent):
        return f"parent is {shown(definition.parent)}: a name has {NAME_RULE}"
    for key in COMMANDS:
        if problem := command_problem(getattr(definition, key)):
            return f"{key} {problem}"
    for key, (minimum, maximum) in _BOUNDS.items():
        value = getattr(definition, key)
        if not minimum <= value <= maximum:
            return f"{key} is {shown(value)}: allowed are {minimum} to {maximum}"
    for key in EXIT_STATUSES:
        if problem := exit_status_problem(getattr(definition, key)):
            return f"{key} {problem}"
    for key, words in _WORDS.items():
        if getattr(definition, key) not in words:
            return f"{key} is {shown(getattr(definition, key))}: allowed are {' and '.join(words)}"
    if problem := environment_problem(definition.environment):
        return f"environment {problem}"
    if problem := _problem_of_surroundings(definition):
        return problem
    if definition.ready_file and (problem := file_problem(definition.ready_file)):
        return f"ready_file {problem}"
    if not definition.allowable_nodes:
        return f'allowable_nodes is empty: name at least one node, or all of them: ["{ANY_NODE}"]'
    for key in _NODE_LISTS:
        if problem := _nodes_problem(getattr(definition, key), wildcard=key == "allowable_nodes"):
            return f"{key} {problem}"
    for found in contradictions(definition):
        return f"{found.what}: {found.allowed}"
    return ""


def account_problem(name: str) -> str:
    """What is wrong with the name of a Unix user or group; empty where nothing is."""
    return "" if ACCOUNT.fullmatch(name) else f"is {shown(name)}: give the name of a Unix user or group"


def signal_problem(name: str) -> str:
    """What is wrong with the name of a stop signal; empty where nothing is."""
    return "" if name in STOP_SIGNALS else f"is {shown(name)}: allowed are {', '.join(STOP_SIGNALS)}"


def _problem_of_surroundings(definition: Definition) -> str:
    for key, problem_with in (
        ("user", account_problem), ("group", account_problem), ("check_user", account_problem),
        ("working_directory", file_problem), ("environment_file", file_problem), ("stop_signal", signal_problem),
    ):  # fmt: skip
        if (value := getattr(definition, key)) and (problem := problem_with(value)):
            return f"{key} {problem}"
    if not 0 <= definition.umask <= 0o777:
        return f"umask is {shown(definition.umask)}: allowed are 0 to 0o777"
    if len(dict(definition.limits)) < len(definition.limits):
        return "limits names one twice: give each once"
    for name, value in definition.limits:
        if problem := limit_problem(name, value):
            return f"limits {problem}"
    return ""


def limit_problem(name: str, value: str) -> str:
    """What is wrong with one limit; empty where nothing is."""
    if name not in LIMITS:
        return f"has the unknown limit {shown(name)}: allowed are {', '.join(LIMITS)}"
    if not LIMIT.fullmatch(value):
        return f'gives {name} the value {shown(value)}: give a number, "unlimited", or "SOFT:HARD"'
    return ""


def command_problem(words: tuple[str, ...]) -> str:
    """What is wrong with a command; empty where nothing is. No words at all stand for no command."""
    if words and not words[0].strip():
        return "names no program: give its path first, or no word at all for no command"
    if any("\0" in word for word in words):
        return "contains a NUL character: no program can be given one"
    if sum(len(word.encode()) + 1 for word in words) > MAXIMUM_COMMAND_BYTES:
        return f"is longer than {MAXIMUM_COMMAND_BYTES} bytes: put it into a script and name that"
    return ""


def exit_status_problem(statuses: tuple[int, ...]) -> str:
    """What is wrong with a list of exit statuses; empty where nothing is."""
    for status in statuses:
        if not 0 <= status <= MAXIMUM_EXIT_STATUS:
            return f"has {shown(status)}: an exit status is 0 to {MAXIMUM_EXIT_STATUS}"
    return "names a status twice: name each once" if len(set(statuses)) < len(statuses) else ""


def environment_problem(pairs: tuple[tuple[str, str], ...]) -> str:
    """What is wrong with the variables of a service; empty where nothing is."""
    if len(pairs) > MAXIMUM_VARIABLES:
        return f"has {len(pairs)} variables: at most {MAXIMUM_VARIABLES} are allowed"
    if len(dict(pairs)) < len(pairs):
        return "gives a variable twice: give each once"
    for name, value in pairs:
        if not VARIABLE.fullmatch(name):
            return f"has the variable {shown(name)}: a name has letters, digits and underscores, no digit first"
        if name.startswith(RESERVED):
            return f"has the variable {shown(name)}: names that begin with {RESERVED} are Muster's own"
        if "\0" in value:
            return f"gives {name} a NUL character: no program can be given one"
    if sum(len(name.encode()) + len(value.encode()) + 2 for name, value in pairs) > MAXIMUM_COMMAND_BYTES:
        return f"is longer than {MAXIMUM_COMMAND_BYTES} bytes: put it into a file that the commands read"
    return ""


def file_problem(path: str) -> str:
    """What is wrong with the path of a file; empty where nothing is."""
    if not path.startswith("/") or "\0" in path:
        return f'is {shown(path)}: give a path from the root, as "/run/service.ready"'
    return f"is longer than {MAXIMUM_PATH_BYTES} bytes: shorten it" if len(path.encode()) > MAXIMUM_PATH_BYTES else ""


def _nodes_problem(nodes: tuple[str, ...], *, wildcard: bool) -> str:
    if len(nodes) > MAXIMUM_LISTED_NODES:
        return f"names {len(nodes)} nodes: allowed are {MAXIMUM_LISTED_NODES}"
    if len(set(nodes)) < len(nodes):
        return "names a node twice: name each once"
    if ANY_NODE in nodes and not wildcard:
        return "cannot take the wildcard: name the nodes"
    if ANY_NODE in nodes and len(nodes) > 1:
        return "mixes the wildcard with names: name the nodes, or take the wildcard alone"
    for node in nodes:
        if node != ANY_NODE and not NAME.fullmatch(node):
            return f"names {shown(node)}: a node's name has {NAME_RULE}"
    return ""


def contradictions(definition: Definition, nodes: Collection[str] | None = None) -> Iterator[Contradiction]:
    """What the values of a definition say against each other. `nodes`: the cluster's, if they are known."""
    if definition.parent:
        yield from _of_a_child(definition)
    else:
        yield from _of_choosing(definition, nodes)
    yield from _of_supervision(definition)


def _of_a_child(definition: Definition) -> Iterator[Contradiction]:
    if definition.parent == definition.name:
        yield Contradiction("parent", "it is its own parent", "name another service, or leave parent out")
    for key, is_given in _CHOOSING:
        if is_given(definition):
            what = f"{key} is given, and it has a parent: a child goes where its parent goes"
            yield Contradiction(key, what, f"leave {key} out, or set it for {definition.parent}")


def _of_choosing(definition: Definition, nodes: Collection[str] | None) -> Iterator[Contradiction]:
    candidates = _candidates(definition, nodes)
    if candidates is not None and not candidates:
        what = "disallowable_nodes leaves it no node at all"
        yield Contradiction("disallowable_nodes", what, "leave at least one allowable node")
    if definition.ordered and definition.unordered:
        what = "node_preferences has both an ordered and an unordered list"
        yield Contradiction("node_preferences", what, "keep one of them")
    for node in (*definition.ordered, *definition.unordered):
        # One that is disallowed may stay in the list: it is passed over as long as it is.
        if ANY_NODE not in definition.allowable_nodes and node not in definition.allowable_nodes:
            what = f"prefers node {node!r}, which is not in allowable_nodes"
            yield Contradiction("node_preferences", what, "name allowable nodes only")
    if candidates is not None and definition.maturity_count > len(candidates) > 0:
        what = f"maturity_count is {definition.maturity_count}, and only {len(candidates)} nodes are allowable"
        yield Contradiction("maturity_count", what, f"at most {len(candidates)}")
    if definition.child_failure != "alone":
        yield Contradiction("child_failure", "child_failure is given, and it has no parent", "leave it out")


def _candidates(definition: Definition, nodes: Collection[str] | None) -> set[str] | None:
    """The nodes on which it may run; None where they are not known."""
    if ANY_NODE not in definition.allowable_nodes:
        return set(definition.allowable_nodes) - set(definition.disallowable_nodes)
    return None if nodes is None else set(nodes) - set(definition.disallowable_nodes)


def _of_supervision(definition: Definition) -> Iterator[Contradiction]:
    if definition.run and definition.start_command:
        what = "it has both run and start_command: run takes the place of a start command"
        yield Contradiction("run", what, "keep one of them")
    conditions = [
        key for key in ("ready_command", "ready_port", "ready_file", "ready_notify") if getattr(definition, key)
    ]
    if conditions and not (definition.run or definition.start_command):
        what = "ready is given, and there is nothing to start"
        yield Contradiction("ready", what, "leave ready out, or give run or start_command")
    if len(conditions) > 1:
        yield Contradiction("ready", "ready names more than one condition", "keep one of them")
    yield from _of_exit_statuses(definition)
    if definition.probe_command and not definition.cleanup_command:
        what = "probe_command is given without cleanup_command: nobody could end what it finds"
        yield Contradiction("probe_command", what, "give the command that ends it, or leave it out")
    if definition.check_failures > definition.check_of:
        what = f"check wants {definition.check_failures} failures of {definition.check_of} checks"
        yield Contradiction("check", what, 'write failures = "k/n" with k at most n')


def _of_exit_statuses(definition: Definition) -> Iterator[Contradiction]:
    """No status has two meanings, and each has something that can end with it."""
    if definition.success_exit_status and not definition.run:
        what = "success_exit_status is given without run: a start command succeeds with status 0"
        yield Contradiction("success_exit_status", what, "leave it out, or give the program as run")
    if definition.forking is not None and not (definition.run or definition.start_command):
        yield Contradiction("forking", "forking is given, and there is nothing to start", "leave it out")
    if definition.start_grace_ms and not definition.check_command:
        yield Contradiction("start_grace", "start_grace is given without check", "leave it out, or add a check")
    for keys in (EXIT_STATUSES[:3], EXIT_STATUSES[3:]):
        seen: dict[int, str] = {}
        for key in keys:
            for status in getattr(definition, key):
                if status in seen:
                    what = f"status {status} is in {seen[status]} and in {key}"
                    yield Contradiction(_key_of(key), what, "name it in one of them")
                seen[status] = key
    if 0 in definition.check_unknown_exit_status:
        yield Contradiction("check", "check has 0 in unknown_exit_status: 0 is success", "leave 0 out")


def _key_of(field: str) -> str:
    return "check" if field.startswith("check_") else field


def group_problems(
    definitions: Mapping[str, Definition], changed: Iterable[str], *, whole: bool = True
) -> Iterator[tuple[str, Contradiction]]:
    """What is wrong with the groups of those in `changed`, by name of the service (SPEC 6.5).

    `definitions`: all services, the changed ones as they are to be. `whole`: a parent that is not among them does not
    exist; otherwise it may be one of the cluster's.
    """
    for name in changed:
        seen = [name]
        definition = definitions[name]
        # No further than a group may reach: a file may hold a chain of thousands, and each of them is looked at.
        while definition.parent and definition.parent != definition.name and len(seen) <= MAXIMUM_GENERATIONS:
            parent = definition.parent
            if parent not in definitions:
                if whole and len(seen) == 1:
                    advice = f"define {parent} too, or correct the name"
                    yield name, Contradiction("parent", f"its parent {parent!r} is not defined", advice)
                break
            if parent in seen:
                circle = " -> ".join((*seen[seen.index(parent) :], parent))
                what = f"it has itself among its parents: {circle}"
                yield name, Contradiction("parent", what, "one of them must have no parent")
                break
            seen.append(parent)
            definition = definitions[parent]
        if len(seen) > MAXIMUM_GENERATIONS:
            what = f"its group has more than {MAXIMUM_GENERATIONS} generations"
            yield name, Contradiction("parent", what, "let some of them have a common parent")
