"""An answer in several lines on one connection of the control socket; only levels converse so (SPEC 3.2)."""

from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple


class Conversation(NamedTuple):
    """An answer in several lines, during which the client goes on speaking on the same connection.

    `results` yields what is to be sent at once, each item a line of its own. From its first item on, `hear` is given
    the lines that have arrived, all that are there in one turn of the loop together. It raises `ControlRefused` to end
    the connection with that error.
    """

    results: AsyncGenerator[list[Any]]
    hear: Callable[[list[bytes]], None]
