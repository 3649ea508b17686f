"""What this node's commands did last: status, duration, the end of their output (SPEC 6.6). Bounded.

It is kept across restarts of the daemon (PROTOCOL P8.9). Every attempt of a command is one entry; a program that has
ended is one too. The failures are also in the node's log.
"""

import time
from collections import deque
from typing import NamedTuple

import msgspec

from muster.daemon.events.kept_history import KeptHistory
from muster.drivers.runner_client import CommandEnded, ProgramExited

FILE_NAME = "command-history"
CAPACITY = 1024  # of a node
MAXIMUM_OUTPUT_CHARACTERS = 1 << 20  # of all entries together


class Logged(NamedTuple):
    """One command, or the end of a program."""

    at_s: float  # by the clock of people
    service: str
    action: str  # start, stop, recovery, notify, act, or exit
    generation: int
    attempt: int
    succeeded: bool
    status: str
    duration_ms: int
    output: str


class CommandLog:
    """The newest entries of this node, and those that `kept` holds of earlier daemons."""

    def __init__(self, kept: KeptHistory) -> None:
        self._kept = kept
        self._entries: deque[Logged] = deque()
        self._characters = 0
        for line in kept.read():
            try:
                self._remember(msgspec.json.decode(line, type=Logged))
            except (msgspec.DecodeError, ValueError):
                continue  # cut off, or of another release

    def ended(self, ended: CommandEnded) -> None:
        """An attempt of a command is over."""
        self._add(
            Logged(
                time.time(), ended.service, ended.action, ended.generation, ended.attempt, not ended.failure,
                ended.status, ended.duration_ms, ended.output,
            )
        )  # fmt: skip

    def exited(self, exited: ProgramExited, now_us: int) -> bool:
        """A supervised program has ended; False if that is known already, from an earlier daemon."""
        name, generation = exited.service, exited.generation
        known = ((each.service, each.generation) for each in self._entries if each.action == "exit")
        if (name, generation) in known:
            return False
        at_s = time.time() - (now_us - exited.at_us) / 1e6
        self._add(Logged(at_s, name, "exit", generation, 1, False, exited.status, 0, exited.output))
        return True

    def of(self, service: str) -> list[dict[str, object]]:
        """The entries of a service, oldest first, ready for JSON."""
        return [entry._asdict() for entry in self._entries if entry.service == service]

    def close(self) -> None:
        """The daemon ends."""
        self._kept.close()

    def _add(self, entry: Logged) -> None:
        self._remember(entry)
        self._kept.add(msgspec.json.encode(entry))

    def _remember(self, entry: Logged) -> None:
        self._entries.append(entry)
        self._characters += len(entry.output)
        while len(self._entries) > CAPACITY or self._characters > MAXIMUM_OUTPUT_CHARACTERS:
            self._characters -= len(self._entries.popleft().output)
