"""What this node's control socket answers: queries from the replica, operations through the core (SPEC 8.1)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from muster.core.effects import Reply
from muster.core.operations.operations import digest_of
from muster.daemon.events import event_pages
from muster.daemon.shell.daemon import Daemon
from muster.daemon.signs.diagnostics import diagnostics
from muster.daemon.signs.evidence import conditions, links
from muster.daemon.socket import configuration_queries as administration
from muster.daemon.socket import planning, queries
from muster.daemon.socket.access import Gate
from muster.daemon.socket.operations import read_operation
from muster.daemon.socket.shared_answers import SharedAnswers
from muster.daemon.socket.times_of_entries import TimesOfEntries
from muster.daemon.socket.why_node import why_node
from muster.drivers.certificates.certificates import CertificateRefused
from muster.records.access import Author
from muster.records.names import shown
from muster.records.nodes import RotateAuthority
from muster.records.operations import OperationRequest
from muster.records.refusal import ControlRefused

SUBSYSTEM_OPERATIONS = ("acknowledge", "answer", "deregister_level")
ABOUT_ALL = ("status", "services", "nodes", "transitions")  # queries that grow with the cluster (P8.11)
OPERATION_TIMEOUT_S = 20.0
LONGEST_WAIT_MS = 60_000  # of a query for the commit index that it names
DEFAULT_WAIT_MS = 10_000
_LOOK_AGAIN_S = 0.25

Document = dict[str, Any]


class Requests:
    """Answers the requests of one node's clients."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._planning = asyncio.Lock()
        self._times = TimesOfEntries(daemon.node)
        self._shared = SharedAnswers(lambda name: self._answer(name, {}))
        node = daemon.node
        self.gate = Gate(node.setup.name, lambda: node.database.cluster.groups, daemon.note)

    def handle(self, request: Document) -> Any:
        """The answer to one request: awaitable, iterator for `watch`, or a conversation. Raises `ControlRefused`."""
        author = self.gate.admit(request)
        if request.get("operation") in SUBSYSTEM_OPERATIONS:
            return self._of_a_program(request["operation"], request["arguments"])
        if request.get("operation") == "occurred":
            return self._occurred(request["arguments"])
        if "operation" in request:
            return self._operate(request["operation"], request["identity"], request["arguments"], author)
        if request["query"] == "watch":
            return self._watch()
        if request["query"] == "subsystem":
            return self._daemon.subsystems.converse(request["arguments"], request["process"])
        if request["query"] == "watcher":
            return self._daemon.events.stream(request["arguments"], request["peer"])
        return self._query(request["query"], request["arguments"])

    async def _occurred(self, arguments: Document) -> Document:
        return self._daemon.events.occurred(arguments)

    async def _of_a_program(self, name: str, arguments: Document) -> Document:
        subsystems = self._daemon.subsystems
        if name == "answer":
            return subsystems.answer(arguments)
        return subsystems.acknowledge(arguments) if name == "acknowledge" else subsystems.deregister(arguments)

    async def _query(self, name: str, arguments: Document) -> Document | msgspec.Raw:
        await self._reach(arguments.pop("at_least", 0), arguments.pop("wait_ms", DEFAULT_WAIT_MS))
        if name == "timeline":
            since = arguments.get("since", 0)
            if not isinstance(since, int):
                raise ControlRefused("`since` must be a number", "query timeline", "send a commit index")
            return {"events": self._daemon.recorder.since(since)}
        if name in ("events", "event_history", "service_log"):
            return queries.head(self._daemon.node.database, self._view()) | await self._of_events(name, arguments)
        if name == "diagnostics":
            return queries.head(self._daemon.node.database, self._view()) | diagnostics(self._daemon)
        if name == "links":
            return queries.head(self._daemon.node.database, self._view()) | links(self._daemon)
        if name == "plan":
            return await self._plan(arguments)
        if name == "why":
            return await self._why(arguments)
        if name == "transition_history":
            return queries.head(self._daemon.node.database, self._view()) | await self._daemon.history.answer(arguments)
        if name in ABOUT_ALL and not arguments:
            return (await self._shared.get(name)).encoded
        return self._answer(name, arguments)

    async def _of_events(self, name: str, arguments: Document) -> Document:
        """What happened on each node that answers, merged."""
        subject = arguments.get("name", "")
        if name == "service_log":
            self._answer("service", arguments)  # refuses an unknown one with a near miss
        elif arguments:
            raise ControlRefused("it takes no arguments", f"query {name}", "send none")
        answers, unanswered = await self._daemon.gathering.ask(name, str(subject))
        return event_pages.merged(name, answers) | {"unanswered": unanswered}

    async def _why(self, arguments: Document) -> Document:
        """Why a service or a node is as it is, with what needs a person about it (P10.12)."""
        database, subject = self._daemon.node.database, str(arguments.get("service", ""))
        name = subject.removeprefix("node/")
        if subject not in database.services and database.node_named(name) is not None:
            view = self._view()
            return queries.head(database, view) | why_node(database, view, name)
        answered = await self._daemon.why.answer(arguments)
        view = self._view()
        need = view.needs.about(f"service/{subject}")
        if need is not None:
            needs = [each for each in queries.needs(database, view)["needs"] if each["subject"] == need.subject]
            answered |= {"next_step": need.next_step, "needs": needs}
        else:
            answered["needs"] = []
        return queries.head(self._daemon.node.database, view) | answered

    async def _plan(self, arguments: Document) -> Document:
        """What a change would do; computed beside the daemon's work, one at a time."""
        change = planning.read_change(arguments)
        async with self._planning:
            plan = self._daemon.node.plan()
            database = self._daemon.node.database
            names = {config.node: config.name for config in database.nodes.values()}
            answered = queries.head(database, self._view())
            return answered | await asyncio.to_thread(planning.answer, plan, change, names)

    async def _reach(self, index: object, wait_ms: object) -> None:
        """Wait until this node's confirmed replica has got to `index` (P9.2). Raises `ControlRefused`."""
        limits = {"at_least": (index, 1 << 62), "wait_ms": (wait_ms, LONGEST_WAIT_MS)}
        for key, (value, limit) in limits.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
                raise ControlRefused(f"`{key}` must be a number from 0 to {limit}", "query", "correct it and ask again")
        assert isinstance(index, int)
        assert isinstance(wait_ms, int)
        node, loop = self._daemon.node, asyncio.get_running_loop()
        deadline_s = loop.time() + wait_ms / 1000
        with self._daemon.changes() as changed:
            while index and (not node.confirmed or node.database.index < index):
                changed.clear()
                remaining_s = deadline_s - loop.time()
                if remaining_s <= 0:
                    what = f"this node has not got to index {index} within {wait_ms} ms; it is at {node.database.index}"
                    next_step = "see `muster status` for what keeps it, ask another node, or wait longer"
                    raise ControlRefused(what, f"node {node.setup.name}", next_step)
                try:
                    await asyncio.wait_for(changed.wait(), min(remaining_s, _LOOK_AGAIN_S))
                except TimeoutError:
                    continue

    async def _watch(self) -> AsyncIterator[msgspec.Raw]:
        """The status, at once and again whenever it has changed."""
        last = 0
        with self._daemon.changes() as changed:
            while True:
                changed.clear()
                status = await self._shared.get("status")
                if status.number != last:
                    last = status.number
                    yield status.encoded
                await changed.wait()

    def _answer(self, name: str, arguments: Document) -> Document:
        return queries.answer(name, arguments, self._daemon.node.database, self._view(), administration.QUERIES)

    def _view(self) -> queries.NodeView:
        node = self._daemon.node
        master = node.master
        return queries.NodeView(
            node=node.me,
            incarnation=node.incarnation,
            master=-1 if master is None else master,
            term=node.term,
            trouble=node.trouble,
            links=node.heard(),
            live=frozenset(config for config in node.database.nodes if node.is_live(config)),
            running=tuple(s.name for s in node.database.services.values() if s.node == node.me),
            conditions={other: (found[0], found[1]) for other, found in conditions(self._daemon).items()},
            waited_for=node.waited_for(),
            last_words=node.last_words,
            age_ms=node.age_ms,
            barred=self._daemon.barred(),
            refused=tuple(self.gate.refused),
            waiting={each.node: each for each in node.required_levels()},
            unable=node.unable_to_lead(),
            awaited=node.places_awaited(),
            fullness=node.fullness(),
            needs=self._daemon.needs(),
            at_s=self._times.at_s,
            holds_key=self._daemon.keys.holds_all(node.database.cluster),
            behind_rotation=node.behind_rotation(),
        )

    async def _rotate(self, identity: str, arguments: Document, where: str, author: Author) -> Reply | None:
        """Begin a rotation: this node makes the new authority (P1.7)."""
        restart = arguments.get("restart", False)
        if not isinstance(restart, bool) or set(arguments) - {"restart"}:
            raise ControlRefused("it takes `restart`, true or false, and nothing else", where, "correct it")
        try:
            return await self._daemon.certification.rotate(
                identity, restart=restart, timeout_s=OPERATION_TIMEOUT_S, author=author
            )
        except (CertificateRefused, OSError) as error:
            raise ControlRefused(f"the new authority cannot be made: {error}", where, "see this node's log") from error

    async def _operate(self, name: str, identity: str, arguments: Document, author: Author) -> Document:
        where = f"operation {name}"
        operation: OperationRequest
        if name == "rotate_authority":
            operation = RotateAuthority("", arguments.get("restart", False))
            reply = await self._rotate(identity, arguments, where, author)
        else:
            operation = read_operation(name, arguments)
            reply = await self._daemon.operate(identity, operation, OPERATION_TIMEOUT_S, author)
        if reply is None:
            raise ControlRefused(
                f"no master has decided it within {OPERATION_TIMEOUT_S:.0f} s; it may still be carried out",
                where,
                f"see `muster status`; asked again as {shown(identity)[1:-1]} (--identity) it cannot be done twice",
            )
        if reply.refused:
            self.gate.note(author, name, f"refused: {reply.outcome}")
            raise ControlRefused(reply.outcome, where, "see `muster status`")
        self._check_repeated(identity, operation, where)
        head = queries.head(self._daemon.node.database, self._view())
        return {**head, "outcome": reply.outcome, "index": reply.index, "identity": identity}

    def _check_repeated(self, identity: str, operation: OperationRequest, where: str) -> None:
        """Refuse to pass the outcome of another operation off as this one's (P9.1). Nothing has run then."""
        done = self._daemon.node.database.operations.get(identity)
        if done is not None and done.asked and done.asked != digest_of(operation):
            what = (
                f"the identity {shown(identity)[1:-1]} is that of another operation, carried out at index {done.index} "
                f"({shown(done.outcome)[1:-1]}); nothing was done now"
            )
            raise ControlRefused(what, where, "give each operation an identity of its own; see `muster audit`")
