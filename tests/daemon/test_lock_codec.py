"""What lock processes say to each other, as bytes (P12.18)."""

import typing

import msgspec
import pytest

from muster.core.locks import messages
from muster.core.locks.messages import Copies, Copy, Edge, Edges, Frame, Handed, Kept, KernelFact, Marks, Reason
from muster.daemon.locks.codec import KINDS, LOCKS, Answer, Question, Received, written
from muster.drivers.interconnect.channel import MalformedFrame

_SAMPLES: dict[object, object] = {
    str: "orders:42", int: 3, bool: True, bytes: b"value", bytes | None: None, Reason: Reason.DEADLOCK,
    messages.Token: (7, 9), tuple[int, ...]: (1, 2), tuple[str, ...]: ("a", "b"), tuple[int, int]: (1, 2),
    tuple[tuple[int, str], ...]: ((0, str(1 << 90)), (1, "6")),
    tuple[KernelFact, ...]: (KernelFact("fs", 7, ((0, "5"),), 2, True),),
}  # fmt: skip


def sample(kind: type) -> object:
    """One of this kind, with something in each field."""
    values: list[object] = []
    for name, field in typing.get_type_hints(kind).items():
        if kind is Copies and name == "copies":
            values.append((sample(Copy), sample(Copy)))
        elif kind is Handed and name == "kept":
            values.append((sample(Kept),))
        elif kind is Edges and name == "edges":
            values.append((sample(Edge),))
        elif kind is Marks and name == "marks":
            values.append(((1, (2, 3)),))
        else:
            values.append(_SAMPLES[field])
    return kind(*values)


def test_p12_18_every_message_comes_out_as_it_went_in() -> None:
    assert set(KINDS) == set(typing.get_args(messages.Message))
    frames = [Frame(number, 5, sample(kind)) for number, kind in enumerate(KINDS, 1)]  # type: ignore[arg-type]
    frames.append(Frame(0, 9, None))
    assert LOCKS.decode(LOCKS.encode(written(frames))) == Received(frames)
    for said in (Question(3, "show", {"limit": 1, "name": "x"}), Answer(3, b"{}")):
        assert LOCKS.decode(LOCKS.encode(said)) == said


ENCODE = msgspec.msgpack.encode


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x92\x01",
        ENCODE([1, [[1, 0, 99, None]]]),
        ENCODE([1, [[1, 0, -1, None]]]),
        ENCODE([1, [[1, 0, 1, ["key"]]]]),
        ENCODE([4, []]),
        ENCODE([1, [["a", 0, 0, None]]]),
    ],
)
def test_p12_18_what_is_no_message_ends_the_connection_and_nothing_else(payload: bytes) -> None:
    with pytest.raises(MalformedFrame):
        LOCKS.decode(payload)
