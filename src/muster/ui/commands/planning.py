"""The command `muster plan`, and the previews of commands that change what Muster looks after."""

from pathlib import Path

import click

from muster.setup.nodes import Connection, Document
from muster.ui.options import (
    complete_nodes,
    complete_services,
    connection_options,
    json_option,
    print_json,
    reporting,
    settings,
)
from muster.ui.pages.plan_page import show_plan

__all__ = ["plan", "show_plan"]  # the latter for previews that show one
_nodes_option = {"multiple": True, "metavar": "NODE", "shell_complete": complete_nodes}
_services_option = {"multiple": True, "metavar": "SERVICE", "shell_complete": complete_services}


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--withdraw", help="SERVICE is withdrawn.", **_services_option)  # type: ignore[arg-type]
@click.option("--register", help="SERVICE is registered.", **_services_option)  # type: ignore[arg-type]
@click.option("--deregister", help="SERVICE is de-registered.", **_services_option)  # type: ignore[arg-type]
@click.option("--transfer", multiple=True, metavar="SERVICE[:NODE]", help="SERVICE is moved, to NODE if given.")
@click.option("--clear", help="What SERVICE is stuck on has been fixed.", **_services_option)  # type: ignore[arg-type]
@click.option("--standby", help="NODE goes on standby.", **_nodes_option)  # type: ignore[arg-type]
@click.option("--active", help="The standby of NODE ends.", **_nodes_option)  # type: ignore[arg-type]
@click.option(
    "--end-maintenance", multiple=True, metavar="SUBJECT", help="It ends: `cluster`, `node/NAME` or `service/NAME`."
)
@click.option("--leave", help="NODE leaves gracefully.", **_nodes_option)  # type: ignore[arg-type]
@click.option("--lose", help="NODE is lost, as in a power cut.", **_nodes_option)  # type: ignore[arg-type]
@click.option("--join", help="NODE joins.", **_nodes_option)  # type: ignore[arg-type]
@json_option
@connection_options
@reporting
def plan(file: Path | None, as_json: bool, **changes: tuple[str, ...]) -> None:
    """What a change would start, stop and move, before it happens. Nothing is changed.

    FILE is a service file that would be applied. The running rules decide on a copy of the cluster's state, with
    commands that succeed; changes of nodes come after the others, each when the one before has settled.

    \b
    Examples:
      muster plan services.toml
      muster plan --leave n1
      muster plan --lose n1 --lose n2 --json
      muster plan --standby n0 --transfer web:n2
    """
    connection = settings().connection()
    operations = _file_operation(connection, file) if file is not None else []
    operations += _operations(changes)
    kinds = ("leave", "lose", "join")
    nodes: list[Document] = [{"kind": kind, "node": node} for kind in kinds for node in changes[kind]]
    answer = connection.query("plan", operations=operations, nodes=nodes)
    print_json(answer) if as_json else show_plan(answer)


def _file_operation(connection: Connection, file: Path) -> list[Document]:
    import msgspec

    from muster.ui.commands.services import parents_of, read_service_file

    nodes = tuple(connection.query("nodes")["nodes"])
    services, groups = read_service_file(file, nodes, parents_of(connection.query("services")))
    definitions = [msgspec.to_builtins(definition) for definition in services]
    operations = [_operation("apply", definitions=definitions, withdraw=[])] if definitions else []
    found = [msgspec.to_builtins(group) for group in groups]
    return operations + ([_operation("apply_events", groups=found, withdraw=[])] if found else [])


def _operations(changes: dict[str, tuple[str, ...]]) -> list[Document]:
    found = [_operation("apply", definitions=[], withdraw=list(changes["withdraw"]))] if changes["withdraw"] else []
    for name in ("clear", "register", "deregister"):
        found += [_operation(name, service=service) for service in changes[name]]
    for moved in changes["transfer"]:
        service, _, node = moved.partition(":")
        found.append(_operation("transfer", service=service, target=node))
    found += [_operation("standby", node=node) for node in changes["standby"]]
    found += [_operation("standby", node=node, end=True) for node in changes["active"]]
    for subject in changes["end_maintenance"]:
        kind, _, name = subject.partition("/")
        found.append(_operation("maintain", kind=kind, subject=name, end=True))
    return found


def _operation(operation: str, **arguments: object) -> Document:
    return {"operation": operation, "arguments": arguments}
