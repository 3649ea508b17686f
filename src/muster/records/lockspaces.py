"""The lockspaces of a cluster as a setting: `orders,invoices`, or `none` (P12.15)."""

import re
from collections.abc import Iterable

from muster.records.names import shown

NONE = "none"
RESERVED = "muster"  # in which Muster itself locks (P6.42)
MAXIMUM_LOCKSPACES = 64
LOCKSPACE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,31}")  # as the rules of locks have it, which know no records
LOCKSPACE_RULE = "1 to 32 characters of a-z, A-Z, 0-9, dot, underscore and hyphen, a letter or digit first"


def parse(text: str) -> tuple[str, ...]:
    """The lockspaces, in order; nothing for an empty text or `none`. Raises `ValueError` in words."""
    words = text.replace(",", " ").split()
    if words == [NONE]:
        return ()
    if len(words) > MAXIMUM_LOCKSPACES:
        raise ValueError(f"it names {len(words)} lockspaces, and a cluster has at most {MAXIMUM_LOCKSPACES}")
    for word in words:
        if not LOCKSPACE.fullmatch(word):
            raise ValueError(f"{shown(word)} cannot be the name of a lockspace: a name has {LOCKSPACE_RULE}")
        if word == NONE:
            raise ValueError(f"{NONE} stands alone: it means that there are no lockspaces")
        if word == RESERVED:
            raise ValueError(f"{RESERVED} is Muster's own lockspace, and there as soon as there is another one")
    return tuple(sorted(set(words)))


def text_of(spaces: Iterable[str]) -> str:
    """As `parse` reads it."""
    return ",".join(spaces) or NONE
