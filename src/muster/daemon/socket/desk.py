"""What this node's control socket answers: queries from the replica, operations through the core (SPEC 8.1)."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, assert_never

import msgspec

from muster.core.effects import Reply
from muster.core.node import insight
from muster.core.operations.operations import digest_of
from muster.daemon.shell.daemon import Daemon
from muster.daemon.signs.evidence import conditions
from muster.daemon.socket import queries
from muster.daemon.socket.access import Gate
from muster.daemon.socket.catalogue import CALLS, QUERIES, Call, Own, Pure, Stream, answer
from muster.daemon.socket.operations import read_operation
from muster.daemon.socket.shared_answers import SharedAnswers
from muster.daemon.socket.times_of_entries import TimesOfEntries
from muster.drivers.certificates.certificates import CertificateRefused
from muster.records.access import Author
from muster.records.names import shown
from muster.records.nodes import RotateAuthority
from muster.records.operations import OperationRequest, kind_named
from muster.records.refusal import ControlRefused

OPERATION_TIMEOUT_S = 20.0
LONGEST_WAIT_MS = 60_000  # of a query for the commit index that it names
DEFAULT_WAIT_MS = 10_000
_LOOK_AGAIN_S = 0.25

Document = dict[str, Any]


class Requests:
    """Answers the requests of one node's clients."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.planning = asyncio.Lock()
        self._times = TimesOfEntries(daemon.node)
        self._shared = SharedAnswers(lambda name: self.pure(name, {}))
        node = daemon.node
        self.gate = Gate(node.setup.name, lambda: node.database.cluster.groups, daemon.note)

    def handle(self, request: Document) -> Any:
        """The answer to one request: awaitable, iterator for `watch`, or a conversation. Raises `ControlRefused`."""
        author, arguments = self.gate.admit(request), request["arguments"]
        if "operation" in request:
            call = CALLS.get(request["operation"])
            if call is not None:
                return self._called(call, arguments)
            return self._operate(request["operation"], request["identity"], arguments, author)
        name = request["query"]
        match QUERIES[name].way:
            case Stream(function):
                return function(self, request)
            case Pure() | Own() as way:
                return self._query(name, way, arguments)
            case way:
                assert_never(way)

    async def _called(self, call: Call, arguments: Document) -> Document:
        return call.function(self.daemon, arguments)

    async def _query(self, name: str, way: Pure | Own, arguments: Document) -> Document | msgspec.Raw:
        await self._reach(arguments.pop("at_least", 0), arguments.pop("wait_ms", DEFAULT_WAIT_MS))
        if isinstance(way, Own):
            return await way.function(self, arguments)
        if way.is_shared and not arguments:
            return (await self._shared.get(name)).encoded
        return self.pure(name, arguments)

    def head(self) -> Document:
        """What every answer carries."""
        return queries.head(self.daemon.node.database, self.view())

    def pure(self, name: str, arguments: Document) -> Document:
        """The answer to a query that is a `Pure` one. Raises `ControlRefused`."""
        return answer(name, arguments, self.daemon.node.database, self.view())

    async def _reach(self, index: object, wait_ms: object) -> None:
        """Wait until this node's confirmed replica has got to `index` (P9.2). Raises `ControlRefused`."""
        limits = {"at_least": (index, 1 << 62), "wait_ms": (wait_ms, LONGEST_WAIT_MS)}
        for key, (value, limit) in limits.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
                raise ControlRefused(f"`{key}` must be a number from 0 to {limit}", "query", "correct it and ask again")
        assert isinstance(index, int)
        assert isinstance(wait_ms, int)
        node, loop = self.daemon.node, asyncio.get_running_loop()
        deadline_s = loop.time() + wait_ms / 1000
        with self.daemon.changes() as changed:
            while index and (not node.replica.confirmed or node.database.index < index):
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

    async def watch(self) -> AsyncIterator[msgspec.Raw]:
        """The status, at once and again whenever it has changed."""
        last = 0
        with self.daemon.changes() as changed:
            while True:
                changed.clear()
                status = await self._shared.get("status")
                if status.number != last:
                    last = status.number
                    yield status.encoded
                await changed.wait()

    def view(self) -> queries.NodeView:
        """What this node knows beside the database."""
        node = self.daemon.node
        master = insight.master(node)
        return queries.NodeView(
            node=node.me,
            incarnation=node.incarnation,
            master=-1 if master is None else master,
            term=node.replica.accepted,
            trouble=node.replica.trouble,
            links=insight.heard(node),
            live=frozenset(config for config in node.database.nodes if node.observer.is_live(config)),
            running=tuple(s.name for s in node.database.services.values() if s.node == node.me),
            conditions={other: (found[0], found[1]) for other, found in conditions(self.daemon).items()},
            waited_for=insight.waited_for(node),
            last_words=partial(insight.last_words, node),
            age_ms=partial(insight.age_ms, node),
            barred=self.daemon.barred(),
            refused=tuple(self.gate.refused),
            waiting={each.node: each for each in insight.required_levels(node)},
            unable=insight.unable_to_lead(node),
            awaited=insight.places_awaited(node),
            one_machine=node.observer.one_machine,
            lease=node.observer.strip.lease,
            fence_troubles=insight.fence_troubles(node),
            fullness=insight.fullness(node),
            needs=self.daemon.needs(),
            at_s=self._times.at_s,
            holds_key=self.daemon.keys.holds_all(node.database.cluster),
            behind_rotation=insight.behind_rotation(node),
        )

    async def _rotate(self, identity: str, arguments: Document, where: str, author: Author) -> Reply | None:
        """Begin a rotation: this node makes the new authority (P1.7)."""
        restart = arguments.get("restart", False)
        if not isinstance(restart, bool) or set(arguments) - {"restart"}:
            raise ControlRefused("it takes `restart`, true or false, and nothing else", where, "correct it")
        try:
            return await self.daemon.certification.rotate(
                identity, restart=restart, timeout_s=OPERATION_TIMEOUT_S, author=author
            )
        except (CertificateRefused, OSError) as error:
            raise ControlRefused(f"the new authority cannot be made: {error}", where, "see this node's log") from error

    async def _operate(self, called: str, identity: str, arguments: Document, author: Author) -> Document:
        kind = kind_named(called)
        assert kind is not None, "it was let in"
        name, where = kind.name, f"operation {kind.name}"
        operation: OperationRequest
        if kind.struct is RotateAuthority:
            operation = RotateAuthority("", arguments.get("restart", False))
            reply = await self._rotate(identity, arguments, where, author)
        else:
            operation = read_operation(name, arguments)
            reply = await self.daemon.operate(identity, operation, OPERATION_TIMEOUT_S, author)
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
        return {**self.head(), "outcome": reply.outcome, "index": reply.index, "identity": identity}

    def _check_repeated(self, identity: str, operation: OperationRequest, where: str) -> None:
        """Refuse to pass the outcome of another operation off as this one's (P9.1). Nothing has run then."""
        done = self.daemon.node.database.operations.get(identity)
        if done is not None and done.asked and done.asked != digest_of(operation):
            what = (
                f"the identity {shown(identity)[1:-1]} is that of another operation, carried out at index {done.index} "
                f"({shown(done.outcome)[1:-1]}); nothing was done now"
            )
            raise ControlRefused(what, where, "give each operation an identity of its own; see `muster audit`")
