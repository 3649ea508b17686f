"""What a service definition may hold, wherever it comes from (SPEC 6.2, 7.8).

The reader of service files says it with lines and advice, key by key. Here is the same for a definition that came
another way: the first thing that is wrong with it. Which nodes exist is the cluster's to know, and not checked here.
"""

import re

from muster.records.state import Definition

MAXIMUM_SERVICES = 10_000  # in one operation
MAXIMUM_COMMAND_BYTES = 32 * 1024
MAXIMUM_TIMEOUT_MS = 24 * 60 * 60 * 1000
MAXIMUM_LISTED_NODES = 1024
ANY_NODE = "*"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")
NAME_RULE = "1 to 64 characters of a-z, A-Z, 0-9, dot, underscore and hyphen, a letter or digit first"

_SHOWN_CHARACTERS = 60


def shown(value: object) -> str:
    """A value for a message, in short."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def problem_of(definition: Definition) -> str:
    """What is wrong with a definition and what is allowed, in words; empty where nothing is."""
    if not NAME.fullmatch(definition.name):
        return f"name is {shown(definition.name)}: a name has {NAME_RULE}"
    for key in ("start_command", "stop_command", "recovery_command"):
        if problem := command_problem(getattr(definition, key)):
            return f"{key} {problem}"
    for key in ("start_timeout_ms", "stop_timeout_ms", "recovery_timeout_ms"):
        value = getattr(definition, key)
        if not 0 < value <= MAXIMUM_TIMEOUT_MS:
            return f"{key} is {shown(value)}: allowed are 1 to {MAXIMUM_TIMEOUT_MS}"
    if not definition.allowable_nodes:
        return f'allowable_nodes is empty: name at least one node, or all of them: ["{ANY_NODE}"]'
    for key in ("allowable_nodes", "disallowable_nodes", "ordered"):
        if problem := _nodes_problem(getattr(definition, key), wildcard=key == "allowable_nodes"):
            return f"{key} {problem}"
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
