"""Answers why a service is where it is, from what all connected nodes know (SPEC 8.1, 8.2).

The master has the nodes' reports, so what holds now is its word; where no master answers, it is that of the asked node,
which says so. Decisions of the past are in the memory of the nodes that made them as masters.
"""

import json
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import msgspec
from msgspec import Struct

from muster.core.node import insight
from muster.core.node.node import Node
from muster.core.services.explanation import Explanation
from muster.core.services.placement import NodeVerdict
from muster.core.services.places import AwaitedThere, summary, words_about
from muster.daemon.history.gathering import Gathering
from muster.daemon.history.placement_record import MAXIMUM_TOLD, PastDecision, PlacementRecord
from muster.records.database import Database
from muster.records.deciders import SERVICES
from muster.records.names import shown
from muster.records.refusal import ControlRefused
from muster.records.services import ServiceState
from muster.records.terms import NO_NODE, Term

QUESTION = "why"
WHERE = "query why"
Document = dict[str, Any]


class Account(Struct, frozen=True):
    """What one node knows of a service."""

    term: Term  # the highest that it knows
    is_master: bool
    index: int  # of its replica
    present: Explanation | None
    past: tuple[PastDecision, ...]


class Why:
    """Gathers what all nodes know. `clock_us` is the clock of the record."""

    def __init__(self, node: Node, record: PlacementRecord, gathering: Gathering, clock_us: Callable[[], int]) -> None:
        self._node, self._record, self._gathering, self._clock_us = node, record, gathering, clock_us

    def known(self, subject: str) -> Document:
        """What this node knows of a service, for whoever gathers it; `subject` as `answer` makes it."""
        try:
            service, at = json.loads(subject)
            document: Document = msgspec.to_builtins(self._own(str(service), int(at)))
        except (ValueError, TypeError, RecursionError):
            return {}  # from a release that asks in another way
        return document

    async def answer(self, arguments: Document) -> Document:
        """The account of `service`, of its node `node` alone if that is given, as of entry `at` if that is given.

        Raises `ControlRefused`.
        """
        name, only, at = self._checked(arguments)
        me = self._node.database.name_of(self._node.me)
        told, unanswered = await self._gathering.ask(QUESTION, json.dumps([name, at]))
        accounts = {me: self._own(name, at)}
        for node, document in told.items():
            try:
                accounts.setdefault(node, msgspec.convert(document, Account))
            except (msgspec.ValidationError, RecursionError):
                unanswered.append({"node": node, "why": "it is of a release that says it in another way"})
        masters = [node for node, account in accounts.items() if account.is_master and account.present is not None]
        speaker = max(masters, key=lambda node: accounts[node].term, default=me)
        past = {decision.index: decision for account in accounts.values() for decision in account.past}
        newest = [past[index] for index in sorted(past, reverse=True)][:MAXIMUM_TOLD]
        return self._document(name, only, speaker, accounts[speaker], newest) | {"unanswered": unanswered}

    def _checked(self, arguments: Document) -> tuple[str, str, int]:
        unknown = [key for key in arguments if key not in ("service", "node", "at")]
        if unknown:
            raise ControlRefused(f"it takes no argument {shown(unknown[0])}", WHERE, "allowed: service, node, at")
        name, only, at = arguments.get("service"), arguments.get("node", ""), arguments.get("at", 0)
        database = self._node.database
        if not isinstance(name, str) or name not in database.services:
            close = get_close_matches(str(name), list(database.services), n=1)
            next_step = f"did you mean {close[0]!r}?" if close else "see `muster services` for those that are defined"
            raise ControlRefused(
                f"there is no service {shown(name)}, and no node of that name",
                f"cluster {database.cluster.name}",
                next_step,
            )
        known = sorted(config.name for config in database.nodes.values())
        if only and only not in known:
            what, next_step = f"there is no node {shown(only)}", f"configured are {', '.join(known)}"
            raise ControlRefused(what, f"cluster {database.cluster.name}", next_step)
        if type(at) is not int or not 0 <= at < 1 << 63:
            raise ControlRefused(f"`at` is {shown(at)}, which is no commit index", WHERE, "send a number")
        return name, only, at

    def _own(self, service: str, at: int) -> Account:
        node = self._node
        past = self._record.of(service, self._clock_us(), at)
        return Account(node.replica.accepted, node.is_master, node.database.index, insight.explain(node, service), past)

    def _document(self, name: str, only: str, speaker: str, account: Account, past: list[PastDecision]) -> Document:
        database = self._node.database
        service = database.services[name]
        present = account.present
        assert present is not None, "the asked node has the service, and speaks where no master does"
        active = service.state is not ServiceState.DEREGISTERED and service.node != NO_NODE
        here = [decision for decision in past if decision.node == service.node] if active else []
        awaited = insight.places_awaited(self._node).get(service.node) if active else None
        place = _place(name, awaited, database.name_of(service.node)) if awaited is not None else None
        return {
            "service": {
                "name": name,
                "state": str(service.state),
                "node": database.name_of(service.node) if active else None,
                "wanted": service.wanted,
                "token": (service.token or None) if active else None,
                "cause": service.cause,
            },
            "decider": decider_of(database),
            "answered_by": speaker,
            "is_master": account.is_master,
            "as_of": account.index,
            "summary": "; ".join((present.summary, *([place["words"]] if place else []))),
            "next_step": present.next_step,
            "rules": [{"rule": each.rule, "holds": each.holds, "words": each.words} for each in present.findings]
            + ([place] if place is not None else []),
            "nodes": _verdicts(present.verdicts, only),
            "decision": self._past(here[0], only) if here else None,
            "past": [self._past(decision, only) for decision in past],
        }

    def _past(self, decision: PastDecision, only: str) -> Document:
        node = decision.node
        return {
            "index": decision.index,
            "term": decision.term.number,
            "age_ms": decision.age_us // 1000,
            "node": None if node == NO_NODE else self._node.database.name_of(node),
            "state": decision.state,
            "cause": decision.words,
            "nodes": _verdicts(decision.verdicts, only),
        }


def decider_of(database: Database) -> Document | None:
    """Who decides on services, by which grant, as of which entry; null where there are no locks (P6.42)."""
    known = database.deciders.get(SERVICES)
    if known is None:
        return None
    node = None if known.node == NO_NODE else database.name_of(known.node)
    return {"node": node, "grant": list(known.grant), "since": known.since, "cause": known.cause}


def _place(service: str, awaited: AwaitedThere, node: str) -> Document | None:
    """The finding that something of the service waits for a place on its node, or may do so (P8.12)."""
    found = words_about(service, awaited, node)
    unnamed = awaited.in_all - len(awaited.named)
    if not found and unnamed > 0:
        found = f"it may be one of {unnamed} more that wait for a place on {node}: {summary(awaited, node)}"
    return {"rule": "place", "holds": False, "words": found} if found else None


def _verdicts(verdicts: tuple[NodeVerdict, ...], only: str) -> list[Document]:
    return [
        {
            "node": verdict.name,
            "rule": verdict.rule,
            "possible": verdict.possible,
            "chosen": verdict.chosen,
            "words": verdict.words,
        }
        for verdict in verdicts
        if not only or verdict.name == only
    ]
