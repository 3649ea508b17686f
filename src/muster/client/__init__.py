"""For programs that talk to a node: they ask and operate, take part in transitions, detect events (docs/CLIENT.md).

What the command line can ask for, a program can (SPEC 8.1, 9.1):

    from muster.client import control_client

    n0 = control_client(directory="/tmp/try", node="n0")
    master = n0.query("status")["master"]
    done = n0.operate("transfer", service="web", target="n1")
    n0.query("service", name="web", at_least=done["index"])     # of any node: it sees what was done

A program that takes part in the cluster's transitions registers a level, hears, and acknowledges (SPEC 3.2, 3.6).

A program registers with the node on whose machine it runs, at a level of its own choice above 0. From then on it is
told of every join, leave and forced leave of the nodes that have a program at its level, in order: joins and
forced leaves go bottom-up through the levels, graceful leaves top-down, and the next level is told only when
this one's programs on all nodes have acknowledged. The vector says `inactive` of a node without a program at the
level. A program that comes later joins at its level alone, one that deregisters leaves it, one that has died is
forced out of it: its peers are told. Who wants to hear of all nodes watches the members (below).

    from muster.client import Kind, register

    with register("cache", level=60, directory="/tmp/try", node="n0", deadline_s=30) as cache:
        for told in cache:
            if told.kind is Kind.LEAVING and told.node == cache.node:
                flush()                     # the levels below are still there
            elif told.kind is Kind.FORCED_LEAVING:
                drop_entries_of(told.node)  # it is proven to have stopped
            told.acknowledge()

The loop ends when the program's own node has left the cluster at this level. To hear of one transition does not
acknowledge it, and the next one can be heard while it is worked on. `told.epoch` is a fencing token: it grows with each
change of the membership, so a resource that remembers the highest one can refuse whoever has been forced out.

The same for asyncio: `async with await register_async(...) as cache`, `async for told in cache`,
`await told.acknowledge()`. Without `directory` and `node`, or `socket`, the program talks to this machine's own node.

When the daemon restarts, or the connection is lost, the registration is resumed unseen; nothing is heard twice. When
the program's process ends without `deregister` (the `with` statement sees to it), `on_loss` says what its death means:
the level is deregistered, and its peers are told of a forced leave, or its node fails. The node also fails, whatever
`on_loss` says, where the cluster requires the level of its nodes, or a program of a higher level is registered on it:
those stand on what has been lost. A program that lives without its connection is awaited for its `deadline_s` (without
one: for as long as a daemon has to be restarted). After that, with `on_loss="fail"` its node fails, also where the
block was left by an exception; else its level stays, since the program may still hold what it shares, and what that
level is asked waits until the process ends or registers anew.

`Lost` ends the loop when the registration cannot be resumed: the node has stopped or restarted, and whatever the
program holds for the cluster must be given up before it registers anew.

With `judge=function` the program is asked before an operator's graceful leave, standby (a drain is one), transfer or
de-registration: what the function returns for a `Planned` change is its objection, in words; an empty text is consent.
Nobody is asked about a forced leave, nor about anything else that follows from a failure or that the cluster decides.

A program can also be a watcher (SPEC 5.1): it detects events that are defined in the cluster, and tells of each; what
is done about it is the event's action function.

    from muster.client import watch

    with watch(events=["disk-full"], directory="/tmp/try", node="n0") as watcher:
        while True:
            for asked in watcher.asked.values():        # what is to be detected, with its IN parameters
                free = free_bytes(asked.parameters["path"])
                if free < 2**20:
                    watcher.occurred(asked.event, free=str(free))
            watcher.wait(timeout_s=5.0)                 # until that changes, or the time is over

With `members=True` it also hears how the nodes stand, without taking part in transitions: `watcher.members` holds the
state of each, `watcher.changes()` what has changed since it was asked last.

The same for asyncio: `async with await watch_async(...) as watcher`, `await watcher.occurred(...)`,
`await watcher.wait(...)`.

All errors are `ClientError`: what is wrong, where, and what to do next. This package needs the standard library only;
`control_client` and a blocking watcher need no asyncio either.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muster.client.asynchronous import AsyncNotification, AsyncSubsystem, register_async
    from muster.client.asynchronous_watching import AsyncWatcher, watch_async
    from muster.client.blocking import Notification, Subsystem, register
    from muster.client.control import ControlClient, Done, control_client
    from muster.client.errors import ClientError, Lost, Refused, ReplyLost, Unreachable
    from muster.client.protocol import Barriers, Kind, Planned
    from muster.client.watching import Asked, Change, Watcher, watch

__all__ = [
    "Asked",
    "AsyncNotification",
    "AsyncSubsystem",
    "AsyncWatcher",
    "Barriers",
    "Change",
    "ClientError",
    "ControlClient",
    "Done",
    "Kind",
    "Lost",
    "Notification",
    "Planned",
    "Refused",
    "ReplyLost",
    "Subsystem",
    "Unreachable",
    "Watcher",
    "control_client",
    "register",
    "register_async",
    "watch",
    "watch_async",
]

_PLACES = {
    "asynchronous": ("AsyncNotification", "AsyncSubsystem", "register_async"),
    "asynchronous_watching": ("AsyncWatcher", "watch_async"),
    "blocking": ("Notification", "Subsystem", "register"),
    "control": ("ControlClient", "Done", "control_client"),
    "errors": ("ClientError", "Lost", "Refused", "ReplyLost", "Unreachable"),
    "protocol": ("Barriers", "Kind", "Planned"),
    "watching": ("Asked", "Change", "Watcher", "watch"),
}


def __getattr__(name: str) -> Any:
    """Load what is asked for, and nothing else: the small watcher process of each node has no room for the rest."""
    import importlib

    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"muster.client.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
