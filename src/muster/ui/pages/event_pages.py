"""Events, their history and the log of commands on a terminal."""

import time
from typing import Any

from rich.console import Group
from rich.text import Text

from muster.setup.harmless import one_line
from muster.ui.pages.screen import _plain as plain
from muster.ui.pages.screen import _table as table
from muster.ui.pages.screen import console

Document = dict[str, Any]


def show_events(answer: Document) -> None:
    """Every group with its events."""
    page = table("GROUP", "EVENT", "WATCHER", "ENABLED ON", "ACTION")
    for group in answer["groups"]:
        enabled = ", ".join(group["enabled_on"]) or next(iter(group["why_not"].values()), "nowhere")
        for position, event in enumerate(group["events"]):
            first = position == 0
            page.add_row(
                plain(group["group"] if first else ""), plain(event["event"]), plain(event["watcher"] or "-"),
                plain(enabled if first else ""), plain(" ".join(event["action"]) or "-"),
            )  # fmt: skip
    if not answer["groups"]:
        console().print(plain("no event groups are defined, and no registered service has a program or a check"))
        return
    console().print(page)
    _show_unanswered(answer)


def show_event(answer: Document, name: str) -> None:
    """One group, or the group of one event, in full."""
    for group in answer["groups"]:
        if group["group"] != name and all(event["event"] != name for event in group["events"]):
            continue
        page = table("KEY", "VALUE")
        page.add_row("group", plain(group["group"]))
        page.add_row("by hand", plain("enabled" if group["enabled_by_hand"] else "disabled"))
        for key in ("nodes", "windows", "service", "on_master"):
            value = group[key]
            page.add_row(key, plain(", ".join(value) if isinstance(value, list) else str(value)))
        page.add_row("enabled on", plain(", ".join(group["enabled_on"]) or "nowhere"))
        for node, why in group["why_not"].items():
            page.add_row(f"not on {node}", plain(why))
        for event in group["events"]:
            page.add_row("event", plain(event["event"]))
            page.add_row("  watcher", plain(event["watcher"] or "-"))
            watched = ", ".join(f"{node} by {who}" for node, who in group["watched_by"].get(event["event"], {}).items())
            page.add_row("  watched", plain(watched or "by nobody"))
            page.add_row("  in", plain("  ".join(f"{key}={value}" for key, value in event["in"].items())))
            page.add_row("  out", plain(" ".join(event["out"])))
            page.add_row("  action", plain(" ".join(event["action"]) or "-"))
        console().print(page)


def show_history(answer: Document) -> None:
    """Every occurrence, and what was made of it."""
    page = table("TIME", "NODE", "EVENT", "OUT", "VERDICT", "RESULT", "TOOK")
    page.columns[0].no_wrap = True
    for each in answer["occurrences"]:
        out = " ".join(f"{key}={value}" for key, value in each["out"].items())
        result = f"{each['result']}: {each['detail']}" if each["detail"] else each["result"]
        took = f"{each['took_ms']} ms" if each["result"] in ("succeeded", "failed", "cancelled") else ""
        page.add_row(
            plain(_clock(each["at_s"])), plain(each["node"]), plain(each["event"]), plain(out[:80]),
            plain(each["verdict"]), plain(result[:80]), plain(took),
        )  # fmt: skip
    console().print(page if answer["occurrences"] else plain("no event has occurred, as far as the nodes remember"))
    _show_unanswered(answer)


def show_log(answer: Document) -> None:
    """The commands of a service."""
    page = table("TIME", "NODE", "COMMAND", "GENERATION", "HOW IT ENDED", "TOOK", "OUTPUT")
    page.columns[0].no_wrap = True
    for each in answer["commands"]:
        action = each["action"] + (f" (attempt {each['attempt']})" if each["attempt"] > 1 else "")
        status = Text(each["status"], style="" if each["succeeded"] else "red")
        took = "" if each["action"] == "exit" else f"{each['duration_ms']} ms"
        lines = each["output"].splitlines()
        page.add_row(
            plain(_clock(each["at_s"])), plain(each["node"]), plain(action), str(each["generation"]), status,
            plain(took), plain("\n".join(lines[-5:])),
        )  # fmt: skip
    parts: list[Any] = (
        [page] if answer["commands"] else [plain("no command of it has been run, as far as is remembered")]
    )
    written = answer.get("written", {})
    for node, now in answer["running"].items():
        says = f", and says: {now['status']}" if now["status"] else ""
        last = "" if written.get(node) else f"; it wrote last:\n{now['output'] or '(nothing)'}"
        parts.append(plain(f"\nrunning on {node}{says}{last}"))
    for node, lines in written.items():
        parts.append(plain(f"\nwhat it has written on {node} (times in UTC):"))
        parts += [plain(one_line(line)) for line in lines]
    console().print(Group(*parts))
    _show_unanswered(answer)


def _show_unanswered(answer: Document) -> None:
    for each in answer["unanswered"]:
        console().print(Text(f"{each['node']} is not in this: {each['why']}", style="yellow"))


def _clock(at_s: float) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(at_s)) + f".{int(at_s * 1000) % 1000:03d}"
