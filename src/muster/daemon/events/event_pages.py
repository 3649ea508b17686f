"""One answer out of what several nodes know of their events and commands: pure functions (SPEC 8.1)."""

from typing import Any

Document = dict[str, Any]
NEWEST = 2000  # entries of a merged answer


def merged(question: str, answers: dict[str, Document]) -> Document:
    """The answers of the nodes, by name, as one."""
    if question == "events":
        return _groups(answers)
    if question == "event_history":
        found = [each for answer in answers.values() for each in answer.get("occurrences", [])]
        return {"occurrences": sorted(found, key=lambda each: float(each["at_s"]))[-NEWEST:]}
    entries = [{"node": node, **each} for node, answer in answers.items() for each in answer.get("commands", [])]
    running = {node: answer["running"] for node, answer in answers.items() if any(answer.get("running", {}).values())}
    written = {node: answer["written"] for node, answer in answers.items() if answer.get("written")}
    commands = sorted(entries, key=lambda each: float(each["at_s"]))[-NEWEST:]
    return {"commands": commands, "running": running, "written": written}


def _groups(answers: dict[str, Document]) -> Document:
    """Each group once: where it is enabled, and what keeps it from being so elsewhere."""
    found: dict[str, Document] = {}
    for node, answer in answers.items():
        for group in answer.get("groups", []):
            page = found.setdefault(group["group"], _page(group))
            if group["enabled_here"]:
                page["enabled_on"].append(node)
                for event in group["events"]:
                    if event["watched_by"]:
                        page["watched_by"].setdefault(event["event"], {})[node] = event["watched_by"]
            else:
                page["why_not"][node] = group["why_not"]
    watchers = {node: answer.get("watchers", []) for node, answer in answers.items()}
    return {"groups": [found[name] for name in sorted(found)], "watchers": watchers}


def _page(group: Document) -> Document:
    kept = {key: value for key, value in group.items() if key not in ("enabled_here", "why_not", "events")}
    events = [{key: value for key, value in event.items() if key != "watched_by"} for event in group["events"]]
    return kept | {"events": events, "enabled_on": [], "why_not": {}, "watched_by": {}}
