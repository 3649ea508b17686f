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
import shlex
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from muster.records.limits import NAME, shown
from muster.ui.client import PART, ControlClient, MusterError, new_identity
from muster.ui.parameter_types import Identity, Seconds, SomePath

EXIT_REFUSED = 1  # the cluster or the command refused, or what was asked for did not come about
EXIT_USAGE = 2  # the command line or a file on it is wrong
EXIT_UNREACHABLE = 3  # no node answers
EXIT_INTERRUPTED = 130

JSON_FORMAT = 1  # of every answer with --json: raised when a key goes or changes its meaning, not when one comes

LOCAL_SOCKET = Path("/var/lib/muster/control.sock")
CLUSTER_FILE = "cluster.json"
SOCKET_FILE = "control.sock"
PROBE_TIMEOUT_S = 2.0
_LONGEST_WAIT_MS = 60_000  # what a node waits at most
_WAIT_SHARE = 0.9  # of the time limit, so that the node's own answer arrives

Document = dict[str, Any]
P = ParamSpec("P")
R = TypeVar("R")


class Unreachable(MusterError):
    """No node answers; exit code 3."""


class Mistaken(MusterError):
    """The command line, or a file named on it, is wrong; exit code 2."""


def exit_code(error: MusterError) -> int:
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
        return Connection(self.sockets(), self.timeout_s, self.at_least, self.identity)

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


def unknown_node(name: str, directory: Path, known: list[str]) -> Mistaken:
    """The error for a node that a development cluster does not have."""
    return Mistaken(
        f"there is no node {name!r}", f"development cluster {directory}", "its nodes are " + ", ".join(known)
    )


def development_homes(directory: Path) -> dict[str, Path]:
    """Each node's home in a development cluster. Raises `Mistaken` where there is none."""
    try:
        described = json.loads((directory / CLUSTER_FILE).read_text())
        names = [str(node["name"]) for node in described["nodes"]]
        if strange := [name for name in names if not NAME.fullmatch(name)]:
            raise ValueError(f"a node cannot be called {shown(strange[0])}")
        return {name: absolute(directory) / "nodes" / name for name in names}
    except FileNotFoundError:
        what = "there is no development cluster"
        next_step = f"make one: {command_about(directory, 'dev up')}"
    except PermissionError:
        what, next_step = "the directory is not readable", "run the command as the user who made the cluster"
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{CLUSTER_FILE} cannot be read: {error}"
        next_step = "remove the directory and bring the cluster up anew"
    raise Mistaken(what, str(directory), next_step)


def absolute(directory: Path) -> Path:
    """The directory without symbolic links. Unlike `Path.resolve`, it has no error of its own for a loop of them."""
    return Path(os.path.realpath(directory))


def command_about(directory: Path, words: str) -> str:
    """The command line `muster WORDS` about a development cluster, ready to be copied into a shell."""
    return f"muster {words} --dir {shlex.quote(str(directory))}"


