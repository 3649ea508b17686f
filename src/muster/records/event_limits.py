"""What an event group may hold, wherever it comes from (SPEC 5.2, 5.3, 7.8): the first thing that is wrong with it."""

import re

from muster.records.durations import duration_of
from muster.records.events import ACTIONS, REFERENCE, EventDefinition, GroupDefinition, window_of
from muster.records.names import NAME, NAME_RULE, shown
from muster.records.service_limits import ANY_NODE, MAXIMUM_TIMEOUT_MS, command_problem
from muster.records.watchers import BUILT_IN, BUILT_IN_WATCHER, NEEDS_WATCHER, PROGRAM_WATCHER, UNCHECKED_WATCHER

MAXIMUM_GROUPS = 256  # in the cluster
MAXIMUM_EVENTS = 64  # in a group
MAXIMUM_PARAMETERS = 32
MAXIMUM_VALUE_CHARACTERS = 2000
MAXIMUM_WINDOWS = 32
MAXIMUM_RATE = 1000
_AT = re.compile(r"([01]?\d|2[0-3]):[0-5]\d")
PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,31}")
NEEDED = {"check": (("command",),), "process": (("pid", "pid_file"),), "timer": (("interval", "at"),)}


def problem_of_group(group: GroupDefinition) -> str:
    """What is wrong with a group and what is allowed, in words; empty where nothing is."""
    if not NAME.fullmatch(group.name):
        return f"name is {shown(group.name)}: a name has {NAME_RULE}"
    if not group.events or len(group.events) > MAXIMUM_EVENTS:
        return f"it has {len(group.events)} events: allowed are 1 to {MAXIMUM_EVENTS}"
    for text in group.windows:
        if window_of(text) is None:
            return f'windows has {shown(text)}: write it as "22:00-06:00", "mon-fri 08:00-18:00" or "sat,sun"'
    if len(group.windows) > MAXIMUM_WINDOWS:
        return f"windows has {len(group.windows)} of them: allowed are {MAXIMUM_WINDOWS}"
    if not group.nodes or (ANY_NODE in group.nodes and len(group.nodes) > 1):
        return f'nodes is {shown(group.nodes)}: name nodes, or all of them: ["{ANY_NODE}"]'
    if group.service and len(group.service) > 255:
        return "service is no name of a service"
    names = [event.name for event in group.events]
    for event in group.events:
        if names.count(event.name) > 1:
            return f"event {shown(event.name)} is defined twice: its name is unique in the cluster"
        if problem := problem_of_event(event):
            return f"event {shown(event.name)}: {problem}"
    return ""


def problem_of_event(event: EventDefinition) -> str:
    """What is wrong with an event, in words; empty where nothing is."""
    if not NAME.fullmatch(event.name):
        return f"name is {shown(event.name)}: a name has {NAME_RULE}"
    if event.watcher and not NAME.fullmatch(event.watcher):
        return f"watcher is {shown(event.watcher)}: use {', '.join(BUILT_IN)}, or the name of a watcher of your own"
    if event.watcher in (PROGRAM_WATCHER, UNCHECKED_WATCHER, BUILT_IN_WATCHER):
        return f"watcher {event.watcher} is for services' own groups: use {', '.join(BUILT_IN)}, or one of your own"
    given = [key for key, _ in event.parameters]
    if problem := _problem_of_parameters(event, given):
        return problem
    if problem := command_problem(event.action):
        return f"action {problem}"
    if event.action and event.action[0].startswith("muster:") and event.action[0] not in ACTIONS:
        return f"action is {shown(event.action[0])}: the built-in ones are {', '.join(ACTIONS)}"
    if event.action and event.action[0] in ACTIONS and len(event.action) < 2:
        return f"action {event.action[0]} names no service: give it as the next word"
    known = {("in", key) for key in given} | {("out", key) for key in event.outputs}
    for word in event.action:
        for kind, key in REFERENCE.findall(word):
            if (kind, key) not in known:
                names = ", ".join(f"{{{place}.{name}}}" for place, name in sorted(known)) or "none"
                return f"action refers to {{{kind}.{key}}}, which the event does not have; it has {names}"
    if not 0 < event.timeout_ms <= MAXIMUM_TIMEOUT_MS or not 0 <= event.debounce_ms <= MAXIMUM_TIMEOUT_MS:
        return f"timeout and debounce are at most {MAXIMUM_TIMEOUT_MS} ms"
    if not 0 <= event.rate_count <= MAXIMUM_RATE or not 0 <= event.rate_window_ms <= MAXIMUM_TIMEOUT_MS:
        return f"rate is at most {MAXIMUM_RATE} in at most {MAXIMUM_TIMEOUT_MS} ms"
    if bool(event.rate_count) != bool(event.rate_window_ms):
        return "rate needs both a number and a time"
    return ""


def _problem_of_parameters(event: EventDefinition, given: list[str]) -> str:
    for key in (*given, *event.out):
        if not PARAMETER.fullmatch(key):
            return f"parameter {shown(key)}: a name has 1 to 32 of a-z, 0-9 and underscore, a letter first"
    if len(given) > MAXIMUM_PARAMETERS or len(event.out) > MAXIMUM_PARAMETERS or len(set(given)) < len(given):
        return f"it has at most {MAXIMUM_PARAMETERS} parameters of each kind, each once"
    if any(len(value) > MAXIMUM_VALUE_CHARACTERS or "\0" in value for _, value in event.parameters):
        return f"the value of a parameter has at most {MAXIMUM_VALUE_CHARACTERS} characters, no NUL among them"
    if event.watcher not in BUILT_IN:
        return ""
    takes, fills = BUILT_IN[event.watcher]
    unknown = [key for key in given if key not in takes]
    if event.watcher in ("membership", NEEDS_WATCHER) and unknown:
        return f"watcher {event.watcher} takes no parameter {unknown[0]!r}: allowed are {', '.join(takes)}"
    durations = [value for key, value in event.parameters if key in ("interval", "timeout")]
    if any((duration_of(value) or 0) <= 0 for value in durations):
        return f'{shown(durations[0])} is no duration with its unit, as "500ms", "60s", "2m"'
    if any(key == "at" and not _AT.fullmatch(value) for key, value in event.parameters):
        return 'at is no time of day: write it as "22:00"'
    counts = [value for key, value in event.parameters if key in ("failures", "of", "pid")]
    if any(not value.isdigit() or not 0 < int(value) <= 1 << 22 for value in counts):
        return f"{shown(counts[0])} is no number above 0"
    for needed in NEEDED.get(event.watcher, ()):
        if not set(needed) & set(given):
            return f"watcher {event.watcher} needs parameter {' or '.join(needed)}"
    strangers = [key for key in event.out if key not in fills]
    if strangers:
        return f"watcher {event.watcher} fills in no {strangers[0]!r}: it has {', '.join(fills)}"
    return ""
