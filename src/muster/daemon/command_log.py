"""What this node's commands did last: status, duration, the end of their output (SPEC 6.6). Bounded, in memory.

Every attempt of a command is one entry; a program that has ended is one too. The failures are also in the node's log.
"""

import time
from collections import deque
from typing import NamedTuple

from muster.drivers.runner_client import CommandEnded, ProgramExited

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
    """The newest entries of this node."""

    def __init__(self) -> None:
        self._entries: deque[Logged] = deque()
        self._characters = 0

    def ended(self, ended: CommandEnded) -> None:
        """An attempt of a command is over."""
        self._add(
            Logged(
                time.time(), ended.service, ended.action, ended.generation, ended.attempt, not ended.failure,
                ended.status, ended.duration_ms, ended.output,
            )
        )  # fmt: skip

    def exited(self, exited: ProgramExited) -> None:
        """A supervised program has ended."""
        self._add(
            Logged(time.time(), exited.service, "exit", exited.generation, 1, False, exited.status, 0, exited.output)
        )

    def of(self, service: str) -> list[dict[str, object]]:
        """The entries of a service, oldest first, ready for JSON."""
        return [entry._asdict() for entry in self._entries if entry.service == service]

    def _add(self, entry: Logged) -> None:
        self._entries.append(entry)
        self._characters += len(entry.output)
        while len(self._entries) > CAPACITY or self._characters > MAXIMUM_OUTPUT_CHARACTERS:
            self._characters -= len(self._entries.popleft().output)
