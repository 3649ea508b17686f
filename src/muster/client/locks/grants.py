"""What a program asks of a lock and knows of its grant, the same for asyncio and for threads; no connection is here."""

import base64
import math
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Generic, NamedTuple, TypeVar

from muster.client.locks.terms import MODES, Mode, Token

Told = list[Any]  # one line of the lock process, taken apart
G = TypeVar("G")


class Wish(NamedTuple):
    """What a lock is asked for with."""

    name: str
    mode: Mode
    no_queue: bool = False
    timeout_s: float = 0.0

    def words(self, space: str) -> str:
        """As the lock process hears it; `space` is quoted. Raises `TypeError`, `ValueError`."""
        return f"{space},{quoted(self.name)},{_terms(self.mode, self.no_queue, self.timeout_s)}"


class Knowledge:
    """What is known of one lock that this program has."""

    __slots__ = ("is_lost", "lock", "mode", "name", "space", "token", "valid", "value")

    def __init__(self, space: str, name: str) -> None:
        self.space, self.name = space, name
        self.lock = 0
        self.mode: Mode = Mode.NL
        self.token = Token(0, 0)
        self.value, self.valid = b"", True
        self.is_lost = False

    def take(self, told: Told) -> None:
        """What the lock process has granted."""
        _, _, self.lock, mode, epoch, counter, value, self.valid = told
        self.mode, self.token = Mode(mode), Token(epoch, counter)
        self.value = base64.b64decode(value) if value else b""

    @property
    def where(self) -> str:
        """What errors name as their place."""
        return f"lock {self.space}:{self.name}"

    def conversion(self, mode: Mode, value: bytes | None, no_queue: bool, timeout_s: float) -> str:
        """A conversion, as the lock process hears it. Raises `TypeError`, `ValueError`."""
        return f"{self.lock},{_terms(mode, no_queue, timeout_s)},{_value(value)}"

    def unlocking(self, value: bytes | None) -> str:
        """An unlock, as the lock process hears it."""
        return f"{self.lock},{_value(value)}"


class Granted:
    """A lock that this program has; how it is converted and given up is for those who talk to the lock process."""

    __slots__ = ("known",)

    def __init__(self, known: Knowledge) -> None:
        self.known = known

    @property
    def space(self) -> str:
        """The lockspace that it is in."""
        return self.known.space

    @property
    def name(self) -> str:
        """What is locked."""
        return self.known.name

    @property
    def where(self) -> str:
        """What errors name as their place."""
        return self.known.where

    @property
    def token(self) -> Token:
        """Above that of every owner before."""
        return self.known.token

    @property
    def mode(self) -> Mode:
        """What it has now."""
        return self.known.mode

    @property
    def value(self) -> bytes:
        """The value block, as it was granted."""
        return self.known.value

    @property
    def valid(self) -> bool:
        """Whether the block is what was written last: a writer may have been lost."""
        return self.known.valid

    @property
    def is_lost(self) -> bool:
        """Whether it is this program's no more. What must not happen then must be guarded by the token all the same."""
        return self.known.is_lost


class AnySpace(Generic[G]):
    """A lockspace, by its name; `G` is what a block under one of its locks is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def lock(
        self,
        name: str,
        mode: Mode = Mode.EX,
        *,
        no_queue: bool = False,
        timeout_s: float = 0.0,
        on_blocking: Callable[[Any, Mode], object] | None = None,
    ) -> G:
        """A lock for the time of a `with` or `async with` block; the arguments are those of `acquire`."""
        return self._block(Wish(name, mode, no_queue, timeout_s), on_blocking)

    def _block(self, wish: Wish, on_blocking: Callable[[Any, Mode], object] | None) -> G:
        raise NotImplementedError


def _terms(mode: Mode, no_queue: bool, timeout_s: float) -> str:
    if not isinstance(mode, Mode):
        raise TypeError(f"mode is {mode!r}: pass one of muster.locks: {MODES}")
    if not 0 <= timeout_s < math.inf:
        raise ValueError("timeout_s is 0 (for ever) or more seconds")
    return f"{mode:d},{'true' if no_queue else 'false'},{math.ceil(timeout_s * 1000)}"


def _value(value: bytes | None) -> str:
    return "null" if value is None else f'"{base64.b64encode(value).decode()}"'
