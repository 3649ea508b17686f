"""The commands of docs/THREE_MACHINES.md, to be carried out as they stand there."""

import re
from pathlib import Path
from typing import NamedTuple

from lab.machines import ROOT

PAGE = ROOT / "docs/THREE_MACHINES.md"
_BLOCK = re.compile(r"(?ms)^```sh (\S+)\n(.*?)^```$")
_HEADING = re.compile(r"(?m)^## (\S.*)$")


class Block(NamedTuple):
    """What is typed at once, and where."""

    where: str  # a machine, or `each`, `upgrade`, `removal`: all of them, one after the other
    script: str
    heading: str


def blocks(page: Path = PAGE) -> list[Block]:
    """All of them, in order. Raises `OSError`."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        headings = [each[1] for each in _HEADING.finditer(text, 0, match.start())]
        found.append(Block(match[1], match[2], headings[-1] if headings else ""))
    return found
