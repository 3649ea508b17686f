"""How lock processes write what they say to each other: frames of the machine, many in one message (P12.18).

One message of the interconnect is a msgpack array of frames, each `[number, heard, kind, fields]`; kind 0 is a frame
without a message. Beside these stand questions and answers of people (P12.21), which are numbered by no channel. What
does not fit its kind's fields is malformed, and ends the connection that it came by.
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from muster.core.locks import messages
from muster.core.locks.messages import Frame, Message
from muster.drivers.interconnect.channel import Codec, MalformedFrame

# Where each is is its number on the wire: new ones come at the end.
KINDS: tuple[type, ...] = (
    messages.Ask, messages.Change, messages.Free, messages.Withdraw, messages.Given, messages.Denied, messages.Wanted,
    messages.NotHere, messages.Find, messages.Found, messages.Dropped, messages.Stopped, messages.Rebuilt,
    messages.Emptied, messages.Copies, messages.Handed, messages.Entries, messages.Marks, messages.Suspect,
    messages.Collect, messages.Edges, messages.Chosen, messages.KernelSaid, messages.KernelWish, messages.KernelHalt,
    messages.KernelHalted, messages.KernelGo, messages.KernelStarted,
)  # fmt: skip
_NUMBERS = {kind: number for number, kind in enumerate(KINDS, 1)}
_DECODERS: tuple[msgspec.msgpack.Decoder[Message], ...] = tuple(msgspec.msgpack.Decoder(kind) for kind in KINDS)
_Written = tuple[int, int, int, msgspec.Raw]


class Frames(msgspec.Struct, array_like=True, tag=1):
    """Frames of the channel between two lock managers, in order."""

    frames: list[_Written]


class Question(msgspec.Struct, array_like=True, tag=2):
    """What somebody wants to see, or to have ended, on another node."""

    number: int
    what: str
    arguments: dict[str, str | int]


class Answer(msgspec.Struct, array_like=True, tag=3):
    """What that node says, as JSON."""

    number: int
    document: bytes


Said = Frames | Question | Answer
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Said)


class Received(NamedTuple):
    """Frames as they have arrived, decoded."""

    frames: list[Frame]


def written(frames: Iterable[Frame]) -> Frames:
    """One message of these frames."""
    encode = _encoder.encode
    return Frames(
        [
            (number, heard, 0, _NOTHING)
            if message is None
            else (number, heard, _NUMBERS[type(message)], msgspec.Raw(encode(message)))
            for number, heard, message in frames
        ]
    )


_NOTHING = msgspec.Raw(_encoder.encode(None))


def _encode(said: Said) -> bytes:
    return _encoder.encode(said)


def _decode(payload: bytes) -> Received | Question | Answer:
    try:
        said = _decoder.decode(payload)
        return Received(list(map(_frame, said.frames))) if isinstance(said, Frames) else said
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedFrame(str(error)) from error


def _frame(each: _Written) -> Frame:
    number, heard, kind, fields = each
    message: Message | None = None
    if kind:
        if not 0 < kind <= len(KINDS):
            raise MalformedFrame(f"a frame of kind {kind}")
        message = _DECODERS[kind - 1].decode(fields)
    return Frame(number, heard, message)


LOCKS = Codec(_encode, _decode)
