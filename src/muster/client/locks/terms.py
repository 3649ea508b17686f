"""What locks are called, for programs: modes, tokens, errors (SPEC 4.1; docs/LOCKS.md)."""

from enum import IntEnum
from typing import NamedTuple

from muster.client.errors import ClientError

SOCKET_FILE = "locks.sock"
_DIGITS = 16


class Mode(IntEnum):
    """How a lock shares its resource with others."""

    NL = 0  # interest only
    CR = 1  # concurrent read
    CW = 2  # concurrent write
    PR = 3  # protected read: shared
    PW = 4  # protected write: one writer beside concurrent readers
    EX = 5  # exclusive


NL, CR, CW, PR, PW, EX = Mode
MODES = ", ".join(mode.name for mode in Mode)


class Token(NamedTuple):
    """Grows with each grant of a resource, whatever node gives it; compared as a pair.

    Its text has a fixed length, and texts compare as the tokens do, for what can only compare texts: `token <= ?`.
    """

    epoch: int
    counter: int

    def __str__(self) -> str:
        return f"{self.epoch:0{_DIGITS}d}-{self.counter:0{_DIGITS}d}"


class NotGranted(ClientError):
    """A request or conversion has ended without a grant.

    `reason` is would-wait, cancelled, timed-out, deadlock or leaving. Who had the lock in another mode has it still.
    """

    def __init__(self, reason: str, where: str) -> None:
        super().__init__(_WORDS.get(reason, reason), where, _ADVICE.get(reason, "ask again"))
        self.reason = reason


class LocksLost(ClientError):
    """The node's lock process is gone, or asks this program to end: what it had locked is no longer its own."""


_WORDS = {
    "would-wait": "others hold it",
    "cancelled": "the request was cancelled",
    "timed-out": "it was not granted in time",
    "deadlock": "it waited in a circle with others, and was chosen to give way",
    "leaving": "its node leaves the cluster",
}
_ADVICE = {
    "would-wait": "ask again later, or wait for it",
    "timed-out": "see who has it: muster lock show",
    "deadlock": "give up what you hold, then ask again",
    "leaving": "ask on another node",
}
