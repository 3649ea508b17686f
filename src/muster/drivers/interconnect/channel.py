"""One connection of the interconnect: TLS 1.3 over memory buffers, frames, and a bounded queue (SPEC 1.6).

A frame is a 4-byte little-endian length and one encoded message; the first frame each way is a `Hello`. Whom to trust
and which connections to keep is the owner's (`mesh.py`); here is what holds for any of them. TLS is not left
to asyncio's transport: that does not tell a server why a handshake failed, and what waits within it can neither be
counted nor taken back.

Nothing here waits or grows: a frame has a largest size (a small one before Hello), a handshake and a frame that has
begun have a time, the queue has a number of frames and of bytes.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple, Protocol, cast

from muster.drivers.certificates.certificates import explain_tls
from muster.drivers.certificates.fields import NoCertificate, key_pin
from muster.records.messages import (
    MAXIMUM_FRAME_BYTES,
    Hello,
    MalformedMessage,
    Message,
    decode_message,
    encode_message,
)

LENGTH_BYTES = 4
MAXIMUM_HELLO_BYTES = 1024  # of a frame from somebody who has not said Hello
MAXIMUM_QUEUE_BYTES = 2 * MAXIMUM_FRAME_BYTES  # a whole database, and what happens while it is on its way
MAXIMUM_QUEUE_FRAMES = 4096
_RECORD_BYTES = 16_384  # largest plaintext of one TLS record
_PIECE_BYTES = 128 * 1024  # encrypted at once; more waits as it is, where it can still be counted
MAXIMUM_CAUSE_CHARACTERS = 300  # of an exception, in a cause
_MS_PER_S = 1000
VISITOR_GREETING = b"MUSTER-ENROL 1\n"  # of a machine that is no node yet, where a node begins its handshake (P1.4)
_TCP_INFO_BYTES = 104  # struct tcp_info of every kernel since 2.6
_TCP_UNACKED, _TCP_UNACKED_OFFSET = struct.Struct("=I"), 24


class Cause(NamedTuple):
    """Why a connection ended: `kind` is a fixed phrase (what is told once), `text` the particulars and the advice."""

    kind: str
    text: str


class MalformedFrame(ValueError):
    """What a codec cannot read."""


class Codec(NamedTuple):
    """How what is said on open connections is written: by daemons, or between other processes of nodes (P12.18)."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]  # raises `MalformedFrame`, or `MalformedMessage`


DAEMONS = Codec(encode_message, decode_message)


class Phase(Enum):
    """Life of a connection."""

    CONNECTING = 0
    HANDSHAKE = 1
    GREETING = 2  # encrypted and authenticated; the other's Hello is awaited
    OPEN = 3
    CLOSED = 4


class ChannelOwner(Protocol):
    """What a channel needs of the interconnect, and tells it."""

    loop: asyncio.AbstractEventLoop
    handshake_ms: int  # for the handshake with Hello, and longest silence within a frame
    codec: Codec  # of the frames after Hello

    def silence_ms(self) -> int:
        """How long sent bytes may stay unacknowledged before the kernel ends the connection."""

    def divert(self, channel: "Channel", transport: asyncio.Transport, data: bytes) -> None:
        """It is no node that has connected: `transport`, which has received `data`, is the owner's from now on."""

    def admit(self, channel: "Channel") -> bool:
        """A TCP connection is made; false if it had to be ended at once."""

    def channel_secured(self, channel: "Channel") -> None:
        """TLS is up, and the other's certificate is of the authority."""

    def channel_greeted(self, channel: "Channel", hello: Hello) -> None:
        """The other's Hello is here."""

    def channel_received(self, channel: "Channel", message: Message) -> None:
        """A message on an open connection."""

    def channel_ended(self, channel: "Channel", before: Phase, cause: Cause) -> None:
        """The connection has ended, from phase `before`; called once."""

    def discard(self, channel: "Channel") -> None:
        """The channel's socket is closed."""


