"""The daemon's end of the channel to its guard (docs/ARCHITECTURE.md): pulses out, the wish to end in."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

MAXIMUM_CAUSE_BYTES = 400


class GuardChannel:
    """One packet a message. The guard is never waited for: a full channel loses a pulse, and the next one follows."""

    def __init__(
        self,
        end: socket.socket,
        on_term: Callable[[], None],
        on_lost: Callable[[], None],
        on_lease: Callable[[int, int, int], None] | None = None,
    ) -> None:
        """`on_lease(renewals, failures, margin_us)`: the guard's account of about a second; margin -1: none known."""
        end.setblocking(False)
        self._end, self._on_term, self._on_lost, self._on_lease = end, on_term, on_lost, on_lease
        asyncio.get_running_loop().add_reader(end, self._readable)

    def pulse(self) -> None:
        """Say that the event loop still turns."""
        self._send(b"pulse")

    def leave(self) -> None:
        """Say that the graceful leave is complete (SPEC 3.11)."""
        self._send(b"leave")

    def panic(self, cause: str) -> None:
        """Ask for the panic of this node (SPEC 3.12)."""
        self._send(b"panic " + cause.encode()[:MAXIMUM_CAUSE_BYTES])

    def close(self) -> None:
        """Stop listening to the guard."""
        asyncio.get_running_loop().remove_reader(self._end)

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self._end.send(message)

    def _readable(self) -> None:
        try:
            message = self._end.recv(64)
        except BlockingIOError:
            return
        except ConnectionError:
            message = b""
        if message == b"term":
            self._on_term()
        elif message.startswith(b"lease "):
            if self._on_lease is not None:
                renewals, failures, margin_us = map(int, message.split()[1:])
                self._on_lease(renewals, failures, margin_us)
        elif not message:
            self.close()
            self._on_lost()
