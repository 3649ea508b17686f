"""Which node a command talks to, and how it ends: options, sockets, exit codes (SPEC 8.1).

A command finds its node by, in this order: `--socket`, `--dir` (a development cluster) with or without `--node`, and
the socket of the machine's own node. Each option has an environment variable, which counts less than anything typed,
and may stand before or after the command's name.
A command that a node runs for a service needs none: it talks to that node.

Without `--node`, the first node that answers and is `joined` is asked; one that answers but is not joined may hold an
old state of the cluster, and is taken only if nobody else answers.
"""

import json
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from muster.client.control import PART, new_identity
from muster.client.errors import ClientError, Unreachable
from muster.setup.errors import Mistaken
from muster.setup.harmless import escaped, harmless_document, within
from muster.setup.nodes import LOCAL_SOCKET, SOCKET_FILE, Connection, Document, development_homes, unknown_node
from muster.ui.parameter_types import Identity, Seconds, SomePath

EXIT_REFUSED = 1  # the cluster or the command refused, or what was asked for did not come about
EXIT_USAGE = 2  # the command line or a file on it is wrong
EXIT_UNREACHABLE = 3  # no node answers
EXIT_INTERRUPTED = 130

JSON_FORMAT = 1  # of every answer with --json: raised when a key goes or changes its meaning, not when one comes


P = ParamSpec("P")
R = TypeVar("R")


def exit_code(error: ClientError) -> int:
    """The documented exit code of an error."""
    if isinstance(error, Unreachable):
        return EXIT_UNREACHABLE
    return EXIT_USAGE if isinstance(error, Mistaken) else EXIT_REFUSED


class Settings:
    """What the options of the command line say about the node to talk to; one a command line."""

    def __init__(self) -> None:
        self.directory: Path | None = None
        self.node: str | None = None
        self.socket: Path | None = None
        self.timeout_s = 30.0
        self.at_least: int | None = None  # commit index that answers to queries must have reached
        self.typed: set[str] = set()  # which of these stand on the command line; the others are of variables
        self.identity = ""  # of the command's operations, where it takes --identity

    def connection(self) -> "Connection":
        """The connection that the options describe. Raises `Mistaken`."""
        return Connection(self.sockets(), self.timeout_s, self.at_least, self.identity, _for_people)

    def sockets(self) -> dict[str, Path]:
        """Control sockets to try, by node name, in this order. Raises `Mistaken`."""
        if self.socket is not None and not ("directory" in self.typed and "socket" not in self.typed):
            return {self.node or str(self.socket): self.socket}
        if self.directory is None:
            if self.node is not None and "node" in self.typed:  # else a service's command is told where it runs
                raise Mistaken(
                    "--node needs the directory of a development cluster",
                    f"--node {self.node}",
                    "add --dir DIR; without it, commands talk to this machine's own node",
                )
            home = os.environ.get("MUSTER_NODE_HOME")  # a command that a node runs talks to that node
            return {"this machine's node": Path(home) / SOCKET_FILE if home else LOCAL_SOCKET}
        homes = development_homes(self.directory)
        if self.node is None:
            return {name: home / SOCKET_FILE for name, home in homes.items()}
        if self.node not in homes:
            raise unknown_node(self.node, self.directory, list(homes))
        return {self.node: homes[self.node] / SOCKET_FILE}


def _for_people(answer: Any) -> Any:
    """A node's answer without what would steer a terminal (P10.8); as it is where the command writes JSON."""
    context = click.get_current_context(silent=True)
    is_json = context is not None and context.params.get("as_json") is True
    return answer if is_json else harmless_document(answer)


def show_error(error: ClientError) -> None:
    """What, where, next, on standard error."""
    click.secho(f"muster: {within(error.what)}", err=True, fg="red", bold=True)
    if error.where:
        click.echo(f"  where: {within(error.where)}", err=True)
    if error.next_step:
        click.echo(f"  next:  {within(error.next_step)}", err=True)


def show_beside(text: str) -> None:
    """A line on standard error beside what is printed: also where that is JSON, whose texts are as they are."""
    click.echo(within(text), err=True)


def print_json(document: object, *, line: bool = False) -> None:
    """One document on standard output, stable for programs (docs/JSON.md): indented, or as one line of several."""
    versioned = {"format": JSON_FORMAT, **document} if isinstance(document, dict) else document
    click.echo(escaped(json.dumps(versioned, indent=None if line else 2, ensure_ascii=False)))


def answer_of(query: str, *, as_json: bool, **arguments: Any) -> Document | None:
    """The node's answer to a query; None if JSON is wanted, and has been printed. Raises `ClientError`."""
    answer = settings().connection().query(query, **arguments)
    if not as_json:
        return answer
    print_json(answer)
    return None


def settings() -> Settings:
    """The settings of the command line at work."""
    return click.get_current_context().ensure_object(Settings)


