"""A shared disk with persistent reservations in the virtual world, and the paths to it (P7.37-P7.44).

The disk carries out one command after the other. A registration is of one path of one node. A write is judged when it
arrives, and is on the disk some time later, unless it is aborted before: so a preemption alone ends nothing that is
under way, and an abort takes its time, too: the key has gone before that is over, and the answer comes after it. What
is sent by a path that is down waits, or is lost; what waited arrives when the path is up again, before whatever is sent
after it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from muster.core.reservations.keys import (
    ALL_REGISTRANTS,
    NO_RESERVATION,
    Answer,
    Capabilities,
    Command,
    Owner,
    Status,
    Verb,
    View,
)
from muster.sim.world.time import EventLoop

ANSWER_US = 400_000  # after that a command without an answer counts as lost
LANDS_US, SLOW_US = 300_000, 3_000_000  # what a write, and an abort, may take in a disk; few take so long

Nexus = tuple[int, str]  # node, path
Then = Callable[[Answer], None]


@dataclass
class Path:
    """One node's path to the disk."""

    is_up: bool = True
    last_us: int = 0  # when the newest command arrives: none overtakes another on its path
    waiting: list[tuple[Callable[..., None], tuple[object, ...]]] = field(default_factory=list)


class SharedDisk:
    """One disk. `landed` is told of each write that is there: whose it was, and by which path it had come."""

    def __init__(self, name: str, loop: EventLoop, random: Random, landed: Callable[[str, Owner, Nexus], None]) -> None:
        self.name = name
        self.keys: dict[Nexus, int] = {}
        self.type = NO_RESERVATION
        self.aborts, self.keeps = True, True
        self.released = 0  # how often its reservation has gone
        self._loop, self._random, self._landed = loop, random, landed
        self._paths: dict[Nexus, Path] = {}
        self._under_way: dict[int, Nexus] = {}  # number of a write -> its path
        self._writes = 0

    # ---- paths --------------------------------------------------------------------------------------------------

    def path(self, nexus: Nexus) -> Path:
        """That path, which is up unless it was taken down."""
        return self._paths.setdefault(nexus, Path())

    def is_up(self, nexus: Nexus) -> bool:
        """Whether commands get through now."""
        return self.path(nexus).is_up

    def take_down(self, nexus: Nexus) -> None:
        """Nothing gets through in either direction."""
        self.path(nexus).is_up = False

    def bring_up(self, nexus: Nexus) -> None:
        """What waited arrives now, in its order."""
        path = self.path(nexus)
        path.is_up = True
        waiting, path.waiting = path.waiting, []
        for action, arguments in waiting:
            action(*arguments)

    def send(self, nexus: Nexus, command: Command, then: Then) -> None:
        """A command on its way; `then` gets its answer, or `LOST`, once."""
        answered: list[bool] = []

        def once(answer: Answer) -> None:
            if not answered:
                answered.append(True)
                then(answer)

        self._loop.after(ANSWER_US, once, Answer(Status.LOST))
        self._on_its_way(nexus, self._carry_out, (nexus, command, once))

    def write(self, nexus: Nexus, owner: Owner, refused: Callable[[], None]) -> None:
        """A write on its way; `refused` is told if the disk takes it from nobody without a key."""
        self._on_its_way(nexus, self._take, (nexus, owner, refused))

    def _on_its_way(self, nexus: Nexus, action: Callable[..., None], arguments: tuple[object, ...]) -> None:
        path = self.path(nexus)
        path.last_us = max(path.last_us, self._loop.now_us + self._delay_us())
        self._loop.at(path.last_us, self._arrives, nexus, action, arguments)

    def _delay_us(self) -> int:
        return 500 + int(self._random.random() * (20_000 if self._random.random() < 0.9 else 150_000))

    def _arrives(self, nexus: Nexus, action: Callable[..., None], arguments: tuple[object, ...]) -> None:
        path = self.path(nexus)
        if path.is_up and not path.waiting:
            action(*arguments)
        elif self._random.random() < 0.7:
            path.waiting.append((action, arguments))

    # ---- the disk -----------------------------------------------------------------------------------------------

    def _take(self, nexus: Nexus, owner: Owner, refused: Callable[[], None]) -> None:
        if self.type == ALL_REGISTRANTS and nexus not in self.keys:
            self._loop.after(self._delay_us(), refused)
            return
        self._writes += 1
        self._under_way[self._writes] = nexus
        self._loop.after(self._work_us(), self._lands, self._writes, nexus, owner)

    def _work_us(self) -> int:
        return int(self._random.random() * (LANDS_US if self._random.random() < 0.95 else SLOW_US))

    def _lands(self, write: int, nexus: Nexus, owner: Owner) -> None:
        if self._under_way.pop(write, None) is not None:
            self._landed(self.name, owner, nexus)

    def _carry_out(self, nexus: Nexus, command: Command, then: Then) -> None:
        before = set(self.keys)
        answer = self._answer(nexus, command)
        delay_us = self._delay_us()
        if command.verb is Verb.PREEMPT_ABORT and answer.status is Status.GOOD:
            abort_us = self._work_us()
            delay_us += abort_us
            out = before - set(self.keys)
            ended = [write for write, by in self._under_way.items() if by in out]
            self._loop.after(abort_us, self._abort, ended)
        self._loop.after(delay_us, self._answers, nexus, then, answer)

    def _abort(self, writes: list[int]) -> None:
        """What of these is not there yet never will be."""
        for write in writes:
            self._under_way.pop(write, None)

    def _answers(self, nexus: Nexus, then: Then, answer: Answer) -> None:
        if self.path(nexus).is_up:
            then(answer)

    def _answer(self, nexus: Nexus, command: Command) -> Answer:
        match command.verb:
            case Verb.CAPABILITIES:
                found = Capabilities(frozenset({1, 3, 5, ALL_REGISTRANTS}), self.aborts, self.keeps)
                return Answer(Status.GOOD, capabilities=found)
            case Verb.READ:
                return Answer(Status.GOOD, View(tuple(self.keys.values()), self.type))
            case Verb.REGISTER:
                self.keys[nexus] = command.key
                return Answer(Status.GOOD)
            case Verb.PREEMPT_ABORT if not self.aborts:
                return Answer(Status.REFUSED)
            case _ if self.keys.get(nexus) != command.key:
                return Answer(Status.CONFLICT)
            case Verb.RESERVE:
                self.type = ALL_REGISTRANTS
            case Verb.PREEMPT_ABORT | Verb.PREEMPT:
                return self._preempt(command.victim)
            case Verb.PROBE:
                pass
        return Answer(Status.GOOD)

    def _preempt(self, victim: int) -> Answer:
        out = {nexus for nexus, key in self.keys.items() if key == victim}
        if not out:
            return Answer(Status.CONFLICT)
        self.keys = {nexus: key for nexus, key in self.keys.items() if nexus not in out}
        self._look_at_registrants()
        return Answer(Status.GOOD)

    def rename(self, nexus: Nexus, old: Nexus) -> None:
        """The node's path is another one for the disk from now on; what came by the old one is as it was."""
        if nexus in self.keys:
            self.keys[old] = self.keys.pop(nexus)
        self.path(nexus).waiting.clear()
        self._under_way = {write: old if by == nexus else by for write, by in self._under_way.items()}

    def unregister(self, nexus: Nexus) -> None:
        """A node takes its own key away by a path: no rule does so, but a broken one (P7.41)."""
        self.keys.pop(nexus, None)
        self._look_at_registrants()

    def _look_at_registrants(self) -> None:
        """The reservation goes with the last one that has a key."""
        if not self.keys and self.type != NO_RESERVATION:
            self.type = NO_RESERVATION
            self.released += 1
