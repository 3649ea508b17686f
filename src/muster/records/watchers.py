"""The watchers that every node has: what each takes and fills in, and what tells them apart (SPEC 5.1).

Standard library only, because the watcher process is of the guard's image. A new kind is a row in each table here and
one in `BuiltIn.WAYS` of `drivers/image/watcher.py`; whatever is forgotten fails when that is loaded.
"""

BUILT_IN = {  # those that an event may name: what they take, and what they fill in
    "membership": (("node", "state"), ("node", "state", "previous", "incarnation", "entry")),
    "check": (("command", "interval", "timeout", "failures", "of"), ("status", "output", "failures", "detail")),
    "process": (("pid", "pid_file"), ("pid", "detail")),
    "timer": (("interval", "at"), ("time",)),
    "needs": (("kind", "subject", "severity"), ("kind", "subject", "severity", "words", "next")),
}
CHECK_WATCHER, MEMBERSHIP_WATCHER = "check", "membership"
PROGRAM_WATCHER, UNCHECKED_WATCHER = "program", "unchecked"  # for services' own groups only (SPEC 5.4)
NEEDS_WATCHER = "needs"  # the daemon itself: what needs a person, here (P10.12)
BUILT_IN_WATCHER = "built-in"  # the name under which the watcher process connects
TOLD_APART_BY = {  # those of the watcher process: an event is for the first that takes one of these
    CHECK_WATCHER: ("command",),
    "process": ("pid", "pid_file"),
    "timer": ("interval", "at"),
    UNCHECKED_WATCHER: ("check",),
    PROGRAM_WATCHER: ("generation",),
    MEMBERSHIP_WATCHER: (),  # it is for this one if for none above
}
PROCESS_WATCHERS = tuple(TOLD_APART_BY)

_NAMED = {*PROCESS_WATCHERS, NEEDS_WATCHER} - {PROGRAM_WATCHER, UNCHECKED_WATCHER}
if BUILT_IN.keys() != _NAMED:
    raise TypeError(f"records/watchers.py lacks a row for {', '.join(sorted(BUILT_IN.keys() ^ _NAMED))}")
