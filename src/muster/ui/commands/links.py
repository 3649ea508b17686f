"""`muster links`: who hears whom, and who would survive (SPEC 7.4)."""

import click

from muster.setup.nodes import Document
from muster.ui.options import answer_of, connection_options, json_option, reporting


@click.command()
@json_option
@connection_options
@reporting
def links(as_json: bool) -> None:
    """Who hears whom on the interconnect, from every node's own account in the store.

    A link counts only if both ends hear each other. Where some have failed, the best fully connected set of nodes
    survives; shown is which one that is and why, before anything happens and while it does.

    \b
    Examples:
      muster links --dir /tmp/try
      muster links --json | jq '.outside'
    """
    answer = answer_of("links", as_json=as_json)
    if answer is None:
        return
    for line in page(answer):
        click.echo(line)


def page(answer: Document) -> list[str]:
    """The matrix, and the surviving set with its reasons."""
    matrix = answer["matrix"]
    names = list(matrix)
    widths = {name: max(len(name), 4) for name in names}
    first = max(len(name) for name in [*names, "HEARS"])
    lines = [f"{answer['cluster']}  (as {answer['node']} sees it; row hears column)", ""]
    lines.append(
        "  ".join(["HEARS".ljust(first), *(name.ljust(widths[name]) for name in names), "OWN LINKS  VIEW AGE"])
    )
    for name, row in matrix.items():
        cells = [_cell(name, other, row).ljust(widths[other]) for other in names]
        age = f"{row['view_age_ms'] / 1000:.1f} s" if row["live"] else "silent"
        lines.append("  ".join([name.ljust(first), *cells, f"{row['own_links']:<9}  {age}"]).rstrip())
    lines.append("")
    for name, paths in answer.get("paths", {}).items():
        if len(paths) > 1:
            states = ", ".join(f"{path['address']} {path['state']}" for path in paths)
            lines.append(f"{answer['node']} to {name}: {states}")
    if not answer["surviving"]:
        return [*lines, "no member is live"]
    lines.append(f"surviving set: {', '.join(answer['surviving'])}")
    if not answer["broken"]:
        lines.append("  every member hears every other: nobody is outside")
    lines += [f"  link {a} - {b} is broken" for a, b in answer["broken"]]
    lines += [f"  {each['node']} is outside: {each['reason']}" for each in answer["outside"]]
    return lines


def _cell(name: str, other: str, row: Document) -> str:
    if name == other:
        return "."
    if not row["live"]:
        return "?"
    return "yes" if other in row["hears"] else "NO"