class Channel(asyncio.Protocol):
    """One TCP connection: TLS 1.3 over memory buffers, frames, and a bounded queue. Whom to trust is its owner's."""

    def __init__(
        self, owner: ChannelOwner, context: ssl.SSLContext, expected: int | None, address: str, path: int = 0
    ) -> None:
        self.expected = expected  # node that this end meant to reach; none for an accepted connection
        self.address = address  # of the other end
        self.path = path  # number of the address, of this node or the other, that the connection was made to
        self.heard_s = 0.0  # loop time when anything came last
        self.node: int | None = expected
        self.incarnation = 0
        self.phase = Phase.CONNECTING
        self.greeted = False  # this end has said Hello
        self.opened_s = 0.0  # loop time when it opened
        self.ended: asyncio.Future[Cause] = owner.loop.create_future()
        self.gone = asyncio.Event()  # the socket is closed, or was never there
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=expected is None)
        self._inbox = bytearray()
        self._received_bytes = 0
        self._queue: deque[memoryview] = deque()
        self._queue_bytes = 0
        self._flush_due = False
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def outgoing(self) -> bool:
        """Whether this end has made the connection."""
        return self.expected is not None

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for the peer, in this process."""
        transport = self._transport
        return self._queue_bytes + (transport.get_write_buffer_size() if transport else 0)

    # --- Called by asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TCP connection is up."""
        self._transport = cast("asyncio.Transport", transport)
        if self.phase is Phase.CLOSED:  # the attempt was given up at the last moment
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=2 * _PIECE_BYTES)
        if not self.outgoing:
            self.address = str(self._transport.get_extra_info("peername")[0])
        handle = self._transport.get_extra_info("socket")
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._owner.silence_ms())
        self.phase = Phase.HANDSHAKE
        self._arm(self._late)
        if self._owner.admit(self) and self.outgoing:
            self._shake_hands()

    def data_received(self, data: bytes) -> None:
        """Encrypted bytes from the other end. What goes wrong with them ends this connection alone (P10.6)."""
        try:
            self._take_in(data)
        except Exception as error:  # noqa: BLE001 - of whatever kind
            text = f"what it sent was more than this node could take: {error!r}"[:MAXIMUM_CAUSE_CHARACTERS]
            self.end(Cause("defect", f"{text}; report this as a defect"), at_once=True)

    def _take_in(self, data: bytes) -> None:
        if self.phase is Phase.CLOSED:
            return
        if not (self.outgoing or self._received_bytes) and data[:1] == VISITOR_GREETING[:1]:
            self._hand_over(data)
            return
        self._received_bytes += len(data)
        self.heard_s = self._owner.loop.time()
        self._incoming.write(data)
        if self.phase is Phase.HANDSHAKE:
            self._shake_hands()
        if self.phase in {Phase.GREETING, Phase.OPEN}:
            self._read()

    def eof_received(self) -> None:
        """The other end writes no more; asyncio closes the connection."""
        self.end(self._closed_by_peer())

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self.end(Cause("broken", f"the connection broke: {exc}") if exc else self._closed_by_peer())
        self._disarm()
        self.gone.set()
        self._owner.discard(self)

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket takes more again."""
        self._paused = False
        self._flush()

    # --- Called by the owner ---

    def acknowledged(self) -> bool | None:
        """Whether the other kernel has acknowledged all that was sent, or something of it of late; None: not open.

        A stopped process does not keep its kernel from that; a machine without power, or a cut cable, does.
        """
        if self._transport is None or self.phase is not Phase.OPEN:
            return None
        handle = self._transport.get_extra_info("socket")
        try:
            info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return None
        (unacknowledged,) = _TCP_UNACKED.unpack_from(info, _TCP_UNACKED_OFFSET)
        return bool(unacknowledged == 0)

    def peer_certificate(self) -> Mapping[str, object] | None:
        """The other's verified certificate."""
        return cast("Mapping[str, object] | None", self._tls.getpeercert())

    def peer_key(self) -> str:
        """The pin of the other's public key (`certificate_fields.key_pin`); empty where it cannot be read."""
        try:
            return key_pin(self._tls.getpeercert(binary_form=True) or b"")
        except NoCertificate:
            return ""

    def say_hello(self, hello: Hello) -> None:
        """Send this end's first frame."""
        self.greeted = True
        self.send(encode_message(hello))
        self._flush()

    def open(self, incarnation: int) -> None:
        """The owner accepts the other end, which is this one of its node."""
        self.phase, self.incarnation = Phase.OPEN, incarnation
        self.opened_s = self._owner.loop.time()
        self._disarm()

    def send(self, payload: bytes) -> bool:
        """Queue a frame; false when the queue is full. What is queued in one turn of the loop leaves in one piece."""
        if self.phase is Phase.CLOSED:
            return False
        frame = memoryview(len(payload).to_bytes(LENGTH_BYTES, "little") + payload)
        if len(self._queue) >= MAXIMUM_QUEUE_FRAMES or self._queue_bytes + len(frame) > MAXIMUM_QUEUE_BYTES:
            return False
        self._queue.append(frame)
        self._queue_bytes += len(frame)
        if not (self._flush_due or self._paused):
            self._flush_due = True
            self._owner.loop.call_soon(self._flush)
        return True

    def end(self, cause: Cause, *, at_once: bool = False) -> None:
        """Close, for `cause`. The second cause of an end is not one. `at_once` discards what is not sent yet."""
        if self.phase is Phase.CLOSED:
            return
        before, self.phase = self.phase, Phase.CLOSED
        self._disarm()
        self._queue.clear()
        self._queue_bytes = 0
        self._inbox = bytearray()
        if not self.ended.done():  # a cancelled waiter cancels it
            self.ended.set_result(cause)
        transport = self._transport
        if transport is None:
            self.gone.set()
        elif at_once:
            transport.abort()
        else:
            with contextlib.suppress(ssl.SSLError):  # also: the other end has not said goodbye yet
                self._tls.unwrap()
            self._write_encrypted()
            transport.close()
            self._arm(transport.abort)  # should the other end not take the rest
        self._owner.channel_ended(self, before, cause)

    # --- Inside ---

    def _hand_over(self, data: bytes) -> None:
        """The first byte is of no TLS handshake: let the owner see who it is. This is no channel any more."""
        transport, self._transport = self._transport, None
        self.phase = Phase.CLOSED
        self._disarm()
        self.gone.set()
        self._owner.discard(self)
        if transport is not None:
            self._owner.divert(self, transport, data)

    def _arm(self, action: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self._owner.loop.call_later(self._owner.handshake_ms / _MS_PER_S, action)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        bound_ms = self._owner.handshake_ms
        text = f"no handshake and Hello within {bound_ms} ms; see whether it is overloaded, or no node at all"
        self.end(Cause("handshake not completed", text), at_once=True)

    def _closed_by_peer(self) -> Cause:
        if self.phase is Phase.OPEN:
            return Cause("closed", "it closed the connection")
        return Cause("closed early", "it closed the connection before it said Hello; its log tells why")

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._write_encrypted()
        except ssl.SSLError as error:
            self._write_encrypted()
            self.end(_tls_cause(error))
        else:
            self._write_encrypted()
            self.phase = Phase.GREETING
            self._owner.channel_secured(self)

    def _read(self) -> None:
        try:
            while self.phase is not Phase.CLOSED and (self._incoming.pending or self._tls.pending()):
                data = self._tls.read(_RECORD_BYTES)
                if not data:
                    self.end(self._closed_by_peer())
                    return
                self._inbox += data
                self._take_frames()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.end(_tls_cause(error))
            return
        self._write_encrypted()  # TLS itself may have something to say
        if self._inbox and self._timer is None:
            self._watch_for_stall(-1)

    def _take_frames(self) -> None:
        inbox, position = self._inbox, 0
        while self.phase is not Phase.CLOSED and len(inbox) - position >= LENGTH_BYTES:
            start = position + LENGTH_BYTES
            length = int.from_bytes(inbox[position:start], "little")
            limit = MAXIMUM_FRAME_BYTES if self.phase is Phase.OPEN else MAXIMUM_HELLO_BYTES
            if length > limit:
                text = f"a frame of {length} bytes, where {limit} are allowed; is it of another release?"
                self.end(Cause("oversized frame", text))
                return
            if len(inbox) - start < length:
                break
            position = start + length
            with memoryview(inbox) as view:
                payload = bytes(view[start:position])
            self._take(payload)
        if position:
            del inbox[:position]

    def _take(self, payload: bytes) -> None:
        try:
            message = self._owner.codec.decode(payload) if self.phase is Phase.OPEN else decode_message(payload)
        except (MalformedMessage, MalformedFrame) as error:
            self.end(Cause("malformed frame", f"a frame that is no message ({error}); is it of another release?"))
            return
        if isinstance(message, Hello) == (self.phase is Phase.OPEN):
            what = type(message).__name__
            text = f"{what} out of turn: a connection begins with one Hello; is it of another release?"
            self.end(Cause("message out of turn", text))
        elif isinstance(message, Hello):
            self._owner.channel_greeted(self, message)
        else:
            self._owner.channel_received(self, message)

    def _watch_for_stall(self, received_bytes: int) -> None:
        """End a connection that stops in the middle of a frame: its other end will not find the way back."""
        self._timer = None
        if not self._inbox or self.phase is not Phase.OPEN:
            return
        if received_bytes == self._received_bytes:
            text = f"it stopped within a frame for {self._owner.handshake_ms} ms; is its machine overloaded?"
            self.end(Cause("stalled", text), at_once=True)
            return
        seen = self._received_bytes
        self._arm(lambda: self._watch_for_stall(seen))

    def _flush(self) -> None:
        self._flush_due = False
        while self._queue and not self._paused and self.phase is not Phase.CLOSED:
            batch = self._next_piece()
            view = memoryview(batch)
            try:
                while view:
                    view = view[self._tls.write(view) :]
            except ssl.SSLError as error:
                self.end(_tls_cause(error), at_once=True)
                return
            self._write_encrypted()

    def _next_piece(self) -> bytearray:
        """Take up to `_PIECE_BYTES` off the queue."""
        piece = bytearray()
        while self._queue and len(piece) < _PIECE_BYTES:
            frame, room = self._queue[0], _PIECE_BYTES - len(piece)
            piece += frame[:room]
            if len(frame) > room:
                self._queue[0] = frame[room:]
            else:
                self._queue.popleft()
        self._queue_bytes -= len(piece)
        return piece

    def _write_encrypted(self) -> None:
        if self._outgoing.pending and self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._outgoing.read())


def _tls_cause(error: ssl.SSLError) -> Cause:
    return Cause(f"TLS {error.reason} {getattr(error, 'verify_code', '')}", explain_tls(error))
