"""The one place that cleans what is printed (P10.8): texts of the cluster may hold what somebody else's command wrote.

Escape sequences, control characters and marks that turn the direction of writing would steer the terminal of whoever
looks, or forge lines. Every answer of a node is cleaned as it comes in (`nodes.py`); whatever else is printed
passes the cleaned standard streams. JSON keeps everything, written as escapes.
"""

import io
import re
import sys
from typing import Any

_REPLACEMENT = "?"
_KEPT = "\n\t"
_CONTINUED = "    "
_OF_LIVE_PAGES = re.compile(r"(\x1b\[(?:[0-9;]*m|\?25[hl]|2K|\d*A)|\r)")  # what a page that is drawn anew needs


def harmless(text: str, *, kept: str = _KEPT) -> str:
    """The text without what would steer a terminal; `kept`: control characters that may stay."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in kept else _instead_of(each) for each in text)


def _instead_of(character: str) -> str:
    return " " if character.isspace() else _REPLACEMENT


def one_line(text: str) -> str:
    """The text in one line, for where a second line could be taken for one of ours."""
    return " ".join(harmless(text).split())


def within(text: str) -> str:
    """What is harmless of the text, its further lines indented: so none of them passes for a line of ours."""
    return harmless(text).replace("\n", f"\n{_CONTINUED}")


def harmless_document(found: Any) -> Any:
    """A document with all its texts cleaned, its keys too."""
    if isinstance(found, str):
        return within(found)
    if isinstance(found, list | tuple):
        return [harmless_document(each) for each in found]
    if isinstance(found, dict):
        return {harmless_document(key): harmless_document(value) for key, value in found.items()}
    return found


def escaped(text: str) -> str:
    """JSON that steers no terminal: each character that would is written as an escape, which JSON reads the same."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else _escape(each) for each in text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


class CleanedStream(io.TextIOWrapper):
    """A standard stream that lets through printable text, lines, and on a terminal the styles of our own pages."""

    def write(self, text: str) -> int:
        """Write what is harmless of it."""
        if not self.isatty():
            super().write(harmless(text))
            return len(text)
        parts = _OF_LIVE_PAGES.split(text)
        super().write("".join(part if number % 2 else harmless(part) for number, part in enumerate(parts)))
        return len(text)


def clean_standard_streams() -> None:
    """From now on nothing else reaches the terminal."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:
            stream.flush()
            encoding, errors, by_line = stream.encoding, stream.errors, stream.line_buffering
            cleaned = CleanedStream(stream.detach(), encoding=encoding, errors=errors, line_buffering=by_line)
            setattr(sys, name, cleaned)
