"""What happened, for people: the kinds of it, and the form in which it is told and kept (P10.13)."""

from msgspec import Struct

MASTER, JOIN, LEAVE, LOST, CONDEMNED, FENCE = "master", "join", "leave", "lost", "condemned", "fence"
START, RESTART, MOVE, STOP, FAILURE, STUCK, CHANGE = "start", "restart", "move", "stop", "failure", "stuck", "change"
KINDS = (MASTER, JOIN, LEAVE, LOST, CONDEMNED, FENCE, START, RESTART, MOVE, STOP, FAILURE, STUCK, CHANGE)


class Happening(Struct, frozen=True, array_like=True):
    """One thing that happened; `subject` is `service/NAME`, `node/NAME` or what a person has changed."""

    kind: str
    subject: str
    words: str