class Connection:
    """Talks to the first node that answers."""

    def __init__(
        self, sockets: dict[str, Path], timeout_s: float, at_least: int | None = None, identity: str = ""
    ) -> None:
        self._sockets = sockets
        self._identity = identity  # of the command's operations; empty: a new one each time
        self._at_least = at_least
        self._timeout_s = timeout_s
        self._chosen: Path | None = None

    def query(self, query: str, /, **arguments: object) -> Document:
        """The answer to a query. Raises `Unreachable`, or `MusterError` when the node refuses it."""
        if self._at_least is not None:
            return self._query_at_least(self._at_least, query, arguments)
        if len(self._sockets) == 1:
            (socket,) = self._sockets.values()
            return self._ask(socket, self._timeout_s, query, arguments)
        fallback: Document | None = None
        failures: list[str] = []
        for node, socket in self._sockets.items():
            try:
                found = self._ask(socket, min(PROBE_TIMEOUT_S, self._timeout_s), query, arguments)
            except Unreachable as error:
                failures.append(f"{node}: {error.what}")
                continue
            if found.get("node_state", "joined") == "joined":
                return found
            fallback = fallback or found
        if fallback is not None:
            return fallback
        raise Unreachable("no node answers", "; ".join(failures), _how_to_see())

    def _query_at_least(self, index: int, query: str, arguments: dict[str, object]) -> Document:
        """The answer of a node once it has got to commit index `index`; the node waits for it (P9.2)."""
        self._at_least = None  # finding a node that answers needs no index
        try:
            socket = self._operator()
        finally:
            self._at_least = index
        wait_ms = min(_LONGEST_WAIT_MS, int(_WAIT_SHARE * 1000 * self._timeout_s))
        return self._ask(socket, self._timeout_s, query, {**arguments, "at_least": index, "wait_ms": wait_ms})

    def operate(self, operation: str, part: str = "", /, **arguments: object) -> Document:
        """Carry out an operation; returns when it is committed. Raises as `query`.

        `part` tells apart the operations of a command that has several: all have the identity of the command.
        """
        client = ControlClient(self._operator(), self._timeout_s)
        identity = self._identity + (f"{PART}{part}" if part and self._identity else "")
        try:
            answer: Document = client.operate(operation, identity, **arguments)
        except MusterError as error:
            raise _classified(error) from error
        return answer

    def _operator(self) -> Path:
        """The socket of a joined node that answers, or of one that answers, found once."""
        if self._chosen is None:
            if len(self._sockets) == 1:
                (self._chosen,) = self._sockets.values()
            else:
                answered = self.query("status")
                self._chosen = self._sockets[str(answered["node"])]
        return self._chosen

    def _ask(self, socket: Path, timeout_s: float, name: str, arguments: dict[str, object]) -> Document:
        try:
            answer: Document = ControlClient(socket, timeout_s).query(name, **arguments)
        except MusterError as error:
            raise _classified(error) from error
        return answer


def _classified(error: MusterError) -> MusterError:
    """`Unreachable` where there was no answer: the client has kinds of its own for that, a refusal is a plain error."""
    silent = type(error) is not MusterError or isinstance(error.__cause__, MusterError)
    return Unreachable(error.what, error.where, error.next_step) if silent else error


def _how_to_see() -> str:
    return "see what runs: muster dev ls --dir DIR, or on a real machine: systemctl status musterd"


def show_error(error: MusterError) -> None:
    """What, where, next, on standard error."""
    click.secho(f"muster: {_harmless(error.what)}", err=True, fg="red", bold=True)
    if error.where:
        click.echo(f"  where: {_harmless(error.where)}", err=True)
    if error.next_step:
        click.echo(f"  next:  {_harmless(error.next_step)}", err=True)


def _harmless(text: str) -> str:
    """The text without what would steer a terminal: it may quote a command's output or a log."""
    return "".join(character if character.isprintable() or character in "\n\t" else "?" for character in text)


def print_json(document: object, *, line: bool = False) -> None:
    """One document on standard output, stable for programs (docs/JSON.md): indented, or as one line of several."""
    versioned = {"format": JSON_FORMAT, **document} if isinstance(document, dict) else document
    click.echo(json.dumps(versioned, indent=None if line else 2, ensure_ascii=False))


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
        "Name this change, so that repeating it cannot do it twice: once it has been carried out, the same command "
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


def reporting(function: Callable[P, R]) -> Callable[P, R]:
    """A command whose `MusterError` becomes a message and the documented exit code."""

    @wraps(function)
    def wrapper(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            return function(*arguments, **keywords)
        except MusterError as error:
            show_error(error)
            raise SystemExit(exit_code(error)) from error
        except BrokenPipeError:
            raise
        except OSError as error:  # of a file or directory that somebody named, or a full disk
            where = str(error.filename or "the operating system")
            next_step = "check that path, its permissions, and that there is room"
            show_error(MusterError(error.strerror or str(error), where, next_step))
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
    except MusterError:
        return []
    return [group["group"] for group in groups if group["group"].startswith(incomplete)]


def _complete(context: click.Context, kind: str, incomplete: str) -> list[str]:
    found = _asking(context)
    try:
        if kind == "nodes" and found.directory is not None:
            names = list(development_homes(found.directory))
        else:
            names = list(found.connection().query("status")[kind])
    except MusterError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def _asking(context: click.Context) -> Settings:
    """Whom to ask for what a shell completes."""
    found = context.find_object(Settings) or Settings()
    directory = context.params.get("dir") or os.environ.get("MUSTER_DIR")
    found.directory = found.directory or (Path(directory) if directory else None)
    found.timeout_s = 1.0  # a person waits at the prompt
    return found
