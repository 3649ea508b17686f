"""What numbers may be that come from outside: a type of its own for each kind, so no decoder takes another (P10.7).

MessagePack knows whole numbers up to 64 bits without a sign, JSON of any size, the store's registers up to 63 bits;
and what is counted is counted on. So a number that comes in a message or an operation is bounded far below all of them.
"""

from typing import Annotated

from msgspec import Meta

HIGHEST_NUMBER = 1 << 62
LATEST_S = 1 << 36  # seconds since 1970: every clock and calendar can still say it

Count = Annotated[int, Meta(ge=0, le=HIGHEST_NUMBER)]
"""An index, an incarnation, a generation, a duration."""

CountOrNone = Annotated[int, Meta(ge=-1, le=HIGHEST_NUMBER)]
"""A count, a node or a level, where -1 stands for none."""

Moment = Annotated[int, Meta(ge=0, le=LATEST_S)]
"""Seconds since 1970."""

NodeNumber = Annotated[int, Meta(ge=-1, le=1 << 16)]
"""The id of a node; -1 for none."""

NO_STATUS = -1
ExitStatus = Annotated[int, Meta(ge=NO_STATUS, le=255)]
"""The exit status of a process; `NO_STATUS` where it has none."""
