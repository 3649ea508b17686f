"""What needs a person, on a terminal: before everything else, and never below the fold (P10.12)."""

import time

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from muster.setup.harmless import one_line
from muster.setup.nodes import Document

INDENT = "  "
BESIDE_ROWS = 9  # of a page that belong to its heading and to the first of what follows
LEAST_ROWS = 4


def well_words(answer: Document) -> str:
    """How many services and nodes are well."""
    well = answer["well"]
    services = f"{well['services']} of {well['of_services']} services and " if well["of_services"] else ""
    return f"{services}{well['nodes']} of {well['of_nodes']} nodes are well"


def needs_page(answer: Document, columns: int, rows: int | None) -> RenderableType:
    """The line that says how many are well, and what needs a person.

    `columns` is the width; of so many `rows` of a screen only what leaves room for the rest is taken (None: no end).
    """
    needs = answer["needs"]
    if not needs:
        return Text(well_words(answer), style="green")
    count = len(needs) + answer["needs_beyond"]
    is_trouble = any(need["severity"] == "trouble" for need in needs)
    style = "bold red" if is_trouble else "bold yellow"
    parts: list[RenderableType] = [
        Text(f"NEEDS YOU: {count} thing{'s' if count > 1 else ''}; {well_words(answer)}", style=style)
    ]
    left = None if rows is None else max(LEAST_ROWS, rows - BESIDE_ROWS)
    shown = 0
    for need in needs:
        words, next_step = need_lines(need)
        width = max(1, columns - len(INDENT))
        left = left if left is None else left - -(-len(words) // width) - -(-len(next_step) // width)
        if left is not None and left < 0 and shown:
            break
        shown += 1
        parts.append(need_block(need))
    if count > shown:
        parts.append(Text(f"  ... and {count - shown} more: muster status --check", style=style))
    return Group(*parts)


def need_lines(need: Document) -> tuple[str, str]:
    """The sentence with the time since when it holds, and the next step."""
    return f"{one_line(need['words'])}{since(need['since_s'])}", f"next: {one_line(need['next'])}"


def need_block(need: Document) -> RenderableType:
    """Both of them; their further lines are indented, so that none of them passes for one of ours (P10.8)."""
    words, next_step = need_lines(need)
    style = "red" if need["severity"] == "trouble" else "yellow"
    return indented(("! ", Text(words, style=style)), (INDENT, Text(next_step)))


def indented(*lines: tuple[str, Text]) -> RenderableType:
    """Lines, each behind its mark, and what does not fit below its own text."""
    block = Table.grid()
    block.add_column(no_wrap=True)
    block.add_column(overflow="fold")
    for mark, text in lines:
        block.add_row(Text(mark), text)
    return block


def since(at_s: float | None) -> str:
    """Since when, and for how long that is; empty where nobody knows."""
    if not at_s:
        return ""
    now_s = time.time()
    day = "" if now_s - at_s < 12 * 3600 else "%Y-%m-%d "
    return f" (since {time.strftime(day + '%H:%M:%S', time.localtime(at_s))}, for {duration(now_s - at_s)})"


def clock(at_s: float | None) -> str:
    """A moment by the local clock."""
    if not at_s:
        return "unknown time"
    day = "" if abs(time.time() - at_s) < 12 * 3600 else "%Y-%m-%d "
    return time.strftime(day + "%H:%M:%S", time.localtime(at_s))


def duration(seconds: float) -> str:
    """A duration in its two largest units."""
    left = max(0, int(seconds))
    for unit_s, unit, below_s, below in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= unit_s:
            return f"{left // unit_s} {unit} {left % unit_s // below_s} {below}"
    return f"{left} s"


def failures_words(failures: Document | None) -> str:
    """How often a service has failed, since when, and until when that counts."""
    if not failures:
        return ""
    words = []
    if failures["count"]:
        count = failures["count"]
        words.append(
            f"failed {count} time{'s' if count > 1 else ''} since {clock(failures['since_s'])} "
            f"({failures['restarts']} restarts are allowed; counted until {clock(failures['until_s'])})"
        )
    words += [f"given up on {each['node']} until {clock(each['until_s'])}" for each in failures["given_up"]]
    return ", ".join(words)
