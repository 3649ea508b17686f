"""The text form of required levels: `storage:15,locks:20`, or numbers alone (P3.17)."""

from collections.abc import Iterable
from itertools import pairwise

from muster.records.levels import EVENT_MANAGER_LEVEL, MAXIMUM_LEVEL, MEMBERSHIP_LEVEL, Missing, Required
from muster.records.names import NAME, NAME_RULE, shown

MAXIMUM_REQUIRED = 16
NONE = "none"
_FORM = "write NAME:NUMBER, as storage:15, or the NUMBER alone; several with commas"


def parse(text: str) -> tuple[Required, ...]:
    """The required levels, lowest first; nothing for an empty text or `none`. Raises `ValueError` in words."""
    words = text.replace(",", " ").split()
    if words == [NONE]:
        return ()
    if len(words) > MAXIMUM_REQUIRED:
        raise ValueError(f"it names {len(words)} levels, and at most {MAXIMUM_REQUIRED} can be required")
    found = sorted(_read(word) for word in words)
    for lower, higher in pairwise(found):
        if lower.number == higher.number:
            raise ValueError(f"level {lower.number} is named twice: each level is one program's")
    return tuple(found)


def _read(word: str) -> Required:
    name, _, number = word.rpartition(":")
    if not number.isascii() or not number.isdigit() or len(number) > len(str(MAXIMUM_LEVEL)):
        raise ValueError(f"{shown(word)} names no level: {_FORM}")
    if (":" in word) != bool(name) or (name and not NAME.fullmatch(name)):
        raise ValueError(f"{shown(word)} names no program: {_FORM}; a name has {NAME_RULE}")
    level = int(number)
    for own in (MEMBERSHIP_LEVEL, EVENT_MANAGER_LEVEL):
        if level == own.number:
            raise ValueError(f"level {level} is the {own.name}'s, which is part of Muster: every node has it")
    if level > MAXIMUM_LEVEL:
        raise ValueError(f"{shown(word)}: levels are 1 to {MAXIMUM_LEVEL}")
    return Required(level, name)


def text_of(required: Iterable[Required]) -> str:
    """As `parse` reads it."""
    return ",".join(f"{each.name}:{each.number}" if each.name else str(each.number) for each in required) or NONE


def words_of(missing: Iterable[Missing]) -> str:
    """The levels that a node lacks, in words for people."""
    return ", ".join(_words(each) for each in missing)


def _words(each: Missing) -> str:
    words = f"{each.name} (level {each.number})" if each.name else f"level {each.number}"
    return f"{words}, which {each.found} has taken" if each.found else words
