"""One client of the lock process: its connection, bounded in both directions (P12.20).

A turn of the loop carries out at most `LINES_A_TURN` of its lines; those behind wait for the next, and meanwhile it is
not read. One that does not take its answers is not read either, so nothing of it grows here: what it may still be told
is bounded by its locks.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import msgspec

from muster.daemon.locks.host import Host
from muster.daemon.locks.requests import (
    MAXIMUM_LINE_BYTES,
    Break,
    OfLocks,
    Request,
    Show,
    decoder,
    encoder,
)
from muster.records.access import Role

LINES_A_TURN = 512
UNTAKEN_BYTES = 256 * 1024  # of answers: beyond, its requests wait
LINGER_S = 2.0
_NEEDS = {Show: Role.OBSERVER, Break: Role.ADMINISTRATOR}
Extra = Callable[["LockSession", Show | Break], None]


class LockSession(asyncio.Protocol):
    """A client that has said hello."""

    def __init__(self, host: Host, role: Role, extra: Extra, gone: Callable[["LockSession"], None]) -> None:
        """`extra` deals with what is no lock's; `client` is set by who lets it in."""
        self.client = 0
        self.role = role
        self.uid = -1
        self.user = ""
        self._host, self._extra, self._gone = host, extra, gone
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._inbox = b""
        self._lines: list[bytes] = []  # whole ones, not carried out yet
        self._next_turn: asyncio.Handle | None = None
        self._unsaid: list[tuple[object, ...]] = []
        self._is_writable = True
        self._is_in_turn = False  # what is said then leaves at its end
        self._over = False

    # ---- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is this object's from now on."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=UNTAKEN_BYTES)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._over:
            return
        whole, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._inbox += data
        else:
            self._lines += (self._inbox + whole).split(b"\n")
            self._inbox = rest
        if len(self._inbox) > MAXIMUM_LINE_BYTES:
            self.refuse(f"a line of more than {MAXIMUM_LINE_BYTES} bytes")
        elif self._lines and self._next_turn is None:
            self._turn()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's interface
        """The socket is closed."""
        self._over = True
        self._lines = []
        if self._next_turn is not None:
            self._next_turn.cancel()
        self._gone(self)

    def pause_writing(self) -> None:
        """It does not take its answers."""
        self._is_writable = False
        self._read_or_not()

    def resume_writing(self) -> None:
        """It takes them again."""
        self._is_writable = True
        self._read_or_not()

    # ---- what it asks

    def _turn(self) -> None:
        self._next_turn = None
        self._is_in_turn = True
        try:
            self._carry_out_lines()
        finally:
            self._is_in_turn = False
        self._flush()

    def _carry_out_lines(self) -> None:
        lines, self._lines = self._lines[:LINES_A_TURN], self._lines[LINES_A_TURN:]
        try:
            asked = [decoder.decode(line) for line in lines]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            asked = self._as_far_as_readable(lines)
            self._carry_out(asked)
            self.refuse(f"a line is no request: {error}")
            return
        self._carry_out(asked)
        self._read_or_not()

    @staticmethod
    def _as_far_as_readable(lines: list[bytes]) -> list[Request]:
        asked: list[Request] = []
        for line in lines:
            try:
                asked.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                break
        return asked

    def _carry_out(self, asked: list[Request]) -> None:
        plain = [each for each in asked if type(each) not in _NEEDS]
        if plain and self.role < Role.OPERATOR:
            self.refuse(f"this needs the role {Role.OPERATOR}; user {self.user} has the role {self.role}")
            return
        if plain:
            self._host.ask(self.client, cast("list[OfLocks]", plain))
        for each in asked:
            if isinstance(each, Show | Break):
                needed = _NEEDS[type(each)]
                if self.role < needed:
                    what = f"this needs the role {needed}; user {self.user} has the role {self.role}"
                    self.say(("refused", each.ref, what))
                else:
                    self._extra(self, each)

    def _read_or_not(self) -> None:
        """Go on with what is here, or wait until the client has taken what it was told."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._over:
            return
        if not self._is_writable or self._lines:
            transport.pause_reading()
        else:
            transport.resume_reading()
        if self._lines and self._is_writable and self._next_turn is None:
            self._next_turn = self._loop.call_soon(self._turn)

    # ---- what it is told

    def say(self, line: tuple[object, ...]) -> None:
        """Queue a line; what is said in one turn of the loop leaves in one piece."""
        if not self._unsaid and self._transport is not None and not self._is_in_turn:
            self._loop.call_soon(self._flush)
        self._unsaid.append(line)

    def _flush(self) -> None:
        lines, self._unsaid = self._unsaid, []
        if lines and self._transport is not None and not self._transport.is_closing():
            self._transport.write(encoder.encode_lines(lines))

    def refuse(self, what: str) -> None:
        """Say why, and end the connection."""
        self.say(("refused", 0, what))
        self.end()

    def end(self) -> None:
        """Close when all that was said is taken, and in any case soon."""
        self._over = True
        self._flush()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            self._loop.call_later(LINGER_S, self._transport.abort)
