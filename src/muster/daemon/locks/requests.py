"""What clients of the lock process say and are told: lines of JSON, arrays that begin with what they are (P12.20).

    ["hello", {"name": TEXT, "process": PID}]           first, with descriptors (pidfds) of the holder's processes
    ["lock", REF, SPACE, NAME, MODE, NO_QUEUE, TIMEOUT_MS]
    ["convert", REF, LOCK, MODE, NO_QUEUE, TIMEOUT_MS, VALUE]
    ["unlock", REF, LOCK, VALUE]
    ["cancel", REF, OTHER]                              of the request OTHER, which is answered by that
    ["show", REF, {"space", "name", "prefix", "after", "limit"}]
    ["break", REF, {"space", "name", "confirmed"}]

REF is a number of the client's choice, for the answer; a VALUE is base64 or null; TIMEOUT_MS 0 waits for ever. Answers:

    ["welcome", {...}]
    ["granted", REF, LOCK, MODE, EPOCH, COUNTER, VALUE, VALID]
    ["ended", REF, REASON]                              not granted, in one word
    ["done", REF]                                       unlocked, or asked to be cancelled
    ["refused", REF, WHAT]                              nothing was done; REF 0: of the connection itself
    ["answer", REF, {...}]
    ["blocking", LOCK, MODE]                            somebody waits for what this lock holds
    ["end", WHY]                                        the holder is to end, with all that it runs
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

MAXIMUM_LINE_BYTES = 64 * 1024
MAXIMUM_HELLO_BYTES = 4096
MAXIMUM_WAIT_MS = 7 * 24 * 3600 * 1000
Ref = Annotated[int, Meta(ge=1, le=1 << 53)]
LockNumber = Annotated[int, Meta(ge=0, le=1 << 62)]
Wait = Annotated[int, Meta(ge=0, le=MAXIMUM_WAIT_MS)]
Text = Annotated[str, Meta(max_length=1024)]


class Greeting(Struct, frozen=True, forbid_unknown_fields=True):
    """What a client says about itself, for people: nothing follows from it."""

    name: Annotated[str, Meta(max_length=64)] = ""
    process: Annotated[int, Meta(ge=0, le=1 << 31)] = 0


class Hello(Struct, array_like=True, tag="hello"):
    """The first line."""

    greeting: Greeting


class LockRequest(Struct, array_like=True, tag="lock", gc=False):
    """A new lock."""

    ref: Ref
    space: Text
    name: Text
    mode: Annotated[int, Meta(ge=-99, le=99)]
    no_queue: bool
    timeout_ms: Wait


class Convert(Struct, array_like=True, tag="convert", gc=False):
    """Another mode for a lock."""

    ref: Ref
    lock: LockNumber
    mode: Annotated[int, Meta(ge=-99, le=99)]
    no_queue: bool
    timeout_ms: Wait
    value: bytes | None


class Unlock(Struct, array_like=True, tag="unlock", gc=False):
    """The lock is no more."""

    ref: Ref
    lock: LockNumber
    value: bytes | None


class Cancel(Struct, array_like=True, tag="cancel", gc=False):
    """End the wait of another request."""

    ref: Ref
    other: Ref


class WantedLocks(Struct, frozen=True, forbid_unknown_fields=True):
    """Which locks somebody wants to see."""

    space: Text = ""
    name: Text = ""
    prefix: Text = ""
    after: Text = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Show(Struct, array_like=True, tag="show"):
    """See what is locked."""

    ref: Ref
    wanted: WantedLocks


class Broken(Struct, frozen=True, forbid_unknown_fields=True):
    """Whose holders are to end; `confirmed`: they are dead, by the word of who asks."""

    space: Text
    name: Text
    confirmed: bool = False


class Break(Struct, array_like=True, tag="break"):
    """End the holders."""

    ref: Ref
    broken: Broken


OfLocks = LockRequest | Convert | Unlock | Cancel
Request = OfLocks | Show | Break
hello_decoder = msgspec.json.Decoder(Hello)
decoder = msgspec.json.Decoder(Request)
encoder = msgspec.json.Encoder()
