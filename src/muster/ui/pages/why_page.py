"""What `muster why` shows on a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from muster.setup.harmless import one_line
from muster.setup.nodes import Document
from muster.ui.pages.needs_page import failures_words, indented, need_block


def present_page(answer: Document, *, whole: bool) -> Group:
    """Why the service is where it is now, or why it is not running, and what to do. `whole`: not of one node alone."""
    parts: list[RenderableType] = [_plain(answer["summary"], "bold"), *_needs(answer)]
    if not answer["is_master"]:
        warning = f"no master answers: this is what {answer['answered_by']} knows, as of entry {answer['as_of']}"
        parts.append(_plain(warning, "yellow"))
    decision = answer["decision"]
    if decision is not None:
        parts += [Text(), _plain(_heading(decision)), _nodes(decision["nodes"])]
    if decision is not None and _gist(decision["nodes"]) == _gist(answer["nodes"]):
        if whole:
            parts += [Text(), Text("Placed now, it would go there again, by the same rules.", style="dim")]
    elif answer["nodes"]:
        here = answer["service"]["node"] or answer["service"]["state"] != "de-registered"
        title = "If it were placed now:" if here else "Where it could go:"
        parts += [Text(), Text(title), _nodes(answer["nodes"])]
    if whole and (failed := failures_words(answer["service"].get("failures"))):
        parts += [Text(), _plain(f"It {failed}.")]
    if whole and (token := answer["service"].get("token")):  # a node of an earlier release does not say
        parts += [Text(), Text(f"Its owner's token is {token}: no owner before had one as high.", style="dim")]
    if whole and (decider := answer.get("decider")):
        parts += [Text(), _plain(decider_words(decider))]
    if answer["rules"] and whole:
        parts += [Text(), _rules(answer["rules"])]
    if answer["next_step"]:
        parts += [Text(), indented(("next: ", _plain(answer["next_step"])))]
    return Group(*parts)


def decider_words(decider: Document) -> str:
    """Who decides on services, and by which grant of the decision lock."""
    if decider["node"] is None:
        return f"The master decides on services: {decider['cause']}."
    grant = "-".join(str(number) for number in decider["grant"])
    return f"{decider['node']} decides on services, by grant {grant} of the decision lock."


def _needs(answer: Document) -> list[RenderableType]:
    """What needs a person about it, unless the summary says that already."""
    others = [need for need in answer.get("needs", ()) if need["words"] != answer["summary"]]
    return [need_block(need) for need in others]


def node_page(answer: Document) -> Group:
    """Why a node is as it is, what it holds, and what to do; or all that needs a person in the cluster."""
    parts: list[RenderableType] = [_plain(answer["summary"], "bold"), *_needs(answer), Text(), _rules(answer["rules"])]
    if answer["services"]:
        table = _table("SERVICE", "HERE")
        for each in answer["services"]:
            table.add_row(_plain(each["service"]), _plain(each["words"]))
        parts += [Text(), table]
    if answer["next_step"] and answer["subject"]["kind"] == "node":  # of the cluster each need has its own
        parts += [Text(), indented(("next: ", _plain(answer["next_step"])))]
    return Group(*parts)


def past_page(answer: Document) -> Group:
    """The recent decisions, newest first."""
    if not answer["past"]:
        words = f"no node that answers remembers a decision about {answer['service']['name']}"
        return Group(_plain(words), *_unheard(answer))
    parts: list[RenderableType] = []
    for decision in answer["past"]:
        parts += [_plain(_heading(decision), "bold"), _nodes(decision["nodes"]), Text()]
    return Group(*parts, *_unheard(answer))


def decision_page(answer: Document, decision: Document) -> Group:
    """One decision of the past."""
    return Group(_plain(_heading(decision), "bold"), _nodes(decision["nodes"]), *_unheard(answer))


def _plain(text: str, style: str = "") -> Text:
    return Text(one_line(text), style=style)


def _heading(decision: Document) -> str:
    return f"Entry {decision['index']}, {_age(decision['age_ms'])} ago: {decision['cause']}"


def _age(age_ms: int) -> str:
    seconds = age_ms / 1000
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.1f} s"


def _nodes(verdicts: list[Document]) -> Table:
    table = _table("NODE", "VERDICT", "RULE", "WHY")
    for each in verdicts:
        verdict, style = ("possible", "") if each["possible"] else ("no", "red")
        if each["chosen"]:
            verdict, style = "chosen", "green"
        table.add_row(_plain(each["node"]), Text(verdict, style=style), _plain(each["rule"]), _plain(each["words"]))
    return table


def _rules(rules: list[Document]) -> Table:
    table = _table("RULE", "", "WHAT IT SAYS")
    for each in rules:
        mark = Text("ok", style="green") if each["holds"] else Text("no", style="red")
        table.add_row(_plain(each["rule"]), mark, _plain(each["words"]))
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _gist(verdicts: list[Document]) -> list[tuple[str, str, bool]]:
    return [(each["node"], each["rule"], each["chosen"]) for each in verdicts]


def _unheard(answer: Document) -> list[Text]:
    return [_plain(f"not heard: {each['node']}: {each['why']}", "yellow") for each in answer["unanswered"]]
