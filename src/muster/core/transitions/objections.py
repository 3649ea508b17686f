"""Objections to planned changes: who may be asked, and what became of the question (SPEC 3.4, 6.8).

Before an operator's graceful leave, standby (a drain is one), transfer or de-registration changes anything, the master
asks every subsystem that registered with `vetoes`. Any of them may object with a reason, which is shown to who asked,
who may override it. Nobody is asked about what follows from a failure, nor about what the cluster does by itself. A
question lives in the memory of its master only: the client repeats its request, and the next master asks anew (P4.5).
"""

from collections.abc import Iterable

from msgspec import Struct

from muster.core.draft import counts
from muster.core.effects import AskSubsystem
from muster.records.access import ITSELF
from muster.records.database import Database
from muster.records.levels import Level
from muster.records.members import LeaveNode
from muster.records.messages import Ask, Request, Verdict
from muster.records.services import DeregisterService, SetStandby, TransferService
from muster.records.units import US_PER_MS
from muster.records.versions import KERNELS_WORD

ANSWER_MS = 5000  # who has not answered by then objects by its silence
MAXIMUM_QUESTIONS = 256


class Poll(Struct):
    """One request that waits for its objections."""

    sender: int
    request: Request
    waiting: set[int]
    objections: list[str]
    deadline_us: int


def may_be_vetoed(request: Request, active_version: int) -> bool:
    """Whether subsystems are asked about this: planned changes that operators want, and no overridden ones (P4.5).

    What a node asks for by itself follows from an event: only its own leave, upon SIGTERM, is an operator's wish.
    """
    operation = request.operation
    match operation:
        case LeaveNode():
            is_planned = True
        case TransferService():
            is_planned = request.author.user != ITSELF
        case DeregisterService():
            is_planned = request.author.user != ITSELF and active_version >= KERNELS_WORD
        case SetStandby():
            is_planned = not operation.end and active_version >= KERNELS_WORD
        case _:
            return False
    return is_planned and not operation.override


def nodes_to_ask(database: Database) -> list[int]:
    """The members on which a subsystem wants to be asked."""
    return [
        member.node
        for member in database.members.values()
        if counts(member) and member.eviction is None and any(level.vetoes for level in member.levels)
    ]


class Polls:
    """The master's side."""

    def __init__(self) -> None:
        self._polls: dict[str, Poll] = {}
        self._passed: set[str] = set()

    def passes(self, sender: int, request: Request, database: Database, now_us: int) -> tuple[bool, dict[int, Ask]]:
        """Whether the request may be carried out now; if not, whom to ask what (nobody, while it is being asked)."""
        if not may_be_vetoed(request, database.cluster.active_version) or request.identity in self._passed:
            self._passed.discard(request.identity)
            return True, {}
        if request.identity in self._polls:
            return False, {}
        asked = nodes_to_ask(database)
        if not asked or len(self._polls) >= MAXIMUM_QUESTIONS:
            return not asked, {}
        deadline_us = now_us + ANSWER_MS * US_PER_MS
        self._polls[request.identity] = Poll(sender, request, set(asked), [], deadline_us)
        return False, {node: Ask(request.identity, request.operation) for node in asked}

    def answered(self, node: int, verdict: Verdict) -> None:
        """A node has asked its subsystems."""
        poll = self._polls.get(verdict.identity)
        if poll is not None and node in poll.waiting:
            poll.waiting.discard(node)
            poll.objections.extend(verdict.objections)

    def decided(self, database: Database, now_us: int) -> list[Poll]:
        """The polls that are over: all have answered, have gone, or are late. One without objections then passes."""
        asked = set(nodes_to_ask(database))
        over = []
        for identity, poll in list(self._polls.items()):
            poll.waiting &= asked
            if poll.waiting and now_us >= poll.deadline_us:
                names = ", ".join(database.name_of(node) for node in sorted(poll.waiting))
                poll.objections.append(f"the subsystems of {names} have not answered within {ANSWER_MS} ms")
                poll.waiting.clear()
            if not poll.waiting:
                del self._polls[identity]
                over.append(poll)
                if not poll.objections:
                    self._passed.add(identity)
        return over


class Questions:
    """A node's side: what its own subsystems have been asked, and by whom."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, set[int], list[str]]] = {}  # identity -> asker, levels asked, objections

    def ask(self, asker: int, ask: Ask, levels: Iterable[Level]) -> list[AskSubsystem]:
        """Put the question to the local subsystems that want to be asked."""
        wanted = {level.number for level in levels if level.vetoes}
        if len(self._open) < MAXIMUM_QUESTIONS:
            self._open[ask.identity] = (asker, set(wanted), [])
        return [AskSubsystem(level, ask.identity, ask.operation) for level in sorted(wanted)]

    def answered(self, identity: str, level: int, objection: str) -> None:
        """A subsystem has answered; an empty objection is consent."""
        question = self._open.get(identity)
        if question is not None and level in question[1]:
            question[1].discard(level)
            if objection:
                question[2].append(objection)

    def lost(self, level: int) -> None:
        """A subsystem is gone and will not answer."""
        for _, levels, _ in self._open.values():
            levels.discard(level)

    def over(self) -> list[tuple[int, Verdict]]:
        """The verdicts that are complete, and whom to tell."""
        done = [identity for identity, (_, levels, _) in self._open.items() if not levels]
        verdicts = []
        for identity in done:
            asker, _, objections = self._open.pop(identity)
            verdicts.append((asker, Verdict(identity, tuple(objections))))
        return verdicts
