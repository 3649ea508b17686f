"""A plan for people: what a change would start, stop and move (SPEC 8.2)."""

import click

from muster.client.errors import ClientError, Unreachable
from muster.setup.harmless import one_line
from muster.setup.nodes import Connection, Document

_WORDS = {
    "start": "start {service} on {node}",
    "stop": "stop {service} on {node}",
    "recovery": "recover {service} on {node}",
    "register": "register {service} on {node}",
    "stuck": "{service} stays down",
}
_SHOWN_STEPS = 200


def show_plan(answer: Document) -> None:
    """A plan for people: the steps, then what moves."""
    for words in answer.get("assumptions", ()):
        click.secho(f"assumed: {one_line(words)}", fg="yellow")
    for outcome in answer["outcomes"]:
        click.echo(one_line(outcome))
    if not answer["steps"]:
        click.echo("nothing would be started, stopped or moved")
    for number, step in enumerate(answer["steps"][:_SHOWN_STEPS], 1):
        named = {key: one_line(str(value)) for key, value in step.items()}
        words = _WORDS.get(step["action"], "{action} {service} on {node}").format(**named)
        reason = f"  ({one_line(step['reason'])})" if step["reason"] else ""
        click.echo(f"{number:4}  {words}{reason}")
    if len(answer["steps"]) > _SHOWN_STEPS:
        click.echo(f"      ... and {len(answer['steps']) - _SHOWN_STEPS} more: see --json")
    for name, places in answer["changed"].items():
        before, after = (one_line(places[key] or "nowhere") for key in ("before", "after"))
        click.echo(f"{one_line(name)}: {before} -> {after}")
    newly = {step["service"] for step in answer["steps"] if step["action"] == "stuck"}
    for name, cause in answer["stuck"].items():
        how = "would be stuck" if name in newly else "is stuck and would stay so"
        click.secho(f"{one_line(name)} {how}: {one_line(cause)}", fg="red")
    count = answer["unchanged"]
    click.echo(f"{count} service{'' if count == 1 else 's'} would stay as {'it is' if count == 1 else 'they are'}")


def plan_of(connection: Connection, operation: str, **arguments: object) -> Document:
    """What an operation would start, stop and move; where that is refused, only why."""
    try:
        return connection.query("plan", operations=[{"operation": operation, "arguments": arguments}], nodes=[])
    except Unreachable:
        raise
    except ClientError as error:
        return {"refused": error.what}


def show_foreseen(foreseen: Document) -> None:
    """The plan of a preview."""
    if "refused" in foreseen:
        click.secho(f"it would be refused: {one_line(foreseen['refused'])}", fg="red")
    elif foreseen:
        show_plan(foreseen | {"outcomes": []})
