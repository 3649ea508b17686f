"""The daemon's end of the channel to its guard (docs/ARCHITECTURE.md; P7.10, P7.15, P7.19)."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest

from muster.daemon.shell.guard_channel import MAXIMUM_CAUSE_BYTES, GuardChannel


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends, of which nobody waits at the second one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    return ours, theirs


class Heard:
    """What the daemon is told."""

    def __init__(self) -> None:
        self.terms: list[int] = []
        self.words: list[tuple[int, int, str, bool]] = []
        self.lacking: list[str] = []
        self.lost: list[str] = []

    def channel(self, end: socket.socket, init: socket.socket | None = None) -> GuardChannel:
        """The channel that tells it."""
        return GuardChannel(
            end, self.terms.append, lambda: self.lost.append("the guard"), init=init,
            on_word=lambda *word: self.words.append(word), on_lacking=self.lacking.append,
        )  # fmt: skip


def with_ends(scenario: Callable[[socket.socket, socket.socket, socket.socket, socket.socket], None]) -> None:
    """Run the scenario in an event loop with both channels' ends: daemon's, guard's, daemon's, init's."""

    async def run() -> None:
        ours, guard = pair()
        to_init, init = pair()
        with ours, guard, to_init, init:
            scenario(ours, guard, to_init, init)

    asyncio.run(run())


def test_p7_10_a_panic_is_told_the_guard_with_its_cause_and_init_too() -> None:
    def scenario(ours: socket.socket, guard: socket.socket, to_init: socket.socket, init: socket.socket) -> None:
        channel = Heard().channel(ours, to_init)
        panics: list[str] = []
        channel.on_panic = lambda: panics.append("runner")
        channel.panic("x" * 10_000)
        assert guard.recv(20_000) == b"panic " + b"x" * MAXIMUM_CAUSE_BYTES
        assert init.recv(100) == b"panic"
        assert panics == ["runner"]

    with_ends(scenario)


@pytest.mark.parametrize("full", [True, False])
def test_p7_10_init_is_told_of_a_panic_whether_or_not_the_guard_takes_it(full: bool) -> None:
    def scenario(ours: socket.socket, guard: socket.socket, to_init: socket.socket, init: socket.socket) -> None:
        channel = Heard().channel(ours, to_init)
        if full:
            with contextlib.suppress(BlockingIOError):
                while True:
                    ours.send(b"pulse")
        else:
            guard.close()
        channel.pulse()  # is lost, and nothing else happens
        channel.panic("its loop hangs")
        assert init.recv(100) == b"panic"

    with_ends(scenario)


def test_p7_15_that_the_guard_cannot_ask_is_no_word_of_the_kernel() -> None:
    def scenario(ours: socket.socket, guard: socket.socket, _to_init: socket.socket, _init: socket.socket) -> None:
        heard = Heard()
        channel = heard.channel(ours)
        for packet in (
            b"word 2 7 its control group is empty",
            b"unable 3 8 another kernel runs it",
            b"lacks caretaker",
        ):
            guard.send(packet)
            channel._readable()
        assert heard.words == [
            (2, 7, "its control group is empty", True),
            (3, 8, "another kernel runs it", False),
        ]
        assert heard.lacking == ["caretaker"]
        channel._readable()  # nothing is there
        assert not heard.lost
        guard.close()
        channel._readable()
        assert heard.lost == ["the guard"]

    with_ends(scenario)


def test_p4_10_the_wish_to_end_says_for_how_long_it_has_been_there() -> None:
    def scenario(ours: socket.socket, guard: socket.socket, _to_init: socket.socket, _init: socket.socket) -> None:
        heard = Heard()
        channel = heard.channel(ours)
        for packet in (b"term", b"term 1500", b"terms 7", b"something new"):  # an older guard, a newer one
            guard.send(packet)
            channel._readable()
        assert heard.terms == [0, 1500]
        assert not heard.lost

    with_ends(scenario)
