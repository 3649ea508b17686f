"""The commands `muster fence`: how nodes are turned off from outside, and what came of it (P7.22-P7.29)."""

import os
import sys
from pathlib import Path

import click

from muster.client.errors import ClientError
from muster.setup import fencing
from muster.setup.errors import Mistaken
from muster.setup.nodes import LOCAL_SOCKET, Document, development_homes, unknown_node
from muster.ui.options import (
    change_options,
    complete_nodes,
    connection_options,
    json_option,
    print_json,
    reporting,
    settings,
    show_change,
)
from muster.ui.parameter_types import Seconds

MS_PER_S = 1000


@click.group()
@connection_options
def fence() -> None:
    """Prove the death of a silent machine without a person: by agents that cut its power (docs/FENCING.md).

    For stores of scope shared, where each node is a machine of its own.

    \b
    In this order:
      muster fence add board1 --agent fence_ipmilan ip=192.0.2.11 username=muster --secret password
      muster fence secret board1 password        on each node, as the user that it runs as
      muster fence method n1 power --device board1
      muster fence test n1
    """


def _pairs(words: tuple[str, ...], where: str) -> list[tuple[str, str]]:
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise Mistaken(f"{word!r} is no parameter", where, "write NAME=VALUE")
        found.append((name, value))
    return found


@fence.command()
@click.argument("name", metavar="DEVICE")
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--agent", required=True, metavar="PROGRAM", help="As fence_ipmilan, or the path of another program.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME", help="A parameter that homes keep: a password.")
@click.option("--from", "askers", multiple=True, metavar="NODE", shell_complete=complete_nodes, help="Who reaches it.")
@click.option("--limit", "limit_s", type=Seconds(min=1, max=600), default=30.0, show_default=True, metavar="SECONDS",
              help="How long a call may take.")  # fmt: skip
@click.option("--unchecked", is_flag=True, help="Do not ask the agent, here, which parameters it knows.")
@change_options
@connection_options
@reporting
def add(
    name: str, parameters: tuple[str, ...], agent: str, secrets: tuple[str, ...], askers: tuple[str, ...],
    limit_s: float, unchecked: bool, as_json: bool,
) -> None:  # fmt: skip
    """Define a fence device, or change it.

    Its parameters are compared with what the agent says of itself on this machine. No secret is given here: name it
    with --secret, and put its value into each node's home with `muster fence secret`.

    \b
    Example:
      muster fence add pdu --agent fence_apc_snmp ip=192.0.2.5 --secret community --from n1 --from n2
    """
    given = _pairs(parameters, "muster fence add")
    connection = settings().connection()
    connection.query("fencing")  # nothing is called where no node could be told
    if not unchecked:
        fencing.check(agent, dict(given), secrets)
    answer = connection.operate(
        "set_fence_device", name=name, agent=agent, parameters=[list(pair) for pair in given], secrets=list(secrets),
        askers=list(askers), timeout_ms=int(limit_s * MS_PER_S),
    )  # fmt: skip
    show_change(answer, as_json=as_json)


@fence.command()
@click.argument("name", metavar="DEVICE")
@change_options
@connection_options
@reporting
def remove(name: str, as_json: bool) -> None:
    """Forget a fence device that no node is fenced by."""
    show_change(settings().connection().operate("remove_fence_device", name=name), as_json=as_json)


@fence.command()
@click.argument("name", metavar="DEVICE")
@click.argument("secret", metavar="NAME")
@json_option
@connection_options
@reporting
def secret(name: str, secret: str, as_json: bool) -> None:
    """Put a secret of a device into this node's home: asked for, or read from standard input.

    It is kept in the file fence/DEVICE of the home, and goes nowhere else. Only the node's user may read it.

    \b
    Examples:
      muster fence secret board1 password
      muster fence secret board1 password < /root/board1.password
    """
    devices = settings().connection().query("fencing")["devices"]
    if secret not in devices.get(name, {"secrets": ()})["secrets"]:
        listed = ", ".join(f"{device}: {each}" for device in devices for each in devices[device]["secrets"])
        where = f"muster fence secret {name} {secret}"
        raise Mistaken("no fence device has such a secret", where, f"there are: {listed or 'none'}")
    if sys.stdin.isatty():
        value = click.prompt(f"{secret} of {name}", hide_input=True, err=True)
    else:
        value = sys.stdin.readline().rstrip("\r\n")
    kept = fencing.keep_secret(_home(), name, secret, value)
    if as_json:
        print_json({"device": name, "secret": secret, "file": str(kept)})
    else:
        click.echo(f"kept in {kept}")


