"""Nodes that come and go: one-time tokens, and the removal of one that has ended (P1.3, P1.4)."""

import hashlib
import secrets
import time

from muster.setup.errors import Mistaken
from muster.setup.nodes import Connection, Document

_POLL_S = 0.05
_LEASE_WAIT_S = 10.0  # for the tombstone of a node that has just ended to be read
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_LONGEST_TOKEN_S = 30 * 24 * 3600


def remove_node(connection: Connection, name: str) -> Document:
    """Remove a node; one that has just ended is waited for until its lease shows that. Raises `ClientError`."""
    deadline = time.monotonic() + _LEASE_WAIT_S
    while time.monotonic() < deadline:
        found = connection.query("nodes")["nodes"].get(name)
        if found is None or found["state"] != "inactive" or not found["live"]:
            break  # the cluster says best what is wrong, and remembers what it has done before
        time.sleep(_POLL_S)
    return connection.operate("remove_node", node=name)


def new_token(lifetime: str) -> tuple[str, str, int]:
    """A token, its verifier, and when it ends (seconds since 1970). The token never leaves this process but as output.

    Raises `Mistaken` for a lifetime that is none.
    """
    seconds = duration_s(lifetime, "--expires")
    if not 0 < seconds <= _LONGEST_TOKEN_S:
        raise Mistaken(f"a token cannot be good for {lifetime}", "--expires", "choose 1s to 30d")
    made = secrets.token_urlsafe(32)
    return made, hashlib.sha256(made.encode()).hexdigest(), int(time.time()) + seconds


def duration_s(text: str, where: str) -> int:
    """Seconds from 90, 90s, 30m, 1h or 2d. Raises `Mistaken`."""
    digits, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS_S else (text, "s")
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 9:
        raise Mistaken(f"{text!r} is no duration", where, "write a number with s, m, h or d, as 30m")
    return int(digits) * _UNITS_S[unit]
