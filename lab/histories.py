"""What real daemons and services recorded, turned into the simulator's observations (docs/LAB.md).

Sources, all stamped with this kernel's CLOCK_BOOTTIME:

    observations/NAME-NODE-INCARNATION-...jsonl   one a daemon process (`daemon/history/observations.py`)
    record                                        the services' own word that they run (`exclusive_service.py`)

A service's instance runs from its first line to its last. An incarnation has ended, for the checkers, at the last
moment at which anything of it wrote something: so a recovery that came before that moment is found, and a correct one
never accused. What was recorded is read as it grows, up to a moment before which everything is known to be there.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from lab.exclusive_record import Line, parse_line
from muster.daemon.history import observations as told
from muster.records.configuration import MAXIMUM_OPERATIONS, Operation
from muster.records.levels import Level, TransitionKind
from muster.sim.history import (
    Applied,
    ClaimWritten,
    CommandTaken,
    DaemonStarted,
    Elected,
    LevelAcknowledged,
    LifeBegan,
    LifeEnded,
    MarksWritten,
    Notified,
    Observation,
    ProgramCame,
    ProgramWent,
    ReplicaState,
    Replied,
    ServiceBegan,
    ServiceEnded,
    Told,
)

NEVER_US = 1 << 62
MAXIMUM_LATE = 10  # signs of life after the end that are told: one suffices
Life = tuple[int, int]  # node, incarnation
Key = TypeVar("Key")
Record = TypeVar("Record")
_decoder = msgspec.json.Decoder(told.Line)


class HistoryIncomplete(Exception):
    """Something that must be in the history is not; the message says what."""


class _Growing:
    """A file that grows, by whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def lines(self) -> list[bytes]:
        """The lines that have come since the last call; an unfinished one comes when it is whole."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        return data[:whole].splitlines()


class DaemonFile(_Growing):
    """The observations of one daemon process, with its replica's last state."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        _name, node, incarnation, _process, _salt = path.stem.rsplit("-", 4)
        self.node, self.incarnation = int(node), int(incarnation)
        self._state = ReplicaState({}, {}, {}, {}, {})
        self._levels: dict[int, Level] = {}

    def observations(self) -> Iterable[Observation]:
        """What has come. Raises `HistoryIncomplete`, `msgspec.DecodeError`."""
        for data in self.lines():
            if (seen := self._observation(_decoder.decode(data))) is not None:
                yield seen

    def _observation(self, line: told.Line) -> Observation | None:
        node, incarnation, at_us = self.node, self.incarnation, line.at_us
        match line:
            case told.Began(index=index, term=term):
                return DaemonStarted(at_us, node, incarnation, index, term)
            case told.Showed():
                self._advance(line)
                return Applied(at_us, node, incarnation, line.index, line.term, self._state)
            case told.Became(term=term, index=index):
                return Elected(at_us, node, incarnation, term, index)
            case told.Said(term=term, entry=entry):
                return Told(at_us, node, term, entry)
            case told.Notified():
                return Notified(
                    at_us, node, incarnation, line.level, line.transition, line.about, line.about_incarnation,
                    line.kind, line.barrier, line.vector,
                )  # fmt: skip
            case told.Answered():
                return LevelAcknowledged(at_us, node, incarnation, line.level, line.transition, line.barrier)
            case told.Registered(level=level):
                self._levels[level.number] = level
                return ProgramCame(at_us, node, incarnation, level)
            case told.Withdrawn(number=number):
                withdrawn = self._levels.pop(number, None)
                return ProgramWent(at_us, node, incarnation, withdrawn) if withdrawn is not None else None
            case told.Claimed(claim=claim):
                return ClaimWritten(at_us, node, claim)
            case told.Marked(condemned=condemned):
                return MarksWritten(at_us, node, condemned)
            case told.Replied():
                return Replied(at_us, node, line.identity, line.refused, line.outcome, line.index)
            case told.Full():
                raise HistoryIncomplete(f"{self.path.name} has reached {told.MAXIMUM_BYTES} bytes")

    def _advance(self, showed: told.Showed) -> None:
        """Tables that have not changed are shared between states, which nobody changes."""
        before = self._state
        self._state = ReplicaState(
            _changed(before.members, showed.members), _changed(before.transitions, showed.transitions),
            _changed(before.services, showed.services), _changed(before.operations, showed.operations),
            _changed(before.names, showed.names),
        )  # fmt: skip


def _changed(before: dict[Key, Record], changes: dict[Key, Record | None]) -> dict[Key, Record]:
    if not changes:
        return before
    after = dict(before)
    for key, record in changes.items():
        if record is None:
            after.pop(key, None)
        else:
            after[key] = record
    return after


class _Instance:
    """Everything that one service command leaves running."""

    def __init__(self, first: Line) -> None:
        self.first = self.last = first
        self.is_over = False  # the checkers have heard of its end


class Batch(NamedTuple):
    """What has come since the last one, in the order of time."""

    observations: list[Observation]
    too_late: list[str]  # signs of life of incarnations that had ended, in words


