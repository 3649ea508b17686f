"""All that the control socket answers: one row each, with the role that may ask. Nothing has a default role (P10.4).

Operations on the cluster have their rows in `records/operations.py`. Here are the queries, and what programs that take
part say on connections of their own. docs/ACCESS.md shows every row (`tests/daemon/test_roles.py` compares them).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple, Protocol

from muster.core.fencing.proofs import proves_by_expiry
from muster.core.node import insight
from muster.daemon.events import event_pages
from muster.daemon.history.happenings import merged, question_of
from muster.daemon.levels.conversation import Conversation
from muster.daemon.shell.daemon import Daemon
from muster.daemon.signs.diagnostics import diagnostics
from muster.daemon.signs.evidence import links
from muster.daemon.socket import configuration_queries as configuration
from muster.daemon.socket import fence_queries, planning, queries
from muster.daemon.socket.queries import NodeView
from muster.daemon.socket.why_node import why_cluster, why_node
from muster.records.access import Role
from muster.records.database import Database
from muster.records.names import shown
from muster.records.operations import OPERATIONS, kind_named
from muster.records.refusal import ControlRefused

Document = dict[str, Any]
Request = dict[str, Any]


class Desk(Protocol):
    """What the rows need of the node that is asked."""

    @property
    def daemon(self) -> Daemon:
        """The shell of the node."""

    @property
    def planning(self) -> asyncio.Lock:
        """Held while a plan is made: one at a time."""

    def view(self) -> NodeView:
        """What the node knows beside the database."""

    def head(self) -> Document:
        """What every answer carries."""

    def pure(self, name: str, arguments: Document) -> Document:
        """The answer to a query that is a `Pure` one. Raises `ControlRefused`."""

    def watch(self) -> AsyncIterator[object]:
        """The status, at once and again whenever it has changed."""


class Pure(NamedTuple):
    """Follows from the replica and what the node sees: `function(database, view, **arguments)`, all of them texts."""

    function: Callable[..., Document]
    arguments: tuple[str, ...] = ()
    is_shared: bool = False  # it grows with the cluster: one answer for all that ask at a time (P8.11)


class Own(NamedTuple):
    """The node itself knows, or finds out; it reads its arguments and refuses wrong ones."""

    function: Callable[[Desk, Document], Awaitable[Document]]


class Stream(NamedTuple):
    """Answered in several lines, until the client or the node ends it."""

    function: Callable[[Desk, Request], AsyncIterator[object] | Conversation]


class Query(NamedTuple):
    """Who may ask a query, and how it is answered."""

    role: Role
    way: Pure | Own | Stream
    is_long: bool = False  # its arguments may be of any length


class Call(NamedTuple):
    """What a program that takes part says of its own level or watcher; nothing of it goes to the master."""

    role: Role
    function: Callable[[Daemon, Document], Document]


async def _timeline(desk: Desk, arguments: Document) -> Document:
    since = arguments.get("since", 0)
    if not isinstance(since, int):
        raise ControlRefused("`since` must be a number", "query timeline", "send a commit index")
    return {"events": desk.daemon.recorder.since(since)}


async def _diagnostics(desk: Desk, _arguments: Document) -> Document:
    return desk.head() | diagnostics(desk.daemon)


async def _links(desk: Desk, _arguments: Document) -> Document:
    return desk.head() | links(desk.daemon)


async def _why(desk: Desk, arguments: Document) -> Document:
    """Why a service, a node or, without a name, the cluster is as it is, with what needs a person about it (P10.12)."""
    database, subject = desk.daemon.node.database, str(arguments.get("service", ""))
    if not subject:
        view = desk.view()
        return queries.head(database, view) | why_cluster(database, view)
    name = subject.removeprefix("node/")
    if subject not in database.services and database.node_named(name) is not None:
        view = desk.view()
        return queries.head(database, view) | why_node(database, view, name)
    answered = await desk.daemon.why.answer(arguments)
    view = desk.view()
    need = view.needs.about(f"service/{subject}")
    answered["needs"] = queries.needs_about(view, f"service/{subject}")
    if need is not None:
        answered["next_step"] = need.next_step
    shown = queries.service(database, view, subject)["service"]
    answered["service"] |= {"failures": shown["failures"], "since_s": shown["since_s"], "held": shown["held"]}
    return queries.head(desk.daemon.node.database, view) | answered


async def _fence_test(desk: Desk, arguments: Document) -> Document:
    return desk.head() | await fence_queries.test(desk.daemon, arguments)


async def _transition_history(desk: Desk, arguments: Document) -> Document:
    return desk.head() | await desk.daemon.history.answer(arguments)


async def _plan(desk: Desk, arguments: Document) -> Document:
    """What a change would do; computed beside the daemon's work, one at a time."""
    change = planning.read_change(arguments)
    async with desk.planning:
        plan = insight.plan(desk.daemon.node)
        names = {config.node: config.name for config in desk.daemon.node.database.nodes.values()}
        answered = desk.head()
        fenced = {names[node] for node in desk.daemon.node.database.fence_plans if node in names}
        observer = desk.daemon.node.observer
        watched = {name for node, name in names.items() if proves_by_expiry(observer.strip.lease(node))}
        assumed = planning.assumptions(
            change, one_machine=desk.daemon.node.setup.one_machine, fenced=fenced, watched=watched
        )  # fmt: skip
        foreseen = await asyncio.to_thread(planning.answer, plan, change, names)
        return answered | foreseen | {"assumptions": assumed}