def _home() -> Path:
    """The home of the node that the command is about."""
    found = settings()
    if found.directory is not None:
        homes = development_homes(found.directory)
        if found.node is None:
            what = "it does not say into which node's home"
            raise Mistaken(what, "muster fence secret --dir", f"add --node, one of {', '.join(homes)}")
        if found.node not in homes:
            raise unknown_node(found.node, found.directory, list(homes))
        return homes[found.node]
    home = os.environ.get("MUSTER_NODE_HOME")
    return Path(home) if home else (found.socket or LOCAL_SOCKET).parent


@fence.command()
@click.argument("node_name", metavar="NODE", shell_complete=complete_nodes)
@click.argument("name", metavar="METHOD")
@click.option("--device", "devices", multiple=True, metavar="DEVICE[:NAME=VALUE,...]",
              help="A device, and which of its outlets; all of a method must say that they are off.")  # fmt: skip
@click.option("--action", type=click.Choice(["reboot", "off"]), default="reboot", show_default=True,
              help="Turned on again once its death is recorded, or left off.")  # fmt: skip
@click.option("--first", is_flag=True, help="Before the other methods; else behind them.")
@click.option("--remove", "removes", is_flag=True, help="Forget this method.")
@change_options
@connection_options
@reporting
def method(
    node_name: str, name: str, devices: tuple[str, ...], action: str, first: bool, removes: bool, as_json: bool
) -> None:
    """Say how NODE is fenced: METHODs are tried in their order; a name that it has already is replaced in its place.

    \b
    Examples:
      muster fence method n1 power --device board1
      muster fence method n1 outlets --device pdu-a:plug=3 --device pdu-b:plug=3
      muster fence method n1 power --remove
    """
    steps = [_step(each) for each in devices]
    connection = settings().connection()
    known = connection.query("fencing")["nodes"].get(node_name, {"methods": []})["methods"]
    before = [[each["name"], each["action"], _steps_of(each)] for each in known]
    if removes:
        if not any(each[0] == name for each in before):
            listed = ", ".join(str(each[0]) for each in before) or "none"
            raise Mistaken(f"{node_name} has no method {name!r}", "muster fence method", f"it has: {listed}")
        after = [each for each in before if each[0] != name]
    else:
        if not devices:
            raise Mistaken("it does not say by which device", "muster fence method", "add --device DEVICE")
        fresh = [name, action, steps]
        after = [fresh if each[0] == name else each for each in before]
        if fresh not in after:
            after = [fresh, *after] if first else [*after, fresh]
    show_change(connection.operate("set_fence_methods", node=node_name, methods=after), as_json=as_json)


def _steps_of(document: Document) -> list[object]:
    return [[step["device"], [list(pair) for pair in step["parameters"].items()]] for step in document["devices"]]


def _step(word: str) -> list[object]:
    device, _, rest = word.partition(":")
    pairs = _pairs(tuple(rest.split(",")) if rest else (), "muster fence method --device")
    return [device, [list(pair) for pair in pairs]]


@fence.command("list")
@json_option
@connection_options
@reporting
def list_fencing(as_json: bool) -> None:
    """How each node is fenced, what proves its death, and which devices are in trouble."""
    answer = settings().connection().query("fencing")
    if as_json:
        print_json(answer)
        return
    for name, each in answer["nodes"].items():
        state = ", in quarantine" if each["quarantined"] else ""
        click.echo(f"{name}: if it falls silent its death is proven by {each['proofs']}{state}")
        for number, each_method in enumerate(each["methods"], start=1):
            steps = ", ".join(_step_words(step) for step in each_method["devices"])
            click.echo(f"  {number}. {each_method['name']} ({each_method['action']}): {steps}")
        if request := each["request"]:
            asked = request["asked_of"] or "nobody yet"
            what = f"to be turned {request['action']} by method {request['method']}, asked of {asked}"
            click.echo(f"  request {request['number']}: {what}: {request['cause']}")
    for name, device in answer["devices"].items():
        secrets = f", secrets {' '.join(device['secrets'])}" if device["secrets"] else ""
        told = " ".join(f"{key}={value}" for key, value in device["parameters"].items())
        reach = f", from {' '.join(device['from'])}" if device["from"] else ""
        click.echo(f"device {name}: {device['agent']} {told}{secrets}{reach}".rstrip())
        for node, why in device["troubles"].items():
            click.echo(f"  {node} cannot use it: {why}")
    if not answer["devices"]:
        click.echo("no fence device is defined: see muster fence --help")


