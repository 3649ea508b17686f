"""What an observer outside this node can see of its daemon, for the network lab's checkers (docs/LAB.md).

Nothing of this happens unless the environment names a directory (`MUSTER_OBSERVATIONS`). Then each daemon process
writes a file there, one JSON object a line: the states that its replica shows, what it tells as master, notifications
and acknowledgements of its subsystems, the claims and marks that it made durable, answers to clients. A line is written
before anything that follows from it leaves the daemon, and stamped with CLOCK_BOOTTIME: so the files of all daemons of
one kernel, sorted by their times, are a history in which no cause comes after its effect.

A state is written as its difference to the one before in the same file. A daemon that dies takes at most its last line
along. A file that has reached its bound ends with a line that says so.
"""

import contextlib
import os
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from muster.core.effects import Committed, Effect, Elected, Notify, Reply, Send, WriteClaim, WriteMarks
from muster.core.inputs import Acknowledged, AcknowledgedTogether, Input, LevelGone, LevelRegistered
from muster.core.node.node import Node
from muster.records.configuration import Operation
from muster.records.database import Database, Entry
from muster.records.levels import Level, NodeState, TransitionKind
from muster.records.members import Member
from muster.records.messages import Append
from muster.records.registers import Claim
from muster.records.services import Service
from muster.records.terms import Term
from muster.records.transitions import Transition

DIRECTORY = "MUSTER_OBSERVATIONS"
MAXIMUM_BYTES = 1 << 30  # of one file
MAXIMUM_REMEMBERED = 100_000  # entries told

Key = TypeVar("Key")
Record = TypeVar("Record")


class Began(Struct, frozen=True, tag="began"):
    """The daemon has loaded its first replica."""

    at_us: int
    index: int
    term: Term


class Showed(Struct, frozen=True, tag="showed", omit_defaults=True):
    """The replica shows a new index: the records that differ from the last state, `None` for those that are gone."""

    at_us: int
    index: int
    term: Term
    members: dict[int, Member | None] = {}
    transitions: dict[int, Transition | None] = {}
    services: dict[str, Service | None] = {}
    operations: dict[str, Operation | None] = {}
    names: dict[int, str | None] = {}


class Became(Struct, frozen=True, tag="became"):
    """The node has become master."""

    at_us: int
    term: Term
    index: int


class Said(Struct, frozen=True, tag="said"):
    """As master it tells for the first time that an entry is committed."""

    at_us: int
    term: Term
    entry: Entry


class Notified(Struct, frozen=True, tag="notified"):
    """A subsystem of this node is notified."""

    at_us: int
    level: int
    transition: int
    about: int
    about_incarnation: int
    kind: TransitionKind
    barrier: int
    vector: dict[int, NodeState]


class Answered(Struct, frozen=True, tag="acknowledged"):
    """A subsystem of this node acknowledges a barrier."""

    at_us: int
    transition: int
    level: int
    barrier: int


class Registered(Struct, frozen=True, tag="registered"):
    """A program has registered a level with this node, now or with an earlier daemon of the same incarnation."""

    at_us: int
    level: Level


class Withdrawn(Struct, frozen=True, tag="withdrawn"):
    """The registration of a level with this node is over."""

    at_us: int
    number: int


class Claimed(Struct, frozen=True, tag="claimed"):
    """The claim register was written, durably."""

    at_us: int
    claim: Claim


class Marked(Struct, frozen=True, tag="marked"):
    """The marks register was written, durably."""

    at_us: int
    condemned: tuple[tuple[int, int], ...]


class Replied(Struct, frozen=True, tag="replied"):
    """A client gets its answer."""

    at_us: int
    identity: str
    refused: bool
    outcome: str
    index: int


class Full(Struct, frozen=True, tag="full"):
    """The file has reached its bound: what follows is missing."""

    at_us: int


Line = Began | Showed | Became | Said | Notified | Answered | Registered | Withdrawn | Claimed | Marked | Replied | Full


