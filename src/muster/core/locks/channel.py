"""One channel to one incarnation of a node: each message once and in order, over connections that come and go (P12.7).

Theory of operation. Messages are numbered, and kept until the other end has said that it has them; a new connection
begins with all that are kept. What arrives twice is dropped by its number. A message that comes too early, because the
connection before it lost some, is dropped too: it comes again in its turn. How many are kept is bounded by the locks of
both ends (P12.10).
"""

from collections import deque
from collections.abc import Iterator

from muster.core.locks.messages import Frame, Message

ACKNOWLEDGE_EVERY = 32  # messages heard without sending any


class Channel:
    """This end of it."""

    __slots__ = ("_heard", "_kept", "_last", "_owed", "incarnation")

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self._last = 0  # number of the last message sent
        self._heard = 0  # number of the last one taken in
        self._owed = 0  # taken in since the other end was told
        self._kept: deque[tuple[int, Message]] = deque()

    def sent(self, message: Message) -> Frame:
        """The frame to be sent now, if there is a connection."""
        self._last += 1
        self._kept.append((self._last, message))
        self._owed = 0
        return Frame(self._last, self._heard, message)

    def again(self) -> Iterator[Frame]:
        """What a new connection begins with."""
        self._owed = 0
        for number, message in self._kept:
            yield Frame(number, self._heard, message)

    def taken(self, frame: Frame) -> Message | None:
        """The message of a frame that has come, if it is the next one."""
        while self._kept and self._kept[0][0] <= frame.heard:
            self._kept.popleft()
        if frame.message is None or frame.number != self._heard + 1:
            return None
        self._heard += 1
        self._owed += 1
        return frame.message

    def acknowledgement(self) -> Frame | None:
        """What has to be sent when nothing else is, so that the other end need not keep everything."""
        if self._owed < ACKNOWLEDGE_EVERY:
            return None
        self._owed = 0
        return Frame(0, self._heard, None)
