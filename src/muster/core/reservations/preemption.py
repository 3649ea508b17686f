"""The key of a condemned incarnation is taken from all its disks: the proof that it writes nothing more (P7.40).

Theory of operation. A committed request names the incarnation, the disks that it could reach, and the member that is
asked. That one has it committed, disk by disk, that it begins; preempts the key with preempt-and-abort, by any path
that it holds; reads back; and has it committed that the disk is done. When all are done, that very entry is the proof,
and only what follows from that entry is told to a level.

A key that is not there proves nothing by itself, and one that is there again neither: a preemption whose answer was
lost may be at work in the disk, with what was under way not ended yet. So a disk is done only by the answer to the one
preemption that was begun there, and one that was begun and is not done gives no proof any more.
"""

from enum import Enum, auto
from typing import NamedTuple

from muster.core.reservations.keys import ALL_REGISTRANTS, Answer, Command, Owner, Status, Verb


class Request(NamedTuple):
    """What is asked about one incarnation, committed before anything is preempted; and how far it has come."""

    victim: Owner
    number: int  # of the request: each has another one
    asker: Owner
    disks: tuple[str, ...]  # all that the victim could reach
    begun: frozenset[str] = frozenset()  # on these somebody may have asked for a preemption
    done: frozenset[str] = frozenset()

    @property
    def untouched(self) -> list[str]:
        """The disks that whoever is asked next may begin with."""
        return [disk for disk in self.disks if disk not in self.begun]

    @property
    def is_proven(self) -> bool:
        """Whether nothing of the victim can be written to any disk any more (P7.40)."""
        return bool(self.disks) and self.done >= set(self.disks)


class Report(NamedTuple):
    """What an asker says of a request: of this number, and of no other."""

    victim: Owner
    number: int
    begun: frozenset[str] = frozenset()
    done: frozenset[str] = frozenset()


def with_report(request: Request, report: Report) -> Request:
    """The request with what its asker has done; what is said of another number counts for nothing."""
    if (report.victim, report.number) != (request.victim, request.number):
        return request
    disks = set(request.disks)
    return request._replace(begun=request.begun | report.begun & disks, done=request.done | report.done & disks)


def handed_on(request: Request, asker: Owner) -> Request:
    """The same asked of another member: what was done stays done."""
    return request._replace(number=request.number + 1, asker=asker)


class Step(Enum):
    """How far a preemption has come on one disk."""

    LOOK = auto()
    BEGIN = auto()  # that it begins is to be committed
    PREEMPT = auto()
    SEE = auto()
    DONE = auto()
    NO_PROOF = auto()  # `why`


class Preemption:
    """The preemption of one key on one disk, by one member.

    The caller asks `wanted` only right after a look at the store that shows its own lease advancing (P7.23), and with
    the paths that it holds then.
    """

    def __init__(self, key: int, victim: int) -> None:
        self._key, self._victim = key, victim
        self.step, self.why = Step.LOOK, ""
        self._has_begun = self._was_answered = False

    def wanted(self, held: list[str], turn: int = 0) -> Command | None:
        """The next command, by one of these paths: another one with each turn; None: nothing can be asked."""
        if self.step in (Step.BEGIN, Step.DONE, Step.NO_PROOF) or not held:
            return None
        path = held[turn % len(held)]
        if self.step is Step.PREEMPT:
            return Command(Verb.PREEMPT_ABORT, path, self._key, self._victim)
        return Command(Verb.READ, path, self._key)

    def begun(self) -> None:
        """A record says that this preemption begins (P7.40)."""
        if self.step is Step.BEGIN:
            self.step, self._has_begun = Step.PREEMPT, True

    def answered(self, answer: Answer) -> None:
        """What came of the command. A look without an answer is repeated, by another path."""
        if answer.status is Status.LOST and self.step is Step.PREEMPT:
            self._no_proof("its answer to preempt-and-abort was lost")
        elif answer.status is Status.LOST:
            pass
        elif answer.status is Status.REFUSED:
            self._no_proof("it refuses preempt-and-abort" if self.step is Step.PREEMPT else "its keys cannot be read")
        elif self.step is Step.PREEMPT:
            self._was_answered = answer.status is Status.GOOD
            self.step = Step.SEE if answer.status is Status.GOOD else Step.LOOK
        else:
            self._seen(answer)

    def _seen(self, answer: Answer) -> None:
        view = answer.view
        if self._key not in view.keys:
            self._no_proof("the key of this node has gone from it")
        elif view.type != ALL_REGISTRANTS:
            self._no_proof("it is not reserved for those with a key")
        elif self._victim in view.keys:
            self.step = Step.PREEMPT if self._has_begun else Step.BEGIN
        elif self._was_answered:
            self.step = Step.DONE
        else:
            self._no_proof("the key has gone from it, and no answer says that what was under way has ended")

    def _no_proof(self, why: str) -> None:
        self.step, self.why = Step.NO_PROOF, why