class _Shown:
    """The last state written."""

    def __init__(self) -> None:
        self.index = -1
        self.members: dict[int, Member] = {}
        self.transitions: dict[int, Transition] = {}
        self.services: dict[str, Service] = {}
        self.operations: dict[str, Operation] = {}
        self.names: dict[int, str] = {}

    def advance(self, at_us: int, database: Database) -> Showed:
        """The difference to `database`, which is the last state from now on."""
        names = {node: config.name for node, config in database.nodes.items()}
        showed = Showed(
            at_us, database.index, database.term,
            _difference(self.members, database.members), _difference(self.transitions, database.transitions),
            _difference(self.services, database.services), _difference(self.operations, database.operations),
            _difference(self.names, names),
        )  # fmt: skip
        self.index = database.index
        self.members, self.transitions = dict(database.members), dict(database.transitions)
        self.services, self.operations = dict(database.services), dict(database.operations)
        self.names = names
        return showed


def _difference(before: dict[Key, Record], after: dict[Key, Record]) -> dict[Key, Record | None]:
    found: dict[Key, Record | None] = {
        key: record for key, record in after.items() if key not in before or before[key] != record
    }
    return found | {key: None for key in before if key not in after}


class Observations:
    """Writes the file of one daemon process."""

    def __init__(self, directory: Path, name: str, node: int, incarnation: int) -> None:
        """Raises `OSError` if the file cannot be made."""
        path = directory / f"{name}-{node}-{incarnation}-{os.getpid()}-{os.urandom(3).hex()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._encoder = msgspec.json.Encoder()
        self._bytes = 0
        self._shown = _Shown()
        self._told: set[int] = set()

    def began(self, at_us: int, database: Database) -> None:
        """The first replica is loaded."""
        self._write(Began(at_us, database.index, database.term))

    def took(self, at_us: int, happened: Input) -> None:
        """The node is about to be given an input."""
        match happened:
            case Acknowledged(transition=transition, level=level, barrier=barrier):
                self._write(Answered(at_us, transition, level, barrier))
            case AcknowledgedTogether(steps=steps):
                for step in steps:
                    self._write(Answered(at_us, step.transition, step.level, step.barrier))
            case LevelRegistered(level=registered):
                self._write(Registered(at_us, registered))
            case LevelGone(number=number):
                self._write(Withdrawn(at_us, number))
            case _:
                pass

    def decided(self, at_us: int, node: Node, effects: list[Effect]) -> None:
        """The node wants `effects`, none of which has been begun."""
        for effect in effects:
            match effect:
                case Send(message=Append(term=term, entries=entries)):
                    self._tell(at_us, term, entries)
                case Committed() if node.database.index != self._shown.index:
                    self._write(self._shown.advance(at_us, node.database))
                case Elected(number=number, node=master):
                    self._write(Became(at_us, Term(number, master), node.database.index))
                    self._write(self._shown.advance(at_us, node.database))
                case Notify():
                    self._notify(at_us, effect)
                case Reply(identity=identity, refused=refused, outcome=outcome, index=index):
                    self._write(Replied(at_us, identity, refused, outcome, index))
                case _:
                    pass

    def stored(self, at_us: int, effect: Effect) -> None:
        """A store effect has succeeded."""
        if isinstance(effect, WriteClaim):
            self._write(Claimed(at_us, effect.claim))
        elif isinstance(effect, WriteMarks):
            self._write(Marked(at_us, effect.marks.condemned))

    def _tell(self, at_us: int, term: Term, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            if entry.index not in self._told:
                if len(self._told) >= MAXIMUM_REMEMBERED:
                    self._told.clear()  # they are written once more: to the checkers they are the same
                self._told.add(entry.index)
                self._write(Said(at_us, term, entry))

    def _notify(self, at_us: int, effect: Notify) -> None:
        self._write(
            Notified(
                at_us, effect.level, effect.transition, effect.node, effect.incarnation, effect.kind, effect.barrier,
                effect.vector,
            )
        )  # fmt: skip

    def _write(self, line: Line) -> None:
        if self._bytes > MAXIMUM_BYTES:
            return
        data = self._encoder.encode(line) + b"\n"
        self._bytes += len(data)
        if self._bytes > MAXIMUM_BYTES:
            data = self._encoder.encode(Full(line.at_us)) + b"\n"
        with contextlib.suppress(OSError):  # a full disk ends the history, and nothing else
            os.write(self._file, data)


def requested(name: str, node: int, incarnation: int) -> Observations | None:
    """The file of this process, if the environment asks for one. Raises `OSError`."""
    directory = os.environ.get(DIRECTORY)
    return Observations(Path(directory), name, node, incarnation) if directory else None
