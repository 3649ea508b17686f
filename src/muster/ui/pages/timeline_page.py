"""The pages of `muster timeline`. Imported only when a person looks."""

from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from muster.setup.harmless import harmless
from muster.setup.nodes import Document

MS_PER_S = 1000
DAY_MS = 24 * 60 * 60 * MS_PER_S
_COLOURS = {"acknowledged": "green", "forced out": "red", "proof of death": "red", "subsystem hung": "red"}


def overview_page(answer: Document, now_s: float) -> RenderableType:
    """The page of `muster timeline`: one row a transition. `now_s` is the reader's clock, seconds since 1970."""
    if not answer["history"]:
        return Group(Text("no transition is on record"), *_unanswered(answer))
    table = _table("TRANSITION", "NODE", "KIND", "WHEN", "TOOK", "OUTCOME", "CAUSE")
    for found in answer["history"]:
        took, cause = _duration(found["took_ms"]), _harmless(found["cause"])
        table.add_row(
            str(found["id"]), found["node"], found["kind"], _when(found["age_ms"], now_s), took, found["outcome"], cause
        )
    return Group(table, *_unanswered(answer))


def account_page(answer: Document, now_s: float) -> RenderableType:
    """The page of `muster timeline ID`: what it was, what happened, what each step waited for."""
    steps = _table("LEVEL", "BARRIER", "TOOK", "WAITED FOR", "NO ACKNOWLEDGEMENT ON RECORD")
    steps.columns[0].no_wrap, steps.columns[0].overflow = True, "ellipsis"  # no word of a level's name begins a line
    for step in answer["steps"]:
        level = f"{step['level']} {step['level_name']}".rstrip()
        took = _duration(step["took_ms"]) or "at work"
        waited = f"{step['waited_for']} ({_duration(step['waited_ms'])})" if step["waited_for"] else ""
        steps.add_row(_harmless(level), str(step["barrier"]), took, waited, ", ".join(step["missing"]))
    rows = _table("TIME", "INDEX", "NODE", "EVENT", "LEVEL", "")
    for row in answer["account"]:
        at = "" if row["time_ms"] is None else f"{row['time_ms']:.1f}"
        level = "" if row["level"] is None else f"{row['level']}.{row['barrier']}"
        event = Text(row["event"], style=_COLOURS.get(row["event"], ""))
        after = f"after {_duration(row['after_ms'])}" if row["after_ms"] is not None else ""
        by = f"(by {row['recorded_by']})" if row["recorded_by"] else ""
        detail = " ".join(part for part in (after, by, row["detail"]) if part)
        rows.add_row(Text(at, justify="right"), str(row["index"]), row["node"], event, level, _harmless(detail))
    parts: list[RenderableType] = [*_heading(answer["transition"], now_s), Text(), rows]
    if answer["steps"]:
        parts += [Text(), steps]
    if answer["omitted"]:
        parts.append(Text(f"{answer['omitted']} events are left out: records are bounded", style="yellow"))
    return Group(*parts, *_unanswered(answer))


def _heading(found: Document, now_s: float) -> list[Text]:
    took = f" in {_duration(found['took_ms'])}" if found["took_ms"] is not None else ""
    lines = [Text.assemble((f"{found['node']} {found['kind']}", "bold"), f"  transition {found['id']}: ")]
    lines[0].append(f"{found['outcome']}{took}")
    by = f" by {found['opened_by']} in term {found['term']}, at index {found['index']}" if found["opened_by"] else ""
    when = _when(found["age_ms"], now_s)
    lines.append(Text(f"opened {when}{by}" if when or by else "nobody who answers saw it open"))
    for key, words in (("cause", "cause"), ("proof", "proof of death"), ("replaces", "replaces transition")):
        if found[key]:
            lines.append(_harmless(f"{words}: {found[key]}"))
    if found["replaced_by"]:
        lines.append(Text(f"replaced by transition {found['replaced_by']}", style="yellow"))
    return lines


def _unanswered(answer: Document) -> list[Text]:
    return [Text(f"not from {each['node']}: {each['why']}", style="yellow") for each in answer["unanswered"]]


def _when(age_ms: float | None, now_s: float) -> str:
    """The reader's local time of an event; empty where it is not known."""
    if age_ms is None:
        return ""
    moment = datetime.fromtimestamp(now_s - age_ms / MS_PER_S).astimezone()
    today = age_ms < DAY_MS and moment.date() == datetime.fromtimestamp(now_s).astimezone().date()
    return f"{moment:%H:%M:%S}" if today else f"{moment:%Y-%m-%d %H:%M:%S}"


def _duration(duration_ms: float | None) -> str:
    if duration_ms is None:
        return ""
    return f"{duration_ms:.1f} ms" if duration_ms < MS_PER_S else f"{duration_ms / MS_PER_S:.2f} s"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _harmless(text: str) -> Text:
    """Text as it is: what looks like markup is none, and what would steer a terminal is left out."""
    return Text(harmless(text, kept=""))
