"""What this node's control socket answers: queries from the replica, operations through the core (SPEC 8.1)."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from muster.daemon import queries
from muster.daemon.control import ControlRefused
from muster.daemon.daemon import Daemon
from muster.records.messages import (
    ApplyServices,
    DeregisterService,
    EvictNode,
    LeaveNode,
    OperationRequest,
    RegisterService,
    TransferService,
)

OPERATION_TIMEOUT_S = 20.0
OPERATIONS: dict[str, type[OperationRequest]] = {
    "apply": ApplyServices,
    "register": RegisterService,
    "deregister": DeregisterService,
    "transfer": TransferService,
    "leave": LeaveNode,
    "evict": EvictNode,
}

Document = dict[str, Any]


class Requests:
    """Answers the requests of one node's clients."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def handle(self, request: Document) -> Any:
        """The answer to one request: awaitable, or an asynchronous iterator for `watch`."""
        if "operation" in request:
            return self._operate(request["operation"], request["identity"], request["arguments"])
        if request["query"] == "watch":
            return self._watch()
        return self._query(request["query"], request["arguments"])

    async def _query(self, name: str, arguments: Document) -> Document:
        if name == "timeline":
            since = arguments.get("since", 0)
            if not isinstance(since, int):
                raise ControlRefused("`since` must be a number", "query timeline", "send a commit index")
            return {"events": self._daemon.recorder.since(since)}
        return self._answer(name, arguments)

    async def _watch(self) -> AsyncIterator[Document]:
        """The status, at once and again whenever it has changed."""
        last: Document | None = None
        with self._daemon.changes() as changed:
            while True:
                changed.clear()
                status = self._answer("status", {})
                if status != last:
                    last = status
                    yield status
                await changed.wait()

    def _answer(self, name: str, arguments: Document) -> Document:
        try:
            return queries.answer(name, arguments, self._daemon.node.database, self._view())
        except queries.QueryRefused as error:
            raise ControlRefused(error.what, error.where, error.next_step) from error

    def _view(self) -> queries.NodeView:
        node = self._daemon.node
        master = node.master
        return queries.NodeView(
            node=node.me,
            incarnation=node.incarnation,
            master=-1 if master is None else master,
            term=node.term,
            links=node.heard(),
            live=frozenset(config for config in node.database.nodes if node.is_live(config)),
            running=tuple(s.name for s in node.database.services.values() if s.node == node.me),
            waited_for=node.waited_for(),
        )

    async def _operate(self, name: str, identity: str, arguments: Document) -> Document:
        kind = OPERATIONS.get(name)
        where = f"operation {name}"
        if kind is None:
            known = ", ".join(OPERATIONS)
            raise ControlRefused(f"there is no operation {name!r}", "control socket", f"use one of: {known}")
        unknown = sorted(arguments.keys() - set(kind.__struct_fields__))
        if unknown:
            raise ControlRefused(f"unknown argument {unknown[0]!r}", where, f"use {', '.join(kind.__struct_fields__)}")
        try:
            operation = _convert(kind, arguments)
        except (msgspec.ValidationError, TypeError) as error:
            raise ControlRefused(str(error), where, "correct that argument and ask again") from error
        reply = await self._daemon.operate(identity, operation, OPERATION_TIMEOUT_S)
        if reply is None:
            raise ControlRefused(
                f"no master has decided it within {OPERATION_TIMEOUT_S:.0f} s; it may still be carried out",
                where,
                "see `muster status`; asking again with the same identity cannot do it twice",
            )
        if reply.refused:
            raise ControlRefused(reply.outcome, where, "see `muster status`")
        return {"outcome": reply.outcome, "index": reply.index}


def _convert(kind: type[OperationRequest], arguments: Document) -> OperationRequest:
    """The operation from its JSON arguments. Raises `msgspec.ValidationError` or `TypeError`."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    return kind(**{name: msgspec.convert(value, fields[name].type) for name, value in arguments.items()})