async def _history(desk: Desk, arguments: Document) -> Document:
    """All that happened, from what all nodes have kept (P10.13)."""
    answers, unanswered = await desk.daemon.gathering.ask("history", question_of(arguments))
    return desk.head() | {"happened": merged(answers), "unanswered": unanswered}


def _gathered(name: str) -> Own:
    """What happened on each node that answers, merged."""

    async def gather(desk: Desk, arguments: Document) -> Document:
        head, subject = desk.head(), arguments.get("name", "")
        if name == "service_log":
            desk.pure("service", arguments)  # refuses an unknown one with a near miss
        elif arguments.keys() - ({"name"} if name == "event_history" else set()) or not isinstance(subject, str):
            raise ControlRefused("it takes no such arguments", f"query {name}", "send none, or an event's `name`")
        answers, unanswered = await desk.daemon.gathering.ask(name, str(subject))
        return head | event_pages.merged(name, answers) | {"unanswered": unanswered}

    return Own(gather)


async def _lock_channels(desk: Desk, _arguments: Document) -> Document:
    return await desk.daemon.locks.channels(desk.daemon.gathering)


def _lock_manager(desk: Desk, request: Request) -> AsyncIterator[object]:
    return desk.daemon.locks.settings(request["arguments"], desk.daemon.changes)


def _watch(desk: Desk, _request: Request) -> AsyncIterator[object]:
    return desk.watch()


def _subsystem(desk: Desk, request: Request) -> Conversation:
    return desk.daemon.subsystems.converse(request["arguments"], request["process"])


def _watcher(desk: Desk, request: Request) -> AsyncIterator[object]:
    return desk.daemon.events.stream(request["arguments"], request["peer"])