class HistoryReader:
    """Reads what one campaign records, in batches."""

    def __init__(self, observations: Path, record: Path, nodes: dict[str, int]) -> None:
        """`nodes`: their ids, by name."""
        self._directory = observations
        self._nodes = nodes
        self._files: dict[Path, DaemonFile] = {}
        self._record = _Growing(record)
        self._instances: dict[str, _Instance] = {}
        self._running: dict[str, _Instance] = {}  # the newest start or recovery of each service
        self._signs: dict[Life, tuple[int, int]] = {}  # first and last sign of life of each incarnation
        self._ended: set[Life] = set()
        self._programs: set[tuple[int, int, int, int]] = set()  # node, incarnation, level, registration
        self._late: set[str] = set()  # signs of life after the end, in words
        self._held: list[Observation] = []  # came after the moment up to which the last batch went

    def batch(self, until_us: int, living: set[Life]) -> Batch:
        """All observations up to `until_us`; what began before and is not in `living` has ended by then.

        Raises `HistoryIncomplete`, `msgspec.DecodeError`.
        """
        found = self._held + self._from_daemons() + self._from_services()
        found += self._ends(found, until_us, living)
        found.sort(key=_order)
        self._held = [seen for seen in found if seen.at_us > until_us]
        too_late = sorted(self._late)
        self._late.clear()
        return Batch([seen for seen in found if seen.at_us <= until_us], too_late)

    def whole(self) -> Batch:
        """A kept history: all of it; what each node lived last may have gone on. Raises as `batch`."""
        first = self.batch(0, set())
        newest: dict[int, Life] = {}
        for life in self._signs:
            newest[life[0]] = max(life, newest.get(life[0], life), key=lambda one: self._signs[one][0])
        rest = self.batch(NEVER_US, set(newest.values()))
        return Batch(first.observations + rest.observations, first.too_late + rest.too_late)

    def _from_daemons(self) -> list[Observation]:
        found: list[Observation] = []
        for path in sorted(self._directory.glob("*.jsonl")):
            if path not in self._files:
                self._files[path] = DaemonFile(path)
            file = self._files[path]
            for seen in file.observations():
                if not self._is_repeated(seen):
                    found.append(seen)
                life = (file.node, file.incarnation)
                if life not in self._signs:
                    found.append(LifeBegan(seen.at_us, *life))
                self._sign(life, seen.at_us)
        return found

    def _is_repeated(self, seen: Observation) -> bool:
        """A restarted daemon registers again what is registered: to its program and to others nothing has happened."""
        if not isinstance(seen, ProgramCame):
            return False
        key = (seen.node, seen.incarnation, *seen.level.identity)
        known = key in self._programs
        self._programs.add(key)
        return known

    def _sign(self, life: Life, at_us: int) -> None:
        first, last = self._signs.get(life, (at_us, at_us))
        self._signs[life] = (min(first, at_us), max(last, at_us))
        if life in self._ended:
            self._is_late(f"incarnation {life[1]} of n{life[0]} gave a sign of life at {at_us} us, after its end")

    def _is_late(self, words: str) -> None:
        if len(self._late) < MAXIMUM_LATE:
            self._late.add(words)

    def _from_services(self) -> list[Observation]:
        """Instances that begin, and the ends of those that they follow."""
        found: list[Observation] = []
        followed: list[_Instance] = []
        for data in self._record.lines():
            line = parse_line(data)
            self._sign((self._nodes[line.node], line.incarnation), line.time_us)
            instance = self._instances.get(line.instance)
            if instance is None:
                self._instances[line.instance] = instance = _Instance(line)
                found += self._begun(instance, followed)
            elif instance.is_over:
                self._is_late(f"{line.service} ran on n{self._nodes[line.node]} at {line.time_us} us, after its end")
            instance.last = line
        return found + [self._over(instance) for instance in followed]

    def _begun(self, instance: _Instance, followed: list[_Instance]) -> list[Observation]:
        line, node = instance.first, self._nodes[instance.first.node]
        taken = CommandTaken(
            line.time_us, node, line.incarnation, line.service, line.generation, line.action, line.epoch,
            line.token,
        )  # fmt: skip
        if line.action == "stop":
            return [taken]  # it runs beside what it ends
        began = ServiceBegan(line.time_us, node, line.incarnation, line.service, line.generation)
        if (before := self._running.get(line.service)) is not None:
            followed.append(before)
        self._running[line.service] = instance
        return [taken, began]

    def _over(self, instance: _Instance) -> ServiceEnded:
        """The end of an instance that another has followed: with its last line, also where that came too late."""
        instance.is_over = True
        first, last = instance.first, instance.last
        at_us = max(last.time_us, first.time_us + 1)
        return ServiceEnded(at_us, self._nodes[first.node], first.incarnation, first.service, first.generation)

    def _ends(self, found: list[Observation], until_us: int, living: set[Life]) -> list[Observation]:
        """The ends of lives. One that is only heard of has never run anything that could write: it ended before."""
        heard_of = {life for life, (first_us, _last_us) in self._signs.items() if first_us <= until_us}
        for seen in found:
            if isinstance(seen, Applied):
                proofs = [member.last_proof for member in seen.state.members.values() if member.last_proof is not None]
                heard_of |= {(proof.node, proof.incarnation) for proof in proofs}
            elif isinstance(seen, Notified) and seen.kind is TransitionKind.FORCED_LEAVING:
                heard_of.add((seen.about, seen.about_incarnation))
        over = heard_of - living - self._ended
        self._ended |= over
        return [LifeEnded(self._signs.get(life, (0, 0))[1], *life, "its last sign of life") for life in sorted(over)]


def _order(seen: Observation) -> tuple[int, int]:
    """Of what is of one moment, the end of a service comes first, and the end of a life, its last sign, last."""
    return (seen.at_us, {ServiceEnded: 0, LifeEnded: 2}.get(type(seen), 1))


def remembering(seen: Applied, operations: dict[str, Operation]) -> Applied:
    """The state with all operations that were ever shown: a replica forgets the oldest of many (SPEC 9.1)."""
    operations |= seen.state.operations
    if len(seen.state.operations) < MAXIMUM_OPERATIONS:
        return seen
    return msgspec.structs.replace(seen, state=msgspec.structs.replace(seen.state, operations=dict(operations)))
