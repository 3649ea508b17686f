"""The own key of an incarnation on one disk: registered at boot, looked after, never registered again (P7.39-P7.43).

Theory of operation. At boot, before the first record of the lease, the key is registered once by each path, the disk
is reserved, and all is read back. From then on a path is *held* while it is known to have had the key ever since. Only
held paths take I/O. `PROBE` says of a path whether it has the key, and changes nothing. A preemption takes the key from
all paths at once, so while one path is held nobody has preempted this incarnation; and when none is held any more, it
was preempted: the node stops, and nothing is registered again. A path that has lost its key, or of which nobody knows,
gets it anew only between two probes of a held path that both find the key (P7.43).

`wanted` is the next command, `answered` takes what came of it; there is one under way at a time.
"""

from collections import deque
from enum import Enum, auto

from muster.core.reservations.keys import (
    ALL_REGISTRANTS,
    NO_RESERVATION,
    Answer,
    Command,
    Owner,
    Status,
    Verb,
    key_of,
    owner_of,
    why_no_proof,
)


class PathState(Enum):
    """What is known of a path."""

    BARE = auto()  # it has not the key
    UNSURE = auto()  # it was to get the key, and nobody knows whether it has, or will have
    HELD = auto()  # it has had the key ever since it was found to have it: it takes I/O


class Stage(Enum):
    """How far the key has come on this disk."""

    CAPABILITIES = auto()
    LOOK = auto()  # whose keys are there
    REGISTER = auto()
    RESERVE = auto()
    SEE = auto()
    RUNS = auto()
    REFUSED = auto()  # the node must not start with this disk: `why`
    GONE = auto()  # preempted: the node must stop at once, and nothing is registered any more


class _Repair(Enum):
    """How far the repair of a path has come (P7.43)."""

    BEFORE = auto()  # a held path is probed
    REGISTER = auto()
    AFTER = auto()  # a held path is probed again
    MARKS = auto()  # the marks in the store are read anew