def _step_words(step: Document) -> str:
    told = " ".join(f"{key}={value}" for key, value in step["parameters"].items())
    return f"{step['device']} {told}".rstrip()


@fence.command("test")
@click.argument("name", metavar="DEVICE|NODE")
@json_option
@connection_options
@reporting
def try_out(name: str, as_json: bool) -> None:
    """Try a device, or all devices by which a node is fenced: the node that answers calls them.

    It calls `monitor`, and of a node `status`: nothing is turned off or on. Each node has its own way to a device:
    --socket or --node says which one tries.
    """
    answer = settings().connection().query("fence_test", name=name)
    if as_json:
        print_json(answer)
    else:
        for call in answer["calls"]:
            words = (f"says {call['says']}" if call["says"] else "works") if call["works"] else call["detail"]
            click.echo(f"{call['device']}, {call['action']}, from {answer['by']}: {words}")
    if not all(call["works"] for call in answer["calls"]):
        raise ClientError("a call has failed", f"muster fence test {name}", "correct what it says, and try again")


@fence.command()
@click.argument("name", metavar="[NODE]", required=False, shell_complete=complete_nodes)
@json_option
@connection_options
@reporting
def history(name: str | None, as_json: bool) -> None:
    """What was asked of fence agents lately, about each node or one, and what became of it."""
    answer = settings().connection().query("fencing")
    nodes = answer["nodes"]
    if name is not None and name not in nodes:
        raise Mistaken(f"there is no node {name!r}", "muster fence history", f"there are: {', '.join(nodes)}")
    chosen = {each: nodes[each]["history"] for each in nodes if name in (None, each)}
    if as_json:
        print_json({key: answer[key] for key in answer if key not in ("nodes", "devices")} | {"history": chosen})
        return
    lines = [(past["index"], node, past) for node, found in chosen.items() for past in found]
    for _, node, past in sorted(lines, key=lambda line: (line[0], line[1])):
        by = f", asked of {past['asked_of']}" if past["asked_of"] else ""
        detail = f": {past['detail']}" if past["detail"] else ""
        words = f"{node} to be turned {past['action']}, method {past['method']}{by}: {past['outcome']}{detail}"
        click.echo(f"entry {past['index']}, request {past['number']}: {words}")
    if not lines:
        click.echo("nothing was asked of a fence agent")


@fence.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.option("--cause", default="", help="Why; shown in status and history.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@change_options
@connection_options
@reporting
def now(name: str, cause: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Cut NODE's power now, whether or not it lives. It is forced out once the agent's own status says off.

    What runs there is lost and starts elsewhere. Gracefully it goes by `muster node leave`.
    """
    connection = settings().connection()
    nodes = connection.query("fencing")["nodes"]
    if name not in nodes:
        raise Mistaken(f"there is no node {name!r}", "muster fence now", f"there are: {', '.join(nodes)}")
    methods = [each["name"] for each in nodes[name]["methods"]]
    held = connection.query("nodes")["nodes"][name]["services"]
    what = f"{name} would be turned off by {', '.join(methods) or 'nothing: it has no method'}; it runs "
    what += ", ".join(held) or "no service"
    if dry_run:
        if as_json:
            print_json({"node": name, "methods": methods, "services": held, "dry_run": True})
        else:
            click.echo(what)
        return
    if not yes:
        _ask(what, as_json=as_json)
    show_change(connection.operate("fence_now", node=name, cause=cause), as_json=as_json)


def _ask(what: str, *, as_json: bool) -> None:
    """Return if somebody says yes. Raises `ClientError`."""
    if as_json:
        raise Mistaken("a program cannot be asked", "muster fence now --json", "add --yes; what it does says --dry-run")
    click.echo(what)
    why = "nobody said yes"
    try:
        if click.confirm("Cut its power?"):
            return
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo()
        why = "nobody is there who could say yes"
    raise ClientError(f"{why}: nothing was changed", "muster fence now", "add --yes to do it unasked")


@fence.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@change_options
@connection_options
@reporting
def release(name: str, as_json: bool) -> None:
    """End the quarantine of NODE, which was fenced too often within an hour: it may join again."""
    show_change(settings().connection().operate("release_node", node=name), as_json=as_json)
