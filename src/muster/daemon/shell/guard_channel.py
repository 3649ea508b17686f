"""The daemon's end of the channel to its guard (docs/ARCHITECTURE.md): pulses out, the wish to end in.

A panic is told init and runner too, which end the node even where the guard hangs (P7.10).
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable

from muster.records.registers import Life, encode_life
from muster.records.timing import Profile

MAXIMUM_CAUSE_BYTES = 400
MAXIMUM_WORD_BYTES = 1024


class GuardChannel:
    """One packet a message. The guard is never waited for: a full channel loses a pulse, and the next one follows."""

    def __init__(
        self,
        end: socket.socket,
        on_term: Callable[[int], None],
        on_lost: Callable[[], None],
        on_lease: Callable[[int, int, int], None] | None = None,
        init: socket.socket | None = None,
        on_word: Callable[[int, int, str, bool], None] | None = None,
        on_lacking: Callable[[str], None] | None = None,
    ) -> None:
        """`on_term(age_ms)`: the node is to leave, and was told so first that long ago; it may come again.

        `on_lease(renewals, failures, margin_us)`: the guard's account of about a second; margin -1: none known.

        `init` is the channel to init; an image of version 1 has none. `on_word(node, incarnation, text, given)`: the
        kernel's word that an incarnation has stopped, or, not given, why the guard cannot ask for it (P7.15).
        `on_lacking(names)`: processes of the node that have ended and that nobody replaces (P7.19).
        """
        end.setblocking(False)
        self._init = init
        self.on_panic: Callable[[], None] | None = None
        self._end, self._on_term, self._on_lost, self._on_lease = end, on_term, on_lost, on_lease
        self._on_word, self._on_lacking = on_word, on_lacking
        asyncio.get_running_loop().add_reader(end, self._readable)

    def pulse(self) -> None:
        """Say that the event loop still turns."""
        self._send(b"pulse")

    def leave(self) -> None:
        """Say that the graceful leave is complete (SPEC 3.11)."""
        self._send(b"leave")

    def panic(self, cause: str) -> None:
        """Ask for the panic of this node (SPEC 3.12)."""
        self._send(
            b"panic " + cause.encode(errors="replace")[:MAXIMUM_CAUSE_BYTES]
        )  # first: it knows the cause when init ends
        if self._init is not None:
            with contextlib.suppress(OSError):
                self._init.send(b"panic", socket.MSG_DONTWAIT)
        if self.on_panic is not None:
            self.on_panic()

    def watch(self, node: int, incarnation: int, boot_id: bytes, life: Life) -> None:
        """Ask the guard whether an incarnation still runs, now and later (P7.15); asked again when nothing comes."""
        self._send(f"watch {node} {incarnation} {boot_id.hex()} {encode_life(life).hex()}".encode())

    def version(self, active: int) -> None:
        """Say which version is active: what the guard may write (P10.1). An older guard passes over it."""
        self._send(f"version {active}".encode())

    def profile(self, profile: Profile) -> None:
        """Say which profile the cluster has: a guard goes over to its lease and watchdog (P7.35)."""
        self._send(b"profile " + json.dumps(profile._asdict()).encode())

    def close(self) -> None:
        """Stop listening to the guard."""
        asyncio.get_running_loop().remove_reader(self._end)

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self._end.send(message)

    def _readable(self) -> None:
        try:
            message = self._end.recv(MAXIMUM_WORD_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            message = b""
        if message.partition(b" ")[0] == b"term":  # an older guard does not say for how long
            self._on_term(int(message.partition(b" ")[2] or 0))
        elif message.startswith(b"lease "):
            if self._on_lease is not None:
                renewals, failures, margin_us = map(int, message.split()[1:])
                self._on_lease(renewals, failures, margin_us)
        elif message.startswith((b"word ", b"unable ")):
            if self._on_word is not None:
                kind, node, incarnation, text = message.decode(errors="replace").split(" ", 3)
                self._on_word(int(node), int(incarnation), text, kind == "word")
        elif message.startswith(b"lacks "):
            if self._on_lacking is not None:
                self._on_lacking(message.partition(b" ")[2].decode(errors="replace"))
        elif not message:
            self.close()
            self._on_lost()