class Registrant:
    """The key of one incarnation on one disk."""

    def __init__(self, tag: int, owner: Owner, paths: tuple[str, ...]) -> None:
        """`paths`: those that the node has to the disk, in any order, at least one."""
        self._tag, self._owner = tag, owner
        self.key = key_of(tag, owner)
        self.paths = dict.fromkeys(sorted(paths), PathState.BARE)
        self.stage, self.why = Stage.CAPABILITIES, ""
        self._todo = deque(self.paths)  # the paths that this step of the boot may still use
        self._look_is_due = False
        self._look: deque[str] = deque()  # held paths that are still to be probed; the first one was asked last
        self._repaired = ""  # the path under repair
        self._repair = _Repair.BEFORE
        self._tried: set[str] = set()  # held paths that this step of the repair has probed in vain

    # ---- what others go by --------------------------------------------------------------------------------------

    @property
    def may_record(self) -> bool:
        """Whether the first record of the lease may be written, as far as this disk is concerned (P7.39)."""
        return self.stage is Stage.RUNS

    @property
    def is_gone(self) -> bool:
        """Whether this incarnation was preempted: it must stop at once (P7.42)."""
        return self.stage is Stage.GONE

    @property
    def held(self) -> list[str]:
        """The paths that may take I/O."""
        usable = self.stage in (Stage.RUNS, Stage.RESERVE, Stage.SEE)
        return [path for path, state in self.paths.items() if usable and state is PathState.HELD]

    @property
    def wants_marks(self) -> bool:
        """Whether a repair waits for a look at the marks that begins from now on."""
        return self.stage is Stage.RUNS and bool(self._repaired) and self._repair is _Repair.MARKS

    # ---- what is to be done -------------------------------------------------------------------------------------

    def look(self) -> None:
        """Look after the key: due now and then, and at once when a write was refused (P7.42)."""
        self._look_is_due = True

    def path_is_up(self, path: str) -> None:
        """A path takes commands again. One that is not held is repaired, if none is under repair (P7.43)."""
        if self.stage is Stage.RUNS and not self._repaired and self.paths[path] is not PathState.HELD:
            self._repaired = path
            self._ask_witnesses(_Repair.BEFORE)

    def wanted(self) -> Command | None:
        """The next command; None: nothing is to be asked now."""
        match self.stage:
            case Stage.RUNS:
                return self._wanted_later()
            case Stage.REFUSED | Stage.GONE:
                return None
            case stage:
                return Command(_AT_BOOT[stage], self._todo[0], self.key)

    def _wanted_later(self) -> Command | None:
        if self._look_is_due and not self._look:
            self._look, self._look_is_due = deque(self.held), False
        if self._look:
            return Command(Verb.PROBE, self._look[0], self.key)
        if not self._repaired or self._repair is _Repair.MARKS:
            return None
        if self._repair is _Repair.REGISTER:
            return Command(Verb.REGISTER, self._repaired, self.key)
        witness = next((path for path in self.held if path not in self._tried), None)
        if witness is None:
            self._repaired = ""  # nobody can say so now; the path stays as it is, and is tried again
            return None
        return Command(Verb.PROBE, witness, self.key)

    def answered(self, command: Command, answer: Answer) -> None:
        """What came of the command that was wanted last."""
        match self.stage:
            case Stage.RUNS if self._look:
                self._look.popleft()
                self._probed(command.path, answer)
            case Stage.RUNS:
                self._repair_goes_on(command, answer)
            case Stage.REGISTER:
                self._registered(answer)
            case Stage.CAPABILITIES | Stage.LOOK | Stage.RESERVE | Stage.SEE:
                self._boot_goes_on(answer)
            case _:
                pass

    # ---- the boot -----------------------------------------------------------------------------------------------

    def _boot_goes_on(self, answer: Answer) -> None:
        """One path's answer is enough; without one the next is asked."""
        if answer.status is Status.LOST:
            self._todo.popleft()
            if not self._todo:
                self._refuse("no path to it answers")
        elif why := self._objection(answer):
            self._refuse(why)
        elif self.stage is Stage.CAPABILITIES:
            self._begin(Stage.LOOK, list(self.paths))
        elif self.stage is Stage.LOOK:
            self._begin(Stage.REGISTER, list(self.paths))
        elif self.stage is Stage.RESERVE:
            self._begin(Stage.SEE, self.held)
        else:
            self.stage = Stage.RUNS

    def _begin(self, stage: Stage, paths: list[str]) -> None:
        self.stage, self._todo = stage, deque(paths)

    def _refuse(self, why: str) -> None:
        self.stage, self.why = Stage.REFUSED, why

    def _objection(self, answer: Answer) -> str:
        """Why the node must not start with this disk, by this answer; empty: nothing is wrong (P7.38, P7.39)."""
        if self.stage is Stage.CAPABILITIES:
            found = answer.capabilities
            return "it has no persistent reservations" if found is None else why_no_proof(found)
        if answer.status is not Status.GOOD:
            return "it refuses the reservation: it is reserved in another way, or has lost the key of this path"
        if self.stage is Stage.RESERVE:
            return ""
        view = answer.view
        strangers = [key for key in view.keys if owner_of(self._tag, key) is None]
        if strangers:
            return f"a key that is not of this cluster is registered on it: {strangers[0]:#018x}"
        if any(self._is_of_a_later_life(key) for key in view.keys):
            return "a later incarnation of this node has its key on it"
        if self.stage is Stage.LOOK:
            return "" if view.type in (NO_RESERVATION, ALL_REGISTRANTS) else "it is reserved in another way"
        if view.type != ALL_REGISTRANTS:
            return "its reservation has gone while it was made"
        return "" if self.key in view.keys else "the key of this node has gone while the disk was reserved"

    def _is_of_a_later_life(self, key: int) -> bool:
        owner = owner_of(self._tag, key)
        return owner is not None and owner.node == self._owner.node and owner > self._owner

    def _registered(self, answer: Answer) -> None:
        path = self._todo.popleft()
        if answer.status is Status.GOOD:
            self.paths[path] = PathState.HELD
        else:
            self.paths[path] = PathState.UNSURE if answer.status is Status.LOST else PathState.BARE
        if self._todo:
            return
        found = [path for path, state in self.paths.items() if state is PathState.HELD]
        if found:
            self._begin(Stage.RESERVE, found)
        else:
            self._refuse("the key of this node could be registered by none of its paths")

    # ---- later --------------------------------------------------------------------------------------------------

    def _probed(self, path: str, answer: Answer) -> bool:
        """Whether this held path has the key still. Where none has, this incarnation was preempted (P7.42)."""
        if answer.status is Status.CONFLICT:
            self.paths[path] = PathState.BARE
            if not self.held:
                self._gone()
        return answer.status is Status.GOOD

    def _gone(self) -> None:
        self.stage, self.why = Stage.GONE, "all keys of this node have gone from a disk: it was preempted"
        self._look.clear()
        self._repaired = ""

    def _repair_goes_on(self, command: Command, answer: Answer) -> None:
        path = self._repaired
        if self._repair is _Repair.REGISTER:
            unsure = answer.status in (Status.GOOD, Status.LOST)
            self.paths[path] = PathState.UNSURE if unsure else PathState.BARE
            if answer.status is Status.GOOD:
                self._ask_witnesses(_Repair.AFTER)
            else:
                self._repaired = ""
        elif self._probed(command.path, answer):
            # the held path has had the key all the time, so nobody had preempted it when it was asked
            self._repair = _Repair.REGISTER if self._repair is _Repair.BEFORE else _Repair.MARKS
        else:
            self._tried.add(command.path)

    def _ask_witnesses(self, step: _Repair) -> None:
        self._repair, self._tried = step, set()

    def marks_read(self, *, condemned: bool) -> None:
        """The marks were read after `wants_marks` was true. The repaired path takes I/O only now (P7.43)."""
        if not self.wants_marks:
            return
        if condemned:
            self._gone()
            self.why = "a mark says that this node is to be forced out"
        else:
            self.paths[self._repaired] = PathState.HELD
            self._repaired = ""


_AT_BOOT = {
    Stage.CAPABILITIES: Verb.CAPABILITIES,
    Stage.LOOK: Verb.READ,
    Stage.REGISTER: Verb.REGISTER,
    Stage.RESERVE: Verb.RESERVE,
    Stage.SEE: Verb.READ,
}