QUERIES: dict[str, Query] = {
    "status": Query(Role.OBSERVER, Pure(queries.status, is_shared=True)),
    "services": Query(Role.OBSERVER, Pure(queries.services, is_shared=True)),
    "nodes": Query(Role.OBSERVER, Pure(queries.nodes, is_shared=True)),
    "transitions": Query(Role.OBSERVER, Pure(queries.transitions, is_shared=True)),
    "service": Query(Role.OBSERVER, Pure(queries.service, ("name",))),
    "maintenance": Query(Role.OBSERVER, Pure(queries.maintenance)),
    "fencing": Query(Role.OBSERVER, Pure(fence_queries.fencing)),
    "fence_test": Query(Role.OPERATOR, Own(_fence_test)),
    "authority": Query(Role.OBSERVER, Pure(queries.authority)),
    "config_history": Query(Role.OBSERVER, Pure(configuration.config_history)),
    "config_show": Query(Role.OBSERVER, Pure(configuration.config_show, ("version",))),
    "config_diff": Query(Role.OBSERVER, Pure(configuration.config_diff, ("old", "new"))),
    "config_rollback": Query(Role.OBSERVER, Pure(configuration.config_rollback, ("version",))),
    "upgrade": Query(Role.OBSERVER, Pure(configuration.upgrade_status)),
    "audit": Query(Role.OPERATOR, Pure(configuration.audit)),
    "timeline": Query(Role.OBSERVER, Own(_timeline)),
    "events": Query(Role.OBSERVER, _gathered("events")),
    "event_history": Query(Role.OBSERVER, _gathered("event_history")),
    "service_log": Query(Role.OBSERVER, _gathered("service_log")),
    "history": Query(Role.OPERATOR, Own(_history)),
    "diagnostics": Query(Role.OBSERVER, Own(_diagnostics)),
    "links": Query(Role.OBSERVER, Own(_links)),
    "plan": Query(Role.OBSERVER, Own(_plan), is_long=True),
    "why": Query(Role.OBSERVER, Own(_why)),
    "transition_history": Query(Role.OBSERVER, Own(_transition_history)),
    "watch": Query(Role.OBSERVER, Stream(_watch)),
    "subsystem": Query(Role.OPERATOR, Stream(_subsystem)),
    "watcher": Query(Role.OPERATOR, Stream(_watcher)),
    "lock_manager": Query(Role.ADMINISTRATOR, Stream(_lock_manager)),
    "lock_channels": Query(Role.ADMINISTRATOR, Own(_lock_channels)),
}

CALLS: dict[str, Call] = {
    "acknowledge": Call(Role.OPERATOR, lambda daemon, arguments: daemon.subsystems.acknowledge(arguments)),
    "answer": Call(Role.OPERATOR, lambda daemon, arguments: daemon.subsystems.answer(arguments)),
    "deregister_level": Call(Role.OPERATOR, lambda daemon, arguments: daemon.subsystems.deregister(arguments)),
    "occurred": Call(Role.OPERATOR, lambda daemon, arguments: daemon.events.occurred(arguments)),
}


class Right(NamedTuple):
    """What a request needs."""

    name: str  # of what it asks for, as its row has it
    role: Role
    is_long: bool


def right_of(request: Request) -> Right | None:
    """Who may make a request, by its name; None where nothing has that name."""
    if "query" in request:
        query = QUERIES.get(request["query"])
        return query and Right(request["query"], query.role, query.is_long)
    name = request["operation"]
    if (call := CALLS.get(name)) is not None:
        return Right(name, call.role, is_long=False)
    kind = kind_named(name)
    return Right(kind.name, kind.role, kind.is_long) if kind is not None and kind.role is not None else None


def nothing_called(request: Request) -> ControlRefused:
    """The refusal of a request that asks for what there is not."""
    kind = "operation" if "operation" in request else "query"
    known = list(QUERIES) if kind == "query" else [row.name for row in OPERATIONS if row.role is not None]
    what = f"there is no {kind} {shown(request[kind])}"
    return ControlRefused(what, "control socket", f"use one of: {', '.join(known)}")


def answer(name: str, arguments: Document, database: Database, view: NodeView) -> Document:
    """The answer to a query that follows from the database and `view`.

    Raises `ControlRefused` for an unknown query, argument or subject.
    """
    query = QUERIES.get(name)
    if query is None or not isinstance(query.way, Pure):
        raise nothing_called({"query": name})
    function, allowed, _ = query.way
    unknown = [key for key in arguments if key not in allowed]
    if unknown:
        what = f"query {name!r} takes no argument {unknown[0]!r}"
        raise ControlRefused(what, "control socket", "allowed: " + (", ".join(allowed) or "none"))
    missing = [key for key in allowed if not isinstance(arguments.get(key), str)]
    if missing:
        what = f"query {name!r} needs {missing[0]!r} as text"
        raise ControlRefused(what, "control socket", f"send {missing[0]}")
    return queries.head(database, view) | function(database, view, **arguments)
