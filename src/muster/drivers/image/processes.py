"""The processes of a node: what the kernel calls each, what makes it, and what it does (docs/ARCHITECTURE.md).

A boot finds what an earlier run has left by these names, so they are an interface between releases.
Plain named tuples: every process of the image imports this module.
"""

from typing import NamedTuple


class Process(NamedTuple):
    """One kind of process. `name`: as the kernel shows it, 15 bytes at most; `parent`: the name of what makes it."""

    name: str
    parent: str
    does: str


GUARD = "muster-guard"
LOG_WRITER = "muster-log"
CARETAKER = "muster-cleanup"
LEASE_WRITER = "muster-lease"
WATCHDOG_HOLDER = "muster-holder"
FEEDER = "muster-feeder"
INIT = "muster-init"
RUNNER = "muster-runner"
KEEPER = "muster-keeper"
WATCHER = "muster-watcher"
LOCKS = "locks"  # executed afresh, too
DAEMON = "daemon"  # executed afresh: it has the name of its interpreter

PROCESSES = (
    Process(GUARD, "", "deadman, pulses, panic; never waits for a disk"),
    Process(LOG_WRITER, GUARD, "all writes of the log and of HOME/guard.json; outlives the guard"),
    Process(CARETAKER, GUARD, "clears what services leave in this machine; outlives the guard"),
    Process(LEASE_WRITER, GUARD, "all reads and writes of the store: renewals, marks"),
    Process(WATCHDOG_HOLDER, GUARD, "keeps the machine's watchdog open, where one is set; feeds nothing; outlives all"),
    Process(FEEDER, WATCHDOG_HOLDER, "feeds it before the deadline, and never after"),
    Process(INIT, GUARD, "process 1 of the node's namespace: dies with the guard, reaps, restarts the daemon"),
    Process(RUNNER, INIT, "parent of all service commands; outlives the daemon"),
    Process(KEEPER, RUNNER, "one a command: subreaper of all that the command leaves running"),
    Process(WATCHER, RUNNER, "programs, membership, checks, processes, timers; a client of the daemon"),
    Process(LOCKS, RUNNER, "the lock manager, while there are lockspaces; a client of the daemon, which it outlives"),
    Process(DAEMON, INIT, "the shell around the core; exits and is restarted without an outage"),
)
FORKED = (INIT, RUNNER, WATCHER, KEEPER)  # of the image, and below the guard: a boot looks for what is left of them
BYSTANDERS = (CARETAKER, LOG_WRITER, WATCHDOG_HOLDER)  # outlive their node, with all below them: of no life of it