def _remember(attribute: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(context: click.Context, parameter: click.Parameter, value: object) -> object:
        found = context.ensure_object(Settings)
        is_typed = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        if value is not None and (is_typed or attribute not in found.typed):
            setattr(found, attribute, value)  # what is typed before a command's name counts more than a variable
            found.typed.update([attribute] if is_typed else [])
        return value

    return callback


def connection_options(function: Callable[P, R]) -> Callable[P, R]:
    """The options `--dir`, `--node`, `--socket`, `--timeout` and `--at-least`, before and after a command's name."""
    for option in reversed(
        (
            click.option(
                "--dir",
                type=SomePath(path_type=Path, readable=False),
                envvar="MUSTER_DIR",
                expose_value=False,
                callback=_remember("directory"),
                metavar="DIR",
                help="Talk to the development cluster in DIR.",
            ),
            click.option(
                "--node",
                envvar="MUSTER_NODE",
                expose_value=False,
                callback=_remember("node"),
                metavar="NAME",
                shell_complete=complete_nodes,
                help="Talk to this node of it; without, any that answers.",
            ),
            click.option(
                "--socket",
                type=SomePath(path_type=Path, readable=False),
                envvar="MUSTER_SOCKET",
                expose_value=False,
                callback=_remember("socket"),
                metavar="PATH",
                help=f"Talk to the node with this control socket [{LOCAL_SOCKET}].",
            ),
            click.option(
                "--timeout",
                type=Seconds(min=0.05, max=86_400),
                expose_value=False,
                callback=_remember("timeout_s"),
                metavar="SECONDS",
                help="Wait this long for an answer [30].",
            ),
            click.option(
                "--at-least",
                type=click.IntRange(min=0),
                expose_value=False,
                callback=_remember("at_least"),
                metavar="INDEX",
                help="Answer a query only once the node has got to this commit index.",
            ),
        )
    ):
        function = option(function)
    return function


def json_option(function: Callable[P, R]) -> Callable[P, R]:
    """The option `--json` of every query."""
    return click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")(function)


def change_options(function: Callable[P, R]) -> Callable[P, R]:
    """The options of every command that changes something in the cluster: `--json`, `--identity` (P9.1)."""
    text = (
        "Name this change, so that repeating it cannot do it twice. Once it has been carried out, the same command "
        "with the same ID answers what it did then."
    )
    option = click.option("--identity", type=Identity(), expose_value=False, callback=_keep_identity, help=text)
    return json_option(option(function))


def _keep_identity(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    found = context.ensure_object(Settings)
    found.identity = value or new_identity()
    found.typed.update(["identity"] if value else [])


def show_change(answer: Document, *, as_json: bool, **more: object) -> None:
    """What an operation has done, for people or, with what `more` the command knows, as JSON (docs/JSON.md)."""
    if as_json:
        print_json({**answer, "identity": str(answer["identity"]).partition(PART)[0], **more})
    else:
        click.echo(f"{answer['outcome']} (index {answer['index']})")


def expect_option(function: Callable[P, R]) -> Callable[P, R]:
    """The option `--expect` of changes to the configuration: compare-and-set (SPEC 9.3)."""
    text = "Only if the configuration is at this version (muster config history); refused otherwise."
    option = click.option("--expect", type=click.IntRange(min=0), metavar="VERSION", help=text)
    return option(function)


def override_option(function: Callable[P, R]) -> Callable[P, R]:
    """The option `--override` of planned changes."""
    text = "Do it although subsystems object; without, their reasons are shown and nothing changes."
    return click.option("--override", is_flag=True, help=text)(function)


def overriding(override: bool) -> dict[str, bool]:
    """The argument of an operation that may be objected to; nothing where a node of an older release need not know."""
    return {"override": True} if override else {}


def reporting(function: Callable[P, R]) -> Callable[P, R]:
    """A command whose `ClientError` becomes a message and the documented exit code."""

    @wraps(function)
    def wrapper(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            return function(*arguments, **keywords)
        except ClientError as error:
            show_error(error)
            raise SystemExit(exit_code(error)) from error
        except BrokenPipeError:
            raise
        except OSError as error:  # of a file or directory that somebody named, or a full disk
            where = str(error.filename or "the operating system")
            next_step = "check that path, its permissions, and that there is room"
            show_error(ClientError(error.strerror or str(error), where, next_step))
            raise SystemExit(EXIT_REFUSED) from error

    return wrapper


def complete_nodes(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of nodes for the shell's completion: from the development cluster's file, or from a node that answers."""
    return _complete(context, "nodes", incomplete)


def complete_services(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of services for the shell's completion."""
    return _complete(context, "services", incomplete)


def complete_groups(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of event groups for the shell's completion."""
    try:
        groups = _asking(context).connection().query("events")["groups"]
    except ClientError:
        return []
    return [group["group"] for group in groups if group["group"].startswith(incomplete)]


def _complete(context: click.Context, kind: str, incomplete: str) -> list[str]:
    found = _asking(context)
    try:
        if kind == "nodes" and found.directory is not None:
            names = list(development_homes(found.directory))
        else:
            names = list(found.connection().query("status")[kind])
    except ClientError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def _asking(context: click.Context) -> Settings:
    """Whom to ask for what a shell completes."""
    found = context.find_object(Settings) or Settings()
    directory = context.params.get("dir") or os.environ.get("MUSTER_DIR")
    found.directory = found.directory or (Path(directory) if directory else None)
    found.timeout_s = 1.0  # a person waits at the prompt
    return found
